"""Timing of functions in turns, so that a slow moment of the machine falls on all of them alike, and peak memory."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault('KINETO_LOG_LEVEL', '99')  # the profiler announces each start and stop

import torch
from torch.profiler import ProfilerActivity, profile

from timm_lt.training.allocator import keep_freed_memory

# as train_lt.py does on a CPU: else page faults, which fall on one function and spare the next, make up 15% of a step
keep_freed_memory()


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
        rounds: int | None = None,
        warmup: int = 1,
        *,
        seconds: float | None = None,
        repeat: int = 1,
) -> dict[str, Ratio]:
    """Time the functions one after the other with the baseline between any two, and compare with its neighbours.

    Args:
        functions: Name to a function without arguments.
        baseline: Name of the function that the others are compared with.
        rounds: Rounds that count; None: as many as ``seconds`` allow, at least two.
        warmup: Rounds before them that do not.
        seconds: Time for all rounds, where ``rounds`` is None.
        repeat: Calls of a function behind each other that are timed together.
    """
    others = [name for name in functions if name != baseline] or [baseline]
    times: dict[str, list[float]] = {name: [] for name in others}
    ratios: dict[str, list[float]] = {name: [] for name in others}
    base: list[float] = []

    def measure(name: str) -> float:
        return sum(timed(functions[name]) for _ in range(repeat)) / repeat

    for _ in range(warmup):
        for name in functions:
            measure(name)
    start, index = time.perf_counter(), 0
    while (index < rounds) if rounds is not None else (index < 2 or time.perf_counter() - start < seconds):
        # every other round runs backwards: a drift within a round then cancels in the median
        before = measure(baseline)
        for name in others if index % 2 == 0 else others[::-1]:
            own, after = measure(name), measure(baseline)
            times[name].append(own)
            ratios[name].append(2 * own / (before + after))
            base.append(before)
            before = after
        index += 1
    result = {baseline: Ratio(1.0, 1.0, 1.0, 1e3 * statistics.median(base))}
    for name in others:
        if name != baseline:
            result[name] = Ratio(
                statistics.median(ratios[name]), min(ratios[name]), max(ratios[name]),
                1e3 * statistics.median(times[name]))
    return result


def peak_memory(function: Callable[[], object], device: torch.device) -> int:
    """Bytes that a call allocates at its peak, beyond what lay there before; the function has run before."""
    if device.type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    events = sorted(
        (e.start_ns(), e.nbytes()) for e in record.profiler.kineto_results.events() if e.name() == '[memory]')
    held = peak = 0
    for _, size in events:
        held += size
        peak = max(peak, held)
    return peak
