"""``eqadapt train``; on several processes: ``torchrun --nproc_per_node=N -m eqadapt train``."""

from __future__ import annotations

import argparse

from eqadapt.commands._study import (
    add_run_arguments,
    add_study_arguments,
    keep_memory_on_cpus,
    make_runner,
    run_filters,
)

HELP = "train the runs of a study that match the filters, one after another, resumable"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_study_arguments(parser)
    add_run_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Train; runs that were finished before are given back."""
    from eqadapt import distributed
    from eqadapt.runs import select_runs
    from eqadapt.study import load_study

    device = load_study(args.study, args.set).config["device"]
    with distributed.session(device):
        runner = make_runner(args)
        keep_memory_on_cpus(device)
        runs = select_runs(runner.study.trained_runs(), **run_filters(args))
        runner.check_scorers(runs)
        for one in runs:
            runner.train(one)
