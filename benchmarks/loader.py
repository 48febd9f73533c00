"""Nobody waits for data: the share of a step spent on indexing the batch and augmenting it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ours import adapted, default_scorer, timm_backbone
from benchmarks.registry import Context, Measured, measure
from eqadapt.groups import RotationAction
from eqadapt.losses import prior_loss
from eqadapt.tasks.classification import ImagePipeline


@measure("loader", "Share of a training step and of evaluation spent on getting the batch")
def loader(context: Context) -> Measured:
    """Rows for joint steps, a step of the prior alone, and evaluation."""
    settings = context.pick(
        (
            ("joint, resnet_small, 32 px, batch 64", "resnet_small", 32, 32, 64),
            ("joint, resnet50, 224 px, batch 16", "resnet50", 96, 224, 16),
            ("prior alone, 32 to 96 px, batch 128", "", 32, 96, 128),
        ),
        (("joint, resnet_small, 32 px, batch 4", "resnet_small", 32, 32, 4),),
    )
    for setting, name, stored, side, batch in settings:
        generator = torch.Generator().manual_seed(0)
        shape = (4 * batch, 3, stored, stored)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        images = images.to(context.device)
        labels = torch.arange(len(images), device=context.device) % 10
        pipeline = ImagePipeline(side, crop_padding=2, flip=True)
        scorer = default_scorer(8, side, context.device, **context.default_options())
        batches = _Batches(images, labels, pipeline, scorer, batch)
        if name:
            backbone = timm_backbone(name, side, context.device, classes=10)
            model = adapted(scorer, backbone, exported=False)
        else:
            model = scorer
        step = _step(model, batches, bool(name))
        found = context.compare({"step": step, "batch": batches.draw})
        yield _share(context, setting, found["step"], found["batch"], "a training step")
    yield _evaluation(context)


class _Batches:
    """Batches as the trainer draws them: rows of bytes on the device, augmented there."""

    def __init__(self, images, labels, pipeline, scorer, batch) -> None:
        self.images, self.labels, self.pipeline, self.batch = images, labels, pipeline, batch
        self.action = RotationAction(scorer.group)

    def draw(self) -> tuple[Tensor, Tensor]:
        rows = torch.randint(0, len(self.images), (self.batch,), device=self.images.device)
        x, _ = self.pipeline.augmented(self.images[rows])
        return self.action.masked(x), self.labels[rows]


def _step(model: nn.Module, batches: _Batches, joint: bool):
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step() -> None:
        x, labels = batches.draw()
        optimizer.zero_grad(set_to_none=True)
        identity = torch.zeros_like(labels)
        if joint:
            output = model(x)
            task = F.cross_entropy(output.logits, labels)
            loss = task + prior_loss(output.pose_logits, identity)
        else:
            loss = prior_loss(model(x), identity)
        loss.backward()
        optimizer.step()

    return step


@torch.no_grad()
def _evaluation(context: Context):
    side, batch = (32, 4) if context.quick else (224, 16)
    name = "resnet_small" if context.quick else "resnet50"
    backbone = timm_backbone(name, side, context.device, classes=10)
    model = adapted(
        default_scorer(8, side, context.device, **context.default_options()), backbone
    ).eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4 * batch, 3, 96, 96), dtype=torch.uint8, generator=generator)
    images = images.to(context.device)
    pipeline = ImagePipeline(side)

    def get() -> Tensor:
        return pipeline.to_act_size(images[:batch])

    found = context.compare({"step": lambda: model(get()), "batch": get})
    setting = f"evaluation, {name}, {side} px, batch {batch}"
    return _share(context, setting, found["step"], found["batch"], "evaluation of a batch")


def _share(context: Context, setting: str, whole, part, what: str):
    return context.row(
        "loader",
        setting,
        peer="the whole step",
        peer_seconds=whole.median,
        our_seconds=part.median,
        ratio=whole.median / part.median,
        repeats=len(part.seconds),
        note=f"{part.median / whole.median:.1%} of {what} goes into the batch itself",
    )
