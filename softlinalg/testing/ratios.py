r"""Accuracy as ratios, in the manner of LAPACK's test programs: an error over eps x dimension x condition.

A backward stable method gives ratios of order one whatever the size, the scale and the condition of the problem, so one threshold
(`THRESHOLD`, 30) serves for all. Every function returns a dictionary from the name of a law to its ratio; a result of the wrong shape,
or with NaN or infinity in it, has the ratio infinity. Nothing here needs hypothesis. Arrays of every library are taken; the ratios
themselves are computed on the host, in float64 or, for float64 data of up to 64 rows, in long double.

Throughout u = eps of the data type (2^-52 for float64), D = max(m, n), kappa = s_1 / s_r over the singular values kept, and norms are
spectral norms.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ParamSpec

import numpy as np

from softlinalg import _arrays
from softlinalg._typing import Array
from softlinalg.testing._builder_settings import KNOWN_TYPES
from softlinalg.testing._cases import Case, unit
from softlinalg.testing._points import AttentionCase, gaussian_values

__all__ = ["GRADES", "THRESHOLD", "attention", "forward", "kernel", "low_rank", "nystrom", "penrose", "worst"]

THRESHOLD = 30.0
"""Ratio up to which a result counts as accurate. Sound implementations stay below half of it."""

GRADES = ("S", "N")
"""Accuracy classes. "S" (decompositions): all laws in kappa. "N" (iterations): the two symmetry conditions in kappa squared."""

_LONG = 64
_P = ParamSpec("_P")


def _judged(laws: Callable[_P, dict[str, float]]) -> Callable[_P, dict[str, float]]:
    """A function whose ratios are numbers whatever is judged: NaN, from infinite over infinite, counts as infinite."""

    @functools.wraps(laws)
    def judge(*args: _P.args, **settings: _P.kwargs) -> dict[str, float]:
        with np.errstate(all="ignore"):
            found = laws(*args, **settings)
        return {name: math.inf if math.isnan(ratio) else ratio for name, ratio in found.items()}

    return judge


def worst(ratios: dict[str, float]) -> tuple[str, float]:
    """Name and ratio of the law that is met least well; ("", 0.0) for none.

    Examples
    --------
    >>> from softlinalg.testing import ratios
    >>> ratios.worst({"penrose-1": 0.2, "penrose-2": 4.0})
    ('penrose-2', 4.0)
    """
    return max(ratios.items(), key=lambda item: item[1], default=("", 0.0))


# ------------------------------------------------------------------------------------------ pseudo-inverses
@_judged
def penrose(A: Array, X: Array, case: Case | None = None, *, grade: str = "S", kappa: float | None = None) -> dict[str, float]:
    r"""Penrose's four conditions on a pseudo-inverse.

    Parameters
    ----------
    A : array, shape (..., m, n)
        Real or complex.
    X : array, shape (..., n, m)
        What is to be judged; any floating type.
    case : Case, optional
        Says the condition, and the data type whose eps is the unit. Otherwise the condition is |A| |X|, per matrix, and the type that
        of `A`.
    grade : {"S", "N"}
        "N" measures the third and fourth condition in kappa^2.
    kappa : float, optional
        The condition, if it is known in another way.

    Returns
    -------
    dict
        "AXA = A": |AXA - A| / (u D kappa |A|); "XAX = X": |XAX - X| / (u D kappa |X|); "AX Hermitian": |AX - (AX)^H| / (u D kappa);
        "XA Hermitian" likewise: the largest over the batch. For A = 0 all four are |X| / (u D), zero if X is.

    Notes
    -----
    A and X are scaled by opposite powers of two, so that products of them neither overflow nor underflow.

    References
    ----------
    .. [1] Anderson et al., LAPACK Users' Guide (1999), section on test ratios; Penrose (1955).

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_matrix, ratios
    >>> case = build_matrix(shape=(5, 3), cond=1e4)
    >>> found = ratios.penrose(case.A, np.linalg.pinv(case.A), case)
    >>> max(found.values()) < ratios.THRESHOLD
    True
    """
    names = ("AXA = A", "XAX = X", "AX Hermitian", "XA Hermitian")
    a, x = _host(A), _host(X)
    if a.ndim < 2 or x.shape != (*a.shape[:-2], a.shape[-1], a.shape[-2]) or not _finite(x):
        return dict.fromkeys(names, math.inf)
    u = unit(case.dtype if case is not None else _arrays.dtype_name(A.dtype))
    known = kappa if kappa is not None else (case.kappa if case is not None else None)
    ratios = np.zeros(4)
    for index in np.ndindex(*a.shape[:-2]):
        ratios = np.maximum(ratios, _penrose_of(a[index], x[index], u, known, grade))
    return dict(zip(names, map(float, ratios), strict=True))


def _penrose_of(a: np.ndarray[Any, Any], x: np.ndarray[Any, Any], u: float, kappa: float | None, grade: str) -> np.ndarray[Any, Any]:
    if a.size == 0:
        return np.zeros(4)
    a, x = _scaled_pair(a, x)
    if not a.any():
        return np.full(4, _norm(x) / (u * max(a.shape)))
    ax, xa = a @ x, x @ a
    size_a, size_x = _norm(a), _norm(x)
    if not math.isfinite(size_x):
        return np.full(4, math.inf)
    base = u * max(a.shape) * max(1.0, kappa if kappa is not None else size_a * size_x)
    square = base * (max(1.0, kappa if kappa is not None else size_a * size_x) if grade == "N" else 1.0)
    return np.array(
        [
            _norm(ax @ a - a) / (base * size_a),
            _norm(xa @ x - x) / (base * size_x) if base * size_x > 0 else math.inf,
            _norm(ax - ax.conj().T) / square,
            _norm(xa - xa.conj().T) / square,
        ]
    )


@_judged
def forward(A: Array, X: Array, case: Case) -> dict[str, float]:
    r"""Distance to the true pseudo-inverse, which the case knows.

    Parameters
    ----------
    A : array, shape (..., m, n)
        That of the case (in any layout).
    X : array, shape (..., n, m)
    case : Case

    Returns
    -------
    dict
        "X = A^+": |X - A^+| / (u D kappa |A^+|), the largest over the batch. The truth is exact to 1e-3 of a unit or better, see
        `Case.pinv`; where the rank is exact only up to rounding (`case.exact` is false and rank < min(m, n)) it is the pseudo-inverse
        of the nearest matrix of that rank.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_matrix, ratios
    >>> case = build_matrix(shape=(5, 3), cond=1e4)
    >>> found = ratios.forward(case.A, np.linalg.pinv(case.A), case)
    >>> max(found.values()) < ratios.THRESHOLD
    True
    """
    name = "X = A^+"
    x, truth = _host(X), case.pinv
    if x.shape != truth.shape or tuple(A.shape) != tuple(case.A.shape) or not _finite(x):
        return {name: math.inf}
    ratio = 0.0
    for index in np.ndindex(*x.shape[:-2]):
        if truth[index].size == 0:
            continue
        exponent = _exponent(truth[index])
        expected, got = _scaled(truth[index], -exponent), _scaled(x[index], -exponent)
        size = _norm(expected) or 1.0
        if not expected.any():  # nothing to compare the size with: any number at all is an error in units of itself
            ratio = max(ratio, math.inf if got.any() else 0.0)
            continue
        ratio = max(ratio, _norm(got - expected) / (case.u * max(case.shape) * case.kappa * size))
    return {name: ratio}


# -------------------------------------------------------------------------------------------------- kernels
@_judged
def kernel(K: Array, x: Array, y: Array | None = None, *, length_scale: float | None = 1.0, dtype: str | None = None) -> dict[str, float]:
    r"""Laws of a Gaussian kernel matrix, or of any kernel with values in [0, 1] and ones on its diagonal.

    Parameters
    ----------
    K : array, shape (..., n, m)
        Kernel matrix between `x` and `y`; what is to be judged.
    x : array, shape (..., n, d)
    y : array, shape (..., m, d), optional
        None: K is that of `x` with itself, and has to be symmetric, positive semi-definite and one on its diagonal.
    length_scale : float or None, default 1.0
        Of exp(-|x - y|^2 / (2 l^2)); None for another kernel, whose values are not compared.
    dtype : str, optional
        Type whose eps is the unit. Default: that of `K`.

    Returns
    -------
    dict
        "0 <= K <= 1": how far outside, in u. "values": max |K - truth| / (u (truth (d + t) + d)), t the exponent, where `length_scale`
        is given. Without `y` also "symmetric": max |K - K^T| / (4 u); "diagonal": infinite unless it is exactly one; "psd":
        -lambda_min / (n u).

    Notes
    -----
    "values" is an absolute error of d u plus a relative one of (d + t) u: what centered distances by one matrix product keep for points
    within a few length scales. Kernel values below the normal range may be zero.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import ratios
    >>> from softlinalg import gaussian_kernel
    >>> x = np.random.default_rng(0).normal(size=(6, 2))
    >>> max(ratios.kernel(gaussian_kernel(x), x).values()) < ratios.THRESHOLD
    True
    """
    k, a = _host(K), _host(x).astype(np.float64)
    b = a if y is None else _host(y).astype(np.float64)
    laws = ["0 <= K <= 1", *(["values"] if length_scale is not None else []), *(["symmetric", "diagonal", "psd"] if y is None else [])]
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    if k.shape != (*batch, a.shape[-2], b.shape[-2]) or not _finite(k) or np.iscomplexobj(k):
        return dict.fromkeys(laws, math.inf)
    u, k = unit(dtype) if dtype else _unit_of(K), k.astype(np.float64)
    out = {"0 <= K <= 1": max(0.0, _peak(-k), _peak(k - 1)) / u}
    if length_scale is not None:
        truth = gaussian_values(a, b, length_scale)
        with np.errstate(all="ignore"):
            exponent = np.where(truth > 0, -np.log(np.where(truth > 0, truth, 1)), 0)
        d = a.shape[-1]
        out["values"] = _peak(np.abs(k - truth) / (u * (truth * (d + exponent) + d)))
    if y is None:
        out["symmetric"] = _peak(np.abs(k - np.swapaxes(k, -1, -2))) / (4 * u)
        out["diagonal"] = 0.0 if np.all(np.diagonal(k, axis1=-2, axis2=-1) == 1) else math.inf
        out["psd"] = _negative_part(k) / (max(1, k.shape[-1]) * u)
    return out


@_judged
def psd(K: Array, *, kappa: float = 1.0, dtype: str | None = None) -> dict[str, float]:
    """How far a Hermitian matrix is from being positive semi-definite.

    Parameters
    ----------
    K : array, shape (..., n, n)
    kappa : float, default 1.0
        Condition of whatever it was computed from.
    dtype : str, optional
        Type whose eps is the unit. Default: that of `K`.

    Returns
    -------
    dict
        "Hermitian": |K - K^H| / (4 u kappa |K|); "psd": -lambda_min / (n u kappa |K|).
    """
    k = _host(K)
    if k.ndim < 2 or k.shape[-1] != k.shape[-2] or not _finite(k):
        return {"Hermitian": math.inf, "psd": math.inf}
    u = (unit(dtype) if dtype else _unit_of(K)) * kappa
    out = np.zeros(2)
    for index in np.ndindex(*k.shape[:-2]):
        member = _scaled(k[index], -_exponent(k[index]))
        size = _norm(member)
        if size:
            asymmetry = _norm(member - member.conj().T) / (4 * u * size)
            out = np.maximum(out, [asymmetry, _negative_part(member) / (u * member.shape[-1] * size)])
    return {"Hermitian": float(out[0]), "psd": float(out[1])}


# ------------------------------------------------------------------------------------------- approximations
@_judged
def nystrom(
    K: Array, K_hat: Array, *, kappa: float = 1.0, cut: float = 0.0, rank: int | None = None, dtype: str | None = None
) -> dict[str, float]:
    r"""Laws of a Nystrom approximation: between zero and K in the Loewner order, of the rank promised.

    Parameters
    ----------
    K : array, shape (n, n)
        The kernel matrix, positive semi-definite.
    K_hat : array, shape (n, n)
        Its approximation, as a dense matrix.
    kappa : float, default 1.0
        Condition of the landmarks' kernel matrix over the eigenvalues kept.
    cut : float, default 0.0
        Part of |K| that the method says it drops.
    rank : int, optional
        Largest rank allowed (the number of landmarks).
    dtype : str, optional
        Type whose eps is the unit. Default: that of `K_hat`.

    Returns
    -------
    dict
        In units of n u kappa |K| + cut |K|: "symmetric": |K_hat - K_hat^T|; "K_hat >= 0": -lambda_min(K_hat); "K_hat <= K":
        -lambda_min(K - K_hat); "diagonal": max(diag K_hat - diag K); "rank": the singular value after the last one allowed.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import ratios
    >>> k = np.ones((3, 3))
    >>> max(ratios.nystrom(k, k, rank=1).values()) < ratios.THRESHOLD
    True
    """
    names = ["symmetric", "K_hat >= 0", "K_hat <= K", "diagonal", *(["rank"] if rank is not None else [])]
    k, approximation = _host(K).astype(np.float64), _host(K_hat)
    if approximation.shape != k.shape or k.ndim != 2 or not _finite(approximation) or np.iscomplexobj(approximation):
        return dict.fromkeys(names, math.inf)
    approximation = approximation.astype(np.float64)
    exponent = _exponent(k)
    k, approximation = _scaled(k, -exponent), _scaled(approximation, -exponent)
    u = unit(dtype) if dtype else _unit_of(K_hat)
    scale = _norm(k) * (u * max(1, k.shape[-1]) * kappa + cut) or u
    out = {
        "symmetric": _norm(approximation - approximation.T) / scale,
        "K_hat >= 0": _negative_part(approximation) / scale,
        "K_hat <= K": _negative_part(k - approximation) / scale,
        "diagonal": max(0.0, _peak(np.diagonal(approximation) - np.diagonal(k))) / scale,
    }
    if rank is not None:
        out["rank"] = _after(approximation, rank) / scale
    return out


@_judged
def low_rank(
    A: Array, A_hat: Array, *, rank: int, factor: float = 1.0, norm: str = "fro", psd: bool = False, dtype: str | None = None
) -> dict[str, float]:
    r"""An approximation of a given rank against the best one (Eckart & Young).

    Parameters
    ----------
    A, A_hat : array, shape (..., m, n)
    rank : int
        k.
    factor : float, default 1.0
        How many times the smallest possible error is allowed.
    norm : {"fro", "2", "nuclear"}
        Norm of the error.
    psd : bool, default False
        `A` is positive semi-definite and the approximation has to lie between 0 and A in the Loewner order.
    dtype : str, optional
        Type whose eps is the unit. Default: that of `A_hat`.

    Returns
    -------
    dict
        In units of D u |A| (times sqrt(D) in the Frobenius norm, D in the nuclear): "error": |A - A_hat| - factor x the best, where that is
        positive; "rank": singular value k + 1 of `A_hat`; with `psd` also "A_hat >= 0" and "A_hat <= A".

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import ratios
    >>> a = np.diag([3.0, 2.0, 1.0])
    >>> max(ratios.low_rank(a, np.diag([3.0, 2.0, 0.0]), rank=2).values()) < ratios.THRESHOLD
    True
    """
    names = ["error", "rank", *(["A_hat >= 0", "A_hat <= A"] if psd else [])]
    a, approximation = _host(A), _host(A_hat)
    if approximation.shape != a.shape or a.ndim < 2 or not _finite(approximation):
        return dict.fromkeys(names, math.inf)
    u, size = unit(dtype) if dtype else _unit_of(A_hat), max(*a.shape[-2:], 1)
    out = dict.fromkeys(names, 0.0)
    for index in np.ndindex(*a.shape[:-2]):
        exponent = _exponent(a[index])
        exact, got = _scaled(a[index], -exponent), _scaled(approximation[index], -exponent)
        base = u * size * (_norm(exact) or 1.0)
        best = _norm_of_values(np.linalg.svd(_narrow(exact), compute_uv=False)[rank:], norm)
        error = _norm_of_values(np.linalg.svd(_narrow(got - exact), compute_uv=False), norm)
        allowance = base * {"2": 1.0, "fro": math.sqrt(size), "nuclear": float(size)}[norm]
        out["error"] = max(out["error"], (error - factor * best) / allowance)
        out["rank"] = max(out["rank"], _after(got, rank) / base)
        if psd:
            out["A_hat >= 0"] = max(out["A_hat >= 0"], _negative_part(got) / base)
            out["A_hat <= A"] = max(out["A_hat <= A"], _negative_part(exact - got) / base)
    return out


# ------------------------------------------------------------------------------------------------ attention
@_judged
def attention(
    out: Array, expected: Array, *, reference: Array | None = None, case: AttentionCase | None = None, kappa: float = 1.0,
    terms: int | None = None, factor: float = 2.0, dtype: str | None = None,
) -> dict[str, float]:  # fmt: skip
    r"""An attention's output against the truth, and against a plain computation in the same precision.

    Parameters
    ----------
    out : array, shape (..., n, e)
        What is to be judged.
    expected : array, shape (..., n, e)
        The truth, from float64 or better.
    reference : array, shape (..., n, e), optional
        A plain computation in the data type of `out`: its error, times `factor`, is allowed beside rounding.
    case : AttentionCase, optional
        Says the data type and the number of keys.
    kappa : float, default 1.0
        Condition of what is inverted.
    terms : int, optional
        Number of keys that are summed over. Default from `case`, else that of the rows of `out`.
    factor : float, default 2.0
    dtype : str, optional

    Returns
    -------
    dict
        "output": max |out - expected| / (u terms kappa max |expected| + factor max |reference - expected| / 30).

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import ratios
    >>> expected = np.ones((4, 2))
    >>> max(ratios.attention(expected, expected).values())
    0.0
    """
    got, truth = _host(out), _host(expected).astype(np.float64)
    if got.shape != truth.shape or not _finite(got) or np.iscomplexobj(got):
        return {"output": math.inf}
    known = dtype or (case.dtype if case is not None else None)
    u = unit(known) if known else _unit_of(out)
    count = terms or (int(case.v.shape[-2]) if case is not None else max(1, truth.shape[-2]))
    scale = u * count * kappa * (_peak(np.abs(truth)) or 1.0)
    if reference is not None:
        scale += factor * _peak(np.abs(_host(reference).astype(np.float64) - truth)) / THRESHOLD
    return {"output": _peak(np.abs(got.astype(np.float64) - truth)) / scale}


# --------------------------------------------------------------------------------------------------- pieces
def _host(x: Any) -> np.ndarray[Any, Any]:
    """A NumPy array of native bytes, whatever came; one that holds no numbers becomes an array without entries of shape (0,)."""
    try:
        host = np.asarray(_arrays.to_numpy(x))
    except Exception:  # a result that is no array at all fails every law; the laws are not the place to raise
        return np.empty(0)
    if host.dtype.kind in "iub":
        return host.astype(np.float64)
    return host if host.dtype.kind in "fc" else np.empty(0)


def _unit_of(x: Any) -> float:
    """eps of the type of a result; that of float64 for results that hold integers, or are no arrays."""
    name = _arrays.dtype_name(x.dtype) if hasattr(x, "dtype") else ""
    return unit(name if name in KNOWN_TYPES else "float64")


def _finite(x: np.ndarray[Any, Any]) -> bool:
    return bool(np.all(np.isfinite(x)))


def _wide(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    long = max(a.shape, default=0) <= _LONG
    if np.iscomplexobj(a):
        return a.astype(np.clongdouble if long and a.dtype.itemsize > 8 else np.complex128)
    return a.astype(np.longdouble if long and a.dtype.itemsize > 4 else np.float64)


def _narrow(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)


def _exponent(a: np.ndarray[Any, Any]) -> int:
    """Power of two just above the largest finite entry; 0 for zero."""
    with np.errstate(all="ignore"):
        size = np.maximum(np.abs(a.real), np.abs(a.imag)) if np.iscomplexobj(a) else np.abs(a)
    largest = _peak(np.where(np.isfinite(size), size, 0))
    return int(np.frexp(largest)[1]) if largest > 0 else 0


def _scaled(a: np.ndarray[Any, Any], exponent: int) -> np.ndarray[Any, Any]:
    """A * 2**exponent in the wide type; infinite where it overflows."""
    wide = _wide(a)
    with np.errstate(all="ignore"):
        if np.iscomplexobj(wide):
            wide.real, wide.imag = np.ldexp(wide.real, exponent), np.ldexp(wide.imag, exponent)
            return wide
        return np.asarray(np.ldexp(wide, exponent))


def _scaled_pair(a: np.ndarray[Any, Any], x: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    exponent = _exponent(a)
    both = np.result_type(_wide(a), _wide(x))
    return _scaled(a, -exponent).astype(both), _scaled(x, exponent).astype(both)


def _norm(a: np.ndarray[Any, Any]) -> float:
    """Spectral norm; infinite where an entry is not finite."""
    if a.size == 0:
        return 0.0
    exponent = _exponent(a)
    with np.errstate(all="ignore"):
        narrow = _narrow(_scaled(a, -exponent))
        if not _finite(narrow):
            return math.inf
        return float(np.ldexp(np.linalg.svd(narrow, compute_uv=False)[0], exponent))


def _norm_of_values(s: np.ndarray[Any, Any], norm: str) -> float:
    if s.size == 0:
        return 0.0
    if not 0 < s[0] < math.inf:
        return float(s[0])
    relative = s / s[0]
    return float(s[0] * {"2": 1.0, "fro": np.sqrt(np.sum(relative * relative)), "nuclear": np.sum(relative)}[norm])


def _after(a: np.ndarray[Any, Any], rank: int) -> float:
    exponent = _exponent(a)
    s = np.linalg.svd(_narrow(_scaled(a, -exponent)), compute_uv=False)
    return float(np.ldexp(s[rank], exponent)) if rank < s.size else 0.0


def _negative_part(a: np.ndarray[Any, Any]) -> float:
    """max(0, -lambda_min) of the Hermitian part, the largest over a batch."""
    if a.size == 0:
        return 0.0
    if not _finite(a):
        return math.inf
    exponent = _exponent(a)
    narrow = _narrow(_scaled(a, -exponent))
    smallest = np.min(np.linalg.eigvalsh((narrow + np.swapaxes(narrow, -1, -2).conj()) / 2))
    return max(0.0, float(np.ldexp(-smallest, exponent)))


def _peak(a: np.ndarray[Any, Any]) -> float:
    return float(np.max(a, initial=-math.inf)) if a.size else 0.0
