"""NystromSpectralClustering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from sklearn.base import ClusterMixin
from sklearn.cluster import KMeans
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from softlinalg._sklearn_base import NystromEstimator, from_host, to_host
from softlinalg._spectral import embed_rows, spectral_embedding
from softlinalg._typing import Array

__all__ = ["NystromSpectralClustering"]


class NystromSpectralClustering(ClusterMixin, NystromEstimator):  # type: ignore[misc]
    r"""Spectral clustering by the normalized cut, in Nystrom features: linear in the number of rows, with labels for new rows.

    Parameters
    ----------
    n_clusters : int, default 8
    kernel, landmarks, tol
        As in `NystromFeatures`; the kernel must have values >= 0.
    length_scale : float, sequence of d floats, or "median", default "median"
        The median distance suits clusters that are wide apart; set it to the distance within which rows belong together.
    rank : int, default 256
        Number of landmarks.
    n_init : int, default 10
        Runs of k-means on the embedding.
    random_state : int, RandomState or None, default None

    Attributes
    ----------
    labels_ : int array, shape (n,)
    eigenvalues_ : array, shape (k,)
        Of the normalized kernel matrix, falling; a gap after the K-th speaks for K clusters.
    embedding_ : array, shape (n, k)
        Rows of length 1.
    error_ : float
        Exact relative trace error of the approximation.
    kernel_

    Notes
    -----
    O(n m (d + m)) time; `sklearn.cluster.SpectralClustering` takes O(n^2) memory. k-means runs on the host.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.sklearn import NystromSpectralClustering
    >>> x = np.concatenate([np.zeros((20, 1)), np.ones((20, 1))]) + 0.01 * np.random.default_rng(0).normal(size=(40, 1))
    >>> labels = NystromSpectralClustering(2, length_scale=0.2, rank=10, random_state=0).fit(x).labels_
    >>> len(set(labels[:20])), len(set(labels)), bool(labels[0] != labels[-1])
    (1, 2, True)
    """

    labels_: Array
    eigenvalues_: Array
    embedding_: Array

    if TYPE_CHECKING:  # scikit-learn has no types of its own

        def fit_predict(self, X: Any, y: Any = None, **kwargs: Any) -> Any:
            """As in scikit-learn."""

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        kernel: Any = "gaussian",
        length_scale: Any = "median",
        rank: int = 256,
        landmarks: Any = "rpcholesky+lloyd",
        tol: float | None = None,
        n_init: int = 10,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.kernel = kernel
        self.length_scale = length_scale
        self.rank = rank
        self.landmarks = landmarks
        self.tol = tol
        self.n_init = n_init
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Embed the rows, and cluster them.

        Parameters
        ----------
        X : array, shape (n, d)
        y : ignored
        """
        X, xp = self._validated(X, reset=True, minimum=2)
        d = self._approximated(X, None, self.rank, xp)
        count = self._checked_count(self.n_clusters, func=type(self).__name__)
        found = spectral_embedding(d, min(count, d.rank), func=type(self).__name__)
        self._directions = found.directions
        self.embedding_, self.eigenvalues_ = found.rows, found.eigenvalues
        seed = check_random_state(self.random_state)
        self._means = KMeans(count, n_init=self.n_init, random_state=seed).fit(np.asarray(to_host(found.rows), dtype=np.float64))
        self.labels_ = from_host(self._means.labels_.astype(np.int64), X)
        return self

    def _labels(self, rows: Array, X: Array) -> Any:
        return from_host(self._means.predict(np.asarray(to_host(rows), dtype=np.float64)).astype(np.int64), X)

    def predict(self, X: Any) -> Any:
        """Clusters of new rows, by the same embedding: int array of shape (q,).

        Parameters
        ----------
        X : array, shape (q, d)
        """
        check_is_fitted(self)
        X, _ = self._validated(X, reset=False, method="predict")
        func = type(self).__name__
        rows = self._map.apply(X, lambda f, left: embed_rows(f, self._directions), int(self._directions.shape[1]), func=func)
        return self._labels(rows, X)
