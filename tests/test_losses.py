"""What every registered loss promises, and each loss against a plain loop in float64."""

import copy
import io
import math

import pytest
import timm.loss
import torch
import torch.nn.functional as F

import timm_lt
from timm_lt import create_loss, list_losses
from timm_lt._registry import LOSSES
from timm_lt.losses import (
    LongTailLoss,
    balanced_softmax_loss,
    class_balanced_loss,
    eql_loss,
    gcl_loss,
    lade_loss,
    lade_regularizer,
    ldam_loss,
    ldam_margins,
    sample_losses,
    statistics,
)
from timm_lt.losses._base import logsumexp_of_others

NAMES = list_losses(views=True)
SOFT = list_losses(soft_targets=True)
HARD_ONLY = list_losses(soft_targets=False, views=True)
WEIGHTED = [n for n in NAMES if LOSSES.info(n).factory.takes_class_weight]
COUNTS = [500, 120, 30, 6, 1]
C = len(COUNTS)
# options that change the gradient, each apart from the default
OPTIONS = {
    'logit_adjustment': [dict(tau=0.5)],
    'ldam': [dict(max_margin=0.2), dict(scale=10.0)],
    'vs': [dict(gamma=0.1), dict(tau=0.5)],
    'focal': [dict(gamma=1.0), dict(gamma=0.5), dict(variant='released', class_weight=[1.0, 2.0, 3.0, 4.0, 5.0])],
    'class_balanced': [
        dict(beta=0.9), dict(form='sigmoid'), dict(form='focal'), dict(form='focal', gamma=1.0),
        dict(variant='released')],
    'eql': [dict(threshold=0.5), dict(gamma=0.2)],
    'las': [dict(smooth_head=0.1), dict(smooth_tail=0.05), dict(shape='linear'), dict(shape='convex'),
            dict(shape='exp'), dict(shape='exp', power=3.0)],
    'gcl': [dict(noise_factor=1.0), dict(noise_std=0.1), dict(margin=0.1), dict(scale=20.0), dict(focal_gamma=1.0)],
    'lade': [dict(regularizer_weight=0.5), dict(remine_lambda=0.5), dict(variant='released')],
    'gala': [dict(lambda1=0.5), dict(lambda2=0.2), dict(epsilon=0.1), dict(variant='released')],
    'bcl': [dict(classification_weight=1.0), dict(contrastive_weight=0.1), dict(temperature=0.5), dict(tau=0.5)],
}


def make_batch(batch=16, classes=C, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.rand(batch, classes, generator=generator, dtype=torch.float64) * 2 - 1) * scale
    target = torch.randint(classes, (batch,), generator=generator)
    return logits.to(dtype), target


def output_of(name, logits):
    """What the loss takes, as a function of the logits."""
    if name != 'bcl':
        return logits
    generator = torch.Generator().manual_seed(2)
    lift = torch.randn(logits.shape[1], 8, generator=generator, dtype=torch.float64)
    first = F.normalize(logits.double() @ lift + 0.1, dim=1)
    second = F.normalize(logits.double() @ lift.flip(1) - 0.1, dim=1)
    prototypes = F.normalize(torch.randn(logits.shape[1], 8, generator=generator, dtype=torch.float64), dim=1)
    return logits, torch.stack([first, second], 1).to(logits.dtype), prototypes.to(logits.dtype)


def build(name, class_counts=COUNTS, **options):
    loss = create_loss(name, class_counts, **options)
    if name == 'gala':
        # statistics as they stand in mid-training
        with torch.no_grad():
            loss.margin_sum.copy_(torch.linspace(3.0, 0.2, len(class_counts)))
    return loss


def call(name, loss, logits, target, **kwargs):
    """The loss with the same draws and the same statistics each time."""
    torch.manual_seed(3)
    with statistics(loss, 'hold'):
        return loss(output_of(name, logits), target, **kwargs)


def gradient(name, loss, logits, target):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(call(name, loss, logits, target), logits)[0]


def random_soft(batch, classes):
    generator = torch.Generator().manual_seed(4)
    return torch.rand(batch, classes, generator=generator, dtype=torch.float64).softmax(1)


# The promises of every loss


@pytest.mark.parametrize('name', NAMES)
def test_unreduced_values_sum_to_sum_and_mean(name):
    logits, target = make_batch()
    loss = build(name)
    values = call(name, loss, logits, target, reduction='none')
    assert values.shape == target.shape
    torch.testing.assert_close(values.sum(), call(name, loss, logits, target, reduction='sum'))
    torch.testing.assert_close(values.mean(), call(name, loss, logits, target, reduction='mean'))
    for reduction in ('none', 'sum', 'mean'):
        torch.testing.assert_close(
            call(name, build(name, reduction=reduction), logits, target),
            call(name, loss, logits, target, reduction=reduction))


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('weighted', [False, True])
def test_sample_losses_give_the_mean_with_their_normalizer(name, weighted):
    if weighted and name not in WEIGHTED:
        pytest.skip('takes no class weights')
    logits, target = make_batch()
    loss = build(name, **({'class_weight': [0.2, 0.5, 1.0, 2.0, 4.0]} if weighted else {}))
    torch.manual_seed(3)
    with statistics(loss, 'hold'):
        values, normalizer = sample_losses(loss, output_of(name, logits), target)
    torch.testing.assert_close(values.sum() / normalizer, call(name, loss, logits, target))


@pytest.mark.parametrize('counts', [COUNTS, [1] * C, [7] * C], ids=['long-tailed', 'one image', 'equal'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', NAMES)
def test_loss_and_gradient_are_finite_for_logits_of_100(name, dtype, counts):
    for options in ({}, *OPTIONS.get(name, [])):
        loss = build(name, counts, **options)
        targets = [make_batch()[1]]
        if loss.soft_targets:
            targets.append(random_soft(16, C))
        for target in targets:
            for scale in (1.0, 80.0, 100.0):
                logits = (make_batch()[0].sign() * scale).to(dtype).requires_grad_()
                values = call(name, loss, logits, target, reduction='none')
                assert values.dtype == torch.float32 and bool(torch.isfinite(values).all()), (options, scale)
                grad, = torch.autograd.grad(values.sum(), logits)
                assert bool(torch.isfinite(grad).all()), (options, scale)


@pytest.mark.parametrize('name', NAMES)
def test_gradient_is_finite_when_the_own_class_is_certain(name):
    _, target = make_batch()
    logits = (F.one_hot(target, C) * 200.0 - 100.0).requires_grad_()
    for options in ({}, *OPTIONS.get(name, [])):
        grad, = torch.autograd.grad(call(name, build(name, **options), logits, target), logits)
        assert bool(torch.isfinite(grad).all()), options


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('batch, classes', [(1, 2), (1, C), (7, 2)])
def test_small_batches_and_a_single_class_in_the_batch_are_finite(name, batch, classes):
    logits, target = make_batch(batch, classes)
    target = torch.zeros_like(target)
    assert torch.isfinite(gradient(name, build(name, COUNTS[:classes]), logits, target)).all()


@pytest.mark.parametrize('name', NAMES)
def test_arithmetic_is_float32_under_autocast(name):
    logits, target = make_batch(dtype=torch.bfloat16)
    loss = build(name)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = call(name, loss, logits, target)
    assert inside.dtype == torch.float32
    if name == 'bcl':  # its other inputs are rounded to bfloat16 too
        return
    torch.testing.assert_close(inside, call(name, loss, logits.float(), target))


@pytest.mark.parametrize('name', [n for n in NAMES if n in OPTIONS])
def test_each_option_changes_the_gradient(name):
    # cosines: any scale is allowed for the others
    logits, target = make_batch()
    default = gradient(name, build(name), logits, target)
    if name == 'las':
        default_exp = gradient(name, build(name, shape='exp'), logits, target)
    for options in OPTIONS[name]:
        other = gradient(name, build(name, **options), logits, target)
        assert not torch.allclose(default, other), options
        if 'power' in options:
            assert not torch.allclose(default_exp, other), options


@pytest.mark.parametrize('name', SOFT)
@pytest.mark.parametrize('weighted', [False, True])
def test_soft_target_is_the_expectation_over_its_classes(name, weighted):
    logits, target = make_batch()
    for options in ({}, *OPTIONS.get(name, [])):
        if weighted:
            options = options | {'class_weight': [0.2, 0.5, 1.0, 2.0, 4.0]}
        loss = build(name, **options)
        hard = call(name, loss, logits, target, reduction='none')
        onehot = F.one_hot(target, C).double()
        torch.testing.assert_close(call(name, loss, logits, onehot, reduction='none'), hard, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            call(name, loss, logits, onehot), call(name, loss, logits, target), rtol=1e-6, atol=1e-6)
        if name == 'eql':
            loss.eval()  # the draws of a sample and class are the same only where nothing else is drawn
        soft = random_soft(*logits.shape)
        expected = sum(
            soft[:, c] * call(name, loss, logits, torch.full_like(target, c), reduction='none') for c in range(C))
        got = call(name, loss, logits, soft, reduction='none')
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', SOFT)
def test_smoothing_is_an_exact_soft_target(name):
    logits, target = make_batch()
    for weight in (None, [0.2, 0.5, 1.0, 2.0, 4.0]):
        loss = build(name, class_weight=weight)
        soft = F.one_hot(target, C) * 0.9 + 0.1 / C
        for reduction in ('none', 'mean'):
            expected = call(name, loss, logits, soft, reduction=reduction)
            loss.set_smoothing(0.1)
            got = call(name, loss, logits, target, reduction=reduction)
            torch.manual_seed(3)
            with statistics(loss, 'hold'):
                values, normalizer = sample_losses(loss, output_of(name, logits), target)
            loss.set_smoothing(0)
            torch.testing.assert_close(got, expected)
            if reduction == 'mean':
                torch.testing.assert_close(values.sum() / normalizer, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', HARD_ONLY)
def test_loss_without_soft_targets_refuses_them(name):
    logits, target = make_batch()
    loss = build(name)
    assert not loss.soft_targets
    with pytest.raises(ValueError, match='does not support soft targets'):
        call(name, loss, logits, random_soft(*logits.shape))
    with pytest.raises(ValueError, match='does not support soft targets'):
        loss.set_smoothing(0.1)


@pytest.mark.parametrize('name', NAMES)
def test_registry_and_class_agree(name):
    info = LOSSES.info(name)
    assert issubclass(info.factory, LongTailLoss)
    assert info.factory.soft_targets == info.soft_targets
    assert info.paper and info.description
    assert info.factory.cosine_classifier == (name in ('ldam', 'gcl'))


@pytest.mark.parametrize('name', [n for n in NAMES if 'class_counts' in LOSSES.info(n).needs])
def test_bad_class_counts_are_refused_with_the_class(name):
    with pytest.raises(ValueError, match=r'class\(es\) \[1\]'):
        create_loss(name, [3, 0, 2])
    with pytest.raises(TypeError, match='class_counts'):
        create_loss(name)


@pytest.mark.parametrize('name', NAMES)
def test_bad_shapes_and_options_are_refused(name):
    logits, target = make_batch()
    loss = build(name)
    with pytest.raises(ValueError, match='targets must have shape'):
        call(name, loss, logits, target[:-1])
    with pytest.raises(ValueError, match='reduction'):
        build(name, reduction='batchmean')
    with pytest.raises(TypeError, match='no option'):
        build(name, no_such_option=1)
    with pytest.raises(ValueError, match=r'int64, got torch.int32'):
        call(name, loss, logits, target.int())


@pytest.mark.parametrize('classes', [1, C - 1, C + 1])
@pytest.mark.parametrize('name', [n for n in NAMES if 'class_counts' in LOSSES.info(n).needs])
def test_another_number_of_classes_is_refused(name, classes):
    logits, target = make_batch()
    with pytest.raises(ValueError, match=f'logits of {C} classes, but the loss was built for {classes}'):
        call(name, create_loss(name, [3] * classes), logits, target)
    if name in WEIGHTED:
        for give in (lambda w: create_loss(name, COUNTS, class_weight=w), create_loss(name, COUNTS).set_class_weight):
            with pytest.raises(ValueError, match=f'{classes} entries, but the loss has {C} classes'):
                give([1.0] * classes)


def test_class_weights_tell_the_number_of_classes_of_a_loss_without_counts():
    with pytest.raises(ValueError, match='built for 3'):
        create_loss('focal', class_weight=[1.0, 2.0, 3.0])(*make_batch())


def test_an_unknown_option_is_answered_with_the_options_of_the_loss():
    with pytest.raises(TypeError, match="'classification_weight', 'contrastive_weight', 'temperature', 'tau'"):
        create_loss('bcl', COUNTS, a=1.0)


@pytest.mark.parametrize('name', NAMES)
def test_state_dict_round_trips_and_the_loss_can_be_copied(name):
    logits, target = make_batch()
    first = build(name)
    if name in WEIGHTED:
        first.set_class_weight([0.2, 0.5, 1.0, 2.0, 4.0])
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = create_loss(name, [1] * C)
    second.load_state_dict(torch.load(file))
    expected = call(name, first, logits, target)
    torch.testing.assert_close(call(name, second, logits, target), expected)
    torch.testing.assert_close(call(name, copy.deepcopy(first), logits, target), expected)


@pytest.mark.parametrize('name', WEIGHTED)
def test_class_weights_scale_values_and_divide_the_mean(name):
    logits, target = make_batch()
    weight = torch.tensor([0.2, 0.5, 1.0, 2.0, 4.0])
    plain = call(name, build(name), logits, target, reduction='none')
    loss = build(name)
    loss.set_class_weight(weight)
    torch.testing.assert_close(call(name, loss, logits, target, reduction='none'), plain * weight[target])
    torch.testing.assert_close(
        call(name, loss, logits, target), (plain * weight[target]).sum() / weight[target].sum(),
        check_dtype=False, rtol=1e-6, atol=1e-7)
    loss.set_class_weight(None)
    torch.testing.assert_close(call(name, loss, logits, target, reduction='none'), plain)


@pytest.mark.parametrize('name', NAMES)
def test_constants_become_float32_on_a_device_without_float64(name):
    loss = build(name)

    def move(tensor):
        if tensor.dtype == torch.float64:
            raise TypeError('no float64 here')
        return tensor.clone()

    loss._apply(move)
    assert all(b.dtype != torch.float64 for b in loss.buffers())
    logits, target = make_batch(dtype=torch.float32)
    torch.testing.assert_close(call(name, loss, logits, target), call(name, build(name), logits, target))


NEUTRAL = {
    'logit_adjustment': dict(tau=0.0), 'ldam': dict(max_margin=0.0, scale=1.0), 'vs': dict(gamma=0.0, tau=0.0),
    'focal': dict(gamma=0.0), 'class_balanced': dict(beta=0.0), 'eql': dict(gamma=0.0),
    'las': dict(smooth_head=0.0), 'gcl': dict(noise_factor=0.0, scale=1.0), 'gala': dict(lambda1=0.0, lambda2=0.0),
    'bcl': dict(tau=0.0, classification_weight=1.0, contrastive_weight=0.0),
}


@pytest.mark.parametrize('name', sorted(NEUTRAL))
def test_loss_equals_cross_entropy_in_its_neutral_setting(name):
    logits, target = make_batch(scale=5.0)
    values = call(name, build(name, **NEUTRAL[name]), logits, target, reduction='none')
    torch.testing.assert_close(values, F.cross_entropy(logits, target, reduction='none'))


@pytest.mark.parametrize('name', ['balanced_softmax', 'vs', 'gcl', 'lade'])
def test_equal_class_sizes_make_no_difference(name):
    logits, target = make_batch()
    options = {'gcl': dict(scale=1.0), 'lade': dict(regularizer_weight=0.0)}.get(name, {})
    torch.testing.assert_close(
        call(name, build(name, [7] * C, **options), logits, target), F.cross_entropy(logits, target))


# Each loss against a plain loop


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


# timm's factory


def test_timm_factory_builds_our_losses_from_the_options_of_its_training_script():
    generic = dict(
        smoothing=0.1, soft_targets=False, class_weight=None, pos_weight=None, bce_target_thresh=None, bce_sum=False,
        asl_gamma_pos=1.0, poly_epsilon=2.0, jsd_splits=0, class_counts=COUNTS, num_samples=sum(COUNTS))
    for name in SOFT:
        loss = timm.loss.create_classification_loss(name, False, **generic)
        assert type(loss) is LOSSES.info(name).factory and loss.smoothing == 0.1
        # Mixup has smoothed its targets already
        assert timm.loss.create_classification_loss(name, **(generic | {'soft_targets': True})).smoothing == 0
    loss = timm.loss.create_classification_loss('vs', class_counts=COUNTS, gamma=0.05, class_weight=[1.0] * C)
    assert loss.class_weight is not None
    torch.testing.assert_close(loss.delta, create_loss('vs', COUNTS, gamma=0.05).delta)


@pytest.mark.parametrize('options, error, message', [
    (dict(loss_type='galla'), ValueError, "'gala'"),
    (dict(loss_type='lade', smoothing=0.1), ValueError, 'label smoothing'),
    (dict(loss_type='lade', soft_targets=True), ValueError, 'Mixup'),
    (dict(loss_type='gala', multi_label=True), ValueError, 'multi-label'),
    (dict(loss_type='gala', bce_sum=True, jsd_splits=3), ValueError, r"\['bce_sum', 'jsd_splits'\]"),
    (dict(loss_type='gala', pos_weight=[1.0]), ValueError, 'pos_weight'),
    (dict(loss_type='gala', class_weight=2.0), ValueError, 'one value per class'),
    (dict(loss_type='gala', num_samples=3), ValueError, 'num_samples'),
    (dict(loss_type='vs', gama=0.1), TypeError, "'gamma'"),
    (dict(loss_type='vs', class_counts=None), TypeError, 'class_counts'),
])
def test_timm_factory_refuses_what_a_loss_cannot_do(options, error, message):
    with pytest.raises(error, match=message):
        timm.loss.create_classification_loss(**({'class_counts': COUNTS} | options))


@pytest.mark.parametrize('options', [
    dict(), dict(loss_type='ce'), dict(loss_type='ce', smoothing=0.1), dict(loss_type='ce', soft_targets=True),
    dict(loss_type='bce', smoothing=0.1), dict(loss_type='asl'), dict(loss_type='poly', poly_epsilon=1.0),
    dict(loss_type='jsd', jsd_splits=2), dict(multi_label=True),
    dict(loss_type='db', multi_label=True, class_counts=COUNTS, num_samples=600),
])
def test_timm_names_pass_through_untouched(options):
    def run():
        loss = timm.loss.create_classification_loss(**options)
        logits, target = make_batch(dtype=torch.float32)
        if options.get('soft_targets') or options.get('multi_label'):
            target = F.one_hot(target, C).float()
        return type(loss), loss(logits, target)

    ours = run()
    timm_lt.unregister()
    try:
        original = run()
    finally:
        timm_lt.register()
    assert ours[0] is original[0] and torch.equal(ours[1], original[1])
    assert list(timm.loss.LOSS_TYPES)  # and is still there


def test_list_holds_the_losses_on_logits():
    expected = 'balanced_softmax class_balanced eql focal gala gcl lade las ldam logit_adjustment vs'.split()
    assert list_losses() == expected
    assert sorted(set(NAMES) - set(expected)) == ['bcl']
    assert list_losses('*soft*') == ['balanced_softmax']
    assert 'lade' in list_losses(soft_targets=False) and 'lade' not in SOFT


def test_create_loss_builds_timm_losses_too():
    assert isinstance(create_loss('ce'), torch.nn.CrossEntropyLoss)
