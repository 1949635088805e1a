"""NystromFeatures and NystromPCA: transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from softlinalg import _inputs
from softlinalg._ridge_sums import decomposition_sums, merge_ridge_sums, ridge_sums
from softlinalg._sklearn_base import NystromEstimator
from softlinalg._spectral import principal_components
from softlinalg._typing import Array

__all__ = ["NystromFeatures", "NystromPCA"]


class NystromFeatures(ClassNamePrefixFeaturesOutMixin, TransformerMixin, NystromEstimator):  # type: ignore[misc]
    r"""Nystrom features of a kernel, in place of `sklearn.kernel_approximation.Nystroem`: better landmarks, and the error with them.

    Parameters
    ----------
    kernel : {"gaussian", "rbf", "laplacian", "matern"} or Kernel, default "gaussian"
        By name ("rbf" is the Gaussian kernel, "matern" that of smoothness 3/2), or any object with `__call__(x, y)` and `diagonal(x)`.
    length_scale : float, sequence of d floats, or "median", default "median"
        Of a kernel given by name; "median" is the median distance between different rows of the data.
    gamma : float, optional
        As in scikit-learn, in place of `length_scale`: exp(-gamma |x - y|^2), or exp(-gamma |x - y|_1) for "laplacian".
    n_components : int, default 100
        Number of landmarks. More than there are different rows stands for all of them, with which the kernel is exact on the data.
    landmarks : str or array, default "rpcholesky+lloyd"
        A method of `softlinalg.select_landmarks`; or points, shape (m, d).
    tol : float, optional
        Relative trace error to reach, with as many landmarks as that takes; `n_components` is then not used.
    random_state : int, RandomState or None, default None
        Picks the landmarks, and the rows for the median distance.

    Attributes
    ----------
    components_ : array, shape (m, d)
        Landmarks.
    kernel_ : Kernel
        With its length scale settled.
    error_ : float
        Exact relative trace error of the approximated kernel matrix of the data in fit.
    n_features_out_ : int
        Features: fewer than landmarks where those repeat each other, or nearly so.
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    Notes
    -----
    O(n m (d + m)) time. Features have the array library, device and dtype of the input (float64 for integers); pandas and polars on
    request (`set_output`). Arrays of other libraries than NumPy stay what they are, whether `array_api_dispatch` is set or not.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.sklearn import NystromFeatures
    >>> x = np.random.default_rng(0).normal(size=(500, 3))
    >>> features = NystromFeatures(n_components=50, random_state=0).fit(x)
    >>> features.transform(x).shape, features.error_ < 0.01
    ((500, 50), True)
    """

    components_: Array
    n_features_out_: int

    if TYPE_CHECKING:  # scikit-learn has no types of its own

        def get_feature_names_out(self, input_features: Any = None) -> Any:
            """As in scikit-learn."""

        def set_output(self, *, transform: str | None = None) -> Self:
            """As in scikit-learn."""

    def __init__(
        self,
        kernel: Any = "gaussian",
        *,
        length_scale: Any = "median",
        gamma: Any = None,
        n_components: int = 100,
        landmarks: Any = "rpcholesky+lloyd",
        tol: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.length_scale = length_scale
        self.gamma = gamma
        self.n_components = n_components
        self.landmarks = landmarks
        self.tol = tol
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:
        """Choose landmarks, and measure the error over all rows.

        Parameters
        ----------
        X : array, shape (n, d)
        y : ignored
        """
        self._fitted(X, store=False)
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """`fit`, then the features of the same rows, in one pass."""
        return self._fitted(X, store=True)

    def _fitted(self, X: Any, *, store: bool) -> Array:
        X, xp = self._validated(X, reset=True)
        d = self._approximated(X, None, self.n_components, xp, gamma=self.gamma, store=store)
        self.components_ = d.landmarks
        self.n_features_out_ = self._n_features_out = d.rank
        return d.features() if store else None

    def transform(self, X: Any) -> Any:
        """Features, shape `(q, n_features_out_)`: their inner products are the approximated kernel.

        Parameters
        ----------
        X : array, shape (q, d)
        """
        check_is_fitted(self)
        X, xp = self._validated(X, reset=False, method="transform")
        return xp.astype(self._map(X, func=type(self).__name__), X.dtype, copy=False)


def _no_targets(X: Any) -> Any:
    """Zeros for the sums, of which the components need those of the features alone."""
    return 0 * X[:, 0]


class NystromPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, NystromEstimator):  # type: ignore[misc]
    r"""Kernel principal component analysis in Nystrom features, for data too many for `sklearn.decomposition.KernelPCA`.

    Parameters
    ----------
    n_components : int, optional
        Components to keep, at most the rank of the features. Default: all.
    kernel, length_scale, landmarks, tol, random_state
        As in `NystromFeatures`.
    rank : int, default 256
        Number of landmarks.

    Attributes
    ----------
    components_ : array, shape (k, r), float64
        Orthonormal directions in feature space, as rows.
    mean_ : array, shape (r,), float64
        Mean of the features.
    explained_variance_ : array, shape (k,), float64
        Falling; divisor n - 1.
    explained_variance_ratio_ : array, shape (k,)
        Share of the variance of the approximated kernel plus all that the approximation leaves out: a lower bound.
    error_ : float
        Exact relative trace error of the approximation (of the first batch, with `partial_fit`).
    landmarks_, kernel_

    Notes
    -----
    O(n m (d + m)) time, whatever the number of components. With all rows as landmarks the scores are those of
    `KernelPCA`, up to sign.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.sklearn import NystromPCA
    >>> x = np.random.default_rng(0).normal(size=(300, 4))
    >>> model = NystromPCA(2, rank=50, random_state=0).fit(x)
    >>> model.transform(x[:5]).shape
    (5, 2)
    """

    components_: Array
    mean_: Array
    explained_variance_: Array
    explained_variance_ratio_: Array
    landmarks_: Array

    if TYPE_CHECKING:  # scikit-learn has no types of its own

        def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
            """As in scikit-learn."""

        def get_feature_names_out(self, input_features: Any = None) -> Any:
            """As in scikit-learn."""

        def set_output(self, *, transform: str | None = None) -> Self:
            """As in scikit-learn."""

    def __init__(
        self,
        n_components: int | None = None,
        *,
        kernel: Any = "gaussian",
        length_scale: Any = "median",
        rank: int = 256,
        landmarks: Any = "rpcholesky+lloyd",
        tol: float | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.kernel = kernel
        self.length_scale = length_scale
        self.rank = rank
        self.landmarks = landmarks
        self.tol = tol
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the components.

        Parameters
        ----------
        X : array, shape (n, d)
        y : ignored
        """
        X, xp = self._validated(X, reset=True, minimum=2)
        d = self._approximated(X, None, self.rank, xp)
        self._left_out = d.trace_error / d.shape[0]
        self.landmarks_ = d.landmarks
        self._finish(decomposition_sums(d, _no_targets(X)))
        return self

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Take in more rows. The first batch settles the kernel and the landmarks: make it large, or give landmarks.

        Parameters
        ----------
        X : array, shape (n, d)
        y : ignored
        """
        if not hasattr(self, "_map"):
            return self.fit(X)
        X, xp = self._validated(X, reset=False, method="partial_fit")
        sums = self._sums
        for start, stop, features in self._map.blocks(self._map.checked(X, func=type(self).__name__)[0], xp=xp):
            sums = merge_ridge_sums(sums, ridge_sums(features, _no_targets(X[start:stop, ...])))
        self._finish(sums)
        return self

    def _finish(self, sums: Any) -> None:
        self._sums = sums
        count = None if self.n_components is None else min(self._checked_count(self.n_components, func=type(self).__name__), self._map.rank)
        found = principal_components(sums, count, left_out=self._left_out, func=type(self).__name__)
        xp = _inputs.prepare("NystromPCA", {"mean": found.mean}).xp
        self.mean_, self.components_ = found.mean, xp.matrix_transpose(found.directions)
        self.explained_variance_, self.explained_variance_ratio_ = found.variances, found.ratios
        self._n_features_out = int(found.directions.shape[1])
        self._folded, self._shift = self._map.fold(found.directions), found.shift

    def transform(self, X: Any) -> Any:
        """Scores, shape (q, k).

        Parameters
        ----------
        X : array, shape (q, d)
        """
        check_is_fitted(self)
        X, xp = self._validated(X, reset=False, method="transform")
        return xp.astype(self._map.combine(X, self._folded, self._shift, func=type(self).__name__), X.dtype, copy=False)
