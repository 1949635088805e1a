"""The pseudo-inverse: Penrose's conditions, certified ranks, fallbacks, derivatives at constant rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import softlinalg
from softlinalg import InverseMethod, errors

METHODS = ["auto", "svd", "newton", "chebyshev"]
U = {"float32": 2.0**-23, "float64": 2.0**-52}
THRESHOLD = 30  # of LAPACK's testing ratios: residual over eps x dimension x condition


def with_rank(m: int, n: int, r: int, kappa: float, rng: np.random.Generator, *, complex_: bool = False) -> np.ndarray:
    """Random matrix of rank r with singular values from 1 down to 1 / kappa, geometrically."""

    def frame(k: int) -> np.ndarray:
        g = rng.standard_normal((k, k)) + (1j * rng.standard_normal((k, k)) if complex_ else 0)
        return np.linalg.qr(g)[0][:, :r]

    s = kappa ** -np.linspace(0, 1, r) if r > 1 else np.ones(r)
    return (frame(m) * s) @ frame(n).conj().T


def penrose_ratios(a: np.ndarray, x: np.ndarray, kappa: float, u: float) -> list[float]:
    """The four conditions as multiples of u x dimension x condition."""
    a, x = a.astype(complex), x.astype(complex)
    unit = u * max(a.shape) * kappa

    def size(e: np.ndarray) -> float:
        return float(np.linalg.norm(e, 2))

    ax, xa = a @ x, x @ a
    na, nx = max(size(a), 1e-300), max(size(x), 1e-300)
    return [size(ax @ a - a) / (unit * na), size(xa @ x - x) / (unit * nx), size(ax - ax.conj().T) / unit, size(xa - xa.conj().T) / unit]


@settings(max_examples=100)
@given(
    m=st.integers(1, 12),
    n=st.integers(1, 12),
    deficiency=st.integers(0, 11),
    log_kappa=st.floats(0, 3),
    dtype=st.sampled_from(["float32", "float64"]),
    complex_=st.booleans(),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 2**32 - 1),
)
@example(m=6, n=4, deficiency=0, log_kappa=3.0, dtype="float32", complex_=False, method="svd", seed=0)
@example(m=1, n=1, deficiency=0, log_kappa=0.0, dtype="float64", complex_=True, method="newton", seed=0)
@example(m=9, n=9, deficiency=4, log_kappa=2.0, dtype="float64", complex_=False, method="chebyshev", seed=0)
@example(m=2, n=9, deficiency=1, log_kappa=0.0, dtype="float32", complex_=False, method="chebyshev", seed=0)  # 2.5e-5 in the third
def test_pinv_satisfies_the_penrose_conditions(m, n, deficiency, log_kappa, dtype, complex_, method, seed):
    rng = np.random.default_rng(seed)
    r = max(1, min(m, n) - deficiency)
    kappa = 10.0**log_kappa if r > 1 else 1.0
    kind = {"float32": "complex64", "float64": "complex128"}[dtype] if complex_ else dtype
    a = with_rank(m, n, r, kappa, rng, complex_=complex_).astype(kind)
    # A cut-off inside the gap: rounding of A puts noise of size u where the singular values are zero.
    rtol = None if method in ("newton", "chebyshev") else max(m, n) * 8 * U[dtype]
    result = softlinalg.certified_pinv(a, method=method, rtol=rtol)
    assert int(result.rank) == r
    assert result.converged
    ratios = penrose_ratios(a, result.value, kappa, U[dtype])
    assert max(ratios[:2]) <= THRESHOLD
    if method in ("newton", "chebyshev") and r < min(m, n):
        # Rounding in the null space grows until the cut-off is resolved: what holds is the certificate, |X - A_r^+| <= error_bound.
        certified = 2 * float(result.error_bound) / (U[dtype] * max(m, n) * kappa)  # A has norm 1
        assert max(ratios[2:]) <= THRESHOLD + 1.01 * certified
    else:  # Class N, the iterations: the symmetry conditions hold to the square of the condition.
        assert max(ratios[2:]) <= THRESHOLD * (kappa if method in ("newton", "chebyshev") else 1)


@pytest.mark.parametrize("method", METHODS)
def test_every_backend_gives_the_same_certified_result(backend, method):
    rng = np.random.default_rng(1)
    a = np.stack([with_rank(6, 4, r, 10.0, rng) for r in (4, 2, 1)] + [np.zeros((6, 4))])
    result = softlinalg.certified_pinv(backend.asarray(a), method=method)
    assert backend.to_numpy(result.rank).tolist() == [4, 2, 1, 0]
    assert backend.to_numpy(result.converged).all()
    bounds = backend.to_numpy(result.error_bound)
    for matrix, value, bound in zip(a, backend.to_numpy(result.value), bounds, strict=True):
        expected = np.linalg.pinv(matrix, rtol=1e-10)
        assert np.linalg.norm(value - expected, 2) <= bound + 1e-13
    assert (bounds <= 1e-8).all()


@settings(max_examples=40)
@given(m=st.integers(1, 8), n=st.integers(1, 8), exponent=st.integers(-300, 300), seed=st.integers(0, 2**32 - 1))
def test_power_of_two_scaling_is_bitwise(m, n, exponent, seed):
    a = np.random.default_rng(seed).standard_normal((m, n))
    np.testing.assert_array_equal(softlinalg.pinv(np.ldexp(a, exponent)), np.ldexp(softlinalg.pinv(a), -exponent))


@settings(max_examples=40)
@given(m=st.integers(1, 8), n=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_adjoint_permutation_and_padding_commute_with_pinv(m, n, seed):
    rng = np.random.default_rng(seed)
    a = with_rank(m, n, max(1, min(m, n) - 1), 30.0, rng)
    x = softlinalg.pinv(a)
    allowed = 2 * THRESHOLD * max(m, n) * U["float64"] * 30 * np.abs(x).max() * max(m, n)
    np.testing.assert_allclose(softlinalg.pinv(a.T), x.T, rtol=0, atol=allowed)
    p, q = rng.permutation(m), rng.permutation(n)
    np.testing.assert_allclose(softlinalg.pinv(a[p][:, q]), x[q][:, p], rtol=0, atol=allowed)
    padded = softlinalg.pinv(np.pad(a, ((0, 1), (0, 2))))
    np.testing.assert_allclose(padded, np.pad(x, ((0, 2), (0, 1))), rtol=0, atol=allowed)


@settings(max_examples=30)
@given(m=st.integers(1, 6), n=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_pinv_of_the_pinv_and_of_a_kronecker_product(m, n, seed):
    rng = np.random.default_rng(seed)
    a, b = with_rank(m, n, min(m, n), 20.0, rng), with_rank(2, 3, 2, 3.0, rng)
    x = softlinalg.pinv(a)
    np.testing.assert_allclose(softlinalg.pinv(x), a, rtol=0, atol=THRESHOLD * max(m, n) * U["float64"] * 400)
    kron = softlinalg.pinv(np.kron(a, b))
    np.testing.assert_allclose(kron, np.kron(x, softlinalg.pinv(b)), rtol=0, atol=THRESHOLD * 3 * max(m, n) * U["float64"] * 60 * 60)


@settings(max_examples=40)
@given(m=st.integers(1, 10), deficiency=st.integers(0, 9), negative=st.booleans(), seed=st.integers(0, 2**32 - 1))
def test_hermitian_results_are_hermitian_and_equal_the_general_ones(m, deficiency, negative, seed):
    rng = np.random.default_rng(seed)
    r = max(1, m - deficiency)
    q = np.linalg.qr(rng.standard_normal((m, m)))[0][:, :r]
    signs = rng.choice([-1.0, 1.0], r) if negative else np.ones(r)
    a = (q * (signs * np.linspace(1, 2, r))) @ q.T
    a = (a + a.T) / 2
    x = softlinalg.pinv(a, hermitian=True)
    np.testing.assert_array_equal(x, x.T)
    np.testing.assert_allclose(x, softlinalg.pinv(a), rtol=0, atol=THRESHOLD * m * U["float64"] * 4)


@pytest.mark.parametrize("method", METHODS)
def test_published_failures_are_right_here(method):
    """Two equal landmarks, all equal, row sum equal to the top eigenvalue, zero, 1 x 1: where fixed steps give zero or NaN."""
    for a in (np.ones((4, 4)), np.array([[1.0, 1.0], [1.0, 1.0]]), np.eye(3), np.zeros((2, 3)), np.array([[0.0]]), np.array([[-3.0]])):
        value = softlinalg.pinv(a, method=method)
        np.testing.assert_allclose(value, np.linalg.pinv(a, rtol=1e-10), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("size", [2.0**-1000, 1e-300, 1e-5, 1e5, 1e300])
@pytest.mark.parametrize("method", METHODS)
def test_extreme_scales_are_right(size, method):
    a = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    np.testing.assert_allclose(softlinalg.pinv(a * size, method=method) * size, np.linalg.pinv(a, rtol=1e-10), rtol=1e-7)


def test_an_uncertain_rank_is_not_claimed_and_warns():
    hilbert = 1 / (1.0 + np.arange(12)[:, None] + np.arange(12))
    with pytest.warns(
        errors.RankWarning, match=r"pinv: the error must be certified to 1e-06; got the matrix .*no gap in the singular values"
    ):
        value = softlinalg.pinv(hilbert)
    assert np.isfinite(value).all()
    result = softlinalg.certified_pinv(hilbert)
    assert (int(result.rank), bool(result.converged), float(result.error_bound)) == (-1, False, math.inf)
    with pytest.raises(errors.ConvergenceError, match="without a certain rank"):
        softlinalg.pinv(hilbert, on_failure="raise")


def test_iterations_fall_back_for_the_members_without_a_gap_alone():
    rng = np.random.default_rng(2)
    easy = with_rank(5, 5, 5, 2.0, rng)
    hard = with_rank(5, 5, 5, 1e9, rng)  # below the resolution of an iteration in float64
    result = softlinalg.certified_pinv(np.stack([easy, hard, easy]), method="newton")
    assert result.method.tolist() == [InverseMethod.newton, InverseMethod.svd, InverseMethod.newton]
    assert result.rank.tolist() == [5, 5, 5]
    assert result.steps[1] == 0
    assert result.converged.all()


def test_batch_mates_change_nothing_bit_for_bit():
    rng = np.random.default_rng(3)
    a = np.stack([with_rank(5, 4, r, 50.0, rng) for r in (4, 3, 2)] + [np.zeros((5, 4))])
    a[2] *= 1e250
    for method in METHODS:
        together = softlinalg.certified_pinv(a, method=method)
        for i in range(4):
            alone = softlinalg.certified_pinv(a[i], method=method)
            np.testing.assert_array_equal(together.value[i], alone.value)
            assert together.error_bound[i] == alone.error_bound


def test_rank_is_exact_on_both_sides_of_a_gap():
    rng = np.random.default_rng(4)
    q, p = (np.linalg.qr(rng.standard_normal((6, 6)))[0] for _ in range(2))
    a = (q * np.array([1, 0.5, 0.2, 1e-3, 1e-9, 1e-10])) @ p
    for rtol, rank in ((1e-12, 6), (1e-6, 4), (1e-2, 3)):
        result = softlinalg.certified_pinv(a, rtol=rtol)
        assert int(result.rank) == rank
        s = [1, 0.5, 0.2, 1e-3, 1e-9, 1e-10, 0][rank]
        assert s * (1 - 1e-6) <= float(result.backward_error) < [1, 0.5, 0.2, 1e-3, 1e-9, 1e-10][rank - 1]


def test_non_finite_members_are_named_or_kept_apart(backend):
    a = np.stack([np.ones((6, 4))] * 4)  # of the shape above, which JAX has compiled
    a[1, 1, 2] = np.inf
    with pytest.raises(errors.NonFiniteError, match=r"pinv: a must be finite; got 1 non-finite entry \(first at \[1, 1, 2\]\)"):
        softlinalg.pinv(backend.asarray(a))
    value = backend.to_numpy(softlinalg.pinv(backend.asarray(a), check_finite=False))
    np.testing.assert_allclose(value[[0, 2, 3]], np.full((3, 4, 6), 1 / 24))
    assert np.isnan(value[1]).all()


def test_empty_shapes_and_types():
    assert softlinalg.pinv(np.zeros((0, 3))).shape == (3, 0)
    assert softlinalg.pinv(np.zeros((2, 3, 0), dtype="float32")).dtype == np.float32
    assert softlinalg.pinv(np.zeros((0, 3, 2))).shape == (0, 2, 3)
    assert softlinalg.certified_pinv(np.zeros((4, 0, 2))).rank.tolist() == [0, 0, 0, 0]
    assert softlinalg.pinv(np.ones((2, 2), dtype=bool)).dtype == np.float64
    assert softlinalg.pinv(np.ones((2, 2), dtype="complex64")).dtype == np.complex64
    assert softlinalg.pinv(np.ones((2, 3), dtype="float16")).dtype == np.float16


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"a": np.float64(3)}, errors.ShapeError, r"pinv: a must have shape \(\.\.\., m, n\); got \(\)"),
        ({"a": np.zeros(3)}, errors.ShapeError, r"got \(3,\)"),
        ({"a": np.eye(2), "rtol": -1.0}, errors.ParameterError, "rtol must be a finite number >= 0"),
        (
            {"a": np.eye(2), "rtol": 1e-12, "method": "newton"},
            errors.ParameterError,
            "rtol must be >= 3e-08 for method 'newton'; got 1e-12. Use method='svd'",
        ),
        ({"a": np.eye(2), "method": "eigh"}, errors.ParameterError, "method 'eigh' must go with hermitian=True"),
        ({"a": np.eye(2), "method": "qr"}, errors.ParameterError, "method must be one of"),
        ({"a": np.arange(4.0).reshape(2, 2), "hermitian": True}, errors.InputError, "a must be Hermitian"),
        ({"a": np.zeros((2, 3)), "hermitian": True}, errors.ShapeError, r"shape \(\.\.\., m, m\)"),
        ({"a": np.ma.masked_array(np.eye(2))}, errors.DTypeError, "must not be masked"),
        ({"a": [["a"]]}, errors.DTypeError, "must hold"),
        ({"a": np.eye(2, dtype=np.longdouble)}, errors.DTypeError, "longdouble|float128"),
        ({"a": object()}, errors.DTypeError, "must be an array; got object"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message) as caught:
        softlinalg.pinv(**arguments)
    assert len(str(caught.value)) <= 400
    assert "\n" not in str(caught.value)


def test_dask_sparse_and_mixed_libraries_are_refused_with_a_way_out():
    dask_array, sparse, torch = (pytest.importorskip(name) for name in ("dask.array", "scipy.sparse", "torch"))
    with pytest.raises(errors.DTypeError, match=r"in memory; got a Dask array.*streaming"):
        softlinalg.pinv(dask_array.ones((2, 2)))
    with pytest.raises(errors.DTypeError, match="toarray"):
        softlinalg.pinv(sparse.eye(2).tocsr())
    with pytest.raises(errors.BackendMismatchError, match=r"one library; got a: numpy.ndarray, value: torch.Tensor"):
        softlinalg.pinv_jvp(np.eye(2), torch.eye(2), np.eye(2))


# ------------------------------------------------------------------------------------------------ derivatives
def constant_rank_path(m: int, n: int, r: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A of rank r, and a direction along which the rank stays r to second order: A = B C, dA = dB C + B dC."""
    b, c = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    db, dc = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    return np.stack([b @ c, db @ c + b @ dc, db @ dc])


@settings(max_examples=40)
@given(m=st.integers(1, 6), n=st.integers(1, 6), deficiency=st.integers(0, 5), seed=st.integers(0, 2**32 - 1))
def test_derivatives_follow_golub_and_pereyra_at_constant_rank(m, n, deficiency, seed):
    rng = np.random.default_rng(seed)
    r = max(1, min(m, n) - deficiency)
    a, da, second = constant_rank_path(m, n, r, rng)
    s = np.linalg.svd(a, compute_uv=False)
    assume(s[r - 1] > 0.05 * s[0])
    x = softlinalg.pinv(a, rtol=1e-9)
    h = 1e-5 * s[r - 1]
    ahead = softlinalg.pinv(a + h * da + h * h * second, rtol=1e-9)
    behind = softlinalg.pinv(a - h * da + h * h * second, rtol=1e-9)
    slope = (ahead - behind) / (2 * h)
    size = np.linalg.norm(x, 2)
    allowed = 20 * (
        h**2 * size**4 * (np.linalg.norm(da, 2) + np.linalg.norm(second, 2) / size + 1) ** 3 + 100 * U["float64"] * size**2 * s[0] / h
    )
    np.testing.assert_allclose(softlinalg.pinv_jvp(a, x, da), slope, rtol=0, atol=allowed)
    g = rng.standard_normal((n, m))
    left, right = (g * softlinalg.pinv_jvp(a, x, da)).sum(), (softlinalg.pinv_vjp(a, x, g) * da).sum()
    assert left == pytest.approx(right, rel=1e-9, abs=1e-9 * size**2 * np.linalg.norm(da) * np.linalg.norm(g))


def test_vjp_of_complex_matrices_is_the_adjoint_of_the_jvp():
    rng = np.random.default_rng(5)
    a = with_rank(4, 6, 3, 5.0, rng, complex_=True)
    x = softlinalg.pinv(a)
    da = rng.standard_normal((4, 6)) + 1j * rng.standard_normal((4, 6))
    g = rng.standard_normal((6, 4)) + 1j * rng.standard_normal((6, 4))
    assert np.vdot(g, softlinalg.pinv_jvp(a, x, da)).real == pytest.approx(np.vdot(softlinalg.pinv_vjp(a, x, g), da).real, rel=1e-10)


def test_vjp_agrees_with_torch_and_jax_autodiff():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    rng = np.random.default_rng(6)
    a, g = rng.standard_normal((5, 3)), rng.standard_normal((3, 5))
    expected = softlinalg.pinv_vjp(a, softlinalg.pinv(a), g)
    leaf = torch.tensor(a, requires_grad=True)
    (torch.linalg.pinv(leaf) * torch.tensor(g)).sum().backward()
    np.testing.assert_allclose(expected, leaf.grad.numpy(), rtol=1e-9, atol=1e-10)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda z: (jax.numpy.linalg.pinv(z) * g).sum())(jax.numpy.asarray(a))
    np.testing.assert_allclose(expected, np.asarray(gradient), rtol=1e-9, atol=1e-10)


def test_the_published_first_term_alone_is_another_gradient_at_deficient_rank():
    """Why all three terms stand here: at rank 40 of 49 the first alone pointed the other way."""
    rng = np.random.default_rng(7)
    b = rng.standard_normal((9, 5))
    a = b @ b.T
    x = softlinalg.pinv(a, hermitian=True)
    g = x @ x
    full, first = softlinalg.pinv_vjp(a, x, g), -(x.T @ g @ x.T)
    cosine = (full * first).sum() / (np.linalg.norm(full) * np.linalg.norm(first))
    assert cosine == pytest.approx(1.0)  # along its own range the two agree
    g = np.eye(9) - a @ x
    full, first = softlinalg.pinv_vjp(a, x, g + x @ x), -(x.T @ (g + x @ x) @ x.T)
    mixed = rng.standard_normal((9, 9))
    full, first = softlinalg.pinv_vjp(a, x, mixed), -(x.T @ mixed @ x.T)
    assert np.linalg.norm(full - first) > 0.1 * np.linalg.norm(full)


@pytest.mark.parametrize("function", [softlinalg.pinv_vjp, softlinalg.pinv_jvp])
def test_derivatives_refuse_shapes_that_do_not_fit(function):
    with pytest.raises(errors.ShapeError, match="Pass what pinv returned"):
        function(np.ones((2, 3)), np.ones((2, 3)), np.ones((2, 3)))


def test_traced_pinv_equals_the_eager_one():
    jax = pytest.importorskip("jax")
    a = np.stack([np.ones((3, 2)), np.eye(3)[:, :2]]).astype("float32")
    np.testing.assert_allclose(np.asarray(jax.jit(softlinalg.pinv)(a)), softlinalg.pinv(a), rtol=1e-5, atol=1e-6)
