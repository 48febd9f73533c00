"""Inputs beside the poses that methods choose for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures import style as s
from eqadapt.analysis.labels import method_styles
from eqadapt.analysis.results import Results
from eqadapt.errors import UserError

RIGHT, WRONG = "#009e73", "#c8102e"
_KEYS = ("inputs", "canonical", "angles", "chosen_angles", "labels", "predictions")
_MOST_POSES, _MOST_ROWS = 8, 16


@dataclass(frozen=True)
class Pictures:
    """One gallery file: N images in P poses.

    Attributes:
        inputs: (N, P, H, W, C) uint8, the turned inputs.
        canonical: The same shape: in the chosen pose, which the network is given; of methods that
            look at several views, the one that is chosen or weighs most.
        angles: (P,) degrees counter-clockwise the inputs were turned.
        chosen_angles: (N, P) degrees of the chosen pose; NaN for none.
        labels: (N,) true classes.
        predictions: (N, P) predicted classes.
    """

    inputs: NDArray[np.uint8]
    canonical: NDArray[np.uint8]
    angles: NDArray[np.float32]
    chosen_angles: NDArray[np.float32]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]


def load_pictures(path: Path) -> Pictures:
    """Read a gallery file.

    Raises:
        UserError: It cannot be read or lacks a tensor.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"not readable as safetensors: {error}",
            where=str(path),
            fix="delete it and run `eqadapt predict` for this run again",
        ) from error
    missing = [key for key in _KEYS if key not in tensors]
    if missing:
        raise UserError(f"the gallery lacks {', '.join(missing)}", where=str(path))
    return Pictures(**{key: tensors[key] for key in _KEYS})


def draw_gallery(results: Results, cell: Cell) -> Figure | None:
    """The first seed's images: a row of turned inputs, then one row a method, for each image."""
    galleries: dict[str, Pictures] = {}
    for method, runs in results.at(cell).items():
        first = next(iter(runs.values())).predictions
        path = results.folder / "galleries" / f"{first.stem}.safetensors"
        if first.chooses and path.exists():
            galleries[method] = load_pictures(path)
    if not galleries:
        return None
    styles = method_styles(galleries)
    one = next(iter(galleries.values()))
    if not len(one.labels):  # evaluate.gallery: 0
        return None
    images = max(1, min(len(one.labels), 3, _MOST_ROWS // (1 + len(galleries))))
    shown = [number * len(one.labels) // images for number in range(images)]
    rows = [(image, method) for image in shown for method in (None, *styles)]
    poses = min(_MOST_POSES, len(one.angles))
    labels = [styles[method].label if method else "Input" for _, method in rows]
    return _mosaic(galleries, rows, labels, one.angles[:poses])


@dataclass(frozen=True)
class _Sheet:
    """Where the tiles of a mosaic lie, in pixels."""

    side: int
    gap: int
    tops: tuple[int, ...]
    columns: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.tops[-1] + self.side, self.columns * (self.side + self.gap) - self.gap, 3)

    def left(self, column: int) -> int:
        return column * (self.side + self.gap)


def _sheet(rows: Sequence[tuple[int, str | None]], side: int, columns: int) -> _Sheet:
    gap = max(2, side // 12)
    tops, top = [], 0
    for number, (_, method) in enumerate(rows):
        # More air above each further image.
        top += 3 * gap if method is None and number else 0
        tops.append(top)
        top += side + gap
    return _Sheet(side, gap, tuple(tops), columns)


def _mosaic(
    galleries: Mapping[str, Pictures],
    rows: Sequence[tuple[int, str | None]],
    labels: Sequence[str],
    angles: NDArray[np.float32],
) -> Figure:
    one = next(iter(galleries.values()))
    sheet = _sheet(rows, one.inputs.shape[2], len(angles))
    canvas = np.full(sheet.shape, 255, np.uint8)
    scale = 0.85 / (sheet.side + sheet.gap)
    figure = s.plt.figure(figsize=(scale * canvas.shape[1], scale * canvas.shape[0]))
    axis = figure.add_axes((0, 0, 1, 1))
    for top, (image, method) in zip(sheet.tops, rows, strict=True):
        pictures = galleries[method] if method else one
        for pose in range(len(angles)):
            tile = (pictures.canonical if method else pictures.inputs)[image, pose]
            left = sheet.left(pose)
            canvas[top : top + sheet.side, left : left + sheet.side] = tile
            if method:
                right = pictures.predictions[image, pose] == pictures.labels[image]
                _frame(axis, left, top, sheet.side, bool(right))
    axis.imshow(canvas, interpolation="nearest", aspect="equal")
    middle = (sheet.side - 1) / 2
    axis.set_yticks([top + middle for top in sheet.tops], labels)
    for text, (_, method) in zip(axis.get_yticklabels(), rows, strict=True):
        text.set_fontweight("normal" if method else "bold")
    ticks = [sheet.left(pose) + middle for pose in range(len(angles))]
    axis.set_xticks(ticks, [f"{angle:.0f}°" for angle in angles])
    axis.tick_params(length=0, top=False, labeltop=True, bottom=False, labelbottom=False, pad=5)
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)
    return figure


def _frame(axis: Axes, left: int, top: int, side: int, right: bool) -> None:
    colour = RIGHT if right else WRONG
    axis.add_patch(
        Rectangle(
            (left - 0.5, top - 0.5), side, side, fill=False, edgecolor=colour, lw=2, clip_on=False
        )
    )
    if not right:
        # Not by colour alone.
        axis.text(
            left + 0.93 * side,
            top + 0.93 * side,
            "✕",
            ha="right",
            va="bottom",
            fontsize=8,
            color="white",
            fontweight="bold",
            bbox={"boxstyle": "round,pad=0.15", "facecolor": WRONG, "edgecolor": "none"},
        )
