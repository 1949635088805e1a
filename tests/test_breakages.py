"""The deliberate breakages still fit the source that they break; running them all takes minutes (tests/breakages/run.py)."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent / "breakages"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("breakages_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUN = _load()


@pytest.mark.parametrize("breakage", [*RUN.BREAKAGES, *RUN.KIT_BREAKAGES], ids=lambda breakage: breakage.name)
def test_every_snippet_occurs_once_and_breaks_to_valid_code(breakage: object) -> None:
    assert RUN.occurrences(breakage) == 1
    source = (RUN.ROOT / "softlinalg" / breakage.file).read_text(encoding="utf-8")
    broken = source.replace(breakage.old, breakage.new)
    if breakage.file.endswith(".py"):
        assert ast.dump(ast.parse(broken)) != ast.dump(ast.parse(source)), "it changes nothing"
    for test in breakage.tests:
        assert (RUN.ROOT / test.partition("::")[0]).is_file()


def test_there_are_ten_breakages_and_their_names_differ() -> None:
    names = [breakage.name for breakage in RUN.BREAKAGES]
    assert len(names) == len(set(names)) >= 10


def test_contributing_lists_them() -> None:
    text = (RUN.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert not [breakage.name for breakage in RUN.BREAKAGES if f"`{breakage.name}`" not in text]


def test_unknown_names_are_refused() -> None:
    done = subprocess.run([sys.executable, FOLDER / "run.py", "no-such-breakage"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no breakage is named no-such-breakage" in done.stderr
