"""Time of the feature map k(x, landmarks) @ whitening, against scikit-learn's Nystroem and against the arithmetic it cannot avoid.

One thread. In each round every contestant runs once, in a new random order; the figures are medians over rounds of ratios
within a round, with their quartiles, of wall time and of processor time (which does not count the time that other processes
of a shared machine take). "Limit" is the two matrix products n x d x m and n x m x m as one call each into memory that is
there already, and the n m exponentials in cache-sized blocks: no distance, no norm, no allocation. The triangular whitening
spans the same features up to a rotation (RQ factorization), and half of its products are skipped.

    python tests/benchmarks/feature_map.py [--rows 40000] [--features 32] [--landmarks 256] [--rounds 15] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import rq
from sklearn.kernel_approximation import Nystroem
from threadpoolctl import threadpool_limits

from softlinalg._kernels import Gaussian, default_chunk_size, kernel_matmul

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def seconds(work: Callable[[], Any]) -> dict[str, float]:
    start = {name: clock() for name, clock in CLOCKS.items()}
    work()
    return {name: clock() - start[name] for name, clock in CLOCKS.items()}


def whitening_of(core: np.ndarray) -> np.ndarray:
    """Inverse root of the landmarks' kernel matrix, with a relative cut."""
    values, vectors = np.linalg.eigh(core.astype(np.float64))
    kept = values > 1e-8 * values[-1]
    return np.ascontiguousarray(((vectors[:, kept] / np.sqrt(values[kept])) @ vectors[:, kept].T).astype(core.dtype))


def contestants(n: int, d: int, m: int, dtype: str, length_scale: float) -> dict[str, Callable[[], Any]]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d)).astype(dtype)
    sklearn_map = Nystroem(gamma=1 / (2 * length_scale**2), n_components=m, random_state=0).fit(x)
    landmarks = sklearn_map.components_.astype(dtype)
    kernel = Gaussian(length_scale)
    whitening = whitening_of(kernel(landmarks))

    triangular = np.ascontiguousarray(rq(whitening.astype(np.float64), mode="r").astype(dtype))

    ours, theirs = kernel_matmul(kernel, x, landmarks, whitening), sklearn_map.transform(x)
    difference = float(np.max(np.abs((ours.astype(np.float64) @ ours[:50].T) - theirs.astype(np.float64) @ theirs[:50].T)))
    print(f"{dtype}: largest difference of the approximated kernels {difference:.1e}", file=sys.stderr)

    inner, out = np.empty((n, m), dtype), np.empty((n, m), dtype)
    inner_right = np.ascontiguousarray(landmarks.T)
    rows = default_chunk_size(m, inner.itemsize)
    exponents, block = -rng.random((rows, m)).astype(dtype) * 10, np.empty((rows, m), dtype)

    def limit() -> None:
        np.matmul(x, inner_right, out=inner)
        for start in range(0, n, rows):
            size = min(rows, n - start)
            np.exp(exponents[:size], out=block[:size])
        np.matmul(inner, whitening, out=out)

    return {
        "limit": limit,
        "ours": lambda: kernel_matmul(kernel, x, landmarks, whitening),
        "ours into memory that is there": lambda: kernel_matmul(kernel, x, landmarks, whitening, out=out),
        "ours, triangular whitening": lambda: kernel_matmul(kernel, x, landmarks, triangular),
        "scikit-learn": lambda: sklearn_map.transform(x),
    }


def quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}


def peak_resident(work: Callable[[], Any]) -> int:
    """Largest growth of the process's memory during `work`, sampled every millisecond."""
    import psutil

    process = psutil.Process()
    gc.collect()
    base, peak, stop = process.memory_info().rss, 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.001):
            peak = max(peak, process.memory_info().rss - base)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = work()
    stop.set()
    watcher.join()
    peak = max(peak, process.memory_info().rss - base)
    del result
    return peak


def measure(n: int, d: int, m: int, dtype: str, rounds: int, length_scale: float) -> dict[str, Any]:
    work = contestants(n, d, m, dtype, length_scale)
    order = np.random.default_rng(1)
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in work} for clock in CLOCKS}
    for step in range(rounds + 1):
        for index in order.permutation(len(work)):
            name = list(work)[index]
            elapsed = seconds(work[name])
            if step:  # the first round warms up
                for clock in CLOCKS:
                    times[clock][name].append(elapsed[clock])

    tracemalloc.start()
    result = work["ours"]()
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    output = result.nbytes
    del result
    resident = peak_resident(work["ours"])
    pairs = [
        ("scikit-learn", "ours"),
        ("scikit-learn", "ours, triangular whitening"),
        ("limit", "ours"),
        ("limit", "ours into memory that is there"),
    ]
    return {
        "rows": n,
        "features": d,
        "landmarks": m,
        "dtype": dtype,
        "rounds": rounds,
        "clocks": {
            clock: {
                "milliseconds": {name: quartiles([1e3 * t for t in values]) for name, values in of.items()},
                "ratios": {f"{a} / {b}": quartiles([p / q for p, q in zip(of[a], of[b], strict=True)]) for a, b in pairs},
            }
            for clock, of in times.items()
        },
        "peak_memory_over_output": {"tracemalloc": traced / output, "resident": resident / output},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--features", type=int, default=32)
    parser.add_argument("--landmarks", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--length-scale", type=float, help="default: the square root of the number of features")
    parser.add_argument("--dtype", choices=["float32", "float64"], action="append", help="default: both")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    length_scale = options.length_scale or options.features**0.5
    results = []
    with threadpool_limits(1):
        for dtype in options.dtype or ["float64", "float32"]:
            found = measure(options.rows, options.features, options.landmarks, dtype, options.rounds, length_scale)
            results.append(found)
            print(f"\n{dtype}, n = {found['rows']}, d = {found['features']}, m = {found['landmarks']}, {found['rounds']} rounds")
            for clock, figures in found["clocks"].items():
                print(f"  {clock} time")
                for name, values in figures["milliseconds"].items():
                    print(f"    {name:44s}{values['median']:8.1f} ms  ({values['lower_quartile']:.1f} .. {values['upper_quartile']:.1f})")
                for name, values in figures["ratios"].items():
                    print(f"    {name:44s}{values['median']:8.2f}     ({values['lower_quartile']:.2f} .. {values['upper_quartile']:.2f})")
            for name, value in found["peak_memory_over_output"].items():
                print(f"  peak memory / output, {name:20s}{value:9.3f}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
