r"""Landmarks and one common factor of the length scales chosen for a ridge regression: by what they do to its error, not to the kernel's.

Landmarks that approximate a kernel well cover all places where data are; those that predict well are dense where the target turns. They
are found by orthogonal least squares [1]_, in its regularized form [2]_: with candidates Z among a sample of the rows, C = k(x, Z) with
centered columns and W = k(Z, Z), kernel ridge regression on a subset J of the candidates minimizes

.. math:: \sum_i s_i (y_i - C_{iJ} a)^2 + ridge\, a^T W_{JJ} a,

whose minimum is :math:`\sum s y^2 - b_J^T A_{JJ}^{-1} b_J`, A = C^T S C + ridge W, b = C^T S y. A Cholesky factorization of A with
pivots adds to J the candidate that lowers the minimum most: in the deflated A and b, the one with the largest :math:`b_j^2 / A_{jj}`,
summed over the targets. All steps together cost less than forming A.

References
----------
.. [1] Chen, Cowan & Grant, Orthogonal least squares learning algorithm for radial basis function networks (1991).
.. [2] Chen, Chng & Alkadhimi, Regularized orthogonal least squares algorithm for constructing radial basis function networks (1996).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._kernel_base import StationaryKernel
from softlinalg._kernel_rescaled import RescaledKernel, rescaled
from softlinalg._ridge_regression import ridge_model
from softlinalg._ridge_sums import checked_targets, ridge_sums
from softlinalg._rng import as_generator
from softlinalg._typing import RngLike
from softlinalg.errors import ParameterError

__all__ = ["RidgeSample", "ridge_sample"]

SAMPLE_ROWS, LEAST_SAMPLE, SAMPLE_SHARE = 8, 4000, 16
"""Rows of the sample per landmark, and at least, and one in so many of all: what is chosen on them differs little from what all rows would
choose. Where targets are noise for the most part, a choice by few rows is one by noise; one in sixteen costs a fraction of the fit."""

CANDIDATES, MANY_CANDIDATES = 4, 1024
"""Candidates per landmark; above so many candidates, half of that."""

STEP = math.sqrt(2.0)
"""Ratio of neighbouring length scales that are tried."""

SHIFT = 4
"""Added to the diagonal of the landmarks' kernel matrix, in units of its rounding error."""

LITTLE, WORTH = 0.998, 0.99
"""Shorter and longer scales must lower the score to this part: less is noise of the sample, and longer ones are worse conditioned."""

MOST_STEPS = 8
"""From the first scale: a factor of 16."""

FAR, FEW = (-8, -6, -4, -2, 0, 2), 128
"""Steps looked at first where the right scale may be far, and the landmarks that this takes at most."""

Host = np.ndarray[Any, Any]


@dataclass(eq=False)
class RidgeSample:
    """Some rows with their targets, on the host in float64, in random order."""

    rows: Host
    """Which rows of the data these are, shape (s,)."""
    x: Host
    """Shape (s, d)."""
    y: Host
    """Shape (s, k), each of mean 0 and variance 1 unless it is constant."""
    weights: Host | None
    """Shape (s,)."""
    _known: tuple[Any, float, RescaledKernel] | None = field(default=None, repr=False)
    """The kernel looked at last, as a multiple of one whose distances are at hand."""

    def _of(self, kernel: Any) -> tuple[float, RescaledKernel]:
        """The kernel as a factor of the length scales of one that is, or will be, evaluated."""
        if self._known is None or self._known[0] is not kernel:
            self._known = (kernel, 1.0, RescaledKernel(kernel, self.x, xp=_arrays.host_namespace()))
        return self._known[1:]

    def score(self, kernel: Any, count: int) -> tuple[float, float]:
        """Generalized cross-validation of a model on the first `count` rows as landmarks, and its ridge: O(s count (d + count)) time.

        Infinite where the kernel is not positive semi-definite.
        """
        return self._score(*self._of(kernel), count)

    def _score(self, factor: float, values: RescaledKernel, count: int) -> tuple[float, float]:
        xp = _arrays.host_namespace()
        c = np.asarray(values.values(count, factor))
        w = np.array(values.square(c, factor), dtype=np.float64)
        # Features C L^-T with W + shift I = L L^T: enough for a score, and several times quicker than eigenvectors.
        w[np.arange(len(w)), np.arange(len(w))] += SHIFT * len(w) * _arrays.eps(w.dtype) * np.abs(w).max()
        root, positive = _linalg.cholesky(w, xp=xp)
        if not positive:
            return math.inf, 1.0
        features = _linalg.triangular_solve(root, c.T, xp=xp).T
        model = ridge_model(ridge_sums(features, self.y, self.weights, rows=float(len(self.x))), ridge_per_target=False)
        return float(model.scores.sum(axis=1).min()), float(model.ridge[0])

    def scaled(self, kernel: Any, count: int, *, far: bool = False) -> tuple[Any, float]:
        """The kernel with its length scales multiplied by a power of sqrt(2), and the ridge that goes with it.

        From 1 on: shorter as long as each step lowers `score`, by 0.2 % at least, or longer as long as each lowers it by 1 %. If the
        right scale may be `far`, from the shortest of 1/16, 1/8 ... 2 that is within 1 % of the best of them on few landmarks. Few
        landmarks cannot cover the data at the length scales that all rows together would choose; longer ones serve them better.

        Raises
        ------
        ParameterError
            A kernel without a length scale.
        """
        if not isinstance(kernel, StationaryKernel):
            message = f'ridge_sample: kernel must be of this package for length_scale="gcv"; got {type(kernel).__name__[:60]}. Name one.'
            raise ParameterError(message)
        unit, values = self._of(kernel)
        tried: dict[int, tuple[float, float]] = {}

        def at(step: int) -> float:
            if step not in tried:
                tried[step] = self._score(unit * STEP**step, values, count)
            return tried[step][0]

        here = 0
        if far:
            values.values(count, unit)  # distances of all landmarks at once, then those of the first few are among them
            scores = [self._score(unit * STEP**step, values, min(count, FEW))[0] for step in FAR]
            here = next(step for step, score in zip(FAR, scores, strict=True) if WORTH * score <= min(scores))
        way, worth = (-1, LITTLE) if at(here - 1) < LITTLE * at(here) else (1, WORTH)
        last = here + way * MOST_STEPS
        while here != last and at(here + way) < worth * at(here):
            here += way
        found = rescaled(kernel, STEP**here)
        self._known = (found, unit * STEP**here, values)
        return found, tried[here][1]

    def landmarks(self, kernel: Any, count: int, ridge: float) -> Host:
        """Numbers of `count` rows of the data, those by which the targets are best explained; fewer where no more are different.

        O(s N (d + N) + N^2 count) time, O(s N) memory for N = 2 to 4 count candidates.
        """
        candidates = min(len(self.x), max(2 * count, min(CANDIDATES * count, MANY_CANDIDATES)))
        factor, values = self._of(kernel)
        c = np.asarray(values.values(candidates, factor, last=True))
        w = np.asarray(values.square(c, factor))
        s = np.ones(len(c)) if self.weights is None else self.weights
        c -= s @ c / s.sum()
        left = c.T if self.weights is None else c.T * s
        return self.rows[_pivots(left @ c + ridge * w, left @ self.y, count)]


def ridge_sample(x: Any, y: Any, count: int, *, weights: Any = None, rng: RngLike = None) -> RidgeSample:
    """A random sample of the rows of positive weight, for models of `count` landmarks.

    Parameters
    ----------
    x : array, shape (n, d)
    y : array, shape (n,) or (n, k)
    count : int
    weights : array, shape (n,), optional
        Not negative, with a positive sum.
    rng : None, int or numpy.random.Generator

    Returns
    -------
    RidgeSample
        8 rows per landmark, at least 4,000 and one in sixteen, or all.
    """
    func = "ridge_sample"
    xp, (x, y), _ = _inputs.prepare(func, {"x": x, "y": y})
    y = checked_targets(y, int(x.shape[0]), func=func, xp=xp)
    s = None if weights is None else np.asarray(_arrays.to_numpy(weights), dtype=np.float64)
    rows = np.arange(x.shape[0]) if s is None else np.flatnonzero(s > 0)
    size = min(len(rows), max(LEAST_SAMPLE, SAMPLE_ROWS * count, len(rows) // SAMPLE_SHARE))
    rows = as_generator(rng, func=func).permutation(rows)[:size]
    points, targets = (np.asarray(_arrays.to_numpy(_arrays.take_rows(a, rows, xp=xp)), dtype=np.float64) for a in (x, y))
    targets = targets - targets.mean(axis=0)
    spread = targets.std(axis=0)
    return RidgeSample(rows, points, targets / np.where(spread > 0, spread, 1.0), None if s is None else s[rows])


def _pivots(a: Host, b: Host, count: int) -> list[int]:
    """Pivots of the Cholesky factorization of `a` (N, N), in the order in which they lower -b_J^T A_JJ^-1 b_J most; b (N, k)."""
    n = len(a)
    diagonal, b = a.diagonal().copy(), b.copy()
    # What rounding leaves of a diagonal entry whose row depends on those chosen: a repeated candidate.
    cut = 16 * n * _arrays.eps(a.dtype) * diagonal.max()
    factor, chosen = np.empty((min(count, n), n)), []
    for i in range(len(factor)):
        gain = np.where(diagonal > cut, np.sum(b * b, axis=1) / np.maximum(diagonal, cut), -1.0)
        j = int(np.argmax(gain))
        if gain[j] < 0:
            break
        chosen.append(j)
        row = (a[j] - factor[:i, j] @ factor[:i]) / math.sqrt(diagonal[j])
        b -= row[:, None] * (b[j] / math.sqrt(diagonal[j]))
        diagonal -= row * row
        diagonal[j] = 0.0
        factor[i] = row
    return chosen
