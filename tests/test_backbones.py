"""Backbones refuse what they cannot take before any training: files, options, sizes."""

import hashlib
import os
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from eqadapt.adaptation import ImageKind, build_backbone, check_pass
from eqadapt.allocator import freed_memory_is_kept
from eqadapt.backbones import (
    Backbone,
    build_network,
    load_state,
    load_weights_file,
    normalisation,
    read_weights_file,
)
from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.parts import images_at_once
from eqadapt.symmetrize import Symmetrized


class Code:
    """Makes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return build_network("mnist_cnn", 4, 1)


def torch_bytes(value, folder, **options):
    torch.save(value, folder / "whole.tmp", **options)
    return (folder / "whole.tmp").read_bytes()


# --- weights files ------------------------------------------------------------------------------

BROKEN = {
    "empty.pt": lambda state, folder: b"",
    "empty.safetensors": lambda state, folder: b"",
    "cut.pt": lambda state, folder: torch_bytes(state, folder)[:1000],
    "half.pt": lambda state, folder: torch_bytes(state, folder)[:-2000],
    "old.pt": lambda state, folder: torch_bytes(
        state, folder, _use_new_zipfile_serialization=False
    )[:-2000],
    "cut.safetensors": lambda state, folder: save(state)[:100],
    "half.safetensors": lambda state, folder: save(state)[:-100],
    "text.pt": lambda state, folder: b"hello, these are no weights",
    "text.safetensors": lambda state, folder: b"hello, these are no weights",
    "safetensors.pt": lambda state, folder: save(state),
    "torch.safetensors": lambda state, folder: torch_bytes(state, folder),
    "code.pt": lambda state, folder: torch_bytes({"a": Code(folder / "ran")}, folder),
    "plain_code.pt": lambda state, folder: pickle.dumps(Code(folder / "ran")),
    "model.pt": lambda state, folder: torch_bytes(nn.Linear(2, 2), folder),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of torch, on the protocol of a pickle
@pytest.mark.parametrize("name", BROKEN)
def test_files_that_hold_no_weights_are_refused_and_run_no_code(tmp_path, network, name):
    path = tmp_path / name
    path.write_bytes(BROKEN[name](network.state_dict(), tmp_path))
    with pytest.raises(UserError, match="not a state dict of tensors") as caught:
        load_weights_file(network, path, None)
    assert caught.value.where == str(path)
    assert "torch.save(model.state_dict(), path)" in caught.value.fix
    assert "weights_only" not in str(caught.value)
    assert caught.value.__suppress_context__  # nor in the traceback
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([torch.ones(2)], "type list"),
        (torch.ones(2), "type Tensor"),
        (None, "type NoneType"),
        ({0: torch.ones(2)}, "key 0"),
        ({"state_dict": None}, "type NoneType"),
        ({"state_dict": torch.ones(2)}, "type Tensor"),
        ({"linear.weight": torch.ones(2), "epoch": 3}, "epoch is of type int"),
        ({"model": {"linear.weight": torch.ones(2)}}, "model is of type dict"),
        ({"linear.weight": torch.ones(2).to_sparse()}, "linear.weight is sparse"),
        ({"linear.weight": torch.ones(2, device="meta")}, "linear.weight is sparse"),
    ],
)
def test_files_of_other_values_are_refused_by_what_they_hold(tmp_path, value, named):
    path = tmp_path / "other.pt"
    torch.save(value, path)
    with pytest.raises(UserError, match="not a state dict of tensors") as caught:
        read_weights_file(path, None)
    assert named in caught.value.what


@pytest.mark.parametrize("state", [None, [], {0: torch.ones(2)}, {"linear.weight": 3}])
def test_only_tensors_by_name_are_loaded(network, state):
    with pytest.raises(UserError, match="not a state dict of tensors") as caught:
        load_state(network, state, "x")
    assert caught.value.where == "x"


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        (torch.float32, float("nan"), "linear.weight hold NaN or infinity"),
        (torch.float32, -float("inf"), "linear.weight hold NaN or infinity"),
        (torch.bfloat16, float("inf"), "linear.weight hold NaN or infinity"),
        (torch.float8_e4m3fn, float("nan"), "linear.weight hold NaN or infinity"),
        (torch.complex64, 1j, "linear.weight are complex"),
    ],
)
def test_weights_that_no_network_can_have_are_named(
    tmp_path, network, suffix, dtype, value, message
):
    state, path = network.state_dict(), tmp_path / f"weights{suffix}"
    weight = state["linear.weight"].clone().to(dtype)
    weight[0, 0] = torch.tensor(value).to(dtype)
    write = torch.save if suffix == ".pt" else save_file
    write({**state, "linear.weight": weight}, path)
    before = {key: own.clone() for key, own in state.items()}
    with pytest.raises(UserError, match=message) as caught:
        load_weights_file(network, path, None)
    assert caught.value.where == str(path)
    assert all(torch.equal(own, before[key]) for key, own in network.state_dict().items())


def test_complex_weights_are_for_complex_networks_only():
    network = nn.Linear(2, 2)
    state = {key: value.to(torch.complex64) for key, value in network.state_dict().items()}
    with pytest.raises(UserError, match="complex: bias, weight"):
        load_state(network, state, "x")
    load_state(nn.Linear(2, 2, dtype=torch.complex64), state, "x")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("form", ["plain", "nested", "parallel", "old", "safetensors"])
def test_whole_files_are_loaded_in_every_form(tmp_path, network, form, dtype):
    network = network.to(dtype)
    state, path = network.state_dict(), tmp_path / f"weights.{form}"
    if form == "safetensors":
        save_file(state, path)
    else:
        parallel = {f"module.{key}": value for key, value in state.items()}
        value = {"nested": {"state_dict": state, "epoch": 3}, "parallel": parallel}.get(form, state)
        torch.save(value, path, _use_new_zipfile_serialization=form != "old")
    other = build_network("mnist_cnn", 4, 1).to(dtype)
    load_weights_file(other, path, None)
    assert all(torch.equal(own, state[key]) for key, own in other.state_dict().items())


def test_another_checksum_says_what_to_do(tmp_path, network):
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    assert read_weights_file(path, found).keys() == network.state_dict().keys()
    with pytest.raises(UserError, match="expected 0000") as caught:
        read_weights_file(path, "0" * 64)
    assert "checksum" in caught.value.fix


# --- mean and standard deviation ----------------------------------------------------------------


@pytest.mark.parametrize("key", ["mean", "std"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("values", [[], [0.5] * 2, [0.5] * 4, 0.5, "a"])
def test_values_are_as_many_as_channels(key, channels, values):
    given = {"mean": None, "std": None, key: values}
    with pytest.raises(
        UserError, match=f"{key} is .*have {channels} channels|not finite"
    ) as caught:
        normalisation(nn.Identity(), channels, **given)
    assert caught.value.where == f"image.{key}"
    assert "as many values as channels" in caught.value.fix


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", float("nan")),
        ("mean", float("inf")),
        ("mean", "0.5"),
        ("mean", None),
        ("std", float("nan")),
        ("std", float("inf")),
        ("std", 0),
        ("std", -0.2),
        ("std", 1e-50),  # zero in single precision
    ],
)
def test_values_are_finite_and_deviations_above_zero(key, value):
    given = {"mean": None, "std": None, key: [0.5, 0.5, value]}
    with pytest.raises(UserError, match=f"{key} is .*not finite numbers"):
        normalisation(nn.Identity(), 3, **given)


def test_three_values_on_grey_images_are_refused_before_any_image():
    given = recipe(mean=[0.5] * 3)
    with pytest.raises(UserError, match="the images have 1 channels"):
        build_backbone(given, ImageKind(1, 4))


def test_values_that_fit_are_taken_as_they_are():
    assert normalisation(nn.Identity(), 2, (0, 1), None) == ([0, 1], [0.5, 0.5])
    assert normalisation(nn.Identity(), 1, None, [0.25]) == ([0.5], [0.25])


@pytest.mark.parametrize("where", ["hf_hub_id", "url", "file", None])
def test_a_network_with_weights_of_its_own_has_its_own_normalisation(where):
    network = nn.Identity()
    network.pretrained_cfg = {
        "mean": (0.1,),
        "std": (0.2,),
        where or "url": "there" if where else "",
    }
    own = ([0.1], [0.2]) if where else ([0.5], [0.5])
    assert normalisation(network, 1, None, None) == own


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("resnet_small", "bogus"),
        ("vit_small", "bogus"),
        ("vit_small", "layers"),
        ("vit_small", "small_stem"),
        ("resnet18d", "small_stem"),
        ("cifar_resnet20", "bogus"),
        ("cifar_resnet20", "num_classes"),
        ("cifar_resnet20", "depth"),
        ("mnist_cnn", "bogus"),
        ("mnist_gcnn", "in_chans"),
        ("resnet_small", "pretrained"),
        ("resnet_small", "num_classes"),
        ("resnet18", "in_chans"),
    ],
)
def test_options_that_a_network_does_not_take_are_named(model, name):
    with pytest.raises(
        UserError, match=f"{model.split('_')[0]}.* takes no option {name!r}"
    ) as caught:
        build_network(model, 4, 3, options={name: 3})
    assert "options of the backbone" in caught.value.where and f"remove {name}" in caught.value.fix


def test_type_errors_that_are_bugs_are_not_the_users_fault(monkeypatch):
    def broken(*arguments, **options):
        raise TypeError("inner() got an unexpected keyword argument 'other'")

    monkeypatch.setattr("eqadapt.cifar_resnet.CifarResNet", broken)
    with pytest.raises(TypeError, match="inner"):
        build_network("cifar_resnet20", 4, 3, options={"width": 4})
    with pytest.raises(TypeError):
        build_network("mnist_cnn", 4, 3, options={"width": None})


# --- sizes --------------------------------------------------------------------------------------


def recipe(model="mnist_cnn", size=28, **image):
    image = {"size": size, "backbone_size": None, "mean": None, "std": None, **image}
    backbone = {"model": model, "weights": "scratch", "options": {}}
    return {"image": image, "backbone": backbone}


@pytest.mark.parametrize(
    ("model", "size", "reason"),
    [
        ("vit_small", 40, "doesn't match model"),
        ("vit_small", 16, "doesn't match model"),
        ("mnist_cnn", 8, "greater than actual input size"),
        ("mnist_gcnn", 8, ""),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_a_side_that_the_network_cannot_take_is_told_before_training(model, size, reason, own):
    given = recipe(model, size=3 * size, backbone_size=size) if own else recipe(model, size)
    named = f"{model} fails on an image of {size} x {size} pixels: .*{reason}"
    with pytest.raises(UserError, match=named) as caught:
        build_backbone(given, ImageKind(1, 4))
    assert "image.backbone_size" in caught.value.where
    assert "image.backbone_size" in caught.value.fix


MODELS = [("mnist_cnn", 28), ("mnist_gcnn", 28), ("vit_small", 32), ("resnet_small", 24)]


class Drawing(nn.Module):
    """Draws in every mode, keeps count of its calls, and may fail."""

    def __init__(self, fails=False):
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(1), nn.Dropout(0.5).eval()
        self.fails, self.calls, self.switched = fails, [], 0

    def train(self, mode=True):
        self.switched += 1
        return super().train(mode)

    def forward(self, x):
        self.calls.append((self.training, self.norm.training, torch.is_grad_enabled()))
        if self.fails:
            raise AssertionError
        return self.drop(self.norm(x + torch.rand_like(x))).flatten(1)


@pytest.mark.parametrize(("model", "size"), MODELS)
def test_the_trial_pass_changes_no_number(model, size):
    torch.manual_seed(5)
    expected = build_network(model, 4, 1).state_dict()
    drawn = torch.get_rng_state()
    torch.manual_seed(5)
    backbone = build_backbone(recipe(model, size), ImageKind(1, 4))
    assert torch.equal(torch.get_rng_state(), drawn)
    found = backbone.network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert all(module.training for module in backbone.modules())
    assert all(own.grad is None and own.requires_grad for own in backbone.parameters())


@pytest.mark.parametrize(("model", "size"), MODELS)
def test_training_after_the_trial_pass_is_the_same_bit_by_bit(model, size):
    def trained(tried):
        torch.manual_seed(5)
        backbone = Backbone(build_network(model, 4, 1), size, [0.5], [0.5])
        if tried:
            check_pass(backbone, model)
        optimizer = torch.optim.SGD(backbone.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            backbone(torch.rand(8, 1, size, size)).square().sum().backward()
            optimizer.step()
        return backbone.state_dict()

    plain, tried = trained(False), trained(True)
    assert all(torch.equal(plain[key], tried[key]) for key in plain)


@pytest.mark.parametrize("fails", [False, True])
def test_networks_that_draw_leave_the_random_state_and_their_modes(fails):
    network = Drawing(fails)
    backbone = Backbone(network, 8, [0.5], [0.5])
    before = torch.get_rng_state()
    if fails:
        with pytest.raises(UserError, match="drawing fails on an image of 8 x 8 pixels: Assertion"):
            check_pass(backbone, "drawing")
    else:
        check_pass(backbone, "drawing")
    assert torch.equal(torch.get_rng_state(), before)
    assert network.calls == [(False, False, False)]
    assert network.training and network.norm.training and not network.drop.training
    assert network.norm.num_batches_tracked == 0 and network.switched == 0


def test_other_errors_of_a_network_are_not_taken_for_its_size():
    class Broken(nn.Module):
        def forward(self, x):
            return self.nothing(x)

    with pytest.raises(AttributeError):
        check_pass(Backbone(Broken(), 8, [0.5], [0.5]), "broken")


# --- outputs ------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Returns what ``wrap`` makes of the logits."""

    def __init__(self, network, wrap):
        super().__init__()
        self.network, self.wrap = network, wrap

    def forward(self, x):
        return self.wrap(self.network(x))


def test_logits_of_an_object_are_taken_out_of_it_in_batches_of_every_size(network):
    plain = Backbone(network, 28, [0.5], [0.5]).eval()
    wrapped = Wrapped(network, lambda logits: SimpleNamespace(logits=logits, loss=None))
    backbone = Backbone(wrapped, 28, [0.5], [0.5]).eval()
    at_once = images_at_once(4 * 28 * 28, torch.get_num_threads(), freed_memory_is_kept())
    for batch in (2, at_once + 1):  # whole, and in parts
        x = torch.rand(batch, 1, 28, 28)
        with torch.no_grad():
            found = Symmetrized(backbone, RotationAction(CyclicGroup(4)), "identity")(x).logits
            assert torch.equal(found, plain(x))
    assert backbone.train()(x).shape == (len(x), 4)  # whole, in training


@pytest.mark.parametrize(
    ("wrap", "named"),
    [
        (lambda logits: (logits,), "tuple"),
        (lambda logits: {"logits": logits}, "dict"),
        (lambda logits: SimpleNamespace(logits=None), "NoneType"),
    ],
)
def test_outputs_without_logits_are_told(network, wrap, named):
    backbone = Backbone(Wrapped(network, wrap), 28, [0.5], [0.5]).eval()
    for batch in (2, 600):
        with torch.no_grad(), pytest.raises(UserError, match=f"gives {named}, not a tensor"):
            backbone(torch.rand(batch, 1, 28, 28))


def test_a_file_of_other_classes_is_told_of_a_new_head(tmp_path):
    """Only where nothing but the classifier keeps it from loading."""
    path = tmp_path / "weights.pt"
    for classes, network, told in (
        (7, build_network("mnist_cnn", 4, 1), True),
        (4, build_network("mnist_cnn", 4, 3), False),
        (7, build_network("mnist_cnn", 4, 3), False),
    ):
        torch.save(build_network("mnist_cnn", classes, 1).state_dict(), path)
        with pytest.raises(UserError, match="another architecture or class count") as caught:
            load_weights_file(network, path, None)
        assert ("new_head: true" in caught.value.fix) == told
