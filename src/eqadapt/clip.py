"""CLIP-style models of open_clip: image towers, and class vectors from text prompts.

The package is optional and imported when a study asks for ``model: open_clip:NAME``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqadapt.backbones import check_weights_file
from eqadapt.errors import UserError
from eqadapt.study_rules import OPEN_CLIP

TEMPLATES = ("a photo of a {}.",)


class ImageTower(nn.Module):
    """The image side of a model of open_clip.

    Args:
        model: The model.
        config: Its preprocessing: ``mean``, ``std`` and ``size``.
    """

    def __init__(self, model: Any, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.visual = model.visual
        size = config["size"]
        self.image_size = int(size if isinstance(size, int) else size[-1])
        self.pretrained_cfg = {**config, "hf_hub_id": "open_clip"}

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings (B, D) of normalised images (B, 3, size, size)."""
        found = self.visual(x)
        return found[0] if isinstance(found, tuple) else found


def open_clip_package() -> Any:
    """The package open_clip.

    Raises:
        UserError: It is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise UserError(
            "models open_clip:NAME need the package open_clip_torch, which is not installed",
            where="backbones",
            fix="pip install open_clip_torch; its weights come from the network (weights: "
            "pretrained) or a local file (weights: file, with file and sha256)",
        ) from error
    return open_clip


def image_tower(section: Mapping[str, Any], channels: int) -> tuple[ImageTower, Any]:
    """The image tower of a model of open_clip, and the whole model.

    Raises:
        UserError: No open_clip, no such model, weights that cannot be had, or images that are not
            RGB.
    """
    open_clip = open_clip_package()
    name, file = section["model"].removeprefix(OPEN_CLIP), section["file"]
    if name not in open_clip.list_models():
        near = difflib.get_close_matches(name, open_clip.list_models(), 4)
        raise UserError(f"open_clip has no model {name!r}", fix=", ".join(near) or "RN50")
    if channels != 3:
        raise UserError(f"{name} takes RGB images, not {channels} channels", where="datasets")
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = section["options"].get("pretrained") or ("openai" if "openai" in tags else None)
    tag = tag or (tags[0] if tags else None)
    if file is not None:
        check_weights_file(file, section["sha256"])
    elif tag not in tags:
        raise UserError(f"open_clip has no weights {tag!r} of {name}", fix=", ".join(tags))
    try:
        model = open_clip.create_model(name, pretrained=str(file) if file else tag)
    except Exception as error:  # of many libraries: the hub's, urllib's, torch's
        raise UserError(
            f"the weights of {name} cannot be had: {error}",
            where=str(file or tag),
            fix="check the network, or give a local file: weights: file, file: ..., sha256: ...",
        ) from error
    return ImageTower(model, open_clip.get_model_preprocess_cfg(model)).eval(), model.eval()


def text_vectors(
    encode: Callable[[list[str]], Tensor], names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Class vectors from prompts: the mean unit embedding over templates, of length one.

    Args:
        encode: Prompts to embeddings (P, D).
        names: Of the classes.
        templates: Texts with ``{}`` in place of the name.

    Returns:
        (classes, D).
    """
    means = []
    for name in names:
        found = encode([template.replace("{}", name) for template in templates])
        means.append(F.normalize(found.float(), dim=1).mean(dim=0))
    return F.normalize(torch.stack(means), dim=1)


def class_names(classes: Sequence[str], given: Any) -> list[str]:
    """Names for prompts.

    Args:
        classes: The data set's own.
        given: None takes those, with spaces for underscores; else a list in their order, a mapping
            from them, or ``imagenet``: open_clip's names of the 1,000 classes, which the data set
            names by number (as ImageNet-V2 does) or by WordNet identifiers in their order.

    Raises:
        UserError: Another number of names, or a class without one.
    """
    if given is None:
        return [name.replace("_", " ") for name in classes]
    if given == "imagenet":
        known = open_clip_package().IMAGENET_CLASSNAMES
        if all(name.isdigit() and int(name) < len(known) for name in classes):
            return [known[int(name)] for name in classes]
        given = known
    if isinstance(given, Mapping):
        missing = [name for name in classes if name not in given]
        if missing:
            raise UserError(f"no name for class {missing[0]!r}", where="options.class_names")
        return [str(given[name]) for name in classes]
    if not isinstance(given, list | tuple) or len(given) != len(classes):
        count = len(given) if isinstance(given, list | tuple) else repr(given)
        raise UserError(
            f"class names: {count}, but the data have {len(classes)} classes",
            where="options.class_names",
            fix="a list in the order of the classes, a mapping from them, or imagenet",
        )
    return [str(name) for name in given]


def prompt_templates(given: Any) -> list[str]:
    """Templates: a list of texts with ``{}``, or ``openai`` (80) or ``simple`` (7) of open_clip.

    Raises:
        UserError: None of these.
    """
    if given in ("openai", "simple"):
        open_clip = open_clip_package()
        known = {"openai": "OPENAI_IMAGENET_TEMPLATES", "simple": "SIMPLE_IMAGENET_TEMPLATES"}
        return [template("{}") for template in getattr(open_clip, known[given])]
    templates = list(TEMPLATES) if given is None else given
    if not isinstance(templates, list) or not templates or any("{}" not in t for t in templates):
        raise UserError(
            f"not templates of prompts: {given!r}",
            where="options.templates",
            fix='texts such as "a photo of a {}.", or openai, or simple',
        )
    return templates


def prompt_vectors(
    recipe: Mapping[str, Any],
    channels: int,
    classes: Sequence[str],
    names: Any,
    device: torch.device,
) -> tuple[Tensor, float]:
    """Class vectors (classes, D) of a backbone section from its prompts, and the model's scale.

    Args:
        recipe: A run's recipe: sections ``backbone`` and ``image``.
        channels: Of the images.
        classes: The data set's names of the classes.
        names: What prompts call them, as ``class_names`` takes it.
        device: Where the text tower runs.

    Raises:
        UserError: The model reads images of another size, or what ``class_names``,
            ``prompt_templates`` and ``image_tower`` refuse.
    """
    section, image = recipe["backbone"], recipe["image"]
    tower, model = image_tower(section, channels)
    size = image["backbone_size"] or image["size"]
    if size != tower.image_size:
        raise UserError(
            f"{section['model']} reads images of {tower.image_size} pixels, not {size}",
            where="image.size, image.backbone_size",
            fix=f"backbone_size: {tower.image_size}",
        )
    called = class_names(classes, names)
    templates = prompt_templates(section["options"].get("templates"))
    name = section["model"].removeprefix(OPEN_CLIP)
    tokenize = open_clip_package().get_tokenizer(name)
    model = model.to(device)

    def encode(prompts: list[str]) -> Tensor:
        return model.encode_text(tokenize(prompts).to(device)).float().cpu()

    return text_vectors(encode, called, templates), float(model.logit_scale.exp())
