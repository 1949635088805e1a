"""What a suite found: one line for each property, and how to see each failure again."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softlinalg import __version__

__all__ = ["SCHEMA", "Example", "PropertyResult", "Report", "from_json", "table", "to_json"]

SCHEMA = "softlinalg-check/1"
"""Version of the JSON format. It changes with a field's meaning, not when fields are added."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One case on which a property was measured."""

    ratio: float
    """Measured error over its unit; infinite where the result had the wrong shape, NaN, or an error was raised."""
    case: str
    """The case in words."""
    reproduction: str
    """One line of Python that makes the case again."""
    reason: str = ""
    """What was wrong, where that is more than a large ratio."""


@dataclass(frozen=True, kw_only=True)
class PropertyResult:
    """One property over all cases.

    Attributes
    ----------
    name, words, formula : str
        The property: its short name, in words, and as a formula.
    threshold : float
        Largest ratio allowed.
    cases, failures : int
    worst : Example or None
        The largest ratio seen; None where the property never applied.
    smallest : Example or None
        The simplest failing case that was found by simplifying the first failure; None without failures.
    errors : mapping of str to int
        Exceptions that the function raised, by type and first words, and how often.
    """

    name: str
    words: str
    formula: str
    threshold: float
    cases: int
    failures: int
    worst: Example | None = None
    smallest: Example | None = None
    errors: Mapping[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether no case failed."""
        return self.failures == 0


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a suite found about one function, in one data type.

    Attributes
    ----------
    target : str
        The function.
    kind : {"pinv", "kernel", "nystrom", "attention"}
    backend, dtype, grade, profile : str
        How it was tested.
    cases : int
        Different inputs; each property counts those on which it was measured.
    failed_cases : int
        Inputs on which at least one property failed.
    seconds : float
    properties : tuple of PropertyResult
    skipped : tuple of str
        Laws of the suite that were left out on request: nothing is known of them.
    versions : mapping of str to str
        Of Python and of the libraries concerned.
    groups : mapping of str to (int, int)
        Failed and all cases, by group of inputs ("full rank", "deficient", "gallery", ...).
    date, machine : str
        When and where; empty in files that do not say it.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import suites
    >>> report = suites.pinv(np.linalg.pinv, dtype="float64", profile="smoke", cases=5)
    >>> report.kind, report.dtype
    ('pinv', 'float64')
    """

    target: str
    kind: str
    backend: str
    dtype: str
    grade: str
    profile: str
    cases: int
    failed_cases: int
    seconds: float
    properties: tuple[PropertyResult, ...]
    skipped: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    date: str = ""
    machine: str = ""

    @property
    def passed(self) -> bool:
        """Whether every property held on every case, and there were cases at all."""
        return self.cases > 0 and all(result.passed for result in self.properties)

    @property
    def failures(self) -> tuple[PropertyResult, ...]:
        """The properties that failed."""
        return tuple(result for result in self.properties if not result.passed)

    def __getitem__(self, name: str) -> PropertyResult:
        """The result of the property of this name."""
        for result in self.properties:
            if result.name == name:
                return result
        message = f"no property is named {name!r}; there are {', '.join(result.name for result in self.properties)}"
        raise KeyError(message)

    def __str__(self) -> str:
        return table([self])

    def to_json(self) -> str:
        """The report alone, in the format of the function `to_json`."""
        return to_json([self])

    def to_html(self) -> str:
        """One web page that holds everything it shows."""
        from softlinalg.testing._report_html import page

        return page([self])

    def raise_for_failures(self) -> None:
        """Raise AssertionError, with the properties that failed and how to see it again, unless every property held.

        Raises
        ------
        AssertionError
        """
        if not self.passed:
            raise AssertionError(_failure_text(self))


def versions(*libraries: str) -> dict[str, str]:
    """Versions of Python, softlinalg and the libraries named, where they are installed."""
    import importlib.metadata

    found = {"python": platform.python_version(), "softlinalg": __version__}
    for name in libraries:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Number and name of the processors: "2 cores, AMD EPYC"."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8", errors="replace").splitlines() if listed.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {(names or [platform.processor() or platform.machine()])[0]}"


# ----------------------------------------------------------------------------------------------------- words
def readable_ratio(value: float) -> str:
    """A ratio with two digits: 0.31, 14, 2.1e5, inf."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf"
    if value == 0:
        return "0"
    if 0.01 <= value < 9999.5:
        return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def share(failures: int, cases: int) -> str:
    """Failures of cases, in words: 27 %."""
    if cases == 0:
        return "-"
    if failures == 0:
        return "0 %"
    percent = 100 * failures / cases
    if percent < 1:
        return "< 1 %"
    return "> 99 %" if 99 < percent < 100 else f"{percent:.0f} %"


def _failure_text(report: Report) -> str:
    """The message of a failed assertion."""
    if report.cases == 0:
        return f"{report.target}: no case was run"
    head = f"{report.target} as {report.kind} ({report.backend}, {report.dtype}, grade {report.grade}): "
    lines = [f"{head}{len(report.failures)} of {len(report.properties)} properties fail"]
    first: dict[tuple[str, str], str] = {}
    for result in report.failures:
        lines.append(
            f"  {result.name} ({result.words}): {result.failures} of {result.cases} cases, threshold {readable_ratio(result.threshold)}"
        )
        lines += _example_lines(result, "smallest example", first, indent=4)
    return "\n".join(lines)


def _because(example: Example) -> str:
    return f" ({example.reason})" if example.reason else ""


def table(reports: Sequence[Report]) -> str:
    """The scorecards in plain characters.

    Parameters
    ----------
    reports : sequence of Report

    Returns
    -------
    str
        For each report a table with one line per property, and below it the smallest failing example of each that failed.
    """
    return "\n\n".join(_one_table(report) for report in reports)


def _one_table(report: Report) -> str:
    head = f"{report.target} as {report.kind}: {report.backend}, {report.dtype}, grade {report.grade}, profile {report.profile}"
    rows = [("property", "", "cases", "failures", "worst ratio", "allowed")]
    for result in report.properties:
        if result.cases == 0:
            continue
        worst = "-" if result.worst is None else readable_ratio(result.worst.ratio)
        rows.append(
            (
                result.name,
                "ok" if result.passed else "FAIL",
                f"{result.cases:,}",
                f"{result.failures:,}" if result.failures else "0",
                worst,
                readable_ratio(result.threshold),
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        head,
        *("  ".join(_aligned(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows),
    ]
    lines.insert(2, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    first: dict[tuple[str, str], str] = {}
    for result in report.failures:
        lines += _failure_lines(result, first)
    lines.append("")
    lines.append(_verdict(report))
    return "\n".join(lines)


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def _failure_lines(result: PropertyResult, first: dict[tuple[str, str], str]) -> list[str]:
    lines = ["", f"{result.name}: {result.words}, {result.formula}"]
    lines += _example_lines(result, "smallest failing example", first, indent=2)
    if len(lines) > 3:  # an example that was not shown before
        lines += [f"  raised {count:,} times: {error}" for error, count in _first(result.errors.items(), 3)]
    return lines


_HINTS = {
    "batch": "a function that takes one matrix at a time is measured with batched=False, of the command --no-batch",
    "nan": 'a function that promises nothing about NaN leaves the law out with skip="nan", of the command --skip nan',
    "infinity": 'a function that promises nothing about infinity leaves the law out with skip="infinity", of the command --skip infinity',
}
"""What to do about a law that a function may have good reason not to obey."""


def _example_lines(result: PropertyResult, title: str, first: dict[tuple[str, str], str], *, indent: int) -> list[str]:
    """The example of a law that fails; where another law has shown the same one, with the same reason, its name instead.

    `first` keeps, by example and reason, which law showed them first.
    """
    margin = " " * indent
    lines = []
    example = result.smallest or result.worst
    if example is not None:
        shown = first.setdefault((example.reproduction, example.reason), result.name)
        if shown != result.name and example.reason:
            lines = [f"{margin}{title}: that of {shown}{_because(example)}"]
        else:
            lines = [
                f"{margin}{title}: {example.case}; ratio {readable_ratio(example.ratio)}{_because(example)}",
                f"{margin}again: {example.reproduction}",
            ]
    return lines + ([f"{margin}({_HINTS[result.name]})"] if result.name in _HINTS else [])


def _first(items: Iterable[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    return sorted(items, key=lambda item: (-item[1], item[0]))[:count]


def _verdict(report: Report) -> str:
    groups = ", ".join(f"{name} {share(failed, cases)}" for name, (failed, cases) in report.groups.items() if cases)
    left_out = f"; left out on request: {', '.join(report.skipped)}" if report.skipped else ""
    if report.passed:
        count = len([result for result in report.properties if result.cases])
        return f"passed: {count} properties on {report.cases:,} cases in {report.seconds:.1f} s{left_out}"
    return (
        f"FAILED: {len(report.failures)} properties; {report.failed_cases:,} of {report.cases:,} cases "
        f"({share(report.failed_cases, report.cases)}) in {report.seconds:.1f} s" + (f"; by group: {groups}" if groups else "") + left_out
    )


# ------------------------------------------------------------------------------------------------------ JSON
def to_json(reports: Sequence[Report]) -> str:
    """The reports as JSON.

    Parameters
    ----------
    reports : sequence of Report

    Returns
    -------
    str
        ``{"schema": "softlinalg-check/1", "passed": bool, "reports": [...]}``. Infinite ratios are the string "infinity",
        because JSON has no such number.
    """
    content = {
        "schema": SCHEMA,
        "passed": all(report.passed for report in reports),
        "reports": [_report_fields(report) for report in reports],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else "infinity"


def _float(value: Any) -> float:
    return math.inf if value == "infinity" else float(value)


def _report_fields(report: Report) -> dict[str, Any]:
    fields = {name: getattr(report, name) for name in _REPORT_FIELDS}
    return {
        **fields,
        "skipped": list(report.skipped),
        "passed": report.passed,
        "seconds": round(report.seconds, 3),
        "versions": dict(report.versions),
        "date": report.date,
        "machine": report.machine,
        "groups": {name: {"failed": failed, "cases": cases} for name, (failed, cases) in report.groups.items()},
        "properties": [_property_fields(result) for result in report.properties],
    }


_REPORT_FIELDS = ("target", "kind", "backend", "dtype", "grade", "profile", "cases", "failed_cases")


def _property_fields(result: PropertyResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "words": result.words,
        "formula": result.formula,
        "threshold": _number(result.threshold),
        "passed": result.passed,
        "cases": result.cases,
        "failures": result.failures,
        "worst": _example_fields(result.worst),
        "smallest": _example_fields(result.smallest),
        "errors": dict(result.errors),
    }


def _example_fields(example: Example | None) -> dict[str, Any] | None:
    if example is None:
        return None
    return {"ratio": _number(example.ratio), "case": example.case, "reproduction": example.reproduction, "reason": example.reason}


def from_json(text: str) -> list[Report]:
    """The reports that `to_json` wrote.

    Raises
    ------
    ValueError
        Not such a text, or one of another version.
    """
    content = json.loads(text)
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        message = f"from_json: text must have the schema {SCHEMA}; got {schema!r}"
        raise ValueError(message)
    return [_report(fields) for fields in content["reports"]]


def _report(fields: Mapping[str, Any]) -> Report:
    return Report(
        **{name: fields[name] for name in _REPORT_FIELDS},
        skipped=tuple(fields.get("skipped", ())),
        seconds=float(fields["seconds"]),
        versions=dict(fields["versions"]),
        date=str(fields.get("date", "")),
        machine=str(fields.get("machine", "")),
        groups={name: (entry["failed"], entry["cases"]) for name, entry in fields["groups"].items()},
        properties=tuple(_property(entry) for entry in fields["properties"]),
    )


def _property(fields: Mapping[str, Any]) -> PropertyResult:
    return PropertyResult(
        **{name: fields[name] for name in ("name", "words", "formula", "cases", "failures")},
        threshold=_float(fields["threshold"]),
        worst=_example(fields["worst"]),
        smallest=_example(fields["smallest"]),
        errors=dict(fields["errors"]),
    )


def _example(fields: Mapping[str, Any] | None) -> Example | None:
    return None if fields is None else Example(**{**fields, "ratio": _float(fields["ratio"])})
