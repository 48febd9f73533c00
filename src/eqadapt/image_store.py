"""Where a run's images lie: as bytes on the device, or on the host where the device has no room.

What is computed of them is the same to the last bit. Batches of images on the host are brought
together by a thread, and copied, while the device works on the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

# Of the device's free memory; the rest is for the networks.
SHARE = 0.5
_PART_BYTES = 1 << 26


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether the device has room for the images beside the networks."""
    if device.type != "cuda":
        return True
    free, _total = torch.cuda.mem_get_info(device)
    # what torch keeps of earlier runs is free for this one
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return images.nbytes <= SHARE * free


def on_device(images: Tensor, device: torch.device) -> Tensor | HostImages:
    """Images for work on ``device``: there, if it has room.

    Args:
        images: (N, C, h, h) uint8 on the host; those that are still in their file are laid out
            with the channels last, and are read once where the device has room for them.
        device: Where batches are wanted.

    Returns:
        Contiguous images on the device, or those on the host: without room, and for work on the
        host itself where they are in their file.
    """
    if not fits(images, device):
        return HostImages(images, device)
    if images.is_contiguous():
        return images.to(device)
    return HostImages(images, device) if device.type == "cpu" else _read(images, device)


def _read(images: Tensor, device: torch.device) -> Tensor:
    """Mapped images on a device, part by part: at once, they would be copied on the host first."""
    found = torch.empty(images.shape, dtype=images.dtype, device=device)
    step = max(1, _PART_BYTES // max(1, images[:1].nbytes))
    for start in range(0, len(images), step):
        found[start : start + step] = images[start : start + step].contiguous().to(device)
    return found


def strided(images: Tensor | HostImages, start: int, step: int) -> Tensor | HostImages:
    """Every ``step``-th image from ``start`` on, where they lie."""
    if isinstance(images, HostImages):
        return HostImages(images.images[start::step], images.device)
    return images[start::step]


class HostImages:
    """Images on the host whose batches are wanted on a device.

    Args:
        images: (N, C, h, h) uint8 on the host, in memory or in a mapped file.
        device: Where batches are wanted.
    """

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images, self.device = images, device
        self.shape = images.shape
        self._pins = device.type == "cuda" and torch.cuda.is_available()
        self._thread = ThreadPoolExecutor(1, "images")
        self._waiting: Iterator[Tensor] = iter(())
        self._next: Future[Tensor] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Images (B, C, h, h) on the device."""
        return self._gathered(rows.cpu() if isinstance(rows, Tensor) else rows).to(self.device)

    def expect(self, batches: Tensor) -> None:
        """Announce the batches that ``take`` will be asked for, and begin with the first.

        Args:
            batches: (S, B) int64 on the host.
        """
        self._waiting = iter(batches)
        self._begin()

    def take(self) -> Tensor:
        """The next batch that was announced (B, C, h, h), on the device."""
        if self._next is None:
            raise RuntimeError("no batch was announced")
        found = self._next.result()
        self._begin()
        return found.to(self.device, non_blocking=True)

    def _begin(self) -> None:
        rows = next(self._waiting, None)
        self._next = None if rows is None else self._thread.submit(self._gathered, rows)

    def _gathered(self, rows: slice | Tensor) -> Tensor:
        batch = self.images[rows].contiguous()
        return batch.pin_memory() if self._pins else batch
