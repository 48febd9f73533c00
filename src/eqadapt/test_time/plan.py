"""What a study's test-time methods are run on, need and leave; follows from configuration alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from eqadapt.errors import UserError
from eqadapt.groups.cyclic import parse_group
from eqadapt.methods import get_method as get_trained_method
from eqadapt.study import Run, Study
from eqadapt.test_time.methods import TestTimeMethod
from eqadapt.test_time.settings import Entry, Settings, load_settings

SPLITS = ("train", "validation", "test")
REGIME = "frozen"


@dataclass(frozen=True)
class Cell:
    """A frozen backbone on a data set, under a group."""

    dataset: str
    backbone: str
    group: str

    def run(self, method: str, seed: int = 0, group: str | None = None) -> Run:
        """The run of a method in this cell."""
        return Run(self.dataset, self.backbone, REGIME, method, group or self.group, seed)


@dataclass(frozen=True)
class Plan:
    """The cells of a study and what each test-time method leaves there.

    Attributes:
        study: The study.
        settings: Its test-time settings.
    """

    study: Study
    settings: Settings

    def cells(
        self, dataset: str | None = None, backbone: str | None = None, group: str | None = None
    ) -> list[Cell]:
        """The study's cells that match every given key.

        Raises:
            UserError: None does.
        """
        config = self.study.config
        found = [
            Cell(d, b, g)
            for d in config["datasets"]
            for b in config["backbones"]
            for g in config["groups"]
            if dataset in (None, d) and backbone in (None, b) and group in (None, g)
        ]
        if not found:
            raise UserError(
                f"no cell of the study matches {dataset or 'any data set'}, "
                f"{backbone or 'any backbone'}, {group or 'any group'}",
                fix="; ".join(
                    f"{key}: {', '.join(config[key])}"
                    for key in ("datasets", "backbones", "groups")
                ),
            )
        return found

    @cached_property
    def finest(self) -> str:
        """The group whose poses hold those of the others: what has no group is run under it."""
        return max(self.study.config["groups"], key=lambda name: parse_group(name).order)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The methods that can be run: without a canonicalizer, or with one the study trains.

        Raises:
            UserError: A method takes over hyper-parameters of one that is not run.
        """
        kept = tuple(entry for entry in self.settings.entries if self._can_run(entry.method))
        names = {entry.method.name for entry in kept}
        for entry in kept:
            parent = entry.method.inherits
            if parent is not None and parent not in names:
                raise UserError(
                    f"{entry.method.name} takes hyper-parameters of {parent}, which is not run",
                    where=str(self.study.config["test_time"]["folder"]),
                    fix=f"add {parent} to the methods",
                )
        return kept

    def check(self) -> None:
        """Stop at settings that do not fit the study, before the backbone passes anything.

        Raises:
            UserError: No method has the canonicalizer's name, a method cannot be under a group, or
                the study's own methods, backbones or groups do not fit together.
        """
        self._check_study()
        folder = str(self.study.config["test_time"]["folder"])
        try:
            get_trained_method(str(self.settings["canonicalizer"]))
        except UserError as error:
            raise UserError(f"canonicalizer: {error.what}", where=folder, fix=error.fix) from error
        orders = {name: parse_group(name).order for name in self.study.config["groups"]}
        least = min(orders, key=orders.__getitem__)
        for entry in self.entries:
            name, defaults = entry.method.name, entry.method.defaults
            views = max([*entry.grid.get("views", ()), defaults.get("views") or 0])
            if views > orders[least]:
                raise UserError(
                    f"{name} takes {views} views, {least} has fewer",
                    where=folder,
                    fix=f"{orders[least]} views at most, or without this method",
                )
            odd = [group for group, order in orders.items() if order % 2]
            if odd and entry.method.evidence == "its_paper":
                raise UserError(
                    f"{name} samples both ends of [-180, 180] degrees, {odd[0]} has no half turn",
                    where=folder,
                    fix="groups of even order, or its_circular",
                )

    def _check_study(self) -> None:
        config, where = self.study.config, self.study.name
        largest = parse_group(self.finest)
        apart = [g for g in config["groups"] if not largest.contains(parse_group(g))]
        if apart:
            raise UserError(
                f"the poses of {apart[0]} are not among those of {self.finest}",
                where=f"{where}: groups",
                fix="groups of which the largest holds the others; or two studies",
            )
        for name in config["methods"]:
            if get_trained_method(name).scorer != "image":
                raise UserError(
                    f"{name} is no canonicalizer, which the methods of a test-time study are",
                    where=f"{where}: methods",
                    fix="leave it out; test-time methods are those of test_time.folder",
                )
        shared = self.study.shared_canonicalizers
        for name in [shared] if shared else config["backbones"]:
            own = config["backbones"][name].get("methods", config["methods"])
            lacking = [method for method in config["methods"] if method not in own]
            if lacking:
                raise UserError(
                    f"{lacking[0]} is not trained for {name}, whose test-time methods may want it",
                    where=f"{where}: backbones.{name}.methods",
                    fix="all methods for each backbone; or two studies",
                )

    def _can_run(self, method: TestTimeMethod) -> bool:
        name = self.canonicalizer(method)
        if name is None:
            return True
        return name in self.study.config["methods"] and (is_classwise(name) or not method.votes)

    @property
    def mirrored(self) -> bool:
        """Whether canonicalizers score mirror images too."""
        return bool((self.study.config["test_time"] or {}).get("mirrored", False))

    @property
    def left_out(self) -> list[str]:
        """Names of methods whose canonicalizer the study does not train."""
        return [e.method.name for e in self.settings.entries if e not in self.entries]

    def canonicalizer(self, method: TestTimeMethod) -> str | None:
        """The trained method whose poses a test-time method reads."""
        if not method.prior:
            return None
        return method.canonicalizer or str(self.settings["canonicalizer"])

    def canonicalizer_run(self, cell: Cell, method: str, seed: int) -> Run:
        """The trained run whose canonicalizer a cell uses."""
        shared = self.study.shared_canonicalizers
        return Run(cell.dataset, shared or cell.backbone, REGIME, method, cell.group, seed)

    def run(self, cell: Cell, method: TestTimeMethod, seed: int) -> Run | None:
        """The run under which a method's predictions are kept; None where another cell's are."""
        if method.selection in ("identity", "true_pose") and not method.prior:
            return cell.run(method.name, seed, "C1") if cell.group == self.finest else None
        return cell.run(method.name, seed)

    def seeds(self, method: TestTimeMethod) -> list[int]:
        """All seeds where something is trained for the method, else the first."""
        seeds = list(self.study.config["seeds"])
        return seeds if method.learned else seeds[:1]

    def runs(self, cell: Cell) -> Iterator[Run]:
        """What a cell leaves predictions of."""
        for entry in self.entries:
            for seed in self.seeds(entry.method):
                run = self.run(cell, entry.method, seed)
                if run is not None:
                    yield run

    def all_runs(self) -> list[Run]:
        """What the study leaves predictions of."""
        return [run for cell in self.cells() for run in self.runs(cell)]


def is_classwise(method: str) -> bool:
    """Whether a trained method's canonicalizer tells classes."""
    return get_trained_method(method).prior == "classwise"


def load_plan(study: Study) -> Plan:
    """The plan of a study.

    Raises:
        UserError: It has no test-time methods, or their settings are not valid, or not for it.
    """
    section = study.config["test_time"]
    if section is None:
        raise UserError(
            "the study has no test-time methods",
            where=study.name,
            fix="test_time: {folder: config/<folder with settings.yaml>}",
        )
    plan = Plan(study, load_settings(Path(section["folder"])))
    plan.check()
    return plan
