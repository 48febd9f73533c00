"""The reference implementation as a peer: built as its example does, its weights copied to ours.

``equiadapt`` and what it needs are optional (extra ``benchmarks``); without it the pairs are left
out with a message.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.registry import NotAvailable, NotComparable
from eqadapt.groups import CyclicGroup
from eqadapt.scorers import build_scorer
from eqadapt.scorers.base import PoseScorer
from eqadapt.scorers.layers import FieldNorm, RegularConv

EQUIADAPT = ("equiadapt", "e2cnn", "kornia")  # whose versions stand in the rows
CROP, RESIZE = 0.8, 96  # of its classification example
FIELDS, KERNEL, LAYERS = 32, 5, 3
TINY = {"fields": 4, "resize": 32}  # for quick runs


def load(module: str) -> Any:
    """A module of a peer.

    Raises:
        NotAvailable: It is not installed; the message says what to do.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise NotAvailable(
            f"{module.partition('.')[0]} cannot be imported ({error}): "
            "install requirements-benchmarks.lock, as `make bench` does"
        ) from error


def peer_label(package: str) -> str:
    """``"equiadapt 0.1.2"``."""
    return f"{package} {importlib.metadata.version(package)}"


def _hyperparameters(order: int, resize: int) -> Any:
    return load("omegaconf").DictConfig(
        {
            "input_crop_ratio": CROP,
            "resize_shape": resize,
            "beta": 1.0,
            "group_type": "rotation",
            "num_rotations": order,
            "artifact_err_wt": 0,
            "learn_ref_vec": False,
        }
    )


def reference_canonicalizer(
    order: int,
    side: int,
    device: torch.device,
    fields: int = FIELDS,
    resize: int = RESIZE,
    layers: int = LAYERS,
    fresh: bool = False,
) -> Any:
    """The canonicalizer of the reference's classification example, in evaluation mode.

    Args:
        order: n of C_n.
        side: Side of the images it is given.
        device: Where to put it.
        fields: Regular fields of its layers.
        resize: Side its network sees.
        layers: Its convolutions.
        fresh: As initialised, to be trained; else with statistics as after some training.
    """
    images = load("equiadapt.images")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = images.ESCNNEquivariantNetwork(
            (3, side, side), fields, KERNEL, "rotation", order, layers
        )
        canonicalizer = images.GroupEquivariantImageCanonicalization(
            network, _hyperparameters(order, resize), (3, side, side)
        )
    if not fresh:
        _unsettle(network)
    canonicalizer.device = device  # it knows its device from its first images only
    return canonicalizer.to(device).eval()


def reference_optimized(order: int, side: int, device: torch.device, fresh: bool = False) -> Any:
    """The reference's OptC with its default plain network, in evaluation mode.

    ``fresh``: as initialised, to be trained; else with statistics as after some training.
    """
    images = load("equiadapt.images")
    network = images.ConvNetwork((3, RESIZE, RESIZE), 16, 7, 3, 128)
    canonicalizer = images.OptimizedGroupEquivariantImageCanonicalization(
        network, _hyperparameters(order, RESIZE), (3, side, side)
    )
    if not fresh:
        _unsettle(network)
    canonicalizer.device = device
    return canonicalizer.to(device).eval()


@torch.no_grad()
def _unsettle(network: nn.Module) -> None:
    """Statistics and affine parameters as after some training: nothing is 0 or 1 by chance."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)


def _layers(network: nn.Module, kinds: Sequence[str]) -> list[Any]:
    return [module for module in network.modules() if type(module).__name__ in kinds]


@torch.no_grad()
def copy_weights(network: nn.Module, scorer: PoseScorer) -> float:
    """The weights of the reference's network into our ``group_cnn`` of the form ``reference``.

    The two libraries span the same filters with other bases, so each expanded filter of theirs is
    written in ours.

    Args:
        network: Its ``ESCNNEquivariantNetwork``, in evaluation mode.
        scorer: Ours, of the same sizes.

    Returns:
        Largest difference of the filters.
    """
    worst = 0.0
    convolutions = [m for m in scorer.modules() if isinstance(m, RegularConv)]
    for theirs, ours in zip(_layers(network, ["R2Conv"]), convolutions, strict=True):
        filters, bias = (value.cpu() for value in theirs.expand_parameters())
        sources = 1 if ours.lifting else ours.order
        shape = (ours.out_fields, ours.order, ours.in_fields, sources)
        blocks = filters.view(*shape, *filters.shape[2:]).transpose(1, 2)
        blocks = blocks.flatten(2).flatten(0, 1).double()
        basis = ours.basis.cpu().double()
        weight = torch.linalg.lstsq(basis.T, blocks.T).solution.T
        worst = max(worst, float((weight @ basis - blocks).abs().max()))
        ours.weight.copy_(weight.view_as(ours.weight))
        assert ours.bias is not None
        ours.bias.copy_(bias.view(-1, ours.order)[:, 0])
    norms = [m for m in scorer.modules() if isinstance(m, FieldNorm)]
    for theirs, own in zip(_layers(network, ["InnerBatchNorm"]), norms, strict=True):
        (inner,) = theirs.children()
        own.load_state_dict(inner.state_dict())
    if worst > 1e-6:
        raise NotComparable(f"the filters of the reference cannot be copied: {worst:.1e} off")
    return worst


def same_network(canonicalizer: Any, order: int, device: torch.device) -> PoseScorer:
    """Our scorer with the weights of the reference's canonicalizer, in evaluation mode."""
    network = canonicalizer.canonicalization_network
    resize = canonicalizer.resize_canonization.size
    convolutions = len(_layers(network, ["R2Conv"]))
    scorer = build_scorer(
        "group_cnn",
        CyclicGroup(order),
        3,
        form="reference",
        width=network.out_channels,
        input_size=resize,
        layers=convolutions,
    )
    copy_weights(network.eval(), scorer)
    return scorer.to(device).eval()


@torch.no_grad()
def same_optimized(canonicalizer: Any, order: int, device: torch.device) -> PoseScorer:
    """Our OptC scorer with the weights of the reference's, in evaluation mode."""
    scorer: Any = build_scorer("plain_cnn", CyclicGroup(order), 3, form="reference")
    theirs = _layers(canonicalizer.canonicalization_network, WEIGHTED)
    ours = _layers(scorer.network, WEIGHTED)
    for source, target in zip(theirs, ours, strict=True):
        target.load_state_dict(source.state_dict())
    scorer.reference.copy_(canonicalizer.reference_vector[0])
    return scorer.to(device).eval()


WEIGHTED = ("Conv2d", "BatchNorm2d", "BatchNorm1d", "Linear")


@torch.no_grad()
def settled(scorer: PoseScorer, x: Tensor, spread: float = 3.0) -> PoseScorer:
    """A scorer in evaluation mode with statistics of ``x`` and logits spread as after training.

    How decided the poses are matters for the time: near-ties are scored twice.
    """
    scorer.to(x.device).train()
    for _ in range(20):
        scorer(x)
    scorer.eval()
    scale = getattr(getattr(scorer, "inner", scorer), "logit_scale", None)
    deviation = float(scorer(x).std(dim=1).mean())
    if isinstance(scale, Tensor) and deviation > 0:
        heads = _layers(scorer, ["PooledConv"])
        weight = heads[0].conv.weight if heads else scale  # OptC has no head but its factor
        weight.mul_(spread / deviation)
    return scorer


def rounded_angles(order: int, batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Elements (B,) of C_n in turn, and their angles in degrees."""
    elements = torch.arange(batch, device=device) % order
    return elements, elements.float() * (360.0 / order)


def padded_side(side: int) -> int:
    """The side to which the reference pads before it turns an image."""
    return side + 2 * math.ceil(side * 0.5)
