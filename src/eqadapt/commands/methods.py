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
        "--poses",
        action="store_true",
        help="only score the poses of the cached images with the study's canonicalizers",
    )
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
        if args.poses:
            runner.compute_poses(cell)
        else:
            runner.run_cell(cell)


def _latency(args: argparse.Namespace, runner: TestTimeRunner) -> None:
    import pandas as pd

    from eqadapt.analysis.results import read_csv
    from eqadapt.files import write_text
    from eqadapt.test_time.latency import CELL, COLUMNS

    path = runner.files.results / "latency.csv"
    cells = runner.plan.cells(args.dataset, args.backbone, args.group)
    frames = [pd.DataFrame(runner.measure_latency(cell)) for cell in cells]
    frame = pd.concat(frames, ignore_index=True)[list(COLUMNS)]
    if path.is_file() and len(cells) < len(runner.plan.cells()):  # other cells keep their rows
        keys = list(CELL)
        old = read_csv(path)
        timed = old.set_index(keys).index.isin(frame.set_index(keys).index)
        frame = pd.concat([old[~timed], frame], ignore_index=True)
    write_text(path, frame.to_csv(index=False))
    print(path)
