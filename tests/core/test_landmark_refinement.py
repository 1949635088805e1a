"""Refined landmarks: the gradient of the trace error, and never worse than their start."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from landmark_cases import Wrapped, cloud, relative_trace_error, seeds, shapes

from softlinalg._kernels import Gaussian, Laplacian, Matern
from softlinalg._landmark_refinement import trace_error_and_gradient
from softlinalg._landmark_sampling import Rows
from softlinalg._landmarks import refine_landmarks, select_landmarks
from softlinalg.errors import NumericalError


# --------------------------------------------------------------------------------------------- refinement
def gradient_case(seed: int, n: int = 12, m: int = 4, d: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x[:m] + 0.3 * rng.normal(size=(m, d))


def error_at(x: np.ndarray, landmarks: np.ndarray, kernel: Any) -> float:
    return trace_error_and_gradient(Rows(x, xp=np), landmarks, kernel, float(np.sum(kernel.diagonal(x))), func="test").error


@given(seeds, st.sampled_from([Gaussian(1.0), Gaussian((0.7, 2.0)), Matern(1.0, nu=1.5), Matern(1.0, nu=2.5), Laplacian(1.5)]))
@settings(max_examples=30)
def test_the_gradient_matches_finite_differences(seed, kernel):
    x, landmarks = gradient_case(seed)
    error, gradient = trace_error_and_gradient(Rows(x, xp=np), landmarks, kernel, float(len(x)), func="test")
    assert error / len(x) == pytest.approx(relative_trace_error(kernel, x, landmarks), abs=1e-7)
    step = 1e-5
    direction = np.random.default_rng(seed + 1).normal(size=landmarks.shape)
    direction /= np.linalg.norm(direction)
    if isinstance(kernel, Laplacian):  # kinks: a step must not cross one
        gaps = np.abs(np.concatenate([x, landmarks])[:, None] - landmarks[None])
        if np.min(gaps[gaps > 0]) < 4 * step:
            return
    difference = (error_at(x, landmarks + step * direction, kernel) - error_at(x, landmarks - step * direction, kernel)) / (2 * step)
    # Truncation step^2 times third derivatives (conditioned by W: up to 1e3 or so), rounding eps n cond(W) / step.
    condition = np.linalg.cond(kernel(landmarks, landmarks))
    assert difference == pytest.approx(np.sum(gradient * direction), abs=1e-8 * (1 + condition))


def test_the_gradient_matches_torch():
    torch = pytest.importorskip("torch")
    x, landmarks = gradient_case(3, n=20, m=6, d=3)
    length_scale = 1.3
    points = torch.tensor(landmarks, requires_grad=True)

    def kernel(a: Any, b: Any) -> Any:
        return torch.exp(-torch.sum((a[:, None] - b[None]) ** 2, dim=-1) / (2 * length_scale**2))

    core = kernel(points, points)
    cross = kernel(torch.tensor(x), points)
    shift = _shift() * torch.eye(6, dtype=torch.float64)
    error = len(x) - torch.trace(torch.linalg.solve(core + shift, cross.T @ cross))
    error.backward()
    ours = trace_error_and_gradient(Rows(x, xp=np), landmarks, Gaussian(length_scale), float(len(x)), func="test")
    assert ours.error == pytest.approx(error.item(), rel=1e-9)
    np.testing.assert_allclose(ours.gradient, points.grad.numpy(), rtol=0, atol=1e-8 * np.abs(ours.gradient).max())


def _shift() -> float:
    from softlinalg._landmark_refinement import SHIFT

    return SHIFT


@given(shapes, st.integers(1, 6), st.floats(0.3, 3), seeds, st.sampled_from(["float32", "float64"]))
@settings(max_examples=40)
@example(("duplicated", 30, 2, 0), 6, 1.0, 0, "float64")
def test_refinement_is_never_worse_than_its_start(shape, count, length_scale, seed, dtype):
    x = cloud(*shape).astype(dtype)
    kernel = Gaussian(length_scale)
    start = x[np.random.default_rng(seed).integers(0, len(x), size=count)]  # with repeats
    refined = refine_landmarks(x, start, kernel, max_steps=8)
    assert refined.dtype == x.dtype
    assert refined.shape == start.shape
    errors = [relative_trace_error(kernel, x.astype("float64"), points.astype("float64")) for points in (refined, start)]
    # The objective carries a shift of 1e-10: errors may differ from the exact ones by that times a condition number.
    assert errors[0] <= errors[1] + 1e-6


def test_refinement_lowers_the_error_by_much_and_keeps_its_inputs():
    x = cloud("clustered", 500, 3, 0)
    kernel = Gaussian(0.3)
    start = select_landmarks(x, 15, method="uniform", rng=0)
    copies = x.tobytes(), start.tobytes()
    refined = refine_landmarks(x, start, kernel)
    assert (x.tobytes(), start.tobytes()) == copies
    assert relative_trace_error(kernel, x, refined) < 0.8 * relative_trace_error(kernel, x, start)
    few = refine_landmarks(x, start, kernel, max_steps=2)
    assert relative_trace_error(kernel, x, refined) < relative_trace_error(kernel, x, few) < relative_trace_error(kernel, x, start)


def test_refinement_takes_no_more_steps_than_allowed():
    passes: list[int] = []

    class Counting(Wrapped):
        def vjp(self, x: Any, y: Any, g: Any) -> Any:
            passes.append(x is y)
            return super().vjp(x, y, g)

    x = cloud("normal", 100, 2, 0)
    refine_landmarks(x, x[:5], Counting(Gaussian(1.0)), max_steps=1)
    assert 2 <= sum(passes) <= 4  # the start, the first step, and what its line search tried in between
    refine_landmarks(x, x[:5], Counting(Gaussian(1.0)), max_steps=30)
    assert sum(passes) > 20


def test_refinement_on_a_sample_is_judged_on_all_rows():
    x = cloud("normal", 600, 2, 0)
    kernel = Gaussian(0.7)
    start = select_landmarks(x, 20, rng=0, kernel=kernel)
    refined = refine_landmarks(x, start, kernel, sample=200, rng=0)
    assert relative_trace_error(kernel, x, refined) < relative_trace_error(kernel, x, start)
    # Five rows say nothing about the other 595: landmarks fitted to them are worse, and refused.
    np.testing.assert_array_equal(refine_landmarks(x, start, kernel, sample=5, rng=0), start)
    np.testing.assert_array_equal(
        refine_landmarks(x, start, kernel, max_steps=3, sample=10**6), refine_landmarks(x, start, kernel, max_steps=3)
    )


@pytest.mark.parametrize("wrap", [lambda kernel: kernel, Wrapped], ids=["host", "native"])
def test_refinement_on_every_library(backend, wrap):
    x, start = cloud("normal", 40, 2, 0), cloud("normal", 5, 2, 1)  # shapes that JAX compiles for test_landmarks.py too
    expected = refine_landmarks(x, start, wrap(Gaussian(1.0)), max_steps=3)
    given = backend.asarray(x)
    result = refine_landmarks(given, backend.asarray(start), wrap(Gaussian(1.0)), max_steps=3)
    assert type(result) is type(given)
    np.testing.assert_allclose(backend.to_numpy(result), expected, rtol=0, atol=1e-9)


def test_refinement_at_extreme_scales_and_of_a_perfect_start():
    x = cloud("normal", 50, 2, 0)
    start = x[:5].copy()
    expected = refine_landmarks(x, start, Gaussian(1.0), max_steps=5)
    for scale in (2.0**-1000, 2.0**900):
        scaled = refine_landmarks(x * scale, start * scale, Gaussian(scale), max_steps=5)
        np.testing.assert_allclose(scaled / scale, expected, rtol=1e-6)
    np.testing.assert_allclose(refine_landmarks(x, x, Gaussian(1.0), max_steps=2), x, atol=0.1)
    equal = refine_landmarks(x, np.zeros((3, 2)), Gaussian(1.0), max_steps=5)
    assert np.all(np.isfinite(equal))


def test_a_kernel_that_is_not_positive_semidefinite_is_reported():
    class Negative:
        def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
            return np.eye(len(x)) - 1.0 if y is x else np.zeros((len(x), len(y)))

        def diagonal(self, x: np.ndarray) -> np.ndarray:
            return np.ones(len(x))

        def vjp(self, x: Any, y: Any, g: Any) -> Any:
            return np.zeros_like(x), np.zeros_like(y)

    with pytest.raises(NumericalError, match=r"refine_landmarks: k\(landmarks, landmarks\) must be positive semi-definite"):
        refine_landmarks(np.ones((4, 2)), np.ones((3, 2)), Negative())
