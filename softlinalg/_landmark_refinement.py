"""Moving landmarks so that the Nystrom approximation explains more of the kernel.

The trace error E(L) = tr(K - C W^-1 C^T), with C = k(X, L) and W = k(L, L), is the exact error of the approximation in
the nuclear norm. It is a smooth function of the landmarks wherever the kernel is, so L-BFGS lowers it further.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._kernels import Gaussian, Laplacian, Matern
from softlinalg._landmark_sampling import Rows, check_numbers, kernel_diagonal, kernel_values
from softlinalg._rng import as_generator
from softlinalg._settings import flag, whole_number
from softlinalg._typing import Array, RngLike
from softlinalg.errors import DTypeError, NumericalError, ParameterError, ShapeError

__all__ = ["TraceError", "refine_landmarks", "trace_error_and_gradient"]

SHIFT = 1e-10
"""Multiple of the mean diagonal of W that is added to it, in float64: landmarks may coincide on the way, and the
objective stays smooth and an upper bound of the exact error. In float32 (no float64 on the device): 1e-5."""

MEMORY = 20
"""Pairs that L-BFGS keeps: with some thousand variables more of them pay, and they are cheap beside a pass."""


class TraceError(NamedTuple):
    """What `trace_error_and_gradient` returns."""

    error: float
    """tr(K - C (W + shift I)^-1 C^T), in the units of the kernel."""
    gradient: Array
    """Derivative of it by the landmarks, shape (m, d)."""


def trace_error_and_gradient(rows: Rows, landmarks: Array, kernel: Any, trace: float, *, func: str) -> TraceError:
    r"""Trace error of the Nystrom approximation, and its gradient by the landmarks, in one pass over the rows.

    With W + shift I = R R^T and F = C R^-T the error is trace - |F|_F^2, and

        dE = -2 tr(W^-1 C^T dC) + tr(W^-1 C^T C W^-1 dW):

    the gradients are those of the kernel (`kernel.vjp`) for the weights -2 C W^-1 on C and W^-1 C^T C W^-1 on W.

    Parameters
    ----------
    rows : Rows
        The points X.
    landmarks : array, shape (m, d)
        In the type of the blocks of `rows`.
    kernel : Kernel with vjp
    trace : float
        tr(K), which does not depend on the landmarks.

    Raises
    ------
    NumericalError
        W has no Cholesky factor even with the shift: the kernel is not positive semi-definite.

    Notes
    -----
    O(n m (m + d)) time, temporaries of the size of one block.
    """
    xp = rows.xp
    core = kernel_values(kernel, landmarks, landmarks, func=func, xp=xp)
    core = (core + xp.matrix_transpose(core)) / 2
    inverse = _inverse_factor(core, rows, func=func)
    gradient = _arrays.zeros_like_shape(tuple(landmarks.shape), landmarks, xp=xp)
    gram = _arrays.zeros_like_shape(tuple(core.shape), core, xp=xp)
    for _, _, block in rows.blocks(int(landmarks.shape[0])):
        values = kernel_values(kernel, block, landmarks, func=func, xp=xp)
        features = values @ xp.matrix_transpose(inverse)  # (b, m)
        gram = gram + xp.matrix_transpose(features) @ features
        gradient = gradient + kernel.vjp(block, landmarks, -2 * (features @ inverse))[1]
    error = trace - float(xp.sum(xp.linalg.diagonal(gram)))
    check_numbers(np.asarray(error), func=func)
    first, second = kernel.vjp(landmarks, landmarks, xp.matrix_transpose(inverse) @ gram @ inverse)
    return TraceError(error, gradient + first + second)


def _inverse_factor(core: Array, rows: Rows, *, func: str) -> Array:
    """Inverse of the Cholesky factor of the shifted core.

    The factor's condition number is below 1e5 sqrt(m), so its explicit inverse costs few digits, and it turns every later
    step into GEMM. (Triangular solves of SciPy between products of NumPy were measured 30 times slower than with one
    thread on a busy machine: each library brings a thread pool of its own.)
    """
    xp = rows.xp
    shift = (SHIFT if _arrays.eps(rows.dtype) < 1e-10 else 1e-5) * xp.mean(xp.linalg.diagonal(core))
    for _ in range(4):
        factor, ok = _linalg.cholesky(core + shift * _arrays.eye_like(core, xp=xp), xp=xp)
        if bool(ok):
            return _linalg.triangular_solve(factor, _arrays.eye_like(core, xp=xp), xp=xp)
        shift = shift * 100
    message = f"{func}: k(landmarks, landmarks) must be positive semi-definite; got a matrix without Cholesky factor. Check the kernel."
    raise NumericalError(message)


def refine_landmarks(
    x: Any,
    landmarks: Any,
    kernel: Any,
    *,
    max_steps: int = 40,
    sample: int | None = None,
    rng: RngLike = None,
    progress: bool = False,
    check_finite: bool = True,
) -> Array:
    r"""Move landmarks to lower the exact trace error of the Nystrom approximation.

    Minimises tr(k(x, x) - k(x, L) k(L, L)^-1 k(L, x)) over L by L-BFGS with the analytic gradient, from the landmarks given.

    Parameters
    ----------
    x : array, shape (n, d)
        Points.
    landmarks : array, shape (m, d)
        Start, for instance from `select_landmarks`.
    kernel : Kernel
        With `vjp(x, y, g)`, the gradient of sum(g * k(x, y)): `Gaussian`, `Laplacian` and `Matern` have it.
    max_steps : int, default 40
        Largest number of L-BFGS steps; each costs little more than one pass over the rows.
    sample : int, optional
        Follow the gradient on so many random rows instead of all. Whether the result is better than the start is
        then still decided on all rows.
    rng : None, int or numpy.random.Generator
        For `sample`, and for a kernel with ``length_scale="median"``.
    progress : bool, default False
        Show a progress bar with the relative trace error.
    check_finite : bool, default True
        Whether to look for NaN and infinity in `x` and `landmarks`.

    Returns
    -------
    array, shape (m, d)
        Library, device and common dtype of `x` and `landmarks`. Its trace error is never above that of the start.

    Raises
    ------
    ParameterError
        The kernel has no `vjp`; `max_steps` or `sample` below 1.
    ShapeError
        `x` or `landmarks` are not matrices with equally many columns and at least one row.
    NonFiniteError, DTypeError, BackendMismatchError
        As everywhere; traced arrays are refused.

    Notes
    -----
    O(n m (m + d)) time per step in blocks of rows. The matrix formulas are in float64 where the device has it, with 1e-10
    of the diagonal added to k(L, L), so equal landmarks are harmless. Where a kernel has a kink at distance zero
    (Laplacian, Matern 1/2) the gradient is that of the smooth pieces.

    References
    ----------
    .. [1] Snelson & Ghahramani, Sparse Gaussian processes using pseudo-inputs (2006), for landmarks moved by gradients.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> x = np.random.default_rng(0).normal(size=(500, 2))
    >>> kernel = softlinalg.Gaussian(1.0)
    >>> start = softlinalg.select_landmarks(x, 10, method="uniform", rng=0)
    >>> refined = softlinalg.refine_landmarks(x, start, kernel)
    >>> before, after = (softlinalg.nystrom(x, kernel, landmarks=points).relative_trace_error for points in (start, refined))
    >>> after < before
    True
    """
    func = "refine_landmarks"
    xp, (x, landmarks), dtype = _inputs.prepare(func, {"x": x, "landmarks": landmarks}, whole=False)
    _check_points(func, x, landmarks)
    max_steps = whole_number(max_steps, func=func, name="max_steps", minimum=1)
    x, landmarks = _arrays.detach(x), _arrays.detach(landmarks)
    if flag(check_finite, func=func, name="check_finite"):
        _inputs.check_finite(x, func=func, name="x", xp=xp)
        _inputs.check_finite(landmarks, func=func, name="landmarks", xp=xp)
    generator = as_generator(rng, func=func)
    kernel = _differentiable(kernel, x, generator, func=func)
    start = xp.astype(landmarks, dtype)
    (work, work_xp), (work_start, start_xp) = _arrays.host_view(x, xp=xp), _arrays.host_view(start, xp=xp)
    if work_xp is not start_xp or not isinstance(kernel, Gaussian | Laplacian | Matern):
        work, work_start, work_xp = x, start, xp  # kernels of ours take NumPy arrays too; others may not
    rows = Rows(work, xp=work_xp)
    if sample is not None and (size := whole_number(sample, func=func, name="sample", minimum=1)) < len(rows):
        rows = Rows(work, np.sort(generator.permutation(len(rows))[:size]), xp=work_xp)
    best = _minimize(rows, work_xp.astype(work_start, rows.dtype), kernel, max_steps, func=func, progress=progress)
    end = work_xp.astype(best, work_start.dtype)
    # Decided on all rows, and after rounding to the dtype of the result.
    if not _is_better(Rows(work, xp=work_xp), end, work_start, kernel, func=func):
        return start
    return _arrays.from_numpy(end, x, xp=xp) if work_xp is not xp else end


def _is_better(rows: Rows, new: Array, old: Array, kernel: Any, *, func: str) -> bool:
    """Have the landmarks `new` a smaller trace error than `old`?"""
    trace = float(np.sum(kernel_diagonal(kernel, rows, func=func)))
    first, second = (_trace_error(rows, rows.xp.astype(points, rows.dtype), kernel, trace, func=func) for points in (new, old))
    return first < second


def _check_points(func: str, x: Array, landmarks: Array) -> None:
    """Two matrices with equally many columns, whose numbers can be read."""
    if _arrays.is_traced(x, landmarks):
        message = f"{func}: x and landmarks must hold numbers; got a traced array. Refine landmarks outside jit, vmap and compile."
        raise DTypeError(message)
    for name, points in (("x", x), ("landmarks", landmarks)):
        if points.ndim != 2 or 0 in points.shape:
            message = f"{func}: {name} must have shape (rows, d) with rows, d >= 1; got {tuple(points.shape)}. Pass one point per row."
            raise ShapeError(message)
    if x.shape[1] != landmarks.shape[1]:
        message = f"{func}: landmarks must have as many columns as x; got {landmarks.shape[1]} and {x.shape[1]}. Pass points of one space."
        raise ShapeError(message)


def _differentiable(kernel: Any, x: Array, rng: np.random.Generator, *, func: str) -> Any:
    """The kernel with its length scale settled; refused where it has no gradient."""
    missing = [name for name in ("diagonal", "vjp") if not callable(getattr(kernel, name, None))]
    if isinstance(kernel, type) or not callable(kernel):
        missing.insert(0, "__call__")
    if missing:
        lacking = ", ".join(missing)
        message = f"{func}: kernel must have __call__, diagonal and vjp; got one without {lacking}. Pass Gaussian(length_scale)."
        raise ParameterError(message)
    return kernel.resolve(x, rng) if hasattr(kernel, "resolve") else kernel


def _trace_error(rows: Rows, landmarks: Array, kernel: Any, trace: float, *, func: str) -> float:
    """The error alone, without its gradient."""
    xp = rows.xp
    core = kernel_values(kernel, landmarks, landmarks, func=func, xp=xp)
    inverse = xp.matrix_transpose(_inverse_factor((core + xp.matrix_transpose(core)) / 2, rows, func=func))
    explained = 0.0
    for _, _, block in rows.blocks(int(landmarks.shape[0])):
        features = kernel_values(kernel, block, landmarks, func=func, xp=xp) @ inverse
        explained += float(xp.sum(features * features))
    return trace - explained


def _spread(points: np.ndarray[Any, Any]) -> float:
    """Root mean square deviation of coordinates from their mean, without overflow; 1 for equal points."""
    deviation = points - np.mean(points / len(points), axis=0) * len(points)
    largest = float(np.max(np.abs(deviation)))
    return largest * float(np.sqrt(np.mean((deviation / largest) ** 2))) if largest > 0 else 1.0


def _minimize(rows: Rows, start: Array, kernel: Any, max_steps: int, *, func: str, progress: bool) -> Array:
    """L-BFGS over the landmarks; the best point met."""
    from scipy.optimize import minimize  # imported late: `import softlinalg` stays quick
    from tqdm.auto import tqdm

    xp = rows.xp
    host = _arrays.to_numpy(start).astype(np.float64)
    trace = float(np.sum(kernel_diagonal(kernel, rows, func=func)))
    unit = _spread(host)
    scale = 0.0
    best = (np.inf, host)

    def objective(flat: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        """Error relative to that of the start, as a function of the moves in units of the spread of the landmarks."""
        nonlocal best, scale
        points = host + unit * flat.reshape(host.shape)
        error, gradient = trace_error_and_gradient(
            rows, _arrays.from_numpy(points, start, xp=xp, dtype=rows.dtype), kernel, trace, func=func
        )
        scale = scale or 1 / max(abs(error), np.finfo(np.float64).tiny)
        if error < best[0]:
            best = (error, points)
        return error * scale, _arrays.to_numpy(gradient).astype(np.float64).reshape(-1) * (scale * unit)

    with tqdm(total=max_steps, unit=" steps", disable=not progress) as bar:

        def report(_: object) -> None:
            bar.set_postfix_str(f"relative trace error {best[0] / trace:.3e}")
            bar.update(1)

        options = {"maxiter": max_steps, "maxfun": 3 * max_steps + 5, "maxcor": MEMORY, "ftol": 1e-7, "gtol": 1e-12}
        minimize(objective, np.zeros(host.size), jac=True, method="L-BFGS-B", callback=report, options=options)
    return _arrays.from_numpy(best[1], start, xp=xp, dtype=rows.dtype)
