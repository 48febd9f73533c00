"""What all figures share: theme, legend, panels, and files whose bytes depend on the data alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from eqadapt.analysis import outputs
from eqadapt.analysis.labels import MethodStyle
from eqadapt.files import atomic_path

INK = "#2b2b2b"
QUIET = "#8a8a8a"
GRID = "#e3e3e3"
DPI = 160
MARKER = 4.5
# Thin or small shapes are drawn larger, to look as large as the others.
_LARGER = {
    "*": 1.7,
    "+": 1.4,
    "x": 1.2,
    "1": 1.6,
    "2": 1.6,
    "3": 1.6,
    "d": 1.15,
    "P": 1.2,
    "X": 1.2,
}
# Dates and library versions stay out, ids come from the salt: equal data give equal bytes.
_METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


@contextmanager
def themed() -> Iterator[None]:
    """The look of all figures, undone afterwards."""
    look: dict[Any, Any] = {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "axes.titleweight": "bold",
        "axes.edgecolor": QUIET,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "legend.fontsize": 9.5,
        "legend.frameon": False,
        "figure.dpi": 100,
        "savefig.dpi": DPI,
        "text.hinting": "none",
        "svg.hashsalt": "eqadapt",
        "svg.fonttype": "path",
    }
    with sns.axes_style("whitegrid"), mpl.rc_context(look):
        yield


def save(figure: Figure, base: Path, photographs: bool = False) -> list[Path]:
    """Write ``base.svg`` and ``base.png``, or the PNG alone; close the figure, return the paths.

    Args:
        figure: What to write.
        base: The paths without their endings.
        photographs: It shows images: a PNG that keeps all its colours, and no SVG.
    """
    paths, arranged = [], figure.get_layout_engine() is not None
    if arranged:
        # Lay out once, not once a format.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
    for form in ("png",) if photographs else outputs.FIGURE_FORMATS:
        path = base.with_name(f"{base.name}.{form}")
        with atomic_path(path) as temporary:
            figure.savefig(
                temporary, bbox_inches=None if arranged else "tight", metadata=_METADATA[form]
            )
            if form == "png" and not photographs:
                with_few_colours(temporary)
        paths.append(path)
    plt.close(figure)
    return paths


def with_few_colours(path: Path) -> None:
    """Write a PNG again with at most 256 of its own colours: a third of the bytes.

    One after the other that colour is taken whose pixels are furthest from those taken before,
    their number counted, so that no line takes another's, however much lies around it.
    """
    with Image.open(path) as image:
        pixels, dpi = np.asarray(image.convert("RGB")).astype(np.int64), image.info.get("dpi")
    found, inverse, counts = np.unique(
        pixels @ [1 << 16, 1 << 8, 1], return_inverse=True, return_counts=True
    )
    colours = np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1)
    taken, nearest = [int(counts.argmax())], np.zeros(len(found), np.uint8)
    distance = np.square(colours - colours[taken[0]]).sum(axis=1)
    while len(taken) < 256 and distance.any():
        taken.append(int((counts * distance).argmax()))
        new = np.square(colours - colours[taken[-1]]).sum(axis=1)
        nearest[new < distance] = len(taken) - 1
        distance = np.minimum(distance, new)
    few = Image.fromarray(nearest[inverse].reshape(pixels.shape[:2]), "P")
    few.putpalette(colours[taken].astype(np.uint8).tobytes())
    few.save(path, "PNG", optimize=True, dpi=dpi)


def placeholder(text: str = "no data in this cell of the study") -> Figure:
    """Stands in for a figure that has nothing to show."""
    figure = plt.figure(figsize=(5, 1.2))
    figure.text(0.5, 0.5, text, ha="center", va="center", color=QUIET, style="italic")
    return figure


def panels(
    count: int,
    width: float,
    height: float,
    most: int = 3,
    polar: bool = False,
) -> tuple[Figure, list[Axes]]:
    """``count`` equal panels, at most ``most`` in a row; width and height in inches of each."""
    columns = min(count, most)
    rows = math.ceil(count / columns)
    figure, grid = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
        subplot_kw={"projection": "polar"} if polar else None,
    )
    axes = list(grid.flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def line_options(style: MethodStyle) -> dict[str, Any]:
    """Colour, dash and marker of a method, as keyword arguments of ``plot``."""
    return {
        "color": style.colour,
        "linestyle": style.dash,
        "marker": style.marker,
        "markersize": MARKER * _LARGER.get(style.marker, 1.0),
        "markeredgewidth": 1.2 if style.marker in "+x1234" else 0.6,
        "markeredgecolor": style.colour if style.marker in "+x1234" else "white",
        "linewidth": 1.7,
        "label": style.label,
    }


def legend_below(
    figure: Figure, styles: Iterable[MethodStyle], marker_only: bool = False, width: float = 2.3
) -> None:
    """One legend for all panels, under them, in as many columns as fit.

    What it takes beyond four rows the figure grows by, so that the panels keep their height.
    """
    handles = []
    for style in styles:
        options = line_options(style)
        options["markersize"] *= 1.35
        handles.append(Line2D([], [], **(options | ({"linestyle": ""} if marker_only else {}))))
    columns = max(1, min(len(handles), int(figure.get_figwidth() // width)))
    rows = math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * max(0, rows - 4))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def percent_floor(values: Iterable[float], step: float = 10.0) -> float:
    """The largest multiple of ``step`` below all values, leaving a little air; at least 0."""
    lowest = min((v for v in values if not math.isnan(v)), default=0.0)
    return max(0.0, step * math.floor((lowest - step / 5) / step))


def clean(axes: Axes) -> None:
    """No spines on top and right."""
    sns.despine(ax=axes)
