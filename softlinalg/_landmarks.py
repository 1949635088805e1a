"""Choosing landmarks: the points on which a Nystrom approximation stands.

How good the approximation k(X, L) k(L, L)^+ k(L, X) of k(X, X) is depends on the landmarks L alone. The default
draws rows by randomly pivoted Cholesky, which finds outliers and small clusters, and then moves each one to the
middle of the rows around it by a few steps of Lloyd's iteration, which suits smooth kernels.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from softlinalg import _arrays, _inputs
from softlinalg._kernels import Gaussian, Laplacian, Matern
from softlinalg._landmark_clusters import lloyd, plus_plus_seeds
from softlinalg._landmark_refinement import refine_landmarks
from softlinalg._landmark_sampling import ROUNDING, Host, PivotedCholesky, Rows, check_kernel, greedy_pivots, leverage_rows, random_pivots
from softlinalg._rng import as_generator
from softlinalg._settings import flag, shown, whole_number
from softlinalg._typing import Array, Namespace, RngLike
from softlinalg.errors import DuplicateLandmarkWarning, ParameterError, ShapeError

__all__ = ["METHODS", "refine_landmarks", "select_landmark_indices", "select_landmarks"]

INDEX_METHODS = ("rpcholesky", "greedy", "leverage", "uniform")
"""Methods whose landmarks are rows of `x`."""

METHODS = ("rpcholesky+lloyd", "kmeans", *INDEX_METHODS)

PIVOT_METHODS = ("rpcholesky+lloyd", "rpcholesky", "greedy")
"""Methods that know the trace error as they go, and so can stop at a tolerance."""

SAMPLE_ROWS = 20
"""Rows per landmark among which the default draws its pivots: their error is within 2 % of that of pivots drawn
from all rows, on average (docs/benchmarks/landmarks.md), at a cost that does not grow with n."""

LLOYD_ROWS = 100
"""Rows per landmark over which the default averages."""

LLOYD_STEPS = 3
"""Steps after pivoted Cholesky: they bring nearly all of what many steps would."""

KMEANS_STEPS = 25
KMEANS_TOL = 1e-4
"""k-means stops when a step has lowered its objective by less than this share."""

FIRST_SAMPLE = 2000
"""Rows to start with when the number of landmarks is not known (tol); grows fourfold as needed."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A call with its arguments checked."""

    func: str
    given: Array
    """The points as they came, but integers promoted."""
    given_xp: Namespace
    x: Array
    """The points to work with: a NumPy view of `given` where it lies on the host and the kernel is one of ours."""
    xp: Namespace
    kernel: Any
    method: str
    count: int | None
    tol: float | None
    rng: np.random.Generator
    sample: int | None
    lloyd_steps: int | None
    progress: bool

    @property
    def n(self) -> int:
        return int(self.x.shape[0])


def select_landmarks(
    x: Any,
    count: int | None = None,
    *,
    method: str = "rpcholesky+lloyd",
    kernel: Any = None,
    tol: float | None = None,
    rng: RngLike = None,
    sample: int | None = None,
    lloyd_steps: int | None = None,
    progress: bool = False,
    check_finite: bool = True,
) -> Array:
    r"""Landmarks for the Nystrom approximation of k(x, x).

    Parameters
    ----------
    x : array, shape (n, d)
        Points. Integers are promoted to the library's default float.
    count : int, optional
        Number of landmarks, from 1 to n. Give exactly one of `count` and `tol`.
    method : str, default "rpcholesky+lloyd"
        * "rpcholesky+lloyd": randomly pivoted Cholesky on a sample of 20 rows per landmark, then three steps of
          Lloyd's iteration over 100 rows per landmark. The landmarks are means of rows: right for kernels of the
          distance between coordinates, meaningless where coordinates are labels or codes.
        * "rpcholesky": accelerated randomly pivoted Cholesky over all rows [1]_. The landmarks are rows of `x`;
          serves every positive semi-definite kernel.
        * "greedy": pivoted Cholesky that takes the row with the largest residual. Deterministic; prefers outliers.
        * "leverage": recursive ridge leverage scores [2]_.
        * "uniform": rows at random.
        * "kmeans": k-means++ seeds, then Lloyd's iteration. Ignores the kernel but for its length scales per feature.
    kernel : Kernel, optional
        Any object with `__call__(x, y)` and `diagonal(x)`. Default: ``Gaussian("median")``. Where its `length_scale`
        holds one number per feature, the clustering methods measure distances in those units.
    tol : float, optional
        Choose as many landmarks as pivoted Cholesky needs for a relative trace error of the rows it looked at of at
        most `tol`, in (0, 1]. With the default method the sample grows until it holds 20 rows per landmark, and the
        error refers to the sample, before Lloyd's steps.
    rng : None, int or numpy.random.Generator
        The same seed gives the same landmarks on every array library.
    sample : int, optional
        Look only at so many rows, chosen at random. Default: as `method` says, else all rows.
    lloyd_steps : int, optional
        Steps of Lloyd's iteration. Default: 3 after pivoted Cholesky; for "kmeans" until a step gains less than
        1e-4, at most 25. A landmark without rows stays where it is.
    progress : bool, default False
        Show a progress bar.
    check_finite : bool, default True
        Whether to look for NaN and infinity in `x`.

    Returns
    -------
    array, shape (count, d)
        Library, device and dtype of `x`; without gradient.

    Raises
    ------
    ParameterError
        `count` outside 1..n, neither or both of `count` and `tol`, an unknown method, `tol` with a method that cannot
        tell its error, a kernel without `__call__` and `diagonal`.
    ShapeError
        `x` is not of shape (n, d) with n, d >= 1.
    NonFiniteError
        `x` holds NaN or infinity.
    DTypeError
        `x` is complex, or traced: the choice depends on numbers, so make it outside jit, vmap and compile.

    Warns
    -----
    DuplicateLandmarkWarning
        Landmarks repeat each other, or fewer than `count` rows explain the kernel to rounding: the rest is filled
        with unused rows, which are harmless and useless.

    Notes
    -----
    Time and memory for m landmarks: the default costs O(m^3 + m^2 d), whatever n is, and 160 m^2 bytes; "rpcholesky"
    and "greedy" O(n m^2) and 8 n m bytes; "leverage" O(n m^2); "kmeans" O(n m d) per step. Rows are taken in blocks: no n x n array,
    no copy of `x`. Decisions are made in float64 where the device has it.

    References
    ----------
    .. [1] Epperly, Tropp & Webber, Embrace rejection: kernel matrix approximation by accelerated randomly pivoted
       Cholesky (2024), arXiv 2410.03969.
    .. [2] Musco & Musco, Recursive sampling for the Nystrom method (2017), arXiv 1605.07583.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> x = np.random.default_rng(0).normal(size=(1000, 2))
    >>> softlinalg.select_landmarks(x, 20, rng=0).shape
    (20, 2)
    >>> kernel = softlinalg.Gaussian(1.0)
    >>> few = softlinalg.select_landmarks(x, kernel=kernel, tol=0.1, rng=0)   # as many as that takes
    >>> 5 < few.shape[0] < 30
    True
    """
    request = _check(
        "select_landmarks", x, count, method, METHODS, kernel, tol, rng, sample, lloyd_steps, progress=progress, check_finite=check_finite
    )
    if method in INDEX_METHODS:
        chosen, useful = _indices(request)
        landmarks = _arrays.take_rows(request.given, chosen, xp=request.given_xp)
    else:
        landmarks, useful = _centers(request)
    _warn(request, useful, int(landmarks.shape[0]))
    return landmarks


def select_landmark_indices(
    x: Any,
    count: int | None = None,
    *,
    method: str = "rpcholesky",
    kernel: Any = None,
    tol: float | None = None,
    rng: RngLike = None,
    sample: int | None = None,
    progress: bool = False,
    check_finite: bool = True,
) -> Host:
    """Row numbers of landmarks, for the methods whose landmarks are rows of `x`.

    Parameters
    ----------
    x, count, kernel, tol, rng, sample, progress, check_finite
        As in `select_landmarks`.
    method : {"rpcholesky", "greedy", "leverage", "uniform"}, default "rpcholesky"

    Returns
    -------
    host int64 array, shape (count,)
        All different. For "rpcholesky" and "greedy" in the order of choice: the first k of them are the landmarks that
        the same seed gives for ``count=k`` (same `sample`). Sorted for the other methods.

    Raises
    ------
    ParameterError, ShapeError, NonFiniteError, DTypeError
        As in `select_landmarks`.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> x = np.random.default_rng(0).normal(size=(1000, 2))
    >>> chosen = softlinalg.select_landmark_indices(x, 20, kernel=softlinalg.Gaussian(1.0), rng=0)
    >>> chosen.shape, len(set(chosen.tolist()))
    ((20,), 20)
    >>> d = softlinalg.nystrom(x, softlinalg.Gaussian(1.0), landmarks=chosen)
    >>> d.rank
    20
    """
    request = _check(
        "select_landmark_indices",
        x,
        count,
        method,
        INDEX_METHODS,
        kernel,
        tol,
        rng,
        sample,
        None,
        progress=progress,
        check_finite=check_finite,
    )
    chosen, useful = _indices(request)
    _warn(request, useful, len(chosen))
    return chosen


# ------------------------------------------------------------------------------------------------- checking
def _check(
    func: str,
    x: Any,
    count: Any,
    method: Any,
    methods: tuple[str, ...],
    kernel: Any,
    tol: Any,
    rng: RngLike,
    sample: Any,
    lloyd_steps: Any,
    *,
    progress: bool,
    check_finite: bool,
) -> _Request:
    """Check the arguments of both public functions."""
    xp, (x,), _ = _inputs.prepare(func, {"x": x}, whole=False)
    _inputs.check_rows(x, func=func, doing="Choose landmarks")
    if not isinstance(method, str) or method not in methods:
        message = f"{func}: method must be one of {', '.join(methods)}; got {shown(method)}. Choose one of these."
        raise ParameterError(message)
    given, given_xp = _arrays.detach(x), xp
    if kernel is None or isinstance(kernel, Gaussian | Laplacian | Matern):
        x, xp = _arrays.host_view(given, xp=xp)
    n = int(x.shape[0])
    count, tol = _check_size(func, count, tol, method, n=n, resolution=ROUNDING * _arrays.eps(_arrays.wide_dtype(x, xp=xp)))
    if sample is not None:
        sample = min(whole_number(sample, func=func, name="sample", minimum=count or 1), n)
    if lloyd_steps is not None:
        lloyd_steps = whole_number(lloyd_steps, func=func, name="lloyd_steps", minimum=0)
    if flag(check_finite, func=func, name="check_finite"):
        _inputs.check_finite(x, func=func, name="x", xp=xp)
    generator = as_generator(rng, func=func)
    return _Request(
        func=func,
        given=given,
        given_xp=given_xp,
        x=x,
        xp=xp,
        kernel=_settled(kernel, method, x, generator, func=func, xp=xp),
        method=method,
        count=count,
        tol=tol,
        rng=generator,
        sample=sample,
        lloyd_steps=lloyd_steps,
        progress=progress,
    )


def _check_size(func: str, count: Any, tol: Any, method: str, *, n: int, resolution: float) -> tuple[int | None, float | None]:
    """Exactly one of `count` and `tol`, in range."""
    if (count is None) == (tol is None):
        what = "neither" if count is None else "both"
        message = f"{func}: count or tol must be given, and not both; got {what}. Pass one of them."
        raise ParameterError(message)
    if tol is None:
        return whole_number(count, func=func, name="count", minimum=1, maximum=n, remedy="Choose one in that range."), None
    if method not in PIVOT_METHODS:
        message = f"{func}: tol needs a method that knows its error; got {method!r}. Pass count, or one of {', '.join(PIVOT_METHODS)}."
        raise ParameterError(message)
    tol = _inputs.real_scalar(tol, func=func, name="tol", maximum=1.0)
    if tol < resolution:
        message = f"{func}: tol must be at least {resolution:.1g}, what the arithmetic resolves; got {tol:g}. Pass a larger one."
        raise ParameterError(message)
    return None, tol


def _settled(kernel: Any, method: str, x: Array, rng: np.random.Generator, *, func: str, xp: Namespace) -> Any:
    """The kernel with its length scale settled, where the method needs that."""
    if kernel is None:
        return None if method in ("uniform", "kmeans") else _default_kernel(x, rng, xp=xp)
    check_kernel(kernel, func=func)
    return kernel.resolve(x, rng) if hasattr(kernel, "resolve") and method not in ("uniform", "kmeans") else kernel


def _default_kernel(x: Array, rng: np.random.Generator, *, xp: Namespace) -> Gaussian:
    """Gaussian kernel at the median distance; at the spread of the data where the median's sample holds a single point."""
    try:
        return Gaussian("median").resolve(x, rng)
    except (ParameterError, ShapeError):
        total = 0.0
        for _, _, block in Rows(x, xp=xp, shift=Rows(x, xp=xp).take([0])[0, :]).blocks(1):
            total += float(xp.sum(block * block))
        return Gaussian(math.sqrt(total / x.shape[0]) or 1.0)


def _feature_scale(request: _Request) -> Host | None:
    """Length scales per feature, where the kernel has them: the units in which distances mean something to it."""
    scale = getattr(request.kernel, "length_scale", None)
    if scale is None or isinstance(scale, str | int | float):
        return None
    host = np.asarray(_arrays.to_numpy(scale) if hasattr(scale, "shape") else scale, dtype=np.float64)
    return host if host.shape == (request.x.shape[1],) and bool(np.all(host > 0)) else None


def _normalized(request: _Request, rows: Rows, typical: Array) -> Rows:
    """The rows relative to the middle of some typical ones, in units in which squares neither overflow nor vanish.

    |x|^2 - 2 x.y + |y|^2 cancels badly far from the origin. The median is not moved by outliers, which the landmarks hold.
    """
    xp = request.xp
    shift = xp.sort(typical, axis=0)[typical.shape[0] // 2, :]
    host = _feature_scale(request)
    scale = xp.ones_like(shift) if host is None else _arrays.from_numpy(host, request.x, xp=xp, dtype=rows.dtype)
    largest = max(float(xp.max(xp.abs(block))) for _, _, block in Rows(request.x, rows.indices, xp=xp, shift=shift, scale=scale).blocks(1))
    exponent = math.frexp(largest)[1] - 1 if 0 < largest < math.inf else 0
    return Rows(request.x, rows.indices, xp=xp, shift=shift, scale=scale * math.ldexp(1.0, exponent))


# ------------------------------------------------------------------------------------------------ selecting
def _indices(request: _Request) -> tuple[Host, int]:
    """Row numbers by one of INDEX_METHODS, and how many of them are of use."""
    if request.method in ("rpcholesky", "greedy"):
        return _pivots(request)[:2]
    rows = _sampled(request)
    count = request.count or 1
    if request.method == "uniform":
        chosen = rows.to_global(np.sort(request.rng.choice(len(rows), size=count, replace=False)))
    else:
        chosen = rows.to_global(leverage_rows(request.kernel, rows, count, rng=request.rng, func=request.func))
    return chosen, len(set(Rows(request.x, xp=request.xp).keys(chosen)))


def _sampled(request: _Request) -> Rows:
    """The rows to look at: all of them, or a sorted random sample."""
    if request.sample is None or request.sample >= request.n:
        return Rows(request.x, xp=request.xp)
    return Rows(request.x, np.sort(request.rng.permutation(request.n)[: request.sample]), xp=request.xp)


def _pivots(request: _Request) -> tuple[Host, int, Host | None]:
    """Pivots of the three Cholesky methods, how many are of use, and the order in which rows are sampled (None: all were seen).

    The default looks at a sample of SAMPLE_ROWS per landmark. Where that turns out too small, because `tol` needs
    more landmarks than it can tell, or because it holds fewer different rows than landmarks are asked for, a
    four times larger one is taken: the cost of all tries is a third above that of the last.
    """
    growing = request.method == "rpcholesky+lloyd" and request.sample is None
    size = request.sample or request.n
    if growing:
        size = FIRST_SAMPLE if request.count is None else SAMPLE_ROWS * request.count
    order = request.rng.permutation(request.n) if size < request.n else None
    while True:
        whole = order is None or size >= request.n
        rows = Rows(request.x, None if whole or order is None else np.sort(order[:size]), xp=request.xp)
        limit = request.count or (len(rows) if whole or not growing else max(1, size // SAMPLE_ROWS))
        state, reached = _run_cholesky(request, rows, limit)
        done = reached if request.tol is not None else len(state.pivots) == request.count
        if done or whole or not growing:
            return *_filled(request, rows.to_global(state.pivots)), None if whole else order
        size *= 4


def _run_cholesky(request: _Request, rows: Rows, limit: int) -> tuple[PivotedCholesky, bool]:
    """One factorisation: its state, and whether `tol` was reached."""
    state = PivotedCholesky(request.kernel, rows, func=request.func)
    with _progress(request, limit, "pivots") as advance:
        if request.method == "greedy":
            return state, greedy_pivots(state, limit, tol=request.tol, advance=advance)
        return state, random_pivots(state, limit, tol=request.tol, rng=request.rng, advance=advance)


def _filled(request: _Request, chosen: Host) -> tuple[Host, int]:
    """As many row numbers as asked for: unused rows, at random, where nothing was left to explain; and how many are of use."""
    useful = max(1, len(chosen))
    missing = (request.count or useful) - len(chosen)
    if missing == 0:
        return chosen, useful
    unused = np.setdiff1d(np.arange(request.n), chosen)
    return np.concatenate([chosen, np.sort(request.rng.choice(unused, size=missing, replace=False))]), useful


def _warn(request: _Request, useful: int, count: int) -> None:
    """Say so where some landmarks add nothing; called by the public functions alone, whose caller is named in the warning."""
    if useful == count:
        return
    message = (
        f"{request.func}: landmarks must differ to be useful; got {useful} of {count} that add anything. "
        f"Ask for count <= {useful}, or leave it: the others change nothing but the cost."
    )
    warnings.warn(message, DuplicateLandmarkWarning, stacklevel=3)


def _centers(request: _Request) -> tuple[Array, int]:
    """Landmarks that are means of rows (the default, and k-means), and how many of them are of use."""
    xp = request.xp
    if request.method == "kmeans":
        rows, chosen, useful = _kmeans_seeds(request)
        steps, tol = KMEANS_STEPS, KMEANS_TOL
    else:
        chosen, useful, order = _pivots(request)
        size = max(LLOYD_ROWS, SAMPLE_ROWS) * len(chosen) if request.sample is None else request.sample
        whole = order is None or size >= request.n
        rows = Rows(request.x, None if whole or order is None else np.sort(order[:size]), xp=xp)
        steps, tol = LLOYD_STEPS, 0.0
    if request.lloyd_steps is not None:
        steps = request.lloyd_steps
    start = Rows(request.x, xp=xp).take(chosen)
    if steps:
        rows = _normalized(request, rows, start)
        with _progress(request, steps, "Lloyd steps") as advance:
            moved, _ = lloyd(rows, (start - rows.shift) / rows.scale, steps, tol=tol, advance=advance)
        start = moved * rows.scale + rows.shift
    landmarks = xp.astype(start, request.x.dtype)
    return landmarks if request.x is request.given else _arrays.from_numpy(landmarks, request.given, xp=request.given_xp), useful


def _kmeans_seeds(request: _Request) -> tuple[Rows, Host, int]:
    """The rows to cluster, k-means++ seeds among them, filled up where there are fewer different rows, and how many are of use."""
    rows = _sampled(request)
    normalized = _normalized(request, rows, rows.block(0, min(len(rows), 1000)))
    with _progress(request, request.count or 1, "seeds") as advance:
        seeds = plus_plus_seeds(normalized, request.count or 1, rng=request.rng, advance=advance)
    return rows, *_filled(request, rows.to_global(seeds))


@contextmanager
def _progress(request: _Request, total: int, unit: str) -> Iterator[Callable[[int], object]]:
    """A progress bar's `update`, or a function that does nothing."""
    if not request.progress:
        yield lambda _: None
        return
    from tqdm.auto import tqdm  # imported late: `import softlinalg` stays quick

    with tqdm(total=total if request.tol is None else None, unit=f" {unit}") as bar:
        yield bar.update
