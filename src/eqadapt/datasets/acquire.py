"""Bring a data set into ``data/raw/<dataset>``: one file, and the record of where it came from."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqadapt.datasets import image_tree, manifest, mirror, registry
from eqadapt.datasets.archives import pack
from eqadapt.datasets.fetch import Patience, check_file, download
from eqadapt.datasets.raw import IMAGES, OFFICIAL, RECORD, VERIFIED
from eqadapt.datasets.raw_archive import FOLDER_PATH
from eqadapt.datasets.source import Checksum, Source
from eqadapt.errors import UserError
from eqadapt.files import atomic_path, make_folder, sha256_file, write_json, write_text

# A folder of images up to this size is copied into one archive; of a larger one a manifest is kept.
PACK_LIMIT_BYTES = 8 << 30


@dataclass(frozen=True)
class Taken:
    """An archive that has arrived.

    Args:
        path: The file.
        kind: ``"official"``, ``"mirror"``, ``"bundled"`` or ``"folder"`` (of the user's).
        layout: ``OFFICIAL`` or ``IMAGES``.
        url: Where it is published, if it is the official release.
        mirror: The name it has in the mirror, if it came from there.
        checksum: What it was compared with.
        generated_from: The data set it holds, if the asked one is to be generated from it.
    """

    path: Path
    kind: str
    layout: str
    url: str | None = None
    mirror: str | None = None
    checksum: Checksum | None = None
    generated_from: str | None = None


def acquire(
    dataset: str,
    out: Path,
    *,
    mirror_folder: Path | None = None,
    folder: Path | None = None,
    patience: Patience | None = None,
) -> dict[str, Any]:
    """Bring a data set into ``out`` and write its record.

    Args:
        dataset: A registered name; with ``folder`` or ``mirror_folder`` also one of the user's.
        out: ``data/raw/<dataset>``.
        mirror_folder: Looked in before the network.
        folder: A tree of images of the user's, taken instead.
        patience: Retries and timeouts of downloads.

    Returns:
        The record, as in ``source.json``.

    Raises:
        UserError: The data set is nowhere to be had, or what came is not what was published. What
            an earlier download left is still there then, with its record.
    """
    registered = dataset in registry.names() and dataset != registry.IMAGE_FOLDER
    own = folder is not None or mirror_folder is not None
    source = registry.user_source(dataset) if own and not registered else registry.get(dataset)
    make_folder(out)
    before = _previous_file(out)
    taken = _from_folder(source, folder, out) if folder else None
    taken = taken or _take(source, out, mirror_folder, patience)
    _forget(out)
    if before and before != taken.path.name:
        (out / before).unlink(missing_ok=True)
    record = _record(source, taken)
    write_json(out / RECORD, record)
    return record


def _forget(out: Path) -> None:
    """Remove the records of an earlier download."""
    for stale in (RECORD, VERIFIED):
        (out / stale).unlink(missing_ok=True)


@contextmanager
def _arriving(path: Path) -> Iterator[Path]:
    """Where to write an archive that takes its place, ``path``, once it is whole.

    Only then do the old records go, and before the archive is there: they stay beside what they
    are of if the block fails, and a new archive never stands beside an old record.
    """
    with atomic_path(path) as temporary:
        yield temporary
        _forget(path.parent)


def _take(
    source: Source, out: Path, mirror_folder: Path | None, patience: Patience | None
) -> Taken:
    """From the package, the mirror, the network, or by way of the data set it derives from."""
    if source.bundled:
        return _bundled(source, out)
    found = mirror.look_up(mirror_folder, source) if mirror_folder else None
    if found:
        return _from_mirror(source, found, out)
    try:
        return _from_network(source, out, patience)
    except UserError as error:
        if source.derivation is None:
            raise
        print(
            f"{source.title}: {error.what}; to be generated from {source.derivation.base} instead",
            file=sys.stderr,
        )
    base = registry.get(source.derivation.base)
    taken = _take(base, out, mirror_folder, patience)
    return dataclasses.replace(taken, generated_from=base.name)


def _bundled(source: Source, out: Path) -> Taken:
    assert source.bundled is not None
    path = _copy(source.bundled(), out / source.archive, source.files[0].checksum)
    return Taken(path, "bundled", OFFICIAL, checksum=source.files[0].checksum)


def _from_network(source: Source, out: Path, patience: Patience | None) -> Taken:
    if not source.files:
        advice = source.advice or "give the folder of the images with --folder DIR"
        raise UserError(
            f"{source.title} cannot be downloaded",
            where=f"data set {source.name}",
            fix=f"{advice}; or set --mirror DIR (or EQADAPT_MIRROR) to a folder that holds "
            f"{source.name}.tar or {source.name}/. Registered: {', '.join(registry.names())}",
        )
    if len(source.files) == 1:
        path, url = download(source.files[0], out, patience, before=lambda: _forget(out))
        return Taken(path, "official", OFFICIAL, url=url, checksum=source.files[0].checksum)
    parts = out / "parts"
    got = [download(file, parts, patience) for file in source.files]
    path = _pack_parts(source, [part for part, _ in got], out)
    shutil.rmtree(parts)
    return Taken(path, "official", OFFICIAL, url=got[0][1])


def _from_mirror(source: Source, found: mirror.Found, out: Path) -> Taken:
    name = found.files[0].name
    if not found.official:
        if found.files[0].is_dir():
            taken = _from_folder(source, found.files[0], out)
            return dataclasses.replace(taken, kind="mirror", mirror=name)
        path = _copy(found.files[0], out / name, found.checksum)
        return Taken(path, "mirror", IMAGES, mirror=name, checksum=found.checksum)
    url = source.files[0].urls[0]
    if len(found.files) == 1:
        path = _copy(found.files[0], out / name, source.files[0].checksum)
        return Taken(path, "official", OFFICIAL, url, name, source.files[0].checksum)
    parts = out / "parts"
    parts.mkdir(exist_ok=True)
    copies = [
        _copy(path, parts / path.name, file.checksum)
        for path, file in zip(found.files, source.files, strict=True)
    ]
    packed = _pack_parts(source, copies, out)
    shutil.rmtree(parts)
    return Taken(packed, "official", OFFICIAL, url, source.archive)


def _from_folder(source: Source, folder: Path, out: Path) -> Taken:
    """Pack a tree of images, or write its manifest where it is too large to copy."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}", where="--folder", fix="check the path")
    files = _placed(source, *image_tree.folder_files(folder))
    if sum(file.stat().st_size for _, file in files) <= PACK_LIMIT_BYTES:
        path = out / f"{source.name}.tar"
        with _arriving(path) as temporary:
            pack(files, temporary)
    else:
        path = out / f"{source.name}{manifest.SUFFIX}"
        with _arriving(path) as temporary:
            manifest.write_manifest(files, temporary)
        write_text(out / FOLDER_PATH, f"{folder.resolve()}\n")
    return Taken(path, "folder", IMAGES)


def _placed(
    source: Source, files: list[tuple[str, Path]], folders: list[str]
) -> list[tuple[str, Path]]:
    """The images that are in ``SPLIT/CLASS/``, or wherever the source has them."""
    tree = image_tree.tree_of(source, (name for name, _ in files), "--folder", folders)
    placed = [(name, file) for name, file in files if name in tree]
    for name, file in placed:
        if not os.path.isfile(file):  # noqa: PTH113 - Path.is_file raises where it may not look
            what = "is a link that leads nowhere" if file.is_symlink() else "is not a file"
            raise UserError(f"{name} {what}", where=str(file), fix="mend it, or remove it")
    return placed


def _pack_parts(source: Source, parts: list[Path], out: Path) -> Path:
    path = out / source.archive
    with _arriving(path) as temporary:
        pack([(part.name, part) for part in parts], temporary)
    return path


def _copy(original: Path, path: Path, checksum: Checksum | None) -> Path:
    """Copy and check; it is the copy that is removed when it is wrong."""
    with _arriving(path) as temporary:
        shutil.copyfile(original, temporary)
        if checksum:
            check_file(temporary, checksum, original.name)
    return path


def _previous_file(out: Path) -> str | None:
    """The archive that an earlier download left."""
    try:
        name = json.loads((out / RECORD).read_text(encoding="utf-8"))["file"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(name).name


def _record(source: Source, taken: Taken) -> dict[str, Any]:
    registered = source.name in registry.names()
    return {
        "dataset": source.name,
        "source": source.name if registered else registry.IMAGE_FOLDER,
        "title": source.title,
        "version": source.version,
        "homepage": source.homepage,
        "licence": source.licence,
        "citation": source.citation.key,
        "kind": taken.kind,
        "layout": taken.layout,
        "file": taken.path.name,
        "url": taken.url,
        "mirror": taken.mirror,
        "bytes": taken.path.stat().st_size,
        "sha256": sha256_file(taken.path),
        "checksum": dataclasses.asdict(taken.checksum) if taken.checksum else None,
        "generated_from": taken.generated_from,
    }
