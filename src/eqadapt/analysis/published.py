"""Published figures, as copied from their sources: looked up, never computed or filled in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eqadapt.analysis.labels import backbone_key
from eqadapt.errors import UserError

METRICS = ("acc", "cn_avg")
# The section `rotated_mnist` names models; ours are a network, a method and, where the model has
# one of ours, a group. Without a group a figure is about every one.
_ROTATED_MNIST = {
    "CNN": ("mnist_cnn", "", "vanilla"),
    "G-CNN(p4)": ("mnist_gcnn", "", "vanilla"),
    "CN(PCA)-CNN": ("mnist_cnn", "", "pca_frame"),
    "CN(OPT)-CNN": ("mnist_cnn", "", "optimised"),
    "CN(p4 frozen)-CNN": ("mnist_cnn", "C4", "frozen_canonicalizer"),
    "CN(p4)-CNN": ("mnist_cnn", "C4", "lc"),
    "CN(p64)-CNN": ("mnist_cnn", "C64", "lc"),
}
GRADES = {
    "A": "read in the authors' own material",
    "A~": "read off the authors' own bar chart, within 0.2",
    "B": "quoted by two independent secondary sources",
    "C": "quoted by one secondary source",
}


@dataclass(frozen=True)
class Figure:
    """One published number.

    Attributes:
        value: In percent, as printed.
        grade: How directly it could be read: A, A~, B or C.
        paper: Key of the paper.
        source: Where in the authors' material, when not the paper's table.
    """

    value: float
    grade: str
    paper: str
    source: str = ""


@dataclass(frozen=True)
class Published:
    """The published classification figures and the papers they are from."""

    papers: Mapping[str, Mapping[str, Any]]
    entries: tuple[Mapping[str, Any], ...]

    def find(
        self, dataset: str, backbone: str, group: str, method: str, metric: str
    ) -> Figure | None:
        """The figure of one cell, or None where none was found."""
        for entry in self.entries:
            key = (entry["dataset"], entry["backbone"], entry["method"])
            about = entry["group"] in (group, "")
            if about and key == (dataset, backbone_key(backbone), method) and metric in entry:
                return Figure(
                    value=float(entry[metric]),
                    grade=str(entry.get("grade", {}).get(metric, "")),
                    paper=str(entry["paper"]),
                    source=str(entry.get("source", "")),
                )
        return None

    def cells(self, group: str) -> list[tuple[str, str]]:
        """The (data set, backbone) pairs with a published average over that group."""
        here = (e for e in self.entries if e["group"] == group and "cn_avg" in e)
        return list(dict.fromkeys((e["dataset"], e["backbone"]) for e in here))

    def methods(self, dataset: str, backbone: str, group: str) -> list[str]:
        """The methods published for one pair."""
        cell = (dataset, backbone_key(backbone), group)
        return [
            e["method"] for e in self.entries if (e["dataset"], e["backbone"], e["group"]) == cell
        ]

    def citation(self, paper: str) -> str:
        """``"Title, venue"``, or the key when the file does not describe it."""
        about = self.papers.get(paper)
        return f"{about['title']}, {about['venue']}" if about else paper


def load_published(path: str | Path) -> Published:
    """Read ``config/published.yaml``.

    Raises:
        UserError: No such file, or not of the expected form.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            "no file of published figures", where=str(path), fix="give it with --published"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"not readable as YAML: {error}", where=str(path)) from error
    if not isinstance(content, Mapping) or "classification" not in content:
        raise UserError("no key 'classification' in the published figures", where=str(path))
    needed = {"paper", "dataset", "backbone", "group", "method"}
    for number, entry in enumerate(content["classification"], start=1):
        missing = needed - set(entry)
        if missing:
            raise UserError(
                f"entry {number} of 'classification' lacks {', '.join(sorted(missing))}",
                where=str(path),
            )
    entries = (*content["classification"], *_rotated_mnist(content.get("rotated_mnist", ())))
    return Published(content.get("papers", {}), entries)


def _rotated_mnist(section: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """That section's figures in the form of the others, without models that are none of ours."""
    for entry in section:
        if entry["model"] in _ROTATED_MNIST:
            backbone, group, method = _ROTATED_MNIST[entry["model"]]
            yield {
                "paper": entry["paper"],
                "dataset": "rotated_mnist",
                "backbone": backbone,
                "group": group,
                "method": method,
                "acc": entry["acc"],
                "grade": {"acc": entry["grade"]},
            }
