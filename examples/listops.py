"""Classify long sequences: ListOps of up to 2,000 tokens, softmax-free attention beside softmax attention of equal size.

An expression such as [MAX 4 [MIN 2 3 ] [SM 5 9 ] 0 ] has a digit as its value; the model reads its tokens and answers. Expressions
are made here by the rules of the Long Range Arena (Tay et al., 2021; operators MIN, MAX, MED and the sum modulo 10 of Nangia and Bowman,
2018). Both models are transformers of equal width and depth that answer at the first token, and train on the same batches: first on
expressions of up to 250 tokens, where a step costs little, then on long ones. The first operator alone says much about the value: the
share of answers that it gives is printed as well.

    python examples/listops.py                                    # minutes
    python examples/listops.py --short-steps 5000 --steps 5000    # hours: better
    python examples/listops.py --quick                            # seconds: does it run?
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from softlinalg.torch import SoftBlock

OPERATORS = ("MIN", "MAX", "MED", "SM")
VOCABULARY = {word: number for number, word in enumerate(("pad", "]", *(f"[{name}" for name in OPERATORS), *map(str, range(10))))}


# ----------------------------------------------------------------------------------------------------- data
def value_of(operator: str, arguments: list[int]) -> int:
    """The value of an operator."""
    if operator == "MED":
        return int(statistics.median(arguments))
    return {"MIN": min, "MAX": max, "SM": lambda numbers: sum(numbers) % 10}[operator](arguments)


def operation(rng: random.Random, tokens: list[str], longest: int, depth: int = 10) -> int:
    """Append an operator of two to ten arguments, a quarter of them operators again, and return its value.

    Nested up to `depth`. It ends early, with another value, where there are more than `longest` tokens.
    """
    operator, values = rng.choice(OPERATORS), []
    tokens.append(f"[{operator}")
    for _ in range(rng.randint(2, 10)):
        if depth > 1 and rng.random() < 0.25:
            values.append(operation(rng, tokens, longest, depth - 1))
        else:
            values.append(rng.randrange(10))
            tokens.append(str(values[-1]))
        if len(tokens) > longest:
            break
    tokens.append("]")
    return value_of(operator, values)


def expressions(count: int, shortest: int, longest: int, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Token numbers (count, tokens of the longest), padded with zeros, and values (count,)."""
    rows: list[Tensor] = []
    values: list[int] = []
    while len(rows) < count:
        words: list[str] = []
        value = operation(rng, words, longest)
        if shortest <= len(words) <= longest:
            rows.append(torch.tensor([VOCABULARY[word] for word in words]))
            values.append(value)
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), torch.tensor(values)


def by_operator(tokens: Tensor, values: Tensor, test_tokens: Tensor, test_values: Tensor) -> float:
    """Share of test expressions whose value is the commonest one of their first operator among others."""
    counts = torch.zeros(len(VOCABULARY), 10)
    counts.index_put_((tokens[:, 0], values), torch.ones(len(values)), accumulate=True)
    return float((counts.argmax(1)[test_tokens[:, 0]] == test_values).double().mean())


# ---------------------------------------------------------------------------------------------------- models
class SoftmaxAttention(nn.Module):
    """Softmax attention with the signature of `SoftAttention`."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.into, self.out = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: None = None, *, key_padding_mask: Tensor) -> Tensor:
        """Tokens (batch, tokens, dim) to the same."""
        q, k, v = self.into(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=~key_padding_mask[:, None, None])
        return self.out(attended.transpose(1, 2).reshape(x.shape))


class Classifier(nn.Module):
    """Embedding, pre-norm blocks, a linear map of the first token."""

    def __init__(self, attention: str, length: int, dim: int = 64, depth: int = 2, landmarks: int = 64) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(len(VOCABULARY), dim), nn.Parameter(0.02 * torch.randn(length, dim))
        self.blocks = nn.ModuleList(SoftBlock(dim, 2, landmarks=landmarks, grid_dims=1, pre_norm=True, mlp_ratio=2) for _ in range(depth))
        if attention == "softmax":
            for block in self.blocks:
                block.mha = SoftmaxAttention(dim, 2)
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        """Token numbers (batch, length) to scores (batch, 10)."""
        absent = tokens == 0
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, key_padding_mask=absent)
        return self.head(self.norm(x[:, 0]))


def held_for_backward(model: nn.Module, tokens: Tensor) -> int:
    """Bytes that a forward pass keeps for its backward pass, each storage once."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens)
    return sum(kept.values())


def accuracy(model: nn.Module, tokens: Tensor, values: Tensor, batch: int) -> float:
    """Share of right answers."""
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(part).argmax(-1) for part in tokens.split(batch)])
    model.train()
    return float((found == values).double().mean())


def step(model: nn.Module, tokens: Tensor, values: Tensor, optimizer: torch.optim.Optimizer | None = None) -> tuple[float, float]:
    """Loss and seconds of a step."""
    start = time.perf_counter()
    loss = F.cross_entropy(model(tokens), values)
    model.zero_grad()
    loss.backward()
    if optimizer is not None:
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return float(loss.detach()), time.perf_counter() - start


def peak_memory() -> float:
    """Largest memory of this process so far, in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # what resource tells on Linux has the memory of the process that started this one in it
        return int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def peak_of_step(name: str, batch: int, length: int) -> float:
    """Megabytes by which a step raises the peak memory of this process."""
    model, values = Classifier(name, length), torch.zeros(batch, dtype=torch.long)
    tokens = torch.randint(1, len(VOCABULARY), (batch, length))
    step(model, tokens[:, :64], values)  # what is loaded once
    before = peak_memory()
    step(model, tokens, values)
    return peak_memory() - before


def peak_of_process(name: str, batch: int, length: int) -> float:
    """The same of a process of its own."""
    command = [sys.executable, __file__, "--peak", name, "--batch", str(batch), "--length", str(length)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short-steps", type=int, default=400, help="on twice as many expressions of up to an eighth of the length")
    parser.add_argument("--steps", type=int, default=60, help="on expressions of a quarter of the length up to it")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=2e-3, help="largest rate of learning")
    parser.add_argument("--tests", type=int, default=500, help="expressions to test on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("listops"))
    parser.add_argument("--quick", action="store_true", help="4 steps on expressions of up to 200 tokens")
    parser.add_argument("--peak", choices=("soft", "softmax"), help="print the megabytes that a step of this model takes, and end")
    options = parser.parse_args()
    if options.peak:
        print(peak_of_step(options.peak, options.batch, options.length))
        return
    if options.quick:
        options.short_steps, options.steps, options.length, options.tests = 2, 2, 200, 20
    options.output.mkdir(parents=True, exist_ok=True)
    sizes = [(options.length // 16, options.length // 8, 2 * options.batch)] * options.short_steps
    sizes += [(options.length // 4, options.length, options.batch)] * options.steps
    test_tokens, test_values = expressions(options.tests, *sizes[-1][:2], random.Random(options.seed + 10_000))
    others = expressions(options.tests, *sizes[-1][:2], random.Random(options.seed + 20_000))
    common = float(torch.bincount(test_values, minlength=10).max() / len(test_values))
    known = by_operator(*others, test_tokens, test_values)
    tokens_each = float((test_tokens > 0).sum(1).double().mean())
    print(f"{len(test_values)} expressions of {sizes[-1][0]} to {sizes[-1][1]} tokens, {tokens_each:.0f} in the mean")
    print(f"always the commonest value: {100 * common:.1f} % right; the commonest of the first operator: {100 * known:.1f} %")

    torch.manual_seed(options.seed)
    models = {name: Classifier(name, options.length) for name in ("soft", "softmax")}
    optimizers = {name: torch.optim.AdamW(model.parameters(), weight_decay=0.01) for name, model in models.items()}
    rates = [
        torch.optim.lr_scheduler.OneCycleLR(each, options.rate, total_steps=len(sizes) + 1, pct_start=0.1) for each in optimizers.values()
    ]
    losses: dict[str, list[float]] = {name: [] for name in models}
    rng = random.Random(options.seed)
    for number, (shortest, longest, batch) in enumerate(bar := tqdm(sizes, desc="step")):
        tokens, values = expressions(batch, shortest, longest, rng)  # new ones in each step
        for name in sorted(models, reverse=number % 2 == 1):
            losses[name].append(step(models[name], tokens, values, optimizers[name])[0])
        for rate in rates:
            rate.step()
        bar.set_postfix({name: f"{statistics.mean(each[-50:]):.3f}" for name, each in losses.items()})

    tokens = torch.randint(1, len(VOCABULARY), (options.batch, options.length), generator=torch.Generator().manual_seed(0))
    values = torch.zeros(options.batch, dtype=torch.long)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(2 if options.quick else 7):  # neither always goes first; the first turn is not counted
        for name in sorted(models, reverse=turn % 2 == 1):
            seconds[name].append(step(models[name], tokens, values)[1])
    results = {}
    for name, model in models.items():
        shown = results[name] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "accuracy": accuracy(model, test_tokens, test_values, options.batch),
            "seconds_of_steps": seconds[name][1:],
            "megabytes_for_backward": held_for_backward(model, tokens) / 1e6,
            "peak_megabytes": (peak_of_step if options.quick else peak_of_process)(name, options.batch, options.length),
        }
        print(
            f"{name}: {shown['parameters']:,} parameters, {100 * shown['accuracy']:.1f} % right; "
            f"{options.batch} x {options.length} tokens: {statistics.median(seconds[name][1:]):.3f} s a step, "
            f"{shown['megabytes_for_backward']:.0f} MB kept for backward, {shown['peak_megabytes']:.0f} MB more at the peak"
        )
    ratios = [b / a for a, b in zip(seconds["soft"][1:], seconds["softmax"][1:], strict=True)]
    print(f"softmax takes {statistics.median(ratios):.2f} times as long ({min(ratios):.2f}-{max(ratios):.2f})")
    results |= {"commonest": common, "commonest_of_first_operator": known}
    (options.output / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")

    lengths = [length for length in (250, 500, 1000, 2000, 4000, 8000) if length <= 4 * options.length]
    draw(losses, options.short_steps, lengths, forward_times(lengths), options.output / "listops.png")
    print(f"picture: {options.output / 'listops.png'}")


def forward_times(lengths: list[int]) -> dict[str, list[float]]:
    """Least milliseconds of three forward passes of one sequence, the models in turn."""
    curves: dict[str, list[float]] = {"soft": [], "softmax": []}
    models = {name: Classifier(name, max(lengths)) for name in curves}
    for length in tqdm(lengths, desc="length"):
        tokens = torch.randint(1, len(VOCABULARY), (1, length))
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(3):
            for name, model in models.items():
                start = time.perf_counter()
                with torch.no_grad():
                    model(tokens)
                times[name].append(time.perf_counter() - start)
        for name in models:
            curves[name].append(1000 * min(times[name]))
    return curves


def draw(losses: dict[str, list[float]], short: int, lengths: list[int], curves: dict[str, list[float]], output: Path) -> None:
    """Losses on the left, times on the right."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    width = max(1, min(30, len(losses["soft"]) // 4))
    for name in losses:
        axes[0].plot(np.arange(width, len(losses[name]) + 1), np.convolve(losses[name], np.ones(width) / width, mode="valid"), label=name)
        axes[1].loglog(lengths, curves[name], "o-", label=name)
    axes[0].axvline(short, color="tab:gray", linestyle=":", label="long expressions from here on")
    axes[0].set(xlabel="step", ylabel=f"cross entropy, mean of {width} steps", title="ListOps")
    axes[1].set(xlabel="tokens", ylabel="forward [ms]", title="One sequence")
    axes[1].set_xticks(lengths, [str(length) for length in lengths])
    axes[1].minorticks_off()
    for axis in axes:
        axis.legend()
    figure.savefig(output, dpi=100)


if __name__ == "__main__":
    main()
