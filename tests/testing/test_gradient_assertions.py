"""Assertions about gradients pass on true ones, and fail on planted mistakes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from assertion_cases import HALF, fails, numpy_pinv

import softlinalg
from softlinalg import errors
from softlinalg.testing import _gradients, assertions, build_matrix
from softlinalg.testing.assertions import AccuracyError

torch = pytest.importorskip("torch")
jax = pytest.importorskip("jax")


# ---------------------------------------------------------------------------------------------- gradients
def pinv_vjp(a, g):
    return softlinalg.pinv_vjp(a, numpy_pinv(a), g)


def pinv_jvp(a, t):
    return softlinalg.pinv_jvp(a, numpy_pinv(a), t)


TALL = build_matrix(shape=(5, 3), cond=20.0, seed=1).A


def test_true_gradients_pass():
    assertions.assert_gradient(numpy_pinv, TALL, vjp=pinv_vjp, jvp=pinv_jvp, kappa=400, threshold=HALF)
    assertions.assert_gradient(
        lambda a: np.exp(-a * a / 2), TALL, vjp=lambda a, g: -a * np.exp(-a * a / 2) * g, complex_step=True, threshold=HALF
    )
    assertions.assert_gradient(
        lambda a, b: a @ b, [TALL, TALL.T], vjp=lambda a, b, g: (g @ b.T, a.T @ g), jvp=lambda a, b, s, t: s @ b + a @ t
    )
    assertions.assert_gradient(
        lambda a: softlinalg.ridge_inverse(a, 0.1),
        build_matrix(shape=(4, 4), structure="psd", cond=10.0).A,
        vjp=lambda a, g: softlinalg.ridge_inverse_vjp(softlinalg.ridge_inverse(a, 0.1), g)[0],
        direction=lambda d: (d + d.T) / 2,
        kappa=100,
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_derivatives_of_the_library_are_the_default(dtype):
    x = torch.tensor(TALL, dtype=getattr(torch, dtype))
    assertions.assert_gradient(torch.linalg.pinv, x, kappa=400, threshold=HALF)
    if dtype == "float64":  # compiled for a second data type it would say nothing new
        with jax.enable_x64(True):
            assertions.assert_gradient(jax.numpy.linalg.pinv, jax.numpy.asarray(TALL), kappa=400, threshold=HALF)
    with pytest.raises(errors.ParameterError, match="vjp must be given"):
        assertions.assert_gradient(softlinalg.pinv, TALL)


@pytest.mark.parametrize(
    ("law", "settings_"),
    [
        ("vjp = difference", {"vjp": lambda a, g: 1.0001 * pinv_vjp(a, g)}),
        ("vjp = difference", {"vjp": lambda a, g: -np.linalg.pinv(a).T @ g @ np.linalg.pinv(a).T}),
        ("vjp = difference", {"vjp": lambda a, g: np.zeros_like(a)}),
        ("gradient finite", {"vjp": lambda a, g: np.full_like(a, np.nan)}),
        ("gradient finite", {"vjp": lambda a, g: pinv_vjp(a, g).T}),
        ("vjp linear", {"vjp": lambda a, g: pinv_vjp(a, g) * (1 + np.linalg.norm(g))}),
        ("jvp = difference", {"vjp": pinv_vjp, "jvp": lambda a, t: pinv_jvp(a, t) * 1.001}),
        ("vjp adjoint to jvp", {"vjp": lambda a, g: pinv_vjp(a, g) * (1 + 1e-9), "jvp": pinv_jvp}),
        ("jvp = difference", {"vjp": pinv_vjp, "jvp": lambda a, t: pinv_jvp(a, t)[:1]}),
    ],
)
def test_mistakes_in_a_gradient_are_found(law, settings_):
    with pytest.raises(AccuracyError) as caught:
        assertions.assert_gradient(numpy_pinv, TALL, kappa=400, **settings_)
    assert law in str(caught.value)
    assert caught.value.property == law or law in str(caught.value).split("All ratios:")[1]
    assert "seed [0, 0]" in str(caught.value)


def test_the_worst_entry_of_a_gradient_is_named():
    def wrong(a, g):
        out = pinv_vjp(a, g)
        out[3, 1] *= 1.5
        return out

    with fails("'vjp = difference'", r"Worst entry: \[3, 1\]: got "):
        assertions.assert_gradient(numpy_pinv, TALL, vjp=wrong, kappa=400)


def test_the_complex_step_finds_what_differences_cannot():
    cubed = lambda a: a**3  # noqa: E731
    with fails("'vjp = complex step'"):
        assertions.assert_gradient(cubed, TALL, vjp=lambda a, g: 3 * a**2 * g * (1 + 1e-11), complex_step=True)


def test_kinks_and_noise_do_not_settle():
    rng = np.random.default_rng(0)
    with fails("difference settles"):
        assertions.assert_gradient(lambda a: a + 1e-2 * rng.standard_normal(a.shape), TALL, vjp=lambda a, g: g, threshold=30)


@pytest.mark.parametrize("order", [2, 4, 6])
def test_stencils_have_their_order(order):
    weights = _gradients.STENCILS[order]
    errors_ = [abs(sum(w * (math.exp(k * h) - math.exp(-k * h)) for k, w in weights) / h - 1) for h in (0.2, 0.1)]
    assert math.log2(errors_[0] / errors_[1]) == pytest.approx(order, abs=0.1)


def test_the_error_bar_covers_the_error():
    for scale in (0.01, 1.0, 30.0):
        got, bar = _gradients.directional_difference(lambda t, s=scale: np.sin(s * (1 + t) * np.arange(1, 5)), u=2.0**-52)
        expected = scale * np.arange(1, 5) * np.cos(scale * np.arange(1, 5))
        assert np.linalg.norm(got - expected) <= 10 * bar
        assert bar <= 1e-6 * max(1, np.linalg.norm(expected))
