"""Evaluation over the orbit: each image in each pose, duplicates found by their bytes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from benchmarks.ours import adapted, default_scorer, timm_backbone
from benchmarks.peers import (
    EQUIADAPT,
    TINY,
    load,
    peer_label,
    reference_canonicalizer,
)
from benchmarks.registry import Context, Measured, NotComparable, measure
from benchmarks.timing import Effort
from eqadapt.evaluation import PassCounter, predict_orbit
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.law import smooth_images
from eqadapt.methods import get_method
from eqadapt.symmetrize import Symmetrized
from eqadapt.tasks.classification import ImagePipeline

AGREE = 0.99  # other batches round otherwise, and untrained networks have near-ties
BATCHES = 4


@measure("orbit", "Evaluation over the C8 orbit against eight passes of a loop, same backbone")
@torch.no_grad()
def orbit(context: Context) -> Measured:
    """Rows against the loop with our canonicalizer, and with the reference's."""
    cuda = context.device.type == "cuda"
    name, side, batch = ("resnet_small", 32, 1) if context.quick else ("resnet50", 224, 4)
    batch = 64 if cuda and not context.quick else batch
    count = batch * BATCHES
    order = 8
    backbone = timm_backbone(name, side, context.device)
    model = adapted(
        default_scorer(order, side, context.device, **context.default_options()), backbone
    ).eval()
    images = (smooth_images(count, side) * 255).round().to(torch.uint8).to(context.device)
    poses = RotationAction(CyclicGroup(order))
    evaluate = evaluation(model, images, poses, side, batch)
    loop = _loop(lambda x: model(x).logits, images, poses, batch)

    agree, passes = _compared("orbit", backbone, evaluate, loop, count)
    found = context.compare({"peer": loop, "ours": evaluate})
    setting = f"{name}, C8, {side} px, {count} images"
    yield context.pair(
        "orbit",
        f"{setting}, our canonicalizer in the loop",
        "a loop over poses",
        found["peer"],
        found["ours"],
        packages=("timm",),
        floor=context.floor(3.0),
        note=f"{agree:.1%} of the predictions agree; {passes}; duplicates compared by bytes",
    )
    reference = reference_canonicalizer(
        order, side, context.device, **(TINY if context.quick else {})
    )
    found = context.compare(
        {
            "peer": _loop(lambda x: backbone(reference(x)), images, poses, batch),
            "ours": evaluate,
        },
        context.effort if context.quick or cuda else Effort(rounds=2),
    )
    yield context.pair(
        "orbit",
        f"{setting}, the reference's canonicalizer in the loop",
        peer_label("equiadapt"),
        found["peer"],
        found["ours"],
        packages=(*EQUIADAPT, "timm"),
        floor=context.floor(3.0),
        note=f"another canonicalizer, compared in quality; {passes}",
    )


@measure("shared_views", "Evaluation of the mean over C4 in C4's poses against ttach in a loop")
@torch.no_grad()
def shared_views(context: Context) -> Measured:
    """Rows for a small backbone at 32 pixels and ResNet-50 at 224."""
    library = load("ttach")
    cuda = context.device.type == "cuda"
    settings = context.pick(
        (("cifar_resnet20", 32, 64), ("resnet50", 224, 64 if cuda else 4)),
        (("cifar_resnet20", 32, 2),),
    )
    for name, side, batch in settings:
        backbone = timm_backbone(name, side, context.device, classes=10)
        poses, count = RotationAction(CyclicGroup(4)), batch * BATCHES
        turns = library.Compose([library.Rotate90([0, 90, 180, 270])])
        wrapper = library.ClassificationTTAWrapper(backbone, turns, merge_mode="mean")
        model = Symmetrized(backbone, poses, "uniform").eval()
        images = (smooth_images(count, side) * 255).round().to(torch.uint8).to(context.device)
        evaluate = evaluation(model, images, poses, side, batch, "equitune")
        loop = _loop(wrapper, images, poses, batch)
        agree, passes = _compared("shared views", backbone, evaluate, loop, count)
        found = context.compare({"peer": loop, "ours": evaluate})
        yield context.pair(
            "shared_views",
            f"{name}, C4, {side} px, {count} images",
            peer_label("ttach"),
            found["peer"],
            found["ours"],
            packages=("ttach", "timm"),
            note=f"{agree:.1%} of the predictions agree; {passes}; views compared by bytes",
        )


def evaluation(
    model,
    images: Tensor,
    poses: RotationAction,
    side: int,
    batch: int,
    name: str = "prlc_rotated",
):
    """Every image in every pose, as studies predict them."""
    labels = torch.zeros(len(images), dtype=torch.long, device=images.device)
    index = torch.arange(len(images), device=images.device)
    pipeline = ImagePipeline(side)
    method = get_method(name)

    def evaluate():
        return predict_orbit(model, method, images, labels, index, pipeline, poses, batch)

    return evaluate


def _loop(predict, images: Tensor, poses: RotationAction, batch: int):
    def run() -> list[Tensor]:
        found = []
        for part in images.split(batch):
            x = part.float() / 255.0
            for pose in range(poses.group.order):
                found.append(predict(poses.posed(x, pose)).argmax(dim=1))
        return found

    return run


def _compared(what: str, backbone, evaluate, loop, count: int) -> tuple[float, str]:
    """The share of predictions that agree with the loop's, and what is said of the passes.

    Raises:
        NotComparable: Too few agree.
    """
    shared, passed = _counted(backbone, evaluate)
    plain, passed_by_loop = _counted(backbone, loop)
    agree = float(np.mean(shared.prediction == torch.cat(plain).cpu().numpy()))
    if agree < AGREE:
        raise NotComparable(f"{what}: only {agree:.1%} of the predictions agree with the loop's")
    passes = f"{passed / count:.2f} backbone passes an image, counted, against"
    return agree, f"{passes} {passed_by_loop // count}"


def _counted(backbone, run):
    with PassCounter(backbone) as counter:
        result = run()
    return result, counter.images
