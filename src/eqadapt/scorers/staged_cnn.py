"""Group-equivariant CNN in stages (Cohen & Welling 2016): exact under quarter turns, and deep.

The valid convolutions and steerable filters of ``GroupCNN`` keep the law between the quarter
turns, at the price of maps that stay large. Where only quarter turns matter, maps may be padded
and halved, and filters may be any arrays: more layers and a wider view for the same operations.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup
from eqadapt.scorers.base import Prepare, new_scale, settle
from eqadapt.scorers.layers import FieldNorm, RegularConv, pooled_head
from eqadapt.scorers.regular import RegularScorer

FORMS: dict[str, dict[str, Any]] = {
    "": {
        "width": 16,
        "kernel_size": 3,
        "stages": 2,
        "input_size": 32,
        "resize": "antialias",
        "crop": None,
        "mask_input": True,
        "momentum": 0.1,
        "logit_scale": 0.0,
        "classes": None,
    }
}
RESIZES = ("antialias", "sample")


class StagedCNN(RegularScorer):
    """A convolution on the image, then stages that halve the map; the last layer sees all of it.

    A stage is a 4 x 4 convolution of stride 2 and one of stride 1; the first layer has half as many
    fields as the stages. For images whose orientation 32 pixels do not show, ``input_size`` 64 and
    three stages have four times the pixels.

    Args:
        group: C1, C2 or C4; ``PairedCNN`` takes it on to C_4m.
        in_channels: Channels of the images.
        width: Regular fields of the stages, even.
        kernel_size: Side of the filters of stride 1, odd.
        stages: How often the map is halved.
        input_size: Images are resized to this side once; a multiple of 2 to the ``stages``, for a
            stride is exact under quarter turns only where it divides the side.
        resize: ``"antialias"``, or ``"sample"``: where the image is an odd multiple of
            ``input_size``, take the pixels at the centres.
        crop: Central share of the image that is looked at.
        mask_input: Mask the corners of the input.
        momentum: Of the batch norm.
        logit_scale: Initial value of a learnt factor of the logits; 0 for none.
        classes: Score pairs of pose and that many classes; the pose's score is their log-sum-exp.

    Raises:
        UserError: Another group, or sizes that do not fit.
    """

    def __init__(
        self,
        group: CyclicGroup,
        in_channels: int,
        *,
        width: int | None = None,
        kernel_size: int | None = None,
        stages: int | None = None,
        input_size: int | None = None,
        resize: str | None = None,
        crop: float | None = None,
        mask_input: bool | None = None,
        momentum: float | None = None,
        logit_scale: float | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__(group, in_channels)
        given = {k: v for k, v in locals().items() if k in FORMS[""]}
        s = settle("staged_cnn", FORMS, "", given)
        order, fields = group.order, s["width"]
        side = _last_side(group, s)
        self.prepare = Prepare(s["input_size"], s["crop"], s["mask_input"], s["resize"] == "sample")

        def layer(inputs: int, outputs: int, kernel: int, **options: Any) -> list[nn.Module]:
            conv = RegularConv(order, inputs, outputs, kernel, pixels=True, **options)
            return [conv, FieldNorm(order, outputs, s["momentum"]), nn.ReLU()]

        kernel = s["kernel_size"]
        body = layer(in_channels, fields // 2, kernel, padding=kernel // 2, lifting=True)
        for stage in range(s["stages"]):
            body += layer(fields if stage else fields // 2, fields, 4, stride=2, padding=1)
            body += layer(fields, fields, kernel, padding=kernel // 2)
        self.body = nn.Sequential(*body)
        self.head = pooled_head(s["classes"], order, fields, side, side, "square", pixels=True)
        self.logit_scale = new_scale(s["logit_scale"])


def _last_side(group: CyclicGroup, s: dict[str, Any]) -> int:
    """Side of the map that the last layer sees; refuses what would not be exact."""
    if group.order not in (1, 2, 4):
        raise UserError(
            f"scorer 'staged_cnn' cannot score {group.name}",
            fix="C2 or C4; for C8, C12, ...: scorer 'paired_cnn', which runs it on turned copies",
        )
    if s["width"] % 2:
        raise UserError(f"scorer 'staged_cnn': width is {s['width']}", fix="an even number")
    if s["resize"] not in RESIZES:
        raise UserError(
            f"scorer 'staged_cnn': resize is {s['resize']!r}", fix=f"one of: {', '.join(RESIZES)}"
        )
    halved = 2 ** s["stages"]
    if s["input_size"] % halved:
        raise UserError(
            f"scorer 'staged_cnn': input_size {s['input_size']} cannot be halved {s['stages']} "
            "times without a shift",
            fix=f"a multiple of {halved}, or fewer stages",
        )
    return int(s["input_size"]) // halved
