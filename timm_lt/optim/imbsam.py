"""ImbSAM: sharpness-aware minimization of the tail classes only.

Paper: Y. Zhou et al., "ImbSAM: A Closer Look at Sharpness-Aware Minimization in Class-Imbalanced Recognition",
ICCV 2023, https://arxiv.org/abs/2308.07815
Implements: method section, the class-aware objective ``L_head(theta) + L_tail(theta + rho g_tail / |g_tail|)`` with the
tail ``n_c < eta``.
Source: written from the paper.
Differs from the paper / official code: ``variant='paper'`` divides both sums by the batch size, so rho = 0 is the base
optimizer. 'released' also doubles the tail's sum, as the authors' repository does. 'group_mean' takes each part's mean
over its samples, as the SSE-SAM repository's ImbSAM does.
"""

from typing import Any

from .._registry import register_optimizer
from .._types import ClassCounts, ParamsT
from .._validate import check_option, check_rho
from ._head_tail import HeadTail

VARIANTS = ('paper', 'released', 'group_mean')


@register_optimizer('imbsam', paper='Zhou et al., ICCV 2023', needs=('class_counts',))
class ImbSAM(HeadTail):
    """Sharpness-aware minimization of the tail classes around any optimizer of timm (Zhou et al. 2023, method section).

    The step follows ``grad L_head(theta) + grad L_tail(theta + rho g_tail / |g_tail|)``. With BatchNorm it takes two
    forward and three backward passes; without, the tail's samples pass twice and the others once. A batch without tail
    samples is a plain step, one without head samples a SAM step. Memory: two extra copies of the parameters, the head's
    gradient and the saved weights.

    Args:
        params: Parameters or groups.
        class_counts: Training images per class, (C,), each >= 1.
        rho: Radius of the tail's perturbation, in parameter norm, >= 0; 0 switches it off. The paper uses 0.05.
        eta: Classes with fewer training images are tail. The paper's repository uses 20, SSE-SAM's comparison 100.
        variant: Weights of the parts: 'paper', 'released' or 'group_mean', see the head of the module.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'imbsam', lr=0.01, class_counts=counts, eta=100)
        >>> loss = optimizer.step(timm_lt.optim.BatchClosure(model, criterion, images, target))
    """

    def __init__(
            self,
            params: ParamsT,
            class_counts: ClassCounts | None = None,
            *,
            rho: float = 0.05,
            eta: int = 20,
            variant: str = 'paper',
            **options: Any,
    ) -> None:
        self.rho = check_rho(rho)
        self.variant = check_option('variant', variant, VARIANTS)
        self.part_normalizer = 'part' if variant == 'group_mean' else 'batch'
        super().__init__(params, class_counts, eta, tail_weight=2.0 if variant == 'released' else 1.0, **options)

    def radii(self) -> list[float]:
        return [0.0, self.rho]

    def idle_because(self) -> str | None:
        if self.rho == 0 and self.variant == 'paper':
            return 'rho=0'
        return None if self.has_tail else self.missing_part()
