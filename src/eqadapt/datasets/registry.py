"""The registered data sets: every module of ``eqadapt.datasets.sources`` that has ``SOURCES``.

A new data set is one such module.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import pkgutil
import re

from eqadapt.datasets import sources
from eqadapt.datasets.source import Source
from eqadapt.errors import UserError

# The reader of any tree of image files; also stands for every data set of the user's.
IMAGE_FOLDER = "image_folder"


@functools.cache
def all_sources() -> dict[str, Source]:
    """Name -> source, sorted by name."""
    found: list[Source] = []
    for module in pkgutil.iter_modules(sources.__path__):
        found += importlib.import_module(f"{sources.__name__}.{module.name}").SOURCES
    by_name = {source.name: source for source in sorted(found, key=lambda source: source.name)}
    assert len(by_name) == len(found), "two sources of one name"
    return by_name


def names() -> list[str]:
    """Names of the registered data sets."""
    return list(all_sources())


def get(name: str) -> Source:
    """The source of a name; a ``UserError`` lists the names there are."""
    if name in all_sources():
        return all_sources()[name]
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(
        f"unknown data set {name!r}",
        fix=f"{hint}registered: {', '.join(names())}; for images of your own, "
        "download --dataset NAME --folder DIR",
    )


def user_source(name: str) -> Source:
    """The source of a user's own tree of images, under a name of the user's."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise UserError(
            f"{name!r} cannot name a data set",
            where="--dataset",
            fix="use letters, digits and underscores: the name becomes part of file names",
        )
    return dataclasses.replace(get(IMAGE_FOLDER), name=name, title=name)


def source_of(record: dict[str, str]) -> Source:
    """The source that a record in ``data/raw/<dataset>`` was made from."""
    if record["source"] == IMAGE_FOLDER:
        return user_source(record["dataset"])
    return get(record["source"])
