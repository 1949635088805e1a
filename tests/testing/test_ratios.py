"""Ratios: the truth they measure against is exact, they do not depend on scale, and every law can be broken."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

import softlinalg
from softlinalg.testing import _exact, build_attention, build_graded, build_gram, build_matrix, build_points, ratios
from softlinalg.testing._points import gaussian_values

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


# ---------------------------------------------------------------------------------------------- the truth
def by_mpmath(a: np.ndarray, rank: int, digits: int = 60) -> np.ndarray:
    """Truncated pseudo-inverse from a singular value decomposition in `digits` digits."""
    with mpmath.workdps(digits):
        u, s, vh = (mpmath.svd_c if np.iscomplexobj(a) else mpmath.svd_r)(mpmath.matrix(a.tolist()))
        x = mpmath.matrix(a.shape[1], a.shape[0])
        for k in range(rank):
            x += vh[k, :].H * u[:, k].H / s[k]
        return np.array([[complex(x[i, j]) for j in range(x.cols)] for i in range(x.rows)])


@pytest.mark.parametrize(
    ("shape", "rank", "settings"),
    [
        ((5, 5), 5, {"cond": 1e13}),
        ((6, 3), 3, {"cond": 1e10}),
        ((3, 6), 2, {"cond": 1e4}),
        ((6, 6), 4, {"cond": 1e9}),
        ((6, 6), 3, {"exact": True, "cond": 1e6}),
        ((4, 3), 2, {"dtype": "complex128", "cond": 1e5}),
        ((5, 4), 3, {"log2_scale": -400, "cond": 10.0}),
    ],
)
def test_the_truth_is_correctly_rounded(shape, rank, settings):
    case = build_matrix(shape=shape, rank=rank, seed=3, **settings)
    expected = by_mpmath(case.host, rank)
    # Half a unit in the last place of each part, as complex numbers have two, and a unit for the rounding of the comparison.
    assert np.max(np.abs(case.pinv - expected)) <= 2 * EPS["float64"] * np.max(np.abs(expected))
    entries = np.abs(case.pinv - expected) <= EPS["float64"] * np.maximum(np.abs(expected), np.finfo(float).tiny)
    assert np.iscomplexobj(case.pinv) or entries.all()


@pytest.mark.parametrize(("rank", "cond"), [(26, 1e3), (6, 1e8)])
def test_the_truth_of_large_matrices_is_refined_beyond_float64(rank, cond):
    case = build_matrix(shape=(26, 26), rank=rank, cond=cond, seed=1)
    expected = _exact.exact_pinv(case.host, rank)
    error = np.linalg.norm(case.pinv - expected, 2) / np.linalg.norm(expected, 2)
    assert error <= 0.01 * EPS["float64"] * 26 * cond


def test_the_truth_of_short_types_is_float64s():
    case = build_matrix(shape=(6, 4), cond=1e3, dtype="float32", seed=2)
    expected = _exact.exact_pinv(case.host.astype(np.float64), 4)
    assert np.linalg.norm(case.pinv - expected, 2) <= 10 * EPS["float64"] * 1e3 * np.linalg.norm(expected, 2)


def test_rational_pseudo_inverses_satisfy_penrose_exactly():
    rng = np.random.default_rng(0)
    for _ in range(5):
        left, right = rng.integers(-3, 4, (4, 2)), rng.integers(-3, 4, (2, 5))
        a = _exact.fraction_matrix((left @ right).astype(float)) / Fraction(7, 3)
        x = _exact.rational_pinv(a)
        for got, expected in ((a @ x @ a, a), (x @ a @ x, x), ((a @ x).T, a @ x), ((x @ a).T, x @ a)):
            assert (got == expected).all()


@pytest.mark.parametrize(("matrix", "rank"), [(np.ones((3, 2)), 1), (np.eye(3), 3), (np.zeros((2, 3)), 0), ([[1, 1j], [1j, -1]], 1)])
def test_exact_rank(matrix, rank):
    assert _exact.exact_rank(np.asarray(matrix)) == rank


def test_kernel_values_are_those_of_mpmath():
    x, y = build_points(shape=(4, 3), kind="one-far", seed=1).host, build_points(shape=(5, 3), seed=2).host
    got = gaussian_values(x, y, 0.75)
    with mpmath.workdps(40):
        for i in range(4):
            for j in range(5):
                square = sum((mpmath.mpf(a) - mpmath.mpf(b)) ** 2 for a, b in zip(x[i], y[j], strict=True))
                exact = mpmath.exp(-square / (2 * mpmath.mpf(0.75) ** 2))
                exponent = float(square / (2 * 0.75**2))
                assert abs(float(got[i, j]) - float(exact)) <= EPS["float64"] * (8 + exponent) * float(exact) + 1e-320


# ------------------------------------------------------------------------------------------------- penrose
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("rank", [4, 2])
def test_a_decomposition_has_small_ratios_and_noise_has_large_ones(dtype, rank):
    case = build_matrix(shape=(6, 4), rank=rank, cond=100.0, dtype=dtype, seed=5)
    x = np.linalg.pinv(case.A, rtol=None)
    laws = ratios.penrose(case.A, x, case) | ratios.forward(case.A, x, case)
    assert set(laws) == {"AXA = A", "XAX = X", "AX Hermitian", "XA Hermitian", "X = A^+"}
    assert max(laws.values()) < ratios.THRESHOLD / 2
    noise = np.random.default_rng(0).standard_normal(x.shape) * np.abs(x).max() * 1e4 * case.u * case.kappa
    broken = ratios.penrose(case.A, x + noise, case) | ratios.forward(case.A, x + noise, case)
    assert min(broken.values()) > ratios.THRESHOLD


@pytest.mark.parametrize(
    ("law", "mistake"),
    [
        ("AXA = A", lambda x, v, w: 2 * x),
        ("XAX = X", lambda x, v, w: x + v @ w.T),  # a component from null space to null space: only condition 2 sees it
        ("AX Hermitian", lambda x, v, w: x + x @ np.ones((x.shape[1], 1)) @ w.T),
        ("XA Hermitian", lambda x, v, w: x + v @ np.ones((1, x.shape[0])) @ x),
    ],
)
def test_each_condition_sees_its_own_mistake(law, mistake):
    case = build_matrix(shape=(5, 4), rank=2, cond=3.0, seed=0)
    u, _, vh = np.linalg.svd(case.A)
    x = mistake(case.pinv, vh[3:].T, u[:, 4:])
    found = ratios.penrose(case.A, x, case)
    assert found[law] > 1e3
    if law != "AXA = A":
        assert all(value < ratios.THRESHOLD for name, value in found.items() if name != law)


def test_grade_n_forgives_kappa_in_the_symmetry_conditions_only():
    case = build_matrix(shape=(5, 5), cond=1e4, seed=0)
    noise = np.random.default_rng(0).standard_normal((5, 5)) * case.u * 1e6 * np.abs(case.pinv).max()
    strict, lenient = (ratios.penrose(case.A, case.pinv + noise, case, grade=grade) for grade in "SN")
    for law in ("AXA = A", "XAX = X"):
        assert strict[law] == lenient[law]
    for law in ("AX Hermitian", "XA Hermitian"):
        assert strict[law] == pytest.approx(lenient[law] * case.kappa)


@pytest.mark.parametrize("exponent", [-900, -300, 300, 900])
def test_ratios_do_not_depend_on_the_scale(exponent):
    a = build_matrix(shape=(5, 4), cond=30.0, seed=4)
    b = build_matrix(shape=(5, 4), cond=30.0, seed=4, log2_scale=exponent)
    x = np.linalg.pinv(a.A)
    y = np.ldexp(x, -exponent)
    assert ratios.penrose(b.A, y, b) == pytest.approx(ratios.penrose(a.A, x, a))
    assert ratios.forward(b.A, y, b) == pytest.approx(ratios.forward(a.A, x, a))


@pytest.mark.parametrize(
    "bad", [np.zeros((4, 5)), np.full((4, 6), np.nan), np.full((4, 6), np.inf), None, "text", np.zeros((4, 6), dtype=object)]
)
def test_what_is_no_answer_has_the_ratio_infinity(bad):
    case = build_matrix(shape=(6, 4), seed=0)
    assert all(value == math.inf for value in ratios.penrose(case.A, bad, case).values())
    assert ratios.forward(case.A, bad, case) == {"X = A^+": math.inf}


def test_zero_wants_exactly_zero():
    case = build_matrix(shape=(3, 2), rank=0)
    zero = np.zeros((2, 3))
    assert max((ratios.penrose(case.A, zero, case) | ratios.forward(case.A, zero, case)).values()) == 0
    assert ratios.forward(case.A, zero + 1e-300, case)["X = A^+"] == math.inf


def test_without_a_case_the_condition_comes_from_the_norms():
    a = build_matrix(shape=(4, 4), cond=1e6, seed=0)
    x = np.linalg.inv(a.A)
    assert ratios.penrose(a.A, x) == pytest.approx(ratios.penrose(a.A, x, a), rel=1e-3)


def test_a_batch_is_as_bad_as_its_worst_member():
    case = build_matrix(shape=(4, 3), batch=(2, 2), seed=0)
    x = np.linalg.pinv(case.A)
    x[1, 0] *= 1 + 1e-6
    members = [ratios.penrose(case.A[i, j], x[i, j], kappa=case.kappa) for i in range(2) for j in range(2)]
    together = ratios.penrose(case.A, x, case)
    assert together == {law: max(member[law] for member in members) for law in together}
    assert max(together.values()) == max(members[2].values()) > 1e6


def test_every_library_gives_the_same_ratios(backend):
    case = build_matrix(shape=(5, 3), dtype="float32", seed=1)
    x = np.linalg.pinv(case.A)
    expected = ratios.penrose(case.A, x, case) | ratios.forward(case.A, x, case)
    a, converted = backend.asarray(case.host), backend.asarray(x)
    assert ratios.penrose(a, converted, case) | ratios.forward(a, converted, case) == expected


# ------------------------------------------------------------------------------- kernels and approximations
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "kind", ["normal", "clustered", "duplicated", "collinear", "grid", "one-far", "offset", "all-equal", "far-apart", "two-groups"]
)
def test_our_kernels_are_within_half_of_the_threshold(kind, dtype):
    points = build_points(shape=(12, 3), kind=kind, dtype=dtype, seed=1)
    for length_scale in (0.25, 1.0, 8.0):
        found = ratios.kernel(softlinalg.gaussian_kernel(points.x, length_scale=length_scale), points.x, length_scale=length_scale)
        assert max(found.values()) < ratios.THRESHOLD / 2


@pytest.mark.parametrize(
    ("law", "mistake"),
    [
        ("0 <= K <= 1", lambda k: k * (1 + 1e-4)),
        ("values", lambda k: k**1.001),
        ("symmetric", lambda k: k + np.triu(np.full_like(k, 1e-4), 1)),
        ("diagonal", lambda k: k - 1e-15 * np.eye(len(k))),
        ("psd", lambda k: k * 1.001 - 0.001 * np.eye(len(k))),
    ],
)
def test_each_law_of_a_kernel_sees_its_own_mistake(law, mistake):
    x = build_points(shape=(8, 2), kind="duplicated", seed=1).host
    k = gaussian_values(x, x, 1.0).astype(np.float64)
    assert max(ratios.kernel(k, x).values()) < 1.5
    assert ratios.kernel(mistake(k), x)[law] > ratios.THRESHOLD


def test_kernels_between_two_sets_have_no_diagonal_law():
    x, y = build_points(shape=(4, 2), seed=0).x, build_points(shape=(5, 2), seed=1).x
    assert set(ratios.kernel(softlinalg.gaussian_kernel(x, y), x, y)) == {"0 <= K <= 1", "values"}
    assert set(ratios.kernel(np.zeros((4, 4)), x, y).values()) == {math.inf}
    assert set(ratios.kernel(np.eye(4), x, length_scale=None)) == {"0 <= K <= 1", "symmetric", "diagonal", "psd"}


def test_psd_measures_the_most_negative_eigenvalue():
    k = np.diag([1.0, -1e-10])
    assert ratios.psd(k) == {"Hermitian": 0.0, "psd": pytest.approx(1e-10 / (2 * EPS["float64"]))}
    assert ratios.psd(np.ldexp(k, 500)) == ratios.psd(k)
    assert ratios.psd(np.zeros((2, 3)))["psd"] == math.inf
    assert ratios.psd(np.array([[1.0, 1e-6], [0.0, 1.0]]))["Hermitian"] > 1e6


def test_nystrom_laws():
    points = build_points(shape=(12, 2), seed=0)
    k = gaussian_values(points.host, points.host, 1.0).astype(np.float64)
    exact = softlinalg.nystrom(points.x, softlinalg.Gaussian(1.0), landmarks=np.arange(0, 12, 3)).to_dense()
    assert max(ratios.nystrom(k, exact, rank=4).values()) < 1
    for law, broken in {
        "K_hat <= K": exact + 1e-6 * k,
        "K_hat >= 0": exact - 1e-6 * np.eye(12),
        "symmetric": exact + 1e-6 * np.triu(k, 1),
        "diagonal": exact + 1e-6 * np.diag(np.diagonal(k)) + (k - exact) * np.eye(12),
        "rank": k,
    }.items():
        assert ratios.nystrom(k, broken, rank=4)[law] > ratios.THRESHOLD, law
    assert set(ratios.nystrom(k, exact[:3], rank=4).values()) == {math.inf}


@pytest.mark.parametrize("norm", ["2", "fro", "nuclear"])
def test_low_rank_is_measured_against_the_best(norm):
    case = build_matrix(shape=(6, 5), cond=100.0, seed=2)
    u, s, vh = np.linalg.svd(case.A)
    best = (u[:, :2] * s[:2]) @ vh[:2]
    assert max(ratios.low_rank(case.A, best, rank=2, norm=norm).values()) < 1
    second = (u[:, :2] * s[[0, 2]]) @ vh[[0, 2]]
    assert ratios.low_rank(case.A, second, rank=2, norm=norm)["error"] > 1e6
    assert ratios.low_rank(case.A, second, rank=2, norm=norm, factor=100.0)["error"] == 0
    assert ratios.low_rank(case.A, case.A, rank=2, norm=norm)["rank"] > 1e6


def test_low_rank_in_the_loewner_order():
    case = build_matrix(shape=(5, 5), structure="psd", seed=2)
    s, v = np.linalg.eigh(case.A)
    best = v[:, -2:] * s[-2:] @ v[:, -2:].T
    assert max(ratios.low_rank(case.A, best, rank=2, psd=True).values()) < 1
    assert ratios.low_rank(case.A, 1.01 * best, rank=2, psd=True)["A_hat <= A"] > 1e6
    assert ratios.low_rank(case.A, best - 0.01 * np.outer(v[:, 0], v[:, 0]), rank=3, psd=True)["A_hat >= 0"] > 1e6


def test_attention_allows_what_a_plain_computation_needs():
    case = build_attention(tokens=6, features=3, landmarks=2, dtype="float32")
    truth = np.ones((6, 3))
    off = truth * (1 + 1e-3)
    assert ratios.attention(off.astype(np.float32), truth, case=case)["output"] > 500
    allowed = ratios.attention(off.astype(np.float32), truth, case=case, reference=off)["output"]
    assert allowed < ratios.THRESHOLD / 2 * 1.01
    assert ratios.attention(off[:2].astype(np.float32), truth, case=case)["output"] == math.inf


def test_badly_scaled_matrices_keep_their_truth():
    case = build_graded(shape=(5, 5), step=4.0, seed=1)
    expected = by_mpmath(case.host, 5, digits=80)
    assert np.max(np.abs(case.pinv / expected - 1)) <= 2 * EPS["float64"]
    assert max(ratios.forward(case.A, np.linalg.inv(case.A), case).values()) < 1


def test_kernel_matrices_are_symmetric_bit_for_bit():
    case = build_gram(shape=(9, 2), kind="clustered", length_scale=0.3)
    np.testing.assert_array_equal(case.A, case.A.T)
    assert (np.diagonal(case.A) == 1).all()
