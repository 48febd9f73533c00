"""The trained relatives: distilled targets, rotation heads, frames without learning, plug-ins."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from eqadapt.adaptation import ImageKind, build_model
from eqadapt.backbones import Backbone, build_network
from eqadapt.distillation import moved_targets, pose_targets
from eqadapt.errors import UserError
from eqadapt.evaluation import PassCounter
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.losses import prior_loss
from eqadapt.methods import METHODS, get_method
from eqadapt.optimizers import build_optimizer
from eqadapt.scorers import build_scorer
from eqadapt.scorers.base import PoseScorer
from eqadapt.scorers.plain_cnn import artifact
from eqadapt.study import load_study
from eqadapt.symmetrize import Symmetrized
from eqadapt.training import LabelledImages, Trainer

REPOSITORY = Path(__file__).parent.parent
SIZE, CLASSES = 32, 3
UNLEARNT = ("fixed_energy", "moment_frame", "pca_frame", "frozen_canonicalizer")
TRAIN = {
    "epochs": 2, "patience": None, "batch_size": 8, "optimizer": "adamw", "lr": 1e-2,
    "scorer_lr": 1e-2, "weight_decay": 0.01, "scorer_weight_decay": 0.0, "momentum": 0.9,
    "schedule": "cosine", "warmup": 0.1, "prior_weight": 1.0, "contrast_weight": 0.1,
    "artifact_weight": 1.0, "distil_temperature": 1.0, "task_weight": 1.0,
    "label_smoothing": 0.0, "grad_clip": 1.0,
    "amp": "none", "channels_last": False, "compile": False,
    "augment": {"crop_padding": 0, "flip": True, "jitter_degrees": 0.0},
}  # fmt: skip


def recipe(**train):
    image = {
        "size": SIZE, "backbone_size": None, "interpolation": "bilinear", "padding": "border",
        "mask": "none", "mean": None, "std": None, "upsampling": "bicubic",
    }  # fmt: skip
    return {
        "image": image,
        "scorer": {"name": "group_cnn", "width": 2, "input_size": 15, "kernel_size": 3},
        "train": {**TRAIN, **train},
        "evaluate": {"batch_size": 16, "samples": None},
    }


def adapted(method, group="C4", model="resnet_small"):
    torch.manual_seed(0)
    # Not fewer: with 2 to 4 channels a strided 1x1 convolution of channels-last maps writes past
    # its memory in the backward pass of torch 2.11 on processors with AVX2 alone.
    options = {"channels": (8, 8, 8, 8)} if model == "resnet_small" else {}
    network = build_network(model, CLASSES, 1, options=options)
    backbone = Backbone(network, SIZE, [0.5], [0.5])
    return build_model(recipe(), method, group, ImageKind(1, CLASSES), backbone)


def images(count=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 1, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def trainer(method="distil_prior", group="C4", frozen=False, state=None, data=None, **train):
    labels = torch.arange(12) % CLASSES
    data = LabelledImages(images() if data is None else data, labels)
    return Trainer(
        adapted(method, group), get_method(method), recipe(**train), data, data,
        seed=0, frozen=frozen, state_path=state, digest="d",
    )  # fmt: skip


class Upright(nn.Module):
    """Right about images that are brighter above than below, righter if to the left too."""

    def forward(self, x):
        rows = torch.linspace(1, -1, x.shape[-1])
        up = (x * rows[:, None]).mean((1, 2, 3))
        right = (x * -rows).mean((1, 2, 3))
        return torch.stack([5 * up + right, -5 * up, torch.zeros_like(up)], dim=1)


def targets(x, order=4, temperature=1.0, backbone=None):
    return pose_targets(
        backbone or Upright(), RotationAction(CyclicGroup(order)), x,
        torch.zeros(len(x), dtype=torch.long), lambda x: x, temperature, 16,
    )  # fmt: skip


def upright_images(count=6):
    x = torch.rand(count, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    x[:, :, :4] += 2.0
    return x


def test_a_cold_target_of_a_backbone_that_is_best_upright_is_the_identity():
    found = targets(upright_images(), temperature=1e-4)
    assert torch.equal(found, torch.eye(4)[0].expand(6, 4))
    scores = torch.randn(6, 4)
    identity = prior_loss(scores, torch.zeros(6, dtype=torch.long))
    torch.testing.assert_close(prior_loss(scores, found), identity)  # PRLC is the special case
    torch.testing.assert_close(targets(upright_images(), temperature=1e6), torch.full((6, 4), 0.25))


@pytest.mark.parametrize("order", [4, 8])
def test_targets_turn_with_the_image(order):
    """Exactly, by quarter turns; so a scorer that obeys the law can fit them."""
    x, group = upright_images(), CyclicGroup(order)
    plain = targets(x, order)
    torch.testing.assert_close(plain.sum(1), torch.ones(6))
    for quarter in range(4):
        pose = torch.full((6,), quarter * order // 4)
        moved = moved_targets(plain, torch.zeros(6, dtype=torch.bool), pose, group)
        assert torch.equal(moved, plain.roll(quarter * order // 4, 1))
        turned = targets(torch.rot90(x, quarter, (-2, -1)), order)
        torch.testing.assert_close(turned, moved, atol=1e-6, rtol=0)


def test_mirrored_images_have_the_inverse_elements_targets():
    """Of a backbone that takes a mirror image for the same: F R^k = R^-k F."""

    class MirrorBlind(Upright):
        def forward(self, x):
            return super().forward(x) + super().forward(x.flip(-1))

    x, group = upright_images() + torch.rand(6, 1, 1, 12), CyclicGroup(4)
    plain = targets(x, backbone=MirrorBlind())
    assert not torch.allclose(plain[:, 1], plain[:, 3])  # else there were nothing to see
    mirrored = torch.tensor([True, False] * 3)
    flipped = torch.where(mirrored.view(-1, 1, 1, 1), x.flip(-1), x)
    for pose in range(4):
        moved = moved_targets(plain, mirrored, torch.full((6,), pose), group)
        turned = torch.rot90(flipped, pose, (-2, -1))
        found = targets(turned, backbone=MirrorBlind())
        torch.testing.assert_close(found, moved, atol=1e-6, rtol=0)


def test_a_distilled_run_is_resumed_with_the_targets_of_its_start(tmp_path):
    whole = trainer()
    whole.run()
    state = tmp_path / "state.safetensors"
    first = trainer(state=state)

    class Cut(Exception):
        pass

    def stop(row):
        raise Cut

    first.report = stop
    with pytest.raises(Cut):
        first.run()
    second = trainer(state=state)
    second.run()
    assert torch.equal(whole.targets, second.targets)
    left, right = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(left[key], right[key]) for key in left)


def test_a_distilled_scorer_learns_the_backbones_pose():
    """A backbone that is right only upside down: its canonicalizer turns images over."""

    class UpsideDown(Upright):
        def forward(self, x):
            return 20 * super().forward(torch.rot90(x, 2, (-2, -1)))

    data = images(12) // 4
    data[:, :, :8] += 150
    run = trainer(
        frozen=True, epochs=25, data=data, distil_temperature=0.1, scorer_lr=3e-2, prior_weight=10.0
    )
    run.model.backbone.network = UpsideDown()
    run.data.labels.zero_()
    before = run.model.backbone.mean.clone()
    row = run.run().history[-1]
    assert run.targets.argmax(1).tolist() == [2] * 12
    run.model.eval()
    chosen = run.model(run.pipeline.to_act_size(data)).chosen
    assert (chosen == 2).float().mean() > 0.9
    assert row["task_loss"] is None and torch.equal(before, run.model.backbone.mean)


@pytest.mark.parametrize("model", ["resnet_small", "vit_small", "cifar_resnet20"])
def test_the_rotation_head_takes_two_passes_and_holds_no_backbone(model):
    adapted_model = adapted("rotation_head", model=model).eval()
    x = torch.rand(5, 1, SIZE, SIZE)
    with PassCounter(adapted_model.backbone) as counter, torch.no_grad():
        output = adapted_model(x)
        assert counter.images == 2 * len(x)
        adapted_model.canonicalize(x)
        assert counter.images == 3 * len(x)
    assert output.pose_logits.shape == (5, 4)
    own = {id(p) for p in adapted_model.scorer.parameters()}
    assert own.isdisjoint(id(p) for p in adapted_model.backbone.parameters())
    state = adapted_model.state_dict()
    assert sum(key.startswith("scorer.") for key in state) == len(adapted_model.scorer.state_dict())
    assert not any("network" in key for key in adapted_model.scorer.state_dict())
    assert get_method("rotation_head").departures == ("plain_scorer",)


def test_the_rotation_head_reads_a_backbone_at_rest_and_leaves_it_alone():
    model = adapted("rotation_head").train()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    x = torch.rand(6, 1, SIZE, SIZE)
    scores = model.scorer(x)
    assert torch.equal(scores, model.scorer(x))  # no batch statistics in it
    prior_loss(scores, torch.zeros(6, dtype=torch.long)).backward()
    after = model.backbone.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.scorer.parameters())
    assert model.backbone.training


@pytest.mark.parametrize("model", ["vit_small", "resnet_small"])
def test_the_rotation_head_is_trained_on_maps_in_any_layout(model):
    """A ViT's tokens and channels-last maps: torch's group norm ended the process on these."""
    model = adapted("rotation_head", model=model).to(memory_format=torch.channels_last).train()
    scores = model.scorer(torch.rand(2, 1, SIZE, SIZE))
    prior_loss(scores, torch.zeros(2, dtype=torch.long)).backward()
    assert all(p.grad.isfinite().all() for p in model.scorer.parameters())


def test_the_rotation_head_learns_to_tell_the_turn():
    data = images(12) // 4
    data[:, :, :8] += 150
    run = trainer("rotation_head", frozen=True, epochs=15, data=data, augment=TRAIN["augment"])
    assert run.run().history[-1]["val_identity_rate"] == 1.0


def test_a_backbone_without_named_stages_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, CLASSES))
    backbone = Backbone(network, SIZE, [0.5], [0.5])
    with pytest.raises(UserError, match="stages"):
        build_model(recipe(), "rotation_head", "C4", ImageKind(1, CLASSES), backbone)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", ["lc", "prlc", "prlc_classwise", "optc", "optc_noprior"])
def test_a_step_of_training_passes_the_canonicalizer_once(method, frozen, monkeypatch):
    """Whatever its losses need: a second pass would cost as much, and move batch norms twice."""
    scorer = {"name": "staged_cnn", "width": 4, "stages": 1, "input_size": 16}
    settings, kind = {**recipe(), "scorer": scorer}, ImageKind(1, CLASSES)
    model = build_model(settings, method, "C4", kind, adapted("vanilla").backbone)
    data = LabelledImages(images(), torch.arange(12) % CLASSES)
    fitted = Trainer(
        model, get_method(method), settings, data, data,
        seed=0, frozen=frozen, state_path=None, digest="d",
    )  # fmt: skip
    passes, computed = [], PoseScorer.computed
    monkeypatch.setattr(PoseScorer, "computed", lambda *a: passes.append(1) or computed(*a))
    model.train()
    assert torch.isfinite(fitted._step(torch.arange(8))).all()
    assert len(passes) == 1


def test_lower_precision_leaves_every_weight_its_gradient():
    """A pass without gradients, in the same autocast, must not keep weights that have none."""
    fitted = trainer("rotation_head", amp="bf16")
    fitted.model.train()
    loss, _ = fitted._loss(torch.arange(8))
    loss.backward()
    assert all(p.grad is not None for p in fitted.model.backbone.parameters())


def artifacts_left(weight):
    """How far resampling moves the vectors of a scorer that was taught with that weight."""
    fitted = trainer("optc_artifact", "C8", frozen=True, artifact_weight=weight, epochs=4)
    fitted.run()
    scorer, x = fitted.model.scorer.eval(), images().float() / 255
    torch.manual_seed(0)
    with torch.no_grad():
        return artifact(scorer.embed(x), scorer.embed_returned(x))


def test_the_artifact_loss_makes_vectors_blind_to_resampling():
    assert artifacts_left(10.0) < 0.5 * artifacts_left(0.0)


@pytest.mark.parametrize("group", ["C4", "C8"])
@pytest.mark.parametrize("method", [*UNLEARNT, "optimised", "optc_resnet", "distil_prior"])
def test_outputs_are_the_same_in_every_quarter_turn_to_the_last_bit(method, group):
    model = adapted(method, group).eval()
    x = torch.rand(12, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    halves = torch.maximum(x, torch.rot90(x, 2, (-2, -1)))
    ring = torch.stack([torch.rot90(halves, k, (-2, -1)) for k in range(4)]).amax(0)
    ties = torch.cat([halves[:4], ring[:4], torch.full((1, 1, SIZE, SIZE), 0.3), 0 * x[:1]])
    with torch.no_grad():
        for batch in (x, ties):
            reference = model(batch)
            assert reference.logits.isfinite().all()
            for k in range(1, 4):
                turned = model(torch.rot90(batch, k, (-2, -1)))
                assert torch.equal(turned.logits, reference.logits)
        chosen = model(x).chosen
        assert len(chosen.unique()) > 1 or method in ("distil_prior", "frozen_canonicalizer")


def blob(degrees, side=65):
    """A bright spot off the centre, at an angle (counter-clockwise from the right)."""
    axis = torch.arange(side) - (side - 1) / 2
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    x, y = axis[None, :] - 16 * angle.cos(), axis[:, None] + 16 * angle.sin()
    return torch.exp(-(x**2 + y**2) / 50)[None, None]


@pytest.mark.parametrize("degrees", [90, 130, 180, 225, 300, 8])
def test_frames_find_the_angle_that_is_there(degrees):
    """Of a spot with a fainter one opposite; the fainter one is the longer tail of the two."""
    x = blob(degrees) + 0.6 * blob(degrees + 180)
    expected = round((degrees - 90) / 45) % 8
    assert int(adapted("moment_frame", "C8").eval().scorer(x).argmax()) == expected
    assert int(adapted("pca_frame", "C8").eval().scorer(x).argmax()) == (expected + 4) % 8


@pytest.mark.parametrize("method", UNLEARNT)
def test_what_learns_nothing_trains_the_backbone_alone(method):
    run = trainer(method)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    added = [p for p in run.model.scorer.parameters() if p.requires_grad]
    assert not added and not run.model.train().scorer.training
    run.run()
    after = run.model.state_dict()
    for key in before:
        if key.startswith("scorer"):
            assert torch.equal(before[key], after[key])
    assert any(not torch.equal(before[key], after[key]) for key in before)
    still = trainer(method, frozen=True)
    assert build_optimizer(still.model, TRAIN, frozen=True) is None
    assert still.run().history == []


def test_the_fixed_energy_is_the_same_in_every_run():
    first = build_scorer("fixed_energy", CyclicGroup(4), 1)
    torch.manual_seed(99)
    second = build_scorer("fixed_energy", CyclicGroup(4), 1)
    other = build_scorer("fixed_energy", CyclicGroup(4), 1, seed=1)
    x = torch.rand(4, 1, SIZE, SIZE)
    assert torch.equal(first(x), second(x)) and not torch.equal(first(x), other(x))
    bright = first(x + 0.7)  # brightness does not decide
    torch.testing.assert_close(bright, first(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_trains_and_answers(method):
    entry = get_method(method)
    run = trainer(entry.train_as or method, "C4" if entry.uses_group else "C1", epochs=1)
    row = run.run().history[-1]
    assert row["train_loss"] > 0
    assert (row["prior_loss"] is None) == (get_method(entry.train_as or method).prior is None)


def test_lps_draws_as_many_poses_as_the_study_says():
    torch.manual_seed(0)
    for samples, passes in ((None, 10), (3, 3)):
        made = recipe()
        made["evaluate"]["samples"] = samples
        backbone = adapted("vanilla", "C1").backbone
        model = build_model(made, "lps", "C4", ImageKind(1, CLASSES), backbone).eval()
        assert isinstance(model, Symmetrized) and model.samples == passes


STUDY = {
    "study": "relatives_test", "datasets": ["digits"], "methods": ["prlc"],
    "backbones": {"resnet_small": {"weights": "pretrain"}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": ["prlc", "top_3"], "groups": ["C2"]}, r"methods.top_3: C2 has fewer"),
        ({"methods": ["top_2"]}, "prlc's checkpoints"),
        (
            {"methods": ["distil_prior"], "backbones": {"resnet_small": {"weights": "scratch"}}},
            "nothing to distil",
        ),
        ({"train": {"distil_temperature": 0}}, "distil_temperature: 0"),
        ({"evaluate": {"samples": 0}}, "evaluate.samples: 0"),
        (
            {"train": {"task_weight": 0}, "methods": ["lc"]},
            r"train.task_weight: 0, but \w+ has no prior",
        ),
        (
            {"train": {"task_weight": 0}, "methods": ["lc"], "regimes": ["frozen"]},
            r"train.task_weight: 0, but \w+ has no prior",
        ),
        ({"train": {"views_a_step": 1}}, "views_a_step: 1"),
        ({"train": {"quarter_views": 1}}, "quarter_views: 1"),
        ({"train": {"teacher_weight": 1.5}}, "teacher_weight: 1.5"),
        (
            {
                "train": {"teacher_weight": 0.5},
                "backbones": {"resnet_small": {"weights": "scratch"}},
                "methods": ["lc"],
            },
            "teacher_weight: above 0, but scratch weights do not know",
        ),
    ],
)
def test_mistakes_are_named_before_work_starts(change, said):
    with pytest.raises(UserError, match=said):
        load_study(STUDY | change)


def test_the_study_of_the_relatives_holds_them_all():
    study = load_study(REPOSITORY / "config" / "relatives.yaml")
    methods = set(study.config["methods"])
    # the class-wise prior's study is that of frozen networks
    twins = re.compile(
        r"optc_(resnet|wrn).*|top_[34]|moment_frame|optimised|prlc_classwise(_top_.)?|"
        "self_canonicalizer|.*_mirrored"
    )
    assert set(METHODS) - methods <= {name for name in METHODS if twins.fullmatch(name)}
    assert {run.group for run in study.runs()} == {"C1", "C4", "C8"}


def test_the_worked_example_is_what_its_document_says(tmp_path):
    text = (REPOSITORY / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "corner_methods.py").write_text(code, encoding="utf-8")
    assert "EQADAPT_PLUGINS=corner_methods" in text
    program = textwrap.dedent(
        """
        import torch
        from eqadapt.adaptation import ImageKind, build_backbone, build_model
        from eqadapt.study import load_study

        study = load_study({
            "study": "mine", "datasets": ["digits"], "groups": ["C4"], "seeds": [0],
            "methods": {"vanilla": None, "corner": {"scorer": {"name": "corner", "size": 6}}},
            "backbones": ["resnet_small"],
        })
        (run,) = [run for run in study.trained_runs() if run.method == "corner"]
        recipe = study.recipe(run)
        kind = ImageKind(1, 10)
        model = build_model(recipe, run.method, run.group, kind, build_backbone(recipe, kind))
        assert model.scorer.network.size == 6
        x = torch.rand(4, 1, 32, 32)
        output = model.eval()(x)
        turned = model(torch.rot90(x, 1, (-2, -1)))
        assert torch.equal(output.logits, turned.logits)
        assert torch.equal((output.chosen + 1) % 4, turned.chosen)
        print(run.stem, tuple(output.logits.shape))
        """
    )
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "PYTHONPATH": str(tmp_path), "EQADAPT_PLUGINS": "corner_methods",
            "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "digits-resnet_small-joint-corner-C4-seed0 (4, 10)" in found.stdout, found.stderr
    built_in = """
from eqadapt.groups import CyclicGroup
from eqadapt.scorers import build_scorer
from eqadapt.study import load_study

if first == "study":
    load_study({
        "study": "mine", "datasets": ["digits"], "groups": ["C4"], "backbones": ["resnet_small"],
        "methods": ["prlc"], "scorer": {"name": "corner", "size": 6},
    })
print(build_scorer("corner", CyclicGroup(4), 1, size=6).size)
"""
    for first in ("study", "scorer"):  # a method of the project's own, with the module's scorer
        found = subprocess.run(
            [sys.executable, "-c", f"first = {first!r}\n{built_in}"],
            env={
                "PYTHONPATH": str(tmp_path), "EQADAPT_PLUGINS": "corner_methods",
                "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
            },
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert found.stdout == "6\n", found.stderr


def test_a_network_of_ones_own_is_a_backbone_as_its_document_says(tmp_path):
    text = (REPOSITORY / "docs" / "your_own_study.md").read_text(encoding="utf-8")
    (code,) = re.findall(
        r"```python\n(from timm.models import register_model.*?)```", text, re.DOTALL
    )
    (tmp_path / "my_networks.py").write_text(code, encoding="utf-8")
    assert "EQADAPT_PLUGINS=my_networks" in text
    program = textwrap.dedent(
        """
        import torch
        from eqadapt.adaptation import ImageKind, build_backbone, build_model
        from eqadapt.errors import UserError
        from eqadapt.study import load_study

        def study(methods, **options):
            return load_study({
                "study": "mine", "datasets": ["digits"], "groups": ["C4"], "seeds": [0],
                "methods": methods,
                "backbones": {"mine": {"model": "two_convolutions", "options": options}},
            })

        mine = study(["prlc", "lambda_equitune"], width=6)
        kind = ImageKind(1, 10)
        for run in mine.trained_runs():
            recipe = mine.recipe(run)
            backbone = build_backbone(recipe, kind)
            assert backbone.network[0].out_channels == 6
            try:
                model = build_model(recipe, run.method, run.group, kind, backbone).eval()
            except UserError as error:
                print(run.method, "|", error)
                continue
            x = torch.rand(4, 1, 32, 32)
            assert torch.equal(model(x).logits, model(torch.rot90(x, 1, (-2, -1))).logits)
            print(run.method, tuple(model(x).logits.shape))
        (run,) = study(["vanilla"], depth=3).trained_runs()
        try:
            build_backbone(study(["vanilla"], depth=3).recipe(run), kind)
        except UserError as error:
            print(error)
        """
    )
    environment = {
        "PYTHONPATH": str(tmp_path), "EQADAPT_PLUGINS": "my_networks",
        "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def output(**changed):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**environment, **changed}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    found = output()
    assert "prlc (4, 10)" in found, found
    assert "lambda_equitune | Sequential has no num_features" in found
    assert "two_convolutions takes no option 'depth'" in found
    found = output(EQADAPT_PLUGINS="")
    assert "unknown backbone 'two_convolutions'" in found and "EQADAPT_PLUGINS" in found
