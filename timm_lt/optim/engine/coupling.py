"""A probe for layers that mix samples, with which a batch cannot pass in pieces."""

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from .._tensors import SavedBuffers
from .closure import BatchClosure


class CouplingProbe:
    """Finds out whether the whole batch has to pass for the loss of a part of it; remembers the answer.

    The answer holds until a module changes between training and evaluation mode.
    """

    def __init__(self) -> None:
        self._known: tuple[list[bool], bool] | None = None

    def __call__(self, closure: BatchClosure) -> bool:
        if getattr(closure.criterion, 'couples_samples', False):
            return True
        if closure.sharded or closure.compiled:
            # all processes gather sharded parameters together; another batch size would compile another graph
            return True
        training = [m.training for m in closure.module.modules()]
        if self._known is None or self._known[0] != training:
            self._known = training, couples_samples(closure)
        return self._known[1]


def couples_samples(closure: BatchClosure) -> bool:
    """Whether the output of a sample, or a buffer, depends on the other samples of the batch.

    BatchNorm in training mode does both. Other modules are tried on two samples. They couple if the output of one has a
    gradient with respect to the other, or if a buffer changes.
    """
    layers = [m for m in closure.module.modules() if isinstance(m, _BatchNorm)]
    if any(m.training or m.running_mean is None for m in layers):
        return True
    saved = SavedBuffers(closure.module)
    before = [(buffer, buffer._version) for _, _, buffer, _ in saved.saved]
    devices = [closure.device] if closure.device.type == 'cuda' else []
    with torch.random.fork_rng(devices):
        coupled = closure.reaches_other_samples()
    after = [buffer for module in closure.module.modules() for buffer in module._buffers.values() if buffer is not None]
    changed = len(after) != len(before) or any(
        a is not b or a._version != version for a, (b, version) in zip(after, before))
    if changed:
        saved.restore()
    # the same answer on every process
    return bool(closure.sum_over_processes(torch.tensor(float(coupled or changed))))
