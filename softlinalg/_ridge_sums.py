r"""The sums over rows from which a ridge regression follows: centered moments of features and targets, in float64.

With weights s, features F_i and targets y_i: the means :math:`\bar F = \sum s_i F_i / \sum s_i` and :math:`\bar y`, and the centered
sums :math:`\sum s_i (F_i - \bar F)^T (F_i - \bar F)`, :math:`\sum s_i (F_i - \bar F)^T (y_i - \bar y)` and
:math:`\sum s_i (y_i - \bar y)^2`. Chunks of rows give sums of their own, which `merge_ridge_sums` joins without loss of digits,
however far the targets are from zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from softlinalg import _arrays, _inputs
from softlinalg._nystrom_core import Wide
from softlinalg._nystrom_decomposition import NystromDecomposition
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError, RangeError, ShapeError

__all__ = [
    "RidgeSums",
    "check_size",
    "checked_targets",
    "checked_weights",
    "decomposition_rows",
    "decomposition_sums",
    "merge_ridge_sums",
    "ridge_sums",
    "sums_from_moments",
]


class RidgeSums(NamedTuple):
    """What `ridge_sums` returns; all arrays are float64, on the host where the device has none."""

    rows: float
    """How many rows these are for cross-validation: the sum of the weights, unless they are not counts of rows."""
    weight: float
    """Sum of the weights."""
    feature_mean: Array
    """Weighted mean of the features, shape (r,)."""
    target_mean: Array
    """Weighted mean of the targets, shape (k,)."""
    gram: Array
    """Centered F^T S F, shape (r, r)."""
    cross: Array
    """Centered F^T S y, shape (r, k)."""
    squares: Array
    """Centered sum of s y^2, shape (k,)."""


LARGEST_TARGET = 2.0**480
"""Of targets that are squared: the sum of 2**60 squares of their differences is still finite."""


def checked_targets(y: Array, n: int, *, func: str, name: str = "y", are_squared: bool = True, xp: Namespace) -> Array:
    """Targets as a matrix (n, k), finite, and of a size that can be squared.

    Raises
    ------
    ShapeError, NonFiniteError, RangeError
    """
    if y.ndim not in (1, 2) or y.shape[0] != n or 0 in y.shape:
        message = f"{func}: {name} must have shape ({n},) or ({n}, k); got {tuple(y.shape)}. Pass one target per row of the data."
        raise ShapeError(message)
    _inputs.check_finite(y, func=func, name=name, xp=xp)
    if are_squared:
        check_size(_arrays.to_float(xp.max(xp.abs(_arrays.detach(y)))), func=func, name=name)
    return y[:, None] if y.ndim == 1 else y


def check_size(largest: float, *, func: str, name: str) -> None:
    """Raise RangeError where squares of targets would overflow."""
    if largest > LARGEST_TARGET:
        message = f"{func}: {name} must be at most {LARGEST_TARGET:.2g} in size, as they are squared; got {largest:.3g}. Rescale them."
        raise RangeError(message)


def checked_weights(weights: Array, n: int, *, func: str, name: str = "weights", xp: Namespace) -> None:
    """Raise unless there is one finite weight >= 0 per row.

    Raises
    ------
    ShapeError, NonFiniteError, ParameterError
    """
    if tuple(weights.shape) != (n,):
        message = f"{func}: {name} must have shape ({n},); got {tuple(weights.shape)}. Pass one weight per row of the data."
        raise ShapeError(message)
    _inputs.check_finite(weights, func=func, name=name, xp=xp)
    if n and float(xp.min(weights)) < 0:
        message = f"{func}: {name} must not be negative; got a smallest weight of {float(xp.min(weights)):.3g}. Remove or clip those."
        raise ParameterError(message)


def ridge_sums(features: Any, targets: Any, weights: Any = None, *, rows: float | None = None) -> RidgeSums:
    """The sums of one chunk of rows.

    Parameters
    ----------
    features : array, shape (b, r)
    targets : array, shape (b,) or (b, k)
    weights : array, shape (b,), optional
        Not negative; a row of weight 2 counts as two rows. Default: ones.
    rows : float, optional
        How many rows these are, where the weights do not say: such as costs of classes. Default: the sum of the weights.

    Returns
    -------
    RidgeSums

    Raises
    ------
    ShapeError, NonFiniteError, DTypeError, BackendMismatchError
    ParameterError
        A negative weight.

    Notes
    -----
    O(b r^2) time; a copy of the chunk in float64.
    """
    func = "ridge_sums"
    xp, (features, targets, weights), _ = _inputs.prepare(
        func, {"features": features, "targets": targets, "weights": weights}, optional=("weights",)
    )
    if features.ndim != 2:
        message = f"{func}: features must have shape (b, r); got {tuple(features.shape)}. Pass one row per sample."
        raise ShapeError(message)
    n = int(features.shape[0])
    wide = Wide(features, xp=xp)
    f, y = wide.widen(features), wide.widen(checked_targets(targets, n, func=func, name="targets", xp=xp))
    if weights is None:
        s, weight = None, float(n)
    else:
        checked_weights(weights, n, func=func, xp=xp)
        s = wide.widen(weights)[:, None]
        weight = float(wide.xp.sum(s))
    scale = 1 / weight if weight else 0.0
    feature_mean = scale * wide.xp.sum(f if s is None else s * f, axis=0)
    target_mean = scale * wide.xp.sum(y if s is None else s * y, axis=0)
    f, y = f - feature_mean, y - target_mean
    left, right = (f, y) if s is None else (s * f, s * y)
    transposed = wide.xp.matrix_transpose(left)
    rows = weight if rows is None else rows
    return RidgeSums(rows, weight, feature_mean, target_mean, transposed @ f, transposed @ y, wide.xp.sum(right * y, axis=0))


def merge_ridge_sums(a: RidgeSums, b: RidgeSums) -> RidgeSums:
    r"""The sums of two chunks together: the centered moments plus :math:`s_a s_b / (s_a + s_b)` times products of differences of means.

    References
    ----------
    .. [1] Chan, Golub & LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
    """
    if a.weight == 0 or b.weight == 0:
        return (b if a.weight == 0 else a)._replace(rows=a.rows + b.rows)
    weight = a.weight + b.weight
    share = b.weight / weight
    df, dy = b.feature_mean - a.feature_mean, b.target_mean - a.target_mean
    scale = a.weight * share
    return RidgeSums(
        a.rows + b.rows,
        weight,
        a.feature_mean + share * df,
        a.target_mean + share * dy,
        a.gram + b.gram + (scale * df)[:, None] * df[None, :],
        a.cross + b.cross + (scale * df)[:, None] * dy[None, :],
        a.squares + b.squares + scale * dy * dy,
    )


def sums_from_moments(
    gram: Array, cross: Array, squares: Array, feature_sum: Array, target_sum: Array, weight: float, rows: float, *, target_shift: Array
) -> RidgeSums:
    """Centered sums from plain ones, such as a pass over chunks adds up.

    Parameters
    ----------
    gram, cross, squares : arrays, shapes (r, r), (r, k), (k,), float64
        F^T S F, F^T S (y - shift) and the sum of s (y - shift)^2.
    feature_sum, target_sum : arrays, shapes (r,), (k,)
        Sums of s F and of s (y - shift).
    weight : float
        Sum of the weights.
    rows : float
        How many rows these are: usually `weight`.
    target_shift : array, shape (k,)
        What was subtracted from the targets, roughly their mean: the closer, the fewer digits are lost.
    """
    scale = 1 / weight if weight else 0.0
    feature_mean, target_mean = scale * feature_sum, scale * target_sum
    return RidgeSums(
        rows,
        weight,
        feature_mean,
        target_mean + target_shift,
        gram - feature_sum[:, None] * feature_mean[None, :],
        cross - feature_sum[:, None] * target_mean[None, :],
        squares - target_sum * target_mean,
    )


def decomposition_sums(
    d: NystromDecomposition, y: Any, weights: Any = None, *, rows: float | None = None, func: str = "decomposition_sums"
) -> RidgeSums:
    """The sums over all rows of a decomposition, from its features.

    Parameters
    ----------
    d : NystromDecomposition
    y : array, shape (n,) or (n, k)
    weights : array, shape (n,), optional
    rows : float, optional
        As in `ridge_sums`.

    Notes
    -----
    One pass over the features. Without weights the Gram matrix is the one that the decomposition has: O(n r k) time, else O(n r^2).
    """
    xp, (y, weights, _), _ = _inputs.prepare(func, {"y": y, "weights": weights, "landmarks": d.landmarks}, optional=("weights",))
    n, wide, wxp = d.shape[0], d._wide, d._wide.xp
    y = wide.widen(_arrays.detach(checked_targets(y, n, func=func, xp=xp)))
    if weights is not None:
        checked_weights(weights, n, func=func, xp=xp)
        weights = wide.widen(_arrays.detach(weights))[:, None]
    shift = _typical(y, weights, xp=wxp)
    k = int(y.shape[1])
    gram, cross, feature_sum = wide.zeros(d.rank, d.rank), wide.zeros(d.rank, k), wide.zeros(d.rank)
    squares, target_sum = wide.zeros(k), wide.zeros(k)
    for start, stop, features in d._blocks():
        f, part = wide.widen(features), y[start:stop, :] - shift
        left, right = (f, part) if weights is None else (weights[start:stop, :] * f, weights[start:stop, :] * part)
        gram = gram + wxp.matrix_transpose(left) @ f
        cross = cross + wxp.matrix_transpose(left) @ part
        feature_sum = feature_sum + wxp.sum(left, axis=0)
        target_sum = target_sum + wxp.sum(right, axis=0)
        squares = squares + wxp.sum(right * part, axis=0)
    weight = float(n) if weights is None else float(wxp.sum(weights))
    if not (weight > 0 and math.isfinite(weight)):
        message = f"{func}: weights must have a positive, finite sum; got {weight}. Give some row a weight."
        raise ParameterError(message)
    rows = weight if rows is None else rows
    return sums_from_moments(gram, cross, squares, feature_sum, target_sum, weight, rows, target_shift=shift)


def decomposition_rows(d: NystromDecomposition, y: Array, weights: Array | None = None) -> Iterator[tuple[Array, Array, Array | None]]:
    """Features (b, r), targets (b, k) and weights (b,) block by block in float64: what leave-one-out looks at in its second pass."""
    y = y[:, None] if y.ndim == 1 else y
    y = d._wide.widen(y)
    s = None if weights is None else d._wide.widen(weights)
    for start, stop, features in d._blocks():
        yield d._wide.widen(features), y[start:stop, :], None if s is None else s[start:stop]


def _typical(y: Array, weights: Array | None, *, xp: Namespace) -> Array:
    """Weighted mean of the columns; of a sum that may overflow nothing is asked: targets are finite and squared later anyway."""
    if weights is None:
        return xp.mean(y, axis=0)
    total = xp.sum(weights)
    safe = xp.where(total > 0, total, xp.ones_like(total))
    return xp.sum(weights * y, axis=0) / safe
