"""Test matrices from structure parameters and one seed: what is drawn, printed, and built again from its printed line."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from softlinalg import _arrays
from softlinalg._inputs import real_scalar
from softlinalg._settings import flag, is_one_of, shown, whole_number
from softlinalg._typing import Array
from softlinalg.errors import ParameterError
from softlinalg.testing import _exact, _layouts
from softlinalg.testing._builder_settings import check_settings, choice

__all__ = ["MODES", "Case", "build_graded", "build_matrix", "call_line", "case_of", "largest_cond", "random_frame", "spectrum", "unit"]

MODES = (1, 2, 3, 4, 5, 6, "geometric")
"""Shapes of a spectrum: LAPACK's six (one large, one small, geometric, arithmetic, log-uniform, uniform), and a halving at each step."""

_EXACT_SIZE = 24
"""Largest matrix whose pseudo-inverse is computed in rational arithmetic; larger ones use long double."""

_MANTISSA = {"float16": 11, "bfloat16": 8, "float32": 24, "complex64": 24, "float64": 53, "complex128": 53}
_EXPONENTS = {"float16": (-14, 15), "bfloat16": (-126, 127), "float32": (-126, 127), "complex64": (-126, 127)}


def unit(dtype: str) -> float:
    """u of the test ratios: the distance from 1 to the next larger number (numpy.finfo(dtype).eps), by the name of a type."""
    return 2.0 ** (1 - _MANTISSA[dtype])


def exponent_range(dtype: str) -> tuple[int, int]:
    """Exponents of the smallest normal and of the largest finite power of two."""
    return _EXPONENTS.get(dtype, (-1022, 1023))


def largest_cond(shape: tuple[int, int], dtype: str) -> float:
    """Largest condition at which the default cut-off max(m, n) u still keeps the smallest singular value, with a factor 4 to spare.

    min(.1 / u, 1 / (4 max(m, n) u)): beyond it no answer is right or wrong.
    """
    u = unit(dtype)
    return max(1.0, min(0.1 / u, 1 / (4 * max(*shape, 1) * u)))


@dataclass(frozen=True, eq=False, repr=False)
class Case:
    r"""A matrix, or a batch of them, with what is known about it. Its `repr` is a line that builds it again.

    Attributes
    ----------
    A : array, shape (..., m, n)
        In its library, data type, device and memory layout.
    s : numpy array, shape (..., min(m, n))
        Singular values, descending, zero after the first `rank`: as prescribed (rounding of `A` moves each by at most u/2 |A|_F),
        or measured where that is said in `desc`.
    rank : int
        Number of singular values that a pseudo-inverse has to keep.
    kappa : float
        Largest s_1 / s_rank over the batch; 1 for rank 0.
    dtype : str
        Name of the data type of `A`.
    desc : str
        What it is, in words: "6x4 rank 2, geometric spectrum, condition 4e2, float32".
    code : str
        One line of Python that evaluates to the same case, bit for bit on the same machine.
    structure : {"general", "symmetric", "psd"}
        "symmetric" is Hermitian where `A` is complex.
    exact : bool
        The rank is exact for the numbers of `A` as they are, without a tolerance.
    gap : bool
        s_rank > 4 rtol s_1 and what rounding left below is under rtol s_1 / 4, for rtol = max(m, n) u: the rank is beyond dispute.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_matrix
    >>> case = build_matrix(shape=(4, 3), rank=2, cond=10, seed=1)
    >>> case
    softlinalg.testing.build_matrix(shape=(4, 3), rank=2, cond=10, seed=1)
    >>> case.desc, case.rank
    ('4x3 rank 2, geometric spectrum, condition 1e1, float64', 2)
    >>> bool(np.allclose(case.pinv, np.linalg.pinv(case.A)))
    True
    """

    A: Array
    s: np.ndarray[Any, Any]
    rank: int
    kappa: float
    dtype: str
    desc: str
    code: str
    structure: str = "general"
    exact: bool = False
    gap: bool = True
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything else that a builder knows (mode, layout, name of a gallery matrix)."""

    def __repr__(self) -> str:
        return self.code

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.code)  # hypothesis prints the fields of a dataclass otherwise

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n), without the batch axes."""
        return int(self.A.shape[-2]), int(self.A.shape[-1])

    @property
    def batch(self) -> tuple[int, ...]:
        """Batch axes."""
        return tuple(int(length) for length in self.A.shape[:-2])

    @property
    def u(self) -> float:
        """Unit of the ratios, eps of the data type."""
        return unit(self.dtype)

    @property
    def rtol(self) -> float:
        """The customary cut-off on singular values, max(m, n) u; a cut there keeps exactly `rank` values where `gap` is true."""
        return max(*self.shape, 1) * self.u

    @property
    def is_trivial(self) -> bool:
        """Rank 0, empty, or 1 x 1: cases that most mistakes pass."""
        return self.rank == 0 or math.prod(self.A.shape) == 0 or self.shape == (1, 1)

    @functools.cached_property
    def host(self) -> np.ndarray[Any, Any]:
        """The numbers as a plain NumPy array, C order, native bytes, shape (..., m, n); bfloat16 as float32. Do not write into it."""
        host = np.array(_arrays.to_numpy(self.A), copy=True, order="C")
        return host.astype(host.dtype.newbyteorder("="), copy=False)

    @functools.cached_property
    def pinv(self) -> np.ndarray[Any, Any]:
        """The true pseudo-inverse of the numbers in `A`, cut after `rank` singular values: float64 or complex128, shape (..., n, m).

        For data in float64 of at most 24 rows and columns (12 of complex ones) correctly rounded from exact rational arithmetic; for
        larger ones refined in long double; for shorter types from float64, whose error is below 1e-7 of a unit. `pinv_error` bounds
        its error. Computed at first use.
        """
        out = np.empty((*self.batch, *self.shape[::-1]), dtype=np.complex128 if np.iscomplexobj(self.host) else np.float64)
        for index in np.ndindex(*self.batch):
            out[index] = _true_pinv(self.host[index], self.rank, self.dtype)
        return out

    @property
    def pinv_error(self) -> float:
        """Bound of the error of `pinv` in the spectral norm: rounding, and of larger or shorter data the error of what computes it."""
        unit = float(np.finfo(np.float64).eps)
        if _MANTISSA[self.dtype] != 53:
            unit *= 30 * self.kappa
        elif not _is_solved_exactly(self.host):
            unit += 2 * max(*self.shape, 1) * self.kappa * float(np.finfo(np.longdouble).eps)
        return unit * float(np.max(np.linalg.norm(self.pinv, axis=(-2, -1)), initial=0.0))


def _is_solved_exactly(a: np.ndarray[Any, Any]) -> bool:
    """Are matrices so small that rational arithmetic takes no time?"""
    return max(a.shape[-2:], default=0) <= (_EXACT_SIZE if not np.iscomplexobj(a) else _EXACT_SIZE // 2)


def _true_pinv(a: np.ndarray[Any, Any], rank: int, dtype: str) -> np.ndarray[Any, Any]:
    wide = a.astype(np.complex128 if np.iscomplexobj(a) else np.float64)
    if _MANTISSA[dtype] == 53 and _is_solved_exactly(a):
        return _exact.exact_pinv(wide, rank)
    if rank == 0 or a.size == 0:
        return np.zeros(wide.shape[::-1], dtype=wide.dtype)
    exponent = int(np.frexp(np.abs(wide).max())[1])
    scaled = _ldexp(wide, -exponent)
    u, s, vh = np.linalg.svd(scaled, full_matrices=False)
    x = (vh[:rank].conj().T / s[:rank]) @ u[:, :rank].conj().T
    if _MANTISSA[dtype] == 53:
        x = _refined(scaled, x, vh[:rank].conj().T)
    return _ldexp(x, -exponent)


def _refined(a: np.ndarray[Any, Any], x: np.ndarray[Any, Any], v: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """V (A V)^+ with V the leading right singular vectors, by two Newton steps for the Gram matrix in long double."""
    wide = np.clongdouble if np.iscomplexobj(a) else np.longdouble
    image, basis = a.astype(wide) @ v.astype(wide), v.astype(wide)
    y = v.conj().T.astype(wide) @ x.astype(wide)  # about (A V)^+
    for _ in range(2):
        y = y + (np.eye(y.shape[0], dtype=wide) - y @ image) @ y
    return np.asarray((basis @ y).astype(a.dtype))


def _ldexp(a: np.ndarray[Any, Any], exponent: int) -> np.ndarray[Any, Any]:
    """A * 2**exponent, also complex and beyond the range of one factor; the type stays."""
    with np.errstate(all="ignore"):
        if np.iscomplexobj(a):
            out = np.empty_like(a)
            out.real, out.imag = np.ldexp(a.real, exponent), np.ldexp(a.imag, exponent)
            return out
        return np.asarray(np.ldexp(a, exponent))


# --------------------------------------------------------------------------------------------- ingredients
def spectrum(mode: int | str, rank: int, cond: float, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Singular values from 1 down to 1 / cond, descending, shape (rank,), in one of the shapes of `MODES`.

    1: one 1, the rest 1 / cond. 2: ones, the last 1 / cond. 3: geometric. 4: arithmetic. 5: logarithms uniform. 6: uniform.
    "geometric": halved at each step, not below 1 / cond. Modes 5 and 6 keep 1 and 1 / cond as their ends.
    """
    _check_mode(mode)
    if rank <= 1:
        return np.ones(rank)
    place = np.linspace(0.0, 1.0, rank)
    if mode == 1:
        s = np.where(place == 0, 1.0, 1 / cond)
    elif mode == 2:
        s = np.where(place == 1, 1 / cond, 1.0)
    elif mode == 3:
        s = cond**-place
    elif mode == 4:
        s = 1 - place * (1 - 1 / cond)
    elif mode in (5, 6):
        inner = rng.random(rank - 2)
        values = cond**-inner if mode == 5 else 1 / cond + inner * (1 - 1 / cond)
        s = np.sort(np.concatenate([[1.0, 1 / cond], values]))[::-1]
    else:
        s = np.maximum(0.5 ** np.arange(rank), 1 / cond)
    return np.asarray(s, dtype=np.float64)


def random_frame(size: int, count: int, rng: np.random.Generator, *, complex_: bool = False) -> np.ndarray[Any, Any]:
    """`count` orthonormal columns of length `size`, uniformly distributed, in long double: products of reflections [1]_.

    No LAPACK, so a seed gives the same bits whatever library NumPy is linked with.

    References
    ----------
    .. [1] Stewart, The efficient generation of random orthogonal matrices (1980).
    """
    wide = np.clongdouble if complex_ else np.longdouble
    q = np.eye(size, count, dtype=wide)
    vectors = [_gaussian(size - k, rng, complex_).astype(wide) for k in range(count)]
    for k in reversed(range(count)):
        v = vectors[k]
        norm = np.sqrt(np.sum(np.abs(v) ** 2))
        phase = v[0] / abs(v[0]) if v[0] != 0 else wide(1)
        v = v.copy()
        v[0] += phase * norm
        beta = 2 / np.sum(np.abs(v) ** 2)
        q[k:] = q[k:] - beta * np.outer(v, v.conj() @ q[k:])
        q[:, k] = q[:, k] * -phase
    return q


def _gaussian(size: int, rng: np.random.Generator, complex_: bool) -> np.ndarray[Any, Any]:
    real = rng.standard_normal(size)
    return np.asarray(real + 1j * rng.standard_normal(size) if complex_ else real)


def short(number: float) -> str:
    """One digit and an exponent: "1e2", "4e5", "3"."""
    return f"{number:.1g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")


def call_line(name: str, defaults: dict[str, Any], **settings: Any) -> str:
    """`softlinalg.testing.name(key=value, ...)` with the settings that are not defaults."""
    shown = ", ".join(f"{key}={_literal(value)}" for key, value in settings.items() if key not in defaults or defaults[key] != value)
    return f"softlinalg.testing.{name}({shown})"


def _literal(value: Any) -> str:
    if isinstance(value, float) and math.isfinite(value):
        short = f"{value:g}"
        return short if float(short) == value else repr(float(value))
    if isinstance(value, np.ndarray):
        return _literal(value.tolist())
    if isinstance(value, list | tuple):
        inner = ", ".join(_literal(item) for item in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


# ------------------------------------------------------------------------------------------------ builders
_DEFAULTS = {
    "rank": None, "mode": 3, "cond": 1e2, "s": None, "log2_scale": 0, "dtype": "float64", "structure": "general", "exact": False,
    "batch": (), "layout": "C", "xp": "numpy", "device": None,
}  # fmt: skip


def build_matrix(
    *,
    shape: tuple[int, int],
    rank: int | None = None,
    mode: int | str = 3,
    cond: float = 1e2,
    s: Sequence[float] | None = None,
    log2_scale: int = 0,
    dtype: str = "float64",
    structure: str = "general",
    exact: bool = False,
    batch: tuple[int, ...] = (),
    layout: str = "C",
    xp: Any = "numpy",
    device: Any = None,
    seed: int = 0,
) -> Case:
    r"""A matrix U diag(s) V^H with random frames and a prescribed spectrum.

    Parameters
    ----------
    shape : (m, n)
    rank : int, optional
        Default min(m, n).
    mode : {1, 2, 3, 4, 5, 6, "geometric"}, default 3
        Shape of the spectrum (see `spectrum`).
    cond : float, default 100
        Largest over smallest singular value kept. Above `largest_cond` the default cut-off of a pseudo-inverse drops values.
    s : sequence of floats, optional
        The singular values themselves, instead of `rank`, `mode` and `cond`: non-negative, descending, at most min(m, n).
    log2_scale : int, default 0
        All is multiplied by 2**log2_scale, exactly (in range).
    dtype : str
        "float16", "bfloat16", "float32", "float64", "complex64" or "complex128".
    structure : {"general", "symmetric", "psd"}
        "symmetric": Hermitian with eigenvalues of both signs; "psd": with eigenvalues `s`. Exactly Hermitian.
    exact : bool, default False
        A product of two integer matrices that the data type holds without rounding, so that the rank is exact; the singular values
        are then measured, near those asked for. Real types only; cond is limited to about 2**(p - 11), p the bits of the mantissa.
    batch : tuple of int
        Batch axes; the members share the spectrum and have frames of their own.
    layout, xp, device
        See `place`. With layout "broadcast" all members are the first one.
    seed : int

    Returns
    -------
    Case

    Raises
    ------
    ParameterError
        Settings that contradict each other or that the data type cannot hold.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_matrix
    >>> case = build_matrix(shape=(4, 3), cond=100.0)
    >>> round(float(np.linalg.cond(case.A)), 6)
    100.0
    """
    check_settings("build_matrix", shape=shape, axes={"batch": batch}, dtype=dtype, layout=layout, xp=xp, seed=seed)
    choice("build_matrix", "structure", structure, ("general", "symmetric", "psd"))
    exact = flag(exact, func="build_matrix", name="exact")
    _check_mode(mode)
    if rank is not None:
        whole_number(rank, func="build_matrix", name="rank", minimum=0, maximum=min(shape))
    cond = real_scalar(cond, func="build_matrix", name="cond", minimum=1.0, strict=False)
    log2_scale = whole_number(log2_scale, func="build_matrix", name="log2_scale", minimum=-20000, maximum=20000)
    name = _layouts.namespace_name(xp)
    code = call_line(
        "build_matrix", _DEFAULTS, shape=shape, rank=rank, mode=mode, cond=cond, s=s, log2_scale=log2_scale, dtype=dtype,
        structure=structure, exact=exact, batch=batch, layout=layout, xp=name, device=device, seed=seed,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    m, n = shape
    wanted = spectrum(mode, min(m, n) if rank is None else rank, cond, rng) if s is None else np.asarray(s, dtype=np.float64)
    _check(shape, wanted, dtype, structure, exact)
    kept = int(np.count_nonzero(wanted))
    wanted = wanted[:kept]
    signs = np.where(rng.random(kept) < 0.5, -1.0, 1.0) if structure == "symmetric" else np.ones(kept)
    members = [_member(shape, wanted, signs, dtype, structure, exact, rng) for _ in range(math.prod(batch))]
    values = np.zeros((len(members), m, n), dtype=members[0].dtype if members else _host_dtype(dtype))
    for index, member in enumerate(members):
        values[index] = members[0] if layout == "broadcast" else member
    measured = [_measured(member, kept) for member in values] if exact else [wanted] * len(members)
    full = np.zeros((len(members), min(m, n)))
    for index, part in enumerate(measured):
        full[index, :kept] = part
    kappa = max((float(part[0] / part[-1]) for part in measured), default=1.0) if kept else 1.0
    host = _layouts.round_to(_ldexp(values.reshape(*batch, m, n), log2_scale), dtype)
    words = f"{m}x{n} rank {kept}, {_MODE_WORDS[mode] if s is None else 'given'} spectrum, condition {short(kappa)}"
    return Case(
        A=_layouts.place(host, dtype=dtype, xp=xp, layout=layout, device=device),
        s=_ldexp(full.reshape(*batch, min(m, n)), log2_scale),
        rank=kept,
        kappa=kappa,
        dtype=dtype,
        desc=words + _more_words(structure, exact, log2_scale, batch, layout, name) + f", {dtype}",
        code=code,
        structure=structure,
        exact=exact,
        gap=kappa <= 1 / (4 * max(m, n, 1) * unit(dtype)),
        extra={"mode": mode if s is None else "given", "layout": layout, "xp": name, "log2_scale": log2_scale},
    )


_MODE_WORDS = {
    1: "one large value in the", 2: "one small value in the", 3: "geometric", 4: "arithmetic", 5: "log-uniform", 6: "uniform",
    "geometric": "halving",
}  # fmt: skip


def _more_words(structure: str, exact: bool, log2_scale: int, batch: tuple[int, ...], layout: str, xp: str) -> str:
    parts = [
        {"general": "", "symmetric": "Hermitian indefinite", "psd": "positive semi-definite"}[structure],
        "exact integer factors" if exact else "",
        f"times 2^{log2_scale}" if log2_scale else "",
        f"batch {'x'.join(map(str, batch))}" if batch else "",
        f"layout {layout}" if layout != "C" else "",
        xp if xp != "numpy" else "",
    ]
    return "".join(f", {part}" for part in parts if part)


def _host_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype(np.clongdouble if dtype.startswith("complex") else np.longdouble)


def _check_mode(mode: Any) -> None:
    if not is_one_of(mode, MODES) and not (type(mode) is int and mode in MODES):
        message = f"build_matrix: mode must be one of {MODES}; got {shown(mode)}. Pass 3 for a geometric spectrum."
        raise ParameterError(message)


def _check(shape: tuple[int, int], s: np.ndarray[Any, Any], dtype: str, structure: str, exact: bool) -> None:
    m, n = shape
    if structure != "general" and m != n:
        message = f"build_matrix: structure must be 'general' unless the shape is square; got {structure!r}, {m} x {n}. Change one."
        raise ParameterError(message)
    if s.ndim != 1 or s.size > min(m, n) or not np.all(np.isfinite(s)) or np.any(s < 0) or np.any(np.diff(s) > 0):
        message = f"build_matrix: s must be at most {min(m, n)} finite numbers >= 0 in descending order; got {s.size}. Sort them."
        raise ParameterError(message)
    if exact and s.size and s[-1] > 0:
        bits = _factor_bits(dtype, s.size)
        if dtype.startswith("complex") or s[0] / s[-1] > 2.0 ** (2 * bits) / 64:
            limit = f"a real type and cond <= {2.0 ** (2 * bits) / 64:.3g}"
            message = f"build_matrix: exact must go with {limit} for {dtype}; got cond {s[0] / s[-1]:.3g}. Pass a smaller cond."
            raise ParameterError(message)


def _factor_bits(dtype: str, rank: int) -> int:
    """Bits of the integer entries of each factor, so that sums of `rank` products fit the mantissa."""
    return (_MANTISSA[dtype] - max(0, math.ceil(math.log2(max(rank, 1))))) // 2


def _member(
    shape: tuple[int, int],
    s: np.ndarray[Any, Any],
    signs: np.ndarray[Any, Any],
    dtype: str,
    structure: str,
    exact: bool,
    rng: np.random.Generator,
) -> np.ndarray[Any, Any]:
    """One matrix in long double; with `exact`, one whose entries the data type holds."""
    complex_ = dtype.startswith("complex")
    left = random_frame(shape[0], s.size, rng, complex_=complex_)
    right = left if structure != "general" else random_frame(shape[1], s.size, rng, complex_=complex_)
    if not exact:
        a = (left * (s * signs)) @ right.conj().T
        return np.asarray(a if structure == "general" else np.tril(a, -1) + np.diag(np.diagonal(a).real) + np.tril(a, -1).conj().T)
    bits = _factor_bits(dtype, s.size)
    top = s[0] if s.size else 1.0
    root = np.sqrt(s / top) * 2.0**bits
    return np.asarray((np.rint(left * root) * signs) @ np.rint(right * root).T * 4.0**-bits)


def _measured(a: np.ndarray[Any, Any], rank: int) -> np.ndarray[Any, Any]:
    """Leading singular values in float64, of numbers that float64 holds."""
    return np.asarray(np.linalg.svd(a.astype(np.float64), compute_uv=False)[:rank])


def build_graded(
    *, shape: tuple[int, int], step: float = 3.0, sides: str = "both", dtype: str = "float64", layout: str = "C", xp: Any = "numpy",
    device: Any = None, seed: int = 0,
) -> Case:  # fmt: skip
    r"""A badly scaled matrix D_1 G D_2: G with condition 10, D diagonal with entries 2**-round(step i).

    Parameters
    ----------
    shape : (m, n)
    step : float, default 3
        Powers of two from one row or column to the next. The condition is about 2**(step min(m, n)) or its square; rows or columns
        beyond the cut-off of a pseudo-inverse make the rank a matter of taste, and `gap` is then False.
    sides : {"both", "rows", "columns"}
    dtype, layout, xp, device, seed
        As in `build_matrix`.

    Returns
    -------
    Case
        With measured singular values; `rank` is their number above max(m, n) u s_1.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import build_graded
    >>> case = build_graded(shape=(4, 4), sides="rows")
    >>> sizes = np.linalg.norm(case.A, axis=1)
    >>> bool(sizes[0] > 100 * sizes[-1])
    True
    """
    check_settings("build_graded", shape=shape, dtype=dtype, layout=layout, xp=xp, seed=seed)
    step = real_scalar(step, func="build_graded", name="step", minimum=-1000.0, strict=False, maximum=1000.0)
    choice("build_graded", "sides", sides, ("both", "rows", "columns"))
    code = call_line(
        "build_graded", _DEFAULTS | {"step": 3.0, "sides": "both"}, shape=shape, step=step, sides=sides, dtype=dtype, layout=layout,
        xp=_layouts.namespace_name(xp), device=device, seed=seed,
    )  # fmt: skip
    m, n = shape
    base = build_matrix(shape=shape, mode=4, cond=10.0, dtype="complex128" if dtype.startswith("complex") else "float64", seed=seed).host
    rows = 2.0 ** -np.round(step * np.arange(m)) if sides in ("both", "rows") else np.ones(m)
    columns = 2.0 ** -np.round(step * np.arange(n)) if sides in ("both", "columns") else np.ones(n)
    host = _layouts.round_to(rows[:, None] * base * columns, dtype)
    return case_of(
        host,
        dtype=dtype,
        desc=f"{m}x{n}, graded by 2^{step:g} per {'row and column' if sides == 'both' else sides.removesuffix('s')}",
        code=code,
        layout=layout,
        xp=xp,
        device=device,
    )


def case_of(
    host: Any, *, dtype: str, desc: str, code: str, structure: str = "general", rank: int | None = None, layout: str = "C",
    xp: Any = "numpy", device: Any = None, extra: dict[str, Any] | None = None,
) -> Case:  # fmt: skip
    """A case from numbers: singular values measured in float64; the rank, unless given, is the number above max(m, n) u s_1.

    Parameters
    ----------
    host : numpy array, shape (..., m, n)
        Numbers that `dtype` holds.
    desc, code : str
        `desc` without rank, condition and data type, which are added.
    """
    host = np.asarray(host)
    m, n = host.shape[-2:]
    wide = host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)
    s = np.linalg.svd(wide, compute_uv=False) if host.size else np.zeros((*host.shape[:-2], min(m, n)))
    u, size = unit(dtype), max(m, n, 1)
    top = s[..., :1]
    if rank is None:
        rank = int(np.max(np.sum(s > size * u * top, axis=-1), initial=0))
    smallest = s[..., rank - 1 : rank] if rank else top
    below = s[..., rank : rank + 1]
    with np.errstate(all="ignore"):
        kappa = float(np.max(top / smallest, initial=1.0)) if rank else 1.0
    gap = bool(np.all(smallest >= 4 * size * u * top) and np.all(below <= size * u * top / 4))
    return Case(
        A=_layouts.place(host, dtype=dtype, xp=xp, layout=layout, device=device),
        s=np.where(np.arange(min(m, n)) < rank, s, 0.0),
        rank=rank,
        kappa=kappa,
        dtype=dtype,
        desc=f"{desc}, rank {rank}, condition {short(kappa)} (measured), {dtype}",
        code=code,
        structure=structure,
        gap=gap,
        extra={"layout": layout, "xp": _layouts.namespace_name(xp), **(extra or {})},
    )
