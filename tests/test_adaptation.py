"""Models put together from recipes: backbones, methods, predictions over the orbit, plug-ins."""

import itertools
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from eqadapt import evaluation
from eqadapt.adaptation import ImageKind, build_backbone, build_model, choose_device
from eqadapt.backbones import Backbone, build_network, load_weights_file, to_size
from eqadapt.errors import UserError
from eqadapt.evaluation import PassCounter, gallery, predict_orbit
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.methods import METHODS, Method, get_method, register
from eqadapt.mirrored import mirrored
from eqadapt.runs import gallery_rows
from eqadapt.tasks.classification import ImagePipeline, random_shift

SIZE = 20


class Network(nn.Module):
    num_features = 6

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 6), nn.Tanh())
        self.head = nn.Linear(6, 4)

    def forward_features(self, x):
        return self.body(x)

    def forward_head(self, x, pre_logits=False):
        return x if pre_logits else self.head(x)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def recipe(**image):
    defaults = {
        "size": SIZE, "backbone_size": None, "interpolation": "bilinear", "padding": "border",
        "mask": "none", "mean": None, "std": None, "upsampling": "bicubic",
    }  # fmt: skip
    augment = {"crop_padding": 0, "flip": False, "jitter_degrees": 0.0}
    return {
        "image": {**defaults, **image},
        "scorer": {"name": "group_cnn", "width": 2, "input_size": 15, "kernel_size": 3},
        "train": {"augment": augment},
        "backbone": {"model": "cifar_resnet20", "weights": "scratch", "options": {}},
    }


def adapted(method, group="C4", **image):
    torch.manual_seed(1)
    backbone = Backbone(Network(), SIZE, [0.5], [0.5])
    model = build_model(recipe(**image), method, group, ImageKind(1, 4), backbone).eval()
    return mirrored(model) if get_method(method).mirrored else model


def images(count=7):
    return torch.randint(0, 256, (count, 1, SIZE, SIZE), dtype=torch.uint8)


def predict(model, method, data, poses=8, batch=4):
    pipeline = ImagePipeline.from_recipe(recipe())
    labels = torch.zeros(len(data), dtype=torch.long)
    action = RotationAction(CyclicGroup(poses))
    index = torch.arange(len(data))
    return predict_orbit(model, get_method(method), data, labels, index, pipeline, action, batch)


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        ("vanilla", 1), ("rotation_augmentation", 1), ("lc", 1), ("prlc", 1), ("oracle", 1),
        ("optc", 1), ("equitune", 4), ("lambda_equitune", 4), ("equizero", 4), ("lps", 10),
        ("self_canonicalizer", 4), ("weighted_frame", 4), ("top_2", 2), ("top_3", 3),
        ("prlc_classwise_top_2", 2),
        ("vanilla_mirrored", 2), ("prlc_mirrored", 2), ("self_canonicalizer_mirrored", 8),
        ("oracle_mirrored", 2),
    ],
)  # fmt: skip
def test_passes_are_counted_and_are_what_the_method_costs(method, passes):
    model = adapted(method, "C4" if get_method(method).uses_group else "C1")
    assert predict(model, method, images()).passes == passes


@pytest.mark.parametrize("method", ["lc", "prlc", "optc", "equizero"])
def test_predictions_are_the_same_in_every_quarter_turn(method):
    found = predict(adapted(method), method, images(9))
    for angle in (90, 180, 270):
        same = found.prediction[found.angle == angle] == found.prediction[found.angle == 0]
        assert same.all()
    chosen = found.chosen[found.angle == 90]
    assert ((chosen - found.chosen[found.angle == 0]) % 4 == 1).all()


def test_sharing_logits_by_bytes_changes_no_prediction():
    data = images(9)
    model, action = adapted("lc", "C8"), RotationAction(CyclicGroup(8))
    found = predict(model, "lc", data)
    pipeline = ImagePipeline.from_recipe(recipe())
    with torch.no_grad():
        for pose in range(8):
            logits = model(action.posed(pipeline.to_act_size(data), pose)).logits
            assert (logits.argmax(1).numpy() == found.prediction[found.pose == pose]).all()


def test_sharing_logits_saves_the_passes_of_turned_copies():
    model, data = adapted("lc", "C4"), images(4)
    with PassCounter(model.backbone) as counter:
        predict(model, "lc", data)
    # One image is passed to count, and each one upright and at 45 degrees.
    assert counter.images == 1 + 2 * len(data)


def test_drawn_predictions_do_not_depend_on_the_counting_of_passes(monkeypatch):
    model, data = adapted("lps"), images(6)
    torch.manual_seed(0)
    found = predict(model, "lps", data)
    monkeypatch.setattr(evaluation, "_counted_passes", lambda *_: 0.0)
    torch.manual_seed(0)
    uncounted = predict(model, "lps", data)
    assert found.passes > 0 and (found.score == uncounted.score).all()


def test_the_oracle_undoes_every_pose():
    found = predict(adapted("oracle", "C1"), "oracle", images(5))
    assert (found.chosen_angle == found.angle).all()
    upright = found.prediction[found.pose == 0]
    for angle in (90, 180, 270):
        assert (found.prediction[found.angle == angle] == upright).all()


def test_methods_that_choose_nothing_say_so():
    found = predict(adapted("vanilla", "C1"), "vanilla", images(3))
    assert (found.chosen == -1).all() and np.isnan(found.chosen_angle).all()


@pytest.mark.parametrize(("count", "images"), [(3, 10), (10, 3), (1, 5), (0, 5), (4, 0)])
def test_galleries_show_images_of_the_whole_split(count, images):
    rows = gallery_rows(count, images).tolist()
    assert len(rows) == min(count, images) and rows == sorted(set(rows))
    edges = [0, *rows[1:], images] if rows else []
    widths = [after - before for before, after in itertools.pairwise(edges)]
    assert not widths or max(widths) - min(widths) <= 1


def test_galleries_show_the_same_canonical_image_for_every_quarter_turn():
    model = adapted("prlc")
    pictures = gallery(
        model,
        get_method("prlc"),
        images(3),
        torch.zeros(3, dtype=torch.long),
        ImagePipeline.from_recipe(recipe()),
        RotationAction(CyclicGroup(4)),
        [0, 1, 2],
    )
    canonical = pictures["canonical"]
    assert canonical.dtype == torch.uint8 and canonical.shape == (3, 3, SIZE, SIZE, 1)
    assert (canonical == canonical[:, :1]).all()


def test_pictures_of_large_images_keep_what_lies_between_their_pixels():
    """Every other pixel of a fine pattern would be black or white; its mean is grey."""
    fine = torch.full((1, 1, SIZE, SIZE), 255, dtype=torch.uint8)
    fine[..., ::2] = 0
    pictures = gallery(
        adapted("vanilla", "C1"),
        get_method("vanilla"),
        fine,
        torch.zeros(1, dtype=torch.long),
        ImagePipeline(size=SIZE),
        RotationAction(CyclicGroup(4)),
        [0],
        largest_side=SIZE // 2,
    )
    shown = pictures["inputs"][0, 0, 1:-1, 1:-1].float()
    assert pictures["inputs"].shape[2:4] == (SIZE // 2, SIZE // 2)
    assert (shown - 127.5).abs().max() < 32


@pytest.mark.parametrize(
    "method", ["prlc", "oracle", "equizero", "self_canonicalizer", "weighted_frame", "top_2"]
)
def test_galleries_show_whole_images_where_the_backbone_reads_fewer_pixels(method):
    model = adapted(method, "C4" if get_method(method).uses_group else "C1")
    assert model.reads == SIZE
    data, labels = images(3), torch.zeros(3, dtype=torch.long)
    pipeline, poses = ImagePipeline(size=3 * SIZE), RotationAction(CyclicGroup(4))
    pictures = gallery(model, get_method(method), data, labels, pipeline, poses, [0, 1])
    assert pictures["canonical"].shape == pictures["inputs"].shape == (3, 2, 3 * SIZE, 3 * SIZE, 1)
    chosen = (pictures["chosen_angles"] / 90).long() % 4
    undone = torch.stack([
        torch.rot90(image, -int(quarters), (0, 1))
        for image, quarters in zip(pictures["inputs"].flatten(0, 1), chosen.flatten(), strict=True)
    ])  # fmt: skip
    assert torch.equal(pictures["canonical"].flatten(0, 1), undone)
    found = predict_orbit(
        model, get_method(method), data, labels, torch.arange(3), pipeline, poses, 3
    )
    shown = pictures["predictions"].T.flatten().numpy()
    assert (found.prediction[found.pose < 2] == shown).all()
    angles = pictures["chosen_angles"].T.flatten().numpy()
    assert (found.chosen_angle[found.pose < 2] == angles).all()


def test_sampling_at_the_old_centres_undoes_the_upsampling():
    pipeline = ImagePipeline(size=3 * SIZE)
    data = images(3)
    small = to_size(pipeline.to_act_size(data), SIZE)
    assert (small - data / 255).abs().max() < 1e-6
    assert to_size(torch.rand(1, 1, 40, 40), SIZE).shape[-1] == SIZE


def test_shifts_move_the_image_and_repeat_its_edges():
    data = images(64)
    shifted = random_shift(data, 2)
    assert shifted.shape == data.shape and shifted.dtype == torch.uint8
    assert not torch.equal(shifted, data)
    flat = torch.full((4, 1, SIZE, SIZE), 7, dtype=torch.uint8)
    assert torch.equal(random_shift(flat, 3), flat)


def test_wrong_backbones_are_named_before_work_starts(tmp_path):
    with pytest.raises(UserError, match="resnet5x") as error:
        build_network("resnet5x", 10, 3)
    assert "resnet50" in str(error.value)
    with pytest.raises(UserError, match="cifar_resnet21"):
        build_network("cifar_resnet21", 10, 3)
    with pytest.raises(UserError, match="reads 32"):
        build_backbone(recipe(backbone_size=32), ImageKind(3, 10))
    network = build_network("cifar_resnet20", 10, 3)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "own.th")
    load_weights_file(network, tmp_path / "own.th", None)
    with pytest.raises(UserError, match=r"class count.*linear\.weight"):
        load_weights_file(build_network("cifar_resnet20", 7, 3), tmp_path / "own.th", None)
    with pytest.raises(UserError, match=r"expected abcd.*found"):
        load_weights_file(network, tmp_path / "own.th", "abcd1234")
    with pytest.raises(UserError, match="no such weights"):
        load_weights_file(network, tmp_path / "none.th", None)


def test_the_cifar_resnets_have_their_published_sizes():
    sizes = {20: 269_722, 32: 464_154, 44: 658_586, 56: 853_018}
    for depth, size in sizes.items():
        network = build_network(f"cifar_resnet{depth}", 10, 3)
        assert sum(p.numel() for p in network.parameters()) == size
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_a_clear_error():
    with pytest.raises(UserError, match="no GPU here"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"


def test_a_gpu_computes_nothing_in_tf32(monkeypatch):
    """Its ten bits of mantissa are too few for scores that are the same for an image's turns."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True  # no attribute that monkeypatch can put back
    assert choose_device("cpu").type == "cpu" and torch.backends.cudnn.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32
    assert choose_device("auto").type == "cuda" and not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_two_methods_cannot_share_a_name():
    with pytest.raises(UserError, match="two methods"):
        register(Method(name="prlc", summary="another", paper="none"))
    assert METHODS["prlc"].paper == "mondal2023"
    with pytest.raises(UserError, match="unknown method 'plrc'"):
        get_method("plrc")


def test_a_method_is_added_from_outside_the_package(tmp_path):
    (tmp_path / "my_methods.py").write_text(
        textwrap.dedent(
            """
            from eqadapt.methods import Method, register

            register(Method(
                name="soft_prlc", summary="PRLC with all views, weighted.", paper="mine",
                scorer="image", selection="softmax", prior="identity",
            ))
            """
        )
    )
    program = textwrap.dedent(
        """
        from eqadapt.study import load_study
        study = load_study({
            "study": "mine", "datasets": ["digits"], "methods": ["vanilla", "soft_prlc"],
            "backbones": ["resnet_small"],
        })
        print(sorted({run.method for run in study.trained_runs()}))
        """
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(tmp_path), "EQADAPT_PLUGINS": "my_methods", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "['soft_prlc', 'vanilla']" in found.stdout, found.stderr


def test_the_equivariant_twin_is_invariant_to_quarter_turns_and_no_larger():
    plain, twin = (build_network(name, 10, 1).eval() for name in ("mnist_cnn", "mnist_gcnn"))
    x = torch.randn(8, 1, 28, 28)
    for turns in (1, 2, 3):
        gap = (twin(x) - twin(torch.rot90(x, turns, (-2, -1)))).abs().max()
        assert gap < 1e-5
        assert (plain(x) - plain(torch.rot90(x, turns, (-2, -1)))).abs().max() > 10 * gap
    sizes = [sum(p.numel() for p in network.parameters()) for network in (plain, twin)]
    assert sizes[1] <= sizes[0]
