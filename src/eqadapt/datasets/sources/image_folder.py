"""Any tree of images of the user's: ``train/CLASS/*`` and ``test/CLASS/*`` or ``val/CLASS/*``."""

from __future__ import annotations

from eqadapt.datasets.source import Citation, Source

SOURCES = [
    Source(
        name="image_folder",
        title="images of your own",
        version="as given",
        homepage="",
        licence="as its owner states",
        citation=Citation("", ""),
        resizes=True,
        advice="give the folder of the images with --folder DIR",
    )
]
