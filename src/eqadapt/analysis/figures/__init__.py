"""Figures of a study, as SVG and PNG, drawn from its prediction files.

A figure is a function ``(Results, cells) -> matplotlib Figure``, one panel (or row) a cell; the
cells of one figure share data set, regime and group. A further one is a function in a module of its
own, an entry in ``FIGURES`` and in ``analysis.outputs.FIGURES``, and its words in
``analysis.captions``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path

from matplotlib.figure import Figure

from eqadapt.analysis import outputs
from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures.angles import accuracy_by_angle, accuracy_by_angle_polar
from eqadapt.analysis.figures.cost import accuracy_against_cost
from eqadapt.analysis.figures.curves import training_curves
from eqadapt.analysis.figures.gallery import draw_gallery
from eqadapt.analysis.figures.poses import chosen_poses
from eqadapt.analysis.figures.scatter import upright_vs_cn_avg
from eqadapt.analysis.figures.style import placeholder, save, themed
from eqadapt.analysis.figures.temperature import accuracy_against_temperature
from eqadapt.analysis.figures.training_size import accuracy_against_training_size
from eqadapt.analysis.results import Results

FIGURES: dict[str, Callable[[Results, list[Cell]], Figure | None]] = {
    "accuracy_by_angle": accuracy_by_angle,
    "accuracy_by_angle_polar": accuracy_by_angle_polar,
    "upright_vs_cn_avg": upright_vs_cn_avg,
    "chosen_poses": chosen_poses,
    "training_curves": training_curves,
    "accuracy_against_cost": accuracy_against_cost,
    "accuracy_against_temperature": accuracy_against_temperature,
}


def write_figures(results: Results) -> list[Path]:
    """Write every figure that ``outputs.figure_files`` names; one without data says so."""
    layout, written = results.layout, []
    with themed():
        for dataset, regime, group in product(
            layout["datasets"], layout["regimes"], layout["groups"]
        ):
            cells = [c for c in results.cells(regime, group) if c.dataset == dataset]
            for name in outputs.figures(results.config):
                stem = outputs.figure_stem(name, dataset, regime, group)
                figure = FIGURES[name](results, cells) if cells else None
                written += save(figure or placeholder(), results.folder / stem)
        for parts in [] if results.test_time else _gallery_cells(layout):
            figure = draw_gallery(results, Cell(*parts))
            stem = outputs.gallery_stem(*parts)
            written += save(figure or placeholder(), results.folder / stem, photographs=True)
        written += _write_training_sizes(results)
    return written


def _write_training_sizes(results: Results) -> list[Path]:
    layout, written = results.layout, []
    for source, entries in outputs.training_sizes(results.config).items():
        for regime, group in product(layout["regimes"], layout["groups"]):
            cells = [c for c in results.cells(regime, group) if c.dataset in entries]
            figure = accuracy_against_training_size(results, cells, source) if cells else None
            stem = outputs.figure_stem(outputs.TRAINING_SIZE, source, regime, group)
            written += save(figure or placeholder(), results.folder / stem)
    return written


def _gallery_cells(layout: Mapping[str, list[str]]) -> Iterable[tuple[str, ...]]:
    return product(*(layout[key] for key in ("datasets", "backbones", "regimes", "groups")))
