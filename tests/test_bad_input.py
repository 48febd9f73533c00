"""Input that would have given a wrong result without a word, or been lost late: told early."""

import contextlib
import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from project_fixtures import run_study
from safetensors import safe_open
from safetensors.torch import save_file
from test_training import make_trainer

from eqadapt.cli import main
from eqadapt.datasets.prepared import data_sha256
from eqadapt.errors import UserError
from eqadapt.files import atomic_path, probe_folder
from eqadapt.runs import StudyFiles, StudyRunner
from eqadapt.study import load_study, read_yaml

STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"limit_train": 40, "limit_test": 20}},
    "backbones": {"resnet_small": {"weights": "scratch"}},
    "groups": ["C4"],
    "methods": ["vanilla"],
    "seeds": [0],
    "train": {"epochs": 1, "batch_size": 20},
    "evaluate": {"poses": "C4"},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    run_study(folder, STUDY, "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def rewritten(project, split, change, metadata):
    """The prepared data with one split changed, in a folder of their own."""
    source = project / "data" / "prepared" / "digits"
    target = project / "changed" / "digits"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("train", "validation", "test"):
        (target / f"{name}.safetensors").write_bytes((source / f"{name}.safetensors").read_bytes())
    with safe_open(source / f"{split}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        kept = {**file.metadata(), **metadata}
    change(tensors)
    if change is unknown_label:  # and its checksum with it
        kept["data_sha256"] = data_sha256(tensors["images"].numpy(), tensors["labels"].numpy())
    kept = {key: value for key, value in kept.items() if value is not None}
    save_file(tensors, target / f"{split}.safetensors", kept)
    return ["--study", "study.yaml", "--data", str(target.parent), "--results", "r"]


def nothing(_tensors):
    pass


def other_pixels(tensors):
    tensors["images"][0] = 255 - tensors["images"][0]


def unknown_label(tensors):
    tensors["labels"][0] = 99


@pytest.mark.parametrize(
    ("split", "change", "metadata", "said"),
    [
        ("train", other_pixels, {}, "do not match their checksum"),
        ("validation", other_pixels, {}, "do not match their checksum"),
        ("train", unknown_label, {}, "labels beyond its 10 classes"),
        ("train", lambda tensors: tensors.pop("images"), {}, "it holds no images"),
        ("train", nothing, {"split": "test"}, "it is the test split"),
        ("train", nothing, {"data_sha256": None}, "does not say its data_sha256"),
        ("train", nothing, {"classes": "[0, 1"}, "list of classes is not readable"),
        ("validation", nothing, {"dataset": "mnist"}, "differ in their data set"),
        ("validation", nothing, {"preparation": '{"seed": 1}'}, "differ in their preparation"),
        ("test", nothing, {"source": "{}"}, "differ in their source"),
        ("test", nothing, {"classes": json.dumps([f"n{k}" for k in range(10)])}, "their classes"),
    ],
)
def test_prepared_data_that_are_not_what_they_say_are_refused(
    project, capsys, split, change, metadata, said
):
    flags = rewritten(project, split, change, metadata)
    verb = "predict" if split == "test" else "train"
    if verb == "predict":
        flags[-1] = "results/tiny"
    assert main([verb, *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [("train.lr=0.5", "another config_hash"), ("seeds=[5]", "another seed: 0, not 5")],
)
def test_the_checkpoint_of_another_run_is_not_taken_for_this_one(project, capsys, override, said):
    runs = project / "results" / "tiny" / "runs"
    run = runs / "digits-resnet_small-joint-vanilla-C1-seed0"
    renamed = runs / run.name.replace("seed0", "seed5")
    if not renamed.exists():
        renamed.mkdir()
        (renamed / "checkpoint.safetensors").write_bytes(
            (run / "checkpoint.safetensors").read_bytes()
        )
    assert main(["predict", "--study", "study.yaml", "--set", override]) == 2
    assert said in capsys.readouterr().err


def test_a_job_that_is_told_to_end_leaves_no_half_of_a_file(tmp_path):
    program = textwrap.dedent(
        """
        import argparse, sys, time
        from eqadapt import cli
        from eqadapt.files import atomic_path

        def run(args):
            with atomic_path(sys.argv[1]) as path:
                path.write_bytes(b"half")
                print("writing", flush=True)
                time.sleep(60)

        parser = argparse.ArgumentParser()
        parser.add_argument("path")
        parser.set_defaults(run=run, verb="write")
        cli.build_parser = lambda only: parser
        cli.main()
        """
    )
    command = [sys.executable, "-c", program, str(tmp_path / "whole")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        assert len(list(tmp_path.iterdir())) == 1
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


FROZEN = (
    "regimes=[joint,frozen]",
    "methods=[vanilla,prlc]",
    "train={epochs: 1, batch_size: 20}",
)
PRETRAINED = ("backbones={resnet_small: {weights: pretrain}}", "pretrain={epochs: 1}")


@pytest.mark.parametrize(
    ("study", "first", "override", "said"),
    [
        (FROZEN, "train", ("train.lr=0.5",), "another config_hash"),
        (PRETRAINED, "pretrain", ("pretrain.lr=0.5",), "another pretrain_hash"),
        (PRETRAINED, "pretrain", ("datasets={digits: {limit_train: 30}}",), "another"),
    ],
)
def test_weights_that_another_recipe_gave_are_not_started_from(
    project, capsys, study, first, override, said
):
    def command(verb, *settings, flags=()):
        where = ["--results", f"{first}-results", "--scratch", f"{first}-scratch"]
        sets = [part for setting in settings for part in ("--set", setting)]
        return main([verb, "--study", "study.yaml", *where, *sets, *flags])

    of_one = ["--dataset", "digits", "--backbone", "resnet_small"]
    only = of_one if first == "pretrain" else ["--method", "vanilla"]
    assert command(first, *study, flags=only) == 0
    assert command("train", *study) == 0
    capsys.readouterr()
    frozen = ["--regime", "frozen"] if study is FROZEN else []
    assert command("train", *study, *override, flags=frozen) == 2
    assert said in capsys.readouterr().err


def test_progress_that_other_code_left_is_not_gone_on_with(project, monkeypatch):
    study = load_study("study.yaml", ["train.epochs=3"])
    files = StudyFiles(project / "other", project / "scratch", project / "data" / "prepared")
    (run,) = study.runs()

    def epochs_trained(until=3):
        said = []

        def say(line):
            said.append(line)
            if len(said) == until:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt):
            StudyRunner(study, files, say).train(run)
        return [line.split()[2] for line in said if "  epoch " in line]

    assert epochs_trained(until=1) == ["0"]
    assert epochs_trained(until=1) == ["1"]
    monkeypatch.setattr("eqadapt.runs.code_id", lambda *modules: "of another commit")
    assert epochs_trained(until=4) == ["0", "1", "2"]  # and before them that it starts anew


def test_a_model_that_diverged_in_its_last_step_is_not_kept(tmp_path):
    trainer = make_trainer(state=tmp_path / "state", epochs=1, batch_size=1000)
    step = trainer._step

    def diverging(rows):
        parts = step(rows)
        with torch.no_grad():
            next(trainer.model.parameters()).fill_(torch.nan)
        return parts

    trainer._step = diverging
    with pytest.raises(UserError, match="outputs are not finite"):
        trainer.run()
    assert not (tmp_path / "state").exists()


def test_predictions_that_are_no_numbers_are_not_written(project, capsys, monkeypatch):
    monkeypatch.setattr(
        "eqadapt.backbones.Backbone.forward", lambda _self, x: torch.full((len(x), 10), np.nan)
    )
    assert main(["predict", "--study", "study.yaml", "--results", "results/tiny"]) == 2
    assert "outputs are not finite" in capsys.readouterr().err
    assert not list((project / "results" / "tiny" / "predictions").glob("*"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train": {"lr": float("nan")}}, "train.lr: nan; allowed: a finite number"),
        ({"image": {"mean": [float("inf")]}}, "image.mean.0: inf"),
        ({"datasets": {"digits": {"validation": 1.5}}}, "a count, or a fraction below 1"),
        ({"datasets": {"digits": {"size": 32}}}, "digits.size: 32, but the images of"),
        ({"datasets": {"digits": {"validation": 5}}}, "does not leave every class"),
        ({"datasets": {"digits": {"validation": 1295}}}, "10 to 1290 of"),
        ({"datasets": ["digits", "cifar10"], "transfer": True}, "digits has 1, cifar10 has 3"),
        (
            {"backbones": {"resnet_small": {"weights": "scratch", "file": "mine.pt"}}},
            "would not read it",
        ),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, said):
    with pytest.raises(UserError) as told:
        load_study({**STUDY, **change})
    assert said in str(told.value)


def test_whole_numbers_are_taken_for_what_they_are_however_they_are_written():
    study = load_study({**STUDY, "train": {"epochs": 2.0, "batch_size": 20.0}, "seeds": [1.0]})
    assert repr(study.config["train"]["epochs"]) == "2" and repr(study.config["seeds"]) == "[1]"
    assert load_study({**STUDY, "image": {"size": 32.0}}).config["image"]["size"] == 32
    with pytest.raises(UserError, match="epochs"):
        load_study({**STUDY, "train": {"epochs": 2.5}})


def test_a_key_that_stands_twice_is_refused_and_merges_may_be_given_again(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text("seeds: [0]\ntrain: {}\nseeds: [1]\n", encoding="utf-8")
    with pytest.raises(UserError, match="the key 'seeds' stands twice"):
        read_yaml(path)
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n", encoding="utf-8")
    assert read_yaml(path)["b"] == {"x": 3, "y": 2}


def test_texts_of_prompts_stay_what_they_are():
    names = ["no", "yes", "null", "on", "1e3", "007", "1_0", "12:30", "x", "y"]
    clip = {
        "model": "open_clip:ViT-B-32",
        "weights": "pretrained",
        "options": {"class_names": {"digits": names}, "templates": "1", "scale": "1e2"},
    }
    study = load_study({**STUDY, "backbones": {"clip": clip}, "regimes": ["frozen"]})
    options = study.config["backbones"]["clip"]["options"]
    assert options == {"class_names": {"digits": names}, "templates": "1", "scale": 100.0}


def test_a_change_to_one_of_a_list_of_names_keeps_the_others(tmp_path):
    path = tmp_path / "study.yaml"
    methods = {**STUDY, "methods": ["vanilla", "prlc", "oracle"]}
    path.write_text(yaml.safe_dump(methods), encoding="utf-8")
    changed = load_study(path, ["methods.prlc.train.epochs=3"])
    assert list(changed.config["methods"]) == ["vanilla", "prlc", "oracle"]
    assert changed.config["methods"]["prlc"] == {"train": {"epochs": 3}}


def test_a_scorer_that_cannot_be_built_is_told_before_other_runs_are_trained(project, capsys):
    prlc = "methods.prlc={scorer: {name: group_wrn, width: 6}}"
    assert main(["train", "--study", "study.yaml", "--set", prlc, "--set", "seeds=[7]"]) == 2
    said = capsys.readouterr()
    assert "width is 6" in said.err and "epoch" not in said.out


@pytest.mark.parametrize("flag", ["--results", "--scratch"])
def test_a_file_in_a_folders_place_is_told_before_training(project, capsys, flag):
    (project / "taken").write_text("x", encoding="utf-8")
    assert main(["train", "--study", "study.yaml", flag, "taken/here"]) == 2
    err = capsys.readouterr().err
    assert "no folder can be made here" in err and "epoch" not in err


def test_a_study_that_pretrains_nothing_says_so(project, capsys):
    assert main(["pretrain", "--study", "study.yaml"]) == 2
    assert "no backbone of these is pretrained" in capsys.readouterr().err


def test_files_can_be_read_by_whoever_may_read_the_folder(project):
    path = next((project / "results" / "tiny" / "runs").glob("*-seed0/checkpoint.safetensors"))
    assert path.stat().st_mode == path.with_name("run.json").stat().st_mode


def test_a_folder_is_probed_without_a_trace(tmp_path):
    probe_folder(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())
    match = "no folder can be made"
    with pytest.raises(UserError, match=match), atomic_path("/proc/none/file"):
        pass


def test_what_a_fixed_study_predicts_is_still_predicted(project):
    assert main(["predict", "--study", "study.yaml"]) == 0
    (path,) = (project / "results" / "tiny" / "predictions").glob("*.parquet")
    assert len(pd.read_parquet(path)) == 4 * 20
