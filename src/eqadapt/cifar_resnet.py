"""The CIFAR ResNets (20, 32, 44, 56) of He et al. 2016, section 4.2, with identity shortcuts.

timm and torchvision have only the ImageNet form. Parameter names follow the published CIFAR-10
weights (akamaster/pytorch_resnet_cifar10), so that those state dicts load unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def _shortcut(self, x: Tensor) -> Tensor:
        """Option A: subsample, and pad the channels with zeros on both sides."""
        if not self.extra:
            return x
        before = self.extra // 2
        return F.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.extra - before)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self._shortcut(x))


class CifarResNet(nn.Module):
    """ResNet for 32-pixel images: three stages of 16, 32 and 64 channels.

    Args:
        depth: 6n + 2, e.g. 20, 32, 44, 56.
        num_classes: Outputs.
        in_chans: Input channels.
        width: Channels of the first stage.
    """

    def __init__(self, depth: int, num_classes: int, in_chans: int = 3, width: int = 16) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.num_features = 4 * width
        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = self._stage(width, width, blocks, 1)
        self.layer2 = self._stage(width, 2 * width, blocks, 2)
        self.layer3 = self._stage(2 * width, 4 * width, blocks, 2)
        self.linear = nn.Linear(4 * width, num_classes)
        self.feature_info = [  # as timm's models have it
            {"module": f"layer{stage + 1}", "num_chs": width << stage, "reduction": 1 << stage}
            for stage in range(3)
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        rest = [_Block(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(_Block(inputs, outputs, stride), *rest)

    def forward_features(self, x: Tensor) -> Tensor:
        """Feature maps (B, 4 width, H/4, W/4)."""
        x = F.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pooled features (B, 4 width), or logits (B, classes)."""
        x = torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)
        return x if pre_logits else self.linear(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, in_chans, 32, 32), normalised."""
        return self.forward_head(self.forward_features(x))
