"""How long the methods take on a running backbone, as a ratio to the backbone alone."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eqadapt.groups import RotationAction
from eqadapt.symmetrize import read_side
from eqadapt.test_time.bench import Bench
from eqadapt.test_time.live import LiveViews, Outputs
from eqadapt.test_time.methods import METHODS, TestTimeMethod, decide

CELL = ("dataset", "backbone", "group")
COLUMNS = (*CELL, "method", "batch", "milliseconds", "ratio", "device")


def measure(
    bench: Bench,
    outputs: Outputs,
    action: RotationAction,
    x: Tensor,
    methods: Sequence[tuple[TestTimeMethod, dict[str, Any], nn.Module | None]],
    repeats: int = 3,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Time each method on a batch, vanilla before and after it, and take the median ratio.

    Machines slow down and speed up; neighbours in time are compared, so that it does not matter.

    Args:
        bench: The cell, for evidence and gates.
        outputs: The backbone.
        action: The group's action.
        x: (N, C, H, H) a batch of inputs at the acting size.
        methods: Each with its hyper-parameters and the scorer of its canonicalizer, or None.
        repeats: Measurements of each, after one that is thrown away.
        seed: Of what was trained for the methods.

    Returns:
        For each method ``method``, ``batch``, ``milliseconds`` an image and ``ratio``.
    """
    rows = []
    seconds = functools.partial(_seconds, bench, outputs, action, x, seed)
    for method, parameters, scorer in methods:
        ratios, times = [], []
        for repeat in range(repeats + 1):
            before = seconds(METHODS["vanilla"], {}, None)
            taken = seconds(method, parameters, scorer)
            after = seconds(METHODS["vanilla"], {}, None)
            if repeat:
                ratios.append(2.0 * taken / (before + after))
                times.append(taken)
        rows.append(
            {
                "method": method.name,
                "batch": len(x),
                "milliseconds": round(1000 * statistics.median(times) / len(x), 4),
                "ratio": round(statistics.median(ratios), 3),
            }
        )
    return rows


def _seconds(
    bench: Bench,
    outputs: Outputs,
    action: RotationAction,
    x: Tensor,
    seed: int,
    method: TestTimeMethod,
    parameters: dict[str, Any],
    scorer: nn.Module | None,
) -> float:
    evidence = bench.evidence(method, parameters, seed)
    threshold = bench.threshold(method, parameters, seed)
    if x.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    scorer = scorer if method.prior else None
    views = LiveViews(outputs, action, x, evidence, scorer, read_side(outputs.backbone))
    decide(method, views, parameters, threshold=threshold, pose=0)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def random_poses(action: RotationAction, x: Tensor) -> Tensor:
    """The batch in random poses, the same at every call, so that gates do as in the average."""
    elements = np.random.default_rng(0).integers(0, action.group.order, len(x))
    return action.act(x, torch.from_numpy(elements))
