"""The perturbation of a given radius along a direction."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._tensors import global_norm, local, scale_

_NORM_EPS = 1e-12


def to_radius(grads: Sequence[Tensor], params: Sequence[Tensor], radius: float, eta: float | None) -> None:
    """Turn gradients into a perturbation, in place: ``eps = rho g / |g|``, or ``rho T^2 g / |T g|``.

    Args:
        grads: g, aligned with ``params``.
        params: theta.
        radius: rho, > 0.
        eta: ``T = |theta| + eta``, >= 0; None: T = 1.
    """
    _times_size(grads, params, eta)
    norm = global_norm(grads)
    _times_size(grads, params, eta)
    scale_(grads, scale_of(radius, norm))


def _times_size(grads: Sequence[Tensor], params: Sequence[Tensor], eta: float | None) -> None:
    """``g <- T g``, one parameter at a time; nothing without ``eta``."""
    if eta is None:
        return
    for p, g in zip(params, grads):
        # without eta the sign of T does not matter, neither for |T g| nor for T^2 g
        local(g).mul_(local(p) if eta == 0 else local(p).abs().add_(eta))


def scale_of(radius: float, norm: Tensor) -> Tensor:
    """``radius / norm``: 0 for a gradient of 0, NaN for one that overflowed.

    NaN weights make the loss and every gradient NaN, on every process after averaging. All processes therefore skip the
    step. Infinity would become a factor of 0 and hide the overflow.
    """
    norm = norm.float() if norm.dtype in (torch.float16, torch.bfloat16) else norm
    return radius / (norm + _NORM_EPS) + 0 * norm
