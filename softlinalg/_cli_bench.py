"""The subcommand `bench`: softlinalg beside every peer that is installed, and beside what the machine allows at best."""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
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
from softlinalg._cli_data import require
from softlinalg._cli_options import CommandError
from softlinalg._cli_report import write_file

__all__ = ["WORSE", "measure", "regressions", "run", "table"]

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
)
_LIMIT = 20.0
"""Seconds that one call may take: a contestant that needs longer is left out of the rounds, and its first time is kept."""

Row = dict[str, Any]


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
    torch = require("torch", why="the benchmark")
    if arguments.plot is not None:
        require("matplotlib.figure", why="--plot")
    stored = None if arguments.check is None else _stored(arguments.check)
    # Workloads come from the adapters, above which the command stands: loaded only here.
    from softlinalg import _cli_bench_workloads as source

    unknown = sorted(set(arguments.group or ()) - set(source.GROUPS))
    if unknown:
        message = f"--group must be among {', '.join(source.GROUPS)}; got {unknown[0]!r}"
        raise CommandError(message)
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
    if arguments.json is not None:
        write_file(arguments.json, (json.dumps(report, indent=1) + "\n").encode())
    if arguments.table is not None:
        write_file(arguments.table, (table(rows) + "\n\n" + _footer(report) + "\n").encode())
    if arguments.plot is not None:
        write_file(arguments.plot, plot(rows, arguments.plot.suffix[1:]))
    if not arguments.quiet:
        print(_footer(report))
    worse = [] if stored is None else regressions(rows, stored)
    for line in worse:
        print(f"worse: {line}")
    return 1 if worse else 0


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


def table(rows: Sequence[Row]) -> str:
    """Rows as Markdown."""
    lines = ["| workload | contestant | median, ms | times as long as ours (quartiles) | share of the floor |", "|-|-|-|-|-|"]
    for row in rows:
        floor = "" if row["floor"] is None else f"{100 * row['floor']:.0f} %"
        ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        lines.append(f"| {row['group']}: {row['name']} | {row['contestant']} | {1e3 * row['median_s']:.2f} | {ratio} | {floor} |")
    return "\n".join(lines)


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
        "command": " ".join(["softlinalg", *sys.argv[1:]]),
    }


def _processor() -> str:
    """The name that the system gives it."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())


def _footer(report: dict[str, Any]) -> str:
    """Where and how the figures were measured."""
    machine, rates = report["machine"], report["rates"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    flops = ", ".join(f"{value / 1e9:.0f} Gflop/s in {name}" for name, value in rates["flops"].items())
    return (
        f"{machine['processors']} x {machine['processor']}, {machine['threads']} thread(s), Python {machine['python']}, {versions}; "
        f"{machine['date']}.\n"
        f"Measured in the same run: {flops}, {rates['exponentials'] / 1e9:.2f} G exponentials/s, {rates['bytes'] / 1e9:.0f} GB/s copied.\n"
        f"`{machine['command']}`"
    )


def _stored(path: Path) -> dict[str, float]:
    """Ratios of an earlier report, by workload and contestant."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return {_key(row): float(row["best_ratio"]) for row in rows}
    except (OSError, UnicodeError, ValueError, KeyError, TypeError) as error:
        message = f"--check: {path} is no report of softlinalg bench --json ({type(error).__name__})"
        raise CommandError(message) from error


def _key(row: Row) -> str:
    return f"{row['group']}: {row['name']}: {row['contestant']}"


def regressions(rows: Sequence[Row], stored: dict[str, float]) -> list[str]:
    """What has become slower beside its peers: ratios below the stored ones by more than `WORSE`."""
    worse = []
    for row in rows:
        before = stored.get(_key(row))
        if before is not None and row["best_ratio"] * WORSE < before:
            worse.append(f"{_key(row)} took {row['best_ratio']:.2f} times as long as ours, {before:.2f} when it was stored")
    return worse


def plot(rows: Sequence[Row], kind: str) -> bytes:
    """Bars of ratios on a logarithmic axis, one panel for each group."""
    import io

    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    groups = list(dict.fromkeys(row["group"] for row in rows))
    parts = {group: [row for row in rows if row["group"] == group and row["contestant"] != "softlinalg"] for group in groups}
    heights = [max(1, len(parts[group])) for group in groups]
    figure = Figure(figsize=(10, 1.1 * len(groups) + 0.17 * sum(heights)), layout="constrained")
    for axes, group in zip(figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0], groups, strict=True):
        ratios = [row["ratio"] for row in parts[group]]
        spread = [[row["ratio"] - row["low"] for row in parts[group]], [row["high"] - row["ratio"] for row in parts[group]]]
        names = [f"{row['name']}: {row['contestant']}" for row in parts[group]]
        colors = ["#4477aa" if ratio >= 1 else "#cc6677" for ratio in ratios]
        # From 1 on: the length of a bar from any other place would mean nothing on a logarithmic axis.
        axes.barh(names, [ratio - 1 for ratio in ratios], left=1, xerr=spread, color=colors, height=0.7, error_kw={"lw": 0.8})
        axes.axvline(1, color="black", lw=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=6)
        axes.set_title(group, fontsize=9)
        axes.set_xlabel("times as long as softlinalg, which is quicker to the right of 1 (median, quartiles)", fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()
