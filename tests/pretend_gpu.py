"""A GPU that is none: tensors that are not on the CPU as far as they tell, and are computed there.

Code that mixes devices, which a GPU refuses, is refused here too, and every wait for the device is
counted. Numbers and gradients are real, so that they can be compared with those of the CPU. The
device is called ``meta``: torch's engine asks for no driver there, as it would for ``cuda``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("meta")
WAITS = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "is_nonzero"}
COPIES = {"_to_copy", "copy_"}
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class MixedDevicesError(RuntimeError):
    """An operation on tensors of which only some are on the GPU."""


class _OnGPU(Tensor):
    """Says that it is on the GPU; shares the memory of a tensor of the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _OnGPU:
        with torch.inference_mode(held.is_inference()):
            made = Tensor._make_wrapper_subclass(
                cls,
                held.size(),
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device=GPU,
            )
        made.held = held
        return made

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"_OnGPU({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a tensor on the GPU is no array: .cpu() first")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {}, [])


class _Mode(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # where nothing is differentiated operations come whole, `to` among them
            made = func.decompose(*args, **(kwargs or {}))
        if made is not NotImplemented:
            return made
        return _run(func, args, kwargs or {}, self.waits)


def _holding(value: Any) -> Any:
    return value.held if isinstance(value, _OnGPU) else value


def _at_hand(index: Tensor | None) -> Tensor | None:
    """An index of a tensor of the GPU; one of the CPU is copied there, whoever asks for it."""
    on_cpu = index is not None and index.device.type == "cpu"
    return None if on_cpu else index


def _is_gpus(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an operation is the GPU's, which must find all that it reads there."""
    if name in COPIES:
        return isinstance(args[0], _OnGPU)
    if isinstance(kwargs.get("generator"), torch.Generator) and kwargs.get("device") == GPU:
        raise MixedDevicesError(f"{name}: chance from a generator of the CPU")
    if name in INDEXED and isinstance(args[0], _OnGPU):
        read = (args[0], args[2:], [_at_hand(index) for index in args[1]])
    else:
        read = (args, kwargs)
    tensors = [value for value in tree_leaves(read) if isinstance(value, Tensor)]
    here = any(isinstance(tensor, _OnGPU) for tensor in tensors)
    elsewhere = [tuple(t.shape) for t in tensors if not isinstance(t, _OnGPU) and t.ndim]
    if any(not isinstance(tensor, _OnGPU) and tensor.device == GPU for tensor in tensors):
        raise MixedDevicesError(f"{name}: a list for an index, which is copied to the GPU")
    if here and elsewhere:
        raise MixedDevicesError(f"{name}: tensors of the CPU among those of the GPU: {elsewhere}")
    return here


def _run(func, args, kwargs, waits: list[str]) -> Any:
    name = func.overloadpacket.__name__
    on_gpu = _is_gpus(name, args, kwargs)
    if on_gpu and (name in WAITS or _indexes_by_mask(name, args)):
        waits.append(name)
    if kwargs.get("device") is not None:
        to_gpu = torch.device(kwargs["device"]) == GPU
        if name == "_to_copy" and on_gpu != to_gpu:
            waits.append("copy to the GPU" if to_gpu else "copy to the CPU")
        on_gpu = to_gpu
        kwargs = {**kwargs, "device": torch.device("cpu")}
    made = func(*tree_map(_holding, args), **tree_map(_holding, kwargs))
    if args and isinstance(made, Tensor) and made is _holding(args[0]):
        return args[0]  # in place
    return tree_map(lambda v: _OnGPU(v) if type(v) is Tensor else v, made) if on_gpu else made


def _indexes_by_mask(name: str, args: tuple[Any, ...]) -> bool:
    """Whether how much is taken or put depends on values."""
    if name not in INDEXED:
        return False
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])


@contextlib.contextmanager
def pretended_gpu() -> Iterator[list[str]]:
    """Where tensors can be made on ``GPU``. Gives a growing list of the waits for the device."""
    autocast, tensor, to = torch.autocast, torch.tensor, nn.Module.to

    def cast(device: str, *args: Any, **kwargs: Any) -> Any:
        if device == GPU.type:
            return contextlib.nullcontext()
        return autocast(device, *args, **kwargs)

    def copied(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        made = tensor(*args, **kwargs)
        return made if device is None else made.to(device)

    def copied_beside(like: Tensor, values: Any, **kwargs: Any) -> Tensor:
        return copied(values, **{"dtype": like.dtype, "device": like.device, **kwargs})

    def moved(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        return on_gpu(module) if args == (GPU,) else to(module, *args, **kwargs)

    with contextlib.ExitStack() as stack:
        for name, pretence in (
            ("autocast", cast),
            ("tensor", copied),
            ("Tensor.new_tensor", copied_beside),
            ("nn.Module.to", moved),
        ):
            stack.enter_context(mock.patch(f"torch.{name}", pretence))
        stack.enter_context(mock.patch("eqadapt.runs.choose_device", lambda _name: GPU))
        yield stack.enter_context(_Mode()).waits


def on_gpu(value: Any) -> Any:
    """A tensor, or a module in place, on the pretended GPU."""
    if isinstance(value, Tensor):
        return value if isinstance(value, _OnGPU) else _OnGPU(value.detach())
    assert isinstance(value, nn.Module)
    for module in value.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and not isinstance(parameter, _OnGPU):
                with torch.inference_mode(parameter.is_inference()):
                    own = nn.Parameter(on_gpu(parameter), parameter.requires_grad)
                module._parameters[name] = own
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = on_gpu(buffer)
    return value


def on_cpu(value: Tensor) -> Tensor:
    """What the pretended GPU holds, without a wait."""
    return _holding(value.detach())
