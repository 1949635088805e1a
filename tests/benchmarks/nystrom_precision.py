"""How the Nystrom factorisation should be computed: the tables of docs/theory/nystrom.md.

Data: 2,000 rows of protein (UCI 265) and bike (UCI 275), standardised, rounded to float32; the exact kernel matrix K is that of
the rounded rows in float64. Landmarks are 150 rows, each taken twice. "truth" is C W^-1 C^T of the 150 in float64.

    python tests/benchmarks/nystrom_precision.py
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.linalg import solve_triangular
from sklearn.kernel_approximation import Nystroem

from softlinalg import Gaussian, median_length_scale, nystrom
from softlinalg._nystrom_core import triangularize, whiten

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
EPS = float(np.finfo(np.float32).eps)


def rows_of(name: str, count: int) -> np.ndarray:
    table = np.loadtxt(DATA / f"{name}.csv.gz", delimiter=",")[:, :-1]
    table = table[:, table.std(0) > 0]
    table = (table - table.mean(0)) / table.std(0)
    return table[np.random.default_rng(0).permutation(len(table))[:count]].astype(np.float32)


def absolute_cut(x: np.ndarray, kernel: Gaussian, rows: np.ndarray) -> np.ndarray:
    model = Nystroem(gamma=0.5 / kernel.length_scale**2, n_components=len(rows), random_state=0).fit(x[rows])
    return model.transform(x)


def eigenvectors(x: np.ndarray, kernel: Gaussian, rows: np.ndarray, rtol: float = 1e-8) -> np.ndarray:
    values, vectors = np.linalg.eigh(kernel(x[rows].astype(np.float64)))
    keep = values > rtol * values[-1]
    return kernel(x, x[rows]) @ (vectors[:, keep] / np.sqrt(values[keep])).astype(x.dtype)


def triangular(x: np.ndarray, kernel: Gaussian, rows: np.ndarray, *, pivots: bool) -> np.ndarray:
    w = kernel(x[rows].astype(np.float64))
    if pivots:
        found = whiten(w, rtol=1e-8, noise=EPS**2, func="", xp=np)
        rows, matrix = rows[found.order], found.map
    else:
        values, vectors = np.linalg.eigh(w)
        keep = values > 1e-8 * values[-1]
        matrix = triangularize(vectors[:, keep] / np.sqrt(values[keep]), xp=np)[0]
    return kernel(x, x[rows]) @ matrix.astype(x.dtype)


def shifted_cholesky(x: np.ndarray, kernel: Gaussian, rows: np.ndarray) -> np.ndarray:
    """All in float32: W + shift I = L L^T, F = C L^-T, shift = sqrt(m) eps |W|, ten times as much on failure."""
    w = kernel(x[rows])
    shift = np.float32(np.sqrt(len(rows)) * EPS * np.linalg.norm(w, 2))
    while True:
        try:
            factor = np.linalg.cholesky(w + shift * np.eye(len(rows), dtype=np.float32))
            return solve_triangular(factor, kernel(x, x[rows]).T, lower=True).T
        except np.linalg.LinAlgError:
            shift *= 10


def eigenvectors_of_float32(x: np.ndarray, kernel: Gaussian, rows: np.ndarray) -> np.ndarray:
    """W in float32, its eigenvectors in float64, cut at sqrt(m) eps max diag(W): where the device has no float64."""
    values, vectors = np.linalg.eigh(kernel(x[rows]).astype(np.float64))
    keep = values > max(1e-8 * values[-1], np.sqrt(len(rows)) * EPS)
    return kernel(x, x[rows]) @ (vectors[:, keep] / np.sqrt(values[keep])).astype(x.dtype)


FORMS: dict[str, Callable[[np.ndarray, Gaussian, np.ndarray], np.ndarray]] = {
    "scikit-learn 1.9 Nystroem: absolute cut 1e-12": absolute_cut,
    "eigenvectors, W in float64, cut 1e-8": eigenvectors,
    "the same, triangular, order of the landmarks": lambda *a: triangular(*a, pivots=False),
    "the same, triangular, order of pivots (used)": lambda *a: triangular(*a, pivots=True),
    "eigenvectors, W in float32, cut sqrt(m) eps (used without float64)": eigenvectors_of_float32,
    "shifted Cholesky in float32": shifted_cholesky,
}


def table_of_forms() -> None:
    print(
        "| form, blocks in float32 | " + " | ".join(f"{name}, {f:g} median" for name in ("protein", "bike") for f in (0.5, 1.0, 2.0)) + " |"
    )
    print("|-|" + "-|" * 6)
    cells: dict[str, list[str]] = {"truth": [], **{name: [] for name in FORMS}}
    for name in ("protein", "bike"):
        x = rows_of(name, 2000)
        for factor in (0.5, 1.0, 2.0):
            kernel = Gaussian(factor * median_length_scale(x, rng=0))
            k = kernel(x.astype(np.float64))
            once = np.random.default_rng(1).permutation(len(x))[:150]
            best = k - k[:, once] @ np.linalg.solve(k[np.ix_(once, once)], k[once])
            cells["truth"].append(f"{np.linalg.norm(best) / np.linalg.norm(k):.1e}, {np.trace(best) / len(x):.2e}")
            for form, features in FORMS.items():
                f = features(x, kernel, np.concatenate([once, once])).astype(np.float64)
                left = k - f @ f.T
                lowest = np.linalg.eigvalsh(left)[0] / np.linalg.norm(k, 2)
                ratio = np.linalg.norm(left) / np.linalg.norm(best)
                cells[form].append(f"{ratio:.3f}, {np.trace(left) / len(x):.2e}, {min(lowest, 0):.0e}")
    for form, row in cells.items():
        print(f"| {form} | " + " | ".join(row) + " |")


def table_of_cuts() -> None:
    cuts = (1e-6, 1e-8, 1e-10, 1e-12, 1e-14)
    print("\n| data, length scale, type | " + " | ".join(f"{c:.0e}" for c in cuts) + " |")
    print("|-|" + "-|" * len(cuts))
    for name in ("protein", "bike"):
        base = rows_of(name, 2000)
        for factor in (1.0, 3.0):
            kernel = Gaussian(factor * median_length_scale(base, rng=0))
            k = kernel(base.astype(np.float64))
            rows = np.random.default_rng(1).permutation(len(base))[:500]
            for dtype in ("float32", "float64"):
                row = []
                for cut in cuts:
                    f = eigenvectors(base.astype(dtype), kernel, rows, cut).astype(np.float64)
                    left = k - f @ f.T
                    row.append(f"{np.trace(left) / len(k):.2e}, {min(np.min(np.diag(left)), 0):.0e}")
                print(f"| {name}, {factor:g} median, {dtype} | " + " | ".join(row) + " |")


def table_of_floors() -> None:
    print(
        "\n| data, length scale | error in float32 | of the same landmarks in float64 | difference | floor reported | in float64 blocks |"
    )
    print("|-|-|-|-|-|-|")
    for name in ("protein", "bike"):
        x = rows_of(name, 6000)
        for factor in (0.5, 1.0, 2.0, 3.0, 5.0):
            kernel = Gaussian(factor * median_length_scale(x, rng=0))
            d = nystrom(x, kernel, rank=300, landmarks="rpcholesky", rng=0)
            e = nystrom(x.astype(np.float64), kernel, landmarks=d.landmarks.astype(np.float64), rtol=1e-8)
            a, b = d.relative_trace_error, e.relative_trace_error
            again = "yes" if d._map.in_float64 else "no"
            print(f"| {name}, {factor:g} median | {a:.4e} | {b:.4e} | {abs(a - b):.0e} | {d.trace_error_floor / d.trace:.0e} | {again} |")


if __name__ == "__main__":
    if not DATA.is_dir():
        sys.exit(f"the data sets are not in {DATA}")
    warnings.simplefilter("ignore")
    table_of_forms()
    table_of_cuts()
    table_of_floors()
