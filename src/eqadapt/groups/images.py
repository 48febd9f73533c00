"""How rotations act on square images: exact quarter turns first, then at most one resampling.

Directions: positive angles turn counter-clockwise as the image is seen (``torch.rot90(x, 1, (-2,
-1))`` is +90 degrees). The centre is ``((H-1)/2, (W-1)/2)``. A multiple of 90 degrees only moves
pixels. Everything else is a quarter turn followed by one warp by the remaining angle in (0, 90):
a copy of the image turned by 90 degrees then reaches the warp with the same bytes, so canonical
forms under C4 inside any C_4m agree to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eqadapt.errors import UserError
from eqadapt.groups.cyclic import CyclicGroup
from eqadapt.parts import images_at_once


def quarter_turns(x: Tensor, quarters: Tensor) -> Tensor:
    """Turn each image by its own multiple of 90 degrees, exactly and without synchronising.

    Args:
        x: (B, C, H, H), any dtype.
        quarters: (B,) int64, in units of +90 degrees, 0..3.
    """
    q = quarters.view(-1, 1, 1, 1)
    x = torch.where(q % 2 == 1, x.transpose(-1, -2), x)
    x = torch.where((q == 1) | (q == 2), x.flip(-2), x)
    return torch.where(q >= 2, x.flip(-1), x)


def rotation_grid(degrees: Tensor, size: int) -> Tensor:
    """Sampling grids that turn images counter-clockwise.

    Args:
        degrees: (F,) float.
        size: Side of the square images in pixels.

    Returns:
        (F, size, size, 2) float32 for ``grid_sample(align_corners=False)``.
    """
    radians = degrees.double() * (math.pi / 180.0)
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    theta = torch.stack([torch.stack([cos, -sin, zero], -1), torch.stack([sin, cos, zero], -1)], -2)
    return F.affine_grid(theta, [len(degrees), 1, size, size], align_corners=False).float()


def pixel_centres(side: int, size: int) -> slice | None:
    """Which of ``side`` pixels are the ``size`` old ones, after an enlargement by an odd factor.

    Taking them undoes an enlargement for the sake of the action, and averages nothing.

    Returns:
        To be used on rows and columns; None where ``side`` is no odd multiple of ``size``.
    """
    factor, rest = divmod(side, size)
    return slice(factor // 2, None, factor) if rest == 0 and factor % 2 else None


_ALL = slice(None)
# Pixels of a warped image above which its rows are shared among threads, and batches made in parts.
LARGE_IMAGE = 64 * 64


def _read(side: int, size: int | None) -> slice:
    """The pixels, along rows and columns, that a network of that side reads; all, if unknown."""
    return (None if size is None else pixel_centres(side, size)) or _ALL


def disk_mask(size: int, softness: float = 1.0, device: torch.device | None = None) -> Tensor:
    """A soft disk inscribed in the square: 1 inside, 0 in the corners; (size, size) float32.

    Args:
        size: Side in pixels.
        softness: Width in pixels of the linear edge.
        device: Where to make it.
    """
    axis = torch.arange(size, device=device, dtype=torch.float32) - (size - 1) / 2
    radius = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt()
    return ((size / 2 - radius) / softness).clamp(0.0, 1.0)


def rotate(
    x: Tensor, degrees: Tensor, interpolation: str = "bilinear", padding: str = "border"
) -> Tensor:
    """Turn each image by its own angle, any real number of degrees, counter-clockwise.

    Args:
        x: (B, C, H, H) float.
        degrees: (B,) float.
        interpolation: ``"bilinear"`` or ``"bicubic"``.
        padding: What lies outside: ``"border"`` repeats the edge, ``"zeros"`` is black.
    """
    quarters = torch.div(degrees, 90.0, rounding_mode="floor")
    rest = degrees - 90.0 * quarters
    turned = quarter_turns(x, quarters.long() % 4)
    warped = _sampled(turned, rotation_grid(rest, x.shape[-1]), interpolation, padding)
    return torch.where((rest == 0).view(-1, 1, 1, 1), turned, warped)


def _sampled(x: Tensor, grid: Tensor, interpolation: str, padding: str) -> Tensor:
    """Images at the places of a grid: in float32 where they have half of that precision, which
    cannot tell the pixels of a large image apart."""
    precise = torch.promote_types(x.dtype, torch.float32)
    places = grid.to(precise)
    found = F.grid_sample(x.to(precise), places, interpolation, padding, align_corners=False)
    return found.to(x.dtype)


def _bands(x: Tensor, grid: Tensor) -> int:
    """Bands of rows in which to sample a single image: sampling shares images among threads, not
    rows. The same bytes; a small image is not worth it, and gradients would be summed by bands."""
    rows, columns = grid.shape[1:3]
    if len(x) != 1 or x.device.type != "cpu" or rows * columns < LARGE_IMAGE:
        return 1
    if torch.is_grad_enabled() and x.requires_grad:
        return 1
    return max(n for n in range(1, torch.get_num_threads() + 1) if rows % n == 0)


def _worth_caches(x: Tensor) -> bool:
    """Whether to make orbits a few images at a time: large ones on a CPU, where no gradient has to
    find its way back through them."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    large = len(x) > 1 and x.shape[-1] ** 2 > LARGE_IMAGE
    return large and not (torch.is_grad_enabled() and x.requires_grad)


class RotationAction:
    """The action of C_n on batches of square images (B, C, H, H).

    Args:
        group: The group.
        interpolation: ``"bilinear"`` (the papers' protocol) or ``"bicubic"``.
        padding: ``"border"`` (edge padding, as the papers) or ``"zeros"``.
        mask: ``"disk"`` multiplies results by an inscribed soft disk, so that no corner can leak
            the angle; None or ``"none"`` leaves them.
    """

    def __init__(
        self,
        group: CyclicGroup,
        interpolation: str = "bilinear",
        padding: str = "border",
        mask: str | None = None,
    ) -> None:
        if interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"unknown interpolation {interpolation!r}", fix="bilinear or bicubic")
        if padding not in ("border", "zeros"):
            raise UserError(f"unknown padding {padding!r}", fix="border or zeros")
        if mask not in (None, "none", "disk"):
            raise UserError(f"unknown mask {mask!r}", fix="none or disk")
        self.group = group
        self.interpolation = interpolation
        self.padding = padding
        self.mask = None if mask == "none" else mask
        parts = [group.decompose(k) for k in range(group.order)]
        self._rests = sorted({rest for _, rest in parts})
        self._quarters = torch.tensor([quarter for quarter, _ in parts])
        self._rest_index = torch.tensor([self._rests.index(rest) for _, rest in parts])
        self._cache: dict[tuple[object, ...], Tensor] = {}
        self._plans: dict[tuple[int, ...], list[tuple[float, tuple[int, ...], list[int]]]] = {}

    def _constant(self, key: tuple[object, ...], make, device: torch.device) -> Tensor:
        full = (*key, device)
        if full not in self._cache:
            with torch.inference_mode(False):  # kept, and so maybe used where gradients are
                self._cache[full] = make().to(device)
        return self._cache[full]

    def _grids(self, size: int, device: torch.device) -> Tensor:
        return self._constant(
            ("grids", size), lambda: rotation_grid(torch.tensor(self._rests), size), device
        )

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[-1] != x.shape[-2]:
            raise UserError(
                f"a rotation group acts on square images (B, C, H, H), not on {tuple(x.shape)}",
                fix="crop or pad the images to squares",
            )

    def masked(self, x: Tensor) -> Tensor:
        """``x`` times the disk, where this action has one."""
        return self._masked(x, x.shape[-1], _ALL)

    def _masked(self, x: Tensor, side: int, at: slice) -> Tensor:
        """Pixels ``at`` of images of that side, times the disk there."""
        if self.mask is None:
            return x
        disk = self._constant(("disk", side), lambda: disk_mask(side), x.device)
        return x * disk[at, at].to(x.dtype)

    def _warp(self, x: Tensor, grid: Tensor) -> Tensor:
        bands = _bands(x, grid)
        if bands == 1:
            return self._sampled(x, grid.expand(len(x), -1, -1, -1))
        parts = self._sampled(x.expand(bands, -1, -1, -1), grid[0].unflatten(0, (bands, -1)))
        return parts.transpose(0, 1).flatten(1, 2)[None]

    def _sampled(self, x: Tensor, grid: Tensor) -> Tensor:
        return _sampled(x, grid, self.interpolation, self.padding)

    def _warp_rest(self, x: Tensor, rest: float, at: slice) -> Tensor:
        """Pixels ``at`` of all images turned by ``rest``, a group's angle below 90 degrees."""
        if not rest:
            return x[..., at, at]
        grids = self._grids(x.shape[-1], x.device)
        return self._warp(x, grids[self._rests.index(rest), at, at][None])

    def act(self, x: Tensor, g: Tensor, size: int | None = None) -> Tensor:
        """``g . x``: each image turned by its own element.

        Args:
            x: (B, C, H, H) float.
            g: (B,) int64 elements.
            size: Side of the network that reads the result. Where H is an odd multiple of it, only
                the pixels that it reads are made (``pixel_centres``).

        Returns:
            (B, C, H, H), or (B, C, size, size).

        Raises:
            UserError: The images are not square, or there is not one element for each.
        """
        self._check(x)
        if g.shape != (len(x),):
            raise UserError(
                f"elements of shape {tuple(g.shape)} for {len(x)} images",
                fix="one element an image, (B,); `turn` takes one for all",
            )
        g, side = g.to(x.device), x.shape[-1]
        at = _read(side, size)
        if x.device.type == "cpu":
            return self._masked(self._act_one_by_one(x, g, at), side, at)
        index = self._constant(("rest",), lambda: self._rest_index, x.device)[g]
        quarters = self._constant(("quarters",), lambda: self._quarters, x.device)[g]
        source = quarter_turns(x, quarters)
        turned = source[..., at, at]
        if len(self._rests) > 1:
            warped = self._warp(source, self._grids(side, x.device)[index][:, at, at])
            turned = torch.where((index == 0).view(-1, 1, 1, 1), turned, warped)
        return self._masked(turned, side, at)

    def _act_one_by_one(self, x: Tensor, g: Tensor, at: slice) -> Tensor:
        """``act`` where no launch is waited for: turns are views, which the warp and the last copy
        read, and only images that need it are warped."""
        if not len(x):
            return x[..., at, at]
        parts = [self.group.decompose(element) for element in g.tolist()]
        if len(parts) == 1 and parts[0][1]:
            return self._warp_rest(torch.rot90(x, parts[0][0], (-2, -1)), parts[0][1], at)
        if torch.is_grad_enabled() and x.requires_grad:
            images = dict(self._turned(x, parts, at))
            return torch.stack([images[row] for row in range(len(x))])
        out = x.new_empty(x[..., at, at].shape)
        for row, image in self._turned(x, parts, at):
            out[row].copy_(image)
        return out

    def _turned(
        self, x: Tensor, parts: Sequence[tuple[int, float]], at: slice
    ) -> Iterator[tuple[int, Tensor]]:
        """Pixels ``at`` of each image turned by its part, with its row, in any order.

        As many at a time as there are threads: sampling shares images among threads, not rows, and
        what lies between must not leave the caches.
        """
        at_once = torch.get_num_threads()
        rows_of: dict[tuple[int, float], list[int]] = {}
        for row, part in enumerate(parts):
            rows_of.setdefault(part, []).append(row)
        for (quarter, rest), rows in rows_of.items():
            if not rest:
                yield from (
                    (row, torch.rot90(x[row], quarter, (-2, -1))[..., at, at]) for row in rows
                )
                continue
            for start in range(0, len(rows), at_once):
                some = rows[start : start + at_once]
                source = x[some] if len(some) > 1 else x[some[0] : some[0] + 1]  # a view of one
                turned = torch.rot90(source, quarter, (-2, -1))
                yield from zip(some, self._warp_rest(turned, rest, at), strict=True)

    def turn(self, x: Tensor, element: int) -> Tensor:
        """``element . x`` for the whole batch."""
        self._check(x)
        quarter, rest = self.group.decompose(element % self.group.order)
        return self.masked(self._warp_rest(torch.rot90(x, quarter, (-2, -1)), rest, _ALL))

    def posed(self, x: Tensor, element: int) -> Tensor:
        """``element . x`` as an input to be adapted: the warp first, the quarter turn after it.

        The same image as ``turn`` gives, up to rounding. Inputs 90 degrees apart are then turned
        copies of each other to the last bit, as photographs of a turned object would be.
        """
        self._check(x)
        quarter, rest = self.group.decompose(element % self.group.order)
        return self.masked(torch.rot90(self._warp_rest(x, rest, _ALL), quarter, (-2, -1)))

    def undo(self, x: Tensor, g: Tensor, size: int | None = None) -> Tensor:
        """``g^-1 . x``: the canonical form of ``x`` when its pose is ``g`` (B,); see ``act``."""
        return self.act(x, -g % self.group.order, size)

    def orbit(
        self, x: Tensor, size: int | None = None, elements: Sequence[int] | None = None
    ) -> Tensor:
        """All views ``g_k^-1 . x``, one batched warp a distinct rest angle.

        Args:
            x: (B, C, H, H) float.
            size: As of ``act``.
            elements: Those k whose views are made, in this order; None for all.

        Returns:
            (B, K, C, H, H), or (B, K, C, size, size).
        """
        self._check(x)
        if _worth_caches(x):
            return self._orbit_in_caches(x, size, elements)
        views: dict[int, Tensor] = {}
        for places, made in self._orbit_parts(x, size, elements):
            views.update(zip(places, made.unbind(1), strict=True))
        return torch.stack([views[place] for place in range(len(views))], dim=1)

    def _orbit_in_caches(
        self, x: Tensor, size: int | None, elements: Sequence[int] | None
    ) -> Tensor:
        """``orbit`` for a few images at a time, what lies between views and result kept small."""
        at = _read(x.shape[-1], size)
        count = self.group.order if elements is None else len(elements)
        out = x.new_empty(len(x), count, x.shape[1], *x[0, 0, at, at].shape)
        at_once = images_at_once(count * x[:1].nbytes, torch.get_num_threads())
        for start in range(0, len(x), at_once):
            some = slice(start, start + at_once)
            for places, made in self._orbit_parts(x[some], size, elements):
                for place, views in zip(places, made.unbind(1), strict=True):
                    out[some, place].copy_(views)
        return out

    def orbit_as_made(
        self, x: Tensor, size: int | None = None, elements: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """``orbit`` in an order that takes fewer copies, for whoever treats views one by one.

        Args:
            x: As of ``orbit``, like ``size`` and ``elements``.

        Returns:
            The views, and the indices (K,) that put them, or what is made of them, into the
            order of ``orbit``: int64, on the device of ``x``.
        """
        parts = list(self._orbit_parts(x, size, elements))
        places = tuple(place for some, _ in parts for place in some)
        order = self._constant(
            ("order", places), lambda: torch.tensor(places).argsort(), x.device
        )  # kept: a list as an index would be copied to a GPU each time
        return torch.cat([views for _, views in parts], dim=1), order

    def _orbit_parts(
        self, x: Tensor, size: int | None, elements: Sequence[int] | None
    ) -> Iterator[tuple[list[int], Tensor]]:
        """Views by their rest angles: places in the orbit, and the views there."""
        self._check(x)
        side, at = x.shape[-1], _read(x.shape[-1], size)
        turned: dict[tuple[object, ...], Tensor] = {}
        for rest, quarters, places in self._plan(elements):
            some = _ALL if rest else at
            key = (quarters, some == _ALL)
            if key not in turned:
                turns = [torch.rot90(x, q, (-2, -1)) if q else x for q in quarters]
                turned[key] = torch.stack([turn[..., some, some] for turn in turns], dim=1)
            views = turned[key]
            if rest:
                views = self._warp_rest(views.flatten(0, 1), rest, at).unflatten(0, views.shape[:2])
            yield places, self._masked(views, side, at)

    def _plan(
        self, elements: Sequence[int] | None
    ) -> list[tuple[float, tuple[int, ...], list[int]]]:
        """For each rest angle the quarter turns before it, and places of the views in the orbit."""
        key = tuple(range(self.group.order) if elements is None else elements)
        if key not in self._plans:
            parts = [(*self.group.decompose(self.group.inverse(k)), i) for i, k in enumerate(key)]
            self._plans[key] = [
                (rest, tuple(q for q, _ in members), [place for _, place in members])
                for rest in sorted({rest for _, rest, _ in parts})
                for members in [sorted((q, place) for q, r, place in parts if r == rest)]
            ]
        return self._plans[key]
