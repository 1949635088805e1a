r"""Scaled distances between two sets of points: one matrix product where that is accurate, differences where it is not.

With a common point c taken off both sets and z = (x - c) / l, w = (y - c) / l, the exponent of the Gaussian kernel is

.. math:: -|x - y|^2 / (2 l^2) = [z, -|z|^2/2, 1] \cdot [w, 1, -|w|^2/2],

one product of inner dimension d + 2. Its rounding error is at most about (d + 2) u (|z|^2 + |w|^2), u the unit roundoff.
As |z|^2 + |w|^2 <= 5 max(|z - w|^2, min(|z|, |w|)^2), that is a small multiple of u times the exponent itself unless *both*
points lie far from c. Only those pairs are computed anew: in float64 if the data are float32, from differences otherwise.
"""

from __future__ import annotations

import math
from typing import Any

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._typing import Array, DType, Namespace
from softlinalg.errors import ParameterError, ShapeError

__all__ = ["DifferenceColumns", "GaussianColumns", "center_of", "check_points", "inverse_scale", "mirror", "squared_distances"]

_SATURATION = 2.0**40
"""Scaled coordinates stop here: their squares stay finite in float32, and points that far from a near one are at kernel value zero."""

_CENTER_ROWS = 1024
"""Rows looked at for the center: any center is right, a central one is accurate."""

_FAR_SHARE = 1 / 8
"""A block in which more pairs than this need care is computed carefully as a whole."""

_DIFFERENCE_ENTRIES = 2**22
"""Largest array of differences (rows, m, d): 32 MiB in float64."""


def near_limit(dtype: DType) -> float:
    """Largest |z|^2 for which u |z|^2 is small enough in an exponent: 1e-5 in float32 (168), 1e-11 in float64 (90,000)."""
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
        got = f"{x.shape[-1]} and {y.shape[-1]}"
        message = f"{func}: x and y must have the same number of features; got {got}. Use the same columns in both."
        raise ShapeError(message)
    if y is not None:
        _inputs.check_batches(func, x=x, y=y)


def inverse_scale(length_scale: float | tuple[float, ...], like: Array, *, func: str, xp: Namespace) -> float | Array:
    """1 / length_scale as a float, or as an array of shape (d,) with dtype and device of `like`."""
    values = length_scale if isinstance(length_scale, tuple) else (length_scale,)
    limit = 2.0**124 if _arrays.eps(like.dtype) > 2.0**-50 else 2.0**1020
    for value in values:
        if not 1 / limit <= value <= limit:
            need = f"lie between {1 / limit:.3g} and {limit:.3g} for {_arrays.dtype_name(like.dtype)} arithmetic"
            message = f"{func}: length_scale must {need}; got {value:.3g}. Rescale the data, or pass float64."
            raise ParameterError(message)
    if not isinstance(length_scale, tuple):
        return 1 / length_scale
    if len(length_scale) != like.shape[-1]:
        got = f"{len(length_scale)} for {like.shape[-1]} features"
        message = f"{func}: length_scale must be one number or one per feature; got {got}. Pass as many numbers as columns."
        raise ShapeError(message)
    return xp.asarray([1 / value for value in length_scale], dtype=like.dtype, device=_arrays.device_of(like))


def center_of(y: Array, *, xp: Namespace) -> Array:
    """A central point of each set, (..., 1, d): per feature the middle value of up to 1024 rows.

    A value of the data, not a mean: it cannot overflow, is not moved by outliers, and moves exactly with the points.
    """
    rows = y.shape[-2]
    if rows == 0:
        return _arrays.zeros_like_shape((*y.shape[:-2], 1, y.shape[-1]), y, xp=xp)
    if not isinstance(rows, int):  # a symbol, in a program for any number of rows, which compilers cannot choose rows by
        return xp.mean(_arrays.detach(y), axis=-2, keepdims=True)
    seen = _arrays.detach(y)[..., :: -(-rows // _CENTER_ROWS), :]
    return _arrays.middle_row(seen, xp=xp)


def mirror(values: Array, diagonal: float, *, xp: Namespace) -> Array:
    """A symmetric matrix (..., n, n) from the upper triangle of `values`, with the diagonal given."""
    n = values.shape[-1]
    index = xp.arange(n, device=_arrays.device_of(values))
    above, below = index[:, None] < index[None, :], index[:, None] > index[None, :]
    full = xp.where(above, values, xp.full_like(values, diagonal))
    return xp.where(below, xp.matrix_transpose(values), full)


def _without_positives(values: Array, *, xp: Namespace) -> Array:
    """min(values, 0), where the excess is rounding: taken off as a constant, so that near pairs keep their gradient."""
    return values - _arrays.detach(xp.where(values > 0, values, xp.zeros_like(values)))


class GaussianColumns:
    """The exponents -|x - y|^2 / (2 l^2) for one set `y`: what depends on `y` alone is computed once.

    Parameters
    ----------
    y : array, shape (..., m, d)
        Points, finite, float32 or float64.
    inverse : float or array, shape (d,)
        1 / length scale.
    center : array, shape (..., 1, d), optional
        A central point, constant to differentiation. Default: `center_of`.
    """

    def __init__(self, y: Array, inverse: float | Array, *, func: str, xp: Namespace, center: Array | None = None) -> None:
        self.y, self.inverse, self.func, self.xp = y, inverse, func, xp
        self.limit = near_limit(y.dtype)
        self.center = center_of(y, xp=xp) if center is None else center
        self.z, squared = self._scaled(y)
        self.far = squared[..., 0] > self.limit  # (..., m)
        self.augmented = xp.matrix_transpose(xp.concat([self.z, xp.ones_like(squared), -squared / 2], axis=-1))  # (..., d + 2, m)
        self._left: Any = None
        self._careful: Any = None
        self._largest = 0.0

    def _scaled(self, x: Array) -> tuple[Array, Array]:
        """(x - c) / l, saturated, and its squared norms (..., n, 1). Halved first, so that the difference cannot overflow."""
        xp = self.xp
        z = (x / 2 - self.center / 2) * (2 * self.inverse)
        z = _saturated(z, xp=xp)
        if _arrays.is_traced(x):  # eager arrays are finite here; traced ones answer infinity with NaN
            z = xp.where(xp.isfinite(x), z, xp.full_like(z, math.nan))
        return z, xp.sum(z * z, axis=-1, keepdims=True)

    def __call__(self, x: Array) -> Array:
        """Exponents (..., n, m), at most zero; differentiable, nothing is written in place. `x` is finite unless traced."""
        xp = self.xp
        z, squared = self._scaled(x)
        exponents = xp.concat([z, -squared / 2, xp.ones_like(squared)], axis=-1) @ self.augmented
        far = squared[..., 0] > self.limit
        if self._both_far(far):
            exponents = self._replace_far(exponents, x, far)
        return _without_positives(exponents, xp=xp)

    def _both_far(self, far: Array) -> bool:
        """Are there points far from the center on both sides? (Traced values cannot be asked: the product form serves alone.)"""
        if _arrays.is_traced(far, self.far):
            return False
        return bool(self.xp.any(far)) and bool(self.xp.any(self.far))

    def _replace_far(self, exponents: Array, x: Array, far: Array) -> Array:
        """The exponents of pairs of two far points computed anew, the others as they are."""
        xp = self.xp
        rows, row_place = _places(far, xp=xp)
        columns, column_place = _places(self.far, xp=xp)
        x_far, y_far = xp.take(x, rows, axis=-2), xp.take(self.y, columns, axis=-2)
        wide = _arrays.wide_dtype(x, xp=xp)
        if wide != x.dtype:
            inverse = self.inverse if isinstance(self.inverse, float) else xp.astype(self.inverse, wide)
            again = GaussianColumns(xp.astype(y_far, wide), inverse, func=self.func, xp=xp)(xp.astype(x_far, wide))
            again = xp.astype(again, x.dtype)
        else:
            again = DifferenceColumns(y_far, self.inverse, func=self.func, xp=xp)(x_far)
        again = xp.take(xp.take(again, row_place, axis=-2), column_place, axis=-1)
        return xp.where(far[..., :, None] & self.far[..., None, :], again, exponents)

    def shortest(self) -> float:
        """Least factor of the length scales at which no point, of `y` or of what `write` has seen, is far from the center."""
        largest = max(self._largest, -2 * _arrays.to_float(self.xp.min(self.augmented[..., -1, :])))
        return math.sqrt(largest / self.limit)

    def reserve(self, rows: int) -> None:
        """Memory that `write` uses, for blocks of up to so many rows."""
        self._left = self.xp.ones((rows, self.y.shape[-1] + 2), dtype=self.y.dtype, device=_arrays.device_of(self.y))
        self._careful = None

    def write(self, x: Array, out: Array, first: int = 0) -> None:
        """Exponents (n, m - first), up to rounding at most zero, for the columns from `first` on, into `out`.

        `x` may be of any real type; points with NaN or infinity raise NonFiniteError.
        """
        xp = self.xp
        left = self._left[: x.shape[0]]
        z = left[:, :-2]
        z[...] = x
        z -= self.center
        z *= self.inverse
        squared = xp.vecdot(z, z)
        largest = _arrays.to_float(xp.max(squared))
        self._largest = max(self._largest, largest)
        if not largest <= self.limit:  # far points, an overflow, or NaN
            self._write_far(_as_block(x, self.y, func=self.func, xp=xp), out, first)
            return
        squared *= -0.5
        left[:, -2] = squared
        xp.matmul(left, self.augmented[:, first:], out=out)

    def _write_far(self, x: Array, out: Array, first: int) -> None:
        """A block with far points: pair by pair where there are few pairs of two far points, as a whole otherwise."""
        xp = self.xp
        _, squared = self._scaled(x)
        count = int(xp.count_nonzero(squared > self.limit)) * int(xp.count_nonzero(self.far))
        if count <= _FAR_SHARE * x.shape[0] * self.y.shape[0]:
            out[...] = self(x)[:, first:]
            return
        wide = _arrays.wide_dtype(x, xp=xp)
        if self._careful is None:
            inverse = self.inverse if isinstance(self.inverse, float) else xp.astype(self.inverse, wide, copy=False)
            kind = DifferenceColumns if wide == x.dtype else GaussianColumns
            self._careful = kind(xp.astype(self.y, wide, copy=False), inverse, func=self.func, xp=xp)
            self._careful.reserve(self._left.shape[0])
        if wide == x.dtype:
            self._careful.write(x, out, first)
        else:
            exponents = _arrays.empty_like_shape(tuple(out.shape), out, xp=xp, dtype=wide)
            self._careful.write(x, exponents, first)
            out[...] = exponents

    def pull_back(self, weights: Array, x: Array) -> tuple[Array, Array]:
        """Gradients of sum(weights * exponents), weights constant, with respect to x and y."""
        xp = self.xp
        z, squared = self._scaled(x)
        if self._both_far(squared[..., 0] > self.limit):
            return DifferenceColumns(self.y, self.inverse, func=self.func, xp=xp).pull_back(weights, x)
        dx = weights @ self.z - xp.sum(weights, axis=-1, keepdims=True) * z
        transposed = xp.matrix_transpose(weights)
        dy = transposed @ z - xp.sum(transposed, axis=-1, keepdims=True) * self.z
        return dx * self.inverse, dy * self.inverse


def _saturated(z: Array, *, xp: Namespace) -> Array:
    """Scaled coordinates within +-2**40; NaN stays."""
    return xp.where(z > _SATURATION, xp.full_like(z, _SATURATION), xp.where(z < -_SATURATION, xp.full_like(z, -_SATURATION), z))


def _sign(z: Array, *, xp: Namespace) -> Array:
    """-1, 0 or 1. (The sign of array-api-compat writes in place, which torch.func.vmap cannot map.)"""
    return xp.where(z > 0, xp.ones_like(z), xp.where(z < 0, -xp.ones_like(z), xp.zeros_like(z)))


def _as_block(x: Array, like: Array, *, func: str, xp: Namespace) -> Array:
    """Rows of any real type in the dtype of `like`, finite."""
    block = _arrays.empty_like_shape(tuple(x.shape), like, xp=xp)
    block[...] = x
    _inputs.check_finite(block, func=func, name="x", xp=xp)
    return block


def _places(chosen: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Positions chosen in any member of the batch, and for each position its place among them (0 where not chosen)."""
    anywhere = xp.any(xp.reshape(chosen, (-1, chosen.shape[-1])), axis=0)
    (positions,) = xp.nonzero(anywhere)
    order = xp.cumulative_sum(xp.astype(anywhere, positions.dtype))
    return positions, xp.where(anywhere, order - 1, xp.zeros_like(order))


class DifferenceColumns:
    """The exponents -sum |x - y| / l (power 1) or -sum |x - y|^2 / (2 l^2) (power 2), from differences.

    Right to a few units of rounding at any distance, for d times the elementwise work of the product form.
    """

    def __init__(self, y: Array, inverse: float | Array, power: int = 2, *, func: str, xp: Namespace) -> None:
        self.y, self.inverse, self.power, self.func, self.xp = y, inverse, power, func, xp
        self._scratch: Any = None

    def _differences(self, x: Array) -> Array:
        """(x - y) / l, shape (..., n, m, d). Halved first, so that the difference cannot overflow; saturated, so that no gradient does."""
        xp = self.xp
        z = (x[..., :, None, :] / 2 - self.y[..., None, :, :] / 2) * (2 * self.inverse)
        return _saturated(z, xp=xp)

    def _steps(self, x: Array) -> list[slice]:
        """Blocks of rows whose differences fit the budget; a traced program is not unrolled (its compiler fuses the sum)."""
        n, batch = x.shape[-2], max(math.prod(x.shape[:-2]), math.prod(self.y.shape[:-2]))
        step = n if _arrays.is_traced(x, self.y) else _DIFFERENCE_ENTRIES // max(1, batch * self.y.shape[-2] * x.shape[-1])
        return [slice(start, min(n, start + max(1, step))) for start in range(0, max(n, 1), max(1, step))]

    def __call__(self, x: Array) -> Array:
        """Exponents (..., n, m), at most zero; differentiable, nothing is written in place."""
        xp = self.xp
        parts = []
        for rows in self._steps(x):
            z = self._differences(x[..., rows, :])
            parts.append(-xp.sum(xp.abs(z), axis=-1) if self.power == 1 else -xp.sum(z * z, axis=-1) / 2)
        return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-2)

    def reserve(self, rows: int) -> None:
        """Memory that `write` uses, for blocks of up to so many rows."""
        self._half_y = self.xp.matrix_transpose(self.y) / 2
        self._scratch = _arrays.empty_like_shape((rows, self.y.shape[-2]), self.y, xp=self.xp)

    def write(self, x: Array, out: Array, first: int = 0) -> None:
        """Exponents (n, m - first), for the columns from `first` on, into `out`: feature by feature."""
        xp = self.xp
        half_x = _as_block(x, self.y, func=self.func, xp=xp) / 2
        z = self._scratch[: x.shape[0], first:]
        out[...] = 0
        for k in range(x.shape[-1]):
            xp.subtract(half_x[:, k : k + 1], self._half_y[k, first:], out=z)
            z *= 2 * (self.inverse if isinstance(self.inverse, float) else self.inverse[k])
            if self.power == 1:
                xp.abs(z, out=z)
            else:
                z *= z
            out -= z
        if self.power == 2:
            out *= 0.5

    def pull_back(self, weights: Array, x: Array) -> tuple[Array, Array]:
        """Gradients of sum(weights * exponents), weights constant, with respect to x and y; the slope of |x - y| at zero is zero."""
        xp = self.xp
        parts, dy = [], xp.zeros_like(self.y)
        for rows in self._steps(x):
            z = self._differences(x[..., rows, :])
            pulled = weights[..., rows, :, None] * (_sign(z, xp=xp) if self.power == 1 else z)
            parts.append(-xp.sum(pulled, axis=-2))
            dy = dy + xp.sum(pulled, axis=-3)
        return xp.concat(parts, axis=-2) * self.inverse, dy * self.inverse


def squared_distances(x: Array, y: Array | None = None) -> Array:
    r"""Squared Euclidean distances between two sets of points.

    Parameters
    ----------
    x : array, shape (..., n, d)
        Points, real.
    y : array, shape (..., m, d), optional
        Points in the units of `x`; batch axes broadcast. Default: `x` itself; the result is then symmetric, bit for bit, with
        a zero diagonal.

    Returns
    -------
    array, shape (..., n, m)
        :math:`|x_i - y_j|^2 \ge 0`, dtype of the input; infinite where the square is larger than the dtype can say.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, BackendMismatchError

    Notes
    -----
    One product, O(n m d) time and O(n m) memory, after both sets are centered (and scaled by a power of two where squares could
    overflow). The absolute error of each is at most about (d + 2) u (|x_i - c|^2 + |y_j - c|^2), with the center c the median of
    each feature of `y`; of a distance near zero, the square root of that. float16 and bfloat16 are computed in float32.
    """
    func = "squared_distances"
    xp, (x, y), dtype = _inputs.prepare(func, {"x": x, "y": None if y is x else y}, optional=("y",))
    check_points(x, y, func=func)
    compute = _arrays.compute_dtype(dtype, xp=xp)
    _inputs.check_finite(x, func=func, name="x", xp=xp)
    x = other = xp.astype(x, compute, copy=False)
    if y is not None:
        _inputs.check_finite(y, func=func, name="y", xp=xp)
        other = xp.astype(y, compute, copy=False)
    with _arrays.quiet(x):
        result = _squares(x, other, xp=xp)
        if y is None:
            result = mirror(result, 0.0, xp=xp)
        return xp.astype(result, dtype, copy=False)


def _squares(x: Array, y: Array, *, xp: Namespace) -> Array:
    """|x_i - y_j|^2 from one product of inner dimension d + 2; powers of two keep extreme data in range."""
    center = center_of(y, xp=xp)
    z, w = x / 2 - center / 2, y / 2 - center / 2
    exponent = xp.maximum(_exponent_of(z, xp=xp), _exponent_of(w, xp=xp))
    safe = 30 if _arrays.eps(x.dtype) > 2.0**-50 else 400
    moderate = not _arrays.is_traced(exponent) and (math.prod(exponent.shape) == 0 or bool(xp.all(xp.abs(exponent) <= safe)))
    if moderate:
        z, w = x - center, y - center
    else:
        z, w = (_linalg.scale_by_power_of_two(points, -exponent, xp=xp) for points in (z, w))
    squared_z, squared_w = xp.sum(z * z, axis=-1, keepdims=True), xp.sum(w * w, axis=-1, keepdims=True)
    right = xp.concat([-2 * w, xp.ones_like(squared_w), squared_w], axis=-1)
    result = xp.concat([z, squared_z, xp.ones_like(squared_z)], axis=-1) @ xp.matrix_transpose(right)
    result = -_without_positives(-result, xp=xp)
    if moderate:
        return result
    for _ in range(2):  # by the square of 2**(exponent + 1)
        result = _linalg.scale_by_power_of_two(result, exponent + 1, xp=xp)
    return result


def _exponent_of(z: Array, *, xp: Namespace) -> Array:
    """Whole number e with entries of `z` below 2**e, per matrix; a constant to differentiation."""
    return _linalg.binary_exponent(_linalg.largest_entry(_arrays.detach(z), xp=xp), xp=xp)
