"""Rows of files in blocks: .npy by memory map, .csv and .parquet a piece at a time; none is ever held as a whole."""

from __future__ import annotations

import abc
import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softlinalg._settings import file_path, flag, shown
from softlinalg._streaming_sources import ArrayRows, Block, Host, MappedRows, RowSource, real_dtype
from softlinalg.errors import InputError, ParameterError, ShapeError, SoftlinalgError

__all__ = ["FILE_SUFFIXES", "is_number", "open_rows", "optional_package"]

FILE_SUFFIXES = (".npy", ".csv", ".csv.gz", ".parquet")

MISSING = ': reading {what} must have the package {{package}}; got none. Run: pip install "softlinalg[demo]".'

PIECE_BYTES = 2**23
"""float64 memory of one piece of a table (8 MiB); readers hold a few times as much."""


def open_rows(
    path: str | os.PathLike[str],
    *,
    columns: Sequence[str | int] | None = None,
    targets: str | int | Sequence[str | int] | None = None,
    header: bool | None = None,
    delimiter: str = ",",
    dtype: Any = None,
) -> RowSource:
    """Rows of a file, for `nystrom_stream`: read a piece at a time, however large the file is.

    Parameters
    ----------
    path : str or path
        .npy (one array of two axes), .csv, .csv.gz or .parquet.
    columns : sequence of str or int, optional
        The features, by name or number. Default: all columns but the targets.
    targets : str, int or sequence of them, optional
        The columns to be predicted; negative numbers count from the end. They are read as float64.
    header : bool, optional
        CSV: whether the first row holds names. Default: unless it is all numbers. Columns without names are called "0", "1", ...
    delimiter : str, default ","
        CSV: what separates columns.
    dtype : dtype, optional
        float32 or float64, for the features. Default: float32 where the file holds float32 or float16, otherwise float64.

    Returns
    -------
    RowSource
        With attributes `rows` (None for CSV), `columns`, `names`, `target_names`, `dtype`, and a method `blocks`.

    Raises
    ------
    InputError
        The file is of another kind, damaged, or holds other things than numbers.
    ParameterError
        A column that is not there, a column twice.
    FileNotFoundError

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> import pathlib
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name) / "rows.npy"
    >>> np.save(path, np.random.default_rng(0).normal(size=(500, 3)))
    >>> rows = softlinalg.open_rows(path)
    >>> streamed = softlinalg.nystrom_stream(rows, softlinalg.Gaussian(2.0), rank=50, rng=0)
    >>> streamed.decomposition.rank
    50
    >>> folder.cleanup()
    """
    func = "open_rows"
    file = file_path(path, func=func)
    kind = next((suffix for suffix in FILE_SUFFIXES if file.name.lower().endswith(suffix)), None)
    if kind is None:
        message = (
            f"{func}: path must end in {', '.join(FILE_SUFFIXES)}; got {file.name[-60:]!r}. Convert it, or pass an iterator of blocks."
        )
        raise InputError(message)
    if not file.is_file():
        message = f"{func}: path must be a file; got {str(file)[-120:]!r}. Check the name."
        raise FileNotFoundError(message)
    wanted = None if dtype is None else _feature_dtype(dtype, func=func)
    header = None if header is None else flag(header, func=func, name="header")
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        message = f"{func}: delimiter must be one character; got {shown(delimiter)}. Pass the one between two columns."
        raise ParameterError(message)
    if kind == ".npy":
        return _open_npy(file, columns, targets, wanted, func=func)
    if kind == ".parquet":
        return _Parquet(file, columns, targets, wanted, func=func)
    return _Csv(file, columns, targets, wanted, header=header, delimiter=delimiter, func=func)


def _feature_dtype(dtype: Any, *, func: str) -> np.dtype[Any]:
    """float32 or float64 from a setting that names one of them."""
    wanted: np.dtype[Any] | None = None
    with contextlib.suppress(TypeError, ValueError, SyntaxError, OverflowError):
        wanted = np.dtype(dtype)
    if wanted is None or wanted not in (np.dtype(np.float32), np.dtype(np.float64)):  # None equals the default type
        message = f"{func}: dtype must be float32 or float64; got {str(wanted)[:40] if wanted else shown(dtype)}. Choose one of these."
        raise ParameterError(message)
    return wanted


class _Columns:
    """Which columns of a table are features and which are targets."""

    def __init__(self, names: Sequence[str], columns: Any, targets: Any, *, func: str, file: Path) -> None:
        self._names, self._func, self._file = list(names), func, file
        self.targets = [] if targets is None else self._places(targets, "targets")
        if columns is None:
            self.features = [place for place in range(len(names)) if place not in set(self.targets)]
        else:
            self.features = self._places(columns, "columns")
        both = [*self.features, *self.targets]
        if len(set(both)) < len(both):
            message = f"{func}: columns and targets must name each column once; got one twice. Leave it out of one of them."
            raise ParameterError(message)
        if not self.features:
            message = f"{func}: columns must name a feature at least; got none in {file.name[-60:]!r}. Name one."
            raise ShapeError(message)
        self.names = tuple(self._names[place] for place in self.features)
        self.target_names = tuple(self._names[place] for place in self.targets)

    def _places(self, names: Any, argument: str) -> list[int]:
        """The numbers of one column or several."""
        if isinstance(names, list | tuple | range) or (isinstance(names, np.ndarray) and names.ndim == 1):
            return [self._place(name, argument) for name in names]
        return [self._place(names, argument)]

    def _place(self, name: Any, argument: str) -> int:
        count = len(self._names)
        if isinstance(name, str) and name in self._names:
            return self._names.index(name)
        if isinstance(name, int | np.integer) and not isinstance(name, bool) and -count <= name < count:
            return int(name) % count
        known = " ".join(f"It has: {', '.join(self._names[:12])}{', ...' if count > 12 else ''}".split())
        message = f"{self._func}: {argument} must be among the columns of {self._file.name[-60:]!r}; got {shown(name)}. {known}"
        raise ParameterError(message[:399] + ".")


@contextlib.contextmanager
def _reading(file: Path, *, func: str) -> Iterator[None]:
    """Turn whatever a reader raises into one line that names the file."""
    try:
        yield
    except (SoftlinalgError, MemoryError, KeyboardInterrupt, GeneratorExit):
        raise
    except Exception as error:  # readers of foreign formats raise some twenty types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        message = f"{func}: {file.name[-60:]!r} must be readable to its end; got: {reason}. Restore the file."
        raise InputError(message) from error


def optional_package(module: str, message: str, *, error: type[Exception] = InputError) -> Any:
    """Import a module of an optional package, or raise `error` with the message, in which {package} stands for its name."""
    try:
        return importlib.import_module(module)
    except ImportError as cause:
        raise error(message.format(package=module.split(".", maxsplit=1)[0])) from cause


# ------------------------------------------------------------------------------------------------ .npy
def _open_npy(file: Path, columns: Any, targets: Any, dtype: Any, *, func: str) -> RowSource:
    """The rows of an array; some of its columns where they are asked for."""
    with _reading(file, func=func):
        x = np.load(file, mmap_mode="r", allow_pickle=False)
    if x.ndim != 2 or 0 in x.shape:
        message = f"{func}: {file.name[-60:]!r} must hold one array of shape (n, d) with n, d >= 1; got {x.shape}. Save such an array."
        raise ShapeError(message)
    chosen = _Columns([str(j) for j in range(x.shape[1])], columns, targets, func=func, file=file)
    source = ArrayRows(x, func=func)
    source.dtype = source.dtype if dtype is None else dtype
    source.names, source.target_names = chosen.names, chosen.target_names  # type: ignore[attr-defined]
    if columns is None and not chosen.targets:
        return source
    wide = ArrayRows(x, func=func)
    wide.dtype = real_dtype(x.dtype, func=func, name="path")
    some = _Picked(wide, chosen)
    some.dtype = source.dtype
    return some


class _Picked(MappedRows):
    """Some columns of an array as features, some as targets."""

    def __init__(self, source: ArrayRows, chosen: _Columns) -> None:
        super().__init__(source, self._split, columns=len(chosen.features), dtype=source.dtype)
        self.names, self.target_names, self.targets = chosen.names, chosen.target_names, len(chosen.targets)
        self._features, self._targets = chosen.features, chosen.targets

    def _split(self, x: Host, y: Host | None) -> Block:
        features = np.ascontiguousarray(x[:, self._features], dtype=self.dtype)
        return features, np.ascontiguousarray(x[:, self._targets], dtype=np.float64) if self._targets else None


# ------------------------------------------------------------------------------------------------ tables
class _Table(abc.ABC):
    """What CSV and Parquet have in common: data frames become features and targets."""

    can_restart = True
    rows: int | None = None

    def __init__(self, file: Path, chosen: _Columns, dtype: Any, *, func: str) -> None:
        self._file, self._func = file, func
        self.names, self.target_names = chosen.names, chosen.target_names
        self.columns, self.targets = len(chosen.names), len(chosen.target_names)
        self.dtype = np.dtype(dtype)
        self._places = [*chosen.features, *chosen.targets]

    @abc.abstractmethod
    def _frames(self, rows: int) -> Iterator[Any]:
        """Data frames of about so many rows, with the columns of the file in their order."""

    def blocks(self, start: int = 0, *, length: int | None = None) -> Iterator[Block]:
        """Blocks of 8 MiB, without the first `start` rows (they are read all the same)."""
        position = 0
        frames = self._frames(max(256, PIECE_BYTES // (8 * len(self._places))))
        while True:
            with _reading(self._file, func=self._func):
                frame = next(frames, None)
            if frame is None:
                return
            skip, begin, position = max(0, start - position), position, position + len(frame)
            if skip < len(frame):
                values = self._numbers(frame, begin)[skip:]
                y = np.ascontiguousarray(values[:, self.columns :]) if self.targets else None
                with np.errstate(over="ignore"):
                    yield np.ascontiguousarray(values[:, : self.columns], dtype=self.dtype), y

    def _numbers(self, frame: Any, begin: int) -> Host:
        """A data frame as float64; missing values become NaN."""
        pandas = importlib.import_module("pandas")
        for name in frame.columns:
            column = frame[name]
            if not pandas.api.types.is_numeric_dtype(column) or pandas.api.types.is_complex_dtype(column):
                wrong = (pandas.to_numeric(column, errors="coerce").isna() & column.notna()).to_numpy()
                if not wrong.any() and column.isna().all():
                    continue
                where = f"column {str(name)[:40]!r} without numbers (first in row {begin + int(wrong.argmax())})"
                remedy = "Leave such columns out: `columns`, or --drop of the command."
                message = f"{self._func}: {self._file.name[-60:]!r} must hold numbers; got {where}. {remedy}"
                raise InputError(message)
        return np.asarray(frame.to_numpy(dtype=np.float64, na_value=np.nan))


class _Csv(_Table):
    """A .csv file, perhaps compressed."""

    def __init__(self, file: Path, columns: Any, targets: Any, dtype: Any, *, header: bool | None, delimiter: str, func: str) -> None:
        pandas = optional_package("pandas", func + MISSING.format(what="CSV"))
        self._shape = {"sep": delimiter, "skipinitialspace": True, "index_col": False}
        with _reading(file, func=func):
            first = pandas.read_csv(file, header=None, nrows=1, dtype=str, keep_default_na=False, **self._shape)
            self._header = not all(is_number(cell) for cell in first.iloc[0]) if header is None else header
            names = [*map(str, pandas.read_csv(file, nrows=0, **self._shape).columns if self._header else range(first.shape[1]))]
        self._all_names = names
        super().__init__(file, _Columns(names, columns, targets, func=func, file=file), dtype or np.float64, func=func)

    def _frames(self, rows: int) -> Iterator[Any]:
        pandas = importlib.import_module("pandas")
        # All columns, although some are dropped: with usecols pandas cuts rows that are too long without a word.
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)
            reader = pandas.read_csv(
                self._file,
                header=0 if self._header else None,
                names=None if self._header else self._all_names,
                chunksize=rows,
                **self._shape,
            )
        with reader:
            while True:
                with warnings.catch_warnings():
                    warnings.simplefilter("error", pandas.errors.ParserWarning)
                    frame = next(reader, None)
                if frame is None:
                    return
                yield frame.iloc[:, self._places]


class _Parquet(_Table):
    """A .parquet file."""

    def __init__(self, file: Path, columns: Any, targets: Any, dtype: Any, *, func: str) -> None:
        self._parquet = optional_package("pyarrow.parquet", func + MISSING.format(what="Parquet"))
        optional_package("pandas", func + MISSING.format(what="Parquet"))
        with _reading(file, func=func), self._parquet.ParquetFile(file) as table:
            schema, rows = table.schema_arrow, table.metadata.num_rows
        chosen = _Columns(schema.names, columns, targets, func=func, file=file)
        single = all(str(schema.field(place).type) in ("float", "halffloat") for place in chosen.features)
        super().__init__(file, chosen, dtype or (np.float32 if single else np.float64), func=func)
        self.rows = int(rows)

    def _frames(self, rows: int) -> Iterator[Any]:
        names = [*self.names, *self.target_names]
        with self._parquet.ParquetFile(self._file) as table:
            for batch in table.iter_batches(batch_size=rows, columns=names):
                yield batch.to_pandas()[names]


def is_number(cell: str) -> bool:
    """Whether a cell of a table can be read as a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True
