"""The page on testing says what is so: its examples run and give what they show."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest
from hypothesis import settings

pytest.importorskip("torch")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "testing.md"


def test_the_examples_run_and_give_what_they_show():
    examples = doctest.DocTestParser().get_doctest(PAGE.read_text(encoding="utf-8"), {}, PAGE.name, PAGE.name, 0)
    assert len(examples.examples) > 40
    report: list[str] = []
    usual = settings.default
    settings.register_profile("page", parent=usual, max_examples=15)  # of each of its tests
    settings.load_profile("page")
    result = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    settings.register_profile("before", parent=usual)
    settings.load_profile("before")
    assert result.failed == 0, "".join(report)
