"""Scorecards as one HTML file that holds everything it shows, for bright and dark screens and for phones."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from softlinalg.testing._report import Example, PropertyResult, Report, readable_ratio, share

__all__ = ["COLORS", "page"]

COLORS: dict[str, dict[str, str]] = {
    "light": {
        "ink": "#1a1a1a",
        "muted": "#595959",
        "grid": "#dcdcdc",
        "paper": "#ffffff",
        "good": "#0072b2",
        "bad": "#c14a00",
        "tint": "#f5f6f8",
    },
    "dark": {
        "ink": "#ececec",
        "muted": "#b4b4b4",
        "grid": "#3d4148",
        "paper": "#16181d",
        "good": "#56b4e9",
        "bad": "#e69f00",
        "tint": "#1f2229",
    },
}
"""As on the pages of the command's demonstration; the orange is darker where it is text on white."""

LOWEST, HIGHEST = -2.0, 8.0
"""Powers of ten between which ratios are drawn."""


def page(reports: Sequence[Report]) -> str:
    """The scorecards as one HTML document without any reference to another file.

    Parameters
    ----------
    reports : sequence of Report
        At least one.

    Returns
    -------
    str
    """
    names = ", ".join(dict.fromkeys(report.target for report in reports))
    passed = all(report.passed for report in reports)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{_text(names)}: {"passed" if passed else "failed"}</title>
<style>{_style()}</style>
</head>
<body>
<main>
<h1>{_text(names)}</h1>
<p>{_introduction(reports)}</p>
{_summary(reports)}
{"".join(_section(report) for report in reports)}
<section>
<h2>How to read this</h2>
<p>Each property is a law that holds in exact arithmetic. A <em>ratio</em> is what rounding, or a mistake, has made of it, divided by
the unit in the formula: unit roundoff u times the dimension D times the condition &kappa; of the case. A sound implementation
stays below the number allowed, which leaves it at least a factor of two; laws that rounding cannot touch allow 0. The smallest
failing example is what remains when the first failure is made smaller, rounder and better conditioned for as long as it fails.</p>
<p>Cases are drawn from parameters and a seed, so the same numbers come out again on the same machine and libraries.</p>
</section>
<footer>{_text(_versions(reports[0].versions))}; {sum(report.seconds for report in reports):.0f} s in all.</footer>
</main>
</body>
</html>
"""


def _text(words: str) -> str:
    return html.escape(words, quote=True)


def _style() -> str:
    light, dark = (";".join(f"--{name}:{value}" for name, value in COLORS[theme].items()) for theme in ("light", "dark"))
    return f"""
:root{{{light}}}
@media (prefers-color-scheme: dark){{:root{{{dark}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.55 system-ui,sans-serif}}
main{{max-width:62rem;margin:0 auto;padding:1.2rem}}
h1{{font-size:1.6rem;line-height:1.25;overflow-wrap:anywhere}}
h2{{font-size:1.25rem;margin:2.2rem 0 .4rem}}
h3{{font-size:1rem;margin:1.6rem 0 .3rem}}
p{{max-width:44rem;margin:.5rem 0}}
.scroll{{overflow-x:auto}}
table{{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}}
th,td{{text-align:left;vertical-align:top;padding:.4rem .8rem .4rem 0;border-bottom:1px solid var(--grid)}}
th[scope=row]{{font-weight:600}}
thead th{{color:var(--muted);font-weight:400;white-space:nowrap}}
.number{{text-align:right;white-space:nowrap}}
.law{{min-width:13rem}}
.law small{{display:block;font-weight:400;color:var(--muted)}}
.ratio{{width:30%;min-width:11rem}}
.ratio svg{{display:block;width:100%;height:1.5rem}}
small,.note,footer{{color:var(--muted)}}
.good{{color:var(--good);font-weight:600}}
.bad{{color:var(--bad);font-weight:600}}
.example{{border-left:3px solid var(--bad);padding:.1rem 0 .1rem .9rem;margin:1rem 0}}
.example p{{margin:.2rem 0}}
pre{{overflow-x:auto;padding:.7rem .8rem;margin:.4rem 0;font-size:.85rem;background:var(--tint)}}
pre{{border:1px solid var(--grid);border-radius:.4rem}}
footer{{margin-top:2.5rem;font-size:.85rem;border-top:1px solid var(--grid);padding-top:.8rem}}
"""


def _introduction(reports: Sequence[Report]) -> str:
    kinds = {
        "pinv": "a pseudo-inverse",
        "kernel": "a Gaussian kernel",
        "nystrom": "a low-rank approximation",
        "attention": "softmax-free attention",
    }
    first = reports[0]
    words = kinds.get(first.kind, first.kind)
    grade = "as accurately as a decomposition (grade S)" if first.grade == "S" else "as accurately as an iteration by products (grade N)"
    failed = sum(not report.passed for report in reports)
    if failed == 0:
        left_out = any(report.skipped for report in reports)
        verdict = f"<span class='good'>It does, in every case{', by the laws that were not left out' if left_out else ''}.</span>"
    else:
        verdict = (
            "<span class='bad'>It does not.</span>"
            if len(reports) == 1
            else f"<span class='bad'>In {failed} of {len(reports)} data types it does not.</span>"
        )
    return f"Does this function compute {words}, {grade}, whatever it is given? {verdict}"


def _summary(reports: Sequence[Report]) -> str:
    rows = "".join(
        f"""<tr><th scope="row">{_text(report.dtype)}</th><td>{_text(report.backend)}</td><td>{_verdict(report)}</td>
<td class="number">{report.cases:,}</td>
<td class="number">{report.failed_cases:,} <small>({_text(share(report.failed_cases, report.cases))})</small></td>
<td>{_groups(report)}</td></tr>"""
        for report in reports
    )
    return f"""<div class="scroll"><table><thead><tr><th>data type</th><th>arrays</th><th></th><th class="number">cases</th>
<th class="number">failed</th><th>failed, by group of cases</th></tr></thead><tbody>{rows}</tbody></table></div>"""


def _verdict(report: Report) -> str:
    return "<span class='good'>passed</span>" if report.passed else "<span class='bad'>FAILED</span>"


def _groups(report: Report) -> str:
    return (
        "<small>"
        + ", ".join(f"{_text(name)} {_text(share(failed, cases))}" for name, (failed, cases) in report.groups.items())
        + "</small>"
    )


def _section(report: Report) -> str:
    measured = [result for result in report.properties if result.cases]
    rows = "".join(_row(result) for result in measured)
    examples = "".join(_failure(result) for result in report.failures)
    skipped = [result.name for result in report.properties if not result.cases]
    note = f"<p class='note'>Not asked of any case: {_text(', '.join(skipped))}.</p>" if skipped else ""
    if report.skipped:
        note += f"<p class='note'>Left out on request: {_text(', '.join(report.skipped))}.</p>"
    return f"""<section>
<h2>{_text(report.dtype)}: {len(measured) - len(report.failures)} of {len(measured)} properties hold</h2>
<div class="scroll"><table><thead><tr><th>property</th><th></th><th class="number">cases</th><th class="number">failures</th>
<th class="number">worst</th><th class="number">allowed</th>
<th>worst ratio, 10<sup>{LOWEST:.0f}</sup> to 10<sup>{HIGHEST:.0f}</sup></th></tr></thead>
<tbody>{rows}</tbody></table></div>
{note}
{"<h3>Smallest failing examples</h3>" + examples if examples else ""}
</section>"""


def _row(result: PropertyResult) -> str:
    mark = "<span class='good'>ok</span>" if result.passed else "<span class='bad'>FAIL</span>"
    worst = "-" if result.worst is None else readable_ratio(result.worst.ratio)
    return f"""<tr><th scope="row" class="law">{_text(result.name)}<small>{_text(result.words)}</small>
<small>{_text(result.formula)}</small></th>
<td>{mark}</td><td class="number">{result.cases:,}</td><td class="number">{result.failures:,}</td><td class="number">{worst}</td>
<td class="number">{readable_ratio(result.threshold)}</td><td class="ratio">{_bar(result)}</td></tr>"""


def _place(ratio: float) -> float:
    """Where a ratio lies on the drawing, in percent."""
    if not ratio > 0:
        return 0.0
    power = HIGHEST if math.isinf(ratio) else min(max(math.log10(ratio), LOWEST), HIGHEST)
    return 100 * (power - LOWEST) / (HIGHEST - LOWEST)


def _bar(result: PropertyResult) -> str:
    """The worst ratio as a bar, the number allowed as a tick."""
    if result.worst is None:
        return ""
    color = "var(--good)" if result.passed else "var(--bad)"
    length, tick = _place(result.worst.ratio), _place(result.threshold)
    words = f"worst ratio {readable_ratio(result.worst.ratio)}, allowed {readable_ratio(result.threshold)}"
    return f"""<svg role="img" aria-label="{words}"><title>{words}</title>
<line x1="0" y1="50%" x2="100%" y2="50%" stroke="var(--grid)"/>
<rect x="0" y="30%" width="{max(length, 0.6):.1f}%" height="40%" rx="2" fill="{color}"/>
<line x1="{tick:.1f}%" y1="8%" x2="{tick:.1f}%" y2="92%" stroke="var(--ink)" stroke-width="1.5"/></svg>"""


def _failure(result: PropertyResult) -> str:
    example: Example | None = result.smallest or result.worst
    if example is None:
        return ""
    reason = f"; {_text(example.reason)}" if example.reason else ""
    errors = "".join(f"<p class='note'>{count:,} times: {_text(words)}</p>" for words, count in result.errors.items())
    return f"""<div class="example"><p><strong>{_text(result.name)}</strong>: {_text(result.words)}</p>
<p>{_text(example.case)}: ratio {readable_ratio(example.ratio)}{reason}</p>
<pre><code>{_text(example.reproduction)}</code></pre>{errors}</div>"""


def _versions(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())
