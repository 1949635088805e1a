"""NystromRidge and NystromRidgeClassifier: kernel ridge regression with its ridge chosen in one factorization."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import array_api_compat as compat
import numpy as np
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from softlinalg import _arrays
from softlinalg._conjugate_gradients import KernelRidgeSolution, exact_ridge
from softlinalg._kernels import kernel_matmul
from softlinalg._ridge_regression import ridge_model
from softlinalg._ridge_sums import checked_targets, decomposition_rows, decomposition_sums, merge_ridge_sums, ridge_sums
from softlinalg._settings import flag
from softlinalg._sklearn_base import FLOATS, NystromEstimator, from_host, is_foreign, to_host
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError

__all__ = ["NystromRidge", "NystromRidgeClassifier"]


class _RidgeEstimator(NystromEstimator):
    """Fitting and prediction of both estimators, for a matrix of targets."""

    landmarks_: Array
    ridges_: Array
    scores_: Array
    dual_coef_: Array
    solutions_: list[KernelRidgeSolution]

    _ridge_per_target = True

    def __init__(
        self,
        *,
        kernel: Any = "gaussian",
        length_scale: Any = "median",
        rank: int = 256,
        ridge: Any = None,
        selection: str = "gcv",
        landmarks: Any = "rpcholesky+lloyd",
        tol: float | None = None,
        fit_intercept: bool = True,
        exact: bool = False,
        progress: bool = False,
        random_state: Any = None,
    ) -> None:
        self.kernel = kernel
        self.length_scale = length_scale
        self.rank = rank
        self.ridge = ridge
        self.selection = selection
        self.landmarks = landmarks
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.exact = exact
        self.progress = progress
        self.random_state = random_state

    def _fit(self, X: Array, targets: Array, weights: Array | None, xp: Namespace, count: float | None = None) -> None:
        func = type(self).__name__
        checked_targets(targets, int(X.shape[0]), func=func, xp=xp)
        for name in ("fit_intercept", "exact", "progress"):
            flag(getattr(self, name), func=func, name=name)
        d = self._approximated(X, weights, self.rank, xp, targets=targets)
        self.landmarks_ = d.landmarks
        sums = decomposition_sums(d, targets, weights, rows=count, func=func)
        rows = decomposition_rows(d, targets, weights) if self._leaves_one_out() else None
        self._solve(sums, rows)
        self._dual = None
        if self.exact:
            ridges = [float(value) for value in self._model.ridge]
            dual, constant, self.solutions_ = exact_ridge(
                X, targets, d, ridges, weights=weights, fit_intercept=self.fit_intercept, progress=self.progress
            )
            self._dual = (X, dual, constant)
            self.dual_coef_ = dual

    def _leaves_one_out(self) -> bool:
        """Without asking arrays whether they are equal to a name; what is no name is refused where it is used."""
        return isinstance(self.selection, str) and self.selection == "loo"

    def _solve(self, sums: Any, rows: Any) -> None:
        """The ridge and the solution from sums over rows."""
        self._sums = sums
        model = self._model = ridge_model(
            sums,
            ridge=self.ridge,
            selection=self.selection,
            rows=rows,
            fit_intercept=self.fit_intercept,
            ridge_per_target=self._ridge_per_target,
            precision=_arrays.dtype_name(_arrays.compute_dtype(self.landmarks_.dtype, xp=compat.array_namespace(self.landmarks_))),
            func=type(self).__name__,
        )
        self._folded = self._map.fold(model.coefficients)
        self.ridges_ = from_host(np.asarray(model.ridges), model.scores)
        self.scores_ = model.scores

    def _more_rows(self, X: Array, targets: Array, weights: Array | None, xp: Namespace, counts: Array | None = None) -> None:
        """The sums of further rows, on the landmarks that are settled."""
        func = type(self).__name__
        if self.exact or self._leaves_one_out():
            what = "exact=True" if self.exact else 'selection="loo"'
            message = f'{func}: partial_fit needs exact=False and selection="gcv", since it keeps no rows; got {what}. Use fit.'
            raise ParameterError(message)
        if not hasattr(self, "_map"):
            self._fit(X, targets, weights, xp, None if counts is None else float(xp.sum(counts)))
            return
        checked_targets(targets, int(X.shape[0]), func=func, xp=xp)
        sums = self._sums
        for start, stop, features in self._map.blocks(self._map.checked(X, func=func)[0], xp=xp):
            own = None if weights is None else weights[start:stop]
            count = None if counts is None else float(xp.sum(counts[start:stop]))
            chunk = ridge_sums(features, targets[start:stop, :], own, rows=count)
            sums = merge_ridge_sums(sums, chunk)
        self._solve(sums, None)

    def _predicted(self, X: Array, xp: Namespace) -> Array:
        """Values of every target, shape (q, k)."""
        if self._dual is None:
            return self._map.combine(X, self._folded, self._model.intercept, func=type(self).__name__)
        rows, dual, constant = self._dual
        rows, dual = xp.astype(rows, dual.dtype, copy=False), dual
        values = kernel_matmul(self.kernel_, xp.astype(X, dual.dtype, copy=False), rows, dual)
        return values + _arrays.from_numpy(to_host(constant), dual, xp=xp, dtype=dual.dtype)


class NystromRidge(MultiOutputMixin, RegressorMixin, _RidgeEstimator):  # type: ignore[misc]
    r"""Kernel ridge regression on Nystrom features, with the ridge chosen on a path from one factorization.

    Minimizes :math:`\sum_i s_i (y_i - f(x_i))^2 + ridge |f - b|^2` over the functions of the approximated kernel plus a constant b, for
    millions of rows; predictions cost one product with the kernel values at the landmarks.

    Parameters
    ----------
    kernel : {"gaussian", "rbf", "laplacian", "matern"} or Kernel, default "gaussian"
        By name ("matern" is that of smoothness 3/2), or any object with `__call__(x, y)` and `diagonal(x)`.
    length_scale : float, sequence of d floats, "median", "gcv" or "learned", default "median"
        Of a kernel given by name, in the units of the columns: standardize them first. "median" is the median distance between
        different rows. "gcv" multiplies it (or the scales of a kernel that is an object) by the power of sqrt(2) that has the least
        generalized cross-validation score at this rank, on 8 rows per landmark, at least 4,000 and one in 16. "learned" is one for each
        column (one for all beyond 100), by the likelihood of a Gaussian process on 1,000 rows, then the same for all of them together: some
        seconds that often do more for the error than any rank.
    rank : int, default 256
        Number of landmarks: more are more accurate; time grows with the square. More than there are different rows stands for all.
    ridge : float, sequence of float, or None, default None
        Penalty, the ratio of the variance of noise to that of the signal (`alpha` of `sklearn.kernel_ridge.KernelRidge`). Of several
        the best is taken, for each target. None stands for 40 values down from the largest eigenvalue.
    selection : {"gcv", "loo"}, default "gcv"
        By generalized cross-validation, or by the exact errors of leaving out each row (a second pass).
    landmarks : str or array, default "rpcholesky+lloyd"
        "targets": rows by which the targets are best explained, by orthogonal least squares on a sample of 8 rows per landmark, at
        least 4,000 and one in 16: best for predictions, while their deviations are too large between landmarks. Or a method of
        `softlinalg.select_landmarks`, which looks at the rows alone; or points, (m, d).
    tol : float, optional
        Relative trace error of the kernel to reach, with as many landmarks as that takes; `rank` is then not used.
    fit_intercept : bool, default True
        Fit the constant b, which is not penalized.
    exact : bool, default False
        Go on to the exact kernel, at the ridge chosen, by conjugate gradients with the approximation as preconditioner: O(n^2) time per
        step, O(n) memory; the model then holds the rows. `solutions_` has the residuals.
    progress : bool, default False
        Show a bar while conjugate gradients run.
    random_state : int, RandomState or None, default None
        Picks the landmarks, and the rows for the median distance.

    Attributes
    ----------
    ridge_ : float, or array of shape (k,)
        Chosen.
    coef_ : array, shape (r,) or (k, r), float64
        Coefficients of the features.
    intercept_ : float, or array of shape (k,)
    noise_variance_ : float, or array of shape (k,)
        Residual sum of squares over the degrees of freedom left.
    degrees_of_freedom_ : float, or array of shape (k,)
    ridges_, scores_ : arrays, shapes (L,), (L, k)
        The path, and its scores: estimated mean squared errors of prediction.
    error_ : float
        Exact relative trace error of the approximated kernel matrix (of the first batch, with `partial_fit`).
    landmarks_, kernel_, dual_coef_, solutions_
        `dual_coef_` and `solutions_` with ``exact=True`` only.

    Notes
    -----
    O(n m (d + m)) time for m landmarks, whatever the number of ridges. Weights count rows: a weight of 2 is a row seen twice, and up to
    10,000 rows the landmarks are the same for both. Arrays of other libraries than NumPy stay what they are, on their device,
    whether `array_api_dispatch` is set or not. Formulas and sources: `softlinalg._ridge_regression`.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.sklearn import NystromRidge
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(2000, 2))
    >>> y = np.sin(x[:, 0]) * x[:, 1] + 0.1 * rng.normal(size=2000)
    >>> model = NystromRidge(rank=100, random_state=0).fit(x, y)
    >>> mean, deviation = model.predict(np.array([[1.0, 1.0], [9.0, 9.0]]), return_std=True)
    >>> bool(abs(mean[0] - np.sin(1.0)) < 0.05), bool(deviation[0] < 0.05), bool(deviation[1] > 0.3)
    (True, True, True)
    """

    ridge_: float | Array
    coef_: Array
    intercept_: float | Array
    noise_variance_: float | Array
    degrees_of_freedom_: float | Array

    if TYPE_CHECKING:  # scikit-learn has no types of its own

        def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
            """As in scikit-learn."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Choose landmarks and the ridge, and solve.

        Parameters
        ----------
        X : array, shape (n, d)
        y : array, shape (n,) or (n, k)
        sample_weight : array, shape (n,), optional
            Not negative: how often each row counts.
        """
        X, y, xp = self._validated_pair(X, y, reset=True)
        self._fit(X, y[:, None] if y.ndim == 1 else y, self._validated_weights(sample_weight, X, xp), xp)
        self._publish(y.ndim == 1)
        return self

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Take in more rows. The first batch settles the kernel and the landmarks: make it large, or give landmarks.

        Parameters
        ----------
        X : array, shape (n, d)
        y : array, shape (n,) or (n, k)
        sample_weight : array, shape (n,), optional
        """
        X, y, xp = self._validated_pair(X, y, reset=not hasattr(self, "_map"))
        self._more_rows(X, y[:, None] if y.ndim == 1 else y, self._validated_weights(sample_weight, X, xp), xp)
        self._publish(y.ndim == 1)
        return self

    def _publish(self, was_vector: bool) -> None:
        model = self._model
        self._was_vector = was_vector
        xp = compat.array_namespace(model.coefficients)
        self.coef_ = xp.matrix_transpose(model.coefficients)
        names = ("ridge", "intercept", "noise_variance", "degrees_of_freedom")
        for name in names:
            values = getattr(model, name)
            setattr(self, f"{name}_", float(values[0]) if was_vector else values)
        if self._dual is not None:
            self.intercept_ = float(self._dual[2][0]) if was_vector else self._dual[2]
        if was_vector:
            self.coef_ = self.coef_[0, :]

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Predictions, and on request their standard deviation.

        Parameters
        ----------
        X : array, shape (q, d)
        return_std : bool, default False
            Return the standard deviation of the function too, without the noise (`noise_variance_`): that of a Gaussian process with
            the approximated kernel in training and the exact variance at the test point (projected process), so that it grows to
            its full height away from the data.

        Returns
        -------
        mean : array, shape (q,) or (q, k)
        deviation : array of that shape
            With ``return_std=True``.

        Raises
        ------
        ParameterError
            ``return_std=True`` of a model with ``exact=True``, whose variances would take the factors of an n x n matrix.
        """
        check_is_fitted(self)
        X, xp = self._validated(X, reset=False, method="predict")
        mean = self._shaped(self._predicted(X, xp), X, xp)
        if not return_std:
            return mean
        if self._dual is not None:
            message = f"{type(self).__name__}: return_std needs exact=False; got a model with exact=True. Fit one without it."
            raise ParameterError(message)
        deviation = self._map.apply(X, self._model.deviation, int(self._model.ridge.shape[0]), func=type(self).__name__)
        return mean, self._shaped(deviation, X, xp)

    def _shaped(self, values: Array, X: Array, xp: Namespace) -> Array:
        values = values[:, 0] if self._was_vector else values
        return values if _arrays.dtype_name(values.dtype) == _arrays.dtype_name(X.dtype) else xp.astype(values, X.dtype)


class NystromRidgeClassifier(ClassifierMixin, _RidgeEstimator):  # type: ignore[misc]
    """Classification by kernel ridge regression on labels of -1 and 1, one against the rest.

    Parameters
    ----------
    class_weight : {"balanced"}, dict or None, default None
        Weights of classes, as in scikit-learn; they multiply sample weights.
    kernel, length_scale, rank, ridge, selection, landmarks, tol, fit_intercept, exact, progress, random_state
        As in `NystromRidge`; one ridge serves all classes.

    Attributes
    ----------
    classes_ : array, shape (K,)
    ridge_ : float
    ridges_, scores_ : arrays, shapes (L,), (L, K), or (L, 1) for two classes
    error_, landmarks_, kernel_, solutions_
        As in `NystromRidge`.

    Notes
    -----
    Time as `NystromRidge`; the number of classes hardly matters.

    Examples
    --------
    >>> from sklearn.datasets import make_moons
    >>> from softlinalg.sklearn import NystromRidgeClassifier
    >>> x, y = make_moons(500, noise=0.1, random_state=0)
    >>> NystromRidgeClassifier(rank=50, length_scale=0.5, random_state=0).fit(x, y).score(x, y) > 0.99
    True
    """

    classes_: Array
    ridge_: float

    if TYPE_CHECKING:  # scikit-learn has no types of its own

        def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
            """As in scikit-learn."""

    _ridge_per_target = False

    def __init__(
        self,
        *,
        kernel: Any = "gaussian",
        length_scale: Any = "median",
        rank: int = 256,
        ridge: Any = None,
        selection: str = "gcv",
        landmarks: Any = "rpcholesky+lloyd",
        tol: float | None = None,
        fit_intercept: bool = True,
        exact: bool = False,
        class_weight: Any = None,
        progress: bool = False,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            kernel=kernel,
            length_scale=length_scale,
            rank=rank,
            ridge=ridge,
            selection=selection,
            landmarks=landmarks,
            tol=tol,
            fit_intercept=fit_intercept,
            exact=exact,
            progress=progress,
            random_state=random_state,
        )
        self.class_weight = class_weight

    @property
    def _host_classes(self) -> np.ndarray[Any, Any]:
        return to_host(self.classes_)

    def _labelled(self, X: Any, y: Any, *, reset: bool) -> tuple[Array, np.ndarray[Any, Any], Namespace]:
        """Rows, and labels on the host."""
        if not is_foreign(X):
            X, labels = validate_data(
                self, X, to_host(y) if is_foreign(y) else y, reset=reset, dtype=FLOATS, ensure_min_samples=2 if reset else 1
            )
            xp = compat.array_namespace(X)
        else:
            X, xp = self._validated(X, reset=reset, minimum=2 if reset else 1, method="partial_fit")
            labels = np.asarray(to_host(y))
            if labels.shape != (int(X.shape[0]),):
                message = f"{type(self).__name__}: y must have shape ({X.shape[0]},); got {labels.shape}. Pass one label per row."
                raise ParameterError(message)
        check_classification_targets(labels)
        return X, labels, xp

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Choose landmarks and the ridge, and solve.

        Parameters
        ----------
        X : array, shape (n, d)
        y : array, shape (n,)
            Labels: numbers or strings.
        sample_weight : array, shape (n,), optional
            Not negative: how often each row counts.
        """
        X, labels, xp = self._labelled(X, y, reset=True)
        self._settle_classes(np.unique(labels), X)
        weights, counts = self._weighted(labels, self._validated_weights(sample_weight, X, xp), X, xp)
        self._fit(X, self._coded(labels, X, xp), weights, xp, None if counts is None else float(xp.sum(counts)))
        self.ridge_ = float(self._model.ridge[0])
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Take in more rows. The first batch settles the kernel and the landmarks: make it large, or give landmarks.

        Parameters
        ----------
        X : array, shape (n, d)
        y : array, shape (n,)
        classes : array, shape (K,), optional
            All labels there will be: needed in the first call, unless it holds them all.
        sample_weight : array, shape (n,), optional
        """
        first = not hasattr(self, "_map")
        X, labels, xp = self._labelled(X, y, reset=first)
        if isinstance(self.class_weight, str):
            message = (
                f'{type(self).__name__}: class_weight must be a dict or None in partial_fit; got "{self.class_weight}". Pass sample_weight.'
            )
            raise ParameterError(message)
        if first:
            self._settle_classes(np.unique(labels if classes is None else to_host(classes)), X)
        weights, counts = self._weighted(labels, self._validated_weights(sample_weight, X, xp), X, xp)
        self._more_rows(X, self._coded(labels, X, xp), weights, xp, counts)
        self.ridge_ = float(self._model.ridge[0])
        return self

    def _settle_classes(self, classes: np.ndarray[Any, Any], X: Any) -> None:
        if len(classes) < 2:
            message = f"{type(self).__name__}: y must have two classes or more; got one class. Add rows of another."
            raise ParameterError(message)
        self.classes_ = from_host(classes, X) if classes.dtype.kind in "biuf" else classes

    def _weighted(self, labels: np.ndarray[Any, Any], weights: Array | None, X: Array, xp: Namespace) -> tuple[Array | None, Array | None]:
        """Sample weights times class weights, and how many rows each row counts for, which class weights do not change."""
        if self.class_weight is None:
            return weights, None
        by_class = compute_class_weight(self.class_weight, classes=self._host_classes, y=labels)
        own = from_host(by_class[np.searchsorted(self._host_classes, labels)], X)
        return (own, xp.ones_like(own)) if weights is None else (own * xp.astype(weights, own.dtype), weights)

    def _coded(self, labels: np.ndarray[Any, Any], X: Array, xp: Namespace) -> Array:
        """1 for a row's class, -1 for others, shape (n, K); of two classes one column."""
        unknown = ~np.isin(labels, self._host_classes)
        if bool(np.any(unknown)):
            message = f"{type(self).__name__}: y must hold classes of the first call; got {int(unknown.sum())} others. Name all in classes."
            raise ParameterError(message)
        codes = np.where(labels[:, None] == self._host_classes[None, :], 1.0, -1.0)
        return xp.astype(from_host(codes[:, 1:] if len(self._host_classes) == 2 else codes, X), X.dtype)

    def decision_function(self, X: Any) -> Any:
        """Fitted values of the labels -1 and 1: shape (q,) for two classes, else (q, K).

        Parameters
        ----------
        X : array, shape (q, d)
        """
        check_is_fitted(self)
        return self._decisions(X, "decision_function")

    def _decisions(self, X: Any, method: str) -> Array:
        X, xp = self._validated(X, reset=False, method=method)
        values = self._predicted(X, xp)
        return values[:, 0] if self.classes_.shape[0] == 2 else values

    def predict(self, X: Any) -> Any:
        """Labels, shape (q,), in the library of `X` unless they are strings.

        Parameters
        ----------
        X : array, shape (q, d)
        """
        check_is_fitted(self)
        scores = to_host(self._decisions(X, "predict"))
        places = (scores > 0).astype(np.int64) if scores.ndim == 1 else np.argmax(scores, axis=1)
        return from_host(self._host_classes[places], self.classes_)
