"""The command: what it reads, shows and writes, and that every failure is one line and a status. The demonstration: test_cli_demo.py."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from command_line import COMMAND, run, shell

import softlinalg
from softlinalg import _cli_data, _cli_options, _landmarks, errors
from softlinalg._cli_data import DataOptions, read

ROWS, FEATURES = 240, 3


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((ROWS, FEATURES))


@pytest.fixture
def folder(tmp_path: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the same numbers in every format, and some broken files; the tests run inside it."""
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    np.save("x.npy", x)
    np.savez("one.npz", points=x)
    np.savez("two.npz", points=x, other=x[:, :2])
    frame.to_csv("x.csv", index=False)
    frame.to_csv("x.csv.gz", index=False)
    frame.to_parquet("x.parquet")
    frame.assign(name=["n"] * 17 + ["n"] * (ROWS - 17), late=[f"{i}" if i != 30 else "?" for i in range(ROWS)]).to_csv(
        "words.csv", index=False
    )
    holes = frame.copy()
    holes.loc[3, "b"] = np.nan
    holes.loc[5, ["b", "c"]] = [np.nan, np.inf]
    holes.to_csv("holes.csv", index=False)
    return tmp_path


def exact_error(x: np.ndarray, decomposition: Any) -> float:
    """Relative nuclear norm of what is left over, from the whole matrix."""
    whole = decomposition.kernel(x)
    return float(np.abs(np.linalg.eigvalsh(whole - decomposition @ np.eye(len(x)))).sum() / len(x))


# ------------------------------------------------------------------------------------------------ the command
def test_the_installed_command_approximates_a_file(folder: Path) -> None:
    done = shell("approximate", "x.npy", "--rank", "40", "--plot", "error.png", "--output", "model.npz")
    assert done.returncode == 0, done.stderr
    for word in (
        "rows",
        "240",
        "features",
        "rank",
        "relative trace error",
        "rounding floor",
        "time",
        "peak memory",
        "full kernel",
        "461 kB",
    ):
        assert word in done.stdout
    assert "wrote error.png" in done.stdout
    assert "%" in done.stderr, "a progress bar"
    assert (folder / "error.png").read_bytes().startswith(b"\x89PNG")


def test_help_and_version_need_no_data() -> None:
    version, outer, inner = shell("--version"), shell("--help"), shell("approximate", "--help")
    assert version.stdout == f"softlinalg {softlinalg.__version__}\n"
    assert outer.stdout.startswith("usage: softlinalg ")
    assert inner.stdout.startswith("usage: softlinalg approximate DATA")
    for word in ("--rank N", "--tol T", "examples:", "measurements.csv"):
        assert word in inner.stdout
    assert [done.returncode for done in (version, outer, inner)] == [0, 0, 0]


def test_the_landmark_methods_are_those_of_the_core() -> None:
    assert set(_cli_options.LANDMARKS) == set(_landmarks.METHODS)
    assert _cli_options.LANDMARKS[0] == _landmarks.METHODS[0]


# -------------------------------------------------------------------------------------------------- what it does
@pytest.mark.parametrize("file", ["x.npy", "one.npz", "x.csv", "x.csv.gz", "x.parquet"])
def test_every_format_gives_the_same_exact_error(folder: Path, x: np.ndarray, capsys: pytest.CaptureFixture[str], file: str) -> None:
    argv = ["approximate", file, "--rank", "30", "--no-standardize", "--json", "out.json", "--output", "out.npz", "--quiet"]
    assert run(capsys, *argv) == (0, "", "")
    report = json.loads((folder / "out.json").read_text())
    model = softlinalg.NystromDecomposition.load(folder / "out.npz")
    assert (report["rows"], report["features"], report["rank"], report["dtype"]) == (ROWS, FEATURES, model.rank, "float64")
    # Sums of 240 eigenvalues, each within a few eps of the norm, which is below the trace.
    assert report["relative_trace_error"] == pytest.approx(exact_error(x, model), abs=1e-12)
    assert report["relative_trace_errors"][-1] == pytest.approx(report["relative_trace_error"], abs=1e-12)
    assert report["full_kernel_bytes"] == 8 * ROWS**2
    assert 0 < report["floor"] < 1e-9


def test_a_tolerance_is_reached(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, _ = run(capsys, "approximate", "x.npy", "--tol", "0.02", "--json", "out.json", "--quiet")
    report = json.loads((folder / "out.json").read_text())
    assert status == 0
    assert report["relative_trace_error"] <= 0.02
    assert report["rank"] < ROWS / 2


@pytest.mark.parametrize("kernel", _cli_options.KERNELS)
def test_every_kernel_can_be_named(folder: Path, capsys: pytest.CaptureFixture[str], kernel: str) -> None:
    status, out, _ = run(capsys, "approximate", "x.npy", "--rank", "25", "--kernel", kernel, "--length-scale", "2.5")
    assert status == 0
    assert {"gaussian": "Gaussian", "laplacian": "Laplacian", "matern12": "Matern 1/2", "matern32": "Matern 3/2", "matern52": "Matern 5/2"}[
        kernel
    ] in out
    assert "length scale 2.5" in out


@pytest.mark.parametrize("method", _cli_options.LANDMARKS)
def test_every_landmark_method_can_be_named(folder: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    status, out, _ = run(capsys, "approximate", "x.npy", "--rank", "25", "--landmarks", method)
    assert status == 0
    assert re.search(rf"landmarks +25 \({re.escape(method)}\)\n", out)


def test_the_seed_decides(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    errors_seen = []
    for seed in ("0", "0", "1"):
        run(capsys, "approximate", "x.npy", "--rank", "20", "--seed", seed, "--json", "out.json", "--quiet")
        errors_seen.append(json.loads((folder / "out.json").read_text())["relative_trace_error"])
    assert errors_seen[0] == errors_seen[1] != errors_seen[2]


def test_chunks_change_nothing_but_memory(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    for extra in ([], ["--chunk-size", "7"]):
        run(capsys, "approximate", "x.npy", "--rank", "20", "--json", "out.json", "--quiet", *extra)
        seen.append(json.loads((folder / "out.json").read_text())["relative_trace_error"])
    assert seen[0] == pytest.approx(seen[1], abs=1e-12)


@pytest.mark.parametrize(("name", "magic"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")])
def test_plots_come_in_three_formats(folder: Path, capsys: pytest.CaptureFixture[str], name: str, magic: bytes) -> None:
    assert run(capsys, "approximate", "x.npy", "--rank", "5", "--plot", name, "--quiet")[0] == 0
    assert (folder / name).read_bytes().startswith(magic)
    assert (folder / name).stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_rank_of_one_can_be_plotted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "approximate", "x.npy", "--rank", "1", "--plot", "p.png", "--quiet")[0] == 0


def test_an_approximation_can_be_saved_as_safetensors(folder: Path, x: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "approximate", "x.npy", "--rank", "9", "--output", "m.safetensors", "--quiet")[0] == 0
    assert softlinalg.NystromDecomposition.load(folder / "m.safetensors").shape == (ROWS, ROWS)


# ------------------------------------------------------------------------------------------------------ data
def test_npy_files_stay_memory_mapped(folder: Path) -> None:
    assert isinstance(read(Path("x.npy"), DataOptions()).x, np.memmap)


def test_single_precision_is_kept_and_can_be_asked_for(folder: Path, x: np.ndarray) -> None:
    np.save("single.npy", x.astype(np.float32))
    np.save("half.npy", x.astype(np.float16))
    np.save("whole.npy", (10 * x).astype(np.int32))
    pd.DataFrame(x.astype(np.float32), columns=list("abc")).to_parquet("single.parquet")
    found = {
        name: str(read(Path(name), DataOptions()).x.dtype) for name in ("single.npy", "half.npy", "whole.npy", "single.parquet", "x.csv")
    }
    assert found == {
        "single.npy": "float32",
        "half.npy": "float32",
        "whole.npy": "float64",
        "single.parquet": "float32",
        "x.csv": "float64",
    }
    assert read(Path("x.csv"), DataOptions(dtype="float32")).x.dtype == np.float32


@pytest.mark.parametrize("file", ["x.csv", "x.parquet", "x.npy"])
@pytest.mark.parametrize("block", [64, 1 << 25])
def test_columns_are_chosen_in_order_and_standardized(
    folder: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch, file: str, block: int
) -> None:
    monkeypatch.setattr(_cli_data, "BLOCK_BYTES", block)
    names = ("2", "0") if file == "x.npy" else ("c", "a")
    data = read(Path(file), DataOptions(columns=names, standardize=True))
    expected = (x - x.mean(axis=0)) / x.std(axis=0)
    assert data.columns == names
    np.testing.assert_allclose(data.x, expected[:, [2, 0]], rtol=0, atol=1e-13)
    assert any("standardized" in note for note in data.notes)


def test_tables_are_standardized_unless_told_otherwise_and_arrays_are_not(folder: Path, x: np.ndarray) -> None:
    assert read(Path("x.csv"), DataOptions()).x.std(axis=0) == pytest.approx([1, 1, 1])
    np.testing.assert_array_equal(read(Path("x.npy"), DataOptions()).x, x)
    np.testing.assert_allclose(read(Path("x.csv"), DataOptions(standardize=False)).x, x, rtol=1e-15)


def test_dropped_columns_are_left_out(folder: Path) -> None:
    assert read(Path("words.csv"), DataOptions(drop=("name", "late", "b"))).columns == ("a", "c")
    assert read(Path("x.npy"), DataOptions(drop=("1",))).columns == ("0", "2")


def test_constant_columns_are_left_out_openly(folder: Path, x: np.ndarray) -> None:
    pd.DataFrame({"a": x[:, 0], "year": 2013, "third": 0.1}).to_csv("constant.csv", index=False)
    data = read(Path("constant.csv"), DataOptions())
    assert data.columns == ("a",)
    assert "Left out as constant: year, third." in data.notes


@pytest.mark.parametrize("block", [64, 1 << 25])
def test_rows_with_missing_values_can_be_dropped(folder: Path, x: np.ndarray, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(_cli_data, "BLOCK_BYTES", block)
    data = read(Path("holes.csv"), DataOptions(missing="drop", standardize=True))
    left = np.delete(x, [3, 5], axis=0)
    np.testing.assert_allclose(data.x, (left - left.mean(axis=0)) / left.std(axis=0), rtol=0, atol=1e-13)
    assert data.notes[0] == "3 missing or infinite values in 2 rows (most in column b): these rows were left out."


def test_missing_values_can_take_the_mean(folder: Path, x: np.ndarray) -> None:
    plain = read(Path("holes.csv"), DataOptions(missing="mean", standardize=False)).x
    assert plain[3, 1] == plain[5, 1] == pytest.approx(np.delete(x[:, 1], [3, 5]).mean(), abs=1e-15)
    scaled = read(Path("holes.csv"), DataOptions(missing="mean")).x
    assert scaled[3, 1] == 0
    assert scaled[5, 2] == 0


def test_a_csv_without_names_is_read_from_its_first_row(folder: Path, x: np.ndarray) -> None:
    pd.DataFrame(x).to_csv("bare.csv", index=False, header=False)
    data = read(Path("bare.csv"), DataOptions(columns=("2",), standardize=False))
    assert data.x.shape == (ROWS, 1)
    assert "first row is all numbers" in data.notes[0]
    assert read(Path("bare.csv"), DataOptions(header=False)).notes == ("Each column was standardized to mean 0 and deviation 1.",)
    assert read(Path("bare.csv"), DataOptions(header=True)).x.shape == (ROWS - 1, FEATURES)


def test_other_separators_and_spaces_are_read(folder: Path) -> None:
    Path("semi.csv").write_text("a; b\n1; 2\n3; 5\n")
    np.testing.assert_array_equal(read(Path("semi.csv"), DataOptions(delimiter=";", columns=("b",), standardize=False)).x, [[2], [5]])


def test_a_nameless_first_column_is_pointed_out(folder: Path, x: np.ndarray) -> None:
    pd.DataFrame(x, columns=["a", "b", "c"]).to_csv("indexed.csv")
    assert "--drop 'Unnamed: 0'" in read(Path("indexed.csv"), DataOptions()).notes[0]


def test_truth_values_and_nullable_columns_are_numbers(folder: Path) -> None:
    pd.DataFrame({"yes": [True, False, True], "n": pd.array([1, None, 3], dtype="Int64")}).to_parquet("t.parquet")
    np.testing.assert_array_equal(read(Path("t.parquet"), DataOptions(missing="mean", standardize=False)).x, [[1, 1], [0, 2], [1, 3]])


def test_huge_values_are_standardized_without_overflow(folder: Path) -> None:
    np.save("huge.npy", np.array([[1e307], [-1e307], [3e307]]))
    data = read(Path("huge.npy"), DataOptions(standardize=True))
    assert data.x.std() == pytest.approx(1)


# -------------------------------------------------------------------------------------------------- refusals
def _broken_files() -> None:
    Path("empty.csv").write_bytes(b"")
    Path("header.csv").write_text("a,b\n")
    Path("ragged.csv").write_text("a,b\n1,2\n1,2,3\n")
    Path("long.csv").write_text("a,b\n1,2,3\n4,5,6\n")
    Path("latin.csv").write_bytes("größe,b\n1,2\n".encode("latin-1"))
    Path("not.csv.gz").write_bytes(b"plain text")
    Path("cut.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1,2\n" * 3000)[:40])
    Path("broken.npy").write_bytes(b"\x93NUMPY\x01\x00 nonsense")
    Path("short.npy").write_bytes(Path("x.npy").read_bytes()[:900])
    Path("broken.npz").write_bytes(b"PK\x03\x04 nonsense")
    Path("broken.parquet").write_bytes(b"PAR1 nonsense PAR1")
    Path("data.txt").write_text("1 2 3")
    np.save("flat.npy", np.ones(5))
    np.save("cube.npy", np.ones((5, 2, 2)))
    np.save("complex.npy", np.ones((5, 2), dtype=complex))
    np.save("none.npy", np.ones((0, 3)))
    np.save("thin.npy", np.ones((5, 0)))
    np.save("words.npy", np.array([["a", "b"]]))
    np.save("nan.npy", np.array([[1.0, np.nan], [0.0, 1.0]]))
    np.save("same.npy", np.ones((6, 2)))
    np.save("infinite.npy", np.array([[1e308, 1], [-1e308, 2], [1e308, 3]]))
    np.save("code.npy", np.array([[print]], dtype=object), allow_pickle=True)
    np.savez("nothing.npz")
    np.savez("code.npz", a=np.array([[print]], dtype=object))
    pd.DataFrame({"a": [np.nan, np.nan], "b": [1, 2]}).to_csv("blank.csv", index=False)
    pd.DataFrame({"z": [1 + 2j, 3]}).to_pickle("z.unused")
    pd.DataFrame({"when": pd.to_datetime(["2020-01-01", "2020-01-02"]), "b": [1.0, 2.0]}).to_parquet("dates.parquet")
    Path("folder.npy").mkdir()
    Path("z.unused").unlink()


REFUSALS = {
    "no such file": (["nope.csv"], r"nope\.csv: no such file"),
    "folder": (["folder.npy"], "folder.npy: is a folder"),
    "unknown format": (["data.txt"], r"data\.txt: unknown kind of file; its name must end in \.npy, \.npz, \.csv"),
    "empty file": (["empty.csv"], r"empty\.csv: the file is empty"),
    "no rows": (["header.csv"], r"header\.csv: has no rows"),
    "no rows in an array": (["none.npy"], r"none\.npy: has no rows"),
    "no columns": (["thin.npy"], r"thin\.npy: has no columns"),
    "ragged": (["ragged.csv"], r"ragged\.csv: cannot be read as CSV: .*line 3"),
    "long rows": (["long.csv"], r"long\.csv: cannot be read as CSV: .*does not match length of data"),
    "long rows, one column": (["ragged.csv", "--columns", "a"], r"ragged\.csv: cannot be read as CSV: .*line 3"),
    "wrong encoding": (["latin.csv"], r"latin\.csv: cannot be read as CSV: .*codec"),
    "not gzip": (["not.csv.gz"], r"not\.csv\.gz: cannot be read as CSV"),
    "cut gzip": (["cut.csv.gz"], r"cut\.csv\.gz: cannot be read as CSV"),
    "broken npy": (["broken.npy"], r"broken\.npy: cannot be read as \.npy"),
    "cut npy": (["short.npy"], r"short\.npy: cannot be read as \.npy"),
    "broken npz": (["broken.npz"], r"broken\.npz: cannot be read as \.npz"),
    "broken parquet": (["broken.parquet"], r"broken\.parquet: cannot be read as Parquet"),
    "objects": (["code.npy"], r"code\.npy: cannot be read as \.npy: .*Python objects"),
    "objects in an archive": (["code.npz"], r"code\.npz: cannot be read as \.npz: .*allow_pickle"),
    "one axis": (["flat.npy"], r"must have two axes, one row per point; its shape is \(5,\)"),
    "three axes": (["cube.npy"], r"its shape is \(5, 2, 2\)"),
    "complex": (["complex.npy"], "must hold real numbers; its dtype is complex128"),
    "words in an array": (["words.npy"], "must hold real numbers; its dtype is <U1"),
    "empty archive": (["nothing.npz"], "holds no arrays"),
    "several arrays": (["two.npz"], "holds 2 arrays; choose one with --array: points, other"),
    "unknown array": (["two.npz", "--array", "q"], "has no array 'q'; it holds: points, other"),
    "array of what has none": (["x.csv", "--array", "q"], "--array is for .npz files"),
    "words": (["words.csv"], r"not a number \(first at data row 1\) in 2 columns: name, late; leave such columns out"),
    "a word far down": (["words.csv", "--drop", "name"], r"not a number \(first at data row 31\) in 1 column: late"),
    "dates": (["dates.parquet"], "not a number in 1 column: when"),
    "unknown column": (["x.csv", "--columns", "a,q"], "has no column 'q'; it has: a, b, c"),
    "unknown column to drop": (["x.csv", "--drop", "q"], "has no column 'q'"),
    "all dropped": (["x.csv", "--drop", "a,b", "--drop", "c"], "--drop leaves no column"),
    "column twice": (["x.csv", "--columns", "a,a"], "--columns names a column twice"),
    "column by a name that is a number": (["x.npy", "--columns", "3"], "has no column '3'; it has: 0, 1, 2"),
    "missing values": (["holes.csv"], r"3 missing or infinite values in 2 rows \(most in column b\); choose --missing drop"),
    "NaN in an array": (["nan.npy"], r"1 missing value in 1 row \(most in column 1\)"),
    "no complete row": (["blank.csv", "--missing", "drop"], "every row has a missing value"),
    "no value in a column": (["blank.csv", "--missing", "mean"], "column a has no values at all; leave it out with --drop a"),
    "all constant": (["same.npy", "--standardize"], "every column is constant"),
    "too large to standardize": (["infinite.npy", "--standardize"], "column 0 has values too large to standardize"),
    "too large for float32": (["infinite.npy", "--dtype", "float32"], "must be finite"),
    "rank above rows": (["x.npy", "--rank", "241"], "--rank must be at most the number of rows, 240; got 241"),
    "output of unknown kind": (["x.npy", "--output", "m.pkl"], "--output must name a file that ends in .npz or .safetensors; got m.pkl"),
    "plot of unknown kind": (["x.npy", "--plot", "p.bmp"], "--plot must name a file that ends in .png or .svg or .pdf"),
    "output into no folder": (["x.npy", "--output", "nowhere/m.npz"], "--output: there is no folder nowhere"),
    "output onto a folder": (["x.npy", "--json", "folder.npy"], "--json: folder.npy is a folder"),
    "output onto the data": (["one.npz", "--output", "one.npz"], "is the data itself, which would be overwritten"),
    "two outputs in one": (["x.npy", "--json", "m.png", "--plot", "m.png"], "two outputs have the same name"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_one_line_and_status_2(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    _broken_files()
    argv, expected = REFUSALS[case]
    size = [] if "--rank" in argv else ["--rank", "2"]
    status, out, err = run(capsys, "approximate", *argv, *size, "--quiet")
    assert (status, out) == (2, "")
    assert err.startswith("softlinalg: error: ")
    assert err.count("\n") == 1
    assert len(err) < 500
    assert re.search(expected, err)


USAGE = {
    "no command": ([], "required: COMMAND"),
    "unknown command": (["solve"], "invalid choice: 'solve'"),
    "no data": (["approximate", "--rank", "3"], "required: DATA"),
    "neither rank nor tol": (["approximate", "x.npy"], "one of the arguments --rank --tol is required"),
    "both": (["approximate", "x.npy", "--rank", "3", "--tol", "0.1"], "not allowed with argument --rank"),
    "rank zero": (["approximate", "x.npy", "--rank", "0"], "--rank: must be a whole number of at least 1; got '0'"),
    "rank with a fraction": (["approximate", "x.npy", "--rank", "2.5"], "got '2.5'"),
    "tol one": (["approximate", "x.npy", "--tol", "1"], "--tol: must be a number between 0 and 1; got '1'"),
    "tol a word": (["approximate", "x.npy", "--tol", "small"], "got 'small'"),
    "length scale": (["approximate", "x.npy", "--rank", "3", "--length-scale", "-1"], "must be a positive number or the word median"),
    "seed": (["approximate", "x.npy", "--rank", "3", "--seed", "x"], "--seed: must be a whole number of at least 0"),
    "names": (["approximate", "x.npy", "--rank", "3", "--drop", "a,,b"], "names separated by single commas"),
    "kernel": (["approximate", "x.npy", "--rank", "3", "--kernel", "cubic"], "invalid choice: 'cubic'"),
    "landmarks": (["approximate", "x.npy", "--rank", "3", "--landmarks", "best"], "invalid choice: 'best'"),
    "columns and drop": (["approximate", "x.npy", "--rank", "3", "--columns", "a", "--drop", "b"], "not allowed with argument"),
    "unknown option": (["approximate", "x.npy", "--rank", "3", "--fast"], "unrecognized arguments: --fast"),
}


@pytest.mark.parametrize("case", USAGE)
def test_wrong_usage_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str], case: str) -> None:
    argv, expected = USAGE[case]
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert err.startswith("softlinalg: error: ")
    assert err.count("\n") == 1
    assert expected in err
    assert err.rstrip().endswith("--help)")


@pytest.mark.parametrize("argv", [["approximate", "nope.npy", "--rank", "3"], ["approximate"], ["approximate", "holes.csv", "--rank", "3"]])
def test_the_installed_command_refuses_without_a_traceback(folder: Path, argv: list[str]) -> None:
    done = shell(*argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("softlinalg: error: ")
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback_before_the_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "approximate", "nope.npy", "--rank", "3", "--debug")
    assert status == 2
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1] == "softlinalg: error: nope.npy: no such file"


def test_read_only_folders_are_refused_before_the_work(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # a superuser may write anywhere, so file modes alone test nothing
    status, _, err = run(capsys, "approximate", "x.npy", "--rank", "3", "--json", "out.json")
    assert (status, err) == (2, "softlinalg: error: --json: out.json cannot be written: permission denied\n")


def test_a_write_that_fails_leaves_the_old_file(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("out.json").write_text("old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    status, _, err = run(capsys, "approximate", "x.npy", "--rank", "3", "--json", "out.json", "--quiet")
    assert (status, err) == (2, "softlinalg: error: out.json: cannot be written: No space left on device\n")
    assert Path("out.json").read_text() == "old"
    assert not list(folder.glob(".out.json*"))


@pytest.mark.parametrize(
    ("missing", "argv", "what"),
    [
        ("pandas", ["x.csv"], "reading CSV needs the package pandas"),
        ("pandas", ["x.parquet"], "reading Parquet needs the package pandas"),
        ("pyarrow.parquet", ["x.parquet"], "reading Parquet needs the package pyarrow"),
        ("matplotlib.figure", ["x.npy", "--plot", "p.png"], "--plot needs the package matplotlib"),
    ],
)
def test_missing_packages_are_named_with_what_brings_them(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, missing: str, argv: list[str], what: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    status, _, err = run(capsys, "approximate", *argv, "--rank", "3", "--quiet")
    assert status == 2
    assert err == f'softlinalg: error: {what}, which is not installed; run: pip install "softlinalg[demo]"\n'


def test_arrays_need_neither_pandas_nor_matplotlib(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pandas", "matplotlib", "sklearn", "pyarrow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run(capsys, "approximate", "x.npy", "--rank", "3", "--output", "m.npz", "--json", "m.json", "--quiet")[0] == 0


@pytest.mark.parametrize(
    ("error", "status", "expected"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "out of memory; --dtype float32, a smaller --rank or a smaller --chunk-size needs less"),
        (errors.ResourceError("nystrom: the factor must fit in 1 GB; got a need of 2 GB. Choose a smaller rank."), 2, "must fit in 1 GB"),
        (ZeroDivisionError("division\nby zero"), 2, "unexpected ZeroDivisionError: division by zero (--debug shows where"),
        (errors.ConvergenceError("nystrom: it did\nnot converge"), 2, "nystrom: it did not converge"),
    ],
)
def test_whatever_happens_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, expected: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(softlinalg, "nystrom", fail)
    found, out, err = run(capsys, "approximate", "x.npy", "--rank", "3", "--quiet")
    assert (found, out) == (status, "")
    assert err.startswith(f"softlinalg: error: {expected}" if status == 130 else "softlinalg: error: ")
    assert expected in err
    assert err.count("\n") == 1


def test_warnings_are_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("pairs.npy", np.repeat(np.arange(4.0), 5)[:, None])
    status, _, err = run(capsys, "approximate", "pairs.npy", "--rank", "8", "--landmarks", "uniform", "--quiet")
    assert status == 0
    assert re.fullmatch(r"(softlinalg: warning: .*\n)*", err)


def test_ctrl_c_ends_with_one_line_and_status_130(folder: Path) -> None:
    np.save("large.npy", np.random.default_rng(0).standard_normal((200_000, 20)))
    # A process of its own group, and a handler even where the shell that runs the tests ignores the signal.
    start = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from softlinalg.cli import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, "approximate", "large.npy", "--rank", "1500", "--output", "m.npz"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    first = process.stderr.read(1)  # the progress bar: the work has begun
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert (first + err).splitlines()[-1] == "softlinalg: error: interrupted"
    assert "Traceback" not in err
    assert out == ""
    assert not list(folder.glob("*m.npz*"))


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "approximate", "x.npy", "--rank", "3", "--quiet"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    process.wait(timeout=60)
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
