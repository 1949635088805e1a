"""Symmetric operators for SciPy: the approximation, its preconditioner and the exact kernel matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from softlinalg import _arrays, _inputs
from softlinalg._kernels import kernel_matmul
from softlinalg._nystrom_core import check_rows
from softlinalg._typing import Array, Namespace

__all__ = ["kernel_operator", "linear_operator"]


def linear_operator(n: int, apply: Callable[[Array], Array], like: Array, *, xp: Namespace) -> Any:
    """A symmetric SciPy operator from a function of arrays in the library of `like`."""
    from scipy.sparse.linalg import LinearOperator  # imported late: `import softlinalg` stays quick

    dtype = _arrays.compute_dtype(like.dtype, xp=xp)

    def on_host(v: Any) -> Any:
        column = v.reshape(n) if v.ndim == 2 and v.shape[1] == 1 else v
        return _arrays.to_numpy(apply(_arrays.from_numpy(column, like, xp=xp))).reshape(v.shape)

    return LinearOperator(
        (n, n), matvec=on_host, rmatvec=on_host, matmat=on_host, rmatmat=on_host, dtype=_arrays.to_numpy(xp.zeros(0, dtype=dtype)).dtype
    )


def kernel_operator(kernel: Any, x: Any, ridge: float = 0.0, *, chunk_size: int | None = None) -> Any:
    """The exact k(x, x) + ridge I as a `scipy.sparse.linalg.LinearOperator` that forms blocks of the kernel matrix as it goes.

    Parameters
    ----------
    kernel : Kernel
        With a length scale that is settled, such as that of a decomposition.
    x : array, shape (n, d)
    ridge : float, default 0
    chunk_size : int, optional
        Rows per block.

    Notes
    -----
    O(n^2 d) time per product, O(n + chunk_size n) memory. With ``nystrom(...).preconditioner(ridge)`` as `M`,
    `scipy.sparse.linalg.cg` needs few of them.
    """
    func = "kernel_operator"
    xp, (x,), _ = _inputs.prepare(func, {"x": x}, whole=False)
    check_rows(x, func=func)
    x = _arrays.detach(x)
    ridge = _inputs.real_scalar(ridge, func=func, name="ridge", strict=False)
    points = xp.astype(x, _arrays.compute_dtype(x.dtype, xp=xp), copy=False)

    def apply(v: Array) -> Array:
        v = xp.astype(v, points.dtype, copy=False)
        return kernel_matmul(kernel, points, points, v, chunk_size=chunk_size) + ridge * v

    return linear_operator(int(x.shape[0]), apply, points, xp=xp)
