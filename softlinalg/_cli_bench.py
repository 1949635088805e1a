"""The subcommand `bench`: softlinalg beside every peer that is installed, and beside what the machine allows at best."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from softlinalg import __version__
from softlinalg._cli_approximate import check_outputs
from softlinalg._cli_bench_page import GROUPS, Report, Row, key, measuring_command, merged, origin, page, plot, read, table, to_json
from softlinalg._cli_data import require
from softlinalg._cli_options import CommandError
from softlinalg._cli_report import write_file

__all__ = ["WORSE", "measure", "regressions", "run"]

WORSE = 1.5
"""A stored ratio may grow by this much: machines differ, and so do their neighbours."""
ATTEMPTS = 3
"""Measurements before a ratio counts as worse: the best of each contestant over all of them is what counts."""
_PACKAGES = (
    "numpy",
    "scipy",
    "torch",
    "scikit-learn",
    "nystrom-attention",
    "performer-pytorch",
    "linformer",
    "linear-attention-transformer",
    "pykeops",
)
_LIMIT = 20.0
"""Seconds that one call may take: a contestant that needs longer is left out of the rounds, and its first time is kept."""


def run(arguments: argparse.Namespace) -> int:
    """The subcommand `bench`.

    Returns
    -------
    int
        0; 1 if `--check` found a ratio that has become worse.
    """
    outputs = [
        (arguments.json, "--json", (".json",)),
        (arguments.table, "--table", (".md",)),
        (arguments.plot, "--plot", (".png", ".svg", ".pdf")),
    ]
    check_outputs(arguments.check, [entry for entry in outputs if entry[0] is not None])
    if arguments.reports is None:
        stored = None if arguments.check is None else _stored(arguments.check)
        reports = [_measurement(arguments, stored)]
    else:
        if arguments.check is not None:
            message = "--check holds a new measurement to an old one, and --from measures nothing: give one of them"
            raise CommandError(message)
        stored = None
        reports = merged([report for path in arguments.reports for report in read(path, "--from")])
        if not arguments.quiet:
            print(page(reports), flush=True)
    rows: list[Row] = [row for report in reports for row in report["rows"]]
    if arguments.json is not None:
        write_file(arguments.json, to_json(reports).encode())
    if arguments.table is not None:
        picture = None if arguments.plot is None else Path(os.path.relpath(arguments.plot, arguments.table.parent)).as_posix()
        write_file(arguments.table, page(reports, picture).encode())
    if arguments.plot is not None:
        write_file(arguments.plot, plot(rows, arguments.plot.suffix[1:]))
    worse = [] if stored is None else regressions(rows, stored)
    for line in worse:
        print(f"worse: {line}")
    return 1 if worse else 0


def _measurement(arguments: argparse.Namespace, stored: dict[str, float] | None) -> Report:
    """Measure the chosen workloads, and show each when it is done."""
    unknown = sorted(set(arguments.group or ()) - set(GROUPS))
    if unknown:
        message = f"--group must be among {', '.join(GROUPS)}; got {unknown[0]!r}"
        raise CommandError(message)
    torch = require("torch", why="the benchmark")
    # Workloads come from the adapters, above which the command stands: loaded only here.
    from softlinalg import _cli_bench_workloads as source

    before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        with threadpool_limits(arguments.threads):
            chosen = [
                work
                for work in source.workloads()
                if (not arguments.group or work.group in arguments.group) and (work.smoke or not arguments.smoke)
            ]
            rates = source.Rates.measure()
            rows: list[Row] = []
            for work in chosen:
                found = _measured(work, rates, stored, arguments)
                rows.extend(found)
                if not arguments.quiet:
                    print(table(found), end="\n\n", flush=True)
    finally:
        torch.set_num_threads(before)
    report = {"machine": _machine(arguments), "rates": rates._asdict(), "rows": rows}
    if not arguments.quiet:
        print(origin(report))
    return report


def _stored(path: Path) -> dict[str, float]:
    """Ratios of an earlier report, by workload and contestant."""
    return {key(row): float(row["best_ratio"]) for report in read(path, "--check") for row in report["rows"]}


def _measured(work: Any, rates: Any, stored: dict[str, float] | None, arguments: argparse.Namespace) -> list[Row]:
    """The rows of one workload; measured again where a ratio looks worse than the stored one."""
    contestants = work.make()
    seconds = measure(contestants, arguments.rounds, np.random.default_rng(0), budget=arguments.seconds)
    rows = _rows(work, seconds, rates)
    for _ in range(ATTEMPTS - 1):
        if stored is None or not regressions(rows, stored):
            break
        again = measure(contestants, arguments.rounds, np.random.default_rng(1), budget=arguments.seconds)
        seconds = {name: times + again[name] for name, times in seconds.items()}
        rows = _rows(work, seconds, rates)
    return rows


def measure(contestants: dict[str, Any], rounds: int, rng: np.random.Generator, *, budget: float = math.inf) -> dict[str, list[float]]:
    """Seconds of each contestant, all in each round, in random order.

    The first call of each does not count, but where it takes more than `_LIMIT` seconds it is the only one. Rounds end early where
    the budget of seconds is spent, after two.
    """
    first = {name: _seconds(call) for name, call in contestants.items()}
    times: dict[str, list[float]] = {name: [took] if took > _LIMIT else [] for name, took in first.items()}
    running = [name for name, took in first.items() if took <= _LIMIT]
    begin = time.perf_counter()
    for number in range(rounds):
        if number >= 2 and time.perf_counter() - begin > budget:
            break
        for name in rng.permutation(running):
            times[name].append(_seconds(contestants[name]))
    return times


def _seconds(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _rows(work: Any, seconds: dict[str, list[float]], rates: Any) -> list[Row]:
    """One row for each contestant: medians, and ratios to ours within each round."""
    ours = seconds["softlinalg"]
    floor = None if work.floor is None else work.floor(rates)
    rows = []
    for name, times in seconds.items():
        pairs = list(zip(times, ours, strict=True)) if len(times) == len(ours) else [(min(times), statistics.median(ours))]
        ratios = sorted(a / b for a, b in pairs)
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        row = {"group": work.group, "name": work.name, "contestant": name, "median_s": statistics.median(times), "best_s": min(times)}
        row |= {"ratio": middle, "low": low, "high": high, "best_ratio": min(times) / min(ours), "rounds": len(times)}
        row["floor"] = None if floor is None or name != "softlinalg" else floor / min(times)
        rows.append(row)
    return rows


def _machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a reader needs to judge the figures and to repeat them."""
    versions = {"softlinalg": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "processors": os.cpu_count(),
        "threads": arguments.threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": measuring_command(sys.argv[1:]),
    }


def _processor() -> str:
    """The name that the system gives it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def regressions(rows: Sequence[Row], stored: dict[str, float]) -> list[str]:
    """What has become slower beside its peers: ratios below the stored ones by more than `WORSE`."""
    worse = []
    for row in rows:
        before = stored.get(key(row))
        if before is not None and row["best_ratio"] * WORSE < before:
            worse.append(f"{key(row)} took {row['best_ratio']:.2f} times as long as ours, {before:.2f} when it was stored")
    return worse
