"""Assertions about how a function behaves: batches, array libraries, memory layouts, its input, bad input, and a reference beside it."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import array_api_compat as compat
import numpy as np

from softlinalg import _arrays
from softlinalg._typing import Array
from softlinalg.errors import ParameterError, SoftlinalgError
from softlinalg.testing import _layouts
from softlinalg.testing._cases import Case, unit
from softlinalg.testing._failures import AccuracyError, call, check, name_of, worst_entry
from softlinalg.testing.ratios import THRESHOLD

__all__ = [
    "assert_backend_parity",
    "assert_batch_independent",
    "assert_errors_documented",
    "assert_input_unchanged",
    "assert_layout_invariant",
    "assert_no_worse_than",
]


def _inputs(given: Any) -> tuple[list[Any], Case | None]:
    """Arrays of a case, an array, or a sequence of arrays."""
    if isinstance(given, Case):
        return [given.A], given
    return (list(given), None) if isinstance(given, list | tuple) else ([given], None)


def _outputs(result: Any) -> list[Any]:
    """A result as a list of arrays: fields of a tuple that are none are left out."""
    return [part for part in result if hasattr(part, "shape")] if isinstance(result, tuple | list) else [result]


def _host(x: Any) -> np.ndarray[Any, Any]:
    return np.asarray(_arrays.to_numpy(x))


def _distance(got: Any, expected: Any, *, u: float, kappa: float) -> float:
    """Max |got - expected| / (u D kappa max |expected|); infinite where shapes differ or only one of them is finite."""
    left, right = _host(got), _host(expected)
    if left.shape != right.shape:
        return math.inf
    if left.size == 0:
        return 0.0
    if left.dtype.kind in "biu" and right.dtype.kind in "biu":
        return 0.0 if np.array_equal(left, right) else math.inf
    wide = np.clongdouble if np.iscomplexobj(left) or np.iscomplexobj(right) else np.longdouble
    left, right = left.astype(wide), right.astype(wide)
    if not np.array_equal(np.isfinite(left), np.isfinite(right)):
        return math.inf
    keep = np.isfinite(right)
    with np.errstate(all="ignore"):
        gap = float(np.max(np.abs(left[keep] - right[keep]), initial=0.0))
        size = float(np.max(np.abs(right[keep]), initial=0.0))
    if gap == 0:
        return 0.0
    return gap / (u * max(left.shape[-2:], default=1) * kappa * size) if size else math.inf


def _unit_of(arrays: Sequence[Any]) -> float:
    return max((unit(name) for x in arrays if (name := _arrays.dtype_name(x.dtype)) in _KNOWN), default=unit("float64"))


_KNOWN = ("float16", "bfloat16", "float32", "float64", "complex64", "complex128")


def _compare(
    subject: str,
    law: str,
    got: Any,
    expected: Any,
    *,
    u: float,
    kappa: float,
    threshold: float,
    case: Any,
    bitwise: bool = False,
    note: str = "",
) -> None:
    pairs = list(zip(_outputs(got), _outputs(expected), strict=False))
    if len(_outputs(got)) != len(_outputs(expected)):
        check(subject, {law: math.inf}, threshold=threshold, case=case, note=f"{note} A different number of results.".strip())
    for left, right in pairs:
        same_bits = _host(left).shape == _host(right).shape and np.array_equal(_host(left), _host(right), equal_nan=True)
        ratio = 0.0 if same_bits else (math.inf if bitwise else _distance(left, right, u=u, kappa=kappa))
        entry = worst_entry(left, right) or f"shapes {_host(left).shape} and {_host(right).shape}"
        units = "equal bits" if bitwise else f"u D kappa max |result|, u = {u:.3g}, kappa = {kappa:.3g}"
        check(subject, {law: ratio}, threshold=threshold, case=case, units=units, entry=entry, note=note)


# -------------------------------------------------------------------------------------------------- batches
def assert_batch_independent(
    f: Callable[..., Any], batch: Case | Array | Sequence[Array], *, bitwise: bool = False, poison: bool = True, kappa: float | None = None,
    threshold: float = THRESHOLD,
) -> None:  # fmt: skip
    r"""A member of a batch gets the result that it gets alone, whoever its batch mates are.

    Parameters
    ----------
    f : function of one or more arrays
    batch : Case, array, or sequence of arrays, shape (batch, ...)
        The first axis is the batch axis of every array, and of every result.
    bitwise : bool, default False
        The bits have to be equal, not only the numbers up to rounding.
    poison : bool, default True
        Also put NaN into the first member: the others have to keep their bits. A function that refuses NaN passes.
    kappa : float, optional
        Condition. Default that of the case, or 1.
    threshold : float, default 30
        Of max |difference| / (u D kappa max |result|).

    Raises
    ------
    AccuracyError

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import AccuracyError, assert_batch_independent
    >>> batch = np.stack([np.eye(2), 3 * np.eye(2)])
    >>> assert_batch_independent(np.linalg.inv, batch, poison=False)
    >>> try:
    ...     assert_batch_independent(lambda a: a / a.max(), batch, poison=False)
    ... except AccuracyError as error:
    ...     print("a matrix feels its batch mates")
    a matrix feels its batch mates
    """
    arrays, case = _inputs(batch)
    subject = f"batch of {name_of(f)}"
    u, kappa = _unit_of(arrays), (case.kappa if case is not None else 1.0) if kappa is None else kappa
    together = call(subject, f, *arrays, case=case)
    count = int(arrays[0].shape[0])

    def compare(law: str, got: Any, expected: Any, note: str, *, bits: bool = bitwise) -> None:
        _compare(subject, law, got, expected, u=u, kappa=kappa, threshold=threshold, case=case, bitwise=bits, note=note)

    for index in range(count):
        alone = call(subject, f, *(x[index : index + 1] for x in arrays), case=case)
        members = [x[index : index + 1] for x in _outputs(together)]
        compare("alone as in the batch", _outputs(alone), members, f"Member {index} of {count}: its result depends on its batch mates.")
    order = list(range(count))[::-1]
    xp = compat.array_namespace(*arrays)
    turned = call(subject, f, *(_arrays.take_rows(x, order, xp=xp) for x in arrays), case=case)
    back = [_arrays.take_rows(x, order, xp=compat.array_namespace(x)) for x in _outputs(turned)]
    compare("order of the batch", back, _outputs(together), "The batch was reversed.")
    if poison and count > 1:
        bad = [_with_nan(x, xp) for x in arrays]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = f(*bad)
            except Exception:  # refusing NaN is right too
                return
        compare(
            "NaN of a batch mate",
            [x[1:] for x in _outputs(result)],
            [x[1:] for x in _outputs(together)],
            "The first member is NaN.",
            bits=True,
        )


def _with_nan(x: Array, xp: Any) -> Array:
    if _arrays.dtype_name(x.dtype) not in _KNOWN:
        return x
    first = xp.reshape(xp.arange(x.shape[0], device=compat.device(x)), (x.shape[0], *[1] * (x.ndim - 1))) == 0
    return xp.where(first, xp.full_like(x, math.nan), x)


# ------------------------------------------------------------------------------------ libraries and layouts
PARITY = ("numpy", "array_api_strict", "torch", "jax")
"""Libraries compared by default."""


def assert_backend_parity(
    f: Callable[..., Any], inputs: Case | Array | Sequence[Array], *, namespaces: Sequence[Any] = PARITY,
    kappa: float | None = None, threshold: float = THRESHOLD,
) -> None:  # fmt: skip
    r"""A function gives the same numbers for the arrays of every library, as arrays of that library.

    Parameters
    ----------
    f : function of one or more arrays
        Called with arrays of each library in turn.
    inputs : Case, array, or sequence of arrays
    namespaces : sequence of str or namespace
        Libraries; the first is the one compared with. Those that are not installed, or lack the data type, are left out.
    kappa : float, optional
        Condition. Default that of the case, or 1.
    threshold : float, default 30
        Of max |difference| / (2 u D kappa max |result|): the bounds of both results.

    Raises
    ------
    AccuracyError
        Numbers differ, or the library, the device or the data type of a result is not that of the input.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_backend_parity
    >>> from softlinalg import gaussian_kernel
    >>> assert_backend_parity(gaussian_kernel, np.eye(3), namespaces=("numpy",))     # by default also PyTorch, JAX and the strict library
    """
    arrays, case = _inputs(inputs)
    subject = f"parity of {name_of(f)}"
    u, kappa = _unit_of(arrays), (case.kappa if case is not None else 1.0) if kappa is None else kappa
    expected: Any = None
    seen: list[str] = []
    for xp in namespaces:
        name = _layouts.namespace_name(xp)
        try:
            given = [_layouts.place(_native(x), dtype=_arrays.dtype_name(x.dtype), xp=xp) for x in arrays]
        except ValueError:  # not installed, or without the data type
            continue
        seen.append(name)
        result = call(f"{subject} on {name}", f, *given, case=case)
        for part in _outputs(result):
            _same_kind(f"{subject} on {name}", part, given[0], case)
        if expected is None:
            expected = result
        else:
            note = f"{name} against {seen[0]}."
            _compare(subject, "libraries agree", result, expected, u=2 * u, kappa=kappa, threshold=threshold, case=case, note=note)


def _native(x: Array) -> np.ndarray[Any, Any]:
    host = np.array(_host(x), copy=True, order="C")
    return host.astype(host.dtype.newbyteorder("="), copy=False)


def _same_kind(subject: str, result: Any, given: Any, case: Any) -> None:
    """Library and device of a result are those of the input; its data type, where it is floating, has the same precision."""
    problem = ""
    if type(result).__module__.split(".")[0] != type(given).__module__.split(".")[0]:
        problem = f"a {type(result).__module__.split('.')[0]} array came back for a {type(given).__module__.split('.')[0]} array"
    elif str(compat.device(result)) != str(compat.device(given)):
        problem = f"the result is on {compat.device(result)}, the input on {compat.device(given)}"
    else:
        left, right = _arrays.dtype_name(result.dtype), _arrays.dtype_name(given.dtype)
        if left in _KNOWN and right in _KNOWN and unit(left) != unit(right):
            problem = f"the result is {left}, the input {right}"
    if problem:
        message = f"{subject}: {problem}.\n  Meaning: code that goes on with the result mixes libraries, devices or precisions."
        code = getattr(case, "code", "")
        raise AccuracyError(message + (f"\n  Repeat: {code}" if code else ""), property="kind of the result", ratio=math.inf, case=case)


def assert_layout_invariant(
    f: Callable[..., Any], inputs: Case | Array | Sequence[Array], *, layouts: Sequence[str] | None = None, kappa: float | None = None,
    threshold: float = THRESHOLD,
) -> None:  # fmt: skip
    r"""A function gives the same numbers whatever the memory layout of its input is, and leaves the input as it was.

    Parameters
    ----------
    f : function of one or more arrays
    inputs : Case, array, or sequence of arrays
    layouts : sequence of str, optional
        Default: all that the library has (`softlinalg.testing.strategies.LAYOUTS`) except "broadcast", which changes the numbers.
    kappa : float, optional
        Condition. Default that of the case, or 1.
    threshold : float, default 30
        Of max |difference| / (u D kappa max |result|).

    Raises
    ------
    AccuracyError

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_layout_invariant, build_matrix
    >>> assert_layout_invariant(np.linalg.pinv, build_matrix(shape=(4, 3)))
    """
    arrays, case = _inputs(inputs)
    subject = f"layout of {name_of(f)}"
    u, kappa = _unit_of(arrays), (case.kappa if case is not None else 1.0) if kappa is None else kappa
    untouched = [_digest(x) for x in arrays]
    expected = call(subject, f, *arrays, case=case)
    if [_digest(x) for x in arrays] != untouched:
        _fail_changed(subject, case)
    known = [name for name in _layouts.supported_layouts(compat.array_namespace(*arrays)) if name != "broadcast"]
    for layout in known if layouts is None else layouts:
        given = [_layouts.apply_layout(x, layout) for x in arrays]
        before = [_digest(x) for x in given]
        result = call(f"{subject}, layout {layout}", f, *given, case=case)
        if [_digest(x) for x in given] != before:
            _fail_changed(f"{subject}, layout {layout}", case)
        note = f"Layout {layout} against the one given."
        _compare(subject, "layouts agree", result, expected, u=u, kappa=kappa, threshold=threshold, case=case, note=note)


def _digest(x: Any) -> tuple[Any, ...]:
    """A fingerprint of numbers, shape and type."""
    host = _host(x)
    return host.shape, str(host.dtype), hashlib.blake2b(np.ascontiguousarray(host).tobytes()).hexdigest()


def _fail_changed(subject: str, case: Any) -> None:
    code = getattr(case, "code", "")
    message = f"{subject}: the input was changed.\n  Meaning: the caller's array is not what it was before the call."
    raise AccuracyError(message + (f"\n  Repeat: {code}" if code else ""), property="input unchanged", ratio=math.inf, case=case)


def assert_input_unchanged(f: Callable[..., Any], *inputs: Any, **settings: Any) -> Any:
    """The arrays passed to a function are the same, bit for bit, after the call. Returns the result of the call.

    Parameters
    ----------
    f : function
    *inputs : arrays, cases, or anything else
        Arguments; of a case its matrix.
    **settings
        Passed on.

    Raises
    ------
    AccuracyError

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_input_unchanged
    >>> assert_input_unchanged(np.linalg.inv, 2 * np.eye(2))
    array([[0.5, 0. ],
           [0. , 0.5]])
    """
    arrays = [x.A if isinstance(x, Case) else x for x in inputs]
    case = next((x for x in inputs if isinstance(x, Case)), None)
    watched = [x for x in [*arrays, *settings.values()] if hasattr(x, "dtype") and hasattr(x, "shape")]
    before = [_digest(x) for x in watched]
    result = call(f"input of {name_of(f)}", f, *arrays, case=case, **settings)
    if [_digest(x) for x in watched] != before:
        _fail_changed(f"input of {name_of(f)}", case)
    return result


# --------------------------------------------------------------------------------------- errors, comparison
def assert_errors_documented(
    f: Callable[[Any], Any],
    bad_inputs: Any,
    *,
    allowed: tuple[type[BaseException], ...] = (SoftlinalgError,),
    max_length: int | None = None,
) -> None:
    r"""Every bad input is refused by one of the documented exceptions: no other exception, and no numbers.

    Parameters
    ----------
    f : function of one value
    bad_inputs : iterable of values or of `BadInput`, or one `BadInput`
        See `softlinalg.testing.strategies.bad_inputs`.
    allowed : tuple of exception types
        Documented. Default: those of softlinalg.
    max_length : int, optional
        Longest message allowed; messages must then also be one line.

    Raises
    ------
    AccuracyError
        Naming every input that was accepted or raised something else.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_errors_documented
    >>> import softlinalg
    >>> assert_errors_documented(softlinalg.pinv, [np.ones(3), np.asarray([[np.nan]])])
    """
    single = hasattr(bad_inputs, "reason") or not isinstance(bad_inputs, Iterable)
    problems: list[str] = []
    for bad in [bad_inputs] if single else bad_inputs:
        value, reason = (bad.value, bad.reason) if hasattr(bad, "reason") else (bad, f"a {type(bad).__name__}")
        problem = _outcome(f, value, allowed, max_length)
        if problem:
            problems.append(f"{reason}: {problem}")
    if problems:
        names = ", ".join(kind.__name__ for kind in allowed)
        shown = "\n  ".join(problems[:20])
        message = (
            f"errors of {name_of(f)}: {len(problems)} bad inputs were not refused by {names}:\n  {shown}\n"
            "  Meaning: callers cannot catch what is not documented, and numbers computed from nonsense spread silently."
        )
        raise AccuracyError(message, property="documented errors", ratio=math.inf)


def _outcome(f: Callable[[Any], Any], value: Any, allowed: tuple[type[BaseException], ...], max_length: int | None) -> str:
    """What is wrong with how a bad input was met, or nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = f(value)
    except allowed as error:
        text = str(error)
        if not text:
            return f"{type(error).__name__} without a message"
        if max_length is not None and (len(text) > max_length or "\n" in text):
            return f"a message of {len(text)} characters in {text.count(chr(10)) + 1} lines"
        return ""
    except Exception as error:
        return f"raised {type(error).__name__} ({str(error)[:80]})"
    return f"accepted, giving a {type(result).__name__}"


def assert_no_worse_than(
    f: Callable[..., Array], reference: Callable[..., Array], inputs: Case | Array | Sequence[Array],
    oracle: Callable[..., Any] | Any = None, *, factor: float = 2.0, floor: float = 1.0,
) -> None:  # fmt: skip
    r"""The error of a function is at most `factor` times that of a reference, beside a floor of rounding.

    Parameters
    ----------
    f, reference : functions of the same arrays
    inputs : Case, array, or sequence of arrays
    oracle : function of host arrays (float64 where they were shorter), or array, optional
        The truth. Default: the pseudo-inverse that a case knows.
    factor : float, default 2.0
    floor : float, default 1.0
        Error always allowed, in u max |truth|.

    Raises
    ------
    AccuracyError
        With `ratio` the error of `f` over what is allowed.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import assert_no_worse_than, build_matrix
    >>> import softlinalg
    >>> case = build_matrix(shape=(6, 4), cond=1e3)
    >>> assert_no_worse_than(softlinalg.pinv, np.linalg.pinv, case, oracle=case.pinv)
    """
    arrays, case = _inputs(inputs)
    subject = f"{name_of(f)} against {name_of(reference)}"
    if oracle is None:
        if case is None:
            message = "assert_no_worse_than: oracle must be given unless the input is a Case; got None. Pass the truth."
            raise ParameterError(message)
        truth: Any = case.pinv
    else:
        truth = oracle(*(x.astype(np.result_type(x, np.float64)) for x in map(_native, arrays))) if callable(oracle) else _host(oracle)
    got, other = (call(subject, g, *arrays, case=case) for g in (f, reference))
    u = _unit_of(arrays)
    size = float(np.max(np.abs(truth), initial=0.0)) or 1.0
    error, reference_error = _error(got, truth), _error(other, truth)
    allowed = factor * reference_error + floor * u * size
    note = f"Error {error:.3g}; the reference has {reference_error:.3g}, allowed is {factor:g} times that and {floor:g} u max |truth|."
    check(subject, {"no worse than the reference": error / allowed}, threshold=1.0, case=case, entry=worst_entry(got, truth), note=note)


def _error(got: Any, truth: np.ndarray[Any, Any]) -> float:
    host = _host(got)
    if host.shape != truth.shape or not np.all(np.isfinite(host)):
        return math.inf
    return float(np.max(np.abs(host.astype(np.result_type(host, truth)) - truth), initial=0.0))
