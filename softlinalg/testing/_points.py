"""Test points, kernel matrices and attention inputs from structure parameters and one seed."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from softlinalg import _arrays
from softlinalg._settings import whole_number
from softlinalg._typing import Array
from softlinalg.errors import ParameterError
from softlinalg.testing import _layouts
from softlinalg.testing._builder_settings import LARGEST, REAL_TYPES, check_settings, choice
from softlinalg.testing._cases import Case, call_line, case_of, unit

__all__ = ["POINT_KINDS", "AttentionCase", "PointCase", "build_attention", "build_gram", "build_points", "gaussian_values"]

POINT_KINDS = ("normal", "clustered", "duplicated", "collinear", "grid", "one-far", "offset", "all-equal", "far-apart", "two-groups")
"""Kinds of point sets. "normal": standard normal. "clustered": tight groups (spread 1e-3). "duplicated": each point about three times.
"collinear": on a line. "grid": on an integer grid. "one-far": normal, and one point 1000 away. "offset": normal, all of it
1000 away from the origin. "all-equal": one point repeated. "far-apart": pairwise distances of at least 100. "two-groups": normal, and
every fourth point 30,000 away, so that close points lie far from the middle of all."""

_DEFAULTS = {
    "kind": "normal", "dtype": "float64", "log2_scale": 0, "length_scale": 1.0, "batch": (), "layout": "C", "xp": "numpy",
    "device": None, "keys": None, "heads": (), "magnitude": 1.0, "hidden": 0, "value_features": None,
}  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class PointCase:
    """A set of points. Its `repr` is a line that builds it again.

    Attributes
    ----------
    x : array, shape (..., n, d)
        In its library, data type, device and memory layout.
    kind : str
        One of `POINT_KINDS`.
    dtype, desc, code : str
        As in `Case`.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_points
    >>> build_points(shape=(5, 2), kind="grid", seed=3)
    softlinalg.testing.build_points(shape=(5, 2), kind='grid', seed=3)
    """

    x: Array
    kind: str
    dtype: str
    desc: str
    code: str
    extra: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.code

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.code)  # hypothesis prints the fields of a dataclass otherwise

    @property
    def u(self) -> float:
        """eps of the data type."""
        return unit(self.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """(n, d), without the batch axes."""
        return int(self.x.shape[-2]), int(self.x.shape[-1])

    @property
    def is_trivial(self) -> bool:
        """At most one point."""
        return self.shape[0] <= 1

    @functools.cached_property
    def host(self) -> np.ndarray[Any, Any]:
        """The numbers as float64 (every type of points fits), C order."""
        return np.array(_arrays.to_numpy(self.x), dtype=np.float64, order="C")


@dataclass(frozen=True, eq=False, repr=False)
class AttentionCase:
    """Inputs of an attention. Its `repr` is a line that builds it again.

    Attributes
    ----------
    q : array, shape (..., n, d)
    k : array, shape (..., keys, d), or None
        None for self-attention.
    v : array, shape (..., keys, e)
    landmarks : array, shape (..., m, d)
        Rows of the queries, evenly spaced.
    key_padding_mask : boolean array, shape (..., keys), or None
        True for keys that count as absent; never all of them.
    length_scale : float
        d^(1/4).
    dtype, desc, code : str
        As in `Case`.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_attention
    >>> build_attention(tokens=12, features=4, landmarks=5, seed=3)
    softlinalg.testing.build_attention(tokens=12, features=4, landmarks=5, seed=3)
    """

    q: Array
    k: Array | None
    v: Array
    landmarks: Array
    key_padding_mask: Array | None
    length_scale: float
    dtype: str
    desc: str
    code: str
    extra: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.code

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.code)  # hypothesis prints the fields of a dataclass otherwise

    @property
    def u(self) -> float:
        """eps of the data type."""
        return unit(self.dtype)

    @property
    def is_trivial(self) -> bool:
        """One token."""
        return int(self.q.shape[-2]) <= 1


def _points(kind: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """(n, d) in float64."""
    normal = rng.standard_normal((n, d))
    if kind == "normal":
        return np.asarray(normal)
    if kind == "clustered":
        return np.asarray(rng.standard_normal((max(1, n // 4), d))[rng.integers(max(1, n // 4), size=n)] + 1e-3 * normal)
    if kind == "duplicated":
        return np.asarray(normal[rng.integers(max(1, math.ceil(n / 3)), size=n)])
    if kind == "collinear":
        return np.asarray(np.round(16 * normal[:, :1]) / 16 * np.sign(normal[:1] + 0.01))
    if kind == "grid":
        side = max(2, math.ceil(n ** (1 / d)))
        # At most 62 axes matter: 2**62 points are more than anybody asks for.
        digits = np.arange(n)[:, None] // side ** np.minimum(np.arange(d), 62 // max(1, side.bit_length())) % side
        return np.asarray(digits, dtype=np.float64)
    if kind == "one-far":
        normal[-1] += 1000.0
        return normal
    if kind == "offset":
        return normal + 1000.0
    if kind == "all-equal":
        return np.broadcast_to(normal[:1], (n, d)).copy()
    if kind == "far-apart":
        normal[:, 0] += 110.0 * rng.permutation(n)
        return normal
    normal[3::4] += 3e4  # two-groups
    return normal


def build_points(
    *, shape: tuple[int, int], kind: str = "normal", log2_scale: int = 0, dtype: str = "float64", batch: tuple[int, ...] = (),
    layout: str = "C", xp: Any = "numpy", device: Any = None, seed: int = 0,
) -> PointCase:  # fmt: skip
    """A set of points (or a batch of sets).

    Parameters
    ----------
    shape : (n, d)
    kind : str, default "normal"
        One of `POINT_KINDS`.
    log2_scale : int, default 0
        All is multiplied by 2**log2_scale.
    dtype : str
        A real floating type.
    batch, layout, xp, device, seed
        As in `build_matrix`.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_points
    >>> case = build_points(shape=(5, 2), kind="duplicated")
    >>> case.x.shape, len(np.unique(case.x, axis=0)) < 5
    ((5, 2), True)
    """
    check_settings("build_points", shape=shape, axes={"batch": batch}, dtype=dtype, types=REAL_TYPES, layout=layout, xp=xp, seed=seed)
    log2_scale = whole_number(log2_scale, func="build_points", name="log2_scale", minimum=-20000, maximum=20000)
    choice("build_points", "kind", kind, POINT_KINDS)
    name = _layouts.namespace_name(xp)
    code = call_line(
        "build_points", _DEFAULTS, shape=shape, kind=kind, log2_scale=log2_scale, dtype=dtype, batch=batch, layout=layout, xp=name,
        device=device, seed=seed,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    n, d = shape
    members = [np.ldexp(_points(kind, n, d, rng), log2_scale) for _ in range(math.prod(batch))]
    if layout == "broadcast":
        members = members[:1] * len(members)
    host = _layouts.round_to(np.array(members).reshape(*batch, n, d), dtype)
    more = "".join(f", {part}" for part in (f"times 2^{log2_scale}" if log2_scale else "", f"batch {batch}" if batch else "") if part)
    return PointCase(
        x=_layouts.place(host, dtype=dtype, xp=xp, layout=layout, device=device),
        kind=kind,
        dtype=dtype,
        desc=f"{n} {kind} points of {d} features{more}, {name} {dtype}",
        code=code,
        extra={"layout": layout, "xp": name, "log2_scale": log2_scale},
    )


def gaussian_values(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], length_scale: float) -> np.ndarray[Any, Any]:
    r"""exp(-|x_i - y_j|^2 / (2 l^2)) from differences, in long double: the truth for kernels of points in any type, shape (..., n, m).

    Relative error below (d + 4 + exponent) 2^-63 where long double has 64 bits, (d + 4 + exponent) 2^-52 elsewhere. Overflow of a
    distance gives 0.
    """
    wide_x, wide_y = np.asarray(x, dtype=np.longdouble), np.asarray(y, dtype=np.longdouble)
    scale = np.longdouble(length_scale)
    with np.errstate(all="ignore"):
        total = np.zeros((*np.broadcast_shapes(wide_x.shape[:-2], wide_y.shape[:-2]), wide_x.shape[-2], wide_y.shape[-2]), np.longdouble)
        for feature in range(wide_x.shape[-1]):
            total += ((wide_x[..., :, None, feature] - wide_y[..., None, :, feature]) / scale) ** 2
        return np.asarray(np.exp(-total / 2))


def build_gram(
    *, shape: tuple[int, int], kind: str = "normal", length_scale: float = 1.0, dtype: str = "float64", layout: str = "C",
    xp: Any = "numpy", device: Any = None, seed: int = 0,
) -> Case:  # fmt: skip
    """Gaussian kernel matrix of a set of points, correctly rounded, symmetric bit for bit, its diagonal exactly one.

    Parameters
    ----------
    shape : (n, d)
        Number of points and of their features: the matrix is n x n.
    kind, dtype, layout, xp, device, seed
        As in `build_points`.
    length_scale : float, default 1.0

    Returns
    -------
    Case
        Positive semi-definite up to n u / 2; singular values and rank measured; `gap` says whether the rank is beyond dispute, which for
        such matrices it often is not. `extra["points"]` holds the points in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_gram
    >>> case = build_gram(shape=(5, 2), length_scale=0.5)
    >>> bool(np.all(np.diagonal(case.A) == 1.0)), bool(np.all(case.A == case.A.T))
    (True, True)
    """
    settings: dict[str, Any] = {"dtype": dtype, "types": REAL_TYPES, "layout": layout, "xp": xp, "seed": seed}
    check_settings("build_gram", shape=shape, numbers={"length_scale": length_scale}, **settings)
    length_scale = float(length_scale)  # fractions have no short form
    choice("build_gram", "kind", kind, POINT_KINDS)
    name = _layouts.namespace_name(xp)
    code = call_line(
        "build_gram", _DEFAULTS, shape=shape, kind=kind, length_scale=length_scale, dtype=dtype, layout=layout, xp=name, device=device,
        seed=seed,
    )  # fmt: skip
    points = build_points(shape=shape, kind=kind, dtype="float64", seed=seed).host
    values = gaussian_values(points, points, length_scale)
    return case_of(
        _layouts.round_to((values + values.T) / 2, dtype),
        dtype=dtype,
        desc=f"Gaussian kernel matrix of {shape[0]} {kind} points of {shape[1]} features, length scale {length_scale:g}",
        code=code,
        structure="psd",
        layout=layout,
        xp=xp,
        device=device,
        extra={"points": points, "kind": kind, "length_scale": length_scale},
    )


def build_attention(
    *, tokens: int, features: int, landmarks: int, keys: int | None = None, value_features: int | None = None,
    heads: tuple[int, ...] = (), kind: str = "normal", magnitude: float = 1.0, hidden: int = 0, dtype: str = "float32",
    layout: str = "C", xp: Any = "numpy", device: Any = None, seed: int = 0,
) -> AttentionCase:  # fmt: skip
    """Queries, keys, values and landmarks.

    Parameters
    ----------
    tokens, features, landmarks : int
        n, d and m <= n. The landmarks are rows of the queries, evenly spaced.
    keys : int, optional
        Number of keys; None is self-attention.
    value_features : int, optional
        e. Default: `features`.
    heads : tuple of int
        Leading axes, such as (batch, heads).
    kind : str
        Of the queries and keys: one of `POINT_KINDS`.
    magnitude : float, default 1.0
        Factor of queries and keys.
    hidden : int, default 0
        How many of the last keys a mask hides; fewer than there are.
    dtype, layout, xp, device, seed
        As in `build_points`.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_attention
    >>> case = build_attention(tokens=12, features=4, landmarks=5, heads=(2,))
    >>> case.q.shape, case.landmarks.shape
    ((2, 12, 4), (2, 5, 4))
    """
    settings: dict[str, Any] = {"dtype": dtype, "types": REAL_TYPES, "layout": layout, "xp": xp, "seed": seed}
    sizes = {"tokens": tokens, "features": features, "landmarks": landmarks, "keys": keys, "value_features": value_features}
    check_settings("build_attention", axes={"heads": heads}, counts=sizes, numbers={"magnitude": magnitude}, **settings)
    for size in ("tokens", "features", "landmarks"):  # the others may be None
        whole_number(sizes[size], func="build_attention", name=size, minimum=1)
    whole_number(hidden, func="build_attention", name="hidden", minimum=0, maximum=LARGEST)
    choice("build_attention", "kind", kind, POINT_KINDS)
    name = _layouts.namespace_name(xp)
    code = call_line(
        "build_attention", _DEFAULTS | {"dtype": "float32"}, tokens=tokens, features=features, landmarks=landmarks, keys=keys,
        value_features=value_features, heads=heads, kind=kind, magnitude=magnitude, hidden=hidden, dtype=dtype, layout=layout, xp=name,
        device=device, seed=seed,
    )  # fmt: skip
    count = tokens if keys is None else keys
    if not 1 <= landmarks <= tokens or not 0 <= hidden < count:
        rule = f"landmarks must be in 1..{tokens} and hidden in 0..{count - 1}"
        message = f"build_attention: {rule}; got {landmarks} and {hidden}. Pass smaller ones."
        raise ParameterError(message)
    rng = np.random.default_rng(seed)
    blocks = math.prod(heads)

    def points(n: int) -> np.ndarray[Any, Any]:
        drawn = [magnitude * _points(kind, n, features, rng) for _ in range(blocks)]
        return _layouts.round_to(np.array(drawn).reshape(*heads, n, features), dtype)

    def placed(host: np.ndarray[Any, Any]) -> Array:
        return _layouts.place(host, dtype=dtype, xp=xp, layout=layout, device=device)

    q = points(tokens)
    k = None if keys is None else points(keys)
    v = _layouts.round_to(rng.standard_normal((*heads, count, value_features or features)), dtype)
    mask = np.arange(count) >= count - hidden
    chosen = np.linspace(0, tokens - 1, landmarks).round().astype(int)
    shown_mask = None
    if hidden:
        host = np.broadcast_to(mask, (*heads, count))
        shown_mask = _layouts.place(np.array(host), dtype="bool", xp=xp, device=device)
    return AttentionCase(
        q=placed(q),
        k=None if k is None else placed(k),
        v=placed(v),
        landmarks=placed(q[..., chosen, :]),
        key_padding_mask=shown_mask,
        length_scale=features**0.25,
        dtype=dtype,
        desc=f"{'x'.join(map(str, (*heads, tokens)))} {kind} tokens of {features} features"
        + ("" if keys is None else f", {keys} keys")
        + f", {landmarks} landmarks"
        + (f", {hidden} keys hidden" if hidden else "")
        + f", {name} {dtype}",
        code=code,
        extra={"layout": layout, "xp": name, "magnitude": magnitude, "kind": kind},
    )
