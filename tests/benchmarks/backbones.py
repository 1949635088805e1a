"""Cost of a backbone against the size of the image: seconds and bytes for each token of the first stage.

Sizes are visited in random order in every round, with as many pixels in each run (a batch of small images, or one large image), and the
growth is the ratio to the smallest size within a round. Memory is the peak of a process of its own, less what it held before.

    python tests/benchmarks/backbones.py [--model soft_tiny] [--sizes 224 448 896 1792] [--rounds 3] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

import softlinalg.torch

MODES = ("forward", "forward and backward")


def run(model: torch.nn.Module, images: torch.Tensor, mode: str) -> float:
    """Seconds of one pass."""
    start = time.perf_counter()
    if mode == "forward":
        with torch.no_grad():
            model(images)
    else:
        model(images).sum().backward()
        model.zero_grad(set_to_none=True)
    return time.perf_counter() - start


def kilobytes(name: str) -> int:
    """An entry of this process's status, in KiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1))


def peak(model_name: str, size: int, batch: int, mode: str) -> None:
    """Print the bytes per token that a pass adds to what this process holds."""
    torch.set_num_threads(1)
    model = getattr(softlinalg.torch, model_name)()
    run(model, torch.randn(1, 3, 64, 64), mode)
    images = torch.randn(batch, 3, size, size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    run(model, images, mode)
    print(1024 * (kilobytes("VmHWM") - before) / (batch * (size / 4) ** 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="soft_tiny")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448, 896, 1792])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak", nargs=3, metavar=("SIZE", "BATCH", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        peak(options.model, int(options.peak[0]), int(options.peak[1]), options.peak[2])
        return
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model = getattr(softlinalg.torch, options.model)()
    pixels = max(options.sizes) ** 2
    batches = {size: max(1, pixels // size**2) for size in options.sizes}
    tokens = {size: batches[size] * (size / 4) ** 2 for size in options.sizes}
    seconds: dict[tuple[int, str], list[float]] = {(size, mode): [] for size in options.sizes for mode in MODES}
    run(model, torch.randn(1, 3, 224, 224), MODES[1])
    for _ in range(options.rounds):
        for size in rng.permutation(options.sizes).tolist():
            images = torch.randn(batches[size], 3, size, size)
            for mode in MODES:
                seconds[size, mode].append(run(model, images, mode) / tokens[size])
                print(f"{size}, {mode}: {1e6 * seconds[size, mode][-1]:.1f} us per token", file=sys.stderr, flush=True)
    memory = {}
    for size in options.sizes:
        for mode in MODES:
            call = [sys.executable, __file__, "--model", options.model, "--peak", str(size), str(batches[size]), mode]
            memory[size, mode] = float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    print(f"{platform.machine()}, torch {torch.__version__}, {options.threads} thread(s), {options.model}, {options.rounds} rounds\n")
    print("| image side | " + " | ".join(f"{mode}: us per token | growth (range) | bytes per token" for mode in MODES) + " |")
    print("|-" * (1 + 3 * len(MODES)) + "|")
    smallest, rows = min(options.sizes), []
    for size in options.sizes:
        cells = [str(size)]
        row: dict[str, object] = {"size": size, "batch": batches[size]}
        for mode in MODES:
            times = seconds[size, mode]
            growth = [a / b for a, b in zip(times, seconds[smallest, mode], strict=True)]
            cells += [f"{1e6 * statistics.median(times):.1f}"]
            cells += [f"{statistics.median(growth):.2f} ({min(growth):.2f} to {max(growth):.2f})", f"{memory[size, mode]:,.0f}"]
            row[mode] = {"seconds_per_token": times, "bytes_per_token": memory[size, mode]}
        print("| " + " | ".join(cells) + " |")
        rows.append(row)
    if options.json:
        options.json.write_text(json.dumps({"model": options.model, "threads": options.threads, "rows": rows}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
