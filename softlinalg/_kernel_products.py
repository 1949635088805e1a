"""Products with kernel matrices that are never formed: a block of rows at a time.

A kernel is known here by `__call__(x, y)` alone. The kernels of this package offer `_prepared(y)` besides: what depends on
`y` is then computed once, and blocks are written into one buffer that stays in the cache of a core.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from softlinalg import _arrays, _inputs
from softlinalg._kernel_distances import check_points
from softlinalg._settings import whole_number
from softlinalg._typing import Array, DType, Namespace
from softlinalg.errors import DTypeError, NonFiniteError, ParameterError, ShapeError

__all__ = ["default_chunk_size", "iter_kernel_blocks", "kernel_matmul", "kernel_matmul_adjoint"]

_CACHE_BYTES = 2**19
"""A block of k(x, y) of this size stays in the second-level cache of a core, with room for the operands of the next product."""

_PANEL = 64
"""Columns of a panel of a triangular factor: narrower ones save more work, and do it more slowly."""

_DEVICE_BYTES = 2**26
"""Blocks for devices, and for libraries that cannot write into a buffer: large enough to hide what a call costs."""


def default_chunk_size(m: int, itemsize: int) -> int:
    """Rows of a block with m columns that fits into the cache of a core: 512 KiB, but at least 32 rows.

    Parameters
    ----------
    m : int
        Columns.
    itemsize : int
        Bytes per entry.
    """
    return max(32, _CACHE_BYTES // max(1, m * itemsize))


def rows_per_block(chunk_size: int | None, like: Array, m: int, *, func: str) -> int:
    """The chunk size asked for, checked, or the default for the library and device of `like`."""
    if chunk_size is not None:
        return whole_number(chunk_size, func=func, name="chunk_size", minimum=1, remedy="Pass the number of rows per block, or None.")
    itemsize = 4 if _arrays.eps(like.dtype) > 2.0**-50 else 8
    if _arrays.may_reuse_buffers(like) and _arrays.is_cpu(like):
        return default_chunk_size(m, itemsize)
    return max(32, _DEVICE_BYTES // max(1, m * itemsize))


def iter_kernel_blocks(
    kernel: Any, x: Array, y: Array, *, chunk_size: int | None = None, xp: Namespace, func: str = "iter_kernel_blocks"
) -> Iterator[tuple[int, int, Array]]:
    """Blocks of rows of k(x, y), one after the other.

    Parameters
    ----------
    kernel : Kernel
    x : array, shape (..., n, d)
        Read one block of rows at a time: a memory map larger than memory will do.
    y : array, shape (..., m, d)
    chunk_size : int, optional
        Rows per block. Default: 512 KiB of kernel values, which stay in the cache (NumPy, PyTorch on the CPU), 64 MiB elsewhere.
    xp : array namespace
    func : str
        Name of the public function, for messages.

    Yields
    ------
    start, stop : int
        The rows.
    block : array, shape (..., stop - start, m)
        k(x[..., start:stop, :], y), in the type computed in (float32 for the half precisions). The next step may overwrite it:
        use it at once and do not keep it.

    Raises
    ------
    ParameterError
        chunk_size below 1.
    NonFiniteError
        NaN or infinity in `x`, when their block is reached, or in `y`.
    """
    xp, (sample, y), dtype = _inputs.prepare(func, {"x": _no_rows(x), "y": y})
    n, m = x.shape[-2], y.shape[-2]
    step = rows_per_block(chunk_size, y, m, func=func)
    prepared = kernel._prepared(y, dtype, func=func, xp=xp) if hasattr(kernel, "_prepared") else None
    buffer = None
    if prepared is not None and x.ndim == 2 and y.ndim == 2 and _arrays.may_reuse_buffers(sample, y):
        buffer = _arrays.empty_like_shape((min(step, n), m), y, xp=xp, dtype=_arrays.compute_dtype(dtype, xp=xp))
        prepared.reserve(min(step, n))
    for start in range(0, n, step):
        stop = min(n, start + step)
        rows = x[..., start:stop, :]
        try:
            if buffer is not None and prepared is not None:
                block = buffer[: stop - start]
                prepared.write(rows, block)
            else:
                rows = xp.astype(_inputs.prepare(func, {"x": rows}).arrays[0], dtype, copy=False)
                block = (
                    prepared.values(rows) if prepared is not None else _inputs.returned(kernel(rows, y), y, func=func, what="kernel(x, y)")
                )
        except NonFiniteError:
            _inputs.check_finite(
                _inputs.prepare(func, {"x": x}, whole=False).arrays[0], func=func, name="x", xp=xp
            )  # names the row in all of x
            raise
        yield start, stop, block


def _is_array(x: Array) -> bool:
    """An array, as against a list or a data frame."""
    return hasattr(x, "dtype") and hasattr(x, "ndim")


def _goes_by_numpy(kernel: Any, *arrays: Array) -> bool:
    """A kernel of ours, and arrays of one type whose library compiles each shape? Kernels of others want the arrays of that library."""
    return hasattr(kernel, "_prepared") and _arrays.compiles_each_shape(*arrays) and len({str(x.dtype) for x in arrays}) == 1


def _no_rows(x: Array) -> Array:
    """The type of `x` without its rows, so that checking it reads nothing; what is no array of points is left to the checks."""
    return x[..., :0, :] if _is_array(x) and x.ndim >= 2 else x


def _factor(func: str, name: str, partner: str, factor: Array, rows: int) -> None:
    """Raise ShapeError unless the second factor of a product has `rows` rows."""
    if factor.ndim < 1 or factor.shape[-2 if factor.ndim > 1 else 0] != rows:
        got = tuple(factor.shape)
        message = f"{func}: {name} must have one row per row of {partner} ({rows}); got shape {got}. Pass shape ({rows}, k) or ({rows},)."
        raise ShapeError(message)


def kernel_matmul(kernel: Any, x: Array, y: Array, v: Array, *, chunk_size: int | None = None, out: Array | None = None) -> Array:
    """The product k(x, y) @ v without k(x, y): a block of rows at a time.

    Parameters
    ----------
    kernel : Kernel
        Anything with `__call__(x, y)`.
    x : array, shape (n, d)
        Points. A memory map is read block by block, never as a whole.
    y : array, shape (m, d)
        Points, such as landmarks.
    v : array, shape (m, k) or (m,)
    chunk_size : int, optional
        Rows per block. Default: as many as keep the block in the cache.
    out : array, shape (n, k) or (n,), optional
        Memory for the result, in NumPy, CuPy and PyTorch outside autograd; not shared with an input. Its content is undefined
        after an error.

    Returns
    -------
    array, shape (n, k) or (n,)
        dtype, library and device of the input.

    Raises
    ------
    ShapeError, DTypeError, BackendMismatchError, NonFiniteError, ParameterError

    Notes
    -----
    O(n m (d + k)) time. Memory besides the result: one block of chunk_size x m kernel values (a few for the Matern and Laplacian
    kernels), chunk_size x (d + 2) and m x (d + 2) coordinates; libraries without buffers (JAX, PyTorch under autograd) join the
    blocks of the result at the end, which takes its size once more. Panels of zeros in `v` are skipped on the CPU: a triangular
    `v` takes 5/8 of the second product at k = m = 256. The feature map of a Nystrom approximation is this product, with the
    landmarks as `y` and the inverse root of their kernel matrix as `v`.
    """
    func = "kernel_matmul"
    xp, (sample, y, v), dtype = _inputs.prepare(func, {"x": _no_rows(x), "y": y, "v": v})
    x = x if _is_array(x) else sample
    check_points(sample, y, func=func)
    if out is None and _goes_by_numpy(kernel, x, y, v):
        host = kernel_matmul(kernel, *map(_arrays.to_numpy, (x, y, v)), chunk_size=chunk_size)
        return _arrays.from_numpy(host, v, xp=xp, dtype=dtype)
    _inputs.check_finite(y, func=func, name="y", xp=xp)
    _factor(func, "v", "y", v, y.shape[-2])
    _inputs.check_finite(v, func=func, name="v", xp=xp)
    column = v.ndim == 1
    compute = _arrays.compute_dtype(dtype, xp=xp)
    factor = xp.astype(v[:, None] if column else v, compute, copy=False)
    blocks = iter_kernel_blocks(kernel, x, xp.astype(y, dtype, copy=False), chunk_size=chunk_size, xp=xp, func=func)
    shape = (*x.shape[:-2], x.shape[-2], factor.shape[-1])
    in_place = x.ndim == 2 and y.ndim == 2 and factor.ndim == 2 and _arrays.may_reuse_buffers(sample, y, v)
    if out is not None:
        result = _checked_out(out, shape, dtype, column, v if in_place else None, func=func)
    elif in_place:
        result = _arrays.empty_like_shape(shape, v, xp=xp, dtype=dtype)
    else:
        parts = [xp.astype(xp.astype(block, compute, copy=False) @ factor, dtype, copy=False) for _, _, block in blocks]
        result = xp.concat(parts, axis=-2) if parts else _arrays.zeros_like_shape(shape, v, xp=xp, dtype=dtype)
        return result[..., 0] if column else result
    spans = _column_spans(factor, xp=xp)
    for start, stop, block in blocks:
        for columns, rows in spans:
            _product_into(block[:, rows], factor[rows, columns], result[start:stop, columns], xp=xp)
    return result[:, 0] if column else result


def _column_spans(factor: Array, *, xp: Namespace) -> list[tuple[slice, slice]]:
    """Panels of columns of a factor and the rows in which each is not zero: half the work of a triangular factor is skipped.

    One panel with all rows where less than a tenth would be saved, and on devices, where one large product is quicker.
    """
    m, k = factor.shape
    whole = [(slice(0, k), slice(0, m))]
    if not _arrays.is_cpu(factor) or k < 2 * _PANEL:
        return whole
    spans, work = [], 0
    for start in range(0, k, _PANEL):
        columns = slice(start, min(k, start + _PANEL))
        (used,) = xp.nonzero(xp.any(factor[:, columns] != 0, axis=1))
        rows = slice(int(used[0]), int(used[-1]) + 1) if used.shape[0] else slice(0, 1)
        spans.append((columns, rows))
        work += (columns.stop - columns.start) * (rows.stop - rows.start)
    return spans if work < 0.9 * m * k else whole


def _checked_out(out: Array, shape: tuple[int, ...], dtype: DType, column: bool, like: Array | None, *, func: str) -> Array:
    """`out` as a matrix, or the reason why it cannot take the result; `like` is None where the product must make new arrays."""
    if like is None:
        message = (
            f"{func}: out must be None for batches and for arrays that are traced, differentiated or immutable; got one. Leave it out."
        )
        raise ParameterError(message)
    writable = type(out) is type(like) and _arrays.may_reuse_buffers(out) and getattr(getattr(out, "flags", None), "writeable", True)
    if not writable or out.dtype != dtype:
        need = f"be writable memory of the library and dtype of the result ({_arrays.dtype_name(dtype)})"
        message = f"{func}: out must {need}; got {type(out).__name__} of {_arrays.dtype_name(getattr(out, 'dtype', None))}. Leave it out."
        raise DTypeError(message)
    wanted = shape[:-1] if column else shape
    if tuple(out.shape) != wanted:
        message = f"{func}: out must have shape {wanted}; got {tuple(out.shape)}. Allocate it anew, or leave it out."
        raise ShapeError(message)
    return out[:, None] if column else out


def _product_into(block: Array, factor: Array, target: Array, *, xp: Namespace) -> None:
    """block @ factor into `target`, without a temporary where the types agree."""
    if block.dtype == factor.dtype == target.dtype:
        xp.matmul(block, factor, out=target)
    else:
        target[...] = xp.astype(block, factor.dtype, copy=False) @ factor


def kernel_matmul_adjoint(kernel: Any, x: Array, y: Array, u: Array, *, chunk_size: int | None = None) -> Array:
    """The product k(x, y)^T @ u without k(x, y): blocks of rows, summed in float64 where the device has it.

    Parameters
    ----------
    kernel : Kernel
        Anything with `__call__(x, y)`.
    x : array, shape (n, d)
        Points. A memory map is read block by block, never as a whole.
    y : array, shape (m, d)
    u : array, shape (n, k) or (n,)
    chunk_size : int, optional
        Rows per block. Default: as many as keep the block in the cache.

    Returns
    -------
    array, shape (m, k) or (m,)
        dtype, library and device of the input.

    Raises
    ------
    ShapeError, DTypeError, BackendMismatchError, NonFiniteError, ParameterError

    Notes
    -----
    O(n m (d + k)) time; one block of chunk_size x m and two m x k arrays besides the input. In float32 the error of a product is that
    of one block, chunk_size u, whatever n is.
    """
    func = "kernel_matmul_adjoint"
    xp, (sample, y, u), dtype = _inputs.prepare(func, {"x": _no_rows(x), "y": y, "u": u})
    x = x if _is_array(x) else sample
    check_points(sample, y, func=func)
    if _goes_by_numpy(kernel, x, y, u):
        host = kernel_matmul_adjoint(kernel, *map(_arrays.to_numpy, (x, y, u)), chunk_size=chunk_size)
        return _arrays.from_numpy(host, u, xp=xp, dtype=dtype)
    _inputs.check_finite(y, func=func, name="y", xp=xp)
    _factor(func, "u", "x", u, x.shape[-2])
    _inputs.check_finite(u, func=func, name="u", xp=xp)
    column = u.ndim == 1
    factor = u[:, None] if column else u
    compute, wide = _arrays.compute_dtype(dtype, xp=xp), _arrays.wide_dtype(u, xp=xp)
    total = _arrays.zeros_like_shape((*factor.shape[:-2], y.shape[-2], factor.shape[-1]), u, xp=xp, dtype=wide)
    for start, stop, block in iter_kernel_blocks(kernel, x, xp.astype(y, dtype, copy=False), chunk_size=chunk_size, xp=xp, func=func):
        rows = xp.astype(factor[..., start:stop, :], compute, copy=False)
        total = total + xp.astype(xp.matrix_transpose(xp.astype(block, compute, copy=False)) @ rows, wide, copy=False)
    result = xp.astype(total, dtype, copy=False)
    return result[..., 0] if column else result
