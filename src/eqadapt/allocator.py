"""What the C library does with memory that is freed, on processors.

A step of training, or a network that passes many images, frees large tensors and asks for as large
ones again. By default glibc gives them back to the system in between, which clears every page anew:
some 13% of a step, for nothing.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping

# Parameters of glibc's mallopt (malloc.h), and what they are set to: nothing is mapped apart, and
# nothing at the end of the heap is given back.
_MMAP_MAX, _TRIM_THRESHOLD = (-4, 0), (-1, -1)
_kept = False


def freed_memory_is_kept() -> bool:
    """Whether ``keep_freed_memory`` has changed this process."""
    return _kept


def keep_freed_memory(env: Mapping[str, str] = os.environ) -> bool:
    """Have this process keep what is freed, for what is asked for next.

    Results are the same to the bit. What a process has at its peak it keeps to its end, and it
    cannot be told otherwise again. Nothing is changed where the user has settled it (``MALLOC_*``,
    ``GLIBC_TUNABLES``, another allocator in ``LD_PRELOAD``), or where there is no glibc.

    Args:
        env: The environment.

    Returns:
        Whether it was changed.
    """
    settled = any(key.startswith("MALLOC_") for key in env)
    settled |= "glibc.malloc" in env.get("GLIBC_TUNABLES", "")
    settled |= "malloc" in env.get("LD_PRELOAD", "")
    if settled or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    global _kept
    _kept |= bool(libc.mallopt(*_MMAP_MAX) and libc.mallopt(*_TRIM_THRESHOLD))
    return _kept
