"""Outputs with places: maps and points turned back from the canonical image to the input."""

import re
from pathlib import Path

import pytest
import torch
from test_symmetrize import OrbitScorer
from torch import nn

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.groups.points import act_on_points
from eqadapt.law import smooth_images
from eqadapt.mirrored import mirrored
from eqadapt.symmetrize import Symmetrized
from eqadapt.view_scorers import NegativeEnergy

REPOSITORY = Path(__file__).parents[1]


def every_pixel(side):
    """Images (N, 1, side, side), each 1 at one pixel and 0 elsewhere; x and y of it (N, 1, 2)."""
    images = torch.eye(side * side).view(-1, 1, side, side)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return images, torch.stack([columns.flatten(), rows.flatten()], dim=-1).unsqueeze(1)


def brightest(images):
    """(B, 1, 2) x and y of the brightest pixel."""
    side = images.shape[-1]
    place = images.flatten(1).argmax(dim=1)
    return torch.stack([place % side, place // side], dim=-1).unsqueeze(1)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("order", [2, 4])
def test_under_quarter_turns_points_go_where_their_pixels_go(order, side):
    group = CyclicGroup(order)
    images, points = every_pixel(side)
    for k in range(order):
        g = torch.full((len(images),), k)
        moved = act_on_points(group, points, g, side)
        assert torch.equal(moved, brightest(RotationAction(group).act(images, g)).float())


@pytest.mark.parametrize("side", [20, 21])
@pytest.mark.parametrize("order", [3, 8])
def test_under_other_turns_points_are_within_a_pixel(order, side):
    group = CyclicGroup(order)
    images, points = every_pixel(side)
    inside = (points - (side - 1) / 2).double().norm(dim=-1).flatten() < side / 2 - 1
    images, points = images[inside], points[inside]
    action = RotationAction(group, padding="zeros")
    for k in range(order):
        g = torch.full((len(images),), k)
        error = act_on_points(group, points, g, side) - brightest(action.act(images, g))
        assert error.norm(dim=-1).max() < 1
        assert error.mean(dim=0).norm() < 0.05  # no shift of all, as half a pixel would be


def test_each_image_has_its_own_element_and_its_inverse_undoes_it():
    group, g = CyclicGroup(8), torch.randperm(8)
    points = 32 * torch.rand(8, 5, 2, dtype=torch.float64)
    moved = act_on_points(group, points, g, 32)
    assert moved.dtype == torch.float64
    for row in range(8):
        alone = act_on_points(group, points[row : row + 1], g[row : row + 1], 32)
        assert torch.equal(moved[row : row + 1], alone)
    torch.testing.assert_close(act_on_points(group, moved, -g, 32), points)


def test_points_of_another_shape_are_refused():
    group, g = CyclicGroup(4), torch.zeros(2, dtype=torch.long)
    for points in (torch.rand(2, 2), torch.rand(2, 5, 3)):
        with pytest.raises(UserError, match="points of shape"):
            act_on_points(group, points, g, 8)
    with pytest.raises(UserError, match="for the points of 3 images"):
        act_on_points(group, torch.rand(3, 5, 2), g, 8)


def segmenter(classes=3):
    torch.manual_seed(0)
    return nn.Conv2d(1, classes, 3, padding=1).requires_grad_(False)


def build(selection="argmax", order=4, **options):
    action = RotationAction(CyclicGroup(order))
    return Symmetrized(segmenter(), action, selection, OrbitScorer(action), **options).eval()


def test_restoring_what_was_undone_is_exact_under_quarter_turns():
    model, maps, chosen = build(), torch.randn(8, 3, 12, 12), torch.arange(8) % 4
    undone = model.action.undo(maps, chosen)
    assert not torch.equal(undone, maps)
    assert torch.equal(model.restore(undone, chosen), maps)
    assert torch.equal(model.restore(maps, None), maps)


def test_restored_maps_turn_with_the_input_and_others_do_not():
    """f(g . x) = g . f(x), for a network without any symmetry."""
    model, x = build(), torch.rand(6, 1, 12, 12)

    def restored(images):
        output = model(images)
        return output.logits, model.restore(output.logits, output.chosen)

    with torch.no_grad():
        canonical, maps = restored(x)
        for quarter in (1, 2, 3):
            again, turned = restored(torch.rot90(x, quarter, (-2, -1)))
            assert torch.equal(turned, torch.rot90(maps, quarter, (-2, -1)))
            assert torch.equal(again, canonical) and not torch.equal(again, turned)


def test_maps_of_a_smaller_side_are_restored_in_eighths_up_to_resampling():
    model, maps = build(order=8), smooth_images(8, 33)
    chosen = torch.arange(8)
    back = model.restore(model.action.undo(maps, chosen), chosen)
    assert (back - maps)[..., 8:25, 8:25].abs().mean() < 0.02


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_labels_are_not_restored(dtype):
    labels = torch.zeros(2, 1, 12, 12, dtype=dtype)
    with pytest.raises(UserError, match="cannot be resampled") as caught:
        build().restore(labels, torch.tensor([0, 1]))
    assert "one-hot" in caught.value.fix and "argmax afterwards" in caught.value.fix


@pytest.mark.parametrize("selection", ["uniform", "softmax", "mixture", "top_2", "sample"])
def test_averages_refuse_maps(selection):
    with pytest.raises(UserError, match=r"shape \(\d+, 3, 12, 12\) cannot be averaged"):
        build(selection)(torch.rand(2, 1, 12, 12))


def test_scores_of_views_and_means_over_mirror_images_refuse_maps():
    x, action = torch.rand(2, 1, 12, 12), RotationAction(CyclicGroup(4))
    rated = Symmetrized(segmenter(), action, "argmax", view_scorer=NegativeEnergy())
    for model in (rated.eval(), mirrored(Symmetrized(segmenter(), action, "identity"))):
        with pytest.raises(UserError, match="cannot be averaged"):
            model(x)


class Detector(nn.Module):
    """Returns a list, as detectors of torchvision do."""

    def forward(self, x):
        return [{"boxes": torch.zeros(0, 4)} for _ in x]


def test_one_canonical_image_may_have_any_outputs_but_no_average_of_them():
    action = RotationAction(CyclicGroup(4))
    x, scorer = torch.rand(2, 1, 12, 12), OrbitScorer(action)
    assert len(Symmetrized(Detector(), action, "argmax", scorer).eval()(x).logits) == 2
    with pytest.raises(UserError, match="of type list cannot be averaged"):
        Symmetrized(Detector(), action, "softmax", scorer).eval()(x)


def test_the_example_in_the_documents_turns_maps_and_boxes_with_the_image():
    text = (REPOSITORY / "docs" / "your_own_study.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"## Masks, boxes and key points\n(.*?)\n## ", text, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    found = {}
    exec(code, found)
    model, images, side = found["model"], found["images"], found["side"]
    with torch.inference_mode():
        output = model(images.rot90(1, (-2, -1)))
        maps = model.restore(output.logits, output.chosen)
    torch.testing.assert_close(maps, found["maps"].rot90(1, (-2, -1)), atol=1e-4, rtol=1e-4)
    assert found["labels"].shape == (2, side, side)
    quarters = found["group"].order // 4
    for pose, (box,) in zip(found["chosen"].tolist(), found["boxes"], strict=True):
        corners = torch.tensor([[[10.0, 20.0], [30.0, 50.0]]])
        sides = (box[2:] - box[:2]).tolist()
        if pose % quarters == 0:
            turned = act_on_points(found["group"], corners, torch.tensor([pose]), side)[0]
            assert torch.equal(box, torch.cat([turned.amin(0), turned.amax(0)]))
        else:
            assert sides == pytest.approx([50 / 2**0.5] * 2)
