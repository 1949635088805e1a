"""What the testing kit says to bad results and bad settings: a judgement or a documented error, whatever comes."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from softlinalg.testing import AccuracyError, assertions, build_attention, build_graded, build_matrix, build_points, ratios

BAD_RESULTS = {
    "nothing": None,
    "text": np.array([["a", "b"], ["c", "d"]]),
    "a ragged list": [[1.0, 2.0], [3.0]],
    "objects": np.array([[object()] * 2] * 2),
    "huge numbers": np.array([[-1e308, 1e308], [1e308, 1e308]]),
    "an imaginary part": np.eye(2) + 1e-3j,
    "a dictionary": {"x": 1},
}


@pytest.mark.parametrize("result", BAD_RESULTS.values(), ids=BAD_RESULTS.keys())
def test_whatever_a_function_returns_is_judged_and_not_stumbled_over(result):
    """The answer is an AccuracyError: no error of a library, no warning, and no imaginary part that is dropped."""
    matrix, cloud = build_matrix(shape=(2, 2), structure="psd", seed=0), build_points(shape=(2, 1), seed=0)
    tokens = build_attention(tokens=2, features=2, landmarks=1, dtype="float64")
    warnings.simplefilter("error")  # pytest restores the filters
    for judge in (
        lambda: assertions.assert_pinv(lambda a: result, matrix),
        lambda: assertions.assert_inverse(lambda a: result, matrix),
        lambda: assertions.assert_kernel_matrix(lambda x: result, cloud),
        lambda: assertions.assert_nystrom(lambda x, landmarks: result, cloud, cloud.x[:1]),
        lambda: assertions.assert_attention_matches(lambda *a: result, tokens),
        lambda: assertions.assert_psd(result if result is not None else np.full((2, 2), -1.0)),
    ):
        with pytest.raises(AccuracyError):
            judge()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: build_points(shape=3), "build_points: shape must be 2 whole numbers; got 3. Pass a tuple of ints."),
        (lambda: build_points(shape=(3, 1.5)), "build_points: each entry of shape must be a whole number from 0 to"),
        (lambda: build_points(shape=(3, 2), kind=[]), "build_points: kind must be one of normal, .*; got list."),
        (lambda: build_points(shape=(3, 2), dtype="complex64"), "build_points: dtype must be one of float16, .*; got 'complex64'."),
        (lambda: build_matrix(shape=(3, 2), cond=0.5), "build_matrix: cond must be a finite number >= 1; got 0.5."),
        (lambda: build_matrix(shape=(3, 2), mode=None), "build_matrix: mode must be one of .*; got None. Pass 3"),
        (lambda: build_matrix(shape=(3, 2), seed=-1), "build_matrix: seed must be a whole number from 0 to .*; got -1."),
        (lambda: build_matrix(shape=(3, 2), xp=3), "build_matrix: xp must be one of numpy, .* or a namespace; got 3."),
        (lambda: build_graded(shape=(3, 2), sides="none"), "build_graded: sides must be one of both, rows, columns; got 'none'."),
        (lambda: build_attention(tokens=0, features=2, landmarks=1), "build_attention: tokens must be a whole number from 1 to"),
    ],
)
def test_builders_say_which_setting_is_wrong(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_result_near_zero_is_far_from_an_inverse() -> None:
    """Units of its own size would be zero."""
    found = ratios.penrose(np.eye(2), np.full((2, 2), 5e-324))
    assert found["XAX = X"] == float("inf")
