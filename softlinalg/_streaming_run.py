"""One pass over a source on this machine: chunks are read in order, computed by a few threads and merged in order."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from softlinalg import _arrays
from softlinalg._nystrom_core import progress_bar
from softlinalg._streaming_checkpoint import Checkpoint, Progress, chunk_digest
from softlinalg._streaming_sources import ArrayRows, Host, RowSource, chunks
from softlinalg._streaming_tasks import FeatureTask, SampleTask, State, Task, Tree, smallest_keys
from softlinalg.errors import CheckpointError, InputError

__all__ = ["LocalEngine"]


class LocalEngine:
    """Runs tasks over a source.

    Parameters
    ----------
    source : RowSource
    chunk_size : int
        Rows per chunk.
    threads : int or None
        Default: as many as the BLAS may use.
    progress : bool
    func : str
    """

    def __init__(self, source: RowSource, *, chunk_size: int, threads: int | None, progress: bool, func: str) -> None:
        self.source, self.chunk_size, self.func = source, chunk_size, func
        self._threads, self._progress = threads, progress
        self.rows = source.rows
        self._passes = 0

    def call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """The function's result."""
        return function(*arguments, **settings)

    def prefix(self) -> tuple[Host, Host | None]:
        """The first chunk. Of a source that can be read once it is kept, and comes again in the pass."""
        iterator = chunks(self.source, self.chunk_size, func=self.func)
        _, x, y = next(iterator)
        if not self.source.can_restart:
            self.source = _Resumed(self.source, (x, y), iterator)
        return x, y

    def sample(self, task: SampleTask) -> tuple[Host, Host]:
        """Rows and targets of the sample that the task takes; without a pass where rows can be taken by their number."""
        if isinstance(self.source, ArrayRows) and self.source.rows is not None:
            x, y = self.source.take(smallest_keys(task.seed, self.source.rows, task.count))
            return x, x[:, :0] if y is None else y
        state = self.reduce(task, "sample of rows")
        return state[2], state[3]

    def reduce(self, task: Task, label: str, checkpoint: Checkpoint | None = None, resumed: Progress | None = None) -> State:
        """The merger of the task's results over all chunks.

        Parameters
        ----------
        task : Task
        label : str
            For the progress bar.
        checkpoint : Checkpoint, optional
            Written now and then, and when the pass is interrupted or fails (`task` is then a `FeatureTask`).
        resumed : Progress, optional
            Where an earlier pass had come to. The rows that it saw are read again, and compared.

        Raises
        ------
        CheckpointError
            Those rows have changed.
        """
        self._passes += 1
        if self._passes > 1 and not self.source.can_restart:
            message = f"{self.func}: source must be readable more than once here; got an iterator. Pass a function that makes iterators."
            raise InputError(message)
        known: list[bytes] = [] if resumed is None else resumed.digests
        done = _Done(task, [] if resumed is None else resumed.items, list(known), checkpoint)
        with contextlib.ExitStack() as stack:
            allowed = stack.enter_context(_arrays.one_blas_thread())  # for each of ours
            threads = self._threads or min(allowed, os.cpu_count() or 1)
            pool = stack.enter_context(ThreadPoolExecutor(threads, thread_name_prefix="softlinalg"))
            advance = stack.enter_context(progress_bar(self.rows, label, shown=self._progress))
            waiting: deque[tuple[int, Future[tuple[State, bytes]]]] = deque()
            try:
                seen = 0
                for index, (start, x, y) in enumerate(chunks(self.source, self.chunk_size, func=self.func)):
                    seen = index + 1
                    if index < len(known):
                        _compare(known[index], x, y, start, func=self.func)
                        advance(len(x))
                        continue
                    waiting.append((len(x), pool.submit(_worked, task, start, x, y, checkpoint is not None)))
                    while len(waiting) > threads:
                        count, future = waiting.popleft()
                        done.add(*future.result())
                        advance(count)
                while waiting:
                    count, future = waiting.popleft()
                    done.add(*future.result())
                    advance(count)
            except BaseException:
                with contextlib.suppress(Exception):  # the one that is on its way matters more
                    for _, future in waiting:
                        if future.cancel():
                            break
                        done.add(*future.result())
                for _, future in waiting:
                    future.cancel()
                done.save(at_exit=True)
                raise
        if seen < len(known):
            message = (
                f"{self.func}: source must have all rows that it had; got fewer than the checkpoint has seen. Delete it to begin anew."
            )
            raise CheckpointError(message)
        done.save()
        return done.tree.total()


def _worked(task: Task, start: int, x: Host, y: Host | None, with_digest: bool) -> tuple[State, bytes]:
    return task(start, x, y), chunk_digest(x, y) if with_digest else b""


def _compare(digest: bytes, x: Host, y: Host | None, start: int, *, func: str) -> None:
    if chunk_digest(x, y) != digest:
        what = f"others in rows {start} to {start + len(x) - 1}"
        message = f"{func}: source must hold the rows that the checkpoint has summed; got {what}. Restore them, or delete the checkpoint."
        raise CheckpointError(message)


class _Done:
    """The results so far."""

    def __init__(self, task: Task, items: list[tuple[int, State]], digests: list[bytes], checkpoint: Checkpoint | None) -> None:
        self.task, self.digests, self.checkpoint = task, digests, checkpoint
        self.tree: Tree[State] = Tree(task.merge, items)
        self._saved = len(digests)

    def add(self, state: State, digest: bytes) -> None:
        """The result of the next chunk."""
        self.tree.push(state)
        self.digests.append(digest)
        if self.checkpoint is not None and self.checkpoint.is_due():
            self.save()

    def save(self, *, at_exit: bool = False) -> None:
        """Write the checkpoint where there is something new; after an error, that error matters more than one of writing."""
        if self.checkpoint is None or not isinstance(self.task, FeatureTask) or len(self.digests) == self._saved:
            return
        with contextlib.suppress(OSError) if at_exit else contextlib.nullcontext():
            self.checkpoint.save(Progress(self.task.plan, self.task.shift, self.tree.items, self.digests))
            self._saved = len(self.digests)


class _Resumed:
    """A source that can be read once, with its first chunk put back."""

    can_restart = False

    def __init__(self, source: RowSource, first: tuple[Host, Host | None], rest: Iterator[tuple[int, Host, Host | None]]) -> None:
        self.rows, self.columns, self.targets, self.dtype = source.rows, source.columns, source.targets, source.dtype
        self._first, self._rest = first, rest

    def blocks(self, start: int = 0, *, length: int | None = None) -> Iterator[tuple[Host, Host | None]]:
        """The first chunk, then the others."""
        yield self._first
        for _, x, y in self._rest:
            yield x, y
