r"""Scaled distances between two sets of points: one matrix product where that is accurate, differences where it is not.

With a common point c taken off both sets and z = (x - c) / l, w = (y - c) / l, the exponent of the Gaussian kernel is

.. math:: -|x - y|^2 / (2 l^2) = [z, -|z|^2/2, 1] \cdot [w, 1, -|w|^2/2],

one product of inner dimension d + 2. Its rounding error is at most about (d + 2) u (|z|^2 + |w|^2), u the unit roundoff.
As |z|^2 + |w|^2 <= 5 max(|z - w|^2, min(|z|, |w|)^2), that is a small multiple of u times the exponent itself unless *both*
points lie far from c. Only those pairs are computed anew: in float64 if the data are float32, from differences otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from softlinalg import _arrays
from softlinalg._typing import Array, DType, Namespace
from softlinalg.errors import ParameterError, ShapeError

__all__ = ["GaussianColumns", "check_points", "difference_sums", "inverse_scale", "squared_distances"]

_SATURATION = 2.0**40
"""Scaled coordinates stop here: their squares stay finite in float32, and a near point is at kernel value zero from there."""

_CENTER_ROWS = 1024
"""Rows looked at for the center; any center is right, a central one is accurate."""

_DIFFERENCE_ENTRIES = 2**22
"""Largest (rows, m, d) array of differences: 32 MiB in float64."""


def near_limit(dtype: DType) -> float:
    """Largest |z|^2 for which the product form is accurate enough: an exponent error of 1e-5 in float32, 1e-11 in float64."""
    return 1e-5 * 2.0**24 if _arrays.eps(dtype) > 2.0**-50 else 1e-11 * 2.0**53


def check_points(x: Array, y: Array | None, *, func: str) -> None:
    """Raise ShapeError unless `x` (..., n, d) and `y` (..., m, d) are sets of points with the same d >= 1."""
    for name, points in (("x", x), ("y", y)):
        if points is None:
            continue
        if points.ndim < 2:
            message = f"{func}: {name} must have shape (..., n, d), one row per point; got {tuple(points.shape)}. Reshape it to (n, d)."
            raise ShapeError(message)
        if points.shape[-1] == 0:
            message = f"{func}: {name} must have at least one feature; got shape {tuple(points.shape)}. Pass points with d >= 1."
            raise ShapeError(message)
    if y is not None and x.shape[-1] != y.shape[-1]:
        message = (
            f"{func}: x and y must have the same number of features; got {x.shape[-1]} and {y.shape[-1]}. Use the same columns in both."
        )
        raise ShapeError(message)


def inverse_scale(length_scale: float | tuple[float, ...], like: Array, *, func: str, xp: Namespace) -> float | Array:
    """1 / length_scale as a float, or as an array of shape (d,) with dtype and device of `like`."""
    values = length_scale if isinstance(length_scale, tuple) else (length_scale,)
    limit = 2.0**124 if _arrays.eps(like.dtype) > 2.0**-50 else 2.0**1020
    for value in values:
        if not 1 / limit <= value <= limit:
            message = (
                f"{func}: length_scale must lie between {1 / limit:.3g} and {limit:.3g} for {_arrays.dtype_name(like.dtype)} arithmetic; "
                f"got {value:.3g}. Rescale the data, or pass float64."
            )
            raise ParameterError(message)
    if not isinstance(length_scale, tuple):
        return 1 / length_scale
    if len(length_scale) != like.shape[-1]:
        message = (
            f"{func}: length_scale must be one number or one per feature; got {len(length_scale)} for {like.shape[-1]} features. "
            "Pass as many numbers as columns."
        )
        raise ShapeError(message)
    return xp.asarray([1 / value for value in length_scale], dtype=like.dtype, device=_arrays.device_of(like))


def center_of(y: Array, *, xp: Namespace) -> Array:
    """A central point of each set, (..., 1, d): per feature the middle value of up to 1024 rows.

    A value of the data, not a mean: it cannot overflow, is not moved by outliers, and moves exactly with the points.
    """
    rows = y.shape[-2]
    if rows == 0:
        return _arrays.zeros_like_shape((*y.shape[:-2], 1, y.shape[-1]), y, xp=xp)
    seen = y[..., :: -(-rows // _CENTER_ROWS), :]
    middle = seen.shape[-2] // 2
    return _arrays.detach(xp.sort(seen, axis=-2)[..., middle : middle + 1, :])


class GaussianColumns:
    """The exponents -|x - y|^2 / (2 l^2) for one set `y`: everything that depends on `y` alone is computed once.

    Parameters
    ----------
    y : array, shape (..., m, d)
        Points, float32 or float64.
    inverse : float or array, shape (d,)
        1 / length scale.
    """

    def __init__(self, y: Array, inverse: float | Array, *, func: str, xp: Namespace) -> None:
        self.y, self.inverse, self.func, self.xp = y, inverse, func, xp
        self.limit = near_limit(y.dtype)
        self.center = center_of(y, xp=xp)
        z, squared = self._scaled(y)
        self.far = squared[..., 0] > self.limit  # (..., m)
        self.augmented = xp.matrix_transpose(xp.concat([z, xp.ones_like(squared), -squared / 2], axis=-1))  # (..., d + 2, m)

    def _scaled(self, x: Array) -> tuple[Array, Array]:
        """(x - c) / l, saturated, and its squared norms (..., n, 1). Halves, so that the difference cannot overflow."""
        xp = self.xp
        z = (x / 2 - self.center / 2) * (2 * self.inverse)
        z = xp.where(xp.abs(z) > _SATURATION, _SATURATION * xp.sign(z), z)
        z = xp.where(xp.isfinite(x), z, xp.full_like(z, math.nan))  # only traced values come here unchecked
        return z, xp.sum(z * z, axis=-1, keepdims=True)

    def __call__(self, x: Array) -> Array:
        """Exponents (..., n, m), at most zero; differentiable, nothing is written in place."""
        xp = self.xp
        z, squared = self._scaled(x)
        exponents = xp.concat([z, -squared / 2, xp.ones_like(squared)], axis=-1) @ self.augmented
        if not _arrays.is_traced(x, self.y) and 0 not in exponents.shape:
            exponents = self._replace_far(exponents, x, squared[..., 0] > self.limit)
        # The excess over zero is rounding: taken off as a constant, so that near pairs keep their gradient.
        return exponents - _arrays.detach(xp.where(exponents > 0, exponents, xp.zeros_like(exponents)))

    def _replace_far(self, exponents: Array, x: Array, far: Array) -> Array:
        """The exponents of pairs of two far points computed anew, the others as they are."""
        xp = self.xp
        if not (bool(xp.any(far)) and bool(xp.any(self.far))):
            return exponents
        rows, row_place = _places(far, xp=xp)
        columns, column_place = _places(self.far, xp=xp)
        x_far, y_far = xp.take(x, rows, axis=-2), xp.take(self.y, columns, axis=-2)
        wide = _arrays.wide_dtype(x, xp=xp)
        if wide != x.dtype:
            inverse = self.inverse if isinstance(self.inverse, float) else xp.astype(self.inverse, wide)
            again = GaussianColumns(xp.astype(y_far, wide), inverse, func=self.func, xp=xp)(xp.astype(x_far, wide))
            again = xp.astype(again, x.dtype)
        else:
            again = difference_sums(x_far, y_far, self.inverse, _half_square, xp=xp)
        again = xp.take(xp.take(again, row_place, axis=-2), column_place, axis=-1)
        return xp.where(far[..., :, None] & self.far[..., None, :], again, exponents)


def _half_square(z: Array) -> Array:
    return -(z * z) / 2


def _places(chosen: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Positions chosen in any member of the batch, and for each position its place among them (0 where not chosen)."""
    anywhere = xp.any(xp.reshape(chosen, (-1, chosen.shape[-1])), axis=0)
    (positions,) = xp.nonzero(anywhere)
    order = xp.cumulative_sum(xp.astype(anywhere, positions.dtype))
    return positions, xp.where(anywhere, order - 1, xp.zeros_like(order))


def difference_sums(x: Array, y: Array, inverse: float | Array, term: Callable[[Array], Array], *, xp: Namespace) -> Array:
    """Sum over features of term((x - y) / l), shape (..., n, m), from differences: right at any distance, slower than a product.

    Blocks of rows keep the array of differences below `_DIFFERENCE_ENTRIES`. Differences that overflow are infinite, as they should.
    """
    half_y = y / 2
    n, m, d = x.shape[-2], y.shape[-2], x.shape[-1]
    batch = math.prod(x.shape[:-2]) if x.ndim >= y.ndim else math.prod(y.shape[:-2])
    step = max(1, n if _arrays.is_traced(x, y) else _DIFFERENCE_ENTRIES // max(1, batch * m * d))
    parts = []
    for start in range(0, max(n, 1), step):
        half_x = x[..., start : start + step, :] / 2
        z = (half_x[..., :, None, :] - half_y[..., None, :, :]) * (2 * inverse)
        parts.append(xp.sum(term(z), axis=-1))
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-2)


def squared_distances(x: Array, y: Array | None = None) -> Array:
    r"""Squared Euclidean distances between two sets of points.

    Parameters
    ----------
    x : array, shape (..., n, d)
        Points, real.
    y : array, shape (..., m, d), optional
        Points in the units of `x`. Default: `x` itself; the result is then symmetric, bit for bit, with a zero diagonal.

    Returns
    -------
    array, shape (..., n, m)
        :math:`|x_i - y_j|^2 >= 0`. Infinite where the square overflows the data type.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, BackendMismatchError

    Notes
    -----
    One product of O(n m d) after both sets are centered and scaled by an exact power of two; the absolute error is about
    (d + 2) u R^2, R the largest distance of a point from the center (of the order of the square root of it for the distance itself).
    """
    func = "squared_distances"
    xp, (x, y), dtype = _arrays.prepare(func, {"x": x, "y": y})
    check_points(x, y, func=func)
    for name, points in (("x", x), ("y", y)):
        if points is not None:
            _arrays.check_finite(points, func=func, name=name, xp=xp)
    compute = _arrays.compute_dtype(dtype, xp=xp)
    x = xp.astype(x, compute, copy=False)
    other = x if y is None else xp.astype(y, compute, copy=False)
    center = center_of(other, xp=xp)
    z, w = x / 2 - center / 2, other / 2 - center / 2
    exponent = xp.maximum(_exponent_of(z, xp=xp), _exponent_of(w, xp=xp))
    z, w = (_arrays.scale_by_power_of_two(points, -exponent, xp=xp) for points in (z, w))
    squares = xp.sum(z * z, axis=-1)[..., :, None] + xp.sum(w * w, axis=-1)[..., None, :]
    result = squares - 2 * (z @ xp.matrix_transpose(w))
    result = result - _arrays.detach(xp.where(result < 0, result, xp.zeros_like(result)))
    if y is None:
        result = mirror(result, 0.0, xp=xp)
    # 2^(2e+2), in two steps of the square root of it: neither overflows while the result is in range.
    for _ in range(2):
        result = _arrays.scale_by_power_of_two(result, exponent + 1, xp=xp)
    return xp.astype(result, dtype, copy=False)


def _exponent_of(z: Array, *, xp: Namespace) -> Array:
    """Whole number e with entries of `z` below 2**e, per matrix; a constant to differentiation."""
    return _arrays.detach(_arrays.binary_exponent(_arrays.largest_entry(z, xp=xp), xp=xp))


def mirror(values: Array, diagonal: float, *, xp: Namespace) -> Array:
    """A symmetric matrix (..., n, n) from the upper triangle of `values`, with the diagonal given."""
    n = values.shape[-1]
    index = xp.arange(n, device=_arrays.device_of(values))
    above, below = index[:, None] < index[None, :], index[:, None] > index[None, :]
    full = xp.where(above, values, xp.full_like(values, diagonal))
    return xp.where(below, xp.matrix_transpose(values), full)
