"""The equation: exact invariance, and the limits in which methods meet."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.symmetrize import (
    SELECTIONS,
    Symmetrized,
    choose,
    straight_through,
    top_k_weights,
)
from eqadapt.view_scorers import Confidence, LambdaNetwork, NegativeEnergy

NOT_FOR_ALL = {"identity", "sample", "argmax_equiste"}  # no scores, chance, view scorers alone


class TinyBackbone(nn.Module):
    """A network without any symmetry."""

    def __init__(self, size=12, classes=5):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(size * size, 16), nn.Tanh(), nn.Linear(16, classes)
        )

    def forward(self, x):
        return self.layers(x)


class FeatureBackbone(TinyBackbone):
    """Its outputs are its features too."""

    def forward(self, x, with_features=False):
        outputs = self.layers(x)
        return (outputs, outputs) if with_features else outputs


class OrbitScorer(nn.Module):
    """Any function of the views, scored view by view: equivariant by construction."""

    def __init__(self, action, size=12):
        super().__init__()
        torch.manual_seed(1)
        self.action, self.score = action, nn.Sequential(nn.Flatten(), nn.Linear(size * size, 1))

    def forward(self, x):
        views = self.action.orbit(x)
        return self.score(views.flatten(0, 1)).view(len(x), -1)


def build(selection, order=4):
    action = RotationAction(CyclicGroup(order))
    scorer = OrbitScorer(action)
    return Symmetrized(TinyBackbone(), action, selection, scorer).eval()


@pytest.mark.parametrize("selection", sorted({*SELECTIONS, "top_2", "top_4"} - NOT_FOR_ALL))
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000))
def test_every_selection_is_invariant_under_c4(selection, seed):
    model = build(selection)
    x = torch.rand(6, 1, 12, 12, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        reference = model(x).logits
        for k in range(1, 4):
            logits = model(torch.rot90(x, k, (-2, -1))).logits
            if model.selection.one_hot:
                assert torch.equal(logits, reference)  # to the last bit
            else:
                torch.testing.assert_close(logits, reference, atol=1e-5, rtol=1e-5)


def test_c8_with_argmax_is_invariant_under_quarter_turns_to_the_bit():
    model = build("argmax", order=8)
    x = torch.rand(16, 1, 12, 12)
    with torch.no_grad():
        for k in (1, 2, 3):
            turned = torch.rot90(x, k, (-2, -1))
            assert torch.equal(model(turned).logits, model(x).logits)


def test_ties_of_symmetric_images_are_harmless():
    action = RotationAction(CyclicGroup(4))
    model = build("argmax")
    x = torch.rand(3, 1, 12, 12)
    symmetric = sum(torch.rot90(x, k, (-2, -1)) for k in range(4)).round(decimals=3)
    symmetric = torch.stack([torch.rot90(symmetric, k, (-2, -1)) for k in range(4)]).amax(0)
    halves = torch.maximum(x, torch.rot90(x, 2, (-2, -1)))
    with torch.no_grad():
        for images in (symmetric, halves, torch.full((2, 1, 12, 12), 0.5)):
            for k in range(4):
                turned = torch.rot90(images, k, (-2, -1))
                assert torch.equal(model(turned).logits, model(images).logits)
    assert action.group.order == 4


def test_rounding_cannot_turn_a_near_tie():
    """A scorer whose rounding prefers the array's first view would break ties differently."""
    action = RotationAction(CyclicGroup(4))

    def noisy(x):
        exact = x.flatten(1).new_zeros(len(x), 4)
        return exact + 1e-6 * torch.rand(
            len(x), 4, generator=torch.Generator().manual_seed(int(x[0, 0, 0, 0] * 1e6))
        )

    x = torch.rand(5, 1, 8, 8)
    canonical = [
        action.undo(y, choose(noisy, y, noisy(y), action))
        for y in (torch.rot90(x, k, (-2, -1)) for k in range(4))
    ]
    for other in canonical[1:]:
        assert torch.equal(other, canonical[0])


class Sharpened(nn.Module):
    """Another scorer's scores times a factor."""

    def __init__(self, scorer, factor):
        super().__init__()
        self.scorer, self.factor = scorer, factor

    def forward(self, x):
        return self.scorer(x) * self.factor


def test_lps_without_noise_and_one_sample_is_lc():
    action, backbone = RotationAction(CyclicGroup(4)), TinyBackbone()
    scorer = OrbitScorer(action)
    x = torch.rand(8, 1, 12, 12)
    lc = Symmetrized(backbone, action, "argmax", scorer).eval()
    lps = Symmetrized(backbone, action, "sample", Sharpened(scorer, 1e6), samples=1).eval()
    assert torch.equal(lps(x).logits, lc(x).logits)


def test_lps_is_the_weighted_frame_in_expectation_with_error_like_one_over_root_samples():
    action, backbone = RotationAction(CyclicGroup(4)), TinyBackbone()
    scorer = OrbitScorer(action)
    x = torch.rand(4, 1, 12, 12)
    torch.manual_seed(0)
    with torch.no_grad():
        target = Symmetrized(backbone, action, "softmax", scorer).eval()(x).logits
        errors = []
        for samples in (10, 1000):
            lps = Symmetrized(backbone, action, "sample", scorer, samples=samples).eval()
            errors.append((lps(x).logits - target).square().mean().sqrt())
    assert 3 < errors[0] / errors[1] < 30


def test_view_scorers_meet_their_limits():
    action, backbone = RotationAction(CyclicGroup(4)), TinyBackbone()
    x = torch.rand(8, 1, 12, 12)

    class WithFeatures(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = backbone

        def forward(self, x, with_features=False):
            logits = self.backbone(x)
            return (logits, logits) if with_features else logits

    network = WithFeatures()
    untrained = LambdaNetwork(5).eval()
    equitune = Symmetrized(network, action, "uniform").eval()(x).logits
    weighed = Symmetrized(network, action, "softmax", view_scorer=untrained).eval()(x).logits
    torch.testing.assert_close(weighed, equitune)  # constant lambda is equitune
    trivial = RotationAction(CyclicGroup(1))
    one = Symmetrized(network, trivial, "argmax", view_scorer=Confidence()).eval()(x).logits
    assert torch.equal(one, backbone(x))  # equizero over C1 is vanilla
    zero = Symmetrized(network, action, "argmax", view_scorer=Confidence()).eval()
    surest = zero(x).logits.softmax(1).amax(1)
    every = backbone(action.orbit(x).flatten(0, 1)).softmax(1).amax(1).view(8, 4)
    torch.testing.assert_close(surest, every.amax(1))
    for k in range(4):
        torch.testing.assert_close(zero(torch.rot90(x, k, (-2, -1))).logits, zero(x).logits)


def test_a_mixture_of_energies_is_one_softmax_over_pairs_of_view_and_class():
    action, backbone = RotationAction(CyclicGroup(4)), TinyBackbone()
    x = torch.rand(8, 1, 12, 12)
    model = Symmetrized(backbone, action, "mixture", view_scorer=NegativeEnergy()).eval()
    output = model(x)
    logits = backbone(action.orbit(x).flatten(0, 1)).unflatten(0, (8, 4))
    pairs = logits.flatten(1).log_softmax(1).unflatten(1, (4, 5))
    torch.testing.assert_close(output.pairs, pairs)
    torch.testing.assert_close(output.logits, pairs.logsumexp(1))
    torch.testing.assert_close(output.logits.exp().sum(1), torch.ones(8))
    for k in range(1, 4):  # the pairs turn along, the classes stay
        turned = model(torch.rot90(x, k, (-2, -1)))
        torch.testing.assert_close(turned.pairs, output.pairs.roll(k, 1))
        torch.testing.assert_close(turned.logits, output.logits)
        assert ((turned.chosen - output.chosen) % 4 == k).all()


def test_a_mixture_at_drawn_poses_is_the_whole_one_without_bias():
    action, backbone = RotationAction(CyclicGroup(4)), TinyBackbone()
    x = torch.rand(6, 1, 12, 12)
    model = Symmetrized(backbone, action, "mixture", view_scorer=NegativeEnergy()).eval()
    whole = model(x)
    order = torch.tensor([2, 0, 3, 1]).expand(6, 4)
    every = model.at_poses(x, order)
    torch.testing.assert_close(every.pairs, whole.pairs[:, order[0]])
    torch.testing.assert_close(every.logits, whole.logits)
    for count in (2, 3):  # the sum of exp(score) over the poses, averaged over all draws
        drawn = list(itertools.permutations((1, 2, 3), count - 1))
        poses = [torch.tensor([0, *others]).expand(6, count) for others in drawn]
        sums = [model.at_poses(x, p).pose_logits.double().exp().sum(1) for p in poses]
        expected = whole.pose_logits.double().exp().sum(1)
        torch.testing.assert_close(torch.stack(sums).mean(0), expected)
    with pytest.raises(UserError, match="1 drawn poses"):
        model.at_poses(x, order[:, :1])
    with pytest.raises(UserError, match="'softmax'"):
        build("softmax").at_poses(x, order)


def test_a_mixture_lies_between_the_best_view_and_the_mean():
    action, backbone = RotationAction(CyclicGroup(4)), TinyBackbone()
    scorer, x = OrbitScorer(action), torch.rand(8, 1, 12, 12)
    sharp = Symmetrized(backbone, action, "mixture", Sharpened(scorer, 1e6)).eval()(x)
    best = Symmetrized(backbone, action, "argmax", scorer).eval()(x)
    torch.testing.assert_close(sharp.logits, best.logits.log_softmax(1))
    flat = Symmetrized(backbone, action, "mixture", Sharpened(scorer, 0.0)).eval()(x)
    views = backbone(action.orbit(x).flatten(0, 1)).unflatten(0, (8, 4))
    torch.testing.assert_close(flat.logits.exp(), views.softmax(-1).mean(1))


def test_trivial_group_is_vanilla():
    backbone = TinyBackbone()
    action = RotationAction(CyclicGroup(1))
    x = torch.rand(4, 1, 12, 12)
    for selection in ("uniform", "identity"):
        assert torch.equal(Symmetrized(backbone, action, selection)(x).logits, backbone(x))
    scored = Symmetrized(backbone, action, "argmax", OrbitScorer(action)).eval()
    assert torch.equal(scored(x).logits, backbone(x))


def test_limits_between_selections():
    scores = torch.randn(6, 4)
    uniform = SELECTIONS["uniform"].weights(scores)
    softmax = SELECTIONS["softmax"].weights
    torch.testing.assert_close(softmax(torch.zeros_like(scores)), uniform)
    one_hot = nn.functional.one_hot(scores.argmax(1), 4).float()
    torch.testing.assert_close(softmax(scores * 1e6), one_hot)
    torch.testing.assert_close(top_k_weights(scores, 1), one_hot)
    torch.testing.assert_close(top_k_weights(scores, 4), softmax(scores))
    with pytest.raises(UserError, match="top-5"):
        top_k_weights(scores, 5)


def test_all_of_the_best_poses_are_the_weighted_frame():
    x = torch.rand(5, 1, 12, 12)
    for order in (4, 8):
        whole, frame = build(f"top_{order}", order), build("softmax", order)
        torch.testing.assert_close(whole(x).logits, frame(x).logits)
        torch.testing.assert_close(
            build("top_1", order)(x).logits, build("argmax", order)(x).logits
        )
        with pytest.raises(UserError, match=f"top_{order + 1}.*{order} elements"):
            build(f"top_{order + 1}", order)
    model = build("top_3", 8)  # only views with weight are passed: nothing else changes
    scores, views = model.scorer(x), model.action.orbit(x)
    outputs = model.backbone(views.flatten(0, 1)).unflatten(0, (5, 8))
    expected = torch.einsum("bk,bkc->bc", top_k_weights(scores, 3), outputs)
    torch.testing.assert_close(model(x).logits, expected)
    for name in ("top_0", "top_", "top_2.5"):
        with pytest.raises(UserError, match="unknown selection"):
            build(name)


def test_equiste_is_equizero_forward_and_equitune_backward():
    action, backbone = RotationAction(CyclicGroup(4)), TinyBackbone()
    x = torch.rand(8, 1, 12, 12)

    def run(selection):
        model = Symmetrized(backbone, action, selection, view_scorer=Confidence())
        logits = model(x).logits
        return logits, torch.autograd.grad(logits.square().sum().sqrt(), backbone.parameters())

    zero, own = run("argmax")
    ste, through = run("argmax_equiste")
    assert torch.equal(ste, zero)
    mean = Symmetrized(backbone, action, "uniform")(x).logits
    upstream = (zero / zero.norm()).detach()
    expected = torch.autograd.grad((mean * upstream).sum(), backbone.parameters())
    for a, b in zip(through, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(own[0], through[0])


def test_straight_through_is_the_chosen_view_and_carries_the_task():
    """Forward: the hard view to the bit. Backward: points where the exact gradient points."""
    action, backbone = RotationAction(CyclicGroup(4)), TinyBackbone()
    x, y = torch.rand(64, 1, 12, 12), torch.randint(0, 5, (64,))
    views = action.orbit(x)
    scores = torch.randn(64, 4, requires_grad=True)
    chosen = straight_through(views, scores)
    assert torch.equal(chosen, action.undo(x, scores.argmax(1)))
    (estimate,) = torch.autograd.grad(
        nn.functional.cross_entropy(backbone(chosen), y, reduction="sum"), scores
    )
    losses = torch.stack(
        [nn.functional.cross_entropy(backbone(views[:, k]), y, reduction="none") for k in range(4)],
        1,
    )
    (exact,) = torch.autograd.grad((scores.softmax(1) * losses.detach()).sum(), scores)
    cosine = nn.functional.cosine_similarity(estimate.flatten(), exact.flatten(), dim=0)
    assert cosine > 0.4


def test_forced_identity_scores_are_vanilla():
    class Identity(nn.Module):
        def forward(self, x):
            return torch.tensor([5.0, 0, 0, 0]).expand(len(x), 4)

    backbone = TinyBackbone()
    model = Symmetrized(backbone, RotationAction(CyclicGroup(4)), "argmax", Identity()).eval()
    x = torch.rand(3, 1, 12, 12)
    assert torch.equal(model(x).logits, backbone(x))


def test_a_selection_without_its_scorer_is_refused():
    with pytest.raises(UserError, match="needs a scorer"):
        Symmetrized(TinyBackbone(), RotationAction(CyclicGroup(4)), "argmax")
    with pytest.raises(UserError, match="unknown selection"):
        Symmetrized(TinyBackbone(), RotationAction(CyclicGroup(4)), "best")
    with pytest.raises(UserError, match="view scorer"):
        build("argmax_equiste")


def test_confidence_tells_nearly_certain_views_apart():
    logits = torch.tensor([[[100.0, 0.0, 0.0], [80.0, 0.0, 0.0], [120.0, 0.0, 0.0]]])
    assert Confidence()(None, logits).argmax(dim=1).item() == 2
    some = torch.randn(5, 4, 7)
    expected = some.log_softmax(-1).amax(-1)
    torch.testing.assert_close(Confidence()(None, some).float(), expected)


@pytest.mark.parametrize(
    ("selection", "view_scorer"),
    [("argmax", Confidence()), ("mixture", NegativeEnergy())],
)
def test_canonical_images_are_in_the_poses_that_the_outputs_chose(selection, view_scorer):
    """Also where a network's own outputs are scored, which takes all of its passes."""
    action = RotationAction(CyclicGroup(8))
    model = Symmetrized(FeatureBackbone(), action, selection, view_scorer=view_scorer).eval()
    x = torch.rand(6, 1, 12, 12)
    canonical, poses = model.canonicalize(x)
    assert torch.equal(poses, model(x).chosen) and len(set(poses.tolist())) > 1
    assert torch.equal(canonical, action.undo(x, poses))


def test_what_chooses_no_pose_leaves_images_as_they_are():
    model = Symmetrized(TinyBackbone(), RotationAction(CyclicGroup(4)), "uniform").eval()
    x = torch.rand(3, 1, 12, 12)
    canonical, poses = model.canonicalize(x)
    assert torch.equal(canonical, x) and not poses.any()
