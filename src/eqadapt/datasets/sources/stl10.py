"""STL-10, from the official binary release; the unlabelled images are not read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from eqadapt.datasets.raw_archive import Raw
from eqadapt.datasets.source import Batch, Checksum, Citation, Contents, RemoteFile, Source
from eqadapt.errors import UserError

SIZE = 96
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def read(raw: Raw) -> Contents:
    """Pixels are stored channel by channel, each column by column; labels are 1 to 10."""
    data = raw.read_members(["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"])
    labels, images = {}, {}
    for split in ("train", "test"):
        values = np.frombuffer(data[f"{split}_y.bin"], dtype=np.uint8).astype(np.int64) - 1
        pixels = data[f"{split}_X.bin"]
        if len(pixels) != len(values) * 3 * SIZE * SIZE:
            raise UserError(
                f"{split} has {len(values)} labels for {len(pixels)} bytes of pixels",
                where=raw.name,
                fix="download again",
            )
        if values.size and not 0 <= values.min() <= values.max() < len(CLASSES):
            raise UserError("a label is out of range", where=raw.name, fix="download again")
        labels[split] = values
        images[split] = np.frombuffer(pixels, dtype=np.uint8).reshape(-1, 3, SIZE, SIZE)

    def batches() -> Iterator[Batch]:
        for split, planes in images.items():  # (N, C, W, H)
            yield split, np.arange(len(planes)), planes.transpose(0, 3, 2, 1)

    return Contents(CLASSES, (SIZE, SIZE, 3), labels, batches)


SOURCES = [
    Source(
        name="stl10",
        title="STL-10",
        version="binary version, 2011",
        homepage="https://cs.stanford.edu/~acoates/stl10/",
        licence="images from ImageNet, under its terms (non-commercial research)",
        citation=Citation(
            "coates2011analysis",
            "@inproceedings{coates2011analysis, author = {Coates, Adam and Ng, Andrew and Lee, "
            "Honglak}, title = {An analysis of single-layer networks in unsupervised feature "
            "learning}, booktitle = {International Conference on Artificial Intelligence and "
            "Statistics}, pages = {215--223}, year = {2011}}",
        ),
        n_train=5000,
        n_test=8000,
        n_classes=10,
        classes=CLASSES,
        size=SIZE,
        files=(
            RemoteFile(
                "stl10_binary.tar.gz",
                ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",),
                Checksum("md5", "91f7769df0f17e558f3565bffb0c7dfb", "torchvision"),
                2_640_397_119,
            ),
        ),
        read=read,
        validation=500,
    )
]
