r"""The factorisation behind the Nystrom approximation: F = C M with F F^T = C W^+ C^T, and one pass over the rows that measures it.

C = k(X, L) is n x m and is never held, W = k(L, L) is m x m. The whitening map M = V_r Lambda_r^(-1/2) keeps the
eigenpairs of W above a cut-off relative to the largest one. Everything of size m x m or r x r is float64; the features F
have the dtype of the data. docs/theory/nystrom.md has the theorems and the reasons for the constants below.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._kernel_base import StationaryKernel
from softlinalg._kernels import kernel_matmul
from softlinalg._settings import whole_number
from softlinalg._typing import Array, DType, Namespace
from softlinalg.errors import NonFiniteError, NumericalError, ResourceError, ShapeError

__all__ = [
    "CUT_OFF",
    "FeatureMap",
    "RowStore",
    "Spectrum",
    "Summary",
    "Whitening",
    "Wide",
    "kernel_diagonal",
    "kernel_unit",
    "optional_count",
    "plus_gram",
    "progress_bar",
    "row_rounding",
    "row_spans",
    "row_totals",
    "spectrum_of",
    "summarize",
    "summary_of",
    "triangularize",
    "whiten",
]

CUT_OFF = {"float32": 1e-8, "float64": 1e-12}
"""Eigenvalues of W below this share of the largest one are dropped. Rounding of size u in C becomes u / sqrt(eigenvalue)
in the features, so the cut-off goes with the precision in which C is computed; both are the smallest ones measured at
which no row is explained by more than rounding above its own kernel value."""

SLAB_BYTES = 2**22
"""float64 memory of the rows that one step of a pass looks at (4 MiB: they stay in the cache)."""

DEVICE_SLAB_BYTES = 2**26
"""The same for devices and libraries without buffers, where a call costs more than its arithmetic."""

KERNEL_UNITS = 4.0
"""How many times the rounding that `kernel_unit` finds in a few columns a kernel value may be off elsewhere."""

PROBED_COLUMNS = 8
"""Landmarks at which `kernel_unit` looks."""

ROW_SLACK = 10.0
"""How many times its estimated rounding a row may be explained beyond its kernel value before the factorisation counts as broken."""

FAR_ROW_SLACK = 25.0
"""Roundings of the kernel value allowed besides: far rows have small but relatively inaccurate kernel values."""

FLOOR_STRIDE = 32
"""One row in so many is looked at for the rounding floor, an estimate in any case."""


class Wide:
    """float64 arithmetic beside the data: on its device where that has float64; on the host where it has not, and beside JAX's there.

    Parameters
    ----------
    like : array
        An array of the library and device of the data.
    """

    def __init__(self, like: Array, *, xp: Namespace) -> None:
        self.has_float64: bool = _arrays.has_float64(like, xp=xp)
        self.on_device: bool = self.has_float64 and not _arrays.compiles_each_shape(like)
        self._like, self._xp = like, xp
        self.xp: Namespace = xp if self.on_device else _arrays.host_namespace()
        self.dtype: DType = self.xp.float64

    def widen(self, a: Array) -> Array:
        """`a` in float64."""
        return self.xp.astype(a if self.on_device else _arrays.to_numpy(a), self.dtype, copy=False)

    def narrow(self, a: Array, dtype: DType) -> Array:
        """A float64 array back in the library of the data, as `dtype`."""
        if self.on_device:
            return self._xp.astype(a, dtype, copy=False)
        return _arrays.from_numpy(_arrays.to_numpy(a), self._like, xp=self._xp, dtype=dtype)

    def zeros(self, *shape: int) -> Array:
        """Zeros in float64."""
        like = self._like if self.on_device else _arrays.to_numpy(self._like)
        return _arrays.zeros_like_shape(shape, like, xp=self.xp, dtype=self.dtype)


# ------------------------------------------------------------------------------------------------ the core
class Whitening(NamedTuple):
    """What `whiten` returns."""

    map: Array
    """M, shape (m, r), float64; the last r rows are upper triangular."""
    order: list[int]
    """The landmark that each row of `map` belongs to: row numbers of W."""
    eigenvalues: Array
    """Eigenvalues of W that were kept, shape (r,), float64, rising."""
    turn: Array
    """Orthogonal, shape (r, r): M turn = V_r Lambda_r^(-1/2), the map onto the eigenvectors of W."""
    noise: float
    """What rounding E of W makes of a quadratic form b^T E b with an independent b, relative to |W| |b|^2."""
    spread: float
    """Largest entry on the diagonal of W, times the trace of W^+."""
    unit: float | None = None
    """Rounding of the entries of W, relative to its diagonal; None where the whitening was read from a file."""


def whiten(w: Array, *, rtol: float, noise: float, func: str, xp: Namespace) -> Whitening:
    r"""A map M for which C M M^T C^T = C W^+ C^T, W truncated at a relative cut-off.

    M is V_r Lambda_r^(-1/2) times an orthogonal matrix that makes it triangular: half of the products with it are products
    with zero, which `kernel_matmul` skips. With the landmarks in the order of pivots it is no less accurate for that.

    Parameters
    ----------
    w : array, shape (m, m), float64
        Kernel matrix of the landmarks.
    rtol : float
        Eigenvalues at or below rtol times the largest are dropped.
    noise : float
        Rounding of the entries of `w`, relative to its diagonal. It moves eigenvalues by up to about
        sqrt(m) * noise * max diag(w), so nothing below that is kept either.

    Raises
    ------
    NonFiniteError
        The kernel gave NaN or infinity.
    NumericalError
        W has an eigenvalue that is negative beyond rounding: the kernel is not positive semi-definite.
    ResourceError
        The decomposition does not fit in memory.
    """
    m = w.shape[-1]
    if not bool(xp.all(xp.isfinite(w))):
        message = f"{func}: kernel must give finite values; got NaN or infinity among the landmarks. Check its length scale and the data."
        raise NonFiniteError(message)
    if _arrays.is_cpu(w):
        # W, its symmetric copy and one on the way; in LAPACK another copy, the vectors, and a workspace of two.
        required, remedy = 7 * 8 * m * m, "Use fewer landmarks."
        _inputs.check_memory(required, None, func=func, what=f"the eigenvectors of {m} landmarks", remedy=remedy)
    w = (w + xp.matrix_transpose(w)) / 2
    values, vectors = xp.linalg.eigh(w)
    smallest, largest = (float(v) for v in (values[0], values[-1]))
    height = float(xp.max(xp.abs(xp.linalg.diagonal(w))))
    cut = max(rtol * largest, math.sqrt(m) * noise * height, 0.0)
    if smallest < -10 * max(cut, 4 * m * _arrays.eps(w.dtype) * abs(smallest)):
        message = (
            f"{func}: kernel must be positive semi-definite; got an eigenvalue of {smallest:.3g} beside {largest:.3g} among {m} landmarks. "
            "Choose another kernel."
        )
        raise NumericalError(message)
    rank = int(xp.sum(xp.astype(values > cut, xp.int64)))
    kept = values[m - rank :]
    pivots = _linalg.pivot_order(w)
    order = [*pivots[rank:], *pivots[:rank]]  # the landmarks that add nothing first: the triangle is that of the others
    triangular, turn = triangularize(_arrays.take_rows(vectors[:, m - rank :] / xp.sqrt(kept), order, xp=xp), xp=xp)
    relative_noise = max(KERNEL_UNITS * noise * height / largest, _arrays.eps(w.dtype)) if rank else 0.0
    return Whitening(triangular, order, kept, turn, relative_noise, float(xp.sum(height / kept)), noise)


def triangularize(a: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """R, whose last r rows are upper triangular with positive diagonal, and an orthogonal Q with a = R Q.

    Parameters
    ----------
    a : array, shape (m, r), r <= m
        Its columns should come in falling norm, its last r rows in rising norm and independent: the QR factorization
        (of the transpose, upside down) is then accurate in every row, whatever their scales (Cox & Higham 1998). In the
        reverse order of columns errors were up to 1e5 times larger.
    """
    if a.shape[-1] == 0:
        return a, xp.matrix_transpose(a) @ a
    q, r = xp.linalg.qr(xp.matrix_transpose(xp.flip(a, axis=0)))
    diagonal = xp.linalg.diagonal(r)
    sign = xp.where(diagonal < 0, -xp.ones_like(diagonal), xp.ones_like(diagonal))
    return _arrays.contiguous(xp.flip(xp.matrix_transpose(r * sign[:, None]))), xp.flip(xp.matrix_transpose(q * sign), axis=0)


def _with_fixed_signs(vectors: Array, *, xp: Namespace) -> Array:
    """Columns turned so that their largest entry is positive: features have the same signs on every library."""
    if vectors.shape[-1] == 0:
        return vectors
    places = xp.argmax(xp.abs(vectors), axis=0)
    index = xp.arange(vectors.shape[0], dtype=places.dtype, device=_arrays.device_of(vectors))
    largest = xp.sum(xp.where(index[:, None] == places[None, :], vectors, xp.zeros_like(vectors)), axis=0)
    return vectors * xp.where(largest < 0, -xp.ones_like(largest), xp.ones_like(largest))


# -------------------------------------------------------------------------------------------- the features
@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureMap:
    """x -> k(x, landmarks) M, a block of rows at a time.

    Parameters
    ----------
    kernel : Kernel
    landmarks : array, shape (m, d)
        In the dtype of the data.
    map : array, shape (m, r)
        M in float64 (`Wide`).
    dtype : dtype
        Of the features: that of the data, float32 for the half precisions.
    in_float64 : bool
        Compute kernel values and products in float64 and round at the end.
    chunk_size : int or None
        Rows per block of kernel values.
    """

    kernel: Any
    landmarks: Array
    map: Array
    dtype: DType
    in_float64: bool
    chunk_size: int | None
    wide: Wide
    xp: Namespace

    def __post_init__(self) -> None:
        dtype = self.xp.float64 if self.in_float64 else self.dtype
        object.__setattr__(self, "_landmarks", self.xp.astype(self.landmarks, dtype, copy=False))
        object.__setattr__(self, "_factor", self.wide.narrow(self.map, dtype))

    @property
    def rank(self) -> int:
        """Number of features."""
        return int(self.map.shape[-1])

    def __call__(self, x: Array, out: Array | None = None) -> Array:
        """Features of the rows of `x`, shape (b, r); into `out` where it is given."""
        xp, landmarks, factor = self.xp, self._landmarks, self._factor  # type: ignore[attr-defined]
        if self.rank == 0:
            features = _arrays.zeros_like_shape((x.shape[0], 0), landmarks, xp=xp, dtype=self.dtype)
        elif self.in_float64:
            # A user's kernel may not mix types, so the rows are widened here.
            rows = xp.astype(x, xp.float64, copy=False)
            features = xp.astype(kernel_matmul(self.kernel, rows, landmarks, factor, chunk_size=self.chunk_size), self.dtype, copy=False)
        else:
            return kernel_matmul(self.kernel, x, landmarks, factor, chunk_size=self.chunk_size, out=out)
        if out is None:
            return features
        out[...] = features
        return out


def row_spans(n: int, width: int, like: Array, chunk_size: int | None = None) -> list[tuple[int, int]]:
    """First and last row + 1 of the slabs in which a pass walks over n rows with `width` float64 numbers each."""
    reusable = _arrays.may_reuse_buffers(like) and _arrays.is_cpu(like)
    step = max(256, (SLAB_BYTES if reusable else DEVICE_SLAB_BYTES) // (8 * max(width, 1)))
    step = step if chunk_size is None else max(1, min(step, chunk_size))
    return [(start, min(start + step, n)) for start in range(0, n, step)]


class RowStore:
    """An array that is filled a block of rows at a time: written in place where the library allows it, else joined at the end.

    Parameters
    ----------
    shape : tuple of int
    like : array
        Library and device.
    dtype : dtype
    func : str
        Name of the public function, for messages.

    Raises
    ------
    ResourceError
        There is not enough memory.
    """

    def __init__(self, shape: tuple[int, ...], like: Array, dtype: DType, *, func: str, xp: Namespace) -> None:
        self._shape, self._like, self._dtype, self._xp = shape, like, dtype, xp
        self._parts: list[Array] = []
        self._array: Array | None = None
        if not _arrays.may_reuse_buffers(like):
            return
        need = math.prod(shape) * (4 if _arrays.eps(dtype) > 2.0**-50 else 8)
        if _arrays.is_cpu(like):
            _inputs.check_memory(need, None, func=func, what="the result", remedy="Ask for fewer columns or a lower rank.")
        try:
            self._array = _arrays.empty_like_shape(shape, like, xp=xp, dtype=dtype)
        except (MemoryError, RuntimeError) as error:
            message = f"{func}: the result must fit in memory; got a need of {need / 1e9:.3g} GB. Ask for fewer columns or a lower rank."
            raise ResourceError(message, need, None) from error

    def slot(self, start: int, stop: int) -> Array | None:
        """The memory of these rows, or None where the library cannot write into it."""
        return None if self._array is None else self._array[start:stop, ...]

    def put(self, start: int, stop: int, block: Array) -> None:
        """Keep a block; blocks come in order. One that was written into its slot is already there."""
        slot = self.slot(start, stop)
        if slot is None:
            self._parts.append(self._xp.astype(block, self._dtype, copy=False))
        elif not _arrays.same_memory(slot, block):
            slot[...] = block

    def result(self) -> Array:
        """The array, when all rows are there."""
        if self._array is not None:
            return self._array
        if not self._parts:
            return _arrays.zeros_like_shape(self._shape, self._like, xp=self._xp, dtype=self._dtype)
        return self._parts[0] if len(self._parts) == 1 else self._xp.concat(self._parts, axis=0)


# -------------------------------------------------------------------------------------------- measuring it
class Spectrum(NamedTuple):
    """Eigenvalues and -vectors that the Gram matrix F^T F tells."""

    eigenvalues: Array
    """Eigenvalues of F F^T, shape (r,), falling, float64."""
    rotation: Array
    """Eigenvectors of F^T F in that order, shape (r, r), float64."""


class Summary(NamedTuple):
    """What one pass over the rows tells of an approximation F F^T of K."""

    trace: float
    """tr(K)."""
    trace_error: float
    """tr(K - F F^T), of the features as they are stored; below zero only by rounding."""
    floor: float
    """Rounding floor of `trace_error`."""
    broken_rows: int
    """Rows explained by more than rounding beyond their kernel value."""
    spectrum: Spectrum | None
    """None where it was left for later: the Gram matrix takes as long as the features do."""


def summarize(
    blocks: Iterable[tuple[int, int, Array]],
    diagonal: Callable[[int, int], Array],
    rank: int,
    whitening: Whitening | None,
    *,
    unit: float,
    stored_unit: float,
    with_spectrum: bool,
    func: str,
    wide: Wide,
) -> Summary:
    r"""Exact trace error, its rounding floor and, if asked for, the spectrum of F F^T, from the features block by block.

    Parameters
    ----------
    blocks : iterable of (start, stop, features)
    diagonal : callable
        diagonal(start, stop) gives k(x_i, x_i) for these rows.
    rank : int
        Columns of the features.
    whitening : Whitening or None
        Where the features come from. None where they were rotated since: floor and broken rows are then not looked for.
    unit, stored_unit : float
        Rounding of kernel values, and of the features as stored.
    """
    gram, totals = wide.zeros(rank, rank) if with_spectrum else None, wide.zeros(4)
    for start, stop, features in blocks:
        f = wide.widen(features)
        if gram is not None:
            gram = plus_gram(gram, f, xp=wide.xp)
        totals = totals + row_totals(f, wide.widen(diagonal(start, stop)), whitening, unit=unit, stored_unit=stored_unit, wide=wide)
    return summary_of(gram, totals, func=func, wide=wide)


def plus_gram(gram: Array, f: Array, *, xp: Namespace) -> Array:
    """gram + f^T f."""
    return gram + xp.matrix_transpose(f) @ f


def row_totals(f: Array, k_ii: Array, whitening: Whitening | None, *, unit: float, stored_unit: float, wide: Wide) -> Array:
    """Sums over a slab of rows: of the kernel value, the error, its rounding floor and the broken rows; shape (4,), float64.

    Parameters
    ----------
    f : array, shape (b, r), float64
        Features.
    k_ii : array, shape (b,), float64
        Kernel values.
    whitening, unit, stored_unit
        As in `summarize`.
    """
    xp, count = wide.xp, f.shape[0]
    residual = k_ii - xp.vecdot(f, f)  # no second array of the size of f
    floor = broken = xp.zeros_like(xp.sum(residual))
    if whitening is not None and f.shape[1]:
        some = slice(0, None, FLOOR_STRIDE if count >= 8 * FLOOR_STRIDE else 1)
        sampled = row_rounding(f[some, :], k_ii[some], whitening, unit, stored_unit, xp=xp)
        floor = xp.mean(sampled) * count
        suspect = ~(residual >= -FAR_ROW_SLACK * unit * xp.abs(k_ii))  # NaN is suspect too
        if bool(xp.any(suspect)):
            slack = ROW_SLACK * row_rounding(f, k_ii, whitening, unit, stored_unit, xp=xp) + FAR_ROW_SLACK * unit * xp.abs(k_ii)
            broken = xp.sum(xp.astype(~(residual >= -slack), wide.dtype))
    return xp.stack([xp.sum(k_ii), xp.sum(residual), floor, broken])


def summary_of(gram: Array | None, totals: Array, *, func: str, wide: Wide) -> Summary:
    """The summary that F^T F, shape (r, r), if at hand, and the sums of `row_totals` over all rows make.

    Raises
    ------
    NonFiniteError
        The trace is not finite.
    """
    trace, error, floor, broken = (float(totals[i]) for i in range(4))
    if not math.isfinite(trace):
        message = f"{func}: kernel must give finite values; got a trace of {trace}. Check kernel.diagonal and the data."
        raise NonFiniteError(message)
    return Summary(trace, error, floor, int(broken), None if gram is None else spectrum_of(gram, wide=wide))


def spectrum_of(gram: Array, *, wide: Wide) -> Spectrum:
    """The spectrum that F^T F, shape (r, r), tells; zeros where that is not finite."""
    xp, rank = wide.xp, gram.shape[0]
    if rank == 0 or not bool(xp.all(xp.isfinite(gram))):
        return Spectrum(wide.zeros(rank), gram)
    values, rotation = xp.linalg.eigh(gram)
    values = xp.flip(values)
    values = xp.where(values > 0, values, xp.zeros_like(values))
    return Spectrum(values, _arrays.contiguous(_with_fixed_signs(xp.flip(rotation, axis=-1), xp=xp)))


def row_rounding(f: Array, k_ii: Array, whitening: Whitening, unit: float, stored_unit: float, *, xp: Namespace) -> Array:
    r"""Estimate of the rounding error of |F_i|^2, shape (b,).

    A perturbation e of row C_i and E of W changes |F_i|^2 = C_i W^+ C_i^T by 2 e b_i + e W^+ e^T - b_i^T E b_i, where
    b_i = W^+ C_i^T. The first term is at most 2 unit |C_i| |b_i|, the last |E| |b_i|^2, and both
    norms are weighted sums of the squared coordinates G_i = F_i turn on the eigenvectors of W: |C_i|^2 = sum lambda G^2,
    |b_i|^2 = sum G^2 / lambda. The second term is about unit^2 tr(W^+) times the kernel value.
    """
    ratios = whitening.eigenvalues / whitening.eigenvalues[-1]  # so that nothing overflows, whatever the scale of the kernel
    sums = (f @ whitening.turn) ** 2 @ xp.stack([ratios, 1 / ratios, xp.ones_like(ratios)], axis=-1)  # (b, 3)
    from_blocks = 2 * unit * xp.sqrt(sums[:, 0]) * xp.sqrt(sums[:, 1]) + unit**2 * whitening.spread * xp.abs(k_ii)
    return from_blocks + whitening.noise * sums[:, 1] + stored_unit * sums[:, 2]


def kernel_diagonal(kernel: Any, x: Array, *, func: str) -> Array:
    """k(x_i, x_i) for each row, checked to be one number per row."""
    values = _inputs.returned(kernel.diagonal(x), x, func=func, what="kernel.diagonal(x)")
    if tuple(values.shape) != (x.shape[0],):
        got = tuple(values.shape)
        message = f"{func}: kernel.diagonal(x) must have shape ({x.shape[0]},); got {got}. Return one value per row."
        raise ShapeError(message)
    return values


def kernel_unit(kernel: Any, landmarks: Array, *, func: str, xp: Namespace) -> float:
    """Rounding of kernel values in the dtype of `landmarks`, relative to the diagonal.

    Measured on a few columns: k(x, y) for many y at once, against k(x, y_j) alone. Distances are differences of large squares
    in the first where the points spread over many length scales, hardly in the second, which is centered at y_j.
    """
    m = landmarks.shape[0]
    height = xp.sqrt(xp.abs(kernel_diagonal(kernel, landmarks, func=func)))
    together = kernel(landmarks, xp.asarray(landmarks, copy=True))  # a copy: k(x, x) of the same object may be treated apart
    step = -(-m // PROBED_COLUMNS)
    if isinstance(kernel, StationaryKernel):  # takes all sets of one point at once
        alone = xp.matrix_transpose(kernel(landmarks, landmarks[::step, None, :])[..., 0])
    else:
        alone = xp.concat([kernel(landmarks, landmarks[j : j + 1, :]) for j in range(0, m, step)], axis=-1)
    scale = height[:, None] * height[None, ::step]
    scale = xp.where(scale > 0, scale, xp.ones_like(scale))
    error = float(xp.max(xp.abs(together[:, ::step] - alone) / scale))
    return max(_arrays.eps(landmarks.dtype), error if math.isfinite(error) else 0.0)


@contextmanager
def progress_bar(total: int | None, description: str, *, shown: bool) -> Iterator[Callable[[int], Any]]:
    """A context whose value is called with the rows done: a bar with rows per second, and the time left if `total` is known; or nothing."""
    if not shown:
        yield lambda _: None
        return
    from tqdm.auto import tqdm  # imported late: `import softlinalg` stays quick

    with tqdm(total=total, desc=description, unit=" rows", unit_scale=True) as bar:
        yield bar.update


# ------------------------------------------------------------------------------------------------ arguments
def optional_count(value: Any, *, func: str, name: str, maximum: int | None = None) -> int | None:
    """None or an int from 1 to `maximum`; numbers with a fraction are refused, not rounded."""
    if value is None:
        return None
    return whole_number(value, func=func, name=name, minimum=1, maximum=maximum)
