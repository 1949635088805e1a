"""Matrix products against true error, in the regime of SOFT attention: writes docs/benchmarks/products.md and its plot.

Run: python tests/benchmarks/products_against_error.py [--output docs/benchmarks]

Unit-diagonal Gaussian cores W with smallest eigenvalue 1e-4 or below, inverse of W + 0.01 I in float32. The truth is
the float64 Cholesky inverse of the very same float32 matrix plus 0.01 I, its own error checked against 40 digits at m = 49. All
numbers are counts and errors: none depends on the speed of the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import array_api_compat.numpy as xp
import mpmath
import numpy as np
import scipy.linalg
import scipy.spatial

from softlinalg import _certificates, _iterations, _norm_bounds

RIDGE = 0.01
TARGET = 1e-3
SIZES = (49, 64, 196, 784)
SEEDS = (0, 1, 2)
MAX_PRODUCTS = 80
LAST = "Chebyshev-scaled, last step in float64"


# ------------------------------------------------------------------------------------------------------- matrices
def gaussian_cloud(m: int, rng: np.random.Generator) -> np.ndarray:
    """Landmarks drawn from a standard normal in the plane, length scale one."""
    return gaussian_core(rng.standard_normal((m, 2)), 1.0)


def token_field(m: int, rng: np.random.Generator) -> np.ndarray:
    """Landmarks of an image: 32 smooth features on a grid of side sqrt(m), length scale the median distance."""
    side = round(m**0.5)
    row, column = np.meshgrid(np.arange(side) / side, np.arange(side) / side, indexing="ij")
    waves = []
    for _ in range(32):
        frequency, phase = rng.uniform(-1, 1, size=2), rng.uniform(0, 2 * np.pi)
        waves.append(np.cos(2 * np.pi * (frequency[0] * row + frequency[1] * column) + phase).ravel())
    x = np.stack(waves, axis=1)
    return gaussian_core(x, float(np.sqrt(np.median(scipy.spatial.distance.pdist(x, "sqeuclidean")))))


def gaussian_core(x: np.ndarray, length_scale: float) -> np.ndarray:
    """exp(-|x_i - x_j|^2 / (2 l^2)) in float32, unit diagonal."""
    w = np.exp(-scipy.spatial.distance.cdist(x, x, "sqeuclidean") / (2 * length_scale**2))
    np.fill_diagonal(w, 1.0)
    return w.astype(np.float32)


FAMILIES: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {"cloud": gaussian_cloud, "tokens": token_field}


# --------------------------------------------------------------------------------------------------------- methods
class Point(NamedTuple):
    """One iterate: what it cost and how far it is from the inverse, both relative to |B^-1|_2."""

    products: int
    error: float
    bound: float
    """Certified upper bound of `error`; infinite where there is none."""


class Core(NamedTuple):
    """A ridged core with all that is known about it."""

    w: np.ndarray
    b: np.ndarray
    lo: float
    hi: float
    truth: np.ndarray
    eigenvalues: np.ndarray


def make_core(family: str, m: int, seed: int) -> Core:
    w = FAMILIES[family](m, np.random.default_rng(seed))
    b = w + np.float32(RIDGE) * np.eye(m, dtype=np.float32)
    exact = w.astype(np.float64) + RIDGE * np.eye(m)
    truth = scipy.linalg.cho_solve(scipy.linalg.cho_factor(exact), np.eye(m))
    upper = float(_norm_bounds.spectral_upper_bound(w, xp=xp))
    # Rounding in W may push an eigenvalue below zero by about eps |W|: it stays above RIDGE / 2, well within T3.
    return Core(w, b, RIDGE, upper + RIDGE, truth, np.linalg.eigvalsh(w.astype(np.float64)))


def published(core: Core) -> Iterator[tuple[int, np.ndarray]]:
    alpha = float(_iterations.published_alpha(core.w, xp=xp))
    x = _iterations.adjoint_start(core.b, alpha, xp=xp)
    for k in range(1, MAX_PRODUCTS // 2 + 1):
        x = _iterations.newton_raphson(core.b, x, steps=1, xp=xp)
        yield _iterations.newton_raphson_products(k), x


def identity_newton(core: Core) -> Iterator[tuple[int, np.ndarray]]:
    yield from identity_hyperpower(core, 2)


def identity_hyperpower(core: Core, order: int) -> Iterator[tuple[int, np.ndarray]]:
    c = 2 / (core.lo + core.hi)
    x = _iterations.hyperpower(core.b, scale=c, order=order, steps=1, xp=xp)
    k, products = 1, _iterations.hyperpower_products(1, order=order, start="identity")
    while products <= MAX_PRODUCTS:
        yield products, x
        k += 1
        x, products = (
            _iterations.hyperpower(core.b, x, order=order, steps=1, xp=xp),
            _iterations.hyperpower_products(k, order=order, start="identity"),
        )


def chebyshev(core: Core) -> Iterator[tuple[int, np.ndarray]]:
    for k in range(16):  # k scaled doublings and one polishing step
        yield _iterations.chebyshev_newton_products(k), _iterations.chebyshev_newton(core.b, lo=core.lo, hi=core.hi, steps=k, xp=xp)


def chebyshev_unpolished(core: Core) -> Iterator[tuple[int, np.ndarray]]:
    for k in range(1, 16):
        x = _iterations.chebyshev_newton(core.b, lo=core.lo, hi=core.hi, steps=k, polish=0, xp=xp)
        yield _iterations.chebyshev_newton_products(k, polish=0), x


METHODS: dict[str, Callable[[Core], Iterator[tuple[int, np.ndarray]]]] = {
    "published": published,
    "Newton, 2/(lo+hi) I": identity_newton,
    "hyperpower 3": lambda core: identity_hyperpower(core, 3),
    "hyperpower 7": lambda core: identity_hyperpower(core, 7),
    "Chebyshev-scaled": chebyshev,
}


Results = dict[tuple[str, int], list[tuple[Core, dict[str, list[Point]]]]]
"""By core and size, for each seed: the core, and the points of each method."""


# ----------------------------------------------------------------------------------------------------- measurement
def measure(core: Core, products: int, x: np.ndarray) -> Point:
    """The error of an iterate, and the bound that one float64 residual (not counted) gives for it."""
    wide = x.astype(np.float64)
    # The residual is taken before symmetrizing, which would add rounding of eps kappa^2 to it.
    residual = _certificates.certify_inverse(exact_matrix(core), wide, slices=1, refine=False, xp=xp).residual
    return Point(products, relative_error(core, wide), float(residual))


def measure_last_step(core: Core, products: int, x: np.ndarray) -> Point:
    """The last, unscaled step in float64: X' = X + X R. Its two products are those of the certificate of X.

    B^-1 - X' = (B^-1 - X) R, so that |X' - B^-1| <= bound(X) rho, and rounding X' to float32 adds eps |X'|.
    """
    wide, exact = x.astype(np.float64), exact_matrix(core)
    certificate = _certificates.certify_inverse(exact, wide, slices=1, refine=True, xp=xp)
    last = wide + wide @ (np.eye(len(exact)) - exact @ wide)
    # Rounding in R reaches X R as |X| gamma_m (1 + |B| |X|); the other float64 terms are smaller, the factor two holds them.
    size = np.linalg.norm(wide)
    rounding = 2 * (len(exact) + 2) * 2.0**-52 * size * (1 + np.linalg.norm(exact) * size) + 2.0**-23 * np.linalg.norm(last)
    bound = (float(certificate.error_bound) * float(certificate.residual) + rounding) / symmetric_norm(core.truth)
    return Point(products + 2, relative_error(core, last.astype(np.float32).astype(np.float64)), float(bound))


def exact_matrix(core: Core) -> np.ndarray:
    return core.w.astype(np.float64) + RIDGE * np.eye(len(core.w))


def relative_error(core: Core, x: np.ndarray) -> float:
    """|sym(X) - B^-1| / |B^-1|: every caller symmetrizes once, at the end."""
    if not np.isfinite(x).all():
        return float("inf")
    return symmetric_norm((x + x.T) / 2 - core.truth) / symmetric_norm(core.truth)


def symmetric_norm(a: np.ndarray) -> float:
    """|A|_2 of a symmetric matrix, by its extreme eigenvalues."""
    last = len(a) - 1
    ends = [scipy.linalg.eigh(a, eigvals_only=True, subset_by_index=[i, i], check_finite=False)[0] for i in (0, last)]
    return float(max(abs(ends[0]), abs(ends[1])))


def curve(core: Core, method: str) -> list[Point]:
    with np.errstate(all="ignore"):
        if method == LAST:
            return [measure_last_step(core, products, x) for products, x in chebyshev_unpolished(core)]
        return [measure(core, products, x) for products, x in METHODS[method](core)]


def products_to(points: list[Point], target: float, *, certified: bool = False) -> int | None:
    """Fewest products for which the error, or the certified bound, is at most `target`."""
    return next((p.products for p in points if (p.bound if certified else p.error) <= target), None)


def truth_error(core: Core) -> float:
    """Relative error of the float64 truth against 40 digits."""
    with mpmath.workdps(40):
        m = len(core.w)
        exact = mpmath.matrix(core.w.astype(np.float64).tolist()) + mpmath.mpf(RIDGE) * mpmath.eye(m)
        inverse = exact**-1
        difference = np.asarray([[float(inverse[i, j] - mpmath.mpf(float(core.truth[i, j]))) for j in range(m)] for i in range(m)])
    return float(np.linalg.norm(difference, 2) / np.linalg.norm(core.truth, 2))


def shown(value: int | None) -> str:
    return "never" if value is None else str(value)


def spread(values: list[int | None]) -> str:
    """One number where the seeds agree, else the range."""
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return "never" if not known else f"{min(known)}-never"
    return str(known[0]) if min(known) == max(known) else f"{min(known)}-{max(known)}"


def run(sizes: tuple[int, ...]) -> Results:
    results: Results = {}
    for family in FAMILIES:
        for m in sizes:
            for seed in SEEDS:
                core = make_core(family, m, seed)
                results.setdefault((family, m), []).append((core, {name: curve(core, name) for name in (*METHODS, LAST)}))
                assert core.eigenvalues[0] <= 1e-4
                print(f"{family} m={m} seed={seed}: smallest eigenvalue {core.eigenvalues[0]:.1e}", flush=True)
    return results


def reach_table(results: Results) -> list[str]:
    names = [*METHODS, LAST]
    lines = ["| core | m | eigenvalues of W | " + " | ".join(names) + " | the same, certified |", "|" + "---|" * (len(names) + 4)]
    for (family, m), runs in results.items():
        smallest, largest = max(core.eigenvalues[0] for core, _ in runs), max(core.eigenvalues[-1] for core, _ in runs)
        cells = [spread([products_to(curves[name], TARGET) for _, curves in runs]) for name in names]
        cells.append(spread([products_to(curves[LAST], TARGET, certified=True) for _, curves in runs]))
        lines.append(f"| {family} | {m} | below {max(smallest, 1e-7):.0e} to {largest:.0f} | " + " | ".join(cells) + " |")
    return lines


def prior_table(results: Results) -> tuple[list[str], float]:
    lines = [
        "| core | m | hi / lo | scaled steps | products | true error | certified bound | published: products to 1e-3 | ratio |",
        "|" + "---|" * 9,
    ]
    ratios = []
    for (family, m), runs in results.items():
        rows = []
        for core, curves in runs:
            # The certificate is a Frobenius norm, up to m times the square of the residual's spectral norm: ask for tol / m.
            steps = _iterations.chebyshev_newton_steps(core.hi / core.lo, TARGET / m)
            x = _iterations.chebyshev_newton(core.b, lo=core.lo, hi=core.hi, steps=steps, polish=0, xp=xp)
            point = measure_last_step(core, _iterations.chebyshev_newton_products(steps, polish=0), x)
            published_products = products_to(curves["published"], TARGET)
            ratio = point.products / (published_products or MAX_PRODUCTS)
            row = (
                f"| {family} | {m} | {core.hi / core.lo:.0f} | {steps} | {point.products} | {point.error:.0e} | {point.bound:.0e} "
                f"| {shown(published_products)} | {ratio:.2f} |"
            )
            rows.append((point.bound <= TARGET, ratio, row))
        certified = all(row[0] for row in rows)
        worst = max(rows, key=lambda row: row[1])
        ratios.append(worst[1] if certified else float("inf"))
        lines.append(worst[2])
    return lines, max(ratios)


def error_table(results: Results, budgets: tuple[int, ...]) -> list[str]:
    lines = ["| core | m | method | " + " | ".join(f"{b}" for b in budgets) + " |", "|" + "---|" * (len(budgets) + 3)]
    sizes = [m for _, m in results]
    for (family, m), runs in results.items():
        if m not in (min(sizes), max(sizes)):
            continue  # the plot shows them all
        for name in (*METHODS, LAST):
            cells = []
            for budget in budgets:
                errors = [min([p.error for p in curves[name] if p.products <= budget], default=float("nan")) for _, curves in runs]
                cells.append("-" if np.isnan(max(errors)) else f"{max(errors):.0e}")
            lines.append(f"| {family} | {m} | {name} | " + " | ".join(cells) + " |")
    return lines


TEXT = """# Matrix products against error

Inverse of W + 0.01 I in float32, W a unit-diagonal Gaussian core whose smallest eigenvalue is 1e-4 or below: the regime of SOFT
attention. Written by `tests/benchmarks/products_against_error.py`; run it again to check. All numbers are counts and errors, so
they do not depend on the machine, but for the last digits of float32 rounding.

* Cores: "cloud", landmarks normal in the plane, length scale 1; "tokens", 32 smooth features on a grid of side sqrt(m),
  length scale the median distance. Three seeds each; a range where they differ.
* Error: |X - B^-1|_2 / |B^-1|_2, with B = W + 0.01 I and its inverse by Cholesky in float64 (that truth is right to {truth:.0e}, checked
  against 40 digits at m = 49). X is symmetrized once, at the end.
* Published: V_0 = alpha (W + 0.01 I), alpha = 0.9 * 2 / max_i(sum_j W_ij)^2, two products a step.
* The others start at 2 / (lo + hi) I with lo = 0.01 and hi = 0.01 + min(|W|_1, |W|_F): nothing else is known about the
  spectrum, and the first step needs no product. Chebyshev-scaled: all steps scaled but the last one.
* Last step in float64: the same number of products. R = I - B X and X R, which that step needs, are also all that the
  certificate needs, since B^-1 - X' = (B^-1 - X) R for X' = X + X R. So the guarantee costs nothing beyond the higher precision of two
  products, and float32 rounding of the earlier steps is squared away.

## Products to reach a relative error of 1e-3

{reach}

## What is known before the first product

`chebyshev_newton_steps(hi / lo, 1e-3 / m)` scaled steps in float32, then one in float64: the count is a theorem
(`docs/theory/iterations.md`), and no number is read back on the way. The worst of three seeds by the last column, the ratio to the products after which
the published iteration has an error of 1e-3 (which it does not know).

{prior}

{verdict}

## Relative error after a number of products, worst of three seeds

Smallest and largest size; the plot shows all, for the first seed.

{errors}

![error against products](products.png)
"""


def plot(results: Results, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colors = {
        "published": "#b2182b",
        "Newton, 2/(lo+hi) I": "#ef8a62",
        "hyperpower 3": "#999999",
        "hyperpower 7": "#4d4d4d",
        "Chebyshev-scaled": "#67a9cf",
        LAST: "#053061",
    }
    sizes = sorted({m for _, m in results})
    figure, axes = plt.subplots(len(FAMILIES), len(sizes), figsize=(3.2 * len(sizes), 5.6), sharex=True, sharey=True, squeeze=False)
    for i, family in enumerate(FAMILIES):
        for j, m in enumerate(sizes):
            axis = axes[i][j]
            for name, color in colors.items():
                points = results[family, m][0][1][name]
                axis.semilogy(
                    [p.products for p in points],
                    [p.error for p in points],
                    marker="o",
                    markersize=3,
                    linewidth=1.5,
                    color=color,
                    label=name,
                )
            axis.axhline(TARGET, color="black", linewidth=0.8, linestyle=":")
            axis.set_title(f"{family}, m = {m}", fontsize=10)
            axis.set_xlim(0, 72)
            axis.set_ylim(1e-8, 2)
            axis.grid(alpha=0.25)
            if i == len(FAMILIES) - 1:
                axis.set_xlabel("m x m x m products")
        axes[i][0].set_ylabel("relative error of the inverse")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 0.9))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).resolve().parents[2] / "docs" / "benchmarks")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    arguments = parser.parse_args()
    results = run(tuple(arguments.sizes))
    prior, ratio = prior_table(results)
    verdict = (
        f"Certified to 1e-3 in every case; the largest ratio is **{ratio:.2f}**: at most half the products of the published iteration."
        if ratio <= 0.5
        else f"Not in every case certified with half the products: the largest ratio is {ratio:.2f}."
    )
    text = TEXT.format(
        truth=truth_error(make_core("cloud", 49, 0)),
        reach="\n".join(reach_table(results)),
        prior="\n".join(prior),
        verdict=verdict,
        errors="\n".join(error_table(results, (8, 12, 16, 20, 24, 32, 40, 48, 56, 64))),
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "products.md").write_text(text, encoding="utf-8")
    plot(results, arguments.output / "products.png")
    print(text)


if __name__ == "__main__":
    main()
