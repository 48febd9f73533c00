"""The default study: what its processes took, and how much of that was starting them."""

from __future__ import annotations

import csv
import json
import resource
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.pairs.startup import COMMAND, TRAINING, seconds
from benchmarks.registry import Context, Measured, NotAvailable, measure

STUDY = "digits"
STARTUP_SHARE = 0.25  # at most
COMPUTES = {"pretrain", "train", "predict"}
ANALYSIS = "import eqadapt.cli, eqadapt.study, pandas, pyarrow"
DRAWING = f"{ANALYSIS}, matplotlib.pyplot, seaborn"
CODE = {"figures": DRAWING, "report": DRAWING, "study_config": COMMAND}


@dataclass(frozen=True)
class Process:
    """One process of the workflow, from Snakemake's own record of it.

    Attributes:
        stage: Its rule: ``train``, ``figures``, ...
        wall: Seconds from start to end.
        cpu: Seconds of processor time.
        memory: Peak resident MiB.
        end: When it ended, in seconds since 1970.
    """

    stage: str
    wall: float
    cpu: float
    memory: float
    end: float


def processes(logs: Path) -> Iterator[Process]:
    """The processes that left a record under ``logs``.

    Snakemake looks at a process every half a minute, so the processor time that it saw last lacks
    what came after. The load that it saw until then is taken for all of the process.
    """
    for path in sorted(logs.rglob("*.tsv")):
        stage = path.relative_to(logs).parts[0].removesuffix(".tsv")
        with path.open(newline="", encoding="utf-8") as stream:
            for line in csv.DictReader(stream, delimiter="\t"):
                if line["cpu_time"] not in ("", "-", "NA"):
                    wall, memory = float(line["s"]), float(line["max_rss"])
                    cpu = max(float(line["cpu_time"]), wall * float(line["mean_load"]) / 100)
                    yield Process(stage, wall, cpu, memory, path.stat().st_mtime)


def busy_seconds(found: Sequence[Process]) -> float:
    """Seconds in which one process or more ran."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((p.end - p.wall, p.end) for p in found):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def origin(runs: Path) -> tuple[str, str]:
    """The device and the commit of a study's runs.

    Raises:
        NotAvailable: There are none, or they are of several devices or commits.
    """
    found = set()
    for path in sorted(runs.glob("*/run.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found.add((str(record["device"]), str(record["commit"])))
    if len(found) != 1:
        raise NotAvailable(
            f"{runs} has runs of {len(found)} devices or commits, so its times are no one's: "
            f"run `make ARGS='--forcerun train'`"
        )
    return found.pop()


def startup_cpu(code: str, rounds: int) -> float:
    """Median processor seconds of a fresh Python that runs ``code``."""
    taken = []
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(taken)


@measure("study", "The default study: seconds and memory of its stages, share of start-up")
def study(context: Context) -> Measured:
    """Rows a stage and for the whole, from the records of the last `make`."""
    found = list(processes(context.root / "logs" / STUDY))
    if not found:
        raise NotAvailable(f"no records of the {STUDY} study: run `make` first")
    device, commit = origin(context.root / "results" / STUDY / "runs")
    if not context.device_label.startswith(device):
        raise NotAvailable(f"the {STUDY} study ran on {device}: run `make` here")
    for row in _rows(context, found):
        yield replace(row, commit=commit)


def _rows(context: Context, found: Sequence[Process]) -> Measured:
    rounds = 1 if context.quick else 3
    codes = {
        p.stage: TRAINING if p.stage in COMPUTES else CODE.get(p.stage, ANALYSIS) for p in found
    }
    cost = {code: startup_cpu(code, rounds) for code in set(codes.values())}
    total = sum(p.cpu for p in found)
    for stage in dict.fromkeys(p.stage for p in found):
        mine = [p for p in found if p.stage == stage]
        cpu = sum(p.cpu for p in mine)
        yield context.row(
            "study",
            f"{STUDY}: {stage}",
            our_seconds=sum(p.wall for p in mine),
            our_peak_mb=max(p.memory for p in mine),
            repeats=len(mine),
            note=f"{len(mine)} processes; {cpu:.0f} s of processor time, {cpu / total:.0%} of all",
        )
    yield context.row(
        "study",
        f"{STUDY}: wall time",
        our_seconds=busy_seconds(found),
        repeats=1,
        note=f"in which one or more of {len(found)} processes ran; without Snakemake's own start, "
        "the decoding of the images and the notebooks",
    )
    starting = sum(cost[codes[p.stage]] for p in found)
    yield context.row(
        "study",
        f"{STUDY}: start-up",
        peer="all processor time",
        peer_seconds=total,
        our_seconds=starting,
        ratio=total / starting,
        floor=context.floor(1 / STARTUP_SHARE),
        repeats=rounds,
        note=f"{starting / total:.0%} of the processor time of {len(found)} processes is imports; "
        f"floor: under {STARTUP_SHARE:.0%}",
    )
