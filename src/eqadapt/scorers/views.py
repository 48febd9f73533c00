"""Scorers that rate every view by itself: the law then holds whatever rates them.

Turning the input only permutes its views g_k^-1 . x, so the scores move along: exactly under
multiples of 90 degrees, up to resampling for the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction, disk_mask
from eqadapt.scorers.base import PoseScorer, Prepare, settle

VIEW_SETTINGS: dict[str, Any] = {
    "input_size": 33,
    "crop": None,
    "mask_input": True,
    "half_step": None,
}


class ViewRater(PoseScorer):
    """Resizes images once, turns them, and rates the views.

    Subclasses define ``score`` by means of ``views``.

    Args:
        group: Any C_n.
        in_channels: Channels of the images.
        settings: ``input_size``, ``crop``, ``mask_input`` and ``half_step`` (turn all views by
            half a step more, so that none of them is crisp; None: where the group has elements
            that are no multiples of 90 degrees).
        interpolation: Of the views: ``"bilinear"`` or ``"bicubic"``.
    """

    prepare: Prepare

    def __init__(
        self,
        group: CyclicGroup,
        in_channels: int,
        settings: Mapping[str, Any],
        interpolation: str,
    ) -> None:
        super().__init__(group, in_channels)
        half_step, inexact = settings["half_step"], len(group.exact_elements) < group.order
        self.half_step = inexact if half_step is None else bool(half_step)
        acting = CyclicGroup(2 * group.order) if self.half_step else group
        mask = "disk" if settings["mask_input"] else None
        self.action = RotationAction(acting, interpolation, padding="border", mask=mask)
        self.prepare = Prepare(settings["input_size"], settings["crop"])

    def views(self, prepared: Tensor) -> Tensor:
        """All views of prepared images; (B, K, C, size, size)."""
        return self.action.orbit(prepared, elements=self._elements)

    def views_as_made(self, prepared: Tensor) -> tuple[Tensor, Tensor]:
        """``views`` in another order, and what puts it right (``RotationAction.orbit_as_made``)."""
        return self.action.orbit_as_made(prepared, elements=self._elements)

    @property
    def _elements(self) -> Sequence[int]:
        """The acting group's elements that the views undo."""
        if not self.half_step:
            return range(self.group.order)
        return [2 * k - 1 for k in range(self.group.order)]


class FixedEnergy(ViewRater):
    """The inner product of each view with fixed noise: canonicalization without any learning.

    Every learnt canonicalizer must beat it. The form of Baltaji et al. 2023, with what it
    lacks: the noise is drawn once, not at every call, and views have mean zero, so that neither the
    brightness of the image nor the mean of the noise decides. Scores are ten times cosines.

    Args:
        group: Any C_n.
        in_channels: Channels of the images.
        input_size: Images are resized to this side once, then turned.
        crop: Central share of the image that is looked at.
        mask_input: Mask the corners of the views.
        half_step: As of the embedding scorers.
        interpolation: Of the views: ``"bilinear"`` or ``"bicubic"``.
        seed: Of the noise; the same in every run, whatever the run's own seed.

    Raises:
        UserError: Sizes that do not fit, or a seed that is none.
    """

    weight: Tensor
    disk: Tensor

    def __init__(
        self,
        group: CyclicGroup,
        in_channels: int,
        *,
        input_size: int | None = None,
        crop: float | None = None,
        mask_input: bool | None = None,
        half_step: bool | None = None,
        interpolation: str = "bilinear",
        seed: int = 0,
    ) -> None:
        given = {k: v for k, v in locals().items() if k in VIEW_SETTINGS}
        s = settle("fixed_energy", {"": VIEW_SETTINGS}, "", given)
        super().__init__(group, in_channels, s, interpolation)
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise UserError(f"scorer 'fixed_energy': seed is {seed!r}", fix="0 or a larger integer")
        side = s["input_size"]
        noise = torch.rand(in_channels, side, side, generator=torch.Generator().manual_seed(seed))
        disk = disk_mask(side) if s["mask_input"] else torch.ones(side, side)
        centred = (noise - (noise * disk).mean((1, 2), keepdim=True) / disk.mean()) * disk
        self.register_buffer("weight", centred / centred.norm())
        self.register_buffer("disk", disk, persistent=False)

    def score(self, views: Tensor) -> Tensor:
        """Pose logits (B, K) of prepared images (B, C, size, size)."""
        turned = self.views(views)  # times the disk already, where there is one
        brightness = turned.mean((-2, -1), keepdim=True) / self.disk.mean()
        centred = turned - brightness * self.disk
        return 10.0 * F.cosine_similarity(centred.flatten(2), self.weight.flatten(), dim=-1)
