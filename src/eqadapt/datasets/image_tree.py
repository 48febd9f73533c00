"""Trees of image files, ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/CLASS/*``).

The tree may lie in any folder of its archive. With ``train`` and one of ``test`` and ``val``, the
other one is the test set; with all three, ``val`` is the validation split. Classes are the folder
names, sorted (or in the source's order); images are in the order of their class and path.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath

import numpy as np

from eqadapt.datasets.archives import Member
from eqadapt.datasets.decode import SUFFIXES, decode, image_size
from eqadapt.datasets.progress import bar
from eqadapt.datasets.source import Batch, Contents, Source
from eqadapt.errors import UserError

_SPLITS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
_BATCH = 64


@dataclass(frozen=True)
class Place:
    """Where an image belongs: split and class folder."""

    split: str
    folder: str


def is_image(name: str) -> bool:
    """Whether a path names an image file that counts (hidden files do not)."""
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def places(names: Iterable[str], where: str) -> dict[str, Place]:
    """Image path -> its place, for all images of a tree.

    Raises:
        UserError: There is no ``train/CLASS/image``, nothing to test on, or a path twice.
    """
    paths = _image_paths(names, where)
    level = _split_level(list(paths.values()))
    found = {}
    for name, parts in paths.items():
        if level is not None and len(parts) > level + 2 and parts[level].lower() in _SPLITS:
            found[name] = Place(_SPLITS[parts[level].lower()], parts[level + 1])
    splits = {place.split for place in found.values()}
    if "train" not in splits or len(splits) < 2:
        missing = "test" if "train" in splits else "train"
        raise UserError(
            f"there are no images in {missing}/CLASS/ ({len(paths)} image files in all)",
            where=where,
            fix="put the images in train/CLASS/ and test/CLASS/ (or val/CLASS/), one folder a "
            f"class; image files end in {' '.join(SUFFIXES)}",
        )
    if "test" not in splits:
        found = {
            name: Place("test", place.folder) if place.split == "validation" else place
            for name, place in found.items()
        }
    return found


def _image_paths(names: Iterable[str], where: str) -> dict[str, tuple[str, ...]]:
    paths: dict[str, tuple[str, ...]] = {}
    for name in names:
        if name in paths:
            raise UserError(f"the archive has {name!r} twice", where=where, fix="pack it anew")
        if is_image(name):
            paths[name] = PurePosixPath(name).parts
    return paths


def _split_level(paths: list[tuple[str, ...]]) -> int | None:
    """Depth of the folders ``train``, ``test``: all above it is shared by all images."""
    depth = 0
    while paths and all(len(parts) > depth + 1 for parts in paths):
        here = {parts[depth] for parts in paths}
        if any(folder.lower() == "train" for folder in here):
            return depth
        if len(here) > 1:
            return None
        depth += 1
    return None


def folder_files(folder: Path) -> list[tuple[str, Path]]:
    """(path in the tree, file) of the images of a user's folder, sorted; links are followed."""
    found = []
    seen = set()
    for base, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        for file in files:
            path = Path(base, file)
            name = path.relative_to(folder).as_posix()
            if is_image(name):
                found.append((name, path))
    return sorted(found)


def read_tree(
    members: Callable[[], Iterator[Member]], source: Source, size: int | None, where: str
) -> Contents:
    """The contents of a tree of image files.

    Args:
        members: Goes through the files of the archive; called once for the names and once for the
            pixels, so that memory stays bounded.
        source: Gives the classes and channels.
        size: Side of the square the images are brought to; None: they all have one size.
        where: The archive's name, for errors.
    """
    names = []
    shape = (size, size) if size else None
    for member in members():
        names.append(member.name)
        if shape is None and is_image(member.name):
            shape = image_size(member.read(), f"{where}: {member.name}")
    tree = places(names, where)
    assert shape is not None  # places() refuses a tree without images
    classes, label_of = _classes({place.folder for place in tree.values()}, source, where)
    ordered = sorted(tree, key=lambda name: (label_of[tree[name].folder], name))
    rows: dict[str, int] = {}
    labels: dict[str, list[int]] = defaultdict(list)
    for name in ordered:
        place = tree[name]
        rows[name] = len(labels[place.split])
        labels[place.split].append(label_of[place.folder])
    decoder = _Decoder(where, (*shape, source.channels), size)
    return Contents(
        classes=classes,
        shape=(*shape, source.channels),
        labels={split: np.array(values, dtype=np.int64) for split, values in labels.items()},
        batches=lambda: _batches(members(), tree, rows, decoder),
    )


def _classes(
    folders: set[str], source: Source, where: str
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Class names, and folder -> label."""
    known = source.folders or source.classes
    if known is None:
        ordered = sorted(folders)
        return tuple(ordered), {folder: label for label, folder in enumerate(ordered)}
    unknown, missing = sorted(folders - set(known)), sorted(set(known) - folders)
    if unknown or missing:
        raise UserError(
            f"the class folders are not those of {source.title}: "
            f"missing {missing or 'none'}, unknown {unknown or 'none'}",
            where=where,
            fix=f"name the folders {', '.join(known[:10])}{', ...' if len(known) > 10 else ''}",
        )
    return source.classes or known, {folder: label for label, folder in enumerate(known)}


@dataclass(frozen=True)
class _Decoder:
    where: str
    shape: tuple[int, int, int]
    size: int | None

    def __call__(self, files: list[tuple[str, bytes]]) -> np.ndarray:
        """uint8 (B, H, W, C)."""
        images = np.empty((len(files), *self.shape), dtype=np.uint8)
        for row, (name, data) in enumerate(files):
            where = f"{self.where}: {name}"
            image = decode(data, where, self.shape[2], self.size)
            if image.shape != self.shape:
                found, expected = (f"{s[0]} x {s[1]}" for s in (image.shape, self.shape))
                raise UserError(
                    f"the images have several sizes: this one is {found}, others {expected}",
                    where=where,
                    fix="prepare with --size S: short side to S pixels, then the centre",
                )
            images[row] = image
        return images


def _batches(
    members: Iterator[Member], tree: dict[str, Place], rows: dict[str, int], decoder: _Decoder
) -> Iterator[Batch]:
    """Decode on all cores; Pillow's decoders and filters let other threads run."""
    cores = min(len(os.sched_getaffinity(0)), 16) if hasattr(os, "sched_getaffinity") else 2
    waiting: deque[tuple[str, np.ndarray, Future[np.ndarray]]] = deque()
    with ThreadPoolExecutor(cores) as pool, bar(len(tree), "decoding", "image") as progress:
        for split, files in _groups(members, tree):
            positions = np.array([rows[name] for name, _ in files], dtype=np.int64)
            waiting.append((split, positions, pool.submit(decoder, files)))
            if len(waiting) > 2 * cores:
                yield _finished(waiting.popleft(), progress)
        while waiting:
            yield _finished(waiting.popleft(), progress)


def _finished(job: tuple[str, np.ndarray, Future[np.ndarray]], progress: object) -> Batch:
    split, positions, images = job
    progress.update(len(positions))  # type: ignore[attr-defined]
    return split, positions, images.result()


def _groups(
    members: Iterator[Member], tree: dict[str, Place]
) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Images of one split at a time, with their bytes."""
    pending: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
    for member in members:
        place = tree.get(member.name)
        if place is None:
            continue
        files = pending[place.split]
        files.append((member.name, member.read()))
        if len(files) == _BATCH:
            yield place.split, pending.pop(place.split)
    yield from chain(pending.items())
