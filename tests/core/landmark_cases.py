"""Point clouds, kernels, and the trace error by its definition: what the tests of landmarks share."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from softlinalg._landmarks import INDEX_METHODS, select_landmark_indices, select_landmarks
from softlinalg.errors import DuplicateLandmarkWarning

EPS = 2.0**-52
CLOUDS = ("normal", "clustered", "duplicated", "collinear", "one-far", "offset", "lattice")


def cloud(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    """A point set with one of the difficulties that real data have."""
    rng = np.random.default_rng([seed, n, d])
    x = rng.normal(size=(n, d))
    if kind == "clustered":
        x = 0.05 * x + rng.integers(0, 3, size=(n, 1))
    elif kind == "duplicated":
        x = x[rng.integers(0, -(-n // 3), size=n)]
    elif kind == "collinear":
        x = x[:, :1] * np.ones((1, d))
    elif kind == "one-far":
        x[0] += 1e6
    elif kind == "offset":
        x += 1e6
    elif kind == "lattice":
        x = rng.integers(0, 3, size=(n, d)).astype(float)
    return x


def distinct(x: np.ndarray) -> int:
    return len(np.unique(x, axis=0))


def relative_trace_error(kernel: Any, x: np.ndarray, landmarks: np.ndarray) -> float:
    """Trace error from the eigenvalues of the core, cut off relatively: independent of the code under test."""
    values, vectors = np.linalg.eigh(kernel(landmarks, landmarks))
    kept = values > 1e-13 * values[-1]
    features = kernel(x, landmarks) @ (vectors[:, kept] / np.sqrt(values[kept]))
    trace = float(np.sum(kernel.diagonal(x)))
    return (trace - float(np.sum(features**2))) / trace


@dataclass(frozen=True)
class Wrapped:
    """A kernel that is none of the package's own: it works in the library of the data."""

    inner: Any

    def __call__(self, x: Any, y: Any = None) -> Any:
        return self.inner(x, y)

    def diagonal(self, x: Any) -> Any:
        return self.inner.diagonal(x)

    def vjp(self, x: Any, y: Any, g: Any) -> Any:
        return self.inner.vjp(x, y, g)


@dataclass(frozen=True)
class Table:
    """k(i, j) = matrix[i, j] for points that are row numbers."""

    matrix: np.ndarray

    def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        i, j = x[:, 0].astype(int), (x if y is None else y)[:, 0].astype(int)
        return self.matrix[np.ix_(i, j)]

    def diagonal(self, x: np.ndarray) -> np.ndarray:
        return np.diagonal(self.matrix)[x[:, 0].astype(int)]


shapes = st.tuples(st.sampled_from(CLOUDS), st.integers(2, 40), st.integers(1, 4), st.integers(0, 2**16))
seeds = st.integers(0, 2**16)


def chosen(x: Any, count: int | None, method: str, **more: Any) -> np.ndarray:
    """Landmarks or row numbers, whichever the method has; warnings about duplicates are not the subject."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DuplicateLandmarkWarning)
        return (select_landmark_indices if method in INDEX_METHODS else select_landmarks)(x, count, method=method, **more)
