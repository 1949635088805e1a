"""Run any function over many cases, measure laws on each, and find the smallest case on which a law fails."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import importlib.util
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from softlinalg import _arrays
from softlinalg._settings import is_one_of, shown
from softlinalg.errors import ParameterError
from softlinalg.testing import _layouts
from softlinalg.testing._report import Example, PropertyResult, Report, machine, versions

__all__ = ["BACKENDS", "DTYPES", "AnyCase", "Broken", "Call", "Law", "Subject", "first_cases", "mixed", "run", "spectral_norm"]

Host = np.ndarray[Any, Any]

BACKENDS = {"numpy": "numpy", "torch": "torch", "jax": "jax", "array-api-strict": "array_api_strict", "cupy": "cupy"}
"""Array libraries that a function can be given arrays of, and the module to import."""

DTYPES = ("float32", "float64", "complex64", "complex128")

SHRINK_LIMIT = 400
"""Evaluations of a law that the search for its smallest failing case may take."""


_Combination = TypeVar("_Combination")


def mixed(combinations: Sequence[_Combination]) -> tuple[_Combination, ...]:
    """The combinations of a grid in an order that is always the same, so that the first few are of every kind."""
    order = np.random.default_rng(2024).permutation(len(combinations))
    return tuple(combinations[i] for i in order)


def first_cases(combinations: Sequence[_Combination], count: int) -> list[_Combination]:
    """The first `count` of some combinations, dataclasses with a `seed`; after all of them once, again with other seeds."""
    return [replace(combinations[i % len(combinations)], seed=1 + i) for i in range(count)]  # type: ignore[type-var]


class Broken(Exception):  # noqa: N818 - not an error of ours but what is wrong with a result
    """A result that has no finite ratio: a wrong shape, NaN, another data type. The message says which."""


class Call(Broken):
    """The function raised an error where it should have answered."""

    def __init__(self, error: BaseException) -> None:
        words = " ".join(str(error).split())
        super().__init__(f"raised {type(error).__name__}: {words[:120]}" if words else f"raised {type(error).__name__}")
        self.label = f"{type(error).__name__}: {words[:60]}" if words else type(error).__name__


class AnyCase(Protocol):
    """What a suite feeds to a function: parameters from which the input follows."""

    @property
    def description(self) -> str:
        """In words, short."""

    @property
    def reproduction(self) -> str:
        """One line of Python."""

    @property
    def group(self) -> str:
        """To count failures by."""

    def simpler(self) -> Iterator[AnyCase]:
        """Simpler cases of the same kind, simplest change last; must not lead back to this one."""


C = TypeVar("C", bound=AnyCase)


@dataclass(kw_only=True)
class Subject:
    """A function under test, and the arrays that it is called with.

    Parameters
    ----------
    function : callable
    target : str
        Its name, for the report.
    backend : str
        Library of the arrays that it gets: a key of `BACKENDS`.
    dtype : str
        Data type of these arrays.
    grade : {"S", "N"}
        Accuracy class to hold it to.
    """

    function: Callable[..., Any]
    target: str
    backend: str = "numpy"
    dtype: str = "float64"
    grade: str = "S"

    def __post_init__(self) -> None:
        if not callable(self.function):
            message = f"suite: function must be callable; got {type(self.function).__name__}. Pass a function."
            raise ParameterError(message)
        for name, value, known in (
            ("backend", self.backend, tuple(BACKENDS)),
            ("dtype", self.dtype, DTYPES),
            ("grade", self.grade, ("S", "N")),
        ):
            if value not in known:
                message = f"suite: {name} must be one of {', '.join(known)}; got {value!r}. Choose one of these."
                raise ParameterError(message)
        if importlib.util.find_spec(BACKENDS[self.backend]) is None:
            message = f"suite: backend must be installed; got {self.backend!r}, which is not. Install it, or choose another."
            raise ParameterError(message)

    @property
    def eps(self) -> float:
        """Rounding unit of the data type (2 u in the notation of some books)."""
        return float(np.finfo(self.dtype).eps)

    @property
    def is_complex(self) -> bool:
        """Whether the entries are complex."""
        return self.dtype.startswith("complex")

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """What the library needs to be tested: 64-bit types in JAX, no warnings of numbers."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(np.errstate(all="ignore"))
            if self.backend == "jax":
                import jax

                stack.enter_context(jax.enable_x64(True))
            yield

    def array(self, host: Host, *, layout: str = "C") -> Any:
        """Host numbers as an array of the library, in the data type under test."""
        if self.backend == "numpy" and layout == "C":
            return np.array(host, dtype=self.dtype, order="C", copy=True)
        return _layouts.place(np.asarray(host, dtype=self.dtype), dtype=self.dtype, xp=BACKENDS[self.backend], layout=layout)

    def call(self, *arguments: Any, **settings: Any) -> Any:
        """The function's answer as it comes; Call where it raises."""
        try:
            return self.function(*arguments, **settings)
        except Exception as error:
            raise Call(error) from error

    def host(self, result: Any, shape: tuple[int, ...], *, what: str = "result", finite: bool = True) -> Host:
        """The answer on the host, after a look at its shape and that it is finite.

        Raises
        ------
        Broken
        """
        try:
            host = np.asarray(_arrays.to_numpy(result))
        except Exception as error:
            message = f"{what} is no array but {type(result).__name__}"
            raise Broken(message) from error
        if host.shape != shape:
            message = f"{what} has the shape {host.shape}, not {shape}"
            raise Broken(message)
        if host.dtype.kind not in "fc":
            message = f"{what} has the data type {host.dtype}"
            raise Broken(message)
        if finite and not np.isfinite(host).all():
            message = f"{what} holds {'NaN' if np.isnan(host).any() else 'infinity'}"
            raise Broken(message)
        return host

    def dtype_of(self, result: Any) -> str:
        """Name of the data type of an answer."""
        return str(_arrays.dtype_name(result.dtype))

    def library_of(self, result: Any) -> str:
        """Top-level package of the type of an answer."""
        return type(result).__module__.partition(".")[0]


def wide(host: Host) -> Host:
    """In double precision."""
    return host.astype(np.complex128 if host.dtype.kind == "c" else np.float64)


def spectral_norm(host: Host) -> float:
    """Largest singular value; 0 for an empty matrix, infinity where it is not finite."""
    if host.size == 0:
        return 0.0
    largest = float(np.abs(host).max())
    if not math.isfinite(largest):
        return math.inf
    if largest == 0:
        return 0.0
    exponent = math.frexp(largest)[1]  # keeps the products inside LAPACK in range
    scaled = np.ldexp(host, -exponent) if host.dtype.kind == "f" else np.ldexp(host.real, -exponent) + 1j * np.ldexp(host.imag, -exponent)
    return float(math.ldexp(float(np.linalg.norm(scaled, 2)), exponent)) if exponent < 1000 else math.inf


def quotient(error: float, unit: float) -> float:
    """Error over its unit; 0 / 0 is 0, and what is not a number is infinite."""
    if math.isnan(error) or math.isnan(unit):
        return math.inf
    if error == 0:
        return 0.0
    return error / unit if unit > 0 else math.inf


def same_bits(x: Host, expected: Host, reason: str) -> float:
    """0 where two results are equal bit for bit; Broken, with the reason given, otherwise."""
    if np.array_equal(x, expected, equal_nan=True):
        return 0.0
    raise Broken(reason)


def kind_kept(subject: Subject, result: Any, given: Any) -> float:
    """0 where an answer has the library and the data type of the input; Broken otherwise."""
    if subject.library_of(result) != subject.library_of(given):
        message = f"the result is an array of {subject.library_of(result)}, not of {subject.library_of(given)}"
        raise Broken(message)
    if subject.dtype_of(result) != subject.dtype:
        message = f"the result is {subject.dtype_of(result)}"
        raise Broken(message)
    return 0.0


def not_answered(answer: Callable[[], Host], value: float) -> float:
    """0 where an answer to NaN or infinity is an error or holds something that is not finite; Broken otherwise."""
    try:
        numbers = answer()
    except Call:
        return 0.0
    if np.isfinite(numbers).all():
        message = f"{value} in one entry of the input gave finite numbers, silently"
        raise Broken(message)
    return 0.0


@dataclass(frozen=True, kw_only=True)
class Law(Generic[C]):
    """A property that every case is measured against.

    Parameters
    ----------
    name, words, formula : str
    threshold : float
        Largest ratio allowed: 30 for error bounds of size "unit roundoff x dimension x condition", 0 for what must hold bit for bit.
    measure : callable
        From the trial to a ratio; raises Broken where there is none.
    applies : callable
        From the trial to whether the law can be asked of its case.
    share : int, default 1
        Laws that take further calls of the function are measured on every `share`-th case only.
    """

    name: str
    words: str
    formula: str
    threshold: float
    measure: Callable[[Any], float]
    applies: Callable[[Any], bool] = field(default=lambda _: True)
    share: int = 1


class Trial(Generic[C]):
    """One case put to one function; answers are computed once and shared by the laws."""

    def __init__(self, subject: Subject, case: C) -> None:
        self.subject = subject
        self.case = case
        self._kept: dict[str, Any] = {}

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """The value computed by the first law that asks; what it raised is raised again."""
        if name not in self._kept:
            try:
                self._kept[name] = (compute(), None)
            except Broken as error:
                self._kept[name] = (None, error)
        value, raised = self._kept[name]
        if raised is not None:
            raise raised
        return value


@dataclass
class _Tally(Generic[C]):
    """What is known of a law so far."""

    law: Law[C]
    cases: int = 0
    failures: int = 0
    worst: tuple[float, C, str] | None = None
    first: C | None = None
    errors: dict[str, int] = field(default_factory=dict)

    def add(self, case: C, ratio: float, reason: str, label: str | None) -> bool:
        """Count one measurement; whether it failed."""
        self.cases += 1
        if self.worst is None or ratio > self.worst[0]:
            self.worst = (ratio, case, reason)
        failed = not ratio <= self.law.threshold
        if failed:
            self.failures += 1
            self.first = case if self.first is None else self.first
        if label is not None:
            self.errors[label] = self.errors.get(label, 0) + 1
        return failed


def measure(law: Law[C], trial: Any) -> tuple[float, str, str | None]:
    """Ratio, what is wrong, and the error raised, of a law on a trial."""
    try:
        ratio = float(law.measure(trial))
    except Call as error:
        return math.inf, str(error), error.label
    except Broken as error:
        return math.inf, str(error), None
    return (math.inf if math.isnan(ratio) else ratio), "", None


def chosen(laws: Sequence[Law[C]], *, only: Sequence[str] | None, skip: Sequence[str]) -> tuple[list[Law[C]], tuple[str, ...]]:
    """The laws to measure, and the names of the others; a single name may stand for a sequence of one.

    Raises
    ------
    ParameterError
    """
    names = [law.name for law in laws]
    wanted, unwanted = _names("only", only, names), _names("skip", skip, names)
    held = [law for law in laws if (only is None or law.name in wanted) and law.name not in unwanted]
    if not held:
        message = f"suite: only and skip must leave a law; got none left. There are {', '.join(names)}."
        raise ParameterError(message)
    return held, tuple(name for name in names if name not in {law.name for law in held})


def _names(setting: str, value: Any, known: Sequence[str]) -> tuple[str, ...]:
    """A setting that names laws."""
    names = (value,) if isinstance(value, str) else value if isinstance(value, Sequence) else () if value is None else (value,)
    for name in names:
        if not is_one_of(name, known):
            message = f"suite: {setting} must name laws of the suite; got {shown(name)}. There are {', '.join(known)}."
            raise ParameterError(message)
    return tuple(names)


def run(
    subject: Subject,
    cases: Sequence[C],
    laws: Sequence[Law[C]],
    *,
    kind: str,
    profile: str,
    make_trial: Callable[[Subject, C], Any],
    only: Sequence[str] | None = None,
    skip: Sequence[str] = (),
    progress: bool = False,
) -> Report:
    """Measure laws on every case.

    Parameters
    ----------
    subject : Subject
    cases : sequence of AnyCase
    laws : sequence of Law
        Measured on each case that they apply to.
    kind, profile : str
        For the report.
    make_trial : callable
        Makes a Trial of the subject and a case.
    only : sequence of str, optional
        Names of the laws to measure. Default: all.
    skip : sequence of str
        Names of laws to leave out; the report says which.
    progress : bool
        Show a bar.

    Returns
    -------
    Report

    Raises
    ------
    ParameterError
        A name of no law, or no law left.
    """
    places = {law.name: place for place, law in enumerate(laws)}  # of the whole suite: what is left out changes no other law's cases
    laws, left_out = chosen(laws, only=only, skip=skip)
    start = time.perf_counter()
    tallies = {law.name: _Tally(law) for law in laws}
    groups: dict[str, list[int]] = {}
    failed_cases = 0
    with subject.session():
        for i, case in enumerate(_bar(cases, subject, progress=progress)):
            trial = make_trial(subject, case)
            failed = False
            for law in laws:
                if (i + places[law.name]) % law.share == 0 and law.applies(trial):
                    failed |= tallies[law.name].add(case, *measure(law, trial))
            count = groups.setdefault(case.group, [0, 0])
            count[0] += failed
            count[1] += 1
            failed_cases += failed
        results = tuple(_result(tally, subject, make_trial) for tally in tallies.values())
    return Report(
        target=subject.target,
        kind=kind,
        backend=subject.backend,
        dtype=subject.dtype,
        grade=subject.grade,
        profile=profile,
        cases=len(cases),
        failed_cases=failed_cases,
        seconds=time.perf_counter() - start,
        properties=results,
        skipped=left_out,
        versions=versions("numpy", *({BACKENDS[subject.backend]} - {"numpy"}), *_distribution(subject)),
        groups={name: (failed, total) for name, (failed, total) in groups.items()},
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        machine=machine(),
    )


def _distribution(subject: Subject) -> tuple[str, ...]:
    """The package that a tested function comes from."""
    top = str(getattr(subject.function, "__module__", "") or "").partition(".")[0]
    return () if top in ("", "numpy", "softlinalg") else (top,)


def _bar(cases: Sequence[C], subject: Subject, *, progress: bool) -> Any:
    """The cases, with a bar on stderr where that is a terminal."""
    if not progress:
        return cases
    from tqdm import tqdm

    return tqdm(cases, desc=f"{subject.target} {subject.dtype}", unit="case", leave=False, disable=None, mininterval=0.3)


def _result(tally: _Tally[C], subject: Subject, make_trial: Callable[[Subject, C], Any]) -> PropertyResult:
    law = tally.law
    worst = None if tally.worst is None else _example(*tally.worst)
    smallest = None
    if tally.first is not None:
        case = smallest_failing(law, tally.first, subject, make_trial)
        ratio, reason, _ = measure(law, make_trial(subject, case))
        smallest = _example(ratio, case, reason)
    return PropertyResult(
        name=law.name,
        words=law.words,
        formula=law.formula,
        threshold=law.threshold,
        cases=tally.cases,
        failures=tally.failures,
        worst=worst,
        smallest=smallest,
        errors=dict(sorted(tally.errors.items())),
    )


def _example(ratio: float, case: AnyCase, reason: str) -> Example:
    return Example(ratio=ratio, case=case.description, reproduction=case.reproduction, reason=reason)


def smallest_failing(law: Law[C], case: C, subject: Subject, make_trial: Callable[[Subject, C], Any]) -> C:
    """The case on which no simpler one of the same kind fails any more, within `SHRINK_LIMIT` evaluations.

    Deterministic: the same function, law and case give the same answer.
    """
    left = SHRINK_LIMIT
    seen = {case.description}
    found = True
    while found:
        found = False
        for simpler in case.simpler():
            if simpler.description in seen:
                continue
            seen.add(simpler.description)
            if left == 0:
                return case
            left -= 1
            trial = make_trial(subject, simpler)  # type: ignore[arg-type]
            if law.applies(trial) and not measure(law, trial)[0] <= law.threshold:
                case, found = simpler, True  # type: ignore[assignment]
                break
    return case
