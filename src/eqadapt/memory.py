"""What is said where a device's memory does not hold a batch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from eqadapt.errors import UserError

# RuntimeErrors like any other, but for this: of a CPU, and of a GPU that others fill, too.
SAID = ("can't allocate memory", "STATUS_ALLOC_FAILED")


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
