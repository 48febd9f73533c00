"""The rows as people read them: Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import Row
from eqadapt.analysis.formatting import DASH, Column, Grid, Text, share, to_markdown
from eqadapt.files import write_text

NAMES = {
    "canonicalize_same_weights": "canonicalization, same weights",
    "canonicalize_default": "canonicalization, default network",
    "warp": "warp",
    "optc": "OptC, same weights",
    "optc_default": "OptC, our default form",
    "inference": "adapted inference",
    "train_prior_same_weights": "training step, prior alone, same network",
    "train_prior_default": "training step, prior alone, default network",
    "train_joint": "training step, joint",
    "orbit": "evaluation over the orbit",
    "parts": "evaluation in parts",
    "ttach": "mean over C4",
    "shared_views": "mean over C4, evaluated over C4",
    "escnn": "group CNN",
    "startup": "start-up",
    "study": "whole study",
    "growth_order": "growth with the group",
    "growth_side": "growth with the image",
    "growth_batch": "growth with the batch",
    "growth_runs": "growth with the runs",
    "limits_machine": "the machine",
    "limits_stage": "stage against its limit",
    "loader": "getting the batch",
    "throughput": "images a second",
    "quality_curve": "accuracy against time",
    "quality_pair": "accuracy at equal budget",
    "kept_memory": "freed memory kept: training step, joint",
    "kept_memory_inference": "freed memory kept: adapted inference",
    "kept_memory_optc": "freed memory kept: OptC, same weights",
    "kept_memory_optc_default": "freed memory kept: OptC, our default form",
    "kept_memory_parts": "freed memory kept: evaluation in parts",
}
COLUMNS = (
    Column("measure", left=True),
    Column("setting", left=True),
    Column("peer", left=True),
    Column("peer's time"),
    Column("ours"),
    Column("ratio"),
    Column("spread"),
    Column("floor"),
    Column("outputs differ by"),
    Column("peak memory, MiB (peer's / ours)"),
    Column("poses found, % (peer's / ours)"),
    Column("Cn-Avg, % (peer's / ours)"),
    Column("note", left=True),
)


def seconds(value: float | None) -> str:
    """``"2.30 s"``, ``"57.1 ms"``, ``"310 µs"``."""
    if value is None:
        return DASH
    units = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
    scale, unit = next((pair for pair in units if value >= pair[0]), units[-1])
    number = value / scale
    digits = 0 if number >= 100 else 1 if number >= 10 else 2
    return f"{number:.{digits}f} {unit}"


def ratio(value: float | None) -> str:
    """``"2.15x"``, ``"128x"``; three decimals near 1, where they matter."""
    if value is None:
        return DASH
    digits = 0 if value >= 100 else 1 if value >= 10 else 3 if 0.8 <= value < 1.25 else 2
    return f"{value:.{digits}f}x"


def write(rows: Sequence[Row], out: Path) -> list[Path]:
    """``speed_table.md`` (a table a device) and ``speed_table.csv``."""
    paths = [out / "speed_table.md", out / "speed_table.csv"]
    texts = []
    for device in dict.fromkeys(row.device for row in rows):
        grid = Grid(
            COLUMNS,
            [cells(row) for row in rows if row.device == device],
            caption=f"**{device}.** Medians; ratio: the peer's time over ours; spread: "
            "interquartile range of the ratios of neighbouring samples, relative.",
        )
        texts.append(to_markdown(grid))
    write_text(paths[0], "\n".join(texts))
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["device", *(column.title for column in COLUMNS)])
    writer.writerows([[row.device, *(cell.value for cell in cells(row))] for row in rows])
    write_text(paths[1], stream.getvalue())
    return paths


def cells(row: Row) -> list[Text]:
    """One line of the table."""
    difference = row.outputs_max_difference
    floor = DASH
    if row.floor is not None:
        floor = f"{ratio(row.floor)} {'reached' if row.met else 'not reached'}"
    return [
        Text(NAMES.get(row.measure, row.measure)),
        Text(row.setting),
        Text(row.peer or DASH),
        Text(seconds(row.peer_seconds)),
        Text(seconds(row.our_seconds)),
        Text(ratio(row.ratio), bold=bool(row.met)),
        Text(DASH if row.spread is None else f"{row.spread:.0%}"),
        Text(floor),
        Text(DASH if difference is None else "0" if difference == 0 else f"{difference:.0e}"),
        Text(_both(row.peer_peak_mb, row.our_peak_mb, lambda value: f"{value:,.0f}")),
        Text(_both(row.peer_pose_accuracy, row.our_pose_accuracy, share)),
        Text(_both(row.peer_cn_avg, row.our_cn_avg, share)),
        Text(row.note),
    ]


def _both(theirs: float | None, ours: float | None, form) -> str:
    if theirs is None and ours is None:
        return DASH
    return " / ".join(DASH if value is None else form(value) for value in (theirs, ours))
