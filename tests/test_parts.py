"""Networks evaluated a few images at a time: the same outputs, and when it is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eqadapt import parts
from eqadapt.backbones import Backbone, build_network
from eqadapt.groups import CyclicGroup
from eqadapt.parts import images_at_once, in_parts
from eqadapt.scorers import build_scorer


class Seen:
    """Calls a function and keeps the sizes of the batches it was given."""

    def __init__(self, function) -> None:
        self.function, self.sizes = function, []

    def __call__(self, x: Tensor):
        self.sizes.append(len(x))
        return self.function(x)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(parts, "images_at_once", lambda *_: 4)


@pytest.fixture
def whole(monkeypatch):
    def apply(function):
        with monkeypatch.context() as patch:
            patch.setattr(parts, "images_at_once", lambda *_: 10**9)
            return function()

    return apply


def test_parts_are_even_and_in_order(small_parts):
    network = Seen(lambda x: (x + 1, x.flatten(1).sum(1)))
    x = torch.randn(10, 2, 3)
    with torch.no_grad():
        images, sums = in_parts(network, x)
    assert network.sizes == [4, 3, 3]
    assert torch.equal(images, x + 1)
    assert torch.equal(sums, x.flatten(1).sum(1))


@pytest.mark.parametrize("batch", [0, 1, 4])
def test_a_small_batch_is_passed_whole(small_parts, batch):
    network = Seen(lambda x: 2 * x)
    with torch.no_grad():
        assert in_parts(network, torch.ones(batch, 3)).shape == (batch, 3)
    assert network.sizes == [batch]


def test_with_gradients_the_batch_is_whole(small_parts):
    network = Seen(lambda x: 2 * x)
    in_parts(network, torch.ones(9, 3))
    assert network.sizes == [9]


def test_copies_count(small_parts):
    network = Seen(lambda x: x)
    with torch.no_grad():
        in_parts(network, torch.ones(6, 3), copies=2)
        in_parts(network, torch.ones(3, 3), copies=8)
    assert network.sizes == [2, 2, 2, 1, 1, 1]


def test_parts_grow_with_threads_and_shrink_with_images():
    assert images_at_once(150_528 * 4, 1) == parts.FEWEST
    assert images_at_once(150_528 * 4, 16) == 27
    assert images_at_once(32 * 32 * 3 * 4, 2) == 64
    assert images_at_once(0, 1) == parts.MOST_PER_THREAD


@pytest.mark.parametrize("image_bytes", [32 * 32 * 3 * 4, 96 * 96 * 3 * 4, 150_528 * 4])
def test_parts_are_larger_where_freed_memory_is_kept(monkeypatch, image_bytes):
    assert images_at_once(image_bytes, 2, True) >= 6 * images_at_once(image_bytes, 2, False)
    network = Seen(lambda x: 2 * x)
    with torch.no_grad():
        for kept in (False, True):
            monkeypatch.setattr(parts, "freed_memory_is_kept", lambda kept=kept: kept)
            in_parts(network, torch.ones(24, 3, 224, 224))
    assert network.sizes[-1] > network.sizes[0] and sum(network.sizes) == 48


@torch.no_grad()
@pytest.mark.parametrize("name", ["cifar_resnet20", "vit_small"])
def test_a_backbone_says_the_same_in_parts(small_parts, whole, name):
    torch.manual_seed(0)
    backbone = Backbone(build_network(name, 5, 3), 32, [0.5] * 3, [0.5] * 3).eval()
    x = torch.rand(11, 3, 96, 96)
    logits = whole(lambda: backbone(x))
    features, again = backbone.features_and_logits(x)
    assert len(features) == 11
    assert torch.allclose(backbone(x), logits, atol=1e-6)
    assert torch.allclose(again, logits, atol=1e-6)
    maps = whole(lambda: backbone.stage_maps(x, 2))
    assert len(maps) == len(backbone.stage_names())
    for found, expected in zip(backbone.stage_maps(x, 2), maps, strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


@torch.no_grad()
def test_statistics_of_a_batch_in_training_mode_are_of_all_of_it(small_parts):
    backbone = Backbone(build_network("cifar_resnet20", 5, 3), 32, [0.5] * 3, [0.5] * 3).train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    backbone(torch.rand(9, 3, 32, 32))
    assert {int(norm.num_batches_tracked) for norm in norms} == {1}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "order", "options"),
    [
        ("paired_cnn", 8, {}),
        ("staged_cnn", 4, {"width": 4, "stages": 2, "resize": "sample"}),
        ("plain_cnn", 8, {}),
    ],
)
def test_exported_scorers_say_the_same_in_parts(small_parts, whole, name, order, options):
    torch.manual_seed(0)
    scorer = build_scorer(name, CyclicGroup(order), 3, **options).eval().export()
    x = torch.rand(11, 3, 96, 96)
    assert torch.allclose(scorer(x), whole(lambda: scorer(x)), atol=1e-6)


@pytest.mark.parametrize("batch", range(1, 24))
def test_no_part_is_of_one_or_two_images_unless_the_batch_is(small_parts, batch):
    """Networks have other kernels for those."""
    network = Seen(lambda x: 2 * x)
    with torch.no_grad():
        in_parts(network, torch.ones(batch, 3))
    assert sum(network.sizes) == batch and min(network.sizes) >= min(batch, 3)
