"""The two passes of ``batchnorm='stacked'``, and the exact first pass of ``'exact_ascent'``."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .._tensors import Gradients, add_up, set_gradients, take_gradients
from .layers import stacked_forward

if TYPE_CHECKING:
    from ..engine.closure import BatchClosure


def stacked_gradients(
        closure: 'BatchClosure',
        params: Sequence[Tensor],
        groups: Sequence[Tensor],
        weights: Sequence[Tensor],
        present: Sequence[int],
        *,
        first: bool,
        kept: list[dict],
        eps: Mapping[int, Mapping[int, Tensor]] | None = None,
) -> tuple[list[Gradients], Tensor]:
    """Gradients of ``(1/N) sum_i w_i l_i`` over the window, by group, or summed where ``eps`` is given.

    Args:
        closure: The batch; N is its normaliser.
        params: Parameters whose gradients are wanted.
        groups: Per micro-batch the group of each sample, (B,), on the CPU.
        weights: Per micro-batch the weight of each sample, (B,).
        present: The groups of the joint batch, ascending.
        first: Whether this is the pass whose output and statistics count.
        kept: An empty list on the first pass, which fills it; the same list on the second.
        eps: Perturbation of each group, by the ``id`` of the parameter; overwritten by the perturbed weights.

    Returns:
        One list of gradients for each group present, or a single list with ``eps``; None where a parameter got none.
        Then the mean loss, detached.
    """
    weights_of: dict[int, dict[int, Tensor]] = {}
    for k in present:
        moved = {} if eps is None else eps[k]
        weights_of[k] = {
            id(p): (moved[id(p)].add_(p.detach()) if id(p) in moved else p.detach()).requires_grad_() for p in params}
    if first:
        kept.extend({} for _ in groups)
    losses = []
    for i, group in enumerate(groups):
        order = torch.argsort(group, stable=True)
        here, sizes = group.unique(return_counts=True)
        chosen = [weights_of[k] for k in here.tolist()]
        with closure.gradient_sync(False), stacked_forward(
                closure.module, sizes.tolist(), chosen, first, kept[i]):
            values = closure.sample_values(i, first, order)
            loss = (values * weights[i][order].to(values.device, values.dtype)).sum()
            closure.backward(loss / closure.normalizer().to(values.dtype))
            losses.append(values.detach().sum() / closure.normalizer().to(values.dtype))
    rows = [[weights_of[k][id(p)].grad for p in params] for k in present]
    if eps is not None:
        rows = [[_sum([row[i] for row in rows]) for i in range(len(params))]]
    return rows, add_up(losses)


def exact_gradients(
        closure: 'BatchClosure',
        params: Sequence[Tensor],
        groups: Sequence[Tensor],
        weights: Sequence[Tensor],
        present: Sequence[int],
        kept: list[dict],
) -> tuple[list[Gradients], Tensor]:
    """The first pass of :func:`stacked_gradients`, with one backward pass and the exact gradient per group."""
    kept.extend({} for _ in groups)
    rows: list[Gradients] = [[None] * len(params) for _ in present]
    losses = []
    for i, group in enumerate(groups):
        order = torch.argsort(group, stable=True)
        here, sizes = group.unique(return_counts=True)
        unchanged: list[dict[int, Tensor]] = [{} for _ in here]
        with closure.gradient_sync(False), stacked_forward(
                closure.module, sizes.tolist(), unchanged, True, kept[i], apart=False):
            values = closure.sample_values(i, True, order)
            terms = values * weights[i][order].to(values.device, values.dtype) / closure.normalizer().to(values.dtype)
            for k, term in zip(here.tolist(), terms.split(sizes.tolist())):
                row = present.index(k)
                set_gradients(params, rows[row])
                closure.backward(term.sum(), retain_graph=k != int(here[-1]))
                rows[row] = take_gradients(params)
            losses.append(values.detach().sum() / closure.normalizer().to(values.dtype))
    return rows, add_up(losses)


def _sum(tensors: list[Tensor | None]) -> Tensor | None:
    """The sum of the tensors that exist, in the memory of the first."""
    there = [t for t in tensors if t is not None]
    for t in there[1:]:
        there[0].add_(t)
    return there[0] if there else None
