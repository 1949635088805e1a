"""Rows in chunks, wherever they come from: arrays and memory maps, iterators, files.

A source tells the number of its columns and, if it knows it, of its rows, and hands out blocks of rows in their order, from any
row on. Blocks may have any length: `chunks` cuts them into chunks of a fixed one, so that nothing that is computed from chunks
depends on how a file or an iterator happens to be divided.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from softlinalg import _arrays
from softlinalg._ridge_sums import check_size
from softlinalg.errors import DTypeError, InputError, NonFiniteError, ParameterError, ShapeError

__all__ = [
    "ArrayRows",
    "Block",
    "Host",
    "IteratedRows",
    "MappedRows",
    "RowReader",
    "RowSource",
    "checked_chunk",
    "chunks",
    "is_sliceable",
    "real_dtype",
]

Host = np.ndarray[Any, Any]

Block = tuple[Host, Host | None]
"""Some rows, shape (b, d), and their targets, shape (b, k), or None."""

BLOCK_BYTES = 2**25
"""Rows of an array are read in blocks of at most so many bytes (32 MiB) where no chunk length says otherwise."""


@runtime_checkable
class RowSource(Protocol):
    """What streaming asks of a source of rows.

    Attributes
    ----------
    rows : int or None
        Number of rows; None where it is not known before the end.
    columns : int
        Features per row.
    targets : int
        Targets per row, 0 without.
    dtype : dtype
        float32 or float64: what blocks of features are.
    can_restart : bool
        Whether `blocks` can be called again.
    """

    rows: int | None
    columns: int
    targets: int
    dtype: Any
    can_restart: bool

    def blocks(self, start: int = 0, *, length: int | None = None) -> Iterator[Block]:
        """All rows from number `start` on, in order; `length` is the block length that would suit best."""
        ...


def real_dtype(dtype: Any, *, func: str, name: str) -> np.dtype[Any]:
    """float32 for float32 and half precision, float64 for other real numbers.

    Raises
    ------
    DTypeError
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        message = f"{func}: {name} must hold real numbers of at most 64 bits; got dtype {dtype}. Convert them to float64."
        raise DTypeError(message)
    return np.dtype(np.float32 if dtype.kind == "f" and dtype.itemsize <= 4 else np.float64)


def is_sliceable(x: Any) -> bool:
    """An array of any library that gives up rows by slices: in memory, mapped, HDF5, zarr."""
    return hasattr(x, "dtype") and hasattr(x, "shape") and hasattr(x, "__getitem__")


def as_host(x: Any, *, func: str, name: str) -> Host:
    """Rows as a NumPy array of real numbers."""
    try:
        host = np.asarray(_arrays.to_numpy(x))
        real_dtype(host.dtype, func=func, name=name)
    except (DTypeError, MemoryError):
        raise
    except (TypeError, ValueError) as error:
        message = f"{func}: {name} must be blocks of numbers; got {type(x).__name__[:60]}. Pass arrays, or pairs of arrays."
        raise DTypeError(message) from error
    return host


class ArrayRows:
    """Rows of an array that can be sliced, read a block at a time: a memory map never becomes resident as a whole.

    Parameters
    ----------
    x : array, shape (n, d)
    y : array, shape (n,) or (n, k), optional
    func : str
        Name of the public function, for messages.

    Raises
    ------
    ShapeError, DTypeError
    """

    can_restart = True

    def __init__(self, x: Any, y: Any = None, *, func: str) -> None:
        if len(x.shape) != 2 or 0 in x.shape:
            message = f"{func}: source must have shape (n, d) with n, d >= 1; got {tuple(x.shape)}. Pass one point per row."
            raise ShapeError(message)
        self._x, self._y, self._func = x, y, func
        self.rows: int | None = int(x.shape[0])
        self.columns = int(x.shape[1])
        self.dtype = real_dtype(as_host(_slice(x, 0, 0), func=func, name="source").dtype, func=func, name="source")
        self.targets = 0
        if y is not None:
            if len(y.shape) not in (1, 2) or y.shape[0] != self.rows or 0 in y.shape:
                message = (
                    f"{func}: targets must have shape ({self.rows},) or ({self.rows}, k); got {tuple(y.shape)}. Pass one row per point."
                )
                raise ShapeError(message)
            self.targets = 1 if len(y.shape) == 1 else int(y.shape[1])

    def blocks(self, start: int = 0, *, length: int | None = None) -> Iterator[Block]:
        """Copies of blocks of rows; mapped pages are given back once copied."""
        step = length or max(1, BLOCK_BYTES // (8 * self.columns))
        n = int(self.rows or 0)
        for first in range(start, n, step):
            last = min(n, first + step)
            y = None if self._y is None else self._copy(self._y, first, last, np.float64, "targets")
            yield self._copy(self._x, first, last, self.dtype, "source"), y

    def take(self, indices: Host) -> Block:
        """The rows with these (rising) numbers, checked."""
        step = 64 if isinstance(self._x, np.memmap) else 4096  # a page that is touched brings in fifteen others
        parts = [self._some(indices[i : i + step]) for i in range(0, len(indices), step)]
        y = None if self._y is None else np.concatenate([part for _, part in parts if part is not None])
        return np.concatenate([part for part, _ in parts]), y

    def _some(self, indices: Host) -> Block:
        first, last = int(indices[0]), int(indices[-1]) + 1
        x = self._read(self._x, lambda a: _rows(a, indices), first, last, self.dtype, "source")
        _check_rows("source", x, indices, func=self._func)
        if self._y is None:
            return x, None
        y = self._read(self._y, lambda a: _rows(a, indices), first, last, np.float64, "targets")
        _check_targets(y, indices, func=self._func)
        return x, y

    def _copy(self, a: Any, first: int, last: int, dtype: Any, name: str) -> Host:
        return self._read(a, lambda rows: _slice(rows, first, last), first, last, dtype, name)

    def _read(self, a: Any, part: Callable[[Any], Any], first: int, last: int, dtype: Any, name: str) -> Host:
        """A copy of a part of the rows from `first` to before `last`, as a matrix."""
        try:
            values = np.array(as_host(part(a), func=self._func, name=name), dtype=dtype)
        except OSError as error:
            message = f"{self._func}: {name} must be readable; got {error} at rows {first} to {last - 1}. Repair the file."
            raise InputError(message) from error
        _give_back(a, first, last)
        return values.reshape(len(values), -1)


def _rows(a: Any, indices: Host) -> Any:
    """Rows by their numbers, of an array that perhaps takes no arrays of NumPy for numbers of rows."""
    try:
        return a[indices]
    except (IndexError, TypeError):
        return np.concatenate([np.asarray(_arrays.to_numpy(_slice(a, i, i + 1))) for i in indices.tolist()])


def _slice(a: Any, first: int, last: int) -> Any:
    """Rows first..last, with all axes named: some libraries ask for that."""
    return a[(slice(first, last), *[slice(None)] * (len(a.shape) - 1))]


def _give_back(x: Any, first: int, last: int) -> None:
    """Tell the system that pages of a memory map are no longer needed: they stay in its cache, not in this process.

    Without this the memory of the process grows by every page read. Only for maps of files whose pages hold nothing that is not
    in the file: private ones ("c") would lose what was written to them.
    """
    base = getattr(x, "_mmap", None)
    if not isinstance(x, np.memmap) or not isinstance(base, mmap.mmap) or x.mode not in ("r", "r+") or not x.flags.c_contiguous:
        return
    if not hasattr(base, "madvise") or x.ndim == 0 or last <= first:
        return
    whole = np.frombuffer(base, dtype=np.uint8)
    begin = x.__array_interface__["data"][0] - whole.__array_interface__["data"][0]
    page, row = mmap.PAGESIZE, x.strides[0]
    low, high = (begin + first * row) // page * page, min(begin + last * row, len(whole))
    with contextlib.suppress(OSError, ValueError):
        base.madvise(mmap.MADV_DONTNEED, low, high - low)


class IteratedRows:
    """Rows from an iterator of blocks, or from a function that begins such an iterator anew each time it is called.

    Parameters
    ----------
    begin : callable or iterable
        `begin()` gives an iterator over arrays (b, d), or pairs of arrays (b, d), (b,) or (b, k); an iterable that is no
        iterator, such as a list of arrays, can be begun anew as well. An iterator can be read once.
    rows : int, optional
        Number of rows, if known: for the progress bar, and to notice rows that are missing.
    func : str
    """

    def __init__(self, begin: Any, *, rows: int | None = None, func: str) -> None:
        self._func = func
        self.rows = rows
        self.can_restart = callable(begin) or not isinstance(begin, Iterator)
        self._begin: Callable[[], Iterable[Any]] = begin if callable(begin) else lambda: begin
        self._first: Any = None
        self._rest: Iterator[Any] | None = None
        iterator = self._anew()
        first = next(iterator, None)
        if first is None:
            message = f"{func}: source must have rows; got an iterator without blocks. Pass a new one, or a function that makes one."
            raise ShapeError(message)
        x, y = self._pair(first)
        self.columns, self.targets = int(x.shape[1]), 0 if y is None else int(y.shape[1])
        self.dtype = real_dtype(x.dtype, func=func, name="source")
        if not self.can_restart:
            self._first, self._rest = first, iterator

    def blocks(self, start: int = 0, *, length: int | None = None) -> Iterator[Block]:
        """Blocks as they come, without the first `start` rows."""
        if self.can_restart:
            iterator = self._anew()
        else:
            if self._rest is None:
                message = f"{self._func}: source must be a function that makes iterators, to be read twice; got an iterator. Pass such."
                raise InputError(message)
            rest, first, self._rest, self._first = self._rest, self._first, None, None
            iterator = (item for items in ((first,), rest) for item in items)
        position = 0
        for item in iterator:
            x, y = self._pair(item)
            if x.shape[1] != self.columns or (0 if y is None else y.shape[1]) != self.targets:
                got = f"({x.shape[1]}, {0 if y is None else y.shape[1]}) after ({self.columns}, {self.targets})"
                message = f"{self._func}: source must keep its numbers of features and targets; got {got} at row {position}. Check it."
                raise ShapeError(message)
            skip, position = max(0, start - position), position + len(x)
            if skip < len(x):
                yield np.array(x[skip:], dtype=self.dtype), None if y is None else y[skip:]
        if self.rows is not None and position != self.rows:
            message = (
                f"{self._func}: source must give all of its {self.rows} rows; got {position}. It ended early, or was announced wrongly."
            )
            raise InputError(message)

    def _anew(self) -> Iterator[Any]:
        """The iterator from its beginning; what a function of the caller's raises is passed on."""
        try:
            begun = self._begin()
        except TypeError as error:
            inside = error.__traceback__ and error.__traceback__.tb_next  # raised by the function, not by the attempt to call it
            if inside:
                raise
            message = (
                f"{self._func}: source must be callable without arguments, if it is a function; got '{error}'. Write lambda: blocks(x)."
            )
            raise ParameterError(message[:400]) from error
        try:
            return iter(begun)
        except TypeError as error:
            message = (
                f"{self._func}: source must be a function that makes iterators; got one that returns {type(begun).__name__[:60]}. "
                "Yield the blocks, or return an iterator."
            )
            raise ParameterError(message) from error

    def _pair(self, item: Any) -> Block:
        x, y = item if isinstance(item, tuple) and len(item) == 2 else (item, None)
        x = as_host(x, func=self._func, name="source")
        if x.ndim != 2 or x.shape[1] == 0:
            message = f"{self._func}: source must give blocks of shape (b, d) with d >= 1; got {x.shape}. Pass one point per row."
            raise ShapeError(message)
        if y is None:
            return x, None
        y = np.array(as_host(y, func=self._func, name="targets"), dtype=np.float64)
        if y.ndim not in (1, 2) or len(y) != len(x):
            message = f"{self._func}: targets must have one row per point; got {y.shape} for {len(x)} rows. Pass (b,) or (b, k)."
            raise ShapeError(message)
        return x, y.reshape(len(x), -1)


class MappedRows:
    """A source whose blocks go through a function of features and targets."""

    def __init__(self, source: RowSource, change: Callable[[Host, Host | None], Block], *, columns: int, dtype: Any) -> None:
        self._source, self._change = source, change
        self.rows, self.targets, self.can_restart = source.rows, source.targets, source.can_restart
        self.columns, self.dtype = columns, np.dtype(dtype)

    def blocks(self, start: int = 0, *, length: int | None = None) -> Iterator[Block]:
        """Changed blocks."""
        return (self._change(*block) for block in self._source.blocks(start, length=length))


def chunks(source: RowSource, length: int, first: int = 0, *, func: str) -> Iterator[tuple[int, Host, Host | None]]:
    """Chunks of exactly `length` rows (but for the last), as (number of the first row, features, targets), checked.

    Parameters
    ----------
    source : RowSource
    length : int
    first : int, default 0
        Number of the first chunk.

    Raises
    ------
    NonFiniteError
        NaN or infinity, with the number of the row.
    ShapeError
        No rows.
    """
    start, waiting, held = first * length, list[Block](), 0
    for x, y in source.blocks(start, length=length):
        waiting.append((x, y))
        held += len(x)
        while held >= length:
            block, waiting = _cut(waiting, length)
            held -= length
            yield checked_chunk(start, block, func=func)
            start += length
    if held:
        yield checked_chunk(start, _cut(waiting, held)[0], func=func)
    elif start == 0:
        message = f"{func}: source must have rows; got none. Pass at least one."
        raise ShapeError(message)


def _cut(waiting: list[Block], length: int) -> tuple[Block, list[Block]]:
    """The first `length` rows of some blocks, and the rest."""
    parts: list[Block] = []
    while length:
        x, y = waiting[0]
        parts.append((x[:length], None if y is None else y[:length]))
        rest: list[Block] = [(x[length:], None if y is None else y[length:])] if len(x) > length else []
        waiting = [*rest, *waiting[1:]]
        length -= len(parts[-1][0])
    if len(parts) == 1:
        return parts[0], waiting
    x = np.concatenate([part for part, _ in parts])
    return (x, None if parts[0][1] is None else np.concatenate([part for _, part in parts if part is not None])), waiting


def checked_chunk(start: int, block: Block, *, func: str) -> tuple[int, Host, Host | None]:
    """A chunk without NaN and infinity, in row-major order."""
    x, y = block
    _check_rows("source", x, range(start, start + len(x)), func=func)
    if y is not None:
        _check_targets(y, range(start, start + len(x)), func=func)
    return start, np.ascontiguousarray(x), None if y is None else np.ascontiguousarray(y)


def _check_rows(name: str, values: Host, numbers: Any, *, func: str) -> None:
    """Raise where rows with these numbers hold NaN or infinity."""
    with np.errstate(all="ignore"):
        if np.isfinite(values.sum()):
            return
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(numbers[int(bad.any(axis=1).argmax())])
        message = f"{func}: {name} must be finite; got NaN or infinity (first in row {row}). Clean or drop such rows."
        raise NonFiniteError(message)


def _check_targets(values: Host, numbers: Any, *, func: str) -> None:
    """Raise where targets are not finite, or cannot be squared."""
    _check_rows("targets", values, numbers, func=func)
    check_size(float(np.max(np.abs(values), initial=0.0)), func=func, name="targets")


class RowReader:
    """The rows of a source as a matrix that can be read by slices of rows, one after the other: each pass reads the source once."""

    ndim = 2

    def __init__(self, source: RowSource, rows: int) -> None:
        self._source = source
        self.shape = (rows, source.columns)
        self.dtype = source.dtype
        self._iterator: Iterator[Block] = iter(())
        self._block: Host = np.empty((0, source.columns), source.dtype)
        self._position = rows

    def __getitem__(self, index: Any) -> Host:
        """Rows start..stop, in all columns."""
        rows = index[0] if isinstance(index, tuple) else index
        start, stop, step = rows.indices(self.shape[0]) if isinstance(rows, slice) else (0, 0, 0)
        if step != 1:
            message = "NystromDecomposition: data that are streamed are read by slices of rows; got another index. Use load with x."
            raise ParameterError(message)
        if start != self._position:
            self._iterator, self._position = self._source.blocks(start), start
            self._block = self._block[:0]
        while len(self._block) < stop - start:
            following = next(self._iterator, None)
            if following is None:
                message = f"NystromDecomposition: data must keep their {self.shape[0]} rows; got the end before row {stop}. They changed."
                raise InputError(message)
            self._block = np.concatenate([self._block, following[0]]) if len(self._block) else following[0]
        part, self._block = self._block[: stop - start], self._block[stop - start :]
        self._position = stop
        return part
