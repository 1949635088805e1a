"""The Nystrom approximation of data that do not fit in memory: one pass over chunks of rows, with progress and checkpoints."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from softlinalg import _arrays, _inputs
from softlinalg._landmark_sampling import check_kernel
from softlinalg._landmarks import METHODS
from softlinalg._nystrom_core import Summary, optional_count
from softlinalg._nystrom_decomposition import NystromDecomposition
from softlinalg._nystrom_fit import Fit
from softlinalg._ridge_regression import RidgeModel, checked_ridges, ridge_model
from softlinalg._ridge_sums import RidgeSums, sums_from_moments
from softlinalg._rng import as_generator
from softlinalg._settings import file_path, flag, whole_number
from softlinalg._streaming_checkpoint import Checkpoint, Progress
from softlinalg._streaming_files import open_rows
from softlinalg._streaming_plan import PROBE_ROWS, Plan, Request, make_plan
from softlinalg._streaming_run import LocalEngine
from softlinalg._streaming_sources import ArrayRows, Host, IteratedRows, RowReader, RowSource, as_host, is_sliceable
from softlinalg._streaming_tasks import FeatureTask, LloydTask, SampleTask, State, Task
from softlinalg._typing import RngLike
from softlinalg.errors import InputError, NonFiniteError, ParameterError, ShapeError

__all__ = [
    "Call",
    "Settings",
    "StreamedNystrom",
    "as_source",
    "assembled",
    "checked_call",
    "default_chunk_size",
    "default_sample_size",
    "nystrom_stream",
    "open_rows",
    "stream",
]

SAMPLE_ROWS = 100
"""Rows per landmark in the sample among which landmarks are chosen: what the default method looks at."""

LEAST_SAMPLE_ROWS = 20
"""Rows per landmark that it needs at least."""

SAMPLE_BYTES = 2**26
"""Memory (64 MiB) above which the sample is made smaller than SAMPLE_ROWS per landmark."""

GRAM_BYTES = 2**27
"""A chunk has so many bytes of features at most (128 MiB in float64; they are never held at once): its r x r sums then cost little."""

CHUNK_BYTES = 2**25
"""And so many bytes of rows in float64 (32 MiB)."""


class StreamedNystrom(NamedTuple):
    """What `nystrom_stream` returns.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> x = np.random.default_rng(0).normal(size=(500, 3))
    >>> streamed = softlinalg.nystrom_stream(x, softlinalg.Gaussian(2.0), rank=50, targets=x[:, 0], rng=0)
    >>> streamed.decomposition.shape
    (500, 500)
    >>> fit = streamed.fit_ridge(0.01)
    """

    decomposition: NystromDecomposition
    """The approximation, without stored features. Products with it read the source again, where that is possible."""
    sums: RidgeSums
    """Centered sums of features and targets: `rows`, `weight`, `feature_mean`, `target_mean`, `gram`, `cross`, `squares`."""

    def fit_ridge(self, ridges: float | Sequence[float] | None = None) -> RidgeModel:
        """Kernel ridge regression of the targets, with an intercept, from the sums alone: no further pass.

        Parameters
        ----------
        ridges : float or sequence of float, optional
            Positive; of several the one with the least generalized cross-validation score is taken, for each target by itself, and the
            largest of those whose scores differ by rounding. Default: a path of 40.

        Returns
        -------
        RidgeModel
            `predict(decomposition.features(x_new))` gives predictions, shape (q, k); with `ridge`, `scores`, `noise_variance` and others.

        Raises
        ------
        ParameterError
            A ridge that is not positive; no targets; no ridge leaves degrees of freedom.
        """
        func = "StreamedNystrom.fit_ridge"
        if not self.sums.cross.shape[-1]:
            message = f"{func}: targets must be given when rows are streamed; got none. Pass targets."
            raise ParameterError(message)
        if ridges is not None:
            ridges = checked_ridges(ridges, func=func, name="ridges")
        return ridge_model(self.sums, ridge=ridges, precision=_arrays.dtype_name(self.decomposition.dtype), func=func)


class Engine(Protocol):
    """Who runs tasks: threads of this process, or other machines."""

    rows: int | None
    """Number of rows, if known."""

    def call(self, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
        """The result of a function."""
        ...

    def prefix(self) -> tuple[Host, Host | None]:
        """The first chunk and its targets."""
        ...

    def sample(self, task: SampleTask) -> tuple[Any, Any]:
        """Rows and targets of a sample; to be passed to `call`."""
        ...

    def reduce(self, task: Task, label: str, checkpoint: Checkpoint | None = None, resumed: Progress | None = None) -> State:
        """The merger of the task's results over all chunks."""
        ...


class Settings(NamedTuple):
    """The arguments that `nystrom_stream` and its relatives share, as they were given."""

    kernel: Any
    rank: Any
    landmarks: Any
    sample: Any
    lloyd_passes: Any
    ridge: Any
    rng: RngLike
    chunk_size: Any
    rtol: Any


class Call(NamedTuple):
    """The checked arguments that `nystrom_stream` and its relatives share."""

    request: Request
    landmarks: Host | None
    """Where they are given as points."""
    sample: Host | int
    """The rows given, or the number of rows to draw."""
    seed: int
    """Of the sample."""
    lloyd_passes: int
    chunk_size: int
    columns: int
    targets: int
    ridge: float | None


def nystrom_stream(
    source: Any,
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
    threads: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool = False,
    rtol: float | None = None,
) -> StreamedNystrom:
    r"""Low-rank approximation of the kernel matrix of rows that do not fit in memory, and the sums for a ridge regression on them.

    The same approximation as `nystrom`, F F^T with features F = k(x, L) M, without ever holding F: the pass over the rows keeps F^T F,
    F^T y, y^T y and the exact trace error. Memory does not depend on the number of rows.

    Parameters
    ----------
    source : array, path, callable, iterable or RowSource
        * an array (n, d) that can be sliced, in memory, mapped (``numpy.load(..., mmap_mode="r")``), an HDF5 or zarr array;
        * the name of a .npy, .csv, .csv.gz or .parquet file (`open_rows` has more options);
        * a function that begins an iterator over blocks anew: arrays (b, d), or pairs of arrays (b, d), (b,) or (b, k);
        * an iterator over such blocks, which can be read once: then `landmarks` or `sample` must be given as rows.
    kernel : Kernel
        As in `nystrom`; "median" length scales are settled on the sample.
    rank : int, optional
        Number of landmarks. Not needed with landmarks of your own.
    targets : array, or names of columns, optional
        y, shape (n,) or (n, k), that can be sliced; for files the names or numbers of their columns. Float64 inside.
    landmarks : str or array, default "rpcholesky+lloyd"
        A method of `select_landmarks`, for the sample; or points, shape (m, d).
    sample : int or array (s, d), optional
        Rows among which landmarks are chosen: their number, or the rows themselves. Default: 100 per landmark, fewer (20 at least)
        where that is more than 64 MiB; drawn uniformly, without replacement, by keys that depend on `rng` and the row number alone.
    lloyd_passes : int, default 0
        So many steps of Lloyd's iteration over all rows (streaming k-means) move the landmarks; each is a pass.
    ridge : float, optional
        As in `nystrom`.
    rng : None, int or numpy.random.Generator
        Picks sample and landmarks.
    chunk_size : int, optional
        Rows whose sums are formed at once. The sums are added along a fixed tree of chunks, so results with the same `chunk_size` are
        the same bit for bit, and others differ by rounding. Default: from rank and number of features alone, at most 65,536.
    threads : int, optional
        Chunks computed at the same time, each with one BLAS thread; changes no bit. Default: as many as the BLAS may use.
    checkpoint : path, optional
        File in which the running sums are kept. If it is there when the call begins, the rows that it has seen are read again and
        compared, and the pass goes on from where it was, to the same result bit for bit. It stays when all is done.
    checkpoint_seconds : float, default 60
        Time between two writings; it is also written when the pass fails or is interrupted.
    progress : bool, default False
        Show a bar with rows per second and time left.
    rtol : float, optional
        As in `nystrom`.

    Returns
    -------
    StreamedNystrom
        `decomposition` and `sums`.

    Raises
    ------
    ParameterError, ShapeError, DTypeError
        An argument cannot be used.
    NonFiniteError
        NaN or infinity, with the number of the row.
    InputError
        A file that is damaged or ends early; an iterator that would have to be read twice.
    CheckpointCorruptError
        The checkpoint is damaged. It is never believed in part.
    CheckpointError
        The checkpoint is that of another call, or of other rows.
    NumericalError
        As in `nystrom`.
    OSError
        The checkpoint cannot be written; the one before stays as it was.

    Notes
    -----
    O(n m (d + m)) time and one pass, besides the sample: rows of arrays are taken by their numbers, files and iterators are read once
    more for it (and once for each of `lloyd_passes`). Memory: the sample, and for each thread a chunk of rows, 8 MiB of features and
    two r x r float64 matrices; log2 of the number of chunks such matrices for the tree. Precision is settled on the sample: where
    rounding in float32 could be more than half of the error, blocks are computed in float64. Should the pass find that the sample was
    wrong about that, it is repeated.

    Examples
    --------
    >>> import numpy as np, softlinalg
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(20_000, 3))
    >>> def blocks():
    ...     for start in range(0, 20_000, 3000):
    ...         part = x[start : start + 3000]
    ...         yield part, np.sin(part[:, 0])
    >>> result = softlinalg.nystrom_stream(blocks, softlinalg.Gaussian(1.5), rank=100, rng=0)
    >>> bool(result.decomposition.relative_trace_error < 1e-2)
    True
    >>> model = result.fit_ridge()
    >>> bool(abs(model.predict(result.decomposition.features(x[:5]))[:, 0] - np.sin(x[:5, 0])).max() < 0.02)
    True
    """
    func = "nystrom_stream"
    rows = as_source(source, targets, func=func)
    settings = Settings(kernel, rank, landmarks, sample, lloyd_passes, ridge, rng, chunk_size, rtol)
    call = checked_call(rows.columns, rows.targets, rows.rows, rows.dtype, settings, progress=progress, func=func)
    threads = optional_count(threads, func=func, name="threads")
    kept = None
    if checkpoint is not None:
        seconds = _inputs.real_scalar(checkpoint_seconds, func=func, name="checkpoint_seconds", strict=False)
        kept = Checkpoint(file_path(checkpoint, func=func, name="checkpoint"), _settings(call, rows.rows, rng), seconds, func)
    engine = LocalEngine(rows, chunk_size=call.chunk_size, threads=threads, progress=call.request.progress, func=func)
    plan, summary, sums = stream(engine, call, kept, prefix=_prefix(engine, call))
    reader = RowReader(rows, int(sums.rows)) if rows.can_restart else None
    return assembled(plan, summary, sums, reader, call)


def as_source(source: Any, targets: Any, *, func: str) -> RowSource:
    """A source of rows from whatever was given.

    Raises
    ------
    ParameterError
        Targets that do not go with the kind of source.
    """
    named = isinstance(targets, str | int) or (isinstance(targets, list | tuple) and all(isinstance(name, str | int) for name in targets))
    if isinstance(source, str | os.PathLike):
        if targets is None or named:
            return open_rows(source, targets=targets)
        source = _opened_array(source, func=func)
    if named and len(np.shape(targets)) == 0:
        message = (
            f"{func}: targets must be an array here; got the name {str(targets)[:40]!r}. Names are for files: pass numbers, or a path."
        )
        raise ParameterError(message)
    if isinstance(source, memoryview):  # iterates over its rows, but not if it has two axes
        source = np.asarray(source)
    if is_sliceable(source):
        numbers = targets if targets is None or is_sliceable(targets) else as_host(targets, func=func, name="targets")
        return ArrayRows(source, numbers, func=func)
    if isinstance(source, RowSource):
        rows = source
    elif callable(source) or hasattr(source, "__iter__"):
        rows = IteratedRows(source, func=func)
    else:
        message = (
            f"{func}: source must be an array, a file, a function or an iterator; got {type(source).__name__[:60]}. Pass one of these."
        )
        raise ParameterError(message)
    if targets is not None:
        message = f"{func}: targets must come with the blocks of an iterator; got them apart. Yield pairs (features, targets)."
        raise ParameterError(message)
    return rows


def _opened_array(path: Any, *, func: str) -> Any:
    """A .npy file as a memory map, for targets that are an array."""
    if not str(path).lower().endswith(".npy"):
        message = f"{func}: targets must be named for files of tables; got an array. Pass the name of the column."
        raise ParameterError(message)
    open_rows(path)  # says what is wrong with it
    return np.load(path, mmap_mode="r", allow_pickle=False)


# ------------------------------------------------------------------------------------------------ arguments
def checked_call(
    columns: int, targets: int, rows: int | None, dtype: Any, settings: Settings, *, progress: bool = False, func: str
) -> Call:
    """Check the arguments that do not say where the rows come from, against the shape and type of the rows."""
    kernel, rank, landmarks, sample, lloyd_passes, ridge, rng, chunk_size, rtol = settings
    check_kernel(kernel, func=func)
    rank = optional_count(rank, func=func, name="rank", maximum=rows)
    points = None if isinstance(landmarks, str) else _points(landmarks, columns, dtype, func=func, name="landmarks")
    if points is None and landmarks not in METHODS:
        message = f"{func}: landmarks must be points or one of {', '.join(METHODS)}; got {landmarks[:40]!r}. Choose one of these."
        raise ParameterError(message)
    if points is None and rank is None:
        message = f"{func}: rank must be given, or landmarks as points; got neither. Pass the number of landmarks."
        raise ParameterError(message)
    if points is not None and rank not in (None, len(points)):
        message = f"{func}: landmarks must be as many as rank; got {len(points)} beside rank={rank}. Leave rank out."
        raise ParameterError(message)
    m = len(points) if points is not None else int(rank or 0)  # one of them is there
    generator = as_generator(rng, func=func)
    seed, own = int(generator.integers(2**63)), np.random.default_rng(int(generator.integers(2**63)))
    chunk = optional_count(chunk_size, func=func, name="chunk_size")
    request = Request(
        func=func,
        kernel=kernel,
        rank=m,
        method=landmarks if points is None else "given",
        rtol=None if rtol is None else _inputs.real_scalar(rtol, func=func, name="rtol", maximum=0.5),
        rng=own,
        dtype=str(np.dtype(dtype)),
        progress=flag(progress, func=func, name="progress"),
    )
    return Call(
        request=request,
        landmarks=points,
        sample=_sample_size(sample, m, columns, dtype, given=points is not None, func=func),
        seed=seed,
        lloyd_passes=whole_number(lloyd_passes, func=func, name="lloyd_passes", minimum=0),
        chunk_size=chunk or default_chunk_size(m, columns),
        columns=columns,
        targets=targets,
        ridge=None if ridge is None else _inputs.real_scalar(ridge, func=func, name="ridge"),
    )


def default_chunk_size(m: int, d: int) -> int:
    """Rows per chunk: a power of two that depends on the number of landmarks and features alone, so that results can be compared."""
    most = max(1, min(GRAM_BYTES // (8 * m), CHUNK_BYTES // (8 * d)))
    return int(min(65_536, max(1024, 2 ** (most.bit_length() - 1))))


def default_sample_size(m: int, d: int, dtype: Any) -> int:
    """Rows of the sample for m landmarks among rows of d features."""
    fitting = SAMPLE_BYTES // (int(np.dtype(dtype).itemsize) * d)
    return int(max(PROBE_ROWS, LEAST_SAMPLE_ROWS * m, min(SAMPLE_ROWS * m, fitting)))


def _points(values: Any, columns: int, dtype: Any, *, func: str, name: str) -> Host:
    host = np.asarray(_arrays.to_numpy(values) if hasattr(values, "shape") else values)
    if host.ndim != 2 or len(host) == 0 or host.shape[1] != columns or host.dtype.kind not in "biuf":
        message = f"{func}: {name} must be points of shape (m, {columns}), m >= 1; got {host.shape}. Pass rows like those of the source."
        raise ShapeError(message)
    if not np.all(np.isfinite(host)):
        message = f"{func}: {name} must be finite; got NaN or infinity. Clean them."
        raise NonFiniteError(message)
    return np.array(host, dtype=dtype)


def _sample_size(sample: Any, m: int, columns: int, dtype: Any, *, given: bool, func: str) -> Host | int:
    """The rows given, or how many to draw."""
    if sample is None:
        return PROBE_ROWS if given else default_sample_size(m, columns, dtype)
    if hasattr(sample, "shape") or isinstance(sample, list | tuple):
        points = _points(sample, columns, dtype, func=func, name="sample")
        if len(points) < m and not given:
            message = f"{func}: sample must have a row per landmark at least; got {len(points)} for {m}. Pass more rows, 20 for each."
            raise ShapeError(message)
        return points
    count = optional_count(sample, func=func, name="sample") or 0
    if count < m and not given:
        message = f"{func}: sample must be at least the number of landmarks, {m}; got {count}. Pass 20 rows for each."
        raise ParameterError(message)
    return count


def _settings(call: Call, rows: int | None, rng: RngLike) -> dict[str, Any]:
    """What the sums depend on, as JSON, for the checkpoint."""

    def digest(values: Any) -> Any:
        return values if not isinstance(values, np.ndarray) else hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()

    request = call.request
    return {
        "kernel": repr(request.kernel) if hasattr(request.kernel, "to_dict") else type(request.kernel).__name__,
        "rank": request.rank,
        "landmarks": request.method if call.landmarks is None else digest(call.landmarks),
        "sample": digest(call.sample),
        "lloyd_passes": call.lloyd_passes,
        "rng": None if rng is None else call.seed,
        "rtol": request.rtol,
        "chunk_size": call.chunk_size,
        "features": call.columns,
        "targets": call.targets,
        "rows": rows,
        "dtype": request.dtype,
    }


def _prefix(engine: LocalEngine, call: Call) -> bool:
    """Whether the first chunk must do as the sample: no other rows are needed, or none can be had without a pass.

    Raises
    ------
    InputError
        A source that can be read once, and landmarks to be chosen.
    """
    settled = call.landmarks is not None and not isinstance(getattr(call.request.kernel, "length_scale", None), str)
    if isinstance(call.sample, np.ndarray):
        return False
    if not engine.source.can_restart and not settled:
        what = "landmarks and the length scale need a pass of their own"
        message = f"{call.request.func}: source can be read once, but {what}. Pass a function that makes iterators, or sample (rows)."
        raise InputError(message)
    return settled and not isinstance(engine.source, ArrayRows)


# ------------------------------------------------------------------------------------------------ the passes
def stream(engine: Any, call: Call, checkpoint: Checkpoint | None = None, *, prefix: bool = False) -> tuple[Plan, Summary, RidgeSums]:
    """Settle the plan on a sample, then sum over all rows; again in a higher precision if the sums say so.

    Parameters
    ----------
    engine : Engine
    call : Call
    checkpoint : Checkpoint, optional
    prefix : bool
        Take the first chunk for the sample.
    """
    request = call.request
    resumed = None if checkpoint is None else checkpoint.load(request.kernel)
    sample, shift = None, np.zeros(call.targets)
    if resumed is not None:
        plan, shift = resumed.plan, resumed.shift
    else:
        sample, shift = _sample(engine, call, prefix=prefix)
        plan = engine.call(make_plan, request, sample, call.landmarks)
        for i in range(call.lloyd_passes):
            task = LloydTask(landmarks=plan.landmarks.astype(np.float64), units=_units(plan.kernel, call.columns))
            moved = task.moved(engine.reduce(task, f"k-means, pass {i + 1}"))
            plan = engine.call(make_plan, request, sample, moved, plan.kernel)
    while True:
        state = engine.reduce(FeatureTask(plan=plan, shift=shift), f"rank {plan.map.shape[1]}", checkpoint, resumed)
        summary = plan.summary(state[0], state[5], float(state[6][0]))
        if plan.is_sound(summary):
            gram, cross, feature_sum, squares, target_sum, _, (count,) = state
            n = float(count)
            return plan, summary, sums_from_moments(gram, cross, squares, feature_sum, target_sum, n, n, target_shift=shift)
        if sample is None:
            sample, _ = _sample(engine, call, prefix=prefix)
        failure = f"{summary.broken_rows} rows explained beyond it, and a trace error of {summary.trace_error:.3g}"
        plan, resumed = engine.call(make_plan, request, sample, plan.landmarks, plan.kernel, plan.stage + 1, failure), None


def _sample(engine: Any, call: Call, *, prefix: bool) -> tuple[Any, Host]:
    """Rows to choose landmarks from (perhaps elsewhere), and the mean of their targets."""
    if isinstance(call.sample, np.ndarray):
        return call.sample, np.zeros(0) if not call.targets else engine.prefix()[1].mean(axis=0)
    if prefix:
        x, y = engine.prefix()
    else:
        x, y = engine.sample(SampleTask(seed=call.seed, count=call.sample))
        if call.landmarks is None:
            engine.call(_check_sample, x, call.request.rank, call.request.func)
    return x, np.zeros(0) if not call.targets else np.asarray(engine.call(np.mean, y, axis=0))


def _check_sample(x: Host, rank: int, func: str) -> None:
    if len(x) < rank:
        message = f"{func}: rank must be at most the number of rows, {len(x)}; got {rank}. Choose a smaller one."
        raise ParameterError(message)


def _units(kernel: Any, columns: int) -> Host:
    """The units in which a kernel measures distances, where it has one per feature."""
    scale = getattr(kernel, "length_scale", 1.0)
    return np.asarray(scale, dtype=np.float64) if isinstance(scale, tuple) else np.ones(columns)


def assembled(plan: Plan, summary: Summary, sums: RidgeSums, reader: Any, call: Call) -> StreamedNystrom:
    """The decomposition from its parts."""
    fitted = Fit(plan.feature_map(), summary, None, plan.landmarks)
    decomposition = NystromDecomposition(fitted, reader, dtype=np.dtype(plan.dtype), ridge=call.ridge, n=int(sums.rows))
    return StreamedNystrom(decomposition, sums)
