"""Canonicalization forward: the reference, its own weights in our code, and our default network."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.ours import adapted, as_trained, canonicalizer, default_scorer, mmac, near_ties
from benchmarks.peers import (
    EQUIADAPT,
    TINY,
    peer_label,
    reference_canonicalizer,
    same_network,
)
from benchmarks.registry import Context, Measured, largest_difference, measure
from benchmarks.timing import Effort
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.law import smooth_images
from eqadapt.parts import SequentialInParts
from eqadapt.precision import is_fast_in_bfloat16

SAME, DEFAULT = "canonicalize_same_weights", "canonicalize_default"
FASTER = (50.0, 20.0)  # the default network against the reference's: on a CPU, on a GPU


@measure("canonicalize", "Canonicalization forward, against the reference's default network")
@torch.no_grad()
def canonicalize(context: Context) -> Measured:
    """Rows for C4 and C8, 32 and 224 pixels, batches 1, 16 and 128."""
    for order in context.pick((4, 8), (4,)):
        for side in context.pick((32, 224), (32,)):
            yield from _side(context, order, side)


def _side(context: Context, order: int, side: int) -> Measured:
    torch.manual_seed(0)
    reference = reference_canonicalizer(
        order, side, context.device, **(TINY if context.quick else {})
    )
    action = RotationAction(CyclicGroup(order))
    scorer = same_network(reference, order, context.device)
    exported = as_trained(scorer)
    same = canonicalizer(exported, action)  # type: ignore[arg-type]
    scorer = default_scorer(order, side, context.device, **context.default_options())
    model = adapted(scorer, torch.nn.Identity()).eval()
    for batch in context.pick((1, 16, 128), (2,)):
        x = smooth_images(batch, side).to(context.device)
        difference, note = _proof(reference, exported, same, x)
        sides = {
            "peer": partial(reference, x),
            "same": partial(same, x),
            "default": partial(model.canonicalize, x),
        }
        if order == 8 and side == 32 and batch == 16 and is_fast_in_bfloat16(context.device):
            # an exported scorer computes in float32 whatever the context; its layers follow it
            layers = SequentialInParts(*exported)
            sides["bf16"] = partial(_in_bf16, canonicalizer(layers, action), x)
        found = context.compare(sides, None if batch < 128 else _effort(context))
        setting = f"C{order}, {side} px, batch {batch}"
        common = {"peer": peer_label("equiadapt"), "theirs": found["peer"], "packages": EQUIADAPT}
        costs = {"peer_mmac": mmac(reference, x[:1]), "our_mmac": mmac(exported, x[:1])}
        yield context.pair(
            SAME,
            setting,
            ours=found["same"],
            outputs_max_difference=difference,
            floor=context.floor(2.0, 4.0) if order == 8 else None,
            note=note,
            **common,
            **costs,
        )
        if "bf16" in found:
            changed = (exported(x).argmax(1) != _in_bf16(layers, x).argmax(1)).float().mean()
            yield context.pair(
                SAME,
                f"{setting}, bfloat16",
                ours=found["bf16"],
                note=f"ours in bfloat16 autocast; {float(changed):.0%} of the poses of random "
                "weights change, so no proof of equality",
                **common,
                **costs,
            )
        ties = near_ties(model.scorer(x))  # type: ignore[misc]
        yield context.pair(
            DEFAULT,
            setting,
            ours=found["default"],
            floor=context.floor(*FASTER) if order == 8 else None,
            note=f"another network, compared in quality; {ties:.0%} near-ties scored twice",
            peer_mmac=costs["peer_mmac"],
            our_mmac=mmac(model.scorer, x[:1]),  # type: ignore[arg-type]
            **common,
        )


def _effort(context: Context) -> Effort:
    """The reference takes a quarter of a minute for such a batch on two cores."""
    cpu = context.device.type == "cpu"
    return Effort(seconds=0.6, rounds=2) if cpu and not context.quick else context.effort


def _proof(reference, exported, same, x) -> tuple[float, str]:
    """The largest difference of the activations, and what becomes of the canonical images."""
    theirs, ours = reference.get_group_activations(x), exported(x)
    difference = largest_difference(ours, theirs, 1e-5, "activations of the reference's network")
    equal = theirs.argmax(dim=1) == ours.argmax(dim=1)
    images = (reference(x) - same(x))[equal].abs().max() if equal.any() else torch.zeros(())
    return difference, (
        f"activations compared; poses equal on {float(equal.float().mean()):.0%}, canonical "
        f"images then within {float(images):.1e}"
    )


def _in_bf16(function, x):
    with torch.autocast(x.device.type, torch.bfloat16):
        return function(x)
