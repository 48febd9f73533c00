"""Finer than 90 degrees from a network that is exact under C4: turned copies, shared weights.

Let b be a network with b_q(R_90 x) = b_{q-1}(x), exact on pixels. For C_4m run it on m copies of
the image, turned by offsets d_t a step of 90/m degrees apart, and call

    a_{m q + t}(x) = b_q(R_{-d_t} x),        d_t = d_0 + 90 t / m.

Turning x by one step takes the copy for t to the copy for t - 1, and the first one to the last
turned by 90 degrees, so a is a regular field of C_4m up to the resampling of two turns in a row,
and exactly one under multiples of 90 degrees. For C8 the offsets are -22.5 and 22.5 degrees: both
copies are resampled alike, so that no pose can be told by how blurred its copy is, which is what
a C8 network trained on upright images learns instead of the pose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup
from eqadapt.groups.images import rotation_grid
from eqadapt.scorers import SCORERS, build_scorer
from eqadapt.scorers.base import Prepare
from eqadapt.scorers.classwise import ClasswiseScorer

if TYPE_CHECKING:
    from eqadapt.scorers.group_cnn import GroupCNN
    from eqadapt.scorers.group_wrn import GroupWideResNet
    from eqadapt.scorers.staged_cnn import StagedCNN


def offsets(copies: int) -> tuple[float, ...]:
    """The angles d_t in degrees, counter-clockwise.

    Symmetric about 0 for an even number of copies. For an odd number above 1 they are moved by
    45 degrees, because a copy that is not turned would be the only crisp one.
    """
    first = -(copies - 1) / 2 * 90.0 / copies
    if copies % 2 and copies > 1:
        first += 45.0
    return tuple(first + 90.0 * t / copies for t in range(copies))


class TurnedCopies(nn.Module):
    """The image at the scorer's size, turned by each angle; one resampling where it is enlarged.

    Args:
        look: Crops, resizes and masks.
        angles: Degrees, counter-clockwise.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
    """

    grids: Tensor

    def __init__(self, look: Prepare, angles: tuple[float, ...], interpolation: str) -> None:
        super().__init__()
        if interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"unknown interpolation {interpolation!r}", fix="bilinear or bicubic")
        self.look, self.angles, self.interpolation = look, angles, interpolation
        self.register_buffer(
            "grids", rotation_grid(torch.tensor(angles), look.size), persistent=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) to (T * B, C, size, size), the first angle's copies first."""
        if self.angles == (0.0,):
            return self.look(x)
        x = self.look.cropped(x)
        if x.shape[-1] > self.look.size and self.look.centres(x.shape[-1]) is None:
            x = self.look.resized(x)  # antialiased, which the warp is not
        copies = [
            F.grid_sample(
                x,
                grid.expand(len(x), -1, -1, -1),
                self.interpolation,
                "border",
                align_corners=False,
            )
            for grid in self.grids
        ]
        return self.look.masked(torch.cat(copies))


class Interleave(nn.Module):
    """Scores (T * B, 4, ...) of turned copies to (B, 4 T, ...): element m q + t from copy t."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.copies = copies

    def forward(self, scores: Tensor) -> Tensor:
        """Reordered, nothing else."""
        return scores.unflatten(0, (self.copies, -1)).movedim(0, 2).flatten(1, 2)


class PairedCNN(ClasswiseScorer):
    """A C4 network on m turned copies of the image scores the poses of C_4m.

    For C4 this is the network itself.

    Args:
        group: C_4m.
        in_channels: Channels of the images.
        inner: The network that is exact under C4: ``"staged_cnn"``, or ``"group_cnn"`` or
            ``"group_wrn"`` in the corrected form.
        interpolation: Of the turned copies: ``"bilinear"`` or ``"bicubic"``.
        **options: Of the inner network.

    Raises:
        UserError: The order is no multiple of 4, or an option does not fit.
    """

    def __init__(
        self,
        group: CyclicGroup,
        in_channels: int,
        *,
        inner: str = "staged_cnn",
        interpolation: str = "bilinear",
        **options: Any,
    ) -> None:
        super().__init__(group, in_channels)
        if group.order % 4:
            raise UserError(
                f"scorer 'paired_cnn' cannot score {group.name}",
                fix="C4, C8, C12, ...: its network is exact under C4; or scorer 'group_cnn'",
            )
        spec = SCORERS["paired_cnn"]
        if inner not in spec.inner:
            known = ", ".join(spec.inner)
            raise UserError(f"unknown inner network {inner!r}", fix=f"one of: {known}")
        unknown = sorted(set(options) - spec.options_beside({"inner": inner}))
        if unknown:
            others = [name for name in spec.inner if unknown[0] in SCORERS[name].options]
            raise UserError(
                f"scorer 'paired_cnn' with inner {inner!r} has no option {unknown[0]!r}",
                fix=f"inner: {' or '.join(others)}, which has it" if others else "leave it out",
            )
        network = build_scorer(inner, CyclicGroup(4), in_channels, **options)
        self.inner = cast("GroupCNN | GroupWideResNet | StagedCNN", network)
        copies = group.order // 4
        self.prepare = TurnedCopies(
            self.inner.prepare,  # type: ignore[arg-type]
            tuple(-angle for angle in offsets(copies)),
            interpolation,
        )
        self.interleave = Interleave(copies)

    def score_pairs(self, views: Tensor) -> Tensor:
        """What the inner network says of turned copies (m * B, C, size, size)."""
        return self.interleave(self.inner.score_pairs(views))

    @property
    def classwise(self) -> bool:
        """Whether the inner network scores pairs of pose and class."""
        return self.inner.classwise

    def in_plain_layers(self) -> list[nn.Module]:
        """Turned copies, plain convolutions, one linear layer, reordered."""
        return [self.prepare, self.inner.plain_network(), self.interleave]
