"""Upright accuracy against vanilla's by how often the pose is kept: a point a run, all studies."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from eqadapt.analysis.figures import style as s
from eqadapt.analysis.identity_rates import FAMILIES

_COLOURS = dict(
    zip(
        FAMILIES,
        ("#999999", "#56b4e9", "#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7"),
        strict=True,
    )
)
_MARKERS = {"C4": "s", "C8": "o", "C12": "v", "C16": "^", "C24": "D"}
_ANOTHER = "X"  # of groups without a marker of their own
_CLOSE = (76.0, 100.6, -5.6, 1.8)  # identity rates and differences that the right panel shows


def accuracy_against_identity_rate(frame: pd.DataFrame) -> Figure:
    """All points on the left, the crowd where most poses are kept on the right.

    Args:
        frame: As ``analysis.identity_rates.identity_rates`` returns it, with a row at least.
    """
    figure, (whole, close) = s.panels(2, 5.2, 4.4)
    for axis in (whole, close):
        _draw(axis, frame)
        axis.axhline(0, color=s.QUIET, lw=1.0, ls=(0, (4, 3)), zorder=1)
        axis.set_xlabel("Upright images that keep their pose (%)")
        s.clean(axis)
    whole.set_xlim(-2, 102)
    left, right, bottom, top = _CLOSE
    close.set_xlim(left, right)
    close.set_ylim(bottom, top)
    whole.add_patch(
        Rectangle(
            (left, bottom), right - left, top - bottom, fill=False, ec=s.INK, lw=0.9, zorder=4
        )
    )
    whole.set_title("All runs")
    close.set_title("The frame on the left, enlarged")
    whole.set_ylabel("Upright accuracy minus vanilla's (points)")
    _legend(figure, frame)
    return figure


def _draw(axis: Axes, frame: pd.DataFrame) -> None:
    for (name, group, upright), part in frame.groupby(["family", "group", "images_upright"]):
        colour = _COLOURS[str(name)]
        axis.plot(
            part["identity_rate_percent"],
            part["difference_points"],
            linestyle="",
            marker=_MARKERS.get(str(group), _ANOTHER),
            markersize=5,
            markerfacecolor=colour if upright else "none",
            markeredgecolor="white" if upright else colour,
            markeredgewidth=0.5 if upright else 1.1,
            alpha=0.8,
            zorder=3,
        )


def _legend(figure: Figure, frame: pd.DataFrame) -> None:
    """Families on the left, groups on the right."""
    families = [
        _dot("o", _COLOURS[name], name) for name in FAMILIES if name in set(frame["family"])
    ]
    groups = sorted(frame["group"].unique(), key=lambda name: int(name[1:]))
    shapes = [_dot(_MARKERS.get(group, _ANOTHER), s.INK, group) for group in groups]
    if not frame["images_upright"].all():
        shapes.append(_dot("o", s.INK, "hollow: images come turned", fillstyle="none"))
    figure.legend(handles=families, loc="outside lower left", ncols=2)
    figure.legend(handles=shapes, loc="outside lower right", ncols=2)


def _dot(marker: str, colour: str, label: str, **options: Any) -> Line2D:
    return Line2D([], [], linestyle="", marker=marker, color=colour, label=label, **options)
