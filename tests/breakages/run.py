"""Break the package on purpose, one small mistake at a time, and demand that its tests notice.

    python tests/breakages/run.py              all of them
    python tests/breakages/run.py --list       their names
    python tests/breakages/run.py NAME ...     these only

Each breakage is made in a copy of the package; the working tree is never touched. First the tests concerned must pass
on an unbroken copy, because a suite that fails anyway notices nothing. The exit status is 0 when every breakage was
noticed, otherwise 1: a breakage that survives is a test that is missing, and a snippet that no longer occurs exactly once
has to follow the code that it was taken from.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from table import BREAKAGES, Breakage

ROOT = Path(__file__).resolve().parents[2]

TIME_LIMIT = 900
"""Seconds for the tests of one breakage; a breakage that makes the code hang counts as noticed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the breakages asked for; 0 if every one was noticed."""
    parser = argparse.ArgumentParser(description="Break the package on purpose, and demand that its tests notice.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; default: all")
    parser.add_argument("--list", action="store_true", help="show their names")
    arguments = parser.parse_args(argv)
    known = {breakage.name: breakage for breakage in BREAKAGES}
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no breakage is named {unknown[0]}; --list shows the names")
    chosen = [known[name] for name in arguments.names] or BREAKAGES
    if arguments.list:
        print(*(f"{breakage.name}: {breakage.file}" for breakage in chosen), sep="\n")
        return 0
    if stale := [breakage.name for breakage in chosen if occurrences(breakage) != 1]:
        print("these snippets do not occur exactly once any more:", *stale, sep="\n  ")
        return 1
    if not _is_green(chosen):
        print("the tests fail on the unbroken package: nothing can be learned from breaking it")
        return 1
    survivors = [breakage.name for breakage in chosen if not _is_noticed(breakage)]
    if survivors:
        print(f"{len(survivors)} of {len(chosen)} breakages survived:", *survivors, sep="\n  ")
        return 1
    print(f"all {len(chosen)} breakages were noticed")
    return 0


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
