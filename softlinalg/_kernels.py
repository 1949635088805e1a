"""Kernels: Gaussian, Laplacian and Matern 1/2, 3/2, 5/2, with their gradients, and products with their matrices in blocks.

Every kernel here is a function of differences divided by a length scale, one for all features or one for each. Anything with
`__call__(x, y)` and `diagonal(x)` serves as a kernel in the rest of the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from softlinalg import _inputs
from softlinalg._kernel_base import StationaryKernel
from softlinalg._kernel_distances import DifferenceColumns, GaussianColumns, squared_distances
from softlinalg._kernel_length_scales import median_length_scale
from softlinalg._kernel_products import default_chunk_size, iter_kernel_blocks, kernel_matmul, kernel_matmul_adjoint
from softlinalg._settings import shown
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError

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
    """What the package asks of a kernel: a positive semi-definite function of two points, over sets of points.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> class Cosine:
    ...     def __call__(self, x, y):
    ...         return (x @ y.T) / (np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(y, axis=1))
    ...     def diagonal(self, x):
    ...         return np.ones(x.shape[0])
    >>> x = np.random.default_rng(0).normal(size=(300, 4))
    >>> softlinalg.nystrom(x, Cosine(), rank=4, landmarks="rpcholesky", rng=0).relative_trace_error < 1e-10     # four columns: rank 4
    True
    """

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """Kernel matrix (..., n, m) between `x` (..., n, d) and `y` (..., m, d), or between `x` and itself."""
        ...

    def diagonal(self, x: Array) -> Array:
        """k(x_i, x_i) for each point, shape (..., n)."""
        ...


class Gaussian(StationaryKernel):
    r"""Gaussian kernel :math:`k(x, y) = \exp(-|x - y|_2^2 / (2 l^2))`.

    Parameters
    ----------
    length_scale : float, sequence of d floats, or "median", default 1.0
        l, the distance at which the kernel has fallen to exp(-1/2), in the units of the data: one number, or one per feature (each
        feature is divided by its own). "median" stands for `median_length_scale`; `resolve` puts the number in.

    Raises
    ------
    ParameterError
        A length scale that is not finite and positive.

    Notes
    -----
    Exponents come from one matrix product of the centered, scaled points. Their error is a few (d + 2) u t, with u the unit roundoff
    and t the largest of 1, the exponent, and the squared distance of the nearer point from the center, in length scales. Where that
    distance would cost more than 1e-5 (float32) or 1e-11 (float64), pairs are computed anew in float64, or from differences; under
    `jax.jit`, `torch.compile` and `torch.func` they are not, since that depends on values. Values below the normal range are
    exactly zero; those of float16 and bfloat16 are computed in float32 and rounded.

    References
    ----------
    .. [1] Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), eq. 4.9.

    Examples
    --------
    >>> import numpy as np, softlinalg
    >>> softlinalg.Gaussian(2.0)(np.array([[0.0], [2.0]])).round(4)
    array([[1.    , 0.6065],
           [0.6065, 1.    ]])
    """

    name: ClassVar[str] = "gaussian"
    _title: ClassVar[str] = "Gaussian"


class Laplacian(StationaryKernel):
    r"""Laplacian kernel :math:`k(x, y) = \exp(-|x - y|_1 / l)`, with the sum of absolute differences (as in scikit-learn).

    Parameters
    ----------
    length_scale : float, sequence of d floats, or "median", default 1.0
        l, the distance at which the kernel has fallen to exp(-1): one number, or one per feature. "median" is the median Euclidean
        distance. `Matern(nu=0.5)` is the kernel of the same form in the Euclidean distance.

    Notes
    -----
    O(n m d) elementwise work, without an (n, m, d) array: several times slower than the Gaussian kernel.

    References
    ----------
    .. [1] Rahimi & Recht, Random features for large-scale kernel machines (2007), figure 1.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> kernel = softlinalg.Laplacian(2.0)
    >>> np.round(kernel(np.zeros((1, 2)), np.asarray([[1.0, -1.0]])), 4)      # exp(-2 / 2)
    array([[0.3679]])
    """

    name: ClassVar[str] = "laplacian"
    _title: ClassVar[str] = "Laplacian"

    def _columns(self, y: Array, *, func: str, xp: Namespace) -> DifferenceColumns:
        return DifferenceColumns(y, self._inverse_scale(y, func=func, xp=xp), 1, func=func, xp=xp)


@dataclass(frozen=True, repr=False)
class Matern(StationaryKernel):
    r"""Matern kernel of smoothness 1/2, 3/2 or 5/2, a function of the Euclidean distance :math:`r = |x - y|_2 / l`.

    Parameters
    ----------
    length_scale : float, sequence of d floats, or "median", default 1.0
        l, in the units of the data: one number, or one per feature.
    nu : {0.5, 1.5, 2.5}, default 1.5
        exp(-r), (1 + a) exp(-a) with a = sqrt(3) r, or (1 + a + a^2 / 3) exp(-a) with a = sqrt(5) r.

    Raises
    ------
    ParameterError
        Another nu, or a length scale that is not finite and positive.

    Notes
    -----
    Exact to a few units of rounding for nu = 0.5, which is computed from differences and is several times slower; by the matrix
    product of the Gaussian kernel, with its error, for the others. Zero from where exp(-a) would be subnormal.

    References
    ----------
    .. [1] Rasmussen & Williams, Gaussian Processes for Machine Learning (2006), eq. 4.17.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> kernel = softlinalg.Matern(length_scale=1.0, nu=0.5)
    >>> np.round(kernel(np.zeros((1, 1)), np.asarray([[0.0], [1.0]])), 4)     # exp(-r)
    array([[1.    , 0.3679]])
    """

    nu: float = 1.5

    name: ClassVar[str] = "matern"
    _title: ClassVar[str] = "Matern"

    def __post_init__(self) -> None:
        super().__post_init__()
        number = _inputs.real_scalar(self.nu, func=self._title, name="nu")
        if number not in (0.5, 1.5, 2.5):
            message = f"{self._title}: nu must be 0.5, 1.5 or 2.5; got {number!r}. Choose one, or Gaussian, the limit of large nu."
            raise ParameterError(message)
        object.__setattr__(self, "nu", number)

    def _more(self) -> str:
        return f", nu={self.nu}"

    def to_dict(self) -> dict[str, Any]:
        """The kernel as names, numbers and lists, for JSON; `kernel_from_dict` reads it back."""
        return {**super().to_dict(), "nu": self.nu}

    def _columns(self, y: Array, *, func: str, xp: Namespace) -> GaussianColumns | DifferenceColumns:
        if self.nu == 0.5:  # near zero it is not smooth in |x - y|^2: the root would double the number of lost digits
            return DifferenceColumns(y, self._inverse_scale(y, func=func, xp=xp), 2, func=func, xp=xp)
        return super()._columns(y, func=func, xp=xp)

    def _distance(self, exponents: Array, *, xp: Namespace) -> Array:
        """a = sqrt(2 nu) r, capped where every value is zero; zero, with zero gradient, where the points coincide."""
        usable = (exponents < 0) & (exponents > -1e7)
        root = xp.sqrt(-4 * self.nu * xp.where(usable, exponents, xp.full_like(exponents, -1.0)))
        return xp.where(usable, root, xp.where(exponents < 0, xp.full_like(root, 1e4), xp.zeros_like(root)))

    def _values(self, exponents: Array, *, xp: Namespace) -> Array:
        a = self._distance(exponents, xp=xp)
        if self.nu == 0.5:
            return super()._values(-a, xp=xp)
        factor = 1 + a if self.nu == 1.5 else 1 + a + a * a / 3
        values = factor * super()._values(-a, xp=xp)
        return xp.where(values > 1, xp.ones_like(values), values)

    def _finish(self, block: Array, *, xp: Namespace) -> None:
        block[...] = self._values(block, xp=xp)

    def _slopes(self, exponents: Array, *, xp: Namespace) -> Array:
        a = self._distance(exponents, xp=xp)
        decay = super()._values(-a, xp=xp)
        if self.nu == 0.5:
            positive = a > 0
            return xp.where(positive, decay / xp.where(positive, a, xp.ones_like(a)), xp.zeros_like(a))
        return 3 * decay if self.nu == 1.5 else (5 / 3) * (1 + a) * decay


_KERNELS: dict[str, type[Gaussian] | type[Laplacian] | type[Matern]] = {kind.name: kind for kind in (Gaussian, Laplacian, Matern)}


def kernel_from_dict(values: Mapping[str, Any]) -> Gaussian | Laplacian | Matern:
    """The kernel that `to_dict` wrote.

    Parameters
    ----------
    values : mapping
        "name" ("gaussian", "laplacian" or "matern"), "length_scale", and "nu" for the last.

    Raises
    ------
    ParameterError
        An unknown name, missing or unknown entries, or settings outside their range.
    """
    func = "kernel_from_dict"
    name = values.get("name") if isinstance(values, Mapping) else None
    if not isinstance(name, str) or name not in _KERNELS:
        known = ", ".join(sorted(_KERNELS))
        message = f"{func}: name must be one of {known}; got {shown(name)}. Pass what to_dict returned."
        raise ParameterError(message)
    settings = {key: value for key, value in values.items() if key != "name"}
    expected = {"length_scale", "nu"} if name == "matern" else {"length_scale"}
    if set(settings) != expected:
        listed = ", ".join(sorted(str(key) for key in settings))[:80] or "none"
        message = f"{func}: settings of {name} must be {', '.join(sorted(expected))}; got {listed}. Pass what to_dict returned."
        raise ParameterError(message)
    return _KERNELS[name](**settings)


def gaussian_kernel(x: Array, y: Array | None = None, *, length_scale: Any = 1.0) -> Array:
    r"""Gaussian kernel matrix between two sets of points: `Gaussian(length_scale)(x, y)`.

    Parameters
    ----------
    x : array, shape (..., n, d)
        Points, real.
    y : array, shape (..., m, d), optional
        Points in the units of `x`. Default: `x` itself; symmetric, bit for bit, with ones on the diagonal.
    length_scale : float or sequence of d floats, default 1.0
        Distance at which the kernel has fallen to exp(-1/2), or one per feature.

    Returns
    -------
    array, shape (..., n, m)
        :math:`\exp(-|x_i - y_j|^2 / (2 l^2))`, in [0, 1]; dtype, library and device of the input.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, BackendMismatchError, ParameterError, ResourceError

    Notes
    -----
    O(n m d) time, and no memory beyond the result but one block of rows. See `Gaussian` for the error bound.

    Examples
    --------
    >>> import numpy as np, softlinalg
    >>> softlinalg.gaussian_kernel(np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]]), length_scale=5.0).round(4)
    array([[0.6065]])
    """
    return Gaussian(length_scale)._matrix(x, y, func="gaussian_kernel")
