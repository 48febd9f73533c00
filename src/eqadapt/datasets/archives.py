"""Members of tar and zip archives, read in place: nothing is ever extracted.

Every name is checked before its bytes are touched. Archives come from strangers, so links, devices
and paths that leave the archive's own folder are refused even though nothing would be written.
"""

from __future__ import annotations

import functools
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from eqadapt.errors import UserError
from eqadapt.files import atomic_path

ARCHIVE_SUFFIXES = (".tar.xz", ".tar.gz", ".tgz", ".tar.bz2", ".tar", ".zip")

# Nothing that is read is larger (STL-10's unlabelled images are, and are never read).
MAX_MEMBER_BYTES = 1 << 31

_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
)


class _Header(tarfile.TarInfo):
    """A header of a tar, which must be sound: a damaged or missing one, unless it is the first,
    counts as the end of the archive to tarfile, and all members behind it would be lost unseen."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the block of zeros with which every tar ends
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {tar.offset}") from error


@dataclass(frozen=True)
class Member:
    """One regular file of an archive.

    Args:
        name: Its path with forward slashes, relative, without ``.`` or ``..``.
        n_bytes: Its size.
        read: Gives its bytes; call it before asking for the next member.
    """

    name: str
    n_bytes: int
    read: Callable[[], bytes]


def members(path: Path) -> Iterator[Member]:
    """The regular files of a tar or zip archive, in archive order.

    Raises:
        UserError: The archive is truncated or corrupt, or has a member that is a link, a device or
            has a path outside the archive's folder.
    """
    with _sound(path):
        if path.suffix.lower() == ".zip":
            yield from _zip_members(path)
        else:
            yield from _tar_members(path)


def pack(files: Iterable[tuple[str, Path]], path: Path) -> None:
    """Write files as one uncompressed tar; equal names and bytes give equal archives.

    Args:
        files: (name in the archive, file) pairs.
        path: The archive; appears whole or not at all.
    """
    with atomic_path(path) as temporary, tarfile.open(temporary, "w") as tar:
        for name, file in sorted(files):
            header = tarfile.TarInfo(name)  # owner 0, time 0, mode 0644: nothing of this machine
            header.size = file.stat().st_size
            with file.open("rb") as stream:
                tar.addfile(header, stream)
            _forget_headers(tar)


def checked_name(name: str, where: str) -> str:
    """``name`` without a leading ``./``; refuses every path that could leave its folder."""
    path = PurePosixPath(name)
    drive = len(path.parts) > 0 and path.parts[0].endswith(":")
    if path.is_absolute() or drive or ".." in path.parts or "\\" in name or "\0" in name:
        raise UserError(
            f"the archive has a member outside its folder: {name!r}",
            where=where,
            fix="do not use this archive; take it from its official source",
        )
    return path.as_posix()


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Turn a decoder's complaint into an error that names the archive."""
    try:
        yield
    except NotImplementedError as error:  # what zipfile says of a compression it does not know
        raise UserError(
            f"the archive cannot be read here ({error})",
            where=path.name,
            fix="pack it anew, compressed in the ordinary way",
        ) from error
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the machine's fault; bz2 says of bad data OSError, without a number
        raise UserError(
            f"the archive is truncated, corrupt or not an archive ({error})",
            where=path.name,
            fix="remove it and download again",
        ) from error


def _member(path: Path, name: str, n_bytes: int, read: Callable[[], bytes]) -> Member:
    def checked_read() -> bytes:
        if n_bytes > MAX_MEMBER_BYTES:
            raise UserError(f"{name} claims to have {n_bytes} bytes", where=path.name)
        with _sound(path):
            data = read()
            if len(data) != n_bytes:
                raise EOFError(f"{name} has {len(data)} of {n_bytes} bytes")
        return data

    return Member(name, n_bytes, checked_read)


def _forget_headers(tar: tarfile.TarFile) -> None:
    """Without this the headers of a million images pile up; tarfile forgets by itself from 3.13."""
    tar.members = []  # type: ignore[attr-defined]


def _refuse(name: str, kind: str, path: Path) -> UserError:
    return UserError(
        f"the archive has a member that is {kind}: {name!r}",
        where=path.name,
        fix="pack the files themselves, without links or devices",
    )


def _tar_members(path: Path) -> Iterator[Member]:
    with tarfile.open(path, "r:*", tarinfo=_Header) as tar:
        while (info := tar.next()) is not None:
            _forget_headers(tar)
            name = checked_name(info.name, path.name)
            if info.isdir():
                continue
            if not info.isreg():
                kind = "a link" if info.issym() or info.islnk() else "not a regular file"
                raise _refuse(name, kind, path)
            stream = tar.extractfile(info)
            assert stream is not None
            yield _member(path, name, info.size, stream.read)
        _read_to_the_end(tar)


def _read_to_the_end(tar: tarfile.TarFile) -> None:
    """Compressed streams end with a checksum, which tarfile, done before it, does not look at."""
    assert tar.fileobj is not None
    while tar.fileobj.read(1 << 20):
        pass


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = checked_name(info.filename, path.name)
            if info.is_dir():
                continue
            mode = info.external_attr >> 16
            if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                raise _refuse(name, "a link or a device", path)
            if info.flag_bits & 0x1:
                raise _refuse(name, "encrypted", path)
            yield _member(path, name, info.file_size, functools.partial(archive.read, info))
