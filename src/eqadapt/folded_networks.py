"""Networks without batch norms, as exports have them: the norms folded into the convolutions.

TensorFlow Lite's 8-bit networks keep of each layer integers, a scale a channel and a bias, and no
name that another framework knows: what is left is the order of the layers. A file of such layers is
a ``.tflite``, or the same taken out of one: an ``.npz``, or a tar archive that holds one, with
``NN.q`` (int8 weights, outputs first), ``NN.s`` (one scale an output) and ``NN.b`` (biases) for the
layers 00, 01 and so on.
"""

from __future__ import annotations

import copy
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from eqadapt.errors import UserError
from eqadapt.tflite_layers import read_tflite

# Not ".tar" alone, which torch's own checkpoints are often called by.
_SUFFIXES = (".tflite", ".npz", ".tar.xz", ".tar.gz", ".tgz")
_KEY = re.compile(r"(\d+)\.([qsb])")
Layer = tuple[Tensor, Tensor]


def fold_norms(network: nn.Module) -> nn.Module:
    """Take a network's batch norms out: the convolution before each takes over what it did.

    What is left computes what the network computed in evaluation, up to rounding, and has nothing
    that depends on the batch.

    Args:
        network: Each of its batch norms follows a convolution, in the order of its modules.

    Returns:
        The same network, changed.

    Raises:
        UserError: A batch norm follows no convolution of its width, or computes on other things
            than that convolution's outputs.
    """
    _check_folding(network)
    return _folded(network)


def _check_folding(network: nn.Module) -> None:
    """Fold a copy with norms as of training: the order of modules need not be that of the passes.

    Draws from a generator of its own, so that what is drawn later stays what it was.
    """
    trial, chance = copy.deepcopy(network).eval(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in trial.modules():
            if isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None:
                norm.running_mean.normal_(0.0, 0.3, generator=chance)  # type: ignore[union-attr]
                norm.running_var.uniform_(0.5, 2.0, generator=chance)
        first = next(part for part in trial.modules() if isinstance(part, nn.Conv2d))
        side = int(getattr(network, "default_cfg", {}).get("input_size", [64])[-1])
        x = torch.rand(1, first.in_channels, side, side, generator=chance)
        expected = trial(x)
        found = _folded(trial)(x)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise UserError(
            "a batch norm computes on other things than the convolution before it gives",
            where=f"options of the backbone: folded, of {type(network).__name__}",
            fix="remove folded, or take a network whose norms follow its convolutions",
        )


def _folded(network: nn.Module) -> nn.Module:
    before: nn.Conv2d | None = None
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            before = module
        elif isinstance(module, nn.BatchNorm2d):
            if before is None or before.out_channels != module.num_features:
                raise UserError(
                    f"the batch norm {name} follows no convolution of its width",
                    where=f"options of the backbone: folded, of {type(network).__name__}",
                    fix="remove folded, or take a network whose norms follow its convolutions",
                )
            assert module.running_mean is not None and module.running_var is not None
            before.weight, before.bias = fuse_conv_bn_weights(
                before.weight,
                before.bias,
                module.running_mean,
                module.running_var,
                module.eps,
                module.weight,
                module.bias,
            )
            before.bias.requires_grad_(before.weight.requires_grad)  # a new one is without
            # timm's norms bring the activation that follows them.
            network.set_submodule(name, getattr(module, "act", nn.Identity()))
            before = None
    return network


def holds_layers(path: Path) -> bool:
    """Whether a weights file is, by its name, one of 8-bit layers."""
    return path.name.endswith(_SUFFIXES)


def read_layers(path: Path) -> list[Layer]:
    """Weights (outputs first) and biases of a file's layers, in float32.

    Raises:
        UserError: It cannot be read, or holds other things.
    """
    if path.suffix == ".tflite":
        return read_tflite(path)
    try:
        arrays = dict(_arrays(path))
    except (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise _no_layers(f"{type(error).__name__}: {error}", path) from None
    if not arrays:
        raise _no_layers("no array in it", path)
    keys = sorted(arrays)
    wanted = [(number, kind) for number in range((len(keys) + 2) // 3) for kind in "bqs"]
    if keys != wanted:
        raise _no_layers("layers without all of q, s and b, or not counted from 0", path)
    return [_layer(arrays, number, path) for number in range(len(keys) // 3)]


def _layer(arrays: dict[tuple[int, str], np.ndarray], number: int, path: Path) -> Layer:
    q, s, b = (arrays[number, kind] for kind in "qsb")
    kinds = q.dtype == np.int8 and s.dtype == b.dtype == np.float32
    if not kinds or q.ndim < 2 or s.shape != b.shape or b.shape != q.shape[:1]:
        shapes = ", ".join(f"{a.dtype} {a.shape}" for a in (q, s, b))
        raise _no_layers(f"layer {number:02d} has q, s, b of {shapes}", path)
    if not (np.isfinite(s).all() and np.isfinite(b).all()):
        raise _no_layers(f"layer {number:02d} has scales or biases of NaN or infinity", path)
    scale = s.reshape(-1, *[1] * (q.ndim - 1))
    return torch.from_numpy(q.astype(np.float32) * scale), torch.from_numpy(b)


def _no_layers(reason: str, path: Path) -> UserError:
    return UserError(
        f"not a file of 8-bit layers: {reason}",
        where=str(path),
        fix="a .tflite; or an .npz with NN.q (int8, outputs first), NN.s and NN.b (float32) for "
        "each layer, or a tar archive that holds one; state dicts end in .safetensors or .pt",
    )


def _arrays(path: Path) -> Iterator[tuple[tuple[int, str], np.ndarray]]:
    """The arrays of the file by layer and kind; nothing is unpickled."""
    with np.load(io.BytesIO(_npz_bytes(path)), allow_pickle=False) as file:
        for name in file.files:
            found = _KEY.fullmatch(name)
            if not found:
                raise ValueError(f"an array named {name!r}")
            yield (int(found[1]), found[2]), file[name]


def _npz_bytes(path: Path) -> bytes:
    if path.suffix == ".npz":
        return path.read_bytes()
    with tarfile.open(path) as archive:
        members = [m for m in archive if m.isfile() and m.name.endswith(".npz")]
        if len(members) != 1:
            raise ValueError(f"{len(members)} .npz files in the archive, instead of one")
        member = archive.extractfile(members[0])
        assert member is not None
        return member.read()


def state_of_layers(network: nn.Module, layers: list[Layer], where: str) -> dict[str, Tensor]:
    """A network's state dict from layers in its order.

    Args:
        network: With as many convolutions and linear layers, each with a bias (``fold_norms``).
        layers: Weights and biases; of a linear layer they may be those of a 1 x 1 convolution. Of
            the 1001 classes of TensorFlow's ImageNet the first, the background, is left out where
            the network has 1000.
        where: The file, for messages.

    Raises:
        UserError: Another number of layers, or a network that has norms.
    """
    linear = (nn.Conv2d, nn.Linear)
    own = [(name, module) for name, module in network.named_modules() if isinstance(module, linear)]
    if any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        raise UserError(
            f"the layers of the file have no batch norms, {type(network).__name__} has some",
            where=where,
            fix="options: {folded: true} of the backbone",
        )
    if len(own) != len(layers):
        raise UserError(
            f"{len(layers)} layers in the file, {len(own)} in {type(network).__name__}",
            where=where,
            fix="give the file of this backbone",
        )
    state = {}
    for (name, module), (weight, bias) in zip(own, layers, strict=True):
        if (len(bias), getattr(module, "out_features", None)) == (1001, 1000):
            weight, bias = weight[1:], bias[1:]  # TensorFlow counts a background before ImageNet's
        flat = isinstance(module, nn.Linear) and weight.shape[2:].numel() == 1
        state[f"{name}.weight"] = weight.flatten(1) if flat else weight
        state[f"{name}.bias"] = bias
    return state
