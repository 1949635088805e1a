"""The matmul-only iterations: their theorems, rounding, cost, bounds and starts. Derivatives and batches: test_iteration_transformations.py."""

from __future__ import annotations

import itertools
import math
import warnings

import array_api_compat.numpy as numpy_namespace
import numpy as np
import pytest
import scipy.linalg
from hypothesis import example, given
from hypothesis import strategies as st
from iteration_cases import EPS, hermitian, norm2, seeds, sizes, spectrum, unitary

from softlinalg import _iterations as iterations
from softlinalg import _norm_bounds
from softlinalg.errors import ParameterError


def apply(q, values):
    return (q * values) @ q.conj().T


def rounding(m, kappa, steps, x):
    """What rounding may do to an iterate: eps times dimension, condition and steps, relative to the iterate's own size."""
    return 4 * EPS * (m + 4) * (steps + 2) * kappa * norm2(x)


log10_kappas = st.floats(0, 4)


# -------------------------------------------------------------------------------- the matrix result is the filter
@pytest.mark.parametrize("complex_entries", [False, True])
def test_each_iteration_is_its_filter_of_the_eigenvalues(backend, complex_entries):
    xp, rng, m, kappa = backend.xp, np.random.default_rng(7), 11, 300.0
    lam = spectrum(rng, m, kappa)
    b, q = hermitian(rng, lam, complex_entries)
    array = backend.asarray(b)
    alpha = float(backend.to_numpy(iterations.safe_alpha(array, xp=xp)))
    start = iterations.adjoint_start(array, alpha, xp=xp)
    lo, hi = 1 / kappa, 1.0
    cases = [
        (iterations.newton_raphson(array, start, steps=9, xp=xp), iterations.newton_raphson_filter(lam, steps=9, alpha=alpha)),
        (iterations.newton_raphson(array, scale=1.5, steps=6, xp=xp), iterations.newton_raphson_identity_filter(lam, steps=6, scale=1.5)),
    ]
    for steps, polish in ((0, 0), (0, 1), (3, 0), (4, 1), (5, 2)):
        value = iterations.chebyshev_newton(array, lo=lo, hi=hi, steps=steps, polish=polish, xp=xp)
        cases.append((value, iterations.chebyshev_newton_filter(lam, lo=lo, hi=hi, steps=steps, polish=polish)))
        value = iterations.chebyshev_newton_general(array, lo=lo, hi=hi, steps=steps, polish=polish, xp=xp)
        cases.append((value, iterations.chebyshev_newton_general_filter(lam, lo=lo, hi=hi, steps=steps, polish=polish)))
    for order in (2, 3, 4, 5, 6, 7, 9, 19):
        value = iterations.hyperpower(array, start, order=order, steps=3, xp=xp)
        cases.append((value, iterations.hyperpower_filter(lam, order=order, steps=3, alpha=alpha)))
        value = iterations.hyperpower(array, scale=1.2, order=order, steps=2, xp=xp)
        cases.append((value, iterations.hyperpower_filter(lam, order=order, steps=2, scale=1.2)))
    for value, expected in cases:
        assert value.dtype == array.dtype
        truth = apply(q, expected)
        assert norm2(backend.to_numpy(value) - truth) <= rounding(m, kappa, 12, truth)


@given(m=sizes, log10_kappa=log10_kappas, steps=st.integers(0, 8), polish=st.integers(0, 2), complex_entries=st.booleans(), seed=seeds)
def test_scaled_newton_has_the_chebyshev_polynomial_for_residual(m, log10_kappa, steps, polish, complex_entries, seed):
    rng, kappa = np.random.default_rng(seed), 10.0**log10_kappa * 1.001
    b, _ = hermitian(rng, spectrum(rng, m, kappa), complex_entries)
    lo, hi, eye, n = 1 / kappa, 1.0, np.eye(m), 2**steps
    x = iterations.chebyshev_newton(b, lo=lo, hi=hi, steps=steps, polish=polish, xp=numpy_namespace)
    # T_n by its three-term recurrence, which shares nothing with the iteration, of a matrix and of a number.
    previous, matrix, tau_previous, tau = eye, ((hi + lo) * eye - 2 * b) / (hi - lo), 1.0, (hi + lo) / (hi - lo)
    argument, tau_1 = matrix, tau
    for _ in range(n - 1):
        previous, matrix = matrix, 2 * argument @ matrix - previous
        tau_previous, tau = tau, 2 * tau_1 * tau - tau_previous
        if tau > 1e150:
            return  # residual zero to all digits: nothing left to compare
    residual = np.linalg.matrix_power(matrix / tau, 2**polish)
    # The recurrence loses n eps, the iteration eps kappa a step.
    assert norm2(eye - b @ x - residual) <= rounding(m, kappa, steps + polish, eye) + 8 * m * n * n * EPS
    assert norm2(eye - b @ x) <= tau ** -(2.0**polish) + rounding(m, kappa, steps + polish, eye) + 8 * m * n * n * EPS


@given(rows=sizes, columns=sizes, log10_kappa=st.floats(0, 2), order=st.integers(2, 9), complex_entries=st.booleans(), seed=seeds)
def test_a_step_raises_the_residual_to_the_power_of_its_order(rows, columns, log10_kappa, order, complex_entries, seed):
    rng, r = np.random.default_rng(seed), min(rows, columns)
    sigma = spectrum(rng, r, 10.0**log10_kappa)
    a = (unitary(rng, rows, complex_entries)[:, :r] * sigma) @ unitary(rng, columns, complex_entries)[:, :r].conj().T
    start = iterations.adjoint_start(a, iterations.safe_alpha(a, xp=numpy_namespace), xp=numpy_namespace)
    small = rows <= columns
    projector = np.eye(r)

    def residual(x):
        return projector - (a @ x if small else x @ a)

    before = residual(start)
    after = residual(iterations.hyperpower(a, start, order=order, steps=1, xp=numpy_namespace))
    assert norm2(after - np.linalg.matrix_power(before, order)) <= 100 * EPS * (rows + columns) * order
    newton = residual(iterations.newton_raphson(a, start, steps=3, xp=numpy_namespace))
    assert norm2(newton - np.linalg.matrix_power(before, 8)) <= 1000 * EPS * (rows + columns)


@given(rows=sizes, columns=sizes, rank=sizes, steps=st.integers(1, 12), seed=seeds)
def test_newton_from_the_adjoint_never_lets_the_residual_grow(rows, columns, rank, steps, seed):
    rng, r = np.random.default_rng(seed), min(rows, columns, rank)
    u, v = unitary(rng, rows)[:, :r], unitary(rng, columns)[:, :r]
    a = (u * spectrum(rng, r, 50.0)) @ v.T
    start = iterations.adjoint_start(a, iterations.safe_alpha(a, xp=numpy_namespace), xp=numpy_namespace)
    residuals, norms = [], []
    for k in range(steps + 1):
        x = iterations.newton_raphson(a, start, steps=k, xp=numpy_namespace)
        residuals.append(norm2(u @ u.T - a @ x))
        norms.append(norm2(x))
    slack = 1000 * EPS * 50 * (rows + columns)
    assert residuals[0] < 1
    assert all(after <= before**2 + slack for before, after in itertools.pairwise(residuals))
    # From the first step on the residual is an even power: X grows towards the pseudo-inverse from below.
    assert all(after >= before * (1 - slack) for before, after in itertools.pairwise(norms[1:]))
    assert max(norms[1:]) <= 50 * (1 + slack)


@given(rows=sizes, columns=sizes, rank=sizes, log10_kappa=st.floats(0, 1.5), complex_entries=st.booleans(), seed=seeds)
def test_general_scaled_newton_reaches_the_pseudo_inverse_in_the_counted_steps(rows, columns, rank, log10_kappa, complex_entries, seed):
    rng, r, kappa, tol = np.random.default_rng(seed), min(rows, columns, rank), 10.0**log10_kappa, 1e-9
    u, v = unitary(rng, rows, complex_entries)[:, :r], unitary(rng, columns, complex_entries)[:, :r]
    sigma = spectrum(rng, r, kappa)
    a = (u * sigma) @ v.conj().T
    steps = iterations.chebyshev_newton_general_steps(kappa, tol)
    x = iterations.chebyshev_newton_general(a, lo=1 / kappa, hi=1.0, steps=steps, xp=numpy_namespace)
    truth = (v / sigma) @ u.conj().T
    # Null singular values stay null as far as rounding lets them: eps grows by (hi/lo)^2.
    assert norm2(x - truth) <= tol * kappa + rounding(rows + columns, kappa**2, steps, truth)


@given(m=sizes, log10_kappa=log10_kappas, log10_tol=st.floats(-9, -0.5), seed=seeds)
@example(m=1, log10_kappa=0, log10_tol=-3, seed=0)
def test_the_counted_steps_reach_the_tolerance(m, log10_kappa, log10_tol, seed):
    rng, kappa, tol = np.random.default_rng(seed), 10.0**log10_kappa, 10.0**log10_tol
    b, _ = hermitian(rng, spectrum(rng, m, kappa))
    eye, c = np.eye(m), 2 / (1 + 1 / kappa)
    slack = 1 + 1e-6  # eigenvalues at the very ends, where the theorem is sharp
    floor = rounding(m, kappa, 30, eye)
    steps = iterations.newton_raphson_steps(kappa, tol, start="identity")
    assert norm2(eye - b @ iterations.newton_raphson(b, scale=c, steps=steps, xp=numpy_namespace)) <= tol * slack + floor
    for polish in (0, 1):
        steps = iterations.chebyshev_newton_steps(kappa, tol, polish=polish)
        x = iterations.chebyshev_newton(b, lo=1 / kappa, hi=1.0, steps=steps, polish=polish, xp=numpy_namespace)
        assert norm2(eye - b @ x) <= tol * slack + floor
        if m > 1 and steps > 0 and tol > 1e4 * floor:  # both ends are eigenvalues: one step fewer is not enough
            x = iterations.chebyshev_newton(b, lo=1 / kappa, hi=1.0, steps=steps - 1, polish=polish, xp=numpy_namespace)
            assert norm2(eye - b @ x) >= tol / slack - floor
    steps = iterations.hyperpower_steps(kappa, tol, order=7, start="identity")
    assert norm2(eye - b @ iterations.hyperpower(b, scale=c, order=7, steps=steps, xp=numpy_namespace)) <= tol * slack + floor


@given(m=st.integers(2, 9), log10_kappa=st.floats(1, 4), steps=st.integers(1, 8), seed=seeds)
def test_polishing_leaves_a_residual_between_zero_and_one(m, log10_kappa, steps, seed):
    rng, kappa = np.random.default_rng(seed), 10.0**log10_kappa
    b, _ = hermitian(rng, np.concatenate([spectrum(rng, m - 1, kappa), [1e-9 / kappa]]))  # one eigenvalue far below lo
    x = iterations.chebyshev_newton(b, lo=1 / kappa, hi=1.0, steps=steps, xp=numpy_namespace)
    product = np.linalg.eigvals(b @ x)
    floor = rounding(m, kappa, steps, np.eye(m))
    assert product.real.min() >= -floor
    assert product.real.max() <= 1 + floor


def test_null_directions_of_a_start_at_the_identity_double_and_of_the_adjoint_stay():
    rng = np.random.default_rng(3)
    a, q = hermitian(rng, np.asarray([1.0, 0.5, 0.25, 0.0]))
    null = q[:, 3]
    grown = iterations.newton_raphson(a, scale=1.0, steps=10, xp=numpy_namespace)
    assert null @ grown @ null == pytest.approx(2**10, rel=1e-9)
    kept = iterations.newton_raphson(a, 0.9 * a, steps=10, xp=numpy_namespace)
    assert abs(null @ kept @ null) <= 2**10 * 10 * EPS
    cut = kept @ a @ kept
    assert norm2(cut - q[:, :3] / np.asarray([1.0, 0.5, 0.25]) @ q[:, :3].T) <= 1e-12


# ------------------------------------------------------------------------------------------------------ rounding
@pytest.mark.parametrize("multiple", [10, 100, 1000])
def test_scaled_newton_is_as_accurate_as_lu_near_the_edge_of_float32(multiple):
    # Symmetrizing X in the loop turns eps kappa into eps kappa^2: its error here is between 10 and 1e8 times larger.
    rng = np.random.default_rng(0)
    points = rng.standard_normal((64, 2))
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    w = np.exp(-distances / 2)
    upper = float(_norm_bounds.spectral_upper_bound(w, xp=numpy_namespace))
    ridge = multiple * 2.0**-24 * upper
    b32 = (w + ridge * np.eye(64)).astype(np.float32)
    truth = np.linalg.inv(b32.astype(np.float64))
    lo, hi = ridge / 2, upper + 2 * ridge
    steps = iterations.chebyshev_newton_steps(hi / lo, 1e-7)
    x = iterations.chebyshev_newton(b32, lo=lo, hi=hi, steps=steps, polish=2, xp=numpy_namespace)
    x = (x + x.T) / 2
    lu = scipy.linalg.inv(b32)  # numpy.linalg.inv would compute in float64
    assert x.dtype == lu.dtype == np.float32
    assert norm2(x - truth) <= 4 * norm2(lu - truth)


def test_a_gap_in_the_spectrum_does_not_stop_the_iteration():
    # Steps shrink to 1e-9 of the iterate while the eigenvalue 1e-6 has hardly grown; every rule by step size stops there.
    a = np.diag([1.0, 1.0, 1e-6])
    steps = iterations.newton_raphson_steps(1e6, 1e-9)
    x = iterations.newton_raphson(a, 1.8 * a, steps=steps, xp=numpy_namespace)
    assert np.abs(x - np.diag([1, 1, 1e6])).max() <= 1e-2
    middle = [iterations.newton_raphson(a, 1.8 * a, steps=k, xp=numpy_namespace) for k in (7, 8)]
    assert norm2(middle[1] - middle[0]) <= 1e-3
    assert norm2(middle[1] - x) >= 0.99e6


# ---------------------------------------------------------------------------------------------------------- cost
class Counting(np.ndarray):
    """An array that counts the matrix products it takes part in, and their multiplications."""

    products = 0
    multiplications = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        plain = [np.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
        if ufunc is np.matmul:
            Counting.products += 1
            Counting.multiplications += plain[0].shape[-2] * plain[0].shape[-1] * plain[1].shape[-1]
        if "out" in kwargs:
            kwargs["out"] = tuple(np.asarray(x) for x in kwargs["out"])
        result = getattr(ufunc, method)(*plain, **kwargs)
        return result.view(Counting) if isinstance(result, np.ndarray) else result


def count_products(run):
    Counting.products = Counting.multiplications = 0
    result = run()
    return Counting.products, Counting.multiplications, result


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_no_more_products_are_done_than_counted(steps):
    rng = np.random.default_rng(1)
    b, _ = hermitian(rng, spectrum(rng, 6, 10.0))
    counting, xp = b.view(Counting), numpy_namespace
    start = iterations.adjoint_start(counting, 0.5, xp=xp)

    def products(run):
        return count_products(run)[0]

    assert products(lambda: iterations.newton_raphson(counting, start, steps=steps, xp=xp)) == iterations.newton_raphson_products(steps)
    assert products(lambda: iterations.newton_raphson(counting, scale=1.0, steps=steps, xp=xp)) == iterations.newton_raphson_products(
        steps, start="identity"
    )
    for polish in (0, 1, 2):
        bounds = {"lo": 0.1, "hi": 1.0, "steps": steps, "polish": polish, "xp": xp}
        assert products(lambda b=bounds: iterations.chebyshev_newton(counting, **b)) == iterations.chebyshev_newton_products(
            steps, polish=polish
        )
        assert products(
            lambda b=bounds: iterations.chebyshev_newton_general(counting, **b)
        ) == iterations.chebyshev_newton_general_products(steps, polish=polish)
        derivative = products(lambda b=bounds: iterations.chebyshev_newton_jvp(counting, counting, **b))
        assert derivative == 3 * iterations.chebyshev_newton_products(steps, polish=polish)
    for order in (2, 3, 4, 5, 6, 7, 9, 13, 19):
        for name, begin in (("adjoint", {"start": start}), ("identity", {"scale": 1.0})):
            done = products(lambda o=order, b=begin: iterations.hyperpower(counting, order=o, steps=steps, xp=xp, **b))
            assert done == iterations.hyperpower_products(steps, order=order, start=name)
    assert products(lambda: iterations.newton_raphson_jvp(counting, start, counting, start, steps=steps, xp=xp)) == 6 * steps


def test_rectangular_products_are_taken_over_the_smaller_side():
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((3, 50)).view(Counting)
    for a in (wide, wide.T):
        start = iterations.adjoint_start(a, 1e-3, xp=numpy_namespace)
        for run in (
            lambda a=a, start=start: iterations.newton_raphson(a, start, steps=1, xp=numpy_namespace),
            lambda a=a, start=start: iterations.hyperpower(a, start, order=2, steps=1, xp=numpy_namespace),
        ):
            assert count_products(run)[1] == 2 * 3 * 3 * 50


# ---------------------------------------------------------------------------------------------- bounds and starts
@given(rows=sizes, columns=sizes, rank=sizes, symmetric=st.booleans(), exponent=st.integers(-60, 60), half=st.booleans(), seed=seeds)
@example(rows=9, columns=9, rank=1, symmetric=True, exponent=0, half=False, seed=0)
def test_the_spectral_bound_is_never_below_the_norm(rows, columns, rank, symmetric, exponent, half, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    if symmetric:
        a = a @ a.T
    a = np.ldexp(a, exponent).astype(np.float32 if half else np.float64)
    bound = float(_norm_bounds.spectral_upper_bound(a, xp=numpy_namespace))
    norm = norm2(a.astype(np.float64))
    assert bound >= norm * (1 - 4 * EPS)  # the reference's own rounding
    assert bound <= math.sqrt(np.abs(a).sum(0).max() * np.abs(a).sum(1).max()) * (1 + 1e-4)
    if norm > 1e-11:  # else the squares underflow in float32, and the Frobenius norm is left out
        assert bound <= np.linalg.norm(a.astype(np.float64)) * (1 + 1e-4)


def test_the_spectral_bound_holds_where_squares_underflow_and_where_it_is_sharp():
    xp = numpy_namespace
    for scale in (1e-30, 1e-25, 1e-20, 1e-15, 1e15, 1e19, 1e30):
        a = np.full((4, 4), scale, dtype=np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            bound = _norm_bounds.spectral_upper_bound(a, xp=xp)
        assert 4 * float(a[0, 0]) <= float(bound) <= 4 * float(a[0, 0]) * (1 + 1e-4)
    assert float(_norm_bounds.spectral_upper_bound(np.zeros((2, 2)), xp=xp)) == 0
    ones = np.ones((7, 7), dtype=np.float32) * np.float32(1 / 3)
    assert float(_norm_bounds.spectral_upper_bound(ones, xp=xp)) >= np.linalg.norm(ones.astype(np.float64), 2)


@given(m=sizes, rank=sizes, exponent=st.integers(-20, 20), half=st.booleans(), positive=st.booleans(), seed=seeds)
@example(m=9, rank=1, exponent=0, half=False, positive=True, seed=0)
def test_the_bound_for_hermitian_matrices_is_never_below_the_norm(m, rank, exponent, half, positive, seed):
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((m, rank))
    factor[rng.random(m) < 0.2] *= rng.choice([0.0, 1e-9])  # rows of zeros, and small ones
    a = np.abs(factor) @ np.abs(factor).T if positive else factor @ np.diag(rng.choice([-1.0, 1.0], rank)) @ factor.T
    a = np.ldexp(a, exponent).astype(np.float32 if half else np.float64)
    a = (a + a.T) / 2
    wide = a.astype(np.float64)
    bound, norm = float(_norm_bounds.hermitian_upper_bound(a, xp=numpy_namespace)), norm2(wide)
    assert bound >= norm * (1 - 4 * EPS)
    assert bound <= min(np.abs(wide).sum(1).max(), np.linalg.norm(wide)) * (1 + 1e-3) + math.sqrt(np.finfo(a.dtype).tiny) * m
    assert float(_norm_bounds.hermitian_upper_bound(np.zeros((m, m)), xp=numpy_namespace)) <= 1e-150 * m


@pytest.mark.parametrize("library", ["array_api_compat.numpy", "array_api_compat.torch", "array_api_strict", "jax.numpy"])
def test_the_bound_for_hermitian_matrices_is_close_for_kernels(library):
    xp = pytest.importorskip(library)
    points = np.random.default_rng(0).standard_normal((3, 60, 4)) * np.array([0.2, 0.7, 2.0])[:, None, None]
    a = np.exp(-((points[:, :, None] - points[:, None]) ** 2).sum(-1) / 2)
    bound = np.asarray(_norm_bounds.hermitian_upper_bound(xp.asarray(a), xp=xp))
    largest = np.linalg.eigvalsh(a)[:, -1]
    assert (bound >= largest * (1 - 4 * EPS)).all()
    assert (bound <= 1.1 * largest).all()


@given(rows=sizes, columns=sizes, rank=sizes, kind=st.sampled_from(["ones", "low-rank", "duplicates"]), seed=seeds)
def test_the_safe_factor_converges_even_where_the_bound_is_attained(rows, columns, rank, kind, seed):
    rng, xp = np.random.default_rng(seed), numpy_namespace
    if kind == "ones":
        a = np.ones((rows, columns))
    elif kind == "low-rank":
        a = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    else:
        points = np.repeat(rng.standard_normal((rank, 2)), 3, axis=0)
        a = np.exp(-((points[:, None] - points[None]) ** 2).sum(-1) / 2)
    alpha = float(iterations.safe_alpha(a, xp=xp))
    sigma = np.linalg.svd(a, compute_uv=False)
    top = 1 - alpha * sigma[0] ** 2
    assert -0.8 - 1e-9 <= top < 1
    start = iterations.adjoint_start(a, alpha, xp=xp)
    x = iterations.newton_raphson(a, start, steps=6, xp=xp)
    assert norm2(x) <= 1 / sigma[sigma > sigma[0] * 1e-12].min() * (1 + 1e-6)


def test_the_safe_factor_of_the_zero_matrix_gives_zero(backend):
    zero = backend.asarray(np.zeros((2, 3, 3)))
    alpha = iterations.safe_alpha(zero, xp=backend.xp)
    value = iterations.newton_raphson(zero, iterations.adjoint_start(zero, alpha, xp=backend.xp), steps=20, xp=backend.xp)
    assert np.array_equal(backend.to_numpy(value), np.zeros((2, 3, 3)))


def test_the_published_factor_is_taken_per_matrix(backend):
    w = np.asarray([[[1.0, 0.5], [0.5, 1.0]], [[1.0, 0.1], [0.1, 1.0]]])
    alpha = backend.to_numpy(iterations.published_alpha(backend.asarray(w), xp=backend.xp))
    assert alpha == pytest.approx([0.9 * 2 / 1.5**2, 0.9 * 2 / 1.1**2], rel=1e-14)
    small = backend.to_numpy(iterations.published_alpha(backend.asarray(w), ridge=0.01, xp=backend.xp))
    assert np.array_equal(small, alpha), "the published ridge changes nothing"


@pytest.mark.parametrize(("dtype", "ridge"), [("float32", 0.01), ("float32", 1.0), ("float64", 30.0)])
def test_the_published_factor_converges_with_any_ridge(backend, dtype, ridge):
    # Nearly equal landmarks: the row sum is the largest eigenvalue, and the ridge comes on top.
    rng = np.random.default_rng(0)
    w = np.asarray([np.ones((m, m)) - 1e-3 * np.asarray(k + k.T) for m in (4,) for k in (np.zeros((4, 4)), rng.random((4, 4)))])
    w[:, range(4), range(4)] = 1
    a = backend.asarray(w.astype(dtype))
    p = backend.asarray((w + ridge * np.eye(4)).astype(dtype))
    alpha = iterations.published_alpha(a, ridge=ridge, xp=backend.xp)
    x = backend.to_numpy(iterations.newton_raphson(p, iterations.adjoint_start(p, alpha, xp=backend.xp), steps=30, xp=backend.xp))
    expected = np.linalg.inv(w + ridge * np.eye(4))
    assert np.abs(x - expected).max() < (2e-4 if dtype == "float32" else 1e-12) * np.abs(expected).max()


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda a, xp: iterations.newton_raphson(a, steps=1, xp=xp),
            r"newton_raphson: exactly one of start and scale must be given; got neither",
        ),
        (
            lambda a, xp: iterations.hyperpower(a, a, order=3, scale=1.0, steps=1, xp=xp),
            r"hyperpower: exactly one of start and scale must be given; got both",
        ),
        (lambda a, xp: iterations.newton_raphson(a, a, steps=-1, xp=xp), r"newton_raphson: steps must be an int >= 0; got -1"),
        (lambda a, xp: iterations.newton_raphson(a, a, steps=2.0, xp=xp), r"newton_raphson: steps must be an int >= 0; got 2\.0"),
        (lambda a, xp: iterations.newton_raphson(a, a, steps=None, xp=xp), r"steps must be an int >= 0; got NoneType"),
        (
            lambda a, xp: iterations.newton_raphson(a, a, steps=np.asarray([1]), xp=xp),
            r"newton_raphson: max_steps must be given where steps is an array",
        ),
        (lambda a, xp: iterations.hyperpower(a, a, order=1, steps=1, xp=xp), r"hyperpower: order must be an int >= 2; got 1"),
        (lambda a, xp: iterations.hyperpower_jvp(a, a, a, a, order=0, steps=1, xp=xp), r"hyperpower_jvp: order must be an int >= 2; got 0"),
        (
            lambda a, xp: iterations.newton_raphson_jvp(a, None, a, a, scale=1.0, steps=1, xp=xp),
            r"newton_raphson_jvp: dstart must be None where scale is given",
        ),
        (
            lambda a, xp: iterations.chebyshev_newton(a, lo=0.0, hi=1.0, steps=1, xp=xp),
            r"chebyshev_newton: lo and hi must satisfy 0 < lo <= hi",
        ),
        (
            lambda a, xp: iterations.chebyshev_newton_jvp(a, a, lo=1.0, hi=0.5, steps=1, xp=xp),
            r"chebyshev_newton_jvp: lo and hi must satisfy",
        ),
        (
            lambda a, xp: iterations.chebyshev_newton_general(a, lo=1.0, hi=np.inf, steps=1, xp=xp),
            r"chebyshev_newton_general: lo and hi must satisfy",
        ),
        (
            lambda a, xp: iterations.chebyshev_newton(a, lo=0.1, hi=1.0, steps=1, polish=-1, xp=xp),
            r"chebyshev_newton: polish must be an int >= 0; got -1",
        ),
    ],
)
def test_settings_out_of_range_are_refused(call, match):
    with pytest.raises(ParameterError, match=match) as caught:
        call(np.eye(3), numpy_namespace)
    assert len(str(caught.value)) <= 400
