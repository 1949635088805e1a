"""Break the package on purpose, one small mistake at a time, and demand that its tests notice.

    python tests/breakages/run.py              all of them
    python tests/breakages/run.py --list       their names
    python tests/breakages/run.py NAME ...     these only
    python tests/breakages/run.py --with-kit   noticed by softlinalg.testing instead, and a table (docs/benchmarks/planted-bugs.md)

Each breakage is made in a copy of the package; the working tree is never touched. First the tests concerned must pass
on an unbroken copy, because a suite that fails anyway notices nothing. The exit status is 0 when every breakage was
noticed, otherwise 1: a breakage that survives is a test that is missing, and a snippet that no longer occurs exactly once
has to follow the code that it was taken from.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import kit
from table import BREAKAGES, Breakage
from table_kit import ANSWERED, KIT_BREAKAGES, OUT_OF_SCOPE, SURVIVORS

from softlinalg.testing._report import machine

ROOT = Path(__file__).resolve().parents[2]

TIME_LIMIT = 900
"""Seconds for the tests of one breakage; a breakage that makes the code hang counts as noticed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the breakages asked for; 0 if every one was noticed."""
    parser = argparse.ArgumentParser(description="Break the package on purpose, and demand that its tests notice.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; default: all")
    parser.add_argument("--list", action="store_true", help="show their names")
    parser.add_argument("--with-kit", action="store_true", help="let the suites of softlinalg.testing notice them, and some more")
    parser.add_argument("--table", type=Path, metavar="FILE", help="with --with-kit: write what noticed each")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="with --with-kit: JSON of what is known, to go on from after an end")
    arguments = parser.parse_args(argv)
    available = BREAKAGES
    if arguments.with_kit:
        available = _all_with_kit()
    known = {breakage.name: breakage for breakage in available}
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no breakage is named {unknown[0]}; --list shows the names")
    chosen = [known[name] for name in arguments.names] or available
    if arguments.list:
        print(*(f"{breakage.name}: {breakage.file}" for breakage in chosen), sep="\n")
        return 0
    if stale := [breakage.name for breakage in chosen if occurrences(breakage) != 1]:
        print("these snippets do not occur exactly once any more:", *stale, sep="\n  ")
        return 1
    if arguments.with_kit:
        return _with_kit(chosen, arguments.table, arguments.keep)
    if not _is_green(chosen):
        print("the tests fail on the unbroken package: nothing can be learned from breaking it")
        return 1
    survivors = [breakage.name for breakage in chosen if not _is_noticed(breakage)]
    if survivors:
        print(f"{len(survivors)} of {len(chosen)} breakages survived:", *survivors, sep="\n  ")
        return 1
    print(f"all {len(chosen)} breakages were noticed")
    return 0


def _all_with_kit() -> list[Breakage]:
    """Those that a law of the kit could notice."""
    return [breakage for breakage in BREAKAGES if breakage.name not in OUT_OF_SCOPE] + KIT_BREAKAGES


def occurrences(breakage: Breakage) -> int:
    """How often its snippet stands in the source."""
    return (ROOT / "softlinalg" / breakage.file).read_text(encoding="utf-8").count(breakage.old)


def _is_green(breakages: Sequence[Breakage]) -> bool:
    """Do all the tests concerned pass on an unbroken copy?"""
    tests = sorted({test for breakage in breakages for test in breakage.tests})
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="softlinalg-unbroken-") as folder:
        status, output = _run_tests(_copy(folder), tests, stop_early=False)
    print(f"unbroken: {'green' if status == 0 else 'RED'} ({time.perf_counter() - start:.0f} s)", flush=True)
    if status != 0:
        print(output)
    return status == 0


def _is_noticed(breakage: Breakage) -> bool:
    """Does a test fail on the broken copy?"""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="softlinalg-broken-") as folder:
        package = _copy(folder)
        file = package / "softlinalg" / breakage.file
        file.write_text(file.read_text(encoding="utf-8").replace(breakage.old, breakage.new), encoding="utf-8")
        status, output = _run_tests(package, breakage.tests, stop_early=True)
    noticed = status == 1  # 1: tests failed; everything else (no tests, a crash of pytest) proves nothing
    failed = next((line for line in output.splitlines() if line.startswith("FAILED")), "").removeprefix("FAILED ").split(" - ")[0]
    by = failed if noticed and failed else f"pytest's status is {status}"
    print(f"{'noticed ' if noticed else 'SURVIVED'}  {breakage.name}  by {by} ({time.perf_counter() - start:.0f} s)", flush=True)
    return noticed


def _with_kit(chosen: Sequence[Breakage], table: Path | None, keep: Path | None) -> int:
    """Let the kit notice them; 0 if it finds nothing in the unbroken copy and something in at least 95 of 100 broken ones."""
    known = json.loads(keep.read_text(encoding="utf-8")) if keep is not None and keep.is_file() else {}
    unbroken = _source_digest()
    start = time.perf_counter()
    if known.get("unbroken") != unbroken:
        known = {}
        with tempfile.TemporaryDirectory(prefix="softlinalg-unbroken-") as folder:
            status, output = _run_kit(_copy(folder), [])
        print(f"unbroken: {'green' if status == 0 else 'RED'} ({time.perf_counter() - start:.0f} s) {output}", flush=True)
        if status != 0:
            return 1
        known = {"unbroken": unbroken}
    rows = []
    for breakage in chosen:
        if breakage.name in known:
            rows.append((breakage, *known[breakage.name]))
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="softlinalg-broken-") as folder:
            package = _copy(folder)
            file = package / "softlinalg" / breakage.file
            file.write_text(file.read_text(encoding="utf-8").replace(breakage.old, breakage.new), encoding="utf-8")
            status, output = _run_kit(package, [kit.group_of(breakage.file)])
        rows.append((breakage, status == 1, output))
        known[breakage.name] = [status == 1, output]
        if keep is not None:
            keep.write_text(json.dumps(known, indent=1), encoding="utf-8")
        noticed = "noticed " if status == 1 else "SURVIVED"
        print(f"{noticed}  {breakage.name}  ({time.perf_counter() - start:.0f} s) {output[:160]}", flush=True)
    if table is not None:
        table.write_text(_kit_table(rows), encoding="utf-8")
    survivors = [breakage.name for breakage, noticed, _ in rows if not noticed]
    print(f"{len(rows) - len(survivors)} of {len(rows)} noticed by the kit", *survivors, sep="\n  survived: " if survivors else "")
    return int(len(survivors) * 20 > len(rows))


def _run_kit(package: Path, groups: Sequence[str]) -> tuple[int, str]:
    """Status and last line of the kit's checks on a copy; if they notice nothing, of those without compiled code, which is half of ours."""
    found = _run_checks(package, groups, {})
    if found[0] != 0:
        return found
    status, output = _run_checks(package, groups, {"SOFTLINALG_COMPILED": "0"})
    return status, f"{output} (without compiled code)" if status else output


def _run_checks(package: Path, groups: Sequence[str], variables: dict[str, str]) -> tuple[int, str]:
    """Status and last line of the kit's checks on a copy."""
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, str(package / "tests" / "breakages" / "kit.py"), *groups]
    try:
        done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return 1, "ran out of time"
    lines = (done.stdout or done.stderr).strip().splitlines()
    crashed = done.returncode == 1 and not done.stdout.strip()  # what the kit notices it prints; a copy that cannot be run proves nothing
    return 2 if crashed else done.returncode, lines[-1] if lines else ""


def _source_digest() -> str:
    """Of the package and of the checks."""
    digest = hashlib.sha256()
    for file in sorted([*(ROOT / "softlinalg").rglob("*.py"), Path(kit.__file__)]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _kit_table(rows: Sequence[tuple[Breakage, bool, str]]) -> str:
    """The page docs/benchmarks/planted-bugs.md."""
    noticed = sum(found for _, found, _ in rows)
    lines = [
        "# Planted bugs",
        "",
        "Small mistakes made on purpose in copies of softlinalg, and what the checks of `tests/breakages/kit.py` say of each: the suites and",
        "assertions of `softlinalg.testing`, and some lines of arithmetic, without the tests of the package. A check ends at the first law that",
        "fails. What compiled code hides is looked for without it. Again, in twelve minutes on one core:",
        "",
        "```sh",
        "python tests/breakages/run.py --with-kit --table docs/benchmarks/planted-bugs.md",
        "```",
        "",
        f"{noticed} of {len(rows)} are noticed. {_machine()}.",
        "",
        "| planted bug | file | noticed by | law that fails |",
        "| --- | --- | --- | --- |",
    ]
    for breakage, found, output in rows:
        check, _, words = output.partition(": ")
        uncompiled = ", without compiled code" if output.endswith("(without compiled code)") else ""
        noticed_by = f"{check}{uncompiled}" if found else "**nothing**"
        lines.append(f"| `{breakage.name}` | `{breakage.file}` | {noticed_by} | {_law(words) if found else ''} |")
    survivors = [breakage.name for breakage, found, _ in rows if not found]
    if survivors:
        lines += ["", "Not noticed:", "", *(f"- `{name}`: {SURVIVORS.get(name, 'a law is missing')}." for name in survivors)]
    if missing := [breakage.name for breakage in _all_with_kit() if breakage.name not in {row[0].name for row in rows}]:
        lines += ["", f"Not run for this table: {', '.join(f'`{name}`' for name in missing)}."]
    if later := [breakage.name for breakage, found, _ in rows if found and breakage.name in ANSWERED]:
        lines += [
            "",
            "These survived at first. The check named here was then added to `tests/breakages/kit.py`, or the kind of points to the kit, and passes",
            "on the unbroken package. `scalar_bounds`, `mapped_bounds` and `given_cut_offs` compute their errors themselves, the others call the kit:",
            "",
            *(f"- `{name}`: {ANSWERED[name]}." for name in later),
            "",
            "`no-common-center` and `odd-order-loses-a-power` also survived, and were then left out for the reasons below.",
        ]
    lines += ["", "Left out, because they change nothing that the kit measures (the tests of the package notice them):", ""]
    lines += [f"- `{name}`: {reason}." for name, reason in OUT_OF_SCOPE.items()]
    return "\n".join(lines) + "\n"


def _machine() -> str:
    """Where and when the table was made."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "scipy", "softlinalg"))
    return f"{datetime.date.today()}, {machine()}, python {platform.python_version()}, {versions}"


def _law(words: str) -> str:
    """The first law in the words of a failure, short enough for a table."""
    text = words.partition("properties fail ")[2] or words
    return text.partition(": ")[0][:110].replace("|", "\\|")


def _copy(folder: str) -> Path:
    """A copy of the package and its tests that can be broken."""
    place = Path(folder)
    leave = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.egg-info")
    for name in ("softlinalg", "tests", "docs"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, ignore=leave)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, place / name)
    return place


def _run_tests(package: Path, tests: Sequence[str], *, stop_early: bool) -> tuple[int, str]:
    """Status and output of pytest, which finds the copy before the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=300", *(["-x"] if stop_early else []), *tests]
    origin = [sys.executable, "-c", "import softlinalg; print(softlinalg.__file__)"]
    found = subprocess.run(origin, cwd=package, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).resolve().is_relative_to(package.resolve()):
        message = f"the tests would run on {found}, not on the copy in {package}"
        raise RuntimeError(message)
    try:
        done = subprocess.run(command, cwd=package, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT, check=False)
    except subprocess.TimeoutExpired:
        return 1, "FAILED by running out of time"
    return done.returncode, done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
