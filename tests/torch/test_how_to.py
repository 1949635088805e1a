"""The page on PyTorch says what is so: its examples run, its numbers are those of the models."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from softlinalg.torch import backbones  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "torch.md"


def test_the_examples_run_and_give_what_they_show():
    torch.manual_seed(0)
    examples = doctest.DocTestParser().get_doctest(PAGE.read_text(encoding="utf-8"), {}, PAGE.name, PAGE.name, 0)
    assert len(examples.examples) > 20
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    assert result.failed == 0, "".join(report)


def test_the_table_of_models_is_complete_and_right():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([\d,]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    named = {name: int(count.replace(",", "")) for names, count in rows for name in re.findall(r"\w+", names)}
    assert set(named) == {name for name in backbones.__all__ if name.startswith(("soft_", "published_"))}
    for name, count in named.items():
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in getattr(backbones, name)().parameters()) == count


def test_pictures_are_there():
    for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / name).is_file()
