"""Prediction re-balancing of the GALA paper, transductive as published; see :mod:`timm_lt.posthoc`."""

import math

import torch

from timm_lt.posthoc import rebalance_predictions


def check(golden):
    logits = golden['logits']
    golden.check('softmax_column_sums', logits.softmax(1).sum(0))
    golden.check('argmax_without', rebalance_predictions(logits, tau=0.0).argmax(1))
    for key in golden.keys(suffix='__tau'):
        name, tau = key.removesuffix('__tau'), golden[key]
        log_scores = rebalance_predictions(logits, tau)
        inductive = rebalance_predictions(logits, tau, reference=golden['softmax_column_sums'])
        published = golden[f'{name}__scores']
        scores = log_scores.exp()
        # the published quotient is 0 / 0 where a class underflows
        scores = torch.where(published.isnan(), published, scores)
        golden.check(f'{name}__scores', scores)
        golden.check(f'{name}__scores', torch.where(published.isnan(), published, inductive.exp()))
        # the official code takes a softmax of the scores once more, for its rejection threshold
        golden.check(f'{name}__softmax_of_scores_max', scores.softmax(1).amax(1))
        two = log_scores.topk(2, dim=1).values
        gap = -torch.expm1(two[:, 1] - two[:, 0])
        published_gap = golden[f'{name}__min_relative_gap_top2']
        if math.isfinite(published_gap):
            assert abs(float(gap.min()) - published_gap) <= golden.tolerance * max(1.0, abs(published_gap))
        # rows that are tied up to rounding, as with a single image and tau 1, have no one argmax
        clear = gap > 1e-9
        assert torch.equal(log_scores.argmax(1)[clear], golden[f'{name}__argmax'][clear]), name
        best = log_scores.gather(1, golden[f'{name}__argmax'][:, None])[:, 0]
        assert bool((two[:, 0] - best <= 1e-9).all()), name
