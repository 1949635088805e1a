"""The subcommands `fit` and `predict`: kernel ridge regression from a file to a folder, and from there to predictions.

Both read their data in pieces. `fit` makes one pass for the sample of rows and the mean and deviation of each feature, and one for the
sums from which every ridge follows.
"""

from __future__ import annotations

import argparse
import contextlib
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softlinalg._cli_approximate import check_outputs, describe_kernel, make_kernel
from softlinalg._cli_data import check_delimiter, check_file
from softlinalg._cli_model import RidgeModel, check_folder, load_model, save_model, scaled
from softlinalg._cli_options import PREDICTION_SUFFIXES, STREAM_SUFFIXES, CommandError
from softlinalg._cli_report import peak_memory, readable_bytes
from softlinalg._nystrom_core import progress_bar
from softlinalg._nystrom_io import replacing
from softlinalg._streaming import default_chunk_size, default_sample_size, nystrom_stream, open_rows
from softlinalg._streaming_run import LocalEngine
from softlinalg._streaming_sources import ArrayRows, Block, Host, MappedRows, RowSource, chunks
from softlinalg._streaming_tasks import MomentTask, PairTask, SampleTask

__all__ = ["run_fit", "run_predict"]


# ------------------------------------------------------------------------------------------------ reading
def _open(arguments: argparse.Namespace, **settings: Any) -> Any:
    return open_rows(arguments.data, header=arguments.header, delimiter=arguments.delimiter, **settings)


def _places(asked: Sequence[str], names: Sequence[str], *, option: str, path: Path) -> list[int]:
    """Positions of columns by name, or by number where no column has that name."""
    found = []
    for name in asked:
        if name in names:
            found.append(list(names).index(name))
            continue
        number = int(name) if name.lstrip("-").isdecimal() else len(names)
        if not -len(names) <= number < len(names):
            listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
            message = f"{option}: {path} has no column {name!r}; it has: {listed}"
            raise CommandError(message)
        found.append(number % len(names))
    return found


def _opened(arguments: argparse.Namespace) -> Any:
    """The rows of the file with the features and targets that the options name."""
    names = _open(arguments).names
    if len(names) == 1:
        check_delimiter(arguments.data, names[0], arguments.delimiter)
    targets = _places(arguments.target, names, option="--target", path=arguments.data)
    if len(set(targets)) < len(targets):
        message = "--target names a column twice"
        raise CommandError(message)
    if arguments.columns is not None:
        features = _places(arguments.columns, names, option="--columns", path=arguments.data)
        if set(features) & set(targets):
            message = f"--columns: column {names[next(iter(set(features) & set(targets)))]!r} is the target"
            raise CommandError(message)
    else:
        dropped = _places(arguments.drop or (), names, option="--drop", path=arguments.data)
        features = [place for place in range(len(names)) if place not in {*targets, *dropped}]
    if not features:
        message = f"{arguments.data}: no column is left to predict from"
        raise CommandError(message)
    return _open(arguments, columns=features, targets=targets, dtype=arguments.dtype)


class _CompleteRows(MappedRows):
    """The rows without NaN and infinity."""

    def __init__(self, source: RowSource) -> None:
        super().__init__(source, self._complete, columns=source.columns, dtype=source.dtype)
        self.rows = None

    def _complete(self, x: Host, y: Host | None) -> Block:
        good = np.isfinite(x).all(axis=1)
        if y is not None:
            good &= np.isfinite(y).all(axis=1)
        return (x, y) if good.all() else (x[good], None if y is None else y[good])

    def blocks(self, start: int = 0, *, length: int | None = None) -> Iterator[Block]:
        """Complete rows from number `start` on: they have to be counted from the beginning."""
        position = 0
        for x, y in super().blocks(0, length=length):
            skip, position = max(0, start - position), position + len(x)
            if skip < len(x):
                yield x[skip:], None if y is None else y[skip:]


# ------------------------------------------------------------------------------------------------ fit
RANK = 512
"""Landmarks by default."""


def _landmark_count(arguments: argparse.Namespace, rows: int | None) -> int:
    """As many as asked for, else 512, but at most half the rows where they have been counted: the other half judges the ridge."""
    return arguments.rank or (RANK if rows is None else min(RANK, max(1, rows // 2)))


def run_fit(arguments: argparse.Namespace) -> None:
    """The subcommand `fit`."""
    begun = time.perf_counter()
    check_file(arguments.data, STREAM_SUFFIXES)
    check_folder(arguments.output)
    if arguments.checkpoint is not None and not arguments.checkpoint.absolute().parent.is_dir():
        message = f"--checkpoint: there is no folder {arguments.checkpoint.parent}"
        raise CommandError(message)
    source = _opened(arguments)
    names, target_names = source.names, source.target_names
    rows: RowSource = _CompleteRows(source) if arguments.missing == "drop" else source
    d = rows.columns
    mean, deviation, sample = np.zeros(d), np.ones(d), None
    kept = np.arange(d)
    is_table = not isinstance(source, ArrayRows) and arguments.data.suffix.lower() != ".npy"
    if is_table if arguments.standardize is None else arguments.standardize:
        mean, deviation, sample, rows.rows = _statistics(rows, arguments, names)
        kept = np.flatnonzero(deviation > 0)
        mean, deviation, sample = mean[kept], deviation[kept], sample[:, kept]
    dtype = rows.dtype

    def change(x: Host, y: Host | None) -> Block:
        return scaled(x[:, kept], mean, deviation, dtype), y

    prepared = rows if sample is None else MappedRows(rows, change, columns=len(kept), dtype=dtype)
    streamed = nystrom_stream(
        prepared,
        make_kernel(arguments.kernel, arguments.length_scale),
        rank=_landmark_count(arguments, rows.rows),
        landmarks=arguments.landmarks,
        sample=None if sample is None else scaled(sample, mean, deviation, dtype),
        rng=arguments.seed,
        chunk_size=arguments.chunk_size,
        threads=arguments.threads,
        checkpoint=arguments.checkpoint,
        progress=not arguments.quiet,
    )
    model = streamed.fit_ridge(arguments.ridge)
    save_model(
        RidgeModel(
            decomposition=streamed.decomposition,
            coefficients=model.coefficients,
            intercept=model.intercept,
            ridge=model.ridge,
            features=tuple(names[j] for j in kept),
            targets=tuple(target_names),
            mean=mean,
            deviation=deviation,
            rows=streamed.decomposition.shape[0],
        ),
        arguments.output,
    )
    if arguments.checkpoint is not None:
        arguments.checkpoint.unlink(missing_ok=True)
    if not arguments.quiet:
        constant = [names[j] for j in range(d) if j not in set(kept.tolist())]
        print(_report(arguments, streamed, model, target_names, constant, time.perf_counter() - begun))


def _statistics(rows: RowSource, arguments: argparse.Namespace, names: Sequence[str]) -> tuple[Host, Host, Host, int]:
    """Mean and deviation of each feature (0 for constant ones), a sample of rows, and the number of rows, in one pass."""
    d = rows.columns
    rank = _landmark_count(arguments, None)  # the same chunks, and so the same bits, for files that say how many rows they have
    chunk = arguments.chunk_size or default_chunk_size(rank, d)
    engine = LocalEngine(rows, chunk_size=chunk, threads=arguments.threads, progress=not arguments.quiet, func="fit")
    first, _ = engine.prefix()
    shift = first.astype(np.float64).mean(axis=0)
    seed = int(np.random.default_rng(arguments.seed).integers(2**63))
    sampling = SampleTask(seed=seed, count=default_sample_size(rank, d, rows.dtype))
    state = engine.reduce(PairTask(sampling, MomentTask(shift=shift), 5), "mean and deviation")
    sample, (count, sums, squares, low, high) = state[2], state[5:]
    center = sums / count
    with np.errstate(over="ignore", invalid="ignore"):
        deviation = np.sqrt(np.maximum(squares / count - center**2, 0.0))
    deviation = np.where(low == high, 0.0, deviation)
    if not np.all(np.isfinite(deviation)):
        name = names[int(np.isfinite(deviation).argmin())]
        message = f"{arguments.data}: column {name} has values too large to standardize; leave it out with --drop {name}"
        raise CommandError(message)
    if not np.any(deviation > 0):
        message = f"{arguments.data}: every feature is constant: nothing to predict from"
        raise CommandError(message)
    return shift + center, deviation, sample, int(count[0])


def _report(
    arguments: argparse.Namespace, streamed: Any, model: Any, targets: Sequence[str], constant: Sequence[str], seconds: float
) -> str:
    """A table of what was fitted."""
    d, sums = streamed.decomposition, streamed.sums
    memory = peak_memory()
    lines = [
        ("rows", f"{d.shape[0]:,}"),
        ("features", f"{d.landmarks.shape[1]:,}" + (f" (left out as constant: {', '.join(constant[:8])})" if constant else "")),
        ("kernel", f"{describe_kernel(d.kernel, median=arguments.length_scale == 'median')}, {d.dtype}"),
        ("rank", f"{d.rank:,}"),
        ("relative trace error", f"{d.relative_trace_error:.3g}"),
    ]
    best = model.scores.min(axis=0)
    for j, name in enumerate(targets):
        variance = sums.squares[j] / sums.weight
        explained = f", R2 {1 - best[j] / variance:.4g}" if variance > 0 else ""
        lines.append(
            (
                f"{name}",
                f"ridge {model.ridge[j]:.3g}, root mean square error {np.sqrt(best[j]):.4g}{explained} (generalized cross-validation)",
            )
        )
    lines.append(("time", f"{seconds:.1f} s"))
    if memory is not None:
        lines.append(("peak memory", f"{readable_bytes(memory)} (whole process)"))
    width = max(len(label) for label, _ in lines)
    return "\n".join([*(f"{label.ljust(width)}  {value}" for label, value in lines), f"wrote {arguments.output}"])


# ------------------------------------------------------------------------------------------------ predict
def run_predict(arguments: argparse.Namespace) -> None:
    """The subcommand `predict`."""
    begun = time.perf_counter()
    check_file(arguments.data, STREAM_SUFFIXES)
    check_outputs(arguments.data, [(arguments.output, "--output", PREDICTION_SUFFIXES)])
    model = load_model(arguments.model)
    rows = _rows_for(model, arguments)
    chunk = arguments.chunk_size or default_chunk_size(model.decomposition.landmarks.shape[0], rows.columns)
    with replacing(arguments.output) as file, _limited(arguments.threads):
        writer = _NpyWriter(file, len(model.targets)) if arguments.output.suffix.lower() == ".npy" else _CsvWriter(file, model.targets)
        with progress_bar(rows.rows, "predictions", shown=not arguments.quiet) as advance:
            for _, x, missing in chunks(rows, chunk, func="predict"):
                values = model.predict(x)
                if missing is not None:
                    values[missing[:, 0] > 0] = np.nan
                writer.write(values)
                advance(len(x))
        count = writer.close()
    if not arguments.quiet:
        print(f"{count:,} rows in {time.perf_counter() - begun:.1f} s\nwrote {arguments.output}")


def _limited(threads: int | None) -> contextlib.AbstractContextManager[Any]:
    from threadpoolctl import threadpool_limits

    return contextlib.nullcontext() if threads is None else threadpool_limits(threads)


def _rows_for(model: RidgeModel, arguments: argparse.Namespace) -> RowSource:
    """The features of the model, by name; by position where the file has just as many columns, not all of these names."""
    names = _open(arguments).names
    wanted = list(model.features)
    if all(name in names for name in wanted):
        columns: list[int] = [names.index(name) for name in wanted]
    elif len(names) == len(wanted) and all(name.isdecimal() for name in names):
        columns = list(range(len(wanted)))
    else:
        absent = next(name for name in wanted if name not in names)
        message = f"{arguments.data}: has no column {absent!r}, which the model needs; it has: {', '.join(names[:30])}"
        raise CommandError(message)
    rows: RowSource = _open(arguments, columns=columns)
    if arguments.missing == "error":
        return rows

    def filled(x: Host, y: Host | None) -> Block:
        bad = ~np.isfinite(x)
        return np.where(bad, 0, x).astype(x.dtype, copy=False), np.asarray(bad.any(axis=1, keepdims=True), dtype=np.float64)

    marked = MappedRows(rows, filled, columns=rows.columns, dtype=rows.dtype)
    marked.targets = 1
    return marked


class _NpyWriter:
    """A .npy file of float64 whose number of rows is known at its end."""

    HEADER = 128

    def __init__(self, file: Any, columns: int) -> None:
        self._file, self._columns, self._count = file, columns, 0
        file.write(b"\0" * self.HEADER)

    def write(self, values: Host) -> None:
        """Some rows."""
        self._file.write(np.ascontiguousarray(values, dtype="<f8").tobytes())
        self._count += len(values)

    def close(self) -> int:
        """Write the header; return the number of rows."""
        shape = f"({self._count},)" if self._columns == 1 else f"({self._count}, {self._columns})"
        text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}"
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", self.HEADER - 10) + text.ljust(self.HEADER - 11).encode() + b"\n")
        return self._count


class _CsvWriter:
    """A .csv file with the names of the targets."""

    def __init__(self, file: Any, targets: Sequence[str]) -> None:
        self._file, self._count = file, 0
        quoted = ['"' + name.replace('"', '""') + '"' if set(name) & set(',"\n\r') else name for name in targets]
        file.write((",".join(quoted) + "\n").encode())

    def write(self, values: Host) -> None:
        """Some rows, in digits that give the same numbers again."""
        self._file.write("".join(",".join(map(repr, row)) + "\n" for row in values.tolist()).encode())
        self._count += len(values)

    def close(self) -> int:
        """The number of rows."""
        return self._count
