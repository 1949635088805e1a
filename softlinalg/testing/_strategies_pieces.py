"""Strategies for what matrices are made of: shapes, conditions, scales, data types, layouts, libraries. See `strategies`."""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from softlinalg import _arrays
from softlinalg.testing import _layouts
from softlinalg.testing._cases import exponent_range, largest_cond, unit

__all__ = ["SEEDS", "batch_shapes", "conds", "devices", "dtypes", "layouts", "log2_scales", "namespaces", "pick", "scales", "shapes"]

SEEDS = st.integers(0, 9999)


def pick(draw: Callable[[Any], Any], given: Any, default: Any) -> Any:
    """The value of an argument: given as it is, drawn from a strategy, or drawn from the default strategy."""
    if given is None:
        given = default
    return draw(given) if isinstance(given, st.SearchStrategy) else given


def shapes(*, max_side: int = 8, min_side: int = 1, square: bool = False, rectangular: bool = False) -> st.SearchStrategy[tuple[int, int]]:
    """Shapes (m, n), all about equally likely, small ones first; 1 x 1 in at most one draw of forty.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> shape = find(strategies.shapes(rectangular=True), lambda shape: shape[0] > 1)      # the simplest that fits
    >>> shape[0] != shape[1]
    True
    """
    sides = range(min_side, max_side + 1)
    allowed = [(m, n) for m in sides for n in sides if (not square or m == n) and (not rectangular or m != n) and (m, n) != (1, 1)]
    allowed.sort(key=lambda shape: (shape[0] * shape[1], shape))
    if not allowed:
        return st.just((1, 1))
    repeated = allowed * max(1, math.ceil(40 / len(allowed)))
    return st.sampled_from(repeated + ([(1, 1)] if min_side <= 1 and not rectangular else []))


def conds(shape: tuple[int, int], dtype: str) -> st.SearchStrategy[float]:
    """Conditions: the ladder 1, 2, 10, 1e2, sqrt(.1 / u), .1 / u as far as it is decidable (see `largest_cond`), and those between.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.conds((3, 3), "float32"), lambda cond: cond > 1) > 1
    True
    """
    top = largest_cond(shape, dtype)
    limit = 0.1 / unit(dtype)
    rungs = [2.0, 10.0, 100.0, math.sqrt(limit), limit, 1.0, limit, limit / 10]  # where things break is drawn more often
    between = st.integers(0, 10 * max(0, int(math.log10(top)))).map(lambda tenths: float(f"{10 ** (tenths / 10):.2g}"))
    return st.one_of(st.sampled_from([float(f"{min(rung, top):.3g}") for rung in rungs]), between).map(lambda cond: min(cond, top))


def log2_scales(dtype: str, cond: float = 1.0) -> st.SearchStrategy[int]:
    """Exponents of an overall scale at which a matrix of that condition, and its pseudo-inverse, stay in the normal range; often 0.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> isinstance(find(strategies.log2_scales("float32"), lambda power: True), int)
    True
    """
    low, high = exponent_range(dtype)
    bits, digits = 1 - round(math.log2(unit(dtype))), math.ceil(math.log2(max(cond, 1.0)))
    bottom, top = min(0, max(low + bits + digits, digits - high + 4)), max(0, min(high - 4, -low - bits))
    wide = st.integers(bottom, top)
    return st.one_of(st.just(0), wide, st.sampled_from([bottom, top]))


def scales(dtype: str = "float64", *, subnormal: bool = True) -> st.SearchStrategy[float]:
    """Powers of two from the smallest subnormal (or normal) number of a type to half of the largest.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.scales("float32"), lambda scale: True) > 0
    True
    """
    low, high = exponent_range(dtype)
    bits = 1 - round(math.log2(unit(dtype)))
    bottom = low - (bits - 1 if subnormal else 0)
    return st.one_of(st.integers(bottom, high - 1), st.sampled_from([0, bottom, low, high - 1])).map(lambda e: math.ldexp(1.0, e))


def dtypes(xp: Any = "numpy", *, kind: str = "real") -> st.SearchStrategy[str]:
    """Names of floating types that a library has here: `kind` "real" (float32, float64), "half", "complex", or "floating" (all).

    float64 of JAX only where 64-bit types are on.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.dtypes("numpy", kind="complex"), lambda name: True) in ("complex64", "complex128")
    True
    """
    groups = {"real": ["float32", "float64"], "half": ["float16", "bfloat16"], "complex": ["complex64", "complex128"]}
    wanted = groups[kind] if kind != "floating" else [*groups["real"], *groups["half"], *groups["complex"]]
    return st.sampled_from([dtype for dtype in wanted if _has_dtype(_layouts.namespace_name(xp), xp, dtype)])


def _has_dtype(name: str, xp: Any, dtype: str) -> bool:
    if name == "numpy":
        return dtype != "bfloat16"
    namespace = _layouts.as_namespace(xp)
    if not hasattr(namespace, dtype):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX says that it truncates
        return name != "jax" or _arrays.dtype_name(namespace.zeros((), dtype=getattr(namespace, dtype)).dtype) == dtype


def layouts(xp: Any = "numpy") -> st.SearchStrategy[str]:
    """Names of the memory layouts that arrays of a library can have, the plain one first (see `LAYOUTS`).

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.layouts("numpy"), lambda name: name != "C") in strategies.LAYOUTS
    True
    """
    return st.sampled_from(_layouts.supported_layouts(xp))


def namespaces(names: Sequence[str] = ("numpy", "array_api_strict", "torch", "jax")) -> st.SearchStrategy[str]:
    """Names of the array libraries among `names` that are installed; they do for every argument `xp`.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.namespaces(["numpy"]), lambda name: True)
    'numpy'
    """
    roots = {"numpy": "numpy", "array_api_strict": "array_api_strict", "torch": "torch", "jax": "jax", "cupy": "cupy"}
    return st.sampled_from([name for name in names if importlib.util.find_spec(roots[name]) is not None])


def devices(xp: Any = "numpy") -> st.SearchStrategy[Any]:
    """Devices of a library: the default (None) first, then those that it lists, without PyTorch's "meta", which holds no numbers.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.devices("numpy"), lambda device: True) is None
    True
    """
    namespace = _layouts.as_namespace(xp)
    info = getattr(namespace, "__array_namespace_info__", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of device types on their way out
        found = [] if info is None else [device for device in info().devices() if device is not None and str(device) != "meta"]
    return st.sampled_from([None, *found])


def batch_shapes(*, max_members: int = 6, empty: bool = False) -> st.SearchStrategy[tuple[int, ...]]:
    """Batch axes, up to two, of at most `max_members` matrices; with `empty` also none at all.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> len(find(strategies.batch_shapes(), lambda shape: len(shape) == 2))
    2
    """
    known: list[tuple[int, ...]] = [(2,), (3,), (1,), (2, 2), (3, 2), (1, 4), (6,), (2, 1)]
    allowed = [batch for batch in known if math.prod(batch) <= max_members]
    return st.sampled_from(allowed + ([(0,), (2, 0)] if empty else []))
