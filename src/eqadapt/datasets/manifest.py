"""A manifest stands for a folder that is too large to copy: size, SHA-256 and path of each image.

The manifest is the archive of such a data set: its own checksum is the checksum of the data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eqadapt.datasets.archives import Member, checked_name
from eqadapt.datasets.progress import bar
from eqadapt.errors import UserError
from eqadapt.files import sha256_file, write_text

SUFFIX = ".manifest.tsv"


def write_manifest(files: list[tuple[str, Path]], path: Path) -> None:
    """Hash all files and write their manifest."""
    digests = _digests([file for _, file in files], "hashing")
    lines = [
        f"{digest}\t{file.stat().st_size}\t{name}\n"
        for (name, file), digest in zip(files, digests, strict=True)
    ]
    write_text(path, "".join(lines))


def manifest_members(path: Path, folder: Path) -> Iterator[Member]:
    """The files that a manifest names, read from ``folder``.

    Raises:
        UserError: A file is gone, or another one than when the manifest was written; told as it
            is read.
    """
    for digest, size, name in _entries(path):
        yield Member(name, size, _reader(folder / name, name, digest, path.name))


def check_manifest(path: Path, folder: Path) -> None:
    """Hash every file again and compare.

    Raises:
        UserError: Names the first file that is gone or differs. The user's files stay.
    """
    entries = list(_entries(path))
    for _, _, name in entries:
        if not (folder / name).is_file():
            raise _changed(name, path.name, "is gone")
    digests = _digests([folder / name for _, _, name in entries], "checking")
    for (expected, _, name), found in zip(entries, digests, strict=True):
        _check(name, path.name, expected, found)


def _entries(path: Path) -> Iterator[tuple[str, int, str]]:
    """SHA-256, size and path of each image.

    Lines end at line feeds alone: what else ends one to Python may stand in a name.
    """
    for line in path.read_bytes().decode("utf-8").split("\n"):
        if line:
            digest, size, name = line.split("\t", 2)
            yield digest, int(size), checked_name(name, path.name)


def _reader(file: Path, name: str, digest: str, manifest: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise _changed(name, manifest, f"cannot be read ({error.strerror})") from error
        _check(name, manifest, digest, hashlib.sha256(data).hexdigest())
        return data

    return read


def _check(name: str, manifest: str, expected: str, found: str) -> None:
    if found != expected:
        raise _changed(name, manifest, f"changed: sha256 expected {expected}, found {found}")


def _changed(name: str, manifest: str, what: str) -> UserError:
    return UserError(
        f"{name} {what}",
        where=manifest,
        fix="restore the folder, or download again with --folder to record it as it is now",
    )


def _digests(files: list[Path], what: str) -> list[str]:
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as pool, bar(len(files), what, "file") as progress:
        for digest in pool.map(sha256_file, files):
            found.append(digest)
            progress.update()
    return found
