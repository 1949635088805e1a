"""Points, kernels, the approximation in dense float64, and norms: what the tests of nystrom share."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from softlinalg._nystrom_core import CUT_OFF

T = 30.0
"""Factor on every rounding bound: sound implementations stay below half of it."""


def points(kind: str, n: int, d: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    if kind == "clustered":
        x = 3 * rng.normal(size=(4, d))[rng.integers(0, 4, n)] + 0.05 * x
    elif kind == "duplicated":
        x = x[rng.integers(0, max(1, n // 3), n)]
    elif kind == "collinear":
        x = x[:, :1] * np.arange(1, d + 1)
    elif kind == "one far":
        x[0] = 1e3
    elif kind == "offset":
        x = x + 100.0
    return x


@dataclass(frozen=True)
class Truth:
    """The approximation in dense float64, with the bound on how far rounding may move it."""

    kernel: np.ndarray
    approximation: np.ndarray
    kept: np.ndarray
    bound: float
    """In the spectral norm."""
    edge: float
    """What moving the cut-off by a factor of ten either way changes: eigenvalues near it may fall on either side."""


def truth(x: np.ndarray, kernel: Any, indices: Any, *, rtol: float | None = None) -> Truth:
    wide = x.astype(np.float64)
    c, w = kernel(wide, wide[indices]), kernel(wide[indices], wide[indices])
    values, vectors = np.linalg.eigh((w + w.T) / 2)
    cut = (CUT_OFF[str(x.dtype)] if rtol is None else rtol) * values[-1]
    keep = values > cut
    f = c @ (vectors[:, keep] / np.sqrt(values[keep]))
    near = (values > cut / 10) & (values <= 10 * cut)
    g = c @ (vectors[:, near] / np.sqrt(values[near]))
    # Rounding of size eps in C becomes eps |C| |W^(-1/2)| in F, and twice that times |F| in F F^T. Kernel values of
    # squared distances carry some eps |x|^2 / l^2 instead of one eps; the kernel keeps that below about 10.
    eps = float(np.finfo(x.dtype).eps)
    noise = 10 * eps * np.linalg.norm(c) * math.sqrt(np.sum(1 / values[keep]))
    # Rounding E of W, in float64, moves F F^T by B^T E B with B = W^+ C^T.
    core = 2.2e-16 * values[-1] * np.linalg.norm(f / np.sqrt(values[keep]), 2) ** 2
    bound = T * (2 * np.linalg.norm(f, 2) * noise + noise**2 + eps * np.linalg.norm(f) ** 2 + core)
    return Truth(kernel(wide, wide), f @ f.T, values[keep], bound, float(np.linalg.norm(g, 2)) ** 2)


def spectral(a: np.ndarray) -> float:
    return float(np.linalg.norm(a, 2))


def wide(backend: Any, a: Any) -> np.ndarray:
    return backend.to_numpy(a).astype(np.float64)


class Linear:
    """A user's kernel: nothing but what the protocol asks for."""

    def __call__(self, x: Any, y: Any) -> Any:
        return x @ y.T

    def diagonal(self, x: Any) -> Any:
        return (x * x).sum(-1)


def blob(n: int = 120, d: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d))
