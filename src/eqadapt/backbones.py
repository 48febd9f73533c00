"""Backbones by name: timm's models, small ones built of timm's parts, and the CIFAR ResNets.

A module named in ``EQADAPT_PLUGINS`` may register networks of its own with timm.
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqadapt.errors import UserError
from eqadapt.files import sha256_file
from eqadapt.folded_networks import fold_norms, holds_layers, read_layers, state_of_layers
from eqadapt.groups.images import pixel_centres
from eqadapt.methods import load_plugins
from eqadapt.parts import in_parts

_CIFAR_DEPTHS = (20, 32, 44, 56)

# Small models of timm's classes, for images of 16 to 64 pixels on few cores.
_SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet_small": (
        "resnet18",
        {"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 64), "small_stem": True},
    ),
    "vit_small": (
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 4},
    ),
}


class Backbone(nn.Module):
    """A classifier that takes images in [0, 1] at the size the group acts on.

    It brings them to its own size, normalises them and runs the network. Where the acting size is
    an odd multiple of the backbone's, the image is sampled at the centres of the old pixels, which
    undoes an upsampling exactly; else it is resized with antialiasing.

    Args:
        network: Maps images to logits, or to something with such a ``logits``. Where features are
            read, too, a model with timm's ``forward_features`` and ``forward_head``.
        size: Side of the images the network takes, in pixels.
        mean: Per-channel mean subtracted from images in [0, 1].
        std: Per-channel standard deviation divided by.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.network = network
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def feature_count(self) -> int:
        """Dimension of the penultimate features.

        Raises:
            UserError: The network does not tell it.
        """
        own: Any = self.network
        found = getattr(own, "head_hidden_size", None) or getattr(own, "num_features", None)
        if found is None:
            raise self._no_features("num_features")
        return int(found)

    def _no_features(self, lacking: str) -> UserError:
        return UserError(
            f"{type(self.network).__name__} has no {lacking}, and a method of the study reads the "
            "backbone's features",
            fix="a backbone of timm, or one with timm's num_features, forward_features and "
            "forward_head",
        )

    def prepare(self, x: Tensor) -> Tensor:
        """Images (B, C, H, H) in [0, 1] to normalised images (B, C, size, size)."""
        return self._normalised(to_size(x, self.size))

    def _normalised(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def forward(self, x: Tensor, with_features: bool = False) -> Any:
        """Logits (B, classes); ``with_features``: penultimate features (B, D) and logits.

        Raises:
            UserError: The network returns neither a tensor nor something with ``logits``, or has no
                features to read.
        """
        outputs = functools.partial(self._outputs, with_features=with_features)
        sized = to_size(x, self.size)
        return outputs(sized) if self.training else in_parts(outputs, sized)

    def _outputs(self, sized: Tensor, with_features: bool) -> Any:
        x = self._normalised(sized)
        if not with_features:
            return as_logits(self.network(x))
        for name in ("forward_features", "forward_head"):
            if not hasattr(self.network, name):
                raise self._no_features(name)
        maps = self.network.forward_features(x)  # type: ignore[operator]
        features = self.network.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return features, self.network.forward_head(maps)  # type: ignore[operator]

    def stage_names(self, most: int = 5) -> list[str]:
        """Modules of the network after which its features are read: the last of each stage.

        Args:
            most: Of more stages, so many are taken, evenly, the last among them.

        Raises:
            UserError: The network does not say what its stages are.
        """
        stages = getattr(self.network, "feature_info", None)
        if not stages:
            raise UserError(
                f"{type(self.network).__name__} does not name its stages",
                fix="a backbone of timm, or one with timm's feature_info",
            )
        names = [stage["module"] for stage in stages]
        count = min(most, len(names))
        return [names[math.ceil((place + 1) * len(names) / count) - 1] for place in range(count)]

    def stage_maps(self, x: Tensor, side: int) -> list[Tensor]:
        """Features after each stage, from one whole pass, pooled to a few places.

        Args:
            x: (B, C, H, H) images in [0, 1].
            side: Maps are pooled to at most this side.

        Returns:
            (B, D, h, h) a stage, h at most ``side``.
        """
        maps: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            grid = self._as_grid(output)
            maps.append(F.adaptive_avg_pool2d(grid, min(side, grid.shape[-1])))

        names = self.stage_names()
        handles = [self.network.get_submodule(name).register_forward_hook(keep) for name in names]
        try:
            self(x)
        finally:
            for handle in handles:
                handle.remove()
        # Of a batch in parts: all stages of the first part, then those of the next one.
        return [torch.cat(maps[stage :: len(names)]) for stage in range(len(names))]

    def _as_grid(self, output: Tensor) -> Tensor:
        """A stage's output as (B, D, h, w): transformers give tokens, some of them no places."""
        if output.ndim == 3:
            tokens = output[:, int(getattr(self.network, "num_prefix_tokens", 0)) :]
            side = math.isqrt(tokens.shape[1])
            return tokens.transpose(1, 2).unflatten(2, (side, side))
        channels_last = getattr(self.network, "output_fmt", "NCHW") == "NHWC"
        return output.permute(0, 3, 1, 2) if channels_last else output

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features (B, D) and logits (B, classes), in one pass."""
        return self(x, with_features=True)


def as_logits(outputs: Any) -> Tensor:
    """What a network returns as a tensor: itself, or its ``logits``, as of Hugging Face's models.

    Raises:
        UserError: It is neither.
    """
    logits = getattr(outputs, "logits", outputs)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"the model gives {type(logits).__name__}, not a tensor of logits",
            fix="a model that returns a tensor, or something with a tensor `logits`; wrap one that "
            "returns more in a module that takes the logits out",
        )
    return logits


def to_size(x: Tensor, size: int) -> Tensor:
    """Square images brought to ``size`` pixels: sampled at pixel centres, or resized.

    Args:
        x: (B, C, H, H).
        size: The side asked for.
    """
    centres = pixel_centres(x.shape[-1], size)
    if centres is not None:
        return x[..., centres, centres]
    return F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)


HUB_FILES = Path("data/weights")


def hub_file(model: str) -> Path:
    """Where timm's pretrained weights of a model lie, once they are fetched."""
    return HUB_FILES / f"{model}.safetensors"


def unknown_backbone(model: str) -> UserError:
    """What to raise of a name that neither timm nor this project knows."""
    import timm

    near = difflib.get_close_matches(model, timm.list_models(), 5)
    return UserError(
        f"unknown backbone {model!r}",
        fix=f"a name of timm, e.g. {', '.join(near) or 'resnet50'}; or one of ours: "
        f"{', '.join(sorted(_SMALL))}, {', '.join(f'cifar_resnet{d}' for d in _CIFAR_DEPTHS)}; or "
        "one that a module named in EQADAPT_PLUGINS registers with timm",
    )


def known_to_timm(model: str) -> bool:
    """Whether timm has a model of that name and tag, plugins' own included."""
    import timm

    name = model.split(".")[0]
    if not timm.is_model(name):
        load_plugins()
    return bool(timm.is_model(name))


def _timm_network(model: str, pretrained: bool, **options: Any) -> nn.Module:
    import timm

    if ":" not in model and not known_to_timm(model):
        raise unknown_backbone(model)
    small_stem, folded = options.pop("small_stem", False), options.pop("folded", False)
    if pretrained and hub_file(model).is_file():
        options["pretrained_cfg_overlay"] = {"file": str(hub_file(model)), "custom_load": False}
    try:
        network = timm.create_model(model, pretrained=pretrained, **options)
    except OSError as error:  # no hub
        raise UserError(
            f"the pretrained weights of {model} cannot be had: {error}",
            fix="check the network, or use weights: pretrain, scratch or file",
        ) from error
    if small_stem:  # the ImageNet stem would leave a small image four pixels wide
        stem = getattr(network, "conv1", None)
        if not isinstance(stem, nn.Conv2d) or not hasattr(network, "maxpool"):
            raise _no_option("small_stem", model)
        network.conv1 = nn.Conv2d(options["in_chans"], stem.out_channels, 3, 2, 1, bias=False)
        network.maxpool = nn.Identity()
    return fold_norms(network) if folded else network


def _no_option(name: str, model: str) -> UserError:
    return UserError(
        f"{model} takes no option {name!r}",
        where=f"options of the backbone {model}",
        fix=f"remove {name}, or see the arguments of the network",
    )


def _refuse_option(error: TypeError, model: str, options: Mapping[str, Any]) -> None:
    """Name the option that a network does not take; any other TypeError is a bug and passes.

    Networks of timm hand their options on, so that only the call itself tells which are known.

    Raises:
        UserError: The call failed for the name of one of ``options``.
    """
    refused = r"got (?:an unexpected|multiple values for) (?:keyword )?argument '(\w+)'"
    found = re.search(refused, str(error))
    if found and found[1] in options:
        raise _no_option(found[1], model) from error


def build_network(
    model: str,
    num_classes: int,
    in_channels: int,
    *,
    pretrained: bool = False,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The bare network of that name.

    Args:
        model: ``resnet_small``, ``vit_small``, ``cifar_resnet{20,32,44,56}``, ``mnist_cnn``,
            ``mnist_gcnn`` or a name of timm, which may be one that a plugin registered with it.
        num_classes: Outputs of the (new) head.
        in_channels: Image channels.
        pretrained: Load timm's own pretrained weights (needs the network or timm's cache).
        options: Further arguments of the model.

    Raises:
        UserError: Unknown name or option, or weights that cannot be had.
    """
    options = dict(options or {})
    for key in sorted({"num_classes", "in_chans"} & set(options)):
        raise _no_option(key, model)  # it follows from the data
    try:
        return _named_network(model, num_classes, in_channels, pretrained, options)
    except TypeError as error:
        _refuse_option(error, model, options)
        raise


def _named_network(
    model: str, num_classes: int, in_channels: int, pretrained: bool, options: Mapping[str, Any]
) -> nn.Module:
    if model.startswith("cifar_resnet"):
        depth = model.removeprefix("cifar_resnet")
        if depth not in map(str, _CIFAR_DEPTHS) or pretrained:
            raise UserError(
                f"no {'pretrained ' if pretrained else ''}backbone {model!r}",
                fix=f"cifar_resnet with depth {_CIFAR_DEPTHS}; its weights come by weights: file",
            )
        from eqadapt.cifar_resnet import CifarResNet

        return CifarResNet(int(depth), num_classes, in_channels, **options)
    if model in ("mnist_cnn", "mnist_gcnn"):
        from eqadapt.mnist_cnn import MnistCNN

        if pretrained:
            raise UserError(f"no pretrained weights for {model!r}", fix="weights: pretrain")
        order = 4 if model == "mnist_gcnn" else 1
        return MnistCNN(num_classes, in_channels, **{"group_order": order, **options})
    base, preset = _SMALL.get(model, (model, {}))
    if pretrained and model in _SMALL:
        raise UserError(f"no pretrained weights for {model!r}", fix="weights: pretrain")
    merged = {**preset, **options, "num_classes": num_classes, "in_chans": in_channels}
    return _timm_network(base, pretrained, **merged)


def normalisation(
    network: nn.Module, in_channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation: as given, else the network's own, else 0.5 and 0.5.

    Raises:
        UserError: Given values are not one a channel, not finite, or a deviation is not above 0.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    own_mean, own_std = config.get("mean"), config.get("std")
    has_weights = any(config.get(key) for key in ("hf_hub_id", "url", "file"))
    if own_mean is None or len(own_mean) != in_channels or not has_weights:
        own_mean, own_std = [0.5] * in_channels, [0.5] * in_channels
    return (
        list(own_mean) if mean is None else _channel_values("mean", mean, in_channels),
        list(own_std or ()) if std is None else _channel_values("std", std, in_channels),
    )


def _channel_values(key: str, given: Sequence[float], in_channels: int) -> list[float]:
    """The values of ``image.mean`` or ``image.std``, checked."""
    values = list(given) if isinstance(given, Sequence) else []
    fix = f"as many values as channels ({in_channels}), or null for the network's own"
    if len(values) != in_channels:
        what = f"{key} is {given}, but the images have {in_channels} channels"
        raise UserError(what, where=f"image.{key}", fix=fix)
    numbers = all(isinstance(value, int | float) for value in values)
    # As the images are divided: of single precision, where 1e-50 is zero.
    single = torch.tensor(values, dtype=torch.float32) if numbers else torch.tensor(math.nan)
    if not single.isfinite().all() or (key == "std" and not (single > 0).all()):
        kind = "finite numbers above 0" if key == "std" else "finite numbers"
        raise UserError(f"{key} is {given}: not {kind}", where=f"image.{key}", fix=fix)
    return values


def check_weights_file(path: str | Path, sha256: str | None) -> Path:
    """The path of a user's weights file.

    Raises:
        UserError: No file, or another checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such weights file", where=str(path), fix="give an existing file")
    found = sha256_file(path)
    if sha256 and not found.startswith(sha256):
        raise UserError(
            f"checksum of the weights file: expected {sha256}, found {found}",
            where=str(path),
            fix="fetch the file again, or give the checksum of the file that is meant",
        )
    return path


def read_weights_file(path: str | Path, sha256: str | None) -> dict[str, Tensor]:
    """A user's state dict (safetensors, or a torch file read without unpickling code).

    Raises:
        UserError: No file, another checksum, no state dict of tensors, or values that are complex,
            infinite or not a number.
    """
    path = check_weights_file(path, sha256)
    state = _read_file(path)
    if isinstance(state, Mapping):
        state = state.get("state_dict", state)
    _check_state(state, str(path))
    for key, value in state.items():
        _check_values(key, value, str(path))
    return {key.removeprefix("module."): value for key, value in state.items()}


def _no_state(reason: str, where: str) -> UserError:
    return UserError(
        f"not a state dict of tensors: {reason}",
        where=where,
        fix="save it with `torch.save(model.state_dict(), path)`, or as safetensors in a file "
        "named .safetensors",
    )


def _read_file(path: Path) -> Any:
    """Whatever the file holds.

    Raises:
        UserError: It cannot be read, or only by running code.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    # Bytes that are no pickle are read as its opcodes, and fail as these do: by a KeyError, a
    # struct.error or nearly anything else. The cause is left out, as torch's message advises to
    # run the code of the file.
    except Exception as error:
        reason = "it is empty, cut short, of another format or holds code"
        raise _no_state(f"{reason} ({type(error).__name__})", str(path)) from None


def _check_state(state: object, where: str) -> None:
    """Stop where ``state`` is not dense tensors by name.

    Raises:
        UserError: It is something else; the first entry at fault is named.
    """
    if not isinstance(state, Mapping):
        raise _no_state(f"it is of type {type(state).__name__}", where)
    for key, value in state.items():
        if not isinstance(key, str):
            raise _no_state(f"the key {key!r} is no name", where)
        if not isinstance(value, Tensor):
            raise _no_state(f"{key} is of type {type(value).__name__}", where)
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise _no_state(f"{key} is sparse, quantized or without values", where)


def _check_values(key: str, value: Tensor, where: str) -> None:
    """Stop where a weight cannot be one of a trained network.

    Raises:
        UserError: It is complex, or not finite.
    """
    fix = "give a whole checkpoint of a real-valued network whose training did not diverge"
    if value.is_complex():
        raise UserError(f"the weights {key} are complex", where=where, fix=fix)
    wide = value.float() if value.element_size() == 1 else value  # torch tests no 8-bit floats
    if not wide.isfinite().all():
        raise UserError(f"the weights {key} hold NaN or infinity", where=where, fix=fix)


def load_weights_file(
    network: nn.Module, path: str | Path, sha256: str | None, new_head: bool = False
) -> None:
    """Load a user's state dict, or the layers of an 8-bit network (``eqadapt.folded_networks``).

    Args:
        network: Changed in place.
        path: The file.
        sha256: Its checksum, or the first digits; None: not checked.
        new_head: Its classes are others: the classifier begins at zero, where no class is likelier
            than another, in place of the file's.

    Raises:
        UserError: No file, another checksum, no finite weights, or another architecture or class
            count.
    """
    if holds_layers(Path(path)):
        layers = read_layers(check_weights_file(path, sha256))
        state = state_of_layers(network, layers, where=str(path))
    else:
        state = read_weights_file(path, sha256)
    if new_head:
        head = classifier_name(network) + "."
        own = network.state_dict()
        own = {key: torch.zeros_like(own[key]) for key in own if key.startswith(head)}
        state = {k: v for k, v in state.items() if not k.startswith(head)} | own
    try:
        load_state(network, state, where=str(path))
    except UserError as error:
        if not new_head and _classifier_alone_differs(network, state):
            error.fix = (
                "new_head: true of the backbone, if it was trained on other classes, which leaves "
                "the file's classifier out; or the checkpoint of this data set"
            )
        raise


def _classifier_alone_differs(network: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether all that keeps a state from a network are the shapes of the classifier."""
    own = network.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    if own.keys() - counters != state.keys() - counters:
        return False
    other = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    try:
        head = classifier_name(network) + "."
    except UserError:
        return False
    return bool(other) and all(key.startswith(head) for key in other)


def check_head(network: nn.Module, classes: int, model: str) -> None:
    """Stop where a network with timm's pretrained weights has a random head instead of theirs.

    Args:
        network: As ``build_network`` gave it, with a head for the classes of the data.
        classes: Their number.
        model: Its name in the study.

    Raises:
        UserError: Its pretrained weights are of another number of classes, or have no head.
    """
    own = (getattr(network, "pretrained_cfg", None) or {}).get("num_classes")
    if own is not None and own != classes:
        raise UserError(
            f"the pretrained weights of {model} tell {own} classes and the data have {classes}, so "
            "that its head would be random",
            where="weights of the backbone",
            fix=f"a model whose head is of {classes} classes (timm's tags ending in in1k, for "
            "ImageNet-1k); or weights: pretrain",
        )


def classifier_name(network: nn.Module) -> str:
    """The module of a network that tells its classes: timm's word for it, or the last linear one.

    Raises:
        UserError: There is none.
    """
    named = (getattr(network, "pretrained_cfg", None) or {}).get("classifier")
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    found = named if isinstance(named, str) else linear[-1] if linear else None
    if found is None:
        raise UserError(
            f"{type(network).__name__} has no linear classifier",
            where="new_head of the backbone",
            fix="weights whose classes are those of the data, without new_head",
        )
    return found


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict strictly, with a message that names the first differences.

    Raises:
        UserError: It holds other things than tensors, or keys, shapes or kinds differ.
    """
    _check_state(state, where)
    own = module.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    state = {**counters, **state}  # old checkpoints lack these, and nothing reads them
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shared = sorted(own.keys() & state.keys())
    shapes = [
        f"{key}: {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in shared
        if own[key].shape != state[key].shape
    ]
    # Torch would drop the imaginary parts.
    imaginary = [key for key in shared if state[key].is_complex() and not own[key].is_complex()]
    differences = {"missing": missing, "unknown": unknown, "shape": shapes, "complex": imaginary}
    if any(differences.values()):
        parts = []
        for label, items in differences.items():
            if items:
                parts.append(f"{label}: {', '.join(items[:3])}{' ...' if len(items) > 3 else ''}")
        raise UserError(
            f"the checkpoint is of another architecture or class count ({'; '.join(parts)})",
            where=where,
            fix="give the checkpoint of this backbone and data set",
        )
    module.load_state_dict(state)


def count_parameters(module: nn.Module | None) -> int:
    """Number of trainable and frozen parameters (buffers not counted)."""
    return 0 if module is None else sum(parameter.numel() for parameter in module.parameters())
