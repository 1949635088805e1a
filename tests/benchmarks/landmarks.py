"""Trace error of the Nystrom approximation for every way of choosing landmarks, on four real data sets.

Features are standardised, constant columns dropped; the kernel is Gaussian with half the median distance as length scale
(digits: the median). Errors are computed here, in float64, from an eigendecomposition of k(L, L) with a relative cut-off, by
formulas of this file's own. Two settings:

* samples of 4,000 rows (digits: all 1,797), a new one per seed, rank 100 (protein also 400): relative trace error as a
  multiple of the optimal rank-k error, which is the tail of the eigenvalues of the sample's kernel;
* all rows and 500 landmarks: error as a multiple of that of randomly pivoted Cholesky over all rows.

    python tests/benchmarks/landmarks.py [--seeds 5] [--part samples|full|plot|all] [--update]

``--update`` puts the tables into docs/benchmarks/landmarks.md, between its marks, and the plot beside it. Data sets that are not in the folder
../shared/data beside the checkout are named and left out.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from softlinalg._kernels import Gaussian
from softlinalg._landmarks import refine_landmarks, select_landmarks
from softlinalg.errors import DuplicateLandmarkWarning

SHARED = Path(__file__).resolve().parents[3] / "shared"
DOCS = Path(__file__).resolve().parents[2] / "docs" / "benchmarks"
METHODS = ("uniform", "greedy", "leverage", "kmeans", "rpcholesky", "rpcholesky+lloyd")
SETS = ("digits", "protein", "bike", "fashion_mnist")
REFINED = "refined"


# ----------------------------------------------------------------------------------- data and reference errors
def read(name: str) -> np.ndarray:
    """Features of a data set, standardised, without constant columns."""
    if name == "digits":
        from sklearn.datasets import load_digits

        x = load_digits().data
    elif name == "fashion_mnist":
        x = np.load(SHARED / "data" / "fashion_mnist_10k.npz")["X"].astype(float)
    else:
        x = np.loadtxt(SHARED / "data" / f"{name}.csv.gz", delimiter=",")[:, :-1]
    x = x[:, np.ptp(x, axis=0) > 0]
    return (x - x.mean(axis=0)) / x.std(axis=0)


def available() -> dict[str, np.ndarray]:
    found = {}
    for name in SETS:
        try:
            found[name] = read(name)
        except (FileNotFoundError, ImportError) as error:
            print(f"left out: {name} ({error})", file=sys.stderr)
    return found


def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.sum(x**2, axis=1)[:, None] + np.sum(y**2, axis=1) - 2 * x @ y.T, 0)


def kernel_matrix(x: np.ndarray, y: np.ndarray, length_scale: float) -> np.ndarray:
    return np.exp(squares(x, y) / (-2 * length_scale**2))


def length_scale_of(name: str, x: np.ndarray, rng: np.random.Generator) -> float:
    """The median distance of 1,000 rows, halved but for digits."""
    rows = x[rng.choice(len(x), min(1000, len(x)), replace=False)]
    distances = np.sqrt(squares(rows, rows)[np.triu_indices(len(rows), 1)])
    return float(np.median(distances)) * (1.0 if name == "digits" else 0.5)


def trace_error(x: np.ndarray, landmarks: np.ndarray, length_scale: float) -> float:
    """Relative trace error of the Nystrom approximation."""
    values, vectors = np.linalg.eigh(kernel_matrix(landmarks, landmarks, length_scale))
    kept = values > 1e-13 * values[-1]
    whitening = vectors[:, kept] / np.sqrt(values[kept])
    explained = sum(
        float(np.sum((kernel_matrix(part, landmarks, length_scale) @ whitening) ** 2)) for part in np.array_split(x, -(-len(x) // 4000))
    )
    return 1 - explained / len(x)


def timed(work: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DuplicateLandmarkWarning)  # protein repeats rows; uniform landmarks then do too
        result = work()
    return result, time.perf_counter() - start


# ------------------------------------------------------------------------------------------------ measurements
Table = dict[str, list[tuple[float, float]]]


def on_sample(name: str, x: np.ndarray, ranks: list[int], seed: int, methods: tuple[str, ...]) -> dict[int, dict[str, tuple[float, float]]]:
    """Per rank and method: error as a multiple of the optimum, and seconds."""
    rng = np.random.default_rng(seed)
    x = x[rng.choice(len(x), min(4000, len(x)), replace=False)]
    length_scale = length_scale_of(name, x, rng)
    kernel = Gaussian(length_scale)
    values = np.linalg.eigvalsh(kernel_matrix(x, x, length_scale))
    result: dict[int, dict[str, tuple[float, float]]] = {}
    for rank in ranks:
        optimum = float(values[:-rank].sum()) / len(x)
        result[rank] = {}
        for method in methods:
            landmarks, seconds = timed(lambda m=method, r=rank: select_landmarks(x, r, method=m, kernel=kernel, rng=seed))
            result[rank][method] = trace_error(x, landmarks, length_scale) / optimum, seconds
        refined, seconds = timed(lambda start=landmarks: refine_landmarks(x, start, kernel))  # from the last method, the default
        result[rank][REFINED] = trace_error(x, refined, length_scale) / optimum, seconds
    return result


def on_all_rows(name: str, x: np.ndarray, count: int, seed: int) -> dict[str, tuple[float, float]]:
    """Per way of choosing: error as a multiple of that of RPCholesky, and seconds."""
    length_scale = length_scale_of(name, x, np.random.default_rng(seed))
    kernel = Gaussian(length_scale)
    ways: dict[str, dict[str, object]] = {method: {"method": method} for method in METHODS if method != "greedy"}
    ways["pivots of the sample alone"] = {"lloyd_steps": 0}
    ways["Lloyd over the sample"] = {"sample": min(20 * count, len(x))}
    ways["Lloyd over all rows"] = {"sample": len(x)}
    ways["10 Lloyd steps"] = {"lloyd_steps": 10}
    result = {}
    for way, options in ways.items():
        landmarks, seconds = timed(lambda o=options: select_landmarks(x, count, kernel=kernel, rng=seed, **o))
        result[way] = trace_error(x, landmarks, length_scale), seconds
        if way == "rpcholesky+lloyd":
            sample = min(20 * count, len(x))
            refined, seconds = timed(lambda start=landmarks, s=sample: refine_landmarks(x, start, kernel, max_steps=20, sample=s, rng=seed))
            result[REFINED] = trace_error(x, refined, length_scale), seconds
    reference = result["rpcholesky"][0]
    return {"absolute error of rpcholesky": (reference, 0.0)} | {
        way: (error / reference, seconds) for way, (error, seconds) in result.items()
    }


def collect(runs: list[dict[str, tuple[float, float]]]) -> Table:
    return {way: [run[way] for run in runs] for way in runs[0]}


def cell(values: list[tuple[float, float]], digits: int = 2) -> str:
    """Mean over seeds (largest), and the median of the seconds."""
    errors = [error for error, _ in values]
    return f"{np.mean(errors):.{digits}f} ({np.max(errors):.{digits}f}), {np.median([seconds for _, seconds in values]):.2g} s"


def markdown(first: str, tables: dict[str, Table]) -> str:
    ways = list(dict.fromkeys(way for table in tables.values() for way in table))
    lines = [f"| {first} | " + " | ".join(tables) + " |", "|-" * (len(tables) + 1) + "|"]
    for way in ways:
        if way.startswith("absolute"):
            cells = [f"{np.mean([error for error, _ in table[way]]):.4f}" for table in tables.values()]
        else:
            cells = [cell(table[way]) if way in table else "" for table in tables.values()]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def samples_part(data: dict[str, np.ndarray], seeds: int) -> str:
    tables: dict[str, Table] = {}
    for name, x in data.items():
        ranks = [100, 400] if name == "protein" else [100]
        runs = [on_sample(name, x, ranks, seed, METHODS) for seed in range(seeds)]
        for rank in ranks:
            tables[f"{name}, rank {rank}"] = collect([run[rank] for run in runs])
    return markdown("multiple of the optimal error", tables)


def full_part(data: dict[str, np.ndarray], seeds: int) -> str:
    tables = {f"{name}, n = {len(x):,}": collect([on_all_rows(name, x, 500, seed) for seed in range(seeds)]) for name, x in data.items()}
    return markdown("multiple of RPCholesky's error", tables)


def plot(x: np.ndarray, seeds: int, path: Path) -> None:
    """Error multiple against rank for every method, on samples of protein."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ranks = [25, 50, 100, 200, 400, 800]
    runs = [on_sample("protein", x, ranks, seed, METHODS) for seed in range(seeds)]
    figure, axes = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    styles = {
        "uniform": ("#7f7f7f", "o"),
        "greedy": ("#8c564b", "v"),
        "leverage": ("#9467bd", "^"),
        "kmeans": ("#2ca02c", "s"),
        "rpcholesky": ("#1f77b4", "D"),
        "rpcholesky+lloyd": ("#d62728", "o"),
        REFINED: ("#000000", "*"),
    }
    for way, (color, marker) in styles.items():
        errors = np.asarray([[run[rank][way][0] for rank in ranks] for run in runs])
        label = {"rpcholesky+lloyd": "rpcholesky+lloyd (default)", REFINED: "default, refined (40 steps)"}.get(way, way)
        axes.plot(
            ranks,
            errors.mean(axis=0),
            color=color,
            marker=marker,
            label=label,
            linewidth=2 if way in ("rpcholesky+lloyd", REFINED) else 1.2,
        )
        axes.fill_between(ranks, errors.min(axis=0), errors.max(axis=0), color=color, alpha=0.12, linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="rank (number of landmarks)", ylabel="trace error / optimal error of that rank")
    axes.set_title(f"protein, 4,000 rows, length scale half the median distance: mean and range of {seeds} seeds", fontsize=10)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    ticks = [1, 1.5, 2, 3, 5, 10, 20, 50, 100]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(0.95, axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8.5, frameon=False)
    figure.savefig(path, dpi=130)


def update(part: str, text: str) -> None:
    """Replace the table between the marks of one part of the page."""
    page = DOCS / "landmarks.md"
    begin, end = f"<!-- {part}: begin -->", f"<!-- {part}: end -->"
    old = page.read_text()
    page.write_text(re.sub(f"{begin}.*?{end}", f"{begin}\n{text}\n{end}", old, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--part", choices=("samples", "full", "plot", "all"), default="all")
    parser.add_argument("--update", action="store_true")
    options = parser.parse_args()
    data = available()
    threadpool_limits(1)  # one core; times of two cores depend on who else uses them
    for part, work in (("samples", samples_part), ("full", full_part)):
        if options.part in (part, "all"):
            text = work(data, options.seeds)
            print(text, "\n", flush=True)
            if options.update:
                update(part, text)
    if options.part in ("plot", "all") and "protein" in data:
        path = DOCS / "landmarks.png" if options.update else Path("landmarks.png")
        plot(data["protein"], min(options.seeds, 3), path)
        print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
