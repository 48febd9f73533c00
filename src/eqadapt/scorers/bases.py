"""Bases of steerable filters, built once by escnn and kept.

Importing escnn and solving for a basis costs seconds, and a study trains many small networks with
the same few shapes. A basis depends only on the group, the kernel size and the input
representation, so it is kept in memory and in a file named by these and by escnn's version.
"""

from __future__ import annotations

import functools
import math
import os
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eqadapt.errors import UserError
from eqadapt.files import atomic_path

_FORMAT = 2


class FilterBasis(NamedTuple):
    """Filters between one input field and one output (regular) field of C_n.

    Attributes:
        filters: (D, n, m, k, k) float32; D basis filters from m input to n output channels,
            m = n for a regular input field, 1 for an image channel.
        deviation: (D,) float32; standard deviation of each coefficient under the He
            initialization of Weiler & Cesa 2019 with one input field. With I input fields it is
            smaller by sqrt(I).
    """

    filters: Tensor
    deviation: Tensor


def cache_directory() -> Path:
    """Where bases are kept: ``$XDG_CACHE_HOME/eqadapt`` or ``~/.cache/eqadapt``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "eqadapt" / "filter_bases"


@functools.lru_cache(maxsize=1)
def escnn_version() -> str:
    """The installed version of escnn, without importing it.

    Raises:
        UserError: escnn is not installed.
    """
    try:
        return metadata.version("escnn")
    except metadata.PackageNotFoundError as error:
        raise UserError(
            "escnn is not installed; group-equivariant scorers need it",
            # Its py3nj, which is not needed here, would be built, and wants a Fortran compiler.
            fix="uv pip install '.[escnn]' in a checkout, or pip install 'numpy<2' joblib pymanopt "
            "autograd lie-learn==0.0.2 and pip install --no-deps escnn==1.0.11 (lie-learn needs "
            "Python 3.11 or 3.12); or staged_cnn, and paired_cnn as it is, which do without",
        ) from error


@functools.cache
def filter_basis(order: int, kernel_size: int, regular_input: bool) -> FilterBasis:
    """The basis of filters of C_n onto a regular field, from memory, disk or escnn.

    Args:
        order: n of C_n.
        kernel_size: Side of the filters in pixels, odd.
        regular_input: From a regular field; else from an image channel (trivial).
    """
    source = "regular" if regular_input else "trivial"
    name = f"C{order}-{source}-k{kernel_size}-escnn{escnn_version()}-{_FORMAT}.safetensors"
    path = cache_directory() / name
    expected = (order, order if regular_input else 1, kernel_size, kernel_size)
    basis = _load(path, expected)
    if basis is None:
        basis = _build(order, kernel_size, regular_input)
        _save(path, basis)
    return basis


@functools.cache
def pixel_basis(order: int, kernel_size: int, regular_input: bool) -> FilterBasis:
    """All filters there are, one basis filter a pixel (Cohen & Welling 2016).

    Turning pixels is exact under quarter turns alone, so this is for C1, C2 and C4. There it holds
    every filter, where a steerable basis leaves out those of high angular frequency, and kernels
    of even side too, which halve maps of even side without a shift.

    Args:
        order: 1, 2 or 4.
        kernel_size: Side of the filters in pixels.
        regular_input: From a regular field; else from an image channel (trivial).
    """
    sources = order if regular_input else 1
    count = sources * kernel_size**2
    first = torch.eye(count).view(count, 1, sources, kernel_size, kernel_size)
    return FilterBasis(turned(first, order), torch.full((count,), math.sqrt(2.0 / count)))


def _load(path: Path, expected: tuple[int, ...]) -> FilterBasis | None:
    """A kept basis, or None where there is none or it is damaged (it is then built anew)."""
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
        basis = FilterBasis(turned(tensors["first"], expected[0]), tensors["deviation"])
    except (OSError, KeyError, RuntimeError, SafetensorError):
        return None
    fits = tuple(basis.filters.shape[1:]) == expected and len(basis.deviation) == len(basis.filters)
    return basis if fits and bool(basis.filters.isfinite().all()) else None


def _save(path: Path, basis: FilterBasis) -> None:
    """Keep a basis; a home that cannot be written to costs time, not the run."""
    try:
        with atomic_path(path) as temporary:
            order = basis.filters.shape[1]
            first = basis.filters[:, : order // math.gcd(order, 4)].contiguous()
            save_file({"first": first, "deviation": basis.deviation}, temporary)
    except (OSError, UserError) as error:
        warnings.warn(f"filter bases cannot be kept: {error}", stacklevel=2)


def escnn_types(order: int, in_fields: int, out_fields: int, regular_input: bool) -> Any:
    """escnn's field types ``(in_type, out_type)`` for rotations C_n of the plane."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # py3nj, which only SO(3) needs
        from escnn import gspaces
        from escnn.nn import FieldType
    space = gspaces.rot2dOnR2(order) if order > 1 else gspaces.trivialOnR2()
    source = space.regular_repr if regular_input else space.trivial_repr
    return (
        FieldType(space, [source] * in_fields),
        FieldType(space, [space.regular_repr] * out_fields),
    )


def _build(order: int, kernel_size: int, regular_input: bool) -> FilterBasis:
    in_type, out_type = escnn_types(order, 1, 1, regular_input)
    from escnn.nn import R2Conv, init

    conv = R2Conv(in_type, out_type, kernel_size, initialize=False)
    blocks = conv.basisexpansion
    filters = next(b for name, b in blocks.named_buffers() if name.endswith("sampled_basis"))
    deviation = init._generalized_he_init_variances(blocks)
    filters = filters.detach().reshape(*filters.shape[:3], kernel_size, kernel_size)
    first = filters[:, : order // math.gcd(order, 4)]
    return FilterBasis(turned(first, order), deviation.float().contiguous())


def turned(first: Tensor, order: int) -> Tensor:
    """A basis from the output channels of its first quarter turn; the others are turned copies.

    escnn samples in float32, so that its own channels are copies up to 1e-7 only; these are
    copies to the last bit.

    Args:
        first: (D, n / t, m, k, k), m = n or 1, with t = 4, 2 or 1 quarter or half turns in C_n.
        order: n.

    Returns:
        (D, n, m, k, k).
    """
    turns = math.gcd(order, 4)
    step = order // turns
    copies = [
        torch.rot90(
            first.roll(turn * step, 2) if first.shape[2] > 1 else first, turn * 4 // turns, (3, 4)
        )
        for turn in range(turns)
    ]
    return torch.cat(copies, dim=1).contiguous()
