"""``eqadapt methods``."""

from __future__ import annotations

import argparse

from eqadapt.commands._test_time import add_test_time_arguments, make_test_time_runner

HELP = "run the test-time methods of a study on its orbit caches"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_test_time_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Select on validation, predict the test split, write predictions and records."""
    runner = make_test_time_runner(args)
    for cell in runner.cells(args.dataset, args.backbone, args.group):
        runner.run_cell(cell)
