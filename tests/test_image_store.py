"""Images that a device or memory has no room for: other places, the same results."""

import pytest
import torch
import yaml
from project_fixtures import prepare_digits

from eqadapt import image_store
from eqadapt.cli import main
from eqadapt.datasets import prepared
from eqadapt.image_store import HostImages, fits, on_device, strided
from eqadapt.memory import available_bytes

CPU = torch.device("cpu")
STUDY = {
    "study": "tiny",
    "datasets": {"digits": {"limit_train": 60, "limit_test": 20}},
    "backbones": {"resnet_small": {"weights": "pretrain"}},
    "groups": ["C4"],
    "methods": ["vanilla", "prlc", "distil_prior", "oracle"],
    "regimes": ["joint", "frozen"],
    "seeds": [0],
    "image": {"size": 32},
    "scorer": {"name": "paired_cnn", "inner": "group_cnn", "width": 4, "input_size": 17},
    "pretrain": {"epochs": 1, "batch_size": 20},
    "train": {"epochs": 2, "batch_size": 20, "augment": {"crop_padding": 2}},
    "evaluate": {"poses": "C8", "batch_size": 7},
    "device": "cpu",
}


@pytest.fixture
def images():
    torch.manual_seed(0)
    return torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8)


def test_batches_come_in_the_order_that_was_announced(images):
    there = HostImages(images, CPU)
    order = torch.randperm(20).view(4, 5)
    for _ in range(2):  # epochs
        there.expect(order)
        for rows in order:
            assert torch.equal(there.take(), images[rows])
    with pytest.raises(RuntimeError, match="announced"):
        there.take()
    there.expect(order)
    there.take()
    there.expect(order.flip(0))  # an epoch that was cut off does not reach into the next one
    assert torch.equal(there.take(), images[order[-1]])


def test_rows_and_slices_are_those_of_the_images(images):
    there = HostImages(images, CPU)
    assert len(there) == 20 and there.shape == images.shape
    assert torch.equal(there[3:9], images[3:9])
    assert torch.equal(there[torch.tensor([7, 0])], images[[7, 0]])
    part = strided(there, 1, 3)
    assert isinstance(part, HostImages) and torch.equal(part[:], images[1::3])
    assert torch.equal(strided(images, 1, 3), images[1::3])


def test_a_gpu_keeps_room_for_the_networks(images, monkeypatch):
    gpu = torch.device("cuda")
    free = images.nbytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert not fits(images, gpu) and fits(images[:10], gpu) and fits(images, CPU)
    found = on_device(images, gpu)
    assert isinstance(found, HostImages) and found.device == gpu
    assert on_device(images, CPU) is images
    # what torch keeps of an earlier run is no less free
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 2 * free)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: free)
    assert fits(images, gpu)


def test_images_in_their_file_go_to_a_device_that_has_room(images, monkeypatch):
    mapped = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # as `load` lays them out
    assert not mapped.is_contiguous()
    there = on_device(mapped, torch.device("meta"))  # of no GPU, as torch asks for no driver there
    assert isinstance(there, torch.Tensor) and there.device.type == "meta"
    assert there.shape == images.shape and there.is_contiguous()
    monkeypatch.setattr(image_store, "_PART_BYTES", 3 * images[:1].nbytes)
    copied = image_store._read(mapped, CPU)
    assert torch.equal(copied, images) and copied.is_contiguous()
    assert isinstance(on_device(mapped, CPU), HostImages)  # read as they are needed
    monkeypatch.setattr(image_store, "fits", lambda images, device: False)
    assert isinstance(on_device(mapped, torch.device("meta")), HostImages)


def test_images_without_room_in_memory_stay_in_their_file(tmp_path, monkeypatch):
    prepare_digits(tmp_path)
    folder = tmp_path / "data" / "prepared" / "digits"
    loaded = prepared.load(folder, "train", mapped=None)
    assert loaded.images.is_contiguous() and available_bytes() > 2**20
    # of digits, the one channel hides the order of the bytes: their place tells
    monkeypatch.setattr("eqadapt.memory.available_bytes", lambda: 3 * loaded.images.nbytes)
    mapped = prepared.load(folder, "train", mapped=None)
    assert not mapped.images.untyped_storage().resizable()
    assert torch.equal(mapped.images, loaded.images)
    few = prepared.load(folder, "train", limit=50, mapped=None)
    assert len(few.images) == 50 and few.images.is_contiguous()


def test_a_study_leaves_the_same_bytes_wherever_its_images_are(tmp_path, monkeypatch):
    prepare_digits(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    takes = []
    take = HostImages.take

    def counted(self):
        takes.append(self)
        return take(self)

    monkeypatch.setattr(HostImages, "take", counted)

    def run(name):
        where = ["--study", "study.yaml", "--results", f"{name}/results", "--scratch", name]
        for verb in ("pretrain", "train", "predict"):
            assert main([verb, *where]) == 0
        results = tmp_path / name / "results"
        kinds = ("runs/*/*.safetensors", "predictions/*", "galleries/*")
        files = [path for kind in kinds for path in results.glob(kind)]
        return {path.relative_to(results): path.read_bytes() for path in files}

    on_the_device = run("device")
    assert len(on_the_device) > 15 and not takes
    monkeypatch.setattr(image_store, "fits", lambda images, device: False)
    assert run("host") == on_the_device
    assert takes
