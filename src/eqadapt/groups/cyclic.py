"""The cyclic groups C_n of planar rotations, as tables. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eqadapt.errors import UserError

_NAME = re.compile(r"C([1-9]\d{0,2})")


@dataclass(frozen=True)
class CyclicGroup:
    """C_n: rotations by ``k * 360/n`` degrees, counter-clockwise, ``k = 0 .. n-1``.

    Elements are the integers ``k``; 0 is the identity.
    """

    order: int

    @property
    def name(self) -> str:
        """``"C8"`` for n = 8."""
        return f"C{self.order}"

    @property
    def angles(self) -> tuple[float, ...]:
        """The angle of each element in degrees, counter-clockwise, in [0, 360)."""
        return tuple(360.0 * k / self.order for k in range(self.order))

    def compose(self, left: int, right: int) -> int:
        """The element ``left * right`` (act with ``right`` first)."""
        return (left + right) % self.order

    def inverse(self, element: int) -> int:
        """The element that undoes ``element``."""
        return -element % self.order

    @property
    def exact_elements(self) -> tuple[int, ...]:
        """Elements that turn by a multiple of 90 degrees: they act on pixels without resampling."""
        return tuple(k for k in range(self.order) if (4 * k) % self.order == 0)

    def decompose(self, element: int) -> tuple[int, float]:
        """``(q, r)``: quarter turns and the rest, of the angle ``90 q + r`` with 0 <= r < 90."""
        quarters, rest = divmod(4 * element, self.order)
        return quarters % 4, 90.0 * rest / self.order

    def contains(self, other: CyclicGroup) -> bool:
        """Whether ``other`` is a subgroup."""
        return self.order % other.order == 0

    def embed(self, element: int, into: CyclicGroup) -> int:
        """The same rotation as an element of a larger group ``into``."""
        return element * (into.order // self.order)


def parse_group(name: str) -> CyclicGroup:
    """``"C8"`` to ``CyclicGroup(8)``.

    Raises:
        UserError: The name is not of the form ``C<n>``, 1 <= n <= 999.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(
            f"unknown group {name!r}", fix="use C<n>: C4 (exact on pixels), C8, C16, ... or C1"
        )
    return CyclicGroup(int(match[1]))
