"""A trained model from its checkpoint alone: no study, no data and no other weights beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eqadapt import checkpoint
from eqadapt.adaptation import (
    ImageKind,
    ImageScorer,
    build_backbone,
    build_model,
    normalised_by,
    restore_normalisation,
)
from eqadapt.backbones import Backbone, load_state
from eqadapt.errors import UserError
from eqadapt.methods import get_method
from eqadapt.mirrored import mirrored
from eqadapt.pass_once import classifiers
from eqadapt.study_rules import is_zero_shot
from eqadapt.symmetrize import Symmetrized

_MODEL = "model"  # the key of the checkpoint's header


def description(recipe: Mapping[str, Any], kind: ImageKind, model: Symmetrized) -> dict[str, Any]:
    """What a checkpoint says of the model it is of, for ``load_trained`` and ``start_scorer``.

    Args:
        recipe: The run's recipe.
        kind: Channels and classes of its data.
        model: The model.
    """
    backbone = {key: recipe["backbone"][key] for key in ("model", "weights", "options")}
    parts = {"backbone": model.backbone, "scorer": model.scorer}
    return {
        _MODEL: {
            "backbone": backbone,
            "image": recipe["image"],
            "scorer": recipe["scorer"],
            "samples": recipe["evaluate"].get("samples"),
            "channels": kind.channels,
            "classes": kind.classes,
            "normalisation": {
                name: normalised_by(part)
                for name, part in parts.items()
                if isinstance(part, (Backbone, ImageScorer))
            },
        }
    }


def without_weights(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe whose networks begin anew: those of a checkpoint are loaded into them."""
    scorer = recipe["scorer"]
    if scorer.get("pretrained"):
        scorer = {**scorer, "pretrained": False}
    return {**recipe, "backbone": {**recipe["backbone"], "weights": "scratch"}, "scorer": scorer}


def load_trained(path: str | Path, method: str | None = None) -> Symmetrized:
    """The model of a run for inference, on the CPU.

    A method from a module in ``EQADAPT_PLUGINS`` needs that here as well.

    Args:
        path: ``results/<study>/runs/<run>/checkpoint.safetensors``.
        method: One that is evaluated with the checkpoint of the run's method, e.g.
            ``"prlc_mirrored"`` of ``prlc``; None: the run's method.

    Returns:
        The model in evaluation mode, its scorer in plain layers. It takes images (B, C, H, H)
        float32 in [0, 1], H the study's ``image.size``, masked as its study masks them:
        ``model(model.action.masked(x))``. ``chosen`` of its output is the pose found, in steps of
        360 degrees over the group's order, counter-clockwise.

    Raises:
        UserError: No whole checkpoint; one of a version that did not describe its model, or of a
            zero-shot classifier, which is more than its checkpoint; or of another method.
    """
    tensors, meta = checkpoint.load(path)
    section = meta.get(_MODEL)
    if "method" not in meta:
        raise UserError(
            "the checkpoint is not that of a run",
            where=str(path),
            fix="results/<study>/runs/<run>/checkpoint.safetensors",
        )
    if section is None or is_zero_shot(section["backbone"]):
        why = "of an earlier version" if section is None else "of a zero-shot classifier"
        raise UserError(
            f"the checkpoint is {why} and does not hold all of its model",
            where=str(path),
            fix="train the run again" if section is None else "use StudyRunner.load of its study",
        )
    found = get_method(method or meta["method"])
    if found.scorer == "true_pose":
        raise UserError(f"{found.name} must be told the true pose, which only an evaluation knows")
    if (found.train_as or found.name) != meta["method"]:
        raise UserError(
            f"{found.name} is not evaluated with a checkpoint of {meta['method']}", where=str(path)
        )
    recipe = {**without_weights(section), "evaluate": {"samples": section["samples"]}}
    kind = ImageKind(section["channels"], section["classes"])
    model = build_model(recipe, found, meta["group"], kind, build_backbone(recipe, kind))
    load_state(model, tensors, str(path))
    restore_normalisation(model, meta)
    return for_inference(model.eval(), found.name)


def for_inference(model: Symmetrized, method: str) -> Symmetrized:
    """A trained model as its method is evaluated: its scorer in plain layers, and mirror images."""
    if isinstance(model.scorer, ImageScorer):
        model.scorer = model.scorer.export()
    if get_method(method).mirrored:
        model = mirrored(model)
    return model.eval()


def classifiers_channels_last(model: Symmetrized) -> Symmetrized:
    """A model whose backbone, and classifiers that rate views, hold images channels last.

    On a CPU networks took 6 to 40% less time so, a MobileNet least (trials: benchmarks/README.md);
    on a GPU it was not measured. Equivariant scorers stay as they are.

    Args:
        model: Changed in place.
    """
    for owner, name in classifiers(model):
        for part in getattr(owner, name).modules():
            if isinstance(part, nn.Conv2d):
                part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
