r"""The scalar side of the iterations: filters, step counts, product counts and the Chebyshev scale factors.

On a Hermitian matrix an iteration is a function of each eigenvalue. The functions here are that function, and what it
tells before the first product: how many steps reach a tolerance, and what they cost. The counts are whole
numbers of the host; the filters take arrays of any library. Theorems and proofs: `docs/theory/iterations.md`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any, Literal, TypeGuard

from softlinalg import _arrays, _inputs
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError

__all__ = [
    "Start",
    "chebyshev_newton_filter",
    "chebyshev_newton_general_filter",
    "chebyshev_newton_general_products",
    "chebyshev_newton_general_steps",
    "chebyshev_newton_products",
    "chebyshev_newton_steps",
    "hyperpower_filter",
    "hyperpower_products",
    "hyperpower_steps",
    "newton_raphson_filter",
    "newton_raphson_identity_filter",
    "newton_raphson_products",
    "newton_raphson_steps",
]

Start = Literal["adjoint", "identity"]
"""X_0 = alpha A^H, or X_0 = c I."""

_LARGEST_TAU = 1e18
"""Beyond it 1 + 1/tau is 1 in every data type, and its square still fits float32."""

SAFE_SCALE = 1.8
"""alpha |A|^2 of the starts alpha A^H: 2 is the limit of convergence, and 10 % are left for rounding in the norm."""
LARGEST_SCALE = 1.9
"""What a start of another origin may have: 5 % are left, more than 4e5 summands lose in float32."""

_COUNT_SLACK = 1e-12
"""Added to the logarithm of a step count before rounding up, so that rounding in the count never saves a step."""


# ------------------------------------------------------------------------------- a-priori counts, on the host
def newton_raphson_steps(kappa: float, tol: float, *, start: Start = "adjoint", scale: float | None = None) -> int:
    r"""Steps of `newton_raphson` after which |I - A X|_2 <= tol on the range of A, whatever the spectrum.

    Parameters
    ----------
    kappa : float
        At least 1: upper bound of the norm used in the start, over the smallest (non-zero) singular value.
    tol : float
        Positive.
    start : {"adjoint", "identity"}
        X_0 = alpha A^H, or c I for positive definite A.
    scale : float, optional
        alpha u^2 or c u, u the upper bound in `kappa`; in (0, 2). Default: 1.8 (`safe_alpha`) for "adjoint", and
        2 kappa / (kappa + 1), that is c = 2 / (lo + hi), for "identity".

    Returns
    -------
    int
        Smallest k with rho^(2^k) <= tol, rho the largest of |1 - scale| and |1 - scale / kappa^2| ("identity": kappa).
    """
    return _power_steps("newton_raphson_steps", kappa, tol, order=2, start=start, scale=scale)


def hyperpower_steps(kappa: float, tol: float, *, order: int, start: Start = "adjoint", scale: float | None = None) -> int:
    """Steps of `hyperpower` after which |I - A X|_2 <= tol: smallest k with rho^(order^k) <= tol, as in `newton_raphson_steps`."""
    check_order("hyperpower_steps", order)
    return _power_steps("hyperpower_steps", kappa, tol, order=order, start=start, scale=scale)


def chebyshev_newton_steps(kappa: float, tol: float, *, polish: int = 1) -> int:
    r"""Scaled doublings of `chebyshev_newton` after which, with `polish` steps more, |I - B X|_2 <= tol.

    Parameters
    ----------
    kappa : float
        hi / lo, at least 1.
    tol : float
        Positive.
    polish : int
        Unscaled steps that follow; each squares the residual.

    Returns
    -------
    int
        Smallest k with T_n((kappa + 1) / (kappa - 1)) >= tol^(-1 / 2^polish), n = 2^k; by the theorem
        k = ceil(log2(acosh(tol^(-1 / 2^polish)) / acosh((kappa + 1) / (kappa - 1)))).
    """
    _check_count_arguments("chebyshev_newton_steps", kappa, tol)
    return _chebyshev_steps(-0.5 * math.log(kappa), tol, polish)


def chebyshev_newton_general_steps(kappa: float, tol: float, *, polish: int = 1) -> int:
    """Scaled doublings of `chebyshev_newton_general`: `chebyshev_newton_steps` of kappa^2, without forming the square."""
    _check_count_arguments("chebyshev_newton_general_steps", kappa, tol)
    return _chebyshev_steps(-math.log(kappa), tol, polish)


def newton_raphson_products(steps: int, *, start: Start = "adjoint") -> int:
    """Matrix products that `newton_raphson` does: two a step; with ``start="identity"`` (`scale` given) none in the first."""
    return max(2 * steps - (2 if start == "identity" else 0), 0)


def chebyshev_newton_products(steps: int, *, polish: int = 1) -> int:
    """Matrix products that `chebyshev_newton` does: two a step, polishing included, and none in the first."""
    return max(2 * (steps + polish) - 2, 0)


def chebyshev_newton_general_products(steps: int, *, polish: int = 1) -> int:
    """Matrix products that `chebyshev_newton_general` does: two a step, polishing included."""
    return 2 * (steps + polish)


def hyperpower_products(steps: int, *, order: int, start: Start = "adjoint") -> int:
    """Matrix products that `hyperpower` does; a start ``"identity"`` (`scale` given) saves two in the first step."""
    check_order("hyperpower_products", order)
    inner, q = 0, order
    while q > 2:  # one square, and one product unless the inner sum is the identity
        inner += 1 if q == 3 else 2
        q //= 2
    return max(steps * (inner + 2) - (2 if start == "identity" else 0), 0)


# --------------------------------------------------------------------------------------------- scalar filters
def newton_raphson_filter(s: Array, *, steps: int, alpha: float | Array) -> Array:
    r"""f_k(s) = (1 - (1 - alpha s^2)^(2^k)) / s: what `newton_raphson` from alpha A^H makes of an eigenvalue.

    Parameters
    ----------
    s : array
        Eigenvalues of Hermitian A, or singular values. Any shape.
    steps : int
    alpha : float or array that broadcasts with `s`

    Returns
    -------
    array
        Like `s`. Odd in s, zero at zero, slope 2^k alpha there, at most about 0.638 sqrt(alpha 2^k), at
        s = 1.12 / sqrt(alpha 2^k): smaller eigenvalues are not inverted yet.

    Notes
    -----
    Evaluated by f <- f q with y = s f and q = 2 - y, never by differences of nearly equal numbers: the relative error
    stays near `steps` eps, where the formula loses all digits for small s.
    """
    xp, (s,), _ = _inputs.prepare("newton_raphson_filter", {"s": s})
    first = _plain(alpha) * s
    return _filter(first, first * s, 2 - first * s, [(1.0, 1.0)] * host_count("newton_raphson_filter", "steps", steps), xp=xp)


def newton_raphson_identity_filter(s: Array, *, steps: int, scale: float | Array) -> Array:
    r"""f_k(s) = (1 - (1 - c s)^(2^k)) / s: `newton_raphson` from X_0 = c I, c = `scale`; c 2^k at zero."""
    xp, (s,), _ = _inputs.prepare("newton_raphson_identity_filter", {"s": s})
    first = _plain(scale) * xp.ones_like(s)
    return _filter(first, first * s, 2 - first * s, [(1.0, 1.0)] * host_count("newton_raphson_identity_filter", "steps", steps), xp=xp)


def chebyshev_newton_filter(s: Array, *, lo: float | Array, hi: float | Array, steps: int, polish: int = 1) -> Array:
    r"""f(s) = (1 - C(s)) / s, C(s) = (T_n((hi + lo - 2s) / (hi - lo)) / tau_n)^(2^polish), n = 2^steps.

    Parameters
    ----------
    s : array
        Eigenvalues; any shape.
    lo, hi : float or array that broadcasts with `s`
    steps, polish : int

    Returns
    -------
    array
        Like `s`. At zero the limit, 2^polish n tanh(n theta) / sqrt(lo hi) with cosh(theta) = (hi + lo) / (hi - lo).
    """
    xp, (s,), _ = _inputs.prepare("chebyshev_newton_filter", {"s": s})
    pairs = _filter_schedule("chebyshev_newton_filter", lo, hi, steps, polish, power=1, like=s, xp=xp)
    lo, hi = _plain(lo), _plain(hi)
    c = 2 / (lo + hi)
    # 2 - c s, with the difference taken first: near s = hi nothing is lost.
    return _filter(c * xp.ones_like(s), c * s, c * ((hi - s) + lo), pairs, xp=xp)


def chebyshev_newton_general_filter(s: Array, *, lo: float | Array, hi: float | Array, steps: int, polish: int = 1) -> Array:
    r"""f(s) = (1 - C(s^2)) / s with C as in `chebyshev_newton_filter` on [lo^2, hi^2]; odd, zero at zero."""
    xp, (s,), _ = _inputs.prepare("chebyshev_newton_general_filter", {"s": s})
    pairs = _filter_schedule("chebyshev_newton_general_filter", lo, hi, steps, polish, power=2, like=s, xp=xp)
    lo, hi = _plain(lo), _plain(hi)
    ratio, t = lo / hi, s / hi  # in units of hi, so that no square leaves the range
    c = 2 / (1 + ratio * ratio)
    return _filter(c * t, c * t * t, c * ((1 - t) * (1 + t) + ratio * ratio), pairs, xp=xp) / hi


def hyperpower_filter(s: Array, *, order: int, steps: int, alpha: float | Array | None = None, scale: float | Array | None = None) -> Array:
    r"""f_k(s) = (1 - r^(order^k)) / s with r = 1 - alpha s^2, or r = 1 - scale s: give one of the two."""
    xp, (s,), _ = _inputs.prepare("hyperpower_filter", {"s": s})
    check_order("hyperpower_filter", order)
    if (alpha is None) == (scale is None):
        given = "both" if alpha is not None else "neither"
        message = f"hyperpower_filter: exactly one of alpha and scale must be given; got {given}. Pass alpha for alpha A^H, scale for c I."
        raise ParameterError(message)
    f = _plain(alpha) * s if alpha is not None else _plain(scale) * xp.ones_like(s)
    y = f * s
    for _ in range(host_count("hyperpower_filter", "steps", steps)):
        growth = _scalar_power_sum(1 - y, order)
        f, y = f * growth, y * growth
    return f


def _scalar_power_sum(r: Array, order: int) -> Array:
    """1 + r + ... + r^(order-1), elementwise, by the same halves."""
    if order == 1:
        return 1 + 0 * r
    if order % 2 == 0:
        return (1 + r) * _scalar_power_sum(r * r, order // 2)
    return 1 + (r + r * r) * _scalar_power_sum(r * r, order // 2)


# ---------------------------------------------------------------------------------------- Chebyshev schedules
def start_and_growth(lo: Any, hi: Any, *, power: int, like: Array, xp: Namespace) -> tuple[Any, Any]:
    """The start's scale 2 / (lo^power + hi^power), and tau_1 - 1 (capped): floats, or arrays in the widest type.

    tau - 1 is carried instead of tau, which would lose the spectrum's lower end where lo / hi is near eps.
    """
    if is_float(lo) and is_float(hi):
        return _host_growth(float(lo), float(hi), power)
    wide = _arrays.real_dtype(_arrays.wide_dtype(like, xp=xp), xp=xp)
    hi_wide = hi if is_float(hi) else xp.astype(hi, wide)
    ratio = (lo if is_float(lo) else xp.astype(lo, wide)) / hi_wide
    small = ratio if power == 1 else ratio * ratio
    gap = 1 - ratio if power == 1 else (1 - ratio) * (1 + ratio)
    scale = 2 / (1 + small) / hi_wide
    if power == 2:
        scale = scale / hi_wide
    capped = 2 * small >= _LARGEST_TAU * gap
    delta = 2 * small / xp.where(capped, xp.ones_like(gap), gap)
    return scale, xp.where(capped, xp.full_like(delta, _LARGEST_TAU), delta)


def _host_growth(lo: float, hi: float, power: int) -> tuple[float, float]:
    """`start_and_growth` of two floats."""
    ratio = lo / hi
    small, gap = (ratio, 1 - ratio) if power == 1 else (ratio * ratio, (1 - ratio) * (1 + ratio))
    scale = 2 / (1 + small) / hi
    return scale if power == 1 else scale / hi, _LARGEST_TAU if 2 * small >= _LARGEST_TAU * gap else 2 * small / gap


def double(delta: Any, *, xp: Namespace) -> Any:
    """tau_2n - 1 from tau_n - 1: T_2n = 2 T_n^2 - 1, without cancellation."""
    doubled = 2 * delta * (2 + delta)
    if isinstance(doubled, float):
        return min(doubled, _LARGEST_TAU)
    return xp.minimum(doubled, xp.full_like(doubled, _LARGEST_TAU))


def _filter_schedule(
    name: str, lo: Any, hi: Any, steps: int, polish: int, *, power: int, like: Array, xp: Namespace
) -> list[tuple[Any, Any]]:
    """Pairs (1 + 1/tau_2n, 1 - 1/tau_2n) of each step; (1, 1) for an unscaled one."""
    check_interval(name, lo, hi)
    pairs: list[tuple[Any, Any]] = []
    _, delta = start_and_growth(lo, hi, power=power, like=like, xp=xp)
    for _ in range(host_count(name, "steps", steps)):
        delta = double(delta, xp=xp)
        pair = (1 + 1 / (1 + delta), delta / (1 + delta))
        pairs.append(pair if isinstance(delta, float) else (xp.astype(pair[0], like.dtype), xp.astype(pair[1], like.dtype)))
    return pairs + [(1.0, 1.0)] * host_count(name, "polish", polish)


def _filter(f: Array, y: Array, q: Array, pairs: Sequence[tuple[Any, Any]], *, xp: Namespace) -> Array:
    """The scalar iteration f <- s f q, with y = x f and q = 2 - y.

    Near y = 2 the difference loses its digits; there 1 - y = C_n gives q as a sum of positive terms,
    2 - y' = 1 + C_2n = (tau_2n - 1) / tau_2n + (1 + 1/tau_2n) C_n^2. Elsewhere the difference is better, since it sees the rounding
    in y and corrects it.
    """
    for plus, minus in pairs:
        residual = 1 - y
        f, y = plus * (f * q), plus * (y * q)
        q = xp.where(y > 1.5, minus + plus * (residual * residual), 2 - y)
    return f


# ------------------------------------------------------------------------------------------------ host counts
def _power_steps(name: str, kappa: float, tol: float, *, order: int, start: Start, scale: float | None) -> int:
    """Smallest k with rho^(order^k) <= tol, in logarithms so that nothing over- or underflows."""
    _check_count_arguments(name, kappa, tol)
    if start not in ("adjoint", "identity"):
        message = f"{name}: start must be 'adjoint' or 'identity'; got {start!r}. Choose one of them."
        raise ParameterError(message)
    if tol >= 1:
        return 0
    if start == "identity" and scale is None:  # rho = (kappa - 1) / (kappa + 1)
        if kappa == 1:
            return 0
        rate = math.log2(2 * math.atanh(1 / kappa))
    else:
        scale = SAFE_SCALE if scale is None else _inputs.real_scalar(scale, func=name, name="scale", maximum=2.0)
        rate = min(_log2_decay(math.log2(scale)), _log2_decay(math.log2(scale) - (2 if start == "adjoint" else 1) * math.log2(kappa)))
    if rate == -math.inf:
        message = f"{name}: scale must be < 2; got {scale!r}. At 2 the largest singular value is never inverted."
        raise ParameterError(message)
    needed = math.log2(-math.log(tol)) - rate
    return 0 if rate == math.inf else max(0, math.ceil(needed / math.log2(order) + _COUNT_SLACK))


def _log2_decay(log2_x: float) -> float:
    """log2(-log|1 - x|) for x = 2**log2_x in (0, 2]."""
    if log2_x < -60:  # -log(1 - x) = x to all digits
        return log2_x
    x = 2.0**log2_x
    if abs(x - 1) < 1e-300:
        return math.inf
    decay = -math.log1p(-x) if x < 1 else -math.log(x - 1)
    return math.log2(decay) if decay > 0 else -math.inf


def _chebyshev_steps(log_root: float, tol: float, polish: int) -> int:
    """The count of T3 for 1 / sqrt(kappa) = exp(log_root), by acosh((kappa + 1) / (kappa - 1)) = 2 artanh(1 / sqrt(kappa))."""
    polish = host_count("chebyshev_newton_steps", "polish", polish)
    if tol >= 1 or log_root == 0:
        return 0
    log_target = -math.log(tol) * 0.5**polish  # tau_n has to reach exp(log_target)
    target = log_target + math.log1p(math.sqrt(-math.expm1(-2 * log_target)))  # acosh
    if log_root > -1:  # 2 artanh(exp(-h)) = -log(tanh(h / 2)), which keeps its digits near kappa = 1
        rate = math.log2(-math.log(math.tanh(-log_root / 2)))
    else:
        rate = math.log2(2 * math.atanh(math.exp(log_root))) if log_root > -20 else 1 + log_root / math.log(2)
    return max(0, math.ceil(math.log2(target) - rate + _COUNT_SLACK))


# ------------------------------------------------------------------------------------------------- validation
def is_float(value: Any) -> TypeGuard[float]:
    """Is it a number of the host, not an array?"""
    return isinstance(value, numbers.Real)


def _plain(value: Any) -> Any:
    """A number as a Python float, which promotes no array; arrays as they are."""
    return float(value) if is_float(value) else value


def host_count(name: str, argument: str, value: Any, *, minimum: int = 0) -> int:
    """A whole number from the host, at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or int(value) < minimum:
        fact = repr(value) if isinstance(value, numbers.Real) else type(value).__name__
        message = f"{name}: {argument} must be an int >= {minimum}; got {fact}. Pass a whole number."
        raise ParameterError(message)
    return int(value)


def check_order(name: str, order: Any) -> None:
    host_count(name, "order", order, minimum=2)


def check_interval(name: str, lo: Any, hi: Any) -> None:
    """0 < lo <= hi < inf where both are numbers of the host; arrays are the caller's to know."""
    if is_float(lo) and is_float(hi) and not 0 < float(lo) <= float(hi) < math.inf:
        message = f"{name}: lo and hi must satisfy 0 < lo <= hi; got lo = {float(lo)!r}, hi = {float(hi)!r}. Pass bounds of the spectrum."
        raise ParameterError(message)


def _check_count_arguments(name: str, kappa: Any, tol: Any) -> None:
    _inputs.real_scalar(kappa, func=name, name="kappa", minimum=1.0, strict=False)
    _inputs.real_scalar(tol, func=name, name="tol")
