"""The published iteration: a fixed number of Newton-Raphson steps, with what they achieved, and its derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

from softlinalg import _arrays, _inputs, _iterations, _linalg
from softlinalg._filters import LARGEST_SCALE, SAFE_SCALE
from softlinalg._settings import flag, is_one_of, shown, whole_number
from softlinalg._typing import Array, Namespace
from softlinalg.errors import DTypeError, ParameterError, ShapeError

__all__ = ["NewtonPinv", "newton_pinv", "newton_pinv_jvp", "newton_pinv_vjp"]


class NewtonPinv(NamedTuple):
    """What a fixed number of Newton-Raphson steps gave, and how far it is from a pseudo-inverse; P = A + ridge I.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> result = softlinalg.newton_pinv(np.diag([1.0, 1e-6]), steps=20)
    >>> bool(result.inner_residual < 1e-3)                                    # small, and yet:
    True
    >>> bool(result.value[1, 1] < 10)                                         # the small value is not inverted: 1e6 would be right
    True
    """

    value: Array
    """V, shape (..., n, m): the filtered pseudo-inverse of P, not P^+ itself."""
    residual: Array
    """|I - P V|_F / sqrt(m) (I - V P if n < m), shape (...). Small only where P is nonsingular and the steps sufficed."""
    outer_residual: Array
    """|V P V - V|_F / |V|_F, shape (...): shows the directions that are half inverted."""
    inner_residual: Array
    """|P V P - P|_F / |P|_F, shape (...): the published measure. It is blind to small eigenvalues that are not inverted."""
    alpha: Array
    """Factor of the start V_0 = alpha P^H, shape (...)."""


def newton_pinv(
    a: Array, *, steps: int = 20, alpha: float | Array | None = None, ridge: float = 0.0, check_finite: bool = True
) -> NewtonPinv:
    r"""A fixed number of steps V <- 2V - V P V from V_0 = alpha P^H, P = A + ridge I: an approximation by name.

    Parameters
    ----------
    a : array, shape (..., m, n)
        Real or complex; square if `ridge` is given.
    steps : int, default 20
        As published.
    alpha : float or array of shape (...), optional
        Default: for square non-negative matrices 0.9 * 2 / (largest row sum of A)^2, as published, if norms of P show that the
        steps converge from it; otherwise 1.8 / (|P|_1 |P|_inf), or with |P|_F^2 if that is smaller.
    ridge : float, default 0
        Added to the diagonal first (0.01 in the published SOFT, which does not mention it).
    check_finite : bool, default True
        Refuse NaN and infinity.

    Returns
    -------
    NewtonPinv
        The value and three residuals for each matrix. Nothing is certified: use `pinv` or `ridge_inverse` for that.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError
        Bad arguments.

    Notes
    -----
    In exact arithmetic V = f(P) with f(s) = (1 - (1 - alpha s^2)^(2^k)) / s: singular values below
    1 / sqrt(alpha 2^k) are hardly inverted after k steps. With realistic landmark matrices twenty steps were 17 to 90 %
    wrong while `inner_residual` was 1e-3. float16 and bfloat16 compute in float32. 2 k products.

    References
    ----------
    .. [1] Ben-Israel & Cohen, On iterative computation of generalized inverses and associated projections (1966).
    .. [2] Lu et al., SOFT: Softmax-free Transformer with Linear Complexity (2021), algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> result = softlinalg.newton_pinv(np.eye(2), steps=10)
    >>> np.round(result.value, 6)
    array([[1., 0.],
           [0., 1.]])
    """
    func = "newton_pinv"
    xp, (a, alpha_array), _ = _inputs.prepare(
        func, {"a": a, "alpha": None if _is_number(alpha) else alpha}, allow_complex=True, optional=("alpha",)
    )
    _check(func, a, steps, ridge)
    if flag(check_finite, func=func, name="check_finite"):
        _inputs.check_finite(a, func=func, name="a", xp=xp)
    with _arrays.quiet(a):
        return _fixed_steps(func, a, steps, alpha if _is_number(alpha) else alpha_array, ridge, xp=xp)


def _fixed_steps(func: str, a: Array, steps: int, alpha: Any, ridge: float, *, xp: Namespace) -> NewtonPinv:
    """The iteration and its residuals; what diverges ends in infinity or NaN, and its residuals say so."""
    dtype, p = a.dtype, _shifted(a, ridge, xp=xp)
    factor = _factor(func, alpha, a, p, xp=xp)
    value = _iterations.newton_raphson(p, _iterations.adjoint_start(p, factor, xp=xp), steps=steps, xp=xp)
    product = p @ value if p.shape[-2] <= p.shape[-1] else value @ p  # the smaller one
    eye = _arrays.eye_like(product, xp=xp)
    defect = eye - product
    inner = defect @ p if p.shape[-2] <= p.shape[-1] else p @ defect
    outer = value @ defect if p.shape[-2] <= p.shape[-1] else defect @ value
    real = _arrays.real_dtype(dtype, xp=xp)
    numbers = (
        _linalg.frobenius(defect, xp=xp) / eye.shape[-1] ** 0.5,
        _ratio(outer, value, xp=xp),
        _ratio(inner, p, xp=xp),
        factor,
    )
    return NewtonPinv(xp.astype(value, dtype), *(xp.astype(number, real) for number in numbers))


def newton_pinv_jvp(a: Array, tangent: Array, *, steps: int = 20, alpha: float | Array | None = None, ridge: float = 0.0) -> Array:
    r"""Exact directional derivative of the value of `newton_pinv` for its fixed number of steps.

    Parameters
    ----------
    a, steps, alpha, ridge
        As in `newton_pinv`; `alpha` is held constant, also where it was computed from `a`.
    tangent : array, shape (..., m, n)
        dA.

    Returns
    -------
    array, shape (..., n, m)

    Notes
    -----
    One forward sweep: six products a step, memory independent of the steps.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> np.round(softlinalg.newton_pinv_jvp(2 * np.eye(2), np.eye(2), steps=12), 6)
    array([[-0.25,  0.  ],
           [ 0.  , -0.25]])
    """
    func = "newton_pinv_jvp"
    names = {"a": a, "tangent": tangent, "alpha": None if _is_number(alpha) else alpha}
    xp, (a, tangent, alpha_array), dtype = _inputs.prepare(func, names, allow_complex=True, optional=("alpha",))
    _check(func, a, steps, ridge)
    if tangent.shape[-2:] != a.shape[-2:]:
        message = f"{func}: tangent must end in shape {tuple(a.shape[-2:])} like a; got {tuple(tangent.shape)}. Pass one per matrix."
        raise ShapeError(message)
    _inputs.check_batches(func, a=a, tangent=tangent)
    with _arrays.quiet(a):
        p = _shifted(a, ridge, xp=xp)
        factor = _factor(func, alpha if _is_number(alpha) else alpha_array, a, p, xp=xp)
        if _arrays.is_complex(dtype):  # a real matrix may be moved in a complex direction
            p = xp.astype(p, dtype)
        dp = xp.astype(tangent, p.dtype)
        start, dstart = _iterations.adjoint_start(p, factor, xp=xp), _iterations.adjoint_start(dp, factor, xp=xp)
        _, slope = _iterations.newton_raphson_jvp(p, start, dp, dstart, steps=steps, xp=xp)
    return xp.astype(slope, dtype)


def newton_pinv_vjp(
    a: Array,
    cotangent: Array,
    *,
    steps: int = 20,
    alpha: float | Array | None = None,
    ridge: float = 0.0,
    gradient: str = "exact",
    value: Array | None = None,
) -> Array:
    r"""Gradient of a scalar through the value of `newton_pinv`.

    Parameters
    ----------
    a, steps, alpha, ridge
        As in `newton_pinv`; `alpha` is held constant, also where it was computed from `a`.
    cotangent : array, shape (..., n, m)
        G, the gradient with respect to the value.
    gradient : {"exact", "published"}
        "exact" is the derivative of the steps that were run. "published" is -V^H G V^H, which is not the gradient of what
        forward computed unless the steps converged on a nonsingular matrix (cosines of -0.8 were measured).
    value : array, shape (..., n, m), optional
        V, for "published"; computed again if not given.

    Returns
    -------
    array, shape (..., m, n)

    Notes
    -----
    V is a matrix function of P with an odd filter, and the derivative of a matrix function of a Hermitian matrix is
    self-adjoint. Applied to [[0, P], [P^H, 0]] this gives, for every P, the gradient as the adjoint of the directional
    derivative along G^H: one forward sweep, memory independent of the steps (docs/theory/certificates.md).

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> np.round(softlinalg.newton_pinv_vjp(2 * np.eye(2), np.eye(2), steps=12), 6)
    array([[-0.25,  0.  ],
           [ 0.  , -0.25]])
    """
    func = "newton_pinv_vjp"
    xp, (a, cotangent, value), dtype = _inputs.prepare(
        func, {"a": a, "cotangent": cotangent, "value": value}, allow_complex=True, optional=("value",)
    )
    _check(func, a, steps, ridge)
    if tuple(cotangent.shape[-2:]) != (a.shape[-1], a.shape[-2]):
        message = f"{func}: cotangent must end in shape {(a.shape[-1], a.shape[-2])}; got {tuple(cotangent.shape)}. Pass one per matrix."
        raise ShapeError(message)
    _inputs.check_batches(func, a=a, cotangent=cotangent, value=value)
    if value is not None and tuple(value.shape[-2:]) != tuple(cotangent.shape[-2:]):
        message = f"{func}: value must end in shape {tuple(cotangent.shape[-2:])}; got {tuple(value.shape)}. Pass that of newton_pinv."
        raise ShapeError(message)
    if not is_one_of(gradient, ("exact", "published")):
        message = f"{func}: gradient must be 'exact' or 'published'; got {shown(gradient)}. The default is 'exact'."
        raise ParameterError(message)
    if gradient == "published":
        v = newton_pinv(a, steps=steps, alpha=alpha, ridge=ridge, check_finite=False).value if value is None else value
        vh = _linalg.adjoint(v, xp=xp)
        with _arrays.quiet(vh):
            return xp.astype(-(vh @ cotangent @ vh), dtype)
    slope = newton_pinv_jvp(a, _linalg.adjoint(cotangent, xp=xp), steps=steps, alpha=alpha, ridge=ridge)
    return xp.astype(_linalg.adjoint(slope, xp=xp), dtype)


# ------------------------------------------------------------------------------------------------- helpers
def _is_number(alpha: object) -> bool:
    return alpha is None or isinstance(alpha, int | float)


def _check(func: str, a: Array, steps: int, ridge: float) -> None:
    """Shapes and settings that the three functions share."""
    if a.ndim < 2 or a.shape[-1] == 0 or a.shape[-2] == 0:
        message = f"{func}: a must have shape (..., m, n) with m, n >= 1; got {tuple(a.shape)}. Pass matrices."
        raise ShapeError(message)
    whole_number(steps, func=func, name="steps", minimum=0, remedy="The published number is 20.")
    if _inputs.real_scalar(ridge, func=func, name="ridge", strict=False) > 0:
        _inputs.check_square(a, func=func, name="a")


def _shifted(a: Array, ridge: float, *, xp: Namespace) -> Array:
    """P = A + ridge I in the type to compute in."""
    work = xp.astype(a, _arrays.compute_dtype(a.dtype, xp=xp))
    return work + ridge * _arrays.eye_like(work, xp=xp) if ridge > 0 else work


def _factor(func: str, alpha: float | Array | None, a: Array, p: Array, *, xp: Namespace) -> Array:
    """alpha of every matrix, shape (...)."""
    batch = tuple(a.shape[:-2])
    real = _arrays.real_dtype(p.dtype, xp=xp)
    if alpha is None:
        safe = _iterations.safe_alpha(p, xp=xp)
        if a.shape[-1] != a.shape[-2] or _arrays.is_complex(a.dtype):
            return safe
        w = xp.astype(a, p.dtype)
        non_negative = xp.all(w >= 0, axis=(-2, -1)) & xp.any(w > 0, axis=(-2, -1))
        filled = xp.where(non_negative[..., None, None], w, xp.ones_like(w))
        published = _iterations.published_alpha(filled, xp=xp)
        # The row sums of A bound its norm only if it is symmetric, and that of P only if the ridge is small.
        converging = published <= safe * (LARGEST_SCALE / SAFE_SCALE)
        return xp.where(non_negative & converging, published, safe)
    if isinstance(alpha, int | float):
        number = _inputs.real_scalar(alpha, func=func, name="alpha")
        return xp.broadcast_to(xp.asarray(number, dtype=real, device=_arrays.device_of(a)), batch)
    if _arrays.is_complex(alpha.dtype):
        message = f"{func}: alpha must be real; got dtype {_arrays.dtype_name(alpha.dtype)}. Pass its real part."
        raise DTypeError(message)
    try:
        return xp.broadcast_to(xp.astype(alpha, real), batch)
    except (ValueError, RuntimeError, TypeError) as error:
        message = f"{func}: alpha must be a number, or of batch shape {batch}; got shape {tuple(alpha.shape)}. Pass one per matrix."
        raise ShapeError(message) from error


def _ratio(part: Array, whole: Array, *, xp: Namespace) -> Array:
    """|part|_F / |whole|_F, 0 for a zero matrix."""
    size = _linalg.frobenius(whole, xp=xp)
    safe = xp.where(size > 0, size, xp.ones_like(size))
    return _linalg.frobenius(part, xp=xp) / safe
