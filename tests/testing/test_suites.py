"""The suites: they pass what is right, name the law that a mistake breaks, and show the smallest example of it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg

import softlinalg
from softlinalg.errors import ParameterError
from softlinalg.testing import _laws, _suite_kernel, _suite_matrices, _suite_pinv, scorecard, suites
from softlinalg.testing._cases import build_matrix

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
FEW = 40
"""Cases: enough for every kind of mistake below, in about half a second."""
FEWER = 40 if THOROUGH else 16
"""For functions that take several milliseconds: every law is still measured (tested below)."""


# ------------------------------------------------------------------------------------------------ what passes
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
def test_scipys_pseudo_inverse_obeys_every_law(dtype: str) -> None:
    report = suites.pinv(scipy.linalg.pinv, dtype=dtype, cases=FEW)
    report.raise_for_failures()
    assert {result.name for result in report.properties if result.cases == 0} <= {"claimed-bound", "claimed-rank", "zero"}


@pytest.mark.parametrize("dtype", ["float32", "float64", "complex128"])
def test_our_certified_pseudo_inverse_obeys_every_law_bit_for_bit(dtype: str) -> None:
    report = suites.pinv(softlinalg.certified_pinv, dtype=dtype, cases=FEWER, bitwise=True)
    report.raise_for_failures()
    assert report["claimed-bound"].cases > FEWER / 2


@pytest.mark.parametrize("backend", ["torch", "array-api-strict"])
def test_our_pseudo_inverse_obeys_them_on_every_library(backend: str) -> None:
    if importlib.util.find_spec(_laws.BACKENDS[backend]) is None:
        pytest.skip(f"{backend} is not installed")
    suites.pinv(softlinalg.pinv, dtype="float64", backend=backend, cases=6 if THOROUGH else 3).raise_for_failures()


def test_and_on_jax_whose_every_new_shape_is_compiled() -> None:
    if importlib.util.find_spec("jax") is None:
        pytest.skip("jax is not installed")
    subject = _laws.Subject(function=softlinalg.pinv, target="softlinalg.pinv", backend="jax", dtype="float64")
    cases = [_suite_matrices.MatrixCase(3, 3, rank, 3, 10.0, 0, rank, "float64") for rank in (2, 3)]
    laws = [law for law in _suite_pinv.laws() if law.share == 1 or law.name in ("kind", "input", "scaling")]
    report = _laws.run(subject, cases, laws, kind="pinv", profile="smoke", make_trial=_suite_pinv.PinvTrial)
    report.raise_for_failures()
    assert report["forward-error"].cases == 2


def test_our_iteration_obeys_the_laws_of_grade_n() -> None:
    suites.pinv(lambda a: softlinalg.pinv(a, method="newton"), dtype="float64", grade="N", cases=FEWER).raise_for_failures()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_our_kernel_approximation_and_attention_obey_theirs(dtype: str) -> None:
    suites.kernel(softlinalg.gaussian_kernel, dtype=dtype, grade="N", bitwise=True, cases=FEW).raise_for_failures()
    suites.nystrom(softlinalg.nystrom, dtype=dtype, cases=FEWER).raise_for_failures()
    suites.attention(softlinalg.soft_attention, dtype=dtype, cases=FEWER).raise_for_failures()


def _differences(x: Any, y: Any = None, *, length_scale: float) -> Any:
    y = x if y is None else y
    scale = x.dtype.type(length_scale)
    return np.exp(-np.sum(((x[..., :, None, :] - y[..., None, :, :]) / scale) ** 2, axis=-1) / 2)


def test_a_kernel_from_differences_is_of_grade_s() -> None:
    suites.kernel(_differences, dtype="float32", cases=FEW).raise_for_failures()


# ------------------------------------------------------------------------------------------------- what fails
def _no_cut(a: Any) -> Any:
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    return np.conj(np.swapaxes((u / np.where(s > 0, s, 1)[..., None, :]) @ vh, -1, -2))


def _in_place(a: Any) -> Any:
    x = scipy.linalg.pinv(a)
    a *= 2
    return x


def _widened(a: Any) -> Any:
    return scipy.linalg.pinv(a).astype(np.float64)


def _blind_to_nan(a: Any) -> Any:
    return scipy.linalg.pinv(np.nan_to_num(a, posinf=1.0))


def _ridged(a: Any) -> Any:
    """Half of the digits, as from (A^T A + nu I)^-1 A^T."""
    square = np.swapaxes(a, -1, -2) @ a
    size = np.max(np.abs(square), axis=(-2, -1), keepdims=True) if a.size else 0
    return np.linalg.solve(square + (1e-9 * size + np.finfo(a.dtype).tiny) * np.eye(a.shape[-1], dtype=a.dtype), np.swapaxes(a, -1, -2))


def _mixes_the_batch(a: Any) -> Any:
    x = scipy.linalg.pinv(a)
    return x if a.ndim == 2 else x + 1e-3 * x.mean(axis=0)


def _transposed(a: Any) -> Any:
    return np.swapaxes(a, -1, -2)


def _wrong_shape(a: Any) -> Any:
    return np.swapaxes(scipy.linalg.pinv(a), -1, -2)


def _text(a: Any) -> Any:
    return "no array"


def _stubborn(a: Any) -> Any:
    if not a.flags.c_contiguous:
        message = "must be contiguous"
        raise ValueError(message)
    return scipy.linalg.pinv(a)


def _forgetful() -> Callable[[Any], Any]:
    calls = iter(range(10**6))
    return lambda a: scipy.linalg.pinv(a) * (1 + 2 * np.finfo(a.dtype).eps * (next(calls) % 7))


@pytest.mark.parametrize(
    ("function", "law"),
    [
        (np.linalg.pinv, "forward-error"),
        (_no_cut, "rank"),
        (_in_place, "input"),
        (_widened, "kind"),
        (_blind_to_nan, "nan"),
        (_blind_to_nan, "infinity"),
        (_ridged, "forward-error"),
        (_mixes_the_batch, "batch"),
        (_transposed, "penrose-1"),
        (_wrong_shape, "adjoint"),
        (_text, "penrose-1"),
        (_stubborn, "layout"),
        (_forgetful(), "repeat"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_mistake_in_a_pseudo_inverse_breaks_the_law_that_names_it(function: Callable[..., Any], law: str) -> None:
    report = suites.pinv(function, dtype="float32", cases=60)
    assert not report[law].passed
    assert report[law].smallest is not None
    with pytest.raises(AssertionError, match=law):
        report.raise_for_failures()


def test_a_bound_or_a_rank_that_is_claimed_wrongly_is_noticed() -> None:
    def boastful(a: Any) -> Any:
        result = softlinalg.certified_pinv(a)
        return result._replace(error_bound=result.error_bound * 1e-6, rank=np.maximum(result.rank - 1, 0))

    def exact(a: Any) -> Any:
        result = softlinalg.certified_pinv(a)
        return result._replace(error_bound=result.error_bound * 1e-6)

    assert not suites.pinv(boastful, cases=8)["claimed-rank"].passed
    assert not suites.pinv(exact, cases=8)["claimed-bound"].passed


def _gram(x: Any, y: Any = None, *, length_scale: float) -> Any:
    """The textbook form without center and clamp."""
    y = x if y is None else y
    squares = np.sum(x * x, axis=-1)[..., :, None] + np.sum(y * y, axis=-1)[..., None, :] - 2 * x @ np.swapaxes(y, -1, -2)
    return np.exp(-squares / np.asarray(2 * length_scale**2, dtype=x.dtype))


def test_mistakes_in_a_kernel_break_the_laws_that_name_them() -> None:
    report = suites.kernel(_gram, dtype="float32", grade="N", cases=100)
    for law in ("values", "range", "diagonal", "digits", "far"):
        assert not report[law].passed, law
    halved = suites.kernel(lambda x, y=None, *, length_scale: _differences(x, y, length_scale=length_scale / 2), cases=20)
    assert not halved["values"].passed
    assert halved["diagonal"].passed


def test_an_absolute_cut_off_in_a_low_rank_approximation_is_noticed() -> None:
    def absolute(x: Any, kernel: Any, *, landmarks: Any) -> Any:
        values, vectors = np.linalg.eigh(kernel(landmarks, landmarks))
        keep = values > 1e-12
        return kernel(x, landmarks) @ vectors[:, keep] / np.sqrt(values[keep])

    report = suites.nystrom(absolute, dtype="float32", cases=80)
    for law in ("below", "explained", "scaling"):
        assert not report[law].passed, law


def test_attention_that_looks_at_its_neighbours_is_noticed() -> None:
    def normalized(q: Any, v: Any, landmarks: Any) -> Any:
        return softlinalg.soft_attention(q, v, landmarks) / np.maximum(1, np.abs(q).max())

    report = suites.attention(normalized, cases=30)
    assert not report["batch"].passed
    assert not report["values"].passed
    wrong = suites.attention(lambda q, v, landmarks: softlinalg.soft_attention(q, v, landmarks, ridge=0.02), cases=30)
    assert [result.name for result in wrong.failures] == ["values"]


# ------------------------------------------------------------------------------------------ smallest examples
def test_the_smallest_failing_example_is_small_and_can_be_built_again() -> None:
    smallest = suites.pinv(np.linalg.pinv, dtype="float32", cases=60)["forward-error"].smallest
    assert smallest is not None
    case = eval(smallest.reproduction, {"softlinalg": softlinalg})
    assert max(case.shape) <= 3
    assert case.rank < min(case.shape)
    x = np.linalg.pinv(case.A)
    assert np.linalg.norm(x - case.pinv, 2) > 30 * case.u * max(case.shape) * case.kappa * np.linalg.norm(case.pinv, 2)


def test_the_search_for_it_ends_where_nothing_simpler_fails() -> None:
    subject = _laws.Subject(function=lambda a: a, target="f")
    law = _laws.Law(
        name="n", words="", formula="", threshold=0, measure=lambda trial: float(trial.case.rows >= 3 and trial.case.cond >= 50)
    )
    start = _suite_matrices.MatrixCase(8, 6, 4, 5, 1e4, 60, 9, "float64")
    found = _laws.smallest_failing(law, start, subject, _laws.Trial)
    assert (found.rows, found.columns, found.rank, found.mode, found.log2_scale, found.seed) == (3, 2, 2, 3, 0, 0)
    assert 50 <= found.cond < 150


def test_the_same_call_gives_the_same_report() -> None:
    first, second = (suites.pinv(np.linalg.pinv, dtype="float32", cases=20) for _ in range(2))
    assert first.properties == second.properties


def test_simplifying_never_leads_back() -> None:
    for case in [
        *_suite_matrices.matrices(60, dtype="float64", grade="S", large=True),
        *_suite_kernel.points(40, dtype="float32", large=True),
    ]:
        for simpler in case.simpler():
            assert simpler != case


# ------------------------------------------------------------------------------------------------------ cases
@pytest.mark.parametrize("grade", ["S", "N"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cases_cover_ranks_conditions_and_scales_and_few_are_trivial(dtype: str, grade: str) -> None:
    drawn = _suite_matrices.matrices(1500, dtype=dtype, grade=grade, large=False)
    groups = {case.group for case in drawn}
    assert groups == {"full rank", "deficient", "zero"}
    trivial = sum(case.rank == 0 or (case.rows, case.columns) == (1, 1) for case in drawn)
    assert trivial <= 0.1 * len(drawn)
    assert sum(case.group == "full rank" for case in drawn) > 0.2 * len(drawn)
    assert {case.mode for case in drawn} == {1, 2, 3, 4, 5, 6}
    assert len({case.cond for case in drawn}) >= 7
    assert len({case.log2_scale for case in drawn}) == 4
    assert len(set(drawn)) == len(drawn)


def test_the_third_order_iteration_of_the_scorecard_inverts_what_it_can() -> None:
    case = build_matrix(shape=(4, 3), cond=2.0)
    assert np.linalg.norm(scorecard.third_order_pinv(case.A, steps=12) - case.pinv) < 1e-13
    assert np.linalg.norm(scorecard.third_order_pinv(build_matrix(shape=(4, 4), cond=1e3).A)) < 500, "six steps do not reach 1000"


def test_published_iterations_fail_where_they_are_known_to() -> None:
    twenty = suites.pinv(lambda a: softlinalg.newton_pinv(a).value, dtype="float64", grade="N", cases=80)
    six = suites.pinv(scorecard.third_order_pinv, dtype="float64", grade="N", cases=80)
    for report, least in ((twenty, 0.2), (six, 0.4)):
        failed, cases = report.groups["full rank"]
        assert failed >= least * cases
    failed, cases = twenty.groups["deficient"]
    assert failed > 0.7 * cases


# ------------------------------------------------------------------------------------------------- settings
@pytest.mark.parametrize("kind", suites.KINDS)
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"profile": "quick"}, "profile must be one of smoke, ci, deep; got 'quick'"),
        ({"dtype": "int64"}, "dtype must be one of float32, float64"),
        ({"backend": "list"}, "backend must be one of numpy, torch"),
        ({"cases": 0}, "cases must be at least 1; got 0"),
    ],
)
def test_bad_settings_are_refused(kind: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        suites.check(lambda a: a, kind, **settings)


def test_bad_functions_kinds_and_grades_are_refused() -> None:
    with pytest.raises(ParameterError, match="function must be callable; got int"):
        suites.pinv(3)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="kind must be one of pinv, kernel, nystrom, attention; got 'svd'"):
        suites.check(np.linalg.pinv, "svd")
    with pytest.raises(ParameterError, match="grade must be one of S, N; got 'A'"):
        suites.pinv(np.linalg.pinv, grade="A")
    with pytest.raises(ParameterError, match="dtype must be real for this suite; got complex64"):
        suites.kernel(_differences, dtype="complex64")


def test_a_function_for_square_matrices_of_some_condition_is_asked_for_no_more() -> None:
    def inverse(a: Any) -> Any:
        assert a.shape[-1] == a.shape[-2]
        return scipy.linalg.pinv(a)

    report = suites.pinv(inverse, cases=30, square=True, max_cond=10.0)
    report.raise_for_failures()
    assert "empty" not in {result.name for result in report.properties}
    assert all(case.cond <= 10 for case in _suite_matrices.matrices(50, dtype="float64", grade="S", large=False, max_cond=10.0))


@pytest.mark.parametrize(("profile", "seconds"), [("smoke", 5)])
def test_profiles_keep_their_time(profile: str, seconds: float) -> None:
    report = suites.pinv(scipy.linalg.pinv, dtype="float64", profile=profile)
    assert report.passed
    assert report.seconds < 4 * seconds, "four times: test machines are shared"


# ------------------------------------------------------------------------------------------------ fewer laws
def numbers_of_infinity(a: Any) -> Any:
    return np.linalg.pinv(a, rtol=None)


def test_a_law_that_is_left_out_is_named_and_the_others_see_the_same_cases() -> None:
    whole = suites.pinv(numbers_of_infinity, cases=FEWER)
    assert [result.name for result in whole.failures] == ["infinity"]
    assert whole.skipped == ()
    report = suites.pinv(numbers_of_infinity, cases=FEWER, skip=("infinity",))
    report.raise_for_failures()
    assert report.skipped == ("infinity",)
    assert "left out on request: infinity" in str(report)
    assert "left out on request" not in str(whole)
    assert [(r.name, r.cases, r.worst) for r in report.properties] == [(r.name, r.cases, r.worst) for r in whole.properties if r.passed]


@pytest.mark.parametrize(
    ("kind", "function", "law"),
    [
        ("pinv", numbers_of_infinity, "forward-error"),
        ("kernel", softlinalg.gaussian_kernel, "range"),
        ("nystrom", softlinalg.nystrom, "below"),
        ("attention", softlinalg.soft_attention, "linear"),
    ],
)
def test_a_function_can_be_held_to_some_laws_alone(kind: str, function: Callable[..., Any], law: str) -> None:
    report = suites.check(function, kind, cases=2, only=[law])
    assert [result.name for result in report.properties] == [law]
    assert "repeat" in report.skipped


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"skip": ("infinty",)}, "skip must name laws of the suite; got 'infinty'. There are penrose-1, penrose-2"),
        ({"only": "rnak"}, "only must name laws of the suite; got 'rnak'. There are"),
        ({"skip": 3}, "skip must name laws of the suite; got 3"),
        ({"only": ("rank",), "skip": "rank"}, "only and skip must leave a law; got none left. There are"),
        ({"only": ()}, "only and skip must leave a law"),
    ],
)
def test_names_of_no_law_are_refused_with_those_there_are(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=r"^suite: ") as caught:
        suites.pinv(numbers_of_infinity, cases=1, **settings)
    assert words in str(caught.value)
