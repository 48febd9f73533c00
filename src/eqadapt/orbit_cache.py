"""What a frozen backbone says of every view of every input, in one file a split.

An input is an image turned by an element of the group; its K views are the input turned back by
each element. A quarter turn of an input only permutes its views, to the last bit, so one input a
coset of the quarter turns stands for all of them: one for C4, two for C8 (upright and at 45
degrees), m for C_4m. Everything that needs only the outputs of a frozen backbone over the orbit
is a function of these files, not another run of the backbone.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eqadapt.digest import code_id
from eqadapt.errors import UserError
from eqadapt.files import atomic_path, json_dumps
from eqadapt.groups.cyclic import CyclicGroup, parse_group

FORMAT_VERSION = 1
SHARD = 500  # images between two points from which an interrupted computation goes on

# What must agree before outputs may be used together; the split's own checksum is among it.
IDENTITY = (
    "dataset",
    "split",
    "data_sha256",
    "backbone",
    "model",
    "options",
    "weights_sha256",
    "group",
    "interpolation",
    "padding",
    "mask",
    "size",
    "backbone_size",
    "upsampling",
    "mean",
    "std",
)
_Array = TypeVar("_Array", bound=np.ndarray)


def input_cosets(group: CyclicGroup) -> tuple[int, ...]:
    """The elements whose inputs are cached: one a coset of the group's exact turns."""
    return tuple(range(group.order // len(group.exact_elements)))


def coset_and_turn(group: CyclicGroup, pose: int) -> tuple[int, int]:
    """The cached input that an input in ``pose`` is a turned copy of, and how far its views roll.

    Returns:
        The index of the coset, and the number of places (elements of the group).
    """
    cosets = len(input_cosets(group))
    return pose % cosets, pose - pose % cosets


def views_of_pose(values: _Array, group: CyclicGroup, pose: int) -> _Array:
    """The views of inputs in any pose, from the cached ones.

    Args:
        values: (N, J, K, ...) something of each view, J cosets of inputs.
        group: The group, of order K.
        pose: Element that turned the inputs.

    Returns:
        (N, K, ...); view k is the input turned back by element k, so view ``pose`` is upright.
    """
    coset, turn = coset_and_turn(group, pose)
    return np.roll(values[:, coset], turn, axis=1)  # type: ignore[return-value]


@dataclass(frozen=True)
class Orbits:
    """A frozen backbone's outputs on the views of N images.

    Attributes:
        group: The group, of order K; J input cosets.
        logits: (N, J, K, C) float32; ``[:, j, k]`` of the view ``g_k^-1 . (g_j . image)``.
        features: (N, J, K, D) float32 penultimate features.
        label: (N,) int64.
        index: (N,) int64 row in the source split.
        meta: What identifies them (the keys of ``IDENTITY``), and ``dtype``, ``classes``.
    """

    group: CyclicGroup
    logits: NDArray[np.float32]
    features: NDArray[np.float32]
    label: NDArray[np.int64]
    index: NDArray[np.int64]
    meta: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def cosets(self) -> tuple[int, ...]:
        """Elements that turned the cached inputs."""
        return input_cosets(self.group)

    def thinned(self, count: int) -> Orbits:
        """At most ``count`` images at even distances, so that files sorted by class keep all."""
        rows = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64)
        return Orbits(
            self.group,
            self.logits[rows],
            self.features[rows],
            self.label[rows],
            self.index[rows],
            self.meta,
        )


def restrict(orbits: Orbits, group: CyclicGroup) -> Orbits:
    """The orbits under a subgroup, without another pass: its views are among the group's.

    Raises:
        UserError: Not a subgroup.
    """
    if not orbits.group.contains(group):
        raise UserError(
            f"{group.name} is not a subgroup of {orbits.group.name}, whose orbits are cached",
            fix=f"compute the orbits of {group.name}",
        )
    step = orbits.group.order // group.order
    inputs = [element * step for element in input_cosets(group)]

    def pick(values: _Array) -> _Array:
        views = [views_of_pose(values, orbits.group, pose)[:, ::step] for pose in inputs]
        return np.stack(views, axis=1)  # type: ignore[return-value]

    return Orbits(
        group,
        pick(orbits.logits),
        pick(orbits.features),
        orbits.label,
        orbits.index,
        {**orbits.meta, "group": group.name},
    )


def weights_sha256(module: Any) -> str:
    """SHA-256 over the names and bytes of a module's parameters and buffers."""
    found = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def identity(
    recipe: Mapping[str, Any], backbone: Any, *, name: str, group: str, data: Mapping[str, Any]
) -> dict[str, Any]:
    """What identifies the orbits of one split.

    Args:
        recipe: A run's recipe: sections ``backbone`` and ``image``.
        backbone: The frozen ``eqadapt.backbones.Backbone``.
        name: The backbone's name in the study.
        group: The group's name.
        data: The prepared split's metadata: ``dataset``, ``split``, ``data_sha256``.
    """
    image = recipe["image"]
    return {
        "dataset": data["dataset"],
        "split": data["split"],
        "data_sha256": data["data_sha256"],
        "backbone": name,
        "model": recipe["backbone"]["model"],
        "options": recipe["backbone"]["options"],  # some change outputs and have no weights
        "weights_sha256": weights_sha256(backbone.network),
        "group": group,
        "interpolation": image["interpolation"],
        "padding": image["padding"],
        "mask": image["mask"] or "none",
        "size": image["size"],
        "backbone_size": backbone.size,
        "upsampling": image["upsampling"],
        "mean": [round(float(value), 6) for value in backbone.mean.flatten()],
        "std": [round(float(value), 6) for value in backbone.std.flatten()],
    }


def save(path: str | Path, orbits: Orbits, dtype: str = "float16") -> None:
    """Write orbits to one safetensors file, whole or not at all.

    Args:
        path: The file.
        orbits: What to write.
        dtype: ``float16`` or ``float32``, the type of the features in the file. Logits stay
            float32, so that predictions are the backbone's own: rounded to float16 they change
            for 1 to 3 in 10,000 CIFAR-10 views.
    """
    from safetensors.numpy import save_file

    _check_dtype(dtype)
    arrays = {
        "logits": orbits.logits.astype(np.float32),
        "features": orbits.features.astype(dtype),
        "label": orbits.label,
        "index": orbits.index,
    }
    meta = {**orbits.meta, "dtype": dtype, "count": len(orbits), "format_version": FORMAT_VERSION}
    with atomic_path(path) as temporary:
        save_file(
            {key: np.ascontiguousarray(value) for key, value in arrays.items()},
            temporary,
            metadata={"orbits": json_dumps(meta, indent=None)},
        )


def load(path: str | Path, expected: Mapping[str, Any] | None = None) -> Orbits:
    """Read orbits and check that they are those asked for.

    Args:
        path: A file written by ``save``.
        expected: Keys of ``IDENTITY`` that must have these values; others are not looked at.

    Raises:
        UserError: No such file, not a whole cache, or one of another backbone, data set, ...
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise UserError("no such orbit cache", where=str(path), fix="run `eqadapt orbits` first")
    try:
        with safe_open(path, framework="np") as file:
            meta = json.loads((file.metadata() or {})["orbits"])
            arrays = {key: file.get_tensor(key) for key in ("logits", "features", "label", "index")}
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(
            f"not a whole orbit cache: {error}", where=str(path), fix="delete it and compute again"
        ) from error
    check_identity(meta, expected or {}, where=str(path))
    return Orbits(
        parse_group(meta["group"]),
        arrays["logits"].astype(np.float32),
        arrays["features"].astype(np.float32),
        arrays["label"],
        arrays["index"],
        meta,
    )


def check_identity(meta: Mapping[str, Any], expected: Mapping[str, Any], where: str) -> None:
    """Refuse a cache of something else.

    Raises:
        UserError: Names every key that differs, with what was found and what was expected.
    """
    if meta.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"orbit cache of format {meta.get('format_version')}, not {FORMAT_VERSION}",
            where=where,
            fix="delete it and compute again",
        )
    differences = [
        f"{key} {_short(meta.get(key))} instead of {_short(value)}"
        for key, value in expected.items()
        if meta.get(key) != value
    ]
    if differences:
        raise UserError(
            f"the orbit cache is of something else: {'; '.join(differences)}",
            where=where,
            fix="give the cache of this backbone and data set, or delete it and compute again",
        )


def _short(value: Any) -> str:
    return f"{value[:12]}..." if isinstance(value, str) and len(value) > 40 else repr(value)


def _check_dtype(dtype: str) -> None:
    if dtype not in ("float16", "float32"):
        raise UserError(
            f"unknown number type {dtype!r} of cached features", fix="float16 or float32"
        )


def _parts_digest(meta: Mapping[str, Any], index: Any) -> str:
    """What parts of an interrupted computation must share: identity, images and code."""
    code = code_id("eqadapt.orbit_cache", "eqadapt.adaptation", "eqadapt.tasks.classification")
    identity = json_dumps([dict(meta), SHARD, index.tolist(), code])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


class OrbitComputer:
    """Runs a frozen backbone over the views of every image, resumable every few hundred images.

    Args:
        backbone: The frozen ``eqadapt.backbones.Backbone``, on its device.
        action: The group's action, ``eqadapt.groups.RotationAction``.
        pipeline: Bytes to images at the acting size.
        batch_size: Images a batch; the backbone sees K times as many at once.
        say: Where progress goes.
    """

    def __init__(
        self,
        backbone: Any,
        action: Any,
        pipeline: Any,
        batch_size: int = 32,
        say: Callable[[str], None] = print,
    ) -> None:
        import torch

        # the faster layout on a CPU (benchmarks/README.md); on a GPU it was not measured
        self.backbone = backbone.eval().to(memory_format=torch.channels_last)
        self.action, self.pipeline = action, pipeline
        self.batch_size, self.say = batch_size, say

    def __call__(
        self, images: Any, labels: Any, index: Any, meta: Mapping[str, Any], scratch: Path
    ) -> Orbits:
        """The orbits of a split.

        Args:
            images: (N, C, h, h) uint8 tensor.
            labels: (N,) int64 tensor.
            index: (N,) int64 tensor, row in the source split.
            meta: From ``identity``; parts under ``scratch`` of another identity, of other images
                or of other code are not used.
            scratch: Folder for the parts, to resume from; may be deleted at any time.
        """
        started, parts = time.perf_counter(), []
        digest = _parts_digest(meta, index)
        for start in range(0, len(images), SHARD):
            rows = slice(start, min(start + SHARD, len(images)))
            path = Path(scratch) / f"{digest}-{rows.start:06d}-{rows.stop:06d}.safetensors"
            parts.append(self._part(path, images[rows], labels[rows], index[rows], meta))
            done = rows.stop / len(images)
            self.say(
                f"orbits {meta['dataset']} {meta['backbone']} {meta['group']} {meta['split']}  "
                f"{rows.stop}/{len(images)} images  "
                f"{(time.perf_counter() - started) * (1 / done - 1):.0f} s left"
            )
        return Orbits(
            self.action.group,
            np.concatenate([part.logits for part in parts]),
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.label for part in parts]),
            np.concatenate([part.index for part in parts]),
            {**meta, "format_version": FORMAT_VERSION},
        )

    def _part(self, path: Path, images: Any, labels: Any, index: Any, meta: Any) -> Orbits:
        try:
            return load(path, meta)
        except UserError:
            pass  # not there yet, or broken: compute it
        pieces = [
            self.outputs(images[start : start + self.batch_size])
            for start in range(0, len(images), self.batch_size)
        ]
        part = Orbits(
            self.action.group,
            np.concatenate([logits for logits, _ in pieces]),
            np.concatenate([features for _, features in pieces]),
            labels.cpu().numpy().astype(np.int64),
            index.cpu().numpy().astype(np.int64),
            meta,
        )
        save(path, part, "float32")
        return part

    def outputs(self, images: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (B, J, K, C) and features (B, J, K, D) of images (B, C, h, h) uint8."""
        import torch

        from eqadapt.symmetrize import read_side

        device = next(self.backbone.parameters()).device
        with torch.inference_mode():
            x = self.action.masked(self.pipeline.to_act_size(images.to(device)))
            turned = (self.action.turn(x, element) for element in input_cosets(self.action.group))
            views = (self.action.orbit(each, read_side(self.backbone)) for each in turned)
            found = [self.backbone.features_and_logits(each.flatten(0, 1)) for each in views]
            shape = (len(x), self.action.group.order)
            features, logits = (
                torch.stack([pair[which].float().unflatten(0, shape) for pair in found], dim=1)
                for which in (0, 1)
            )
        return logits.cpu().numpy(), features.cpu().numpy()
