"""Upper bounds of the largest singular value and of the largest eigenvalue, rounding included, in O(m n)."""

from __future__ import annotations

import math

from softlinalg import _arrays, _linalg
from softlinalg._typing import Array, Namespace

__all__ = ["hermitian_upper_bound", "spectral_upper_bound"]


def spectral_upper_bound(a: Array, *, xp: Namespace) -> Array:
    r"""Upper bound of the largest singular value, rounding included.

    Parameters
    ----------
    a : array, shape (..., m, n)
        Largest entry neither so large that a row sum overflows nor subnormal.

    Returns
    -------
    array, shape (...), real
        min(sqrt(|A|_1 |A|_inf), |A|_F) times 1 + (m + n + 8) eps. For a Hermitian matrix the first is |A|_1.

    Notes
    -----
    O(m n). Sums of N non-negative numbers are off by at most a factor (1 - u)^N, u = eps / 2, in any order; the
    Frobenius norm is summed by columns first, so that it sees m + n roundings and not m n, and is left out where its
    squares underflow. For Gram matrices of kernels the bound was 1.1 to 1.9 times the largest eigenvalue. A power
    iteration gives a lower bound: never use it here.
    """
    size = xp.abs(a)  # (..., m, n)
    mixed = xp.sqrt(xp.max(xp.sum(size, axis=-2), axis=-1)) * xp.sqrt(xp.max(xp.sum(size, axis=-1), axis=-1))
    frobenius = xp.sqrt(xp.sum(xp.sum(size * size, axis=-2), axis=-1))
    # Squares of entries below sqrt(tiny) vanish; where the sum lies above tiny / eps^2 that changes nothing.
    usable = frobenius > math.sqrt(_arrays.tiny(a.dtype)) / _arrays.eps(a.dtype)
    bound = xp.where(usable, xp.minimum(mixed, frobenius), mixed)
    return bound * (1 + (a.shape[-2] + a.shape[-1] + 8) * _arrays.eps(a.dtype))


def hermitian_upper_bound(a: Array, *, xp: Namespace) -> Array:
    r"""Upper bound of the largest absolute eigenvalue of Hermitian matrices, rounding included; close where their entries are positive.

    Parameters
    ----------
    a : array, shape (..., m, m)
        Largest entry of ordinary size: its cube neither over- nor underflows.

    Returns
    -------
    array, shape (...), real
        The smaller of |A|_F, times 1 + (m^2 + 8) eps, and of max_i (|A| v)_i / v_i, v = |A| |A| 1, times 1 + (3 m + 8) eps.

    Notes
    -----
    For any v > 0 the quotient bounds the spectral radius of |A| (Collatz 1942, Wielandt 1950), which bounds that of A; the v taken is
    near the vector for which it is sharp. For Gram matrices of Gaussian kernels 1.00 to 1.06 times the largest eigenvalue.
    """
    size = xp.abs(a)
    v = size @ xp.sum(size, axis=-1, keepdims=True)
    # No entry is zero: the quotient of a row of zeros is then zero, and that of a small row no rounding error.
    v = v + _arrays.eps(a.dtype) * xp.max(v, axis=-2, keepdims=True)
    v = xp.where(v > 0, v, xp.ones_like(v))
    m, eps = a.shape[-1], _arrays.eps(a.dtype)
    quotient = xp.max((size @ v) / v, axis=(-2, -1)) * (1 + (3 * m + 8) * eps)
    frobenius = _linalg.frobenius(a, xp=xp) * (1 + (m * m + 8) * eps) + math.sqrt(_arrays.tiny(a.dtype)) * m
    return xp.minimum(quotient, frobenius)
