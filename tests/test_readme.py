"""README says what is so: its examples run, its commands are those of the checks, its names and files exist."""

from __future__ import annotations

import doctest
import math
import re
from pathlib import Path

import pytest

import softlinalg

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?|-?\d+e[+-]?\d+")


class NumbersWithinTenPercent(doctest.OutputChecker):
    """Takes numbers with a point or an exponent as equal within a tenth: other processors round differently."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        expected, found = NUMBER.findall(want), NUMBER.findall(got)
        same_words = NUMBER.sub("#", want).split() == NUMBER.sub("#", got).split()
        close = all(math.isclose(float(a), float(b), rel_tol=0.1) for a, b in zip(expected, found, strict=False))
        return same_words and len(expected) == len(found) and close


def test_the_examples_run_and_give_what_they_show() -> None:
    examples = doctest.DocTestParser().get_doctest(README, {}, "README.md", "README.md", 0)
    assert len(examples.examples) > 20
    report: list[str] = []
    runner = doctest.DocTestRunner(NumbersWithinTenPercent(), verbose=False)
    result = runner.run(examples, out=report.append)
    assert result.failed == 0, "".join(report)


def test_a_wrong_number_in_an_example_would_be_noticed() -> None:
    check = NumbersWithinTenPercent().check_output
    assert check("left out: 5.1e-06\n", "left out: 5.0e-06\n", 0)
    assert not check("left out: 5.1e-06\n", "left out: 4.1e-06\n", 0)
    assert not check("19\n", "20\n", 0)
    assert not check("array([0.1])\n", "array([0.1, 0.1])\n", 0)


def test_the_command_for_the_tests_is_the_one_that_the_checks_run() -> None:
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    command = re.search(r'^TESTS="(.*)"$', checks, re.MULTILINE)
    assert command is not None
    assert f'-e ".[test]" && .venv/bin/{command.group(1)}\n' in README


def test_every_public_name_is_in_the_table() -> None:
    table = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    named = set(re.findall(r"`([A-Za-z_]+)`", table))
    missing = set(softlinalg.__all__) - {"__version__"} - named
    assert not missing


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\((?!https?:)([^)#]+)\)", README))))
def test_links_lead_to_files_that_exist(target: str) -> None:
    assert (ROOT / target).exists()
