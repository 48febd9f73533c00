"""The prepared form: splits, checksums, bytes that do not change, and the commands around it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from eqadapt.cli import main
from eqadapt.datasets import preparation, prepared, registry
from eqadapt.datasets.acquire import acquire
from eqadapt.datasets.preparation import prepare
from eqadapt.datasets.prepared import SPLITS, load, write_splits
from eqadapt.datasets.raw import verify
from eqadapt.datasets.stratify import hashed_uniform, stratified_order, validation_size
from eqadapt.errors import UserError

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=200)


def make_digits(folder, **options):
    acquire("digits", folder / "raw")
    verify("digits", folder / "raw")
    return prepare("digits", folder / "raw", folder / "out", **options)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    make_digits(folder)
    return folder / "out"


# --- the order splits are cut from


@settings(max_examples=60, deadline=None)
@given(label_lists, st.integers(0, 3))
def test_every_prefix_is_stratified(values, seed):
    labels = np.array(values)
    order = stratified_order(labels, seed)
    assert sorted(order) == list(range(len(labels)))
    classes, counts = np.unique(labels, return_counts=True)
    for size in range(len(labels) + 1):
        head = labels[order[:size]]
        if size >= len(classes):
            assert set(head) == set(classes)
        share = np.array([np.sum(head == c) for c in classes])
        # One image a class comes first; beyond that the shares are within one image of exact.
        assert np.all(np.abs(share - size * counts / len(labels)) <= len(classes))


def test_shares_are_exact_for_equal_classes():
    labels = np.repeat(np.arange(10), 50)
    head = labels[stratified_order(labels, 0)[:100]]
    assert np.bincount(head).tolist() == [10] * 10


def test_the_order_is_pinned():
    """A change here changes every split ever made: it must be meant."""
    labels = np.arange(1000) % 7
    digest = hashlib.sha256(stratified_order(labels, 0).astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "e3fb08db6fb73d57"
    assert hashed_uniform(0, np.array([0, 1]), "x").tolist() == [
        0.30556744053131735,
        0.2674376792052232,
    ]


def test_seeds_give_different_orders():
    labels = np.arange(1000) % 7
    assert not np.array_equal(stratified_order(labels, 0), stratified_order(labels, 1))


def test_hashed_numbers_are_uniform():
    values = hashed_uniform(0, np.arange(20000), "test")
    assert np.all((values >= 0) & (values < 1))
    assert np.histogram(values, 20, (0, 1))[0] == pytest.approx(np.full(20, 1000), rel=0.12)


@pytest.mark.parametrize("asked", [1, 3, 0.001, 98, 10_000])
def test_validation_that_would_lose_a_class_is_refused(asked):
    with pytest.raises(UserError, match="every class"):
        validation_size(asked, np.arange(100) % 4)


@pytest.mark.parametrize("asked", [1, 2, 0.5])
def test_one_image_a_class_leaves_nothing_to_choose(asked):
    with pytest.raises(UserError, match="2 training images of 2 classes") as error:
        validation_size(asked, np.arange(2))
    assert "two training images or more" in error.value.fix and "choose" not in error.value.fix


def test_validation_takes_counts_and_fractions():
    labels = np.arange(100) % 4
    assert validation_size(10, labels) == 10 and validation_size(0.25, labels) == 25


# --- digits: the whole way, without a network


def test_digits_splits_are_disjoint_complete_and_stratified(digits):
    parts = {split: load(digits, split, check=True) for split in SPLITS}
    assert [len(parts[split].labels) for split in SPLITS] == [1100, 200, 497]
    rows = torch.cat([part.index for part in parts.values()])
    assert torch.equal(rows.sort().values, torch.arange(1797))
    for part in parts.values():
        share = torch.bincount(part.labels, minlength=10) / len(part.labels)
        assert torch.all((share - 0.1).abs() < 0.006)


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    reference = load_digits()
    for split in SPLITS:
        part = load(digits, split)
        assert part.images.shape[1:] == (1, 8, 8) and part.images.dtype == torch.uint8
        assert np.array_equal(part.labels, reference.target[part.index])
        expected = reference.images[part.index] * 255 / 16
        assert np.abs(part.images[:, 0].numpy() - expected).max() <= 0.5
        assert part.classes == tuple("0123456789")


def test_prepared_files_are_equal_to_the_byte(digits, tmp_path):
    make_digits(tmp_path)
    for split in SPLITS:
        first, second = (prepared.split_path(f, split) for f in (digits, tmp_path / "out"))
        assert first.read_bytes() == second.read_bytes()


def test_seed_moves_validation_and_never_the_test_set(digits, tmp_path):
    make_digits(tmp_path, seed=1)
    assert torch.equal(load(digits, "test").images, load(tmp_path / "out", "test").images)
    assert not torch.equal(
        load(digits, "validation").index, load(tmp_path / "out", "validation").index
    )


def test_metadata_says_where_the_images_are_from(digits):
    metadata = prepared.read_metadata(digits, "train")
    assert metadata["dataset"] == "digits" and metadata["split"] == "train"
    origin = json.loads(metadata["source"])
    assert origin["kind"] == "bundled" and origin["checked_against"] == "published"
    assert len(origin["sha256"]) == 64
    with safe_open(prepared.split_path(digits, "train"), "np") as file:
        images, labels = file.get_tensor("images"), file.get_tensor("labels")
    expected = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()
    assert metadata["data_sha256"] == expected


def test_limits_are_nested_and_stratified(digits):
    small, large = (load(digits, "train", limit=limit) for limit in (50, 300))
    assert set(small.index.tolist()) < set(large.index.tolist())
    assert torch.bincount(small.labels).tolist() == [5] * 10
    assert len(load(digits, "train", limit=5000).labels) == 1100


@pytest.mark.parametrize("mapped", [False, True, None])
def test_a_limited_split_is_a_copy_of_its_rows(digits, monkeypatch, mapped):
    whole = load(digits, "train")
    monkeypatch.setattr(prepared, "_CHUNK_BYTES", 7 * whole.images[:1].nbytes)  # several parts
    few = load(digits, "train", limit=50, mapped=mapped)
    rows = torch.searchsorted(whole.index, few.index)
    assert torch.equal(few.images, whole.images[rows]) and few.images.is_contiguous()
    assert few.images.untyped_storage().resizable()  # not in the file


def test_mapped_images_equal_loaded_ones(digits):
    mapped, loaded = load(digits, "test", mapped=True), load(digits, "test")
    assert torch.equal(mapped.images, loaded.images) and loaded.images.is_contiguous()


def test_changed_bytes_are_found(digits, tmp_path):
    path = tmp_path / "test.safetensors"
    data = bytearray(prepared.split_path(digits, "test").read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    load(tmp_path, "test")
    with pytest.raises(UserError, match="checksum"):
        load(tmp_path, "test", check=True)
    path.write_bytes(data[:-100])
    with pytest.raises(UserError, match="cannot be used"):
        load(tmp_path, "test")


def test_missing_split_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="not prepared") as error:
        load(tmp_path / "digits", "test")
    assert "prepare" in error.value.fix


def test_a_split_with_a_hole_is_never_written(tmp_path):
    labels = np.array([0, 1])
    tables = {"train": (labels, labels), "test": (labels, labels)}
    with (
        pytest.raises(RuntimeError, match="1 images of the test split"),
        write_splits(tmp_path, tables, (2, 2, 1), {}) as writers,
    ):
        writers["train"].put(np.array([0, 1]), np.zeros((2, 2, 2, 1), np.uint8))
        writers["test"].put(np.array([0]), np.zeros((1, 2, 2, 1), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("finished", range(3))
def test_a_preparation_that_stops_leaves_the_earlier_one_whole(tmp_path, monkeypatch, finished):
    """Whichever split it was about to finish."""
    make_digits(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    finish, calls = prepared.SplitWriter.finish, []

    def stops(writer):
        calls.append(writer)
        if len(calls) > finished:
            raise KeyboardInterrupt
        finish(writer)

    monkeypatch.setattr(prepared.SplitWriter, "finish", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare("digits", tmp_path / "raw", tmp_path / "out", seed=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_no_split_takes_its_place_before_the_last_is_finished(tmp_path, monkeypatch):
    make_digits(tmp_path)
    finish, seen = prepared.SplitWriter.finish, []

    def watched(writer):
        finish(writer)
        seen.append(
            [
                json.loads(prepared.read_metadata(tmp_path / "out", s)["preparation"])["seed"]
                for s in SPLITS
            ]
        )

    monkeypatch.setattr(prepared.SplitWriter, "finish", watched)
    prepare("digits", tmp_path / "raw", tmp_path / "out", seed=1)
    assert seen == [[0, 0, 0]] * 3


def test_a_full_disk_is_told_before_images_are_written(tmp_path, monkeypatch):
    make_digits(tmp_path)
    size = prepared.split_path(tmp_path / "out", "train").stat().st_size

    def full(descriptor, start, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=f"{size} bytes .*No space left") as error:
        prepare("digits", tmp_path / "raw", tmp_path / "other")
    assert error.value.where == str(tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system reserves no room")
def test_the_room_of_a_split_is_taken_at_once(tmp_path):
    labels = np.zeros(4, np.int64)
    with (
        pytest.raises(RuntimeError, match="4 images"),
        write_splits(tmp_path, {"train": (labels, labels)}, (512, 512, 1), {}) as writers,
    ):
        assert writers["train"].path.stat().st_blocks * 512 >= 4 * 512 * 512


# --- verification


def test_wrong_archive_is_named_and_removed(tmp_path):
    record = acquire("digits", tmp_path)
    archive = tmp_path / record["file"]
    archive.write_bytes(archive.read_bytes()[:-10])
    cut = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.raises(UserError, match="corrupt or truncated") as error:
        verify("digits", tmp_path)
    assert f"sha256 expected {record['sha256']}" in str(error.value)
    assert f"found {cut}" in str(error.value)
    assert not archive.exists() and not (tmp_path / "verified.json").exists()
    assert not (tmp_path / "source.json").exists()  # by which a workflow would not download again


def test_a_record_cannot_vouch_for_an_archive(tmp_path):
    """The registered checksum counts, not one written beside the archive."""
    record = acquire("digits", tmp_path)
    (tmp_path / record["file"]).write_bytes(b"something else")
    record["sha256"] = hashlib.sha256(b"something else").hexdigest()
    record["checksum"]["value"] = record["sha256"]
    (tmp_path / "source.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="expected 09f66e6d"):
        verify("digits", tmp_path)


def test_archive_changed_after_verification_is_not_prepared(tmp_path):
    record = acquire("digits", tmp_path)
    verify("digits", tmp_path)
    with (tmp_path / record["file"]).open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(UserError, match="changed since"):
        prepare("digits", tmp_path, tmp_path / "out")


@pytest.mark.parametrize("step", [verify, lambda d, f: prepare(d, f, f / "out")])
def test_steps_out_of_order_say_what_is_missing(tmp_path, step):
    with pytest.raises(UserError, match=r"has no (source|verified)\.json") as error:
        step("digits", tmp_path)
    assert "run eqadapt" in error.value.fix


def test_folder_of_another_data_set_is_refused(tmp_path):
    acquire("digits", tmp_path)
    with pytest.raises(UserError, match="'digits', not 'mnist'"):
        verify("mnist", tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"dataset": "digits"}'])
def test_unreadable_record_is_an_error_of_the_user(tmp_path, text):
    (tmp_path / "source.json").write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        verify("digits", tmp_path)


@pytest.mark.parametrize("step", [verify, lambda d, f: prepare(d, f, f / "out")])
def test_record_that_lacks_something_is_an_error_of_the_user(tmp_path, step):
    """Whatever it is: each key alone, and nearly all of them at once."""
    acquire("digits", tmp_path)
    verify("digits", tmp_path)
    name = "source.json" if step is verify else "verified.json"
    whole = json.loads((tmp_path / name).read_text())
    used = ["dataset", "source", "kind", "layout", "file", "url", "mirror", "sha256", "checksum"]
    used += ["generated_from"] + (["checked_against"] if step is not verify else [])
    for key in used:
        (tmp_path / name).write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(UserError, match=f"cannot be read .it lacks {key}"):
            step("digits", tmp_path)
    for changed in ({"file": 3}, {"sha256": None}, {"checksum": "x"}, {"checksum": {"value": "x"}}):
        (tmp_path / name).write_text(json.dumps({**whole, **changed}))
        with pytest.raises(UserError, match=f"cannot be read .{next(iter(changed))} is"):
            step("digits", tmp_path)
    (tmp_path / name).write_text('{"dataset": "digits", "file": "digits.csv.gz"}')
    with pytest.raises(UserError, match="it lacks source, kind"):
        step("digits", tmp_path)


# --- the registry


def test_every_source_states_what_a_citation_needs():
    for source in registry.all_sources().values():
        if source.name == registry.IMAGE_FOLDER:
            continue
        assert source.title and source.version and source.homepage and source.licence
        assert source.citation.key in source.citation.bibtex
        assert source.n_train and source.n_test and source.n_classes and source.size
        assert source.classes is None or len(source.classes) == source.n_classes
        assert source.folders is None or len(source.folders) == source.n_classes
        if source.name == "imagenet1k_sample256":  # packed when it is asked for
            continue
        for file in source.files:
            assert file.checksum and file.checksum.published_by
            lengths = {"md5": 32, "sha1": 40, "sha256": 64}
            assert len(bytes.fromhex(file.checksum.value)) * 2 == lengths[file.checksum.algorithm]


def test_the_data_sets_of_the_studies_are_registered():
    asked = "digits mnist rotated_mnist cifar10 cifar100 stl10 imagenette imagenet1k image_folder"
    assert set(asked.split()) <= set(registry.names())


def test_unknown_data_set_lists_the_known():
    with pytest.raises(UserError, match="unknown data set 'cifar_10'") as error:
        registry.get("cifar_10")
    assert "did you mean 'cifar10'" in error.value.fix and "imagenette" in error.value.fix


def test_registry_is_light():
    """The study's validation asks for the names; it must not wait for torch."""
    code = "import sys, eqadapt.datasets.registry as r; r.names(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# --- the commands


def test_commands_go_the_whole_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for verb in ("download", "verify"):
        assert main([verb, "--dataset", "digits"]) == 0
    assert main(["prepare", "--dataset", "digits", "--validation", "0.2"]) == 0
    assert "1040 train, 260 validation, 497 test" in capsys.readouterr().out
    raw = sorted(path.name for path in (tmp_path / "data/raw/digits").iterdir())
    assert raw == ["digits.csv.gz", "source.json", "verified.json"]
    assert str(tmp_path) not in (tmp_path / "data/raw/digits/verified.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["download", "--dataset", "cifr10"], "unknown data set"),
        (["download", "--dataset", "imagenet1k"], "cannot be downloaded"),
        (["download", "--dataset", "x", "--folder", "nowhere"], "no folder"),
        (["download", "--dataset", "a-b", "--folder", "."], "cannot name"),
        (["download", "--dataset", "mnist", "--mirror", "nowhere"], "not a folder"),
        (["prepare", "--dataset", "digits"], "has no verified.json"),
    ],
)
def test_mistakes_are_one_message(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EQADAPT_MIRROR", raising=False)  # a mirror may hold data of any name
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and "to do:" in error and "Traceback" not in error


@pytest.mark.parametrize("verb", ["download", "prepare"])
@pytest.mark.parametrize("below", ["", "deeper"])
def test_file_in_the_place_of_the_folder_is_named(tmp_path, monkeypatch, capsys, verb, below):
    monkeypatch.chdir(tmp_path)
    if verb == "prepare":
        make_digits(tmp_path / "data")
    monkeypatch.setattr(preparation, "open_raw", None)  # told before the archive is looked at
    (tmp_path / "taken").write_text("mine")
    raw = ["--raw", "data/raw"] if verb == "prepare" else []
    assert main([verb, "--dataset", "digits", *raw, "--out", str(Path("taken", below))]) == 2
    error = capsys.readouterr().err
    assert "no folder can be made here" in error and "taken" in error
    assert (tmp_path / "taken").read_text() == "mine"


def test_size_is_refused_where_images_have_one(tmp_path):
    with pytest.raises(UserError, match="one size"):
        make_digits(tmp_path, size=16)


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "many"])
def test_nonsense_validation_is_refused(text, capsys):
    with pytest.raises(SystemExit):
        main(["prepare", "--dataset", "digits", "--validation", text])
    assert "--validation" in capsys.readouterr().err
