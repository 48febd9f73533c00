"""A study: one YAML file that names every run, validated before any work starts. No torch here."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import product
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from eqadapt.datasets.variants import Preparation
from eqadapt.errors import UserError
from eqadapt.files import json_dumps
from eqadapt.methods import get_method
from eqadapt.study_rules import AS_BACKBONE, LISTS, knows_classes, timm_names, validated

TASK = "classification"


@dataclass(frozen=True, order=True)
class Run:
    """One row of the study: what is trained and predicted once.

    Attributes:
        dataset: Name of the data set.
        backbone: Name of the backbone in the study.
        regime: ``"joint"`` or ``"frozen"``.
        method: Name in the registry of methods.
        group: ``"C8"``; ``"C1"`` for methods that are not trained for a group.
        seed: Seed of everything random in it.
    """

    dataset: str
    backbone: str
    regime: str
    method: str
    group: str
    seed: int

    @property
    def stem(self) -> str:
        """Name of its files: ``<dataset>-<backbone>-<regime>-<method>-<group>-seed<seed>``."""
        return (
            f"{self.dataset}-{self.backbone}-{self.regime}-{self.method}-{self.group}"
            f"-seed{self.seed}"
        )

    @property
    def trains(self) -> bool:
        """Whether it has a checkpoint of its own."""
        return get_method(self.method).trains

    @property
    def source(self) -> Run:
        """The run whose checkpoint it is evaluated with: itself, or e.g. oracle's vanilla."""
        other = get_method(self.method).train_as
        return self.trained_as(other) if other else self

    def trained_as(self, method: str) -> Run:
        """The run of another method, all else equal."""
        return replace(self, method=method)

    def as_dict(self) -> dict[str, Any]:
        """Its identity as written into files, the task included."""
        return {"task": TASK, **asdict(self)}


def merge(base: Mapping[str, Any], over: Mapping[str, Any] | None) -> dict[str, Any]:
    """``base`` with the keys of ``over`` in their place, mappings merged key by key."""
    merged = dict(base)
    for key, value in (over or {}).items():
        old = merged.get(key)
        if isinstance(old, list) and isinstance(value, Mapping):
            old = dict.fromkeys(map(str, old))  # names: a change to one of them keeps the others
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else deepcopy(value)  # type: ignore[arg-type]
    return merged


def merge_scorer(base: Mapping[str, Any], over: Mapping[str, Any] | None) -> dict[str, Any]:
    """As ``merge``, but another scorer takes none of the options meant for the first."""
    renamed = over and over.get("name", base["name"]) != base["name"]
    return merge({} if renamed else base, over)


# Keys of a training recipe that came after results were published, with the values that change
# nothing: at those they are left out of digests, so that older results stay valid.
_LATER = {
    "validate_every": 1,
    "distil_temperature": 1.0,
    "artifact_weight": 1.0,
    "nesterov": True,
    "sync_batch_norm": False,
    "scorer_amp": "none",
    "scorer_optimizer": "same",
    "prior_schedule": "constant",
    "scorer_start": None,
    "views_a_step": None,
    "quarter_views": None,
    "teacher_weight": 0.0,
    "teacher_temperature": 2.0,
}


def _hashed(train: Mapping[str, Any]) -> dict[str, Any]:
    """A training recipe as digests see it."""
    return {key: value for key, value in train.items() if _LATER.get(key, ...) != value}


def _without_scorer(train: Mapping[str, Any]) -> dict[str, Any]:
    """A training recipe without what is said of a scorer."""
    return {key: value for key, value in train.items() if not key.startswith("scorer_")}


def expanded(path: str, mirror: str | None = None) -> str:
    """A path with ``~`` and ``$VARIABLES`` in their place.

    Studies are kept as they were written, so that no result names a folder of one machine.

    Args:
        path: As it was written.
        mirror: What ``$EQADAPT_MIRROR`` stands for; None: what the environment says.
    """
    if mirror is not None:
        folder = expanded(mirror)
        path = re.sub(r"\$(EQADAPT_MIRROR\b|\{EQADAPT_MIRROR\})", lambda _: folder, path)
    return os.path.expandvars(Path(path).expanduser())


def digest_of(value: Any) -> str:
    """Sixteen hex digits of SHA-256 over a value's canonical JSON."""
    return hashlib.sha256(json_dumps(value, indent=None).encode()).hexdigest()[:16]


class Study:
    """A validated study.

    Args:
        config: The configuration, validated and with all defaults filled in.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.config["study"])

    @property
    def results_dir(self) -> Path:
        """``results/<study>``."""
        return Path("results") / self.name

    @property
    def shared_canonicalizers(self) -> str | None:
        """The backbone whose canonicalizers serve all backbones at test time, if one does."""
        found = (self.config["test_time"] or {}).get("canonicalizers_of")
        return None if found is None else str(found)

    @cached_property
    def _runs(self) -> list[Run]:
        config = self.config
        runs = []
        for dataset, backbone, regime, method in product(
            config["datasets"], config["backbones"], config["regimes"], config["methods"]
        ):
            entry = get_method(method)
            if regime not in entry.regimes or self.shared_canonicalizers not in (None, backbone):
                continue
            if method not in config["backbones"][backbone].get("methods", [method]):
                continue
            groups = list(config["groups"]) if entry.uses_group else ["C1"]
            for group, seed in product(groups, config["seeds"]):
                runs.append(Run(dataset, backbone, regime, method, group, seed))
        return runs

    def runs(self) -> list[Run]:
        """All runs, in the order of the configuration's lists."""
        return list(self._runs)

    def trained_runs(self) -> list[Run]:
        """The runs that leave a checkpoint."""
        return [run for run in self._runs if run.trains]

    def by_stem(self, stem: str) -> Run:
        """The run whose files have this stem.

        Raises:
            UserError: The study has no such run.
        """
        for run in self._runs:
            if run.stem == stem:
                return run
        raise UserError(f"the study has no run {stem!r}", where=self.name)

    @property
    def mirror(self) -> str | None:
        """The folder of archives and weights files: the study's own, else the environment's."""
        named = self.config["mirror"] or os.environ.get("EQADAPT_MIRROR") or None
        return None if named is None else expanded(str(named))

    def expanded(self, path: str) -> str:
        """A path of the study's, in which ``$EQADAPT_MIRROR`` is the study's own mirror."""
        return expanded(path, self.mirror)

    def preparation(self, dataset: str) -> Preparation:
        """What an entry's images come from and how they are prepared."""
        return Preparation.of(dataset, self.config["datasets"][dataset])

    def labels_of(self, dataset: str) -> str | None:
        """The registered data set among whose classes an entry's labels are places, where these
        are not the entry's own classes."""
        named: str | None = self.config["datasets"][dataset].get("labels_of")
        return named

    def knows_classes(self, run: Run) -> bool:
        """Whether the weights that a run's backbone is given tell the classes of its data."""
        labels = self.labels_of(run.dataset) or self.preparation(run.dataset).source
        return knows_classes(labels, self.config["backbones"][run.backbone])

    def recipe(self, run: Run) -> dict[str, Any]:
        """Everything that decides a run's result.

        Args:
            run: One of the study's runs, or one like them.

        Returns:
            Sections ``dataset``, ``backbone`` (model, weights, file, sha256, options), ``image``,
            ``scorer``, ``pretrain``, ``train`` and ``evaluate``. Overrides apply in the order data
            set, backbone, group, method, the backbone's own for the method; a method evaluated with
            another's checkpoint takes that one's overrides first.
        """
        config = self.config
        dataset, backbone = config["datasets"][run.dataset], config["backbones"][run.backbone]
        overs = [dataset, backbone, config["groups"].get(run.group, {})]
        for methods in (config["methods"], backbone.get("recipes", {})):
            overs += [methods.get(method, {}) for method in (run.source.method, run.method)]
        train, scorer = config["train"], config["scorer"]
        for over in overs:
            train = merge(train, over.get("train"))
            scorer = merge_scorer(scorer, over.get("scorer"))
        sections = ("image", "methods", "pretrain", "recipes", "scorer", "train")
        network = {key: value for key, value in backbone.items() if key not in sections}
        if network["file"]:
            network["file"] = self.expanded(network["file"])
        return {
            "dataset": {key: value for key, value in dataset.items() if key != "train"},
            "backbone": network,
            "image": merge(config["image"], backbone.get("image")),
            "scorer": scorer,
            "pretrain": merge(config["pretrain"], backbone.get("pretrain")),
            "train": train,
            "evaluate": dict(config["evaluate"]),
        }

    def recipe_hash(self, run: Run) -> str:
        """Digest of what decides a run's checkpoint.

        Paths are left out: the checksums of data and weights identify what they lead to. So is
        what a run does not use: the pretraining of a backbone that has other weights, the scorer
        where nobody scores.
        """
        recipe, method = self.recipe(run), get_method(run.source.method)
        recipe["dataset"].pop("folder", None)
        recipe["backbone"].pop("file", None)
        samples = recipe.pop("evaluate").get("samples")
        if samples is not None and method.selection == "sample":
            recipe["samples"] = samples  # validation draws as many, and the checkpoint says so
        recipe["train"] = _hashed(recipe["train"])
        recipe["pretrain"] = _hashed(recipe["pretrain"])
        if method.scorer is None:
            recipe.pop("scorer")
            recipe["train"] = _without_scorer(recipe["train"])
        if recipe["backbone"]["weights"] != "pretrain":
            recipe.pop("pretrain")
        start = self.start(run)
        return digest_of([run.source.as_dict(), recipe, self.recipe_hash(start) if start else None])

    def outputs_hash(self, run: Run) -> str:
        """Digest of what decides the outputs of a frozen run's backbone on the images.

        No training decides them, unless the backbone starts as another run left it.
        """
        start = self.start(run)
        if start is not None:
            return self.recipe_hash(start)
        recipe = self.recipe(run)
        for key in ("folder", "limit_test"):  # images are chosen by the settings of the methods
            recipe["dataset"].pop(key, None)
        recipe["backbone"].pop("file", None)
        return digest_of([run.dataset, recipe["dataset"], recipe["backbone"], recipe["image"]])

    def pretrain_hash(self, dataset: str, backbone: str) -> str:
        """Digest of what decides the upright pretraining of a backbone on a data set."""
        recipe = self.recipe(Run(dataset, backbone, "joint", "vanilla", "C1", 0))
        network = {key: recipe["backbone"][key] for key in ("model", "options")}
        recipe["dataset"].pop("folder", None)
        parts = [recipe["dataset"], network, recipe["image"], _hashed(recipe["pretrain"])]
        return digest_of([dataset, *parts])

    def start(self, run: Run) -> Run | None:
        """The run whose trained backbone a run starts from; None where its ``weights`` say it.

        A frozen backbone must know the classes already. Random weights do not, nor do pretrained
        ones on other data than they come from, so those are taken as vanilla fine-tuned them.
        """
        if run.regime != "frozen" or self.knows_classes(run):
            return None
        return replace(run, regime="joint", method="vanilla", group="C1")

    def scorer_start(self, run: Run) -> Path | None:
        """The checkpoint whose canonicalizer a run's begins as; None for a new one, or one that
        begins as the backbone."""
        pattern = self.recipe(run)["train"]["scorer_start"]
        if pattern in (None, AS_BACKBONE) or get_method(run.method).scorer != "image":
            return None
        return Path(self.expanded(pattern.format(**run.as_dict())))

    def hub_models(self, runs: Sequence[Run] | None = None) -> list[str]:
        """The models of timm whose pretrained weights these runs begin with; None: all runs.

        Backbones, and scorers of poses.
        """
        sections = list(self.config["backbones"].values()) if runs is None else []
        for run in self.trained_runs() if runs is None else runs:
            recipe = self.recipe(run)
            sections.append(recipe["backbone"])
            scorer = recipe["scorer"]
            if get_method(run.method).scorer == "image" and scorer.get("pretrained"):
                sections.append({"model": scorer.get("model"), "weights": "pretrained"})
        models = {str(s["model"]) for s in sections if _begins_with_its_own(s)}
        return sorted(model for model in models if model.split(".")[0] in timm_names())

    def missing_sources(self) -> list[str]:
        """What to say of the user's folders of images and weights files that are not there, and of
        data sets that must come from such a folder and have none."""
        said = []
        for name, dataset in self.config["datasets"].items():
            folder = dataset["folder"]
            if folder and not Path(self.expanded(folder)).is_dir():
                said.append(f"data set {name}: no such folder of images: {folder}")
            if not folder and self._cannot_be_had(name):
                said.append(
                    f"data set {name}: it cannot be downloaded, so `folder` must name its images"
                )
        for path in sorted({str(self.scorer_start(run)) for run in self.trained_runs()} - {"None"}):
            if not Path(path).is_file():
                said.append(f"train.scorer_start: no such checkpoint: {path}")
        for name, backbone in self.config["backbones"].items():
            path = backbone["file"]
            if path and not Path(self.expanded(path)).is_file():
                said.append(f"backbone {name}: no such weights file: {path}")
        return said

    def _cannot_be_had(self, dataset: str) -> bool:
        """Whether a data set without a folder of the user's is nowhere: nobody hands it out, and
        neither the mirror has it nor an earlier download, which may have been told the folder."""
        from eqadapt.datasets import mirror, registry

        preparation = self.preparation(dataset)
        source = registry.get(preparation.source)
        if source.files or source.bundled or source.derivation:
            return False
        there = (f"data/raw/{source.name}/source.json", f"data/prepared/{preparation.name}")
        if any(Path(path).exists() for path in there):
            return False
        folder = Path(self.mirror) if self.mirror else None
        return folder is None or not folder.is_dir() or mirror.look_up(folder, source) is None

    def digest(self, *keys: str) -> str:
        """Digest of the values at dotted keys, e.g. ``digest("image", "train.epochs")``."""
        return digest_of([self.value(key) for key in keys])

    def value(self, key: str) -> Any:
        """The value at a dotted key."""
        value: Any = self.config
        for part in key.split("."):
            value = value[part]
        return value

    def to_yaml(self) -> str:
        """The whole configuration as YAML; loading it gives the same study."""
        return yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True, width=100)


def _begins_with_its_own(backbone: Mapping[str, Any]) -> bool:
    """Whether a backbone section names a model's pretrained weights, and no file of others."""
    weights = backbone["weights"]
    return weights == "pretrained" or (weights == "prototypes" and not backbone.get("file"))


def load_study(
    source: str | PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()
) -> Study:
    """Read and check a study.

    Args:
        source: A YAML file, or the configuration as a mapping.
        overrides: ``"train.epochs=2"``: dotted keys with values as in YAML.

    Raises:
        UserError: Not a file, not YAML, or not a valid study; the message names each wrong key
            with its allowed values.
    """
    where = "the study" if isinstance(source, Mapping) else str(source)
    config = dict(source) if isinstance(source, Mapping) else read_yaml(Path(source))
    for text in overrides:
        config = merge(config, parse_override(text))
    return Study(validated(config, where))


def parse_override(text: str) -> dict[str, Any]:
    """``"train.epochs=2"`` to ``{"train": {"epochs": 2}}``.

    Raises:
        UserError: No ``=``, or a value that is not YAML.
    """
    key, sign, value = text.partition("=")
    if not (sign and key.strip()):
        raise UserError(f"not an override: {text!r}", fix="KEY=VALUE, e.g. train.epochs=2")
    try:
        nested: Any = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"the value of {key!r} is not YAML: {value!r}") from error
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return dict(nested)


def selected(
    file: Mapping[str, Any], config: Mapping[str, Any]
) -> dict[str, dict[str, Mapping[str, Any] | None]]:
    """Lists of names that stand for entries of a study's file, with what the file says of these.

    Args:
        file: The study as its file has it.
        config: The study, in which a list of names may have replaced the file's entries.

    Returns:
        The replaced ones of ``datasets``, ``backbones``, ``groups`` and ``methods``.
    """
    found = {}
    for key in LISTS:
        entries, names = file.get(key), config.get(key)
        if isinstance(entries, Mapping) and isinstance(names, list):
            found[key] = {str(name): entries.get(name) for name in names}
    return found


class UniqueKeys(yaml.SafeLoader):
    """YAML in which a key may not stand twice: the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping of its keys; those of merges (``<<``) may be given again."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = sorted({key for key in keys if isinstance(key, str) and keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        UserError: No such file, not YAML, or something else than a mapping.
    """
    if not path.is_file():
        raise UserError(
            "no such study", where=str(path), fix="give a file, e.g. config/digits.yaml"
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            f"not readable as YAML: {error}", where=str(path), fix="correct the file there"
        ) from error
    if not isinstance(content, dict):
        raise UserError("the study is not a mapping of keys to values", where=str(path))
    return content
