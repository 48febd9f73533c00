"""Finished runs are given back where nothing that decides them changed, and trained again else."""

import shutil

import pytest
from project_fixtures import prepare_digits

from eqadapt import checkpoint, kept_runs
from eqadapt.runs import StudyFiles, StudyRunner
from eqadapt.study import load_study

STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"limit_train": 40, "limit_test": 20}},
    "backbones": {"resnet_small": {"weights": "scratch"}},
    "groups": ["C4"],
    "methods": ["prlc"],
    "seeds": [0],
    "train": {"epochs": 1, "batch_size": 20},
    "evaluate": {"poses": "C4"},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    prepare_digits(folder)
    return folder / "data" / "prepared"


class Project:
    """A study's folders; what a pass over its runs trained, and what it left."""

    def __init__(self, folder, prepared):
        self.files = StudyFiles(folder / "results", folder / "scratch", prepared)

    def trained(self, *changes):
        """Stems of the runs that were trained, not given back."""
        shutil.rmtree(self.files.results, ignore_errors=True)  # as workflows do before a step
        study, said = load_study({**STUDY}, list(changes)), []
        runner = StudyRunner(study, self.files, said.append)
        for run in study.trained_runs():
            runner.train(run)
            assert all(file.is_file() for file in self.files.run_files(run))
            assert not self.files.state(run.stem).exists()
        return [line.split()[0] for line in said if "epoch 0" in line]

    def left(self):
        """The bytes of all files of the results."""
        return {p.name: p.read_bytes() for p in self.files.results.rglob("*") if p.is_file()}


@pytest.fixture
def project(tmp_path, prepared):
    made = Project(tmp_path, prepared)
    assert len(made.trained()) == 1
    return made


def test_a_finished_run_is_given_back_byte_by_byte(project):
    before = project.left()
    assert set(before) == {"checkpoint.safetensors", "history.csv", "run.json"}
    assert project.trained() == []
    assert project.left() == before


def test_another_seed_trains_that_seed_alone(project):
    assert [stem[-1] for stem in project.trained("seeds=[0,1]")] == ["1"]
    assert project.trained("seeds=[1]") == []


@pytest.mark.parametrize(
    "change", ["train.lr=0.01", "datasets={digits: {limit_train: 30}}", "scorer.width=4"]
)
def test_another_recipe_or_other_data_are_trained(project, change):
    assert len(project.trained(change)) == 1
    assert len(project.trained()) == 1  # one copy a run is kept


def test_other_code_is_trained(project, monkeypatch):
    monkeypatch.setattr("eqadapt.runs.code_id", lambda *modules: "of another commit")
    assert len(project.trained()) == 1
    assert project.trained() == []


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "run.json", "kept.json"])
@pytest.mark.parametrize("harm", [lambda p: p.unlink(), lambda p: p.write_bytes(b"{")])
def test_a_copy_that_was_harmed_is_not_given_back(project, name, harm):
    before = project.left()
    (copy,) = project.files.scratch.rglob(name)
    harm(copy)
    assert len(project.trained()) == 1
    after = project.left()
    assert after["checkpoint.safetensors"] == before["checkpoint.safetensors"]


def test_another_canonicalizer_to_start_from_is_trained(project, tmp_path):
    (run,) = project.files.results.rglob("checkpoint.safetensors")
    tensors, meta = checkpoint.load(run)
    start = tmp_path / "start.safetensors"
    for factor in (1.0, 1.1):
        checkpoint.save(start, {key: value * factor for key, value in tensors.items()}, meta)
        change = f"train.scorer_start={start}"
        assert len(project.trained(change)) == 1
        assert project.trained(change) == []


def test_a_copy_in_the_making_is_none(tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("a", encoding="utf-8")
    kept_runs.keep(tmp_path / "kept", {"seed": 0}, [source])
    assert kept_runs.holds(tmp_path / "kept", {"seed": 0}, [source])
    assert not kept_runs.holds(tmp_path / "kept", {"seed": 1}, [source])
    with pytest.raises(FileNotFoundError):
        kept_runs.keep(tmp_path / "kept", {"seed": 0}, [source, tmp_path / "missing"])
    assert not kept_runs.holds(tmp_path / "kept", {"seed": 0}, [source])
