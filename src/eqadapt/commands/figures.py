"""``eqadapt figures``: accuracy by angle, chosen poses, galleries and training curves."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "draw the figures of a study as SVG and PNG"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--results", type=Path, required=True, help="folder results/<study>")


def run(args: argparse.Namespace) -> None:
    """Write ``figures/``."""
    from eqadapt.analysis.figures import write_figures
    from eqadapt.analysis.results import open_results

    written = write_figures(open_results(args.results))
    print(f"{args.results / 'figures'}: {len(written)} files")
