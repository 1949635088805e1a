r"""Ridge regression on Nystrom features: every ridge from one eigendecomposition, its choice, and predictive variances.

The model is f(x) = F(x) w + b for features F with F(x) F(y)^T = q(x, y), the approximated kernel, and minimizes

.. math:: \sum_i s_i (y_i - F_i w - b)^2 + ridge\, |w|^2,

which is kernel ridge regression with the kernel q and a constant that is not penalized. With the centered sums
G = F^T S F = U diag(g) U^T, c = F^T S y and z = U^T c (`RidgeSums`), everything below is a sum over the r eigenvalues:

* w = U z / (g + ridge), b = mean(y) - mean(F) w;
* the residual sum of squares is r_0 + sum z^2 ridge^2 / (g (g + ridge)^2), r_0 that of least squares: no subtraction;
* the degrees of freedom are t = 1 + sum g / (g + ridge), the trace of the matrix that maps targets to fitted values;
* generalized cross-validation [1]_ is (RSS / N) / (1 - t / N)^2, N the number of rows, as which
  the weights count unless it is given (`RidgeSums.rows`);
* the error of row i, left out entirely, is e_i / (1 - s_i h_i), with h_i = 1 / sum(s) + F_i U diag(1 / (g + ridge)) U^T F_i^T for
  centered F_i: exact, by the Sherman-Morrison formula [2]_;
* the predictive variance is that of a Gaussian process whose covariance function is k on the test point and q elsewhere ("deterministic
  training conditional", or projected process, [3]_): with noise variance v = RSS / (N - t) and amplitude v / ridge [4]_,
  v (k(x, x) - q(x, x)) / ridge + v h(x). The first term grows to the full prior variance away from the landmarks.

References
----------
.. [1] Golub, Heath & Wahba, Generalized cross-validation as a method for choosing a good ridge parameter (1979), eq. 1.4.
.. [2] Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), section 5.3.
.. [3] Quinonero-Candela & Rasmussen, A unifying view of sparse approximate Gaussian process regression (2005), section 5.
.. [4] Wahba, Bayesian "confidence intervals" for the cross-validated smoothing spline (1983), section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from softlinalg import _arrays, _inputs
from softlinalg._ridge_sums import RidgeSums
from softlinalg._settings import is_one_of, shown
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError, ShapeError

__all__ = ["RidgeModel", "RidgePath", "checked_ridges", "ridge_model"]

GRID = 40
"""Ridges of the default path: three per factor of ten."""

LOWEST = {"float32": 1e-9, "float64": 1e-13}
"""Smallest ridge of the default path, relative to the largest eigenvalue: where rounding of the features takes over."""


def checked_ridges(ridge: Any, *, func: str, name: str = "ridge") -> list[float]:
    """One positive number or several, as a list.

    Raises
    ------
    ParameterError
    """
    several = isinstance(ridge, list | tuple) or getattr(ridge, "ndim", 0) == 1
    values: Sequence[Any] = ridge if several else [ridge]
    if len(values) == 0:
        message = f"{func}: {name} must have at least one value; got none. Pass a positive number, or None for a path of {GRID}."
        raise ParameterError(message)
    return [_inputs.real_scalar(value, func=func, name=name) for value in values]


class RidgePath:
    """Solutions and scores for any number of ridges, from the sums over rows alone.

    Parameters
    ----------
    sums : RidgeSums
        r features, k targets.
    fit_intercept : bool, default True
        Fit the constant b. Without it the sums are taken about zero.

    Notes
    -----
    O(r^3) once; then O(r^2 k) for the coefficients at a ridge, O(r k) for a score. Directions whose eigenvalue is rounding, at
    most 4 (r + 16) eps of the largest, are left out: their coefficient is zero.
    """

    def __init__(self, sums: RidgeSums, *, fit_intercept: bool = True) -> None:
        xp = _inputs.prepare("RidgePath", {"gram": sums.gram}).xp
        gram, cross, squares = sums.gram, sums.cross, sums.squares
        if not fit_intercept:
            scaled = sums.weight * sums.feature_mean
            gram = gram + scaled[:, None] * sums.feature_mean[None, :]
            cross = cross + scaled[:, None] * sums.target_mean[None, :]
            squares = squares + sums.weight * sums.target_mean**2
        self.xp, self.sums, self.fit_intercept = xp, sums, fit_intercept
        r = int(gram.shape[-1])
        if r == 0:
            self.eigenvalues, self.rotation, self._z = sums.feature_mean, gram, cross
        else:
            values, vectors = xp.linalg.eigh((gram + xp.matrix_transpose(gram)) / 2)
            # Centering adds to the rounding of the Gram matrix.
            cut = 4 * (r + 16) * _arrays.eps(gram.dtype) * float(xp.max(xp.abs(values)))
            usable = values > cut
            self.eigenvalues = xp.where(usable, values, xp.zeros_like(values))
            self.rotation = vectors
            self._z = xp.where(usable[:, None], xp.matrix_transpose(vectors) @ cross, xp.zeros_like(cross))
        safe = self._safe_eigenvalues()
        floor = squares - xp.sum(self._z**2 / safe[:, None], axis=0)
        self._floor = xp.where(floor > 0, floor, xp.zeros_like(floor))
        self._noise = (r + 4) * _arrays.eps(gram.dtype) * squares

    def _safe_eigenvalues(self) -> Array:
        xp, g = self.xp, self.eigenvalues
        return xp.where(g > 0, g, xp.ones_like(g))

    def _column(self, ridges: Any) -> Array:
        """Ridges as a float64 array beside the sums."""
        if hasattr(ridges, "ndim"):
            return ridges
        like = self.sums.gram
        return self.xp.asarray(ridges, dtype=like.dtype, device=_arrays.device_of(like))

    @property
    def targets(self) -> int:
        """Number of targets, k."""
        return int(self._z.shape[-1])

    def default_ridges(self, *, precision: str = "float64", count: int = GRID) -> list[float]:
        """Ridges from the largest eigenvalue down to what the precision of the features resolves, evenly in their logarithm.

        Parameters
        ----------
        precision : {"float32", "float64"}
            Of the features.
        count : int
        """
        top = float(self.xp.max(self.eigenvalues)) if self.eigenvalues.shape[0] else 0.0
        top = top if top > 0 else 1.0
        step = math.log(LOWEST[precision]) / max(count - 1, 1)
        return [top * math.exp(step * i) for i in range(count)]

    def coefficients(self, ridges: Any) -> tuple[Array, Array]:
        """Coefficients w, shape (r, k), and constants b, shape (k,), with one ridge per target (k,)."""
        xp = self.xp
        ridges = self._column(ridges)
        w = self.rotation @ (self._z / (self.eigenvalues[:, None] + ridges[None, :]))
        if not self.fit_intercept:
            return w, xp.zeros_like(self.sums.target_mean)
        return w, self.sums.target_mean - self.sums.feature_mean @ w

    def residual_squares(self, ridges: Any) -> Array:
        """Weighted residual sums of squares, shape (L, k)."""
        ridges = self._column(ridges)
        g = self.eigenvalues
        shrunk = (ridges[:, None] / (g[None, :] + ridges[:, None])) ** 2 / self._safe_eigenvalues()[None, :]  # (L, r)
        return self._floor[None, :] + shrunk @ self._z**2

    def degrees_of_freedom(self, ridges: Any) -> Array:
        """Trace of the matrix that maps targets to fitted values, shape (L,)."""
        ridges = self._column(ridges)
        g = self.eigenvalues
        return self.xp.sum(g[None, :] / (g[None, :] + ridges[:, None]), axis=-1) + (1.0 if self.fit_intercept else 0.0)

    def gcv(self, ridges: Any) -> Array:
        """Generalized cross-validation, shape (L, k): infinite where there are no fewer degrees of freedom than rows."""
        xp, total = self.xp, self.sums.rows
        left = 1 - self.degrees_of_freedom(ridges) / total
        usable = left > 4 * _arrays.eps(self.sums.gram.dtype)
        scores = (self.residual_squares(ridges) / total) / xp.where(usable, left, xp.ones_like(left))[:, None] ** 2
        return xp.where(usable[:, None], scores, xp.full_like(scores, math.inf))

    def resolution(self, ridges: Any) -> Array:
        """Differences of scores that are rounding, shape (L, k): that of the residual sum of squares, as it enters the score."""
        xp, total = self.xp, self.sums.rows
        left = 1 - self.degrees_of_freedom(ridges) / total
        left = xp.where(left > 4 * _arrays.eps(left.dtype), left, xp.ones_like(left))
        return (self._noise[None, :] / total) / left[:, None] ** 2

    def leave_one_out(self, blocks: Iterable[tuple[Array, Array, Array | None]], ridges: Any) -> Array:
        """Weighted mean squares of the errors of rows that were left out, shape (L, k): a second pass over the rows.

        Parameters
        ----------
        blocks : iterable of (features (b, r), targets (b, k), weights (b,) or None)
            float64.
        ridges : sequence of L numbers

        Notes
        -----
        O(n r (r + L k)) time, O(b (r + L k)) memory. The error of a row that alone decides its fitted value (leverage 1) is infinite.
        """
        ridges = self._column(ridges)
        total: Array = 0.0
        for features, targets, weights in blocks:
            errors = self.left_out_errors(features, targets, weights, ridges) ** 2
            total = total + self.xp.sum(errors if weights is None else weights[None, :, None] * errors, axis=1)
        return total / self.sums.weight

    def left_out_errors(self, features: Array, targets: Array, weights: Array | None, ridges: Any) -> Array:
        """Targets minus their predictions from all other rows, shape (L, b, k)."""
        xp, ridges, g = self.xp, self._column(ridges), self.eigenvalues
        p = self._turned(features)
        inverse = 1 / (g[:, None] + ridges[None, :])  # (r, L)
        leverage = (p * p) @ inverse  # (b, L)
        centered = targets
        if self.fit_intercept:
            leverage, centered = leverage + 1 / self.sums.weight, targets - self.sums.target_mean
        solutions = inverse[:, :, None] * self._z[:, None, :]  # (r, L, k)
        fitted = xp.reshape(p @ xp.reshape(solutions, (int(g.shape[0]), -1)), (int(p.shape[0]), int(ridges.shape[0]), self.targets))
        left = 1 - (leverage if weights is None else weights[:, None] * leverage)  # (b, L)
        usable = left > 4 * _arrays.eps(self.sums.gram.dtype)
        errors = (centered[:, None, :] - fitted) / xp.where(usable, left, xp.ones_like(left))[:, :, None]
        errors = xp.where(usable[:, :, None], errors, xp.full_like(errors, math.inf))
        return xp.permute_dims(errors, (1, 0, 2))

    def _turned(self, features: Array) -> Array:
        return (features - self.sums.feature_mean if self.fit_intercept else features) @ self.rotation

    def noise_variance(self, ridges: Any) -> Array:
        """RSS / (N - t), shape (k,), with one ridge per target (k,): zero where no degree of freedom is left."""
        xp, ridges = self.xp, self._column(ridges)
        squares = xp.linalg.diagonal(self.residual_squares(ridges))
        left = self.sums.rows - self.degrees_of_freedom(ridges)
        return xp.where(left > 0, squares / xp.where(left > 0, left, xp.ones_like(left)), xp.zeros_like(squares))


class RidgeModel(NamedTuple):
    """A ridge regression with its ridge chosen: what predictions need, as arrays and numbers."""

    coefficients: Array
    """w, shape (r, k), float64."""
    intercept: Array
    """b, shape (k,)."""
    ridge: Array
    """Shape (k,)."""
    ridges: list[float]
    """The path."""
    scores: Array
    """Shape (L, k)."""
    degrees_of_freedom: Array
    """Shape (k,)."""
    noise_variance: Array
    """Shape (k,)."""
    feature_mean: Array
    """Shape (r,): zeros without an intercept."""
    rotation: Array
    """U, shape (r, r)."""
    eigenvalues: Array
    """g, shape (r,)."""
    constant_variance: float
    """1 / N with an intercept, else 0."""

    def predict(self, features: Array) -> Array:
        """F w + b, shape (b, k), of features in float64."""
        return features @ self.coefficients + self.intercept

    def deviation(self, features: Array, left: Array) -> Array:
        """Predictive standard deviation of f, without the noise, shape (b, k).

        Parameters
        ----------
        features : array, shape (b, r), float64
        left : array, shape (b,)
            k(x, x) - |F(x)|^2, not negative.
        """
        p = (features - self.feature_mean) @ self.rotation
        h = (p * p) @ (1 / (self.eigenvalues[:, None] + self.ridge[None, :])) + self.constant_variance
        return (self.noise_variance * (h + left[:, None] / self.ridge)) ** 0.5


def ridge_model(
    sums: RidgeSums,
    *,
    ridge: Any = None,
    selection: str = "gcv",
    rows: Iterable[tuple[Array, Array, Array | None]] | None = None,
    fit_intercept: bool = True,
    ridge_per_target: bool = True,
    precision: str = "float64",
    func: str = "ridge_model",
) -> RidgeModel:
    """Choose the ridge on a path, and solve there.

    Parameters
    ----------
    sums : RidgeSums
    ridge : None, float or sequence of float, default None
        Positive. None stands for `RidgePath.default_ridges`; of several values the one with the least score is taken.
    selection : {"gcv", "loo"}, default "gcv"
        Generalized cross-validation, from the sums alone; or leave-one-out, which needs `rows`.
    rows : iterable of (features, targets, weights or None), optional
        A second pass, in float64.
    fit_intercept : bool, default True
    ridge_per_target : bool, default True
        A ridge for each target, as if each were fitted alone; else one for all, by the sum of their scores.
    precision : {"float32", "float64"}
        Of the features.

    Returns
    -------
    RidgeModel

    Raises
    ------
    ParameterError
        A ridge that is not positive, an unknown selection, weights that sum to less than the degrees of freedom.
    ShapeError
        Leave-one-out without rows.
    """
    if not is_one_of(selection, ("gcv", "loo")):
        message = f'{func}: selection must be "gcv" or "loo"; got {shown(selection)}. Choose one of these.'
        raise ParameterError(message)
    if selection == "loo" and rows is None:
        message = f'{func}: rows must be given for selection="loo"; got None. Pass a second pass over the rows, or use "gcv".'
        raise ShapeError(message)
    path = RidgePath(sums, fit_intercept=fit_intercept)
    xp = path.xp
    ridges = path.default_ridges(precision=precision) if ridge is None else checked_ridges(ridge, func=func)
    scores = path.leave_one_out(rows, ridges) if selection == "loo" and rows is not None else path.gcv(ridges)
    chosen = _best(scores, path.resolution(ridges), ridges, ridge_per_target, func=func, total=sums.rows, xp=xp)
    at = path._column(chosen)
    w, b = path.coefficients(at)
    mean = sums.feature_mean if fit_intercept else xp.zeros_like(sums.feature_mean)
    return RidgeModel(
        coefficients=w,
        intercept=b,
        ridge=at,
        ridges=ridges,
        scores=scores,
        degrees_of_freedom=path.degrees_of_freedom(at),
        noise_variance=path.noise_variance(at),
        feature_mean=mean,
        rotation=path.rotation,
        eigenvalues=path.eigenvalues,
        constant_variance=1 / sums.weight if fit_intercept else 0.0,
    )


def _best(scores: Array, noise: Array, ridges: list[float], per_target: bool, *, func: str, total: float, xp: Namespace) -> list[float]:
    """The ridge of each target: the only one, or the largest of those whose score is the least, up to rounding."""
    k = int(scores.shape[-1])
    if len(ridges) == 1:
        return ridges * k
    if not per_target:
        scores, noise = (xp.broadcast_to(xp.sum(a, axis=-1, keepdims=True), tuple(a.shape)) for a in (scores, noise))
    if not bool(xp.all(xp.isfinite(xp.min(scores, axis=0)))):
        message = (
            f"{func}: weights must sum to more than the degrees of freedom; got a sum of {total:.3g}. "
            "Weights count rows, each 1 by default: scale them to a mean of 1, give more rows, or pass larger ridges."
        )
        raise ParameterError(message)
    chosen = []
    for j in range(k):
        place = int(xp.argmin(scores[:, j]))
        limit = float(scores[place, j]) + float(noise[place, j])
        chosen.append(max(ridge for i, ridge in enumerate(ridges) if float(scores[i, j]) <= limit))
    return chosen
