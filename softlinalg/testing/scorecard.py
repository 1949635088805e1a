"""The scorecard of well-known functions and of softlinalg's own: ``python -m softlinalg.testing.scorecard``.

Writes scorecard.json, scorecard.md and scorecard.png. Functions whose library is not installed are left out, and the page says so. With
names after the command only these are measured anew; the others keep the figures of the file.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softlinalg.testing import _report, suites
from softlinalg.testing._report import Report

__all__ = ["ENTRIES", "Entry", "main", "markdown"]

OURS = 5000
"""Cases of softlinalg's own functions in each data type, besides the gallery."""

OTHERS = 1500
"""Cases of the others."""

COMPLEX = ("float32", "float64", "complex64", "complex128")
REAL = ("float32", "float64")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One function of the scorecard."""

    name: str
    kind: str
    make: Callable[[], Callable[..., Any]]
    """Imports what it needs."""
    needs: tuple[str, ...] = ()
    """Packages to import."""
    dtypes: tuple[str, ...] = REAL
    cases: int = OTHERS
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""


# ------------------------------------------------------------------------------------------------- functions
def _numpy_pinv() -> Callable[..., Any]:
    return np.linalg.pinv


def _numpy_pinv_none() -> Callable[..., Any]:
    settings: dict[str, Any] = {"rtol": None}  # not in NumPy's own types
    return lambda a: np.linalg.pinv(a, **settings)


def _scipy_pinv() -> Callable[..., Any]:
    import scipy.linalg

    return scipy.linalg.pinv  # type: ignore[no-any-return]


def _torch_pinv() -> Callable[..., Any]:
    import torch

    function: Callable[..., Any] = torch.linalg.pinv
    return function


def _jax_pinv() -> Callable[..., Any]:
    import jax.numpy

    return jax.numpy.linalg.pinv


def _ours(name: str, **settings: Any) -> Callable[[], Callable[..., Any]]:
    def make() -> Callable[..., Any]:
        import softlinalg

        function: Callable[..., Any] = getattr(softlinalg, name)
        if not settings:
            return function
        return lambda *arguments, **more: function(*arguments, **more, **settings)

    return make


def _twenty_steps() -> Callable[..., Any]:
    import softlinalg

    return lambda a: softlinalg.newton_pinv(a, steps=20).value


def third_order_pinv(a: Any, *, steps: int = 6) -> Any:
    """The pseudo-inverse of the published Nystromformer: Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from A^T / (|A|_1 |A|_inf).

    Parameters
    ----------
    a : numpy array, shape (..., m, n)
    steps : int

    Returns
    -------
    numpy array, shape (..., n, m)

    References
    ----------
    .. [1] Xiong et al., Nystromformer: a Nystrom-based algorithm for approximating self-attention (2021), eq. 11.
    """
    a = np.asarray(a)
    size = np.abs(a)
    norms = size.sum(axis=-2).max(axis=-1) * size.sum(axis=-1).max(axis=-1)
    z = np.conj(np.swapaxes(a, -1, -2)) / norms[..., None, None]
    eye = np.eye(a.shape[-2], dtype=a.dtype)
    for _ in range(steps):
        az = a @ z
        z = z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az))) / 4
    return z.astype(a.dtype)


def _third_order() -> Callable[..., Any]:
    return third_order_pinv


def _pypi_nystrom_attention() -> Callable[..., Any]:
    from nystrom_attention.nystrom_attention import moore_penrose_iter_pinv

    def pinv(a: Any) -> Any:
        """It wants a batch axis."""
        return moore_penrose_iter_pinv(a[None])[0] if a.ndim == 2 else moore_penrose_iter_pinv(a)

    return pinv


def _pypi_attention() -> Callable[..., Any]:
    import torch

    import softlinalg

    inverse = _pypi_nystrom_attention()

    def attend(q: Any, v: Any, landmarks: Any) -> Any:
        """C Z (C^T v), with Z the package's inverse of W + 0.01 I."""
        scale = q.shape[-1] ** 0.25
        c, w = (softlinalg.gaussian_kernel(z, landmarks, length_scale=scale) for z in (q, landmarks))
        return c @ (inverse(w + 0.01 * torch.eye(w.shape[-1], dtype=w.dtype)) @ (c.mT @ v))

    return attend


def _sklearn_kernel() -> Callable[..., Any]:
    from sklearn.metrics.pairwise import rbf_kernel

    return lambda x, y=None, *, length_scale: rbf_kernel(x, y, gamma=0.5 / length_scale**2)


def _torch_cdist() -> Callable[..., Any]:
    import torch

    def kernel(x: Any, y: Any = None, *, length_scale: float) -> Any:
        return torch.exp(-((torch.cdist(x, x if y is None else y) / length_scale) ** 2) / 2)

    return kernel


def _sklearn_nystroem() -> Callable[..., Any]:
    from sklearn.kernel_approximation import Nystroem

    def features(x: Any, kernel: Any, *, landmarks: Any) -> Any:
        settings: dict[str, Any] = {"n_components": len(landmarks), "random_state": 0}
        if isinstance(kernel, suites.Scaled):
            settings["kernel"] = lambda a, b: float(kernel(a[None], b[None])[0, 0])
        elif isinstance(kernel, suites.Linear):
            settings["kernel"] = "linear"
        else:
            settings |= {"kernel": "rbf", "gamma": 0.5 / kernel.length_scale**2}
        return Nystroem(**settings).fit(landmarks).transform(x)

    return features


ENTRIES = (
    Entry(name="softlinalg.pinv", kind="pinv", make=_ours("pinv"), dtypes=COMPLEX, cases=OURS, settings={"bitwise": True}),
    Entry(
        name="softlinalg.certified_pinv", kind="pinv", make=_ours("certified_pinv"), dtypes=COMPLEX, cases=OURS, settings={"bitwise": True}
    ),
    Entry(name="numpy.linalg.pinv", kind="pinv", make=_numpy_pinv, dtypes=COMPLEX, note="its default cut-off, 1e-15 in every data type"),
    Entry(name="numpy.linalg.pinv(rtol=None)", kind="pinv", make=_numpy_pinv_none, dtypes=COMPLEX),
    Entry(name="scipy.linalg.pinv", kind="pinv", make=_scipy_pinv, dtypes=COMPLEX),
    Entry(name="torch.linalg.pinv", kind="pinv", make=_torch_pinv, needs=("torch",), dtypes=COMPLEX, settings={"backend": "torch"}),
    Entry(name="jax.numpy.linalg.pinv", kind="pinv", make=_jax_pinv, needs=("jax",), cases=1000, settings={"backend": "jax"}),
    Entry(name='softlinalg.pinv(method="newton")', kind="pinv", make=_ours("pinv", method="newton"), cases=OURS, settings={"grade": "N"}),
    Entry(
        name="20 Newton steps",
        kind="pinv",
        make=_twenty_steps,
        settings={"grade": "N"},
        note="as published with SOFT; `softlinalg.newton_pinv(a).value`, an approximation by name",
    ),
    Entry(
        name="6 third-order steps",
        kind="pinv",
        make=_third_order,
        settings={"grade": "N"},
        note="as published with Nystromformer, from its formula",
    ),
    Entry(
        name="nystrom_attention: moore_penrose_iter_pinv",
        kind="pinv",
        make=_pypi_nystrom_attention,
        needs=("torch", "nystrom_attention"),
        settings={"grade": "N", "backend": "torch", "square": True},
        note="the package nystrom-attention of PyPI; square matrices only",
    ),
    Entry(
        name="softlinalg.gaussian_kernel",
        kind="kernel",
        make=_ours("gaussian_kernel"),
        cases=OURS,
        settings={"grade": "N", "bitwise": True},
    ),
    Entry(
        name="sklearn.metrics.pairwise.rbf_kernel",
        kind="kernel",
        make=_sklearn_kernel,
        needs=("sklearn",),
        settings={"grade": "N", "batched": False},
    ),
    Entry(
        name="exp(-torch.cdist(x, y)^2 / 2 l^2)",
        kind="kernel",
        make=_torch_cdist,
        needs=("torch",),
        settings={"grade": "N", "backend": "torch"},
    ),
    Entry(name="softlinalg.nystrom", kind="nystrom", make=_ours("nystrom"), cases=OURS),
    Entry(
        name="sklearn.kernel_approximation.Nystroem",
        kind="nystrom",
        make=_sklearn_nystroem,
        needs=("sklearn",),
        cases=300,
        note="fitted to the landmarks",
    ),
    Entry(name="softlinalg.soft_attention", kind="attention", make=_ours("soft_attention"), cases=OURS),
    Entry(
        name='softlinalg.soft_attention(inverse="published")',
        kind="attention",
        make=_ours("soft_attention", inverse="published"),
        cases=OURS,
        note="20 Newton steps for the inverse, as published with SOFT",
    ),
    Entry(
        name="soft attention with nystrom_attention: moore_penrose_iter_pinv",
        kind="attention",
        make=_pypi_attention,
        needs=("torch", "nystrom_attention"),
        settings={"backend": "torch"},
        note=(
            "kernels of `softlinalg.gaussian_kernel`, and the function of the package nystrom-attention of PyPI for the inverse of"
            " W + 0.01 I (its own attention, of softmax, is another function, for which these laws do not speak)"
        ),
    ),
)


# -------------------------------------------------------------------------------------------------- command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the three files.

    Returns
    -------
    int
        0, also where others fail; 1 if a function of softlinalg that claims no approximation fails.
    """
    parser = argparse.ArgumentParser(
        prog="python -m softlinalg.testing.scorecard", description="Hold well-known functions and our own to the same laws."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which functions; default: all")
    parser.add_argument("--output-dir", type=Path, default=Path("docs/benchmarks"), metavar="DIR", help="default: docs/benchmarks")
    parser.add_argument("--cases", type=int, metavar="N", help="cases in each data type, for a quick look")
    parser.add_argument("--dtype", choices=COMPLEX, action="append", help="these data types only; may be repeated")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the page and the picture from the file of figures")
    arguments = parser.parse_args(argv)
    known = [entry.name for entry in ENTRIES]
    if unknown := [name for name in arguments.names if name not in known]:
        parser.error(f"no entry is named {unknown[0]!r}; there are {', '.join(known)}")
    file = arguments.output_dir / "scorecard.json"
    if not arguments.render:
        for entry in ENTRIES:
            if not arguments.names or entry.name in arguments.names:
                _measure(entry, file, cases=arguments.cases, dtypes=arguments.dtype)
    reports = _read(file)
    (arguments.output_dir / "scorecard.md").write_text(markdown(reports), encoding="utf-8")
    _picture(reports, arguments.output_dir / "scorecard.png")
    print(f"wrote scorecard.json, .md and .png in {arguments.output_dir}")
    return int(any(not report.passed for report in reports if _promises(report)))


def _promises(report: Report) -> bool:
    return report.target.startswith("softlinalg") and "published" not in report.target


def _read(file: Path) -> list[Report]:
    """The figures of earlier runs, in the order of the entries."""
    if not file.is_file():
        return []
    order = {entry.name: i for i, entry in enumerate(ENTRIES)}
    reports = [report for report in _report.from_json(file.read_text(encoding="utf-8")) if report.target in order]
    return sorted(reports, key=lambda report: (order[report.target], COMPLEX.index(report.dtype)))


def _measure(entry: Entry, file: Path, *, cases: int | None, dtypes: Sequence[str] | None) -> None:
    """The reports of one entry into the file, in place of earlier ones."""
    if missing := [name for name in entry.needs if importlib.util.find_spec(name) is None]:
        print(f"{entry.name}: left out, {missing[0]} is not installed", file=sys.stderr)
        return
    function = entry.make()
    for dtype in [dtype for dtype in entry.dtypes if dtypes is None or dtype in dtypes]:
        report = suites.check(
            function,
            entry.kind,
            dtype=dtype,
            cases=cases or entry.cases,
            profile="deep",
            target=entry.name,
            progress=True,
            **entry.settings,
        )
        print(_report.table([report]).splitlines()[0], "->", _report.table([report]).splitlines()[-1], flush=True)
        kept = [other for other in _read(file) if (other.target, other.dtype) != (report.target, report.dtype)]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_report.to_json([*kept, report]), encoding="utf-8")


# ----------------------------------------------------------------------------------------------------- page
TITLES = {
    "pinv": "Pseudo-inverses",
    "kernel": "Gaussian kernels",
    "nystrom": "Nyström approximations",
    "attention": "Softmax-free attention",
}


def markdown(reports: Sequence[Report]) -> str:
    """The page.

    Parameters
    ----------
    reports : sequence of Report

    Returns
    -------
    str
    """
    parts = [_HEAD]
    for kind, title in TITLES.items():
        chosen = [report for report in reports if report.kind == kind]
        if chosen:
            parts.append(f"## {title}\n\n{_table(chosen)}\n\n{_notes(chosen)}")
    parts.append(_versions(reports))
    return "\n".join(parts)


_HEAD = """# Scorecard

Well-known functions and those of softlinalg, held to the same laws on the same cases by the suites of `softlinalg.testing`. One command
makes this page, its figures (`scorecard.json`) and the picture again; libraries that are not installed are left out:

```sh
python -m softlinalg.testing.scorecard
```

![Share of cases in which each law of a pseudo-inverse fails](scorecard.png)

A case is one input. It fails if any law fails on it: a law is broken if an error exceeds 30 (60 where two results are compared) times
unit roundoff times dimension times condition, or at all where rounding has no part in it. Grade S asks for the accuracy of a decomposition
at conditions up to 1 / (64 D eps); grade N asks for that of a sound iteration by products, at conditions up to sqrt(0.1 / eps): the
published iterations are measured in the milder grade. "Worst" is the largest ratio of the forward error, or of the values. What each law
says, and the smallest failing example of each that fails, stands in the file of figures, and `softlinalg check` prints it.
"""


def _table(reports: Sequence[Report]) -> str:
    groups = ("full rank", "deficient", "gallery") if reports[0].kind == "pinv" else ()
    head = ["function", "grade", "data type", "cases", "failed", *groups, "worst", "laws that fail"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for report in reports:
        failing = ", ".join(f"{result.name} ({_report.share(result.failures, result.cases)})" for result in report.failures) or "none"
        cells = [
            f"`{report.target}`" if "." in report.target else report.target,
            report.grade if reports[0].kind in ("pinv", "kernel") else "",
            report.dtype,
            f"{report.cases:,}",
            f"**{report.failed_cases:,}** ({_report.share(report.failed_cases, report.cases)})" if report.failed_cases else "0",
            *(_report.share(*report.groups.get(group, (0, 0))) for group in groups),
            _worst(report),
            failing,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _worst(report: Report) -> str:
    name = {"pinv": "forward-error", "kernel": "values", "nystrom": "below", "attention": "values"}[report.kind]
    worst = report[name].worst
    return "-" if worst is None else _report.readable_ratio(worst.ratio)


def _notes(reports: Sequence[Report]) -> str:
    shown = {report.target for report in reports}
    return "\n".join(f"- {entry.name}: {entry.note}." for entry in ENTRIES if entry.note and entry.name in shown) + "\n"


def _versions(reports: Sequence[Report]) -> str:
    found: dict[str, str] = {}
    for report in reports:
        found.update(report.versions)
    cases = sum(report.cases for report in reports)
    minutes = sum(report.seconds for report in reports) / 60
    dates, machines = (sorted({getattr(report, name) for report in reports} - {""}) for name in ("date", "machine"))
    return (
        f"{cases:,} cases in {minutes:.0f} minutes on one core, beside other work. {', '.join(dates)}; {'; '.join(machines)}; "
        + ", ".join(f"{name} {version}" for name, version in found.items())
        + ".\n"
    )


def _picture(reports: Sequence[Report], file: Path) -> None:
    """Share of failing cases by function and law, for pseudo-inverses."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    chosen = [report for report in reports if report.kind == "pinv" and report.dtype in REAL]
    if not chosen:
        return
    laws = [result.name for result in chosen[0].properties if any(_measured(report, result.name) for report in chosen)]
    asked = np.array([[_measured(report, law) > 0 for law in laws] for report in chosen])
    share = np.array([[_share_of(report, law) for law in laws] for report in chosen])
    figure = Figure(figsize=(13, 1.8 + 0.36 * len(chosen)), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    colors = LinearSegmentedColormap.from_list("failures", ["#e8f1f8", "#fbd9b5", "#e69f00", "#d55e00", "#8c2d04"])
    axes.imshow(np.where(asked, np.sqrt(share), np.nan), cmap=colors, vmin=0, vmax=1, aspect="auto")
    for i in range(len(chosen)):
        for j in range(len(laws)):
            if share[i, j] > 0:
                axes.text(
                    j,
                    i,
                    f"{100 * share[i, j]:.0f}" if share[i, j] >= 0.01 else "<1",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[i, j] > 0.4 else "black",
                )
    axes.set_xticks(range(len(laws)), laws, rotation=40, ha="right", rotation_mode="anchor", fontsize=9)
    axes.set_yticks(range(len(chosen)), [f"{report.target}, {report.dtype}" for report in chosen], fontsize=9)
    axes.set_title("Cases in which a law of the pseudo-inverse fails (percent; pale blue: none, white: not asked)", fontsize=11, loc="left")
    axes.set_xticks(np.arange(len(laws) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(chosen) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.savefig(file, dpi=110)


def _measured(report: Report, law: str) -> int:
    return next((result.cases for result in report.properties if result.name == law), 0)


def _share_of(report: Report, law: str) -> float:
    result = next((result for result in report.properties if result.name == law), None)
    return 0.0 if result is None or not result.cases else result.failures / result.cases


if __name__ == "__main__":
    sys.exit(main())
