"""How much memory is free, and what is said where a device's does not hold a batch."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from eqadapt.errors import UserError

# RuntimeErrors like any other, but for this: of a CPU, and of a GPU that others fill, too.
SAID = (
    "can't allocate memory",
    "STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDA error: out of memory",
)


def available_bytes() -> int:
    """Bytes of the host's memory that are free; of systems other than Linux, half of all."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return 1024 * int(re.findall(r"^MemAvailable:\s*(\d+) kB", text, re.MULTILINE)[0])
    except (OSError, IndexError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


@contextlib.contextmanager
def room_for(batch: int, key: str) -> Iterator[None]:
    """Around work on batches, whose size it names where memory runs out.

    Args:
        batch: Images at once.
        key: The setting that says so, e.g. ``"train.batch_size"``.

    Raises:
        UserError: The memory does not suffice; it says which size to try.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        told = isinstance(error, torch.OutOfMemoryError) or any(s in str(error) for s in SAID)
        if not told:
            raise
        fix = f"{key} of {batch // 2}" if batch > 1 else "a smaller image.size, or a larger device"
        raise UserError(
            f"the device's memory does not hold a batch of {batch}", where=key, fix=fix
        ) from error
