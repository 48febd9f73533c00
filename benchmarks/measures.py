"""All measures, in the order in which they run and stand in the file."""

from __future__ import annotations

from benchmarks import growth, limits, loader, pairs, quality, study, throughput
from benchmarks.registry import MEASURES

ORDER = (
    "canonicalize",
    "warp",
    "optc",
    "inference",
    "train_prior",
    "train_joint",
    "orbit",
    "parts",
    "ttach",
    "shared_views",
    "escnn",
    "startup",
    "study",
    "growth",
    "limits",
    "loader",
    "throughput",
    "quality",
    "kept_memory",
)
assert set(ORDER) == set(MEASURES)

__all__ = [
    "MEASURES",
    "ORDER",
    "growth",
    "limits",
    "loader",
    "pairs",
    "quality",
    "study",
    "throughput",
]
