"""``eqadapt claims``: a verdict on each of the papers' claims."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "judge the papers' claims from a study's predictions"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--results", type=Path, required=True, help="folder results/<study>")
    parser.add_argument(
        "--published",
        type=Path,
        default=Path("config/published.yaml"),
        help="published figures (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="default: claims.json in the results folder")


def run(args: argparse.Namespace) -> None:
    """Write ``claims.json`` and print the verdicts."""
    from eqadapt.analysis import outputs
    from eqadapt.analysis.claims import claims_document
    from eqadapt.analysis.published import load_published
    from eqadapt.analysis.results import open_results
    from eqadapt.files import write_json

    results = open_results(args.results)
    document = claims_document(results, load_published(args.published))
    write_json(args.out or args.results / outputs.CLAIMS, document)
    for claim in document["claims"]:
        note = f" ({claim['reason']})" if claim["reason"] else ""
        print(f"{claim['id']:>4}  {claim['verdict']}{note}")
    results.tell_missing()
