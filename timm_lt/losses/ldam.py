"""LDAM: label-distribution-aware margins.

Paper: K. Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019,
https://arxiv.org/abs/1906.07413
Implements: Eq. (12), margins ``m_c`` proportional to ``n_c**-1/4``. Eq. (13), the softmax loss with the margin on the
class of the sample. Both are on scaled cosines.
Source: written from the paper.
Differs from the paper / official code: no. The largest margin is ``max_margin``, as in the official code. Deferred
re-weighting (Algorithm 1) is :class:`timm_lt.losses.DeferredReweighting`.
"""

from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_range
from ._base import LongTailLoss
from ._terms import margin_cross_entropy, reduce

__all__ = ['ldam_loss', 'ldam_margins']


def ldam_margins(class_counts: ClassCounts, max_margin: float = 0.5) -> Tensor:
    """Margin of each class, (C,), float64: ``max_margin * (n_min / n_c)**(1/4)``.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        max_margin: Margin of the smallest class, in units of the cosine, >= 0; 0 is plain cross-entropy.
    """
    counts = check_class_counts(class_counts, who='ldam_margins').double()
    return max_margin * (counts.min() / counts) ** 0.25


def ldam_loss(
        cosine: Tensor,
        target: Tensor,
        margins: Tensor,
        scale: float = 30.0,
        reduction: str = 'mean',
) -> Tensor:
    """Cross-entropy on ``scale * (cos - m_y * onehot(y))``.

    Args:
        cosine: Cosines of features and class vectors, in [-1, 1], (B, C), not scaled.
        target: Class indices (B,), or soft targets (B, C): the expectation over the class that gets its margin.
        margins: Margin of each class, (C,), in units of the cosine.
        scale: Factor on the cosines, > 0. The paper uses 30.
        reduction: 'none' -> (B,), 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    return reduce(margin_cross_entropy(scale * cosine, target, scale * margins), reduction, target)


@register_loss('ldam', paper='Cao et al., NeurIPS 2019', needs=('class_counts',))
class LDAMLoss(LongTailLoss):
    """Cross-entropy with a margin that grows as classes get smaller, on scaled cosines, Cao et al., Eq. (13).

    The logits must be plain cosines in [-1, 1], because the loss scales them. The classifier must normalise features
    and class vectors and must not scale.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        max_margin: Margin of the smallest class, in units of the cosine, >= 0. The paper's code uses 0.5.
        scale: Factor on the cosines, > 0.
        reduction, class_weight: See :class:`LongTailLoss`.

    Examples:
        >>> loss = LDAMLoss([500, 50, 5])
        >>> loss(torch.tensor([[0.9, 0.1, -0.3]]), torch.tensor([0])).shape
        torch.Size([])
    """

    cosine_classifier = True

    margins: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            max_margin: float = 0.5,
            scale: float = 30.0,
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        class_counts = check_class_counts(class_counts, who=type(self).__name__)
        super().__init__(reduction, class_weight, len(class_counts))
        check_range('max_margin', max_margin, 0)
        self.scale = check_range('scale', scale, 0, low_open=True)
        self.register_buffer('margins', ldam_margins(class_counts, max_margin))

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return ldam_loss(logits, target, self.margins, self.scale, reduction='none')
