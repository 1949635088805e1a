"""Whole suites: any function against the laws of what it claims to compute, over a fixed grid of cases.

>>> import numpy as np
>>> from softlinalg.testing import suites
>>> report = suites.pinv(np.linalg.pinv, dtype="float32", profile="smoke")
>>> report.passed, report["forward-error"].failures > 0
(False, True)

The cut-off 1e-15 that NumPy uses by default lies below the rounding unit of float32. The answer for each property, with the
smallest failing example and a line that builds it again: ``print(report)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from softlinalg.errors import ParameterError
from softlinalg.testing import _suite_attention, _suite_kernel, _suite_matrices, _suite_nystrom, _suite_pinv
from softlinalg.testing._laws import Subject, run
from softlinalg.testing._report import Report
from softlinalg.testing._suite_nystrom import Linear, Scaled

__all__ = ["KINDS", "PROFILES", "Linear", "Scaled", "attention", "check", "kernel", "nystrom", "pinv"]

KINDS = ("pinv", "kernel", "nystrom", "attention")

PROFILES = ("smoke", "ci", "deep")
"""How thorough: at most 5 seconds, a minute, or ten minutes for a function that takes about a millisecond."""

CASES = {
    "pinv": {"smoke": 120, "ci": 1500, "deep": 15000},
    "kernel": {"smoke": 150, "ci": 2000, "deep": 20000},
    "nystrom": {"smoke": 60, "ci": 800, "deep": 8000},
    "attention": {"smoke": 100, "ci": 1500, "deep": 12000},
}
"""Cases of each profile, besides the gallery."""


def pinv(
    function: Callable[..., Any],
    *,
    dtype: str = "float64",
    backend: str = "numpy",
    profile: str = "ci",
    grade: str = "S",
    bitwise: bool = False,
    batched: bool = True,
    square: bool = False,
    max_cond: float | None = None,
    cases: int | None = None,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    target: str | None = None,
    progress: bool = False,
) -> Report:
    r"""A function f(a) -> array against the laws of the Moore-Penrose pseudo-inverse.

    Parameters
    ----------
    function : callable
        Takes an array of shape (..., m, n), returns one of shape (..., n, m), or a named tuple with that as `value`. If the tuple also
        has `error_bound` and `rank`, as that of `softlinalg.certified_pinv`, these claims are tested too.
    dtype : {"float32", "float64", "complex64", "complex128"}
        Of the arrays that it gets.
    backend : {"numpy", "torch", "jax", "array-api-strict", "cupy"}
        Whose arrays it gets.
    profile : {"smoke", "ci", "deep"}
        How many cases (see `PROFILES`).
    grade : {"S", "N"}
        "S": as accurate as a singular value decomposition, up to conditions at which every usual cut-off keeps all singular values. "N":
        as accurate as a sound iteration by products, up to the condition sqrt(0.1 / eps); the symmetry of A X and X A is measured in the
        square of the condition.
    bitwise : bool, default False
        Hold it to more: powers of two pass through, and a matrix alone or in a batch gives the same bits.
    batched : bool, default True
        Whether it takes batches.
    square : bool, default False
        It takes square matrices only.
    max_cond : float, optional
        Largest condition that it claims to cope with, instead of that of the grade.
    cases : int, optional
        Number of matrices, instead of that of the profile.
    only : sequence of str, optional
        Names of the laws to hold it to, as reports show them. Default: all of the suite.
    skip : sequence of str
        Names of laws to leave out. `Report.skipped` and everything that a report prints name the laws that were left out either way.
    target : str, optional
        How the report calls it.
    progress : bool, default False
        Show a bar on a terminal.

    Returns
    -------
    Report

    Raises
    ------
    ParameterError
        A setting outside its choices, a name of no law, or a backend that is not installed.

    Notes
    -----
    Matrices have prescribed singular values (six kinds of spectra), ranks from zero to full, conditions from one to the largest of the
    grade, and scales up to 2**60 (2**400 in double precision). A failure is made simpler as long as it fails. The same call gives the
    same cases. Laws that call the function again are measured on a part of the cases.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import suites
    >>> import scipy.linalg
    >>> suites.pinv(scipy.linalg.pinv, batched=False, profile="smoke", cases=5).kind
    'pinv'
    >>> report = suites.pinv(lambda a: np.linalg.pinv(a, rtol=None), profile="smoke", cases=20, skip=("infinity",))
    >>> report.passed, report.skipped                                     # of infinity it makes numbers
    (True, ('infinity',))
    """
    subject = Subject(function=function, target=target or name_of(function), backend=backend, dtype=dtype, grade=grade)
    count, large = _count("pinv", profile, cases), profile == "deep"
    drawn: list[Any] = list(_suite_matrices.matrices(count, dtype=dtype, grade=grade, large=large, square=square, max_cond=max_cond))
    drawn += _suite_matrices.gallery_cases(dtype=dtype, grade=grade, max_cond=max_cond)[:count]
    if square:
        drawn = [case for case in drawn if case.case.shape[0] == case.case.shape[1]]
    laws = _suite_pinv.laws(grade=grade, bitwise=bitwise, batched=batched, square=square)
    return run(
        subject, drawn, laws, kind="pinv", profile=profile, make_trial=_suite_pinv.PinvTrial, only=only, skip=skip, progress=progress
    )


def kernel(
    function: Callable[..., Any],
    *,
    dtype: str = "float64",
    backend: str = "numpy",
    profile: str = "ci",
    grade: str = "S",
    bitwise: bool = False,
    batched: bool = True,
    cases: int | None = None,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    target: str | None = None,
    progress: bool = False,
) -> Report:
    r"""A function `f(x, y=None, *, length_scale) -> array` against the laws of the Gaussian kernel exp(-|x - y|^2 / (2 l^2)).

    Parameters
    ----------
    function : callable
        Takes points (..., n, d), perhaps others (..., m, d), and a length scale; returns the kernel matrix (..., n, m). Without `y` it
        is that of the points with themselves.
    dtype : {"float32", "float64"}
    backend, profile, cases, only, skip, target, progress
        As in `pinv`.
    grade : {"S", "N"}
        "S": as accurate as differences of the points. "N": as accurate as matrix products of centered points, which lose digits on points
        that are many length scales from the mean.
    bitwise : bool, default False
        Hold it to more: scaling points and length scale by a power of two, and the neighbours in a batch, do not change a bit.
    batched : bool, default True
        Whether it takes batches of point sets.

    Returns
    -------
    Report

    Raises
    ------
    ParameterError
        As in `pinv`; a complex data type.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import suites
    >>> from softlinalg import gaussian_kernel
    >>> suites.kernel(gaussian_kernel, profile="smoke", cases=5).passed
    True
    """
    subject = _real(Subject(function=function, target=target or name_of(function), backend=backend, dtype=dtype, grade=grade))
    drawn = _suite_kernel.points(_count("kernel", profile, cases), dtype=dtype, large=profile == "deep")
    laws = _suite_kernel.laws(grade=grade, bitwise=bitwise, batched=batched)
    return run(
        subject, drawn, laws, kind="kernel", profile=profile, make_trial=_suite_kernel.KernelTrial, only=only, skip=skip, progress=progress
    )


def nystrom(
    function: Callable[..., Any],
    *,
    dtype: str = "float64",
    backend: str = "numpy",
    profile: str = "ci",
    cases: int | None = None,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    target: str | None = None,
    progress: bool = False,
) -> Report:
    r"""A function `f(x, kernel, *, landmarks)` against the laws of the Nystrom approximation k(x, L) k(L, L)^+ k(L, x).

    Parameters
    ----------
    function : callable
        Takes points (n, d), a kernel (an object with `__call__(x, y)` and `diagonal(x)`: `softlinalg.Gaussian`, or `Linear` of this
        module) and landmarks (m, d); returns a factor F (n, r) with F F^T the approximation, or an object with `landmarks` and
        `to_dense()` such as `softlinalg.nystrom` returns.
    dtype : {"float32", "float64"}
    backend, profile, cases, only, skip, target, progress
        As in `pinv`.

    Returns
    -------
    Report

    Raises
    ------
    ParameterError
        As in `pinv`; a complex data type.

    Notes
    -----
    Errors of half of the digits are allowed, since most methods take the square root of a matrix that is singular to rounding: what
    fails has lost more than that.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import suites
    >>> import softlinalg
    >>> def factor(x, kernel, *, landmarks):
    ...     return softlinalg.nystrom(x, kernel, landmarks=landmarks).features()
    >>> suites.nystrom(factor, profile="smoke", cases=5).kind
    'nystrom'
    """
    subject = _real(Subject(function=function, target=target or name_of(function), backend=backend, dtype=dtype))
    drawn = _suite_nystrom.low_rank_cases(_count("nystrom", profile, cases), dtype=dtype, large=profile == "deep")
    make = _suite_nystrom.NystromTrial
    return run(
        subject, drawn, _suite_nystrom.laws(), kind="nystrom", profile=profile, make_trial=make, only=only, skip=skip, progress=progress
    )


def attention(
    function: Callable[..., Any],
    *,
    dtype: str = "float32",
    backend: str = "numpy",
    profile: str = "ci",
    bitwise: bool = False,
    batched: bool = True,
    cases: int | None = None,
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    target: str | None = None,
    progress: bool = False,
) -> Report:
    r"""A function f(q, v, landmarks) -> array against softmax-free attention C (W + 0.01 I)^-1 (C^T v).

    Parameters
    ----------
    function : callable
        Takes queries (..., n, d), which are the keys as well, values (..., n, e) and landmarks (..., m, d); returns (..., n, e).
        C = k(q, L) and W = k(L, L) are Gaussian kernels of the length scale d^(1/4).
    dtype : {"float32", "float64"}
    backend, profile, cases, only, skip, target, progress
        As in `pinv`.
    bitwise : bool, default False
        Hold it to more: the neighbours in a batch do not change a bit.
    batched : bool, default True
        Whether it takes leading axes.

    Returns
    -------
    Report

    Raises
    ------
    ParameterError
        As in `pinv`; a complex data type.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import suites
    >>> import softlinalg
    >>> suites.attention(softlinalg.soft_attention, profile="smoke", cases=5).passed
    True
    """
    subject = _real(Subject(function=function, target=target or name_of(function), backend=backend, dtype=dtype))
    drawn = _suite_attention.attention_cases(_count("attention", profile, cases), dtype=dtype, large=profile == "deep")
    laws = _suite_attention.laws(bitwise=bitwise, batched=batched)
    return run(
        subject,
        drawn,
        laws,
        kind="attention",
        profile=profile,
        make_trial=_suite_attention.AttentionTrial,
        only=only,
        skip=skip,
        progress=progress,
    )


_SUITES: dict[str, Callable[..., Report]] = {"pinv": pinv, "kernel": kernel, "nystrom": nystrom, "attention": attention}


def check(function: Callable[..., Any], kind: str, **settings: Any) -> Report:
    """The suite of a kind, by name.

    Parameters
    ----------
    function : callable
    kind : {"pinv", "kernel", "nystrom", "attention"}
    **settings
        Those of the function of that name; `grade`, `bitwise`, `batched`, `square` and `max_cond` are ignored by suites that do not
        have them.

    Returns
    -------
    Report

    Raises
    ------
    ParameterError
        An unknown kind, and what the suites raise.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import suites
    >>> report = suites.check(np.linalg.pinv, "pinv", dtype="float32", profile="smoke", cases=10)
    >>> report.passed                                                      # the default cut-off of 1e-15 is below rounding
    False
    """
    if kind not in _SUITES:
        message = f"check: kind must be one of {', '.join(KINDS)}; got {kind!r}. Choose one of these."
        raise ParameterError(message)
    lacking = {
        "pinv": set(),
        "kernel": {"square", "max_cond"},
        "nystrom": {"grade", "bitwise", "batched", "square", "max_cond"},
        "attention": {"grade", "square", "max_cond"},
    }[kind]
    return _SUITES[kind](function, **{name: value for name, value in settings.items() if name not in lacking})


def name_of(function: Any) -> str:
    """How a report calls a function."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if name is None:
        return type(function).__name__
    return f"{module}.{name}" if module and "<" not in name else str(name)


def _count(kind: str, profile: str, cases: int | None) -> int:
    if profile not in PROFILES:
        message = f"suite: profile must be one of {', '.join(PROFILES)}; got {profile!r}. Choose one of these."
        raise ParameterError(message)
    if cases is None:
        return CASES[kind][profile]
    if cases < 1:
        message = f"suite: cases must be at least 1; got {cases}. Ask for more, or leave it to the profile."
        raise ParameterError(message)
    return cases


def _real(subject: Subject) -> Subject:
    if subject.is_complex:
        message = f"suite: dtype must be real for this suite; got {subject.dtype}. Choose float32 or float64."
        raise ParameterError(message)
    return subject
