"""One engine for every sharpness-aware method: parts of a batch, a perturbation per part, the sum of the gradients.

With ``L_k = (1/B) sum_i w_k(i) l_i`` the loss of part k, a step follows ``sum_k grad L_k(theta + eps_k)``; a part with
``eps_k = 0`` keeps the gradient of the first pass. The engine computes gradients, perturbs, restores, protects buffers,
averages over processes, respects the loss scale and keeps state; a method says which parts there are and how each is
perturbed. A new class-aware method is a subclass with ``class_aware = True``, ``part_weights(labels)`` and ``radii()``,
and, where its perturbation is not ``rho g / |g|``, ``perturb(parts)``; ``extra_gradient`` adds what no pass gives.

Passes. The first pass gives the gradient of every part that is perturbed, and of the sum of those that are not, from
one graph. Each perturbed part then passes again at its own weights. Which samples pass with it is a question of
BatchNorm, see ``batchnorm`` in :class:`SharpnessAware`.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._classifier import find_classifiers
from .._types import ParamsT
from .._validate import check_option, check_range
from ._gradients import Part, class_aware_gradients, whole_batch_gradients
from ._passes import couples_samples
from ._tensors import global_norm, local, scale_
from ._wrapper import OptimizerWrapper, create_base
from .closure import BatchClosure, check_ddp, unwrap_model

BATCHNORM = ('batch', 'exact_ascent', 'stacked', 'group', 'frozen')
SCHEDULES = ('constant', 'linear', 'cosine')
_NORM_EPS = 1e-12


class SharpnessAware(OptimizerWrapper):
    """Base of the sharpness-aware optimizers: a real optimizer that computes its own gradients and steps another one.

    ``step(closure)`` does everything. Under Accelerate use :func:`timm_lt.optim.optimizer_step`, which calls
    :meth:`compute_grads`, clips, and then ``step()`` without a closure. ``step()`` after an ordinary backward is a
    plain step of the base optimizer, with one warning.

    ``param_groups``, ``state`` and ``defaults`` are those of the base; ``state_dict`` is the base's with one entry
    more.

    Args:
        params: Parameters or groups, as for any optimizer.
        base: Name of any other optimizer of timm that takes the step.
        every: Perturb at each ``every``-th step only, and take plain steps between; approximate and cheaper if > 1.
        start_epoch: Perturb from this epoch on; before it, plain steps; approximate and cheaper if > 0.
        layers: Wildcard or wildcards of the parameter names that are perturbed, e.g. ``'layer4*'``, or
            ``'classifier'`` for the model's classifier; approximate. None: all.
        exclude_norm_bias: Leave parameters with at most one dimension (norm layers, biases) unperturbed.
        rho_schedule: How the radius moves over the epochs: 'constant', 'linear' or 'cosine'.
        rho_end: Radius at the last epoch, as a share of the radius at the first.
        local_ascent: Under DDP, perturb every process by the gradient of its own samples (m-sharpness) instead of the
            joint gradient.
        adaptive: Measure the radius relative to the size of each parameter, ``eps = rho T^2 g / |T g|`` with
            ``T = |theta|``, as ASAM does; wants a radius some ten times as large. Of the methods whose perturbation is
            ``rho g / |g|`` only.
        batchnorm: How the further passes of a part treat BatchNorm in training mode. 'batch': the whole batch passes
            and the part's loss counts; exact. The others are approximate and cheaper. 'stacked': one further pass for
            all parts, each sample under its own part's weights, normalised by estimated statistics of the batch under
            them (close for SSE-SAM and GSA, not for ImbSAM). 'exact_ascent': the same, after exact gradients of the
            parts. 'group': only the part's samples pass, normalised by their own statistics (a single sample by the
            running ones). 'frozen': only the part's samples pass, normalised by the running statistics. Networks whose
            samples do not meet in the forward pass need none of this: there only the part's own samples pass, which is
            exact.
        base_options: Options of the base optimizer (``lr``, ``weight_decay``, ``momentum``, ``betas``, ``eps``, ...).
    """

    _transient = ('_model', '_names', '_classifier', '_couples', '_staged')
    class_aware = False
    num_classes: int | None = None  # length of the class counts, compared with the logits
    adaptive_eta = 0.0  # added to |theta| in T
    part_normalizer = 'batch'  # 'part': L_k is the mean over the part's samples instead of their sum / B

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
            local_ascent: bool = False,
            adaptive: bool = False,
            batchnorm: str = 'batch',
            **base_options: Any,
    ) -> None:
        if check_range('every', every, 1) != int(every):
            raise ValueError(f'every must be a whole number >= 1, got {every}')
        self.every = int(every)
        self.start_epoch = check_range('start_epoch', start_epoch, 0)
        self.layers = [layers] if isinstance(layers, str) else None if layers is None else list(layers)
        self.exclude_norm_bias = bool(exclude_norm_bias)
        self.rho_schedule = check_option('rho_schedule', rho_schedule, SCHEDULES)
        self.rho_end = check_range('rho_end', rho_end, 0)
        self.local_ascent = bool(local_ascent)
        self.batchnorm = check_option('batchnorm', batchnorm, BATCHNORM)
        self.adaptive = bool(adaptive)
        if adaptive and type(self).perturb is not SharpnessAware.perturb:
            raise ValueError(f'{type(self).__name__} has a perturbation of its own, so adaptive=True has no meaning')
        self._warned = False
        base_optimizer = create_base(type(self), params, base, base_options)
        super().__init__(base_optimizer, {'step': 0, 'epoch': 0, 'num_epochs': None})

    # What a method defines

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
            self._times_size(part)
            norm = global_norm(part.grads)
            self._times_size(part)
            scale_(part.grads, self.scale_of(part.radius, norm))

    def _times_size(self, part: Part) -> None:
        """``g <- T g``, one parameter at a time; nothing without ``adaptive``."""
        for p, g in zip(part.params, part.grads) if self.adaptive else ():
            # without eta the sign of T does not matter, neither for |T g| nor for T^2 g
            local(g).mul_(local(p) if self.adaptive_eta == 0 else local(p).abs().add_(self.adaptive_eta))

    @staticmethod
    def scale_of(radius: float, norm: Tensor) -> Tensor:
        """``radius / norm``: 0 for a gradient of 0, NaN for one that overflowed.

        NaN weights make the loss and every gradient NaN, on every process after averaging, so that all of them skip the
        step; infinity would turn into a factor of 0 and hide the overflow.
        """
        norm = norm.float() if norm.dtype in (torch.float16, torch.bfloat16) else norm
        return radius / (norm + _NORM_EPS) + 0 * norm

    def extra_gradient(self, grad_scale: Tensor | None) -> None:
        """Add to ``.grad`` what no pass over the batch gives, e.g. a penalty's gradient (times ``grad_scale``).

        Called once per step, after the gradients were averaged over processes.
        """

    # Told by the training loop

    def attach(self, model: nn.Module) -> None:
        """Tell the optimizer its model, for the names of parameters and for the buffers that passes must not change.

        A :class:`BatchClosure` does this by itself; a plain closure does not, and then the buffers are not protected.
        """
        self._model, ddp, _ = unwrap_model(model)
        if ddp is not None:
            check_ddp(ddp)
        self._names = {id(p): name.replace('_orig_mod.', '') for name, p in self._model.named_parameters()}
        self._classifier = None
        if self.layers is not None and 'classifier' in self.layers:
            if not hasattr(self._model, 'get_classifier'):
                raise ValueError(
                    f"layers='classifier' needs a model with get_classifier(), as timm's have; "
                    f'{type(self._model).__name__} has none, name its layers by a wildcard')
            self._classifier = {id(p) for head in find_classifiers(self._model) for p in head.parameters()}
        self._check_layers()
        self._couples = None

    def _check_layers(self) -> None:
        for pattern in self.layers or ():
            named = pattern == 'classifier' and self._classifier
            if not named and not any(fnmatch(name, pattern) for name in self._names.values()):
                raise ValueError(
                    f'layers={pattern!r} is the name of no parameter of {type(self._model).__name__}; theirs are '
                    f'such as {list(self._names.values())[:3]}, and * stands for any characters')

    def set_epoch(self, epoch: int, num_epochs: int | None = None) -> None:
        """Tell the optimizer the epoch that begins now, counted from 0, and how many there will be."""
        self._own['epoch'] = check_range('epoch', epoch, 0)
        if num_epochs is not None:
            self._own['num_epochs'] = check_range('num_epochs', num_epochs, 1)

    @property
    def epoch(self) -> int:
        return self._own['epoch']

    @property
    def num_epochs(self) -> int | None:
        return self._own['num_epochs']

    def _schedule(self) -> float:
        """The factor on every radius at this epoch."""
        if self.rho_schedule == 'constant':
            return 1.0
        if self.num_epochs is None:
            raise ValueError(
                f'rho_schedule={self.rho_schedule!r} needs the number of epochs; call set_epoch(epoch, num_epochs) at '
                f'the start of every epoch')
        t = min(self.epoch / max(self.num_epochs - 1, 1), 1.0)
        if self.rho_schedule == 'linear':
            return 1 + (self.rho_end - 1) * t
        return self.rho_end + (1 - self.rho_end) * (1 + math.cos(math.pi * t)) / 2

    def _radii_now(self) -> list[float]:
        """Radii of this step: 0 before ``start_epoch`` and between the steps that perturb."""
        radii = self.radii()
        if self.epoch < self.start_epoch or self._own['step'] % self.every:
            return [0.0] * len(radii)
        factor = self._schedule()
        return [radius * factor for radius in radii]

    def _may_perturb(self, p: Tensor) -> bool:
        if self.exclude_norm_bias and p.ndim <= 1:
            return False
        if self.layers is None:
            return True
        if self._model is None:
            raise TypeError(
                'layers=... needs the names of the parameters; call optimizer.attach(model) or pass a BatchClosure')
        if self._classifier is not None and id(p) in self._classifier:
            return True
        return any(fnmatch(self._names.get(id(p), ''), pattern) for pattern in self.layers)

    # Steps

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step.

        Args:
            closure: A :class:`BatchClosure`; for a method without classes any function that clears the gradients, runs
                forward and backward and returns the loss. None: step with the gradients that are there, those of
                :meth:`compute_grads`; without that call it is a plain step of the base, with one warning.

        Returns:
            The loss at the unperturbed weights, or None without a closure.
        """
        loss = None
        if closure is not None:
            # Accelerate puts a method of its own in the place of this one while a gradient scaler steps
            scaling = getattr(self.__dict__.get('step'), '__qualname__', '').startswith('patch_optimizer_step')
            if scaling or (isinstance(closure, BatchClosure) and closure.scaler is not None):
                raise RuntimeError(
                    f'{type(self).__name__}.step(closure) cannot unscale or skip under a gradient scaler; call '
                    f'timm_lt.optim.optimizer_step(optimizer, closure), or compute_grads(closure) and then step()')
            loss = self.compute_grads(closure)
        elif self._staged is None and not self._warned and any(group['lr'] for group in self.param_groups):
            self._warned = True
            warnings.warn(
                f'{type(self).__name__}.step() without a closure is a plain step of its base optimizer: no '
                f'perturbation was computed. Call timm_lt.optim.optimizer_step(optimizer, closure) or step(closure) '
                f'with a timm_lt.optim.BatchClosure.', stacklevel=2)
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

    def compute_grads(self, closure: Callable[[], Any], grad_scale: Tensor | float | None = None) -> Any:
        """Compute the gradients of a step: weights and buffers are as after one plain forward, ``.grad`` is final.

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
        self._check_call(closure)
        self._staged = None
        radii = self._radii_now()
        if isinstance(closure, BatchClosure):
            # sharding puts new parameters into the same module
            if self._model is not closure.module or (closure.sharded and self.layers is not None):
                self.attach(closure.module)
            if grad_scale is None:
                grad_scale = closure.grad_scale()
        with torch.enable_grad():
            if self.class_aware:
                loss = self._class_aware_gradients(closure, radii, grad_scale)
            else:
                loss = self._whole_batch_gradients(closure, radii[0], grad_scale)
        if isinstance(closure, BatchClosure):
            self._check_output(closure)
        with torch.no_grad():
            self.extra_gradient(grad_scale)
        self._staged = {'step': self._own['step'] + 1}
        return loss

    def _check_call(self, closure: Any) -> None:
        who = type(self).__name__
        if self.class_aware and not isinstance(closure, BatchClosure):
            raise TypeError(
                f'{who} needs to know the class of each sample: pass timm_lt.optim.BatchClosure(model, criterion, '
                f'input, target), got {type(closure).__name__}')
        if not callable(closure):
            raise TypeError(f'{who} needs a closure that can be called more than once, got {type(closure).__name__}')
        device = next((p.device for group in self.param_groups for p in group['params']), torch.device('cpu'))
        if torch.is_autocast_enabled(device.type):
            raise RuntimeError(
                f'{who} was called inside torch.autocast, whose cache of cast weights would hide the perturbation; '
                f'leave the block, and use autocast inside the closure (BatchClosure does with an accelerator)')
        if self.local_ascent and isinstance(closure, BatchClosure) and closure.sharded:
            raise ValueError('local_ascent=True is not possible with sharded parameters; use local_ascent=False')

    def _check_output(self, closure: BatchClosure) -> None:
        logits = closure.output[0]
        if self.num_classes is not None and logits.ndim == 2 and logits.shape[1] not in (1, self.num_classes):
            raise ValueError(
                f'{type(self).__name__}: class_counts has {self.num_classes} entries, but the model gives '
                f'{logits.shape[1]} logits; pass one count per class')

    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group['params'] if p.requires_grad]

    def _passing(self, closure: Any) -> list[Tensor]:
        """Parameters whose gradients the passes gather: ours, then those of the model that another optimizer steps."""
        ours = self._params()
        if not isinstance(closure, BatchClosure):
            return ours
        known = {id(p) for p in ours}
        return ours + [p for p in closure.module.parameters() if p.requires_grad and id(p) not in known]

    def _part(
            self, index: int, radius: float, samples: int, params: list[Tensor], gradients: list[Tensor | None],
            grad_scale: Tensor | float | None,
    ) -> Part:
        ours = {id(p) for p in self._params()}
        pairs = [
            (p, g) for p, g in zip(params, gradients) if g is not None and id(p) in ours and self._may_perturb(p)]
        part = Part(index, radius, samples, [p for p, _ in pairs], [g for _, g in pairs])
        if grad_scale is not None:
            scale_(part.grads, 1 / grad_scale)
        return part

    def _whole_batch_gradients(self, closure: Any, radius: float, grad_scale: Tensor | float | None) -> Any:
        return whole_batch_gradients(self, closure, radius, grad_scale)

    def _class_aware_gradients(
            self, closure: BatchClosure, radii: list[float], grad_scale: Tensor | float | None) -> Tensor:
        return class_aware_gradients(self, closure, radii, grad_scale)

    def _couples_samples(self, closure: BatchClosure) -> bool:
        """Whether the whole batch has to pass for the loss of a part of it."""
        if getattr(closure.criterion, 'couples_samples', False):
            if self.batchnorm != 'batch':
                raise ValueError(
                    f'batchnorm={self.batchnorm!r} passes parts of a batch, but the loss of a sample under '
                    f"{type(closure.criterion).__name__} depends on its whole batch; use batchnorm='batch'")
            return True
        if closure.sharded or closure.compiled:
            # all processes gather the parameters together; another batch size would compile another graph
            return True
        training = [m.training for m in closure.module.modules()]
        if self._couples is None or self._couples[0] != training:
            self._couples = training, couples_samples(closure)
        return self._couples[1]
