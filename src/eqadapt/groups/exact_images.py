"""Actions on images that only move numbers: quarter turns, mirror reflection, channel permutations.

Nothing is resampled, so every law of an action holds to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eqadapt.errors import UserError
from eqadapt.groups.cyclic import CyclicGroup
from eqadapt.groups.finite import DihedralGroup, DirectProduct, FiniteGroup, PermutationGroup


@dataclass(frozen=True)
class PixelMove:
    """Mirror left to right, then turn by quarters; and channel i to place ``channels[i]``.

    Attributes:
        quarters: Quarter turns counter-clockwise, 0..3.
        mirror: Whether the image is mirrored first.
        channels: Places of the channels; empty leaves them.
    """

    quarters: int = 0
    mirror: bool = False
    channels: tuple[int, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """The moved images (B, C, H, W).

        Raises:
            UserError: Images that are not square where they are turned, or another number of
                channels.
        """
        if self.quarters and x.shape[-1] != x.shape[-2]:
            raise UserError(
                f"quarter turns act on square images, not on {tuple(x.shape)}",
                fix="crop or pad the images to squares",
            )
        if self.channels and x.shape[1] != len(self.channels):
            raise UserError(
                f"permutations of {len(self.channels)} channels act on images of {x.shape[1]}",
                fix=f"S{x.shape[1]}, or images with {len(self.channels)} channels",
            )
        if self.mirror:
            x = x.flip(-1)
        if self.quarters:
            x = torch.rot90(x, self.quarters, (-2, -1))
        if self.channels:
            x = x[:, sorted(range(len(self.channels)), key=self.channels.__getitem__)]
        return x


def pixel_move(group: FiniteGroup, element: int) -> PixelMove:
    """What an element of a group does to an image.

    Raises:
        UserError: It cannot be done without resampling, or two factors of a product move the same
            thing.
    """
    if isinstance(group, CyclicGroup | DihedralGroup):
        turns = group.order if isinstance(group, CyclicGroup) else group.turns
        if 4 % turns:
            raise UserError(
                f"{group.name} does not act on pixels without resampling",
                fix="C1, C2, C4, D1, D2 or D4",
            )
        mirror, step = divmod(element, turns)
        return PixelMove(step * (4 // turns), bool(mirror))
    if isinstance(group, PermutationGroup):
        return PixelMove(channels=group.images[element])
    if isinstance(group, DirectProduct):
        pairs = zip(group.parts, group.split(element), strict=True)
        return _together([pixel_move(part, own) for part, own in pairs], group)
    raise UserError(f"no action of {group.name} on pixels is known")


def _together(moves: Sequence[PixelMove], group: DirectProduct) -> PixelMove:
    """Moves of places and moves of channels commute; two of one kind need not."""
    places = [part for part in group.parts if isinstance(part, CyclicGroup | DihedralGroup)]
    channels = [part for part in group.parts if isinstance(part, PermutationGroup)]
    if len(places) > 1 or len(channels) > 1 or len(places) + len(channels) < len(group.parts):
        raise UserError(
            f"the factors of {group.name} do not all commute on images",
            fix="one group of the plane times one of the channels, e.g. D4xS3",
        )
    return PixelMove(
        sum(move.quarters for move in moves) % 4,
        any(move.mirror for move in moves),
        next((move.channels for move in moves if move.channels), ()),
    )


class ExactAction:
    """The action of a finite group on images (B, C, H, W), exact.

    Args:
        group: Rotations by quarter turns, reflections, channel permutations, or a product of a
            group of the plane and one of the channels.

    Raises:
        UserError: The group does not act without resampling.
    """

    def __init__(self, group: FiniteGroup) -> None:
        self.group = group
        self.moves = tuple(pixel_move(group, element) for element in range(group.order))

    def turn(self, x: Tensor, element: int) -> Tensor:
        """``element . x`` for the whole batch."""
        return self.moves[element](x)

    def act(self, x: Tensor, g: Tensor) -> Tensor:
        """``g . x``: each image (B, C, H, W) moved by its own element (B,) int64."""
        moved = x.clone()
        for element in g.unique().tolist():
            rows = (g == element).nonzero().flatten().to(x.device)
            moved = moved.index_copy(0, rows, self.turn(x[rows], element))
        return moved

    def undo(self, x: Tensor, g: Tensor) -> Tensor:
        """``g^-1 . x``: the canonical form of ``x`` when its pose is ``g`` (B,)."""
        inverses = torch.tensor([self.group.inverse(k) for k in range(self.group.order)])
        return self.act(x, inverses.to(g.device)[g])

    def orbit(self, x: Tensor) -> Tensor:
        """All views ``g_k^-1 . x``; (B, K, C, H, W)."""
        group = self.group
        return torch.stack([self.turn(x, group.inverse(k)) for k in range(group.order)], dim=1)
