"""Reading data for the command: arrays and tables become one matrix of numbers, and every change is noted.

Rows are taken in blocks and statistics summed in float64; a `.npy` file that needs no change stays memory-mapped.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softlinalg._cli_options import SUFFIXES, CommandError
from softlinalg._streaming_files import is_number, optional_package

__all__ = ["DataOptions", "Matrix", "Source", "check_delimiter", "check_file", "read", "require", "source_of_frame", "tidy"]

ARRAY_SUFFIXES = (".npy", ".npz")

HEADERLESS = "The first row is all numbers, so it is taken as data and the columns are named 0, 1, ...; --header takes it as names."
NAMELESS = "The column '{name}' has no name in the file; if it only numbers the rows, leave it out with --drop '{name}'."

BLOCK_BYTES = 1 << 25
"""Memory of one block of rows in float64: 32 MiB."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """How to turn a file into a matrix; the options of `softlinalg approximate`."""

    array: str | None = None
    columns: tuple[str, ...] | None = None
    drop: tuple[str, ...] = ()
    missing: str = "error"
    """"error", "drop" (the row) or "mean" (of the column)."""
    standardize: bool | None = None
    """None: tables yes, because their columns come in unlike units; arrays no."""
    dtype: str | None = None
    """None: float32 where the file holds float32 or float16, otherwise float64."""
    delimiter: str = ","
    header: bool | None = None
    """None: a CSV file has a header unless its first row is all numbers."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """The data as the approximation takes them."""

    x: np.ndarray[Any, Any]
    """Shape (n, d), float32 or float64."""
    columns: tuple[str, ...]
    notes: tuple[str, ...]
    """What was changed on the way, one sentence each."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows that can be taken in blocks of float64."""

    label: str
    """What messages call it: the file, and the array in it."""
    rows: int
    columns: tuple[str, ...]
    block: Callable[[int, int], np.ndarray[Any, Any]]
    values: np.ndarray[Any, Any] | None = None
    """The array itself where it is one, to be used without a copy if nothing has to change."""
    half_or_single: bool = False
    is_table: bool = False
    notes: tuple[str, ...] = ()

    def blocks(self) -> Iterator[tuple[int, int, np.ndarray[Any, Any]]]:
        """Blocks (start, stop, values) of at most `BLOCK_BYTES`."""
        step = max(1, BLOCK_BYTES // (8 * max(1, len(self.columns))))
        for start in range(0, self.rows, step):
            stop = min(start + step, self.rows)
            yield start, stop, self.block(start, stop)


def require(module: str, *, why: str) -> Any:
    """Import an optional package, or say which extra brings it."""
    message = why + ' needs the package {package}, which is not installed; run: pip install "softlinalg[demo]"'
    return optional_package(module, message, error=CommandError)


def check_file(path: Path, suffixes: Sequence[str]) -> None:
    """Refuse a folder, a file that does not exist, and one without a byte."""
    if path.is_dir():
        message = f"{path}: is a folder; name a file that ends in {', '.join(suffixes)}"
        raise CommandError(message)
    if not path.exists():
        message = f"{path}: no such file"
        raise CommandError(message)
    if path.stat().st_size == 0:
        message = f"{path}: the file is empty"
        raise CommandError(message)


def read(path: Path, options: DataOptions) -> Matrix:
    """Read a file into a matrix of numbers.

    Parameters
    ----------
    path : Path
        .npy, .npz, .csv, .csv.gz or .parquet.
    options : DataOptions

    Returns
    -------
    Matrix

    Raises
    ------
    CommandError
        Whatever is wrong with the file, its columns or its values.
    """
    suffix = next((suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(suffix)), None)
    check_file(path, SUFFIXES)
    if suffix is None:
        message = f"{path}: unknown kind of file; its name must end in {', '.join(SUFFIXES)}"
        raise CommandError(message)
    if options.array is not None and suffix != ".npz":
        message = f"{path}: --array is for .npz files, which hold several arrays"
        raise CommandError(message)
    source = _open_array(path, options, suffix) if suffix in ARRAY_SUFFIXES else _open_table(path, options, suffix)
    return tidy(source, options)


@contextlib.contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a reader raises into one line."""
    try:
        yield
    except (CommandError, MemoryError):
        raise
    except Exception as error:  # readers of foreign formats raise some twenty types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        message = f"{path}: cannot be read as {kind}: {reason}"
        raise CommandError(message) from error


# --------------------------------------------------------------------------------------------------- arrays
def _open_array(path: Path, options: DataOptions, suffix: str) -> Source:
    """An array of a .npy (memory-mapped) or .npz file; pickled objects are refused."""
    label = str(path)
    with _reading(path, suffix):
        if suffix == ".npy":
            values = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                name = _array_name(path, options.array, archive.files)
                label = f"{path}[{name}]"
                values = archive[name]
    if not isinstance(values, np.ndarray) or values.ndim != 2:
        shape = getattr(values, "shape", "unknown")
        message = f"{label}: must have two axes, one row per point; its shape is {shape}"
        raise CommandError(message)
    if values.dtype.kind not in "biuf":
        message = f"{label}: must hold real numbers; its dtype is {values.dtype}"
        raise CommandError(message)
    everything = tuple(str(j) for j in range(values.shape[1]))
    columns = _chosen(label, everything, options)
    if columns != everything:
        keep = [int(name) for name in columns]
        return Source(
            label=label,
            rows=values.shape[0],
            columns=columns,
            block=lambda start, stop: values[start:stop, keep].astype(np.float64),
            half_or_single=values.dtype.kind == "f" and values.dtype.itemsize <= 4,
        )
    return Source(
        label=label,
        rows=values.shape[0],
        columns=columns,
        block=lambda start, stop: values[start:stop].astype(np.float64),
        values=values,
        half_or_single=values.dtype.kind == "f" and values.dtype.itemsize <= 4,
    )


def _array_name(path: Path, asked: str | None, names: Sequence[str]) -> str:
    """Which array of a .npz file to take."""
    listed = ", ".join(names[:20])
    if not names:
        message = f"{path}: holds no arrays"
        raise CommandError(message)
    if asked is None and len(names) > 1:
        message = f"{path}: holds {len(names)} arrays; choose one with --array: {listed}"
        raise CommandError(message)
    if asked is not None and asked not in names:
        message = f"{path}: has no array {asked!r}; it holds: {listed}"
        raise CommandError(message)
    return asked if asked is not None else names[0]


def _chosen(label: str, names: tuple[str, ...], options: DataOptions) -> tuple[str, ...]:
    """The columns that --columns or --drop leave, in the order asked for."""
    if not names:
        message = f"{label}: has no columns"
        raise CommandError(message)
    asked = options.columns if options.columns is not None else options.drop
    unknown = [name for name in asked if name not in names]
    if unknown:
        listed = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
        message = f"{label}: has no column {unknown[0]!r}; it has: {listed}"
        raise CommandError(message)
    if options.columns is not None:
        if len(set(asked)) < len(asked):
            message = f"{label}: --columns names a column twice"
            raise CommandError(message)
        return tuple(asked)
    left = tuple(name for name in names if name not in options.drop)
    if not left:
        message = f"{label}: --drop leaves no column"
        raise CommandError(message)
    return left


# --------------------------------------------------------------------------------------------------- tables
def _open_table(path: Path, options: DataOptions, suffix: str) -> Source:
    """The chosen columns of a CSV or Parquet file."""
    frame, notes = _read_parquet(path, options) if suffix == ".parquet" else _read_csv(path, options)
    _check_numeric(str(path), frame)
    return source_of_frame(frame, label=str(path), notes=notes)


def source_of_frame(frame: Any, *, label: str, notes: tuple[str, ...] = ()) -> Source:
    """A pandas data frame of numbers as rows that can be taken in blocks."""
    return Source(
        label=label,
        rows=len(frame),
        columns=tuple(map(str, frame.columns)),
        block=lambda start, stop: frame.iloc[start:stop].to_numpy(dtype=np.float64, na_value=np.nan),
        half_or_single=all(str(kind).lower() in ("float32", "float16") for kind in frame.dtypes),
        is_table=True,
        notes=notes,
    )


def _read_csv(path: Path, options: DataOptions) -> tuple[Any, tuple[str, ...]]:
    pandas = require("pandas", why="reading CSV")
    shape = {"sep": options.delimiter, "skipinitialspace": True}
    with _reading(path, "CSV"):
        first = pandas.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **shape)
        header = options.header
        if header is None:
            header = not all(is_number(cell) for cell in first.iloc[0])
        notes: tuple[str, ...] = () if header or options.header is False else (HEADERLESS,)
        if first.shape[1] == 1:
            check_delimiter(path, str(first.iloc[0, 0]), options.delimiter)
        names = list(map(str, pandas.read_csv(path, nrows=0, **shape).columns if header else range(first.shape[1])))
        chosen = _chosen(str(path), tuple(names), options)
        notes += tuple(NAMELESS.format(name=name) for name in chosen if name.startswith("Unnamed: "))
        # All columns, although some are dropped: with usecols, or an index column, pandas cuts rows that are too long
        # without a word; like this it raises, or warns, and the warning is raised.
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            frame = pandas.read_csv(path, header=0 if header else None, names=None if header else names, index_col=False, **shape)
        frame.columns = names
    return frame[list(chosen)], notes


def check_delimiter(path: Path, cell: str, delimiter: str) -> None:
    """Refuse a file whose only column holds what separates columns elsewhere."""
    other = max(";\t|,", key=cell.count)
    if other != delimiter and cell.count(other):
        message = f"{path}: there is one column only, and its first line holds {other!r}; choose --delimiter {other!r}"
        raise CommandError(message)


def _read_parquet(path: Path, options: DataOptions) -> tuple[Any, tuple[str, ...]]:
    parquet = require("pyarrow.parquet", why="reading Parquet")
    require("pandas", why="reading Parquet")
    with _reading(path, "Parquet"), parquet.ParquetFile(path) as file:
        chosen = _chosen(str(path), tuple(file.schema_arrow.names), options)
        return file.read(columns=list(chosen)).to_pandas(ignore_metadata=True)[list(chosen)], ()


def _check_numeric(label: str, frame: Any) -> None:
    """Say which columns hold no numbers, and in which row the first of them stops being one."""
    pandas = importlib.import_module("pandas")
    types = pandas.api.types
    bad = [name for name in frame.columns if not types.is_numeric_dtype(frame[name]) or types.is_complex_dtype(frame[name])]
    if not bad or len(frame) == 0:  # no rows: no types either, and another message
        return
    column = frame[bad[0]]
    where = ""
    if not types.is_complex_dtype(column) and (types.is_object_dtype(column) or types.is_string_dtype(column)):
        wrong = (pandas.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy()
        where = f" (first at data row {int(wrong.argmax()) + 1})" if wrong.any() else ""
    listed = ", ".join(map(str, bad[:12])) + (", ..." if len(bad) > 12 else "")
    message = f"{label}: not a number{where} in {_count(len(bad), 'column')}: {listed}; leave such columns out with --drop or --columns"
    raise CommandError(message)


# ----------------------------------------------------------------------------------------------- tidying up
@dataclass
class _Summary:
    """What one pass over the rows found."""

    kept: np.ndarray[Any, Any]
    """Which rows stay."""
    missing: np.ndarray[Any, Any]
    """Number of values per column that are not finite."""
    incomplete: int
    """Rows with such a value."""
    infinite: bool
    """Is infinity among them?"""
    low: np.ndarray[Any, Any]
    high: np.ndarray[Any, Any]
    mean: np.ndarray[Any, Any]
    """Of the finite values of the rows that stay."""
    count: np.ndarray[Any, Any]


def tidy(source: Source, options: DataOptions) -> Matrix:
    """Handle missing values, standardize, convert: the same for every kind of file.

    Parameters
    ----------
    source : Source
    options : DataOptions

    Returns
    -------
    Matrix

    Raises
    ------
    CommandError
        No rows, values missing without leave, columns that cannot be standardized.
    """
    if source.rows == 0:
        message = f"{source.label}: has no rows"
        raise CommandError(message)
    summary = _summarize(source, drop=options.missing == "drop")
    notes = [*source.notes, *_missing_note(source, summary, options)]
    standardize = source.is_table if options.standardize is None else options.standardize
    dtype = np.dtype(options.dtype or ("float32" if source.half_or_single else "float64"))
    if not standardize and not summary.incomplete and source.values is not None and source.values.dtype == dtype:
        return Matrix(x=source.values, columns=source.columns, notes=tuple(notes))
    keep = np.arange(len(source.columns))
    shift, scale = np.zeros(len(keep)), np.ones(len(keep))
    if standardize:
        keep = np.flatnonzero(summary.low < summary.high)
        shift, scale = _mean_and_deviation(source, summary, keep)
        constant = [name for j, name in enumerate(source.columns) if j not in set(keep.tolist())]
        if constant:
            notes.append(f"Left out as constant: {', '.join(constant[:12])}{', ...' if len(constant) > 12 else ''}.")
        notes.append("Each column was standardized to mean 0 and deviation 1.")
    x = np.empty((int(summary.kept.sum()), len(keep)), dtype=dtype)
    position = 0
    for start, stop, block in source.blocks():
        rows = block[summary.kept[start:stop]]
        rows = np.where(np.isfinite(rows), rows, summary.mean)[:, keep]
        with np.errstate(over="ignore"):
            x[position : position + len(rows)] = (rows - shift) / scale
        position += len(rows)
    return Matrix(x=x, columns=tuple(source.columns[j] for j in keep), notes=tuple(notes))


def _summarize(source: Source, *, drop: bool) -> _Summary:
    """One pass: missing values, range and mean per column."""
    d = len(source.columns)
    kept = np.ones(source.rows, dtype=bool)
    missing, count = np.zeros(d, dtype=np.int64), np.zeros(d, dtype=np.int64)
    low, high, total = np.full(d, math.inf), np.full(d, -math.inf), np.zeros(d)
    incomplete, infinite = 0, False
    with np.errstate(over="ignore", invalid="ignore"):
        for start, stop, block in source.blocks():
            finite = np.isfinite(block)
            complete = finite.all(axis=1)
            incomplete += int((~complete).sum())
            missing += (~finite).sum(axis=0)
            infinite = infinite or bool(np.isinf(block).any())
            if drop:
                kept[start:stop] = complete
                block, finite = block[complete], finite[complete]
            count += finite.sum(axis=0)
            low = np.minimum(low, np.where(finite, block, math.inf).min(axis=0, initial=math.inf))
            high = np.maximum(high, np.where(finite, block, -math.inf).max(axis=0, initial=-math.inf))
            total += np.where(finite, block, 0.0).sum(axis=0)
        mean = total / np.maximum(count, 1)
    return _Summary(kept=kept, missing=missing, incomplete=incomplete, infinite=infinite, low=low, high=high, mean=mean, count=count)


def _missing_note(source: Source, summary: _Summary, options: DataOptions) -> list[str]:
    """Refuse missing values, or say what became of them."""
    if not summary.incomplete:
        return []
    number = int(summary.missing.sum())
    worst = source.columns[int(summary.missing.argmax())]
    kind = "missing or infinite value" if summary.infinite else "missing value"
    what = f"{_count(number, kind)} in {_count(summary.incomplete, 'row')} (most in column {worst})"
    if options.missing == "error":
        message = f"{source.label}: {what}; choose --missing drop (the rows) or --missing mean (of the column)"
        raise CommandError(message)
    if options.missing == "drop":
        if not summary.kept.any():
            message = f"{source.label}: every row has a missing value; choose --missing mean, or leave column {worst} out"
            raise CommandError(message)
        return [f"{what}: these rows were left out."]
    if (summary.count == 0).any():
        name = source.columns[int(summary.count.argmin())]
        message = f"{source.label}: column {name} has no values at all; leave it out with --drop {name}"
        raise CommandError(message)
    return [f"{what}: replaced by the mean of the column."]


def _mean_and_deviation(source: Source, summary: _Summary, keep: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean and standard deviation of the columns that vary, from the values that are there, in two passes."""
    if len(keep) == 0:
        message = f"{source.label}: every column is constant: nothing to standardize; --no-standardize takes them as they are"
        raise CommandError(message)
    with np.errstate(over="ignore", invalid="ignore"):
        width = (summary.high - summary.low)[keep]  # squares are taken in units of it, so that they cannot overflow
        squares = np.zeros(len(keep))
        for start, stop, block in source.blocks():
            rows = block[summary.kept[start:stop]][:, keep]
            away = np.where(np.isfinite(rows), (rows - summary.mean[keep]) / width, 0.0)
            squares += (away * away).sum(axis=0)
        deviation = np.sqrt(squares / summary.count[keep]) * width
    usable = np.isfinite(deviation) & (deviation > 0) & np.isfinite(summary.mean[keep])
    if not usable.all():
        name = source.columns[int(keep[int(usable.argmin())])]
        message = f"{source.label}: column {name} has values too large to standardize; leave it out with --drop {name}"
        raise CommandError(message)
    return summary.mean[keep], deviation


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
