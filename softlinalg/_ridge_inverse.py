"""Inverse of A + ridge I with a certified error: choose, invert, certify, fall back; its vjp and jvp."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any, NamedTuple

import numpy as np

from softlinalg import _arrays, _certificates, _certificates_cholesky, _inputs, _inversion, _iterations, _linalg, _native, _norm_bounds
from softlinalg._inversion import Attempt, CertifiedInverse, InverseMethod, Outcome, Settings
from softlinalg._settings import flag
from softlinalg._typing import Array, Namespace
from softlinalg.errors import DTypeError, ParameterError, ShapeError

__all__ = ["certified_ridge_inverse", "inverse_and_evidence", "ridge_inverse", "ridge_inverse_jvp", "ridge_inverse_vjp"]

_METHODS = ("cholesky", "eigh", "chebyshev", "newton")
_ORDER = {
    "auto": (InverseMethod.cholesky, InverseMethod.eigh),
    "cholesky": (InverseMethod.cholesky, InverseMethod.eigh),
    "eigh": (InverseMethod.eigh,),
    "chebyshev": (InverseMethod.chebyshev, InverseMethod.cholesky, InverseMethod.eigh),
    "newton": (InverseMethod.newton, InverseMethod.cholesky, InverseMethod.eigh),
}


class _Problem(NamedTuple):
    """A batch of matrices, scaled by a power of two where their size is extreme."""

    a: Array
    """(N, m, m), in the type it came in, unless it had to be scaled."""
    b: Array
    """fl(A + ridge I), in the wide type."""
    lost: Array
    """(N, m): what rounding took from the diagonal of b."""
    ridge: Array
    """(N,)."""


def ridge_inverse(
    a: Array,
    ridge: float | Array,
    *,
    tol: float | None = None,
    method: str = "auto",
    on_failure: str = "fallback",
    check_finite: bool = True,
) -> Array:
    r"""Inverse of A + ridge I for Hermitian matrices, checked against a rigorous error bound.

    Parameters
    ----------
    a : array, shape (..., m, m)
        Hermitian, usually positive semi-definite; real or complex. Asymmetry beyond rounding is refused.
    ridge : float or array of shape (...)
        Non-negative multiple of the identity, in the units of `a`. 0 asks for the plain inverse.
    tol : float, optional
        Relative error in the spectral norm that must be certified. Default 1e-3 below float64, 1e-6 in float64; the
        direct methods deliver what their rounding allows, whatever `tol` is.
    method : {"auto", "cholesky", "eigh", "chebyshev", "newton"}
        "auto" is Cholesky, on a CPU 8 to 20 times faster than an iteration with its certificate (49 to 256 rows). "chebyshev"
        (Chebyshev-scaled Newton) and "newton" use matrix products only, in the data type of `a`, and need ridge > 0.
    on_failure : {"fallback", "raise", "warn"}
        For matrices whose error is not certified: try Cholesky, then eigh, for those alone, and warn if that fails too;
        raise ConvergenceError; or warn.
    check_finite : bool, default True
        Refuse NaN and infinity. False: members that hold them come out as NaN, the others untouched.

    Returns
    -------
    array, shape (..., m, m)
        Exactly Hermitian, data type and device of `a`. In traced code (jit, vmap, compile), where nothing can be raised,
        members without a certificate are NaN.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError, BackendMismatchError
        Bad arguments; ridge < 0 among them.
    InputError
        `a` is not Hermitian: max |A - A^H| > 30 m eps max |A|.
    ConvergenceError
        Not certified and `on_failure` is "raise", or there is no finite answer at all (a singular matrix, ridge 0).
    RangeError
        The inverse overflows the data type.

    Warns
    -----
    ConvergenceWarning
        The error is not certified to `tol`.
    PrecisionWarning
        float16 or bfloat16 input with a condition number above 1 / (30 eps).

    See Also
    --------
    certified_ridge_inverse : the same with error bound, residual and method for each matrix.

    Notes
    -----
    If rho = |I - (A + ridge I) X| < 1 then |X - (A + ridge I)^-1| <= rho |(A + ridge I)^-1|. The residual is evaluated in
    float64 where the device has it. O(m^3) time, O(m^2) memory a matrix; all matrices are inverted in float64 by the
    direct methods, whatever their type.

    References
    ----------
    .. [1] N. J. Higham, Accuracy and Stability of Numerical Algorithms (2002), chapter 14.
    .. [2] Pan & Schreiber, An improved Newton iteration for the generalized inverse of a matrix (1991).

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> a = np.ones((2, 2))
    >>> softlinalg.ridge_inverse(a, 1.0)
    array([[ 0.66666667, -0.33333333],
           [-0.33333333,  0.66666667]])
    """
    return _run("ridge_inverse", a, ridge, tol, method, on_failure, check_finite, tight=False).value


def certified_ridge_inverse(
    a: Array,
    ridge: float | Array,
    *,
    tol: float | None = None,
    method: str = "auto",
    on_failure: str = "fallback",
    check_finite: bool = True,
) -> CertifiedInverse:
    r"""`ridge_inverse` with the guarantee of each matrix, evaluated as closely as possible.

    Parameters
    ----------
    a, ridge, tol, method, on_failure, check_finite
        As in `ridge_inverse`. With "fallback" nothing is warned: the fields say it.

    Returns
    -------
    CertifiedInverse
        `value` and, per matrix, `converged`, `steps`, `residual`, `error_bound`, `rank`, `method`.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError, BackendMismatchError, InputError, ConvergenceError, RangeError
        As in `ridge_inverse`.

    Notes
    -----
    With R = I - (A + ridge I) X, B^-1 - X = X R (I - R)^-1 gives |X - B^-1| <= |X R| / (1 - |R|): usually within a factor
    of ten of the true error, and never below it (docs/theory/certificates.md, theorem C1). Costs four products more than
    the plain function.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> result = softlinalg.certified_ridge_inverse(np.ones((3, 2, 2)), 0.5)
    >>> result.converged
    array([ True,  True,  True])
    >>> bool((result.error_bound < 1e-14).all())
    True
    """
    return _run("certified_ridge_inverse", a, ridge, tol, method, on_failure, check_finite, tight=True)


def _run(
    func: str, a: Array, ridge: Any, tol: float | None, method: str, on_failure: str, check_finite: bool, *, tight: bool
) -> CertifiedInverse:
    """Both public functions."""
    is_number = isinstance(ridge, int | float | np.floating | np.integer)
    names = {"a": a} if is_number else {"a": a, "ridge": ridge}
    xp, (a, *given), _ = _inputs.prepare(func, names, allow_complex=True)
    dtype = a.dtype
    _inputs.check_square(a, func=func, name="a")
    home, (a, *given), xp = _arrays.in_numpy(a, *given, xp=xp)
    settings = _inversion.check_settings(func, method=method, methods=_METHODS, tol=tol, on_failure=on_failure, dtype=dtype, tight=tight)
    check_finite = flag(check_finite, func=func, name="check_finite")
    if check_finite:
        _inputs.check_finite(a, func=func, name="a", xp=xp)
    batch = tuple(a.shape[:-2])
    wide = _arrays.wide_dtype(a, xp=xp)
    flat, sound = _inversion.flatten(a, xp=xp), None
    if not check_finite or _arrays.is_traced(a):
        flat, sound = _inversion.blank_non_finite(flat, xp=xp)
    ridges = _ridges(func, ridge if is_number else given[0], flat, batch, method, xp=xp)
    exactly = _inversion.check_hermitian(func, flat, xp=xp)
    made = None
    if exactly and sound is None and method in ("auto", "cholesky") and not tight:
        made, certain = _cholesky_in_cache(flat, ridges, settings, xp=xp)
        if made is not None and certain:
            value = xp.reshape(made, (*batch, *made.shape[1:]))
            return _plain(value if home is None else home.bring(value))
    narrow = _arrays.eps(dtype) > _arrays.eps(wide)
    problem, exponent = _scaled(flat, ridges, wide, xp=xp)
    compute = _arrays.compute_dtype(dtype, xp=xp)

    def select(members: Any) -> _Problem:
        return problem if members is None else _Problem(*(_arrays.take_rows(field, members, xp=xp) for field in problem))

    def attempt(way: InverseMethod, part: _Problem) -> Attempt:
        if way == InverseMethod.cholesky and made is not None and not narrow and part is problem:
            return Attempt(made, _inversion.integer_like(part.ridge, 0, xp=xp))  # what the general way would compute once more
        return _attempt(way, part, compute, settings, hermitian=exactly, xp=xp)

    def certify(part: _Problem, tried: Attempt, way: InverseMethod) -> Outcome:
        return _certify(part, tried, way, narrow=narrow, settings=settings, xp=xp)

    with _arrays.quiet(a):
        outcome = _inversion.solve(flat, _ORDER[method], attempt, certify, select, settings=settings, xp=xp)
        return _inversion.finish(CertifiedInverse, outcome, exponent, sound, batch, dtype, problem.b, settings, home=home, xp=xp)


def _cholesky_in_cache(flat: Array, ridge: Array, settings: Settings, *, xp: Namespace) -> tuple[Array | None, bool]:
    """Inverses by `inverse_and_evidence`, in the type of the input, and whether all are certified by theorem C4.

    By LAPACK that is the arithmetic of the general way, bit for bit, with a third of its memory traffic. None, and False, where it does
    not apply. The general way decides for all where one member is not certified.
    """
    if flat.shape[0] == 0 or _arrays.is_half(flat.dtype) or not (_arrays.is_cpu(flat) and _arrays.may_reuse_buffers(flat, ridge)):
        return None, False
    if not _in_easy_range(flat, ridge, xp=xp):
        return None, False
    host, host_xp = _arrays.host_view(flat, xp=xp)
    host_ridge, _ = _arrays.host_view(ridge, xp=xp)
    value, joined = inverse_and_evidence(host, host_ridge, xp=host_xp)
    with _arrays.quiet(host):
        # Judged once for all: a dozen operations on a few numbers for each part would take as long as a fifth of the inverses.
        certificate = _certificates_cholesky.judge_cholesky(joined, host.shape[-1], xp=host_xp)
    limit = 1e38 if _arrays.eps(host.dtype) > 1e-10 else 1e300
    certain = bool(host_xp.all((certificate.residual <= settings.tol) & (certificate.norm < limit)))
    return _arrays.from_numpy(value, flat, xp=xp), certain


def inverse_and_evidence(host: Array, ridge: Array, *, xp: Namespace) -> tuple[Array, _certificates_cholesky.CholeskyEvidence]:
    """(A + ridge I)^-1 of NumPy matrices (N, m, m), in their type, and the evidence for the certificates.

    By compiled code where that serves, else by LAPACK, in parts of the batch that stay in the cache.
    """
    quick = None if _arrays.is_complex(host.dtype) else _native.invert(host, ridge)
    if quick is not None:
        return quick[0], _certificates_cholesky.CholeskyEvidence(*quick[1])
    wide = xp.complex128 if _arrays.is_complex(host.dtype) else xp.float64
    value = _arrays.empty_like_shape(host.shape, host, xp=xp)
    step = max(1, 2**16 // host.shape[-1] ** 2)  # 512 KiB of float64
    evidence = []
    with _arrays.quiet(host):
        for start in range(0, max(host.shape[0], 1), step):
            part = slice(start, start + step)
            b, _ = _certificates.diagonal_shift(host[part], ridge[part], dtype=wide, xp=xp)
            inverse, _ = _linalg.spd_inverse(b, xp=xp)
            evidence.append(_certificates_cholesky.cholesky_evidence(b, inverse, xp=xp))
            value[part] = inverse
    return value, _certificates_cholesky.CholeskyEvidence(*(xp.concat(field) for field in zip(*evidence, strict=True)))


def _plain(value: Array) -> CertifiedInverse:
    """A result of which only the value will be looked at."""
    return CertifiedInverse(value, *[None] * 6)


def _ridges(func: str, ridge: Any, flat: Array, batch: tuple[int, ...], method: str, *, xp: Namespace) -> Array:
    """The ridge of every matrix, shape (N,), in the wide real type; checked."""
    wide = _arrays.real_dtype(_arrays.wide_dtype(flat, xp=xp), xp=xp)
    needs_positive = method in ("chebyshev", "newton")
    if isinstance(ridge, int | float | np.floating | np.integer):
        number = _inputs.real_scalar(ridge, func=func, name="ridge", strict=needs_positive)
        return xp.full_like(xp.astype(xp.real(flat[:, 0, 0]) if _arrays.is_complex(flat.dtype) else flat[:, 0, 0], wide), number)
    if _arrays.is_complex(ridge.dtype):
        message = f"{func}: ridge must be real; got dtype {_arrays.dtype_name(ridge.dtype)}. Pass its real part."
        raise ParameterError(message)
    try:
        spread = xp.broadcast_to(ridge, batch)
    except (ValueError, RuntimeError, TypeError) as error:
        message = (
            f"{func}: ridge must be a number or broadcast to the batch shape {batch}; got shape {tuple(ridge.shape)}. Pass one per matrix."
        )
        raise ShapeError(message) from error
    if not _arrays.is_traced(ridge):
        values = _arrays.to_numpy(ridge)
        if not (np.isfinite(values).all() and (values >= 0).all() and (not needs_positive or (values > 0).all())):
            sign = "> 0" if needs_positive else ">= 0"
            message = f"{func}: ridge must be finite and {sign}; got a smallest value of {np.min(values):g}. Choose a positive ridge."
            raise ParameterError(message)
    return xp.astype(xp.reshape(spread, (flat.shape[0],)), wide)


def _scaled(a: Array, ridge: Array, wide: Any, *, xp: Namespace) -> tuple[_Problem, Array]:
    """Scale by powers of two, exactly, where something could over- or underflow; then form A + ridge I."""
    exponent = xp.zeros_like(ridge)
    if _arrays.is_traced(a) or not _in_easy_range(a, ridge, xp=xp):
        a = xp.astype(a, wide)
        exponent = _linalg.binary_exponent(xp.maximum(_linalg.largest_entry(a, xp=xp), ridge), xp=xp)
        # Members of ordinary size stay as they are whatever their batch mates need.
        easy = 300 if _arrays.eps(wide) < 1e-10 else 30
        exponent = xp.where(xp.abs(exponent) < easy, xp.zeros_like(exponent), exponent)
        a = _linalg.scale_by_power_of_two(a, -exponent, xp=xp)
        ridge = _linalg.scale_by_power_of_two(ridge[:, None, None], -exponent, xp=xp)[:, 0, 0]
    b, lost = _certificates.diagonal_shift(a, ridge, dtype=wide, xp=xp)
    return _Problem(a, b, lost, ridge), exponent


def _in_easy_range(a: Array, ridge: Array, *, xp: Namespace) -> bool:
    """Are all matrices of a size at which nothing over- or underflows, by one pass for their norms?"""
    with np.errstate(all="ignore"):
        norm = _linalg.frobenius(xp.astype(a, _arrays.compute_dtype(a.dtype, xp=xp)), xp=xp)
        size = _arrays.to_numpy(xp.maximum(xp.astype(norm, ridge.dtype), ridge))
    # A norm that over- or underflowed in the type of A is not easy either.
    limit = 2.0**290 if _arrays.eps(ridge.dtype) < 1e-10 else 2.0**20
    return bool(np.all((size > 1 / limit) & (size < limit)))


def _attempt(method: InverseMethod, problem: _Problem, compute: Any, settings: Settings, *, hermitian: bool, xp: Namespace) -> Attempt:
    """Invert by one method."""
    # One triangle alone would make the result depend on which.
    b = problem.b if hermitian else (problem.b + _linalg.adjoint(problem.b, xp=xp)) / 2
    direct = _inversion.integer_like(problem.ridge, 0, xp=xp)
    if method == InverseMethod.cholesky:
        return Attempt(_linalg.spd_inverse(b, xp=xp)[0], direct)
    if method == InverseMethod.eigh:
        values, vectors = _inversion.guard_linalg(settings.func, "the eigendecomposition", lambda: xp.linalg.eigh(b))
        reciprocal = 1 / xp.where(values == 0, xp.full_like(values, float("nan")), values)
        inverse = (vectors * xp.astype(reciprocal, b.dtype)[:, None, :]) @ _linalg.adjoint(vectors, xp=xp)
        return Attempt((inverse + _linalg.adjoint(inverse, xp=xp)) / 2, direct)
    work = xp.astype(b, compute)
    real = _arrays.real_dtype(compute, xp=xp)
    hi = xp.astype(_largest_eigenvalue(xp.astype(problem.a, compute), xp=xp), problem.ridge.dtype) + problem.ridge
    # Rounding of B to the type of the iteration can move eigenvalues by its eps |B|: keep `lo` a lower bound.
    lo = problem.ridge * (1 - 4 * _arrays.eps(compute))
    # Where there is a wider type the last step is done in it: its two products give the correction and its bound.
    last_wide = hermitian and not _arrays.is_traced(b) and (_arrays.eps(b.dtype) < _arrays.eps(compute) or _steps_natively(b))
    # That bound has a Frobenius norm for a spectral one twice, up to m times too much. Usually it is sqrt(m) to 10 sqrt(m); where this
    # target was too bold one more step is done at the end.
    m = b.shape[-1]
    target = settings.tol / (min(m, 4 * math.sqrt(m)) if last_wide else 4)
    counts, most = _step_counts(method, hi / lo, target, compute, least=int(last_wide and method == InverseMethod.newton), xp=xp)
    if method == InverseMethod.chebyshev:
        bounds = {"lo": xp.astype(lo, real), "hi": xp.astype(hi, real)}
        inverse = _iterations.chebyshev_newton(work, **bounds, steps=counts, polish=0 if last_wide else 1, max_steps=most, xp=xp)
        counts = counts + 1
    else:
        before = counts - 1 if last_wide else counts
        scale = xp.astype(2 / (lo + hi), real)
        inverse = _iterations.newton_raphson(work, steps=before, scale=scale, max_steps=most - 1 if last_wide else most, xp=xp)
    if isinstance(counts, int):
        counts = _inversion.integer_like(problem.ridge, counts, xp=xp)
    if last_wide:
        corrected, certificate = _last_step(b, inverse, problem.lost, xp=xp)
        return Attempt(corrected, counts, certificate)
    inverse = xp.astype(inverse, b.dtype)
    # Symmetrized once, after the loop: inside it rounding would blow up.
    return Attempt((inverse + _linalg.adjoint(inverse, xp=xp)) / 2, counts)


def _largest_eigenvalue(a: Array, *, xp: Namespace) -> Array:
    """An upper bound of it, by NumPy where it can see the matrices: batched products with one vector are quick there."""
    if not (_arrays.is_cpu(a) and _arrays.may_reuse_buffers(a)):
        return _norm_bounds.hermitian_upper_bound(a, xp=xp)
    host, host_xp = _arrays.host_view(a, xp=xp)
    with _arrays.one_blas_thread():
        bound = _norm_bounds.hermitian_upper_bound(host, xp=host_xp)
    return _arrays.from_numpy(bound, a, xp=xp)


def _steps_natively(b: Array) -> bool:
    """Does compiled code do Newton steps of these?"""
    return _arrays.is_cpu(b) and _arrays.may_reuse_buffers(b) and _native.serves_step(b.shape, _arrays.dtype_name(b.dtype))


def _last_step(b: Array, x: Array, lost: Array, *, xp: Namespace) -> tuple[Array, _certificates.InverseCertificate]:
    """`correct_inverse` of an inverse in a narrower type, by compiled code where that serves: a library's small products take longer."""
    if _steps_natively(b):
        (host_b, host_xp), (host_x, _), (host_lost, _) = (_arrays.host_view(part, xp=xp) for part in (b, x, lost))
        corrected, sizes = _native.correct(host_b, host_x)
        with np.errstate(all="ignore"):
            certificate = _certificates.judge_correction(list(sizes), host_lost, xp=host_xp)
        fields = (_arrays.from_numpy(field, b, xp=xp) for field in certificate)
        return _arrays.from_numpy(corrected, b, xp=xp), _certificates.InverseCertificate(*fields)
    return _certificates.correct_inverse(b, xp.astype(x, b.dtype), lost=lost, xp=xp)


def _step_counts(method: InverseMethod, kappa: Array, target: float, compute: Any, *, least: int, xp: Namespace) -> tuple[Array | int, int]:
    """Steps of every matrix from its own condition number, one number where all need as many, and the largest, known on the host.

    Traced code cannot read the largest condition number: there it is that at which the type has no digit left, 1 / eps, and
    members that need fewer steps are frozen earlier.
    """
    target = max(target, (16 * _arrays.eps(compute)) ** 2)
    edges = _staircase(method == InverseMethod.chebyshev, target, 1 / _arrays.eps(compute))
    counts = _inversion.integer_like(kappa, least, xp=xp)
    for step, edge in edges:
        counts = xp.where(kappa > edge, xp.full_like(counts, max(step, least)), counts)
    if _arrays.is_traced(kappa):
        return counts, max(edges[-1][0], least)
    host = _arrays.to_numpy(counts)
    most = int(np.max(host, initial=0))
    return (most if bool(np.all(host == most)) else counts), most


@functools.lru_cache(maxsize=64)
@_arrays.constant_in_graphs
def _staircase(chebyshev: bool, target: float, ceiling: float) -> list[tuple[int, float]]:
    """Condition numbers above which one more step is needed, up to `ceiling`, by bisection on the host."""

    def steps_of(condition: float) -> int:
        if chebyshev:
            return _iterations.chebyshev_newton_steps(condition, target, polish=1)
        return _iterations.newton_raphson_steps(condition, target, start="identity")

    edges = [(steps_of(1.0), 0.0)]
    low = 1.0
    while edges[-1][0] < steps_of(ceiling):
        below, above = low, ceiling
        while above / below > 1 + 1e-9:
            middle = (below * above) ** 0.5
            below, above = (middle, above) if steps_of(middle) <= edges[-1][0] else (below, middle)
        edges.append((steps_of(above), below))
        low = above
    return edges


def _certify(part: _Problem, tried: Attempt, way: InverseMethod, *, narrow: bool, settings: Settings, xp: Namespace) -> Outcome:
    """Certify an attempt; an iteration in a narrow type gets up to two Newton steps in the wide type where that is not enough.

    At a condition near 1 / eps of the narrow type |I - B X| is near one, though X is right to a few digits; the step
    X (2I - B X) squares it, for two products.
    """
    outcome = _certify_once(part, tried, way, narrow=narrow, settings=settings, xp=xp)
    came_certified = tried.certificate is not None
    if not (narrow or came_certified) or way not in (InverseMethod.chebyshev, InverseMethod.newton) or _arrays.is_traced(part.b):
        return outcome
    for _ in range(2):
        if bool(xp.all(outcome.converged)):
            break
        if came_certified:
            value, certificate = _last_step(part.b, outcome.value, part.lost, xp=xp)
            corrected = Attempt(value, outcome.steps + 1, certificate)
        else:
            value = 2 * outcome.value - outcome.value @ (part.b @ outcome.value)
            corrected = Attempt((value + _linalg.adjoint(value, xp=xp)) / 2, outcome.steps + 1)
        better = _certify_once(part, corrected, way, narrow=narrow, settings=settings, xp=xp)
        # Members that were certified at once stay as they are, whatever their batch mates need.
        keep = outcome.converged
        chosen = [xp.where(keep, old, new) for old, new in zip(outcome[1:], better[1:], strict=True)]
        outcome = Outcome(xp.where(keep[:, None, None], outcome.value, better.value), *chosen)
    return outcome


def _certify_once(part: _Problem, tried: Attempt, way: InverseMethod, *, narrow: bool, settings: Settings, xp: Namespace) -> Outcome:
    """Apply theorem C1, or C4 to Cholesky; `narrow` data have a wide residual already."""
    traced = _arrays.is_traced(part.b)
    slices = 1 if narrow or traced else 2  # compilers may reorder the sums on which the finer evaluation stands

    def evaluate(finely: bool) -> _certificates.InverseCertificate:
        return _certificates.certify_inverse(part.b, tried.value, lost=part.lost, slices=slices if finely else 1, refine=finely, xp=xp)

    certificate = tried.certificate
    if way == InverseMethod.cholesky and not settings.tight and not traced:
        certificate = _certificates_cholesky.certify_cholesky(part.b, tried.value, xp=xp)
        certificate = certificate if bool(xp.all(certificate.residual <= settings.tol)) else None
    if certificate is None:
        certificate = evaluate(settings.tight or traced)
    elif settings.tight and tried.certificate is not None:
        certificate = _tighter(evaluate(True), certificate, xp=xp)
    if not settings.tight and not traced and tried.certificate is None and bool(xp.any(~(certificate.residual <= settings.tol))):
        # The cheap bound may be all that stands between these matrices and their certificate.
        certificate = evaluate(True)
    relative = certificate.residual
    if settings.tight or traced or not bool(xp.all(relative <= settings.tol)):
        relative = xp.minimum(relative, certificate.error_bound / _lower_norm(tried.value, certificate.error_bound, xp=xp))
    certain = certificate.error_bound < float("inf")
    code = _inversion.integer_like(part.ridge, int(way), xp=xp)
    size = xp.where(certain, xp.full_like(code, part.b.shape[-1]), xp.full_like(code, -1))
    zero = xp.zeros_like(certificate.residual)
    converged = certain & (relative <= settings.tol)
    return Outcome(tried.value, tried.steps, certificate.residual, certificate.error_bound, size, zero, converged, code)


def _tighter(
    one: _certificates.InverseCertificate, other: _certificates.InverseCertificate, *, xp: Namespace
) -> _certificates.InverseCertificate:
    """The smaller of two bounds of each kind: both hold."""
    residual, bound = xp.minimum(one.residual, other.residual), xp.minimum(one.error_bound, other.error_bound)
    return _certificates.InverseCertificate(residual, bound, xp.minimum(one.norm, other.norm))


def _lower_norm(x: Array, error: Array, *, xp: Namespace) -> Array:
    """Lower bound of |B^-1|_2 from X and the bound of its error: the longest column of X, less the error."""
    longest = xp.sqrt(xp.max(_linalg.column_squares(x, xp=xp), axis=-1)) * (1 - 4 * x.shape[-1] * _arrays.eps(x.dtype))
    lower = longest - error
    return xp.where(lower > 0, lower, xp.full_like(lower, _arrays.tiny(lower.dtype)))


# ------------------------------------------------------------------------------------------------ derivatives
def ridge_inverse_vjp(value: Array, cotangent: Array) -> tuple[Array, Array]:
    r"""Gradient of a scalar through Y = (A + ridge I)^-1.

    Parameters
    ----------
    value : array, shape (..., m, m)
        Y, as `ridge_inverse` returned it.
    cotangent : array, shape (..., m, m)
        G, the gradient of the scalar with respect to Y.

    Returns
    -------
    gradient_a : array, shape (..., m, m)
        -Y sym(G) Y, the gradient with respect to the Hermitian A; itself Hermitian.
    gradient_ridge : array, shape (...)
        Its trace.

    Notes
    -----
    Exact up to about twice the relative error of Y, also where eigenvalues repeat and landmarks coincide. Two products.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> y = softlinalg.ridge_inverse(np.eye(2), 1.0)
    >>> softlinalg.ridge_inverse_vjp(y, np.eye(2))[0]
    array([[-0.25, -0.  ],
           [-0.  , -0.25]])
    """
    xp, (value, cotangent), dtype = _inputs.prepare("ridge_inverse_vjp", {"value": value, "cotangent": cotangent}, allow_complex=True)
    _check_same_square("ridge_inverse_vjp", value, cotangent, "cotangent")
    work = _arrays.compute_dtype(dtype, xp=xp)
    y, g = xp.astype(value, work), xp.astype(cotangent, work)
    with _arrays.quiet(y):
        gradient = inverse_slope(y, g, xp=xp)
        return xp.astype(gradient, dtype), xp.astype(_linalg.real_trace(gradient, xp=xp), _arrays.real_dtype(dtype, xp=xp))


def inverse_slope(y: Array, g: Array, *, xp: Namespace) -> Array:
    """-Y sym(G) Y: `ridge_inverse_vjp` for arrays that have been checked."""
    return -(y @ ((g + _linalg.adjoint(g, xp=xp)) / 2) @ y)


def ridge_inverse_jvp(value: Array, tangent: Array, ridge_tangent: float | Array = 0.0) -> Array:
    r"""Directional derivative of Y = (A + ridge I)^-1: -Y (dA + dridge I) Y.

    Parameters
    ----------
    value : array, shape (..., m, m)
        Y, as `ridge_inverse` returned it.
    tangent : array, shape (..., m, m)
        dA, Hermitian.
    ridge_tangent : float or array of shape (...), default 0
        dridge.

    Returns
    -------
    array, shape (..., m, m)

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> y = softlinalg.ridge_inverse(np.eye(2), 1.0)
    >>> softlinalg.ridge_inverse_jvp(y, np.eye(2))
    array([[-0.25, -0.  ],
           [-0.  , -0.25]])
    """
    xp, (value, tangent), dtype = _inputs.prepare("ridge_inverse_jvp", {"value": value, "tangent": tangent}, allow_complex=True)
    _check_same_square("ridge_inverse_jvp", value, tangent, "tangent")
    by_ridge = _ridge_slope("ridge_inverse_jvp", ridge_tangent, value, tangent)
    work = _arrays.compute_dtype(dtype, xp=xp)
    y, da = xp.astype(value, work), xp.astype(tangent, work)
    with _arrays.quiet(y):
        slope = -(y @ da @ y)
        if isinstance(by_ridge, float):
            return xp.astype(slope if by_ridge == 0 else slope - by_ridge * (y @ y), dtype)
        return xp.astype(slope - xp.astype(by_ridge, work)[..., None, None] * (y @ y), dtype)


def _ridge_slope(func: str, tangent: Any, value: Array, beside: Array) -> float | Array:
    """Derivative of the ridge: a number, or an array of batch shape."""
    sequence = isinstance(tangent, list | tuple) or hasattr(tangent, "requires_grad") or hasattr(tangent, "__array_namespace__")
    if not sequence and getattr(tangent, "ndim", 0) == 0 and not _arrays.is_traced(tangent):
        return _inputs.real_scalar(tangent, func=func, name="ridge_tangent", minimum=-sys.float_info.max, strict=False)
    _, (slope, _), _ = _inputs.prepare(func, {"ridge_tangent": tangent, "value": value}, allow_complex=True)
    if _arrays.is_complex(slope.dtype):
        message = f"{func}: ridge_tangent must be real; got dtype {_arrays.dtype_name(slope.dtype)}. Pass its real part."
        raise DTypeError(message)
    _inputs.check_batches(func, ridge_tangent=slope[..., None, None], value=value, tangent=beside)
    return slope


def _check_same_square(func: str, value: Array, other: Array, name: str) -> None:
    """`value` and its (co)tangent have the same trailing shape."""
    _inputs.check_square(value, func=func, name="value")
    if other.ndim < 2 or other.shape[-2:] != value.shape[-2:]:
        message = f"{func}: {name} must end in shape {tuple(value.shape[-2:])} like value; got {tuple(other.shape)}. Pass one per matrix."
        raise ShapeError(message)
    _inputs.check_batches(func, value=value, **{name: other})
