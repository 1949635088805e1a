"""The scalar side of the iterations against their closed forms at many digits: filters, step counts, product counts."""

from __future__ import annotations

import functools
import math

import mpmath
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from softlinalg import _filters as filters
from softlinalg.errors import ParameterError

EPS = 2.0**-52

DIGITS = 120
"""Of the closed forms of filters. 1 - C(s) loses up to 40 at the smallest s, powers 20, and the differences below 25."""

log10_kappas = st.floats(0, 300)
log10_tols = st.one_of(st.floats(-300, -0.01), st.floats(-3, -0.001))


def chebyshev(x, n):
    """T_n(x) for real x inside and outside [-1, 1]."""
    if abs(x) <= 1:
        return mpmath.cos(n * mpmath.acos(x))
    return (1 if x > 0 or n % 2 == 0 else -1) * mpmath.cosh(n * mpmath.acosh(abs(x)))


@functools.lru_cache(maxsize=1)  # of all s of a case
def chebyshev_at_zero(lo, hi, n, digits):
    """T_n of the point that s = 0 is mapped to."""
    assert mpmath.mp.dps == digits
    return chebyshev((hi + lo) / (hi - lo), n)


def chebyshev_residual(s, lo, hi, steps, polish):
    """C(s) of the theorem: the scaled Chebyshev polynomial, squared `polish` times."""
    s, lo, hi = mpmath.mpf(s), mpmath.mpf(lo), mpmath.mpf(hi)
    n = 2**steps
    return (chebyshev((hi + lo - 2 * s) / (hi - lo), n) / chebyshev_at_zero(lo, hi, n, mpmath.mp.dps)) ** (2**polish)


def points(lo, hi, seed):
    """Eigenvalues that matter: zero, far below lo, both ends, the middle, and random ones in between."""
    rng = np.random.default_rng(seed)
    inside = lo * (hi / lo) ** rng.uniform(size=6)
    return np.clip([0.0, lo * 1e-12, lo / 3, lo, hi, (lo + hi) / 2, hi * (1 - 1e-9), *inside], 0.0, hi)


def assert_close_to_closed_form(values, s, exact, exact_slope, steps):
    """|f - f*| <= K eps (steps + 2) (|f*| + |s f*'|): rounding in each step, and in s itself."""
    for value, at in zip(values, s, strict=True):
        truth = exact(mpmath.mpf(float(at)))
        slope = exact_slope(mpmath.mpf(float(at))) if at else 0
        allowed = 4 * EPS * (steps + 2) * (abs(truth) + abs(at * slope))
        assert abs(mpmath.mpf(float(value)) - truth) <= allowed + 1e-300, (at, float(value), float(truth))


def derivative(f):
    """Central difference with a step of 1e-25 of the argument."""

    def slope(s):
        h = abs(s) * mpmath.mpf(10) ** -25
        return (f(s + h) - f(s - h)) / (2 * h)

    return slope


# ------------------------------------------------------------------------------------------------------ filters
@given(log10_kappa=st.floats(0.01, 8), steps=st.integers(0, 14), polish=st.integers(0, 2), seed=st.integers(0, 2**32 - 1))
@example(log10_kappa=8, steps=14, polish=1, seed=0)
@example(log10_kappa=0.01, steps=0, polish=0, seed=0)
def test_chebyshev_filter_is_the_minimax_polynomial_of_the_theorem(log10_kappa, steps, polish, seed):
    with mpmath.workdps(DIGITS):
        lo, hi = 0.7 * 10.0**-log10_kappa, 0.7
        s = points(lo, hi, seed)

        def exact(x):
            n, theta = 2**steps, mpmath.acosh((mpmath.mpf(hi) + lo) / (mpmath.mpf(hi) - lo))
            if x == 0:
                return 2**polish * n * mpmath.tanh(n * theta) / mpmath.sqrt(mpmath.mpf(lo) * hi)
            return (1 - chebyshev_residual(x, lo, hi, steps, polish)) / x

        values = filters.chebyshev_newton_filter(s, lo=lo, hi=hi, steps=steps, polish=polish)
        assert_close_to_closed_form(values, s, exact, derivative(exact), steps + polish)


@given(log10_kappa=st.floats(0.01, 4), steps=st.integers(0, 14), polish=st.integers(0, 2), seed=st.integers(0, 2**32 - 1))
def test_general_chebyshev_filter_is_the_minimax_polynomial_of_the_square(log10_kappa, steps, polish, seed):
    with mpmath.workdps(DIGITS):
        lo, hi = 3 * 10.0**-log10_kappa, 3.0
        s = points(lo, hi, seed)

        def exact(x):
            if x == 0:
                return mpmath.mpf(0)
            return (1 - chebyshev_residual(x * x, mpmath.mpf(lo) ** 2, mpmath.mpf(hi) ** 2, steps, polish)) / x

        values = filters.chebyshev_newton_general_filter(s, lo=lo, hi=hi, steps=steps, polish=polish)
        assert values[0] == 0
        assert_close_to_closed_form(values, s, exact, derivative(exact), steps + polish)
        assert np.array_equal(filters.chebyshev_newton_general_filter(-s, lo=lo, hi=hi, steps=steps, polish=polish), -values)


@given(
    scale=st.floats(0.01, 1.9),
    steps=st.integers(0, 60),
    order=st.sampled_from([2, 3, 4, 5, 6, 7, 9, 13, 19]),
    identity=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(scale=1.9, steps=60, order=2, identity=False, seed=0)
@example(scale=1.0, steps=1, order=7, identity=True, seed=0)
def test_newton_and_hyperpower_filters_are_their_closed_forms(scale, steps, order, identity, seed):
    steps = min(steps, int(60 / math.log2(order)))
    with mpmath.workdps(DIGITS):
        s = points(1e-7, 1.0, seed)

        def exact(x):
            residual = 1 - mpmath.mpf(scale) * (x if identity else x * x)
            if x == 0:
                return mpmath.mpf(scale) * order**steps if identity else mpmath.mpf(0)
            return (1 - residual ** (order**steps)) / x

        start = {"scale": scale} if identity else {"alpha": scale}
        values = filters.hyperpower_filter(s, order=order, steps=steps, **start)
        assert_close_to_closed_form(values, s, exact, derivative(exact), (steps + 1) * order)
        if order == 2:
            newton = filters.newton_raphson_identity_filter if identity else filters.newton_raphson_filter
            assert_close_to_closed_form(newton(s, steps=steps, **start), s, exact, derivative(exact), steps)


def test_filters_keep_their_digits_where_the_closed_form_loses_them():
    # At s = 1e-200 the formula (1 - (1 - alpha s^2)^N) / s is zero in float64; the filter has slope alpha N there.
    assert filters.newton_raphson_filter(np.asarray([1e-200]), steps=10, alpha=0.5)[0] == pytest.approx(512e-200, rel=1e-14)
    tiny = filters.chebyshev_newton_filter(np.asarray([0.0, 1e-300]), lo=1e-12, hi=1.0, steps=12)
    assert tiny[0] == tiny[1] > 0
    assert np.isfinite(filters.newton_raphson_filter(np.asarray([0.0, 1.0]), steps=1200, alpha=1.0)).all()


@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_chebyshev_filter_keeps_its_digits_at_the_upper_end(steps):
    # There s f(s) = 1 - 1/tau_n, which is near zero for the first steps: 2 - c s would lose the digits of lo / hi.
    with mpmath.workdps(60):
        for lo in (1e-12, 1e-9, 1e-5):
            tau = mpmath.cosh(2**steps * mpmath.acosh((1 + mpmath.mpf(lo)) / (1 - mpmath.mpf(lo))))
            value = filters.chebyshev_newton_filter(np.ones(1), lo=lo, hi=1.0, steps=steps, polish=0)[0]
            assert value == pytest.approx(float(1 - 1 / tau), rel=10 * (steps + 2) * EPS)


@given(log10_kappa=st.floats(0, 12), steps=st.integers(0, 26), seed=st.integers(0, 2**32 - 1))
@example(log10_kappa=0, steps=3, seed=1)
def test_one_polishing_step_keeps_the_product_between_zero_and_one(log10_kappa, steps, seed):
    lo, hi = 10.0**-log10_kappa, 1.0
    s = np.concatenate([points(lo, hi, seed), np.linspace(0, hi, 200)])
    y = s * filters.chebyshev_newton_filter(s, lo=lo, hi=hi, steps=steps, polish=1)
    assert (y >= 0).all()
    assert (y <= 1 + 4 * (steps + 2) * EPS).all()
    before = s * filters.chebyshev_newton_filter(s, lo=lo, hi=hi, steps=steps, polish=0)
    tau = math.cosh(min(2**steps * math.acosh((hi + lo) / (hi - lo)), 700)) if lo < hi else math.inf
    assert (before <= 1 + 1 / tau + 1e-9).all()


def test_without_polishing_the_product_overshoots_one():
    s = np.linspace(0.01, 1, 1000)
    tau = math.cosh(8 * math.acosh(1.01 / 0.99))
    y = s * filters.chebyshev_newton_filter(s, lo=0.01, hi=1.0, steps=3, polish=0)
    assert y.max() == pytest.approx(1 + 1 / tau, rel=1e-4)


def test_too_small_a_lower_end_costs_steps_and_too_large_a_one_loses_eigenvalues():
    lam, hi = np.geomspace(1e-4, 1, 400), 1.0
    steps = filters.chebyshev_newton_steps(1e4, 1e-3, polish=0)
    error = {c: np.abs(1 - lam * filters.chebyshev_newton_filter(lam, lo=c * 1e-4, hi=hi, steps=steps, polish=0)).max() for c in (1, 3, 10)}
    assert error[1] <= 1e-3 < 20e-3 < error[3] < 0.1 < error[10]
    longer = filters.chebyshev_newton_steps(1e5, 1e-3, polish=0)
    assert longer == steps + 2
    assert np.abs(1 - lam * filters.chebyshev_newton_filter(lam, lo=1e-5, hi=hi, steps=longer, polish=0)).max() <= 1e-3


def test_filters_answer_in_the_library_and_type_of_their_argument(backend):
    s = backend.asarray([0.0, 0.2, 0.9], dtype="float32")
    setting = np.float64(0.1)  # a NumPy scalar must not promote float32
    for value in (
        filters.newton_raphson_filter(s, steps=3, alpha=setting),
        filters.newton_raphson_identity_filter(s, steps=3, scale=setting),
        filters.chebyshev_newton_filter(s, lo=setting, hi=np.float64(1.0), steps=3),
        filters.chebyshev_newton_general_filter(s, lo=setting, hi=np.float64(1.0), steps=3),
        filters.hyperpower_filter(s, order=3, steps=3, scale=setting),
        filters.hyperpower_filter(s, order=3, steps=3, alpha=setting),
    ):
        assert value.dtype == s.dtype
        assert type(value) is type(s)
    lo = backend.asarray([0.1, 0.2, 0.3], dtype="float32")
    per_entry = backend.to_numpy(filters.chebyshev_newton_filter(s, lo=lo, hi=1.0, steps=4))
    for i, low in enumerate([0.1, 0.2, 0.3]):
        host = filters.chebyshev_newton_filter(np.asarray([0.0, 0.2, 0.9])[i : i + 1], lo=low, hi=1.0, steps=4)
        assert per_entry[i] == pytest.approx(host[0], rel=100 * 2.0**-23)


# ---------------------------------------------------------------------------------------------------- step counts
def _log_power_residual(kappa, order, steps, *, power, scale):
    """log rho of the residual's worst case at the ends of the spectrum, times order^steps."""
    x = scale * kappa**-power
    ends = [abs(1 - scale), abs(1 - x)]
    rho = max(ends)
    return -mpmath.inf if rho == 0 else mpmath.log(rho) * order**steps


@given(
    log10_kappa=log10_kappas,
    log10_tol=log10_tols,
    order=st.sampled_from([2, 3, 7, 19]),
    start=st.sampled_from(["adjoint", "identity"]),
    scale=st.one_of(st.none(), st.floats(0.1, 1.99)),
)
@example(log10_kappa=0, log10_tol=-3, order=2, start="identity", scale=None)
@example(log10_kappa=300, log10_tol=-300, order=2, start="adjoint", scale=None)
@example(log10_kappa=0, log10_tol=-3, order=2, start="identity", scale=1.0)
def test_power_step_counts_are_sufficient_and_sharp(log10_kappa, log10_tol, order, start, scale):
    with mpmath.workdps(700):
        kappa, tol = 10.0**log10_kappa, 10.0**log10_tol
        if order == 2:
            steps = filters.newton_raphson_steps(kappa, tol, start=start, scale=scale)
            assert steps == filters.hyperpower_steps(kappa, tol, order=2, start=start, scale=scale)
        else:
            steps = filters.hyperpower_steps(kappa, tol, order=order, start=start, scale=scale)
        exact_kappa = mpmath.mpf(kappa)
        default = mpmath.mpf(1.8) if start == "adjoint" else 2 * exact_kappa / (exact_kappa + 1)
        used = default if scale is None else mpmath.mpf(scale)
        power = 2 if start == "adjoint" else 1
        goal = mpmath.log(mpmath.mpf(tol))
        assert _log_power_residual(exact_kappa, order, steps, power=power, scale=used) <= goal
        # Sharp but for the slack of 1e-12 in the logarithm of the count.
        if steps > 0:
            assert _log_power_residual(exact_kappa, order, steps - 1, power=power, scale=used) > goal * (1 + mpmath.mpf("1e-10"))


@given(log10_kappa=st.floats(0, 300), log10_tol=log10_tols, polish=st.integers(0, 3), general=st.booleans())
@example(log10_kappa=0, log10_tol=-3, polish=1, general=False)
@example(log10_kappa=1e-14, log10_tol=-3, polish=0, general=False)
@example(log10_kappa=300, log10_tol=-300, polish=0, general=True)
@example(log10_kappa=4, log10_tol=-3, polish=0, general=False)
@example(log10_kappa=4.3, log10_tol=-0.01, polish=1, general=False)
def test_chebyshev_step_counts_are_sufficient_and_sharp(log10_kappa, log10_tol, polish, general):
    with mpmath.workdps(700):
        kappa, tol = 10.0**log10_kappa, 10.0**log10_tol
        count = filters.chebyshev_newton_general_steps if general else filters.chebyshev_newton_steps
        steps = count(kappa, tol, polish=polish)
        k = mpmath.mpf(kappa) ** (2 if general else 1)
        goal = mpmath.log(mpmath.mpf(tol))

        def log_residual(steps):  # log of tau_n^(-2^polish), the residual at both ends of the spectrum
            if k == 1:
                return -mpmath.inf
            angle = 2**steps * mpmath.acosh((k + 1) / (k - 1))
            return -(2**polish) * (angle + mpmath.log1p(mpmath.exp(-2 * angle)) - mpmath.log(2))

        assert log_residual(steps) <= goal
        if steps > 0:
            assert log_residual(steps - 1) > goal * (1 + mpmath.mpf("1e-10"))


def test_step_counts_are_zero_where_nothing_is_left_to_do():
    assert filters.chebyshev_newton_steps(1.0, 1e-12) == 0
    assert filters.newton_raphson_steps(1.0, 1e-12, start="identity") == 0
    for count in (filters.newton_raphson_steps, filters.chebyshev_newton_steps, filters.chebyshev_newton_general_steps):
        assert count(1e4, 1.0) == 0
        assert count(1e4, 5.0) == 0


def test_products_to_reach_a_residual_of_one_in_a_thousand():
    # Condition 10, 100, 1e4, 1e6. The published start, the identity, the best multiple of it, Chebyshev scaling.
    kappas = (1e1, 1e2, 1e4, 1e6)
    newton = filters.newton_raphson_products
    assert [newton(filters.newton_raphson_steps(k, 1e-3)) for k in kappas] == [18, 32, 58, 84]
    assert [newton(filters.newton_raphson_steps(k, 1e-3, start="identity", scale=1.0), start="identity") for k in kappas] == [
        12,
        18,
        32,
        44,
    ]
    assert [newton(filters.newton_raphson_steps(k, 1e-3, start="identity"), start="identity") for k in kappas] == [10, 16, 30, 42]
    assert [filters.chebyshev_newton_products(filters.chebyshev_newton_steps(k, 1e-3, polish=0), polish=0) for k in kappas] == [
        6,
        10,
        16,
        22,
    ]


def test_hyperpower_products_grow_with_the_logarithm_of_the_order():
    assert {p: filters.hyperpower_products(1, order=p) for p in (2, 3, 4, 5, 6, 7, 8, 9, 19)} == {
        2: 2, 3: 3, 4: 4, 5: 4, 6: 5, 7: 5, 8: 6, 9: 6, 19: 8,
    }  # fmt: skip
    assert filters.hyperpower_products(3, order=7, start="identity") == 13
    assert filters.hyperpower_products(0, order=7, start="identity") == 0
    assert filters.chebyshev_newton_products(0, polish=0) == 0


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: filters.newton_raphson_steps(0.5, 1e-3), r"newton_raphson_steps: kappa must be a finite number >= 1; got 0\.5"),
        (lambda: filters.chebyshev_newton_steps(2.0, 0.0), r"chebyshev_newton_steps: tol must be a finite number > 0; got 0\.0"),
        (lambda: filters.chebyshev_newton_general_steps(math.inf, 0.1), r"kappa must be a finite number >= 1; got inf"),
        (lambda: filters.newton_raphson_steps(2.0, 0.1, start="middle"), r"start must be 'adjoint' or 'identity'; got 'middle'"),
        (lambda: filters.newton_raphson_steps(2.0, 0.1, scale=2.0), r"newton_raphson_steps: scale must be < 2; got 2\.0"),
        (lambda: filters.newton_raphson_steps(2.0, 0.1, scale=-1.0), r"newton_raphson_steps: scale must be a finite number > 0 and <= 2"),
        (lambda: filters.hyperpower_steps(2.0, 0.1, order=1), r"hyperpower_steps: order must be an int >= 2; got 1"),
        (lambda: filters.hyperpower_products(1, order=2.5), r"hyperpower_products: order must be an int >= 2; got 2\.5"),
        (lambda: filters.chebyshev_newton_steps(2.0, 0.1, polish=-1), r"polish must be an int >= 0; got -1"),
        (
            lambda: filters.newton_raphson_filter(np.ones(1), steps=-1, alpha=1.0),
            r"newton_raphson_filter: steps must be an int >= 0; got -1",
        ),
        (lambda: filters.newton_raphson_filter(np.ones(1), steps=True, alpha=1.0), r"steps must be an int >= 0; got True"),
        (
            lambda: filters.hyperpower_filter(np.ones(1), order=3, steps=1),
            r"hyperpower_filter: exactly one of alpha and scale must be given; got neither",
        ),
        (lambda: filters.hyperpower_filter(np.ones(1), order=3, steps=1, alpha=1.0, scale=1.0), r"given; got both"),
        (
            lambda: filters.chebyshev_newton_filter(np.ones(1), lo=0.0, hi=1.0, steps=1),
            r"lo and hi must satisfy 0 < lo <= hi; got lo = 0\.0, hi = 1\.0",
        ),
        (lambda: filters.chebyshev_newton_general_filter(np.ones(1), lo=2.0, hi=1.0, steps=1), r"must satisfy 0 < lo <= hi; got lo = 2\.0"),
    ],
)
def test_settings_out_of_range_are_refused(call, match):
    with pytest.raises(ParameterError, match=match) as caught:
        call()
    assert len(str(caught.value)) <= 400
