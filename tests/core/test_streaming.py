"""Streaming: the result of data in memory, from every kind of source, bit for bit the same however the rows arrive."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import softlinalg
from softlinalg import Gaussian, Laplacian, Matern, nystrom, nystrom_stream, open_rows
from softlinalg import _streaming_plan as plans
from softlinalg import _streaming_tasks as tasks
from softlinalg._ridge_regression import ridge_model
from softlinalg._ridge_sums import ridge_sums
from softlinalg._streaming import default_chunk_size
from softlinalg._streaming_sources import ArrayRows, IteratedRows, chunks
from softlinalg.errors import DTypeError, InputError, NonFiniteError, NumericalError, ParameterError, ShapeError

N, D = 3000, 3
X = np.random.default_rng(0).normal(size=(N, D))
Y = np.sin(X[:, 0]) * X[:, 1] + 50.0
KERNEL = Gaussian(1.5)
LANDMARKS = X[:40].copy()


def blocks_of(x: np.ndarray, y: np.ndarray | None, lengths: list[int]) -> Any:
    """A function that begins an iterator over blocks of these lengths, over and over."""

    def begin() -> Any:
        start, i = 0, 0
        while start < len(x):
            stop = start + lengths[i % len(lengths)]
            yield x[start:stop] if y is None else (x[start:stop], y[start:stop])
            start, i = stop, i + 1

    return begin


def same_bits(a: Any, b: Any) -> bool:
    """Whether two results of streaming agree in every bit of sums and decomposition."""
    sums = all(np.array_equal(u, v) for u, v in zip(a.sums, b.sums, strict=True))
    d, e = a.decomposition, b.decomposition
    return sums and all(
        np.array_equal(u, v)
        for u, v in (
            (d.landmarks, e.landmarks),
            (d.eigenvalues, e.eigenvalues),
            (d._map.map, e._map.map),
            (np.array([d.trace, d.trace_error, d.trace_error_floor]), np.array([e.trace, e.trace_error, e.trace_error_floor])),
        )
    )


# ------------------------------------------------------------------------------------------------ the same result
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kernel", [KERNEL, Matern(2.0, nu=1.5), Laplacian(3.0), Gaussian((1.0, 2.0, 4.0))])
def test_the_result_is_that_of_data_in_memory(dtype: str, kernel: Any) -> None:
    x = X.astype(dtype)
    streamed = nystrom_stream(x, kernel, landmarks=LANDMARKS, chunk_size=257, rng=0)
    whole = nystrom(x, kernel, landmarks=LANDMARKS)
    d, u = streamed.decomposition, np.finfo(dtype).eps
    assert (d.shape, d.rank, d.dtype, d.stores_features) == (whole.shape, whole.rank, whole.dtype, False)
    # Sums over n rows in float64 differ by their order; features in float32 also by the blocks in which products round.
    np.testing.assert_allclose(d.eigenvalues, whole.eigenvalues, rtol=0, atol=max(8 * u, N * 2.0**-52) * whole.eigenvalues[0])
    assert d.trace_error == pytest.approx(whole.trace_error, abs=whole.trace_error_floor + N * 2.0**-52 * whole.trace)
    assert d.relative_trace_error == pytest.approx(whole.relative_trace_error, abs=1e-6)
    np.testing.assert_array_equal(d.features(x[:9]), whole.features(x[:9]))
    v = Y.astype(dtype)
    np.testing.assert_allclose(d @ v, whole @ v, rtol=0, atol=N * u * np.abs(whole @ v).max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_sums_are_those_of_the_features(dtype: str) -> None:
    x = X.astype(dtype)
    targets = np.stack([Y, -2 * Y + 1], axis=1)
    s = nystrom_stream(x, KERNEL, landmarks=LANDMARKS, targets=targets, chunk_size=500, rng=0).sums
    f = nystrom(x, KERNEL, landmarks=LANDMARKS).features().astype(np.float64)
    centered, y = f - f.mean(axis=0), targets - targets.mean(axis=0)
    atol = max(8 * N * 2.0**-52, 64 * float(np.finfo(dtype).eps))  # float32: the blocks in which features round are others
    assert (s.rows, s.weight) == (N, N)
    np.testing.assert_allclose(s.feature_mean, f.mean(axis=0), rtol=0, atol=atol)
    np.testing.assert_allclose(s.target_mean, targets.mean(axis=0), rtol=4 * N * 2.0**-52)
    np.testing.assert_allclose(s.gram, centered.T @ centered, rtol=0, atol=atol * (f * f).sum())
    np.testing.assert_allclose(s.cross, centered.T @ y, rtol=0, atol=atol * np.abs(f).sum() * np.abs(y).max())
    np.testing.assert_allclose(s.squares, (y * y).sum(axis=0), rtol=atol)


def test_targets_far_from_zero_keep_their_digits() -> None:
    near = nystrom_stream(X, KERNEL, landmarks=LANDMARKS, targets=Y - 50.0, rng=0)
    far = nystrom_stream(X, KERNEL, landmarks=LANDMARKS, targets=(Y - 50.0) + 1e6, rng=0)
    # The targets themselves were rounded by 1e6 * eps; products of sums over all rows would lose 1e12 * eps.
    np.testing.assert_allclose(far.sums.squares, near.sums.squares, rtol=1e6 * 2.0**-52 * 100)


def test_ridge_regression_predicts_as_the_textbook_does() -> None:
    streamed = nystrom_stream(X, KERNEL, landmarks=LANDMARKS, targets=Y, rng=0)
    f = streamed.decomposition.features(X)
    model = streamed.fit_ridge([1e-1, 1e-3])
    for ridge in (1e-1, 1e-3):
        one = streamed.fit_ridge(ridge)
        a = np.vstack([f - f.mean(axis=0), math.sqrt(ridge) * np.eye(f.shape[1])])
        w = np.linalg.lstsq(a, np.concatenate([Y - Y.mean(), np.zeros(f.shape[1])]), rcond=None)[0]
        np.testing.assert_allclose(one.predict(f)[:, 0], (f - f.mean(axis=0)) @ w + Y.mean(), atol=1e-8 * np.abs(Y).max())
        gram = (f - f.mean(axis=0)).T @ (f - f.mean(axis=0))
        freedom = 1 + np.trace(np.linalg.solve(gram + ridge * np.eye(f.shape[1]), gram))
        assert one.degrees_of_freedom[0] == pytest.approx(freedom, rel=1e-8)
        residual = float(np.mean((one.predict(f)[:, 0] - Y) ** 2))
        assert one.scores[0, 0] == pytest.approx(residual / (1 - one.degrees_of_freedom[0] / N) ** 2, rel=1e-8)
    assert model.scores.shape == (2, 1)
    assert model.ridge[0] == [1e-1, 1e-3][int(model.scores[:, 0].argmin())]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_model_is_that_of_the_features_in_memory(dtype: str) -> None:
    x, targets = X.astype(dtype), np.stack([Y, np.ones(N)], axis=1)
    streamed = nystrom_stream(x, KERNEL, landmarks=LANDMARKS, targets=targets, rng=0)
    found = streamed.fit_ridge()
    sums = ridge_sums(nystrom(x, KERNEL, landmarks=LANDMARKS).features().astype(np.float64), targets)
    expected = ridge_model(sums, precision=dtype)
    # Features in float32 round otherwise in other blocks, which ridges near the end of the path enlarge.
    tight = 1e-6 if dtype == "float64" else 1e-3
    np.testing.assert_allclose(found.ridge, expected.ridge, rtol=tight)
    np.testing.assert_allclose(found.noise_variance, expected.noise_variance, rtol=10 * tight, atol=1e-12)
    f = streamed.decomposition.features(x[:200])
    np.testing.assert_allclose(found.predict(f), expected.predict(f), rtol=0, atol=tight * np.abs(Y).max())
    # A constant target is told by every ridge up to rounding: the largest is taken, as elsewhere.
    assert found.ridge[1] == max(found.ridges)


def test_the_ridge_is_chosen_for_each_target_by_itself() -> None:
    noise = np.random.default_rng(1).normal(size=N)
    both = nystrom_stream(X, KERNEL, landmarks=LANDMARKS, targets=np.stack([Y, noise], axis=1), rng=0).fit_ridge()
    alone = nystrom_stream(X, KERNEL, landmarks=LANDMARKS, targets=noise, rng=0).fit_ridge()
    assert both.ridge[0] < both.ridge[1], "noise asks for a large ridge"
    assert both.ridge[1] == pytest.approx(alone.ridge[0])


# ------------------------------------------------------------------------------------------------ the same bits
@pytest.fixture(scope="module")
def unbroken() -> Any:
    return nystrom_stream(X, Gaussian("median"), targets=Y, rank=20, chunk_size=256, rng=3, threads=1)


@settings(max_examples=15)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=5), st.integers(1, 3))
def test_no_bit_depends_on_how_rows_arrive_or_who_computes_them(unbroken: Any, lengths: list[int], threads: int) -> None:
    found = nystrom_stream(blocks_of(X, Y, lengths), Gaussian("median"), rank=20, chunk_size=256, rng=3, threads=threads)
    assert same_bits(found, unbroken)


@pytest.mark.parametrize("chunk_size", [1, 7, 256, 2999, 3000, 5000])
def test_other_chunks_change_only_rounding(chunk_size: int) -> None:
    n = 300 if chunk_size < 100 else N
    found = nystrom_stream(X[:n], KERNEL, landmarks=LANDMARKS, targets=Y[:n], chunk_size=chunk_size, rng=0).sums
    other = nystrom_stream(X[:n], KERNEL, landmarks=LANDMARKS, targets=Y[:n], chunk_size=100, rng=0).sums
    np.testing.assert_allclose(found.gram, other.gram, rtol=0, atol=n * 2.0**-52 * np.trace(other.gram))
    np.testing.assert_allclose(found.cross, other.cross, rtol=0, atol=n * 2.0**-52 * np.abs(other.cross).max() * 8)


def test_the_default_chunk_depends_on_rank_and_features_alone() -> None:
    assert default_chunk_size(512, 32) == 32_768
    assert default_chunk_size(256, 32) == 65_536
    assert default_chunk_size(10, 784) == 4096
    assert default_chunk_size(20_000, 100_000) == 1024


@given(st.integers(1, 200), st.integers(0, 200))
def test_the_tree_depends_on_the_number_of_items_alone(count: int, stop: int) -> None:
    def parenthesize(items: list[str]) -> str:
        """The definition: the largest power of two of items to the left, the rest to the right."""
        if len(items) == 1:
            return items[0]
        half = 2 ** ((len(items) - 1).bit_length() - 1)
        return f"({parenthesize(items[:half])}{parenthesize(items[half:])})"

    names = [f"{i}," for i in range(count)]
    tree: tasks.Tree[str] = tasks.Tree(lambda a, b: f"({a}{b})")
    for i, name in enumerate(names):
        if i == stop:  # killed, and gone on with what was kept
            tree = tasks.Tree(lambda a, b: f"({a}{b})", list(tree.items))
        tree.push(name)
    assert tree.total() == parenthesize(names)
    assert len(tree.items) <= count.bit_length()


# ------------------------------------------------------------------------------------------------ the sample
@given(st.integers(0, 2**63 - 1), st.integers(1, 500), st.integers(1, 60), st.lists(st.integers(1, 90), min_size=1, max_size=4))
def test_the_sample_is_the_same_with_and_without_a_pass(seed: int, n: int, count: int, lengths: list[int]) -> None:
    task = tasks.SampleTask(seed=seed, count=count)
    numbers = np.arange(n, dtype=np.float64)[:, None]
    tree: tasks.Tree[Any] = tasks.Tree(task.merge)
    start = 0
    for x in blocks_of(numbers, None, lengths)():
        tree.push(task(start, x, None))
        start += len(x)
    _, indices, rows, _, total = tree.total()
    assert len(indices) == min(n, count) == len(set(indices.tolist()))
    assert total == [n]
    np.testing.assert_array_equal(rows[:, 0], indices)
    np.testing.assert_array_equal(indices, tasks.smallest_keys(seed, n, count, step=37))


def test_every_row_is_as_likely_to_be_drawn() -> None:
    n, count, rounds = 50, 10, 4000
    drawn = np.zeros(n)
    for seed in range(rounds):
        drawn[tasks.smallest_keys(seed * 7919, n, count)] += 1
    expected, deviation = rounds * count / n, math.sqrt(rounds * count / n * (1 - count / n))
    assert np.abs(drawn - expected).max() < 4.5 * deviation
    neighbours = sum(bool({0, 1} <= set(tasks.smallest_keys(seed, n, count).tolist())) for seed in range(rounds))
    chance = count * (count - 1) / (n * (n - 1))
    assert abs(neighbours - rounds * chance) < 4.5 * math.sqrt(rounds * chance)


def test_landmarks_of_a_sample_are_as_good_as_those_of_all_rows() -> None:
    whole = nystrom(X, KERNEL, rank=60, rng=0).trace_error
    assert nystrom_stream(X, KERNEL, rank=60, rng=0).decomposition.trace_error < 1.15 * whole
    assert nystrom_stream(X, KERNEL, rank=60, sample=1200, rng=0).decomposition.trace_error < 1.3 * whole


def test_lloyd_passes_lower_the_distances_to_landmarks() -> None:
    def objective(landmarks: np.ndarray) -> float:
        return float(((X[:, None, :] - landmarks[None, :, :]) ** 2).sum(axis=-1).min(axis=1).sum())

    found = [
        nystrom_stream(blocks_of(X, None, [700]), KERNEL, rank=30, landmarks="uniform", lloyd_passes=k, rng=5, chunk_size=400)
        for k in (0, 1, 4)
    ]
    values = [objective(result.decomposition.landmarks) for result in found]
    assert values[0] > values[1] > values[2]
    again = nystrom_stream(X, KERNEL, rank=30, landmarks="uniform", lloyd_passes=4, rng=5, chunk_size=400)
    assert same_bits(found[2], again)
    # One step is Lloyd's: each landmark at the mean of the rows nearest to it.
    start, moved = found[0].decomposition.landmarks, found[1].decomposition.landmarks
    labels = ((X[:, None, :] - start[None, :, :]) ** 2).sum(axis=-1).argmin(axis=1)
    means = np.stack([X[labels == j].mean(axis=0) if np.any(labels == j) else start[j] for j in range(30)])
    np.testing.assert_allclose(moved, means, atol=1e-12)


# ------------------------------------------------------------------------------------------------ precision
def test_float64_is_used_where_float32_cannot_tell_the_error() -> None:
    x = X.astype(np.float32)
    found = nystrom_stream(x, Gaussian(8.0), landmarks=x[:150], rng=0).decomposition
    assert found._map.in_float64
    whole = nystrom(x, Gaussian(8.0), landmarks=x[:150])
    assert whole._map.in_float64
    assert found.trace_error == pytest.approx(whole.trace_error, rel=1e-3)


def test_a_sample_that_misleads_costs_a_second_pass_and_nothing_else() -> None:
    near = X[:600].astype(np.float32)
    begun: list[int] = []
    begin = blocks_of(near, None, [100])

    def counted() -> Any:
        begun.append(1)
        return begin()

    original = plans.Plan.is_sound
    refused: list[int] = []

    def first_pass_refused(self: Any, summary: Any) -> bool:
        if len(begun) == 2 and not refused and summary.trace > 500:  # the pass over all 600 rows
            refused.append(self.stage)
            return False
        return original(self, summary)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans.Plan, "is_sound", first_pass_refused)
        found = nystrom_stream(counted, KERNEL, landmarks=near[:4], sample=near[:300], rng=0)
    assert refused == [0]
    assert len(begun) == 3, "one look at the first block, two passes"
    assert found.decomposition._map.in_float64
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans.Plan, "is_sound", lambda self, summary: False)
        with pytest.raises(NumericalError, match="kernel must bound its approximation"):
            nystrom_stream(near, KERNEL, landmarks=near[:4], rng=0)


# ------------------------------------------------------------------------------------------------ sources
@pytest.fixture
def files(tmp_path: Path) -> Path:
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    frame["y"] = Y
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    frame.to_csv(tmp_path / "bare.csv", index=False, header=False)
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=700)
    np.save(tmp_path / "t.npy", frame.to_numpy())
    np.save(tmp_path / "x.npy", X)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "targets"),
    [("t.csv", "y"), ("t.csv.gz", ["y"]), ("bare.csv", "3"), ("bare.csv", -1), ("t.parquet", "y"), ("t.npy", 3), ("t.npy", "3")],
)
def test_every_kind_of_file_gives_the_same_bits(files: Path, name: str, targets: Any) -> None:
    expected = nystrom_stream(X, KERNEL, targets=Y, rank=30, rng=2, chunk_size=512)
    assert same_bits(nystrom_stream(files / name, KERNEL, targets=targets, rank=30, rng=2, chunk_size=512), expected)


def test_memory_maps_lists_and_other_arrays_are_sources(files: Path) -> None:
    expected = nystrom_stream(X, KERNEL, targets=Y, rank=30, rng=2, chunk_size=512)
    mapped = np.load(files / "x.npy", mmap_mode="r")
    private = np.load(files / "x.npy", mmap_mode="c")
    private[0] = 0.0  # what is written to a private map must not be lost when its pages are given back
    private[0] = X[0]
    sources = [mapped, private, X[::-1][::-1], np.asfortranarray(X), X.astype(">f8")]
    for source in sources:
        assert same_bits(nystrom_stream(source, KERNEL, targets=Y, rank=30, rng=2, chunk_size=512), expected)
    np.testing.assert_array_equal(private, X)
    pairs = [(X[:1700], Y[:1700]), (X[1700:], Y[1700:])]
    assert same_bits(nystrom_stream(pairs, KERNEL, rank=30, rng=2, chunk_size=512), expected)
    assert same_bits(nystrom_stream(str(files / "x.npy"), KERNEL, targets=Y, rank=30, rng=2, chunk_size=512), expected)


def test_a_changed_private_map_is_read_as_changed(files: Path) -> None:
    private = np.load(files / "x.npy", mmap_mode="c")
    private[5] = 7.0
    rows = np.concatenate([x for _, x, _ in chunks(ArrayRows(private, func="f"), 100, func="f")])
    assert (rows[5] == 7.0).all()
    assert (np.concatenate([x for x, _ in ArrayRows(private, func="f").blocks()])[5] == 7.0).all()


def test_hdf5_is_read_in_slices_also_through_other_lazy_arrays(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    lazy = pytest.importorskip("dask.array")
    expected = nystrom_stream(X, KERNEL, targets=Y, rank=30, rng=2, chunk_size=512)
    with h5py.File(tmp_path / "t.h5", "w") as file:
        x, y = file.create_dataset("x", data=X, chunks=(100, 3)), file.create_dataset("y", data=Y)
        assert same_bits(nystrom_stream(x, KERNEL, targets=y, rank=30, rng=2, chunk_size=512), expected)
        assert same_bits(nystrom_stream(lazy.from_array(x, chunks=(650, 3)), KERNEL, targets=Y, rank=30, rng=2, chunk_size=512), expected)


def test_zarr_is_read_in_slices_also_through_dask(tmp_path: Path) -> None:
    zarr, lazy = pytest.importorskip("zarr"), pytest.importorskip("dask.array")
    expected = nystrom_stream(X, KERNEL, targets=Y, rank=30, rng=2, chunk_size=512)
    x = zarr.create_array(str(tmp_path / "x"), shape=X.shape, chunks=(700, 2), dtype=X.dtype)
    x[:] = X
    assert same_bits(nystrom_stream(x, KERNEL, targets=Y, rank=30, rng=2, chunk_size=512), expected)
    assert same_bits(nystrom_stream(lazy.from_zarr(x), KERNEL, targets=Y, rank=30, rng=2, chunk_size=512), expected)


def test_integers_and_half_precision_are_promoted() -> None:
    whole = (10 * X).round().astype(np.int32)
    assert nystrom_stream(whole, Gaussian(15.0), rank=9, rng=0).decomposition.dtype == np.float64
    half = nystrom_stream(X.astype(np.float16), KERNEL, rank=9, rng=0).decomposition
    assert half.dtype == np.float32


def test_columns_are_chosen_by_name_and_number(files: Path) -> None:
    for name in ("t.csv", "t.parquet", "t.npy"):
        columns = [2, 0] if name == "t.npy" else ["c", "a"]
        rows = open_rows(files / name, columns=columns, targets=-1, dtype="float32")
        (_, x, y), *_ = chunks(rows, 5, func="f")
        np.testing.assert_array_equal(x, X[:5][:, [2, 0]].astype(np.float32))
        np.testing.assert_array_equal(y[:, 0], Y[:5])  # type: ignore[index]
        assert (rows.columns, rows.targets, rows.dtype) == (2, 1, np.float32)


def test_an_iterator_is_read_once_and_says_what_needs_more() -> None:
    begin = blocks_of(X, Y, [400])
    with pytest.raises(InputError, match="source can be read once, but landmarks and the length scale need a pass"):
        nystrom_stream(begin(), KERNEL, rank=30, rng=0)
    with pytest.raises(InputError, match="source can be read once"):
        nystrom_stream(begin(), Gaussian("median"), landmarks=LANDMARKS, rng=0)
    expected = nystrom_stream(begin, KERNEL, landmarks=LANDMARKS, rng=0, chunk_size=512)
    found = nystrom_stream(begin(), KERNEL, landmarks=LANDMARKS, rng=0, chunk_size=512)
    assert same_bits(found, expected)
    with pytest.raises(InputError, match="data must be at hand for features that are not stored"):
        found.decomposition @ Y
    sampled = nystrom_stream(begin(), Gaussian("median"), rank=30, sample=X[::3], rng=0, chunk_size=512)
    assert same_bits(sampled, nystrom_stream(X, Gaussian("median"), targets=Y, rank=30, sample=X[::3], rng=0, chunk_size=512)) or (
        # the mean of the targets that is taken off comes from the first chunk in both
        np.allclose(sampled.sums.cross, nystrom_stream(X, Gaussian("median"), targets=Y, rank=30, sample=X[::3], rng=0).sums.cross)
    )
    with pytest.raises(InputError, match="source must be readable more than once"):
        nystrom_stream(begin(), KERNEL, rank=30, sample=X[::3], lloyd_passes=1, rng=0)


def test_products_read_the_source_again(files: Path) -> None:
    v = np.random.default_rng(1).normal(size=N)
    expected = nystrom(X, KERNEL, landmarks=LANDMARKS)
    for source in (files / "t.csv", X):
        d = nystrom_stream(
            open_rows(source, columns=["a", "b", "c"]) if isinstance(source, Path) else source, KERNEL, landmarks=LANDMARKS, rng=0
        ).decomposition
        np.testing.assert_allclose(d @ v, expected @ v, atol=1e-10)
        np.testing.assert_allclose(d.solve(v, ridge=0.1), expected.solve(v, ridge=0.1), atol=1e-8)
        np.testing.assert_allclose(d.logdet(0.1), expected.logdet(0.1), rtol=1e-12)
        np.testing.assert_allclose(d.diagonal(), expected.diagonal(), atol=1e-13)


def test_a_streamed_decomposition_is_saved_and_loaded(tmp_path: Path) -> None:
    d = nystrom_stream(X, KERNEL, landmarks=LANDMARKS, rng=0).decomposition
    d.save(tmp_path / "d.npz")
    loaded = softlinalg.NystromDecomposition.load(tmp_path / "d.npz", x=X)
    np.testing.assert_array_equal(loaded.features(X[:5]), d.features(X[:5]))
    np.testing.assert_array_equal(loaded @ Y, d @ Y)


# ------------------------------------------------------------------------------------------------ memory
MEMORY = textwrap.dedent("""
    import re, sys
    import numpy as np
    from softlinalg import Gaussian, nystrom_stream
    x = np.load(sys.argv[1], mmap_mode="r") if sys.argv[2] == "map" else sys.argv[1]
    result = nystrom_stream(x, Gaussian(3.0), rank=32, rng=0, chunk_size=8192)
    with open("/proc/self/status") as file:
        print(int(result.sums.rows), int(re.search(r"VmHWM:\\s+(\\d+)", file.read()).group(1)) * 1024)
""")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["map", "file"])
def test_peak_memory_does_not_grow_with_the_rows(tmp_path: Path, kind: str) -> None:
    peaks = []
    rng = np.random.default_rng(0)
    for n in (100_000, 1_000_000):
        x = np.lib.format.open_memmap(tmp_path / f"{n}.npy", mode="w+", dtype=np.float32, shape=(n, 16))
        for start in range(0, n, 100_000):
            x[start : start + 100_000] = rng.normal(size=(100_000, 16))
        del x
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path / f"{n}.npy"), kind], capture_output=True, text=True, check=True, timeout=120
        )
        count, peak = map(int, done.stdout.split())
        assert count == n
        peaks.append(peak)
    # 900,000 rows more are 58 MB; what may differ is how allocations happened to fall.
    assert abs(peaks[1] - peaks[0]) < 12e6, peaks


# ------------------------------------------------------------------------------------------------ refusals
def no_blocks() -> Any:
    return iter(())


@pytest.mark.parametrize(
    ("source", "settings", "error", "words"),
    [
        (X, {}, ParameterError, "rank must be given, or landmarks as points"),
        (X, {"rank": N + 1}, ParameterError, "rank must be a whole number from 1 to 3000"),
        (blocks_of(X, None, [500]), {"rank": N + 1}, ParameterError, "rank must be at most the number of rows, 3000; got 3001"),
        (X, {"rank": 5, "landmarks": "best"}, ParameterError, "landmarks must be points or one of"),
        (X, {"landmarks": X[:4, :2]}, ShapeError, r"landmarks must be points of shape \(m, 3\)"),
        (X, {"landmarks": X[:4], "rank": 5}, ParameterError, "landmarks must be as many as rank"),
        (X, {"landmarks": np.full((1, 3), np.nan)}, NonFiniteError, "landmarks must be finite"),
        (X, {"rank": 5, "sample": 4}, ParameterError, "sample must be at least the number of landmarks"),
        (X, {"rank": 5, "sample": X[:4]}, ShapeError, "sample must have a row per landmark"),
        (X, {"rank": 5, "targets": Y[:-1]}, ShapeError, r"targets must have shape \(3000,\) or \(3000, k\)"),
        (X, {"rank": 5, "targets": "y"}, ParameterError, "targets must be an array here; got the name 'y'"),
        (blocks_of(X, None, [500]), {"rank": 5, "targets": Y}, ParameterError, "targets must come with the blocks"),
        (X[:, 0], {"rank": 5}, ShapeError, r"source must have shape \(n, d\)"),
        (X[:0], {"rank": 5}, ShapeError, r"source must have shape \(n, d\) with n, d >= 1"),
        (X + 1j, {"rank": 5}, DTypeError, "source must hold real numbers"),
        (5, {"rank": 5}, ParameterError, "source must be an array, a file, a function or an iterator; got int"),
        (no_blocks, {"rank": 5}, ShapeError, "source must have rows"),
        ([X[:9], X[9:, :2]], {"rank": 5}, ShapeError, "source must keep its numbers of features and targets"),
        ([(X[:9], Y[:8])], {"rank": 5}, ShapeError, "targets must have one row per point"),
        ([["a", "b"]], {"rank": 5}, DTypeError, "source must "),
        (X, {"rank": 5, "chunk_size": 0}, ParameterError, "chunk_size must be a whole number >= 1"),
        (X, {"rank": 5, "threads": 0}, ParameterError, "threads must be a whole number >= 1"),
        (X, {"rank": 5, "lloyd_passes": -1}, ParameterError, "lloyd_passes must be"),
        (X, {"rank": 5, "rtol": 2.0}, ParameterError, "rtol"),
    ],
)
def test_what_cannot_be_used_is_named(source: Any, settings: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        nystrom_stream(source, KERNEL, rng=0, **settings)
    message = str(caught.value)
    assert len(message) <= 400
    assert "\n" not in message
    assert message.startswith("nystrom_stream: ")


def test_kernels_that_are_none_are_refused() -> None:
    with pytest.raises(ParameterError, match="kernel must have __call__"):
        nystrom_stream(X, Gaussian, rank=5)


@pytest.mark.parametrize("place", ["source", "targets"])
def test_the_row_of_a_bad_number_is_told(place: str) -> None:
    x, y = X.copy(), Y.copy()
    (x if place == "source" else y[:, None])[1234, 0] = np.inf
    with pytest.raises(NonFiniteError, match=rf"{place} must be finite; got NaN or infinity \(first in row 1234\)"):
        nystrom_stream(x, KERNEL, landmarks=LANDMARKS, targets=y, chunk_size=100, rng=0)


def test_rows_that_were_announced_must_come() -> None:
    with pytest.raises(InputError, match="source must give all of its 3001 rows; got 3000"):
        nystrom_stream(IteratedRows(blocks_of(X, None, [500]), rows=3001, func="f"), KERNEL, landmarks=LANDMARKS)


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet", "t.npy"])
def test_a_truncated_file_is_refused(files: Path, name: str) -> None:
    raw = (files / name).read_bytes()
    cut = raw[: int(0.7 * len(raw))]
    if name == "t.csv":  # in the middle of a row; a whole number of rows is another file, which nobody can tell
        cut = cut[: cut.rindex(b"\n")] + b"\n0.5,1.5"
    (files / name).write_bytes(cut)
    with pytest.raises((InputError, NonFiniteError)) as caught:
        nystrom_stream(files / name, KERNEL, targets=3 if name == "t.npy" else "y", rank=5, rng=0)
    assert re.search(r"must be (readable to its end|finite)", str(caught.value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,y\n1,2\nx,3\n", r"must hold numbers; got column 'a' without numbers \(first in row 1\)"),
        ("a,y\n1,2\n,3\n", "source must be finite"),
        ("a,y\n1,2\n1,2,3\n", "must be readable to its end"),
        ("a,b\n1,2\n", "targets must be among the columns of 'bad.csv'; got 'y'"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=words):
        nystrom_stream(tmp_path / "bad.csv", KERNEL, targets="y", landmarks=np.ones((1, 1)))


def test_files_that_cannot_be_rows_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name, error, words in [
        ("none.csv", FileNotFoundError, "path must be a file"),
        ("x.xlsx", InputError, "path must end in .npy"),
        ("one.npy", ShapeError, "must hold one array of shape"),
    ]:
        with pytest.raises(error, match=words):
            open_rows(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(InputError, match="must be readable to its end"):
        open_rows(tmp_path / "objects.npy")
    np.save(tmp_path / "two.npy", np.zeros((3, 2)))
    with pytest.raises(ParameterError, match="must name each column once"):
        open_rows(tmp_path / "two.npy", columns=[0, 1], targets=1)
    with pytest.raises(ShapeError, match="columns must name a feature at least"):
        open_rows(tmp_path / "two.npy", targets=[0, 1])
    with pytest.raises(ParameterError, match="dtype must be float32 or float64"):
        open_rows(tmp_path / "two.npy", dtype="int8")
    for more, words in [
        ({"dtype": "no such type"}, "dtype must be float32 or float64; got 'no such type'"),
        ({"columns": 1.5}, r"columns must be among the columns of 'two.npy'; got 1\.5\. It has: 0, 1"),
        ({"header": "yes"}, "header must be True or False"),
        ({"delimiter": "::"}, "delimiter must be one character"),
    ]:
        with pytest.raises(ParameterError, match=words):
            open_rows(tmp_path / "two.npy", **more)
    with pytest.raises(ParameterError, match="path must be a string or a path"):
        open_rows(3)  # type: ignore[arg-type]


def test_one_column_is_named_without_a_list(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ab,c\n1,2\n3,4\n")
    source = open_rows(tmp_path / "t.csv", columns="ab", targets=np.int64(1))  # type: ignore[arg-type]
    assert (source.names, source.target_names) == (("ab",), ("c",))  # type: ignore[attr-defined]


def test_settings_of_a_stream_are_checked(tmp_path: Path) -> None:
    for more, words in [
        ({"checkpoint": 3}, "checkpoint must be a string or a path"),
        ({"progress": "yes"}, "progress must be True or False"),
        ({"lloyd_passes": -1}, "lloyd_passes must be a whole number >= 0; got -1"),
        ({"lloyd_passes": np.ones(2)}, "lloyd_passes must be a whole number >= 0; got ndarray"),
    ]:
        with pytest.raises(ParameterError, match=words):
            nystrom_stream(X, KERNEL, rank=5, rng=0, **more)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="source must be a function that makes iterators; got one that returns NoneType"):
        nystrom_stream(lambda: None, KERNEL, rank=5, rng=0)


def test_arrays_that_take_no_numbers_of_rows_are_sources() -> None:
    strict = pytest.importorskip("array_api_strict")
    found = nystrom_stream(strict.asarray(X[:300]), KERNEL, targets=strict.asarray(Y[:300]), rank=5, rng=0)
    assert same_bits(found, nystrom_stream(X[:300], KERNEL, targets=Y[:300], rank=5, rng=0))


def test_a_ridge_regression_needs_targets_and_positive_ridges() -> None:
    with pytest.raises(ParameterError, match="targets must be given when rows are streamed"):
        nystrom_stream(X, KERNEL, landmarks=LANDMARKS).fit_ridge()
    result = nystrom_stream(X, KERNEL, landmarks=LANDMARKS, targets=Y)
    for ridges in (0.0, [], [1.0, -1.0], np.nan):
        with pytest.raises(ParameterError, match=r"ridges must (be a|have at least one)"):
            result.fit_ridge(ridges)
    few = nystrom_stream(X[:40], Gaussian(0.1), landmarks=LANDMARKS, targets=Y[:40])
    with pytest.raises(ParameterError, match="weights must sum to more than the degrees of freedom; got a sum of 40"):
        few.fit_ridge([1e-20, 1e-18])


def test_the_progress_bar_counts_all_rows(capsys: pytest.CaptureFixture[str]) -> None:
    nystrom_stream(X, KERNEL, landmarks=LANDMARKS, chunk_size=1000, progress=True)
    shown = capsys.readouterr().err
    assert "rank 40: 100%" in shown
    assert "rows/s" in shown
