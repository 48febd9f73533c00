"""``eqadapt headline``: means over seeds as small JSON files, for ``dvc metrics show`` and diff."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

HELP = "write each cell's means over seeds as one small JSON file"
CELL = ("dataset", "backbone", "regime", "method", "group")
RATES = ("acc", "cn_avg", "worst_pose_acc", "identity_rate")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the verb."""
    parser.add_argument("--results", type=Path, required=True, help="folder results/<study>")


def headlines(rows: Iterable[Mapping[str, str]]) -> dict[str, dict[str, float | int]]:
    """Means over seeds of the rows of metrics.csv, by ``<dataset>-...-<group>``.

    Rates are fractions, rounded to 6 digits; those that do not apply are left out.
    """
    cells: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        cells.setdefault("-".join(row[key] for key in CELL), []).append(row)
    found: dict[str, dict[str, float | int]] = {}
    for cell, seeds in cells.items():
        found[cell] = {"seeds": len(seeds)}
        for rate in RATES:
            values = [float(row[rate]) for row in seeds if row[rate]]
            if values:
                found[cell][rate] = round(sum(values) / len(values), 6)
    return found


def run(args: argparse.Namespace) -> None:
    """Write ``headline/*.json``; those of cells that the study no longer has go."""
    from eqadapt.errors import UserError
    from eqadapt.files import write_json

    path = args.results / "metrics.csv"
    if not path.is_file():
        raise UserError("no metrics yet", where=str(path), fix="run `eqadapt metrics` first")
    with path.open(encoding="utf-8", newline="") as stream:
        found = headlines(csv.DictReader(stream))
    for old in (args.results / "headline").glob("*.json"):
        if old.stem not in found:
            old.unlink()
    for cell, values in found.items():
        write_json(args.results / "headline" / f"{cell}.json", values)
    print(f"{args.results / 'headline'}: {len(found)} files")
