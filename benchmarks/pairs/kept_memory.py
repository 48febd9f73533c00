"""Pairs once more, freed memory kept on both sides: what is left when no page is cleared anew.

By default glibc gives large tensors back to the system, and getting them again takes longer than
many layers do, so that whoever frees more has more to gain.
"""

from __future__ import annotations

from benchmarks.pairs.inference import adapted_rows
from benchmarks.pairs.optc import forward_rows
from benchmarks.pairs.parts import part_rows
from benchmarks.pairs.training import joint_row
from benchmarks.registry import Context, Measured, NotAvailable, measure
from eqadapt.allocator import keep_freed_memory


@measure("kept_memory", "Joint step, inference, OptC and parts again, freed memory kept on a CPU")
def kept_memory(context: Context) -> Measured:
    """Rows as of ``train_joint``, ``inference``, ``optc`` and ``parts``; it cannot be undone."""
    if context.device.type != "cpu":
        return
    if not keep_freed_memory():
        raise NotAvailable("the memory allocator is not glibc's, or the environment has set it")
    yield joint_row(context, "kept_memory", "as `eqadapt train` does on a processor")
    batch = context.pick((16,), (2,))
    layouts = context.pick(("contiguous", "channels-last"), ("contiguous",))
    yield from adapted_rows(context, "kept_memory_inference", layouts, batch)
    yield from forward_rows(context, "kept_memory_optc", context.pick((32, 224), (32,)), batch)
    yield from part_rows(context, "kept_memory_parts")
