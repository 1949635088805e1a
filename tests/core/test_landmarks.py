"""Landmarks: valid, seeded, as good as promised, and never stopped by duplicates. How they are found: test_landmark_*.py."""

from __future__ import annotations

import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import event, example, given
from hypothesis import strategies as st
from landmark_cases import EPS, Table, Wrapped, chosen, cloud, distinct, relative_trace_error, seeds, shapes

from softlinalg._kernels import Gaussian, Laplacian, Matern
from softlinalg._landmarks import INDEX_METHODS, METHODS, refine_landmarks, select_landmark_indices, select_landmarks
from softlinalg.errors import (
    BackendMismatchError,
    DTypeError,
    DuplicateLandmarkWarning,
    NonFiniteError,
    NumericalError,
    ParameterError,
    ShapeError,
)


# ------------------------------------------------------------------------------------------- every method
@given(shapes, st.sampled_from(METHODS), st.floats(0, 1), seeds)
@example(("duplicated", 40, 2, 0), "rpcholesky", 1.0, 0)
@example(("lattice", 40, 1, 0), "kmeans", 1.0, 0)
def test_landmarks_are_valid_whatever_the_points(shape, method, share, seed):
    x = cloud(*shape)
    count = 1 + round(share * (len(x) - 1))
    event(f"{method}, {'full' if count >= distinct(x) else 'part'}")
    result = chosen(x, count, method, rng=seed)
    if method in INDEX_METHODS:
        assert result.dtype == np.int64
        assert len(set(result.tolist())) == len(result) == count
        assert 0 <= result.min() <= result.max() < len(x)
        np.testing.assert_array_equal(chosen(x, count, method, rng=seed), result)
    else:
        assert result.shape == (count, x.shape[1])
        assert np.all(np.isfinite(result))
        # Means of rows lie in the box of the rows, up to rounding relative to the size of the numbers.
        slack = 8 * EPS * np.max(np.abs(x), axis=0)
        assert np.all((result >= x.min(axis=0) - slack) & (result <= x.max(axis=0) + slack))


@pytest.mark.parametrize("method", INDEX_METHODS)
def test_landmarks_are_the_rows_that_the_indices_name(method):
    x = cloud("normal", 50, 3, 0)
    indices = select_landmark_indices(x, 9, method=method, rng=4)
    np.testing.assert_array_equal(select_landmarks(x, 9, method=method, rng=4), x[indices])


@pytest.mark.parametrize("kernel", [Gaussian(1.5), Laplacian(2.0), Matern(1.5, nu=0.5), Matern(1.5, nu=2.5), Wrapped(Gaussian(1.5)), None])
@pytest.mark.parametrize("method", METHODS)
def test_every_kernel_serves_every_method(kernel, method):
    x = cloud("normal", 60, 2, 1)
    landmarks = select_landmarks(x, 12, method=method, kernel=kernel, rng=0)
    assert landmarks.shape == (12, 2)
    assert distinct(landmarks) == 12


def test_a_generator_is_advanced_and_a_seed_is_not():
    x = cloud("normal", 60, 2, 1)
    rng = np.random.default_rng(5)
    first, second = (select_landmark_indices(x, 6, rng=rng) for _ in range(2))
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(first, select_landmark_indices(x, 6, rng=5))
    assert select_landmark_indices(x, 6).shape == (6,)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_landmarks_on_every_library(backend, method):
    x = cloud("lattice", 80, 3, 2)
    expected = chosen(x, 7, method, kernel=Gaussian(1.0), rng=3)
    given = backend.asarray(x)
    result = chosen(given, 7, method, kernel=Gaussian(1.0), rng=3)
    if method not in INDEX_METHODS:
        assert type(result) is type(given)
    np.testing.assert_array_equal(backend.to_numpy(result), expected)
    np.testing.assert_array_equal(backend.to_numpy(given), x)


def test_also_where_the_library_of_the_data_does_the_work(backend):
    # A lattice has ties in abundance: nearest landmarks, residuals, everything.
    x = cloud("lattice", 40, 2, 2)
    kernel = Wrapped(Gaussian(1.0))
    # JAX compiles every operation for every shape: the one method that uses most parts takes it ten seconds.
    for method in ("rpcholesky+lloyd",) if backend.name == "jax" else METHODS:
        expected = chosen(x, 5, method, kernel=kernel, rng=3)
        result = backend.to_numpy(chosen(backend.asarray(x), 5, method, kernel=kernel, rng=3))
        # Sums of rows may be rounded differently, choices may not.
        np.testing.assert_allclose(result, expected, rtol=0, atol=0 if method in INDEX_METHODS else 64 * EPS)
    np.testing.assert_array_equal(chosen(x, 5, "rpcholesky", kernel=Gaussian(1.0), rng=3), chosen(x, 5, "rpcholesky", kernel=kernel, rng=3))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("method", METHODS)
def test_the_dtype_is_kept(method, dtype):
    x = cloud("normal", 50, 3, 0).astype(dtype)
    before = x.tobytes()
    landmarks = select_landmarks(x, 8, method=method, rng=1)
    assert landmarks.dtype == x.dtype
    assert x.tobytes() == before
    # Computed in float64 inside: the landmarks of the same numbers in float64, rounded.
    np.testing.assert_array_equal(landmarks, select_landmarks(x.astype("float64"), 8, method=method, rng=1).astype(dtype))


def test_integers_are_promoted_and_lists_taken():
    rows = [[0, 0], [1, 0], [0, 2], [5, 5]]
    assert select_landmarks(rows, 2, rng=0).dtype == np.float64
    assert select_landmarks(np.asarray(rows, dtype=np.int32), 2, method="uniform", rng=0).dtype == np.float64


def test_bfloat16_and_gradients_of_torch():
    torch = pytest.importorskip("torch")
    x = torch.tensor(cloud("normal", 40, 2, 0))
    half = select_landmarks(x.to(torch.bfloat16), 5, rng=0)
    assert half.dtype == torch.bfloat16
    for method in METHODS:
        assert not select_landmarks(x.clone().requires_grad_(), 5, method=method, rng=0).requires_grad


@pytest.mark.parametrize("scale", [2.0**-1000, 2.0**900])
@pytest.mark.parametrize("method", ["rpcholesky+lloyd", "kmeans", "rpcholesky"])
def test_units_do_not_matter(method, scale):
    x = cloud("normal", 60, 3, 0)
    expected = select_landmarks(x, 9, method=method, kernel=Gaussian(1.0), rng=2)
    scaled = select_landmarks(x * scale, 9, method=method, kernel=Gaussian(scale), rng=2)
    np.testing.assert_array_equal(scaled / scale, expected)


@pytest.mark.parametrize("method", ["rpcholesky+lloyd", "kmeans"])
def test_clusters_are_formed_in_the_units_of_the_kernel(method):
    x = cloud("normal", 300, 2, 0)
    units = np.asarray([1.0, 64.0])
    expected = select_landmarks(x, 9, method=method, kernel=Gaussian((1.0, 1.0)), rng=2)
    stretched = select_landmarks(x * units, 9, method=method, kernel=Gaussian((1.0, 64.0)), rng=2)
    np.testing.assert_array_equal(stretched / units, expected)


@pytest.mark.parametrize("method", [m for m in METHODS if m != "uniform"])
def test_a_sample_bounds_what_is_looked_at(method):
    x = cloud("normal", 400, 2, 0)
    seen: list[int] = []

    class Counting(Wrapped):
        def diagonal(self, points: Any) -> Any:
            seen.append(len(points))
            return super().diagonal(points)

    result = select_landmarks(x, 5, method=method, kernel=Counting(Gaussian(1.0)), rng=0, sample=30)
    assert result.shape == (5, 2)
    assert max(seen, default=0) <= 30
    np.testing.assert_array_equal(
        select_landmarks(x, 5, method=method, kernel=Gaussian(1.0), rng=0, sample=400),
        select_landmarks(x, 5, method=method, kernel=Gaussian(1.0), rng=0, sample=10**9),
    )


def test_memory_does_not_grow_with_the_rows():
    x = np.random.default_rng(0).normal(size=(300_000, 8)).astype(np.float32)
    select_landmarks(x[:500], 10, rng=0)  # imports
    tracemalloc.start()
    select_landmarks(x, 50, kernel=Gaussian(2.0), rng=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The order of the rows (8 bytes each, shuffled once) and blocks of 2^21 float64 entries; x in float64 would be 19 MB, n x m 120 MB.
    assert peak < 8 * len(x) * 2 + 3 * 8 * 2**21


def test_progress_is_shown_when_asked(capsys):
    x = cloud("normal", 60, 2, 0)
    select_landmarks(x, 6, rng=0)
    assert capsys.readouterr().err == ""
    select_landmarks(x, 6, rng=0, progress=True)
    shown = capsys.readouterr().err
    assert "pivots" in shown
    assert "Lloyd steps" in shown
    select_landmarks(x, tol=0.1, method="greedy", rng=0, progress=True)
    select_landmarks(x, 6, method="kmeans", rng=0, progress=True)
    assert "seeds" in capsys.readouterr().err
    refine_landmarks(x, x[:5], Gaussian(1.0), max_steps=2, progress=True)
    assert "relative trace error" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- duplicates and rank
@given(shapes, st.sampled_from(["rpcholesky", "greedy", "rpcholesky+lloyd"]), seeds)
@example(("duplicated", 40, 3, 1), "rpcholesky", 0)
@example(("one-far", 40, 3, 1), "greedy", 0)
def test_no_row_is_chosen_twice_while_another_is_left(shape, method, seed):
    x = np.repeat(cloud(*shape), 2, axis=0)
    count = distinct(x)
    # A rough kernel: all different rows keep a residual far above rounding.
    kernel = Laplacian(0.01 * (1 + np.abs(x).max()) if shape[0] in ("one-far", "offset") else 0.5)
    if shape[0] in ("one-far", "offset", "clustered"):
        kernel = Equality()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DuplicateLandmarkWarning)
        landmarks = select_landmarks(x, count, method=method, kernel=kernel, rng=seed)
    assert distinct(landmarks) == count


class Equality:
    """1 for equal rows, 0.5 for others; but equal rows of two arrays are taken for different: the worst that rounding can do."""

    def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        y = x if y is None else y
        equal = np.all(x[:, None, :] == y[None, :, :], axis=2)
        return np.where(equal, 1.0 if y is x else 0.5, 0.5)

    def diagonal(self, x: np.ndarray) -> np.ndarray:
        return np.ones(len(x))


@pytest.mark.parametrize("n", [1, 2, 30])
@pytest.mark.parametrize("method", METHODS)
def test_equal_points_terminate_with_a_warning(method, n):
    x = np.full((n, 3), 0.1)
    for count in {1, n}:
        if count == 1:
            landmarks = select_landmarks(x, count, method=method, rng=0)
        else:
            with pytest.warns(DuplicateLandmarkWarning, match=rf"got 1 of {count} that add anything\. Ask for count <= 1") as record:
                landmarks = select_landmarks(x, count, method=method, rng=0)
            assert record[0].filename == __file__
        np.testing.assert_allclose(landmarks, x[:count], rtol=4 * EPS)


@pytest.mark.parametrize("method", ["rpcholesky", "greedy", "leverage"])
def test_a_kernel_of_small_rank_fills_up_with_a_warning(method):
    class Linear:
        def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
            return x @ (x if y is None else y).T

        def diagonal(self, x: np.ndarray) -> np.ndarray:
            return np.sum(x * x, axis=1)

    x = np.concatenate([cloud("normal", 40, 3, 0), np.zeros((5, 3))])
    if method == "leverage":  # draws different rows; that they are dependent is not its business
        assert len(set(select_landmark_indices(x, 20, method=method, kernel=Linear(), rng=0).tolist())) == 20
        return
    with pytest.warns(DuplicateLandmarkWarning, match="got 3 of 20"):
        indices = select_landmark_indices(x, 20, method=method, kernel=Linear(), rng=0)
    assert len(set(indices.tolist())) == 20
    assert np.linalg.matrix_rank(x[indices[:3]]) == 3
    assert len(select_landmark_indices(x, tol=1e-10, method=method, kernel=Linear(), rng=0)) == 3
    with pytest.warns(DuplicateLandmarkWarning, match="got 1 of 2"):
        select_landmark_indices(np.zeros((4, 2)), 2, method=method, kernel=Linear(), rng=0)
    assert len(select_landmark_indices(np.zeros((4, 2)), tol=0.5, method=method, kernel=Linear(), rng=0)) == 1


@pytest.mark.parametrize("method", ["uniform", "leverage"])
def test_equal_rows_among_random_landmarks_are_reported(method):
    x = np.repeat(cloud("normal", 4, 2, 0), 5, axis=0)
    with pytest.warns(DuplicateLandmarkWarning, match=r"got [1-4] of 10"):
        select_landmark_indices(x, 10, method=method, kernel=Gaussian(1.0), rng=0)


def test_the_sample_grows_until_it_holds_enough_different_rows():
    rare = cloud("normal", 30, 2, 0)
    x = np.concatenate([np.zeros((3000, 2)), 10 * rare])
    landmarks = select_landmarks(x, 20, kernel=Gaussian(1.0), rng=0, lloyd_steps=0)  # no warning: it is an error here
    assert distinct(landmarks) == 20
    with pytest.warns(DuplicateLandmarkWarning):
        select_landmarks(x, 20, kernel=Gaussian(1.0), rng=0, sample=100)  # a sample of one's own does not grow


def test_rpcholesky_finds_what_is_rare():
    rng = np.random.default_rng(0)
    far = 10 * np.arange(1, 9)[:, None] * np.ones((1, 2))
    x = np.concatenate([0.1 * rng.normal(size=(2000, 2)), far])
    for method in ("rpcholesky", "greedy", "leverage"):
        indices = select_landmark_indices(x, 30, method=method, kernel=Gaussian(1.0), rng=1)
        assert set(range(2000, 2008)) <= set(indices.tolist()), method
    assert len(set(range(2000, 2008)) & set(select_landmark_indices(x, 30, method="uniform", rng=1).tolist())) < 3


# ---------------------------------------------------------------------------------------------- real data
def optimal_error(matrix: np.ndarray, rank: int) -> float:
    values = np.linalg.eigvalsh(matrix)
    return float(values[:-rank].sum() / values.sum())


def test_digits_are_explained_within_the_promised_multiple_of_the_optimum():
    datasets = pytest.importorskip("sklearn.datasets")
    x = datasets.load_digits().data
    x = x[:, x.std(axis=0) > 0]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    kernel = Gaussian("median").resolve(x, 0)
    optimum = optimal_error(kernel(x, x), 100)
    landmarks = select_landmarks(x, 100, kernel=kernel, rng=0)
    assert relative_trace_error(kernel, x, landmarks) < 1.9 * optimum
    refined = refine_landmarks(x, landmarks, kernel, max_steps=10)
    assert relative_trace_error(kernel, x, refined) < 1.5 * optimum


def test_protein_is_explained_within_the_promised_multiple_of_the_optimum(shared_data):
    rng = np.random.default_rng(0)
    x = np.loadtxt(shared_data / "protein.csv.gz", delimiter=",")[:, :-1]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    x = x[rng.choice(len(x), 2000, replace=False)]
    kernel = Gaussian(Gaussian("median").resolve(x, rng).length_scale / 2)
    optimum = optimal_error(kernel(x, x), 100)
    assert relative_trace_error(kernel, x, select_landmarks(x, 100, kernel=kernel, rng=0)) < 1.9 * optimum


# ----------------------------------------------------------------------------------------------- refusals
X = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ParameterError, r"select_landmarks: count or tol must be given, and not both; got neither\."),
        ({"count": 2, "tol": 0.1}, ParameterError, "count or tol must be given, and not both; got both"),
        ({"count": 0}, ParameterError, r"count must be a whole number from 1 to 6; got 0\. Choose"),
        ({"count": 7}, ParameterError, "count must be a whole number from 1 to 6; got 7"),
        ({"count": True}, ParameterError, "count must be a whole number from 1 to 6; got True"),
        ({"count": 2.5}, ParameterError, "count must be a whole number from 1 to 6; got 2.5"),
        ({"count": 10**30}, ParameterError, "count must be a whole number from 1 to 6; got a number of more than 20 digits"),
        ({"tol": 0.0}, ParameterError, "tol must be a finite number > 0"),
        ({"tol": 1.5}, ParameterError, "tol must be a finite number > 0 and <= 1"),
        ({"tol": 1e-20}, ParameterError, "tol must be at least 2e-14, what the arithmetic resolves; got 1e-20"),
        ({"tol": 0.1, "method": "uniform"}, ParameterError, "tol needs a method that knows its error; got 'uniform'"),
        ({"tol": 0.1, "method": "kmeans"}, ParameterError, "tol needs a method that knows its error; got 'kmeans'"),
        ({"count": 2, "method": "best"}, ParameterError, "method must be one of rpcholesky.lloyd, kmeans, .*; got 'best'"),
        ({"count": 2, "method": None}, ParameterError, "method must be one of .*; got None"),
        ({"count": 2, "kernel": "gaussian"}, ParameterError, r"kernel must have __call__\(x, y\) and diagonal\(x\); got str"),
        ({"count": 2, "kernel": Gaussian}, ParameterError, r"kernel must have __call__\(x, y\) and diagonal\(x\); got Gaussian"),
        ({"count": 2, "kernel": np.exp}, ParameterError, "kernel must have __call__"),
        ({"count": 2, "sample": 1}, ParameterError, "sample must be a whole number >= 2; got 1"),
        ({"count": 2, "sample": "all"}, ParameterError, "sample must be a whole number >= 2; got 'all'"),
        ({"count": 2, "lloyd_steps": -1}, ParameterError, "lloyd_steps must be a whole number >= 0; got -1"),
        ({"count": 2, "rng": -1}, ParameterError, "rng must be None, a non-negative int or a numpy Generator"),
        ({"x": X[0], "count": 1}, ShapeError, r"x must have shape \(n, d\) with n, d >= 1; got \(2,\)"),
        ({"x": X[:0], "count": 1}, ShapeError, r"x must have shape \(n, d\) with n, d >= 1; got \(0, 2\)"),
        ({"x": X[:, :0], "count": 1}, ShapeError, r"got \(6, 0\)"),
        ({"x": X[None], "count": 1}, ShapeError, r"got \(1, 6, 2\)"),
        ({"x": X * 1j, "count": 1}, DTypeError, "x must be real; got dtype complex128"),
        ({"x": np.where(X == 3, np.nan, X), "count": 1}, NonFiniteError, r"x must be finite; got 1 non-finite entry \(first at \[1, 1\]\)"),
        ({"x": np.where(X == 3, np.inf, X), "count": 1, "method": "uniform"}, NonFiniteError, "select_landmarks: x must be finite"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        select_landmarks(**{"x": X, **arguments})
    assert str(caught.value).startswith("select_landmarks: ")
    assert len(str(caught.value)) <= 400


def test_index_methods_alone_have_indices():
    for method in ("kmeans", "rpcholesky+lloyd"):
        with pytest.raises(ParameterError, match="select_landmark_indices: method must be one of rpcholesky, greedy, leverage, uniform"):
            select_landmark_indices(X, 2, method=method)


def test_finite_check_can_be_left_out():
    x = np.where(X == 3, np.nan, X)
    assert select_landmarks(x, 6, method="uniform", rng=0, check_finite=False).shape == (6, 2)


@pytest.mark.parametrize(
    ("diagonal", "values", "message"),
    [
        (lambda x: -np.ones(len(x)), lambda x, y: x @ y.T, "kernel must have a finite, non-negative diagonal"),
        (lambda x: np.full(len(x), np.nan), lambda x, y: x @ y.T, "kernel must have a finite, non-negative diagonal"),
        (lambda x: np.ones(len(x) + 1), lambda x, y: x @ y.T, r"kernel must have a finite, non-negative diagonal of shape \(n,\)"),
        (lambda x: np.ones(len(x)), lambda x, y: np.ones((1, 1, 1)), r"kernel must return shape \(64, 64\); got \(1, 1, 1\)"),
    ],
)
def test_a_broken_kernel_is_named(diagonal, values, message):
    class Broken:
        def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> Any:
            return values(x, x if y is None else y)

    broken = Broken()
    broken.diagonal = diagonal
    with pytest.raises(ParameterError, match=message):
        select_landmarks(X, 2, method="rpcholesky", kernel=broken, rng=0)


@pytest.mark.parametrize("method", ["rpcholesky", "greedy", "leverage", "refine"])
@pytest.mark.parametrize("square", [True, False])
def test_a_kernel_that_returns_nan_is_named(method, square):
    class Poisoned(Wrapped):
        def __call__(self, x: Any, y: Any = None) -> Any:
            values = self.inner(x, y)
            return values * np.nan if (len(x) == len(x if y is None else y)) is square else values

    def choose() -> Any:
        kernel = Poisoned(Gaussian(4.0))
        return (
            refine_landmarks(X, X[:3], kernel) if method == "refine" else select_landmark_indices(X, 3, method=method, kernel=kernel, rng=0)
        )

    message = "kernel must return finite values; got NaN or infinity|a matrix without Cholesky factor"
    with pytest.raises((NonFiniteError, NumericalError), match=message):
        choose()


def test_a_kernel_that_contradicts_its_diagonal_does_not_hang():
    class Vanishing:
        def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
            return np.zeros((len(x), len(x if y is None else y)))

        def diagonal(self, x: np.ndarray) -> np.ndarray:
            return np.ones(len(x))

    for method in ("rpcholesky", "greedy"):
        with pytest.warns(DuplicateLandmarkWarning):
            assert len(select_landmark_indices(X, 3, method=method, kernel=Vanishing(), rng=0)) == 3


def test_traced_arrays_are_refused():
    jax = pytest.importorskip("jax")
    for call in (lambda x: select_landmarks(x, 2), lambda x: refine_landmarks(x, x[:2], Gaussian(1.0))):
        with pytest.raises(DTypeError, match="must hold numbers; got a traced array"):
            jax.jit(call)(jax.numpy.ones((4, 2)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernel": object()}, ParameterError, r"kernel must have __call__, diagonal and vjp; got one without __call__, diagonal, vjp\."),
        ({"kernel": Table(np.eye(6))}, ParameterError, "kernel must have __call__, diagonal and vjp; got one without vjp"),
        ({"kernel": Gaussian}, ParameterError, "got one without __call__"),
        ({"max_steps": 0}, ParameterError, "max_steps must be a whole number >= 1; got 0"),
        ({"max_steps": 1.0}, ParameterError, "max_steps must be a whole number >= 1; got 1.0"),
        ({"sample": 0}, ParameterError, "sample must be a whole number >= 1; got 0"),
        ({"rng": "seed"}, ParameterError, "rng must be None"),
        ({"landmarks": X[:2, :1]}, ShapeError, "landmarks must have as many columns as x; got 1 and 2"),
        ({"landmarks": X[:0]}, ShapeError, r"landmarks must have shape \(rows, d\) with rows, d >= 1; got \(0, 2\)"),
        ({"x": X[0]}, ShapeError, r"x must have shape \(rows, d\)"),
        ({"landmarks": X[:2] * np.nan}, NonFiniteError, "landmarks must be finite"),
        ({"x": np.where(X == 3, np.inf, X)}, NonFiniteError, "x must be finite"),
    ],
)
def test_wrong_arguments_of_the_refinement_are_refused(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        refine_landmarks(**{"x": X, "landmarks": X[:2], "kernel": Gaussian(1.0), **arguments})
    assert str(caught.value).startswith("refine_landmarks: ")
    assert len(str(caught.value)) <= 400


def test_mixed_libraries_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(BackendMismatchError, match="refine_landmarks: all arrays must come from one library"):
        refine_landmarks(X, torch.ones((2, 2)), Gaussian(1.0))


def test_a_median_length_scale_is_settled_by_the_seed():
    x = cloud("normal", 1500, 2, 0)
    first = select_landmark_indices(x, 10, kernel=Gaussian("median"), rng=1)
    np.testing.assert_array_equal(first, select_landmark_indices(x, 10, rng=1))
    refined = refine_landmarks(x, x[:5], Gaussian("median"), max_steps=1, rng=1)
    assert refined.shape == (5, 2)
