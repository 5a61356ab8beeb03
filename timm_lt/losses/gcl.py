"""GCL: Gaussian clouded logits.

Paper: M. Li et al., "Long-tailed Visual Recognition via Gaussian Clouded Logit Adjustment", CVPR 2022,
https://arxiv.org/abs/2305.11733
Implements: the clouded cosine logits ``z_c - k * |eps_c| * delta_c`` on scaled cosines, with ``delta_c`` growing as
classes get smaller. Also the classifier stage with margin and focusing factor.
Source: written from the paper.
Differs from the paper / official code: ``delta_c`` is scaled to [0, 1] and the noise is clamped to [-1, 1], both as in
the official code. With equal class sizes the official code gives 0/0; here no logit is clouded then.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_range
from ._base import LongTailLoss
from ._terms import margin_cross_entropy, margin_losses, reduce

__all__ = ['gcl_loss']


def gcl_loss(
        cosine: Tensor,
        target: Tensor,
        cloud: Tensor,
        noise: Tensor | None,
        scale: float = 30.0,
        noise_factor: float = 0.5,
        margin: float = 0.0,
        focal_gamma: float = 0.0,
        reduction: str = 'mean',
) -> Tensor:
    """Cross-entropy on ``scale * (cos - noise_factor * |noise| * cloud - margin * onehot(y))``.

    Args:
        cosine: Cosines of features and class vectors, in [-1, 1], (B, C), not scaled.
        target: Class indices (B,), or soft targets (B, C): the expectation over the class.
        cloud: Size of the cloud of each class in [0, 1], (C,).
        noise: Draws, (B, C), clamped here to [-1, 1]; None for no noise.
        scale: Factor on the cosines, > 0.
        noise_factor: Strength of the noise, >= 0.
        margin: Margin of the sample's own class, in units of the cosine, >= 0.
        focal_gamma: Exponent of the factor ``(1 - p_y)``, taken as a constant, >= 0; 0 switches it off.
        reduction: 'none' -> (B,), 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    if noise is not None:
        cosine = cosine - noise_factor * noise.clamp(-1, 1).abs() * cloud.to(cosine.dtype)
    logits = scale * cosine
    if target.is_floating_point():
        losses = margin_losses(logits, scale * margin)
        if focal_gamma:
            losses = (-torch.expm1(-losses.detach())) ** focal_gamma * losses
        return reduce((target * losses).sum(1), reduction)
    if margin:
        losses = margin_cross_entropy(logits, target, torch.full_like(cloud, scale * margin))
    else:
        losses = F.cross_entropy(logits, target, reduction='none')
    if focal_gamma:
        losses = (-torch.expm1(-losses.detach())) ** focal_gamma * losses
    return reduce(losses, reduction, target)


@register_loss('gcl', paper='Li et al., CVPR 2022', needs=('class_counts',))
class GCLLoss(LongTailLoss):
    """Cross-entropy on cosines that are lowered at random, the more the smaller the class.

    The logits must be plain cosines in [-1, 1], because the loss scales them. The classifier must normalise features
    and class vectors and must not scale. Draws come from torch's global generator of the logits' device, as those of
    dropout do. In evaluation mode there is no noise. Every pass draws new numbers, also the further passes that a
    sharpness-aware optimizer makes over one batch.

    The paper's second stage (classifier only, class-balanced sampling) is ``margin=0.1, scale=20, focal_gamma=1``.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        scale: Factor on the cosines, > 0.
        noise_factor: Strength of the noise, >= 0; 0 is plain cosine softmax. The official CIFAR scripts use 0.5.
        noise_std: Standard deviation of the noise before it is clamped to [-1, 1], > 0.
        margin: Margin of the sample's own class, in units of the cosine, >= 0.
        focal_gamma: Exponent of the focusing factor, >= 0; 0 switches it off.
        reduction, class_weight: See :class:`LongTailLoss`.
    """

    cosine_classifier = True

    cloud: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            scale: float = 30.0,
            noise_factor: float = 0.5,
            noise_std: float = 1 / 3,
            margin: float = 0.0,
            focal_gamma: float = 0.0,
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        logs = check_class_counts(class_counts, who=type(self).__name__).double().log()
        super().__init__(reduction, class_weight, len(logs))
        self.scale = check_range('scale', scale, 0, low_open=True)
        self.noise_factor = check_range('noise_factor', noise_factor, 0)
        self.noise_std = check_range('noise_std', noise_std, 0, low_open=True)
        self.margin = check_range('margin', margin, 0)
        self.focal_gamma = check_range('focal_gamma', focal_gamma, 0)
        # (log n_max - log n_c) / (log n_max - log n_min); zeros for equal class sizes
        self.register_buffer('cloud', (logs.max() - logs) / (logs.max() - logs.min()).clamp_min(1e-12))

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        noise = None
        if self.training and self.noise_factor:
            noise = torch.randn_like(logits) * self.noise_std
        return gcl_loss(
            logits, target, self.cloud, noise, self.scale, self.noise_factor, self.margin, self.focal_gamma,
            reduction='none')
