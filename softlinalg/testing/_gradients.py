"""Derivatives against finite differences of several orders, against the complex step, and against each other."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat as compat
import numpy as np

from softlinalg import _arrays
from softlinalg._typing import Array
from softlinalg.errors import ParameterError
from softlinalg.testing._cases import unit
from softlinalg.testing._failures import MEANINGS, call, check, name_of
from softlinalg.testing.ratios import THRESHOLD

__all__ = ["assert_gradient", "directional_difference"]

STENCILS = {
    2: ((1, 1 / 2),),
    4: ((1, 2 / 3), (2, -1 / 12)),
    6: ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60)),
}
"""Central differences by order: sum of w (f(x + k h d) - f(x - k h d)) / h over (k, w), with error O(h^order)."""

MEANINGS |= {
    "vjp = difference": "the gradient is not the derivative of the function: <vjp(c), d> differs from the difference quotient of <c, f>",
    "jvp = difference": "the tangent is not the derivative of the function: it differs from the difference quotient along the direction",
    "vjp = complex step": "the gradient differs from the complex step, which has no cancellation",
    "vjp adjoint to jvp": "<c, jvp(d)> and <vjp(c), d> differ: reverse and forward mode are derivatives of different functions",
    "vjp linear": "vjp(2 c) is not 2 vjp(c): the gradient depends on the size of what comes from above",
    "difference settles": "no order and step of differences agree to three digits: a kink or a jump is here, or noise",
    "gradient finite": "the gradient is not finite, or has not the shape of the input",
}

Arrays = list[np.ndarray[Any, Any]]


def assert_gradient(
    f: Callable[..., Array],
    x: Array | Sequence[Array],
    *,
    vjp: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
    direction: Callable[..., Any] | None = None,
    complex_step: bool = False,
    kappa: float = 1.0,
    samples: int = 3,
    seed: int = 0,
    threshold: float = THRESHOLD,
) -> None:
    r"""A gradient is the derivative of its function, and forward and reverse mode are adjoint to each other.

    Parameters
    ----------
    f : function of one or more arrays, giving one array
    x : array, or sequence of arrays
        Where; real, best in float64.
    vjp : function ``vjp(x..., cotangent)``, optional
        Vector-Jacobian product: an array like `x` (a tuple for several). Default for PyTorch and JAX arrays: their own reverse mode
        through `f`.
    jvp : function ``jvp(x..., tangent...)``, optional
        Jacobian-vector product: an array like the result of `f`.
    direction : function of the drawn directions (NumPy arrays, one per array), optional
        Makes a direction admissible, e.g. symmetric: ``lambda d: (d + d.T) / 2``. Gradients of functions of symmetric matrices are
        checked along such directions only.
    complex_step : bool, default False
        Also compare with Im f(x + i h d) / h, h = 1e-200 (1e-20 in float32): exact up to rounding where `f` is analytic and takes complex
        arrays. It must not conjugate: a pseudo-inverse does.
    kappa : float, default 1.0
        Factor by which the derivative amplifies rounding (for a pseudo-inverse its condition squared).
    samples : int, default 3
        Number of random directions and cotangents.
    seed : int
    threshold : float, default 30

    Raises
    ------
    AccuracyError
        With the direction's seed.

    Notes
    -----
    Central differences of order 2, 4 and 6 are taken with steps 2^-4 to 2^-26; the estimate used is the one that agrees best with those of
    the neighboring steps, and that agreement is its error bar. One unit of the ratio is the error bar / 30 plus u D kappa |c| |df|.
    No step is chosen by hand, and a wrong gradient cannot hide behind a badly chosen one: an error bar above 1e-3 of the derivative (as
    at a kink) is itself a failure, "difference settles".

    References
    ----------
    .. [1] Squire & Trapp, Using complex variables to estimate derivatives of real functions (1998).
    .. [2] Fornberg, Generation of finite difference formulas on arbitrarily spaced grids (1988).

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_gradient
    >>> assert_gradient(np.sin, np.asarray([0.3, 1.0]), vjp=lambda x, g: g * np.cos(x))
    """
    points: list[Any] = list(x) if isinstance(x, list | tuple) else [x]
    subject = f"gradient of {name_of(f)}"
    xp = compat.array_namespace(*points)
    hosts = [np.asarray(_arrays.to_numpy(p)) for p in points]
    u = max(unit(_arrays.dtype_name(p.dtype)) for p in points)
    value = np.asarray(_arrays.to_numpy(call(subject, f, *points)))
    back = vjp if vjp is not None else _autodiff(f, points)
    size = max([*(n for h in hosts for n in h.shape[-2:]), 1])
    for sample in range(samples):
        rng = np.random.default_rng([seed, sample])
        d = _directions(hosts, direction, rng)
        c = rng.standard_normal(value.shape)
        note = f"Direction and cotangent of seed [{seed}, {sample}]."
        found = _laws(f, back, jvp, points, hosts, d, c, xp=xp, u=u, unit_size=u * size * kappa, subject=subject, complex_step=complex_step)

        def entry(law: str, c: np.ndarray[Any, Any] = c) -> str:
            located = direction is None and law.startswith("vjp =")
            return _worst_gradient_entry(f, back, points, hosts, c, xp=xp, u=u) if located else ""

        units = f"error bar of the difference / 30 + u D kappa |c| |df|, with u = {u:.3g}, D = {size}, kappa = {kappa:g}"
        check(subject, found, threshold=threshold, units=units, note=note, entry=entry)


def _directions(hosts: Arrays, project: Callable[..., Any] | None, rng: np.random.Generator) -> Arrays:
    """Random directions of the size of the points."""
    drawn: Arrays = [np.asarray(rng.standard_normal(h.shape)) for h in hosts]
    if project is not None:
        made = project(*drawn)
        drawn = [np.asarray(part) for part in made] if isinstance(made, list | tuple) else [np.asarray(made)]
    scale = math.hypot(*(float(np.linalg.norm(h)) for h in hosts)) or 1.0
    length = math.hypot(*(float(np.linalg.norm(part)) for part in drawn)) or 1.0
    return [np.asarray(part * (scale / length)) for part in drawn]


def _laws(
    f: Callable[..., Any], vjp: Callable[..., Any], jvp: Callable[..., Any] | None, points: list[Any], hosts: Arrays, d: Arrays,
    c: np.ndarray[Any, Any], *, xp: Any, u: float, unit_size: float, subject: str, complex_step: bool,
) -> dict[str, float]:  # fmt: skip
    """Ratios of one direction and one cotangent."""

    def like(part: np.ndarray[Any, Any], p: Any) -> Any:
        return xp.asarray(part, dtype=p.dtype, device=compat.device(p))

    def along(t: complex) -> np.ndarray[Any, Any]:
        moved = [h + t * part for h, part in zip(hosts, d, strict=True)]
        if isinstance(t, complex):
            return np.asarray(_arrays.to_numpy(f(*(xp.asarray(m, device=compat.device(p)) for m, p in zip(moved, points, strict=True)))))
        return np.asarray(_arrays.to_numpy(f(*(like(m, p) for m, p in zip(moved, points, strict=True)))))

    cotangent = like(c, points[0])
    gradient = _parts(call(f"{subject}, vjp", vjp, *points, cotangent))
    if [g.shape for g in gradient] != [h.shape for h in hosts] or not all(np.all(np.isfinite(g)) for g in gradient):
        return {"gradient finite": math.inf}
    c = np.asarray(_arrays.to_numpy(cotangent)).astype(np.float64)  # as rounded
    d = [np.asarray(_arrays.to_numpy(like(part, p))).astype(np.float64) for part, p in zip(d, points, strict=True)]
    derivative, bar = directional_difference(along, u=u)
    slope = float(np.sum(c * derivative))
    size_c, size_df = float(np.linalg.norm(c)), float(np.linalg.norm(derivative))
    reverse = sum(float(np.sum(g.astype(np.float64) * part)) for g, part in zip(gradient, d, strict=True))
    lengths = sum(float(np.linalg.norm(g) * np.linalg.norm(part)) for g, part in zip(gradient, d, strict=True))
    rounding = unit_size * max(size_c * size_df, lengths) or u
    allowed = size_c * bar / THRESHOLD + rounding
    reach = size_df or 1.0
    found = {
        "vjp = difference": abs(reverse - slope) / allowed,
        "difference settles": THRESHOLD * bar / (1e-3 * reach + THRESHOLD * unit_size),
    }
    doubled = _parts(call(f"{subject}, vjp", vjp, *points, cotangent * 2))
    spread = max(float(np.linalg.norm(two - 2 * g)) for two, g in zip(doubled, gradient, strict=True))
    found["vjp linear"] = spread / (unit_size * (max(float(np.linalg.norm(g)) for g in gradient) or 1.0))
    if jvp is not None:
        tangents = [like(part, p) for part, p in zip(d, points, strict=True)]
        forward = _parts(call(f"{subject}, jvp", jvp, *points, *tangents))[0].astype(np.float64)
        if forward.shape != derivative.shape or not np.all(np.isfinite(forward)):
            return found | {"jvp = difference": math.inf}
        found["jvp = difference"] = float(np.linalg.norm(forward - derivative)) / (bar / THRESHOLD + unit_size * reach)
        found["vjp adjoint to jvp"] = abs(float(np.sum(c * forward)) - reverse) / rounding
    if complex_step:
        h = 1e-200 if u < 1e-10 else 1e-20
        exact = float(np.sum(c * (np.imag(call(f"{subject}, complex step", along, complex(0, h))) / h)))
        found["vjp = complex step"] = abs(reverse - exact) / rounding
    return found


def _worst_gradient_entry(
    f: Callable[..., Any], vjp: Callable[..., Any], points: list[Any], hosts: Arrays, c: np.ndarray[Any, Any], *, xp: Any, u: float
) -> str:
    """The entry of the gradient that is farthest from differences along the coordinate axes; of the first 32 entries of each array."""
    gradient = _parts(vjp(*points, xp.asarray(c, dtype=points[0].dtype, device=compat.device(points[0]))))
    found = (-1.0, "")
    for which, host in enumerate(hosts):
        for flat in range(min(host.size, 32)):
            index = np.unravel_index(flat, host.shape)
            step = max(abs(float(host[index])), float(np.max(np.abs(host)))) or 1.0

            def along(t: float, which: int = which, index: Any = index, step: float = step) -> np.ndarray[Any, Any]:
                moved = [h.copy() for h in hosts]
                moved[which][index] += t * step
                arrays = [xp.asarray(m, dtype=p.dtype, device=compat.device(p)) for m, p in zip(moved, points, strict=True)]
                return np.asarray(_arrays.to_numpy(f(*arrays)))

            expected = float(np.sum(c * directional_difference(along, u=u, orders=(4,))[0])) / step
            got = float(gradient[which][index])
            if abs(got - expected) > found[0]:
                where = ", ".join(str(int(i)) for i in index)
                argument = f"of argument {which} " if len(hosts) > 1 else ""
                found = (abs(got - expected), f"{argument}[{where}]: got {got:.9g}, expected {expected:.9g}")
    return found[1]


def _parts(result: Any) -> Arrays:
    """Arrays of a vjp or jvp on the host."""
    return [np.asarray(_arrays.to_numpy(part)) for part in (result if isinstance(result, list | tuple) else [result])]


def directional_difference(
    along: Callable[[float], np.ndarray[Any, Any]], *, u: float, orders: tuple[int, ...] = (2, 4, 6)
) -> tuple[np.ndarray[Any, Any], float]:
    r"""Derivative at t = 0 of a function of one number, and an estimate of its error in the 2-norm.

    Parameters
    ----------
    along : function of float to array
        t -> f(x + t d).
    u : float
        Precision of its values.
    orders : tuple of int
        Which of `STENCILS`.

    Returns
    -------
    derivative : numpy array
    error : float

    Notes
    -----
    Steps h = 2^-4, 2^-6, ... down to where rounding drowns everything (u^(2/3)). For each order 2, 4, 6 the distance between the estimates
    of neighboring steps is an error bar for both; the smallest of all wins, but it is never taken below the rounding of the values over h.
    """
    last = max(8, math.ceil(-2 / 3 * math.log2(u)))
    steps = [2.0**-e for e in range(4, last + 1, 2)]
    found: list[tuple[float, np.ndarray[Any, Any]]] = []
    base = float(np.linalg.norm(np.asarray(along(0.0)).astype(np.float64)))
    for order in orders:
        previous: np.ndarray[Any, Any] | None = None
        smallest = math.inf
        for h in steps:
            with np.errstate(all="ignore"):
                terms = [w * (along(k * h).astype(np.float64) - along(-k * h).astype(np.float64)) for k, w in STENCILS[order]]
                estimate = np.asarray(sum(terms) / h)
                bar = math.inf if previous is None else float(np.linalg.norm(estimate - previous))
            bar = max(bar, u * base / h) if math.isfinite(bar) else math.inf
            found.append((bar, estimate))
            if bar > 16 * smallest:  # rounding has taken over: smaller steps are worse
                break
            smallest, previous = min(smallest, bar), estimate
    bar, estimate = min(found, key=operator.itemgetter(0))
    return estimate, bar


def _autodiff(f: Callable[..., Any], points: list[Any]) -> Callable[..., Any]:
    """Reverse mode of the library that the points belong to."""
    torch, jax = sys.modules.get("torch"), sys.modules.get("jax")
    if torch is not None and compat.is_torch_array(points[0]):

        def torch_vjp(*args: Any) -> Any:
            leaves = [p.detach().clone().requires_grad_(True) for p in args[:-1]]
            return torch.autograd.grad(f(*leaves), leaves, args[-1], allow_unused=False)

        return torch_vjp
    if jax is not None and compat.is_jax_array(points[0]):
        return lambda *args: jax.vjp(f, *args[:-1])[1](args[-1])
    message = "assert_gradient: vjp must be given for arrays of a library without derivatives; got None. Pass vjp(x, cotangent)."
    raise ParameterError(message)
