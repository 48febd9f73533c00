"""``eqadapt verify``."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "compare a downloaded data set with its published checksum"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument("--raw", type=Path, metavar="DIR", help="[data/raw/NAME]")
    parser.add_argument("--out", type=Path, metavar="FILE", help="[data/raw/NAME/verified.json]")


def run(args: argparse.Namespace) -> None:
    """Write ``verified.json``."""
    from eqadapt.datasets.raw import verify

    record = verify(args.dataset, args.raw or Path("data/raw") / args.dataset, args.out)
    against = record["checked_against"] or "no checksum there is: recorded only"
    print(f"{args.dataset}: sha256 {record['sha256']}, checked against: {against}")
