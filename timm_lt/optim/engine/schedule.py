"""The steps that a method perturbs, and the course of its radius over the epochs."""

import math

from ..._validate import check_whole

SCHEDULES = ('constant', 'linear', 'cosine', 'step')


def radius_factor(
        schedule: str, end: float, epoch: int, num_epochs: int | None, step_epoch: int | None = None) -> float:
    """The factor on every radius at an epoch: 1 at the first, ``end`` at the last.

    Args:
        schedule: 'constant' (always 1), 'linear', 'cosine' or 'step'.
        end: Factor at the last epoch, >= 0.
        epoch: Counted from 0.
        num_epochs: Number of epochs; needed by 'linear' and 'cosine'.
        step_epoch: First epoch with the factor ``end``; needed by 'step'.
    """
    if schedule == 'constant':
        return 1.0
    if schedule == 'step' and step_epoch is not None:
        return end if epoch >= step_epoch else 1.0
    if num_epochs is None:
        raise ValueError(
            f'rho_schedule={schedule!r} needs the number of epochs; call set_epoch(epoch, num_epochs) at the start of '
            f'every epoch')
    t = min(epoch / max(num_epochs - 1, 1), 1.0)
    if schedule == 'linear':
        return 1 + (end - 1) * t
    return end + (1 - end) * (1 + math.cos(math.pi * t)) / 2


def check_rho_epoch(schedule: str, rho_epoch: int | None) -> int | None:
    """``rho_epoch``, a whole number >= 0 where the schedule is 'step', else None; otherwise raise a ValueError."""
    if (rho_epoch is None) == (schedule == 'step'):
        raise ValueError(
            f"rho_schedule='step' and rho_epoch=EPOCH go together, got rho_schedule={schedule!r} and "
            f'rho_epoch={rho_epoch}; pass both or neither')
    return None if rho_epoch is None else check_whole('rho_epoch', rho_epoch, 0)


def start_epoch_problem(start_epoch: float, num_epochs: int) -> str | None:
    """The reason if ``start_epoch`` leaves no step of a run perturbed, else None."""
    if start_epoch < num_epochs:
        return None
    return (
        f'start_epoch={start_epoch} lies beyond the last epoch ({num_epochs - 1}, counted from 0), so no step is '
        f'perturbed and the run is that of the base optimizer; lower start_epoch')


def steps_problem(every: int, start_epoch: float, num_epochs: int, steps_per_epoch: int) -> str | None:
    """The reason if ``every`` leaves at most one step of a run perturbed, else None."""
    first, end = math.ceil(start_epoch) * steps_per_epoch, num_epochs * steps_per_epoch
    perturbed = -(-end // every) - -(-first // every)
    if every == 1 or first >= end or perturbed > 1:
        return None
    return f'every={every} perturbs {perturbed} of the {end} steps of this run; lower every'
