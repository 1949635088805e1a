"""The Nystrom approximation of a kernel matrix as a matrix: products, systems, eigenvectors, features, files."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, Self

from softlinalg import _arrays, _inputs, _linalg
from softlinalg._kernels import Kernel
from softlinalg._nystrom_core import RowStore, Spectrum, optional_count, plus_gram, row_spans, spectrum_of
from softlinalg._nystrom_fit import Fit, truncation_errors
from softlinalg._nystrom_operators import linear_operator
from softlinalg._nystrom_solve import core_product, preconditioner_core, ridge_solve
from softlinalg._settings import whole_number
from softlinalg._typing import Array, DType
from softlinalg.errors import InputError, ParameterError, RangeError, ShapeError

__all__ = ["DENSE_BUDGET", "NystromDecomposition"]

DENSE_BUDGET = 2**30
"""Bytes that `to_dense` may take unless it is given another figure (1 GiB)."""


class NystromDecomposition:
    r"""The approximation F F^T of a kernel matrix k(x, x), as `nystrom` makes it.

    Behaves as a symmetric n x n matrix that is never formed: ``d @ v``, ``v @ d``, ``d.T``, ``d.shape``. Positive semi-definite,
    and below the kernel matrix up to rounding.

    Attributes
    ----------
    kernel : Kernel
        With its length scale settled.
    landmarks : array, shape (m, d)
    trace : float
        Of the kernel matrix.
    trace_error : float
        tr(K - F F^T), summed over all rows from the features themselves: the exact error in the nuclear norm, zero where
        rounding made it negative.
    trace_error_floor : float
        How much of `trace_error` rounding could be: an estimate, on the high side.
    ridge : float or None
        What `solve`, `logdet` and `preconditioner` add by default.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> x = np.random.default_rng(0).normal(size=(1000, 2))
    >>> d = softlinalg.nystrom(x, softlinalg.Gaussian(1.0), rank=60, rng=0)
    >>> d.shape, d.rank, d.relative_trace_error < 0.01
    ((1000, 1000), 60, True)
    >>> (d @ np.ones(1000)).shape
    (1000,)
    >>> weights = d.solve(x[:, 0], ridge=0.1)
    >>> d.cross_matmul(np.zeros((3, 2)), weights).shape                       # predictions
    (3,)
    >>> values, vectors = d.eigh()
    >>> vectors.shape
    (1000, 60)
    """

    __array_ufunc__ = None  # v @ d with a NumPy array v asks this class

    def __init__(self, fitted: Fit, x: Array | None, *, dtype: DType, ridge: float | None, n: int | None = None) -> None:
        self._map, self._summary, self._features, landmarks = fitted
        self.landmarks: Array = landmarks
        self._x = x
        self._n = int(x.shape[0]) if x is not None else int(n or 0)
        self._dtype = dtype
        self._wide = self._map.wide
        self._xp = self._map.xp
        self.ridge: float | None = ridge
        self.kernel: Kernel = self._map.kernel
        self.trace: float = self._summary.trace
        self.trace_error: float = max(self._summary.trace_error, 0.0)
        self.trace_error_floor: float = self._summary.floor

    def __repr__(self) -> str:
        return (
            f"NystromDecomposition(n={self._n}, rank={self.rank}, landmarks={self.landmarks.shape[0]}, kernel={self.kernel!r}, "
            f"relative_trace_error={self.relative_trace_error:.3g}, features {'stored' if self._features is not None else 'recomputed'})"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self._n, self._n

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    @property
    def dtype(self) -> DType:
        """That of the data."""
        return self._dtype

    @property
    def rank(self) -> int:
        """Columns of the features: eigenvalues kept."""
        return self._map.rank

    @property
    def T(self) -> Self:  # noqa: N802
        """Itself: it is symmetric."""
        return self

    @property
    def stores_features(self) -> bool:
        """Whether the features are kept, or computed anew for every product."""
        return self._features is not None

    @property
    def relative_trace_error(self) -> float:
        """`trace_error` as a share of the trace."""
        return self.trace_error / self.trace if self.trace > 0 else 0.0

    @property
    def eigenvalues(self) -> Array:
        """Eigenvalues of the approximation that are not zero by construction, falling, shape (rank,).

        Computed when they are first asked for, here or by what needs them, in O(n rank^2).
        """
        return self._wide.narrow(self._spectrum.eigenvalues, self._dtype)

    @property
    def relative_trace_errors(self) -> Array:
        """Exact relative trace error of the best truncation of the approximation to rank 1, 2, ..., shape (rank,)."""
        errors = truncation_errors(self._summary.trace_error, self._spectrum.eigenvalues, xp=self._wide.xp)
        return self._wide.narrow(errors / self.trace if self.trace > 0 else errors, self._dtype)

    # ------------------------------------------------------------------------------------------ passes over the rows
    @property
    def _spectrum(self) -> Spectrum:
        """Of the approximation; made at first use, by a pass over the features, in O(n rank^2): as long as the features took."""
        if self._summary.spectrum is None:
            gram = self._wide.zeros(self.rank, self.rank)
            with _arrays.quiet(gram):
                for _, _, features in self._blocks():
                    gram = plus_gram(gram, self._wide.widen(features), xp=self._wide.xp)
                self._summary = self._summary._replace(spectrum=spectrum_of(gram, wide=self._wide))
        found = self._summary.spectrum
        assert found is not None
        return found

    def _blocks(self) -> Iterator[tuple[int, int, Array]]:
        """Rows of the features, stored or computed, block by block."""
        for start, stop in row_spans(self._n, self.rank, self.landmarks, self._map.chunk_size):
            if self._features is not None:
                yield start, stop, self._features[start:stop, :]
            else:
                yield start, stop, self._map(self._rows()[start:stop, :])

    def _rows(self) -> Array:
        if self._x is None:
            need = "data must be at hand for features that are not stored"
            message = f"NystromDecomposition: {need}; got neither. Pass x to load, or stream data that can be read again."
            raise InputError(message)
        return self._x

    def _store(self, columns: int, dtype: DType, func: str) -> RowStore:
        return RowStore((self._n, columns), self.landmarks, dtype, func=func, xp=self._xp)

    def _factor(self, v: Any, rows: int, *, func: str, name: str) -> tuple[Array, bool, DType]:
        """`v` as a matrix of `rows` rows in a type to compute in; was it a vector; and the dtype of the result."""
        xp, (v, _), dtype = _inputs.prepare(func, {name: v, "landmarks": self.landmarks})
        if v.ndim not in (1, 2) or v.shape[0] != rows:
            message = f"{func}: {name} must have shape ({rows},) or ({rows}, k); got {tuple(v.shape)}. Pass one row per row of the data."
            raise ShapeError(message)
        _inputs.check_finite(v, func=func, name=name, xp=xp)
        v = xp.astype(_arrays.detach(v), _arrays.compute_dtype(dtype, xp=xp), copy=False)
        return (v[:, None], True, dtype) if v.ndim == 1 else (v, False, dtype)

    def _project(self, v: Array) -> Array:
        """F^T v, shape (rank, k), float64 sums of products in the type of `v`."""
        xp, wide = self._xp, self._wide
        total = wide.zeros(self.rank, v.shape[-1])
        with _arrays.quiet(v):
            for start, stop, features in self._blocks():
                f = xp.astype(features, v.dtype, copy=False)
                total = total + wide.widen(xp.matrix_transpose(f) @ v[start:stop, :])
        return total

    def _expand(self, coefficients: Array, dtype: DType, compute: DType, *, func: str) -> Array:
        """F @ coefficients, shape (n, k), as `dtype`."""
        with _arrays.quiet(coefficients):
            narrow = self._wide.narrow(coefficients, compute)
            store = self._store(narrow.shape[-1], dtype, func)
            for start, stop, features in self._blocks():
                block = self._xp.astype(features, compute, copy=False) @ narrow
                store.put(start, stop, self._xp.astype(block, dtype, copy=False))
            return store.result()

    # ------------------------------------------------------------------------------------------ products
    def __matmul__(self, v: Any) -> Array:
        """The product with a vector (n,) or a matrix (n, k): O(n rank k), two passes over the features."""
        func = "NystromDecomposition.matmul"
        factor, was_vector, dtype = self._factor(v, self._n, func=func, name="v")
        result = self._expand(self._project(factor), dtype, factor.dtype, func=func)
        return result[:, 0] if was_vector else result

    def __rmatmul__(self, v: Any) -> Array:
        """The product of a vector (n,) or a matrix (k, n) with this."""
        xp, (v, _), _ = _inputs.prepare("NystromDecomposition.rmatmul", {"v": v, "landmarks": self.landmarks})
        return self @ v if v.ndim != 2 else xp.matrix_transpose(self @ xp.matrix_transpose(v))

    def cross_matmul(self, x_new: Any, v: Any) -> Array:
        r"""The product of :math:`\hat k(x_{new}, x)` with `v`: what predictions need.

        Parameters
        ----------
        x_new : array, shape (q, d)
        v : array, shape (n,) or (n, k)

        Returns
        -------
        array, shape (q,) or (q, k)

        Examples
        --------
        >>> import numpy as np
        >>> import softlinalg
        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> d = softlinalg.nystrom(x, softlinalg.Gaussian(1.0), rank=80, rng=0)
        >>> truth = softlinalg.gaussian_kernel(x[:3], x) @ np.ones(500)
        >>> bool(np.abs(d.cross_matmul(x[:3], np.ones(500)) - truth).max() < 0.1)
        True
        """
        func = "NystromDecomposition.cross_matmul"
        factor, was_vector, dtype = self._factor(v, self._n, func=func, name="v")
        features = self._new_features(x_new, func=func)
        with _arrays.quiet(features):
            product = self._xp.astype(features, factor.dtype, copy=False) @ self._wide.narrow(self._project(factor), factor.dtype)
            result = self._xp.astype(product, dtype, copy=False)
        return result[:, 0] if was_vector else result

    def diagonal(self) -> Array:
        """Diagonal of the approximation, shape (n,): at most that of the kernel matrix, up to rounding."""
        store = RowStore((self._n,), self.landmarks, self._dtype, func="NystromDecomposition.diagonal", xp=self._xp)
        for start, stop, features in self._blocks():
            f = self._wide.widen(features)
            store.put(start, stop, self._wide.narrow(self._wide.xp.sum(f * f, axis=-1), self._dtype))
        return store.result()

    def features(self, x_new: Any = None) -> Array:
        r"""Feature map k(., L) M, for which features(x) features(y)^T is the approximation of k(x, y).

        Parameters
        ----------
        x_new : array, shape (q, d), optional
            Default: the data themselves. Stored features are returned as they are, without a copy: do not change them.

        Returns
        -------
        array, shape (q, rank)
            dtype of the data. Memory: the result and one block of kernel values.

        Examples
        --------
        >>> import numpy as np
        >>> import softlinalg
        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> d = softlinalg.nystrom(x, softlinalg.Gaussian(1.0), rank=80, rng=0)
        >>> f = d.features(x[:2])
        >>> bool(np.allclose(f @ f.T, softlinalg.gaussian_kernel(x[:2]), atol=1e-2))
        True
        """
        func = "NystromDecomposition.features"
        if x_new is not None:
            return self._xp.astype(self._new_features(x_new, func=func), self._dtype, copy=False)
        if self._features is not None:
            return self._xp.astype(self._features, self._dtype, copy=False)
        store = self._store(self.rank, self._dtype, func)
        for start, stop, features in self._blocks():
            store.put(start, stop, self._xp.astype(features, self._dtype, copy=False))
        return store.result()

    def _new_features(self, x_new: Any, *, func: str) -> Array:
        xp, (x_new, _), _ = _inputs.prepare(func, {"x_new": x_new, "landmarks": self.landmarks})
        if x_new.ndim != 2 or x_new.shape[1] != self.landmarks.shape[1]:
            message = (
                f"{func}: x_new must have shape (q, {self.landmarks.shape[1]}); got {tuple(x_new.shape)}. Use the features of the data."
            )
            raise ShapeError(message)
        x_new = xp.astype(_arrays.detach(x_new), self.landmarks.dtype, copy=False)
        if not self._map.in_float64:
            return self._map(x_new)
        store = RowStore((x_new.shape[0], self.rank), self.landmarks, self._map.dtype, func=func, xp=xp)
        for start, stop in row_spans(x_new.shape[0], self.rank, self.landmarks, self._map.chunk_size):
            store.put(start, stop, self._map(x_new[start:stop, :], store.slot(start, stop)))
        return store.result()

    def to_dense(self, *, memory_budget: int = DENSE_BUDGET) -> Array:
        """The n x n matrix, for small n.

        Parameters
        ----------
        memory_budget : int, default 2**30
            Bytes that the result may take.

        Raises
        ------
        ResourceError
            It would take more; nothing is allocated.
        """
        func = "NystromDecomposition.to_dense"
        memory_budget = whole_number(memory_budget, func=func, name="memory_budget", minimum=0, remedy="Pass a number of bytes.")
        compute = self._map.dtype
        need = self._n**2 * (4 if _arrays.eps(compute) > 2.0**-50 else 8)
        remedy = "Use products with the decomposition, or raise memory_budget."
        _inputs.check_memory(need, memory_budget, func=func, what="the dense matrix", remedy=remedy)
        everything = self._xp.matrix_transpose(self._xp.astype(self.features(), compute, copy=False))
        store = self._store(self._n, self._dtype, func)
        for start, stop, features in self._blocks():
            store.put(start, stop, self._xp.astype(features @ everything, self._dtype, copy=False))
        return store.result()

    # ------------------------------------------------------------------------------------------ systems and spectra
    def _ridge(self, ridge: float | None, *, func: str) -> float:
        if ridge is None and self.ridge is None:
            message = f"{func}: ridge must be given, here or to nystrom; got None. The approximation itself is singular: pass a number > 0."
            raise ParameterError(message)
        return _inputs.real_scalar(self.ridge if ridge is None else ridge, func=func, name="ridge")

    def solve(self, b: Any, ridge: float | None = None) -> Array:
        r"""Solve :math:`(\hat K + ridge I) y = b` by Woodbury's identity, in float64 and with iterative refinement.

        Parameters
        ----------
        b : array, shape (n,) or (n, k)
        ridge : float, optional
            Positive. Default: the one given to `nystrom`.

        Returns
        -------
        array, shape of `b`
            Its backward error is a few roundings of its dtype, also in float32: residuals are taken in float64 (on the
            host where the device has none).

        Raises
        ------
        ParameterError
            ridge <= 0, or none given.
        RangeError, NumericalError
            The result overflows its dtype, or nearly: a larger ridge is needed.

        Notes
        -----
        O(n rank k), two passes over the features per step of refinement; three n x k arrays in float64.
        """
        func = "NystromDecomposition.solve"
        ridge = self._ridge(ridge, func=func)
        factor, was_vector, dtype = self._factor(b, self._n, func=func, name="b")
        with _arrays.quiet(factor):
            solution = ridge_solve(
                self._blocks,
                self._wide.widen(factor),
                self._spectrum.eigenvalues,
                self._spectrum.rotation,
                ridge,
                unit=_arrays.eps(factor.dtype),
                func=func,
                wide=self._wide,
            )
        if factor.shape[1] and not float(self._wide.xp.max(self._wide.xp.abs(solution))) <= float(self._xp.finfo(dtype).max):
            kind = _arrays.dtype_name(dtype)
            message = f"{func}: ridge must be large enough for a result that is finite in {kind}; got {ridge:.3g}. Pass a larger one."
            raise RangeError(message)
        result = self._wide.narrow(solution, dtype)
        return result[:, 0] if was_vector else result

    def logdet(self, ridge: float | None = None) -> float:
        r"""Logarithm of the determinant of :math:`\hat K + ridge I`: sum of log(eigenvalue + ridge), plus (n - rank) log(ridge).

        Parameters
        ----------
        ridge : float, optional
            Positive. Default: the one given to `nystrom`.
        """
        ridge = self._ridge(ridge, func="NystromDecomposition.logdet")
        wxp, values = self._wide.xp, self._spectrum.eigenvalues
        # log1p keeps the digits of the smaller of the two; the quotient of the smaller by the larger cannot overflow.
        larger, smaller = (wxp.where(values > ridge, *pair) for pair in ((values, ridge + 0 * values), (ridge + 0 * values, values)))
        parts = wxp.log(larger) + wxp.log1p(smaller / larger)
        return (self._n - int(values.shape[0])) * math.log(ridge) + float(wxp.sum(parts))

    def eigh(self, k: int | None = None) -> tuple[Array, Array]:
        """Leading eigenvalues and orthonormal eigenvectors of the approximation.

        Parameters
        ----------
        k : int, optional
            How many, at most `rank`. Default: all of them.

        Returns
        -------
        eigenvalues : array, shape (k,)
            Falling.
        eigenvectors : array, shape (n, k)
            Orthonormal to rounding in their dtype. Where an eigenvalue is itself rounding, so is the direction of its vector.

        Notes
        -----
        O(n rank k + n k^2). From the eigenvectors U of F^T F, as F U g^(-1/2); then once or twice through the Cholesky factor of
        their Gram matrix, which leaves the leading ones as they are.
        """
        func = "NystromDecomposition.eigh"
        if self.rank == 0:
            message = f"{func}: the approximation must not be zero; got rank 0. Its eigenvectors are any orthonormal vectors."
            raise InputError(message)
        count = optional_count(k, func=func, name="k", maximum=self.rank) or self.rank
        wide, wxp = self._wide, self._wide.xp
        values = self._spectrum.eigenvalues[:count]
        safe = wxp.where(values > 0, values, wxp.ones_like(values))
        turn = self._spectrum.rotation[:, :count] / wxp.sqrt(safe)
        vectors = self._turned(self._blocks(), turn, func=func)
        for _ in range(2):
            gram = wide.zeros(count, count)
            for start, stop, _ in self._spans_of(vectors):
                gram = plus_gram(gram, wide.widen(vectors[start:stop, :]), xp=wxp)
            eye = _arrays.eye_like(gram, xp=wxp)
            if float(wxp.max(wxp.abs(gram - eye))) <= 4 * _arrays.eps(self._map.dtype):
                break
            factor, ok = _linalg.cholesky(gram, xp=wxp)
            if not bool(wxp.all(ok)):
                vectors = self._xp.linalg.qr(vectors)[0]
                break
            turn = wxp.matrix_transpose(_linalg.triangular_solve(factor, eye, xp=wxp))
            vectors = self._turned(self._spans_of(vectors), turn, func=func)
        return wide.narrow(values, self._dtype), self._xp.astype(vectors, self._dtype, copy=False)

    def _spans_of(self, rows: Array) -> Iterator[tuple[int, int, Array]]:
        for start, stop in row_spans(self._n, rows.shape[-1], self.landmarks, self._map.chunk_size):
            yield start, stop, rows[start:stop, :]

    def _turned(self, blocks: Iterator[tuple[int, int, Array]], turn: Array, *, func: str) -> Array:
        """rows @ turn, computed in float64, in the dtype of the features."""
        store = self._store(turn.shape[-1], self._map.dtype, func)
        for start, stop, rows in blocks:
            store.put(start, stop, self._wide.narrow(self._wide.widen(rows) @ turn, self._map.dtype))
        return store.result()

    # ------------------------------------------------------------------------------------------ SciPy
    def as_linear_operator(self) -> Any:
        """The approximation as a `scipy.sparse.linalg.LinearOperator` over NumPy vectors, whatever library holds the data."""
        return linear_operator(self._n, lambda v: self @ v, self.landmarks, xp=self._xp)

    def preconditioner(self, ridge: float | None = None) -> Any:
        r"""The Nystrom preconditioner of K + ridge I, as a `scipy.sparse.linalg.LinearOperator` that applies its inverse.

        .. math:: P^{-1} = (g_r + ridge)\, V (\mathrm{diag}(g) + ridge I)^{-1} V^T + (I - V V^T)

        with the eigenpairs (g, V) of the approximation, g_r the smallest: pass it as `M` to `scipy.sparse.linalg.cg` together with
        ``kernel_operator(kernel, x, ridge)``. The preconditioned matrix has a condition number of at most
        (ridge + g_r + |K - F F^T|) / ridge [1]_.

        Parameters
        ----------
        ridge : float, optional
            Positive. Default: the one given to `nystrom`.

        References
        ----------
        .. [1] Frangella, Tropp & Udell, Randomized Nystrom preconditioning (2023), SIAM J. Matrix Anal. Appl. 44.
        """
        func = "NystromDecomposition.preconditioner"
        ridge = self._ridge(ridge, func=func)
        wide = self._wide
        core = preconditioner_core(self._spectrum.eigenvalues, self._spectrum.rotation, ridge, wide=wide)

        def apply(v: Array) -> Array:
            # In float64: P^-1 shrinks the leading directions by up to ridge / g_1, which would drown in the rounding of v.
            factor, was_vector, dtype = self._factor(v, self._n, func=func, name="v")
            v = wide.widen(factor)
            result = wide.narrow(v + core_product(self._blocks, core, v, func=func, wide=wide), dtype)
            return result[:, 0] if was_vector else result

        return linear_operator(self._n, apply, self.landmarks, xp=self._xp)

    # ------------------------------------------------------------------------------------------ files
    def save(self, path: str | os.PathLike[str], *, include_features: bool = True) -> None:
        """Write the decomposition to a file, .npz or .safetensors by its name: numbers and JSON, no pickle.

        The file appears under its name only when it is complete, and carries a digest of every byte. The data `x` are not
        written, the features are where they are stored.

        Parameters
        ----------
        path : str or path
        include_features : bool, default True
            Write stored features. Without them the file is small, and products with the decomposition need `x` again.

        Raises
        ------
        ParameterError
            Another file name extension, or .safetensors without the package of that name.
        OSError
            The file cannot be written; one of that name stays as it was.
        """
        from softlinalg._nystrom_io import save_decomposition

        save_decomposition(self, path, include_features=include_features)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, x: Any = None, kernel: Any = None, like: Any = None) -> Self:
        """Read a decomposition that `save` wrote.

        Parameters
        ----------
        path : str or path
        x : array, shape (n, d), optional
            The data, needed for products where the features were not saved.
        kernel : Kernel, optional
            Needed where the kernel was none of this package; refused where it contradicts the file.
        like : array, optional
            Put the result into the library and onto the device of this array. Default: those of `x`, else NumPy.

        Returns
        -------
        NystromDecomposition
            The same numbers, bit for bit.

        Raises
        ------
        CheckpointCorruptError
            Any byte differs from what was written, or the file is something else. Nothing in it is executed.
        CheckpointVersionError
            A later version wrote it.
        FileNotFoundError
        """
        from softlinalg._nystrom_io import load_decomposition

        loaded: Self = load_decomposition(cls, path, x=x, kernel=kernel, like=like)
        return loaded
