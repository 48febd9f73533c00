"""``eqadapt weights``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

HELP = "fetch the pretrained weights of a model of timm, for studies to start from"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--model", required=True, metavar="NAME", help="e.g. resnet50")
    parser.add_argument("--out", type=Path, metavar="FILE", help="[data/weights/NAME.safetensors]")
    parser.add_argument(
        "--mirror",
        type=Path,
        default=os.environ.get("EQADAPT_MIRROR") or None,
        metavar="DIR",
        help="folder with timm/NAME.TAG.safetensors, looked in before the hub [$EQADAPT_MIRROR]",
    )


def run(args: argparse.Namespace) -> None:
    """Write one file."""
    from eqadapt.backbones import hub_file
    from eqadapt.hub_weights import fetch

    record = fetch(args.model, args.out or hub_file(args.model), args.mirror)
    print(f"{args.model}: {record['source']}, licence {record['license']}")
