"""Poses in closed form, from moments of the intensity: nothing is learnt.

Scores are smooth functions of the image, not angles: the nearest element of the group is the
argmax, and an image whose pose the moments leave open shows it by near-equal scores. Moments are
taken over the inscribed disk in float64. They turn with the image: exactly under multiples of 90
degrees, up to resampling for the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, disk_mask
from eqadapt.scorers.base import PoseScorer

_SCALE = 10.0  # of the scores; far above rounding where two poses differ at all
_TINY = 1e-12


class _Moments(PoseScorer):
    """Intensities on the disk, and the directions that the group turns the reference to.

    Attributes:
        angles: (K,) float64 radians: where the reference direction points in each pose.
    """

    angles: Tensor

    def __init__(
        self, group: CyclicGroup, in_channels: int, *, reference_angle: float = 90.0
    ) -> None:
        super().__init__(group, in_channels)
        if isinstance(reference_angle, bool) or not isinstance(reference_angle, int | float):
            raise UserError(
                f"the reference angle is {reference_angle!r}", fix="degrees, counter-clockwise"
            )
        self.prepare = nn.Identity()
        degrees = [reference_angle + angle for angle in group.angles]
        radians = torch.tensor(degrees, dtype=torch.float64) * (math.pi / 180.0)
        self.register_buffer("angles", radians, persistent=False)

    @staticmethod
    def _intensities(x: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (B, H*H) that sum to 1, least intensity 0, and places (H*H, 2) in half sides."""
        side = x.shape[-1]
        disk = disk_mask(side, device=x.device).double()
        grey = x.double().mean(dim=1)
        darkest = grey.masked_fill(disk == 0, math.inf).amin((1, 2), keepdim=True)
        weights = ((grey - darkest) * disk).flatten(1)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(_TINY)
        axis = (torch.arange(side, device=x.device, dtype=torch.float64) - (side - 1) / 2) * 2
        rows, columns = torch.meshgrid(axis / side, axis / side, indexing="ij")
        return weights, torch.stack([columns.flatten(), -rows.flatten()], dim=1)


class MomentFrame(_Moments):
    """The direction of the intensity's first moment about the centre.

    Args:
        group: Any C_n.
        in_channels: Channels of the images.
        reference_angle: Where the moment points in canonical images, degrees counter-clockwise
            from the right; 90 is up.
    """

    def score(self, views: Tensor) -> Tensor:
        """Pose logits (B, K): the first moment's part along each pose's direction."""
        weights, places = self._intensities(views)
        along = weights @ places @ torch.stack([self.angles.cos(), self.angles.sin()])
        return (_SCALE * along).float()


class PCAFrame(_Moments):
    """The first principal axis of the intensity; the third moment tells its two ends apart.

    The axis is that of the covariance about the centroid, an axis of lines and not of arrows, so
    it leaves a pose and the one half a turn away. Of those the one with the larger third moment
    along it wins, through a term so small that it decides little else.

    Args:
        group: Any C_n.
        in_channels: Channels of the images.
        reference_angle: Where the axis points in canonical images, degrees counter-clockwise from
            the right; 90 is upright.
    """

    def score(self, views: Tensor) -> Tensor:
        """Pose logits (B, K): how the spread and the skew lie along each pose's direction."""
        weights, places = self._intensities(views)
        about = places - (weights @ places)[:, None]  # (B, H*H, 2)
        x, y = about.unbind(dim=-1)
        spread = (weights * (x * x + y * y)).sum(dim=1, keepdim=True).clamp_min(_TINY)
        angles = self.angles
        difference = (weights * (x * x - y * y)).sum(dim=1, keepdim=True)
        mixed = (weights * 2 * x * y).sum(dim=1, keepdim=True)
        even = (difference * (2 * angles).cos() + mixed * (2 * angles).sin()) / spread
        cos, sin = angles.cos(), angles.sin()
        powers = torch.stack([x**3, 3 * x * x * y, 3 * x * y * y, y**3], dim=-1)
        third = torch.einsum("bp,bpm->bm", weights, powers)
        odd = third @ torch.stack([cos**3, cos * cos * sin, cos * sin * sin, sin**3])
        odd = odd / spread**1.5
        return (_SCALE * (even + 0.01 * odd)).float()
