"""Networks evaluated a few images at a time, so that what lies between layers stays in the caches.

On a CPU a batch of hundreds of images makes every layer write its output to memory and the next
one read it back. In parts of a few MiB large batches take less time and at most
about half of the memory (measure ``parts`` of benchmarks/README.md). Much of the gain is pages that
are not cleared anew, so parts are larger in a process that keeps what it frees
(``allocator.keep_freed_memory``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eqadapt.allocator import freed_memory_is_kept

MEBIBYTE = 2**20
FEWEST = 4
# Networks have other kernels for one or two images, whose results differ in the last digits from
# those for a batch.
LEAST = 3
MOST_PER_THREAD = 32
LARGER_WHERE_KEPT = 8


def images_at_once(image_bytes: int, threads: int, kept: bool = False) -> int:
    """How many images to pass at once.

    A MiB of input a thread, and four images or more; eight times as much where freed memory is
    kept.

    Args:
        image_bytes: Of one image, as the network reads it.
        threads: Threads that share the work.
        kept: Whether this process keeps freed memory, and the work takes much of it.
    """
    share = threads * (LARGER_WHERE_KEPT if kept else 1)
    return max(FEWEST, min(MOST_PER_THREAD * share, share * MEBIBYTE // max(1, image_bytes)))


def in_parts(network: Callable[[Tensor], Any], x: Tensor, copies: int = 1) -> Any:
    """``network(x)``, on a CPU and without gradients for parts of the batch in turn.

    Parts are equal to within an image, and have three or more, views counted. The network must
    treat images one by one, as all do in evaluation mode.

    Args:
        network: Maps a batch to a tensor, or to a tuple of tensors, with as many rows.
        x: (B, ...) the batch.
        copies: Images that the network makes of one, such as its views.

    Returns:
        What ``network(x)`` returns.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return network(x)
    image_bytes = x[:1].numel() * x.element_size()
    fitting = images_at_once(image_bytes, torch.get_num_threads(), freed_memory_is_kept())
    at_once = max(1, fitting // copies)
    if len(x) <= at_once:
        return network(x)
    parts = min(-(-len(x) // at_once), max(1, len(x) * copies // LEAST))
    outputs = [network(part) for part in x.tensor_split(parts)]
    if isinstance(outputs[0], tuple):
        return tuple(torch.cat(column) for column in zip(*outputs, strict=True))
    return torch.cat(outputs)


class SequentialInParts(nn.Sequential):
    """Layers in a row, evaluated in parts; for layers that are in evaluation mode for good."""

    def forward(self, x: Tensor) -> Tensor:
        """What the layers make of the batch."""
        return in_parts(super().forward, x)
