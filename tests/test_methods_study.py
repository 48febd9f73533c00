"""The comparison of methods end to end on a few digits, its settings, its table and figures."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from analysis_fixtures import write_run
from matplotlib.text import Text
from pretend_gpu import pretended_gpu

from eqadapt import cli
from eqadapt.analysis import method_table, outputs
from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures import cost
from eqadapt.analysis.figures.cost import pareto_front
from eqadapt.analysis.figures.temperature import load_temperatures
from eqadapt.analysis.labels import method_style
from eqadapt.analysis.method_table import MethodRow
from eqadapt.analysis.predictions import load_predictions
from eqadapt.analysis.results import open_results
from eqadapt.analysis.statistics import Estimate
from eqadapt.errors import UserError
from eqadapt.study import load_study
from eqadapt.test_time import METHODS
from eqadapt.test_time.plan import load_plan
from eqadapt.test_time.settings import Entry, load_settings
from eqadapt.test_time.study import TestTimeRunner

PUBLISHED = Path(__file__).parents[1] / "config" / "published.yaml"
SHIPPED = Path(__file__).parents[1] / "config" / "methods"

STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"limit_train": 200, "limit_test": 40}},
    "backbones": {"resnet_small": {"weights": "pretrain"}},
    "groups": ["C4", "C8"],
    "methods": ["prlc_rotated", "prlc_classwise"],
    "regimes": ["frozen"],
    "seeds": [0, 1],
    "image": {"size": 33, "backbone_size": 11, "interpolation": "bicubic"},
    "scorer": {"name": "paired_cnn", "inner": "group_cnn", "width": 2, "input_size": 17},
    "pretrain": {"epochs": 1, "batch_size": 50},
    "train": {"epochs": 1, "batch_size": 50},
    "evaluate": {"poses": "C8"},
    "device": "cpu",
}
SETTINGS = {
    "images": {"train": 60, "validation": 30, "test": 40},
    "bank": 30,
    "trials": 2,
    "temperatures": [0.5, 2.0],
    "canonicalizer": "prlc_classwise",
}
NAMES = ("vanilla", "oracle", "equitune", "boltzmann", "ood_knn", "ood_knn_gated", "its_paper")
NAMES += ("ac_max", "prlc_rotated", "posterior", "posterior_top_2", "features_prior", "lc")
NAMES += ("posterior_classes", "oracle_classes")


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Path:
    return run_all(tmp_path_factory.mktemp("methods"))


def run_all(root: Path) -> Path:
    folder = root / "config"
    folder.mkdir()
    study = {**STUDY, "test_time": {"folder": str(folder)}}
    (root / "tiny.yaml").write_text(yaml.safe_dump(study))
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    for name in NAMES:
        content = yaml.safe_load((SHIPPED / f"{name}.yaml").read_text())
        if name == "features_prior":
            content["grid"] = {"evidence.epochs": [1]}
        if name == "posterior_classes":  # the same number of trials, those taken over among them
            content["grid"] = {"class_weight": [0.5]}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    raw, prepared = root / "raw", root / "data" / "digits"
    for verb in (
        ["download", "--dataset", "digits", "--out", str(raw)],
        ["verify", "--dataset", "digits", "--raw", str(raw)],
        ["prepare", "--dataset", "digits", "--raw", str(raw), "--out", str(prepared)],
    ):
        assert cli.main(verb) == 0
    for verb in ("pretrain", "train", "orbits", "methods"):
        assert run(root, verb) == 0
    (root / "results" / "study.yaml").write_text(load_study(root / "tiny.yaml").to_yaml())
    return root


def run(root: Path, verb: str, *more: str) -> int:
    arguments = ["--study", str(root / "tiny.yaml"), "--data", str(root / "data")]
    arguments += ["--results", str(root / "results"), "--scratch", str(root / "scratch")]
    if verb == "pretrain":
        arguments += ["--dataset", "digits", "--backbone", "resnet_small"]
    if verb in ("orbits", "methods"):
        arguments += ["--orbits", str(root / "orbits")]
    return cli.main([verb, *arguments, *more])


@pytest.mark.slow
def test_every_method_leaves_predictions_of_the_agreed_form(ran):
    found = {}
    for path in (ran / "results" / "predictions").glob("*.parquet"):
        predictions = load_predictions(path)
        assert predictions.stem == path.stem
        assert predictions.meta["test_time"] is True
        found.setdefault(predictions.meta["method"], []).append(predictions)
    assert set(found) == set(NAMES) - {"lc"}  # no checkpoint, so it is left out
    assert len(found["vanilla"]) == 1  # the finest group's poses hold the others'
    assert len(found["equitune"]) == 2  # a file a group
    assert len(found["posterior"]) == len(found["features_prior"]) == 4  # and a seed
    assert len(found["posterior_classes"]) == len(found["oracle_classes"]) == 4
    for predictions in found["posterior_top_2"]:
        assert predictions.meta["backbone_passes"] == 2
    record = json.loads(
        (ran / "results/runs/digits-resnet_small-frozen-boltzmann-C8-seed0/run.json").read_text()
    )
    assert len(record["trials"]) == 2
    assert (
        record["hyperparameters"]["temperature"]
        in yaml.safe_load((SHIPPED / "boltzmann.yaml").read_text())["grid"]["temperature"]
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*to a meta parameter")
def test_a_gpu_would_leave_the_predictions_of_the_cpu(ran, tmp_path):
    with pretended_gpu() as waits:
        there = run_all(tmp_path)
    assert waits
    for path in (ran / "results" / "predictions").glob("*.parquet"):
        cpu, gpu = (pd.read_parquet(root / path.relative_to(ran)) for root in (ran, there))
        gaps = (cpu - gpu).fillna(0.0).abs()
        # A CPU takes batches in parts, whose rounding may settle close choices otherwise.
        assert len(cpu) == len(gpu) and (gaps > 1e-3).mean().max() <= 0.05, path.name
        assert (cpu.isna() == gpu.isna()).all(axis=None)


def test_methods_are_left_out_without_the_canonicalizer_they_need(tmp_path):
    for name in ("vanilla", "prlc_mean", "posterior_classes", "features_prior"):
        text = (SHIPPED / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(text)
    for canonicalizer, missing in (
        ("prlc_classwise", []),
        ("prlc_rotated", ["posterior_classes"]),  # it tells no classes
        ("prlc", ["prlc_mean", "posterior_classes"]),  # not trained
    ):
        settings = {**SETTINGS, "canonicalizer": canonicalizer}
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump(settings))
        study = load_study({**STUDY, "test_time": {"folder": str(tmp_path)}})
        assert load_plan(study).left_out == missing


def test_settings_that_do_not_fit_the_study_are_told_before_it_runs(tmp_path):
    for name in ("vanilla", "its_paper", "posterior_top_2"):
        text = (SHIPPED / f"{name}.yaml").read_text()
        (tmp_path / f"{name}.yaml").write_text(text)
    for settings, change, said in (
        ({"canonicalizer": "prlc_roated"}, {}, "canonicalizer: unknown method 'prlc_roated'"),
        ({}, {"groups": ["C3"], "evaluate": {"poses": "C3"}}, "C3 has no half turn"),
        (
            {},
            {"groups": ["C4", "C6"], "evaluate": {"poses": "C12"}},
            "C4 are not among those of C6",
        ),
        ({}, {"methods": ["vanilla", "prlc_rotated"]}, "vanilla is no canonicalizer"),
        (
            {},
            {
                "methods": ["prlc", "prlc_rotated"],
                "backbones": {"vit_small": {"weights": "pretrain", "methods": ["prlc_rotated"]}},
            },
            "prlc is not trained for vit_small",
        ),
    ):
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump({**SETTINGS, **settings}))
        study = load_study({**STUDY, **change, "test_time": {"folder": str(tmp_path)}})
        with pytest.raises(UserError, match=said):
            load_plan(study)


def analyse(ran: Path, *verbs: str) -> Path:
    for verb in verbs:
        published = [] if verb in ("metrics", "figures") else ["--published", str(PUBLISHED)]
        assert cli.main([verb, "--results", str(ran / "results"), *published]) == 0
    return ran / "results"


@pytest.mark.slow
def test_the_metrics_have_the_columns_of_the_comparison(ran):
    frame = pd.read_csv(analyse(ran, "metrics") / "metrics.csv")
    vanilla = frame[frame["method"] == "vanilla"]
    assert sorted(vanilla["group"]) == ["C4", "C8"]
    assert (vanilla["harm"] == 0).all()
    equitune = frame[(frame["method"] == "equitune") & (frame["group"] == "C4")]
    assert equitune["orbit_agreement"].item() == 1.0
    assert equitune["logit_difference_exact"].item() == 0.0
    assert np.isclose(equitune["acc"].item(), equitune["cn_avg"].item())
    assert frame[frame["method"] == "ac_max"]["departures"].eq("class_axis").all()


@pytest.mark.slow
def test_latency_is_a_ratio_to_the_backbone_alone(ran):
    path = ran / "results" / "latency.csv"
    assert run(ran, "methods", "--latency") == 0
    before = pd.read_csv(path)
    assert run(ran, "methods", "--latency", "--group", "C4") == 0
    after = pd.read_csv(path)  # C4 anew, the other group as it was
    assert len(after) == len(before)
    others = [frame[frame["group"] != "C4"].reset_index(drop=True) for frame in (before, after)]
    pd.testing.assert_frame_equal(*others)
    frame = after[after["group"] == "C4"].set_index("method")
    assert 0.5 < frame.loc["vanilla", "ratio"] < 2.0
    assert frame.loc["equitune", "ratio"] > frame.loc["vanilla", "ratio"]
    found = pd.read_csv(analyse(ran, "metrics") / "metrics.csv")
    equitune = found[(found["method"] == "equitune") & (found["group"] == "C4")]
    assert equitune["latency_ratio"].item() == frame.loc["equitune", "ratio"]
    path.unlink()


@pytest.mark.slow
def test_every_declared_output_is_written_and_the_curve_has_both_ends(ran):
    folder = analyse(ran, "metrics", "tables", "figures", "claims", "report")
    config = load_study(ran / "tiny.yaml").config
    declared = [*outputs.table_files(config), *outputs.figure_files(config), outputs.REPORT]
    assert all((folder / name).stat().st_size for name in declared)
    assert not list((folder / "figures").glob("gallery*"))
    assert "Posterior (top 2)" in (folder / "tables/methods-frozen-C8.md").read_text()
    page = (folder / "report.html").read_text()
    assert "Methods side by side" in page and "2 trials for each method (4 with a gate)" in page
    frame = pd.read_csv(folder / "metrics.csv")
    for curve in load_temperatures(folder):
        part = frame[frame["group"] == curve.cell.group].set_index("method")
        logits = curve.frame[curve.frame["space"] == "logits"].set_index("temperature")["mean"]
        assert np.isclose(logits[np.inf], 100 * part.loc["equitune", "cn_avg"])


@pytest.mark.slow
def test_a_second_run_finds_the_caches(ran, capsys):
    assert run(ran, "orbits") == 0
    assert capsys.readouterr().out.count("there already") == 6


@pytest.mark.slow
def test_poses_are_scored_once(ran, capsys):
    folder = ran / "orbits" / "poses"
    missing = folder / "digits-resnet_small-frozen-prlc_classwise-C4-seed1-test.safetensors"
    assert run(ran, "methods", "--poses") == 0
    assert len(list(folder.glob("*.safetensors"))) == 16  # methods, groups, seeds, splits
    capsys.readouterr()
    before = missing.read_bytes()
    missing.unlink()
    assert run(ran, "methods", "--poses") == 0
    assert capsys.readouterr().out.count("pose logits of") == 1
    assert missing.read_bytes() == before


@pytest.mark.slow
def test_the_same_predictions_again_to_the_byte(ran):
    path = ran / "results/predictions/digits-resnet_small-frozen-features_prior-C8-seed1.parquet"
    before = path.read_bytes()
    path.unlink()
    assert run(ran, "methods", "--group", "C8") == 0
    assert path.read_bytes() == before


@pytest.mark.slow
def test_a_cache_of_another_backbone_is_refused(ran, capsys):
    path = ran / "orbits" / "digits-resnet_small-C4-test.safetensors"
    kept = path.read_bytes()
    weights = ran / "results" / "pretrained" / "digits-resnet_small.safetensors"
    original = weights.read_bytes()
    try:
        from eqadapt import checkpoint

        tensors, meta = checkpoint.load(weights)
        changed = {
            key: value + 1 if value.is_floating_point() else value for key, value in tensors.items()
        }
        checkpoint.save(weights, changed, meta)
        assert run(ran, "methods") == 2
        assert "weights_sha256" in capsys.readouterr().err
    finally:
        weights.write_bytes(original)
        path.write_bytes(kept)


# --- settings -----------------------------------------------------------------------------------


def test_the_shipped_settings_are_valid_and_no_method_of_ours_is_tried_more_often():
    settings = load_settings(SHIPPED)
    assert {entry.method.name for entry in settings.entries} == set(METHODS)
    own = {e.method.name: math.prod(map(len, e.grid.values())) for e in settings.entries if e.grid}
    for entry in settings.entries:
        tried = own.get(entry.method.name, 0)
        assert tried <= settings["trials"]  # or some would be left to chance
        total = tried + own.get(entry.method.inherits, 0)
        if entry.paper == "this project":
            assert total <= settings["trials"]
        elif tried and entry.method.name != "lc_offset":  # which tries every element
            assert total >= settings["trials"]
    names = [entry.method.name for entry in settings.entries]
    for entry in settings.entries:
        if entry.method.inherits:
            assert names.index(entry.method.inherits) < names.index(entry.method.name)


def _grid(method, **values):
    return {"method": method, "paper": "x", "grid": values}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("equizero2", {"method": "equizero2", "paper": "x"}, "unknown test-time method"),
        ("equizero", {"method": "equitune", "paper": "x"}, "another name"),
        ("boltzmann", {"method": "boltzmann", "paper": "x", "grid": {"temp": [1]}}, "temp"),
        ("boltzmann", {"method": "boltzmann", "paper": "x", "grid": {"space": []}}, "not valid"),
        ("boltzmann", {"method": "boltzmann"}, "paper"),
        ("boltzmann", _grid("boltzmann", temperature=["1e-3"]), "'1e-3' is no number"),
        ("boltzmann", _grid("boltzmann", space=[True]), "True is no text"),
        ("ood_knn", _grid("ood_knn", **{"evidence.m": [3]}), "no such hyper-parameter"),
        ("ood_knn", _grid("ood_knn", **{"evidence.k": [3, "many"]}), "'many' is no whole number"),
        ("ood_knn", _grid("ood_knn", **{"evidence.reduce": ["max"]}), "unknown reduction"),
        ("ood_knn", _grid("ood_knn", **{"evidence.k": [2.5]}), "2.5 is no whole number"),
        ("ood_knn", _grid("ood_knn", **{"evidence.k": [0]}), "grid.evidence.k: 0 nearest"),
        ("boltzmann", _grid("boltzmann", temperature=[-1]), "grid.temperature: temperature is -1"),
        ("boltzmann", _grid("boltzmann", space=["foo"]), "space is 'foo'"),
        ("prlc", _grid("prlc", views=[0]), "views is 0"),
        ("prlc", _grid("prlc", **{"evidence.k": [3]}), "reads no evidence"),
        ("settings", {"trials": 0}, "trials"),
        ("settings", {"trails": 4}, "trails"),
        ("settings", {"methods": ["equizero"]}, "no file for method equizero"),
    ],
)
def test_wrong_settings_are_refused_with_their_file(tmp_path, name, content, message):
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    if name == "settings":
        (tmp_path / "vanilla.yaml").write_text("method: vanilla\npaper: none\n")
    with pytest.raises(UserError, match=message) as raised:
        load_settings(tmp_path)
    assert str(tmp_path) in str(raised.value.where)


def test_a_key_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "vanilla.yaml").write_text("method: vanilla\npaper: none\npaper: this\n")
    with pytest.raises(UserError, match="'paper' stands twice"):
        load_settings(tmp_path)


def test_a_folder_without_methods_is_refused(tmp_path):
    with pytest.raises(UserError, match="no test-time method"):
        load_settings(tmp_path)
    with pytest.raises(UserError, match="no folder"):
        load_settings(tmp_path / "absent")


def test_the_pareto_front_keeps_what_nothing_cheaper_beats():
    points = {"a": (1.0, 50.0), "b": (4.0, 80.0), "c": (4.0, 85.0), "d": (8.0, 84.0), "e": (2, 60)}
    assert pareto_front(points) == ["a", "e", "c"]
    assert pareto_front(points, worth=15.0) == ["a", "c"]


def test_a_little_better_than_what_costs_less_is_not_on_the_front():
    """However far ahead it is of the last point that is: another one lies between them."""
    points = {"a": (1.0, 97.0), "b": (2.0, 97.4), "c": (4.0, 97.8), "d": (8.0, 98.5)}
    assert pareto_front(points, worth=0.5) == ["a", "d"]


@pytest.mark.parametrize(
    ("finest", "group", "known"),
    [("C8", "C8", (1.0, 2.0)), ("C8", "C4", (1.0, None)), ("C4", "C2", (None, None))]
    + [("C12", "C6", (None, None)), ("C6", "C2", (1.0, None))],
)
def test_a_group_has_the_logit_differences_of_its_own_poses_only(tmp_path, finest, group, known):
    poses = int(finest[1:])
    meta = {"logit_difference_exact": 1.0, "logit_difference_rest": 2.0 if poses > 4 else None}
    write_run(tmp_path, label=[0, 1], prediction=np.zeros((2, poses), int), meta=meta)
    extra = method_table._extra(open_results(tmp_path, [group]).evaluations[0], None)
    assert (extra["logit_difference_exact"], extra["logit_difference_rest"]) == known


def cost_figure(monkeypatch, found):
    """The figure of methods with (accuracy over the group, passes) as drawn."""
    rows = [
        MethodRow(name, value, value, {"backbone_passes": passes}, "", 1)
        for name, (mean, passes) in sorted(found.items(), key=lambda item: -item[1][0])
        for value in [Estimate(mean, mean - 1, mean + 1, 1, "images")]
    ]
    monkeypatch.setattr(cost, "method_rows", lambda _results, _cell: rows)
    results = SimpleNamespace(backbone_label=str)
    return cost.accuracy_against_cost(results, [Cell("digits", "cnn", "frozen", "C4")]), rows


@pytest.mark.parametrize("best", [100.0, 99.8, 97.0])
def test_every_point_is_inside_its_panel(monkeypatch, best):
    found = {"oracle": (best, 1), "lc": (best - 0.1, 1), "equitune": (40.0, 4), "vanilla": (0.0, 1)}
    figure, rows = cost_figure(monkeypatch, found)
    (axis,) = figure.axes
    low, high = axis.transData.transform([(1, end) for end in axis.get_ylim()])[:, 1]
    heights = axis.transData.transform([(1, row.average.mean) for row in rows])[:, 1]
    assert (heights < high - 1).all() and (heights > low - 1).all()
    assert (np.diff(heights) < 0).all()


def test_a_label_is_at_its_own_point_or_joined_to_it(monkeypatch):
    """Vanilla among others of its cost, and a point of higher cost at the same height."""
    found = {"vanilla": (41.3, 1), "focal_self_gated": (42.0, 1.48), "equizero": (58.0, 4)}
    found |= {"moment_frame": (46.0, 1), "pca_frame": (40.0, 1), "fixed_energy": (53.0, 1)}
    found |= {"oracle": (98.8, 1), "oracle_classes": (98.9, 1), "prlc": (97.0, 1)}
    found |= {f"its_{k}": (59.0 - k / 4, 4) for k in range(12)}
    figure, rows = cost_figure(monkeypatch, found)
    (axis,) = figure.axes
    figure.draw_without_rendering()
    number = {method_style(row.method).label: n for n, row in enumerate(rows)}
    places = cost._side_by_side(rows)
    spots = axis.transData.transform([(places[r.method], r.average.mean) for r in rows])
    assert {"Vanilla", "Equizero", "PRLC"} <= {text.get_text() for text in axis.texts}
    for text in axis.texts:
        (left, low), (right, high) = Text.get_window_extent(text).get_points()
        nearest = np.clip(spots, (left, low), (right, high))
        gaps = np.linalg.norm(spots - nearest, axis=1)
        own = number[text.get_text()]
        assert np.argmin(gaps) == own or text.arrow_patch is not None, text.get_text()
        assert min(gaps) > 0, text.get_text()  # it covers none


def test_half_written_files_of_a_killed_job_are_no_temperatures(tmp_path):
    (tmp_path / "temperatures").mkdir()
    (tmp_path / "temperatures" / ".digits.0a1b.part.parquet").write_bytes(b"PAR1")
    assert load_temperatures(tmp_path) == []


@pytest.mark.parametrize(
    ("settings", "limit", "images"),
    [(5000, 300, 300), (100, 300, 100), (None, 300, 300), (5000, None, 5000), (None, None, None)],
)
def test_no_more_training_images_are_read_than_the_study_has(settings, limit, images):
    runner = object.__new__(TestTimeRunner)
    runner.settings = {"images": {"train": settings, "validation": 30, "test": None}}
    runner.study = SimpleNamespace(
        config={"datasets": {"digits": {"limit_train": limit, "limit_test": 10}}}
    )
    assert runner.images("digits") == {"train": images, "validation": 30, "test": None}


def test_what_is_fitted_has_hyper_parameters_of_its_own_for_each_seed():
    """A canonicalizer of each seed may be off by a constant of its own."""
    off = {0: 3, 1: 1}
    bench = SimpleNamespace(
        accuracy=lambda _method, values, _split, seed: float(values["offset"] == off[seed])
    )
    runner = object.__new__(TestTimeRunner)
    runner.settings = {"trials": 4}
    runner.plan = SimpleNamespace(seeds=lambda _method: [0, 1])
    grid = {"offset": [0, 1, 2, 3]}
    tuned = runner._tuned(bench, Entry(METHODS["lc_offset"], "", grid), {})
    assert {seed: of.parameters["offset"] for seed, of in tuned.items()} == off
