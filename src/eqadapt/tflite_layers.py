"""The layers of a TensorFlow Lite network (``.tflite``): weights and biases, in the order they run.

The file is a FlatBuffer, which the package ``tflite`` parses; no TensorFlow is needed. Whole
numbers are brought back to floats by the scales and zero points beside them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eqadapt.errors import UserError


def read_tflite(path: Path) -> list[tuple[Tensor, Tensor]]:
    """Weights (outputs first, then inputs, rows and columns) and biases in float32.

    Of convolutions, depthwise ones and linear layers; the other operations have no weights.

    Raises:
        UserError: It is no such file, or one whose layers have no weights of their own.
    """
    data = path.read_bytes()
    if data[4:8] != b"TFL3":
        raise _unreadable("no TensorFlow Lite network", path)
    try:
        return list(_layers(data))
    except (struct.error, IndexError, TypeError, ValueError, OverflowError) as error:
        raise _unreadable(f"{type(error).__name__}: {error}", path) from None


def _unreadable(reason: str, path: Path) -> UserError:
    return UserError(
        f"cannot read the network's layers: {reason}",
        where=str(path),
        fix="fetch the file again; it begins with its length and the letters TFL3",
    )


def _layers(data: bytes) -> Iterator[tuple[Tensor, Tensor]]:
    import tflite

    model = tflite.Model.GetRootAs(data, 0)
    graph = model.Subgraphs(0)
    kinds = tflite.BuiltinOperator
    order = {  # from TensorFlow's order of axes to torch's
        kinds.CONV_2D: (0, 3, 1, 2),  # outputs, rows, columns, inputs
        kinds.DEPTHWISE_CONV_2D: (3, 0, 1, 2),  # 1, rows, columns, outputs
        kinds.FULLY_CONNECTED: (0, 1),
    }
    for number in range(graph.OperatorsLength()):
        operator = graph.Operators(number)
        code = model.OperatorCodes(operator.OpcodeIndex())
        # Files of before 2020 have the code in a byte of its own.
        axes = order.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()))
        if axes is None:
            continue
        weight = _floats(model, graph.Tensors(operator.Inputs(1))).transpose(axes)
        bias = np.zeros(len(weight), np.float32)
        if operator.InputsLength() > 2 and operator.Inputs(2) >= 0:
            bias = _floats(model, graph.Tensors(operator.Inputs(2)))
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"layer of shape {weight.shape} with {len(bias)} biases")
        yield torch.from_numpy(np.ascontiguousarray(weight)), torch.from_numpy(bias)


def _floats(model: Any, tensor: Any) -> np.ndarray:
    """A tensor's values in float32, brought back from whole numbers where it has a scale."""
    from tflite import TensorType

    types = {
        TensorType.FLOAT32: "<f4", TensorType.FLOAT16: "<f2", TensorType.INT8: "i1",
        TensorType.UINT8: "u1", TensorType.INT32: "<i4",
    }  # fmt: skip
    if tensor.Type() not in types:
        raise ValueError(f"weights of the type {tensor.Type()}")
    buffer = model.Buffers(tensor.Buffer())
    if buffer.DataLength() == 0:
        raise ValueError("a layer whose weights another operation makes")
    shape = [tensor.Shape(axis) for axis in range(tensor.ShapeLength())]
    dtype = np.dtype(types[tensor.Type()])
    values = np.frombuffer(buffer.DataAsNumpy().tobytes(), dtype).reshape(shape)
    if dtype.kind == "f":
        return values.astype(np.float32)
    return _unquantised(values, tensor.Quantization())


def _unquantised(values: np.ndarray, how: Any) -> np.ndarray:
    if how is None or how.ScaleLength() == 0:
        raise ValueError("whole numbers without a scale")
    scale = np.asarray(how.ScaleAsNumpy(), np.float32)
    zero = np.zeros(len(scale), np.int64)
    if how.ZeroPointLength():
        zero = np.asarray(how.ZeroPointAsNumpy(), np.int64)
    along = [1] * values.ndim
    along[how.QuantizedDimension() if len(scale) > 1 else 0] = len(scale)
    floats = (values - zero.reshape(along)).astype(np.float32) * scale.reshape(along)
    return np.asarray(floats, np.float32)
