"""Networks that pass no image twice, for evaluation over orbits.

The copies of an image that a method passes are, turned by a quarter, the copies that it passes of
the turned image; so are the views that a classifier rates. That is found by comparing bytes, so
that what is to be proven (invariance) is not assumed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from eqadapt.scorers.classifier import EveryView
from eqadapt.symmetrize import Symmetrized, read_side

_PRODUCTS = 2**24  # at once, so that keys take little memory
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Rows:
    """A tensor that grows at its end, in memory that doubles: rows are not copied at every step."""

    def __init__(self, first: Tensor) -> None:
        self._kept, self._count = first.clone(), len(first)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, places: Tensor) -> Tensor:
        return self._kept[places]

    def append(self, more: Tensor) -> None:
        """Add rows."""
        count = self._count + len(more)
        if count > len(self._kept):
            grown = self._kept.new_empty(max(count, 2 * len(self._kept)), *self._kept.shape[1:])
            grown[: self._count] = self._kept[: self._count]
            self._kept = grown
        self._kept[self._count : count] = more
        self._count = count


class _Seen:
    """Images passed so far, as rows of integers, and what the network said of them.

    Args:
        rows: (N, L) the images' bytes.
        outputs: Of the network, N rows each.
    """

    def __init__(self, rows: Tensor, outputs: tuple[Tensor, ...]) -> None:
        self._rows, self._outputs = _Rows(rows), tuple(_Rows(part) for part in outputs)
        self._keys, self._places = row_keys(rows).sort(stable=True)

    def find(self, rows: Tensor) -> Tensor:
        """(B,) int64 place of the image with the same bytes, -1 where there is none.

        Or where it stands behind another one that has the same key by chance.
        """
        nearest = torch.searchsorted(self._keys, row_keys(rows)).clamp_max(len(self._keys) - 1)
        places = self._places[nearest]
        return torch.where((self._rows[places] == rows).all(dim=1), places, -1)

    def append(self, rows: Tensor, outputs: tuple[Tensor, ...]) -> Tensor:
        """Add images and what was said of them; their places."""
        places = torch.arange(len(rows), device=rows.device) + len(self._rows)
        keys, order = torch.cat([self._keys, row_keys(rows)]).sort(stable=True)
        self._keys, self._places = keys, torch.cat([self._places, places])[order]
        self._rows.append(rows)
        for kept, part in zip(self._outputs, outputs, strict=True):
            kept.append(part)
        return places

    def outputs_at(self, places: Tensor) -> tuple[Tensor, ...]:
        """What was said of the images at these places."""
        return tuple(kept[places] for kept in self._outputs)


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
        rows, seen = _integers(x), self._seen.get(with_features)
        if seen is None:
            outputs = self._outputs(x, with_features)
            self._seen[with_features] = _Seen(rows, outputs)
        else:
            places = seen.find(rows)
            fresh = places < 0
            if fresh.any():
                passed = self._outputs(x[fresh], with_features)
                places[fresh] = seen.append(rows[fresh], passed)
            outputs = seen.outputs_at(places)
        return outputs if with_features else outputs[0]

    def _outputs(self, x: Tensor, with_features: bool) -> tuple[Tensor, ...]:
        return self.inner(x, with_features=True) if with_features else (self.inner(x),)


def _integers(x: Tensor) -> Tensor:
    """The bytes of each image as a row of integers, (B, ...) to (B, L)."""
    return x.contiguous().flatten(1).view(_INTEGERS[x.element_size()])


def row_keys(x: Tensor) -> Tensor:
    """A number for the bytes of each image: (B, ...) to (B,) int64.

    It is the sum of the image's bytes, read as integers, each times an odd number drawn once,
    modulo 2^64. Images of other bytes share it by chance alone.
    """
    rows = _integers(x)
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


def classifiers(model: Symmetrized) -> list[tuple[nn.Module, str]]:
    """Where a model's classifiers are: its backbone, and those that rate views.

    Args:
        model: Its scorer may be an exported one.

    Returns:
        Modules, and under which name of theirs the classifier is.
    """
    places: list[tuple[nn.Module, str]] = [(model, "backbone")]
    if model.scorer is not None:
        raters = (part for part in model.scorer.modules() if isinstance(part, EveryView))
        places += [(rater, "network") for rater in raters]
    return places


@contextlib.contextmanager
def passing_once(model: Symmetrized) -> Iterator[Memories]:
    """A model whose classifiers pass no image twice.

    Args:
        model: In evaluation mode. It is as it was when this ends.

    Yields:
        The memories in their places; ``forget`` them where other images begin.
    """
    places, memories = classifiers(model), Memories()
    for owner, name in places:
        inner = getattr(owner, name)
        memories.append(PassOnce(inner).train(inner.training))
        setattr(owner, name, memories[-1])
    try:
        yield memories
    finally:
        for (owner, name), memory in zip(places, memories, strict=True):
            setattr(owner, name, memory.inner)
