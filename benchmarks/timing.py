"""Seconds and memory of two or more sides, taken in turns in one process.

Machines slow down and speed up. Sides are therefore sampled A B A B ..., and what is reported are
medians and how far the ratios of neighbouring samples spread.
"""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

Side = Callable[[], object]
SLOW = 2.0  # seconds of a call after which one warm-up must do


@dataclass(frozen=True)
class Effort:
    """How long to look.

    Attributes:
        seconds: Time to spend on each side, where the rounds below allow it.
        rounds: Fewest samples a side.
        most_rounds: Most samples a side.
        sample_seconds: A sample repeats a call until it lasts about this long.
    """

    seconds: float = 0.6
    rounds: int = 3
    most_rounds: int = 40
    sample_seconds: float = 0.02


# Calls under a few milliseconds, which other work on the machine disturbs most.
SHORT_CALLS = Effort(seconds=6.0, most_rounds=300)
# On a GPU; chosen before anything was timed on one.
STEADY = Effort(seconds=1.0, rounds=15, most_rounds=100)
QUICK = Effort(seconds=0.0, rounds=2, most_rounds=2, sample_seconds=0.0)


@dataclass(frozen=True)
class Samples:
    """What was measured of one side.

    Attributes:
        seconds: Of one call, a value a round.
        peak_mb: MiB above what was in use before, at the peak of one call; None where the
            system does not tell.
    """

    seconds: tuple[float, ...]
    peak_mb: float | None

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)

    @property
    def iqr(self) -> float:
        """Interquartile range of the seconds."""
        return interquartile(self.seconds)


def interquartile(values: tuple[float, ...] | list[float]) -> float:
    """Upper minus lower quartile; 0 for a single value."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def ratio_spread(peer: Samples, ours: Samples) -> float:
    """Interquartile range of peer over ours in each round, relative to the median."""
    ratios = [a / b for a, b in zip(peer.seconds, ours.seconds, strict=True)]
    return interquartile(ratios) / statistics.median(ratios)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _sample(side: Side, calls: int, device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(calls):
        side()
    synchronize(device)
    return (time.perf_counter() - start) / calls


def compare(sides: Mapping[str, Side], device: torch.device, effort: Effort) -> dict[str, Samples]:
    """Time all sides in turns, after warm-up calls that also show the memory of each.

    Args:
        sides: What to call, by name.
        device: Waited for around each sample.
        effort: How long to look.
    """
    calls, peaks, longest = {}, {}, 0.0
    for name, side in sides.items():
        start = time.perf_counter()
        peaks[name] = peak_memory(side, device)
        estimate = time.perf_counter() - start
        # the first call may allocate what stays, or compile; on a GPU, load the libraries
        if estimate < SLOW or device.type == "cuda":
            peaks[name] = peak_memory(side, device)
            estimate = _sample(side, 1, device) if effort.seconds else estimate
        calls[name] = max(1, math.ceil(effort.sample_seconds / estimate))
        longest = max(longest, estimate * calls[name])
    wanted = math.ceil(effort.seconds / longest)
    rounds = min(max(wanted, effort.rounds), effort.most_rounds)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, side in sides.items():
                seconds[name].append(_sample(side, calls[name], device))
    finally:
        gc.enable()
    return {name: Samples(tuple(seconds[name]), peaks[name]) for name in sides}


def peak_memory(side: Side, device: torch.device) -> float | None:
    """MiB above what was in use before, at the peak of one call.

    On a GPU what torch has allocated there; on Linux the resident memory of the process, with the
    scratch space of the libraries; elsewhere None.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        side()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    if not sys.platform.startswith("linux"):
        return None
    try:
        ctypes.CDLL(None).malloc_trim(0)  # or memory kept from earlier calls would hide this one's
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    except (OSError, AttributeError):
        return None
    before = _resident("VmRSS")
    side()
    return max(0.0, (_resident("VmHWM") - before) / 1024)


def _resident(key: str) -> float:
    """KiB of a line of the process's status."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))
