"""Invariance to products of groups: what it costs in passes and what it keeps of the accuracy."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from eqadapt.analysis.formatting import Column, Grid, Text, points, share, to_markdown
from eqadapt.analysis.labels import cell_label, method_style
from eqadapt.analysis.statistics import bootstrap_interval
from eqadapt.errors import UserError
from eqadapt.files import write_text

COLUMNS = (
    "dataset",
    "backbone",
    "group",
    "order",
    "method",
    "passes",
    "energies",
    "images",
    "acc",
    "group_avg",
    "group_avg_low",
    "group_avg_high",
    "all_poses_right",
    "orbit_agreement",
    "largest_difference",
    "group_avg_lowest_energy",
    "group_avg_highest_energy",
)
_LABELS = {
    "multi_group": "Multi-group (sum of the factors)",
    "fixed_energy": "Fixed energy (nothing learned)",
}
_GROUPS = {
    "D4": "quarter turns and reflection, semidirect",
    "C4xA3": "quarter turns and cyclic permutations of the colour channels",
    "C4xS3": "quarter turns and permutations of the colour channels",
}


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a method and group, energies averaged; rates as fractions.

    Args:
        frame: What each method makes of each image: ``images.parquet``.
    """
    keys = ["dataset", "backbone", "group", "order", "method"]
    rows = [{**dict(zip(keys, key)), **_row(part)} for key, part in frame.groupby(keys, sort=False)]
    return pd.DataFrame(rows)[list(COLUMNS)]


def _row(part: pd.DataFrame) -> dict[str, float | int]:
    rate = part["hits"] / part["order"]
    interval = bootstrap_interval(rate.groupby(part["index"]).mean())
    by_energy = rate.groupby(part["energy_seed"]).mean()
    return {
        "passes": float(part["passes"].iloc[0]),
        "energies": int(part["energy_seed"].nunique()) if part["energy_seed"].min() >= 0 else 0,
        "images": int(part["index"].nunique()),
        "acc": float(part["upright"].mean()),
        "group_avg": interval.mean,
        "group_avg_low": interval.low,
        "group_avg_high": interval.high,
        "all_poses_right": float(part["worst"].mean()),
        "orbit_agreement": float(part["agrees"].mean()),
        "largest_difference": float(part["difference"].max()),
        "group_avg_lowest_energy": float(by_energy.min()),
        "group_avg_highest_energy": float(by_energy.max()),
    }


_HEADINGS = (
    Column("method", left=True),
    Column("passes"),
    Column("upright"),
    Column("mean over the group"),
    Column("95% interval"),
    Column("right in all poses"),
    Column("one prediction"),
    Column("largest difference"),
    Column("energies"),
)


def markdown(table: pd.DataFrame) -> str:
    """A table a cell and group."""
    parts = [
        "# Invariance to several groups at once",
        "",
        "Test images in every pose of the group; rates in percent. The methods with a fixed energy "
        "are means over its draws; the last column holds the worst and the best of them. "
        "Intervals: bootstrap over images. Largest difference: of a log-probability (of no less "
        "than -30) between a pose and upright, over all images.",
        "",
    ]
    for key, rows in table.groupby(["dataset", "backbone", "group"], sort=False):
        dataset, backbone, group = map(str, key)
        order, images = int(rows["order"].iloc[0]), int(rows["images"].iloc[0])
        what = f" ({_GROUPS[group]})" if group in _GROUPS else ""
        parts += [f"## {cell_label(dataset, backbone)}, {group}{what}", ""]
        parts += [f"{order} elements, {images:,} images.", ""]
        parts.append(to_markdown(Grid(_HEADINGS, list(_cells(rows)))))
    return "\n".join(parts)


def _cells(rows: pd.DataFrame) -> Iterator[list[Text]]:
    ordered = rows.sort_values("group_avg", ascending=False, kind="stable")
    for row in ordered.to_dict("records"):
        texts = [
            _LABELS.get(row["method"]) or method_style(row["method"]).label,
            f"{row['passes']:g}",
            share(row["acc"]),
            share(row["group_avg"]),
            f"{share(row['group_avg_low'])} to {share(row['group_avg_high'])}",
            share(row["all_poses_right"]),
            share(row["orbit_agreement"]),
            points(row["largest_difference"], 2) if row["largest_difference"] else "0",
            _by_energy(row),
        ]
        yield [Text(text) for text in texts]


def _by_energy(row: Mapping[Hashable, Any]) -> str:
    if not row["energies"]:
        return ""
    low, high = row["group_avg_lowest_energy"], row["group_avg_highest_energy"]
    return f"{share(low)} to {share(high)}"


def write_product_tables(folder: Path) -> list[Path]:
    """Write ``products.csv`` and ``tables/products.md`` from ``images.parquet``.

    Raises:
        UserError: There is no such file.
    """
    source = folder / "images.parquet"
    if not source.is_file():
        raise UserError("no comparison yet", where=str(source), fix="run `eqadapt products`")
    table = summary(pd.read_parquet(source))
    csv, text = folder / "products.csv", folder / "tables" / "products.md"
    write_text(csv, table.to_csv(index=False, float_format="%.6f"))
    write_text(text, markdown(table))
    return [csv, text]
