"""The command `softlinalg check`: what it prints, writes and returns."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from softlinalg import _cli_options, cli
from softlinalg.testing import _laws, _report, _targets, suites

CODE = '''
import numpy as np

NUMBER = 3


class Place:
    @staticmethod
    def pinv(a):
        if not np.isfinite(a).all():
            raise ValueError("not finite")
        return np.linalg.pinv(a, rtol=None)


def coarse(a):
    """The cut-off of float64 for every type."""
    if not np.isfinite(a).all():
        raise ValueError("not finite")
    return np.linalg.pinv(a, rcond=1e-15)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file of functions, in which the command runs."""
    (tmp_path / "my_code.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_code", raising=False)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    status = cli.main(["check", *argv])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize("target", ["my_code.py:Place.pinv", "my_code:Place.pinv"])
def test_a_sound_function_passes_with_status_zero(folder: Path, capsys: pytest.CaptureFixture[str], target: str) -> None:
    status, out, err = run(capsys, target, "--as", "pinv", "--cases", "20")
    assert (status, err) == (0, "")
    assert f"{target} as pinv: numpy, float32, grade S, profile ci" in out
    assert f"{target} as pinv: numpy, float64, grade S, profile ci" in out
    assert out.count("passed: ") == 2
    assert "FAIL" not in out


def test_a_function_that_fails_gives_status_one_and_three_reports(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["my_code.py:coarse", "--as", "pinv", "--dtype", "float32", "--cases", "30", "--json", "r.json", "--html", "r.html"]
    status, out, _ = run(capsys, *argv)
    assert status == 1
    assert re.search(r"^forward-error +FAIL", out, re.MULTILINE)
    assert "again: softlinalg.testing.build_matrix(" in out
    assert out.endswith("wrote r.json\nwrote r.html\n")
    (report,) = _report.from_json((folder / "r.json").read_text())
    assert not report.passed
    assert json.loads((folder / "r.json").read_text())["reports"][0]["groups"]["full rank"]["cases"] > 0
    page = (folder / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "forward-error" in page


def test_quiet_says_it_by_the_status(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "my_code.py:coarse", "--as", "pinv", "--dtype", "float32", "--cases", "30", "--quiet") == (1, "", "")
    assert run(capsys, "my_code.py:coarse", "--as", "pinv", "--dtype", "float64", "--cases", "10", "--quiet") == (0, "", "")


def test_every_kind_runs_on_ours(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, kind, grade in (("gaussian_kernel", "kernel", "N"), ("nystrom", "nystrom", "S"), ("soft_attention", "attention", "S")):
        status, out, _ = run(capsys, f"softlinalg:{target}", "--as", kind, "--grade", grade, "--cases", "8", "--dtype", "float64")
        assert status == 0, out


def test_the_library_of_the_arrays_follows_from_the_module() -> None:
    found = {name: _targets.guess_backend(name) for name in ("torch:linalg.pinv", "jax.numpy:linalg.pinv", "numpy:linalg.pinv", "my.py:f")}
    assert found == {"torch:linalg.pinv": "torch", "jax.numpy:linalg.pinv": "jax", "numpy:linalg.pinv": "numpy", "my.py:f": "numpy"}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("numpy.linalg.pinv", "target must read MODULE:FUNCTION or FILE.py:FUNCTION; got 'numpy.linalg.pinv'"),
        ("no_such_module_here:f", "module must be importable; got 'no_such_module_here', which is not installed and not in"),
        ("no_such_file.py:f", "file must exist; got"),
        ("my_code.py:caorse", "target must exist; got 'my_code.py:caorse', where 'caorse' is missing. Did you mean 'coarse'?"),
        ("my_code.py:NUMBER", "target must be callable; got 'my_code.py:NUMBER', which is of type int"),
        ("numpy:linalg.no_such", "where 'no_such' is missing"),
        ("broken.py:f", "module must be importable; got ZeroDivisionError: division by zero"),
        ("leaves.py:f", "module must be importable; got SystemExit: 7"),
        ("leaves:f", "module must be importable; got SystemExit: 7"),
        ("my_notes:f", "which is not installed and not in"),
        ("./notes.txt:f", "target must read MODULE:FUNCTION or FILE.py:FUNCTION; got './notes.txt:f'"),
        ("lacks.py:f", "module must be importable; got ModuleNotFoundError"),
        ("lacks:f", "which needs 'no_such_module_here', which is missing"),
    ],
)
def test_targets_that_cannot_be_had_are_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], target: str, words: str
) -> None:
    (folder / "broken.py").write_text("1 / 0")
    (folder / "leaves.py").write_text("raise SystemExit(7)")
    (folder / "notes.txt").write_text("f = abs")
    (folder / "lacks.py").write_text("import no_such_module_here")
    status, out, err = run(capsys, target, "--as", "pinv")
    assert (status, out) == (2, "")
    assert err.startswith("softlinalg: error: check: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["numpy:linalg.pinv"], "the following arguments are required: --as"),
        (["numpy:linalg.pinv", "--as", "svd"], "argument --as: invalid choice: 'svd'"),
        (
            ["numpy:linalg.pinv", "--as", "pinv", "--dtype", "float32,int8"],
            "must be among float32, float64, complex64, complex128; got 'int8'",
        ),
        (["numpy:linalg.pinv", "--as", "pinv", "--max-cond", "0"], "must be a number of at least 1; got '0'"),
        (["numpy:linalg.pinv", "--as", "pinv", "--html", "page.pdf"], "--html must name a file that ends in .html or .htm; got page.pdf"),
        (["numpy:linalg.pinv", "--as", "pinv", "--json", "no/such/folder.json"], "there is no folder"),
        (["numpy:linalg.pinv", "--as", "kernel", "--dtype", "complex64"], "dtype must be real for this suite; got complex64"),
    ],
)
def test_wrong_usage_is_told_in_one_line_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], argv: list[str], words: str
) -> None:
    status, out, err = run(capsys, *argv)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1


def test_the_choices_of_the_options_are_those_of_the_suites() -> None:
    assert _cli_options.CHECK_KINDS == suites.KINDS
    assert _cli_options.CHECK_PROFILES == suites.PROFILES
    assert _cli_options.CHECK_DTYPES == _laws.DTYPES
    assert tuple(_laws.BACKENDS) == _cli_options.CHECK_BACKENDS


def test_the_other_commands_do_without_the_kit() -> None:
    code = "import sys; from softlinalg import cli; cli.main(['approximate', 'none.npy', '--rank', '2']); print('softlinalg.testing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_laws_are_left_out_by_name_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "careless.py").write_text("import numpy as np\n\ndef f(a):\n    return np.linalg.pinv(a, rtol=None)\n")
    call = ("careless.py:f", "--as", "pinv", "--cases", "16", "--dtype", "float64")
    status, out, _ = run(capsys, *call)
    assert status == 1
    assert "of the command --skip infinity" in out
    status, out, err = run(capsys, *call, "--skip", "infinity,rank", "--json", "report.json", "--html", "report.html")
    assert (status, err) == (0, "")
    assert "left out on request: rank, infinity" in out
    assert _report.from_json((folder / "report.json").read_text())[0].skipped == ("rank", "infinity")
    assert "Left out on request: rank, infinity." in (folder / "report.html").read_text()
    status, out, _ = run(capsys, *call, "--only", "rank")
    assert status == 0
    assert "passed: 1 properties" in out
    status, _, err = run(capsys, *call, "--skip", "infinty")
    assert status == 2
    assert "skip must name laws of the suite; got 'infinty'. There are penrose-1" in err
