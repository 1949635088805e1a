"""Kernel principal components and spectral clustering of handwritten digits, without an n x n matrix.

The 1,797 digits of scikit-learn (8 x 8 pixels): a picture of the first two kernel principal components, and clusters found without
labels, scored against them beside scikit-learn's own, which compute all pairs.

    python examples/digits.py [--output digits.png] [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.cluster import SpectralClustering
from sklearn.datasets import load_digits
from sklearn.decomposition import KernelPCA
from sklearn.metrics import adjusted_rand_score
from tqdm import tqdm

from softlinalg.sklearn import NystromPCA, NystromSpectralClustering


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Result and seconds."""
    start = time.perf_counter()
    return function(), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("digits.png"))
    parser.add_argument("--length-scale", type=float, default=20.0, help="in grey values: distances between digits are 15 to 70")
    parser.add_argument("--quick", action="store_true", help="600 digits: does it run?")
    options = parser.parse_args()
    x, labels = load_digits(return_X_y=True)
    if options.quick:
        x, labels = x[:600], labels[:600]
    gamma = 1 / (2 * options.length_scale**2)
    contestants: dict[str, Callable[[], Any]] = {
        "principal components, softlinalg": lambda: NystromPCA(
            2, length_scale=options.length_scale, rank=200, random_state=0
        ).fit_transform(x),
        "principal components, scikit-learn": lambda: KernelPCA(2, kernel="rbf", gamma=gamma).fit_transform(x),
        "clusters, softlinalg": lambda: NystromSpectralClustering(
            10, length_scale=options.length_scale, rank=200, random_state=0
        ).fit_predict(x),
        "clusters, scikit-learn": lambda: SpectralClustering(10, gamma=gamma, random_state=0).fit_predict(x),
    }
    found = {name: timed(contestants[name]) for name in tqdm(contestants, desc="digits")}
    ours, theirs = (found[f"principal components, {name}"][0] for name in ("softlinalg", "scikit-learn"))
    # A principal component is one up to its sign.
    agreement = [abs(np.corrcoef(ours[:, i], theirs[:, i])[0, 1]) for i in range(2)]
    print(f"correlation with the exact kernel principal components: {agreement[0]:.5f}, {agreement[1]:.5f}")
    for name, (value, seconds) in found.items():
        score = f", adjusted Rand index {adjusted_rand_score(labels, value):.3f}" if name.startswith("clusters") else ""
        print(f"{name}: {seconds:.2f} s{score}")

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    for axis, colors, title in ((axes[0], labels, "by digit"), (axes[1], found["clusters, softlinalg"][0], "by cluster")):
        axis.scatter(*ours.T, c=colors, cmap="tab10", s=8)
        axis.set(
            title=f"Digits, colored {title}",
            xlabel="kernel principal component 1",
            ylabel="kernel principal component 2",
            xticks=[],
            yticks=[],
        )
    for digit in range(10):
        axes[0].annotate(str(digit), ours[labels == digit].mean(0), fontsize=14, fontweight="bold", ha="center", va="center")
    figure.savefig(options.output, dpi=120)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
