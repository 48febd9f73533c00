"""What the machine can do at most, and how far each stage of adapted inference is from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.ours import adapted, default_scorer, operations, timm_backbone
from benchmarks.registry import Context, Measured, measure
from benchmarks.timing import Samples
from eqadapt.law import smooth_images


@dataclass(frozen=True)
class Machine:
    """The two ceilings, as measured.

    Attributes:
        bandwidth: Bytes read and written a second by a big copy.
        rate: Floating-point operations a second of a big matrix product in float32.
    """

    bandwidth: float
    rate: float


@measure("limits", "The machine's bandwidth and rate; share and limit of warp, scorer and backbone")
@torch.no_grad()
def limits(context: Context) -> Measured:
    """Rows for the two ceilings, then for the stages with the default C8 canonicalizer."""
    cuda, quick = context.device.type == "cuda", context.quick
    size = (1 << 20) if quick else (1 << 28) if cuda else (1 << 26)
    copied = _copy(context, size)
    bandwidth = 2 * 4 * size / copied.median
    side = 256 if quick else 8192 if cuda else 2048
    multiplied = _product(context, side)
    rate = 2 * side**3 / multiplied.median
    tf32 = " (tf32)" if cuda and torch.backends.cuda.matmul.allow_tf32 else ""
    for name, found, note in (
        (f"copy of {4 * size >> 20} MiB", copied, f"{bandwidth / 1e9:.1f} GB/s, read and written"),
        (f"product of {side} x {side}", multiplied, f"{rate / 1e9:.0f} GFLOP/s, float32{tf32}"),
    ):
        yield context.row(
            "limits_machine",
            name,
            our_seconds=found.median,
            our_iqr_seconds=found.iqr,
            repeats=len(found.seconds),
            note=note,
        )
    machine = Machine(bandwidth, rate)
    name, side = ("resnet_small", 32) if quick else ("resnet50", 224)
    for batch in context.pick((1, 16), (2,)):
        yield from _stages(context, machine, name, side, batch)


def _copy(context: Context, size: int) -> Samples:
    source = torch.rand(size, device=context.device)
    target = torch.empty_like(source)
    return context.compare({"ours": partial(target.copy_, source)})["ours"]


def _product(context: Context, side: int) -> Samples:
    matrix = torch.rand(side, side, device=context.device)
    return context.compare({"ours": partial(torch.mm, matrix, matrix)})["ours"]


def _stages(context: Context, machine: Machine, name: str, side: int, batch: int) -> Measured:
    backbone = timm_backbone(name, side, context.device)
    model = adapted(
        default_scorer(8, side, context.device, **context.default_options()), backbone
    ).eval()
    x = smooth_images(batch, side).to(context.device)
    # from 45 degrees on if there is one image only: at 0 it would only be copied
    chosen = (torch.arange(batch, device=context.device) + (batch == 1)) % 8
    scorer = model.scorer
    assert scorer is not None
    stages: dict[str, tuple[Callable[[], object], float, float]] = {
        "warp": (lambda: model.action.undo(x, chosen), 0.0, 2.0 * _bytes(x)),
        "scorer": (lambda: scorer(x), operations(scorer, x), _bytes(x) + _weights(scorer)),
        "backbone": (lambda: backbone(x), operations(backbone, x), _bytes(x) + _weights(backbone)),
    }
    found = context.compare({key: stage[0] for key, stage in stages.items()})
    total = sum(samples.median for samples in found.values())
    for key, (_, computed, moved) in stages.items():
        arithmetic, memory = computed / machine.rate, moved / machine.bandwidth
        ours = found[key]
        yield context.row(
            "limits_stage",
            f"{key}: {name}, C8, {side} px, batch {batch}",
            peer="limit",
            peer_seconds=max(arithmetic, memory),
            our_seconds=ours.median,
            ratio=max(arithmetic, memory) / ours.median,
            our_iqr_seconds=ours.iqr,
            our_peak_mb=ours.peak_mb,
            our_mmac=computed / 2e6 / batch,
            repeats=len(ours.seconds),
            note=f"{ours.median / total:.1%} of the whole; bound by "
            f"{'arithmetic' if arithmetic > memory else 'memory'}; the ratio is the share of the "
            "limit that is reached",
        )


def _bytes(x: Tensor) -> float:
    return float(x.numel() * x.element_size())


def _weights(module: torch.nn.Module) -> float:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(_bytes(tensor) for tensor in tensors)
