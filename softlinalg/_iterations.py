r"""Inverses by matrix products alone: Newton-Raphson, Chebyshev-scaled Newton and hyperpower iterations.

Every function is pure, takes batches ``(..., m, n)``, never reads a number back from the device (so it can be
traced and compiled), and runs a number of steps that is known before the first product. There is no stopping by
step size: with a gap in the spectrum the steps shrink long before the small directions have grown.

With R_k = I - A X_k the iterations are

* Newton-Raphson   X <- X (2I - A X),                     R_{k+1} = R_k^2,
* Chebyshev-scaled X <- (1 + 1/tau_2n) X (2I - A X),      R_k = T_n(x(A)) / tau_n with n = 2^k,
* hyperpower       X <- X (I + R + ... + R^(p-1)),        R_{k+1} = R_k^p.

On a Hermitian matrix each is a scalar function of the eigenvalues: the `*_filter` of the same name, in `_filters.py` with the
step counts.
`docs/theory/iterations.md` holds the theorems and their proofs.

The products stand in one order throughout, A X first, and X is never symmetrized inside the loop. The rounding E
in A X then reaches the residual as -(A X) E, of size eps kappa; its transpose would come in as A E^H X, of size
eps kappa^2, and grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from softlinalg import _arrays, _linalg, _norm_bounds
from softlinalg._filters import (
    LARGEST_SCALE,
    SAFE_SCALE,
    chebyshev_newton_filter,
    chebyshev_newton_general_filter,
    chebyshev_newton_general_products,
    chebyshev_newton_general_steps,
    chebyshev_newton_products,
    chebyshev_newton_steps,
    check_interval,
    check_order,
    double,
    host_count,
    hyperpower_filter,
    hyperpower_products,
    hyperpower_steps,
    is_float,
    newton_raphson_filter,
    newton_raphson_identity_filter,
    newton_raphson_products,
    newton_raphson_steps,
    start_and_growth,
)
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError

__all__ = [
    "adjoint_start",
    "chebyshev_newton",
    "chebyshev_newton_filter",
    "chebyshev_newton_general",
    "chebyshev_newton_general_filter",
    "chebyshev_newton_general_jvp",
    "chebyshev_newton_general_products",
    "chebyshev_newton_general_steps",
    "chebyshev_newton_jvp",
    "chebyshev_newton_products",
    "chebyshev_newton_steps",
    "chebyshev_schedule",
    "hyperpower",
    "hyperpower_filter",
    "hyperpower_jvp",
    "hyperpower_products",
    "hyperpower_steps",
    "newton_raphson",
    "newton_raphson_filter",
    "newton_raphson_identity_filter",
    "newton_raphson_jvp",
    "newton_raphson_products",
    "newton_raphson_steps",
    "published_alpha",
    "safe_alpha",
]


# ------------------------------------------------------------------------------------------- starts and bounds
def safe_alpha(a: Array, *, xp: Namespace) -> Array:
    r"""Factor alpha for which Newton-Raphson from alpha A^H converges to the pseudo-inverse, for every A.

    Parameters
    ----------
    a : array, shape (..., m, n)
        Scaled so that the square of its norm and the reciprocal of that are in range.

    Returns
    -------
    array, shape (...), real
        1.8 / u^2 with u = `spectral_upper_bound`; 1.8 for the zero matrix, whose start is zero anyway.

    Notes
    -----
    Convergence needs 0 < alpha < 2 / sigma_1^2, strictly: at 2 the largest singular value keeps the residual -1, and
    two equal landmarks reach equality in |A|_1 = sigma_1. Then |I - A X_0| <= 0.8 at sigma_1.
    """
    bound = _norm_bounds.spectral_upper_bound(a, xp=xp)
    usable = bound > 0
    bound = xp.where(usable, bound, xp.ones_like(bound))
    return SAFE_SCALE / bound / bound


def published_alpha(w: Array, *, ridge: float = 0.0, xp: Namespace) -> Array:
    r"""The factor of the published SOFT attention: 0.9 * 2 / max_i(sum_j W_ij)^2, where a start from it converges.

    Parameters
    ----------
    w : array, shape (..., m, m)
        Kernel matrix, symmetric, non-negative entries, before any ridge is added.
    ridge : float, default 0
        What is added to the diagonal of what is inverted.

    Returns
    -------
    array, shape (...)
        At most 1.9 / (max_i(sum_j W_ij) + ridge)^2. With the published ridge of 0.01 and a unit diagonal that is more than the
        published factor; a ridge above 0.027 of the row sum of nearly equal landmarks needs it.

    Notes
    -----
    The row sum bounds the largest eigenvalue, and is equal to it where all row sums are. Convergence needs alpha below 2 over the
    square of that of W + ridge I.

    References
    ----------
    .. [1] Lu et al., SOFT: Softmax-free Transformer with Linear Complexity (2021).
    """
    row_sum = xp.max(xp.sum(w, axis=-1), axis=-1)
    alpha = SAFE_SCALE / (row_sum * row_sum)
    if ridge == 0:
        return alpha
    shifted = row_sum + ridge
    return xp.minimum(alpha, LARGEST_SCALE / shifted / shifted)


def adjoint_start(a: Array, alpha: float | Array, *, xp: Namespace) -> Array:
    """The start alpha A^H, shape (..., n, m), for a (..., m, n) and alpha a float or an array of shape (...)."""
    return _per_matrix(alpha, a, xp=xp) * _linalg.adjoint(a, xp=xp)


# --------------------------------------------------------------------------------------------- Newton-Raphson
def newton_raphson(
    a: Array,
    start: Array | None = None,
    *,
    steps: int | Array,
    xp: Namespace,
    scale: float | Array | None = None,
    max_steps: int | None = None,
) -> Array:
    r"""A number of steps of X <- X (2I - A X) = 2X - X A X.

    Parameters
    ----------
    a : array, shape (..., m, n)
        Real or complex.
    start : array, shape (..., n, m), or None
        X_0. For the pseudo-inverse alpha A^H (`adjoint_start`, `safe_alpha`); None: `scale` times the identity, for
        positive definite A, whose first step needs no product.
    steps : int or integer array of shape (...)
        Steps, or steps per matrix: a member that has done its steps keeps its value, bit for bit.
    scale : float or array of shape (...), optional
        c of X_0 = c I; 0 < c < 2 / lambda_max. Only with ``start=None``.
    max_steps : int
        Largest of `steps`, known on the host; needed where `steps` is an array.

    Returns
    -------
    array, shape (..., n, m)

    Notes
    -----
    I - A X_k = (I - A X_0)^(2^k). Two products a step (`newton_raphson_products`), of the smaller of the two inner
    sizes m and n. Null directions of a start c I, and rounding in the null space of any start, double each step.

    References
    ----------
    .. [1] Schulz, Iterative Berechnung der reziproken Matrix (1933).
    .. [2] Ben-Israel & Cohen, On iterative computation of generalized inverses and associated projections (1966).
    """
    total, counts = _step_counts("newton_raphson", steps, max_steps)
    _check_start("newton_raphson", start, scale)
    return _scaled_newton(a, start, scale, [None] * total, counts, xp=xp)


def newton_raphson_jvp(
    a: Array,
    start: Array | None,
    da: Array,
    dstart: Array | None,
    *,
    steps: int,
    xp: Namespace,
    scale: float | Array | None = None,
) -> tuple[Array, Array]:
    r"""Value of `newton_raphson` and its exact directional derivative, for a fixed number of steps.

    Parameters
    ----------
    a, start, steps, scale
        As in `newton_raphson`; `scale` is a constant.
    da : array, shape (..., m, n)
        Direction in which `a` moves.
    dstart : array, shape (..., n, m), or None
        Direction in which `start` moves (the start alpha A^H moves with A); None: it does not.

    Returns
    -------
    value, derivative : arrays, shape (..., n, m)

    Notes
    -----
    One forward sweep, six products a step, memory independent of the steps. For Hermitian A and a start that is a
    function of A the derivative is a self-adjoint map of da, so this sweep along sym(G) is also the gradient.
    """
    total, _ = _step_counts("newton_raphson_jvp", steps, None)
    _check_start("newton_raphson_jvp", start, scale, dstart)
    return _scaled_newton_jvp(a, start, scale, da, dstart, [None] * total, xp=xp)


# --------------------------------------------------------------------------------------- Chebyshev-scaled Newton
def chebyshev_newton(
    b: Array,
    *,
    lo: float | Array,
    hi: float | Array,
    steps: int | Array,
    polish: int = 1,
    max_steps: int | None = None,
    xp: Namespace,
) -> Array:
    r"""Inverse of positive definite B by Newton steps scaled to the minimax polynomial of its spectrum.

    Parameters
    ----------
    b : array, shape (..., m, m)
        Hermitian, eigenvalues in [lo, hi].
    lo, hi : float or array of shape (...)
        0 < lo <= hi. Too small a `lo` costs steps; one that is too large loses the eigenvalues below it.
    steps : int or integer array of shape (...)
        Scaled doublings, from `chebyshev_newton_steps`; per matrix if an array.
    polish : int, default 1
        Unscaled steps at the end. One squares the residual and makes it non-negative, so that the eigenvalues of B X lie
        in [0, 1].
    max_steps : int
        Largest of `steps`, known on the host; needed where `steps` is an array.

    Returns
    -------
    array, shape (..., m, m)
        Not exactly Hermitian; symmetrize once, after the loop.

    Notes
    -----
    With n = 2^steps, tau_n = T_n((hi + lo) / (hi - lo)), the residual before polishing is
    I - B X = T_n(((hi + lo) I - 2 B) / (hi - lo)) / tau_n, the smallest possible of degree n on [lo, hi]; its norm is
    at most 1 / tau_n. The start 2 / (lo + hi) I makes the first step free of products (`chebyshev_newton_products`).

    References
    ----------
    .. [1] Pan & Schreiber, An improved Newton iteration for the generalized inverse of a matrix, with applications (1991).
    """
    total, counts = _step_counts("chebyshev_newton", steps, max_steps)
    scale, factors = _chebyshev_schedule("chebyshev_newton", lo, hi, total, polish, counts, power=1, like=b, xp=xp)
    return _scaled_newton(b, None, scale, factors, None if counts is None else counts + polish, xp=xp)


def chebyshev_schedule(lo: float, hi: float, steps: int) -> tuple[float, tuple[float, ...]]:
    """Factor of the start I, and of X (2I - B X) in each step of `chebyshev_newton`, for code that runs these steps elsewhere."""
    scale, delta = start_and_growth(lo, hi, power=1, like=None, xp=None)
    factors = []
    for _ in range(steps):
        delta = double(delta, xp=None)
        factors.append(1 + 1 / (1 + delta))
    return scale, tuple(factors)


def chebyshev_newton_jvp(
    b: Array, db: Array, *, lo: float | Array, hi: float | Array, steps: int, polish: int = 1, xp: Namespace
) -> tuple[Array, Array]:
    """Value of `chebyshev_newton` and its exact derivative along `db` (..., m, m); `lo` and `hi` are constants.

    Six products a step but for the first, which has none; memory independent of the steps. For Hermitian `b` the derivative
    is a self-adjoint map of `db`: along sym(G) it is the gradient.
    """
    total, _ = _step_counts("chebyshev_newton_jvp", steps, None)
    scale, factors = _chebyshev_schedule("chebyshev_newton_jvp", lo, hi, total, polish, None, power=1, like=b, xp=xp)
    return _scaled_newton_jvp(b, None, scale, db, None, factors, xp=xp)


def chebyshev_newton_general(
    a: Array,
    *,
    lo: float | Array,
    hi: float | Array,
    steps: int | Array,
    polish: int = 1,
    max_steps: int | None = None,
    xp: Namespace,
) -> Array:
    r"""Pseudo-inverse of any A by scaled Newton steps from a multiple of A^H.

    Parameters
    ----------
    a : array, shape (..., m, n)
        Real or complex, singular values in [lo, hi] or zero.
    lo, hi : float or array of shape (...)
        0 < lo <= hi. Singular values below `lo` are inverted in part, as `chebyshev_newton_general_filter` says.
    steps, polish, max_steps
        As in `chebyshev_newton`; the count is `chebyshev_newton_general_steps`.

    Returns
    -------
    array, shape (..., n, m)

    Notes
    -----
    The iteration of `chebyshev_newton` on A A^H, whose eigenvalues lie in [lo^2, hi^2]: the condition number enters squared.
    A null space stays zero in exact arithmetic, while rounding in it grows fourfold in each early step, to about
    eps (hi / lo)^2 / hi at the end; multiply X A X to remove it.

    References
    ----------
    .. [1] Pan & Schreiber, An improved Newton iteration for the generalized inverse of a matrix, with applications (1991).
    """
    total, counts = _step_counts("chebyshev_newton_general", steps, max_steps)
    scale, factors = _chebyshev_schedule("chebyshev_newton_general", lo, hi, total, polish, counts, power=2, like=a, xp=xp)
    return _scaled_newton(a, adjoint_start(a, scale, xp=xp), None, factors, None if counts is None else counts + polish, xp=xp)


def chebyshev_newton_general_jvp(
    a: Array, da: Array, *, lo: float | Array, hi: float | Array, steps: int, polish: int = 1, xp: Namespace
) -> tuple[Array, Array]:
    """Value of `chebyshev_newton_general` and its exact derivative along `da` (..., m, n); `lo` and `hi` are constants."""
    total, _ = _step_counts("chebyshev_newton_general_jvp", steps, None)
    scale, factors = _chebyshev_schedule("chebyshev_newton_general_jvp", lo, hi, total, polish, None, power=2, like=a, xp=xp)
    start = adjoint_start(a, scale, xp=xp)
    return _scaled_newton_jvp(a, start, None, da, adjoint_start(da, scale, xp=xp), factors, xp=xp)


# -------------------------------------------------------------------------------------------------- hyperpower
def hyperpower(
    a: Array,
    start: Array | None = None,
    *,
    order: int,
    steps: int | Array,
    xp: Namespace,
    scale: float | Array | None = None,
    max_steps: int | None = None,
) -> Array:
    r"""A number of steps of X <- X (I + R + ... + R^(order-1)), R = I - A X.

    Parameters
    ----------
    a, start, steps, scale, max_steps
        As in `newton_raphson`.
    order : int
        At least 2; 2 is Newton-Raphson.

    Returns
    -------
    array, shape (..., n, m)

    Notes
    -----
    I - A X_k = (I - A X_0)^(order^k). The sum is folded in halves, S_2q(R) = (I + R) S_q(R^2) and
    S_2q+1(R) = I + (R + R^2) S_q(R^2): about 2 log2(order) products a step (`hyperpower_products`); order 7 takes five,
    order 19 eight.

    References
    ----------
    .. [1] Altman, An optimum cubically convergent iterative method of inverting a linear bounded operator (1960).
    .. [2] Ben-Israel & Greville, Generalized Inverses (2003), chapter 7.
    """
    total, counts = _step_counts("hyperpower", steps, max_steps)
    _check_start("hyperpower", start, scale)
    check_order("hyperpower", order)
    x = _first_iterate(a, start, scale, xp=xp)
    for step in range(total):
        if step == 0 and start is None:
            c = _per_matrix(scale, a, xp=xp)
            new = c * _power_sum(_identity(a, 1.0, xp=xp) - c * a, order, xp=xp)
        else:
            new = _hyperpower_step(a, x, order, xp=xp)
        x = _advance(step, counts, new, x, xp=xp)
    return x


def hyperpower_jvp(
    a: Array,
    start: Array | None,
    da: Array,
    dstart: Array | None,
    *,
    order: int,
    steps: int,
    xp: Namespace,
    scale: float | Array | None = None,
) -> tuple[Array, Array]:
    """Value of `hyperpower` and its exact derivative along `da` and `dstart` (None: zero), as in `newton_raphson_jvp`."""
    total, _ = _step_counts("hyperpower_jvp", steps, None)
    _check_start("hyperpower_jvp", start, scale, dstart)
    check_order("hyperpower_jvp", order)
    x = _first_iterate(a, start, scale, xp=xp)
    dx = xp.zeros_like(x) if dstart is None else dstart
    for _ in range(total):
        # Inner products on the smaller side, as in _hyperpower_step.
        if _is_tall(a):
            r, dr = _identity(a, 1.0, xp=xp) - x @ a, -(dx @ a + x @ da)
            total_sum, dsum = _power_sum_jvp(r, dr, order, xp=xp)
            x, dx = total_sum @ x, dsum @ x + total_sum @ dx
        else:
            r, dr = _identity(x, 1.0, xp=xp) - a @ x, -(da @ x + a @ dx)
            total_sum, dsum = _power_sum_jvp(r, dr, order, xp=xp)
            x, dx = x @ total_sum, dx @ total_sum + x @ dsum
    return x, dx


# ------------------------------------------------------------------------------------------------ inner loops
def _per_matrix(value: Any, like: Array, *, xp: Namespace) -> Any:
    """A float as a Python float; an array of shape (...) as (..., 1, 1), in the real type of `like`: neither promotes `like`."""
    return float(value) if is_float(value) else xp.astype(value, _arrays.real_dtype(like.dtype, xp=xp))[..., None, None]


def _is_tall(a: Array) -> bool:
    """More rows than columns: X A is then the smaller product."""
    return bool(a.shape[-2] > a.shape[-1])


def _identity(a: Array, scale: Any, *, xp: Namespace) -> Array:
    """The identity times `scale`, of the size of the last axis of `a`; (n, n) for a float, (..., n, n) for an array."""
    return _per_matrix(scale, a, xp=xp) * _arrays.eye_like(a, xp=xp)


def _first_iterate(a: Array, start: Array | None, scale: Any, *, xp: Namespace) -> Array:
    """X_0: the start itself, or scale * I for each matrix."""
    return xp.broadcast_to(_identity(a, scale, xp=xp), a.shape) if start is None else start


def _advance(step: int, counts: Array | None, new: Array, old: Array, *, xp: Namespace) -> Array:
    """The new iterate, but for members that had done their steps."""
    return new if counts is None else xp.where((counts > step)[..., None, None], new, old)


def _scaled_newton(a: Array, start: Array | None, scale: Any, factors: Sequence[Any], counts: Array | None, *, xp: Namespace) -> Array:
    """X <- s_j X (2I - A X) for the factors s_j (None: 1), from `start` or from scale * I."""
    two = _identity(a if start is None or _is_tall(a) else start, 2.0, xp=xp)
    x = _first_iterate(a, start, scale, xp=xp)
    memory: list[Array] = []
    for step, factor in enumerate(factors):
        s = None if factor is None else _per_matrix(factor, a, xp=xp)
        if step == 0 and start is None:  # X_0 = c I: its products are scalings
            c = _per_matrix(scale, a, xp=xp)
            new = (c if s is None else c * s) * (two - c * a)
        elif start is None and _arrays.may_reuse_buffers(a, x):
            new = _step_in_memory(a, x, two, s, memory, xp=xp)
        else:
            new = (two - x @ a) @ x if _is_tall(a) else x @ (two - a @ x)
            if s is not None:
                new = s * new
        old, x = x, _advance(step, counts, new, x, xp=xp)
        memory = [old if part is new and x is new else part for part in memory]  # what the next step may write to
    return x


def _step_in_memory(a: Array, x: Array, two: Array, factor: Any, memory: list[Array], *, xp: Namespace) -> Array:
    """factor X (2I - A X) for square matrices, in `memory`: two arrays, made at the first step. New ones in each step cost a third more."""
    if not memory:
        memory.extend(xp.empty_like(a) for _ in range(2))
    rest, new = memory
    xp.matmul(a, x, out=rest)
    xp.subtract(two, rest, out=rest)
    xp.matmul(x, rest, out=new)
    return new if factor is None else xp.multiply(new, factor, out=new)


def _scaled_newton_jvp(
    a: Array, start: Array | None, scale: Any, da: Array, dstart: Array | None, factors: Sequence[Any], *, xp: Namespace
) -> tuple[Array, Array]:
    """Value and derivative of `_scaled_newton`; the products keep its order, for the same reason."""
    two = _identity(a if start is None or _is_tall(a) else start, 2.0, xp=xp)
    x = _first_iterate(a, start, scale, xp=xp)
    dx = xp.zeros_like(x) if dstart is None else dstart
    for step, factor in enumerate(factors):
        if step == 0 and start is None:
            c = _per_matrix(scale, a, xp=xp)
            x, dx = c * (two - c * a), -(c * c) * da
        elif _is_tall(a):
            m = two - x @ a
            dx = m @ dx - (dx @ a + x @ da) @ x
            x = m @ x
        else:
            m = two - a @ x
            dx = dx @ m - x @ (da @ x + a @ dx)
            x = x @ m
        if factor is not None:
            s = _per_matrix(factor, a, xp=xp)
            x, dx = s * x, s * dx
    return x, dx


def _hyperpower_step(a: Array, x: Array, order: int, *, xp: Namespace) -> Array:
    """X S(R), with the smaller of I - A X and I - X A for R."""
    if _is_tall(a):
        return _power_sum(_identity(a, 1.0, xp=xp) - x @ a, order, xp=xp) @ x
    return x @ _power_sum(_identity(x, 1.0, xp=xp) - a @ x, order, xp=xp)


def _power_sum(r: Array, order: int, *, xp: Namespace) -> Array:
    """I + R + ... + R^(order-1), by halves; order >= 2."""
    eye = _identity(r, 1.0, xp=xp)
    if order == 2:
        return eye + r
    square = r @ r
    if order == 3:
        return eye + r + square
    inner = _power_sum(square, order // 2, xp=xp)
    return (eye + r) @ inner if order % 2 == 0 else eye + (r + square) @ inner


def _power_sum_jvp(r: Array, dr: Array, order: int, *, xp: Namespace) -> tuple[Array, Array]:
    """`_power_sum` and its derivative along `dr`."""
    eye = _identity(r, 1.0, xp=xp)
    if order == 2:
        return eye + r, dr
    square, dsquare = r @ r, dr @ r + r @ dr
    if order == 3:
        return eye + r + square, dr + dsquare
    inner, dinner = _power_sum_jvp(square, dsquare, order // 2, xp=xp)
    if order % 2 == 0:
        return (eye + r) @ inner, dr @ inner + (eye + r) @ dinner
    head = r + square
    return eye + head @ inner, (dr + dsquare) @ inner + head @ dinner


def _step_counts(name: str, steps: Any, max_steps: int | None) -> tuple[int, Array | None]:
    """Length of the loop, and the steps per matrix where they differ."""
    if is_float(steps) or not hasattr(steps, "shape"):
        return host_count(name, "steps", steps), None
    if max_steps is None:
        message = f"{name}: max_steps must be given where steps is an array; got None. Pass the largest count as an int."
        raise ParameterError(message)
    return host_count(name, "max_steps", max_steps), steps


def _check_start(name: str, start: Array | None, scale: Any, dstart: Array | None = None) -> None:
    """One of `start` and `scale`; `dstart` only beside a `start`."""
    if (start is None) == (scale is None):
        given = "both" if start is not None else "neither"
        message = f"{name}: exactly one of start and scale must be given; got {given}. Pass scale for a start c I, or the start itself."
        raise ParameterError(message)
    if dstart is not None and start is None:
        message = f"{name}: dstart must be None where scale is given; got an array. A start c I is constant; pass it as start to move it."
        raise ParameterError(message)


def _chebyshev_schedule(
    name: str, lo: Any, hi: Any, steps: int, polish: int, counts: Array | None, *, power: int, like: Array, xp: Namespace
) -> tuple[Any, list[Any]]:
    """Scale of the start, and the factor 1 + 1/tau_2n of each step (None: 1), in the real type of `like`."""
    check_interval(name, lo, hi)
    polish = host_count(name, "polish", polish)
    scale, delta = start_and_growth(lo, hi, power=power, like=like, xp=xp)
    real = _arrays.real_dtype(like.dtype, xp=xp)
    factors: list[Any] = []
    for step in range(steps):
        delta = double(delta, xp=xp)
        factor: Any = 1 + 1 / (1 + delta)
        if counts is not None:  # members beyond their scaled steps are being polished
            ones = xp.astype(xp.ones_like(counts), real)
            scaled = factor * ones if is_float(factor) else xp.astype(factor, real) * ones
            factor = xp.where(counts > step, scaled, ones)
        factors.append(factor)
    factors.extend([None] * polish)
    return scale, factors
