"""The measured tables of docs/theory/iterations.md and the plot of the filters; rewrites both in place.

Run: python tests/benchmarks/iteration_theory.py [--docs docs/theory]

Three tables: products to reach a residual (exact counts, checked by running each iteration on a 64 x 64 matrix), the
effect of symmetrizing inside the loop, and the cost of a wrong lower end of the spectrum.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import array_api_compat.numpy as xp
import mpmath
import numpy as np
import scipy.linalg

from softlinalg import _iterations as it
from softlinalg import _norm_bounds

KAPPAS = (1e1, 1e2, 1e4, 1e6)
TOLS = (1e-3, 1e-6, 1e-12)


# ----------------------------------------------------------------------------------------------------- step counts
Method = tuple[Callable[[float, float], int], Callable[[int], int], Callable[[np.ndarray, float, int], np.ndarray]]
"""Steps from (kappa, tol), products from steps, and the iterate from (matrix with spectrum in [1/kappa, 1], kappa, steps)."""


def methods() -> dict[str, Method]:
    def identity(kappa: float) -> float:
        return 2 / (1 + 1 / kappa)

    table: dict[str, Method] = {
        "Newton from alpha A, alpha u^2 = 1.8 (published)": (
            it.newton_raphson_steps,
            it.newton_raphson_products,
            lambda b, kappa, k: it.newton_raphson(b, 1.8 * b, steps=k, xp=xp),
        ),
        "Newton from I / u": (
            lambda kappa, tol: it.newton_raphson_steps(kappa, tol, start="identity", scale=1.0),
            lambda k: it.newton_raphson_products(k, start="identity"),
            lambda b, kappa, k: it.newton_raphson(b, scale=1.0, steps=k, xp=xp),
        ),
        "Newton from 2 / (lo + hi) I": (
            lambda kappa, tol: it.newton_raphson_steps(kappa, tol, start="identity"),
            lambda k: it.newton_raphson_products(k, start="identity"),
            lambda b, kappa, k: it.newton_raphson(b, scale=identity(kappa), steps=k, xp=xp),
        ),
    }
    for order in (3, 7, 9, 19):
        table[f"hyperpower {order} from 2 / (lo + hi) I ({it.hyperpower_products(1, order=order)} a step)"] = (
            lambda kappa, tol, order=order: it.hyperpower_steps(kappa, tol, order=order, start="identity"),
            lambda k, order=order: it.hyperpower_products(k, order=order, start="identity"),
            lambda b, kappa, k, order=order: it.hyperpower(b, scale=identity(kappa), order=order, steps=k, xp=xp),
        )
    table["Chebyshev-scaled from alpha A^H (any A)"] = (
        lambda kappa, tol: it.chebyshev_newton_general_steps(kappa, tol, polish=0),
        lambda k: it.chebyshev_newton_general_products(k, polish=0),
        lambda b, kappa, k: it.chebyshev_newton_general(b, lo=1 / kappa, hi=1.0, steps=k, polish=0, xp=xp),
    )
    for polish, note in ((0, ""), (1, ", last step unscaled")):
        table[f"**Chebyshev-scaled from 2 / (lo + hi) I**{note}"] = (
            lambda kappa, tol, polish=polish: it.chebyshev_newton_steps(kappa, tol, polish=polish),
            lambda k, polish=polish: it.chebyshev_newton_products(k, polish=polish),
            lambda b, kappa, k, polish=polish: it.chebyshev_newton(b, lo=1 / kappa, hi=1.0, steps=k, polish=polish, xp=xp),
        )
    return table


def test_matrix(m: int, kappa: float) -> np.ndarray:
    """Positive definite, spectrum filling [1/kappa, 1] evenly on a logarithmic scale, both ends included."""
    q = np.linalg.qr(np.random.default_rng(0).standard_normal((m, m)))[0]
    b = (q * np.geomspace(1 / kappa, 1, m)) @ q.T
    return (b + b.T) / 2


def step_table() -> list[str]:
    head = " | ".join(f"{tol:.0e}: kappa " + ", ".join(f"{k:.0e}".replace("e+0", "e") for k in KAPPAS) for tol in TOLS)
    lines = [f"| method | {head} |", "|" + "---|" * (len(TOLS) + 1)]
    eye, deviations = np.eye(64), 0
    for name, (steps_of, products_of, run) in methods().items():
        cells = []
        for tol in TOLS:
            counts = []
            for kappa in KAPPAS:
                steps = steps_of(kappa, tol)
                counts.append(products_of(steps))
                if tol > 1e2 * 2.0**-52 * kappa * 64:  # above the floor of float64: the count must hold, and be sharp
                    b = test_matrix(64, kappa)
                    reached = np.linalg.norm(eye - b @ run(b, kappa, steps), 2) <= tol * (1 + 1e-6)
                    sharp = np.linalg.norm(eye - b @ run(b, kappa, steps - 1), 2) > tol * (1 - 1e-6)
                    deviations += not (reached and sharp)
            cells.append(" / ".join(map(str, counts)))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    outcome = (
        "every count that float64 can resolve was reached, and one step fewer never was" if deviations == 0 else f"{deviations} deviations"
    )
    return [*lines, "", f"Checked by running each on a 64 x 64 matrix in float64: {outcome}."]


# -------------------------------------------------------------------------------------------------------- rounding
def scaled_newton(b: np.ndarray, lo: float, hi: float, steps: int, *, symmetrize: bool, polish: int = 2) -> np.ndarray:
    """The loop of `chebyshev_newton`, one step at a time, so that X can be symmetrized in between."""
    two, x = 2 * np.eye(len(b), dtype=b.dtype), b.dtype.type(2 / (lo + hi)) * np.eye(len(b), dtype=b.dtype)
    delta = 2 * lo / (hi - lo)
    for k in range(steps + polish):
        delta = min(2 * delta * (2 + delta), 1e18)
        x = b.dtype.type(1 + 1 / (1 + delta) if k < steps else 1) * (x @ (two - b @ x))
        x = (x + x.T) / 2 if symmetrize else x
    return x


def plain_newton(b: np.ndarray, lo: float, hi: float, steps: int) -> np.ndarray:
    """Newton-Raphson from 2 / (lo + hi) I, symmetrized in every step."""
    x = b.dtype.type(2 / (lo + hi)) * np.eye(len(b), dtype=b.dtype)
    for _ in range(steps):
        x = 2 * x - x @ (b @ x)
        x = (x + x.T) / 2
    return x


def direct_inverses(b: np.ndarray) -> list[np.ndarray]:
    lam, q = scipy.linalg.eigh(b)
    factor = scipy.linalg.lapack.get_lapack_funcs(("potrf",), (b,))[0](b, lower=1)[0]
    lower = scipy.linalg.lapack.get_lapack_funcs(("potri",), (b,))[0](factor, lower=1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.linalg.LinAlgWarning)  # that it is ill-conditioned is the point
        lu = scipy.linalg.inv(b)
    return [lu, np.tril(lower) + np.tril(lower, -1).T, (q / lam) @ q.T]


def rounding_row(multiple: float, dtype: type, seeds: range) -> list[float]:
    """Median relative errors over seeds of the six methods at ridge = multiple * u * |A|, u the unit roundoff."""
    errors = []
    for seed in seeds:
        # On a line in float64: in the plane the smallest eigenvalue of 64 points is above its rounding.
        x = np.random.default_rng(seed).standard_normal((64, 2 if dtype == np.float32 else 1))
        w = np.exp(-((x[:, None] - x[None]) ** 2).sum(-1) / 2)
        upper = float(_norm_bounds.spectral_upper_bound(w, xp=xp))
        ridge = multiple * np.finfo(dtype).eps / 2 * upper
        b = (w + ridge * np.eye(64)).astype(dtype)
        truth = exact_inverse(b)
        lo, hi = ridge / 2, upper + 2 * ridge
        steps = it.chebyshev_newton_steps(hi / lo, float(np.finfo(dtype).eps))
        newton = it.newton_raphson_steps(hi / lo, float(np.finfo(dtype).eps), start="identity")
        with np.errstate(all="ignore"):
            found = [
                scaled_newton(b, lo, hi, steps, symmetrize=True),
                scaled_newton(b, lo, hi, steps, symmetrize=False),
                plain_newton(b, lo, hi, newton),
                *direct_inverses(b),
            ]
        errors.append([relative(y, truth) for y in found])
    return [float(e) for e in np.median(np.asarray(errors), axis=0)]


def exact_inverse(b: np.ndarray) -> np.ndarray:
    """The inverse of the very matrix given: float64 for float32, else 50 digits."""
    if b.dtype == np.float32:
        return np.linalg.inv(b.astype(np.float64))
    with mpmath.workdps(50):
        inverse = mpmath.matrix(b.tolist()) ** -1
        return np.asarray([[float(inverse[i, j]) for j in range(len(b))] for i in range(len(b))])


def relative(y: np.ndarray, truth: np.ndarray) -> float:
    y = y.astype(np.float64)
    y = (y + y.T) / 2
    return float(np.linalg.norm(y - truth, 2) / np.linalg.norm(truth, 2)) if np.isfinite(y).all() else float("inf")


def rounding_table() -> list[str]:
    names = ["scaled, symmetrized each step", "**scaled, as implemented**", "Newton, symmetrized each step", "LU", "Cholesky", "eigh"]
    lines = ["| type | ridge / (u norm) | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2)]
    for dtype, multiples, seeds in ((np.float32, (3, 10, 100, 1e3, 1e5), range(5)), (np.float64, (10, 1e3), range(3))):
        for multiple in multiples:
            cells = ["overflow" if not np.isfinite(e) else f"{e:.0e}" for e in rounding_row(multiple, dtype, seeds)]
            lines.append(f"| {np.dtype(dtype).name} | {multiple:g} | " + " | ".join(cells) + " |")
    return lines


# ------------------------------------------------------------------------------------------------- wrong lower end
def interval_table() -> list[str]:
    kappa, tol = 1e4, 1e-3
    steps = it.chebyshev_newton_steps(kappa, tol, polish=0)
    lam = np.concatenate([np.geomspace(1 / kappa, 1, 20001), np.linspace(1 / kappa, 1, 20001)])
    lines = ["| lo / smallest eigenvalue | residual after the same steps |", "|---|---|"]
    for factor in (0.1, 1 / 3, 1.0, 3.0, 10.0):
        f = it.chebyshev_newton_filter(lam, lo=factor / kappa, hi=1.0, steps=steps, polish=0)
        lines.append(f"| {factor:.2g} | {np.abs(1 - lam * f).max():.1e} |")
    more = it.chebyshev_newton_steps(10 * kappa, tol, polish=0)
    return [*lines, "", f"kappa 1e4, {steps} steps, asked for {tol:.0e}; {more} steps are needed with a tenth of the true lower end."]


# ------------------------------------------------------------------------------------------------------- the plot
def plot_filters(path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    s = np.geomspace(1e-6, 1, 4000)
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.6))
    blues = plt.get_cmap("viridis")
    for i, k in enumerate((5, 10, 15, 20)):
        axes[0].semilogx(s, s * it.newton_raphson_filter(s, steps=k, alpha=1.8), color=blues(i / 4), label=f"k = {k}")
    axes[0].set_title("Newton-Raphson from alpha A, alpha = 1.8", fontsize=10)
    lo = 1e-4
    for i, k in enumerate((3, 5, 7, 9)):
        axes[1].semilogx(s, s * it.chebyshev_newton_filter(s, lo=lo, hi=1.0, steps=k - 1), color=blues(i / 4), label=f"k = {k}")
    axes[1].axvline(lo, color="black", linewidth=0.8, linestyle=":")
    axes[1].set_title("Chebyshev-scaled on [1e-4, 1], last step unscaled", fontsize=10)
    curves = {
        "Newton from alpha A": s * it.newton_raphson_filter(s, steps=8, alpha=1.8),
        "Newton from 2/(lo+hi) I": s * it.newton_raphson_identity_filter(s, steps=8, scale=2 / (1 + lo)),
        "hyperpower 3": s * it.hyperpower_filter(s, order=3, steps=5, scale=2 / (1 + lo)),
        "hyperpower 7": s * it.hyperpower_filter(s, order=7, steps=3, scale=2 / (1 + lo)),
        "Chebyshev-scaled": s * it.chebyshev_newton_filter(s, lo=lo, hi=1.0, steps=7),
    }
    colors = ("#b2182b", "#ef8a62", "#999999", "#4d4d4d", "#2166ac")
    for (name, y), color in zip(curves.items(), colors, strict=True):
        axes[2].semilogx(s, y, color=color, label=name)
    axes[2].axvline(lo, color="black", linewidth=0.8, linestyle=":")
    axes[2].set_title("like work: 13 to 16 products", fontsize=10)
    for axis in axes:
        axis.axhline(1.0, color="black", linewidth=0.5)
        axis.set_ylim(-0.05, 1.15)
        axis.set_xlabel("eigenvalue s of A")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=9, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4 if axis is not axes[2] else 2)
    axes[0].set_ylabel("s f(s): 1 where inverted")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=Path, default=Path(__file__).resolve().parents[2] / "docs" / "theory")
    arguments = parser.parse_args()
    page = arguments.docs / "iterations.md"
    text = page.read_text(encoding="utf-8")
    for name, table in (("steps", step_table()), ("rounding", rounding_table()), ("interval", interval_table())):
        block = f"<!-- begin {name} -->\n" + "\n".join(table) + f"\n<!-- end {name} -->"
        text, found = re.subn(rf"<!-- begin {name} -->.*?<!-- end {name} -->", lambda _, block=block: block, text, flags=re.DOTALL)
        if found != 1:
            raise SystemExit(f"{page} must hold one block {name!r}; found {found}.")
        print("\n".join(table), "\n")
    page.write_text(text, encoding="utf-8")
    plot_filters(arguments.docs / "filters.png")


if __name__ == "__main__":
    main()
