"""Choosing rows by what the kernel has left unexplained: pivoted Cholesky and ridge leverage scores.

A partial Cholesky factorisation of K = k(X, X) is built pivot by pivot. The diagonal of what is left,
K - F F^T, says how badly each row is still explained; the next pivot is drawn in proportion to it (randomly
pivoted Cholesky) or taken at its maximum (greedy). K itself is never formed: the factor F is n x k.

Every random number is drawn on the host and every decision is made there in float64, so that the same `rng`
chooses the same rows whatever library and device hold the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._typing import Array, Namespace
from softlinalg.errors import NonFiniteError, ParameterError

__all__ = ["ROUNDING", "PivotedCholesky", "Rows", "check_kernel", "draw_proportional", "greedy_pivots", "leverage_rows", "random_pivots"]

Host = np.ndarray[Any, Any]

BLOCK_ENTRIES = 2**21
"""Entries of the largest temporary (16 MB in float64): large enough for GEMM, small beside the data."""

PROPOSALS = 64
"""Rows proposed at once. Constant, whatever the count: so fewer pivots are a prefix of more pivots."""

ROUNDING = 100.0
"""A residual below ROUNDING * eps times the diagonal is rounding, and counts as zero: distances computed by
GEMM are off by a few eps |x|^2, and the factorisation adds a few eps of its own."""

TIE = 2.0**-33
"""Values within this relative distance of the largest count as tied, and the first row wins: libraries round
differently, and data on a lattice has many exact ties."""


class Rows:
    """Rows of a point set, handed out in blocks in the type to compute in.

    Parameters
    ----------
    x : array, shape (n, d)
    indices : host integer array, shape (s,), or None
        The rows that take part; None means all. Positions below ("local") count within this selection.
    shift, scale : array, shape (d,), or None
        Blocks come as (x - shift) / scale.
    """

    def __init__(
        self, x: Array, indices: Host | None = None, *, xp: Namespace, shift: Array | None = None, scale: Array | None = None
    ) -> None:
        self.x = x
        self.indices = indices
        self.xp = xp
        self.shift = shift
        self.scale = scale
        self.dtype = _arrays.wide_dtype(x, xp=xp)

    def __len__(self) -> int:
        return int(self.x.shape[0]) if self.indices is None else len(self.indices)

    def to_global(self, local: Any) -> Host:
        """Row numbers in `x` of local positions."""
        host = np.asarray(local, dtype=np.int64)
        return host if self.indices is None else self.indices[host]

    def _convert(self, part: Array) -> Array:
        part = self.xp.astype(part, self.dtype, copy=False)
        if self.shift is not None:
            part = part - self.shift
        return part if self.scale is None else part / self.scale

    def take(self, local: Any) -> Array:
        """The rows at local positions, in order, shape (len(local), d)."""
        return self._convert(_arrays.take_rows(self.x, self.to_global(local), xp=self.xp))

    def spans(self, width: int) -> list[tuple[int, int]]:
        """Start and stop of blocks whose temporaries of `width` columns stay below BLOCK_ENTRIES."""
        size = max(256, BLOCK_ENTRIES // max(width, int(self.x.shape[1]), 1))
        return [(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def block(self, start: int, stop: int) -> Array:
        """Rows start..stop."""
        if self.indices is None:
            return self._convert(self.x[start:stop, :])
        return self.take(np.arange(start, stop))

    def blocks(self, width: int) -> Iterator[tuple[int, int, Array]]:
        """All rows: start, stop, block."""
        for start, stop in self.spans(width):
            yield start, stop, self.block(start, stop)

    def keys(self, local: Any) -> list[bytes]:
        """One value per row that is equal exactly where rows are equal."""
        host = _arrays.to_numpy(_arrays.take_rows(self.x, self.to_global(local), xp=self.xp))
        return [row.tobytes() for row in host + host.dtype.type(0)]  # adding zero turns -0.0 into 0.0


def draw_proportional(weights: Host, size: int, rng: np.random.Generator) -> Host:
    """Positions drawn independently, with replacement, in proportion to non-negative weights (not all zero)."""
    cumulative = np.cumsum(weights)
    # Just below the total at most: a row of weight zero at the end must never be hit.
    points = np.minimum(rng.random(size) * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
    return np.asarray(np.searchsorted(cumulative, points, side="right"))


def check_kernel(kernel: Any, *, func: str) -> None:
    """Refuse what cannot be called or has no `diagonal`, and a class in place of its object."""
    if isinstance(kernel, type) or not callable(kernel) or not callable(getattr(kernel, "diagonal", None)):
        shown = kernel.__name__ if isinstance(kernel, type) else type(kernel).__name__
        message = (
            f"{func}: kernel must have __call__(x, y) and diagonal(x); got {shown[:60]}. Pass Gaussian(length_scale) or such an object."
        )
        raise ParameterError(message)


def kernel_diagonal(kernel: Any, rows: Rows, *, func: str) -> Host:
    """Diagonal of k(X, X) on the host in float64, checked."""
    parts = [_arrays.to_numpy(_arrays.detach(kernel.diagonal(block))) for _, _, block in rows.blocks(1)]
    diagonal = np.concatenate(parts).astype(np.float64)
    if diagonal.shape != (len(rows),) or not np.all(np.isfinite(diagonal)) or bool(np.any(diagonal < 0)):
        message = f"{func}: kernel must have a finite, non-negative diagonal of shape (n,); got another one. Check kernel.diagonal."
        raise ParameterError(message)
    return diagonal


def kernel_values(kernel: Any, x: Array, y: Array, *, func: str, xp: Namespace) -> Array:
    """Kernel entries k(x, y) in the type of `x`, their shape checked."""
    values = _arrays.detach(_inputs.returned(kernel(x, y), x, func=func, what="kernel(x, y)"))
    if tuple(values.shape) != (x.shape[0], y.shape[0]):
        message = f"{func}: kernel must return shape {(x.shape[0], y.shape[0])}; got {tuple(values.shape)}. Check kernel.__call__."
        raise ParameterError(message)
    return xp.astype(values, x.dtype, copy=False)


def check_numbers(values: Host, *, func: str) -> None:
    """Raise where NaN or infinity in kernel entries has come through to what was computed from them."""
    if not np.all(np.isfinite(values)):
        message = f"{func}: kernel must return finite values; got NaN or infinity. Check kernel.__call__."
        raise NonFiniteError(message)


class PivotedCholesky:
    """Partial Cholesky factorisation of k(X, X) at pivots of one's choice, with the residual diagonal.

    Parameters
    ----------
    kernel : Kernel
    rows : Rows
    func : str
        Name of the public function, for messages.

    Attributes
    ----------
    residual : host float64 array, shape (n,)
        Diagonal of K - F F^T, never negative; exactly zero at pivots and where only rounding is left.
    pivots : list of int
        Local positions, in order.
    seen : set of bytes
        Keys of the pivots: a copy of a pivot has no residual, whatever rounding says.
    trace : float
        Trace of K.
    traces : list of float
        Trace of the residual after each pivot.

    Notes
    -----
    Memory: 8 n k bytes for k pivots, in blocks of rows, plus temporaries of BLOCK_ENTRIES entries.
    """

    def __init__(self, kernel: Any, rows: Rows, *, func: str) -> None:
        self.kernel = kernel
        self.rows = rows
        self.xp = rows.xp
        self.func = func
        diagonal = kernel_diagonal(kernel, rows, func=func)
        self.residual: Host = diagonal
        self.floor: Host = ROUNDING * _arrays.eps(rows.dtype) * diagonal
        self.trace = float(np.sum(diagonal))
        self.traces: list[float] = []
        self.pivots: list[int] = []
        self._spans = rows.spans(PROPOSALS)
        self._factors: list[list[Array]] = [[] for _ in self._spans]
        self.seen: set[bytes] = set()

    def factor_rows(self, local: Host) -> list[Array]:
        """The rows of F at local positions, as column blocks that correspond to those of the factor."""
        if not self.pivots:
            return []
        found: list[list[Array]] = []
        order: list[Host] = []
        for (start, stop), factors in zip(self._spans, self._factors, strict=True):
            here = np.nonzero((local >= start) & (local < stop))[0]
            if len(here):
                order.append(here)
                found.append([_arrays.take_rows(factor, local[here] - start, xp=self.xp) for factor in factors])
        back = np.argsort(np.concatenate(order))
        return [_arrays.take_rows(self.xp.concat(list(parts), axis=0), back, xp=self.xp) for parts in zip(*found, strict=True)]

    def schur(self, local: Host) -> Host:
        """The residual matrix K - F F^T among a few rows, on the host."""
        points = self.rows.take(local)
        matrix = kernel_values(self.kernel, points, points, func=self.func, xp=self.xp)
        for part in self.factor_rows(local):
            matrix = matrix - part @ self.xp.matrix_transpose(part)
        host = np.array(_arrays.to_numpy(matrix), dtype=np.float64)
        check_numbers(host, func=self.func)
        return host

    def eliminate(self, local: Host, lower: Host) -> None:
        """Append pivots.

        Parameters
        ----------
        local : host integer array, shape (t,)
        lower : host array, shape (t, t)
            Cholesky factor of the residual matrix among them.
        """
        points = self.rows.take(local)
        known = self.factor_rows(local)
        # The factor is at most PROPOSALS wide and its pivots were drawn from the residual: the inverse is harmless here,
        # and one more GEMM instead of a triangular solve with n right-hand sides.
        inverse = np.linalg.solve(lower, np.eye(len(lower)))
        back = _arrays.from_numpy(np.ascontiguousarray(inverse.T), self.rows.x, xp=self.xp, dtype=self.rows.dtype)
        gains = np.zeros(len(local))
        before = float(np.sum(self.residual))
        for (start, stop), factors in zip(self._spans, self._factors, strict=True):
            columns = kernel_values(self.kernel, self.rows.block(start, stop), points, func=self.func, xp=self.xp)
            for factor, part in zip(factors, known, strict=True):
                columns = columns - factor @ self.xp.matrix_transpose(part)
            columns = columns @ back
            squares = columns * columns
            gains += _arrays.to_numpy(self.xp.sum(squares, axis=0))
            self.residual[start:stop] -= _arrays.to_numpy(self.xp.sum(squares, axis=1))
            _append_merging(factors, columns, xp=self.xp)
        check_numbers(gains, func=self.func)
        self.residual[self.residual <= self.floor] = 0.0
        self.residual[local] = 0.0
        self.seen.update(self.rows.keys(local))
        self.pivots.extend(int(i) for i in local)
        self.traces.extend(float(max(t, 0.0)) for t in before - np.cumsum(gains))
        self.traces[-1] = float(np.sum(self.residual))


def _append_merging(factors: list[Array], columns: Array, *, xp: Namespace) -> None:
    """Append a column block, joining neighbours of similar width: few large products instead of many small ones."""
    factors.append(columns)
    while len(factors) > 1 and factors[-1].shape[1] >= factors[-2].shape[1]:
        last = factors.pop()
        factors[-1] = xp.concat([factors[-1], last], axis=1)


def _accept(state: PivotedCholesky, local: Host, thresholds: Host, limit: int) -> tuple[Host, Host]:
    """Rejection sampling inside one block of proposals.

    Row s was proposed with probability proportional to its residual u_s when the block began. It is accepted with
    probability h_s / u_s, where h_s is its residual now, given the rows accepted before it in the block: so
    accepted rows have exactly the law of the plain, sequential algorithm.

    Returns
    -------
    accepted : host integer array, shape (t,), t <= limit
    lower : host array, shape (t, t)
        Cholesky factor of the residual matrix among them.
    """
    schur = state.schur(local)
    seen = set(state.seen)
    kept: list[int] = []
    columns: list[Host] = []
    for i, key in enumerate(state.rows.keys(local)):
        h = schur[i, i]
        if key in seen or h <= state.floor[local[i]] or thresholds[i] * state.residual[local[i]] >= h:
            continue
        seen.add(key)
        column = schur[:, i] / math.sqrt(h)
        column[:i] = 0.0
        schur -= np.outer(column, column)
        kept.append(i)
        columns.append(column)
        if len(kept) == limit:
            break
    if not kept:
        # The first proposal has h = u, but for rounding (or it is a copy of a pivot): nothing is left there. Every round
        # takes a pivot or drops a row, so the loop ends.
        state.residual[local[0]] = 0.0
    return local[kept], np.stack(columns, axis=1)[kept] if kept else np.zeros((0, 0))


def _truncate(state: PivotedCholesky, tol: float | None) -> bool:
    """Has the residual trace fallen to tol * trace? If so, keep no more pivots than that took."""
    if tol is None:
        return False
    for k, trace in enumerate(state.traces):
        if trace <= tol * state.trace:
            del state.pivots[k + 1 :], state.traces[k + 1 :]
            return True
    return False


def random_pivots(
    state: PivotedCholesky, limit: int, *, tol: float | None, rng: np.random.Generator, advance: Callable[[int], object]
) -> bool:
    """Accelerated randomly pivoted Cholesky: the law of the sequential algorithm, at the speed of block products.

    Parameters
    ----------
    state : PivotedCholesky
        Without pivots; receives them.
    limit : int
        Largest number of pivots.
    tol : float or None
        Stop as soon as the residual trace is at most tol * trace.
    rng : numpy.random.Generator
    advance : callable
        Told the number of pivots that each block has added (a progress bar).

    Returns
    -------
    bool
        Was `tol` reached?

    Notes
    -----
    O(n k^2) time plus n k kernel entries. The first k pivots for a larger limit are the pivots for limit k.

    References
    ----------
    .. [1] Chen, Epperly, Tropp & Webber, Randomly pivoted Cholesky (2022), arXiv 2207.06503.
    .. [2] Epperly, Tropp & Webber, Embrace rejection (2024), arXiv 2410.03969.
    """
    while len(state.pivots) < limit and float(np.sum(state.residual)) > 0:
        local = draw_proportional(state.residual, PROPOSALS, rng)
        accepted, lower = _accept(state, local, rng.random(PROPOSALS), limit - len(state.pivots))
        if len(accepted):
            state.eliminate(accepted, lower)
            advance(len(accepted))
            if _truncate(state, tol):
                return True
    return _truncate(state, tol)


def greedy_pivots(state: PivotedCholesky, limit: int, *, tol: float | None, advance: Callable[[int], object]) -> bool:
    """Cholesky with diagonal pivoting: always the row with the largest residual; ties go to the first such row.

    Parameters and return value as in `random_pivots`; nothing is random. O(n k^2) time, one pivot at a time.
    """
    while len(state.pivots) < limit:
        largest = float(np.max(state.residual))
        if largest <= 0:
            break
        local = np.asarray([int(np.argmax(state.residual >= largest * (1 - TIE)))])
        h = float(state.schur(local)[0, 0])
        if h <= state.floor[local[0]] or state.rows.keys(local)[0] in state.seen:
            state.residual[local] = 0.0
            continue
        state.eliminate(local, np.asarray([[math.sqrt(h)]]))
        advance(1)
        if _truncate(state, tol):
            return True
    return _truncate(state, tol)


def _draw_without_replacement(weights: Host, count: int, rng: np.random.Generator) -> Host:
    """`count` different positions, one after the other in proportion to the weights that are left (Efraimidis & Spirakis 2006)."""
    noise = rng.exponential(size=len(weights))
    with np.errstate(divide="ignore"):
        keys = np.where(weights > 0, noise / np.where(weights > 0, weights, 1.0), np.inf)
    # Rows without weight come last, in random order.
    return np.sort(np.lexsort((noise, keys))[:count])


def leverage_rows(kernel: Any, rows: Rows, count: int, *, rng: np.random.Generator, func: str) -> Host:
    """Rows drawn by approximate ridge leverage scores, recursively.

    The score of row i is [K (K + lam I)^-1]_ii: its share in the directions whose eigenvalue exceeds lam. Scores on
    a set are estimated from a weighted sample S of half the set, which was drawn in the same way:
    l_i = (k_ii - b_i^T (D K_SS D + lam I)^-1 b_i) / lam with b_i = D k(S, x_i), D the sampling weights, and lam the mean
    tail of the spectrum of D K_SS D.

    Returns
    -------
    host integer array, shape (count,)
        Local positions, sorted, all different.

    Notes
    -----
    O(n count^2) time, n count kernel entries, temporaries of BLOCK_ENTRIES entries.

    References
    ----------
    .. [1] Musco & Musco, Recursive sampling for the Nystrom method (2017), arXiv 1605.07583.
    """
    n = len(rows)
    order = rng.permutation(n)
    sizes = [n]
    while sizes[-1] > 2 * count:
        sizes.append(-(-sizes[-1] // 2))
    chosen, weights = order[: min(count, sizes[-1])], np.ones(min(count, sizes[-1]))
    for size in reversed(sizes):
        level = np.sort(order[:size])
        scores = _leverage_scores(kernel, rows, level, chosen, weights, func=func)
        picked = _draw_without_replacement(scores, min(count, size), rng)
        total = float(np.sum(scores))
        share = scores[picked] * (count / total) if total > 0 else np.ones(len(picked))
        chosen = level[picked]
        weights = 1.0 / np.sqrt(np.clip(share, ROUNDING * _arrays.eps(rows.dtype), 1.0))
    return chosen


def _leverage_scores(kernel: Any, rows: Rows, level: Host, chosen: Host, weights: Host, *, func: str) -> Host:
    """Approximate ridge leverage scores of the rows `level`, from the weighted sample `chosen`."""
    xp = rows.xp
    members = Rows(rows.x, rows.to_global(level), xp=xp)
    diagonal = kernel_diagonal(kernel, members, func=func)
    points = rows.take(chosen)
    scale = _arrays.from_numpy(weights, rows.x, xp=xp, dtype=rows.dtype)
    core = kernel_values(kernel, points, points, func=func, xp=xp) * scale[:, None] * scale[None, :]
    check_numbers(_arrays.to_numpy(core), func=func)
    spectrum = np.sort(np.abs(_arrays.to_numpy(xp.linalg.eigvalsh(core)).astype(np.float64)))[::-1]
    s = len(chosen)
    head = max(1, min(s - 1, math.ceil(s / (4 * math.log(max(s, 3)))))) if s > 1 else 0
    # Never below rounding: with fewer different rows than samples the tail is zero.
    ridge = max(float(np.sum(spectrum[head:])) / max(head, 1), ROUNDING * _arrays.eps(rows.dtype) * float(spectrum[0]), 1e-300)
    shifted = core + ridge * _arrays.eye_like(core, xp=xp)
    # The ridge bounds the condition number, so the explicit inverse of the factor is accurate, and GEMM does the rest.
    factor, _ = _linalg.cholesky(shifted, xp=xp)
    inverse = xp.matrix_transpose(_linalg.triangular_solve(factor, _arrays.eye_like(factor, xp=xp), xp=xp))
    scores = np.empty(len(level))
    for start, stop, block in members.blocks(s):
        features = (kernel_values(kernel, block, points, func=func, xp=xp) * scale[None, :]) @ inverse
        scores[start:stop] = diagonal[start:stop] - _arrays.to_numpy(xp.sum(features * features, axis=1))
    check_numbers(scores, func=func)
    return np.maximum(scores, 0.0) / ridge
