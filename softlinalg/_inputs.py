"""What people pass: arrays and numbers checked, with the words of the error where they do not fit."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import array_api_compat as compat
import numpy as np

from softlinalg import _arrays
from softlinalg._memory import host_memory
from softlinalg._settings import shown
from softlinalg._typing import Array, DType, Namespace
from softlinalg.errors import BackendMismatchError, DTypeError, NonFiniteError, ParameterError, ResourceError, ShapeError

__all__ = [
    "Inputs",
    "check_batches",
    "check_finite",
    "check_fits",
    "check_memory",
    "check_rows",
    "check_square",
    "prepare",
    "real_scalar",
    "returned",
]


_NO_NUMBERS = (str, bytes, complex, np.bool_, np.complexfloating, np.ma.MaskedArray)


class Inputs(NamedTuple):
    """What `prepare` returns."""

    xp: Namespace
    """Array namespace that all arrays share."""
    arrays: tuple[Array, ...]
    """The arrays in the order given: floating, native byte order; None stays None."""
    dtype: DType
    """Common floating type of the result; half precisions keep their name here."""


def _as_array(x: Any, *, func: str, name: str) -> Array:
    """Turn one argument into an array, or say why it is none."""
    if isinstance(x, np.ma.MaskedArray):
        message = f"{func}: {name} must not be masked; got a numpy masked array. Fill it first: {name}.filled(value)."
        raise DTypeError(message)
    sparse = sys.modules.get("scipy.sparse")
    if sparse is not None and sparse.issparse(x):
        message = f"{func}: {name} must be dense; got a sparse {type(x).__name__} of shape {x.shape}. Convert it: {name}.toarray()."
        raise DTypeError(message)
    if compat.is_dask_array(x):
        message = (
            f"{func}: {name} must be in memory; got a Dask array of shape {x.shape}. Pass {name}.compute() if it fits; "
            "data larger than memory needs the streaming form (softlinalg.dask), which works chunk by chunk."
        )
        raise DTypeError(message)
    if isinstance(x, np.ndarray):
        return np.asarray(x)  # np.matrix and memory maps become plain arrays, without a copy
    if compat.is_array_api_obj(x):
        return x
    if isinstance(x, list | tuple | int | float | complex | np.generic) or hasattr(x, "__array__"):
        try:
            return np.asarray(x)
        except (TypeError, ValueError) as error:
            message = (
                f"{func}: {name} must be a rectangular array of numbers; got a {type(x).__name__} that numpy cannot convert. Pass an array."
            )
            raise DTypeError(message) from error
    message = f"{func}: {name} must be an array; got {type(x).__name__}. Pass a NumPy, PyTorch, JAX or CuPy array."
    raise DTypeError(message)


def _as_floating(x: Array, *, func: str, name: str, allow_complex: bool, xp: Namespace) -> Array:
    """Promote integers and booleans, make the byte order native, refuse every type that is not a supported number."""
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
    x = _arrays.settled(x)
    kind = _arrays.dtype_name(x.dtype)
    if kind in _arrays._REAL_NAMES or kind in _arrays._HALF_NAMES:
        return x
    if kind in _arrays._COMPLEX_NAMES:
        if allow_complex:
            return x
        message = f"{func}: {name} must be real; got dtype {kind}. Pass its real part, or real and imaginary parts as features."
        raise DTypeError(message)
    if kind == "bool" or kind.startswith(("int", "uint")):
        return xp.astype(x, xp.__array_namespace_info__().default_dtypes()["real floating"])
    message = f"{func}: {name} must hold float16, bfloat16, float32, float64 or integers; got dtype {kind}. Convert it with astype."
    raise DTypeError(message[:400])


def prepare(
    func: str, arrays: Mapping[str, Any], *, allow_complex: bool = False, whole: bool = True, optional: tuple[str, ...] = ()
) -> Inputs:
    """Check and convert the arrays of a public function: its first line.

    Parameters
    ----------
    func : str
        Name of the public function, for messages.
    arrays : mapping of argument name to array-like or None
        Lists and objects with ``__array__`` become NumPy arrays. Arrays from lists follow the
        namespace of the other arguments.
    optional : tuple of str
        The arguments that may be None, and then stay so.
    allow_complex : bool
        Whether complex numbers are taken.
    whole : bool
        Whether the function works on all of each array at once. False where it reads blocks of rows, as of a memory map.

    Returns
    -------
    Inputs

    Raises
    ------
    DTypeError
        None, masked, sparse, Dask, object, string, long double or (unless allowed) complex input.
    BackendMismatchError
        Arrays of different libraries or devices.
    ResourceError
        `whole`, and an array would not fit in memory: a broadcast view, or a memory map.
    """
    given = {name: _as_array(x, func=func, name=name) for name, x in arrays.items() if x is not None or name not in optional}
    try:
        xp = compat.array_namespace(*given.values())
    except TypeError as error:
        kinds = ", ".join(f"{name}: {type(x).__module__.split('.')[0]}.{type(x).__name__}" for name, x in given.items())
        message = f"{func}: all arrays must come from one library; got {kinds}. Convert them to one."
        raise BackendMismatchError(message[:400]) from error
    if not _arrays.is_traced(*given.values()):
        devices = {name: compat.device(x) for name, x in given.items()}
        if len({str(d) for d in devices.values()}) > 1:
            shown = ", ".join(f"{name} on {device}" for name, device in devices.items())
            message = f"{func}: all arrays must be on one device; got {shown}. Move them to one."
            raise BackendMismatchError(message[:400])
    for name, x in given.items():
        if whole:
            check_fits(x, func=func, name=name)
        given[name] = _as_floating(x, func=func, name=name, allow_complex=allow_complex, xp=xp)
    dtypes = [x.dtype for x in given.values()]
    dtype = dtypes[0]
    for other in dtypes[1:]:
        if other != dtype:
            dtype = xp.result_type(dtype, other)
    return Inputs(xp, tuple(given.get(name) for name in arrays), dtype)


def check_rows(x: Array, *, func: str, doing: str = "Approximate") -> None:
    """Raise unless `x` is a set of points (n, d) with numbers in it."""
    if _arrays.is_traced(x):
        message = f"{func}: x must hold numbers; got a traced array. {doing} outside jit, vmap and compile."
        raise DTypeError(message)
    if x.ndim != 2 or 0 in x.shape:
        message = f"{func}: x must have shape (n, d) with n, d >= 1; got {tuple(x.shape)}. Pass one point per row."
        raise ShapeError(message)


def check_finite(x: Array, *, func: str, name: str, xp: Namespace) -> None:
    """Raise NonFiniteError where `x` holds NaN or infinity, with their number and the first place; no check when traced.

    The sum of all entries is finite only where every entry is, so the usual case costs one pass and no memory.
    """
    if _arrays.is_traced(x) or math.prod(x.shape) == 0:
        return
    real = x if not _arrays.is_complex(x.dtype) else xp.abs(x)
    if _arrays.is_half(x.dtype):
        real = xp.astype(real, xp.float32)
    with np.errstate(all="ignore"):
        if bool(xp.isfinite(xp.sum(real))):
            return
    bad = ~xp.isfinite(real)
    count = int(xp.sum(xp.astype(bad, xp.int64 if _arrays.has_float64(x, xp=xp) else xp.int32)))
    if count == 0:  # the sum overflowed; the entries are fine
        return
    first = int(xp.argmax(xp.astype(xp.reshape(bad, (-1,)), xp.int32)))
    where = [int(i) for i in np.unravel_index(first, tuple(x.shape))]
    what = "1 non-finite entry" if count == 1 else f"{count} non-finite entries"
    remedy = "Clean the data, or pass check_finite=False where offered."
    message = f"{func}: {name} must be finite; got {what} (first at {where}). {remedy}"
    raise NonFiniteError(message)


def check_square(a: Array, *, func: str, name: str) -> None:
    """Raise ShapeError unless the last two axes of `a` are equal and not empty."""
    if a.ndim < 2 or a.shape[-1] != a.shape[-2]:
        message = f"{func}: {name} must have shape (..., m, m); got {tuple(a.shape)}. Pass square matrices."
        raise ShapeError(message)
    if a.shape[-1] == 0:
        message = f"{func}: {name} must have at least one row; got shape {tuple(a.shape)}. Pass matrices with m >= 1."
        raise ShapeError(message)


def real_scalar(value: Any, *, func: str, name: str, minimum: float = 0.0, strict: bool = True, maximum: float = math.inf) -> float:
    """A finite Python float from a setting, within (minimum, maximum] or, unless `strict`, [minimum, maximum]."""
    relation = ">" if strict else ">="
    try:
        if type(value) not in (float, int) and (isinstance(value, _NO_NUMBERS) or _arrays.is_complex(getattr(value, "dtype", None))):
            raise TypeError("not a real number")
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        message = f"{func}: {name} must be a number {relation} {minimum:g}; got {shown(value)}. Pass a float."
        raise ParameterError(message) from error
    low_enough = number > minimum if strict else number >= minimum
    if isinstance(value, bool) or not (abs(number) < math.inf and low_enough and number <= maximum):
        upper = "" if maximum == math.inf else f" and <= {maximum:g}"
        message = f"{func}: {name} must be a finite number {relation} {minimum:g}{upper}; got {number!r}. Choose a value in that range."
        raise ParameterError(message)
    return number


_UNQUESTIONED = 2**26
"""Bytes that are taken without asking how many there are."""


def check_fits(x: Array, *, func: str, name: str) -> None:
    """Raise ResourceError for an array on the host whose entries, were they all stored, would not fit in memory.

    Only a view that repeats its entries, or a memory map, is that large: any function that reads all of it would first run for
    hours and then out of memory.
    """
    if _arrays.is_traced(x):  # whose sizes may be symbols: comparing them would bound what a compiled program takes
        return
    required = math.prod(x.shape) * int(getattr(x.dtype, "itemsize", 8))
    if required > _UNQUESTIONED and _arrays.is_cpu(x):
        shape = tuple(x.shape)
        message = f"{func}: {name} must fit in memory; got shape {shape}, {required / 1e9:.3g} GB. Pass a part of it."
        if required > (limit := host_memory()):
            raise ResourceError(message[:400], required, limit)


def check_memory(required: int, budget: int | None, *, func: str, what: str, remedy: str) -> None:
    """Refuse, before anything is allocated, a result of `required` bytes where only `budget` (None: the memory) may be used."""
    if budget is None and required <= _UNQUESTIONED:
        return
    limit = budget if budget is not None else host_memory()
    if required > limit:
        message = f"{func}: {what} must fit in {limit / 1e9:.3g} GB; got a need of {required / 1e9:.3g} GB. {remedy}"
        raise ResourceError(message[:400], required, limit)


def returned(values: Any, like: Array, *, func: str, what: str) -> Array:
    """What a function of the caller returned, if it is an array of real numbers in the library of `like`; else DTypeError."""
    try:
        compat.array_namespace(values, like)
        kind = _arrays.dtype_name(values.dtype)
    except (TypeError, AttributeError):
        kind = ""
    if kind in _arrays._REAL_NAMES or kind in _arrays._HALF_NAMES or kind == "bool" or kind.startswith(("int", "uint")):
        return values
    got = f"dtype {kind}" if kind else f"{type(values).__name__}"
    message = f"{func}: {what} must return real numbers in an array of the library of the data; got {got[:60]}. Check the kernel."
    raise DTypeError(message)


def check_batches(func: str, **arrays: Array) -> None:
    """Raise ShapeError unless the axes before the last two of these arrays broadcast; None is left out."""
    # Plain loops, without generators and sets: compilers trace this.
    names = [name for name, x in arrays.items() if x is not None]
    batches = [tuple(arrays[name].shape[:-2]) for name in names]
    for axis in range(1, max([0, *[len(batch) for batch in batches]]) + 1):
        length = 1
        for batch in batches:
            if len(batch) < axis or batch[-axis] == 1 or batch[-axis] == length:
                continue
            if length != 1:
                listed = ", ".join([f"{name} {other}" for name, other in zip(names, batches, strict=True)])
                message = f"{func}: batch axes must broadcast; got {listed}. Give them equal lengths, or 1."
                raise ShapeError(message[:400])
            length = batch[-axis]
