"""The group axioms, the action's directions, and its exactness at multiples of 90 degrees."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction, disk_mask, images, parse_group, rotate
from eqadapt.groups.images import pixel_centres, quarter_turns
from eqadapt.law import smooth_images

orders = st.sampled_from([1, 2, 3, 4, 6, 8, 12, 16, 24])


@given(orders, st.data())
def test_group_axioms(order, data):
    group = CyclicGroup(order)
    element = st.integers(0, order - 1)
    a, b, c = (data.draw(element) for _ in range(3))
    assert group.compose(a, group.compose(b, c)) == group.compose(group.compose(a, b), c)
    assert group.compose(a, 0) == group.compose(0, a) == a
    assert group.compose(a, group.inverse(a)) == 0
    quarters, rest = group.decompose(a)
    assert 0 <= rest < 90 and group.angles[a] == pytest.approx(90 * quarters + rest)


@pytest.mark.parametrize("name", ["C0", "D4", "c4", "C", "C-1", "8", "C04"])
def test_unknown_groups_are_named(name):
    with pytest.raises(UserError, match=name if name != "C" else "'C'"):
        parse_group(name)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([4, 8, 24]), st.integers(8, 21), st.data())
def test_exact_elements_compose_to_the_bit(order, size, data):
    group = CyclicGroup(order)
    action = RotationAction(group)
    x = torch.rand(2, 1, size, size)
    exact = st.sampled_from(group.exact_elements)
    any_element = st.integers(0, order - 1)
    g, h = data.draw(exact), data.draw(any_element)
    # act(h, act(g, x)) == act(hg, x) to the bit when g is exact: the quarter turn comes first.
    assert torch.equal(action.turn(action.turn(x, g), h), action.turn(x, group.compose(h, g)))


def test_positive_angles_turn_counter_clockwise():
    x = torch.zeros(1, 1, 9, 9)
    x[0, 0, 4, 8] = 1.0  # to the right of the centre
    action = RotationAction(CyclicGroup(8))
    assert action.turn(x, 2)[0, 0, 0, 4] == 1.0  # +90: now above
    eighth = action.turn(x, 1)[0, 0]
    row, column = divmod(int(eighth.argmax()), 9)
    assert row < 4 < column  # +45: above and to the right
    assert torch.equal(action.turn(x, 2), torch.rot90(x, 1, (-2, -1)))


def test_torchvision_agrees_on_the_direction_and_the_centre():
    from torchvision.transforms.functional import InterpolationMode
    from torchvision.transforms.functional import rotate as reference

    for size in (32, 33):
        x = smooth_images(4, size) * disk_mask(size, softness=8.0)
        ours = rotate(x, torch.full((len(x),), 30.0), "bilinear", "zeros")
        theirs = reference(x, 30.0, InterpolationMode.BILINEAR)
        assert (ours - theirs).abs().max() < 1e-5


def test_other_libraries_turn_the_same_way_save_one():
    """docs/your_own_study.md tells users which; if a library changes its mind, this does too."""
    import numpy as np
    from PIL import Image
    from scipy import ndimage
    from torchvision.transforms.functional import affine
    from torchvision.transforms.functional import rotate as reference

    x = torch.randint(0, 256, (1, 1, 9, 9)).float()
    ours = RotationAction(CyclicGroup(4)).turn(x, 1)
    array = x[0, 0].numpy()
    quarters = {
        "numpy.rot90": np.rot90(array),
        "PIL.Image.rotate": np.array(Image.fromarray(array.astype(np.uint8)).rotate(90)),
        "scipy.ndimage.rotate": ndimage.rotate(array, 90, reshape=False, order=0),
        "torchvision rotate": reference(x, 90.0)[0, 0].numpy(),
        "torchvision affine, the other way": affine(x, -90.0, [0, 0], 1.0, [0.0])[0, 0].numpy(),
    }
    for name, quarter in quarters.items():
        assert np.array_equal(quarter, ours[0, 0].numpy()), name


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_act_turn_and_orbit_are_one_action(interpolation):
    action = RotationAction(CyclicGroup(8), interpolation)
    x = torch.rand(3, 2, 16, 16)
    orbit = action.orbit(x)
    for k in range(8):
        g = torch.full((3,), k)
        assert torch.equal(action.act(x, g), action.turn(x, k))
        assert torch.equal(orbit[:, k], action.undo(x, g))


@pytest.mark.parametrize("order", [3, 4, 6, 8, 24])
def test_posed_inputs_are_turned_inputs_and_exact_copies_of_each_other(order):
    group = CyclicGroup(order)
    action, x = RotationAction(group, "bicubic"), smooth_images(4, 17)
    for k in range(order):
        torch.testing.assert_close(action.posed(x, k), action.turn(x, k), atol=1e-4, rtol=0)
        if order % 4 == 0:
            quarter = torch.rot90(action.posed(x, k), 1, (-2, -1))
            assert torch.equal(action.posed(x, (k + order // 4) % order), quarter)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [96, 200])
def test_half_precision_loses_no_more_than_rounding_does(dtype, size):
    action, x = RotationAction(CyclicGroup(8)), torch.rand(2, 3, size, size).to(dtype)
    degrees = torch.full((2,), 45.0)
    for found, exact in (
        (action.turn(x, 1), action.turn(x.float(), 1)),
        (action.orbit(x), action.orbit(x.float())),
        (rotate(x, degrees), rotate(x.float(), degrees)),
    ):
        assert found.dtype == dtype and torch.equal(found, exact.to(dtype))


def test_each_image_needs_an_element_of_its_own():
    action, x = RotationAction(CyclicGroup(8)), torch.rand(4, 1, 16, 16)
    for g in ([2], [1, 2], [0, 1, 2, 3, 4], [[0, 1, 2, 3]]):
        for act in (action.act, action.undo):
            with pytest.raises(UserError, match="for 4 images"):
                act(x, torch.tensor(g))


def test_each_image_turns_by_its_own_element():
    action = RotationAction(CyclicGroup(8))
    x, g = torch.rand(8, 1, 16, 16), torch.randperm(8)
    turned = action.act(x, g)
    for row in range(8):
        assert torch.equal(turned[row : row + 1], action.turn(x[row : row + 1], int(g[row])))


@pytest.mark.parametrize("mask", [None, "disk"])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_what_a_smaller_network_reads_is_made_to_the_bit_and_nothing_else(interpolation, mask):
    action = RotationAction(CyclicGroup(8), interpolation, mask=mask)
    x, g = torch.rand(9, 3, 45, 45), torch.arange(9) % 8
    read = pixel_centres(45, 15)
    for whole, part in (
        (action.act(x, g), action.act(x, g, 15)),
        (action.undo(x[1:2], g[1:2]), action.undo(x[1:2], g[1:2], 15)),
        (action.orbit(x), action.orbit(x, 15)),
    ):
        assert part.shape[-2:] == (15, 15) and torch.equal(part, whole[..., read, read])
    for size in (None, 45, 22, 90):  # all of it: nothing said, its own size, no odd multiple
        assert torch.equal(action.act(x, g, size), action.act(x, g))


@pytest.mark.parametrize("batch", [0, 1, 9])
def test_gradients_pass_through_turns_and_change_no_byte(batch):
    action, g = RotationAction(CyclicGroup(8)), torch.arange(1, batch + 1) % 8
    plain = torch.rand(batch, 3, 15, 15)
    x = plain.clone().requires_grad_()
    turned = action.act(x, g)
    assert torch.equal(turned.detach(), action.act(plain, g)) and turned.shape == plain.shape
    weight = torch.rand_like(plain)
    (turned * weight).sum().backward()
    # The adjoint of a linear map: <act(v), w> = <v, gradient>, for any v.
    other = torch.rand_like(plain)
    expected = (action.act(other, g) * weight).sum()
    assert torch.allclose((other * x.grad).sum(), expected, rtol=1e-5)


def test_undoing_a_turn_returns_the_image():
    x = smooth_images(4, 65)
    inside = disk_mask(65, softness=1.0) == 1
    exact, eighths = RotationAction(CyclicGroup(4)), RotationAction(CyclicGroup(8), "bicubic")
    for k in range(4):
        assert torch.equal(exact.undo(exact.turn(x, k), torch.full((4,), k)), x)
    for k in range(8):
        back = eighths.undo(eighths.turn(x, k), torch.full((4,), k))
        assert (back - x)[..., inside].abs().mean() < 2e-3


def test_orbit_of_a_turned_copy_holds_the_same_bytes():
    action = RotationAction(CyclicGroup(8), "bicubic")
    x = torch.rand(2, 3, 15, 15)
    views, turned_views = action.orbit(x), action.orbit(action.turn(x, 2))
    assert torch.equal(turned_views, views.roll(2, dims=1))


@pytest.mark.parametrize("order", [1, 2, 3, 4, 6, 8, 12, 16])
def test_views_are_the_same_bytes_one_by_one_and_in_any_order(order):
    action = RotationAction(CyclicGroup(order), mask="disk")
    for batch in (0, 1, 3):
        x = torch.rand(batch, 2, 15, 15)
        one_by_one = torch.stack([action.turn(x, -k) for k in range(order)], dim=1)
        for size, expected in ((None, one_by_one), (5, one_by_one[..., 1::3, 1::3])):
            assert torch.equal(action.orbit(x, size), expected)
            elements = torch.full((batch,), order - 1)
            assert torch.equal(action.undo(x, elements, size), expected[:, order - 1])
            views, places = action.orbit_as_made(x, size)
            assert torch.equal(views[:, places], expected)
            some = [order - 1, 0, order // 2]
            assert torch.equal(action.orbit(x, size, some), expected[:, some])
            views, places = action.orbit_as_made(x, size, some)
            assert torch.equal(views[:, places], expected[:, some])


def test_quarter_turns_match_rot90():
    x, q = torch.rand(4, 2, 7, 7), torch.arange(4)
    for row in range(4):
        assert torch.equal(quarter_turns(x, q)[row], torch.rot90(x[row], row, (-2, -1)))


def test_the_disk_hides_the_corners():
    action = RotationAction(CyclicGroup(8), mask="disk")
    x = torch.ones(1, 1, 17, 17)
    for k in range(8):
        corner = action.turn(x, k)[0, 0, 0, 0]
        assert corner == 0
    assert disk_mask(17)[8, 8] == 1


def test_images_that_are_not_square_are_refused():
    with pytest.raises(UserError, match="square"):
        RotationAction(CyclicGroup(4)).turn(torch.rand(1, 1, 8, 9), 1)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_a_single_image_is_warped_in_bands_to_the_same_bits(monkeypatch, interpolation, padding):
    action = RotationAction(CyclicGroup(8), interpolation, padding)
    torch.manual_seed(0)
    x = torch.rand(1, 3, 96, 96)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    banded = [action.act(x, torch.tensor([k]), size) for k in range(8) for size in (None, 32)]
    assert images._bands(x, action._grids(96, x.device)[1:]) == 6
    monkeypatch.setattr(images, "LARGE_IMAGE", 10**9)
    whole = [action.act(x, torch.tensor([k]), size) for k in range(8) for size in (None, 32)]
    assert all(torch.equal(a, b) for a, b in zip(banded, whole, strict=True))


@pytest.mark.parametrize("mask", [None, "disk"])
@pytest.mark.parametrize("elements", [None, [7, 0, 3]])
@pytest.mark.parametrize("size", [None, 33])
def test_orbits_of_large_images_are_made_in_parts_to_the_same_bits(
    monkeypatch, mask, elements, size
):
    action = RotationAction(CyclicGroup(8), mask=mask)
    torch.manual_seed(0)
    x = torch.rand(9, 3, 99, 99)
    sizes = []
    parts = images.RotationAction._orbit_parts
    monkeypatch.setattr(
        images.RotationAction,
        "_orbit_parts",
        lambda self, x, *rest: sizes.append(len(x)) or parts(self, x, *rest),
    )
    in_parts = action.orbit(x, size, elements)
    assert sum(sizes) == 9 and len(sizes) > 1
    monkeypatch.setattr(images, "LARGE_IMAGE", 10**9)
    assert torch.equal(action.orbit(x, size, elements), in_parts)
    assert len(sizes) == sizes.index(9) + 1


def test_orbits_of_large_images_pass_gradients_on():
    action = RotationAction(CyclicGroup(8))
    x = torch.rand(2, 1, 65, 65, requires_grad=True)
    action.orbit(x).sum().backward()
    assert x.grad is not None and x.grad.sum() > 0


def test_bands_leave_gradients_alone(monkeypatch):
    action = RotationAction(CyclicGroup(8))
    x = torch.rand(1, 1, 96, 96, requires_grad=True)
    grids = action._grids(96, x.device)[1:]
    assert images._bands(x, grids) == 1
    assert images._bands(torch.rand(2, 1, 96, 96), grids) == 1
    assert images._bands(torch.rand(1, 1, 32, 32), action._grids(32, x.device)[1:]) == 1


@pytest.mark.parametrize("side", [8, 96])
def test_no_images_give_no_images(side):
    x, none = torch.rand(0, 3, side, side), torch.zeros(0, dtype=torch.long)
    action = RotationAction(CyclicGroup(8))
    assert action.act(x, none).shape == action.posed(x, 1).shape == x.shape
    assert action.orbit(x).shape == (0, 8, 3, side, side)
