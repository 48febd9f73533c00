"""The figure of studies that train on several parts of one data set."""

import json

import pytest
from analysis_fixtures import BEHAVIOURS, Behaviour, StudySpec, make_study

from eqadapt.analysis import outputs
from eqadapt.analysis.figures.training_size import _lines, training_images
from eqadapt.analysis.labels import dataset_label
from eqadapt.analysis.results import open_results
from eqadapt.cli import main
from eqadapt.study import load_study

SIZES = {
    "digits_n0050": {"source": "digits", "limit_train": 50},
    "digits_n0500": {"source": "digits", "limit_train": 500},
    "digits": {},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    spec = StudySpec(
        images=40,
        seeds=(0, 1),
        groups=("C4",),
        backbones=("resnet10t",),
        datasets=tuple(SIZES),
        dataset_options=SIZES,
        behaviours={"vanilla": BEHAVIOURS["vanilla"], "equitune": Behaviour(0.9, 0.9, 0.9)},
        galleries=True,
    )
    folder = make_study(tmp_path_factory.mktemp("results") / "sizes", spec)
    for path in (folder / "runs").glob("digits-*/run.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**record, "n_train": 1100}), encoding="utf-8")
    for verb in ("metrics", "figures"):
        assert main([verb, "--results", str(folder)]) == 0
    return folder


def test_a_study_of_sizes_has_one_figure_for_them(study):
    results = open_results(study)
    assert outputs.training_sizes(results.config) == {"digits": list(SIZES)}
    stem = outputs.figure_stem(outputs.TRAINING_SIZE, "digits", "joint", "C4")
    assert f"{stem}.svg" in outputs.figure_files(results.config)
    written = {p.relative_to(study).as_posix() for p in (study / "figures").iterdir()}
    assert written == set(outputs.figure_files(results.config))


def test_its_lines_go_through_every_size_in_order(study):
    results = open_results(study)
    cells = results.cells("joint", "C4")
    assert [training_images(results, cell) for cell in cells] == [50, 500, 1100]
    lines = _lines(results, cells[::-1])
    assert set(lines) == {"vanilla", "equitune"}
    for points in lines.values():
        assert [count for count, _ in points] == [50, 500, 1100]
        assert all(0 <= value.mean <= 100 and value.n == 2 for _, value in points)


def test_other_studies_have_no_such_figure():
    for path in ("config/digits.yaml", "config/smoke.yaml", "config/cifar10.yaml"):
        assert outputs.training_sizes(load_study(path).config) == {}
    parts_alike = {"a": {"source": "digits"}, "digits": {}}
    assert outputs.training_sizes({"datasets": parts_alike}) == {}
    assert outputs.training_sizes({"datasets": ["digits"]}) == {}


def test_parts_of_a_data_set_are_named_after_it():
    assert dataset_label("digits_n0050") == "Digits, n = 50"
    assert dataset_label("cifar10_n10000") == "CIFAR-10, n = 10,000"
    assert dataset_label("cifar100_coarse") == "CIFAR-100, coarse"
    assert dataset_label("cifar10") == "CIFAR-10" and dataset_label("birds") == "birds"


def test_every_size_of_the_study_takes_the_same_number_of_steps():
    study = load_study("config/training_size.yaml")
    steps = set()
    for run in study.runs():
        recipe = study.recipe(run)
        images = recipe["dataset"]["limit_train"] or 1100
        steps.add(recipe["train"]["epochs"] * (images // recipe["train"]["batch_size"]))
    assert steps == {440}
