"""What is freed is kept for what is asked for next, where glibc can be told so."""

import os
import subprocess
import sys

import pytest

from eqadapt.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import torch
from eqadapt.allocator import freed_memory_is_kept, keep_freed_memory
assert not freed_memory_is_kept()
changed = keep_freed_memory() if sys.argv[1] == "keep" else True
assert freed_memory_is_kept() == (changed and sys.argv[1] == "keep")
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):  # memory between others is used again once there is enough of it in a piece
    before = faults()
    torch.ones(2**24)
print(int(changed), faults() - before)
"""


def faults(mode, env):
    """Whether it was changed, and the pages that one more tensor of 64 MiB touches anew."""
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, mode], env=env, capture_output=True, text=True, check=True
    )
    changed, count = done.stdout.split()
    return changed == "1", int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")
def test_a_freed_tensor_is_used_again():
    settled = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    env = {key: value for key, value in os.environ.items() if not key.startswith(settled)}
    changed, kept = faults("keep", env)
    _, given_back = faults("leave", env)
    assert changed
    assert kept < 0.1 * given_back


@pytest.mark.parametrize(
    "env",
    [
        {"MALLOC_ARENA_MAX": "1"},
        {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1"},
        {"LD_PRELOAD": "/usr/lib/libjemalloc.so.2"},
    ],
)
def test_what_the_user_has_settled_stays(env):
    assert not keep_freed_memory(env=env)
