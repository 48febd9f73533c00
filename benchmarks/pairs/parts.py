"""Networks evaluated a few images at a time against the same networks on the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
from torch import Tensor

from benchmarks.ours import as_trained, default_scorer, timm_backbone
from benchmarks.registry import Context, Measured, largest_difference, measure
from eqadapt import parts
from eqadapt.allocator import freed_memory_is_kept
from eqadapt.backbones import Backbone, build_network
from eqadapt.groups import CyclicGroup
from eqadapt.law import smooth_images
from eqadapt.scorers import build_scorer

Network = Callable[[Tensor], Tensor]


@measure("parts", "Evaluation on a CPU a few images at a time against whole batches, same network")
def in_parts(context: Context) -> Measured:
    """Rows for two backbones, the default canonicalizer's network and OptC's."""
    if context.device.type != "cpu":
        context.note("parts: batches are left whole on a GPU")
        return
    yield from part_rows(context, "parts")


@torch.no_grad()
def part_rows(context: Context, name: str) -> Measured:
    """Rows of that name, for a processor."""
    mebibytes = parts.LARGER_WHERE_KEPT if freed_memory_is_kept() else 1
    for label, network, side, batch in _networks(context):
        x = smooth_images(batch, side)
        whole = partial(_whole, network)
        difference = largest_difference(network(x), whole(x), 1e-5, "outputs in parts")
        found = context.compare({"peer": partial(whole, x), "ours": partial(network, x)})
        yield context.pair(
            name,
            f"{label}, {side} px, batch {batch}",
            "whole batch",
            found["peer"],
            found["ours"],
            outputs_max_difference=difference,
            note=f"parts of {mebibytes} MiB of input a thread; 4 images, or one in all its views, "
            "at least",
        )


def _networks(context: Context) -> Iterator[tuple[str, Network, int, int]]:
    device = context.device
    if context.quick:
        yield "ResNet-20", _cifar_backbone(), 32, 65
        return
    yield "ResNet-50", timm_backbone("resnet50", 224, device).forward, 224, 16
    yield "ResNet-20", _cifar_backbone(), 32, 256
    default = as_trained(default_scorer(8, 224, device))
    yield "default C8 canonicalizer's network", default, 224, 16
    yield "default C8 canonicalizer's network", default, 224, 128
    for form, side in (("corrected", 96), ("reference", 224)):
        torch.manual_seed(0)
        scorer = build_scorer("plain_cnn", CyclicGroup(8), 3, form=form)
        optc = as_trained(scorer)
        yield f"OptC's network, {form} form, C8", optc, side, 128


def _cifar_backbone() -> Network:
    torch.manual_seed(0)
    return Backbone(build_network("cifar_resnet20", 10, 3), 32, [0.5] * 3, [0.5] * 3).eval()


def _whole(network: Network, x: Tensor) -> Tensor:
    with mock.patch.object(parts, "images_at_once", lambda *_: 10**9):
        return network(x)
