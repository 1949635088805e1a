"""Where the time of a training step goes: the costliest operations of one forward and backward pass of a backbone, on the CPU.

    python tests/benchmarks/training_step.py [--model soft_tiny] [--size 224] [--batch 4] [--threads 1]

PyTorch's profiler counts the time of each operation without that of the operations it calls. Operations are gathered by what they are
for: convolutions and linear maps (products), the attention of this package (its autograd functions and all that they call), layer norms,
activations, copies. The attention is timed as a whole, by its autograd functions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

import softlinalg.torch
from softlinalg.torch import landmark_attention

KINDS = {
    "convolution": ("aten::convolution", "aten::mkldnn", "aten::_convolution", "aten::thnn_conv", "aten::conv", "aten::slow_conv"),
    "linear maps": ("aten::addmm", "aten::mm", "aten::linear", "aten::matmul"),
    "layer norm": ("aten::native_layer_norm",),
    "activation": ("aten::gelu", "aten::relu"),
    "batch norm": ("aten::native_batch_norm", "aten::batch_norm"),
    "copies": ("aten::copy_", "aten::cat", "aten::clone", "aten::contiguous"),
    "sums and additions": ("aten::add", "aten::sum", "aten::mul", "aten::div"),
}


def kind(name: str) -> str:
    """What an operation is for."""
    return next((label for label, starts in KINDS.items() if name.startswith(starts)), "other: " + name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="soft_tiny")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = getattr(softlinalg.torch, options.model)()
    images = torch.randn(options.batch, 3, options.size, options.size)

    real: Callable[..., Any] = landmark_attention.soft_attention

    def labelled(*arguments: Any, **settings: Any) -> Any:
        with record_function("attention, forward"):
            return real(*arguments, **settings)

    landmark_attention.soft_attention = labelled

    def step() -> None:
        model(images).sum().backward()
        model.zero_grad(set_to_none=True)

    step()
    begin = time.perf_counter()
    step()
    plain = time.perf_counter() - begin
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    inside = 0.0
    totals: dict[str, float] = {}
    for event in profiler.events():
        # Of what is inside the attention only the whole counts.
        ancestor = event.cpu_parent
        while ancestor is not None and not is_ours(ancestor.name):
            ancestor = ancestor.cpu_parent
        if ancestor is not None:
            continue
        if is_ours(event.name):
            label, seconds = ours(event.name), event.cpu_time_total / 1e6
            inside += seconds
        else:
            label, seconds = kind(event.name), event.self_cpu_time_total / 1e6
        totals[label] = totals.get(label, 0.0) + seconds
    whole = sum(totals.values())
    print(
        f"{options.model} at {options.size}, batch {options.batch}, {options.threads} thread(s): {plain:.2f} s a step, {whole:.2f} s profiled"
    )
    print(f"attention of this package: {100 * inside / whole:.1f} %\n\n| operation | share |\n|-|-|")
    for label, seconds in sorted(totals.items(), key=lambda entry: -entry[1])[:12]:
        print(f"| {label} | {100 * seconds / whole:.1f} % |")


OURS = ("attention, forward", "_AttendBackward", "_RidgeInverseBackward", "_LandmarkKernelBackward")


def is_ours(name: str) -> bool:
    """Is this a whole part of the attention?"""
    return name.startswith(OURS)


def ours(name: str) -> str:
    """Its name in the table."""
    return "attention, forward (inverse included)" if name == OURS[0] else "attention, backward"


if __name__ == "__main__":
    main()
