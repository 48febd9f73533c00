"""Image classification: bytes to images at the acting size, augmentation, loss.

A group acts trivially on labels, so equivariance is invariance here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eqadapt.errors import UserError
from eqadapt.groups import rotate


@dataclass(frozen=True)
class ImagePipeline:
    """From stored bytes to images in [0, 1] at the size the group acts on.

    Attributes:
        size: Side in pixels at which images are turned.
        upsampling: How stored images are brought there: bicubic, bilinear or nearest.
        crop_padding: Training crops are shifted by up to this many stored pixels, edges repeated.
        flip: Training images are mirrored with probability one half.
        jitter_degrees: Training images are turned by up to this angle either way.
        padding: What such a turn finds outside the image, as the group's action does.
    """

    size: int
    upsampling: str = "bicubic"
    crop_padding: int = 0
    flip: bool = False
    jitter_degrees: float = 0.0
    padding: str = "border"

    @classmethod
    def from_recipe(cls, recipe: Mapping[str, Any]) -> ImagePipeline:
        """The pipeline of a run's recipe (sections ``image`` and ``train.augment``)."""
        image, augment = recipe["image"], recipe["train"]["augment"]
        return cls(
            size=image["size"],
            upsampling=image["upsampling"],
            crop_padding=augment["crop_padding"],
            flip=augment["flip"],
            jitter_degrees=augment["jitter_degrees"],
            padding=image["padding"],
        )

    def to_act_size(self, images: Tensor) -> Tensor:
        """Images (B, C, h, h) uint8 to (B, C, size, size) float32 in [0, 1]."""
        x = images.float() / 255.0
        if x.shape[-1] == self.size:
            return x
        if self.upsampling == "nearest":
            return F.interpolate(x, (self.size, self.size), mode="nearest")
        small = x.shape[-1] > self.size
        x = F.interpolate(
            x, (self.size, self.size), mode=self.upsampling, align_corners=False, antialias=small
        )
        return x.clamp(0.0, 1.0)

    def augmented(
        self, images: Tensor, part: slice = slice(None), count: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Training images at random, and which of them were mirrored.

        Args:
            images: (B, C, h, h) uint8, those of the part.
            part: Which of the batch they are. Chance is drawn for all of it, so that what becomes
                of an image does not depend on the part.
            count: Images of the batch; None: these are all.

        Returns:
            (B, C, size, size) float32, and (B,) bool.
        """
        count, device = len(images) if count is None else count, images.device
        if self.crop_padding:
            images = random_shift(images, self.crop_padding, part, count)
        mirrored = torch.zeros(len(images), dtype=torch.bool, device=device)
        if self.flip:
            mirrored = (torch.rand(count, device=device) < 0.5)[part]
            images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)
        x = self.to_act_size(images)
        if self.jitter_degrees:
            angles = torch.empty(count, device=device).uniform_(-1, 1) * self.jitter_degrees
            x = rotate(x, angles[part], "bicubic", self.padding).clamp(0.0, 1.0)
        return x, mirrored


def random_shift(
    images: Tensor, padding: int, part: slice = slice(None), count: int | None = None
) -> Tensor:
    """Each image shifted by its own amount in [-padding, padding] pixels, edges repeated.

    Args:
        images: (B, C, H, H), any dtype.
        padding: Largest shift.
        part: Which of the batch they are; chance is drawn for all of it.
        count: Images of the batch; None: these are all.
    """
    batch, size = len(images), images.shape[-1]
    drawn = (2, batch if count is None else count, 1)
    offsets = torch.randint(-padding, padding + 1, drawn, device=images.device)[:, part]
    places = torch.arange(size, device=images.device) + offsets
    rows, columns = places.clamp(0, size - 1)
    sample = torch.arange(batch, device=images.device).view(-1, 1, 1)
    return images.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def task_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of logits (B, C) and labels (B,), or probabilities (B, C) of them."""
    return F.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def check_sizes(size: int, backbone_size: int) -> None:
    """Stop early where the acting size cannot serve the backbone.

    Raises:
        UserError: Images would be acted on at fewer pixels than the backbone reads.
    """
    if size < backbone_size:
        raise UserError(
            f"images are turned at {size} pixels, but the backbone reads {backbone_size}",
            where="image.size, image.backbone_size",
            fix=f"image.size of {backbone_size} or an odd multiple of it",
        )
