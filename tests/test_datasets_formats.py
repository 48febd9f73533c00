"""The official releases, in small: their layout is that of the real ones, their images are ours."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import io
import json
import struct
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler
from socketserver import ThreadingTCPServer

import numpy as np
import pytest
import torch

from eqadapt.datasets import registry
from eqadapt.datasets.acquire import acquire
from eqadapt.datasets.fetch import Patience
from eqadapt.datasets.preparation import prepare
from eqadapt.datasets.prepared import SPLITS, load, read_metadata
from eqadapt.datasets.raw import verify
from eqadapt.datasets.source import Checksum
from eqadapt.datasets.sources import mnist, rotated_mnist
from eqadapt.errors import UserError

N_TRAIN, N_TEST = 60, 20
RNG = np.random.default_rng(0)


def tar_gz(files):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def images(n, size, channels):
    return RNG.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def labels(n, classes=10):
    return (np.arange(n) % classes).astype(np.uint8)


def cifar10_files(train, test, n_train=N_TRAIN):
    def records(x, y):
        return np.concatenate([y[:, None], x.transpose(0, 3, 1, 2).reshape(len(x), -1)], 1)

    parts = np.array_split(records(*train), 5)
    files = {f"c/data_batch_{i + 1}.bin": part.tobytes() for i, part in enumerate(parts)}
    return {
        "cifar-10-binary.tar.gz": tar_gz({**files, "c/test_batch.bin": records(*test).tobytes()})
    }


def cifar100_files(train, test):
    def records(x, y):
        coarse = np.full_like(y, 7)
        planes = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        return np.concatenate([coarse[:, None], y[:, None], planes], 1).tobytes()

    files = {"c/train.bin": records(*train), "c/test.bin": records(*test)}
    return {"cifar-100-binary.tar.gz": tar_gz(files)}


def stl10_files(train, test):
    files = {"s/unlabeled_X.bin": b"never read"}
    for split, (x, y) in (("train", train), ("test", test)):
        files[f"s/{split}_X.bin"] = x.transpose(0, 3, 2, 1).tobytes()
        files[f"s/{split}_y.bin"] = (y + 1).tobytes()
    return {"stl10_binary.tar.gz": tar_gz(files)}


def idx(array):
    return gzip.compress(
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
    )


def mnist_files(train, test):
    return {
        "train-images-idx3-ubyte.gz": idx(train[0][..., 0]),
        "train-labels-idx1-ubyte.gz": idx(train[1]),
        "t10k-images-idx3-ubyte.gz": idx(test[0][..., 0]),
        "t10k-labels-idx1-ubyte.gz": idx(test[1]),
    }


def rotated_files(train, test):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, (x, y) in (("train_valid", train), ("test", test)):
            table = np.concatenate([x.reshape(len(x), -1) / 255, y[:, None]], 1)
            text = io.StringIO()
            np.savetxt(text, table, fmt="%.7f")
            archive.writestr(f"mnist_all_rotation_normalized_float_{name}.amat", text.getvalue())
    return {"mnist_rotation_new.zip": stream.getvalue()}


RELEASES = {
    "cifar10": (cifar10_files, 32, 3, 10),
    "cifar100": (cifar100_files, 32, 3, 100),
    "stl10": (stl10_files, 96, 3, 10),
    "mnist": (mnist_files, 28, 1, 10),
    "rotated_mnist": (rotated_files, 28, 1, 10),
}


def register(monkeypatch, name, files, n_train, n_test, **changes):
    """The registered source, with counts and checksums of our small release."""
    real = registry.get(name)
    remote = tuple(
        dataclasses.replace(
            file, checksum=Checksum("md5", hashlib.md5(files[file.name]).hexdigest(), "the test")
        )
        if file.name in files
        else dataclasses.replace(file, urls=("http://127.0.0.1:9/x",))
        for file in real.files
    )
    small = dataclasses.replace(
        real, n_train=n_train, n_test=n_test, files=remote, validation=0.2, **changes
    )
    sources = {**registry.all_sources(), name: small}
    monkeypatch.setattr(registry, "all_sources", lambda: sources)


def mirror_of(tmp_path, files):
    mirror = tmp_path / "mirror"
    mirror.mkdir(exist_ok=True)
    for name, data in files.items():
        (mirror / name).write_bytes(data)
    return mirror


def run(name, tmp_path, mirror):
    hasty = Patience(tries=1, timeout=1.0, pause=0.0)
    record = acquire(name, tmp_path / "raw", mirror_folder=mirror, patience=hasty)
    verified = verify(name, tmp_path / "raw")
    prepare(name, tmp_path / "raw", tmp_path / "out")
    return record, verified


@pytest.mark.parametrize("name", RELEASES)
def test_official_release_is_read_pixel_for_pixel(name, tmp_path, monkeypatch):
    make, size, channels, classes = RELEASES[name]
    n_train, n_test = (6 * classes, 2 * classes)
    train = images(n_train, size, channels), labels(n_train, classes)
    test = images(n_test, size, channels), labels(n_test, classes)
    files = make(train, test)
    register(monkeypatch, name, files, n_train, n_test)
    record, verified = run(name, tmp_path, mirror_of(tmp_path, files))
    assert record["kind"] == "official" and verified["checked_against"] == "published"
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == sorted(
        [record["file"], "source.json", "verified.json"]
    )
    for split in SPLITS:
        part = load(tmp_path / "out", split, check=True)
        x, y = test if split == "test" else train
        assert np.array_equal(part.images.permute(0, 2, 3, 1), x[part.index])
        assert np.array_equal(part.labels, y[part.index])
    assert len(load(tmp_path / "out", "validation").labels) == n_train // 5


@pytest.mark.parametrize("name", RELEASES)
def test_wrong_official_archive_in_a_mirror_stays_there_and_is_not_taken(
    name, tmp_path, monkeypatch
):
    make, size, channels, classes = RELEASES[name]
    both = images(classes, size, channels), labels(classes, classes)
    files = make(both, both)
    register(monkeypatch, name, files, classes, classes)
    mirror = mirror_of(tmp_path, files)
    broken = mirror / next(iter(files))
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"expected .* found"):
        acquire(name, tmp_path / "raw", mirror_folder=mirror)
    assert broken.exists()
    assert not any(path.is_file() for path in (tmp_path / "raw").glob("*"))


@pytest.fixture
def served(tmp_path):
    """A folder, and the address it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(SimpleHTTPRequestHandler, directory=folder)
    with ThreadingTCPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_official_release_over_the_network_is_that_of_the_mirror(
    name, tmp_path, monkeypatch, served
):
    make, size, channels, _ = RELEASES[name]
    both = images(60, size, channels), labels(60)
    files = make(both, both)
    folder, address = served
    for file, data in files.items():
        (folder / file).write_bytes(data)
    register(monkeypatch, name, files, 60, 60)
    source = registry.get(name)
    remote = tuple(
        dataclasses.replace(file, urls=(f"{address}/{file.name}",)) for file in source.files
    )
    sources = {**registry.all_sources(), name: dataclasses.replace(source, files=remote)}
    monkeypatch.setattr(registry, "all_sources", lambda: sources)
    record, verified = run(name, tmp_path, None)
    assert record["kind"] == "official" and record["url"].startswith(address)
    assert verified["checked_against"] == "published"
    again = acquire(name, tmp_path / "other", mirror_folder=folder)
    assert again["sha256"] == record["sha256"] and again["mirror"]
    raw = sorted(path.name for path in (tmp_path / "raw").iterdir())
    assert raw == sorted([source.archive, "source.json", "verified.json"])


def test_fewer_images_than_published_is_an_error(tmp_path, monkeypatch):
    both = images(30, 32, 3), labels(30)
    files = cifar10_files(both, both)
    register(monkeypatch, "cifar10", files, 50_000, 10_000)
    with pytest.raises(UserError, match="30 images, 50000 published"):
        run("cifar10", tmp_path, mirror_of(tmp_path, files))
    assert not (tmp_path / "out").exists()


def test_missing_file_of_a_release_is_named(tmp_path, monkeypatch):
    files = {"cifar-10-binary.tar.gz": tar_gz({"c/data_batch_1.bin": b"1"})}
    register(monkeypatch, "cifar10", files, 10, 10)
    with pytest.raises(UserError, match=r"lacks data_batch_2\.bin"):
        run("cifar10", tmp_path, mirror_of(tmp_path, files))


def test_labels_and_images_must_be_as_many(tmp_path, monkeypatch):
    x, y = images(30, 28, 1), labels(30)
    files = {**mnist_files((x, y), (x, y)), "train-labels-idx1-ubyte.gz": idx(y[:-1])}
    register(monkeypatch, "mnist", files, 30, 30)
    with pytest.raises(UserError, match="29 labels"):
        run("mnist", tmp_path, mirror_of(tmp_path, files))
    x, y = images(30, 96, 3), labels(30)
    files = stl10_files((x, y[:-1]), (x, y))
    register(monkeypatch, "stl10", files, 30, 30)
    with pytest.raises(UserError, match="29 labels"):
        run("stl10", tmp_path, mirror_of(tmp_path, files))


@pytest.mark.parametrize("cut", [3, 8, 40])
def test_damaged_idx_is_an_error_of_the_user(cut):
    whole = idx(images(3, 28, 1)[..., 0])
    with pytest.raises(UserError, match="IDX"):
        mnist.parse_idx(whole[:cut], "x")
    with pytest.raises(UserError, match="IDX"):
        mnist.parse_idx(gzip.compress(gzip.decompress(whole)[:-1]), "x")


def test_bytes_that_are_no_whole_images_are_refused(tmp_path, monkeypatch):
    good = images(10, 32, 3), labels(10)
    files = {"cifar-100-binary.tar.gz": tar_gz({"c/train.bin": b"123", "c/test.bin": b""})}
    register(monkeypatch, "cifar100", files, 10, 10)
    with pytest.raises(UserError, match="no whole number"):
        run("cifar100", tmp_path, mirror_of(tmp_path, files))
    assert len(good[0]) == 10


# --- rotated MNIST from MNIST


@pytest.fixture
def generated(tmp_path, monkeypatch):
    """Rotated MNIST where only MNIST is to be had."""
    train, test = (images(100, 28, 1), labels(100)), (images(40, 28, 1), labels(40))
    files = mnist_files(train, test)
    register(monkeypatch, "mnist", files, 100, 40)
    derivation = dataclasses.replace(
        registry.get("rotated_mnist").derivation,
        derive=lambda contents: rotated_mnist.generate(contents, 60, 50),
    )
    register(monkeypatch, "rotated_mnist", {}, 60, 50, derivation=derivation)
    record, _ = run("rotated_mnist", tmp_path, mirror_of(tmp_path, files))
    return tmp_path / "out", record, np.concatenate([train[0], test[0]])


def test_generated_set_says_that_it_is_not_the_official_one(generated):
    folder, record, _ = generated
    assert record["generated_from"] == "mnist" and record["dataset"] == "rotated_mnist"
    metadata = read_metadata(folder, "test")
    assert "not the images of the official release" in metadata["preparation"]
    assert json.loads(metadata["source"])["generated_from"] == "mnist"


def test_generated_splits_do_not_share_an_image(generated):
    folder, _, pool = generated
    parts = [load(folder, split) for split in SPLITS]
    rows = torch.cat([part.index for part in parts])
    assert [len(part.labels) for part in parts] == [48, 12, 50]
    assert len(rows.unique()) == 110 and rows.max() < len(pool)
    for part in parts:
        assert np.array_equal(
            part.labels, np.where(part.index < 100, part.index, part.index - 100) % 10
        )


def test_turning_is_counter_clockwise_and_exact_at_right_angles():
    image = images(1, 28, 1)[0]
    assert np.array_equal(rotated_mnist.turn(image, 90), np.rot90(image))
    assert np.array_equal(rotated_mnist.turn(image, 180), np.rot90(image, 2))
    bar = np.zeros((28, 28, 1), np.uint8)
    bar[13:15, 14:] = 255  # points right; turned by 45 degrees it points up and right
    turned = rotated_mnist.turn(bar, 45)[..., 0]
    assert turned[:14, 14:].sum() > 10 * turned[14:, 14:].sum()
