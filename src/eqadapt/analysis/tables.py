"""Tables of a study: the paper's layout with published figures beside ours, diagnostics, tests.

Each table is a tidy frame (CSV, full precision) and a grid for people (Markdown, LaTeX, and HTML
in the report). A further table is a pair of such functions and one entry in ``TABLES``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqadapt.analysis import formatting as f
from eqadapt.analysis import outputs
from eqadapt.analysis.comparisons import paired_frame, summary_frame
from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.formatting import ABSENT, Column, Grid, Text
from eqadapt.analysis.labels import cell_label, method_order, method_style
from eqadapt.analysis.method_table import method_table
from eqadapt.analysis.metrics import accuracy_by_pose, write_csv
from eqadapt.analysis.published import METRICS, Published
from eqadapt.analysis.results import Results
from eqadapt.analysis.statistics import t_interval
from eqadapt.files import write_text
from eqadapt.groups.cyclic import parse_group

INTERVAL_NOTE = (
    "Percent; mean ± 95% interval over seeds (Student t); square brackets: 95% interval over "
    "test images, of one seed or of a network that was not trained."
)


@dataclass(frozen=True)
class Table:
    """One table: what goes to the CSV, and one or more grids for people."""

    frame: pd.DataFrame
    grids: Sequence[Grid]


def main_table(results: Results, published: Published, regime: str, group: str) -> Table:
    """Accuracy and Cn-Avg by method, data set and backbone, published figures beside ours."""
    cells = results.cells(regime, group)
    frame = main_frame(results, published, cells, group)
    ours = frame[frame["mean_percent"].notna()]
    grids = [_main_grid(results, ours, cells, regime, group)] if cells else []
    ran = {results.published_as(cell.dataset, cell.backbone) for cell in cells}
    reference = published_grid(published, group, ran)
    return Table(frame, [*grids, *([reference] if reference else [])])


def main_frame(
    results: Results, published: Published, cells: Sequence[Cell], group: str
) -> pd.DataFrame:
    """Tidy: one row a data set, backbone, method and metric, in percent.

    Rows of published cells that the study did not run have no ``mean_percent``; a figure that was
    not found is the text "n/a".
    """
    summary = summary_frame(results, cells)
    rows, ran = [], set()
    for row in ({str(k): v for k, v in row.items()} for row in summary.to_dict("records")):
        pair = results.published_as(row["dataset"], row["backbone"])
        rows.append(_main_row(row, pair, published))
        ran.add((*pair, row["method"]))
    for dataset, backbone in published.tabled(group):
        for method in published.methods(dataset, backbone, group):
            if (dataset, backbone, method) not in ran:
                for metric in METRICS:
                    empty = {"dataset": dataset, "backbone": backbone, "regime": "", "group": group}
                    row = {**empty, "method": method, "metric": metric}
                    rows.append(_main_row(row, (dataset, backbone), published))
    return pd.DataFrame(rows, columns=_MAIN_COLUMNS)


_MAIN_COLUMNS = (
    *("dataset", "backbone", "regime", "group", "method", "metric"),
    *("mean_percent", "low_percent", "high_percent", "interval", "n_seeds", "n_test"),
    *("published_percent", "published_grade", "published_paper", "difference_points"),
)


def _main_row(row: dict[str, Any], pair: tuple[str, str], published: Published) -> dict[str, Any]:
    # Figures of networks fine-tuned jointly are no measure of a frozen one.
    regime = row["regime"] or "joint"
    figure = published.find(*pair, row["group"], row["method"], row["metric"], regime)
    mean = row.get("mean", math.nan)
    return {
        **{key: row[key] for key in ("dataset", "backbone", "regime", "group", "method", "metric")},
        "mean_percent": mean,
        "low_percent": row.get("low", math.nan),
        "high_percent": row.get("high", math.nan),
        "interval": row.get("interval", ""),
        "n_seeds": row.get("n_seeds", 0),
        "n_test": row.get("n_test", 0),
        "published_percent": figure.value if figure else ABSENT,
        "published_grade": figure.grade if figure else ABSENT,
        "published_paper": figure.paper if figure else ABSENT,
        "difference_points": mean - figure.value if figure and not math.isnan(mean) else ABSENT,
    }


def _main_grid(
    results: Results, frame: pd.DataFrame, cells: Sequence[Cell], regime: str, group: str
) -> Grid:
    methods = sorted(frame["method"].unique(), key=method_order)
    keys = ["dataset", "backbone", "method", "metric"]
    table = {tuple(row[key] for key in keys): row for row in frame.to_dict("records")}
    columns = [Column("Method", left=True)]
    best: dict[tuple[str, str, str], float] = {}
    for cell in cells:
        for metric in METRICS:
            title = "Acc" if metric == "acc" else f"{group}-Avg"
            label = results.cell_label(cell.dataset, cell.backbone)
            columns.append(Column(title, label, cell=(cell.dataset, cell.backbone)))
            best[cell.dataset, cell.backbone, metric] = _best(frame, cell, metric)
    rows, compared = [], bool((frame["published_percent"] != ABSENT).any())
    for method in methods:
        row = [Text(method_style(method).label)]
        for (dataset, backbone, metric), top in best.items():
            key = (dataset, backbone, method, metric)
            if key not in table:
                row.append(Text(f.DASH, quiet=True))
                continue
            best_of = math.nan if method_style(method).reference else top
            row.append(_main_text(table[key], best_of, compared))
        rows.append(row)
    rules = tuple(n for n, m in enumerate(methods) if method_style(m).reference)
    notes = (
        "Behind or below ours: the published figure, its grade, and ours minus it; n/a: there is "
        "none for this cell. "
    )
    caption = (
        f"{INTERVAL_NOTE} {group}-Avg: mean accuracy over the {group} poses. "
        f"{notes if compared else ''}Bold: best of a column, the oracle aside. Training: {regime}."
    )
    return Grid(columns, rows, caption, rules)


def _best(frame: pd.DataFrame, cell: Cell, metric: str) -> float:
    competing = ~frame["method"].map(lambda name: method_style(name).reference)
    here = (
        competing
        & (frame["dataset"] == cell.dataset)
        & (frame["backbone"] == cell.backbone)
        & (frame["metric"] == metric)
    )
    return float(frame.loc[here, "mean_percent"].max())


def _main_text(row: Mapping[Any, Any], best: float, compared: bool) -> Text:
    """One cell of the grid; ``compared``: the grid has published figures."""
    value = f.with_interval(
        row["mean_percent"], row["low_percent"], row["high_percent"], row["interval"]
    )
    note = ABSENT if compared else ""
    if row["published_percent"] != ABSENT:
        gap = f.signed(float(row["difference_points"]))
        note = f"{row['published_percent']:.2f} {row['published_grade']}; {gap}"
    # Ties are all bold: rounding must not choose a winner.
    return Text(value, bold=bool(np.isclose(row["mean_percent"], best, atol=1e-9)), note=note)


def published_grid(
    published: Published, group: str, ran: Collection[tuple[str, str]] = ()
) -> Grid | None:
    """Published figures of cells that were not run here: reference only, none of it ours."""
    pairs = [pair for pair in published.tabled(group) if pair not in ran]
    if not pairs:
        return None
    methods = sorted({m for p in pairs for m in published.methods(*p, group)}, key=method_order)
    columns = [Column("Method (published)", left=True)]
    columns += [
        Column("Acc" if metric == "acc" else f"{group}-Avg", cell_label(*pair), cell=pair)
        for pair in pairs
        for metric in METRICS
    ]
    rows = []
    for method in methods:
        row = [Text(method_style(method).label)]
        for pair in pairs:
            for metric in METRICS:
                figure = published.find(*pair, group, method, metric)
                row.append(
                    Text(f"{figure.value:.2f} {figure.grade}", quiet=True)
                    if figure
                    else Text(ABSENT, quiet=True)
                )
        rows.append(row)
    caption = (
        "Published figures of cells not run here, for reference; none of these numbers is ours. "
        "Percent; the letter grades how directly a figure could be read (A the authors' own "
        "material, A~ read off their chart, B two secondary sources, C one)."
    )
    return Grid(columns, rows, caption + _elsewhere(published, pairs, group))


def _elsewhere(published: Published, pairs: Sequence[tuple[str, str]], group: str) -> str:
    """Where figures are from that are not the paper's own table."""
    found: dict[str, str] = {}
    for pair in pairs:
        for method in published.methods(*pair, group):
            figure = published.find(*pair, group, method, METRICS[0])
            if figure is not None and figure.source:
                found[cell_label(*pair)] = figure.source
    return "".join(f" {pair}: from the authors' {source}." for pair, source in found.items())


_ALL_ANGLES = "all_pose_acc"
# column of metrics.csv, heading, how a mean over seeds is written
_DIAGNOSTICS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("worst_pose_acc", "Worst pose", f.share),
    (_ALL_ANGLES, "All angles", f.share),
    ("orbit_agreement", "Orbit agreement", f.share),
    ("identity_rate", "Identity rate", f.share),
    ("pose_acc_exact", "Pose acc. 90°", f.share),
    ("pose_acc_rest", "Pose acc. rest", f.share),
    ("consistency_exact", "Consistency 90°", f.share),
    ("consistency_rest", "Consistency rest", f.share),
    ("backbone_passes", "Passes", f.count),
    ("params_added", "Added parameters", f.count),
    ("train_seconds", "Training", f.duration),
)


def diagnostics_table(results: Results, published: Published, regime: str, group: str) -> Table:
    """What the averages hide: worst pose, angles between, poses and consistency by coset, costs.

    The accuracy over all angles is left out where only the group's own were tested: there it is
    the average over the group.
    """
    metrics, order = results.metrics, parse_group(group).order
    here = metrics[(metrics["regime"] == regime) & (metrics["group"] == group)]
    finer = here["n_poses"] > order
    here = here.assign(**{_ALL_ANGLES: here[_ALL_ANGLES].where(finer)})
    shown = [entry for entry in _DIAGNOSTICS if entry[0] != _ALL_ANGLES or finer.any()]
    columns = [Column("Data, network", left=True), Column("Method", left=True)]
    columns += [Column(heading) for _, heading, _ in shown]
    rows: list[list[Text]] = []
    tidy: list[dict[str, Any]] = []
    rules: list[int] = []
    for cell in results.cells(regime, group):
        part = here[(here["dataset"] == cell.dataset) & (here["backbone"] == cell.backbone)]
        rules.append(len(rows))
        for method in sorted(part["method"].unique(), key=method_order):
            runs = part[part["method"] == method]
            tidy.append(_diagnostics_row(cell, method, runs))
            texts = [Text(write(_mean(runs[name]))) for name, _, write in shown]
            texts = [Text(t.value, quiet=t.value == f.DASH) for t in texts]
            rows.append(
                [Text(results.cell_label(*cell[:2])), Text(method_style(method).label), *texts]
            )
    caption = (
        f"Means over seeds; rates in percent. {_about_angles(here.loc[finer, 'n_poses'], order)}"
        "Orbit agreement: images with one prediction in all "
        f"{group} poses. Identity rate: upright images left upright. Pose accuracy: the chosen "
        "pose is the applied one. Consistency: turning the input turns the choice along. 90°: "
        "multiples of 90°, where pixels move without resampling; rest: the group's other poses. A "
        "dash: does not apply. Passes: runs of the network for one prediction."
    )
    return Table(pd.DataFrame(tidy), [Grid(columns, rows, caption, tuple(rules))] if rows else [])


def _about_angles(tested: pd.Series, order: int) -> str:
    """What the column is a mean over, where runs were tested at more angles than the group has."""
    if tested.empty:
        return ""
    counts = " or ".join(str(count) for count in sorted(tested.unique()))
    others = " or ".join(str(count - order) for count in sorted(tested.unique()))
    return (
        f"All angles: mean accuracy over the {counts} angles tested, of which {others} are no "
        f"elements of C{order}. "
    )


def _mean(values: pd.Series) -> float:
    known = pd.to_numeric(values, errors="coerce").dropna()
    return float(known.mean()) if len(known) else math.nan


def _diagnostics_row(cell: Cell, method: str, runs: pd.DataFrame) -> dict[str, Any]:
    row: dict[str, Any] = {**cell._asdict(), "method": method, "n_seeds": len(runs)}
    names = [name for name, _, _ in _DIAGNOSTICS]
    values = runs[names].apply(pd.to_numeric, errors="coerce")
    one = bool((values.nunique() <= 1).all())  # copies of one run: no interval over seeds
    for name in names:
        interval = t_interval(values[name].to_numpy())
        low, high = (math.nan, math.nan) if one else (interval.low, interval.high)
        row |= {name: interval.mean, f"{name}_low": low, f"{name}_high": high}
    return row


def paired_table(results: Results, published: Published, regime: str, group: str) -> Table:
    """Every pair of methods on the same images and poses, with corrected p values."""
    frame = paired_frame(results, results.cells(regime, group))
    columns = [
        Column("Data, network", left=True),
        Column("Metric", left=True),
        Column("First", left=True),
        Column("Second", left=True),
        Column("Difference"),
        Column("Seeds"),
        Column("p (sign flip)"),
        Column("p (Holm)"),
        Column("p (McNemar)"),
    ]
    rows = []
    for row in frame.to_dict("records"):
        metric = "Acc" if row["metric"] == "acc" else f"{group}-Avg"
        interval = f"[{f.signed(row['low'])}, {f.signed(row['high'])}]"
        rows.append(
            [
                Text(results.cell_label(row["dataset"], row["backbone"])),
                Text(metric),
                Text(method_style(row["first"]).label),
                Text(method_style(row["second"]).label),
                Text(f"{f.signed(row['difference'])} {interval}"),
                Text(f"{row['seeds_first_ahead']}/{row['n_seeds']}"),
                Text(f.p_value(row["p_sign_flip"])),
                Text(f.p_value(row["p_holm"]), bold=row["p_holm"] < 0.05),
                Text(f.p_value(row["p_mcnemar"]), quiet=math.isnan(row["p_mcnemar"])),
            ]
        )
    caption = (
        "First minus second, in points, with its 95% interval over seeds (over images where there "
        "is one seed, or all are the same). Seeds: those in which the first is ahead. Sign flip: "
        "exact permutation test with the image as unit, its poses and seeds summed, so that p is "
        "about these trained networks and the interval about others trained alike. Holm: "
        "corrected over the pairs of a cell and metric, bold below 0.05. McNemar: exact, upright "
        "only, merged over seeds at their median."
    )
    changes = (
        frame[["dataset", "backbone", "metric"]] != frame[["dataset", "backbone", "metric"]].shift()
    ).any(axis=1)
    rules = tuple(int(i) for i in np.flatnonzero(changes))
    return Table(frame, [Grid(columns, rows, caption, rules)] if rows else [])


def methods_table(results: Results, published: Published, regime: str, group: str) -> Table:
    """Test-time methods: accuracy, harm, pose accuracy, invariance and cost, best first."""
    return Table(*method_table(results, regime, group))


Maker = Callable[[Results, Published, str, str], Table]
TABLES: dict[str, Maker] = {
    "main": main_table,
    "diagnostics": diagnostics_table,
    "paired_tests": paired_table,
    "methods": methods_table,
}


def write_tables(results: Results, published: Published) -> list[Path]:
    """Write every table that ``outputs.table_files`` names; a table without runs says so."""
    written = []
    for name in outputs.tables(results.config):
        for regime in results.layout["regimes"]:
            for group in results.groups:
                table = TABLES[name](results, published, regime, group)
                stem = outputs.table_stem(name, regime, group)
                written += _write(results.folder / stem, stem, table)
    if results.test_time:
        return written
    angles = results.folder / outputs.ANGLES_TABLE
    write_csv(accuracy_by_pose(results.evaluations), angles)
    return [*written, angles]


def _write(base: Path, stem: str, table: Table) -> list[Path]:
    paths = [base.with_name(f"{base.name}.{form}") for form in outputs.TABLE_FORMATS]
    label = "tab:" + stem.removeprefix("tables/").lower().replace("_", "-")
    empty = "Nothing to show: no runs in this cell of the study, or no two methods to compare.\n"
    labels = [label if not n else f"{label}-{n + 1}" for n in range(len(table.grids))]
    write_csv(table.frame, paths[0])
    write_text(paths[1], "\n".join(map(f.to_markdown, table.grids)) or empty)
    latex = "\n".join(f.to_latex(g, name) for g, name in zip(table.grids, labels, strict=True))
    write_text(paths[2], latex or f"% {empty}")
    return paths
