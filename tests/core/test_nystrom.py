"""The Nystrom approximation: every backend, storage, choices, conjugate gradients, refusals. Laws, core and files: test_nystrom_*.py."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nystrom_cases import Linear, T, blob, points, spectral, truth, wide
from scipy.sparse.linalg import cg

import softlinalg
from softlinalg import Gaussian, nystrom
from softlinalg._nystrom import kernel_operator
from softlinalg.errors import (
    BackendMismatchError,
    DTypeError,
    InputError,
    NonFiniteError,
    NumericalError,
    ParameterError,
    RangeError,
    ResourceError,
    ShapeError,
)


# ------------------------------------------------------------------------------------------------ backends
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
    # JAX has compiled this number of landmarks above.
    d, e = nystrom(x, Gaussian("median"), rank=25, rng=3), nystrom(host, Gaussian("median"), rank=25, rng=3)
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
