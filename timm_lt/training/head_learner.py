"""Training of a classifier on a frozen network: what stays frozen, and a step of the head."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from timm.utils import dispatch_clip_grad
from torch import Tensor

from ..optim import StepResult
from ..two_stage import SecondStageMethod, batchnorm_layers, classifier_inputs
from .learner import Learner
from .trainer import Callback, Trainer
from .windows import Window


class FrozenModel(Callback):
    """Keeps the frozen model in the method's mode, and its BatchNorm statistics, where they move, in the checkpoint."""

    def __init__(self, model: nn.Module, method: SecondStageMethod) -> None:
        self.model = model
        self.method = method

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        self.method.set_mode(self.model)

    def average(self, accelerator: Accelerator) -> None:
        """Average the statistics over processes, which saw different images."""
        if self.method.caches_features or accelerator.num_processes == 1:
            return
        for layer in batchnorm_layers(self.model):
            for name in ('running_mean', 'running_var'):
                buffer: Tensor = getattr(layer, name)
                buffer.copy_(accelerator.reduce(buffer, reduction='mean'))

    def _buffers(self) -> dict[str, Tensor]:
        if self.method.caches_features:
            return {}
        return {f'{i}.{n}': b for i, m in enumerate(batchnorm_layers(self.model)) for n, b in m.named_buffers()}

    def state_dict(self) -> dict[str, Any]:
        return {name: buffer.clone() for name, buffer in self._buffers().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, buffer in self._buffers().items():
            buffer.copy_(state[name])


@dataclass
class HeadLearner(Learner):
    """Only the method's head is trained and checkpointed; ``model`` is the prepared method.

    Attributes:
        frozen: The frozen network and its method.
        cached: Batches hold features instead of images.
    """
    frozen: FrozenModel = field(kw_only=True)
    cached: bool = field(kw_only=True)

    @property
    def eval_model(self) -> nn.Module:
        """The network with the head in place of its classifier."""
        return self.frozen.model

    def finish_epoch(self) -> None:
        self.frozen.average(self.accelerator)

    def step(self, window: Window, progress: float) -> tuple[StepResult, list[Tensor]]:
        accelerator, method = self.accelerator, self.frozen.method
        total, outputs = torch.zeros((), device=accelerator.device), []
        # the mean over the micro-batches of all processes; gradients are averaged over processes afterwards
        shares = torch.stack([method.normalizer(target, self.criterion) for target in window.targets]).float()
        shares = shares / accelerator.reduce(shares.sum(), reduction='mean')
        for i, (features, target) in enumerate(zip(window.inputs, window.targets)):
            last = i == len(window.inputs) - 1
            with accelerator.autocast():
                if not self.cached:
                    features = classifier_inputs(self.frozen.model, features)
                with torch.no_grad():
                    outputs.append(method.logits(features))
            with torch.enable_grad() if last else accelerator.no_sync(self.model):
                loss = self.model(features, target, self.criterion, progress) * shares[i]
                accelerator.backward(loss)
            total = total + loss.detach()
        if self.clip_grad is not None:
            accelerator.unscale_gradients(self.optimizer)
            dispatch_clip_grad(method.trained_parameters(), value=self.clip_grad, mode=self.clip_mode)
        self.optimizer.step()
        skipped = bool(getattr(self.optimizer, 'step_was_skipped', False))
        method.project()
        self.optimizer.zero_grad()
        return StepResult(total, skipped), outputs
