"""Labels of a part of ImageNet's classes as its networks tell them: places among all 1000."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
from pathlib import Path

import torch

from eqadapt.datasets.prepared import Prepared
from eqadapt.errors import UserError


@functools.cache
def imagenet_ids() -> tuple[str, ...]:
    """The 1000 WordNet ids in the order of ImageNet's labels, from timm's list of them.

    Importing timm would take seconds.
    """
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent / "data" / "_info" / "imagenet_synsets.txt"
    return tuple(path.read_text(encoding="utf-8").split())


def with_labels_of(data: Prepared, labels_of: str | None, where: str) -> Prepared:
    """A split whose labels are places among the classes of ImageNet.

    Args:
        data: Its classes, or the folders that they came in, are named by WordNet ids.
        labels_of: ``"imagenet1k"``; None: the split as it is.
        where: The data set's entry, for messages.

    Returns:
        The same images with labels 0 to 999, and with the 1000 ids for classes.

    Raises:
        UserError: A class is none of ImageNet's.
    """
    if labels_of is None:
        return data
    folders = json.loads(data.metadata.get("folders", "null")) or data.classes
    place = {wnid: label for label, wnid in enumerate(imagenet_ids())}
    strange = [folder for folder in folders if folder not in place]
    if strange:
        raise UserError(
            f"{len(strange)} of {len(folders)} classes are none of ImageNet's: "
            f"{', '.join(strange[:5])}{' ...' if len(strange) > 5 else ''}",
            where=f"{where}.labels_of",
            fix="name the class folders by WordNet ids of ImageNet-1k, such as n01440764; or leave "
            "labels_of out",
        )
    labels = torch.tensor([place[folder] for folder in folders])[data.labels]
    return dataclasses.replace(data, labels=labels, classes=imagenet_ids())
