"""Inverses and attention in JAX: the values of the core, and derivatives that are those of what was computed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")
import jax
import jax.numpy as jnp
from jax.test_util import check_grads

import softlinalg
from softlinalg._kernels import kernel_matmul
from softlinalg.errors import NonFiniteError, ParameterError, ShapeError
from softlinalg.jax import pinv, ridge_inverse, soft_attention

RNG = np.random.default_rng(0)
TALL, TALLER = RNG.normal(size=(5, 3)), RNG.normal(size=(2, 5, 3))
POOR = TALL[:, :2] @ RNG.normal(size=(2, 3))  # rank 2
SPD = TALL.T @ TALL
Q, V = RNG.normal(size=(2, 24, 4)), RNG.normal(size=(2, 24, 3))
LANDMARKS = Q[:, ::6]
HIDDEN = np.arange(24) >= 20


@pytest.fixture(autouse=True)
def _wide() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("a", [TALL, POOR], ids=["full rank", "deficient"])
def test_pinv_has_the_gradient_of_its_formula(a: np.ndarray) -> None:
    weights = RNG.normal(size=(3, 5))
    value, gradient = jax.value_and_grad(lambda a: jnp.sum(pinv(a) * weights))(jnp.asarray(a))
    expected = np.linalg.pinv(a, rtol=1e-12)
    scale = np.linalg.norm(expected, 2)
    np.testing.assert_allclose(value, np.sum(expected * weights), atol=1e3 * 2.0**-52 * scale)
    np.testing.assert_allclose(gradient, softlinalg.pinv_vjp(a, expected, weights), atol=1e4 * 2.0**-52 * scale**2)


def test_forward_and_reverse_modes_agree_with_differences() -> None:
    check_grads(pinv, (jnp.asarray(TALL),), order=1, modes=("fwd", "rev"))
    check_grads(lambda a, ridge: ridge_inverse((a + a.mT) / 2, ridge), (jnp.asarray(SPD), 0.3), order=2, modes=("fwd", "rev"))


def test_the_gradient_of_a_ridge_inverse_is_hermitian() -> None:
    weights = jnp.asarray(RNG.normal(size=(3, 3)))
    gradient = jax.grad(lambda a: jnp.sum(ridge_inverse(a, 0.5) * weights))(jnp.asarray(SPD))
    expected, by_ridge = softlinalg.ridge_inverse_vjp(softlinalg.ridge_inverse(SPD, 0.5), np.asarray(weights))
    np.testing.assert_allclose(gradient, expected, atol=1e-12)
    np.testing.assert_array_equal(gradient, gradient.mT)
    slope = jax.grad(lambda ridge: jnp.sum(ridge_inverse(jnp.asarray(SPD), ridge) * weights))(0.5)
    np.testing.assert_allclose(slope, by_ridge, rtol=1e-12)


def test_jit_and_vmap_change_nothing() -> None:
    together = jax.jit(jax.vmap(pinv))(jnp.asarray(TALLER))
    np.testing.assert_allclose(together, softlinalg.pinv(TALLER), atol=1e-13)
    ridges = jnp.asarray([0.1, 2.0])
    batch = jnp.asarray(TALLER.swapaxes(1, 2) @ TALLER)
    together = jax.jit(jax.vmap(ridge_inverse))(batch, ridges)
    np.testing.assert_allclose(together, softlinalg.ridge_inverse(np.asarray(batch), np.asarray(ridges)), atol=1e-13)


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """Names of what JAX has compiled; the list goes on growing."""
    programs: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **more: programs.append(event) if "backend_compile" in event else None
    )
    return programs


def test_outside_of_compiled_functions_numpy_computes(compiled: list[str]) -> None:
    x = np.random.default_rng(1).normal(size=(13, 7))
    kernel = softlinalg.Gaussian(1.5)
    calls = {
        "pinv": (softlinalg.pinv, (x,)),
        "ridge_inverse": (softlinalg.ridge_inverse, (x @ x.T, 0.1)),
        "kernel": (kernel, (x, x[:6])),
        "product": (functools.partial(kernel_matmul, kernel), (x, x[:6], x[:6])),
        "attention": (softlinalg.soft_attention, (x, x, x[:5])),
    }
    for name, (function, arguments) in calls.items():
        arrays = [jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments]
        compiled.clear()
        found = function(*arrays)
        assert len(compiled) <= 20, (name, len(compiled))  # pinv by JAX's operations: 224
        assert isinstance(found, jax.Array)
        np.testing.assert_array_equal(found, function(*arguments))
    result = softlinalg.certified_pinv(jnp.asarray(x))
    assert all(isinstance(field, jax.Array) for field in result)
    assert result.error_bound.dtype == jnp.float64
    with pytest.raises(softlinalg.errors.ConvergenceError) as caught:
        softlinalg.certified_ridge_inverse(jnp.asarray(x @ x.T), 0.0, on_failure="raise")
    assert isinstance(caught.value.info.value, jax.Array)


def test_without_float64_bounds_are_rounded_upwards() -> None:
    x = np.random.default_rng(2).normal(size=(20, 4, 3)).astype(np.float32)
    wide = softlinalg.certified_pinv(x)
    with jax.enable_x64(False):
        found = softlinalg.certified_pinv(jnp.asarray(x))
        assert found.error_bound.dtype == found.residual.dtype == jnp.float32
        for name in ("error_bound", "residual", "backward_error"):
            narrow = np.asarray(getattr(found, name), dtype=np.float64)
            assert (narrow >= getattr(wide, name)).all()
            assert (narrow <= getattr(wide, name) * (1 + 2.0**-22)).all()


@pytest.mark.parametrize("private_names", [True, False], ids=["", "JAX names it otherwise"])
def test_constants_in_compiled_code_are_computed_with(private_names: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not private_names:
        monkeypatch.delitem(sys.modules, "jax._src.core")
    a, kernel = jnp.asarray(TALL), softlinalg.Gaussian(1.0)

    def f(x: jax.Array) -> jax.Array:
        return ridge_inverse(kernel(a), 0.1) @ kernel(a, x)

    expected = softlinalg.ridge_inverse(kernel(TALL), 0.1) @ kernel(TALL)
    np.testing.assert_allclose(jax.jit(f)(a), expected, atol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.vmap(f))(a[None])[0], expected, atol=1e-12)
    # Where nothing is compiled numbers stay numbers, and are checked.
    with pytest.raises(NonFiniteError):
        jax.grad(lambda x: x * jnp.sum(kernel(a * jnp.nan)))(1.0)

    def checked(x: jax.Array) -> jax.Array:
        with jax.ensure_compile_time_eval(), pytest.raises(NonFiniteError):
            kernel(a * jnp.nan)
        return x

    jax.jit(checked)(1.0)


def test_what_cannot_be_certified_is_nan_in_compiled_code_and_an_error_outside() -> None:
    singular = jnp.zeros((3, 3))  # of shapes that other tests have compiled
    assert bool(jnp.all(jnp.isnan(jax.jit(ridge_inverse, static_argnums=1)(singular, 0.0))))
    with pytest.raises(softlinalg.errors.ConvergenceError):
        ridge_inverse(singular, 0.0)
    with pytest.raises(NonFiniteError):
        pinv(jnp.full((5, 3), jnp.nan))
    with pytest.raises(ParameterError, match="ridge must be"):
        ridge_inverse(singular, -1.0)


SETTINGS: list[dict[str, Any]] = [
    {},
    {"inverse": "published", "steps": 6},
    {"inverse": "published", "normalization": "published", "published_alpha": "batch"},
    {"inverse": "exact", "normalization": "symmetric", "key_padding_mask": HIDDEN},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["certified", "published", "soft++", "symmetric, masked"])
def test_attention_and_its_gradients_are_those_of_pytorch(settings: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from softlinalg.torch import soft_attention as torch_attention

    def given(convert: Any) -> dict[str, Any]:
        return {name: convert(value) if isinstance(value, np.ndarray) else value for name, value in settings.items()}

    def loss(q: Any, v: Any, landmarks: Any) -> Any:
        out = soft_attention(q, v, landmarks, **given(jnp.asarray))
        return jnp.sum(jnp.sin(out)), out

    gradients, value = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*(jnp.asarray(a) for a in (Q, V, LANDMARKS)))
    tensors = [torch.tensor(a[None], requires_grad=True) for a in (Q, V, LANDMARKS)]  # (batch, heads, tokens, features)
    mask = given(torch.tensor)
    if "key_padding_mask" in mask:
        mask["key_padding_mask"] = mask["key_padding_mask"][None]
    out = torch_attention(*tensors, **mask)
    out.sin().sum().backward()
    np.testing.assert_allclose(value, out[0].detach().numpy(), atol=1e-9)
    for found, tensor in zip(gradients, tensors, strict=True):
        np.testing.assert_allclose(found, tensor.grad[0].numpy(), atol=1e-8)


def test_attention_across_tokens_and_over_a_batch() -> None:
    k = RNG.normal(size=(2, 7, 4))
    across = jax.jit(jax.vmap(lambda q, v, landmarks, k: soft_attention(q, v, landmarks, k=k)))
    found = across(jnp.asarray(Q), jnp.asarray(V[:, :7]), jnp.asarray(LANDMARKS), jnp.asarray(k))
    np.testing.assert_allclose(found, softlinalg.soft_attention(Q, V[:, :7], LANDMARKS, k=k), atol=1e-10)
    with pytest.raises(ShapeError, match="v must have one row per key"):
        soft_attention(jnp.asarray(Q), jnp.asarray(V[:, :7]), jnp.asarray(LANDMARKS))


def test_newton_pinv_needs_no_wrapper() -> None:
    a = jnp.asarray(TALL)
    total = jax.jit(lambda a: jnp.sum(softlinalg.newton_pinv(a, steps=3).value ** 2))
    gradient = jax.jit(jax.grad(total))(a)
    step = 1e-6 * RNG.normal(size=a.shape)
    ahead, behind = (total(a + sign * step) for sign in (1, -1))
    np.testing.assert_allclose(jnp.sum(gradient * step), (ahead - behind) / 2, rtol=1e-6)


def test_examples_of_the_how_to_run() -> None:
    import doctest

    page = Path(__file__).parents[1] / "docs" / "how-to" / "jax.md"
    with jax.enable_x64(False):  # as for a new user
        results = doctest.testfile(str(page), module_relative=False)
    assert results.attempted > 5
    assert results.failed == 0
