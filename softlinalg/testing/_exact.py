"""Pseudo-inverses in exact rational arithmetic: the truth that float64 results are measured against.

Every floating-point matrix is an integer matrix times a power of two. Products, determinants and solutions of integer systems are
exact in Python's integers, and the quotient of two integers rounds correctly, so what comes out is right to the last bit. Meant for
matrices up to about 24 x 24 (a fraction of a second each).
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

__all__ = ["exact_pinv", "exact_rank", "fraction_matrix", "rational_pinv", "round_fractions"]

Integers: TypeAlias = "np.ndarray[Any, Any]"
"""Two-dimensional NumPy array of Python integers (dtype object)."""

_BITS = 192
"""Fractional bits of the basis of a truncated row space: three times those of the result."""


def exact_pinv(a: np.ndarray[Any, Any], rank: int) -> np.ndarray[Any, Any]:
    r"""Pseudo-inverse of the nearest matrix of a given rank, correctly rounded to float64 (complex128).

    Parameters
    ----------
    a : numpy array, shape (m, n)
        Finite real or complex numbers, taken as exact.
    rank : int
        From 0 to min(m, n). Where it is the exact rank, the result is A^+ itself; otherwise the singular values after the first
        `rank` count as zero, which needs a gap there.

    Returns
    -------
    numpy array, shape (n, m)
        Infinite where a number overflows.

    Notes
    -----
    With B = `rank` independent columns and R = as many rows of A, A^+ = R^T (B^T A R^T)^-1 B^T (MacDuffee). At deficient numerical
    rank, with V spanning the leading right singular vectors, found to 192 bits by subspace iteration, it is V (A V)^+.
    O(r^2 (m + n + r)) products of integers of about 100 r bits.

    References
    ----------
    .. [1] Ben-Israel & Greville, Generalized Inverses (2003), section 1.6.
    .. [2] Bareiss, Sylvester's identity and multistep integer-preserving Gaussian elimination (1968).
    """
    m, n = a.shape
    if np.iscomplexobj(a):
        # The real form [[Re, -Im], [Im, Re]] is an algebra homomorphism that keeps adjoints, so it keeps pseudo-inverses.
        real = np.block([[a.real, -a.imag], [a.imag, a.real]])
        x = exact_pinv(real, 2 * rank)
        return np.asarray(x[:n, :m] + 1j * x[n:, :m])
    if rank == 0 or a.size == 0:
        return np.zeros((n, m))
    if m < n:
        return np.ascontiguousarray(exact_pinv(a.T, rank).T)
    integers, exponent = _integers(a)
    if rank == m == n:
        identity = np.array([[int(i == j) for j in range(n)] for i in range(n)], dtype=object)
        return _quotients(*_solve(integers, identity), -exponent)
    if rank == n:
        numerator, determinant = _solve(integers.T @ integers, integers.T)
        return _quotients(numerator, determinant, -exponent)
    rows, columns = _pivots(integers, rank)
    if len(rows) == rank:
        return _quotients(*_macduffee(integers, rows, columns), -exponent)
    basis = _leading_row_space(a, integers, rank)
    image = integers @ basis
    numerator, determinant = _solve(image.T @ image, image.T)
    return _quotients(basis @ numerator, determinant, -exponent)


def exact_rank(a: np.ndarray[Any, Any]) -> int:
    """Rank of a finite matrix in exact arithmetic (no tolerance: rounding usually makes it full)."""
    if np.iscomplexobj(a):
        return exact_rank(np.block([[a.real, -a.imag], [a.imag, a.real]])) // 2
    integers, _ = _integers(a)
    return len(_pivots(integers, min(a.shape))[0])


def fraction_matrix(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The entries of a real floating matrix as exact fractions (dtype object)."""
    out = np.empty(a.shape, dtype=object)
    for index in np.ndindex(*a.shape):
        out[index] = Fraction(float(a[index]))
    return out


def rational_pinv(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Pseudo-inverse of a matrix of fractions or integers (m, n), in exact fractions (n, m); its rank is exact too."""
    m, n = a.shape
    scale = math.lcm(*(Fraction(entry).denominator for entry in a.flat)) if a.size else 1
    integers = np.empty(a.shape, dtype=object)
    for index in np.ndindex(m, n):
        integers[index] = int(Fraction(a.item(*index)) * scale)
    rows, columns = _pivots(integers, min(m, n))
    out = np.empty((n, m), dtype=object)
    if not rows:
        out[...] = Fraction(0)
        return out
    numerator, determinant = _macduffee(integers, rows, columns)
    for index in np.ndindex(n, m):
        out[index] = Fraction(int(numerator[index]) * scale, int(determinant))
    return out


def round_fractions(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Fractions, or integers, correctly rounded to float64."""
    out = np.empty(a.shape)
    for index in np.ndindex(*a.shape):
        entry = Fraction(a.item(*index))
        out[index] = _divide(entry.numerator, entry.denominator, 0)
    return out


# ------------------------------------------------------------------------------------------------ integers
def _integers(a: np.ndarray[Any, Any]) -> tuple[Integers, int]:
    """Integers N and an exponent e with a = N * 2**e exactly."""
    mantissa, exponents = np.frexp(np.asarray(a, dtype=np.float64))
    used = exponents[mantissa != 0]
    lowest = int(used.min()) if used.size else 0
    out = np.empty(a.shape, dtype=object)
    for index in np.ndindex(*a.shape):
        shift = int(exponents[index]) - lowest
        out[index] = int(mantissa[index] * 2.0**53) << shift if mantissa[index] else 0
    return out, lowest - 53


def _pivots(a: Integers, limit: int) -> tuple[list[int], list[int]]:
    """Rows and columns of a nonsingular submatrix of the largest size, up to `limit` + 1, by fraction-free elimination."""
    work = a.copy()
    rows: list[int] = []
    columns: list[int] = []
    previous = 1
    free_rows = list(range(a.shape[0]))
    for column in range(a.shape[1]):
        pivot = next((row for row in free_rows if work[row, column] != 0), None)
        if pivot is None:
            continue
        free_rows.remove(pivot)
        rows.append(pivot)
        columns.append(column)
        if len(rows) > limit:
            break
        value = work[pivot, column]
        for row in free_rows:
            work[row] = (work[row] * value - work[pivot] * work[row, column]) // previous
        previous = value
    return rows, columns


def _solve(a: Integers, b: Integers) -> tuple[Integers, int]:
    """Integers Y and d with A Y = d B, A nonsingular: Bareiss's elimination, whose divisions leave no remainder."""
    n = a.shape[0]
    work = np.concatenate([a, b], axis=1)
    previous = 1
    for k in range(n):
        if work[k, k] == 0:
            swap = next(row for row in range(k + 1, n) if work[row, k] != 0)
            work[[k, swap]] = work[[swap, k]]
        pivot = work[k, k]
        for row in range(n):
            if row != k:
                work[row] = (work[row] * pivot - work[k] * work[row, k]) // previous
        previous = pivot
    return work[:, n:], int(previous)


def _macduffee(a: Integers, rows: list[int], columns: list[int]) -> tuple[Integers, int]:
    """Numerator and denominator of R^T (B^T A R^T)^-1 B^T, B the pivot columns and R the pivot rows."""
    left, right = a[:, columns].T, a[rows].T
    numerator, determinant = _solve(left @ a @ right, left)
    return right @ numerator, determinant


def _leading_row_space(a: np.ndarray[Any, Any], integers: Integers, rank: int) -> Integers:
    """Basis (n, rank), in units of 2**-192, of the span of the leading right singular vectors.

    Each step multiplies by A^T A and makes the product with the starting basis the identity again; what lies outside the span
    shrinks by (s_{r+1} / s_r)^2.
    """
    start = np.linalg.svd(a / np.abs(a).max())[2][:rank].T
    exact_start = _fixed_point(start)
    basis = exact_start
    for _ in range(40):
        image = integers.T @ (integers @ basis)
        numerator, determinant = _solve((exact_start.T @ image).T, image.T)
        following = np.empty_like(basis)
        for index in np.ndindex(*basis.shape):
            # Rounded at 2**-192 of V = image (V0^T image)^-1, V0 in the same units.
            following[index] = (int(numerator.T[index]) << (2 * _BITS)) // determinant
        change = max(abs(int(entry)) for entry in (following - basis).flat)
        basis = following
        if change < 1 << (_BITS // 2):
            break
    return basis


def _fixed_point(a: np.ndarray[Any, Any]) -> Integers:
    out = np.empty(a.shape, dtype=object)
    for index in np.ndindex(*a.shape):
        out[index] = int(Fraction(float(a[index])) * (1 << _BITS))
    return out


def _quotients(numerator: Integers, denominator: int, exponent: int) -> np.ndarray[Any, Any]:
    """Numerator / denominator * 2**exponent, each correctly rounded."""
    out = np.empty(numerator.shape)
    for index in np.ndindex(*numerator.shape):
        out[index] = _divide(int(numerator[index]), denominator, exponent)
    return out


def _divide(numerator: int, denominator: int, exponent: int) -> float:
    if exponent >= 0:
        numerator <<= exponent
    else:
        denominator <<= -exponent
    try:
        return numerator / denominator
    except OverflowError:
        return math.copysign(math.inf, numerator) * math.copysign(1.0, denominator)
