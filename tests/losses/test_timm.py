"""Losses through timm's own factory, by the options of its training script."""

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from loss_cases import COUNTS, NAMES, SOFT, C, make_batch

import timm_lt
from timm_lt import create_loss, list_losses
from timm_lt._registry import LOSSES


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
    expected = 'balanced_softmax balpoe class_balanced eql focal gala gcl lade las ldam logit_adjustment vs'.split()
    assert list_losses() == expected
    assert sorted(set(NAMES) - set(expected)) == ['bcl', 'proco']
    assert list_losses('*soft*') == ['balanced_softmax']
    assert 'lade' in list_losses(soft_targets=False) and 'lade' not in SOFT


def test_create_loss_builds_timm_losses_too():
    assert isinstance(create_loss('ce'), torch.nn.CrossEntropyLoss)
