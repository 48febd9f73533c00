"""MNIST, from the four official IDX files, kept as one archive."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from eqadapt.datasets.raw_archive import Raw
from eqadapt.datasets.source import Batch, Checksum, Citation, Contents, RemoteFile, Source
from eqadapt.errors import UserError

SIZE = 28
# The author's own page often refuses to serve the files; the first is the copy torchvision uses.
_PAGES = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
_FILES = {
    "train-images-idx3-ubyte.gz": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
    "train-labels-idx1-ubyte.gz": ("d53e105ee54ea40749a09fcbcd1e9432", 28_881),
    "t10k-images-idx3-ubyte.gz": ("9fb629c4189551a2d022fa330f9573f3", 1_648_877),
    "t10k-labels-idx1-ubyte.gz": ("ec29112dd5afa0611ce80d1b7f02629c", 4_542),
}


def parse_idx(data: bytes, where: str) -> np.ndarray:
    """The uint8 array of a gzipped IDX file.

    Raises:
        UserError: It is not such a file, or shorter or longer than its header says.
    """
    try:
        plain = gzip.decompress(data)
        zeros, kind, rank = struct.unpack_from(">HBB", plain)
        shape = struct.unpack_from(f">{rank}I", plain, 4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise UserError(
            f"the IDX file is corrupt ({error})", where=where, fix="download again"
        ) from error
    body = np.frombuffer(plain, dtype=np.uint8, offset=4 + 4 * rank)
    if zeros != 0 or kind != 8 or body.size != np.prod(shape, dtype=np.int64):
        raise UserError(
            f"the IDX header says type {kind}, shape {shape}; there are {body.size} bytes",
            where=where,
            fix="download again",
        )
    return body.reshape(shape)


def read(raw: Raw) -> Contents:
    """Images and labels of both splits."""
    data = raw.read_members(list(_FILES))
    arrays = [parse_idx(data[name], name) for name in _FILES]
    images = {"train": arrays[0], "test": arrays[2]}
    labels = {"train": arrays[1].astype(np.int64), "test": arrays[3].astype(np.int64)}
    for split in images:
        if images[split].shape != (len(labels[split]), SIZE, SIZE):
            raise UserError(
                f"{split} has {len(labels[split])} labels for images {images[split].shape}",
                where=raw.name,
                fix="download again",
            )

    def batches() -> Iterator[Batch]:
        for split, pixels in images.items():
            yield split, np.arange(len(pixels)), pixels[..., None]

    return Contents(tuple("0123456789"), (SIZE, SIZE, 1), labels, batches)


SOURCES = [
    Source(
        name="mnist",
        title="MNIST",
        version="1998",
        homepage="http://yann.lecun.com/exdb/mnist/",
        licence="none stated by the authors; often given as CC BY-SA 3.0",
        citation=Citation(
            "lecun1998gradient",
            "@article{lecun1998gradient, author = {LeCun, Yann and Bottou, L\\'eon and Bengio, "
            "Yoshua and Haffner, Patrick}, title = {Gradient-based learning applied to document "
            "recognition}, journal = {Proceedings of the IEEE}, volume = {86}, number = {11}, "
            "pages = {2278--2324}, year = {1998}}",
        ),
        channels=1,
        n_train=60_000,
        n_test=10_000,
        n_classes=10,
        classes=tuple("0123456789"),
        size=SIZE,
        files=tuple(
            RemoteFile(
                name, tuple(page + name for page in _PAGES), Checksum("md5", md5, "torchvision"), n
            )
            for name, (md5, n) in _FILES.items()
        ),
        read=read,
        validation=5000,
    )
]
