"""The handwritten digits that scikit-learn carries: real data without a network.

1,797 grey images of 8 x 8 pixels with 17 levels (0..16), stored as 0..255. There is no official
split: 497 are the test set, by a fixed stratified order.
"""

from __future__ import annotations

import importlib.util
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eqadapt.datasets.raw_archive import Raw
from eqadapt.datasets.source import Batch, Checksum, Citation, Contents, RemoteFile, Source
from eqadapt.datasets.stratify import stratified_order
from eqadapt.errors import UserError

N_IMAGES, N_TEST, SIZE = 1797, 497, 8
_SPLIT_SEED = 0  # of the test set, which no option moves


def bundled_file() -> Path:
    """The file inside the installed scikit-learn, found without importing it."""
    spec = importlib.util.find_spec("sklearn")
    locations = (spec.submodule_search_locations if spec else None) or []
    for location in locations:
        path = Path(location, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return path
    raise UserError(
        "scikit-learn, which carries the digits, is not installed",
        where="data set digits",
        fix="install the locked environment (make)",
    )


def read(raw: Raw) -> Contents:
    """Rows of 64 pixel values and a label, as text."""
    try:
        text = zlib.decompress(raw.path.read_bytes(), wbits=31)
        table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.int64)
    except (zlib.error, ValueError) as error:
        raise UserError(
            f"the file is corrupt ({error})", where=raw.name, fix="download again"
        ) from error
    if table.shape != (N_IMAGES, SIZE * SIZE + 1) or table[:, :-1].max() > 16 or table.min() < 0:
        raise UserError(f"the table is not {N_IMAGES} digits", where=raw.name, fix="download again")
    pixels, labels = table[:, :-1], table[:, -1]
    images = ((pixels * 255 + 8) // 16).astype(np.uint8).reshape(-1, SIZE, SIZE, 1)
    order = stratified_order(labels, _SPLIT_SEED)
    index = {"test": np.sort(order[:N_TEST]), "train": np.sort(order[N_TEST:])}

    def batches() -> Iterator[Batch]:
        for split, rows in index.items():
            yield split, np.arange(len(rows)), images[rows]

    return Contents(
        classes=tuple("0123456789"),
        shape=(SIZE, SIZE, 1),
        labels={split: labels[rows] for split, rows in index.items()},
        batches=batches,
        index=index,
        notes={"split": f"no official split: {N_TEST} test images by a fixed stratified order"},
    )


SOURCES = [
    Source(
        name="digits",
        title="Digits",
        version="test part of the 1998 release, as in scikit-learn",
        homepage="https://archive.ics.uci.edu/dataset/80/",
        licence="CC BY 4.0 (UCI repository)",
        citation=Citation(
            "alpaydin1998digits",
            "@misc{alpaydin1998digits, author = {Alpaydin, E. and Kaynak, C.}, "
            "title = {Optical Recognition of Handwritten Digits}, year = {1998}, "
            "howpublished = {UCI Machine Learning Repository}, doi = {10.24432/C50P49}}",
        ),
        channels=1,
        n_train=N_IMAGES - N_TEST,
        n_test=N_TEST,
        n_classes=10,
        classes=tuple("0123456789"),
        size=SIZE,
        files=(
            RemoteFile(
                "digits.csv.gz",
                (),
                Checksum(
                    "sha256",
                    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
                    "the file list of the scikit-learn 1.9.1 wheel",
                ),
                57523,
            ),
        ),
        read=read,
        bundled=bundled_file,
        validation=200,
    )
]
