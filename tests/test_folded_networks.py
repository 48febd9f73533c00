"""Networks whose batch norms are folded away, and the 8-bit layers that they are exported as."""

import copy
import io
import tarfile

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from eqadapt.backbones import build_network, classifier_name, load_weights_file
from eqadapt.errors import UserError
from eqadapt.files import sha256_file
from eqadapt.folded_networks import fold_norms, read_layers, state_of_layers
from eqadapt.study import load_study
from eqadapt.study_rules import knows_classes

MODEL = "resnet_small"


def trained(classes=5):
    """A network whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    network = build_network(MODEL, classes, 3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


def folded(classes=5):
    return build_network(MODEL, classes, 3, options={"folded": True}).eval()


def layers_of(network):
    """Weights and biases of its layers with the norms in them, by torch's own folding."""
    layers, before = [], None
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            before = module
        elif isinstance(module, nn.BatchNorm2d):
            found = fuse_conv_bn_weights(
                before.weight, before.bias, module.running_mean, module.running_var,
                module.eps, module.weight, module.bias,
            )  # fmt: skip
            layers.append(tuple(t.detach() for t in found))
        elif isinstance(module, nn.Linear):
            layers.append((module.weight.detach()[..., None, None], module.bias.detach()))
    return layers


def quantised(layers):
    """The arrays of an 8-bit export of these layers."""
    arrays = {}
    for number, (weight, bias) in enumerate(layers):
        scale = weight.flatten(1).abs().amax(dim=1) / 127
        q = (weight / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
        arrays |= {
            f"{number:02d}.q": q.numpy(), f"{number:02d}.s": scale.numpy(),
            f"{number:02d}.b": bias.numpy(),
        }  # fmt: skip
    return arrays


def packed(path, *files):
    """A tar archive of files given by name and bytes."""
    with tarfile.open(path, "w:xz") as archive:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def npz(arrays):
    data = io.BytesIO()
    np.savez(data, **arrays)
    return data.getvalue()


@pytest.fixture
def export(tmp_path):
    data = npz(quantised(layers_of(trained())))
    return packed(tmp_path / "net.tar.xz", ("net/net.npz", data), ("net/read.me", b"words"))


def test_a_folded_network_computes_what_the_norms_did():
    network, other = trained(), folded()
    other.load_state_dict(state_of_layers(other, layers_of(network), ""))
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(other(x), network(x), rtol=1e-4, atol=1e-4)
    by_itself = fold_norms(copy.deepcopy(network))
    torch.testing.assert_close(by_itself(x), network(x), rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in by_itself.modules())
    assert all(parameter.requires_grad for parameter in by_itself.parameters())
    # What is left has nothing that depends on the batch.
    torch.testing.assert_close(other.train()(x), other.eval()(x), rtol=0, atol=0)


def test_eight_bits_are_read_as_they_were_rounded(export):
    layers = layers_of(trained())
    for (weight, bias), (read, read_bias) in zip(layers, read_layers(export), strict=True):
        step = weight.flatten(1).abs().amax(dim=1).view(-1, 1, 1, 1) / 127
        assert ((read - weight).abs() <= 0.51 * step).all()
        assert torch.equal(read_bias, bias)


def test_an_export_is_a_weights_file(export):
    network, other = trained(), folded()
    load_weights_file(other, export, sha256_file(export)[:8])
    x = torch.randn(64, 3, 32, 32)
    wanted, found = network(x), other(x)
    assert (found - wanted).norm() < 0.05 * wanted.norm()
    with pytest.raises(UserError, match="checksum"):
        load_weights_file(other, export, "0" * 8)


def test_another_head_says_nothing_at_first(export, tmp_path):
    network, other = trained(), folded(classes=7)
    load_weights_file(other, export, None, new_head=True)
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(other(x), torch.zeros(4, 7))
    features = [n.forward_head(n.forward_features(x), pre_logits=True) for n in (network, other)]
    assert (features[1] - features[0]).norm() < 0.05 * features[0].norm()
    with pytest.raises(UserError, match="another architecture or class count") as told:
        load_weights_file(other, export, None)
    assert "new_head: true" in told.value.fix
    # The same of a state dict by names, also where that is called a .tar, as checkpoints often are.
    torch.save(network.state_dict(), tmp_path / "own.pth.tar")
    named = build_network(MODEL, 7, 3).eval()
    load_weights_file(named, tmp_path / "own.pth.tar", None, new_head=True)
    assert torch.equal(named(x), torch.zeros(4, 7))
    assert torch.equal(named.conv1.weight, network.conv1.weight)


def test_the_background_of_tensorflow_is_no_class_of_imagenet(tmp_path):
    data = npz(quantised(layers_of(trained(classes=1001))))
    export = packed(tmp_path / "net.tar.xz", ("net.npz", data))
    all_classes, own = folded(classes=1001), folded(classes=1000)
    load_weights_file(all_classes, export, None)
    load_weights_file(own, export, None)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(own(x), all_classes(x)[:, 1:])
    with pytest.raises(UserError, match="class count"):
        load_weights_file(folded(classes=999), export, None)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("resnet_small", "fc"), ("vit_small", "head"), ("cifar_resnet20", "linear"),
        ("mobilenetv2_035", "classifier"),
    ],
)  # fmt: skip
def test_the_head_of_a_network(model, name):
    assert classifier_name(build_network(model, 5, 3)) == name


def test_a_network_with_norms_is_told_to_fold_them(export):
    with pytest.raises(UserError, match="has some") as told:
        load_weights_file(build_network(MODEL, 5, 3), export, None)
    assert "folded: true" in told.value.fix


def test_layers_of_another_network(export):
    other = build_network("mobilenetv2_035", 5, 3, options={"folded": True})
    with pytest.raises(UserError, match=r"\d+ layers in the file, \d+ in EfficientNet"):
        load_weights_file(other, export, None)


def test_norms_before_convolutions_cannot_be_folded():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    with pytest.raises(UserError, match="follows no convolution"):
        fold_norms(network)
    with pytest.raises(UserError, match="follows no convolution"):
        fold_norms(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4)))


class Residual(nn.Module):
    """A norm of a sum, behind a convolution of its width in the order of modules."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(x + self.conv(x))


def test_norms_of_other_things_than_the_convolution_before_them_are_refused():
    with pytest.raises(UserError, match="computes on other things"):
        fold_norms(Residual())


def test_folding_draws_nothing():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fold_norms(network)
    assert torch.equal(torch.rand(2), expected)


def _without(key):
    def change(arrays):
        del arrays[key]

    return change


def _with(key, value):
    return lambda arrays: arrays.update({key: value})


@pytest.mark.parametrize(
    "change",
    [
        _without("00.b"),
        _without("03.q"),
        _with("00.q", np.zeros((16, 3, 3, 3), np.float32)),
        _with("00.s", np.ones(3, np.float32)),
        _with("weights", np.zeros(3)),
        _with("00.q", np.array([{"code": 1}])),
        lambda arrays: arrays.clear(),
    ],
    ids=["no bias", "no weights", "float", "scales", "name", "pickle", "empty"],
)
def test_files_of_other_things_are_refused(change, tmp_path):
    arrays = quantised(layers_of(trained()))
    change(arrays)
    path = tmp_path / "net.npz"
    path.write_bytes(npz(arrays))
    with pytest.raises(UserError, match="not a file of 8-bit layers") as told:
        load_weights_file(folded(), path, None)
    assert told.value.where == str(path)


def test_archives_that_do_not_hold_one(tmp_path):
    whole = npz(quantised(layers_of(trained())))
    for name, files in {
        "two.tar.xz": (("a.npz", whole), ("b.npz", whole)),
        "none.tar.xz": (("a.txt", b"words"),),
        "half.tar.xz": (("a.npz", whole[: len(whole) // 2]),),
    }.items():
        with pytest.raises(UserError, match="not a file of 8-bit layers"):
            read_layers(packed(tmp_path / name, *files))
    (tmp_path / "no.tar.xz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="not a file of 8-bit layers"):
        read_layers(tmp_path / "no.tar.xz")


def test_infinite_scales_are_no_weights(tmp_path):
    arrays = quantised(layers_of(trained()))
    arrays["01.s"] = np.full_like(arrays["01.s"], np.inf)
    path = tmp_path / "net.npz"
    path.write_bytes(npz(arrays))
    with pytest.raises(UserError, match="NaN or infinity"):
        load_weights_file(folded(), path, None)


def test_weights_with_another_head_do_not_know_the_classes():
    study = load_study("config/cifar10_imagenet.yaml")
    backbone = study.config["backbones"]["mobilenetv2_100"]
    assert not knows_classes("cifar10", backbone)
    assert knows_classes("cifar10", {**backbone, "new_head": False})
    section = {"weights": "pretrain", "new_head": True}
    with pytest.raises(UserError, match="new_head"):
        load_study("config/digits.yaml", [f"backbones.resnet_small={section}"])
