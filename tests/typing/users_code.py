"""What users write, for type checkers in their strict modes: `mypy` checks it in CI, and `tests/test_typing.py` by pyright."""

from __future__ import annotations

import dask.array
import jax
import numpy as np
import torch
from numpy.typing import NDArray

import softlinalg
import softlinalg.dask
from softlinalg import errors
from softlinalg.jax import soft_attention
from softlinalg.sklearn import NystromFeatures, NystromPCA, NystromRidge, NystromRidgeClassifier, NystromSpectralClustering
from softlinalg.testing import AccuracyError, Report, assert_pinv, build_matrix, conforms, suites
from softlinalg.torch import SoftAttention, SoftBackbone, attention_error, soft_tiny

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


def suite(laws_left_out: tuple[str, ...] = ()) -> tuple[bool, list[str]]:
    """A report on one's own code."""
    report: Report = suites.pinv(softlinalg.pinv, profile="smoke", cases=1)
    return report.passed, [result.name for result in report.failures]


@conforms("pinv", profile="smoke", cases=1)
def test_own() -> object:
    """A test of one's own, as pytest collects it."""
    return softlinalg.pinv


class Classifier(torch.nn.Module):
    """A network with our layer in it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = SoftAttention(width, num_heads=2, landmarks=49)
        self.head = torch.nn.Linear(width, 10)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits."""
        mixed: torch.Tensor = self.attention(tokens, (4, 4))
        logits: torch.Tensor = self.head(mixed.mean(1))
        return logits

    def bound(self) -> float:
        """What the inverses of the last pass are certain to."""
        return float(self.attention.diagnostics().error_bound.max())


def backbone() -> tuple[int, tuple[int, ...]]:
    """Sizes of a published network."""
    model: SoftBackbone = soft_tiny(num_classes=10, landmarks=49)
    error = attention_error(torch.zeros(1, 1, 16, 8), torch.zeros(1, 1, 16, 8), torch.zeros(1, 1, 4, 8))
    print(error)
    return model.num_features, model.feature_strides


def estimate(x: Floats, y: Floats) -> tuple[float, Floats]:
    """Estimators of scikit-learn, with their fitted attributes."""
    residual: float = 1 - NystromRidge().fit(x, y).score(x, y)
    model = NystromRidge(kernel=softlinalg.Gaussian(1.0), rank=10).set_params(rank=5).fit(x, y)
    features: Floats = NystromFeatures(n_components=5).set_output(transform="default").fit_transform(x)
    scores: Floats = NystromPCA(2).fit_transform(features)
    labels: Floats = NystromSpectralClustering(2).fit_predict(scores)
    accuracy = NystromRidgeClassifier().fit(x, labels).score(x, labels)
    print(model.get_params()["rank"], model.kernel_, model.solutions_, accuracy, residual)
    return model.error_, model.predict(x)


def spread(x: dask.array.Array) -> int:
    """On a cluster."""
    result: softlinalg.dask.DaskNystrom = softlinalg.dask.nystrom(x, softlinalg.Gaussian(1.0), rank=5, rng=0)
    return result.decomposition.rank


def loss(q: jax.Array, v: jax.Array, landmarks: jax.Array) -> jax.Array:
    """A function for jax.grad."""
    return (soft_attention(q, v, landmarks) ** 2).sum()


OWN_KERNEL = accepts(Cosine())
LANDMARKS = softlinalg.select_landmarks(np.zeros((5, 1)), 1, method="uniform", rng=0)
