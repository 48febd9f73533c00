"""``eqadapt metrics``: every rate of every run, computed from the prediction files."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "compute metrics.csv from a study's prediction files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--results", type=Path, required=True, help="folder results/<study>")
    parser.add_argument(
        "--groups",
        nargs="+",
        default=[],
        metavar="C<n>",
        help="evaluate group-free runs at these groups (default: those of study.yaml)",
    )
    parser.add_argument("--out", type=Path, help="default: metrics.csv in the results folder")


def run(args: argparse.Namespace) -> None:
    """Write ``metrics.csv``."""
    from eqadapt.analysis import outputs
    from eqadapt.analysis.method_table import method_frame
    from eqadapt.analysis.metrics import metrics_frame, write_csv
    from eqadapt.analysis.results import open_results

    results = open_results(args.results, args.groups)
    if results.test_time:
        frame = method_frame(results)
    else:
        frame = metrics_frame(results.evaluations, results.records)
    out = args.out or args.results / outputs.METRICS
    write_csv(frame, out)
    print(f"{out}: {len(frame)} rows from {len(results.predictions)} prediction files")
    results.tell_missing()
