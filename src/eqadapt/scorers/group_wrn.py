"""Group-equivariant wide ResNet (Zagoruyko & Komodakis 2016 on regular fields).

``reference`` has the layout of the reference implementation of Mondal et al. 2023 (kernel 5,
width 64, four blocks a stage: 1,858,864 parameters for C4, the paper's 1.9 M). Its bottlenecks
pad with zeros, which costs the law at angles that are no multiples of 90 degrees. ``corrected`` is
built of valid convolutions in pre-activation order, its shortcuts cropped to match.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup
from eqadapt.scorers.base import Prepare, new_scale, settle
from eqadapt.scorers.layers import Crop, FieldNorm, RegularConv, Residual, pooled_head
from eqadapt.scorers.regular import RegularScorer, first_stride, head_kernel, map_side

FORMS: dict[str, dict[str, Any]] = {
    "corrected": {
        "width": 16,
        "kernel_size": 3,
        "stem_kernel_size": 5,
        "head_kernel_size": None,
        "blocks": 1,
        "input_size": 65,
        "stride": None,
        "pool": "disk",
        "crop": None,
        "mask_input": True,
        "momentum": 0.1,
        "logit_scale": 10.0,
        "classes": None,
    },
    "reference": {
        "width": 64,
        "kernel_size": 5,
        "stem_kernel_size": None,
        "head_kernel_size": None,
        "blocks": 4,
        "input_size": 128,
        "stride": 1,
        "pool": "square",
        "crop": 0.8,
        "mask_input": False,
        "momentum": 0.9,
        "logit_scale": 0.0,
        "classes": None,
    },
}


class GroupWideResNet(RegularScorer):
    """Three stages of residual blocks on regular fields; a pooled linear layer at the end.

    Stages have width/4, width/2 and width fields. Options left None take the form's value.

    Args:
        group: Any C_n.
        in_channels: Channels of the images.
        form: ``"corrected"`` or ``"reference"``.
        width: Regular fields of the last stage, a multiple of 4.
        kernel_size: Side of the filters, odd.
        stem_kernel_size: Side of the first layer's; by default ``kernel_size``.
        head_kernel_size: Side of the last layer's, or ``"full"``: as large as the map, at most 15.
        blocks: Residual blocks a stage.
        input_size: Images are resized to this side once, antialiased.
        stride: Of the first layer; by default 2 from 41 pixels on, else 1.
        pool: ``"disk"`` or ``"square"``.
        crop: Central share of the image that is looked at.
        mask_input: Mask the corners of the input.
        momentum: Of the batch norm.
        logit_scale: Initial value of the learnt factor of the logits; 0 for none.
        classes: Score pairs of pose and that many classes; the pose's score is their log-sum-exp.

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
        stem_kernel_size: int | None = None,
        head_kernel_size: int | str | None = None,
        blocks: int | None = None,
        input_size: int | None = None,
        stride: int | None = None,
        pool: str | None = None,
        crop: float | None = None,
        mask_input: bool | None = None,
        momentum: float | None = None,
        logit_scale: float | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__(group, in_channels)
        given = {k: v for k, v in locals().items() if k in FORMS["corrected"]}
        s = settle("group_wrn", FORMS, form, given)
        if s["width"] % 4:
            raise UserError(f"scorer 'group_wrn': width is {s['width']}", fix="a multiple of 4")
        kernel, order = s["kernel_size"], group.order
        stem = s["stem_kernel_size"] or kernel
        stages = [s["width"] // 4, s["width"] // 2, s["width"]]
        reference = form == "reference"
        # only the transitions between the reference's stages shrink the map; all of ours do
        shrinking = 2 if reference else 3 * s["blocks"]
        side = map_side(
            "group_wrn",
            s["input_size"],
            stem,
            first_stride(s),
            [kernel] * 2 * shrinking,
            head_kernel(s, 3),
        )
        self.prepare = Prepare(s["input_size"], s["crop"], s["mask_input"])
        lift = RegularConv(
            order,
            in_channels,
            stages[0],
            stem,
            stride=first_stride(s),
            bias=reference,
            lifting=True,
        )
        build = _reference_blocks if reference else _valid_blocks
        tail = build(order, stages, kernel, s["blocks"], s["momentum"])
        self.body = nn.Sequential(lift, *tail)
        self.head = pooled_head(
            s["classes"],
            order,
            stages[2],
            side,
            head_kernel(s, side),
            s["pool"],
            out_fields=2 * s["width"] if reference else 1,
            bias=reference,
            centred=not reference,
        )
        self.logit_scale = new_scale(s["logit_scale"])


def _valid_blocks(
    order: int, stages: list[int], kernel: int, blocks: int, momentum: float
) -> list[nn.Module]:
    """Pre-activation blocks of two valid convolutions; the shortcut is cropped as they crop."""
    layers: list[nn.Module] = []
    before = stages[0]
    for fields in stages:
        for _ in range(blocks):
            body = nn.Sequential(
                FieldNorm(order, before, momentum),
                nn.ReLU(),
                RegularConv(order, before, fields, kernel),
                FieldNorm(order, fields, momentum),
                nn.ReLU(),
                RegularConv(order, fields, fields, kernel),
            )
            shortcut: list[nn.Module] = [Crop(kernel - 1)]
            if before != fields:
                shortcut.append(RegularConv(order, before, fields, 1))
            layers.append(Residual(body, nn.Sequential(*shortcut)))
            before = fields
    return [*layers, FieldNorm(order, before, momentum), nn.ReLU()]


def _reference_blocks(
    order: int, stages: list[int], kernel: int, blocks: int, momentum: float
) -> list[nn.Module]:
    """Padded bottlenecks (1, k, 1); between stages two valid k with a shortcut of 2 k - 1."""

    def norm(fields: int) -> list[nn.Module]:
        return [FieldNorm(order, fields, momentum), nn.ReLU()]

    layers = norm(stages[0])
    for stage, fields in enumerate(stages):
        if stage:
            before = stages[stage - 1]
            body = nn.Sequential(
                RegularConv(order, before, fields, kernel, bias=True),
                *norm(fields),
                RegularConv(order, fields, fields, kernel, bias=True),
            )
            shortcut = RegularConv(order, before, fields, 2 * kernel - 1, bias=True)
            layers += [Residual(body, shortcut), *norm(fields)]
        for _ in range(blocks - 1):
            body = nn.Sequential(
                RegularConv(order, fields, fields, 1, bias=True),
                *norm(fields),
                RegularConv(order, fields, fields, kernel, padding=kernel // 2, bias=True),
                *norm(fields),
                RegularConv(order, fields, fields, 1, bias=True),
            )
            layers += [Residual(body, nn.Identity()), *norm(fields)]
    return layers
