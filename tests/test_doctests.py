"""Every ``>>>`` example of the package runs and prints what its docstring says.

Examples may use the names of :func:`names` without importing them: a small model, its class counts and a batch.
"""

import doctest
import importlib
import pkgutil

import pytest
import timm
import torch
import torch.nn as nn

import timm_lt


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for info in pkgutil.walk_packages(timm_lt.__path__, 'timm_lt.'):
        if not info.name.endswith('__main__'):
            yield from (t for t in finder.find(importlib.import_module(info.name), info.name) if t.examples)


def names():
    model = timm.create_model('resnet20_cifar', num_classes=3, cosine_scale=16.0)
    counts = [500, 50, 5]
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    criterion = nn.CrossEntropyLoss()
    closure = timm_lt.optim.BatchClosure(model, criterion, images, labels)
    return {
        'timm': timm, 'timm_lt': timm_lt, 'torch': torch, 'nn': nn, 'model': model, 'counts': counts,
        'images': images, 'labels': labels, 'target': labels, 'criterion': criterion, 'closure': closure}


@pytest.mark.parametrize('example', examples(), ids=lambda e: e.name)
def test_example_of_a_docstring_runs(example):
    example.globs = names() | example.globs
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(example)
    assert not result.failed
