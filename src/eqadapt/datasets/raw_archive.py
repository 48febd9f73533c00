"""A data set as it came: one archive in ``data/raw/<dataset>``, or a manifest of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eqadapt.datasets import manifest
from eqadapt.datasets.archives import Member, members
from eqadapt.errors import UserError

# The one place that names a folder of the user's, kept out of the records.
FOLDER_PATH = "folder.path"


@dataclass(frozen=True)
class Raw:
    """The archive of a data set, with its record.

    Args:
        folder: ``data/raw/<dataset>``.
        record: The contents of ``source.json``, or of ``verified.json``, which has all of it.
    """

    folder: Path
    record: dict[str, Any]

    @property
    def path(self) -> Path:
        """The archive."""
        return self.folder / self.record["file"]

    @property
    def name(self) -> str:
        """The archive's name, for errors."""
        return self.record["file"]

    @property
    def is_manifest(self) -> bool:
        """Whether the archive is a manifest of a folder that stays where it is."""
        return self.name.endswith(manifest.SUFFIX)

    @property
    def user_folder(self) -> Path:
        """The folder that a manifest is of."""
        note = self.folder / FOLDER_PATH
        if not note.is_file():
            raise UserError(
                "the place of the folder is not known here",
                where=self.name,
                fix="download again with --folder",
            )
        return Path(note.read_text(encoding="utf-8").strip())

    def members(self) -> Iterator[Member]:
        """The files inside, in their order in the archive."""
        if self.is_manifest:
            return manifest.manifest_members(self.path, self.user_folder)
        return members(self.path)

    def read_members(self, wanted: list[str]) -> dict[str, bytes]:
        """File name (without folders) -> bytes of the wanted members.

        Raises:
            UserError: One is not in the archive.
        """
        found: dict[str, bytes] = {}
        for member in self.members():
            base = member.name.rsplit("/", 1)[-1]
            if base in wanted and base not in found:
                found[base] = member.read()
            if len(found) == len(wanted):
                break
        missing = [name for name in wanted if name not in found]
        if missing:
            raise UserError(
                f"the archive lacks {', '.join(missing)}",
                where=self.name,
                fix="remove it and download again",
            )
        return found
