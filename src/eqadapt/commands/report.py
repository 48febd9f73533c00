"""``eqadapt report``: one self-contained page with everything a study found."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write report.html from a study's metrics, figures and claims"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--results", type=Path, required=True, help="folder results/<study>")
    parser.add_argument(
        "--published",
        type=Path,
        default=Path("config/published.yaml"),
        help="published figures (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="default: report.html in the results folder")
    parser.add_argument(
        "--command",
        help="what the report says to type to make it again "
        "(default: snakemake --cores all --configfile config/<study>.yaml)",
    )


def run(args: argparse.Namespace) -> None:
    """Write ``report.html``."""
    from eqadapt.analysis.published import load_published
    from eqadapt.analysis.report import write_report
    from eqadapt.analysis.results import open_results

    results = open_results(args.results)
    command = args.command or f"snakemake --cores all --configfile config/{results.name}.yaml"
    print(write_report(results, load_published(args.published), command, args.out))
