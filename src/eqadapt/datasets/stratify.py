"""A fixed order of labelled rows in which every prefix is stratified.

Splits and limits are prefixes of it, so a smaller limit is part of a larger one. The order comes
from a hash, not from a random generator: no version of a library can change who is in which split.
"""

from __future__ import annotations

import hashlib

import numpy as np

from eqadapt.errors import UserError


def hashed_uniform(seed: int, rows: np.ndarray, purpose: str) -> np.ndarray:
    """A number in [0, 1) for each row, float64 (N,): SHA-256 of purpose, seed and row."""
    words = (
        hashlib.sha256(f"{purpose}:{seed}:{row}".encode()).digest()[:8] for row in rows.tolist()
    )
    # 53 bits: all that a float64 below 1 can hold.
    return np.array([(int.from_bytes(word) >> 11) / 2**53 for word in words], dtype=np.float64)


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """Positions 0..N-1, int64 (N,), such that every prefix has the classes in proportion.

    The first image of every class comes before the second of any, so that a prefix as long as
    there are classes has them all.

    Args:
        labels: int64 (N,).
        seed: Picks the order.
    """
    key = hashed_uniform(seed, np.arange(len(labels)), "stratified order")
    by_class = np.lexsort((key, labels))
    _, start, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    rank = np.arange(len(labels)) - np.repeat(start, count)
    share = np.where(rank == 0, 0.0, (rank + 0.5) / np.repeat(count, count))
    return by_class[np.lexsort((key[by_class], share))].astype(np.int64)


def stratified_sample(labels: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Sorted positions of a stratified sample of ``size``, int64 (size,)."""
    return np.sort(stratified_order(labels, seed)[:size])


def validation_size(asked: int | float, labels: np.ndarray) -> int:
    """Images to cut from the training set for validation.

    Args:
        asked: A count, or a fraction of the training images below 1.
        labels: int64 (N,), labels of the training set.

    Raises:
        UserError: A class would be missing from one of the two splits.
    """
    size = round(asked * len(labels)) if asked < 1 else int(asked)
    counts = np.unique(labels, return_counts=True)[1]
    if len(labels) < 2 * len(counts):
        raise UserError(
            f"{len(labels)} training images of {len(counts)} classes leave none for validation",
            where="--validation",
            fix="each class needs two training images or more: add images",
        )
    if size < len(counts) or size > len(labels) - len(counts):
        raise UserError(
            f"a validation split of {size} images does not leave every class in both splits",
            where="--validation",
            fix=f"choose {len(counts)} to {len(labels) - len(counts)} of the {len(labels)} "
            f"training images ({len(counts)} classes), or a fraction of them",
        )
    return size
