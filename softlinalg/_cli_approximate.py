"""The subcommand `approximate`: read a file, approximate its kernel matrix, show and save the result."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import softlinalg
from softlinalg._cli_data import DataOptions, Matrix, read, require
from softlinalg._cli_options import MODEL_SUFFIXES, PICTURE_SUFFIXES, CommandError
from softlinalg._cli_report import Report, peak_memory, plot, summary, to_json, write_file

__all__ = ["approximate", "check_outputs", "describe_kernel", "make_kernel", "run"]

MATERN_ORDERS = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}


def make_kernel(name: str, length_scale: float | str) -> Any:
    """The kernel that the command line names."""
    if name in MATERN_ORDERS:
        return softlinalg.Matern(length_scale, nu=MATERN_ORDERS[name])
    return {"gaussian": softlinalg.Gaussian, "laplacian": softlinalg.Laplacian}[name](length_scale)


def approximate(
    data: Matrix,
    kernel: Any,
    *,
    name: str,
    rank: int | None = None,
    tol: float | None = None,
    landmarks: str = "rpcholesky+lloyd",
    seed: int = 0,
    chunk_size: int | None = None,
    progress: bool = True,
    reading_seconds: float = 0.0,
) -> tuple[Any, Report]:
    """Approximate the kernel matrix of the data, and describe the result.

    Parameters
    ----------
    data : Matrix
    kernel : Kernel
    name : str
        What tables and plots call the data.
    rank, tol, landmarks, chunk_size, progress
        As in `softlinalg.nystrom`.
    seed : int
    reading_seconds : float
        What reading took, for the table.

    Returns
    -------
    decomposition : NystromDecomposition
    report : Report
    """
    rows, features = data.x.shape
    if rank is not None and rank > rows:
        message = f"--rank must be at most the number of rows, {rows:,}; got {rank:,}"
        raise CommandError(message)
    start = time.perf_counter()
    decomposition = softlinalg.nystrom(
        data.x, kernel, rank=rank, tol=tol, landmarks=landmarks, rng=seed, chunk_size=chunk_size, progress=progress
    )
    return decomposition, Report(
        name=name,
        rows=rows,
        features=features,
        dtype=str(data.x.dtype),
        kernel=describe_kernel(decomposition.kernel, median=getattr(kernel, "length_scale", None) == "median"),
        landmarks=landmarks,
        landmark_count=int(decomposition.landmarks.shape[0]),
        rank=int(decomposition.rank),
        relative_trace_error=float(decomposition.relative_trace_error),
        floor=float(decomposition.trace_error_floor) / float(decomposition.trace),
        seconds=time.perf_counter() - start,
        reading_seconds=reading_seconds,
        peak_memory_bytes=peak_memory(),
        relative_trace_errors=decomposition.relative_trace_errors,
        eigenvalues=decomposition.eigenvalues,
        notes=data.notes,
    )


def describe_kernel(kernel: Any, *, median: bool) -> str:
    """A kernel in words."""
    nu = {0.5: " 1/2", 1.5: " 3/2", 2.5: " 5/2"}.get(getattr(kernel, "nu", 0.0), "")
    return f"{kernel.name.capitalize()}{nu}, length scale {kernel.length_scale:.3g}{' (median)' if median else ''}"


def run(arguments: argparse.Namespace) -> None:
    """The subcommand `approximate`."""
    outputs = [
        (arguments.output, "--output", MODEL_SUFFIXES),
        (arguments.plot, "--plot", PICTURE_SUFFIXES),
        (arguments.json, "--json", None),
    ]
    check_outputs(arguments.data, [(path, option, suffixes) for path, option, suffixes in outputs if path is not None])
    start = time.perf_counter()
    options = DataOptions(
        array=arguments.array,
        columns=None if arguments.columns is None else tuple(arguments.columns),
        drop=tuple(arguments.drop or ()),
        missing=arguments.missing,
        standardize=arguments.standardize,
        dtype=arguments.dtype,
        delimiter=arguments.delimiter,
        header=arguments.header,
    )
    data = read(arguments.data, options)
    decomposition, report = approximate(
        data,
        make_kernel(arguments.kernel, arguments.length_scale),
        name=arguments.data.name,
        rank=arguments.rank,
        tol=arguments.tol,
        landmarks=arguments.landmarks,
        seed=arguments.seed,
        chunk_size=arguments.chunk_size,
        progress=not arguments.quiet,
        reading_seconds=time.perf_counter() - start,
    )
    if not arguments.quiet:
        print(summary([report]))
    if arguments.output is not None:
        decomposition.save(arguments.output)
    if arguments.plot is not None:
        write_file(arguments.plot, plot(report, format=arguments.plot.suffix.lower()[1:]))
    if arguments.json is not None:
        write_file(arguments.json, to_json(report).encode())
    if not arguments.quiet:
        for path, *_ in outputs:
            if path is not None:
                print(f"wrote {path}")


def check_outputs(data: Path | None, outputs: list[tuple[Path, str, tuple[str, ...] | None]]) -> None:
    """Find out before the work whether its results can be written after it."""
    for path, option, suffixes in outputs:
        if suffixes is not None and path.suffix.lower() not in suffixes:
            message = f"{option} must name a file that ends in {' or '.join(suffixes)}; got {path}"
            raise CommandError(message)
        if path.is_dir():
            message = f"{option}: {path} is a folder"
            raise CommandError(message)
        if not path.parent.is_dir():
            message = f"{option}: there is no folder {path.parent}"
            raise CommandError(message)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            message = f"{option}: {path} cannot be written: permission denied"
            raise CommandError(message)
        if data is not None and path.exists() and data.exists() and path.samefile(data):
            message = f"{option}: {path} is the data itself, which would be overwritten"
            raise CommandError(message)
    named = [path.absolute() for path, *_ in outputs]
    if len(set(named)) < len(named):
        message = "two outputs have the same name"
        raise CommandError(message)
    if any(option == "--plot" for _, option, _ in outputs):
        require("matplotlib.figure", why="--plot")
