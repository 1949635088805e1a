"""The Nystrom approximation: laws, dense float64 truth, every backend, storage, refusals. Files: test_nystrom_files.py."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import cg

import softlinalg
from softlinalg import Gaussian, Laplacian, Matern, nystrom
from softlinalg._nystrom import kernel_operator
from softlinalg._nystrom_core import CUT_OFF, triangularize, whiten
from softlinalg.errors import (
    BackendMismatchError,
    DTypeError,
    DuplicateLandmarkWarning,
    InputError,
    NonFiniteError,
    NumericalError,
    ParameterError,
    RangeError,
    ResourceError,
    ShapeError,
)

T = 30.0
"""Factor on every rounding bound: sound implementations stay below half of it."""

KINDS = ("normal", "clustered", "duplicated", "collinear", "one far", "offset")


def points(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if kind == "clustered":
        x = 3 * rng.normal(size=(4, d))[rng.integers(0, 4, n)] + 0.05 * x
    elif kind == "duplicated":
        x = x[rng.integers(0, max(1, n // 3), n)]
    elif kind == "collinear":
        x = x[:, :1] * np.arange(1, d + 1)
    elif kind == "one far":
        x[0] = 1e3
    elif kind == "offset":
        x = x + 100.0
    return x


@dataclass(frozen=True)
class Case:
    """A problem by its structure and one seed."""

    kind: str
    n: int
    d: int
    m: int
    length_scale: float
    dtype: str
    seed: int

    @property
    def x(self) -> np.ndarray:
        return points(self.kind, self.n, self.d, self.seed).astype(self.dtype)

    @property
    def kernel(self) -> Gaussian:
        return Gaussian(self.length_scale)

    @property
    def indices(self) -> np.ndarray:
        """Landmarks whose rows differ."""
        _, first = np.unique(self.x, axis=0, return_index=True)
        rng = np.random.default_rng(self.seed + 1)
        return rng.permutation(first)[: min(self.m, len(first))]


cases = st.builds(
    Case,
    kind=st.sampled_from(KINDS),
    n=st.integers(20, 90),
    d=st.integers(1, 4),
    m=st.integers(1, 25),
    length_scale=st.sampled_from([0.3, 1.0, 3.0, 20.0]),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 10**6),
)


@dataclass(frozen=True)
class Truth:
    """The approximation in dense float64, with the bound on how far rounding may move it."""

    kernel: np.ndarray
    approximation: np.ndarray
    kept: np.ndarray
    bound: float
    """In the spectral norm."""
    edge: float
    """What moving the cut-off by a factor of ten either way changes: eigenvalues near it may fall on either side."""


def truth(x: np.ndarray, kernel: Any, indices: Any, *, rtol: float | None = None) -> Truth:
    wide = x.astype(np.float64)
    c, w = kernel(wide, wide[indices]), kernel(wide[indices], wide[indices])
    values, vectors = np.linalg.eigh((w + w.T) / 2)
    cut = (CUT_OFF[str(x.dtype)] if rtol is None else rtol) * values[-1]
    keep = values > cut
    f = c @ (vectors[:, keep] / np.sqrt(values[keep]))
    near = (values > cut / 10) & (values <= 10 * cut)
    g = c @ (vectors[:, near] / np.sqrt(values[near]))
    # Rounding of size eps in C becomes eps |C| |W^(-1/2)| in F, and twice that times |F| in F F^T. Kernel values of
    # squared distances carry some eps |x|^2 / l^2 instead of one eps; the kernel keeps that below about 10.
    eps = float(np.finfo(x.dtype).eps)
    noise = 10 * eps * np.linalg.norm(c) * math.sqrt(np.sum(1 / values[keep]))
    # Rounding E of W, in float64, moves F F^T by B^T E B with B = W^+ C^T.
    core = 2.2e-16 * values[-1] * np.linalg.norm(f / np.sqrt(values[keep]), 2) ** 2
    bound = T * (2 * np.linalg.norm(f, 2) * noise + noise**2 + eps * np.linalg.norm(f) ** 2 + core)
    return Truth(kernel(wide, wide), f @ f.T, values[keep], bound, float(np.linalg.norm(g, 2)) ** 2)


def spectral(a: np.ndarray) -> float:
    return float(np.linalg.norm(a, 2))


def wide(backend: Any, a: Any) -> np.ndarray:
    return backend.to_numpy(a).astype(np.float64)


# ------------------------------------------------------------------------------------------------ laws
@given(cases)
@example(Case("duplicated", 60, 3, 20, 3.0, "float32", 0))
@example(Case("offset", 60, 1, 20, 20.0, "float32", 1))
def test_it_is_the_truncated_approximation_of_float64(case: Case) -> None:
    expected = truth(case.x, case.kernel, case.indices)
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    event(f"{case.dtype}, rank {'full' if d.rank == len(case.indices) else 'cut'}")
    assert spectral(d.to_dense() - expected.approximation) <= expected.bound + expected.edge


@given(cases)
@example(Case("collinear", 90, 1, 25, 20.0, "float32", 3))
@example(Case("clustered", 90, 2, 25, 3.0, "float64", 4))
def test_it_lies_between_zero_and_the_kernel_matrix(case: Case) -> None:
    expected = truth(case.x, case.kernel, case.indices)
    approximation = nystrom(case.x, case.kernel, landmarks=case.indices).to_dense().astype(np.float64)
    rounding = T * case.n * np.finfo(case.dtype).eps
    assert np.linalg.eigvalsh(approximation)[0] >= -rounding
    assert np.linalg.eigvalsh(expected.kernel - approximation)[0] >= -expected.bound
    assert np.min(np.diag(expected.kernel) - np.diag(approximation)) >= -expected.bound


@given(cases)
def test_the_trace_error_is_exact_for_the_matrix_returned(case: Case) -> None:
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    f = d.features().astype(np.float64)
    left = case.n - float(np.sum(f * f))
    assert d.trace == pytest.approx(case.n, rel=1e-14)
    assert d.trace_error == pytest.approx(max(left, 0.0), abs=1e-13 * case.n)
    assert d.relative_trace_error == d.trace_error / d.trace
    # What rounding did to the features is below the floor that is reported.
    exact = truth(case.x, case.kernel, case.indices)
    edge = case.n * exact.edge
    assert abs(d.trace_error - (case.n - np.trace(exact.approximation))) <= 10 * d.trace_error_floor + edge


@given(cases)
def test_no_approximation_of_this_rank_beats_the_eigenvectors(case: Case) -> None:
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    values = np.linalg.eigvalsh(truth(case.x, case.kernel, case.indices).kernel)[::-1]
    for k, error in enumerate(np.asarray(d.relative_trace_errors, dtype=np.float64), start=1):
        best = np.sum(values[k:]) / case.n
        assert error >= best - d.trace_error_floor / case.n - 10 * np.finfo(case.dtype).eps


@given(cases)
def test_truncation_errors_are_those_of_the_truncations(case: Case) -> None:
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    values, vectors = d.eigh()
    errors = np.asarray(d.relative_trace_errors, dtype=np.float64)
    assert errors.shape == (d.rank,)
    assert errors[-1] == pytest.approx(d.relative_trace_error, rel=float(np.finfo(case.dtype).eps))
    assert np.all(np.diff(errors) <= 0)
    for k in {1, d.rank // 2 + 1, d.rank}:
        leading = (vectors[:, :k] * values[:k]) @ vectors[:, :k].T
        assert errors[k - 1] == pytest.approx(1 - np.trace(leading.astype(np.float64)) / case.n, abs=T * float(np.finfo(case.dtype).eps))


@given(cases)
def test_eigenvectors_are_orthonormal_and_diagonalize_it(case: Case) -> None:
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    values, vectors = (np.asarray(a, dtype=np.float64) for a in d.eigh())
    eps = float(np.finfo(case.dtype).eps)
    assert spectral(vectors.T @ vectors - np.eye(d.rank)) <= T * eps
    dense = d.to_dense().astype(np.float64)
    assert spectral(dense @ vectors - vectors * values) <= T * eps * values[0]
    truth_values = np.linalg.eigvalsh(dense)[::-1][: d.rank]
    np.testing.assert_allclose(values, truth_values, atol=T * eps * values[0])
    np.testing.assert_array_equal(np.asarray(d.eigenvalues, dtype=np.float64), values)


@given(cases, st.sampled_from([1e-8, 1e-4, 1e-1, 10.0]), st.integers(1, 3))
@example(Case("normal", 90, 3, 25, 3.0, "float32", 5), 1e-8, 2)
def test_systems_are_solved_to_rounding_and_their_determinants_known(case: Case, ridge: float, columns: int) -> None:
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    f = d.features().astype(np.longdouble)
    wider = f @ f.T + ridge * np.eye(case.n)
    a = wider.astype(np.float64)
    b = np.random.default_rng(case.seed).normal(size=(case.n, columns)).astype(case.dtype)
    y = d.solve(b, ridge)
    assert y.dtype == b.dtype
    residual = (wider @ y.astype(np.longdouble) - b).astype(np.float64)
    scale = spectral(a) * np.linalg.norm(y, axis=0) + np.linalg.norm(b, axis=0)
    assert np.max(np.linalg.norm(residual, axis=0) / scale) <= 4 * np.finfo(case.dtype).eps  # rounding y gives up to one
    np.testing.assert_array_equal(d.solve(b[:, 0], ridge), d.solve(b[:, :1], ridge)[:, 0])
    values = np.linalg.eigvalsh(a)
    condition = values[-1] / ridge
    assert d.logdet(ridge) == pytest.approx(np.sum(np.log(values)), abs=T * case.n * 2.2e-16 * condition + 1e-10)


@given(cases)
def test_all_points_as_landmarks_give_the_kernel_matrix(case: Case) -> None:
    x = np.unique(case.x, axis=0)
    expected = truth(x, case.kernel, np.arange(len(x)))
    d = nystrom(x, case.kernel, landmarks=np.arange(len(x)))
    cut = CUT_OFF[case.dtype] * float(np.max(expected.kept))
    assert spectral(d.to_dense() - expected.kernel) <= expected.bound + 2 * cut
    assert d.trace_error <= len(x) * 2 * cut + 10 * d.trace_error_floor


@given(cases, st.integers(0, 10**6))
def test_repeated_landmarks_change_nothing(case: Case, seed: int) -> None:
    rng = np.random.default_rng(seed)
    indices = case.indices[: case.n // 2]
    repeated = np.concatenate([indices, rng.choice(indices, size=len(indices))])
    once = nystrom(case.x, case.kernel, landmarks=indices)
    with pytest.warns(DuplicateLandmarkWarning, match="landmarks repeat others"):
        twice = nystrom(case.x, case.kernel, landmarks=repeated)
    assert twice.rank <= len(indices)
    expected = truth(case.x, case.kernel, indices)
    kept = once.rank == twice.rank == len(indices)
    event("all directions kept" if kept else "cut")
    if kept:  # repeating landmarks weighs them, which moves and turns the directions at a cut-off
        assert spectral(twice.to_dense() - once.to_dense()) <= 2 * expected.bound


@given(cases, st.integers(0, 10**6))
def test_the_order_of_landmarks_changes_nothing(case: Case, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(case.indices)
    d, e = nystrom(case.x, case.kernel, landmarks=case.indices), nystrom(case.x, case.kernel, landmarks=shuffled)
    expected = truth(case.x, case.kernel, case.indices)
    assert spectral(d.to_dense() - e.to_dense()) <= 2 * expected.bound + 2 * expected.edge
    np.testing.assert_array_equal(e.landmarks, case.x[shuffled])


@given(cases)
def test_more_landmarks_never_explain_less(case: Case) -> None:
    indices = case.indices
    few, more = indices[: max(1, len(indices) // 2)], indices
    e, d = nystrom(case.x, case.kernel, landmarks=few), nystrom(case.x, case.kernel, landmarks=more)
    event("all directions kept" if d.rank == len(more) else "cut")
    if d.rank == len(more):  # a cut-off may drop directions of the larger set that the smaller one keeps
        assert d.trace_error <= e.trace_error + 10 * (d.trace_error_floor + e.trace_error_floor)
    assert d.rank <= len(more)


class Linear:
    """A user's kernel: nothing but what the protocol asks for."""

    def __call__(self, x: Any, y: Any) -> Any:
        return x @ y.T

    def diagonal(self, x: Any) -> Any:
        return (x * x).sum(-1)


@given(st.integers(-30, 30), st.integers(1, 6), st.integers(6, 30), st.integers(0, 10**6), st.sampled_from(["float32", "float64"]))
def test_a_linear_kernel_scales_with_its_data(exponent: int, d: int, n: int, seed: int, dtype: str) -> None:
    x = np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)
    one = nystrom(x, Linear(), landmarks=np.arange(d))
    scaled = nystrom(x * np.asarray(2.0**exponent, dtype=dtype), Linear(), landmarks=np.arange(d))
    np.testing.assert_array_equal(scaled.to_dense(), one.to_dense() * np.asarray(4.0**exponent, dtype=dtype))
    assert scaled.relative_trace_error == one.relative_trace_error
    # d independent rows span everything: the approximation is exact, and its trace that of the data.
    assert one.trace == pytest.approx(float(np.sum(x.astype(np.float64) ** 2)), rel=1e-6 if dtype == "float32" else 1e-13)
    assert one.rank == d


@given(cases, st.integers(1, 19))
def test_the_features_of_a_row_do_not_depend_on_its_batch(case: Case, count: int) -> None:
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    expected = truth(case.x, case.kernel, case.indices)
    # The same sums in another order: each differs by rounding of its terms |C_ij M_jk|.
    bound = T * np.finfo(case.dtype).eps * math.sqrt(len(case.indices) * float(np.sum(1 / expected.kept)))
    np.testing.assert_allclose(d.features(case.x[:count]), d.features()[:count], atol=bound, rtol=0)


@settings(max_examples=50)
@given(cases, st.integers(1, 40))
def test_chunks_and_storage_change_nothing(case: Case, chunk_size: int) -> None:
    expected = truth(case.x, case.kernel, case.indices)
    whole = nystrom(case.x, case.kernel, landmarks=case.indices)
    pieces = nystrom(case.x, case.kernel, landmarks=case.indices, chunk_size=chunk_size)
    lean = nystrom(case.x, case.kernel, landmarks=case.indices, chunk_size=chunk_size, store_features=False)
    assert pieces.stores_features
    assert not lean.stores_features
    v = np.random.default_rng(case.seed).normal(size=(case.n, 2)).astype(case.dtype)
    np.testing.assert_array_equal(lean @ v, pieces @ v)
    np.testing.assert_array_equal(lean.diagonal(), pieces.diagonal())
    np.testing.assert_array_equal(lean.solve(v, 0.1), pieces.solve(v, 0.1))
    np.testing.assert_array_equal(lean.features(), pieces.features())
    assert lean.trace_error == pieces.trace_error
    assert spectral(whole.to_dense() - pieces.to_dense()) <= 2 * expected.bound


@given(cases)
def test_products_are_those_of_the_dense_matrix(case: Case) -> None:
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    dense = d.to_dense().astype(np.float64)
    rng = np.random.default_rng(case.seed)
    v = rng.normal(size=(case.n, 3)).astype(case.dtype)
    tolerance = T * np.finfo(case.dtype).eps * case.n * np.linalg.norm(v)
    np.testing.assert_allclose(d @ v, dense @ v, atol=tolerance)
    np.testing.assert_allclose(v.T @ d, v.T.astype(np.float64) @ dense, atol=tolerance)
    np.testing.assert_allclose(v[:, 0] @ d, dense @ v[:, 0], atol=tolerance)
    np.testing.assert_allclose(d.T @ v[:, 0], dense @ v[:, 0], atol=tolerance)
    np.testing.assert_allclose(d.diagonal(), np.diag(dense), atol=tolerance)
    np.testing.assert_allclose(
        d.cross_matmul(case.x[:7], v), (dense @ v)[:7], atol=tolerance + 4 * spectral(v) * truth(case.x, case.kernel, case.indices).bound
    )
    np.testing.assert_allclose(d.cross_matmul(case.x[:7], v[:, 0]), d.cross_matmul(case.x[:7], v)[:, 0], atol=tolerance)


@given(cases, st.sampled_from([1e-3, 1.0]))
def test_the_preconditioner_is_the_formula_of_its_paper(case: Case, ridge: float) -> None:
    d = nystrom(case.x.astype(np.float64), case.kernel, landmarks=case.indices)
    values, vectors = d.eigh()
    keep = values > 1e-12 * values[0]  # directions below are rounding
    values, vectors = values[keep], vectors[:, keep]
    weights = (values[-1] + ridge) / (values + ridge)
    expected = (vectors * weights) @ vectors.T + np.eye(case.n) - vectors @ vectors.T
    found = d.preconditioner(ridge) @ np.eye(case.n)
    # Where an eigenvalue lies at the limit between direction and rounding, its weight is that of the smallest: one.
    np.testing.assert_allclose(found, expected, atol=1e-4 if d.rank > len(values) else 1e-7)
    assert np.linalg.eigvalsh((found + found.T) / 2)[0] > 0


@given(cases, st.sampled_from([0.5, 1e-1, 1e-2, 1e-4]))
@example(Case("normal", 90, 2, 1, 1.0, "float32", 7), 1e-4)
def test_a_tolerance_is_met_by_the_smallest_rank(case: Case, tol: float) -> None:
    d = nystrom(case.x, case.kernel, tol=tol, rng=case.seed)
    assert d.relative_trace_error <= tol
    left = 1 - np.sum(d.features().astype(np.float64) ** 2) / case.n
    assert left <= tol * (1 + 1e-12)
    # In float32 the last digits of the errors differ between the pass that chose the rank and the one that made the features.
    assert d.rank == 1 or d.relative_trace_errors[-2] > tol * (1 - 1e-5) - 2 * d.trace_error_floor / case.n
    assert d.landmarks.shape[0] <= case.n


# ------------------------------------------------------------------------------------------------ the core
@given(st.integers(1, 20), st.integers(1, 20), st.floats(0, 6), st.integers(0, 10**6))
def test_triangular_factors_are_accurate_in_every_column(m: int, r: int, decades: float, seed: int) -> None:
    r = min(m, r)
    a = np.random.default_rng(seed).normal(size=(m, r)) * np.logspace(decades, 0, r)
    triangle, turn = triangularize(a, xp=np)
    assert np.all(np.tril(triangle[m - r :], -1) == 0)
    assert np.all(np.diag(triangle[m - r :]) >= 0)
    assert spectral(turn @ turn.T - np.eye(r)) <= 1e-13
    scale = np.linalg.norm(a, axis=0)
    assert np.max(np.abs(triangle @ turn - a) / scale) <= 1e-13 * math.sqrt(m)


def test_the_cut_off_is_relative_to_the_largest_eigenvalue() -> None:
    for scale in (1e-12, 1.0, 1e12):
        w = scale * np.diag([1.0, 1e-3, 1e-7, 1e-9])
        assert whiten(w, rtol=1e-8, noise=0.0, func="f", xp=np).map.shape == (4, 3)
        assert whiten(w, rtol=1e-2, noise=0.0, func="f", xp=np).map.shape == (4, 1)
    # Noise of 1e-4 in each entry hides eigenvalues up to 2e-4.
    assert whiten(np.diag([1.0, 1e-3, 1e-7, 1e-9]), rtol=1e-8, noise=1e-4, func="f", xp=np).map.shape == (4, 2)


def test_the_cut_off_can_be_chosen() -> None:
    x = points("normal", 200, 2, 0)
    ranks = [nystrom(x, Gaussian(3.0), landmarks=np.arange(60), rtol=rtol).rank for rtol in (1e-12, 1e-6, 1e-2)]
    assert ranks[0] > ranks[1] > ranks[2] >= 1


def test_float32_is_measured_again_in_float64_where_rounding_could_be_the_error() -> None:
    x = points("normal", 300, 1, 0).astype(np.float32)
    kernel = Gaussian(3.0)
    d = nystrom(x, kernel, landmarks=np.arange(60), rtol=1e-13)
    exact = nystrom(x.astype(np.float64), kernel, landmarks=np.arange(60), rtol=1e-13)
    assert d._map.in_float64
    assert d.trace_error_floor <= 2e-7 * d.trace
    assert spectral(d.to_dense() - exact.to_dense()) <= 4 * np.finfo(np.float32).eps * 300
    rough = nystrom(x, Gaussian(0.3), landmarks=np.arange(20))
    assert not rough._map.in_float64  # the error is large: float32 tells it well enough
    np.testing.assert_allclose(d.features(x[:5]), d.features()[:5], atol=1e-6)


def test_repeated_rows_in_float32_cost_no_accuracy(shared_data: Path) -> None:
    table = np.loadtxt(shared_data / "protein.csv.gz", delimiter=",")[:, :-1]
    table = (table - table.mean(0)) / table.std(0)
    rng = np.random.default_rng(0)
    x = table[rng.permutation(len(table))[:2000]].astype(np.float32)
    kernel = Gaussian(softlinalg.median_length_scale(x, rng=0) / 2)
    rows = rng.permutation(2000)[:150]
    dense = kernel(x.astype(np.float64))
    c, w = dense[:, rows], dense[np.ix_(rows, rows)]
    best = np.linalg.norm(dense - c @ np.linalg.solve(w, c.T)) / np.linalg.norm(dense)
    assert 1e-2 < best < 4e-2
    with pytest.warns(DuplicateLandmarkWarning, match="150 of 300"):
        d = nystrom(x, kernel, landmarks=np.concatenate([rows, rows]))
    error = np.linalg.norm(dense - d.to_dense()) / np.linalg.norm(dense)
    assert error <= 1.05 * best
    assert d.rank <= 150


@dataclass
class Scaled:
    """A Gaussian kernel of unequal variances, with a diagonal that can be made to lie."""

    lie: float = 1.0

    def weight(self, x: Any) -> Any:
        return 1 + x[:, 0] ** 2

    def __call__(self, x: Any, y: Any) -> Any:
        return self.weight(x)[:, None] * Gaussian(1.0)(x, y) * self.weight(y)[None, :]

    def diagonal(self, x: Any) -> Any:
        return self.lie * self.weight(x) ** 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_diagonals_that_are_not_one_enter_the_trace(dtype: str) -> None:
    x = points("normal", 150, 2, 3).astype(dtype)
    d = nystrom(x, Scaled(), landmarks=np.arange(40))
    dense = Scaled()(x.astype(np.float64), x.astype(np.float64))
    assert d.trace == pytest.approx(np.trace(dense), rel=1e-6)
    assert d.trace_error == pytest.approx(np.trace(dense - d.to_dense()), abs=1e-5 * np.trace(dense))
    assert np.linalg.eigvalsh(dense - d.to_dense())[0] >= -1e-5 * spectral(dense)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lie", [0.9, math.nan])
def test_a_row_explained_beyond_its_kernel_value_is_refused(dtype: str, lie: float) -> None:
    x = points("normal", 150, 2, 3).astype(dtype)
    error = NumericalError if lie == lie else NonFiniteError
    with pytest.raises(error, match=r"nystrom: kernel must (bound its approximation; got \d+ rows|give finite values)"):
        nystrom(x, Scaled(lie), landmarks=np.arange(100))


class Indefinite(Linear):
    """Minus the distance: no positive semi-definite kernel."""

    def __call__(self, x: Any, y: Any) -> Any:
        return 1 - np.abs(x[:, None, :] - y[None, :, :]).sum(-1)


class Poisoned(Linear):
    """NaN where the first coordinate is large."""

    def __call__(self, x: Any, y: Any) -> Any:
        return np.where(x[:, :1] > 2, np.nan, x @ y.T)


class Wrong(Linear):
    """Shapes that do not fit."""

    def __init__(self, part: str) -> None:
        self.part = part

    def __call__(self, x: Any, y: Any) -> Any:
        return (x @ y.T)[:, :-1] if self.part == "matrix" else x @ y.T

    def diagonal(self, x: Any) -> Any:
        return x


def test_kernels_that_cannot_be_approximated_are_refused() -> None:
    x = points("normal", 80, 2, 0)
    x[3, 0] = 3.0
    with pytest.raises(NumericalError, match="kernel must be positive semi-definite; got an eigenvalue of -"):
        nystrom(x, Indefinite(), landmarks=np.arange(30))
    with pytest.raises(NonFiniteError, match="kernel must give finite values; got NaN or infinity among the landmarks"):
        nystrom(x, Poisoned(), landmarks=np.arange(30))
    with pytest.raises((NumericalError, NonFiniteError), match="kernel must"):
        nystrom(x, Poisoned(), landmarks=np.arange(10, 12))
    with pytest.raises(ShapeError, match=r"kernel\(x, y\) must have shape \(30, 30\)"):
        nystrom(x, Wrong("matrix"), landmarks=np.arange(30))
    with pytest.raises(ShapeError, match=r"kernel.diagonal\(x\) must have shape \(30,\); got \(30, 2\)"):
        nystrom(x, Wrong("diagonal"), landmarks=np.arange(30))


class Nothing(Linear):
    """The zero kernel."""

    def __call__(self, x: Any, y: Any) -> Any:
        return 0 * (x @ y.T)

    def diagonal(self, x: Any) -> Any:
        return 0 * x[:, 0]


def test_the_zero_kernel_has_rank_zero() -> None:
    x = points("normal", 10, 2, 0)
    d = nystrom(x, Nothing(), landmarks=np.arange(4))
    assert (d.rank, d.trace_error, d.relative_trace_error) == (0, 0.0, 0.0)
    np.testing.assert_array_equal(d @ np.ones(10), np.zeros(10))
    np.testing.assert_array_equal(d.diagonal(), np.zeros(10))
    np.testing.assert_array_equal(d.solve(np.ones(10), 0.5), np.full(10, 2.0))
    np.testing.assert_array_equal(d.preconditioner(0.5) @ np.ones(10), np.ones(10))
    assert d.logdet(0.5) == pytest.approx(10 * math.log(0.5))
    assert d.features(x[:3]).shape == (3, 0)
    assert d.relative_trace_errors.shape == d.eigenvalues.shape == (0,)
    with pytest.raises(InputError, match="eigh: the approximation must not be zero; got rank 0"):
        d.eigh()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_points_and_single_points_are_exact(dtype: str) -> None:
    x = np.full((30, 2), 1.7, dtype=dtype)
    with pytest.warns(DuplicateLandmarkWarning):
        d = nystrom(x, Gaussian(1.0), rank=5, rng=0)
    assert d.rank == 1
    np.testing.assert_allclose(d.to_dense(), np.ones((30, 30)), atol=4 * np.finfo(dtype).eps)
    one = nystrom(x[:1], Gaussian(1.0), rank=1)
    np.testing.assert_allclose(one.to_dense(), [[1.0]], atol=4 * np.finfo(dtype).eps)
    assert nystrom(x, Gaussian(1.0), tol=1e-3, rng=0).rank == 1


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_kernel_values_far_from_one_are_fine(scale: float) -> None:
    x = points("normal", 50, 3, 0)
    d, e = nystrom(x, Linear(), landmarks=np.arange(3)), nystrom(x * scale, Linear(), landmarks=np.arange(3))
    np.testing.assert_allclose(e.to_dense() / scale / scale, d.to_dense(), rtol=1e-10, atol=1e-12)
    values, vectors = e.eigh()
    assert np.all(np.isfinite(values))
    assert 0 < e.trace_error_floor < 1e-12 * e.trace
    np.testing.assert_allclose(e.preconditioner(scale * scale) @ x[:, 0], d.preconditioner(1.0) @ x[:, 0], rtol=1e-9, atol=1e-12)
    assert spectral(vectors.T @ vectors - np.eye(3)) <= 1e-13


@pytest.mark.parametrize(
    "kernel", [Laplacian(1.5), Matern(1.5, nu=0.5), Matern(1.5, nu=2.5), Gaussian((0.5, 1.0, 2.0)), Gaussian("median")]
)
def test_every_kernel_serves(kernel: Any) -> None:
    x = points("normal", 200, 3, 0).astype(np.float32)
    d = nystrom(x, kernel, rank=40, rng=0)
    dense = d.kernel(x.astype(np.float64))
    assert d.trace_error == pytest.approx(np.trace(dense - d.to_dense()), abs=1e-4)
    assert np.linalg.eigvalsh(dense - d.to_dense())[0] >= -1e-5 * spectral(dense)


# ------------------------------------------------------------------------------------------------ backends
def blob(n: int = 120, d: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_library_gives_the_same_approximation_and_keeps_its_input(backend: Any, dtype: str) -> None:
    host = blob().astype(dtype)
    x = backend.asarray(host)
    kernel, indices = Gaussian(1.5), np.arange(25)
    d = nystrom(x, kernel, landmarks=indices)
    expected = truth(host, kernel, indices)
    for values in (d.to_dense(), d.features(), d.landmarks, d.eigenvalues, d.diagonal()):
        assert type(values) is type(x)
        assert values.dtype == x.dtype
    assert spectral(wide(backend, d.to_dense()) - expected.approximation) <= expected.bound
    f = wide(backend, d.features())
    reference = nystrom(host, kernel, landmarks=indices)
    scale = math.sqrt(float(np.sum(1 / expected.kept)))
    np.testing.assert_allclose(f, reference.features(), atol=T * np.finfo(dtype).eps * scale * 5)
    assert d.trace_error == pytest.approx(120 - np.sum(f * f), abs=1e-10)
    eps = float(np.finfo(dtype).eps)

    v = np.random.default_rng(1).normal(size=(120, 2)).astype(dtype)
    product = d @ backend.asarray(v)
    assert type(product) is type(x)
    np.testing.assert_allclose(wide(backend, product), f @ (f.T @ v), atol=T * eps * 120)
    a = f @ f.T + 0.01 * np.eye(120)
    y = wide(backend, d.solve(backend.asarray(v), 0.01))
    assert np.linalg.norm(a @ y - v) <= 4 * eps * (spectral(a) * np.linalg.norm(y) + np.linalg.norm(v))
    assert d.logdet(0.01) == pytest.approx(np.linalg.slogdet(a)[1], rel=1e-8)
    values, vectors = (wide(backend, part) for part in d.eigh(7))
    assert vectors.shape == (120, 7)
    assert spectral(vectors.T @ vectors - np.eye(7)) <= T * eps
    assert spectral(f @ (f.T @ vectors) - vectors * values) <= T * eps * values[0]
    np.testing.assert_allclose(d.as_linear_operator() @ v, f @ (f.T @ v), atol=T * eps * 120)
    lean = nystrom(x, kernel, landmarks=indices, store_features=False)
    np.testing.assert_array_equal(backend.to_numpy(lean @ backend.asarray(v)), backend.to_numpy(product))
    np.testing.assert_array_equal(backend.to_numpy(x), host)
    np.testing.assert_array_equal(backend.to_numpy(d.landmarks), host[indices])


def test_every_library_chooses_the_same_landmarks_and_ranks(backend: Any) -> None:
    host = blob()
    x = backend.asarray(host)
    d, e = nystrom(x, Gaussian("median"), rank=20, rng=3), nystrom(host, Gaussian("median"), rank=20, rng=3)
    np.testing.assert_allclose(backend.to_numpy(d.landmarks), e.landmarks, rtol=1e-12)
    assert d.kernel == e.kernel
    assert d.trace_error == pytest.approx(e.trace_error, rel=1e-8)
    d, e = nystrom(x, Gaussian(2.0), tol=1e-2, rng=3), nystrom(host, Gaussian(2.0), tol=1e-2, rng=3)
    assert (d.rank, d.landmarks.shape) == (e.rank, e.landmarks.shape)
    np.testing.assert_allclose(backend.to_numpy(d.relative_trace_errors), e.relative_trace_errors, rtol=1e-6)


def test_jax_without_float64_is_as_accurate_as_float32_elsewhere() -> None:
    jax = pytest.importorskip("jax")
    host = blob().astype(np.float32)
    with jax.enable_x64(False):
        x = jax.numpy.asarray(host)
        d = nystrom(x, Gaussian(1.5), landmarks=np.arange(25))
        expected = truth(host, Gaussian(1.5), np.arange(25))
        assert d.features().dtype == x.dtype
        assert spectral(np.asarray(d.to_dense()) - expected.approximation) <= expected.bound
        f = np.asarray(d.features()).astype(np.float64)
        assert d.trace_error == pytest.approx(120 - np.sum(f * f), abs=1e-10)
        v = np.random.default_rng(1).normal(size=(120, 2)).astype(np.float32)
        a = f @ f.T + 1e-4 * np.eye(120)
        y = np.asarray(d.solve(jax.numpy.asarray(v), 1e-4)).astype(np.float64)
        assert np.linalg.norm(a @ y - v) <= 4 * 1.2e-7 * (spectral(a) * np.linalg.norm(y) + np.linalg.norm(v))
        vectors = np.asarray(d.eigh()[1]).astype(np.float64)
        assert spectral(vectors.T @ vectors - np.eye(d.rank)) <= T * 1.2e-7
        smooth = nystrom(x, Gaussian(30.0), landmarks=np.arange(25))  # far more landmarks than float32 can tell apart
        dense = Gaussian(30.0)(host.astype(np.float64))
        assert np.linalg.eigvalsh(dense - np.asarray(smooth.to_dense()))[0] >= -1e-5 * 120
        assert np.trace(dense - np.asarray(smooth.to_dense())) <= 1e-3


def test_half_precision_is_computed_in_float32() -> None:
    torch = pytest.importorskip("torch")
    host = blob()
    for x in (host.astype(np.float16), torch.tensor(host, dtype=torch.bfloat16)):
        d = nystrom(x, Gaussian(1.5), landmarks=np.arange(25))
        wide_x = np.asarray(x.float().numpy() if hasattr(x, "float") else x, dtype=np.float32)
        expected = nystrom(wide_x, Gaussian(1.5), landmarks=np.arange(25))
        assert d.dtype == x.dtype
        assert d.trace_error == pytest.approx(expected.trace_error, rel=1e-4)
        for values in (d.features(), d @ x[:, 0], d.solve(x[:, 0], 0.1), d.eigh(3)[1], d.features(x[:3]), d.diagonal()):
            assert values.dtype == x.dtype
        dense = d.to_dense()
        dense = np.asarray(dense.float().numpy() if hasattr(dense, "float") else dense, dtype=np.float32)
        np.testing.assert_allclose(dense, expected.to_dense(), atol=2.0**-7)


def test_any_layout_of_the_data_gives_the_same_values() -> None:
    host = blob()
    expected = nystrom(host, Gaussian(1.5), landmarks=np.arange(25)).to_dense()
    wide_rows = np.zeros((240, 6))
    wide_rows[::2, ::2] = host
    layouts = [np.asfortranarray(host), host[::-1][::-1], wide_rows[::2, ::2], host.astype(">f8"), host.tolist()]
    for x in layouts:
        np.testing.assert_allclose(nystrom(x, Gaussian(1.5), landmarks=np.arange(25)).to_dense(), expected, atol=1e-12)
    whole = np.arange(40).reshape(20, 2)
    assert nystrom(whole, Gaussian(5.0), rank=4, rng=0).dtype == np.float64


def test_mixed_types_promote_and_mixed_libraries_are_refused() -> None:
    torch = pytest.importorskip("torch")
    x = blob().astype(np.float32)
    d = nystrom(x, Gaussian(1.5), landmarks=np.arange(25))
    assert (d @ np.ones(120)).dtype == np.float64
    assert (d @ np.ones(120, dtype=np.float32)).dtype == np.float32
    with pytest.raises(BackendMismatchError, match="all arrays must come from one library"):
        d @ torch.ones(120)


def test_traced_data_are_refused() -> None:
    jax = pytest.importorskip("jax")
    with pytest.raises(DTypeError, match="nystrom: x must hold numbers; got a traced array"):
        jax.jit(lambda x: nystrom(x, Gaussian(1.0), rank=2).features())(jax.numpy.ones((4, 2)))


# ------------------------------------------------------------------------------------------------ size and storage
def test_features_of_new_rows_take_little_more_memory_than_their_result() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 8)).astype(np.float32)
    d = nystrom(x[:1000], Gaussian(2.0), landmarks=np.arange(100))
    d.features(x)
    tracemalloc.start()
    f = d.features(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1.1 * f.nbytes + 2**19


def test_the_pass_over_all_rows_takes_little_more_memory_than_the_features() -> None:
    x = np.random.default_rng(0).normal(size=(40_000, 4)).astype(np.float32)
    run = {"landmarks": np.arange(128), "check_finite": False}
    for store, budget in ((True, 1.1 * 40_000 * 128 * 4), (False, 0.0)):
        tracemalloc.start()
        d = nystrom(x, Gaussian(2.0), store_features=store, **run)
        peak = tracemalloc.get_traced_memory()[1]
        v = d @ x[:, 0]
        product_peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # Besides: a slab of 4 MiB in float64 and its square, a block of kernel values, and m x m arrays.
        assert peak <= budget + 3 * 2**22 + 2**19 + 30 * 128 * 128 * 8
        assert product_peak <= budget + 3 * 2**22 + 2**19 + 30 * 128 * 128 * 8 + 3 * v.nbytes


def test_features_are_kept_up_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    x = blob()
    assert nystrom(x, Gaussian(1.0), rank=10, rng=0).stores_features
    monkeypatch.setattr("softlinalg._nystrom_fit.FEATURE_BUDGET", 120 * 10 * 8 - 1)
    assert not nystrom(x, Gaussian(1.0), rank=10, rng=0).stores_features
    assert nystrom(x, Gaussian(1.0), rank=10, rng=0, store_features=True).stores_features


def test_a_memory_map_is_read_in_blocks(tmp_path: Path) -> None:
    n, d = 500_000, 20
    path = tmp_path / "x.npy"
    np.save(path, np.random.default_rng(0).normal(size=(n, d)).astype(np.float32))
    x = np.load(path, mmap_mode="r")
    tracemalloc.start()
    lean = nystrom(x, Gaussian(5.0), landmarks=np.arange(0, n, n // 16)[:16], store_features=False)
    lean.diagonal()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 2**24 < x.nbytes / 2  # four slabs
    assert 0 < lean.relative_trace_error < 1


def test_a_dense_matrix_beyond_the_budget_is_refused_before_it_is_made() -> None:
    d = nystrom(blob(), Gaussian(1.0), rank=5, rng=0)
    with pytest.raises(ResourceError, match=r"to_dense: the dense matrix must fit in 0.0001 GB; got a need of 0.000115 GB") as caught:
        d.to_dense(memory_budget=100_000)
    assert (caught.value.required_bytes, caught.value.budget_bytes) == (120 * 120 * 8, 100_000)
    assert isinstance(caught.value, MemoryError)
    assert d.to_dense(memory_budget=120 * 120 * 8).shape == (120, 120)


def test_too_little_memory_for_the_features_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("softlinalg._arrays.empty_like_shape", refuse)
    with pytest.raises(ResourceError, match="nystrom: the result must fit in memory; got a need of"):
        nystrom(blob(), Linear(), landmarks=np.arange(3), store_features=True)


def test_progress_shows_rows_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    nystrom(blob(), Gaussian(1.0), landmarks=np.arange(10), progress=True)
    shown = capsys.readouterr().err
    assert "rank 10" in shown
    assert "rows/s" in shown
    nystrom(blob(), Gaussian(1.0), landmarks=np.arange(10))
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------ choices
def test_the_same_seed_gives_the_same_result() -> None:
    x = blob(300)
    a, b = nystrom(x, Gaussian(1.0), rank=20, rng=5), nystrom(x, Gaussian(1.0), rank=20, rng=np.random.default_rng(5))
    np.testing.assert_array_equal(a.features(), b.features())
    rng = np.random.default_rng(5)
    first, second = nystrom(x, Gaussian(1.0), rank=20, rng=rng), nystrom(x, Gaussian(1.0), rank=20, rng=rng)
    assert not np.array_equal(first.landmarks, second.landmarks)  # a generator is advanced
    grown = nystrom(x, Gaussian(1.0), tol=1e-2, rng=5)
    again = nystrom(x, Gaussian(1.0), rank=len(grown.landmarks), rng=5)
    np.testing.assert_array_equal(grown.landmarks, again.landmarks)
    rng = np.random.default_rng(5)
    nystrom(x, Gaussian(1.0), tol=1e-2, rng=rng)
    assert rng.bit_generator.state != np.random.default_rng(5).bit_generator.state


@pytest.mark.parametrize("method", ["rpcholesky+lloyd", "rpcholesky", "greedy", "leverage", "uniform", "kmeans"])
def test_every_method_of_choosing_landmarks_serves(method: str) -> None:
    x = blob(300)
    d = nystrom(x, Gaussian(1.5), rank=30, landmarks=method, rng=0)
    np.testing.assert_array_equal(d.landmarks, softlinalg.select_landmarks(x, 30, method=method, kernel=Gaussian(1.5), rng=0))
    e = nystrom(x, Gaussian(1.5), tol=1e-2, landmarks=method, rng=0)
    assert e.relative_trace_error <= 1e-2
    assert e.rank <= len(e.landmarks)


def test_a_tolerance_is_checked_on_all_rows_whatever_the_sample_says(monkeypatch: pytest.MonkeyPatch) -> None:
    x = blob(5000, 2)
    d = nystrom(x, Gaussian(1.0), tol=1e-3, landmarks="uniform", rng=0)
    x[:100] = 0.0
    monkeypatch.setattr("softlinalg._nystrom_fit._sampled_rows", lambda problem: problem.x[:100])
    e = nystrom(x, Gaussian(1.0), tol=1e-3, landmarks="uniform", rng=0, store_features=False)
    for found in (d, e):
        left = 1 - np.sum(found.diagonal()) / len(x)
        assert left == pytest.approx(found.relative_trace_error, rel=1e-9)
        assert left <= 1e-3
        assert found.relative_trace_errors[-2] > 1e-3


def test_landmarks_can_be_points_or_rows() -> None:
    x = blob()
    by_rows = nystrom(x, Gaussian(1.0), landmarks=[5, 3, 8])
    by_points = nystrom(x, Gaussian(1.0), landmarks=x[[5, 3, 8]], rank=3)
    np.testing.assert_array_equal(by_rows.to_dense(), by_points.to_dense())
    mine = x[:6] * 0.5
    d = nystrom(x, Gaussian(1.0), landmarks=mine, tol=0.9)
    before = d.to_dense()
    mine[:] = 0
    np.testing.assert_array_equal(d.features(x), d.features())
    np.testing.assert_array_equal(d.to_dense(), before)
    assert d.rank <= 6


def test_the_ridge_of_the_call_is_the_default() -> None:
    d = nystrom(blob(), Gaussian(1.0), rank=10, ridge=0.3, rng=0)
    b = np.ones(120)
    np.testing.assert_array_equal(d.solve(b), d.solve(b, 0.3))
    assert d.logdet() == d.logdet(0.3) != d.logdet(0.2)
    np.testing.assert_array_equal(d.preconditioner() @ b, d.preconditioner(0.3) @ b)
    assert "rank=10" in repr(d)
    assert (d.shape, d.ndim, d.T) == ((120, 120), 2, d)


# ------------------------------------------------------------------------------------------------ conjugate gradients
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_preconditioner_makes_conjugate_gradients_quick(dtype: str) -> None:
    x = blob(800, 2).astype(dtype)
    ridge, kernel = 1e-3, Gaussian(1.0)
    exact = kernel_operator(kernel, x, ridge)
    dense = kernel(x.astype(np.float64)) + ridge * np.eye(800)
    b = np.random.default_rng(0).normal(size=800).astype(dtype)
    np.testing.assert_allclose(exact @ b, dense @ b, atol=1e-3 if dtype == "float32" else 1e-10)
    d = nystrom(x, kernel, rank=150, rng=0)
    preconditioner = d.preconditioner(ridge)
    steps = {"plain": 0, "preconditioned": 0}

    def run(name: str, m: Any) -> np.ndarray:
        def count(_: Any) -> None:
            steps[name] += 1

        y, _ = cg(exact, b, rtol=1e-4, maxiter=400, M=m, callback=count)
        return y

    run("plain", None)
    y = run("preconditioned", preconditioner)
    # In float32 no residual is below the rounding of the product, eps |K| |y|.
    attainable = float(np.finfo(dtype).eps) * spectral(dense) * np.linalg.norm(y)
    assert np.linalg.norm(dense @ y - b) <= 2e-4 * np.linalg.norm(b) + attainable
    assert steps["preconditioned"] <= 15
    assert steps["plain"] >= 10 * steps["preconditioned"]
    # The bound of Frangella, Tropp & Udell on the condition number; the eigenvalues of P^-1 A are those of P^-1/2 A P^-1/2.
    if dtype == "float64":
        values = np.linalg.eigvals((preconditioner @ np.eye(800)) @ dense).real
        smallest = np.min(np.asarray(d.eigenvalues))
        error = spectral(dense - ridge * np.eye(800) - d.to_dense())
        assert values.max() / values.min() <= (ridge + smallest + error) / ridge * (1 + 1e-6)


def test_operators_take_vectors_columns_and_matrices(backend: Any) -> None:
    host = blob()
    x = backend.asarray(host)
    d = nystrom(x, Gaussian(1.5), landmarks=np.arange(25), ridge=0.1)
    v = np.random.default_rng(0).normal(size=(120, 2))
    dense = wide(backend, d.to_dense())
    kernel = Gaussian(1.5)(host)
    for operator, matrix in ((d.as_linear_operator(), dense), (kernel_operator(Gaussian(1.5), x, 0.1), kernel + 0.1 * np.eye(120))):
        assert operator.dtype == np.float64
        for block in (v[:, 0], v[:, :1], v):
            np.testing.assert_allclose(operator @ block, matrix @ block, atol=1e-12)
        np.testing.assert_allclose(operator.rmatvec(v[:, 0]), matrix @ v[:, 0], atol=1e-12)
    preconditioner = d.preconditioner()
    np.testing.assert_allclose(preconditioner @ v[:, 1], (preconditioner @ v)[:, 1], atol=1e-13)


# ------------------------------------------------------------------------------------------------ refusals
X = blob(40, 2)
GAUSSIAN = Gaussian(1.0)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({}, ParameterError, "rank or tol must be given, and not both; got neither"),
        ({"rank": 3, "tol": 0.1}, ParameterError, "rank or tol must be given, and not both; got both"),
        ({"rank": 3, "tol": 0.1, "landmarks": [1, 2, 3]}, ParameterError, "not both; got both"),
        ({"rank": 41}, ParameterError, "rank must be a whole number from 1 to 40; got 41"),
        ({"rank": 0}, ParameterError, "rank must be a whole number from 1 to 40; got 0"),
        ({"rank": 2.5}, ParameterError, "rank must be a whole number from 1 to 40; got 2.5"),
        ({"rank": True}, ParameterError, "rank must be a whole number from 1 to 40; got True"),
        ({"tol": 0.0}, ParameterError, "tol must be a finite number > 0"),
        ({"tol": 2.0}, ParameterError, "tol must be a finite number > 0 and <= 1"),
        ({"tol": 1e-17}, ParameterError, "tol must be above the rounding floor, 2.2e-16 at least for float64 data; got 1e-17"),
        ({"rank": 3, "rtol": 0.0}, ParameterError, "rtol must be a finite number > 0 and <= 0.5"),
        ({"rank": 3, "ridge": -1.0}, ParameterError, "ridge must be a finite number > 0"),
        ({"rank": 3, "chunk_size": 0}, ParameterError, "chunk_size must be a whole number >= 1; got 0"),
        ({"rank": 3, "chunk_size": 1.5}, ParameterError, "chunk_size must be a whole number >= 1; got 1.5"),
        ({"rank": 3, "store_features": "yes"}, ParameterError, "store_features must be True, False or \"auto\"; got 'yes'"),
        ({"rank": 3, "rng": -1}, ParameterError, "rng must be None, a non-negative int"),
        ({"rank": 3, "landmarks": "best"}, ParameterError, "landmarks must be an array or one of rpcholesky"),
        ({"landmarks": [0, 40]}, ParameterError, r"must be row numbers from 0 to 39; got values from 0 to 40"),
        ({"landmarks": [-1, 2]}, ParameterError, r"must be row numbers from 0 to 39; got values from -1 to 2"),
        ({"landmarks": [0.0, 1.0]}, ParameterError, r"must be row numbers from 0 to 39; got dtype float64"),
        ({"landmarks": [1, 2], "rank": 3}, ParameterError, "as many as rank, at most n; got 2 beside rank=3"),
        ({"landmarks": np.zeros((41, 2))}, ParameterError, "as many as rank, at most n; got 41 for 40 rows"),
        ({"landmarks": np.zeros((3, 3))}, ShapeError, r"landmarks must be points \(m, 2\) or row numbers \(m,\), m >= 1; got \(3, 3\)"),
        ({"landmarks": []}, ShapeError, r"landmarks must be points \(m, 2\) or row numbers"),
        ({"landmarks": 3}, ShapeError, r"landmarks must be points \(m, 2\) or row numbers"),
        ({"landmarks": np.full((2, 2), np.nan)}, NonFiniteError, "landmarks must be finite; got 4 non-finite entries"),
        ({"landmarks": [1, 2], "tol": 1e-9}, InputError, "landmarks must reach tol=1e-09; got a relative trace error of"),
        ({"rank": 3, "kernel": Gaussian}, ParameterError, r"kernel must have __call__\(x, y\) and diagonal\(x\); got Gaussian"),
        ({"rank": 3, "kernel": lambda x, y: x @ y.T}, ParameterError, "kernel must have .* got function"),
        ({"rank": 3, "x": X[0]}, ShapeError, r"x must have shape \(n, d\) with n, d >= 1; got \(2,\)"),
        ({"rank": 3, "x": X[:0]}, ShapeError, r"x must have shape \(n, d\) with n, d >= 1; got \(0, 2\)"),
        ({"rank": 3, "x": np.where(X > 1, np.nan, X)}, NonFiniteError, "x must be finite"),
        ({"rank": 3, "x": X + 0j}, DTypeError, "x must be real; got dtype complex128"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], error: type[Exception], match: str) -> None:
    settings = {"x": X, "kernel": GAUSSIAN, **arguments}
    with pytest.raises(error, match=match) as caught:
        nystrom(settings.pop("x"), settings.pop("kernel"), **settings)
    message = str(caught.value)
    assert message.startswith("nystrom: ")
    assert len(message) <= 400
    assert "\n" not in message


def test_a_tolerance_below_the_floor_of_the_data_names_that_floor() -> None:
    x = points("normal", 300, 3, 0).astype(np.float32)
    with pytest.raises(ParameterError, match=r"tol must be above the rounding floor, 1.2e-07 at least for float32 data; got 1e-08"):
        nystrom(x, Gaussian(1.0), tol=1e-8, rng=0)
    jax = pytest.importorskip("jax")
    with (
        jax.enable_x64(False),
        pytest.raises(ParameterError, match=r"tol must be above the rounding floor, \S+e-06 for these float32 data; got 2e-07"),
    ):
        nystrom(jax.numpy.asarray(x), Gaussian(3.0), tol=2e-7, rng=0)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda d: d @ np.ones(39), ShapeError, r"matmul: v must have shape \(40,\) or \(40, k\); got \(39,\)"),
        (lambda d: d @ np.ones((40, 1, 1)), ShapeError, r"matmul: v must have shape"),
        (lambda d: d @ np.full(40, np.inf), NonFiniteError, "matmul: v must be finite; got 40"),
        (lambda d: d @ np.ones(40, dtype=complex), DTypeError, "matmul: v must be real"),
        (lambda d: np.ones((2, 39)) @ d, ShapeError, r"matmul: v must have shape"),
        (lambda d: d.solve(np.ones(40)), ParameterError, "solve: ridge must be given, here or to nystrom; got None"),
        (lambda d: d.solve(np.ones(40), 0.0), ParameterError, "solve: ridge must be a finite number > 0"),
        (lambda d: d.solve(np.ones(40), -1.0), ParameterError, "solve: ridge must be a finite number > 0"),
        (lambda d: d.solve(np.ones(39), 1.0), ShapeError, r"solve: b must have shape \(40,\)"),
        (lambda d: d.solve(np.ones(40), 1e-310), NumericalError, "solve: ridge must be large enough to divide by; got 1e-310"),
        (
            lambda d: d.solve(np.ones(40, np.float32), 1e-60),
            RangeError,
            "solve: ridge must be large enough for a result that is finite in float32",
        ),
        (lambda d: d.logdet(), ParameterError, "logdet: ridge must be given"),
        (lambda d: d.preconditioner(), ParameterError, "preconditioner: ridge must be given"),
        (lambda d: d.eigh(6), ParameterError, "eigh: k must be a whole number from 1 to 5; got 6"),
        (lambda d: d.features(np.ones((3, 3))), ShapeError, r"features: x_new must have shape \(q, 2\); got \(3, 3\)"),
        (lambda d: d.features(np.ones(2)), ShapeError, r"features: x_new must have shape \(q, 2\); got \(2,\)"),
        (lambda d: d.cross_matmul(np.ones((3, 3)), np.ones(40)), ShapeError, r"cross_matmul: x_new must have shape"),
        (lambda d: kernel_operator(GAUSSIAN, X[0]), ShapeError, r"kernel_operator: x must have shape \(n, d\)"),
        (lambda d: kernel_operator(GAUSSIAN, np.full((2, 2), np.nan)), NonFiniteError, "kernel_operator: x must be finite"),
        (lambda d: kernel_operator(GAUSSIAN, X, -1.0), ParameterError, "kernel_operator: ridge must be a finite number >= 0"),
    ],
)
def test_wrong_calls_of_a_decomposition_are_refused(call: Any, error: type[Exception], match: str) -> None:
    d = nystrom(X.astype(np.float32) if error is RangeError else X, GAUSSIAN, rank=5, rng=0)
    with pytest.raises(error, match=match) as caught:
        call(d)
    assert len(str(caught.value)) <= 400
