"""What the certified inverses have in common: results, tolerances, who is tried next, and what happens on failure.

Internal. `_ridge_inverse.py` and `_pinv.py` each describe a problem (how to attempt it by one method, how to certify
the attempt); the loop here runs the attempts, keeps what is certified, sends only the matrices that failed to the next
method, and turns the outcome into a value, a warning or an exception.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar

import numpy as np

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._settings import is_one_of, shown
from softlinalg._typing import Array, DType, Namespace
from softlinalg.errors import (
    ConvergenceError,
    ConvergenceWarning,
    InputError,
    NumericalError,
    ParameterError,
    PrecisionWarning,
    RangeError,
    RankWarning,
)

__all__ = ["Attempt", "CertifiedInverse", "CertifiedPinv", "InverseMethod", "Outcome", "Settings", "deliver", "finish", "solve"]


class InverseMethod(IntEnum):
    """How a matrix was inverted: the codes in the field `method` of a certified result.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> result = softlinalg.certified_ridge_inverse(np.stack([np.eye(2), np.ones((2, 2))]), 0.5)
    >>> [softlinalg.InverseMethod(int(code)).name for code in result.method]
    ['cholesky', 'cholesky']
    """

    none = 0
    cholesky = 1
    eigh = 2
    svd = 3
    newton = 4
    chebyshev = 5


class CertifiedInverse(NamedTuple):
    """A ridge inverse with its guarantee; every field but `value` has the batch shape (...).

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> result = softlinalg.certified_ridge_inverse(np.eye(2), 1.0)
    >>> float(result.value[0, 0]), bool(result.converged), bool(result.error_bound < 1e-14), int(result.rank)
    (0.4999999999999999, True, True, 2)
    """

    value: Array
    """(A + ridge I)^-1, shape (..., m, m), in the data type of A."""
    converged: Array
    """True where the relative error is certainly at most `tol` (before the last rounding to the data type)."""
    steps: Array
    """Steps of the iteration, integer; 0 for the direct methods."""
    residual: Array
    """Upper bound of |I - (A + ridge I) X|_F, X the value before it was rounded to the data type."""
    error_bound: Array
    """Upper bound of |value - (A + ridge I)^-1|_2, all rounding included; infinite where nothing is certain."""
    rank: Array
    """m where A + ridge I is certainly nonsingular, -1 where that is not certain."""
    method: Array
    """Code of the method that gave the value, see `InverseMethod`."""


class CertifiedPinv(NamedTuple):
    """A pseudo-inverse with its guarantee; every field but `value` has the batch shape (...).

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> result = softlinalg.certified_pinv(np.asarray([[2.0, 0.0], [0.0, 0.0]]))
    >>> int(result.rank), bool(result.converged), bool(result.error_bound < 1e-14)
    (1, True, True)
    """

    value: Array
    """Pseudo-inverse, shape (..., n, m), in the data type of A."""
    converged: Array
    """True where the rank is certified and the relative error is certainly at most `tol`."""
    steps: Array
    """Steps of the iteration, integer; 0 for the direct methods."""
    residual: Array
    """Upper bound of |A - A X A|_F / |A|_F."""
    error_bound: Array
    """Upper bound of |value - A_r^+|_2, A_r the best approximation of A of rank `rank`; infinite where no rank is certain."""
    rank: Array
    """Certified numerical rank r: s_r and s_{r+1} lie certainly apart. -1 where it is not certain."""
    method: Array
    """Code of the method that gave the value, see `InverseMethod`."""
    backward_error: Array
    """Upper bound of s_{r+1}, the distance of A from the nearest matrix of rank r; 0 at full rank."""


class Settings(NamedTuple):
    """Checked settings of one call."""

    func: str
    method: str
    tol: float
    on_failure: str
    tight: bool
    """Evaluate the certificate as closely as possible (the `certified_` functions)."""


class Attempt(NamedTuple):
    """One try at a batch of matrices, scaled so that the largest entry is of order one, in the wide type."""

    value: Array
    """(N, n, m)."""
    steps: Array
    """(N,) integers."""
    certificate: Any = None
    """A certificate that came with the value, if one did."""


class Outcome(NamedTuple):
    """What is certain of an attempt; arrays of shape (N,)."""

    value: Array
    steps: Array
    residual: Array
    error_bound: Array
    rank: Array
    backward_error: Array
    converged: Array
    method: Array


_FAILURES = ("fallback", "raise", "warn")


def check_settings(
    func: str, *, method: str, methods: Sequence[str], tol: float | None, on_failure: str, dtype: DType, tight: bool
) -> Settings:
    """Check the settings that all certified inverses share.

    The default tolerance is 1e-3 below float64, what the paper's regime asks of float32, and 1e-6 in float64.
    """
    if not is_one_of(method, ("auto", *methods)):
        message = f"{func}: method must be one of auto, {', '.join(methods)}; got {shown(method)}. Use 'auto' if in doubt."
        raise ParameterError(message)
    if not is_one_of(on_failure, _FAILURES):
        message = f"{func}: on_failure must be one of {', '.join(_FAILURES)}; got {shown(on_failure)}. The default is 'fallback'."
        raise ParameterError(message)
    if tol is None:
        checked = 1e-6 if _arrays.eps(dtype) < 1e-10 else 1e-3
    else:
        checked = _inputs.real_scalar(tol, func=func, name="tol", maximum=0.5)
    return Settings(func, method, checked, on_failure, tight)


def solve(
    batch: Array,
    order: Sequence[InverseMethod],
    attempt: Callable[[InverseMethod, Any], Attempt],
    certify: Callable[[Any, Attempt, InverseMethod], Outcome],
    select: Callable[[Any], Any],
    *,
    settings: Settings,
    xp: Namespace,
) -> Outcome:
    """Attempt by the first method; where that fails and `on_failure` is "fallback", by the next ones.

    Parameters
    ----------
    batch : array, shape (N, ...)
        Only asked whether it is traced.
    order : sequence of methods
        First choice first.
    attempt, certify
        Work on the members that the third argument of `select` names; None means all.
    select : callable
        Makes the sub-problem of a host index array (None: the whole problem).
    """
    problem = select(None)
    outcome = certify(problem, attempt(order[0], problem), order[0])
    if settings.on_failure != "fallback" or _arrays.is_traced(batch):
        return outcome
    for method in order[1:]:
        failed = np.flatnonzero(~_arrays.to_numpy(outcome.converged))
        if failed.size == 0:
            break
        part = select(failed)
        outcome = _replace(outcome, failed, certify(part, attempt(method, part), method), xp=xp)
    return outcome


def _replace(outcome: Outcome, members: np.ndarray[Any, Any], better: Outcome, *, xp: Namespace) -> Outcome:
    """Members of a batch exchanged where the second attempt is certified, or at least closer to it."""
    index = np.arange(outcome.residual.shape[0])
    old, new = _arrays.to_numpy(outcome.error_bound)[members], _arrays.to_numpy(better.error_bound)
    # A bound, even a loose one, beats none; between two unbounded tries the direct method (the later one) stands.
    take = (new <= old) | ~np.isfinite(old)
    index[members[take]] = index.size + np.flatnonzero(take)
    merged = [_arrays.take_rows(xp.concat([a, b], axis=0), index, xp=xp) for a, b in zip(outcome, better, strict=True)]
    return Outcome(*merged)


def deliver(value: Array, converged: Array, *, info: Any, settings: Settings, is_pinv: bool) -> None:
    """Warn or raise about members of an eager batch that are not certified, as `on_failure` says."""
    ok = _arrays.to_numpy(converged)
    if bool(ok.all()):
        return
    count, first = int((~ok).sum()), [int(i) for i in np.argwhere(~ok)[0]]
    bound = float(np.max(_arrays.to_numpy(info.error_bound)))
    where = f"{count} of {ok.size} matrices (first at {first})" if ok.ndim else "the matrix"
    uncertain = 0
    if is_pinv:
        uncertain = int((_arrays.to_numpy(info.rank) < 0).sum())
        reason = f"{uncertain} without a certain rank (no gap in the singular values at rtol)" if uncertain else f"error bound {bound:.2g}"
        remedy = "Choose rtol inside a gap, or use ridge_inverse."
    else:
        reason, remedy = f"error bound {bound:.2g}", "Use a larger ridge or tol, float64, or pinv if it is singular."
    message = f"{settings.func}: the error must be certified to {settings.tol:g}; got {where} that could not be: {reason}. {remedy}"
    if settings.on_failure == "raise":
        raise ConvergenceError(message[:400], info)
    finite = np.isfinite(_arrays.to_numpy(value)).all(axis=(-2, -1))
    if settings.on_failure == "fallback" and not bool(finite[~ok].all()) and not settings.tight:
        raise ConvergenceError(message[:400], info)  # there is no answer that a warning could go with
    if settings.on_failure == "warn" or not settings.tight:
        category = RankWarning if uncertain else ConvergenceWarning
        warnings.warn(message[:400], category, stacklevel=4)


# ------------------------------------------------------------------------------------------------- helpers
def flatten(a: Array, *, xp: Namespace) -> Array:
    """(..., m, n) to (N, m, n)."""
    return xp.reshape(a, (math.prod(a.shape[:-2]), a.shape[-2], a.shape[-1]))


def blank_non_finite(a: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Members with NaN or infinity replaced by zero matrices, so that they harm no one, and a mask of the sound ones."""
    sound = xp.all(xp.isfinite(a), axis=(-2, -1))
    return xp.where(sound[..., None, None], a, xp.zeros_like(a)), sound


def check_hermitian(func: str, flat: Array, *, xp: Namespace) -> bool:
    """Refuse asymmetry beyond rounding, 30 m eps max |A|, with its size; True where A is Hermitian bit for bit.

    Traced code is not checked: False.
    """
    if _arrays.is_traced(flat):
        return False
    if flat.shape[0] == 0 or _linalg.is_exactly_hermitian(flat, xp=xp):
        return True
    work = xp.astype(flat, _arrays.compute_dtype(flat.dtype, xp=xp))
    gap = _linalg.largest_entry(work - _linalg.adjoint(work, xp=xp), xp=xp)
    allowed = 30 * flat.shape[-1] * _arrays.eps(flat.dtype) * _linalg.largest_entry(work, xp=xp)
    asymmetric = _arrays.to_numpy(gap > allowed)
    if asymmetric.any():
        worst = int(np.argmax(_arrays.to_numpy(gap)))
        size, scale = float(gap[worst]), float(_linalg.largest_entry(work, xp=xp)[worst])
        found = f"max |A - A^H| = {size:.3g} where max |A| = {scale:.3g}"
        message = f"{func}: a must be Hermitian; got {found}. Pass (A + A^H) / 2 if that is meant."
        raise InputError(message)
    return False


class Rounded(NamedTuple):
    """A value in its final data type and scale."""

    value: Array
    """(N, n, m)."""
    bound: Array
    """(N,) error bound with the last rounding included, in the scale of the value."""


_Result = TypeVar("_Result", bound=CertifiedInverse | CertifiedPinv)


def brought_home(result: _Result, home: _arrays.Home | None) -> _Result:
    """A result of NumPy in the library of `home`. Where that has no float64 its bounds are rounded upwards."""
    if home is None:
        return result
    fields = dict(zip(result._fields, result, strict=True))
    if not _arrays.has_float64(home.like, xp=home.xp):
        for name in {"residual", "error_bound", "backward_error"} & fields.keys():
            with np.errstate(over="ignore"):
                near = fields[name].astype(np.float32)
                fields[name] = np.where(near < fields[name], np.nextafter(near, np.float32(np.inf)), near)
    return type(result)(**{name: home.bring(part) for name, part in fields.items()})


def finish(
    kind: type[_Result],
    outcome: Outcome,
    exponent: Array,
    sound: Array | None,
    batch: tuple[int, ...],
    dtype: DType,
    matrix: Array,
    settings: Settings,
    *,
    home: _arrays.Home | None = None,
    xp: Namespace,
) -> _Result:
    """Undo the scaling, restore shape and type, and warn or raise; `matrix` is what was inverted, `home` where the result belongs."""
    traced = _arrays.is_traced(outcome.value)
    rounded = round_to(outcome, exponent, dtype, settings=settings, xp=xp)
    masked, converged, sound = mask_unsound(rounded.value, outcome.converged, sound, settings=settings, xp=xp)
    infinite = xp.full_like(rounded.bound, float("inf"))
    fields = {
        "converged": converged,
        "steps": outcome.steps,
        "residual": xp.where(sound, outcome.residual, infinite),
        "error_bound": xp.where(sound, rounded.bound, infinite),
        "rank": xp.where(sound, outcome.rank, xp.full_like(outcome.rank, -1)),
        "method": outcome.method,
    }
    is_pinv = "backward_error" in kind._fields
    if is_pinv:
        backward = _linalg.scale_by_power_of_two(outcome.backward_error[:, None, None], exponent, xp=xp)[:, 0, 0]
        fields["backward_error"] = xp.where(sound, backward, infinite)
    shaped = {name: xp.reshape(field, batch) for name, field in fields.items()}
    inverse = xp.reshape(masked, (*batch, *masked.shape[1:]))
    result = brought_home(kind(value=inverse, **shaped), home)
    if not traced:
        warn_precision(settings.func, matrix, outcome.value, dtype, xp=xp)
        blanked = ~xp.reshape(sound, batch)  # NaN came in, by leave of check_finite=False; that is no failure
        deliver(inverse, shaped["converged"] | blanked, info=result, settings=settings, is_pinv=is_pinv)
    return result


def round_to(outcome: Outcome, exponent: Array, dtype: DType, *, settings: Settings, xp: Namespace) -> Rounded:
    """Value * 2**-exponent in `dtype`, and its error bound with what that rounding cost.

    The plain functions return no bound, so for them the cost of the last rounding is not measured.

    Raises
    ------
    RangeError
        On eager arrays, where a finite value does not fit the data type.
    """
    value = outcome.value
    scaled = _linalg.scale_by_power_of_two(value, -exponent, xp=xp)
    final = xp.astype(scaled, dtype)
    if not _arrays.is_traced(value):
        _check_range(final, value, exponent, settings.func, xp=xp)
    bound = outcome.error_bound
    if settings.tight:
        back = _linalg.scale_by_power_of_two(xp.astype(final, value.dtype), exponent, xp=xp)
        bound = (bound + _linalg.frobenius(back - value, xp=xp) * (1 + 1e-6)) * (1 + 8 * _arrays.eps(value.dtype))
        bound = xp.where(xp.isnan(bound), xp.full_like(bound, math.inf), bound)
    return Rounded(final, _linalg.scale_by_power_of_two(bound[:, None, None], -exponent, xp=xp)[:, 0, 0])


def _check_range(final: Array, value: Array, exponent: Array, func: str, *, xp: Namespace) -> None:
    """Refuse finite values that have become infinite in their final scale and type; one pass, more only where it is close."""
    size = np.log2(np.maximum(_arrays.to_numpy(_linalg.frobenius(value, xp=xp)).astype(float), 1e-300)) - _arrays.to_numpy(exponent)
    limit = {"float16": 15, "float32": 127, "bfloat16": 127, "complex64": 127}.get(_arrays.dtype_name(final.dtype), 1023)
    if not bool(np.any(size >= limit)):  # NaN compares as False: it was there before
        return
    overflow = xp.any(~xp.isfinite(final), axis=(-2, -1)) & xp.all(xp.isfinite(value), axis=(-2, -1))
    if bool(xp.any(overflow)):
        count, name = int(np.sum(_arrays.to_numpy(overflow))), _arrays.dtype_name(final.dtype)
        remedy = "Scale the input up, or use a wider dtype."
        message = f"{func}: the result must fit {name}; got {count} matrices whose inverse overflows. {remedy}"
        raise RangeError(message)


def mask_unsound(value: Array, converged: Array, sound: Array | None, *, settings: Settings, xp: Namespace) -> tuple[Array, Array, Array]:
    """NaN for members that held NaN or infinity and, from traced plain functions, for those without a certificate."""
    traced = _arrays.is_traced(value)
    if sound is None:
        return value, converged, xp.full_like(converged, True)
    converged = converged & sound
    keep = converged if traced and not settings.tight else sound
    return xp.where(keep[:, None, None], value, xp.full_like(value, math.nan)), converged, sound


def warn_precision(func: str, matrix: Array, inverse: Array, dtype: DType, *, xp: Namespace) -> None:
    """Half precision holds no digit of an inverse beyond a condition number of 1 / (30 eps): say so."""
    if not _arrays.is_half(dtype):
        return
    condition = _linalg.frobenius(matrix, xp=xp) * _linalg.frobenius(inverse, xp=xp)
    worst = float(np.max(_arrays.to_numpy(condition), initial=0.0))
    limit = 1 / (30 * _arrays.eps(dtype))
    if worst > limit:
        name = _arrays.dtype_name(dtype)
        message = (
            f"{func}: a must have a condition number below {limit:.0f} in {name}; got about {worst:.2g}. "
            "The result is right to its rounding, but no digit survives a change of the input in its last bit; use float32."
        )
        warnings.warn(message, PrecisionWarning, stacklevel=4)


def integer_like(reference: Array, value: int, *, xp: Namespace) -> Array:
    """An integer array shaped like `reference`."""
    return xp.astype(xp.full_like(reference, value), integer_dtype(reference, xp=xp))


def integer_dtype(reference: Array, *, xp: Namespace) -> DType:
    """int64 where the library has it here (JAX without x64 has not)."""
    return xp.int64 if _arrays.has_float64(reference, xp=xp) else xp.int32


def guard_linalg(func: str, what: str, call: Callable[[], Any]) -> Any:
    """Run a routine of the array library; its own failures come out as NumericalError."""
    try:
        return call()
    except (np.linalg.LinAlgError, RuntimeError) as error:
        message = f"{func}: {what} must converge; got '{type(error).__name__}' from the array library. Check the input for extreme scaling."
        raise NumericalError(message) from error
