"""bfloat16 where the device is fast in it, float32 elsewhere."""

from __future__ import annotations

import functools
import sys

import torch

# What `torch.backends.cpu.get_cpu_capability` says of processors without vectorised bfloat16.
# oneDNN has it from AVX512 on; without, torch falls back to loops that make a step of a ResNet-20
# 14 times slower than float32 does. GPUs of before 2020 emulate it.
_FLOAT32_ONLY = ("DEFAULT", "AVX2")


def is_fast_in_bfloat16(device: torch.device) -> bool:
    """Whether convolutions and matrix products in bfloat16 are vectorised on ``device``."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in _FLOAT32_ONLY


def lower_precision(wanted: str, device: torch.device) -> torch.dtype | None:
    """The type that autocast is to use for a setting of a recipe, None for float32.

    Args:
        wanted: ``"bf16"`` or ``"none"``: ``train.amp`` or ``train.scorer_amp``.
        device: Where the run computes. Where bfloat16 is slower than float32 the setting is not
            followed, and stderr says so once.
    """
    if wanted != "bf16":
        return None
    if not is_fast_in_bfloat16(device):
        _tell(device.type)
        return None
    return torch.bfloat16


@functools.cache
def _tell(device: str) -> None:
    vectors = torch.backends.cpu.get_cpu_capability()
    this = "GPU (before Ampere)" if device == "cuda" else f"processor ({vectors}, no AVX512)"
    print(f"bfloat16 is slow on this {this}: training computes in float32", file=sys.stderr)
