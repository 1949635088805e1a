"""Symmetric operators for SciPy: the approximation, its preconditioner and the exact kernel matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from softlinalg import _arrays, _inputs
from softlinalg._kernels import kernel_matmul
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
    r"""The exact k(x, x) + ridge I as a SciPy operator that never forms the kernel matrix.

    Parameters
    ----------
    kernel : Kernel
        With a length scale that is settled, such as that of a decomposition (`d.kernel`).
    x : array, shape (n, d)
        Points, real floating, of any array library. Products are handed to SciPy on the host.
    ridge : float, default 0
        Multiple of the identity added.
    chunk_size : int, optional
        Rows of the kernel matrix formed at a time. Default: as many as fit the processor's caches well.

    Returns
    -------
    scipy.sparse.linalg.LinearOperator, shape (n, n)
        Symmetric; dtype float32 or float64 as `x`.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError

    Notes
    -----
    O(n^2 d) time per product, O(n chunk_size) memory. With ``nystrom(x, kernel, ...).preconditioner(ridge)`` as `M`,
    `scipy.sparse.linalg.cg` needs few of them; `solve_kernel_ridge` does that with a certified result.

    Examples
    --------
    >>> import numpy as np, softlinalg
    >>> from scipy.sparse.linalg import cg
    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> y = np.sin(x[:, 0])
    >>> d = softlinalg.nystrom(x, softlinalg.Gaussian(1.0), rank=50, rng=0)
    >>> exact = softlinalg.kernel_operator(d.kernel, x, 0.01)
    >>> steps = []
    >>> weights, flag = cg(exact, y, M=d.preconditioner(0.01), rtol=1e-8, callback=steps.append)
    >>> flag, len(steps) < 10
    (0, True)
    """
    func = "kernel_operator"
    xp, (x,), _ = _inputs.prepare(func, {"x": x}, whole=False)
    _inputs.check_rows(x, func=func)
    x = _arrays.detach(x)
    _inputs.check_finite(x, func=func, name="x", xp=xp)
    ridge = _inputs.real_scalar(ridge, func=func, name="ridge", strict=False)
    points = xp.astype(x, _arrays.compute_dtype(x.dtype, xp=xp), copy=False)

    def apply(v: Array) -> Array:
        v = xp.astype(v, points.dtype, copy=False)
        return kernel_matmul(kernel, points, points, v, chunk_size=chunk_size) + ridge * v

    return linear_operator(int(x.shape[0]), apply, points, xp=xp)
