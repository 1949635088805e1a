"""The laws of a Nystrom approximation, and the points, kernels and landmarks that they are measured on."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat as compat
import numpy as np

from softlinalg import Gaussian
from softlinalg._typing import Array
from softlinalg.testing import ratios
from softlinalg.testing._laws import Host, Law, Subject, Trial, first_cases, kind_kept, mixed, not_answered, same_bits
from softlinalg.testing._points import PointCase, build_points, gaussian_values

__all__ = ["Linear", "LowRankCase", "NystromTrial", "Scaled", "laws", "low_rank_cases"]

SIZES = ((16, 2), (24, 3), (8, 1), (40, 5), (12, 8), (5, 2))
LARGE_SIZES = ((80, 3), (64, 16))
KINDS = ("normal", "clustered", "duplicated", "collinear", "grid", "one-far", "all-equal", "far-apart", "offset")
CHOICES = ("strided", "all", "repeated", "one")
LENGTHS = (1.0, 4.0, 0.25, 30.0)


class Linear:
    """k(x, y) = x . y: a kernel that softlinalg does not know, with values of any size.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing.suites import Linear
    >>> Linear()(np.asarray([[1.0, 2.0]]), np.asarray([[3.0, 4.0]]))
    array([[11.]])
    """

    name = "linear"

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """Kernel matrix, shape (n, m)."""
        xp = compat.array_namespace(x)
        return x @ xp.matrix_transpose(x if y is None else y)

    def diagonal(self, x: Array) -> Array:
        """k(x_i, x_i), shape (n,)."""
        return compat.array_namespace(x).sum(x * x, axis=-1)


@dataclass(frozen=True)
class Scaled:
    """2**power times another kernel.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg.testing.suites import Scaled
    >>> Scaled(softlinalg.Gaussian(1.0), 3)(np.zeros((1, 1)), np.zeros((1, 1)))
    array([[8.]])
    """

    kernel: Any
    power: int
    name: str = "scaled"

    def __call__(self, x: Array, y: Array | None = None) -> Array:
        """Kernel matrix, shape (n, m)."""
        return self.kernel(x, x if y is None else y) * 2.0**self.power

    def diagonal(self, x: Array) -> Array:
        """k(x_i, x_i), shape (n,)."""
        return self.kernel.diagonal(x) * 2.0**self.power


@dataclass(frozen=True)
class LowRankCase:
    """Points, kernel and landmarks by the parameters they are made from."""

    n: int
    d: int
    kind: str
    kernel: str
    length: float
    choice: str
    log2_scale: int
    seed: int
    dtype: str

    @functools.cached_property
    def points(self) -> PointCase:
        """The points."""
        return build_points(shape=(self.n, self.d), kind=self.kind, log2_scale=self.log2_scale, dtype=self.dtype, seed=self.seed)

    @property
    def length_scale(self) -> float:
        """In the units of the points."""
        return math.ldexp(self.length, self.log2_scale)

    def make_kernel(self) -> Any:
        """The kernel."""
        return Linear() if self.kernel == "linear" else Gaussian(self.length_scale)

    @functools.cached_property
    def rows(self) -> list[int]:
        """Which points are landmarks."""
        quarter = max(1, self.n // 4)
        strided = list(range(0, self.n, max(1, self.n // quarter)))[:quarter]
        return {"strided": strided, "all": list(range(self.n)), "repeated": strided + strided[::-1], "one": [self.n // 2]}[self.choice]

    @property
    def description(self) -> str:
        """In words."""
        kernel = "linear" if self.kernel == "linear" else f"Gaussian (length scale {self.length_scale:g})"
        return f"{kernel} kernel of {self.points.desc}, {len(self.rows)} landmarks ({self.choice}), seed {self.seed}"

    @property
    def reproduction(self) -> str:
        """One line."""
        kernel = "softlinalg.testing.suites.Linear()" if self.kernel == "linear" else f"softlinalg.Gaussian({self.length_scale!r})"
        return f"x = {self.points.code}.x; kernel = {kernel}; landmarks = x[{self.rows}]"

    @property
    def group(self) -> str:
        """What the failures are counted by."""
        return "linear" if self.kernel == "linear" else self.kind

    def simpler(self) -> Iterator[LowRankCase]:
        """Fewer points and features, scale one, a plainer choice of landmarks, another seed."""
        for n in sorted({1, 2, 3, 4, self.n // 2, self.n - 1}):
            if 0 < n < self.n:
                yield replace(self, n=n)
        for d in sorted({1, self.d // 2, self.d - 1}):
            if 0 < d < self.d:
                yield replace(self, d=d)
        if self.log2_scale:
            yield replace(self, log2_scale=0)
        for choice in CHOICES[: CHOICES.index(self.choice)]:
            yield replace(self, choice=choice)
        if self.kind != "normal":
            yield replace(self, kind="normal")
        if self.length != 1.0:
            yield replace(self, length=1.0)
        for seed in (0, 1, 2):
            if seed < self.seed:
                yield replace(self, seed=seed)


@functools.lru_cache(maxsize=8)
def _combinations(dtype: str, large: bool) -> tuple[LowRankCase, ...]:
    sizes = SIZES + (LARGE_SIZES if large else ())
    found = [
        LowRankCase(n, d, kind, "gaussian", length, choice, scale, 0, dtype)
        for (n, d), kind, length, choice, scale in itertools.product(sizes, KINDS, LENGTHS, CHOICES, (0, 20))
    ]
    found += [
        LowRankCase(n, d, kind, "linear", 1.0, choice, scale, 0, dtype)
        for (n, d), kind, choice, scale in itertools.product(
            sizes, ("normal", "duplicated", "collinear", "grid"), CHOICES, (0, -27, -40, 20)
        )
    ]
    return mixed(found)


def low_rank_cases(count: int, *, dtype: str, large: bool) -> list[LowRankCase]:
    """The first `count` cases of the grid; after all combinations once, again with other seeds."""
    return first_cases(_combinations(dtype, large), count)


class NystromTrial(Trial[LowRankCase]):
    """Points, kernel and landmarks put to a function."""

    def __init__(self, subject: Subject, case: LowRankCase) -> None:
        super().__init__(subject, case)
        self.points: Host = np.asarray(case.points.x)
        self.landmarks: Host = self.points[case.rows]

    def raw(self, x: Host, landmarks: Host, kernel: Any | None = None) -> Any:
        """The function's answer as it comes."""
        kernel = self.case.make_kernel() if kernel is None else kernel
        return self.subject.call(self.subject.array(x), kernel, landmarks=self.subject.array(landmarks))

    def dense(self, x: Host, landmarks: Host, kernel: Any | None = None, *, finite: bool = True) -> Host:
        """The approximation as a matrix, in double precision."""
        answer = self.raw(x, landmarks, kernel)
        n = x.shape[0]
        if _is_object(answer):
            return self.subject.host(answer.to_dense(), (n, n), what="approximation", finite=finite).astype(np.float64)
        columns = int(answer.shape[-1]) if getattr(answer, "ndim", 0) == 2 else -1
        factor = self.subject.host(answer, (n, columns), what="factor", finite=finite).astype(np.float64)
        return factor @ factor.T

    @property
    def truth(self) -> Host:
        """The kernel matrix, in double precision."""
        return self.once("truth", lambda: _kernel_matrix(self.case, self.points, self.points))  # type: ignore[no-any-return]

    @property
    def approximation(self) -> Host:
        """The approximation."""
        return self.once("approximation", lambda: self.dense(self.points, self.landmarks))  # type: ignore[no-any-return]

    @property
    def laws(self) -> dict[str, float]:
        """Ratios of the approximation."""

        def compute() -> dict[str, float]:
            rank = len(set(self.case.rows))
            return ratios.nystrom(self.truth, self.approximation, cut=self.half / ratios.THRESHOLD, rank=rank, dtype=self.subject.dtype)

        return self.once("laws", compute)  # type: ignore[no-any-return]

    @property
    def half(self) -> float:
        """Half of the digits: what a method may lose to the square root that it takes."""
        return math.sqrt(self.subject.eps)

    @property
    def given_up(self) -> Host:
        """Diagonal of C (W^+ - (W + sqrt(u) |W| I)^-1) C^T: what hangs on eigenvalues that a method may keep or drop."""
        return self.once("given_up", lambda: _given_up(self))  # type: ignore[no-any-return]

    def differ(self, approximation: Host, expected: Host) -> float:
        """Largest difference of two approximations in units of sqrt(u) max K, and of what hangs on the cut-off."""
        scale = float(np.abs(self.truth).max()) or 1.0
        unit = self.half * scale + float(np.max(self.given_up, initial=0.0))
        return float(np.max(np.abs(approximation - expected), initial=0.0)) / unit


def _is_object(answer: Any) -> bool:
    return hasattr(answer, "to_dense") and hasattr(answer, "landmarks")


def _kernel_matrix(case: LowRankCase, x: Host, y: Host) -> Host:
    if case.kernel == "linear":
        return x.astype(np.float64) @ y.astype(np.float64).T
    return np.asarray(gaussian_values(x, y, case.length_scale), dtype=np.float64)


def _shifted(trial: NystromTrial, factor: float) -> float:
    """Trace of C (W + nu I)^-1 C^T, nu = factor sqrt(u) |W|: what an approximation explains that gives up half of the digits."""
    w = _kernel_matrix(trial.case, trial.landmarks, trial.landmarks)
    c = _kernel_matrix(trial.case, trial.points, trial.landmarks)
    values, vectors = np.linalg.eigh(w)
    largest = float(values[-1])
    if largest <= 0:
        return 0.0
    weights = (c @ vectors) ** 2 / (np.maximum(values, 0.0) + factor * trial.half * largest)
    return float(weights.sum())


def _given_up(trial: NystromTrial) -> Host:
    w = _kernel_matrix(trial.case, trial.landmarks, trial.landmarks)
    values, vectors = np.linalg.eigh(w)
    largest = float(values[-1])
    if largest <= 0:
        return np.zeros(trial.points.shape[0])
    kept = values > len(values) * np.finfo(np.float64).eps * largest
    weights = 1 / values[kept] - 1 / (values[kept] + trial.half * largest)
    c = _kernel_matrix(trial.case, trial.points, trial.landmarks)
    return np.asarray((c @ vectors[:, kept]) ** 2 @ weights)


def _explained(trial: NystromTrial) -> float:
    """How much of the trace is missing that a shift by half the digits still explains."""
    trace = float(np.trace(trial.truth)) or 1.0
    missing = _shifted(trial, 1.0) - float(np.trace(trial.approximation))
    return max(0.0, missing / trace) / trial.half


def _everything(trial: NystromTrial) -> float:
    scale = float(np.abs(trial.truth).max()) or 1.0
    return float(np.abs(trial.approximation - trial.truth).max()) / (trial.half * scale)


def _order(trial: NystromTrial) -> float:
    return trial.differ(trial.dense(trial.points, trial.landmarks[::-1].copy()), trial.approximation)


def _doubled(trial: NystromTrial) -> float:
    return trial.differ(trial.dense(trial.points, np.concatenate([trial.landmarks, trial.landmarks[:1]])), trial.approximation)


def _more(trial: NystromTrial) -> float:
    """Further landmarks explain at least as much."""
    rows = trial.case.rows + [i for i in range(trial.points.shape[0]) if i not in trial.case.rows][:3]
    further = trial.dense(trial.points, trial.points[rows])
    trace = float(np.trace(trial.truth)) or 1.0
    missing = float(np.trace(trial.approximation) - np.trace(further))
    return max(0.0, missing) / (trial.half * trace + float(trial.given_up.sum()))


def _scaled(trial: NystromTrial) -> float:
    scaled = trial.dense(trial.points, trial.landmarks, Scaled(trial.case.make_kernel(), -40))
    return trial.differ(scaled * 2.0**40, trial.approximation)


def _kind(trial: NystromTrial) -> float:
    answer = trial.raw(trial.points, trial.landmarks)
    result = answer.to_dense() if _is_object(answer) else answer
    return kind_kept(trial.subject, result, trial.subject.array(trial.points))


def _unchanged(trial: NystromTrial) -> float:
    x, landmarks = trial.subject.array(trial.points), trial.subject.array(trial.landmarks)
    trial.subject.call(x, trial.case.make_kernel(), landmarks=landmarks)
    same_bits(trial.subject.host(x, trial.points.shape), trial.points, "the points were changed")
    return same_bits(trial.subject.host(landmarks, trial.landmarks.shape), trial.landmarks, "the landmarks were changed")


def _again(trial: NystromTrial) -> float:
    return same_bits(trial.dense(trial.points, trial.landmarks), trial.approximation, "a second call gave other numbers")


def _nan(trial: NystromTrial) -> float:
    tainted = trial.points.copy()
    tainted[0, 0] = np.nan
    return not_answered(lambda: trial.dense(tainted, trial.landmarks, finite=False), math.nan)


def _all(trial: NystromTrial) -> bool:
    return trial.case.choice == "all"


def _has_room(trial: NystromTrial) -> bool:
    """More landmarks than points are refused by some, with reason."""
    return bool(trial.landmarks.shape[0] < trial.points.shape[0])


def _is_not_tiny(trial: NystromTrial) -> bool:
    return trial.case.log2_scale >= 0


def laws() -> list[Law[Any]]:
    """The properties of a Nystrom approximation K^ = C W+ C^T of a positive semi-definite K.

    In the formulas g is the largest entry, and G the trace, of C (W^+ - (W + sqrt(u) |W| I)^-1) C^T: what hangs on eigenvalues of W
    that one method keeps and another drops, with equal right.
    """
    t = ratios.THRESHOLD
    unit = "30 n u |K| + sqrt(u) |K|"
    return [
        Law(
            name="positive",
            words="it is positive semi-definite",
            formula=f"smallest eigenvalue of K^ >= -({unit})",
            threshold=t,
            measure=lambda z: z.laws["K_hat >= 0"],
        ),
        Law(
            name="below",
            words="it does not exceed the matrix",
            formula=f"smallest eigenvalue of K - K^ >= -({unit})",
            threshold=t,
            measure=lambda z: z.laws["K_hat <= K"],
        ),
        Law(
            name="diagonal",
            words="no diagonal entry exceeds that of the matrix",
            formula=f"diag K^ <= diag K + {unit}",
            threshold=t,
            measure=lambda z: z.laws["diagonal"],
        ),
        Law(name="symmetric", words="it is symmetric", formula=f"|K^ - K^T| <= {unit}", threshold=t, measure=lambda z: z.laws["symmetric"]),
        Law(
            name="rank",
            words="its rank is at most the number of landmarks",
            formula=f"singular value m + 1 <= {unit}",
            threshold=t,
            measure=lambda z: z.laws["rank"],
        ),
        Law(
            name="explained",
            words="it explains what its landmarks can",
            formula="tr K^ >= tr C (W + sqrt(u) |W| I)^-1 C^T - 2 sqrt(u) tr K",
            threshold=2,
            measure=_explained,
        ),
        Law(
            name="everything",
            words="with all points as landmarks it is the matrix",
            formula="|K - K^| <= 2 sqrt(u) max K, entrywise",
            threshold=2,
            measure=_everything,
            applies=_all,
        ),
        Law(
            name="order",
            words="the order of landmarks does not matter",
            formula="|K^(P L) - K^(L)| <= 2 (sqrt(u) max K + g), entrywise",
            threshold=2,
            measure=_order,
            share=2,
        ),
        Law(
            name="repeated",
            words="a landmark twice is a landmark once",
            formula="|K^(L, l) - K^(L)| <= 2 (sqrt(u) max K + g), l in L, entrywise",
            threshold=2,
            measure=_doubled,
            applies=_has_room,
            share=2,
        ),
        Law(
            name="nested",
            words="more landmarks explain more",
            formula="tr K^(L, M) >= tr K^(L) - 2 (sqrt(u) tr K + G)",
            threshold=2,
            measure=_more,
            share=2,
        ),
        Law(
            name="scaling",
            words="a kernel 2^-40 as large gives an approximation 2^-40 as large",
            formula="|2^40 K^(2^-40 k) - K^(k)| <= 2 (sqrt(u) max K + g), entrywise",
            threshold=2,
            measure=_scaled,
            applies=_is_not_tiny,
            share=2,
        ),
        Law(
            name="kind", words="library and data type are kept", formula="same library, same data type", threshold=0, measure=_kind, share=4
        ),
        Law(
            name="input",
            words="the input is not changed",
            formula="x and landmarks afterwards as before, bit for bit",
            threshold=0,
            measure=_unchanged,
            share=8,
        ),
        Law(name="repeat", words="the same input gives the same numbers", formula="bit for bit", threshold=0, measure=_again, share=8),
        Law(
            name="nan",
            words="NaN is not answered with numbers",
            formula="an error, or NaN in the result",
            threshold=0,
            measure=_nan,
            share=8,
        ),
    ]
