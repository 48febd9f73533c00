"""What makes a study valid: the schema, the defaults in it, and what no schema can say."""

from __future__ import annotations

import difflib
import functools
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from eqadapt.errors import UserError
from eqadapt.groups.cyclic import parse_group
from eqadapt.methods import METHODS, load_plugins

if TYPE_CHECKING:
    from eqadapt.datasets.source import Source

OWN_BACKBONES = (
    "resnet_small",
    "vit_small",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "mnist_cnn",
    "mnist_gcnn",
)
OPEN_CLIP = "open_clip:"
TIMM_CLASSES = "imagenet1k"  # the data set whose classes timm's pretrained heads tell
# Of train.scorer_start: the canonicalizer begins as the backbone, and not as a run's.
AS_BACKBONE = "backbone"
_ZERO_SHOT_OPTIONS: dict[str, tuple[type, ...]] = {
    "shots": (int,),
    "scale": (int, float),
    "templates": (str, list),
    "class_names": (dict,),
    "pretrained": (str,),
}
_TEXTS = ("templates", "class_names", "pretrained")  # a class may be called "no", or "007"
LISTS = ("datasets", "backbones", "groups", "methods")
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")

Fault = tuple[str, str, str]
"""Key path, what is wrong, what is allowed."""


@functools.cache
def schema() -> dict[str, Any]:
    """The JSON schema of a study."""
    text = resources.files("eqadapt").joinpath("study.schema.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def validated(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The configuration with all defaults, once it is found valid.

    Lists of names become mappings to empty options, and backbones get their ``model``.

    Raises:
        UserError: It is not; the message lists every fault with its key and the allowed values.
    """
    given = _typed(dict(config))
    _raise([*_finite(given), *_schema_faults(given)], where)
    filled = _filled(_with_read_options(_normal(given)), schema())
    for name, dataset in filled["datasets"].items():
        if dataset.get("source") == name:
            del dataset["source"]  # as if it were not said
    for name, backbone in filled["backbones"].items():
        backbone.setdefault("model", name)
    _raise([fault for check in _CHECKS for fault in check(filled)], where)
    return filled


def _raise(faults: list[Fault], where: str) -> None:
    if not faults:
        return
    lines = [f"{path}: {what}; allowed: {allowed}" for path, what, allowed in faults]
    raise UserError(
        "\n".join(["the study is not valid", *(f"  - {line}" for line in lines)]),
        where=where,
        fix="every key is described in src/eqadapt/study.schema.yaml and in config/digits.yaml",
    )


def _typed(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with texts read as the numbers, truths and nothings they mean, and with
    whole numbers where such are wanted: 2.0 as 2.

    YAML 1.1 reads ``1e-3`` as text for want of a dot, and ``snakemake --config`` hands over
    everything inside brackets as text.
    """
    config = deepcopy(config)
    for error in list(_errors(config)):
        found = error.instance
        whole = isinstance(found, float) and found.is_integer()
        if (isinstance(found, str) or whole) and error.validator in ("type", "enum"):
            *parents, last = error.absolute_path
            place: Any = config
            for key in parents:
                place = place[key]
            place[last] = int(found) if whole else _scalar(found)
    return config


def _scalar(value: Any) -> Any:
    """A text, or all texts in a mapping or list, as YAML would read it."""
    if isinstance(value, Mapping):
        return {key: _scalar(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_scalar(item) for item in value]
    if not isinstance(value, str):
        return value
    if _EXPONENT.fullmatch(value):
        return float(value)
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return value if isinstance(read, Mapping | list) else read


def _with_read_options(config: dict[str, Any]) -> dict[str, Any]:
    """The open sections, which no schema can type, with their texts read."""
    for section in (config, *(over for _, over in _overrides(config))):
        if "scorer" in section:
            section["scorer"] = _scalar(section["scorer"])
    for backbone in config["backbones"].values():
        if "options" in backbone:
            backbone["options"] = {
                key: value if key in _TEXTS else _scalar(value)
                for key, value in backbone["options"].items()
            }
    return config


def _normal(config: dict[str, Any]) -> dict[str, Any]:
    """Lists of names as mappings, and sections left empty as empty mappings."""
    config = {"groups": schema()["properties"]["groups"]["default"], **config}
    for key in LISTS:
        value = config[key]
        pairs = value.items() if isinstance(value, Mapping) else ((name, None) for name in value)
        config[key] = {str(name): dict(options or {}) for name, options in pairs}
    for backbone in config["backbones"].values():
        if "recipes" in backbone:
            backbone["recipes"] = {k: dict(v or {}) for k, v in backbone["recipes"].items()}
    return config


def _overrides(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Sections that may differ from the study's own `scorer` and `train`, with their paths."""
    for key in ("datasets", "backbones", "groups", "methods"):
        for name, over in config[key].items():
            yield f"{key}.{name}", over
    for name, backbone in config["backbones"].items():
        for method, over in backbone.get("recipes", {}).items():
            yield f"backbones.{name}.recipes.{method}", over


def _resolved(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part of the schema with its ``$ref`` followed; the part's own words win."""
    reference = part.get("$ref")
    if reference is None:
        return dict(part)
    return {**_resolved(schema()["$defs"][reference.rsplit("/", 1)[1]]), **part}


def _filled(value: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """``value`` with defaults, in the schema's order of keys.

    Defaults go into sections that have one themselves: what only overrides stays as short as it is.
    """
    filled: dict[str, Any] = {}
    for key, sub in _resolved(part).get("properties", {}).items():
        sub = _resolved(sub)
        if key in value:
            filled[key] = deepcopy(value[key])
        elif "default" in sub:
            filled[key] = deepcopy(sub["default"])
        if isinstance(filled.get(key), Mapping) and ("default" in sub or key in LISTS):
            filled[key] = _filled(filled[key], sub)
    others = _resolved(part).get("additionalProperties")
    for key in value:
        if key in filled:
            continue
        if isinstance(others, Mapping) and isinstance(value[key], Mapping):
            filled[key] = _filled(value[key], others)
        else:
            filled[key] = deepcopy(value[key])
    return filled


def _errors(config: Mapping[str, Any]) -> Iterator[Any]:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    # JSON knows no whole numbers, so that 1.0 would pass for one; Python does.
    checker = Draft202012Validator.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    return extend(Draft202012Validator, type_checker=checker)(schema()).iter_errors(config)


def _schema_faults(config: Mapping[str, Any]) -> list[Fault]:
    return sorted({fault for error in _errors(config) for fault in _described(error)})


def _described(error: Any) -> Iterator[Fault]:
    """A validator's error in the words of this project."""
    path = ".".join(str(part) for part in error.absolute_path)
    rule, wanted, found = error.validator, error.validator_value, error.instance
    if rule == "additionalProperties" and wanted is False:
        known = list(error.schema.get("properties", {}))
        for key in sorted(set(found) - set(known), key=str):
            dotted = f"{path}.{key}" if path else str(key)
            yield dotted, f"unknown key{_hint(str(key), known)}", ", ".join(known)
    elif rule == "required":
        for key in sorted(set(wanted) - set(found)):
            meaning = error.schema["properties"][key]["description"]
            yield (f"{path}.{key}" if path else key), "missing", meaning
    elif rule == "enum":
        yield path, f"{found!r}", ", ".join(str(value) for value in wanted)
    elif rule == "type":
        types = [wanted] if isinstance(wanted, str) else wanted
        quoted = ' (put it in quotes: "...")' if "string" in types and _is_number(found) else ""
        yield path, f"{found!r} is of the wrong type", " or ".join(types) + quoted
    elif rule in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        bounds = {
            "minimum": ">=",
            "exclusiveMinimum": ">",
            "maximum": "<=",
            "exclusiveMaximum": "<",
        }
        limits = [
            f"{sign} {error.schema[key]}" for key, sign in bounds.items() if key in error.schema
        ]
        yield path, f"{found}", " and ".join(limits)
    elif rule == "pattern":
        yield path, f"{found!r}", f"text of the form {wanted}"
    elif rule == "minItems":
        yield path, "empty", "one at least"
    elif rule == "uniqueItems":
        twice = sorted({str(item) for item in found if found.count(item) > 1})
        yield path, f"{', '.join(twice)} stands there twice", "each once"
    else:
        yield path or "the study", error.message, f"{rule} {wanted}"


def _is_number(found: Any) -> bool:
    return isinstance(found, (int, float)) and not isinstance(found, bool)


def _hint(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _finite(config: Mapping[str, Any]) -> Iterator[Fault]:
    """Numbers that are none: YAML has .nan and .inf."""
    places: list[tuple[str, Any]] = [("", config)]
    while places:
        path, value = places.pop()
        if isinstance(value, float) and not math.isfinite(value):
            yield path, f"{value}", "a finite number"
        named = dict(enumerate(value)) if isinstance(value, list) else value
        pairs = named.items() if isinstance(named, Mapping) else ()
        places += [(f"{path}.{key}".lstrip("."), item) for key, item in pairs]


def _seeds(config: Mapping[str, Any]) -> Iterator[Fault]:
    seeds = config["seeds"]
    twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    if twice:
        yield "seeds", f"{twice[0]} appears twice", "each seed once"


def _groups(config: Mapping[str, Any]) -> Iterator[Fault]:
    orders = {}
    named = [(f"groups.{name}", name) for name in config["groups"]]
    for path, name in [*named, ("evaluate.poses", config["evaluate"]["poses"])]:
        try:
            orders[path] = parse_group(name).order
        except UserError:
            yield path, f"unknown group {name!r}", "C1, C2, C4, C8, C12, ... (C<n>)"
    poses = orders.get("evaluate.poses")
    for path, name in named:
        order = orders.get(path)
        if order == 1:
            yield path, "C1 is the group of methods that have none", "C2, C4, C8, ..."
        elif order and poses and poses % order:
            yield (
                "evaluate.poses",
                f"{config['evaluate']['poses']} does not contain {name}",
                f"a group whose order is a multiple of {order}, e.g. C{math.lcm(poses, order)}",
            )


def _order(group: str) -> float:
    """Its order; infinite for a name that is none, which is another fault."""
    try:
        return parse_group(group).order
    except UserError:
        return math.inf


def _methods(config: Mapping[str, Any]) -> Iterator[Fault]:
    if not set(config["methods"]) <= set(METHODS):
        load_plugins()
    allowed = ", ".join(METHODS) + "; and those of modules named in EQADAPT_PLUGINS"
    used: set[str] = set()
    flips = any(train.get("augment", {}).get("flip") for train in _training_sections(config))
    for name in config["methods"]:
        if name not in METHODS:
            yield f"methods.{name}", f"unknown method{_hint(name, METHODS)}", allowed
            continue
        method = METHODS[name]
        used |= set(method.regimes) & set(config["regimes"])
        if method.mirrored and not flips:
            yield (
                f"methods.{name}",
                "it looks at mirror images, which train.augment.flip keeps from training",
                "train.augment.flip: true where mirror images are as upright, else leave it out",
            )
        if method.train_as and method.train_as not in config["methods"]:
            yield (
                f"methods.{name}",
                f"it needs {method.train_as}'s checkpoints",
                f"{method.train_as} beside it",
            )
        for group in config["groups"]:
            if method.least_order > _order(group):
                yield (
                    f"methods.{name}",
                    f"{group} has fewer elements than the views it takes",
                    f"groups of order {method.least_order} or more",
                )
    for backbone, entry in config["backbones"].items():
        chosen, where = entry.get("methods", ()), f"backbones.{backbone}.methods"
        for name in chosen:
            if name not in config["methods"]:
                yield where, f"{name!r} is no method of the study", ", ".join(config["methods"])
            source = METHODS[name].train_as if name in METHODS else None
            if source and source not in chosen:
                yield where, f"{name} needs {source}'s checkpoints", f"{source} beside it"
        for name in set(entry.get("recipes", ())) - set(METHODS):
            yield f"backbones.{backbone}.recipes.{name}", "unknown method", allowed
    for regime in config["regimes"]:
        if regime not in used and set(config["methods"]) <= set(METHODS):
            yield "regimes", f"no method of the study can be {regime}", ", ".join(sorted(used))


def _training_sections(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The study's recipe of training, and every change to it."""
    yield config["train"]
    for section in ("datasets", "backbones", "groups", "methods"):
        for entry in config[section].values():
            for over in (entry, *entry.get("recipes", {}).values()):
                yield over.get("train") or {}


def _task_weights(config: Mapping[str, Any]) -> Iterator[Fault]:
    for name, entry in config["methods"].items():
        method = METHODS.get(name)
        if method is None or method.prior or not method.trains:
            continue
        if config["regimes"] == ["frozen"] and not method.trains_beside_the_network:
            continue
        recipes = (over.get("recipes", {}).get(name, {}) for over in config["backbones"].values())
        given = [over.get("train", {}) for over in (entry, *recipes)]
        weight = config["train"]["task_weight"]
        if weight == 0 and not any("task_weight" in train for train in given):
            yield (
                "train.task_weight",
                f"0, but {name} has no prior, so that the task is what trains it",
                f"above 0, or 0 for single methods: methods.{name}.train",
            )


def _transfer(config: Mapping[str, Any]) -> Iterator[Fault]:
    if not config["transfer"]:
        return
    if len(config["datasets"]) < 2:
        yield "transfer", "true in a study of one data set", "false, or several datasets"
    if config["test_time"] is not None:
        yield "transfer", "true in a study of test-time methods", "false"
    channels = {name: _channels(name, options) for name, options in config["datasets"].items()}
    if len(set(channels.values())) > 1:
        of = ", ".join(f"{name} has {count}" for name, count in channels.items())
        yield "transfer", f"true, and channels differ: {of}", "data sets of equal channels"
    names = [name for name in config["methods"] if name in METHODS]
    if not any(METHODS[name].finds_a_pose for name in names):
        yield "transfer", "true, and no method trains a canonicalizer", "e.g. prlc among methods"


def _datasets(config: Mapping[str, Any]) -> Iterator[Fault]:
    from eqadapt.datasets import registry

    known = registry.names()
    folders: dict[str, str | None] = {}
    for name, options in config["datasets"].items():
        source, path = options.get("source", name), f"datasets.{name}"
        if source not in known and not options["folder"]:
            yield (
                f"{path}.source" if "source" in options else path,
                f"unknown data set {source!r}{_hint(source, known)}",
                f"{', '.join(known)}; or any name with `folder`",
            )
        held_out = options["validation"]
        if held_out is not None and held_out >= 1 and held_out != int(held_out):
            yield f"{path}.validation", f"{held_out}", "a count, or a fraction below 1"
        if name in known and source != name:
            yield f"{path}.source", f"{name} is a data set itself", "another name for the entry"
        if folders.setdefault(source, options["folder"]) != options["folder"]:
            yield (
                f"{path}.folder",
                f"another folder for {source} than before",
                "one for each source",
            )
        if source in known:
            yield from _published(path, options, registry.get(source))


def _published(path: str, options: Mapping[str, Any], source: Source) -> Iterator[Fault]:
    """What a registered data set's published form rules out, before anything is downloaded."""
    if options["size"] is not None and not source.resizes:
        what = f"{options['size']}, but the images of {source.title} have one size"
        yield f"{path}.size", what, "leave it out; image.size is what backbones see"
    held_out, least = options["validation"], source.n_classes
    if held_out is None or least is None or source.n_train is None or options["folder"]:
        return
    count = round(held_out * source.n_train) if held_out < 1 else held_out
    if not least <= count <= source.n_train - least:
        yield (
            f"{path}.validation",
            f"{held_out} does not leave every class in training and in validation",
            f"{least} to {source.n_train - least} of {source.title}'s {source.n_train} images",
        )


def _channels(name: str, options: Mapping[str, Any]) -> int:
    """Of the images of a data set; 3 of a user's own, as they are decoded."""
    from eqadapt.datasets import registry

    source = options.get("source", name)
    return registry.get(source).channels if source in registry.names() else 3


@functools.cache
def timm_names() -> frozenset[str]:
    """Names of timm's models, read from its source: importing timm takes seconds."""
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return frozenset()
    found: set[str] = set()
    for path in (Path(spec.origin).parent / "models").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"^@register_model\s*\ndef (\w+)\(", text, re.MULTILINE))
    return frozenset(found)


def _known_backbone(model: str) -> bool:
    elsewhere = model.startswith((OPEN_CLIP, "hf-hub:", "hf_hub:", "local-dir:"))
    name = model.split(".")[0]
    if model in OWN_BACKBONES or elsewhere or name in timm_names():
        return True
    load_plugins()
    timm: Any = sys.modules.get("timm")  # imported by what registers a network with it
    return timm is not None and bool(timm.is_model(name))


def knows_classes(dataset: str, backbone: Mapping[str, Any]) -> bool:
    """Whether a backbone classifies a source of data with the weights its section names."""
    weights = backbone["weights"]
    if is_zero_shot(backbone):
        return weights in ("pretrained", "file", "prototypes")
    if weights == "file":
        return not backbone.get("new_head", False)
    if weights == "pretrained" and _has_labels_of_imagenet(dataset):
        from eqadapt.datasets import registry

        return timm_classes(str(backbone["model"])) in (registry.get(TIMM_CLASSES).n_classes, None)
    return bool(weights == "pretrain")


def _has_labels_of_imagenet(dataset: str) -> bool:
    from eqadapt.datasets import registry

    source = registry.all_sources().get(dataset)
    return source is not None and TIMM_CLASSES in (source.name, source.labels_of)


@functools.cache
def timm_classes(model: str) -> int | None:
    """Outputs of the head that timm's pretrained weights of a model have, 0 without a head; None
    of names that timm does not know. timm gives a network of another number a random head.
    """
    if model.split(".")[0] not in timm_names():
        return None
    import timm  # takes seconds, so that nothing but studies of ImageNet should ask

    try:
        found = timm.get_pretrained_cfg(model)
    except RuntimeError:  # a tag that there is not, which is told where the network is built
        return None
    return None if found is None else int(found.num_classes)


def is_zero_shot(backbone: Mapping[str, Any]) -> bool:
    """Whether a backbone is an encoder with a vector a class."""
    return backbone["weights"] == "prototypes" or str(backbone["model"]).startswith(OPEN_CLIP)


def _zero_shot(path: str, backbone: Mapping[str, Any], datasets: Iterable[str]) -> Iterator[Fault]:
    """Faults of a zero-shot classifier's section."""
    clip = str(backbone["model"]).startswith(OPEN_CLIP)
    weights, options = backbone["weights"], backbone["options"]
    if clip and weights not in ("pretrained", "file", "prototypes"):
        yield (
            f"{path}.weights",
            f"open_clip models are not trained here: {weights}",
            "pretrained, file",
        )
    if weights == "prototypes" and backbone["model"] in OWN_BACKBONES and not backbone["file"]:
        yield f"{path}.weights", "prototypes need an encoder's weights", "file and sha256 beside it"
    if weights == "prototypes" and backbone["file"] and not backbone["sha256"]:
        yield f"{path}.sha256", "missing", "the SHA-256 of the encoder's file"
    for key, kind in _ZERO_SHOT_OPTIONS.items():
        value = options.get(key)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            yield (
                f"{path}.options.{key}",
                f"{value!r} is of the wrong type",
                "see config/zero_shot.yaml",
            )
    if isinstance(options.get("class_names"), dict):
        for key in set(options["class_names"]) - set(datasets):
            yield f"{path}.options.class_names.{key}", "no such data set", ", ".join(datasets)
    if isinstance(options.get("shots"), int) and options["shots"] < 1:
        yield f"{path}.options.shots", f"{options['shots']}", ">= 1, or null for all images"
    for key in set(options) - set(_ZERO_SHOT_OPTIONS) if clip else ():
        yield f"{path}.options.{key}", "unknown option", ", ".join(_ZERO_SHOT_OPTIONS)


def _backbones(config: Mapping[str, Any]) -> Iterator[Fault]:
    for name, backbone in config["backbones"].items():
        path, model, weights = f"backbones.{name}", backbone["model"], backbone["weights"]
        if not _known_backbone(model):
            near = difflib.get_close_matches(model, sorted(timm_names()), 4) or ["resnet50"]
            allowed = (
                f"{', '.join(OWN_BACKBONES)}, or a model of timm, e.g. {', '.join(near)}, or one "
                "that a module named in EQADAPT_PLUGINS registers with it"
            )
            yield f"{path}.model", f"unknown backbone {model!r}", allowed
        if weights == "pretrained" and model in OWN_BACKBONES:
            yield f"{path}.weights", f"{model} has no pretrained weights", "scratch, pretrain, file"
        if weights == "file" and not (backbone["file"] and backbone["sha256"]):
            yield f"{path}.weights", "file needs a file and its sha256", "both keys beside it"
        if backbone["file"] and weights != "file" and not is_zero_shot(backbone):
            yield f"{path}.file", f"weights: {weights} would not read it", "weights: file beside it"
        if "new_head" in backbone and (weights != "file" or is_zero_shot(backbone)):
            yield f"{path}.new_head", f"of weights: {weights}", "weights: file, or no such key"
        for key in sorted({"num_classes", "in_chans"} & set(backbone["options"])):
            yield f"{path}.options.{key}", "follows from the data set", "no such option"
        if is_zero_shot(backbone):
            yield from _zero_shot(path, backbone, config["datasets"])
            own = backbone.get("methods", config["methods"])
            for method in [m for m in own if m in METHODS and METHODS[m].scorer == "features"]:
                yield (
                    f"methods.{method}",
                    f"reads features after a network's stages, which {name}, a zero-shot "
                    "classifier, does not tell",
                    f"{path}.methods without it",
                )
        ignorant = [
            name
            for name, options in config["datasets"].items()
            if not knows_classes(options.get("labels_of") or options.get("source", name), backbone)
        ]
        methods = backbone.get("methods", config["methods"])
        fine_tuned = "joint" in config["regimes"] and "vanilla" in methods
        if "frozen" in config["regimes"] and ignorant and not fine_tuned:
            yield (
                f"{path}.weights",
                f"{weights} weights do not know the classes of {ignorant[0]}, so there is nothing "
                "to freeze",
                "pretrain, file; or regime joint and method vanilla beside it",
            )
        distilled = [m for m in config["methods"] if m in METHODS and METHODS[m].distils]
        overs = [over.get("train", {}) for _, over in _overrides(config)]
        shares = [train.get("teacher_weight", 0) for train in (config["train"], *overs)]
        if ignorant and any(shares):
            yield (
                "train.teacher_weight",
                f"above 0, but {weights} weights do not know the classes of {ignorant[0]}",
                "0, or weights pretrain or file",
            )
        if "joint" in config["regimes"] and ignorant and distilled:
            yield (
                f"methods.{distilled[0]}",
                f"{weights} weights of {name} do not know the classes of {ignorant[0]}, so there "
                "is nothing to distil",
                "weights pretrain or file; or regime frozen",
            )
        image = {**config["image"], **backbone.get("image", {})}
        if image["size"] < (image["backbone_size"] or 0):
            yield (
                f"{path}.image.size" if "image" in backbone else "image.size",
                f"{image['size']} pixels are fewer than the backbone reads",
                f"backbone_size ({image['backbone_size']}) or an odd multiple of it",
            )


def _scorers(config: Mapping[str, Any]) -> Iterator[Fault]:
    from eqadapt.scorers import SCORERS

    base = config["scorer"]
    sections = [("scorer", base)]
    for path, over in _overrides(config):
        if "scorer" in over:
            renamed = over["scorer"].get("name", base["name"]) != base["name"]
            section = over["scorer"] if renamed else {**base, **over["scorer"]}
            sections.append((f"{path}.scorer", section))
    if any(section["name"] not in SCORERS for _, section in sections):
        load_plugins()
    for path, section in sections:
        yield from _scorer(config, path, section)


def _scorer(config: Mapping[str, Any], path: str, section: Mapping[str, Any]) -> Iterator[Fault]:
    from eqadapt.scorers import SCORERS

    name = section["name"]
    if name not in SCORERS:
        known = ", ".join(SCORERS) + "; and those of modules named in EQADAPT_PLUGINS"
        yield f"{path}.name", f"unknown scorer {name!r}", known
        return
    spec, whose = SCORERS[name], name
    if spec.inner:
        inner = section.get("inner", spec.inner[0])
        if inner not in spec.inner:
            yield f"{path}.inner", f"unknown inner network {inner!r}", ", ".join(spec.inner)
            return
        whose += f" with inner {inner}"
    options = spec.options_beside(section)
    if "classes" not in options and _asks_for_classes(config, path):
        able = [other for other in SCORERS if "classes" in SCORERS[other].options]
        yield f"{path}.name", f"{name!r} tells no classes", ", ".join(able)
    for key in sorted(set(section) - {"name"} - options):
        yield f"{path}.{key}", f"not an option of {whose}", ", ".join(sorted(options))


def _scorer_starts(config: Mapping[str, Any]) -> Iterator[Fault]:
    overs = [(f"{path}.train", over.get("train", {})) for path, over in _overrides(config)]
    fields = ("dataset", "backbone", "regime", "method", "group", "seed")
    for path, section in [("train", config["train"]), *overs]:
        pattern = section.get("scorer_start")
        try:
            (pattern or "").format(**dict.fromkeys(fields, ""))
        except (KeyError, IndexError, ValueError):
            known = ", ".join(f"{{{field}}}" for field in fields)
            yield f"{path}.scorer_start", f"unknown field in {pattern!r}", known


def _asks_for_classes(config: Mapping[str, Any], path: str) -> bool:
    """Whether a class-wise prior is trained with the scorer section at that path."""
    known = (name for name in config["methods"] if name in METHODS)
    asking = [n for n in known if METHODS[n].scorer == "image" and METHODS[n].prior == "classwise"]
    if path.startswith("methods.") or ".recipes." in path:
        return path.split(".")[-2] in asking
    return any("name" not in config["methods"][name].get("scorer", {}) for name in asking)


def _test_time(config: Mapping[str, Any]) -> Iterator[Fault]:
    section = config["test_time"]
    if section is None:
        return
    if config["regimes"] != ["frozen"]:
        yield "regimes", f"{config['regimes']}, but test_time adapts frozen backbones", "[frozen]"
    shared = section.get("canonicalizers_of")
    if shared is not None and shared not in config["backbones"]:
        yield (
            "test_time.canonicalizers_of",
            f"{shared!r} is no backbone of the study",
            ", ".join(config["backbones"]),
        )


_CHECKS: tuple[Callable[[Mapping[str, Any]], Iterator[Fault]], ...] = (
    _seeds,
    _groups,
    _methods,
    _task_weights,
    _datasets,
    _backbones,
    _scorers,
    _scorer_starts,
    _test_time,
    _transfer,
)
