"""Inverses of batches of small matrices by compiled Cholesky, where there is a C++ compiler, with the evidence of their certificate.

As many matrices at once as a vector holds numbers: three times as quick as LAPACK, matrix by matrix, at 49 x 49. The compiler is
called for batches that repay its second or two; once there, the code serves for batches of any size. Each matrix has the same bits in
every batch.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from softlinalg import _compiled

__all__ = ["invert", "load"]

_log = logging.getLogger(__name__)

_LARGEST = 200
"""Rows. Beyond, the matrices of one vector leave the second cache, and LAPACK's blocks pay."""
_WORTH_COMPILING = 2.0e7
"""Sum of m^3 over a batch: some ten milliseconds."""

_Array = np.ndarray[Any, Any]


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
    evidence : array, shape (3, N)
        The fields of `_certificates.CholeskyEvidence`.
    """
    batch, m = a.shape[:2]
    if a.dtype not in (np.float32, np.float64) or not 0 < m <= _LARGEST or batch == 0:
        return None
    kernels = load() if batch * m**3 >= _WORTH_COMPILING or load.cache_info().currsize else None
    return None if kernels is None else _call(kernels, a, ridge)


def _call(kernels: ctypes.CDLL, a: _Array, ridge: _Array) -> tuple[_Array, _Array]:
    a, ridge = np.ascontiguousarray(a), np.ascontiguousarray(ridge, dtype=np.float64)
    batch, m = a.shape[:2]
    out, evidence = np.empty_like(a), np.empty((3, batch))
    scratch = np.empty(kernels.softlinalg_scratch_bytes(m), dtype=np.uint8)
    function = kernels.softlinalg_invert_float if a.dtype == np.float32 else kernels.softlinalg_invert_double
    function(*(x.ctypes.data for x in (a, ridge)), batch, m, *(x.ctypes.data for x in (out, evidence, scratch)))
    return out, evidence


@functools.cache
def load() -> ctypes.CDLL | None:
    """The code, compiled if it has not been yet; None, logged, where that cannot be."""
    if _compiled.is_turned_off():
        return None
    try:
        kernels = _compiled.library(Path(__file__).with_suffix(".cpp"), "-O3")
        _bind(kernels)
        _check(kernels)
    except _compiled.FAILURES as error:
        _log.info("compiled Cholesky is not available, LAPACK serves in its place: %s", error)
        return None
    return kernels


def _bind(kernels: ctypes.CDLL) -> None:
    kernels.softlinalg_scratch_bytes.restype, kernels.softlinalg_scratch_bytes.argtypes = ctypes.c_int64, (ctypes.c_int64,)
    for function in (kernels.softlinalg_invert_float, kernels.softlinalg_invert_double):
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        function.restype, function.argtypes = None, (pointer, pointer, number, number, pointer, pointer, pointer)


def _check(kernels: ctypes.CDLL) -> None:
    """Raise RuntimeError unless the code inverts a small example of each type."""
    a = 1 / (1 + np.abs(np.subtract.outer(np.arange(7.0), np.arange(7.0))))
    for dtype in (np.float32, np.float64):
        batch = np.stack([a + i * np.eye(7) for i in range(6)]).astype(dtype)
        ridge = np.linspace(0.0, 0.5, 6)
        inverse, evidence = _call(kernels, batch, ridge)
        expected = np.linalg.inv(batch.astype(np.float64) + ridge[:, None, None] * np.eye(7))
        right = np.allclose(inverse, expected, rtol=0, atol=100 * np.finfo(dtype).eps)
        if not right or not np.allclose(evidence[1], np.trace(expected, axis1=1, axis2=2)) or not (evidence[2] < 1e-13).all():
            message = "the compiled code gives other results"
            raise RuntimeError(message)
