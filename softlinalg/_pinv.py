"""Moore-Penrose pseudo-inverse with a certified rank and error: choose, iterate, certify, fall back; its vjp and jvp.

The ridge inverse stands in `_ridge_inverse.py`, the published fixed-step iteration in `_newton_pinv.py`; all are
offered from here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from softlinalg import _arrays, _certificates, _inputs, _inversion, _iterations, _linalg, _norm_bounds
from softlinalg._inversion import Attempt, CertifiedInverse, CertifiedPinv, InverseMethod, Outcome, Settings
from softlinalg._newton_pinv import NewtonPinv, newton_pinv, newton_pinv_jvp, newton_pinv_vjp
from softlinalg._ridge_inverse import (
    certified_ridge_inverse,
    ridge_inverse,
    ridge_inverse_jvp,
    ridge_inverse_vjp,
)
from softlinalg._settings import flag
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError, ShapeError

__all__ = [
    "CertifiedInverse",
    "CertifiedPinv",
    "InverseMethod",
    "NewtonPinv",
    "certified_pinv",
    "certified_ridge_inverse",
    "newton_pinv",
    "newton_pinv_jvp",
    "newton_pinv_vjp",
    "pinv",
    "pinv_jvp",
    "pinv_vjp",
    "ridge_inverse",
    "ridge_inverse_jvp",
    "ridge_inverse_vjp",
]

_METHODS = ("svd", "eigh", "newton", "chebyshev")
_ITERATIONS = (InverseMethod.newton, InverseMethod.chebyshev)


class _Problem(NamedTuple):
    """A batch of matrices in the wide type, largest entry in [1, 2)."""

    a: Array
    """(N, m, n)."""


def pinv(
    a: Array,
    *,
    rtol: float | None = None,
    tol: float | None = None,
    hermitian: bool = False,
    method: str = "auto",
    on_failure: str = "fallback",
    check_finite: bool = True,
) -> Array:
    r"""Moore-Penrose pseudo-inverse, checked against a rigorous error bound.

    Parameters
    ----------
    a : array, shape (..., m, n)
        Real or complex, any rank.
    rtol : float, optional
        Singular values at or below rtol times the largest count as zero. Default max(m, n) eps of the data type of `a`;
        for the iterations max(m, n) sqrt(eps), below which they resolve nothing: asking for less is refused.
    tol : float, optional
        Relative error in the spectral norm that must be certified. Default 1e-3 below float64, 1e-6 in float64.
    hermitian : bool, default False
        `a` is Hermitian: eigenvalues instead of singular values, in about a third of the time.
    method : {"auto", "svd", "eigh", "newton", "chebyshev"}
        "auto" is "eigh" for `hermitian`, else "svd". "newton" (Ben-Israel & Cohen) and "chebyshev" (Pan & Schreiber) use
        matrix products only; their cut at `rtol` is smooth, so they need a gap there, else they fall back.
    on_failure : {"fallback", "raise", "warn"}
        For matrices that are not certified: the decomposition for those alone, and a warning if that fails too; raise
        ConvergenceError; or warn.
    check_finite : bool, default True
        Refuse NaN and infinity. False: members that hold them come out as NaN, the others untouched.

    Returns
    -------
    array, shape (..., n, m)
        Data type and device of `a`; exactly Hermitian where `hermitian`. Zero for a zero matrix. In traced code members
        without a certificate are NaN.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError, BackendMismatchError
        Bad arguments.
    InputError
        `hermitian` and max |A - A^H| > 30 m eps max |A|.
    ConvergenceError
        Not certified and `on_failure` is "raise".
    RangeError
        The result overflows the data type.

    Warns
    -----
    RankWarning
        No certain rank: the singular values have no gap at the cut-off, so the pseudo-inverse is ill-posed there.
    ConvergenceWarning
        The rank is certain, but the error is not certified to `tol`.

    See Also
    --------
    certified_pinv : the same with rank, error bound and backward error of each matrix.

    Notes
    -----
    The decompositions run in float64 where the device has it. Accuracy classes: "svd" and "eigh" meet all four Penrose
    conditions to a multiple of eps times the condition number; the iterations meet the two symmetry conditions to a
    multiple of eps times its square, and where the rank is deficient to the certified error: rounding in the null space
    grows until the cut-off is resolved. What is certified is the distance to the pseudo-inverse of the nearest matrix of
    the certified rank (docs/theory/certificates.md, theorems C2 and C3): the distance to A^+ itself cannot be bounded
    where the rank is uncertain.

    References
    ----------
    .. [1] Penrose, A generalized inverse for matrices (1955).
    .. [2] Ben-Israel & Cohen, On iterative computation of generalized inverses and associated projections (1966).
    .. [3] Pan & Schreiber, An improved Newton iteration for the generalized inverse of a matrix (1991).

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> softlinalg.pinv(np.ones((2, 3)))
    array([[0.16666667, 0.16666667],
           [0.16666667, 0.16666667],
           [0.16666667, 0.16666667]])
    """
    return _run("pinv", a, rtol, tol, hermitian, method, on_failure, check_finite, tight=False).value


def certified_pinv(
    a: Array,
    *,
    rtol: float | None = None,
    tol: float | None = None,
    hermitian: bool = False,
    method: str = "auto",
    on_failure: str = "fallback",
    check_finite: bool = True,
) -> CertifiedPinv:
    r"""`pinv` with the guarantee of each matrix, evaluated as closely as possible.

    Parameters
    ----------
    a, rtol, tol, hermitian, method, on_failure, check_finite
        As in `pinv`. With "fallback" nothing is warned: the fields say it.

    Returns
    -------
    CertifiedPinv
        `value` and, per matrix, `converged`, `steps`, `residual`, `error_bound`, `rank`, `method`, `backward_error`.
        Where `rank` is r >= 0: s_{r+1}(A) <= backward_error < s_r(A), and |value - A_r^+|_2 <= error_bound, A_r the
        nearest matrix of rank r, A itself if its rank is r. Where it is -1 nothing is claimed.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError, BackendMismatchError, InputError, ConvergenceError, RangeError
        As in `pinv`.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> result = softlinalg.certified_pinv(np.ones((2, 3)))
    >>> int(result.rank), bool(result.error_bound < 1e-14)
    (1, True)
    """
    return _run("certified_pinv", a, rtol, tol, hermitian, method, on_failure, check_finite, tight=True)


def _run(
    func: str,
    a: Array,
    rtol: float | None,
    tol: float | None,
    hermitian: bool,
    method: str,
    on_failure: str,
    check_finite: bool,
    *,
    tight: bool,
) -> CertifiedPinv:
    """Both public functions."""
    xp, (a,), dtype = _inputs.prepare(func, {"a": a}, allow_complex=True)
    if a.ndim < 2:
        message = f"{func}: a must have shape (..., m, n); got {tuple(a.shape)}. Pass matrices."
        raise ShapeError(message)
    home, (a,), xp = _arrays.in_numpy(a, xp=xp)
    settings = _inversion.check_settings(func, method=method, methods=_METHODS, tol=tol, on_failure=on_failure, dtype=dtype, tight=tight)
    hermitian = flag(hermitian, func=func, name="hermitian")
    check_finite = flag(check_finite, func=func, name="check_finite")
    order = _method_order(func, method, hermitian)
    batch, (m, n) = tuple(a.shape[:-2]), a.shape[-2:]
    cut = _cut_off(func, rtol, max(m, n), dtype, order[0])
    if hermitian:
        _inputs.check_square(a, func=func, name="a")
    if check_finite:
        _inputs.check_finite(a, func=func, name="a", xp=xp)
    if m == 0 or n == 0:
        return _inversion.brought_home(_empty(a, batch, xp=xp), home)
    flat, sound = _inversion.flatten(a, xp=xp), None
    if not check_finite or _arrays.is_traced(a):
        flat, sound = _inversion.blank_non_finite(flat, xp=xp)
    if hermitian:
        _inversion.check_hermitian(func, flat, xp=xp)
    wide = _arrays.wide_dtype(a, xp=xp)
    scaled, exponent = _linalg.power_of_two_scale(xp.astype(flat, wide), xp=xp)
    problem = _Problem(scaled)

    def select(members: Any) -> _Problem:
        return problem if members is None else _Problem(_arrays.take_rows(problem.a, members, xp=xp))

    def attempt(way: InverseMethod, part: _Problem) -> Attempt:
        # A fallback cuts where the standard does, not at the coarse resolution of the iteration.
        own_cut = cut if way == order[0] or rtol is not None else _cut_off(func, None, max(m, n), dtype, way)
        return _attempt(way, part.a, own_cut, _arrays.compute_dtype(dtype, xp=xp), settings, xp=xp)

    def certify(part: _Problem, tried: Attempt, way: InverseMethod) -> Outcome:
        return _certify(part.a, tried, way, narrow=_arrays.eps(dtype) > _arrays.eps(wide), settings=settings, xp=xp)

    with _arrays.quiet(a):
        outcome = _inversion.solve(flat, order, attempt, certify, select, settings=settings, xp=xp)
        return _inversion.finish(CertifiedPinv, outcome, exponent, sound, batch, dtype, problem.a, settings, home=home, xp=xp)


def _method_order(func: str, method: str, hermitian: bool) -> tuple[InverseMethod, ...]:
    """First choice and fallbacks."""
    direct = InverseMethod.eigh if hermitian else InverseMethod.svd
    if method == "auto":
        return (direct,) if direct == InverseMethod.svd else (direct, InverseMethod.svd)
    chosen = InverseMethod[method]
    if chosen == InverseMethod.eigh and not hermitian:
        message = f"{func}: method 'eigh' must go with hermitian=True; got hermitian=False. Use method='svd'."
        raise ParameterError(message)
    return (chosen, direct) if chosen in _ITERATIONS else (chosen,)


def _cut_off(func: str, rtol: float | None, size: int, dtype: Any, method: InverseMethod) -> float:
    """Relative cut-off: the caller's if the method resolves it, else the default of the method."""
    eps = _arrays.eps(dtype) if not _arrays.is_half(dtype) else 2.0**-23
    finest = max(size, 1) * (eps**0.5 if method in _ITERATIONS else eps)
    if rtol is None:
        return min(finest, 0.5)
    cut = _inputs.real_scalar(rtol, func=func, name="rtol", strict=False, maximum=1.0)
    if method in _ITERATIONS and cut < finest:
        message = f"{func}: rtol must be >= {finest:.2g} for method '{method.name}'; got {cut:.2g}. Use method='svd'."
        raise ParameterError(message)
    return cut


def _attempt(method: InverseMethod, a: Array, cut: float, compute: Any, settings: Settings, *, xp: Namespace) -> Attempt:
    """Pseudo-inverse of scaled matrices (N, m, n) by one method."""
    largest = _linalg.largest_entry(a, xp=xp)
    direct = _inversion.integer_like(largest, 0, xp=xp)
    if method == InverseMethod.svd:
        u, s, vh = _inversion.guard_linalg(settings.func, "the singular value decomposition", lambda: xp.linalg.svd(a, full_matrices=False))
        keep = s > cut * s[..., :1]
        reciprocal = xp.where(keep, 1 / xp.where(keep, s, xp.ones_like(s)), xp.zeros_like(s))
        scaled = _linalg.adjoint(vh, xp=xp) * xp.astype(reciprocal, a.dtype)[:, None, :]
        return Attempt(scaled @ _linalg.adjoint(u, xp=xp), direct)
    if method == InverseMethod.eigh:
        half = (a + _linalg.adjoint(a, xp=xp)) / 2
        w, v = _inversion.guard_linalg(settings.func, "the eigendecomposition", lambda: xp.linalg.eigh(half))
        size = xp.abs(w)
        keep = size > cut * xp.max(size, axis=-1, keepdims=True)
        reciprocal = xp.where(keep, 1 / xp.where(keep, w, xp.ones_like(w)), xp.zeros_like(w))
        x = (v * xp.astype(reciprocal, a.dtype)[:, None, :]) @ _linalg.adjoint(v, xp=xp)
        return Attempt((x + _linalg.adjoint(x, xp=xp)) / 2, direct)
    work = xp.astype(a, compute)
    # Frozen bounds of the norm: the filter, and with it the cut, is then the same for every backend.
    hi = xp.astype(_norm_bounds.spectral_upper_bound(work, xp=xp), _arrays.real_dtype(compute, xp=xp))
    hi = xp.where(hi > 0, hi, xp.ones_like(hi))
    target = 64 * _arrays.eps(compute)  # quadratic convergence: full accuracy costs two or three steps more than `tol`
    if method == InverseMethod.chebyshev:
        steps = _iterations.chebyshev_newton_general_steps(1 / cut, target, polish=1)
        x = _iterations.chebyshev_newton_general(work, lo=cut * hi, hi=hi, steps=steps, polish=1, xp=xp)
        steps += 1
    else:
        steps = _iterations.newton_raphson_steps(1 / cut, target, start="adjoint")
        start = _iterations.adjoint_start(work, _iterations.safe_alpha(work, xp=xp), xp=xp)
        x = _iterations.newton_raphson(work, start, steps=steps, xp=xp)
    x = x @ work @ x  # zero on the null space, where rounding has grown; a smooth cut around `cut` elsewhere
    return Attempt(xp.astype(x, a.dtype), direct + steps)


def _certify(a: Array, tried: Attempt, way: InverseMethod, *, narrow: bool, settings: Settings, xp: Namespace) -> Outcome:
    """Apply theorems C2 and C3."""
    slices = (2 if narrow else 3) if settings.tight else (1 if narrow else 2)
    if _arrays.is_traced(a):
        slices = 1  # compilers may reorder the sums on which the finer evaluation stands
    certificate = _certificates.certify_pinv(a, tried.value, slices=slices, xp=xp)
    longest = xp.sqrt(xp.max(xp.sum(xp.abs(tried.value) ** 2, axis=-2), axis=-1))  # lower bound of |X|_2
    certain = (certificate.rank >= 0) & (certificate.error_bound < float("inf"))
    converged = certain & (certificate.error_bound <= settings.tol * (longest - certificate.error_bound))
    converged = converged | (certain & (certificate.rank == 0))
    code = xp.full_like(certificate.rank, int(way))
    return Outcome(
        tried.value,
        tried.steps,
        certificate.residual,
        certificate.error_bound,
        certificate.rank,
        certificate.backward_error,
        converged,
        code,
    )


def _empty(a: Array, batch: tuple[int, ...], *, xp: Namespace) -> CertifiedPinv:
    """The pseudo-inverse of a matrix without rows or columns has none either; its rank, 0, is certain."""
    value = _arrays.zeros_like_shape((*batch, a.shape[-1], a.shape[-2]), a, xp=xp)
    real = _arrays.real_dtype(_arrays.wide_dtype(a, xp=xp), xp=xp)
    zero = _arrays.zeros_like_shape(batch, a, xp=xp, dtype=real)
    integer = xp.astype(zero, _inversion.integer_dtype(a, xp=xp))
    return CertifiedPinv(value, zero == 0, integer, zero, zero, integer, integer, zero)


# ------------------------------------------------------------------------------------------------ derivatives
def pinv_vjp(a: Array, value: Array, cotangent: Array) -> Array:
    r"""Gradient of a scalar through X = A^+, where the rank of A is locally constant.

    Parameters
    ----------
    a : array, shape (..., m, n)
    value : array, shape (..., n, m)
        X, as `pinv` returned it.
    cotangent : array, shape (..., n, m)
        G, the gradient of the scalar with respect to X.

    Returns
    -------
    array, shape (..., m, n)
        -X^H G X^H + (I - A X) G^H X X^H + X^H X G^H (I - X A).

    Notes
    -----
    The gradient exists only along perturbations that keep the rank; the pseudo-inverse jumps elsewhere. The first term
    alone, -X^H G X^H, is the published rule of SOFT: right only where A is square and nonsingular (a cosine of -1 with
    the true gradient was measured at rank 40 of 49). Error of the order of the condition number cubed times eps.

    References
    ----------
    .. [1] Golub & Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
       separate (1973), eq. 4.12.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> a = np.array([[2.0], [0.0]])
    >>> softlinalg.pinv_vjp(a, softlinalg.pinv(a), np.array([[1.0, 1.0]]))
    array([[-0.25],
           [ 0.25]])
    """
    names = {"a": a, "value": value, "cotangent": cotangent}
    xp, (a, value, cotangent), dtype = _inputs.prepare("pinv_vjp", names, allow_complex=True)
    _check_pair("pinv_vjp", a, value, cotangent, "cotangent")
    work = _arrays.compute_dtype(dtype, xp=xp)
    a, x, g = xp.astype(a, work), xp.astype(value, work), xp.astype(cotangent, work)
    xh, gh = _linalg.adjoint(x, xp=xp), _linalg.adjoint(g, xp=xp)
    with _arrays.quiet(a):
        ghx = gh @ x  # (..., m, m)
        xgh = x @ gh  # (..., n, n)
        gradient = -(xh @ g @ xh)
        gradient = gradient + (ghx - a @ (x @ ghx)) @ xh + xh @ (xgh - (xgh @ x) @ a)
    return xp.astype(gradient, dtype)


def pinv_jvp(a: Array, value: Array, tangent: Array) -> Array:
    r"""Directional derivative of X = A^+ along dA, where the rank of A + t dA is constant.

    Parameters
    ----------
    a : array, shape (..., m, n)
    value : array, shape (..., n, m)
        X, as `pinv` returned it.
    tangent : array, shape (..., m, n)
        dA.

    Returns
    -------
    array, shape (..., n, m)
        -X dA X + X X^H dA^H (I - A X) + (I - X A) dA^H X^H X.

    References
    ----------
    .. [1] Golub & Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
       separate (1973), eq. 4.12.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> a = np.array([[2.0], [0.0]])
    >>> softlinalg.pinv_jvp(a, softlinalg.pinv(a), np.array([[1.0], [0.0]]))
    array([[-0.25,  0.  ]])
    """
    xp, (a, value, tangent), dtype = _inputs.prepare("pinv_jvp", {"a": a, "value": value, "tangent": tangent}, allow_complex=True)
    _check_pair("pinv_jvp", a, value, _linalg.adjoint(tangent, xp=xp) if tangent.ndim >= 2 else tangent, "tangent")
    work = _arrays.compute_dtype(dtype, xp=xp)
    a, x, da = xp.astype(a, work), xp.astype(value, work), xp.astype(tangent, work)
    xh, dah = _linalg.adjoint(x, xp=xp), _linalg.adjoint(da, xp=xp)
    with _arrays.quiet(a):
        left = xh @ dah  # (..., m, m)
        right = dah @ xh  # (..., n, n)
        slope = -(x @ da @ x) + x @ (left - (left @ a) @ x) + (right - x @ (a @ right)) @ x
    return xp.astype(slope, dtype)


def _check_pair(func: str, a: Array, value: Array, other: Array, name: str) -> None:
    """A (m, n), X (n, m) and a (co)tangent that fits."""
    fits = a.ndim >= 2 and value.ndim >= 2 and other.ndim >= 2
    if not fits or tuple(value.shape[-2:]) != (a.shape[-1], a.shape[-2]) or other.shape[-2:] != value.shape[-2:]:
        shapes = f"{tuple(value.shape)} and {tuple(other.shape)} (as a value)"
        message = f"{func}: value and {name} must fit a of shape {tuple(a.shape)}; got {shapes}. Pass what pinv returned."
        raise ShapeError(message)
    _inputs.check_batches(func, a=a, value=value, **{name: other})
