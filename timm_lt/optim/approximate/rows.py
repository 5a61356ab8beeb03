"""A check that every sliced layer makes."""

import torch.nn as nn
from torch import Tensor


def check_rows(m: nn.Module, sizes: tuple[int, ...], x: Tensor) -> None:
    """Raise a ValueError for a layer whose input has other rows than the samples of the batch."""
    if x.shape[0] != sum(sizes):
        raise ValueError(
            f"batchnorm='stacked' needs layers that see the {sum(sizes)} samples of the batch; {type(m).__name__} got "
            f"{x.shape[0]} rows (several views of an image, class prototypes). Use batchnorm='batch'")
