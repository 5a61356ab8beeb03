"""Samples with the label -100 are left out of every loss: the value is that of the other samples alone."""

import pytest
import timm.loss
import torch
from loss_cases import COUNTS, HARD_ONLY, NAMES, SOFT, WEIGHTED, C, build, call, make_batch, output_of, random_soft

import timm_lt
from timm_lt.losses import balanced_contrastive_loss, lade_loss, statistics

NOISY = ('eql', 'gcl')  # draws have the shape of the batch


def batch_with_ignored():
    logits, target = make_batch()
    target[[1, 4, 9]] = -100
    return logits, target, target != -100


def rows(output, kept):
    if isinstance(output, torch.Tensor):
        return output[kept]
    return tuple(part[kept] if len(part) == len(kept) else part for part in output)  # not BCL's prototypes


def quiet(name, **options):
    """The loss without random draws."""
    return build(name, **options).eval() if name in NOISY else build(name, **options)


@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('name', NAMES)
def test_the_value_is_that_of_the_other_samples(name, reduction):
    logits, target, kept = batch_with_ignored()
    loss, output = quiet(name), output_of(name, logits)
    with statistics(loss, 'hold'):
        value = loss(output, target, reduction=reduction)
        expected = loss(rows(output, kept), target[kept], reduction=reduction)
    if reduction == 'none':
        assert not value[~kept].any()
        value = value[kept]
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize('reduction', ['mean', 'sum'])
def test_functions_that_couple_samples_leave_ignored_ones_out(reduction):
    logits, target, kept = batch_with_ignored()
    log_prior = torch.tensor(COUNTS).double().div(sum(COUNTS)).log()
    torch.testing.assert_close(
        lade_loss(logits, target, log_prior, reduction=reduction),
        lade_loss(logits[kept], target[kept], log_prior, reduction=reduction))
    features = torch.nn.functional.normalize(torch.randn(len(target), 2, 8), dim=-1)
    centers = torch.nn.functional.normalize(torch.randn(C, 8), dim=-1)
    torch.testing.assert_close(
        balanced_contrastive_loss(features, centers, target, reduction=reduction),
        balanced_contrastive_loss(features[kept], centers, target[kept], reduction=reduction))


@pytest.mark.parametrize('name', WEIGHTED)
def test_class_weights_of_ignored_samples_do_not_count(name):
    logits, target, kept = batch_with_ignored()
    loss = quiet(name, class_weight=[0.5, 1.0, 2.0, 3.0, 4.0])
    torch.testing.assert_close(call(name, loss, logits, target), call(name, loss, logits[kept], target[kept]))
    torch.testing.assert_close(loss.normalizer(target), loss.normalizer(target[kept]))


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('name', SOFT)
def test_ignored_samples_stay_ignored_under_label_smoothing(name, weighted):
    logits, target, kept = batch_with_ignored()
    loss = quiet(name, **({'class_weight': [0.5, 1.0, 2.0, 3.0, 4.0]} if weighted else {}))
    loss.set_smoothing(0.1)
    torch.testing.assert_close(call(name, loss, logits, target), call(name, loss, logits[kept], target[kept]))


@pytest.mark.parametrize('name', NAMES)
def test_a_batch_of_ignored_samples_has_loss_and_gradient_0(name):
    logits, target = make_batch()
    logits.requires_grad_()
    loss = build(name)
    for reduction in ('mean', 'sum', 'none'):
        value = loss(output_of(name, logits), torch.full_like(target, -100), reduction=reduction)
        assert not value.any()
    gradient, = torch.autograd.grad(loss(output_of(name, logits), torch.full_like(target, -100)), logits)
    assert not gradient.any()


@pytest.mark.parametrize('name', NAMES)
def test_the_gradient_is_that_of_the_other_samples(name):
    logits, target, kept = batch_with_ignored()
    loss = quiet(name)
    gradients = []
    for some, labels in ((logits, target), (logits[kept], target[kept])):
        some = some.clone().requires_grad_()
        gradients += torch.autograd.grad(call(name, loss, some, labels), some)
    torch.testing.assert_close(gradients[0][kept], gradients[1])
    assert not gradients[0][~kept].any()


@pytest.mark.parametrize('variant', ['paper', 'released'])
@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_statistics_leave_ignored_samples_out(variant, smoothing):
    logits, target, kept = batch_with_ignored()
    seen, expected = (timm_lt.create_loss('gala', COUNTS, variant=variant) for _ in range(2))
    for loss in (seen, expected):
        loss.set_smoothing(smoothing)
    seen(logits.requires_grad_(), target)
    expected(logits[kept], target[kept])
    torch.testing.assert_close(seen.margin_sum, expected.margin_sum)


@pytest.mark.parametrize('name', NAMES)
def test_a_label_that_is_no_class_is_named(name):
    logits, target = make_batch()
    for label in (-1, C, -101):
        target[3] = label
        with pytest.raises(ValueError, match=rf'labels must be in \[0, {C - 1}\].*got {label}'):
            build(name)(output_of(name, logits), target)


@pytest.mark.parametrize('name', [n for n in timm_lt.list_losses()])
def test_losses_from_timm_ignore_the_same_samples(name):
    logits, target, kept = batch_with_ignored()
    loss = timm.loss.create_classification_loss(name, class_counts=COUNTS).eval()
    torch.testing.assert_close(loss(logits, target), loss(logits[kept], target[kept]))


@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('function, options', [
    ('logit_adjustment_loss', {'log_prior': torch.tensor([-0.1, -1.0, -2.0, -3.0, -4.0])}),
    ('balanced_softmax_loss', {'log_prior': torch.tensor([-0.1, -1.0, -2.0, -3.0, -4.0])}),
    ('ldam_loss', {'margins': torch.linspace(0.1, 0.5, C)}),
    ('vs_loss', {'delta': torch.linspace(1, 2, C), 'iota': torch.linspace(-1, 0, C)}),
    ('focal_loss', {}),
    ('class_balanced_loss', {'weight': torch.linspace(0.5, 2, C)}),
    ('class_balanced_loss', {'weight': torch.linspace(0.5, 2, C), 'form': 'focal'}),
    ('label_aware_smoothing_loss', {'smooth': torch.linspace(0.3, 0, C)}),
    ('gcl_loss', {'cloud': torch.linspace(0, 1, C), 'noise': None, 'margin': 0.1}),
    ('gala_loss', {'gradient_sum': torch.linspace(3, 0.2, C)}),
])
def test_functions_ignore_the_same_samples(function, options, reduction):
    logits, target, kept = batch_with_ignored()
    function = getattr(timm_lt.losses, function)
    value = function(logits, target, reduction=reduction, **options)
    expected = function(logits[kept], target[kept], reduction=reduction, **options)
    torch.testing.assert_close(value[kept] if reduction == 'none' else value, expected)


# Values that the targets and logits of a loss may have


@pytest.mark.parametrize('name', SOFT)
def test_soft_targets_must_sum_to_1(name):
    logits, _ = make_batch()
    soft = random_soft(*logits.shape)
    loss = build(name)
    loss(logits, soft)
    for wrong in (2 * soft, torch.zeros_like(soft), soft + torch.tensor([0.5, -0.5, 0, 0, 0]), soft * float('nan')):
        with pytest.raises(ValueError, match='soft target must hold shares >= 0 that sum to 1'):
            loss(logits, wrong)


@pytest.mark.parametrize('name', SOFT)
def test_soft_targets_in_half_precision_may_be_rounded(name):
    logits, _ = make_batch(classes=len(COUNTS))
    build(name)(logits, random_soft(*logits.shape).bfloat16())


@pytest.mark.parametrize('name', HARD_ONLY)
def test_soft_targets_stay_refused_where_the_method_has_no_meaning_for_them(name):
    logits, _ = make_batch()
    with pytest.raises(ValueError, match='soft targets'):
        build(name)(output_of(name, logits), random_soft(*logits.shape))


@pytest.mark.parametrize('name', ['ldam', 'gcl'])
def test_logits_that_are_no_cosines_are_warned_of_once(name):
    logits, target = make_batch(scale=9.0)
    loss = build(name)
    with pytest.warns(UserWarning, match=r'expects cosines in \[-1, 1\].*use_cosine_classifier'):
        loss(logits, target)
    loss(logits, target)


@pytest.mark.parametrize('name', NAMES)
def test_no_loss_warns_of_cosines(name, recwarn):
    logits, target = make_batch()
    build(name)(output_of(name, logits.bfloat16()), target)
    assert not [w for w in recwarn if 'cosines' in str(w.message)]
