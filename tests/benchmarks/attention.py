"""Time of softmax-free attention against torch's scaled_dot_product_attention and others, and how it grows with the tokens.

float32, two heads of width 32, 49 landmarks, the inverse included. Each round runs every contestant once, in random order; the
figures are medians over rounds of ratios within a round, with their quartiles. "naive formula" is written down as published
(distances by three terms, 20 Newton-Raphson steps) with PyTorch's own derivatives; packages that are not installed are left out.

    python tests/benchmarks/attention.py [--tokens 12544] [--rounds 9] [--threads 1] [--forward-only] [--json FILE]
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
import torch
from torch import Tensor

from softlinalg._cli_bench_workloads import HEADS, LANDMARKS, OURS, WIDTH, attention_contestants
from softlinalg.torch import cpu_kernels, soft_attention


def contestants(q: Tensor, v: Tensor, landmarks: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Functions that give an output for the same tokens: those of `softlinalg bench`, and other settings of ours."""

    def uncompiled() -> Tensor:
        compiled, cpu_kernels.load = cpu_kernels.load, lambda: None
        try:
            return soft_attention(q, v, landmarks)
        finally:
            cpu_kernels.load = compiled

    return {
        **attention_contestants(q, v, landmarks),
        "PyTorch's operations": uncompiled,
        "published inverse": lambda: soft_attention(q, v, landmarks, inverse="published", gradient="published"),
        "symmetric normalization": lambda: soft_attention(q, v, landmarks, normalization="symmetric"),
    }


def backward(function: Callable[[], Tensor], inputs: list[Tensor], cotangent: Tensor) -> Callable[[], Any]:
    """Forward and backward."""

    def run() -> Any:
        out = function()
        for x in inputs:
            x.grad = None
        return out.backward(cotangent.reshape(out.shape))

    return run


def rounds(functions: dict[str, Callable[[], Any]], count: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, in random order; one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(count + 1):
        for name in rng.permutation(list(functions)):
            begin = time.perf_counter()
            functions[name]()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def table(title: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Print medians and ratios; return them."""
    print(f"\n{title}\n{'':36} {'median ms':>10} {'best ms':>9}   times as long as {OURS} (quartiles)")
    rows = {}
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, seconds[OURS], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        rows[name] = {"median_s": statistics.median(times), "best_s": min(times), "ratio": middle, "quartiles": [low, high]}
        print(f"{name:36} {1e3 * rows[name]['median_s']:10.2f} {1e3 * min(times):9.2f}   {middle:8.2f}  ({low:.2f} to {high:.2f})")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=12544)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--forward-only", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)

    q, v = (torch.randn(1, options.tokens, HEADS, WIDTH).transpose(1, 2).requires_grad_() for _ in range(2))
    landmarks = torch.randn(1, HEADS, LANDMARKS, WIDTH).requires_grad_()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {options.threads} thread(s), {options.tokens} tokens")
    with torch.no_grad():
        found = {"forward": table("forward", rounds(contestants(q, v, landmarks), options.rounds, rng))}
    if not options.forward_only:
        cotangent = torch.randn(1, HEADS, options.tokens, WIDTH)
        both = {name: backward(f, [q, v, landmarks], cotangent) for name, f in contestants(q, v, landmarks).items()}
        found["forward and backward"] = table("forward and backward", rounds(both, options.rounds, rng))
    if options.json:
        options.json.write_text(json.dumps({"tokens": options.tokens, "threads": options.threads, **found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
