"""Zero-shot classifiers: their form, class vectors of images and of prompts, and their studies."""

import hashlib
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.nn import functional as F

from eqadapt import checkpoint, cli, zero_shot
from eqadapt.adaptation import ImageKind, build_backbone
from eqadapt.backbones import Backbone, build_network
from eqadapt.clip import class_names, prompt_templates, prompt_vectors, text_vectors
from eqadapt.datasets.prepared import Prepared
from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.study import load_study
from eqadapt.symmetrize import Symmetrized
from eqadapt.zero_shot import (
    ZeroShotClassifier,
    build_encoder,
    first_of_each,
    prototypes,
    write_class_vectors,
    zero_shot_network,
)

CLASSES = ("ant", "bee", "cat")


def unit(values):
    return F.normalize(values, dim=1)


def features(count=12, size=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator)


# --- the classifier -----------------------------------------------------------------------------


def test_logits_are_scaled_cosines():
    vectors, x = features(3, seed=1), features(7)
    model = ZeroShotClassifier(nn.Identity(), 5.0 * vectors, scale=100.0)
    expected = 100.0 * F.cosine_similarity(x[:, None], vectors[None], dim=2)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model(3.0 * x), model(x), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(model.forward_features(x).norm(dim=1), torch.ones(7))
    assert model.num_features == 5


def test_as_a_backbone_it_gives_unit_features_and_their_logits():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    backbone = Backbone(ZeroShotClassifier(encoder, features(4)), 8, [0.5] * 3, [0.25] * 3)
    x = torch.rand(6, 3, 8, 8)
    found, logits = backbone.features_and_logits(x)
    assert torch.equal(logits, backbone(x))
    assert (backbone.feature_count, logits.shape) == (5, (6, 4))
    head = 100.0 * backbone.network.class_vectors
    torch.testing.assert_close(found @ head.T, logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("selection", ["uniform", "argmax"])
def test_symmetrized_it_is_invariant_to_quarter_turns(selection):
    from eqadapt.view_scorers import build_view_scorer

    encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).double()
    network = ZeroShotClassifier(encoder, features(4).double(), scale=5.0)  # no saturation
    backbone = Backbone(network, 8, [0.5] * 3, [0.25] * 3).double()
    scorer = build_view_scorer("confidence", 5) if selection == "argmax" else None
    action = RotationAction(CyclicGroup(4))
    model = Symmetrized(backbone, action, selection, view_scorer=scorer).eval()
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64)
    for quarter in range(4):
        turned = model(action.turn(x, quarter)).logits
        torch.testing.assert_close(turned, model(x).logits, rtol=0, atol=1e-10)
    assert (backbone(action.turn(x, 1)) - backbone(x)).abs().max() > 0.1


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
def test_class_vectors_without_a_direction_are_refused(bad):
    vectors = features(3)
    vectors[1] = bad
    with pytest.raises(UserError, match="class vector"):
        ZeroShotClassifier(nn.Identity(), vectors)


# --- prototypes ---------------------------------------------------------------------------------


def test_prototypes_are_mean_unit_features():
    x, labels = features(), torch.arange(12) % 3
    found = prototypes(x, labels, CLASSES)
    for label in range(3):
        mean = unit(x[labels == label]).mean(dim=0, keepdim=True)
        torch.testing.assert_close(found[label : label + 1], unit(mean))
    lengths = torch.rand(12, 1) + 0.5
    torch.testing.assert_close(prototypes(lengths * x, labels, CLASSES), found)  # of directions
    order = torch.randperm(12)
    torch.testing.assert_close(prototypes(x[order], labels[order], CLASSES), found)


def test_shots_are_the_first_of_each_class():
    labels = torch.tensor([2, 0, 2, 1, 0, 1, 2, 0])
    assert first_of_each(labels, CLASSES, 1).tolist() == [0, 1, 3]
    assert first_of_each(labels, CLASSES, 2).tolist() == [0, 1, 2, 3, 4, 5]
    assert first_of_each(labels, CLASSES, None).tolist() == list(range(8))
    x = features(8)
    one = prototypes(x, labels, CLASSES, shots=1)
    torch.testing.assert_close(one, unit(x[[1, 3, 0]]))
    model = ZeroShotClassifier(nn.Identity(), one)
    torch.testing.assert_close(model(x[[1, 3, 0]]).diag(), torch.full((3,), 100.0))


def test_classes_without_images_are_named():
    with pytest.raises(UserError, match=r"no training image of 1 classes: bee \(0\)"):
        prototypes(features(4), torch.tensor([0, 0, 2, 2]), CLASSES)
    with pytest.raises(UserError, match=r"fewer than 2 training images of 2 classes: ant"):
        prototypes(features(4), torch.tensor([0, 1, 2, 2]), CLASSES, shots=2)
    with pytest.raises(UserError, match="labels up to 3, but 3 class names"):
        prototypes(features(4), torch.tensor([0, 1, 2, 3]), CLASSES)


# --- encoders with weights of a file ------------------------------------------------------------


def saved(folder, model="cifar_resnet20", classes=7, channels=3):
    path = folder / f"{model}-{classes}.pth"
    torch.manual_seed(0)
    torch.save({"state_dict": build_network(model, classes, channels).state_dict()}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def section(folder, model="cifar_resnet20", **options):
    path, sha256 = saved(folder, model)
    named = {"file": str(path), "sha256": sha256}
    return {"model": model, "weights": "prototypes", **named, "options": options}


@pytest.mark.parametrize("model", ["cifar_resnet20", "resnet_small"])
def test_the_encoder_is_the_network_before_its_head_whatever_its_classes(tmp_path, model):
    path, _ = saved(tmp_path, model)
    encoder = build_encoder(section(tmp_path, model, shots=3, scale=50.0), 3)
    whole = build_network(model, 7, 3)
    whole.load_state_dict(torch.load(path)["state_dict"])
    x = torch.rand(2, 3, 32, 32)
    expected = whole.eval().forward_head(whole.forward_features(x), pre_logits=True)
    torch.testing.assert_close(encoder(x), expected)


def test_files_that_are_not_the_encoders_are_refused(tmp_path):
    given = section(tmp_path)
    with pytest.raises(UserError, match="another architecture"):
        build_encoder({**given, "model": "cifar_resnet32"}, 3)
    with pytest.raises(UserError, match="checksum"):
        build_encoder({**given, "sha256": "0" * 64}, 3)
    with pytest.raises(UserError, match="no such weights file"):
        build_encoder({**given, "file": str(tmp_path / "none.pth")}, 3)
    with pytest.raises(UserError, match="no pretrained backbone"):
        build_encoder({**given, "file": None}, 3)


def split(count=12, channels=3, size=16, classes=CLASSES):
    generator = torch.Generator().manual_seed(0)
    shape = (count, channels, size, size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % len(classes)
    return Prepared(images, labels, torch.arange(count), classes, {"data_sha256": "ab"})


def recipe(backbone, **image):
    defaults = {
        "size": 16,
        "backbone_size": None,
        "upsampling": "bicubic",
        "mask": None,
        "padding": "border",
    }
    defaults |= {"mean": [0.4] * 3, "std": [0.2] * 3}
    augment = {"crop_padding": 0, "flip": False, "jitter_degrees": 0.0}
    return {"backbone": backbone, "image": {**defaults, **image}, "train": {"augment": augment}}


def test_class_vectors_are_kept_and_computed_again_when_something_differs(tmp_path):
    path, train = tmp_path / "vectors.safetensors", split()
    given, cpu = section(tmp_path, shots=2), torch.device("cpu")
    write_class_vectors(path, recipe(given), "insects", train, cpu)
    first = path.read_bytes()
    tensors, _ = checkpoint.load(path)
    reader = Backbone(build_encoder(given, 3), 16, [0.4] * 3, [0.2] * 3).eval()
    with torch.no_grad():
        expected = prototypes(reader(train.images / 255.0), train.labels, CLASSES, 2)
    torch.testing.assert_close(tensors["class_vectors"], expected, rtol=1e-4, atol=1e-6)
    assert float(tensors["scale"]) == 100.0
    stamp = path.stat().st_mtime_ns
    write_class_vectors(path, recipe(given), "insects", train, cpu)
    assert path.stat().st_mtime_ns == stamp  # there already
    path.write_bytes(b"broken")
    write_class_vectors(path, recipe(given), "insects", train, cpu)
    assert path.read_bytes() == first
    for changed in (
        recipe(section(tmp_path, shots=3)),
        recipe(given, mean=[0.5] * 3),
        recipe(section(tmp_path, shots=2, scale=10.0)),
    ):
        write_class_vectors(path, changed, "insects", train, cpu)
        assert path.read_bytes() != first
    assert float(checkpoint.load(path)[0]["scale"]) == 10.0


def test_class_vectors_of_other_code_or_other_hub_weights_are_computed_again(tmp_path, monkeypatch):
    path, given = tmp_path / "vectors.safetensors", section(tmp_path, shots=2)
    encoder = build_encoder(given, 3)
    monkeypatch.setattr(zero_shot, "build_encoder", lambda *_: encoder)
    hub = tmp_path / "hub.safetensors"
    monkeypatch.setattr(zero_shot, "hub_file", lambda _model: hub)

    def said(**changes):
        write_class_vectors(
            path, recipe({**given, **changes}), "insects", split(), torch.device("cpu")
        )
        return checkpoint.load(path)[1]

    of_file = said()
    hub.write_bytes(b"weights")
    assert said() == of_file  # of the file, whatever the hub has
    first = said(file=None)
    hub.write_bytes(b"other weights")
    assert said(file=None) != first
    monkeypatch.setattr(zero_shot, "code_id", lambda *_: "other code")
    assert said() != of_file


def test_a_zero_shot_backbone_needs_vectors_of_its_classes(tmp_path):
    path, given = tmp_path / "vectors.safetensors", section(tmp_path)
    write_class_vectors(path, recipe(given), "insects", split(), torch.device("cpu"))
    backbone = build_backbone(recipe(given), ImageKind(3, 3), path)
    assert backbone(torch.rand(2, 3, 16, 16)).shape == (2, 3)
    with pytest.raises(UserError, match="vectors of 3 classes, but the data have 4"):
        build_backbone(recipe(given), ImageKind(3, 4), path)
    with pytest.raises(UserError, match="needs class vectors"):
        zero_shot_network(given, 3, 3, None)


# --- prompts ------------------------------------------------------------------------------------


def letters(prompts):
    """An embedding of texts: how often each letter occurs, times the text's length."""
    counts = [[prompt.count(chr(97 + k)) for k in range(26)] for prompt in prompts]
    return torch.tensor(counts, dtype=torch.float32) * torch.tensor([[len(p)] for p in prompts])


def test_vectors_of_prompts_are_means_of_directions():
    templates = ["a photo of a {}.", "{}"]
    found = text_vectors(letters, CLASSES, templates)
    for row, name in zip(found, CLASSES):
        both = unit(letters([f"a photo of a {name}.", name])).mean(dim=0, keepdim=True)
        torch.testing.assert_close(row[None], unit(both))
    torch.testing.assert_close(text_vectors(letters, CLASSES, templates[::-1]), found)
    single = text_vectors(letters, CLASSES, ["{}"])
    torch.testing.assert_close(single, unit(letters(list(CLASSES))))


def test_names_in_prompts():
    assert class_names(["aquarium_fish"], None) == ["aquarium fish"]
    assert class_names(["n01", "n02"], ["tench", "goldfish"]) == ["tench", "goldfish"]
    assert class_names(["b", "a"], {"a": "ant", "b": "bee"}) == ["bee", "ant"]
    with pytest.raises(UserError, match="class names: 1, but the data have 2 classes"):
        class_names(["n01", "n02"], ["tench"])
    with pytest.raises(UserError, match="no name for class 'b'"):
        class_names(["a", "b"], {"a": "ant"})
    with pytest.raises(UserError, match="class names: 'cifar'"):
        class_names(["a"], "cifar")


def test_templates_have_a_place_for_the_name():
    assert prompt_templates(None) == ["a photo of a {}."]
    assert prompt_templates(["{} drawn"]) == ["{} drawn"]
    for wrong in (["a photo"], [], "a photo of a {}."):
        with pytest.raises(UserError, match="not templates"):
            prompt_templates(wrong)


class Tower(nn.Module):
    """Both sides of a model of the form of open_clip's."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.visual = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 26))
        self.logit_scale = nn.Parameter(torch.tensor(np.log(50.0)))

    def encode_text(self, prompts):
        return prompts


@pytest.fixture
def fake_open_clip(monkeypatch):
    def create_model(name, pretrained):
        if pretrained == "unreachable":
            raise ConnectionError("no route to the hub")
        return Tower()

    package = types.ModuleType("open_clip")
    package.list_models = lambda: ["RN50", "RN101"]
    package.list_pretrained_tags_by_model = lambda name: ["openai", "unreachable"]
    package.create_model = create_model
    package.get_tokenizer = lambda name: letters
    package.get_model_preprocess_cfg = lambda model: {
        "mean": (0.4,) * 3,
        "std": (0.2,) * 3,
        "size": (16, 16),
    }
    package.IMAGENET_CLASSNAMES = ["tench", "goldfish", "shark"]
    package.OPENAI_IMAGENET_TEMPLATES = (lambda name: f"a bad photo of a {name}.",) * 80
    package.SIMPLE_IMAGENET_TEMPLATES = (lambda name: f"itap of a {name}.",) * 7
    monkeypatch.setitem(sys.modules, "open_clip", package)
    return package


def clip(name="RN50", **options):
    named = {"file": None, "sha256": None, "weights": "pretrained"}
    return {"model": f"open_clip:{name}", **named, "options": options}


def own_normalisation(given, **image):
    return recipe(given, **{"mean": None, "std": None, **image})


def test_a_model_of_open_clip_classifies_by_its_prompts(fake_open_clip, tmp_path):
    path, given = tmp_path / "vectors.safetensors", own_normalisation(clip())
    write_class_vectors(path, given, "insects", split(), torch.device("cpu"))
    backbone = build_backbone(given, ImageKind(3, 3), path).eval()
    assert backbone.mean.flatten().tolist() == pytest.approx([0.4] * 3)  # the model's own
    x = torch.rand(4, 3, 16, 16)
    images = Tower().visual((x - 0.4) / 0.2)
    prompts = letters([f"a photo of a {name}." for name in CLASSES])
    expected = 50.0 * unit(images) @ unit(prompts).T
    torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-4)


def test_its_image_tower_serves_prototypes_as_well(fake_open_clip, tmp_path):
    path = tmp_path / "vectors.safetensors"
    given = own_normalisation({**clip(), "weights": "prototypes"})
    write_class_vectors(path, given, "insects", split(), torch.device("cpu"))
    assert build_backbone(given, ImageKind(3, 3), path).feature_count == 26


def test_imagenets_names_by_number_and_in_order(fake_open_clip):
    assert class_names(["0", "1", "2"], "imagenet") == ["tench", "goldfish", "shark"]
    assert class_names(["0", "2", "1"], "imagenet") == ["tench", "shark", "goldfish"]  # sorted text
    assert class_names(["n1", "n2", "n3"], "imagenet") == ["tench", "goldfish", "shark"]
    with pytest.raises(UserError, match="class names: 3, but the data have 2"):
        class_names(["n1", "n2"], "imagenet")
    assert prompt_templates("simple") == ["itap of a {}."] * 7
    assert len(prompt_templates("openai")) == 80


def test_what_open_clip_cannot_do_is_told(fake_open_clip, tmp_path):
    with pytest.raises(UserError, match="no model 'RN5O'"):
        build_encoder(clip("RN5O"), 3)
    with pytest.raises(UserError, match="RGB images, not 1 channels"):
        build_encoder(clip(), 1)
    with pytest.raises(UserError, match="no weights 'laion'"):
        build_encoder(clip(pretrained="laion"), 3)
    with pytest.raises(UserError, match="cannot be had: no route to the hub"):
        build_encoder(clip(pretrained="unreachable"), 3)
    with pytest.raises(UserError, match="no such weights file"):
        build_encoder({**clip(), "file": str(tmp_path / "none.pt")}, 3)
    with pytest.raises(UserError, match="reads images of 16 pixels, not 32"):
        prompt_vectors(own_normalisation(clip(), size=32), 3, CLASSES, None, torch.device("cpu"))


def test_without_open_clip_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for act in (lambda: build_encoder(clip(), 3), lambda: class_names(["0"], "imagenet")):
        with pytest.raises(UserError, match="open_clip_torch, which is not installed") as caught:
            act()
        assert "pip install open_clip_torch" in caught.value.fix
        assert "weights: file" in caught.value.fix


@pytest.mark.slow
def test_open_clip_itself_with_weights_of_a_file(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt").eval()
    path = tmp_path / "random.pt"
    torch.save(model.state_dict(), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    given = {**clip("ViT-S-32-alt", templates="simple"), "weights": "file", "file": str(path)}
    full = own_normalisation({**given, "sha256": sha256}, size=224)
    vectors, train = tmp_path / "vectors.safetensors", split(3)
    write_class_vectors(vectors, full, "insects", train, torch.device("cpu"))
    backbone = build_backbone(full, ImageKind(3, 3), vectors).eval()
    x = torch.rand(2, 3, 224, 224)
    tokenize = open_clip.get_tokenizer("ViT-S-32-alt")
    with torch.no_grad():
        texts = torch.stack(
            [
                model.encode_text(
                    tokenize([t(name) for t in open_clip.SIMPLE_IMAGENET_TEMPLATES]),
                    normalize=True,
                ).mean(dim=0)
                for name in CLASSES
            ]
        )
        images = model.encode_image(backbone.prepare(x), normalize=True)
        expected = model.logit_scale.exp() * images @ unit(texts).T
        torch.testing.assert_close(backbone(x), expected, rtol=1e-4, atol=1e-3)
    assert backbone.mean.flatten()[0] == pytest.approx(open_clip.OPENAI_DATASET_MEAN[0])


# --- as a study ---------------------------------------------------------------------------------


def a_study(**backbone):
    return {
        "study": "mine",
        "datasets": ["digits"],
        "backbones": {"encoder": backbone},
        "methods": ["prlc_rotated"],
        "regimes": ["frozen"],
    }


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ({"model": "cifar_resnet20", "weights": "prototypes"}, "prototypes need an encoder's"),
        (
            {"model": "resnet50", "weights": "prototypes", "file": "x.pth"},
            "backbones.encoder.sha256: missing",
        ),
        (
            {"model": "resnet50", "weights": "prototypes", "options": {"shots": 0}},
            "options.shots: 0; allowed: >= 1",
        ),
        (
            {"model": "resnet50", "weights": "prototypes", "options": {"shots": "many"}},
            "options.shots: 'many' is of the wrong type",
        ),
        ({"model": "open_clip:RN50"}, "open_clip models are not trained here"),
        (
            {"model": "open_clip:RN50", "weights": "pretrained", "options": {"shot": 5}},
            "options.shot: unknown option",
        ),
        (
            {
                "model": "open_clip:RN50",
                "weights": "pretrained",
                "options": {"class_names": {"digit": ["zero"]}},
            },
            "options.class_names.digit: no such data set",
        ),
    ],
)
def test_sections_that_cannot_work_are_refused_before_any_work(backbone, said):
    with pytest.raises(UserError) as caught:
        load_study(a_study(**backbone))
    assert said in str(caught.value)


def test_a_zero_shot_backbone_may_be_frozen():
    for backbone in (
        {"model": "resnet50", "weights": "prototypes", "options": {"shots": 5}},
        {"model": "open_clip:RN50", "weights": "pretrained"},
    ):
        study = load_study(a_study(**backbone))
        assert study.start(study.runs()[0]) is None


def image_folder(folder, count=8):
    """Stripes of three kinds, eight training and four test images each."""
    generator = np.random.default_rng(0)
    for split_name, number in (("train", count), ("test", 4)):
        for label in range(3):
            target = folder / split_name / str(label)
            target.mkdir(parents=True)
            for k in range(number):
                noise = generator.integers(0, 60, (16, 16, 3))
                noise[:: label + 1, :, label] += 180
                Image.fromarray(noise.astype(np.uint8)).save(target / f"{k}.png")


@pytest.mark.slow
def test_a_folder_of_images_is_adapted_to_by_prototypes(tmp_path):
    image_folder(tmp_path / "images")
    weights, sha256 = saved(tmp_path, "cifar_resnet20")
    named = {"weights": "prototypes", "file": str(weights), "sha256": sha256}
    content = {
        **a_study(model="cifar_resnet20", **named, options={"shots": 2}),
        "datasets": {"stripes": {"folder": str(tmp_path / "images"), "size": 16, "validation": 6}},
        "groups": ["C4"],
        "seeds": [0],
        "image": {"size": 16},
        "evaluate": {"poses": "C4"},
        "test_time": {"folder": str(tmp_path / "methods")},
        "device": "cpu",
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    shipped = Path(__file__).parents[1] / "config" / "zero_shot"
    (tmp_path / "methods").mkdir()
    settings = {"images": {"train": 12, "validation": 6, "test": 12}, "trials": 1}
    (tmp_path / "methods" / "settings.yaml").write_text(yaml.safe_dump(settings))
    names = ["vanilla", "oracle", "equitune", "equizero", "lambda_equitune", "boltzmann", "ac_max"]
    for name in names:
        text = (shipped / f"{name}.yaml").read_text()
        (tmp_path / "methods" / f"{name}.yaml").write_text(text)
    name = load_study(tmp_path / "study.yaml").preparation("stripes").name
    raw, data = str(tmp_path / "raw"), str(tmp_path / "data" / name)
    folder = ["--folder", str(tmp_path / "images")]
    for verb in (
        ["download", "--dataset", "stripes", *folder, "--out", raw],
        ["verify", "--dataset", "stripes", "--raw", raw],
        ["prepare", "--dataset", "stripes", "--raw", raw, "--out", data, "--size", "16"]
        + ["--validation", "6"],
    ):
        assert cli.main(verb) == 0
    arguments = ["--study", str(tmp_path / "study.yaml"), "--data", str(tmp_path / "data")]
    arguments += ["--results", str(tmp_path / "results"), "--scratch", str(tmp_path / "scratch")]
    arguments += ["--orbits", str(tmp_path / "orbits")]
    assert cli.main(["orbits", *arguments]) == 0
    assert cli.main(["methods", *arguments]) == 0
    found = {
        path.stem.split("-")[3]: pd.read_parquet(path)
        for path in (tmp_path / "results" / "predictions").glob("*.parquet")
    }
    assert set(found) == set(names)
    for name in set(names) - {"vanilla"}:
        by_image = found[name].groupby("index")["prediction"].nunique()
        assert (by_image == 1).all()  # one prediction over the orbit
    vectors = tmp_path / "scratch" / "class_vectors" / "stripes-encoder.safetensors"
    assert checkpoint.load(vectors)[1]["options"] == {"shots": 2}


@pytest.mark.parametrize("name", ["zero_shot", "clip"])
def test_the_shipped_studies_run_methods_that_exist(name):
    from eqadapt.test_time.plan import load_plan

    plan = load_plan(load_study(Path(__file__).parents[1] / "config" / f"{name}.yaml", []))
    names = {entry.method.name for entry in plan.entries}
    assert {"vanilla", "equizero", "lambda_equitune", "oracle", "ac_max", "boltzmann"} <= names
    assert not plan.left_out
