"""``eqadapt download``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = "bring a data set into data/raw, from its official source, a mirror or a folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--dataset", required=True, metavar="NAME", help="e.g. digits, cifar10")
    parser.add_argument("--out", type=Path, metavar="DIR", help="[data/raw/NAME]")
    parser.add_argument(
        "--mirror",
        type=Path,
        default=os.environ.get("EQADAPT_MIRROR") or None,
        metavar="DIR",
        help="folder of archives, looked in before the network [$EQADAPT_MIRROR]",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="your own images, train/CLASS/* and test/CLASS/* (or val); choose any NAME",
    )


def run(args: argparse.Namespace) -> None:
    """Leave one file and ``source.json`` in the folder."""
    from eqadapt.datasets.acquire import acquire

    out = args.out or Path("data/raw") / args.dataset
    record = acquire(args.dataset, out, mirror_folder=args.mirror, folder=args.folder)
    print(f"{args.dataset}: {record['file']}, {record['bytes']} bytes, {record['kind']}")
