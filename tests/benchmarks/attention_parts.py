"""Where the time of compiled attention goes, beside what its products and exponentials take alone.

float32, two heads of width 32, 49 landmarks, one thread, best and median of interleaved rounds, in milliseconds.

    python tests/benchmarks/attention_parts.py [--tokens 12544] [--rounds 25]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import torch

from softlinalg import _attention
from softlinalg._attention_blocks import Columns
from softlinalg._cli_bench_workloads import HEADS, LANDMARKS, WIDTH, Rates
from softlinalg.torch import autograd, cpu_kernels, soft_attention


def parts(n: int) -> dict[str, Callable[[], Any]]:
    """The steps of one call, and of its gradient, and the bare operations."""
    torch.manual_seed(0)
    q, v, grad = (torch.randn(1, n, HEADS, WIDTH).transpose(1, 2) for _ in range(3))
    landmarks, scale = torch.randn(1, HEADS, LANDMARKS, WIDTH), WIDTH**0.25
    kernels = cpu_kernels.load()
    assert kernels is not None, "there is no C++ compiler"
    settings = _attention.InverseSettings(is_kernel=True)
    w = autograd.landmark_kernel(landmarks, scale, settings)
    x = autograd.inverse_of(w, settings, "exact")
    columns = Columns(landmarks, 1 / scale, xp=xp)
    saved = cpu_kernels.attend(kernels, q, None, v, x, columns, keep=True)

    job = cpu_kernels._Job(kernels, q, None, v, columns)
    job.work.features_apart = job.work.key_features_apart = LANDMARKS * kernels.padded(n, q.dtype)
    moment = torch.zeros(HEADS, LANDMARKS, WIDTH, dtype=torch.float64)
    dw = torch.zeros(HEADS, LANDMARKS, WIDTH + 1, dtype=torch.float64)
    job.work.grad_counts = job.work.v_counts = 1
    small = torch.zeros(HEADS, LANDMARKS, WIDTH)
    job.point(features=saved.features, key_features=saved.features, moment=moment, core=small, x=x.double(), dmoment=small)
    job.point(rows=columns.rows[..., :WIDTH])
    job.give(out=torch.empty_like(q), grad=grad, dq=torch.empty_like(q), dv=torch.empty_like(v))

    def step(kind: int, total: torch.Tensor | None = None) -> Callable[[], None]:
        # `total` stays alive with the function: what is compiled knows its address only.
        return lambda: job.run(1, lambda *_: [(kind, head, 0, n, None if total is None else total.data_ptr()) for head in range(HEADS)])

    a, b, c, d = torch.randn(n, WIDTH), torch.randn(WIDTH, LANDMARKS), torch.randn(n, LANDMARKS), torch.randn(LANDMARKS, WIDTH)
    features, tokens, sums = torch.empty(n, LANDMARKS), torch.empty(n, WIDTH), torch.empty(LANDMARKS, WIDTH)

    def bare() -> None:
        for _ in range(HEADS):
            torch.matmul(a, b, out=features)
            torch.matmul(c.mT, a, out=sums)
            torch.matmul(c, d, out=tokens)

    return {
        "soft_attention": lambda: soft_attention(q, v, landmarks),
        "landmark matrix": lambda: autograd.landmark_kernel(landmarks, scale, settings),
        "certified inverse": lambda: autograd.inverse_of(w, settings, "exact"),
        "columns and their check": lambda: Columns(landmarks, 1 / scale, xp=xp).near_landmarks(),
        "features and moment": step(cpu_kernels._GATHER, moment),
        "X times the moment": step(cpu_kernels._JOIN),
        "output": step(cpu_kernels._SCATTER),
        "backward: C^T grad": step(cpu_kernels._GATHER_GRAD, moment),
        "backward: the rest": step(cpu_kernels._PULL, dw),
        "the three products of forward in PyTorch": bare,
        "the exponentials in PyTorch": lambda: [features.zero_().exp2_() for _ in range(HEADS)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=12544)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        calls = parts(options.tokens)
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(options.rounds):
            for name, call in calls.items():
                begin = time.perf_counter()
                call()
                times[name].append(1e3 * (time.perf_counter() - begin))
    for name, found in times.items():
        print(f"{name:42} best {min(found):7.2f}   median {statistics.median(found):7.2f}")
    flops = Rates.measure().flops["float32"]
    print(
        f"large products: {flops / 1e9:.0f} Gflop/s; forward takes {1e3 * 6 * HEADS * options.tokens * LANDMARKS * WIDTH / flops:.2f} ms at it"
    )


if __name__ == "__main__":
    main()
