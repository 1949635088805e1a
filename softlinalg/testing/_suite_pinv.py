"""The laws of a pseudo-inverse."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from softlinalg.testing import _layouts, ratios
from softlinalg.testing._cases import Case, random_frame
from softlinalg.testing._laws import (
    Broken,
    Call,
    Host,
    Law,
    Subject,
    Trial,
    kind_kept,
    not_answered,
    quotient,
    same_bits,
    spectral_norm,
    wide,
)
from softlinalg.testing._suite_matrices import MatrixCase, NamedCase

__all__ = ["PinvTrial", "laws"]

EXACT_EFFORT = {"float64": 10, "complex128": 6}
"""Largest side of a rank-deficient matrix whose true pseudo-inverse is computed: rational arithmetic takes long beyond it."""


class PinvTrial(Trial[Any]):
    """A matrix put to a function: its answer, and what the laws share."""

    def __init__(self, subject: Subject, case: MatrixCase | NamedCase) -> None:
        super().__init__(subject, case)
        self.known: Case = case.case
        self.a: Host = self.known.host
        self.shape = self.known.shape

    @property
    def result(self) -> Any:
        """The answer as it came."""
        return self.once("result", lambda: self.subject.call(self.subject.array(self.a)))

    @property
    def x(self) -> Host:
        """The answer in double precision."""
        return self.once("x", lambda: self.read(self.result, self.shape[::-1]))  # type: ignore[no-any-return]

    def read(self, result: Any, shape: tuple[int, ...], *, finite: bool = True) -> Host:
        """Numbers of an answer, which may be a tuple with a field `value`."""
        return wide(self.subject.host(_value(result), shape, finite=finite))

    def of(self, a: Host, *, layout: str = "C", finite: bool = True) -> Host:
        """The function of another matrix, in double precision."""
        return self.read(self.subject.call(self.subject.array(a, layout=layout)), (*a.shape[:-2], a.shape[-1], a.shape[-2]), finite=finite)

    @property
    def unit(self) -> float:
        """Eps times the larger side times the condition."""
        return self.known.u * max(*self.shape, 1) * self.known.kappa

    def compare(self, x: Host, expected: Host, unit: float | None = None) -> float:
        """Relative difference of two results over the unit."""
        return quotient(spectral_norm(x - expected), (self.unit if unit is None else unit) * spectral_norm(expected))


def _value(result: Any) -> Any:
    return result.value if isinstance(result, tuple) and hasattr(result, "value") else result


def _h(a: Host) -> Host:
    return np.conj(np.swapaxes(a, -1, -2))


def _penrose(trial: PinvTrial, name: str) -> float:
    """One of the four conditions, which are computed together."""

    def compute() -> dict[str, float]:
        return ratios.penrose(trial.known.A, trial.x, trial.known, grade=trial.subject.grade)

    return float(trial.once("penrose", compute)[name])


def _forward(trial: PinvTrial) -> float:
    return ratios.forward(trial.known.A, trial.x, trial.known)["X = A^+"]


def _affordable(trial: PinvTrial) -> bool:
    """Whether the true pseudo-inverse takes milliseconds."""
    limit = EXACT_EFFORT.get(trial.known.dtype, 1000)
    return trial.known.rank == min(trial.shape) or max(trial.shape) <= limit or trial.known.exact


def _rank(trial: PinvTrial) -> float:
    """The trace of the projection A X is the rank."""
    trace = float(np.trace(wide(trial.a) @ trial.x).real)
    if abs(trace - trial.known.rank) < 0.5:
        return 0.0
    message = f"tr(A X) = {trace:.3g}, so the rank came out as {round(trace)} instead of {trial.known.rank}"
    raise Broken(message)


def _kind_kept(trial: PinvTrial) -> float:
    trial.read(trial.result, trial.shape[::-1])
    return kind_kept(trial.subject, _value(trial.result), trial.subject.array(trial.a))


def _unchanged(trial: PinvTrial) -> float:
    given = trial.subject.array(trial.a)
    trial.subject.call(given)
    return same_bits(trial.subject.host(given, trial.a.shape, what="input afterwards"), trial.a, "the input was changed")


def _again(trial: PinvTrial) -> float:
    return same_bits(trial.of(trial.a), trial.x, "a second call gave other numbers")


def _adjoint(trial: PinvTrial) -> float:
    return trial.compare(_h(trial.of(_h(trial.a))), trial.x)


def _power(trial: PinvTrial) -> int:
    """A power of two that the matrix and its pseudo-inverse can both be multiplied with."""
    return -12 if getattr(trial.case, "log2_scale", 0) > 0 else 12


def _scaled(trial: PinvTrial) -> float:
    power = _power(trial)
    return trial.compare(trial.of(_times(trial.a, power)) * 2.0**power, trial.x)


def _scaled_bitwise(trial: PinvTrial) -> float:
    power = _power(trial)
    return same_bits(trial.of(_times(trial.a, power)) * 2.0**power, trial.x, f"pinv(2^{power} A) is not 2^{-power} pinv(A) bit for bit")


def _times(a: Host, power: int) -> Host:
    return np.asarray(a * a.dtype.type(2.0**power))


def _generator(trial: PinvTrial) -> np.random.Generator:
    return np.random.default_rng(getattr(trial.case, "seed", 0))


def _permuted(trial: PinvTrial) -> float:
    rng = _generator(trial)
    rows, columns = rng.permutation(trial.shape[0]), rng.permutation(trial.shape[1])
    expected = trial.x[np.ix_(columns, rows)]
    return trial.compare(trial.of(trial.a[np.ix_(rows, columns)]), expected)


def _rotated(trial: PinvTrial) -> float:
    rng = _generator(trial)
    m, n = trial.shape
    q, w = (random_frame(size, size, rng, complex_=trial.subject.is_complex) for size in (m, n))
    a = _layouts.round_to(q @ trial.a.astype(q.dtype) @ w, trial.known.dtype)
    return trial.compare(wide(_h(w)) @ trial.x @ wide(_h(q)), trial.of(a))


def _twice(trial: PinvTrial) -> float:
    back = trial.of(trial.x.astype(trial.a.dtype))
    return trial.compare(back, wide(trial.a), trial.unit * trial.known.kappa)


def _zero_row(trial: PinvTrial) -> float:
    m, n = trial.shape
    x = trial.of(np.concatenate([trial.a, np.zeros((1, n), dtype=trial.a.dtype)]))
    rest = spectral_norm(x[:, m:]) + spectral_norm(x[:, :m] - trial.x)
    return quotient(rest, trial.unit * spectral_norm(trial.x))


def _zero(trial: PinvTrial) -> float:
    return same_bits(trial.x, np.zeros_like(trial.x), "the pseudo-inverse of zero is not zero")


def _batch(trial: PinvTrial) -> np.ndarray[Any, Any]:
    """The matrix among others of other sizes and ranks."""
    other = trial.a[::-1] * trial.a.dtype.type(0.5)
    return np.stack([trial.a, other, np.zeros_like(trial.a), trial.a])


def _batched(trial: PinvTrial) -> float:
    x = trial.of(_batch(trial))
    return max(trial.compare(x[0], trial.x), trial.compare(x[3], trial.x), quotient(float(np.abs(x[2]).max(initial=0.0)), 1.0))


def _batched_bitwise(trial: PinvTrial) -> float:
    x = trial.of(_batch(trial))
    return same_bits(x[0], trial.x, "a matrix alone and in a batch gave different bits")


def _poisoned(trial: PinvTrial) -> float:
    """NaN in one matrix of a batch: an error, or the others untouched."""
    batch = _batch(trial)
    clean = trial.of(batch)
    batch[1, 0, 0] = np.nan
    try:
        x = trial.of(batch, finite=False)
    except Call:
        return 0.0
    keep = [0, 2, 3]
    if np.isfinite(x[1]).all():
        message = "NaN in a matrix of a batch gave finite numbers"
        raise Broken(message)
    return same_bits(x[keep], clean[keep], "NaN in one matrix of a batch changed another")


def _tainted(trial: PinvTrial, value: float) -> float:
    a = trial.a.copy()
    a[-1, -1] = value
    return not_answered(lambda: trial.of(a, finite=False), value)


def _empty(trial: PinvTrial) -> float:
    m, n = trial.shape
    for shape in ((0, n), (m, 0)):
        trial.of(np.zeros(shape, dtype=trial.a.dtype))
    return 0.0


def _layouts_agree(trial: PinvTrial) -> float:
    worst = 0.0
    for layout in _layouts.supported_layouts(trial.subject.library_of(trial.subject.array(trial.a))):
        try:
            x = trial.of(trial.a, layout=layout)
        except Call as error:
            message = f"layout {layout}: {error}"
            raise Broken(message) from error
        worst = max(worst, trial.compare(x, trial.x))
    return worst


def _has_claims(trial: PinvTrial) -> bool:
    try:
        return (
            isinstance(trial.result, tuple)
            and hasattr(trial.result, "error_bound")
            and hasattr(trial.result, "rank")
            and _affordable(trial)
        )
    except Broken:
        return False


def _claimed_bound(trial: PinvTrial) -> float:
    rank, bound = int(np.asarray(trial.result.rank)), float(np.asarray(trial.result.error_bound))
    if rank != trial.known.rank or bound == math.inf:
        return 0.0  # another rank is judged by the next law
    return quotient(spectral_norm(trial.x - trial.known.pinv), bound + trial.known.pinv_error)


def _claimed_rank(trial: PinvTrial) -> float:
    rank = int(np.asarray(trial.result.rank))
    if rank in (-1, trial.known.rank):
        return 0.0
    message = f"the rank is given as {rank}, it is {trial.known.rank}"
    raise Broken(message)


def _is_zero(trial: PinvTrial) -> bool:
    return trial.known.rank == 0


def _is_mild(trial: PinvTrial) -> bool:
    """Whether a second pseudo-inverse still has digits, and the same rank."""
    return trial.known.rank > 0 and trial.unit * trial.known.kappa < 1e-2 and abs(getattr(trial.case, "log2_scale", 0)) < 100


S, T = ratios.THRESHOLD, 2 * ratios.THRESHOLD
"""Ratio allowed for one result, and for two results compared."""


def laws(*, grade: str = "S", bitwise: bool = False, batched: bool = True, square: bool = False) -> list[Law[Any]]:
    """The properties of a pseudo-inverse.

    Parameters
    ----------
    grade : {"S", "N"}
        "N": conditions 3 and 4 are measured in the square of the condition.
    bitwise : bool
        Scaling by a power of two and batches must not change a bit.
    batched : bool
        Whether the function takes batches.
    square : bool
        It takes square matrices only: no row of zeros is added, and no matrix is empty.
    """
    k = "D u k" if grade == "S" else "D u k^2"
    found: list[Law[Any]] = [
        Law(
            name="penrose-1",
            words="A X A = A",
            formula="|A X A - A| <= 30 D u k |A|",
            threshold=S,
            measure=lambda t: _penrose(t, "AXA = A"),
        ),
        Law(
            name="penrose-2",
            words="X A X = X",
            formula="|X A X - X| <= 30 D u k |X|",
            threshold=S,
            measure=lambda t: _penrose(t, "XAX = X"),
        ),
        Law(
            name="penrose-3",
            words="A X is Hermitian",
            formula=f"|A X - (A X)^H| <= 30 {k}",
            threshold=S,
            measure=lambda t: _penrose(t, "AX Hermitian"),
        ),
        Law(
            name="penrose-4",
            words="X A is Hermitian",
            formula=f"|X A - (X A)^H| <= 30 {k}",
            threshold=S,
            measure=lambda t: _penrose(t, "XA Hermitian"),
        ),
        Law(
            name="forward-error",
            words="X is the true pseudo-inverse",
            formula="|X - A+| <= 30 D u k |A+|",
            threshold=S,
            measure=_forward,
            applies=_affordable,
        ),
        Law(name="rank", words="the rank is found", formula="tr(A X) rounds to the rank", threshold=0, measure=_rank),
        Law(
            name="kind",
            words="library and data type are kept",
            formula="same library, same data type",
            threshold=0,
            measure=_kind_kept,
            share=4,
        ),
        Law(name="zero", words="of zero it is exactly zero", formula="pinv(0) = 0", threshold=0, measure=_zero, applies=_is_zero),
        Law(
            name="adjoint",
            words="it commutes with the adjoint",
            formula="|pinv(A^H) - pinv(A)^H| <= 60 D u k |X|",
            threshold=T,
            measure=_adjoint,
            share=4,
        ),
        Law(
            name="permutation",
            words="rows and columns may be exchanged",
            formula="|pinv(P A Q) - Q^T pinv(A) P^T| <= 60 D u k |X|",
            threshold=T,
            measure=_permuted,
            share=4,
        ),
        Law(
            name="rotation",
            words="it follows rotations",
            formula="|pinv(Q A W) - W^H pinv(A) Q^H| <= 60 D u k |X|",
            threshold=T,
            measure=_rotated,
            share=4,
        ),
        Law(
            name="zero-row",
            words="a row of zeros adds a column of zeros",
            formula="|pinv([A; 0]) - [X, 0]| <= 60 D u k |X|",
            threshold=T,
            measure=_zero_row,
            share=4,
        ),
        Law(
            name="inverse-again",
            words="the pseudo-inverse of the pseudo-inverse is the matrix",
            formula="|pinv(pinv(A)) - A| <= 60 D u k^2 |A|",
            threshold=T,
            measure=_twice,
            applies=_is_mild,
            share=4,
        ),
        Law(
            name="input",
            words="the input is not changed",
            formula="A afterwards = A, bit for bit",
            threshold=0,
            measure=_unchanged,
            share=8,
        ),
        Law(name="repeat", words="the same input gives the same numbers", formula="bit for bit", threshold=0, measure=_again, share=8),
        Law(
            name="layout",
            words="strides, byte order and flags do not matter",
            formula="|pinv(A in another layout) - X| <= 60 D u k |X|",
            threshold=T,
            measure=_layouts_agree,
            share=16,
        ),
        Law(
            name="empty",
            words="matrices without rows or columns have empty pseudo-inverses",
            formula="(0, n) -> (n, 0)",
            threshold=0,
            measure=_empty,
            share=16,
        ),
        Law(
            name="nan",
            words="NaN is not answered with numbers",
            formula="an error, or NaN in the result",
            threshold=0,
            measure=lambda t: _tainted(t, math.nan),
            share=8,
        ),
        Law(
            name="infinity",
            words="infinity is not answered with numbers",
            formula="an error, or NaN or infinity in the result",
            threshold=0,
            measure=lambda t: _tainted(t, math.inf),
            share=8,
        ),
        Law(
            name="claimed-bound",
            words="the error bound returned holds",
            formula="|X - A+| <= error_bound",
            threshold=1,
            measure=_claimed_bound,
            applies=_has_claims,
        ),
        Law(
            name="claimed-rank",
            words="the rank returned is right, or not claimed",
            formula="rank in (-1, rank of A)",
            threshold=0,
            measure=_claimed_rank,
            applies=_has_claims,
        ),
    ]
    found.append(
        Law(
            name="scaling",
            words="powers of two pass through",
            formula="pinv(2^e A) = 2^-e pinv(A), bit for bit",
            threshold=0,
            measure=_scaled_bitwise,
            share=4,
        )
        if bitwise
        else Law(
            name="scaling",
            words="powers of two pass through",
            formula="|pinv(2^e A) 2^e - X| <= 60 D u k |X|",
            threshold=T,
            measure=_scaled,
            share=4,
        )
    )
    if batched:
        found += [
            Law(
                name="batch",
                words="a batch is its members",
                formula="|pinv([A, ..])[0] - X| <= 60 D u k |X|",
                threshold=T,
                measure=_batched,
                share=8,
            ),
            Law(
                name="poisoned-batch",
                words="NaN in one member leaves the others alone",
                formula="an error, or the others bit for bit",
                threshold=0,
                measure=_poisoned,
                share=16,
            ),
        ]
        if bitwise:
            found.append(
                Law(name="batch-bits", words="alone or in a batch", formula="the same bits", threshold=0, measure=_batched_bitwise, share=8)
            )
    return [law for law in found if not square or law.name not in ("zero-row", "empty")]
