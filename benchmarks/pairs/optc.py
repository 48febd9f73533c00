"""OptC, a plain network on all views: the reference's weights in our code, and our default form."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.ours import (
    adapted,
    as_trained,
    canonicalizer,
    default_scorer,
    mmac,
    near_ties,
)
from benchmarks.peers import (
    peer_label,
    reference_optimized,
    same_optimized,
)
from benchmarks.registry import Context, Measured, largest_difference, measure
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.law import smooth_images

FLOORS = {1: 5.0, 16: 3.0}


@measure("optc", "OptC's forward: the reference's default network, and ours")
def optc(context: Context) -> Measured:
    """Rows for C8, 32 and 224 pixels, with the same weights and of our default form."""
    sides, batches = context.pick((32, 224), (32,)), context.pick((1, 16, 128), (2,))
    yield from forward_rows(context, "optc", sides, batches)


@torch.no_grad()
def forward_rows(
    context: Context, name: str, sides: Sequence[int], batches: Sequence[int]
) -> Measured:
    """Rows of that name and of it with ``_default``."""
    order = 8
    action = RotationAction(CyclicGroup(order))
    for side in sides:
        torch.manual_seed(0)
        reference = reference_optimized(order, side, context.device)
        scores = as_trained(same_optimized(reference, order, context.device))
        ours = canonicalizer(scores, action)  # type: ignore[arg-type]
        scorer = default_scorer(order, side, context.device, "plain_cnn")
        default = adapted(scorer, torch.nn.Identity()).eval()
        for batch in batches:
            x = smooth_images(batch, side).to(context.device)
            theirs = reference.get_group_activations(x)
            difference = largest_difference(scores(x), theirs, 1e-3, "cosines of the views")
            found = context.compare(
                {
                    "peer": partial(reference, x),
                    "ours": partial(ours, x),
                    "default": partial(default.canonicalize, x),
                },
                context.effort_for(batch),
            )
            same_poses = (scores(x).argmax(1) == theirs.argmax(1)).float().mean()
            common = {
                "setting": f"C{order}, {side} px, batch {batch}",
                "peer": peer_label("equiadapt"),
                "theirs": found["peer"],
                "packages": ("equiadapt", "kornia"),
                "floor": context.floor(FLOORS[batch]) if batch in FLOORS else None,
                "peer_mmac": mmac(scores, x[:1]),
            }
            yield context.pair(
                name,
                ours=found["ours"],
                outputs_max_difference=difference,
                note=f"cosines compared; {float(same_poses):.0%} of the poses equal",
                our_mmac=common["peer_mmac"],
                **common,
            )
            ties = near_ties(default.scorer(x))  # type: ignore[misc]
            yield context.pair(
                f"{name}_default",
                ours=found["default"],
                note=f"another network, compared in quality; {ties:.0%} near-ties scored twice",
                our_mmac=mmac(default.scorer, x[:1]),  # type: ignore[arg-type]
                **common,
            )
