"""Gaussian process regression, exactly, with the Nyström approximation as preconditioner.

The mean of a Gaussian process asks for (K + noise I)^-1 y. Here conjugate gradients find it to a true residual of 1e-8, on blocks of
the kernel matrix; the preconditioner makes the number of steps nearly independent of the noise. The series is made here, so that the
truth is known: a trend with seasons that come and go, measured with noise, and a year without measurements.

    python examples/gaussian_process.py [--points 2500] [--output gaussian_process.png] [--quick]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from scipy.sparse.linalg import cg
from tqdm import tqdm

import softlinalg


def series(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times, values measured with noise, and the truth: a trend with seasons of changing strength, and a gap."""
    t = np.sort(rng.uniform(0, 20, n))
    t = t[(t < 12) | (t > 13)]
    truth = 0.15 * t + np.sin(2 * np.pi * t) * np.exp(-((t - 8) ** 2) / 30) + 0.3 * np.sin(0.9 * t)
    return t[:, None], truth + 0.2 * rng.normal(size=len(t)), truth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=2500)
    parser.add_argument("--output", type=Path, default=Path("gaussian_process.png"))
    parser.add_argument("--quick", action="store_true", help="600 points: does it run?")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    x, y, _ = series(600 if options.quick else options.points, rng)
    kernel, noise = softlinalg.Gaussian(0.25), 0.04
    start = time.perf_counter()
    d = softlinalg.nystrom(x, kernel, tol=1e-4, rng=0)
    print(f"rank {d.rank} leaves out {d.relative_trace_error:.1e} of the trace ({time.perf_counter() - start:.1f} s)")

    exact = softlinalg.kernel_operator(kernel, x, noise)
    norms: dict[str, list[float]] = {}
    for name, preconditioner in tqdm({"with": d.preconditioner(noise), "without": None}.items(), desc="conjugate gradients"):
        norms[name] = []
        start = time.perf_counter()
        weights, failed = cg(
            exact, y, M=preconditioner, rtol=1e-8, maxiter=150,
            callback=lambda w, found=norms[name]: found.append(float(np.linalg.norm(exact @ w - y) / np.linalg.norm(y))),
        )  # fmt: skip
        tqdm.write(
            f"{name} preconditioner: {len(norms[name])} steps{' (not enough)' if failed else ''}, {time.perf_counter() - start:.1f} s"
        )
        if preconditioner is not None:
            mean_weights = weights

    grid = np.linspace(0, 20, 800)[:, None]
    cross = softlinalg.gaussian_kernel(grid, x, length_scale=0.25)
    mean = cross @ mean_weights
    # The variance needs one more solve per point; by Woodbury with the approximation it is one product.
    reduced = d.solve(cross.T, ridge=noise)
    deviation = np.sqrt(np.maximum(1 - np.sum(cross * reduced.T, axis=1), 0))

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(3, 2), layout="constrained")
    axes[0].plot(x[:, 0], y, ".", markersize=1, color="tab:gray", label="measured")
    axes[0].plot(grid[:, 0], mean, color="tab:blue", label="mean of the process")
    axes[0].fill_between(grid[:, 0], mean - 2 * deviation, mean + 2 * deviation, color="tab:blue", alpha=0.25, label="two deviations")
    axes[0].set(xlabel="time [years]", ylabel="value", title=f"{len(x):,} measurements, none between 12 and 13")
    axes[0].legend(loc="upper left")
    for name, values in norms.items():
        axes[1].semilogy(range(1, len(values) + 1), values, label=f"{name} preconditioner")
    axes[1].set(xlabel="step of conjugate gradients", ylabel="true relative residual", title=f"(K + {noise} I) w = y")
    axes[1].legend()
    figure.savefig(options.output, dpi=120)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
