"""The laws of a Gaussian kernel, and the points that they are measured on."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from softlinalg.testing import _layouts, ratios
from softlinalg.testing._cases import random_frame
from softlinalg.testing._laws import Broken, Call, Host, Law, Subject, Trial, first_cases, kind_kept, mixed, not_answered, same_bits
from softlinalg.testing._points import POINT_KINDS, PointCase, build_points, gaussian_values

__all__ = ["KernelTrial", "PointsCase", "laws", "points"]

SIZES = ((8, 2), (5, 3), (2, 1), (16, 4), (12, 8), (1, 2), (24, 3), (9, 16), (33, 5))
LARGE_SIZES = ((64, 8), (100, 3), (20, 64))
LENGTH_SCALES = (1.0, 0.25, 4.0, 30.0)
SCALES = (0, 30, -30)


@dataclass(frozen=True)
class PointsCase:
    """Points by the parameters they are drawn from, and a length scale in units of 2**log2_scale."""

    n: int
    d: int
    kind: str
    length: float
    log2_scale: int
    seed: int
    dtype: str

    @functools.cached_property
    def case(self) -> PointCase:
        """The points themselves."""
        return build_points(shape=(self.n, self.d), kind=self.kind, log2_scale=self.log2_scale, dtype=self.dtype, seed=self.seed)

    @property
    def length_scale(self) -> float:
        """In the units of the points."""
        return math.ldexp(self.length, self.log2_scale)

    @property
    def description(self) -> str:
        """In words."""
        return f"{self.case.desc}, length scale {self.length_scale:g}, seed {self.seed}"

    @property
    def reproduction(self) -> str:
        """One line."""
        return f"x, length_scale = {self.case.code}.x, {self.length_scale!r}"

    @property
    def group(self) -> str:
        """What the failures are counted by."""
        return self.kind

    def simpler(self) -> Iterator[PointsCase]:
        """Fewer points, fewer features, scale one, another seed, a plainer kind."""
        for n in sorted({1, 2, 3, self.n // 2, self.n - 1}):
            if 0 < n < self.n:
                yield replace(self, n=n)
        for d in sorted({1, self.d // 2, self.d - 1}):
            if 0 < d < self.d:
                yield replace(self, d=d)
        if self.log2_scale:
            yield replace(self, log2_scale=0)
        if self.kind != "normal":
            yield replace(self, kind="normal")
        if self.length != 1.0:
            yield replace(self, length=1.0)
        for seed in (0, 1, 2):
            if seed < self.seed:
                yield replace(self, seed=seed)


@functools.lru_cache(maxsize=8)
def _combinations(dtype: str, large: bool) -> tuple[PointsCase, ...]:
    sizes = SIZES + (LARGE_SIZES if large else ())
    found = [
        PointsCase(n, d, kind, length, scale, 0, dtype)
        for (n, d), kind, length, scale in itertools.product(sizes, POINT_KINDS, LENGTH_SCALES, SCALES)
    ]
    return mixed(found)


def points(count: int, *, dtype: str, large: bool) -> list[PointsCase]:
    """The first `count` sets of the grid; after all combinations once, again with other seeds."""
    return first_cases(_combinations(dtype, large), count)


class KernelTrial(Trial[PointsCase]):
    """Points put to a kernel function."""

    def __init__(self, subject: Subject, case: PointsCase) -> None:
        super().__init__(subject, case)
        self.points: Host = np.asarray(case.case.x)
        self.length_scale = case.length_scale

    def of(self, x: Host, y: Host | None = None, *, length_scale: float | None = None, layout: str = "C", finite: bool = True) -> Host:
        """The kernel matrix of other points, as it came but on the host."""
        length_scale = self.length_scale if length_scale is None else length_scale
        arrays = [self.subject.array(x, layout=layout)] + ([] if y is None else [self.subject.array(y, layout=layout)])
        other = x if y is None else y
        shape = (*np.broadcast_shapes(x.shape[:-2], other.shape[:-2]), x.shape[-2], other.shape[-2])
        return self.subject.host(self.subject.call(*arrays, length_scale=length_scale), shape, finite=finite)

    @property
    def k(self) -> Host:
        """The kernel matrix of the points with themselves."""
        return self.once("k", lambda: self.of(self.points))  # type: ignore[no-any-return]

    @property
    def laws(self) -> dict[str, float]:
        """Ratios of the matrix of the points with themselves, but for its values."""
        return self.once(  # type: ignore[no-any-return]
            "laws", lambda: ratios.kernel(self.k, self.points, length_scale=None, dtype=self.subject.dtype)
        )

    def values(self, k: Host, x: Host, y: Host) -> float:
        """Ratio of the values of a kernel matrix, with its values in [0, 1]."""
        if k.size and (k.min() < 0 or k.max() > 1):
            message = f"kernel values reach from {k.min():.17g} to {k.max():.17g}"
            raise Broken(message)
        if self.subject.grade == "S":
            return ratios.kernel(k, x, y, length_scale=self.length_scale, dtype=self.subject.dtype)["values"]
        truth = np.asarray(gaussian_values(x, y, self.length_scale), dtype=np.float64)
        d, away = x.shape[-1], self.away(x, y)
        exponent = -np.log(np.where(truth > 0, truth, 1.0))
        unit = self.subject.eps * ((d + 2) * np.maximum(np.maximum(exponent, away), 1.0) * truth + d)
        return float(np.max(np.abs(k - truth) / unit, initial=0.0))

    def away(self, x: Host, y: Host) -> Host:
        """Squared distance of the nearer point of each pair from the mean of all, in length scales: what products cancel."""
        both = np.concatenate([x, y]).astype(np.float64)
        center = both.mean(axis=0)
        of_x, of_y = (np.sum(((z.astype(np.float64) - center) / self.length_scale) ** 2, axis=-1) for z in (x, y))
        return np.asarray(np.minimum(of_x[:, None], of_y[None, :]))


def _digits(trial: KernelTrial) -> float:
    """Wherever the points lie, half of the digits are right, also of pairs of two far points."""
    x, y = _half(trial)
    worst = 0.0
    for k, first, second in ((trial.k, trial.points, trial.points), (trial.of(x, y), x, y), (trial.of(y, y.copy()), y, y)):
        truth = np.asarray(gaussian_values(first, second, trial.length_scale), dtype=np.float64)
        worst = max(worst, float(np.max(np.abs(k - truth), initial=0.0)))
    return worst / math.sqrt(trial.subject.eps)


def _half(trial: KernelTrial) -> tuple[Host, Host]:
    """The points in two parts that overlap in one."""
    middle = (trial.points.shape[0] + 1) // 2
    return trial.points[:middle], trial.points[middle - 1 :]


def _rectangle(trial: KernelTrial) -> float:
    x, y = _half(trial)
    return trial.values(trial.of(x, y), x, y)


def _copy(trial: KernelTrial) -> float:
    return trial.values(trial.of(trial.points, trial.points.copy()), trial.points, trial.points)


def _swapped(trial: KernelTrial) -> float:
    x, y = _half(trial)
    difference = np.abs(trial.of(x, y).astype(np.float64) - trial.of(y, x).T.astype(np.float64))
    unit = 1.0 if trial.subject.grade == "S" else np.maximum(trial.away(x, y), 1.0)
    worst = float(np.max(difference / unit))
    return worst / (trial.subject.eps * int(trial.points.shape[1] + 2))


def _translated(trial: KernelTrial) -> float:
    """Points on a coarse grid, and the same moved by a power of two: both exact in the data type."""
    unit = math.ldexp(1.0, trial.case.log2_scale)
    coarse = np.clip(np.round(np.asarray(trial.points, dtype=np.float64) / unit * 64) / 64, -32.0, 32.0)
    here, there = ((coarse + shift) * unit for shift in (0.0, 64.0))
    return trial.values(trial.of(there.astype(trial.points.dtype)), here, here)


def _rotated(trial: KernelTrial) -> float:
    q = random_frame(trial.points.shape[1], trial.points.shape[1], np.random.default_rng(trial.case.seed))
    moved = _layouts.round_to(trial.points.astype(q.dtype) @ q, trial.subject.dtype)
    return trial.values(trial.of(moved), moved, moved)


def _scaled(trial: KernelTrial) -> float:
    power = 2.0**-7 if trial.case.log2_scale > 0 else 2.0**7
    moved = trial.points * trial.points.dtype.type(power)
    return trial.values(trial.of(moved, length_scale=trial.length_scale * power), trial.points, trial.points)


def _scaled_bits(trial: KernelTrial) -> float:
    power = 2.0**-7 if trial.case.log2_scale > 0 else 2.0**7
    moved = trial.points * trial.points.dtype.type(power)
    return same_bits(trial.of(moved, length_scale=trial.length_scale * power), trial.k, "other bits after scaling points and length scale")


def _far(trial: KernelTrial) -> float:
    """A point so far away that its squared distance overflows: kernel value zero, the others as they were."""
    far = np.full((1, trial.points.shape[1]), 1e30 if trial.subject.dtype == "float32" else 1e200).astype(trial.points.dtype)
    k = trial.of(np.concatenate([trial.points, far]), far)
    if k[:-1].any():
        message = f"a point at {far[0, 0]:.0e} is not at kernel value zero"
        raise Broken(message)
    return abs(float(k[-1, 0]) - 1.0) / trial.subject.eps


def _order(trial: KernelTrial) -> float:
    order = np.random.default_rng(trial.case.seed).permutation(trial.points.shape[0])
    moved = trial.points[order]
    return trial.values(trial.of(moved), moved, moved)


def _batch(trial: KernelTrial) -> float:
    other = trial.points[::-1] * trial.points.dtype.type(0.5)
    k = trial.of(np.stack([trial.points, other]))
    return max(trial.values(k[0], trial.points, trial.points), trial.values(k[1], other, other))


def _batch_bits(trial: KernelTrial) -> float:
    """Whatever stands beside it in the batch, the same bits."""
    beside = [trial.points[::-1] * trial.points.dtype.type(factor) for factor in (0.5, 100.0)]
    first, second = (trial.of(np.stack([trial.points, other])) for other in beside)
    return same_bits(first[0], second[0], "other bits for another neighbour in the batch")


def _kind(trial: KernelTrial) -> float:
    given = trial.subject.array(trial.points)
    result = trial.subject.call(given, length_scale=trial.length_scale)
    trial.subject.host(result, trial.k.shape)
    return kind_kept(trial.subject, result, given)


def _unchanged(trial: KernelTrial) -> float:
    given = trial.subject.array(trial.points)
    trial.subject.call(given, length_scale=trial.length_scale)
    return same_bits(trial.subject.host(given, trial.points.shape, what="input afterwards"), trial.points, "the input was changed")


def _again(trial: KernelTrial) -> float:
    return same_bits(trial.of(trial.points), trial.k, "a second call gave other numbers")


def _layout(trial: KernelTrial) -> float:
    worst = 0.0
    for layout in _layouts.supported_layouts(trial.subject.library_of(trial.subject.array(trial.points))):
        try:
            worst = max(worst, trial.values(trial.of(trial.points, layout=layout), trial.points, trial.points))
        except Call as error:
            message = f"layout {layout}: {error}"
            raise Broken(message) from error
    return worst


def _nan(trial: KernelTrial) -> float:
    tainted = trial.points.copy()
    tainted[0, 0] = np.nan
    return not_answered(lambda: trial.of(tainted, trial.points, finite=False), math.nan)


def laws(*, grade: str = "S", bitwise: bool = False, batched: bool = True) -> list[Law[Any]]:
    """The properties of a Gaussian kernel.

    Parameters
    ----------
    grade : {"S", "N"}
        "S": as accurate as differences of the points. "N": as accurate as products of centered points.
    bitwise : bool
        Scaling points and length scale by a power of two, and the neighbours in a batch, must not change a bit.
    batched : bool
        Whether the function takes batches of point sets.
    """
    t = ratios.THRESHOLD
    values = (
        "|K - exp(-r^2 / (2 l^2))| <= 30 u (K (d + t) + d), t = r^2 / (2 l^2)"
        if grade == "S"
        else "|K - exp(-r^2 / (2 l^2))| <= 30 u (K (d + 2) t + d), t the largest of 1, r^2 / (2 l^2) and the nearer |x - mean|^2 / l^2"
    )
    max_t = "" if grade == "S" else " max(1, the nearer |x - mean|^2 / l^2)"
    found: list[Law[Any]] = [
        Law(name="values", words="the values are right", formula=values, threshold=t, measure=lambda z: z.values(z.k, z.points, z.points)),
        Law(
            name="range",
            words="values lie between 0 and 1",
            formula="0 <= K <= 1, exactly",
            threshold=0,
            measure=lambda z: z.laws["0 <= K <= 1"],
        ),
        Law(
            name="diagonal",
            words="a point is at kernel value one from itself",
            formula="k(x, x) = 1, exactly",
            threshold=0,
            measure=lambda z: z.laws["diagonal"],
        ),
        Law(name="symmetric", words="it is symmetric", formula="|K - K^T| <= 4 u", threshold=1, measure=lambda z: z.laws["symmetric"]),
        Law(
            name="psd",
            words="it is positive semi-definite",
            formula="smallest eigenvalue >= -30 n u",
            threshold=t,
            measure=lambda z: z.laws["psd"],
        ),
        Law(name="rectangle", words="between two sets of points", formula=values, threshold=t, measure=_rectangle, share=2),
        Law(name="copy", words="between points and a copy of them", formula=f"{values}; 0 <= K <= 1", threshold=t, measure=_copy, share=2),
        Law(
            name="transpose",
            words="k(x, y) is the transpose of k(y, x)",
            formula=f"|k(x, y) - k(y, x)^T| <= 30 (d + 2) u{max_t}",
            threshold=t,
            measure=_swapped,
            share=2,
        ),
        Law(
            name="translation",
            words="only differences count",
            formula="k(x + t) = k(x), to the error of the values",
            threshold=t,
            measure=_translated,
            share=2,
        ),
        Law(
            name="rotation",
            words="only distances count",
            formula="k(x Q) = k(x), to the error of the values",
            threshold=t,
            measure=_rotated,
            share=4,
        ),
        Law(
            name="scaling",
            words="only ratios to the length scale count",
            formula="k(2^e x; 2^e l) = k(x; l), to the error of the values",
            threshold=t,
            measure=_scaled,
            share=4,
        ),
        Law(
            name="order",
            words="each pair for itself",
            formula="k(P x) = P k(x) P^T, to the error of the values",
            threshold=t,
            measure=_order,
            share=4,
        ),
        Law(name="far", words="far away is zero, not NaN", formula="k(x, far) = 0, k(far, far) = 1", threshold=4, measure=_far, share=4),
        Law(
            name="kind", words="library and data type are kept", formula="same library, same data type", threshold=0, measure=_kind, share=4
        ),
        Law(
            name="input",
            words="the input is not changed",
            formula="x afterwards = x, bit for bit",
            threshold=0,
            measure=_unchanged,
            share=8,
        ),
        Law(name="repeat", words="the same input gives the same numbers", formula="bit for bit", threshold=0, measure=_again, share=8),
        Law(
            name="layout",
            words="strides, byte order and flags do not matter",
            formula="to the error of the values",
            threshold=t,
            measure=_layout,
            share=16,
        ),
        Law(
            name="nan",
            words="NaN is not answered with numbers",
            formula="an error, or NaN in the result",
            threshold=0,
            measure=_nan,
            share=8,
        ),
    ]
    found.append(
        Law(
            name="digits",
            words="wherever the points lie, half of the digits are right",
            formula="|K - exp(-r^2 / (2 l^2))| <= sqrt(u)",
            threshold=1,
            measure=_digits,
            share=2,
        )
    )
    if bitwise:
        found.append(
            Law(
                name="scaling-bits",
                words="powers of two pass through",
                formula="k(2^e x; 2^e l) = k(x; l), bit for bit",
                threshold=0,
                measure=_scaled_bits,
                share=4,
            )
        )
    if batched:
        found.append(
            Law(name="batch", words="a batch is its members", formula="to the error of the values", threshold=t, measure=_batch, share=4)
        )
        if bitwise:
            found.append(
                Law(
                    name="batch-bits",
                    words="neighbours in a batch do not matter",
                    formula="the same bits",
                    threshold=0,
                    measure=_batch_bits,
                    share=4,
                )
            )
    return found
