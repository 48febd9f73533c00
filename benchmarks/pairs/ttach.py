"""Averaging over the exact rotations: ttach's wrapper, and ours."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.ours import timm_backbone
from benchmarks.peers import load, peer_label
from benchmarks.registry import Context, Measured, largest_difference, measure
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.law import smooth_images
from eqadapt.symmetrize import Symmetrized


@measure("ttach", "The mean of the outputs over C4 against ttach's wrapper, same backbone")
@torch.no_grad()
def ttach(context: Context) -> Measured:
    """Rows for a small backbone at 32 pixels and ResNet-50 at 224."""
    library = load("ttach")
    settings = context.pick(
        (
            ("cifar_resnet20", 32, 1),
            ("cifar_resnet20", 32, 16),
            ("resnet50", 224, 1),
            ("resnet50", 224, 8),
        ),
        (("cifar_resnet20", 32, 2),),
    )
    for name, side, batch in settings:
        backbone = timm_backbone(name, side, context.device, classes=10)
        turns = library.Compose([library.Rotate90([0, 90, 180, 270])])
        wrapper = library.ClassificationTTAWrapper(backbone, turns, merge_mode="mean")
        model = Symmetrized(backbone, RotationAction(CyclicGroup(4)), "uniform").eval()
        x = smooth_images(batch, side).to(context.device)
        difference = largest_difference(model(x).logits, wrapper(x), 1e-3, "mean logits")
        found = context.compare({"peer": partial(wrapper, x), "ours": partial(model, x)})
        yield context.pair(
            "ttach",
            f"{name}, C4, {side} px, batch {batch}",
            peer_label("ttach"),
            found["peer"],
            found["ours"],
            packages=("ttach", "timm"),
            outputs_max_difference=difference,
            note="the same four passes of the backbone, in one batch instead of four",
        )
