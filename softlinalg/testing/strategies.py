"""Hypothesis strategies for numerical linear algebra: matrices, kernels, points, attention inputs, layouts, and bad inputs.

What is drawn are structure parameters (shape, rank, spectrum, condition, scale) and one integer seed, never single numbers: examples
are quick to make, shrink to the simplest structure that fails, and print as one line of Python that builds them again. Every argument
that says so may be a value, or a strategy for it, or None for the default choice.

At most a tenth of the draws are trivial (rank 0, empty, or 1 x 1), and every draw records its kind by `hypothesis.event`, so
``pytest --hypothesis-show-statistics`` shows how the space of inputs was covered.

Needs hypothesis: ``pip install "softlinalg[testing]"``.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import array_api_compat as compat
import numpy as np

from softlinalg import _arrays
from softlinalg._typing import Array
from softlinalg.testing import _layouts
from softlinalg.testing._cases import MODES, Case, build_graded, build_matrix, exponent_range, largest_cond, unit
from softlinalg.testing._layouts import LAYOUTS, apply_layout
from softlinalg.testing._points import (
    POINT_KINDS,
    AttentionCase,
    PointCase,
    build_attention,
    build_gram,
    build_points,
)

try:
    from hypothesis import event, example
    from hypothesis import strategies as st
except ImportError as error:  # pragma: no cover - exercised in a subprocess
    message = 'softlinalg.testing.strategies needs hypothesis, which is not installed. Run: pip install "softlinalg[testing]".'
    raise ImportError(message) from error

__all__ = [
    "LAYOUTS",
    "MODES",
    "POINT_KINDS",
    "AttentionCase",
    "BadInput",
    "Case",
    "PointCase",
    "Poisoned",
    "apply_layout",
    "attention_inputs",
    "bad_inputs",
    "batch_shapes",
    "batched",
    "build_attention",
    "build_graded",
    "build_gram",
    "build_matrix",
    "build_points",
    "conds",
    "devices",
    "dtypes",
    "exactly_deficient",
    "graded",
    "ladder",
    "landmark_sets",
    "layouts",
    "length_scales",
    "log2_scales",
    "matrices",
    "namespaces",
    "point_clouds",
    "poison",
    "psd",
    "psd_kernels",
    "rectangular",
    "scales",
    "shapes",
    "symmetric",
    "with_spectrum",
]

T = TypeVar("T")
_SEEDS = st.integers(0, 9999)


def _value(draw: Callable[[Any], Any], given: Any, default: Any) -> Any:
    """The value of an argument: given as it is, drawn from a strategy, or drawn from the default strategy."""
    if given is None:
        given = default
    return draw(given) if isinstance(given, st.SearchStrategy) else given


# -------------------------------------------------------------------------------------------------- pieces
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


# ------------------------------------------------------------------------------------------------- matrices
def _ranks(full: int) -> st.SearchStrategy[int]:
    """Full rank in half of the draws, zero in one of forty."""
    lower = list(range(1, full))
    deficient = lower * math.ceil(20 / len(lower)) if lower else []
    return st.sampled_from([full] * (len(deficient) or 40) + deficient + [0])


@st.composite
def matrices(
    draw: Callable[[Any], Any],
    *,
    shape: Any = None,
    rank: Any = None,
    mode: Any = None,
    cond: Any = None,
    log2_scale: Any = None,
    dtype: Any = None,
    structure: Any = "general",
    exact: Any = False,
    batch: Any = (),
    layout: Any = "C",
    xp: Any = "numpy",
    device: Any = None,
    max_side: int = 8,
) -> Case:
    """Matrices of known rank, spectrum and condition, as `build_matrix` makes them.

    Parameters
    ----------
    shape, rank, mode, cond, log2_scale, dtype : value, strategy, or None
        Default: `shapes` (square where `structure` asks for it), full rank in half of the draws, every mode, `conds`, `log2_scales`,
        float32 or float64.
    rank : also "full" or "deficient"
    structure, exact, batch, layout, xp, device : value or strategy
        As in `build_matrix`. For all layouts of a library pass ``layout=layouts(xp)``.
    max_side : int, default 8

    Returns
    -------
    strategy of Case

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.matrices(dtype="float64"), lambda case: case.rank >= 2)
    >>> case.dtype, case.rank >= 2
    ('float64', True)
    """
    structure, xp = _value(draw, structure, "general"), _value(draw, xp, "numpy")
    dtype = _value(draw, dtype, dtypes(xp))
    shape = _value(draw, shape, shapes(max_side=max_side, square=structure != "general", min_side=2 if rank == "deficient" else 1))
    full = min(shape)
    if rank == "deficient":
        rank = st.integers(1, max(1, full - 1))
    rank = full if rank == "full" else _value(draw, rank, _ranks(full))
    mode = _value(draw, mode, st.sampled_from([3, 1, 2, 4, 5, 6, "geometric"]))
    exact = _value(draw, exact, False)
    cond = _value(draw, cond, conds(shape, dtype)) if rank > 1 else 1.0
    if exact:
        bits = (round(1 - math.log2(unit(dtype))) - math.ceil(math.log2(max(rank, 1)))) // 2
        cond = min(cond, 4.0**bits / 64, largest_cond(shape, dtype) / 2)
    scale = _value(draw, log2_scale, log2_scales(dtype, cond))
    case = build_matrix(
        shape=tuple(shape), rank=rank, mode=mode, cond=max(1.0, cond), log2_scale=scale, dtype=dtype,
        structure=structure, exact=exact, batch=tuple(_value(draw, batch, ())), layout=_value(draw, layout, "C"), xp=xp,
        device=_value(draw, device, st.none()), seed=draw(_SEEDS),
    )  # fmt: skip
    _record(case)
    return case


def _record(case: Case) -> None:
    kind = "trivial" if case.is_trivial else ("full rank" if case.rank == min(case.shape) else "deficient")
    event(f"matrix: {kind}")
    event(f"condition: 1e{int(math.log10(case.kappa) + 1e-9)}, {case.dtype}")
    if "mode" in case.extra:
        event(f"mode: {case.extra['mode']}")
    event(f"layout: {case.extra.get('layout')}, {case.extra.get('xp')}")


def with_spectrum(s: Any, *, shape: Any = None, **settings: Any) -> st.SearchStrategy[Case]:
    """Matrices with the singular values given: a descending sequence, or a strategy for one. `settings` as in `matrices`.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.with_spectrum([4.0, 1.0], dtype="float64"), lambda case: True)
    >>> np.round(np.linalg.svd(case.A, compute_uv=False)[:2], 6)
    array([4., 1.])
    """

    @st.composite
    def drawn(draw: Callable[[Any], Any]) -> Case:
        values = [float(value) for value in _value(draw, s, None)]
        least = max(1, len(values))
        square = settings.get("structure", "general") != "general"
        chosen = _value(draw, shape, st.tuples(st.integers(least, least + 4), st.integers(least, least + 4)))
        case = build_matrix(
            shape=(chosen[0], chosen[0]) if square and shape is None else tuple(chosen),
            s=tuple(values),
            dtype=_value(draw, settings.get("dtype"), dtypes(settings.get("xp", "numpy"))),
            seed=draw(_SEEDS),
            **{key: _value(draw, value, None) for key, value in settings.items() if key != "dtype"},
        )
        _record(case)
        return case

    return drawn()


def symmetric(**settings: Any) -> st.SearchStrategy[Case]:
    """Hermitian matrices with eigenvalues of both signs. `settings` as in `matrices`.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.symmetric(dtype="float64"), lambda case: True)
    >>> bool(np.all(case.A == case.A.T))
    True
    """
    return matrices(structure="symmetric", **settings)


def psd(**settings: Any) -> st.SearchStrategy[Case]:
    """Positive semi-definite matrices. `settings` as in `matrices`.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.psd(dtype="float64"), lambda case: True)
    >>> bool(np.linalg.eigvalsh(case.A).min() > -1e-12 * case.s[0])
    True
    """
    return matrices(structure="psd", **settings)


def rectangular(*, max_side: int = 8, **settings: Any) -> st.SearchStrategy[Case]:
    """Matrices that are not square. `settings` as in `matrices`.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.rectangular(dtype="float64"), lambda case: True)
    >>> case.A.shape[0] != case.A.shape[1]
    True
    """
    return matrices(shape=shapes(max_side=max_side, rectangular=True), **settings)


def batched(**settings: Any) -> st.SearchStrategy[Case]:
    """Batches of matrices of one spectrum. `settings` as in `matrices`.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.batched(dtype="float64"), lambda case: True).A.ndim > 2
    True
    """
    return matrices(batch=batch_shapes(), **settings)


def exactly_deficient(**settings: Any) -> st.SearchStrategy[Case]:
    """Matrices whose rank is below min(m, n) in exact arithmetic: products of integer matrices that the type holds without rounding.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.exactly_deficient(dtype="float64"), lambda case: True)
    >>> case.rank < min(case.A.shape)
    True
    """
    return matrices(rank="deficient", exact=True, **settings)


@st.composite
def graded(
    draw: Callable[[Any], Any], *, shape: Any = None, step: Any = None, sides: Any = None, dtype: Any = None, layout: Any = "C",
    xp: Any = "numpy", device: Any = None, max_side: int = 6,
) -> Case:  # fmt: skip
    """Badly scaled matrices, their rows, columns or both graded by powers of two (see `build_graded`); the rank is beyond dispute.

    Arguments are values, strategies or None.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.graded(dtype="float64"), lambda case: True)
    >>> bool(case.kappa >= 1)
    True
    """
    xp = _value(draw, xp, "numpy")
    dtype = _value(draw, dtype, dtypes(xp))
    shape = _value(draw, shape, shapes(max_side=max_side, min_side=2))
    sides = _value(draw, sides, st.sampled_from(["both", "rows", "columns"]))
    # D_1 G D_2 has a condition of at most cond(D_1) cond(G) cond(D_2): keep it below what the type can tell.
    span = sum(side - 1 for side, name in zip(shape, ("rows", "columns"), strict=True) if sides in ("both", name))
    limit = math.log2(largest_cond(shape, dtype) / 10) / max(1, span)
    step = _value(draw, step, st.integers(1, 4).map(lambda quarter: round(limit * quarter / 4, 1)))
    case = build_graded(
        shape=tuple(shape), step=step, sides=sides, dtype=dtype, layout=_value(draw, layout, "C"), xp=xp, device=device, seed=draw(_SEEDS)
    )
    _record(case)
    return case


def ladder(
    name: str = "case", *, dtype: str = "float64", shape: tuple[int, int] = (6, 4), seed: int = 0, **settings: Any
) -> Callable[[T], T]:
    """Decorator that adds the whole ladder of conditions, at full and at deficient rank, as explicit examples.

    Below ``@given``, so that these cases run always, whatever is drawn:

    >>> @given(case=matrices(dtype="float32"))            # doctest: +SKIP
    ... @ladder("case", dtype="float32")
    ... def test_my_pinv(case): ...

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import given, settings
    >>> from softlinalg.testing import assert_pinv, strategies
    >>> @strategies.ladder(dtype="float64")
    ... @settings(max_examples=1)
    ... @given(case=strategies.matrices(dtype="float64"))
    ... def test(case):
    ...     assert_pinv(np.linalg.pinv, case)
    >>> test()
    """
    top = largest_cond(shape, dtype)
    rungs = sorted({min(rung, top) for rung in (1.0, 2.0, 10.0, 100.0, math.sqrt(0.1 / unit(dtype)), 0.1 / unit(dtype))})

    def add(test: T) -> T:
        for cond in rungs:
            for rank in (min(shape), max(1, min(shape) // 2)):
                case = build_matrix(shape=shape, rank=rank, cond=cond, dtype=dtype, seed=seed, **settings)
                test = example(**{name: case})(test)  # type: ignore[type-var]
        return test

    return add


# --------------------------------------------------------------------------------------- points and kernels
@st.composite
def point_clouds(
    draw: Callable[[Any], Any], *, shape: Any = None, kind: Any = None, log2_scale: Any = 0, dtype: Any = None, batch: Any = (),
    layout: Any = "C", xp: Any = "numpy", device: Any = None, max_points: int = 12,
) -> PointCase:  # fmt: skip
    """Sets of points of every kind in `POINT_KINDS` (see `build_points`). Arguments are values, strategies or None.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.point_clouds(kind="clustered", dtype="float64"), lambda case: True).kind
    'clustered'
    """
    xp = _value(draw, xp, "numpy")
    drawn = build_points(
        shape=tuple(_value(draw, shape, st.tuples(st.integers(2, max_points), st.integers(1, 5)))),
        kind=_value(draw, kind, st.sampled_from(POINT_KINDS)),
        log2_scale=_value(draw, log2_scale, 0),
        dtype=_value(draw, dtype, dtypes(xp)),
        batch=tuple(_value(draw, batch, ())),
        layout=_value(draw, layout, "C"),
        xp=xp,
        device=device,
        seed=draw(_SEEDS),
    )
    event(f"points: {drawn.kind}, {drawn.dtype}")
    return drawn


def length_scales(points: PointCase | None = None) -> st.SearchStrategy[float]:
    """Length scales from far below to far above the distances between points: 2**e times their spread (1 without points).

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.length_scales(), lambda scale: scale > 0) > 0
    True
    """
    spread = 1.0
    if points is not None and points.host.size:
        host = points.host.reshape(-1, points.shape[1])
        spread = float(np.sqrt(np.sum(np.var(host, axis=0)))) or 1.0
    base = 2.0 ** round(math.log2(spread))
    return st.integers(-6, 6).map(lambda e: base * 2.0**e)


@st.composite
def psd_kernels(
    draw: Callable[[Any], Any], *, shape: Any = None, kind: Any = None, length_scale: Any = None, dtype: Any = None, layout: Any = "C",
    xp: Any = "numpy", device: Any = None, max_points: int = 10,
) -> Case:  # fmt: skip
    """Gaussian kernel matrices of sets of points of every kind (see `build_gram`). Arguments are values, strategies or None.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.psd_kernels(dtype="float64"), lambda case: True)
    >>> bool(np.all(np.diagonal(case.A) == 1.0))
    True
    """
    xp = _value(draw, xp, "numpy")
    case = build_gram(
        shape=tuple(_value(draw, shape, st.tuples(st.integers(2, max_points), st.integers(1, 4)))),
        kind=_value(draw, kind, st.sampled_from(POINT_KINDS)),
        length_scale=_value(draw, length_scale, st.integers(-3, 4).map(lambda e: 2.0**e)),
        dtype=_value(draw, dtype, dtypes(xp)),
        layout=_value(draw, layout, "C"),
        xp=xp,
        device=device,
        seed=draw(_SEEDS),
    )
    _record(case)
    event(f"kernel of points: {case.extra['kind']}")
    return case


@st.composite
def landmark_sets(draw: Callable[[Any], Any], n: int, *, count: Any = None, duplicates: bool = False) -> tuple[int, ...]:
    """Row numbers of landmarks among n points: different ones, or with `duplicates` some of them twice. `count`: value or strategy.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> rows = find(strategies.landmark_sets(5, count=2), lambda rows: True)
    >>> len(set(rows)), max(rows) < 5
    (2, True)
    """
    m = _value(draw, count, st.integers(1, n))
    chosen = draw(st.permutations(range(n)))[:m]
    if duplicates:
        chosen = [*chosen, *(chosen[: max(1, m // 2)])]
    return tuple(chosen)


@st.composite
def attention_inputs(
    draw: Callable[[Any], Any], *, tokens: Any = None, features: Any = None, landmarks: Any = None, keys: Any = None, heads: Any = None,
    kind: Any = None, magnitude: Any = None, hidden: Any = None, dtype: Any = None, layout: Any = "C", xp: Any = "numpy",
    device: Any = None,
) -> AttentionCase:  # fmt: skip
    """Inputs of an attention (see `build_attention`). Arguments are values, strategies or None.

    By default 2 to 12 tokens, self- and cross-attention, with and without a mask, with and without batch axes.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.attention_inputs(dtype="float32"), lambda case: True)
    >>> case.q.shape[-1] == case.landmarks.shape[-1]
    True
    """
    xp = _value(draw, xp, "numpy")
    n = _value(draw, tokens, st.integers(2, 12))
    count = _value(draw, keys, st.one_of(st.none(), st.none(), st.integers(2, 12)))
    absent = _value(draw, hidden, st.sampled_from([0, 0, 1]))
    case = build_attention(
        tokens=n,
        features=_value(draw, features, st.integers(1, 6)),
        landmarks=_value(draw, landmarks, st.integers(1, n)),
        keys=count,
        heads=tuple(_value(draw, heads, st.sampled_from([(), (2,), (2, 3)]))),
        kind=_value(draw, kind, st.sampled_from(["normal", "clustered", "duplicated", "collinear", "grid", "all-equal"])),
        magnitude=_value(draw, magnitude, st.sampled_from([1.0, 0.125, 4.0])),
        hidden=min(absent, (n if count is None else count) - 1),
        dtype=_value(draw, dtype, dtypes(xp)),
        layout=_value(draw, layout, "C"),
        xp=xp,
        device=device,
        seed=draw(_SEEDS),
    )
    event(f"attention: {'cross' if count is not None else 'self'}, {case.extra['kind']}, {case.dtype}")
    return case


# --------------------------------------------------------------------------------------------------- damage
@dataclass(frozen=True, repr=False)
class Poisoned:
    """An array with one number replaced by NaN or infinity.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> poisoned = find(strategies.poison(np.ones((2, 2))), lambda poisoned: True)
    >>> bool(np.isfinite(poisoned.array[poisoned.index]))
    False
    """

    array: Array
    index: tuple[int, ...]
    value: float

    def __repr__(self) -> str:
        name = _arrays.dtype_name(self.array.dtype)
        return f"Poisoned(index={self.index}, value={self.value}, shape={tuple(self.array.shape)}, dtype={name})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


@st.composite
def poison(draw: Callable[[Any], Any], array: Array, *, member: int | None = None) -> Poisoned:
    """A copy of an array with NaN, inf or -inf at one place; with `member` in that matrix of the first batch axis.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.poison(np.ones(3)), lambda poisoned: poisoned.value > 0).value
    inf
    """
    xp = compat.array_namespace(array)
    lengths = [int(length) for length in array.shape]
    index = tuple(draw(st.integers(0, length - 1)) for length in lengths)
    if member is not None:
        index = (member, *index[1:])
    value = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    host = np.array(_arrays.to_numpy(array), copy=True)
    host[index] = value
    event(f"poison: {value}")
    name = _arrays.dtype_name(array.dtype)
    if isinstance(array, np.ndarray):
        return Poisoned(host, index, value)
    return Poisoned(xp.asarray(host, dtype=getattr(xp, name), device=compat.device(array)), index, value)


@dataclass(frozen=True, repr=False)
class BadInput:
    """Something that a function of matrices has to refuse, and why.

    Examples
    --------
    >>> from softlinalg.testing import strategies
    >>> strategies.BadInput([["x"]], "text")
    BadInput(text)
    """

    value: Any
    reason: str

    def __repr__(self) -> str:
        return f"BadInput({self.reason})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))


def bad_inputs(xp: Any = "numpy") -> st.SearchStrategy[BadInput]:
    """What a function of one finite floating matrix should refuse with a documented error: never a crash, never numbers.

    NaN, infinity, too few axes, text, objects, masked arrays, sparse matrices, nested lists of unequal lengths, None, dictionaries.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.bad_inputs(), lambda bad: True).reason != ""
    True
    """
    return st.one_of(_non_finite(xp), _wrong_axes(xp), _no_matrix())


@st.composite
def _non_finite(draw: Callable[[Any], Any], xp: Any) -> BadInput:
    case = draw(matrices(xp=xp, rank="full", log2_scale=0))
    poisoned = draw(poison(case.A))
    return BadInput(poisoned.array, f"{poisoned.value} at {poisoned.index} of {case.desc}")


@st.composite
def _wrong_axes(draw: Callable[[Any], Any], xp: Any) -> BadInput:
    length = draw(st.one_of(st.none(), st.integers(0, 5)))
    host = np.ones(() if length is None else (length,))
    dtype = draw(dtypes(xp))
    return BadInput(_layouts.place(host.astype(dtype), dtype=dtype, xp=xp), f"an array of shape {host.shape}, {dtype}")


def _no_matrix() -> st.SearchStrategy[BadInput]:
    """Fresh values at each draw: none of them is an array of numbers."""
    import scipy.sparse

    makers: list[tuple[str, Callable[[], Any]]] = [
        ("None", lambda: None),
        ("text", lambda: "matrix"),
        ("bytes", lambda: b"\x00\x01"),
        ("a dictionary", lambda: {"a": 1}),
        ("a set", lambda: {1, 2}),
        ("a function", lambda: len),
        ("an object array", lambda: np.array([[None, 1], [2, object()]], dtype=object)),
        ("an array of text", lambda: np.array([["a", "b"], ["c", "d"]])),
        ("an array of dates", lambda: np.array([["2020-01-01"] * 2] * 2, dtype="datetime64[D]")),
        ("a structured array", lambda: np.zeros((2, 2), dtype=[("a", float)])),
        ("a masked array", lambda: np.ma.masked_array(np.eye(2), mask=[[True, False], [False, False]])),
        ("a sparse matrix", lambda: scipy.sparse.csr_matrix(np.eye(3))),
        ("lists of unequal lengths", lambda: [[1.0, 2.0], [3.0]]),
        ("a list of text", lambda: [["a"], ["b"]]),
        ("the whole numbers as an iterator", lambda: iter([1.0, 2.0])),
    ]  # fmt: skip
    return st.sampled_from(range(len(makers))).map(lambda i: BadInput(makers[i][1](), makers[i][0]))
