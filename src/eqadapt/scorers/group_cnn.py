"""Group-equivariant CNN with regular fields (Cohen & Welling 2016; Weiler & Cesa 2019).

Two named forms. ``corrected`` keeps the law away from multiples of 90 degrees: valid
convolutions, aligned strides, a mean over a disk. ``reference`` is the network of the
reference implementation of Mondal et al. 2023 (kernel 5, 32 fields, 3 layers, 96 pixels: 91,392
parameters for C4, 181,504 for C8), kept so that comparisons can name it.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup
from eqadapt.scorers.base import Prepare, new_scale, settle
from eqadapt.scorers.layers import FieldNorm, RegularConv, pooled_head
from eqadapt.scorers.regular import RegularScorer, first_stride, head_kernel, map_side

FORMS: dict[str, dict[str, Any]] = {
    "corrected": {
        "width": 16,
        "kernel_size": 5,
        "stem_kernel_size": None,
        "head_kernel_size": None,
        "layers": 3,
        "input_size": 65,
        "stride": None,
        "pool": "disk",
        "crop": None,
        "mask_input": True,
        "momentum": 0.1,
        "dropout": 0.0,
        "logit_scale": 10.0,
        "classes": None,
        "bias": False,
        "pooled_fields": 1,
    },
    "reference": {
        "width": 32,
        "kernel_size": 5,
        "stem_kernel_size": None,
        "head_kernel_size": None,
        "layers": 3,
        "input_size": 96,
        "stride": 1,
        "pool": "square",
        "crop": 0.8,
        "mask_input": False,
        "momentum": 0.9,
        "dropout": 0.5,
        "logit_scale": 0.0,
        "classes": None,
        "bias": True,
        "pooled_fields": None,  # as many as width
    },
}


class GroupCNN(RegularScorer):
    """Convolutions on regular fields, batch norm and ReLU; a pooled linear layer at the end.

    Options left None take the form's value.

    Args:
        group: Any C_n; for n beyond 4 see ``PairedCNN`` too.
        in_channels: Channels of the images.
        form: ``"corrected"`` or ``"reference"``.
        width: Regular fields of each hidden layer (channels: width times n).
        kernel_size: Side of the filters, odd.
        stem_kernel_size: Side of the first layer's; by default ``kernel_size``.
        head_kernel_size: Side of the last layer's, or ``"full"``: as large as the map, at most 15.
            Poses are poses about the centre, so a large last kernel, which tells where things
            are, costs nothing in symmetry and little in time, and finds the pose more often.
        layers: Convolutions, the last one included; 2 or more.
        input_size: Images are resized to this side once, antialiased.
        stride: Of the first layer; by default 2 from 41 pixels on, else 1.
        pool: ``"disk"`` or ``"square"``.
        crop: Central share of the image that is looked at.
        mask_input: Mask the corners of the input.
        momentum: Of the batch norm; 0.9 keeps 90 % of the last batch.
        dropout: Rate; single channels are dropped, which breaks the law in training.
        logit_scale: Initial value of the learnt factor of the logits, kept in [0, 50]; 0 for none.
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
        layers: int | None = None,
        input_size: int | None = None,
        stride: int | None = None,
        pool: str | None = None,
        crop: float | None = None,
        mask_input: bool | None = None,
        momentum: float | None = None,
        dropout: float | None = None,
        logit_scale: float | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__(group, in_channels)
        given = {k: v for k, v in locals().items() if k in FORMS["corrected"]}
        s = settle("group_cnn", FORMS, form, given)
        if s["layers"] < 2:
            raise UserError("scorer 'group_cnn': layers is 1", fix="2 or more")
        kernel, size, fields = s["kernel_size"], s["input_size"], s["width"]
        stem = s["stem_kernel_size"] or kernel
        step = first_stride(s)
        inner = [kernel] * (s["layers"] - 2)
        side = map_side("group_cnn", size, stem, step, inner, head_kernel(s, 3))
        order = group.order
        self.prepare = Prepare(size, s["crop"], s["mask_input"])
        body: list[nn.Module] = []
        for layer in range(s["layers"] - 1):
            body += [
                RegularConv(
                    order,
                    fields if layer else in_channels,
                    fields,
                    kernel if layer else stem,
                    stride=1 if layer else step,
                    bias=s["bias"],
                    lifting=not layer,
                ),
                FieldNorm(order, fields, s["momentum"]),
                nn.ReLU(),
            ]
            if s["dropout"]:
                body.append(nn.Dropout(s["dropout"]))
        self.body = nn.Sequential(*body)
        self.head = pooled_head(
            s["classes"],
            order,
            fields,
            side,
            head_kernel(s, side),
            s["pool"],
            out_fields=s["pooled_fields"] or fields,
            bias=s["bias"],
            centred=form != "reference",
        )
        self.logit_scale = new_scale(s["logit_scale"])
