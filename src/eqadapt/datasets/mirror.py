"""A mirror: a folder of archives, for machines without a network.

It holds, for a data set, the official release under its official name, or a tree of image files
as ``<dataset>.tar.xz`` (``.tar.gz``, ``.tar``, ``.zip`` ...) or as the folder ``<dataset>``. The
checksum of such an archive is read from ``<archive>.sha256`` or from a note ``<dataset>.md`` beside
it.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from eqadapt.datasets.archives import ARCHIVE_SUFFIXES
from eqadapt.datasets.source import Checksum, Source
from eqadapt.errors import UserError

_SHA256 = re.compile(r"\b[0-9a-fA-F]{64}\b")


@dataclass(frozen=True)
class Found:
    """What a mirror has of a data set.

    Args:
        files: The official files, or the one archive or folder of image files.
        official: Whether they are the official release.
        checksum: Of the one archive, where a note beside it states it.
    """

    files: tuple[Path, ...]
    official: bool
    checksum: Checksum | None = None


def look_up(mirror: Path, source: Source) -> Found | None:
    """What the mirror has of a source; the official release goes before trees of images."""
    if not mirror.is_dir():
        raise UserError(
            f"the mirror is not a folder: {mirror}",
            where="--mirror or EQADAPT_MIRROR",
            fix="name an existing folder, or leave it out to download from the official source",
        )
    official = tuple(mirror / file.name for file in source.files)
    if official and all(path.is_file() for path in official):
        return Found(official, official=True)
    for suffix in ARCHIVE_SUFFIXES:
        archive = mirror / f"{source.name}{suffix}"
        if archive.is_file():
            return Found((archive,), official=False, checksum=noted_checksum(archive, source.name))
    tree = mirror / source.name
    return Found((tree,), official=False) if tree.is_dir() else None


def noted_checksum(archive: Path, dataset: str) -> Checksum | None:
    """The SHA-256 that the sidecar or the note beside an archive states for it.

    It counts if it is the only one in all lines that name this archive, or, where none does, in the
    whole text. Where there are several and none can be told to be this archive's, stderr says so.
    """
    for notes in (archive.with_name(f"{archive.name}.sha256"), archive.with_name(f"{dataset}.md")):
        if not notes.is_file():
            continue
        stated = _stated(notes.read_text(encoding="utf-8"), archive.name)
        if len(stated) == 1:
            return Checksum("sha256", stated.pop(), notes.name)
        if stated:
            print(
                f"{notes}: none of its SHA-256 can be told to be that of {archive.name}, which is "
                "not checked against it",
                file=sys.stderr,
            )
    return None


def _stated(text: str, name: str) -> set[str]:
    """Every SHA-256 that a text states of a file; of whichever, where no line names the file."""
    lines = [line for line in text.splitlines() if _SHA256.search(line)]
    this = re.compile(rf"(?<![\w.-]){re.escape(name)}(?![\w-]|\.\w)")
    naming = [line for line in lines if this.search(line)] or lines
    return {value.lower() for line in naming for value in _SHA256.findall(line)}
