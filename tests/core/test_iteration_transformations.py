"""The matmul-only iterations: their derivatives, batches and tracing, on every array library."""

from __future__ import annotations

import warnings

import array_api_compat.numpy as numpy_namespace
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iteration_cases import EPS, hermitian, norm2, seeds, sizes, spectrum

from softlinalg import _iterations as iterations


# --------------------------------------------------------------------------------------------------- derivatives
def _derivative_cases(xp, array, dtype_scale=1.0):
    """(value as a function of the matrix, jvp as a function of matrix and direction), all iterations."""

    def newton(a):
        return iterations.newton_raphson(a, iterations.adjoint_start(a, 0.2, xp=xp), steps=6, xp=xp)

    def newton_jvp(a, da):
        return iterations.newton_raphson_jvp(
            a, iterations.adjoint_start(a, 0.2, xp=xp), da, iterations.adjoint_start(da, 0.2, xp=xp), steps=6, xp=xp
        )

    def hyper(a):
        return iterations.hyperpower(a, iterations.adjoint_start(a, 0.2, xp=xp), order=array["order"], steps=2, xp=xp)

    def hyper_jvp(a, da):
        return iterations.hyperpower_jvp(
            a, iterations.adjoint_start(a, 0.2, xp=xp), da, iterations.adjoint_start(da, 0.2, xp=xp), order=array["order"], steps=2, xp=xp
        )

    bounds = {"lo": 0.3, "hi": 2.5, "steps": 3, "xp": xp}
    cases = [(newton, newton_jvp), (hyper, hyper_jvp)]
    cases.append(
        (lambda a: iterations.chebyshev_newton_general(a, **bounds), lambda a, da: iterations.chebyshev_newton_general_jvp(a, da, **bounds))
    )
    if array["square"]:
        cases.append((lambda a: iterations.chebyshev_newton(a, **bounds), lambda a, da: iterations.chebyshev_newton_jvp(a, da, **bounds)))
        cases.append(
            (
                lambda a: iterations.newton_raphson(a, scale=0.3, steps=5, xp=xp),
                lambda a, da: iterations.newton_raphson_jvp(a, None, da, None, scale=0.3, steps=5, xp=xp),
            )
        )
        cases.append(
            (
                lambda a: iterations.hyperpower(a, scale=0.3, order=array["order"], steps=2, xp=xp),
                lambda a, da: iterations.hyperpower_jvp(a, None, da, None, scale=0.3, order=array["order"], steps=2, xp=xp),
            )
        )
    return cases


shapes = pytest.mark.parametrize(("shape", "order"), [((5, 5), 2), ((2, 4, 4), 3), ((3, 6), 4), ((6, 3), 7), ((6, 6), 9), ((7, 4), 6)])


def _pair(shape, seed=0):
    rng = np.random.default_rng(seed)
    a, da = rng.standard_normal(shape), rng.standard_normal(shape)
    return a / np.linalg.norm(a, 2, axis=(-2, -1))[..., None, None] * 1.2, da


def _relative(x, y):
    return np.linalg.norm(np.asarray(x) - np.asarray(y)) / np.linalg.norm(np.asarray(y))


@shapes
def test_jvp_is_the_derivative_that_torch_finds_through_the_loop(shape, order):
    torch = pytest.importorskip("torch")
    import array_api_compat.torch as xp

    a, da = (torch.tensor(x) for x in _pair(shape))
    for value, jvp in _derivative_cases(xp, {"square": shape[-1] == shape[-2], "order": order}):
        expected_value, expected = torch.func.jvp(value, (a,), (da,))
        x, dx = jvp(a, da)
        assert _relative(x, expected_value) <= 1e-13
        assert _relative(dx, expected) <= 1e-12


@shapes
def test_jvp_is_the_derivative_that_jax_finds_through_the_loop(shape, order):
    jax = pytest.importorskip("jax")
    import jax.numpy as xp

    with jax.enable_x64(True):
        a, da = (xp.asarray(x) for x in _pair(shape))
        for value, jvp in _derivative_cases(xp, {"square": shape[-1] == shape[-2], "order": order}):
            expected_value, expected = jax.jvp(value, (a,), (da,))
            x, dx = jvp(a, da)
            assert _relative(x, expected_value) <= 1e-13
            assert _relative(dx, expected) <= 1e-12


@shapes
@pytest.mark.parametrize("complex_entries", [False, True])
def test_jvp_agrees_with_finite_differences(shape, order, complex_entries):
    a, da = _pair(shape)
    if complex_entries:
        a, da = (x + 0.5j * y for x, y in zip((a, da), _pair(shape, seed=5), strict=True))
    h = 1e-5
    for value, jvp in _derivative_cases(numpy_namespace, {"square": shape[-1] == shape[-2], "order": order}):
        difference = (value(a + h * da) - value(a - h * da)) / (2 * h)
        x, dx = jvp(a, da)
        assert _relative(x, value(a)) <= 1e-13
        # Truncation h^2 times the third derivative, of the order of the derivative cubed; rounding eps / h.
        growth = np.linalg.norm(dx) / np.linalg.norm(x)
        assert _relative(dx, difference) <= 200 * (h * h * (1 + growth) ** 2 + EPS / h)


@given(m=sizes, log10_kappa=st.floats(0, 3), steps=st.integers(0, 6), complex_entries=st.booleans(), seed=seeds)
def test_the_derivative_is_self_adjoint_for_hermitian_matrices(m, log10_kappa, steps, complex_entries, seed):
    rng, kappa = np.random.default_rng(seed), 10.0**log10_kappa
    b, _ = hermitian(rng, spectrum(rng, m, kappa), complex_entries)
    e, _ = hermitian(rng, rng.standard_normal(m), complex_entries)
    g, _ = hermitian(rng, rng.standard_normal(m), complex_entries)
    xp = numpy_namespace

    def newton_jvp(d):
        return iterations.newton_raphson_jvp(b, 0.9 * b, d, 0.9 * d, steps=steps, xp=xp)

    def chebyshev_jvp(d):
        return iterations.chebyshev_newton_jvp(b, d, lo=1 / kappa, hi=1.0, steps=steps, xp=xp)

    for jvp in (newton_jvp, chebyshev_jvp):
        x, along_e = jvp(e)
        _, along_g = jvp(g)
        left, right = np.vdot(g, along_e), np.vdot(along_g, e)
        scale = np.linalg.norm(along_e) * np.linalg.norm(g) + np.linalg.norm(along_g) * np.linalg.norm(e)
        assert abs(left - right) <= 100 * (m + 4) * (steps + 2) * EPS * kappa * (scale + norm2(x) * np.linalg.norm(e) * np.linalg.norm(g))


# ------------------------------------------------------------------------------------------- batches and tracing
@given(batch=st.integers(1, 4), m=sizes, max_steps=st.integers(0, 7), polish=st.integers(0, 2), seed=seeds)
def test_finished_members_stay_frozen_and_equal_single_runs_bit_for_bit(batch, m, max_steps, polish, seed):
    rng, xp = np.random.default_rng(seed), numpy_namespace
    b = np.stack([hermitian(rng, spectrum(rng, m, 20.0))[0] for _ in range(batch)])
    steps = rng.integers(0, max_steps + 1, size=batch)
    lo, hi = rng.uniform(0.01, 0.05, size=batch), rng.uniform(1.0, 2.0, size=batch)
    start = 0.4 * b
    runs = [
        (lambda i, k, **more: iterations.newton_raphson(b[i], start[i], steps=k, xp=xp, **more)),
        (lambda i, k, **more: iterations.newton_raphson(b[i], scale=lo[i], steps=k, xp=xp, **more)),
        (lambda i, k, **more: iterations.chebyshev_newton(b[i], lo=lo[i], hi=hi[i], steps=k, polish=polish, xp=xp, **more)),
        (lambda i, k, **more: iterations.chebyshev_newton(b[i], lo=0.05, hi=2.0, steps=k, polish=polish, xp=xp, **more)),
        (lambda i, k, **more: iterations.chebyshev_newton_general(b[i], lo=lo[i], hi=hi[i], steps=k, polish=polish, xp=xp, **more)),
        (lambda i, k, **more: iterations.hyperpower(b[i], start[i], order=5, steps=k, xp=xp, **more)),
        (lambda i, k, **more: iterations.hyperpower(b[i], scale=lo[i], order=3, steps=k, xp=xp, **more)),
    ]
    for run in runs:
        together = run(slice(None), steps, max_steps=max_steps)
        for i in range(batch):
            assert np.array_equal(together[i], run(i, int(steps[i])))


def test_a_bad_member_leaves_its_batch_mates_alone():
    rng = np.random.default_rng(2)
    b = np.stack([hermitian(rng, spectrum(rng, 5, 20.0))[0] for _ in range(3)])
    clean = iterations.chebyshev_newton(b, lo=0.05, hi=1.0, steps=4, xp=numpy_namespace)
    poisoned = b.copy()
    poisoned[1] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        value = iterations.chebyshev_newton(poisoned, lo=0.05, hi=1.0, steps=4, xp=numpy_namespace)
    assert np.isnan(value[1]).all()
    assert np.array_equal(value[[0, 2]], clean[[0, 2]])


def test_batches_bounds_and_steps_per_matrix_work_in_every_library(backend):
    xp, rng = backend.xp, np.random.default_rng(4)
    lam = np.stack([spectrum(rng, 6, k) for k in (5.0, 50.0, 500.0)]).reshape(3, 1, 6)
    b = np.stack([hermitian(rng, row[0])[0] for row in lam]).reshape(3, 1, 6, 6)
    array, counts = backend.asarray(b), backend.asarray(np.asarray([[2], [4], [6]]))
    lo, hi = backend.asarray(lam.min(-1)), backend.asarray(lam.max(-1))
    value = iterations.chebyshev_newton(array, lo=lo, hi=hi, steps=counts, max_steps=6, xp=xp)
    general = iterations.chebyshev_newton_general(array, lo=lo, hi=hi, steps=counts, max_steps=6, xp=xp)
    hyper = iterations.hyperpower(array, scale=lo, order=3, steps=counts, max_steps=6, xp=xp)
    assert value.shape == general.shape == hyper.shape == (3, 1, 6, 6)
    for i, k in enumerate((2, 4, 6)):
        bounds = {"lo": float(lam[i].min()), "hi": float(lam[i].max()), "steps": k, "xp": numpy_namespace}
        expected = iterations.chebyshev_newton(b[i], **bounds)
        assert _relative(backend.to_numpy(value)[i], expected) <= 1e4 * EPS * 500
        assert _relative(backend.to_numpy(general)[i], iterations.chebyshev_newton_general(b[i], **bounds)) <= 1e4 * EPS * 500
        expected = iterations.hyperpower(b[i], scale=bounds["lo"], order=3, steps=k, xp=numpy_namespace)
        assert _relative(backend.to_numpy(hyper)[i], expected) <= 1e4 * EPS * 500


def test_a_single_eigenvalue_needs_no_step_and_no_division_by_zero(backend):
    xp = backend.xp
    b = backend.asarray(np.eye(3)[None] * np.asarray([[[0.5]], [[2.0]]]))
    ends = backend.asarray(np.asarray([0.5, 2.0]))
    inverse = np.eye(3)[None] * np.asarray([[[2.0]], [[0.5]]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (0, 1, 3):
            value = iterations.chebyshev_newton(b, lo=ends, hi=ends, steps=steps, xp=xp)
            assert np.abs(backend.to_numpy(value) - inverse).max() <= 4 * EPS
            general = iterations.chebyshev_newton_general(b, lo=ends, hi=ends, steps=steps, xp=xp)
            assert np.abs(backend.to_numpy(general) - inverse).max() <= 16 * EPS
    single = iterations.chebyshev_newton(b[0, ...], lo=0.5, hi=0.5, steps=2, xp=xp)
    assert np.abs(backend.to_numpy(single) - inverse[0]).max() <= 4 * EPS


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_settings_of_any_type_never_promote_the_matrix(backend, dtype):
    xp = backend.xp
    b = backend.asarray(np.diag([1.0, 0.5, 0.1])[None].astype(dtype))
    wide = backend.asarray(np.asarray([0.1]))
    one = backend.asarray(np.asarray([1.0]))
    steps = backend.asarray(np.asarray([2]))
    for lo, hi in ((0.1, 1.0), (np.float64(0.1), np.float64(1.0)), (wide, one), (0.1, one)):
        for counts in ({"steps": 2}, {"steps": steps, "max_steps": 2}):
            assert iterations.chebyshev_newton(b, lo=lo, hi=hi, xp=xp, **counts).dtype == b.dtype
            assert iterations.chebyshev_newton_general(b, lo=lo, hi=hi, xp=xp, **counts).dtype == b.dtype
    for scale in (0.5, np.float64(0.5), wide):
        assert iterations.newton_raphson(b, scale=scale, steps=0, xp=xp).dtype == b.dtype
        assert iterations.newton_raphson(b, scale=scale, steps=2, xp=xp).dtype == b.dtype
        assert iterations.hyperpower(b, scale=scale, order=3, steps=2, xp=xp).dtype == b.dtype
        assert iterations.adjoint_start(b, scale, xp=xp).dtype == b.dtype
        value, derivative = iterations.newton_raphson_jvp(b, None, b, None, scale=scale, steps=2, xp=xp)
        assert value.dtype == derivative.dtype == b.dtype


def test_iterations_run_under_jit():
    jax = pytest.importorskip("jax")
    import jax.numpy as xp

    b, _ = hermitian(np.random.default_rng(0), spectrum(np.random.default_rng(0), 5, 20.0))

    def run(b, hi, counts):
        return (
            iterations.chebyshev_newton(b, lo=0.05, hi=hi, steps=4, xp=xp),
            iterations.chebyshev_newton(b, lo=0.05, hi=hi, steps=counts, max_steps=4, xp=xp),
            iterations.newton_raphson(b, iterations.adjoint_start(b, iterations.safe_alpha(b, xp=xp), xp=xp), steps=4, xp=xp),
            iterations.hyperpower(b, scale=1 / hi, order=7, steps=2, xp=xp),
            *iterations.chebyshev_newton_jvp(b, b, lo=0.05, hi=hi, steps=4, xp=xp),
        )

    with jax.enable_x64(True):
        arguments = xp.asarray(np.stack([b, b])), xp.asarray([1.0, 1.5]), xp.asarray([2, 3])
        for traced, eager in zip(jax.jit(run)(*arguments), run(*arguments), strict=True):
            assert _relative(traced, eager) <= 1e-12
        for mapped, eager in zip(jax.vmap(run)(*arguments), run(*arguments), strict=True):
            assert _relative(mapped, eager) <= 1e-12


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")
def test_iterations_compile_to_one_graph():
    torch = pytest.importorskip("torch")
    import array_api_compat.torch as xp

    b, _ = hermitian(np.random.default_rng(0), spectrum(np.random.default_rng(0), 5, 20.0))

    def run(b, hi, lo):
        return (
            iterations.chebyshev_newton(b, lo=lo, hi=hi, steps=4, xp=xp),
            iterations.newton_raphson(b, iterations.adjoint_start(b, iterations.safe_alpha(b, xp=xp), xp=xp), steps=4, xp=xp),
            iterations.hyperpower(b, scale=0.5, order=7, steps=2, xp=xp),
            *iterations.chebyshev_newton_jvp(b, b, lo=lo, hi=hi, steps=4, xp=xp),
        )

    compiled = torch.compile(run, fullgraph=True, backend="eager")
    matrices = torch.tensor(np.stack([b, b]))
    for hi, lo in ((1.0, 0.05), (1.5, 0.05), (1.7, 0.02), (torch.tensor([1.0, 1.5], dtype=torch.float64), 0.05)):
        for value, eager in zip(compiled(matrices, hi, lo), run(matrices, hi, lo), strict=True):
            assert torch.equal(value, eager)
