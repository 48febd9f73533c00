"""How rotations act on places in images: key points, and the corners of boxes.

Coordinates are (x, y) in pixels, x to the right and y down, and the centres of pixels are at
integers: pixel ``[row, column]`` lies at (column, row), and an image of side H reaches from -0.5 to
H - 0.5. Elements turn as in ``eqadapt.groups.images``: counter-clockwise as the image is seen,
about ``((H-1)/2, (H-1)/2)``. (torchvision turns key points and boxes by one angle a call, and
rounds at quarter turns; here each image has its own, and quarter turns are exact.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from eqadapt.errors import UserError
from eqadapt.groups.cyclic import CyclicGroup


def act_on_points(group: CyclicGroup, points: Tensor, g: Tensor, side: int) -> Tensor:
    """``g . points``: where the points of each image lie after ``RotationAction.act`` by ``g``.

    Multiples of 90 degrees are exact on pixels. Points are not clipped: those near the corners may
    leave the image.

    Args:
        group: The group.
        points: (B, N, 2) x and y in pixels; the origin is the centre of the top left pixel.
        g: (B,) int64 elements, one an image; ``-g`` undoes ``g``.
        side: Of the square images, in pixels.

    Returns:
        (B, N, 2), in float32 or more.

    Raises:
        UserError: The points have another shape, or there is not one element for each image.
    """
    if points.ndim != 3 or points.shape[-1] != 2:
        raise UserError(
            f"points of shape {tuple(points.shape)}",
            fix="(B, N, 2): x and y of N points of each image",
        )
    if g.shape != (len(points),):
        raise UserError(
            f"elements of shape {tuple(g.shape)} for the points of {len(points)} images",
            fix="one element an image, (B,)",
        )
    points = points.to(torch.promote_types(points.dtype, torch.float32))
    table = torch.tensor([_cos_sin(group, k) for k in range(group.order)], dtype=torch.float64)
    cos, sin = table.to(points)[g.to(points.device) % group.order].unsqueeze(-1).unbind(1)
    centre = (side - 1) / 2
    x, y = (points - centre).unbind(-1)
    return torch.stack([cos * x + sin * y, cos * y - sin * x], dim=-1) + centre


def _cos_sin(group: CyclicGroup, element: int) -> tuple[float, float]:
    """Cosine and sine of the element's angle: 0, 1 and -1 to the bit for quarter turns."""
    quarters, rest = group.decompose(element)
    cos, sin = math.cos(math.radians(rest)), math.sin(math.radians(rest))
    for _ in range(quarters):
        cos, sin = -sin, cos
    return cos, sin
