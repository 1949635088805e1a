"""What users write, for type checkers in their strict modes: `mypy` checks it in CI, `pyright -p tests/typing` by hand."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

import softlinalg
from softlinalg import errors
from softlinalg.testing import AccuracyError, assert_pinv, build_matrix

Floats = NDArray[np.float64]


def approximate(x: Floats, y: Floats, new: Floats) -> tuple[Floats, float]:
    """Predictions, and the share of the trace left out."""
    kernel = softlinalg.Gaussian("median").resolve(x, rng=0)
    decomposition: softlinalg.NystromDecomposition = softlinalg.nystrom(x, kernel, rank=20, rng=0)
    weights = decomposition.solve(y, ridge=0.1)
    predictions: Floats = np.asarray(decomposition.cross_matmul(new, weights))
    return predictions, decomposition.relative_trace_error


def invert(a: Floats) -> Floats | None:
    """The inverse, where it is certain."""
    try:
        result: softlinalg.CertifiedInverse = softlinalg.certified_ridge_inverse(a, 0.01, on_failure="raise")
    except errors.ConvergenceError as error:
        print(str(error))
        return None
    value: Floats = np.asarray(result.value)
    return value


class Cosine:
    """A kernel of one's own."""

    def __call__(self, x: Floats, y: Floats | None = None) -> Floats:
        """Cosines of the angles between rows."""
        other = x if y is None else y
        product: Floats = x @ other.T
        cosines: Floats = product / (np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(other, axis=1))
        return cosines

    def diagonal(self, x: Floats) -> Floats:
        """Ones."""
        ones: Floats = np.ones(len(x), dtype=np.float64)
        return ones


def accepts(kernel: softlinalg.Kernel) -> softlinalg.Kernel:
    """Whether an object serves as a kernel is seen by its methods."""
    return kernel


def stream(x: Floats) -> int:
    """The rank of a streamed approximation."""
    streamed: softlinalg.StreamedNystrom = softlinalg.nystrom_stream(x, softlinalg.Matern(1.0, nu=1.5), rank=5, rng=0)
    return streamed.decomposition.rank


def held(tolerance: float = 30.0) -> str:
    """A test of one's own code."""
    case = build_matrix(shape=(4, 3), cond=10.0)
    try:
        assert_pinv(softlinalg.pinv, case, threshold=tolerance)
    except AccuracyError as error:
        return error.property
    return ""


OWN_KERNEL = accepts(Cosine())
LANDMARKS = softlinalg.select_landmarks(np.zeros((5, 1)), 1, method="uniform", rng=0)
