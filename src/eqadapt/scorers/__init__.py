"""Who scores poses: networks from images to one logit a group element. No torch on import.

A scorer is a module with ``forward(x) -> a``: images (B, C, H, H) float32 to logits (B, K), where
column ``j`` says how well the pose of the input is ``g_j`` (its canonical form is
``g_j^-1 . x``) and ``a(g_k . x) = roll(a(x), k)`` along the columns. Angles turn
counter-clockwise. For multiples of 90 degrees the law holds up to rounding; for the rest up to
resampling.

Every scorer has ``group``, ``num_parameters`` (as trained, not as exported) and ``export()``,
which gives a plain torch module with the same outputs for inference.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eqadapt.errors import UserError
from eqadapt.methods import load_plugins

if TYPE_CHECKING:
    from eqadapt.groups import CyclicGroup
    from eqadapt.scorers.base import PoseScorer


@dataclass(frozen=True)
class ScorerSpec:
    """Where a scorer lives and what can be set.

    Attributes:
        module: Imported when the scorer is built, not before.
        cls: Name of the class in it.
        summary: One sentence for people.
        options: Keywords of ``build_scorer`` that it takes.
        inner: The scorers of which it runs one, the default first. Each has some of the options.
    """

    module: str
    cls: str
    summary: str
    options: frozenset[str]
    inner: tuple[str, ...] = ()

    def options_beside(self, settings: Mapping[str, Any]) -> frozenset[str]:
        """The options that it takes beside some settings: not those of another inner network."""
        if not self.inner:
            return self.options
        network = settings.get("inner", self.inner[0])
        of_any = frozenset().union(*(SCORERS[name].options for name in self.inner))
        return self.options - (of_any - SCORERS[network].options)


_COMMON = frozenset({"form", "input_size", "kernel_size", "crop", "mask_input", "logit_scale"})
_GROUP_CNN = _COMMON | {
    "width",
    "layers",
    "stem_kernel_size",
    "head_kernel_size",
    "stride",
    "pool",
    "momentum",
    "classes",
}
_STAGED_CNN = (_COMMON - {"form"}) | {
    "width",
    "stages",
    "resize",
    "momentum",
    "classes",
}
_PLAIN_NETWORK = (_COMMON - {"kernel_size"}) | {
    "model",
    "pretrained",
    "model_options",
    "dim",
    "half_step",
    "interpolation",
}

SCORERS: dict[str, ScorerSpec] = {
    "group_cnn": ScorerSpec(
        "eqadapt.scorers.group_cnn",
        "GroupCNN",
        "Group-equivariant CNN with regular fields; the reference's network with form='reference'.",
        frozenset(_GROUP_CNN | {"dropout"}),
    ),
    "group_wrn": ScorerSpec(
        "eqadapt.scorers.group_wrn",
        "GroupWideResNet",
        "Group-equivariant wide ResNet; the paper's 1.9 M one with form='reference'.",
        frozenset((_GROUP_CNN - {"layers"}) | {"blocks"}),
    ),
    "staged_cnn": ScorerSpec(
        "eqadapt.scorers.staged_cnn",
        "StagedCNN",
        "Group-equivariant CNN for quarter turns in padded stages, each of half the side.",
        _STAGED_CNN,
    ),
    "paired_cnn": ScorerSpec(
        "eqadapt.scorers.paired_cnn",
        "PairedCNN",
        "A network exact under C4, run on m turned copies: the default for C_4m, m > 1.",
        frozenset(
            (_GROUP_CNN - {"form"}) | _STAGED_CNN | {"inner", "blocks", "dropout", "interpolation"}
        ),
        ("staged_cnn", "group_cnn", "group_wrn"),
    ),
    "plain_cnn": ScorerSpec(
        "eqadapt.scorers.plain_cnn",
        "PlainCNN",
        "OptC: any plain network on all views, cosine with a fixed vector.",
        frozenset(_COMMON | {"width", "layers", "dim", "half_step", "interpolation"}),
    ),
    "plain_resnet": ScorerSpec(
        "eqadapt.scorers.plain_network",
        "PlainResNet",
        "OptC with a ResNet, or any other model that a backbone may be.",
        _PLAIN_NETWORK,
    ),
    "plain_wrn": ScorerSpec(
        "eqadapt.scorers.plain_network",
        "PlainWideResNet",
        "OptC with a ResNet of twice the width.",
        _PLAIN_NETWORK,
    ),
    "classifier": ScorerSpec(
        "eqadapt.scorers.classifier",
        "Classifier",
        "Any classifier, on all views; its own energies are the scores.",
        (_PLAIN_NETWORK - {"form", "dim", "logit_scale"}) | {"classes", "network_size"},
    ),
    "fixed_energy": ScorerSpec(
        "eqadapt.scorers.views",
        "FixedEnergy",
        "The inner product of each view with fixed noise; learns nothing.",
        frozenset({"input_size", "crop", "mask_input", "half_step", "interpolation", "seed"}),
    ),
    "moment_frame": ScorerSpec(
        "eqadapt.scorers.moments",
        "MomentFrame",
        "The direction of the intensity's first moment; learns nothing.",
        frozenset({"reference_angle"}),
    ),
    "pca_frame": ScorerSpec(
        "eqadapt.scorers.moments",
        "PCAFrame",
        "The principal axis of the intensity, its ends told apart by the third moment; learns "
        "nothing.",
        frozenset({"reference_angle"}),
    ),
}


def build_scorer(name: str, group: CyclicGroup, in_channels: int, **options: Any) -> PoseScorer:
    """The scorer of that name for a group.

    Args:
        name: A key of ``SCORERS``.
        group: The cyclic group whose elements are scored.
        in_channels: Channels of the images, 1 or 3 as a rule.
        **options: Settings of that scorer; see its class.

    Raises:
        UserError: Unknown name or option, or sizes that cannot work; the message lists what can.
    """
    if name not in SCORERS:
        load_plugins()
    if name not in SCORERS:
        raise UserError(
            f"unknown scorer {name!r}",
            fix=f"one of: {', '.join(sorted(SCORERS))}, or of a module named in EQADAPT_PLUGINS",
        )
    spec = SCORERS[name]
    unknown = sorted(set(options) - spec.options)
    if unknown:
        raise UserError(
            f"scorer {name!r} has no option {', '.join(map(repr, unknown))}",
            fix=f"options: {', '.join(sorted(spec.options))}",
        )
    cls = getattr(importlib.import_module(spec.module), spec.cls)
    return cls(group, in_channels, **options)


__all__ = ["SCORERS", "ScorerSpec", "build_scorer"]
