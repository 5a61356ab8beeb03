"""Timing of functions in turns, so that a slow moment of the machine falls on all of them alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Ratio:
    """Time of a function as a multiple of the baseline's in the same round.

    Attributes:
        median: Median over the rounds.
        low: Smallest ratio of a round.
        high: Largest ratio of a round.
        milliseconds: Median time of one call.
    """
    median: float
    low: float
    high: float
    milliseconds: float


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call, work queued on a GPU included."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratios_in_turns(
        functions: dict[str, Callable[[], object]],
        baseline: str,
        rounds: int,
        warmup: int = 2,
) -> dict[str, Ratio]:
    """Time the functions one after the other (A B C A B C ...) and compare within each round.

    Args:
        functions: Name to a function without arguments.
        baseline: Name of the function that the others are compared with.
        rounds: Rounds that count.
        warmup: Rounds before them that do not.
    """
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(warmup + rounds):
        # every other round runs backwards: a drift within a round then cancels in the median
        names = list(functions) if index % 2 == 0 else list(functions)[::-1]
        for name in names:
            seconds = timed(functions[name])
            if index >= warmup:
                times[name].append(seconds)
    result = {}
    for name, seconds in times.items():
        ratios = [a / b for a, b in zip(seconds, times[baseline], strict=True)]
        result[name] = Ratio(statistics.median(ratios), min(ratios), max(ratios), 1e3 * statistics.median(seconds))
    return result
