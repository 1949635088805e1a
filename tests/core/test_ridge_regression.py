"""Ridge regression on features: the path against single solves, left-out rows against leaving them out, variances against a GP."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.linear_model import Ridge

from softlinalg import Gaussian, Laplacian, Matern, errors, nystrom
from softlinalg._nystrom_map import map_of
from softlinalg._ridge_length_scales import _Likelihood, learn_length_scales
from softlinalg._ridge_regression import RidgePath, ridge_model
from softlinalg._ridge_sums import decomposition_rows, decomposition_sums, merge_ridge_sums, ridge_sums
from softlinalg._spectral import embed_rows, principal_components, spectral_embedding

EPS = 2.0**-52
RIDGES = [1e-4, 1e-1, 10.0]


def problem(n: int = 60, r: int = 7, k: int = 2, seed: int = 0, offset: float = 0.0):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(n, r)) * 3.0 ** -np.arange(r) + 0.3
    targets = features @ rng.normal(size=(r, k)) + 0.5 * rng.normal(size=(n, k)) + offset
    return features, targets, rng.integers(0, 4, size=n).astype(float)


# ------------------------------------------------------------------------------------------------ sums
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_chunks_merge_to_those_of_all_rows(backend, weighted):
    features, targets, weights = problem(offset=5.0)
    arrays = [backend.asarray(a) for a in (features, targets, weights)]
    total = None
    # JAX compiles for each shape: halves there, a single row and others elsewhere.
    for rows in (slice(0, 30), slice(30, 60)) if backend.name == "jax" else (slice(0, 13), slice(13, 14), slice(14, 60)):
        f, y, s = (a[rows, ...] for a in arrays)
        chunk = ridge_sums(f, y, s if weighted else None)
        total = chunk if total is None else merge_ridge_sums(total, chunk)
    s = weights if weighted else np.ones(60)
    mean, target_mean = (s @ features) / s.sum(), (s @ targets) / s.sum()
    f, y = features - mean, targets - target_mean
    assert (total.rows, total.weight) == (s.sum(), s.sum())
    expected = (mean, target_mean, (f.T * s) @ f, (f.T * s) @ y, s @ y**2)
    for name, value in zip(("feature_mean", "target_mean", "gram", "cross", "squares"), expected, strict=True):
        np.testing.assert_allclose(backend.to_numpy(getattr(total, name)), value, atol=64 * 60 * EPS * np.abs(value).max())


def test_targets_far_from_zero_keep_their_digits():
    features, targets, _ = problem()
    near, far = ridge_sums(features, targets), ridge_sums(features, targets + 1e9)
    # The targets themselves lose 1e9 eps; sums of their squares about zero would lose 1e18 eps.
    np.testing.assert_allclose(far.squares, near.squares, rtol=1e2 * 1e9 * EPS)
    halves = merge_ridge_sums(ridge_sums(features[:30], targets[:30] + 1e9), ridge_sums(features[30:], targets[30:] + 1e9))
    np.testing.assert_allclose(halves.squares, near.squares, rtol=1e2 * 1e9 * EPS)


def test_an_empty_half_changes_nothing():
    features, targets, _ = problem()
    whole = ridge_sums(features, targets)
    nothing = ridge_sums(features[:5], targets[:5], np.zeros(5))
    for merged in (merge_ridge_sums(whole, nothing), merge_ridge_sums(nothing, whole)):
        assert all(np.array_equal(a, b) for a, b in zip(merged, whole, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("store", [False, True])
def test_sums_of_a_decomposition_are_those_of_its_features(backend, weighted, store):
    rng = np.random.default_rng(1)
    # Of the sizes of test_nystrom's: JAX compiles every operation for each shape.
    x, y, s = rng.normal(size=(120, 3)), 1e3 + rng.normal(size=120), rng.integers(0, 3, size=120).astype(float)
    d = nystrom(backend.asarray(x), Gaussian(1.5), landmarks=backend.asarray(x[:25]), store_features=store)
    found = decomposition_sums(d, backend.asarray(y), backend.asarray(s) if weighted else None)
    expected = ridge_sums(backend.to_numpy(d.features()), y, s if weighted else None)
    for a, b in zip(found[1:], expected[1:], strict=True):
        a = backend.to_numpy(a) if hasattr(a, "shape") else a
        np.testing.assert_allclose(a, b, atol=1e4 * EPS * np.abs(b).max())


# ------------------------------------------------------------------------------------------------ the path
@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_every_point_of_the_path_is_the_single_fit(fit_intercept, weighted):
    features, targets, weights = problem()
    weights = weights if weighted else None
    path = RidgePath(ridge_sums(features, targets, weights), fit_intercept=fit_intercept)
    for ridge in RIDGES:
        w, b = path.coefficients([ridge, ridge])
        reference = Ridge(alpha=ridge, fit_intercept=fit_intercept, solver="cholesky").fit(features, targets, weights)
        np.testing.assert_allclose(w, reference.coef_.T, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(b, np.broadcast_to(reference.intercept_, 2), rtol=1e-9, atol=1e-11)
        residual = targets - reference.predict(features)
        s = np.ones(60) if weights is None else weights
        np.testing.assert_allclose(path.residual_squares([ridge])[0], s @ residual**2, rtol=1e-9)


@pytest.mark.parametrize("fit_intercept", [False, True])
def test_degrees_of_freedom_are_the_trace_of_the_hat_matrix(fit_intercept):
    features, targets, _ = problem()
    path = RidgePath(ridge_sums(features, targets), fit_intercept=fit_intercept)
    for ridge in RIDGES:
        hat = Ridge(alpha=ridge, fit_intercept=fit_intercept).fit(features, np.eye(60)).predict(features)
        np.testing.assert_allclose(path.degrees_of_freedom([ridge])[0], np.trace(hat), rtol=1e-9)
        rss = np.sum((targets - hat @ targets) ** 2, axis=0)
        np.testing.assert_allclose(path.gcv([ridge])[0], rss / 60 / (1 - np.trace(hat) / 60) ** 2, rtol=1e-8)


@pytest.mark.parametrize("fit_intercept", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_left_out_errors_are_those_of_leaving_each_row_out(backend, fit_intercept, weighted):
    features, targets, weights = problem(n=25)
    s = weights if weighted else np.ones(25)
    f, y, given_s = (backend.asarray(a) for a in (features, targets, weights))
    path = RidgePath(ridge_sums(f, y, given_s if weighted else None), fit_intercept=fit_intercept)
    found = backend.to_numpy(path.left_out_errors(f, y, given_s if weighted else None, RIDGES))
    scores = backend.to_numpy(path.leave_one_out([(f, y, given_s if weighted else None)], RIDGES))
    for i, ridge in enumerate(RIDGES):
        for row in range(25):
            others = np.arange(25) != row
            model = Ridge(alpha=ridge, fit_intercept=fit_intercept, solver="cholesky").fit(features[others], targets[others], s[others])
            np.testing.assert_allclose(found[i, row], targets[row] - model.predict(features[row : row + 1])[0], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(scores[i], s @ found[i] ** 2 / s.sum(), rtol=1e-10)


def test_a_row_that_decides_alone_has_an_infinite_error():
    features = np.eye(3)
    path = RidgePath(ridge_sums(features, np.ones((3, 1))), fit_intercept=False)
    assert np.all(np.isinf(path.left_out_errors(features, np.ones((3, 1)), None, [1e-18])))


@settings(max_examples=20)
@given(st.integers(0, 10**6), st.sampled_from([True, False]))
def test_a_repeated_row_is_a_row_of_weight_two(seed, fit_intercept):
    features, targets, weights = problem(n=30, seed=seed)
    weights[0] = 2.0
    counts = weights.astype(int)
    weighted = ridge_model(ridge_sums(features, targets, weights), fit_intercept=fit_intercept)
    repeated = ridge_model(ridge_sums(features.repeat(counts, axis=0), targets.repeat(counts, axis=0)), fit_intercept=fit_intercept)
    np.testing.assert_allclose(weighted.ridge, repeated.ridge, rtol=1e-9)
    np.testing.assert_allclose(weighted.coefficients, repeated.coefficients, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(weighted.noise_variance, repeated.noise_variance, rtol=1e-8)


def test_several_targets_are_as_many_single_ones():
    features, targets, _ = problem(k=3)
    together = ridge_model(ridge_sums(features, targets))
    shared = ridge_model(ridge_sums(features, targets), ridge_per_target=False)
    for j in range(3):
        alone = ridge_model(ridge_sums(features, targets[:, j]))
        np.testing.assert_allclose(together.ridge[j], alone.ridge[0])
        np.testing.assert_allclose(together.coefficients[:, j], alone.coefficients[:, 0], rtol=1e-10, atol=1e-12)
    assert len(set(shared.ridge.tolist())) == 1


def test_a_large_ridge_leaves_the_mean():
    features, targets, _ = problem()
    w, b = RidgePath(ridge_sums(features, targets)).coefficients([1e12, 1e12])
    assert np.abs(w).max() < 1e-9
    np.testing.assert_allclose(b, targets.mean(axis=0), rtol=1e-8)


@pytest.mark.parametrize("selection", ["gcv", "loo"])
def test_the_ridge_chosen_has_the_least_score(selection):
    features, targets, _ = problem(n=40, r=30, k=1)
    ridges = [1e-6, 1e-3, 1e-1, 1.0, 30.0]
    model = ridge_model(ridge_sums(features, targets), ridge=ridges, selection=selection, rows=[(features, targets, None)])
    assert model.ridge[0] == ridges[int(np.argmin(model.scores[:, 0]))]
    assert 1e-6 < model.ridge[0] < 30.0  # an inner one: the curve has a minimum


def test_of_equal_scores_the_largest_ridge_is_taken():
    features, _, _ = problem()
    model = ridge_model(ridge_sums(features, np.ones((60, 1))))
    assert model.ridge[0] == max(model.ridges)


def test_a_direction_that_is_rounding_has_no_coefficient():
    features, targets, _ = problem(r=5)
    doubled = np.hstack([features, features])
    w, _ = RidgePath(ridge_sums(doubled, targets)).coefficients([1e-300, 1e-300])
    assert np.abs(w[:5] - w[5:]).max() < 1e-6 * np.abs(w).max()


# ------------------------------------------------------------------------------------------------ variances
def test_deviations_are_those_of_a_gaussian_process_when_all_rows_are_landmarks():
    rng = np.random.default_rng(2)
    x, x_new = rng.normal(size=(30, 2)), 2 * rng.normal(size=(40, 2))
    y = np.sin(x[:, 0]) + 0.1 * rng.normal(size=30)
    d = nystrom(x, Gaussian(1.0), landmarks=x)
    model = ridge_model(decomposition_sums(d, y), ridge=0.05, fit_intercept=False)
    found = map_of(d).apply(x_new, model.deviation, 1, func="test")[:, 0]
    amplitude = model.noise_variance[0] / 0.05
    process = GaussianProcessRegressor(ConstantKernel(amplitude) * RBF(1.0), alpha=model.noise_variance[0], optimizer=None).fit(x, y)
    mean, expected = process.predict(x_new, return_std=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(
        map_of(d).combine(x_new, map_of(d).fold(model.coefficients), model.intercept, func="t")[:, 0], mean, atol=1e-7
    )


def test_the_unknown_constant_adds_the_variance_of_a_flat_prior():
    rng = np.random.default_rng(3)
    x, x_new = rng.normal(size=(30, 1)), np.array([[0.1], [3.0], [50.0]])
    y = 3 + np.sin(x[:, 0]) + 0.1 * rng.normal(size=30)
    d = nystrom(x, Gaussian(0.7), landmarks=x)
    model = ridge_model(decomposition_sums(d, y), ridge=0.05)
    found = map_of(d).apply(x_new, model.deviation, 1, func="test")[:, 0]
    noise = model.noise_variance[0]
    kernel, flat = Gaussian(0.7), 1e6
    a = noise / 0.05 * kernel(x) + noise * np.eye(30) + flat
    cross = noise / 0.05 * kernel(x_new, x) + flat
    variance = noise / 0.05 + flat - np.sum(cross * np.linalg.solve(a, cross.T).T, axis=1)
    np.testing.assert_allclose(found, np.sqrt(variance), rtol=1e-3)


def test_deviations_grow_to_their_full_height_far_from_the_landmarks():
    rng = np.random.default_rng(4)
    x = rng.normal(size=(200, 2))
    y = np.sin(2 * x[:, 0]) + 0.1 * rng.normal(size=200)
    d = nystrom(x, Gaussian(0.5), rank=20, rng=0)
    model = ridge_model(decomposition_sums(d, y), ridge=0.1)
    far = map_of(d).apply(np.array([[100.0, 100.0]]), model.deviation, 1, func="test")[0, 0]
    near = map_of(d).apply(x[:1], model.deviation, 1, func="test")[0, 0]
    assert far >= math.sqrt(model.noise_variance[0] / 0.1) > near


# ------------------------------------------------------------------------------------------------ maps
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_map_alone_gives_the_features_of_its_decomposition(backend, dtype):
    x = np.random.default_rng(0).normal(size=(120, 3))
    d = nystrom(backend.asarray(x, dtype), Gaussian(1.5), landmarks=backend.asarray(x[:25], dtype))
    features = map_of(d)
    new = backend.asarray(x + 0.1, dtype)
    assert np.array_equal(backend.to_numpy(features(new)), backend.to_numpy(d.features(new)))
    w = np.random.default_rng(1).normal(size=(d.rank, 2))
    folded = features.fold(backend.asarray(w))
    expected = backend.to_numpy(d.features(new)).astype(float) @ w
    # M has entries up to the inverse root of the cut-off, 1e4 for float32 data and 1e6 for float64.
    slack = {"float32": 1e4 * 2.0**-23, "float64": 1e6 * EPS}[dtype]
    np.testing.assert_allclose(backend.to_numpy(features.combine(new, folded, func="t")), expected, atol=20 * slack)


def test_maps_refuse_rows_of_another_width():
    d = nystrom(np.random.default_rng(0).normal(size=(30, 3)), Gaussian(1.0), rank=5, rng=0)
    with pytest.raises(errors.ShapeError, match=r"^NystromMap: x must have shape \(q, 3\); got \(4, 2\)"):
        map_of(d)(np.zeros((4, 2)))


# ------------------------------------------------------------------------------------------------ spectra
def test_principal_components_are_those_of_the_centered_kernel_matrix():
    x = np.random.default_rng(0).normal(size=(40, 2))
    d = nystrom(x, Gaussian(1.0), landmarks=x)
    found = principal_components(decomposition_sums(d, x[:, 0]), 5)
    center = np.eye(40) - 1 / 40
    values = np.linalg.eigvalsh(center @ Gaussian(1.0)(x) @ center)[::-1]
    np.testing.assert_allclose(found.variances, values[:5] / 39, rtol=1e-9)
    np.testing.assert_allclose(found.ratios, values[:5] / values.sum(), rtol=1e-6)
    with pytest.raises(errors.ParameterError, match="n_components must be at most the rank of the features, 40; got 41"):
        principal_components(decomposition_sums(nystrom(x, Gaussian(0.05), landmarks=x), x[:, 0]), 41)


def test_the_embedding_is_that_of_the_dense_normalized_matrix():
    x = np.random.default_rng(0).normal(size=(40, 2))
    d = nystrom(x, Gaussian(1.0), landmarks=x)
    found = spectral_embedding(d, 3)
    k = Gaussian(1.0)(x)
    root = 1 / np.sqrt(k.sum(axis=1))
    values, vectors = np.linalg.eigh(root[:, None] * k * root)
    np.testing.assert_allclose(found.eigenvalues, values[::-1][:3], rtol=1e-8)
    expected = vectors[:, ::-1][:, :3]
    expected = expected / np.linalg.norm(expected, axis=1)[:, None]
    np.testing.assert_allclose(np.abs(np.asarray(found.rows)), np.abs(expected), atol=1e-6)


def test_a_row_without_similarity_to_landmarks_embeds_at_zero_not_nan():
    x = np.vstack([np.random.default_rng(0).normal(size=(30, 2)), [[1e3, 1e3]]])
    d = nystrom(x, Gaussian(1.0), landmarks=x[:10])
    rows = np.asarray(spectral_embedding(d, 2).rows)
    assert np.all(rows[-1] == 0)
    np.testing.assert_allclose(np.linalg.norm(rows[:-1], axis=1), 1)
    assert np.array_equal(embed_rows(np.zeros((2, 3)), np.ones((3, 2))), np.zeros((2, 2)))


# ------------------------------------------------------------------------------------------------ learned scales
@pytest.mark.parametrize("kernel", [Gaussian(1.0), Matern(1.0, nu=1.5), Matern(1.0, nu=2.5), Laplacian(1.0)])
def test_the_gradient_of_the_likelihood_is_that_of_differences(kernel):
    features, targets, _ = problem(n=40, r=3, k=2)
    objective = _Likelihood(kernel, features, targets - targets.mean(axis=0), 0.3)
    logs = np.array([0.1, 0.5, -0.3, -1.0])
    gradient = objective(logs)[1]
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-5
        difference = (objective(logs + step)[0] - objective(logs - step)[0]) / 2e-5
        np.testing.assert_allclose(gradient[i], difference, rtol=1e-5, atol=1e-8)


def test_the_likelihood_is_that_of_a_gaussian_process():
    features, targets, _ = problem(n=30, r=2, k=1)
    y = targets - targets.mean(axis=0)
    logs = np.array([0.2, 0.2, -1.0])
    objective = _Likelihood(Gaussian(1.0), features, y, 0.2)
    a = Gaussian(math.exp(0.2))(features) + math.exp(-1.0) * np.eye(30)
    amplitude = float(y[:, 0] @ np.linalg.solve(a, y[:, 0])) / 30
    kernel = ConstantKernel(amplitude) * RBF(math.exp(0.2))
    process = GaussianProcessRegressor(kernel, alpha=amplitude * math.exp(-1.0), optimizer=None).fit(features, y[:, 0])
    constant = 0.5 * 30 * (1 + math.log(2 * math.pi) - math.log(30))
    np.testing.assert_allclose(30 * objective(logs)[0] + constant, -process.log_marginal_likelihood_value_, rtol=1e-8)


def test_scales_tell_columns_that_matter_from_those_that_do_not(backend):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(250, 3))
    y = np.sin(3 * x[:, 1]) + 0.1 * rng.normal(size=250)
    found = learn_length_scales(backend.asarray(x), backend.asarray(y), Gaussian("median"), rng=0, sample=150)
    scales = found.kernel.length_scale
    assert scales[1] < 1 < 5 < min(scales[0], scales[2])
    assert 0 < found.steps <= 30


def test_many_columns_share_one_scale():
    x = np.random.default_rng(0).normal(size=(60, 101))
    assert isinstance(learn_length_scales(x, x[:, 0], Gaussian("median"), max_steps=2).kernel.length_scale, float)


def test_what_cannot_be_learned_leaves_the_median_or_one():
    x = np.random.default_rng(0).normal(size=(20, 2))
    assert learn_length_scales(x, np.ones(20), Gaussian("median")).kernel == Gaussian("median").resolve(x)
    assert learn_length_scales(np.ones((20, 2)), np.arange(20.0), Gaussian("median")).kernel == Gaussian(1.0)

    class Other:
        def __call__(self, x, y=None):
            return x @ (x if y is None else y).T

    with pytest.raises(errors.ParameterError, match="kernel must be one of this package"):
        learn_length_scales(x, x[:, 0], Other())


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ridge": 0.0}, "ridge must be a finite number > 0; got 0.0"),
        ({"ridge": []}, "ridge must have at least one value; got none"),
        ({"ridge": [1.0, -1.0]}, "ridge must be a finite number > 0; got -1.0"),
        ({"selection": "best"}, 'selection must be "gcv" or "loo"; got \'best\''),
        ({"selection": "loo"}, 'rows must be given for selection="loo"; got None'),
    ],
)
def test_settings_outside_their_range_are_refused(arguments, words):
    features, targets, _ = problem()
    with pytest.raises(errors.InputError, match=f"^ridge_model: {words}"):
        ridge_model(ridge_sums(features, targets), **arguments)


def test_weights_that_are_no_counts_are_refused_not_misread():
    features, targets, _ = problem()
    with pytest.raises(errors.ParameterError, match="weights must sum to more than the degrees of freedom; got a sum of 1"):
        ridge_model(ridge_sums(features, targets, np.full(60, 1 / 60)), ridge=[1e-6, 1e-5])


def test_arrays_that_do_not_fit_are_refused():
    features, targets, _ = problem()
    with pytest.raises(errors.ShapeError, match=r"^ridge_sums: features must have shape \(b, r\); got \(60,\)"):
        ridge_sums(features[:, 0], targets)
    with pytest.raises(errors.ShapeError, match=r"^ridge_sums: targets must have shape \(60,\) or \(60, k\); got \(59, 2\)"):
        ridge_sums(features, targets[1:])
    with pytest.raises(errors.ShapeError, match=r"^ridge_sums: weights must have shape \(60,\); got \(3,\)"):
        ridge_sums(features, targets, np.ones(3))
    with pytest.raises(errors.ParameterError, match=r"^ridge_sums: weights must not be negative; got a smallest weight of -1"):
        ridge_sums(features, targets, -np.ones(60))
    with pytest.raises(errors.NonFiniteError, match=r"^ridge_sums: targets must be finite"):
        ridge_sums(features, np.full(60, np.nan))
    d = nystrom(np.random.default_rng(0).normal(size=(30, 3)), Gaussian(1.0), rank=5, rng=0)
    with pytest.raises(errors.ParameterError, match="weights must have a positive, finite sum; got 0"):
        decomposition_sums(d, np.ones(30), np.zeros(30))


def test_rows_of_a_decomposition_are_its_features_and_targets():
    d = nystrom(np.random.default_rng(0).normal(size=(30, 3)).astype("f4"), Gaussian(1.0), rank=5, rng=0)
    ((features, targets, weights),) = decomposition_rows(d, np.arange(30.0), np.ones(30))
    assert features.dtype == targets.dtype == np.float64
    assert np.array_equal(features, d.features().astype(float))
    assert np.array_equal(targets[:, 0], np.arange(30.0))
    assert np.array_equal(weights, np.ones(30))
