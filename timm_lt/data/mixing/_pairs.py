"""Two loaders side by side, for mixings whose partners another sampler draws."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor


class PairedLoader:
    """Batches of (images, labels, partner images, partner labels).

    Args:
        loader: Training loader, see :func:`timm_lt.data.create_train_loader`.
        partners: Loader of the same batch sizes whose sampler draws the partners.

    Raises:
        ValueError: If the loaders differ in steps.
    """

    def __init__(self, loader: Any, partners: Any) -> None:
        if len(loader) != len(partners):
            raise ValueError(
                f'both loaders must have the same number of steps, got {len(loader)} and {len(partners)}; give the '
                f'samplers the same num_samples')
        self.loader = loader
        self.partners = partners

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch of the next iteration and the step that it starts with."""
        self.loader.set_epoch(epoch, start_step)
        self.partners.set_epoch(epoch, start_step)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for (images, label), (partner_images, partner_label) in zip(self.loader, self.partners, strict=True):
            yield images, label, partner_images, partner_label
