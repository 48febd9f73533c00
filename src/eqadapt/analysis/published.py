"""Published figures, as copied from their sources: looked up, never computed or filled in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from eqadapt.analysis.labels import backbone_key
from eqadapt.errors import UserError
from eqadapt.study_rules import OPEN_CLIP

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
# The sections on CLIP have a column a network; the regime of ours that each of them is about.
_CLIP_COLUMNS = ("RN50", "RN101", "ViT-B-32", "ViT-B-16")
_CLIP = {"clip_zero_shot": "frozen", "clip_finetune_cifar100_rot90": "joint"}
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
        self,
        dataset: str,
        backbone: str,
        group: str,
        method: str,
        metric: str,
        regime: str = "joint",
    ) -> Figure | None:
        """The figure of one cell, or None where none was found.

        Args:
            dataset: The data set itself, whatever a study calls its entry.
            backbone: The network itself, likewise.
            group: The group.
            method: The method.
            metric: ``acc`` or ``cn_avg``.
            regime: The papers fine-tune jointly, save for zero-shot networks, which are frozen.
        """
        wanted = (dataset, backbone_key(backbone), method, regime)
        for entry in self.entries:
            key = (entry["dataset"], entry["backbone"], entry["method"], _regime(entry))
            if entry["group"] in (group, "") and key == wanted and metric in entry:
                return Figure(
                    value=float(entry[metric]),
                    grade=str(entry.get("grade", {}).get(metric, "")),
                    paper=str(entry["paper"]),
                    source=str(entry.get("source", "")),
                )
        return None

    def cells(self, group: str, regime: str = "joint") -> list[tuple[str, str]]:
        """The (data set, backbone) pairs with a published average over that group."""
        here = (e for e in self.entries if e["group"] == group and "cn_avg" in e)
        pairs = ((e["dataset"], e["backbone"]) for e in here if _regime(e) == regime)
        return list(dict.fromkeys(pairs))

    def tabled(self, group: str) -> list[tuple[str, str]]:
        """Those of the section ``classification``, which studies of other data list too."""
        own = Published(self.papers, tuple(e for e in self.entries if e.get("tabled", True)))
        return own.cells(group)

    def methods(self, dataset: str, backbone: str, group: str) -> list[str]:
        """The methods published for one pair that is ``tabled``."""
        cell = (dataset, backbone_key(backbone), group)
        return [
            e["method"] for e in self.entries if (e["dataset"], e["backbone"], e["group"]) == cell
        ]

    def citation(self, paper: str) -> str:
        """``"Title, venue"``, or the key when the file does not describe it."""
        about = self.papers.get(paper)
        return f"{about['title']}, {about['venue']}" if about else paper


def _regime(entry: Mapping[str, Any]) -> str:
    return str(entry.get("regime", "joint"))


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
    entries = [*content["classification"], *_rotated_mnist(content.get("rotated_mnist", ()))]
    for section, regime in _CLIP.items():
        entries += _clip(content.get(section, ()), regime)
    return Published(content.get("papers", {}), tuple(entries))


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


def _clip(section: Iterable[Mapping[str, Any]], regime: str) -> Iterator[Mapping[str, Any]]:
    """A section on CLIP in the form of the others: accuracy at random quarter turns is C4's mean.

    That on fine-tuning names neither data nor test, which its title does.
    """
    for entry in section:
        metric = "acc" if entry.get("test") == "upright" else "cn_avg"
        for column, value in zip(_CLIP_COLUMNS, entry["acc"], strict=True):
            yield {
                "paper": entry["paper"],
                "dataset": entry.get("dataset", "cifar100"),
                "backbone": f"{OPEN_CLIP}{column}",
                "group": "C4",
                "regime": regime,
                "method": entry["method"],
                metric: value,
                "grade": {metric: entry["grade"]},
                "tabled": False,
            }
