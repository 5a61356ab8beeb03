"""Weights averaged over the last epochs of a run.

Paper: P. Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018,
https://arxiv.org/abs/1803.05407
"""

import copy
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim.swa_utils import get_swa_multi_avg_fn

from .._unwrap import finished_model, plain_model
from .trainer import Callback, Trainer


class LastEpochs(Callback):
    """Mean of the weights at the ends of the last epochs.

    Args:
        last: Number of epochs, > 0.

    Attributes:
        weights: The mean of each parameter of the network so far.
        epochs: Epochs that it holds.
    """

    def __init__(self, last: int) -> None:
        self.last = last
        self.weights: list[Tensor] = []
        self.epochs = 0

    @torch.no_grad()
    def on_epoch_end(self, trainer: Trainer, epoch: int) -> dict[str, Any]:
        if epoch >= trainer.epochs - self.last:
            params = list(plain_model(trainer.model).parameters())
            self.weights = [w.to(p.device) for w, p in zip(self.weights, params)] or [p.clone() for p in params]
            if self.epochs > 0:
                get_swa_multi_avg_fn()(self.weights, params, self.epochs)
            self.epochs += 1
        return {}

    @torch.no_grad()
    def averaged(self, trainer: Trainer) -> nn.Module:
        """A copy of the trained network with the mean weights."""
        model = copy.deepcopy(finished_model(trainer.model))
        for p, w in zip(model.parameters(), self.weights):
            p.copy_(w)
        return model

    def state_dict(self) -> dict[str, Any]:
        return {'weights': self.weights, 'epochs': self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.weights, self.epochs = state['weights'], state['epochs']
