"""Finished runs kept among a study's progress, so that a step done again trains only what is new.

Runs that share a job are outputs of one step: a seed more, or another way of sharing, makes it
another step, before which the workflow removes what the old one left. Kept copies survive that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eqadapt.files import atomic_path, sha256_file, write_json

_RECORD = "kept.json"


def keep(folder: Path, identity: Mapping[str, Any], files: Sequence[Path]) -> None:
    """Copy the files of a finished run; what was kept there before is replaced.

    Args:
        folder: Where to, one a run.
        identity: JSON-able, whatever decides what the files hold.
        files: With different names.
    """
    (folder / _RECORD).unlink(missing_ok=True)
    for file in files:
        _copy(file, folder / file.name)
    sums = {file.name: sha256_file(folder / file.name) for file in files}
    write_json(folder / _RECORD, {"identity": dict(identity), "files": sums})


def holds(folder: Path, identity: Mapping[str, Any], files: Sequence[Path]) -> bool:
    """Whether a finished run of that identity is kept there, each of its files whole."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        sums = {file.name: sha256_file(folder / file.name) for file in files}
    except (OSError, ValueError):
        return False
    same = json.loads(json.dumps(dict(identity))) == record.get("identity")
    return same and sums == record.get("files")


def give_back(folder: Path, files: Sequence[Path]) -> None:
    """Copy what is kept to where it was."""
    for file in files:
        _copy(folder / file.name, file)


def _copy(source: Path, target: Path) -> None:
    """Whole or not at all, and of today: older than what it is made from it would be made again."""
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
