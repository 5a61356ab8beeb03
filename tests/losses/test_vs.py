"""VS loss with truncated logit adjustment."""

import pytest
import torch
import torch.nn.functional as F

from timm_lt import create_loss

COUNTS = [500, 50, 5, 1]
LOGITS = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(12) % 4
LOG_PRIOR = (torch.tensor(COUNTS) / sum(COUNTS)).log()
DELTA = (max(COUNTS) / torch.tensor(COUNTS)) ** 0.3


@pytest.mark.parametrize('truncated_tau, late', [(None, 0.5), (0.75, 0.75)])
def test_divisor_is_off_and_tau_changes_from_the_epoch_on(truncated_tau, late):
    loss = create_loss('vs', COUNTS, gamma=0.3, tau=0.5, truncate_epoch=3, truncated_tau=truncated_tau)
    both = F.cross_entropy(LOGITS / DELTA + 0.5 * LOG_PRIOR, TARGET)
    shift_only = F.cross_entropy(LOGITS + late * LOG_PRIOR, TARGET)
    torch.testing.assert_close(loss(LOGITS, TARGET), both)
    for epoch, expected in ((2, both), (3, shift_only), (9, shift_only), (0, both)):
        loss.set_epoch(epoch, 10)
        torch.testing.assert_close(loss(LOGITS, TARGET), expected)


def test_state_is_that_of_a_loss_without_truncation():
    loss = create_loss('vs', COUNTS, truncate_epoch=3)
    assert loss.state_dict().keys() == create_loss('vs', COUNTS).state_dict().keys()
    loss.set_epoch(5)
    again = create_loss('vs', COUNTS, truncate_epoch=3)
    again.load_state_dict(loss.state_dict())
    again.set_epoch(5)
    torch.testing.assert_close(again(LOGITS, TARGET), loss(LOGITS, TARGET))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='pass truncate_epoch too'):
        create_loss('vs', COUNTS, truncated_tau=0.5)
    with pytest.raises(ValueError, match='truncate_epoch'):
        create_loss('vs', COUNTS, truncate_epoch=-1)
    with pytest.raises(ValueError, match='truncated_tau'):
        create_loss('vs', COUNTS, truncate_epoch=1, truncated_tau=-1.0)
