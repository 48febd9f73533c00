"""What is said where memory does not hold a batch: which setting, and which value to try."""

import pytest
import torch
from test_training import make_trainer

from eqadapt.errors import UserError
from eqadapt.memory import room_for
from eqadapt.symmetrize import Symmetrized


def full(*_args, **_kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_the_size_to_try_is_half_of_the_one_that_failed():
    match = "does not hold a batch of 64"
    with pytest.raises(UserError, match=match) as told, room_for(64, "evaluate.batch_size"):
        full()
    assert (told.value.where, told.value.fix) == (
        "evaluate.batch_size", "evaluate.batch_size of 32",
    )  # fmt: skip
    with pytest.raises(UserError) as told, room_for(1, "evaluate.batch_size"):
        full()
    assert "image.size" in told.value.fix


def test_the_memory_of_a_cpu_is_told_too():
    with pytest.raises(UserError, match="a batch of 8"), room_for(8, "train.batch_size"):
        torch.empty(2**55, dtype=torch.uint8)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: out of memory",
    ],
)
def test_the_memory_that_a_library_of_a_gpu_asks_for_is_told_too(said):
    with pytest.raises(UserError, match="a batch of 8"), room_for(8, "train.batch_size"):
        raise RuntimeError(said)


def test_other_faults_stay_what_they_are():
    with pytest.raises(RuntimeError, match="mat1 and mat2"), room_for(8, "train.batch_size"):
        torch.ones(2, 3) @ torch.ones(2, 3)


@pytest.mark.parametrize(("training", "key"), [(True, "train"), (False, "evaluate")])
def test_training_names_the_batch_that_was_too_large(training, key, monkeypatch):
    forward = Symmetrized.forward

    def failing(model, *args, **kwargs):
        return full() if model.training == training else forward(model, *args, **kwargs)

    monkeypatch.setattr(Symmetrized, "forward", failing)
    with pytest.raises(UserError) as told:
        make_trainer().run()
    assert told.value.where == f"{key}.batch_size"
