"""Hypothesis strategies for numerical linear algebra: matrices, kernels, points, attention inputs, layouts, and bad inputs.

What is drawn are structure parameters (shape, rank, spectrum, condition, scale) and one integer seed, never single numbers: examples
are quick to make, shrink to the simplest structure that fails, and print as one line of Python that builds them again. Every argument
that says so may be a value, or a strategy for it, or None for the default choice.

At most a tenth of the draws are trivial (rank 0, empty, or 1 x 1), and every draw records its kind by `hypothesis.event`, so
``pytest --hypothesis-show-statistics`` shows how the space of inputs was covered.

Needs hypothesis: ``pip install "softlinalg[testing]"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import array_api_compat as compat
import numpy as np

from softlinalg import _arrays
from softlinalg._typing import Array
from softlinalg.testing import _layouts
from softlinalg.testing._cases import MODES, Case, build_graded, build_matrix
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
    from hypothesis import event
    from hypothesis import strategies as st
except ImportError as _error:  # pragma: no cover - exercised in a subprocess
    _message = 'softlinalg.testing.strategies needs hypothesis, which is not installed. Run: pip install "softlinalg[testing]".'
    raise ImportError(_message) from _error

from softlinalg.testing._strategies_matrices import (
    batched,
    exactly_deficient,
    graded,
    ladder,
    matrices,
    psd,
    record,
    rectangular,
    symmetric,
    with_spectrum,
)
from softlinalg.testing._strategies_pieces import (
    SEEDS,
    batch_shapes,
    conds,
    devices,
    dtypes,
    layouts,
    log2_scales,
    namespaces,
    pick,
    scales,
    shapes,
)

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
    xp = pick(draw, xp, "numpy")
    drawn = build_points(
        shape=tuple(pick(draw, shape, st.tuples(st.integers(2, max_points), st.integers(1, 5)))),
        kind=pick(draw, kind, st.sampled_from(POINT_KINDS)),
        log2_scale=pick(draw, log2_scale, 0),
        dtype=pick(draw, dtype, dtypes(xp)),
        batch=tuple(pick(draw, batch, ())),
        layout=pick(draw, layout, "C"),
        xp=xp,
        device=device,
        seed=draw(SEEDS),
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
    xp = pick(draw, xp, "numpy")
    case = build_gram(
        shape=tuple(pick(draw, shape, st.tuples(st.integers(2, max_points), st.integers(1, 4)))),
        kind=pick(draw, kind, st.sampled_from(POINT_KINDS)),
        length_scale=pick(draw, length_scale, st.integers(-3, 4).map(lambda e: 2.0**e)),
        dtype=pick(draw, dtype, dtypes(xp)),
        layout=pick(draw, layout, "C"),
        xp=xp,
        device=device,
        seed=draw(SEEDS),
    )
    record(case)
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
    m = pick(draw, count, st.integers(1, n))
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
    xp = pick(draw, xp, "numpy")
    n = pick(draw, tokens, st.integers(2, 12))
    count = pick(draw, keys, st.one_of(st.none(), st.none(), st.integers(2, 12)))
    absent = pick(draw, hidden, st.sampled_from([0, 0, 1]))
    case = build_attention(
        tokens=n,
        features=pick(draw, features, st.integers(1, 6)),
        landmarks=pick(draw, landmarks, st.integers(1, n)),
        keys=count,
        heads=tuple(pick(draw, heads, st.sampled_from([(), (2,), (2, 3)]))),
        kind=pick(draw, kind, st.sampled_from(["normal", "clustered", "duplicated", "collinear", "grid", "all-equal"])),
        magnitude=pick(draw, magnitude, st.sampled_from([1.0, 0.125, 4.0])),
        hidden=min(absent, (n if count is None else count) - 1),
        dtype=pick(draw, dtype, dtypes(xp)),
        layout=pick(draw, layout, "C"),
        xp=xp,
        device=device,
        seed=draw(SEEDS),
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
        ("an iterator of numbers", lambda: iter([1.0, 2.0])),
    ]  # fmt: skip
    return st.sampled_from(range(len(makers))).map(lambda i: BadInput(makers[i][1](), makers[i][0]))
