"""Labels of a part of ImageNet's classes: places among all 1000, which its networks tell."""

from __future__ import annotations

import dataclasses
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from eqadapt.analysis.predictions import load_predictions
from eqadapt.backbones import build_network
from eqadapt.cli import main
from eqadapt.datasets import registry
from eqadapt.datasets.acquire import acquire
from eqadapt.datasets.label_sets import imagenet_ids, with_labels_of
from eqadapt.datasets.preparation import prepare
from eqadapt.datasets.prepared import Prepared, load
from eqadapt.datasets.raw import verify
from eqadapt.errors import UserError
from eqadapt.files import sha256_file
from eqadapt.study import load_study

SOME = ("n01440764", "n02102040", "n15075141")  # labels 0, 217 and 999


def split_of(classes, **metadata):
    count = 2 * len(classes)
    return Prepared(
        torch.zeros(count, 3, 2, 2, dtype=torch.uint8),
        torch.arange(count) % len(classes),
        torch.arange(count),
        tuple(classes),
        metadata,
    )


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_the_ids_are_the_thousand_in_their_order():
    ids = imagenet_ids()
    assert len(set(ids)) == 1000 and sorted(ids) == list(ids)
    assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in ids)
    assert [ids.index(wnid) for wnid in SOME] == [0, 217, 999]


def test_labels_become_places_among_all_of_them():
    data = split_of(SOME)
    assert with_labels_of(data, None, "x") is data
    found = with_labels_of(data, "imagenet1k", "x")
    assert found.labels.tolist() == [0, 217, 999] * 2
    assert found.classes == imagenet_ids() and found.images is data.images


def test_imagenettes_classes_are_known_by_their_folders(tmp_path):
    source = registry.get("imagenette")
    small = dataclasses.replace(source, n_train=None, n_test=None, size=16)
    for split, count in (("train", 2), ("val", 1)):
        for folder in source.folders:
            (tmp_path / "mine" / split / folder).mkdir(parents=True)
            for number in range(count):
                (tmp_path / "mine" / split / folder / f"{number}.png").write_bytes(picture(number))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.all_sources(), "imagenette", small)
        acquire("imagenette", tmp_path / "raw", folder=tmp_path / "mine")
        verify("imagenette", tmp_path / "raw")
        prepare("imagenette", tmp_path / "raw", tmp_path / "out", validation=10)
    data = load(tmp_path / "out", "test")
    assert data.classes == source.classes
    found = with_labels_of(data, "imagenet1k", "x")
    assert [found.classes[label] for label in found.labels] == list(source.folders)


def test_classes_that_imagenet_has_not_are_told():
    with pytest.raises(UserError, match="1 of 2 classes are none of ImageNet's: cat") as told:
        with_labels_of(split_of(["n01440764", "cat"]), "imagenet1k", "datasets.mine")
    assert told.value.where == "datasets.mine.labels_of"


def test_a_network_of_imagenet_tells_them_as_it_is(tmp_path, monkeypatch):
    """End to end: a frozen network with 1000 outputs, two classes in a folder of one's own."""
    monkeypatch.chdir(tmp_path)
    for split, count in (("train", 4), ("test", 3)):
        for wnid in SOME[1:]:
            folder = tmp_path / "mine" / split / wnid
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(picture(number))
    network = build_network("resnet_small", 1000, 3)
    torch.nn.init.zeros_(network.fc.weight)
    with torch.no_grad():
        network.fc.bias.zero_()[217] = 1.0  # a network that says one class of all images
    torch.save(network.state_dict(), "net.pt")
    study = {
        "study": "part",
        "datasets": {
            "mine": {"folder": "mine", "size": 16, "validation": 2, "labels_of": "imagenet1k"}
        },
        "backbones": {
            "net": {
                "model": "resnet_small", "weights": "file", "file": "net.pt",
                "sha256": sha256_file(Path("net.pt")),
            }
        },
        "groups": ["C4"], "methods": ["vanilla"], "regimes": ["frozen"], "seeds": [0],
        "image": {"size": 16}, "train": {"batch_size": 2, "epochs": 1},
        "evaluate": {"poses": "C4", "gallery": 1}, "device": "cpu",
    }  # fmt: skip
    Path("part.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    assert main(["download", "--dataset", "mine", "--folder", "mine"]) == 0
    assert main(["verify", "--dataset", "mine"]) == 0
    assert main(["prepare", "--dataset", "mine", "--validation", "2", "--size", "16"]) == 0
    assert main(["train", "--study", "part.yaml"]) == 0
    assert main(["predict", "--study", "part.yaml"]) == 0
    (path,) = Path("results/part/predictions").glob("*.parquet")
    found = load_predictions(path)
    assert set(found.label.tolist()) == {217, 999}
    assert found.prediction.tolist() == np.full((6, 4), 217).tolist()
    assert len(found.meta["classes"]) == 1000


def test_the_weights_that_know_imagenet_know_a_part_of_it():
    def study(**options):
        return load_study(
            {
                "study": "part", "methods": ["vanilla"], "regimes": ["frozen"],
                "datasets": {"imagenette": options},
                "backbones": {"resnet50": {"weights": "pretrained"}},
            }
        )  # fmt: skip

    known = study(labels_of="imagenet1k")
    (run, *_) = known.trained_runs()
    assert known.start(run) is None and known.knows_classes(run)
    with pytest.raises(UserError, match="do not know the classes of imagenette"):
        study()
    with pytest.raises(UserError, match="labels_of"):
        study(labels_of="cifar10")
