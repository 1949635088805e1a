"""NystromRidge against FALKON: the published algorithm written from its formulas, on equal landmarks, kernel and ridge.

FALKON [1]_ (algorithm 1) minimizes |y - K_nM a|^2 + ridge a^T K_MM a, with ridge = lambda n, by conjugate gradients on
B^T (K_nM^T K_nM + ridge K_MM) B beta = B^T K_nM^T y, a = B beta, with the preconditioner B = T^-1 A^-1 / sqrt(n),
T = chol(K_MM) and A = chol(T T^T / M + lambda I), upper triangular; 20 steps. NystromRidge solves the same problem directly.
Landmarks are uniform, as published: the preconditioner supposes that K_nM^T K_nM is about n / M K_MM^2.

    python tests/benchmarks/falkon.py --sets protein bike        # a minute each

References
----------
.. [1] Rudi, Carratino & Rosasco, FALKON: an optimal large scale kernel method (2017), arXiv:1705.10958.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular

from softlinalg.sklearn import NystromRidge


class Falkon:
    """The algorithm, for targets (n,); products with K_nM go over blocks of rows, as published."""

    def __init__(self, kernel: Any, landmarks: np.ndarray, ridge: float, *, steps: int = 20, block: int = 8192) -> None:
        self.kernel, self.landmarks, self.ridge, self.steps, self.block = kernel, landmarks, ridge, steps, block

    def fit(self, x: np.ndarray, y: np.ndarray) -> Falkon:
        n, m = len(x), len(self.landmarks)
        k_mm = self.kernel(self.landmarks)
        t = np.linalg.cholesky(k_mm + m * np.finfo(float).eps * np.eye(m)).T
        a = np.linalg.cholesky(t @ t.T / m + self.ridge / n * np.eye(m)).T

        def b(v: np.ndarray) -> np.ndarray:
            return solve_triangular(t, solve_triangular(a, v)) / np.sqrt(n)

        def b_transposed(v: np.ndarray) -> np.ndarray:
            return solve_triangular(a, solve_triangular(t, v, trans=1), trans=1) / np.sqrt(n)

        def products(v: np.ndarray | None, w: np.ndarray | None) -> np.ndarray:
            """K_nM^T (K_nM v + w)."""
            total = np.zeros(m)
            for start in range(0, n, self.block):
                rows = self.kernel(x[start : start + self.block], self.landmarks)
                inner = np.zeros(len(rows)) if v is None else rows @ v
                total += rows.T @ (inner if w is None else inner + w[start : start + self.block])
            return total

        beta, residual = np.zeros(m), b_transposed(products(None, y))
        way, square = residual.copy(), residual @ residual
        self.residuals = [float(np.sqrt(square))]
        for _ in range(self.steps):
            v = b(way)
            image = b_transposed(products(v, None) + self.ridge * (k_mm @ v))
            step = square / (way @ image)
            beta, residual = beta + step * way, residual - step * image
            square, before = residual @ residual, square
            self.residuals.append(float(np.sqrt(square)))
            way = residual + square / before * way
        self.coefficients = b(beta)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.kernel(x, self.landmarks) @ self.coefficients


def main() -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import estimators
    from threadpoolctl import threadpool_limits

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["flights", "protein", "bike"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--other", type=int, default=5, help="steps of a second run of FALKON, beside the 20 published")
    arguments = parser.parse_args()
    print(
        f"| set, rank | NystromRidge | FALKON, 20 steps | FALKON, {arguments.other} steps | ratio of errors | fit, s | FALKON's fit, s |\n|-|-|-|-|-|-|-|"
    )
    with threadpool_limits(1):
        for name in arguments.sets:
            x, y = estimators.SETS[name]()
            scales = None
            for rank in arguments.ranks:
                rows = []
                for seed in range(arguments.seeds):
                    order, cut = np.random.default_rng(seed).permutation(len(x)), len(x) // 5
                    train, test = estimators.standardized(x[order[cut:]], x[order[:cut]], name)
                    mean = y[order[cut:]].mean()
                    targets, truth = y[order[cut:]] - mean, y[order[:cut]] - mean
                    if scales is None:
                        model = NystromRidge(rank=512, length_scale="learned", random_state=0).fit(train[:8000], targets[:8000])
                        scales = model.kernel_.length_scale
                    found = estimators.ours(rank, scales, seed, "uniform", labels=False).fit(train, targets)
                    settings = {"kernel": found.kernel_, "landmarks": found.landmarks_, "ridge": found.ridge_, "fit_intercept": False}
                    contestants = [
                        NystromRidge(**settings),
                        *(Falkon(found.kernel_, found.landmarks_, found.ridge_, steps=steps) for steps in (20, arguments.other)),
                    ]
                    times, errors = [], []
                    for contestant in contestants:
                        start = time.process_time()
                        contestant.fit(train, targets)
                        times.append(time.process_time() - start)
                        errors.append(estimators.error(truth, contestant.predict(test), labels=False))
                    rows.append([*errors, errors[0] / errors[1], times[0], times[1]])
                middle = np.median(rows, axis=0)
                ratios = sorted(row[3] for row in rows)
                print(
                    f"| {name}, {rank} | {middle[0]:.4f} | {middle[1]:.4f} | {middle[2]:.4f} | "
                    f"{middle[3]:.5f} ({ratios[0]:.5f}-{ratios[-1]:.5f}) | {middle[4]:.2f} | {middle[5]:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
