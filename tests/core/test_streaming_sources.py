"""Streaming: every kind of source gives the same, and what cannot be read or used is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from streaming_cases import KERNEL, LANDMARKS, N, X, Y, blocks_of, same_bits

import softlinalg
from softlinalg import Gaussian, nystrom, nystrom_stream, open_rows
from softlinalg._streaming_sources import ArrayRows, IteratedRows, chunks
from softlinalg.errors import DTypeError, InputError, NonFiniteError, ParameterError, ShapeError


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
