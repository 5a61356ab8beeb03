"""The base of the sharpness-aware optimizers.

With ``L_k = (1/B) sum_i w_k(i) l_i`` the loss of part k of a batch, a step follows ``sum_k grad L_k(theta + eps_k)``.
A part with ``eps_k = 0`` keeps the gradient of the first pass. The engine computes gradients, perturbs and restores
weights, and averages over processes. It also protects buffers, replays random numbers, respects the loss scale and
keeps state. A method defines the parts of a batch and their perturbations.

Passes. The first pass computes from one graph the gradient of every perturbed part and of the other parts' sum. Each
perturbed part then passes again at its own weights. Which samples pass with it depends on BatchNorm, see ``batchnorm``
in :class:`SharpnessAware`.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..._types import ParamsT
from ..._unwrap import unwrap_model
from ..._validate import check_option, check_range, check_whole
from .._tensors import Gradients
from .checks import check_call, check_no_scaler, check_output, check_plain_step
from .closure import BatchClosure, check_ddp
from .coupling import CouplingProbe
from .gradients import Part, StepGradients
from .radius import scale_of, to_radius
from .schedule import SCHEDULES, check_rho_epoch, radius_factor, start_epoch_problem, steps_problem
from .selection import ParameterSelection
from .wrapper import OptimizerWrapper, create_base

BATCHNORM = ('batch', 'exact_ascent', 'stacked')
_REMOVED = ('group', 'frozen')


class SharpnessAware(OptimizerWrapper):
    """Base of the sharpness-aware optimizers: a real optimizer that computes its own gradients and steps another one.

    ``step(closure)`` does everything. Under Accelerate use :func:`timm_lt.optim.optimizer_step`, which calls
    :meth:`compute_grads`, clips, and then ``step()`` without a closure. After an ordinary backward ``step()`` would be
    a plain step of the base optimizer, and is refused unless ``allow_plain=True``.

    ``param_groups``, ``state`` and ``defaults`` are those of the base; ``state_dict`` is the base's with one entry
    more. All passes of a step draw the same random numbers (dropout, stochastic depth, sampled losses).

    A new method is a subclass with :meth:`radii` and, if it is class-aware, ``class_aware = True`` and
    :meth:`part_weights`. It may override :meth:`perturb`, :meth:`redirect`, :meth:`combine`, :meth:`extra_gradient`
    and :meth:`idle_because`.

    Args:
        params: Parameters or groups, as for any optimizer.
        base: Name of any other optimizer of timm that takes the step.
        every: Perturb at each ``every``-th step only, and take plain steps between; approximate and cheaper if > 1.
        start_epoch: Perturb from this epoch on; before it, plain steps; approximate and cheaper if > 0.
        layers: Wildcard or wildcards of the parameter names that are perturbed, e.g. ``'layer4*'``, or
            ``'classifier'`` for the model's classifier; approximate. None: all. Parameters added later are included.
        exclude_norm_bias: Leave parameters with at most one dimension (norm layers, biases) unperturbed.
        rho_schedule: Course of the radius over the epochs: 'constant', 'linear', 'cosine' or 'step'.
        rho_end: Radius at the last epoch, as a share of the radius at the first.
        rho_epoch: First epoch with the radius of the last one, counted from 0; for ``rho_schedule='step'``.
        local_ascent: Under DDP, perturb each process by the gradient of its samples (m-sharpness) instead of the joint
            gradient.
        adaptive: Measure the radius relative to the size of each parameter, ``eps = rho T^2 g / |T g|`` with
            ``T = |theta|``, as ASAM does. The radius should then be about ten times as large. For methods with the
            perturbation ``rho g / |g|`` only.
        batchnorm: Treatment of BatchNorm in training mode by the further passes of a part. 'batch': the whole batch
            passes and the loss of the part counts; exact. 'stacked': one further pass for all parts runs each sample
            under the weights of its part. Statistics of the batch under these weights are estimated; approximate and
            cheaper (close for SSE-SAM and GSA, not for ImbSAM). 'exact_ascent': the same, after exact gradients of the
            parts. Without layers that mix samples (GroupNorm, LayerNorm) only the part's samples run again; this is
            exact.
        allow_plain: Let ``step()`` without a closure after an ordinary backward be a plain step of the base.
        base_options: Options of the base optimizer (``lr``, ``weight_decay``, ``momentum``, ``betas``, ``eps``, ...).
    """

    _transient: tuple[str, ...] = ('model', '_selection', '_probe', '_staged', '_epoch_began')
    model: nn.Module | None
    _selection: ParameterSelection | None
    _probe: CouplingProbe | None
    _staged: dict[str, Any] | None
    _epoch_began: tuple[int, int] | None
    class_aware = False
    num_classes: int | None = None  # length of the class counts, compared with the logits
    adaptive_eta = 0.0  # added to |theta| in T
    part_normalizer = 'batch'  # 'part': L_k is the mean over the part's samples instead of their sum / B
    combines = False  # combine() takes the gradient of the first pass too
    joint_only = False  # local_ascent has no meaning
    scale_of = staticmethod(scale_of)

    def __init__(
            self,
            params: ParamsT,
            *,
            base: str = 'momentum',
            every: int = 1,
            start_epoch: int = 0,
            layers: str | Sequence[str] | None = None,
            exclude_norm_bias: bool = False,
            rho_schedule: str = 'constant',
            rho_end: float = 1.0,
            rho_epoch: int | None = None,
            local_ascent: bool = False,
            adaptive: bool = False,
            batchnorm: str = 'batch',
            allow_plain: bool = False,
            **base_options: Any,
    ) -> None:
        self.every = check_whole('every', every, 1)
        self.start_epoch = check_range('start_epoch', start_epoch, 0)
        self.layers = [layers] if isinstance(layers, str) else None if layers is None else list(layers)
        self.exclude_norm_bias = bool(exclude_norm_bias)
        self.rho_schedule = check_option('rho_schedule', rho_schedule, SCHEDULES)
        self.rho_end = check_range('rho_end', rho_end, 0)
        self.rho_epoch = check_rho_epoch(rho_schedule, rho_epoch)
        self.local_ascent = bool(local_ascent)
        if batchnorm in _REMOVED:
            raise ValueError(
                f"batchnorm={batchnorm!r} was removed, because 'stacked' follows the exact step more closely at the "
                f"same cost; use batchnorm='stacked'")
        self.batchnorm = check_option('batchnorm', batchnorm, BATCHNORM)
        self.allow_plain = bool(allow_plain)
        self.adaptive = bool(adaptive)
        if adaptive and type(self).perturb is not SharpnessAware.perturb:
            raise ValueError(f'{type(self).__name__} defines its own perturbation, so adaptive=True has no meaning')
        if self.local_ascent and self.joint_only:
            raise ValueError(f'{type(self).__name__} perturbs all processes alike; use local_ascent=False')
        self._said: set[str] = set()
        base_optimizer = create_base(type(self), params, base, base_options)
        super().__init__(base_optimizer, {'step': 0, 'epoch': 0, 'num_epochs': None})

    # Defined by a method

    def part_weights(self, labels: Tensor) -> Tensor:
        """Weight of each sample in each part, (P, B), on the CPU; class-aware methods only.

        Args:
            labels: Class of each sample, (B,), int64, on the CPU.
        """
        raise TypeError(f'{type(self).__name__} is class-aware and must define part_weights(labels)')

    def radii(self) -> list[float]:
        """Radius of each part at this epoch, before the schedule; 0 leaves a part unperturbed."""
        raise TypeError(f'{type(self).__name__} must define radii()')

    def perturb(self, parts: list[Part]) -> None:
        """Turn the gradients of each part into its perturbation, in place: ``eps = rho * g / |g|``, or ASAM's."""
        for part in parts:
            self.redirect(part)
            to_radius(part.grads, part.params, part.radius, self.adaptive_eta if self.adaptive else None)

    def redirect(self, part: Part) -> None:
        """Change in place the gradients along which :meth:`perturb` moves a part; by default they stay."""

    def combine(self, params: Sequence[Tensor], first: Gradients) -> None:
        """Change ``.grad`` after the further pass of a perturbed step; for methods with ``combines = True``.

        Args:
            params: The parameters; ``.grad`` is the gradient at the perturbed weights.
            first: Gradient of each at the unperturbed weights, or None, with the same loss scale.
        """

    def extra_gradient(self, grad_scale: Tensor | float | None) -> None:
        """Add to ``.grad`` a gradient that needs no pass over the batch, e.g. of a penalty, times ``grad_scale``.

        Called once per step, after the gradients were averaged over processes.
        """

    def idle_because(self) -> str | None:
        """The options because of which a step never differs from that of the base; None if it may differ."""
        return None

    def parameters_changed(self) -> None:
        """Called when the model, its classifier or the parameters of this optimizer have changed."""

    # Called by the training loop

    def attach(self, model: nn.Module) -> None:
        """Tell the optimizer its model, for the names of parameters and for the buffers that it protects in a step.

        A :class:`BatchClosure` does this by itself. A plain closure does not, so that without this call a step may
        change the buffers twice.
        """
        self.model, ddp, _ = unwrap_model(model)
        if ddp is not None:
            check_ddp(ddp)
        self._probe = None
        self._update_selection()

    def set_epoch(self, epoch: int, num_epochs: int | None = None, steps_per_epoch: int | None = None) -> None:
        """Tell the optimizer the epoch that begins now.

        Args:
            epoch: Counted from 0.
            num_epochs: Number of epochs of the run; None leaves the last value.
            steps_per_epoch: Optimizer steps of an epoch, for a warning about ``every``; None: counted.
        """
        self._own['epoch'] = check_range('epoch', epoch, 0)
        if num_epochs is not None:
            self._own['num_epochs'] = check_range('num_epochs', num_epochs, 1)
        if self.num_epochs is None:
            return
        self._warn_once(start_epoch_problem(self.start_epoch, self.num_epochs))
        if steps_per_epoch is None and self._epoch_began is not None and self._epoch_began[0] == epoch - 1:
            steps_per_epoch = self._own['step'] - self._epoch_began[1]
        self._epoch_began = epoch, self._own['step']
        if steps_per_epoch:
            self._warn_once(steps_problem(self.every, self.start_epoch, self.num_epochs, steps_per_epoch))

    def warn_if_idle(self) -> None:
        """Warn once if the options leave every step to the base optimizer."""
        reason = self.idle_because()
        if reason is not None:
            self._warn_once(f'{reason}, so no step is perturbed and the run is that of the base optimizer')

    def _warn_once(self, problem: str | None) -> None:
        if problem is not None and problem not in self._said:
            self._said.add(problem)
            warnings.warn(f'{type(self).__name__}: {problem}.', stacklevel=3)

    @property
    def epoch(self) -> int:
        return self._own['epoch']

    @property
    def num_epochs(self) -> int | None:
        return self._own['num_epochs']

    def _radii_now(self) -> list[float]:
        """Radii of this step: 0 before ``start_epoch`` and between the steps that perturb."""
        radii = self.radii()
        if self.epoch < self.start_epoch or self._own['step'] % self.every:
            return [0.0] * len(radii)
        factor = radius_factor(self.rho_schedule, self.rho_end, self.epoch, self.num_epochs, self.rho_epoch)
        return [radius * factor for radius in radii]

    # Parameters

    @property
    def selection(self) -> ParameterSelection:
        """The parameters that may be perturbed."""
        if self._selection is None:
            self._selection = ParameterSelection(type(self).__name__, self.layers, self.exclude_norm_bias)
        return self._selection

    def _update_selection(self) -> None:
        if self.selection.update(self.model, [p for group in self.param_groups for p in group['params']]):
            self.parameters_changed()

    def trained_parameters(self) -> list[Tensor]:
        """The parameters of the groups that require a gradient."""
        return [p for group in self.param_groups for p in group['params'] if p.requires_grad]

    def couples_samples(self, closure: BatchClosure) -> bool:
        """Whether the whole batch has to pass for the loss of a part of it."""
        if self._probe is None:
            self._probe = CouplingProbe()
        return self._probe(closure)

    # Steps

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: A :class:`BatchClosure`. A method without classes takes any function that clears the gradients,
                runs forward and backward and returns the loss. None: step with the gradients of :meth:`compute_grads`.
                Without that call it is a plain step of the base, which ``allow_plain=True`` permits.

        Returns:
            The loss at the unperturbed weights, or None without a closure.

        Raises:
            RuntimeError: For a plain step that was not allowed, or for a closure under a gradient scaler.
        """
        loss = None
        if closure is not None:
            check_no_scaler(self, closure)
            loss = self.compute_grads(closure)
        elif self._staged is None:
            self._begin_step()
            check_plain_step(self)
        if self._staged is not None:
            self._own.update(self._staged)
            self._staged = None
        self.base.step()
        if isinstance(closure, BatchClosure):
            closure.settle_statistics(True)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._staged = None  # a step that was skipped leaves nothing behind
        super().zero_grad(set_to_none)

    def compute_grads(self, closure: Any, grad_scale: Tensor | float | None = None) -> Any:
        """Compute the gradients of a step into ``.grad``; weights and buffers are as after one plain forward.

        ``.grad`` is averaged over processes and still carries the loss scale. The step follows with ``step()``; a step
        that a scaler skips changes nothing.

        Args:
            closure: As for :meth:`step`.
            grad_scale: Factor that the closure's gradients carry. Default: that of the closure's accelerator.

        Returns:
            The loss at the unperturbed weights.

        Raises:
            TypeError: If the method needs a :class:`BatchClosure` and got another callable.
            RuntimeError: Inside an autocast block.
        """
        check_call(self, closure)
        self.warn_if_idle()
        self._begin_step()
        radii = self._radii_now()
        batch = isinstance(closure, BatchClosure)
        if batch:
            closure.begin_step()
            if self.model is not closure.module:
                self.attach(closure.module)
            if grad_scale is None:
                grad_scale = closure.grad_scale()
        if any(radii):
            self._update_selection()
            if not any(p in self.selection for p in self.trained_parameters()):
                radii = [0.0] * len(radii)  # nothing to perturb
        with torch.enable_grad():
            loss = self._gradients(closure, radii, grad_scale)
        if batch:
            check_output(self, closure)
        with torch.no_grad():
            self.extra_gradient(grad_scale)
        self._stage_step()
        return loss

    def _begin_step(self) -> None:
        """Forget a step that was computed and not taken."""
        self._staged = None

    def _stage_step(self) -> None:
        """``.grad`` is that of the step: the own state follows once it is taken."""
        self._staged = {'step': self._own['step'] + 1}

    def _gradients(self, closure: Any, radii: list[float], grad_scale: Tensor | float | None) -> Any:
        """Fill ``.grad``; returns the loss at the unperturbed weights."""
        gradients = StepGradients(self, closure, grad_scale)
        if not self.class_aware:
            return gradients.of_whole_batch(radii[0])
        return gradients.of_parts(closure.part_table(self.part_weights), radii)
