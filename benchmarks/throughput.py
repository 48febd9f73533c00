"""Images a second at the size of CIFAR-10: fine-tuning, and evaluation over the orbit."""

from __future__ import annotations

import torch

from benchmarks.ours import adapted, timm_backbone
from benchmarks.pairs.orbit import evaluation
from benchmarks.pairs.training import joint_step, plain_step
from benchmarks.peers import settled, smooth_images
from benchmarks.registry import Context, Measured, measure
from benchmarks.timing import Samples
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.scorers import build_scorer

CANONICALIZERS = {
    "default": {"name": "paired_cnn"},
    "paired staged_cnn, 12 fields": {
        "name": "paired_cnn", "inner": "staged_cnn", "width": 12, "stages": 2, "resize": "sample",
    },
}  # fmt: skip
QUICK = {"tiny": {"name": "paired_cnn", "width": 2, "input_size": 33}}


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

    step = plain_step(timm_backbone(name, 32, device, classes=10), x, labels)
    found = context.compare({"ours": step})["ours"]
    yield _rate(context, f"training step, vanilla, {setting}", found, batch)
    for label, options in (QUICK if context.quick else CANONICALIZERS).items():
        torch.manual_seed(0)
        scorer = settled(build_scorer(group=group, in_channels=3, **options), x)
        backbone = timm_backbone(name, 32, device, classes=10)
        step = joint_step(adapted(scorer, backbone, exported=False), x, labels)
        found = context.compare({"ours": step})["ours"]
        yield _rate(context, f"training step, PRLC ({label}), {setting}", found, batch)
        model = adapted(scorer.eval(), backbone).eval()
        images = (x * 255).round().to(torch.uint8)
        run = evaluation(model, images, RotationAction(group), side, batch)
        with torch.no_grad():
            found = context.compare({"ours": run})["ours"]
        yield _rate(context, f"evaluation in 8 poses, PRLC ({label}), {setting}", found, batch)


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
