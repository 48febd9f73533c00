"""CIFAR-10 and CIFAR-100, from the official binary release (the other releases are pickles).

A record is one label byte (CIFAR-100: coarse, then fine) and 3 x 32 x 32 bytes, channels first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from eqadapt.datasets.raw_archive import Raw
from eqadapt.datasets.source import Batch, Checksum, Citation, Contents, RemoteFile, Source
from eqadapt.errors import UserError

SIZE = 32
_PIXELS = 3 * SIZE * SIZE
_PAGE = "https://www.cs.toronto.edu/~kriz"

# In the order of the official labels, which is also that of the alphabet.
CIFAR10_CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
# fmt: off
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle",
    "bottle", "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle",
    "caterpillar", "cattle", "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch",
    "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox",
    "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom",
    "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree",
    "plain", "plate", "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road",
    "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper", "snail", "snake",
    "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle",
    "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)
# fmt: on


def reader(
    splits: dict[str, list[str]], classes: tuple[str, ...], label_bytes: int
) -> Callable[[Raw], Contents]:
    """A reader of binary records.

    Args:
        splits: Split name -> its files, in order.
        classes: Class names in the order of the labels.
        label_bytes: Bytes before the pixels; the last of them is the label.
    """

    def read(raw: Raw) -> Contents:
        data = raw.read_members([name for files in splits.values() for name in files])
        records = {
            split: np.concatenate([_records(data[name], name, label_bytes) for name in files])
            for split, files in splits.items()
        }
        labels = {
            split: rows[:, label_bytes - 1].astype(np.int64) for split, rows in records.items()
        }
        if any(values.max() >= len(classes) for values in labels.values()):
            raise UserError("a label is out of range", where=raw.name, fix="download again")

        def batches() -> Iterator[Batch]:
            for split, rows in records.items():
                planes = rows[:, label_bytes:].reshape(-1, 3, SIZE, SIZE)
                yield split, np.arange(len(rows)), planes.transpose(0, 2, 3, 1)

        return Contents(classes, (SIZE, SIZE, 3), labels, batches)

    return read


def _records(data: bytes, name: str, label_bytes: int) -> np.ndarray:
    """uint8 (N, label_bytes + 3072)."""
    if not data or len(data) % (_PIXELS + label_bytes):
        raise UserError(f"{len(data)} bytes are no whole number of images", where=name)
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, _PIXELS + label_bytes)


def _source(
    number: int, md5: str, n_bytes: int, classes: tuple[str, ...], read: Callable[[Raw], Contents]
) -> Source:
    archive = f"cifar-{number}-binary.tar.gz"
    return Source(
        name=f"cifar{number}",
        title=f"CIFAR-{number}",
        version="binary version, 2009",
        homepage=f"{_PAGE}/cifar.html",
        licence="none stated; the authors ask to cite the report",
        citation=Citation(
            "krizhevsky2009learning",
            "@techreport{krizhevsky2009learning, author = {Krizhevsky, Alex}, "
            "title = {Learning Multiple Layers of Features from Tiny Images}, "
            "institution = {University of Toronto}, year = {2009}}",
        ),
        n_train=50_000,
        n_test=10_000,
        n_classes=number,
        classes=classes,
        size=SIZE,
        files=(
            RemoteFile(
                archive,
                (f"{_PAGE}/{archive}",),
                Checksum("md5", md5, f"{_PAGE}/cifar.html"),
                n_bytes,
            ),
        ),
        read=read,
        validation=5000,
    )


SOURCES = [
    _source(
        10,
        "c32a1d4ab5d03f1284b67883e8d87530",
        170_052_171,
        CIFAR10_CLASSES,
        reader(
            {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]},
            CIFAR10_CLASSES,
            label_bytes=1,
        ),
    ),
    _source(
        100,
        "03b5dce01913d631647c71ecec9e9cb8",
        168_513_733,
        CIFAR100_CLASSES,
        reader({"train": ["train.bin"], "test": ["test.bin"]}, CIFAR100_CLASSES, label_bytes=2),
    ),
]
