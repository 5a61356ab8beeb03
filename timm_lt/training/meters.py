"""Training metrics kept on the device, read only when somebody looks."""

from collections.abc import Callable

import torch
from torch import Tensor


class TrainMeter:
    """Running loss and per-class accuracy of one epoch's training batches; updating it does not wait for the device.

    Args:
        splits: Masks (C,) of the many-, medium- and few-shot classes.
        device: Where the batches are.
    """

    def __init__(self, splits: dict[str, Tensor], device: torch.device) -> None:
        self.splits = {name: mask.to(device) for name, mask in splits.items()}
        num_classes = len(next(iter(splits.values())))
        # float64 is missing on some accelerators; float32 counts are exact to 16.7 million
        self.loss = torch.zeros((), device=device)
        self.steps = 0
        self.seen = torch.zeros(num_classes, device=device)
        self.right = torch.zeros(num_classes, device=device)

    @torch.no_grad()
    def update(self, loss: Tensor, outputs: list[Tensor], labels: list[Tensor]) -> None:
        """Add one step: its loss, and the logits and hard labels of its micro-batches."""
        self.loss += loss.to(self.loss)
        self.steps += 1
        for logits, label in zip(outputs, labels):
            right = (logits.argmax(dim=1) == label).to(self.right)
            self.seen.index_add_(0, label, torch.ones_like(right))
            self.right.index_add_(0, label, right)

    def compute(self, reduce: Callable[[Tensor], Tensor] | None = None) -> dict[str, float | None]:
        """Training metrics: ``train_loss``, and in percent ``train_top1 train_balanced_accuracy train_many ...``.

        A split without classes or images is None; the balanced accuracy is the mean over the classes with images.

        Args:
            reduce: Sums a tensor over processes; None on one process.
        """
        values = torch.cat([self.loss[None], self.loss.new_tensor([float(self.steps)]), self.seen, self.right])
        if reduce is not None:
            values = reduce(values)
        loss, steps, counts = values[0], values[1], values[2:]
        seen, right = counts.chunk(2)
        result: dict[str, float | None] = {'train_loss': float(loss / steps.clamp(min=1))}
        result['train_top1'] = _percent(right.sum(), seen.sum())
        accuracy = right / seen.clamp(min=1)
        result['train_balanced_accuracy'] = _percent(accuracy.sum(), (seen > 0).sum())
        for name, mask in self.splits.items():
            present = mask & (seen > 0)
            result[f'train_{name}'] = _percent(accuracy[present].sum(), present.sum())
        return result

    def reset(self) -> None:
        self.steps = 0
        for total in (self.loss, self.seen, self.right):
            total.zero_()

    def state_dict(self) -> dict:
        return {'loss': self.loss.clone(), 'steps': self.steps, 'seen': self.seen.clone(), 'right': self.right.clone()}

    def load_state_dict(self, state: dict) -> None:
        self.steps = state['steps']
        for name in ('loss', 'seen', 'right'):
            getattr(self, name).copy_(state[name])


def _percent(part: Tensor, whole: Tensor) -> float | None:
    return float(100 * part / whole) if float(whole) > 0 else None
