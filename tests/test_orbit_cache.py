"""The orbit cache: views of quarter-turned inputs, cosets, subgroups, refusals, resuming."""

import numpy as np
import pytest
import torch
from torch import nn

from eqadapt import orbit_cache
from eqadapt.backbones import Backbone, build_network
from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.orbit_cache import OrbitComputer, Orbits, input_cosets, views_of_pose
from eqadapt.tasks.classification import ImagePipeline

SIZE = 24


def action(order: int) -> RotationAction:
    return RotationAction(CyclicGroup(order), "bicubic")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    torch.manual_seed(0)
    network = build_network("cifar_resnet20", 5, 3, options={"width": 4})
    return Backbone(network, 8, [0.5] * 3, [0.5] * 3).eval()


def split(count: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 5, (count,), generator=generator)
    return images, labels, torch.arange(count) + 100


def identity(backbone: Backbone, group: str, **options):
    image = {
        "interpolation": "bicubic",
        "padding": "border",
        "mask": None,
        "size": SIZE,
        "upsampling": "bicubic",
    }
    data = {"dataset": "random", "split": "test", "data_sha256": "a" * 64}
    section = {"model": "cifar_resnet20", "options": {"width": 4, **options}}
    recipe = {"image": image, "backbone": section}
    return orbit_cache.identity(recipe, backbone, name="small", group=group, data=data)


def computed(backbone: Backbone, order: int, count: int, tmp_path) -> Orbits:
    compute = OrbitComputer(backbone, action(order), ImagePipeline(SIZE), 4, say=lambda _text: None)
    return compute(*split(count), identity(backbone, f"C{order}"), tmp_path)


@pytest.mark.parametrize(
    ("order", "cosets"), [(1, 1), (2, 1), (3, 3), (4, 1), (6, 3), (8, 2), (12, 3), (16, 4)]
)
def test_one_input_coset_a_rest_angle(order, cosets):
    group = CyclicGroup(order)
    rests = {group.decompose(k)[1] for k in range(order)}
    if order % 4 == 0:
        assert cosets == len(rests)
    assert input_cosets(group) == tuple(range(cosets))


@pytest.mark.parametrize("mask", [None, "disk"])
@pytest.mark.parametrize("order", [2, 4, 6, 8, 12])
def test_quarter_turns_of_an_input_roll_its_views_to_the_byte(order, mask):
    group = CyclicGroup(order)
    act = RotationAction(group, "bicubic", mask=mask)
    x = act.masked(torch.rand(3, 2, 17, 17, generator=torch.Generator().manual_seed(1)))
    for coset in input_cosets(group):
        cached = act.turn(x, coset)
        views = act.orbit(cached)
        for element in group.exact_elements:
            turned = torch.rot90(cached, group.decompose(element)[0], (-2, -1)).contiguous()
            assert torch.equal(act.orbit(turned), views.roll(element, dims=1))


@pytest.mark.parametrize("order", [4, 8])
def test_views_of_pose_are_those_of_the_turned_input(order, backbone, tmp_path):
    orbits = computed(backbone, order, 5, tmp_path)
    act, group = action(order), CyclicGroup(order)
    x = ImagePipeline(SIZE).to_act_size(split(5)[0])
    for pose in range(order):
        with torch.no_grad():
            logits = backbone(act.orbit(act.turn(x, pose)).flatten(0, 1)).view(5, order, -1)
        found = views_of_pose(orbits.logits, group, pose)
        np.testing.assert_allclose(found, logits.numpy(), atol=2e-4)


def test_the_view_of_the_true_pose_is_upright(backbone, tmp_path):
    orbits = computed(backbone, 4, 4, tmp_path)
    upright = views_of_pose(orbits.features, orbits.group, 0)[:, 0]
    for pose in range(4):
        np.testing.assert_array_equal(
            views_of_pose(orbits.features, orbits.group, pose)[:, pose], upright
        )


@pytest.mark.parametrize(("large", "small"), [(8, 4), (8, 2), (12, 6), (12, 3), (16, 8)])
def test_orbits_of_a_subgroup_are_part_of_the_groups(large, small, backbone, tmp_path):
    whole = computed(backbone, large, 3, tmp_path / "large")
    part = orbit_cache.restrict(whole, CyclicGroup(small))
    direct = computed(backbone, small, 3, tmp_path / "small")
    assert part.logits.shape == direct.logits.shape
    np.testing.assert_allclose(part.logits, direct.logits, atol=2e-4)
    np.testing.assert_allclose(part.features, direct.features, atol=2e-4)
    assert part.meta["group"] == f"C{small}"


def test_restricting_to_another_group_is_refused(backbone, tmp_path):
    orbits = computed(backbone, 4, 2, tmp_path)
    with pytest.raises(UserError, match="not a subgroup"):
        orbit_cache.restrict(orbits, CyclicGroup(3))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 0.0), ("float16", 1e-3)])
def test_a_file_gives_back_what_was_written(dtype, tolerance, backbone, tmp_path):
    orbits = computed(backbone, 4, 3, tmp_path)
    path = tmp_path / "cache.safetensors"
    orbit_cache.save(path, orbits, dtype)
    found = orbit_cache.load(path, identity(backbone, "C4"))
    np.testing.assert_array_equal(found.logits, orbits.logits)
    np.testing.assert_allclose(found.features, orbits.features, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(found.label, orbits.label)
    np.testing.assert_array_equal(found.index, orbits.index)
    assert found.meta["dtype"] == dtype


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "other"),
        ("weights_sha256", "b" * 64),
        ("dataset", "cifar100"),
        ("data_sha256", "c" * 64),
        ("group", "C8"),
        ("interpolation", "bilinear"),
        ("size", 32),
    ],
)
def test_a_cache_of_something_else_is_refused(key, value, backbone, tmp_path):
    path = tmp_path / "cache.safetensors"
    orbit_cache.save(path, computed(backbone, 4, 2, tmp_path))
    with pytest.raises(UserError, match="something else") as raised:
        orbit_cache.load(path, {**identity(backbone, "C4"), key: value})
    assert key in raised.value.what
    assert raised.value.where == str(path)


def test_options_without_weights_are_another_backbone(backbone, tmp_path):
    path = tmp_path / "orbits.safetensors"
    orbit_cache.save(path, computed(backbone, 4, 3, tmp_path))
    with pytest.raises(UserError, match="options"):
        orbit_cache.load(path, identity(backbone, "C4", pad_type="same"))


def test_other_weights_are_another_backbone(backbone, tmp_path):
    path = tmp_path / "cache.safetensors"
    orbit_cache.save(path, computed(backbone, 4, 2, tmp_path))
    other = Backbone(build_network("cifar_resnet20", 5, 3, options={"width": 4}), 8, [0.5], [0.5])
    with pytest.raises(UserError, match="weights_sha256"):
        orbit_cache.load(path, {"weights_sha256": orbit_cache.weights_sha256(other.network)})


def test_files_that_are_no_cache_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such orbit cache"):
        orbit_cache.load(tmp_path / "absent.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x08\x00\x00\x00")
    with pytest.raises(UserError, match="not a whole orbit cache"):
        orbit_cache.load(broken)
    with pytest.raises(UserError, match="number type"):
        orbit_cache._check_dtype("int8")


class Counted(nn.Module):
    """A backbone that counts its images and may stop half-way."""

    def __init__(self, inner: Backbone, stop_after: int | None = None) -> None:
        super().__init__()
        self.inner, self.network, self.images, self.stop = inner, inner.network, 0, stop_after

    def features_and_logits(self, x):
        self.images += len(x)
        if self.stop is not None and self.images > self.stop:
            raise KeyboardInterrupt
        return self.inner.features_and_logits(x)


def test_an_interrupted_computation_goes_on(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(orbit_cache, "SHARD", 4)
    whole = computed(backbone, 8, 10, tmp_path / "whole")
    arguments = (*split(10), identity(backbone, "C8"), tmp_path / "parts")

    def compute(model):
        return OrbitComputer(model, action(8), ImagePipeline(SIZE), 4, say=lambda _text: None)(
            *arguments
        )

    with pytest.raises(KeyboardInterrupt):
        compute(Counted(backbone, stop_after=6 * 16))
    rest = Counted(backbone)
    found = compute(rest)
    assert rest.images == 6 * 16  # the first part of four images was there
    np.testing.assert_array_equal(found.logits, whole.logits)
    np.testing.assert_array_equal(found.index, whole.index)


def test_parts_of_another_identity_are_not_used(backbone, tmp_path):
    images, labels, index = split(4)
    silent = {"say": lambda _text: None}
    compute = OrbitComputer(backbone, action(4), ImagePipeline(SIZE), 4, **silent)
    compute(images, labels, index, identity(backbone, "C4"), tmp_path)
    counted = Counted(backbone)
    OrbitComputer(counted, action(4), ImagePipeline(SIZE), 4, **silent)(
        images, labels, index, {**identity(backbone, "C4"), "data_sha256": "d" * 64}, tmp_path
    )
    assert counted.images == 16
    other = Counted(backbone)  # the same identity, but other images of the split
    found = OrbitComputer(other, action(4), ImagePipeline(SIZE), 4, **silent)(
        images.flip(0), labels.flip(0), index.flip(0), identity(backbone, "C4"), tmp_path
    )
    assert other.images == 16
    np.testing.assert_array_equal(found.index, index.flip(0).numpy())


def test_a_part_keeps_every_class_of_a_sorted_file(backbone, tmp_path):
    whole = computed(backbone, 4, 40, tmp_path)
    label = np.repeat(np.arange(5), 8)
    sorted_by_class = Orbits(
        whole.group, whole.logits, whole.features, label, whole.index, whole.meta
    )
    part = sorted_by_class.thinned(10)
    assert np.bincount(part.label).tolist() == [2] * 5
    assert len(sorted_by_class.thinned(1000)) == 40
