"""The matrices of the gallery in exact numbers: one function for each, fractions where they are rational, mpmath where not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np

__all__ = ["REGISTRY", "Recipe", "mpmath_module"]

Entries: TypeAlias = "np.ndarray[Any, Any]"
"""Two-dimensional NumPy array (dtype object) of fractions, or of mpmath numbers."""


def mpmath_module() -> Any:
    """The library mpmath, or an ImportError that names the extra."""
    try:
        import mpmath
    except ImportError as error:
        message = 'softlinalg.testing.gallery needs mpmath for this matrix. Run: pip install "softlinalg[testing]".'
        raise ImportError(message) from error
    return mpmath


@dataclass(frozen=True)
class Recipe:
    """How to make a matrix of the gallery, and what is known about all of its kind."""

    build: Callable[..., Entries]
    inverse: Callable[..., Entries] | None
    """Closed form of the (pseudo-)inverse, of the same parameters."""
    symmetric: bool
    psd: bool
    rational: bool
    rank: Callable[..., int] | None
    """Rank by formula; None: full."""
    defaults: dict[str, Any]
    note: str


REGISTRY: dict[str, Recipe] = {}


def _matrix(
    *, symmetric: bool = False, psd: bool = False, rational: bool = True, inverse: Callable[..., Entries] | None = None,
    rank: Callable[..., int] | None = None, **defaults: Any,
) -> Callable[[Callable[..., Entries]], Callable[..., Entries]]:  # fmt: skip
    """Register a builder under its name, with its properties and default parameters; its docstring is the note."""

    def register(build: Callable[..., Entries]) -> Callable[..., Entries]:
        note = " ".join((build.__doc__ or "").split())
        REGISTRY[build.__name__] = Recipe(build, inverse, symmetric or psd, psd, rational, rank, defaults, note)
        return build

    return register


def _from(n: int, m: int, entry: Callable[[int, int], Any]) -> Entries:
    out = np.empty((n, m), dtype=object)
    for i in range(n):
        for j in range(m):
            value = entry(i, j)
            out[i, j] = Fraction(value) if isinstance(value, int) else value
    return out


# --------------------------------------------------------------------------------- ill-conditioned classics
def _hilbert_inverse(n: int) -> Entries:
    def entry(i: int, j: int) -> int:
        c = math.comb
        return int((-1) ** (i + j)) * (i + j + 1) * c(n + i, n - j - 1) * c(n + j, n - i - 1) * c(i + j, i) ** 2

    return _from(n, n, entry)


@_matrix(psd=True, inverse=_hilbert_inverse, n=6)
def hilbert(n: int) -> Entries:
    """1 / (i + j + 1): positive definite, condition about e^(3.5 n), an inverse of whole numbers."""
    return _from(n, n, lambda i, j: Fraction(1, i + j + 1))


def _cauchy_inverse(n: int, shift: int) -> Entries:
    x, y = list(range(1, n + 1)), [shift + j for j in range(n)]

    def entry(i: int, j: int) -> Fraction:
        top = math.prod((x[j] + y[k]) * (x[k] + y[i]) for k in range(n))
        rows = math.prod(x[j] - x[k] for k in range(n) if k != j)
        columns = math.prod(y[i] - y[k] for k in range(n) if k != i)
        return Fraction(top, (x[j] + y[i]) * rows * columns)

    return _from(n, n, entry)


@_matrix(inverse=_cauchy_inverse, n=5, shift=3)
def cauchy(n: int, shift: int) -> Entries:
    """1 / (x_i + y_j) with x = 1, 2, ... and y = shift, shift + 1, ...: every minor nonzero, badly conditioned."""
    return _from(n, n, lambda i, j: Fraction(1, (i + 1) + (shift + j)))


@_matrix(n=6, m=6)
def vandermonde(n: int, m: int) -> Entries:
    """Powers 0..m-1 of n equally spaced points in [0, 1]: condition about 8^m."""
    return _from(n, m, lambda i, j: Fraction(i, max(1, n - 1)) ** j if j else Fraction(1))


def _pascal_inverse(n: int) -> Entries:
    lower = _from(n, n, lambda i, j: (-1) ** (i + j) * math.comb(i, j))
    return np.asarray(lower.T @ lower)


@_matrix(psd=True, inverse=_pascal_inverse, n=6)
def pascal(n: int) -> Entries:
    """Binomial coefficients: positive definite, determinant 1, eigenvalues in pairs (s, 1/s), condition about 16^n."""
    return _from(n, n, lambda i, j: math.comb(i + j, i))


@_matrix(n=8, cosine=Fraction(3, 5), sine=Fraction(4, 5))
def kahan(n: int, cosine: Any, sine: Any) -> Entries:
    """Kahan's triangle diag(s^i) (I - c N): nearly singular without a small diagonal, so that pivoted QR misjudges its rank."""
    c, s = Fraction(cosine), Fraction(sine)
    return _from(n, n, lambda i, j: s**i * (Fraction(1) if i == j else -c) if j >= i else 0)


def _lauchli_inverse(n: int, log2_mu: int) -> Entries:
    mu = Fraction(2) ** log2_mu
    # (J + mu^2 I)^-1 = (I - J / (n + mu^2)) / mu^2, by Sherman and Morrison.
    gram = _from(n, n, lambda i, j: (Fraction(int(i == j)) - 1 / (n + mu**2)) / mu**2)
    return np.asarray(gram @ lauchli(n, log2_mu).T)


@_matrix(inverse=_lauchli_inverse, n=4, log2_mu=-20)
def lauchli(n: int, log2_mu: int) -> Entries:
    """A row of ones above mu I, (n + 1) x n: full rank with condition sqrt(n) / mu, but A^T A is singular in floating point."""
    mu = Fraction(2) ** log2_mu
    return _from(n + 1, n, lambda i, j: Fraction(1) if i == 0 else (mu if i == j + 1 else 0))


@_matrix(n=8)
def frank(n: int) -> Entries:
    """Frank's upper Hessenberg matrix n - max(i, j): determinant 1, ill-conditioned small eigenvalues."""
    return _from(n, n, lambda i, j: n - max(i, j) if j >= i - 1 else 0)


@_matrix(psd=True, rational=False, n=8, width=0.25)
def prolate(n: int, width: float) -> Entries:
    """Prolate matrix sin(2 pi w (i - j)) / (pi (i - j)): Toeplitz, eigenvalues crowd at 0 and 1."""
    mp = mpmath_module()
    w = mp.mpf(width)
    return _from(n, n, lambda i, j: 2 * w if i == j else mp.sinpi(2 * w * (i - j)) / (mp.pi * (i - j)))


# ------------------------------------------------------------------------------------------ kernel matrices
@_matrix(psd=True, rational=False, n=8, length_scale=1.0)
def gaussian_grid(n: int, length_scale: float) -> Entries:
    """Gaussian kernel of the points 0, 1, ..., n - 1: well-conditioned for length scale 1/2, hopeless for 4."""
    mp = mpmath_module()
    scale = mp.mpf(length_scale)
    return _from(n, n, lambda i, j: mp.exp(-(((i - j) / scale) ** 2) / 2))


@_matrix(psd=True, rational=False, n=6, gap=2.0**-10)
def gaussian_clusters(n: int, gap: float) -> Entries:
    """Gaussian kernel of pairs of points `gap` apart, the pairs 3 apart: half of the eigenvalues are about gap^2."""
    mp = mpmath_module()
    points = [mp.mpf(3 * (i // 2)) + mp.mpf(gap) * (i % 2) for i in range(n)]
    return _from(n, n, lambda i, j: mp.exp(-((points[i] - points[j]) ** 2) / 2))


def _lehmer_inverse(n: int) -> Entries:
    def entry(i: int, j: int) -> Fraction:
        if i == j:
            k = i + 1
            return Fraction(4 * k**3, 4 * k**2 - 1) if k < n else Fraction(k**2, 2 * k - 1)
        k = min(i, j) + 1
        return Fraction(-k * (k + 1), 2 * k + 1) if abs(i - j) == 1 else Fraction(0)

    return _from(n, n, entry)


@_matrix(psd=True, inverse=_lehmer_inverse, n=8)
def lehmer(n: int) -> Entries:
    """min(i, j) / max(i, j): a kernel matrix with unit diagonal, condition below 4 n^2, a tridiagonal inverse."""
    return _from(n, n, lambda i, j: Fraction(min(i, j) + 1, max(i, j) + 1))


def _kms_inverse(n: int, rho: Any) -> Entries:
    r = Fraction(rho)

    def entry(i: int, j: int) -> Fraction:
        if i == j:
            return (1 + (r**2 if 0 < i < n - 1 else 0)) / (1 - r**2)
        return -r / (1 - r**2) if abs(i - j) == 1 else Fraction(0)

    return _from(n, n, entry)


@_matrix(psd=True, inverse=_kms_inverse, n=8, rho=Fraction(1, 2))
def kac_murdock_szego(n: int, rho: Any) -> Entries:
    """rho^|i - j|, the exponential kernel on a grid: a Toeplitz matrix with a tridiagonal inverse."""
    return _from(n, n, lambda i, j: Fraction(rho) ** abs(i - j))


# ------------------------------------------------------------------------------------------- rank-deficient
def _magic_square(n: int) -> list[list[int]]:
    if n % 2:
        return [[n * ((i + j + 2 - (n + 3) // 2) % n) + (i + 2 * j + 1) % n + 1 for j in range(n)] for i in range(n)]
    if n % 4 == 0:
        flipped = [[(i % 4 in (0, 3)) == (j % 4 in (0, 3)) for j in range(n)] for i in range(n)]
        return [[n * n - (n * i + j) if flipped[i][j] else n * i + j + 1 for j in range(n)] for i in range(n)]
    half = n // 2
    base = _magic_square(half)
    square = [[base[i % half][j % half] + half * half * (0, 2, 3, 1)[2 * (i // half) + j // half] for j in range(n)] for i in range(n)]
    swapped = half // 2
    for i in range(half):
        columns = [*range(swapped), *range(n - swapped + 1, n)]
        if i == half // 2:
            columns = [*range(1, swapped + 1), *range(n - swapped + 1, n)]
        for j in columns:
            square[i][j], square[i + half][j] = square[i + half][j], square[i][j]
    return square


@_matrix(rank=lambda n: n if n % 2 else (3 if n % 4 == 0 else n // 2 + 2), n=4)
def magic(n: int) -> Entries:
    """A magic square: whole numbers, row sum equal to the largest singular value, rank 3 if 4 divides n and n/2 + 2 if only 2 does."""
    square = _magic_square(n)
    return _from(n, n, lambda i, j: square[i][j])


def _constant_inverse(n: int, m: int) -> Entries:
    return _from(m, n, lambda i, j: Fraction(1, n * m))


@_matrix(rank=lambda n, m: 1, inverse=_constant_inverse, n=4, m=3)
def ones(n: int, m: int) -> Entries:
    """All entries one: rank 1, pseudo-inverse 1 / (n m)."""
    return _from(n, m, lambda i, j: 1)


@_matrix(rank=lambda n, m: 0, inverse=lambda n, m: _from(m, n, lambda i, j: 0), n=3, m=2)
def zero(n: int, m: int) -> Entries:
    """Zero, whose pseudo-inverse is zero: iterations that divide by a norm give NaN."""
    return _from(n, m, lambda i, j: 0)


@_matrix(rank=lambda n: n - 1, inverse=lambda n: _from(n, n, lambda i, j: int(i == j + 1)), n=5)
def shift(n: int) -> Entries:
    """The nilpotent shift: all eigenvalues zero, rank n - 1, its pseudo-inverse is its transpose."""
    return _from(n, n, lambda i, j: int(j == i + 1))


@_matrix(rank=lambda n: n - 1, symmetric=True, psd=True, n=8)
def path_laplacian(n: int) -> Entries:
    """Laplacian of a path graph: positive semi-definite, rank n - 1, zero row sums, condition about (n / 1.6)^2."""
    return _from(n, n, lambda i, j: (2 if 0 < i < n - 1 else 1) if i == j else (-1 if abs(i - j) == 1 else 0))


@_matrix(psd=True, n=6, log2_noise=-18)
def low_rank_plus_noise(n: int, log2_noise: int) -> Entries:
    """Rank two plus 2^log2_noise I: a float32 cut-off counts two or n singular values, as its author likes."""
    noise = Fraction(2) ** log2_noise
    return _from(n, n, lambda i, j: 1 + (-1) ** (i + j) + (noise if i == j else 0))


# ------------------------------------------------------------------------ failures of published iterations
@_matrix(psd=True, rank=lambda n: 1, inverse=lambda n: _constant_inverse(n, n), n=2)
def equal_landmarks(n: int) -> Entries:
    """Kernel matrix of n equal landmarks: its row sum is its top eigenvalue, so the start 2 / |W|_1^2 W makes I - alpha W^2 have the
    eigenvalue -1, and Newton's iteration stands still (with 1.8 in place of 2 it converges)."""  # noqa: D209
    return _from(n, n, lambda i, j: 1)


def _blocks_inverse(n: int) -> Entries:
    return _from(n, n, lambda i, j: Fraction(1, 4) if i // 2 == j // 2 else 0)


@_matrix(psd=True, rank=lambda n: n // 2, inverse=_blocks_inverse, n=6)
def paired_landmarks(n: int) -> Entries:
    """n/2 pairs of equal landmarks, the pairs far apart: rank n/2, every row sum is the top eigenvalue; without a cut-off or a final
    X A X rounding in the null space doubles at each step. n even."""  # noqa: D209
    return _from(n, n, lambda i, j: int(i // 2 == j // 2))


@_matrix(psd=True, n=4)
def circulant_kernel(n: int) -> Entries:
    """Kernel 2^-|i - j| of points on a ring: the row sum is the top eigenvalue (Perron), and the matrix is well-conditioned: alpha = 2
    fails here although nothing is singular."""  # noqa: D209
    return _from(n, n, lambda i, j: Fraction(1, 2 ** min((i - j) % n, (j - i) % n)))


@_matrix(psd=True, inverse=lambda n, log2_gap: spectral_gap(n, -log2_gap), n=6, log2_gap=-14)
def spectral_gap(n: int, log2_gap: int) -> Entries:
    """Eigenvalues 1 (n - 1 times) and 2^log2_gap in a Hadamard-like basis: an iteration that stops when its step is small stops before
    the small direction has grown."""  # noqa: D209
    # I - (1 - g) v v^T with the unit vector v = (1/2, 1/2, 1/2, 1/2, 0, ...): dyadic numbers.
    rest = 1 - Fraction(2) ** log2_gap
    return _from(n, n, lambda i, j: int(i == j) - (rest / 4 if i < 4 and j < 4 else 0))


def _mixing_inverse(n: int, log2_identity: int) -> Entries:
    e = Fraction(2) ** log2_identity
    return _from(n, n, lambda i, j: Fraction(int(i == j)) / e - (1 - e) / (e * n))


@_matrix(psd=True, inverse=_mixing_inverse, n=8, log2_identity=-6)
def mixing(n: int, log2_identity: int) -> Entries:
    """e I + (1 - e) J / n, the softmax of nearly equal logits: row-stochastic, condition 1 / e. Six steps of the third-order
    iteration leave most of the error."""  # noqa: D209
    e = Fraction(2) ** log2_identity
    return _from(n, n, lambda i, j: (e if i == j else 0) + (1 - e) / n)


# ------------------------------------------------------------------------------------------------- range
@_matrix(
    inverse=lambda n, log2_scale: _from(n, n, lambda i, j: Fraction(2) ** -log2_scale if i == j else 0), psd=True, n=3, log2_scale=-100
)
def scaled_identity(n: int, log2_scale: int) -> Entries:
    """2^log2_scale I: products of entries leave the range long before the entries do; iterations need a scaling first."""
    return _from(n, n, lambda i, j: Fraction(2) ** log2_scale if i == j else 0)


@_matrix(n=4, log2_step=12)
def graded(n: int, log2_step: int) -> Entries:
    """Upper triangle with rows graded by powers of two: every digit counts in some row, an absolute cut-off drops them."""
    return _from(n, n, lambda i, j: Fraction(2) ** (-log2_step * i) * (1 if i == j else Fraction(1, j - i + 1)) if j >= i else 0)
