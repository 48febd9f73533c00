"""Ways to be invariant to a product of groups, compared on one frozen backbone.

An image in any pose of a finite group has the same views, in another order, so the backbone's
outputs on the orbit of the upright image say what every method does in every pose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqadapt.evaluation import PassCounter
from eqadapt.evidence import build_evidence, log_softmax
from eqadapt.groups.exact_images import ExactAction
from eqadapt.groups.finite import FactoredGroup
from eqadapt.multi_group import FixedCanonical, FixedEnergy, MultiGroup, view_bytes
from eqadapt.test_time import METHODS, Views, decide
from eqadapt.test_time.live import LiveViews, Outputs
from eqadapt.test_time.rules import sum_over_views

# By the views' outputs alone, as for the cyclic groups; then those of a fixed energy.
OF_VIEWS = ("vanilla", "equitune", "equizero", "oracle")
OF_ENERGY = ("fixed_energy", "multi_group")
COLUMNS = (
    "dataset",
    "backbone",
    "group",
    "order",
    "method",
    "energy_seed",
    "passes",
    "index",
    "upright",
    "hits",
    "worst",
    "agrees",
    "difference",
)
_LOWEST = -30.0  # log-probabilities below this are the same nothing
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class OrbitTable:
    """What a frozen backbone and the energies say of every element's view of N upright images.

    Attributes:
        group: The group, of order K.
        logits: (N, K, C); ``[:, g]`` of the view ``g . x``.
        energies: By the factor whose orbit is averaged, and ``None`` for no factor, and seed:
            (N, K) energies of the views.
        order: (N, K) int64 places of an image's views in the order of their bytes, alike for views
            that are.
        label: (N,) int64.
        index: (N,) int64 row in the source split.
    """

    group: FactoredGroup
    logits: NDArray[np.float32]
    energies: dict[tuple[int | None, int], Floats]
    order: NDArray[np.int64]
    label: NDArray[np.int64]
    index: NDArray[np.int64]

    def views(self, pose: int) -> NDArray[np.float32]:
        """Logits (N, K, C) of the views ``k^-1 . (pose . x)``."""
        group = self.group
        seen = [group.compose(group.inverse(k), pose) for k in range(group.order)]
        return self.logits[:, seen]


@torch.inference_mode()
def orbit_table(
    backbone: nn.Module,
    group: FactoredGroup,
    batches: Iterator[Tensor],
    label: Tensor,
    index: Tensor,
    seeds: Sequence[int],
) -> OrbitTable:
    """One pass of the backbone for each image and element of the group.

    Args:
        backbone: Maps images (B, C, H, W) to logits.
        group: The group.
        batches: Upright images (B, C, H, W) float32 in [0, 1].
        label: (N,) int64.
        index: (N,) int64.
        seeds: Of the energies.
    """
    action = ExactAction(group)
    subgroups: dict[int | None, tuple[int, ...]] = {None: (0,), **dict(enumerate(group.factors))}
    energy: dict[tuple[int | None, int], FixedEnergy] = {}
    logits: list[NDArray[np.float32]] = []
    energies: dict[tuple[int | None, int], list[Floats]] = {}
    orders: list[NDArray[np.int64]] = []
    for x in batches:
        if not energy:
            energy = {
                (factor, seed): FixedEnergy(action, x.shape[1:], elements, seed).to(x.device)
                for factor, elements in subgroups.items()
                for seed in seeds
            }
        views = torch.stack([action.turn(x, g) for g in range(group.order)], dim=1)
        flat = views.flatten(0, 1)
        shape = (len(x), group.order)
        logits.append(backbone(flat).float().unflatten(0, shape).cpu().numpy())
        for key, of in energy.items():
            energies.setdefault(key, []).append(of(flat).unflatten(0, shape).cpu().numpy())
        orders += [_order(image) for image in views]
    joined = {key: np.concatenate(parts) for key, parts in energies.items()}
    return OrbitTable(
        group,
        np.concatenate(logits),
        joined,
        np.stack(orders),
        label.cpu().numpy(),
        index.cpu().numpy(),
    )


def _order(views: Tensor) -> NDArray[np.int64]:
    """Places (K,) of views (K, C, H, W) in the order of their bytes."""
    keys = [view_bytes(view) for view in views]
    places = {key: place for place, key in enumerate(sorted(set(keys)))}
    return np.array([places[key] for key in keys])


def of_views(table: OrbitTable, method: str, pose: int) -> Floats:
    """Log-probabilities (N, C) of a test-time method on the images in a pose."""
    entry, logits = METHODS[method], table.views(pose)
    scores = None
    if entry.evidence is not None:
        scores = build_evidence(entry.evidence).score(logits, logits)
    return decide(entry, Views(logits, scores), pose=pose).log_probabilities


def fixed_energy(table: OrbitTable, seed: int, pose: int) -> Floats:
    """Log-probabilities (N, C) of ``FixedCanonical`` on the images in a pose."""
    group = table.group
    best = _canonical(table, (None, seed), range(group.order), pose, table.order)
    return log_softmax(table.logits[np.arange(len(best)), best])


def multi_group(table: OrbitTable, seed: int, pose: int) -> Floats:
    """Log-probabilities (N, C) of ``MultiGroup`` on the images in a pose."""
    group, rows = table.group, np.arange(len(table.label))
    means = []
    for factor, elements in enumerate(group.factors):
        orbit = np.array([[group.compose(a, g) for a in elements] for g in range(group.order)])
        first = table.order[:, orbit].min(axis=2)  # of the copies that are averaged
        best = _canonical(table, (factor, seed), group.complement(factor), pose, first)
        logits = table.logits[rows[:, None], orbit[best]].astype(np.float64)
        means.append(sum_over_views(logits) / len(elements))
    return log_softmax(np.mean(means, axis=0))


def _canonical(
    table: OrbitTable,
    energy: tuple[int | None, int],
    elements: Sequence[int],
    pose: int,
    order: NDArray[np.int64],
) -> NDArray[np.int64]:
    """The element (N,) whose view is the canonical form under a subgroup of images in a pose.

    Of views with the same energy, the first of an order (N, K) of all views: ``fixed_pose``.
    """
    group = table.group
    seen = np.array([group.compose(group.inverse(b), pose) for b in elements])
    energies = table.energies[energy][:, seen]
    best = energies == energies.max(axis=1, keepdims=True)
    return seen[np.where(best, order[:, seen], group.order).argmin(axis=1)]


def outputs(table: OrbitTable, method: str, seed: int | None) -> Floats:
    """Log-probabilities (K, N, C) of a method in every pose of the group."""
    poses = range(table.group.order)
    if seed is None:
        return np.stack([of_views(table, method, pose) for pose in poses])
    run: Callable[[OrbitTable, int, int], Floats] = {
        "fixed_energy": fixed_energy,
        "multi_group": multi_group,
    }[method]
    return np.stack([run(table, seed, pose) for pose in poses])


def per_image(table: OrbitTable, found: Floats) -> dict[str, NDArray[Any]]:
    """What a method makes of each image: columns ``index`` to ``difference`` of ``COLUMNS``.

    ``hits`` counts the poses in which it is right, ``worst`` tells whether it is in all of them,
    ``agrees`` whether it predicts one class; ``difference`` is the largest difference of a
    log-probability between a pose and upright.
    """
    predictions = found.argmax(axis=2)
    right = predictions == table.label
    clipped = np.maximum(found, _LOWEST)
    return {
        "index": table.index.astype(np.int32),
        "upright": right[0],
        "hits": right.sum(axis=0).astype(np.int16),
        "worst": right.all(axis=0),
        "agrees": (predictions == predictions[0]).all(axis=0),
        "difference": np.abs(clipped - clipped[0]).max(axis=(0, 2)).astype(np.float32),
    }


@torch.inference_mode()
def live(
    backbone: Any, group: FactoredGroup, method: str, x: Tensor, pose: int = 0, seed: int = 0
) -> Floats:
    """Log-probabilities (B, C) of a method that runs the backbone itself, on inputs in a pose.

    Args:
        backbone: The frozen ``eqadapt.backbones.Backbone``.
        group: The group.
        method: One of ``OF_VIEWS`` or ``OF_ENERGY``.
        x: (B, C, H, W) inputs, as they come.
        pose: Their true pose, for the oracle alone.
        seed: Of the energies.
    """
    action = ExactAction(group)
    if method in OF_ENERGY:
        build = {"fixed_energy": FixedCanonical, "multi_group": MultiGroup}[method]
        model = build(backbone, action, x.shape[1:], seed=seed).to(x.device)
        return log_softmax(model(x).float().cpu().numpy())
    entry = METHODS[method]
    evidence = build_evidence(entry.evidence) if entry.evidence else None
    views = LiveViews(Outputs(backbone), cast(Any, action), x, evidence)
    return decide(entry, views, pose=pose).log_probabilities


def count_passes(backbone: Any, group: FactoredGroup, method: str, x: Tensor) -> float:
    """Passes of the backbone that an image takes, counted on a few images (B, C, H, W)."""
    with PassCounter(backbone) as counter:
        live(backbone, group, method, x)
    return counter.images / len(x)
