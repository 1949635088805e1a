"""What kernels of scaled differences have in common: validation, evaluation in blocks, gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from softlinalg import _arrays, _buffers, _inputs
from softlinalg._kernel_distances import DifferenceColumns, GaussianColumns, check_points, inverse_scale, mirror
from softlinalg._kernel_length_scales import checked_length_scale, median_length_scale
from softlinalg._kernel_products import rows_per_block
from softlinalg._typing import Array, DType, Namespace, RngLike
from softlinalg.errors import NonFiniteError, ParameterError, ResourceError, ShapeError

__all__ = ["PreparedKernel", "StationaryKernel"]

_GRADIENT_ENTRIES = 2**20
"""Entries of a block in `vjp`: its five or so temporaries take 40 MiB in float64."""


class PreparedKernel:
    """k(., y) for one set `y`: what depends on `y` alone is computed once. `_kernel_products` uses it block by block."""

    def __init__(self, kernel: StationaryKernel, y: Array, *, func: str, xp: Namespace) -> None:
        self.kernel, self.func, self.xp, self.dtype = kernel, func, xp, y.dtype
        self.columns = kernel._columns(y, func=func, xp=xp)

    def values(self, x: Array) -> Array:
        """Kernel values (..., n, m): new arrays only, differentiable."""
        _inputs.check_finite(x, func=self.func, name="x", xp=self.xp)
        with _arrays.quiet(x):
            return self.kernel._values(self.columns(self.xp.astype(x, self.dtype, copy=False)), xp=self.xp)

    def reserve(self, rows: int) -> None:
        """Memory for blocks of up to so many rows."""
        self.columns.reserve(rows)

    def write(self, x: Array, out: Array, first: int = 0) -> None:
        """Kernel values of the columns from `first` on, into `out`."""
        if math.prod(out.shape):
            with _arrays.quiet(out):
                self.columns.write(x, out, first)
                self.kernel._finish(out, xp=self.xp)


@dataclass(frozen=True, repr=False)
class StationaryKernel:
    """Kernels that are a function of scaled differences of points, with value one at zero."""

    length_scale: Any = 1.0

    name: ClassVar[str] = ""
    _title: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "length_scale", checked_length_scale(self.length_scale, func=self._title))

    def __repr__(self) -> str:
        scale = self.length_scale
        many = isinstance(scale, tuple) and len(scale) > 6
        shown = f"<{len(scale)} values from {min(scale):.4g} to {max(scale):.4g}>" if many else repr(scale)
        return f"{self._title}(length_scale={shown}{self._more()})"

    def _more(self) -> str:
        return ""

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """Kernel matrix between two sets of points.

        Parameters
        ----------
        x : array, shape (..., n, d)
            Points, real.
        y : array, shape (..., m, d), optional
            Points in the units of `x`; batch axes broadcast. Default (or the same object): `x` itself; the matrix is then
            symmetric, bit for bit, with ones on its diagonal.

        Returns
        -------
        array, shape (..., n, m)
            In [0, 1], zero instead of subnormal; dtype, library and device of the input.

        Raises
        ------
        ShapeError, DTypeError, NonFiniteError, BackendMismatchError
        ParameterError
            The length scale is "median" (call `resolve` first), or out of range for float32 data.
        ResourceError
            The matrix does not fit in memory.
        """
        return self._matrix(x, y, func=self._title)

    def _matrix(self, x: Array, y: Array | None, *, func: str) -> Array:
        xp, (x, y), dtype = _inputs.prepare(func, {"x": x, "y": None if y is x else y}, optional=("y",))
        check_points(x, y, func=func)
        if _arrays.compiles_each_shape(x, *([] if y is None else [y])):
            host = self._matrix(_arrays.to_numpy(x), None if y is None else _arrays.to_numpy(y), func=func)
            return _arrays.from_numpy(host, x, xp=xp, dtype=dtype)
        _inputs.check_finite(x if y is None else y, func=func, name="x" if y is None else "y", xp=xp)
        prepared = self._prepared(x if y is None else y, dtype, func=func, xp=xp)
        if x.ndim == 2 and (y is None or y.ndim == 2) and _arrays.may_reuse_buffers(x, *([] if y is None else [y])):
            return _filled(prepared, x, y, dtype, func=func, xp=xp)
        values = prepared.values(x)
        return xp.astype(mirror(values, 1.0, xp=xp) if y is None else values, dtype, copy=False)

    def _prepared(self, y: Array, dtype: DType, *, func: str, xp: Namespace) -> PreparedKernel:
        """k(., y) for values of type `dtype`."""
        y = xp.astype(y, _arrays.compute_dtype(dtype, xp=xp), copy=False)
        with _arrays.quiet(y):
            return PreparedKernel(self, y, func=func, xp=xp)

    def _columns(self, y: Array, *, func: str, xp: Namespace) -> GaussianColumns | DifferenceColumns:
        """The map from points to exponents."""
        return GaussianColumns(y, self._inverse_scale(y, func=func, xp=xp), func=func, xp=xp)

    def _inverse_scale(self, y: Array, *, func: str, xp: Namespace) -> Any:
        if isinstance(self.length_scale, str):
            message = f'{func}: length_scale must be a number here; got "median". Call kernel.resolve(x) first, which puts the number in.'
            raise ParameterError(message)
        return inverse_scale(self.length_scale, y, func=func, xp=xp)

    def _values(self, exponents: Array, *, xp: Namespace) -> Array:
        """Kernel values from exponents; zero where they would be subnormal."""
        lowest = _lowest_exponent(exponents.dtype)
        vanishing = exponents < lowest
        values = xp.exp(xp.where(vanishing, xp.full_like(exponents, lowest), exponents))
        return xp.where(vanishing, xp.zeros_like(values), values)

    def _finish(self, block: Array, *, xp: Namespace) -> None:
        """The same in place."""
        _buffers.clamped_exp_in_place(block, _lowest_exponent(block.dtype))

    def _slopes(self, exponents: Array, *, xp: Namespace) -> Array:
        """Derivative of the value by the exponent."""
        return self._values(exponents, xp=xp)

    def diagonal(self, x: Array) -> Array:
        """Ones, shape (..., n): k(x_i, x_i) = 1."""
        func = f"{self._title}.diagonal"
        xp, (x,), dtype = _inputs.prepare(func, {"x": x}, whole=False)
        check_points(x, None, func=func)
        return xp.ones(tuple(x.shape[:-1]), dtype=dtype, device=_arrays.device_of(x))

    def resolve(self, x: Array, rng: RngLike = None) -> Self:
        """The kernel with "median" replaced by the number that `median_length_scale` finds; any other kernel returns itself.

        Parameters
        ----------
        x : array, shape (n, d)
            Points.
        rng : None, int or Generator
            Picks the sample of rows.
        """
        return replace(self, length_scale=median_length_scale(x, rng=rng)) if isinstance(self.length_scale, str) else self

    def to_dict(self) -> dict[str, Any]:
        """The kernel as names, numbers and lists, for JSON; `kernel_from_dict` reads it back."""
        scale = self.length_scale
        return {"name": self.name, "length_scale": list(scale) if isinstance(scale, tuple) else scale}

    def vjp(self, x: Array, y: Array | None, g: Array) -> tuple[Array, Array | None]:
        r"""Gradient of :math:`\sum_{ij} g_{ij} k(x_i, y_j)` with respect to both sets of points.

        Parameters
        ----------
        x : array, shape (..., n, d)
        y : array, shape (..., m, d), or None
            None stands for `x`: the first gradient is then that of sum(g * k(x, x)), the second None.
        g : array, shape (..., n, m)
            Not checked: a loss that overflowed gives gradients that are not finite, as it should.

        Returns
        -------
        dx, dy : arrays of the shapes of `x` and `y`
            For the Gaussian kernel, with H = g * k(x, y): (H y - rowsum(H) x) / l^2 and (H^T x - colsum(H) y) / l^2. Where the kernel
            has a kink (Laplacian and Matern 1/2 at coincident points) the mean of the one-sided slopes, which is zero.

        Notes
        -----
        O(n m d) time in blocks of rows; by products for the smooth kernels, by differences for those with a kink. Differentiable in
        turn.
        """
        func = f"{self._title}.vjp"
        xp, (x, y, g), dtype = _inputs.prepare(func, {"x": x, "y": y, "g": g}, optional=("y",))
        check_points(x, y, func=func)
        other = x if y is None else y
        _check_weights(func, g, x, other, xp=xp)
        columns = self._prepared(other, dtype, func=func, xp=xp).columns
        compute = columns.y.dtype
        parts, dy = [], xp.zeros_like(columns.y)
        with _arrays.quiet(x):
            for rows in _gradient_steps(g):
                block = xp.astype(x[..., rows, :], compute, copy=False)
                weights = xp.astype(g[..., rows, :], compute, copy=False) * self._slopes(columns(block), xp=xp)
                if y is None:  # k(x_i, x_i) = 1 whatever x_i
                    weights = _off_diagonal(weights, rows.start, xp=xp)
                dx, more = columns.pull_back(weights, block)
                parts.append(dx)
                dy = dy + more
        dx = _sum_to(xp.concat(parts, axis=-2), tuple(x.shape), xp=xp)
        dy = _sum_to(dy, tuple(other.shape), xp=xp)
        if y is None:
            return xp.astype(dx + dy, dtype, copy=False), None
        return xp.astype(dx, dtype, copy=False), xp.astype(dy, dtype, copy=False)


def _lowest_exponent(dtype: DType) -> float:
    """The exponent below which values count as zero: a hair above that of the smallest normal number."""
    return math.log(_arrays.tiny(dtype)) * (1 - 2.0**-20)


def _itemsize(dtype: DType) -> int:
    return 2 if _arrays.is_half(dtype) else 8 if _arrays.eps(dtype) < 2.0**-50 else 4


def _filled(prepared: PreparedKernel, x: Array, y: Array | None, dtype: DType, *, func: str, xp: Namespace) -> Array:
    """The kernel matrix written block by block into its own memory; from its upper triangle where `y` is None."""
    n, m = x.shape[0], x.shape[0] if y is None else y.shape[0]
    required = n * m * _itemsize(dtype)
    if _arrays.is_cpu(x):
        remedy = "Use nystrom, or products in blocks."
        _inputs.check_memory(required, None, func=func, what=f"the kernel matrix ({n} x {m} entries)", remedy=remedy)
    try:
        out = _arrays.empty_like_shape((n, m), x, xp=xp, dtype=dtype)
    except (MemoryError, RuntimeError) as error:
        message = f"{func}: the kernel matrix must fit in memory; got {n} x {m} entries. Use nystrom, or products in blocks."
        raise ResourceError(message, required) from error
    columns = prepared.columns
    step = rows_per_block(None, columns.y, m, func=func)
    prepared.reserve(min(step, n))
    wide = None if dtype == prepared.dtype else _arrays.empty_like_shape((min(step, n), m), columns.y, xp=xp)
    for start in range(0, n, step):
        stop, first = min(n, start + step), 0 if y is not None else start
        target = out[start:stop, first:]
        block = target if wide is None else wide[: stop - start, first:]
        try:
            prepared.write(x[start:stop], block, first)
        except NonFiniteError:
            _inputs.check_finite(x, func=func, name="x", xp=xp)  # names the row in all of x
            raise
        if y is None:
            size = stop - start
            block[:, :size] = mirror(block[:, :size], 1.0, xp=xp)
        if wide is not None:
            target[...] = block
        if y is None:
            out[stop:, start:stop] = xp.matrix_transpose(out[start:stop, stop:])
    return out


def _check_weights(func: str, g: Array, x: Array, y: Array, *, xp: Namespace) -> None:
    """Raise unless the points are finite and `g` has a weight for each pair."""
    if g.ndim < 2 or g.shape[-2:] != (x.shape[-2], y.shape[-2]):
        need = f"(..., {x.shape[-2]}, {y.shape[-2]})"
        message = f"{func}: g must have shape {need}, one weight per pair; got {tuple(g.shape)}. Pass the gradient with respect to k(x, y)."
        raise ShapeError(message)
    _inputs.check_batches(func, x=x, y=y, g=g)
    for name, array in (("x", x), ("y", y)):
        _inputs.check_finite(array, func=func, name=name, xp=xp)


def _gradient_steps(g: Array) -> list[slice]:
    """Blocks of rows of `g`; all at once where the program is traced, so that it is not unrolled."""
    n = g.shape[-2]
    step = n if _arrays.is_traced(g) else _GRADIENT_ENTRIES // max(1, math.prod(g.shape) // max(1, n))
    return [slice(start, min(n, start + max(1, step))) for start in range(0, max(n, 1), max(1, step))]


def _off_diagonal(weights: Array, start: int, *, xp: Namespace) -> Array:
    """Rows from `start` on of a square matrix, with zeros on its diagonal."""
    device = _arrays.device_of(weights)
    rows = xp.arange(start, start + weights.shape[-2], device=device)
    return xp.where(rows[:, None] == xp.arange(weights.shape[-1], device=device)[None, :], xp.zeros_like(weights), weights)


def _sum_to(gradient: Array, shape: tuple[int, ...], *, xp: Namespace) -> Array:
    """Sum over the batch axes along which an input of this shape was broadcast."""
    extra = gradient.ndim - len(shape)
    if extra > 0:
        gradient = xp.sum(gradient, axis=tuple(range(extra)))
    stretched = tuple(axis for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis] != 1)
    return xp.sum(gradient, axis=stretched, keepdims=True) if stretched else gradient
