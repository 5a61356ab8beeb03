"""The two-call form of a step: the caller runs both passes, the optimizer perturbs and restores between them."""

from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...losses._criterion import hold_statistics
from .._tensors import Gradients, SavedBuffers, SavedWeights
from .checks import check_no_autocast
from .gradients import Part
from .optimizer import SharpnessAware


@dataclass
class HalfStep:
    """State between the two calls.

    Attributes:
        params: The trained parameters.
        first: Gradient of each at the unperturbed weights, where the method combines both gradients; else empty.
        perturbed: Whether this step has a perturbation.
        buffers: Buffers after the first forward pass.
        until_second: Closing it restores the weights and lets losses take statistics again.
    """
    params: list[Tensor]
    first: Gradients
    perturbed: bool
    buffers: SavedBuffers
    until_second: ExitStack = field(default_factory=ExitStack)


class TwoCallForm(SharpnessAware):
    """Base of the methods that treat a batch as a whole, which also offer a step in two calls.

    Both passes are the caller's, so random numbers (dropout, stochastic depth) differ between them, and a gradient
    scaler is not possible. ``step(closure)`` has neither limit.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'sam', lr=0.1)
        >>> criterion(model(images), labels).backward()
        >>> optimizer.first_step(zero_grad=True)
        >>> criterion(model(images), labels).backward()
        >>> optimizer.second_step(zero_grad=True)
    """

    _transient: tuple[str, ...] = ('_half',)
    _half: HalfStep | None

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move the weights to their perturbation, after a first backward pass.

        After :meth:`attach` the buffers of the model stay as after one forward pass. Under DDP the perturbation
        follows the joint gradient; a first backward inside ``model.no_sync()`` gives m-sharpness.

        Args:
            zero_grad: Clear the gradients, as the second pass needs it.

        Raises:
            RuntimeError: If there is no gradient, inside an autocast block, or after a ``first_step`` without its
                ``second_step``.
            ValueError: With ``local_ascent=True``.
        """
        who = type(self).__name__
        check_no_autocast(self)
        if self.local_ascent:
            raise ValueError(
                f'{who}.first_step() finds gradients that are averaged already; use local_ascent=False, and run the '
                f'first backward inside model.no_sync()')
        self.warn_if_idle()
        self._begin_step()
        radius = self._radii_now()[0]
        self._update_selection()
        params = self.trained_parameters()
        if all(p.grad is None for p in params):
            raise RuntimeError(f'{who}.first_step() found no gradient; call loss.backward() before it')
        chosen = [p for p in params if p.grad is not None and p in self.selection] if radius > 0 else []
        half = HalfStep(params, [], bool(chosen), SavedBuffers(self.model))
        if chosen:
            if self.combines:
                half.first = [None if p.grad is None else p.grad.clone() for p in params]
            part = Part(0, radius, -1, chosen, [p.grad.clone() for p in chosen if p.grad is not None])
            self.perturb([part])
            half.until_second.enter_context(SavedWeights(chosen).perturbed(chosen, part.grads))
        half.until_second.enter_context(hold_statistics())
        self._half = half
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Restore the weights and step, after a second backward pass at the perturbed weights.

        Args:
            zero_grad: Clear the gradients after the step.

        Raises:
            RuntimeError: Without a ``first_step`` before it.
        """
        if self._half is None:
            raise RuntimeError(f'{type(self).__name__}.second_step() needs first_step() and a second backward')
        half, self._half = self._half, None
        half.until_second.close()
        half.buffers.restore()
        if half.perturbed and self.combines:
            self.combine(half.params, half.first)
        self.extra_gradient(None)
        self._stage_step()
        self.step()
        if zero_grad:
            self.zero_grad()

    def _begin_step(self) -> None:
        if self._half is not None:
            raise RuntimeError(
                f'{type(self).__name__}: the weights are perturbed since first_step(); call second_step() first')
        super()._begin_step()
