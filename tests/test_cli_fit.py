"""The commands fit and predict: what the library finds, from files read in pieces, and every failure in one line."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from softlinalg import Gaussian, cli, errors, nystrom_stream
from softlinalg import _cli_model as models

N = 1200
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, 3)) * [1.0, 100.0, 0.01] + [0.0, 5.0, 3.0]
Y = np.sin(X[:, 0]) + X[:, 1] / 100 + 1000.0
FIT = ["--rank", "60", "--output", "model", "--quiet"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same numbers in every format; the tests run inside it."""
    monkeypatch.chdir(tmp_path)
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    frame["price"] = Y
    frame.to_csv("t.csv", index=False)
    frame.to_csv("t.csv.gz", index=False)
    frame.to_csv("bare.csv", index=False, header=False)
    frame.to_csv("semicolon.csv", index=False, sep=";")
    frame.to_parquet("t.parquet")
    np.save("t.npy", frame.to_numpy())
    frame.drop(columns="price").iloc[:40, ::-1].to_csv("new.csv", index=False)
    frame.assign(k=7.0).to_csv("constant.csv", index=False)
    holes = frame.copy()
    holes.loc[3, "b"] = np.nan
    holes.loc[700, "price"] = np.nan
    holes.to_csv("holes.csv", index=False)
    frame.assign(name="x").to_csv("words.csv", index=False)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(argv)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def fitted(capsys: pytest.CaptureFixture[str], *argv: str) -> None:
    assert run(capsys, "fit", *argv, *FIT) == (0, "", "")


def predicted(capsys: pytest.CaptureFixture[str], data: str, *argv: str) -> np.ndarray:
    assert run(capsys, "predict", data, "--model", "model", "--output", "p.npy", "--quiet", *argv) == (0, "", "")
    values: np.ndarray = np.load("p.npy", allow_pickle=False)
    return values


# ------------------------------------------------------------------------------------------------ the same numbers
@pytest.mark.parametrize(
    ("data", "target", "more"),
    [
        ("t.csv", "price", []),
        ("t.csv.gz", "-1", []),
        ("bare.csv", "3", []),
        ("semicolon.csv", "price", ["--delimiter", ";"]),
        ("t.parquet", "price", []),
        ("t.npy", "-1", ["--standardize"]),
    ],
)
def test_every_format_gives_the_model_that_the_library_finds(
    folder: Path, capsys: pytest.CaptureFixture[str], data: str, target: str, more: list[str]
) -> None:
    fitted(capsys, data, "--target", target, *more)
    found = predicted(capsys, data, *[word for word in more if word != "--standardize"])
    z = (X - X.mean(axis=0)) / X.std(axis=0)
    expected = nystrom_stream(z, Gaussian("median"), rank=60, targets=Y, rng=0)
    values = expected.fit_ridge().predict(expected.decomposition.features(z))[:, 0]
    assert found.shape == (N,)
    np.testing.assert_allclose(found, values, rtol=0, atol=1e-5 * Y.std())
    assert np.sqrt(np.mean((found - Y) ** 2)) < 0.05 * Y.std()


def test_the_model_finds_its_columns_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(capsys, "t.csv", "--target", "price")
    everything = predicted(capsys, "t.csv")
    np.testing.assert_allclose(predicted(capsys, "new.csv"), everything[:40], rtol=0, atol=1e-9)  # columns in another order
    np.save("x.npy", X)
    np.testing.assert_allclose(predicted(capsys, "x.npy"), everything, rtol=0, atol=1e-9)  # without names, by position


def test_predictions_are_written_as_csv_with_all_digits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(capsys, "t.csv", "--target", "price,a")
    both = predicted(capsys, "t.csv")
    assert both.shape == (N, 2)
    assert run(capsys, "predict", "t.csv", "--model", "model", "--output", "p.csv")[0] == 0
    table = pd.read_csv("p.csv")
    assert list(table.columns) == ["price", "a"]
    np.testing.assert_array_equal(np.loadtxt("p.csv", delimiter=",", skiprows=1), both)


def test_chunks_and_threads_change_no_more_than_rounding(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(capsys, "t.csv", "--target", "price", "--threads", "1")
    one = (folder / "model" / "model.json").read_bytes()
    expected = predicted(capsys, "t.csv")
    fitted(capsys, "t.csv", "--target", "price", "--threads", "2")
    assert (folder / "model" / "model.json").read_bytes() == one, "threads change no bit"
    fitted(capsys, "t.csv", "--target", "price", "--chunk-size", "100")
    np.testing.assert_allclose(predicted(capsys, "t.csv", "--chunk-size", "37"), expected, rtol=0, atol=1e-4)


def test_columns_are_chosen_and_constant_ones_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, "fit", "constant.csv", "--target", "price", "--output", "model", "--rank", "20")
    assert status == 0
    assert "left out as constant: k" in out
    for word in ("rows", "1,200", "rank", "relative trace error", "generalized cross-validation", "R2", "peak memory", "wrote model"):
        assert word in out
    assert json.loads((folder / "model" / "model.json").read_text())["features"] == ["a", "b", "c"]
    fitted(capsys, "t.csv", "--target", "price", "--drop", "c")
    assert json.loads((folder / "model" / "model.json").read_text())["features"] == ["a", "b"]
    assert run(capsys, "fit", "t.csv", "--target", "price", "--columns", "b", "--output", "model", "--rank", "9", "--quiet")[0] == 0
    assert json.loads((folder / "model" / "model.json").read_text())["features"] == ["b"]
    fitted(capsys, "words.csv", "--target", "price", "--drop", "name")


def test_the_ridge_is_the_one_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(capsys, "t.csv", "--target", "price", "--ridge", "0.5")
    assert json.loads((folder / "model" / "model.json").read_text())["ridge"] == [0.5]


def test_rows_with_missing_values(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "fit", "holes.csv", "--target", "price", *FIT)
    assert status == 2
    assert "must be finite; got NaN or infinity (first in row 3)" in err
    fitted(capsys, "holes.csv", "--target", "price", "--missing", "drop")
    assert json.loads((folder / "model" / "model.json").read_text())["rows"] == N - 2
    values = predicted(capsys, "holes.csv", "--missing", "nan")
    assert np.flatnonzero(np.isnan(values)).tolist() == [3]


def test_no_standardize_takes_the_features_as_they_are(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(capsys, "t.csv", "--target", "price", "--no-standardize", "--length-scale", "50")
    model = models.load_model(folder / "model")
    np.testing.assert_array_equal(model.deviation, 1.0)
    expected = nystrom_stream(X, Gaussian(50.0), rank=60, targets=Y, rng=0)
    np.testing.assert_allclose(model.decomposition.landmarks, expected.decomposition.landmarks, rtol=1e-14)


# ------------------------------------------------------------------------------------------------ interrupted
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_fit_killed_in_mid_run_goes_on_to_the_same_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = """
import os, signal, sys
from softlinalg import _streaming_run, cli
real, calls = _streaming_run._Done.add, [0]
def add(self, state, digest):
    real(self, state, digest)
    if self.checkpoint is not None:
        self.checkpoint.seconds = 0.0
        calls[0] += 1
        if calls[0] == 8:
            os.kill(os.getpid(), signal.SIGKILL)
_streaming_run._Done.add = add
sys.exit(cli.main(sys.argv[1:]))
"""
    argv = ["fit", "t.csv", "--target", "price", *FIT, "--chunk-size", "100", "--checkpoint", "sums"]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "sums").exists()
    assert not (folder / "model").exists()
    assert run(capsys, *argv) == (0, "", "")
    assert not (folder / "sums").exists(), "it has done its work"
    resumed = (folder / "model" / "model.json").read_bytes()
    shutil.rmtree(folder / "model")
    fitted(capsys, "t.csv", "--target", "price", "--chunk-size", "100")
    assert (folder / "model" / "model.json").read_bytes() == resumed, "digests of all numbers are in it"


def test_a_model_is_replaced_whole_or_not_at_all(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fitted(capsys, "t.csv", "--target", "price")
    before = predicted(capsys, "t.csv")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(models, "write_arrays", full)
        status, _, err = run(capsys, "fit", "t.csv", "--target", "price", "--seed", "5", *FIT)
    assert (status, "No space left on device" in err) == (2, True)
    np.testing.assert_array_equal(predicted(capsys, "t.csv"), before)
    fitted(capsys, "t.csv", "--target", "price", "--seed", "6")
    assert len(os.listdir(folder / "model")) == 3, "what was there before is gone"  # noqa: PTH208
    assert not np.array_equal(predicted(capsys, "t.csv"), before)


def test_failed_predictions_leave_the_output_as_it_was(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(capsys, "t.csv", "--target", "price")
    before = predicted(capsys, "t.csv").tobytes()
    status, _, err = run(capsys, "predict", "holes.csv", "--model", "model", "--output", "p.npy", "--quiet")
    assert (status, "first in row 3" in err) == (2, True)
    assert np.load("p.npy", allow_pickle=False).tobytes() == before
    assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]  # noqa: PTH208


# ------------------------------------------------------------------------------------------------ refusals
@pytest.mark.parametrize("which", ["model.json", "approximation", "coefficients"])
@pytest.mark.parametrize("damage", ["bit", "short", "gone", "pickle"])
def test_a_damaged_model_is_refused(folder: Path, capsys: pytest.CaptureFixture[str], which: str, damage: str) -> None:
    fitted(capsys, "t.csv", "--target", "price")
    path = next(entry for entry in (folder / "model").iterdir() if entry.name.startswith(which))
    raw = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        at = raw.index(b'"digest"') + 14 if which == "model.json" else len(raw) // 2
        changed = {"bit": raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], "short": raw[:at], "pickle": pickle.dumps({"a": 1})}[damage]
        path.write_bytes(changed)
    status, out, err = run(capsys, "predict", "t.csv", "--model", "model", "--output", "p.npy", "--quiet")
    assert (status, out) == (2, "")
    assert err.startswith("softlinalg: error: ")
    assert err.count("\n") == 1
    assert not (folder / "p.npy").exists()


def test_a_later_version_and_files_elsewhere_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(capsys, "t.csv", "--target", "price")
    path = folder / "model" / "model.json"
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({**entries, "version": 2}))
    with pytest.raises(errors.CheckpointVersionError, match="Update softlinalg"):
        models.load_model(folder / "model")
    path.write_text(json.dumps({**entries, "coefficients": "../t.csv"}))
    with pytest.raises(errors.CheckpointCorruptError, match="a file elsewhere"):
        models.load_model(folder / "model")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["fit", "none.csv", "--target", "a", *FIT], "none.csv: no such file"),
        (["fit", "t.csv", *FIT], "required: --target"),
        (["fit", "t.csv", "--target", "rent", *FIT], "--target: t.csv has no column 'rent'; it has: a, b, c, price"),
        (["fit", "t.csv", "--target", "9", *FIT], "--target: t.csv has no column '9'"),
        (["fit", "t.csv", "--target", "a,a", *FIT], "--target names a column twice"),
        (["fit", "t.csv", "--target", "a", "--columns", "a,b", *FIT], "column 'a' is the target"),
        (["fit", "t.csv", "--target", "a", "--drop", "b,c,price", *FIT], "no column is left to predict from"),
        (["fit", "t.csv", "--target", "a", "--drop", "d", *FIT], "--drop: t.csv has no column 'd'"),
        (["fit", "words.csv", "--target", "price", *FIT], "got column 'name' without numbers"),
        (["fit", "t.csv", "--target", "price", "--model", "forest", *FIT], "invalid choice: 'forest'"),
        (["fit", "t.csv", "--target", "price", "--ridge", "0", *FIT], "must be positive numbers"),
        (["fit", "t.csv", "--target", "price", "--output", "t.npy"], "t.npy is a file; name a folder"),
        (["fit", "t.csv", "--target", "price", "--output", "."], "holds other things than a model"),
        (["fit", "t.csv", "--target", "price", "--output", "no/where"], "there is no folder"),
        (["fit", "t.csv", "--target", "price", "--checkpoint", "no/sums", *FIT], "--checkpoint: there is no folder no"),
        (["fit", "t.csv", "--target", "price", "--rank", "5000", "--output", "m", "--quiet"], "rank must be"),
        (["predict", "t.csv", "--model", "none", "--output", "p.npy"], "none holds no model"),
        (["predict", "t.csv", "--model", "model", "--output", "p.txt"], "--output must name a file that ends in .npy or .csv"),
        (["predict", "t.csv", "--model", "model", "--output", "t.csv"], "is the data itself"),
        (["predict", "t.csv", "--model", "model", "--output", "no/p.npy"], "there is no folder no"),
    ],
)
def test_every_failure_is_one_line_and_status_2(folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert words in err
    assert err.startswith("softlinalg: error: ")
    assert err.count("\n") == 1


def test_columns_that_are_missing_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(capsys, "t.csv", "--target", "price")
    pd.DataFrame(X[:5, :2], columns=["a", "b"]).to_csv("few.csv", index=False)
    status, _, err = run(capsys, "predict", "few.csv", "--model", "model", "--output", "p.npy")
    assert (status, "has no column 'c', which the model needs; it has: a, b" in err) == (2, True)


def test_features_that_do_not_vary_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.DataFrame({"a": [1.0] * 50, "y": range(50)}).to_csv("flat.csv", index=False)
    status, _, err = run(capsys, "fit", "flat.csv", "--target", "y", "--rank", "5", "--output", "model", "--quiet")
    assert (status, "every feature is constant" in err) == (2, True)


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_help_shows_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert "softlinalg predict new.csv --model model/ --output prices.csv" in capsys.readouterr().out


def test_a_small_file_needs_no_rank(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pd.read_csv("t.csv").iloc[:300].to_csv("small.csv", index=False)
    assert run(capsys, "fit", "small.csv", "--target", "price", "--output", "model", "--quiet") == (0, "", "")
    assert models.load_model(Path("model")).decomposition.rank == 150
    assert run(capsys, "predict", "new.csv", "--model", "model", "--output", "out.csv", "--quiet")[0] == 0
    assert np.abs(pd.read_csv("out.csv")["price"] - Y[:40]).median() < 0.05


def test_another_delimiter_is_recognized(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    Path("tab.csv").write_text(Path("t.csv").read_text().replace(",", "\t"))
    for command in (["fit", "tab.csv", "--target", "price", *FIT], ["approximate", "tab.csv", "--rank", "5"]):
        status, _, told = run(capsys, *command)
        assert (status, told) == (
            2,
            "softlinalg: error: tab.csv: there is one column only, and its first line holds '\\t'; choose --delimiter '\\t'\n",
        )
    fitted(capsys, "tab.csv", "--target", "price", "--delimiter", "\\t")
    assert "must be one character; got 'ab'" in run(capsys, "fit", "tab.csv", "--target", "price", "--delimiter", "ab", *FIT)[2]


def test_columns_without_numbers_name_the_option_that_leaves_them_out(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "--drop" in run(capsys, "fit", "words.csv", "--target", "price", *FIT)[2]
