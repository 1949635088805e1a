r"""Principal components and spectral embedding of a kernel from its Nystrom features: r x r eigenproblems in place of n x n ones."""

from __future__ import annotations

from typing import NamedTuple

from softlinalg import _arrays, _inputs
from softlinalg._nystrom_core import RowStore, kernel_diagonal
from softlinalg._nystrom_decomposition import NystromDecomposition
from softlinalg._ridge_sums import RidgeSums
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError

__all__ = ["PrincipalComponents", "SpectralEmbedding", "embed_rows", "principal_components", "spectral_embedding"]


class PrincipalComponents(NamedTuple):
    """Directions of largest variance in the feature space, all in float64."""

    mean: Array
    """Mean of the features, shape (r,)."""
    directions: Array
    """Orthonormal columns, shape (r, k): the scores of rows with features F are (F - mean) @ directions."""
    variances: Array
    """Variance of the scores, divisor n - 1, shape (k,), falling."""
    ratios: Array
    """The variances as shares of that of all directions together and of what the features leave out, shape (k,)."""

    @property
    def shift(self) -> Array:
        """-mean @ directions, shape (k,): the scores are F @ directions plus this."""
        return -(self.mean @ self.directions)


def principal_components(
    sums: RidgeSums, count: int | None, *, left_out: float = 0.0, func: str = "principal_components"
) -> PrincipalComponents:
    r"""Kernel principal components of the approximated kernel: eigenvectors of the centered Gram matrix of the features.

    Parameters
    ----------
    sums : RidgeSums
        Its targets are not looked at.
    count : int or None
        Components; None stands for all whose variance is not rounding.
    left_out : float, default 0
        Trace error of the features per row: bounds the variance that they do not see.

    Raises
    ------
    ParameterError
        More components than features.

    Notes
    -----
    O(r^3). The centered approximated kernel matrix H F F^T H has the eigenvalues of the centered Gram matrix, and eigenvectors
    (F - mean) u / sqrt(g) [1]_. Signs: the largest entry of each direction is positive.

    References
    ----------
    .. [1] Scholkopf, Smola & Muller, Nonlinear component analysis as a kernel eigenvalue problem (1998).
    """
    xp = _inputs.prepare(func, {"gram": sums.gram}).xp
    r = int(sums.gram.shape[-1])
    if count is not None and count > r:
        message = f"{func}: n_components must be at most the rank of the features, {r}; got {count}. Ask for fewer, or use more landmarks."
        raise ParameterError(message)
    if r == 0:
        return PrincipalComponents(sums.feature_mean, sums.gram, sums.feature_mean, sums.feature_mean)
    values, vectors = xp.linalg.eigh((sums.gram + xp.matrix_transpose(sums.gram)) / 2)
    values, vectors = xp.flip(values), xp.flip(vectors, axis=-1)
    values = xp.where(values > 0, values, xp.zeros_like(values))
    if count is None:
        count = max(1, int(xp.count_nonzero(values > r * _arrays.eps(values.dtype) * values[0])))
    largest = xp.max(vectors, axis=0) >= -xp.min(vectors, axis=0)
    vectors = xp.where(largest, vectors, -vectors)
    divisor = max(sums.weight - 1, 1.0)
    total = float(xp.sum(values)) / divisor + left_out
    variances = values[:count] / divisor
    return PrincipalComponents(
        sums.feature_mean, _arrays.contiguous(vectors[:, :count]), variances, variances / (total if total > 0 else 1.0)
    )


class SpectralEmbedding(NamedTuple):
    """What `spectral_embedding` returns."""

    rows: Array
    """Embedding of the data, unit rows, shape (n, k), in the dtype of the features."""
    directions: Array
    """Shape (r, k), float64."""
    eigenvalues: Array
    """Of the normalized approximated kernel matrix, shape (k,), falling; those of the Laplacian are 1 minus these."""


def spectral_embedding(d: NystromDecomposition, count: int, *, func: str = "spectral_embedding") -> SpectralEmbedding:
    r"""Embedding by the leading eigenvectors of the normalized affinity :math:`D^{-1/2} F F^T D^{-1/2}`, with unit rows.

    D holds the row sums of F F^T + diag(k(x_i, x_i) - |F_i|^2): with the exact diagonal in place of the approximated one, a row far
    from all landmarks keeps its similarity to itself, and its degree stays positive.

    Parameters
    ----------
    d : NystromDecomposition
        Of a kernel with values >= 0.
    count : int
        Dimensions, at most the rank.

    Notes
    -----
    Three passes over the features, O(n r^2) time: the eigenvectors are D^{-1/2} F u / sqrt(g) for the eigenpairs of F^T D^{-1} F [1]_,
    and each row is divided by its norm [2]_.

    References
    ----------
    .. [1] Fowlkes, Belongie, Chung & Malik, Spectral grouping using the Nystrom method (2004).
    .. [2] Ng, Jordan & Weiss, On spectral clustering: analysis and an algorithm (2001).
    """
    wide, xp = d._wide, d._wide.xp
    degree_map = wide.zeros(d.rank)
    for _, _, features in d._blocks():
        degree_map = degree_map + xp.sum(wide.widen(features), axis=0)
    gram = wide.zeros(d.rank, d.rank)
    for start, stop, features in d._blocks():
        f = wide.widen(features)
        own = wide.widen(kernel_diagonal(d.kernel, d._rows()[start:stop, :], func=func))
        gram = gram + xp.matrix_transpose(f) @ (f / _degrees(f, own, degree_map, xp=xp)[:, None])
    values, vectors = xp.linalg.eigh(gram)
    values, vectors = xp.flip(values)[:count], xp.flip(vectors, axis=-1)[:, :count]
    values = xp.where(values > 0, values, xp.zeros_like(values))
    directions = vectors / xp.sqrt(xp.where(values > 0, values, xp.ones_like(values)))
    store = RowStore((d.shape[0], count), d.landmarks, d._map.dtype, func=func, xp=d._xp)
    for start, stop, features in d._blocks():
        f = wide.widen(features)
        store.put(start, stop, wide.narrow(embed_rows(f, directions), d._map.dtype))
    return SpectralEmbedding(store.result(), directions, values)


def _degrees(f: Array, own: Array, degree_map: Array, *, xp: Namespace) -> Array:
    """Approximated row sums of the kernel matrix, with its own diagonal: at least the similarity of a row to itself."""
    left = own - xp.sum(f * f, axis=-1)
    degrees = f @ degree_map + xp.where(left > 0, left, xp.zeros_like(left))
    lowest = xp.where(own > 0, own, xp.ones_like(own))
    return xp.where(degrees > lowest, degrees, lowest)


def embed_rows(f: Array, directions: Array) -> Array:
    """Unit rows of f @ directions, (b, k): degrees and other positive factors of a row cancel; zero rows stay zero."""
    xp = _inputs.prepare("embed_rows", {"f": f}).xp
    rows = f @ directions
    norms = xp.sqrt(xp.sum(rows * rows, axis=-1, keepdims=True))
    return rows / xp.where(norms > 0, norms, xp.ones_like(norms))
