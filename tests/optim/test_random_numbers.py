"""All passes of a step see one function of the weights: the same dropout masks, depths and sampled losses."""

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from sam_reference import COUNTS, OWN, make_batch, make_model

from timm_lt.losses import LongTailLoss
from timm_lt.optim import BatchClosure

METHODS = {
    **{name: (name, {}) for name in ('sam', 'asam', 'imbsam', 'ssesam', 'focalsam', 'gsa')},
    'ccsam': ('ccsam', {'scale': 0.1}),
    'ccsam fc*': ('ccsam', {'scale': 0.1, 'layers': 'fc*'}),
    'ccsam *': ('ccsam', {'scale': 0.1, 'layers': '*'}),
    'ssesam stacked': ('ssesam', {'batchnorm': 'stacked'}),
    'gsa stacked': ('gsa', {'batchnorm': 'stacked'}),
    'gsa exact_ascent': ('gsa', {'batchnorm': 'exact_ascent'}),
}


class Log:
    """Random numbers that every sample met, by the mark in its image."""

    def __init__(self):
        self.marks, self.met, self.passes = [], {}, 0

    def add(self, kind, rows):
        for mark, row in zip(self.marks, rows):
            self.met.setdefault((kind, mark), []).append(row.tolist())


class RandomLoss(LongTailLoss):
    """Cross-entropy of every sample times a random weight."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def per_sample(self, logits, target):
        weight = torch.rand(len(logits), dtype=logits.dtype)
        self.log.add('loss', weight)
        return weight * F.cross_entropy(logits, target, reduction='none')


def make(key, norm):
    name, options = METHODS[key]
    model, log = make_model(norm), Log()
    model.norm = nn.Sequential(model.norm, nn.Dropout2d(0.5))

    def mark(module, args):
        log.marks, log.passes = [round(float(image[0, 0, 0]), 6) for image in args[0]], log.passes + 1

    model.register_forward_pre_hook(mark)
    model.norm[1].register_forward_hook(lambda module, args, out: log.add('mask', (out != 0).flatten(1)))
    if name not in ('sam', 'asam'):
        options = {'class_counts': COUNTS, **options}
    optimizer = timm.optim.create_optimizer_v2(model, name, lr=0.1, **{**OWN.get(name, {}), **options})
    return model, optimizer, log


@pytest.mark.parametrize('kind', ['batch', 'window', 'mixup'])
@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('key', METHODS)
def test_every_sample_meets_the_same_random_numbers_in_all_passes(key, norm, kind):
    model, optimizer, log = make(key, norm)
    x, y = make_batch(14)
    options = {}
    if kind == 'window':
        x, y = list(x.split([9, 5])), list(y.split([9, 5]))
    elif kind == 'mixup':
        options['labels'] = y
        y = 0.7 * F.one_hot(y, len(COUNTS)).double() + 0.3 * F.one_hot(y.flip(0), len(COUNTS)).double()
    closure = BatchClosure(model, RandomLoss(log), x, y, **options)
    optimizer.compute_grads(closure)  # tries in addition whether samples meet, and what the classifier gives
    log.met.clear()
    log.passes = 0
    optimizer.compute_grads(closure)
    assert log.met and all(seen == seen[:1] * len(seen) for seen in log.met.values())
    assert log.passes > 1 or key == 'ccsam'


@pytest.mark.parametrize('key', METHODS)
def test_a_second_step_on_a_batch_draws_other_numbers(key):
    model, optimizer, log = make(key, 'batch')
    closure = BatchClosure(model, RandomLoss(log), *make_batch(14))
    optimizer.step(closure)
    first = {k: seen[0] for k, seen in log.met.items()}
    log.met.clear()
    optimizer.step(closure)
    assert all(seen[0] != first[k] for k, seen in log.met.items() if k[0] == 'loss')


@pytest.mark.parametrize('plain', [False, True], ids=['BatchClosure', 'function'])
def test_generators_continue_as_after_one_plain_step(plain):
    states = []
    x, y = make_batch(14)
    for method in ('sam', None):
        torch.manual_seed(3)
        model, optimizer, log = make('sam', 'batch')
        loss = RandomLoss(log)

        def closure(model=model, loss=loss):
            model.zero_grad()
            value = loss(model(x), y)
            value.backward()
            return value

        torch.manual_seed(4)
        if method is None:
            closure()
        else:
            optimizer.compute_grads(closure if plain else BatchClosure(model, loss, x, y))
            assert len(log.met) == 28 and all(len(s) == 2 and s[0] == s[1] for s in log.met.values())
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
