"""A-posteriori error bounds for inverses and pseudo-inverses, with every rounding error inside the bound.

Each function takes the matrix and a computed inverse, in the widest precision at hand, and returns numbers that
bound the true error from above, whatever way the inverse was found. The theorems (C1 to C4) and their proofs stand
in docs/theory/certificates.md; the names in the code are those of the proofs.

The arithmetic model is IEEE 754 with any order of summation: an inner product of length k is off by at most
gamma_k = k u / (1 - k u) times the inner product of the absolute values. Matrix products by fast (Strassen-like)
algorithms or in reduced precision (TF32) are outside the model.

References
----------
.. [1] N. J. Higham, Accuracy and Stability of Numerical Algorithms (2002), sections 3.1 and 3.6.
.. [2] S. M. Rump, Verification methods: rigorous results using floating-point arithmetic (2010).
.. [3] K. Ozaki, T. Ogita, S. Oishi, S. M. Rump, Error-free transformations of matrix multiplication (2012).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from softlinalg import _arrays, _linalg
from softlinalg._typing import Array, Namespace

__all__ = [
    "InverseCertificate",
    "PinvCertificate",
    "certify_inverse",
    "certify_pinv",
    "correct_inverse",
    "diagonal_shift",
    "judge_correction",
    "upper_frobenius",
    "upper_spectral",
]


class InverseCertificate(NamedTuple):
    """What is certain about X as an inverse of B; arrays of shape (...)."""

    residual: Array
    """rho >= |I - B X|_F. Below 1, B is certainly nonsingular and |X - B^-1|_2 <= rho |B^-1|_2. Infinite where X is not finite."""
    error_bound: Array
    """Upper bound of |X - B^-1|_2; infinite where rho >= 1."""
    norm: Array
    """Upper bound of |X|_2."""


class PinvCertificate(NamedTuple):
    """What is certain about X as a pseudo-inverse of A; arrays of shape (...)."""

    residual: Array
    """Upper bound of |A - A X A|_F / |A|_F (0 for the zero matrix)."""
    error_bound: Array
    """Upper bound of |X - A_r^+|_2, A_r the best rank-r approximation of A; infinite where no rank is certain."""
    backward_error: Array
    """Upper bound of the r+1-st singular value of A: how far A can be from rank r. 0 where r is full."""
    rank: Array
    """The certified numerical rank r, int64 (or the default integer); -1 where it is not certain."""
    norm: Array
    """Upper bound of |X|_2."""


# ----------------------------------------------------------------------------------- norms, rounded upwards
def _unit(dtype: object) -> float:
    """Unit roundoff u of a data type."""
    return _arrays.eps(dtype) / 2


def _gamma(length: int, dtype: object) -> float:
    """gamma_k for inner products of a length; complex products count as real ones of twice the length, times sqrt(2) [1, 3.6]."""
    u = _unit(dtype)
    k = 2 * length if _arrays.is_complex(dtype) else length
    gamma = k * u / (1 - k * u) if k * u < 0.5 else math.inf
    return gamma * math.sqrt(2) if _arrays.is_complex(dtype) else gamma


def _slack(a: Array) -> float:
    """Factor that covers the rounding of a few operations on norms, and of sums along rows and columns of `a`."""
    return 1 + 2 * _gamma(a.shape[-1] + a.shape[-2] + 16, a.dtype)


def upper_frobenius(a: Array, *, xp: Namespace) -> Array:
    """Upper bound of the Frobenius norm, shape (...).

    One pass without temporaries where the library's `vecdot` has none. Squares that underflow are covered by an
    absolute term, so the bound of the zero matrix is not zero but sqrt(m n tiny).
    """
    m, n = a.shape[-2], a.shape[-1]
    floor = math.sqrt(_arrays.tiny(a.dtype)) * math.sqrt(m * n)
    if m * n * _unit(a.dtype) < 1e-3:
        norm, rounding = _linalg.frobenius(a, xp=xp), _gamma(m * n + 8, a.dtype)
    else:  # sums along rows first: rounding grows with m + n instead of m n
        squares = xp.sum(xp.vecdot(a, a), axis=-1)
        norm = xp.sqrt(xp.real(squares) if _arrays.is_complex(a.dtype) else squares)
        rounding = _gamma(m + n + 8, a.dtype)
    return norm * (1 + rounding) + floor


def upper_spectral(a: Array, *, xp: Namespace) -> Array:
    """Upper bound of the spectral norm, shape (...): the smaller of |A|_F and sqrt(|A|_1 |A|_inf)."""
    if a.shape[-1] == 0 or a.shape[-2] == 0:
        return upper_frobenius(a, xp=xp)
    magnitude = xp.abs(a)
    columns = xp.max(xp.sum(magnitude, axis=-2), axis=-1)
    rows = xp.max(xp.sum(magnitude, axis=-1), axis=-1)
    return xp.minimum(upper_frobenius(a, xp=xp), xp.sqrt(columns) * xp.sqrt(rows) * _slack(a))


# ------------------------------------------------------------------------------ residuals in doubled precision
def _slice_bits(length: int, dtype: object) -> int:
    """Bits per factor so that a product of two slices, summed over `length` terms, is exact [3]."""
    precision = 1 - round(math.log2(_arrays.eps(dtype)))
    terms = 2 * length if _arrays.is_complex(dtype) else length
    return (precision - math.ceil(math.log2(max(2, terms)))) // 2


def _split(a: Array, bits: int, *, xp: Namespace) -> tuple[Array, Array]:
    """a = high + low exactly, `high` a whole multiple, at most 2**bits in size, of one power of two per matrix."""
    exponent = _linalg.binary_exponent(_linalg.largest_entry(a, xp=xp), xp=xp) + 1
    scaled = _linalg.scale_by_power_of_two(a, bits - exponent, xp=xp)
    if _arrays.is_complex(a.dtype):
        high = xp.astype(xp.round(xp.real(scaled)), a.dtype) + 1j * xp.astype(xp.round(xp.imag(scaled)), a.dtype)
    else:
        high = xp.round(scaled)
    high = _linalg.scale_by_power_of_two(high, exponent - bits, xp=xp)
    return high, a - high


class _Evaluated(NamedTuple):
    """A matrix computed in floating point, and how far in Frobenius norm it can be from the exact one."""

    value: Array
    error: Array


def _slices(a: Array, count: int, bits: int, *, xp: Namespace) -> list[Array]:
    """`count` matrices that add up to `a` exactly, each but the last with at most `bits` significant bits."""
    slices, rest = [], a
    for _ in range(count - 1):
        high, rest = _split(rest, bits, xp=xp)
        slices.append(high)
    return [*slices, rest]


def _base_minus_product(base: Array, left: Array, right: Array, *, slices: int, xp: Namespace) -> _Evaluated:
    """base - left @ right with a bound of its error, evaluated in about (slices + 1) / 2 times the working precision.

    With left = L_1 + ... + L_k and right = R_1 + ... + R_k the products L_i R_j, i + j <= k, are exact in floating
    point [3]; rounding enters through the small rest, sum_i L_i (R - R_1 - ... - R_{k-i}), and once when the sum is
    stored. One, three or six products for one, two or three slices.
    """
    length = left.shape[-1]
    u, gamma = _unit(left.dtype), _gamma(length, left.dtype)
    bits = _slice_bits(length, left.dtype)
    absolute = _arrays.tiny(left.dtype) * length * math.sqrt(max(1, left.shape[-2] * right.shape[-1]))  # underflow
    if slices == 1 or bits < 4:
        value = base - left @ right
        error = gamma * upper_frobenius(left, xp=xp) * upper_frobenius(right, xp=xp) + u * upper_frobenius(value, xp=xp) + absolute
        return _Evaluated(value, error * _slack(left))
    lefts = _slices(left, slices, bits, xp=xp)
    rights = _slices(right, slices, bits, xp=xp)
    value, lost = base, xp.zeros_like(base)
    for i in range(slices - 1):
        for j in range(slices - 1 - i):
            value, rounding = _difference(value, lefts[i] @ rights[j])
            lost = lost + rounding
    error = xp.zeros_like(upper_frobenius(left, xp=xp)) + absolute
    for i in range(slices):
        tail = right
        for j in range(slices - 1 - i):
            tail = tail - rights[j]  # exact: a slice takes away leading digits
        value, rounding = _difference(value, lefts[i] @ tail)
        lost = lost + rounding
        error = error + gamma * upper_frobenius(lefts[i], xp=xp) * upper_frobenius(tail, xp=xp)
    value = value + lost
    error = error + u * (upper_frobenius(value, xp=xp) + slices**2 * upper_frobenius(lost, xp=xp))
    return _Evaluated(value, error * _slack(left))


def _difference(a: Array, b: Array) -> tuple[Array, Array]:
    """fl(a - b) and what rounding took from it, exactly (Knuth's two-sum)."""
    difference = a - b
    part = difference - a
    return difference, (a - (difference - part)) - (b + part)


def diagonal_shift(a: Array, shift: Array, *, dtype: object, xp: Namespace) -> tuple[Array, Array]:
    """B = fl(A + shift I) in a type that holds A exactly, and the rounding errors of its diagonal (Knuth's two-sum).

    Parameters
    ----------
    a : array, shape (..., m, m)
    shift : array, shape (...)
    dtype : data type
        Of the result.

    Returns
    -------
    shifted : array, shape (..., m, m)
    lost : array, shape (..., m)
        A + shift I = shifted + diag(lost) exactly.
    """
    diagonal = xp.astype(xp.linalg.diagonal(a), dtype)
    column = xp.astype(shift, dtype)[..., None]
    total = diagonal + column
    part = total - diagonal
    lost = (diagonal - (total - part)) + (column - part)
    return _linalg.with_diagonal(a, total, xp=xp), lost


# --------------------------------------------------------------------------------------------- the theorems
def certify_inverse(b: Array, x: Array, *, lost: Array | None = None, slices: int, refine: bool, xp: Namespace) -> InverseCertificate:
    """Theorem C1: bound |X - B^-1|_2 from R = I - B X.

    If rho >= |R| is below one, B is nonsingular, B^-1 - X = X R (I - R)^-1, hence |X - B^-1| <= rho |B^-1| and
    |X - B^-1| <= |X R| / (1 - rho) <= |X| rho / (1 - rho). The middle form costs one product more and is close to the
    true error also where X is an exact inverse rounded to fewer digits; `refine` asks for it.

    Parameters
    ----------
    b, x : array, shape (..., m, m)
        One data type, the widest at hand. No symmetry is assumed.
    lost : array, shape (..., m), optional
        Diagonal that `b` should have in addition, exactly (see `diagonal_shift`).
    slices : int
        Precision of the residual, see `_base_minus_product`: two where the data fill the type of `b`, else one.
    refine : bool
        Evaluate X R too, one product.

    Returns
    -------
    InverseCertificate
    """
    if slices == 1 and not refine:
        return _quick_certificate(b, x, shifted=lost is not None, xp=xp)
    evaluated = _base_minus_product(_arrays.eye_like(b, xp=xp), b, x, slices=slices, xp=xp)
    residual, error = evaluated
    if lost is not None:
        correction = lost[..., :, None] * x
        residual = residual - correction
        u = 4 * _unit(b.dtype)
        error = error + u * (upper_frobenius(residual, xp=xp) + upper_frobenius(correction, xp=xp))
    rho = (upper_frobenius(residual, xp=xp) + error) * _slack(b)
    norm = upper_spectral(x, xp=xp)
    infinite = xp.full_like(rho, math.inf)
    usable = rho < 0.99  # a NaN compares as False; near one the quotient below means nothing
    safe = xp.where(usable, rho, xp.zeros_like(rho))
    bound = norm * safe
    if refine:
        product = _base_minus_product(xp.zeros_like(x), x, residual, slices=1, xp=xp)
        bound = xp.minimum(bound, upper_frobenius(product.value, xp=xp) + product.error + norm * error)
    bound = bound / (1 - safe) * _slack(b)
    rho = xp.where(xp.isnan(rho), infinite, rho)
    return InverseCertificate(rho, xp.where(usable, bound, infinite), norm)


def correct_inverse(b: Array, x: Array, *, lost: Array, xp: Namespace) -> tuple[Array, InverseCertificate]:
    """One Newton step X' = X + X R, R = I - B X, for Hermitian B, and its certificate from the same two products.

    Theorem C1, corollary: B^-1 - X' = (B^-1 - X) R, so |X' - B^-1| <= |X R| rho / (1 - rho). X' is then symmetrized:
    the projection onto the Hermitian matrices, of which B^-1 is one, brings it no farther from B^-1. It may raise |I - B X'|, so
    `residual` is bounded by |B| times the bound of the error.

    Parameters
    ----------
    b, x : array, shape (..., m, m)
        One data type, the widest at hand, `b` exactly Hermitian; `x` may come from a narrower type.
    lost : array, shape (..., m)
        Diagonal that `b` should have in addition, exactly (see `diagonal_shift`).

    Returns
    -------
    corrected : array, shape (..., m, m)
        Exactly Hermitian.
    certificate : InverseCertificate
    """
    defect = _linalg.minus_identity(b @ x, xp=xp)  # -R
    product = x @ defect  # -X R
    sizes = [upper_frobenius(part, xp=xp) for part in (b, x, defect, product)]
    if _arrays.may_reuse_buffers(b, x):
        corrected = xp.subtract(x, product, out=product)
        sizes.append(upper_frobenius(corrected, xp=xp))
        symmetric = xp.add(corrected, _linalg.adjoint(corrected, xp=xp), out=defect)
        symmetric *= 0.5
    else:
        corrected = x - product
        sizes.append(upper_frobenius(corrected, xp=xp))
        symmetric = (corrected + _linalg.adjoint(corrected, xp=xp)) / 2
    return symmetric, judge_correction(sizes, lost, xp=xp)  # no larger than before, but for rounding


def judge_correction(sizes: Sequence[Array], lost: Array, *, xp: Namespace) -> InverseCertificate:
    """The certificate of `correct_inverse` from upper bounds of the Frobenius norms of B, X, R, X R and X', each of shape (...)."""
    size_b, size_x, size_defect, size_product, size = sizes
    m, dtype = lost.shape[-1], size_b.dtype
    u, gamma = _unit(dtype), _gamma(m, lost.dtype)
    slack = 1 + 2 * _gamma(2 * m + 16, dtype)
    absolute = _arrays.tiny(dtype) * m**2  # underflow
    shifted = xp.astype(xp.any(lost != 0, axis=-1), dtype)
    error = ((gamma + 4 * u * shifted) * size_b * size_x + u * size_defect + absolute) * slack
    rho = (size_defect + error) * slack
    usable = rho < 0.99
    safe = xp.where(usable, rho, xp.zeros_like(rho))
    lost_in_product = (gamma * size_x * size_defect + absolute) * slack + size_x * error
    step = size_product + lost_in_product
    bound = xp.where(usable, (step * safe / (1 - safe) + lost_in_product + 4 * u * size) * slack, xp.full_like(rho, math.inf))
    return InverseCertificate(xp.where(usable, size_b * bound * slack, bound), bound, size * slack)


def _quick_certificate(b: Array, x: Array, *, shifted: bool, xp: Namespace) -> InverseCertificate:
    """Theorem C1 with one product and three norms, the fewest passes over memory; off by rounding of order gamma_m |B| |X|."""
    u = _unit(b.dtype)
    size_b, size_x = upper_frobenius(b, xp=xp), upper_frobenius(x, xp=xp)
    defect = _linalg.minus_identity(b @ x, xp=xp)
    absolute = _arrays.tiny(b.dtype) * b.shape[-1] ** 2
    rounding = (_gamma(b.shape[-1], b.dtype) + (2 * u if shifted else 0)) * size_b * size_x + absolute
    rho = (upper_frobenius(defect, xp=xp) * (1 + 2 * u) + rounding) * _slack(b)
    usable = rho < 0.99
    infinite = xp.full_like(rho, math.inf)
    safe = xp.where(usable, rho, xp.zeros_like(rho))
    bound = xp.where(usable, size_x * safe / (1 - safe) * _slack(b), infinite)
    return InverseCertificate(xp.where(xp.isnan(rho), infinite, rho), bound, size_x)


def certify_pinv(a: Array, x: Array, *, slices: int = 3, xp: Namespace) -> PinvCertificate:
    """Theorems C2 (full rank) and C3 (any rank): certify the rank of A and bound |X - A_r^+|_2.

    Parameters
    ----------
    a : array, shape (..., m, n)
    x : array, shape (..., n, m)
        One data type, the widest at hand; largest entry of `a` of order one (scaled by a power of two).
    slices : int, default 3
        Precision of the projector residuals, see `_base_minus_product`. Three keep the bound within a small factor of
        the true error up to a condition number of about 1 / (100 eps); one is for data of half the precision of `a`.

    Returns
    -------
    PinvCertificate
        By theorem C2 where it applies, else by C3.
    """
    m, n = a.shape[-2], a.shape[-1]
    terms = _PinvTerms.of(a, x, slices=slices, xp=xp)
    full = _full_rank(x, terms, row_rank=m < n, xp=xp)
    bound, backward, rank = _any_rank(terms, m=m, xp=xp)
    infinite = xp.full_like(full, math.inf)
    is_full = full < infinite
    residual = xp.where(terms.both_zero, xp.zeros_like(full), terms.tau / upper_frobenius(a, xp=xp) * _slack(a))
    return PinvCertificate(
        xp.where(xp.isnan(residual), infinite, residual),
        xp.where(is_full, full, bound),
        xp.where(is_full, xp.zeros_like(full), backward),
        xp.where(is_full, xp.full_like(rank, min(m, n)), rank),
        terms.x,
    )


class _PinvTerms(NamedTuple):
    """The residuals of X as a pseudo-inverse of A; the numbers are upper bounds, shape (...)."""

    left: _Evaluated
    """G = I - A X, (..., m, m)."""
    right: _Evaluated
    """G' = I - X A, (..., n, n)."""
    a: Array
    """|A|_2."""
    x: Array
    """|X|_2."""
    tau: Array
    """|T|, T = A - A X A."""
    delta: Array
    """|X - X A X|."""
    k_left: Array
    """|A X - (A X)^H|."""
    k_right: Array
    """|X A - (X A)^H|."""
    noise: Array
    """|G^H T|: what lies outside the rank, filtered twice."""
    sandwich: Array
    """|X T X|: the error inside the range."""
    columns: Array
    """|X G^H G^H|: what X makes of vectors outside the range of A."""
    rows: Array
    """|G'^H G'^H X|: what X puts outside the range of A^H."""
    both_zero: Array
    x_is_zero: Array

    @classmethod
    def of(cls, a: Array, x: Array, *, slices: int, xp: Namespace) -> _PinvTerms:
        """Evaluate everything; the products with G are chosen on its smaller side."""
        flat = min(slices, 2)  # products with G, whose entries are of order one, need less
        left = _base_minus_product(_arrays.eye_like(x, xp=xp), a, x, slices=slices, xp=xp)
        right = _base_minus_product(_arrays.eye_like(a, xp=xp), x, a, slices=slices, xp=xp)
        norm_a, norm_x, slack = upper_spectral(a, xp=xp), upper_spectral(x, xp=xp), _slack(a) ** 2
        wide = a.shape[-2] <= a.shape[-1]
        # A - A X A = G A = A G' and X - X A X = X G = G' X: the smaller projector residual makes the cheaper product.
        small = left if wide else right
        defect = _minus_product(left.value, a, slices=flat, xp=xp) if wide else _minus_product(a, right.value, slices=flat, xp=xp)
        weak = _minus_product(x, left.value, slices=1, xp=xp) if wide else _minus_product(right.value, x, slices=1, xp=xp)
        tau_error = defect.error + norm_a * small.error
        adjoint_left, adjoint_right = _linalg.adjoint(left.value, xp=xp), _linalg.adjoint(right.value, xp=xp)
        g_left, g_right = upper_spectral(left.value, xp=xp) + left.error, upper_spectral(right.value, xp=xp) + right.error
        noise, noise_error = _chain(adjoint_left, defect.value, xp=xp) if wide else _chain(defect.value, adjoint_right, xp=xp)
        noise_error = noise_error + (g_left if wide else g_right) * tau_error + small.error * upper_frobenius(defect.value, xp=xp)
        sandwich, sandwich_error = _chain(x, defect.value, x, xp=xp)
        columns, columns_error = _chain(x, adjoint_left, adjoint_left, xp=xp)
        rows, rows_error = _chain(adjoint_right, adjoint_right, x, xp=xp)
        x_is_zero = _linalg.largest_entry(x, xp=xp) == 0
        return cls(
            left,
            right,
            norm_a,
            norm_x,
            (upper_frobenius(defect.value, xp=xp) + tau_error) * slack,
            (upper_frobenius(weak.value, xp=xp) + weak.error + norm_x * small.error) * slack,
            (_skew(left.value, xp=xp) + 2 * left.error) * slack,
            (_skew(right.value, xp=xp) + 2 * right.error) * slack,
            (noise + noise_error) * slack,
            (sandwich + sandwich_error + norm_x * norm_x * tau_error) * slack,
            (columns + columns_error + norm_x * left.error * (2 * g_left + left.error)) * slack,
            (rows + rows_error + norm_x * right.error * (2 * g_right + right.error)) * slack,
            x_is_zero & (_linalg.largest_entry(a, xp=xp) == 0),
            x_is_zero,
        )


def _minus_product(left: Array, right: Array, *, slices: int, xp: Namespace) -> _Evaluated:
    """-(left @ right), whose norm is that of the product."""
    zero = xp.zeros_like(left[..., :, :1] * right[..., :1, :])
    return _base_minus_product(zero, left, right, slices=slices, xp=xp)


def _chain(first: Array, second: Array, third: Array | None = None, *, xp: Namespace) -> tuple[Array, Array]:
    """Norm of a product of two or three matrices, and the bound of its rounding error."""
    inner = _minus_product(first, second, slices=1, xp=xp)
    if third is None:
        return upper_frobenius(inner.value, xp=xp), inner.error
    outer = _minus_product(inner.value, third, slices=1, xp=xp)
    return upper_frobenius(outer.value, xp=xp), outer.error + inner.error * upper_spectral(third, xp=xp)


def _skew(s: Array, *, xp: Namespace) -> Array:
    """Upper bound of |S - S^H|_F."""
    return upper_frobenius(s - _linalg.adjoint(s, xp=xp), xp=xp) * (1 + 4 * _unit(s.dtype))


def _hypot(a: Array, b: Array, *, xp: Namespace) -> Array:
    """sqrt(a^2 + b^2) without overflow, for a, b >= 0."""
    large = xp.maximum(a, b)
    usable = (large > 0) & xp.isfinite(large)
    safe = xp.where(usable, large, xp.ones_like(large))
    return xp.where(usable, safe * xp.sqrt((a / safe) ** 2 + (b / safe) ** 2), large)


def _full_rank(x: Array, terms: _PinvTerms, *, row_rank: bool, xp: Namespace) -> Array:
    """Theorem C2: with E = G' (full column rank) or G (full row rank), |E| < 1 proves the rank.

    |X - A^+|^2 <= (|E X| / (1 - |E|))^2 + |X (I - A A^+)|^2; a square matrix has no second part. Infinite if |E| >= 1.
    """
    residual, skew, outside = (terms.left, terms.k_right, terms.rows) if row_rank else (terms.right, terms.k_left, terms.columns)
    rho = (upper_frobenius(residual.value, xp=xp) + residual.error) * _slack(x)
    usable = rho < 0.99
    safe = xp.where(usable, rho, xp.zeros_like(rho))
    pinv_norm = terms.x / (1 - safe)
    range_part = xp.minimum(terms.x * safe, terms.delta) / (1 - safe)  # E X = X - X A X
    null_part = xp.zeros_like(rho) if x.shape[-1] == x.shape[-2] else xp.minimum(pinv_norm * skew, outside)
    bound = _hypot(range_part, null_part, xp=xp) * _slack(x)
    return xp.where(usable, bound, xp.full_like(rho, math.inf))


def _projector_gap(terms: _PinvTerms, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """zeta and z0 of theorem C3, and whether |H - H^2| < 1/4, for H = sym(A X) and sym(X A) together."""
    eta = xp.zeros_like(terms.tau)
    for evaluated in (terms.left, terms.right):
        complement = (evaluated.value + _linalg.adjoint(evaluated.value, xp=xp)) / 2  # I - H, up to `error`
        squared = _base_minus_product(complement, complement, complement, slices=1, xp=xp)
        size = upper_frobenius(complement, xp=xp)
        slip = evaluated.error + 2 * _unit(complement.dtype) * size
        eta = xp.maximum(eta, (upper_frobenius(squared.value, xp=xp) + squared.error + slip * (1 + 2 * size + slip)) * 1.0000001)
    usable = eta < 0.24
    safe = xp.where(usable, eta, xp.zeros_like(eta))
    # (1 - sqrt(1 - 4 eta)) / 2 in the form without cancellation.
    z0 = 2 * safe / (1 + xp.sqrt(1 - 4 * safe)) * (1 + 16 * _unit(eta.dtype))
    zeta = z0 + xp.maximum(terms.k_left, terms.k_right) / 2
    return zeta, z0, usable


def _any_rank(terms: _PinvTerms, *, m: int, xp: Namespace) -> tuple[Array, Array, Array]:
    """Theorem C3: error bound, bound of the r+1-st singular value, and the rank r with a gap around it."""
    zero, infinite = xp.zeros_like(terms.tau), xp.full_like(terms.tau, math.inf)
    unit = _unit(terms.left.value.dtype)
    zeta, z0, usable = _projector_gap(terms, xp=xp)
    # First the projector of H: A is within 2 a of a matrix A' of rank r with singular values above `smallest`.
    a = terms.tau + zeta * terms.a
    theta = zeta + a * (terms.delta + zeta * terms.x)
    trace_error = m * z0 + math.sqrt(m) * (terms.left.error + 64 * unit * math.sqrt(m))
    usable = usable & (theta < 0.99) & (trace_error < 0.25) & (~terms.x_is_zero | terms.both_zero)
    smallest = (1 - xp.where(usable, theta, zero)) / xp.where(terms.x_is_zero, zero + 1, terms.x)
    usable = usable & (smallest > 2.5 * a) & (a * terms.x < 0.2)
    a = xp.where(usable, a, zero)
    alpha = 1 / (smallest - 2 * a)  # |A_r^+|
    x_norm, tau = xp.where(usable, terms.x, zero), xp.where(usable, terms.tau, zero)
    alpha = xp.minimum(alpha, x_norm + alpha**2 * tau)
    # Then the singular values left over, and X block by block in the singular subspaces of A_r.
    k_left, k_right = xp.where(usable, terms.k_left, zero), xp.where(usable, terms.k_right, zero)
    skew = xp.maximum(k_left, k_right) + 2 * a * x_norm
    shrink = 1 - 4 * a * x_norm - skew**2
    usable = usable & (shrink > 0.1) & (alpha * tau < 0.5)
    sigma = xp.minimum(2 * a, terms.noise / xp.where(usable, shrink, zero + 1))  # s_{r+1}(A)
    leak = x_norm * sigma * (2 + zeta)
    usable = usable & (leak < 0.5)
    leak = xp.where(usable, leak, zero)
    columns = (terms.columns + leak * terms.rows) / (1 - leak**2)  # |X (I - P)|
    rows = (terms.rows + leak * terms.columns) / (1 - leak**2)  # |(I - P') X|
    extra = sigma * x_norm * (columns * (k_right + sigma * columns) + rows * (k_left + sigma * rows)) + columns * rows * tau
    inside = (terms.sandwich + extra) / (1 - xp.where(usable, alpha * tau, zero)) ** 2
    bound = _hypot(inside, _hypot(columns, rows, xp=xp), xp=xp) * (1 + 64 * unit)
    trace = m - _linalg.real_trace(terms.left.value, xp=xp)
    integer = xp.int64 if _arrays.has_float64(terms.left.value, xp=xp) else xp.int32
    rank = xp.astype(xp.round(xp.where(usable, trace, zero)), integer)
    bound, sigma = xp.where(terms.both_zero, zero, bound), xp.where(terms.both_zero, zero, sigma)
    return xp.where(usable, bound, infinite), xp.where(usable, sigma, infinite), xp.where(usable, rank, xp.full_like(rank, -1))
