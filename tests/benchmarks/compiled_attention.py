"""Attention in a graph of torch.compile beside the same in eager code, on one thread: time to compile, and medians of interleaved rounds.

python tests/benchmarks/compiled_attention.py [--tokens 12544] [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from softlinalg.torch import soft_attention


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=12_544)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    q, v = (scale * torch.randn(1, options.tokens, 2, 32).transpose(1, 2) for scale in (0.3, 1.0))
    given = (q, v, q[:, :, :: options.tokens // 49][:, :, :49].clone())
    recorded = [x.clone().requires_grad_() for x in given]
    grad = torch.randn(q.shape)
    compiled = torch.compile(lambda *x: soft_attention(*x), fullgraph=True)

    def train(attention: Callable[..., Tensor]) -> None:
        torch.autograd.grad(attention(*recorded), recorded, grad)

    print(f"compiled in {seconds(lambda: compiled(*given)):.1f} s forward, {seconds(lambda: train(compiled)):.1f} s with backward")
    contestants = {
        "eager, forward": lambda: soft_attention(*given),
        "compiled, forward": lambda: compiled(*given),
        "eager, forward and backward": lambda: train(soft_attention),
        "compiled, forward and backward": lambda: train(compiled),
    }
    times = {name: [seconds(call)] for name, call in contestants.items()}
    for _ in range(options.rounds):
        for name, call in contestants.items():
            times[name].append(seconds(call))
    for name, found in times.items():
        print(f"{name:32} {1e3 * statistics.median(found[1:]):8.2f} ms")


if __name__ == "__main__":
    main()
