"""The published iteration as such: its filter, its residuals, and the exact derivative of its steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import softlinalg
from softlinalg import errors
from softlinalg._iterations import newton_raphson_filter


def psd(m: int, rng: np.random.Generator, rank: int | None = None) -> np.ndarray:
    g = rng.standard_normal((m, rank or m))
    return g @ g.T / m


@settings(max_examples=40)
@given(m=st.integers(1, 10), steps=st.integers(0, 25), ridge=st.sampled_from([0.0, 0.01]), seed=st.integers(0, 2**32 - 1))
def test_value_is_the_filter_of_the_matrix(m, steps, ridge, seed):
    a = psd(m, np.random.default_rng(seed)) + 0.05 * np.eye(m)
    result = softlinalg.newton_pinv(a, steps=steps, ridge=ridge)
    w, v = np.linalg.eigh(a + ridge * np.eye(m))
    expected = (v * newton_raphson_filter(w, steps=steps, alpha=float(result.alpha))) @ v.T
    np.testing.assert_allclose(result.value, expected, rtol=0, atol=1e-10 * max(1, np.abs(expected).max()))


def test_published_settings_reproduce_the_formula(backend):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 9, 3))
    w = np.exp(-((x[:, :, None] - x[:, None]) ** 2).sum(-1) / 2)
    result = softlinalg.newton_pinv(backend.asarray(w), ridge=0.01)
    p = w + 0.01 * np.eye(9)
    alpha = 0.9 * 2 / w.sum(-1).max(-1) ** 2
    v = alpha[:, None, None] * p
    for _ in range(20):
        v = 2 * v - v @ p @ v
    np.testing.assert_allclose(backend.to_numpy(result.value), v, rtol=0, atol=1e-11 * np.abs(v).max())
    np.testing.assert_allclose(backend.to_numpy(result.alpha), alpha, rtol=1e-14)
    np.testing.assert_allclose(
        backend.to_numpy(result.residual), np.linalg.norm(np.eye(9) - p @ v, axis=(-2, -1)) / 3, rtol=1e-6, atol=1e-12
    )


@pytest.mark.parametrize(
    ("a", "ridge"),
    [
        (np.ones((4, 4)), 1.0),  # the ridge on top of a row sum that is the largest eigenvalue
        (np.full((3, 3), 1e-4), 0.01),  # nothing but the ridge
        (np.asarray([[1.0, 0.0], [1.0, 0.0]]), 0.0),  # not symmetric: the row sum is less than the norm
    ],
)
def test_the_default_start_converges_where_the_published_one_does_not(a, ridge):
    result = softlinalg.newton_pinv(a, steps=40, ridge=ridge)
    np.testing.assert_allclose(result.value, np.linalg.pinv(a + ridge * np.eye(len(a))), rtol=0, atol=1e-10 * np.abs(result.value).max())


def test_the_published_measure_hides_what_the_other_residuals_show():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((49, 2)) * 0.7
    w = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 2)
    result = softlinalg.newton_pinv(w, ridge=1e-4)
    exact = np.linalg.inv(w + 1e-4 * np.eye(49))
    wrong = np.linalg.norm(result.value - exact) / np.linalg.norm(exact)
    assert result.inner_residual < 1e-2
    assert wrong > 0.5
    assert result.outer_residual > 0.05
    assert result.residual > 0.3


@pytest.mark.parametrize("shape", [(4, 4), (6, 3), (2, 5)])
def test_enough_steps_give_the_pseudo_inverse(shape):
    a = np.random.default_rng(3).standard_normal(shape)
    result = softlinalg.newton_pinv(a, steps=40)
    np.testing.assert_allclose(result.value, np.linalg.pinv(a), rtol=0, atol=1e-9)
    assert result.residual < 1e-9


@settings(max_examples=40)
@given(
    m=st.integers(1, 5),
    n=st.integers(1, 5),
    steps=st.integers(0, 12),
    complex_=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_vjp_is_the_adjoint_of_the_jvp_of_any_matrix(m, n, steps, complex_, seed):
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) + (1j * rng.standard_normal(shape) if complex_ else 0)

    a, da, g = draw(m, n), draw(m, n), draw(n, m)
    alpha = 1.0 / np.linalg.norm(a, 2) ** 2
    slope = softlinalg.newton_pinv_jvp(a, da, steps=steps, alpha=alpha)
    left = np.vdot(g, slope).real
    right = np.vdot(softlinalg.newton_pinv_vjp(a, g, steps=steps, alpha=alpha), da).real
    assert left == pytest.approx(right, rel=1e-9, abs=1e-9 * np.linalg.norm(slope) * np.linalg.norm(g))


@pytest.mark.parametrize("steps", [0, 1, 5, 8, 20])
@pytest.mark.parametrize("shape", [(5, 5), (4, 3)])
def test_exact_gradient_equals_autodiff_through_the_steps(steps, shape):
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    rng = np.random.default_rng(4)
    a = psd(5, rng, 4) if shape[0] == shape[1] else rng.standard_normal(shape)
    g = rng.standard_normal(shape[::-1])
    alpha = 1.5 / np.linalg.norm(a, 2) ** 2
    expected = softlinalg.newton_pinv_vjp(a, g, steps=steps, alpha=alpha)

    def loop(p, transpose):
        v = alpha * transpose(p)
        for _ in range(steps):
            v = 2 * v - v @ p @ v
        return v

    leaf = torch.tensor(a, requires_grad=True)
    (loop(leaf, lambda z: z.mT) * torch.tensor(g)).sum().backward()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(expected, leaf.grad.numpy(), rtol=0, atol=1e-12 * scale)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda p: (loop(p, lambda z: z.T) * g).sum())(jax.numpy.asarray(a))
    np.testing.assert_allclose(expected, np.asarray(gradient), rtol=0, atol=1e-12 * scale)


def test_the_published_gradient_is_another_before_convergence():
    rng = np.random.default_rng(5)
    x = rng.standard_normal((20, 2))
    w = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 2)
    g = rng.standard_normal((20, 20))
    g = g + g.T
    exact = softlinalg.newton_pinv_vjp(w, g, ridge=0.01, steps=12)
    published = softlinalg.newton_pinv_vjp(w, g, ridge=0.01, steps=12, gradient="published")
    value = softlinalg.newton_pinv(w, ridge=0.01, steps=12).value
    np.testing.assert_allclose(published, -(value.T @ g @ value.T))
    np.testing.assert_array_equal(published, softlinalg.newton_pinv_vjp(w, g, ridge=0.01, steps=12, gradient="published", value=value))
    cosine = (exact * published).sum() / (np.linalg.norm(exact) * np.linalg.norm(published))
    assert cosine < 0.9
    converged = [softlinalg.newton_pinv_vjp(w, g, ridge=0.5, steps=40, gradient=kind) for kind in ("exact", "published")]
    np.testing.assert_allclose(*converged, rtol=0, atol=1e-9 * np.abs(converged[0]).max())


def test_alpha_may_be_given_per_matrix_and_zero_matrices_stay_zero():
    a = np.stack([np.eye(2), 2 * np.eye(2), np.zeros((2, 2))])
    result = softlinalg.newton_pinv(a, alpha=np.array([1.0, 0.25, 1.0]), steps=3)
    np.testing.assert_allclose(result.value, np.stack([np.eye(2), np.eye(2) / 2, np.zeros((2, 2))]))
    assert np.isfinite(softlinalg.newton_pinv(np.zeros((3, 3))).alpha)
    np.testing.assert_array_equal(softlinalg.newton_pinv(np.zeros((3, 3))).value, np.zeros((3, 3)))
    assert softlinalg.newton_pinv(np.eye(2, dtype="float16")).value.dtype == np.float16


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: softlinalg.newton_pinv(np.eye(2), steps=-1), errors.ParameterError, "steps must be a whole number >= 0; got -1"),
        (lambda: softlinalg.newton_pinv(np.eye(2), steps=2.5), errors.ParameterError, "steps must be"),
        (lambda: softlinalg.newton_pinv(np.eye(2), ridge=-1), errors.ParameterError, "ridge must be"),
        (lambda: softlinalg.newton_pinv(np.eye(2), alpha=0.0), errors.ParameterError, "alpha must be"),
        (lambda: softlinalg.newton_pinv(np.ones((2, 3)), ridge=0.1), errors.ShapeError, r"shape \(\.\.\., m, m\)"),
        (lambda: softlinalg.newton_pinv(np.ones((0, 3))), errors.ShapeError, "m, n >= 1"),
        (lambda: softlinalg.newton_pinv(np.array([[np.nan]])), errors.NonFiniteError, "a must be finite"),
        (lambda: softlinalg.newton_pinv_jvp(np.eye(2), np.eye(3)), errors.ShapeError, "tangent must end in shape"),
        (lambda: softlinalg.newton_pinv_vjp(np.eye(2), np.eye(3)), errors.ShapeError, "cotangent must end in shape"),
        (
            lambda: softlinalg.newton_pinv_vjp(np.eye(2), np.eye(2), gradient="paper"),
            errors.ParameterError,
            "'exact' or 'published'; got 'paper'",
        ),
    ],
)
def test_bad_arguments_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
