"""``eqadapt predict``."""

from __future__ import annotations

import argparse

from eqadapt.commands._study import (
    add_run_arguments,
    add_study_arguments,
    keep_memory_on_cpus,
    make_runner,
    run_filters,
)

HELP = "predict every test image in every pose with the trained runs that match the filters"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_study_arguments(parser)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Predict."""
    from eqadapt.runs import select_runs

    runner = make_runner(args)
    keep_memory_on_cpus(runner.study.config["device"])
    for one in select_runs(runner.study.runs(), **run_filters(args)):
        runner.predict(one)
