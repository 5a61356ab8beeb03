"""Open-set scores against plain forms of their papers, on made features."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from timm_lt.evaluate import open_set_scores
from timm_lt.evaluate.metrics.openset import SCORES, TrainingOutputs, fit_open_set_score, threshold_free
from timm_lt.evaluate.metrics.openset.openmax import fit_weibull

NUM_CLASSES, SIZE = 4, 8
COUNTS = [60, 30, 10, 3]


def images(targets, seed, spread=0.4):
    """Features around a direction per class; unknown images (-1) around another direction."""
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.eye(SIZE, dtype=torch.float64)
    noise = torch.randn(len(targets), SIZE, generator=generator, dtype=torch.float64)
    return centers[torch.where(targets < 0, SIZE - 1, targets)] + spread * noise


@pytest.fixture
def network():
    generator = torch.Generator().manual_seed(0)
    weight = 3 * torch.eye(NUM_CLASSES, SIZE, dtype=torch.float64)
    weight = weight + 0.1 * torch.randn(NUM_CLASSES, SIZE, generator=generator, dtype=torch.float64)
    bias = 0.1 * torch.randn(NUM_CLASSES, generator=generator, dtype=torch.float64)
    targets = torch.repeat_interleave(torch.arange(NUM_CLASSES), torch.tensor(COUNTS))
    features = images(targets, 1)
    return weight, bias, TrainingOutputs(targets, features @ weight.T + bias, features, weight, bias)


def known_and_unknown(weight, bias):
    labels = torch.cat([torch.arange(40) % NUM_CLASSES, torch.full((30,), -1)])
    features = images(labels, 2)
    return labels, features, features @ weight.T + bias


@pytest.mark.parametrize('name', list(SCORES))
def test_every_score_separates_unknown_images_and_marks_broken_ones(name, network):
    weight, bias, training = network
    labels, features, logits = known_and_unknown(weight, bias)
    scores = open_set_scores(logits, score=name, features=features, training=training)
    assert scores.shape == labels.shape and scores.isfinite().all()
    assert threshold_free(scores, logits.argmax(1), labels)['auroc'] > 60
    logits[3], features[3] = torch.nan, torch.nan
    again = open_set_scores(logits, score=name, features=features, training=training)
    assert again.isnan().tolist() == [i == 3 for i in range(len(labels))]
    torch.testing.assert_close(again[4:], scores[4:])


def test_max_logit_and_nearest_neighbor_follow_their_papers(network):
    weight, bias, training = network
    _, features, logits = known_and_unknown(weight, bias)
    assert torch.equal(open_set_scores(logits, score='max_logit'), logits.max(1).values)
    score = fit_open_set_score('nearest_neighbor', training, k=3)
    unit, bank = F.normalize(features, dim=1), F.normalize(training.features, dim=1)
    naive = [-sorted(float((u - b).norm()) for b in bank)[2] for u in unit]
    np.testing.assert_allclose(score.score(None, features), naive, atol=1e-7)
    few = TrainingOutputs(training.targets[:5], features=training.features[:5])
    farthest = fit_open_set_score('nearest_neighbor', few).score(None, features)
    np.testing.assert_allclose(farthest, [-max(float((u - b).norm()) for b in bank[:5]) for u in unit], atol=1e-7)


def test_vim_follows_its_paper(network):
    weight, bias, training = network
    _, features, logits = known_and_unknown(weight, bias)
    origin = -np.linalg.pinv(weight.numpy()) @ bias.numpy()
    x = training.features.numpy() - origin
    values, vectors = np.linalg.eig(x.T @ x / len(x))
    null = vectors[:, np.argsort(-values)[SIZE // 2:]]
    alpha = training.logits.numpy().max(1).mean() / np.linalg.norm(x @ null, axis=1).mean()
    virtual = alpha * np.linalg.norm((features.numpy() - origin) @ null, axis=1)
    expected = logits.logsumexp(1).numpy() - virtual
    np.testing.assert_allclose(
        open_set_scores(logits, score='vim', features=features, training=training), expected, rtol=1e-8)


def test_openmax_follows_its_paper(network):
    weight, bias, training = network
    _, _, logits = known_and_unknown(weight, bias)
    score = fit_open_set_score('openmax', training, tail=6, alpha=3, least=4)
    z, y = training.logits, training.targets
    right = z.argmax(1) == y
    assert int(right[y == 3].sum()) < 4, 'the smallest class takes the common distribution'
    means, tails = [], []
    for c in range(NUM_CLASSES):
        mine = z[(y == c) & right]
        means.append(mine.mean(0))
        tails.append((mine - means[-1]).norm(dim=1).sort(descending=True).values[:6])
    for row, v in enumerate(logits[:8]):
        order = v.argsort(descending=True)
        revised, unknown = v.clone(), 0.0
        for i in range(3):
            c = int(order[i])
            k, _, scale = stats.weibull_min.fit(
                (tails[c] if len(tails[c]) >= 4 else torch.cat(tails)).numpy(), floc=0)
            w = (3 - i) / 3 * (1 - np.exp(-(float((v - means[c]).norm()) / scale) ** k))
            revised[c], unknown = v[c] * (1 - w), unknown + v[c] * w
        probability = torch.cat([revised, torch.as_tensor(unknown).reshape(1)]).softmax(0)
        odds = (1 - probability[-1]).log() - probability[-1].log()
        assert float(score.score(logits, None)[row]) == pytest.approx(float(odds), rel=1e-3, abs=1e-3)


def test_weibull_fit_is_the_maximum_of_the_likelihood_and_bears_equal_values():
    x = torch.tensor([[0.5, 1.0, 1.2, 2.0, 0.7, 0.0], [3.0, 3.0, 3.0, 3.0, 0.0, 0.0]], dtype=torch.float64)
    there = torch.tensor([[True] * 5 + [False], [True] * 4 + [False] * 2])
    shape, scale = fit_weibull(x, there)
    k, _, lam = stats.weibull_min.fit(x[0, :5].numpy(), floc=0)
    assert float(shape[0]) == pytest.approx(k, rel=1e-3) and float(scale[0]) == pytest.approx(lam, rel=1e-3)
    assert shape[1] > 900 and float(scale[1]) == pytest.approx(3, rel=1e-3)


def test_missing_parts_are_named(network):
    weight, bias, training = network
    _, features, logits = known_and_unknown(weight, bias)
    for name in ('nearest_neighbor', 'vim', 'openmax'):
        with pytest.raises(ValueError, match='fitted to training images'):
            open_set_scores(logits, score=name, features=features)
    with pytest.raises(ValueError, match='needs features'):
        open_set_scores(logits, score='vim', training=training)
    with pytest.raises(ValueError, match='fitted to the logits of training images'):
        open_set_scores(logits, score='openmax', training=TrainingOutputs(training.targets))
    with pytest.raises(ValueError, match='below 8'):
        fit_open_set_score('vim', training, dim=8)
    broken = TrainingOutputs(training.targets, training.logits * torch.nan, training.features)
    with pytest.raises(ValueError, match='103 of 103 logits are NaN'):
        fit_open_set_score('openmax', broken)
