r"""Ridge regression from sums over rows: every ridge from one eigendecomposition, and its choice by generalized cross-validation.

With centered sums G = F^T F = U diag(g) U^T, c = F^T y and z = U^T c, the coefficients at a ridge are w = U z / (g + ridge), the
residual sum of squares is r_0 + sum z^2 ridge^2 / (g (g + ridge)^2), r_0 that of least squares (nothing is subtracted from anything
nearly equal), the degrees of freedom are t = 1 + sum g / (g + ridge), and the score is (RSS / n) / (1 - t / n)^2 [1]_.

References
----------
.. [1] Golub, Heath & Wahba, Generalized cross-validation as a method for choosing a good ridge parameter (1979), eq. 1.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from softlinalg import _arrays
from softlinalg._streaming_sources import Host
from softlinalg.errors import ParameterError

__all__ = ["RidgeFit", "RowSums", "fit_ridge"]

GRID = 40
"""Ridges of the default path: three per factor of ten."""

LOWEST = {"float32": 1e-9, "float64": 1e-13}
"""Smallest ridge of the default path, relative to the largest eigenvalue: where rounding of the features takes over."""


class RowSums(NamedTuple):
    """Centered sums over all rows of the features F and the targets y, float64: what a ridge regression needs to know of the data."""

    count: int  # type: ignore[assignment]  # the method of tuples is not needed
    """Rows."""
    weight: float
    """Sum of the weights of the rows, which are all one."""
    feature_mean: Host
    """Shape (r,)."""
    target_mean: Host
    """Shape (k,)."""
    gram: Host
    """Centered F^T F, shape (r, r)."""
    cross: Host
    """Centered F^T y, shape (r, k)."""
    squares: Host
    """Centered sum of y^2, shape (k,)."""


class RidgeFit(NamedTuple):
    """A ridge regression with its ridge chosen."""

    coefficients: Host
    """w, shape (r, k), float64."""
    intercept: Host
    """b, shape (k,)."""
    ridge: Host
    """One for each target, shape (k,)."""
    ridges: Host
    """The path, falling, shape (L,)."""
    scores: Host
    """Generalized cross-validation, shape (L, k): an estimate of the mean squared error of predictions."""
    degrees_of_freedom: Host
    """Shape (k,)."""

    def predict(self, features: Any) -> Host:
        """F w + b, shape (b, k), float64."""
        return np.asarray(features, dtype=np.float64) @ self.coefficients + self.intercept


def fit_ridge(sums: RowSums, ridges: float | Sequence[float] | None = None, *, dtype: str = "float64", func: str = "fit_ridge") -> RidgeFit:
    """Ridge regression with an intercept, the ridge of each target chosen among some by generalized cross-validation.

    Parameters
    ----------
    sums : RowSums
    ridges : float or sequence of float, optional
        Positive. Default: 40 of them, from the largest eigenvalue down to what features of type `dtype` resolve.
    dtype : {"float32", "float64"}
        Of the features.

    Returns
    -------
    RidgeFit

    Raises
    ------
    ParameterError
        A ridge that is not positive; no targets; no ridge leaves degrees of freedom.

    Notes
    -----
    O(r^3 + L r k) for L ridges.
    """
    if not sums.cross.shape[-1]:
        message = f"{func}: targets must be given when rows are streamed; got none. Pass targets."
        raise ParameterError(message)
    values, rotation = np.linalg.eigh((sums.gram + sums.gram.T) / 2) if len(sums.gram) else (np.zeros(0), sums.gram)
    largest = float(values[-1]) if len(values) and values[-1] > 0 else 1.0
    usable = values > len(values) * _arrays.eps(sums.gram.dtype) * largest
    g, z = np.where(usable, values, 0.0), np.where(usable[:, None], rotation.T @ sums.cross, 0.0)
    path = largest * np.geomspace(1.0, LOWEST[dtype], GRID) if ridges is None else _path(ridges, func=func)
    safe = np.where(g > 0, g, 1.0)
    floor = np.maximum(sums.squares - (z * z / safe[:, None]).sum(axis=0), 0.0)
    shrunk = (path[:, None] / (g + path[:, None])) ** 2 / safe  # (L, r)
    residual = floor + shrunk @ (z * z)  # (L, k)
    freedom = 1 + (g / (g + path[:, None])).sum(axis=1)  # (L,)
    left = 1 - freedom / sums.weight
    some = left > 4 * _arrays.eps(sums.gram.dtype)
    scores = np.where(some[:, None], residual / sums.weight / np.where(some, left, 1.0)[:, None] ** 2, np.inf)
    if len(path) > 1 and not np.all(np.isfinite(scores.min(axis=0))):
        message = f"{func}: rows must be more than the degrees of freedom; got {sums.count} rows. Pass larger ridges, or a lower rank."
        raise ParameterError(message)
    best = scores.argmin(axis=0)
    ridge = path[best]
    w = rotation @ (z / (g[:, None] + ridge))
    return RidgeFit(w, sums.target_mean - sums.feature_mean @ w, ridge, path, scores, freedom[best])


def _path(ridges: Any, *, func: str) -> Host:
    """One positive number or several, as an array."""
    several = isinstance(ridges, list | tuple) or getattr(ridges, "ndim", 0) == 1
    values = [_arrays.real_scalar(value, func=func, name="ridges") for value in (ridges if several else [ridges])]
    if not values:
        message = f"{func}: ridges must have at least one value; got none. Pass positive numbers, or None for a path of {GRID}."
        raise ParameterError(message)
    return np.array(values)
