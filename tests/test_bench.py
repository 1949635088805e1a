"""The command `softlinalg bench`: what it measures and writes, and that nothing has become slower beside its peers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from softlinalg import _cli_bench, _cli_bench_page, _cli_bench_workloads, cli
from softlinalg.torch import cpu_kernels

STORED = Path(__file__).parents[1] / "docs" / "benchmarks" / "ratios.json"


def quick(slow: float) -> list[_cli_bench_workloads.Workload]:
    """A workload without work: a peer that takes `slow` times as long as ours."""

    def make() -> dict[str, Any]:
        return {"softlinalg": lambda: time.sleep(0.004), "peer": lambda: time.sleep(0.004 * slow)}

    return [_cli_bench_workloads.Workload("inverse", "nothing", make, lambda rates: 0.001, smoke=True)]


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = _cli_bench_workloads.Rates({"float32": 1e9, "float64": 1e9}, 1e9, 1e9)
    monkeypatch.setattr(_cli_bench_workloads.Rates, "measure", lambda: rates)
    monkeypatch.setattr(_cli_bench_workloads, "workloads", lambda: quick(3))


# --------------------------------------------------------------------------------------------------- the command
def test_it_writes_what_it_measured(tmp_path: Path, no_work: None, capsys: pytest.CaptureFixture[str]) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "md", "png")}
    assert cli.main(["bench", "--rounds", "3", "--json", str(files["json"]), "--table", str(files["md"]), "--plot", str(files["png"])]) == 0
    report = json.loads(files["json"].read_text())
    ours, peer = report["rows"]
    assert (ours["contestant"], ours["ratio"], peer["rounds"]) == ("softlinalg", 1.0, 3)
    assert 1.5 < peer["ratio"] < 6  # of two sleeps
    assert peer["low"] <= peer["ratio"] <= peer["high"]
    assert 0 < ours["floor"] <= 0.25
    assert {"processor", "threads", "versions", "date", "command"} <= set(report["machine"])
    table = files["md"].read_text()
    assert "## inverse" in table
    assert "| nothing | peer" in table
    assert "](out.png)" in table
    assert "Gflop/s" in table
    assert files["png"].read_bytes()[:4] == b"\x89PNG"
    assert "inverse: nothing | peer" in capsys.readouterr().out


PAGE = STORED.with_name("peers.md")


def report(workload: str, seconds: float, *, command: str = "softlinalg bench", group: str = "inverse") -> dict[str, Any]:
    """A report of one workload, in which a peer takes `seconds` and ours one."""
    work = _cli_bench_workloads.Workload(group, workload, dict, None)
    rates = {"flops": {"float32": 1e9}, "exponentials": 1e9, "bytes": 1e9}
    machine = {"processor": "P", "processors": 2, "threads": 1, "python": "3", "versions": {"numpy": "2"}, "date": "D", "command": command}
    rows = _cli_bench._rows(work, {"softlinalg": [1.0, 1.0], "peer": [seconds, seconds]}, None)
    return {"machine": machine, "rates": rates, "rows": rows}


def test_reports_are_joined_and_the_last_measurement_of_a_workload_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / name for name in ("a.json", "b.json", "c.json", "all.json", "peers.md", "peers.png")}
    for name, content in {
        "a.json": report("small", 2.0, command="softlinalg bench --rounds 5 --json /home/somebody/a.json"),
        "b.json": report("long", 3.0, group="attention"),
        "c.json": report("small", 5.0, command="softlinalg bench --table=t.md --smoke"),
    }.items():
        files[name].write_text(json.dumps(content))
    out = ["--json", str(files["all.json"])]
    assert cli.main(["bench", "--quiet", "--from", str(files["a.json"]), str(files["b.json"]), *out]) == 0
    assert "/home/somebody" not in files["all.json"].read_text()
    pictures = ["--table", str(files["peers.md"]), "--plot", str(files["peers.png"])]
    assert cli.main(["bench", "--from", str(files["all.json"]), str(files["c.json"]), *out, *pictures]) == 0
    page = files["peers.md"].read_text()
    assert "| small | peer | 5000.00 | 5.00 (5.00 to 5.00) |" in page
    assert "2.00 (" not in page
    assert page.count("`softlinalg bench") == 2
    assert "`softlinalg bench --smoke`" in page
    assert "](peers.png)" in page
    assert page.index("## attention") < page.index("## inverse")  # in the order of the reports that are left
    assert "| long | peer | 3000.00" in capsys.readouterr().out
    assert files["peers.png"].read_bytes()[:4] == b"\x89PNG"
    assert len(json.loads(files["all.json"].read_text())["reports"]) == 2


def test_the_page_of_the_site_is_what_its_reports_make() -> None:
    reports = _cli_bench_page.read(PAGE.with_suffix(".json"), "--from")
    assert reports == _cli_bench_page.merged(reports), "a workload stands in two reports"
    assert PAGE.read_text(encoding="utf-8") == _cli_bench_page.page(reports, "peers.png"), (
        "make it again: softlinalg bench --from docs/benchmarks/peers.json --table docs/benchmarks/peers.md --plot docs/benchmarks/peers.png"
    )


def test_each_group_of_workloads_is_explained() -> None:
    assert {work.group for work in _cli_bench_workloads.workloads()} == set(_cli_bench_page.GROUPS)


def test_a_ratio_that_became_worse_is_told_after_three_attempts(
    tmp_path: Path, no_work: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "stored.json"
    arguments = ["bench", "--smoke", "--rounds", "2", "--quiet", "--check", str(stored)]
    assert cli.main([*arguments[:-2], "--json", str(stored)]) == 0
    assert cli.main(arguments) == 0
    calls = []
    real = _cli_bench.measure
    monkeypatch.setattr(_cli_bench, "measure", lambda *args, **settings: calls.append(1) or real(*args, **settings))
    monkeypatch.setattr(_cli_bench_workloads, "workloads", lambda: quick(1))
    assert cli.main(arguments) == 1
    assert len(calls) == _cli_bench.ATTEMPTS
    assert capsys.readouterr().out.startswith("worse: inverse: nothing: peer took 1.")


def test_a_slow_neighbour_in_one_attempt_is_forgiven() -> None:
    moments = iter([0.02, 0.004])  # ours is disturbed once
    work = _cli_bench_workloads.Workload("inverse", "nothing", dict, None)
    rows = [_cli_bench._rows(work, {"softlinalg": [first], "peer": [0.012]}, None) for first in moments]
    stored = {"inverse: nothing: peer": 3.0}
    assert _cli_bench.regressions(rows[0], stored)
    assert not _cli_bench.regressions(rows[1], stored)


def test_rounds_are_interleaved_and_end_with_the_budget() -> None:
    order: list[str] = []
    contestants = {name: lambda name=name: order.append(name) for name in "abc"}
    times = _cli_bench.measure(contestants, 20, np.random.default_rng(0), budget=0.0)
    assert [len(found) for found in times.values()] == [2, 2, 2]
    assert [sorted(order[i : i + 3]) for i in (0, 3, 6)] == [list("abc")] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--group", "everything"], "--group must be among inverse, product"),
        (["--json", "out.txt"], "--json must name a file that ends in .json"),
        (["--check", "pyproject.toml"], "is no report of softlinalg bench --json"),
        (["--from", "pyproject.toml"], "--from: pyproject.toml is no report of softlinalg bench --json"),
        (["--from", "docs/benchmarks/ratios.json", "--check", "docs/benchmarks/ratios.json"], "--from measures nothing"),
    ],
)
def test_bad_options_are_told_on_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    assert cli.main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- the workloads
SAME_RESULT = [work for work in _cli_bench_workloads.workloads() if work.smoke and work.group in ("inverse", "product")]


@pytest.mark.parametrize("work", SAME_RESULT, ids=lambda work: work.name)
def test_contestants_compute_the_same(work: _cli_bench_workloads.Workload) -> None:
    contestants = work.make()
    ours = np.asarray(contestants["softlinalg"]())
    for name, call in contestants.items():
        if name != "published, 20 steps":  # not converged, by design
            assert np.abs(np.asarray(call()) - ours).max() < 2e-3 * np.abs(ours).max(), name


@pytest.mark.slow
def test_nothing_has_become_slower_beside_its_peers(capsys: pytest.CaptureFixture[str]) -> None:
    if cpu_kernels.load() is None:
        pytest.skip("the stored ratios are those of compiled attention, and there is no compiler here")
    status = cli.main(["bench", "--smoke", "--rounds", "3", "--seconds", "2", "--quiet", "--check", str(STORED)])
    assert status == 0, capsys.readouterr().out
