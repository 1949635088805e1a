"""The Nystrom approximation of a kernel matrix, with its exact error: products, systems, eigenvectors, features."""

from __future__ import annotations

from typing import Any

from softlinalg import _arrays, _inputs
from softlinalg._landmark_sampling import check_kernel
from softlinalg._nystrom_core import Wide, optional_count
from softlinalg._nystrom_decomposition import NystromDecomposition
from softlinalg._nystrom_fit import Problem, choose_landmarks, fit, fit_to_tolerance, settle_landmarks
from softlinalg._nystrom_operators import kernel_operator
from softlinalg._rng import as_generator
from softlinalg._settings import flag, is_one_of, shown
from softlinalg._typing import Array, DType, RngLike
from softlinalg.errors import ParameterError

__all__ = ["NystromDecomposition", "kernel_operator", "nystrom"]


def nystrom(
    x: Any,
    kernel: Any,
    *,
    rank: int | None = None,
    tol: float | None = None,
    landmarks: Any = "rpcholesky+lloyd",
    ridge: float | None = None,
    rng: RngLike = None,
    chunk_size: int | None = None,
    progress: bool = False,
    store_features: bool | str = "auto",
    rtol: float | None = None,
    check_finite: bool = True,
) -> NystromDecomposition:
    r"""Low-rank approximation of the kernel matrix K = k(x, x), with its exact error.

    .. math:: K \approx \hat K = C W^+ C^T = F F^T, \qquad C = k(x, L), \quad W = k(L, L), \quad 0 \le \hat K \le K,

    for landmarks L [1]_. K is never formed. The trace of K - F F^T, which is the error in the nuclear norm and bounds those in
    the Frobenius and the spectral norm, is summed over all rows in the same pass that makes the features F.

    Parameters
    ----------
    x : array, shape (n, d)
        Points, of any supported library; a memory map is read in blocks. Kept by reference, never changed: change it
        afterwards only if the features are stored.
    kernel : Kernel
        Positive semi-definite, such as ``Gaussian(1.0)`` or ``Gaussian("median")``: any object with `__call__(x, y)` and `diagonal(x)`.
    rank : int, optional
        Number of landmarks, from 1 to n. The rank of the result is smaller where landmarks repeat each other, or nearly so.
    tol : float, optional
        Relative trace error to reach, in (0, 1]. The landmarks grow in number until the exact error over all rows is at most
        `tol`; the result is then cut to the smallest rank that still is. Give exactly one of `rank` and `tol`; neither is
        needed with landmarks of your own.
    landmarks : str or array, default "rpcholesky+lloyd"
        A method of `select_landmarks`; or points, shape (m, d); or row numbers of `x`, integers of shape (m,).
    ridge : float, optional
        Multiple of the identity that `solve`, `logdet` and `preconditioner` of the result add where they are given none.
    rng : None, int or numpy.random.Generator
        Picks the landmarks, and the rows for a length scale of "median".
    chunk_size : int, optional
        Rows per block. Default: what the cache of a core holds.
    progress : bool, default False
        Show a bar with rows per second.
    store_features : {"auto", True, False}, default "auto"
        Keep the n x r features. "auto": up to 1 GiB of them. Without them each product computes them anew, at the cost of
        the first pass: the same numbers, in the memory of one block.
    rtol : float, optional
        Eigenvalues of W at or below `rtol` times the largest are dropped. Default: 1e-8 for float32 data, 1e-12 for float64; a
        hundred or ten thousand times more where rows far from all landmarks would be explained beyond their kernel value.
    check_finite : bool, default True
        Whether to look for NaN and infinity in `x` at the beginning; blocks are checked as they are used in any case.

    Returns
    -------
    NystromDecomposition

    Raises
    ------
    ParameterError
        `rank` outside 1..n, neither or both of `rank` and `tol`, `tol` below the rounding floor, an unknown method, a
        kernel without `__call__` and `diagonal`.
    InputError
        The landmarks given do not reach `tol`.
    ShapeError, DTypeError, NonFiniteError, BackendMismatchError
        `x` or `landmarks` cannot be used; traced arrays belong outside jit, vmap and compile.
    NumericalError
        The approximation explains more of K than there is, beyond rounding, also in float64: the kernel is not positive semi-definite.
    ResourceError
        The features do not fit in memory (``store_features=True``).

    Warns
    -----
    DuplicateLandmarkWarning
        Landmarks repeat each other: the result is that of the different ones.

    Notes
    -----
    O(n m (d + m) + m^3) time for m landmarks; O(n m) memory with stored features, O(m^2 + chunk_size m) without. W and
    everything of its size is float64; kernel values and features have the dtype of `x` (float32 for the half precisions).
    Where rounding in float32 could be more than half of the error found, the pass is done again in float64 and only the
    features are rounded. Theorems, and the reasons for the constants: docs/theory/nystrom.md.

    References
    ----------
    .. [1] Williams & Seeger, Using the Nystrom method to speed up kernel machines (2001).

    Examples
    --------
    >>> import numpy as np, softlinalg
    >>> x = np.random.default_rng(0).normal(size=(2000, 3))
    >>> d = softlinalg.nystrom(x, softlinalg.Gaussian(1.5), rank=200, rng=0)
    >>> d.relative_trace_error < 1e-2
    True
    >>> y = d.solve(np.ones(2000), ridge=1e-3)
    """
    func = "nystrom"
    xp, (x,), dtype = _inputs.prepare(func, {"x": x}, whole=False)
    _inputs.check_rows(x, func=func)
    x = _arrays.detach(x)
    if flag(check_finite, func=func, name="check_finite"):
        _inputs.check_finite(x, func=func, name="x", xp=xp)
    generator = as_generator(rng, func=func)
    features_dtype = _arrays.compute_dtype(dtype, xp=xp)
    problem = Problem(
        func=func,
        x=x,
        kernel=_settled_kernel(kernel, x, generator, func=func),
        dtype=features_dtype,
        rtol=None if rtol is None else _inputs.real_scalar(rtol, func=func, name="rtol", maximum=0.5),
        rng=generator,
        chunk_size=optional_count(chunk_size, func=func, name="chunk_size"),
        progress=bool(progress),
        store_features=_storage(store_features, func=func),
        wide=Wide(x, xp=xp),
        xp=xp,
    )
    rank, tol = _size(rank, tol, n=problem.n, given=not isinstance(landmarks, str), dtype=features_dtype, func=func)
    ridge = None if ridge is None else _inputs.real_scalar(ridge, func=func, name="ridge")
    settled = settle_landmarks(problem, landmarks, rank)
    if tol is not None:
        result = fit_to_tolerance(problem, tol, settled)
    elif isinstance(settled, str):
        result = fit(problem, choose_landmarks(problem, settled, rank or 1, generator))
    else:
        result = fit(problem, settled)
    return NystromDecomposition(result, x, dtype=dtype, ridge=ridge)


# ------------------------------------------------------------------------------------------------ arguments
def _settled_kernel(kernel: Any, x: Array, rng: Any, *, func: str) -> Any:
    """The kernel with its length scale settled."""
    check_kernel(kernel, func=func)
    return kernel.resolve(x, rng) if hasattr(kernel, "resolve") else kernel


def _size(rank: Any, tol: Any, *, n: int, given: bool, dtype: DType, func: str) -> tuple[int | None, float | None]:
    """`rank` and `tol` checked: one of them, unless landmarks are given."""
    if (rank is None) == (tol is None) and not (given and rank is None):
        what = "neither" if rank is None else "both"
        message = f"{func}: rank or tol must be given, and not both; got {what}. Pass one of them."
        raise ParameterError(message)
    rank = optional_count(rank, func=func, name="rank", maximum=n)
    if tol is None:
        return rank, None
    tol = _inputs.real_scalar(tol, func=func, name="tol", maximum=1.0)
    if tol < _arrays.eps(dtype):
        floor = f"{_arrays.eps(dtype):.2g} at least for {_arrays.dtype_name(dtype)} data"
        message = f"{func}: tol must be above the rounding floor, {floor}; got {tol:.3g}. Pass a larger one."
        raise ParameterError(message)
    return None, tol


def _storage(value: Any, *, func: str) -> bool | str:
    if is_one_of(value, (True, False, "auto")):
        return value  # type: ignore[no-any-return]
    message = f'{func}: store_features must be True, False or "auto"; got {shown(value)}. Pass one of these.'
    raise ParameterError(message)
