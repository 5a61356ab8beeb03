import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, roc_curve
from torch.nn import functional as F

from timm_lt.evaluate import (
    choose_threshold,
    class_prototypes,
    open_set_f_measure,
    open_set_report,
    open_set_scores,
    reject,
)
from timm_lt.evaluate.metrics import open_set_counts, threshold_free


def make(num_known=150, num_unknown=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.randint(5, (num_known,), generator=generator), torch.full((num_unknown,), -1)])
    logits = torch.randn(len(labels), 5, generator=generator, dtype=torch.float64)
    logits[torch.arange(num_known), labels[:num_known]] += 2
    order = torch.randperm(len(labels), generator=generator)
    return logits[order], labels[order]


def naive_f(predictions, labels, with_rejected):
    """OLTR's precision and recall, written over single images."""
    pairs = list(zip(predictions.tolist(), labels.tolist()))
    tp = sum(p == y for p, y in pairs if y != -1)
    wrong = sum(p != y for p, y in pairs if y != -1 and (p != -1 or with_rejected))
    kept = sum(p != -1 for p, y in pairs if y == -1)
    precision, recall = tp / (tp + wrong), tp / (tp + kept)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize('threshold', [0.2, 0.5, 0.8])
def test_both_f_measures_match_their_precision_and_recall(threshold):
    logits, labels = make()
    predictions = reject(logits.argmax(1), open_set_scores(logits), threshold)
    counts = open_set_counts(predictions, labels)
    assert sum(counts.values()) == len(labels)
    assert open_set_f_measure(counts, 'oltr') == pytest.approx(naive_f(predictions, labels, True), abs=1e-12)
    assert open_set_f_measure(counts, 'without_rejected') == pytest.approx(
        naive_f(predictions, labels, False), abs=1e-12)


def test_nothing_right_gives_zero_not_an_error():
    counts = open_set_counts(torch.tensor([-1, -1]), torch.tensor([0, -1]))
    assert open_set_f_measure(counts, 'oltr') == 0 and open_set_f_measure(counts, 'without_rejected') == 0
    with pytest.raises(ValueError, match="definition must be one of .*'f1'"):
        open_set_f_measure(counts, 'f1')


def test_scores_match_their_formulas():
    logits, _ = make()
    assert torch.equal(open_set_scores(logits), logits.softmax(1).max(1).values)
    energy = open_set_scores(logits, score='energy', temperature=2.0)
    assert torch.allclose(energy, 2 * torch.log(torch.exp(logits / 2).sum(1)))
    features = torch.randn(30, 4, dtype=torch.float64)
    targets = torch.arange(30) % 3
    prototypes = class_prototypes(features, targets, 4)
    unit = features / features.norm(dim=1, keepdim=True)
    for c in range(3):
        assert torch.allclose(prototypes[c], F.normalize(unit[targets == c].mean(0), dim=0))
    assert prototypes[3].isnan().all()
    scores = open_set_scores(score='prototype', features=features, prototypes=prototypes)
    naive = torch.stack([-min((u - prototypes[c]).norm() for c in range(3)) for u in unit])
    assert torch.allclose(scores, naive, atol=1e-7)
    with pytest.raises(ValueError, match='needs features'):
        open_set_scores(logits, score='prototype')


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('scale', [1.0, 1000.0])
def test_auroc_and_fpr95_agree_with_scikit_learn(ties, scale):
    logits, labels = make()
    scores = open_set_scores(logits, score='energy') * scale
    scores = (scores / scale).round() * scale if ties else scores
    found = threshold_free(scores, logits.argmax(1), labels)
    known = (labels != -1).numpy()
    assert found['auroc'] == pytest.approx(100 * roc_auc_score(known, scores), abs=1e-4)
    fpr, tpr, _ = roc_curve(known, scores, drop_intermediate=False)
    assert found['fpr95'] == pytest.approx(100 * fpr[tpr >= 0.95][0], abs=1e-10)


def test_oscr_is_auroc_when_every_known_image_is_right():
    logits, labels = make()
    scores = open_set_scores(logits)
    found = threshold_free(scores, labels, labels)
    assert found['oscr'] == pytest.approx(found['auroc'], abs=1e-4)
    half = torch.where(torch.arange(len(labels)) % 2 == 0, labels, 99)
    assert threshold_free(scores, half, labels)['oscr'] < 0.7 * found['oscr']


def test_one_unknown_image_and_none():
    logits, labels = make(20, 1)
    scores = open_set_scores(logits)
    found = open_set_report(scores, logits.argmax(1), labels, threshold=0.5)
    unknown = scores[labels == -1]
    assert found['num_unknown'] == 1 and found['fpr95'] in (0.0, 100.0)
    assert found['auroc'] == pytest.approx(100 * float((scores[labels != -1] > unknown).double().mean()), abs=1e-4)
    json.dumps(found, allow_nan=False)
    alone = open_set_report(scores[labels != -1], logits.argmax(1)[labels != -1], labels[labels != -1], threshold=0.5)
    assert alone['auroc'] is None and alone['fpr95'] is None and alone['oscr'] is None


def test_threshold_with_unknown_validation_images_has_the_best_f_measure():
    logits, labels = make()
    scores, predictions = open_set_scores(logits), logits.argmax(1)
    chosen = choose_threshold(scores, predictions, labels)

    def f(threshold):
        return open_set_f_measure(open_set_counts(reject(predictions, scores, threshold), labels))

    assert f(chosen['threshold']) == max(f(t) for t in scores.tolist())


def test_threshold_without_unknown_images_keeps_the_share_of_known_ones():
    logits, labels = make(200, 0)
    scores = open_set_scores(logits)
    chosen = choose_threshold(scores, keep=0.9)
    assert float((scores >= chosen['threshold']).double().mean()) == pytest.approx(0.9)
    assert 'no unknown' in chosen['rule']
    assert choose_threshold(scores, logits.argmax(1), labels, keep=0.9) == chosen
    result = open_set_report(scores, logits.argmax(1), labels, threshold=chosen)
    assert result['threshold_rule'] == chosen['rule']


def test_accuracy_after_rejection_counts_a_rejected_known_image_as_wrong():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, -1])
    predictions = torch.tensor([0, 0, 0, 1, 1, 1, 2, 0, 2])
    scores = torch.tensor([0.9, 0.9, 0.1, 0.9, 0.9, 0.1, 0.1, 0.9, 0.9])
    found = open_set_report(scores, predictions, labels, threshold=0.5, class_counts=[200, 50, 5, 3])
    assert (found['top1'], found['many'], found['medium'], found['few']) == (37.5, 50.0, 50.0, 0.0)
    assert found['split_rule'] == 'gt100_lt20'
    kept = reject(predictions, scores, 0.5)
    assert kept.tolist() == [0, 0, -1, 1, 1, -1, -1, 0, 2]
    assert 'many' not in open_set_report(scores, predictions, labels, threshold=0.5)
    unknown = open_set_report(scores, predictions, torch.full((9,), -1), threshold=0.5, class_counts=[200, 50, 5, 3])
    assert unknown['top1'] is None and unknown['many'] is None
    with pytest.raises(ValueError, match=r'in \[0, 1\], the classes of class_counts, got 2'):
        open_set_report(scores, predictions, labels, threshold=0.5, class_counts=[200, 50])


@pytest.mark.parametrize('labels, predictions', [(None, None), ([-1, -1], None), ([-1, -1], [0, 0])])
def test_threshold_needs_a_known_image(labels, predictions):
    scores = torch.tensor([] if labels is None else [1.0, 2.0])
    with pytest.raises(ValueError, match='at least one validation image of a known class'):
        choose_threshold(scores, predictions, labels)


def test_scores_that_are_nan_choose_no_threshold_and_are_rejected():
    scores = torch.tensor([0.9, float('nan')])
    with pytest.raises(ValueError, match='1 of 2 validation scores are NaN'):
        choose_threshold(scores)
    assert reject(torch.tensor([1, 2]), scores, 0.5).tolist() == [1, -1]


def test_labels_are_whole_numbers_of_any_type():
    logits, labels = make()
    scores, predictions = open_set_scores(logits), logits.argmax(1)
    expected = open_set_report(scores, predictions, labels, threshold=0.5)
    assert open_set_report(
        scores, predictions.numpy().astype(np.uint16), labels.numpy().astype(np.int8), threshold=0.5) == expected
    with pytest.raises(ValueError, match='labels must be whole numbers'):
        open_set_report(scores, predictions, labels.double(), threshold=0.5)
