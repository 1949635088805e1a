"""What the command shows of an approximation: a table, JSON, and pictures of the error and the spectrum."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softlinalg._cli_data import require
from softlinalg._cli_options import CommandError
from softlinalg._nystrom_io import replacing

__all__ = ["COLORS", "Report", "peak_memory", "plot", "readable_bytes", "summary", "to_json", "write_file"]

COLORS: dict[str, dict[str, str]] = {
    "light": {"ink": "#1a1a1a", "muted": "#595959", "grid": "#dcdcdc", "paper": "#ffffff", "curve": "#0072b2", "other": "#d55e00"},
    "dark": {"ink": "#ececec", "muted": "#b4b4b4", "grid": "#3d4148", "paper": "#16181d", "curve": "#56b4e9", "other": "#e69f00"},
}
"""Blue and orange of Okabe and Ito, which people with any kind of colour vision tell apart; dash patterns differ as well."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """One approximation, as numbers to show."""

    name: str
    rows: int
    features: int
    dtype: str
    kernel: str
    landmarks: str
    """The method that chose them."""
    landmark_count: int
    rank: int
    """Eigenvalues kept: below the number of landmarks where rounding leaves nothing of the last of them."""
    relative_trace_error: float
    floor: float
    """Size of the rounding error of `relative_trace_error`, relative to the trace as well."""
    seconds: float
    """Choosing landmarks, factorisation and error; without reading the file."""
    reading_seconds: float
    peak_memory_bytes: int | None
    relative_trace_errors: np.ndarray[Any, Any]
    """Error that is left with the first k eigenvectors, k = 1 .. rank."""
    eigenvalues: np.ndarray[Any, Any]
    notes: tuple[str, ...] = ()
    optimal_errors: np.ndarray[Any, Any] | None = None
    """Smallest possible error of each rank, where the whole kernel was small enough to find out."""
    checked_error: float | None = None
    """The error again, from the whole kernel matrix, where it was small enough."""

    @property
    def full_kernel_bytes(self) -> int:
        """Memory of the whole kernel matrix in float64."""
        return 8 * self.rows**2


def peak_memory() -> int | None:
    """Most memory that this process has held so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def readable_bytes(number: float) -> str:
    """Bytes in decimal units, three digits: 907 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB", "PB"):
        if number < 999.5 or unit == "PB":
            break
        number /= 1000
    return f"{number:,.0f} {unit}" if unit == "bytes" or number >= 99.95 else f"{number:.3g} {unit}"


def _rows_of(report: Report) -> list[tuple[str, str]]:
    """Quantities and how they are shown."""
    memory = "unknown" if report.peak_memory_bytes is None else f"{readable_bytes(report.peak_memory_bytes)} (whole process)"
    formed = "never formed" if report.checked_error is None else "formed afterwards, to check"
    rows = [
        ("rows", f"{report.rows:,}"),
        ("features", f"{report.features:,}"),
        ("kernel", f"{report.kernel}, {report.dtype}"),
        ("landmarks", f"{report.landmark_count:,} ({report.landmarks})"),
        ("rank", f"{report.rank:,}"),
        ("relative trace error", f"{report.relative_trace_error:.3g} (exact; rounding floor {report.floor:.1g})"),
    ]
    if report.checked_error is not None:
        rows.append(("  from the full kernel", f"{report.checked_error:.3g}"))
    return [
        *rows,
        ("time", f"{report.seconds:.1f} s (reading: {report.reading_seconds:.1f} s)"),
        ("peak memory", memory),
        ("full kernel", f"{readable_bytes(report.full_kernel_bytes)} (float64, {formed})"),
    ]


def summary(reports: Sequence[Report], *, notes: bool = True) -> str:
    """Table of one or more approximations, in plain characters, one column for each."""
    columns = [_rows_of(report) for report in reports]
    labels = list(dict.fromkeys(label for column in columns for label, _ in column))
    table = [["", *(report.name for report in reports)]]
    table += [[label, *(dict(column).get(label, "-") for column in columns)] for label in labels]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    if notes:
        about = ["" if len(reports) == 1 else f" on {report.name}" for report in reports]
        lines += [f"note{about[i]}: {note}" for i, report in enumerate(reports) for note in report.notes]
    return "\n".join(lines)


def to_json(report: Report) -> str:
    """Everything in a report, for programs."""
    values = {key: value for key, value in vars(report).items() if value is not None}
    values = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in values.items()}
    return json.dumps({**values, "full_kernel_bytes": report.full_kernel_bytes}, indent=2, allow_nan=False) + "\n"


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        message = f"{path}: cannot be written: {error.strerror or error}"
        raise CommandError(message) from error


# ------------------------------------------------------------------------------------------------- pictures
def plot(report: Report, *, panels: Sequence[str] = ("error", "spectrum"), theme: str = "light", format: str = "png") -> bytes:  # noqa: A002
    """Picture of the error against the rank and of the spectrum.

    Parameters
    ----------
    report : Report
    panels : sequence of "error", "spectrum"
        Which to draw, from left to right.
    theme : {"light", "dark"}
    format : {"png", "svg", "pdf"}

    Returns
    -------
    bytes
    """
    matplotlib = require("matplotlib", why="plotting")
    figures = require("matplotlib.figure", why="plotting")
    colors = COLORS[theme]
    style = {
        "font.size": 11,
        "text.color": colors["ink"],
        "axes.labelcolor": colors["ink"],
        "axes.edgecolor": colors["muted"],
        "axes.facecolor": colors["paper"],
        "xtick.color": colors["muted"],
        "ytick.color": colors["muted"],
        "svg.hashsalt": "softlinalg",
    }
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=(5.6 * len(panels), 4.2), layout="constrained", facecolor=colors["paper"])
        for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
            {"error": _draw_error, "spectrum": _draw_spectrum}[panel](axes, report, colors)
            _decorate(axes, colors)
        if len(panels) > 1:
            figure.suptitle(f"{report.name}: {report.rows:,} rows, {report.features} features, {report.kernel}", fontsize=11)
        buffer = io.BytesIO()
        metadata = {"Software": None} if format == "png" else {"CreationDate": None} if format == "pdf" else {"Date": None}
        figure.savefig(buffer, format=format, dpi=130, metadata=metadata)
    return buffer.getvalue()


def _draw_error(axes: Any, report: Report, colors: dict[str, str]) -> None:
    """Error against rank, the rounding floor, and the best possible where known."""
    errors = np.maximum(np.asarray(report.relative_trace_errors, dtype=np.float64), report.floor / 4)
    ranks = np.arange(1, len(errors) + 1)
    axes.plot(ranks, errors, color=colors["curve"], linewidth=2.2, label="this approximation", zorder=3)
    if report.optimal_errors is not None:
        best = np.maximum(report.optimal_errors[: len(ranks)], report.floor / 4)
        axes.plot(ranks[: len(best)], best, color=colors["other"], linewidth=2, linestyle=(0, (5, 2)), label="best possible", zorder=2)
    floor = f"rounding floor ({report.dtype})"
    if report.floor >= errors.min() / 100:
        axes.axhline(report.floor, color=colors["muted"], linewidth=1.3, linestyle=":", label=floor)
    else:  # a line many decades down would flatten the curve
        axes.annotate(
            f"{floor}: {report.floor:.0e}, below this picture",
            (0.02, 0.03),
            xycoords="axes fraction",
            color=colors["muted"],
            fontsize=9.5,
        )
        axes.set_ylim(bottom=float(errors.min()) / 8)
    axes.plot(ranks[-1:], errors[-1:], "o", color=colors["curve"], markersize=6, zorder=4)
    # The curve falls to the right, so that above its end there is room.
    axes.annotate(
        f"rank {report.rank}: {report.relative_trace_error:.2g}",
        (ranks[-1], errors[-1]),
        textcoords="offset points",
        xytext=(0, 12),
        ha="right",
        color=colors["ink"],
    )
    axes.set_yscale("log")
    axes.set_ylim(top=max(1.6, float(errors[0]) * 1.6))
    axes.set_title("Error against rank")
    axes.set_xlabel("rank k: eigenvectors kept (count)")
    axes.set_ylabel("relative trace error (fraction of the trace)")
    if len(axes.get_legend_handles_labels()[0]) > 1:
        axes.legend(frameon=False, loc="best", labelcolor=colors["ink"], fontsize=10)


def _draw_spectrum(axes: Any, report: Report, colors: dict[str, str]) -> None:
    """Eigenvalues of the approximation as shares of the trace of the kernel."""
    shares = np.asarray(report.eigenvalues, dtype=np.float64) / report.rows
    shares = shares[shares > 0]
    if len(shares) == 0:
        return
    order = np.arange(1, len(shares) + 1)
    if len(shares) > 1:
        axes.plot(order, shares, color=colors["curve"], linewidth=2.2)
        axes.set_xscale("log")
    else:
        axes.plot(order, shares, "o", color=colors["curve"])
    axes.set_yscale("log")
    axes.set_title("Spectrum")
    axes.set_xlabel("number of the eigenvalue, by size (count)")
    axes.set_ylabel("eigenvalue (fraction of the trace)")


def _decorate(axes: Any, colors: dict[str, str]) -> None:
    axes.grid(visible=True, which="major", color=colors["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def percent(value: float) -> str:
    """A fraction in words: 3.1 %."""
    if value == 0:
        return "0 %"
    digits = max(0, 1 - math.floor(math.log10(abs(value) * 100)))
    return f"{value * 100:.{digits}f} %" if digits <= 6 else f"{value * 100:.1e} %"
