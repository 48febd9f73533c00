"""``eqadapt prepare``."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "turn a verified data set into train, validation and test files of one form"


def count_or_fraction(text: str) -> int | float:
    """``500`` or ``0.1``."""
    value = float(text)
    if not (0 < value < 1 or (value >= 1 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a count nor a fraction below 1")
    return value if value < 1 else int(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--dataset", required=True, metavar="NAME")
    parser.add_argument("--raw", type=Path, metavar="DIR", help="[data/raw/NAME]")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="[data/prepared/NAME, NAME-v2000, NAME-s224, ... by --validation and --size]",
    )
    parser.add_argument(
        "--validation",
        type=count_or_fraction,
        metavar="N",
        help="images cut from the training set, a count or a fraction [the data set's own]",
    )
    parser.add_argument("--seed", type=int, default=0, help="picks the validation images [0]")
    parser.add_argument(
        "--size", type=int, metavar="S", help="side in pixels, for images that vary in size"
    )


def run(args: argparse.Namespace) -> None:
    """Write the three splits."""
    from eqadapt.datasets.preparation import prepare
    from eqadapt.datasets.variants import Preparation

    asked = Preparation.of(args.dataset, {"validation": args.validation, "size": args.size})
    counts = prepare(
        args.dataset,
        args.raw or Path("data/raw") / args.dataset,
        args.out or Path("data/prepared") / asked.name,
        validation=args.validation,
        seed=args.seed,
        size=args.size,
    )
    print(f"{args.dataset}: " + ", ".join(f"{n} {split}" for split, n in counts.items()))
