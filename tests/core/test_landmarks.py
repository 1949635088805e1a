"""Landmarks: valid, seeded, of the right law, as good as promised, and never stopped by duplicates."""

from __future__ import annotations

import itertools
import os
import tracemalloc
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from softlinalg import _landmark_clusters, _landmark_sampling
from softlinalg._kernels import Gaussian, Laplacian, Matern
from softlinalg._landmark_clusters import lloyd, plus_plus_seeds
from softlinalg._landmark_refinement import trace_error_and_gradient
from softlinalg._landmark_sampling import PivotedCholesky, Rows, draw_proportional, leverage_rows, random_pivots
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

EPS = 2.0**-52
CLOUDS = ("normal", "clustered", "duplicated", "collinear", "one-far", "offset", "lattice")


def cloud(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    """A point set with one of the difficulties that real data have."""
    rng = np.random.default_rng([seed, n, d])
    x = rng.normal(size=(n, d))
    if kind == "clustered":
        x = 0.05 * x + rng.integers(0, 3, size=(n, 1))
    elif kind == "duplicated":
        x = x[rng.integers(0, -(-n // 3), size=n)]
    elif kind == "collinear":
        x = x[:, :1] * np.ones((1, d))
    elif kind == "one-far":
        x[0] += 1e6
    elif kind == "offset":
        x += 1e6
    elif kind == "lattice":
        x = rng.integers(0, 3, size=(n, d)).astype(float)
    return x


def distinct(x: np.ndarray) -> int:
    return len(np.unique(x, axis=0))


def relative_trace_error(kernel: Any, x: np.ndarray, landmarks: np.ndarray) -> float:
    """Trace error from the eigenvalues of the core, cut off relatively: independent of the code under test."""
    values, vectors = np.linalg.eigh(kernel(landmarks, landmarks))
    kept = values > 1e-13 * values[-1]
    features = kernel(x, landmarks) @ (vectors[:, kept] / np.sqrt(values[kept]))
    trace = float(np.sum(kernel.diagonal(x)))
    return (trace - float(np.sum(features**2))) / trace


@dataclass(frozen=True)
class Wrapped:
    """A kernel that is none of the package's own: it works in the library of the data."""

    inner: Any

    def __call__(self, x: Any, y: Any = None) -> Any:
        return self.inner(x, y)

    def diagonal(self, x: Any) -> Any:
        return self.inner.diagonal(x)

    def vjp(self, x: Any, y: Any, g: Any) -> Any:
        return self.inner.vjp(x, y, g)


@dataclass(frozen=True)
class Table:
    """k(i, j) = matrix[i, j] for points that are row numbers."""

    matrix: np.ndarray

    def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        i, j = x[:, 0].astype(int), (x if y is None else y)[:, 0].astype(int)
        return self.matrix[np.ix_(i, j)]

    def diagonal(self, x: np.ndarray) -> np.ndarray:
        return np.diagonal(self.matrix)[x[:, 0].astype(int)]


@dataclass(frozen=True)
class Quadratic:
    """(x.y + 1)^2: a kernel whose diagonal differs from row to row."""

    def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        return (x @ (x if y is None else y).T + 1) ** 2

    def diagonal(self, x: np.ndarray) -> np.ndarray:
        return (np.sum(x * x, axis=1) + 1) ** 2


shapes = st.tuples(st.sampled_from(CLOUDS), st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**16))
seeds = st.integers(0, 2**16)


def chosen(x: Any, count: int | None, method: str, **more: Any) -> np.ndarray:
    """Landmarks or row numbers, whichever the method has; warnings about duplicates are not the subject."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DuplicateLandmarkWarning)
        return (select_landmark_indices if method in INDEX_METHODS else select_landmarks)(x, count, method=method, **more)


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


# -------------------------------------------------------------------------------------- pivoted Cholesky
@given(shapes, st.sampled_from(["rpcholesky", "greedy"]), st.floats(0.3, 3), seeds)
@settings(max_examples=60)
def test_the_residual_trace_is_the_trace_error_of_the_pivots(shape, method, length_scale, seed):
    x = cloud(*shape)
    if shape[0] in ("one-far", "offset"):
        x = x - x[-1]
    kernel = Gaussian(length_scale)
    state = PivotedCholesky(kernel, Rows(x, xp=np), func="test")
    rng = np.random.default_rng(seed)
    limit = max(1, len(x) // 2)
    if method == "greedy":
        _landmark_sampling.greedy_pivots(state, limit, tol=None, advance=len_of_nothing)
    else:
        random_pivots(state, limit, tol=None, rng=rng, advance=len_of_nothing)
    assert len(state.pivots) == len(state.traces) <= limit
    assert np.all(np.diff([state.trace, *state.traces]) <= 4 * EPS * state.trace)
    for k, trace in enumerate(state.traces, start=1):
        # Rounding: the cut-off 1e-13 of the reference leaves up to sqrt(1e-13) of what lies in cut directions.
        assert trace / state.trace == pytest.approx(relative_trace_error(kernel, x, x[state.pivots[:k]]), abs=3e-7)


def len_of_nothing(_: int) -> None:
    """A progress bar that nobody looks at."""


@given(shapes, seeds, st.integers(1, 40), st.sampled_from(["rpcholesky", "greedy"]))
def test_fewer_pivots_are_a_prefix_of_more(shape, seed, count, method):
    x = cloud(*shape)
    kernel = Laplacian(2.0)  # of full rank on different rows
    more = distinct(x)
    fewer = min(count, more)
    first = chosen(x, fewer, method, kernel=kernel, rng=seed)
    np.testing.assert_array_equal(first, chosen(x, more, method, kernel=kernel, rng=seed)[:fewer])


@given(shapes, st.sampled_from(["rpcholesky", "greedy"]), st.floats(1e-6, 1.0), seeds)
@example(("normal", 40, 3, 0), "rpcholesky", 1.0, 0)
def test_the_tolerance_is_met_with_as_few_pivots_as_it_takes(shape, method, tol, seed):
    x = cloud(*shape)
    kernel = Laplacian(1 + np.ptp(x))
    indices = chosen(x, None, method, tol=tol, kernel=kernel, rng=seed)
    assert relative_trace_error(kernel, x, x[indices]) <= tol + 1e-9
    event(f"{len(indices)} of {len(x)}" if len(indices) in (1, len(x)) else "between")
    if len(indices) > 1:
        assert relative_trace_error(kernel, x, x[indices[:-1]]) > tol - 1e-9
    np.testing.assert_array_equal(chosen(x, len(indices), method, kernel=kernel, rng=seed), indices)


def test_the_default_meets_a_tolerance_by_growing_its_sample():
    x = cloud("normal", 6000, 2, 0)
    kernel = Gaussian(0.15)
    landmarks = select_landmarks(x, tol=0.02, kernel=kernel, rng=0)
    assert len(landmarks) > 100  # more than a first sample of 2,000 rows can vouch for
    # The sample holds 20 rows per landmark, and Lloyd's steps help: the error over all rows is close to that of the sample.
    assert relative_trace_error(kernel, x, landmarks) < 1.25 * 0.02
    assert len(select_landmarks(x, tol=0.9, kernel=kernel, rng=0)) < 100


@given(st.integers(3, 30), st.integers(1, 4), seeds, seeds)
def test_greedy_pivots_move_with_the_rows(n, d, seed, order_seed):
    # Where no two rows tie, the greedy choice knows nothing of their order. (Rank of this kernel: (d + 1)(d + 2) / 2.)
    x = cloud("normal", n, d, seed)
    count = min(n, (d + 1) * (d + 2) // 2)
    order = np.random.default_rng(order_seed).permutation(n)
    direct = select_landmark_indices(x, count, method="greedy", kernel=Quadratic())
    permuted = select_landmark_indices(x[order], count, method="greedy", kernel=Quadratic())
    np.testing.assert_array_equal(order[permuted], direct)


def test_greedy_breaks_ties_by_the_first_row():
    x = np.asarray([[0.0], [1.0], [2.0], [3.0], [4.0]])
    # All tie at first; then the far end; then the middle.
    assert select_landmark_indices(x, 3, method="greedy", kernel=Gaussian(1.0)).tolist() == [0, 4, 2]
    # Also where rounding has split the tie.
    assert select_landmark_indices(x, 2, method="greedy", kernel=Table(np.diag([1.0, 1 + 1e-12, 0.5, 1.0, 1.0]))).tolist() == [0, 1]


def exact_law(matrix: np.ndarray, count: int) -> dict[tuple[int, ...], float]:
    """Probability of each sequence of pivots under the plain algorithm, one pivot after the other."""
    law: dict[tuple[int, ...], float] = {}

    def descend(residual: np.ndarray, sequence: tuple[int, ...], probability: float) -> None:
        if len(sequence) == count:
            law[sequence] = probability
            return
        diagonal = np.clip(np.diagonal(residual), 0, None)
        for i in range(len(matrix)):
            if diagonal[i] > 1e-12:
                column = residual[:, i]
                descend(residual - np.outer(column, column) / diagonal[i], (*sequence, i), probability * diagonal[i] / diagonal.sum())

    descend(matrix, (), 1.0)
    return law


DRAWS = 8000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 5000
"""Enough to expect five of the rarest sequence, and to see draws without rejection."""


def check_law(law: dict[tuple[int, ...], float], draw: Callable[[int], tuple[int, ...]], draws: int) -> None:
    """Chi-square test; the seeds are fixed, so it passes or fails once and for all."""
    assert sum(law.values()) == pytest.approx(1)
    counts = Counter(draw(seed) for seed in range(draws))
    assert set(counts) <= set(law)
    expected = np.asarray(list(law.values())) * draws
    assert expected.min() > 5
    assert chisquare([counts[key] for key in law], expected).pvalue > 1e-3


@pytest.mark.parametrize("proposals", [2, 64])
def test_accelerated_rpcholesky_has_the_law_of_the_plain_one(proposals, monkeypatch):
    # Strong coupling between rows 0, 1 and 2: one of them leaves little of the others, so rejection matters.
    points = np.asarray([0.0, 0.35, 0.6, 1.6])
    matrix = np.exp(-((points[:, None] - points[None, :]) ** 2) / 2) * np.outer([1, 1.5, 1, 0.8], [1, 1.5, 1, 0.8])
    monkeypatch.setattr(_landmark_sampling, "PROPOSALS", proposals)
    rows = Rows(np.arange(4.0)[:, None], xp=np)

    def draw(seed: int) -> tuple[int, ...]:
        state = PivotedCholesky(Table(matrix), rows, func="test")
        random_pivots(state, 3, tol=None, rng=np.random.default_rng(seed), advance=len_of_nothing)
        return tuple(state.pivots)

    law = exact_law(matrix, 3)
    check_law(law, draw, DRAWS)


@pytest.mark.parametrize("proposals", [2, 64])
def test_plus_plus_seeds_have_the_law_of_the_plain_algorithm(proposals, monkeypatch):
    x = np.asarray([[0.0], [1.0], [2.2], [3.8]])
    squares = (x - x.T) ** 2
    law = {}
    for first, second, third in itertools.permutations(range(4), 3):
        after = np.minimum(squares[first], squares[second])
        law[(first, second, third)] = 0.25 * squares[first, second] / squares[first].sum() * after[third] / after.sum()
    monkeypatch.setattr(_landmark_clusters, "PROPOSALS", proposals)
    rows = Rows(x, xp=np)
    check_law(law, lambda seed: tuple(plus_plus_seeds(rows, 3, rng=np.random.default_rng(seed)).tolist()), DRAWS)


def test_weights_of_zero_are_never_drawn():
    weights = np.asarray([0.0, 1.0, 0.0, 3.0, 0.0])

    class Edge:
        """The extreme draws."""

        def random(self, size: int) -> np.ndarray:
            return np.resize([0.0, 0.25, np.nextafter(1.0, 0.0)], size)

    assert draw_proportional(weights, 3, Edge()).tolist() == [1, 3, 3]
    frequencies = np.bincount(draw_proportional(weights, 4000, np.random.default_rng(0)), minlength=5)
    assert frequencies[[0, 2, 4]].tolist() == [0, 0, 0]
    assert frequencies[3] == pytest.approx(3000, abs=5 * np.sqrt(4000 * 0.75 * 0.25))


def test_many_blocks_of_rows_give_the_same_pivots(monkeypatch):
    x = cloud("clustered", 2000, 3, 0)
    expected = {m: chosen(x, 40, m, kernel=Gaussian(0.2), rng=0) for m in METHODS}
    monkeypatch.setattr(_landmark_sampling, "BLOCK_ENTRIES", 1)  # the smallest blocks there are: 256 rows
    for method in METHODS:
        result = chosen(x, 40, method, kernel=Gaussian(0.2), rng=0)
        np.testing.assert_allclose(result, expected[method], rtol=0, atol=0 if method in INDEX_METHODS else 1e-12)


# ----------------------------------------------------------------------------------------------- clusters
@given(shapes, st.integers(1, 8), seeds)
def test_lloyd_never_raises_its_objective_and_ends_in_means(shape, count, seed):
    x = cloud(*shape)
    if shape[0] in ("one-far", "offset"):
        x = x - x[-1]
    start = x[np.random.default_rng(seed).integers(0, len(x), size=min(count, len(x)))]
    landmarks, objective = lloyd(Rows(x, xp=np), start, 6)
    scale = np.sum(x**2) + len(x) * np.max(x**2)
    assert np.all(np.diff(objective) <= 64 * EPS * scale)
    assert objective[0] == pytest.approx(np.sum(np.min(np.sum((x[:, None] - start[None]) ** 2, axis=2), axis=1)), abs=64 * EPS * scale)
    once, _ = lloyd(Rows(x, xp=np), start, 1)
    halves = np.sum((x[:, None] - start[None]) ** 2, axis=2) / 2
    slack = _landmark_clusters.SLACK * EPS * (np.sum(x**2, axis=1)[:, None] + np.sum(start**2, axis=1)[None]) / 2
    labels = np.argmax(halves - slack <= halves.min(axis=1, keepdims=True), axis=1)
    for j in range(len(start)):
        expected = x[labels == j].mean(axis=0) if np.any(labels == j) else start[j]
        np.testing.assert_allclose(once[j], expected, rtol=0, atol=32 * EPS * len(x) * np.max(np.abs(x)))
    assert landmarks.shape == start.shape
    if len(objective) < 6:  # stopped early: nothing moves any more
        np.testing.assert_array_equal(lloyd(Rows(x, xp=np), landmarks, 1)[0], landmarks)


@given(st.integers(10, 40), st.integers(2, 7), seeds)
def test_ties_between_landmarks_are_broken_in_the_same_way_whatever_the_order_of_sums(n, d, seed):
    # On a lattice of tenths most distances tie, and rounding splits the ties according to the order of the features.
    rng = np.random.default_rng(seed)
    x = 0.1 * rng.integers(0, 3, size=(n, d))
    start = np.unique(x, axis=0)[:6]
    straight, _ = lloyd(Rows(x, xp=np), start, 1)
    backwards, _ = lloyd(Rows(x[:, ::-1].copy(), xp=np), start[:, ::-1].copy(), 1)
    np.testing.assert_allclose(backwards[:, ::-1], straight, rtol=0, atol=64 * EPS)


def test_a_landmark_without_rows_stays():
    x = np.asarray([[0.0], [0.2], [10.0]])
    start = np.asarray([[0.0], [100.0], [10.0], [10.0]])
    landmarks, _ = lloyd(Rows(x, xp=np), start, 3)
    np.testing.assert_allclose(landmarks, [[0.1], [100.0], [10.0], [10.0]])


def test_kmeans_finds_separated_clusters():
    rng = np.random.default_rng(0)
    centers = np.asarray([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [50.0, 50.0]])
    x = np.concatenate([center + 0.1 * rng.normal(size=(50, 2)) for center in centers])
    landmarks = select_landmarks(x, 4, method="kmeans", rng=0)
    np.testing.assert_allclose(
        landmarks[np.argsort(landmarks @ [1.0, 2.0])], [x[i : i + 50].mean(axis=0) for i in (0, 50, 100, 150)], atol=1e-12
    )
    few = select_landmarks(x, 4, method="kmeans", rng=0, lloyd_steps=0)
    assert all(np.any(np.all(row == x, axis=1)) for row in few)


def test_lloyd_lowers_the_trace_error():
    x = cloud("normal", 800, 3, 0)
    kernel = Gaussian(1.2)
    before, after = (
        np.mean([relative_trace_error(kernel, x, select_landmarks(x, 30, method=m, kernel=kernel, rng=seed)) for seed in range(5)])
        for m in ("rpcholesky", "rpcholesky+lloyd")
    )
    assert after < 0.9 * before


# ----------------------------------------------------------------------------------------------- leverage
def test_leverage_scores_match_their_definition():
    # With the whole set as sample and weights of one, the estimate is the score itself at the estimated ridge.
    x = cloud("normal", 30, 2, 0)
    kernel = Gaussian(1.0)
    matrix = kernel(x, x)
    everything = np.arange(30)
    scores = _landmark_sampling._leverage_scores(kernel, Rows(x, xp=np), everything, everything, np.ones(30), func="test")
    spectrum = np.sort(np.linalg.eigvalsh(matrix))[::-1]
    head = int(np.ceil(30 / (4 * np.log(30))))
    ridge = spectrum[head:].sum() / head
    exact = np.diagonal(matrix @ np.linalg.inv(matrix + ridge * np.eye(30)))
    np.testing.assert_allclose(scores, exact, rtol=1e-10)


def test_leverage_draws_in_proportion_to_the_scores():
    # Two far clusters of 30 equal rows and 1 single row: 12 landmarks mean a ridge of (0 + 1) / 2, a score of 1 / 1.5 for the
    # single row and 1 / 30.5 for each copy, so a share of 0.25 in the first draw and 0.97 in twelve. Uniformly: 12 / 61.
    x = np.concatenate([np.zeros((30, 1)), [[50.0]], np.full((30, 1), 100.0)])
    rows = Rows(x, xp=np)
    hits = [30 in leverage_rows(Gaussian(1.0), rows, 12, rng=np.random.default_rng(seed), func="test") for seed in range(200)]
    assert np.mean(hits) > 0.85


# --------------------------------------------------------------------------------------------- refinement
def gradient_case(seed: int, n: int = 12, m: int = 4, d: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x[:m] + 0.3 * rng.normal(size=(m, d))


def error_at(x: np.ndarray, landmarks: np.ndarray, kernel: Any) -> float:
    return trace_error_and_gradient(Rows(x, xp=np), landmarks, kernel, float(np.sum(kernel.diagonal(x))), func="test").error


@given(seeds, st.sampled_from([Gaussian(1.0), Gaussian((0.7, 2.0)), Matern(1.0, nu=1.5), Matern(1.0, nu=2.5), Laplacian(1.5)]))
@settings(max_examples=30)
def test_the_gradient_matches_finite_differences(seed, kernel):
    x, landmarks = gradient_case(seed)
    error, gradient = trace_error_and_gradient(Rows(x, xp=np), landmarks, kernel, float(len(x)), func="test")
    assert error / len(x) == pytest.approx(relative_trace_error(kernel, x, landmarks), abs=1e-7)
    step = 1e-5
    direction = np.random.default_rng(seed + 1).normal(size=landmarks.shape)
    direction /= np.linalg.norm(direction)
    if isinstance(kernel, Laplacian):  # kinks: a step must not cross one
        gaps = np.abs(np.concatenate([x, landmarks])[:, None] - landmarks[None])
        if np.min(gaps[gaps > 0]) < 4 * step:
            return
    difference = (error_at(x, landmarks + step * direction, kernel) - error_at(x, landmarks - step * direction, kernel)) / (2 * step)
    # Truncation step^2 times third derivatives (conditioned by W: up to 1e3 or so), rounding eps n cond(W) / step.
    condition = np.linalg.cond(kernel(landmarks, landmarks))
    assert difference == pytest.approx(np.sum(gradient * direction), abs=1e-8 * (1 + condition))


def test_the_gradient_matches_torch():
    torch = pytest.importorskip("torch")
    x, landmarks = gradient_case(3, n=20, m=6, d=3)
    length_scale = 1.3
    points = torch.tensor(landmarks, requires_grad=True)

    def kernel(a: Any, b: Any) -> Any:
        return torch.exp(-torch.sum((a[:, None] - b[None]) ** 2, dim=-1) / (2 * length_scale**2))

    core = kernel(points, points)
    cross = kernel(torch.tensor(x), points)
    shift = _shift() * torch.eye(6, dtype=torch.float64)
    error = len(x) - torch.trace(torch.linalg.solve(core + shift, cross.T @ cross))
    error.backward()
    ours = trace_error_and_gradient(Rows(x, xp=np), landmarks, Gaussian(length_scale), float(len(x)), func="test")
    assert ours.error == pytest.approx(error.item(), rel=1e-9)
    np.testing.assert_allclose(ours.gradient, points.grad.numpy(), rtol=0, atol=1e-8 * np.abs(ours.gradient).max())


def _shift() -> float:
    from softlinalg._landmark_refinement import SHIFT

    return SHIFT


@given(shapes, st.integers(1, 6), st.floats(0.3, 3), seeds, st.sampled_from(["float32", "float64"]))
@settings(max_examples=40)
@example(("duplicated", 30, 2, 0), 6, 1.0, 0, "float64")
def test_refinement_is_never_worse_than_its_start(shape, count, length_scale, seed, dtype):
    x = cloud(*shape).astype(dtype)
    kernel = Gaussian(length_scale)
    start = x[np.random.default_rng(seed).integers(0, len(x), size=count)]  # with repeats
    refined = refine_landmarks(x, start, kernel, max_steps=8)
    assert refined.dtype == x.dtype
    assert refined.shape == start.shape
    errors = [relative_trace_error(kernel, x.astype("float64"), points.astype("float64")) for points in (refined, start)]
    # The objective carries a shift of 1e-10: errors may differ from the exact ones by that times a condition number.
    assert errors[0] <= errors[1] + 1e-6


def test_refinement_lowers_the_error_by_much_and_keeps_its_inputs():
    x = cloud("clustered", 500, 3, 0)
    kernel = Gaussian(0.3)
    start = select_landmarks(x, 15, method="uniform", rng=0)
    copies = x.tobytes(), start.tobytes()
    refined = refine_landmarks(x, start, kernel)
    assert (x.tobytes(), start.tobytes()) == copies
    assert relative_trace_error(kernel, x, refined) < 0.8 * relative_trace_error(kernel, x, start)
    few = refine_landmarks(x, start, kernel, max_steps=2)
    assert relative_trace_error(kernel, x, refined) < relative_trace_error(kernel, x, few) < relative_trace_error(kernel, x, start)


def test_refinement_takes_no_more_steps_than_allowed():
    passes: list[int] = []

    class Counting(Wrapped):
        def vjp(self, x: Any, y: Any, g: Any) -> Any:
            passes.append(x is y)
            return super().vjp(x, y, g)

    x = cloud("normal", 100, 2, 0)
    refine_landmarks(x, x[:5], Counting(Gaussian(1.0)), max_steps=1)
    assert 2 <= sum(passes) <= 4  # the start, the first step, and what its line search tried in between
    refine_landmarks(x, x[:5], Counting(Gaussian(1.0)), max_steps=30)
    assert sum(passes) > 20


def test_refinement_on_a_sample_is_judged_on_all_rows():
    x = cloud("normal", 600, 2, 0)
    kernel = Gaussian(0.7)
    start = select_landmarks(x, 20, rng=0, kernel=kernel)
    refined = refine_landmarks(x, start, kernel, sample=200, rng=0)
    assert relative_trace_error(kernel, x, refined) < relative_trace_error(kernel, x, start)
    # Five rows say nothing about the other 595: landmarks fitted to them are worse, and refused.
    np.testing.assert_array_equal(refine_landmarks(x, start, kernel, sample=5, rng=0), start)
    np.testing.assert_array_equal(
        refine_landmarks(x, start, kernel, max_steps=3, sample=10**6), refine_landmarks(x, start, kernel, max_steps=3)
    )


@pytest.mark.parametrize("wrap", [lambda kernel: kernel, Wrapped], ids=["host", "native"])
def test_refinement_on_every_library(backend, wrap):
    x, start = cloud("normal", 40, 2, 0), cloud("normal", 4, 2, 1)
    expected = refine_landmarks(x, start, wrap(Gaussian(1.0)), max_steps=3)
    given = backend.asarray(x)
    result = refine_landmarks(given, backend.asarray(start), wrap(Gaussian(1.0)), max_steps=3)
    assert type(result) is type(given)
    np.testing.assert_allclose(backend.to_numpy(result), expected, rtol=0, atol=1e-9)


def test_refinement_at_extreme_scales_and_of_a_perfect_start():
    x = cloud("normal", 50, 2, 0)
    start = x[:5].copy()
    expected = refine_landmarks(x, start, Gaussian(1.0), max_steps=5)
    for scale in (2.0**-1000, 2.0**900):
        scaled = refine_landmarks(x * scale, start * scale, Gaussian(scale), max_steps=5)
        np.testing.assert_allclose(scaled / scale, expected, rtol=1e-6)
    np.testing.assert_allclose(refine_landmarks(x, x, Gaussian(1.0), max_steps=2), x, atol=0.1)
    equal = refine_landmarks(x, np.zeros((3, 2)), Gaussian(1.0), max_steps=5)
    assert np.all(np.isfinite(equal))


def test_a_kernel_that_is_not_positive_semidefinite_is_reported():
    class Negative:
        def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
            return np.eye(len(x)) - 1.0 if y is x else np.zeros((len(x), len(y)))

        def diagonal(self, x: np.ndarray) -> np.ndarray:
            return np.ones(len(x))

        def vjp(self, x: Any, y: Any, g: Any) -> Any:
            return np.zeros_like(x), np.zeros_like(y)

    with pytest.raises(NumericalError, match=r"refine_landmarks: k\(landmarks, landmarks\) must be positive semi-definite"):
        refine_landmarks(np.ones((4, 2)), np.ones((3, 2)), Negative())


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
