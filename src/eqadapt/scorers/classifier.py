"""Any classifier as a scorer: what it says of each view rates the view.

A view's score is its negative energy, the log-sum-exp of the classifier's logits, so that these are
the scores of pairs of pose and class: a network that was fine-tuned to canonicalize itself
(``self_canonicalizer``), or one that is yet to be taught, canonicalizes for another network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from eqadapt.backbones import build_network, to_size
from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.parts import in_parts
from eqadapt.scorers.base import settle
from eqadapt.scorers.classwise import ClasswiseScorer
from eqadapt.scorers.views import ViewRater

FORMS: dict[str, dict[str, Any]] = {
    "": {
        "model": "resnet_small",
        "pretrained": False,
        "model_options": {},
        "classes": None,
        "input_size": 33,
        "network_size": None,
        "crop": None,
        # As a classifier knows images: whole, and upright ones crisp.
        "mask_input": False,
        "half_step": False,
    }
}


class EveryView(nn.Module):
    """A network on every view of an image.

    Args:
        network: Maps images (N, C, size, size) to outputs (N, D).
        action: What turns the images.
        elements: The acting group's elements that the views undo, K of them.
        size: Side of the images that the network reads.
    """

    def __init__(
        self, network: nn.Module, action: RotationAction, elements: Sequence[int], size: int
    ) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.action, self.elements = action, tuple(elements)

    def forward(self, prepared: Tensor) -> Tensor:
        """Outputs (B, K, D) of images (B, C, H, H)."""
        made, order = self.action.orbit_as_made(prepared, self.size, self.elements)
        views = to_size(made.flatten(0, 1), self.size)
        outputs = self.network(views) if self.training else in_parts(self.network, views)
        return outputs.unflatten(0, made.shape[:2])[:, order]


class Classifier(ViewRater, ClasswiseScorer):
    """A classifier on every view; the score is the log-sum-exp of its logits.

    Args:
        group: Any C_n.
        in_channels: Channels of the images.
        model: Any name that a backbone may have: one of ours or of timm.
        pretrained: Start from timm's pretrained weights. Others: ``train.scorer_start``.
        model_options: Further arguments of the model, e.g. its ``channels``.
        classes: Score pairs of pose and that many classes; None: the network has one output, the
            score.
        input_size: Images are resized to this side once, then turned.
        network_size: Side that the network reads, at most ``input_size``, and of an odd multiple of
            it the pixels at the centres; None: ``input_size``.
        crop: Central share of the image that is looked at.
        mask_input: Mask the corners of the views.
        half_step: Turn all views by half a step more, so that none of them is crisp.
        interpolation: Of the views: ``"bilinear"`` or ``"bicubic"``.

    Raises:
        UserError: Unknown model, or sizes that do not fit.
    """

    def __init__(
        self,
        group: CyclicGroup,
        in_channels: int,
        *,
        model: str | None = None,
        pretrained: bool | None = None,
        model_options: Mapping[str, Any] | None = None,
        classes: int | None = None,
        input_size: int | None = None,
        network_size: int | None = None,
        crop: float | None = None,
        mask_input: bool | None = None,
        half_step: bool | None = None,
        interpolation: str = "bilinear",
    ) -> None:
        given = {k: v for k, v in locals().items() if k in FORMS[""]}
        s = settle("classifier", FORMS, "", given)
        super().__init__(group, in_channels, s, interpolation)
        size = s["network_size"] or s["input_size"]
        if size > s["input_size"]:
            raise UserError(
                f"scorer 'classifier': network_size {size} above input_size {s['input_size']}",
                fix="an odd multiple of network_size as input_size, or the same",
            )
        network = build_network(
            s["model"],
            s["classes"] or 1,
            in_channels,
            pretrained=s["pretrained"],
            options=s["model_options"],
        )
        self.outputs = EveryView(network, self.action, self._elements, size)
        self._classwise = s["classes"] is not None

    @property
    def network(self) -> nn.Module:
        """The classifier, whose weights may come from a backbone."""
        return self.outputs.network

    @property
    def classwise(self) -> bool:
        """Whether its classes are those of the data."""
        return self._classwise

    def score_pairs(self, views: Tensor) -> Tensor:
        """Logits (B, K, classes) of prepared images; (B, K) where it tells no classes."""
        outputs: Tensor = self.outputs(views)
        return outputs if self.classwise else outputs.squeeze(-1)

    def in_plain_layers(self) -> list[nn.Module]:
        """The classifier on every view, as it is."""
        last = [] if self.classwise else [nn.Flatten(1)]
        return [self.prepare, self.outputs, *last]
