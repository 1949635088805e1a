"""What the assertions say when they fail, and what they tell hypothesis while they pass."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from softlinalg import _arrays
from softlinalg.testing.ratios import THRESHOLD, worst

__all__ = ["AccuracyError", "call", "check", "report_ratio", "worst_entry"]


class AccuracyError(AssertionError):
    """A result is less accurate than the law says, or breaks it outright.

    Attributes
    ----------
    property : str
        The law, as in the dictionaries of `softlinalg.testing.ratios`.
    ratio : float
        Error over eps x condition x dimension; infinite where there is no number (wrong shape, NaN, an exception).
    threshold : float
        Largest ratio allowed.
    case : object
        The case, with `code`, the line that builds it again; or None.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import AccuracyError, assert_pinv, build_matrix
    >>> try:
    ...     assert_pinv(np.zeros((2, 3)), build_matrix(shape=(3, 2)))
    ... except AccuracyError as error:
    ...     print(error.property)
    XAX = X
    """

    def __init__(self, message: str, *, property: str, ratio: float, threshold: float = THRESHOLD, case: Any = None) -> None:  # noqa: A002
        super().__init__(message)
        self.property = property
        self.ratio = ratio
        self.threshold = threshold
        self.case = case


MEANINGS = {
    "AXA = A": "A X A is not A: X does not invert A on its range, as a pseudo-inverse must",
    "XAX = X": "X A X is not X: X is larger than a pseudo-inverse, or its rank is (noise was inverted)",
    "AX Hermitian": "A X is not Hermitian: it is no orthogonal projection, so X b is not the least-squares solution",
    "XA Hermitian": "X A is not Hermitian: it is no orthogonal projection, so X b is not the solution of least norm",
    "X = A^+": "X is farther from the true pseudo-inverse than rounding of A explains",
    "BX = I": "B X is not the identity: X is not a right inverse",
    "XB = I": "X B is not the identity: X is not a left inverse",
    "X = B^-1": "X is farther from the true inverse than rounding explains",
    "Hermitian": "the matrix differs from its conjugate transpose by more than rounding",
    "symmetric": "the matrix differs from its transpose by more than rounding",
    "psd": "the smallest eigenvalue is negative beyond rounding: no covariance, no Cholesky factor",
    "0 <= K <= 1": "kernel values lie outside [0, 1]; distances were probably not clamped at zero",
    "diagonal": "the diagonal is wrong: k(x, x) must be exactly one, and an approximation's at most that of K",
    "values": "kernel values are off by more than rounding of centered distances; cancellation in |x|^2 + |y|^2 - 2 x.y is the usual cause",
    "K_hat >= 0": "the approximation has negative eigenvalues beyond rounding: it is no kernel matrix",
    "K_hat <= K": "the approximation explains more than there is (K - K_hat has negative eigenvalues): the factorisation broke down",
    "A_hat >= 0": "the approximation has negative eigenvalues beyond rounding",
    "A_hat <= A": "A - A_hat has negative eigenvalues beyond rounding: more was explained than there is",
    "rank": "the rank is larger than promised",
    "error": "the approximation is worse than the best of its rank allows",
    "trace": "less is explained than the landmarks allow: eigenvalues were dropped, or the inverse has not converged",
    "alone as in the batch": "a member's result depends on who else is in the batch",
    "order of the batch": "a member's result depends on its place in the batch",
    "NaN of a batch mate": "NaN in one member has reached another",
    "libraries agree": "one array library gives other numbers than another, beyond rounding",
    "layouts agree": "the result depends on how the same numbers lie in memory",
    "no worse than the reference": "the error is larger than that of the reference allows",
    "output": "the output differs from the truth by more than rounding and a plain computation in the same precision explain",
}
"""What it means, in half a sentence, that a law is broken."""


def worst_entry(got: Any, expected: Any) -> str:
    """Index and values of the entry that is farthest from what was expected, for a message; empty where shapes differ."""
    try:
        left, right = np.asarray(_arrays.to_numpy(got)), np.asarray(_arrays.to_numpy(expected))
    except Exception:  # what came is no array: the message says so elsewhere
        return ""
    if left.shape != right.shape or left.size == 0 or left.dtype.kind not in "fciub":
        return ""
    with np.errstate(all="ignore"):
        gap = np.abs(left.astype(complex) - right.astype(complex))
    index = np.unravel_index(int(np.argmax(np.where(np.isnan(gap), np.inf, gap))), gap.shape)
    where = ", ".join(str(int(i)) for i in index)
    digits = 6 if f"{left[index]:.6g}" != f"{right[index]:.6g}" else 17
    return f"[{where}]: got {left[index]:.{digits}g}, expected {right[index]:.{digits}g}"


def report_ratio(ratio: float, label: str) -> None:
    """Tell hypothesis, inside a test of its own, to look for larger ratios (`hypothesis.target` of the logarithm)."""
    hypothesis = sys.modules.get("hypothesis")
    if hypothesis is None or not hypothesis.currently_in_test_context():
        return
    value = math.log10(min(max(ratio, 1e-30), 1e30)) if not math.isnan(ratio) else 30.0
    try:
        hypothesis.target(value, label=label)
    except Exception:  # a label can be used once for each example: the first use counts
        return


def check(
    subject: str, ratios: dict[str, float], *, threshold: float = THRESHOLD, case: Any = None, units: str = "", entry: Any = None,
    note: str = "",
) -> None:  # fmt: skip
    """Raise AccuracyError, with everything that helps, where a ratio is above the threshold.

    Parameters
    ----------
    subject : str
        What was tested, for the first line.
    ratios : dict
    case : object, optional
        With `desc` and `code`.
    units : str
        What one unit is, with its numbers.
    entry : function of the law's name to str, or str, optional
        The worst entry.
    note : str
        Another line.
    """
    for law, ratio in ratios.items():
        report_ratio(ratio, law)
    law, ratio = worst(ratios)
    if not ratio > threshold:  # NaN never gets here: ratios are infinite instead
        return
    place = entry(law) if callable(entry) else (entry or "")
    others = ", ".join(f"{name} {value:.3g}" for name, value in ratios.items())
    lines = [
        f"{subject}: {law!r} has ratio {ratio:.3g}, above the threshold {threshold:g}.",
        f"  Meaning: {MEANINGS.get(law, law)}.",
        f"  Worst entry: {place}." if place else "",
        f"  Unit: {units}." if units else "",
        f"  {note}" if note else "",
        f"  All ratios: {others}." if len(ratios) > 1 else "",
        *_origin(case),
    ]
    raise AccuracyError("\n".join(line for line in lines if line), property=law, ratio=ratio, threshold=threshold, case=case)


def _origin(case: Any) -> list[str]:
    """What a case is, and the line that builds it again, where it says so."""
    desc, code = str(getattr(case, "desc", "")), str(getattr(case, "code", ""))
    return [*([f"  Case: {desc}."] if desc else []), *([f"  Repeat: {code}"] if code else [])]


def call(subject: str, f: Callable[..., Any], *args: Any, case: Any = None, **settings: Any) -> Any:
    """f(*args), with an exception of any kind turned into a failure that names the case."""
    try:
        return f(*args, **settings)
    except AccuracyError:
        raise
    except Exception as error:
        lines = [
            f"{subject}: the function raised {type(error).__name__}: {str(error)[:300]}",
            "  Meaning: it refused an input that it has to take.",
            *_origin(case),
        ]
        message = "\n".join(line for line in lines if line)
        raise AccuracyError(message, property="an answer", ratio=math.inf, case=case) from error


def name_of(f: Any) -> str:
    """How to call a function in a message."""
    return str(getattr(f, "__name__", type(f).__name__))
