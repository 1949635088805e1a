"""The feature map of a Nystrom approximation without the rows on which it was made: what a model keeps, and what files hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from softlinalg import _arrays, _inputs
from softlinalg._kernels import kernel_matmul
from softlinalg._nystrom_core import FeatureMap, RowStore, Wide, kernel_diagonal, row_spans
from softlinalg._nystrom_decomposition import NystromDecomposition
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ShapeError

__all__ = ["NystromMap", "map_of"]


@dataclass(frozen=True, eq=False, kw_only=True)
class NystromMap:
    """x -> k(x, landmarks) M for any rows: arrays and settings only, so that copies, processes and files can carry it.

    Parameters
    ----------
    kernel : Kernel
        With its length scale settled.
    landmarks : array, shape (m, d)
        In the order of the rows of `factor`, in the dtype of the data.
    factor : array, shape (m, r)
        M, float64: on the device of the landmarks where that has float64, else on the host.
    in_float64 : bool
        Whether blocks are computed in float64 and rounded at the end.
    chunk_size : int or None
        Rows per block of kernel values.
    """

    kernel: Any
    landmarks: Array
    factor: Array
    in_float64: bool
    chunk_size: int | None = None

    @property
    def rank(self) -> int:
        """Number of features."""
        return int(self.factor.shape[-1])

    def prepared(self, *, xp: Namespace) -> FeatureMap:
        """The map with its arrays in the type of the features: make it once for many blocks."""
        return FeatureMap(
            kernel=self.kernel,
            landmarks=self.landmarks,
            map=self.factor,
            dtype=_arrays.compute_dtype(self.landmarks.dtype, xp=xp),
            in_float64=self.in_float64,
            chunk_size=self.chunk_size,
            wide=Wide(self.landmarks, xp=xp),
            xp=xp,
        )

    def checked(self, x: Any, *, func: str, name: str = "x") -> tuple[Array, Namespace]:
        """`x` as rows of the width, library and dtype of the landmarks.

        Raises
        ------
        ShapeError, DTypeError, BackendMismatchError
        """
        xp, (x, _), _ = _inputs.prepare(func, {name: x, "landmarks": self.landmarks})
        if x.ndim != 2 or x.shape[1] != self.landmarks.shape[1]:
            need = f"(q, {self.landmarks.shape[1]})"
            message = f"{func}: {name} must have shape {need}; got {tuple(x.shape)}. Use the columns with which the map was made."
            raise ShapeError(message)
        return xp.astype(_arrays.detach(x), self.landmarks.dtype, copy=False), xp

    def blocks(self, x: Array, *, xp: Namespace) -> Iterator[tuple[int, int, Array]]:
        """Features of the rows of `x` (checked) block by block: start, stop, array of shape (stop - start, r)."""
        features = self.prepared(xp=xp)
        for start, stop in row_spans(int(x.shape[0]), self.rank, self.landmarks, self.chunk_size):
            yield start, stop, features(x[start:stop, :])

    def __call__(self, x: Any, *, func: str = "NystromMap") -> Array:
        """Features, shape (q, r), in the dtype of the features."""
        x, xp = self.checked(x, func=func)
        features = self.prepared(xp=xp)
        store = RowStore((int(x.shape[0]), self.rank), self.landmarks, features.dtype, func=func, xp=xp)
        for start, stop in row_spans(int(x.shape[0]), self.rank, self.landmarks, self.chunk_size):
            store.put(start, stop, features(x[start:stop, :], store.slot(start, stop)))
        return store.result()

    def fold(self, coefficients: Array) -> Array:
        """M @ coefficients, shape (m, k), float64: F(x) @ coefficients is k(x, landmarks) times this, without the features."""
        return self.factor @ coefficients

    def combine(self, x: Any, folded: Array, shift: Array | None = None, *, func: str) -> Array:
        """F(x) @ coefficients + shift from `folded` = fold(coefficients), shape (q, k).

        O(q m (d + k)) time, where the features themselves would cost O(q m (d + r)).
        """
        x, xp = self.checked(x, func=func)
        wide = Wide(self.landmarks, xp=xp)
        dtype = _arrays.compute_dtype(self.landmarks.dtype, xp=xp)
        working = xp.float64 if self.in_float64 else dtype
        points = xp.astype(self.landmarks, working, copy=False)
        factor = wide.narrow(folded, working)
        store = RowStore((int(x.shape[0]), int(folded.shape[-1])), self.landmarks, dtype, func=func, xp=xp)
        for start, stop in row_spans(int(x.shape[0]), int(x.shape[1]), self.landmarks, None):
            rows = xp.astype(x[start:stop, :], working, copy=False)
            values = kernel_matmul(self.kernel, rows, points, factor, chunk_size=self.chunk_size)
            values = values if shift is None else values + wide.narrow(shift, working)
            store.put(start, stop, xp.astype(values, dtype, copy=False))
        return store.result()

    def apply(self, x: Any, row_function: Callable[[Array, Array], Array], columns: int, *, func: str) -> Array:
        """A function of the features row by row, without holding them.

        Parameters
        ----------
        x : array, shape (q, d)
        row_function : callable
            From features (b, r) in float64 and what they leave of the diagonal, k(x_i, x_i) - |F_i|^2 >= 0, shape (b,), to
            values (b, columns) in float64.
        columns : int

        Returns
        -------
        array, shape (q, columns), in the dtype of the features
        """
        x, xp = self.checked(x, func=func)
        dtype = _arrays.compute_dtype(self.landmarks.dtype, xp=xp)
        wide = Wide(self.landmarks, xp=xp)
        store = RowStore((int(x.shape[0]), columns), self.landmarks, dtype, func=func, xp=xp)
        for start, stop, block in self.blocks(x, xp=xp):
            f = wide.widen(block)
            left = wide.widen(kernel_diagonal(self.kernel, x[start:stop, :], func=func)) - wide.xp.sum(f * f, axis=-1)
            left = wide.xp.where(left > 0, left, wide.xp.zeros_like(left))
            store.put(start, stop, wide.narrow(row_function(f, left), dtype))
        return store.result()


def map_of(d: NystromDecomposition) -> NystromMap:
    """The feature map of a decomposition, without its data and features."""
    inner = d._map
    return NystromMap(
        kernel=inner.kernel, landmarks=inner.landmarks, factor=inner.map, in_float64=inner.in_float64, chunk_size=inner.chunk_size
    )
