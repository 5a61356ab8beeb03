"""OpenMax: logits that move to an unknown class where an image lies far from the mean of its class.

Paper: A. Bendale and T. Boult, "Towards Open Set Deep Networks", CVPR 2016, https://arxiv.org/abs/1511.06233
Implements: Algorithms 1 and 2. Each class has a Weibull distribution of the distances of its correctly classified
training images from their mean logits. It is fitted to the largest ones. The top ``alpha`` logits of an image lose the
share ``(alpha - i) / alpha * CDF(distance)`` to the unknown class.
Source: written from the paper.
Differs from the paper / official code: distances are Euclidean; libmr's shift of the tail is left out. A class with
fewer than ``least`` correct training images has the Weibull of all tails together. Where none is correct, its mean is
that of all of its images. The score is the log odds of the known classes, which orders images as 1 - P(unknown).
"""

import torch
from torch import Tensor

from ...._validate import check_whole
from ..predictions import CHUNK_ELEMENTS
from .logit_scores import by_rows
from .registry import OpenSetScore, TrainingOutputs, register_score, training_part, training_targets


@register_score('openmax')
class OpenMax(OpenSetScore):
    """Log odds of the known classes under OpenMax.

    Args:
        tail: Largest distances of a class that its Weibull distribution is fitted to, >= 2. The paper uses 20.
        alpha: Largest logits that are revised, >= 1; at most C. The paper uses 10.
        least: Correct training images of a class below which it has the common distribution, >= 2.
    """

    fitted = True

    def __init__(self, tail: int = 20, alpha: int = 10, least: int = 5) -> None:
        self.tail = check_whole('tail', tail, 2)
        self.alpha = check_whole('alpha', alpha, 1)
        self.least = check_whole('least', least, 2)

    def fit(self, training: TrainingOutputs) -> None:
        logits = training_part(training, 'logits', 'openmax').double()
        targets = training_targets(training, logits.device)
        num_classes = logits.shape[1]
        right = logits.argmax(1) == targets
        has_right = torch.bincount(targets[right], minlength=num_classes) > 0
        used = right | ~has_right[targets]
        self.means = _class_means(logits[used], targets[used], num_classes)
        tails, there = self._tails((logits - self.means[targets]).norm(dim=1)[used], targets[used], num_classes)
        common = fit_weibull(tails[there][None], torch.ones_like(tails[there][None], dtype=torch.bool))
        enough = there.sum(1) >= self.least
        own = fit_weibull(tails, there)
        self.shape, self.scale = (torch.where(enough, of_class, of_all) for of_class, of_all in zip(own, common))

    def _tails(self, distances: Tensor, classes: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """The largest distances of each class, (C, tail), and which entries exist."""
        order = distances.argsort(descending=True)
        order = order[classes[order].argsort(stable=True)]
        counts = torch.bincount(classes, minlength=num_classes)
        place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[classes[order]]
        kept = order[place < self.tail]
        tails = distances.new_zeros(num_classes, self.tail)
        tails[classes[kept], place[place < self.tail]] = distances[kept]
        return tails, torch.arange(self.tail, device=order.device) < counts[:, None]

    def score(self, logits: Tensor | None, features: Tensor | None) -> Tensor:
        assert logits is not None
        rows = max(1, CHUNK_ELEMENTS // (logits.shape[1] * min(self.alpha, logits.shape[1])))
        return torch.cat([by_rows(part, self._log_odds) for part in logits.split(rows)])

    def _log_odds(self, z: Tensor) -> Tensor:
        z = z.double()
        alpha = min(self.alpha, z.shape[1])
        top, classes = z.topk(alpha, dim=1)
        distance = (z[:, None] - self.means[classes]).norm(dim=2)
        outside = 1 - torch.exp(-(distance / self.scale[classes]) ** self.shape[classes])
        share = (alpha - torch.arange(alpha, device=z.device)) / alpha * outside
        revised = z.scatter(1, classes, top * (1 - share))
        return revised.logsumexp(1) - (top * share).sum(1)


def _class_means(logits: Tensor, targets: Tensor, num_classes: int) -> Tensor:
    """Mean logits of each class, (C, C); the mean of all for a class without an image."""
    counts = torch.bincount(targets, minlength=num_classes)[:, None]
    sums = logits.new_zeros(num_classes, logits.shape[1]).index_add_(0, targets, logits)
    return torch.where(counts > 0, sums / counts.clamp(min=1), logits.mean(0))


def fit_weibull(values: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale, (K,), of the Weibull distributions of the largest likelihood.

    The shape k solves ``sum x^k log x / sum x^k - 1 / k = mean log x``, whose left side grows with k; it is searched
    in [0.01, 1000] by bisection.

    Args:
        values: K samples of up to M values >= 0, (K, M).
        there: Which entries exist, (K, M); a sample without any gets a meaningless result.
    """
    largest = values.amax(1, keepdim=True).clamp(min=1e-12)
    x = (values / largest).clamp(min=1e-12)
    log, count = x.log() * there, there.sum(1).clamp(min=1)
    low, high = torch.full_like(largest[:, 0], 0.01), torch.full_like(largest[:, 0], 1000.0)
    for _ in range(60):
        k = (low * high).sqrt()
        power = x ** k[:, None] * there
        below = (power * log).sum(1) / power.sum(1).clamp(min=1e-300) - 1 / k < log.sum(1) / count
        low, high = torch.where(below, k, low), torch.where(below, high, k)
    k = (low * high).sqrt()
    return k, largest[:, 0] * ((x ** k[:, None] * there).sum(1) / count) ** (1 / k)
