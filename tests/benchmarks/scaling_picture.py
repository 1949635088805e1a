"""Draws how the time of attention grows with the tokens, from a report of `softlinalg bench`.

softlinalg bench --group attention --json attention.json
python tests/benchmarks/scaling_picture.py attention.json docs/images/attention-scaling.png
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

OURS = "softlinalg"


def curves(rows: list[dict[str, Any]], direction: str) -> dict[str, list[tuple[int, float]]]:
    """Tokens and median seconds of each contestant."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        match = re.fullmatch(rf"{direction}, (\d+) tokens", row["name"])
        if row["group"] == "attention" and match:
            found.setdefault(row["contestant"], []).append((int(match[1]), row["median_s"]))
    return {name: sorted(points) for name, points in found.items()}


def draw(report: dict[str, Any]) -> Figure:
    """Two panels on logarithmic axes: forward, and forward and backward."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, direction in ((left, "forward"), (right, "forward and backward")):
        for name, points in curves(report["rows"], direction).items():
            tokens, seconds = zip(*points, strict=True)
            style = {"color": "black", "lw": 2.5, "zorder": 3} if name == OURS else {"lw": 1.2}
            axes.plot(tokens, [1e3 * value for value in seconds], marker="o", ms=4, label=name, **style)
        axes.set(xscale="log", yscale="log", xlabel="tokens", title=direction)
        axes.grid(visible=True, which="major", lw=0.4)
    left.set_ylabel("milliseconds, two heads of width 32, one thread")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    draw(json.loads(options.report.read_text(encoding="utf-8"))).savefig(options.picture, dpi=110)


if __name__ == "__main__":
    main()
