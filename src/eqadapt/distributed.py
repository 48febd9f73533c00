"""One run on several processes: ``torchrun --nproc_per_node=N -m eqadapt train ...``.

Every process goes through the same permutation of the training set and draws the same chance for a
whole batch, but works on its own share of the rows; gradients are averaged. So N processes and one
agree up to the order of floating-point sums, except for what a model draws itself (dropout, sampled
poses, OptC's turns to and fro: each process its own) and for batch normalization, whose statistics
are each process's own unless ``train.sync_batch_norm``. The first process alone writes files.

Without torchrun every function here does nothing, and costs nothing.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from eqadapt.errors import UserError

# The first process writes files, or prepares what all read, while the others wait.
_PATIENCE = datetime.timedelta(minutes=30)

Objective = Callable[[Tensor], tuple[Tensor, list[Tensor]]]
Values = Mapping[str, float | int | None]


def size() -> int:
    """Number of processes that train together."""
    return torch.distributed.get_world_size() if _running() else 1


def rank() -> int:
    """This process among them, from 0."""
    return torch.distributed.get_rank() if _running() else 0


def is_first() -> bool:
    """Whether this process writes files and speaks."""
    return rank() == 0


def _running() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextlib.contextmanager
def session(device: str = "auto") -> Iterator[None]:
    """Join the processes that torchrun started: by nccl on GPUs, by gloo on CPUs.

    Args:
        device: ``auto``, ``cpu`` or ``cuda``, as in a study. Each process takes the GPU of its
            number on its machine.

    Raises:
        UserError: There are more processes on this machine than GPUs.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    on_gpus = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpus:
        local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= gpus:
            raise UserError(
                f"process {local + 1} on a machine with {gpus} GPU{'' if gpus == 1 else 's'}",
                where="torchrun",
                fix=f"--nproc_per_node={gpus}" if gpus else "device: cpu",
            )
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if on_gpus else "gloo", timeout=_PATIENCE)
    yield
    # Not after an error: the others may be waiting for this process, and torchrun ends them.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def wait() -> None:
    """Until every process is here."""
    if _running():
        torch.distributed.barrier()


def part(count: int, section: str = "train") -> slice:
    """This process's rows of a batch of ``count``.

    Args:
        count: Images of the batch.
        section: Of the study, for the message: ``"train"`` or ``"pretrain"``.

    Raises:
        UserError: The batch cannot be shared out equally.
    """
    if size() == 1:
        return slice(None)
    share, left = divmod(count, size())
    if left:
        raise UserError(
            f"a batch of {count} images cannot be shared equally by {size()} processes",
            where=f"{section}.batch_size",
            fix=f"a multiple of {size()}, e.g. {max(1, share) * size()}",
        )
    return slice(rank() * share, (rank() + 1) * share)


class _Objective(nn.Module):
    """The loss as the forward pass of a module that owns the model, as DDP wants it."""

    def __init__(self, objective: Objective, model: nn.Module) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        return self.objective(rows)


def averaged(objective: Objective, model: nn.Module) -> Objective:
    """``objective``, whose backward pass leaves the mean gradient of all processes.

    Args:
        objective: Rows of the whole batch to the loss on this process's part, and further values.
        model: What is trained; the weights of the first process are taken by all.
    """
    if size() == 1:
        return objective
    # Buffers are shared before they are read (share_buffers), not in every step.
    return nn.parallel.DistributedDataParallel(
        _Objective(objective, model), broadcast_buffers=False
    )


def synchronised(model: nn.Module, section: str = "train") -> None:
    """Let batch norms take their statistics over all processes, in place.

    Args:
        model: Whose batch norms these are.
        section: As of ``part``.

    Raises:
        UserError: The processes are not on GPUs, which alone can do it.
    """
    if size() == 1:
        return
    if torch.distributed.get_backend() != "nccl":
        raise UserError(
            "batch norms can share statistics on GPUs only",
            where=f"{section}.sync_batch_norm",
            fix="false",
        )
    synchronise_norms(model)


def synchronise_norms(model: nn.Module) -> None:
    """Put layers with statistics over all processes in place of a model's batch norms."""
    # torch's own would drop the activations that timm has in some of its norms
    from timm.layers import convert_sync_batchnorm

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            own = getattr(child, "synchronised", None)  # of those that are not torch's
            if callable(own):
                setattr(parent, name, own())
            elif isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, convert_sync_batchnorm(child))


@contextlib.contextmanager
def own_chance(step: int) -> Iterator[None]:
    """What a network draws inside is this process's own; what is drawn after is as if it drew none.

    Args:
        step: Of the epoch; with the epoch's seed and the process it decides what is drawn.
    """
    if size() == 1:
        yield
        return
    seed = torch.initial_seed() + 7_368_787 * (step + 1) + 15_485_863 * (rank() + 1)
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(gpus):
        torch.manual_seed(seed % 2**63)
        yield


def mean(values: Tensor) -> Tensor:
    """The mean over all processes; every process gets the same."""
    if size() == 1:
        return values
    values = values.clone()
    torch.distributed.all_reduce(values)
    return values / size()


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """The first process's buffers (running statistics of batch norms) for all."""
    if size() == 1:
        return
    for buffer in model.buffers():
        torch.distributed.broadcast(buffer, src=0)


def weighted(values: Values, count: int) -> dict[str, float | int | None]:
    """Rates over parts of the images to rates over all; every process gets the same.

    Args:
        values: Rates over this process's images; None where one does not apply.
        count: How many images those are.
    """
    if size() == 1:
        return dict(values)
    found: list[Any] = [None] * size()
    torch.distributed.all_gather_object(found, (dict(values), count))
    parts = [(rates, images) for rates, images in found if images]
    total = sum(images for _, images in parts)
    return {
        key: None
        if parts[0][0][key] is None
        else sum(rates[key] * images for rates, images in parts) / total
        for key in (parts[0][0] if parts else {})
    }


def agree(value: Any, what: str) -> None:
    """Check that every process has the same value.

    Raises:
        UserError: One has another.
    """
    if size() == 1:
        return
    found: list[Any] = [None] * size()
    torch.distributed.all_gather_object(found, value)
    if any(other != found[0] for other in found):
        raise UserError(
            f"the processes differ in {what}: {', '.join(map(str, found))}",
            fix="give all of them the same folders",
        )
