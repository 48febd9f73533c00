"""Trees of image files: of the user's, in a mirror, and with everything that goes wrong in them."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eqadapt.cli import main
from eqadapt.datasets import acquire as acquire_module
from eqadapt.datasets import registry
from eqadapt.datasets.acquire import acquire
from eqadapt.datasets.image_tree import folder_files, places
from eqadapt.datasets.manifest import manifest_members, write_manifest
from eqadapt.datasets.mirror import noted_checksum
from eqadapt.datasets.preparation import prepare
from eqadapt.datasets.prepared import SPLITS, load, read_metadata
from eqadapt.datasets.raw import verify
from eqadapt.errors import UserError
from eqadapt.files import tree_state
from eqadapt.study_rules import knows_classes


def png(seed, size=(8, 8), mode="RGB"):
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(stream, "PNG")
    return stream.getvalue()


def tree(splits=("train", "test"), classes=("cat", "dog", "train"), each=6, **options):
    """{path: bytes} of a tree; one class is named like a split, as in CIFAR-100."""
    names = [f"{s}/{c}/{i}.png" for s in splits for c in classes for i in range(each)]
    return {name: png(seed, **options) for seed, name in enumerate(names)}


def lay_out(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def tar(path, files):
    with tarfile.open(path, "w:xz" if path.suffix == ".xz" else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def from_folder(tmp_path, files, **options):
    folder = lay_out(tmp_path / "mine", files)
    acquire("pets", tmp_path / "raw", folder=folder)
    verify("pets", tmp_path / "raw")
    prepare("pets", tmp_path / "raw", tmp_path / "out", **{"validation": 3, **options})
    return tmp_path / "out"


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_state_of_a_folder_tells_of_every_change(tmp_path):
    folder = lay_out(tmp_path / "mine", tree())
    state, few = tree_state(folder), tree_state(folder, most=2)
    assert state == tree_state(folder) != few
    image = next((folder / "train" / "cat").iterdir())
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])
    written_over = tree_state(folder)
    assert written_over != state and tree_state(folder, most=2) == few
    image.unlink()
    assert tree_state(folder) not in (state, written_over)
    assert tree_state(folder, most=2) != few


def test_the_state_of_a_folder_tells_of_what_its_links_lead_to(tmp_path):
    elsewhere = lay_out(tmp_path / "elsewhere", tree())
    folder = tmp_path / "mine"
    (folder / "test").mkdir(parents=True)
    (folder / "train").symlink_to(elsewhere / "train")
    for image in (elsewhere / "test").rglob("*.png"):
        here = folder / "test" / image.parent.name
        here.mkdir(exist_ok=True)
        (here / image.name).symlink_to(image)
    (folder / "test" / "up").symlink_to(folder)  # what has no end is not gone through
    (folder / "nowhere").symlink_to(tmp_path / "nothing")
    states = [tree_state(folder)]
    for split in ("train", "test"):  # a linked folder, linked files
        image = next((elsewhere / split).rglob("*.png"))
        image.write_bytes(image.read_bytes()[:-1])
        states.append(tree_state(folder))
    assert len(set(states)) == 3 and states[-1] == tree_state(folder)


def test_a_folder_whose_bad_image_was_replaced_is_taken_anew(tmp_path):
    files = tree()
    name = next(name for name in files if name.startswith("train/cat"))
    with pytest.raises(UserError, match="cannot be decoded"):
        from_folder(tmp_path, {**files, name: files[name][:40]})
    mended = from_folder(tmp_path, files)
    assert len(load(mended, "train").images) == 15


def test_user_folder_becomes_splits_with_the_right_labels_and_pixels(tmp_path):
    files = tree()
    out = from_folder(tmp_path, {**files, "README.txt": b"hello", "train/cat/.DS_Store": b"x"})
    names = {split: sorted(n for n in files if n.startswith(split)) for split in ("train", "test")}
    for split in SPLITS:
        part = load(out, split, check=True)
        assert part.classes == ("cat", "dog", "train")
        source = names["test" if split == "test" else "train"]
        for image, label, row in zip(part.images, part.labels, part.index, strict=True):
            assert source[row].split("/")[1] == part.classes[label]
            assert np.array_equal(image.permute(1, 2, 0), pixels(files[source[row]]))
    assert [len(load(out, split).labels) for split in SPLITS] == [15, 3, 18]


def test_preparing_twice_gives_the_same_bytes(tmp_path):
    first = from_folder(tmp_path / "1", tree())
    second = from_folder(tmp_path / "2", dict(reversed(tree().items())))
    for split in SPLITS:
        path = f"{split}.safetensors"
        assert (first / path).read_bytes() == (second / path).read_bytes()


def test_order_in_the_archive_does_not_matter(tmp_path):
    found = []
    files = tree()
    for number, order in enumerate([list(files), list(reversed(files))]):
        mirror = tmp_path / str(number)
        mirror.mkdir()
        tar(mirror / "pets.tar", {f"pets/{name}": files[name] for name in order})
        acquire("pets", mirror / "raw", mirror_folder=mirror)
        verify("pets", mirror / "raw")
        prepare("pets", mirror / "raw", mirror / "out", validation=3)
        found.append(read_metadata(mirror / "out", "train")["data_sha256"])
    assert found[0] == found[1]


def test_nothing_of_the_machine_is_recorded(tmp_path):
    out = from_folder(tmp_path, tree())
    for path in [*out.iterdir(), *(tmp_path / "raw").glob("*.json")]:
        assert str(tmp_path).encode() not in path.read_bytes()


# --- splits


def test_val_is_the_test_set_where_there_is_no_other(tmp_path):
    out = from_folder(tmp_path, tree(splits=("train", "val")))
    assert [len(load(out, split).labels) for split in SPLITS] == [15, 3, 18]


def test_val_beside_test_is_the_validation_split(tmp_path):
    files = tree(splits=("train", "val", "test"))
    out = from_folder(tmp_path, files, validation=None)
    assert [len(load(out, split).labels) for split in SPLITS] == [18, 18, 18]
    with pytest.raises(UserError, match="of its own"):
        prepare("pets", tmp_path / "raw", tmp_path / "out", validation=3)


def test_the_level_of_the_splits_is_found():
    inside = places(["test/pets/train/train/1.png", "test/pets/test/train/2.png"], "x")
    assert inside["test/pets/train/train/1.png"].split == "train"
    assert inside["test/pets/test/train/2.png"].split == "test"
    assert inside["test/pets/test/train/2.png"].folder == "train"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no images in train"),
        (["cat/1.png", "dog/2.png"], "no images in train"),
        (["train/cat/1.png"], "no images in test"),
        (["train/1.png", "test/2.png"], "no images in train"),
        (["train/cat/1.txt", "test/cat/1.png"], "no images in train"),
        (["train/a/1.png", "train/a/1.png", "test/a/1.png"], "twice"),
    ],
)
def test_trees_of_another_shape_are_explained(names, message):
    with pytest.raises(UserError, match=message):
        places(names, "x")


def test_missing_class_is_named_with_its_split(tmp_path):
    files = {name: data for name, data in tree().items() if not name.startswith("test/dog")}
    with pytest.raises(UserError, match="test split has no image of dog"):
        from_folder(tmp_path, files)
    assert not (tmp_path / "out").exists()


def test_registered_data_set_needs_its_own_classes(tmp_path):
    folder = lay_out(tmp_path / "mine", tree())
    acquire("cifar10", tmp_path / "raw", folder=folder)
    verify("cifar10", tmp_path / "raw")
    with pytest.raises(UserError, match=r"missing \['airplane'.*unknown \['train'\]"):
        prepare("cifar10", tmp_path / "raw", tmp_path / "out")


def test_class_with_one_training_image_cannot_be_split(tmp_path):
    files = tree()
    for number in range(1, 6):
        del files[f"train/dog/{number}.png"]
    with pytest.raises(UserError, match="one image only of dog") as error:
        from_folder(tmp_path, files)
    assert "two training images or more" in error.value.fix
    assert not (tmp_path / "out").exists()


# --- images


def test_corrupt_image_is_named(tmp_path):
    files = tree()
    files["train/dog/3.png"] = files["train/dog/3.png"][:60]
    with pytest.raises(UserError, match="cannot be decoded") as error:
        from_folder(tmp_path, files)
    assert error.value.where == "pets.tar: train/dog/3.png"
    assert list((tmp_path / "out").iterdir()) == []


def test_grey_and_transparent_images_stand_beside_rgb(tmp_path):
    files = tree()
    files["train/cat/0.png"] = png(0, mode="L")
    files["test/cat/0.png"] = png(0, mode="RGBA")
    out = from_folder(tmp_path, files)
    assert load(out, "train").images.shape[1:] == (3, 8, 8)


def test_sizes_that_vary_need_a_size(tmp_path):
    files = {**tree(), "train/cat/7.png": png(7, size=(9, 12))}
    with pytest.raises(UserError, match="several sizes") as error:
        from_folder(tmp_path, files)
    assert "--size" in error.value.fix
    out = from_folder(tmp_path / "again", files, size=6)
    assert {load(out, split).images.shape[1:] for split in SPLITS} == {torch.Size([3, 6, 6])}


@pytest.mark.parametrize("shape", [(8, 12), (12, 8)])
def test_images_that_are_not_square_need_a_size(tmp_path, shape):
    """Else they would be distorted, or cut in training and not in evaluation."""
    files = {name: png(number, size=shape) for number, name in enumerate(tree())}
    with pytest.raises(UserError, match="not square") as error:
        from_folder(tmp_path, files)
    assert "--size" in error.value.fix
    out = from_folder(tmp_path / "again", files, size=6)
    assert load(out, "train").images.shape[1:] == (3, 6, 6)


# --- mirrors


@pytest.mark.parametrize("form", ["tar.xz", "tar", "zip", "folder"])
def test_mirror_in_every_form_gives_the_same_images(tmp_path, form):
    files = {f"pets/{name}": data for name, data in tree().items()}
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    if form == "folder":
        lay_out(mirror, files)
    elif form == "zip":
        with zipfile.ZipFile(mirror / "pets.zip", "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        tar(mirror / f"pets.{form}", files)
    record = acquire("pets", tmp_path / "raw", mirror_folder=mirror)
    assert record["kind"] == "mirror" and "/" not in record["mirror"]
    assert verify("pets", tmp_path / "raw")["checked_against"] is None
    prepare("pets", tmp_path / "raw", tmp_path / "out", validation=3)
    direct = from_folder(tmp_path / "direct", tree())
    for split in SPLITS:
        ours, theirs = (read_metadata(f, split)["data_sha256"] for f in (tmp_path / "out", direct))
        assert ours == theirs


@pytest.mark.parametrize("note", ["pets.tar.sha256", "pets.md"])
def test_mirror_checksum_beside_the_archive_is_checked(tmp_path, note):
    archive = tar(tmp_path / "pets.tar", tree())
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    (tmp_path / note).write_text(f"Archive: pets.tar, 1 byte, sha256 {digest}\n")
    acquire("pets", tmp_path / "raw", mirror_folder=tmp_path)
    assert verify("pets", tmp_path / "raw")["checked_against"] == "mirror"
    archive.write_bytes(archive.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"expected {digest}"):
        acquire("pets", tmp_path / "raw2", mirror_folder=tmp_path)
    assert archive.exists() and not (tmp_path / "raw2" / "pets.tar").exists()


def test_note_with_several_checksums_is_read_by_the_archive_name(tmp_path):
    one, two = "1" * 64, "2" * 64
    note = tmp_path / "pets.md"
    note.write_text(f"original.tar sha256 {one}\nArchive: pets.tar, sha256 {two}\n")
    assert noted_checksum(tmp_path / "pets.tar", "pets").value == two
    note.write_text(f"a {one}\nb {two}\n")
    assert noted_checksum(tmp_path / "pets.tar", "pets") is None


def test_a_checksum_of_a_longer_or_another_name_is_not_the_archives(tmp_path, capsys):
    one, two = "1" * 64, "2" * 64
    (tmp_path / "pets.md").write_text(f"| pets.tar.xz | {one} |\n| `pets.tar` | {two} |\n")
    assert noted_checksum(tmp_path / "pets.tar", "pets").value == two
    assert noted_checksum(tmp_path / "pets.tar.xz", "pets").value == one
    (tmp_path / "pets.tar.sha256").write_text(f"{one}  other.tar\n{two} *./pets.tar\n")
    assert noted_checksum(tmp_path / "pets.tar", "pets").value == two
    (tmp_path / "pets.tar.sha256").write_text(f"{one}  other.tar\n{two}  my-pets.tar\n")
    (tmp_path / "pets.md").unlink()
    assert noted_checksum(tmp_path / "pets.tar", "pets") is None
    assert "pets.tar.sha256: none of its SHA-256" in capsys.readouterr().err


def test_new_download_replaces_the_old_file(tmp_path):
    tar(tmp_path / "pets.tar.xz", tree())
    acquire("pets", tmp_path / "raw", mirror_folder=tmp_path)
    verify("pets", tmp_path / "raw")
    acquire("pets", tmp_path / "raw", folder=lay_out(tmp_path / "mine", tree()))
    assert sorted(p.name for p in (tmp_path / "raw").iterdir()) == ["pets.tar", "source.json"]


# --- folders too large to copy


@pytest.fixture
def large(tmp_path, monkeypatch):
    monkeypatch.setattr(acquire_module, "PACK_LIMIT_BYTES", 100)
    folder = lay_out(tmp_path / "mine", tree())
    acquire("pets", tmp_path / "raw", folder=folder)
    return folder


def test_manifest_gives_the_same_images_as_a_copy(tmp_path, large):
    record = verify("pets", tmp_path / "raw")
    assert record["file"] == "pets.manifest.tsv"
    prepare("pets", tmp_path / "raw", tmp_path / "out", validation=3)
    copied = tmp_path / "copied"
    tar(tmp_path / "pets.tar", tree())
    acquire("pets", copied, mirror_folder=tmp_path)
    verify("pets", copied)
    prepare("pets", copied, copied / "out", validation=3)
    for split in SPLITS:
        ours, theirs = (
            read_metadata(folder, split)["data_sha256"]
            for folder in (tmp_path / "out", copied / "out")
        )
        assert ours == theirs


def test_manifest_records_no_path_of_the_machine(tmp_path, large):
    verify("pets", tmp_path / "raw")
    for name in ("source.json", "verified.json", "pets.manifest.tsv"):
        assert str(tmp_path) not in (tmp_path / "raw" / name).read_text()


@pytest.mark.parametrize("fault", ["changed", "gone"])
def test_manifest_finds_files_that_changed(tmp_path, large, fault):
    file = large / "train/dog/3.png"
    if fault == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(UserError, match=r"train/dog/3\.png (is gone|changed)"):
        verify("pets", tmp_path / "raw")
    assert large.is_dir() and (tmp_path / "raw/pets.manifest.tsv").exists()


def test_an_image_that_changed_after_verification_is_not_prepared(tmp_path, large):
    """Of as many bytes, and still an image."""
    verify("pets", tmp_path / "raw")
    image = large / "train/dog/3.png"
    size = image.stat().st_size
    changed = next(data for seed in range(100, 1000) if len(data := png(seed)) == size)
    image.write_bytes(changed)
    with pytest.raises(UserError, match=r"train/dog/3\.png changed: sha256 expected"):
        prepare("pets", tmp_path / "raw", tmp_path / "out", validation=3)


def test_links_of_the_user_are_followed_once(tmp_path):
    folder = lay_out(tmp_path / "real", tree())
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "train").symlink_to(folder / "train")
    (mine / "test").symlink_to(folder / "test")
    (folder / "train/cat/back").symlink_to(mine)
    record = acquire("pets", tmp_path / "raw", folder=mine)
    with tarfile.open(tmp_path / "raw" / record["file"]) as archive:
        assert len(archive.getnames()) == 36


def packed(tmp_path, folder):
    record = acquire("pets", tmp_path / "raw", folder=folder)
    with tarfile.open(tmp_path / "raw" / record["file"]) as archive:
        return archive.getnames()


def test_two_ways_to_one_folder_are_both_taken(tmp_path):
    """Neither is a loop; which of them is come to first does not matter."""
    folder = lay_out(tmp_path / "mine", tree(classes=("a", "b")))
    lay_out(folder, {"train/b/part/9.png": png(9)})
    (folder / "test/c").symlink_to("../train/a")
    (folder / "train/c").symlink_to("a")
    (folder / "train/a/extra").symlink_to("../b/part")
    names = packed(tmp_path, folder)
    for twice in ("train/b/part/9.png", "train/a/extra/9.png", "train/c/extra/9.png"):
        assert twice in names
    assert {f"{split}/c/{i}.png" for split in ("train", "test") for i in range(6)} < set(names)


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_links_that_lead_up_are_not_followed(tmp_path, target):
    """Also above the folder itself, where everything beside it would count as images of cat."""
    lay_out(tmp_path, {"other/1.png": png(1)})
    folder = lay_out(tmp_path / "mine", tree())
    (folder / "train/cat/up").symlink_to(target)
    assert sorted(packed(tmp_path, folder)) == sorted(tree())


class Listing:
    """Stands for what os.scandir returns."""

    def __init__(self, entries):
        self.entries = iter(entries)

    def __next__(self):
        return next(self.entries)

    def __iter__(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def test_folders_are_visited_in_sorted_order(tmp_path, monkeypatch):
    """Two links into each other's folders: what is taken does not depend on the listing."""
    folder = lay_out(tmp_path / "mine", tree(classes=("a", "b")))
    (folder / "train/a/x").symlink_to("../b")
    (folder / "train/b/x").symlink_to("../a")
    found, scandir = [], os.scandir

    for order in (False, True):

        def listed(path, order=order):
            with scandir(path) as entries:
                return Listing(sorted(entries, key=lambda entry: entry.name, reverse=order))

        with monkeypatch.context() as patched:
            patched.setattr(os, "scandir", listed)
            found.append(folder_files(folder))
    assert found[0] == found[1]
    names = [name for name, _ in found[0][0]]
    assert "train/a/x/0.png" in names and "train/b/x/0.png" in names


@pytest.mark.parametrize("target", ["/nonexistent.png", "link.png"])
def test_link_to_no_image_is_named(tmp_path, target):
    folder = lay_out(tmp_path / "mine", tree())
    (folder / "train/cat/link.png").symlink_to(target)
    with pytest.raises(UserError, match=r"cat/link\.png is a link that leads nowhere") as error:
        acquire("pets", tmp_path / "raw", folder=folder)
    assert error.value.where == str(folder / "train/cat/link.png")


def test_link_to_no_class_folder_is_named(tmp_path):
    folder = lay_out(tmp_path / "mine", tree())
    for split in ("train", "test"):
        (folder / split / "bird").symlink_to("/nonexistent")
    with pytest.raises(UserError, match="test/bird has no image; 1 more"):
        acquire("pets", tmp_path / "raw", folder=folder)


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    folder = lay_out(tmp_path / "mine", tree())
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match="cannot be read: Permission denied") as error:
        acquire("pets", tmp_path / "raw", folder=folder)
    assert error.value.where.endswith("cat")


# --- what is no image, and downloads that fail


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_class_of_images_with_an_unlisted_suffix_is_refused(tmp_path, form):
    files = {
        f"{s}/{c}": b"x" for s in ("train", "test") for c in ("c/1.jfif", "c/2.JFIF", "c/n.txt")
    }
    files |= tree()
    with pytest.raises(
        UserError, match=r"test/c has no image \(2 \.jfif, 1 \.txt\); 1 more"
    ) as error:
        if form == "folder":
            from_folder(tmp_path, files)
        else:
            tar(tmp_path / "pets.tar", {f"pets/{name}": data for name, data in files.items()})
            acquire("pets", tmp_path / "raw", mirror_folder=tmp_path)
            verify("pets", tmp_path / "raw")
            prepare("pets", tmp_path / "raw", tmp_path / "out", validation=3)
    assert ".jpeg" in error.value.fix


def test_empty_class_folder_is_refused(tmp_path):
    folder = lay_out(tmp_path / "mine", tree())
    for split in ("train", "test"):
        (folder / split / "bird" / "deeper").mkdir(parents=True)
    with pytest.raises(UserError, match="test/bird has no image; 1 more"):
        acquire("pets", tmp_path / "raw", folder=folder)


def test_files_left_out_are_counted_by_suffix(tmp_path, capsys):
    """Beside the images, not elsewhere in the tree; hidden ones are not worth a word."""
    others = ("train/cat/7.jfif", "test/dog/8.JFIF", "test/dog/list.txt", "train/cat/note")
    silent = ("readme.txt", "docs/a/b.txt", ".git/x", "train/.DS_Store", "__MACOSX/train/c/._1.png")
    files = {**tree(), **dict.fromkeys((*others, *silent), b"x")}
    out = from_folder(tmp_path, files)
    told = capsys.readouterr().err
    assert "--folder: 2 .jfif, 1 .txt, 1 without suffix left out" in told and ".webp" in told
    tar(tmp_path / "pets.tar", {f"pets/{name}": data for name, data in files.items()})
    acquire("pets", tmp_path / "raw", mirror_folder=tmp_path)
    verify("pets", tmp_path / "raw")
    prepare("pets", tmp_path / "raw", tmp_path / "again", validation=3)
    assert "pets.tar: 2 .jfif, 1 .txt, 1 without suffix left out" in capsys.readouterr().err
    ours, theirs = (read_metadata(f, "train")["data_sha256"] for f in (out, tmp_path / "again"))
    assert ours == theirs


def test_nothing_is_said_where_nothing_was_left_out(tmp_path, capsys):
    from_folder(tmp_path, {**tree(), "readme.txt": b"x", "train/cat/.DS_Store": b"x"})
    assert "left out" not in capsys.readouterr().err


def test_one_class_is_not_enough(tmp_path):
    with pytest.raises(UserError, match="one class, cat") as error:
        from_folder(tmp_path, tree(classes=("cat",)))
    assert "two classes or more" in error.value.fix


@pytest.mark.parametrize("fault", ["no folder", "bad tree", "broken copy", "broken manifest"])
def test_failed_download_leaves_the_earlier_one_and_its_record(tmp_path, monkeypatch, fault):
    from_folder(tmp_path, tree())
    before = {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()}
    other = tmp_path / "other"
    if fault != "no folder":
        lay_out(other, tree(splits=("train",) if fault == "bad tree" else ("train", "test")))

    def breaks(files, path):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(acquire_module, "pack", breaks)
    monkeypatch.setattr(acquire_module.manifest, "write_manifest", breaks)
    if fault == "broken manifest":
        monkeypatch.setattr(acquire_module, "PACK_LIMIT_BYTES", 100)
    with pytest.raises((UserError, OSError)):
        acquire("pets", tmp_path / "raw", folder=other)
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()} == before


def test_new_archive_never_stands_beside_an_old_record(tmp_path, monkeypatch):
    """Stopped between the archive's arrival and its record: no record at all is left."""
    from_folder(tmp_path, tree())
    old = (tmp_path / "raw/pets.tar").read_bytes()

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(acquire_module, "_record", stopped)
    with pytest.raises(KeyboardInterrupt):
        acquire("pets", tmp_path / "raw", folder=lay_out(tmp_path / "new", tree(each=7)))
    assert (tmp_path / "raw/pets.tar").read_bytes() != old
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["pets.tar"]


def test_record_goes_before_the_archive_comes(tmp_path, monkeypatch):
    from_folder(tmp_path, tree())
    replace = Path.replace

    def watched(self, target):
        if Path(target) == tmp_path / "raw/pets.tar":
            assert not list((tmp_path / "raw").glob("*.json"))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    acquire("pets", tmp_path / "raw", folder=lay_out(tmp_path / "new", tree(each=7)))
    assert (tmp_path / "raw/source.json").is_file()


def test_commands_take_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lay_out(tmp_path / "mine", tree(size=(10, 14)))
    assert main(["download", "--dataset", "pets", "--folder", "mine"]) == 0
    assert main(["verify", "--dataset", "pets"]) == 0
    assert main(["prepare", "--dataset", "pets", "--validation", "3", "--size", "8"]) == 0
    assert "15 train, 3 validation, 18 test" in capsys.readouterr().out
    assert json.loads((tmp_path / "data/raw/pets/verified.json").read_text())["kind"] == "folder"


def test_mirror_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "pets.tar", tree())
    monkeypatch.setenv("EQADAPT_MIRROR", str(tmp_path))
    assert main(["download", "--dataset", "pets"]) == 0


def test_images_beside_the_splits_are_left_out_with_a_word(tmp_path, capsys):
    plain = from_folder(tmp_path / "plain", tree())
    capsys.readouterr()
    files = {"logo.png": png(99), "train/odd.png": png(98), "docs/a/b.png": png(97), **tree()}
    marked = from_folder(tmp_path / "marked", files)
    assert "3 .png left out" in capsys.readouterr().err
    for split in SPLITS:
        ours, theirs = (read_metadata(f, split)["data_sha256"] for f in (plain, marked))
        assert ours == theirs


def test_an_image_beside_the_splits_of_an_archive_sets_no_size(tmp_path, monkeypatch):
    """Its images are all of one size but that one, which is left out."""
    monkeypatch.chdir(tmp_path)
    tar(tmp_path / "pets.tar", {"cover.png": png(99, size=(40, 60)), **tree()})
    monkeypatch.setenv("EQADAPT_MIRROR", str(tmp_path))
    for verb, flags in (("download", []), ("verify", []), ("prepare", ["--validation", "3"])):
        assert main([verb, "--dataset", "pets", *flags]) == 0


def test_a_name_that_no_archive_may_have_is_told_before_packing(tmp_path):
    lay_out(tmp_path / "mine", {**tree(), "train/cat/x\\y.png": png(1)})
    with pytest.raises(UserError, match="backslash"):
        acquire("pets", tmp_path / "raw", folder=tmp_path / "mine")
    assert not list((tmp_path / "raw").glob("*.tar"))


@pytest.mark.parametrize("odd", [b"\n", b"\r", b"\x0b", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe9"])
@pytest.mark.parametrize("limit", [0, 1 << 30])
def test_names_that_end_a_line_or_are_no_text_are_told(tmp_path, monkeypatch, odd, limit):
    """Of images, or of the folder of a class; the last is e acute in Latin-1."""
    monkeypatch.setattr(acquire_module, "PACK_LIMIT_BYTES", limit)
    folder = lay_out(tmp_path / "mine", tree())
    name = os.fsdecode(b"train/cat/a" + odd + b"b.png")
    lay_out(folder, {name: png(1)})
    with pytest.raises(UserError, match="control character, or bytes") as error:
        acquire("pets", tmp_path / "raw", folder=folder)
    assert repr(name) in error.value.what
    error.value.what.encode("utf-8")  # it can be printed
    assert not list((tmp_path / "raw").iterdir())


def test_files_that_are_left_out_may_have_any_name(tmp_path):
    acquire("pets", tmp_path / "raw", folder=lay_out(tmp_path / "mine", {**tree(), "Icon\r": b""}))


def test_manifests_are_split_at_line_feeds_alone(tmp_path):
    names = ["a\x85b.png", "c\u2028d.png", "e\x0bf\rg.png"]  # as older manifests may have them
    files = [(name, tmp_path / f"{place}.png") for place, name in enumerate(names)]
    for _, file in files:
        file.write_bytes(b"x")
    write_manifest(files, tmp_path / "m.manifest.tsv")
    assert [m.name for m in manifest_members(tmp_path / "m.manifest.tsv", tmp_path)] == names


def test_an_archive_of_a_folder_that_was_damaged_is_packed_anew(tmp_path):
    folder, raw = lay_out(tmp_path / "mine", tree()), tmp_path / "raw"
    record = acquire("pets", raw, folder=folder)
    (raw / record["file"]).write_bytes(b"x")
    with pytest.raises(UserError, match="corrupt or truncated") as error:
        verify("pets", raw)
    assert "--folder" in error.value.fix and not list(raw.iterdir())


# --- a sample of one image a class, whose splits are of classes


def sampled(flat):
    """{path: bytes}, as the release has them in one folder, or each in a folder of its class."""
    ids = [f"n{number:08d}" for number in range(1_440_000, 1_440_060)]
    folders = ["sample-abc"] * len(ids) if flat else [f"sample/{wnid}" for wnid in ids]
    files = {
        f"{f}/{wnid}_a_cat.JPEG": png(int(wnid[1:])) for f, wnid in zip(folders, ids, strict=True)
    }
    return {**files, "sample-abc/README.md": b"words", "sample-abc/figure.png": png(0)}


def test_a_sample_of_one_image_a_class_is_split_by_classes(tmp_path, monkeypatch):
    name = "imagenet1k_sample256"
    source = dataclasses.replace(
        registry.get(name), n_train=None, n_test=None, n_classes=60, size=16
    )
    monkeypatch.setitem(registry.all_sources(), name, source)
    found = {}
    for flat in (True, False):
        mirror = tmp_path / f"mirror{flat}"
        mirror.mkdir()
        official = source.files[0].name
        if flat:
            data = gzip.compress(tar(tmp_path / "a.tar", sampled(flat)).read_bytes())
            (mirror / official).write_bytes(data)
        else:
            tar(mirror / f"{name}.tar.xz", sampled(flat))
        raw, out = tmp_path / f"raw{flat}", tmp_path / f"out{flat}"
        acquire(name, raw, mirror_folder=mirror)
        verify(name, raw)
        prepare(name, raw, out)
        splits = {split: load(out, split) for split in SPLITS}
        labels = np.concatenate([splits[split].labels.numpy() for split in SPLITS])
        assert sorted(labels) == list(range(60))  # each class once, in one of the splits
        for split, least in {"train": 12, "validation": 1, "test": 18}.items():
            assert len(splits[split].labels) >= least
        assert splits["test"].images.shape[1:] == (3, 16, 16)
        assert len(splits["test"].classes) == 60
        found[flat] = {split: data.labels.tolist() for split, data in splits.items()}
    assert found[True] == found[False]
    with pytest.raises(UserError, match="none of 36 image files is one of ImageNet-1k, one image"):
        acquire(name, tmp_path / "x", folder=lay_out(tmp_path / "pets", tree()))


def test_the_sample_has_labels_of_imagenet():
    file = {"weights": "file", "model": "resnet50", "options": {}}
    assert knows_classes("imagenet1k_sample256", file)
    published = {**file, "weights": "pretrained"}
    assert knows_classes("imagenet1k_sample256", published)
    assert not knows_classes("imagenette", published)
    of_others = {**published, "model": "coatnet_2_rw_224.sw_in12k"}
    assert not knows_classes("imagenet1k_sample256", of_others)
