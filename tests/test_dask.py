"""The approximation on a cluster: bit for bit that of one machine, whatever becomes of the workers, and nothing computed unasked."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("distributed")
import cloudpickle
import dask
import dask.array as da
import distributed

import softlinalg.dask as cluster_api
from softlinalg import Gaussian, nystrom_stream
from softlinalg.errors import DTypeError, NonFiniteError, ParameterError, ResourceError, ShapeError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

N, D, CHUNK = 4000, 3, 250
X = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)
Y = np.stack([np.sin(X[:, 0]), X[:, 1] + 30], axis=1).astype(np.float64)
KERNEL = Gaussian("median")
ARGUMENTS: dict[str, Any] = {"rank": 30, "rng": 3, "chunk_size": CHUNK}


@contextlib.contextmanager
def _two_workers() -> Iterator[Any]:
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as connected,
    ):
        yield connected


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Two processes, one thread each."""
    with _two_workers() as connected:
        yield connected


@pytest.fixture
def doomed() -> Iterator[Any]:
    """A cluster of the test's own, whose workers it may kill."""
    with dask.config.set({"distributed.scheduler.allowed-failures": 1}), _two_workers() as connected:
        yield connected


@pytest.fixture(scope="module")
def plain() -> Any:
    return nystrom_stream(X, KERNEL, targets=Y, **ARGUMENTS)


def lazy(x: Any = X, chunks: Any = (700, 2)) -> Any:
    return da.from_array(x, chunks=chunks)


def same_bits(a: Any, b: Any) -> bool:
    d, e = a.decomposition, b.decomposition
    sums = all(np.array_equal(u, v) for u, v in zip(a.sums, b.sums, strict=True))
    numbers = (d.trace, d.trace_error, d.trace_error_floor) == (e.trace, e.trace_error, e.trace_error_floor)
    return sums and numbers and np.array_equal(d.landmarks, e.landmarks) and np.array_equal(d.eigenvalues, e.eigenvalues)


class Slow:
    """The Gaussian kernel, slowly: there is time to kill a worker."""

    def __init__(self, seconds: float, die: str | None = None) -> None:
        self.seconds, self.die = seconds, die

    def __call__(self, x: Any, y: Any = None) -> Any:
        time.sleep(self.seconds)
        if self.die == "always" and len(x) == CHUNK:
            os.kill(os.getpid(), signal.SIGKILL)
        return Gaussian(1.5)(x, y)

    def diagonal(self, x: Any) -> Any:
        return np.ones(len(x), x.dtype)


# ------------------------------------------------------------------------------------------------ the same bits
@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(700, 2), (N, D), (50, 1)])
def test_the_cluster_finds_the_bits_of_one_machine(client: Any, plain: Any, chunks: Any) -> None:
    found = cluster_api.nystrom(lazy(chunks=chunks), KERNEL, targets=da.from_array(Y, chunks=(999, 1)), client=client, **ARGUMENTS)
    assert same_bits(found, plain)


def test_sample_and_lloyd_passes_are_those_of_one_machine(client: Any) -> None:
    settings = {**ARGUMENTS, "landmarks": "uniform", "lloyd_passes": 2}
    assert same_bits(cluster_api.nystrom(lazy(), KERNEL, client=client, **settings), nystrom_stream(X, KERNEL, **settings))
    given = {**ARGUMENTS, "sample": X[:500]}
    expected = nystrom_stream(X, KERNEL, targets=Y, **given)
    assert same_bits(cluster_api.nystrom(lazy(), KERNEL, targets=Y, client=client, **given), expected)
    landmarks = {"landmarks": X[:12], "rng": 0, "chunk_size": CHUNK}
    assert same_bits(cluster_api.nystrom(lazy(), Gaussian(2.0), client=client, **landmarks), nystrom_stream(X, Gaussian(2.0), **landmarks))


def test_an_address_and_the_client_of_the_process_do_as_well(client: Any, plain: Any) -> None:
    address = client.scheduler.address
    assert same_bits(cluster_api.nystrom(lazy(), KERNEL, targets=lazy(Y), client=address, **ARGUMENTS), plain)
    with client.as_current():
        assert same_bits(cluster_api.nystrom(lazy(), KERNEL, targets=lazy(Y), **ARGUMENTS), plain)


@pytest.mark.slow
def test_a_cluster_of_its_own_is_made_and_closed(plain: Any) -> None:
    assert same_bits(cluster_api.nystrom(lazy(), KERNEL, targets=lazy(Y), n_workers=1, **ARGUMENTS), plain)
    with pytest.raises(ValueError, match="No clients found"):
        distributed.default_client()


# ------------------------------------------------------------------------------------------------ lost workers
def _kill_one_worker(client: Any, after: float) -> threading.Thread:
    pids = list(client.run(os.getpid).values())

    def kill() -> None:
        time.sleep(after)
        os.kill(pids[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_worker_killed_in_mid_run_changes_no_bit(doomed: Any) -> None:
    kernel, settings = Slow(0.06), {"landmarks": X[:20], "rng": 0, "chunk_size": CHUNK}
    expected = nystrom_stream(X, kernel, threads=2, targets=Y, **settings)
    before = set(doomed.run(os.getpid).values())
    thread = _kill_one_worker(doomed, 0.7)
    start = time.monotonic()
    found = cluster_api.nystrom(lazy(), kernel, targets=lazy(Y), client=doomed, **settings)
    thread.join()
    assert time.monotonic() - start < 60
    assert same_bits(found, expected)
    doomed.wait_for_workers(2, timeout=30)
    assert set(doomed.run(os.getpid).values()) != before, "a worker did die"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_chunk_that_kills_its_workers_is_told_with_its_cause(doomed: Any) -> None:
    start = time.monotonic()
    with pytest.raises(ResourceError, match="workers must survive each chunk") as caught:
        cluster_api.nystrom(lazy(), Slow(0.0, "always"), landmarks=X[:20], sample=X[:200], rng=0, chunk_size=CHUNK, client=doomed)
    assert isinstance(caught.value.__cause__, distributed.KilledWorker)
    assert time.monotonic() - start < 60
    deadline = time.monotonic() + 30
    while doomed.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks)):
        assert time.monotonic() < deadline, "chunks that nobody waits for are given up, while the error and its traceback live"
        time.sleep(0.2)


def test_a_cluster_without_workers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_api, "NO_WORKER_SECONDS", 1.0)
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        distributed.Client(cluster, set_as_default=False) as empty,
        pytest.raises(ResourceError, match="cluster must have workers; got none for 1 s"),
    ):
        cluster_api.nystrom(lazy(), KERNEL, client=empty, **ARGUMENTS)


# ------------------------------------------------------------------------------------------------ lazy results
def _forbidden() -> Any:
    raise AssertionError("computed unasked")


def test_features_and_predictions_are_lazy(client: Any, plain: Any) -> None:
    found = cluster_api.nystrom(lazy(), KERNEL, targets=lazy(Y), client=client, **ARGUMENTS)
    model = found.fit_ridge()
    untouched = da.from_delayed(dask.delayed(_forbidden)(), shape=(10, D), dtype=np.float32)
    features, predictions = found.features(untouched), found.predict(untouched, model)
    assert (features.shape, features.dtype) == ((10, 30), np.float32)
    assert (predictions.shape, predictions.dtype) == ((10, 2), np.float64)
    with pytest.raises(AssertionError, match="computed unasked"):
        predictions.compute(scheduler="sync")
    expected = plain.decomposition.features(X)
    got = client.compute(found.features(lazy())).result()
    np.testing.assert_allclose(got, expected, rtol=0, atol=64 * 2.0**-23)
    got = client.compute(found.predict(lazy(), model)).result()
    np.testing.assert_allclose(got, plain.fit_ridge().predict(expected), atol=1e-4)
    assert np.median(np.abs(got - Y)) < 0.1
    assert found.features(lazy(chunks=(300, 1))).chunks == (lazy(chunks=(300, 1)).chunks[0], (30,))


def test_npy_files_are_read_by_the_workers(client: Any, plain: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    x = cluster_api.open_npy(tmp_path / "x.npy", chunk_size=1000)
    assert (x.shape, x.dtype, x.chunks[0]) == ((N, D), np.float32, (1000,) * 4)
    assert max(len(cloudpickle.dumps(part)) for part in x.to_delayed().ravel()) < 20_000, "names of files travel, not numbers"
    assert same_bits(cluster_api.nystrom(x, KERNEL, targets=lazy(Y), client=client, **ARGUMENTS), plain)


def test_zarr_arrays_are_read_by_the_workers(client: Any, plain: Any, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    for name, values, chunks in (("x", X, (700, 2)), ("y", Y, (999, 2))):
        zarr.create_array(str(tmp_path / name), shape=values.shape, chunks=chunks, dtype=values.dtype)[:] = values
    x, y = (da.from_zarr(str(tmp_path / name)) for name in "xy")
    assert x.chunks == ((700,) * 5 + (500,), (2, 1)), "read in its own chunks"
    assert same_bits(cluster_api.nystrom(x, KERNEL, targets=y, client=client, **ARGUMENTS), plain)


def test_rows_of_unknown_number_are_counted(client: Any) -> None:
    x = lazy(chunks=(700, D))
    some = x[x[:, 0] > 0]
    found = cluster_api.nystrom(some, KERNEL, client=client, **ARGUMENTS)
    assert found.sums.rows == int((X[:, 0] > 0).sum())
    assert same_bits(found, nystrom_stream(X[X[:, 0] > 0], KERNEL, **ARGUMENTS))


def test_the_progress_bar_counts_all_rows(client: Any, capsys: pytest.CaptureFixture[str]) -> None:
    cluster_api.nystrom(lazy(), KERNEL, client=client, progress=True, **ARGUMENTS)
    assert "rank 30: 100%" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ refusals
def test_errors_of_workers_are_those_of_one_machine(client: Any) -> None:
    x = X.copy()
    x[1234, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"source must be finite; got NaN or infinity \(first in row 1234\)"):
        cluster_api.nystrom(lazy(x), KERNEL, client=client, **ARGUMENTS)
    with pytest.raises(ParameterError, match="rank must be a whole number from 1 to 4000"):
        cluster_api.nystrom(lazy(), KERNEL, rank=N + 1, client=client)


@pytest.mark.parametrize(
    ("x", "settings", "error", "words"),
    [
        (X, {}, DTypeError, "x must be a dask array; got ndarray"),
        (da.zeros(5), {}, ShapeError, r"x must have shape \(n, d\)"),
        (da.zeros((0, 3)), {}, ShapeError, "x must have rows"),
        (da.zeros((9, 3), dtype=complex), {}, DTypeError, "x must hold real numbers"),
        (da.zeros((9, 3)), {"targets": da.zeros(8)}, ShapeError, r"targets must have shape \(9,\)"),
        (da.zeros((9, 3)), {"client": 7}, ParameterError, "client must be a Client"),
        (da.zeros((9, 3)), {"n_workers": 0}, ParameterError, "n_workers must be"),
    ],
)
def test_what_cannot_be_used_is_named(x: Any, settings: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        cluster_api.nystrom(x, Gaussian(1.0), rank=2, **settings)
    assert str(caught.value).startswith("softlinalg.dask.nystrom: ")


def test_only_npy_files_are_opened(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"path must end in \.npy"):
        cluster_api.open_npy(tmp_path / "x.csv")
    with pytest.raises(FileNotFoundError):
        cluster_api.open_npy(tmp_path / "x.npy")
