"""Starting a job, in fresh processes: what it imports before it does anything."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.peers import EQUIADAPT, load, peer_label
from benchmarks.registry import Context, Measured, measure
from benchmarks.timing import Samples

# What `eqadapt train` has imported when it reads its study, with scorer and backbone built.
TRAINING = (
    "import eqadapt.runs, eqadapt.scorers as s\n"
    "from eqadapt.groups import CyclicGroup\n"
    "s.build_scorer('paired_cnn', CyclicGroup(8), 3)\n"
)
REFERENCE = (
    "import equiadapt\nequiadapt.ESCNNEquivariantNetwork((3, 32, 32), 32, 5, 'rotation', 8, 3)\n"
)
COMMAND = "import eqadapt.cli, eqadapt.study"


def seconds(code: str) -> float:
    """Wall time of a fresh Python that runs ``code``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=os.environ)
    return time.perf_counter() - start


@measure("startup", "From nothing to a built canonicalizer, in a fresh process")
def startup(context: Context) -> Measured:
    """Rows for a training job, and for a command that computes nothing."""
    load("equiadapt")
    rounds = 1 if context.quick else 3
    times: dict[str, list[float]] = {"peer": [], "training": [], "command": []}
    for turn in range(rounds + 1):
        for name, code in (("peer", REFERENCE), ("training", TRAINING), ("command", COMMAND)):
            taken = seconds(code)
            if turn:  # the first round reads the files from disk
                times[name].append(taken)
    found = {name: Samples(tuple(values), None) for name, values in times.items()}
    for name, setting, note in (
        ("training", "imports and a built C8 canonicalizer", "filter bases are kept on disk"),
        ("command", "imports of a command that does not compute", "no torch is imported"),
    ):
        yield context.pair(
            "startup",
            setting,
            peer_label("equiadapt"),
            found["peer"],
            found[name],
            packages=EQUIADAPT,
            note=note,
        )
