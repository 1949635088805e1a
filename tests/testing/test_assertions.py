"""Assertions pass on sound implementations with room to spare, and fail on planted mistakes, saying what, how much, where and how to repeat."""

from __future__ import annotations

import math
import re
import warnings

import numpy as np
import pytest
import scipy.linalg
from assertion_cases import HALF, POINTS, SQUARE, fails, numpy_pinv
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import softlinalg
from softlinalg import errors
from softlinalg.testing import _failures, assertions, build_attention, build_matrix, build_points, gallery, ratios, strategies
from softlinalg.testing.assertions import AccuracyError

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")

DEFICIENT = build_matrix(shape=(6, 4), rank=2, cond=400.0, dtype="float32", seed=17)
PSD = build_matrix(shape=(5, 5), rank=4, structure="psd", cond=30.0, seed=3)


def torch_pinv(a):
    return torch.linalg.pinv(torch.from_numpy(np.ascontiguousarray(a))).numpy()


def jax_pinv(a):
    with jax.enable_x64(True):
        return np.asarray(jax.numpy.linalg.pinv(a))


# ---------------------------------------------------------------------------------------- pseudo-inverses
SOUND = settings(max_examples=50, suppress_health_check=list(HealthCheck))
ALL = st.one_of(strategies.matrices(dtype=strategies.dtypes(kind="real")), strategies.exactly_deficient(), strategies.graded())


@pytest.mark.parametrize("pinv", [numpy_pinv, scipy.linalg.pinv, torch_pinv, softlinalg.pinv])
def test_sound_pseudo_inverses_pass_with_room_to_spare(pinv):
    @SOUND
    @given(case=st.one_of(ALL, strategies.matrices(dtype=strategies.dtypes(kind="complex"))))
    @strategies.ladder(dtype="float32")
    @strategies.ladder(dtype="float64")
    def check(case):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.SoftlinalgWarning)  # beyond the certificate, not beyond accuracy
            assertions.assert_pinv(pinv, case, threshold=HALF)

    check()


def test_jax_passes_too():
    @settings(max_examples=15)  # each shape is compiled
    @given(case=strategies.matrices(shape=(4, 3)))
    def check(case):
        assertions.assert_pinv(jax_pinv, case, threshold=HALF)

    check()


def test_numpy_by_default_fails_every_rank_deficient_float32():
    outcomes = []

    @settings(max_examples=100)
    @given(case=strategies.matrices(rank="deficient", dtype="float32", max_side=6))
    def collect(case):
        try:
            assertions.assert_pinv(np.linalg.pinv, case)
            outcomes.append((True, case))
        except AccuracyError:
            outcomes.append((False, case))

    collect()
    # A product of one column and one row can be of rank one exactly, after rounding too: nothing is left to be inverted.
    passed = [
        case for ok, case in outcomes if ok and np.linalg.svd(case.host.astype(float), compute_uv=False)[case.rank] > 1e-14 * case.s[0]
    ]
    assert not passed
    assert sum(not ok for ok, _ in outcomes) > 0.9 * len(outcomes)


def test_the_published_iteration_fails_many():
    def published(a):
        v = 1.8 * a.T / (np.abs(a).sum(0).max() * np.abs(a).sum(1).max() + 1e-300)
        for _ in range(20):
            v = 2 * v - v @ a @ v
        return v

    outcomes = []

    @settings(max_examples=150)
    @given(case=strategies.matrices(dtype="float64", rank="full", log2_scale=0, max_side=6))
    def collect(case):
        try:
            assertions.assert_pinv(published, case, grade="N")
            outcomes.append(True)
        except AccuracyError:
            outcomes.append(False)

    collect()
    assert 0.15 < np.mean(np.logical_not(outcomes)) < 0.7, "27 % of full-rank cases were seen to fail"


def test_class_n_is_what_iterations_meet():
    for cond in (1.0, 10.0, 1e3):
        case = build_matrix(shape=(6, 6), cond=cond, seed=2)
        assertions.assert_pinv(lambda a: softlinalg.pinv(a, method="newton"), case, grade="N")


def test_a_failure_says_all_that_helps():
    with pytest.raises(AccuracyError) as caught:
        assertions.assert_pinv(np.linalg.pinv, DEFICIENT)
    error, text = caught.value, str(caught.value)
    assert error.property == "X = A^+"
    assert error.ratio > 1e6
    assert error.threshold == 30
    assert error.case is DEFICIENT
    assert isinstance(error, AssertionError)
    lines = text.splitlines()
    assert re.fullmatch(r"pinv pinv: 'X = A\^\+' has ratio [\d.]+e\+\d+, above the threshold 30\.", lines[0])
    assert lines[1] == "  Meaning: X is farther from the true pseudo-inverse than rounding of A explains."
    assert re.fullmatch(r"  Worst entry: of X \[\d, \d\]: got \S+, expected \S+\.", lines[2])
    assert lines[3] == "  Unit: u D kappa |.|, with u = 1.19e-07, D = 6, kappa = 400."
    assert lines[4].startswith("  All ratios: AXA = A ")
    assert lines[5] == "  Case: 6x4 rank 2, geometric spectrum, condition 4e2, float32."
    assert lines[6] == "  Repeat: softlinalg.testing.build_matrix(shape=(6, 4), rank=2, cond=400, dtype='float32', seed=17)"
    again = eval(lines[6].removeprefix("  Repeat: "), {"softlinalg": softlinalg})
    np.testing.assert_array_equal(again.A, DEFICIENT.A)
    index = [int(i) for i in re.search(r"\[(\d), (\d)\]", lines[2]).groups()]
    got = float(re.search(r"got (\S+),", lines[2]).group(1))
    assert np.linalg.pinv(DEFICIENT.A)[tuple(index)] == pytest.approx(got, rel=1e-5)


@pytest.mark.parametrize(
    ("case", "mistake", "law", "words"),
    [
        (SQUARE, lambda a: 1.001 * np.linalg.inv(a), "ratio", ["Meaning: ", "Worst entry: of ", "got"]),
        (SQUARE, lambda a: np.linalg.inv(a).T, "ratio", ["Unit: u D kappa"]),
        (DEFICIENT, lambda a: np.linalg.pinv(a, rtol=0.1), "ratio", ["farther from the true|not invert A"]),
        (SQUARE, lambda a: np.linalg.inv(a)[:-1], "ratio inf", [r"result has shape \(4, 5\), expected \(5, 5\)"]),
        (SQUARE, lambda a: np.full((5, 5), np.nan), "ratio inf", ["Repeat"]),
        (SQUARE, lambda a: None, "ratio inf", [r"result has shape \(\), expected \(5, 5\)"]),
        (SQUARE, lambda a: np.linalg.inv(a).astype(np.float32), "ratio", ["Unit: u D kappa", "u = 2.22e-16"]),
        (SQUARE, lambda a: np.linalg.inv(a[None]), "ratio inf", [r"shape \(1, 5, 5\)"]),
        (build_matrix(shape=(4, 2), batch=(3,), seed=1), lambda a: np.stack([np.linalg.pinv(a[0])] * 3), "ratio", ["Worst entry: of A?X?A? ?\\[[12], "]),
        (gallery.get("hilbert", n=6).case(), lambda a: np.linalg.inv(a.T @ a) @ a.T, "ratio", ["gallery.get\\('hilbert', n=6\\)"]),
    ],
)  # fmt: skip
def test_planted_mistakes_in_a_pseudo_inverse_are_found(case, mistake, law, words):
    with fails(law, *words):
        assertions.assert_pinv(mistake, case)


def test_an_exception_names_the_case():
    def refuses(a):
        message = "SVD did not converge"
        raise np.linalg.LinAlgError(message)

    with fails("the function raised LinAlgError: SVD did not converge", "Repeat: softlinalg") as caught:
        assertions.assert_pinv(refuses, SQUARE)
    assert isinstance(caught.value.__cause__, np.linalg.LinAlgError)
    assert caught.value.ratio == math.inf


def test_arrays_and_results_are_taken_in_place_of_cases_and_functions(backend):
    a = backend.asarray(SQUARE.host)
    assertions.assert_pinv(backend.asarray(np.linalg.inv(SQUARE.host)), a)
    with fails("ratio", "5x5 matrix of your own"):
        assertions.assert_pinv(backend.asarray(1.1 * np.linalg.inv(SQUARE.host)), a)


def test_without_comparing_only_penrose_counts():
    case = gallery.get("hilbert", n=10).case(dtype="float32")
    assert not case.gap
    assertions.assert_pinv(numpy_pinv, case, compare=False)


# ---------------------------------------------------------------------------------------------- inverses
@settings(max_examples=40)
@given(
    case=strategies.matrices(structure="psd", log2_scale=0, max_side=6, cond=st.sampled_from([1.0, 30.0])),
    ridge=st.sampled_from([0.01, 1.0]),
)
@example(case=build_matrix(shape=(30, 30), structure="psd", seed=1), ridge=0.01)
def test_ridge_inverses_pass(case, ridge):
    assertions.assert_ridge_inverse(lambda a: softlinalg.ridge_inverse(a, ridge), case, ridge, threshold=HALF)
    plain = lambda a: np.linalg.inv(a + np.asarray(ridge, a.dtype) * np.eye(len(a), dtype=a.dtype))  # noqa: E731
    assertions.assert_ridge_inverse(plain, case, ridge, threshold=HALF)


def test_mistakes_in_a_ridge_inverse_are_found():
    with fails("ridge inverse", "ratio", "Worst entry: ", r"kappa\(B\) = 1", "Repeat"):
        assertions.assert_ridge_inverse(
            lambda a: softlinalg.ridge_inverse(a, 0.0101), build_matrix(shape=(5, 5), rank=4, structure="psd", cond=10.0), 0.1
        )
    with fails("ratio inf", "shape \\(5,\\)"):
        assertions.assert_ridge_inverse(lambda a: a[0], PSD, 0.1)


def test_inverses():
    assertions.assert_inverse(np.linalg.inv, SQUARE)
    assertions.assert_inverse(np.linalg.inv, build_matrix(shape=(4, 4), dtype="complex64", batch=(2,), seed=1))
    with fails("inverse", "B X is not the identity|X B is not the identity|farther"):
        assertions.assert_inverse(lambda a: np.linalg.inv(a) + 1e-9, SQUARE)


# ----------------------------------------------------------------------------------- kernels, approximations
@settings(max_examples=60)
@given(points=strategies.point_clouds(), e=st.integers(-3, 3))
def test_our_kernel_passes(points, e):
    assertions.assert_kernel_matrix(
        lambda x: softlinalg.gaussian_kernel(x, length_scale=2.0**e), points, length_scale=2.0**e, threshold=HALF
    )


def expanded(x, y=None):
    """|x|^2 + |y|^2 - 2 x.y without centering and without a clamp."""
    y = x if y is None else y
    return np.exp(-((x * x).sum(-1)[:, None] + (y * y).sum(-1) - 2 * x @ y.T) / 2)


@pytest.mark.parametrize(
    ("kernel", "kind", "words"),
    [
        (expanded, "offset", "ratio"),
        (lambda x: softlinalg.gaussian_kernel(x, length_scale=1.01), "normal", "'values'.*Worst entry: \\["),
        (lambda x: softlinalg.gaussian_kernel(x) + 1e-9 * np.triu(np.ones((20, 20)), 1), "normal", "'symmetric'|'values'"),
        (lambda x: softlinalg.gaussian_kernel(x) + 1e-6 * np.eye(20), "normal", "'diagonal'.*exactly one"),
        (lambda x: softlinalg.gaussian_kernel(x).astype(np.float16), "duplicated", "ratio|psd"),
        (lambda x: softlinalg.gaussian_kernel(x)[:5], "normal", "ratio inf"),
    ],
)
def test_mistakes_in_a_kernel_are_found(kernel, kind, words):
    points = build_points(shape=(20, 3), kind=kind, seed=3)
    if kind == "duplicated":  # half precision has its own unit; judged as such it is right
        assertions.assert_kernel_matrix(kernel, points)
        return
    with pytest.raises(AccuracyError, match=f"(?s){words}.*Repeat: softlinalg.testing.build_points"):
        assertions.assert_kernel_matrix(kernel, points)


def test_kernels_between_two_sets_and_other_kernels(backend):
    x, y = (backend.asarray(build_points(shape=(n, 2), seed=n).host) for n in (5, 7))
    assertions.assert_kernel_matrix(softlinalg.gaussian_kernel, x, y)
    if backend.name == "jax":
        return  # every new shape and kernel is compiled, and what is left is done on the host
    assertions.assert_kernel_matrix(softlinalg.Matern(1.0, nu=0.5), x, length_scale=None)
    with fails("'values'"):
        assertions.assert_kernel_matrix(softlinalg.Matern(1.0, nu=0.5), x)


def test_psd():
    assertions.assert_psd(PSD.A)
    with fails("'psd'", "smallest eigenvalue is negative"):
        assertions.assert_psd(PSD.A - 1e-6 * np.eye(5))
    with fails("'Hermitian'", r"Worst entry: \[\d, \d\]"):
        assertions.assert_psd(PSD.A + 1e-6 * np.triu(np.ones((5, 5)), 1))


def truncated(a, rank=2):
    u, s, vh = np.linalg.svd(a)
    return u[:, :rank] * s[:rank], vh[:rank]


def test_low_rank_approximations():
    case = build_matrix(shape=(8, 6), cond=1e3, seed=1)
    for norm in ("2", "fro", "nuclear"):
        assertions.assert_low_rank_error(truncated, case, rank=2, norm=norm)
    with fails("'error'", "worse than the best", "Rank 2, fro norm, allowed 1 times the best"):
        assertions.assert_low_rank_error(lambda a: truncated(a, 1), case, rank=2)
    with fails("'rank'", "larger than promised"):
        assertions.assert_low_rank_error(lambda a: truncated(a, 3), case, rank=2)
    assertions.assert_low_rank_error(lambda a: truncated(a, 1), case, rank=2, factor=10.0)
    with fails("'A_hat <= A'"):
        assertions.assert_low_rank_error(lambda a: a * 1.01, PSD, rank=5, psd=True, factor=1e9)


@settings(max_examples=25)
@given(points=strategies.point_clouds(shape=st.tuples(st.integers(4, 12), st.integers(1, 3))), data=st.data())
def test_our_nystrom_passes(points, data):
    rows = data.draw(strategies.landmark_sets(points.shape[0]))

    def approximate(x, landmarks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.DuplicateLandmarkWarning)
            return softlinalg.nystrom(x, softlinalg.Gaussian(1.0), landmarks=landmarks)

    cut = {"float32": 1e-4, "float64": 1e-8}[points.dtype]  # `rtol` of nystrom can be as large as ten thousand times its default
    assertions.assert_nystrom(approximate, points, rows, cut=cut)


def test_mistakes_in_a_nystrom_approximation_are_found():
    rows = range(0, 20, 3)

    def nystrom(x, landmarks, inverse=np.linalg.inv):
        c, w = (softlinalg.gaussian_kernel(z, landmarks) for z in (x, landmarks))
        return c @ inverse(w) @ c.T

    assertions.assert_nystrom(nystrom, POINTS, rows)
    assertions.assert_nystrom(nystrom, POINTS.host, POINTS.host[::3], grade="N")
    with fails("'K_hat <= K'", "explains more than there is"):
        assertions.assert_nystrom(lambda *z: 1.001 * nystrom(*z), POINTS, rows)
    with fails("'trace'", "less is explained"):
        assertions.assert_nystrom(lambda *z: nystrom(*z, inverse=lambda w: np.linalg.inv(w + 0.01 * np.eye(len(w)))), POINTS, rows)
    with fails("'rank'"):
        assertions.assert_nystrom(lambda x, landmarks: softlinalg.gaussian_kernel(x), POINTS, rows)
    few_steps = lambda w: softlinalg.newton_pinv(w, steps=6).value  # noqa: E731
    with fails("'trace'", "has not converged"):
        assertions.assert_nystrom(lambda *z: nystrom(*z, inverse=few_steps), POINTS, rows)


# ------------------------------------------------------------------------------------------------ attention
@settings(max_examples=40)
@given(case=strategies.attention_inputs())
def test_our_attention_passes(case):
    assertions.assert_attention_matches(softlinalg.soft_attention, case, kind="soft", threshold=HALF)


@pytest.mark.parametrize("keys", [None, 7])
@pytest.mark.parametrize("hidden", [0, 2])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_other_attentions(keys, hidden, dtype):
    case = build_attention(tokens=6, features=4, landmarks=3, keys=keys, hidden=hidden, heads=(2,), dtype=dtype, xp="torch")

    def softmax(q, k, v, key_padding_mask=None):
        mask = None if key_padding_mask is None else ~key_padding_mask[..., None, :]
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def gaussian(q, k, v, key_padding_mask=None):
        v = v if key_padding_mask is None else v.masked_fill(key_padding_mask[..., None], 0)
        return torch.exp(-((q[..., :, None, :] - k[..., None, :, :]) ** 2).sum(-1) / 4) @ v

    assertions.assert_attention_matches(softmax, case, kind="softmax", threshold=HALF)
    assertions.assert_attention_matches(gaussian, case, kind="gaussian", threshold=HALF)
    with fails("'output'", "plain computation", r"Worst entry: \[\d, \d, \d\]", "build_attention"):
        assertions.assert_attention_matches(softmax, case, kind="gaussian")
    if hidden:
        with fails("'output'"):
            assertions.assert_attention_matches(lambda q, k, v, key_padding_mask: softmax(q, k, v), case, kind="softmax")
    with pytest.raises(errors.ParameterError, match="kind must be"):
        assertions.assert_attention_matches(softmax, case, kind="linear")


def test_an_unconverged_inverse_in_attention_is_found():
    case = build_attention(tokens=12, features=2, landmarks=8, dtype="float64")
    with fails("'output'"):
        assertions.assert_attention_matches(lambda *z, **k: softlinalg.soft_attention(*z, inverse="published", **k), case, kind="soft")


# ----------------------------------------------------------------------------------------------- hypothesis
def test_ratios_are_targets_inside_a_test_of_hypothesis(monkeypatch):
    import hypothesis

    seen = []
    monkeypatch.setattr(hypothesis, "target", lambda value, label: seen.append((label, value)))
    assertions.assert_pinv(numpy_pinv, SQUARE)
    assert not seen, "outside there is nothing to tell"

    @settings(max_examples=3)
    @given(case=strategies.matrices(dtype="float64"))
    def check(case):
        assertions.assert_pinv(numpy_pinv, case)

    check()
    assert {"AXA = A", "X = A^+"} <= {label for label, _ in seen}
    assert all(-30 <= value <= 30 for _, value in seen)


def test_two_assertions_in_one_test_are_allowed():
    @settings(max_examples=3)
    @given(case=strategies.matrices(dtype="float64"))
    def check(case):
        assertions.assert_pinv(numpy_pinv, case)
        assertions.assert_pinv(scipy.linalg.pinv, case)

    check()


def test_hypothesis_shrinks_a_failure_to_a_readable_case():
    @settings(max_examples=100, database=None)
    @given(case=strategies.matrices(rank="deficient", dtype="float32"))
    def check(case):
        assertions.assert_pinv(np.linalg.pinv, case)

    with pytest.raises(AccuracyError) as caught:
        check()
    shown = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", [])])
    assert re.search(r"case=softlinalg\.testing\.build_matrix\(shape=\(\d, \d\), rank=1, cond=1, dtype='float32'", shown)


def test_every_law_has_a_meaning():
    laws = {
        *ratios.penrose(SQUARE.A, SQUARE.A, SQUARE),
        *ratios.forward(SQUARE.A, SQUARE.A, SQUARE),
        *ratios.kernel(PSD.A, POINTS.x[:5]),
        *ratios.psd(PSD.A),
        *ratios.nystrom(PSD.A, PSD.A, rank=5),
        *ratios.low_rank(PSD.A, PSD.A, rank=5, psd=True),
    }
    assert laws <= set(_failures.MEANINGS)
