"""Landmarks as centers of clusters: k-means++ seeds and Lloyd's iteration, in blocks.

Distances come from one GEMM per block of rows, relative to the mean of the landmarks, in float64 where the
device has it. Nearest landmarks within rounding of each other count as tied, and the first one wins: so every
array library assigns the rows in the same way, also on a lattice, where ties are common.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from softlinalg import _arrays, _native
from softlinalg._landmark_sampling import PROPOSALS, Host, Rows, draw_proportional
from softlinalg._typing import Array, Namespace

__all__ = ["assign", "lloyd", "plus_plus_seeds"]

SLACK = 64.0
"""Squared distances from GEMM are off by a few eps (|x|^2 + |y|^2); within SLACK eps of that they count as equal."""

CACHED_ENTRIES = 2**17
"""Scores that are worked on together on a CPU: 1 MiB in float64."""


def _half_norms(points: Array, *, xp: Namespace) -> Array:
    """|p|^2 / 2 for each row."""
    return xp.sum(points * points, axis=1) / 2


def lloyd(
    rows: Rows, landmarks: Array, steps: int, *, tol: float = 0.0, advance: Callable[[int], object] = lambda _: None
) -> tuple[Array, list[float]]:
    """Lloyd's iteration: assign each row to its nearest landmark, then move each landmark to the mean of its rows.

    Parameters
    ----------
    rows : Rows
        n points.
    landmarks : array, shape (m, d)
        Start, in the units and type of the blocks of `rows`.
    steps : int
    tol : float
        Stop when a step has lowered the sum by at most this share of it.
    advance : callable
        Told of each step (a progress bar).

    Returns
    -------
    landmarks : array, shape (m, d)
        A landmark without rows stays where it is.
    objective : list of float
        Sum of squared distances to the nearest landmark before each step; never increases.

    Notes
    -----
    O(n m d) time per step; temporaries of BLOCK_ENTRIES entries.
    """
    objective: list[float] = []
    for _ in range(steps):
        sums, counts, total = assign(rows, landmarks)
        objective.append(total)
        filled = counts > 0
        means = sums / rows.xp.where(filled, counts, rows.xp.ones_like(counts))[:, None]
        landmarks = rows.xp.where(filled[:, None], means, landmarks)
        advance(1)
        if len(objective) > 1 and objective[-2] - total <= tol * objective[-2]:
            break
    return landmarks, objective


def assign(rows: Rows, landmarks: Array) -> tuple[Array, Array, float]:
    """Sums (m, d) and numbers (m,) of the rows nearest to each landmark, and the sum of squared distances to it."""
    xp = rows.xp
    m = int(landmarks.shape[0])
    half = _half_norms(landmarks, xp=xp)
    slack = SLACK * _arrays.eps(rows.dtype)
    transposed = xp.matrix_transpose(landmarks)
    sums = _arrays.zeros_like_shape(tuple(landmarks.shape), landmarks, xp=xp)
    counts = np.zeros(m)
    total = 0.0
    for _, _, block in rows.blocks(m):
        own = _half_norms(block, xp=xp)
        labels, best = _nearest(block, own, transposed, half, slack, xp=xp)
        sums = sums + _arrays.group_sums(block, labels, m, xp=xp)
        counts += np.bincount(_arrays.to_numpy(labels), minlength=m)
        total += 2 * float(xp.sum(xp.clip(own + best, min=0.0)))
    return sums, _arrays.from_numpy(counts, landmarks, xp=xp, dtype=rows.dtype), total


def _nearest(block: Array, own: Array, transposed: Array, half: Array, slack: float, *, xp: Namespace) -> tuple[Array, Array]:
    """Of each row the first of the nearest landmarks, and (|x - l|^2 - |x|^2) / 2 for the nearest."""
    of_half, of_row = slack * half, slack * own
    if _arrays.is_cpu(block) and _arrays.may_reuse_buffers(block, transposed):
        hosts = (_arrays.host_view(x, xp=xp)[0] for x in (block, transposed, half, of_half, of_row))
        labels, nearest = _nearest_in_cache(*hosts)
        return _arrays.from_numpy(labels, block, xp=xp), _arrays.from_numpy(nearest, block, xp=xp)
    return _first_that_ties(block @ transposed, half, of_half, of_row, xp=xp)


def _first_that_ties(products: Array, half: Array, of_half: Array, of_row: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """The same from products x.l, with the slack of each landmark and of each row."""
    scores = half[None, :] - products
    best = xp.min(scores, axis=1)
    tied = scores - of_half[None, :] <= (best + of_row)[:, None]
    return xp.argmax(xp.astype(tied, xp.int8), axis=1), best


def _nearest_in_cache(block: Host, transposed: Host, half: Host, of_half: Host, of_row: Host) -> tuple[Host, Host]:
    """The same for arrays of the host, a few rows at a time: scores are still in the cache when the nearest is looked for.

    Compiled code visits them once more; NumPy, where there is no compiler, six times.
    """
    n, m = block.shape[0], transposed.shape[1]
    labels, best = np.empty(n, dtype=np.int64), np.empty(n, dtype=block.dtype)
    step = max(1, CACHED_ENTRIES // m)
    memory = np.empty((min(step, n), m), dtype=block.dtype)
    for first in range(0, n, step):
        part = slice(first, first + step)
        rows = block[part]
        products = np.matmul(rows, transposed, out=memory[: rows.shape[0]])
        found = _native.nearest(products, half, of_half, of_row[part])
        if found is None:
            found = _first_that_ties(products, half, of_half, of_row[part], xp=_arrays.host_namespace())
        labels[part], best[part] = found
    return labels, best


def _squared_distances(x: Array, y: Array, *, xp: Namespace) -> Array:
    """Squared distances (n, m); exactly zero where only rounding is left."""
    own, other = _half_norms(x, xp=xp)[:, None], _half_norms(y, xp=xp)[None, :]
    values = 2 * (own + other - x @ xp.matrix_transpose(y))
    return xp.where(values > SLACK * _arrays.eps(x.dtype) * (own + other), values, xp.zeros_like(values))


def plus_plus_seeds(rows: Rows, count: int, *, rng: np.random.Generator, advance: Callable[[int], object] = lambda _: None) -> Host:
    """k-means++ seeds: each row drawn in proportion to its squared distance to the rows chosen before.

    Blocks of proposals and rejection, as in accelerated randomly pivoted Cholesky: the law is that of the sequential
    algorithm, the passes over the data are several times fewer.

    Parameters
    ----------
    rows : Rows
    count : int
    rng : numpy.random.Generator
    advance : callable
        Told the number of seeds that each block of proposals has added (a progress bar).

    Returns
    -------
    host integer array, shape (k,), k <= count
        Local positions; fewer than `count` where there are fewer different rows.

    Notes
    -----
    O(n count d) time.

    References
    ----------
    .. [1] Arthur & Vassilvitskii, k-means++ (2007).
    """
    xp = rows.xp
    chosen = [int(rng.integers(len(rows)))]
    weights = np.full(len(rows), np.inf)
    _lower(weights, rows, np.asarray(chosen))
    seen = set(rows.keys(chosen))
    while len(chosen) < count and float(np.sum(weights)) > 0:
        local = draw_proportional(weights, PROPOSALS, rng)
        thresholds = rng.random(PROPOSALS) * weights[local]
        points = rows.take(local)
        mutual = _arrays.to_numpy(_squared_distances(points, points, xp=xp))
        current = weights[local]
        accepted: list[int] = []
        for i, key in enumerate(rows.keys(local)):
            if key in seen or not thresholds[i] < current[i]:
                continue
            seen.add(key)
            accepted.append(int(local[i]))
            current = np.minimum(current, mutual[i])
            if len(chosen) + len(accepted) == count:
                break
        weights[local[0]] = 0.0  # chosen, a copy of a chosen row, or rounding: either way nothing is left
        if accepted:
            _lower(weights, rows, np.asarray(accepted))
            chosen.extend(accepted)
            advance(len(accepted))
    return np.asarray(chosen, dtype=np.int64)


def _lower(weights: Host, rows: Rows, local: Host) -> None:
    """Lower `weights`, in place, to the squared distance to the nearest of some rows."""
    points = rows.take(local)
    for start, stop, block in rows.blocks(len(local)):
        nearest = rows.xp.min(_squared_distances(block, points, xp=rows.xp), axis=1)
        weights[start:stop] = np.minimum(weights[start:stop], _arrays.to_numpy(nearest))
    weights[local] = 0.0
