"""GSA: grouped sharpness-aware minimization.

Paper: Chen et al., "GKP+GSA", CVPR 2026.
Implements: Eq. (16) and its terms. A group of classes k has the loss ``L_k = (1/B) sum_(i in k) l_i`` and the direction
``h_k = g_k - (g_k . g / |g|^2) g``. It has the radius ``rho_k = (|theta| / (2 |h_k|))^1/2 d^-1/4 (n_k - 1)^-1/4`` and
the perturbation ``eps_k = Z sqrt(d) rho_k h_k / |h_k|``. The step follows ``sum_k grad L_k(theta + eps_k)``; with a
penalty, ``alpha sum_k grad L_k(theta + eps_k) + (1 - alpha) grad L_gkp``.
Source: written from the paper; compared with published numbers in ``tests/golden``.
Differs from the official code: that code takes one backward for all groups and passes the whole batch once more with
one joint perturbation. It subtracts a moving average of the gradient instead of projecting. It scales norms by |theta|
and clamps the radius to [2e-3, 3e-3]. The regularisation term ``|theta| / (2 sqrt(n_k - 1) rho_k)`` has no gradient in
either. A group of one training image counts as one of two. The recurrence of the official code is kept as a reference
in ``tests/helpers/gsa_released.py``.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..._registry import register_optimizer
from ..._types import ClassCounts, ParamsT
from ..._validate import check_class_counts, check_option, check_range
from ...class_distribution import ClassDistribution
from .._head_tail import weights_of_classes
from .._tensors import scale_
from ..engine import Part, SharpnessAware
from .perturbation import DIRECTIONS, gsa_perturbations


@register_optimizer('gsa', paper='Chen et al., CVPR 2026', needs=('class_counts',))
class GSA(SharpnessAware):
    """Grouped sharpness-aware minimization around any optimizer of timm (Chen et al. 2026, Eq. (16)).

    A batch of one group gets the plain gradient, because the projection leaves no direction. Under DDP the groups are
    those of the joint batch, and a process without samples of a group adds zeros. The gradients of all groups in the
    batch are held at the same time.

    Args:
        params: Parameters or groups.
        class_counts: Training images per class, (C,).
        groups: Group of each class, (C,) whole numbers from 0 or a mapping {class: group}. ``'size'`` sorts classes by
            size and cuts them into ``num_groups`` even groups. :meth:`set_groups` replaces them at any time (the memory
            bank does).
        num_groups: G of ``groups='size'``; at most C. One group is the base optimizer.
        Z: Strength of the perturbation, >= 0; 0 is the base optimizer. The paper uses 1e-2.
        direction: Direction of a group's perturbation. ``'orthogonal'`` (the paper's choice): its gradient minus the
            projection on the batch's. ``'gradient'`` (the paper's "SAM direction"): its gradient. ``'projection'``: the
            projection alone. The last two are the paper's ablation.
        part_loss: Loss whose gradient sets the radius. ``'group_mean'``: the mean loss over the group's samples in the
            batch. ``'batch_mean'``: their sum over the batch size. The direction is the same.
        weighting: ``'share'``: the total sums ``L_k = (1/B) sum_(i in k) l_i``, so that Z = 0 is the base optimizer.
            ``'equal'`` sums the groups' mean losses, the other reading of the paper's Eq. 16. Gradients are then up to
            G times as large.
        variant: ``'paper'``, the only form.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'gsa', lr=0.1, class_counts=[500, 120, 30], num_groups=2)
        >>> closure = timm_lt.optim.BatchClosure(model, criterion, images, target)
        >>> loss = optimizer.step(closure)
    """

    _transient = ('_penalty', '_radii')
    _penalty: Any
    _radii: tuple[list[int], Tensor] | None
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
            **options: Any,
    ) -> None:
        self.class_counts = check_class_counts(class_counts, who='GSA')
        self.Z = check_range('Z', Z, 0)
        self.direction = check_option('direction', direction, DIRECTIONS)
        self.part_loss = check_option('part_loss', part_loss, ('group_mean', 'batch_mean'))
        self.weighting = check_option('weighting', weighting, ('share', 'equal'))
        self.part_normalizer = 'batch' if weighting == 'share' else 'part'
        if variant == 'released':
            raise ValueError(
                "GSA: variant='released' was removed, because no recipe used it; its recurrence is a reference in "
                "tests/helpers/gsa_released.py of the source repository. Use variant='paper'")
        self.variant = check_option('variant', variant, ('paper',))
        super().__init__(params, **options)
        self._own.update({'groups': None, 'alpha': 1.0})
        self.grouped_by = 'size' if isinstance(groups, str) else 'given'
        if isinstance(groups, str):
            check_option('groups', groups, ('size',))
            groups = ClassDistribution(self.class_counts).size_groups(min(num_groups, len(self.class_counts)))
        self.set_groups(groups)

    # Groups and penalty, told by the training loop

    def set_groups(self, groups: Sequence[int] | Mapping[int, int] | Tensor) -> None:
        """Replace the groups.

        Args:
            groups: Group of each class, (C,) or a mapping {class: group}, whole numbers from 0. A number may have no
                class.
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
        self._own['groups'] = groups.tolist()
        if len(set(self._own['groups'])) == 1:
            self._warn_once(
                'all classes are in one group (groups, num_groups), so no step is perturbed and the run is that of the '
                'base optimizer')

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
                :class:`timm_lt.gkp.QuadraticPenalty`. None: no penalty. Not part of ``state_dict``.
            alpha: Weight of the loss, in [0, 1], 1 at the start; None leaves it. It acts without a penalty too.

        Raises:
            TypeError: If the penalty has no ``gradients()``.
            ValueError: If this optimizer does not step its parameters.
        """
        if penalty is not None:
            if not hasattr(penalty, 'gradients'):
                raise TypeError(f'GSA needs a penalty with gradients(), got {type(penalty).__name__}')
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
        table = torch.nn.functional.one_hot(self.groups, self.num_groups).T.float()
        return weights_of_classes(table, labels, type(self).__name__)

    def radii(self) -> list[float]:
        # the strength takes the role of the radius, so that schedules of the radius act on it
        return [self.Z if self.num_groups > 1 else 0.0] * self.num_groups

    def idle_because(self) -> str | None:
        # with a penalty, or alpha below 1, Z=0 is GKP alone
        return 'Z=0' if self.Z == 0 and self._penalty is None and self.alpha == 1 else None

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
        # the gradients are of a sum / B (share) or of the group's mean (equal); the radius wants those of part_loss
        scales = [
            {'share': {'group_mean': batch / part.samples, 'batch_mean': 1.0},
             'equal': {'group_mean': 1.0, 'batch_mean': part.samples / batch}}[self.weighting][self.part_loss]
            for part in parts]
        radii = []
        # parts that reach the same parameters share the norms of those and of the batch's gradient
        for _, pairs in groupby(zip(parts, scales), key=lambda pair: [id(p) for p in pair[0].params]):
            alike = list(pairs)
            params = alike[0][0].params
            result = gsa_perturbations(
                [part.grads for part, _ in alike], [total[id(p)] for p in params], params,
                [samples[part.index] for part, _ in alike], Z=alike[0][0].radius, direction=self.direction,
                gradient_scale=[scale for _, scale in alike], inplace=True)
            radii.append(result.radius)
        self._radii = ([part.index for part in parts], torch.cat(radii))

    # Steps

    def compute_grads(self, closure: Any, grad_scale: Tensor | float | None = None) -> Any:
        self._radii = None
        return super().compute_grads(closure, grad_scale)

    def extra_gradient(self, grad_scale: Tensor | float | None) -> None:
        """``.grad <- alpha .grad + (1 - alpha) (gradient of the penalty)``."""
        if self.alpha == 1:
            return
        scale_([p.grad for p in self.trained_parameters() if p.grad is not None], self.alpha)
        if self._penalty is None:
            return
        factor = 1 - self.alpha if grad_scale is None else (1 - self.alpha) * grad_scale
        for p in self._penalty.parameters:
            if p.grad is None and p.requires_grad:
                p.grad = torch.zeros_like(p)
        pairs = [(p.grad, g) for p, g in zip(self._penalty.parameters, self._penalty.gradients()) if p.grad is not None]
        if pairs:
            mine, theirs = map(list, zip(*pairs))
            torch._foreach_mul_(theirs, factor)
            torch._foreach_add_(mine, theirs)
