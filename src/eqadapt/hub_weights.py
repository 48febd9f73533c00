"""timm's pretrained weights as files of the project, fetched once where there is a network.

``data/weights/<model>.safetensors`` holds a model's state dict, as its hub has it, and in the
header where it is from. Whoever builds a pretrained network takes the file where there is one, so
that jobs on machines without a network find their weights, and results can tell which these were.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from eqadapt.backbones import known_to_timm, read_weights_file, unknown_backbone
from eqadapt.errors import UserError
from eqadapt.files import atomic_path, json_dumps

IN_MIRROR = "timm"


def fetch(model: str, out: Path, mirror: Path | None = None) -> dict[str, str]:
    """Write the pretrained weights of a model of timm.

    Args:
        model: Its name, with or without a tag, e.g. ``"resnet50"``, ``"resnet50.a1_in1k"``.
        out: The file, ``.safetensors``.
        mirror: A folder that may hold ``timm/<model>.<tag>.safetensors`` (or ``.bin``, ``.pth``), a
            state dict as the hub has it; looked in before the network.

    Returns:
        What the file's header says: ``model``, ``tag``, ``source`` (of the hub, or the mirror's
        file), ``license``.

    Raises:
        UserError: No such model, none with pretrained weights, or they cannot be had.
    """
    config = _config(model)
    tagged = f"{config['architecture']}.{config['tag']}" if config.get("tag") else model
    found = _mirrored(mirror, tagged) if mirror else None
    state = read_weights_file(found, None) if found else _from_hub(model, config)
    record = {
        "model": model,
        "tag": str(config.get("tag") or ""),
        "source": f"mirror: {IN_MIRROR}/{found.name}" if found else _origin(config),
        "license": str(config.get("license") or "unknown"),
    }
    _write(out, state, record)
    return record


def _config(model: str) -> dict[str, Any]:
    """What timm says of a model's pretrained weights."""
    import timm

    if not known_to_timm(model):
        raise unknown_backbone(model)
    try:
        found = timm.get_pretrained_cfg(model, allow_unregistered=False)
    except RuntimeError:  # a tag that there is not
        found = None
    config = found.to_dict() if found is not None else {}
    if not (config.get("hf_hub_id") or config.get("url")):
        tags = timm.list_pretrained(f"{model.split('.')[0]}.*")
        raise UserError(
            f"timm has no pretrained weights {model!r}",
            fix=f"one of {', '.join(tags)}" if tags else "weights: pretrain, scratch or file",
        )
    return config


def _origin(config: Mapping[str, Any]) -> str:
    return str(config.get("hf_hub_id") or config.get("url"))


def _mirrored(mirror: Path, tagged: str) -> Path | None:
    names = (
        mirror / IN_MIRROR / f"{tagged}{suffix}" for suffix in (".safetensors", ".bin", ".pth")
    )
    return next((path for path in names if path.is_file()), None)


def _from_hub(model: str, config: Mapping[str, Any]) -> Mapping[str, Tensor]:
    from timm.models import load_state_dict_from_hf

    hub, file, url = (config.get(key) for key in ("hf_hub_id", "hf_hub_filename", "url"))
    try:
        if hub:
            named = {"filename": file} if file else {}
            return load_state_dict_from_hf(hub, weights_only=True, **named)
        with TemporaryDirectory() as folder:
            return torch.hub.load_state_dict_from_url(
                str(url), folder, map_location="cpu", progress=False, weights_only=True
            )
    except Exception as error:  # of many libraries: the hub's, its client's, urllib's, torch's
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the pretrained weights of {model} cannot be had from {_origin(config)}: {reason}",
            fix="check the network; or put the state dict into the mirror (EQADAPT_MIRROR) as "
            f"{IN_MIRROR}/{config['architecture']}.{config.get('tag')}.safetensors; or use "
            "weights: pretrain, scratch or file",
        ) from error


def _write(out: Path, state: Mapping[str, Any], record: Mapping[str, str]) -> None:
    from safetensors.torch import save_file

    tensors = {key: value.contiguous().clone() for key, value in state.items()}
    with atomic_path(out) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt", "meta": json_dumps(dict(record))})
