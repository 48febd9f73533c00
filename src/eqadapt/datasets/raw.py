"""The record of where a data set's archive came from: read, and checked against the archive.

``source.json`` is written with the archive, ``verified.json`` when the archive was hashed again
and compared with the published checksum. Neither has a path of this machine in it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from eqadapt.datasets import manifest, registry
from eqadapt.datasets.fetch import file_digests, mismatch
from eqadapt.datasets.raw_archive import Raw
from eqadapt.datasets.source import Checksum, Source
from eqadapt.errors import UserError
from eqadapt.files import write_json

RECORD = "source.json"
VERIFIED = "verified.json"

# What is read from a record: always text; text or nothing; and what verify adds.
_TEXTS = ("dataset", "source", "kind", "layout", "file", "sha256")
_MAYBE = ("url", "mirror", "checksum", "generated_from")
_ADDED = ("checked_against",)

OFFICIAL = "official"  # layout: the official release, read by the source's own reader
IMAGES = "images"  # layout: a tree of image files


def open_raw(folder: Path, dataset: str, name: str = RECORD) -> Raw:
    """The archive of ``dataset`` in ``folder``, from its record.

    Raises:
        UserError: There is no record, it lacks something, it is of another data set, or the
            archive is gone.
    """
    verb = "download" if name == RECORD else "verify"
    path = folder / name
    if not path.is_file():
        raise UserError(
            f"{dataset} has no {name}",
            where=str(folder),
            fix=f"run eqadapt {verb} --dataset {dataset} first",
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        _check_record(record, verified=name == VERIFIED)
        raw = Raw(folder, record)
        gone = not raw.path.is_file()
    except ValueError as error:
        raise UserError(
            f"the record cannot be read ({error})", where=str(path), fix=f"run eqadapt {verb} again"
        ) from error
    if record["dataset"] != dataset:
        raise UserError(
            f"this is the data set {record['dataset']!r}, not {dataset!r}",
            where=str(path),
            fix="give each data set a folder of its own",
        )
    if gone:
        raise UserError(
            f"{raw.name} is gone", where=str(folder), fix=f"run eqadapt download for {dataset}"
        )
    return raw


def _check_record(record: object, *, verified: bool) -> None:
    """Raise ValueError where what is read from a record later is not there, or is no text."""
    if not isinstance(record, dict):
        raise ValueError("it is not a mapping")
    keys = _TEXTS + _MAYBE + (_ADDED if verified else ())
    lacking = [key for key in keys if key not in record]
    if lacking:
        raise ValueError(f"it lacks {', '.join(lacking)}")
    wrong = [key for key in _TEXTS if not isinstance(record[key], str)]
    if wrong:
        raise ValueError(f"{wrong[0]} is {record[wrong[0]]!r}")
    checksum = record["checksum"]
    parts = {"algorithm", "value", "published_by"}
    if checksum and (not isinstance(checksum, dict) or set(checksum) != parts):
        raise ValueError(f"checksum is {checksum!r}")


def layout_source(record: dict[str, Any]) -> Source:
    """The source whose files the archive holds: the base, where the data set is generated."""
    base = record.get("generated_from")
    return registry.get(base) if base else registry.source_of(record)


def verify(dataset: str, folder: Path, out: Path | None = None) -> dict[str, Any]:
    """Hash the archive again and compare it with its published checksum.

    Args:
        dataset: Its name.
        folder: ``data/raw/<dataset>``.
        out: The record to write; by default ``verified.json`` in ``folder``.

    Returns:
        The record: that of the download, the SHA-256 found, and what it was checked against:
        ``checked_against`` is ``"published"``, ``"mirror"`` (a note beside the mirror's archive)
        or None (only recorded).

    Raises:
        UserError: A checksum differs; names both. The archive is removed then, and its record, so
            that the next download starts anew.
    """
    out = out or folder / VERIFIED
    out.unlink(missing_ok=True)
    raw = open_raw(folder, dataset)
    record = raw.record
    checksum = _checksum(record)
    algorithms = {"sha256", checksum.algorithm} if checksum else {"sha256"}
    found = file_digests(raw.path, algorithms)
    acquired = Checksum("sha256", record["sha256"], "the download's record")
    for expected in (checksum, acquired):
        if expected and found[expected.algorithm] != expected.value:
            n_bytes = raw.path.stat().st_size
            _remove(raw)
            error = mismatch(raw.name, expected, found[expected.algorithm], n_bytes)
            if record["kind"] == "folder":
                error.fix = "download again with --folder, which takes the folder as it is now"
            raise error
    parts = _check_parts(raw)
    if raw.is_manifest:
        manifest.check_manifest(raw.path, raw.user_folder)
    published = record["layout"] == OFFICIAL and (checksum is not None or parts)
    against = "published" if published else "mirror" if checksum else None
    verified = {**record, "sha256": found["sha256"], "checked_against": against}
    write_json(out, verified)
    return verified


def _remove(raw: Raw) -> None:
    """Remove an archive, and its record: a step that finds one would not download again."""
    (raw.folder / RECORD).unlink(missing_ok=True)
    raw.path.unlink()


def _checksum(record: dict[str, Any]) -> Checksum | None:
    """What the archive is compared with: the registered sum, never one that lies beside it."""
    if record["layout"] != OFFICIAL:
        return Checksum(**record["checksum"]) if record["checksum"] else None
    source = layout_source(record)
    return source.files[0].checksum if len(source.files) == 1 else None


def _check_parts(raw: Raw) -> bool:
    """Check the files of a release of several files, packed in one archive, one by one."""
    files = layout_source(raw.record).files
    if raw.record["layout"] != OFFICIAL or len(files) < 2:
        return False
    data = raw.read_members([file.name for file in files])
    for file in files:
        if file.checksum:
            found = hashlib.new(file.checksum.algorithm, data[file.name], usedforsecurity=False)
            if found.hexdigest() != file.checksum.value:
                _remove(raw)
                raise mismatch(file.name, file.checksum, found.hexdigest(), len(data[file.name]))
    return all(file.checksum for file in files)
