"""The compiled exponentials and inverses: right to rounding, with the evidence of certificates; and what happens where they cannot be."""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import softlinalg
from softlinalg import _attention_blocks, _certificates, _certificates_cholesky, _compiled, _linalg, _native

COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "c++"))), None)
compiled = pytest.mark.skipif(
    COMPILER is None or os.environ.get("SOFTLINALG_COMPILED") == "0", reason="no C++ compiler here, or turned off"
)


def matrices(batch: int, m: int, seed: int = 0) -> np.ndarray:
    """Gaussian kernel matrices, exactly symmetric."""
    x = np.random.default_rng(seed).standard_normal((batch, m, 3))
    a = np.exp(-((x[:, :, None, :] - x[:, None, :, :]) ** 2).sum(-1) / 2)
    return (a + a.swapaxes(-1, -2)) / 2


@pytest.fixture
def unloaded() -> Iterator[None]:
    """The module as it is before its first use, and after the test."""
    _native.load.cache_clear()
    yield
    _native.load.cache_clear()


@compiled
def test_a_compiler_gives_kernels() -> None:
    assert _native.load() is not None, "see the log of softlinalg._native"


@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponentials_are_right_to_the_last_place_or_two(dtype: type) -> None:
    lowest = 0.5 * np.log(np.finfo(dtype).tiny)
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.uniform(1.01 * lowest, 0.5, 100_000), -rng.exponential(1.0, 100_000), -np.logspace(-9, 2, 1000), [0, -0.0, np.inf, -np.inf]]
    )
    x = x.astype(dtype)
    found = x.copy()
    assert _native.clamped_exp_in_place(found, lowest)
    with np.errstate(over="ignore"):
        expected = np.exp(np.minimum(x, 0).astype(np.longdouble))
    kept = x > dtype(lowest)
    np.testing.assert_array_equal(found[~kept], 0)
    error = np.abs(found[kept] - expected[kept]) / np.spacing(expected[kept].astype(dtype))
    assert error.max() <= 1.5
    assert (found[x >= 0] == 1).all()
    nothing = np.array([np.nan], dtype=dtype)
    assert _native.clamped_exp_in_place(nothing, lowest)
    assert np.isnan(nothing).all()


@compiled
@given(start=st.integers(0, 40), count=st.integers(1, 80), dtype=st.sampled_from([np.float32, np.float64]))
def test_an_exponential_has_the_same_bits_wherever_it_stands(start: int, count: int, dtype: type) -> None:
    x = -np.linspace(0, 30, 120, dtype=dtype)
    whole, part = x.copy(), x[start : start + count].copy()
    assert _native.clamped_exp_in_place(whole, -25.0)
    assert _native.clamped_exp_in_place(part, -25.0)
    np.testing.assert_array_equal(part, whole[start : start + count])


@compiled
def test_columns_of_a_wider_block_are_taken_alone() -> None:
    wide = -np.linspace(0, 30, 60).reshape(5, 12)
    expected = wide.copy()
    whole = wide.copy()
    assert _native.clamped_exp_in_place(whole, -25.0)
    assert _native.clamped_exp_in_place(wide[:, 3:10], -25.0)
    expected[:, 3:10] = whole[:, 3:10]
    np.testing.assert_array_equal(wide, expected)


@compiled
def test_blocks_that_are_no_memory_of_its_own_are_left_alone() -> None:
    x = np.zeros((4, 6))
    x.flags.writeable = False
    for block in (
        x,
        np.zeros((4, 6))[:, ::2],
        np.zeros((4, 6))[::-1],
        np.zeros((4, 6)).T,
        np.zeros(4, dtype=np.float16),
        np.zeros(4, dtype=">f8"),
        np.zeros(4, dtype=int),
    ):
        assert not _native.clamped_exp_in_place(block, -10.0)


@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(
    m=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 16, 49, 64, 199, 200, 201, 205, 256, 391]),
    batch=st.integers(1, 9),
    ridge=st.sampled_from([0.01, 1.0, 1e6]),
)
def test_inverses_and_their_evidence_are_right(dtype: type, m: int, batch: int, ridge: float) -> None:
    _native.load()
    a = matrices(batch, m).astype(dtype)
    ridges = ridge * np.linspace(1, 2, batch)
    found = _native.invert(a, ridges)
    assert found is not None
    inverse, evidence = found
    b = a.astype(np.float64) + ridges[:, None, None] * np.eye(m)
    assert inverse.dtype == dtype
    np.testing.assert_array_equal(inverse, inverse.swapaxes(-1, -2))
    # Cholesky's backward error, m eps times the condition, and rounding to the type that was asked for.
    values = np.linalg.eigvalsh(b)
    condition = (values[:, -1] / values[:, 0]).max()
    expected = np.linalg.inv(b)
    error = np.linalg.norm(inverse - expected, axis=(-2, -1)) / np.linalg.norm(expected, axis=(-2, -1))
    assert error.max() <= 8 * m * 2.0**-52 * condition + np.finfo(dtype).eps
    np_xp = _linalg.np
    theirs = _certificates_cholesky.cholesky_evidence(b, expected, xp=np_xp)
    np.testing.assert_allclose(evidence[0], theirs.trace_b, rtol=m * 1e-15)
    np.testing.assert_allclose(evidence[1], theirs.trace_x, rtol=m * 1e-15 * condition)
    assert (evidence[2] <= 8 * m**1.5 * 2.0**-52 * condition).all()
    np.testing.assert_allclose(evidence[3], theirs.norm_x, rtol=16 * m * m * 1e-16 + m * 1e-15 * condition)
    certificate = _certificates_cholesky.judge_cholesky(_certificates_cholesky.CholeskyEvidence(*evidence), m, xp=np_xp)
    assert (error <= certificate.residual + np.finfo(dtype).eps).all()


@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(m=st.sampled_from([1, 2, 3, 4, 7, 16, 49, 64, 200]), batch=st.integers(1, 9), noise=st.sampled_from([0.0, 1e-3, 0.3]))
def test_a_newton_step_and_its_norms_are_right(dtype: type, m: int, batch: int, noise: float) -> None:
    b = matrices(batch, m) + np.eye(m)
    assert _native.serves_step(b.shape, "float64")
    exact = np.linalg.inv(b)
    x = (exact * (1 + noise * np.cos(np.arange(m * m)).reshape(m, m))).astype(dtype)
    corrected, sizes = _native.correct(b, x)
    wide = x.astype(np.float64)
    defect = b @ wide - np.eye(m)
    product = wide @ defect
    step = wide - product
    norms = np.array([np.linalg.norm(part, axis=(-2, -1)) for part in (b, wide, defect, product, step)])
    np.testing.assert_array_equal(corrected, corrected.swapaxes(-1, -2))
    # Two inner products of length m one after the other.
    rounding = 4 * m * 2.0**-52 * norms[1] * (norms[0] * norms[1] + 1)
    assert (np.linalg.norm(corrected - (step + step.swapaxes(-1, -2)) / 2, axis=(-2, -1)) <= rounding).all()
    own = np.array([0 * rounding, 0 * rounding, rounding / norms[1], rounding, rounding])
    assert (sizes >= norms - own).all()
    assert (sizes <= norms * (1 + 1e-10) + own + 1e-150).all()
    certificate = _certificates.judge_correction(list(sizes), np.zeros((batch, m)), xp=_linalg.np)
    error = np.linalg.norm(corrected - exact, axis=(-2, -1))
    assert (error <= certificate.error_bound + rounding).all()
    for i in range(batch):
        alone = _native.correct(b[i : i + 1], x[i : i + 1])
        np.testing.assert_array_equal(alone[0][0], corrected[i])
        np.testing.assert_array_equal(alone[1][:, 0], sizes[:, i])


@compiled
@pytest.mark.parametrize("m", [10, 230])
def test_a_matrix_has_the_same_bits_in_every_batch(m: int) -> None:
    _native.load()
    a, ridge = matrices(11, m), np.linspace(0.01, 0.1, 11)
    whole = _native.invert(a, ridge)
    assert whole is not None
    for i in range(11):
        alone = _native.invert(a[i : i + 1], ridge[i : i + 1])
        assert alone is not None
        np.testing.assert_array_equal(alone[0][0], whole[0][i])
        np.testing.assert_array_equal(alone[1][:, 0], whole[1][:, i])


@compiled
@pytest.mark.parametrize("m", [9, 209])
def test_what_has_no_factor_is_not_certified_and_leaves_the_others_alone(m: int) -> None:
    _native.load()
    a = matrices(6, m) + 0.1 * np.eye(m)
    a[1] -= 2 * np.eye(m)  # indefinite
    a[3, 4] = a[3, :, 4] = 0  # singular
    a[4, 2, 2] = np.nan
    found = _native.invert(a, np.zeros(6))
    assert found is not None
    certificate = _certificates_cholesky.judge_cholesky(_certificates_cholesky.CholeskyEvidence(*found[1]), m, xp=_linalg.np)
    assert (certificate.residual < 1e-3).tolist() == [True, False, True, False, False, True]
    clean = _native.invert(a[[0, 2, 5]], np.zeros(3))
    assert clean is not None
    np.testing.assert_array_equal(found[0][[0, 2, 5]], clean[0])


@compiled
def test_ridge_inverse_uses_it_where_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    _native.load()
    served = []
    real = _native.invert

    def spy(a: np.ndarray, ridge: np.ndarray) -> object:
        found = real(a, ridge)
        served.append(found is not None)
        return found

    monkeypatch.setattr(_native, "invert", spy)
    a = matrices(4, 12)
    np.testing.assert_allclose(softlinalg.ridge_inverse(a, 0.5), np.linalg.inv(a + 0.5 * np.eye(12)), rtol=1e-12, atol=1e-13)
    assert served == [True]
    softlinalg.ridge_inverse(a[:0], 0.5)
    softlinalg.ridge_inverse(matrices(1, 513), 0.5)
    assert not any(served[1:])
    softlinalg.ridge_inverse(matrices(1, 201), 0.5)
    assert served[-1]
    # An indefinite member is found out, and the general way decides: by an eigendecomposition, which has no need of signs.
    a[2] -= 5 * np.eye(12)
    shifted = a + 0.5 * np.eye(12)
    np.testing.assert_allclose(softlinalg.ridge_inverse(a, 0.5) @ shifted, np.broadcast_to(np.eye(12), a.shape), atol=1e-10)


# ------------------------------------------------------------------------------------------------ few landmarks
@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(m=st.sampled_from([1, 2, 7, 49, 200]), d=st.sampled_from([1, 3, 8, 32]), scale=st.sampled_from([1e-3, 0.4, 3.0]))
def test_kernel_matrices_of_landmarks_are_right(dtype: type, m: int, d: int, scale: float) -> None:
    points = (np.random.default_rng(m + d).standard_normal((3, m, d)) + 5).astype(dtype)
    found = _native.kernel_matrix(points, scale, 1e9, -300.0)
    assert found is not None
    (w,) = found
    assert w is not None
    difference = points[:, :, None, :].astype(np.longdouble) - points[:, None, :, :]
    exponents = -((difference * scale) ** 2).sum(-1) / 2
    expected = np.where(exponents <= -300, 0, np.exp(exponents))
    np.testing.assert_array_equal(w, w.swapaxes(-1, -2))
    np.testing.assert_array_equal(np.diagonal(w, axis1=1, axis2=2), 1)
    # Three terms of the size of the squares, in sums of d: their rounding is what the values are off by, relatively.
    size = (((points - points.mean(1, keepdims=True)) * scale) ** 2).sum(-1).max()
    clear = np.abs(exponents + 300) > 1e-3
    np.testing.assert_allclose(w[clear], expected[clear].astype(float), rtol=(d + 8) * 2.0**-52 * (1 + 4 * float(size)), atol=0)


@compiled
def test_landmarks_beyond_the_limit_are_told_and_nan_is_not_far() -> None:
    points = np.zeros((2, 5, 3))
    points[1, 2] = 100.0
    assert _native.kernel_matrix(points, 1.0, 1e4, -300.0) == (None,)
    points[1, 2] = np.nan
    found = _native.kernel_matrix(points, 1.0, 1e4, -300.0)
    assert found is not None
    assert found[0] is not None
    assert np.isfinite(found[0][0]).all()
    assert np.isnan(found[0][1, 0, 1])


@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_factors_of_landmarks_are_those_of_the_formula(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).standard_normal((2, 11, 6)).astype(dtype)
    quick = _attention_blocks._factors(points, 0.7, 1.4, xp=_linalg.np)
    monkeypatch.setattr(_native, "landmark_factors", lambda *_: None)
    for ours, theirs in zip(quick, _attention_blocks._factors(points, 0.7, 1.4, xp=_linalg.np), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=20 * np.finfo(dtype).eps)


@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "d"), [(1, 1), (7, 3), (49, 32), (12, 8)])
def test_all_of_landmarks_at_once_is_what_the_parts_give(dtype: type, m: int, d: int) -> None:
    points = np.random.default_rng(0).standard_normal((3, m, d)).astype(dtype)
    certainty = _certificates_cholesky.certainty(m, 0.0, 1e-6)
    found = _native.landmarks(points, 0.4, 0.01, 1.4, (1e4, 1e4), -300.0, certainty)
    kernel, parts = _native.kernel_matrix(points, 0.4, 1e4, -300.0), _native.landmark_factors(points, 0.4, 1.4)
    assert found is not None
    assert kernel is not None
    assert kernel[0] is not None
    assert parts is not None
    inverse = _native.invert(kernel[0], np.full(3, 0.01))
    assert inverse is not None
    center, w, _, rows, columns = parts
    for ours, theirs in zip(found, (kernel[0], inverse[0], None, center, w, rows, columns), strict=True):
        if theirs is None:
            np.testing.assert_array_equal(ours, inverse[1])
        else:
            np.testing.assert_array_equal(ours, theirs)
    moved = points.copy()
    moved[1, 0] += dtype(1e3)
    for limits in ((1.0, 1e9), (1e9, 1.0)):
        assert (_native.landmarks(moved, 0.4, 0.01, 1.4, limits, -300.0, certainty) is None) == (m > 1)  # one point is its own mean
    assert _native.landmarks(points, 0.4, 0.01, 1.4, (1e4, 1e4), -300.0, certainty._replace(tol=1e-17)) is None
    assert _native.landmarks(points, 0.4, 0.01, 1.4, (1e4, 1e4), -300.0, certainty._replace(rounding=1.0)) is None


@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("m", "d"), [(1, 1), (7, 3), (49, 32), (12, 8)])
def test_the_gradient_of_inverses_is_that_of_the_formula(dtype: type, m: int, d: int) -> None:
    rng = np.random.default_rng(0)
    points, grad = rng.standard_normal((2, m, d)).astype(dtype), rng.standard_normal((2, m, m))
    w = _attention_blocks.landmark_matrix(points, 0.6, xp=_linalg.np)
    x = np.linalg.inv(w + 0.1 * np.eye(m))
    x = (x + x.swapaxes(-1, -2)) / 2
    found = _native.inverse_vjp(x, grad, w, points, 0.6)
    slope = -x @ (grad + grad.swapaxes(-1, -2)) / 2 @ x
    expected = _attention_blocks.landmark_matrix_vjp(slope, points, w, 0.6, xp=_linalg.np)
    assert found is not None
    size = np.abs(x).sum(-1).max() ** 2 * np.abs(grad).sum(-1).max() * max(1.0, np.abs(points).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=m * np.finfo(float).eps * size)
    if m > 1:
        assert np.abs(found).max() > 1e-3


@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@given(n=st.integers(0, 9), m=st.integers(1, 40), seed=st.integers(0, 9), digits=st.integers(0, 2))
def test_the_nearest_landmark_is_the_first_that_ties(dtype: type, n: int, m: int, seed: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    products, half, of_half, of_row = (np.round(rng.uniform(0, 1, s), digits).astype(dtype) for s in ((n, m), (m,), (m,), (n,)))
    found = _native.nearest(products, half, 0.1 * of_half, 0.1 * of_row)
    assert found is not None
    scores = half - products
    tied = scores - (0.1 * of_half).astype(dtype) <= (scores.min(axis=1) + (0.1 * of_row).astype(dtype))[:, None]
    np.testing.assert_array_equal(found[0], tied.argmax(axis=1))
    np.testing.assert_array_equal(found[1], scores.min(axis=1))


@compiled
def test_clusters_are_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((700, 3))
    found = softlinalg.select_landmarks(x, 40, method="kmeans", rng=0)
    monkeypatch.setattr(_native, "nearest", lambda *_: None)
    np.testing.assert_array_equal(softlinalg.select_landmarks(x, 40, method="kmeans", rng=0), found)


@compiled
def test_products_of_other_types_and_layouts_have_no_nearest_landmark_here() -> None:
    half = np.zeros(3)
    assert _native.nearest(np.zeros((4, 3), dtype=np.float16), half, half, np.zeros(4)) is None
    assert _native.nearest(np.zeros((3, 4)).T, half, half, np.zeros(4)) is None
    assert _native.nearest(np.zeros((4, 0)), half[:0], half[:0], np.zeros(4)) is None


@compiled
def test_points_that_are_many_or_wide_go_the_other_way() -> None:
    for points in (
        np.zeros((1, 201, 3)),
        np.zeros((1, 4, 257)),
        np.zeros((4, 3)),
        np.zeros((1, 4, 3), dtype=np.float16),
        np.zeros((1, 0, 3)),
    ):
        assert _native.kernel_matrix(points, 1.0, 1e4, -300.0) is None
        assert _native.landmark_factors(points, 1.0, 1.0) is None
        certainty = _certificates_cholesky.certainty(points.shape[1], 0.0, 1e-6)
        assert _native.landmarks(points, 1.0, 0.1, 1.0, (1e4, 1e4), -300.0, certainty) is None
        square = np.zeros((*points.shape[:-1], points.shape[-2]))
        assert _native.inverse_vjp(square, square, square, points, 1.0) is None


# -------------------------------------------------------------------------------------- where there is no compiler
def test_without_a_compiler_it_says_so_once_and_goes_on(
    unloaded: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")  # a program that fails, whatever it is asked
    a = matrices(3, 8)
    with caplog.at_level(logging.INFO, logger="softlinalg._native"):
        found = [softlinalg.ridge_inverse(a, 0.1) for _ in range(2)]
    assert [record.message[:31] for record in caplog.records] == ["compiled code is not available,"]
    for inverse in found:
        np.testing.assert_allclose(inverse, np.linalg.inv(a + 0.1 * np.eye(8)), rtol=1e-10, atol=1e-11)


def test_the_environment_turns_it_off(unloaded: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTLINALG_COMPILED", "0")
    assert _native.load() is None


def test_a_cache_that_others_can_write_to_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "softlinalg").mkdir()
    (tmp_path / "softlinalg").chmod(0o777)
    with pytest.raises(RuntimeError, match="others may write"):
        _compiled._cache()


class Wrong:
    """The library with one function that is a little off in one of its answers."""

    def __init__(self, kernels: ctypes.CDLL, name: str, answer: int, factor: float) -> None:
        self.kernels, self.name, self.answer, self.factor = kernels, name, answer, factor

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.kernels, name)
        if name != self.name:
            return function
        kind = (
            ctypes.c_float
            if name.endswith("float") and self.answer not in DOUBLES[name.split("_", 1)[1].rpartition("_")[0]]
            else ctypes.c_double
        )

        def wrong(*arguments: Any) -> Any:
            result = function(*arguments)
            places = (kind * 6).from_address(arguments[self.answer])
            for i in range(6):
                places[i] *= self.factor
            return result

        return wrong


ANSWERS = {
    "exp": (0,),
    "invert": (4, 5),
    "kernel": (7,),
    "factors": (6, 7, 8, 9, 10),
    "landmarks": (13, 14, 15, 16, 17, 18, 19),
    "inverse_vjp": (8,),
    "nearest": (7,),
    "correct": (4, 5),
}
"""Which arguments of the functions are their answers, as far as they are real numbers."""
DOUBLES = {"exp": (), "invert": (5,), "kernel": (7,), "factors": (), "landmarks": (13, 14, 15), "inverse_vjp": (8,), "nearest": ()}
DOUBLES["correct"] = (4, 5)
"""Those of them that are in double, whatever the type of the points."""


@compiled
@pytest.mark.parametrize("kind", ["float", "double"])
@pytest.mark.parametrize("name", ANSWERS)
def test_compiled_code_with_other_results_is_refused(name: str, kind: str) -> None:
    kernels = _native.load()
    assert kernels is not None
    for answer in ANSWERS[name]:
        _native._check(Wrong(kernels, f"softlinalg_{name}_{kind}", answer, 1.0))  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match=f"other results: .* of float{'32' if kind == 'float' else '64'}"):
            _native._check(Wrong(kernels, f"softlinalg_{name}_{kind}", answer, 1 - 1e-4))  # type: ignore[arg-type]


@compiled
@pytest.mark.parametrize("answer", [0, 1])
def test_compiled_code_that_finds_all_landmarks_near_or_none_is_refused(answer: int) -> None:
    kernels = _native.load()
    assert kernels is not None
    functions = {
        f"softlinalg_{name}_{kind}": getattr(kernels, f"softlinalg_{name}_{kind}") for name in ANSWERS for kind in ("float", "double")
    }
    real = kernels.softlinalg_kernel_double
    functions |= {
        "softlinalg_scratch_bytes": kernels.softlinalg_scratch_bytes,
        "softlinalg_kernel_double": lambda *given: (real(*given), answer)[1],
    }
    with pytest.raises(RuntimeError, match="other results: kernel matrices of float64"):
        _native._check(types.SimpleNamespace(**functions))  # type: ignore[arg-type]
