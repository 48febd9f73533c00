"""Checkpoints as safetensors: tensors by path, the rest as JSON in the header. Never pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from eqadapt.errors import UserError
from eqadapt.files import atomic_path, json_dumps

_WRITERS = "run the step that writes it: eqadapt train, or eqadapt pretrain"


def save(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON-able ``meta`` to one file, whole or not at all."""
    plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata={"meta": json_dumps(dict(meta), indent=None)})


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and ``meta`` of a file written by ``save``.

    Raises:
        UserError: The file is missing, truncated or of another kind.
    """
    if not Path(path).is_file():
        raise UserError("no such checkpoint", where=str(path), fix=_WRITERS)
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("meta", "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, meta  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"not a whole checkpoint: {error}", where=str(path), fix="delete it and run again"
        ) from error


def weights_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, kinds, shapes and values of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        plain = value.detach().cpu().contiguous()
        plain = torch.view_as_real(plain) if plain.is_complex() else plain
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under ``prefix/``."""
    return {f"{prefix}/{key}": value for key, value in tensors.items()}


def without_prefix(
    prefix: str, tensors: Mapping[str, Tensor], separator: str = "/"
) -> dict[str, Tensor]:
    """Those tensors that lie under ``prefix`` and a separator, without both."""
    start = f"{prefix}{separator}"
    return {key[len(start) :]: value for key, value in tensors.items() if key.startswith(start)}


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}/{name}"] = value
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"scalars": scalars, "param_groups": state["param_groups"]}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Put back what ``pack_optimizer`` took, moments laid out in memory as their weights are.

    Files hold tensors row by row, while weights may lie channels last; the fused steps of a GPU
    refuse moments of other strides than their weights'.
    """
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in meta["scalars"].items()
    }
    for key, value in tensors.items():
        index, name = key.split("/", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": meta["param_groups"]})
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim > 1 and value.shape == weight.shape:
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def save_training_state(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    meta: Mapping[str, Any],
    extra: Mapping[str, Tensor],
) -> None:
    """Model, optimizer, progress and ``extra`` tensors in one file, for resuming."""
    tensors = with_prefix("model", model.state_dict()) | dict(extra)
    packed: dict[str, Any] = {}
    if optimizer is not None:
        state, packed = pack_optimizer(optimizer)
        tensors |= with_prefix("optimizer", state)
    save(path, tensors, {**meta, "optimizer": packed})
