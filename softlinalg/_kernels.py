"""Kernels: Gaussian, Laplacian and Matern 1/2, 3/2, 5/2, with their gradients, and products with their matrices in blocks.

Every kernel is a function of distances divided by a length scale, one for all features or one for each. Anything with
`__call__(x, y)` and `diagonal(x)` serves as a kernel elsewhere in the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from softlinalg import _arrays
from softlinalg._kernel_distances import (
    GaussianColumns,
    center_of,
    check_points,
    difference_sums,
    inverse_scale,
    mirror,
    squared_distances,
)
from softlinalg._kernel_products import default_chunk_size, iter_kernel_blocks, kernel_matmul, kernel_matmul_adjoint
from softlinalg._rng import as_generator
from softlinalg._typing import Array, Namespace, RngLike
from softlinalg.errors import DTypeError, ParameterError, ShapeError

__all__ = [
    "Gaussian",
    "Kernel",
    "Laplacian",
    "Matern",
    "default_chunk_size",
    "gaussian_kernel",
    "iter_kernel_blocks",
    "kernel_from_dict",
    "kernel_matmul",
    "kernel_matmul_adjoint",
    "median_length_scale",
    "squared_distances",
]


@runtime_checkable
class Kernel(Protocol):
    """What the package asks of a kernel: a positive semi-definite function of two points, over sets of points."""

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """Kernel matrix (..., n, m) between `x` (..., n, d) and `y` (..., m, d), or `x` and itself."""
        ...

    def diagonal(self, x: Array) -> Array:
        """k(x_i, x_i) for each point, shape (..., n)."""
        ...


def _checked_length_scale(value: Any, *, func: str) -> float | tuple[float, ...] | str:
    """A positive float, a tuple of them, or "median"."""
    if isinstance(value, str):
        if value != "median":
            message = f'{func}: length_scale must be a positive number, one per feature, or "median"; got {value[:40]!r}. Pass a number.'
            raise ParameterError(message)
        return value
    if not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
        return _arrays.real_scalar(value, func=func, name="length_scale")
    host = _arrays.to_numpy(value) if hasattr(value, "__array__") else value
    if getattr(host, "ndim", 1) != 1 or len(host) == 0:
        message = (
            f"{func}: length_scale must be one number or one per feature; got shape {getattr(host, 'shape', (0,))}. Pass a flat sequence."
        )
        raise ShapeError(message)
    return tuple(_arrays.real_scalar(item, func=func, name="length_scale") for item in host)


def _flushed(values: Array, *, xp: Namespace) -> Array:
    """Subnormal values become zero: they slow the next product many times over and carry few digits."""
    return xp.where(values < _arrays.tiny(values.dtype), xp.zeros_like(values), values)


@dataclass(frozen=True, repr=False)
class _Stationary:
    """Kernels that are a function of scaled differences of points, with value one at zero."""

    length_scale: Any = 1.0

    name: ClassVar[str] = ""
    _title: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "length_scale", _checked_length_scale(self.length_scale, func=self._title))

    def __repr__(self) -> str:
        scale = self.length_scale
        if isinstance(scale, tuple) and len(scale) > 6:
            shown = f"<{len(scale)} values from {min(scale):.4g} to {max(scale):.4g}>"
        else:
            shown = repr(scale)
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
            In [0, 1]; dtype and device of `x`.

        Raises
        ------
        ShapeError, DTypeError, NonFiniteError, BackendMismatchError, ParameterError
        """
        return self._matrix(x, y, func=self._title)

    def _matrix(self, x: Array, y: Array | None, *, func: str) -> Array:
        xp, (x, y), dtype = _arrays.prepare(func, {"x": x, "y": None if y is x else y})
        x, other = self._points(x, y, dtype, func=func, xp=xp)
        values = self._values(self._columns(x if other is None else other, func=func, xp=xp)(x), xp=xp)
        if other is None:
            values = mirror(values, 1.0, xp=xp)
        return xp.astype(values, dtype, copy=False)

    def _points(self, x: Array, y: Array | None, dtype: Any, *, func: str, xp: Namespace) -> tuple[Array, Array | None]:
        """Both sets checked, in the type to compute in."""
        check_points(x, y, func=func)
        compute = _arrays.compute_dtype(dtype, xp=xp)
        _arrays.check_finite(x, func=func, name="x", xp=xp)
        if y is not None:
            _arrays.check_finite(y, func=func, name="y", xp=xp)
            y = xp.astype(y, compute, copy=False)
        return xp.astype(x, compute, copy=False), y

    def _columns(self, y: Array, *, func: str, xp: Namespace) -> GaussianColumns:
        """The map from points x to exponents, prepared for `y`."""
        return GaussianColumns(y, self._inverse_scale(y, func=func, xp=xp), func=func, xp=xp)

    def _inverse_scale(self, y: Array, *, func: str, xp: Namespace) -> Any:
        if isinstance(self.length_scale, str):
            message = f'{func}: length_scale must be a number here; got "median". Call kernel.resolve(x) first, which puts the number in.'
            raise ParameterError(message)
        return inverse_scale(self.length_scale, y, func=func, xp=xp)

    def _values(self, exponents: Array, *, xp: Namespace) -> Array:
        return _flushed(xp.exp(exponents), xp=xp)

    def _slopes(self, exponents: Array, *, xp: Namespace) -> Array:
        """Derivative of the value by the exponent (by -|z|^2/2, or by -|z|_1 for the Laplacian kernel)."""
        return self._values(exponents, xp=xp)

    @staticmethod
    def _direction(z: Array, *, xp: Namespace) -> Array:
        """Derivative of minus the exponent by the scaled difference z."""
        return z

    def diagonal(self, x: Array) -> Array:
        """Ones, shape (..., n): k(x_i, x_i) = 1."""
        xp, (x,), dtype = _arrays.prepare(f"{self._title}.diagonal", {"x": x})
        check_points(x, None, func=f"{self._title}.diagonal")
        return xp.ones(x.shape[:-1], dtype=dtype, device=_arrays.device_of(x))

    def resolve(self, x: Array, rng: RngLike = None) -> Self:
        """The same kernel with "median" replaced by the number that `median_length_scale` finds; others return themselves.

        Parameters
        ----------
        x : array, shape (n, d)
        rng : None, int or Generator
            Picks the sample of rows.
        """
        return replace(self, length_scale=median_length_scale(x, rng=rng)) if isinstance(self.length_scale, str) else self

    def to_dict(self) -> dict[str, Any]:
        """The kernel as names, numbers and lists, for JSON; `kernel_from_dict` reads it back."""
        scale = self.length_scale
        return {"name": self.name, "length_scale": list(scale) if isinstance(scale, tuple) else scale}

    def vjp(self, x: Array, y: Array | None, g: Array) -> tuple[Array, Array | None]:
        """Gradient of sum(g * k(x, y)).

        Parameters
        ----------
        x : array, shape (..., n, d)
        y : array, shape (..., m, d), or None
            None stands for `x`: the first gradient is then that of sum(g * k(x, x)), the second None.
        g : array, shape (..., n, m)

        Returns
        -------
        dx, dy : arrays of the shapes of `x` and `y`
        """
        func = f"{self._title}.vjp"
        xp, (x, y, g), dtype = _arrays.prepare(func, {"x": x, "y": y, "g": g})
        a, b = self._points(x, y, dtype, func=func, xp=xp)
        other = a if b is None else b
        g = xp.astype(g, a.dtype, copy=False)
        columns = self._columns(other, func=func, xp=xp)
        weights = g * self._slopes(columns(a), xp=xp)
        inverse = columns.inverse
        z = (a / 2 - other[..., :1, :] / 2)[..., :, None, :] * 0 + (a[..., :, None, :] - other[..., None, :, :]) * inverse
        pulled = weights[..., None] * self._direction(z, xp=xp)
        dx, dy = -xp.sum(pulled, axis=-2) * inverse, xp.sum(pulled, axis=-3) * inverse
        if y is None:
            return xp.astype(dx + dy, dtype, copy=False), None
        return xp.astype(dx, dtype, copy=False), xp.astype(dy, dtype, copy=False)


class _DifferenceColumns:
    """Exponents as sums over features of a term of the scaled differences."""

    def __init__(self, y: Array, inverse: Any, term: Any, *, xp: Namespace) -> None:
        self.y, self.inverse, self.term, self.xp = y, inverse, term, xp

    def __call__(self, x: Array) -> Array:
        return difference_sums(x, self.y, self.inverse, self.term, xp=self.xp)


class Gaussian(_Stationary):
    r"""Gaussian kernel :math:`k(x, y) = \exp(-|x - y|^2 / (2 l^2))`.

    Parameters
    ----------
    length_scale : float, sequence of d floats, or "median"
        Distance at which the kernel has fallen to exp(-1/2), in the units of the data.
    """

    name: ClassVar[str] = "gaussian"
    _title: ClassVar[str] = "Gaussian"


class Laplacian(_Stationary):
    r"""Laplacian kernel :math:`k(x, y) = \exp(-|x - y|_1 / l)`."""

    name: ClassVar[str] = "laplacian"
    _title: ClassVar[str] = "Laplacian"

    def _columns(self, y: Array, *, func: str, xp: Namespace) -> Any:
        return _DifferenceColumns(y, self._inverse_scale(y, func=func, xp=xp), lambda z: -xp.abs(z), xp=xp)

    @staticmethod
    def _direction(z: Array, *, xp: Namespace) -> Array:
        return xp.sign(z)


@dataclass(frozen=True, repr=False)
class Matern(_Stationary):
    r"""Matern kernel with nu = 1/2, 3/2 or 5/2, a function of r = |x - y|_2 / l."""

    nu: float = 1.5

    name: ClassVar[str] = "matern"
    _title: ClassVar[str] = "Matern"

    def __post_init__(self) -> None:
        super().__post_init__()
        number = _arrays.real_scalar(self.nu, func=self._title, name="nu")
        if number not in (0.5, 1.5, 2.5):
            message = (
                f"{self._title}: nu must be 0.5, 1.5 or 2.5; got {number!r}. Choose one of them, or Gaussian for the limit of large nu."
            )
            raise ParameterError(message)
        object.__setattr__(self, "nu", number)

    def _more(self) -> str:
        return f", nu={self.nu}"

    def to_dict(self) -> dict[str, Any]:
        """The kernel as names, numbers and lists, for JSON; `kernel_from_dict` reads it back."""
        return {**super().to_dict(), "nu": self.nu}

    def _columns(self, y: Array, *, func: str, xp: Namespace) -> Any:
        inverse = self._inverse_scale(y, func=func, xp=xp)
        if self.nu == 0.5:  # its slope at zero is infinite in |x - y|^2: only differences keep its digits there
            return _DifferenceColumns(y, inverse, lambda z: -(z * z) / 2, xp=xp)
        return GaussianColumns(y, inverse, func=func, xp=xp)

    def _scaled_distance(self, exponents: Array, *, xp: Namespace) -> Array:
        """sqrt(2 nu) r; zero, with a gradient of zero, where the points coincide."""
        positive = exponents < 0
        return xp.where(
            positive, xp.sqrt(xp.where(positive, exponents, xp.full_like(exponents, -1.0)) * (-4 * self.nu)), xp.zeros_like(exponents)
        )

    def _values(self, exponents: Array, *, xp: Namespace) -> Array:
        r = self._scaled_distance(exponents, xp=xp)
        r = xp.where(r > 1e4, xp.full_like(r, 1e4), r)  # zero from there on, and no infinity times zero
        if self.nu == 0.5:
            return _flushed(xp.exp(-r), xp=xp)
        factor = 1 + r if self.nu == 1.5 else 1 + r + r * r / 3
        values = factor * xp.exp(-r)
        return _flushed(xp.where(values > 1, xp.ones_like(values), values), xp=xp)

    def _slopes(self, exponents: Array, *, xp: Namespace) -> Array:
        r = self._scaled_distance(exponents, xp=xp)
        r = xp.where(r > 1e4, xp.full_like(r, 1e4), r)
        decay = xp.exp(-r)
        if self.nu == 0.5:  # the kink at zero: the mean of the one-sided slopes
            return xp.where(r > 0, decay / xp.where(r > 0, r, xp.ones_like(r)), xp.zeros_like(r))
        return 3 * decay if self.nu == 1.5 else (5 / 3) * (1 + r) * decay


_KERNELS: dict[str, type[_Stationary]] = {kind.name: kind for kind in (Gaussian, Laplacian, Matern)}


def kernel_from_dict(values: Mapping[str, Any]) -> Gaussian | Laplacian | Matern:
    """The kernel that `to_dict` wrote.

    Raises
    ------
    ParameterError
        For an unknown name, missing or unknown entries, or values outside their range.
    """
    name = values.get("name") if isinstance(values, Mapping) else None
    if not isinstance(name, str) or name not in _KERNELS:
        message = (
            f"kernel_from_dict: name must be one of {', '.join(sorted(_KERNELS))}; got {str(name)[:40]!r}. Pass what to_dict returned."
        )
        raise ParameterError(message)
    settings = {key: value for key, value in values.items() if key != "name"}
    expected = {"length_scale", "nu"} if name == "matern" else {"length_scale"}
    if set(settings) != expected:
        shown = ", ".join(sorted(map(str, settings)))[:80]
        message = f"kernel_from_dict: entries of {name} must be {', '.join(sorted(expected))}; got {shown}. Pass what to_dict returned."
        raise ParameterError(message)
    return _KERNELS[name](**settings)  # type: ignore[return-value]


def gaussian_kernel(x: Array, y: Array | None = None, *, length_scale: Any = 1.0) -> Array:
    r"""Gaussian kernel matrix between two sets of points, :math:`\exp(-|x_i - y_j|^2 / (2 l^2))`."""
    return Gaussian(length_scale)._matrix(x, y, func="gaussian_kernel")


def median_length_scale(x: Array, *, rng: RngLike = None, sample: int = 1000) -> float:
    """Median Euclidean distance between distinct rows of a seeded sample: the median heuristic.

    Parameters
    ----------
    x : array, shape (n, d)
        Points, n >= 2.
    rng : None, int or Generator
        Picks the sample where n > sample.
    sample : int, default 1000
        Most rows to look at.

    Returns
    -------
    float
        Where more than half of the pairs coincide: the median of the positive distances.
    """
    func = "median_length_scale"
    xp, (x,), _ = _arrays.prepare(func, {"x": x})
    check_points(x, None, func=func)
    if x.ndim != 2 or x.shape[0] < 2:
        message = (
            f"{func}: x must have shape (n, d) with n >= 2; got {tuple(x.shape)}. Pass at least two points, or a number as length_scale."
        )
        raise ShapeError(message)
    if _arrays.is_traced(x):
        message = (
            f"{func}: x must hold values; got a traced array. Find the length scale outside jit, vmap or compile, and pass the number."
        )
        raise DTypeError(message)
    if isinstance(sample, bool) or not isinstance(sample, int) or sample < 2:
        message = f"{func}: sample must be a whole number >= 2; got {sample!r}. Pass the number of rows to look at."
        raise ParameterError(message[:400])
    if x.shape[0] > sample:
        chosen = as_generator(rng, func=func).choice(x.shape[0], size=sample, replace=False)
        chosen.sort()
        x = _arrays.take_rows(x, chosen, xp=xp)
    _arrays.check_finite(x, func=func, name="x", xp=xp)
    x = _arrays.detach(xp.astype(x, _arrays.wide_dtype(x, xp=xp), copy=False))
    scaled, exponent = _arrays.power_of_two_scale(x / 2 - center_of(x, xp=xp) / 2, xp=xp)
    squares = squared_distances(scaled)
    n, d = squares.shape[0], x.shape[1]
    index = xp.arange(n, device=_arrays.device_of(x))
    # Distances below the rounding of the product form belong to equal rows.
    floor = 8 * (d + 2) * _arrays.eps(x.dtype) * _arrays.to_float(xp.max(xp.sum(scaled * scaled, axis=-1)))
    usable = index[:, None] < index[None, :]
    positive = usable & (squares > floor)
    count, found = n * (n - 1) // 2, int(xp.sum(xp.astype(positive, xp.int64)))
    if found == 0:
        message = f"{func}: x must have two different rows; got {n} equal ones in the sample. Pass a number as length_scale."
        raise ParameterError(message)
    ordered = xp.sort(xp.reshape(xp.where(positive, squares, xp.full_like(squares, math.inf)), (-1,)))[:found]
    zeros = count - found
    if 2 * zeros > count - 1:
        zeros, count = 0, found
    pair = [ordered[max(0, position - zeros)] for position in ((count - 1) // 2, count // 2)]
    median = sum(math.sqrt(_arrays.to_float(value)) for value in pair) / 2
    return math.ldexp(median, int(_arrays.to_float(exponent)) + 1)
