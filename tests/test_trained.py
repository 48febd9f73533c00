"""A model from its checkpoint alone is the one that a study evaluates."""

import json

import pytest
import torch
import yaml
from project_fixtures import prepare_digits

from eqadapt import checkpoint
from eqadapt.cli import main
from eqadapt.errors import UserError
from eqadapt.runs import StudyFiles, StudyRunner
from eqadapt.study import load_study
from eqadapt.trained import classifiers_channels_last, load_trained

STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"limit_train": 40, "limit_test": 20}},
    "backbones": {"resnet_small": {"weights": "file", "file": "w.pt", "sha256": None}},
    "groups": ["C4"],
    "methods": ["vanilla", "prlc", "prlc_mirrored", "oracle", "self_canonicalizer", "lps"],
    "seeds": [0],
    "image": {"size": 16},
    "scorer": {"inner": "group_cnn", "width": 2, "layers": 2, "input_size": 17},
    "train": {"epochs": 1, "batch_size": 20, "augment": {"flip": True}},
    "evaluate": {"poses": "C4", "samples": 3},
    "device": "cpu",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The study's runs, and the outputs of its models, in a folder that has lost all else."""
    from eqadapt.backbones import build_network
    from eqadapt.files import sha256_file

    folder = tmp_path_factory.mktemp("project")
    prepare_digits(folder)
    torch.save(build_network("resnet_small", 10, 1).state_dict(), folder / "w.pt")
    STUDY["backbones"]["resnet_small"]["sha256"] = sha256_file(folder / "w.pt")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    images = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--study", "study.yaml"]) == 0
        study = load_study("study.yaml")
        files = [folder / name for name in ("results/tiny", "scratch/tiny", "data/prepared")]
        runner = StudyRunner(study, StudyFiles(*files))
        outputs = {}
        for run in study.runs():
            model = runner.load(run)
            torch.manual_seed(0)
            with torch.no_grad():
                found = model(images)
            outputs[run.method] = (files[0] / "runs" / run.source.stem, found)
        (folder / "w.pt").unlink()
    return images, outputs


@pytest.mark.parametrize("method", [name for name in STUDY["methods"] if name != "oracle"])
def test_it_is_the_model_of_the_study(trained, method, tmp_path, monkeypatch):
    images, outputs = trained
    folder, expected = outputs[method]
    monkeypatch.chdir(tmp_path)
    model = load_trained(folder / "checkpoint.safetensors", method)
    assert not model.training
    torch.manual_seed(0)
    with torch.no_grad():
        found = model(images)
    assert torch.equal(found.logits, expected.logits)
    assert (found.chosen is None) == (expected.chosen is None)
    if found.chosen is not None:
        assert torch.equal(found.chosen, expected.chosen)


def test_the_doctor_tells_which_of_them_are_invariant(trained, capsys):
    _, outputs = trained

    def doctor(method):
        return main(["doctor", "--checkpoint", str(outputs[method][0] / "checkpoint.safetensors")])

    for method, parts in (
        ("prlc", ["canonicalizer", "logits"]),
        ("self_canonicalizer", ["logits"]),
    ):
        assert doctor(method) == 0
        told = capsys.readouterr().out
        for part in parts:
            assert f"{part} of {method}, C4, 16 images of 16 x 16" in told
        assert told.count("The law holds") == len(parts)
    with pytest.raises(SystemExit) as ended:
        doctor("vanilla")
    assert ended.value.code == 1 and "logits of vanilla, C8" in capsys.readouterr().out
    assert doctor("lps") == 2
    assert "lps draws its poses" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["vanilla", "prlc", "prlc_mirrored", "self_canonicalizer"])
def test_channels_last_it_is_the_same_model_and_as_invariant(trained, method):
    images, outputs = trained
    folder, expected = outputs[method]
    model = load_trained(folder / "checkpoint.safetensors", method)
    strides = [part.weight.stride() for part in model.backbone.modules() if _has_kernel(part)]
    assert classifiers_channels_last(model) is model
    layouts = [part.weight.stride() for part in model.backbone.modules() if _has_kernel(part)]
    assert layouts and layouts != strides and all(stride[1] == 1 for stride in layouts)
    with torch.no_grad():
        found, turned = model(images), model(images.rot90(1, (-2, -1)))
    torch.testing.assert_close(found.logits, expected.logits)
    if method != "vanilla":
        assert torch.equal(found.chosen, expected.chosen)
    if method.startswith("prlc"):
        assert torch.equal(found.logits, turned.logits)


def _has_kernel(part):
    return isinstance(part, torch.nn.Conv2d) and part.weight[0, 0].numel() > 1


def test_without_a_name_it_is_of_the_method_that_was_trained(trained):
    images, outputs = trained
    with torch.no_grad():
        found = load_trained(outputs["prlc_mirrored"][0] / "checkpoint.safetensors")(images)
    assert torch.equal(found.logits, outputs["prlc"][1].logits)


def test_draws_of_an_evaluation_are_part_of_a_run_that_draws():
    more = load_study({**STUDY, "evaluate": {"poses": "C4", "samples": 5}})
    study = load_study(STUDY)
    for run, other in zip(study.runs(), more.runs(), strict=True):
        assert (study.recipe_hash(run) == more.recipe_hash(other)) == (run.method != "lps")


def test_what_it_cannot_be_is_told(trained, tmp_path):
    path = trained[1]["vanilla"][0] / "checkpoint.safetensors"
    with pytest.raises(UserError, match="prlc is not evaluated with a checkpoint of vanilla"):
        load_trained(path, "prlc")
    tensors, meta = checkpoint.load(path)
    described = meta.pop("model")
    checkpoint.save(tmp_path / "old", tensors, meta)
    with pytest.raises(UserError, match="of an earlier version"):
        load_trained(tmp_path / "old")
    checkpoint.save(tmp_path / "pretrained", tensors, {"dataset": "digits"})
    with pytest.raises(UserError, match="not that of a run"):
        load_trained(tmp_path / "pretrained")
    with pytest.raises(UserError, match="told the true pose"):
        load_trained(path, "oracle")
    described["backbone"]["weights"] = "prototypes"
    checkpoint.save(tmp_path / "zero", tensors, meta | {"model": described})
    with pytest.raises(UserError, match="of a zero-shot classifier"):
        load_trained(tmp_path / "zero")
    assert "w.pt" not in json.dumps(described)  # no path of the machine that trained it
