"""Time of the certified inverses against torch's pseudo-inverse and LU, and against the published iteration; and their errors.

One thread unless `--threads` says otherwise. Each round runs every contestant once, in random order; the figures are medians
over rounds of ratios within a round, with their quartiles. Matrices: Gaussian kernel matrices of random points in eight
dimensions, ridge 0.01, as in the table of the published attention's inverse.

    python tests/benchmarks/inverses.py [--rounds 15] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import torch
from threadpoolctl import threadpool_limits

import softlinalg
from softlinalg._cli_bench_workloads import RIDGE, kernel_matrices

SHAPES = [(256, 49), (128, 64), (16, 196), (8, 256), (1, 1024)]


def contestants(a: torch.Tensor) -> dict[str, Callable[[], Any]]:
    shifted = a + RIDGE * torch.eye(a.shape[-1], dtype=a.dtype)
    host = a.numpy()
    return {
        "torch.linalg.pinv(hermitian)": lambda: torch.linalg.pinv(shifted, hermitian=True),
        "torch.linalg.inv": lambda: torch.linalg.inv(shifted),
        "ridge_inverse, torch": lambda: softlinalg.ridge_inverse(a, RIDGE),
        "ridge_inverse, numpy": lambda: softlinalg.ridge_inverse(host, RIDGE),
        "certified_ridge_inverse, torch": lambda: softlinalg.certified_ridge_inverse(a, RIDGE),
        "chebyshev, certified": lambda: softlinalg.ridge_inverse(a, RIDGE, method="chebyshev", tol=1e-3),
        "published 20 steps": lambda: softlinalg.newton_pinv(a, ridge=RIDGE),
    }


def relative_error(value: Any, a: torch.Tensor) -> float:
    """Largest relative error over the batch in the spectral norm, truth in float64 (error about 1e-12 here)."""
    exact = np.linalg.inv(a.double().numpy() + RIDGE * np.eye(a.shape[-1]))
    found = np.asarray(getattr(value, "value", value), dtype=float)
    return float((np.linalg.norm(found - exact, 2, axis=(1, 2)) / np.linalg.norm(exact, 2, axis=(1, 2))).max())


def measure(work: dict[str, Callable[[], Any]], rounds: int, rng: np.random.Generator) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in work}
    for one in work.values():
        one()
    for _ in range(rounds):
        for name in rng.permutation(list(work)):
            start = time.perf_counter()
            work[name]()
            times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    rows = []
    print("| block | contestant | ms | pinv(hermitian) / it (quartiles) | relative error |\n|-|-|-|-|-|")
    with threadpool_limits(arguments.threads):
        for dtype in ("float32", "float64"):
            for batch, m in SHAPES:
                a = torch.tensor(kernel_matrices(batch, m, rng).astype(dtype))
                work = contestants(a)
                errors = {name: relative_error(one(), a) for name, one in work.items()}
                times = measure(work, arguments.rounds, rng)
                yardstick = times["torch.linalg.pinv(hermitian)"]
                for name, seconds in times.items():
                    ratios = [y / s for y, s in zip(yardstick, seconds, strict=True)]
                    low, middle, high = statistics.quantiles(ratios, n=4)
                    row = {"dtype": dtype, "batch": batch, "m": m, "name": name, "ms": statistics.median(seconds) * 1e3}
                    row |= {"ratio": middle, "low": low, "high": high, "error": errors[name]}
                    rows.append(row)
                    text = (
                        f"| {dtype} {batch} x {m} | {name} | {row['ms']:.1f} | {middle:.2f} ({low:.2f}-{high:.2f}) | {errors[name]:.0e} |"
                    )
                    print(text, flush=True)
    versions = {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__, "torch": torch.__version__}
    print(f"\nThreads: {arguments.threads}, {arguments.rounds} rounds, {versions}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"versions": versions, "threads": arguments.threads, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
