"""The bounds are bounds: compared with truth of higher precision on many thousand matrices, and close to it."""

from __future__ import annotations

import math
from fractions import Fraction

import array_api_compat.numpy as np_xp
import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softlinalg import _certificates as certificates
from softlinalg import _certificates_cholesky, _linalg, _native

EPS = 2.0**-52


# ------------------------------------------------------------------------------------------------ truth
def spectrum(mode: int, kappa: float, m: int, rng: np.random.Generator) -> np.ndarray:
    """LAPACK's spectrum shapes, largest value 1, smallest 1 / kappa."""
    if m == 1:
        return np.ones(1)
    steps = np.arange(m) / (m - 1)
    return {
        1: np.r_[1.0, np.full(m - 1, 1 / kappa)],
        2: np.r_[np.ones(m - 1), 1 / kappa],
        3: kappa**-steps,
        4: 1 - steps * (1 - 1 / kappa),
        5: np.sort(kappa ** -rng.random(m))[::-1],
        6: np.sort(rng.random(m) * (1 - 1 / kappa) + 1 / kappa)[::-1],
    }[mode]


def orthogonal(batch: int, m: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((batch, m, m)))[0]


def positive_definite(batch: int, m: int, kappa: float, mode: int, rng: np.random.Generator) -> np.ndarray:
    q = orthogonal(batch, m, rng)
    b = (q * spectrum(mode, kappa, m, rng)) @ q.swapaxes(-1, -2)
    return (b + b.swapaxes(-1, -2)) / 2


def extended_inverse(b: np.ndarray) -> np.ndarray:
    """Inverse to about kappa * 5e-20, by Newton steps in 80-bit arithmetic from the float64 inverse."""
    assert np.finfo(np.longdouble).eps < 2e-19, "this platform has no extended precision; the truth would be none"
    wide = b.astype(np.longdouble)
    x = np.linalg.inv(b).astype(np.longdouble)
    eye = np.eye(b.shape[-1], dtype=np.longdouble)
    for _ in range(3):
        x = x + x @ (eye - wide @ x)
    return x


def error_to_fifty_digits(x: np.ndarray, b: np.ndarray) -> float:
    """|X - B^-1|_2."""
    with mpmath.workdps(50):
        difference = mpmath.matrix(x.tolist()) - mpmath.inverse(mpmath.matrix(b.tolist()))
        rounded = np.array([[float(difference[i, j]) for j in range(b.shape[0])] for i in range(b.shape[0])])
    return float(np.linalg.norm(rounded, 2)) * (1 - 1e-12)  # the difference itself is exact to 50 digits


def two_norm(e: np.ndarray) -> np.ndarray:
    return np.linalg.norm(e.astype(float), 2, axis=(-2, -1))


def exact_low_rank(batch: int, m: int, n: int, r: int, spread: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Integer matrices of exact rank r and their pseudo-inverses, exact in rational arithmetic until one last division.

    A = B C with integer factors of full rank has A^+ = C^T (C C^T)^-1 (B^T B)^-1 B^T; the small inverses come from
    integer adjugates. `spread` scales the rows of B by powers of two. Also returned: how far that division and the last
    product can be off.
    """
    b = rng.integers(-3, 4, (batch, m, r)) * 2 ** rng.integers(0, spread + 1, (batch, m, 1))
    c = rng.integers(-3, 4, (batch, r, n))
    gram_b, gram_c = b.swapaxes(-1, -2) @ b, c @ c.swapaxes(-1, -2)
    adjugate_b, det_b = _adjugate(gram_b)
    adjugate_c, det_c = _adjugate(gram_c)
    full = (det_b != 0) & (det_c != 0)
    a, b, c = (b @ c)[full], b[full], c[full]
    left = (c.swapaxes(-1, -2) @ adjugate_c[full]).astype(np.longdouble) / det_c[full, None, None].astype(np.longdouble)
    right = (adjugate_b[full] @ b.swapaxes(-1, -2)).astype(np.longdouble) / det_b[full, None, None].astype(np.longdouble)
    sizes = np.linalg.norm(left.astype(float), axis=(-2, -1)) * np.linalg.norm(right.astype(float), axis=(-2, -1))
    return a.astype(float), left @ right, 8 * np.finfo(np.longdouble).eps * sizes


def _adjugate(g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Adjugate and determinant of integer matrices of order 1 to 3, exactly."""
    order = g.shape[-1]
    if order == 1:
        return np.ones_like(g), g[..., 0, 0]
    if order == 2:
        adjugate = np.stack([np.stack([g[..., 1, 1], -g[..., 0, 1]], -1), np.stack([-g[..., 1, 0], g[..., 0, 0]], -1)], -2)
    else:
        adjugate = np.empty_like(g)
        for i in range(3):
            for j in range(3):
                rows, columns = [k for k in range(3) if k != j], [k for k in range(3) if k != i]
                minor = (
                    g[..., rows[0], columns[0]] * g[..., rows[1], columns[1]] - g[..., rows[0], columns[1]] * g[..., rows[1], columns[0]]
                )
                adjugate[..., i, j] = minor * (-1) ** (i + j)
    return adjugate, (g[..., 0, :] * adjugate[..., :, 0]).sum(-1)


def perturbed(x: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """`x` with noise of a relative size, in any direction."""
    noise = rng.standard_normal(x.shape)
    return x + noise * (size * np.abs(x).max(axis=(-2, -1), keepdims=True) / math.sqrt(x.shape[-1]))


# --------------------------------------------------------------------------------------------- the inverse
def test_ridge_bounds_hold_on_ten_thousand_matrices_and_are_close():
    rng = np.random.default_rng(11)
    ratios, checked = [], 0
    for m in (1, 2, 3, 5, 8, 13, 24):
        for mode in range(1, 7):
            for kappa in (1.0, 1e2, 1e5, 1e9, 1e12):
                b = positive_definite(52, m, kappa, mode, rng)
                truth = extended_inverse(b)
                x, _ = _linalg.spd_inverse(b, xp=np_xp)
                # A third each: as computed, rounded to float32, and off by noise far above rounding.
                x[17:34] = x[17:34].astype(np.float32)
                x[34:] = perturbed(x[34:], 1e-9 / kappa, rng)
                error = two_norm(x - truth)
                size = two_norm(truth)
                unsure = 4 * m * kappa * np.finfo(np.longdouble).eps * size  # of the truth itself; a thousandth of rounding
                for slices, refine in ((1, False), (1, True), (2, True)):
                    result = certificates.certify_inverse(b, x, slices=slices, refine=refine, xp=np_xp)
                    assert (result.error_bound >= error - unsure).all()
                    assert (result.residual >= (error - unsure) / size).all()
                # The finest bound is often closer than 80 bits can tell: the tightest of each kind is judged by 50 digits.
                closest = int(np.argmin(result.error_bound - error))
                if m < 24 or mode == 3:  # mpmath takes long where matrices are large
                    assert result.error_bound[closest] >= error_to_fifty_digits(x[closest], b[closest])
                finite = np.isfinite(result.error_bound) & (error > 0)
                ratios.append((result.error_bound / np.where(error > 0, error, 1))[finite])
                checked += b.shape[0]
    ratio = np.concatenate(ratios)
    assert checked >= 10_000
    assert ratio.size > 0.75 * checked
    assert np.median(ratio) <= 30


def test_the_bound_from_the_rounding_analysis_of_cholesky_holds():
    rng = np.random.default_rng(12)
    certified = 0
    for m in (1, 2, 5, 16, 40):
        for kappa in (1.0, 1e3, 1e6, 1e9, 1e13):
            b = positive_definite(40, m, kappa, 3, rng)
            x, ok = _linalg.spd_inverse(b, xp=np_xp)
            assert ok.all()
            truth = extended_inverse(b)
            result = _certificates_cholesky.certify_cholesky(b, x, xp=np_xp)
            relative = two_norm(x - truth) / two_norm(truth)
            assert (result.residual >= relative * (1 - 1e-3)).all()
            certified += int(np.isfinite(result.residual).sum())
    assert certified > 600


def test_the_rounding_analysis_is_not_believed_where_the_library_is_wrong():
    rng = np.random.default_rng(13)
    b = positive_definite(3, 20, 1e3, 3, rng)
    x, _ = _linalg.spd_inverse(b, xp=np_xp)
    x[1, 4, 7] += 1.0  # as a broken LAPACK might
    x[2] = x[2].T * 1.5
    result = _certificates_cholesky.certify_cholesky(b, x, xp=np_xp)
    assert np.isfinite(result.residual[0])
    assert np.isinf(result.residual[1:]).all()


@given(
    st.floats(0, 1e6) | st.sampled_from([math.nan, -1.0]),
    st.floats(0, 1e10) | st.sampled_from([math.nan, math.inf, -1.0]),
    st.floats(0, 1) | st.floats(0, 1e-12) | st.just(math.nan),
    st.floats(0, 1e10) | st.sampled_from([math.nan, math.inf]),
    st.integers(1, 300),
)
def test_compiled_code_judges_as_arrays_are_judged(trace_b: float, trace_x: float, worst: float, norm: float, m: int) -> None:
    evidence = _certificates_cholesky.CholeskyEvidence(*(np.asarray([x]) for x in (trace_b, trace_x, worst, norm)))
    with np.errstate(all="ignore"):
        residual = _certificates_cholesky.judge_cholesky(evidence, m, xp=np_xp).residual
    gamma = _certificates_cholesky.certainty(m, 0.0, 1.0).gamma
    compiled = _native.relative_error(trace_b, trace_x, worst, norm, m, gamma)
    assert compiled is None or np.isclose(compiled, residual[0], rtol=1e-12, atol=0)


@settings(max_examples=60)
@given(
    m=st.integers(1, 6),
    log_kappa=st.floats(0, 11),
    mode=st.integers(1, 6),
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([0.0, 1e-12, 1e-6]),
)
@example(m=6, log_kappa=11.0, mode=3, seed=0, noise=0.0)
@example(m=1, log_kappa=0.0, mode=1, seed=1, noise=0.0)
def test_ridge_bound_is_above_the_error_to_fifty_digits(m, log_kappa, mode, seed, noise):
    rng = np.random.default_rng(seed)
    b = positive_definite(1, m, 10.0**log_kappa, mode, rng)[0]
    x = np.linalg.inv(b) * (1 + noise * rng.standard_normal((m, m)))
    error = error_to_fifty_digits(x, b)
    for slices, refine in ((1, False), (2, True)):
        assert float(certificates.certify_inverse(b, x, slices=slices, refine=refine, xp=np_xp).error_bound) >= error


@pytest.mark.parametrize("kappa", [1.0, 1e3, 1e6])
def test_a_corrected_inverse_is_within_its_bound_and_hermitian(kappa):
    rng = np.random.default_rng(15)
    for m in (1, 3, 10, 30):
        b = positive_definite(20, m, kappa, 3, rng)
        x = perturbed(np.linalg.inv(b), 1e-2 / kappa, rng)
        truth = extended_inverse(b)
        corrected, result = certificates.correct_inverse(b, x, lost=np.zeros((20, m)), xp=np_xp)
        error, before = two_norm(corrected - truth), two_norm(x - truth)
        assert np.isfinite(result.error_bound).all()
        assert (result.error_bound >= error).all()
        assert (error <= 0.1 * before).all()
        assert (result.residual >= np.linalg.norm(np.eye(m) - b @ corrected, axis=(-2, -1)) * (1 - 1e-6)).all()
        np.testing.assert_array_equal(corrected, corrected.swapaxes(-1, -2))


def test_complex_inverses_are_bounded_too():
    rng = np.random.default_rng(14)
    g = rng.standard_normal((20, 6, 6)) + 1j * rng.standard_normal((20, 6, 6))
    b = g @ g.conj().swapaxes(-1, -2) + 0.1 * np.eye(6)
    b = (b + b.conj().swapaxes(-1, -2)) / 2
    x = np.linalg.inv(b)
    truth = x.astype(np.clongdouble)
    for _ in range(3):
        truth = truth + truth @ (np.eye(6) - b.astype(np.clongdouble) @ truth)
    error = np.linalg.norm((x - truth).astype(complex), 2, axis=(-2, -1))
    result = certificates.certify_inverse(b, x, slices=2, refine=True, xp=np_xp)
    assert (result.error_bound >= error).all()
    assert np.median(result.error_bound / error) < 30


@pytest.mark.parametrize("wrong", ["zero", "half", "transposed", "nan", "infinite"])
def test_no_inverse_is_certified_that_is_none(wrong):
    b = np.array([[2.0, 1.0], [0.5, 3.0]])
    x = {
        "zero": np.zeros((2, 2)),
        "half": np.linalg.inv(b) * 0.001,
        "transposed": np.linalg.inv(b).T @ np.array([[0.0, 1.0], [1.0, 0.0]]),
        "nan": np.full((2, 2), np.nan),
        "infinite": np.full((2, 2), np.inf),
    }[wrong]
    with np.errstate(all="ignore"):
        for slices, refine in ((1, False), (2, True)):
            result = certificates.certify_inverse(b, x, slices=slices, refine=refine, xp=np_xp)
            assert np.isinf(result.error_bound)
            assert result.residual >= 0.99


# -------------------------------------------------------------------------------------- the pseudo-inverse
def test_pinv_bounds_and_ranks_hold_on_ten_thousand_exact_matrices_and_are_close():
    rng = np.random.default_rng(21)
    ratios, checked, claimed = [], 0, 0
    for m, n in ((1, 1), (2, 3), (4, 2), (5, 5), (7, 4), (6, 9)):
        for r in (1, 2, 3):
            if r > min(m, n):
                continue
            for spread in (0, 3, 6):
                a, truth, unsure = exact_low_rank(260, m, n, r, spread, rng)
                scaled, exponent = _linalg.power_of_two_scale(a, xp=np_xp)
                truth, unsure = truth * (2.0**exponent).astype(np.longdouble)[:, None, None], unsure * 2.0**exponent
                x = np.linalg.pinv(scaled, rtol=1e-12)
                x[: len(x) // 3] = perturbed(x[: len(x) // 3], 1e-10, rng)
                error = two_norm(x - truth)
                for slices in (1, 3):
                    result = certificates.certify_pinv(scaled, x, slices=slices, xp=np_xp)
                    sure = result.rank >= 0
                    assert (result.rank[sure] == r).all()
                    assert (result.error_bound >= error - unsure)[sure].all()
                    assert np.isinf(result.error_bound[~sure]).all()
                ratios.append((result.error_bound / np.where(error > 0, error, 1))[sure & (error > 0)])
                checked, claimed = checked + len(a), claimed + int(sure.sum())
    ratio = np.concatenate(ratios)
    assert checked >= 10_000
    assert claimed > 0.95 * checked
    assert np.median(ratio) <= 100


@settings(max_examples=50)
@given(
    m=st.integers(1, 7),
    n=st.integers(1, 7),
    deficiency=st.integers(0, 6),
    log_kappa=st.floats(0, 8),
    mode=st.integers(1, 6),
    complex_=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(m=6, n=4, deficiency=0, log_kappa=8.0, mode=3, complex_=False, seed=0)
@example(m=5, n=5, deficiency=2, log_kappa=7.0, mode=3, complex_=True, seed=1)
def test_pinv_bound_is_above_the_error_to_fifty_digits(m, n, deficiency, log_kappa, mode, complex_, seed):
    rng = np.random.default_rng(seed)
    r = max(1, min(m, n) - deficiency)

    def frame(k: int) -> np.ndarray:
        g = rng.standard_normal((k, k)) + (1j * rng.standard_normal((k, k)) if complex_ else 0)
        return np.linalg.qr(g)[0][:, :r]

    s = spectrum(mode, 10.0**log_kappa, r, rng)
    a = (frame(m) * s) @ frame(n).conj().T
    a = a / np.abs(a).max()
    x = np.linalg.pinv(a, rtol=10.0 ** -(log_kappa + 2))
    result = certificates.certify_pinv(a, x, xp=np_xp)
    assert result.rank in (r, -1)
    if result.rank == r:
        with mpmath.workdps(50):
            svd = mpmath.svd_c if complex_ else mpmath.svd_r
            u, sigma, v = svd(mpmath.matrix(a.tolist()), full_matrices=False)
            truth = v.H[:, :r] * mpmath.diag([1 / sigma[i] for i in range(r)]) * u[:, :r].H
            error = float(max(svd(mpmath.matrix(x.tolist()) - truth, compute_uv=False)))
            rest = float(sigma[r]) if r < min(m, n) else 0.0
        assert float(result.error_bound) >= error
        assert float(result.backward_error) >= rest
        assert float(result.error_bound) < 1e-2 * float(result.norm)


def test_a_rank_without_a_gap_is_not_claimed():
    hilbert = 1 / (1.0 + np.arange(12)[:, None] + np.arange(12))
    result = certificates.certify_pinv(hilbert, np.linalg.pinv(hilbert), xp=np_xp)
    assert result.rank == -1
    assert np.isinf(result.error_bound)
    assert np.isinf(result.backward_error)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.9, 1.1, -1.0])
def test_no_pseudo_inverse_is_certified_that_is_none(factor):
    a = np.outer([1.0, 2.0, 2.0], [2.0, 1.0])
    x = factor * np.linalg.pinv(a)
    result = certificates.certify_pinv(a / 4, 4 * x, xp=np_xp)
    assert result.rank == -1
    assert np.isinf(result.error_bound)


def test_a_pseudo_inverse_of_too_low_a_rank_is_not_passed_off_as_the_full_one():
    q = orthogonal(2, 5, np.random.default_rng(3))
    a = (q[0] * np.array([1, 0.5, 0.2, 0.1, 0.05])) @ q[1]
    truncated = np.linalg.pinv(a, rtol=0.08)
    result = certificates.certify_pinv(a, truncated, xp=np_xp)
    # Within the gap between .1 and .05 the fourth-rank inverse is what it is, or nothing is claimed.
    assert int(result.rank) in (-1, 4)
    if result.rank == 4:
        assert result.backward_error >= 0.05 * (1 - 1e-12)


def test_the_zero_matrix_has_a_certain_rank_of_zero():
    result = certificates.certify_pinv(np.zeros((3, 2)), np.zeros((2, 3)), xp=np_xp)
    assert (result.rank, result.error_bound, result.backward_error, result.residual) == (0, 0.0, 0.0, 0.0)


# ------------------------------------------------------------------------------------------- ingredients
@settings(max_examples=60)
@given(
    m=st.integers(1, 5),
    k=st.integers(1, 40),
    n=st.integers(1, 5),
    slices=st.integers(1, 3),
    spread=st.integers(0, 30),
    single=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_error_of_a_sliced_product_is_bounded_and_small(m, k, n, slices, spread, single, seed):
    rng = np.random.default_rng(seed)
    dtype = np.float32 if single else np.float64
    left = (rng.standard_normal((m, k)) * 2.0 ** rng.integers(-spread, 1, (m, k))).astype(dtype)
    right = (rng.standard_normal((k, n)) * 2.0 ** rng.integers(-spread, 1, (k, n))).astype(dtype)
    base = (left @ right).astype(dtype)  # heavy cancellation: what is left is rounding
    value, error = certificates._base_minus_product(base, left, right, slices=slices, xp=np_xp)
    exact = np.array(
        [
            [
                float(
                    Fraction(float(base[i, j]))
                    - sum(Fraction(float(x)) * Fraction(float(y)) for x, y in zip(left[i], right[:, j], strict=True))
                    - Fraction(float(value[i, j]))
                )
                for j in range(n)
            ]
            for i in range(m)
        ]
    )
    assert np.linalg.norm(exact) <= error * (1 + 1e-9)
    if slices == 3 and not single:
        # Twice the digits: what remains is one rounding of the difference and about 2^-44 of the first product's error.
        first = np.linalg.norm(left) * np.linalg.norm(right) * k * EPS
        assert error <= 4 * EPS * np.linalg.norm(value) + 1e-10 * first + 1e-290


@settings(max_examples=60)
@given(log_scale=st.integers(-300, 300), m=st.integers(1, 6), n=st.integers(1, 6), seed=st.integers(0, 2**32 - 1), single=st.booleans())
def test_norms_are_rounded_upwards(log_scale, m, n, seed, single):
    rng = np.random.default_rng(seed)
    dtype = np.float32 if single else np.float64
    exponent = max(min(log_scale, 60), -140) if single else log_scale
    a = np.ldexp(rng.standard_normal((m, n)), exponent).astype(dtype)
    with mpmath.workdps(40):
        exact = mpmath.sqrt(sum(mpmath.mpf(float(x)) ** 2 for x in a.ravel()))
        assert mpmath.mpf(float(certificates.upper_frobenius(a, xp=np_xp))) >= exact
    assert float(certificates.upper_spectral(a, xp=np_xp)) >= np.linalg.norm(a.astype(float), 2) * (1 - 1e-6)


@given(value=st.floats(-1e10, 1e10), shift=st.floats(0, 1e10))
def test_a_shifted_diagonal_loses_nothing(value, shift):
    b, lost = certificates.diagonal_shift(np.array([[value]]), np.array(shift), dtype=np.float64, xp=np_xp)
    assert Fraction(float(b[0, 0])) + Fraction(float(lost[0])) == Fraction(value) + Fraction(shift)


def test_bounds_do_not_depend_on_batch_mates_bit_for_bit():
    rng = np.random.default_rng(5)
    a = rng.standard_normal((4, 5, 3))
    x = np.linalg.pinv(a)
    together = certificates.certify_pinv(a, x, xp=np_xp)
    for i in range(4):
        alone = certificates.certify_pinv(a[i : i + 1], x[i : i + 1], xp=np_xp)
        assert all(t[i] == s[0] for t, s in zip(together, alone, strict=True))


def test_certificates_agree_over_backends(backend):
    rng = np.random.default_rng(6)
    b = positive_definite(4, 4, 1e4, 3, rng)  # shapes that JAX compiles for test_pinv.py too
    x = np.linalg.inv(b)
    expected = certificates.certify_inverse(b, x, slices=2, refine=True, xp=np_xp)
    result = certificates.certify_inverse(backend.asarray(b), backend.asarray(x), slices=2, refine=True, xp=backend.xp)
    # Rounding may be summed in another order; the bounds agree to a few per cent all the same.
    np.testing.assert_allclose(backend.to_numpy(result.error_bound), expected.error_bound, rtol=0.05)
    a = rng.standard_normal((4, 6, 4)) @ np.diag([1.0, 1.0, 0.0, 0.0])
    inverse = np.linalg.pinv(a, rtol=1e-10)
    ranks = certificates.certify_pinv(backend.asarray(a), backend.asarray(inverse), xp=backend.xp).rank
    assert backend.to_numpy(ranks).tolist() == [2, 2, 2, 2]
