"""Landmarks chosen for the targets: greedy in truth, blind to what does not matter, better at predicting; and scales for the rank."""

from __future__ import annotations

import numpy as np
import pytest

from softlinalg import Gaussian, Laplacian, Matern, _arrays, errors
from softlinalg._kernel_rescaled import RescaledKernel, rescaled
from softlinalg._nystrom import nystrom
from softlinalg._ridge_landmarks import STEP, _pivots, ridge_sample
from softlinalg._ridge_regression import ridge_model
from softlinalg._ridge_sums import decomposition_sums
from softlinalg.sklearn import NystromFeatures, NystromRidge, NystromRidgeClassifier


def problem(n: int = 600, seed: int = 0, k: int = 1):
    """A target that turns quickly in one corner and is flat elsewhere."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=(n, 2))
    y = np.where(x[:, 0] > 0.5, np.sin(12 * x[:, 1]), 0.0)[:, None] * np.arange(1, k + 1) + 0.05 * rng.normal(size=(n, k))
    return x, y


def least(a, b, chosen):
    """The least penalized sum of squares with these candidates, less that without any."""
    return -float(np.sum(b[chosen] * np.linalg.solve(a[np.ix_(chosen, chosen)], b[chosen])))


@pytest.mark.parametrize("k", [1, 3])
def test_each_pivot_lowers_the_penalized_sum_of_squares_most(k):
    rng = np.random.default_rng(1)
    c = rng.normal(size=(40, 12))
    a, b = c.T @ c + 0.5 * np.eye(12), rng.normal(size=(12, k))
    chosen: list[int] = []
    for pivot in _pivots(a, b, 6):
        values = {j: least(a, b, [*chosen, j]) for j in range(12) if j not in chosen}
        assert pivot == min(values, key=values.__getitem__)
        chosen.append(pivot)
    assert len(chosen) == 6


def test_a_repeated_candidate_is_chosen_once():
    rng = np.random.default_rng(1)
    c = np.repeat(rng.normal(size=(40, 5)), 3, axis=1)
    assert len({pivot // 3 for pivot in _pivots(c.T @ c, rng.normal(size=(15, 1)), 10)}) == 5
    assert len(_pivots(c.T @ c, rng.normal(size=(15, 1)), 10)) == 5


@pytest.mark.parametrize("weighted", [False, True])
def test_the_score_is_that_of_the_model_on_these_landmarks(weighted):
    x, y = problem()
    weights = np.random.default_rng(2).integers(0, 3, size=600).astype(float) if weighted else None
    sample = ridge_sample(x, y, 30, weights=weights, rng=0)
    d = nystrom(sample.x, Gaussian(0.3), landmarks=sample.x[:30])
    expected = ridge_model(decomposition_sums(d, sample.y, sample.weights, rows=len(sample.x)))
    score, ridge = sample.score(Gaussian(0.3), 30)
    # The path of ridges begins at the largest eigenvalue, and the shifted core moves that by rounding.
    np.testing.assert_allclose((score, ridge), (expected.scores.min(), expected.ridge[0]), rtol=1e-6)
    assert weights is None or np.all(weights[sample.rows] > 0)


def test_landmarks_gather_where_the_target_turns():
    x, y = problem(3000)
    sample = ridge_sample(x, y, 40, rng=0)
    chosen = x[sample.landmarks(Gaussian(0.3), 40, 1e-2)]
    assert np.mean(chosen[:, 0] > 0.35) > 0.7 > 0.4 > np.mean(x[:, 0] > 0.35)


@pytest.mark.parametrize("kind", [NystromRidge, NystromRidgeClassifier])
def test_they_predict_better_than_landmarks_that_do_not_know_the_target(kind):
    x, y = problem(3000)
    y = y[:, 0] if kind is NystromRidge else y[:, 0] > 0.3
    scores = {
        name: kind(rank=40, length_scale=0.3, landmarks=name, random_state=0).fit(x[:2000], y[:2000]).score(x[2000:], y[2000:])
        for name in ("targets", "rpcholesky+lloyd", "uniform")
    }
    assert 1 - scores["targets"] < 0.6 * min(1 - scores["uniform"], 1 - scores["rpcholesky+lloyd"])


def test_scales_grow_as_landmarks_become_few():
    x, y = problem(1500)
    scales = []
    for rank in (150, 15):
        model = NystromRidge(kernel=Gaussian(0.3), length_scale="gcv", rank=rank, random_state=0).fit(x, y)
        steps = np.log(model.kernel_.length_scale / 0.3) / np.log(STEP)
        assert abs(steps - round(steps)) < 1e-9
        scales.append(model.kernel_.length_scale)
    assert scales[0] < scales[1]


def test_a_scale_that_is_far_off_is_found():
    x, y = problem(1500)
    model = NystromRidge(length_scale="gcv", rank=100, random_state=0).fit(x, y)
    assert model.score(x, y) > 0.9 > 0.8 > NystromRidge(length_scale="median", rank=100, random_state=0).fit(x, y).score(x, y)


def test_several_scales_keep_their_ratios():
    x, y = problem()
    sample = ridge_sample(x, y, 20, rng=0)
    scaled, ridge = sample.scaled(Gaussian((0.1, 0.4)), 20)
    assert scaled.length_scale[1] / scaled.length_scale[0] == pytest.approx(4)
    assert ridge == pytest.approx(ridge_sample(x, y, 20, rng=0).score(scaled, 20)[1], rel=1e-9)
    assert type(sample.scaled(Laplacian(1.0), 20)[0]) is Laplacian


def test_constant_targets_and_equal_rows_have_a_model_all_the_same():
    x, _ = problem(100)
    for rows, y in ((x, np.ones(100)), (np.ones((100, 2)), np.arange(100.0)), (x.repeat(2, axis=0)[:100], x[:, 0])):
        model = NystromRidge(length_scale="gcv", landmarks="targets", rank=70, random_state=0).fit(rows, y)
        assert np.all(np.isfinite(model.predict(rows)))


def test_tensors_get_the_landmarks_of_arrays():
    torch = pytest.importorskip("torch")
    x, y = problem(300)
    settings = {"length_scale": "gcv", "landmarks": "targets", "rank": 15, "random_state": 0}
    ours = NystromRidge(**settings).fit(torch.tensor(x), torch.tensor(y))
    assert np.array_equal(ours.landmarks_.numpy(), NystromRidge(**settings).fit(x, y).landmarks_)


def test_what_cannot_be_is_refused():
    x, y = problem(100)
    with pytest.raises(errors.ParameterError, match=r'^NystromRidge: tol must be None for landmarks="targets"'):
        NystromRidge(landmarks="targets", tol=0.1).fit(x, y)
    with pytest.raises(errors.InputError, match="got 'targets'"):
        NystromFeatures(landmarks="targets", n_components=5).fit(x)

    class Other:
        def __call__(self, x, y=None):
            return x @ (x if y is None else y).T

        def diagonal(self, x):
            return np.sum(x * x, axis=1)

    with pytest.raises(errors.ParameterError, match=r'kernel must be of this package for length_scale="gcv"; got Other'):
        NystromRidge(kernel=Other(), length_scale="gcv").fit(x, y)
    assert NystromRidge(kernel=Other(), landmarks="targets", rank=2).fit(x, y).landmarks_.shape == (2, 2)


@pytest.mark.parametrize("kernel", [Gaussian((0.5, 1.0, 2.0)), Laplacian(1.0), Matern(0.7, nu=0.5), Matern(0.7, nu=1.5)])
def test_distances_computed_once_give_the_kernel_at_every_scale(kernel):
    x = np.random.default_rng(0).normal(size=(300, 3))
    values = RescaledKernel(kernel, x, xp=_arrays.host_namespace())
    for columns, factor in ((20, 1.0), (10, 0.1), (50, 3.0), (50, 0.5)):
        other, last = rescaled(kernel, factor), factor == 0.5
        c = values.values(columns, factor, last=last)
        # Exponents of a few ulp, some hundreds in size at the shortest scale; the roots of Matern kernels halve the digits near zero.
        np.testing.assert_allclose(c, other(x, x[:columns]), rtol=1e-12, atol=1e-13)
        square = values.square(c, factor)
        np.testing.assert_allclose(square, other(x[:columns]), rtol=1e-12, atol=1e-13)
        assert np.array_equal(square, square.T)
        assert np.all(np.diagonal(square) == 1)
        assert (values._exponents is None) == last


def test_distances_that_need_care_at_a_scale_are_left_to_the_kernel():
    x = np.random.default_rng(0).normal(size=(300, 2))
    x[:10] += 1e3  # 1,000 length scales away, but near one another
    exact = np.exp(-np.sum((x[:, None] - x[None, :20]) ** 2, axis=-1) / 2 / 0.1**2)
    values = RescaledKernel(Gaussian(100.0), x, xp=_arrays.host_namespace())
    far = values.values(20, 1e-3)
    np.testing.assert_allclose(far, exact, rtol=1e-9, atol=1e-300)
    assert values._serves(1.0)
    assert not values._serves(1e-3)


@pytest.mark.parametrize(("n", "count", "size"), [(3000, 10, 3000), (9000, 10, 4000), (9000, 700, 5600), (80_000, 10, 5000)])
def test_the_sample_grows_with_landmarks_and_rows(n, count, size):
    assert len(ridge_sample(np.arange(n, dtype=float)[:, None], np.arange(n, dtype=float), count, rng=0).rows) == size
