"""GSA: grouped sharpness-aware minimization.

Paper: Chen et al., "GKP+GSA", CVPR 2026.
Implements: for groups of classes k, with ``L_k = (1/B) sum_(i in k) l_i``, the direction
``h_k = g_k - (g_k . g / |g|^2) g``, the radius ``rho_k = (|theta| / (2 |h_k|))^1/2 d^-1/4 (n_k - 1)^-1/4``, the
perturbation ``eps_k = Z sqrt(d) rho_k h_k / |h_k|`` and the step with ``sum_k grad L_k(theta + eps_k)``; with a
penalty, ``alpha sum_k grad L_k(theta + eps_k) + (1 - alpha) grad L_gkp``.
Source: written from the paper; the released recurrence is compared with published numbers in ``tests/golden``.
Differs from the official code (``variant='released'``): that one takes one backward for all groups, subtracts a moving
average of the gradient instead of projecting, scales norms by |theta|, clamps the radius to [2e-3, 3e-3], adds one
joint perturbation for all groups, and passes the whole batch once more. The regularisation term
``|theta| / (2 sqrt(n_k - 1) rho_k)`` has no gradient in either. A group of one training image counts as one of two.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from .._registry import register_optimizer
from .._types import ClassCounts, ParamsT
from .._validate import check_class_counts, check_option, check_range
from ..class_distribution import ClassDistribution
from ._engine import Part, SharpnessAware
from ._gsa import DIRECTIONS, gsa_perturbations, released_ascent
from ._passes import accumulate, part_totals, set_gradients, take_gradients
from ._tensors import SavedBuffers, SavedWeights, global_norm, scale_
from .closure import BatchClosure

VARIANTS = ('paper', 'released')


@register_optimizer('gsa', paper='Chen et al., CVPR 2026', needs=('class_counts',))
class GSA(SharpnessAware):
    """Grouped sharpness-aware minimization around any optimizer of timm.

    A batch that holds one group only has no direction of its own and gets the plain gradient. Under DDP, groups are
    those of the joint batch: one that is missing on a process takes part with zeros. The gradients of all groups
    present are held at the same time.

    Args:
        params: Parameters or groups.
        class_counts: Training images per class, (C,).
        groups: Group of each class, (C,) whole numbers from 0 or a mapping {class: group}, or ``'size'``: classes
            sorted by size and cut into ``num_groups`` even groups. :meth:`set_groups` replaces them at any time (the
            memory bank does).
        num_groups: G of ``groups='size'``; at most C. One group is the base optimizer.
        Z: Strength of the perturbation, >= 0; 0 is the base optimizer. The paper uses 1e-2.
        direction: What a group's perturbation follows: ``'orthogonal'``, its gradient less the projection on the
            batch's (the paper's choice); ``'gradient'``, its gradient (the paper's "SAM direction"); ``'projection'``,
            the projection alone. The last two are the paper's ablation; of ``variant='paper'`` only.
        part_loss: Whose gradient the radius is taken of: ``'group_mean'``, the mean loss over the group's samples in
            the batch, or ``'batch_mean'``, their sum over the batch size. The direction is the same.
        weighting: ``'share'``: the total sums ``L_k = (1/B) sum_(i in k) l_i``, so that Z = 0 is the base optimizer.
            ``'equal'``: it sums the groups' mean losses (the other reading of the paper's Eq. 16; gradients are up to G
            times as large).
        variant: ``'paper'`` or ``'released'``.
        rho_scale, sigma, gradient_decay, rho_min, rho_max, adaptive: Of ``variant='released'`` only: factor and bounds
            of the radius, share and decay of the moving average that is subtracted, and whether norms are scaled by
            |theta|.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'gsa', lr=0.1, class_counts=[500, 120, 30], num_groups=2)
        >>> closure = timm_lt.optim.BatchClosure(model, criterion, images, target)
        >>> loss = optimizer.step(closure)
    """

    _transient = (*SharpnessAware._transient, '_penalty', '_pending', '_radii')
    class_aware = True

    def __init__(
            self,
            params: ParamsT,
            class_counts: ClassCounts | None = None,
            *,
            groups: str | Sequence[int] | Mapping[int, int] | Tensor = 'size',
            num_groups: int = 4,
            Z: float = 1e-2,
            direction: str = 'orthogonal',
            part_loss: str = 'group_mean',
            weighting: str = 'share',
            variant: str = 'paper',
            rho_scale: float = 0.1,
            sigma: float = 1.0,
            gradient_decay: float = 0.9,
            rho_min: float = 2e-3,
            rho_max: float = 3e-3,
            adaptive: bool = True,
            **options: Any,
    ) -> None:
        self.class_counts = check_class_counts(class_counts, who='GSA')
        self.Z = check_range('Z', Z, 0)
        self.direction = check_option('direction', direction, DIRECTIONS)
        self.part_loss = check_option('part_loss', part_loss, ('group_mean', 'batch_mean'))
        self.weighting = check_option('weighting', weighting, ('share', 'equal'))
        self.part_normalizer = 'batch' if weighting == 'share' else 'part'
        self.variant = check_option('variant', variant, VARIANTS)
        if self.variant == 'released' and self.direction != 'orthogonal':
            raise ValueError(
                f"direction={direction!r} belongs to variant='paper'; variant='released' follows its moving average")
        self.rho_scale = check_range('rho_scale', rho_scale, 0)
        self.sigma = check_range('sigma', sigma, 0)
        self.gradient_decay = check_range('gradient_decay', gradient_decay, 0, 1)
        self.rho_min = check_range('rho_min', rho_min, 0)
        self.rho_max = check_range('rho_max', rho_max, rho_min)
        self.scaled_norms = bool(adaptive)
        super().__init__(params, **options)
        if self.variant == 'released':
            for name, value in (('part_loss', 'group_mean'), ('weighting', 'share'), ('batchnorm', 'batch')):
                if getattr(self, name) != value:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} belongs to variant='paper'; variant='released' passes the "
                        f'whole batch with one perturbation: leave {name} out')
        self._own.update({'groups': None, 'alpha': 1.0, 'averages': {}})
        self.grouped_by = 'size' if isinstance(groups, str) else 'given'
        if isinstance(groups, str):
            check_option('groups', groups, ('size',))
            groups = ClassDistribution(self.class_counts).size_groups(min(num_groups, len(self.class_counts)))
        self.set_groups(groups)

    # Groups and penalty, told by the training loop

    def set_groups(self, groups: Sequence[int] | Mapping[int, int] | Tensor) -> None:
        """Replace the groups.

        Args:
            groups: Group of each class, (C,) or a mapping {class: group}, whole numbers from 0; a number without a
                class is allowed.
        """
        num_classes = len(self.class_counts)
        if isinstance(groups, Mapping):
            if set(groups) != set(range(num_classes)):
                raise ValueError(
                    f'groups must name a group for each of the classes 0 to {num_classes - 1} and no other, got a '
                    f'mapping of {sorted(groups, key=str)[:10]}')
            groups = [groups[c] for c in range(num_classes)]
        groups = torch.as_tensor(groups)
        if groups.shape != self.class_counts.shape or groups.is_floating_point() or groups.dtype == torch.bool:
            raise ValueError(
                f'groups must be one whole number for each of the {num_classes} classes, got shape '
                f'{tuple(groups.shape)} of {groups.dtype}')
        if int(groups.min()) < 0:
            raise ValueError(f'groups must be >= 0, got {int(groups.min())}')
        groups = groups.tolist()
        if groups != self._own['groups']:
            self._own['groups'] = groups
            self._own['averages'] = {}  # a moving average belongs to its group

    @property
    def groups(self) -> Tensor:
        """Group of each class, (C,), int64."""
        return torch.tensor(self._own['groups'], dtype=torch.int64)

    @property
    def num_groups(self) -> int:
        return max(self._own['groups']) + 1

    @property
    def samples_of_group(self) -> list[int]:
        """Training images of each group, G numbers."""
        return torch.zeros(self.num_groups, dtype=torch.int64).index_add_(0, self.groups, self.class_counts).tolist()

    def set_penalty(self, penalty: Any, alpha: float | None = None) -> None:
        """Step on ``alpha * (loss of the batch) + (1 - alpha) * penalty`` from now on.

        Args:
            penalty: Has ``parameters`` (a list) and ``gradients()`` for them, at their present values, such as
                :class:`timm_lt.gkp.QuadraticPenalty`; with ``variant='released'`` ``quadratic(weights)`` for weights of
                the groups, such as :class:`timm_lt.gkp.GroupPenalty`. None: no penalty. Not part of ``state_dict``.
            alpha: Weight of the loss, in [0, 1], 1 at the start; None leaves it. It acts without a penalty too.
        """
        if penalty is not None:
            wanted = 'gradients' if self.variant == 'paper' else 'quadratic'
            if not hasattr(penalty, wanted):
                raise TypeError(
                    f'variant={self.variant!r} needs a penalty with {wanted}(), got {type(penalty).__name__}')
            known = {id(p) for group in self.param_groups for p in group['params']}
            if any(id(p) not in known for p in penalty.parameters):
                raise ValueError(
                    'the penalty is on parameters that this optimizer does not step; build it on the live ones')
        self._penalty = penalty
        if alpha is not None:
            self._own['alpha'] = check_range('alpha', alpha, 0, 1)

    @property
    def alpha(self) -> float:
        """Weight of the loss against the penalty."""
        return self._own['alpha']

    @property
    def radii_of_last_step(self) -> dict[int, float]:
        """``rho_k`` of each group perturbed in the last step; empty if none was. Reads a value from the device."""
        if self._radii is None:
            return {}
        return dict(zip(self._radii[0], self._radii[1].tolist()))

    # The policy

    def part_weights(self, labels: Tensor) -> Tensor:
        return torch.nn.functional.one_hot(self.groups[labels], self.num_groups).T.float()

    def radii(self) -> list[float]:
        # the strength stands in the place of the radius, so that schedules of the radius act on it
        return [self.Z if self.num_groups > 1 else 0.0] * self.num_groups

    def perturb(self, parts: list[Part]) -> None:
        total: dict[int, Tensor] = {}
        batch = sum(part.samples for part in parts)
        for part in parts:
            share = 1.0 if self.weighting == 'share' else part.samples / batch
            for p, g in zip(part.params, part.grads):
                if id(p) in total:
                    total[id(p)].add_(g, alpha=share)
                else:
                    total[id(p)] = g * share
        samples = self.samples_of_group
        # given: sum / B (share) or the group's mean (equal); wanted: what part_loss says
        scales = [
            {'share': {'group_mean': batch / part.samples, 'batch_mean': 1.0},
             'equal': {'group_mean': 1.0, 'batch_mean': part.samples / batch}}[self.weighting][self.part_loss]
            for part in parts]
        radii = []
        # parts that reach the same parameters share the norms of those and of the batch's gradient
        for _, alike in groupby(zip(parts, scales), key=lambda pair: [id(p) for p in pair[0].params]):
            alike = list(alike)
            params = alike[0][0].params
            result = gsa_perturbations(
                [part.grads for part, _ in alike], [total[id(p)] for p in params], params,
                [samples[part.index] for part, _ in alike], Z=alike[0][0].radius, direction=self.direction,
                gradient_scale=[scale for _, scale in alike], inplace=True)
            radii.append(result.radius)
        self._radii = ([part.index for part in parts], torch.cat(radii))

    # Steps

    def compute_grads(self, closure: Any, grad_scale: Tensor | float | None = None) -> Any:
        self._pending = {}
        self._radii = None
        loss = super().compute_grads(closure, grad_scale)
        self._staged.update(self._pending)
        return loss

    def extra_gradient(self, grad_scale: Tensor | float | None) -> None:
        if self.variant == 'released':
            return  # its penalty acts in both passes
        self._mix_penalty(self._penalty, grad_scale)

    def _mix_penalty(self, penalty: Any, grad_scale: Tensor | float | None) -> None:
        """``.grad <- alpha .grad + (1 - alpha) (gradient of the penalty)``."""
        if self.alpha == 1:
            return
        gradients = [p.grad for p in self._params() if p.grad is not None]
        scale_(gradients, self.alpha)
        if penalty is None:
            return
        factor = 1 - self.alpha if grad_scale is None else (1 - self.alpha) * grad_scale
        missing = [p for p in penalty.parameters if p.grad is None and p.requires_grad]
        for p in missing:
            p.grad = torch.zeros_like(p)
        pairs = [(p.grad, g) for p, g in zip(penalty.parameters, penalty.gradients()) if p.grad is not None]
        if pairs:
            mine, theirs = map(list, zip(*pairs))
            torch._foreach_mul_(theirs, factor)
            torch._foreach_add_(mine, theirs)

    def _class_aware_gradients(
            self, closure: BatchClosure, radii: list[float], grad_scale: Tensor | float | None) -> Tensor:
        if self.variant == 'released':
            return self._released_gradients(closure, radii, grad_scale)
        return super()._class_aware_gradients(closure, radii, grad_scale)

    def _released_gradients(
            self, closure: BatchClosure, radii: list[float], grad_scale: Tensor | float | None) -> Tensor:
        if closure.sharded:
            raise ValueError("variant='released' is not possible with sharded parameters; use variant='paper'")
        table = closure.part_table(self.part_weights)
        samples, factors = part_totals(closure, table, 'part')
        closure.zero_grad()
        if not any(radii):
            loss = closure.mean_pass()
            self._mix_penalty(self._weighted_penalty(self._shares(samples)), grad_scale)
            return loss
        params = self._params()
        weights = [(w * factors[:, None]).sum(0) for w in table]
        (gradients,), mean = accumulate(
            closure, params, [weights], [[None] * len(params)], first=True, subset=False, sync=True)
        set_gradients(params, gradients)
        shares = self._shares(samples)
        self._mix_penalty(self._weighted_penalty({k: 1.0 for k in shares}), grad_scale)
        part = self._part(0, 1.0, sum(samples), params, take_gradients(params), grad_scale)
        with torch.no_grad():
            result = released_ascent(
                part.grads, self._averages(part.params), part.params, shares, self.samples_of_group,
                strength=self.rho_scale, sigma=self.sigma, decay=self.gradient_decay, radius_min=self.rho_min,
                radius_max=self.rho_max, adaptive=self.scaled_norms)
            # a gradient that overflowed must spoil the loss, so that every process skips the step
            spoil = 0 * global_norm(part.grads)
            torch._foreach_add_(result.ascent, spoil)
            saved, buffers = SavedWeights(part.params), SavedBuffers(closure.module)
        self._pending = {'averages': result.buffers}
        self._radii = (sorted(shares), result.radius)
        try:
            with saved.perturbed(part.params, list(result.ascent)):
                closure.mean_pass(first=False)
                with torch.no_grad():
                    self._mix_penalty(self._weighted_penalty(shares), grad_scale)
        finally:
            buffers.restore()
        return mean

    def _weighted_penalty(self, weights: dict[int, float]) -> Any:
        if self._penalty is None or self.alpha == 1:
            return None
        return self._penalty.quadratic([weights.get(k, 0.0) for k in range(self.num_groups)])

    def _averages(self, params: Sequence[Tensor]) -> dict[int, list[Tensor]]:
        """Moving averages by group, where the parameters are (a checkpoint may have been read elsewhere)."""
        return {k: [t.to(p.device) for t, p in zip(row, params)] for k, row in self._own['averages'].items()}

    @staticmethod
    def _shares(samples: Sequence[int]) -> dict[int, float]:
        return {k: n / sum(samples) for k, n in enumerate(samples) if n > 0}
