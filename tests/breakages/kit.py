"""What softlinalg.testing has to say about softlinalg: run on a broken copy of the package, it has to notice.

    python tests/breakages/kit.py [GROUP ...]

Prints the first law that fails and returns 1, or returns 0. Only the public kit is used: its suites and assertions.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from fractions import Fraction

import numpy as np

import softlinalg
from softlinalg.testing import assertions, build_matrix, build_points, suites
from softlinalg.testing._exact import exact_pinv

CASES = 100


def kernels() -> None:
    for dtype, grade in (("float32", "S"), ("float64", "N")):
        suites.kernel(softlinalg.gaussian_kernel, dtype=dtype, grade=grade, bitwise=True, cases=CASES).raise_for_failures()


def many_points() -> None:
    """Enough points for several blocks of rows."""
    points = build_points(shape=(1500, 3), seed=0)
    assertions.assert_kernel_matrix(lambda x: softlinalg.gaussian_kernel(x, length_scale=2.0), points, length_scale=2.0)


def decompositions() -> None:
    for dtype in ("float32", "float64", "complex128"):
        suites.pinv(softlinalg.certified_pinv, dtype=dtype, bitwise=True, cases=CASES).raise_for_failures()


def iterations() -> None:
    """Where the theory promises convergence nothing may need the fallback, so it is switched off; and the bounds must hold."""

    def pinv(a: object) -> object:
        return softlinalg.certified_pinv(a, method="newton", on_failure="raise", tol=1e-9)

    suites.pinv(pinv, dtype="float64", grade="N", bitwise=True, max_cond=100, cases=60).raise_for_failures()


def slow_convergence() -> None:
    """Conditions for which an iteration takes its full number of steps, without the fallback."""
    for cond in (1e3, 1e6):
        for seed in range(3):
            case = build_matrix(shape=(6, 4), cond=cond, seed=seed)
            found = softlinalg.certified_pinv(case.A, method="newton", on_failure="raise", tol=1e-3)
            assertions.assert_pinv(found.value, case, grade="N")


def vague_ranks() -> None:
    """Singular values at the cut-off: no rank may be claimed."""
    for seed in range(12):
        case = build_matrix(shape=(5, 5), s=(1.0, 0.5, 1e-15 * (1 + seed / 8)), seed=seed)
        claimed = int(softlinalg.certified_pinv(case.A).rank)
        assert claimed == -1 or seed not in range(2, 10), f"rank {claimed} claimed for {case!r}"


def loose_bounds() -> None:
    """Diagonal matrices, few steps, and errors in fractions: bounds are then equal to the errors but for rounding, and must hold."""
    for c in (0.3, 0.5, 0.7, *(1 - 0.7**k for k in range(10, 60, 2))):
        matrix = np.diag([1.0, c])
        for tol in (0.5, 0.01):
            for ridge in (0.0, 0.25):
                if ridge:
                    result = softlinalg.certified_ridge_inverse(matrix, ridge, method="newton", tol=tol, on_failure="raise")
                else:
                    result = softlinalg.certified_pinv(matrix, method="newton", tol=tol, rtol=0.05, on_failure="raise")
                found = [Fraction(float(x)) for x in np.diag(result.value)]
                error = max(abs(x - 1 / (Fraction(a) + Fraction(ridge))) for x, a in zip(found, (1.0, c), strict=True))
                assert error <= Fraction(float(result.error_bound)), (
                    f"bound {float(result.error_bound):.17g} below the error {float(error):.17g}: diag(1, {c!r}), ridge {ridge}, tol {tol}"
                )


def scalar_bounds() -> None:
    """Inverses of numbers, accurate to the last digit, and errors in fractions: bounds of the size of a rounding must hold."""
    rng = np.random.default_rng(0)
    for ridge in (0.013, 1.7):
        values = rng.uniform(0.1, 3.0, size=(60, 1, 1))
        for method in ("auto", "newton"):
            result = softlinalg.certified_ridge_inverse(values, ridge, method=method)
            for a, x, bound in zip(values.ravel().tolist(), result.value.ravel().tolist(), result.error_bound.tolist(), strict=True):
                error = abs(Fraction(x) - 1 / (Fraction(a) + Fraction(ridge)))
                assert error <= Fraction(bound), f"bound {bound:.17g} below the error {float(error):.17g}: {a!r} + {ridge}, {method}"


def mapped_bounds() -> None:
    """The same in traced code, here torch.func.vmap: residuals are evaluated plainly there, and their rounding must be in the bounds."""
    import torch

    values = torch.tensor(np.random.default_rng(0).uniform(0.1, 3.0, size=(60, 1, 1)))

    def of_pinv(a: object) -> tuple[object, object]:
        result = softlinalg.certified_pinv(a)
        return result.value, result.error_bound

    def of_ridge_inverse(a: object) -> tuple[object, object]:
        result = softlinalg.certified_ridge_inverse(a, 0.0)
        return result.value, result.error_bound

    for invert in (of_pinv, of_ridge_inverse):
        found, bounds = torch.func.vmap(invert)(values)
        for a, x, bound in zip(values.ravel().tolist(), found.ravel().tolist(), bounds.tolist(), strict=True):
            error = abs(Fraction(x) - 1 / Fraction(a))
            assert error <= Fraction(bound), f"bound {bound:.17g} below the error {float(error):.17g}: {a!r}, {invert.__name__}"


def given_cut_offs() -> None:
    """A cut-off is relative to the largest singular value, also where that is far from the largest entry."""
    one, other = np.ones((8, 8)) / 8, np.outer([1.0, -1.0] * 4, [1.0, -1.0] * 4) / 8  # projections on two directions
    for scale in (1.0, 0.13, 1e5):
        for ratio, truth in ((0.5e-3, one / scale), (2e-3, (one + other / 2e-3) / scale)):
            found = softlinalg.pinv(scale * (one + ratio * other), rtol=1e-3)
            error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
            assert error < 1e-10, f"rtol 1e-3 and singular values {scale} (1, {ratio}) give an error of {error:.3g}"


def scaled_batches() -> None:
    """Members as far apart in size as float64 allows."""
    batch = build_matrix(shape=(4, 3), cond=10.0, batch=(3,), seed=1)
    scale = np.ldexp(1.0, [0, -900, 900])[:, None, None]
    assertions.assert_batch_independent(softlinalg.pinv, batch.A * scale, bitwise=True, poison=False)


def approximations() -> None:
    for dtype in ("float32", "float64"):
        suites.nystrom(softlinalg.nystrom, dtype=dtype, cases=60).raise_for_failures()


def attention() -> None:
    for dtype in ("float32", "float64"):
        for inverse in ("certified", "exact"):

            def attend(*arrays: object, inverse: str = inverse) -> object:
                return softlinalg.soft_attention(*arrays, inverse=inverse)

            suites.attention(attend, dtype=dtype, cases=40).raise_for_failures()


METHODS = ("auto", "cholesky", "newton", "chebyshev", "eigh")


def ridge_inverses() -> None:
    """Accuracy, batches, and bounds against exact inverses."""
    for seed in range(40):
        rank = 1 + seed % 5
        case = build_matrix(shape=(5, 5), rank=rank, cond=4.0, structure="psd", exact=True, seed=seed)
        for ridge in (2.0**-6, 2.0**-2):
            shifted = case.host + ridge * np.eye(5)
            truth = exact_pinv(shifted, 5)
            for method in _known_methods():
                result = softlinalg.certified_ridge_inverse(case.A, ridge, method=method, on_failure="raise")
                if method in ("auto", "cholesky", "eigh"):  # the iterations end where their tolerance is certified
                    assertions.assert_ridge_inverse(result.value, case, ridge)
                error, own = np.linalg.norm(result.value - truth, 2), 2.0**-53 * np.linalg.norm(truth)
                assert error <= float(result.error_bound) + own, (
                    f"bound {float(result.error_bound):.3g} below the error {error:.3g}: {case!r}"
                )
    batch = build_matrix(shape=(6, 6), cond=50.0, structure="psd", batch=(4,), seed=1)
    scale = np.array([1.0, 1e-3, 30.0, 1e3])[:, None, None]
    for method in _known_methods():

        def invert(a: object, method: str = method) -> object:
            return softlinalg.ridge_inverse(a, 0.01, method=method)

        assertions.assert_batch_independent(invert, batch.A * scale, bitwise=True, poison=False)


def corrected_members() -> None:
    """float32: members certified at once, beside one whose certificate takes a further step."""
    easy, hard = (softlinalg.gaussian_kernel(build_points(shape=(49, d), seed=0).x, length_scale=1.8) for d in (8, 2))
    batch = np.stack([easy / 128, hard, easy / 64]).astype(np.float32)

    def invert(a: object) -> object:
        return softlinalg.ridge_inverse(a, 1e-4, method="chebyshev", tol=1e-4)

    assertions.assert_batch_independent(invert, batch, bitwise=True, poison=False)


def _known_methods() -> list[str]:
    """Those of METHODS that there are."""
    known = []
    for method in METHODS:
        try:
            softlinalg.ridge_inverse(np.eye(2), 1.0, method=method)
        except softlinalg.errors.ParameterError:
            continue
        known.append(method)
    return known


def gradients() -> None:
    rng = np.random.default_rng(0)
    tall, square = build_matrix(shape=(5, 3), cond=5.0, seed=1).A, build_matrix(shape=(4, 4), cond=5.0, structure="psd", seed=2).A
    assertions.assert_gradient(softlinalg.pinv, tall, vjp=lambda a, g: softlinalg.pinv_vjp(a, softlinalg.pinv(a), g), kappa=25)
    symmetric = lambda d: (d + d.T) / 2  # noqa: E731
    assertions.assert_gradient(
        lambda a: softlinalg.ridge_inverse(a, 0.1),
        square,
        vjp=lambda a, g: _first(softlinalg.ridge_inverse_vjp(softlinalg.ridge_inverse(a, 0.1), g)),
        direction=symmetric,
        kappa=25,
    )
    g = _first(softlinalg.ridge_inverse_vjp(softlinalg.ridge_inverse(square, 0.1), rng.normal(size=(4, 4))))
    assert np.abs(g - g.T).max() <= 1e-13 * np.abs(g).max(), "the gradient by a symmetric matrix is not symmetric"
    assertions.assert_gradient(
        lambda a: softlinalg.newton_pinv(a, steps=6, alpha=0.2).value,
        square,
        vjp=lambda a, g: _first(softlinalg.newton_pinv_vjp(a, g, steps=6, alpha=0.2)),
        jvp=lambda a, d: _first(softlinalg.newton_pinv_jvp(a, d, steps=6, alpha=0.2)),
        direction=symmetric,
        kappa=25,
    )


def _first(result: object) -> object:
    return result[0] if isinstance(result, tuple) else result


def systems() -> None:
    for dtype in ("float32", "float64"):
        points = build_points(shape=(30, 2), dtype=dtype, seed=3)
        d = softlinalg.nystrom(points.x, softlinalg.Gaussian(1.0), landmarks=np.arange(0, 30, 3))
        dense = d.to_dense().astype(np.float64)
        solved = np.asarray(d.solve(np.eye(30, dtype=dtype), ridge=0.5), dtype=dtype)
        assertions.assert_ridge_inverse(solved, dense.astype(dtype), 0.5)


GROUPS: dict[str, tuple[Callable[[], None], ...]] = {
    "kernel": (many_points, kernels, attention, approximations),
    "iterations": (iterations, slow_convergence, ridge_inverses, gradients),
    "certificates": (scalar_bounds, mapped_bounds, loose_bounds, ridge_inverses, iterations, decompositions, vague_ranks),
    "pinv": (given_cut_offs, slow_convergence, gradients, decompositions, iterations),
    "ridge": (corrected_members, gradients, ridge_inverses),
    "landmarks": (approximations,),
    "nystrom": (approximations, systems),
    "attention": (attention,),
    "arrays": (scaled_batches, decompositions, attention, kernels),
}
"""The checks by what they are most likely to notice; the others follow."""


def group_of(file: str) -> str:
    """The group of a file of the package."""
    starts = {
        "_kernel": "kernel", "_filters": "iterations", "_iterations": "iterations", "_certificates": "certificates", "_pinv": "pinv",
        "_inversion": "pinv", "_newton": "pinv", "_ridge": "ridge", "_landmark": "landmarks", "_nystrom": "nystrom", "_attention": "attention",
        "_arrays": "arrays", "_inputs": "arrays", "_linalg": "arrays", "_buffers": "arrays",
    }  # fmt: skip
    return next(group for start, group in starts.items() if file.startswith(start))


def main(groups: list[str]) -> int:
    """Run the checks of the groups, then the others; 1 at the first failure."""
    every = [check for checks in GROUPS.values() for check in checks]
    chosen = list(dict.fromkeys([check for group in groups for check in GROUPS[group]] + every))
    warnings.simplefilter("ignore")
    for check in chosen:
        try:
            check()
        except Exception as error:
            print(f"{check.__name__}: {' '.join(str(error).split())[:300]}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
