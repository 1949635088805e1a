"""The page on data larger than memory says what is so: its examples run and give what they show."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from softlinalg import cli

PAGE = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "streaming.md"


def test_the_examples_run_and_give_what_they_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.chdir(tmp_path)
    examples = doctest.DocTestParser().get_doctest(PAGE.read_text(encoding="utf-8"), {}, PAGE.name, PAGE.name, 0)
    assert len(examples.examples) > 30
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(examples, out=report.append)
    assert result.failed == 0, "".join(report)


def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = ["id,area,price", *(f"{i},{i % 17},{3 * (i % 17) + 1}" for i in range(200))]
    (tmp_path / "houses.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "new.csv").write_text("area\n4\n5\n")
    block = PAGE.read_text(encoding="utf-8").split("```sh\n")[1].split("```")[0]
    for line in block.strip().splitlines():
        words = line.replace("--rank 512", "--rank 12").split()
        assert words[0] == "softlinalg"
        assert cli.main([*words[1:], "--quiet"]) == 0
    assert len((tmp_path / "prices.csv").read_text().splitlines()) == 3
