"""Networks that pass no image twice, for evaluation over orbits.

The copies of an image that a method passes are, turned by a quarter, the copies that it passes of
the turned image; so are the views that a classifier rates. That is found by comparing bytes, so
that what is to be proven (invariance) is not assumed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eqadapt.scorers.classifier import EveryView
from eqadapt.symmetrize import Symmetrized, read_side

_PRODUCTS = 2**24  # at once, so that keys take little memory
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass
class _Seen:
    """Images passed so far, what the backbone said of them, and their keys in order.

    ``places`` are those of the keys' images.
    """

    keys: Tensor
    places: Tensor
    images: Tensor
    outputs: tuple[Tensor, ...]

    def find(self, keys: Tensor, images: Tensor) -> Tensor:
        """(N,) int64 place of the image with the same bytes, -1 where there is none."""
        places = self.places[torch.searchsorted(self.keys, keys).clamp_max(len(self.keys) - 1)]
        same = (self.images[places] == images).flatten(1).all(dim=1)
        return torch.where(same, places, -1)

    @classmethod
    def of(cls, keys: Tensor, images: Tensor, outputs: tuple[Tensor, ...]) -> _Seen:
        """These."""
        return cls(*keys.sort(stable=True), images, outputs)

    def joined(self, other: _Seen) -> _Seen:
        """Those of both."""
        keys, order = torch.cat([self.keys, other.keys]).sort(stable=True)
        return _Seen(
            keys,
            torch.cat([self.places, other.places + len(self.images)])[order],
            torch.cat([self.images, other.images]),
            tuple(torch.cat(parts) for parts in zip(self.outputs, other.outputs)),
        )

    def outputs_at(self, places: Tensor) -> tuple[Tensor, ...]:
        """What was said of the images at these places."""
        return tuple(part[places] for part in self.outputs)


class PassOnce(nn.Module):
    """A network's outputs, taken from memory for images with the bytes of earlier ones.

    Args:
        inner: Maps images (B, C, H, H) to logits, or to a tuple of features and logits where it is
            called with ``with_features=True``. Each image's outputs are its own.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self._seen: dict[bool, _Seen] = {}

    @property
    def size(self) -> int | None:
        """Side of the images that the backbone reads, where it tells."""
        return read_side(self.inner)

    def forget(self) -> None:
        """Free the memory: what follows is of other images."""
        self._seen.clear()

    def forward(self, x: Tensor, with_features: bool = False) -> Any:
        """As the backbone's."""
        keys, seen = row_keys(x), self._seen.get(with_features)
        fresh = seen.find(keys, x) < 0 if seen else torch.ones_like(keys, dtype=torch.bool)
        if seen is None or fresh.any():
            more = _Seen.of(keys[fresh], x[fresh], self._outputs(x[fresh], with_features))
            seen = seen.joined(more) if seen else more
            self._seen[with_features] = seen
        places = seen.find(keys, x)
        lost = (places < 0).any()  # behind another image that has the same key by chance
        found = self._outputs(x, with_features) if lost else seen.outputs_at(places)
        return found if with_features else found[0]

    def _outputs(self, x: Tensor, with_features: bool) -> tuple[Tensor, ...]:
        return self.inner(x, with_features=True) if with_features else (self.inner(x),)


def row_keys(x: Tensor) -> Tensor:
    """A number for the bytes of each image: (B, ...) to (B,) int64.

    It is the sum of the image's bytes, read as integers, each times an odd number drawn once,
    modulo 2^64. Images of other bytes share it by chance alone.
    """
    rows = x.contiguous().flatten(1).view(_INTEGERS[x.element_size()])
    odd = _odd_numbers(rows.shape[1], rows.device)
    few = max(1, _PRODUCTS // len(odd))
    return torch.cat([(part.long() * odd).sum(dim=1) for part in rows.split(few)])


@functools.lru_cache(maxsize=8)
def _odd_numbers(count: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (2 * torch.randint(-(2**62), 2**62, (count,), generator=generator) + 1).to(device)


class Memories(list[PassOnce]):
    """Those of several networks, a backbone's first."""

    def forget(self) -> None:
        """Free the memory: what follows is of other images."""
        for memory in self:
            memory.forget()


@contextlib.contextmanager
def passing_once(model: Symmetrized) -> Iterator[Memories]:
    """A model whose networks pass no image twice: its backbone, and classifiers that rate views.

    Args:
        model: In evaluation mode. It is as it was when this ends.

    Yields:
        The memories in their places; ``forget`` them where other images begin.
    """
    places: list[tuple[nn.Module, str]] = [(model, "backbone")]
    if model.scorer is not None:
        raters = (part for part in model.scorer.modules() if isinstance(part, EveryView))
        places += [(rater, "network") for rater in raters]
    memories = Memories()
    for owner, name in places:
        inner = getattr(owner, name)
        memories.append(PassOnce(inner).train(inner.training))
        setattr(owner, name, memories[-1])
    try:
        yield memories
    finally:
        for (owner, name), memory in zip(places, memories, strict=True):
            setattr(owner, name, memory.inner)
