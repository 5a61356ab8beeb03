"""Nothing is fitted to values that are not finite; a class masked by -inf is no such value."""

import math

import pytest
import torch

from timm_lt.models import CosineClassifier, ScaledClassifier
from timm_lt.posthoc import (
    PostHoc,
    choose_tau,
    class_norms,
    fit_temperature,
    rebalance_predictions,
    tau_normalize,
)

COUNTS = [50, 20, 10, 5]


def labelled_logits(rows=200):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 4, (rows,), generator=generator)
    logits = torch.randn(rows, 4, generator=generator)
    logits[torch.arange(rows), targets] += 2
    return logits, targets


FITS = {
    'temperature': fit_temperature,
    'rebalance': lambda z, y: choose_tau('rebalance', z, y),
    'rebalance transductive': lambda z, y: choose_tau('rebalance', z, y, transductive=True),
    'rebalance given tau': lambda z, y: choose_tau('rebalance', z, y, taus=[1.0]),
    'rebalance reference': lambda z, y: choose_tau('rebalance', *labelled_logits(), reference=z),
    'rebalance column sums': lambda z, y: choose_tau('rebalance', *labelled_logits(), reference=z.softmax(1).sum(0)),
    'test images': lambda z, y: rebalance_predictions(z),
    'logit_adjust': lambda z, y: choose_tau('logit_adjust', z, y, class_counts=COUNTS),
    'tau_normalize': lambda z, y: choose_tau('tau_normalize', z, y, classifier=torch.nn.Linear(3, 4)),
}


@pytest.mark.parametrize('rows', [1, 200])
@pytest.mark.parametrize('value', [math.nan, math.inf])
@pytest.mark.parametrize('fit', FITS)
def test_rows_that_are_not_finite_are_refused_and_counted(fit, value, rows):
    logits, targets = labelled_logits()
    FITS[fit](logits, targets)
    logits[:rows, 1] = value
    words = 'must be finite' if fit == 'rebalance column sums' else f'{rows} of 200 rows of .* are not finite'
    with pytest.raises(ValueError, match=words):
        FITS[fit](logits, targets)


def test_row_of_minus_infinity_is_refused():
    logits, targets = labelled_logits()
    logits[3] = -math.inf
    with pytest.raises(ValueError, match='1 of 200 rows'):
        fit_temperature(logits, targets)


def test_temperature_with_a_masked_class_is_that_without_the_class():
    logits, targets = labelled_logits()
    masked = torch.cat([logits, torch.full((200, 1), -math.inf)], 1)
    assert fit_temperature(masked, targets).tau == pytest.approx(fit_temperature(logits, targets).tau)
    with pytest.raises(ValueError, match='own class'):
        fit_temperature(masked, torch.full((200,), 4))


def test_class_vectors_that_are_not_finite_are_refused():
    layer = torch.nn.Linear(3, 4)
    with torch.no_grad():
        layer.weight[2, 0] = math.nan
    for use in (class_norms, tau_normalize, lambda m: tau_normalize(m.weight)):
        with pytest.raises(ValueError, match='weights of 1 of 4 classes are not finite'):
            use(layer)
    scaled = ScaledClassifier(CosineClassifier(3, 4))
    with torch.no_grad():
        scaled.class_scale[1] = math.inf
    with pytest.raises(ValueError, match='weights of 1 of 4 classes are not finite'):
        class_norms(scaled)


@pytest.mark.parametrize('values', [
    {'method': 'rebalance', 'log_column_sums': [0.0, math.nan]},
    {'method': 'tau_normalize', 'weight_norms': [math.inf, 1.0]},
    {'method': 'tau_normalize', 'weight_norms': [1.0, 1.0], 'bias': [0.0, math.nan]},
])
def test_stored_values_that_are_not_finite_are_refused(values):
    with pytest.raises(ValueError, match='must be finite'):
        PostHoc.from_dict(values)


def test_scaled_classifier_norms_are_those_of_the_folded_layer_and_follow_the_learnt_scale():
    scaled = ScaledClassifier(torch.nn.Linear(3, 4))
    with torch.no_grad():
        scaled.class_scale.copy_(torch.tensor([0.5, -2.0, 1.0, 0.0]))
    norms, bias = class_norms(scaled)
    folded = scaled.fold()
    torch.testing.assert_close(norms[:3], folded.weight.norm(dim=1)[:3].detach())
    assert norms[3] == 1  # a class vector of zeros keeps its logit
    torch.testing.assert_close(bias, folded.bias.detach())
    cosine = ScaledClassifier(CosineClassifier(3, 4, scale=5.0, learnable=True))
    norms, bias = class_norms(cosine)
    torch.testing.assert_close(norms, torch.full((4,), 5.0))
    assert bias is None and not norms.requires_grad
