"""Streaming against a hand-written loop of NumPy products, on one machine and on a cluster of two workers: time, memory, bits.

Data: rows of 32 float32 numbers (a mixture of 200 Gaussian clusters) in a .npy file, mapped into memory. The hand-written loop does the
same arithmetic with the same landmarks and the same map: distances by one product, exponentials, features by one product, their Gram
matrix in float64 (NumPy computes F.T @ F as a symmetric product), rows taken from the same map. It is given the block length at which
it was fastest. Ratios are taken within a round, where each contender runs once, in random order; medians and extremes over the rounds.
Peak memory is that of processes of their own, from start to end (VmHWM; summed over client and workers on the cluster).

    python tests/benchmarks/streaming.py time    [--rows 2000000 --rank 512 --threads 2 --rounds 3 --processor-time]
    python tests/benchmarks/streaming.py cluster [--rows 1000000 --rank 256 --workers 2 --rounds 5]
    python tests/benchmarks/streaming.py memory  [--rows 2000000 --rank 512] [--on cluster]
    python tests/benchmarks/streaming.py equal   [--rows 2000000 --rank 512]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

import softlinalg
from softlinalg import Gaussian, nystrom, nystrom_stream, select_landmarks

D, SCALE = 32, 6.0
HAND_BLOCK = 1024
"""Rows per block of the hand-written loop: 1024 was fastest of 1024, 2048, 4096 and 8192."""


def make(folder: str, rows: int) -> Path:
    """A file of so many rows, written piece by piece."""
    path = Path(folder) / f"{rows}.npy"
    rng = np.random.default_rng(0)
    centers = 1.5 * rng.normal(size=(200, D)).astype(np.float32)
    x = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, D))
    for start in range(0, rows, 100_000):
        stop = min(rows, start + 100_000)
        x[start:stop] = centers[rng.integers(0, 200, stop - start)] + rng.standard_normal((stop - start, D), dtype=np.float32)
    return path


def chosen(x: np.ndarray, rank: int) -> np.ndarray:
    return select_landmarks(np.array(x[: 100 * rank]), rank, kernel=Gaussian(SCALE), rng=0)


def by_hand(x: np.ndarray, landmarks: np.ndarray, map_: np.ndarray) -> np.ndarray:
    """Gram matrix of the features, as one would write it."""
    squares, transposed = (landmarks * landmarks).sum(axis=1), np.ascontiguousarray(landmarks.T)
    gram, factor = np.zeros((map_.shape[1],) * 2), np.float32(-0.5 / SCALE**2)
    for start in range(0, len(x), HAND_BLOCK):
        rows = np.asarray(x[start : start + HAND_BLOCK])
        block = rows @ transposed
        block *= -2
        block += (rows * rows).sum(axis=1)[:, None]
        block += squares
        block *= factor
        np.exp(block, out=block)
        f = (block @ map_).astype(np.float64)
        gram += f.T @ f
    return gram


def seconds(work: Any, clock: Any = time.perf_counter) -> tuple[float, Any]:
    start = clock()
    result = work()
    return clock() - start, result


def rounds_of(contenders: dict[str, Any], rounds: int, clock: Any = time.perf_counter) -> tuple[dict[str, list[float]], dict[str, Any]]:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name in random.sample(list(contenders), len(contenders)):
            taken, results[name] = seconds(contenders[name], clock)
            times[name].append(taken)
    return times, results


def told(name: str, times: dict[str, list[float]], base: str) -> None:
    for key, values in times.items():
        ratios = sorted(a / b for a, b in zip(values, times[base], strict=True))
        print(
            f"{name}: {key}: {statistics.median(values):.2f} s ({min(values):.2f} to {max(values):.2f}), "
            f"ratio to {base} {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
            flush=True,
        )


def compare_time(path: Path, rank: int, threads: int, rounds: int, clock: Any) -> None:
    x = np.load(path, mmap_mode="r")
    landmarks = chosen(x, rank)
    first = nystrom_stream(x[:20_000], Gaussian(SCALE), landmarks=landmarks, rng=0).decomposition._map
    ordered, map_ = first.landmarks, np.asarray(first.map, dtype=np.float32)
    with threadpool_limits(threads):
        contenders = {
            "by hand": lambda: by_hand(x, ordered, map_),
            "pass": lambda: nystrom_stream(x, Gaussian(SCALE), landmarks=landmarks, rng=0, threads=threads),
            "with choice of landmarks": lambda: nystrom_stream(x, Gaussian(SCALE), rank=rank, rng=0, threads=threads),
        }
        times, results = rounds_of(contenders, rounds, clock)
    told(f"{len(x):,} x {D}, rank {rank}, {threads} threads, {clock.__name__}", times, "by hand")
    s = results["pass"].sums
    gram = s.gram + s.rows * np.outer(s.feature_mean, s.feature_mean)
    print(
        f"Gram against the loop: {np.abs(gram - results['by hand']).max() / np.abs(gram).max():.1e}; in float64 blocks: {first.in_float64}"
    )


def compare_cluster(path: Path, rank: int, workers: int, rounds: int) -> None:
    import distributed

    import softlinalg.dask

    x = np.load(path, mmap_mode="r")
    landmarks = chosen(x, rank)
    lazy = softlinalg.dask.open_npy(path)
    started = time.perf_counter()
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
        threadpool_limits(workers),
    ):
        print(f"cluster of {workers} up after {time.perf_counter() - started:.1f} s", flush=True)
        contenders = {
            "plain loop": lambda: nystrom_stream(x, Gaussian(SCALE), landmarks=landmarks, rng=0, threads=workers),
            "dask": lambda: softlinalg.dask.nystrom(lazy, Gaussian(SCALE), landmarks=landmarks, rng=0, client=client),
        }
        contenders["dask"]()  # workers import the package once
        times, results = rounds_of(contenders, rounds)

        def work(name: str) -> float:
            """Processor time of one run, in this process and the workers: what other programs on the machine do not change much."""
            before = time.process_time() + sum(client.run(time.process_time).values())
            contenders[name]()
            return time.process_time() + sum(client.run(time.process_time).values()) - before

        cpu = {name: [work(name) for _ in range(2)] for name in contenders}
    print("processor time: " + ", ".join(f"{name} {min(values):.2f} s" for name, values in cpu.items()))
    told(f"{len(x):,} x {D}, rank {rank}, {workers} workers", times, "plain loop")
    equal = np.array_equal(results["dask"].sums.gram, results["plain loop"].sums.gram)
    print(f"Gram matrices equal bit for bit: {equal}")


# ------------------------------------------------------------------------------------------------ memory
def peak(pid: int | str = "self") -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(found.group(1)) if found else 0


def child_numpy(path: str, rank: int) -> None:
    result = nystrom_stream(np.load(path, mmap_mode="r"), Gaussian(SCALE), rank=rank, rng=0, threads=2)
    print(json.dumps({"peak": peak(), "error": result.decomposition.relative_trace_error}))


def child_cluster(path: str, rank: int) -> None:
    import distributed

    import softlinalg.dask

    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        result = softlinalg.dask.nystrom(softlinalg.dask.open_npy(path), Gaussian(SCALE), rank=rank, rng=0, client=client)
        parts = [peak(), *(peak(pid) for pid in client.run(os.getpid).values())]
        others = [
            peak(line.strip()) for line in subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True).stdout.split()
        ]
    print(json.dumps({"peak": max(sum(parts), parts[0] + sum(others)), "parts": parts, "error": result.decomposition.relative_trace_error}))


def memory(path: Path, rank: int, on: str) -> None:
    command = [sys.executable, __file__, f"child-{on}", "--path", str(path), "--rank", str(rank)]
    done = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    parts = "" if "parts" not in done else " (" + " + ".join(f"{part / 1e6:.0f}" for part in done["parts"]) + ")"
    print(
        f"{path.stem} rows, rank {rank}, {on}: peak {done['peak'] / 1e6:.0f} MB{parts}, relative trace error {done['error']:.4g}",
        flush=True,
    )


def compare_results(path: Path, rank: int, threads: int) -> None:
    x = np.load(path, mmap_mode="r")
    start = time.process_time()
    streamed = nystrom_stream(x, Gaussian(SCALE), rank=rank, rng=0, threads=threads).decomposition
    print(f"streamed: {time.process_time() - start:.0f} s of processor time", flush=True)
    whole = nystrom(np.array(x), streamed.kernel, landmarks=streamed.landmarks, store_features=False)
    values = np.abs(streamed._spectrum.eigenvalues - whole._spectrum.eigenvalues)
    print(
        f"{len(x):,} rows: eigenvalues differ by {values.max() / whole._spectrum.eigenvalues[0]:.1e} of the largest, "
        f"{(values / whole._spectrum.eigenvalues).max():.1e} of each; trace errors {streamed.relative_trace_error:.6g} and "
        f"{whole.relative_trace_error:.6g} (relative difference {abs(streamed.trace_error / whole.trace_error - 1):.1e})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("time", "cluster", "memory", "equal", "child-numpy", "child-cluster"))
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000])
    parser.add_argument("--rank", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processor-time", action="store_true", help="part time: of all threads, which other programs change less")
    parser.add_argument("--on", choices=("numpy", "cluster"), default="numpy")
    parser.add_argument("--path")
    a = parser.parse_args()
    if a.part.startswith("child"):
        (child_numpy if a.part == "child-numpy" else child_cluster)(a.path, a.rank)
        return
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        for rows in a.rows:
            path = make(folder, rows)
            if a.part == "time":
                compare_time(path, a.rank, a.threads, a.rounds, time.process_time if a.processor_time else time.perf_counter)
            elif a.part == "cluster":
                compare_cluster(path, a.rank, a.workers, a.rounds)
            elif a.part == "memory":
                memory(path, a.rank, a.on)
            else:
                compare_results(path, a.rank, a.threads)
            path.unlink()
    print(f"numpy {np.__version__}, softlinalg {softlinalg.__version__}")


if __name__ == "__main__":
    main()
