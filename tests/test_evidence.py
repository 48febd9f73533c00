"""Evidence against other libraries, its orientation, and what permuting the views does to it."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from eqadapt.errors import UserError
from eqadapt.evidence import EVIDENCE, TrainingViews, build_evidence
from eqadapt.evidence.features import affine_head, nearest_distances
from eqadapt.evidence.search import gaussian_kernel

K, C, D = 8, 5, 12


def head():
    generator = np.random.default_rng(3)
    return generator.normal(size=(C, D)), generator.normal(size=C)


def views(count: int, seed: int) -> TrainingViews:
    """Inputs whose upright view lies near a class centre and whose other views lie between."""
    generator = np.random.default_rng(seed)
    weight, bias = head()
    label = generator.integers(0, C, count)
    pose = generator.integers(0, K, count)
    features = 0.3 * generator.normal(size=(count, K, D))
    features[np.arange(count), pose] += (
        2.0 * weight[label] / np.linalg.norm(weight[label], axis=1)[:, None]
    )
    features = features.astype(np.float32)
    logits = (3.0 * features @ weight.T + bias).astype(np.float32)
    return TrainingViews(logits, features, label, pose)


@pytest.fixture(scope="module")
def training() -> TrainingViews:
    return views(600, 0)


@pytest.fixture(scope="module")
def test_views() -> TrainingViews:
    return views(100, 1)


def fitted(name: str, training: TrainingViews, **options):
    quick = {"epochs": 4} if name == "features" else {}
    return build_evidence(name, **{**quick, **options}).fit(training)


def test_scores_of_logits_agree_with_scipy(test_views):
    z = test_views.logits.astype(np.float64)
    p = scipy.special.softmax(z, axis=-1)
    expected = {
        "confidence": np.log(p.max(axis=-1)),
        "entropy": -scipy.stats.entropy(p, axis=-1),
        "energy": scipy.special.logsumexp(z, axis=-1),
        "focal_self": 0.5 * z.max(axis=-1) - z.mean(axis=-1),
    }
    for name, values in expected.items():
        found = build_evidence(name).score(test_views.logits, test_views.features)
        np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-9)


def test_temperature_is_that_of_the_free_energy(test_views):
    z = test_views.logits.astype(np.float64)
    found = build_evidence("energy", temperature=2.5).score(z, z)
    np.testing.assert_allclose(found, 2.5 * scipy.special.logsumexp(z / 2.5, axis=-1), rtol=1e-12)


@pytest.mark.parametrize("name", ["confidence", "entropy"])
def test_nearly_certain_views_are_told_apart(name):
    logits = np.zeros((1, 3, C))
    logits[0, :, 0] = 60.0, 80.0, 100.0  # probability one in double precision, all of them
    assert np.all(scipy.special.softmax(logits, axis=-1).max(axis=-1) == 1.0)
    scores = build_evidence(name).score(logits, logits)
    assert np.all(np.diff(scores[0]) > 0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 7])
def test_neighbours_agree_with_scikit_learn(metric, k, training, test_views):
    queries = test_views.features.reshape(-1, D)
    oracle = NearestNeighbors(n_neighbors=k, metric=metric).fit(training.upright_features)
    expected, _ = oracle.kneighbors(queries)
    found = nearest_distances(queries, training.upright_features, k, metric)
    np.testing.assert_allclose(found, expected, atol=2e-3 if metric == "euclidean" else 1e-5)


def test_per_class_neighbours_come_from_the_predicted_class(training, test_views):
    scores = fitted("pcknn", training, k=2).score(test_views.logits, test_views.features)
    row, view = 5, 3
    label = test_views.logits[row, view].argmax()
    bank = training.upright_features[training.label == label]
    oracle = NearestNeighbors(n_neighbors=2, metric="cosine").fit(bank)
    expected = -oracle.kneighbors(test_views.features[row, view][None])[0][0, -1]
    assert scores[row, view] == pytest.approx(expected, abs=1e-5)


def test_mahalanobis_agrees_with_scikit_learn(training, test_views):
    features, label = training.upright_features.astype(np.float64), training.label
    means = np.stack([features[label == c].mean(axis=0) for c in range(C)])
    tied = EmpiricalCovariance(assume_centered=True).fit(features - means[label])
    queries = test_views.features.reshape(-1, D).astype(np.float64)
    expected = -np.min([tied.mahalanobis(queries - mean) for mean in means], axis=0)
    found = fitted("mahalanobis", training).score(test_views.logits, test_views.features)
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


def test_the_head_is_read_off_the_outputs(training):
    weight, bias = affine_head(training)
    true_weight, true_bias = head()
    np.testing.assert_allclose(weight, 3.0 * true_weight, atol=1e-4)
    np.testing.assert_allclose(bias, true_bias, atol=1e-4)


def test_vim_agrees_with_its_definition(training, test_views):
    weight, bias = head()
    origin = -np.linalg.pinv(3.0 * weight) @ bias
    centred = training.upright_features - origin
    oracle = EmpiricalCovariance(assume_centered=True).fit(centred)
    values, vectors = np.linalg.eigh(oracle.covariance_)
    residual = vectors[:, np.argsort(-values)[D // 2 :]]
    alpha = training.upright_logits.max(axis=-1).sum()
    alpha /= np.linalg.norm(centred @ residual, axis=-1).sum()
    norms = np.linalg.norm((test_views.features - origin) @ residual, axis=-1)
    expected = scipy.special.logsumexp(test_views.logits, axis=-1) - alpha * norms
    found = fitted("vim", training, share=0.5).score(test_views.logits, test_views.features)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_scores_agree_with_pytorch_ood(training, test_views):
    from pytorch_ood import detector as detectors

    queries = torch.from_numpy(test_views.features.reshape(-1, D))
    logits = torch.from_numpy(test_views.logits.reshape(-1, C))
    bank, label = torch.from_numpy(training.upright_features), torch.from_numpy(training.label)
    weight, bias = affine_head(training)

    def correlation(name: str, theirs: torch.Tensor, **options) -> float:
        ours = fitted(name, training, **options).score(test_views.logits, test_views.features)
        return float(np.corrcoef(ours.ravel(), -theirs.numpy().ravel())[0, 1])

    mahalanobis = detectors.Mahalanobis(None)
    mahalanobis.fit_features(bank, label)
    assert correlation("mahalanobis", mahalanobis.predict_features(queries)) > 0.9999
    vim = detectors.ViM(None, d=D // 2, w=torch.tensor(weight), b=torch.tensor(bias))
    vim.fit_features(bank, label)
    assert correlation("vim", vim.predict_features(queries)) > 0.9999
    assert correlation("energy", detectors.EnergyBased.score(logits)) > 0.9999
    assert correlation("entropy", detectors.Entropy.score(logits)) > 0.9999


@pytest.mark.parametrize("name", sorted(set(EVIDENCE) - {"its_paper", "its_circular", "lambda"}))
def test_the_upright_view_scores_highest(name, training, test_views):
    scores = fitted(name, training).score(test_views.logits, test_views.features)
    assert scores.shape == (100, K)
    assert (scores.argmax(axis=1) == test_views.pose).mean() > 0.6  # chance is one in eight


@pytest.mark.parametrize("name", sorted(EVIDENCE))
def test_scores_move_with_the_views(name, training, test_views):
    evidence = fitted(name, training)
    scores = evidence.score(test_views.logits, test_views.features)
    rolled = evidence.score(
        np.roll(test_views.logits, 3, axis=1), np.roll(test_views.features, 3, axis=1)
    )
    moves = np.allclose(rolled, np.roll(scores, 3, axis=1), rtol=1e-5, atol=1e-6)
    assert moves == (name != "its_paper")  # as published it minds where the orbit is cut


def test_one_view_is_scored_as_among_the_others(training, test_views):
    for name in EVIDENCE:
        evidence = fitted(name, training)
        if evidence.per_view:
            every = evidence.score(test_views.logits, test_views.features)
            alone = evidence.score(test_views.logits[:, 2:3], test_views.features[:, 2:3])
            np.testing.assert_allclose(alone[:, 0], every[:, 2], rtol=1e-4, atol=1e-5)


def test_context_is_equivariant_but_not_per_view(training, test_views):
    evidence = fitted("features", training, context=True)
    assert not evidence.per_view
    order = np.random.default_rng(0).permutation(K)
    scores = evidence.score(test_views.logits, test_views.features)
    permuted = evidence.score(test_views.logits[:, order], test_views.features[:, order])
    np.testing.assert_allclose(permuted, scores[:, order], rtol=1e-9, atol=1e-9)


def test_the_learned_energy_follows_from_its_seed_alone(training, test_views):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = fitted("features", training, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(9)
    second, other = fitted("features", training, seed=1), fitted("features", training, seed=2)
    arrays = test_views.logits, test_views.features
    np.testing.assert_array_equal(first.score(*arrays), second.score(*arrays))
    assert not np.array_equal(first.score(*arrays), other.score(*arrays))
    assert first.num_parameters == (D + 2 * C + 1 + 1) * 128 + 128 + 1


def test_lambda_starts_as_equitune_and_learns_by_the_task(training, test_views):
    arrays = test_views.logits, test_views.features
    start = fitted("lambda", training, epochs=0)
    assert np.all(start.score(*arrays) == 0.0)  # equal weights
    learned = fitted("lambda", training, epochs=30, batch_size=50, lr=3e-3)
    weights = scipy.special.softmax(learned.score(*arrays), axis=1)
    assert np.all(weights > 0)

    def loss(by_view):
        means = (by_view[..., None] * test_views.logits).sum(axis=1)
        return -scipy.special.log_softmax(means, axis=1)[np.arange(100), test_views.label].mean()

    assert loss(weights) < 0.5 * loss(np.full_like(weights, 1 / K))


def test_lambda_is_not_told_the_pose_and_follows_from_its_seed_alone(training, test_views):
    arrays = test_views.logits, test_views.features
    untold = TrainingViews(training.logits, training.features, training.label, 0 * training.pose)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = fitted("lambda", training, seed=1, epochs=2)
    assert torch.equal(before, torch.random.get_rng_state())
    second = fitted("lambda", untold, seed=1, epochs=2)
    other = fitted("lambda", training, seed=2, epochs=2)
    np.testing.assert_array_equal(first.score(*arrays), second.score(*arrays))
    assert not np.array_equal(first.score(*arrays), other.score(*arrays))
    assert first.num_parameters == 2 * D + (D + 1) * 100 + 101 * 100 + 101


def test_inverse_transformation_search_finds_the_peak():
    angles = np.arange(36)
    distance = np.minimum(angles, 36 - angles)
    energies = np.exp(-0.5 * (distance / 2.0) ** 2) * 5.0
    logits = np.stack([energies, np.zeros(36)], axis=-1)[None] * 3.0
    for name in ("its_paper", "its_circular"):
        for turn in (0, 5, 30):
            turned = np.roll(logits, turn, axis=1)
            assert build_evidence(name).score(turned, turned).argmax() == turn


def test_the_published_search_loses_a_peak_at_its_ends():
    distance = np.minimum(np.arange(36), 36 - np.arange(36))
    logits = np.stack([np.exp(-0.5 * (distance / 2.0) ** 2) * 15.0, np.zeros(36)], axis=-1)[None]
    turned = np.roll(logits, 18, axis=1)  # the peak at 180 degrees, where the samples end
    assert build_evidence("its_circular").score(turned, turned).argmax() == 18
    assert build_evidence("its_paper").score(turned, turned).argmax() != 18


def test_the_smoothing_kernel_sums_to_one():
    kernel = gaussian_kernel(2.0, 3)
    assert kernel.sum() == pytest.approx(1.0)
    assert kernel[3] == kernel.max()
    np.testing.assert_allclose(kernel, kernel[::-1])


def test_what_cannot_work_is_refused(training):
    with pytest.raises(UserError, match="unknown score 'energi'"):
        build_evidence("energi")
    with pytest.raises(UserError, match="no such hyper-parameter"):
        build_evidence("knn", neighbours=3)
    with pytest.raises(UserError, match="nearest neighbours of a bank"):
        nearest_distances(np.zeros((2, 3)), np.zeros((4, 3)), 5)
    with pytest.raises(UserError, match="metric"):
        nearest_distances(np.zeros((2, 3)), np.zeros((4, 3)), 1, "manhattan")
    with pytest.raises(UserError, match="temperature"):
        build_evidence("energy", temperature=0.0)
    with pytest.raises(UserError, match="leaves nothing"):
        build_evidence("vim", share=0.999).fit(training)
    for name, wrong in (
        ("vim", {"share": 1.0}),
        ("knn", {"k": 0}),
        ("knn", {"metric": "manhattan"}),
        ("mahalanobis", {"shrinkage": 2.0}),
        ("its_paper", {"sigma": 0.0}),
        ("its_circular", {"radius": -1}),
        ("features", {"dropout": 1.5}),
        ("features", {"hidden": 0}),
        ("lambda", {"lr": -1.0}),
    ):
        with pytest.raises(UserError, match=next(iter(wrong)) if wrong != {"k": 0} else "nearest"):
            build_evidence(name, **wrong)
    assert build_evidence("its_circular", sigma=0.0, radius=0) is not None
    with pytest.raises(UserError, match="not fitted"):
        build_evidence("features").score(training.logits, training.features)
    with pytest.raises(UserError, match="not fitted"):
        build_evidence("lambda").score(training.logits, training.features)
    with pytest.raises(UserError, match="no half turn"):
        build_evidence("its_paper").score(training.logits[:, :7], training.features)
    bent = TrainingViews(training.logits**2, training.features, training.label, training.pose)
    with pytest.raises(UserError, match="not affine"):
        build_evidence("vim").fit(bent)
