"""Time of the scaled Newton iteration, alone and certified, against the published 20 steps: float32 and float64, one thread.

    python tests/benchmarks/scaled_newton.py [--rounds 9]

Gaussian kernel matrices of random points in eight dimensions, ridge 0.01, as many scaled steps as a relative error of 1e-3 takes. "scaled"
is the loop alone, given the largest eigenvalue; "uncertified" is what a routine without a certificate does: A + ridge I, a bound of the
largest eigenvalue, the loop, the symmetric part. Each round runs every contestant once, in random order; medians over rounds of ratios
within a round, with their quartiles.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from inverses import measure

import softlinalg
from softlinalg import _iterations, _norm_bounds
from softlinalg._cli_bench_workloads import RIDGE, kernel_matrices

SHAPES = [(256, 49), (128, 64), (16, 196), (8, 256)]


def contestants(a: torch.Tensor) -> dict[str, Callable[[], Any]]:
    b = a + RIDGE * torch.eye(a.shape[-1], dtype=a.dtype)
    hi = float(torch.linalg.eigvalsh(b).max())
    steps = _iterations.chebyshev_newton_steps(hi / RIDGE, 1e-3, polish=1)

    def uncertified() -> torch.Tensor:
        shifted = a + RIDGE * torch.eye(a.shape[-1], dtype=a.dtype)
        bound = float(_norm_bounds.hermitian_upper_bound(shifted, xp=xp).max())
        count = _iterations.chebyshev_newton_steps(bound / RIDGE, 1e-3, polish=1)
        x = _iterations.chebyshev_newton(shifted, lo=RIDGE, hi=bound, steps=count, polish=1, xp=xp)
        return (x + x.mT) / 2

    return {
        "scaled": lambda: _iterations.chebyshev_newton(b, lo=RIDGE, hi=hi, steps=steps, polish=1, xp=xp),
        "uncertified": uncertified,
        "certified": lambda: softlinalg.ridge_inverse(a, RIDGE, method="chebyshev", tol=1e-3),
        "published": lambda: softlinalg.newton_pinv(a, ridge=RIDGE),
        "default": lambda: softlinalg.ridge_inverse(a, RIDGE),
    }


def ratio(times: dict[str, list[float]], one: str, other: str) -> str:
    low, middle, high = statistics.quantiles([a / b for a, b in zip(times[one], times[other], strict=True)], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    print(
        "| block | scaled, ms | certified, ms | published, ms | published / scaled | published / certified | certified / scaled | certified / uncertified | published / default |"
    )
    print("|-|-|-|-|-|-|-|-|-|")
    for dtype in ("float32", "float64"):
        for batch, m in SHAPES:
            times = measure(contestants(torch.tensor(kernel_matrices(batch, m, rng).astype(dtype))), options.rounds, rng)
            medians = " | ".join(f"{1e3 * statistics.median(times[name]):.1f}" for name in ("scaled", "certified", "published"))
            pairs = (("published", "scaled"), ("published", "certified"), ("certified", "scaled"), ("certified", "uncertified"))
            pairs += (("published", "default"),)
            print(f"| {dtype} {batch} x {m} | {medians} | {' | '.join(ratio(times, *pair) for pair in pairs)} |", flush=True)


if __name__ == "__main__":
    main()
