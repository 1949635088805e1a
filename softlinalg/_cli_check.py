"""The subcommand `check`: the suites of `softlinalg.testing` on any function."""

from __future__ import annotations

import argparse
from pathlib import Path

from softlinalg._cli_approximate import check_outputs
from softlinalg._cli_report import write_file

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """The subcommand `check`.

    Returns
    -------
    int
        0 if every law holds, 1 if one fails.
    """
    outputs = [(path, option, suffixes) for path, option, suffixes in _outputs(arguments) if path is not None]
    check_outputs(None, outputs)
    # The kit of tests is an adapter of its own; the command stands above all of them and loads it only here.
    from softlinalg.testing import _report, _targets, suites

    function = _targets.load(arguments.target)
    backend = arguments.backend or _targets.guess_backend(arguments.target)
    reports = []
    for dtype in arguments.dtype:
        report = suites.check(
            function,
            arguments.kind,
            dtype=dtype,
            backend=backend,
            profile=arguments.profile,
            grade=arguments.grade,
            bitwise=arguments.bitwise,
            batched=arguments.batched,
            square=arguments.square,
            max_cond=arguments.max_cond,
            cases=arguments.cases,
            only=arguments.only,
            skip=arguments.skip,
            target=arguments.target,
            progress=not arguments.quiet,
        )
        reports.append(report)
        if not arguments.quiet:
            print(_report.table([report]), end="\n\n", flush=True)
    if arguments.json is not None:
        write_file(arguments.json, _report.to_json(reports).encode())
    if arguments.html is not None:
        from softlinalg.testing._report_html import page

        write_file(arguments.html, page(reports).encode())
    if not arguments.quiet:
        for path, *_ in outputs:
            print(f"wrote {path}")
    return 0 if all(report.passed for report in reports) else 1


def _outputs(arguments: argparse.Namespace) -> list[tuple[Path | None, str, tuple[str, ...] | None]]:
    return [(arguments.json, "--json", None), (arguments.html, "--html", (".html", ".htm"))]
