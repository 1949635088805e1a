"""Building a Nystrom approximation: settle the landmarks, factorise, measure, and grow until the error asked for is met."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import numpy as np

from softlinalg import _arrays, _inputs
from softlinalg._landmarks import METHODS, select_landmarks
from softlinalg._nystrom_core import (
    CUT_OFF,
    KERNEL_UNITS,
    FeatureMap,
    RowStore,
    Summary,
    Whitening,
    Wide,
    kernel_diagonal,
    kernel_unit,
    progress_bar,
    row_rounding,
    row_spans,
    summarize,
    triangularize,
    whiten,
)
from softlinalg._typing import Array, DType, Namespace
from softlinalg.errors import DuplicateLandmarkWarning, InputError, NumericalError, ParameterError, ShapeError

__all__ = [
    "FEATURE_BUDGET",
    "FLOOR_SHARE",
    "Fit",
    "Problem",
    "choose_landmarks",
    "feature_map_of",
    "fit",
    "fit_to_tolerance",
    "measure",
    "measured_floor",
    "settle_landmarks",
    "truncation_errors",
    "unit_of",
    "whitening_of",
]

FEATURE_BUDGET = 2**30
"""Features of up to so many bytes (1 GiB) are kept by default; larger ones are computed anew for every product."""

FIRST_COUNT = 32
"""Landmarks to begin with when an error is asked for."""

SAMPLE_ROWS = 4096
"""Rows on which the error is looked at before a pass over all rows is worth its cost."""

FLOOR_ROWS = 512
"""Rows on which rounding is measured, at most."""

FLOOR_SHARE_OF_ROWS, FLOOR_SAMPLE = 8, 128
"""One row of so many, so that it takes little beside the features; and at least so many rows, which also tell the rest in float64."""

FLOOR_SHARE = 0.5
"""A trace error of which rounding may be more than this share is measured again in float64."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """A call of `nystrom` with its arguments checked."""

    func: str
    x: Array
    """Points, shape (n, d)."""
    kernel: Any
    dtype: DType
    """Of the features: that of `x`, float32 for the half precisions."""
    rtol: float | None
    rng: np.random.Generator
    chunk_size: int | None
    progress: bool
    store_features: bool | str
    wide: Wide
    xp: Namespace

    @property
    def n(self) -> int:
        """Number of rows."""
        return int(self.x.shape[0])

    def keeps_features(self, rank: int) -> bool:
        """Whether n x rank features are to be kept."""
        if self.store_features == "auto":
            return self.n * rank * (4 if _arrays.eps(self.dtype) > 2.0**-50 else 8) <= FEATURE_BUDGET
        return bool(self.store_features)


class Fit(NamedTuple):
    """An approximation and what is known of it."""

    map: FeatureMap
    summary: Summary
    features: Array | None
    landmarks: Array
    """In the order in which they were chosen or given; the map has its own."""


# -------------------------------------------------------------------------------------------- landmarks
def settle_landmarks(problem: Problem, landmarks: Any, rank: int | None) -> str | Array:
    """The name of the method by which landmarks are to be chosen, or the landmarks themselves.

    Raises
    ------
    ParameterError
        Unknown method; indices outside the rows; a rank that is not the number of landmarks given.
    ShapeError
        Neither points of the width of `x` nor a flat list of indices.
    """
    func, n = problem.func, problem.n
    if isinstance(landmarks, str):
        if landmarks not in METHODS:
            message = f"{func}: landmarks must be an array or one of {', '.join(METHODS)}; got {landmarks[:40]!r}. Choose one of these."
            raise ParameterError(message)
        return landmarks
    shape = tuple(np.shape(landmarks)) if isinstance(landmarks, list | tuple | range) else tuple(getattr(landmarks, "shape", ()))
    if len(shape) not in (1, 2) or 0 in shape or (len(shape) == 2 and shape[1] != problem.x.shape[1]):
        message = f"{func}: landmarks must be points (m, {problem.x.shape[1]}) or row numbers (m,), m >= 1; got {shape}. Reshape them."
        raise ShapeError(message)
    if shape[0] > n or rank not in (None, shape[0]):
        what = f"{shape[0]} for {n} rows" if shape[0] > n else f"{shape[0]} beside rank={rank}"
        message = f"{func}: landmarks must be as many as rank, at most n; got {what}. Leave rank out, or give fewer landmarks."
        raise ParameterError(message)
    points = _rows_at(problem, landmarks) if len(shape) == 1 else _points(problem, landmarks)
    _warn_of_duplicates(points, func=func)
    return points


def _rows_at(problem: Problem, indices: Any) -> Array:
    """The rows with these numbers."""
    host = np.asarray(_arrays.to_numpy(indices) if hasattr(indices, "shape") else indices)
    if host.dtype.kind not in "iu" or host.min() < 0 or host.max() >= problem.n:
        got = f"dtype {host.dtype}" if host.dtype.kind not in "iu" else f"values from {host.min()} to {host.max()}"
        message = f"{problem.func}: landmarks of shape (m,) must be row numbers from 0 to {problem.n - 1}; got {got}. Pass such, or points."
        raise ParameterError(message)
    return _arrays.take_rows(problem.x, host, xp=problem.xp)


def _points(problem: Problem, landmarks: Any) -> Array:
    """The points given, checked, in the dtype of the data."""
    xp, (points, _), _ = _inputs.prepare(problem.func, {"landmarks": landmarks, "x": problem.x}, whole=False)
    _inputs.check_finite(points, func=problem.func, name="landmarks", xp=xp)
    return xp.astype(_arrays.detach(points), problem.x.dtype, copy=True)  # ours: the caller may change theirs later


def _warn_of_duplicates(points: Array, *, func: str) -> None:
    host = _arrays.to_numpy(points) + 0  # a copy in which -0 is 0
    different = len({row.tobytes() for row in host})
    if different < len(host):
        message = f"{func}: {len(host) - different} of {len(host)} landmarks repeat others; the result is that of the different ones."
        warnings.warn(message, DuplicateLandmarkWarning, stacklevel=4)


def choose_landmarks(problem: Problem, method: str, count: int, rng: np.random.Generator) -> Array:
    """Landmarks by a named method."""
    return select_landmarks(problem.x, count, method=method, kernel=problem.kernel, rng=rng, progress=problem.progress, check_finite=False)


# -------------------------------------------------------------------------------------------- one factorisation
def whitening_of(problem: Problem, landmarks: Array, rtol: float) -> Whitening:
    """The core of an approximation, in float64 wherever the kernel can be computed in it."""
    wide, xp = problem.wide, problem.xp
    dtype = xp.float64 if wide.has_float64 else problem.dtype
    points = xp.astype(landmarks, dtype, copy=False)
    m = points.shape[0]
    w = _inputs.returned(problem.kernel(points, points), points, func=problem.func, what="kernel(x, y)")
    if tuple(w.shape) != (m, m):
        message = f"{problem.func}: kernel(x, y) must have shape ({m}, {m}) for {m} points; got {tuple(w.shape)}. Return (len(x), len(y))."
        raise ShapeError(message)
    noise = kernel_unit(problem.kernel, points, func=problem.func, xp=xp)
    return whiten(wide.widen(w), rtol=rtol, noise=noise, func=problem.func, xp=wide.xp)


def feature_map_of(problem: Problem, landmarks: Array, whitening: Whitening, *, in_float64: bool) -> FeatureMap:
    return FeatureMap(
        kernel=problem.kernel,
        landmarks=_arrays.take_rows(landmarks, whitening.order, xp=problem.xp),
        map=whitening.map,
        dtype=problem.dtype,
        in_float64=in_float64,
        chunk_size=problem.chunk_size,
        wide=problem.wide,
        xp=problem.xp,
    )


def measure(
    problem: Problem, feature_map: FeatureMap, x: Array, whitening: Whitening | None, *, keep: bool, with_spectrum: bool = False
) -> tuple[Summary, Array | None]:
    """One pass over the rows of `x`: block of C, block of F, sums; with the features if they are to be kept."""
    func, n = problem.func, int(x.shape[0])
    shape, like = (n, feature_map.rank), feature_map.landmarks
    store = RowStore(shape, like, problem.dtype, func=func, xp=problem.xp) if keep else None

    def blocks(advance: Callable[[int], Any]) -> Iterator[tuple[int, int, Array]]:
        for start, stop in row_spans(n, feature_map.rank, like, problem.chunk_size):
            block = feature_map(x[start:stop, :], None if store is None else store.slot(start, stop))
            if store is not None:
                store.put(start, stop, block)
            yield start, stop, block
            advance(stop - start)

    with progress_bar(n, f"rank {feature_map.rank}", shown=problem.progress) as advance:
        summary = summarize(
            blocks(advance),
            lambda start, stop: kernel_diagonal(problem.kernel, x[start:stop, :], func=func),
            feature_map.rank,
            whitening,
            unit=unit_of(problem, feature_map),
            stored_unit=_arrays.eps(problem.dtype),
            with_spectrum=with_spectrum,
            func=func,
            wide=problem.wide,
        )
    return summary, None if store is None else store.result()


class _Attempt(NamedTuple):
    """An approximation that was measured."""

    landmarks: Array
    map: FeatureMap
    whitening: Whitening
    summary: Summary
    features: Array | None

    @property
    def error(self) -> float:
        """Relative trace error."""
        return self.summary.trace_error / self.summary.trace if self.summary.trace > 0 else 0.0


def unit_of(problem: Problem, feature_map: FeatureMap) -> float:
    """Rounding of the kernel values that the map computes."""
    dtype = problem.xp.float64 if feature_map.in_float64 else problem.dtype
    points = problem.xp.astype(feature_map.landmarks, dtype, copy=False)
    return KERNEL_UNITS * kernel_unit(problem.kernel, points, func=problem.func, xp=problem.xp)


def measured_floor(problem: Problem, feature_map: FeatureMap, whitening: Whitening, x: Array, features: Array | None = None) -> float:
    """Rounding floor of a trace error from float32 blocks: what float64 makes of some rows, three standard errors on top.

    A bound per row would be some fifty times larger, because errors of both signs cancel in a sum over rows. `features` are those of
    `x`, where they were kept.
    """
    n, xp, unit = int(x.shape[0]), problem.wide.xp, _arrays.eps(problem.dtype)
    rows, rounded = x, features
    count = min(FLOOR_ROWS, max(FLOOR_SAMPLE, n // FLOOR_SHARE_OF_ROWS))
    if n > count:
        chosen = np.sort(np.random.default_rng(0).choice(n, size=count, replace=False))
        rows = _arrays.take_rows(x, chosen, xp=problem.xp)
        rounded = None if features is None else _arrays.take_rows(features, chosen, xp=problem.xp)
    rounded = problem.wide.widen(feature_map(rows) if rounded is None else rounded)
    exact_map = replace(feature_map, in_float64=True, dtype=problem.xp.float64)
    exact = exact_map(rows)
    difference = xp.vecdot(rounded - exact, rounded + exact)
    some = slice(0, None, max(1, int(rows.shape[0]) // FLOOR_SAMPLE))
    k_ii = problem.wide.widen(kernel_diagonal(problem.kernel, rows[some, :], func=problem.func))
    exact_unit = unit_of(problem, exact_map) if whitening.unit is None else KERNEL_UNITS * whitening.unit
    rest = row_rounding(exact[some, :], k_ii, whitening, exact_unit, unit, xp=xp)
    spread = float(xp.std(difference)) / math.sqrt(rows.shape[0])
    return n * (abs(float(xp.mean(difference))) + 3 * spread + float(xp.mean(rest)))


def _first_sound(
    problem: Problem, landmarks: Array, x: Array, is_enough: Callable[[Summary], bool], *, keep: bool, with_spectrum: bool
) -> _Attempt:
    """The first approximation that explains no more than there is, and of which `is_enough` is true if float32 can tell.

    Tried are: blocks in the dtype of the data; in float64; then larger cut-offs, unless one was asked for. Rows far from
    all landmarks are extrapolated to, where rounding of W is amplified by up to 1 / cut-off.

    Raises
    ------
    NumericalError
        None of them is sound.
    """
    can_widen = problem.wide.has_float64 and _arrays.eps(problem.dtype) > 2.0**-50
    first = problem.rtol or CUT_OFF[_arrays.dtype_name(problem.dtype)]
    for factor in (1.0, 1e2, 1e4) if problem.rtol is None else (1.0,):
        whitening = whitening_of(problem, landmarks, factor * first)
        keeps = keep and problem.keeps_features(int(whitening.map.shape[-1]))
        for in_float64 in (False, True) if can_widen and factor == 1.0 else (can_widen,):
            feature_map = feature_map_of(problem, landmarks, whitening, in_float64=in_float64)
            summary, features = measure(problem, feature_map, x, whitening, keep=keeps, with_spectrum=with_spectrum)
            if can_widen and not in_float64 and feature_map.rank:
                summary = summary._replace(floor=measured_floor(problem, feature_map, whitening, x, features))
            is_sound = summary.broken_rows == 0 and summary.trace_error >= -summary.floor
            if is_sound and (in_float64 == can_widen or is_enough(summary)):
                return _Attempt(landmarks, feature_map, whitening, summary, features)
            del features
    what = f"{summary.broken_rows} rows explained beyond it, and a trace error of {summary.trace_error:.3g}"
    message = (
        f"{problem.func}: kernel must bound its approximation; got {what} (floor {summary.floor:.1g}). "
        "It is not positive semi-definite, or too inaccurate in this dtype: pass float64, or a larger rtol."
    )
    raise NumericalError(message[:400])


def fit(problem: Problem, landmarks: Array) -> Fit:
    """The approximation on given landmarks, measured over all rows; in float64 blocks where float32 cannot tell its error."""

    def is_enough(summary: Summary) -> bool:
        return summary.floor <= FLOOR_SHARE * summary.trace_error

    found = _first_sound(problem, landmarks, problem.x, is_enough, keep=True, with_spectrum=False)
    return Fit(found.map, found.summary, found.features, landmarks)


# -------------------------------------------------------------------------------------------- to a tolerance
def fit_to_tolerance(problem: Problem, tol: float, landmarks: str | Array) -> Fit:
    """The smallest truncation, on a growing set of landmarks, whose exact relative trace error is at most `tol`.

    The set doubles (less where the decay of the error so far says that less will do) until a sample of the rows meets
    `tol`; then a pass over all rows decides. Each size starts from the same state of the random numbers, so that methods
    which add one landmark after the other keep those they have. At last the eigenvalues of the approximation tell how
    many of its eigenvectors are needed; features are made for these alone.

    Raises
    ------
    ParameterError
        `tol` is below what rounding allows to tell.
    InputError
        The landmarks given do not reach `tol`.
    """
    if not isinstance(landmarks, str):
        given = _attempt(problem, landmarks, problem.x, tol)
        if given.error > tol:
            message = (
                f"{problem.func}: landmarks must reach tol={tol:.3g}; got a relative trace error of {given.error:.3g} from these "
                f"{given.landmarks.shape[0]}. Give more of them, or name a method."
            )
            raise InputError(message)
        return _trimmed(problem, tol, given)
    state, sample = copy.deepcopy(problem.rng), _sampled_rows(problem)
    count, history = min(FIRST_COUNT, problem.n), [(0, math.inf)]
    while True:
        rng = copy.deepcopy(state)
        with warnings.catch_warnings():  # asking for more landmarks than there are different rows is our doing here
            warnings.simplefilter("ignore", DuplicateLandmarkWarning)
            points = choose_landmarks(problem, landmarks, count, rng)
        attempt = _attempt(problem, points, sample, tol)
        if sample is not problem.x and attempt.error <= tol:
            attempt = _attempt(problem, points, problem.x, tol)
        if attempt.error <= tol:
            problem.rng.bit_generator.state = rng.bit_generator.state
            return _trimmed(problem, tol, attempt)
        if count == problem.n:
            _refuse_tolerance(problem, tol, max(attempt.error, attempt.summary.floor / attempt.summary.trace))
        history.append((count, attempt.error))
        count = min(problem.n, _next_count(history[-2:], tol))


def _sampled_rows(problem: Problem) -> Array:
    """Some rows of `x`, always the same: they only decide when all rows are worth looking at."""
    if problem.n <= SAMPLE_ROWS:
        return problem.x
    rows = np.random.default_rng(0).choice(problem.n, size=SAMPLE_ROWS, replace=False)
    return _arrays.take_rows(problem.x, np.sort(rows), xp=problem.xp)


def _attempt(problem: Problem, landmarks: Array, x: Array, tol: float) -> _Attempt:
    """An approximation measured over the rows of `x`, in float64 blocks where float32 cannot tell `tol`."""

    def is_enough(summary: Summary) -> bool:
        return summary.floor <= FLOOR_SHARE * tol * summary.trace

    found = _first_sound(problem, landmarks, x, is_enough, keep=False, with_spectrum=x is problem.x)
    if found.summary.floor > tol * found.summary.trace:
        _refuse_tolerance(problem, tol, found.summary.floor / found.summary.trace)
    return found


def _refuse_tolerance(problem: Problem, tol: float, floor: float) -> NoReturn:
    kind = _arrays.dtype_name(problem.dtype)
    message = f"{problem.func}: tol must be above the rounding floor, {floor:.2g} for these {kind} data; got {tol:.3g}. Pass a larger one."
    raise ParameterError(message)


def _next_count(history: list[tuple[int, float]], tol: float) -> int:
    """Twice the landmarks, or as many as a power law through the last two errors asks for, but a tenth more at least."""
    (before, worse), (count, error) = history
    factor = 2.0
    if before and 0 < error < worse:
        power = math.log(worse / error) / math.log(count / before)
        factor = min(2.0, max(1.1, 1.05 * math.exp(min(1.0, math.log(error / tol) / power))))
    return max(count + 1, math.ceil(factor * count))


def _trimmed(problem: Problem, tol: float, attempt: _Attempt) -> Fit:
    """The features of the leading eigenvectors that `tol` needs."""
    summary, xp = attempt.summary, problem.wide.xp
    assert summary.spectrum is not None, "all rows were looked at"
    errors = truncation_errors(summary.trace_error, summary.spectrum.eigenvalues, xp=xp)
    rank = attempt.map.rank
    enough = int(xp.sum(xp.astype(errors > tol * summary.trace, xp.int64))) + 1
    for smaller in range(max(1, enough), rank):  # one more, should the rounding of the new features spoil the last digit
        rotated, _ = triangularize(attempt.whitening.map @ xp.flip(summary.spectrum.rotation[:, :smaller], axis=1), xp=xp)
        feature_map = replace(attempt.map, map=rotated)
        found, features = measure(problem, feature_map, problem.x, None, keep=problem.keeps_features(smaller))
        if found.trace_error <= tol * found.trace:
            return Fit(feature_map, found._replace(floor=summary.floor), features, attempt.landmarks)
        del features
    found, features = measure(problem, attempt.map, problem.x, attempt.whitening, keep=problem.keeps_features(rank))
    return Fit(attempt.map, found, features, attempt.landmarks)


def truncation_errors(trace_error: float, values: Array, *, xp: Namespace) -> Array:
    """Trace error of the best rank-k truncation of the approximation for k = 1..r: what is lost, and the eigenvalues left out."""
    if values.shape[0] == 0:
        return values
    from_here = xp.flip(xp.cumulative_sum(xp.flip(values)))  # eigenvalue k and all below it
    return max(trace_error, 0.0) + from_here - values
