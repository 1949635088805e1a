"""Exponentials of blocks, nearest landmarks, and inverses of small matrices, by compiled code where there is a C++ compiler.

NumPy takes exponentials at a quarter of the speed that a block in the cache allows, and LAPACK is slow at inverting small matrices. The
code is compiled at first use, once for each machine (two seconds). Each entry, and each matrix, has the same bits wherever it stands.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from softlinalg import _compiled

__all__ = [
    "Certainty",
    "LandmarkCall",
    "clamped_exp_in_place",
    "correct",
    "inverse_vjp",
    "invert",
    "kernel_matrix",
    "landmark_call",
    "landmark_factors",
    "landmarks",
    "load",
    "loaded_or_why_not",
    "nearest",
    "relative_error",
    "serves_step",
]

_log = logging.getLogger(__name__)

_LARGEST = 200
"""Rows of matrices that are worked on several at once, one in each lane of a vector."""
_LARGEST_INVERSE = 512
"""Rows of matrices that are inverted: beyond, LAPACK is as quick, and has threads."""
_WIDEST = 256
"""Columns of points."""
_TYPES = (np.dtype(np.float32), np.dtype(np.float64))
_NAMES = ("float32", "float64")

_Array = np.ndarray[Any, Any]


def clamped_exp_in_place(block: _Array, lowest: float) -> bool:
    """exp(min(block, 0)), zero where `block` <= `lowest`, in the memory of `block`; NaN stays. False where the code does not serve.

    Off by less than 1.5 units in the last place. `lowest` is above the logarithm of the smallest normal number.
    """
    if block.dtype not in _TYPES or not block.flags.writeable or not block.dtype.isnative:
        return False
    if block.flags.c_contiguous:
        rows, width, apart = 1, block.size, 0
    elif block.ndim == 2 and block.strides[1] == block.itemsize and block.strides[0] > 0:  # columns of a wider block
        (rows, width), apart = block.shape, block.strides[0] // block.itemsize
    else:
        return False
    kernels = load()
    if kernels is None:
        return False
    function = _of_type(kernels, "exp", block.dtype)
    function(block.ctypes.data, rows, width, apart, lowest)
    return True


def invert(a: _Array, ridge: _Array) -> tuple[_Array, _Array] | None:
    """(A + ridge I)^-1 for symmetric A, or None where the compiled code does not serve.

    Parameters
    ----------
    a : array, shape (N, m, m)
        float32 or float64; of each matrix the lower triangle is read.
    ridge : array, shape (N,)
        float64, as are all calculations.

    Returns
    -------
    inverse : array, shape (N, m, m)
        Type of `a`, exactly symmetric; NaN or infinite where the matrix is not positive definite.
    evidence : array, shape (4, N)
        The fields of `_certificates_cholesky.CholeskyEvidence`.
    """
    batch, m = a.shape[:2]
    if a.dtype not in _TYPES or not 0 < m <= _LARGEST_INVERSE or batch == 0:
        return None
    kernels = load()
    return None if kernels is None else _call_invert(kernels, a, ridge)


def serves_step(shape: tuple[int, ...], dtype: str) -> bool:
    """Can `correct` be called for B of a shape (N, m, m) and data type?"""
    return dtype == "float64" and shape[0] > 0 and 0 < shape[-1] <= _LARGEST and load() is not None


def correct(b: _Array, x: _Array) -> tuple[_Array, _Array]:
    """One Newton step X' = X - X D, D = B X - I, symmetrized, for symmetric B; where `serves_step` says so.

    Parameters
    ----------
    b : array, shape (N, m, m)
        float64, exactly symmetric.
    x : array, shape (N, m, m)
        float32 or float64.

    Returns
    -------
    corrected : array, shape (N, m, m)
        float64, exactly symmetric.
    sizes : array, shape (5, N)
        Upper bounds of the Frobenius norms of B, X, D, X D, and of X' before it is symmetrized.
    """
    kernels = load()
    assert kernels is not None
    return _call_correct(kernels, b, x)


def _serves_points(points: _Array) -> bool:
    return points.dtype in _TYPES and points.ndim == 3 and _is_few(points.shape)


def _is_few(shape: tuple[int, ...]) -> bool:
    """Are these points (B, m, d) few? Beyond, a product of matrices pays."""
    return 0 < shape[1] <= _LARGEST and 0 < shape[2] <= _WIDEST


def relative_error(trace_b: float, trace_x: float, worst: float, norm: float, m: int, gamma: float) -> float | None:
    """`_certificates_cholesky.judge_cholesky(...).residual` of one matrix, as `landmarks` computes it; None without compiled code."""
    kernels = load()
    return None if kernels is None else float(kernels.softlinalg_relative_error(trace_b, trace_x, worst, norm, gamma, m))


def kernel_matrix(points: _Array, scale: float, limit: float, lowest: float) -> tuple[_Array | None] | None:
    """Gaussian kernel matrices of a few landmarks, or None where the code does not serve.

    Parameters
    ----------
    points : array, shape (B, m, d)
        float32 or float64.
    scale : float
        One over the length scale.
    limit : float
        Of the squared distance from the mean of the points, times scale squared.
    lowest : float
        Values are zero where the exponent is not above it.

    Returns
    -------
    tuple of an array of shape (B, m, m) in float64, or of None where some point is beyond the limit
    """
    kernels = load() if _serves_points(points) else None
    return None if kernels is None else (_call_kernel(kernels, points, scale, limit, lowest),)


def landmark_factors(points: _Array, scale: float, unit: float) -> tuple[_Array, ...] | None:
    """Of few landmarks (B, m, d), in their type, or None where the code does not serve.

    Returns
    -------
    center, w, squares, rows, columns : arrays, shapes (B, 1, d), (B, m, d), (B, m, 1), and twice (B, m, d + 2)
        The mean, the points less that, their squares times scale squared, and what `_attention_blocks.Columns` makes of them.
    """
    kernels = load() if _serves_points(points) else None
    return None if kernels is None else _call_factors(kernels, points, scale, unit)


class Certainty(NamedTuple):
    """What theorem C4 must certify of an inverse (`_certificates_cholesky.judge_cholesky`)."""

    gamma: float
    """8 gamma_(m + 2) of float64."""
    rounding: float
    """Times a norm of the inverse: what rounding of the matrix itself adds to the relative error."""
    tol: float


def landmarks(
    points: _Array, scale: float, ridge: float, unit: float, limits: tuple[float, float], lowest: float, certainty: Certainty
) -> tuple[_Array, ...] | None:
    """What `kernel_matrix`, `invert` and `landmark_factors` give, in one call.

    None where the code does not serve, a point is far, or an inverse is not certified.

    Parameters
    ----------
    points : array, shape (B, m, d)
        float32 or float64.
    scale, ridge, unit, lowest : float
        As there.
    limits : tuple of two floats
        Of the squares of points less their mean, times scale squared: in float64, and in the type of the points.
    certainty : Certainty

    Returns
    -------
    kernel, inverse, evidence, center, w, rows, columns : arrays
        The first three are float64.
    """
    kernels = load() if _serves_points(points) else None
    return None if kernels is None else _call_landmarks(kernels, points, scale, ridge, unit, limits, lowest, certainty)


class LandmarkCall(NamedTuple):
    """The compiled function of `landmarks`, for points of one shape, for callers with memory of their own."""

    function: Any
    numbers: tuple[Any, ...]
    own: int
    scratch_bytes: int

    def __call__(self, points: int, made: Sequence[int], scratch: int) -> bool:
        """All addresses of contiguous memory: of the points, of the seven arrays that `landmarks` returns, and of `scratch_bytes`."""
        return bool(self.function(points, *self.numbers, *made, scratch, scratch + self.own))


def landmark_call(shape: tuple[int, ...], dtype: str, *settings: Any) -> LandmarkCall | None:
    """The call of `landmarks` for points of a shape (B, m, d) and type, `settings` its other arguments; None where it does not serve."""
    kernels = load() if dtype in _NAMES and _is_few(shape) else None
    return None if kernels is None else _landmark_call(kernels, shape, np.dtype(dtype), *settings)


def inverse_vjp(x: _Array, grad: _Array, w: _Array, points: _Array, scale: float) -> _Array | None:
    """Gradient of sum(grad * (W + ridge I)^-1) with respect to the few points of W, or None where the code does not serve.

    Parameters
    ----------
    x, grad, w : arrays, shape (B, m, m)
        float64: the inverse, exactly symmetric, the gradient, and the kernel matrix.
    points : array, shape (B, m, d)
        float32 or float64.
    scale : float
        One over the length scale.

    Returns
    -------
    array, shape (B, m, d)
        float64.
    """
    kernels = load() if _serves_points(points) and x.dtype == grad.dtype == w.dtype == np.float64 else None
    return None if kernels is None else _call_inverse_vjp(kernels, x, grad, w, points, scale)


def nearest(products: _Array, half: _Array, slack_of_half: _Array, slack_of_row: _Array) -> tuple[_Array, _Array] | None:
    """The landmark nearest to each row, from products x.l, or None where the code does not serve.

    Parameters
    ----------
    products : array, shape (n, m)
        float32 or float64, contiguous.
    half : array, shape (m,)
        |l|^2 / 2 of each landmark.
    slack_of_half : array, shape (m,)
    slack_of_row : array, shape (n,)
        Landmarks tie with the nearest one where half - x.l - slack_of_half is not above its half - x.l + slack_of_row.

    Returns
    -------
    labels : int64 array, shape (n,)
        The first of the landmarks that tie.
    best : array, shape (n,)
        The smallest half - x.l.
    """
    if products.dtype not in _TYPES or not products.flags.c_contiguous or products.shape[1] == 0:
        return None
    kernels = load()
    return None if kernels is None else _call_nearest(kernels, products, half, slack_of_half, slack_of_row)


def _of_type(kernels: ctypes.CDLL, name: str, dtype: np.dtype[Any]) -> Any:
    """The function for float32 or that for float64."""
    return getattr(kernels, f"softlinalg_{name}_{'float' if dtype == np.float32 else 'double'}")


def _call_invert(kernels: ctypes.CDLL, a: _Array, ridge: _Array) -> tuple[_Array, _Array]:
    a, ridge = np.ascontiguousarray(a), np.ascontiguousarray(ridge, dtype=np.float64)
    batch, m = a.shape[:2]
    out, evidence = np.empty_like(a), np.empty((4, batch))
    scratch = np.empty(kernels.softlinalg_scratch_bytes(m), dtype=np.uint8)
    function = _of_type(kernels, "invert", a.dtype)
    function(*(x.ctypes.data for x in (a, ridge)), batch, m, *(x.ctypes.data for x in (out, evidence, scratch)))
    return out, evidence


def _call_correct(kernels: ctypes.CDLL, b: _Array, x: _Array) -> tuple[_Array, _Array]:
    b, x = np.ascontiguousarray(b), np.ascontiguousarray(x)
    batch, m = b.shape[:2]
    out, sizes = np.empty_like(b), np.empty((5, batch))
    scratch = np.empty(kernels.softlinalg_scratch_bytes(m), dtype=np.uint8)
    _of_type(kernels, "correct", x.dtype)(b.ctypes.data, x.ctypes.data, batch, m, *(a.ctypes.data for a in (out, sizes, scratch)))
    return out, sizes


def _call_kernel(kernels: ctypes.CDLL, points: _Array, scale: float, limit: float, lowest: float) -> _Array | None:
    points = np.ascontiguousarray(points)
    batch, m, d = points.shape
    out, memory = np.empty((batch, m, m)), np.empty((m + 8) * (d + 2))
    function = _of_type(kernels, "kernel", points.dtype)
    near = function(points.ctypes.data, batch, m, d, scale, limit, lowest, out.ctypes.data, memory.ctypes.data)
    return out if near else None


def _call_factors(kernels: ctypes.CDLL, points: _Array, scale: float, unit: float) -> tuple[_Array, ...]:
    points = np.ascontiguousarray(points)
    batch, m, d = points.shape
    made = tuple(np.empty(shape, dtype=points.dtype) for shape in ((batch, 1, d), (batch, m, d), (batch, m, 1), *[(batch, m, d + 2)] * 2))
    function = _of_type(kernels, "factors", points.dtype)
    function(points.ctypes.data, batch, m, d, scale, unit, *(x.ctypes.data for x in made))
    return made


def _landmark_call(
    kernels: ctypes.CDLL,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    scale: float,
    ridge: float,
    unit: float,
    limits: tuple[float, float],
    lowest: float,
    certainty: Certainty,
) -> LandmarkCall:
    batch, m, d = shape
    own = 8 * ((m + 8) * (d + 2) + batch * (m + 1))
    numbers = (batch, m, d, ridge, scale, unit, *limits, lowest, *certainty)
    return LandmarkCall(_of_type(kernels, "landmarks", dtype), numbers, own, own + kernels.softlinalg_scratch_bytes(m))


def _call_landmarks(kernels: ctypes.CDLL, points: _Array, *settings: Any) -> tuple[_Array, ...] | None:
    points = np.ascontiguousarray(points)
    batch, m, d = points.shape
    call = _landmark_call(kernels, points.shape, points.dtype, *settings)
    wide, at_wide = _in_one_piece(_WIDE, (batch, m, m), (batch, m, m), (4, batch))
    narrow, at_narrow = _in_one_piece(points.dtype, (batch, 1, d), (batch, m, d), (batch, m, d + 2), (batch, m, d + 2))
    scratch = np.empty(call.scratch_bytes // 8 + 1)
    return (*wide, *narrow) if call(points.ctypes.data, at_wide + at_narrow, scratch.ctypes.data) else None


_WIDE = np.dtype(np.float64)


def _in_one_piece(dtype: np.dtype[Any], *shapes: tuple[int, ...]) -> tuple[list[_Array], list[int]]:
    """Arrays that are not written yet, and their addresses: NumPy takes longer to tell an address than to make an array."""
    starts = list(itertools.accumulate((-(-math.prod(shape) // 16) * 16 for shape in shapes), initial=0))  # each in cache lines of its own
    memory = np.empty(starts[-1], dtype=dtype)
    first, size = memory.ctypes.data, dtype.itemsize
    made = [memory[start : start + math.prod(shape)].reshape(shape) for start, shape in zip(starts, shapes, strict=False)]
    return made, [first + size * start for start in starts[:-1]]


def _call_inverse_vjp(kernels: ctypes.CDLL, x: _Array, grad: _Array, w: _Array, points: _Array, scale: float) -> _Array:
    x, grad, w, points = (np.ascontiguousarray(a) for a in (x, grad, w, points))
    batch, m, d = points.shape
    out, memory = np.empty((batch, m, d)), np.empty(3 * m * (m + 8) + (m + 2) * (d + 8))
    function = _of_type(kernels, "inverse_vjp", points.dtype)
    function(*(a.ctypes.data for a in (x, grad, w, points)), batch, m, d, scale**2, out.ctypes.data, memory.ctypes.data)
    return out


def _call_nearest(
    kernels: ctypes.CDLL, products: _Array, half: _Array, slack_of_half: _Array, slack_of_row: _Array
) -> tuple[_Array, _Array]:
    (n, m), dtype = products.shape, products.dtype
    half, slack_of_half, slack_of_row = (np.ascontiguousarray(x, dtype=dtype) for x in (half, slack_of_half, slack_of_row))
    labels, best = np.empty(n, dtype=np.int64), np.empty(n, dtype=dtype)
    addresses = (x.ctypes.data for x in (half, slack_of_half, slack_of_row, labels, best))
    _of_type(kernels, "nearest", dtype)(products.ctypes.data, n, m, *addresses)
    return labels, best


@functools.cache
def load() -> ctypes.CDLL | None:
    """The code, compiled if it has not been yet; None, logged, where that cannot be."""
    kernels, reason = loaded_or_why_not()
    if kernels is None:
        _log.info("compiled code is not available, NumPy and LAPACK serve in its place: %s", reason)
    return kernels


def loaded_or_why_not() -> tuple[ctypes.CDLL | None, str]:
    """The code, checked, or the reason why there is none."""
    if _compiled.is_turned_off():
        return None, "SOFTLINALG_COMPILED=0 turns it off"
    try:
        kernels = _compiled.library(Path(__file__).with_suffix(".cpp"), "-O3")
        _bind(kernels)
        _check(kernels)
    except _compiled.FAILURES as error:
        return None, str(error)
    return kernels, ""


def _bind(kernels: ctypes.CDLL) -> None:
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    kernels.softlinalg_scratch_bytes.restype, kernels.softlinalg_scratch_bytes.argtypes = ctypes.c_int64, (ctypes.c_int64,)
    for function in (kernels.softlinalg_invert_float, kernels.softlinalg_invert_double):
        function.restype, function.argtypes = None, (pointer, pointer, number, number, pointer, pointer, pointer)
    for function in (kernels.softlinalg_correct_float, kernels.softlinalg_correct_double):
        function.restype, function.argtypes = None, (pointer, pointer, number, number, pointer, pointer, pointer)
    for function in (kernels.softlinalg_exp_float, kernels.softlinalg_exp_double):
        function.restype, function.argtypes = None, (pointer, number, number, number, ctypes.c_double)
    real = ctypes.c_double
    for function in (kernels.softlinalg_kernel_float, kernels.softlinalg_kernel_double):
        function.restype, function.argtypes = ctypes.c_int32, (pointer, number, number, number, real, real, real, pointer, pointer)
    for function in (kernels.softlinalg_inverse_vjp_float, kernels.softlinalg_inverse_vjp_double):
        function.restype, function.argtypes = None, (*[pointer] * 4, number, number, number, real, pointer, pointer)
    for function in (kernels.softlinalg_landmarks_float, kernels.softlinalg_landmarks_double):
        function.restype, function.argtypes = ctypes.c_int32, (pointer, *[number] * 3, *[real] * 9, *[pointer] * 9)
    kernels.softlinalg_relative_error.restype = real
    kernels.softlinalg_relative_error.argtypes = (*[real] * 5, number)
    for function in (kernels.softlinalg_nearest_float, kernels.softlinalg_nearest_double):
        function.restype, function.argtypes = None, (pointer, number, number, *[pointer] * 5)
    for function in (kernels.softlinalg_factors_float, kernels.softlinalg_factors_double):
        function.restype, function.argtypes = None, (pointer, number, number, number, real, real, *[pointer] * 5)


def _check(kernels: ctypes.CDLL) -> None:
    """Raise RuntimeError unless the code is right about a small example of each type."""
    checks = {"exponentials": _exponentials_are_right, "inverses": _inverses_are_right, "kernel matrices": _kernels_are_right}
    checks |= {"factors of landmarks": _factors_are_right, "landmarks": _landmarks_are_right, "gradients of inverses": _gradients_are_right}
    checks |= {"nearest landmarks": _nearest_are_right, "Newton steps": _steps_are_right}
    for what, is_right in checks.items():
        for dtype in _TYPES:
            if not is_right(kernels, dtype):
                message = f"the compiled code gives other results: {what} of {dtype}"
                raise RuntimeError(message)


def _exponentials_are_right(kernels: ctypes.CDLL, dtype: np.dtype[Any]) -> bool:
    exponents = np.linspace(1, -30, 37, dtype=dtype)
    block = exponents.copy()
    _of_type(kernels, "exp", dtype)(block.ctypes.data, 1, block.size, 0, -20.0)
    powers = np.exp(np.minimum(exponents, 0, dtype=np.float64))
    powers[exponents <= -20] = 0
    return np.allclose(block, powers, rtol=4 * np.finfo(dtype).eps, atol=0)


def _inverses_are_right(kernels: ctypes.CDLL, dtype: np.dtype[Any]) -> bool:
    """Of several matrices at once, and of a larger one alone."""
    return all(_these_inverses_are_right(kernels, dtype, m, count) for m, count in ((7, 6), (_LARGEST + 5, 2)))


def _these_inverses_are_right(kernels: ctypes.CDLL, dtype: np.dtype[Any], m: int, count: int) -> bool:
    a = 1 / (1 + np.abs(np.subtract.outer(np.arange(m), np.arange(m))))
    batch, ridge = np.stack([a + i * np.eye(m) for i in range(count)]).astype(dtype), np.linspace(0.0, 0.5, count)
    inverse, evidence = _call_invert(kernels, batch, ridge)
    shifted = batch + ridge[:, None, None] * np.eye(m)
    expected = np.linalg.inv(shifted)
    traces = [np.trace(x, axis1=1, axis2=2) for x in (shifted, expected)]
    norms = np.minimum(np.linalg.norm(expected, axis=(1, 2)), np.linalg.norm(expected, np.inf, axis=(1, 2)))
    return np.allclose(inverse, expected, rtol=0, atol=100 * np.finfo(dtype).eps) and bool(
        np.allclose(evidence[[0, 1, 3]], [*traces, norms], rtol=1e-12) and (evidence[2] < 1e-12).all()
    )


def _steps_are_right(kernels: ctypes.CDLL, dtype: np.dtype[Any]) -> bool:
    distance = np.abs(np.subtract.outer(np.arange(7.0), np.arange(7.0)))
    b = np.stack([1 / (1 + distance) + (1 + i) * np.eye(7) for i in range(6)])
    x = (np.linalg.inv(b) + 0.01 * np.cos(np.arange(49.0)).reshape(7, 7)).astype(dtype)
    corrected, sizes = _call_correct(kernels, b, x)
    wide = x.astype(np.float64)
    defect = b @ wide - np.eye(7)
    product = wide @ defect
    step = wide - product
    norms = [np.linalg.norm(part, axis=(1, 2)) for part in (b, wide, defect, product, step)]
    close = np.allclose(corrected, (step + step.swapaxes(1, 2)) / 2, rtol=0, atol=1e-14)
    return close and bool(np.allclose(sizes, norms, rtol=1e-12))


def _points(dtype: np.dtype[Any]) -> _Array:
    """Two sets of five in three dimensions, about as far apart as they are from zero."""
    points: _Array = np.cos(np.arange(30.0) ** 2).reshape(2, 5, 3).astype(dtype)
    return points


def _kernels_are_right(kernels: ctypes.CDLL, dtype: np.dtype[Any]) -> bool:
    points = _points(dtype)
    wide = points.astype(np.float64)
    exponents = -((0.7 * (wide[:, :, None, :] - wide[:, None, :, :])) ** 2).sum(-1) / 2
    lowest = float(np.median(exponents))  # some are cut off
    found = _call_kernel(kernels, points, 0.7, 1e3, lowest)
    is_clear = np.abs(exponents - lowest) > 1e-9
    if found is None or not np.allclose(found[is_clear], np.where(exponents > lowest, np.exp(exponents), 0)[is_clear], rtol=1e-13, atol=0):
        return False
    return _call_kernel(kernels, points, 0.7, 1e-3, lowest) is None


def _factors_are_right(kernels: ctypes.CDLL, dtype: np.dtype[Any]) -> bool:
    points, scale, unit = _points(dtype), 0.7, 1.4
    center = points.mean(axis=1, keepdims=True, dtype=np.float64)
    w = points - center
    squares = ((scale * w) ** 2).sum(-1, keepdims=True)
    precision = np.full_like(squares, scale**2)
    rows = np.concatenate([w * scale**2, precision, -squares / 2], axis=-1)
    columns = unit * np.concatenate([w * scale**2, -precision / 2, -squares / 2], axis=-1)
    pairs = zip(_call_factors(kernels, points, scale, unit), (center, w, squares, rows, columns), strict=True)
    return all(np.allclose(ours, theirs, rtol=0, atol=20 * np.finfo(dtype).eps) for ours, theirs in pairs)


def _landmarks_are_right(kernels: ctypes.CDLL, dtype: np.dtype[Any]) -> bool:
    points, scale, ridge = _points(dtype), 0.7, 0.1
    near, far = (scale, ridge, 1.4, (1e3, 1e3), -300.0), (scale, ridge, 1.4, (1e3, 1e-3), -300.0)
    certainty, beyond = Certainty(1e-14, 0.0, 1e-6), Certainty(1e-14, 0.0, 1e-16)
    found = _call_landmarks(kernels, points, *near, certainty)
    kernel = _call_kernel(kernels, points, scale, 1e3, -300.0)
    refused = _call_landmarks(kernels, points, *far, certainty), _call_landmarks(kernels, points, *near, beyond)
    if found is None or kernel is None or refused != (None, None):
        return False
    inverse, evidence = _call_invert(kernels, kernel, np.full(len(points), ridge))
    center, w, _, rows, columns = _call_factors(kernels, points, scale, 1.4)
    expected = (kernel, inverse, evidence, center, w, rows, columns)
    return all(np.allclose(ours, theirs, rtol=1e-13, atol=0) for ours, theirs in zip(found, expected, strict=True))


def _gradients_are_right(kernels: ctypes.CDLL, dtype: np.dtype[Any]) -> bool:
    points, scale = _points(dtype), 0.7
    wide, grad = points.astype(np.float64), np.cos(np.arange(50.0)).reshape(2, 5, 5)
    apart = wide[:, :, None, :] - wide[:, None, :, :]
    w = np.exp(-((scale * apart) ** 2).sum(-1) / 2)
    x = np.linalg.inv(w + 0.1 * np.eye(5))
    x = (x + x.swapaxes(-1, -2)) / 2
    slope = -x @ (grad + grad.swapaxes(-1, -2)) / 2 @ x
    expected = -(scale**2) * ((slope + slope.swapaxes(-1, -2)) * w)[..., None] * apart
    return bool(np.allclose(_call_inverse_vjp(kernels, x, grad, w, points, scale), expected.sum(2), rtol=0, atol=1e-11))


def _nearest_are_right(kernels: ctypes.CDLL, dtype: np.dtype[Any]) -> bool:
    products = np.cos(np.arange(11.0 * 21) ** 2).reshape(11, 21).astype(dtype)
    products[:, 7] = products.max(1)  # ties: exact, and within the slack
    half, of_half, of_row = (scale * (1 + np.arange(n) % 3).astype(dtype) for scale, n in ((0.25, 21), (1e-3, 21), (1e-2, 11)))
    scores = half - products
    tied = scores - of_half <= (scores.min(1) + of_row)[:, None]
    labels, best = _call_nearest(kernels, products, half, of_half, of_row)
    return np.array_equal(labels, tied.argmax(1)) and np.array_equal(best, scores.min(1))
