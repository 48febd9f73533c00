"""OptC: any network scores poses if it is shown every view (Panigrahi & Mondal 2024).

Each view g_k^-1 . x is mapped to a vector, and its score is the cosine with a fixed random
vector. Turning the input only permutes its views, so the scores obey the law without an
equivariant network: exactly under multiples of 90 degrees, up to resampling for the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.parts import in_parts
from eqadapt.scorers.base import new_scale, scaled, settle
from eqadapt.scorers.views import ViewRater

FORMS: dict[str, dict[str, Any]] = {
    "corrected": {
        "width": 16,
        "kernel_size": 5,
        "layers": 3,
        "dim": 128,
        "input_size": 33,
        "crop": None,
        "mask_input": True,
        "half_step": None,
        "logit_scale": 10.0,
    },
    "reference": {
        "width": 16,
        "kernel_size": 7,
        "layers": 3,
        "dim": 128,
        "input_size": 96,
        "crop": 0.8,
        "mask_input": False,
        "half_step": False,
        "logit_scale": 0.0,
    },
}


class EmbeddingScorer(ViewRater):
    """Any network maps every view to a vector; the score is a cosine with a fixed vector.

    Args:
        group: Any C_n.
        in_channels: Channels of the images.
        embedder: Builds the network, (N, C, size, size) to (N, dim), of channels and settings.
        settings: Those of ``ViewRater``, ``dim`` and ``logit_scale``.
        interpolation: Of the views: ``"bilinear"`` or ``"bicubic"``.
    """

    reference: Tensor

    def __init__(
        self,
        group: CyclicGroup,
        in_channels: int,
        embedder: Callable[[int, Mapping[str, Any]], nn.Module],
        settings: Mapping[str, Any],
        interpolation: str,
    ) -> None:
        super().__init__(group, in_channels, settings, interpolation)
        self.network = embedder(in_channels, settings)
        self.register_buffer("reference", torch.randn(settings["dim"]))
        self.logit_scale = new_scale(settings["logit_scale"])
        self._turning = RotationAction(group, interpolation)  # of views, which are masked already

    def vectors(self, prepared: Tensor) -> Tensor:
        """Vectors (B, K, dim) of all views of prepared images."""
        if self.training:
            return self._vectors(prepared)
        return in_parts(self._vectors, prepared, copies=self.group.order)

    def _vectors(self, prepared: Tensor) -> Tensor:
        views, order = self.views_as_made(prepared)
        return self.network(views.flatten(0, 1)).unflatten(0, views.shape[:2])[:, order]

    def embed(self, x: Tensor) -> Tensor:
        """Vectors (B, K, dim) of all views of images (B, C, H, H), for losses on them.

        ``logits`` of them is what the scorer returns.
        """
        return self.computed(x, self.vectors).float()

    def embed_returned(self, x: Tensor) -> Tensor:
        """Vectors (B, K, dim) of the same views, each turned by a random element and back.

        What they differ in from ``embed``'s is resampling alone: nothing under multiples of 90
        degrees. For ``artifact``.
        """
        return self.computed(x, self._returned_vectors).float()

    def _returned_vectors(self, prepared: Tensor) -> Tensor:
        views = self.views(prepared)
        flat = views.flatten(0, 1)
        by = torch.randint(0, self.group.order, (len(flat),), device=flat.device)
        returned = self._turning.undo(self._turning.act(flat, by), by)
        return self.network(returned).unflatten(0, views.shape[:2])

    def logits(self, vectors: Tensor) -> Tensor:
        """Pose logits (B, K) of the vectors (B, K, dim)."""
        return scaled(F.cosine_similarity(vectors, self.reference, dim=-1), self.logit_scale)

    def score(self, views: Tensor) -> Tensor:
        """Pose logits (B, K) of prepared images (B, C, size, size)."""
        return self.logits(self.vectors(views))

    def export(self) -> nn.Module:
        """A copy in evaluation mode, batch norms folded where the network is a plain chain."""
        exported = super().export()
        if isinstance(exported.network, nn.Sequential):
            exported.network = _fold(exported.network)
        return exported


class PlainCNN(EmbeddingScorer):
    """Strided convolutions on every view; the score is a cosine with a fixed vector.

    Args:
        group: Any C_n.
        in_channels: Channels of the images.
        form: ``"corrected"``, or ``"reference"`` (306,544 parameters at 96 pixels; cosines
            without a factor, which floor an 8-way cross-entropy at 0.67).
        width: Channels of the first layers; the third has twice as many.
        kernel_size: Side of the filters, odd.
        layers: Convolutions, each of stride 2.
        dim: Length of the vectors.
        input_size: Images are resized to this side once, then turned.
        crop: Central share of the image that is looked at.
        mask_input: Mask the corners of the views.
        half_step: Turn all views by half a step more, so that none of them is crisp; by default
            where the group has elements that are no multiples of 90 degrees.
        logit_scale: Initial value of the learnt factor of the cosines; 0 for none.
        interpolation: Of the views: ``"bilinear"`` or ``"bicubic"``.

    Raises:
        UserError: Unknown form, or sizes that do not fit.
    """

    def __init__(
        self,
        group: CyclicGroup,
        in_channels: int,
        *,
        form: str = "corrected",
        width: int | None = None,
        kernel_size: int | None = None,
        layers: int | None = None,
        dim: int | None = None,
        input_size: int | None = None,
        crop: float | None = None,
        mask_input: bool | None = None,
        half_step: bool | None = None,
        logit_scale: float | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        given = {k: v for k, v in locals().items() if k in FORMS["corrected"]}
        s = settle("plain_cnn", FORMS, form, given)
        build = _reference_network if form == "reference" else _network
        super().__init__(group, in_channels, build, s, interpolation)


def contrast(vectors: Tensor) -> Tensor:
    """How alike the vectors of different views are: mean |cosine| over pairs of views.

    On normalized vectors, so that shrinking them all gains nothing.

    Args:
        vectors: (B, K, dim), K > 1.
    """
    unit = F.normalize(vectors, dim=-1)
    cosines = unit @ unit.transpose(1, 2)
    order = cosines.shape[1]
    off = 1 - torch.eye(order, device=cosines.device)  # a mask as an index would wait for the GPU
    return (cosines.abs() * off).sum() / (len(cosines) * order * (order - 1))


def artifact(vectors: Tensor, returned: Tensor) -> Tensor:
    """How far resampling moves the vectors of views: mean squared distance of unit vectors.

    The artifact term of Panigrahi & Mondal 2024, on normalized vectors as ``contrast`` is, and
    summed, not averaged, over their length: 2 (1 - cosine).

    Args:
        vectors: (B, K, dim) of the views.
        returned: (B, K, dim) of the views turned to and fro.
    """
    moved = F.normalize(vectors, dim=-1) - F.normalize(returned, dim=-1)
    return moved.square().sum(dim=-1).mean()


def _network(in_channels: int, s: Mapping[str, Any]) -> nn.Sequential:
    kernel, width, side = s["kernel_size"], s["width"], s["input_size"]
    layers: list[nn.Module] = []
    channels = in_channels
    for layer in range(s["layers"]):
        out = width * (2 if layer >= 2 else 1)
        conv = nn.Conv2d(channels, out, kernel, stride=2, padding=kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(out), nn.GELU()]
        channels, side = out, (side - 1) // 2 + 1
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * side * side, s["dim"]))


def _reference_network(in_channels: int, s: Mapping[str, Any]) -> nn.Sequential:
    kernel, width, side = s["kernel_size"], s["width"], s["input_size"]
    layers: list[nn.Module] = []
    channels = in_channels
    for layer in range(s["layers"]):
        widen = layer % 3 == 2
        width, padding = width * (2 if widen else 1), int(widen)
        conv = nn.Conv2d(channels, width, kernel, stride=2, padding=padding)
        layers += [conv, nn.BatchNorm2d(width), nn.GELU()]
        channels, side = width, (side + 2 * padding - kernel) // 2 + 1
        if side < 1:
            raise UserError(
                f"scorer 'plain_cnn': input_size {s['input_size']} is too small for "
                f"{s['layers']} layers with kernel {kernel}",
                fix="a larger input_size, fewer layers or a smaller kernel",
            )
    size = channels * side * side
    head = [nn.BatchNorm1d(size), nn.Dropout(0.5), nn.ReLU(), nn.Linear(size, s["dim"])]
    return nn.Sequential(*layers, nn.Flatten(), *head)


class Affine(nn.Module):
    """What a batch norm of vectors does in evaluation mode, as one operation.

    Args:
        norm: The batch norm, with its statistics settled.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm1d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        self.register_buffer("scale", scale.detach())
        self.register_buffer("shift", (norm.bias - norm.running_mean * scale).detach())

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, D)."""
        return torch.addcmul(self.shift, x, self.scale)


def _fold(network: nn.Sequential) -> nn.Sequential:
    layers: list[nn.Module] = []
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d) and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1], layer)
        elif isinstance(layer, nn.BatchNorm1d):
            layers.append(Affine(layer))
        elif not isinstance(layer, nn.Dropout):
            layers.append(layer)
    return nn.Sequential(*layers).requires_grad_(False)
