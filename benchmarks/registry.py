"""What can be measured, and what a measure is given."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.rows import Row
from benchmarks.timing import (
    QUICK,
    SHORT_CALLS,
    STEADY,
    Effort,
    Samples,
    Side,
    compare,
    ratio_spread,
)
from eqadapt.provenance import commit, device_name

Measured = Iterator[Row]


class NotComparable(Exception):
    """A pair that claims the same computation does not compute the same."""


class NotAvailable(NotComparable):
    """A peer, or another thing that a measure wants, is not there: nothing is said of the pair."""


@dataclass(frozen=True)
class Context:
    """What a run of the benchmarks is given.

    Attributes:
        device: Where to run.
        threads: CPU threads of torch.
        quick: Small batches and few repeats: shows that it runs, the figures mean nothing.
        minutes: Training time of each network in the measures of quality.
        root: The repository, with ``data/``, ``logs/`` and ``results/``.
    """

    device: torch.device
    threads: int = 1
    quick: bool = False
    minutes: float = 1.0
    root: Path = field(default_factory=Path.cwd)

    @property
    def device_label(self) -> str:
        """The name in the column ``device``."""
        name = device_name(self.device)
        return name if self.device.type == "cuda" else f"{name}, {self.threads} threads"

    @property
    def effort(self) -> Effort:
        """How long to look at each pair."""
        return QUICK if self.quick else Effort()

    def effort_for(self, batch: int) -> Effort:
        """The same, and longer where calls are short: for single images."""
        return self.long_effort(SHORT_CALLS) if batch == 1 else self.effort

    def long_effort(self, on_cpu: Effort) -> Effort:
        """For pairs that want to be told apart well."""
        if self.quick:
            return QUICK
        return STEADY if self.device.type == "cuda" else on_cpu

    def pick(self, values: tuple[Any, ...], quick: tuple[Any, ...]) -> tuple[Any, ...]:
        """The settings to run: all of them, or the few small ones of a quick run."""
        return quick if self.quick else values

    def compare(self, sides: Mapping[str, Side], effort: Effort | None = None):
        """Time the sides in turns on this device; see ``timing.compare``."""
        return compare(sides, self.device, effort or self.effort)

    def row(self, measure: str, setting: str, packages: tuple[str, ...] = (), **values: Any) -> Row:
        """A row with device, versions and commit filled in."""
        return Row(
            measure=measure,
            setting=setting,
            device=self.device_label,
            versions=versions("torch", *packages),
            commit=commit(),
            **values,
        )

    def pair(
        self,
        measure: str,
        setting: str,
        peer: str,
        theirs: Samples,
        ours: Samples,
        packages: tuple[str, ...] = (),
        **values: Any,
    ) -> Row:
        """A row of two timed sides."""
        return self.row(
            measure,
            setting,
            packages,
            peer=peer,
            peer_seconds=theirs.median,
            our_seconds=ours.median,
            ratio=theirs.median / ours.median,
            spread=ratio_spread(theirs, ours),
            repeats=len(ours.seconds),
            peer_iqr_seconds=theirs.iqr,
            our_iqr_seconds=ours.iqr,
            peer_peak_mb=theirs.peak_mb,
            our_peak_mb=ours.peak_mb,
            **values,
        )

    def default_options(self) -> dict[str, int]:
        """Options of the default scorer: its own, or smaller ones in a quick run."""
        return {"width": 2} if self.quick else {}

    def floor(self, cpu: float, cuda: float | None = None) -> float | None:
        """The ratio to reach on this device; none is set in a quick run."""
        if self.quick:
            return None
        return cuda if self.device.type == "cuda" and cuda is not None else cpu

    def note(self, text: str) -> None:
        """Tell the user something that is no row."""
        print(f"  note: {text}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Measure:
    """One entry of the registry.

    Attributes:
        name: Its name on the command line and in the file.
        summary: One sentence for people.
        run: Yields the rows.
    """

    name: str
    summary: str
    run: Callable[[Context], Measured]


MEASURES: dict[str, Measure] = {}


def measure(name: str, summary: str) -> Callable[[Callable[[Context], Measured]], Any]:
    """Register a function that yields rows."""

    def register(run: Callable[[Context], Measured]) -> Callable[[Context], Measured]:
        MEASURES[name] = Measure(name, summary, run)
        return run

    return register


def versions(*packages: str) -> str:
    """``"eqadapt 0.1.0, torch 2.11.0"``; a package that is not installed is left out."""
    found = []
    for package in ("eqadapt", *packages):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def largest_difference(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> float:
    """The largest absolute difference of two results that must agree.

    Raises:
        NotComparable: They differ by more than ``tolerance``.
    """
    if ours.shape != theirs.shape:
        raise NotComparable(f"{what}: shapes {tuple(ours.shape)} and {tuple(theirs.shape)}")
    difference = float((ours.double() - theirs.double()).abs().max())
    if not difference <= tolerance:
        raise NotComparable(f"{what}: outputs differ by {difference:.2g}, over {tolerance:.0e}")
    return difference
