"""bfloat16 is used where a device is fast in it, and nowhere else."""

import pytest
import torch

from eqadapt import precision
from eqadapt.precision import is_fast_in_bfloat16, lower_precision


@pytest.fixture
def processor(monkeypatch):
    """Pretend a processor with certain vectors."""

    def pretend(vectors):
        precision._tell.cache_clear()
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
        return torch.device("cpu")

    return pretend


@pytest.mark.parametrize(
    ("vectors", "fast"), [("DEFAULT", False), ("AVX2", False), ("AVX512", True)]
)
def test_a_processor_computes_in_bfloat16_where_that_is_vectorised(processor, vectors, fast):
    device = processor(vectors)
    assert is_fast_in_bfloat16(device) == fast
    assert lower_precision("bf16", device) == (torch.bfloat16 if fast else None)


def test_a_gpu_computes_in_bfloat16_whatever_the_processor_beside_it(
    processor, monkeypatch, capsys
):
    processor("AVX2")
    asked = []

    def supported(including_emulation=True):
        asked.append(including_emulation)
        return len(asked) == 1

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert lower_precision("bf16", torch.device("cuda")) is torch.bfloat16
    assert capsys.readouterr().err == ""
    assert lower_precision("bf16", torch.device("cuda")) is None  # one that would emulate it
    assert asked == [False, False] and "this GPU" in capsys.readouterr().err


def test_float32_stays_float32(processor):
    assert lower_precision("none", processor("AVX512")) is None


def test_what_is_not_followed_is_said_once(processor, capsys):
    device = processor("AVX2")
    lower_precision("none", device)
    assert capsys.readouterr().err == ""
    for _ in range(3):
        lower_precision("bf16", device)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "AVX2" in said and "float32" in said
