"""Products with kernel matrices that are never formed: a block of rows at a time.

The kernels are known here by what they do alone: `__call__` and `diagonal`, and for those of this package a prepared form.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from softlinalg import _arrays
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError, ShapeError

__all__ = ["default_chunk_size", "iter_kernel_blocks", "kernel_matmul", "kernel_matmul_adjoint"]

_CACHE_BYTES = 2**19
"""A block of C of this size stays in the second-level cache of a core, with room for the operands of the product."""

_DEVICE_BYTES = 2**26
"""Blocks for libraries that cannot reuse a buffer, and for devices: large enough to hide the cost of a call."""


def default_chunk_size(m: int, itemsize: int) -> int:
    """Rows of a block with m columns that fits into the cache of a core: 512 KiB, at least 32 rows."""
    return max(32, _CACHE_BYTES // max(1, m * itemsize))


def _rows_per_block(chunk_size: int | None, x: Array, m: int, itemsize: int, *, func: str) -> int:
    """The chunk size asked for, checked, or the default for the library and device of `x`."""
    if chunk_size is None:
        if _arrays.may_reuse_buffers(x) and _arrays.is_cpu(x):
            return default_chunk_size(m, itemsize)
        return max(32, _DEVICE_BYTES // max(1, m * itemsize))
    if isinstance(chunk_size, bool) or not isinstance(chunk_size, int) or chunk_size < 1:
        shown = repr(chunk_size)[:40] if isinstance(chunk_size, int | float) else type(chunk_size).__name__
        message = f"{func}: chunk_size must be None or a whole number >= 1; got {shown}. Pass the number of rows per block."
        raise ParameterError(message)
    return chunk_size


def iter_kernel_blocks(
    kernel: Any, x: Array, y: Array, *, chunk_size: int | None = None, xp: Namespace
) -> Iterator[tuple[int, int, Array]]:
    """Blocks of rows of k(x, y): (start, stop, k(x[start:stop], y)).

    Parameters
    ----------
    kernel : Kernel
    x : array, shape (..., n, d)
        May be a memory map: only one block at a time is read.
    y : array, shape (..., m, d)
    chunk_size : int, optional
        Rows per block. Default: what fits into the cache (NumPy, PyTorch on CPU), 64 MiB elsewhere.
    xp : array namespace

    Yields
    ------
    (int, int, array)
        The block may be overwritten by the next step: use it at once, do not keep it.
    """
    itemsize = 4 if _arrays.eps(y.dtype) > 2.0**-50 else 8
    step = _rows_per_block(chunk_size, x, y.shape[-2], itemsize, func="iter_kernel_blocks")
    n = x.shape[-2]
    for start in range(0, n, step):
        stop = min(n, start + step)
        yield start, stop, kernel(x[..., start:stop, :], y)


def kernel_matmul(kernel: Any, x: Array, y: Array, v: Array, *, chunk_size: int | None = None, out: Array | None = None) -> Array:
    """k(x, y) @ v without forming k(x, y).

    Parameters
    ----------
    kernel : Kernel
    x : array, shape (n, d)
    y : array, shape (m, d)
    v : array, shape (m, k)
    chunk_size : int, optional
        Rows per block.
    out : array, shape (n, k), optional
        Memory for the result.

    Returns
    -------
    array, shape (n, k)
    """
    func = "kernel_matmul"
    xp, (x, y, v), dtype = _arrays.prepare(func, {"x": x, "y": y, "v": v})
    if v.shape[-2] != y.shape[-2]:
        message = f"{func}: v must have one row per row of y ({y.shape[-2]}); got shape {tuple(v.shape)}. Pass v of shape (m, k)."
        raise ShapeError(message)
    compute = _arrays.compute_dtype(dtype, xp=xp)
    v = xp.astype(v, compute, copy=False)
    parts = [xp.astype(block, compute, copy=False) @ v for _, _, block in iter_kernel_blocks(kernel, x, y, chunk_size=chunk_size, xp=xp)]
    result = xp.astype(xp.concat(parts, axis=-2), dtype, copy=False) if parts else kernel(x, y) @ v
    if out is not None:
        out[...] = result
        return out
    return result


def kernel_matmul_adjoint(kernel: Any, x: Array, y: Array, u: Array, *, chunk_size: int | None = None) -> Array:
    """k(x, y)^T @ u without forming k(x, y), summed over blocks in float64 where the device has it.

    Parameters
    ----------
    kernel : Kernel
    x : array, shape (n, d)
    y : array, shape (m, d)
    u : array, shape (n, k)
    chunk_size : int, optional
        Rows per block.

    Returns
    -------
    array, shape (m, k)
    """
    func = "kernel_matmul_adjoint"
    xp, (x, y, u), dtype = _arrays.prepare(func, {"x": x, "y": y, "u": u})
    if u.shape[-2] != x.shape[-2]:
        message = f"{func}: u must have one row per row of x ({x.shape[-2]}); got shape {tuple(u.shape)}. Pass u of shape (n, k)."
        raise ShapeError(message)
    compute = _arrays.compute_dtype(dtype, xp=xp)
    wide = _arrays.wide_dtype(u, xp=xp)
    total = _arrays.zeros_like_shape((*u.shape[:-2], y.shape[-2], u.shape[-1]), u, xp=xp, dtype=wide)
    for start, stop, block in iter_kernel_blocks(kernel, x, y, chunk_size=chunk_size, xp=xp):
        product = xp.matrix_transpose(xp.astype(block, compute, copy=False)) @ xp.astype(u[..., start:stop, :], compute, copy=False)
        total = total + xp.astype(product, wide, copy=False)
    return xp.astype(total, dtype, copy=False)
