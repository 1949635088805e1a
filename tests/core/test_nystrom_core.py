"""The Nystrom approximation: its factorization, its cut-off, and the kernels it takes and refuses."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nystrom_cases import Linear, points, spectral

import softlinalg
from softlinalg import Gaussian, Laplacian, Matern, nystrom
from softlinalg._nystrom_core import triangularize, whiten
from softlinalg.errors import DuplicateLandmarkWarning, InputError, NonFiniteError, NumericalError, ShapeError


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


@pytest.mark.parametrize("stored", [True, False])
def test_the_spectrum_is_made_when_it_is_asked_for(stored: bool, tmp_path: Path) -> None:
    x = points("normal", 300, 2, 0)
    d = nystrom(x, Gaussian(1.0), rank=40, rng=0, store_features=stored)
    assert d.trace_error > 0
    d.features(x[:5])
    d.diagonal()
    d.cross_matmul(x[:5], d @ np.ones(300))
    assert d._summary.spectrum is None
    same = nystrom(x, Gaussian(1.0), rank=40, rng=0, store_features=stored)
    same.save(tmp_path / "d.npz")
    f = d.features()
    np.testing.assert_allclose(d.eigenvalues, np.linalg.eigvalsh(f.T @ f)[::-1], rtol=0, atol=1e-12 * np.trace(f.T @ f))
    assert d._summary.spectrum is not None
    assert d._spectrum is d._spectrum
    loaded = softlinalg.NystromDecomposition.load(tmp_path / "d.npz", x=x, kernel=Gaussian(1.0))
    np.testing.assert_array_equal(loaded.eigenvalues, d.eigenvalues)  # the same bits, whoever asks and when
    with ThreadPoolExecutor(8) as pool:
        fresh = nystrom(x, Gaussian(1.0), rank=40, rng=0, store_features=stored)
        for found in pool.map(lambda _: fresh.eigenvalues, range(8)):
            np.testing.assert_array_equal(found, d.eigenvalues)


def test_a_tolerance_needs_the_spectrum_of_all_rows_and_leaves_that_of_the_result() -> None:
    d = nystrom(points("normal", 300, 2, 0), Gaussian(1.0), tol=1e-3, rng=0)
    assert d._summary.spectrum is None
    assert d.relative_trace_error <= 1e-3
    np.testing.assert_allclose(d.relative_trace_errors[-1], d.relative_trace_error, rtol=1e-9)


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
