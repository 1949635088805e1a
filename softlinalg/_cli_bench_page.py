"""Reports of `softlinalg bench` as tables, as a page of Markdown, and as a picture; several reports as one."""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from softlinalg._cli_options import CommandError

__all__ = ["GROUPS", "Report", "Row", "key", "measuring_command", "merged", "origin", "page", "plot", "read", "table", "to_json"]

Row = dict[str, Any]
Report = dict[str, Any]
"""The machine, the rates measured on it, and one row for each contestant of each workload."""

GROUPS = {
    "inverse": "The inverse of A + 0.01 I, where A is a Gaussian kernel matrix of points in eight dimensions. Ours certifies each of its "
    "inverses; the others return theirs as it is. The published iteration with its fixed 20 steps has not converged.",
    "product": "Products with the Gaussian kernel matrix C of n points and m landmarks in 32 dimensions, float32, C never held as a whole "
    "but by scikit-learn.",
    "landmarks": "Choosing landmarks among points in 16 dimensions, float32.",
    "nystrom": "Features of the Nystrom approximation in 16 dimensions, float32, uniform landmarks. Ours sums the exact error as well.",
    "attention": "Two heads of width 32, 49 landmarks, float32. What computes other attention than ours is another operator: the times say "
    "nothing about what it is good for. Where a name says so, linear maps of the module are in the time.",
    "backbone": "`soft_tiny`, one image, beside the same network with full softmax attention in place of ours.",
}
"""What the workloads of each group compute, and in what the contestants are not alike."""

_OUTPUTS = ("--json", "--table", "--plot", "--check")


# ------------------------------------------------------------------------------------------------------- reports
def measuring_command(arguments: Iterable[str]) -> str:
    """The options that a measurement depends on; without the files that it read or wrote, which another reader does not have."""
    kept = ["softlinalg"]
    rest = iter(arguments)
    for argument in rest:
        if argument in _OUTPUTS:
            next(rest, None)
        elif argument != "--quiet" and not argument.startswith(tuple(f"{option}=" for option in _OUTPUTS)):
            kept.append(argument)
    return shlex.join(kept)


def key(row: Row) -> str:
    """What names a measurement."""
    return f"{row['group']}: {row['name']}: {row['contestant']}"


def read(path: Path, option: str) -> list[Report]:
    """The reports of a file: one as `softlinalg bench --json` writes it, or several that `--from` has joined."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        reports: list[Report] = content.get("reports", [content])
        for report in reports:
            page([report])  # finds everything that a page shows
            if not all(isinstance(row["best_ratio"], float) for row in report["rows"]):
                raise TypeError
            command = shlex.split(report["machine"]["command"])
            report["machine"]["command"] = measuring_command(command[1:])
    except (OSError, UnicodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{option}: {path} is no report of softlinalg bench --json ({type(error).__name__})"
        raise CommandError(message) from error
    return reports


def merged(reports: Sequence[Report]) -> list[Report]:
    """The same, with each workload from the last report that has it; reports of which nothing is left are left out."""
    newest = {(row["group"], row["name"]): number for number, report in enumerate(reports) for row in report["rows"]}
    kept = []
    for number, report in enumerate(reports):
        rows = [row for row in report["rows"] if newest[row["group"], row["name"]] == number]
        if rows:
            kept.append(report | {"rows": rows})
    return kept


def to_json(reports: Sequence[Report]) -> str:
    """One report as it is; several below one key."""
    return json.dumps(reports[0] if len(reports) == 1 else {"reports": reports}, indent=1) + "\n"


# --------------------------------------------------------------------------------------------------------- tables
def table(rows: Sequence[Row], *, named: bool = True) -> str:
    """Rows as Markdown; the names of their groups are left out where `named` is False."""
    lines = ["| workload | contestant | median, ms | times as long as ours (quartiles) | share of the floor |", "|-|-|-|-|-|"]
    for row in rows:
        floor = "" if row["floor"] is None else f"{100 * row['floor']:.0f} %"
        spread = "one round" if row["rounds"] == 1 else f"{row['low']:.2f} to {row['high']:.2f}"
        ratio = "1" if row["contestant"] == "softlinalg" else f"{row['ratio']:.2f} ({spread})"
        workload = f"{row['group']}: {row['name']}" if named else row["name"]
        lines.append(f"| {workload} | {row['contestant']} | {1e3 * row['median_s']:.2f} | {ratio} | {floor} |")
    return "\n".join(lines)


def origin(report: Report) -> str:
    """Where and how the figures were measured."""
    machine, rates = report["machine"], report["rates"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    flops = ", ".join(f"{value / 1e9:.0f} Gflop/s in {name}" for name, value in rates["flops"].items())
    return (
        f"{machine['processors']} x {machine['processor']}, {machine['threads']} thread(s), Python {machine['python']}, {versions}; "
        f"{machine['date']}.\n"
        f"Measured in the same run: {flops}, {rates['exponentials'] / 1e9:.2f} G exponentials/s, {rates['bytes'] / 1e9:.0f} GB/s copied.\n"
        f"`{machine['command']}`"
    )


def page(reports: Sequence[Report], picture: str | None = None) -> str:
    """A page with where the figures come from, the picture, and a table for each group.

    Parameters
    ----------
    reports : sequence of reports
        Of which no two have a workload in common: see `merged`.
    picture : str, optional
        Address of the picture, relative to the page.
    """
    groups = list(dict.fromkeys(row["group"] for report in reports for row in report["rows"]))
    lines = [
        "# softlinalg beside its peers",
        "",
        "Every contestant runs once in each round, in random order; the first call of each does not count. A ratio is a contestant's time",
        "over ours in the same round, and what is shown is its median over the rounds with the quartiles: above 1, softlinalg is quicker.",
        "The share of the floor is the time that the same operations take at the rates measured in the same run, over our best time.",
        "",
    ]
    for report in reports:
        names = ", ".join(dict.fromkeys(row["group"] for row in report["rows"]))
        first, *rest = origin(report).splitlines()
        lines += [f"* **{names}**: {first}", *(f"  {line}" for line in rest)]
    if picture is not None:
        lines += ["", f"![Times of the peers over those of softlinalg, on a logarithmic axis, one panel for each group]({picture})"]
    for group in groups:
        rows = [row for report in reports for row in report["rows"] if row["group"] == group]
        lines += ["", f"## {group}", "", *([GROUPS[group], ""] if group in GROUPS else []), table(rows, named=False)]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------------------- a picture
_COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#666666")
"""Seven of Paul Tol's bright colours; markers differ as well."""
_MARKERS = "osD^vPX"


def plot(rows: Sequence[Row], kind: str) -> bytes:
    """Ratios on a logarithmic axis: one panel for each group, one line for each workload, one mark for each contestant."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    groups = list(dict.fromkeys(row["group"] for row in rows))
    peers = {group: [row for row in rows if row["group"] == group and row["contestant"] != "softlinalg"] for group in groups}
    works = {group: list(dict.fromkeys(row["name"] for row in rows if row["group"] == group)) for group in groups}
    names = {group: list(dict.fromkeys(row["contestant"] for row in peers[group])) for group in groups}
    # A panel is as high as its lines or its legend, whichever is higher.
    heights = [max(len(works[group]) + 1, 0.75 * len(names[group]) + 1) for group in groups]
    figure = Figure(figsize=(11, 0.75 * len(groups) + 0.24 * sum(heights)), layout="constrained")
    ratios = [row[end] for group in groups for row in peers[group] for end in ("low", "high")]
    limits = (min([*ratios, 1.0]) / 1.25, max([*ratios, 1.0]) * 1.25)
    panels = figure.subplots(len(groups), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    for axes, group in zip(panels, groups, strict=True):
        for number, name in enumerate(names[group]):
            mine = [row for row in peers[group] if row["contestant"] == name]
            middle = [row["ratio"] for row in mine]
            spread = [[row["ratio"] - row["low"] for row in mine], [row["high"] - row["ratio"] for row in mine]]
            lines = [works[group].index(row["name"]) for row in mine]
            look = {"color": _COLORS[number % len(_COLORS)], "marker": _MARKERS[number % len(_MARKERS)]}
            axes.errorbar(middle, lines, xerr=spread, linestyle="none", markersize=5, elinewidth=1, label=name, **look)
        axes.axvline(1, color="black", lw=1)
        axes.axvspan(limits[0], 1, color="black", alpha=0.06, lw=0)
        axes.set_xscale("log")
        axes.set_xlim(*limits)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(labelsize=8, labelbottom=True)
        axes.set_yticks(range(len(works[group])), works[group])
        axes.set_ylim(len(works[group]) - 0.5, -0.5)
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.set_title(group, fontsize=10, loc="left", fontweight="bold")
        if names[group]:
            axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    panels[-1].set_xlabel("times as long as softlinalg (median, quartiles); in the grey part the peer is quicker", fontsize=9)
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, dpi=110)
    return buffer.getvalue()
