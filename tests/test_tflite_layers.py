"""TensorFlow Lite's files: their layers come back as they were put in, or an error says why not."""

import flatbuffers
import numpy as np
import pytest
import tflite
import torch
from test_folded_networks import folded, layers_of, trained

from eqadapt.backbones import load_weights_file
from eqadapt.errors import UserError
from eqadapt.tflite_layers import read_tflite

KINDS = tflite.BuiltinOperator
TYPES = {
    "float32": tflite.TensorType.FLOAT32, "float16": tflite.TensorType.FLOAT16,
    "int8": tflite.TensorType.INT8, "uint8": tflite.TensorType.UINT8,
    "int32": tflite.TensorType.INT32, "int64": tflite.TensorType.INT64,
}  # fmt: skip


class File:
    """A network of TensorFlow Lite's format, built up as its schema has it."""

    def __init__(self):
        self.builder = flatbuffers.Builder(0)
        self.buffers, self.tensors, self.operators, self.codes = [], [], [], []

    def _vector(self, start, items, prepend):
        start(self.builder, len(items))
        for item in reversed(items):
            prepend(item)
        return self.builder.EndVector()

    def _offsets(self, start, items):
        return self._vector(start, items, self.builder.PrependUOffsetTRelative)

    def tensor(self, values, scale=None, zero=None, axis=0):
        b = self.builder
        data = None
        if values is not None:
            data = b.CreateByteVector(values.astype(values.dtype.newbyteorder("<")).tobytes())
        tflite.BufferStart(b)
        if data is not None:
            tflite.BufferAddData(b, data)
        self.buffers.append(tflite.BufferEnd(b))
        values = np.zeros(1, np.int8) if values is None else values
        shape = self._vector(tflite.TensorStartShapeVector, values.shape, b.PrependInt32)
        how = None
        if scale is not None:
            start = tflite.QuantizationParametersStartScaleVector
            scales = self._vector(start, [float(s) for s in scale], b.PrependFloat32)
            start = tflite.QuantizationParametersStartZeroPointVector
            zeros = self._vector(start, zero or [0] * len(scale), b.PrependInt64)
            tflite.QuantizationParametersStart(b)
            tflite.QuantizationParametersAddScale(b, scales)
            tflite.QuantizationParametersAddZeroPoint(b, zeros)
            tflite.QuantizationParametersAddQuantizedDimension(b, axis)
            how = tflite.QuantizationParametersEnd(b)
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, shape)
        tflite.TensorAddType(b, TYPES[values.dtype.name])
        tflite.TensorAddBuffer(b, len(self.buffers) - 1)
        if how is not None:
            tflite.TensorAddQuantization(b, how)
        self.tensors.append(tflite.TensorEnd(b))
        return len(self.tensors) - 1

    def operator(self, kind, *inputs):
        b = self.builder
        tflite.OperatorCodeStart(b)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(b, kind)
        tflite.OperatorCodeAddBuiltinCode(b, kind)
        self.codes.append(tflite.OperatorCodeEnd(b))
        places = self._vector(tflite.OperatorStartInputsVector, inputs, b.PrependInt32)
        tflite.OperatorStart(b)
        tflite.OperatorAddOpcodeIndex(b, len(self.codes) - 1)
        tflite.OperatorAddInputs(b, places)
        self.operators.append(tflite.OperatorEnd(b))

    def write(self, path):
        b = self.builder
        tensors = self._offsets(tflite.SubGraphStartTensorsVector, self.tensors)
        operators = self._offsets(tflite.SubGraphStartOperatorsVector, self.operators)
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, tensors)
        tflite.SubGraphAddOperators(b, operators)
        graphs = self._offsets(tflite.ModelStartSubgraphsVector, [tflite.SubGraphEnd(b)])
        codes = self._offsets(tflite.ModelStartOperatorCodesVector, self.codes)
        buffers = self._offsets(tflite.ModelStartBuffersVector, self.buffers)
        tflite.ModelStart(b)
        tflite.ModelAddVersion(b, 3)
        tflite.ModelAddOperatorCodes(b, codes)
        tflite.ModelAddSubgraphs(b, graphs)
        tflite.ModelAddBuffers(b, buffers)
        b.Finish(tflite.ModelEnd(b), b"TFL3")
        path.write_bytes(bytes(b.Output()))
        return path


def rng():
    return np.random.default_rng(0)


def test_layers_come_back_in_the_order_and_layout_of_torch(tmp_path):
    file, draw = File(), rng()
    image = file.tensor(None)
    conv = draw.integers(-127, 128, (6, 3, 3, 2)).astype(np.int8)
    scale = draw.uniform(0.01, 0.1, 6).astype(np.float32)
    bias = draw.integers(-1000, 1000, 6).astype(np.int32)
    file.operator(
        KINDS.CONV_2D, image, file.tensor(conv, scale), file.tensor(bias, scale * np.float32(0.5))
    )
    file.operator(KINDS.ADD, image, image)
    deep = draw.integers(-127, 128, (1, 5, 5, 6)).astype(np.int8)
    file.operator(KINDS.DEPTHWISE_CONV_2D, image, file.tensor(deep, scale, axis=3))
    last = draw.normal(size=(4, 6)).astype(np.float16)
    rest = draw.normal(size=4).astype(np.float32)
    file.operator(KINDS.FULLY_CONNECTED, image, file.tensor(last), file.tensor(rest))
    (w0, b0), (w1, b1), (w2, b2) = read_tflite(file.write(tmp_path / "net.tflite"))
    assert torch.equal(w0, torch.from_numpy(conv * scale.reshape(-1, 1, 1, 1)).permute(0, 3, 1, 2))
    assert torch.equal(b0, torch.from_numpy(bias.astype(np.float32) * (scale * np.float32(0.5))))
    assert torch.equal(w1, torch.from_numpy((deep * scale)[0]).permute(2, 0, 1)[:, None])
    assert torch.equal(b1, torch.zeros(6))  # it had none
    assert torch.equal(w2, torch.from_numpy(last.astype(np.float32)))
    assert torch.equal(b2, torch.from_numpy(rest))


def test_zero_points_of_whole_tensors(tmp_path):
    file, values = File(), np.array([[0, 128], [255, 1]], np.uint8)
    weight = file.tensor(values, scale=[0.5], zero=[128])
    file.operator(KINDS.FULLY_CONNECTED, file.tensor(None), weight, -1)
    ((weight, _),) = read_tflite(file.write(tmp_path / "net.tflite"))
    assert weight.tolist() == [[-64, 0], [63.5, -63.5]]


def test_a_network_of_tflite_is_a_weights_file(tmp_path):
    network, other, file = trained(), folded(), File()
    image = file.tensor(None)
    for weight, bias in layers_of(network):
        values = weight.permute(0, 2, 3, 1).contiguous().numpy()
        file.operator(KINDS.CONV_2D, image, file.tensor(values), file.tensor(bias.numpy()))
    load_weights_file(other, file.write(tmp_path / "net.tflite"), None)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(other(x), network(x), rtol=1e-4, atol=1e-4)


def _no_scale(file, image):
    return file.tensor(np.ones((2, 2), np.int8)), -1


def _int64(file, image):
    return file.tensor(np.ones((2, 2), np.int64)), -1


def _made(file, image):
    return image, -1


def _biases(file, image):
    return file.tensor(np.ones((2, 2), np.float32)), file.tensor(np.ones(3, np.float32))


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (_no_scale, "without a scale"),
        (_int64, "weights of the type"),
        (_made, "another operation makes"),
        (_biases, "with 3 biases"),
    ],
)
def test_layers_that_cannot_be_read_are_told(weights, reason, tmp_path):
    file = File()
    image = file.tensor(None)
    file.operator(KINDS.FULLY_CONNECTED, image, *weights(file, image))
    path = file.write(tmp_path / "net.tflite")
    with pytest.raises(UserError, match=reason) as told:
        load_weights_file(folded(), path, None)
    assert told.value.where == str(path)


def test_files_that_are_none_or_cut_short(tmp_path):
    path = tmp_path / "net.tflite"
    path.write_bytes(b"words and no network")
    with pytest.raises(UserError, match="no TensorFlow Lite network"):
        read_tflite(path)
    file = File()
    image = file.tensor(None)
    file.operator(KINDS.FULLY_CONNECTED, image, file.tensor(np.ones((64, 64), np.float32)), -1)
    whole = file.write(path).read_bytes()
    for share in (0.02, 0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError):
            read_tflite(path)
