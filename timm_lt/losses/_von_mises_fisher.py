"""The normaliser of von Mises-Fisher distributions: logarithms of Bessel functions with their gradient.

Source: NIST Digital Library of Mathematical Functions, https://dlmf.nist.gov, 10.41.3 and 10.41.10 (expansion for large
orders), 10.29.1 (recurrence) and 10.29.4 (derivative).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__: list[str] = []

EXPANSION_ORDER = 64.0  # from this order on the expansion below is exact to 1e-9
# U_1 to U_4 of DLMF 10.41.10: divisor and (power, factor) of each term
EXPANSION = (
    (24, ((1, 3), (3, -5))),
    (1152, ((2, 81), (4, -462), (6, 385))),
    (414720, ((3, 30375), (5, -369603), (7, 765765), (9, -425425))),
    (39813120, ((4, 4465125), (6, -94121676), (8, 349922430), (10, -446185740), (12, 185910725))),
)


def log_bessel_over_power(x: Tensor, order: float) -> Tensor:
    """``log(I_order(x) / x**order)`` of the modified Bessel function of the first kind, any shape, float64.

    The first derivative is ``I_{order + 1}(x) / I_order(x)``, in (0, 1). There is no second one.

    Args:
        x: >= 0, float64.
        order: >= 0.
    """
    return _LogBessel.apply(x, order)


class _LogBessel(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: float) -> Tensor:
        # down from a large order, because the recurrence is stable in that direction
        steps = max(0, int(EXPANSION_ORDER - order) + 1)
        top = order + steps
        value = _expansion(x, top)
        ratio = x * (_expansion(x, top + 1) - value).exp()  # I_{top + 1} / I_top
        for i in range(steps):
            below = 2 * (top - i) + x * ratio
            value, ratio = value + below.log(), x / below
        ctx.save_for_backward(ratio)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ratio, = ctx.saved_tensors
        return grad * ratio, None


def _expansion(x: Tensor, order: float) -> Tensor:
    """``log(I_order(x) / x**order)`` of a large order."""
    root = (1 + (x / order) ** 2).sqrt()
    t = 1 / root
    series = torch.ones_like(t)
    for k, (divisor, terms) in enumerate(EXPANSION):
        for power, factor in terms:
            series = series + factor / (divisor * order ** (k + 1)) * t ** power
    exponent = order * (root - (1 + root).log() - torch.log(x.new_tensor(order)))
    return exponent - 0.5 * torch.log(2 * torch.pi * order * root) + series.log()


def log_expected_similarity(
        features: Tensor, direction: Tensor, concentration: Tensor, temperature: float) -> Tensor:
    """``log E[exp(f . z / temperature)]`` for z of each von Mises-Fisher class, (B, C), float64.

    Args:
        features: (B, D).
        direction: Mean direction of each class, of length 1, (C, D).
        concentration: Concentration kappa of each class, (C,), >= 0; 0 is the uniform distribution.
        temperature: > 0.
    """
    order = features.shape[1] / 2 - 1
    features, kappa = features.double() / temperature, concentration.double()
    # |kappa mu + f / t|^2 without a (B, C, D) tensor
    square = kappa ** 2 + 2 * kappa * (features @ direction.double().T) + (features ** 2).sum(1, keepdim=True)
    joint = square.clamp_min(1e-12).sqrt()
    return log_bessel_over_power(joint, order) - log_bessel_over_power(kappa, order)
