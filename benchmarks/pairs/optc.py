"""OptC: a plain network on all views, the same weights on both sides."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.ours import as_trained, canonicalizer
from benchmarks.peers import (
    peer_label,
    reference_optimized,
    same_optimized,
    smooth_images,
)
from benchmarks.registry import Context, Measured, largest_difference, measure
from eqadapt.groups import CyclicGroup, RotationAction

FLOORS = {1: 5.0, 16: 3.0}


@measure("optc", "OptC's forward with the reference's default plain network, same weights")
@torch.no_grad()
def optc(context: Context) -> Measured:
    """Rows for C8, 32 and 224 pixels."""
    order = 8
    action = RotationAction(CyclicGroup(order))
    for side in context.pick((32, 224), (32,)):
        torch.manual_seed(0)
        reference = reference_optimized(order, side, context.device)
        scores = as_trained(same_optimized(reference, order, context.device))
        ours = canonicalizer(scores, action)  # type: ignore[arg-type]
        for batch in context.pick((1, 16, 128), (2,)):
            x = smooth_images(batch, side).to(context.device)
            theirs = reference.get_group_activations(x)
            difference = largest_difference(scores(x), theirs, 1e-3, "cosines of the views")
            found = context.compare(
                {"peer": partial(reference, x), "ours": partial(ours, x)},
                context.effort_for(batch),
            )
            same_poses = (scores(x).argmax(1) == theirs.argmax(1)).float().mean()
            yield context.pair(
                "optc",
                f"C{order}, {side} px, batch {batch}",
                peer_label("equiadapt"),
                found["peer"],
                found["ours"],
                packages=("equiadapt", "kornia"),
                outputs_max_difference=difference,
                floor=context.floor(FLOORS[batch]) if batch in FLOORS else None,
                note=f"cosines compared; {float(same_poses):.0%} of the poses equal",
            )
