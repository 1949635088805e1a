"""Test a pseudo-inverse of your own: a scorecard of four ways to write one, and what their errors mean on real measurements.

Each function is held to the laws of the Moore-Penrose pseudo-inverse on more than a hundred matrices whose answer is known, by
`softlinalg.testing.suites`. Then each fits a line to data of scikit-learn with columns that say the same twice, as real tables have
them (breast cancer: radius, perimeter and area of the same cells; diabetes: one column for each sex beside a constant), where a wrong
cut-off makes coefficients without meaning. Replace `my_pinv` by yours.

    python examples/testing_your_pinv.py [--cases 120] [--output testing_your_pinv.png] [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes
from tqdm import tqdm

import softlinalg
from softlinalg.testing import Report, suites


def my_pinv(a: np.ndarray) -> np.ndarray:
    """Normal equations, as in many a textbook: the square of the condition, and nothing cut off."""
    transposed = np.swapaxes(a, -1, -2)
    return np.linalg.inv(transposed @ a) @ transposed if a.shape[-2] >= a.shape[-1] else transposed @ np.linalg.inv(a @ transposed)


def my_careful_pinv(a: np.ndarray) -> np.ndarray:
    """Singular values, with a cut-off that knows the data type and the size."""
    if 0 in a.shape:
        return np.swapaxes(a, -1, -2)
    u, s, vh = np.linalg.svd(a, full_matrices=False)
    kept = s > max(a.shape[-2:]) * np.finfo(a.dtype).eps * s[..., :1]
    inverse = np.where(kept, 1 / np.where(kept, s, 1), 0)
    return np.swapaxes(vh, -1, -2) @ (inverse[..., None] * np.swapaxes(u, -1, -2))


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "normal equations": my_pinv,
    "singular values, careful": my_careful_pinv,
    "numpy.linalg.pinv": np.linalg.pinv,
    "softlinalg.pinv": softlinalg.pinv,
}


def tables() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Real tables (rows, columns) with a constant and columns that depend on each other, and what to predict."""
    cells, kind = load_breast_cancer(return_X_y=True)
    cells = (cells - cells.mean(0)) / cells.std(0)
    patients, progress = load_diabetes(return_X_y=True, scaled=False)
    sexes = (patients[:, 1:2] == [1, 2]).astype(float)
    return {
        "breast cancer": (np.column_stack([np.ones(len(cells)), cells, cells[:, 0] + cells[:, 1]]), kind.astype(float)),
        "diabetes": (np.column_stack([np.ones(len(patients)), patients[:, :1], sexes, patients[:, 2:]]), progress),
    }


def error_of_fit(function: Callable[[np.ndarray], np.ndarray], table: np.ndarray, y: np.ndarray) -> float:
    """Distance of the fitted values in float32 from those of least squares in float64, relative; NaN where the function gave up."""
    try:
        found = function(table.astype(np.float32)).astype(float) @ y
    except np.linalg.LinAlgError:
        return np.nan
    exact = np.linalg.lstsq(table, y, rcond=1e-10)[0]
    return float(np.linalg.norm(table @ (found - exact)) / np.linalg.norm(table @ exact))


def share(report: Report, law: str) -> float:
    """Failed cases of a law in percent; NaN where it was not asked."""
    result = next((result for result in report.properties if result.name == law), None)
    return np.nan if result is None or not result.cases else 100 * result.failures / result.cases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=120, help="matrices for each function and data type, beside those of the gallery")
    parser.add_argument("--output", type=Path, default=Path("testing_your_pinv.png"))
    parser.add_argument("--quick", action="store_true", help="10 matrices: does it run?")
    options = parser.parse_args()
    cases = 10 if options.quick else options.cases
    reports: dict[str, Report] = {}
    jobs = [(name, dtype) for name in FUNCTIONS for dtype in ("float32", "float64")]
    with np.errstate(all="ignore"):
        for name, dtype in tqdm(jobs, desc="suites"):
            reports[f"{name}, {dtype}"] = suites.pinv(FUNCTIONS[name], dtype=dtype, cases=cases, target=name)
    for report in reports.values():
        print(f"{report.target}, {report.dtype}: {report.failed_cases} of {report.cases} cases failed", end="")
        print("".join(f"; {result.name} {result.failures}/{result.cases}" for result in report.failures))
    worst = reports["normal equations, float32"].failures[0]
    if worst.smallest is not None:
        print(f"the simplest case on which normal equations break '{worst.words}':\n    {worst.smallest.reproduction}")

    fits = {}
    for title, (table, y) in tables().items():
        with np.errstate(all="ignore"):
            fits[title] = {name: error_of_fit(function, table, y) for name, function in FUNCTIONS.items()}
        exact = np.linalg.matrix_rank(table, rtol=1e-10)
        print(f"{title}: {table.shape[1]} columns of rank {exact}; error of the fit in float32:")
        print("\n".join(f"    {name}: {error:.1e}" for name, error in fits[title].items()))

    draw(reports, fits, options.output)
    print(f"picture: {options.output}")


def draw(reports: dict[str, Report], fits: dict[str, dict[str, float]], output: Path) -> None:
    """Laws by function on the left, errors of the fits on the right."""
    laws = [result.name for result in next(iter(reports.values())).properties]
    values = np.array([[share(report, law) for law in laws] for report in reports.values()])
    laws = [law for law, column in zip(laws, values.T, strict=True) if not np.isnan(column).all()]
    values = values[:, ~np.isnan(values).all(axis=0)]
    figure, axes = plt.subplots(1, 2, figsize=(15, 4.2), width_ratios=(5, 2), layout="constrained")
    axes[0].imshow(np.sqrt(values), cmap="OrRd", vmin=0, vmax=10, aspect="auto")
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value > 0:
                text = f"{value:.0f}" if value >= 1 else "<1"
                axes[0].text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value > 40 else "black")
    axes[0].set_xticks(range(len(laws)), laws, rotation=40, ha="right", fontsize=8)
    axes[0].set_yticks(range(len(reports)), list(reports), fontsize=9)
    axes[0].set_title("Cases in which a law fails (percent; empty: none)", fontsize=10)
    width = 0.8 / len(fits)
    names = list(FUNCTIONS)
    for i, (title, errors) in enumerate(fits.items()):
        places = np.arange(len(names)) + (i - (len(fits) - 1) / 2) * width
        axes[1].barh(places, [errors[name] for name in names], width, label=title)
    axes[1].set_yticks(range(len(names)), names, fontsize=9)
    axes[1].invert_yaxis()
    axes[1].set(xscale="log", xlim=(1e-8, None), xlabel="error of the fitted values, relative", title="A linear fit in float32")
    axes[1].axvline(1, color="black", linestyle=":")
    axes[1].legend()
    figure.savefig(output, dpi=120)


if __name__ == "__main__":
    main()
