"""What adaptation adds to a plain timm backbone at inference: a scorer and a warp."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.ours import adapted, default_scorer, near_ties, timm_backbone
from benchmarks.registry import Context, Measured, largest_difference, measure
from benchmarks.timing import Effort
from eqadapt.law import smooth_images

AT_MOST = 1.05
LONG = Effort(seconds=12.0, rounds=9)  # the ratio is close to one, and to its floor


@measure("inference", "An adapted ResNet-50 at 224 px against the plain one")
def inference(context: Context) -> Measured:
    """Rows for the default C8 canonicalizer and for OptC's, contiguous and channels-last."""
    cuda = context.device.type == "cuda"
    batches = context.pick((1, 16, 128) if cuda else (1, 16), (2,))
    layouts = context.pick(("contiguous", "channels-last"), ("contiguous",))
    yield from adapted_rows(context, "inference", layouts, batches)


@torch.no_grad()
def adapted_rows(
    context: Context, name: str, layouts: Sequence[str], batches: Sequence[int]
) -> Measured:
    """Rows of that name, of an adapted ResNet-50 against the plain one."""
    model_name, side = ("resnet_small", 32) if context.quick else ("resnet50", 224)
    for layout in layouts:
        backbone = timm_backbone(model_name, side, context.device)
        if layout == "channels-last":
            backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        default = default_scorer(8, side, context.device, **context.default_options())
        optc = default_scorer(8, side, context.device, "plain_cnn")
        models = {
            "C8": adapted(default, backbone).eval(),
            "C8 by OptC": adapted(optc, backbone).eval(),
        }
        for batch in batches:
            x = smooth_images(batch, side).to(context.device)
            plain = {"peer": partial(_plain, backbone, x)}
            found = context.compare(
                plain | {label: partial(model, x) for label, model in models.items()},
                context.long_effort(LONG),
            )
            for label, model in models.items():
                output = model(x)
                canonical = _plain(backbone, model.action.undo(x, output.chosen))
                ties = near_ties(output.pose_logits)
                yield context.pair(
                    name,
                    f"{model_name}, {label}, {side} px, batch {batch}, {layout}",
                    "plain timm",
                    found["peer"],
                    found[label],
                    packages=("timm",),
                    outputs_max_difference=largest_difference(
                        output.logits, canonical, 1e-4, "logits of the canonical image"
                    ),
                    floor=context.floor(1 / AT_MOST),
                    note=f"floor: at most {AT_MOST}x the backbone; outputs compared on the same "
                    f"canonical image; {ties:.0%} near-ties scored twice",
                )


def _plain(backbone, x):
    """The timm network on a normalised image, as a user would call it."""
    return backbone.network((x - backbone.mean) / backbone.std)
