"""Assertions about matrices, kernels, approximations and attention, for arrays of every library, with messages that help.

Every accuracy is a ratio to eps x condition x dimension (see `softlinalg.testing.ratios`), and a failure (`AccuracyError`, an
AssertionError) says which law is broken and by how much, the worst entry, what it means, and the line that builds the case again.
Inside a hypothesis test the ratios are targets, so that the search climbs towards worse cases.

The first argument is the function under test, or its result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np

from softlinalg import _arrays, _inputs
from softlinalg._typing import Array
from softlinalg.errors import ParameterError
from softlinalg.testing import _exact, ratios
from softlinalg.testing._behavior import (
    assert_backend_parity,
    assert_batch_independent,
    assert_errors_documented,
    assert_input_unchanged,
    assert_layout_invariant,
    assert_no_worse_than,
)
from softlinalg.testing._cases import Case, case_of, unit
from softlinalg.testing._failures import AccuracyError, call, check, name_of, worst_entry
from softlinalg.testing._gradients import assert_gradient
from softlinalg.testing._points import AttentionCase, PointCase, gaussian_values
from softlinalg.testing.ratios import THRESHOLD

__all__ = [
    "AccuracyError",
    "assert_attention_matches",
    "assert_backend_parity",
    "assert_batch_independent",
    "assert_errors_documented",
    "assert_gradient",
    "assert_input_unchanged",
    "assert_inverse",
    "assert_kernel_matrix",
    "assert_layout_invariant",
    "assert_low_rank_error",
    "assert_no_worse_than",
    "assert_nystrom",
    "assert_pinv",
    "assert_psd",
    "assert_ridge_inverse",
]


def _as_case(subject: str, case: Any) -> Case:
    """A case from a case or from an array, whose spectrum is then measured."""
    if isinstance(case, Case):
        return case
    host = np.asarray(_arrays.to_numpy(case))
    if host.ndim < 2:
        message = f"{subject}: case must be a Case or an array of shape (..., m, n); got shape {host.shape}. Pass matrices."
        raise ParameterError(message)
    dtype = _arrays.dtype_name(case.dtype if hasattr(case, "dtype") else host.dtype)
    m, n = host.shape[-2:]
    measured = case_of(host, dtype=dtype if dtype != "bfloat16" else "float32", desc=f"{m}x{n} matrix of your own", code="")
    values = {name: getattr(measured, name) for name in ("s", "rank", "kappa", "desc", "code", "structure", "gap")}
    return Case(A=case, dtype=dtype, **values)


def _units(case: Any, formula: str) -> str:
    m, n = case.shape
    return f"{formula}, with u = {case.u:.3g}, D = {max(m, n)}, kappa = {case.kappa:.3g}"


# ------------------------------------------------------------------------------------------------- inverses
def assert_pinv(
    f: Callable[[Array], Array] | Array, case: Case | Array, *, grade: str = "S", threshold: float = THRESHOLD, compare: bool = True
) -> None:
    r"""A pseudo-inverse satisfies Penrose's four conditions and is near the true one.

    Parameters
    ----------
    f : function of one array, or array, shape (..., n, m)
        The function under test, called with ``case.A``; or its result.
    case : Case, or array, shape (..., m, n)
        For an array the spectrum is measured, and singular values below max(m, n) u s_1 count as zero.
    grade : {"S", "N"}, default "S"
        Accuracy class: "N" measures the symmetry conditions in kappa^2, as is due to iterations.
    threshold : float, default 30
    compare : bool, default True
        Also compare with the true pseudo-inverse. False where the rank is a matter of taste (``case.gap`` is false).

    Raises
    ------
    AccuracyError
        A condition is broken, the shape is wrong, there is NaN or infinity, or the function raised.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_pinv, build_matrix
    >>> assert_pinv(np.linalg.pinv, build_matrix(shape=(6, 4), cond=1e6))
    >>> assert_pinv(np.linalg.pinv(np.eye(3)), np.eye(3))                  # a result, and the matrix
    """
    case = _as_case("assert_pinv", case)
    x = call(f"pinv {name_of(f)}", f, case.A, case=case) if callable(f) else f
    found = ratios.penrose(case.A, x, case, grade=grade)
    if compare:
        found |= ratios.forward(case.A, x, case)

    def entry(law: str) -> str:
        shape = (*case.batch, *case.shape[::-1])
        host = _host_or_none(x, shape)
        if host is None:
            return f"result has shape {tuple(getattr(x, 'shape', ()))}, expected {shape}"
        a, wide = (part.astype(np.result_type(part, np.float64)) for part in (case.host, host))
        with np.errstate(all="ignore"):
            ax, xa = a @ wide, wide @ a
            got, expected = {
                "AXA = A": (ax @ a, a),
                "XAX = X": (xa @ wide, wide),
                "AX Hermitian": (ax, np.swapaxes(ax, -1, -2).conj()),
                "XA Hermitian": (xa, np.swapaxes(xa, -1, -2).conj()),
                "X = A^+": (wide, case.pinv if compare else wide),
            }[law]
        return f"of {law.split(' ')[0] if law != 'X = A^+' else 'X'} {worst_entry(got, expected)}"

    unit_words = _units(case, "u D kappa |.|" if grade == "S" else "u D kappa |.|, for the symmetry conditions u D kappa^2")
    check(f"pinv {name_of(f)}", found, threshold=threshold, case=case, units=unit_words, entry=entry)


def _host_or_none(x: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any] | None:
    try:
        host = np.asarray(_arrays.to_numpy(x))
    except Exception:  # no array at all
        return None
    return host if host.shape == shape and host.dtype.kind in "fciub" else None


def assert_inverse(f: Callable[[Array], Array] | Array, case: Case | Array, *, threshold: float = THRESHOLD) -> None:
    """An inverse: B X = I = X B and X = B^-1, for B = A. See `assert_ridge_inverse`.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_inverse, build_matrix
    >>> assert_inverse(np.linalg.inv, build_matrix(shape=(5, 5), cond=1e6))
    """
    _assert_inverse("inverse", f, case, 0.0, threshold)


def assert_ridge_inverse(f: Callable[[Array], Array] | Array, case: Case | Array, ridge: float, *, threshold: float = THRESHOLD) -> None:
    r"""The inverse of B = A + ridge I: |B X - I| and |X B - I| over u D |B| |X|, |X - B^-1| over u D kappa(B) |B^-1|.

    Parameters
    ----------
    f : function of one array, or array, shape (..., m, m)
        The function under test, called with ``case.A`` (bind the ridge: ``lambda a: my_inverse(a, ridge)``); or its result.
    case : Case, or array, shape (..., m, m)
    ridge : float
        B has to be nonsingular with it.
    threshold : float, default 30

    Raises
    ------
    AccuracyError

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_ridge_inverse, build_gram
    >>> assert_ridge_inverse(lambda a: np.linalg.inv(a + 0.01 * np.eye(6)), build_gram(shape=(6, 2)), 0.01)
    """
    _assert_inverse("ridge inverse", f, case, ridge, threshold)


def _assert_inverse(what: str, f: Any, case: Any, ridge: float, threshold: float) -> None:
    case = _as_case(f"assert_{what.replace(' ', '_')}", case)
    subject = f"{what} {name_of(f)}"
    x = call(subject, f, case.A, case=case) if callable(f) else f
    host = _host_or_none(x, case.host.shape)
    laws = ("BX = I", "XB = I", "X = B^-1")
    kappa = 1.0
    if host is None or not np.all(np.isfinite(host)):
        found = dict.fromkeys(laws, math.inf)
        truth = np.zeros(case.host.shape)
    else:
        found = dict.fromkeys(laws, 0.0)
        truth = np.empty(case.host.shape, dtype=np.result_type(case.host, np.float64))
        for index in np.ndindex(*case.batch):
            member, truth[index], one = _inverse_ratios(case.host[index], host[index], ridge, case.u)
            found = {law: max(found[law], value) for law, value in member.items()}
            kappa = max(kappa, one)
    units = f"u D |B| |X|, and u D kappa(B) |B^-1|, with u = {case.u:.3g}, D = {case.shape[0]}, kappa(B) = {kappa:.3g}"
    entry = worst_entry(x, truth) if host is not None else f"result has shape {tuple(getattr(x, 'shape', ()))}, expected {case.host.shape}"
    check(subject, found, threshold=threshold, case=case, units=units, entry=entry)


def _inverse_ratios(a: np.ndarray[Any, Any], x: np.ndarray[Any, Any], ridge: float, u: float) -> tuple[dict[str, float], Any, float]:
    """Ratios, the true inverse, and the condition of B = a + ridge I."""
    size = a.shape[0]
    if np.iscomplexobj(a) or size > 24:
        b = a.astype(np.clongdouble if np.iscomplexobj(a) else np.longdouble) + ridge * np.eye(size)
        truth = np.linalg.inv(b.astype(np.result_type(a, np.float64)))
        for _ in range(2):  # Newton's steps in long double
            truth = (truth + truth @ (np.eye(size) - b @ truth)).astype(b.dtype)
        truth = truth.astype(np.result_type(a, np.float64))
    else:
        fractions = _exact.fraction_matrix(a) + np.array([[Fraction(ridge) * (i == j) for j in range(size)] for i in range(size)], object)
        truth = _exact.round_fractions(_exact.rational_pinv(fractions))
        b = a.astype(np.longdouble) + np.longdouble(ridge) * np.eye(size)
    wide = x.astype(np.result_type(b.dtype, x.dtype))
    norm_b, norm_x, norm_t = (ratios._norm(part) for part in (b, wide, truth))
    eye = np.eye(size)
    base, kappa = u * max(1, size), max(1.0, norm_b * norm_t)
    scale = norm_b * norm_x
    if not base * scale > 0:  # zero, or so small that nothing can be said in units of it
        norm_x, scale = 0.0, 1.0
    found = {
        "BX = I": ratios._norm(b @ wide - eye) / (base * scale) if norm_x else math.inf,
        "XB = I": ratios._norm(wide @ b - eye) / (base * scale) if norm_x else math.inf,
        "X = B^-1": ratios._norm(wide - truth) / (base * kappa * norm_t),
    }
    return found, truth, kappa


# -------------------------------------------------------------------------------------------------- kernels
def assert_psd(K: Array, *, kappa: float = 1.0, threshold: float = THRESHOLD, case: Any = None) -> None:
    """A matrix is Hermitian and positive semi-definite up to rounding.

    Parameters
    ----------
    K : array, shape (..., n, n)
    kappa : float, default 1.0
        Condition of whatever it was computed from.
    threshold : float, default 30
        Of |K - K^H| / (4 u kappa |K|) and -lambda_min / (n u kappa |K|).
    case : object, optional
        With `desc` and `code`, for the message.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import AccuracyError, assert_psd
    >>> assert_psd(np.ones((3, 3)))
    >>> try:
    ...     assert_psd(np.diag([1.0, -0.1]))
    ... except AccuracyError as error:
    ...     print(error.property)
    psd
    """
    found = ratios.psd(K, kappa=kappa)
    host = ratios._host(K)

    def entry(law: str) -> str:
        if law == "Hermitian" and host.ndim > 1 and host.shape[-1] == host.shape[-2]:
            return worst_entry(host, np.swapaxes(host, -1, -2).conj())
        return ""

    check(
        "assert_psd",
        found,
        threshold=threshold,
        case=case,
        units=f"u = {ratios._unit_of(K):.3g} times kappa |K|",
        entry=entry,
    )


def assert_kernel_matrix(
    f: Callable[..., Array] | Array,
    points: PointCase | Array,
    y: Array | None = None,
    *,
    length_scale: float | None = 1.0,
    threshold: float = THRESHOLD,
) -> None:
    r"""A matrix of a Gaussian kernel exp(-|x - y|^2 / (2 l^2)), or of another kernel between 0 and 1.

    Parameters
    ----------
    f : function of x, or of x and y; or array, shape (..., n, m)
        Bind the length scale.
    points : PointCase, or array, shape (..., n, d)
    y : array, shape (..., m, d), optional
        Without it the matrix has to be symmetric, positive semi-definite, and exactly one on its diagonal.
    length_scale : float or None, default 1.0
        None for another kernel: values are then not compared.
    threshold : float, default 30

    Raises
    ------
    AccuracyError
        See `softlinalg.testing.ratios.kernel` for the laws and their units.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_kernel_matrix, build_points
    >>> from softlinalg import gaussian_kernel
    >>> assert_kernel_matrix(lambda x: gaussian_kernel(x, length_scale=2.0), build_points(shape=(7, 3)), length_scale=2.0)
    """
    case = points if isinstance(points, PointCase) else None
    x = points.x if isinstance(points, PointCase) else points
    subject = f"kernel {name_of(f)}"
    k = call(subject, f, *((x,) if y is None else (x, y)), case=case) if callable(f) else f
    found = ratios.kernel(k, x, y, length_scale=length_scale)

    def entry(law: str) -> str:
        host = ratios._host(k)
        if law == "symmetric" and host.ndim > 1:
            return worst_entry(host, np.swapaxes(host, -1, -2))
        left = np.asarray(_arrays.to_numpy(x), dtype=np.float64)
        right = left if y is None else np.asarray(_arrays.to_numpy(y), dtype=np.float64)
        return worst_entry(host, gaussian_values(left, right, length_scale or 1.0).astype(np.float64)) if length_scale is not None else ""

    check(subject, found, threshold=threshold, case=case, units="u (K (d + exponent) + d) for values, n u for eigenvalues", entry=entry)


# ------------------------------------------------------------------------------------------- approximations
def _dense(result: Any) -> Any:
    """A dense matrix from what approximations return: an array, factors (L, R), or an object with `to_dense`."""
    try:
        if isinstance(result, tuple | list) and len(result) == 2:
            return result[0] @ result[1]
        return result.to_dense() if hasattr(result, "to_dense") and not hasattr(result, "__dlpack__") else result
    except Exception:  # no approximation at all: every law says so
        return None


def assert_low_rank_error(
    f: Callable[[Array], Any] | Any, case: Case | Array, *, rank: int, factor: float = 1.0, norm: str = "fro", psd: bool = False,
    threshold: float = THRESHOLD,
) -> None:  # fmt: skip
    r"""An approximation of rank k has at most `factor` times the smallest possible error (Eckart & Young), and no larger rank.

    Parameters
    ----------
    f : function of one array, or its result
        The approximation: a dense array, a pair (L, R) of factors with the product L R, or an object with `to_dense`.
    case : Case, or array, shape (..., m, n)
    rank : int
    factor : float, default 1.0
        1 for a truncated SVD; 1 + a little, or what theory promises, for randomized methods.
    norm : {"fro", "2", "nuclear"}
    psd : bool, default False
        The matrix is positive semi-definite and the approximation must lie between 0 and A in the Loewner order.
    threshold : float, default 30
        Of the excess over D u |A| (times sqrt(D) in the Frobenius norm, D in the nuclear norm).

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_low_rank_error, build_matrix
    >>> def truncated(a):
    ...     u, s, vh = np.linalg.svd(a, full_matrices=False)
    ...     return (u[:, :2] * s[:2]) @ vh[:2]
    >>> assert_low_rank_error(truncated, build_matrix(shape=(6, 5)), rank=2)
    """
    case = _as_case("assert_low_rank_error", case)
    subject = f"low rank {name_of(f)}"
    approximation = _dense(call(subject, f, case.A, case=case) if callable(f) else f)
    found = ratios.low_rank(case.A, approximation, rank=rank, factor=factor, norm=norm, psd=psd, dtype=case.dtype)
    note = f"Rank {rank}, {norm} norm, allowed {factor:g} times the best."
    entry = worst_entry(approximation, case.host)
    check(subject, found, threshold=threshold, case=case, units=f"D u |A|, u = {case.u:.3g}", entry=entry, note=note)


def assert_nystrom(
    f: Callable[[Array, Array], Any] | Any, points: PointCase | Array, landmarks: Any, *, length_scale: float = 1.0, grade: str = "S",
    cut: float | None = None, threshold: float = THRESHOLD,
) -> None:  # fmt: skip
    r"""A Nystrom approximation of a Gaussian kernel matrix: 0 <= K_hat <= K, of rank m, explaining what its landmarks allow.

    Parameters
    ----------
    f : function of points (n, d) and landmarks (m, d), or its result
        The approximation: a dense array, a pair of factors, or an object with `to_dense`.
    points : PointCase, or array, shape (n, d)
    landmarks : sequence of int, or array, shape (m, d)
        Row numbers of the points, or points.
    length_scale : float, default 1.0
    grade : {"S", "N"}, default "S"
        "S": rounding is amplified by sqrt(kappa), as where a factor C W^(-1/2) is formed; "N": by kappa, as where W^-1 is. kappa is the
        condition of W over the eigenvalues that `cut` keeps.
    cut : float, optional
        Relative size of the eigenvalues of W that the method may drop. Default m u.
    threshold : float, default 30

    Raises
    ------
    AccuracyError
        Laws of `softlinalg.testing.ratios.nystrom`, and "trace": tr(K - K_hat) is above that of C W_cut^+ C^T by n units.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_nystrom
    >>> import softlinalg
    >>> x = np.random.default_rng(0).normal(size=(30, 2))
    >>> factor = softlinalg.nystrom(x, softlinalg.Gaussian(1.0), landmarks=x[:5]).features()
    >>> assert_nystrom(factor @ factor.T, x, x[:5], length_scale=1.0)
    """
    case = points if isinstance(points, PointCase) else None
    x = points.x if isinstance(points, PointCase) else points
    subject = f"nystrom {name_of(f)}"
    given = np.asarray(_arrays.to_numpy(landmarks)) if not isinstance(landmarks, tuple | list | range) else np.asarray(landmarks)
    xp, _, _ = _inputs.prepare("assert_nystrom", {"x": x})
    chosen = _arrays.take_rows(x, given, xp=xp) if given.ndim == 1 else landmarks
    approximation = _dense(call(subject, f, x, chosen, case=case) if callable(f) else f)
    host = np.asarray(_arrays.to_numpy(x), dtype=np.float64)
    base = np.asarray(_arrays.to_numpy(chosen), dtype=np.float64)
    dtype = _arrays.dtype_name(x.dtype)
    u, m = unit(dtype), base.shape[0]
    cut = m * u if cut is None else cut
    k, c, w = (gaussian_values(*pair, length_scale).astype(np.float64) for pair in ((host, host), (host, base), (base, base)))
    values, vectors = np.linalg.eigh(w)
    kept = values > max(cut, 4 * m * unit("float64")) * values[-1]
    kappa = float(values[-1] / values[kept][0])
    amplification = math.sqrt(kappa) if grade == "S" else kappa
    found = ratios.nystrom(k, approximation, kappa=amplification, rank=m, dtype=dtype)
    factor = c @ vectors[:, kept] / np.sqrt(values[kept])
    scale = u * k.shape[0] * amplification * ratios._norm(k)
    dense = _host_or_none(approximation, k.shape)
    judged = dense is not None and not np.iscomplexobj(dense) and bool(np.all(np.isfinite(dense)))
    with np.errstate(all="ignore"):
        explained = float(np.trace(dense)) if judged and dense is not None else -math.inf
    found["trace"] = max(0.0, float(np.sum(factor * factor)) - explained) / (k.shape[0] * scale)
    units = f"n u {'sqrt(kappa)' if grade == 'S' else 'kappa'} |K|, with u = {u:.3g}, n = {k.shape[0]}, kappa = {kappa:.3g}"
    check(subject, found, threshold=threshold, case=case, units=units, entry=worst_entry(approximation, factor @ factor.T))


# ------------------------------------------------------------------------------------------------ attention
def assert_attention_matches(
    f: Callable[..., Array] | Array, case: AttentionCase, *, kind: str = "gaussian", ridge: float = 0.01, scale: float | None = None,
    threshold: float = THRESHOLD,
) -> None:  # fmt: skip
    r"""An attention gives what its formula gives in long double, up to rounding.

    Parameters
    ----------
    f : function, or array, shape (..., n, e)
        Called as ``f(q, k, v)`` for "softmax" and "gaussian" (k = q in self-attention), as ``f(q, v, landmarks)`` for "soft", with the
        keyword `k` in cross-attention; with the keyword `key_padding_mask` (True where a key is absent) if the case has one.
    case : AttentionCase
    kind : {"softmax", "gaussian", "soft"}
        softmax(q k^T / scale) v; exp(-|q - k|^2 / (2 scale)) v, not normalized; C (W + ridge I)^-1 E^T v over the landmarks.
    ridge : float, default 0.01
        Of "soft".
    scale : float, optional
        Default sqrt(d).
    threshold : float, default 30
        Of `softlinalg.testing.ratios.attention`: rounding, times the condition of W + ridge I for "soft", beside twice the error of a
        plain computation in the same precision. Rows of absent queries are not compared.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_attention_matches, build_attention
    >>> import softlinalg
    >>> case = build_attention(tokens=12, features=4, landmarks=5, dtype="float64")
    >>> assert_attention_matches(lambda q, v, landmarks: softlinalg.soft_attention(q, v, landmarks), case, kind="soft")
    """
    subject = f"attention {name_of(f)}"
    settings: dict[str, Any] = {} if case.key_padding_mask is None else {"key_padding_mask": case.key_padding_mask}
    if kind == "soft":
        args: tuple[Any, ...] = (case.q, case.v, case.landmarks)
        settings |= {} if case.k is None else {"k": case.k}
    else:
        args = (case.q, case.q if case.k is None else case.k, case.v)
    out = call(subject, f, *args, case=case, **settings) if callable(f) else f
    width = math.sqrt(case.q.shape[-1]) if scale is None else scale
    truth, kappa = _attention(case, np.dtype(np.longdouble), kind, ridge, width)
    plain, _ = _attention(case, np.dtype(np.float64 if case.dtype == "float64" else np.float32), kind, ridge, width)
    host = _host_or_none(out, truth.shape)
    if host is not None and case.k is None and case.key_padding_mask is not None:
        # In self-attention an absent key is an absent query: whatever stands in its row, if it is finite.
        absent = np.asarray(_arrays.to_numpy(case.key_padding_mask)).astype(bool)[..., None]
        out = np.where(absent & np.isfinite(host), truth.astype(host.dtype), host)
    with np.errstate(all="ignore"):
        found = ratios.attention(out, truth, reference=plain, case=case, kappa=kappa)
    units = f"u keys kappa max |out|, with u = {case.u:.3g}, {case.v.shape[-2]} keys, kappa = {kappa:.3g}"
    check(subject, found, threshold=threshold, case=case, units=units, entry=worst_entry(out, truth))


def _attention(case: AttentionCase, dtype: np.dtype[Any], kind: str, ridge: float, scale: float) -> tuple[np.ndarray[Any, Any], float]:
    """The formula as it stands, in a NumPy type, and the condition of what it inverts."""
    q, v = (np.asarray(_arrays.to_numpy(x)).astype(dtype) for x in (case.q, case.v))
    k = q if case.k is None else np.asarray(_arrays.to_numpy(case.k)).astype(dtype)
    hidden = None if case.key_padding_mask is None else np.asarray(_arrays.to_numpy(case.key_padding_mask)).astype(bool)
    length = math.sqrt(scale)
    kappa = 1.0
    if kind == "softmax":
        logits = q @ np.swapaxes(k, -1, -2) / dtype.type(scale)
        if hidden is not None:
            logits = np.where(hidden[..., None, :], -np.inf, logits)
        weights = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
        return np.asarray(weights / np.sum(weights, axis=-1, keepdims=True) @ v), kappa
    if hidden is not None:
        v = np.where(hidden[..., None], 0, v)
    if kind == "gaussian":
        out = _gaussian(q, k, length) @ v
    elif kind == "soft":
        points = np.asarray(_arrays.to_numpy(case.landmarks)).astype(dtype)
        w = _gaussian(points, points, length) + dtype.type(ridge) * np.eye(points.shape[-2], dtype=dtype)
        moment = np.swapaxes(_gaussian(k, points, length), -1, -2) @ v
        narrow = w.astype(np.float64)
        s = np.linalg.svd(narrow, compute_uv=False)
        kappa = float(np.max(s[..., 0] / s[..., -1]))
        solved = np.linalg.solve(narrow, moment.astype(np.float64)).astype(dtype)
        for _ in range(2):  # refinement, in the type asked for
            solved = solved + np.linalg.solve(narrow, (moment - w @ solved).astype(np.float64)).astype(dtype)
        out = _gaussian(q, points, length) @ solved
    else:
        message = f"assert_attention_matches: kind must be 'softmax', 'gaussian' or 'soft'; got {str(kind)[:40]!r}. Pass one of these."
        raise ParameterError(message)
    return np.asarray(out), kappa


def _gaussian(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], length_scale: float) -> np.ndarray[Any, Any]:
    difference = (x[..., :, None, :] - y[..., None, :, :]) / x.dtype.type(length_scale)
    return np.asarray(np.exp(-np.sum(difference * difference, axis=-1) / 2))
