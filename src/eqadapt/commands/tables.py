"""``eqadapt tables``: the paper's layout with published figures beside ours, and diagnostics."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write the tables of a study as CSV, Markdown and LaTeX"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--results", type=Path, required=True, help="folder results/<study>")
    parser.add_argument(
        "--published",
        type=Path,
        default=Path("config/published.yaml"),
        help="published figures (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> None:
    """Write ``tables/``."""
    from eqadapt.analysis.published import load_published
    from eqadapt.analysis.results import open_results
    from eqadapt.analysis.tables import write_tables

    written = write_tables(open_results(args.results), load_published(args.published))
    print(f"{args.results / 'tables'}: {len(written)} files")
