"""What is computed from chunks of rows, and the order in which it is added up.

A task turns a chunk into a tuple of arrays, and merges two such tuples. Chunks have a fixed length and their results are merged
along a binary tree that depends on their number alone (`Tree`): whoever computes them, in whatever order and after whatever
interruption, the result is the same bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from softlinalg._landmark_clusters import assign
from softlinalg._landmark_sampling import Rows
from softlinalg._nystrom_core import kernel_diagonal, row_spans, row_totals
from softlinalg._streaming_plan import Plan
from softlinalg._streaming_sources import Host

__all__ = ["FeatureTask", "LloydTask", "MomentTask", "PairTask", "SampleTask", "State", "Task", "Tree", "smallest_keys"]

State = tuple[Host, ...]
T = TypeVar("T")

FEATURE_BYTES = 2**23
"""Memory of the block of features that is made at once (8 MiB)."""


class Task(Protocol):
    """A reduction over chunks of rows."""

    def __call__(self, start: int, x: Host, y: Host | None) -> State:
        """The result of one chunk, whose first row has the number `start`."""
        ...

    def merge(self, a: State, b: State) -> State:
        """The result of two neighbouring runs of chunks, in their order."""
        ...


class Tree(Generic[T]):
    """Merges items along a fixed binary tree while they come in order, keeping about log2 of their number.

    Item i of level 0 is merged with its neighbour as soon as both are there, the pairs likewise, as digits carry in a binary
    counter; what is left at the end is merged from the last to the first.

    Parameters
    ----------
    merge : callable
    items : sequence of (level, item)
        Where an earlier tree had come to.
    """

    def __init__(self, merge: Callable[[T, T], T], items: Sequence[tuple[int, T]] = ()) -> None:
        self._merge = merge
        self.items = list(items)

    def push(self, item: T) -> None:
        """Add the next item."""
        level = 0
        while self.items and self.items[-1][0] == level:
            item = self._merge(self.items.pop()[1], item)
            level += 1
        self.items.append((level, item))

    def total(self) -> T:
        """The merger of all items so far; at least one."""
        result = self.items[-1][1]
        for _, item in reversed(self.items[:-1]):
            result = self._merge(item, result)
        return result


def _sum(a: State, b: State) -> State:
    return tuple(u + v for u, v in zip(a, b, strict=True))


# ------------------------------------------------------------------------------------------------ the sums
@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureTask:
    """Sums of features F = k(x, L) M and targets y, less a shift: what the approximation and a ridge regression need.

    The state holds F^T F (r, r), F^T (y - shift) (r, k), the sum of F (r,), of (y - shift)^2 (k,), of y - shift (k,), the totals of
    `row_totals` (4,) and the number of rows (1,), all float64.
    """

    plan: Plan
    shift: Host
    """Shape (k,): roughly the mean of the targets, so that no digits are lost."""

    def __call__(self, start: int, x: Host, y: Host | None) -> State:
        """O(b m (d + r) + b r^2) time for b rows and m landmarks; memory of 8 MiB or 256 rows of features, and two r x r arrays."""
        plan, k = self.plan, len(self.shift)
        feature_map, whitening, wide = plan.feature_map(), plan.whitening(), plan.wide()
        r, stored = feature_map.rank, plan.stored_unit()
        step = max(256, FEATURE_BYTES // (feature_map.dtype.itemsize * max(r, 1)))
        buffer = np.empty((min(step, len(x)), r), feature_map.dtype)
        gram, cross, totals = np.zeros((r, r)), np.zeros((r, k + 1)), np.zeros(4)
        # Memory is taken once: workers of a cluster give freed arrays back to the system, and getting them anew costs a third of the time.
        spans = row_spans(len(buffer), r, buffer)
        scratch, product = np.empty((spans[0][1], r)), np.empty((r, r))
        right = np.ones((len(x), k + 1))
        if y is not None:
            np.subtract(y, self.shift, out=right[:, :k])
        for first in range(0, len(x), step):
            rows = x[first : first + step]
            features = feature_map(rows, buffer[: len(rows)])
            for a, b in row_spans(len(rows), r, buffer):
                f = scratch[: b - a]
                f[...] = features[a:b]
                gram += np.matmul(f.T, f, out=product)
                cross += f.T @ right[first + a : first + b]
                k_ii = wide.widen(kernel_diagonal(plan.kernel, rows[a:b], func=plan.func))
                totals += row_totals(f, k_ii, whitening, unit=plan.unit, stored_unit=stored, wide=wide)
        centered = right[:, :k]
        squares, target_sum = (centered * centered).sum(axis=0), centered.sum(axis=0)
        return gram, cross[:, :k].copy(), cross[:, k].copy(), squares, target_sum, totals, np.array([float(len(x))])

    merge = staticmethod(_sum)


@dataclass(frozen=True, eq=False, kw_only=True)
class MomentTask:
    """Sums of x - shift and of its squares, and the smallest and largest value of each column."""

    shift: Host

    def __call__(self, start: int, x: Host, y: Host | None) -> State:
        """Five arrays: number of rows (1,), sums, squares, minima and maxima (d,)."""
        centered = x - self.shift
        count = np.array([float(len(x))])
        with np.errstate(over="ignore"):
            squares = (centered * centered).sum(axis=0)
        return count, centered.sum(axis=0), squares, x.min(axis=0).astype(np.float64), x.max(axis=0).astype(np.float64)

    @staticmethod
    def merge(a: State, b: State) -> State:
        """Sums added, extremes compared."""
        return a[0] + b[0], a[1] + b[1], a[2] + b[2], np.minimum(a[3], b[3]), np.maximum(a[4], b[4])


# ------------------------------------------------------------------------------------------------ the sample
def row_keys(seed: int, start: int, stop: int) -> Host:
    """A random 64-bit key for each row number: SplitMix64, a function of seed and row number alone.

    References
    ----------
    .. [1] Steele, Lea & Flood, Fast splittable pseudorandom number generators (2014).
    """
    z = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _first_by_key(keys: Host, indices: Host, count: int) -> Host:
    """Positions of the `count` smallest keys, in the order of rows. No two keys are equal: SplitMix64 is one-to-one."""
    chosen = np.arange(len(keys)) if len(keys) <= count else np.argpartition(keys, count - 1)[:count]
    return chosen[np.argsort(indices[chosen], kind="stable")]


def smallest_keys(seed: int, rows: int, count: int, *, step: int = 2**20) -> Host:
    """Row numbers, rising, of the sample that `SampleTask` takes of so many rows, without looking at any."""
    keys, indices = np.empty(0, np.uint64), np.empty(0, np.int64)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        keys = np.concatenate([keys, row_keys(seed, start, stop)])
        indices = np.concatenate([indices, np.arange(start, stop)])
        if len(keys) > count:
            near = np.argpartition(keys, count - 1)[:count]
            keys, indices = keys[near], indices[near]
    return np.sort(indices)


@dataclass(frozen=True, eq=False, kw_only=True)
class SampleTask:
    """A uniform sample without replacement: the rows with the smallest random keys, whatever their number turns out to be.

    The state holds keys, row numbers, rows and targets (shape (b, 0) without), in the order of rows, and the number of all rows.
    """

    seed: int
    count: int

    def __call__(self, start: int, x: Host, y: Host | None) -> State:
        """The sample of one chunk."""
        keys, indices = row_keys(self.seed, start, start + len(x)), np.arange(start, start + len(x))
        chosen = _first_by_key(keys, indices, self.count)
        targets = np.empty((len(chosen), 0)) if y is None else y[chosen]
        return keys[chosen], indices[chosen], x[chosen], targets, np.array([float(len(x))])

    def merge(self, a: State, b: State) -> State:
        """The sample of both."""
        joined = [np.concatenate([u, v]) for u, v in zip(a[:4], b[:4], strict=True)]
        chosen = _first_by_key(joined[0], joined[1], self.count)
        return (*(part[chosen] for part in joined), a[4] + b[4])


@dataclass(frozen=True, eq=False)
class PairTask:
    """Two tasks in one pass; the state is that of the first, then that of the second."""

    first: Any
    second: Any
    width: int
    """Arrays in the state of the first."""

    def __call__(self, start: int, x: Host, y: Host | None) -> State:
        """Both results."""
        return (*self.first(start, x, y), *self.second(start, x, y))

    def merge(self, a: State, b: State) -> State:
        """Both mergers."""
        w = self.width
        return (*self.first.merge(a[:w], b[:w]), *self.second.merge(a[w:], b[w:]))


# ------------------------------------------------------------------------------------------------ the landmarks
@dataclass(frozen=True, eq=False, kw_only=True)
class LloydTask:
    """One step of Lloyd's iteration over all rows: sums (m, d) and numbers (m,) of the rows nearest to each landmark, in float64."""

    landmarks: Host
    """float64, shape (m, d)."""
    units: Host
    """Per feature, the unit in which distances are measured, shape (d,)."""

    def _normalization(self) -> tuple[Host, Host]:
        """A central point, and units in which squares neither overflow nor vanish."""
        shift = np.median(self.landmarks, axis=0)
        largest = float(np.abs((self.landmarks - shift) / self.units).max())
        return shift, self.units * math.ldexp(1.0, math.frexp(largest)[1] if 0 < largest < math.inf else 0)

    def __call__(self, start: int, x: Host, y: Host | None) -> State:
        """Three arrays: sums, numbers, and the sum of squared distances (1,)."""
        shift, scale = self._normalization()
        rows = Rows(x.astype(np.float64), xp=np, shift=shift, scale=scale)
        sums, counts, total = assign(rows, (self.landmarks - shift) / scale)
        return sums, counts, np.array([total])

    merge = staticmethod(_sum)

    def moved(self, state: State) -> Host:
        """The landmarks at the means of their rows; one without rows stays where it is."""
        sums, counts, _ = state
        shift, scale = self._normalization()
        means = sums / np.where(counts > 0, counts, 1.0)[:, None] * scale + shift
        return np.where(counts[:, None] > 0, means, self.landmarks)
