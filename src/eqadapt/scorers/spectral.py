"""Wide convolutions on processors as products of tiles in Fourier space.

A 5 x 5 filter costs 25 multiplications a pixel and pair of channels. Cut into overlapping tiles
(overlap-save) and transformed, the same convolution costs about four, at the same float32 accuracy;
the transforms themselves are paid once a channel, not once a pair, so it takes many channels.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_KERNEL = 5
FEWEST_CHANNELS = 128
FEWEST_TILES = 16  # of one image: for fewer, reading the spectra of the filters takes too long
LARGEST_TILE = 20  # larger ones have no fewer products, and took longer


class SpectralConv2d(nn.Conv2d):
    """A convolution for evaluation that goes through Fourier space where this is faster.

    That is in float32, on a processor, for maps that are large enough; else it is ``nn.Conv2d``.
    Images are treated one by one, so that no result depends on the batch it is in. The spectra of
    the filters are computed at the first call, and again where the filters changed (by way of
    ``weight.data`` it is not noticed).
    """

    _spectra: dict[int, tuple[int, Tensor]]

    @classmethod
    def of(cls, conv: nn.Conv2d) -> nn.Conv2d:
        """The same layer, of this class if it is one that gains by it."""
        if not suits(conv):
            return conv
        bias = conv.bias is not None
        new = cls(conv.in_channels, conv.out_channels, conv.kernel_size, bias=bias)  # type: ignore[arg-type]
        new.weight = conv.weight
        if bias:
            new.bias = conv.bias
        return new.train(conv.training)

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._spectra = {}

    def __getstate__(self) -> dict[str, object]:
        """Without the spectra: a copy counts the changes of its filters anew."""
        return {**self.__dict__, "_spectra": {}}

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) to (B, O, H - k + 1, H - k + 1)."""
        kernel, side = self.kernel_size[0], x.shape[-1]
        tile = best_tile(side, kernel)
        few = _steps(side, kernel, tile) ** 2 < FEWEST_TILES
        if few or not _gains(x, self.weight):
            return super().forward(x)
        spectra = self._spectra_for(tile)
        out = torch.stack([correlate(image, spectra, tile, kernel, self.bias) for image in x])
        return out[..., : side - kernel + 1, : side - kernel + 1].contiguous()

    def _spectra_for(self, tile: int) -> Tensor:
        version = 0 if self.weight.is_inference() else self.weight._version
        known = self._spectra.get(tile)
        if known is None or known[0] != version:
            with torch.inference_mode(False), torch.no_grad():
                known = version, filter_spectra(self.weight, tile)
            self._spectra[tile] = known
        return known[1]


def _gains(x: Tensor, weight: Tensor) -> bool:
    """Whether the way through Fourier space is the faster one, and nothing is lost by it."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return False
    trained = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return len(x) > 0 and x.shape[-1] == x.shape[-2] and not trained


def suits(conv: nn.Conv2d) -> bool:
    """Whether a convolution is of the kind that gains: large filters, many channels, no stride."""
    return (
        min(conv.kernel_size) >= SMALLEST_KERNEL
        and conv.kernel_size[0] == conv.kernel_size[1]
        and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (0, 0)
        and conv.groups == 1
    )


def best_tile(side: int, kernel: int) -> int:
    """The tile with the fewest products for maps of that side.

    Of tiles whose transforms are fast: sides with no prime factor above 5.
    """
    return min(_tiles(kernel), key=lambda tile: _products(side, kernel, tile))


def _tiles(kernel: int) -> Iterator[int]:
    for tile in range(2 * kernel, max(LARGEST_TILE, 3 * kernel) + 1):
        rest = tile
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            yield tile


def _products(side: int, kernel: int, tile: int) -> int:
    """Complex products a pair of channels."""
    return _steps(side, kernel, tile) ** 2 * tile * (tile // 2 + 1)


def _steps(side: int, kernel: int, tile: int) -> int:
    """Tiles along one side: each gives ``tile - kernel + 1`` pixels."""
    return -(-(side - kernel + 1) // (tile - kernel + 1))


def filter_spectra(weight: Tensor, tile: int) -> Tensor:
    """Spectra (tile * (tile // 2 + 1), O, C), complex, of filters (O, C, k, k)."""
    spectra = torch.fft.rfft2(weight, s=(tile, tile)).conj()  # a correlation, as conv2d
    return spectra.flatten(2).permute(2, 0, 1).resolve_conj().contiguous()


def correlate(
    image: Tensor, spectra: Tensor, tile: int, kernel: int, bias: Tensor | None = None
) -> Tensor:
    """What ``conv2d`` gives of one image, tile by tile in Fourier space.

    Args:
        image: (C, H, H) float32.
        spectra: Of ``filter_spectra`` for this tile.
        tile: Side of the tiles, overlapping by ``kernel - 1``.
        kernel: Side of the filters.
        bias: (O,), or None.

    Returns:
        (O, H', H') with H' the first multiple of ``tile - kernel + 1`` from ``H - kernel + 1`` on;
        what lies beyond the latter is of no use.
    """
    side, step = image.shape[-1], tile - kernel + 1
    count = _steps(side, kernel, tile)
    beyond = count * step + kernel - 1 - side
    padded = F.pad(image, (0, beyond, 0, beyond)) if beyond else image
    tiles = padded.unfold(1, tile, step).unfold(2, tile, step).contiguous()
    found = torch.fft.rfft2(tiles).view(-1, len(spectra))  # (C * tiles, frequencies)
    found = found.t().contiguous().view(len(spectra), len(image), -1)
    found = torch.bmm(spectra, found).flatten(1).t().contiguous()  # (O * tiles, frequencies)
    found = torch.fft.irfft2(found.view(-1, tile, tile // 2 + 1), s=(tile, tile))
    pixels = found[:, :step, :step].view(-1, count, count, step, step).transpose(2, 3)
    offset = pixels.new_zeros(1) if bias is None else bias
    out = pixels.new_empty(len(pixels), count, step, count, step)
    torch.add(pixels, offset.view(-1, 1, 1, 1, 1), out=out)
    return out.view(-1, count * step, count * step)
