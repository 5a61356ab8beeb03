"""Base of the fine-tuning methods, and the layers of a network by depth."""

from collections.abc import Iterable

import torch.nn as nn
from timm.models import group_parameters
from torch import Tensor

from .._classifier import find_classifiers

__all__ = ['FinetuneMethod', 'default_rank', 'layer_groups']


class FinetuneMethod:
    """Base of the fine-tuning methods: a choice of the parameters that are trained beside the classifier.

    ``trains_statistics``: BatchNorm layers whose parameters are trained use the statistics of the batch and go on
    averaging them. All other BatchNorm layers keep the statistics of the pretraining and stay in evaluation mode.
    """

    trains_statistics = False

    def tune(self, model: nn.Module) -> Iterable[Tensor]:
        """Add layers to the model where the method has some; returns the parameters to train.

        The classifier need not be among them: it is always trained.

        Raises:
            ValueError: If the method has no meaning for the model, which is then unchanged.
        """
        raise TypeError(f'{type(self).__name__} must define tune(model)')


def layer_groups(model: nn.Module) -> list[list[str]]:
    """Names of the parameters of each block of a timm model, from the input to the output.

    The stem and the classifier are in no block; a norm after the last block belongs to it.

    Raises:
        ValueError: If the model does not say which parameters form a block.
    """
    matcher = getattr(model, 'group_matcher', None)
    if matcher is None:
        raise ValueError(
            f'{type(model).__name__} has no group_matcher(), so its blocks are not known; use a network of timm')
    head = {id(p) for layer in find_classifiers(model) for p in layer.parameters()}
    body = {name for name, p in model.named_parameters() if id(p) not in head}
    groups = group_parameters(model, matcher(coarse=False))
    in_body = [[name for name in groups[depth] if name in body] for depth in sorted(groups)]
    return [group for group in in_body if group][1:]


def default_rank(model: nn.Module, per_layer: int) -> int:
    """LIFT's rule for C classes and L blocks, the power of two at or below ``C / (per_layer L)``, at least 1."""
    share = int(getattr(model, 'num_classes', 0)) // (per_layer * max(1, len(layer_groups(model))))
    return 1 << max(0, share.bit_length() - 1)
