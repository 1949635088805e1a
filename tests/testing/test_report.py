"""Reports: tables, JSON and the web page of what a suite found."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser

import pytest

from softlinalg import _cli_report
from softlinalg.testing import _report, _report_html
from softlinalg.testing._report import Example, PropertyResult, Report


def _result(name: str = "penrose-1", *, failures: int = 0, ratio: float = 0.5, reason: str = "") -> PropertyResult:
    example = Example(ratio=ratio, case="2x2 <rank 1> & more", reproduction="build_matrix(shape=(2, 2), seed=0)", reason=reason)
    return PropertyResult(
        name=name,
        words="A X A = A",
        formula="|A X A - A| <= 30 D u k |A|",
        threshold=30.0,
        cases=10,
        failures=failures,
        worst=example,
        smallest=example if failures else None,
        errors={"ValueError: no": 2} if failures else {},
    )


def _made(*results: PropertyResult, cases: int = 10) -> Report:
    return Report(
        target="mine.py:<f>",
        kind="pinv",
        backend="numpy",
        dtype="float32",
        grade="S",
        profile="smoke",
        cases=cases,
        failed_cases=max((result.failures for result in results), default=0),
        seconds=1.25,
        properties=results,
        versions={"python": "3.11"},
        groups={"full rank": (0, 4), "deficient": (3, 6)},
    )


GOOD = _made(_result())
BAD = _made(_result(), _result("rank", failures=3, ratio=math.inf, reason="raised <ValueError>"))


def test_a_report_passes_if_every_property_does_and_there_were_cases() -> None:
    assert GOOD.passed
    assert not BAD.passed
    assert [result.name for result in BAD.failures] == ["rank"]
    assert not _made(_result(), cases=0).passed


def test_a_property_is_found_by_its_name() -> None:
    assert BAD["rank"].failures == 3
    with pytest.raises(KeyError, match="no property is named 'other'; there are penrose-1, rank"):
        BAD["other"]


def test_a_failure_says_what_where_and_how_to_see_it_again() -> None:
    GOOD.raise_for_failures()
    with pytest.raises(AssertionError) as caught:
        BAD.raise_for_failures()
    words = str(caught.value)
    assert "1 of 2 properties fail" in words
    assert "rank (A X A = A): 3 of 10 cases" in words
    assert "raised <ValueError>" in words
    assert "again: build_matrix(shape=(2, 2), seed=0)" in words
    with pytest.raises(AssertionError, match="no case was run"):
        _made(cases=0).raise_for_failures()


def test_the_table_has_a_line_for_each_property_and_the_smallest_example() -> None:
    lines = str(BAD).splitlines()
    assert lines[0] == "mine.py:<f> as pinv: numpy, float32, grade S, profile smoke"
    assert any(re.match(r"penrose-1 +ok +10 +0 +0.5 +30$", line) for line in lines)
    assert any(re.match(r"rank +FAIL +10 +3 +inf +30$", line) for line in lines)
    assert "  raised 2 times: ValueError: no" in lines
    assert lines[-1] == "FAILED: 1 properties; 3 of 10 cases (30 %) in 1.2 s; by group: full rank 0 %, deficient 50 %"
    assert str(GOOD).splitlines()[-1] == "passed: 1 properties on 10 cases in 1.2 s"


def test_json_is_standard_and_comes_back_the_same() -> None:
    text = _report.to_json([GOOD, BAD])
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["schema"] == _report.SCHEMA
    assert content["passed"] is False
    assert content["reports"][1]["properties"][1]["worst"]["ratio"] == "infinity"
    assert _report.from_json(text) == [GOOD, BAD]
    assert _report.from_json(GOOD.to_json()) == [GOOD]


@pytest.mark.parametrize("text", ['{"schema": "softlinalg-check/0", "reports": []}', "[]", "{}"])
def test_json_of_another_kind_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="text must have the schema softlinalg-check/1"):
        _report.from_json(text)


class _Page(HTMLParser):
    """Open tags, and every attribute that could fetch something."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "line", "rect", "br", "link", "img"):
            self.open.append(tag)
        self.fetched += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "srcset", "data", "action", "onclick")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_all_it_shows_and_escapes_what_it_is_given() -> None:
    source = _report_html.page([GOOD, BAD])
    assert BAD.to_html() == _report_html.page([BAD])
    page = _Page()
    page.feed(source)
    assert page.open == []
    assert page.fetched == []
    assert "script" not in source
    assert "@import" not in source
    assert "url(" not in source
    assert "<rank 1>" not in source
    assert "2x2 <rank 1> & more" in page.text
    assert "mine.py:<f>" in page.text
    assert "raised <ValueError>" in page.text
    assert "prefers-color-scheme: dark" in source


def test_pages_have_the_colors_of_the_command() -> None:
    for theme in ("light", "dark"):
        for name in ("ink", "muted", "grid", "paper"):
            assert _report_html.COLORS[theme][name] == _cli_report.COLORS[theme][name]


@pytest.mark.parametrize(
    ("value", "words"), [(0.0, "0"), (0.314, "0.31"), (14.2, "14"), (512.3, "512"), (2.13e5, "2.1e5"), (1e-9, "1.0e-9"), (math.inf, "inf")]
)
def test_ratios_are_short(value: float, words: str) -> None:
    assert _report.readable_ratio(value) == words


@pytest.mark.parametrize(
    ("failures", "cases", "words"), [(0, 9, "0 %"), (1, 900, "< 1 %"), (899, 900, "> 99 %"), (27, 100, "27 %"), (0, 0, "-")]
)
def test_shares_never_round_a_failure_away(failures: int, cases: int, words: str) -> None:
    assert _report.share(failures, cases) == words


def test_an_example_that_fails_several_laws_for_one_reason_is_shown_once() -> None:
    def result(name: str, seed: int, reason: str) -> PropertyResult:
        example = Example(ratio=math.inf, case="1x1", reproduction=f"build({seed})", reason=reason)
        return PropertyResult(name=name, words="w", formula="f", threshold=30, cases=3, failures=1, worst=example, smallest=example)

    laws = [
        result("first", 0, "raised"),
        result("second", 0, "raised"),
        result("third", 1, "raised"),
        result("fourth", 0, ""),
        result("batch", 0, "raised"),
    ]
    report = _made(*laws, cases=3)
    with pytest.raises(AssertionError) as failure:
        report.raise_for_failures()
    for text in (str(report), str(failure.value)):
        assert text.count("again: build(0)") == 2  # once raised, once for what has no reason but a large ratio
        assert text.count("again: build(1)") == 1
        assert text.count("that of first (raised)") == 2
        assert "--no-batch" in text
