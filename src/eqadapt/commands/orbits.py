"""``eqadapt orbits``."""

from __future__ import annotations

import argparse

from eqadapt.commands._study import keep_memory_on_cpus
from eqadapt.commands._test_time import add_test_time_arguments, make_test_time_runner

HELP = "cache what the frozen backbones of a study say of every view of every image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_test_time_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Compute the caches that are not there yet; an interrupted computation goes on."""
    runner = make_test_time_runner(args)
    keep_memory_on_cpus(runner.plan.study.config["device"])
    groups: dict[tuple[str, str], list[str]] = {}
    for cell in runner.plan.cells(args.dataset, args.backbone, args.group):
        groups.setdefault((cell.dataset, cell.backbone), []).append(cell.group)
    for (dataset, backbone), names in groups.items():
        runner.compute_orbits(dataset, backbone, names)
