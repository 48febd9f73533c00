"""Pose scorers: the law, the registry, export and checkpoints."""

from __future__ import annotations

import copy
import inspect
import subprocess
import sys
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from eqadapt import parts
from eqadapt.adaptation import ImageScorer
from eqadapt.errors import UserError
from eqadapt.groups import CyclicGroup, RotationAction, rotate
from eqadapt.law import smooth_images
from eqadapt.scorers import SCORERS, build_scorer
from eqadapt.scorers.mirrored import Mirrored
from eqadapt.scorers.plain_cnn import artifact, contrast
from eqadapt.scorers.staged_cnn import StagedCNN

C4, C8 = CyclicGroup(4), CyclicGroup(8)
SMALL = {
    "group_cnn": {"width": 4, "input_size": 33},
    "group_wrn": {"width": 8, "input_size": 33},
    "staged_cnn": {"width": 4, "input_size": 32},
    "paired_cnn": {"inner": "group_cnn", "width": 4, "input_size": 33},
    "plain_cnn": {"width": 8, "input_size": 33},
    "plain_resnet": {"input_size": 33, "model_options": {"channels": (8, 8, 16, 16)}},
    "plain_wrn": {"input_size": 33, "model_options": {"channels": (8, 8, 16, 16)}},
    "classifier": {"input_size": 33, "model_options": {"channels": (8, 8, 16, 16)}},
    "fixed_energy": {"input_size": 33},
    "moment_frame": {},
    "pca_frame": {},
}
UNLEARNT = {"fixed_energy", "moment_frame", "pca_frame"}
QUARTER_TURNS_ONLY = {"staged_cnn"}


def group_of(name: str) -> CyclicGroup:
    """The finest group of these tests that a scorer can score."""
    return C4 if name in QUARTER_TURNS_ONLY else C8


def settled(scorer: nn.Module, x: Tensor) -> nn.Module:
    """The scorer in evaluation mode after its statistics have seen some images."""
    scorer.train()
    with torch.no_grad():
        for part in x.split(16):
            scorer(part)
    return scorer.eval()


def quarter_turn_error(scorer: nn.Module, x: Tensor, order: int) -> tuple[float, float]:
    """Largest departure from the law under quarter turns, and the share of equal choices.

    The departure is given as a share of the largest score, where that is above one: float32
    rounds in proportion, and kernels as large as the last features sum hundreds of terms.
    """
    error, agree = 0.0, 1.0
    with torch.no_grad():
        scores = scorer(x)
        for quarter in (1, 2, 3):
            expected = scores.roll(quarter * order // 4, 1)
            turned = scorer(torch.rot90(x, quarter, (-2, -1)))
            error = max(error, (turned - expected).abs().max().item())
            same = turned.argmax(1) == expected.argmax(1)
            agree = min(agree, same.float().mean().item())
    return error / max(1.0, scores.abs().max().item()), agree


def odd_agreement(scorer: nn.Module, x: Tensor) -> float:
    """Share of C8 choices that follow turns by odd multiples of 45 degrees."""
    action = RotationAction(C8)
    with torch.no_grad():
        chosen = scorer(x).argmax(1)
        follows = [(scorer(action.turn(x, k)).argmax(1) - k) % 8 == chosen for k in range(1, 8, 2)]
    return torch.cat(follows).float().mean().item()


@pytest.mark.parametrize("name", sorted(SCORERS))
@pytest.mark.parametrize("group", [C4, C8], ids=lambda group: group.name)
@pytest.mark.parametrize("side", [32, 33, 64])
def test_law_is_exact_under_quarter_turns(name: str, group: CyclicGroup, side: int) -> None:
    if group == C8 and name in QUARTER_TURNS_ONLY:
        with pytest.raises(UserError, match="paired_cnn"):
            build_scorer(name, group, 3, **SMALL[name])
        return
    torch.manual_seed(0)
    x = smooth_images(64, side)
    scorer = settled(build_scorer(name, group, 3, **SMALL[name]), x)
    error, agree = quarter_turn_error(scorer, x, group.order)
    assert error <= 1e-5
    assert agree == 1.0
    with torch.no_grad():
        assert scorer(x).argmax(1).unique().numel() > group.order // 2  # it does distinguish


@pytest.mark.parametrize("name", ["group_cnn", "group_wrn", "paired_cnn"])
def test_law_holds_in_training_mode_where_the_batch_is_turned_as_one(name: str) -> None:
    torch.manual_seed(0)
    scorer = build_scorer(name, C8, 3, **SMALL[name]).train()
    assert quarter_turn_error(scorer, smooth_images(16, 33), 8)[0] <= 1e-4


@pytest.mark.parametrize("name", sorted(set(SCORERS) - QUARTER_TURNS_ONLY))
def test_law_holds_at_45_degrees_up_to_resampling(name: str) -> None:
    torch.manual_seed(0)
    x = smooth_images(64, 64)
    options = SMALL[name] | ({"input_size": 65} if "input_size" in SMALL[name] else {})
    if name == "classifier":  # that of others: as it is, it shows its network whole, crisp images
        options |= {"mask_input": True, "half_step": True}
    scorer = settled(build_scorer(name, C8, 3, **options), x)
    assert odd_agreement(scorer, x) >= 0.9


def test_square_pooling_breaks_the_law_at_45_degrees() -> None:
    torch.manual_seed(0)
    x = smooth_images(64, 64)
    options = {"width": 4, "input_size": 65, "pool": "square"}
    assert odd_agreement(settled(build_scorer("group_cnn", C8, 3, **options), x), x) < 0.7


def test_reference_form_is_exact_for_c4_and_loses_45_degrees() -> None:
    torch.manual_seed(0)
    x = smooth_images(32, 64)
    options = {"form": "reference", "width": 8, "input_size": 48}
    assert quarter_turn_error(settled(build_scorer("group_cnn", C4, 3, **options), x), x, 4)[1] == 1
    assert odd_agreement(settled(build_scorer("group_cnn", C8, 3, **options), x), x) < 0.7


def test_pointwise_dropout_breaks_the_law_in_training() -> None:
    torch.manual_seed(0)
    scorer = build_scorer("group_cnn", C4, 3, **SMALL["group_cnn"], dropout=0.5).train()
    assert quarter_turn_error(scorer, smooth_images(16, 33), 4)[0] > 1e-2


@pytest.mark.parametrize("name", ["group_cnn", "group_wrn", "paired_cnn"])
@pytest.mark.parametrize("head", [9, "full"])
def test_large_last_kernels_keep_the_law(name: str, head: int | str) -> None:
    torch.manual_seed(0)
    x = smooth_images(64, 64)
    options = SMALL[name] | {"input_size": 65, "head_kernel_size": head}
    scorer = settled(build_scorer(name, C8, 3, **options), x)
    assert quarter_turn_error(scorer, x, 8)[0] <= 1e-5
    assert odd_agreement(scorer, x) >= 0.9


@pytest.mark.parametrize("order", [12, 16])
def test_paired_scorer_of_more_copies(order: int) -> None:
    torch.manual_seed(0)
    x = smooth_images(32, 64)
    group = CyclicGroup(order)
    scorer = settled(
        build_scorer("paired_cnn", group, 3, inner="group_cnn", width=4, input_size=65), x
    )
    assert quarter_turn_error(scorer, x, order)[0] <= 1e-5
    action = RotationAction(group)
    with torch.no_grad():
        chosen = scorer(x).argmax(1)
        for k in range(1, order // 4):
            follows = (scorer(action.turn(x, k)).argmax(1) - k) % order == chosen
            assert follows.float().mean() >= 0.85


def test_paired_scorer_of_c4_is_its_network() -> None:
    torch.manual_seed(0)
    x = smooth_images(4, 33)
    paired = build_scorer("paired_cnn", C4, 3, **SMALL["paired_cnn"]).eval()
    assert torch.equal(paired(x), paired.inner(x))


def test_paired_copies_are_resampled_alike() -> None:
    """White noise loses the same power in every copy: blur cannot tell the pose."""
    scorer = build_scorer("paired_cnn", C8, 1, **SMALL["paired_cnn"])
    noise = torch.randn(256, 1, 33, 33, generator=torch.Generator().manual_seed(0))
    first, second = scorer.prepare(noise).chunk(2)
    assert abs(first.var() / second.var() - 1) < 0.01
    assert first.var() < 0.8 * scorer.inner.prepare(noise).var()


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_export_is_plain_and_equal(name: str) -> None:
    torch.manual_seed(0)
    x = smooth_images(32, 32)
    scorer = build_scorer(name, group_of(name), 3, **SMALL[name])
    parameters = scorer.num_parameters
    scorer.train()
    if name not in UNLEARNT:
        optimizer = torch.optim.SGD(scorer.parameters(), 0.05)
        for _ in range(3):  # statistics, weights and scale away from their initial values
            F.cross_entropy(scorer(x + 0.5), torch.zeros(32, dtype=torch.long)).backward()
            optimizer.step()
    exported = scorer.eval().export()
    with torch.no_grad():
        assert (exported(x) - scorer(x)).abs().max() <= 1e-5
    assert not exported.training
    assert not any(p.requires_grad for p in exported.parameters())
    assert not any(type(m).__module__.startswith("escnn") for m in exported.modules())
    assert scorer.num_parameters == parameters


@pytest.mark.parametrize("name", sorted(set(SCORERS) - {"classifier"}))
def test_exported_ones_compute_in_float32_whatever_the_context(name: str) -> None:
    """In bfloat16 scores of turned copies would differ by more than near-ties allow for."""
    torch.manual_seed(0)
    scorer = build_scorer(name, group_of(name), 3, **SMALL[name]).eval()
    exported, x = scorer.export(), smooth_images(4, 32)
    with torch.no_grad():
        expected = exported(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = exported(x)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
        assert torch.equal(exported(x.double()), expected)
    with pytest.raises(UserError, match="a pose scorer for 3 channels"):
        exported(x[:, :1])


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_checkpoints_do_not_depend_on_the_mode(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    x = smooth_images(8, 32)
    scorer = build_scorer(name, group_of(name), 3, **SMALL[name])
    keys = list(scorer.train().state_dict())
    settled(scorer, x)
    assert list(scorer.state_dict()) == keys
    path = tmp_path / "scorer.safetensors"
    save_file(scorer.state_dict(), path)
    other = build_scorer(name, group_of(name), 3, **SMALL[name])
    other.load_state_dict(load_file(path))
    with torch.no_grad():
        assert torch.equal(other.eval()(x), scorer(x))


@pytest.mark.parametrize("name", sorted(set(SCORERS) - UNLEARNT))
def test_training_learns_a_pose(name: str) -> None:
    """A few steps put an upright image's pose at the identity, and turned ones' where they are."""
    torch.manual_seed(0)
    x = smooth_images(16, 32) + 2.0 * torch.linspace(-1, 1, 32)[:, None]
    scorer = build_scorer(name, C4, 3, **SMALL[name])
    optimizer = torch.optim.Adam(scorer.parameters(), 1e-2)
    for _ in range(15):
        optimizer.zero_grad()
        F.cross_entropy(scorer(x), torch.zeros(16, dtype=torch.long)).backward()
        optimizer.step()
    scorer.eval()
    with torch.no_grad():
        for k in range(4):
            assert (scorer(torch.rot90(x, k, (-2, -1))).argmax(1) == k).float().mean() > 0.9


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_options_listed_are_options_taken(name: str) -> None:
    """The registry, which imports nothing, agrees with the classes."""
    spec = SCORERS[name]
    cls = getattr(import_module(spec.module), spec.cls)
    parameters = inspect.signature(cls.__init__).parameters
    taken = {k for k, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    if name == "paired_cnn":
        inner = ("group_cnn", "group_wrn", "staged_cnn")
        taken |= frozenset().union(*(SCORERS[key].options for key in inner)) - {"form"}
    assert spec.options == taken


def test_registry_imports_no_torch() -> None:
    code = "import sys, eqadapt.scorers; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("name", "group", "options", "message"),
    [
        ("group_gnn", C4, {}, "group_cnn"),
        ("group_cnn", C4, {"widht": 4}, "width"),
        ("group_cnn", C4, {"form": "paper"}, "reference"),
        ("group_cnn", C4, {"width": 0}, "positive integer"),
        ("group_cnn", C4, {"kernel_size": 4}, "odd"),
        ("group_cnn", C4, {"head_kernel_size": 6}, "odd"),
        ("group_cnn", C4, {"head_kernel_size": "largest"}, "odd"),
        ("group_cnn", C4, {"input_size": 33, "head_kernel_size": 27}, "35, 36, 37"),
        ("group_cnn", C4, {"layers": 1}, "2 or more"),
        ("group_cnn", C4, {"input_size": 12}, "13, 14, 15"),
        ("group_cnn", C4, {"input_size": 64}, "21, 23, 25"),  # (64 - 5) is odd, the stride is 2
        ("group_cnn", C4, {"input_size": 33, "stride": 3}, "29, 32, 35"),
        ("group_cnn", C4, {"pool": "max"}, "disk or square"),
        ("group_cnn", C4, {"crop": 1.5}, "share"),
        ("group_wrn", C4, {"width": 6}, "multiple of 4"),
        ("group_wrn", C4, {"input_size": 17}, "19, 20, 21"),
        ("paired_cnn", CyclicGroup(6), {}, "C8"),
        ("paired_cnn", C8, {"inner": "plain_cnn"}, "group_wrn"),
        ("paired_cnn", C8, {"blocks": 2}, "inner: group_wrn, which has it"),
        ("paired_cnn", C8, {"interpolation": "nearest"}, "bicubic"),
        ("plain_cnn", C8, {"form": "reference", "input_size": 24}, "larger input_size"),
        ("plain_resnet", C4, {"model": "resnet5x"}, "resnet50"),
        ("plain_wrn", C4, {"model_options": 2}, "a mapping"),
        ("plain_resnet", C4, {"pretrained": True}, "no pretrained weights"),
        ("staged_cnn", C4, {"input_size": 34}, "a multiple of 4"),
        ("staged_cnn", C4, {"width": 5}, "an even number"),
        ("staged_cnn", C4, {"resize": "nearest"}, "antialias, sample"),
        ("staged_cnn", C8, {}, "scorer 'paired_cnn'"),
        ("classifier", C4, {"network_size": 96}, "96 above input_size 33"),
        ("classifier", C4, {"classes": 1}, "2 or more"),
        ("fixed_energy", C4, {"seed": -1}, "0 or a larger"),
        ("pca_frame", C4, {"reference_angle": "up"}, "degrees"),
        ("moment_frame", C4, {"input_size": 33}, "reference_angle"),
    ],
)
def test_mistakes_are_named(name: str, group: CyclicGroup, options: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_scorer(name, group, 3, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 32, 30), (3, 32, 32)])
def test_wrong_images_are_refused(shape: tuple[int, ...]) -> None:
    scorer = build_scorer("group_cnn", C4, 3, **SMALL["group_cnn"])
    with pytest.raises(UserError, match="3 channels"):
        scorer(torch.zeros(shape))


@pytest.mark.parametrize(("size", "step"), [(65, 2), (33, 1)])
def test_every_size_the_message_names_works(size: int, step: int) -> None:
    with pytest.raises(UserError) as caught:
        build_scorer("group_cnn", C4, 1, width=1, input_size=2, stride=step)
    sizes = [int(word) for word in caught.value.fix.replace(",", "").split() if word.isdigit()]
    for named in sizes[:3]:
        scorer = build_scorer("group_cnn", C4, 1, width=1, input_size=named, stride=step).eval()
        x = torch.rand(2, 1, named, named, generator=torch.Generator().manual_seed(0))
        assert quarter_turn_error(scorer, x, 4)[0] <= 1e-5


@pytest.mark.parametrize(
    ("name", "order", "options", "count"),
    [
        ("group_cnn", 4, {}, 91_392),
        ("group_cnn", 8, {}, 181_504),
        ("group_cnn", 8, {"kernel_size": 7}, 296_864),
        ("group_cnn", 8, {"kernel_size": 9}, 511_104),
        ("group_cnn", 4, {"kernel_size": 9}, 257_152),
        ("group_wrn", 4, {}, 1_858_864),
        ("group_wrn", 4, {"kernel_size": 3}, 1_013_824),
        ("group_wrn", 4, {"kernel_size": 3, "width": 32}, 254_496),
        ("plain_cnn", 8, {}, 306_544),
        ("plain_cnn", 8, {"width": 32, "kernel_size": 7}, None),
    ],
)
def test_parameters_of_the_reference_forms(
    name: str, order: int, options: dict, count: int | None
) -> None:
    scorer = build_scorer(name, CyclicGroup(order), 3, form="reference", **options)
    if count is None:
        assert 6.8e5 < scorer.num_parameters < 7.0e5
    else:
        assert scorer.num_parameters == count


@pytest.mark.parametrize("scale", [-1.0, 60.0])
def test_a_logit_scale_that_could_not_learn_is_refused(scale: float) -> None:
    with pytest.raises(UserError, match="logit_scale"):
        build_scorer("paired_cnn", C8, 3, **SMALL["paired_cnn"], logit_scale=scale)


def test_logit_scale_is_kept_in_bounds() -> None:
    scorer = build_scorer("group_cnn", C4, 3, **SMALL["group_cnn"]).eval()
    x = smooth_images(4, 33)
    with torch.no_grad():
        scorer.logit_scale.fill_(50.0)
        most = scorer(x)
        scorer.logit_scale.fill_(1000.0)
        assert torch.equal(scorer(x), most)
        assert torch.allclose(scorer.export()(x), most, atol=1e-5)


def test_half_precision_regions_do_not_reach_the_scorer() -> None:
    scorer = build_scorer("group_cnn", C4, 3, **SMALL["group_cnn"]).eval()
    x = smooth_images(4, 33)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(scorer(x), scorer(x.float()))
        assert scorer(x).dtype == torch.float32


@pytest.mark.parametrize("name", ["staged_cnn", "plain_cnn"])
def test_lower_precision_is_for_training_alone(name: str) -> None:
    torch.manual_seed(0)
    x = smooth_images(16, 32)
    scorer = build_scorer(name, C4, 3, **SMALL[name])
    exact = scorer(x)
    scorer.training_dtype = torch.bfloat16
    lower = scorer(x)
    assert lower.dtype == torch.float32
    gap = (lower - exact).abs().max()
    assert 0 < gap < 0.05 * exact.abs().max()
    settled(scorer, x)
    with torch.no_grad():
        evaluated = scorer(x)
        scorer.training_dtype = None
        assert torch.equal(scorer(x), evaluated)


@pytest.mark.parametrize("side", [32, 96, 160])
def test_sampled_pixels_are_the_old_ones(side: int) -> None:
    """Enlarging an image for the action and sampling it back loses nothing; antialiasing blurs."""
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    factor = side // 32
    enlarged = x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    sampled = build_scorer("staged_cnn", C4, 3, mask_input=False, resize="sample").prepare
    assert torch.equal(sampled(enlarged), x)
    even = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    antialiased = build_scorer("staged_cnn", C4, 3, mask_input=False).prepare
    assert torch.equal(sampled(even), antialiased(even))


@pytest.mark.parametrize("name", ["staged_cnn", "paired_cnn", "plain_cnn"])
def test_mirrored_scores_turn_with_the_image_and_do_not_see_the_mirror(name: str) -> None:
    torch.manual_seed(0)
    group = group_of(name)
    x = smooth_images(16, 32)
    scorer = Mirrored(settled(build_scorer(name, group, 3, **SMALL[name]), x))
    error, agree = quarter_turn_error(scorer, x, group.order)
    assert error <= 1e-5 and agree == 1.0
    with torch.no_grad():
        seen = scorer(x.flip(-1))
        expected = scorer(x)[:, [-k % group.order for k in range(group.order)]]
        assert torch.equal(seen, expected)
        assert not torch.allclose(scorer(x), scorer.scorer(x), atol=1e-3)


def test_a_classifier_scores_each_view_as_it_classifies_it() -> None:
    torch.manual_seed(0)
    x = smooth_images(8, 96)
    options = {"model": "cifar_resnet20", "classes": 10, "input_size": 96, "network_size": 32}
    scorer = settled(build_scorer("classifier", C8, 3, interpolation="bicubic", **options), x)
    views = RotationAction(C8, "bicubic").orbit(x, 32)
    with torch.no_grad():
        pairs = scorer.pairs(x)
        expected = scorer.network(views.flatten(0, 1)).unflatten(0, (8, 8))
        assert torch.allclose(pairs, expected, atol=1e-5)
        assert torch.equal(scorer(x), pairs.logsumexp(-1))
        assert torch.allclose(scorer.export_pairs()(x), pairs, atol=1e-5)


def test_a_scorer_that_does_not_learn_serves_training_in_lower_precision() -> None:
    torch.manual_seed(0)
    x = smooth_images(16, 32).sigmoid()
    network = settled(build_scorer("classifier", C4, 3, **SMALL["classifier"]), x)
    network.training_dtype = torch.bfloat16
    half = torch.full((1, 3, 1, 1), 0.5)
    scorer = ImageScorer(network, half, half, learns=False)
    exact, state = scorer.eval()(x), copy.deepcopy(network.state_dict())
    lower = scorer.train()(x)
    assert not network.training and 0 < (lower - exact).abs().max() < 0.05 * exact.abs().max()
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert torch.equal(scorer.eval()(x), exact)


@pytest.mark.parametrize("learns", [True, False])
def test_only_what_learns_passes_whole_batches_in_training(learns, monkeypatch) -> None:
    monkeypatch.setattr(parts, "images_at_once", lambda *_: 16)
    x = smooth_images(16, 32).sigmoid()
    network = settled(build_scorer("classifier", C4, 3, **SMALL["classifier"]), x)
    sizes: list[int] = []
    network.network.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    half = torch.full((1, 3, 1, 1), 0.5)
    scorer = ImageScorer(network, half, half, learns=learns).train()
    assert scorer(x).requires_grad == learns
    assert sizes == ([64] if learns else [16] * 4)
    # who asks for the gradient of the images gets it
    asked = x.clone().requires_grad_()
    assert torch.autograd.grad(scorer(asked).sum(), asked)[0].abs().max() > 0


@pytest.mark.parametrize("side", [32, 64, 96])
def test_paired_copies_of_a_staged_network(side: int) -> None:
    """The default: exact under quarter turns, and near it under odd eighths."""
    torch.manual_seed(0)
    x = smooth_images(64, side)
    scorer = settled(build_scorer("paired_cnn", C8, 3), x)
    assert isinstance(scorer.inner, StagedCNN)
    error, agree = quarter_turn_error(scorer, x, 8)
    assert error <= 1e-5 and agree == 1.0
    assert odd_agreement(scorer, x) >= 0.9


def test_turned_copies_of_an_enlarged_image_are_taken_at_its_own_resolution() -> None:
    options = {"inner": "staged_cnn", "width": 4, "resize": "sample", "mask_input": False}
    scorer = build_scorer("paired_cnn", C8, 3, **options)
    x = smooth_images(8, 96)
    copies = scorer.prepare(x).view(2, 8, 3, 32, 32)
    for turned_copy, angle in zip(copies, (22.5, -22.5), strict=True):
        turned = rotate(x, torch.full((8,), angle), "bilinear")
        assert torch.allclose(turned_copy, turned[..., 1::3, 1::3], atol=1e-5)
    error, agree = quarter_turn_error(settled(scorer, x), x, 8)
    assert error <= 1e-5 and agree == 1.0


def test_contrast_does_not_see_lengths() -> None:
    vectors = torch.randn(4, 8, 16, generator=torch.Generator().manual_seed(0))
    lengths = torch.rand(4, 8, 1, generator=torch.Generator().manual_seed(1)) + 0.1
    assert torch.allclose(contrast(vectors), contrast(1e-3 * lengths * vectors))
    assert contrast(torch.eye(8).expand(4, 8, 8)) == 0  # orthogonal
    assert torch.allclose(contrast(torch.ones(4, 8, 16)), torch.ones(()))  # all alike


def test_artifact_is_two_minus_twice_the_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.randn(4, 8, 16, generator=generator) for _ in range(2))
    expected = 2 - 2 * torch.cosine_similarity(ours, theirs, dim=-1).mean()
    assert torch.allclose(artifact(ours, 1e-3 * theirs), expected)
    assert artifact(ours, ours) == 0


@pytest.mark.parametrize(("order", "half_step"), [(4, False), (4, True), (8, False), (8, True)])
def test_views_turned_to_and_fro_differ_by_resampling_alone(order: int, half_step: bool) -> None:
    torch.manual_seed(0)
    options = {"input_size": 17, "half_step": half_step}
    x = smooth_images(8, 24)
    scorer = settled(build_scorer("plain_cnn", CyclicGroup(order), 3, **options), x)
    with torch.no_grad():
        moved = artifact(scorer.embed(x), scorer.embed_returned(x))
    assert moved <= 1e-9 if order == 4 else 1e-6 < moved < 0.1


@pytest.mark.parametrize("crop", [None, 0.75])
def test_plain_scorer_gives_the_vectors_it_scores(crop: float | None) -> None:
    torch.manual_seed(0)
    scorer = build_scorer("plain_cnn", C8, 3, **SMALL["plain_cnn"], crop=crop).eval()
    x = smooth_images(4, 32)
    vectors = scorer.embed(x)
    assert vectors.shape == (4, 8, 128)
    assert torch.equal(scorer.logits(vectors), scorer(x))
    outside = x.clone()
    outside[..., :3, :] = 0
    assert torch.equal(scorer(outside), scorer(x)) == (crop is not None)
    inside = x.clone()
    inside[..., 5, 10] += 1
    assert not torch.equal(scorer(inside), scorer(x))


def test_evaluation_first_does_not_stop_gradients_to_the_image() -> None:
    scorer = build_scorer("group_cnn", C4, 3, **SMALL["group_cnn"])
    x = smooth_images(2, 32)
    with torch.inference_mode():
        scorer(x)
    scorer(x.requires_grad_()).sum().backward()
    assert x.grad is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["group_cnn", "paired_cnn", "plain_cnn"])
def test_trained_poses_follow_turns_of_real_digits(name: str) -> None:
    """After training on the prior alone: the pose of unseen digits is found, and it follows."""
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 16 - 0.3
    images = F.interpolate(images, size=(32, 32), mode="bicubic", align_corners=False)
    train, test = images[:1100], images[1300:]
    options = {"width": 4, "input_size": 33}
    if name != "plain_cnn":
        options |= {"stride": 2, "head_kernel_size": "full"}
    if name == "paired_cnn":
        options["inner"] = "group_cnn"
    scorer = build_scorer(name, C8, 1, **options)
    optimizer = torch.optim.AdamW(scorer.parameters(), 1e-2)
    action = RotationAction(C8)
    for _ in range(8):
        for part in torch.randperm(len(train)).split(64):
            pose = torch.randint(0, 8, (len(part),))
            optimizer.zero_grad()
            F.cross_entropy(scorer(action.act(train[part], pose)), pose).backward()
            optimizer.step()
    scorer.eval()
    with torch.no_grad():
        chosen = torch.stack([scorer(action.turn(test, k)).argmax(1) - k for k in range(8)], 1) % 8
    assert (chosen[:, ::2] == chosen[:, :1]).float().mean() == 1.0
    assert (chosen[:, 1::2] == chosen[:, :1]).float().mean() > 0.95
    assert (chosen == 0).float().mean() > 0.8


def test_half_step_views_are_all_resampled_alike() -> None:
    noise = torch.randn(256, 1, 33, 33, generator=torch.Generator().manual_seed(0))
    for half_step, spread in ((True, 0.01), (False, 0.2)):
        scorer = build_scorer("plain_cnn", C8, 1, **SMALL["plain_cnn"], half_step=half_step)
        power = scorer.views(noise).var(dim=(0, 2, 3, 4))
        ratio = float(power.max() / power.min()) - 1
        assert ratio < 0.01 if half_step else ratio > spread


CLASSWISE = sorted(name for name, spec in SCORERS.items() if "classes" in spec.options)


@pytest.mark.parametrize("name", CLASSWISE)
def test_class_wise_scores_turn_with_the_input_and_sum_to_those_of_poses(name):
    group = group_of(name)
    scorer = build_scorer(name, group, 3, classes=5, **SMALL[name])
    x = smooth_images(48, 33 if "33" in str(SMALL[name]) else 32)
    settled(scorer, x)
    with torch.no_grad():
        pairs, scores = scorer.pairs(x), scorer(x)
        assert pairs.shape == (48, group.order, 5)
        assert torch.allclose(pairs.logsumexp(2), scores, atol=1e-5)
        assert torch.allclose(scorer.export()(x), scores, atol=2e-5)
        assert torch.allclose(scorer.export_pairs()(x), pairs, atol=2e-5)
        turned = scorer.pairs(torch.rot90(x, 1, (-2, -1)))
    assert torch.allclose(turned, pairs.roll(group.order // 4, 1), atol=2e-5)
    assert (pairs - pairs.mean(2, keepdim=True)).std(0).min() > 1e-3  # it does tell classes
    error, agree = quarter_turn_error(scorer, x, group.order)
    assert error < 2e-5
    assert agree == 1.0


def test_class_wise_needs_a_network_that_tells_classes():
    silent = build_scorer("staged_cnn", C4, 3, width=4)
    with pytest.raises(UserError, match="tells no classes"):
        silent.pairs(smooth_images(1, 32))
    with pytest.raises(UserError, match="tells no classes"):
        silent.export_pairs()
    with pytest.raises(UserError, match="classes is 1"):
        build_scorer("staged_cnn", C4, 3, width=4, classes=1)
