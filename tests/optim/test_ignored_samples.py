"""Samples that the loss ignores (label -100) have no part in a step, for every method and every window."""

import pytest
import torch
import torch.nn as nn
from sam_reference import COUNTS, NAMES, flat, make_batch, make_model, make_optimizer

import timm_lt
from timm_lt.optim import BatchClosure, optimizer_step

METHODS = ['momentum', *NAMES, 'ccsam', 'gsa']
CRITERIA = {
    'cross_entropy': lambda: nn.CrossEntropyLoss(),
    'weighted': lambda: nn.CrossEntropyLoss(torch.linspace(0.5, 2, len(COUNTS), dtype=torch.float64)),
    'smoothed': lambda: nn.CrossEntropyLoss(label_smoothing=0.1),
    'balanced_softmax': lambda: timm_lt.create_loss('balanced_softmax', COUNTS),
    'class_weight': lambda: timm_lt.create_loss('vs', COUNTS, class_weight=[0.5, 1, 1.5, 2, 2.5, 3]),
    'lade': lambda: timm_lt.create_loss('lade', COUNTS),
    'gala': lambda: timm_lt.create_loss('gala', COUNTS),
}


def options_of(name):
    return {'class_counts': COUNTS} if name in ('ccsam', 'gsa') else {}


def step(name, criterion, inputs, targets, norm='group', **options):
    """Gradient and loss of one step."""
    model = make_model(norm)
    optimizer = make_optimizer(model, name, **options_of(name), weight_decay=0.0, **options)
    before = flat(model.parameters())
    result = optimizer_step(optimizer, BatchClosure(model, criterion, inputs, targets))
    return (before - flat(model.parameters())) / 0.1, result.loss


@pytest.mark.parametrize('criterion', CRITERIA)
@pytest.mark.parametrize('name', METHODS)
def test_a_step_is_that_of_the_other_samples(name, criterion):
    x, y = make_batch(14)
    y[[2, 5, 11]] = -100
    kept = y != -100
    expected, loss = step(name, CRITERIA[criterion](), x[kept], y[kept])
    seen, seen_loss = step(name, CRITERIA[criterion](), x, y)
    torch.testing.assert_close(seen_loss, loss)
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize('criterion', [c for c in CRITERIA if c != 'lade'])
@pytest.mark.parametrize('name', METHODS)
def test_a_step_does_not_depend_on_how_the_window_is_cut(name, criterion):
    x, y = make_batch(14)
    y[[2, 9, 10, 11, 12, 13]] = -100  # the last micro-batch holds ignored samples only
    expected, loss = step(name, CRITERIA[criterion](), x, y)
    for cuts in ((4, 10), (5, 9), (9, 5)):
        seen, seen_loss = step(name, CRITERIA[criterion](), list(x.split(cuts)), list(y.split(cuts)))
        torch.testing.assert_close(seen_loss, loss)
        torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize('criterion', ['cross_entropy', 'weighted', 'smoothed', 'balanced_softmax'])
@pytest.mark.parametrize('name', METHODS)
def test_a_window_of_ignored_samples_changes_nothing(name, criterion):
    x, y = make_batch(8)
    y[:] = -100
    seen, loss = step(name, CRITERIA[criterion](), list(x.split(4)), list(y.split(4)))
    assert float(loss) == 0
    assert not seen.any()


@pytest.mark.parametrize('name', METHODS)
def test_another_label_to_ignore_is_read_from_the_criterion(name):
    x, y = make_batch(14)
    y[[2, 5, 11]] = 255
    kept = y != 255
    expected, _ = step(name, nn.CrossEntropyLoss(), x[kept], y[kept])
    seen, _ = step(name, nn.CrossEntropyLoss(ignore_index=255), [x[:6], x[6:]], [y[:6], y[6:]])
    torch.testing.assert_close(seen, expected)


@pytest.mark.parametrize('batchnorm', ['batch', 'stacked', 'exact_ascent'])
@pytest.mark.parametrize('name', ['imbsam', 'ssesam', 'gsa'])
def test_ignored_samples_pass_through_batchnorm_with_their_batch(name, batchnorm):
    x, y = make_batch(14)
    y[[2, 5, 11]] = -100
    model = make_model()
    closure = BatchClosure(model, nn.CrossEntropyLoss(), x, y)
    options = {'Z': 0.0} if name == 'gsa' else {'rho': 0.0} if name == 'imbsam' else {'rho_head': 0.0, 'rho_tail': 0.0}
    make_optimizer(model, name, **options_of(name), **options, batchnorm=batchnorm).compute_grads(closure)
    reference = make_model()
    nn.CrossEntropyLoss()(reference(x), y).backward()
    torch.testing.assert_close(flat(p.grad for p in model.parameters()), flat(p.grad for p in reference.parameters()))
    assert closure.output[0].shape == (14, len(COUNTS))


def test_labels_that_are_no_class_are_still_refused():
    x, y = make_batch(8)
    y[3] = len(COUNTS)
    for name in ('imbsam', 'ssesam', 'focalsam'):
        with pytest.raises(ValueError, match='class_counts has 6 entries'):
            step(name, nn.CrossEntropyLoss(), x, y)
