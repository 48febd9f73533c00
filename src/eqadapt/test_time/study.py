"""The test-time methods of a study on disk: caches, pose logits, selections and predictions."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from eqadapt import checkpoint, orbit_cache
from eqadapt.adaptation import build_action
from eqadapt.backbones import Backbone, count_parameters
from eqadapt.datasets import prepared
from eqadapt.datasets.label_sets import with_labels_of
from eqadapt.digest import code_id
from eqadapt.errors import UserError
from eqadapt.files import sha256_file, write_json
from eqadapt.groups import parse_group
from eqadapt.memory import room_for
from eqadapt.orbit_cache import Orbits
from eqadapt.provenance import commit, provenance
from eqadapt.runs import StudyRunner, predictions_meta, write_predictions
from eqadapt.scorers.mirrored import Mirrored
from eqadapt.study import Run, digest_of
from eqadapt.tasks.classification import ImagePipeline
from eqadapt.test_time import latency
from eqadapt.test_time.bench import Bench
from eqadapt.test_time.live import Outputs
from eqadapt.test_time.methods import TestTimeMethod
from eqadapt.test_time.outputs import logit_differences, predictions, write_temperatures
from eqadapt.test_time.plan import REGIME, SPLITS, Cell, Plan, is_classwise
from eqadapt.test_time.settings import Entry
from eqadapt.test_time.tuning import Selection, tune

# Modules that pose logits follow from.
_POSE_CODE = ("eqadapt.adaptation", "eqadapt.scorers.mirrored", "eqadapt.tasks.classification")


class TestTimeRunner:
    """Computes caches and runs the test-time methods of one study.

    Args:
        runner: The study's runner, for its data, backbones and checkpoints.
        plan: What is run on what.
        folder: Where the caches lie.
        say: Where progress goes.
    """

    __test__ = False

    def __init__(
        self,
        runner: StudyRunner,
        plan: Plan,
        folder: Path,
        say: Callable[[str], None] = print,
    ) -> None:
        self.runner, self.plan, self.folder, self.say = runner, plan, folder, say
        self.settings = plan.settings
        self.study, self.files = runner.study, runner.files
        self._backbones: dict[tuple[str, str], Backbone] = {}

    def data(self, dataset: str, split: str) -> prepared.Prepared:
        """A split with as many images as ``images`` says."""
        limit = self.images(dataset)[split]
        data = prepared.load(self.runner.prepared_folder(dataset), split, limit=limit)
        return with_labels_of(data, self.study.labels_of(dataset), f"datasets.{dataset}")

    def images(self, dataset: str) -> dict[str, int | None]:
        """Numbers of images of the splits, as the settings have them; None for all.

        Methods that learn see no more training images than the study's canonicalizers.
        """
        images = dict(self.settings["images"])
        limits = (images["train"], self.study.config["datasets"][dataset]["limit_train"])
        images["train"] = min((limit for limit in limits if limit is not None), default=None)
        return images

    def recipe(self, cell: Cell) -> dict[str, Any]:
        """The recipe of the frozen backbone: sections ``image`` and ``backbone`` count here."""
        return self.study.recipe(cell.run("vanilla", group="C1"))

    def backbone(self, cell: Cell) -> Backbone:
        """The frozen backbone."""
        key = (cell.dataset, cell.backbone)
        if key not in self._backbones:
            found = self.runner.backbone(cell.run("vanilla", group="C1"), self.recipe(cell))
            self._backbones[key] = found.to(self.runner.device).eval()
        return self._backbones[key]

    def cache_path(self, cell: Cell, split: str) -> Path:
        """The orbit cache of a cell's split."""
        return self.folder / f"{cell.dataset}-{cell.backbone}-{cell.group}-{split}.safetensors"

    def poses_path(self, run: Run, split: str) -> Path:
        """The pose logits of a canonicalizer on a split."""
        return self.folder / "poses" / f"{run.stem}-{split}.safetensors"

    # --- orbits ---------------------------------------------------------------------------------

    def identity(self, cell: Cell, split: str) -> dict[str, Any]:
        """What identifies the orbits of a cell's split."""
        metadata = prepared.read_metadata(self.runner.prepared_folder(cell.dataset), split)
        return orbit_cache.identity(
            self.recipe(cell),
            self.backbone(cell),
            name=cell.backbone,
            group=cell.group,
            data={**metadata, "split": split},
        )

    def orbits(self, cell: Cell, split: str) -> Orbits:
        """The cached orbits.

        Raises:
            UserError: There are none, or they are of another backbone, data set or images.
        """
        path = self.cache_path(cell, split)
        found = orbit_cache.load(path, self.identity(cell, split))
        data = self.data(cell.dataset, split)
        if not np.array_equal(found.index, data.index.numpy()):
            raise UserError(
                f"the orbit cache holds other images ({len(found)}) than the study asks for "
                f"({len(data.index)})",
                where=str(path),
                fix="run `eqadapt orbits` again",
            )
        return found

    def compute_orbits(self, dataset: str, backbone: str, groups: Sequence[str]) -> None:
        """Write the caches of one backbone for all groups; subgroups come from larger groups."""
        ordered = sorted(groups, key=lambda name: -parse_group(name).order)
        for split in SPLITS:
            larger: list[Orbits] = []
            for name in ordered:
                cell = Cell(dataset, backbone, name)
                try:
                    larger.append(self.orbits(cell, split))
                    self.say(f"orbits {dataset} {backbone} {name} {split}  there already")
                    continue
                except UserError:
                    pass  # not there, or of something else: compute it
                group = parse_group(name)
                source = next((o for o in larger if o.group.contains(group)), None)
                if source is not None:
                    found = orbit_cache.restrict(source, group)
                else:
                    found = self._computed(cell, split)
                orbit_cache.save(self.cache_path(cell, split), found, self.settings["dtype"])
                larger.append(found)
            shutil.rmtree(self._parts(dataset, backbone), ignore_errors=True)

    def _parts(self, dataset: str, backbone: str) -> Path:
        """Where an interrupted computation goes on from."""
        return self.files.scratch / "orbits" / f"{dataset}-{backbone}"

    def _computed(self, cell: Cell, split: str) -> Orbits:
        recipe, data = self.recipe(cell), self.data(cell.dataset, split)
        meta = {**self.identity(cell, split), "classes": list(data.classes)}
        compute = orbit_cache.OrbitComputer(
            self.backbone(cell),
            build_action(recipe, cell.group),
            ImagePipeline.from_recipe(recipe),
            self.settings["batch_size"],
            self.say,
        )
        parts = self._parts(cell.dataset, cell.backbone)
        with room_for(self.settings["batch_size"], "batch_size of the settings"):
            return compute(data.images, data.labels, data.index, meta, parts)

    # --- canonicalizers -------------------------------------------------------------------------

    def compute_poses(self, cell: Cell) -> None:
        """Write the pose logits that a cell's methods are selected and tested with."""
        for method in self.study.config["methods"]:
            for seed in self.study.config["seeds"]:
                for split in SPLITS[1:]:
                    self.pose_logits(cell, method, split, seed)

    def pose_logits(self, cell: Cell, method: str, split: str, seed: int) -> NDArray[np.float32]:
        """A canonicalizer's scores of the cached inputs, computed once and kept.

        Returns:
            (N, J, K), or, of a class-wise one, (N, J, K, C) of pairs of pose and class.
        """
        run = self.plan.canonicalizer_run(cell, method, seed)
        path, data = self.poses_path(run, split), self.data(cell.dataset, split)
        source = self.files.checkpoint(run)
        if not source.is_file():
            raise UserError(
                f"the canonicalizer {run.stem} is not trained",
                where=str(source),
                fix="run `eqadapt train`, or take the method out of the study's `methods`",
            )
        expected = {
            "run": run.stem,
            "checkpoint_sha256": sha256_file(source),
            "code": code_id(*_POSE_CODE),
            "data_sha256": data.metadata["data_sha256"],
            "images": len(data.index),
            **({"mirrored": True} if self.plan.mirrored else {}),
        }
        if path.is_file():
            tensors, meta = checkpoint.load(path)
            if meta == expected and torch.equal(tensors["index"], data.index):
                return tensors["pose_logits"].numpy()
        found = self._pose_logits(cell, run, data)
        checkpoint.save(path, {"pose_logits": found, "index": data.index}, expected)
        return found.numpy()

    def scorer(self, run: Run) -> Any:
        """The scorer of a trained run for inference; of pairs where it tells classes."""
        model = self.runner.trained(run)
        if model.scorer is None:
            raise UserError(f"{run.method} has no scorer of poses")
        found: Any = model.scorer
        if is_classwise(run.method):
            found = found.export_pairs()
        elif hasattr(found, "export"):
            found = found.export()
        return Mirrored(found) if self.plan.mirrored else found

    @torch.no_grad()
    def _pose_logits(self, cell: Cell, run: Run, data: prepared.Prepared) -> torch.Tensor:
        scorer, recipe = self.scorer(run), self.study.recipe(run)
        action, pipeline = build_action(recipe, run.group), ImagePipeline.from_recipe(recipe)
        cosets = orbit_cache.input_cosets(action.group)
        found = []
        for start in range(0, len(data.images), 256):
            images = data.images[start : start + 256].to(self.runner.device)
            x = action.masked(pipeline.to_act_size(images))
            found.append(torch.stack([scorer(action.turn(x, g)) for g in cosets], 1).cpu())
        self.say(f"pose logits of {run.stem} on {len(data.images)} images")
        return torch.cat(found)

    # --- methods --------------------------------------------------------------------------------

    def bench(self, cell: Cell) -> Bench:
        """The cell's orbits with everything fitted on them."""
        return Bench(
            {split: self.orbits(cell, split) for split in SPLITS},
            lambda method, split, seed: self.pose_logits(cell, method, split, seed),
            self.settings["canonicalizer"],
            self.settings["bank"],
        )

    def run_cell(self, cell: Cell) -> None:
        """Select hyper-parameters on validation, predict the test split, write everything."""
        bench = self.bench(cell)
        if self.plan.left_out:
            self.say(f"left out, for want of a canonicalizer: {', '.join(self.plan.left_out)}")
        selections: dict[str, Selection] = {}
        for entry in self.plan.entries:
            started = time.perf_counter()
            method = entry.method
            tuned = self._tuned(bench, entry, selections)
            selections[method.name] = next(iter(tuned.values()))
            shown = [
                f"{100 * self._write(cell, bench, entry, selection, seed):.2f}"
                for seed, selection in tuned.items()
            ]
            self.say(
                f"{cell.dataset} {cell.backbone} {cell.group} {method.name}  "
                f"{' '.join(shown)}  {time.perf_counter() - started:.1f} s"
            )
        write_temperatures(
            self.files.results / "temperatures" / f"{cell.run('boltzmann').stem}.parquet",
            bench,
            self.settings["temperatures"],
            {**vars(cell), "regime": REGIME},
        )

    def measure_latency(self, cell: Cell, batch: int = 32) -> list[dict[str, Any]]:
        """Time the methods of a cell that have been run; rows of ``latency.csv``."""
        bench, seed = self.bench(cell), self.study.config["seeds"][0]
        recipe = self.recipe(cell)
        action, pipeline = build_action(recipe, cell.group), ImagePipeline.from_recipe(recipe)
        images = self.data(cell.dataset, "test").images[:batch].to(self.runner.device)
        x = latency.random_poses(action, action.masked(pipeline.to_act_size(images)))
        scorers: dict[str, Any] = {}
        chosen = []
        for entry in self.plan.entries:
            name = self.plan.canonicalizer(entry.method)
            if name is not None and name not in scorers:
                scorers[name] = self.scorer(self.plan.canonicalizer_run(cell, name, seed))
            parameters = self._selected(cell, entry.method, seed)
            chosen.append((entry.method, parameters, scorers.get(name) if name else None))
        outputs = Outputs(self.backbone(cell))
        rows = latency.measure(bench, outputs, action, x, chosen, seed=seed)
        device = provenance(self.runner.device)["device"]
        return [{**vars(cell), **row, "device": device} for row in rows]

    def _selected(self, cell: Cell, method: TestTimeMethod, seed: int) -> dict[str, Any]:
        """The hyper-parameters that were selected, as the run's predictions name them.

        Raises:
            UserError: The method has not been run.
        """
        path = self.files.predictions(self._predicted(cell, method, seed))
        if not path.is_file():
            raise UserError(
                f"{method.name} has not been run",
                where=str(path),
                fix="run `eqadapt methods` without --latency first",
            )
        return dict(predictions_meta(path).get("hyperparameters", {}))

    def _predicted(self, cell: Cell, method: TestTimeMethod, seed: int) -> Run:
        """The run that keeps a method's predictions, perhaps the finest group's."""
        run = self.plan.run(cell, method, seed)
        return run or cell.run(method.name, seed, "C1")

    def _tuned(
        self, bench: Bench, entry: Entry, selections: Mapping[str, Selection]
    ) -> dict[int, Selection]:
        """The hyper-parameters for each seed: the same for all, unless they are part of what is
        fitted, like the constant that a canonicalizer of one seed may be off by."""
        method, trials, seeds = entry.method, self.settings["trials"], self.plan.seeds(entry.method)
        inherited = selections[method.inherits] if method.inherits else None
        if method.tuned_on == "train":
            return {
                seed: tune(bench, method, entry.grid, trials, inherited, (seed,)) for seed in seeds
            }
        selection = tune(bench, method, entry.grid, trials, inherited, seeds)
        return dict.fromkeys(seeds, selection)

    def _write(
        self, cell: Cell, bench: Bench, entry: Entry, selection: Selection, seed: int
    ) -> float:
        """Write a run's predictions and record; returns its accuracy over the group."""
        method, test = entry.method, bench.orbits["test"]
        decisions = bench.decide(method, selection.parameters, "test", seed)
        found = predictions(bench.group, decisions, test)
        accuracy = float((found.prediction == found.label).mean())
        run = self.plan.run(cell, method, seed)
        if run is None:
            return accuracy  # the finest group's poses hold the others'
        params, seconds = self._trained(cell, bench, method, selection, seed)
        common = {
            **run.as_dict(),
            "config_hash": self._config_hash(cell, entry, seed),
            "data_sha256": bench.orbits["train"].meta["data_sha256"],
            "test_sha256": test.meta["data_sha256"],
            "params_added": params,
            "params_backbone": count_parameters(self.backbone(cell)),
        }
        meta = {
            **common,
            "commit": commit(),
            "test_time": True,
            "poses": cell.group,
            "classes": list(test.meta["classes"]),
            "backbone_passes": found.passes,
            "mask": test.meta["mask"],
            "reduced": self.study.config["reduced"],
            "gated": method.gated,
            "departures": list(method.departures(selection.parameters)),
            "hyperparameters": selection.parameters,
            "trials": selection.count,
            **logit_differences(bench.group, decisions),
        }
        write_predictions(self.files.predictions(run), found, meta)
        if run in self.study.trained_runs():
            return accuracy  # the training has written this run's record
        write_json(
            self.files.run_folder(run) / "run.json",
            {
                **common,
                **provenance(self.runner.device),
                "train_seconds": None if seconds is None else round(seconds, 3),
                "hyperparameters": selection.parameters,
                "tuned_on": selection.split,
                "trials": selection.trials,
                "paper": entry.paper,
                "note": entry.note,
            },
        )
        return accuracy

    def _config_hash(self, cell: Cell, entry: Entry, seed: int) -> str:
        """Digest of what decides a run: backbone, images, grid, settings, and its canonicalizer."""
        recipe, test_time = self.recipe(cell), dict(self.study.config["test_time"])
        settings = {**self.settings.values, "images": self.images(cell.dataset)}
        name = self.plan.canonicalizer(entry.method)
        canonicalizer = None
        if name is not None:
            canonicalizer = self.study.recipe_hash(self.plan.canonicalizer_run(cell, name, seed))
        del test_time["folder"]  # what lies in it counts, and of weights the checksum
        recipe["backbone"].pop("file", None)
        return digest_of(
            [recipe["image"], recipe["backbone"], entry.grid, settings, test_time] + [canonicalizer]
        )

    def _trained(
        self, cell: Cell, bench: Bench, method: TestTimeMethod, selection: Selection, seed: int
    ) -> tuple[int, float | None]:
        """Parameters added and seconds of training, of evidence and canonicalizer together."""
        evidence = bench.evidence(method, selection.parameters, seed)
        params = int(getattr(evidence, "num_parameters", 0))
        seconds: float | None = getattr(evidence, "seconds", None)
        name = self.plan.canonicalizer(method)
        if name is not None:
            run = self.plan.canonicalizer_run(cell, name, seed)
            record = json.loads((self.files.run_folder(run) / "run.json").read_text())
            params += int(record["params_added"])
            seconds = (seconds or 0.0) + float(record["train_seconds"])
        return params, seconds
