"""The estimators in scikit-learn's company: its checks, references, pipelines, containers, other array libraries."""

from __future__ import annotations

import copy
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn import config_context
from sklearn.base import clone
from sklearn.cluster import SpectralClustering
from sklearn.datasets import make_blobs, make_moons
from sklearn.decomposition import KernelPCA
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import adjusted_rand_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import softlinalg
from softlinalg import Gaussian, Matern, errors, select_landmarks
from softlinalg.sklearn import NystromFeatures, NystromPCA, NystromRidge, NystromRidgeClassifier, NystromSpectralClustering

ALL = [NystromFeatures, NystromPCA, NystromRidge, NystromRidgeClassifier, NystromSpectralClustering]
EPS = 2.0**-52


def problem(n: int = 150, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return x, np.sin(x[:, 0]) * x[:, 1] + 0.1 * rng.normal(size=n)


# ------------------------------------------------------------------------------------------------ scikit-learn's checks
@parametrize_with_checks([kind() for kind in ALL])
def test_scikit_learn_finds_nothing_wrong(estimator, check):
    check(estimator)


ARRAY_API = """
import sys, unittest
from sklearn.utils.estimator_checks import estimator_checks_generator
import softlinalg.sklearn
for name in softlinalg.sklearn.__all__:
    passed = 0
    for estimator, check in estimator_checks_generator(getattr(softlinalg.sklearn, name)()):
        if "array_api" in str(getattr(check, "func", check)):
            try:
                check(estimator)
                passed += 1
            except unittest.SkipTest:
                pass
    print(name, passed)
    if passed < 5:
        sys.exit(1)
"""


@pytest.mark.slow
def test_scikit_learn_finds_nothing_wrong_with_other_array_libraries():
    pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ARRAY_API], capture_output=True, text=True, env={**_environment(), "SCIPY_ARRAY_API": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _environment():
    import os

    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_the_module_is_there_when_it_is_named_and_not_before():
    code = "import sys, softlinalg; assert 'sklearn' not in sys.modules; print(softlinalg.sklearn.NystromRidge.__name__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "NystromRidge\n"
    assert softlinalg.sklearn.__all__ == [kind.__name__ for kind in ALL]


# ------------------------------------------------------------------------------------------------ features
def test_features_give_the_kernel_of_scikit_learn_on_the_same_landmarks():
    x, _ = problem()
    theirs = Nystroem(gamma=0.3, n_components=30, random_state=0).fit(x)
    ours = NystromFeatures("rbf", gamma=0.3, landmarks=theirs.components_).fit(x)
    a, b = theirs.transform(x), ours.transform(x)
    np.testing.assert_allclose(b @ b.T, a @ a.T, atol=1e-6)
    np.testing.assert_allclose(ours.error_, 1 - np.sum(b**2) / 150, rtol=1e-9)


def test_features_of_the_rows_in_fit_come_out_of_one_pass_as_of_two():
    x, _ = problem()
    once = NystromFeatures(n_components=30, random_state=0)
    features = once.fit_transform(x)
    assert np.array_equal(features, NystromFeatures(n_components=30, random_state=0).fit(x).transform(x))
    assert features.shape == (150, once.n_features_out_)


def test_a_tolerance_settles_the_number_of_landmarks():
    x, _ = problem()
    fitted = NystromFeatures(tol=0.01, random_state=0).fit(x)
    assert 0 < fitted.error_ <= 0.01
    assert fitted.n_features_out_ < 40


@pytest.mark.parametrize("method", ["uniform", "rpcholesky", "kmeans"])
def test_every_way_of_choosing_landmarks_is_offered(method):
    x, _ = problem()
    assert NystromFeatures(n_components=20, landmarks=method, random_state=0).fit(x).components_.shape == (20, 2)


def test_gamma_means_what_it_means_in_scikit_learn():
    x, _ = problem(30)
    for name, kernel in (("rbf", Gaussian(1 / np.sqrt(0.6))), ("laplacian", softlinalg.Laplacian(1 / 0.3))):
        fitted = NystromFeatures(name, gamma=0.3, n_components=30).fit(x)
        assert type(fitted.kernel_) is type(kernel)
        np.testing.assert_allclose(fitted.kernel_.length_scale, kernel.length_scale)


def test_more_landmarks_than_rows_stand_for_all_rows():
    x, _ = problem(20)
    fitted = NystromFeatures(n_components=500, random_state=0).fit(np.vstack([x, x]))
    assert fitted.components_.shape == (20, 2)
    assert fitted.error_ < 1e-9


def test_equal_rows_have_a_length_scale_all_the_same():
    assert NystromFeatures().fit_transform(np.ones((5, 2))).shape == (5, 1)


# ------------------------------------------------------------------------------------------------ regression
def test_regression_on_all_landmarks_is_kernel_ridge_regression():
    x, y = problem()
    model = NystromRidge(length_scale=0.8, rank=150, ridge=0.1, fit_intercept=False).fit(x, y)
    reference = KernelRidge(alpha=0.1, kernel="rbf", gamma=1 / (2 * 0.8**2)).fit(x, y)
    new = x[:50] + 0.1
    np.testing.assert_allclose(model.predict(new), reference.predict(new), atol=1e-6)


def test_deviations_are_those_of_scikit_learns_gaussian_process():
    x, y = problem(60)
    model = NystromRidge(length_scale=0.8, rank=60, ridge=0.1, fit_intercept=False).fit(x, y)
    amplitude = model.noise_variance_ / 0.1
    process = GaussianProcessRegressor(ConstantKernel(amplitude) * RBF(0.8), alpha=model.noise_variance_, optimizer=None).fit(x, y)
    new = np.vstack([x[:20] + 0.3, [[30.0, 30.0]]])
    mean, deviation = model.predict(new, return_std=True)
    np.testing.assert_allclose(mean, process.predict(new), atol=1e-6)
    np.testing.assert_allclose(deviation, process.predict(new, return_std=True)[1], rtol=1e-5)


def test_deviations_cover_the_truth():
    rng = np.random.default_rng(0)
    x = rng.uniform(-3, 3, size=(1500, 1))
    y = np.sin(2 * x[:, 0]) + 0.3 * rng.normal(size=1500)
    model = NystromRidge(rank=60, length_scale=0.7, random_state=0).fit(x[:1000], y[:1000])
    mean, deviation = model.predict(x[1000:], return_std=True)
    np.testing.assert_allclose(model.noise_variance_, 0.09, rtol=4 * np.sqrt(2 / 1000))
    within = np.abs(y[1000:] - mean) < 1.96 * np.sqrt(deviation**2 + model.noise_variance_)
    assert abs(within.mean() - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 500)


@pytest.mark.parametrize("selection", ["gcv", "loo"])
def test_the_score_of_the_ridge_chosen_foretells_the_error(selection):
    x, y = problem(2000)
    model = NystromRidge(rank=60, selection=selection, random_state=0).fit(x[:1000], y[:1000])
    foretold = model.scores_[list(model.ridges_).index(model.ridge_), 0]
    np.testing.assert_allclose(foretold, np.mean((model.predict(x[1000:]) - y[1000:]) ** 2), rtol=6 * np.sqrt(2 / 1000))


def test_the_exact_model_is_kernel_ridge_regression_whatever_the_rank():
    x, y = problem()
    model = NystromRidge(length_scale=0.8, rank=20, ridge=0.1, fit_intercept=False, exact=True, random_state=0).fit(x, y)
    reference = KernelRidge(alpha=0.1, kernel="rbf", gamma=1 / (2 * 0.8**2)).fit(x, y)
    np.testing.assert_allclose(model.predict(x), reference.predict(x), atol=1e-6)
    np.testing.assert_allclose(model.dual_coef_[:, 0], reference.dual_coef_, atol=1e-5)
    assert all(np.all(solution.converged) for solution in model.solutions_)
    with pytest.raises(errors.ParameterError, match=r"^NystromRidge: return_std needs exact=False; got a model with exact=True"):
        model.predict(x, return_std=True)


def test_the_exact_model_is_the_approximated_one_on_all_landmarks():
    x, y = problem(80)
    weights = np.random.default_rng(0).integers(0, 3, size=80).astype(float)
    targets = np.stack([y, y**2], axis=-1)
    settings = {"rank": 80, "ridge": 0.1, "random_state": 0}
    a = NystromRidge(**settings).fit(x, targets, weights)
    b = NystromRidge(**settings, exact=True).fit(x, targets, weights)
    np.testing.assert_allclose(a.predict(x), b.predict(x), atol=1e-5)
    np.testing.assert_allclose(a.intercept_, b.intercept_, atol=1e-5)


def test_learned_scales_find_the_column_that_matters():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 4))
    y = np.sin(4 * x[:, 2]) + 0.1 * rng.normal(size=400)
    plain = NystromRidge(rank=100, random_state=0).fit(x[:300], y[:300]).score(x[300:], y[300:])
    learned = NystromRidge(rank=100, length_scale="learned", random_state=0).fit(x[:300], y[:300])
    assert learned.score(x[300:], y[300:]) > 0.9 > 0.6 > plain
    assert np.argmin(learned.kernel_.length_scale) == 2


def test_several_targets_are_as_many_models():
    x, y = problem()
    targets = np.stack([y, 100 * x[:, 0] ** 2], axis=-1)
    together = NystromRidge(rank=40, random_state=0).fit(x, targets)
    assert together.coef_.shape[0] == 2
    for j in range(2):
        alone = NystromRidge(rank=40, random_state=0).fit(x, targets[:, j])
        np.testing.assert_allclose(together.ridge_[j], alone.ridge_)
        np.testing.assert_allclose(together.predict(x)[:, j], alone.predict(x), rtol=1e-8, atol=1e-8)
    mean, deviation = together.predict(x, return_std=True)
    assert mean.shape == deviation.shape == (150, 2)


@pytest.mark.parametrize("kind", [NystromRidge, NystromRidgeClassifier])
def test_a_repeated_row_is_a_row_of_weight_two_also_below_full_rank(kind):
    x, y = problem()
    y = y if kind is NystromRidge else np.where(y > 0, "up", "down")
    counts = np.random.default_rng(1).integers(0, 4, size=150)
    values = "predict" if kind is NystromRidge else "decision_function"
    weighted = kind(rank=30, random_state=0).fit(x, y, sample_weight=counts)
    repeated = kind(rank=30, random_state=0).fit(x.repeat(counts, axis=0), y.repeat(counts))
    np.testing.assert_allclose(getattr(weighted, values)(x), getattr(repeated, values)(x), rtol=1e-6, atol=1e-8)


def test_the_order_of_the_rows_does_not_matter():
    x, y = problem()
    order = np.random.default_rng(3).permutation(150)
    one, other = NystromRidge(rank=30, random_state=0).fit(x, y), NystromRidge(rank=30, random_state=0).fit(x[order], y[order])
    assert np.array_equal(one.landmarks_, other.landmarks_)
    np.testing.assert_allclose(one.predict(x), other.predict(x), atol=1e-8)


@pytest.mark.parametrize("weighted", [False, True])
def test_batches_give_what_all_rows_at_once_give(weighted):
    x, y = problem(600)
    landmarks = select_landmarks(x, 40, kernel=Gaussian(1.0), rng=0)
    weights = np.random.default_rng(2).uniform(0.5, 2.0, size=600) if weighted else None
    whole = NystromRidge(length_scale=1.0, landmarks=landmarks).fit(x, y, weights)
    parts = NystromRidge(length_scale=1.0, landmarks=landmarks)
    for rows in (slice(0, 100), slice(100, 350), slice(350, 600)):
        parts.partial_fit(x[rows], y[rows], None if weights is None else weights[rows])
    np.testing.assert_allclose(parts.predict(x), whole.predict(x), atol=1e-7)
    np.testing.assert_allclose(parts.ridge_, whole.ridge_, rtol=1e-6)
    whole, parts = NystromPCA(3, length_scale=1.0, landmarks=landmarks).fit(x), NystromPCA(3, length_scale=1.0, landmarks=landmarks)
    for rows in (slice(0, 100), slice(100, 600)):
        parts.partial_fit(x[rows])
    np.testing.assert_allclose(parts.transform(x), whole.transform(x), atol=1e-7)


def test_fit_forgets_earlier_batches():
    x, y = problem()
    model = NystromRidge(rank=20, random_state=0).partial_fit(x, y + 100).fit(x, y)
    assert np.array_equal(model.predict(x), NystromRidge(rank=20, random_state=0).fit(x, y).predict(x))


def test_float32_rows_give_float32_predictions_as_good():
    x, y = problem(1000)
    double = NystromRidge(rank=60, random_state=0).fit(x, y)
    single = NystromRidge(rank=60, random_state=0).fit(x.astype("f4"), y.astype("f4"))
    predicted = single.predict(x.astype("f4"))
    assert predicted.dtype == np.float32
    assert np.sqrt(np.mean((predicted - double.predict(x)) ** 2)) < 0.1 * np.sqrt(double.noise_variance_)


# ------------------------------------------------------------------------------------------------ classification
def test_classification_is_ridge_regression_on_labels():
    x, labels = make_blobs(150, centers=3, random_state=0)
    model = NystromRidgeClassifier(rank=40, ridge=0.5, length_scale=2.0, random_state=0).fit(x, labels)
    features = NystromFeatures(n_components=40, length_scale=2.0, random_state=0).fit_transform(x)
    reference = RidgeClassifier(alpha=0.5).fit(features, labels)
    np.testing.assert_allclose(model.decision_function(x), reference.decision_function(features), atol=1e-6)
    assert np.array_equal(model.predict(x), reference.predict(features))


def test_class_weights_are_costs_and_no_counts_of_rows():
    x, labels = make_moons(300, noise=0.3, random_state=0)
    keep = (labels == 0) | (np.arange(300) % 6 == 0)
    x, labels = x[keep], labels[keep]
    plain = NystromRidgeClassifier(rank=40, random_state=0).fit(x, labels)
    balanced = NystromRidgeClassifier(rank=40, class_weight="balanced", random_state=0).fit(x, labels)
    assert balanced.predict(x).mean() > plain.predict(x).mean()
    scaled = NystromRidgeClassifier(rank=40, class_weight={0: 1.0, 1: 1.0}, random_state=0).fit(x, labels)
    assert np.array_equal(scaled.decision_function(x), plain.decision_function(x)) or np.allclose(
        scaled.decision_function(x), plain.decision_function(x), atol=1e-8
    )


def test_classes_of_later_batches_are_named_in_the_first():
    x, labels = make_blobs(120, centers=3, random_state=0)
    names = np.array(["a", "b", "c"])[labels]
    model = NystromRidgeClassifier(rank=30, length_scale=2.0, random_state=0)
    first = labels < 2
    model.partial_fit(x[first], names[first], classes=["a", "b", "c"]).partial_fit(x[~first], names[~first])
    assert model.score(x, names) > 0.85
    with pytest.raises(errors.ParameterError, match=r"^NystromRidgeClassifier: y must hold classes of the first call; got 1 others"):
        model.partial_fit(x[:1], ["d"])
    with pytest.raises(errors.ParameterError, match=r'class_weight must be a dict or None in partial_fit; got "balanced"'):
        NystromRidgeClassifier(class_weight="balanced").partial_fit(x, names)


# ------------------------------------------------------------------------------------------------ components, clusters
def test_components_are_those_of_kernel_pca():
    x, _ = problem(80)
    ours = NystromPCA(4, length_scale=1.0, rank=80).fit(x)
    reference = KernelPCA(4, kernel="rbf", gamma=0.5).fit(x)
    new = x[:30] + 0.1
    np.testing.assert_allclose(np.abs(ours.transform(new)), np.abs(reference.transform(new)), atol=1e-6)
    np.testing.assert_allclose(ours.explained_variance_ * 79, reference.eigenvalues_, rtol=1e-8)
    np.testing.assert_allclose(np.cov(ours.transform(x).T), np.diag(ours.explained_variance_), atol=1e-9)


def test_ratios_count_what_the_approximation_leaves_out():
    x, _ = problem(200)
    assert np.sum(NystromPCA(length_scale=0.3, rank=20, random_state=0).fit(x).explained_variance_ratio_) < 0.9
    np.testing.assert_allclose(np.sum(NystromPCA(length_scale=1.0, rank=200).fit(x).explained_variance_ratio_), 1, atol=1e-6)


def test_components_do_not_depend_on_the_unit_of_the_data():
    x = np.random.default_rng(0).standard_normal((60, 3))
    expected = NystromPCA(3, kernel=Gaussian(1.5), random_state=0).fit_transform(x)
    unit = 2.0**600  # beyond what could be squared
    np.testing.assert_array_equal(NystromPCA(3, kernel=Gaussian(1.5 * unit), random_state=0).fit_transform(unit * x), expected)


def test_clusters_are_those_of_spectral_clustering():
    x, truth = make_moons(400, noise=0.05, random_state=0)
    ours = NystromSpectralClustering(2, length_scale=0.15, rank=150, random_state=0).fit(x)
    reference = SpectralClustering(2, gamma=1 / (2 * 0.15**2), random_state=0).fit(x)
    assert adjusted_rand_score(ours.labels_, reference.labels_) > 0.98
    assert adjusted_rand_score(ours.labels_, truth) > 0.98
    assert ours.eigenvalues_.shape == (2,)
    assert np.array_equal(ours.predict(x), ours.labels_)
    new, new_truth = make_moons(200, noise=0.05, random_state=1)
    assert adjusted_rand_score(ours.predict(new), new_truth) > 0.95


# ------------------------------------------------------------------------------------------------ company
def test_pipelines_and_grid_searches_take_them():
    x, y = problem()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), NystromRidge(random_state=0)),
        {"nystromridge__rank": [5, 40], "nystromridge__kernel": ["gaussian", Matern(1.0)]},
        cv=3,
    )
    assert search.fit(x, y).best_params_["nystromridge__rank"] == 40
    assert cross_val_score(make_pipeline(NystromFeatures(n_components=20, random_state=0), NystromRidge(random_state=0)), x, y).mean() > 0.5


@pytest.mark.parametrize("container", ["pandas", "polars"])
@pytest.mark.parametrize("kind", [NystromFeatures, NystromPCA])
def test_transformers_return_data_frames_on_request(container, kind):
    frames = pytest.importorskip(container)
    x, _ = problem(40)
    model = kind(n_components=3, random_state=0).set_output(transform=container)
    frame = frames.DataFrame(x, columns=["a", "b"]) if container == "pandas" else frames.DataFrame(x, schema=["a", "b"])
    found = model.fit_transform(frame)
    assert isinstance(found, frames.DataFrame)
    assert list(found.columns) == [f"{kind.__name__.lower()}{i}" for i in range(3)]
    assert list(model.feature_names_in_) == ["a", "b"]


@pytest.mark.parametrize("kind", ALL)
def test_copies_and_pickles_predict_the_same(kind):
    x, y = problem(60)
    model = kind(random_state=0).fit(x, y > 0) if kind is not NystromRidge else kind(random_state=0).fit(x, y)
    method = "transform" if hasattr(model, "transform") else "predict"
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), clone(model).fit(x, y if kind is NystromRidge else y > 0)):
        assert np.array_equal(getattr(other, method)(x), getattr(model, method)(x))


@pytest.mark.parametrize(("kind", "dtype"), [*((kind, "float32") for kind in ALL), (NystromRidge, "float64")])
def test_arrays_of_other_libraries_stay_what_they_are(backend, kind, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3))  # of the sizes of tests/core/test_nystrom.py
    y = np.sin(x[:, 0]) * x[:, 1] + 0.1 * rng.normal(size=120)
    labels = (y > 0).astype(int)
    # JAX compiles each operation for each shape, and choosing landmarks has many: its own tests pay for that once.
    settings = {"random_state": 0, "landmarks": x[:25].astype(dtype) if backend.name == "jax" else "rpcholesky+lloyd"}
    host = kind(**settings).fit(x.astype(dtype), y.astype(dtype) if kind is NystromRidge else labels)
    given = backend.asarray(x, dtype)
    targets = backend.asarray(y, dtype) if kind is NystromRidge else backend.asarray(labels)
    model = kind(**settings).fit(given, targets)
    method = "transform" if hasattr(model, "transform") else "predict"
    found = getattr(model, method)(given)
    assert type(found) is type(given)
    if method == "transform" or kind is NystromRidge:
        assert found.dtype == given.dtype
    # Features may differ by M's entries, up to 1e4 in float32 and 1e6 in float64, times rounding; labels by what that may turn.
    expected = getattr(host, method)(x.astype(dtype))
    if kind in (NystromRidge, NystromPCA, NystromFeatures):
        a, b = backend.to_numpy(found), np.asarray(expected)
        if kind is NystromFeatures:
            a, b = a @ a.T, b @ b.T
        np.testing.assert_allclose(a, b, atol=2e-2 if dtype == "float32" else 1e-6)
    else:
        assert np.mean(backend.to_numpy(found) == np.asarray(expected)) > 0.95


def test_another_library_after_fit_is_refused():
    torch = pytest.importorskip("torch")
    x, y = problem(40)
    model = NystromRidge(random_state=0).fit(x, y)
    words = r"^NystromRidge.predict\(\): X must use the same namespace and device as in fit; got torch on cpu after numpy. Convert it.$"
    with pytest.raises(errors.InputError, match=words):
        model.predict(torch.tensor(x))


@pytest.mark.gpu
def test_torch_on_a_gpu_stays_there():
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    x, y = problem(500)
    given = torch.tensor(x, dtype=torch.float32, device="cuda")
    model = NystromRidge(rank=60, random_state=0).fit(given, torch.tensor(y, device="cuda"))
    mean, deviation = model.predict(given, return_std=True)
    assert mean.device.type == deviation.device.type == "cuda"
    expected = NystromRidge(rank=60, random_state=0).fit(x, y).predict(x)
    assert np.sqrt(np.mean((mean.cpu().numpy() - expected) ** 2)) < 0.05


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kernel": "cosine"}, "kernel must be an object or one of gaussian, rbf, laplacian, matern; got 'cosine'"),
        ({"kernel": Gaussian(1.0), "length_scale": 2.0}, "length_scale and gamma belong to kernels given by name; got a Gaussian"),
        ({"rank": 0}, "the number of landmarks must be a whole number >= 1; got 0"),
        ({"rank": 2.5}, "the number of landmarks must be a whole number >= 1; got 2.5"),
        ({"ridge": -1.0}, "ridge must be a finite number > 0; got -1.0"),
        ({"selection": "aic"}, 'selection must be "gcv" or "loo"; got \'aic\''),
    ],
)
def test_settings_outside_their_range_are_refused(arguments, words):
    x, y = problem(40)
    with pytest.raises(errors.ParameterError, match=f"^NystromRidge: {words}"):
        NystromRidge(**arguments).fit(x, y)


def test_a_length_scale_and_a_gamma_together_are_refused():
    x, _ = problem(40)
    with pytest.raises(errors.ParameterError, match=r"^NystromFeatures: length_scale or gamma must be given, and not both; got both"):
        NystromFeatures(length_scale=1.0, gamma=1.0).fit(x)
    with pytest.raises(errors.ParameterError, match=r"^NystromFeatures: gamma must be None for kernels other than gaussian and laplacian"):
        NystromFeatures("matern", gamma=1.0).fit(x)


def test_what_keeps_no_rows_cannot_go_on_with_batches():
    x, y = problem(40)
    with pytest.raises(errors.ParameterError, match=r"^NystromRidge: partial_fit needs exact=False .*; got exact=True"):
        NystromRidge(exact=True).partial_fit(x, y)
    with pytest.raises(errors.ParameterError, match=r'^NystromRidge: partial_fit needs .*; got selection="loo"'):
        NystromRidge(selection="loo").partial_fit(x, y)


def test_weights_of_zero_alone_are_refused():
    torch = pytest.importorskip("torch")
    x, y = problem(40)
    with pytest.raises(ValueError, match="non-zero"):
        NystromRidge().fit(x, y, np.zeros(40))
    with pytest.raises(errors.ParameterError, match=r"^NystromRidge: sample_weight must have a positive value; got zeros"):
        NystromRidge().fit(torch.tensor(x), torch.tensor(y), torch.zeros(40))


def test_a_batch_may_hold_one_row():
    x, y = problem(40)
    model = NystromRidge(rank=10, random_state=0).partial_fit(x, y)
    assert model.partial_fit(x[:1], y[:1]).predict(x[:1]).shape == (1,)


def test_foreign_arrays_are_checked_like_our_own():
    torch = pytest.importorskip("torch")
    x, y = problem(40)
    x, y = torch.tensor(x), torch.tensor(y)
    with pytest.raises(errors.ShapeError, match=r"^NystromRidge: X must have shape \(n, d\) with n >= 2; got \(40,\)"):
        NystromRidge().fit(x[:, 0], y)
    with pytest.raises(errors.NonFiniteError, match=r"^NystromRidge: X must be finite; got 80 non-finite entries"):
        NystromRidge().fit(x * float("nan"), y)
    model = NystromRidge(random_state=0).fit(x, y)
    with pytest.raises(errors.ShapeError, match=r"^NystromRidge: X must have 2 features; got 1"):
        model.predict(x[:, :1])
    with pytest.raises(errors.ParameterError, match=r"^NystromRidgeClassifier: y must have shape \(40,\); got \(39,\)"):
        NystromRidgeClassifier().fit(x, y[1:] > 0)
    with pytest.raises(errors.ParameterError, match=r"^NystromRidge: sample_weight must not be negative; got a smallest weight of -1"):
        NystromRidge().fit(x, y, -torch.ones(40))


def test_sparse_rows_are_refused_by_name():
    with pytest.raises(TypeError, match=r"[Ss]parse"):
        NystromRidge().fit(csr_array(np.eye(5)), np.ones(5))


def test_dispatch_on_or_off_makes_no_difference():
    if importlib.util.find_spec("torch") is None:
        pytest.skip("torch is not installed")
    x, y = problem(40)
    with config_context(array_api_dispatch=False):
        off = NystromRidge(random_state=0).fit(x, y).predict(x)
    assert np.array_equal(off, NystromRidge(random_state=0).fit(x, y).predict(x))


# ------------------------------------------------------------------------------------------------ FALKON
def test_the_model_is_that_of_falkon_after_twenty_steps():
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "falkon.py"
    spec = importlib.util.spec_from_file_location("falkon_as_published", path)
    published = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(published)
    x, y = problem(3000)
    ours = NystromRidge(length_scale=0.5, rank=100, landmarks="uniform", ridge=1.0, fit_intercept=False, random_state=0).fit(
        x[:2000], y[:2000]
    )
    theirs = published.Falkon(ours.kernel_, ours.landmarks_, ours.ridge_, block=700).fit(x[:2000], y[:2000])
    assert theirs.residuals[-1] < 1e-2 * theirs.residuals[0]
    errors_of = [np.sqrt(np.mean((model.predict(x[2000:]) - y[2000:]) ** 2)) for model in (ours, theirs)]
    np.testing.assert_allclose(*errors_of, rtol=5e-3)
    # The residual of the preconditioned equations is the error of the predictions, roughly: their spectrum is near 1.
    np.testing.assert_allclose(ours.predict(x[2000:]), theirs.predict(x[2000:]), atol=0.1 * np.std(y))
