"""Classify long sequences: ListOps of up to 2,000 tokens, softmax-free attention beside softmax attention of equal size.

An expression such as [MAX 4 [MIN 2 3 ] [SM 5 9 ] 0 ] has a digit as its value; the model reads its tokens and answers. Expressions
are made here by the rules of the Long Range Arena (Tay et al., 2021; operators MIN, MAX, MED and the sum modulo 10 of Nangia and Bowman,
2018). Both models are transformers of equal width and depth, train on the same batches for the same number of steps and are timed step
by step in turns; minutes of training give an accuracy far from what is known to be possible, for both.

    python examples/listops.py                      # 80 steps
    python examples/listops.py --steps 2000         # longer: better
    python examples/listops.py --quick              # seconds: does it run?
"""

from __future__ import annotations

import argparse
import json
import statistics
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
        return int(np.median(arguments))
    return {"MIN": min, "MAX": max, "SM": lambda numbers: sum(numbers) % 10}[operator](arguments)


def expression(rng: np.random.Generator, depth: int, room: int) -> tuple[list[str], int]:
    """Tokens, at most `room`, and the value: a digit, or an operator of two to ten arguments nested up to `depth`."""
    if depth == 0 or room < 4 or rng.random() < 0.25:
        digit = int(rng.integers(10))
        return [str(digit)], digit
    operator = OPERATORS[int(rng.integers(4))]
    tokens, arguments = [f"[{operator}"], []
    for _ in range(int(rng.integers(2, 11))):
        left = room - len(tokens) - 1
        if left < 1:
            break
        part, value = expression(rng, depth - 1, left)
        tokens += part
        arguments.append(value)
    return [*tokens, "]"], value_of(operator, arguments)


def examples(count: int, shortest: int, longest: int, seed: int) -> tuple[Tensor, Tensor]:
    """Token numbers (count, longest), padded with zeros, and values (count,)."""
    rng = np.random.default_rng(seed)
    tokens, values = torch.zeros(count, longest, dtype=torch.long), torch.zeros(count, dtype=torch.long)
    done = 0
    while done < count:
        words, value = expression(rng, 10, int(rng.integers(shortest, longest + 1)))
        if len(words) >= shortest:
            tokens[done, : len(words)] = torch.tensor([VOCABULARY[word] for word in words])
            values[done] = value
            done += 1
    return tokens, values


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
    """Embedding, pre-norm blocks, the mean of all tokens, a linear map."""

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
        present = (~absent)[..., None].to(x.dtype)
        return self.head((self.norm(x) * present).sum(1) / present.sum(1))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2000)
    parser.add_argument("--train", type=int, default=4000, help="expressions to train on; 500 others test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("listops"))
    parser.add_argument("--quick", action="store_true", help="3 steps on expressions of up to 200 tokens")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.length, options.train = 3, 200, 40
    options.output.mkdir(parents=True, exist_ok=True)
    shortest = options.length // 4
    tokens, values = examples(options.train, shortest, options.length, options.seed)
    test_tokens, test_values = examples(min(500, options.train), shortest, options.length, options.seed + 10_000)
    common = torch.bincount(test_values, minlength=10).max() / len(test_values)
    print(f"{len(tokens)} expressions of {shortest} to {options.length} tokens; the commonest value is {100 * common:.1f} % of the test")

    torch.manual_seed(options.seed)
    models = {name: Classifier(name, options.length) for name in ("soft", "softmax")}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01) for name, model in models.items()}
    losses: dict[str, list[float]] = {name: [] for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    order = torch.Generator().manual_seed(options.seed)
    for step in tqdm(range(options.steps), desc="step"):
        rows = torch.randint(len(tokens), (options.batch,), generator=order)
        for name in sorted(models, reverse=step % 2 == 1):  # in turns, so that neither always goes first
            start = time.perf_counter()
            loss = F.cross_entropy(models[name](tokens[rows]), values[rows])
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - start)
            losses[name].append(float(loss.detach()))
    results = {}
    for name, model in models.items():
        results[name] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "accuracy": accuracy(model, test_tokens, test_values, options.batch),
            "median_seconds_per_step": statistics.median(seconds[name]),
            "megabytes_for_backward": held_for_backward(model, tokens[: options.batch]) / 1e6,
        }
        shown = results[name]
        print(
            f"{name}: {shown['parameters']:,} parameters, {100 * shown['accuracy']:.1f} % right, "
            f"{shown['median_seconds_per_step']:.3f} s a step, {shown['megabytes_for_backward']:.0f} MB kept for backward"
        )
    (options.output / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")

    lengths = [length for length in (250, 500, 1000, 2000, 4000, 8000) if length <= 4 * options.length]
    curves: dict[str, list[float]] = {name: [] for name in models}
    torch.manual_seed(0)
    wide = {name: Classifier(name, max(lengths)) for name in models}
    for length in tqdm(lengths, desc="length"):
        rows = torch.randint(1, len(VOCABULARY), (1, length))
        for name, model in wide.items():
            times = []
            for _ in range(3):
                start = time.perf_counter()
                with torch.no_grad():
                    model(rows)
                times.append(time.perf_counter() - start)
            curves[name].append(1000 * min(times))

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    width = max(1, options.steps // 10)
    for name in models:
        axes[0].plot(np.convolve(losses[name], np.ones(width) / width, mode="valid"), label=name)
        axes[1].loglog(lengths, curves[name], "o-", label=name)
    axes[0].set(xlabel="step", ylabel=f"cross entropy, mean of {width}", title=f"ListOps, up to {options.length:,} tokens")
    axes[1].set(xlabel="tokens", ylabel="forward [ms]", title="One sequence")
    for axis in axes:
        axis.legend()
    figure.savefig(options.output / "listops.png", dpi=120)
    print(f"picture: {options.output / 'listops.png'}")


if __name__ == "__main__":
    main()
