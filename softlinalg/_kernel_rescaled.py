"""Kernel values at many common factors of the length scales, from distances that are computed once.

Every kernel of this package is a function of an exponent e that is a power of the scaled distance: with all length scales multiplied by
f it is e / f^2, or e / f for the kernel of absolute differences. Where there are many columns the distances are nearly all of the work.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from softlinalg import _arrays
from softlinalg._kernel_base import StationaryKernel
from softlinalg._kernel_distances import GaussianColumns, mirror
from softlinalg._kernel_products import rows_per_block
from softlinalg._typing import Array, Namespace

__all__ = ["RescaledKernel", "rescaled"]

_FUNC = "RescaledKernel"


def rescaled(kernel: StationaryKernel, factor: float) -> StationaryKernel:
    """The kernel with all its length scales multiplied by `factor`."""
    if factor == 1:
        return kernel
    scale = kernel.length_scale
    return replace(kernel, length_scale=tuple(s * factor for s in scale) if isinstance(scale, tuple) else scale * factor)


class RescaledKernel:
    """k(x, x[:m]) for `rescaled(kernel, factor)` at any factor.

    Parameters
    ----------
    kernel : Kernel
        Of this package; values of others, which have no length scale, are computed anew each time.
    x : array, shape (n, d), float32 or float64
        In a library whose arrays can be written to.

    Notes
    -----
    O(n m d) time for the largest m asked for, then O(n m) for each factor; n m numbers of memory besides the result. Rounding is that of
    the kernel itself: where points are so far apart, in length scales, that it computes some distances with more care
    (see `_kernel_distances`), this asks the kernel.
    """

    def __init__(self, kernel: Any, x: Array, *, xp: Namespace) -> None:
        self.kernel, self.x, self.xp = kernel, x, xp
        self._exponents: Array | None = None
        self._power, self._shortest = 0, 0.0

    def values(self, columns: int, factor: float = 1.0, *, last: bool = False) -> Array:
        """Kernel values, shape (n, columns); in the memory of the distances, which are then gone, if this is the last use."""
        exponents = self._measured(columns, factor)
        if exponents is None:
            return self._at(factor)(self.x, self.x[:columns])
        exponents = exponents[:, :columns]
        out = exponents if last else _arrays.empty_like_shape(tuple(exponents.shape), exponents, xp=self.xp)
        step = rows_per_block(None, out, columns, func=_FUNC)
        with _arrays.quiet(out):
            for start in range(0, out.shape[0], step):
                block = out[start : start + step]
                self.xp.multiply(exponents[start : start + step], factor**-self._power, out=block)
                self.kernel._finish(block, xp=self.xp)
        if last:
            self._exponents = None
        return out

    def square(self, values: Array, factor: float = 1.0) -> Array:
        """The kernel matrix of the first points, symmetric, from what `values` returned."""
        if not self._serves(factor):
            return self._at(factor)(self.x[: values.shape[1]])
        return mirror(values[: values.shape[1]], 1.0, xp=self.xp)

    def _at(self, factor: float) -> Any:
        return rescaled(self.kernel, factor) if isinstance(self.kernel, StationaryKernel) else self.kernel

    def _serves(self, factor: float) -> bool:
        """Have distances been computed, and are they accurate enough at this factor?"""
        return self._power > 0 and factor >= self._shortest

    def _measured(self, columns: int, factor: float) -> Array | None:
        """Exponents at factor 1 for so many columns or more, those missing added; None where the kernel is to be asked."""
        if not isinstance(self.kernel, StationaryKernel) or (self._power and not self._serves(factor)):
            return None
        known = self._exponents
        have = 0 if known is None else int(known.shape[1])
        if have < columns:
            self._exponents = _arrays.empty_like_shape((self.x.shape[0], columns), self.x, xp=self.xp)
            if known is not None:
                self._exponents[:, :have] = known
            self._measure(have, self._exponents[:, have:])
        return self._exponents if self._serves(factor) else None

    def _measure(self, first: int, out: Array) -> None:
        """Exponents for the columns from `first` on, into `out`."""
        x, y = self.x, self.x[first : first + out.shape[1]]
        points = self.kernel._prepared(y, x.dtype, func=_FUNC, xp=self.xp).columns
        step = rows_per_block(None, y, y.shape[0], func=_FUNC)
        points.reserve(min(step, x.shape[0]))
        with _arrays.quiet(out):
            for start in range(0, x.shape[0], step):
                points.write(x[start : start + step], out[start : start + step])
        if isinstance(points, GaussianColumns):
            self._power, self._shortest = 2, max(self._shortest, points.shortest())
        else:  # differences are accurate at any distance
            self._power = points.power
