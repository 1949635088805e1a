"""Semantic segmentation: UperNet of transformers on the maps of a softmax-free backbone, from nothing to shapes in some minutes.

Pictures are made here, so that every pixel's class is known: discs, squares and triangles in front of stripes, under noise, covering one
another. Each kind has a colour that it mostly comes near to, and that others come near to at times. Four fifths of the pixels are
background and three in a hundred are in triangles, which equal weights leave unlearned for hundreds of steps: the classes have weights
by their rarity. The backbone is a small `SoftBackbone`, which UperNet takes as any other through its configuration. The picture
shows the mean intersection over union on pictures that were not trained on, and what the network sees in four of them.

    python examples/segmentation.py [--steps 600] [--output segmentation.png] [--quick]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from torch import Tensor
from tqdm import tqdm
from transformers import UperNetConfig, UperNetForSemanticSegmentation

from softlinalg.torch.huggingface import SoftConfig

COLORS = np.array([[0.75, 0.35, 0.3], [0.3, 0.7, 0.35], [0.3, 0.4, 0.75]])
"""Of discs, squares and triangles, in the mean."""
SHOWN = ("#cccccc", "tab:blue", "tab:orange", "tab:green")
"""What each class is drawn in."""
CLASSES = ("background", "disc", "square", "triangle")


# ----------------------------------------------------------------------------------------------------- data
def inside(shape: int, rows: np.ndarray, columns: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Pixels of a shape of random size, place and direction."""
    side, angle = len(rows), rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(0.12, 0.25) * side
    y, x = rows - rng.uniform(radius, side - radius), columns - rng.uniform(radius, side - radius)
    u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    if shape == 1:
        return u**2 + v**2 < radius**2
    if shape == 2:
        return np.maximum(abs(u), abs(v)) < 0.85 * radius
    return (v > -radius / 2) & (np.sqrt(3) * abs(u) + v < radius)


def picture(side: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (3, side, side) and the class of each pixel (side, side): one to four shapes, the later in front."""
    rows, columns = np.mgrid[:side, :side].astype(float)
    wave = np.sin((rows * rng.normal() + columns * rng.normal()) * 8 / side)
    image = rng.uniform(0, 1, 3)[:, None, None] + 0.2 * wave
    classes = np.zeros((side, side), dtype=np.int64)
    for _ in range(rng.integers(1, 5)):
        shape = int(rng.integers(1, 4))
        covered = inside(shape, rows, columns, rng)
        classes[covered] = shape
        image = np.where(covered, rng.normal(COLORS[shape - 1], 0.15)[:, None, None], image)
    return (image + 0.1 * rng.normal(size=image.shape)).astype(np.float32), classes


def pictures(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, side, side) and classes (count, side, side)."""
    rng = np.random.default_rng(seed)
    images, classes = zip(*(picture(side, rng) for _ in range(count)), strict=True)
    return torch.from_numpy(np.stack(images)), torch.from_numpy(np.stack(classes))


def rarity(classes: Tensor) -> Tensor:
    """Weight of each class, one over the root of its share of the pixels: with equal weights nothing is gained by rare classes early on."""
    shares = torch.bincount(classes.flatten(), minlength=len(CLASSES)).double() / classes.numel()
    return shares.clamp_min(1e-3).rsqrt().float()


# ---------------------------------------------------------------------------------------------------- model
def network(side: int) -> UperNetForSemanticSegmentation:
    """UperNet on a backbone of four blocks with 16 landmarks for each head."""
    backbone = SoftConfig(
        dims=[32, 64, 96, 96],
        heads=[1, 2, 3, 3],
        depths=[1, 1, 1, 1],
        image_size=side,
        attention={"landmarks": 16},
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(backbone_config=backbone, hidden_size=48, pool_scales=[1, 2], use_auxiliary_head=False, num_labels=len(CLASSES))
    return UperNetForSemanticSegmentation(config)


@torch.no_grad()
def seen(model: UperNetForSemanticSegmentation, images: Tensor) -> Tensor:
    """The likeliest class of each pixel."""
    model.eval()
    found = torch.cat([model(part).logits.argmax(1) for part in images.split(16)])
    model.train()
    return found


def overlaps(found: Tensor, classes: Tensor) -> list[float]:
    """Intersection over union of each class."""
    pairs = torch.bincount((len(CLASSES) * classes + found).flatten(), minlength=len(CLASSES) ** 2).reshape(len(CLASSES), -1).double()
    both = pairs.diagonal()
    return (both / (pairs.sum(0) + pairs.sum(1) - both).clamp_min(1)).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--side", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("segmentation.png"))
    parser.add_argument("--quick", action="store_true", help="3 steps on few pictures: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.batch = 3, 4
    every = max(1, options.steps // 16)
    test_images, test_classes = pictures(8 if options.quick else 100, options.side, options.seed + 10_000)
    torch.manual_seed(options.seed)
    model = network(options.side).train()
    count = sum(parameter.numel() for parameter in model.parameters())
    print(f"{count:,} parameters, of these {sum(parameter.numel() for parameter in model.backbone.parameters()):,} in the backbone")
    weight = rarity(pictures(16 if options.quick else 200, options.side, options.seed + 20_000)[1])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=options.steps + 1)
    curve: list[tuple[int, list[float]]] = [(0, overlaps(seen(model, test_images), test_classes))]
    start, worked = time.perf_counter(), time.process_time()
    bar = tqdm(range(1, options.steps + 1), desc="step")
    for step in bar:
        images, classes = pictures(options.batch, options.side, options.seed + step)  # new ones in each step
        loss = F.cross_entropy(model(images).logits, classes, weight=weight)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if step % every == 0 or step == options.steps:
            curve.append((step, overlaps(seen(model, test_images), test_classes)))
            bar.set_postfix(loss=f"{loss.item():.3f}", overlap=f"{np.mean(curve[-1][1]):.3f}")
    each = ", ".join(f"{name} {100 * value:.1f} %" for name, value in zip(CLASSES, curve[-1][1], strict=True))
    print(f"mean intersection over union after {options.steps} steps: {100 * np.mean(curve[-1][1]):.1f} % ({each})")
    print(f"{time.perf_counter() - start:.0f} s, {time.process_time() - worked:.0f} s of processor time")
    draw(curve, test_images[:4], test_classes[:4], seen(model, test_images[:4]), options.output)
    print(f"picture: {options.output}")


def draw(curve: list[tuple[int, list[float]]], images: Tensor, classes: Tensor, found: Tensor, output: Path) -> None:
    """The curve on the left; images, truth and prediction on the right."""
    figure = plt.figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.1))
    axis = left.subplots()
    steps = [step for step, _ in curve]
    for i, name in enumerate(CLASSES):
        axis.plot(steps, [values[i] for _, values in curve], color=SHOWN[i], label=name)
    axis.plot(steps, [np.mean(values) for _, values in curve], "ko-", label="mean")
    axis.set(xlabel="step", ylabel="intersection over union", ylim=(0, 1), title="Pictures that were not trained on")
    axis.legend(loc="lower right")
    axes = right.subplots(3, len(images))
    colors = ListedColormap(SHOWN)
    for column in range(len(images)):
        axes[0, column].imshow(images[column].permute(1, 2, 0).clamp(0, 1))
        for row, values in ((1, classes), (2, found)):
            axes[row, column].imshow(values[column], cmap=colors, vmin=0, vmax=len(CLASSES) - 1, interpolation="nearest")
    for axis, title in zip(axes[:, 0], ("picture", "truth", "network"), strict=True):
        axis.set_ylabel(title)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.savefig(output, dpi=110)


if __name__ == "__main__":
    main()
