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
_OUTPUTS = (":(top,exclude)results", ":(top,exclude)data", ":(top,exclude)dvc.lock")
_FILE = Path(__file__).resolve()


def _git(*args: str) -> str | None:
    """What git prints in this package's folder; None outside a repository or without git."""
    command = ["git", "-C", str(_FILE.parent), *args]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


@functools.cache
def repository() -> Path | None:
    """The root of the checkout that this code is part of; None for an installed package.

    The working folder says nothing of the code, and the package may lie inside a repository of
    something else, in an environment there, that does not track it.
    """
    if _git("ls-files", "--error-unmatch", "--", _FILE.name) is None:
        return None
    root = _git("rev-parse", "--show-toplevel")
    return Path(root) if root else None


@functools.cache
def commit() -> str:
    """The commit checked out, ``-dirty`` where tracked files differ from it, else ``unknown``.

    Results and data do not count as differing: they are what the code makes.
    """
    found = _git("rev-parse", "HEAD") if repository() else None
    if not found:
        return UNKNOWN
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", *_OUTPUTS)
    return f"{found}-dirty" if changed else found


@functools.cache
def lock_sha256() -> str:
    """SHA-256 of the checkout's ``requirements.lock``, else ``unknown``.

    Without git, as in an unpacked archive, it is the one two folders above the package.
    """
    path = (repository() or _FILE.parents[2]) / "requirements.lock"
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
