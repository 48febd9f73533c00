"""Who scores poses by looking at the backbone's own features of the input as it is.

Artificial mental rotation (Tuggener et al. 2023): a plain head on several stages of a classifier
tells the turn, the input is turned back and classified. One more pass of the backbone, no second
network. Nothing makes the head equivariant: its poses turn with the input as far as it has learnt
that, so the outputs are not exactly invariant.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eqadapt.backbones import Backbone
from eqadapt.modes import evaluating


class RotationHead(nn.Module):
    """Pose logits from the pooled stages of a backbone; the backbone gets no gradient from it.

    Stages are read in evaluation mode, so that turned inputs do not move a batch norm's
    statistics. The backbone belongs to the model and not to the head: the head's parameters and
    state are its own alone.

    Args:
        backbone: Whose features are read, in one pass that counts.
        order: Poses to tell apart.
        width: Channels that each stage is brought to.
        hidden: Width of the hidden layer.
        side: Stages are pooled to at most ``side * side`` places.
    """

    equivariant = False

    def __init__(
        self, backbone: Backbone, order: int, width: int = 16, hidden: int = 128, side: int = 4
    ) -> None:
        super().__init__()
        self._backbone = (backbone,)  # in a tuple, which registers nothing
        self.side = side
        blank = torch.zeros(1, backbone.mean.shape[1], backbone.size, backbone.size)
        maps = self._stages(blank.to(backbone.mean))
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, stage.shape[1]),
                nn.Conv2d(stage.shape[1], width, 1),
                nn.GELU(),
                nn.Flatten(),
            )
            for stage in maps
        )
        places = sum(stage.shape[-2] * stage.shape[-1] for stage in maps)
        self.head = nn.Sequential(
            nn.Linear(width * places, hidden), nn.GELU(), nn.Linear(hidden, order)
        )

    @torch.no_grad()
    def _stages(self, x: Tensor) -> list[Tensor]:
        backbone = self._backbone[0]
        with evaluating(backbone):
            return backbone.stage_maps(x, self.side)

    def forward(self, x: Tensor) -> Tensor:
        """Pose logits (B, K) of images (B, C, H, H) in [0, 1]."""
        maps = self._stages(x)
        with torch.autocast(x.device.type, enabled=False):
            # Contiguous: on a CPU torch 2.11 ends by a segmentation fault where a group norm is
            # trained on maps that lie channels last and have no gradient of their own.
            maps = [m.float().contiguous() for m in maps]
            parts = [stage(m) for stage, m in zip(self.stages, maps, strict=True)]
            return self.head(torch.cat(parts, dim=1))
