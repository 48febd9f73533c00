"""The prepared form of a data set: one safetensors file a split.

``images`` uint8 (N, H, W, C), ``labels`` int64 (N,), ``index`` int64 (N,) (row in the source);
metadata: dataset, split, classes (JSON list), source (JSON), data_sha256, format_version,
``preparation`` (JSON: how the split was made), and ``folders`` (JSON list, names of the classes'
folders) where these differ from the classes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eqadapt.datasets.stratify import stratified_sample
from eqadapt.errors import UserError
from eqadapt.files import atomic_path, json_dumps

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "validation", "test")
FORMAT_VERSION = "1"
_LIMIT_SEED = 0
_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True)
class Prepared:
    """A split in memory.

    Args:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        index: int64 (N,), row in the source.
        classes: Class names; a label is a position in them.
        metadata: The file's metadata, all strings.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    classes: tuple[str, ...]
    metadata: dict[str, str]


def split_path(folder: str | Path, split: str) -> Path:
    """The file of a split in ``data/prepared/<dataset>``."""
    return Path(folder, f"{split}.safetensors")


def read_metadata(folder: str | Path, split: str) -> dict[str, str]:
    """The metadata of a split, without its images and without torch."""
    from safetensors import SafetensorError, safe_open

    path = _existing(folder, split)
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise _unusable(path, str(error)) from error
    if metadata.get("format_version") != FORMAT_VERSION:
        raise _unusable(path, f"format version {metadata.get('format_version')}")
    lacking = sorted({"dataset", "split", "classes", "data_sha256"} - set(metadata))
    if lacking:
        raise _unusable(path, f"it does not say its {', '.join(lacking)}")
    if metadata["split"] != split:
        raise _unusable(path, f"it is the {metadata['split']} split")
    return metadata


def load(
    folder: str | Path,
    split: str,
    limit: int | None = None,
    *,
    check: bool = False,
    mapped: bool | None = False,
) -> Prepared:
    """Load a split.

    Args:
        folder: ``data/prepared/<dataset>``.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        limit: Keep a fixed stratified sample of at most so many images; a smaller limit keeps a
            part of what a larger one does.
        check: Compare the bytes with the checksum in the metadata.
        mapped: Leave the images in the file and read them on use; ``images`` is then a view in
            channels-last order. None: where they would take more than a quarter of the memory
            that is free. Images that ``limit`` picks are always copied into memory.

    Raises:
        UserError: The split is not prepared, or the file is not what was written.
    """
    import torch
    from safetensors import safe_open

    from eqadapt.memory import available_bytes

    metadata = read_metadata(folder, split)
    path = split_path(folder, split)
    with safe_open(path, framework="pt") as file:
        if lacking := sorted({"images", "labels", "index"} - set(file.keys())):
            raise _unusable(path, f"it holds no {', '.join(lacking)}")
        images, labels, index = (file.get_tensor(key) for key in ("images", "labels", "index"))
    if check and data_sha256(images.numpy(), labels.numpy()) != metadata["data_sha256"]:
        raise _unusable(path, "its images and labels do not match their checksum")
    images = images.permute(0, 3, 1, 2)
    if limit is not None and limit < len(labels):
        rows = torch.from_numpy(stratified_sample(labels.numpy(), limit, _LIMIT_SEED))
        room = images.new_empty((len(rows), *images.shape[1:]))  # else once more, to lay them out
        images = torch.index_select(images, 0, rows, out=room)
        labels, index = labels[rows], index[rows]
    elif not (images.nbytes > available_bytes() / 4 if mapped is None else mapped):
        images, labels, index = images.contiguous(), labels.clone(), index.clone()
    return Prepared(images, labels, index, _classes(path, metadata, labels), metadata)


def _classes(path: Path, metadata: dict[str, str], labels: Tensor) -> tuple[str, ...]:
    """The names of the classes, which every label must be a place in."""
    try:
        classes = tuple(json.loads(metadata["classes"]))
    except (json.JSONDecodeError, TypeError) as error:
        raise _unusable(path, "its list of classes is not readable") from error
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise _unusable(path, f"it has labels beyond its {len(classes)} classes")
    return classes


def data_sha256(images: np.ndarray, labels: np.ndarray) -> str:
    """SHA-256 over the bytes of the images (N, H, W, C), then of the labels."""
    digest = hashlib.sha256()
    step = max(1, _CHUNK_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), step):
        digest.update(np.ascontiguousarray(images[start : start + step]).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


class SplitWriter:
    """A split being written, image by image, straight into its file.

    The safetensors library wants all tensors in memory and writes metadata in an order that
    changes from run to run, so the header (its length, then JSON) is written here.

    Args:
        path: The file, made here of its full size.
        labels: int64 (N,).
        index: int64 (N,).
        shape: (H, W, C).
        metadata: Without ``data_sha256`` and ``format_version``, which are added.

    Raises:
        UserError: There is no room for the file.
    """

    def __init__(
        self,
        path: Path,
        labels: np.ndarray,
        index: np.ndarray,
        shape: tuple[int, int, int],
        metadata: dict[str, str],
    ) -> None:
        self.path, self.labels = path, labels
        self.shape = (len(labels), *shape)
        self.written = np.zeros(len(labels), dtype=bool)
        self.metadata = {**metadata, "format_version": FORMAT_VERSION}
        tables = np.stack([index, labels]).astype("<i8").tobytes()
        start = self._head("0" * 64) + tables
        _reserve(path, start, len(start) + int(np.prod(self.shape, dtype=np.int64)))
        self.images = np.memmap(path, np.uint8, "r+", len(start), shape=self.shape)

    def put(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Write images (B, H, W, C) to rows (B,)."""
        self.images[rows] = images
        self.written[rows] = True

    def finish(self) -> None:
        """Write the checksum into the header, once every image is there."""
        if not self.written.all():
            lacking, split = int((~self.written).sum()), self.metadata["split"]
            raise RuntimeError(f"{lacking} images of the {split} split are missing")
        digest = data_sha256(self.images, self.labels)
        self.images.flush()
        with self.path.open("r+b") as stream:
            stream.write(self._head(digest))

    def _head(self, digest: str) -> bytes:
        return _header(self.shape, {**self.metadata, "data_sha256": digest})


def _reserve(path: Path, start: bytes, size: int) -> None:
    """Make a file of ``size`` bytes that begins with ``start``, its room on the disk included.

    What is written into a mapped file without room ends the process by SIGBUS, with no message.

    Raises:
        UserError: There is no room for it.
    """
    try:
        with path.open("wb") as stream:
            stream.write(start)
            stream.truncate(size)
            if hasattr(os, "posix_fallocate"):
                stream.flush()
                _allocate(stream.fileno(), size)
    except OSError as error:
        raise UserError(
            f"{size} bytes cannot be written here: {error.strerror or error}",
            where=str(path.parent),
            fix="free so much there, or prepare into another folder (--out)",
        ) from error


def _allocate(descriptor: int, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):  # it cannot reserve
            raise


@contextmanager
def write_splits(
    folder: Path,
    tables: Mapping[str, tuple[np.ndarray, np.ndarray]],
    shape: tuple[int, int, int],
    metadata: dict[str, str],
) -> Iterator[dict[str, SplitWriter]]:
    """Write splits with bounded memory; all of them appear whole, or none.

    Their room is reserved before, and they take their places one right after another, only once
    the last of them is finished: what stops a preparation leaves the earlier one as it was.

    Args:
        folder: ``data/prepared/<preparation>``.
        tables: Split -> labels int64 (N,) and index int64 (N,).
        shape: (H, W, C).
        metadata: Of all splits, without ``split``.

    Raises:
        UserError: There is no room for them.
    """
    with ExitStack() as stack:
        writers = {}
        for split, (labels, index) in tables.items():
            temporary = stack.enter_context(atomic_path(split_path(folder, split)))
            writers[split] = SplitWriter(
                temporary, labels, index, shape, {**metadata, "split": split}
            )
        yield writers
        for writer in writers.values():
            writer.finish()


def _header(shape: tuple[int, ...], metadata: dict[str, str]) -> bytes:
    """Integers before bytes, so that every tensor is aligned."""
    n, tables = shape[0], 16 * shape[0]
    tensors = {
        "index": {"dtype": "I64", "shape": [n], "data_offsets": [0, 8 * n]},
        "labels": {"dtype": "I64", "shape": [n], "data_offsets": [8 * n, tables]},
        "images": {
            "dtype": "U8",
            "shape": list(shape),
            "data_offsets": [tables, tables + int(np.prod(shape, dtype=np.int64))],
        },
    }
    text = json_dumps({"__metadata__": metadata, **tensors}, indent=None).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _existing(folder: str | Path, split: str) -> Path:
    path = split_path(folder, split)
    if not path.is_file():
        raise UserError(
            f"the {split} split is not prepared", where=str(path), fix=_preparing(Path(folder).name)
        )
    return path


def _preparing(name: str) -> str:
    from eqadapt.datasets.variants import Preparation

    try:
        asked = Preparation.parse(name)
    except UserError:  # a folder that was given by hand
        return "prepare it there: eqadapt prepare --out"
    flags = f"--dataset {asked.source} {asked.flags}".strip()
    return f"run eqadapt download and verify for {asked.source}, then eqadapt prepare {flags}"


def _unusable(path: Path, why: str) -> UserError:
    return UserError(f"the split cannot be used: {why}", where=str(path), fix="prepare it again")
