"""What a run on many rows sends between workers: the graph of its true number of chunks, on tiny chunks, on this machine.

A run of n rows makes n / chunk_size sums and adds them along a tree. How many of those sums travel depends on the graph and
on the scheduler, not on the size of a chunk: so chunks of 8 rows and rank 8 show it, and what the scheduler costs per chunk.
Workers are threads of one process here; only large results are counted: the r x r sums.

    python tests/benchmarks/streaming_plan.py --chunks 3052 --workers 2 8
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import dask.array
import distributed
import numpy as np

import softlinalg.dask
from softlinalg import Gaussian

ROWS, RANK, COLUMNS = 8, 24, 3


def received(dask_worker: Any) -> list[tuple[int, int]]:
    """Number and bytes of what a worker got from others."""
    sizes = [size for entry in dask_worker.transfer_incoming_log for size in entry["keys"].values() if size]
    return [(1, int(size)) for size in sizes]


def simulate(chunks: int, workers: int) -> None:
    n = ROWS * chunks
    state = 8 * RANK * RANK  # bytes of the largest part of a sum
    x = dask.array.random.default_rng(0).normal(size=(n, COLUMNS), chunks=(ROWS, COLUMNS))
    landmarks = np.random.default_rng(1).normal(size=(RANK, COLUMNS))
    with (
        distributed.LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        start, cpu = time.perf_counter(), time.process_time()
        softlinalg.dask.nystrom(x, Gaussian(1.0), landmarks=landmarks, sample=np.asarray(landmarks), rng=0, chunk_size=ROWS, client=client)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        got = [item for items in client.run(received).values() for item in items]
    moved = [size for _, size in got if size >= state]
    print(
        f"{chunks} chunks, {workers} workers: {len(moved)} sums between workers, {len(moved) / (chunks - 1):.3f} for each of the "
        f"{chunks - 1} additions; {1e3 * cpu / chunks:.2f} ms of processor time for each chunk, all told; {seconds:.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=3052)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 8])
    a = parser.parse_args()
    for workers in a.workers:
        simulate(a.chunks, workers)
    print(f"dask {dask.__version__}, softlinalg {softlinalg.__version__}")


if __name__ == "__main__":
    main()
