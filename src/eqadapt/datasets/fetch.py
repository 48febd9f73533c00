"""Downloads that resume, and checksums that are checked.

A file is received as ``<name>.part``; only when it is whole and its checksum is right does it get
its name. A connection that breaks is taken up where it broke (HTTP Range, guarded by the server's
ETag, so that two versions of a file are never joined).
"""

from __future__ import annotations

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from eqadapt import __version__
from eqadapt.datasets.progress import bar
from eqadapt.datasets.source import Checksum, RemoteFile
from eqadapt.errors import UserError
from eqadapt.files import make_folder, write_text

_CHUNK = 1 << 20
_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # statuses that may pass
_BROKEN = (OSError, http.client.HTTPException)  # timeouts and refused connections are OSErrors


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Args:
        tries: Attempts for each address without receiving a byte more.
        timeout: Seconds without an answer before an attempt counts as broken.
        pause: Seconds before the second attempt; doubles with each.
    """

    tries: int = 4
    timeout: float = 30.0
    pause: float = 1.0


def file_digests(path: Path, algorithms: Iterable[str]) -> dict[str, str]:
    """Algorithm -> hex digest of a file, read once."""
    found = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            for digest in found.values():
                digest.update(chunk)
    return {name: digest.hexdigest() for name, digest in found.items()}


def check_file(path: Path, checksum: Checksum, name: str | None = None) -> None:
    """Compare a file with its checksum; a file that differs is removed.

    Raises:
        UserError: It differs; names the expected and the found checksum.
    """
    if _matches(path, checksum):
        return
    found = file_digests(path, [checksum.algorithm])[checksum.algorithm]
    n_bytes = path.stat().st_size
    path.unlink()
    raise mismatch(name or path.name, checksum, found, n_bytes)


def _matches(path: Path, checksum: Checksum) -> bool:
    return file_digests(path, [checksum.algorithm])[checksum.algorithm] == checksum.value


def mismatch(name: str, checksum: Checksum, found: str, n_bytes: int) -> UserError:
    """The error of a file that is not what was published."""
    return UserError(
        f"{name} is corrupt or truncated, and was removed: {checksum.algorithm} expected "
        f"{checksum.value} (published by {checksum.published_by}), found {found} "
        f"({n_bytes} bytes)",
        where=name,
        fix="download again; if it stays so, the server or mirror holds another file",
    )


def download(
    file: RemoteFile,
    folder: Path,
    patience: Patience | None = None,
    before: Callable[[], None] | None = None,
) -> tuple[Path, str]:
    """Bring an official file into a folder; a whole and right one already there is kept.

    Args:
        file: What to fetch; one that is not what was published is fetched again.
        folder: Where to; created.
        patience: Retries and timeouts.
        before: Called once the file has arrived whole, before it takes its place.

    Returns:
        The file, and the address it is published at.

    Raises:
        UserError: No address answers, or what came is not what was published.
    """
    patience = patience or Patience()
    make_folder(folder)
    path = folder / file.name
    if path.exists() and file.checksum and _matches(path, file.checksum):
        return path, file.urls[0]
    part = folder / f"{file.name}.part"
    failures: list[tuple[str, Exception]] = []
    for url in file.urls:
        try:
            _receive(url, part, file, patience)
            if file.checksum:
                check_file(part, file.checksum, file.name)
        except (UserError, *_BROKEN) as error:
            failures.append((url, error))
            continue
        if before:
            before()
        part.replace(path)
        _validator_path(part).unlink(missing_ok=True)
        return path, url
    raise _no_address(file, failures)


def _no_address(file: RemoteFile, failures: list[tuple[str, Exception]]) -> UserError:
    for _, error in failures:
        if isinstance(error, UserError):  # an answer that is wrong says more than no answer
            return error
    tried = "; ".join(f"{url}: {error}" for url, error in failures)
    return UserError(
        f"{file.name} could not be downloaded ({tried})",
        where=file.urls[0],
        fix="run the same command again to resume; without a network, set --mirror DIR or the "
        f"environment variable EQADAPT_MIRROR to a folder that holds {file.name}",
    )


def _receive(url: str, part: Path, file: RemoteFile, patience: Patience) -> None:
    """Fill ``part``; attempts that bring new bytes do not count against the tries."""
    failed = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _continue(url, part, file, patience.timeout)
            return
        except urllib.error.HTTPError as error:
            if error.code not in _AGAIN:
                raise
            problem: Exception = error
        except _BROKEN as error:
            problem = error
        gained = part.exists() and part.stat().st_size > before
        failed = 1 if gained else failed + 1
        if failed >= patience.tries:
            raise problem
        time.sleep(patience.pause * 2 ** (failed - 1))


def _continue(url: str, part: Path, file: RemoteFile, timeout: float) -> None:
    """One request, from where ``part`` ends."""
    start, validator = _resume_point(part, url)
    request = urllib.request.Request(url, headers={"User-Agent": f"eqadapt/{__version__}"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", validator)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the part does not fit the file: begin anew
            part.unlink(missing_ok=True)
            raise ConnectionError("the server has no such range") from error
        raise
    with response:
        if response.status != 206:
            start = 0
        write_text(_validator_path(part), json.dumps([url, _validator(response)]))
        _copy(response, part, start, file)


def _copy(response: http.client.HTTPResponse, part: Path, start: int, file: RemoteFile) -> None:
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    received = start
    with (
        part.open("ab" if start else "wb") as stream,
        bar(total or file.n_bytes, file.name, "B", initial=start) as progress,
    ):
        while chunk := response.read1(_CHUNK):
            stream.write(chunk)
            received += len(chunk)
            progress.update(len(chunk))
    if total is not None and received < total:
        raise ConnectionError(f"the connection ended after {received} of {total} bytes")


def _validator(response: http.client.HTTPResponse) -> str:
    """What tells two versions of a file apart; a weak ETag may not, and is not used."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _validator_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _resume_point(part: Path, url: str) -> tuple[int, str]:
    """(bytes that can be kept, validator of the version they are of)."""
    note = _validator_path(part)
    if not part.exists() or not note.exists():
        return 0, ""
    try:
        known_url, validator = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:
        return 0, ""
    return (part.stat().st_size, validator) if known_url == url and validator else (0, "")
