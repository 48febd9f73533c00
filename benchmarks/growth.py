"""How time and memory grow: with the group's order, the image's side, the batch and the runs."""

from __future__ import annotations

import subprocess
import sys
import time

import torch

from benchmarks.ours import adapted, default_scorer
from benchmarks.peers import (
    EQUIADAPT,
    TINY,
    load,
    peer_label,
    reference_canonicalizer,
)
from benchmarks.registry import Context, Measured, NotAvailable, measure
from benchmarks.timing import Samples
from eqadapt.law import smooth_images
from eqadapt.scorers.bases import filter_basis

REFERENCE_UP_TO = 16  # its C32 network needs ten seconds an image on two cores


@measure("growth", "Canonicalization from C4 to C64, 32 to 512 px, batch 1 to 256, and 1 to 8 runs")
def growth(context: Context) -> Measured:
    """Rows of the default canonicalizer, with the reference where it can be run."""
    filter_basis(4, 5, True)  # from disk, not timed
    for order in context.pick((4, 8, 16, 32, 64), (4, 8)):
        compared = order <= (4 if context.quick else REFERENCE_UP_TO)
        yield _point(context, "growth_order", order, 32, 1 if context.quick else 4, compared)
    for side in context.pick((32, 64, 128, 224, 512), (32, 64)):
        yield _point(context, "growth_side", 8, side, 1 if context.quick else 4, not context.quick)
    for batch in context.pick((1, 4, 16, 64, 256), (1, 2)):
        yield _point(context, "growth_batch", 8, 32, batch, batch <= 16 and not context.quick)
    yield from _runs(context)


@torch.no_grad()
def _point(context: Context, name: str, order: int, side: int, batch: int, compared: bool):
    x = smooth_images(batch, side).to(context.device)
    model = adapted(
        default_scorer(order, side, context.device, **context.default_options()),
        torch.nn.Identity(),
    ).eval()
    setting = f"C{order}, {side} px, batch {batch}"
    sides = {"ours": lambda: model.canonicalize(x)}
    if compared and _installed():
        reference = reference_canonicalizer(
            order, side, context.device, **(TINY if context.quick else {})
        )
        found = context.compare({"peer": lambda: reference(x), **sides})
        return context.pair(
            name,
            setting,
            peer_label("equiadapt"),
            found["peer"],
            found["ours"],
            packages=EQUIADAPT,
        )
    ours = context.compare(sides)["ours"]
    return _alone(context, name, setting, ours)


def _alone(context: Context, name: str, setting: str, ours: Samples, note: str = ""):
    return context.row(
        name,
        setting,
        our_seconds=ours.median,
        our_iqr_seconds=ours.iqr,
        our_peak_mb=ours.peak_mb,
        repeats=len(ours.seconds),
        note=note,
    )


def _installed() -> bool:
    try:
        load("equiadapt")
    except NotAvailable:
        return False
    return True


def _runs(context: Context) -> Measured:
    """Short runs that share a process, against one process each."""
    device = str(context.device)
    _process(1, device)  # files from disk
    one = [_process(1, device) for _ in range(1 if context.quick else 2)]
    for runs in context.pick((1, 2, 4, 8), (2,)):
        together = [_process(runs, device) for _ in range(1 if context.quick else 2)]
        apart = [runs * seconds for seconds in one]
        yield context.pair(
            "growth_runs",
            f"{runs} short runs in one process",
            "a process a run",
            Samples(tuple(apart), None),
            Samples(tuple(together), None),
            note="the peer's time is that of one such process times the number of runs",
        )


def _process(runs: int, device: str) -> float:
    start = time.perf_counter()
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.worker", str(runs), device]
    subprocess.run(command, check=True)
    return time.perf_counter() - start
