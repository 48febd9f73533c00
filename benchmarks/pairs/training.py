"""Training steps: the canonicalizer alone by its prior, and jointly with a backbone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.ours import adapted, default_scorer, timm_backbone
from benchmarks.peers import (
    EQUIADAPT,
    TINY,
    peer_label,
    reference_canonicalizer,
    same_network,
)
from benchmarks.registry import Context, Measured, largest_difference, measure
from benchmarks.rows import Row
from benchmarks.timing import Effort
from eqadapt.law import smooth_images
from eqadapt.losses import prior_loss

AT_MOST = 1.10
STEPS = Effort(rounds=15)  # of seconds each on a CPU, where a tenth is asked for


@measure("train_prior", "Training step of the canonicalizer alone, by its prior")
def train_prior(context: Context) -> Measured:
    """Rows for C8, batch 16 of 32 pixels: the same weights, and the default network."""
    order, side, batch = (4, 32, 2) if context.quick else (8, 32, 16)
    device = context.device
    torch.manual_seed(0)
    reference = reference_canonicalizer(order, side, device, **(TINY if context.quick else {}))
    same = same_network(reference, order, device)
    x = smooth_images(batch, side).to(device)
    with torch.no_grad():
        difference = largest_difference(
            same(x), reference.get_group_activations(x), 1e-5, "activations before training"
        )
    default = default_scorer(order, side, device, **context.default_options())
    found = context.compare(
        {
            "peer": _prior_step(reference, reference.get_group_activations, x),
            "same": _prior_step(same, same, x),
            "default": _prior_step(default, default, x),
        }
    )
    setting = f"C{order}, {side} px, batch {batch}"
    common: dict[str, Any] = {"packages": EQUIADAPT}
    yield context.pair(
        "train_prior_same_weights",
        setting,
        peer_label("equiadapt"),
        found["peer"],
        found["same"],
        outputs_max_difference=difference,
        note="activations compared in evaluation mode: both drop channels at random in training",
        **common,
    )
    yield context.pair(
        "train_prior_default",
        setting,
        peer_label("equiadapt"),
        found["peer"],
        found["default"],
        floor=context.floor(50.0),
        note="another network, compared in quality",
        **common,
    )


def _prior_step(module: nn.Module, scores: Callable[[Tensor], Tensor], x: Tensor):
    module.train()
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-4)
    target = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        prior_loss(scores(x), target).backward()
        optimizer.step()

    return step


@measure("train_joint", "Joint training step with ResNet-50 at 224 px against the backbone's own")
def train_joint(context: Context) -> Measured:
    """Rows for prlc with the default C8 canonicalizer."""
    yield joint_row(
        context,
        "train_joint",
        "ours adds the scorer, all views and the gradient through them",
    )


def joint_row(context: Context, name: str, note: str) -> Row:
    """The row of that name of the joint step."""
    model_name, side, batch = ("resnet_small", 32, 2) if context.quick else ("resnet50", 224, 16)
    if context.device.type == "cuda" and not context.quick:
        batch = 64
    device = context.device
    plain = timm_backbone(model_name, side, device)
    model = adapted(
        default_scorer(8, side, device, **context.default_options()),
        timm_backbone(model_name, side, device),
        False,
    )
    x = smooth_images(batch, side).to(device)
    labels = torch.arange(batch, device=device) % 1000
    found = context.compare(
        {"peer": plain_step(plain, x, labels), "ours": joint_step(model, x, labels)},
        context.long_effort(STEPS),
    )
    return context.pair(
        name,
        f"{model_name}, C8, {side} px, batch {batch}",
        "plain timm",
        found["peer"],
        found["ours"],
        packages=("timm",),
        floor=context.floor(1 / AT_MOST),
        note=f"floor: at most {AT_MOST:.2f}x the backbone's step; {note}",
    )


def plain_step(
    backbone: nn.Module, x: Tensor, labels: Tensor, lower: torch.dtype | None = None
) -> Callable[[], None]:
    """A step of fine-tuning by the task, in float32 or under autocast in ``lower``."""
    backbone.train()
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=1e-5, fused=x.is_cuda)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, lower, enabled=lower is not None):
            logits = backbone(x)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def joint_step(
    model: nn.Module, x: Tensor, labels: Tensor, lower: torch.dtype | None = None
) -> Callable[[], None]:
    """A step of fine-tuning by the task and the paper's prior, in float32 or ``lower``."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=x.is_cuda)
    identity = torch.zeros_like(labels)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, lower, enabled=lower is not None):
            output = model(x)
        loss = F.cross_entropy(output.logits.float(), labels)
        (loss + prior_loss(output.pose_logits, identity)).backward()
        optimizer.step()

    return step
