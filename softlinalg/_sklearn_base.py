"""What the scikit-learn estimators have in common: arrays in and out, kernels by name, landmarks, the approximation."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import array_api_compat as compat
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, validate_data

from softlinalg import _arrays, _inputs
from softlinalg._kernel_length_scales import length_scale_from_gamma
from softlinalg._kernels import Gaussian, Kernel, Laplacian, Matern
from softlinalg._landmark_rows import distinct_rows
from softlinalg._landmarks import select_landmarks
from softlinalg._nystrom import NystromDecomposition, nystrom
from softlinalg._nystrom_map import map_of
from softlinalg._ridge_landmarks import ridge_sample
from softlinalg._ridge_length_scales import learn_length_scales
from softlinalg._ridge_sums import checked_weights
from softlinalg._settings import shown, whole_number
from softlinalg._typing import Array, Namespace
from softlinalg.errors import DuplicateLandmarkWarning, InputError, ParameterError, ShapeError

__all__ = ["FLOATS", "NystromEstimator", "beside", "from_host", "is_foreign", "kernel_by_name", "to_host"]

KERNELS = {"gaussian": Gaussian, "rbf": Gaussian, "laplacian": Laplacian, "matern": Matern}
"""Kernels by name; "rbf" as scikit-learn says it."""

FLOATS = [np.float64, np.float32]


def is_foreign(x: Any) -> bool:
    """Is it an array of a library other than NumPy, which stays one?"""
    return compat.is_array_api_obj(x) and not isinstance(x, np.ndarray | np.generic)


def to_host(x: Any) -> np.ndarray[Any, Any]:
    """As a NumPy array."""
    return np.asarray(_arrays.to_numpy(x) if is_foreign(x) else x)


def from_host(x: Any, like: Any) -> Any:
    """A NumPy array in the library and on the device of `like`."""
    return _arrays.from_numpy(x, like, xp=compat.array_namespace(like)) if is_foreign(like) else x


def beside(a: Any, X: Any) -> Any:
    """An array in the library and on the device of X, wherever it was: y and weights follow X."""
    if not is_foreign(X):
        return to_host(a) if is_foreign(a) else a
    if is_foreign(a):
        a = _arrays.detach(a)
        if compat.array_namespace(a) is compat.array_namespace(X) and str(compat.device(a)) == str(compat.device(X)):
            return a
    return from_host(to_host(a), X)


def kernel_by_name(kernel: Any, length_scale: Any, gamma: Any = None, *, func: str) -> Any:
    """A kernel object from a name and a length scale, or the object itself.

    Raises
    ------
    ParameterError
        An unknown name; `length_scale` or `gamma` beside an object, or both.
    """
    is_default = isinstance(length_scale, str) and length_scale == "median"
    if not isinstance(kernel, str):
        if not is_default or gamma is not None:
            message = f"{func}: length_scale and gamma belong to kernels given by name; got a {type(kernel).__name__}. Set it there."
            raise ParameterError(message)
        return kernel
    if kernel not in KERNELS:
        message = f"{func}: kernel must be an object or one of {', '.join(KERNELS)}; got {kernel[:40]!r}. Choose one of these."
        raise ParameterError(message)
    if gamma is not None:
        if not is_default:
            message = f"{func}: length_scale or gamma must be given, and not both; got both. Leave one out."
            raise ParameterError(message)
        length_scale = length_scale_from_gamma(gamma, KERNELS[kernel].name, func=func)
    return KERNELS[kernel](length_scale)


class NystromEstimator(BaseEstimator):  # type: ignore[misc]
    """Validation of input, and the approximation on which every estimator stands.

    Subclasses have the parameters `kernel`, `length_scale`, `landmarks`, `tol` and `random_state`.
    """

    n_features_in_: int
    kernel_: Kernel
    error_: float

    if TYPE_CHECKING:  # scikit-learn has no types of its own

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """As in scikit-learn."""

        def set_params(self, **params: Any) -> Self:
            """As in scikit-learn."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = True
        return tags

    # ------------------------------------------------------------------------------------------ arrays in
    def _validated(self, X: Any, *, reset: bool, minimum: int = 1, method: str = "") -> tuple[Array, Namespace]:
        """Rows as a floating array of its own library, finite; of the width, library and device seen in fit, unless `reset`."""
        if not reset:
            self._refuse_other_library(X, method)
        if not is_foreign(X):
            X = validate_data(self, X, reset=reset, dtype=FLOATS, ensure_min_samples=minimum)
            return X, compat.array_namespace(X)
        func = type(self).__name__
        xp, (X,), _ = _inputs.prepare(func, {"X": X})
        if X.ndim != 2 or X.shape[0] < minimum or X.shape[1] < 1:
            message = f"{func}: X must have shape (n, d) with n >= {minimum}; got {tuple(X.shape)}. Pass one row per sample."
            raise ShapeError(message)
        if reset:
            self.n_features_in_ = int(X.shape[1])
            if hasattr(self, "feature_names_in_"):
                del self.feature_names_in_
        elif int(X.shape[1]) != self.n_features_in_:
            message = f"{func}: X must have {self.n_features_in_} features; got {X.shape[1]}. Use the columns seen in fit."
            raise ShapeError(message)
        X = _arrays.detach(X)
        _inputs.check_finite(X, func=func, name="X", xp=xp)
        return X, xp

    def _refuse_other_library(self, X: Any, method: str) -> None:
        fitted = self._map.landmarks
        same = is_foreign(X) == is_foreign(fitted)
        if same and is_foreign(X):
            same = compat.array_namespace(X) is compat.array_namespace(fitted) and str(compat.device(X)) == str(compat.device(fitted))
        if not same:
            kinds = [f"{type(a).__module__.split('.')[0]}{f' on {compat.device(a)}' if is_foreign(a) else ''}" for a in (X, fitted)]
            message = (
                f"{type(self).__name__}.{method}(): X must use the same namespace and device as in fit; "
                f"got {kinds[0]} after {kinds[1]}. Convert it."
            )
            raise InputError(message)

    def _validated_pair(self, X: Any, y: Any, *, reset: bool) -> tuple[Array, Array, Namespace]:
        """Rows and numeric targets, of one library."""
        if not is_foreign(X):
            X, y = validate_data(
                self, X, beside(y, X), reset=reset, dtype=FLOATS, multi_output=True, y_numeric=True, ensure_min_samples=2 if reset else 1
            )
            if y.dtype.kind != "f":
                y = y.astype(np.float64)
            return X, y, compat.array_namespace(X)
        X, xp = self._validated(X, reset=reset, minimum=2 if reset else 1, method="partial_fit")
        xp, (X, y), _ = _inputs.prepare(type(self).__name__, {"X": X, "y": beside(y, X)}, optional=("y",))
        return X, y, xp

    def _validated_weights(self, weights: Any, X: Array, xp: Namespace) -> Array | None:
        """Weights beside X, or None: not negative, not all zero."""
        if weights is None:
            return None
        weights = beside(weights, X)
        if is_foreign(X):
            xp, (_, weights), _ = _inputs.prepare(type(self).__name__, {"X": X, "sample_weight": weights})
            checked_weights(weights, int(X.shape[0]), func=type(self).__name__, name="sample_weight", xp=xp)
        else:
            weights = _check_sample_weight(weights, X, dtype=np.float64, ensure_non_negative=True)
        if not bool(xp.any(weights > 0)):
            message = f"{type(self).__name__}: sample_weight must have a positive value; got zeros. Give some row a weight."
            raise ParameterError(message)
        return weights

    # ------------------------------------------------------------------------------------------ the approximation
    def _approximated(
        self,
        X: Array,
        weights: Array | None,
        count: int | None,
        xp: Namespace,
        *,
        gamma: Any = None,
        store: bool | str = "auto",
        targets: Array | None = None,
    ) -> NystromDecomposition:
        """The approximation on landmarks chosen from the different rows of positive weight; its map, kernel and error are kept."""
        func = type(self).__name__
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        scale = self.length_scale if targets is not None and isinstance(self.length_scale, str) else None
        fitted = scale in ("learned", "gcv")
        kernel = kernel_by_name(self.kernel, "median" if fitted else self.length_scale, gamma, func=func)
        if scale == "learned":
            kernel = learn_length_scales(X, targets, kernel, weights=weights, rng=seed).kernel
        rows = distinct_rows(X, weights, xp=xp)
        if isinstance(getattr(kernel, "length_scale", None), str):
            # Equal rows have no median distance; their kernel values are 1 at every scale.
            kernel = kernel.resolve(rows, seed) if rows.shape[0] > 1 else replace(kernel, length_scale=1.0)
        landmarks, tol = self.landmarks, self.tol
        by_targets = targets is not None and isinstance(landmarks, str) and landmarks == "targets"
        if by_targets and tol is not None:
            message = f'{func}: tol must be None for landmarks="targets", which do not aim at the kernel; got {shown(tol)}. Pass rank.'
            raise ParameterError(message)
        with warnings.catch_warnings():  # fewer useful rows than asked for: the rank says so
            warnings.simplefilter("ignore", DuplicateLandmarkWarning)
            if (fitted or by_targets) and tol is None:
                most = self._checked_count(count, func=func) if isinstance(landmarks, str) else len(landmarks)
                most = min(most, int(rows.shape[0]))
                sample = ridge_sample(X, targets, most, weights=weights, rng=seed)
                kernel, ridge = (
                    sample.scaled(kernel, most, far=isinstance(self.kernel, str) and scale == "gcv")
                    if fitted
                    else (kernel, sample.score(kernel, most)[1])
                )
                if by_targets and most < rows.shape[0]:
                    rows = landmarks = _arrays.take_rows(X, sample.landmarks(kernel, most, ridge), xp=xp)
            if isinstance(landmarks, str) and tol is None:
                count = self._checked_count(count, func=func)
                if count < rows.shape[0]:
                    rows = select_landmarks(rows, count, method=landmarks, kernel=kernel, rng=seed, check_finite=False)
                landmarks = rows
            elif not isinstance(landmarks, str):
                landmarks = beside(landmarks, X)
            d = nystrom(X, kernel, tol=tol, landmarks=landmarks, rng=seed, store_features=store, check_finite=False)
        self._map = map_of(d)
        self.kernel_, self.error_ = d.kernel, d.relative_trace_error
        return d

    @staticmethod
    def _checked_count(count: Any, *, func: str) -> int:
        """A number of landmarks; more than there are different rows stands for all of them."""
        return whole_number(count, func=func, name="the number of landmarks", minimum=1)
