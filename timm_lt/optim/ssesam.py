"""SSE-SAM: head and tail classes are perturbed with separate radii, the head in the first stage only.

Paper: X. Lyu et al., "SSE-SAM: Balancing Head and Tail Classes Gradually through Stage-Wise SAM", AAAI 2025,
https://arxiv.org/abs/2412.13715
Implements: method section, ``L_head(theta + eps_h) + L_tail(theta + eps_t)``, each part perturbed along its gradient by
its radius. From epoch ``stage * num_epochs`` on the head's radius is 0.
Source: written from the paper.
Differs from the paper / official code: no. The batch size divides both sums, as in the released optimizer, also for
batches without head or tail. Checkpoints hold the stage, which the released class does not save.
"""

from typing import Any

from .._registry import register_optimizer
from .._types import ClassCounts, ParamsT
from .._validate import check_range, check_rho
from ._head_tail import HeadTail


@register_optimizer('ssesam', paper='Lyu et al., AAAI 2025', needs=('class_counts',))
class SSESAM(HeadTail):
    """Stage-wise sharpness-aware minimization around any optimizer of timm (Lyu et al. 2025, method section).

    The step follows ``grad L_head(theta + eps_h) + grad L_tail(theta + eps_t)``. With BatchNorm it takes three forward
    and four backward passes before the switch, two and three after it. Without BatchNorm, every sample passes twice.
    Memory: two extra copies of the parameters. The switch needs ``set_epoch(epoch, num_epochs)``; until the number of
    epochs is known the first stage holds.

    Args:
        params: Parameters or groups.
        class_counts: Training images per class, (C,), each >= 1.
        rho_head: Radius of the head's perturbation in the first stage, >= 0. The paper uses 0.05.
        rho_tail: Radius of the tail's perturbation, >= 0. The paper uses 0.1.
        stage: Share of the epochs in which the head is perturbed, in [0, 1]. The paper uses 0.7.
        eta: Classes with fewer training images are tail. The paper uses 100.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'ssesam', lr=0.1, class_counts=counts, stage=0.7)
        >>> optimizer.set_epoch(0, 200)
    """

    def __init__(
            self,
            params: ParamsT,
            class_counts: ClassCounts | None = None,
            *,
            rho_head: float = 0.05,
            rho_tail: float = 0.1,
            stage: float = 0.7,
            eta: int = 100,
            **options: Any,
    ) -> None:
        self.rho_head = check_rho(rho_head, 'rho_head')
        self.rho_tail = check_rho(rho_tail, 'rho_tail')
        self.stage = check_range('stage', stage, 0, 1)
        super().__init__(params, class_counts, eta, **options)

    @property
    def first_stage(self) -> bool:
        """Whether the head is perturbed at this epoch."""
        # the margin keeps a product such as 0.7 * 10 = 7.000000000000001 from adding an epoch
        return self.num_epochs is None or self.epoch < self.stage * self.num_epochs - 1e-9

    def radii(self) -> list[float]:
        if self.num_epochs is None and 0 < self.stage < 1:
            self._warn_once(
                'the number of epochs is not known, so the first stage holds: call timm_lt.optim.set_epoch(optimizer, '
                'epoch, num_epochs) at the start of every epoch, or choose stage=0 or 1')
        return [self.rho_head if self.first_stage else 0.0, self.rho_tail]

    def idle_because(self) -> str | None:
        head = self.has_head and self.rho_head > 0 and self.stage > 0
        tail = self.has_tail and self.rho_tail > 0
        if head or tail:
            return None
        return (
            f'rho_head={self.rho_head}, rho_tail={self.rho_tail}, stage={self.stage} and eta={self.eta} leave no part '
            f'to perturb')
