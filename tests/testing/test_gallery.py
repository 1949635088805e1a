"""The gallery: properties hold exactly, closed forms agree with elimination, and the failures of published iterations fail."""

from __future__ import annotations

import warnings
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import scipy.linalg

import softlinalg
from softlinalg import errors
from softlinalg.testing import AccuracyError, _exact, assert_pinv, gallery, ratios

RATIONAL = [name for name in gallery.names() if gallery.get(name).rational]
CLOSED = [name for name in gallery.names() if gallery.get(name).has_closed_form]
IRRATIONAL = [name for name in gallery.names() if not gallery.get(name).rational]


def newton(a: np.ndarray, steps: int, alpha: float) -> np.ndarray:
    """V <- 2 V - V A V from alpha A^T / (|A|_1 |A|_inf): the published iteration."""
    v = alpha * a.T / (np.abs(a).sum(0).max() * np.abs(a).sum(1).max())
    for _ in range(steps):
        v = 2 * v - v @ a @ v
    return v


def third_order(a: np.ndarray, steps: int = 6) -> np.ndarray:
    """V <- V (13 I - A V (15 I - A V (7 I - A V))) / 4: Nystromformer's iteration with its published number of steps."""
    eye = np.eye(len(a))
    v = a.T / (np.abs(a).sum(0).max() * np.abs(a).sum(1).max())
    for _ in range(steps):
        av = a @ v
        v = v @ (13 * eye - av @ (15 * eye - av @ (7 * eye - av))) / 4
    return v


def test_all_that_was_promised_is_there():
    promised = "hilbert cauchy vandermonde pascal kahan lauchli frank prolate gaussian_grid magic equal_landmarks circulant_kernel"
    assert set(promised.split()) <= set(gallery.names())
    assert len(gallery.names()) >= 25
    for name in gallery.names():
        assert len(gallery.get(name).note) > 30


@pytest.mark.parametrize("name", gallery.names())
def test_shape_symmetry_and_rank_are_as_stated(name):
    matrix = gallery.get(name)
    assert matrix.exact.shape == matrix.shape
    if matrix.symmetric:
        assert (matrix.exact == matrix.exact.T).all()
    if matrix.rational:
        rows, _ = _exact._pivots(np.vectorize(lambda x: int(x * 2**200), otypes=[object])(matrix.exact), min(matrix.shape))
        exact_rank = _exact.rational_pinv(matrix.exact)
        trace = sum((matrix.exact @ exact_rank)[i, i] for i in range(matrix.shape[0]))  # of a projection: its rank
        assert trace == matrix.rank <= len(rows)
    if matrix.psd:
        with mpmath.workdps(80):
            entries = [[mpmath.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x for x in row] for row in matrix.exact]
            assert min(mpmath.eigsy(mpmath.matrix(entries), eigvals_only=True)) > -(mpmath.mpf(10) ** -60)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("change", [0, 1])
def test_closed_forms_agree_with_elimination(name, change):
    defaults = gallery.get(name).params
    matrix = gallery.get(name, n=defaults["n"] + 2 * change)
    assert (matrix.pinv_exact() == _exact.rational_pinv(matrix.exact)).all()
    assert (matrix.inverse_closed_form() == matrix.pinv_exact()).all()


@pytest.mark.parametrize("name", RATIONAL)
def test_rational_pseudo_inverses_satisfy_penrose_exactly(name):
    matrix = gallery.get(name)
    a, x = matrix.exact, matrix.pinv_exact()
    for got, expected in ((a @ x @ a, a), (x @ a @ x, x), ((a @ x).T, a @ x), ((x @ a).T, x @ a)):
        assert (got == expected).all()


@pytest.mark.parametrize("name", IRRATIONAL)
def test_others_are_right_to_fifty_digits(name):
    matrix = gallery.get(name)
    with mpmath.workdps(120):
        a = mpmath.matrix(matrix.recipe.build(**matrix.params).tolist())
        truth = a**-1
        x = mpmath.matrix(matrix.pinv_exact().tolist())
        assert mpmath.norm(x - truth, mpmath.inf) <= mpmath.mpf(10) ** -50 * mpmath.norm(truth, mpmath.inf)


@pytest.mark.parametrize(
    ("name", "params", "expected"),
    [
        ("hilbert", {"n": 7}, lambda: scipy.linalg.hilbert(7)),
        ("pascal", {"n": 5}, lambda: scipy.linalg.pascal(5)),
        ("vandermonde", {"n": 4, "m": 3}, lambda: np.vander(np.arange(4) / 3, 3, increasing=True)),
        ("kac_murdock_szego", {"n": 4}, lambda: scipy.linalg.toeplitz(0.5 ** np.arange(4))),
        ("prolate", {"n": 5}, lambda: scipy.linalg.toeplitz([0.5, *(np.sin(np.pi / 2 * k) / (np.pi * k) for k in range(1, 5))])),
        ("gaussian_grid", {"n": 4, "length_scale": 2.0}, lambda: np.exp(-(np.subtract.outer(np.arange(4), np.arange(4)) ** 2) / 8)),
        ("frank", {"n": 3}, lambda: [[3, 2, 1], [2, 2, 1], [0, 1, 1]]),
        ("lauchli", {"n": 2, "log2_mu": -1}, lambda: [[1, 1], [0.5, 0], [0, 0.5]]),
        ("kahan", {"n": 2}, lambda: [[1, -0.6], [0, 0.8]]),
    ],
)
def test_entries_are_those_of_the_literature(name, params, expected):
    np.testing.assert_allclose(gallery.get(name, **params).host(), expected(), rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 7, 8, 9, 10, 12])
def test_magic_squares_are_magic(n):
    square = gallery.get("magic", n=n).host()
    total = n * (n * n + 1) / 2
    assert sorted(square.ravel()) == list(range(1, n * n + 1))
    assert {*square.sum(0), *square.sum(1), np.trace(square), np.trace(square[::-1])} == {total}
    assert np.linalg.matrix_rank(square) == gallery.get("magic", n=n).rank
    assert np.linalg.norm(square, 2) == pytest.approx(total)


def test_frank_and_pascal_have_determinant_one():
    for name in ("frank", "pascal"):
        assert _exact._solve(*[gallery.get(name).exact.astype(object)] * 2)[1] == 1


# ------------------------------------------------------------------------------------------------ as cases
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sound_pseudo_inverses_pass_the_gallery(dtype):
    names = set()
    warnings.simplefilter("ignore", errors.SoftlinalgWarning)  # where the condition is beyond the certificate
    for case in gallery.cases(dtype=dtype):
        assert_pinv(lambda a: np.linalg.pinv(a, rtol=None), case, compare=case.gap)
        assert_pinv(scipy.linalg.pinv, case, compare=case.gap)
        if case.gap:
            assert_pinv(softlinalg.pinv, case)
        names.add(case.extra["gallery"])
    assert names == set(gallery.names())


def test_cases_are_rebuilt_by_their_line(backend):
    for name in ("kahan", "gaussian_clusters", "scaled_identity"):
        case = gallery.get(name).case(dtype="float32", xp=backend.name.removesuffix("-readonly").replace("strict", "array_api_strict"))
        again = eval(repr(case), {"softlinalg": softlinalg})
        assert type(again.A) is type(case.A)
        assert again.host.tobytes() == case.host.tobytes()


def test_cases_know_whether_their_rank_is_beyond_dispute():
    assert gallery.get("hilbert", n=6).case().gap
    assert not gallery.get("hilbert", n=10).case(dtype="float32").gap
    assert not gallery.get("lauchli", log2_mu=-20).case(dtype="float32").gap
    for case in gallery.cases(dtype="float32", only_gap=True):
        assert case.gap


def test_the_condition_is_exact_beyond_what_float64_could_measure():
    with mpmath.workdps(60):
        a = mpmath.hilbert(14)
        s = mpmath.eigsy(a, eigvals_only=True)
        expected = float(max(s) / min(s))
    assert expected > 1e19
    assert gallery.get("hilbert", n=14).cond == pytest.approx(expected, rel=1e-6)
    assert gallery.get("ones").cond == pytest.approx(1)


# --------------------------------------------------------------------------------- what they are there for
def forward(matrix: str, f, **params) -> float:
    case = gallery.get(matrix, **params).case()
    with np.errstate(all="ignore"):
        return ratios.forward(case.A, f(case.A), case)["X = A^+"]


@pytest.mark.parametrize("name", ["equal_landmarks", "circulant_kernel", "paired_landmarks"])
def test_twenty_steps_from_a_start_of_exactly_two_do_not_move(name):
    a = gallery.get(name).host()
    assert a.sum(1).max() == pytest.approx(np.linalg.eigvalsh(a)[-1])
    assert forward(name, lambda a: newton(a, 20, 2.0)) > 1e10
    assert forward(name, lambda a: newton(a, 30 if name == "circulant_kernel" else 12, 1.8)) < ratios.THRESHOLD


def test_a_step_size_stop_stops_at_the_gap():
    def stopping(a: np.ndarray) -> np.ndarray:
        v = newton(a, 0, 1.8)
        for _ in range(200):
            following = 2 * v - v @ a @ v
            if np.linalg.norm(following - v) < 1e-3 * np.linalg.norm(v):
                return following
            v = following
        return v

    assert forward("spectral_gap", stopping) > 1e6
    assert forward("spectral_gap", lambda a: newton(a, 60, 1.8), log2_gap=-8) < ratios.THRESHOLD


def test_six_third_order_steps_leave_most_of_the_error():
    assert forward("mixing", third_order) > 1e6
    assert forward("mixing", lambda a: third_order(a, 20)) < ratios.THRESHOLD


def test_normal_equations_lose_lauchli():
    assert forward("lauchli", lambda a: np.linalg.pinv(a.T @ a, rtol=None) @ a.T, log2_mu=-26) > 1e6
    assert forward("lauchli", lambda a: np.linalg.pinv(a, rtol=None), log2_mu=-26) < ratios.THRESHOLD


def test_an_unscaled_iteration_leaves_the_range():
    case = gallery.get("scaled_identity", log2_scale=-100).case(dtype="float32")
    with np.errstate(all="ignore"), pytest.raises(AccuracyError, match="has ratio inf"):
        assert_pinv(lambda a: newton(a, 20, 1.8), case)


def test_zero_makes_a_norm_divided_start_nan():
    with np.errstate(all="ignore"), pytest.raises(AccuracyError, match="has ratio inf"):
        assert_pinv(lambda a: newton(a, 20, 1.8), gallery.get("zero").case())


def test_unknown_names_and_parameters_are_refused():
    with pytest.raises(errors.ParameterError, match=r"name must be one of gallery\.names"):
        gallery.get("hilbret")
    with pytest.raises(errors.ParameterError, match="parameters of hilbert must be among n; got size"):
        gallery.get("hilbert", size=3)


def test_the_example_of_the_module_runs():
    import doctest

    assert doctest.testmod(gallery).failed == 0
