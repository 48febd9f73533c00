"""``eqadapt methods``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from eqadapt.commands._test_time import add_test_time_arguments, make_test_time_runner

if TYPE_CHECKING:
    from eqadapt.test_time.study import TestTimeRunner

HELP = "run the test-time methods of a study on its orbit caches"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    add_test_time_arguments(parser)
    parser.add_argument(
        "--latency",
        action="store_true",
        help="only time the methods that have been run, on a batch of test images",
    )


def run(args: argparse.Namespace) -> None:
    """Select on validation, predict the test split, write predictions and records."""
    runner = make_test_time_runner(args)
    if args.latency:
        _latency(args, runner)
        return
    for cell in runner.plan.cells(args.dataset, args.backbone, args.group):
        runner.run_cell(cell)


def _latency(args: argparse.Namespace, runner: TestTimeRunner) -> None:
    import pandas as pd

    from eqadapt.files import write_text
    from eqadapt.test_time.latency import COLUMNS

    rows = []
    for cell in runner.plan.cells(args.dataset, args.backbone, args.group):
        rows += runner.measure_latency(cell)
    path = runner.files.results / "latency.csv"
    write_text(path, pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(index=False))
    print(path)
