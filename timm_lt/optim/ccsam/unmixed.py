"""A batch under mixup, seen with its unmixed labels."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..engine import BatchClosure


class UnmixedClosure(BatchClosure):
    """A closure with the class of each sample as the target. Its passes never count for the statistics of the loss.

    Its passes draw the same random numbers as those of the closure.

    Args:
        closure: The batch, with soft targets or not.
        mixed_ascent: Take the targets of the closure on the first pass, from which perturbations are computed.
    """

    def __init__(self, closure: BatchClosure, mixed_ascent: bool = False) -> None:
        labels = []
        for target, label in zip(closure.targets, closure._labels):
            if not target.is_floating_point():
                labels.append(target)
            else:
                labels.append(target.argmax(1) if label is None else label.to(target.device))
        super().__init__(closure.model, closure.criterion, closure.inputs, labels, closure.accelerator)
        self._replay = closure._replay
        self.first_targets = closure.targets if mixed_ascent else self.targets

    @contextmanager
    def forward_context(self, first: bool) -> Iterator[None]:
        with super().forward_context(first=False):
            yield
