"""ImageNet-1k, which users bring themselves, Imagenette, its stand-in of ten easy classes, and a
sample of one image a class.
"""

from __future__ import annotations

import hashlib
import re

from eqadapt.datasets.source import Checksum, Citation, RemoteFile, Source

_IMAGENET = Citation(
    "russakovsky2015imagenet",
    "@article{russakovsky2015imagenet, author = {Russakovsky, Olga and Deng, Jia and Su, Hao and "
    "Krause, Jonathan and Satheesh, Sanjeev and Ma, Sean and Huang, Zhiheng and Karpathy, Andrej "
    "and Khosla, Aditya and Bernstein, Michael and Berg, Alexander C. and Fei-Fei, Li}, title = "
    "{{ImageNet} Large Scale Visual Recognition Challenge}, journal = {International Journal of "
    "Computer Vision}, volume = {115}, number = {3}, pages = {211--252}, year = {2015}}",
)
_IMAGENETTE_CLASSES = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}

# n01440764_tench.JPEG, in a folder of the release, or of its class
_SAMPLED = re.compile(r"(?:.*/)?(n\d{8})_[^/]*")


def sample_place(name: str) -> tuple[str, str] | None:
    """Split and class of an image of the sample, by its path; None: another file.

    There is one image a class, so that splits are of classes: tenths of them by the SHA-256 of
    their WordNet id, four to train on, one to validate, five to test.
    """
    found = _SAMPLED.fullmatch(name)
    if found is None:
        return None
    share = int(hashlib.sha256(found[1].encode()).hexdigest()[:8], 16) / 2**32
    return "train" if share < 0.4 else "validation" if share < 0.5 else "test", found[1]


_SAMPLE_COMMIT = "bc69043e2862758a1906c6a24a792bb28c6bb2ff"

SOURCES = [
    Source(
        name="imagenet1k",
        title="ImageNet-1k",
        version="ILSVRC 2012",
        homepage="https://www.image-net.org/",
        licence="ImageNet terms of access: non-commercial research",
        citation=_IMAGENET,
        n_train=1_281_167,
        n_test=50_000,
        n_classes=1000,
        size=224,
        resizes=True,
        validation=0.02,
        advice="accept ImageNet's terms, unpack it as train/WNID/*.JPEG and val/WNID/*.JPEG, and "
        "give that folder with --folder DIR",
    ),
    Source(
        name="imagenet1k_sample256",
        title="ImageNet-1k, one image a class",
        version=f"commit {_SAMPLE_COMMIT[:7]}",
        homepage="https://github.com/EliSchwartz/imagenet-sample-images",
        licence="images under ImageNet's terms (non-commercial research)",
        citation=_IMAGENET,
        n_train=391,
        n_test=500,
        n_classes=1000,
        size=224,
        resizes=True,
        place=sample_place,
        labels_of="imagenet1k",
        # An archive that is packed when it is asked for: no checksum is published.
        files=(
            RemoteFile(
                f"imagenet-sample-images-{_SAMPLE_COMMIT}.tar.gz",
                (
                    "https://github.com/EliSchwartz/imagenet-sample-images/archive/"
                    f"{_SAMPLE_COMMIT}.tar.gz",
                ),
            ),
        ),
    ),
    Source(
        name="imagenette",
        title="Imagenette",
        version="2 (December 2019), 320 px",
        homepage="https://github.com/fastai/imagenette",
        licence="Apache-2.0 (repository); images under ImageNet's terms",
        citation=Citation(
            "howard2019imagenette",
            "@misc{howard2019imagenette, author = {Howard, Jeremy}, title = {Imagenette}, "
            "year = {2019}, howpublished = {https://github.com/fastai/imagenette}}",
        ),
        n_train=9469,
        n_test=3925,
        n_classes=10,
        classes=tuple(_IMAGENETTE_CLASSES.values()),
        folders=tuple(_IMAGENETTE_CLASSES),
        size=224,
        resizes=True,
        files=(
            RemoteFile(
                "imagenette2-320.tgz",
                ("https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",),
                Checksum("md5", "3df6f0d01a2c9592104656642f5e78a3", "torchvision"),
                341_663_724,
            ),
        ),
    ),
]
