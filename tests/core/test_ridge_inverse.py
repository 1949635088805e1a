"""The ridge inverse: right and certified on every backend, fallbacks for failed members alone, exact gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import softlinalg
from softlinalg import InverseMethod, _native, _ridge_inverse, errors

METHODS = ["auto", "cholesky", "eigh", "chebyshev", "newton"]
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def gaussian_core(m: int, d: int, scale: float, rng: np.random.Generator, duplicates: int = 0) -> np.ndarray:
    """Gaussian kernel matrix of random points, some of them repeated: unit diagonal, as SOFT's landmark matrices are."""
    x = rng.standard_normal((m, d)) * scale
    if duplicates:
        x[-duplicates:] = x[:duplicates]
    squared = ((x[:, None, :] - x[None, :, :]) ** 2).sum(-1)
    return np.exp(-squared / 2)


def truth(a: np.ndarray, ridge: float) -> np.ndarray:
    """(A + ridge I)^-1 in 80-bit arithmetic, rounded to float64."""
    b = a.astype(np.longdouble) + np.longdouble(ridge) * np.eye(a.shape[-1], dtype=np.longdouble)
    x = np.linalg.inv(b.astype(float)).astype(np.longdouble)
    for _ in range(3):
        x = x + x @ (np.eye(a.shape[-1], dtype=np.longdouble) - b @ x)
    return x.astype(float)


def norm(e: np.ndarray) -> float:
    return float(np.linalg.norm(e, 2))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_value_is_within_its_bound_of_the_inverse_on_every_backend(backend, method, dtype):
    rng = np.random.default_rng(1)
    cores = np.stack([gaussian_core(20, 3, s, rng, duplicates=k) for s, k in ((2.0, 0), (0.7, 3), (0.0, 0))]).astype(dtype)
    result = softlinalg.certified_ridge_inverse(backend.asarray(cores), 0.01, method=method)
    assert str(result.value.dtype).endswith(dtype)
    assert backend.to_numpy(result.converged).all()
    assert (backend.to_numpy(result.rank) == 20).all()
    for core, value, bound in zip(cores, backend.to_numpy(result.value), backend.to_numpy(result.error_bound), strict=True):
        exact = truth(core.astype(float), 0.01)
        # The truth is known to a few units in its last digit.
        assert norm(value.astype(float) - exact) <= bound + 8 * EPS["float64"] * norm(exact)
        assert bound <= 2e-3 * norm(exact)


@settings(max_examples=80)
@given(
    m=st.integers(1, 24),
    d=st.integers(1, 4),
    scale=st.floats(0, 3),
    log_ridge=st.floats(-8, 1),
    method=st.sampled_from(METHODS),
    dtype=st.sampled_from(["float32", "float64"]),
    log2_scale=st.integers(-60, 60),
    seed=st.integers(0, 2**32 - 1),
)
@example(m=1, d=1, scale=0.0, log_ridge=-8.0, method="chebyshev", dtype="float32", log2_scale=60, seed=0)
@example(m=24, d=1, scale=0.1, log_ridge=-8.0, method="newton", dtype="float32", log2_scale=-60, seed=0)
def test_bound_holds_whatever_the_scale_ridge_and_method(m, d, scale, log_ridge, method, dtype, log2_scale, seed):
    rng = np.random.default_rng(seed)
    factor = 2.0**log2_scale
    a = (gaussian_core(m, d, scale, rng) * factor).astype(dtype)
    ridge = 10.0**log_ridge * factor
    result = softlinalg.certified_ridge_inverse(a, ridge, method=method)
    exact = truth(a.astype(float), ridge)
    unsure = 4 * m * EPS["float64"] * (1 + 1e-3 * m / 10.0**log_ridge) * norm(exact)
    assert norm(result.value.astype(float) - exact) <= result.error_bound + unsure
    if dtype == "float64" or log_ridge > -6:
        assert result.converged
        np.testing.assert_array_equal(result.value, result.value.T)


@settings(max_examples=40)
@given(m=st.integers(1, 12), exponent=st.integers(-250, 250), method=st.sampled_from(["auto", "chebyshev"]), seed=st.integers(0, 2**32 - 1))
def test_scaling_by_powers_of_two_scales_the_result(m, exponent, method, seed):
    a = gaussian_core(m, 2, 1.0, np.random.default_rng(seed))
    plain = softlinalg.ridge_inverse(a, 2.0**-6, method=method)
    scaled = softlinalg.ridge_inverse(np.ldexp(a, exponent), 2.0 ** (exponent - 6), method=method)
    # Not bitwise: square roots of odd powers of two round differently. Rounding is about m eps kappa.
    np.testing.assert_allclose(np.ldexp(scaled, exponent), plain, rtol=0, atol=64 * m * EPS["float64"] * m * 64 * np.abs(plain).max())


@pytest.mark.parametrize("size", [1e-300, 1e-160, 1.0, 1e160, 1e300])
@pytest.mark.parametrize("method", ["auto", "eigh", "chebyshev", "newton"])
def test_extreme_scales_are_right(size, method):
    a = np.array([[1.0, 0.5], [0.5, 1.0]]) * size
    value = softlinalg.ridge_inverse(a, size, method=method)
    np.testing.assert_allclose(value * size, truth(a / size, 1.0), rtol=1e-6)


def test_an_inverse_too_large_for_its_type_is_refused():
    with pytest.raises(errors.RangeError, match=r"ridge_inverse: the result must fit float64; got 1 matrices"):
        softlinalg.ridge_inverse(np.eye(2) * 1e-310, 0.0)
    with pytest.raises(errors.RangeError, match="must fit float16"):
        softlinalg.ridge_inverse(np.ones((3, 3), dtype=np.float16), 6e-6)


@pytest.mark.parametrize("m", [1, 2, 7])
def test_ones_zero_and_identity_have_their_closed_forms(m):
    eye = np.eye(m)
    np.testing.assert_allclose(softlinalg.ridge_inverse(np.zeros((m, m)), 0.25), 4 * eye, rtol=1e-15)
    np.testing.assert_allclose(softlinalg.ridge_inverse(eye, 1.0), eye / 2, rtol=1e-15)
    expected = (eye - np.ones((m, m)) / (m + 0.5)) / 0.5  # Sherman-Morrison
    np.testing.assert_allclose(softlinalg.ridge_inverse(np.ones((m, m)), 0.5), expected, rtol=1e-14, atol=1e-15)


def test_only_failed_members_fall_back():
    rng = np.random.default_rng(3)
    easy, hard = gaussian_core(12, 3, 1.5, rng), gaussian_core(12, 1, 0.05, rng)
    cores = np.stack([easy, hard, easy]).astype("float32")
    result = softlinalg.certified_ridge_inverse(cores, np.array([0.01, 1e-6, 0.01], dtype="float32"), method="chebyshev", tol=1e-4)
    assert result.converged.all()
    assert result.method.tolist() == [InverseMethod.chebyshev, InverseMethod.cholesky, InverseMethod.chebyshev]
    assert result.steps.tolist() == [result.steps[0], 0, result.steps[0]]


def test_on_failure_raise_and_warn_do_what_they_say():
    hard = gaussian_core(12, 1, 0.05, np.random.default_rng(3)).astype("float32")
    with pytest.raises(errors.ConvergenceError, match=r"ridge_inverse: the error must be certified to 0.0001; got the matrix") as caught:
        softlinalg.ridge_inverse(hard, 1e-6, method="chebyshev", tol=1e-4, on_failure="raise")
    assert not caught.value.info.converged
    with pytest.warns(errors.ConvergenceWarning, match="could not be"):
        value = softlinalg.ridge_inverse(hard, 1e-6, method="chebyshev", tol=1e-4, on_failure="warn")
    assert np.isfinite(value).all()


def test_a_singular_matrix_without_ridge_has_no_silent_answer():
    with pytest.raises(errors.ConvergenceError, match=r"Use a larger ridge or tol, float64, or pinv if it is singular\."):
        softlinalg.ridge_inverse(np.zeros((2, 2)), 0.0)
    result = softlinalg.certified_ridge_inverse(np.zeros((2, 2)), 0.0)
    assert (bool(result.converged), int(result.rank), float(result.error_bound)) == (False, -1, math.inf)


def test_a_tolerance_out_of_reach_is_not_claimed():
    core = gaussian_core(30, 1, 0.3, np.random.default_rng(4))
    with pytest.warns(errors.ConvergenceWarning, match="1 of 2 matrices"):
        softlinalg.ridge_inverse(np.stack([core, np.eye(30)]), 1e-14, tol=1e-9)
    assert not softlinalg.certified_ridge_inverse(core, 1e-14, tol=1e-9).converged


def test_results_do_not_depend_on_batch_mates_bit_for_bit():
    rng = np.random.default_rng(5)
    cores = np.stack([gaussian_core(9, 2, s, rng) for s in (3.0, 1.0, 0.2, 0.0)])
    cores[2] *= 1e-200
    for method in METHODS:
        ridge = np.array([0.1, 0.01, 1e-202, 0.001])
        together = softlinalg.certified_ridge_inverse(cores, ridge, method=method)
        for i in range(4):
            alone = softlinalg.certified_ridge_inverse(cores[i], ridge[i], method=method)
            np.testing.assert_array_equal(together.value[i], alone.value)
            assert together.steps[i] == alone.steps
            assert together.error_bound[i] == alone.error_bound


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize(("batch", "m"), [(1, 1), (70, 49), (3, 300)])
def test_the_way_through_the_cache_gives_the_same_bits_as_the_general_one(batch, m, dtype):
    rng = np.random.default_rng(13)
    cores = np.stack([gaussian_core(m, 3, 0.5, rng) for _ in range(batch)]).astype(dtype)
    np.testing.assert_array_equal(softlinalg.ridge_inverse(cores, 0.01), softlinalg.certified_ridge_inverse(cores, 0.01).value)


def test_a_non_finite_member_is_named_or_kept_apart(backend):
    a = np.stack([np.eye(20)] * 3)  # of the shape that JAX has compiled above
    a[1, 0, 2] = np.nan
    with pytest.raises(errors.NonFiniteError, match=r"ridge_inverse: a must be finite; got 1 non-finite entry \(first at \[1, 0, 2\]\)"):
        softlinalg.ridge_inverse(backend.asarray(a), 1.0)
    value = backend.to_numpy(softlinalg.ridge_inverse(backend.asarray(a), 1.0, check_finite=False))
    assert np.isnan(value[1]).all()
    np.testing.assert_allclose(value[[0, 2]], np.stack([np.eye(20) / 2] * 2), rtol=4 * EPS["float64"], atol=0)
    result = softlinalg.certified_ridge_inverse(backend.asarray(a), 1.0, check_finite=False)
    assert backend.to_numpy(result.converged).tolist() == [True, False, True]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_computes_wider_and_returns_its_own_type(dtype):
    torch = pytest.importorskip("torch")
    a = torch.tensor(gaussian_core(4, 3, 3.0, np.random.default_rng(6))).to(getattr(torch, dtype))
    a = (a + a.mT) / 2
    eps = 2.0**-10 if dtype == "float16" else 2.0**-7
    value = softlinalg.ridge_inverse(a, 0.5)
    with pytest.warns(errors.PrecisionWarning, match=f"condition number below .* in {dtype}; got about"):
        softlinalg.ridge_inverse(torch.ones((3, 3), dtype=a.dtype), 0.03)
    assert value.dtype == a.dtype
    exact = truth(a.double().numpy(), 0.5)
    assert np.abs(value.double().numpy() - exact).max() <= eps * np.abs(exact).max()


def test_shapes_empty_batches_lists_and_integers_are_taken():
    assert softlinalg.ridge_inverse(np.zeros((0, 3, 3)), 0.1).shape == (0, 3, 3)
    assert softlinalg.certified_ridge_inverse(np.zeros((2, 0, 3, 3)), 0.1).converged.shape == (2, 0)
    np.testing.assert_allclose(softlinalg.ridge_inverse([[2, 1], [1, 2]], 1), [[0.375, -0.125], [-0.125, 0.375]])
    assert softlinalg.ridge_inverse(np.eye(2, dtype=np.int64), 1).dtype == np.float64
    assert softlinalg.ridge_inverse(np.eye(2, dtype=np.float32), np.float32(1)).dtype == np.float32
    assert softlinalg.ridge_inverse(np.ones((2, 3, 4, 4)), np.ones((3,))).shape == (2, 3, 4, 4)


def test_layout_does_not_matter_and_inputs_stay_untouched():
    a = gaussian_core(8, 2, 1.0, np.random.default_rng(7))
    expected = softlinalg.ridge_inverse(a, 0.1)
    before = a.tobytes()
    for other in (np.asfortranarray(a), a[::-1, ::-1][::-1, ::-1], a.astype(">f8"), np.broadcast_to(a, (2, 8, 8))[1]):
        np.testing.assert_allclose(softlinalg.ridge_inverse(other, 0.1), expected, rtol=1e-12)
    assert a.tobytes() == before


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((np.zeros(3), 1.0), errors.ShapeError, r"a must have shape \(\.\.\., m, m\); got \(3,\)"),
        ((np.zeros((2, 3)), 1.0), errors.ShapeError, r"got \(2, 3\)"),
        ((np.zeros((0, 0)), 1.0), errors.ShapeError, "at least one row"),
        ((np.eye(2), -1.0), errors.ParameterError, "ridge must be a finite number >= 0; got -1.0"),
        ((np.eye(2), math.nan), errors.ParameterError, "got nan"),
        ((np.eye(2), "x"), errors.DTypeError, "ridge"),
        ((np.stack([np.eye(2)] * 3), np.ones(2)), errors.ShapeError, r"broadcast to the batch shape \(3,\); got shape \(2,\)"),
        ((np.eye(2), np.array(-1.0)), errors.ParameterError, "smallest value of -1"),
        ((np.eye(2), np.array(1j)), errors.ParameterError, "ridge must be real"),
        ((np.arange(4.0).reshape(2, 2), 1.0), errors.InputError, r"a must be Hermitian; got max \|A - A\^H\| = 1 where max \|A\| = 3"),
        ((np.eye(2).astype(object), 1.0), errors.DTypeError, "got dtype object"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        softlinalg.ridge_inverse(*arguments)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"method": "lu"}, "method must be one of auto, cholesky, eigh, chebyshev, newton; got 'lu'"),
        ({"on_failure": "ignore"}, "on_failure must be one of fallback, raise, warn; got 'ignore'"),
        ({"tol": 0.0}, "tol must be a finite number > 0"),
        ({"tol": 1.0}, "tol must be a finite number > 0 and <= 0.5; got 1.0"),
    ],
)
def test_bad_settings_are_refused(settings_, message):
    with pytest.raises(errors.ParameterError, match=message):
        softlinalg.ridge_inverse(np.eye(2), 1.0, **settings_)


def test_iterations_need_a_positive_ridge():
    with pytest.raises(errors.ParameterError, match=r"ridge must be a finite number > 0; got 0\.0"):
        softlinalg.ridge_inverse(np.eye(2), 0.0, method="chebyshev")


# ------------------------------------------------------------------------------------------------ derivatives
def test_vjp_and_jvp_equal_finite_differences():
    rng = np.random.default_rng(8)
    a = gaussian_core(6, 2, 1.0, rng, duplicates=2)
    direction = rng.standard_normal((6, 6))
    direction = direction + direction.T
    g = rng.standard_normal((6, 6))
    value = softlinalg.ridge_inverse(a, 0.1)
    h = 1e-5
    ahead, behind = softlinalg.ridge_inverse(a + h * direction, 0.1 + h), softlinalg.ridge_inverse(a - h * direction, 0.1 - h)
    slope = (ahead - behind) / (2 * h)
    # Central differences are off by h^2 times the third derivative, |Y|^4 |dA|^3, and by rounding over h.
    allowed = h**2 * norm(value) ** 4 * norm(direction) ** 3 + 1e3 * EPS["float64"] * norm(value) / h
    np.testing.assert_allclose(softlinalg.ridge_inverse_jvp(value, direction, 1.0), slope, rtol=0, atol=allowed)
    da, dridge = softlinalg.ridge_inverse_vjp(value, g)
    assert abs((da * direction).sum() + dridge - (g * slope).sum()) <= 6 * allowed * norm(g)
    assert dridge == pytest.approx(np.trace(da))


@settings(max_examples=30)
@given(m=st.integers(1, 8), seed=st.integers(0, 2**32 - 1), complex_=st.booleans())
def test_vjp_is_the_adjoint_of_jvp(m, seed, complex_):
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        return rng.standard_normal((m, m)) + (1j * rng.standard_normal((m, m)) if complex_ else 0)

    g, direction = draw(), draw()
    direction = direction + direction.conj().T
    root = draw()
    value = softlinalg.ridge_inverse(root @ root.conj().T, 0.5)
    left = np.vdot(g, softlinalg.ridge_inverse_jvp(value, direction)).real
    right = np.vdot(softlinalg.ridge_inverse_vjp(value, g)[0], direction).real
    assert left == pytest.approx(right, rel=1e-10, abs=1e-9 * np.abs(value).max() ** 2 * m)


def test_gradients_agree_with_torch_and_jax():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    rng = np.random.default_rng(9)
    a, g = gaussian_core(5, 2, 1.0, rng), rng.standard_normal((5, 5))
    expected, _ = softlinalg.ridge_inverse_vjp(softlinalg.ridge_inverse(a, 0.1), g)
    leaf = torch.tensor(a, requires_grad=True)
    (softlinalg.ridge_inverse((leaf + leaf.mT) / 2, 0.1) * torch.tensor(g)).sum().backward()
    np.testing.assert_allclose(leaf.grad.numpy(), expected, rtol=1e-9, atol=1e-9)
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda x: (softlinalg.ridge_inverse((x + x.T) / 2, 0.1) * g).sum()))(jax.numpy.asarray(a))
        np.testing.assert_allclose(np.asarray(gradient), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "method", ["auto", pytest.param("chebyshev", marks=pytest.mark.thorough("newton is traced the same way")), "newton"]
)
def test_tracing_by_jax_and_torch_gives_the_eager_result(method):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    a = np.stack([gaussian_core(6, 2, s, np.random.default_rng(10)) for s in (1.0, 0.3)]).astype("float32")

    def f(x):
        return softlinalg.ridge_inverse(x, 0.01, method=method)

    eager = f(a)
    allowed = 1e-3 * np.abs(eager).max()
    np.testing.assert_allclose(np.asarray(jax.jit(f)(a)), eager, rtol=0, atol=allowed)
    np.testing.assert_allclose(np.asarray(jax.jit(jax.vmap(f))(a)), eager, rtol=0, atol=allowed)
    np.testing.assert_allclose(torch.func.vmap(f)(torch.tensor(a)).numpy(), eager, rtol=0, atol=allowed)
    compiled = torch.compile(f, fullgraph=True, backend="eager")
    np.testing.assert_allclose(compiled(torch.tensor(a)).numpy(), eager, rtol=0, atol=allowed)


def test_traced_members_without_a_certificate_are_nan():
    jax = pytest.importorskip("jax")
    a = np.stack([np.eye(3), np.zeros((3, 3))]).astype("float32")
    value = np.asarray(jax.jit(lambda x: softlinalg.ridge_inverse(x, 0.0))(a))
    assert np.isfinite(value[0]).all()
    assert np.isnan(value[1]).all()
    result = jax.jit(lambda x: softlinalg.certified_ridge_inverse(x, 0.0))(a)
    assert np.asarray(result.converged).tolist() == [True, False]


@pytest.mark.parametrize("m", [49, 196])
def test_papers_regime_is_certified_in_float32_with_half_the_products(m):
    """Unit-diagonal cores with eigenvalues down to 1e-4 and below, ridge 0.01: |error| <= 1e-3, in at most half of 40 products."""
    rng = np.random.default_rng(11)
    cores = np.stack([gaussian_core(m, 3, 0.8, rng) for _ in range(3)]).astype("float32")
    assert (np.linalg.eigvalsh(cores.astype(float))[:, 0] < 1e-4).all()
    result = softlinalg.certified_ridge_inverse(cores, 0.01, method="chebyshev", tol=1e-3)
    assert result.converged.all()
    assert (result.method == InverseMethod.chebyshev).all()
    products = 2 * (result.steps - 1)  # the first step is a multiple of the identity and has none
    assert (products <= 20).all()
    for core, value in zip(cores, result.value, strict=True):
        exact = truth(core.astype(float), 0.01)
        assert norm(value - exact) <= 1e-3 * norm(exact)


def test_forward_error_is_within_four_times_that_of_lu_in_float32():
    rng = np.random.default_rng(12)
    for d, scale, ridge in ((8, 0.5, 1e-2), (2, 0.5, 1e-3), (2, 1.0, 1e-4)):
        core = gaussian_core(64, d, scale, rng).astype("float32")
        exact = truth(core.astype(float), ridge)
        lu = norm(np.linalg.inv(core + np.float32(ridge) * np.eye(64, dtype="float32")) - exact)
        result = softlinalg.certified_ridge_inverse(core, ridge, method="chebyshev", tol=1e-6)
        ours = norm(softlinalg.ridge_inverse(core, ridge) - exact)
        assert ours <= 4 * lu
        assert norm(result.value - exact) <= 4 * lu + 1e-6 * norm(exact)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", ["chebyshev", "newton"])
def test_an_iteration_that_was_a_little_short_takes_one_step_more(method, dtype, monkeypatch):
    """All eigenvalues but one lie where the residual is largest: the bound is then m times its square, more than what is usual."""
    m, taken = 100, []
    real = _ridge_inverse._last_step

    def counted(*arguments, **keywords):
        taken[-1] += 1
        return real(*arguments, **keywords)

    monkeypatch.setattr(_ridge_inverse, "_last_step", counted)
    for size in np.geomspace(0.1, 10, 24):
        taken.append(0)
        a = np.full((m, m), size / m, dtype=dtype)
        value = softlinalg.ridge_inverse(a, 0.01, method=method, tol=1e-3, on_failure="raise")
        exact = (np.eye(m) - np.ones((m, m)) * float(a[0, 0]) / (0.01 + m * float(a[0, 0]))) / 0.01
        assert np.linalg.norm(value - exact, 2) <= 1e-3 * 100 * (1 + 1e-6)
    if dtype == np.float32 or _native.load() is not None:
        assert 2 in taken
        assert 1 in taken
