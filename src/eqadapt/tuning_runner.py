"""Trains and scores the trials of a search, on the validation split alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eqadapt.datasets import prepared
from eqadapt.digest import code_id
from eqadapt.errors import NotFinite
from eqadapt.evaluation import predict_orbit
from eqadapt.groups import RotationAction, parse_group
from eqadapt.image_store import on_device
from eqadapt.memory import room_for
from eqadapt.methods import get_method
from eqadapt.runs import TRAINING_CODE, StudyFiles, StudyRunner
from eqadapt.study import Run, Study, digest_of, load_study, merge
from eqadapt.symmetrize import Symmetrized
from eqadapt.tasks.classification import ImagePipeline
from eqadapt.tuning import (
    Search,
    Trial,
    best_by_backbone,
    known_trials,
    other_rows,
    with_point,
    write_choice,
    write_trials,
)

Planned = tuple[int, Run, dict[str, Any], Study]
"""A trial to be: its number, its run, what it changes, the study with that change."""


class ValidationRunner(StudyRunner):
    """A runner without a test split: whatever asks for it fails."""

    def _read_test(self, dataset: str, train: prepared.Prepared) -> prepared.Prepared:
        raise AssertionError(f"a search for recipes asked for the test split of {dataset}")

    def check_start(self, path: Path, meta: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Allow any: a trial's recipe is not that of the study whose weights it starts from."""

    def splits_sha256(self, dataset: str) -> tuple[str, str]:
        """Checksums of the training and the validation split."""
        data = self.data(dataset)
        return data.train.metadata["data_sha256"], data.validation.metadata["data_sha256"]

    def begins_with(self, run: Run, recipe: dict[str, Any]) -> list[str]:
        """SHA-256 of the weights that a run begins with."""
        return self._begins_with(run, recipe)

    def share_data(self, other: ValidationRunner) -> None:
        """Use the data that another runner of the same data sets has loaded."""
        self._splits = other._splits

    def score(self, run: Run, model: Symmetrized) -> tuple[float, float]:
        """Upright accuracy and average over the group on the whole validation split.

        Runs without a group are averaged over each of the study's groups.
        """
        recipe, data = self.study.recipe(run), self.data(run.dataset).validation
        image = recipe["image"]
        groups = [run.group] if run.group != "C1" else list(self.study.config["groups"])
        upright, averages = 0.0, []
        for name in groups:
            poses = RotationAction(
                parse_group(name), image["interpolation"], image["padding"], image["mask"]
            )
            torch.manual_seed(run.seed)  # methods that draw poses
            batch_size = recipe["evaluate"]["batch_size"]
            with room_for(batch_size, "evaluate.batch_size"):
                found = predict_orbit(
                    model,
                    get_method(run.method),
                    on_device(data.images, self.device),
                    data.labels.to(self.device),
                    data.index,
                    ImagePipeline.from_recipe(recipe),
                    poses,
                    batch_size,
                )
            right = found.prediction == found.label
            upright = float(right[found.pose == 0].mean())
            averages.append(float(right.mean()))
        return upright, sum(averages) / len(averages)


class Tuner:
    """Searches the recipes of a study's methods, going on where it was cut off.

    Args:
        study: The study.
        search: What is searched.
        files: The study's folders; trials lie in ``results/<study>/tuning``.
        runs: The runs that a method's recipe is judged by, of every method that is tuned.
        others: Such runs of methods and backbones that are not tuned now: where an earlier search
            tried everything for them, its outcome stays in the choice.
        say: Where progress goes.
        replaces: Whether the study as it was given has recipes, which the choice is to replace.
    """

    def __init__(
        self,
        study: Study,
        search: Search,
        files: StudyFiles,
        runs: Sequence[Run],
        others: Sequence[Run] = (),
        say: Callable[[str], None] = print,
        replaces: bool = False,
    ) -> None:
        self.study, self.search, self.files, self.say = study, search, files, say
        self.replaces, self._code = replaces, code_id(*TRAINING_CODE)
        self.runs, self.others = runs, others
        self.folder = files.results / "tuning"
        self.reduced = load_study(merge(study.config, search.within))
        self.data = ValidationRunner(self.reduced, files, say)

    def tune(self) -> Path:
        """Try everything that is not known yet, write the trials and the choice.

        Returns:
            The file of the choice.

        Raises:
            UserError: A trial is no valid study; told before the first one is trained.
        """
        tuned = list(dict.fromkeys(run.method for run in self.runs))
        plans = {method: self._planned(method, self.runs) for method in tuned}
        chosen = {
            method: {
                **best_by_backbone(self._known(method)),
                **best_by_backbone(self._tried(method, plans.get(method, []))),
            }
            for method in self.study.config["methods"]
        }
        path = self.folder / "choice.yaml"
        found = {method: of for method, of in chosen.items() if of}
        write_choice(path, self.study, self.search, found, self.replaces)
        return path

    def _planned(self, method: str, runs: Sequence[Run]) -> list[Planned]:
        """Every trial of every run of a method."""
        plan = [
            (number, run, dict(point))
            for run in runs
            if run.method == method
            for number, point in enumerate(self.search.points(method, run.backbone))
        ]
        plan.sort(key=lambda trial: trial[0])
        return [
            (number, run, point, with_point(self.reduced, method, point))
            for number, run, point in plan
        ]

    def _known(self, method: str) -> list[Trial]:
        """All trials of an earlier search, around backbones where it ended, not tuned now."""
        found, unfinished = [], set()
        known = known_trials(self.folder / f"{method}.csv")
        for number, run, point, study in self._planned(method, self.others):
            of = known.get((number, run.stem, study.recipe_hash(run), self._inputs(run, study)))
            if of is None:
                unfinished.add(run.backbone)
            else:
                found.append(Trial(number, run, point, {**of, "score": self._score(of)}))
        return [trial for trial in found if trial.run.backbone not in unfinished]

    def _tried(self, method: str, plan: Sequence[Planned]) -> list[Trial]:
        """All trials of a plan, those that are not known yet trained."""
        if not plan:
            return []
        path = self.folder / f"{method}.csv"
        known, trials, left = known_trials(path), [], []
        others = other_rows(path, {(number, run.stem) for number, run, _, _ in plan})
        for number, run, point, study in plan:
            found = known.get((number, run.stem, study.recipe_hash(run), self._inputs(run, study)))
            if found is None:
                left.append((number, point, study, run))
            else:
                found = {**found, "score": self._score(found)}
                trials.append(Trial(number, run, point, found))
        for number, point, study, run in left:
            trials.append(Trial(number, run, point, self._train(number, run, study)))
            write_trials(path, trials, others)
        write_trials(path, trials, others)
        return trials

    def _inputs(self, run: Run, study: Study) -> str:
        """Digest of what decides a trial beside its recipe."""
        groups = list(study.config["groups"]) if run.group == "C1" else []
        train, validation = self.data.splits_sha256(run.dataset)
        begins = self.data.begins_with(run, study.recipe(run))
        return digest_of([train, validation, begins, groups, self._code])

    def _score(self, found: dict) -> float:
        if self.search.select == "cn_avg":
            return float(found["val_cn_avg"])
        return 0.5 * (found["val_acc"] + found["val_cn_avg"])

    def _train(self, number: int, run: Run, study: Study) -> dict:
        started = time.perf_counter()
        runner = ValidationRunner(study, self.files, self.say)
        runner.share_data(self.data)
        recipe, digest = study.recipe(run), study.recipe_hash(run)
        inputs = self._inputs(run, study)
        model = runner.model(run, recipe)
        stem = f"tuning-{number}-{run.stem}"
        identity = [digest, runner.data(run.dataset).train.metadata["data_sha256"]]
        try:
            runner.trainer(run, recipe, model, stem, identity).run()
            upright, average = runner.score(run, model)
        except NotFinite as error:  # a trial like others, and the worst
            self.say(f"{stem}  {error.what}")
            upright = average = 0.0
        found = {"val_acc": upright, "val_cn_avg": average, "config_hash": digest, "inputs": inputs}
        found["score"] = self._score(found)
        found["seconds"] = round(time.perf_counter() - started, 2)
        self.say(f"{stem}  upright {100 * upright:.2f}  average {100 * average:.2f}")
        runner.forget_states([stem])
        return found
