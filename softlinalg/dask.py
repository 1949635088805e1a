"""The Nystrom approximation on a Dask cluster: the streamed one, chunk by chunk on workers, with lazy features and predictions.

The pass is that of `softlinalg.nystrom_stream`: the same chunks, added along the same tree, so its sums are the same bit for bit
whatever the number of workers, the order in which they work, and whether some of them die on the way. Landmarks are chosen on a
worker; what comes to the client is of the size of the rank, not of the data. Install with ``pip install "softlinalg[dask]"``.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dask
import dask.array
import numpy as np

from softlinalg import _arrays
from softlinalg._nystrom_core import optional_count, progress_bar
from softlinalg._nystrom_decomposition import NystromDecomposition
from softlinalg._ridge_regression import RidgeModel
from softlinalg._ridge_sums import RidgeSums
from softlinalg._settings import file_path
from softlinalg._streaming import Settings, StreamedNystrom, assembled, checked_call, stream
from softlinalg._streaming_files import open_rows
from softlinalg._streaming_plan import Plan
from softlinalg._streaming_sources import Host, checked_chunk, real_dtype
from softlinalg._streaming_tasks import SampleTask, State, Task, Tree
from softlinalg._typing import RngLike
from softlinalg.errors import DTypeError, ParameterError, ResourceError, ShapeError

__all__ = ["DaskNystrom", "nystrom", "open_npy"]

NO_WORKER_SECONDS = 30.0
"""Without any worker for so long, the computation is given up."""

POLL_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class DaskNystrom:
    """What `softlinalg.dask.nystrom` returns.

    Attributes
    ----------
    decomposition : NystromDecomposition
        On the client: eigenvalues, errors, `features` of new rows in memory, `save`. Without the data, so without products.
    sums : RidgeSums
        Centered sums of features and targets.

    Examples
    --------
    >>> import dask.array, numpy as np, softlinalg.dask
    >>> from distributed import Client
    >>> x = dask.array.random.default_rng(0).normal(size=(2000, 2), chunks=(1000, 2))
    >>> with Client(processes=False, dashboard_address=":0") as client:
    ...     result = softlinalg.dask.nystrom(x, softlinalg.Gaussian(1.5), rank=20, rng=0)
    ...     print(result.features(x).shape, result.decomposition.rank)
    (2000, 20) 20
    """

    decomposition: NystromDecomposition
    sums: RidgeSums
    _plan: Plan

    def features(self, x: Any) -> Any:
        """The feature map of rows, lazily.

        Parameters
        ----------
        x : dask array, shape (q, d)

        Returns
        -------
        dask array, shape (q, rank)
            Chunked like `x` along the rows. Nothing is computed before it is asked for.
        """
        func = "DaskNystrom.features"
        x = _checked_array(x, func=func, name="x", columns=self._plan.landmarks.shape[1])
        rank, dtype = int(self._plan.map.shape[1]), np.dtype(self._plan.dtype)
        return _map_rows(_features, x, self._plan, columns=rank, dtype=dtype)

    def fit_ridge(self, ridges: float | Sequence[float] | None = None) -> RidgeModel:
        """Kernel ridge regression from the sums: as `StreamedNystrom.fit_ridge`."""
        return StreamedNystrom(self.decomposition, self.sums).fit_ridge(ridges)

    def predict(self, x: Any, model: RidgeModel) -> Any:
        """Predictions of a model that `fit_ridge` made, lazily.

        Parameters
        ----------
        x : dask array, shape (q, d)
        model : RidgeModel

        Returns
        -------
        dask array, shape (q, k), float64
        """
        func = "DaskNystrom.predict"
        x = _checked_array(x, func=func, name="x", columns=self._plan.landmarks.shape[1])
        return _map_rows(_predictions, x, self._plan, model, columns=int(model.coefficients.shape[1]), dtype=np.dtype(np.float64))


def nystrom(
    x: Any,
    kernel: Any,
    *,
    rank: int | None = None,
    targets: Any = None,
    landmarks: Any = "rpcholesky+lloyd",
    sample: Any = None,
    lloyd_passes: int = 0,
    ridge: float | None = None,
    rng: RngLike = None,
    chunk_size: int | None = None,
    client: Any = None,
    n_workers: int | None = None,
    progress: bool = False,
    rtol: float | None = None,
) -> DaskNystrom:
    """Low-rank approximation of the kernel matrix of the rows of a Dask array, and the sums for a ridge regression on them.

    Parameters
    ----------
    x : dask array, shape (n, d)
        Also made of HDF5 or zarr arrays (``dask.array.from_array``, ``from_zarr``), or by `open_npy`. It is divided anew into chunks of
        `chunk_size` rows; chunks of that length, or multiples, need no traffic for it.
    kernel, rank, landmarks, sample, lloyd_passes, ridge, rng, chunk_size, rtol
        As in `softlinalg.nystrom_stream`.
    targets : dask array, shape (n,) or (n, k), optional
    client : None, str or distributed.Client
        The cluster: a client, the address of a scheduler, or None: the client of this process if there is one, else a local cluster
        for this call, with one process per core and one thread in each.
    n_workers : int, optional
        Workers of that local cluster.
    progress : bool, default False
        Show a bar with rows per second and time left.

    Returns
    -------
    DaskNystrom

    Raises
    ------
    ParameterError, ShapeError, DTypeError, NonFiniteError, NumericalError
        As in `softlinalg.nystrom_stream`.
    ResourceError
        Workers died of the same chunk several times, as they do when it does not fit into their memory (the cause is chained); or
        there have been no workers for half a minute.

    Notes
    -----
    The sums are those of `softlinalg.nystrom_stream` with the same arguments, bit for bit on the same kind of processor. A worker that
    dies is replaced (by its nanny, or by others), and only what it had not passed on is computed again. Traffic: the sample, and an r x r
    float64 matrix for each chunk, most of it within workers.

    Examples
    --------
    >>> import dask.array, numpy as np, softlinalg.dask
    >>> from distributed import Client
    >>> x = dask.array.random.default_rng(0).normal(size=(20_000, 3), chunks=(5000, 3))
    >>> with Client(processes=False, dashboard_address=":0") as client:
    ...     result = softlinalg.dask.nystrom(x, softlinalg.Gaussian(1.5), rank=100, targets=x[:, 0], rng=0)
    ...     predictions = result.predict(x, result.fit_ridge())
    ...     print(predictions.shape, float(abs(predictions[:, 0] - x[:, 0]).mean().compute()) < 0.1)
    (20000, 1) True
    """
    func = "softlinalg.dask.nystrom"
    x = _checked_array(x, func=func, name="x")
    y = None if targets is None else _checked_targets(targets, x.shape[0], func=func)
    dtype = real_dtype(x.dtype, func=func, name="x")
    settings = Settings(kernel, rank, landmarks, sample, lloyd_passes, ridge, rng, chunk_size, rtol)
    call = checked_call(int(x.shape[1]), 0 if y is None else int(y.shape[1]), int(x.shape[0]), dtype, settings, func=func)
    n_workers = optional_count(n_workers, func=func, name="n_workers")
    with _connected(client, n_workers, func=func) as connected, connected.as_current():
        engine = _ClusterEngine(connected, x, y, dtype, chunk_size=call.chunk_size, progress=bool(progress), func=func)
        plan, summary, sums = stream(engine, call)
    streamed = assembled(plan, summary, sums, None, call)
    return DaskNystrom(streamed.decomposition, sums, plan)


def open_npy(path: str | os.PathLike[str], *, chunk_size: int = 65_536) -> Any:
    """The array of a .npy file as a Dask array whose chunks are read by the workers that need them.

    (A memory map handed to ``dask.array.from_array`` would be sent to them instead.) All workers must see the file under this name.

    Parameters
    ----------
    path : str or path
        One array of two axes.
    chunk_size : int, default 65536
        Rows per chunk.

    Returns
    -------
    dask array, shape (n, d)

    Raises
    ------
    InputError, ShapeError, DTypeError, FileNotFoundError
        As in `softlinalg.open_rows`.

    Examples
    --------
    >>> import pathlib
    >>> import tempfile
    >>> import numpy as np
    >>> from softlinalg.dask import open_npy
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name) / "rows.npy"
    >>> np.save(path, np.zeros((1000, 3)))
    >>> open_npy(path, chunk_size=400).chunks
    ((400, 400, 200), (3,))
    >>> folder.cleanup()
    """
    func = "softlinalg.dask.open_npy"
    step = optional_count(chunk_size, func=func, name="chunk_size") or 1
    file = file_path(path, func=func).absolute()
    if file.suffix.lower() != ".npy":
        message = f"{func}: path must end in .npy; got {file.name[-60:]!r}. Read other files with dask.dataframe or dask.array."
        raise ParameterError(message)
    open_rows(file)  # says what is wrong with it
    whole = np.load(file, mmap_mode="r", allow_pickle=False)
    n, d = whole.shape
    read = dask.delayed(_npy_rows, pure=False)
    spans = [(start, min(n, start + step)) for start in range(0, n, step)]
    parts = [dask.array.from_delayed(read(str(file), a, b), shape=(b - a, d), dtype=whole.dtype) for a, b in spans]
    return dask.array.concatenate(parts, axis=0)


def _npy_rows(path: str, start: int, stop: int) -> Host:
    """Some rows of a file, as a copy: the map is closed again."""
    return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[start:stop])


# ------------------------------------------------------------------------------------------------ arguments
def _checked_array(x: Any, *, func: str, name: str, columns: int | None = None) -> Any:
    """A Dask array (n, d) of known shape, its columns in one chunk."""
    if not isinstance(x, dask.array.Array):
        message = (
            f"{func}: {name} must be a dask array; got {type(x).__name__[:60]}. Use softlinalg.nystrom_stream, or dask.array.from_array."
        )
        raise DTypeError(message)
    if x.ndim != 2 or x.shape[1] == 0 or (columns is not None and x.shape[1] != columns):
        need = f"(n, {columns})" if columns else "(n, d) with d >= 1"
        message = f"{func}: {name} must have shape {need}; got {x.shape}. Pass one point per row."
        raise ShapeError(message)
    if columns is None:
        if np.isnan(x.shape[0]):
            x = x.compute_chunk_sizes()
        if x.shape[0] == 0:
            message = f"{func}: {name} must have rows; got none. Pass at least one."
            raise ShapeError(message)
        real_dtype(x.dtype, func=func, name=name)
    return x.rechunk({1: -1})


def _checked_targets(y: Any, n: int, *, func: str) -> Any:
    """A Dask array (n, k)."""
    if not isinstance(y, dask.array.Array):
        y = dask.array.from_array(np.asarray(y))
    if y.ndim in (1, 2) and np.isnan(y.shape[0]):
        y = y.compute_chunk_sizes()
    if y.ndim not in (1, 2) or y.shape[0] != n or 0 in y.shape:
        message = f"{func}: targets must have shape ({n},) or ({n}, k); got {y.shape}. Pass one row per point."
        raise ShapeError(message)
    real_dtype(y.dtype, func=func, name="targets")
    return (y[:, None] if y.ndim == 1 else y).rechunk({1: -1})


@contextlib.contextmanager
def _connected(client: Any, n_workers: int | None, *, func: str) -> Iterator[Any]:
    """A client: the one given, the one there is, one of a scheduler, or one of a cluster that lives as long as this call."""
    import distributed

    if isinstance(client, distributed.Client):
        yield client
        return
    if isinstance(client, str):
        with distributed.Client(client, set_as_default=False) as connected:
            yield connected
        return
    if client is not None:
        message = (
            f"{func}: client must be a Client, the address of a scheduler, or None; got {type(client).__name__[:60]}. Pass one of these."
        )
        raise ParameterError(message)
    if n_workers is None:
        with contextlib.suppress(ValueError):
            yield distributed.default_client()
            return
    count = n_workers or os.cpu_count() or 1
    with (
        distributed.LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as connected,
    ):
        yield connected


# ------------------------------------------------------------------------------------------------ the engine
def _chunk(task: Task, start: int, x: Any, y: Any, dtype: str, func: str) -> State:
    """A chunk on a worker."""
    x = np.asarray(x, dtype=dtype)
    start, x, y = checked_chunk(start, (x, None if y is None else np.asarray(y, dtype=np.float64)), func=func)
    with _arrays.one_blas_thread():
        return task(start, x, y)


def _merge(task: Task, a: State, b: State) -> State:
    return task.merge(a, b)


def _single(function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """A function on a worker."""
    with _arrays.one_blas_thread():
        return function(*arguments, **settings)


class _ClusterEngine:
    """Runs tasks over the chunks of a Dask array."""

    def __init__(self, client: Any, x: Any, y: Any, dtype: Any, *, chunk_size: int, progress: bool, func: str) -> None:
        self.rows: int | None = int(x.shape[0])
        self._client, self._progress, self._func, self._dtype = client, progress, func, str(dtype)
        x = x.rechunk({0: chunk_size})
        self._lengths = [int(length) for length in x.chunks[0]]
        self._x = x.to_delayed().ravel().tolist()
        self._y = [None] * len(self._x) if y is None else y.rechunk({0: chunk_size}).to_delayed().ravel().tolist()

    def call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """The function's result, computed on a worker; futures among the arguments stay where they are."""
        future = self._client.submit(_single, function, *arguments, pure=False, **settings)
        return self._result(future, [], None)

    def prefix(self) -> tuple[Host, Host | None]:
        """The first chunk and its targets."""
        x, y = (None if block is None else np.asarray(self._client.compute(block).result()) for block in (self._x[0], self._y[0]))
        assert x is not None  # it is a block
        return x, y

    def sample(self, task: SampleTask) -> tuple[Any, Any]:
        """Rows and targets, as futures."""
        root, _ = self._graph(task)
        state = self._client.compute(root)
        return self._client.submit(_item, state, 2, pure=False), self._client.submit(_item, state, 3, pure=False)

    def reduce(self, task: Task, label: str, checkpoint: Any = None, resumed: Any = None) -> State:
        """The merger of the task's results over all chunks."""
        root, leaves = self._graph(task)
        *futures, result = self._client.compute([*leaves, root])
        state: State = self._result(result, futures, label)
        return state

    def _graph(self, task: Task) -> tuple[Any, list[Any]]:
        """The tree of all chunks, and its leaves."""
        shared = dask.delayed(task, pure=False, traverse=False)
        chunk, merge = dask.delayed(_chunk, pure=False, traverse=False), dask.delayed(_merge, pure=False, traverse=False)
        tree: Tree[Any] = Tree(functools.partial(merge, shared))
        leaves, start = [], 0
        for x, y, length in zip(self._x, self._y, self._lengths, strict=True):
            leaves.append(chunk(shared, start, x, y, self._dtype, self._func))
            tree.push(leaves[-1])
            start += length
        return tree.total(), leaves

    def _result(self, result: Any, leaves: list[Any], label: str | None) -> Any:
        """The result of a future, while the bar follows the leaves; given up where nobody is left to compute it."""
        import distributed

        waiting = {leaf.key: (leaf, length) for leaf, length in zip(leaves, self._lengths, strict=False)}
        del leaves[:]  # what is held here stays in the memory of workers
        try:
            self._follow(result, waiting, label)
            return result.result()
        except BaseException as error:
            # An error's traceback keeps the futures alive: chunks that nobody waits for would go on, and kill more workers.
            with contextlib.suppress(Exception):
                self._client.cancel([result, *(leaf for leaf, _ in waiting.values())])
            if not isinstance(error, (distributed.KilledWorker, distributed.scheduler.NoValidWorkerError)):
                raise
            message = (
                f"{self._func}: workers must survive each chunk; got one that killed several. Give them more memory, or lower chunk_size."
            )
            raise ResourceError(message) from error

    def _follow(self, result: Any, waiting: dict[Any, tuple[Any, int]], label: str | None) -> None:
        """Waits for the result, and moves the bar as the leaves are done."""
        import distributed

        last_seen = time.monotonic()
        with progress_bar(self.rows, label or "", shown=self._progress and label is not None) as advance:
            while result.status == "pending":
                with contextlib.suppress(TimeoutError):
                    distributed.wait(result, timeout=POLL_SECONDS)
                for key in [key for key, (leaf, _) in waiting.items() if leaf.status != "pending"]:
                    advance(waiting.pop(key)[1])
                if self._client.status == "running" and self._client.scheduler_info().get("workers"):
                    last_seen = time.monotonic()
                elif time.monotonic() - last_seen > NO_WORKER_SECONDS:
                    message = (
                        f"{self._func}: cluster must have workers; got none for {NO_WORKER_SECONDS:.0f} s. Start workers, and call again."
                    )
                    raise ResourceError(message)


def _item(state: State, place: int) -> Host:
    return state[place]


# ------------------------------------------------------------------------------------------------ lazy results
def _map_rows(function: Callable[..., Host], x: Any, *arguments: Any, columns: int, dtype: Any) -> Any:
    """A function of blocks of rows as a Dask array; its arguments are sent once, not with each block."""
    shared = [dask.delayed(argument, pure=False, traverse=False) for argument in arguments]
    return dask.array.map_blocks(function, x, *shared, dtype=dtype, chunks=(x.chunks[0], (columns,)), meta=np.empty((0, 0), dtype))


def _features(x: Host, plan: Plan) -> Host:
    return _arrays.to_numpy(plan.feature_map()(np.asarray(x, dtype=plan.dtype)))


def _predictions(x: Host, plan: Plan, model: RidgeModel) -> Host:
    predictions: Host = model.predict(_features(x, plan))
    return predictions
