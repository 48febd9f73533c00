"""A study's results folder, opened for reading: what it holds and whether it fits together."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from eqadapt.analysis import outputs
from eqadapt.analysis.evaluations import Cell, Evaluation, evaluate_all
from eqadapt.analysis.labels import (
    backbone_key,
    backbone_label,
    dataset_label,
    distinct_labels,
    method_order,
)
from eqadapt.analysis.metrics import COLUMNS, EXTRA, KEYS, PROVENANCE
from eqadapt.analysis.predictions import IDENTITY, Predictions, iterate_predictions, run_stem
from eqadapt.errors import UserError
from eqadapt.study import load_study
from eqadapt.study_rules import knows_classes

_NAMES = (*KEYS[:-1], "trained_group", "trained_on", "tested_on")
_WORDS = [column for column in (*PROVENANCE, *EXTRA) if column.endswith(("sha256", "hash"))]
_WORDS += ["commit", "device", "torch", "mask"]
_MISSING = ["", "nan"]  # no number, as pandas and others write it
_AXES = {"dataset": "datasets", "backbone": "backbones", "regime": "regimes", "method": "methods"}
_BEHIND = {"datasets": "source", "backbones": "model"}


@dataclass(frozen=True)
class Results:
    """The folder ``results/<study>``.

    Attributes:
        folder: Where it is.
        groups: Evaluation groups of runs that have none; empty for those of ``study.yaml``.
    """

    folder: Path
    groups_wanted: Sequence[str] = field(default=())

    @cached_property
    def config(self) -> dict[str, Any]:
        """``study.yaml``; without that file, what the prediction files describe."""
        path = self.folder / "study.yaml"
        if not path.exists():
            return {}
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise UserError(f"not readable as YAML: {error}", where=str(path)) from error
        if not isinstance(config, dict):
            raise UserError("the study's configuration is not a mapping", where=str(path))
        return config

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.config.get("study") or self.folder.name)

    def words(self, key: str) -> str:
        """A text of the study's configuration (``title``, ``description``, ``reduced_note``)."""
        return str(self.config.get(key) or "").strip()

    def entry(self, section: str, name: str) -> Mapping[str, Any]:
        """The options of one of the configuration's ``datasets`` or ``backbones``."""
        entries = self.config.get(section)
        options = entries.get(name) if isinstance(entries, Mapping) else None
        return options if isinstance(options, Mapping) else {}

    def behind(self, section: str, name: str) -> str:
        """What an entry is of: a data set's ``source``, a backbone's ``model``, or its own name."""
        return str(self.entry(section, name).get(_BEHIND[section]) or name)

    def trained_before(self, cell: Cell) -> bool:
        """Whether a frozen network is one that the study trained itself, not one it was given.

        It pretrained it, once for all seeds, or starts from what its joint vanilla runs left.
        """
        backbone = self.entry("backbones", cell.backbone)
        if cell.regime != "frozen" or "weights" not in backbone:
            return False
        labels = self.entry("datasets", cell.dataset).get("labels_of")
        labels = labels or self.behind("datasets", cell.dataset)
        return backbone["weights"] == "pretrain" or not knows_classes(labels, backbone)

    def published_as(self, dataset: str, backbone: str) -> tuple[str, str]:
        """The data set and network of two entries, by the names that published figures have."""
        return self.behind("datasets", dataset), backbone_key(self.behind("backbones", backbone))

    @cached_property
    def _backbone_labels(self) -> dict[str, str]:
        return distinct_labels(self.layout["backbones"], backbone_label)

    def backbone_label(self, name: str) -> str:
        """``labels.backbone_label``; the entry's name where another one would be called alike."""
        return self._backbone_labels.get(name) or backbone_label(name)

    def cell_label(self, dataset: str, backbone: str) -> str:
        """``"CIFAR-10, ResNet-50"``."""
        return f"{dataset_label(dataset)}, {self.backbone_label(backbone)}"

    @property
    def reduced(self) -> bool:
        """Whether the study calls itself a reduced form of a larger one."""
        return bool(self.config.get("reduced", False))

    @property
    def ablation(self) -> bool:
        """Whether its entries are one experiment, with something changed in each."""
        return bool(self.config.get("ablation", False))

    @property
    def test_time(self) -> bool:
        """Whether it is a study of test-time methods."""
        return outputs.test_time(self.config)

    @cached_property
    def missing(self) -> list[str]:
        """Stems of the study's runs that have no predictions yet; of test-time studies not told."""
        if self._stems is None or self.test_time:
            return []
        present = {predictions.stem for predictions in self.predictions}
        runs = load_study(self.config).runs()
        return [run.stem for run in runs if run.stem not in present]

    def tell_missing(self) -> None:
        """Say on the error stream which of the study's runs what is written does without."""
        if self.missing:
            print(f"not in it: {self.missing_words}", file=sys.stderr)

    @property
    def missing_words(self) -> str:
        """How many runs have no predictions, and what makes them; empty where none is missing."""
        if not self.missing:
            return ""
        return (
            f"{len(self.missing)} of the study's runs, {self.missing[0]} the first, for want of "
            "predictions; `eqadapt train` and `eqadapt predict` make them"
        )

    @cached_property
    def latencies(self) -> dict[tuple[str, str, str, str], float]:
        """Measured time an image over vanilla's, by data set, backbone, group and method."""
        path = self.folder / outputs.LATENCY
        if not path.is_file():
            return {}
        frame = read_csv(path)
        keys = zip(frame["dataset"], frame["backbone"], frame["group"], frame["method"])
        return {key: float(value) for key, value in zip(keys, frame["ratio"])}

    @cached_property
    def transfers(self) -> pd.DataFrame | None:
        """``transfer.csv``; None where the study makes none."""
        if not outputs.transfers(self.config):
            return None
        path = self.folder / outputs.TRANSFER
        if not path.is_file():
            raise UserError("no transfer.csv yet", where=str(path), fix="run `eqadapt transfer`")
        return read_csv(path)

    @cached_property
    def groups(self) -> list[str]:
        """The groups evaluated."""
        if self.groups_wanted:
            return list(self.groups_wanted)
        found = outputs.groups(self.config) or sorted(
            {str(p.meta["group"]) for p in self.predictions} - {"C1"},
            key=lambda group: int(group[1:]),
        )
        if not found:
            raise UserError(
                "no group to evaluate at: every run is without one",
                where=str(self.folder),
                fix="name them, e.g. --groups C4 C8",
            )
        return found

    @cached_property
    def layout(self) -> dict[str, list[str]]:
        """Lists that the names of the outputs follow from (see ``analysis.outputs``)."""
        listed = {key: outputs.names(self.config, key) for key in _AXES.values()}
        if self.config:
            listed["regimes"] = outputs.regimes(self.config)
        for axis, key in _AXES.items():
            seen = dict.fromkeys(str(p.meta[axis]) for p in self.predictions)
            listed[key] = listed[key] or list(seen)
        if self.test_time:
            listed["methods"] = list(dict.fromkeys(str(p.meta["method"]) for p in self.predictions))
        listed["methods"] = sorted(listed["methods"], key=method_order)
        return {**listed, "groups": self.groups}

    @cached_property
    def predictions(self) -> list[Predictions]:
        """The prediction files of the study's runs; files of other runs are left out, and named."""
        kept: list[Predictions] = []
        others: list[Predictions] = []
        for predictions in iterate_predictions(self.folder / "predictions"):
            (kept if self._belongs(predictions.meta) else others).append(predictions)
        if others:
            print(
                f"left out: {len(others)} prediction file(s) of runs that study.yaml does not "
                f"name, e.g. {others[0].path.name}",
                file=sys.stderr,
            )
        if not kept:
            raise UserError(
                "no prediction file belongs to a run that study.yaml names",
                where=str(self.folder / "predictions"),
                fix="run `eqadapt predict` for the study's runs",
            )
        return kept

    @cached_property
    def _stems(self) -> set[str] | None:
        """Of the study's runs; None where the configuration, here, does not tell them."""
        if not self.config:
            return None
        try:
            study = load_study(self.config)
            if not self.test_time:
                return {run.stem for run in study.runs()}
            from eqadapt.test_time.plan import load_plan

            return {run.stem for run in load_plan(study).all_runs()}
        except UserError:  # a study of another version, or without its test-time settings
            return None

    def _belongs(self, meta: Mapping[str, Any]) -> bool:
        if self._stems is not None:
            return run_stem(meta) in self._stems
        for axis, key in {**_AXES, "seed": "seeds"}.items():
            named = outputs.names(self.config, key)
            if axis == "method" and self.test_time:
                continue  # the study's own methods are the canonicalizers
            if named and str(meta[axis]) not in named:
                return False
        named = outputs.names(self.config, "groups")
        return not named or meta["group"] in {*named, "C1"}

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Every run at its group, group-free runs at each of the study's."""
        return list(evaluate_all(self.predictions, self.groups))

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """``run.json`` by run; a run that trains nothing has that of the run it reuses."""
        found = {}
        for predictions in self.predictions:
            record = self._record(predictions.meta)
            if record:
                found[predictions.stem] = record
        return found

    def _record(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        for stem in (run_stem(meta), run_stem({**meta, "method": trained_as(meta["method"])})):
            path = self.folder / "runs" / stem / "run.json"
            if path.exists():
                try:
                    record = json.loads(path.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise UserError(
                        f"not readable as JSON: {error}",
                        where=str(path),
                        fix="delete the run's folder and train it again",
                    ) from error
                return {k: v for k, v in record.items() if k not in IDENTITY}
        return {}

    @cached_property
    def histories(self) -> pd.DataFrame:
        """Training curves of all runs: their ``history.csv`` with the run's identity in front."""
        parts = []
        for predictions in self.predictions:
            path = self.folder / "runs" / predictions.stem / "history.csv"
            if path.exists():
                frame = read_csv(path)
                identity = {key: predictions.meta[key] for key in IDENTITY}
                if len(frame):  # else nothing was trained: a frozen network as it is
                    parts.append(frame.assign(**identity))
        columns = [*IDENTITY, "epoch"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """``metrics.csv``, checked to describe exactly the prediction files that are there."""
        path = self.folder / outputs.METRICS
        if not path.exists():
            raise UserError(
                "no metrics yet",
                where=str(path),
                fix=f"run `eqadapt metrics --results {self.folder}`",
            )
        frame = read_csv(path)
        missing = [column for column in COLUMNS if column not in frame.columns]
        if missing:
            raise UserError(f"metrics.csv lacks {', '.join(missing)}", where=str(path))
        there = set(frame[list(KEYS[1:])].astype(str).itertuples(index=False, name=None))
        cells = ((e.cell, e.method, e.seed) for e in self.evaluations)
        expected = {(*c[:3], method, c.group, str(seed)) for c, method, seed in cells}
        if there != expected:
            raise UserError(
                f"metrics.csv has {len(there)} rows where the prediction files give "
                f"{len(expected)}, or other ones",
                where=str(path),
                fix=f"run `eqadapt metrics --results {self.folder}` again",
            )
        return frame

    def cells(self, regime: str | None = None, group: str | None = None) -> list[Cell]:
        """The cells there are, in the configuration's order."""
        present = {evaluation.cell for evaluation in self.evaluations}
        lay = self.layout
        ordered = (
            Cell(d, b, r, g)
            for r in lay["regimes"]
            for g in lay["groups"]
            for d in lay["datasets"]
            for b in lay["backbones"]
        )
        wanted = (c for c in ordered if regime in (None, c.regime) and group in (None, c.group))
        return [cell for cell in wanted if cell in present]

    def at(self, cell: Cell) -> dict[str, dict[int, Evaluation]]:
        """The evaluations of one cell: method, in display order, then seed."""
        methods: dict[str, dict[int, Evaluation]] = {}
        for evaluation in self._by_cell.get(cell, []):
            methods.setdefault(evaluation.method, {})[evaluation.seed] = evaluation
        return {
            method: dict(sorted(methods[method].items()))
            for method in sorted(methods, key=method_order)
        }

    @cached_property
    def _by_cell(self) -> dict[Cell, list[Evaluation]]:
        found: dict[Cell, list[Evaluation]] = {}
        for evaluation in self.evaluations:
            found.setdefault(evaluation.cell, []).append(evaluation)
        return found


def open_results(folder: str | Path, groups: Sequence[str] = ()) -> Results:
    """Open a results folder.

    Raises:
        UserError: It is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError("no such results folder", where=str(folder), fix="give it with --results")
    return Results(folder, tuple(groups))


def trained_as(method: str) -> str:
    """The method whose checkpoint a method is evaluated with: itself, or e.g. oracle's vanilla."""
    from eqadapt.methods import get_method

    try:
        return get_method(method).train_as or method
    except UserError:
        return method


def same_images(evaluations: Sequence[Evaluation]) -> None:
    """Check that runs to be compared were tested on the same images.

    Raises:
        UserError: They were not.
    """
    first = evaluations[0].predictions
    for other in (evaluation.predictions for evaluation in evaluations[1:]):
        if not (
            np.array_equal(first.index, other.index) and np.array_equal(first.label, other.label)
        ):
            raise UserError(
                f"{first.path.name} and {other.path.name} hold different test images, so that "
                "their runs cannot be compared in pairs",
                where=str(other.path.parent),
                fix="predict both again from the same prepared data",
            )


def read_csv(path: Path) -> pd.DataFrame:
    """A table of results; names that look like numbers, or like nothing ("NA"), stay names.

    Raises:
        UserError: It is no CSV.
    """
    try:
        columns = pd.read_csv(path, nrows=0).columns
        return pd.read_csv(
            path,
            dtype=dict.fromkeys((*_WORDS, *_NAMES), str),
            keep_default_na=False,
            na_values={name: _MISSING for name in columns if name not in _NAMES},
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"not readable as CSV: {error}", where=str(path)) from error
