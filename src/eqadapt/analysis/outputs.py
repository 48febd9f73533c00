"""Names of every file the analysis writes for a study. Pure Python: a workflow may import it.

All paths are relative to the study's results folder and follow from the lists in its
configuration alone, so that a workflow can declare them before anything has run.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

METRICS = "metrics.csv"
CLAIMS = "claims.json"
LATENCY = "latency.csv"
TRANSFER = "transfer.csv"
REPORT = "report.html"
ANGLES_TABLE = "tables/accuracy_by_angle.csv"

TABLES = ("main", "diagnostics", "paired_tests")
TABLE_FORMATS = ("csv", "md", "tex")
FIGURES = (
    "accuracy_by_angle",
    "accuracy_by_angle_polar",
    "upright_vs_cn_avg",
    "chosen_poses",
    "training_curves",
)
# Studies of test-time methods have dozens of them: one table, and the figures that hold so many.
TEST_TIME_TABLES = ("methods",)
TEST_TIME_FIGURES = ("accuracy_against_cost", "accuracy_against_temperature")
# Of studies with several parts of one data set.
TRAINING_SIZE = "accuracy_against_training_size"
GALLERY = "gallery"
FIGURE_FORMATS = ("svg", "png")


def names(config: Mapping[str, Any], key: str, default: tuple[str, ...] = ()) -> list[str]:
    """The names under ``key``: a list of names, of mappings with a ``name``, or one mapping."""
    value = config.get(key)
    if value is None:
        return list(default)
    if isinstance(value, str | int):
        return [str(value)]
    return [str(item["name"]) if isinstance(item, Mapping) else str(item) for item in value]


def regimes(config: Mapping[str, Any]) -> list[str]:
    """The study's training regimes; ``["joint"]`` when it does not say."""
    return names(config, "regimes", ("joint",))


def groups(config: Mapping[str, Any]) -> list[str]:
    """The study's groups, without the trivial one."""
    return [group for group in names(config, "groups") if group != "C1"]


def test_time(config: Mapping[str, Any]) -> bool:
    """Whether the study is one of test-time methods."""
    return bool(config.get("test_time"))


def transfers(config: Mapping[str, Any]) -> bool:
    """Whether the study's canonicalizers are evaluated on its other data sets too."""
    return bool(config.get("transfer"))


def tables(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The study's kinds of tables."""
    return TEST_TIME_TABLES if test_time(config) else TABLES


def figures(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The study's kinds of figures, galleries aside."""
    return TEST_TIME_FIGURES if test_time(config) else FIGURES


def table_stem(table: str, regime: str, group: str) -> str:
    """``tables/main-joint-C8``."""
    return f"tables/{table}-{regime}-{group}"


def figure_stem(figure: str, dataset: str, regime: str, group: str) -> str:
    """``figures/accuracy_by_angle-digits-joint-C8``."""
    return f"figures/{figure}-{dataset}-{regime}-{group}"


def gallery_stem(dataset: str, backbone: str, regime: str, group: str) -> str:
    """``figures/gallery-digits-resnet18-joint-C8``."""
    return f"figures/{GALLERY}-{dataset}-{backbone}-{regime}-{group}"


def table_files(config: Mapping[str, Any]) -> list[str]:
    """Every table of the study, in every format."""
    kinds = product(tables(config), regimes(config), groups(config))
    files = [f"{table_stem(*parts)}.{form}" for parts in kinds for form in TABLE_FORMATS]
    return files if test_time(config) else [*files, ANGLES_TABLE]


def figure_files(config: Mapping[str, Any]) -> list[str]:
    """Every figure of the study: drawings as SVG and as PNG, galleries as PNG."""
    cells = list(product(names(config, "datasets"), regimes(config), groups(config)))
    stems = [figure_stem(figure, *cell) for figure in figures(config) for cell in cells]
    stems += [
        figure_stem(TRAINING_SIZE, *cell)
        for cell in product(training_sizes(config), regimes(config), groups(config))
    ]
    drawings = [f"{stem}.{form}" for stem in stems for form in FIGURE_FORMATS]
    return [*drawings, *gallery_files(config)]


def gallery_files(config: Mapping[str, Any]) -> list[str]:
    """Every gallery of the study, as PNG alone: an SVG full of images would be larger."""
    return [f"{gallery_stem(*cell)}.png" for cell in gallery_cells(config)]


def gallery_cells(config: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Data set, backbone, regime and group of every gallery; test-time studies have none."""
    if test_time(config):
        return []
    named = (names(config, "datasets"), names(config, "backbones"))
    return list(product(*named, regimes(config), groups(config)))


def training_sizes(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Source -> its entries, for sources of which the study trains on several parts."""
    datasets = config.get("datasets")
    if test_time(config) or not isinstance(datasets, Mapping):
        return {}
    by_source: dict[str, dict[str, Any]] = {}
    for name, options in datasets.items():
        source = str((options or {}).get("source") or name)
        by_source.setdefault(source, {})[name] = (options or {}).get("limit_train")
    return {
        source: list(limits)
        for source, limits in by_source.items()
        if len(set(limits.values())) > 1
    }
