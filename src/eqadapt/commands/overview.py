"""``eqadapt overview``: all studies of a results folder on one page."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write README.md over all finished studies: claims, what ran where, poses kept"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of the studies (%(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    """Write the page, its figure and the points of that."""
    from eqadapt.analysis.overview import write_overview

    for path in write_overview(args.results):
        print(path)
