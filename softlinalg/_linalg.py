"""The linear algebra that the array API standard leaves out.

Norms that neither overflow nor underflow, exact powers of two, Cholesky that reports failure, triangular solves, and inverses of
positive definite matrices.
"""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import array_api_compat as compat
import numpy as np

from softlinalg import _arrays, _native
from softlinalg._typing import Array, Namespace

__all__ = [
    "adjoint",
    "binary_exponent",
    "cholesky",
    "column_squares",
    "frobenius",
    "is_exactly_hermitian",
    "largest_entry",
    "largest_row_sum",
    "minus_identity",
    "pivot_order",
    "power_of_two_scale",
    "real_trace",
    "scale_by_power_of_two",
    "spd_inverse",
    "triangular_solve",
    "with_diagonal",
]


def frobenius(a: Array, *, xp: Namespace) -> Array:
    """Frobenius norm over the last two axes, shape (...), in one pass without temporaries where the library can."""
    if compat.is_torch_array(a):
        return sys.modules["torch"].linalg.vector_norm(a, dim=(-2, -1))
    flat = xp.reshape(a, (*a.shape[:-2], a.shape[-2] * a.shape[-1]))
    squares = xp.vecdot(flat, flat)
    return xp.sqrt(xp.real(squares) if _arrays.is_complex(a.dtype) else squares)


def column_squares(a: Array, *, xp: Namespace) -> Array:
    """Sums of squares of the columns, shape (..., n); of real arrays on the host without a second array."""
    if _arrays.is_complex(a.dtype):
        return xp.sum(xp.abs(a) ** 2, axis=-2)
    if _arrays.may_reuse_buffers(a) and _arrays.is_cpu(a):
        host, _ = _arrays.host_view(a, xp=xp)
        return _arrays.from_numpy(np.einsum("...ij,...ij->...j", host, host), a, xp=xp)
    return xp.sum(a * a, axis=-2)


def real_trace(a: Array, *, xp: Namespace) -> Array:
    """Real part of the trace over the last two axes, shape (...)."""
    trace = xp.linalg.trace(a)
    return xp.real(trace) if _arrays.is_complex(a.dtype) else trace


def largest_entry(a: Array, *, xp: Namespace) -> Array:
    """Largest absolute value over the last two axes, shape (...); of both parts for complex, where |z| could overflow."""
    if a.shape[-1] == 0 or a.shape[-2] == 0:
        return _arrays.zeros_like_shape(tuple(a.shape[:-2]), a, xp=xp, dtype=_arrays.real_dtype(a.dtype, xp=xp))
    if _arrays.is_complex(a.dtype):
        return xp.maximum(xp.max(xp.abs(xp.real(a)), axis=(-2, -1)), xp.max(xp.abs(xp.imag(a)), axis=(-2, -1)))
    return xp.max(xp.abs(a), axis=(-2, -1))


def largest_row_sum(a: Array, *, xp: Namespace) -> Array:
    """The largest sum of absolute values along a row, shape (...), which bounds the spectral norm of a Hermitian matrix."""
    if not isinstance(a, np.ndarray) or a.shape[-1] * a.shape[-2] < _LARGE:
        return xp.max(xp.sum(xp.abs(a), axis=-1), axis=-1)
    # A few rows at a time: absolute values of the whole would be a second matrix, written once and read once.
    step = max(1, _LARGE // (4 * a.shape[-1]))
    starts = range(0, a.shape[-2], step)
    return np.max([np.max(np.sum(np.abs(a[..., i : i + step, :]), axis=-1), axis=-1) for i in starts], axis=0)


_LARGE = 2**16
"""Entries of a matrix that leave the second cache."""


def binary_exponent(value: Array, *, xp: Namespace) -> Array:
    """Whole number e (as a float) with value in [2**e, 2**(e+1)); zero where `value` is zero or not finite.

    Exact in NumPy; elsewhere one off at most next to a power of two, which keeps every scaling exact all the same.
    """
    usable = xp.isfinite(value) & (value > 0)
    if isinstance(value, _arrays._NUMPY):
        return np.asarray(np.where(usable, np.frexp(value)[1] - 1, 0).astype(value.dtype))
    # Subnormals are brought into the normal range first: the logarithm of some devices flushes them to zero.
    small = value < _arrays.tiny(value.dtype) * 2.0**64
    lifted = value * xp.where(small, xp.full_like(value, 2.0**64), xp.ones_like(value))
    exponent = xp.floor(xp.log2(xp.where(usable, lifted, xp.ones_like(value))))
    exponent = xp.where(small, exponent - 64, exponent)
    return xp.where(usable, exponent, xp.zeros_like(exponent))


def power_of_two_scale(a: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Scale each matrix by an exact power of two so that its largest entry lies in [1, 2).

    Matrices with a unit diagonal, the common case, stay as they are.

    Parameters
    ----------
    a : array, shape (..., m, n)

    Returns
    -------
    scaled : array, shape (..., m, n)
        a * 2**-exponent, exact unless entries below 2**-1021 times the largest one vanish.
    exponent : array, shape (...), real
        Whole numbers; zero for a zero (or empty or non-finite) matrix. Undo an inverse with `scale_by_power_of_two`.
    """
    exponent = binary_exponent(largest_entry(a, xp=xp), xp=xp)
    return scale_by_power_of_two(a, -exponent, xp=xp), exponent


def scale_by_power_of_two(a: Array, exponent: Array, *, xp: Namespace) -> Array:
    """A * 2**exponent per matrix, in two factors so that neither overflows while the product is in range.

    Parameters
    ----------
    a : array, shape (..., m, n)
    exponent : array, shape (...)
        Whole numbers as floats.
    """
    real = _arrays.real_dtype(a.dtype, xp=xp)
    if not _arrays.is_traced(a, exponent):
        largest = float(np.max(np.abs(_arrays.to_numpy(exponent)), initial=0.0))
        if largest == 0:
            return a
        if largest < (500 if _arrays.eps(real) < 1e-10 else 60):  # one factor cannot overflow, and saves a pass over `a`
            return a * xp.astype(_exact_power_of_two(exponent, xp=xp), real)[..., None, None]
    half = xp.floor(exponent / 2)
    first = xp.astype(_exact_power_of_two(half, xp=xp), real)[..., None, None]
    second = xp.astype(_exact_power_of_two(exponent - half, xp=xp), real)[..., None, None]
    return (a * first) * second


def _exact_power_of_two(n: Array, *, xp: Namespace) -> Array:
    """2**n for whole |n| < 1024 (128 in float32), exactly: vectorised pow is off by a rounding error in some libraries."""
    if isinstance(n, _arrays._NUMPY):
        return np.ldexp(np.ones_like(n), np.asarray(n, dtype=np.int32))
    remaining = xp.abs(n)
    power = xp.ones_like(n)
    for bit in range(10 if _arrays.eps(n.dtype) < 1e-10 else 7):
        half = xp.floor(remaining / 2)
        power = xp.where(remaining - 2 * half > 0, power * 2.0 ** (2**bit), power)
        remaining = half
    return xp.where(n < 0, 1 / power, power)


def _numpy_cholesky(a: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Batched Cholesky that fails per matrix; the whole batch at once where nothing fails."""
    try:
        return np.linalg.cholesky(a), np.ones(a.shape[:-2], dtype=bool)
    except np.linalg.LinAlgError:
        pass
    factor = np.full(a.shape, np.nan, dtype=a.dtype)
    ok = np.zeros(a.shape[:-2], dtype=bool)
    for index in np.ndindex(*a.shape[:-2]):  # only here, where at least one matrix is not positive definite
        try:
            factor[index] = np.linalg.cholesky(a[index])
            ok[index] = True
        except np.linalg.LinAlgError:
            continue
    return factor, ok


def cholesky(a: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Lower Cholesky factor and, per matrix, whether it exists.

    Parameters
    ----------
    a : array, shape (..., m, m)
        Hermitian; only one triangle is read.

    Returns
    -------
    factor : array, shape (..., m, m)
        NaN where the matrix is not numerically positive definite.
    ok : boolean array, shape (...)
    """
    if compat.is_numpy_array(a):
        return _numpy_cholesky(a)
    if compat.is_torch_array(a):
        torch = sys.modules["torch"]
        factor, status = torch.linalg.cholesky_ex(a)
        ok = status == 0
        return torch.where(ok[..., None, None], factor, torch.full_like(factor, math.nan)), ok
    if compat.is_jax_array(a) or compat.is_cupy_array(a):  # these return NaN instead of raising
        factor = xp.linalg.cholesky(a)
        ok = xp.all(xp.isfinite(factor), axis=(-2, -1))
        return xp.where(ok[..., None, None], factor, xp.full_like(factor, math.nan)), ok
    host, ok_host = _numpy_cholesky(_arrays.to_numpy(a))
    return _arrays.from_numpy(host, a, xp=xp), _arrays.from_numpy(ok_host, a, xp=xp)


def triangular_solve(factor: Array, b: Array, *, xp: Namespace, adjoint: bool = False) -> Array:
    """Solve L Y = B, or L^H Y = B, for a lower triangular L.

    Parameters
    ----------
    factor : array, shape (..., m, m)
    b : array, shape (..., m, k)
    adjoint : bool
        Solve with the conjugate transpose instead.
    """
    if compat.is_torch_array(factor):
        torch = sys.modules["torch"]
        left = factor.mH if adjoint else factor
        return torch.linalg.solve_triangular(left, b, upper=adjoint)
    if compat.is_jax_array(factor):
        jax = sys.modules["jax"]
        batch = np.broadcast_shapes(factor.shape[:-2], b.shape[:-2])
        left = xp.broadcast_to(factor, (*batch, *factor.shape[-2:]))
        right = xp.broadcast_to(b, (*batch, *b.shape[-2:]))
        return jax.lax.linalg.triangular_solve(left, right, left_side=True, lower=True, transpose_a=adjoint, conjugate_a=adjoint)
    if compat.is_cupy_array(factor):
        cupyx_linalg = __import__("cupyx.scipy.linalg", fromlist=["solve_triangular"])
        return cupyx_linalg.solve_triangular(factor, b, lower=True, trans="C" if adjoint else "N")
    if math.prod(b.shape) == 0:  # SciPy takes no empty batches
        return xp.broadcast_to(b, (*np.broadcast_shapes(factor.shape[:-2], b.shape[:-2]), *b.shape[-2:]))
    from scipy.linalg import solve_triangular  # imported late: `import softlinalg` stays quick

    solved = solve_triangular(_arrays.to_numpy(factor), _arrays.to_numpy(b), lower=True, trans="C" if adjoint else "N", check_finite=False)
    return solved if compat.is_numpy_array(factor) else _arrays.from_numpy(solved, factor, xp=xp)


def spd_inverse(a: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Inverse of Hermitian positive definite matrices by Cholesky; NaN, and False, where there is no factor.

    Parameters
    ----------
    a : array, shape (..., m, m)

    Returns
    -------
    inverse : array, shape (..., m, m)
        Exactly Hermitian.
    ok : boolean array, shape (...)
    """
    if compat.is_numpy_array(a):
        return _host_spd_inverse(a)
    if (
        compat.is_torch_array(a)
        and _arrays.is_cpu(a)
        and _arrays.may_reuse_buffers(a)
        and not _arrays.is_traced(a)
        and a.shape[-1] <= _SMALL
    ):
        # Twice as fast as torch.cholesky_inverse on small matrices, by LAPACK too.
        with _arrays.one_blas_thread():
            inverse, ok = _host_spd_inverse(a.numpy())
        return xp.asarray(inverse), xp.asarray(ok)
    factor, ok = cholesky(a, xp=xp)
    eye = _arrays.eye_like(a, xp=xp)
    safe = xp.where(ok[..., None, None], factor, eye)
    if compat.is_torch_array(a):
        inverse = sys.modules["torch"].cholesky_inverse(safe)
    else:
        inverse_factor = triangular_solve(safe, xp.broadcast_to(eye, a.shape), xp=xp)
        inverse = adjoint(inverse_factor, xp=xp) @ inverse_factor
    inverse = (inverse + adjoint(inverse, xp=xp)) / 2
    return xp.where(ok[..., None, None], inverse, xp.full_like(inverse, math.nan)), ok


_SMALL = 512
"""Size up to which one thread inverts a matrix as quickly as several."""


def _host_spd_inverse(a: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """By compiled code where it serves, else by LAPACK."""
    flat = a.reshape((math.prod(a.shape[:-2]), *a.shape[-2:]))
    found = _native.invert(flat, np.zeros(flat.shape[0]))
    if found is None:
        return _lapack_spd_inverse(np.array(a, order="C"))
    inverse, (_, trace, *_) = found
    ok = np.isfinite(trace)
    inverse[~ok] = np.nan
    return inverse.reshape(a.shape), ok.reshape(a.shape[:-2])


@functools.lru_cache(maxsize=8)
def _cholesky_routines(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """LAPACK's potrf and potri."""
    from scipy.linalg import get_lapack_funcs  # imported late: `import softlinalg` stays quick

    potrf, potri = get_lapack_funcs(("potrf", "potri"), dtype=dtype)
    return potrf, potri


def _lapack_spd_inverse(work: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """LAPACK's potrf and potri for each matrix, in the memory of `work` (C order, ours).

    NumPy has no batched form of the second, and a general inverse costs four times as much. The transposed view of a
    matrix is in Fortran order, so its upper triangle there is the lower one here; conj(B)^-1 transposed is B^-1.
    """
    potrf, potri = _cholesky_routines(work.dtype)
    ok = np.zeros(work.shape[:-2], dtype=bool)
    for index in np.ndindex(*work.shape[:-2]):
        view = work[index].T
        _, status = potrf(view, lower=0, overwrite_a=1, clean=0)
        if status == 0:
            _, status = potri(view, lower=0, overwrite_c=1)
        ok[index] = status == 0
        if status == 0:
            _mirror_lower(work[index])
        else:
            work[index] = np.nan
    return work, ok


def _mirror_lower(a: np.ndarray[Any, Any]) -> None:
    """Make `a` Hermitian from its lower triangle, in place, a few columns at a time: those of the whole would leave the cache."""
    m = a.shape[0]
    for i in range(0, m, _STRIP):
        stop = min(m, i + _STRIP)
        corner = a[i:stop, i:stop]
        np.copyto(corner, corner.conj().T, where=~np.tri(stop - i, dtype=bool))
        np.conjugate(a[stop:, i:stop].T, out=a[i:stop, stop:])


def pivot_order(a: Array) -> np.ndarray[Any, Any]:
    """Row numbers of a symmetric positive semi-definite matrix in the order of greedy pivots, each the largest that is left.

    On the host, by LAPACK's pstrf.
    """
    from scipy.linalg import get_lapack_funcs  # imported late: `import softlinalg` stays quick

    host = _arrays.to_numpy(a)
    (pstrf,) = get_lapack_funcs(("pstrf",), (host,))
    return np.asarray(pstrf(host, lower=1)[1], dtype=np.int64) - 1


def is_exactly_hermitian(a: Array, *, xp: Namespace) -> bool:
    """Whether every matrix equals its conjugate transpose bit for bit."""
    m = a.shape[-1]
    if m * m >= _LARGE and _arrays.may_reuse_buffers(a):
        # A few rows at a time: columns of the whole would be read through the cache once for each row.
        parts = ((a[..., i : i + _STRIP, i:], a[..., i:, i : i + _STRIP]) for i in range(0, m, _STRIP))
        return all(_equal(rows, adjoint(columns, xp=xp), xp=xp) for rows, columns in parts)
    return _equal(a, adjoint(a, xp=xp), xp=xp)


_STRIP = 64


def _equal(a: Array, b: Array, *, xp: Namespace) -> bool:
    if compat.is_torch_array(a) and not _arrays.is_complex(a.dtype):
        return bool(sys.modules["torch"].equal(a, b))
    return bool(xp.all(a == b))


def minus_identity(a: Array, *, xp: Namespace) -> Array:
    """`a` - I over the last two axes, in the memory of `a` (made by the caller) where the library allows it."""
    if isinstance(a, np.ndarray):
        index = np.arange(a.shape[-1])
        a[..., index, index] -= 1
        return a
    if compat.is_torch_array(a) and _arrays.may_reuse_buffers(a):
        sys.modules["torch"].diagonal(a, dim1=-2, dim2=-1).sub_(1)
        return a
    return a - _arrays.eye_like(a, xp=xp)


def with_diagonal(a: Array, diagonal: Array, *, xp: Namespace) -> Array:
    """A copy of `a` (..., m, m) in the data type of `diagonal` (..., m), which becomes its diagonal."""
    if isinstance(a, np.ndarray):
        copy: Array = a.astype(diagonal.dtype, order="C", copy=True)
        index = np.arange(a.shape[-1])
        copy[..., index, index] = diagonal
        return copy
    if compat.is_torch_array(a) and not _arrays.is_traced(a):
        copy = a.to(diagonal.dtype, copy=True)
        sys.modules["torch"].diagonal(copy, dim1=-2, dim2=-1).copy_(diagonal)
        return copy
    mask = _arrays.eye_like(a, xp=xp, dtype=xp.bool)
    return xp.where(mask, diagonal[..., None, :], xp.astype(a, diagonal.dtype))


def adjoint(a: Array, *, xp: Namespace) -> Array:
    """Conjugate transpose over the last two axes."""
    if compat.is_torch_array(a):
        return a.mH if _arrays.is_complex(a.dtype) else a.mT  # which also works on batches of gradients (is_grads_batched=True)
    transposed = xp.matrix_transpose(a)
    return xp.conj(transposed) if _arrays.is_complex(a.dtype) else transposed
