"""Whether outputs move with the input as a law says, and the first layer that breaks it.

"Why is my equivariant network not equivariant?" has few answers: a stride that does not fit the
side, padding on one side, a pointwise dropout, a layer that was never equivariant. Each shows in a
network that is passed turned copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from eqadapt.errors import UserError
from eqadapt.groups import RotationAction

# Above these shares it is not rounding: of the largest output; of a layer's sum of squares.
OUTPUT_TOLERANCE, LAYER_TOLERANCE = 1e-4, 1e-5


@dataclass(frozen=True)
class ElementCheck:
    """What one group element does to the outputs.

    Attributes:
        element: The element.
        degrees: Its angle, counter-clockwise.
        exact: It is a multiple of 90 degrees: nothing is resampled.
        error: Largest departure from the law, as a share of the largest output.
        follows: Share of images whose largest output is where the law wants it.
    """

    element: int
    degrees: float
    exact: bool
    error: float
    follows: float

    @property
    def holds(self) -> bool:
        """The law holds up to rounding; of resampled elements nobody can ask that."""
        return self.error <= OUTPUT_TOLERANCE


@dataclass(frozen=True)
class Break:
    """The first layer that a quarter turn of the input gives another sum of squares.

    Attributes:
        name: Its path in the network, empty for the network itself.
        kind: Its class.
        change: Largest change of the sum, as a share of it.
        shape: Of its output.
    """

    name: str
    kind: str
    change: float
    shape: tuple[int, ...]


def smooth_images(count: int, side: int, channels: int = 3, seed: int = 0) -> Tensor:
    """Images without symmetry that survive resampling: enlarged noise.

    Args:
        count: How many.
        side: In pixels.
        channels: 1 for grey images, 3 for colour.
        seed: Of the noise.

    Returns:
        (count, channels, side, side) float32 in [0, 1].

    Raises:
        UserError: No images, or of a single pixel.
    """
    if count < 1 or side < 2:
        raise UserError(f"{count} images of side {side}", fix="1 or more, of side 2 or more")
    noise = torch.rand(count, channels, 6, 6, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (side, side), mode="bicubic", align_corners=False).clamp(0, 1)


@torch.no_grad()
def check_elements(
    network: Callable[[Tensor], Tensor],
    action: RotationAction,
    images: Tensor,
    moves: bool = True,
) -> list[ElementCheck]:
    """How well ``a(g . x)`` is what the law makes of ``a(x)``, element by element.

    Args:
        network: Maps images (B, C, H, H) to outputs (B, D), in the mode that it is in.
        action: What turns the images.
        images: (B, C, H, H) float32, as the network takes them.
        moves: The law of pose scorers, ``a(g . x) = roll(a(x), g)``; else that of invariant
            networks, ``a(g . x) = a(x)``.

    Returns:
        One check for each element but the identity.

    Raises:
        UserError: A scorer does not give one output a group element.
    """
    # posed as its turned copies are: where the action masks images, these too
    group, plain = action.group, network(action.posed(images, 0))
    if moves and plain.shape[1:] != (group.order,):
        raise UserError(
            f"outputs of shape {tuple(plain.shape)} are no scores of the {group.order} elements "
            f"of {group.name}",
            fix="another group, or moves=False for a network that should not notice turns",
        )
    largest = plain.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    checks = []
    for element in range(1, group.order):
        wanted = plain.roll(element, 1) if moves else plain
        turned = network(action.posed(images, element))
        checks.append(
            ElementCheck(
                element=element,
                degrees=360.0 * element / group.order,
                exact=element in group.exact_elements,
                error=float((turned - wanted).abs().max() / largest),
                follows=float((turned.argmax(1) == wanted.argmax(1)).float().mean()),
            )
        )
    return checks


def broken(checks: Iterable[ElementCheck]) -> bool:
    """Whether the law fails where nothing is resampled, by more than rounding."""
    return any(check.exact and not check.holds for check in checks)


@torch.no_grad()
def first_break(network: nn.Module, images: Tensor) -> Break | None:
    """The first layer at which quarter turns of the input are more than a rearrangement.

    An equivariant layer permutes its outputs when the input is turned, or turns the vectors at
    each place, so that the sum of their squares stays. That is asked of each module, whatever its
    fields are, in the order in which they end, parts before the whole; it is necessary for the law,
    not sufficient.

    Args:
        network: Takes the images; a layer may return a tensor or, as those of escnn, what has one
            as ``tensor``.
        images: (B, C, H, H) float32.

    Returns:
        That layer; None where all keep their sums.
    """
    passes = (_sums(network, torch.rot90(images, quarter, (-2, -1))) for quarter in range(4))
    for (name, kind, total, shape), *others in zip(*passes, strict=False):
        change = max(abs(other - total) for _, _, other, _ in others) / max(total, 1e-30)
        if change > LAYER_TOLERANCE:
            return Break(name, kind, change, shape)
    return None


def sides_that_keep(
    network: Callable[[Tensor], Tensor],
    action: RotationAction,
    images: Tensor,
    sides: Sequence[int],
    moves: bool = True,
) -> list[int]:
    """Those sides of images at which the network takes them and the law is not ``broken``."""
    kept = []
    for side in sides:
        resized = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        try:
            checks = check_elements(network, action, resized, moves)
        except (
            UserError,
            RuntimeError,
            AssertionError,
        ):  # torch and timm, of its side
            continue
        if not broken(checks):
            kept.append(side)
    return kept


def _sums(network: nn.Module, images: Tensor) -> list[tuple[str, str, float, tuple[int, ...]]]:
    """Name and class of each module that ran, the sum of its squared outputs, and their shape."""
    found: list[tuple[str, str, float, tuple[int, ...]]] = []

    def look_at(module: nn.Module, name: str) -> RemovableHandle:
        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            values = getattr(output, "tensor", output)
            if isinstance(values, Tensor) and values.is_floating_point():
                total = float(values.double().square().sum())
                found.append((name, type(module).__name__, total, tuple(values.shape)))

        return module.register_forward_hook(hook)

    handles = [look_at(part, name) for name, part in network.named_modules()]
    try:
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
