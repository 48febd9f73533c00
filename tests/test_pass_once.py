"""Evaluation that passes no image twice: the same answers from fewer passes."""

from pathlib import Path

import pytest
import torch
from project_fixtures import prepare_digits
from test_adaptation import SIZE, Network, adapted, images, predict

from eqadapt import pass_once
from eqadapt.adaptation import ImageScorer
from eqadapt.evaluation import PassCounter
from eqadapt.pass_once import PassOnce, passing_once, row_keys
from eqadapt.runs import StudyFiles, StudyRunner, predictions_meta
from eqadapt.scorers import build_scorer
from eqadapt.scorers.classifier import EveryView
from eqadapt.study import load_study
from eqadapt.symmetrize import Symmetrized

WHOLE = ["equitune", "lambda_equitune", "equizero", "self_canonicalizer", "weighted_frame"]


def pictures(count=6):
    return torch.rand(count, 1, SIZE, SIZE)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8]
)
def test_keys_are_of_the_bytes_alone(dtype):
    x = (255 * pictures()).to(dtype)
    keys = row_keys(x)
    assert keys.dtype == torch.int64 and len(set(keys.tolist())) == 6
    assert torch.equal(row_keys(x.flip(0)), keys.flip(0))
    assert torch.equal(row_keys(x.transpose(-2, -1)), row_keys(x.transpose(-2, -1).clone()))
    changed = x.clone()
    changed[2, 0, 3, 4] += 1
    assert (row_keys(changed) != keys).nonzero().flatten().tolist() == [2]


@pytest.mark.parametrize("with_features", [False, True])
def test_outputs_are_the_backbones_and_only_new_images_are_passed(with_features):
    backbone = adapted("equitune").backbone
    memory, x = PassOnce(backbone), pictures()
    expected = backbone(x, with_features=with_features)
    with PassCounter(memory) as counter:
        first = memory(x[:4], with_features=with_features)
        again = memory(x[torch.tensor([5, 3, 0, 4, 3])], with_features=with_features)
    assert counter.images == 6
    rows = torch.tensor([0, 1, 2, 3, 5, 3, 0, 4, 3])
    if not with_features:
        first, again, expected = (first,), (again,), (expected,)
    for before, after, whole in zip(first, again, expected):
        torch.testing.assert_close(torch.cat([before, after]), whole[rows])
    memory.forget()
    with PassCounter(memory) as counter:
        memory(x)
    assert counter.images == 6


def test_what_is_remembered_is_not_what_others_hold():
    memory, x = PassOnce(adapted("equitune").backbone), pictures()
    kept = x.clone()
    first = memory(x)
    expected = first.clone()
    first.zero_()
    x.zero_()
    with PassCounter(memory) as counter:
        assert torch.equal(memory(kept), expected)
    assert counter.images == 0


def test_memory_is_moved_seldom_however_small_the_steps():
    """Views come a few at a time; moving all earlier ones at every step took half of the time."""
    rows = pass_once._Rows(torch.zeros(1, 3))
    places = set()
    for step in range(1, 500):
        rows.append(torch.full((1, 3), float(step)))
        places.add(rows._kept.data_ptr())
    assert len(rows) == 500 and len(places) < 12
    assert torch.equal(rows[torch.arange(500)][:, 0], torch.arange(500.0))


def test_images_that_share_a_key_by_chance_keep_their_own_outputs(monkeypatch):
    monkeypatch.setattr(pass_once, "row_keys", lambda x: torch.zeros(len(x), dtype=torch.long))
    backbone = adapted("equitune").backbone
    memory, x = PassOnce(backbone), pictures()
    for part in (x[:3], x, x[2:].flip(0)):
        torch.testing.assert_close(memory(part), backbone(part))


# Over C8 the views of the quarter turns are eight images, those of the other poses eight more, of
# which one, the image turned by 45 degrees, is known by then.
@pytest.mark.parametrize(("group", "passes", "different"), [("C4", 4, 4), ("C8", 8, 15)])
@pytest.mark.parametrize("method", WHOLE)
def test_views_shared_by_quarter_turns_are_passed_once(
    method, group, passes, different, monkeypatch
):
    model, data, poses = adapted(method, group), images(5), int(group[1:])
    with PassCounter(model.backbone) as counter:
        found = predict(model, method, data, poses=poses, batch=5)
    assert found.passes == passes and counter.images == passes + different * len(data)
    monkeypatch.setattr(Symmetrized, "forward", _forgetful(Symmetrized.forward))
    apart = predict(adapted(method, group), method, data, poses=poses, batch=5)
    assert (apart.prediction == found.prediction).all() and (apart.chosen == found.chosen).all()
    torch.testing.assert_close(torch.tensor(apart.score), torch.tensor(found.score))


@pytest.mark.parametrize(("method", "remembers"), [("vanilla", 0), ("oracle", 1), ("equitune", 1)])
def test_a_plain_network_which_sees_every_pose_anew_remembers_nothing(
    method, remembers, monkeypatch
):
    kept, forward = [], PassOnce.forward
    monkeypatch.setattr(PassOnce, "forward", lambda *given: kept.append(1) or forward(*given))
    group = "C4" if method == "equitune" else "C1"
    predict(adapted(method, group), method, images(3), poses=4)
    assert bool(kept) == remembers


# The views of the quarter turns are those of one image; the scorer turns what is normalised.
@pytest.mark.parametrize(("group", "different"), [("C4", 8), ("C8", 16)])
def test_a_classifier_that_rates_views_sees_none_of_them_twice(group, different, monkeypatch):
    given, data = adapted("prlc_classwise", group), images(5)
    rater = build_scorer("classifier", given.action.group, 1, input_size=SIZE, classes=4)
    rater.network.fc.weight.data.mul_(1000)  # no near-ties, which would be scored twice
    scorer = ImageScorer(rater, given.backbone.mean, given.backbone.std)
    model = Symmetrized(given.backbone, given.action, "argmax", scorer).eval()
    model.scorer = scorer.export()
    passed = []
    network = next(part for part in model.scorer.modules() if isinstance(part, EveryView)).network
    network.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    views = int(group[1:])  # of the first image, to count the passes
    found = predict(model, "prlc_classwise", data, poses=8, batch=5)
    assert sum(passed) == different * len(data) + views
    passed.clear()
    monkeypatch.setattr(pass_once, "EveryView", type("Other", (), {}))
    apart = predict(model, "prlc_classwise", data, poses=8, batch=5)
    assert sum(passed) == 8 * views * len(data) + views
    assert (apart.prediction == found.prediction).all() and (apart.chosen == found.chosen).all()


def _forgetful(forward):
    def forget_and(self, *inputs, **named):
        if isinstance(self.backbone, PassOnce):
            self.backbone.forget()
        return forward(self, *inputs, **named)

    return forget_and


def test_the_backbone_is_put_back_whatever_happens():
    model = adapted("equitune")
    backbone = model.backbone
    with pytest.raises(RuntimeError), passing_once(model) as (memory,):
        assert model.backbone is memory and memory.size == SIZE
        assert not any(module.training for module in memory.modules())
        raise RuntimeError
    assert model.backbone is backbone and isinstance(backbone.network, Network)


def test_seeds_that_decide_nothing_are_evaluated_once(tmp_path, monkeypatch):
    """Each run has its own predictions; draws, and weights that differ, are never taken over."""
    prepare_digits(tmp_path)
    monkeypatch.chdir(tmp_path)
    study = load_study(
        {
            "study": "frozen",
            "datasets": {"digits": {"limit_train": 20, "limit_test": 10}},
            "backbones": {"resnet_small": {"weights": "pretrain"}},
            "groups": ["C4"],
            "methods": ["vanilla", "equitune", "lps"],
            "regimes": ["frozen"],
            "seeds": [0, 1],
            "image": {"size": 16},
            "scorer": {"inner": "group_cnn", "width": 2, "layers": 2, "input_size": 17},
            "pretrain": {"epochs": 1},
            "train": {"epochs": 0, "batch_size": 20},
            "evaluate": {"poses": "C4", "gallery": 1},
            "device": "cpu",
        }
    )
    files = StudyFiles(Path("results/frozen"), Path("scratch/frozen"), Path("data/prepared"))
    runner, evaluated = StudyRunner(study, files, lambda _line: None), []
    runner.pretrain("digits", "resnet_small")
    whole = StudyRunner._evaluate

    def told(self, run, model):
        evaluated.append((run.method, run.seed))
        return whole(self, run, model)

    monkeypatch.setattr(StudyRunner, "_evaluate", told)
    for run in study.runs():
        runner.train(run)
    for run in study.runs():
        runner.predict(run)
    assert evaluated == [("vanilla", 0), ("equitune", 0), ("lps", 0), ("lps", 1)]
    assert {predictions_meta(files.predictions(run))["seed"] for run in study.runs()} == {0, 1}
    other = StudyRunner(study, files, lambda _line: None)
    for run in study.runs():
        before = files.predictions(run).read_bytes()
        other.predict(run)
        other._last = None
        assert files.predictions(run).read_bytes() == before
