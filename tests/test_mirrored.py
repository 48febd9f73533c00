"""Methods whose networks look at mirror images too."""

import pytest
import torch
import yaml
from project_fixtures import prepare_digits
from test_adaptation import SIZE, Network, adapted

from eqadapt.analysis.labels import method_styles
from eqadapt.analysis.predictions import load_predictions
from eqadapt.backbones import Backbone
from eqadapt.cli import main
from eqadapt.errors import UserError
from eqadapt.methods import METHODS, get_method
from eqadapt.mirrored import MirroredBackbone, mirrored
from eqadapt.study import load_study

MIRRORED = [name for name in METHODS if METHODS[name].mirrored]
STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"limit_train": 40, "limit_test": 20}},
    "backbones": {"resnet_small": {"weights": "scratch"}},
    "groups": ["C4"],
    "methods": ["vanilla", "vanilla_mirrored", "prlc", "prlc_mirrored"],
    "seeds": [0],
    "image": {"size": 32},
    "scorer": {"name": "paired_cnn", "inner": "group_cnn", "width": 2, "input_size": 17},
    "train": {"epochs": 1, "batch_size": 20, "augment": {"flip": True}},
    "evaluate": {"poses": "C4", "gallery": 2},
    "device": "cpu",
}


class BlindToTheMirror(Network):
    """A network that sees an image and its mirror image on top of each other."""

    def forward_features(self, x):
        return super().forward_features(x + x.flip(-1))


def both(name, group="C4", network=None):
    """A mirrored method's model, and that of the method it comes from."""
    base = name.removesuffix("_mirrored")
    model = adapted(base, group if get_method(base).uses_group else "C1")
    if network is not None:
        model.backbone = Backbone(network, SIZE, [0.5], [0.5]).eval()
    return mirrored(model), model


def photographs(count=7):
    return torch.rand(count, 1, SIZE, SIZE)


@pytest.mark.parametrize("group", ["C4", "C8"])
@pytest.mark.parametrize("name", MIRRORED)
def test_a_mirror_image_gets_the_same_answer_in_the_inverse_pose(name, group):
    model, _ = both(name, group)
    x = photographs()
    straight, turned = model(x), model(x.flip(-1))
    torch.testing.assert_close(straight.logits, turned.logits, rtol=0, atol=1e-5)
    if straight.chosen is not None:
        order = model.action.group.order
        assert torch.equal(turned.chosen, -straight.chosen % order)


@pytest.mark.parametrize(
    "name", ["lc_mirrored", "prlc_mirrored", "equitune_mirrored", "self_canonicalizer_mirrored"]
)
def test_over_c4_the_answer_is_that_of_all_eight_images_of_d4(name):
    model, _ = both(name)
    x = photographs()
    expected = model(x).logits
    for quarter in range(4):
        for image in (x, x.flip(-1)):
            found = model(torch.rot90(image, quarter, (-2, -1))).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_answer_is_equitunes_over_the_mirror_to_the_last_bit():
    model, plain = both("vanilla_mirrored")
    x = photographs()
    mean = (plain(x).logits + plain(x.flip(-1)).logits) / 2
    assert torch.equal(model(x).logits, mean) and torch.equal(model(x.flip(-1)).logits, mean)
    assert not torch.equal(mean, plain(x).logits)
    features, logits = model.backbone(x, with_features=True)
    assert torch.equal(logits, mean) and features.shape == (7, Network.num_features)


@pytest.mark.parametrize("name", ["vanilla_mirrored", "equitune_mirrored"])
def test_a_network_that_cannot_see_the_mirror_gains_nothing_by_it(name):
    model, plain = both(name, network=BlindToTheMirror())
    x = photographs()
    torch.testing.assert_close(model(x).logits, plain(x).logits, rtol=0, atol=1e-6)


def test_the_model_it_is_made_of_stays_as_it_is():
    model, plain = both("prlc_mirrored")
    assert isinstance(model.backbone, MirroredBackbone) and model.backbone.inner is plain.backbone
    assert not isinstance(plain.backbone, MirroredBackbone) and not model.training
    assert model.reads == plain.reads == SIZE


def test_networks_that_were_never_shown_mirror_images_are_not_asked_about_them():
    unseen = STUDY | {"train": {"augment": {"flip": False}}}
    with pytest.raises(UserError, match="looks at mirror images"):
        load_study(unseen)
    somewhere = unseen | {"backbones": {"resnet_small": {"train": {"augment": {"flip": True}}}}}
    assert "prlc_mirrored" in load_study(somewhere).config["methods"]
    with pytest.raises(UserError, match="prlc's checkpoints"):
        load_study(STUDY | {"methods": ["prlc_mirrored"]})


def test_each_has_the_colour_family_and_the_place_of_its_method():
    styles = method_styles([*METHODS])
    order = list(styles)
    for name in MIRRORED:
        base = name.removesuffix("_mirrored")
        assert order.index(name) == order.index(base) + 1
        assert "mirrored" in styles[name].label and styles[name].colour != styles[base].colour
        assert styles[name].reference == styles[base].reference
    assert len({(style.marker, style.dash) for style in styles.values()}) == len(styles)


def test_they_are_evaluated_with_their_methods_checkpoints(tmp_path, monkeypatch):
    prepare_digits(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    for verb in ("train", "predict"):
        assert main([verb, "--study", "tiny.yaml", "--results", "r", "--scratch", "s"]) == 0
    assert len(list(tmp_path.glob("r/runs/*/checkpoint.safetensors"))) == 2
    found = {path.name: load_predictions(path) for path in tmp_path.glob("r/*/*.parquet")}
    passes = {one.meta["method"]: one.meta["backbone_passes"] for one in found.values()}
    assert passes == {"vanilla": 1, "vanilla_mirrored": 2, "prlc": 1, "prlc_mirrored": 2}
