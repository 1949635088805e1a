"""`softlinalg doctor`: what it says of sound, missing, failing, crashing and unlucky installations."""

from __future__ import annotations

import copy
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from softlinalg import _cli_doctor, _cli_probe, cli

SOUND: dict[str, Any] = {
    "softlinalg": {"version": "0.1.0", "metadata": "0.1.0"},
    "python": {"version": "3.11.7", "implementation": "CPython"},
    "system": "Linux",
    "processors": {"machine": 8, "usable": 4},
    "memory": {"process": 8 * 10**9, "container": None},
    "environment": {},
    "compiled": {"works": True, "reason": ""},
    "packages": {
        "numpy": {
            "version": "2.4.6",
            "works": True,
            "devices": ["cpu"],
            "blas": {"name": "scipy-openblas", "version": "0.3.30"},
            "pools": [{"num_threads": 4}],
        },
        "scipy": {"version": "1.17.1", "works": None, "blas": {"name": "scipy-openblas", "version": "0.3.30"}, "pools": []},
        "torch": {"version": "2.12.0+cpu", "works": True, "devices": ["cpu"], "blas": None, "threads": 4, "reduced_float32": False},
        "jax": {"version": "0.10.2", "works": True, "devices": ["cpu:0"], "blas": None, "x64": True},
    },
}


def problems(*changes: tuple[str, Any], requirements: dict[str, str] | None = None) -> list[dict[str, str]]:
    """What is found after some entries, named by their path, are changed."""
    findings = copy.deepcopy(SOUND)
    for path, value in changes:
        *parents, last = path.split("/")
        place = findings
        for key in parents:
            place = place[key]
        place[last] = value
    return list(_cli_doctor.known_problems(findings, requirements or {}))


def test_a_sound_installation_has_no_problems() -> None:
    assert problems(requirements={"numpy": "1.26", "torch": "2.6"}) == []


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        (("packages/numpy", None), "broken", "not installed, but needed"),
        (("compiled", {"works": False, "reason": "there is no C++ compiler"}), "note", "there is no C++ compiler"),
        (("packages/torch", None), "note", "not installed (optional)"),
        (("packages/cupy", None), "note", "for GPUs"),
        (("packages/jax", {"error": "ImportError: no jaxlib"}), "broken", "cannot be used: ImportError: no jaxlib"),
        (("packages/cupy", {"error": "CUDARuntimeError: CUDA driver version is insufficient"}), "warning", "driver"),
        (("packages/numpy/works", False), "broken", "came out wrong"),
        (("packages/numpy/version", "1.25.2"), "broken", "older than 1.26"),
        (("packages/numpy/pools", [{"num_threads": 64}]), "warning", "64 threads, but this process may use 4"),
        (("packages/torch/version", "2.13.0+cpu"), "warning", "seen to hang"),
        (("packages/torch/reduced_float32", True), "warning", "TF32"),
        (("packages/scipy/blas", {"name": "mkl", "version": "2025"}), "note", "different BLAS"),
        (("packages/jax/x64", False), "note", "float64 is switched off"),
        (("softlinalg/metadata", "0.0.9"), "warning", "older installation"),
        (("memory/container", 4 * 10**9), "warning", "4.0 GB"),
    ],
)
def test_each_known_problem_is_told_with_its_remedy(change: tuple[str, Any], level: str, words: str) -> None:
    (found,) = problems(change, requirements={"numpy": "1.26"})
    assert found["level"] == level
    assert words in found["text"]
    assert found["remedy"]


def test_the_extra_that_brings_a_missing_package_exists() -> None:
    pyproject = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in pyproject for extra in _cli_doctor.EXTRAS.values())


def test_openblas_is_one_library_whatever_its_packaging() -> None:
    assert {_cli_doctor._family(name) for name in ("openblas", "scipy-openblas", "scipy-openblas64", "OpenBLAS_")} == {"openblas"}


def test_one_thread_of_torch_does_not_hang() -> None:
    assert problems(("packages/torch/version", "2.13.1"), ("packages/torch/threads", 1)) == []


# ----------------------------------------------------------------------------------------- packages that fail
def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A package torch, before any other, that runs `code` when it is imported."""
    (folder / "torch.py").write_text(code, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("raise ImportError('libcudart.so.12: cannot\\nopen')", "ImportError: libcudart.so.12: cannot open"),
        ("import os; os._exit(7)", "ended with status 7"),
        ("import time; time.sleep(60)", "no answer within 0.5 s"),
    ],
)
def test_a_package_that_fails_harms_nothing_else(tmp_path, monkeypatch, code, words) -> None:
    fake(tmp_path, monkeypatch, code)
    assert words in _cli_doctor._probe("torch", 0.5 if "sleep" in code else 60.0)["error"]


def test_what_a_package_prints_does_not_disturb(tmp_path, monkeypatch) -> None:
    fake(tmp_path, monkeypatch, "print('welcome {}')\nraise RuntimeError('x')")
    assert _cli_doctor._probe("torch", 60.0) == {"error": "RuntimeError: x"}


# ------------------------------------------------------------------------------------------------ the command
@pytest.fixture
def only_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks at NumPy alone, in this process: the others take seconds each."""
    others = {"version": "9999", "works": None, "blas": None, "x64": True, "threads": 1, "reduced_float32": False, "devices": ["cpu"]}
    found = {"numpy": _cli_probe.probe("numpy")}
    monkeypatch.setattr(_cli_doctor, "_probe", lambda name, timeout: found.get(name, others))


def test_the_table_shows_what_json_holds(only_numpy, capsys) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    numpy = findings["packages"]["numpy"]
    assert numpy["works"] is True
    assert numpy["version"] in text
    assert findings["healthy"] is True
    assert text.endswith("nothing is broken\n")
    assert all(problem["remedy"] in text for problem in findings["problems"])


def test_something_broken_is_the_status(monkeypatch, capsys) -> None:
    monkeypatch.setattr(_cli_doctor, "_probe", lambda name, timeout: {"error": "ImportError: gone"})
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "BROKEN: ImportError: gone" in text
    assert text.endswith("something is broken\n")


def test_a_wrong_result_is_noticed(monkeypatch) -> None:
    import softlinalg

    monkeypatch.setattr(softlinalg, "ridge_inverse", lambda a, ridge: a)
    assert _cli_probe.probe("numpy")["works"] is False


def test_limits_of_a_container_are_read(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(_cli_doctor, "CGROUPS", (tmp_path / "none", tmp_path / "memory"))
    monkeypatch.setattr(_cli_doctor, "CPU_QUOTA", tmp_path / "cpu")
    assert _cli_doctor._container_memory() is None
    before = _cli_doctor._usable_processors()
    (tmp_path / "memory").write_text("max\n")
    (tmp_path / "cpu").write_text("max 100000\n")
    assert _cli_doctor._container_memory() is None
    assert _cli_doctor._usable_processors() == before
    (tmp_path / "memory").write_text("2000000000\n")
    (tmp_path / "cpu").write_text("50000 100000\n")
    assert _cli_doctor._container_memory() == 2_000_000_000
    assert _cli_doctor._usable_processors() == 1
