"""What every registered loss promises."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from loss_cases import (
    COUNTS,
    HARD_ONLY,
    NAMES,
    OPTIONS,
    SOFT,
    WEIGHTED,
    C,
    build,
    call,
    gradient,
    make_batch,
    output_of,
    random_soft,
)

from timm_lt import create_loss
from timm_lt._registry import LOSSES
from timm_lt.losses import (
    LongTailLoss,
    sample_losses,
    statistics,
)


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
    if name in ('bcl', 'proco'):  # its other inputs are rounded to bfloat16 too
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
    with pytest.raises(ValueError, match=r'classes \[1\]'):
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
    'proco': dict(tau=0.0, contrastive_weight=0.0),
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
