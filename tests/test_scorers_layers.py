"""Layers on regular fields against escnn, filter bases and their cache, resizing."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from eqadapt.backbones import build_network
from eqadapt.distributed import synchronise_norms
from eqadapt.groups import CyclicGroup, disk_mask
from eqadapt.scorers import bases, build_scorer
from eqadapt.scorers.base import Prepare, resize_matrix
from eqadapt.scorers.layers import (
    FieldNorm,
    PooledConv,
    RegularConv,
    SyncFieldNorm,
    pool_weights,
)


def escnn_conv(conv: RegularConv) -> nn.Module:
    """escnn's convolution with the same weights."""
    in_type, out_type = bases.escnn_types(
        conv.order, conv.in_fields, conv.out_fields, not conv.lifting
    )
    from escnn.nn import R2Conv

    oracle = R2Conv(
        in_type,
        out_type,
        conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        bias=conv.bias is not None,
        initialize=False,
    )
    oracle.weights.data = conv.weight.detach().flatten().clone()
    if conv.bias is not None:
        # escnn counts in the normalized trivial irrep of the field, 1 / sqrt(n) a channel
        oracle.bias.data = conv.bias.detach() * conv.order**0.5
    return oracle


def escnn_network(scorer: nn.Module) -> nn.Module:
    """The body of a group CNN and its last convolution as an escnn module in training mode."""
    from escnn import nn as enn

    modules: list[nn.Module] = []
    for layer in scorer.body:
        if isinstance(layer, RegularConv):
            modules.append(escnn_conv(layer))
        elif isinstance(layer, FieldNorm):
            norm = enn.InnerBatchNorm(modules[-1].out_type, momentum=layer.momentum)
            inner = next(m for m in norm.modules() if isinstance(m, nn.BatchNorm3d))
            inner.load_state_dict(layer.state_dict())
            modules.append(norm)
        elif isinstance(layer, nn.ReLU):
            modules.append(enn.ReLU(modules[-1].out_type))
    modules.append(escnn_conv(scorer.head.conv))
    return enn.SequentialModule(*modules)


def escnn_scores(network: nn.Module, scorer: nn.Module, x: Tensor, pool: str) -> Tensor:
    """What the escnn module says, pooled by hand over its last feature map."""
    maps = network(network.in_type(scorer.prepare(x))).tensor
    maps = maps.unflatten(1, (-1, scorer.group.order)).mean(1)
    scores = (maps * pool_weights(maps.shape[-1], pool)).sum((-2, -1))
    if scorer.head.centred:
        scores = scores - scores.mean(1, keepdim=True)
    return scores if scorer.logit_scale is None else scores * scorer.logit_scale


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("lifting", [True, False])
def test_filters_equal_escnn(order: int, lifting: bool) -> None:
    torch.manual_seed(0)
    conv = RegularConv(order, 3, 2, 5, bias=True, lifting=lifting)
    nn.init.normal_(conv.bias)
    oracle = escnn_conv(conv)
    filters, bias = oracle.expand_parameters()
    assert (filters - conv.filters()).abs().max() <= 1e-6
    assert (bias - conv.channel_bias()).abs().max() <= 1e-6


@pytest.mark.parametrize("order", [4, 8])
@pytest.mark.parametrize("form", ["corrected", "reference"])
def test_group_cnn_equals_escnn_in_both_modes(order: int, form: str) -> None:
    torch.manual_seed(0)
    options = {"form": form, "width": 4, "input_size": 33, "dropout": 0.0}
    scorer = build_scorer("group_cnn", CyclicGroup(order), 3, **options)
    pool = "disk" if form == "corrected" else "square"
    network = escnn_network(scorer)
    x = torch.rand(8, 3, 32, 32)
    for mode in (True, True, False):
        scorer.train(mode)
        network.train(mode)
        with torch.no_grad():
            ours, theirs = scorer(x), escnn_scores(network, scorer, x, pool)
        assert (ours - theirs).abs().max() <= 2e-5
    assert ours.std(1).min() > 1e-4


def test_gradients_equal_escnn() -> None:
    torch.manual_seed(0)
    scorer = build_scorer("group_cnn", CyclicGroup(4), 3, width=4, input_size=33)
    network = escnn_network(scorer)
    x, target = torch.rand(8, 3, 32, 32), torch.arange(8) % 4
    F.cross_entropy(scorer(x), target).backward()
    F.cross_entropy(escnn_scores(network, scorer, x, "disk"), target).backward()
    first = next(m for m in network.modules() if type(m).__name__ == "R2Conv")
    ours = scorer.body[0].weight.grad.flatten()
    assert (ours - first.weights.grad).abs().max() <= 1e-4 * ours.abs().max()


def test_initialization_has_escnn_variance() -> None:
    from escnn.nn import init

    torch.manual_seed(0)
    conv = RegularConv(8, 16, 16, 5)
    expected = init._generalized_he_init_variances(escnn_conv(conv).basisexpansion)
    deviation = conv.weight.detach().flatten(0, 1).std(0)
    assert (deviation / expected.view(256, -1)[0] - 1).abs().max() < 0.25
    assert abs(float((deviation / expected.view(256, -1)[0]).mean()) - 1) < 0.02


@pytest.mark.parametrize("regular", [True, False])
@pytest.mark.parametrize("order", [2, 4, 8, 12])
def test_bases_are_symmetric_to_the_last_bit(order: int, regular: bool) -> None:
    filters = bases.filter_basis(order, 5, regular).filters
    turns = {2: 2}.get(order, 4)
    step = order // turns
    turned = torch.rot90(filters, 4 // turns, (3, 4)).roll(step, 1)
    assert torch.equal(turned.roll(step, 2) if regular else turned, filters)


def test_bases_are_kept_and_damage_is_mended(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh = bases.filter_basis.__wrapped__  # without the memory of this process
    built = fresh(4, 3, True)
    (path,) = bases.cache_directory().iterdir()
    assert "C4" in path.name
    assert bases.escnn_version() in path.name
    monkeypatch.setattr(bases, "_build", lambda *_: pytest.fail("built twice"))
    assert torch.equal(fresh(4, 3, True).filters, built.filters)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(fresh(4, 3, True).filters, built.filters)
    assert torch.equal(bases._load(path, (4, 4, 3, 3)).filters, built.filters)
    assert bases._load(path, (8, 8, 3, 3)) is None
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_unwritable_cache_costs_only_time(tmp_path, monkeypatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    with pytest.warns(UserWarning, match="cannot be kept"):
        basis = bases.filter_basis.__wrapped__(4, 3, False)
    assert basis.filters.shape[1:] == (4, 1, 3, 3)


def test_kept_bases_need_no_escnn(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for regular in (True, False):
        bases.filter_basis.__wrapped__(4, 5, regular)
    code = (
        "import sys; from eqadapt.groups import CyclicGroup; from eqadapt.scorers import *;"
        "build_scorer('group_cnn', CyclicGroup(4), 1, width=2, input_size=33);"
        "assert 'escnn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_building_bases_leaves_random_numbers_alone(tmp_path, monkeypatch) -> None:
    """Whether a basis was kept already must not change what a seed gives."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    bases.filter_basis.__wrapped__(8, 5, True)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("pool", ["disk", "square"])
@pytest.mark.parametrize("out_fields", [1, 3])
@pytest.mark.parametrize("kernel", [5, 11])
def test_pooled_layer_is_the_convolution_and_its_mean(
    pool: str, out_fields: int, kernel: int
) -> None:
    torch.manual_seed(0)
    layer = PooledConv(8, 2, 11, kernel, pool, out_fields, bias=True, centred=False)
    nn.init.normal_(layer.conv.bias)
    x = torch.randn(4, 16, 11, 11)
    maps = layer.conv(x).unflatten(1, (out_fields, 8)).mean(1)
    expected = (maps * pool_weights(12 - kernel, pool)).sum((-2, -1))
    assert (layer(x) - expected).abs().max() <= 1e-5
    assert (layer.plain(3.0)(x) - 3 * expected).abs().max() <= 3e-5


def test_pool_weights() -> None:
    assert torch.equal(pool_weights(4, "square"), torch.full((4, 4), 1 / 16))
    disk = pool_weights(9, "disk")
    assert torch.isclose(disk.sum(), torch.ones(()))
    assert disk[0, 0] == 0
    assert torch.equal(disk > 0, disk_mask(9) > 0)


def test_centred_layer_differs_by_what_no_softmax_sees() -> None:
    torch.manual_seed(0)
    layer = PooledConv(4, 2, 7, 5, "disk")
    x = torch.randn(4, 8, 7, 7)
    centred = layer(x)
    layer.centred = False
    assert centred.sum(1).abs().max() <= 1e-6
    assert torch.allclose(centred.softmax(1), layer(x).softmax(1), atol=1e-6)


@pytest.mark.parametrize(("source", "target"), [(32, 33), (32, 65), (224, 65), (28, 33), (96, 33)])
def test_resizing_is_antialiased_and_commutes_with_quarter_turns(source: int, target: int) -> None:
    x = torch.rand(4, 3, source, source, generator=torch.Generator().manual_seed(0))
    prepare = Prepare(target)
    expected = F.interpolate(x, size=(target, target), mode="bilinear", antialias=True)
    assert (prepare(x) - expected).abs().max() <= 1e-5
    turned = torch.rot90(prepare(x), 1, (-2, -1))
    assert (prepare(torch.rot90(x, 1, (-2, -1))) - turned).abs().max() <= 5e-7
    matrix = resize_matrix(source, target)
    assert torch.equal(matrix, matrix.flip(0, 1))
    assert torch.allclose(matrix.sum(1), torch.ones(target))


@pytest.mark.parametrize("side", [32, 33, 28, 224])
def test_crop_is_central(side: int) -> None:
    x = torch.arange(side * side, dtype=torch.float32).view(1, 1, side, side)
    cropped = Prepare(8, crop=0.8).cropped(x)
    assert torch.equal(
        torch.rot90(cropped, 2, (-2, -1)), Prepare(8, crop=0.8).cropped(x.flip(2, 3))
    )
    assert 0.8 <= cropped.shape[-1] / side <= 0.8 + 2 / side


def test_field_norm_shares_statistics_over_orientations() -> None:
    torch.manual_seed(0)
    norm = FieldNorm(4, 3)
    x = torch.randn(8, 12, 5, 5) * torch.arange(1, 13).view(1, 12, 1, 1)
    y = norm(x).unflatten(1, (3, 4))
    assert y.mean((0, 2, 3, 4)).abs().max() < 1e-5
    assert (y.var((0, 2, 3, 4), unbiased=False) - 1).abs().max() < 1e-3
    norm.eval()
    assert torch.allclose(norm.plain()(x), norm(x), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", ["staged_cnn", "group_cnn", "group_wrn", "paired_cnn"])
def test_norms_over_processes_are_the_same_layers(name: str) -> None:
    """With one process they compute and export what they did, from the same tensors."""
    torch.manual_seed(0)
    plain = build_scorer(name, CyclicGroup(4), 3)
    found = copy.deepcopy(plain)
    synchronise_norms(found)
    kinds = {type(m) for m in found.modules() if isinstance(m, _BatchNorm)}
    assert kinds and kinds <= {SyncFieldNorm, torch.nn.SyncBatchNorm}
    assert list(found.state_dict()) == list(plain.state_dict())
    assert len(list(found.parameters())) == len(list(plain.parameters()))
    x = torch.rand(4, 3, 48, 48)
    torch.testing.assert_close(found.train()(x), plain.train()(x))
    assert all(torch.equal(found.state_dict()[k], v) for k, v in plain.state_dict().items())
    torch.testing.assert_close(found.eval().export()(x), plain.eval().export()(x))


@torch.no_grad()
def test_norms_over_processes_keep_the_activations_that_timm_has_in_them() -> None:
    torch.manual_seed(0)
    plain = build_network("mobilenetv2_100", 10, 3).eval()
    found = copy.deepcopy(plain)
    synchronise_norms(found)
    norms = [m for m in found.modules() if isinstance(m, _BatchNorm)]
    assert norms and all(isinstance(m, torch.nn.SyncBatchNorm) for m in norms)
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(found(x), plain(x))


@torch.no_grad()
def test_the_norm_of_vectors_is_exported_as_one_operation() -> None:
    torch.manual_seed(0)
    scorer = build_scorer("plain_cnn", CyclicGroup(8), 3, form="reference", width=4, input_size=65)
    x = torch.rand(6, 3, 65, 65)
    for _ in range(5):
        scorer.train()(x)  # statistics other than those at the start
    norms = [m for m in scorer.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    norms[0].weight.uniform_(0.5, 2.0)
    norms[0].bias.normal_()
    exported = scorer.eval().export()
    kinds = {type(module).__name__ for module in exported.modules()}
    assert "Affine" in kinds
    assert not kinds & {"BatchNorm1d", "BatchNorm2d", "Dropout"}
    assert torch.allclose(exported(x), scorer(x), atol=1e-5)
