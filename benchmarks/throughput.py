"""Images a second at the size of CIFAR-10: fine-tuning, and evaluation over the orbit."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.ours import adapted, timm_backbone
from benchmarks.pairs.orbit import evaluation
from benchmarks.pairs.training import joint_step, plain_step
from benchmarks.peers import settled
from benchmarks.registry import Context, Measured, measure
from benchmarks.timing import Samples
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.law import smooth_images
from eqadapt.scorers import build_scorer
from eqadapt.trained import classifiers_channels_last

CANONICALIZERS = {
    "default": {"name": "paired_cnn"},
    "paired staged_cnn, 12 fields": {
        "name": "paired_cnn", "inner": "staged_cnn", "width": 12, "stages": 2, "resize": "sample",
    },
}  # fmt: skip
QUICK = {"tiny": {"name": "paired_cnn", "width": 2}}


@measure("throughput", "Images a second at CIFAR-10's size: training and evaluation over the orbit")
def throughput(context: Context) -> Measured:
    """Rows for C8 around a CIFAR ResNet-20 whose images are turned at 96 pixels."""
    name, side, batch = ("resnet_small", 32, 4) if context.quick else ("cifar_resnet20", 96, 64)
    if context.device.type == "cuda" and not context.quick:
        batch = 512
    device, group = context.device, CyclicGroup(8)
    x = smooth_images(batch, side).to(device)
    labels = torch.arange(batch, device=device) % 10
    setting = f"{name}, C8, {side} px, batch {batch}"

    # of the backbone and of the canonicalizer: as config/cifar10_gpu.yaml and config/cifar10.yaml
    half = torch.bfloat16
    precisions: dict[str, tuple[torch.dtype | None, torch.dtype | None]] = {"": (None, None)}
    if device.type == "cuda":
        precisions[", bfloat16"] = (half, None)
        precisions[", bfloat16, the canonicalizer too"] = (half, half)

    for words, (lower, of_scorer) in precisions.items():
        if of_scorer is not None:
            continue  # it has no canonicalizer
        backbone = _in_layout(timm_backbone(name, 32, device, classes=10), lower)
        found = context.compare({"ours": plain_step(backbone, x, labels, lower)})["ours"]
        yield _rate(context, f"training step, vanilla, {setting}{words}", found, batch)
    for label, options in (QUICK if context.quick else CANONICALIZERS).items():
        for words, (lower, of_scorer) in precisions.items():
            torch.manual_seed(0)
            scorer = settled(build_scorer(group=group, in_channels=3, **options), x)
            scorer.training_dtype = of_scorer
            backbone = timm_backbone(name, 32, device, classes=10)
            model = _in_layout(adapted(scorer, backbone, exported=False), lower)
            found = context.compare({"ours": joint_step(model, x, labels, lower)})["ours"]
            yield _rate(context, f"training step, PRLC ({label}), {setting}{words}", found, batch)
        model.to(memory_format=torch.contiguous_format)  # evaluation is in float32
        model = adapted(scorer.eval(), backbone).eval()
        if device.type == "cpu":
            classifiers_channels_last(model)  # as studies predict
        images = (x * 255).round().to(torch.uint8)
        run = evaluation(model, images, RotationAction(group), side, batch)
        with torch.no_grad():
            found = context.compare({"ours": run})["ours"]
        yield _rate(context, f"evaluation in 8 poses, PRLC ({label}), {setting}", found, batch)


def _in_layout(model: Any, lower: torch.dtype | None) -> Any:
    """Channels last where it computes in lower precision, as the studies for a GPU train."""
    return model if lower is None else model.to(memory_format=torch.channels_last)


def _rate(context: Context, setting: str, found: Samples, images: int):
    return context.row(
        "throughput",
        setting,
        our_seconds=found.median,
        our_iqr_seconds=found.iqr,
        our_peak_mb=found.peak_mb,
        repeats=len(found.seconds),
        note=f"{images / found.median:.0f} images a second",
    )
