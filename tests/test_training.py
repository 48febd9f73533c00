"""Training: a killed and resumed run equals one that was not; bad losses stop; the prior works."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eqadapt import checkpoint
from eqadapt.adaptation import ImageScorer, build_action
from eqadapt.backbones import Backbone
from eqadapt.distillation import pose_targets
from eqadapt.errors import NotFinite, UserError
from eqadapt.evaluation import PassCounter, orbit_accuracy
from eqadapt.losses import classwise_prior_loss, prior_loss
from eqadapt.methods import get_method
from eqadapt.scorers import build_scorer
from eqadapt.symmetrize import Symmetrized
from eqadapt.tasks.classification import ImagePipeline
from eqadapt.training import LabelledImages, Trainer, learning_rate_factor, prior_factor
from eqadapt.view_scorers import VIEW_SCORERS, build_view_scorer

SIZE = 12


def make_recipe(**train):
    options = {
        "epochs": 4, "patience": None, "batch_size": 16, "optimizer": "adamw", "lr": 1e-2,
        "scorer_lr": 1e-2, "weight_decay": 0.01, "scorer_weight_decay": 0.0, "momentum": 0.9,
        "schedule": "cosine", "warmup": 0.1, "prior_weight": 1.0, "contrast_weight": 0.1,
        "task_weight": 1.0,
        "label_smoothing": 0.0, "grad_clip": 1.0, "amp": "none", "channels_last": False,
        "compile": False, "augment": {"crop_padding": 1, "flip": False, "jitter_degrees": 3.0},
    }  # fmt: skip
    image = {
        "size": SIZE, "backbone_size": None, "interpolation": "bilinear", "padding": "border",
        "mask": "none", "mean": None, "std": None, "upsampling": "bicubic",
    }  # fmt: skip
    return {"image": image, "train": {**options, **train}, "evaluate": {"batch_size": 32}}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(SIZE * SIZE, 8), nn.ReLU(), nn.Dropout(0.3)
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x))


class ViewScorer(nn.Module):
    def __init__(self, action):
        super().__init__()
        self.action = action
        self.score = nn.Sequential(
            nn.Flatten(), nn.Linear(SIZE * SIZE, 8), nn.ReLU(), nn.Linear(8, 1)
        )

    def forward(self, x):
        return self.score(self.action.orbit(x).flatten(0, 1)).view(len(x), -1)


def upright_images(count=96, seed=0):
    """Three classes; a bright top row tells which way is up."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = torch.randint(0, 60, (count, 1, SIZE, SIZE), generator=generator)
    images[:, :, :2] += 150
    for row, label in enumerate(labels.tolist()):
        images[row, 0, 6 + label, 3:9] += 120
    return LabelledImages(images.to(torch.uint8), labels)


def make_trainer(method="prlc", seed=0, state=None, frozen=False, group="C4", **train):
    recipe = make_recipe(**train)
    torch.manual_seed(seed)
    backbone = Backbone(Network(), SIZE, [0.5], [0.5])
    entry = get_method(method)
    action = build_action(recipe, group if entry.uses_group else "C1")
    looks_at_logits = entry.scorer in VIEW_SCORERS
    scorer = ViewScorer(action) if entry.scorer and not looks_at_logits else None
    if scorer is not None and entry.prior == "classwise":
        network = build_scorer(
            "staged_cnn", action.group, 1, width=4, stages=1, input_size=SIZE, classes=3
        )
        scorer = ImageScorer(network, backbone.mean, backbone.std)
    view_scorer = build_view_scorer(entry.scorer, 8) if looks_at_logits else None
    model = Symmetrized(backbone, action, entry.selection, scorer, view_scorer)
    data, validation = upright_images(), upright_images(32, seed=1)
    return Trainer(
        model,
        entry,
        recipe,
        data,
        validation,
        seed=seed,
        frozen=frozen,
        state_path=state,
        digest="d",
    )


def weights(trainer):
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


def weights_after(trainer):
    trainer.run()
    return weights(trainer)


def same(left, right):
    return all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize(
    ("optimizer", "scorer"), [("adamw", "same"), ("sgd", "same"), ("adamw", "muon")]
)
def test_a_run_cut_after_any_epoch_ends_the_same(tmp_path, optimizer, scorer):
    options = {"optimizer": optimizer, "scorer_optimizer": scorer}
    whole = make_trainer(**options)
    history = whole.run().history
    for cut in (1, 3):
        state = tmp_path / f"{cut}.safetensors"

        class Cut(Exception):
            pass

        def stop(row, cut=cut):
            if row["epoch"] == cut - 1:
                raise Cut

        first = make_trainer(state=state, **options)
        first.report = stop
        with pytest.raises(Cut):
            first.run()
        second = make_trainer(state=state, **options)
        resumed = second.run().history
        assert same(weights(whole), weights(second))
        for a, b in zip(history, resumed, strict=True):
            assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_a_killed_process_resumes_to_the_same_bytes(tmp_path):
    program = textwrap.dedent(
        """
        import os, signal, sys
        sys.path.insert(0, sys.argv[1])
        import test_training as t
        from eqadapt import checkpoint
        from pathlib import Path
        import torch
        torch.set_num_threads(1)
        trainer = t.make_trainer(state=Path(sys.argv[2]))
        if sys.argv[4] == "kill":
            steps = []
            step = trainer._step
            def dying(rows):
                steps.append(1)
                if len(steps) == 15:  # in the middle of the third epoch
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(rows)
            trainer._step = dying
        trainer.run()
        checkpoint.save(sys.argv[3], trainer.model.state_dict(), {})
        """
    )
    here = str(Path(__file__).parent)

    def run(state, out, mode):
        command = [sys.executable, "-c", program, here, str(state), str(out), mode]
        return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)

    out = [tmp_path / f"{name}.safetensors" for name in ("whole", "resumed")]
    assert run(tmp_path / "a.safetensors", out[0], "go").returncode == 0
    assert run(tmp_path / "b.safetensors", out[1], "kill").returncode == -signal.SIGKILL
    assert (tmp_path / "b.safetensors").is_file() and not out[1].exists()
    assert run(tmp_path / "b.safetensors", out[1], "go").returncode == 0
    assert out[0].read_bytes() == out[1].read_bytes()


def test_a_truncated_or_foreign_state_is_not_resumed(tmp_path, capsys):
    reference = make_trainer()
    reference.run()
    state = tmp_path / "state.safetensors"
    state.write_bytes(b"half a file")
    trainer = make_trainer(state=state)
    trainer.run()
    assert same(weights(reference), weights(trainer))
    other = make_trainer(state=state, lr=3e-3)
    other.digest = "another recipe"
    assert len(other.run().history) == 4
    assert "starts anew" in capsys.readouterr().out
    assert not same(weights(trainer), weights(other))


def test_the_prior_finds_the_pose():
    trainer = make_trainer("prlc", epochs=12, prior_weight=10.0)
    last = trainer.run().history[-1]
    assert last["val_identity_rate"] > 0.95
    assert last["val_acc"] == last["val_cn_avg"] > 0.6  # C4 is exact
    rotated = make_trainer("prlc_rotated", epochs=12, prior_weight=10.0).run().history[-1]
    assert rotated["val_identity_rate"] > 0.95


def test_a_frozen_backbone_is_untouched_and_trained_by_the_prior_alone():
    trainer = make_trainer("prlc", frozen=True, epochs=12)
    before = {k: v.clone() for k, v in trainer.model.backbone.state_dict().items()}
    result = trainer.run()
    assert same(before, trainer.model.backbone.state_dict())
    assert result.history[-1]["task_loss"] is None
    assert result.history[-1]["val_identity_rate"] > 0.95
    vanilla = make_trainer("vanilla", frozen=True)
    assert vanilla.run().history == []


@pytest.mark.parametrize("frozen", [True, False])
def test_the_class_wise_prior_finds_pose_and_class(frozen):
    trainer = make_trainer(
        "prlc_classwise", epochs=20, frozen=frozen, prior_weight=10.0, scorer_lr=2e-2
    )
    last = trainer.run().history[-1]
    assert last["val_identity_rate"] > 0.9
    assert (last["task_loss"] is None) == frozen
    images, labels = trainer.validation.images / 255, trainer.validation.labels
    with torch.no_grad():
        pairs = trainer.model.scorer.pairs(images)
        turned = trainer.model.scorer.pairs(torch.rot90(images, 1, (-2, -1)))
    assert (pairs[:, 0].argmax(1) == labels).float().mean() > 0.8
    assert torch.allclose(turned, pairs.roll(1, 1), atol=1e-4)


def test_a_backbone_learns_to_be_its_own_canonicalizer():
    untrained = make_trainer("self_canonicalizer", epochs=1, lr=0.0).run().history[-1]
    trainer = make_trainer("self_canonicalizer", epochs=20, lr=2e-2)
    last = trainer.run().history[-1]
    assert untrained["val_identity_rate"] < 0.6
    assert last["val_identity_rate"] > 0.9
    assert last["val_acc"] == last["val_cn_avg"] > 0.6  # C4 only moves pixels
    assert last["train_loss"] == pytest.approx(last["task_loss"] + last["prior_loss"], rel=1e-5)


def test_frozen_parts_are_left_in_evaluation_mode():
    """Else the running statistics of a frozen network drift in a training loop of one's own."""
    trainer = make_trainer("prlc")
    model = trainer.model.train()
    model.backbone.eval()
    images, labels = trainer.data.images[:8], trainer.data.labels[:8]
    modes = [part.training for part in model.modules()]
    assert len(set(modes)) == 2
    orbit_accuracy(model, images, labels, trainer.pipeline, 4)
    assert modes == [part.training for part in model.modules()]
    model.backbone.train()
    inner = next(part for part in model.backbone.modules() if not list(part.children()))
    inner.eval()
    modes = [part.training for part in model.backbone.modules()]
    pose_targets(model.backbone, model.action, images, labels, trainer.pipeline.to_act_size, 1.0, 8)
    assert modes == [part.training for part in model.backbone.modules()]


def test_drawn_views_teach_the_same_at_a_lower_cost():
    few = make_trainer("self_canonicalizer", epochs=30, lr=2e-2, views_a_step=2)
    x = few.data.images[:6] / 255
    labels, pose = few.data.labels[:6], torch.tensor([0, 1, 2, 3, 0, 1])
    others = few._other_views(6, slice(None))
    with PassCounter(few.model.backbone) as counter:
        few._loss_of(x, labels, pose, labels, others)
    assert counter.images == 2 * 6
    assert few.run().history[-1]["val_identity_rate"] > 0.9
    whole, all_drawn = (
        make_trainer("self_canonicalizer", epochs=1, views_a_step=count) for count in (None, 4)
    )
    assert same(weights_after(whole), weights_after(all_drawn))
    other = make_trainer("prlc", epochs=1, views_a_step=2)  # nothing to draw from
    assert same(weights_after(other), weights_after(make_trainer("prlc", epochs=1)))


def test_quarter_turns_are_drawn_as_often_as_is_said():
    options = {"group": "C8", "views_a_step": 2}
    drawn = make_trainer("self_canonicalizer", **options)._other_views(8_000, slice(None))
    assert torch.bincount(drawn.flatten(), minlength=8)[1:].min() > 900  # 1,143 expected
    often = make_trainer("self_canonicalizer", quarter_views=0.8, **options)
    counts = torch.bincount(often._other_views(8_000, slice(None)).flatten(), minlength=8) / 8_000
    wanted = torch.tensor([0.0] + [0.05, 0.8 / 3] * 3 + [0.05])
    assert torch.allclose(counts, wanted, atol=0.02)
    several = make_trainer("self_canonicalizer", quarter_views=0.8, group="C8", views_a_step=6)
    rows = several._other_views(50, slice(None)).sort(dim=1).values
    assert (rows.diff(dim=1) > 0).all() and rows.min() >= 1 and rows.max() <= 7  # no repeats
    # Of C4 all others are such turns: nothing is left to choose.
    one, other = (
        make_trainer("self_canonicalizer", epochs=1, views_a_step=2, quarter_views=share)
        for share in (None, 0.8)
    )
    assert same(weights_after(one), weights_after(other))


def test_the_prior_of_a_mixture_is_that_of_its_own_pairs():
    trainer = make_trainer("self_canonicalizer", prior_weight=3.0)
    x = trainer.data.images[:6] / 255
    labels, pose = trainer.data.labels[:6], torch.tensor([0, 1, 2, 3, 0, 1])
    with PassCounter(trainer.model.backbone) as counter:
        torch.manual_seed(0)  # of the dropout
        loss, (task, prior, _) = trainer._loss_of(x, labels, pose, labels)
    assert counter.images == 4 * 6  # one pass a view: nothing is passed again for the prior
    torch.manual_seed(0)
    output = trainer.model(x)
    assert torch.allclose(prior, classwise_prior_loss(output.pairs, pose, labels))
    assert torch.allclose(task, F.nll_loss(output.logits, labels))
    assert torch.allclose(loss, task + 3.0 * prior)


def test_the_class_wise_loss_is_the_prior_and_the_class_in_the_true_pose():
    pairs = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    pose, labels = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    in_pose = pairs[torch.arange(6), pose]
    expected = prior_loss(pairs.logsumexp(2), pose) + F.cross_entropy(in_pose, labels)
    assert torch.allclose(classwise_prior_loss(pairs, pose, labels), expected)


def test_the_class_wise_loss_takes_probabilities_of_the_classes():
    pairs = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    pose, labels = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    hard = F.one_hot(labels, 3).float()
    one, other = (classwise_prior_loss(pairs, pose, classes) for classes in (labels, hard))
    assert torch.allclose(one, other)
    uniform = classwise_prior_loss(pairs, pose, torch.full((6, 3), 1 / 3))
    every = [classwise_prior_loss(pairs, pose, torch.full((6,), c)) for c in range(3)]
    assert torch.allclose(uniform, torch.stack(every).mean())


@pytest.mark.parametrize("method", ["vanilla", "prlc", "self_canonicalizer"])
def test_a_teacher_is_the_backbone_as_training_starts(tmp_path, method):
    options = {"teacher_weight": 1.0, "teacher_temperature": 1.0, "epochs": 3}
    trainer = make_trainer(method, state=tmp_path / "state", **options)
    backbone = copy.deepcopy(trainer.model.backbone).eval()
    x, labels = trainer.data.images[:8] / 255, trainer.data.labels[:8]
    with torch.no_grad():
        expected = backbone(x).softmax(1)
    assert torch.allclose(trainer._taught(x, labels), expected)
    whole = weights_after(trainer)
    again = make_trainer(method, state=tmp_path / "state", **options)
    assert same(weights_after(again), whole)  # from the state, at its end
    assert torch.allclose(again._taught(x, labels), expected)
    half = make_trainer(method, teacher_weight=0.5, teacher_temperature=1.0)
    assert torch.allclose(half._taught(x, labels), (expected + F.one_hot(labels, 3)) / 2)
    taught_by_labels = make_trainer(method, epochs=3)
    assert taught_by_labels._taught(x, labels) is labels
    assert not same(weights_after(taught_by_labels), whole)


def test_patience_keeps_the_best_epoch():
    trainer = make_trainer(patience=50, epochs=6)
    result = trainer.run()
    scores = [row["val_cn_avg"] for row in result.history]
    assert result.best_epoch == scores.index(max(scores))


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_state(tmp_path):
    state = tmp_path / "state.safetensors"
    make_trainer(state=state, epochs=1).run()
    good = state.read_bytes()
    trainer = make_trainer(state=state, epochs=3)
    trainer.train_options["task_weight"] = float("nan")
    with pytest.raises(UserError, match="not finite in epoch 1; the state of epoch 0 is kept"):
        trainer.run()
    assert state.read_bytes() == good
    trainer = make_trainer(state=tmp_path / "none", epochs=3, validate_every=2)
    trainer.train_options["task_weight"] = float("nan")
    with pytest.raises(UserError, match="not finite in epoch 0; no state is kept"):
        trainer.run()


def test_poses_that_are_not_finite_stop_it_too():
    """The backbone's outputs are finite in whatever pose an argmax over NaN leaves."""
    trainer = make_trainer("prlc")
    with torch.no_grad():
        for parameter in trainer.model.scorer.parameters():
            parameter.fill_(torch.nan)
    images = torch.zeros(4, *trainer.data.images.shape[1:], dtype=torch.uint8)
    labels = torch.zeros(4, dtype=torch.long)
    with pytest.raises(NotFinite):
        orbit_accuracy(trainer.model, images, labels, trainer.pipeline, 4)


def test_training_stops_after_as_many_epochs_without_a_better_score_as_the_patience_says():
    trainer = make_trainer(patience=2, epochs=50)
    trainer._validate = lambda: {"val_acc": 0.5, "val_cn_avg": 0.5, "val_identity_rate": None}
    result = trainer.run()
    assert (result.best_epoch, len(result.history)) == (0, 3)


def test_a_single_image_that_a_norm_cannot_take_is_told_with_its_setting():
    trainer = make_trainer(batch_size=1)
    trainer.model.backbone.network.body.append(nn.BatchNorm1d(8))
    with pytest.raises(UserError, match="no statistics of a single image") as told:
        trainer.run()
    assert told.value.where == "train.batch_size"


def test_images_turned_by_chance_end_as_those_of_the_action_do():
    images = torch.full((16, 1, SIZE, SIZE), 255, dtype=torch.uint8)
    turned = {}
    for padding in ("border", "zeros"):
        recipe = make_recipe(augment={"crop_padding": 0, "flip": False, "jitter_degrees": 45.0})
        recipe["image"]["padding"] = padding
        turned[padding], _ = ImagePipeline.from_recipe(recipe).augmented(images)
    assert turned["border"].min() > 0.999 and turned["zeros"].min() < 0.5


def test_schedules_start_warm_and_end_low():
    for schedule in ("cosine", "step"):
        factors = [learning_rate_factor(s, 100, schedule, 0.1) for s in range(100)]
        assert factors[0] < 0.2 and max(factors) <= 1.0 and factors[-1] < 0.01
    assert learning_rate_factor(99, 100, "constant", 0.0) == 1.0


def test_the_prior_can_come_and_go():
    assert [prior_factor(share, "rising") for share in (0.0, 0.25)] == [0.0, 0.25]
    assert [prior_factor(share, "falling") for share in (0.0, 0.25)] == [1.0, 0.75]
    assert prior_factor(0.3, "constant") == 1.0
    # With neither task nor prior nothing learns; a prior that comes later finds poses all the same.
    kept = make_trainer(task_weight=0.0, prior_schedule="constant", epochs=12).run().history
    rising = make_trainer(task_weight=0.0, prior_schedule="rising", epochs=12).run().history
    assert rising[0]["train_loss"] < 0.2 * kept[0]["train_loss"]
    assert rising[-1]["prior_loss"] < 0.5 * rising[0]["prior_loss"]


def test_checkpoints_refuse_what_is_not_whole(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.save(path, {"w": torch.arange(5.0)}, {"epoch": 3})
    tensors, meta = checkpoint.load(path)
    assert torch.equal(tensors["w"], torch.arange(5.0)) and meta == {"epoch": 3}
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="not a whole checkpoint"):
        checkpoint.load(path)
    with pytest.raises(UserError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors")


def test_validating_more_rarely_changes_nothing_but_what_is_known():
    often, rarely = make_trainer(epochs=5), make_trainer(epochs=5, validate_every=2)
    every_row, some_rows = often.run().history, rarely.run().history
    assert same(weights(often), weights(rarely))
    assert [row["epoch"] for row in some_rows if "val_acc" in row] == [1, 3, 4]
    for a, b in zip(every_row, some_rows, strict=True):
        assert {**a, **b, "seconds": 0} == {**a, "seconds": 0}


@pytest.mark.parametrize("setting", ["amp", "scorer_amp"])
def test_bfloat16_changes_a_run_only_on_a_processor_that_is_fast_in_it(monkeypatch, setting):
    def after(vectors, value):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
        return weights_after(make_trainer("prlc_classwise", epochs=1, **{setting: value}))

    plain = after("AVX2", "none")
    assert same(after("AVX2", "bf16"), plain)
    assert not same(after("AVX512", "bf16"), plain)


def test_patience_waits_for_epochs_that_are_validated():
    """With fewer epochs of patience than lie between two validations, none would be made."""
    trainer = make_trainer(epochs=12, patience=1, validate_every=5)
    result = trainer.run()
    validated = [row["epoch"] for row in result.history if "val_acc" in row]
    assert validated[0] == 4 and result.best_epoch in validated
    assert len(result.history) in (10, 12)  # stopped at the second validation, or not at all
