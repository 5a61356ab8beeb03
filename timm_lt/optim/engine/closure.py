"""Loss of one batch or window of micro-batches, as a whole or in parts, in any number of passes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ..._unwrap import unwrap_model
from ...losses._criterion import ignore_index_of, mean_normalizer, sample_losses, statistics
from ...losses._targets import IGNORE_INDEX
from .._tensors import add_up, broadcast_tensors, is_sharded
from .random import RandomReplay
from .samples import class_labels, logits_of, take_samples

__all__ = ['BatchClosure']

_sharded: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _is_sharded(model: nn.Module) -> bool:
    # a model is sharded before its optimizer exists, so the first answer holds for all of its steps
    if model not in _sharded:
        _sharded[model] = is_sharded(model)
    return _sharded[model]


def check_ddp(ddp: DistributedDataParallel) -> None:
    """Raise a ValueError for a DDP wrapper that cannot pass a batch more than once."""
    if ddp.static_graph:
        raise ValueError(
            'DistributedDataParallel(static_graph=True) breaks when a batch is passed more than once; build it with '
            'static_graph=False')


class BatchClosure:
    """The loss of one batch (or of one window of micro-batches) under a model.

    A call clears the gradients, runs forward and backward, and returns the detached mean loss, as every torch closure
    does. ``optimizer.step(closure)`` therefore works with every optimizer. Sharpness-aware optimizers ask it for
    further passes and for the gradients of parts of the batch.

    The loss is normalised over the whole window and over all processes. A micro-batch counts by its samples, and a
    class-weighted loss divides by the sum of the weights in the window. Samples that the loss ignores (label -100) do
    not count. A window of several micro-batches has the loss 0 if all samples are ignored. Gradients are averaged
    across processes by DDP, once per window, or by FSDP2. All passes of a step draw the same random numbers. The
    statistics that a loss gathers (``losses/_base.py``) are staged on the first pass and held on all others. The step
    commits them at its end, and so does a call of the closure.

    Args:
        model: The model: plain, compiled, in ``DistributedDataParallel`` or sharded by ``fully_shard``; as prepared by
            Accelerate or not.
        criterion: The loss, ``criterion(output, target)``, with a mean as reduction. Methods that split the batch need
            one value per sample of it, see :func:`timm_lt.losses.sample_losses`.
        input: Input of the model: a tensor, or nested tuples and dicts of tensors, with samples in dimension 0. A list
            holds the micro-batches of one accumulation window.
        target: Targets of ``input``, (B,) or soft (B, C); a list for a list.
        accelerator: Gives autocast and the loss scale. None: neither.
        labels: Class of each sample, (B,), where the target is soft (mixup: the unmixed labels); a list for a list.
            Default: the target, or its argmax if soft.

    Attributes:
        output: Detached logits of the first pass, one tensor per micro-batch; empty before it.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'sam', lr=0.1)
        >>> closure = BatchClosure(model, criterion, images, target)
        >>> result = timm_lt.optim.optimizer_step(optimizer, closure, clip_grad=1.0)

    Raises:
        ValueError: If lists differ in length or DDP has a static graph. Also if Accelerate divides the loss by its own
            number of accumulation steps.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: Any,
            input: Any,
            target: Any,
            accelerator: Any = None,
            *,
            labels: Any = None,
    ) -> None:
        self.model = model
        self.criterion = criterion
        self.accelerator = accelerator
        self.module, self.ddp, self.compiled = unwrap_model(model)
        self.inputs = input if isinstance(input, list) else [input]
        self.targets = self.first_targets = target if isinstance(target, list) else [target]
        self._labels = labels if isinstance(labels, list) else [labels] * len(self.targets)
        if not len(self.inputs) == len(self.targets) == len(self._labels) or not self.inputs:
            raise ValueError(
                f'input, target and labels must hold the same number of micro-batches, at least one, got '
                f'{len(self.inputs)}, {len(self.targets)} and {len(self._labels)}')
        for data, target, label in zip(self.inputs, self.targets, self._labels):
            if isinstance(data, Tensor) and data.shape[0] != target.shape[0]:
                raise ValueError(
                    f'input and target must hold the same samples, got {data.shape[0]} inputs and {target.shape[0]} '
                    f'targets')
            if label is not None and label.shape != target.shape[:1]:
                raise ValueError(f'labels must have shape ({target.shape[0]},), got {tuple(label.shape)}')
        self.sharded = _is_sharded(self.module)
        self.output: list[Tensor] = []
        self._replay = RandomReplay(self.device)
        self._normalizer: Tensor | None = None
        self._counted = False
        self.check_wrappers()

    def check_wrappers(self) -> None:
        """Raise a ValueError for a model or an accelerator under which a batch cannot pass more than once."""
        if self.ddp is not None:
            check_ddp(self.ddp)
        kinds = {type(m).__name__ for m in (self.model, self.module)} & {'FullyShardedDataParallel', 'DeepSpeedEngine'}
        if kinds:
            raise ValueError(
                f'BatchClosure: {kinds.pop()} is not supported; use fully_shard (Accelerate: '
                f'FullyShardedDataParallelPlugin(fsdp_version=2)) or DistributedDataParallel')
        steps = getattr(self.accelerator, 'gradient_accumulation_steps', 1)
        if steps != 1:
            raise ValueError(
                f'BatchClosure: Accelerator(gradient_accumulation_steps={steps}) would divide every loss by {steps}; '
                f'leave it at 1 and hand over the micro-batches of a window as lists')

    # Read by optimizers

    @property
    def scaler(self) -> Any:
        """The gradient scaler in force, or None."""
        scaler = getattr(self.accelerator, 'scaler', None)
        return scaler if scaler is not None and scaler.is_enabled() else None

    def grad_scale(self) -> Tensor | None:
        """The factor that gradients carry under a gradient scaler, else None."""
        if self.scaler is None:
            return None
        return self.scaler.scale(torch.ones((), device=self.device))

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.module.parameters()), torch.device('cpu'))

    @property
    def distributed(self) -> bool:
        """Whether gradients are averaged over processes."""
        return self.ddp is not None or self.sharded

    @property
    def process_group(self) -> Any:
        return self.ddp.process_group if self.ddp is not None else None

    @property
    def world_size(self) -> int:
        return dist.get_world_size(self.process_group) if self.distributed else 1

    def broadcast_buffers(self) -> None:
        """Copy the buffers of the first process to all, as DDP does before a forward pass."""
        if self.ddp is not None and self.ddp.broadcast_buffers:
            broadcast_tensors(list(self.module.buffers()), self.process_group)

    def labels(self) -> list[Tensor]:
        """Class of each sample of each micro-batch, on the CPU; IGNORE_INDEX for ignored samples."""
        return class_labels(self.targets, self._labels, ignore_index_of(self.criterion))

    def part_table(self, part_weights: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Weight of each sample in each part, (P, B) for each micro-batch; ignored samples are in no part.

        Args:
            part_weights: Gives the weights for the classes of the samples, (B,).
        """
        table = []
        for label in self.labels():
            ignored = label == IGNORE_INDEX
            table.append(part_weights(label.masked_fill(ignored, 0)).masked_fill(ignored, 0))
        return table

    def sum_over_processes(self, values: Tensor) -> Tensor:
        """The sum over processes of a small CPU tensor, itself in a single process."""
        if not self.distributed or self.world_size == 1:
            return values
        moved = values.to(self.device)
        dist.all_reduce(moved, group=self.process_group)
        return moved.to(values.device)

    def on_any_process(self, *flags: bool) -> list[bool]:
        """For each flag whether it is true on some process."""
        return [bool(n) for n in self.sum_over_processes(torch.tensor(flags, dtype=torch.float32))]

    def normalizer(self) -> Tensor:
        """Divisor of the sum of the per-sample values: the normaliser of the window, averaged over processes.

        Gradients are averaged over processes too, so that the result is the gradient of the joint batch's mean.
        """
        if self._normalizer is None:
            total = add_up(mean_normalizer(self.criterion, target) for target in self.targets)
            if self.distributed and self.world_size > 1:
                total = total.to(self.device, copy=True)
                dist.all_reduce(total, group=self.process_group)
                total = total / self.world_size
            self._normalizer = total + (total == 0)  # nothing counts: the loss is 0, not 0 / 0
        return self._normalizer

    # Passes

    def zero_grad(self) -> None:
        for p in self.module.parameters():
            p.grad = None

    def begin_step(self) -> None:
        """Forget the output and the random numbers of an earlier step on this batch."""
        self.output = []
        self._replay = RandomReplay(self.device)

    def __call__(self) -> Tensor:
        self.begin_step()
        loss = self.plain_gradients()
        self.settle_statistics(True)
        return loss

    def plain_gradients(self) -> Tensor:
        """A call of the closure without the commit of the statistics that its loss staged."""
        self.zero_grad()
        with torch.enable_grad():
            return self.mean_pass()

    def settle_statistics(self, taken: bool) -> None:
        """Commit the statistics that the loss staged on the first pass, once per batch; drop them without a step."""
        if not hasattr(self.criterion, 'commit_statistics'):
            return
        if taken and not self._counted:
            self.criterion.commit_statistics()
            self._counted = True
        else:
            self.criterion.discard_statistics()

    def mean_pass(self, first: bool = True, sync: bool = True) -> Tensor:
        """Forward and backward of the mean loss over the window; gradients add to ``.grad``.

        Args:
            first: Whether this is the pass whose output and statistics count.
            sync: Average the gradients over processes with the last micro-batch.

        Returns:
            The detached loss; its mean over processes is the mean of the joint batch.
        """
        losses = []
        for i in range(len(self.targets)):
            with self.gradient_sync(sync and i == len(self.targets) - 1):
                loss = self._mean_loss(i, first)
                self.backward(loss)
            losses.append(loss.detach())
        return add_up(losses)

    def _mean_loss(self, i: int, first: bool) -> Tensor:
        target = self.targets[i]
        with self.forward_context(first), self.replay(i):
            output = self.model(self.inputs[i])
            if first:
                self.output.append(logits_of(output).detach())
            alone = len(self.targets) == 1 and not self.distributed
            # a micro-batch whose samples are all ignored has no mean
            if getattr(self.criterion, 'reduction', 'mean') == 'mean' and (
                    alone or ignore_index_of(self.criterion) is None):
                loss = self.criterion(output, target)
                if alone:
                    return loss
                share = mean_normalizer(self.criterion, target).to(loss.dtype) / self.normalizer().to(loss.dtype)
                return loss * share
            values, _ = sample_losses(self.criterion, output, target)
            return values.sum() / self.normalizer().to(values.dtype)

    def sample_values(self, i: int, first: bool, index: Tensor | None = None, bare: bool = False) -> Tensor:
        """Forward of micro-batch ``i``, or of its samples ``index``: one value per sample, with the graph.

        With ``index`` or ``bare`` without the wrappers of the model: they may wait for processes that do not pass.
        """
        input, target = self.inputs[i], (self.first_targets if first else self.targets)[i]
        if index is not None:
            input, target = take_samples(input, index), take_samples(target, index)
        with self.forward_context(first), self.replay(i, index):
            output = self.module(input) if bare or index is not None else self.model(input)
            if first:
                self._keep_output(i, logits_of(output).detach(), index)
            return sample_losses(self.criterion, output, target)[0]

    def _keep_output(self, i: int, logits: Tensor, index: Tensor | None) -> None:
        if index is None:
            self.output.append(logits)
            return
        if len(self.output) == i:
            self.output.append(logits.new_zeros(self.targets[i].shape[0], *logits.shape[1:]))
        self.output[i].index_copy_(0, index.to(logits.device), logits)

    def reaches_other_samples(self) -> bool:
        """Whether the output of a sample depends on another sample, by the gradient, tried on two samples.

        False for an input without a gradient: whole numbers, nested tensors, a batch of one.
        """
        samples = torch.arange(min(2, self.targets[0].shape[0]))
        input = take_samples(self.inputs[0], samples)
        differentiable = isinstance(input, Tensor) and input.is_floating_point() and len(input) == 2
        if differentiable:
            input.requires_grad_()
        with torch.set_grad_enabled(differentiable), self.forward_context(False):
            # the model may write into its input
            logits = logits_of(self.module(input.clone() if differentiable else input))[0].float().flatten()
            if not logits.requires_grad:
                return False
            weights = torch.linspace(1, 2, len(logits), device=logits.device)
            (gradient,) = torch.autograd.grad((logits * weights).sum(), input, allow_unused=True)
        return gradient is not None and bool((gradient[1] != 0).any())

    def replay(self, i: int, index: Tensor | None = None, what: str = 'forward') -> AbstractContextManager:
        """Context of a pass of micro-batch ``i``, or of its samples ``index``: random numbers as at its first pass.

        Args:
            i: Which micro-batch.
            index: Samples that pass, (B',), on the CPU; None: all.
            what: Passes of different kinds are recorded apart.
        """
        return self._replay((what, i, None if index is None else index.numpy().tobytes()))

    @property
    def drew_random_numbers(self) -> bool:
        """Whether a pass of this step drew random numbers on this process."""
        return self._replay.drawn

    @contextmanager
    def forward_context(self, first: bool) -> Iterator[None]:
        """Autocast and the treatment of the loss's statistics, which count on the first pass."""
        autocast = self.accelerator.autocast() if self.accelerator is not None else nullcontext()
        with autocast, statistics(self.criterion, 'staged' if first else 'hold'):
            yield

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        if self.accelerator is not None:
            self.accelerator.backward(loss, retain_graph=retain_graph)
        else:
            loss.backward(retain_graph=retain_graph)

    def gradient_sync(self, sync: bool) -> Any:
        """Context of a forward and its backward: whether DDP averages the gradients (FSDP2 always does)."""
        return self.ddp.no_sync() if self.ddp is not None and not sync else nullcontext()
