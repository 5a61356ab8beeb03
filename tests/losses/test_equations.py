"""Each loss on logits against a plain loop in float64, written from its equation."""

import math

import pytest
import torch
import torch.nn.functional as F
from loss_cases import COUNTS, C, make_batch, random_soft

from timm_lt import create_loss
from timm_lt.losses import (
    balanced_softmax_loss,
    class_balanced_loss,
    eql_loss,
    gcl_loss,
    lade_loss,
    lade_regularizer,
    ldam_loss,
    ldam_margins,
)
from timm_lt.losses._terms import logsumexp_of_others


def loop(logits, target, of_sample):
    return torch.stack([of_sample(z, int(y)) for z, y in zip(logits, target)])


def minus_log_softmax(z, y):
    return -(z[y] - torch.log(torch.exp(z).sum()))


def test_ldam_matches_a_plain_loop():
    cosine, target = make_batch()
    margins = [0.5 * (1 / n) ** 0.25 / max((1 / m) ** 0.25 for m in COUNTS) for n in COUNTS]
    torch.testing.assert_close(ldam_margins(COUNTS), torch.tensor(margins, dtype=torch.float64))

    def of_sample(z, y):
        z = z.clone()
        z[y] -= margins[y]
        return minus_log_softmax(30 * z, y)

    torch.testing.assert_close(
        ldam_loss(cosine, target, ldam_margins(COUNTS), reduction='none'), loop(cosine, target, of_sample))


def test_vs_matches_a_plain_loop():
    logits, target = make_batch(scale=3.0)
    adjusted = [(COUNTS[0] / n) ** 0.3 for n in COUNTS], [math.log(n / sum(COUNTS)) for n in COUNTS]

    def of_sample(z, y):
        return minus_log_softmax(torch.stack([z[c] / adjusted[0][c] + adjusted[1][c] for c in range(C)]), y)

    torch.testing.assert_close(
        create_loss('vs', COUNTS)(logits, target, reduction='none'), loop(logits, target, of_sample))


@pytest.mark.parametrize('gamma', [0.5, 1.0, 2.0])
def test_focal_matches_a_plain_loop(gamma):
    logits, target = make_batch(scale=3.0)

    def of_sample(z, y):
        p = z.softmax(0)[y]
        return -(1 - p) ** gamma * torch.log(p)

    torch.testing.assert_close(
        create_loss('focal', gamma=gamma)(logits, target, reduction='none'), loop(logits, target, of_sample))


@pytest.mark.parametrize('form, variant', [
    ('softmax', 'paper'), ('softmax', 'released'), ('sigmoid', 'paper'), ('focal', 'paper')])
def test_class_balanced_matches_a_plain_loop(form, variant):
    logits, target = make_batch(scale=3.0)
    beta, gamma = 0.99, 1.5
    raw = [(1 - beta) / (1 - beta ** n) for n in COUNTS]
    weight = torch.tensor([w * C / sum(raw) for w in raw], dtype=torch.float64)

    def of_sample(z, y):
        if form == 'softmax' and variant == 'paper':
            return weight[y] * minus_log_softmax(z, y)
        p = z.softmax(0) if form == 'softmax' else torch.sigmoid(z)
        total = 0.0
        for c in range(C):
            p_true = p[c] if c == y else 1 - p[c]
            factor = (1 - p_true) ** gamma if form == 'focal' else 1.0
            total = total - factor * torch.log(p_true)
        return weight[y] * total / (C if form == 'softmax' else 1)

    loss = create_loss('class_balanced', COUNTS, beta=beta, form=form, gamma=gamma, variant=variant)
    torch.testing.assert_close(loss(logits, target, reduction='none'), loop(logits, target, of_sample))
    torch.testing.assert_close(loss.balance_weight, weight)
    torch.testing.assert_close(
        class_balanced_loss(logits, target, weight, form, gamma, variant), loop(logits, target, of_sample).mean())


@pytest.mark.parametrize('soft', [False, True])
@pytest.mark.parametrize('gap', [12.0, 20.0, 40.0])
@pytest.mark.parametrize('form', ['sigmoid', 'focal'])
def test_class_balanced_of_a_confident_sample_does_not_cancel(form, gap, soft):
    # of logits +gap for the own class and -gap: each term is log(1 + e), with e below
    logits = torch.full((1, C), -gap)
    logits[0, 1] = gap
    logits.requires_grad_()
    target = F.one_hot(torch.tensor([1]), C).float() if soft else torch.tensor([1])
    loss = class_balanced_loss(logits, target, torch.ones(C), form, 1.0, 'released')
    e = math.exp(-gap)
    value, slope = {'sigmoid': (C * e, e), 'focal': (C * e ** 2, 2 * e ** 2)}[form]
    torch.testing.assert_close(loss.item(), value, rtol=1e-4, atol=0)
    grad, = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad[0, 0].item(), slope, rtol=1e-4, atol=0)


def test_class_balanced_released_softmax_rounds_extreme_probabilities_as_published():
    logits = 80 * torch.tensor([[1.0, -1, 0, 0, 1], [-1, 1, -1, -1, -1], [0, 0, 1, -1, -1]], dtype=torch.float64)
    target = torch.tensor([0, 4, 2])
    logits.requires_grad_()
    values = {}
    for name in ('ours', 'published'):
        if name == 'ours':
            loss = class_balanced_loss(logits, target, torch.ones(C), variant='released')
        else:
            loss = F.binary_cross_entropy(logits.softmax(1), F.one_hot(target, C).double())
        values[name] = loss, *torch.autograd.grad(loss, logits)
    for ours, published in zip(values['ours'], values['published']):
        torch.testing.assert_close(ours, published, rtol=1e-12, atol=0)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_class_balanced_of_overflowed_logits_has_a_gradient_that_a_scaler_skips(bad):
    logits = torch.tensor([[0.0, bad, 1.0]], requires_grad=True)
    loss = create_loss('class_balanced', [3, 2, 1], variant='released')(logits, torch.tensor([0]))
    grad, = torch.autograd.grad(loss, logits)
    assert not bool(torch.isfinite(grad).all())


def test_eql_matches_a_plain_loop_for_hard_and_soft_targets():
    logits, target = make_batch(scale=3.0)
    rare = torch.tensor([False, False, True, True, True])
    drop = torch.rand(logits.shape, generator=torch.Generator().manual_seed(5)) < 0.7
    values = {}
    for c in range(C):
        for i, z in enumerate(logits):
            kept = [k for k in range(C) if k == c or not (rare[k] and drop[i, k])]
            values[i, c] = -(z[c] - torch.log(sum(torch.exp(z[k]) for k in kept)))
    expected = torch.stack([values[i, int(y)] for i, y in enumerate(target)])
    torch.testing.assert_close(eql_loss(logits, target, rare, drop, 'none'), expected)
    soft = random_soft(*logits.shape)
    expected = torch.stack([sum(soft[i, c] * values[i, c] for c in range(C)) for i in range(len(logits))])
    torch.testing.assert_close(eql_loss(logits, soft, rare, drop, 'none'), expected)
    # all terms but the own one dropped
    all_rare, all_dropped = torch.ones(C, dtype=torch.bool), torch.ones_like(drop)
    torch.testing.assert_close(
        eql_loss(logits, soft, all_rare, all_dropped, 'none'), torch.zeros(len(logits), dtype=torch.float64))


def test_eql_drops_terms_of_rare_classes_with_probability_gamma():
    torch.manual_seed(0)
    loss = create_loss('eql', [1000, 1], gamma=0.9)
    values = loss(torch.zeros(20000, 2), torch.zeros(20000, dtype=torch.long), reduction='none')
    # a dropped term leaves a loss of 0, a kept one log 2; 5 standard deviations are 0.011
    assert abs((values < 0.1).float().mean() - 0.9) < 0.011
    loss.eval()
    assert bool((loss(torch.zeros(50, 2), torch.zeros(50, dtype=torch.long), reduction='none') > 0.5).all())


def test_label_aware_smoothing_matches_a_plain_loop():
    logits, target = make_batch(scale=3.0)
    loss = create_loss('las', COUNTS, smooth_head=0.4, smooth_tail=0.1)
    smooth = [0.1 + 0.3 * math.sin((n - 1) * math.pi / (2 * (500 - 1))) for n in COUNTS]

    def of_sample(z, y):
        log_p = z - torch.log(torch.exp(z).sum())
        return -(1 - smooth[y]) * log_p[y] - smooth[y] * log_p.mean()

    torch.testing.assert_close(loss(logits, target, reduction='none'), loop(logits, target, of_sample))


def test_label_aware_smoothing_gives_equal_classes_the_smoothing_of_the_head():
    assert create_loss('las', [4, 4, 4]).smooth.tolist() == pytest.approx([0.3] * 3)


def test_gcl_matches_a_plain_loop_and_draws_clamped_noise():
    cosine, target = make_batch()
    noise = torch.randn(cosine.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    cloud = [(math.log(500) - math.log(n)) / math.log(500) for n in COUNTS]

    def of_sample_with(noise, scale, k, margin, gamma):
        rows = iter(noise)

        def of_sample(z, y):
            e = next(rows)
            z = torch.stack([z[c] - k * min(1.0, abs(float(e[c]))) * cloud[c] for c in range(C)])
            z[y] -= margin
            ce = minus_log_softmax(scale * z, y)
            return (1 - torch.exp(-ce)) ** gamma * ce

        return of_sample

    loss = create_loss('gcl', COUNTS)
    torch.testing.assert_close(
        gcl_loss(cosine, target, loss.cloud, noise, 20.0, 0.5, 0.1, 1.0, 'none'),
        loop(cosine, target, of_sample_with(noise, 20.0, 0.5, 0.1, 1.0)))
    torch.manual_seed(8)
    drawn = torch.randn_like(cosine) / 3
    torch.manual_seed(8)
    torch.testing.assert_close(
        loss(cosine, target, reduction='none'), loop(cosine, target, of_sample_with(drawn, 30.0, 0.5, 0.0, 0.0)))
    loss.eval()
    torch.testing.assert_close(loss(cosine, target), F.cross_entropy(30 * cosine, target))


@pytest.mark.parametrize('variant', ['paper', 'released'])
def test_lade_matches_a_plain_loop(variant):
    logits, target = make_batch()
    target[target == 4] = 0  # a class that is absent from the batch
    prior = [n / sum(COUNTS) for n in COUNTS]
    total = 0.0
    for c in range(C):
        own = [z[c] for z, y in zip(logits, target) if y == c]
        uniform = sum(
            torch.exp(z[c]) / (C * prior[int(y) if variant == 'paper' else c])
            for z, y in zip(logits, target)) / len(logits)
        bound = (sum(own) / len(own) if own else 0.0) - torch.log(uniform) - 0.1 * torch.log(uniform) ** 2
        total = total - prior[c] * bound
    loss = create_loss('lade', COUNTS, variant=variant)
    shares = lade_regularizer(logits, target, loss.log_prior, variant=variant)
    torch.testing.assert_close(shares.sum(), total)
    expected = create_loss('balanced_softmax', COUNTS)(logits, target) + 0.1 * total
    torch.testing.assert_close(loss(logits, target), expected)
    torch.testing.assert_close(lade_loss(logits, target, loss.log_prior, variant=variant), expected)
    torch.testing.assert_close(
        lade_loss(logits, target, loss.log_prior, regularizer_weight=0.0),
        balanced_softmax_loss(logits, target, loss.log_prior))


def test_logsumexp_of_others_has_no_cancellation():
    logits = torch.tensor([[0.0, 60.0, -60.0], [5.0, 5.0, 5.0], [100.0, -100.0, 99.0]], dtype=torch.float64)
    expected = torch.stack([
        torch.stack([torch.logsumexp(torch.cat([z[:c], z[c + 1:]]), 0) for c in range(3)]) for z in logits])
    torch.testing.assert_close(logsumexp_of_others(logits), expected)
    torch.testing.assert_close(logsumexp_of_others(logits.float()), expected.float())
