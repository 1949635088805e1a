"""The plan of a streamed approximation: landmarks, core and precision, settled on a sample before the pass over all rows.

A plan is made of arrays and numbers, so that it can be written to a checkpoint and sent to other machines, and gives every one of
them the same feature map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from softlinalg import _arrays
from softlinalg._landmarks import select_landmarks
from softlinalg._nystrom_core import CUT_OFF, FeatureMap, Summary, Whitening, Wide, summary_of
from softlinalg._nystrom_fit import FLOOR_SHARE, Problem, feature_map_of, measure, measured_floor, unit_of, whitening_of
from softlinalg._streaming_sources import Host
from softlinalg.errors import NumericalError

__all__ = ["PROBE_ROWS", "Plan", "Request", "make_plan", "stages"]

PROBE_ROWS = 4096
"""Rows of the sample, at least, on which precision, cut-off and length scale are settled."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Request:
    """A call with its arguments checked."""

    func: str
    kernel: Any
    rank: int
    """Number of landmarks."""
    method: str
    rtol: float | None
    rng: np.random.Generator
    dtype: str
    """Of rows and features."""
    progress: bool = False

    def problem(self, x: Host, kernel: Any) -> Problem:
        """The approximation of some rows."""
        xp = _arrays.host_namespace()
        return Problem(
            func=self.func,
            x=x,
            kernel=kernel,
            dtype=np.dtype(self.dtype),
            rtol=self.rtol,
            rng=self.rng,
            chunk_size=None,
            progress=False,
            store_features=False,
            wide=Wide(x, xp=xp),
            xp=xp,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Plan:
    """What turns rows into features; all arrays are on the host."""

    func: str
    kernel: Any
    dtype: str
    in_float64: bool
    stage: int
    """Which of `stages` this is."""
    unit: float
    """Rounding of kernel values."""
    row_floor: float | None
    """Measured rounding floor of the trace error, per row; None: it is summed over the rows."""
    noise: float
    spread: float
    landmarks: Host
    """Shape (m, d), in the order of their choice."""
    order: Host
    map: Host
    eigenvalues: Host
    turn: Host

    def wide(self) -> Wide:
        """float64 arithmetic on the host."""
        return Wide(self.map, xp=_arrays.host_namespace())

    def whitening(self) -> Whitening:
        """The core."""
        return Whitening(self.map, [int(i) for i in self.order], self.eigenvalues, self.turn, self.noise, self.spread)

    def feature_map(self) -> FeatureMap:
        """x -> features."""
        return FeatureMap(
            kernel=self.kernel,
            landmarks=self.landmarks[self.order],
            map=self.map,
            dtype=np.dtype(self.dtype),
            in_float64=self.in_float64,
            chunk_size=None,
            wide=self.wide(),
            xp=_arrays.host_namespace(),
        )

    def stored_unit(self) -> float:
        """Rounding of the features."""
        return _arrays.eps(np.dtype(self.dtype))

    def summary(self, gram: Host, totals: Host, rows: float) -> Summary:
        """What sums over all rows tell of the approximation."""
        found = summary_of(gram, totals, func=self.func, wide=self.wide())
        return found if self.row_floor is None else found._replace(floor=self.row_floor * rows)

    def is_sound(self, summary: Summary) -> bool:
        """Whether no more is explained than there is, and rounding leaves something of the error where it could leave more."""
        sound = summary.broken_rows == 0 and summary.trace_error >= -summary.floor
        return sound and (self.row_floor is None or summary.floor <= FLOOR_SHARE * summary.trace_error)


def stages(dtype: str, rtol: float | None) -> list[tuple[float, bool]]:
    """Cut-offs, and whether blocks are computed in float64: what is tried, one after the other, until an approximation is sound.

    The same as for data in memory: the dtype of the data, float64, then larger cut-offs unless one was asked for.
    """
    first = rtol or CUT_OFF[dtype]
    single = dtype == "float32"
    tried = [(first, False), (first, True)] if single else [(first, False)]
    return tried if rtol is not None else [*tried, (1e2 * first, single), (1e4 * first, single)]


def make_plan(
    request: Request, sample: Host, landmarks: Host | None = None, kernel: Any = None, stage: int = 0, failure: str = "no sound plan"
) -> Plan:
    """Settle the length scale, choose landmarks among the sample unless they are given, and find cut-off and precision.

    Parameters
    ----------
    request : Request
    sample : array, shape (s, d)
        A uniform sample of the rows.
    landmarks : array, shape (m, d), optional
        Given, or of an earlier plan.
    kernel : Kernel, optional
        Settled already.
    stage : int, default 0
        Where to begin in `stages`.
    failure : str
        What was found at the stages before.

    Returns
    -------
    Plan

    Raises
    ------
    NumericalError
        No stage is sound on the sample.
    """
    kernel = request.kernel if kernel is None else kernel
    if hasattr(kernel, "resolve"):
        kernel = kernel.resolve(sample, request.rng)
    if landmarks is None:
        landmarks = select_landmarks(
            sample, request.rank, method=request.method, kernel=kernel, rng=request.rng, progress=request.progress, check_finite=False
        )
    landmarks = np.asarray(landmarks, dtype=request.dtype)
    probe = sample[:: -(-len(sample) // PROBE_ROWS)]
    problem = request.problem(probe, kernel)
    tried = stages(request.dtype, request.rtol)
    for number in range(stage, len(tried)):
        rtol, in_float64 = tried[number]
        whitening = whitening_of(problem, landmarks, rtol)
        feature_map = feature_map_of(problem, landmarks, whitening, in_float64=in_float64)
        summary, _ = measure(problem, feature_map, probe, whitening, keep=False)
        measured = request.dtype == "float32" and not in_float64 and feature_map.rank > 0
        if measured:
            summary = summary._replace(floor=measured_floor(problem, feature_map, whitening, probe))
        plan = Plan(
            func=request.func,
            kernel=kernel,
            dtype=request.dtype,
            in_float64=in_float64,
            stage=number,
            unit=unit_of(problem, feature_map),
            row_floor=summary.floor / len(probe) if measured else None,
            noise=whitening.noise,
            spread=whitening.spread,
            landmarks=landmarks,
            order=np.asarray(whitening.order, dtype=np.int64),
            map=np.ascontiguousarray(whitening.map),
            eigenvalues=np.asarray(whitening.eigenvalues),
            turn=np.ascontiguousarray(whitening.turn),
        )
        if plan.is_sound(summary):
            return plan
        failure = f"{summary.broken_rows} rows explained beyond it, and a trace error of {summary.trace_error:.3g}"
    message = (
        f"{request.func}: kernel must bound its approximation; got {failure[:160]}. "
        "It is not positive semi-definite, or too inaccurate in this dtype: pass float64, or a larger rtol."
    )
    raise NumericalError(message[:400])
