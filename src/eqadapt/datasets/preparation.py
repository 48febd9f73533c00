"""From the verified archive of a data set to its three splits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from eqadapt.datasets import image_tree, registry
from eqadapt.datasets.decode import RULE
from eqadapt.datasets.prepared import SPLITS, SplitWriter, write_splits
from eqadapt.datasets.raw import IMAGES, VERIFIED, layout_source, open_raw
from eqadapt.datasets.raw_archive import Raw
from eqadapt.datasets.source import Contents, Source
from eqadapt.datasets.stratify import stratified_sample, validation_size
from eqadapt.errors import UserError
from eqadapt.files import json_dumps, make_folder, sha256_file


@dataclass(frozen=True)
class Piece:
    """A split to write: which rows of which split of the source it takes.

    Args:
        split: Split of the source.
        rows: int64 (N,), positions in it, ascending.
    """

    split: str
    rows: np.ndarray


def prepare(
    dataset: str,
    raw_folder: Path,
    out: Path,
    *,
    validation: int | float | None = None,
    seed: int = 0,
    size: int | None = None,
) -> dict[str, int]:
    """Write ``{train,validation,test}.safetensors``; all three appear, or none.

    Args:
        dataset: Its name.
        raw_folder: ``data/raw/<dataset>``, verified.
        out: ``data/prepared/<preparation>``, named by ``variants.Preparation``.
        validation: Images to cut from the training set, a count or a fraction; None takes the data
            set's own default. The cut is stratified.
        seed: Picks which images are cut. The test set never depends on it.
        size: Side in pixels, for data sets whose images vary in size.

    Returns:
        Split -> number of images.

    Raises:
        UserError: The archive changed since it was verified; a class, a split or images are
            missing; an image cannot be decoded; there can be no folder ``out``, or no room in it.
    """
    _check_out(out)
    raw = open_raw(raw_folder, dataset, VERIFIED)
    source = registry.source_of(raw.record)
    if sha256_file(raw.path) != raw.record["sha256"]:
        raise UserError(
            f"{raw.name} changed since it was verified",
            where=str(raw_folder),
            fix=f"run eqadapt verify --dataset {dataset}",
        )
    contents = open_contents(raw, _size(source, size))
    pieces = _pieces(contents, validation, source, seed)
    _write(contents, pieces, out, _metadata(raw, source, contents, seed))
    return {split: len(piece.rows) for split, piece in pieces.items()}


def _check_out(out: Path) -> None:
    """A file in the way is found before the archive is read; no folder is made yet."""
    make_folder(next(path for path in (out, *out.absolute().parents) if os.path.lexists(path)))


def open_contents(raw: Raw, size: int | None = None) -> Contents:
    """The contents of an archive, checked against what its source publishes."""
    source, inside = registry.source_of(raw.record), layout_source(raw.record)
    if raw.record["layout"] == IMAGES or inside.read is None:
        contents = image_tree.read_tree(raw.members, inside, size, raw.name)
    else:
        contents = inside.read(raw)
    check_contents(contents, inside, raw.name)
    if inside is source or source.derivation is None:
        return contents
    return source.derivation.derive(contents)


def check_contents(contents: Contents, source: Source, where: str) -> None:
    """Compare with the published counts, classes and size.

    Raises:
        UserError: A split is empty, a class is missing from one, there is but one class, images
            are not square, or a count or size differs.
    """
    fix = "take the whole data set from its official source"
    published = {"train": source.n_train, "test": source.n_test}
    if source.n_classes not in (None, len(contents.classes)):
        raise UserError(
            f"{len(contents.classes)} classes, {source.n_classes} published", where=where, fix=fix
        )
    if len(contents.classes) < 2:
        raise UserError(
            f"there is but one class, {contents.classes[0]}",
            where=where,
            fix="a data set has two classes or more: put the images of each in a folder of its own",
        )
    if source.size and not source.resizes and contents.shape[:2] != (source.size, source.size):
        raise UserError(
            f"images of {contents.shape[0]} x {contents.shape[1]} pixels; {source.title} has "
            f"{source.size} x {source.size}",
            where=where,
            fix=fix,
        )
    if contents.shape[0] != contents.shape[1]:
        raise UserError(
            f"images of {contents.shape[0]} x {contents.shape[1]} pixels are not square, and "
            "turned by 90 degrees they have another form",
            where=where,
            fix="give a side to which they are cut and resized: --size, or `size` of the data set",
        )
    for split, labels in contents.labels.items():
        if len(labels) == 0:
            raise UserError(f"the {split} split is empty", where=where, fix=fix)
        expected = published.get(split)
        if expected is not None and len(labels) != expected:
            raise UserError(
                f"the {split} split has {len(labels)} images, {expected} published",
                where=where,
                fix=f"{fix}; to use a part of it as a data set of its own, give it another name "
                "with --folder",
            )
        if source.place is None:
            _check_classes(labels, split, contents.classes, where)


def _check_classes(labels: np.ndarray, split: str, classes: tuple[str, ...], where: str) -> None:
    counts = np.bincount(labels, minlength=len(classes))
    missing = [classes[label] for label in np.flatnonzero(counts == 0)]
    if missing:
        raise UserError(
            f"the {split} split has no image of {', '.join(missing[:10])}"
            f"{' ...' if len(missing) > 10 else ''} ({len(missing)} of {len(classes)} classes)",
            where=where,
            fix="every class needs images in every split (two in training, where validation is "
            "cut from it): add them, or remove the class",
        )


def _check_pairs(labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """A class with one image cannot be both in training and in the validation cut from it."""
    counts = np.bincount(labels, minlength=len(classes))
    single = [classes[label] for label in np.flatnonzero(counts == 1)]
    if single:
        raise UserError(
            f"the train split has one image only of {', '.join(single[:10])}"
            f"{' ...' if len(single) > 10 else ''} ({len(single)} of {len(classes)} classes)",
            where="before the validation split is cut",
            fix="each class needs two training images or more, since validation is cut from them: "
            "add images, or a validation split of your own (val/ beside test/)",
        )


def _size(source: Source, asked: int | None) -> int | None:
    if asked is None:
        return source.size if source.resizes else None
    if not source.resizes:
        raise UserError(
            f"the images of {source.title} have one size",
            where="--size",
            fix="leave --size out; a study sets the size that backbones see",
        )
    if asked < 1:
        raise UserError(f"{asked} pixels", where="--size", fix="give a positive number")
    return asked


def _pieces(
    contents: Contents, validation: int | float | None, source: Source, seed: int
) -> dict[str, Piece]:
    """The three splits; a validation split of the source's own is taken as it is."""
    whole = {split: np.arange(len(labels)) for split, labels in contents.labels.items()}
    if "validation" in whole:
        if validation is not None:
            raise UserError(
                "the data set has a validation split of its own",
                where="--validation",
                fix="leave --validation out, or remove the folder val",
            )
        return {split: Piece(split, whole[split]) for split in SPLITS}
    labels = contents.labels["train"]
    _check_pairs(labels, contents.classes)
    size = validation_size(source.validation if validation is None else validation, labels)
    cut = stratified_sample(labels, size, seed)
    kept = np.setdiff1d(whole["train"], cut)
    for split, rows in (("train", kept), ("validation", cut)):
        _check_classes(labels[rows], split, contents.classes, "after the validation split is cut")
    return {
        "train": Piece("train", kept),
        "validation": Piece("train", cut),
        "test": Piece("test", whole["test"]),
    }


def _metadata(raw: Raw, source: Source, contents: Contents, seed: int) -> dict[str, str]:
    """What all three splits say of themselves; nothing of this machine or of the time."""
    record = raw.record
    origin = {
        key: record[key]
        for key in ("kind", "file", "url", "mirror", "sha256", "checked_against", "generated_from")
    }
    preparation = {"seed": seed, **contents.notes}
    if raw.record["layout"] == IMAGES or layout_source(record).read is None:
        preparation["decoding"] = RULE
    # Names of the class folders say which of a larger data set's classes they are.
    folders = {"folders": json_dumps(list(source.folders), indent=None)} if source.folders else {}
    return {
        "dataset": source.name,
        "classes": json_dumps(list(contents.classes), indent=None),
        **folders,
        "source": json_dumps(origin, indent=None),
        "preparation": json_dumps(preparation, indent=None),
    }


def _write(
    contents: Contents, pieces: dict[str, Piece], out: Path, metadata: dict[str, str]
) -> None:
    tables = {
        split: (contents.labels[piece.split][piece.rows], contents.rows(piece.split)[piece.rows])
        for split, piece in pieces.items()
    }
    with write_splits(out, tables, contents.shape, metadata) as writers:
        _fill(contents, pieces, writers)


def _fill(contents: Contents, pieces: dict[str, Piece], writers: dict[str, SplitWriter]) -> None:
    for source_split, rows, images in contents.batches():
        for split, piece in pieces.items():
            if piece.split != source_split:
                continue
            target = np.searchsorted(piece.rows, rows)
            inside = target < len(piece.rows)
            inside[inside] = piece.rows[target[inside]] == rows[inside]
            writers[split].put(target[inside], images[inside])
