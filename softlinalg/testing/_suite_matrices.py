"""The matrices that pseudo-inverses are measured on."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from softlinalg.testing import gallery
from softlinalg.testing._cases import Case, build_matrix, unit
from softlinalg.testing._laws import first_cases, mixed

__all__ = ["MatrixCase", "NamedCase", "gallery_cases", "matrices"]

MODES = (3, 1, 2, 4, 5, 6)

SIZES = ((2, 2), (3, 3), (4, 3), (2, 4), (4, 4), (6, 6), (6, 4), (3, 6), (1, 3), (5, 5), (4, 1), (8, 8), (7, 5), (5, 8), (1, 1))
LARGE_SIZES = ((12, 12), (16, 9), (9, 16), (24, 24), (40, 30))

SCALES = {"float32": (0, 60, -60, 7), "float64": (0, 400, -400, 7)}
"""Powers of two by which matrices are multiplied."""


@dataclass(frozen=True)
class MatrixCase:
    """A matrix by the parameters it is drawn from."""

    rows: int
    columns: int
    rank: int
    mode: int
    cond: float
    log2_scale: int
    seed: int
    dtype: str
    exact: bool = False

    @functools.cached_property
    def case(self) -> Case:
        """The matrix itself."""
        return build_matrix(
            shape=(self.rows, self.columns),
            rank=self.rank,
            mode=self.mode,
            cond=self.cond,
            log2_scale=self.log2_scale,
            dtype=self.dtype,
            exact=self.exact,
            seed=self.seed,
        )

    @property
    def description(self) -> str:
        """In words."""
        return f"{self.case.desc}, seed {self.seed}"

    @property
    def reproduction(self) -> str:
        """One line."""
        return self.case.code

    @property
    def group(self) -> str:
        """What the failures are counted by."""
        if self.rank == 0:
            return "zero"
        return "full rank" if self.rank == min(self.rows, self.columns) else "deficient"

    def simpler(self) -> Iterator[MatrixCase]:
        """Smaller, then of lower rank, better conditioned, of a plainer spectrum and scale, and another seed."""
        for rows, columns in _smaller(self.rows, self.columns):
            yield self._fitting(rows=rows, columns=columns, rank=min(self.rank, rows, columns))
            deficit = min(self.rows, self.columns) - self.rank
            yield self._fitting(rows=rows, columns=columns, rank=max(0, min(rows, columns) - deficit))
        for rank in sorted({0, 1, self.rank // 2, self.rank - 1}):
            if 0 <= rank < self.rank:
                yield self._fitting(rank=rank)
        if self.rank > 1:
            for cond in (
                1.0,
                2.0,
                10.0,
                100.0,
                10.0 ** math.floor(math.log10(self.cond) / 2),
                self.cond / 10,
                self.cond / 3,
                self.cond / 1.5,
            ):
                if 1 <= cond < self.cond:
                    yield replace(self, cond=float(f"{cond:.1e}"))
            if self.mode != 3:
                yield replace(self, mode=3)
        for scale in (0, int(self.log2_scale / 2)):
            if abs(scale) < abs(self.log2_scale):
                yield replace(self, log2_scale=scale)
        for seed in (0, 1, 2):
            if seed < self.seed:
                yield replace(self, seed=seed)

    def _fitting(self, **changes: int) -> MatrixCase:
        """With other sizes, and no condition where there is only one singular value."""
        changed = replace(self, **changes)  # type: ignore[arg-type]
        return replace(changed, cond=1.0, mode=3) if changed.rank < 2 else changed


def _smaller(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    for size in (
        (1, 1),
        (2, 2),
        (rows // 2, columns // 2),
        (min(rows, columns),) * 2,
        (rows - 1, columns - 1),
        (rows - 1, columns),
        (rows, columns - 1),
    ):
        if min(size) > 0 and size != (rows, columns) and size[0] <= rows and size[1] <= columns:
            yield size


@dataclass(frozen=True, eq=False)
class NamedCase:
    """A matrix of the gallery, which has nothing simpler."""

    case: Case
    group: str = "gallery"

    @property
    def description(self) -> str:
        """In words."""
        return self.case.desc

    @property
    def reproduction(self) -> str:
        """One line."""
        return self.case.code

    def simpler(self) -> Iterator[NamedCase]:
        """Nothing."""
        return iter(())


def largest_cond(rows: int, columns: int, dtype: str, grade: str) -> float:
    """Where cut-offs from max(m, n) eps to sixteen times that agree (grade S); what iterations can resolve (grade N)."""
    u = unit(dtype)
    return math.sqrt(0.1 / u) if grade == "N" else 1 / (64 * max(rows, columns) * u)


@functools.lru_cache(maxsize=16)
def _combinations(dtype: str, grade: str, large: bool) -> tuple[MatrixCase, ...]:
    """Every combination of sizes, ranks, spectra, conditions and scales, in an order fixed once and for all."""
    scales = SCALES["float32" if unit(dtype) > 1e-10 else "float64"]
    found: dict[MatrixCase, None] = {}
    for (rows, columns), mode, level, scale, exact in itertools.product(
        SIZES + (LARGE_SIZES if large else ()), MODES, range(7), scales, (False, True)
    ):
        top = largest_cond(rows, columns, dtype, grade)
        cond = (1.0, 2.0, 10.0, 100.0, top**0.5, top**0.75, top)[level]
        full = min(rows, columns)
        for rank in sorted({full, full - 1, full // 2, 1} - {0}) if full > 1 else (1,):
            if exact and (dtype.startswith("complex") or rank == full or cond > 100):
                continue
            plain = rank == 1
            made = MatrixCase(rows, columns, rank, 3 if plain else mode, 1.0 if plain else float(f"{cond:.1e}"), scale, 0, dtype, exact)
            found[made] = None
        if not exact:
            found[MatrixCase(rows, columns, 0, 3, 1.0, 0, 0, dtype)] = None
    return mixed(list(found))


def matrices(count: int, *, dtype: str, grade: str, large: bool, square: bool = False, max_cond: float | None = None) -> list[MatrixCase]:
    """The first `count` matrices of the grid; after all combinations once, again with other seeds."""
    combinations = [made for made in _combinations(dtype, grade, large) if not square or made.rows == made.columns]
    if max_cond is not None:
        combinations = [made for made in combinations if made.cond <= max_cond]
    return first_cases(combinations, count)


def gallery_cases(*, dtype: str, grade: str, max_cond: float | None = None) -> list[NamedCase]:
    """The matrices of the gallery whose rank is beyond dispute in the data type, and whose condition the grade covers."""
    try:
        found = list(gallery.cases(dtype=dtype, only_gap=True))
    except ImportError:  # some are built by mpmath, which is not needed for anything else here
        return []
    return [NamedCase(case) for case in found if case.kappa <= min(largest_cond(*case.shape, dtype, grade), max_cond or math.inf)]
