r"""Linear systems with F F^T + ridge I, F tall and thin, in float64 whatever the dtype of F.

With F^T F = U diag(g) U^T, Woodbury's identity reads (F F^T + ridge I)^-1 b = (b - F U diag(1 / (g + ridge)) U^T F^T b) / ridge.
It subtracts nearly equal numbers where g >> ridge: in float32 the backward error of the result would be u g_1 / ridge. In
float64, with one or two steps of refinement, it is that of rounding the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from softlinalg import _arrays
from softlinalg._nystrom_core import RowStore, Wide
from softlinalg._typing import Array, Namespace
from softlinalg.errors import NumericalError

__all__ = ["column_norms", "core_product", "preconditioner_core", "ridge_solve"]

MAX_REFINEMENTS = 8
"""Each step divides the error by about ridge / (u g_1) in float64; two are usual."""

LARGEST = 1e300
"""Entries of the solution beyond this are refused before they overflow."""

Blocks = Callable[[], Iterator[tuple[int, int, Array]]]
"""Called anew for each pass over the rows: yields (start, stop, features)."""


def ridge_solve(
    blocks: Blocks, b: Array, eigenvalues: Array, rotation: Array, ridge: float, *, unit: float, func: str, wide: Wide
) -> Array:
    """Solve (F F^T + ridge I) y = b.

    Parameters
    ----------
    blocks : callable
        A pass over F, shape (n, r).
    b : array, shape (n, k), float64 (`Wide`)
    eigenvalues, rotation : arrays, shapes (r,), (r, r), float64
        Of F^T F.
    ridge : float
        Positive.
    unit : float
        Rounding of the dtype in which the result is wanted.

    Returns
    -------
    array, shape (n, k), float64

    Raises
    ------
    NumericalError
        The backward error is more than 16 units: the result would overflow, or nearly.

    Notes
    -----
    Two passes over F per step of refinement, and two before the first.
    """
    xp = wide.xp
    norm = float(xp.max(eigenvalues)) + ridge if eigenvalues.shape[0] else ridge

    def core(t: Array) -> Array:
        return rotation @ ((xp.matrix_transpose(rotation) @ t) / (eigenvalues + ridge)[:, None])

    def corrected(y: Array | None, rest: Array, t: Array) -> tuple[Array, Array]:
        """y + the solution for the right-hand side `rest`, with t = F^T rest; and F^T of the sum."""
        coefficients, w = core(t), xp.zeros_like(t)
        store = RowStore(tuple(b.shape), b, wide.dtype, func=func, xp=xp)
        for start, stop, features in blocks():
            f = wide.widen(features)
            part = (rest[start:stop, :] - f @ coefficients) / ridge
            part = part if y is None else y[start:stop, :] + part
            store.put(start, stop, part)
            w = w + xp.matrix_transpose(f) @ part
        return store.result(), w

    def residual(y: Array, w: Array) -> tuple[Array, Array, float]:
        """b - A y, F^T of it, and the backward error of y; w = F^T y."""
        t = xp.zeros_like(w)
        store = RowStore(tuple(b.shape), b, wide.dtype, func=func, xp=xp)
        for start, stop, features in blocks():
            f = wide.widen(features)
            part = b[start:stop, :] - f @ w - ridge * y[start:stop, :]
            store.put(start, stop, part)
            t = t + xp.matrix_transpose(f) @ part
        rest = store.result()
        return rest, t, _backward_error(rest, y, b, norm, xp=xp)

    message = f"{func}: ridge must be large enough to divide by; got {ridge:.3g} beside eigenvalues up to {norm:.3g}. Pass a larger one."
    if b.shape[1] and float(xp.max(xp.abs(b))) / ridge > LARGEST:
        raise NumericalError(message)
    t = wide.zeros(eigenvalues.shape[0], b.shape[1])
    for start, stop, features in blocks():
        t = t + xp.matrix_transpose(wide.widen(features)) @ b[start:stop, :]
    y, w = corrected(None, b, t)
    rest, t, error = residual(y, w)
    for _ in range(MAX_REFINEMENTS):
        if error <= 2 * _arrays.eps(wide.dtype):
            break
        better, w = corrected(y, rest, t)
        rest, t, new_error = residual(better, w)
        if not new_error < error:
            break
        y, error = better, new_error
    if not error <= 16 * unit:
        raise NumericalError(message)
    return y


def _backward_error(rest: Array, y: Array, b: Array, norm: float, *, xp: Namespace) -> float:
    """Largest over the columns of |rest| / (norm |y| + |b|)."""
    if b.shape[0] == 0 or b.shape[1] == 0:
        return 0.0
    size = norm * column_norms(y, xp=xp) + column_norms(b, xp=xp)
    return float(xp.max(column_norms(rest, xp=xp) / xp.where(size > 0, size, xp.ones_like(size))))


def column_norms(a: Array, *, xp: Namespace) -> Array:
    """Euclidean norms of the columns; nothing overflows that need not."""
    largest = xp.max(xp.abs(a), axis=0)
    scale = xp.where(largest > 0, largest, xp.ones_like(largest))
    with _arrays.quiet(a):
        return scale * xp.sqrt(xp.sum((a / scale) ** 2, axis=0))


def core_product(blocks: Blocks, core: Array, v: Array, *, func: str, wide: Wide) -> Array:
    """F core F^T v for v of shape (n, k) in float64 (`Wide`), by two passes over F."""
    t = wide.zeros(core.shape[0], int(v.shape[1]))
    for start, stop, features in blocks():
        t = t + wide.xp.matrix_transpose(wide.widen(features)) @ v[start:stop, :]
    coefficients = core @ t
    store = RowStore(tuple(v.shape), v, wide.dtype, func=func, xp=wide.xp)
    for start, stop, features in blocks():
        store.put(start, stop, wide.widen(features) @ coefficients)
    return store.result()


def preconditioner_core(eigenvalues: Array, rotation: Array, ridge: float, *, wide: Wide) -> Array:
    r"""The matrix S, shape (r, r), for which P^-1 = I + F S F^T is the Nystrom preconditioner.

    Frangella, Tropp & Udell (2023) give P^-1 = (g_r + ridge) V (diag(g) + ridge I)^-1 V^T + (I - V V^T), where V = F U g^(-1/2)
    are the eigenvectors of the approximation and g_r its smallest eigenvalue. Directions whose eigenvalue is rounding are
    left out of V.
    """
    xp = wide.xp
    if eigenvalues.shape[0] == 0:
        return rotation
    usable = eigenvalues > eigenvalues.shape[0] * _arrays.eps(wide.dtype) * xp.max(eigenvalues)
    smallest = xp.min(xp.where(usable, eigenvalues, xp.full_like(eigenvalues, float("inf"))))
    safe = xp.where(usable, eigenvalues, xp.ones_like(eigenvalues))
    weights = xp.where(usable, (smallest / safe - 1) / (safe + ridge), xp.zeros_like(safe))
    return (rotation * weights) @ xp.matrix_transpose(rotation)
