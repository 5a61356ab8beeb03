"""Corrections of a trained classifier's scores: no training, and all on logarithms.

Papers: prediction re-balancing: the paper of the GALA loss (see :mod:`timm_lt.losses.gala`), Zhang et al., ICASSP 2024,
``P_ic / (sum_i P_ic)**tau`` with P the softmax matrix of a whole set of images;
logit adjustment: A. Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, https://arxiv.org/abs/2007.07314,
Eq. (9);
tau-normalisation: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217, Eq. (4);
temperature: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599,
Section 4.2.
Source: written from the papers.
Differs from the paper / official code: prediction re-balancing as published takes its column sums from the test images
themselves (transductive: the prediction for an image depends on the other test images, and a single image has none).
Here column sums may also come from training or validation images (inductive). Products become sums of logarithms; the
published quotient underflows in float32 for a class that is never predicted.

Every function on logits returns log-scores, larger is better, in float32 (float64 stays): ``scores.argmax(-1)``
predicts. They are not normalised; ``scores.softmax(-1)`` gives probabilities.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ._classifier import find_classifier, kind_of_classifier
from ._validate import check_class_counts, check_option, check_range
from .models.cosine_classifier import CosineClassifier
from .models.scaled_classifier import ScaledClassifier

__all__ = [
    'PostHoc', 'choose_tau', 'class_norms', 'fit_temperature', 'logit_adjust', 'rebalance_predictions',
    'scale_temperature', 'tau_normalize', 'tau_normalize_logits',
]

METHODS = ('rebalance', 'logit_adjust', 'tau_normalize', 'temperature')
METRICS = ('balanced_accuracy', 'accuracy')
TAUS = tuple(i / 10 for i in range(21))
FLOOR = 0.001  # of the column sums of a chosen correction: a class that is never predicted does not win every row


def rebalance_predictions(
        logits: Tensor,
        tau: float = 1.0,
        reference: Tensor | Sequence[float] | None = None,
        *,
        floor: float = 0.0,
) -> Tensor:
    """Prediction re-balancing: ``log softmax(z)_ic - tau * log s_c``, with column sums ``s_c = sum_i softmax(z)_ic``.

    Args:
        logits: Unnormalised scores, (B, C); also (C,) with a reference. Without one a single row (1, C) is no set to
            take column sums from: its scores say nothing (all are 0 at tau 1).
        tau: Strength, >= 0; 0 changes no prediction. Published: 1, and 1.4 to 1.7 on the large benchmarks.
        reference: Where the column sums are taken. None: ``logits`` itself (transductive, as published). Logits (M, C)
            of training or validation images, or their column sums (C,): inductive, works for one image.
        floor: Column sums below ``floor`` times their mean count as that; 0 is the published rule. With tau > 1 the
            published score of a class grows without bound as its column sum goes to 0, so that a class which is never
            predicted wins every row, whatever the precision (with a warning); 0.001 prevents it, and is what
            :func:`choose_tau` and :class:`PostHoc` take.

    Returns:
        Log-scores, the shape of ``logits``; the exponential is the published score. A logit of -inf stays -inf.

    Raises:
        ValueError: If shapes disagree, tau or floor is out of range, logits (C,) come without reference, or the logits
            that give the column sums are not finite.
    """
    check_range('tau', tau, 0)
    log_probs = _at_least_float32('logits', logits).log_softmax(-1)
    if reference is None:
        if logits.ndim != 2:
            raise ValueError(
                f'without a reference the column sums come from the images themselves: logits must have shape (B, C), '
                f'got {tuple(logits.shape)}; pass reference= for a single image')
        _check_finite('logits', log_probs)  # one NaN would make all column sums NaN
        log_sums = _finite(log_probs.logsumexp(0))
    else:
        log_sums = _log_column_sums(reference, logits.shape[-1])
    if floor == 0 and tau >= 1 and bool((_raise_to_floor(log_sums, FLOOR) > log_sums).any()):
        warnings.warn(
            f'some classes are almost never predicted, and the published rule with tau {tau:g} lets them win; '
            f'pass floor={FLOOR}', stacklevel=2)
    return log_probs - tau * _raise_to_floor(log_sums, floor).to(log_probs)


def logit_adjust(logits: Tensor, class_counts: Any, tau: float = 1.0) -> Tensor:
    """Logit adjustment after training: ``z_c - tau * log pi_c``.

    Args:
        logits: Unnormalised scores of a model trained with plain cross-entropy, (B, C) or (C,).
        class_counts: Training images per class, (C,), each >= 1, or a ``ClassDistribution``.
        tau: Strength, >= 0; 0 changes nothing. The paper uses 1, or chooses it on validation images.

    Returns:
        Log-scores, the shape of ``logits``.

    Raises:
        ValueError: If shapes disagree, a count is below 1, or tau is negative.
    """
    check_range('tau', tau, 0)
    logits = _at_least_float32('logits', logits)
    counts = check_class_counts(class_counts, logits.shape[-1], who='logit_adjust').double()
    return logits - tau * (counts / counts.sum()).log().to(logits)


def tau_normalize(classifier: Tensor | nn.Module, tau: float = 1.0) -> Tensor | nn.Module:
    """tau-normalisation of the classifier's weights: ``W_c / |W_c|**tau``; the bias is left out, as in the paper.

    Args:
        classifier: Weights (C, D); or a linear layer or a timm model (its ``get_classifier()``), which is changed in
            place: weights scaled, bias zero.
        tau: Strength, >= 0; 0 keeps the weights, 1 gives all classes the same norm. Chosen on validation images.

    Returns:
        New weights for a tensor; the same module for a module. A class with zero weights keeps them.

    Raises:
        TypeError: If the module has no linear classifier.
        ValueError: If tau is negative or the weights are not (C, D).
    """
    check_range('tau', tau, 0)
    if isinstance(classifier, Tensor):
        return classifier / _norms(classifier).pow(tau)[:, None].to(classifier.dtype)
    layer = _linear_classifier(classifier)
    with torch.no_grad():
        scale = _norms(layer.weight.flatten(1)).pow(tau).to(layer.weight.dtype)
        layer.weight.copy_(layer.weight / scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.zero_()
    return classifier


def tau_normalize_logits(logits: Tensor, weight: Tensor, bias: Tensor | None = None, tau: float = 1.0) -> Tensor:
    """Logits as the tau-normalised classifier gives them, from those of the classifier: ``(z_c - b_c) / |W_c|**tau``.

    Args:
        logits: Scores of the classifier, (B, C) or (C,).
        weight: Its weights, (C, D), or their norms, (C,).
        bias: Its bias, (C,), or None.
        tau: Strength, >= 0.

    Returns:
        Log-scores, the shape of ``logits``.
    """
    check_range('tau', tau, 0)
    logits = _at_least_float32('logits', logits)
    norms = _norms(weight) if weight.ndim == 2 else weight
    for name, values in (('weight', norms), ('bias', bias)):
        if values is not None and values.shape != logits.shape[-1:]:
            raise ValueError(f'{name} is of {values.numel()} classes, the logits of {logits.shape[-1]}')
    if bias is not None:
        logits = logits - bias.detach().to(logits)
    return logits / norms.to(logits).pow(tau)


def scale_temperature(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Temperature scaling: ``z / T``; changes confidences and no prediction.

    Args:
        logits: Unnormalised scores, (B, C) or (C,).
        temperature: T > 0; above 1 less confident.
    """
    return _at_least_float32('logits', logits) / check_range('temperature', temperature, 0, low_open=True)


@dataclass(frozen=True)
class PostHoc:
    """A correction with its chosen values: goes into JSON beside the model and is called on logits.

    Made by :func:`choose_tau` and :func:`fit_temperature`, or by hand.

    Attributes:
        method: One of :data:`METHODS`.
        tau: Strength; for ``'temperature'`` the temperature.
        transductive: Only ``'rebalance'``: column sums come from the images it is called on, all test images at once.
        log_column_sums: ``'rebalance'``, inductive: logarithms of the reference column sums, (C,).
        class_counts: ``'logit_adjust'``: training images per class, (C,).
        weight_norms: ``'tau_normalize'``: norms of the classifier's weights, (C,).
        bias: ``'tau_normalize'``: bias of the classifier, (C,), or None.
        floor: ``'rebalance'``: see :func:`rebalance_predictions`; 0 is the published rule.
        metric: What chose tau on validation images, or None.
        score: Its value there, or None.

    Examples:
        >>> correct = PostHoc('logit_adjust', tau=1.0, class_counts=[90, 10])
        >>> correct(torch.tensor([1.0, 0.0])).argmax().item()
        1
    """
    method: str
    tau: float = 1.0
    transductive: bool = False
    log_column_sums: tuple[float, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    weight_norms: tuple[float, ...] | None = None
    bias: tuple[float, ...] | None = None
    floor: float = FLOOR
    metric: str | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        check_option('method', self.method, METHODS)
        check_range('tau', self.tau, 0, low_open=self.method == 'temperature')
        if self.transductive and self.method != 'rebalance':
            raise ValueError(f"only method 'rebalance' can be transductive, got {self.method!r}")
        needed = {
            'rebalance': None if self.transductive else 'log_column_sums', 'logit_adjust': 'class_counts',
            'tau_normalize': 'weight_norms', 'temperature': None,
        }[self.method]
        if needed and getattr(self, needed) is None:
            raise ValueError(f'method {self.method!r} needs {needed}')
        for name in ('log_column_sums', 'class_counts', 'weight_norms', 'bias'):
            values = getattr(self, name)
            if values is not None:
                values = values.tolist() if isinstance(values, Tensor) else values
                if not all(math.isfinite(v) for v in values):
                    raise ValueError(f'{name} must be finite, got {list(values)[:8]}')
                object.__setattr__(self, name, tuple(values))

    @property
    def label(self) -> str:
        """For a report, e.g. ``'rebalance, tau 1.4, transductive'``."""
        name = 'T' if self.method == 'temperature' else 'tau'
        return f'{self.method}, {name} {self.tau:g}, {"transductive" if self.transductive else "inductive"}'

    def __call__(self, logits: Tensor) -> Tensor:
        """Log-scores of one image (C,) or of several (B, C); transductive: of the whole test set (M, C).

        Raises:
            ValueError: If shapes disagree, or a transductive correction gets a single image.
        """
        if self.method == 'rebalance':
            if self.transductive:
                if logits.ndim == 2 and len(logits) == 1:
                    raise ValueError(
                        'a transductive correction takes its column sums from the images it is called on, and a single '
                        'image has none; pass all test images at once, or use one with log_column_sums')
                return rebalance_predictions(logits, self.tau, floor=self.floor)
            if len(self.log_column_sums) != logits.shape[-1]:
                raise ValueError(
                    f'log_column_sums is of {len(self.log_column_sums)} classes, the logits of {logits.shape[-1]}')
            log_sums = _raise_to_floor(_tensor(self.log_column_sums, logits), self.floor)
            return _at_least_float32('logits', logits).log_softmax(-1) - self.tau * log_sums
        if self.method == 'logit_adjust':
            return logit_adjust(logits, self.class_counts, self.tau)
        if self.method == 'tau_normalize':
            bias = None if self.bias is None else _tensor(self.bias, logits)
            return tau_normalize_logits(logits, _tensor(self.weight_norms, logits), bias, self.tau)
        return scale_temperature(logits, self.tau)

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON; those that the method does not use are left out."""
        values = {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> 'PostHoc':
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If an entry is unknown, or one is missing.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown or 'method' not in values:
            raise ValueError(f'a post-hoc correction has the entries {known}, got {sorted(values)}')
        return cls(**values)


def choose_tau(
        method: str,
        val_logits: Tensor,
        val_targets: Tensor,
        *,
        class_counts: Any = None,
        classifier: nn.Module | None = None,
        reference: Tensor | Sequence[float] | None = None,
        transductive: bool = False,
        taus: Sequence[float] = TAUS,
        metric: str = 'balanced_accuracy',
        floor: float = FLOOR,
) -> PostHoc:
    """The correction whose tau is best on validation images; of equally good ones the smallest.

    Args:
        method: ``'rebalance'``, ``'logit_adjust'`` or ``'tau_normalize'``.
        val_logits: Logits of validation images, (M, C); never of test images.
        val_targets: Their labels, (M,).
        class_counts: ``'logit_adjust'``: training images per class, (C,).
        classifier: ``'tau_normalize'``: the classifier layer, or the timm model that has it, see :func:`class_norms`.
        reference: ``'rebalance'``: logits (K, C) of training images, or column sums (C,); None: the validation images.
        transductive: ``'rebalance'``: at test time the column sums come from the test images.
        taus: Values to try.
        metric: ``'balanced_accuracy'``: mean over the classes of the validation part of the share that is right;
            ``'accuracy'``: over images.
        floor: ``'rebalance'``: see :func:`rebalance_predictions`; 0 is the published rule.

    Returns:
        The correction, with ``metric`` and ``score``.

    Raises:
        TypeError: If tau-normalisation has no meaning for the classifier.
        ValueError: If an option is unknown or missing, shapes disagree, or logits are not finite.
    """
    check_option('method', method, METHODS[:3])
    check_option('metric', metric, METRICS)
    val_logits, val_targets = _check_labelled(val_logits, val_targets)
    taus = [float(check_range('tau', tau, 0)) for tau in taus]
    if not taus:
        raise ValueError('taus must name at least one value')
    values: dict[str, Any] = {}
    if method == 'rebalance':
        values = {'floor': floor, 'transductive': transductive}
        if transductive and reference is not None:
            raise ValueError('a transductive correction takes its column sums from the test images: pass no reference')
        if not transductive:
            values['log_column_sums'] = _log_column_sums(
                val_logits if reference is None else reference, val_logits.shape[-1])
    elif method == 'logit_adjust':
        values['class_counts'] = check_class_counts(class_counts, val_logits.shape[-1], who='choose_tau')
    else:
        if classifier is None:
            raise ValueError("method 'tau_normalize' needs classifier=, the layer or the model that has it")
        values['weight_norms'], values['bias'] = class_norms(classifier)
    best: PostHoc | None = None
    for tau in sorted(set(taus)):
        correction = PostHoc(method, tau, **values)
        score = _score(correction(val_logits), val_targets, metric)
        if best is None or score > best.score:
            best = dataclasses.replace(correction, metric=metric, score=score)
    return best


def fit_temperature(val_logits: Tensor, val_targets: Tensor) -> PostHoc:
    """The temperature with the least negative log-likelihood on validation images, within [0.01, 100].

    The likelihood is concave in 1 / T, and the sign of its slope ``mean(z_y - sum_c p_c z_c)`` is bisected.

    Args:
        val_logits: Logits of validation images, (M, C).
        val_targets: Their labels, (M,).

    Raises:
        ValueError: If shapes disagree or logits are not finite.
    """
    logits, targets = _check_labelled(val_logits, val_targets)
    logits = logits.double()
    values = logits.masked_fill(logits == float('-inf'), 0)  # a masked class has no part in the expectation
    right = logits.gather(1, targets[:, None]).mean()
    if right == float('-inf'):
        raise ValueError('some images have the logit -inf for their own class: no temperature makes that label likely')
    low, high = math.log(0.01), math.log(100.0)  # of 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        expected = ((logits * math.exp(middle)).softmax(1) * values).sum(1).mean()
        low, high = (middle, high) if bool(right >= expected) else (low, middle)
    return PostHoc('temperature', math.exp(-(low + high) / 2))


def _at_least_float32(name: str, values: Tensor) -> Tensor:
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim not in (1, 2) or not len(values):
        raise ValueError(f'{name} must be a floating-point tensor (B, C) or (C,), not empty, got {values!r:.80}')
    return values if values.dtype == torch.float64 else values.float()


def _check_finite(name: str, logits: Tensor) -> None:
    """Raise a ValueError for logits (M, C) with NaN or +inf; -inf masks a class, but not all classes of a row."""
    bad = int((~logits.amax(1).isfinite()).sum())  # NaN and +inf show in the largest entry
    if bad:
        raise ValueError(
            f'{bad} of {len(logits)} rows of {name} are not finite, as those of a network that diverged; '
            f'a correction is fitted to finite logits only')


def _tensor(values: Sequence[float], like: Tensor) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.tensor(values, dtype=dtype, device=like.device)


def _log_column_sums(reference: Tensor | Sequence[float], num_classes: int) -> Tensor:
    """Logarithms of column sums, (C,), from logits (M, C) or from the sums (C,)."""
    reference = torch.as_tensor(reference).detach()
    if reference.ndim not in (1, 2) or reference.shape[-1] != num_classes or not len(reference):
        raise ValueError(
            f'reference must be logits (M, {num_classes}) or column sums ({num_classes},), '
            f'got shape {tuple(reference.shape)}')
    reference = reference.double()
    if reference.ndim == 2:
        _check_finite('reference', reference)
        return _finite(reference.log_softmax(1).logsumexp(0))
    if not bool((reference >= 0).all()) or not bool(reference.isfinite().all()):
        raise ValueError('reference column sums must be finite and >= 0; pass logits as (M, C)')
    return reference.clamp(min=torch.finfo(torch.float64).tiny).log()


def _finite(log_sums: Tensor) -> Tensor:
    """A column sum of 0 (a class masked by -inf everywhere) as the smallest number."""
    return log_sums.masked_fill(log_sums == float('-inf'), math.log(torch.finfo(torch.float64).tiny))


def _raise_to_floor(log_sums: Tensor, floor: float) -> Tensor:
    check_range('floor', floor, 0, 1)
    if floor == 0:
        return log_sums
    return log_sums.clamp(min=log_sums.logsumexp(0) - math.log(len(log_sums)) + math.log(floor))


def _norms(weight: Tensor) -> Tensor:
    """Norm of each row, (C,); 1 for a row of zeros, which no division should change."""
    if weight.ndim != 2:
        raise ValueError(f'classifier weights must have shape (C, D), got {tuple(weight.shape)}')
    norms = torch.linalg.vector_norm(_at_least_float32('weight', weight), dim=1)
    if not bool(norms.isfinite().all()):
        raise ValueError(f'the weights of {int((~norms.isfinite()).sum())} of {len(norms)} classes are not finite')
    return _positive(norms)


def _positive(norms: Tensor) -> Tensor:
    return torch.where(norms > 0, norms, 1)


def class_norms(classifier: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Norm of each class vector and the bias, which tau-normalisation divides by and leaves out.

    A linear layer has the rows of its weight as class vectors. A classifier with one scale ``f_c`` per class
    (:class:`timm_lt.models.ScaledClassifier`, as LWS and MiSLAS leave it on a cosine classifier) has
    ``f_c * s * w_c / |w_c|``, whose norm is ``|f_c| * s``: tau-normalisation then weakens the learnt scales.

    Args:
        classifier: Classifier layer, or the timm model that has it.

    Returns:
        Norms, (C,), 1 for a class vector of zeros; bias, (C,), or None.

    Raises:
        TypeError: If tau-normalisation has no meaning for the classifier: all class vectors of a cosine classifier have
            the same norm, and DisAlign's depend on the image.
    """
    layer = _layer_of(classifier)
    if isinstance(layer, ScaledClassifier):
        scale = layer.class_scale.detach()
        if isinstance(layer.classifier, CosineClassifier):
            return _positive(scale.abs() * layer.classifier.scale), None
        norms, bias = class_norms(layer.classifier)
        return _positive(norms * scale.abs()), None if bias is None else bias * scale
    layer = _linear_classifier(layer)
    return _norms(layer.weight.detach().flatten(1)), None if layer.bias is None else layer.bias.detach()


def _layer_of(classifier: nn.Module) -> nn.Module:
    if not hasattr(classifier, 'get_classifier'):
        return classifier
    layer = find_classifier(classifier)
    if layer is None:
        raise TypeError(
            f'tau-normalisation needs a model with one classifier, got {kind_of_classifier(classifier)}; '
            f'pass the layer, or a model whose get_classifier() returns it')
    return layer


def _linear_classifier(classifier: nn.Module) -> nn.Module:
    layer = _layer_of(classifier)
    if isinstance(layer, CosineClassifier):
        raise TypeError(
            'tau-normalisation changes no prediction of a cosine classifier, because all its class vectors have the '
            'same norm; use another correction or a linear classifier')
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise TypeError(
            f'tau-normalisation needs a linear classifier, because it divides each class vector by its norm; '
            f'got {type(layer).__name__}')
    return layer


def _check_labelled(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = _at_least_float32('val_logits', logits).detach()
    targets = torch.as_tensor(targets, device=logits.device)
    if logits.ndim != 2 or targets.shape != logits.shape[:1] or targets.is_floating_point():
        raise ValueError(
            f'validation needs logits (M, C) and labels (M,), got {tuple(logits.shape)} and {tuple(targets.shape)}, '
            f'labels of {targets.dtype}')
    if int(targets.min()) < 0 or int(targets.max()) >= logits.shape[1]:
        raise ValueError(f'labels must be in [0, {logits.shape[1] - 1}]')
    _check_finite('val_logits', logits)
    return logits, targets.long()


def _score(scores: Tensor, targets: Tensor, metric: str) -> float:
    right = (scores.argmax(1) == targets).double()
    if metric == 'accuracy':
        return float(right.mean())
    images = torch.bincount(targets)
    right_of_class = torch.bincount(targets, weights=right)
    present = images > 0
    return float((right_of_class[present] / images[present]).mean())
