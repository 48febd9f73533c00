"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eqadapt.errors import UserError

_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it into place only if the block succeeds.

    The temporary name keeps the suffix, because many writers choose the format by it.

    Raises:
        UserError: There can be no folder for it.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.part{path.suffix}")
    try:
        yield temporary
        if temporary.is_file():
            temporary.chmod(0o666 & ~_UMASK)  # some writers allow the owner alone to read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: str | os.PathLike[str]) -> None:
    """Make a folder, and those above it, where it is not there yet.

    Raises:
        UserError: A file is in its place, or nothing may be written there.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"no folder can be made here: {error.strerror or error}",
            where=str(folder),
            fix="remove the file in its place, allow writing there, or name another folder",
        ) from error


def probe_folder(folder: str | os.PathLike[str]) -> None:
    """See, before hours of work, whether files can be written into a folder; leaves none.

    Raises:
        UserError: They cannot.
    """
    make_folder(folder)
    probe = Path(folder, f".{uuid.uuid4().hex}.probe")
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"nothing can be written here: {error.strerror or error}",
            where=str(folder),
            fix="allow writing there, or name another folder",
        ) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def json_dumps(value: Any, indent: int | None = 2) -> str:
    """JSON with sorted keys, so that equal values give equal bytes."""
    return json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically."""
    write_text(path, json_dumps(value) + "\n")


def tree_state(folder: str | os.PathLike[str], most: int = 20_000) -> str:
    """Sixteen hex digits that differ once files below a folder come, go or change.

    Of names, sizes and times, nothing is read; of links, what they lead to. Beyond the first
    ``most`` files only the times of folders count, which tell of files that come, go or are
    replaced, not of those written over.
    """
    top, digest, files = Path(folder), hashlib.sha256(), 0
    for where, folders, names in os.walk(top, followlinks=True):
        place = Path(where)
        folders[:] = sorted(name for name in folders if not leads_up(place / name, top))
        digest.update(f"{place.relative_to(folder)} {place.stat().st_mtime_ns}\n".encode())
        for name in sorted(names)[: most - files]:
            found = _state_of(place / name)
            digest.update(f"{name} {found.st_size} {found.st_mtime_ns}\n".encode())
            files += 1
    return digest.hexdigest()[:16]


def _state_of(path: Path) -> os.stat_result:
    """Of what a link leads to; of the link itself where that is nothing."""
    try:
        return path.stat()
    except OSError:
        return path.lstat()


def leads_up(path: Path, folder: Path) -> bool:
    """Whether a link leads to a folder that holds it: by its path below ``folder``, or really."""
    if not path.is_symlink():
        return False
    target = Path(os.path.realpath(path))
    above = path.parents[: len(path.relative_to(folder).parts)]
    return any(Path(os.path.realpath(one)).is_relative_to(target) for one in above)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
