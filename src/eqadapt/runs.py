"""The runs of a study on disk: where their files lie, and how one is trained and predicted."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eqadapt import checkpoint, distributed, kept_runs
from eqadapt.adaptation import (
    ImageKind,
    build_backbone,
    build_image_scorer,
    build_model,
    check_scorer_start,
    choose_device,
    restore_normalisation,
    start_scorer,
    start_scorer_as_backbone,
)
from eqadapt.backbones import Backbone, check_head, count_parameters, hub_file, load_state
from eqadapt.datasets import prepared
from eqadapt.datasets.label_sets import with_labels_of
from eqadapt.digest import code_id
from eqadapt.errors import UserError
from eqadapt.evaluation import OrbitPredictions, gallery, predict_orbit
from eqadapt.files import atomic_path, json_dumps, sha256_file, write_json, write_text
from eqadapt.groups import RotationAction, parse_group
from eqadapt.image_store import on_device
from eqadapt.memory import room_for
from eqadapt.methods import get_method
from eqadapt.provenance import provenance
from eqadapt.study import Run, Study
from eqadapt.study_rules import AS_BACKBONE, is_zero_shot
from eqadapt.symmetrize import Symmetrized
from eqadapt.tasks.classification import ImagePipeline
from eqadapt.trained import (
    classifiers_channels_last,
    description,
    for_inference,
    without_weights,
)
from eqadapt.training import HISTORY_COLUMNS, LabelledImages, Row, Trainer
from eqadapt.zero_shot import write_class_vectors

# The code that decides what training gives: progress that other code left is not gone on with.
TRAINING_CODE = ("eqadapt.training", "eqadapt.adaptation")
# The code that decides what a finished run leaves, which the workflow trains again after.
RUN_CODE = "eqadapt.commands.train"


@dataclass(frozen=True)
class StudyFiles:
    """The folders of a study.

    Attributes:
        results: ``results/<study>``.
        scratch: ``scratch/<study>``: progress that may be lost.
        data: Folder of the prepared data sets.
    """

    results: Path
    scratch: Path
    data: Path

    def run_folder(self, run: Run) -> Path:
        """Checkpoint, history and record of a trained run."""
        return self.results / "runs" / run.stem

    def checkpoint(self, run: Run) -> Path:
        """Final weights of a run."""
        return self.run_folder(run) / "checkpoint.safetensors"

    def pretrained(self, dataset: str, backbone: str) -> Path:
        """Weights left by the pretraining rule."""
        return self.results / "pretrained" / f"{dataset}-{backbone}.safetensors"

    def class_vectors(self, dataset: str, backbone: str) -> Path:
        """What a zero-shot classifier knows of the classes; made where it is missing."""
        return self.scratch / "class_vectors" / f"{dataset}-{backbone}.safetensors"

    def state(self, stem: str) -> Path:
        """Progress of a run or a pretraining."""
        return self.scratch / "states" / f"{stem}.safetensors"

    def finished(self, run: Run) -> Path:
        """Copies of what a finished run left."""
        return self.scratch / "finished" / run.stem

    def run_files(self, run: Run) -> list[Path]:
        """Checkpoint, history and record of a run."""
        folder = self.run_folder(run)
        return [self.checkpoint(run), folder / "history.csv", folder / "run.json"]

    def predictions(self, run: Run) -> Path:
        """The predictions file of a run."""
        return self.results / "predictions" / f"{run.stem}.parquet"

    def gallery(self, run: Run) -> Path:
        """The pictures of a run."""
        return self.results / "galleries" / f"{run.stem}.safetensors"


@dataclass(frozen=True)
class SplitData:
    """The splits of one data set in memory; the test split is read when it is asked for."""

    train: prepared.Prepared
    validation: prepared.Prepared
    read_test: Callable[[], prepared.Prepared]

    @cached_property
    def test(self) -> prepared.Prepared:
        """The test split."""
        return self.read_test()

    @property
    def kind(self) -> ImageKind:
        """Channels and classes."""
        return ImageKind(self.train.images.shape[1], len(self.train.classes))


def select_runs(
    runs: Sequence[Run],
    *,
    dataset: str | None = None,
    backbone: str | None = None,
    regime: str | None = None,
    method: str | None = None,
    group: str | None = None,
    seed: int | None = None,
) -> list[Run]:
    """The runs that match every given key.

    Raises:
        UserError: None does; the message lists what there is.
    """
    wanted = {
        "dataset": dataset,
        "backbone": backbone,
        "regime": regime,
        "method": method,
        "group": group,
        "seed": seed,
    }
    wanted = {key: value for key, value in wanted.items() if value is not None}
    found = [run for run in runs if all(getattr(run, k) == v for k, v in wanted.items())]
    if not found:
        known = {key: sorted({str(getattr(run, key)) for run in runs}) for key in wanted}
        raise UserError(
            f"no run of the study matches {wanted}",
            fix="; ".join(f"{key}: {', '.join(values)}" for key, values in known.items()),
        )
    return found


class StudyRunner:
    """Trains and predicts the runs of one study in one process.

    Data, and backbones as the pretraining left them, are loaded once.

    Args:
        study: The validated study.
        files: Its folders.
        say: Where progress goes.
    """

    def __init__(self, study: Study, files: StudyFiles, say: Callable[[str], None] = print) -> None:
        self.study, self.files = study, files
        self.say = say if distributed.is_first() else _silent
        self.device = choose_device(study.config["device"])
        self.provenance = provenance(self.device)  # of the code that was loaded, not of later edits
        self._splits: dict[str, SplitData] = {}
        # Of the run that was evaluated last: what decided it, predictions, and gallery.
        self._last: tuple[str, OrbitPredictions, dict[str, Tensor]] | None = None

    def prepared_folder(self, dataset: str) -> Path:
        """Where an entry's splits lie; entries of one source share them where they can."""
        return self.files.data / self.study.preparation(dataset).name

    def data(self, dataset: str) -> SplitData:
        """The splits of a data set, limited as the study says."""
        if dataset not in self._splits:
            options = self.study.config["datasets"][dataset]
            folder = self.prepared_folder(dataset)
            train, validation = (
                self._read(dataset, split, options[limit])
                for split, limit in (("train", "limit_train"), ("validation", "limit_test"))
            )
            check_alike(folder, train, validation)
            self._splits[dataset] = SplitData(
                train, validation, lambda: self._read_test(dataset, train)
            )
        return self._splits[dataset]

    def _read_test(self, dataset: str, train: prepared.Prepared) -> prepared.Prepared:
        test = self._read(dataset, "test", self.study.config["datasets"][dataset]["limit_test"])
        check_alike(self.prepared_folder(dataset), train, test)
        return test

    def _read(self, dataset: str, split: str, limit: int | None) -> prepared.Prepared:
        folder = self.prepared_folder(dataset)
        data = prepared.load(folder, split, limit=limit, check=True, mapped=None)
        return with_labels_of(data, self.study.labels_of(dataset), f"datasets.{dataset}")

    def backbone(self, run: Run, recipe: dict[str, Any]) -> Backbone:
        """A fresh backbone with the weights a run starts from."""
        kind = self.data(run.dataset).kind
        torch.manual_seed(run.seed)
        start = self.study.start(run)
        if start is not None:
            section = {**recipe["backbone"], "weights": "scratch"}
            backbone = build_backbone({**recipe, "backbone": section}, kind)
            path = self.files.checkpoint(start)
            tensors, meta = checkpoint.load(path)
            self.check_start(path, meta, self._origin(start))
            load_state(backbone, checkpoint.without_prefix("backbone", tensors, "."), str(path))
            return backbone
        weights = None
        if recipe["backbone"]["weights"] == "pretrain":
            weights = self.files.pretrained(run.dataset, run.backbone)
            _, meta = checkpoint.load(weights)
            self.check_start(weights, meta, self._pretraining(run.dataset, run.backbone))
        elif is_zero_shot(recipe["backbone"]):
            weights = self.files.class_vectors(run.dataset, run.backbone)
            train = self.data(run.dataset).train
            write_class_vectors(weights, recipe, run.dataset, train, self.device)
        backbone = build_backbone(recipe, kind, weights)
        if _relies_on_head(run, recipe):
            check_head(backbone.network, kind.classes, recipe["backbone"]["model"])
        return backbone

    def model(self, run: Run, recipe: dict[str, Any]) -> Symmetrized:
        """The model of a run before training; its new parameters follow from the seed."""
        backbone = self.backbone(run, recipe)
        torch.manual_seed(run.seed + 1_000)
        kind = self.data(run.dataset).kind
        return build_model(recipe, run.method, run.group, kind, backbone).to(self.device)

    def _training_identity(self, run: Run) -> dict[str, str]:
        return {
            "config_hash": self.study.recipe_hash(run),
            "data_sha256": self.data(run.dataset).train.metadata["data_sha256"],
        }

    def _identity(self, run: Run) -> dict[str, str]:
        test = prepared.read_metadata(self.prepared_folder(run.dataset), "test")
        return {**self._training_identity(run), "test_sha256": test["data_sha256"]}

    def _origin(self, run: Run) -> dict[str, Any]:
        """What the checkpoint of a run says of itself."""
        return {**run.as_dict(), **self._training_identity(run)}

    def _pretraining(self, dataset: str, backbone: str) -> dict[str, str]:
        """What pretrained weights say of themselves."""
        return {
            "dataset": dataset,
            "backbone": backbone,
            "pretrain_hash": self.study.pretrain_hash(dataset, backbone),
            "data_sha256": self.data(dataset).train.metadata["data_sha256"],
        }

    def check_start(self, path: Path, meta: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        """Stop at weights of another run, recipe or data: what follows would be published as of
        these. A subclass whose recipes are meant to differ from those of its starts allows them.

        Args:
            path: The checkpoint.
            meta: What it says of itself; older ones say less.
            wanted: What it should say.

        Raises:
            UserError: They differ.
        """
        _check_origin(path, meta, wanted)

    def trainer(
        self,
        run: Run,
        recipe: dict[str, Any],
        model: Symmetrized,
        stem: str,
        identity: list,
        section: str = "train",
    ) -> Trainer:
        """What trains a run's model on the data of the study.

        Args:
            run: The run.
            recipe: Its recipe.
            model: Its model before training; its scorer is given the weights it starts from.
            stem: Names its progress, and the lines that tell of it.
            identity: Whatever decides the result, beside what the run begins with, the code and
                where it runs; progress of another one is not resumed.
            section: Of the study, where its recipe is from: ``"train"`` or ``"pretrain"``.
        """
        data, method = self.data(run.dataset), get_method(run.method)
        start = self.study.scorer_start(run) if "scorer_start" in recipe["train"] else None
        if start is not None:
            tensors, meta = checkpoint.load(start)
            start_scorer(model.scorer, tensors, meta, str(start))
        elif recipe["train"].get("scorer_start") == AS_BACKBONE and method.scorer == "image":
            start_scorer_as_backbone(model)
        begins = self._begins_with(run, recipe) if section == "train" else []
        where: list[Any] = [self.provenance[key] for key in ("device", "torch")]
        if distributed.size() > 1:
            where.append(distributed.size())
        identity = [*identity, begins, where, code_id(*TRAINING_CODE)]
        return Trainer(
            model,
            method,
            recipe,
            LabelledImages(data.train.images, data.train.labels),
            LabelledImages(data.validation.images, data.validation.labels),
            seed=run.seed,
            frozen=run.regime == "frozen",
            state_path=self.files.state(stem),
            digest=json_dumps(identity, indent=None),
            report=lambda row: self.say(f"{stem}  {describe(row)}"),
            say=lambda text: self.say(f"{stem}  {text}"),
            section=section,
        )

    def check_scorers(self, runs: Sequence[Run]) -> None:
        """Build each kind of scorer of several runs once, so that one that cannot work is told
        before the first of them is trained.

        Raises:
            UserError: The options of one do not fit together.
        """
        built = set()
        for run in runs:
            method = get_method(run.method)
            if method.scorer != "image":
                continue
            recipe, kind = self.study.recipe(run), self.data(run.dataset).kind
            of = json_dumps([recipe["scorer"], run.method, run.group, *astuple(kind)], indent=None)
            check_scorer_start(recipe)
            if of not in built:
                build_image_scorer(recipe, method, parse_group(run.group), kind)
            built.add(of)

    def train(self, run: Run) -> None:
        """Train one run and write its folder; one that was finished before is given back.

        A copy is kept of what it leaves, until the run is another one or its code is.
        """
        recipe, kept = self.study.recipe(run), self.files.finished(run)
        decided_by, files = self._decided_by(run, recipe), self.files.run_files(run)
        finished = kept_runs.holds(kept, decided_by, files)
        distributed.agree(int(finished), "whether the run is finished")
        if not finished:
            self._train(run, recipe)
        if distributed.is_first():
            if finished:
                kept_runs.give_back(kept, files)
                self.say(f"{run.stem}  was finished before; to train it again remove {kept}")
            else:
                kept_runs.keep(kept, decided_by, files)
            self.forget_states([run.stem])
        distributed.wait()  # for the files, which later runs may start from

    def _begins_with(self, run: Run, recipe: dict[str, Any]) -> list[str]:
        """SHA-256 of the weights a run begins with, but of a file of the user's, whose checksum is
        in the recipe."""
        start, begins = self.study.start(run), []
        if start is not None:
            begins.append(self.files.checkpoint(start))
        if recipe["backbone"]["weights"] == "pretrain":
            begins.append(self.files.pretrained(run.dataset, run.backbone))
        if "scorer_start" in recipe["train"]:
            begins += filter(None, [self.study.scorer_start(run)])
        begins += map(hub_file, self.study.hub_models([run]))
        return [sha256_file(path) for path in begins if path.is_file()]

    def _decided_by(self, run: Run, recipe: dict[str, Any]) -> dict[str, Any]:
        """Whatever decides the files of a run."""
        return {
            **run.as_dict(),
            **self._identity(run),
            "begins_with": self._begins_with(run, recipe),
            "code": code_id(RUN_CODE),
            **{key: self.provenance[key] for key in ("device", "torch")},
            "processes": distributed.size(),
        }

    def _train(self, run: Run, recipe: dict[str, Any]) -> None:
        data, model = self.data(run.dataset), self.model(run, recipe)
        added = count_parameters(model) - count_parameters(model.backbone)
        identity = self._identity(run)
        trainer = self.trainer(run, recipe, model, run.stem, [identity, run.stem])
        result = trainer.run()
        if not distributed.is_first():
            return
        folder = self.files.run_folder(run)
        write_history(folder / "history.csv", result.history)
        write_json(
            folder / "run.json",
            {
                **run.as_dict(),
                **identity,
                **self.provenance,
                **self._hub_weights(run),
                "n_train": len(data.train.labels),
                **({"processes": distributed.size()} if distributed.size() > 1 else {}),
                "train_seconds": round(result.seconds, 3),
                "params_backbone": count_parameters(model.backbone),
                "params_added": added,
                "epochs": len(result.history),
                "best_epoch": result.best_epoch,
            },
        )
        described = description(recipe, data.kind, model)
        meta = {**run.as_dict(), **identity, "params_added": added, **described}
        checkpoint.save(self.files.checkpoint(run), model.state_dict(), meta)

    def _hub_weights(self, run: Run) -> dict[str, dict[str, str]]:
        """SHA-256 of the files of pretrained weights that a run begins with, where it has any."""
        files = {model: hub_file(model) for model in self.study.hub_models([run])}
        sums = {model: sha256_file(path) for model, path in files.items() if path.is_file()}
        return {"hub_weights": sums} if sums else {}

    def forget_states(self, stems: Sequence[str]) -> None:
        """Remove the progress of runs that are finished."""
        for stem in stems if distributed.is_first() else ():
            self.files.state(stem).unlink(missing_ok=True)

    def pretrain(self, dataset: str, backbone: str) -> None:
        """Train a backbone upright from scratch and write its weights and history."""
        run = Run(dataset, backbone, "joint", "vanilla", "C1", 0)
        recipe = self.study.recipe(run)
        recipe = {
            **recipe,
            "backbone": {**recipe["backbone"], "weights": "scratch"},
            "train": recipe["pretrain"],
        }
        stem = f"pretrain-{dataset}-{backbone}"
        model = self.model(run, recipe)
        identity = [recipe, self.data(dataset).train.metadata["data_sha256"]]
        result = self.trainer(run, recipe, model, stem, identity, "pretrain").run()
        if not distributed.is_first():
            return
        path = self.files.pretrained(dataset, backbone)
        write_history(path.with_suffix(".csv"), result.history)
        tensors = checkpoint.with_prefix("backbone", model.backbone.state_dict())
        meta = {**self._pretraining(dataset, backbone), "seconds": round(result.seconds, 3)}
        checkpoint.save(path, tensors, meta)
        self.forget_states([stem])

    def load(self, run: Run) -> Symmetrized:
        """The trained model of a run for inference, as its method says: scorers in plain layers."""
        return for_inference(self.trained(run), run.method)

    def trained(self, run: Run) -> Symmetrized:
        """The trained model of a run as it was trained, in evaluation mode.

        A method that trains nothing of its own loads the checkpoint of the method it names.
        """
        model = self._shell(run)
        path = self.files.checkpoint(run.source)
        tensors, meta = checkpoint.load(path)
        _check_origin(path, meta, self._origin(run.source))
        load_state(model, tensors, str(path))
        restore_normalisation(model, meta)
        return model.eval()

    def _shell(self, run: Run) -> Symmetrized:
        """The model of a run for a checkpoint's weights: others are neither loaded nor fetched.

        A zero-shot classifier is more than its checkpoint, and made whole.
        """
        recipe = self.study.recipe(run)
        if is_zero_shot(recipe["backbone"]):
            return self.model(run, recipe)
        kind, recipe = self.data(run.dataset).kind, without_weights(recipe)
        backbone = build_backbone(recipe, kind)
        return build_model(recipe, run.method, run.group, kind, backbone).to(self.device)

    def _added_parameters(self, run: Run) -> int:
        """Parameters beside the backbone's, as trained: an exported scorer has more, expanded."""
        model = self._shell(run)
        return count_parameters(model) - count_parameters(model.backbone)

    def predict(self, run: Run) -> None:
        """Predict every test image in every pose; write the predictions and the gallery.

        Of runs that follow each other and differ by seeds that decided nothing, as of a frozen
        network without a canonicalizer, the first one alone is evaluated.
        """
        data, model = self.data(run.dataset), self.load(run)
        key = self._decides_predictions(run, model)
        if self._last is None or self._last[0] != key:
            self._last = key, *self._evaluate(run, model)
        _, found, pictures = self._last
        meta = {
            **run.as_dict(),
            **self._identity(run),
            "poses": self.study.recipe(run)["evaluate"]["poses"],
            "classes": list(data.test.classes),
            "backbone_passes": found.passes,
            "params_added": self._added_parameters(run),
            "params_backbone": count_parameters(model.backbone),
            "mask": self.study.recipe(run)["image"]["mask"],
            "reduced": self.study.config["reduced"],
        }
        write_predictions(self.files.predictions(run), found, meta)
        checkpoint.save(self.files.gallery(run), pictures, run.as_dict())
        accuracy = (found.prediction == found.label)[found.pose == 0].mean()
        mean = (found.prediction == found.label).mean()
        poses = meta["poses"]
        self.say(f"{run.stem}  upright {100 * accuracy:.2f}  over {poses} {100 * mean:.2f}")

    def _decides_predictions(self, run: Run, model: Symmetrized) -> str:
        """Whatever decides what a run predicts; its seed only where poses are drawn."""
        named = run.as_dict()
        if get_method(run.method).selection != "sample":
            del named["seed"]
        weights = checkpoint.weights_sha256(model.state_dict())
        return json_dumps([named, self.study.recipe(run), weights], indent=None)

    def _evaluate(self, run: Run, model: Symmetrized) -> tuple[OrbitPredictions, dict[str, Tensor]]:
        """Predictions of every test image in every pose, and the gallery."""
        recipe, method = self.study.recipe(run), get_method(run.method)
        test = self.data(run.dataset).test
        if self.device.type == "cpu":
            classifiers_channels_last(model)
        pipeline = ImagePipeline.from_recipe(recipe)
        image, evaluate = recipe["image"], recipe["evaluate"]
        poses = RotationAction(
            parse_group(evaluate["poses"]), image["interpolation"], image["padding"], image["mask"]
        )
        images, labels = on_device(test.images, self.device), test.labels.to(self.device)
        size = evaluate["batch_size"]
        torch.manual_seed(run.seed)  # methods that draw poses
        with room_for(size, "evaluate.batch_size"):
            found = predict_orbit(model, method, images, labels, test.index, pipeline, poses, size)
        rows = gallery_rows(evaluate["gallery"], len(images)).to(self.device)
        shown = gallery_poses(poses)
        return found, gallery(model, method, images[rows], labels[rows], pipeline, poses, shown)


def _check_origin(path: Path, meta: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if key in meta and meta[key] != value:
            raise UserError(
                f"the checkpoint is of another {key}: {meta[key]}, not {value}",
                where=str(path),
                fix="train this run again, or name the study that it is of",
            )


def check_alike(folder: Path, train: prepared.Prepared, other: prepared.Prepared) -> None:
    """Stop where two splits are not of one data set.

    Raises:
        UserError: Their names, classes or channels differ, or the archive or the choices that
            they were made from, as far as both say.
    """
    split = other.metadata["split"]
    for what, first, second in (
        ("data set", train.metadata["dataset"], other.metadata["dataset"]),
        *(
            (what, train.metadata[what], other.metadata[what])
            for what in ("source", "preparation")
            if what in train.metadata and what in other.metadata
        ),
        ("classes", train.classes, other.classes),
        ("channels", train.images.shape[1], other.images.shape[1]),
    ):
        if first != second:
            raise UserError(
                f"train and {split} splits differ in their {what}: {first}, {second}",
                where=str(folder),
                fix="remove the folder and run `eqadapt prepare` again",
            )


def _relies_on_head(run: Run, recipe: Mapping[str, Any]) -> bool:
    """Whether a run uses what timm's weights of its backbone say of the classes."""
    section = recipe["backbone"]
    if section["weights"] != "pretrained" or is_zero_shot(section):
        return False
    taught = recipe["train"].get("teacher_weight", 0) > 0
    return run.regime == "frozen" or get_method(run.method).distils or taught


def _silent(_text: str) -> None:
    """What a process says that is not the first."""


def gallery_rows(count: int, images: int) -> Tensor:
    """Images shown in galleries, evenly spaced: folders of images are in the order of classes."""
    count = min(count, images)
    return torch.arange(count) * images // max(1, count)


def gallery_poses(poses: RotationAction) -> list[int]:
    """The poses shown in galleries: upright, then 45, 90, 135 and 180 degrees where present."""
    return [k for k, angle in enumerate(poses.group.angles) if angle % 45 == 0 and angle <= 180]


def describe(row: Row) -> str:
    """One line for people of an epoch's row."""
    shown = (("loss", "train_loss"), ("val", "val_acc"), ("orbit", "val_cn_avg"))
    parts = [f"epoch {row['epoch']}"]
    parts += [f"{label} {row[key]:.3f}" for label, key in shown if row.get(key) is not None]
    return "  ".join(parts)


def write_history(path: Path, history: Sequence[Row]) -> None:
    """The training curve as CSV; missing values are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, HISTORY_COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: "" if value is None else value for key, value in row.items()})
    write_text(path, text.getvalue())


def write_predictions(path: Path, found: OrbitPredictions, meta: dict[str, Any]) -> None:
    """The predictions as Parquet, with the run's identity in the schema's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {key: value for key, value in vars(found).items() if key != "passes"}
    table = pa.table({key: pa.array(value) for key, value in columns.items()})
    header = {b"eqadapt": json.dumps(meta, sort_keys=True).encode()}
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(header), temporary, compression="zstd")


def predictions_meta(path: Path) -> dict[str, Any]:
    """What ``write_predictions`` was told of the run."""
    import pyarrow.parquet as pq

    return dict(json.loads(pq.read_schema(path).metadata[b"eqadapt"]))
