"""Theorem C4: the certificate of an inverse by Cholesky, from a few numbers in place of a residual.

The theorem and its proof stand in docs/theory/certificates.md.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

from softlinalg import _arrays, _certificates, _linalg, _native
from softlinalg._certificates import InverseCertificate
from softlinalg._typing import Array, Namespace

__all__ = ["CholeskyEvidence", "certainty", "certify_cholesky", "cholesky_evidence", "judge_cholesky"]


def certify_cholesky(b: Array, x: Array, *, xp: Namespace) -> InverseCertificate:
    """Theorem C4: the rounding analysis of Cholesky, made a number by two traces and a norm; O(m^2), for a check of it.

    With L the computed factor and X the inverse computed from it, |L|_F^2 and |L^-1|_F^2 are the traces of B and X up
    to rounding, so the backward error of the factorisation and the forward errors of the two inversion steps are known
    from t = tr B, s = tr X and n >= |X|: |X - B^-1| <= r / (1 - 4 r) |B^-1| with r = c m u (t n + 2 sqrt(t s) + m), while
    r <= 1/8. LAPACK's routines keep it with c near 1; c = 8 leaves room. That the library kept its promise is
    spot-checked on two vectors.

    Parameters
    ----------
    b, x : array, shape (..., m, m)
        Hermitian positive definite, and its inverse as LAPACK gave it, in the same data type.

    Returns
    -------
    InverseCertificate
        Its `residual` is here the bound of the relative error; infinite where the spot check fails.

    References
    ----------
    .. [1] N. J. Higham, Accuracy and Stability of Numerical Algorithms (2002), theorems 10.3 and 14.1 to 14.3.
    .. [2] J. J. Du Croz, N. J. Higham, Stability of methods for matrix inversion (1992).
    """
    return judge_cholesky(cholesky_evidence(b, x, xp=xp), b.shape[-1], xp=xp)


class CholeskyEvidence(NamedTuple):
    """What `certify_cholesky` looks at, arrays of shape (...): so little that parts of a batch can be judged together, once."""

    trace_b: Array
    trace_x: Array
    worst: Array
    """The larger of |B X p - p| for two vectors p of ones and minus ones."""
    norm_x: Array
    """Upper bound of |X|_2: the smaller of the Frobenius norm and the largest sum of a row's absolute values."""


def cholesky_evidence(b: Array, x: Array, *, xp: Namespace) -> CholeskyEvidence:
    """The traces of B and X, a norm of X, and the spot check: few passes over both."""
    m = b.shape[-1]
    ones = xp.ones_like(b[..., :, :1])
    signs = xp.reshape(xp.astype(xp.arange(m, device=_arrays.device_of(b)) % 2 * 2 - 1, b.dtype), (m, 1))
    probes = xp.concat([ones, ones * signs], axis=-1)  # (..., m, 2)
    miss = b @ (x @ probes) - probes
    worst = xp.sqrt(xp.max(xp.sum(xp.abs(miss) ** 2, axis=-2), axis=-1))
    norm = _certificates.upper_frobenius(x, xp=xp)
    if m > 0:
        norm = xp.minimum(norm, _linalg.largest_row_sum(x, xp=xp) * _certificates._slack(x))
    return CholeskyEvidence(_linalg.real_trace(b, xp=xp), _linalg.real_trace(x, xp=xp), worst, norm)


def judge_cholesky(evidence: CholeskyEvidence, m: int, *, xp: Namespace) -> InverseCertificate:
    """The certificate from the evidence; the formula stands in `certify_cholesky`."""
    trace_b, trace_x, worst, norm = evidence
    gamma = 8 * _certificates._gamma(m + 2, trace_b.dtype)
    product = trace_b * trace_x
    first = gamma * (trace_b * norm + 2 * xp.sqrt(xp.where(product > 0, product, xp.zeros_like(product))) + m)
    usable = (first <= _MOST_TO_FIRST_ORDER) & (trace_x > 0) & (product >= 0)
    infinite = xp.full_like(trace_x, math.inf)
    safe = xp.where(usable, first, xp.zeros_like(first))
    relative = safe / (1 - 4 * safe)
    kept = usable & (worst <= math.sqrt(m) * trace_b * norm * relative)
    bound = xp.where(kept, norm * relative / (1 - relative), infinite)
    return InverseCertificate(xp.where(kept, relative, infinite), bound, norm)


_MOST_TO_FIRST_ORDER = 0.125
"""Of r in theorem C4."""


@functools.lru_cache(maxsize=64)
def certainty(m: int, rounding: float, tol: float) -> _native.Certainty:
    """For compiled code that judges inverses of m x m float64 matrices itself: relative error and `rounding` |X| within `tol`."""
    return _native.Certainty(8 * _certificates._gamma(m + 2, "float64"), rounding, tol)
