"""The Nystrom approximation: its laws, against dense float64 truth."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from nystrom_cases import Linear, T, points, spectral, truth

from softlinalg import Gaussian, nystrom
from softlinalg._nystrom_core import CUT_OFF
from softlinalg.errors import DuplicateLandmarkWarning

KINDS = ("normal", "clustered", "duplicated", "collinear", "one far", "offset")


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


FEWER = settings(max_examples=settings().max_examples // 2)
"""Each example of these laws takes 20 ms and more, that of chunks four times as long."""


# ------------------------------------------------------------------------------------------------ laws
@FEWER
@given(cases)
@example(Case("duplicated", 60, 3, 20, 3.0, "float32", 0))
@example(Case("offset", 60, 1, 20, 20.0, "float32", 1))
def test_it_is_the_truncated_approximation_of_float64(case: Case) -> None:
    expected = truth(case.x, case.kernel, case.indices)
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    event(f"{case.dtype}, rank {'full' if d.rank == len(case.indices) else 'cut'}")
    assert spectral(d.to_dense() - expected.approximation) <= expected.bound + expected.edge


@FEWER
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


@FEWER
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


@FEWER
@given(cases)
def test_no_approximation_of_this_rank_beats_the_eigenvectors(case: Case) -> None:
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    values = np.linalg.eigvalsh(truth(case.x, case.kernel, case.indices).kernel)[::-1]
    for k, error in enumerate(np.asarray(d.relative_trace_errors, dtype=np.float64), start=1):
        best = np.sum(values[k:]) / case.n
        assert error >= best - d.trace_error_floor / case.n - 10 * np.finfo(case.dtype).eps


@FEWER
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


@FEWER
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


@FEWER
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


@FEWER
@given(cases)
def test_all_points_as_landmarks_give_the_kernel_matrix(case: Case) -> None:
    x = np.unique(case.x, axis=0)
    expected = truth(x, case.kernel, np.arange(len(x)))
    d = nystrom(x, case.kernel, landmarks=np.arange(len(x)))
    cut = CUT_OFF[case.dtype] * float(np.max(expected.kept))
    assert spectral(d.to_dense() - expected.kernel) <= expected.bound + 2 * cut
    assert d.trace_error <= len(x) * 2 * cut + 10 * d.trace_error_floor


@FEWER
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


@FEWER
@given(cases, st.integers(0, 10**6))
def test_the_order_of_landmarks_changes_nothing(case: Case, seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(case.indices)
    d, e = nystrom(case.x, case.kernel, landmarks=case.indices), nystrom(case.x, case.kernel, landmarks=shuffled)
    expected = truth(case.x, case.kernel, case.indices)
    assert spectral(d.to_dense() - e.to_dense()) <= 2 * expected.bound + 2 * expected.edge
    np.testing.assert_array_equal(e.landmarks, case.x[shuffled])


@FEWER
@given(cases)
def test_more_landmarks_never_explain_less(case: Case) -> None:
    indices = case.indices
    few, more = indices[: max(1, len(indices) // 2)], indices
    e, d = nystrom(case.x, case.kernel, landmarks=few), nystrom(case.x, case.kernel, landmarks=more)
    event("all directions kept" if d.rank == len(more) else "cut")
    if d.rank == len(more):  # a cut-off may drop directions of the larger set that the smaller one keeps
        assert d.trace_error <= e.trace_error + 10 * (d.trace_error_floor + e.trace_error_floor)
    assert d.rank <= len(more)


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


@FEWER
@given(cases, st.integers(1, 19))
def test_the_features_of_a_row_do_not_depend_on_its_batch(case: Case, count: int) -> None:
    d = nystrom(case.x, case.kernel, landmarks=case.indices)
    expected = truth(case.x, case.kernel, case.indices)
    # The same sums in another order: each differs by rounding of its terms |C_ij M_jk|.
    bound = T * np.finfo(case.dtype).eps * math.sqrt(len(case.indices) * float(np.sum(1 / expected.kept)))
    np.testing.assert_allclose(d.features(case.x[:count]), d.features()[:count], atol=bound, rtol=0)


@settings(max_examples=settings().max_examples // 4)
@given(cases, st.integers(5, 40))
@example(Case("clustered", 40, 2, 10, 1.0, "float32", 8), 1)
@example(Case("normal", 90, 3, 25, 1.0, "float64", 9), 3)
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


@FEWER
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


@FEWER
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


@FEWER
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
