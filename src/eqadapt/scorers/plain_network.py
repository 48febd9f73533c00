"""OptC with a known architecture as its network: any classifier embeds the views."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from eqadapt.backbones import build_network
from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup
from eqadapt.scorers.base import settle
from eqadapt.scorers.plain_cnn import FORMS as _PLAIN
from eqadapt.scorers.plain_cnn import EmbeddingScorer

_VIEWS = ("dim", "input_size", "crop", "mask_input", "half_step", "logit_scale")


def _form(form: str, model: str, pretrained: bool, **options: Any) -> dict[str, Any]:
    views = {key: _PLAIN[form][key] for key in _VIEWS}
    return {"model": model, "pretrained": pretrained, "model_options": options, **views}


class PlainResNet(EmbeddingScorer):
    """A residual network on every view; the score is a cosine with a fixed vector.

    Args:
        group: Any C_n.
        in_channels: Channels of the images.
        form: ``"corrected"`` (a small ResNet, 0.2 M parameters), or ``"reference"`` (ResNet-18, our
            choice, at the 96 pixels of the reference's plain network, cosines without a factor).
        model: Any name that a backbone may have: one of ours or of timm.
        pretrained: Start from timm's pretrained weights.
        model_options: Further arguments of the model, e.g. its ``channels``.
        dim: Length of the vectors.
        input_size: Images are resized to this side once, then turned.
        crop: Central share of the image that is looked at.
        mask_input: Mask the corners of the views.
        half_step: Turn all views by half a step more, so that none of them is crisp; by default
            where the group has elements that are no multiples of 90 degrees.
        logit_scale: Initial value of the learnt factor of the cosines; 0 for none.
        interpolation: Of the views: ``"bilinear"`` or ``"bicubic"``.

    Raises:
        UserError: Unknown form or model, or sizes that do not fit.
    """

    name: ClassVar[str] = "plain_resnet"
    forms: ClassVar[dict[str, dict[str, Any]]] = {
        "corrected": _form("corrected", "resnet_small", pretrained=False),
        "reference": _form("reference", "resnet18", pretrained=False),
    }

    def __init__(
        self,
        group: CyclicGroup,
        in_channels: int,
        *,
        form: str = "corrected",
        model: str | None = None,
        pretrained: bool | None = None,
        model_options: Mapping[str, Any] | None = None,
        dim: int | None = None,
        input_size: int | None = None,
        crop: float | None = None,
        mask_input: bool | None = None,
        half_step: bool | None = None,
        logit_scale: float | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        given = {k: v for k, v in locals().items() if k in self.forms["corrected"]}
        if model is not None and model_options is None:
            given["model_options"] = {}  # those of the form are meant for its own model
        s = settle(self.name, self.forms, form, given)
        if not isinstance(s["model_options"], Mapping):
            raise UserError(
                f"scorer {self.name!r}: model_options is {s['model_options']!r}",
                fix="a mapping, e.g. {channels: [32, 64, 64, 64]}",
            )
        super().__init__(group, in_channels, _embedder, s, interpolation)


class PlainWideResNet(PlainResNet):
    """A residual network of twice the width on every view; otherwise ``PlainResNet``.

    The form ``"corrected"`` has 0.6 M parameters, ``"reference"`` is WRN-50-2, our choice.
    """

    name: ClassVar[str] = "plain_wrn"
    forms: ClassVar[dict[str, dict[str, Any]]] = {
        "corrected": _form(
            "corrected", "resnet_small", pretrained=False, channels=(32, 64, 128, 128)
        ),
        "reference": _form("reference", "wide_resnet50_2", pretrained=False),
    }


def _embedder(in_channels: int, s: Mapping[str, Any]) -> nn.Module:
    return build_network(
        s["model"],
        s["dim"],
        in_channels,
        pretrained=s["pretrained"],
        options=s["model_options"],
    )
