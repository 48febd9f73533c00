"""Convolutions through Fourier space: the same numbers as direct ones, whatever the batch."""

import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eqadapt.groups import CyclicGroup
from eqadapt.scorers import build_scorer
from eqadapt.scorers.spectral import (
    FEWEST_CHANNELS,
    SpectralConv2d,
    best_tile,
    correlate,
    filter_spectra,
    suits,
)


@pytest.mark.parametrize(("side", "kernel"), [(92, 5), (41, 5), (38, 7), (15, 5), (29, 9)])
def test_tiles_give_what_a_direct_convolution_gives(side, kernel):
    torch.manual_seed(0)
    image, weight = torch.rand(6, side, side), torch.randn(7, 6, kernel, kernel)
    exact = F.conv2d(image[None].double(), weight.double())[0]
    for tile in {best_tile(side, kernel), 2 * kernel + 1}:
        found = correlate(image, filter_spectra(weight, tile), tile, kernel)
        found = found[:, : side - kernel + 1, : side - kernel + 1]
        assert found.shape == exact.shape
        assert (found - exact).abs().max() < 1e-5 * exact.abs().max()


def wide_pair():
    torch.manual_seed(1)
    conv = nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 5).eval().requires_grad_(False)
    spectral = SpectralConv2d.of(conv)
    assert isinstance(spectral, SpectralConv2d)
    return conv, spectral


def test_a_wide_layer_is_the_same_layer_and_no_result_depends_on_its_batch(monkeypatch):
    conv, spectral = wide_pair()
    x = torch.rand(3, FEWEST_CHANNELS, 72, 72)
    expected = conv(x)

    def refused(*_args):
        raise AssertionError("a direct convolution")

    monkeypatch.setattr(nn.Conv2d, "forward", refused)
    found = spectral(x)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.equal(found, spectral(x))
    assert torch.equal(found[1:2], spectral(x[1:2]))
    with torch.inference_mode():
        assert torch.equal(found, spectral(x))


def test_new_weights_are_seen_after_the_first_call():
    conv, spectral = wide_pair()
    x = torch.rand(1, FEWEST_CHANNELS, 72, 72)
    first = spectral(x)
    spectral.load_state_dict({name: 2 * value for name, value in conv.state_dict().items()})
    assert torch.allclose(spectral(x), 2 * first, atol=1e-6)
    # a copy that counts the changes of its filters anew does not take the old ones' for its own
    again = pickle.loads(pickle.dumps(spectral))
    assert spectral._spectra and not again._spectra
    assert torch.equal(again(x), spectral(x))


def test_small_maps_gradients_and_lower_precision_are_computed_directly():
    conv, spectral = wide_pair()
    small, large = torch.rand(2, FEWEST_CHANNELS, 20, 20), torch.rand(1, FEWEST_CHANNELS, 72, 72)
    assert torch.equal(spectral(small), conv(small))
    assert spectral(large[:0]).shape == conv(large[:0]).shape
    assert torch.equal(spectral(large.requires_grad_()), conv(large))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(spectral(large), conv(large))
    unfrozen = SpectralConv2d.of(conv).requires_grad_()
    unfrozen(large.detach()).sum().backward()
    assert unfrozen.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 3),
        nn.Conv2d(FEWEST_CHANNELS - 1, FEWEST_CHANNELS, 5),
        nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 5, stride=2),
        nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 5, padding=2),
        nn.Conv2d(FEWEST_CHANNELS, FEWEST_CHANNELS, 5, groups=2),
    ],
)
def test_other_layers_stay_as_they_are(conv):
    assert not suits(conv)
    assert SpectralConv2d.of(conv) is conv


def test_the_reference_network_is_exported_with_such_a_layer_and_the_same_scores():
    torch.manual_seed(2)
    scorer = build_scorer("group_cnn", CyclicGroup(4), 3, form="reference").eval()
    exported = scorer.export()
    assert sum(isinstance(part, SpectralConv2d) for part in exported.modules()) == 1
    x = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert (exported(x) - scorer(x)).abs().max() < 1e-5
