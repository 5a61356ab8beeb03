"""Diagonal Fisher information of a network's parameters.

Paper: Chen et al., "GKP+GSA", CVPR 2026: ``F_i`` = mean over the samples of a group of the squared gradient of the
log-likelihood with respect to parameter i.
Source: written from the paper; compared with the released code in ``tests/golden``.
Differs from the official code: that code squares the gradient of a *batch mean*, sums over batches and divides by the
number of samples. ``form='released'`` does the same. Its values therefore depend on the batch size and shrink with it.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .._validate import check_option

__all__ = ['diagonal_fisher']

FORMS = ('per_sample', 'released')
_MAX_ELEMENTS = 1 << 25  # of the per-sample gradients held at a time: 128 MB in float32


def diagonal_fisher(
        model: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        criterion: Callable[[Tensor, Tensor], Tensor],
        parameters: Sequence[nn.Parameter] | None = None,
        *,
        form: str = 'per_sample',
) -> list[Tensor]:
    """Mean squared gradient of the loss of a sample, for each parameter.

    Call ``model.eval()`` first, because a gradient per sample does not exist under batch statistics. ``.grad`` and
    buffers do not change.

    Args:
        model: Called as ``model(input)``.
        batches: Pairs of input (B, ...) and target (B,).
        criterion: ``criterion(output, target)`` gives the mean loss over a batch, in nats: a negative log-likelihood.
        parameters: Parameters of ``model`` to measure; None takes all that require a gradient.
        form: ``'per_sample'``: squared gradients of samples, averaged. ``'released'``: squared batch-mean gradients,
            summed over batches, divided by the number of samples.

    Returns:
        One tensor per parameter, of its shape, >= 0, in float32 at least; zeros without any sample. In a process group
        the mean is over the samples of all processes, and all must call this.
    """
    check_option('form', form, FORMS)
    measured = _measured(model, parameters)
    names = [name for name, _ in measured]
    theta = {name: p.detach() for name, p in measured}
    fixed = {n: p.detach() for n, p in model.named_parameters() if n not in theta}
    fixed.update({n: b.detach() for n, b in model.named_buffers()})

    def loss(values: dict[str, Tensor], input: Tensor, target: Tensor) -> Tensor:
        return criterion(functional_call(model, {**values, **fixed}, (input,)), target)

    gradient = grad(loss)
    chunk = max(1, _MAX_ELEMENTS // max(sum(p.numel() for p in theta.values()), 1))
    # a batch of one: layers and criterion see the usual leading dimension
    per_sample = vmap(lambda x, y: gradient(theta, x[None], y[None]))
    # squares of half precision would underflow, and their sum would lose digits
    totals = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in theta.items()}
    samples = 0
    for input, target in batches:
        samples += len(target)
        if form == 'released':
            for name, g in gradient(theta, input, target).items():
                totals[name].add_(g.to(totals[name].dtype).square())
            continue
        for x, y in zip(input.split(chunk), target.split(chunk)):
            for name, g in per_sample(x, y).items():
                totals[name].add_(g.to(totals[name].dtype).square().sum(0))
    device = next(iter(totals.values())).device if totals else torch.device('cpu')
    count = torch.tensor(float(samples), dtype=torch.float64, device=device)
    if dist.is_available() and dist.is_initialized():
        for tensor in (count, *totals.values()):
            dist.all_reduce(tensor)
    return [totals[name] / max(float(count), 1.0) for name in names]


def _measured(model: nn.Module, parameters: Sequence[nn.Parameter] | None) -> list[tuple[str, nn.Parameter]]:
    """Name and parameter of those to measure."""
    named = dict(model.named_parameters())
    if parameters is None:
        return [(name, p) for name, p in named.items() if p.requires_grad]
    names = {id(p): name for name, p in named.items()}
    unknown = [tuple(p.shape) for p in parameters if id(p) not in names]
    if unknown:
        raise ValueError(f'parameters must be of the model, got others with shapes {unknown[:5]}')
    return [(names[id(p)], p) for p in parameters]
