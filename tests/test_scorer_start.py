"""A run whose canonicalizer begins as that of another study's run."""

from types import SimpleNamespace

import pytest
import torch
import yaml

from eqadapt import checkpoint
from eqadapt.cli import main
from eqadapt.datasets import prepared
from eqadapt.errors import UserError
from eqadapt.runs import StudyFiles, StudyRunner
from eqadapt.study import load_study, merge

FIRST = {
    "study": "first",
    "datasets": {"digits": {"limit_train": 40}},
    "backbones": {"resnet_small": {"weights": "scratch"}},
    "groups": ["C4"],
    "methods": ["vanilla", "prlc"],
    "seeds": [0, 1],
    "image": {"size": 16},
    "scorer": {"inner": "group_cnn", "width": 2, "layers": 2, "input_size": 17},
    "train": {"epochs": 1, "batch_size": 20, "scorer_lr": 0.03},
    "device": "cpu",
}
PATTERN = "results/first/runs/{dataset}-{backbone}-{regime}-{method}-{group}-seed{seed}"
SECOND = merge(
    FIRST,
    {
        "study": "second",
        "train": {"epochs": 0, "scorer_start": f"{PATTERN}/checkpoint.safetensors"},
    },
)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    from project_fixtures import prepare_digits

    folder = tmp_path_factory.mktemp("start")
    prepare_digits(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for study in (FIRST, SECOND):
            path = folder / f"{study['study']}.yaml"
            path.write_text(yaml.safe_dump(study), encoding="utf-8")
            assert main(["train", "--study", path.name]) == 0
    return folder


def scorer_of(project, study, seed):
    run = f"results/{study}/runs/digits-resnet_small-joint-prlc-C4-seed{seed}"
    tensors, _ = checkpoint.load(project / run / "checkpoint.safetensors")
    return checkpoint.without_prefix("scorer", tensors, ".")


def test_progress_on_another_start_is_not_gone_on_with(project, monkeypatch):
    """The bytes of the start count: its metadata are the same when it is trained again."""
    monkeypatch.chdir(project)
    study = load_study(merge(FIRST, {"regimes": ["joint", "frozen"]}))
    files = StudyFiles(*(project / name for name in ("results/first", "scratch", "data/prepared")))
    run = next(run for run in study.trained_runs() if run.regime == "frozen")
    runner = StudyRunner(study, files)
    recipe, model = study.recipe(run), runner.model(run, study.recipe(run))
    before = runner.trainer(run, recipe, model, "x", []).digest
    assert runner.trainer(run, recipe, model, "x", []).digest == before
    path = files.checkpoint(study.start(run))
    tensors, meta = checkpoint.load(path)
    kept = path.read_bytes()
    try:
        checkpoint.save(path, {key: value + 1 for key, value in tensors.items()}, meta)
        assert runner.trainer(run, recipe, model, "x", []).digest != before
    finally:
        path.write_bytes(kept)


def test_progress_of_another_number_of_processes_is_not_gone_on_with(project, monkeypatch):
    monkeypatch.chdir(project)
    study = load_study(FIRST)
    files = StudyFiles(*(project / name for name in ("results/first", "scratch", "data/prepared")))
    run, runner = study.trained_runs()[0], StudyRunner(study, files)
    recipe, model = study.recipe(run), runner.model(run, study.recipe(run))
    alone = runner.trainer(run, recipe, model, "x", []).digest
    monkeypatch.setattr("eqadapt.runs.distributed", SimpleNamespace(size=lambda: 4))
    assert runner.trainer(run, recipe, model, "x", []).digest != alone


def test_a_start_that_was_given_images_normalised_otherwise_is_refused(project, monkeypatch):
    monkeypatch.chdir(project)
    other = load_study(merge(SECOND, {"image": {"mean": [0.1], "std": [0.3]}}))
    files = StudyFiles(*(project / name for name in ("results/x", "scratch/x", "data/prepared")))
    runner = StudyRunner(other, files, lambda _line: None)
    run = next(run for run in other.trained_runs() if run.method == "prlc")
    with pytest.raises(UserError, match=r"mean and standard deviation \[\[0.5\], \[0.5\]\]"):
        runner.train(run)


def test_training_does_not_load_the_test_images(project, monkeypatch):
    monkeypatch.chdir(project)
    loaded = []
    load = prepared.load

    def told(folder, split, **options):
        loaded.append(split)
        return load(folder, split, **options)

    monkeypatch.setattr(prepared, "load", told)
    flags = ["--set", "methods=[vanilla]", "--results", "results/other", "--scratch", "scratch/o"]
    assert main(["train", "--study", "first.yaml", *flags]) == 0
    assert set(loaded) == {"train", "validation"}


def test_each_run_begins_as_the_run_that_the_path_names_for_it(project):
    for seed in (0, 1):
        first, second = scorer_of(project, "first", seed), scorer_of(project, "second", seed)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
    other = scorer_of(project, "second", 0)
    assert not all(torch.equal(second[key], other[key]) for key in other)


def test_methods_without_a_network_that_scores_start_from_nothing():
    study = load_study(SECOND)
    starts = {run.method: study.scorer_start(run) for run in study.trained_runs()}
    assert starts["vanilla"] is None and starts["prlc"].name == "checkpoint.safetensors"


def test_where_a_run_starts_is_part_of_what_it_is():
    plain, started = load_study(FIRST), load_study(SECOND)
    plain = load_study({**FIRST, "train": {**FIRST["train"], "epochs": 0}})
    run = plain.trained_runs()[-1]
    assert plain.recipe_hash(run) != started.recipe_hash(run)


def test_a_missing_or_foreign_checkpoint_is_told_before_training(project, monkeypatch):
    monkeypatch.chdir(project)
    lacking = load_study(merge(SECOND, {"train": {"scorer_start": "gone/{seed}.safetensors"}}))
    said = lacking.missing_sources()
    assert len(said) == 2 and "no such checkpoint: gone/0.safetensors" in said[0]
    foreign = load_study(merge(SECOND, {"scorer": {"width": 4}}))
    files = StudyFiles(*(project / name for name in ("results/x", "scratch/x", "data/prepared")))
    runner = StudyRunner(foreign, files, lambda _line: None)
    run = next(run for run in foreign.trained_runs() if run.method == "prlc")
    with pytest.raises(UserError, match="another architecture"):
        runner.train(run)


VANILLA = "results/first/runs/digits-resnet_small-joint-vanilla-C1-seed{seed}"
THIRD = {
    **FIRST,
    "study": "third",
    "methods": ["prlc_classwise"],
    "scorer": {"name": "classifier", "model": "resnet_small", "input_size": 16},
    "train": {
        **FIRST["train"],
        "scorer_lr": 0,
        "scorer_start": f"{VANILLA}/checkpoint.safetensors",
    },
}


def test_a_classifier_begins_as_a_backbone_and_stays_so_at_rate_zero(project, monkeypatch):
    monkeypatch.chdir(project)
    path = project / "third.yaml"
    path.write_text(yaml.safe_dump(THIRD), encoding="utf-8")
    assert main(["train", "--study", path.name]) == 0
    third = "results/third/runs/digits-resnet_small-joint-prlc_classwise-C4-seed1"
    vanilla, adapted = (
        checkpoint.load(project / folder / "checkpoint.safetensors")[0]
        for folder in (VANILLA.format(seed=1), third)
    )
    began = checkpoint.without_prefix("backbone.network", vanilla, ".")
    stayed = checkpoint.without_prefix("scorer.network.outputs.network", adapted, ".")
    assert began.keys() == stayed.keys()
    assert all(torch.equal(began[key], stayed[key]) for key in began)
    learnt = checkpoint.without_prefix("backbone.network", adapted, ".")
    assert not all(torch.equal(began[key], learnt[key]) for key in began)


def test_a_run_without_a_canonicalizer_is_no_start_for_another_scorer(project, monkeypatch):
    monkeypatch.chdir(project)
    study = load_study(merge(SECOND, {"train": {"scorer_start": THIRD["train"]["scorer_start"]}}))
    files = StudyFiles(*(project / name for name in ("results/x", "scratch/x", "data/prepared")))
    runner = StudyRunner(study, files, lambda _line: None)
    run = next(run for run in study.trained_runs() if run.method == "prlc")
    with pytest.raises(UserError, match="no canonicalizer"):
        runner.train(run)


def test_an_unknown_field_of_the_path_is_a_fault():
    with pytest.raises(UserError, match="scorer_start: unknown field"):
        load_study(merge(SECOND, {"train": {"scorer_start": "{sead}.safetensors"}}))


FOURTH = {
    **FIRST,
    "study": "fourth",
    "methods": ["vanilla", "prlc_classwise", "prlc"],
    "backbones": {"resnet_small": {"weights": "pretrain"}},
    "scorer": {"name": "classifier", "model": "resnet_small", "input_size": 16},
    "regimes": ["frozen"],
    "pretrain": {"epochs": 1},
    "train": {**FIRST["train"], "scorer_lr": 0, "scorer_start": "backbone"},
}


def test_a_classifier_begins_as_the_backbone_that_it_is_for(project, monkeypatch):
    """With its head where both tell the classes; a score alone has a last layer of its own."""
    monkeypatch.chdir(project)
    path = project / "fourth.yaml"
    path.write_text(yaml.safe_dump(FOURTH), encoding="utf-8")
    assert main(["pretrain", "--study", path.name]) == 0
    assert main(["train", "--study", path.name]) == 0
    for method, other in (("prlc_classwise", set()), ("prlc", {"fc.weight", "fc.bias"})):
        run = f"results/fourth/runs/digits-resnet_small-frozen-{method}-C4-seed1"
        tensors, _ = checkpoint.load(project / run / "checkpoint.safetensors")
        backbone = checkpoint.without_prefix("backbone.network", tensors, ".")
        scorer = checkpoint.without_prefix("scorer.network.outputs.network", tensors, ".")
        assert backbone.keys() == scorer.keys()
        assert {k for k in backbone if not torch.equal(backbone[k], scorer[k])} == other


def test_another_network_cannot_begin_as_the_backbone(project, monkeypatch):
    monkeypatch.chdir(project)
    files = StudyFiles(*(project / name for name in ("results/x", "scratch/x", "data/prepared")))
    for scorer, message in (
        ({"name": "paired_cnn", "width": 2}, "the scorer paired_cnn cannot begin"),
        ({"name": "classifier", "model": "vit_small"}, "cannot begin as the backbone resnet_small"),
    ):
        study = load_study({**FOURTH, "scorer": scorer})
        runner = StudyRunner(study, files, lambda _line: None)
        with pytest.raises(UserError, match=message) as told:
            runner.check_scorers(study.trained_runs())
        assert "model: resnet_small" in told.value.fix
