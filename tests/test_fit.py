"""A canonicalizer taught on tensors finds poses and repeats itself; what cannot work is told."""

import math

import pytest
import torch

from eqadapt.errors import NotFinite, UserError
from eqadapt.fit import fit_scorer, poses_found
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.law import smooth_images
from eqadapt.scorers import build_scorer

C4, C8 = CyclicGroup(4), CyclicGroup(8)
SIZES = {
    "paired_cnn": {"inner": "group_cnn", "width": 4, "layers": 2, "input_size": 17},
    "plain_cnn": {"input_size": 17},
}


def upright(count: int, seed: int = 0) -> torch.Tensor:
    """Noise that is brighter at the top."""
    ramp = torch.linspace(1, 0, 17).view(1, 1, -1, 1)
    return 0.4 * smooth_images(count, 17, channels=1, seed=seed) + 0.6 * ramp


def scorer_of(group: CyclicGroup, name: str = "paired_cnn"):
    torch.manual_seed(0)
    return build_scorer(name, group, 1, **SIZES[name])


@pytest.mark.parametrize(
    ("group", "name", "prior"),
    [
        (C4, "paired_cnn", "identity"),
        (C8, "paired_cnn", "identity"),
        (C8, "paired_cnn", "rotated"),
        (C4, "plain_cnn", "rotated"),
    ],
)
def test_a_taught_scorer_finds_the_poses_of_other_images(group, name, prior):
    scorer, action, other = scorer_of(group, name), RotationAction(group), upright(64, seed=1)
    before = poses_found(scorer.eval(), other, action)
    losses = fit_scorer(scorer, upright(128), action, prior=prior, epochs=12, batch_size=32)
    after = poses_found(scorer, other, action)
    assert losses[-1] < 0.5 * losses[0] and not scorer.training
    assert before.exact < 0.6 < 0.9 < after.exact
    assert math.isnan(after.rest) if group == C4 else after.rest > 0.9
    if name == "paired_cnn":
        assert after.upright == after.exact  # the law: every quarter turn is found as often


def test_the_same_seed_gives_the_same_scorer():
    def taught(seed: int):
        scorer = scorer_of(C4)
        fit_scorer(scorer, upright(32), RotationAction(C4), prior="rotated", epochs=1, seed=seed)
        return torch.cat([p.flatten() for p in scorer.parameters()])

    assert torch.equal(taught(3), taught(3)) and not torch.equal(taught(3), taught(4))


def test_epochs_are_told_and_a_batch_of_one_is_left_out():
    told = []
    images = upright(33)
    losses = fit_scorer(
        scorer_of(C4), images, RotationAction(C4), epochs=2, batch_size=32,
        report=lambda epoch, loss: told.append((epoch, loss)),
    )  # fmt: skip
    assert told == list(enumerate(losses)) and len(losses) == 2


def test_what_cannot_work_is_told():
    scorer, action = scorer_of(C4), RotationAction(C4)
    with pytest.raises(UserError, match="unknown prior 'none'"):
        fit_scorer(scorer, upright(4), action, prior="none")
    with pytest.raises(UserError, match="1 images"):
        fit_scorer(scorer, upright(1), action)
    with pytest.raises(UserError, match="no images"):
        poses_found(scorer, upright(4)[:0], action)
    with pytest.raises(NotFinite, match="epoch 0"):
        fit_scorer(scorer, upright(4) * math.nan, action)
