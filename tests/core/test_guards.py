"""Guards that most inputs never need, each with an input that does (found by breaking them on purpose, see CONTRIBUTING)."""

from __future__ import annotations

import warnings
from typing import Any

import array_api_strict
import numpy as np
import pytest

import softlinalg
from softlinalg import _landmark_sampling, _native
from softlinalg._kernels import kernel_matmul


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("features", [3, 30])
@pytest.mark.parametrize("compiled", [True, False])
def test_no_kernel_value_exceeds_one_between_two_copies_of_the_points(
    dtype: str, features: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(_native, "load", lambda: None)
    x = np.random.default_rng(0).normal(size=(200, features)).astype(dtype)
    for scale in (1e-2, 1e-1 * features**0.5, 1.0):
        kernel = softlinalg.Gaussian(scale)
        assert kernel(x, x.copy()).max() <= 1
        assert kernel_matmul(kernel, x, x.copy(), np.eye(len(x), dtype=dtype)).max() <= 1


@pytest.mark.parametrize("method", ["newton", "chebyshev"])
@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_iterations_empty_the_null_space_without_a_fallback(method: Any, condition: float) -> None:
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(40, 40)))[0] for _ in range(2))
    values = np.geomspace(1, 1 / condition, 20)
    result = softlinalg.certified_pinv((left[:, :20] * values) @ right[:, :20].T, method=method, on_failure="raise")
    assert int(result.method) == softlinalg.InverseMethod[method]
    # Rounding grows to about eps * condition^2 / rtol^2 in the null space (rtol = 40 sqrt(eps)), and X A X squares what is left of it.
    assert np.linalg.norm(result.value @ left[:, 20:], 2) <= 1e-8 * condition


@pytest.mark.parametrize(("hard_ridge", "tol"), [(1e-4, 1e-4), (1e-4, 1e-6), (3e-5, 1e-3)])
def test_corrections_leave_members_alone_that_were_certified_at_once(hard_ridge: float, tol: float) -> None:
    rng = np.random.default_rng(0)
    easy = softlinalg.gaussian_kernel(rng.normal(size=(49, 8)), length_scale=1.7)
    hard = softlinalg.gaussian_kernel(rng.normal(size=(49, 2)), length_scale=2.0)
    batch, ridge = np.stack([easy, hard]).astype(np.float32), np.array([0.01, hard_ridge])
    together = softlinalg.certified_ridge_inverse(batch, ridge, method="chebyshev", tol=tol)
    alone = softlinalg.certified_ridge_inverse(batch[:1], ridge[:1], method="chebyshev", tol=tol)
    assert together.steps[1] > together.steps[0] == alone.steps[0]
    np.testing.assert_array_equal(together.value[0], alone.value[0])


def test_a_ridge_near_the_end_of_the_range_is_no_overflow_on_other_libraries() -> None:
    a = array_api_strict.asarray(np.eye(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = softlinalg.ridge_inverse(a, 1e300)
    np.testing.assert_allclose(np.asarray(found), 1e-300 * np.eye(3))


def test_a_leverage_sample_stands_for_as_many_rows_as_it_was_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """The squared weights are 1 / probability, so that over many draws they add up to the number of rows."""
    x = np.random.default_rng(0).normal(size=(640, 3))
    seen: list[tuple[int, float]] = []
    true_scores = _landmark_sampling._leverage_scores

    def spy(kernel: Any, rows: Any, level: Any, chosen: Any, weights: Any, *, func: str) -> Any:
        seen.append((len(level), float(np.sum(weights**2))))
        return true_scores(kernel, rows, level, chosen, weights, func=func)

    monkeypatch.setattr(_landmark_sampling, "_leverage_scores", spy)
    for seed in range(20):
        softlinalg.select_landmarks(x, 40, method="leverage", kernel=softlinalg.Gaussian(1.0), rng=seed)
    for size in (320, 640):  # each level is estimated from a sample of the level of half its size
        represented = np.mean([total for level, total in seen if level == size])
        # Draws without replacement from unequal probabilities are only nearly those probabilities: a third of slack.
        assert size / 2 / 1.33 < represented < size / 2 * 1.33
