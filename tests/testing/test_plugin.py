"""The pytest plugin, in runs of pytest of its own."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import softlinalg

PACKAGE = Path(softlinalg.__file__).parents[1]

TESTS = '''
import numpy as np
import pytest
from softlinalg.testing import conforms


def sound(a):
    if not np.isfinite(a).all():
        raise ValueError("not finite")
    return np.linalg.pinv(a, rtol=None)


@pytest.fixture
def offset():
    return 0.0


@conforms("pinv", cases=15)
def test_sound(offset):
    """With a fixture of its own."""
    return lambda a: sound(a) + a.dtype.type(offset)


@conforms("pinv", dtypes=("float32",), cases=12)
def test_coarse():
    return np.linalg.pinv


@conforms("pinv", dtypes=("float32",), cases=12, skip=("infinity",))
def test_left_out():
    return lambda a: np.linalg.pinv(a, rtol=None)


@conforms("pinv", dtypes=("float32",))
def test_forgotten():
    pass


def test_fixture(softlinalg_check):
    report = softlinalg_check(sound, "pinv", dtype="float64", cases=10)
    assert report.passed
    assert report.profile == "PROFILE"
'''


def run(folder: Path, *argv: str) -> tuple[int, str]:
    """Status and output of pytest on the files of a folder."""
    installed = any(entry.value == "softlinalg.testing.plugin" for entry in importlib.metadata.entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "softlinalg.testing.plugin"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
        environment.pop(name, None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:zarr",  # a plugin that imports all of it, for two seconds
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        *plugin,
        *argv,
        str(folder),
    ]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_marked_tests_and_the_fixture_hold_functions_to_the_laws(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TESTS.replace("PROFILE", "smoke"))
    status, out = run(tmp_path)
    assert status == 1
    assert "2 failed, 4 passed" in out
    assert "test_coarse[float32]" in out
    assert re.search(r"test_coarse.* as pinv|numpy.* as pinv \(numpy, float32, grade S\)", out)
    assert "again: softlinalg.testing.build_matrix(" in out
    assert "test_forgotten must return the function to hold to the laws; it returned NoneType" in out
    assert "plugin.py" not in out, "failures show the law, not the plugin's own lines"


def test_the_option_goes_before_the_profile_of_the_test(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(TESTS.replace("PROFILE", "deep"))
    status, out = run(tmp_path, "--softlinalg-profile=deep", "-k", "test_fixture")
    assert status == 0, out


def test_people_who_do_not_use_it_do_not_notice_it(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        "import sys\n\ndef test_nothing_is_loaded():\n"
        "    heavy = {'numpy', 'scipy', 'torch', 'jax', 'hypothesis', 'softlinalg.testing.suites', 'softlinalg._arrays'}\n"
        "    assert not heavy & set(sys.modules) - HYPOTHESIS\n".replace("HYPOTHESIS", repr({"hypothesis"}))
    )
    status, out = run(tmp_path, "-p", "no:hypothesispytest")
    assert status == 0, out
    assert "1 passed" in out
    assert "warning" not in out.lower()


def test_the_plugin_is_an_entry_point_of_pytest() -> None:
    text = (PACKAGE / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\nsoftlinalg = "softlinalg.testing.plugin"' in text


def test_conforms_keeps_the_name_and_the_words_of_a_test() -> None:
    from softlinalg.testing import conforms

    @conforms("pinv")
    def test_words() -> None:
        """Words."""

    assert (test_words.__name__, test_words.__doc__) == ("test_words", "Words.")
    (mark,) = [mark for mark in test_words.pytestmark if mark.name == "parametrize"]
    assert mark == pytest.mark.parametrize("dtype", ["float32", "float64"]).mark
