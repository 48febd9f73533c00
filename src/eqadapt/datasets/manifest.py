"""A manifest stands for a folder that is too large to copy: size, SHA-256 and path of each image.

The manifest is the archive of such a data set: its own checksum is the checksum of the data.
"""

from __future__ import annotations

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
        UserError: A file is gone or has another size.
    """
    for digest_size_name in path.read_text(encoding="utf-8").splitlines():
        _, size, name = digest_size_name.split("\t", 2)
        checked_name(name, path.name)
        yield Member(name, int(size), _reader(folder / name, name, int(size), path.name))


def check_manifest(path: Path, folder: Path) -> None:
    """Hash every file again and compare.

    Raises:
        UserError: Names the first file that is gone or differs. The user's files stay.
    """
    entries = [line.split("\t", 2) for line in path.read_text(encoding="utf-8").splitlines()]
    for _, _, name in entries:
        checked_name(name, path.name)
        if not (folder / name).is_file():
            raise _changed(name, path.name, "is gone")
    digests = _digests([folder / name for _, _, name in entries], "checking")
    for (expected, _, name), found in zip(entries, digests, strict=True):
        if expected != found:
            raise _changed(name, path.name, f"changed: sha256 expected {expected}, found {found}")


def _reader(file: Path, name: str, size: int, manifest: str) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            data = file.read_bytes()
        except OSError as error:
            raise _changed(name, manifest, f"cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise _changed(name, manifest, f"has {len(data)} bytes, not {size}")
        return data

    return read


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
