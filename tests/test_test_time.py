"""Test-time methods: their limits, invariance to the bit, passes counted, ties, refusals."""

import numpy as np
import pytest
import torch

from eqadapt.backbones import Backbone, build_network
from eqadapt.errors import UserError
from eqadapt.evaluation import PassCounter
from eqadapt.evidence import EVIDENCE, build_evidence, log_softmax
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.orbit_cache import OrbitComputer, Orbits, views_of_pose
from eqadapt.symmetrize import read_side
from eqadapt.tasks.classification import ImagePipeline
from eqadapt.test_time import METHODS, TestTimeMethod, Views, decide, get_method
from eqadapt.test_time.bench import Bench
from eqadapt.test_time.live import LiveViews, Outputs
from eqadapt.test_time.outputs import logit_differences, predictions
from eqadapt.test_time.rules import mean_of_views, top_views
from eqadapt.test_time.tuning import Selection, grid_points, tune

N, C, D = 64, 5, 8
SEARCHES = [name for name, m in METHODS.items() if f"{name}_gated" in METHODS and not m.gated]


def orbits(order: int, count: int = N, seed: int = 0) -> Orbits:
    generator = np.random.default_rng(seed)
    group = CyclicGroup(order)
    cosets = 1 if order <= 4 else order // 4
    weight = generator.normal(size=(C, D))
    features = generator.normal(size=(count, cosets, order, D)).astype(np.float32)
    logits = (3 * features @ weight.T).astype(np.float32)
    label = logits[:, 0, 0].argmax(axis=1).astype(np.int64)
    meta = {"classes": list("abcde"), "mask": "none"}
    return Orbits(group, logits, features, label, np.arange(count), meta)


def poses(order: int, split: str, seed: int) -> np.ndarray:
    """Of a class-wise canonicalizer: logits of the pairs of pose and class."""
    generator = np.random.default_rng([seed, len(split)])
    cosets = 1 if order <= 4 else order // 4
    return generator.normal(size=(N, cosets, order, C)).astype(np.float32) * 2


def bench(order: int) -> Bench:
    splits = {"train": orbits(order, seed=1), "validation": orbits(order, seed=2)}
    return Bench(
        {**splits, "test": orbits(order)}, lambda _m, split, seed: poses(order, split, seed)
    )


QUICK = {"evidence.epochs": 1, "evidence.hidden": 8}


def options(method: TestTimeMethod, **more):
    learned = method.evidence is not None and EVIDENCE[method.evidence].learned
    return {**(QUICK if learned else {}), **more}


def views(order: int = 4, evidence: str | None = "energy", pose: int = 0) -> Views:
    data = orbits(order)
    scores = None
    if evidence:
        flat = data.logits.reshape(-1, order, C)
        scores = build_evidence(evidence).score(flat, flat).reshape(data.logits.shape[:3])
        scores = views_of_pose(scores, data.group, pose)
    prior = views_of_pose(poses(order, "test", 0), data.group, pose)
    return Views(views_of_pose(data.logits, data.group, pose), scores, prior)


# --- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [4, 8])
@pytest.mark.parametrize("space", ["logits", "probabilities", "log_probabilities"])
def test_cold_boltzmann_is_equizero_with_the_same_energy(order, space):
    search = decide(METHODS["ood_energy"], views(order))
    for temperature in (0.0, 1e-4):
        cold = decide(
            METHODS["boltzmann"], views(order), {"temperature": temperature, "space": space}
        )
        np.testing.assert_array_equal(cold.prediction, search.prediction)
        np.testing.assert_allclose(cold.score, search.score, rtol=1e-9)


@pytest.mark.parametrize("order", [4, 8])
@pytest.mark.parametrize(
    ("space", "name"),
    [
        ("logits", "equitune"),
        ("probabilities", "equitune_probabilities"),
        ("log_probabilities", "equitune_log_probabilities"),
    ],
)
def test_hot_boltzmann_is_equitune_in_the_same_space(order, space, name):
    hot = decide(METHODS["boltzmann"], views(order), {"temperature": 1e9, "space": space})
    mean = decide(METHODS[name], views(order, None))
    np.testing.assert_array_equal(hot.prediction, mean.prediction)
    np.testing.assert_allclose(hot.log_probabilities, mean.log_probabilities, atol=1e-6)


def test_means_of_logits_and_of_log_probabilities_are_one_output():
    logits = decide(METHODS["equitune"], views(8, None))
    logs = decide(METHODS["equitune_log_probabilities"], views(8, None))
    probabilities = decide(METHODS["equitune_probabilities"], views(8, None))
    np.testing.assert_allclose(logits.log_probabilities, logs.log_probabilities, atol=1e-10)
    gap = np.abs(logits.log_probabilities - probabilities.log_probabilities)
    assert gap.max() > 0.1  # these two are not


def test_equitune_is_the_plain_mean():
    found = decide(METHODS["equitune"], views(4, None))
    expected = log_softmax(orbits(4).logits[:, 0].mean(axis=1))
    np.testing.assert_allclose(found.log_probabilities, expected, atol=1e-5)


def flat(values: Views, **changes) -> Views:
    prior = np.zeros_like(values._pose_logits) if changes.get("prior") else values._pose_logits
    scores = np.zeros_like(values._scores) if changes.get("evidence") else values._scores
    return Views(values._logits, scores, prior)


def test_posterior_with_a_flat_prior_is_boltzmann():
    both = {"evidence_weight": 0.5, "space": "probabilities"}
    found = decide(METHODS["posterior_mean"], flat(views(8), prior=True), both)
    expected = decide(
        METHODS["boltzmann"], views(8), {"temperature": 2.0, "space": "probabilities"}
    )
    np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-9)
    best = decide(METHODS["posterior"], flat(views(8), prior=True))
    np.testing.assert_array_equal(best.chosen, decide(METHODS["ood_energy"], views(8)).chosen)


def test_posterior_with_flat_evidence_is_the_canonicalizer():
    found = decide(METHODS["posterior"], flat(views(8), evidence=True))
    prlc = decide(METHODS["prlc"], views(8))
    np.testing.assert_array_equal(found.chosen, prlc.chosen)
    np.testing.assert_array_equal(found.log_probabilities, prlc.log_probabilities)
    mean = decide(METHODS["posterior_mean"], flat(views(8), evidence=True))
    weighted = decide(METHODS["prlc_mean"], views(8))
    np.testing.assert_allclose(mean.log_probabilities, weighted.log_probabilities, atol=1e-9)


def test_posterior_over_pairs_without_a_vote_is_the_posterior_over_poses():
    weights = {"prior_weight": 0.5, "evidence_weight": 2.0}
    mute = decide(METHODS["posterior_classes"], views(8), {**weights, "class_weight": 0.0})
    mean = decide(METHODS["posterior_features_mean"], views(8), weights)
    np.testing.assert_allclose(mute.log_probabilities, mean.log_probabilities, atol=1e-9)
    told = decide(METHODS["oracle_classes"], views(8), {"class_weight": 0.0}, pose=0)
    oracle = decide(METHODS["oracle"], views(8), pose=0)
    np.testing.assert_allclose(told.log_probabilities, oracle.log_probabilities, atol=1e-12)


def test_posterior_over_pairs_is_bayes_rule_written_out():
    values = views(4)
    found = decide(METHODS["posterior_classes"], values)
    pairs = np.exp(np.asarray(values._pose_logits, np.float64))
    joint = pairs * np.exp(log_softmax(values._logits)) * np.exp(values._scores)[..., None]
    expected = joint.sum(axis=1) / joint.sum(axis=(1, 2))[:, None]
    np.testing.assert_allclose(np.exp(found.log_probabilities), expected, rtol=1e-9)


def test_a_sure_canonicalizer_leaves_the_product_of_two_classifiers():
    values = views(4)
    values._pose_logits[:, 2] += 500.0
    found = decide(METHODS["posterior_classes"], values)
    told = decide(METHODS["oracle_classes"], values, pose=2)
    np.testing.assert_allclose(found.log_probabilities, told.log_probabilities, atol=1e-9)
    second = log_softmax(values._pose_logits[:, 2])
    expected = log_softmax(log_softmax(values._logits[:, 2]) + second)
    np.testing.assert_allclose(told.log_probabilities, expected, atol=1e-9)


def test_a_canonicalizer_without_classes_has_no_vote():
    silent = Views(orbits(4).logits[:, 0], np.zeros((N, 4)), np.zeros((N, 4)))
    with pytest.raises(UserError, match="tells classes"):
        decide(METHODS["posterior_classes"], silent)
    for wrong in ({"prior": False}, {"selection": "argmax"}):
        options = {"selection": "mean", "prior": True, "votes": True, **wrong}
        with pytest.raises(UserError, match="vote on the class"):
            TestTimeMethod("new", "A vote.", "none", **options)


def test_top_1_is_the_canonicalizer():
    prlc = decide(METHODS["prlc"], views(8))
    for name in ("top_2", "posterior_top_2", "posterior_features_top_3"):
        found = decide(METHODS[name], views(8), {"views": 1})
        np.testing.assert_array_equal(found.prediction, prlc.prediction)
        np.testing.assert_allclose(found.log_probabilities, prlc.log_probabilities, atol=1e-12)
        assert found.passes.tolist() == [1] * N


def test_top_m_of_all_poses_is_the_posterior():
    whole = decide(METHODS["posterior"], views(8))
    part = decide(METHODS["posterior_top_2"], views(8), {"views": 8})
    np.testing.assert_array_equal(whole.log_probabilities, part.log_probabilities)
    np.testing.assert_array_equal(whole.chosen, part.chosen)


def test_over_the_trivial_group_everything_is_vanilla():
    plain = decide(METHODS["vanilla"], views(1, None))
    for name in ("equitune", "equizero", "ac_max", "boltzmann", "prlc", "posterior"):
        found = decide(METHODS[name], views(1))
        np.testing.assert_array_equal(found.prediction, plain.prediction)
        np.testing.assert_allclose(found.log_probabilities, plain.log_probabilities, atol=1e-12)


@pytest.mark.parametrize(("quantile", "same_as"), [(0.0, "vanilla"), (1.0, "ood_energy")])
def test_the_gate_lies_between_vanilla_and_the_search(quantile, same_as):
    cell = bench(4)
    cell.orbits["validation"].logits[:] = cell.orbits["test"].logits
    gated = cell.decide(METHODS["ood_energy_gated"], {"quantile": quantile}, "test", poses=[0])[0]
    other = cell.decide(METHODS[same_as], {}, "test", poses=[0])[0]
    rows = (
        np.arange(N)
        != build_evidence("energy")
        .score(cell.orbits["test"].logits[:, 0], cell.orbits["test"].features[:, 0])[:, 0]
        .argmax()
    )  # at quantile 1 the best input itself is kept
    np.testing.assert_array_equal(gated.prediction[rows], other.prediction[rows])
    assert gated.passes[rows].tolist() == [1 if same_as == "vanilla" else 4] * (N - 1)


def test_an_offset_moves_every_pose():
    plain, moved = (
        decide(METHODS["prlc"], views(8)),
        decide(METHODS["lc_offset"], views(8), {"offset": 3}),
    )
    np.testing.assert_array_equal(moved.chosen, (plain.chosen + 3) % 8)


def test_the_classwise_maximum_takes_each_class_from_its_own_view():
    logits = np.full((1, 4, 3), -9.0)
    logits[0, 1, 0], logits[0, 3, 2] = 4.0, 5.0
    found = decide(METHODS["ac_max"], Views(logits))
    assert found.prediction[0] == 2
    assert found.chosen[0] == 3
    assert found.log_probabilities[0, 0] - found.log_probabilities[0, 2] == pytest.approx(-1.0)


# --- invariance ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [4, 8])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_quarter_turns_change_no_bit_unless_the_method_says_so(name, order):
    method, cell = METHODS[name], bench(order)
    parameters = method.parameters(options(method))
    quarter = order // 4
    for coset in cell.orbits["test"].cosets:
        turned = [coset + quarter * turns for turns in range(4)]
        decisions = cell.decide(method, parameters, "test", poses=turned)
        same = all(
            np.array_equal(decisions[0].log_probabilities, other.log_probabilities)
            for other in decisions[1:]
        )
        predicted = all(
            np.array_equal(decisions[0].prediction, other.prediction) for other in decisions[1:]
        )
        chosen = all(
            np.array_equal((decisions[0].chosen + quarter * k) % order, other.chosen)
            or (other.chosen < 0).all()
            for k, other in enumerate(decisions)
        )
        if method.invariant:
            assert same
            assert predicted
            assert chosen
        elif method.selection == "true_pose":
            assert same
        else:
            assert not same


def test_departures_are_named():
    found = {name: method.departures() for name, method in METHODS.items()}
    assert found["equitune"] == found["prlc"] == found["posterior"] == ()
    assert found["ac_max"] == ("class_axis",)
    assert found["equitune_probabilities"] == ("output_space",)
    assert found["its_paper"] == ("view_order",)
    assert found["posterior_classes"] == ("output_space", "second_classifier")
    assert found["oracle_classes"] == ("true_pose", "second_classifier")
    assert found["its_paper_gated"] == ("gate", "view_order")
    assert METHODS["boltzmann"].departures({"space": "logits"}) == ()
    for name in SEARCHES:
        assert "gate" in found[f"{name}_gated"]


def test_sums_do_not_mind_the_order_of_the_views():
    generator = np.random.default_rng(0)
    logits, weights = generator.normal(size=(200, 8, 5)) * 10, generator.normal(size=(200, 8)) * 3
    order = generator.permutation(8)
    for space in ("logits", "probabilities", "log_probabilities"):
        first = mean_of_views(weights, logits, space)
        second = mean_of_views(weights[:, order], logits[:, order], space)
        np.testing.assert_array_equal(first, second)


# --- passes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("vanilla", 1),
        ("oracle", 1),
        ("prlc", 1),
        ("lc_offset", 1),
        ("top_2", 2),
        ("top_3", 3),
        ("posterior_top_2", 2),
        ("posterior_features_top_3", 3),
        ("posterior_classes_top_2", 2),
        ("oracle_classes", 1),
        ("posterior_classes", 8),
        ("posterior", 8),
        ("prlc_mean", 8),
        ("equitune", 8),
        ("ac_max", 8),
        ("boltzmann", 8),
        ("ood_knn", 8),
        ("its_circular", 8),
        ("its_circular_gated", 8),  # a peak is seen only among all views
    ],
)
def test_passes_are_those_of_the_method(name, passes):
    method, cell = METHODS[name], bench(8)
    found = cell.decide(method, options(method), "test", poses=[1])[0]
    assert found.passes.tolist() == [passes] * N


def test_a_gate_saves_passes():
    cell = bench(8)
    found = cell.decide(METHODS["ood_energy_gated"], {"quantile": 0.5}, "test", poses=[0])[0]
    assert set(found.passes.tolist()) == {1, 8}


def test_views_that_were_not_read_cannot_be_used():
    some = views(4)
    some.read(np.arange(4) == np.zeros((N, 1), int))
    assert np.isnan(some.logits[:, 1:]).all()
    assert not np.isnan(some.logits[:, 0]).any()
    assert np.isnan(some.scores[:, 1:]).all()
    ordered = Views(some._logits, some._scores, per_view=False)
    ordered.read(np.arange(4) == np.zeros((N, 1), int))
    assert np.isnan(ordered.scores).all()


def test_evidence_of_all_views_is_refused_where_some_are_read():
    whole = Views(
        orbits(4).logits[:, 0], np.zeros((N, 4)), poses(4, "test", 0)[:, 0], per_view=False
    )
    with pytest.raises(UserError, match="takes all of them"):
        decide(METHODS["posterior_top_2"], whole)
    assert decide(METHODS["posterior"], whole).passes.tolist() == [4] * N


class Scorer(torch.nn.Module):
    """Logits of pairs that turn with the image: brightness of five patches at each corner."""

    def forward(self, x):
        turned = [torch.rot90(x, -k, (-2, -1)) for k in range(4)]
        patches = [[t[..., c : c + 6, :6].mean(dim=(1, 2, 3)) for c in range(C)] for t in turned]
        return 50 * torch.stack([torch.stack(of_pose, dim=1) for of_pose in patches], dim=1)


@pytest.fixture(scope="module")
def live():
    torch.manual_seed(0)
    network = build_network("cifar_resnet20", C, 3, options={"width": 4})
    backbone = Backbone(network, 8, [0.5] * 3, [0.5] * 3).eval()
    action, pipeline = RotationAction(CyclicGroup(4), "bicubic"), ImagePipeline(24)
    images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
    return backbone, action, pipeline, images


@pytest.mark.parametrize(
    "name",
    ["vanilla", "equitune", "equizero", "prlc", "top_2", "posterior", "posterior_top_2", "ac_max"]
    + ["ood_energy_gated", "its_circular", "boltzmann", "oracle_classes"],
)
def test_a_running_backbone_gives_the_same_in_the_passes_claimed(name, live, tmp_path):
    backbone, action, pipeline, images = live
    method = METHODS[name]
    labels, index = torch.zeros(24, dtype=torch.long), torch.arange(24)
    compute = OrbitComputer(backbone, action, pipeline, 8, say=lambda _text: None)
    meta = {"dataset": "d", "backbone": "b", "group": "C4", "split": "test"}
    cached = compute(images, labels, index, meta, tmp_path)
    x = pipeline.to_act_size(images)
    with torch.no_grad():
        pose_logits = Scorer()(x).numpy()[:, None]
    cell = Bench({"test": cached, "validation": cached}, lambda *_: pose_logits)
    evidence = build_evidence(method.evidence) if method.evidence else None
    threshold = cell.threshold(method, {"quantile": 0.5}, 0) if method.gated else None
    expected = cell.decide(method, {"quantile": 0.5}, "test", poses=[0])[0]
    outputs = Outputs(backbone)
    with PassCounter(outputs) as counter:
        scorer, side = Scorer() if method.prior else None, read_side(backbone)
        assert side is not None  # the images are larger, so that only the pixels read are made
        views = LiveViews(outputs, action, x, evidence, scorer, side)
        found = decide(method, views, threshold=threshold, pose=0)
    assert counter.images == expected.passes.sum() == found.passes.sum()
    np.testing.assert_array_equal(found.prediction, expected.prediction)
    np.testing.assert_array_equal(found.chosen, expected.chosen)
    np.testing.assert_allclose(found.log_probabilities, expected.log_probabilities, atol=1e-4)


# --- ties ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(n for n, m in METHODS.items() if m.invariant))
def test_a_symmetric_image_has_one_output_in_every_pose(name):
    method, cell = METHODS[name], bench(8)
    test = cell.orbits["test"]
    test.logits[:, :, 4:], test.features[:, :, 4:] = test.logits[:, :, :4], test.features[:, :, :4]
    halved = {s: np.concatenate([poses(8, s, 0)[:, :, :4]] * 2, axis=2) for s in ("test",)}
    cell.pose_logits = lambda _m, split, _seed: halved[split]
    decisions = cell.decide(method, options(method), "test", poses=[0, 2, 4, 6])
    for other in decisions[1:]:
        np.testing.assert_array_equal(decisions[0].log_probabilities, other.log_probabilities)


def test_equal_scores_of_different_views_are_broken_by_their_contents():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 4, 3))
    scores = np.ones((50, 4))
    first = decide(METHODS["ood_energy"], Views(logits, scores))
    for turn in range(1, 4):
        rolled = Views(np.roll(logits, turn, axis=1), scores)
        found = decide(METHODS["ood_energy"], rolled)
        np.testing.assert_array_equal(found.log_probabilities, first.log_probabilities)


# --- selection ----------------------------------------------------------------------------------


def test_the_best_validation_accuracy_is_selected():
    cell = bench(8)
    found = tune(cell, METHODS["boltzmann"], {"temperature": [0.1, 1.0, 10.0]}, 16)
    accuracies = [trial["accuracy"] for trial in found.trials]
    best = found.trials[int(np.argmax(accuracies))]["parameters"]["temperature"]
    assert found.parameters["temperature"] == best
    for trial in found.trials:
        expected = cell.accuracy(METHODS["boltzmann"], trial["parameters"], "validation")
        assert trial["accuracy"] == expected


def test_the_test_split_is_not_read_in_selection():
    cell = bench(4)
    without = Bench({key: cell.orbits[key] for key in ("train", "validation")}, cell.pose_logits)
    for name in ("boltzmann", "ood_knn", "posterior", "ood_energy_gated"):
        method = METHODS[name]
        grid = {"quantile": [0.1, 0.3]} if method.gated else {"evidence_weight": [0.5, 1.0]}
        assert tune(without, method, grid, 4).trials


def test_evidence_is_taken_over_from_the_parent():
    inherited = Selection({"evidence.temperature": 3.0}, [{}, {}, {}])
    found = tune(bench(4), METHODS["ood_energy_gated"], {"quantile": [0.2]}, 4, inherited)
    assert found.parameters["evidence.temperature"] == 3.0
    assert (len(found.trials), found.count) == (1, 4)  # those of the parent count


def test_nothing_is_searched_without_a_grid():
    found = tune(bench(4), METHODS["equitune"], {}, 4)
    assert found.trials == []


def test_a_large_grid_is_drawn_from_always_the_same_way():
    grid = {"a": list(range(10)), "b": list(range(10))}
    points = grid_points(grid, 16)
    assert len(points) == 16
    assert points == grid_points(grid, 16)
    assert len({tuple(point.items()) for point in points}) == 16
    assert len(grid_points(grid, 1000)) == 100


# --- outputs ------------------------------------------------------------------------------------


def test_predictions_have_a_row_an_image_and_pose():
    cell = bench(8)
    found = predictions(cell.group, cell.decide(METHODS["prlc"], {}, "test"), cell.orbits["test"])
    assert len(found.index) == N * 8
    assert found.pose[::N].tolist() == list(range(8))
    np.testing.assert_allclose(found.chosen_angle, found.chosen * 45.0)
    none = predictions(
        cell.group, cell.decide(METHODS["equitune"], {}, "test"), cell.orbits["test"]
    )
    assert (none.chosen == -1).all()
    assert np.isnan(none.chosen_angle).all()
    assert found.passes == 1.0
    assert none.passes == 8.0


def test_logit_differences_tell_the_cosets_apart():
    cell = bench(8)
    found = logit_differences(cell.group, cell.decide(METHODS["equitune"], {}, "test"))
    assert found["logit_difference_exact"] == 0.0
    assert found["logit_difference_rest"] > 0.0
    vanilla = logit_differences(bench(4).group, bench(4).decide(METHODS["vanilla"], {}, "test"))
    assert vanilla["logit_difference_exact"] > 0.0
    assert vanilla["logit_difference_rest"] is None


# --- refusals -----------------------------------------------------------------------------------


def test_what_cannot_work_is_refused():
    with pytest.raises(UserError, match="unknown test-time method 'equizero2'"):
        get_method("equizero2")
    with pytest.raises(UserError, match="unknown score 'energi'"):
        TestTimeMethod("x", "", "", "argmax", "energi")
    with pytest.raises(UserError, match="unknown selection"):
        TestTimeMethod("x", "", "", "best")
    with pytest.raises(UserError, match="no evidence to gate by"):
        TestTimeMethod("x", "", "", "argmax", gated=True)
    with pytest.raises(UserError, match="top-5 of a group with 4 elements"):
        decide(METHODS["top_2"], views(4), {"views": 5})
    with pytest.raises(UserError, match="top-0"):
        top_views(np.zeros((2, 4)), 0)
    with pytest.raises(UserError, match="no hyper-parameter temprature"):
        decide(METHODS["boltzmann"], views(4), {"temprature": 1.0})
    with pytest.raises(UserError, match="temperature is -1"):
        decide(METHODS["boltzmann"], views(4), {"temperature": -1.0})
    with pytest.raises(UserError, match="output space"):
        decide(METHODS["boltzmann"], views(4), {"space": "odds"})
    with pytest.raises(UserError, match="pose logits"):
        decide(METHODS["prlc"], Views(np.zeros((2, 4, 3))))
    with pytest.raises(UserError, match="evidence"):
        decide(METHODS["ood_energy"], Views(np.zeros((2, 4, 3))))
    with pytest.raises(UserError, match="threshold"):
        decide(METHODS["ood_energy_gated"], views(4))
    with pytest.raises(UserError, match="true pose"):
        decide(METHODS["oracle"], views(4))
    with pytest.raises(UserError, match="trials"):
        grid_points({"a": [1]}, 0)
    with pytest.raises(UserError, match="no values for a"):
        grid_points({"a": []}, 3)


def test_every_evidence_is_used_by_a_method():
    assert {method.evidence for method in METHODS.values()} - {None} == set(EVIDENCE)
