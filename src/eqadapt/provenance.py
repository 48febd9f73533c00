"""Where a number comes from: commit, environment, device. Everything is looked up when asked."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eqadapt.files import sha256_file

if TYPE_CHECKING:
    import torch

UNKNOWN = "unknown"
# What the workflow writes and commits says nothing about the code that wrote it.
_OUTPUTS = (":(exclude)results", ":(exclude)data", ":(exclude)dvc.lock")


def _git(*args: str) -> str | None:
    """What git prints here; None outside a repository or without git."""
    try:
        done = subprocess.run(["git", *args], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def commit() -> str:
    """The commit checked out, ``-dirty`` where tracked files differ from it, else ``unknown``.

    Results and data do not count as differing: they are what the code makes.
    """
    found = _git("rev-parse", "HEAD")
    if not found:
        return UNKNOWN
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *_OUTPUTS)
    return f"{found}-dirty" if changed else found


@functools.cache
def lock_sha256(folder: str | Path = ".") -> str:
    """SHA-256 of ``requirements.lock`` in ``folder``, else ``unknown``."""
    path = Path(folder) / "requirements.lock"
    return sha256_file(path) if path.is_file() else UNKNOWN


def device_name(device: torch.device | str = "cpu") -> str:
    """The GPU's name, or the processor's with what its vectors are: ``"AMD EPYC (AVX2)"``.

    Processors of one name can differ in them, and with them in speed and in the last bits of sums.
    """
    import torch

    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{processor_name()} ({torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def processor_name() -> str:
    """The processor's name as Linux tells it, else what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next((name for name in names if name), platform.processor() or platform.machine())


def torch_version() -> str:
    """The version of the installed torch, without importing it."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("torch")
    except PackageNotFoundError:
        return UNKNOWN


def provenance(device: torch.device | str = "cpu") -> dict[str, Any]:
    """What a run's record says of its origin: commit, lock, device and torch."""
    return {
        "commit": commit(),
        "lock_sha256": lock_sha256(),
        "device": device_name(device),
        "torch": torch_version(),
    }
