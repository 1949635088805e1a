"""Length scales: checking those given, and the median heuristic for those that are not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._kernel_distances import DifferenceColumns, center_of, check_points, squared_distances
from softlinalg._rng import as_generator
from softlinalg._settings import whole_number
from softlinalg._typing import Array, Namespace, RngLike
from softlinalg.errors import ParameterError, ShapeError

__all__ = ["checked_length_scale", "length_scale_from_gamma", "median_length_scale"]


def checked_length_scale(value: Any, *, func: str) -> float | tuple[float, ...] | str:
    """A positive float, a tuple of them, or "median"."""
    if isinstance(value, str | bytes):
        if value != "median":
            message = f'{func}: length_scale must be a positive number, one per feature, or "median"; got {value[:40]!r}. Pass a number.'
            raise ParameterError(message)
        return value
    if getattr(value, "requires_grad", False) or _arrays.is_traced(value):
        message = f"{func}: length_scale must be constant; got a value to differentiate. Divide the points by it, and pass length_scale=1."
        raise ParameterError(message)
    sequence = isinstance(value, Sequence) or (hasattr(value, "dtype") and getattr(value, "ndim", 0) > 0)
    if not sequence:
        return _inputs.real_scalar(value, func=func, name="length_scale")
    host = _arrays.to_numpy(value) if hasattr(value, "ndim") else value
    if getattr(host, "ndim", 1) != 1 or len(host) == 0:
        got = f"shape {tuple(getattr(host, 'shape', (0,)))}"
        message = f"{func}: length_scale must be one number or one per feature; got {got}. Pass a flat sequence."
        raise ShapeError(message)
    return tuple(_inputs.real_scalar(item, func=func, name="length_scale") for item in host)


def length_scale_from_gamma(gamma: Any, name: str, *, func: str) -> float:
    """Length scale of exp(-gamma |x - y|_2^2), 1 / sqrt(2 gamma) ("gaussian"), or of exp(-gamma |x - y|_1), 1 / gamma ("laplacian").

    Raises
    ------
    ParameterError
        gamma <= 0, or a kernel without one.
    """
    value = _inputs.real_scalar(gamma, func=func, name="gamma")
    if name == "gaussian":
        return 1 / math.sqrt(2 * value)
    if name == "laplacian":
        return 1 / value
    message = f"{func}: gamma must be None for kernels other than gaussian and laplacian; got one with {name[:40]!r}. Pass length_scale."
    raise ParameterError(message)


def median_length_scale(x: Array, *, rng: RngLike = None, sample: int = 1000) -> float:
    """Median Euclidean distance between the rows of a seeded sample: the median heuristic.

    Parameters
    ----------
    x : array, shape (n, d)
        Points, real, n >= 2.
    rng : None, int or Generator
        Picks the sample where n > sample; without a seed the result varies by a per cent or so.
    sample : int, default 1000
        Most rows to look at.

    Returns
    -------
    float
        Positive. Median over all pairs of different rows of the sample; where more than half of the pairs coincide, the median
        of the positive distances.

    Raises
    ------
    ShapeError
        `x` is not (n, d) with n >= 2.
    ParameterError
        All rows of the sample are equal; `sample` below 2; `x` is traced, so that its numbers cannot be read.
    DTypeError, NonFiniteError

    Notes
    -----
    O(sample^2 d) time, O(sample^2) memory, in float64 where the device has it. Data of any magnitude are scaled by a power of
    two first.

    References
    ----------
    .. [1] Garreau, Jitkrittum & Kanagawa, Large sample analysis of the median heuristic (2017), section 1.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> x = np.asarray([[0.0], [3.0], [4.0]])
    >>> softlinalg.median_length_scale(x, rng=0)                              # of the distances 1, 3 and 4
    3.0
    """
    func = "median_length_scale"
    xp, (x,), _ = _inputs.prepare(func, {"x": x}, whole=False)
    if x.ndim != 2 or x.shape[0] < 2:
        got = tuple(x.shape)
        message = f"{func}: x must have shape (n, d) with n >= 2; got {got}. Pass two points or more, or a number as length_scale."
        raise ShapeError(message)
    check_points(x, None, func=func)
    if _arrays.is_traced(x):
        message = f"{func}: x must hold values; got a traced array. Find the length scale outside jit or compile, and pass the number."
        raise ParameterError(message)
    sample = whole_number(sample, func=func, name="sample", minimum=2, remedy="Pass the number of rows to look at.")
    if x.shape[0] > sample:
        chosen = as_generator(rng, func=func).choice(x.shape[0], size=sample, replace=False)
        chosen.sort()  # rows of a memory map are read in their order
        x = _arrays.take_rows(x, chosen, xp=xp)
    _inputs.check_finite(x, func=func, name="x", xp=xp)
    return _median_distance(_arrays.detach(xp.astype(x, _arrays.wide_dtype(x, xp=xp), copy=False)), func=func, xp=xp)


def _median_distance(x: Array, *, func: str, xp: Namespace) -> float:
    """Median of the distances between rows, of the positive ones where the median of all is zero."""
    scaled, exponent = _linalg.power_of_two_scale(x / 2 - center_of(x, xp=xp) / 2, xp=xp)
    squares = squared_distances(scaled)
    n, d = x.shape
    index = xp.arange(n, device=_arrays.device_of(x))
    # Equal rows: below the rounding of the product form, distances are computed anew.
    floor = 16 * (d + 2) * _arrays.eps(x.dtype) * _arrays.to_float(xp.max(xp.sum(scaled * scaled, axis=-1)))
    close = (index[:, None] < index[None, :]) & (squares <= floor)
    if bool(xp.any(close)):
        squares = xp.where(close, -2 * DifferenceColumns(scaled, 1.0, 2, func=func, xp=xp)(scaled), squares)
    positive = (index[:, None] < index[None, :]) & (squares > 0)
    count, found = n * (n - 1) // 2, int(xp.count_nonzero(positive))
    if found == 0:
        message = f"{func}: x must have two different rows; got {n} equal ones in the sample. Pass a number as length_scale."
        raise ParameterError(message)
    ordered = xp.sort(xp.reshape(xp.where(positive, squares, xp.full_like(squares, math.inf)), (-1,)))
    zeros = count - found
    if zeros > (count - 1) // 2:
        zeros, count = 0, found
    middle = [max(0, (count - 1) // 2 - zeros), count // 2 - zeros]
    median = sum(math.sqrt(_arrays.to_float(ordered[position])) for position in middle) / 2
    return math.ldexp(median, int(_arrays.to_float(exponent)) + 1)
