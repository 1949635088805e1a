"""One layer of attention over a million tokens on several processes: seconds and peak memory of each, forward and backward.

    python tests/benchmarks/parallel_tokens.py --ranks 2
    python tests/benchmarks/parallel_tokens.py --ranks 1      # the same sequence on one process

Every rank makes its part of the sequence alone, so that no process ever holds all of it. The sums that are printed are those of the
whole sequence: they tell that both runs computed the same.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from softlinalg.torch.landmarks import PoolLandmarks
from softlinalg.torch.parallel import sequence_parallel_attention

PARTS = 4
"""The sequence is made in so many parts, whatever the number of ranks."""


def resident() -> int:
    """Bytes that the process holds now."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


def tokens_of(rank: int, ranks: int, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The tokens of a rank."""
    batch, heads, tokens, width = shape
    own = range(rank * PARTS // ranks, (rank + 1) * PARTS // ranks)
    parts = [torch.randn(batch, heads, tokens // PARTS, width, generator=torch.Generator().manual_seed(seed + part)) for part in own]
    return torch.cat(parts, dim=2)


def run(rank: int, ranks: int, folder: str, tokens: int, heads: int, landmarks: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    try:
        shape = (1, heads, tokens, 32)
        q, v, weight = (tokens_of(rank, ranks, shape, seed) for seed in (0, 100, 200))
        q *= 0.5  # so that tokens have landmarks within reach
        q.requires_grad_(), v.requires_grad_()
        before = resident()
        dist.barrier()
        start = time.perf_counter()
        chosen = PoolLandmarks(landmarks // ranks)(q, (q.shape[2],))
        out = sequence_parallel_attention(q, v, chosen)
        dist.barrier()
        middle = time.perf_counter()
        out.backward(weight)
        dist.barrier()
        stop = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        sums = torch.stack([x.double().square().sum() for x in (out.detach(), q.grad, v.grad)])
        dist.all_reduce(sums)
        given = sum(x.numel() * x.element_size() for x in (q, v, weight))
        print(
            f"rank {rank} of {ranks}: {q.shape[2]:,} tokens, {heads} heads of 32, {landmarks} landmarks; forward {middle - start:.2f} s, "
            f"backward {stop - middle:.2f} s; {before / 1e6:.0f} MB before (of these {given / 1e6:.0f} MB arguments), "
            f"peak {peak / 1e6:.0f} MB, so {(peak - before) / 1e6:.0f} MB for output, gradients and features; "
            f"squares of output and gradients {', '.join(f'{x:.8g}' for x in sums.tolist())}",
            flush=True,
        )
    finally:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, choices=(1, 2, 4))
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--landmarks", type=int, default=50, help="on all ranks together")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = (arguments.ranks, folder, arguments.tokens, arguments.heads, arguments.landmarks)
        torch.multiprocessing.spawn(run, sizes, nprocs=arguments.ranks)


if __name__ == "__main__":
    main()
