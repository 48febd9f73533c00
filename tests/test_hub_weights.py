"""timm's pretrained weights: fetched once, from a mirror or a hub, and begun with ever after."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import yaml
from project_fixtures import prepare_digits
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from eqadapt.adaptation import ImageKind
from eqadapt.backbones import Backbone, build_network, hub_file
from eqadapt.cli import main
from eqadapt.errors import UserError
from eqadapt.hub_weights import fetch
from eqadapt.runs import StudyFiles, StudyRunner
from eqadapt.study import load_study
from eqadapt.trained import load_trained

REPOSITORY = Path(__file__).parents[1]
MODEL, TAGGED = "test_resnet", "test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def hubs_file(tmp_path_factory):
    """Weights as the hub has them, here random ones."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("hub") / "model.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), path)
    return path


@pytest.fixture
def mirror(tmp_path, hubs_file, monkeypatch):
    folder = tmp_path / "mirror"
    (folder / "timm").mkdir(parents=True)
    (folder / "timm" / f"{TAGGED}.safetensors").write_bytes(hubs_file.read_bytes())
    monkeypatch.chdir(tmp_path)
    return folder


def test_networks_begin_with_what_was_fetched(mirror, hubs_file):
    record = fetch(MODEL, hub_file(MODEL), mirror)
    assert record["source"] == f"mirror: timm/{TAGGED}.safetensors"
    assert (record["tag"], record["license"]) == ("r160_in1k", "apache-2.0")
    with safe_open(hub_file(MODEL), "pt") as file:
        assert json.loads(file.metadata()["meta"]) == record
    theirs = load_file(hubs_file)
    whole = build_network(MODEL, 1000, 3, pretrained=True).state_dict()
    assert all(torch.equal(whole[key], value) for key, value in theirs.items())
    other = build_network(MODEL, 10, 1, pretrained=True)
    assert other(torch.rand(2, 1, 64, 64)).shape == (2, 10)
    assert torch.equal(other.state_dict()["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"])


def test_a_tag_is_part_of_a_name(mirror):
    fetch(TAGGED, hub_file(TAGGED), mirror)
    assert hub_file(TAGGED).is_file() and not hub_file(MODEL).exists()
    build_network(TAGGED, 10, 3, pretrained=True)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("resnet_fifty", "unknown backbone"),
        ("resnet50.best", "no pretrained weights 'resnet50.best'"),
        ("test_resnet.r160", "test_resnet.r160_in1k"),
    ],
)
def test_names_without_weights_are_told(mirror, model, said):
    with pytest.raises(UserError) as told:
        fetch(model, hub_file(model), mirror)
    assert said in str(told.value)


@pytest.mark.parametrize("study", ["cifar10", "imagenet", "paper"])
def test_timm_has_the_weights_that_a_study_begins_with(study):
    tagged = timm.list_pretrained()
    known = {*tagged, *(name.split(".")[0] for name in tagged)}
    models = load_study(REPOSITORY / "config" / f"{study}.yaml").hub_models()
    assert models and set(models) <= known


def test_a_broken_file_of_the_mirror_leaves_nothing(mirror, capsys):
    (mirror / "timm" / f"{TAGGED}.safetensors").write_bytes(b"half of it")
    assert main(["weights", "--model", MODEL, "--mirror", str(mirror)]) == 2
    assert "not a state dict" in capsys.readouterr().err
    assert not hub_file(MODEL).exists()


class Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's answers that its client needs for one file."""

    content = b""

    def do_HEAD(self, body=False):
        if not self.path.endswith(f"/timm/{TAGGED}/resolve/main/model.safetensors"):
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        if body:
            self.wfile.write(self.content)

    def do_GET(self):
        self.do_HEAD(body=True)

    def log_message(self, *_):
        """Nothing."""


@pytest.fixture
def endpoint(hubs_file):
    handler = type("OneFile", (Hub,), {"content": hubs_file.read_bytes()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_weights_come_from_the_hub(tmp_path, hubs_file, endpoint):
    proxies = {"http_proxy", "https_proxy", "all_proxy"}
    environment = {key: value for key, value in os.environ.items() if key.lower() not in proxies}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "cache")}
    environment.pop("EQADAPT_MIRROR", None)
    command = [sys.executable, "-m", "eqadapt", "weights", "--model", MODEL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"timm/{TAGGED}" in done.stdout
    found, theirs = load_file(tmp_path / hub_file(MODEL)), load_file(hubs_file)
    assert found.keys() == theirs.keys()
    assert all(torch.equal(found[key], theirs[key]) for key in theirs)


STUDY = {
    "study": "hub",
    "datasets": {"digits": {"limit_train": 40, "limit_test": 20}},
    "backbones": {MODEL: {"weights": "pretrained"}},
    "groups": ["C4"],
    "methods": ["vanilla", "prlc"],
    "image": {"size": 32},
    "scorer": {"name": "classifier", "model": TAGGED, "pretrained": True},
    "seeds": [0],
    "train": {"epochs": 1, "batch_size": 20},
    "evaluate": {"poses": "C4"},
    "device": "cpu",
}


def test_runs_tell_their_weights_and_evaluation_needs_none(mirror, tmp_path):
    prepare_digits(tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    models = load_study(STUDY).hub_models()
    assert models == [MODEL, TAGGED]
    for model in models:
        fetch(model, hub_file(model), mirror)
    assert main(["train", "--study", "study.yaml"]) == 0
    record = next((tmp_path / "results").rglob("*prlc*/run.json"))
    sums = {model: hashlib.sha256(hub_file(model).read_bytes()).hexdigest() for model in models}
    assert json.loads(record.read_text("utf-8"))["hub_weights"] == sums
    for model in models:
        hub_file(model).unlink()
    assert main(["predict", "--study", "study.yaml"]) == 0
    assert load_trained(record.parent / "checkpoint.safetensors")(torch.rand(2, 1, 32, 32))


def test_a_frozen_network_needs_the_head_of_its_weights(tmp_path, monkeypatch):
    """Told by the network itself, too: not all names that timm builds tell their classes before."""
    monkeypatch.setattr("eqadapt.study_rules.timm_classes", lambda model: None)
    own = {"datasets": ["imagenet1k"], "backbones": {MODEL: {"weights": "pretrained"}}}
    methods = ["vanilla", "prlc", "distil_prior"]
    study = load_study({**STUDY, **own, "regimes": ["joint", "frozen"], "methods": methods})
    files = StudyFiles(tmp_path / "results", tmp_path / "scratch", tmp_path / "data")
    runner = StudyRunner(study, files, lambda _line: None)
    monkeypatch.setattr(  # as if fetched; timm says that they are of 1000 classes
        "eqadapt.runs.build_backbone",
        lambda recipe, kind, weights: Backbone(build_network(MODEL, kind.classes, 3), 32, [0], [1]),
    )
    refused = {}
    for classes in (7, 1000):
        kind = ImageKind(3, classes)
        monkeypatch.setattr(runner, "data", lambda dataset, kind=kind: SimpleNamespace(kind=kind))
        refused[classes] = set()
        for run in study.runs():
            try:
                runner.backbone(run, study.recipe(run))
            except UserError as error:
                assert f"tell 1000 classes and the data have {classes}" in error.what
                refused[classes].add((run.regime, run.method))
    frozen = {("frozen", method) for method in methods}
    assert refused == {7: {("joint", "distil_prior"), *frozen}, 1000: set()}
    run = study.runs()[0]
    recipe = study.recipe(run)
    assert (run.regime, run.method) == ("joint", "vanilla")
    monkeypatch.setattr(runner, "data", lambda dataset: SimpleNamespace(kind=ImageKind(3, 7)))
    with pytest.raises(UserError, match="its head would be random"):
        runner.backbone(run, {**recipe, "train": {**recipe["train"], "teacher_weight": 0.5}})
