"""Tuning: one budget for all, the validation split alone, and a choice that a study takes."""

import csv
from pathlib import Path

import pytest
import yaml

from eqadapt.cli import main
from eqadapt.errors import UserError
from eqadapt.study import Run, load_study, merge, read_yaml
from eqadapt.tuning import (
    Search,
    Trial,
    as_overrides,
    best,
    best_by_backbone,
    known_trials,
    load_search,
    other_rows,
    untuned,
    with_point,
    write_choice,
    write_trials,
)

STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"limit_train": 40}},
    "backbones": {"resnet_small": {"weights": "scratch"}},
    "groups": ["C4"],
    "methods": ["vanilla", "prlc", "oracle"],
    "seeds": [3, 4],
    "image": {"size": 16},
    "scorer": {"inner": "group_cnn", "width": 2, "layers": 2, "input_size": 17},
    "train": {"epochs": 1, "batch_size": 20},
    "device": "cpu",
}
SPACE = {
    "trials": 3,
    "space": {"train.lr": {"low": 1e-4, "high": 1e-2}},
    "methods": {"prlc": {"scorer.width": [2, 4]}},
}


def search_of(tmp_path, **changes):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(merge(SPACE, changes)), encoding="utf-8")
    return load_search(path, load_study(STUDY))


def test_what_a_search_does_not_plan_stays_in_its_file(tmp_path):
    path = tmp_path / "m.csv"
    run, other = (Run("digits", name, "joint", "m", "C4", 3) for name in ("a", "b"))
    found = {
        "val_acc": 0.5, "val_cn_avg": 0.4, "score": 0.45, "seconds": 1.0, "config_hash": "ab",
        "inputs": "cd",
    }  # fmt: skip
    earlier = [Trial(n, r, {"train.lr": 0.1 * n}, found) for n in (1, 2) for r in (run, other)]
    write_trials(path, earlier)
    before = path.read_text()
    others = other_rows(path, {(1, run.stem)})
    write_trials(path, [Trial(1, run, {"train.lr": 0.1}, found)], others)
    assert path.read_text() == before
    write_trials(
        path, [Trial(1, run, {"scorer.width": 4}, found)], other_rows(path, {(1, run.stem)})
    )
    assert len(known_trials(path)) == 4 and "scorer.width,train.lr" in path.read_text()


def test_every_method_gets_as_many_trials_and_more_go_on_where_fewer_ended(tmp_path):
    search = search_of(tmp_path)
    assert search.seed == 3 and set(search.spaces) == {"vanilla", "prlc"}
    for method in search.spaces:
        points = search.points(method, "resnet_small")
        assert len(points) == 3 and points[0] == {}
        assert len({str(point) for point in points}) == 3
        longer = search_of(tmp_path, trials=9).points(method, "resnet_small")
        assert longer[:3] == points
    assert search.points("vanilla", "resnet_small") != search_of(tmp_path, draw=1).points(
        "vanilla", "resnet_small"
    )
    widths = {
        point["scorer.width"]
        for point in search_of(tmp_path, trials=20).points("prlc", "resnet_small")[1:]
    }
    assert widths == {2, 4}
    rates = [
        point["train.lr"]
        for point in search_of(tmp_path, trials=200).points("vanilla", "resnet_small")[1:]
    ]
    assert 1e-4 <= min(rates) < 2e-4 and 5e-3 < max(rates) <= 1e-2
    assert 60 < sum(rate < 1e-3 for rate in rates) < 140  # as many in each decade


def test_a_grid_that_cannot_fill_the_budget_is_refused():
    grid = {"train.lr": [0.1, 0.2], "train.epochs": [1, 2]}
    points = Search(5, "mean", 0, 0, {"vanilla": grid}).points("vanilla", "resnet_small")
    assert len({str(sorted(p.items())) for p in points}) == 5
    for space, trials in ((grid, 6), ({}, 2)):
        with pytest.raises(UserError, match="the budget would not be the same"):
            Search(trials, "mean", 0, 0, {"vanilla": space}).points("vanilla", "resnet_small")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": {"oracle": {}}}, "methods.oracle: not trained"),
        ({"space": {"evaluate.poses": ["C8"]}}, "evaluate.poses"),
        ({"trials": 0}, "trials"),
        ({"space": {"train.lr": {"low": 0, "high": 1}}}, "low 0, high 1"),
        ({"space": {"train.lr": {"low": 2, "high": 1, "scale": "linear"}}}, "low 2, high 1"),
        ({"backbones": {"vit_small": {}}}, "backbones.vit_small: not in the study"),
        ({"backbones": {"resnet_small": {"train.loss": [1]}}}, "train.loss: searched for no"),
        ({"backbones": {"resnet_small": {"train.lr": {"low": 1, "high": 1}}}}, "low 1, high 1"),
        ({"budget": 3}, "budget"),
    ],
)
def test_faults_of_a_search_are_told(tmp_path, change, said):
    with pytest.raises(UserError, match="not a valid search") as caught:
        search_of(tmp_path, **change)
    assert said in str(caught.value)


def test_a_backbone_may_have_ranges_of_its_own_and_the_same_draws(tmp_path):
    own = {"resnet_small": {"train.lr": {"low": 1e-6, "high": 1e-4}}}
    plain, ranged = search_of(tmp_path), search_of(tmp_path, backbones=own)
    for method in ("vanilla", "prlc"):
        points = ranged.points(method, "resnet_small")
        assert ranged.points(method, "another") == plain.points(method, "resnet_small")
        for lower, higher in zip(points[1:], plain.points(method, "another")[1:], strict=True):
            assert lower["train.lr"] == pytest.approx(higher["train.lr"] / 100, rel=0.01)
            assert {**lower, "train.lr": 0} == {**higher, "train.lr": 0}


def test_a_key_may_be_left_alone_around_a_backbone(tmp_path):
    search = search_of(tmp_path, backbones={"resnet_small": {"train.lr": None}})
    points = search.points("prlc", "resnet_small")
    assert [sorted(point) for point in points] == [[], ["scorer.width"], ["scorer.width"]]
    assert "train.lr" in search.points("prlc", "another")[1]


def test_a_choice_is_not_to_be_laid_over_recipes_that_it_would_mix_with(tmp_path):
    study, search = load_study(STUDY), search_of(tmp_path)
    chosen = {"vanilla": {"resnet_small": ({}, 0.9)}}
    for replaces in (False, True):
        path = tmp_path / "choice.yaml"
        write_choice(path, study, search, chosen, replaces)
        command = "snakemake --configfile" in path.read_text(encoding="utf-8")
        assert command != replaces
        assert ("in the place of the `recipes`" in path.read_text(encoding="utf-8")) == replaces


def test_the_best_recipe_is_best_on_average_and_the_first_of_equals():
    def trial(number, seed, score):
        return Trial(
            number, Run("d", "b", "joint", "m", "C4", seed), {"n": number}, {"score": score}
        )

    trials = [trial(0, 0, 0.5), trial(0, 1, 0.5), trial(1, 0, 0.9), trial(1, 1, 0.1)]
    assert best([*trials, trial(2, 0, 0.55), trial(2, 1, 0.55)]) == ({"n": 2}, 0.55)
    assert best([*trials, trial(2, 0, 0.25), trial(2, 1, 0.75)]) == ({"n": 0}, 0.5)


def test_each_backbone_has_a_best_recipe_of_its_own():
    scores = {"a": (0.5, 0.7), "b": (0.9, 0.1)}
    trials = [
        Trial(number, Run("d", backbone, "joint", "m", "C4", 0), {"n": number}, {"score": score})
        for backbone, of in scores.items()
        for number, score in enumerate(of)
    ]
    assert best_by_backbone(trials) == {"a": ({"n": 1}, 0.7), "b": ({"n": 0}, 0.9)}


def test_trials_survive_their_file(tmp_path):
    run = Run("d", "b", "joint", "m", "C4", 1)
    found = {
        "val_acc": 1 / 3, "val_cn_avg": 0.1, "score": 0.2, "seconds": 1.5, "config_hash": "ab",
        "inputs": "cd",
    }  # fmt: skip
    write_trials(tmp_path / "m.csv", [Trial(1, run, {"train.lr": 0.1}, found)])
    assert known_trials(tmp_path / "m.csv") == {(1, run.stem, "ab", "cd"): found}
    write_trials(tmp_path / "old.csv", [Trial(1, run, {}, {**found, "inputs": ""})])
    assert known_trials(tmp_path / "old.csv") == {}  # what these were trained on is not known
    assert known_trials(tmp_path / "none.csv") == {}
    assert as_overrides({"train.lr": 0.1, "train.augment.flip": True}) == {
        "train": {"lr": 0.1, "augment": {"flip": True}}
    }


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Prepared digits without a test split, and a study of two methods."""
    from project_fixtures import prepare_digits

    folder = tmp_path_factory.mktemp("tuning")
    prepare_digits(folder)
    (folder / "data" / "prepared" / "digits" / "test.safetensors").unlink()
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    (folder / "config" / "tuning").mkdir(parents=True)
    path = folder / "config" / "tuning" / "tiny.yaml"
    path.write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    return folder


def tune(project, monkeypatch, *flags):
    monkeypatch.chdir(project)
    assert main(["tune", "--study", "study.yaml", *flags]) == 0
    with (project / "results/tiny/tuning/prlc.csv").open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_a_search_reads_no_test_split_and_goes_on_trial_by_trial(project, monkeypatch, capsys):
    rows = tune(project, monkeypatch, "--trials", "2")
    assert [row["trial"] for row in rows] == ["0", "1"]
    assert rows[0]["train.lr"] == "" and float(rows[1]["train.lr"]) > 0
    for row in rows:
        expected = (float(row["val_acc"]) + float(row["val_cn_avg"])) / 2
        assert float(row["score"]) == pytest.approx(expected)
        assert row["seed"] == "3" and row["group"] == "C4" and float(row["seconds"]) > 0
    said = capsys.readouterr().out
    assert said.count("  upright") == 4  # two methods, two trials

    more = tune(project, monkeypatch)
    assert more[:2] == rows and len(more) == 3
    assert capsys.readouterr().out.count("  upright") == 2  # only the third trial of each
    assert tune(project, monkeypatch) == more
    assert "tuning-2-" not in capsys.readouterr().out

    choice = read_yaml(project / "results/tiny/tuning/choice.yaml")
    assert set(choice) == {"backbones"} and set(choice["backbones"]) == {"resnet_small"}
    assert list(choice["backbones"]["resnet_small"]["recipes"]) == ["vanilla", "prlc"]
    chosen = load_study(merge(STUDY, choice))
    run = next(run for run in chosen.runs() if run.method == "prlc" and run.seed == 3)
    winner = max(more, key=lambda row: float(row["score"]))
    assert chosen.recipe_hash(run) == winner["config_hash"]
    assert untuned(chosen).config == load_study(STUDY).config
    again = with_point(chosen, "prlc", {"train.lr": 0.5})  # beats what a backbone says
    assert again.recipe(run)["train"]["lr"] == 0.5 and again.runs() == chosen.runs()
    text = (project / "results/tiny/tuning/choice.yaml").read_text(encoding="utf-8")
    assert "3 trials" in text and "mean of upright accuracy" in text
    assert "not tuned: oracle" in text


WITHIN = {"datasets": {"digits": {"limit_train": 20}}, "train": {"epochs": 0}}


def short_search(project, name):
    """Flags of a search of two trials that train nothing, with results of its own."""
    content = yaml.safe_dump({**SPACE, "trials": 2, "within": WITHIN})
    (project / f"{name}.yaml").write_text(content, encoding="utf-8")
    return ["--study", "study.yaml", "--space", f"{name}.yaml", "--results", f"results/{name}"]


def test_trials_may_be_shorter_than_the_study_and_the_choice_is_for_the_study(project, monkeypatch):
    monkeypatch.chdir(project)
    assert main(["tune", *short_search(project, "short"), "--method", "prlc"]) == 0
    with (project / "results/short/tuning/prlc.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    short = load_study(merge(STUDY, WITHIN))
    run = next(run for run in short.runs() if run.method == "prlc" and run.seed == 3)
    assert rows[0]["config_hash"] == short.recipe_hash(run)
    path = project / "results/short/tuning/choice.yaml"
    recipe = read_yaml(path)["backbones"]["resnet_small"]["recipes"]["prlc"]
    assert recipe.get("train", {}).keys() <= {"lr"}
    assert "limit_train: 20" in path.read_text(encoding="utf-8")


def test_a_choice_keeps_what_was_found_for_methods_that_are_not_tuned_now(project, monkeypatch):
    flags = short_search(project, "parts")
    monkeypatch.chdir(project)
    choice = project / "results/parts/tuning/choice.yaml"
    assert main(["tune", *flags]) == 0
    whole = choice.read_text(encoding="utf-8")
    assert list(read_yaml(choice)["backbones"]["resnet_small"]["recipes"]) == ["vanilla", "prlc"]
    assert main(["tune", *flags, "--method", "prlc"]) == 0
    assert choice.read_text(encoding="utf-8") == whole
    assert main(["tune", *flags, "--method", "prlc", "--trials", "3"]) == 0
    assert list(read_yaml(choice)["backbones"]["resnet_small"]["recipes"]) == ["prlc"]
    assert "not tuned: vanilla" in choice.read_text(encoding="utf-8")  # two of three trials


def test_trials_on_other_data_or_groups_are_tried_again(project, monkeypatch, capsys):
    flags = short_search(project, "inputs")
    monkeypatch.chdir(project)

    def tried():
        return capsys.readouterr().out.count("  upright")

    assert main(["tune", *flags]) == 0 and tried() == 4
    assert main(["tune", *flags]) == 0 and tried() == 0
    # What has no group is judged over those of the study.
    assert main(["tune", *flags, "--set", "groups=[C2]", "--method", "vanilla"]) == 0
    assert tried() == 2
    monkeypatch.setattr(
        "eqadapt.tuning_runner.ValidationRunner.splits_sha256", lambda *_: ("other", "data")
    )
    assert main(["tune", *flags]) == 0 and tried() == 4


@pytest.mark.slow
def test_the_split_that_a_search_must_not_read_fails_where_it_is_asked_for(project):
    from eqadapt.runs import StudyFiles
    from eqadapt.tuning_runner import ValidationRunner

    files = StudyFiles(project / "r", project / "s", project / "data" / "prepared")
    data = ValidationRunner(load_study(STUDY), files).data("digits")
    assert len(data.train.labels) == 40 and len(data.validation.labels) == 200
    with pytest.raises(AssertionError, match="asked for the test split"):
        _ = data.test


SEARCHED = sorted(path.stem for path in Path("config/tuning").glob("*.yaml"))


@pytest.mark.parametrize(
    "name", [name for name in SEARCHED if Path(f"results/{name}/tuning/choice.yaml").is_file()]
)
def test_a_study_has_the_recipes_that_its_search_chose(name):
    study = load_study(f"config/{name}.yaml")
    choice = read_yaml(Path(f"results/{name}/tuning/choice.yaml"))
    chosen = load_study(merge(untuned(study).config, choice))
    for run in study.trained_runs():
        assert study.recipe(run) == chosen.recipe(run)


@pytest.mark.parametrize("name", SEARCHED)
def test_the_searches_in_config_are_valid(name):
    study = untuned(load_study(f"config/{name}.yaml"))
    search = load_search(Path(f"config/tuning/{name}.yaml"), study)
    for method in search.spaces:
        for backbone in study.config["backbones"]:
            assert len(search.points(method, backbone)) == search.trials


def test_a_trial_that_diverges_is_the_worst_and_the_search_goes_on(tmp_path, monkeypatch):
    from project_fixtures import prepare_digits

    from eqadapt.errors import NotFinite
    from eqadapt.training import Trainer

    monkeypatch.chdir(tmp_path)
    prepare_digits(tmp_path)
    search = search_of(tmp_path)
    run, diverged = Trainer.run, []

    def diverges_once(self):
        if not diverged:
            diverged.append(self)
            raise NotFinite("the loss is not finite")
        return run(self)

    monkeypatch.setattr(Trainer, "run", diverges_once)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    flags = ["--study", "study.yaml", "--space", "space.yaml", "--method", "vanilla"]
    assert main(["tune", *flags]) == 0
    with next(tmp_path.rglob("vanilla.csv")).open(newline="") as stream:
        found = [float(row["val_cn_avg"]) for row in csv.DictReader(stream)]
    assert len(found) == search.trials and found.count(0.0) == 1
