"""The small networks of the rotated MNIST comparison: a plain CNN and its group-equivariant twin.

After Cohen & Welling 2016 (arXiv 1602.07576): seven convolutions, batch norm, ReLU, max-pooling
after the second; the twin has the square root of the group's order fewer fields, so that both have
about as many parameters. Here the last layer is pooled over space and, in the twin, over
orientations, before a linear head.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from eqadapt.scorers.layers import FieldNorm, RegularConv


class MnistCNN(nn.Module):
    """Seven 3 x 3 convolutions without padding, for images of 28 pixels.

    Args:
        num_classes: Outputs.
        in_chans: Input channels.
        width: Channels of each layer of the plain network.
        group_order: n of C_n for the equivariant twin, 1 for the plain network. Turning the input
            by a multiple of 90 degrees leaves the twin's outputs as they are, up to rounding,
            where 4 divides n.
        dropout: Rate, after each convolution but the last; whole channels of the plain network or
            single orientations, as in the papers.
    """

    def __init__(
        self,
        num_classes: int,
        in_chans: int = 1,
        width: int = 20,
        group_order: int = 1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.order = group_order
        fields = width if group_order == 1 else round(width / math.sqrt(group_order))
        self.num_features = fields
        layers: list[nn.Module] = []
        for layer in range(7):
            layers += [*self._convolution(in_chans if not layer else fields, fields, not layer)]
            layers.append(nn.ReLU())
            if layer == 1:
                layers.append(nn.MaxPool2d(2))
            if layer < 6 and dropout:
                layers.append(nn.Dropout2d(dropout) if group_order == 1 else nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(fields, num_classes)
        self.feature_info = [  # as timm's models have it
            {"module": f"layers.{len(layers) - 1}", "num_chs": fields, "reduction": 2}
        ]

    def _convolution(self, inputs: int, fields: int, lifting: bool) -> tuple[nn.Module, nn.Module]:
        if self.order == 1:
            return nn.Conv2d(inputs, fields, 3, bias=False), nn.BatchNorm2d(fields)
        convolution = RegularConv(self.order, inputs, fields, 3, lifting=lifting)
        return convolution, FieldNorm(self.order, fields)

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps (B, width * n, 2, 2) of images of 28 pixels."""
        return self.layers(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features (B, width), or logits (B, classes)."""
        pooled = x.mean(dim=(-2, -1)).unflatten(1, (-1, self.order)).amax(dim=2)
        return pooled if pre_logits else self.linear(pooled)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, C, H, H)."""
        return self.forward_head(self.forward_features(x))
