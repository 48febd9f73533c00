"""Trees of image files, ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val/CLASS/*``).

The tree may lie in any folder of its archive. With ``train`` and one of ``test`` and ``val``, the
other one is the test set; with all three, ``val`` is the validation split. Classes are the folder
names, sorted (or in the source's order); images are in the order of their class and path. A class
folder without any image is refused; of other files, how many were left out is said.
"""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from eqadapt.files import leads_up

_SPLITS = {
    "train": "train",
    "test": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
}
_BATCH = 64
# Control characters, line and paragraph separators, and what stands for bytes that are not UTF-8.
_UNWRITABLE = ("Cc", "Zl", "Zp", "Cs")


@dataclass(frozen=True)
class Place:
    """Where an image belongs: split and class folder."""

    split: str
    folder: str


def is_image(name: str) -> bool:
    """Whether a path names an image file that counts (hidden files do not)."""
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not _hidden(path.parts)


def _hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def places(names: Iterable[str], where: str, folders: Iterable[str] = ()) -> dict[str, Place]:
    """Image path -> its place, for all images of a tree; says which files were left out.

    Args:
        names: Paths of the files.
        where: The tree's name, for errors.
        folders: Paths of the folders, where they are known: a class may be an empty one.

    Raises:
        UserError: There is no ``train/CLASS/image``, nothing to test on, a class folder without
            any image, or a path twice.
    """
    names = list(names)
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
    assert level is not None  # something was found
    top = paths[next(iter(found))][:level]
    rest = [PurePosixPath(name) for name in names if name not in found]
    rest = [path for path in rest if _in_split(path.parts, top)]
    _check_class_folders(found, rest, [PurePosixPath(name) for name in folders], top, where)
    images = [PurePosixPath(name) for name in paths if name not in found]
    rest = list(dict.fromkeys([*rest, *images]))
    if rest:
        print(
            f"{where}: {_by_suffix(rest)} left out; an image is SPLIT/CLASS/NAME and ends in "
            f"{' '.join(SUFFIXES)}",
            file=sys.stderr,
        )
    if "test" not in splits:
        found = {
            name: Place("test", place.folder) if place.split == "validation" else place
            for name, place in found.items()
        }
    return found


def tree_of(
    source: Source, names: Iterable[str], where: str, folders: Iterable[str] = ()
) -> dict[str, Place]:
    """Image path -> its place, in folders of splits or as the source says (``Source.place``).

    Args:
        source: The data set.
        names: Paths of the files.
        where: The tree's name, for errors.
        folders: Paths of the folders, where they are known.

    Raises:
        UserError: As ``places``; or no file is an image of the source.
    """
    if source.place is None:
        return places(names, where, folders)
    asked = {name: source.place(name) for name in _image_paths(names, where)}
    found = {name: Place(*place) for name, place in asked.items() if place}
    if not found:
        raise UserError(
            f"none of {len(asked)} image files is one of {source.title}",
            where=where,
            fix=source.advice or f"take it from {source.homepage}",
        )
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
    """Depth of the folders ``train``, ``test``: all above it is shared by all images but those that
    lie beside it."""
    depth = 0
    while paths := [parts for parts in paths if len(parts) > depth + 1]:
        here = {parts[depth] for parts in paths}
        if any(folder.lower() == "train" for folder in here):
            return depth
        if len(here) > 1:
            return None
        depth += 1
    return None


def _in_split(parts: tuple[str, ...], top: tuple[str, ...]) -> bool:
    """Whether a path is below one of the folders ``train``, ``test``, and not hidden."""
    level = len(top)
    inside = len(parts) > level + 1 and parts[:level] == top and parts[level].lower() in _SPLITS
    return inside and not _hidden(parts)


def _check_class_folders(
    found: Iterable[str],
    rest: list[PurePosixPath],
    folders: list[PurePosixPath],
    top: tuple[str, ...],
    where: str,
) -> None:
    """Refuse class folders without any image: their class would vanish without a word."""
    depth = len(top) + 2
    filled = {PurePosixPath(name).parts[:depth] for name in found}
    others: dict[tuple[str, ...], list[PurePosixPath]] = defaultdict(list)
    for path in rest:
        if len(path.parts) > depth:
            others[path.parts[:depth]].append(path)
    there = {path.parts[:depth] for path in folders if _in_split(path.parts, top)}
    lacking = sorted((there | set(others)) - filled)
    if lacking:
        first, more = lacking[0], len(lacking) - 1
        holds = f" ({_by_suffix(others[first])})" if others[first] else ""
        raise UserError(
            f"the class folder {'/'.join(first)} has no image{holds}"
            f"{f'; {more} more have none' if more else ''}",
            where=where,
            fix=f"put images in it, which end in {' '.join(SUFFIXES)}, or remove the folder",
        )


def _by_suffix(paths: list[PurePosixPath]) -> str:
    """``3 .jfif, 1 .txt``."""
    counts = Counter(path.suffix.lower() or "without suffix" for path in paths)
    return ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))


def folder_files(folder: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """What a user's folder holds, without hidden files; links are followed, not back up.

    Returns:
        (path in the tree, file) of all files, and the paths of all folders; both are sorted. A
        link that leads nowhere counts as a folder unless its name is that of an image: a class may
        have been there.

    Raises:
        UserError: A folder cannot be read, a name has a backslash, or that of an image has a
            character that no record may hold.
    """
    files, below = [], []
    for base, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
        here = Path(base)
        folders[:] = sorted(
            name for name in folders if not _hidden([name]) and not leads_up(here / name, folder)
        )
        lost = [name for name in names if not is_image(name) and not _is_there(here / name)]
        for name in (*folders, *lost):
            below.append((here / name).relative_to(folder).as_posix())
        for name in names:
            if name not in lost and not _hidden([name]):
                files.append(((here / name).relative_to(folder).as_posix(), here / name))
    strange = sorted(name for name, _ in files if "\\" in name)
    if strange:
        raise UserError(
            f"a name with a backslash, which is a separator elsewhere: {strange[0]!r}",
            where=str(folder),
            fix="rename the file",
        )
    for name in sorted(name for name, _ in files if is_image(name)):
        _check_characters(name, folder)
    return sorted(files), sorted(below)


def _check_characters(name: str, folder: Path) -> None:
    """Refuse names that end a line of a manifest, or that are no text.

    Those of files that are left out may be what they like: a Mac leaves ``Icon`` with a return.
    """
    if any(unicodedata.category(character) in _UNWRITABLE for character in name):
        raise UserError(
            f"a name with a control character, or bytes that are not UTF-8: {name!r}",
            where=str(folder),
            fix="rename the file, or the folder that it is in",
        )


def _is_there(path: Path) -> bool:
    return os.path.exists(path)  # noqa: PTH110 - Path.exists raises where it may not look


def _unreadable(error: OSError) -> None:
    """os.walk passes over such a folder without a word."""
    raise UserError(
        f"a folder cannot be read: {error.strerror or error}",
        where=str(error.filename),
        fix="allow reading it, or remove it",
    ) from error


def read_tree(
    members: Callable[[], Iterator[Member]], source: Source, size: int | None, where: str
) -> Contents:
    """The contents of a tree of image files.

    Args:
        members: Goes through the files of the archive; called once for the names, for the first
            image and for the pixels, so that memory stays bounded.
        source: Gives the classes and channels.
        size: Side of the square the images are brought to; None: they all have one size.
        where: The archive's name, for errors.
    """
    tree = tree_of(source, [member.name for member in members()], where)
    shape = (size, size) if size else _first_size(members(), tree, where)
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


def _first_size(
    members: Iterator[Member], tree: Mapping[str, Place], where: str
) -> tuple[int, int]:
    """Height and width of the first image that has a place; ``places`` refuses trees without."""
    first = next(member for member in members if member.name in tree)
    return image_size(first.read(), f"{where}: {first.name}")


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
