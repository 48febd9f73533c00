"""What every scorer has in common: its group, its checks, its look at the image."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, disk_mask
from eqadapt.groups.images import pixel_centres

MAX_LOGIT_SCALE = 50.0


class PoseScorer(nn.Module, ABC):
    """Base of scorers: (B, C, H, H) float32 images to (B, K) pose logits.

    Subclasses set ``prepare`` (the image as the network sees it) and define ``score``.

    Args:
        group: The group whose elements are scored.
        in_channels: Channels of the images.

    Attributes:
        training_dtype: What the network computes in while it is trained, under autocast; None is
            float32. Evaluation is in float32 always.
        serves_training: The model that it is a part of is being trained, though maybe not itself:
            it computes in ``training_dtype`` then, too.
    """

    prepare: nn.Module

    def __init__(self, group: CyclicGroup, in_channels: int) -> None:
        super().__init__()
        if in_channels < 1:
            raise UserError(f"in_channels is {in_channels}", fix="1 for grey images, 3 for colour")
        self.group = group
        self.in_channels = in_channels
        self.training_dtype: torch.dtype | None = None
        self.serves_training = False

    @property
    def num_parameters(self) -> int:
        """Trained numbers, before filters are expanded by ``export``."""
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, x: Tensor) -> Tensor:
        """Pose logits (B, K) float32 of images (B, C, H, H).

        Computed in float32 whatever region of lower precision this is called in, so that no pose
        depends on it; in training mode, the network itself in ``training_dtype`` where that is set.

        Raises:
            UserError: The images are not square or have another number of channels.
        """
        return self.computed(x, self.score).float()

    def pairs(self, x: Tensor) -> Tensor:
        """Logits (B, K, classes) of the pairs of pose and class; ``forward`` is their log-sum-exp.

        Raises:
            UserError: It scores poses alone.
        """
        raise no_classes()

    def computed(self, x: Tensor, network: Callable[[Tensor], Tensor]) -> Tensor:
        """``network`` of the prepared images, in the precision that is due."""
        check_images(x, self.in_channels)
        device = x.device.type
        with torch.autocast(device, enabled=False):
            prepared = self.prepare(x.float())
        lower = self.training_dtype if self.training or self.serves_training else None
        with torch.autocast(device, lower or torch.bfloat16, enabled=lower is not None):
            return network(prepared)

    @abstractmethod
    def score(self, views: Tensor) -> Tensor:
        """Pose logits of prepared images."""

    def export(self) -> nn.Module:
        """A plain torch module with the same outputs as this one in evaluation mode."""
        return copy.deepcopy(self).eval().requires_grad_(False)

    def export_pairs(self) -> nn.Module:
        """A plain torch module with the outputs of ``pairs`` in evaluation mode.

        Raises:
            UserError: It scores poses alone.
        """
        raise no_classes()


def no_classes() -> UserError:
    """What is said where pairs are asked of a scorer of poses alone."""
    return UserError(
        "this scorer tells no classes", fix="a scorer built with `classes`: staged_cnn, ..."
    )


def check_images(x: Tensor, channels: int) -> None:
    """Refuse what is not a batch of square images with that many channels."""
    if x.ndim != 4 or x.shape[1] != channels or x.shape[-1] != x.shape[-2]:
        raise UserError(
            f"a pose scorer for {channels} channels got {tuple(x.shape)}",
            fix=f"square images (B, {channels}, H, H)",
        )


def settle(scorer: str, forms: dict[str, dict[str, Any]], form: str, given: dict[str, Any]) -> dict:
    """The settings of a named form, with those that are given (not None) put over them."""
    if form not in forms:
        raise UserError(
            f"scorer {scorer!r} has no form {form!r}", fix=f"one of: {', '.join(forms)}"
        )
    settings = forms[form] | {key: value for key, value in given.items() if value is not None}
    for key in ("width", "layers", "blocks", "stages", "dim", "input_size"):
        value = settings.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"scorer {scorer!r}: {key} is {value!r}", fix="a positive integer")
    classes = settings.get("classes")
    if classes is not None and (not isinstance(classes, int) or classes < 2):
        raise UserError(f"scorer {scorer!r}: classes is {classes!r}", fix="2 or more")
    for key in ("kernel_size", "stem_kernel_size", "head_kernel_size"):
        value = settings.get(key)
        if value is None or (key == "head_kernel_size" and value == "full"):
            continue
        if not isinstance(value, int) or value < 1 or value % 2 == 0:
            raise UserError(
                f"scorer {scorer!r}: {key} is {value!r}",
                fix="an odd number: even kernels have no centre to turn about",
            )
    if settings.get("pool", "disk") not in ("disk", "square"):
        raise UserError(f"scorer {scorer!r}: pool is {settings['pool']!r}", fix="disk or square")
    scale = settings.get("logit_scale") or 0.0
    if not 0 <= scale <= MAX_LOGIT_SCALE:  # beyond, it would be cut off and never learn
        raise UserError(
            f"scorer {scorer!r}: logit_scale is {scale!r}", fix=f"0 (none) to {MAX_LOGIT_SCALE:g}"
        )
    crop = settings.get("crop")
    if crop is not None and not 0 < crop <= 1:
        raise UserError(f"scorer {scorer!r}: crop is {crop!r}", fix="a share in (0, 1]")
    return settings


def resize_matrix(source: int, target: int) -> Tensor:
    """Antialiased linear resampling of ``source`` samples to ``target``, as a matrix.

    The weights are torch's own, taken in float64 and made exactly symmetric under reversal, so
    that resizing commutes with quarter turns up to the rounding of sums (1e-7; the direct call
    in float32 is off by 1e-6 to 4e-6).

    Returns:
        (target, source) float32.
    """
    identity = torch.eye(source, dtype=torch.float64)[None, None]
    weights = F.interpolate(
        identity, size=(target, source), mode="bilinear", antialias=True, align_corners=False
    )[0, 0]
    return ((weights + weights.flip(0, 1)) / 2).float()


class Prepare(nn.Module):
    """The image as a scorer sees it: cropped, resized once, its corners masked.

    Args:
        size: Side of the result in pixels.
        crop: Share of the side to keep, around the centre; None keeps all. The crop is widened
            by a pixel where it would be off-centre otherwise.
        mask: Multiply by an inscribed soft disk, so that no corner can leak the angle.
        sample: Where the side is an odd multiple of ``size``, take the pixels at the centres and
            average nothing. It undoes an enlargement for the sake of the action, which
            antialiasing would blur.
    """

    def __init__(
        self, size: int, crop: float | None = None, mask: bool = False, sample: bool = False
    ) -> None:
        super().__init__()
        self.size = size
        self.crop = crop
        self.sample = sample
        self.disk: Tensor | None
        self.register_buffer("disk", disk_mask(size) if mask else None, persistent=False)
        self._matrices: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) float32 to (B, C, size, size)."""
        return self.masked(self.resized(self.cropped(x)))

    def cropped(self, x: Tensor) -> Tensor:
        """The central part."""
        if self.crop is None:
            return x
        side = x.shape[-1]
        margin = int(side * (1 - self.crop) / 2 + 1e-6)
        return x[..., margin : side - margin, margin : side - margin]

    def centres(self, side: int) -> slice | None:
        """The pixels taken of images of that side; None where they are averaged."""
        return pixel_centres(side, self.size) if self.sample else None

    def resized(self, x: Tensor) -> Tensor:
        """``x`` at the scorer's size; untouched where it has it already."""
        if x.shape[-1] == self.size:
            return x
        centres = self.centres(x.shape[-1])
        if centres is not None:
            return x[..., centres, centres]
        key = (x.shape[-1], x.device)
        if key not in self._matrices:
            with torch.inference_mode(False):  # kept, and so maybe used where gradients are
                self._matrices[key] = resize_matrix(x.shape[-1], self.size).to(x.device)
        matrix = self._matrices[key]
        return matrix @ x @ matrix.T

    def masked(self, x: Tensor) -> Tensor:
        """``x`` times the disk, where there is one."""
        return x if self.disk is None else x * self.disk


def scaled(logits: Tensor, scale: Tensor | None) -> Tensor:
    """Logits times the learnt scale, kept in [0, 50]."""
    return logits if scale is None else logits * scale.clamp(0.0, MAX_LOGIT_SCALE)


def new_scale(initial: float) -> nn.Parameter | None:
    """A learnable scale; none where ``initial`` is 0."""
    return nn.Parameter(torch.tensor(float(initial))) if initial else None
