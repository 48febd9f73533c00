"""What a registered data set states about itself, and what its reader returns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from eqadapt.datasets.raw_archive import Raw


@dataclass(frozen=True)
class Checksum:
    """A published checksum of a file.

    Args:
        algorithm: ``"md5"``, ``"sha1"`` or ``"sha256"``: whichever was published.
        value: Lower-case hex digest.
        published_by: Who states it.
    """

    algorithm: Literal["md5", "sha1", "sha256"]
    value: str
    published_by: str


@dataclass(frozen=True)
class RemoteFile:
    """One file of an official release.

    Args:
        name: Its official name; also the name looked for in a mirror folder.
        urls: Official addresses, tried in this order.
        checksum: The published checksum, None where none was published.
        n_bytes: The published size, for the progress bar and error messages.
    """

    name: str
    urls: tuple[str, ...]
    checksum: Checksum | None = None
    n_bytes: int | None = None


@dataclass(frozen=True)
class Citation:
    """How to cite a data set.

    Args:
        key: The BibTeX key.
        bibtex: The whole entry.
    """

    key: str
    bibtex: str


# Split name, rows in that split (B,), images uint8 (B, H, W, C).
Batch = tuple[str, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Contents:
    """What a raw archive holds, known before any pixel is decoded.

    Args:
        classes: Class names; a label is a position in them.
        shape: (H, W, C) of every image.
        labels: Split name (``"train"``, ``"test"``, and ``"validation"`` where the source has
            one) -> int64 (N,).
        batches: Yields every image once as ``(split, rows, images)``, in any order; ``rows`` are
            positions in ``labels[split]``.
        index: Split name -> int64 (N,), each image's row in the source; by default its position.
        notes: How the images came about, where they are not the source's own (kept as metadata).
    """

    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    labels: dict[str, np.ndarray]
    batches: Callable[[], Iterator[Batch]]
    index: dict[str, np.ndarray] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def rows(self, split: str) -> np.ndarray:
        """Row in the source of each image of a split, int64 (N,)."""
        default = np.arange(len(self.labels[split]), dtype=np.int64)
        return self.index.get(split, default)


@dataclass(frozen=True)
class Derivation:
    """A data set that can be generated from another one.

    Args:
        base: Name of the other source.
        derive: Turns its contents into this data set's.
    """

    base: str
    derive: Callable[[Contents], Contents]


@dataclass(frozen=True)
class Source:
    """A registered data set.

    Args:
        name: The name used on the command line, in studies and in file names.
        title: The name used in reports.
        version: Which release.
        homepage: The official page.
        licence: Licence or terms, as the source states them.
        citation: The BibTeX entry.
        channels: 1 (grey) or 3 (RGB), of the prepared images.
        n_train: Published number of training images; None: anything goes (user's folders).
        n_test: Published number of test images.
        n_classes: Published number of classes.
        classes: Class names in the order of the labels; None: sorted names of the folders.
        folders: Names of the class folders in the same order, where they differ from ``classes``.
        size: Side of the prepared images in pixels; None: as the images are.
        resizes: Whether images vary in size and are brought to ``size`` (or ``--size``).
        files: The official release; empty where there is none to download.
        read: Reads the official release; None: it is a tree ``train/CLASS/*``, ``test/CLASS/*``.
        place: Of a tree that has no such folders: the split and the class of a file, by its path;
            None: no image of the data set. Its splits may lack classes.
        labels_of: The registered data set whose labels these are, if it is another one: who tells
            the classes of that one tells these.
        bundled: Gives the path of a file that an installed package carries.
        validation: Default size of the validation split: a count, or a fraction of the training
            images.
        derivation: How to generate the data set where its official release cannot be had.
        advice: What a user without the data should do, beyond the mirror setting.
    """

    name: str
    title: str
    version: str
    homepage: str
    licence: str
    citation: Citation
    channels: int = 3
    n_train: int | None = None
    n_test: int | None = None
    n_classes: int | None = None
    classes: tuple[str, ...] | None = None
    folders: tuple[str, ...] | None = None
    size: int | None = None
    resizes: bool = False
    files: tuple[RemoteFile, ...] = ()
    read: Callable[[Raw], Contents] | None = None
    place: Callable[[str], tuple[str, str] | None] | None = None
    labels_of: str | None = None
    bundled: Callable[[], Path] | None = None
    validation: int | float = 0.1
    derivation: Derivation | None = None
    advice: str | None = None

    @property
    def archive(self) -> str:
        """Name under which the official release lies in ``data/raw/<name>``, as one file."""
        return self.files[0].name if len(self.files) == 1 else f"{self.name}.tar"
