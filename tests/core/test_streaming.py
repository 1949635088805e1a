"""Streaming: the result of data in memory, bit for bit the same however the rows arrive. Files and other sources: test_streaming_sources.py."""

from __future__ import annotations

import math
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streaming_cases import KERNEL, LANDMARKS, N, X, Y, blocks_of, same_bits

from softlinalg import Gaussian, Laplacian, Matern, nystrom, nystrom_stream
from softlinalg import _streaming_plan as plans
from softlinalg import _streaming_tasks as tasks
from softlinalg._ridge_regression import ridge_model
from softlinalg._ridge_sums import ridge_sums
from softlinalg._streaming import default_chunk_size
from softlinalg.errors import NumericalError


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
