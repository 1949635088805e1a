r"""Length scales learned from the targets: one for each column, by the likelihood of a Gaussian process on some of the rows.

Kernel ridge regression with an isotropic kernel treats all columns alike: a target that turns quickly along one column and not at all
along others is out of its reach at any rank. With K(l) = k(x / l, x / l), A = K + ridge I and targets y = y_1..y_k of mean zero, the
negative logarithm of the likelihood, maximized over the amplitude of each target, is

.. math:: \tfrac12 \sum_j n \log y_j^T A^{-1} y_j + \tfrac{k}{2} \log \det A,

with derivative :math:`\mathrm{tr}(G\, dA)`, :math:`2 G = k A^{-1} - n \sum_j a_j a_j^T / (y_j^T a_j)`, :math:`a_j = A^{-1} y_j` [1]_. It is
minimized over the logarithms of l and of the ridge by L-BFGS. A weak prior on the logarithms keeps the scales of columns that do not
matter finite.

References
----------
.. [1] Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), eqs. 5.8 and 5.9, and section 5.1 on automatic relevance.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._kernel_base import StationaryKernel
from softlinalg._kernels import median_length_scale
from softlinalg._ridge_sums import checked_targets
from softlinalg._rng import as_generator
from softlinalg._typing import RngLike
from softlinalg.errors import ParameterError

__all__ = ["LearnedScales", "learn_length_scales"]

SAMPLE = 1000
"""Rows looked at: each step costs about 2 n^3 operations, a tenth of a second."""

COLUMNS = 100
"""Most columns that get a scale of their own; beyond, one scale serves all: so few rows would not tell them apart."""

PRIOR = 3.0
"""Standard deviation of the logarithm of a length scale about that of the median distance: a factor of 20, hardly felt."""

RANGE = 6.0
"""The logarithms stay this near to that of the median distance."""

FIRST_RIDGE = 0.1

Host = np.ndarray[Any, Any]


class LearnedScales(NamedTuple):
    """What `learn_length_scales` returns."""

    kernel: Any
    """The kernel with its length scales settled."""
    ridge: float
    """Ratio of the variance of noise to the amplitude."""
    steps: int
    """Of L-BFGS."""
    objective: float
    """Negative logarithm of the likelihood and the prior, per row, without constants."""


def learn_length_scales(
    x: Any, y: Any, kernel: Any, *, weights: Any = None, rng: RngLike = None, sample: int = SAMPLE, max_steps: int = 30
) -> LearnedScales:
    """Length scales for a kernel of this package, and a ridge, from some rows and their targets.

    Parameters
    ----------
    x : array, shape (n, d)
    y : array, shape (n,) or (n, k)
        Targets; those that are constant are left out.
    kernel : Gaussian, Laplacian or Matern
        Its own length scale is not looked at.
    weights : array, shape (n,), optional
        Rows of weight zero are left out; the others count alike.
    rng : None, int or numpy.random.Generator
        Picks the rows.
    sample : int, default 1000
        Most rows to look at.
    max_steps : int, default 30
        Of L-BFGS.

    Returns
    -------
    LearnedScales
        One scale for each of up to 100 columns, else one for all. Where nothing can be learned (constant targets, equal rows),
        the median distance, or 1.

    Raises
    ------
    ParameterError
        A kernel without a length scale.

    Notes
    -----
    O(steps sample^3) time, in float64 on the host: some seconds.
    """
    func = "learn_length_scales"
    if not isinstance(kernel, StationaryKernel):
        message = f'{func}: kernel must be one of this package for length_scale="learned"; got {type(kernel).__name__}. Name one.'
        raise ParameterError(message)
    xp, (x, y), _ = _inputs.prepare(func, {"x": x, "y": y})
    y = checked_targets(y, int(x.shape[0]), func=func, xp=xp)
    rows = np.arange(x.shape[0]) if weights is None else np.flatnonzero(_arrays.to_numpy(weights) > 0)
    if len(rows) > sample:
        rows = np.sort(as_generator(rng, func=func).choice(rows, size=sample, replace=False))
    points, targets = (np.asarray(_arrays.to_numpy(_arrays.take_rows(a, rows, xp=xp)), dtype=np.float64) for a in (x, y))
    targets = targets - targets.mean(axis=0)
    spread = targets.std(axis=0)
    targets = targets[:, spread > 0] / spread[spread > 0]
    unit = replace(kernel, length_scale=1.0)
    if len(points) < 2 or not np.any(points != points[0]):
        return LearnedScales(unit, FIRST_RIDGE, 0, math.inf)
    start = math.log(median_length_scale(points))
    if targets.shape[1] == 0:
        return LearnedScales(replace(kernel, length_scale=math.exp(start)), FIRST_RIDGE, 0, math.inf)
    return _minimize(_Likelihood(unit, points, targets, start), kernel, max_steps)


class _Likelihood:
    """Objective and gradient in the logarithms of the scales, one or d, and of the ridge."""

    def __init__(self, unit: Any, x: Host, y: Host, start: float) -> None:
        self.unit, self.x, self.y, self.start = unit, x, y, start
        self.scales = x.shape[1] if x.shape[1] <= COLUMNS else 1

    def __call__(self, logs: Host) -> tuple[float, Host]:
        n, k = self.y.shape
        z, ridge = self.x * np.exp(-logs[:-1]), math.exp(logs[-1])
        a = self.unit(z)
        a[np.arange(n), np.arange(n)] += ridge
        inverse, ok = _linalg.spd_inverse(a, xp=_arrays.host_namespace())
        factor, has_factor = _linalg.cholesky(a, xp=_arrays.host_namespace())
        if not (ok and has_factor):
            return math.inf, np.zeros_like(logs)
        solved = inverse @ self.y
        fits = np.sum(self.y * solved, axis=0)
        value = 0.5 * n * np.sum(np.log(fits)) + k * np.sum(np.log(np.diagonal(factor)))
        weights = 0.5 * (k * inverse - n * (solved / fits) @ solved.T)
        dz, _ = self.unit.vjp(z, None, weights)
        slopes = -np.sum(dz * z, axis=0)
        slopes = slopes if self.scales > 1 or len(slopes) == 1 else np.sum(slopes, keepdims=True)
        away = (logs[:-1] - self.start) / PRIOR
        gradient = np.concatenate([slopes + away / PRIOR, [ridge * np.trace(weights)]])
        return (float(value) + 0.5 * float(np.sum(away**2))) / n, gradient / n


def _minimize(objective: _Likelihood, kernel: Any, max_steps: int) -> LearnedScales:
    from scipy.optimize import minimize  # imported late: `import softlinalg` stays quick

    start = np.append(np.full(objective.scales, objective.start), math.log(FIRST_RIDGE))
    bounds = [(objective.start - RANGE, objective.start + RANGE)] * objective.scales + [(math.log(1e-5), math.log(1e3))]
    with _arrays.quiet():
        found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": max_steps})
    scales = np.exp(found.x[:-1])
    length_scale = tuple(float(s) for s in scales) if objective.x.shape[1] == objective.scales > 1 else float(scales[0])
    return LearnedScales(replace(kernel, length_scale=length_scale), math.exp(float(found.x[-1])), int(found.nit), float(found.fun))
