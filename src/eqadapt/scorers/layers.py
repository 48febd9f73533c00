"""Layers on regular fields of C_n, in plain torch.

Feature maps are (B, F * n, H, W): F fields of n orientation channels each, as escnn lays them
out. The filters of a layer are a linear map of its weights (the basis of ``bases``), expanded in
one matrix product a step, so the same parameters are trained and saved in every mode and no escnn
is needed to run them.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eqadapt.groups import disk_mask
from eqadapt.scorers.bases import filter_basis, pixel_basis
from eqadapt.scorers.spectral import SpectralConv2d


class RegularConv(nn.Module):
    """Group-equivariant convolution onto regular fields (Weiler & Cesa 2019).

    Args:
        order: n of C_n.
        in_fields: Regular fields of the input, or image channels with ``lifting``.
        out_fields: Regular fields of the output.
        kernel_size: Side of the filters; odd for steerable ones.
        stride: Every how many pixels; exact under quarter turns only where it divides
            H + 2 padding - kernel_size.
        padding: Zeros around; 0 keeps the law at angles that are no multiples of 90 degrees.
        bias: One number a field.
        lifting: The input is an image (channels that do not mix under rotation).
        pixels: Take all filters that quarter turns allow (C1, C2, C4), not the steerable ones.
    """

    basis: Tensor

    def __init__(
        self,
        order: int,
        in_fields: int,
        out_fields: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = False,
        lifting: bool = False,
        pixels: bool = False,
    ) -> None:
        super().__init__()
        self.order, self.kernel_size = order, kernel_size
        self.in_fields, self.out_fields = in_fields, out_fields
        self.stride, self.padding, self.lifting = stride, padding, lifting
        basis = pixel_basis if pixels else filter_basis
        filters, deviation = basis(order, kernel_size, not lifting)
        self.register_buffer("basis", filters.flatten(1), persistent=False)
        deviation = deviation / math.sqrt(in_fields)
        weight = torch.randn(out_fields, in_fields, len(deviation)) * deviation
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(out_fields)) if bias else None

    def expand(self, weight: Tensor) -> Tensor:
        """Filters (O * n, I * m, k, k) of coefficients (O, I, D)."""
        out_fields, in_fields, _ = weight.shape
        sources = 1 if self.lifting else self.order
        side = self.kernel_size
        blocks = (weight.flatten(0, 1) @ self.basis).view(
            out_fields, in_fields, self.order, sources, side, side
        )
        return blocks.transpose(1, 2).reshape(
            out_fields * self.order, in_fields * sources, side, side
        )

    def filters(self) -> Tensor:
        """The convolution's kernel (out_fields * n, in_fields * m, k, k)."""
        return self.expand(self.weight)

    def channel_bias(self) -> Tensor | None:
        """The bias of each channel."""
        return None if self.bias is None else self.bias.repeat_interleave(self.order)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_fields * m, H, W) to (B, out_fields * n, H', W')."""
        return F.conv2d(
            x, self.filters(), self.channel_bias(), stride=self.stride, padding=self.padding
        )

    def plain(self) -> nn.Conv2d:
        """The same layer with its filters expanded for good."""
        filters, bias = self.filters().detach(), self.channel_bias()
        conv = nn.Conv2d(
            filters.shape[1],
            filters.shape[0],
            self.kernel_size,
            stride=self.stride,
            padding=self.padding,
            bias=bias is not None,
        )
        conv.weight = nn.Parameter(filters, requires_grad=False)
        if bias is not None:
            conv.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        return conv


class _ByField(nn.modules.batchnorm._BatchNorm):
    """Batch normalization with one mean and variance a field, over its orientations too."""

    def __init__(self, order: int, fields: int, momentum: float = 0.1) -> None:
        super().__init__(fields, momentum=momentum)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """(B, F * n, H, W), normalized field by field."""
        batch, _, height, width = x.shape
        fields = x.reshape(batch, self.num_features, self.order * height, width)
        return super().forward(fields).view(x.shape)

    def plain(self) -> nn.BatchNorm2d:
        """The same layer by channels, in evaluation mode."""
        channels, device = self.num_features * self.order, self.weight.device
        norm = nn.BatchNorm2d(channels, eps=self.eps, device=device).requires_grad_(False)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(self, name).detach().repeat_interleave(self.order))
        return norm.eval()


class SyncFieldNorm(_ByField, nn.SyncBatchNorm):
    """``FieldNorm`` with statistics over all processes."""


class FieldNorm(_ByField, nn.BatchNorm2d):
    """Batch normalization with one mean and variance a field, over its orientations too."""

    def synchronised(self) -> SyncFieldNorm:
        """The same layer, its tensors shared, with statistics over all processes."""
        assert self.momentum is not None
        made = SyncFieldNorm(self.order, self.num_features, self.momentum)
        made._parameters, made._buffers = self._parameters, self._buffers
        return made.train(self.training)


class Crop(nn.Module):
    """Leave out ``margin`` pixels on each side, as a valid convolution does."""

    def __init__(self, margin: int) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H - 2 margin, W - 2 margin)."""
        return F.pad(x, [-self.margin] * 4)


class Residual(nn.Module):
    """The sum of two branches of equal shape."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        """``body(x) + shortcut(x)``."""
        return self.body(x) + self.shortcut(x)


def plain_layers(network: nn.Module) -> nn.Module:
    """A network of these layers in plain ones, for evaluation.

    Filters are expanded for good, a normalization after a convolution becomes part of it, and wide
    convolutions go through Fourier space where this is faster.
    """
    if isinstance(network, Residual):
        return Residual(plain_layers(network.body), plain_layers(network.shortcut))
    if not isinstance(network, nn.Sequential):
        plain = getattr(network, "plain", None)
        return plain() if plain else copy.deepcopy(network)
    layers: list[nn.Module] = []
    for layer in network:
        if isinstance(layer, _ByField) and layers and isinstance(layers[-1], nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(layers[-1].eval(), layer.plain())
        elif not isinstance(layer, nn.Dropout):
            layers.append(plain_layers(layer))
    layers = [
        SpectralConv2d.of(layer) if isinstance(layer, nn.Conv2d) else layer for layer in layers
    ]
    return nn.Sequential(*layers).eval().requires_grad_(False)


def pool_weights(size: int, pool: str) -> Tensor:
    """Weights (size, size), sum 1, of the mean over a feature map: ``disk`` or ``square``."""
    weights = disk_mask(size) if pool == "disk" else torch.ones(size, size)
    return weights / weights.sum()


def window_weights(size: int, kernel_size: int, pool: str) -> Tensor:
    """What turns a feature map into the pooled values under each tap of a convolution.

    A valid convolution followed by a weighted mean over space is linear: the mean of the
    products is the product of each tap with the weighted mean of the window it sees. This gives
    the weights of those means: (size^2, kernel_size^2).
    """
    out = size - kernel_size + 1
    weights = pool_weights(out, pool)
    windows = torch.zeros(kernel_size, kernel_size, size, size)
    for row in range(kernel_size):
        for column in range(kernel_size):
            windows[row, column, row : row + out, column : column + out] = weights
    return windows.flatten(2).flatten(0, 1).T.contiguous()


def window_product(x: Tensor, windows: Tensor | None, matrix: Tensor) -> Tensor:
    """The product of ``matrix`` with the weighted means of the k x k shifted windows of ``x``.

    Args:
        x: (B, C, H, H).
        windows: (H * H, k * k) of ``window_weights``; None where the one window is all of ``x``.
        matrix: (n, C * k * k).

    Returns:
        (B, n).
    """
    means = x.flatten(2) if windows is None else x.flatten(2) @ windows
    return means.flatten(1) @ matrix.T


def precise_window_product(x: Tensor, windows: Tensor | None, matrix: Tensor) -> Tensor:
    """``window_product`` summed in float64, where the device has it; the dtype of ``x``."""
    if x.device.type == "mps":
        return window_product(x, windows, matrix)
    windows = None if windows is None else windows.double()
    return window_product(x.double(), windows, matrix.double()).to(x.dtype)


class WindowProduct(nn.Module):
    """The last layer of an exported network: a pooled convolution as one product.

    Args:
        windows: (H * H, k * k), or None.
        matrix: (n, C * k * k).
        bias: One number for all n, or one each; or None.
    """

    windows: Tensor | None
    matrix: Tensor
    bias: Tensor | None

    def __init__(self, windows: Tensor | None, matrix: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("windows", windows)
        self.register_buffer("matrix", matrix)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) to (B, n)."""
        out = precise_window_product(x, self.windows, self.matrix)
        return out if self.bias is None else out + self.bias


class PooledConv(nn.Module):
    """The last layer: convolution to regular fields, mean over fields and space, to (B, n).

    Nothing nonlinear lies between the convolution and the means, so both are computed exactly
    as one product with window means; the feature map of the last layer never exists. More than
    one output field adds parameters but no functions. In evaluation the sums are taken in float64:
    they are most of the rounding by which the law fails under quarter turns (1e-5 to 1e-6).

    Args:
        order: n of C_n.
        in_fields: Regular fields of the input.
        size: Side of the input map in pixels.
        kernel_size: Side of the filters.
        pool: ``"disk"`` or ``"square"``: where the mean over space is taken. A square mean
            breaks the law at angles that are no multiples of 90 degrees.
        out_fields: Output fields, averaged.
        bias: One number an output field.
        centred: Leave out what is common to all orientations, so that the results sum to 0. No
            softmax or argmax can tell, and the law holds to fewer rounding errors.
        pixels: As of ``RegularConv``.
    """

    windows: Tensor | None

    def __init__(
        self,
        order: int,
        in_fields: int,
        size: int,
        kernel_size: int,
        pool: str,
        out_fields: int = 1,
        bias: bool = False,
        centred: bool = True,
        pixels: bool = False,
    ) -> None:
        super().__init__()
        self.centred = centred and order > 1
        self.conv = RegularConv(order, in_fields, out_fields, kernel_size, bias=bias, pixels=pixels)
        windows = None if size == kernel_size else window_weights(size, kernel_size, pool)
        self.register_buffer("windows", windows, persistent=False)

    def matrix(self) -> Tensor:
        """The product's matrix (n, in_fields * n * k * k)."""
        matrix = self.conv.expand(self.conv.weight.mean(dim=0, keepdim=True)).flatten(1)
        return matrix - matrix.mean(dim=0) if self.centred else matrix

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_fields * n, size, size) to (B, n)."""
        product = window_product if self.training else precise_window_product
        values = product(x, self.windows, self.matrix())
        return values if self.conv.bias is None else values + self.conv.bias.mean()

    def plain(self, scale: float = 1.0) -> nn.Module:
        """The same layer times ``scale``, with its matrix fixed."""
        bias = None if self.conv.bias is None else self.conv.bias.detach().mean() * scale
        return WindowProduct(self.windows, self.matrix().detach() * scale, bias)


class ClasswisePooledConv(PooledConv):
    """The last layer with one score for each pair of pose and class: to (B, n, classes).

    Args:
        order: n of C_n.
        in_fields: Regular fields of the input.
        size: Side of the input map in pixels.
        kernel_size: Side of the filters.
        pool: As of ``PooledConv``.
        classes: How many classes.
        pixels: As of ``RegularConv``.
    """

    def __init__(
        self,
        order: int,
        in_fields: int,
        size: int,
        kernel_size: int,
        pool: str,
        classes: int,
        pixels: bool = False,
    ) -> None:
        shape = (order, in_fields, size, kernel_size, pool)
        super().__init__(*shape, out_fields=classes, bias=True, pixels=pixels)

    def matrix(self) -> Tensor:
        """The product's matrix (classes * n, in_fields * n * k * k), less what all rows share."""
        matrix = self.conv.filters().flatten(1)
        return matrix - matrix.mean(dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_fields * n, size, size) to (B, n, classes)."""
        product = window_product if self.training else precise_window_product
        values = product(x, self.windows, self.matrix()) + self._biases()
        return values.unflatten(1, (self.conv.out_fields, -1)).transpose(1, 2)

    def _biases(self) -> Tensor:
        """One number a class, for each of its poses; (classes * n,)."""
        biases = self.conv.channel_bias()
        assert biases is not None
        return biases

    def plain(self, scale: float = 1.0) -> nn.Module:
        """The same layer times ``scale``, with its matrix fixed: to (B, n, classes)."""
        bias = self._biases().detach() * scale
        product = WindowProduct(self.windows, self.matrix().detach() * scale, bias)
        return nn.Sequential(product, Pairs(self.conv.out_fields))


class Pairs(nn.Module):
    """One score a pair of pose and class: (B, classes * n) to (B, n, classes).

    Args:
        classes: How many classes.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Reordered, nothing else."""
        return x.unflatten(1, (self.classes, -1)).transpose(1, 2)


class OverClasses(nn.Module):
    """The score of a pose, the log-sum-exp over classes: (B, n, classes) to (B, n)."""

    def forward(self, pairs: Tensor) -> Tensor:
        """One score a pose."""
        return pairs.logsumexp(dim=2)


def pooled_head(
    classes: int | None,
    order: int,
    in_fields: int,
    size: int,
    kernel_size: int,
    pool: str,
    *,
    pixels: bool = False,
    **options: Any,
) -> PooledConv:
    """The last layer of a scorer: class-wise where ``classes`` is given, else ``PooledConv``.

    Options beyond ``pixels`` say how scores of poses alone are made.
    """
    shape = (order, in_fields, size, kernel_size, pool)
    if classes is None:
        return PooledConv(*shape, pixels=pixels, **options)
    return ClasswisePooledConv(*shape, classes, pixels)
