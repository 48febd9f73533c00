"""Finite groups as tables: dihedral groups, permutations, direct products. No torch here.

Elements of a group are the integers ``0 .. order-1``, and 0 is the identity. ``CyclicGroup`` is one
of them. Where a group is made of smaller ones it says so by its *factors*: subgroups whose product
in any order is the whole group, each element in one way.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

from eqadapt.errors import UserError
from eqadapt.groups.cyclic import CyclicGroup


@runtime_checkable
class FiniteGroup(Protocol):
    """A finite group on the integers ``0 .. order-1``; 0 is the identity."""

    @property
    def order(self) -> int:
        """Number of elements."""
        ...

    @property
    def name(self) -> str:
        """Its name in configurations."""
        ...

    def compose(self, left: int, right: int) -> int:
        """The element ``left * right`` (act with ``right`` first)."""
        ...

    def inverse(self, element: int) -> int:
        """The element that undoes ``element``."""
        ...


@runtime_checkable
class FactoredGroup(FiniteGroup, Protocol):
    """A finite group that is a product of subgroups."""

    @property
    def factors(self) -> tuple[tuple[int, ...], ...]:
        """The elements of each factor."""
        ...

    def complement(self, factor: int) -> tuple[int, ...]:
        """The elements of the subgroup that the other factors make."""
        ...


@dataclass(frozen=True)
class DihedralGroup:
    """D_n: rotations by ``360/n`` degrees, and the same after a mirror reflection.

    Element ``f * n + k`` is ``R^k F^f``: mirror left to right first (where f is 1), then turn by
    ``k * 360/n`` degrees counter-clockwise. It is the semidirect product of C_n and the
    reflection: ``F R = R^-1 F``, so the two do not commute.

    Args:
        turns: n.
    """

    turns: int

    @property
    def order(self) -> int:
        """2 n."""
        return 2 * self.turns

    @property
    def name(self) -> str:
        """``"D4"`` for n = 4."""
        return f"D{self.turns}"

    def compose(self, left: int, right: int) -> int:
        """The element ``left * right`` (act with ``right`` first)."""
        (f1, k1), (f2, k2) = divmod(left, self.turns), divmod(right, self.turns)
        return (f1 ^ f2) * self.turns + (k1 - k2 if f1 else k1 + k2) % self.turns

    def inverse(self, element: int) -> int:
        """The element that undoes ``element``: reflections undo themselves."""
        return element if element >= self.turns else -element % self.turns

    @property
    def factors(self) -> tuple[tuple[int, ...], ...]:
        """The rotations, and the identity with the mirror reflection."""
        return tuple(range(self.turns)), (0, self.turns)

    def complement(self, factor: int) -> tuple[int, ...]:
        """The other one of the two."""
        return self.factors[1 - factor]


@dataclass(frozen=True)
class PermutationGroup:
    """S_n or A_n: all permutations of n letters, or the even ones (A3 is the cyclic ones of 3).

    Elements are in lexicographic order. ``images[g][i]`` is the place to which g moves letter i.

    Args:
        letters: n.
        even: Even permutations alone.
    """

    letters: int
    even: bool = False

    @cached_property
    def images(self) -> tuple[tuple[int, ...], ...]:
        """The permutations."""
        found = itertools.permutations(range(self.letters))
        return tuple(p for p in found if not (self.even and _odd(p)))

    @cached_property
    def _element(self) -> dict[tuple[int, ...], int]:
        return {image: element for element, image in enumerate(self.images)}

    @property
    def order(self) -> int:
        """n! or n!/2."""
        return len(self.images)

    @property
    def name(self) -> str:
        """``"S3"`` or ``"A3"``."""
        return f"{'A' if self.even else 'S'}{self.letters}"

    def compose(self, left: int, right: int) -> int:
        """The element ``left * right`` (act with ``right`` first)."""
        first, then = self.images[right], self.images[left]
        return self._element[tuple(then[place] for place in first)]

    def inverse(self, element: int) -> int:
        """The element that undoes ``element``."""
        image = self.images[element]
        return self._element[tuple(sorted(range(self.letters), key=image.__getitem__))]


def _odd(permutation: tuple[int, ...]) -> bool:
    pairs = itertools.combinations(permutation, 2)
    return sum(first > second for first, second in pairs) % 2 == 1


@dataclass(frozen=True)
class DirectProduct:
    """G_1 x ... x G_N: tuples of elements, numbered with the last factor's fastest.

    Args:
        parts: The groups.
    """

    parts: tuple[FiniteGroup, ...]

    @property
    def order(self) -> int:
        """The product of the parts' orders."""
        return math.prod(part.order for part in self.parts)

    @property
    def name(self) -> str:
        """``"C4xS3"``."""
        return "x".join(part.name for part in self.parts)

    def split(self, element: int) -> tuple[int, ...]:
        """An element as a tuple of the parts' elements."""
        found = []
        for part in reversed(self.parts):
            element, own = divmod(element, part.order)
            found.append(own)
        return tuple(reversed(found))

    def join(self, elements: tuple[int, ...]) -> int:
        """A tuple of the parts' elements as one element."""
        joined = 0
        for part, own in zip(self.parts, elements, strict=True):
            joined = joined * part.order + own
        return joined

    def compose(self, left: int, right: int) -> int:
        """The element ``left * right`` (act with ``right`` first)."""
        pairs = zip(self.parts, self.split(left), self.split(right), strict=True)
        return self.join(tuple(part.compose(one, two) for part, one, two in pairs))

    def inverse(self, element: int) -> int:
        """The element that undoes ``element``."""
        pairs = zip(self.parts, self.split(element), strict=True)
        return self.join(tuple(part.inverse(own) for part, own in pairs))

    def _where(self, moving: set[int]) -> tuple[int, ...]:
        """The elements that are the identity in all other parts."""
        ranges = (
            range(part.order if place in moving else 1) for place, part in enumerate(self.parts)
        )
        return tuple(self.join(elements) for elements in itertools.product(*ranges))

    @property
    def factors(self) -> tuple[tuple[int, ...], ...]:
        """The parts as subgroups."""
        return tuple(self._where({place}) for place in range(len(self.parts)))

    def complement(self, factor: int) -> tuple[int, ...]:
        """The product of the other parts."""
        return self._where(set(range(len(self.parts))) - {factor})


_PART = re.compile(r"(?:([CD])([1-9]\d?)|([SA])([2-4]))")


def parse_finite_group(name: str) -> FiniteGroup:
    """``"C4"``, ``"D4"``, ``"S3"``, ``"A3"`` (of channels) or a product of them, ``"C4xS3"``.

    Raises:
        UserError: A name of another form.
    """
    found: list[FiniteGroup] = []
    for part in name.split("x"):
        match = _PART.fullmatch(part)
        if match is None:
            raise UserError(
                f"unknown group {name!r}",
                fix="C<n> (rotations), D<n> (and reflections), S<n> or A<n> (permutations of n "
                "channels), or a product such as C4xS3",
            )
        planar, count, permuted, letters = match.groups()
        if planar is None:
            found.append(PermutationGroup(int(letters), even=permuted == "A"))
        else:
            found.append(CyclicGroup(int(count)) if planar == "C" else DihedralGroup(int(count)))
    return found[0] if len(found) == 1 else DirectProduct(tuple(found))
