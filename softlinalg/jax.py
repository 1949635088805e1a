r"""The core in JAX's transformations: inverses with their analytic derivatives, and softmax-free attention.

Every function of the core takes JAX arrays, also under `jax.jit` and `jax.vmap`. What JAX cannot find out by itself is the derivative
of an inverse: differentiating through the iteration or the decomposition that happened to be chosen is slow, and wrong where singular
values repeat. The functions here have the analytic one, in forward and reverse mode and of any order. `softlinalg.newton_pinv`, a
fixed number of products, needs no wrapper: its derivative is that of its steps.

In traced code nothing can be raised: members whose error is not certified are NaN. For float64 enable JAX's 64-bit types
(`jax.config.update("jax_enable_x64", True)`); without them everything is computed, and certified, in float32.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from softlinalg import _arrays, _attention, _inputs, _linalg, _pinv
from softlinalg._typing import Array

__all__ = ["pinv", "ridge_inverse", "soft_attention"]


class _Settings(NamedTuple):
    """Keywords of a core function, hashable, so that compiled code is found again."""

    names: tuple[str, ...]
    values: tuple[Any, ...]

    def as_keywords(self) -> dict[str, Any]:
        return dict(zip(self.names, self.values, strict=True))


def _settings(**keywords: Any) -> _Settings:
    return _Settings(tuple(keywords), tuple(keywords.values()))


# ------------------------------------------------------------------------------------------------ inverses
@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _pinv_value(a: Array, settings: _Settings) -> Array:
    return _pinv.pinv(a, **settings.as_keywords())


@_pinv_value.defjvp
def _pinv_slope(settings: _Settings, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (a,), (tangent,) = primals, tangents
    value = _pinv_value(a, settings)
    return value, _pinv.pinv_jvp(a, value, tangent)


def pinv(
    a: ArrayLike,
    *,
    rtol: float | None = None,
    tol: float | None = None,
    hermitian: bool = False,
    method: str = "auto",
    on_failure: str = "fallback",
) -> jax.Array:
    r"""Certified pseudo-inverse with its analytic derivative.

    Parameters
    ----------
    a : jax.Array, shape (..., m, n)
        Real or complex, any rank.
    rtol, tol, hermitian, method, on_failure
        As in `softlinalg.pinv`.

    Returns
    -------
    jax.Array, shape (..., n, m)
        Type of `a`. In traced code members without a certificate are NaN.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError, InputError, ConvergenceError, RangeError
        As `softlinalg.pinv`; in traced code those that need no values of arrays.

    Notes
    -----
    dX = -X dA X + X X^H dA^H (I - A X) + (I - X A) dA^H X^H X, along perturbations that keep the rank [1]_; the pseudo-inverse jumps
    elsewhere. The value may be differentiated again.

    References
    ----------
    .. [1] Golub & Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems whose variables separate
       (1973), eq. 4.12.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from softlinalg.jax import pinv
    >>> a = jnp.array([[2.0], [0.0]])
    >>> gradient = jax.grad(lambda a: pinv(a)[0, 0])(a)                  # of 1 / a
    >>> [float(entry) for entry in gradient[:, 0]]
    [-0.25, 0.0]
    """
    value: jax.Array = _pinv_value(jnp.asarray(a), _settings(rtol=rtol, tol=tol, hermitian=hermitian, method=method, on_failure=on_failure))
    return value


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _ridge_inverse_value(a: Array, ridge: Array, settings: _Settings) -> Array:
    return _pinv.ridge_inverse(a, ridge, **settings.as_keywords())


@_ridge_inverse_value.defjvp
def _ridge_inverse_slope(settings: _Settings, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    value = _ridge_inverse_value(*primals, settings)
    tangent, by_ridge = tangents
    # Only Hermitian directions count, so that the gradient is Hermitian too, as in the core and in PyTorch.
    hermitian = (tangent + _linalg.adjoint(tangent, xp=jnp)) / 2
    return value, _pinv.ridge_inverse_jvp(value, hermitian, jnp.broadcast_to(by_ridge, value.shape[:-2]))


def ridge_inverse(
    a: ArrayLike, ridge: float | jax.Array, *, tol: float | None = None, method: str = "auto", on_failure: str = "fallback"
) -> jax.Array:
    r"""Certified inverse of A + ridge I with its analytic derivatives, by A and by the ridge.

    Parameters
    ----------
    a : jax.Array, shape (..., m, m)
        Hermitian.
    ridge : float or jax.Array of shape (...)
        Non-negative, in the units of `a`.
    tol, method, on_failure
        As in `softlinalg.ridge_inverse`.

    Returns
    -------
    jax.Array, shape (..., m, m)
        Hermitian, type of `a`. In traced code members without a certificate are NaN.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError, InputError, ConvergenceError, RangeError
        As `softlinalg.ridge_inverse`; in traced code those that need no values of arrays.

    Notes
    -----
    dY = -Y (dA + dridge I) Y with the Hermitian part of dA: two products, also where eigenvalues repeat.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from softlinalg.jax import ridge_inverse
    >>> slope = jax.grad(lambda ridge: jnp.trace(ridge_inverse(jnp.eye(2), ridge)))(1.0)  # of 2 / (1 + ridge)
    >>> round(float(slope), 5)
    -0.5
    """
    a = jnp.asarray(a)
    if not isinstance(ridge, jax.Array):  # numbers are checked while they can still be named
        ridge = _inputs.real_scalar(ridge, func="ridge_inverse", name="ridge", strict=False)
    real = _arrays.real_dtype(a.dtype, xp=jnp) if jnp.issubdtype(a.dtype, jnp.inexact) else jnp.result_type(float)
    settings = _settings(tol=tol, method=method, on_failure=on_failure)
    value: jax.Array = _ridge_inverse_value(a, jnp.asarray(ridge, dtype=real), settings)
    return value


# ----------------------------------------------------------------------------------------------- attention
def soft_attention(
    q: ArrayLike,
    v: ArrayLike,
    landmarks: ArrayLike,
    *,
    k: ArrayLike | None = None,
    ridge: float | None = None,
    inverse: str = "certified",
    normalization: str | None = None,
    key_padding_mask: ArrayLike | None = None,
    steps: int = 20,
    tol: float | None = None,
    published_alpha: str = "matrix",
    length_scale: float | None = None,
    check_finite: bool = True,
) -> jax.Array:
    r"""Softmax-free attention C (W + ridge I)^-1 (E^T v), to be differentiated, mapped and compiled.

    Parameters
    ----------
    q, v, landmarks, k, ridge, inverse, normalization, key_padding_mask, steps, tol, published_alpha, length_scale, check_finite
        As in `softlinalg.soft_attention`. No value is looked at in traced code, whatever `check_finite` says.

    Returns
    -------
    jax.Array, shape (..., n, e)
        Type of the input; half precisions are computed in float32.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError, BackendMismatchError

    Notes
    -----
    O(n m (d + e) + m^3) time and O(n m) memory for each head. The derivative of the inverse is the analytic one of `ridge_inverse`;
    that of "published" is of the steps that were taken, with their start.

    References
    ----------
    .. [1] Lu et al., SOFT: Softmax-free Transformer with Linear Complexity (2021).
    .. [2] Lu et al., Softmax-free Linear Transformers (2024).

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from softlinalg.jax import soft_attention
    >>> q = jax.random.normal(jax.random.key(0), (2, 64, 8))             # two heads
    >>> landmarks = q[:, ::8]
    >>> soft_attention(q, q, landmarks).shape
    (2, 64, 8)
    """
    func = "soft_attention"
    _, (q, v, landmarks, k), dtype = _inputs.prepare(func, {"q": q, "v": v, "landmarks": landmarks, "k": k}, optional=("k",))
    q, v, landmarks = (jnp.asarray(array) for array in (q, v, landmarks))
    k = None if k is None else jnp.asarray(k)
    settings = _attention.inverse_settings(
        func, inverse=inverse, ridge=ridge, steps=steps, tol=tol, published_alpha=published_alpha, normalization=normalization
    )
    scale = _attention.checked_scale(func, q, k, v, landmarks, key_padding_mask, length_scale, check_finite, xp=jnp)
    work = _arrays.compute_dtype(dtype, xp=jnp)
    q, v, landmarks = (array.astype(work) for array in (q, v, landmarks))
    w = _attention.composite_landmark_kernel(landmarks, scale, xp=jnp)
    if settings.inverse == "published":
        w = w.astype(work)
        x = _attention.plain_inverse(w, settings, xp=jnp)
    else:
        x = ridge_inverse(w, settings.ridge, tol=settings.tol)
    if settings.normalization == "published":
        x = _attention.normalized(x, w, xp=jnp)
    k = None if k is None else k.astype(work)
    out = _attention.composite(q, k, v, landmarks, key_padding_mask, x, length_scale=scale, normalization=normalization, xp=jnp)
    result: jax.Array = out.astype(dtype)
    return result
