"""Deferred re-weighting."""

import copy
import pickle

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy

from timm_lt import create_loss, list_losses
from timm_lt.losses import DeferredReweighting, drw_class_weights, prior_power_weights, sample_losses

COUNTS = [500, 50, 5, 1]
LOGITS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(12) % 4


def test_weights_are_the_effective_number_with_mean_one():
    raw = [(1 - 0.9999) / (1 - 0.9999 ** n) for n in COUNTS]
    expected = torch.tensor([w * len(raw) / sum(raw) for w in raw], dtype=torch.float64)
    torch.testing.assert_close(drw_class_weights(COUNTS), expected)
    assert drw_class_weights(COUNTS, beta=0).tolist() == [1.0] * 4
    assert drw_class_weights([9, 9], beta=0.9).tolist() == pytest.approx([1.0, 1.0])


def test_prior_power_weights_are_powers_of_the_share_with_mean_one():
    shares = [n / sum(COUNTS) for n in COUNTS]
    raw = [share ** -0.25 for share in shares]
    expected = torch.tensor([w * len(raw) / sum(raw) for w in raw], dtype=torch.float64)
    torch.testing.assert_close(prior_power_weights(COUNTS, 0.25), expected)
    assert prior_power_weights(COUNTS, 0).tolist() == [1.0] * 4
    criterion = nn.CrossEntropyLoss()
    DeferredReweighting(criterion, COUNTS, start_epoch=2, rule='prior_power', power=0.25).set_epoch(2)
    torch.testing.assert_close(
        criterion(LOGITS, TARGET), F.cross_entropy(LOGITS, TARGET, weight=expected.float()))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='rule.*effective_number'):
        DeferredReweighting(nn.CrossEntropyLoss(), COUNTS, start_epoch=1, rule='inverse')
    with pytest.raises(ValueError, match='power'):
        prior_power_weights(COUNTS, power=-1)
    with pytest.raises(ValueError, match='beta'):
        drw_class_weights(COUNTS, beta=1.0)
    with pytest.raises(ValueError, match='start_epoch'):
        DeferredReweighting(nn.CrossEntropyLoss(), COUNTS, start_epoch=-1)
    with pytest.raises(ValueError, match='3 entries, but VSLoss has 4 classes'):
        DeferredReweighting(create_loss('vs', COUNTS), [3, 2, 1], start_epoch=1)
    with pytest.raises(ValueError, match='at least 1'):
        DeferredReweighting(nn.CrossEntropyLoss(), [3, 0], start_epoch=1)


@pytest.mark.parametrize('name', list_losses())
def test_weights_are_in_force_from_the_start_epoch_on_for_every_loss(name):
    loss = create_loss(name, COUNTS).eval()
    drw = DeferredReweighting(loss, COUNTS, start_epoch=3)
    plain = loss(LOGITS, TARGET, reduction='none')
    for epoch in (0, 2):
        drw.set_epoch(epoch)
        torch.testing.assert_close(loss(LOGITS, TARGET, reduction='none'), plain)
    weights = drw_class_weights(COUNTS).float()
    for epoch in (3, 9):
        drw.set_epoch(epoch)
        torch.testing.assert_close(loss(LOGITS, TARGET, reduction='none'), plain * weights[TARGET])
    drw.set_epoch(2)  # back, as after a resume from an earlier checkpoint
    torch.testing.assert_close(loss(LOGITS, TARGET, reduction='none'), plain)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_torch_cross_entropy_is_weighted(dtype):
    criterion = nn.CrossEntropyLoss()
    drw = DeferredReweighting(criterion, COUNTS, start_epoch=1)
    logits = LOGITS.to(dtype)
    drw.set_epoch(0)
    torch.testing.assert_close(criterion(logits, TARGET), F.cross_entropy(logits, TARGET))
    drw.set_epoch(1)
    expected = F.cross_entropy(logits, TARGET, weight=drw_class_weights(COUNTS).to(dtype))
    torch.testing.assert_close(criterion(logits, TARGET), expected)
    values, normalizer = sample_losses(criterion, logits, TARGET)
    torch.testing.assert_close(values.sum() / normalizer, expected)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(criterion(logits, TARGET), expected)
    for copied in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        torch.testing.assert_close(copied(logits, TARGET), expected)
    torch.testing.assert_close(criterion(input=logits, target=TARGET), expected)


def test_state_of_torch_cross_entropy_holds_no_weight_and_loads_into_a_fresh_one():
    criterion = nn.CrossEntropyLoss()
    DeferredReweighting(criterion, COUNTS, start_epoch=1).set_epoch(5)
    fresh = nn.CrossEntropyLoss()
    resumed = DeferredReweighting(fresh, COUNTS, start_epoch=1)
    fresh.load_state_dict(criterion.state_dict())
    nn.CrossEntropyLoss().load_state_dict(criterion.state_dict())
    resumed.set_epoch(5)
    torch.testing.assert_close(fresh(LOGITS, TARGET), criterion(LOGITS, TARGET))


def test_criteria_without_class_weights_are_refused():
    for criterion in (create_loss('bcl', COUNTS), LabelSmoothingCrossEntropy(), nn.MSELoss()):
        with pytest.raises(TypeError, match='takes no class weights'):
            DeferredReweighting(criterion, COUNTS, start_epoch=1)
    for criterion in (nn.CrossEntropyLoss(weight=torch.ones(4)), create_loss('vs', COUNTS, class_weight=[1.0] * 4)):
        with pytest.raises(ValueError, match='class weights already'):
            DeferredReweighting(criterion, COUNTS, start_epoch=1)


def test_state_of_a_weighted_loss_loads_into_a_fresh_one_and_back():
    loss = create_loss('ldam', COUNTS)
    DeferredReweighting(loss, COUNTS, start_epoch=1).set_epoch(5)
    fresh = create_loss('ldam', COUNTS)
    fresh.load_state_dict(loss.state_dict())
    torch.testing.assert_close(fresh(LOGITS, TARGET), loss(LOGITS, TARGET))
    loss.load_state_dict(create_loss('ldam', COUNTS).state_dict())
    assert loss.class_weight is None
