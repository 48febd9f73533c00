"""The rows as figures: speed-ups, growth, stages and accuracy against time; a set a device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from benchmarks.rows import Row
from benchmarks.table import NAMES
from benchmarks.table import ratio as ratio_text
from eqadapt.analysis.figures import style

OURS, PEERS, FLOOR = "#0072b2", "#d55e00", "#2b2b2b"  # Okabe and Ito
SPEEDUPS = (
    "canonicalize_same_weights",
    "canonicalize_default",
    "warp",
    "optc",
    "optc_default",
    "train_prior_same_weights",
    "train_prior_default",
    "orbit",
    "parts",
    "escnn",
    "ttach",
    "shared_views",
    "startup",
    "inference",
    "train_joint",
    "kept_memory",
    "kept_memory_inference",
    "kept_memory_optc",
    "kept_memory_optc_default",
    "kept_memory_parts",
)
FEWEST_PAIRS = 3  # of a figure: the table tells one or two
GROWTH = {
    "growth_order": ("order of the group", r"C(\d+)"),
    "growth_side": ("side of the image, pixels", r"(\d+) px"),
    "growth_batch": ("batch", r"batch (\d+)"),
    "growth_runs": ("runs", r"(\d+) short runs"),
}


def write(rows: Sequence[Row], out: Path) -> list[Path]:
    """All figures that the rows allow, as SVG and PNG."""
    paths: list[Path] = []
    with style.themed():
        for device in dict.fromkeys(row.device for row in rows):
            mine = [row for row in rows if row.device == device]
            slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
            for name, draw in (
                ("speedups", speedups),
                ("growth", growth),
                ("stages", stages),
                ("accuracy_against_time", accuracy_against_time),
            ):
                figure = draw(mine)
                if figure is not None:
                    paths += style.save(figure, out / f"{name}-{slug}")
    return paths


def _subplots(columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure, grid = style.plt.subplots(1, columns, figsize=size, squeeze=False, layout="constrained")
    return figure, list(grid.flat)


def speedups(rows: Sequence[Row]) -> Figure | None:
    """A bar a pair: how many times faster, with the floor as a tick."""
    shown = [row for name in SPEEDUPS for row in rows if row.measure == name and row.ratio]
    if len(shown) < FEWEST_PAIRS:
        return None
    figure, (axes,) = _subplots(1, (8.5, 0.8 + 0.24 * len(shown)))
    places = range(len(shown))
    ratios = [float(row.ratio or 0) for row in shown]
    colours = [PEERS if row.met is False else OURS for row in shown]
    axes.barh(places, [value - 1 for value in ratios], left=1, color=colours, height=0.7)
    for place, row, value in zip(places, shown, ratios, strict=True):
        if row.floor is not None:
            axes.plot([row.floor] * 2, [place - 0.45, place + 0.45], color=FLOOR, linewidth=1.6)
        axes.annotate(
            ratio_text(value),
            (max(value, row.floor or 1, 1), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(places, [f"{NAMES[row.measure]}: {row.setting}" for row in shown], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(min(0.8, *ratios, 0.8) * 0.9, max(*ratios, 2) * 2)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.axvline(1, color=style.QUIET, linewidth=1)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("peer's time over ours\n(ticks: floors; orange: not reached)")
    style.clean(axes)
    return figure


def growth(rows: Sequence[Row]) -> Figure | None:
    """A panel for what grows: seconds of ours and of the reference."""
    names = [name for name in GROWTH if any(row.measure == name for row in rows)]
    if not names:
        return None
    figure, panels = _subplots(len(names), (3.3 * len(names), 3.0))
    for axes, name in zip(panels, names, strict=True):
        label, pattern = GROWTH[name]
        mine = [row for row in rows if row.measure == name]
        for key, colour, marker, who in (
            (
                "peer_seconds",
                PEERS,
                "s",
                "a process a run" if name == "growth_runs" else "equiadapt",
            ),
            ("our_seconds", OURS, "o", "ours"),
        ):
            points = [(_number(pattern, row), getattr(row, key)) for row in mine]
            points = [point for point in points if point[1] is not None]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, color=colour, marker=marker, markersize=4.5, label=who)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = [_number(pattern, row) for row in mine]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xlabel(label)
        axes.legend(fontsize=8)
        style.clean(axes)
    panels[0].set_ylabel("seconds")
    return figure


def _number(pattern: str, row: Row) -> float:
    found = re.search(pattern, row.setting)
    assert found is not None, row.setting
    return float(found[1])


def stages(rows: Sequence[Row]) -> Figure | None:
    """Seconds of warp, scorer and backbone beside the limit of each."""
    mine = [row for row in rows if row.measure == "limits_stage"]
    if not mine:
        return None
    figure, (axes,) = _subplots(1, (7.5, 0.9 + 0.36 * len(mine)))
    for place, row in enumerate(mine):
        axes.barh(place - 0.18, row.our_seconds or 0, height=0.34, color=OURS)
        axes.barh(place + 0.18, row.peer_seconds or 0, height=0.34, color=style.QUIET)
    axes.set_yticks(range(len(mine)), [row.setting for row in mine], fontsize=8)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds (blue: measured; grey: the machine's limit)")
    style.clean(axes)
    return figure


def accuracy_against_time(rows: Sequence[Row]) -> Figure | None:
    """End accuracy and pose accuracy against the time of canonicalization."""
    mine = [row for row in rows if row.measure == "quality_curve"]
    if not mine:
        return None
    figure, panels = _subplots(2, (10.5, 4.2))
    named: list[list[tuple[str, float, float, str]]] = []
    for axes, key, label in (
        (panels[0], "cn_avg", "Cn-Avg under a frozen ResNet-20, %"),
        (panels[1], "pose_accuracy", "poses found, %"),
    ):
        names: list[tuple[str, float, float, str]] = []
        for who, colour, marker in (("peer", PEERS, "s"), ("our", OURS, "o")):
            for row in mine:
                taken, value = getattr(row, f"{who}_seconds"), getattr(row, f"{who}_{key}")
                if taken is None or value is None:
                    continue
                hollow = "identity" in row.setting
                axes.plot(
                    1000 * taken,
                    100 * value,
                    marker,
                    color=colour,
                    markerfacecolor="white" if hollow else colour,
                )
                name = row.setting.removeprefix("equiadapt, ").removesuffix(", identity prior")
                name = name.replace("_cnn, ", ", ")
                names.append((name, 1000 * taken, 100 * value, colour))
        axes.set_xscale("log")
        axes.margins(x=0.3, y=0.15)
        axes.set_xlabel("milliseconds of canonicalization, batch of 16")
        axes.set_ylabel(label)
        style.clean(axes)
        named.append(names)
    panels[0].set_title("orange: equiadapt, blue: ours; hollow: identity prior", fontsize=9)
    figure.canvas.draw()  # sizes are settled before labels look for their places
    for axes, names in zip(panels, named, strict=True):
        _name_points(axes, names)
    return figure


# Where a label may stand, in points from its point, and how it is aligned: the best first.
_PLACES = (
    (0, 9, "center"),
    (0, -9, "center"),
    (8, 0, "left"),
    (-8, 0, "right"),
    (8, 9, "left"),
    (8, -9, "left"),
    (-8, 9, "right"),
    (-8, -9, "right"),
    (0, 19, "center"),
    (0, -19, "center"),
    (12, 19, "left"),
    (12, -19, "left"),
    (-12, 19, "right"),
    (-12, -19, "right"),
)


def _name_points(axes: Axes, names: Sequence[tuple[str, float, float, str]]) -> None:
    """Labels (text, x, y, colour) beside their points, where they hide no other and no point."""
    at = axes.transData.transform
    taken = [Bbox.from_bounds(*(at((x, y)) - 5), 10, 10) for _, x, y, _ in names]
    for own, (text, x, y, colour) in enumerate(names):
        others = taken[:own] + taken[own + 1 :]
        for across, up, align in _PLACES:
            label = axes.annotate(
                text,
                (x, y),
                (across, up),
                textcoords="offset points",
                ha=align,
                va="center",
                fontsize=7,
                color=colour,
            )
            box = label.get_window_extent()
            if box.count_overlaps(others) == 0 or (across, up, align) == _PLACES[-1]:
                taken.append(box)
                break
            label.remove()
