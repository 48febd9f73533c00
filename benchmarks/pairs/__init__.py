"""Comparisons with a peer; importing this package registers them all."""

from benchmarks.pairs import (
    canonicalize,
    escnn,
    inference,
    kept_memory,
    optc,
    orbit,
    parts,
    startup,
    training,
    ttach,
    warp,
)

__all__ = [
    "canonicalize",
    "escnn",
    "inference",
    "kept_memory",
    "optc",
    "orbit",
    "parts",
    "startup",
    "training",
    "ttach",
    "warp",
]
