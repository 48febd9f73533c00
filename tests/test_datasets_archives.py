"""Archives that lie, and image files of every kind."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from eqadapt.datasets.archives import members, pack
from eqadapt.datasets.decode import decode, image_size
from eqadapt.errors import UserError

SUFFIXES = [".tar", ".tar.gz", ".tar.xz", ".tar.bz2", ".zip"]


def write(path, files):
    """An archive of {name: bytes}, or of {name: TarInfo} for members that are no files."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    mode = {"gz": "w:gz", "xz": "w:xz", "bz2": "w:bz2"}.get(path.suffix[1:], "w")
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            body = b"" if isinstance(data, tarfile.TarInfo) else data
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path


def contents(path):
    return {member.name: member.read() for member in members(path)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_of_archive_gives_the_same_files(tmp_path, suffix):
    files = {"a/one.bin": b"1" * 5000, "./a/two.bin": b"", "three": b"3"}
    expected = {"a/one.bin": b"1" * 5000, "a/two.bin": b"", "three": b"3"}
    assert contents(write(tmp_path / f"x{suffix}", files)) == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "C:/evil", "a\\..\\evil", ".."]
)
def test_paths_outside_the_archive_are_refused(tmp_path, suffix, name):
    path = write(tmp_path / f"x{suffix}", {"good": b"1", name: b"2"})
    with pytest.raises(UserError, match="outside its folder"):
        contents(path)


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_refused(tmp_path, kind):
    link = tarfile.TarInfo("train/a/link.png")
    link.type, link.linkname = kind, "/etc/passwd"
    path = write(tmp_path / "x.tar.gz", {"train/a/1.png": b"1", "link": link})
    with pytest.raises(UserError, match=r"a link|not a regular file"):
        contents(path)


def test_links_in_a_zip_are_refused(tmp_path):
    info = zipfile.ZipInfo("train/a/link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="link"):
        contents(tmp_path / "x.zip")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated_archives_are_named(tmp_path, suffix):
    data = np.random.default_rng(0).bytes(60_000)
    path = write(tmp_path / f"x{suffix}", {"a": data[:30_000], "b": data[30_000:]})
    whole = path.read_bytes()
    for keep in (0.2, 0.8):
        path.write_bytes(whole[: int(len(whole) * keep)])
        with pytest.raises(UserError, match="truncated") as error:
            contents(path)
        assert error.value.where == path.name


def test_a_tar_damaged_at_a_header_is_not_a_shorter_one(tmp_path):
    path = write(tmp_path / "x.tar", dict.fromkeys("abc", b"1" * 600))
    whole = path.read_bytes()
    header = 2 * 3 * 512  # of the third member: each has a header and two blocks
    flipped = bytearray(whole)
    flipped[header + 5] ^= 1
    for damaged in (flipped, whole[:header], whole[: header + 100], whole[: header + 1536]):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="corrupt") as error:
            contents(path)
        assert error.value.where == path.name


def test_damaged_bz2_and_unknown_compressions_are_named(tmp_path):
    path = write(tmp_path / "x.tar.bz2", {"a": np.random.default_rng(0).bytes(60_000)})
    bad = bytearray(path.read_bytes())
    bad[30_000] ^= 1
    path.write_bytes(bad)
    with pytest.raises(UserError, match="corrupt"):
        contents(path)
    path = write(tmp_path / "x.zip", {"a": b"1"})
    bad = bytearray(path.read_bytes())
    method = bad.index(b"PK\x01\x02") + 10  # of the member, in the central directory
    bad[method : method + 2] = (9).to_bytes(2, "little")
    path.write_bytes(bad)
    with pytest.raises(UserError, match="cannot be read here"):
        contents(path)


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_flipped_bits_are_found(tmp_path, suffix):
    data = np.random.default_rng(0).bytes(60_000)
    path = write(tmp_path / f"x{suffix}", {"a": data})
    bad = bytearray(path.read_bytes())
    bad[30_000] ^= 1
    path.write_bytes(bad)
    with pytest.raises(UserError, match="corrupt"):
        contents(path)


def test_text_is_no_archive(tmp_path):
    (tmp_path / "x.tar.gz").write_text("<html>404</html>")
    with pytest.raises(UserError, match="not an archive"):
        contents(tmp_path / "x.tar.gz")


def test_packing_is_deterministic_and_bears_nothing_of_the_machine(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(name.encode())
    pairs = [("b/two", tmp_path / "two"), ("a/one", tmp_path / "one")]
    pack(pairs, tmp_path / "1.tar")
    (tmp_path / "one").chmod(0o700)
    pack(pairs[::-1], tmp_path / "2.tar")
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert list(contents(tmp_path / "1.tar")) == ["a/one", "b/two"]
    with tarfile.open(tmp_path / "1.tar") as tar:
        assert {(i.uid, i.gid, i.uname, i.mtime) for i in tar} == {(0, 0, "", 0)}


# --- decoding


def encode(image, form="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def test_grey_becomes_rgb_and_stays_grey_where_asked():
    data = encode(Image.fromarray(RAMP))
    assert np.array_equal(decode(data, "x", 3), np.repeat(RAMP[..., None], 3, 2))
    assert np.array_equal(decode(data, "x", 1), RAMP[..., None])


def test_colour_becomes_luma_in_a_grey_data_set():
    rgb = np.zeros((2, 2, 3), np.uint8)
    rgb[..., 1] = 255
    assert np.all(decode(encode(Image.fromarray(rgb)), "x", 1) == 150)  # 0.587 * 255


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode):
    image = Image.new(mode, (4, 2), (0, 0, 0, 0)[-len(mode) :])
    assert np.all(decode(encode(image), "x", 3) == 255)
    half = Image.new(mode, (4, 2), (0, 0, 0, 128)[-len(mode) :])
    assert np.all(np.abs(decode(encode(half), "x", 3).astype(int) - 127) <= 1)


def test_palettes_are_looked_up_and_their_transparency_shows_white():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    plain = decode(encode(image), "x", 3)
    assert plain[0].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    clear = decode(encode(image, transparency=1), "x", 3)
    assert clear[0].tolist() == [[255, 0, 0], [255, 255, 255], [0, 0, 255]]


def test_sixteen_bit_grey_is_scaled_not_clipped():
    wide = (np.array([[0, 257, 32896, 65535]])).astype(np.uint16)
    assert decode(encode(Image.fromarray(wide)), "x", 1)[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    """The stored pixels are such that turning them as EXIF says gives RAMP."""
    undo = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.T,
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].T,
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(undo(RAMP))), exif=exif)
    assert np.array_equal(decode(data, "x", 1)[..., 0], RAMP)
    assert image_size(data, "x") == RAMP.shape


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (10, 13), (16, 16), (16, 90)])
def test_resizing_keeps_the_centre_of_the_short_side(shape):
    red = np.zeros((*shape, 3), np.uint8)
    red[shape[0] // 4 : -shape[0] // 4, shape[1] // 4 : -shape[1] // 4] = 255
    image = decode(encode(Image.fromarray(red)), "x", 3, size=16)
    assert image.shape == (16, 16, 3)
    assert np.all(image[6:10, 6:10] > 240)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_damaged_images_are_named(form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), form)
    assert decode(data, "x", 3).shape == (64, 64, 3)
    for bad in (data[: len(data) // 2], b"", b"no image", data[:10]):
        with pytest.raises(UserError, match="cannot be decoded") as error:
            decode(bad, "set.tar: train/a/1.png", 3)
        assert error.value.where == "set.tar: train/a/1.png"
        again = "replace or remove the file, then download and verify again"
        assert again in error.value.fix and "0x" not in str(error.value)


def test_floating_point_images_are_refused():
    with pytest.raises(UserError, match="floating point"):
        decode(encode(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "x", 3)
