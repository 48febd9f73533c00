"""Turning each image of a batch by its own element of the group."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.peers import (
    peer_label,
    reference_canonicalizer,
    rounded_angles,
)
from benchmarks.registry import Context, Measured, largest_difference, measure
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.law import smooth_images


@measure("warp", "The warp alone, poses given, against the reference's padded rotation")
@torch.no_grad()
def warp(context: Context) -> Measured:
    """Rows for C8 at 32 and 224 pixels."""
    order = 8
    action = RotationAction(CyclicGroup(order))
    for side in context.pick((32, 224), (32,)):
        reference = reference_canonicalizer(order, side, context.device, fields=1, resize=16)
        for batch in context.pick((1, 16, 128), (8,)):
            x = smooth_images(batch, side).to(context.device)
            # One image: an element that needs resampling, or nothing would be compared.
            shift = 1 if batch == 1 else 0
            elements, _ = rounded_angles(order, batch, context.device)
            elements = (elements + shift) % order
            angles = elements.float() * (360.0 / order)
            reference.get_groupelement = lambda _x, angles=angles: {"rotation": angles}
            difference = largest_difference(
                action.undo(x, elements), reference(x), 1e-3, "turned images"
            )
            found = context.compare(
                {
                    "peer": partial(reference, x),
                    "ours": partial(action.undo, x, elements),
                },
                context.effort_for(batch),
            )
            yield context.pair(
                "warp",
                f"C{order}, {side} px, batch {batch}",
                peer_label("equiadapt"),
                found["peer"],
                found["ours"],
                packages=("equiadapt", "kornia"),
                outputs_max_difference=difference,
                floor=context.floor(10.0) if side == 224 else None,
                note="all elements equally often; ours is exact at multiples of 90 degrees"
                if batch > 1
                else "an image turned by 45 degrees",
            )
