r"""Exact kernel ridge regression, (K + ridge S^-1) w = y, by block conjugate gradients with the Nystrom preconditioner.

With weights s the system is solved as (S^(1/2) K S^(1/2) + ridge I) u = S^(1/2) y, w = S^(1/2) u. K is never formed: blocks of its
rows are computed as they are used. All right-hand sides share one search space, so several converge in fewer products than one
after the other. What the recurrence calls the residual drifts from the true one by rounding, so after it has converged the
residual is computed anew, from the numbers that are returned, and the iteration is started on it again until it is small enough
in truth, or no longer falls.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from functools import partial
from typing import Any, NamedTuple

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._kernels import kernel_matmul
from softlinalg._nystrom import NystromDecomposition, nystrom
from softlinalg._nystrom_core import Wide, kernel_unit, optional_count, plus_gram
from softlinalg._nystrom_solve import column_norms, core_product, preconditioner_core
from softlinalg._ridge_sums import checked_targets, checked_weights
from softlinalg._settings import flag, is_one_of, shown
from softlinalg._typing import Array, Namespace, RngLike
from softlinalg.errors import ConvergenceError, ConvergenceWarning, ParameterError, RangeError, ShapeError

__all__ = ["KernelRidgeSolution", "exact_ridge", "solve_kernel_ridge"]

RANK_FACTOR = 4
"""Landmarks of the default preconditioner: this many times the square root of n. Its cost, n rank^2, is then a few products with K."""

RESTARTS = 12
"""Most times that the iteration is started on a residual computed anew; one or two are usual."""

NARROW_GAP = 1e-3
"""Products are computed in float32, for float32 data, while eps |K| / ridge is below this: each start then gains three digits."""

INDEPENDENT = 1e-10
"""Search directions whose squared share of a combination is less than this are rounding, and dropped."""

TOLERANCE = {"float64": 1e-8, "float32": 1e-4}
"""Default of `tol`: rounding the weights to float32 alone leaves a residual of about eps |K| / ridge."""


class KernelRidgeSolution(NamedTuple):
    """What `solve_kernel_ridge` returns; with shape () in place of (k,) where `y` is a vector.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> x = np.random.default_rng(0).normal(size=(200, 2))
    >>> solution = softlinalg.solve_kernel_ridge(x, x[:, 0], softlinalg.Gaussian(1.0), 0.1, rng=0)
    >>> solution.value.shape, bool(solution.converged), bool(solution.residual < 1e-6)
    ((200,), True, True)
    """

    value: Array
    """w, of the shape of `y`: predictions are k(x_new, x) @ w."""
    converged: Array
    """Whether the true relative residual is at most `tol`, shape (k,), bool."""
    residual: Array
    """|b - A w| / |b| for the numbers returned, computed anew at the end, shape (k,)."""
    error_bound: Array
    """Bound of the 2-norm of the error of w: residual and its rounding over ridge, shape (k,)."""
    steps: int
    """Products with K in the iteration: steps, each with all right-hand sides that had not converged."""
    starts: int
    """How often the iteration was started: once, and for each residual that had to be computed anew."""


def solve_kernel_ridge(
    x: Any,
    y: Any,
    kernel: Any,
    ridge: float,
    *,
    weights: Any = None,
    approximation: NystromDecomposition | None = None,
    rank: int | None = None,
    tol: float | None = None,
    max_steps: int = 500,
    rng: RngLike = None,
    chunk_size: int | None = None,
    progress: bool = False,
    on_failure: str = "warn",
) -> KernelRidgeSolution:
    r"""Exact kernel ridge regression by preconditioned conjugate gradients: (K + ridge I) w = y, with K = k(x, x) never formed.

    Parameters
    ----------
    x : array, shape (n, d)
        Points.
    y : array, shape (n,) or (n, k)
        Targets.
    kernel : Kernel
        Positive semi-definite, such as ``Gaussian("median")``.
    ridge : float
        Positive.
    weights : array, shape (n,), optional
        Not negative: the system is then (K + ridge diag(1 / weights)) w = y, the minimum of sum s_i (y_i - f(x_i))^2 + ridge |f|^2,
        and w is zero where the weight is.
    approximation : NystromDecomposition, optional
        Of k(x, x) with the same kernel, for the preconditioner; a length scale of "median" is then that of its kernel. Default: made
        here.
    rank : int, optional
        Landmarks of the one made here. Default: 4 sqrt(n).
    tol : float, optional
        Relative residual to reach, in (0, 1). Default: 1e-8 for float64 results, 1e-4 for float32.
    max_steps : int, default 500
        Most products with K.
    rng : None, int or numpy.random.Generator
        Picks the landmarks, and the rows for a length scale of "median".
    chunk_size : int, optional
        Rows of K per block.
    progress : bool, default False
        Show a bar with the steps and the residual.
    on_failure : {"warn", "raise", "ignore"}, default "warn"
        What to do where the residual stays above `tol`. The result says so in any case.

    Returns
    -------
    KernelRidgeSolution

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, BackendMismatchError, ParameterError
    RangeError
        The result overflows.
    ConvergenceError
        ``on_failure="raise"`` and the residual is above `tol`; its `info` is the solution as far as it came.

    Warns
    -----
    ConvergenceWarning
        ``on_failure="warn"`` and the residual is above `tol`.

    Notes
    -----
    O(n^2 (d + k)) time per step, a few n x k arrays and one block of K in memory. The preconditioned matrix has a condition number
    of at most (ridge + g_r + |K - F F^T|) / ridge [1]_, so the number of steps does not depend on n where the approximation
    leaves out little more than `ridge`. The error bound holds since no eigenvalue of K + ridge I is below `ridge`; it
    counts what rounding can hide in the residual at its worst, and is pessimistic where ridge is small. Search directions are
    made independent before each step, so equal or dependent targets do no harm [2]_.

    References
    ----------
    .. [1] Frangella, Tropp & Udell, Randomized Nystrom preconditioning (2023), SIAM J. Matrix Anal. Appl. 44.
    .. [2] Ji & Li, A breakdown-free block conjugate gradient method (2017), BIT 57.

    Examples
    --------
    >>> import numpy as np, softlinalg
    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> solution = softlinalg.solve_kernel_ridge(x, np.sin(x[:, 0]), softlinalg.Gaussian(1.0), 1e-3, rng=0)
    >>> bool(solution.converged), solution.steps < 20
    (True, True)
    """
    func = "solve_kernel_ridge"
    xp, (x, y, weights), _ = _inputs.prepare(func, {"x": x, "y": y, "weights": weights}, optional=("weights",))
    dtype = x.dtype if x.dtype == y.dtype else xp.result_type(x.dtype, y.dtype)
    _inputs.check_rows(x, func=func)
    x, n = _arrays.detach(x), int(x.shape[0])
    _inputs.check_finite(x, func=func, name="x", xp=xp)
    targets = _arrays.detach(checked_targets(y, n, func=func, are_squared=False, xp=xp))
    if weights is not None:
        checked_weights(weights, n, func=func, xp=xp)
    progress = flag(progress, func=func, name="progress")
    if not is_one_of(on_failure, ("warn", "raise", "ignore")):
        message = f'{func}: on_failure must be "warn", "raise" or "ignore"; got {shown(on_failure)}. Choose one of these.'
        raise ParameterError(message)
    ridge = _inputs.real_scalar(ridge, func=func, name="ridge")
    compute = _arrays.compute_dtype(dtype, xp=xp)
    tol = TOLERANCE[_arrays.dtype_name(compute)] if tol is None else _inputs.real_scalar(tol, func=func, name="tol", maximum=1.0)
    cap = optional_count(max_steps, func=func, name="max_steps") or 1
    chunk_size = optional_count(chunk_size, func=func, name="chunk_size")
    if approximation is None:
        count = optional_count(rank, func=func, name="rank", maximum=n) or min(n, RANK_FACTOR * math.isqrt(n) + 1)
        approximation = nystrom(x, kernel, rank=count, rng=rng, chunk_size=chunk_size, progress=progress)
    else:
        _check_approximation(approximation, x, kernel, func=func)
    system = _System(x, approximation, ridge, weights, chunk_size=chunk_size, func=func, xp=xp)
    with _bar(cap, shown=progress) as report:
        found = _solve(system, targets, dtype, tol, cap, report)
    result = found if y.ndim == 2 else found._replace(value=found.value[:, 0], **{name: getattr(found, name)[0] for name in _PER_TARGET})
    if on_failure != "ignore" and not bool(xp.all(found.converged)):
        worst = float(xp.max(found.residual))
        message = (
            f"{func}: the residual must fall to tol={tol:.3g}; got {worst:.3g} after {found.steps} steps and {found.starts} starts. "
            "Pass a larger ridge, rank or max_steps, or float64 data."
        )
        if on_failure == "raise":
            raise ConvergenceError(message, result)
        warnings.warn(message, ConvergenceWarning, stacklevel=2)
    return result


def _check_approximation(d: Any, x: Array, kernel: Any, *, func: str) -> None:
    """Raise unless it is a decomposition of k(x, x), as far as that can be seen: its kernel is the one that is solved with."""
    if not isinstance(d, NystromDecomposition):
        message = f"{func}: approximation must be a NystromDecomposition; got {shown(d)}. Pass nystrom(x, kernel, ...), or leave it out."
        raise ParameterError(message)
    _inputs.prepare(func, {"x": x, "approximation": d.landmarks})
    if d.shape[0] != x.shape[0] or d.landmarks.shape[1] != x.shape[1]:
        got = f"one of {d.shape[0]} rows in {d.landmarks.shape[1]} dimensions"
        message = f"{func}: approximation must be of k(x, x), with x of shape {tuple(x.shape)}; got {got}. Leave it out."
        raise ShapeError(message)
    settled = kernel
    if is_dataclass(kernel) and isinstance(getattr(kernel, "length_scale", None), str) and hasattr(d.kernel, "length_scale"):
        settled = replace(kernel, length_scale=d.kernel.length_scale)  # type: ignore[type-var]
    if settled is not d.kernel and (type(settled) is not type(d.kernel) or not is_dataclass(settled) or settled != d.kernel):
        message = f"{func}: approximation must be of the kernel given; got one of {str(d.kernel)[:60]}. Pass its kernel, or leave it out."
        raise ParameterError(message)


def exact_ridge(
    x: Array,
    y: Array,
    d: NystromDecomposition,
    ridges: list[float],
    *,
    weights: Array | None = None,
    fit_intercept: bool = True,
    tol: float | None = None,
    max_steps: int = 500,
    progress: bool = False,
    on_failure: str = "warn",
) -> tuple[Array, Array, list[KernelRidgeSolution]]:
    r"""Exact kernel ridge regression with a constant that is not penalized, a ridge for each target.

    With A = K + ridge S^-1, the minimum over w and b of sum s_i (y_i - (K w)_i - b)^2 + ridge w^T K w has
    :math:`b = 1^T A^{-1} y / 1^T A^{-1} 1` and :math:`w = A^{-1} (y - b)`: one more right-hand side.

    Parameters
    ----------
    x : array, shape (n, d)
    y : array, shape (n, k)
    d : NystromDecomposition
        Of k(x, x): the kernel and the preconditioner.
    ridges : list of k numbers
        Targets of equal ridge are solved together.
    weights, tol, max_steps, progress, on_failure
        As in `solve_kernel_ridge`.

    Returns
    -------
    dual : array, shape (n, k)
        w, in the common dtype of `x` and `y`.
    intercept : array, shape (k,)
        float64: zeros without an intercept.
    solutions : list of KernelRidgeSolution
        One for each different ridge.
    """
    xp, (x, y, weights), _ = _inputs.prepare("exact_ridge", {"x": x, "y": y, "weights": weights}, optional=("weights",))
    wide = Wide(x, xp=xp)
    one = xp.ones((int(x.shape[0]), 1), dtype=y.dtype, device=_arrays.device_of(y))
    columns: dict[int, Array] = {}
    constants: dict[int, Array] = {}
    solutions = []
    for ridge in dict.fromkeys(ridges):
        members = [j for j, value in enumerate(ridges) if value == ridge]
        sides = xp.stack([y[:, j] for j in members], axis=-1)
        found = solve_kernel_ridge(
            x,
            xp.concat([sides, one], axis=-1) if fit_intercept else sides,
            d.kernel,
            ridge,
            weights=weights,
            approximation=d,
            tol=tol,
            max_steps=max_steps,
            progress=progress,
            on_failure=on_failure,
        )
        solutions.append(found)
        w = wide.widen(found.value)
        b = wide.zeros(len(members))
        if fit_intercept:
            sums = wide.xp.sum(w, axis=0)
            b = sums[:-1] / sums[-1]
            w = w[:, :-1] - b * w[:, -1:]
        for column, j in enumerate(members):
            columns[j], constants[j] = w[:, column], b[column]
    order = range(len(ridges))
    dual = wide.narrow(wide.xp.stack([columns[j] for j in order], axis=-1), solutions[0].value.dtype)
    return dual, wide.xp.stack([constants[j] for j in order]), solutions


_PER_TARGET = ("converged", "residual", "error_bound")


class _System:
    """B = S^(1/2) K S^(1/2) + ridge I and its preconditioner, applied to float64 matrices (n, k)."""

    def __init__(
        self, x: Array, d: NystromDecomposition, ridge: float, weights: Array | None, *, chunk_size: int | None, func: str, xp: Namespace
    ) -> None:
        self.x, self.d, self.ridge, self.chunk_size, self.func, self.xp = x, d, ridge, chunk_size, func, xp
        self.wide = Wide(x, xp=xp)
        self.root = None if weights is None else self.wide.xp.sqrt(self.wide.widen(_arrays.detach(weights)))[:, None]
        self.narrow_dtype = _arrays.compute_dtype(x.dtype, xp=xp)
        self.wide_dtype = xp.float64 if self.wide.has_float64 else self.narrow_dtype
        self.points = {
            False: xp.astype(x, self.narrow_dtype, copy=False),
            True: xp.astype(x, self.wide_dtype, copy=False),
        }
        values, rotation = d._spectrum if self.root is None or not d.rank else self._weighted_spectrum()
        self.top = float(self.wide.xp.max(values)) if d.rank else 0.0
        self._core = preconditioner_core(values, rotation, ridge, wide=self.wide)

    def _weighted_spectrum(self) -> tuple[Array, Array]:
        wxp = self.wide.xp
        gram = self.wide.zeros(self.d.rank, self.d.rank)
        for start, stop, features in self.d._blocks():
            gram = plus_gram(gram, self.wide.widen(features) * self.root[start:stop, :], xp=wxp)  # type: ignore[index]
        values, rotation = wxp.linalg.eigh(gram)
        return wxp.where(values > 0, values, wxp.zeros_like(values)), rotation

    def scaled(self, v: Array) -> Array:
        """S^(1/2) v."""
        return v if self.root is None else self.root * v

    def apply(self, v: Array, *, in_float64: bool) -> Array:
        """B v, with kernel values in float64 or in the dtype of the data."""
        dtype = self.wide_dtype if in_float64 else self.narrow_dtype
        points = self.points[in_float64]
        product = kernel_matmul(self.d.kernel, points, points, self.wide.narrow(self.scaled(v), dtype), chunk_size=self.chunk_size)
        return self.scaled(self.wide.widen(product)) + self.ridge * v

    def precondition(self, v: Array) -> Array:
        """P^-1 v = v + S^(1/2) F core F^T S^(1/2) v."""
        if self.d.rank == 0:
            return v
        return v + self.scaled(core_product(self.d._blocks, self._core, self.scaled(v), func=self.func, wide=self.wide))

    def rounding(self) -> float:
        """What rounding can hide in a residual computed in float64, relative to |u|: kernel values, and sums of n terms."""
        eps = _arrays.eps(self.wide_dtype)
        sample = self.points[True][: min(int(self.x.shape[0]), 64), :]
        unit = kernel_unit(self.d.kernel, sample, func=self.func, xp=self.xp) + (int(self.x.shape[0]) + 4) * eps
        heaviest = 1.0 if self.root is None else float(self.wide.xp.max(self.root)) ** 2
        return unit * self.d.trace * heaviest + 4 * eps * self.ridge  # |K|_2 <= tr K


def _solve(
    system: _System, targets: Array, dtype: Any, tol: float, max_steps: int, report: Callable[[int, float], Any]
) -> KernelRidgeSolution:
    """Start, measure, start again."""
    wide, wxp = system.wide, system.wide.xp
    b = system.scaled(wide.widen(targets))
    size = column_norms(b, xp=wxp)
    size = wxp.where(size > 0, size, wxp.ones_like(size))
    b = b / size  # columns of norm 1, so that one tolerance serves all
    differ = system.narrow_dtype != system.wide_dtype
    in_float64 = not (differ and _arrays.eps(system.narrow_dtype) * system.top / system.ridge < NARROW_GAP)
    u, rest, steps, starts = wxp.zeros_like(b), b, 0, 0
    norms = column_norms(rest, xp=wxp)
    while starts < RESTARTS and steps < max_steps and float(wxp.max(norms)) > tol:
        target = wxp.zeros_like(norms) + tol / 2
        if not in_float64:
            target = wxp.where(NARROW_GAP * norms > target, NARROW_GAP * norms, target)
        step, taken = _block_cg(system, rest, target, max_steps - steps, in_float64, partial(_later, report, steps))
        starts, steps = starts + 1, steps + taken
        candidate = u + step
        new_rest = b - system.apply(candidate, in_float64=True)
        new_norms = column_norms(new_rest, xp=wxp)
        better = new_norms < norms
        u, rest = wxp.where(better, candidate, u), wxp.where(better, new_rest, rest)
        gained = float(wxp.max(new_norms)) <= 0.5 * float(wxp.max(norms))
        norms = wxp.where(better, new_norms, norms)
        if not gained:
            if in_float64:
                break
            in_float64 = True
    return _certified(system, u, b, size, norms, dtype, tol, steps, starts)


def _later(report: Callable[[int, float], Any], before: int, steps: int, residual: float) -> None:
    """Report steps of a start that follows others."""
    report(before + steps, residual)


def _certified(
    system: _System, u: Array, b: Array, size: Array, norms: Array, dtype: Any, tol: float, steps: int, starts: int
) -> KernelRidgeSolution:
    """The solution in the dtype asked for, with the residual of those numbers."""
    wide, wxp, xp = system.wide, system.wide.xp, system.xp
    with _arrays.quiet(u):
        value = wide.narrow(system.scaled(u) * size, dtype)
    if not bool(xp.all(xp.isfinite(value))):
        kind = _arrays.dtype_name(dtype)
        message = f"{system.func}: the result must fit {kind}; got one that overflows. Scale y down, or pass a larger ridge."
        raise RangeError(message)
    if _arrays.eps(dtype) > _arrays.eps(wide.dtype):
        rounded = wide.widen(value) / size
        if system.root is None:
            u = rounded
        else:
            positive = system.root > 0
            u = wxp.where(positive, rounded / wxp.where(positive, system.root, wxp.ones_like(system.root)), u)
        norms = column_norms(b - system.apply(u, in_float64=True), xp=wxp)
    heaviest = 1.0 if system.root is None else float(wxp.max(system.root))
    real = _arrays.compute_dtype(dtype, xp=xp)
    with _arrays.quiet(u):  # a bound may be infinite
        bound = wide.narrow((norms + system.rounding() * column_norms(u, xp=wxp)) * size * heaviest / system.ridge, real)
    return KernelRidgeSolution(value, _bool(norms <= tol, system), wide.narrow(norms, real), bound, steps, starts)


def _bool(flags: Array, system: _System) -> Array:
    """Flags in the library of the data."""
    return flags if system.wide.on_device else _arrays.from_numpy(_arrays.to_numpy(flags), system.x, xp=system.xp)


def _block_cg(
    system: _System, b: Array, target: Array, max_steps: int, in_float64: bool, report: Callable[[int, float], Any]
) -> tuple[Array, int]:
    """Solve B x = b from zero until the recurrence says that each column's residual is below its target; and the steps taken.

    Columns that have converged leave the block; a step that breaks down (B not positive definite to rounding) ends it.
    """
    xp = system.wide.xp
    k = int(b.shape[1])
    limits = [float(target[j]) for j in range(k)]
    finished: dict[int, Array] = {}
    active, r = list(range(k)), b
    x = xp.zeros_like(b)
    active, x, r = _retire(active, x, r, limits, finished, xp=xp)
    p = _independent(system.precondition(r), xp=xp) if active else r
    steps = 0
    while active and steps < max_steps and p.shape[1]:
        q = system.apply(p, in_float64=in_float64)
        steps += 1
        energy = xp.matrix_transpose(p) @ q
        factor, ok = _linalg.cholesky(energy / 2 + xp.matrix_transpose(energy) / 2, xp=xp)  # halves: their sum does not overflow
        if not bool(ok):
            break
        alpha = _cholesky_solve(factor, xp.matrix_transpose(p) @ r, xp=xp)
        x, r = x + p @ alpha, r - q @ alpha
        report(steps, float(xp.max(column_norms(r, xp=xp))))
        active, x, r = _retire(active, x, r, limits, finished, xp=xp)
        if not active:
            break
        z = system.precondition(r)
        p = _independent(z - p @ _cholesky_solve(factor, xp.matrix_transpose(q) @ z, xp=xp), xp=xp)
    for column, j in enumerate(active):
        finished[j] = x[:, column]
    return xp.stack([finished[j] for j in range(k)], axis=-1), steps


def _retire(
    active: list[int], x: Array, r: Array, limits: list[float], finished: dict[int, Array], *, xp: Namespace
) -> tuple[list[int], Array, Array]:
    """Take out of the block the columns whose residual is small enough."""
    norms = column_norms(r, xp=xp)
    stays = [column for column, j in enumerate(active) if not float(norms[column]) <= limits[j]]
    if len(stays) == len(active):
        return active, x, r
    for column, j in enumerate(active):
        if column not in stays:
            finished[j] = x[:, column]
    if not stays:
        return [], x[:, :0], r[:, :0]
    x, r = (xp.stack([a[:, column] for column in stays], axis=-1) for a in (x, r))
    return [active[column] for column in stays], x, r


def _independent(p: Array, *, xp: Namespace) -> Array:
    """Orthonormal columns that span those of `p`, without the combinations that are rounding."""
    norms = column_norms(p, xp=xp)
    p = p / xp.where(norms > 0, norms, xp.ones_like(norms))
    if p.shape[1] == 1:
        return p
    values, vectors = xp.linalg.eigh(xp.matrix_transpose(p) @ p)
    kept = int(xp.count_nonzero(values > INDEPENDENT * values[-1]))
    first = int(p.shape[1]) - kept
    return p @ (vectors[:, first:] / xp.sqrt(values[first:]))


def _cholesky_solve(factor: Array, b: Array, *, xp: Namespace) -> Array:
    return _linalg.triangular_solve(factor, _linalg.triangular_solve(factor, b, xp=xp), xp=xp, adjoint=True)


@contextmanager
def _bar(total: int, *, shown: bool) -> Iterator[Callable[[int, float], Any]]:
    """A context whose value is called with the steps done and the residual: a bar, or nothing."""
    if not shown:
        yield lambda steps, residual: None
        return
    from tqdm.auto import tqdm  # imported late: `import softlinalg` stays quick

    with tqdm(total=total, desc="conjugate gradients", unit=" steps") as bar:

        def show(steps: int, residual: float) -> None:
            bar.set_postfix_str(f"residual {residual:.1e}", refresh=False)
            bar.update(steps - bar.n)

        yield show
