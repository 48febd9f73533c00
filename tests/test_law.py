"""The law of outputs under turned inputs, and the layer that is said to break it."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from eqadapt.cli import main
from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.law import broken, check_elements, first_break, sides_that_keep, smooth_images
from eqadapt.scorers import SCORERS, ScorerSpec, build_scorer
from eqadapt.scorers.base import PoseScorer

REPOSITORY = Path(__file__).parents[1]
C4, C8 = CyclicGroup(4), CyclicGroup(8)


class InvariantConv(nn.Conv2d):
    """Its filters look alike from all four sides: equivariant, but for a stride."""

    def forward(self, x):
        turns = [torch.rot90(self.weight, quarter, (-2, -1)) for quarter in range(4)]
        return self._conv_forward(x, sum(turns) / 4, self.bias)


def invariant_network(stride=1, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(
        InvariantConv(3, 8, 3, padding=1),
        nn.ReLU(),
        InvariantConv(8, 8, 3, stride=stride, padding=1),
        nn.Dropout(dropout),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


def test_what_is_invariant_is_found_so_and_what_is_not_by_how_much():
    images = smooth_images(8, 33)
    checks = check_elements(invariant_network(), RotationAction(C8), images, moves=False)
    assert [check.degrees for check in checks] == [45, 90, 135, 180, 225, 270, 315]
    assert [check.element for check in checks if check.exact] == [2, 4, 6]
    assert all(check.holds and check.follows == 1.0 for check in checks if check.exact)
    assert not broken(checks)  # whatever resampling costs at the other angles
    turned = images.mean(dim=(1, 2))  # (B, H): rows become columns
    off = check_elements(lambda x: x.mean(dim=(1, 2)), RotationAction(C4), images, moves=False)
    by_hand = (torch.rot90(images, 1, (-2, -1)).mean(dim=(1, 2)) - turned).abs().max()
    assert off[0].error == pytest.approx(float(by_hand / turned.abs().max()))
    assert broken(off)


def test_a_mask_of_the_action_breaks_no_law():
    network = nn.Sequential(nn.Flatten(2), nn.LogSoftmax(2), nn.AdaptiveMaxPool1d(1), nn.Flatten())
    images = smooth_images(4, 33)
    assert not broken(check_elements(network, RotationAction(C8, mask="disk"), images, moves=False))


def test_scores_must_move_the_way_of_the_turn():
    def brightest_side(x):  # right, top, left, bottom: counter-clockwise, as poses are counted
        half = x.shape[-1] // 2
        sides = (x[..., :, -half:], x[..., :half, :], x[..., :, :half], x[..., -half:, :])
        return torch.stack([side.mean(dim=(1, 2, 3)) for side in sides], dim=1)

    images, action = smooth_images(8, 32, 1), RotationAction(C4)
    assert not broken(check_elements(brightest_side, action, images))
    clockwise = check_elements(lambda x: brightest_side(x).flip(1), action, images)
    assert [check.holds for check in clockwise] == [False, True, False]  # half a turn is its own
    with pytest.raises(UserError, match="no scores of the 8 elements of C8"):
        check_elements(brightest_side, RotationAction(C8), images)


@pytest.mark.parametrize("name", ["group_cnn", "staged_cnn", "paired_cnn", "plain_cnn"])
def test_no_layer_of_a_scorer_that_keeps_the_law_is_blamed(name):
    torch.manual_seed(0)
    group, images = C4 if name == "staged_cnn" else C8, smooth_images(4, 40)
    scorer = build_scorer(name, group, 3, width=4).eval()
    assert not broken(check_elements(scorer, RotationAction(group), images))
    assert first_break(scorer, images) is None
    assert first_break(scorer.export(), images) is None


def test_a_stride_that_does_not_fit_the_side_is_named_and_the_sides_that_fit():
    network, action = invariant_network(stride=2), RotationAction(C4)
    images = smooth_images(8, 32)
    assert broken(check_elements(network, action, images, moves=False))
    found = first_break(network, images)
    assert (found.name, found.kind, found.shape) == ("2", "InvariantConv", (8, 8, 16, 16))
    assert found.change > 1e-4
    assert sides_that_keep(network, action, images, range(28, 36), moves=False) == [29, 31, 33, 35]
    assert first_break(network, smooth_images(8, 33)) is None


def test_plain_filters_and_dropout_are_named():
    images = smooth_images(8, 33)
    plain = nn.Sequential(nn.Identity(), nn.Conv2d(3, 8, 3), nn.ReLU())
    assert first_break(plain, images).name == "1"
    dropping = invariant_network(dropout=0.5).train()
    assert first_break(dropping, images).kind == "Dropout"
    assert first_break(dropping.eval(), images) is None
    assert not any(module._forward_hooks for module in dropping.modules())  # left as they were


class Stridden(PoseScorer):
    """A scorer for C4 whose stride needs odd sides."""

    def __init__(self, group, in_channels):
        super().__init__(group, in_channels)
        self.prepare, self.features = nn.Identity(), invariant_network(stride=2)[:3]

    def score(self, views):
        maps = self.features(views).mean(dim=1)
        half = maps.shape[-1] // 2
        sides = (maps[..., -half:], maps[:, :half], maps[..., :half], maps[:, -half:])
        return torch.stack([side.mean(dim=(1, 2)) for side in sides], dim=1)


def test_the_command_tells_and_fails_where_the_law_is_broken(monkeypatch, capsys):
    assert main(["doctor", "--scorer", "staged_cnn", "--group", "C4", "--option", "width=4"]) == 0
    assert "The law holds under quarter turns" in capsys.readouterr().out
    spec = ScorerSpec(__name__, "Stridden", "Needs odd sides.", frozenset())
    monkeypatch.setitem(SCORERS, "stridden", spec)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--scorer", "stridden", "--group", "C4", "--side", "32"])
    told = capsys.readouterr().out
    assert ended.value.code == 1
    assert "First at layer 'features.2' (InvariantConv" in told
    assert "at which it holds: 25, 27, 29, 31, 33, 35, 37, 39" in told
    assert main(["doctor", "--scorer", "stridden", "--group", "C4", "--side", "33"]) == 0
    assert main(["doctor", "--scorer", "stridden", "--option", "width=3"]) == 2
    assert "has no option 'width'" in capsys.readouterr().err
    assert main(["doctor", "--scorer", "stridden", "--images", "0"]) == 2
    assert "0 images of side 64" in capsys.readouterr().err
    assert main(["doctor", "--scorer", "moment_frame", "--group", "C5"]) == 0
    assert "of no turn that resamples nothing" in capsys.readouterr().out


def test_layers_of_escnn_are_asked_too():
    from escnn import gspaces
    from escnn import nn as enn

    space = gspaces.rot2dOnR2(4)
    images = enn.FieldType(space, 3 * [space.trivial_repr])
    fields = enn.FieldType(space, 4 * [space.regular_repr])

    class Network(nn.Module):
        def __init__(self, stride):
            super().__init__()
            torch.manual_seed(0)
            self.layers = enn.SequentialModule(
                enn.R2Conv(images, fields, 3, padding=1),
                enn.ReLU(fields),
                enn.R2Conv(fields, fields, 3, padding=1, stride=stride),
            )

        def forward(self, x):
            return self.layers(enn.GeometricTensor(x, images)).tensor

    x = smooth_images(4, 32)
    assert first_break(Network(1).eval(), x) is None
    found = first_break(Network(2).eval(), x)
    assert (found.name, found.kind) == ("layers.2", "R2Conv")


def test_the_example_in_the_documents_says_what_is_said_there(capsys):
    text = (REPOSITORY / "docs" / "your_own_study.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(from torch import nn\n.*?)```", text, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.startswith("Break(name='0', kind='Conv2d', ")
