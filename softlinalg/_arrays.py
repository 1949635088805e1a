"""What array-api-compat and array-api-extra lack: the only core file that knows array libraries by name.

Validation of arrays on entry, data types to compute in, the linear algebra that the standard leaves out
(Cholesky that reports failure, triangular solves, inverses of positive definite matrices), and buffers that a
blocked loop may reuse. Nothing here imports an array library other than NumPy and SciPy: the others are found
through the arrays that people pass.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import array_api_compat as compat
import numpy as np

from softlinalg._memory import host_memory
from softlinalg._settings import shown
from softlinalg._typing import Array, Device, DType, Namespace
from softlinalg.errors import BackendMismatchError, DTypeError, NonFiniteError, ParameterError, ResourceError, ShapeError

__all__ = [
    "Inputs",
    "add_matmul_in_place",
    "adjoint",
    "binary_exponent",
    "check_batches",
    "check_finite",
    "check_fits",
    "check_memory",
    "check_square",
    "cholesky",
    "clamped_exp_in_place",
    "compute_dtype",
    "contiguous",
    "detach",
    "device_of",
    "dtype_name",
    "empty_in_order_of",
    "empty_like_shape",
    "eps",
    "exponent_unit",
    "eye_like",
    "fill_diagonal_in_place",
    "frobenius",
    "from_numpy",
    "has_float64",
    "host_namespace",
    "host_view",
    "is_complex",
    "is_cpu",
    "is_exactly_hermitian",
    "is_half",
    "is_numpy",
    "is_small_on_host",
    "is_traced",
    "largest_entry",
    "matmul_into",
    "may_reuse_buffers",
    "minus_identity",
    "one_blas_thread",
    "pivot_order",
    "power_of_two_scale",
    "prepare",
    "quiet",
    "real_dtype",
    "real_scalar",
    "real_trace",
    "returned",
    "row_squares",
    "same_memory",
    "scale_by_power_of_two",
    "spd_inverse",
    "subtract_into",
    "subtract_product_into",
    "take_rows",
    "through_numpy",
    "tiny",
    "to_float",
    "to_numpy",
    "triangular_solve",
    "wide_dtype",
    "with_diagonal",
    "zeros_like_shape",
]

_NUMPY = (np.ndarray, np.generic)  # a tuple: compilers trace no union of types
_NO_NUMBERS = (str, bytes, complex, np.bool_, np.complexfloating, np.ma.MaskedArray)
_HALF_NAMES = ("float16", "bfloat16")
_REAL_NAMES = ("float32", "float64")
_COMPLEX_NAMES = ("complex64", "complex128")


# ---------------------------------------------------------------------------------------------- data types
def dtype_name(dtype: DType) -> str:
    """Plain name of a data type, the same in every library: "float32", "bfloat16", "int64", ..."""
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None)  # the latter: xp.float64 of NumPy is a class
    if name is None:
        name = str(dtype).rsplit(".", 1)[-1]
    return str(name)


def is_half(dtype: DType) -> bool:
    """Is it float16 or bfloat16?"""
    return dtype_name(dtype) in _HALF_NAMES


def is_complex(dtype: DType) -> bool:
    """Is it complex64 or complex128?"""
    return dtype_name(dtype) in _COMPLEX_NAMES


def compute_dtype(dtype: DType, *, xp: Namespace) -> DType:
    """The type to compute in: float32 for the half precisions, otherwise the type itself."""
    return xp.float32 if is_half(dtype) else dtype


def real_dtype(dtype: DType, *, xp: Namespace) -> DType:
    """The real type of the same precision."""
    return {"complex64": xp.float32, "complex128": xp.float64}.get(dtype_name(dtype), dtype)


def has_float64(x: Array, *, xp: Namespace) -> bool:
    """Can the library compute in float64 on the device of `x`? (JAX without x64 and Apple's MPS cannot.)"""
    if compat.is_torch_array(x):
        return str(x.device.type) != "mps"
    return "float64" in xp.__array_namespace_info__().dtypes(kind="real floating")


def wide_dtype(x: Array, *, xp: Namespace) -> DType:
    """float64 (complex128 for complex `x`) where the device has it, else the type to compute in."""
    if has_float64(x, xp=xp):
        return xp.complex128 if is_complex(x.dtype) else xp.float64
    return compute_dtype(x.dtype, xp=xp)


def eps(dtype: DType) -> float:
    """Distance from 1 to the next larger number of the type (twice the unit roundoff), as a Python float."""
    return {
        "float16": 2.0**-10,
        "bfloat16": 2.0**-7,
        "float32": 2.0**-23,
        "complex64": 2.0**-23,
        "float64": 2.0**-52,
        "complex128": 2.0**-52,
    }[dtype_name(dtype)]


def tiny(dtype: DType) -> float:
    """Smallest positive normal number of the type, as a Python float."""
    if dtype_name(dtype) == "float16":
        return 2.0**-14
    return 2.0**-126 if eps(dtype) >= 2.0**-23 else 2.0**-1022


# ------------------------------------------------------------------------------------- arrays that come in
class Inputs(NamedTuple):
    """What `prepare` returns."""

    xp: Namespace
    """Array namespace that all arrays share."""
    arrays: tuple[Array, ...]
    """The arrays in the order given: floating, native byte order; None stays None."""
    dtype: DType
    """Common floating type of the result; half precisions keep their name here."""


def is_traced(*arrays: Array) -> bool:
    """Is any of the arrays an abstract value (jax.jit, vmap, torch.compile, torch.func), whose numbers cannot be read?"""
    jax = sys.modules.get("jax")
    torch = sys.modules.get("torch")
    for x in arrays:
        if jax is not None and isinstance(x, jax.core.Tracer):
            return True
        if torch is not None and isinstance(x, torch.Tensor):
            if torch.compiler.is_compiling() or x.device.type == "meta":
                return True
            if torch._C._functorch.is_functorch_wrapped_tensor(x) or type(x).__name__ == "FakeTensor":
                return True
    return False


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
    kind = dtype_name(x.dtype)
    if isinstance(x, np.ndarray) and not x.dtype.isnative:
        x = x.astype(x.dtype.newbyteorder("="))
        kind = dtype_name(x.dtype)
    if kind in _REAL_NAMES or kind in _HALF_NAMES:
        return x
    if kind in _COMPLEX_NAMES:
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
    if not is_traced(*given.values()):
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


def check_finite(x: Array, *, func: str, name: str, xp: Namespace) -> None:
    """Raise NonFiniteError where `x` holds NaN or infinity, with their number and the first place; no check when traced.

    The sum of all entries is finite only where every entry is, so the usual case costs one pass and no memory.
    """
    if is_traced(x) or math.prod(x.shape) == 0:
        return
    real = x if not is_complex(x.dtype) else xp.abs(x)
    if is_half(x.dtype):
        real = xp.astype(real, xp.float32)
    with np.errstate(all="ignore"):
        if bool(xp.isfinite(xp.sum(real))):
            return
    bad = ~xp.isfinite(real)
    count = int(xp.sum(xp.astype(bad, xp.int64 if has_float64(x, xp=xp) else xp.int32)))
    if count == 0:  # the sum overflowed; the entries are fine
        return
    first = int(xp.argmax(xp.astype(xp.reshape(bad, (-1,)), xp.int32)))
    where = [int(i) for i in np.unravel_index(first, tuple(x.shape))]
    what = "1 non-finite entry" if count == 1 else f"{count} non-finite entries"
    remedy = "Clean the data, or pass check_finite=False where offered."
    message = f"{func}: {name} must be finite; got {what} (first at {where}). {remedy}"
    raise NonFiniteError(message)


def quiet(x: Array = None) -> contextlib.AbstractContextManager[Any]:
    """No floating-point warnings from NumPy: what over- or underflows inside has the right limit, or is reported by the caller.

    Nothing is entered for a traced array: compilers cannot trace NumPy's setting.
    """
    return contextlib.nullcontext() if is_traced(x) else np.errstate(all="ignore")


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
        if type(value) not in (float, int) and (isinstance(value, _NO_NUMBERS) or is_complex(getattr(value, "dtype", None))):
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
    required = math.prod(x.shape) * int(getattr(x.dtype, "itemsize", 8))
    if required > _UNQUESTIONED and is_cpu(x) and not is_traced(x):
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


# -------------------------------------------------------------------------------------- arrays of our own
def returned(values: Any, like: Array, *, func: str, what: str) -> Array:
    """What a function of the caller returned, if it is an array of real numbers in the library of `like`; else DTypeError."""
    try:
        compat.array_namespace(values, like)
        kind = dtype_name(values.dtype)
    except (TypeError, AttributeError):
        kind = ""
    if kind in _REAL_NAMES or kind in _HALF_NAMES or kind == "bool" or kind.startswith(("int", "uint")):
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


def is_numpy(x: Array) -> bool:
    """Is it a NumPy array?"""
    return isinstance(x, np.ndarray)


def is_cpu(x: Array) -> bool:
    """Does `x` live in the memory of the host?"""
    if is_traced(x):
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(x, torch.Tensor):
            return str(x.device.type) == "cpu"
        return False
    return "cpu" in str(compat.device(x)).lower()


def may_reuse_buffers(*arrays: Array) -> bool:
    """May a loop write into buffers it made from these arrays? NumPy, CuPy and PyTorch outside autograd: yes."""
    for x in arrays:
        if compat.is_numpy_array(x) or compat.is_cupy_array(x):
            continue
        if compat.is_torch_array(x) and not is_traced(x) and not _is_recorded(x):
            continue
        return False
    return True


def _is_recorded(x: Array) -> bool:
    """Does PyTorch differentiate through this tensor, backwards (requires_grad) or forwards (a dual number)?"""
    torch = sys.modules["torch"]
    recorded = x.requires_grad and torch.is_grad_enabled()
    return bool(recorded or torch.autograd.forward_ad.unpack_dual(x).tangent is not None)


def to_float(x: Array) -> float:
    """A Python float from an array of one entry."""
    return float(x)


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """The numbers of `x` on the host, as a NumPy array (bfloat16 as float32)."""
    if isinstance(x, np.ndarray):
        return x
    if compat.is_torch_array(x):
        x = x.detach().cpu()
        return np.asarray((x.float() if dtype_name(x.dtype) == "bfloat16" else x).numpy())
    if compat.is_cupy_array(x):
        return np.asarray(x.get())
    try:
        return np.asarray(x)
    except (RuntimeError, TypeError, ValueError):  # on a device that NumPy cannot read
        return np.asarray(x.to_device(compat.array_namespace(x).__array_namespace_info__().default_device()))


def host_view(x: Array, *, xp: Namespace) -> tuple[Array, Namespace]:
    """`x` as a NumPy array that shares its memory, with NumPy's namespace, where it lies on the host; else both as given.

    For algorithms of many small steps of varying shape, such as choosing landmarks: the same bits for every library,
    and no compilation for every new shape.
    """
    if is_cpu(x) and dtype_name(x.dtype) != "bfloat16":
        host = to_numpy(x)
        return host, compat.array_namespace(host)
    return x, xp


def is_small_on_host(x: Array, entries: int) -> bool:
    """Is `x` of another library than NumPy, on the host, and `entries` so few that calling costs more than computing?"""
    return 0 < entries <= _FEW and not isinstance(x, np.ndarray) and is_cpu(x) and dtype_name(x.dtype) != "bfloat16"


def through_numpy(function: Callable[[Array, Namespace], Array | None], x: Array, *, xp: Namespace) -> Array | None:
    """`function(array, namespace)` of `x` in NumPy, its result in the library of `x`; without NumPy's warnings and BLAS threads."""
    host, hosts = host_view(x, xp=xp)
    with one_blas_thread(), quiet(host):
        found = function(host, hosts)
    return None if found is None else from_numpy(found, x, xp=xp)


_FEW = 16384
"""Entries that NumPy works on, operation by operation, in less time than PyTorch takes for the calls (six matrices of 49 x 49)."""


def contiguous(a: Array) -> Array:
    """`a` in row-major order, where the library lets an array have another: products then round the same every time."""
    if isinstance(a, np.ndarray):
        return np.ascontiguousarray(a)
    return a.contiguous() if compat.is_torch_array(a) else a


def same_memory(a: Array, b: Array) -> bool:
    """Do two arrays of one shape, of a library with buffers, begin at the same address?"""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
    if compat.is_torch_array(a):
        return bool(a.data_ptr() == b.data_ptr())
    return bool(a.data.ptr == b.data.ptr)  # CuPy


def host_namespace() -> Namespace:
    """NumPy's namespace, for small arrays that are kept on the host."""
    return compat.array_namespace(np.empty(0))


def from_numpy(x: np.ndarray[Any, Any], like: Array, *, xp: Namespace, dtype: DType | None = None) -> Array:
    """A host array in the library and on the device of `like`."""
    device: Device = compat.device(like)
    return xp.asarray(x, dtype=dtype, device=device) if dtype is not None else xp.asarray(x, device=device)


def device_of(x: Array) -> Device:
    """Device of an array, None for abstract values."""
    return compat.device(x)


def eye_like(a: Array, *, xp: Namespace, dtype: DType | None = None) -> Array:
    """The identity, shape (m, m), with m, device and (unless given) dtype of `a` (..., m, m)."""
    if compat.is_torch_array(a) and is_traced(a):  # an export to ONNX takes torch.eye apart into a change in place, which it refuses
        index = xp.arange(a.shape[-1], device=compat.device(a))
        return xp.astype(index[:, None] == index, dtype or a.dtype)
    return xp.eye(a.shape[-1], dtype=dtype or a.dtype, device=compat.device(a))


def zeros_like_shape(shape: tuple[int, ...], like: Array, *, xp: Namespace, dtype: DType | None = None) -> Array:
    """Zeros of a shape, with device and (unless given) dtype of `like`."""
    return xp.zeros(shape, dtype=dtype or like.dtype, device=compat.device(like))


def empty_like_shape(shape: tuple[int, ...], like: Array, *, xp: Namespace, dtype: DType | None = None) -> Array:
    """Uninitialised memory of a shape, with device and (unless given) dtype of `like`."""
    return xp.empty(shape, dtype=dtype or like.dtype, device=compat.device(like))


def take_rows(x: Array, indices: Any, *, xp: Namespace) -> Array:
    """Rows of `x` at host indices, in order."""
    host = np.asarray(indices, dtype=np.int64)
    if isinstance(x, np.ndarray):
        return x[host]
    return xp.take(x, from_numpy(host, x, xp=xp), axis=0)


def detach(x: Array) -> Array:
    """The same numbers without the record that automatic differentiation keeps: choices have no gradient."""
    if compat.is_jax_array(x):
        return sys.modules["jax"].lax.stop_gradient(x)
    return x.detach() if compat.is_torch_array(x) else x


def group_sums(x: Array, labels: Array, count: int, *, xp: Namespace) -> Array:
    """Sum of the rows of each group.

    Parameters
    ----------
    x : array, shape (n, d)
    labels : integer array, shape (n,)
        Group of each row, from 0 to count - 1.
    count : int

    Returns
    -------
    array, shape (count, d)
        Zero for a group without rows. A product with the indicator matrix: the same result on every run, also where
        scattered additions are unordered (GPU).
    """
    if isinstance(x, np.ndarray):
        from scipy.sparse import csr_array  # imported late: `import softlinalg` stays quick

        ones = np.ones(len(labels), dtype=x.dtype)
        return np.asarray(csr_array((ones, (labels, np.arange(len(labels)))), shape=(count, len(labels))) @ x)
    groups = xp.arange(count, dtype=labels.dtype, device=compat.device(x))
    return xp.astype(groups[:, None] == labels[None, :], x.dtype) @ x


def frobenius(a: Array, *, xp: Namespace) -> Array:
    """Frobenius norm over the last two axes, shape (...), in one pass without temporaries where the library can."""
    if compat.is_torch_array(a):
        return sys.modules["torch"].linalg.vector_norm(a, dim=(-2, -1))
    flat = xp.reshape(a, (*a.shape[:-2], a.shape[-2] * a.shape[-1]))
    squares = xp.vecdot(flat, flat)
    return xp.sqrt(xp.real(squares) if is_complex(a.dtype) else squares)


def real_trace(a: Array, *, xp: Namespace) -> Array:
    """Real part of the trace over the last two axes, shape (...)."""
    trace = xp.linalg.trace(a)
    return xp.real(trace) if is_complex(a.dtype) else trace


def largest_entry(a: Array, *, xp: Namespace) -> Array:
    """Largest absolute value over the last two axes, shape (...); of both parts for complex, where |z| could overflow."""
    if a.shape[-1] == 0 or a.shape[-2] == 0:
        return zeros_like_shape(tuple(a.shape[:-2]), a, xp=xp, dtype=real_dtype(a.dtype, xp=xp))
    if is_complex(a.dtype):
        return xp.maximum(xp.max(xp.abs(xp.real(a)), axis=(-2, -1)), xp.max(xp.abs(xp.imag(a)), axis=(-2, -1)))
    return xp.max(xp.abs(a), axis=(-2, -1))


def binary_exponent(value: Array, *, xp: Namespace) -> Array:
    """Whole number e (as a float) with value in [2**e, 2**(e+1)); zero where `value` is zero or not finite.

    Exact in NumPy; elsewhere one off at most next to a power of two, which keeps every scaling exact all the same.
    """
    usable = xp.isfinite(value) & (value > 0)
    if isinstance(value, _NUMPY):
        return np.asarray(np.where(usable, np.frexp(value)[1] - 1, 0).astype(value.dtype))
    # Subnormals are brought into the normal range first: the logarithm of some devices flushes them to zero.
    small = value < tiny(value.dtype) * 2.0**64
    lifted = xp.where(small, value * 2.0**64, value)
    exponent = xp.floor(xp.log2(xp.where(usable, lifted, xp.ones_like(value))))
    exponent = xp.where(small, exponent - 64, exponent)
    return xp.where(usable, exponent, xp.zeros_like(exponent))


def power_of_two_scale(a: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Scale each matrix by an exact power of two so that its largest entry lies in [1, 2).

    Matrices with a unit diagonal, the common case, stay as they are.

    Parameters
    ----------
    a : array, shape (..., m, n)

    Returns
    -------
    scaled : array, shape (..., m, n)
        a * 2**-exponent, exact unless entries below 2**-1021 times the largest one vanish.
    exponent : array, shape (...), real
        Whole numbers; zero for a zero (or empty or non-finite) matrix. Undo an inverse with `scale_by_power_of_two`.
    """
    exponent = binary_exponent(largest_entry(a, xp=xp), xp=xp)
    return scale_by_power_of_two(a, -exponent, xp=xp), exponent


def scale_by_power_of_two(a: Array, exponent: Array, *, xp: Namespace) -> Array:
    """A * 2**exponent per matrix, in two factors so that neither overflows while the product is in range.

    Parameters
    ----------
    a : array, shape (..., m, n)
    exponent : array, shape (...)
        Whole numbers as floats.
    """
    real = real_dtype(a.dtype, xp=xp)
    if not is_traced(a, exponent):
        largest = float(np.max(np.abs(to_numpy(exponent)), initial=0.0))
        if largest == 0:
            return a
        if largest < (500 if eps(real) < 1e-10 else 60):  # one factor cannot overflow, and saves a pass over `a`
            return a * xp.astype(_exact_power_of_two(exponent, xp=xp), real)[..., None, None]
    half = xp.floor(exponent / 2)
    first = xp.astype(_exact_power_of_two(half, xp=xp), real)[..., None, None]
    second = xp.astype(_exact_power_of_two(exponent - half, xp=xp), real)[..., None, None]
    return (a * first) * second


def _exact_power_of_two(n: Array, *, xp: Namespace) -> Array:
    """2**n for whole |n| < 1024 (128 in float32), exactly: vectorised pow is off by a rounding error in some libraries."""
    if isinstance(n, _NUMPY):
        return np.ldexp(np.ones_like(n), np.asarray(n, dtype=np.int32))
    remaining = xp.abs(n)
    power = xp.ones_like(n)
    for bit in range(10 if eps(n.dtype) < 1e-10 else 7):
        half = xp.floor(remaining / 2)
        power = xp.where(remaining - 2 * half > 0, power * 2.0 ** (2**bit), power)
        remaining = half
    return xp.where(n < 0, 1 / power, power)


# ----------------------------------------------------------------------------- linear algebra not standard
def _numpy_cholesky(a: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Batched Cholesky that fails per matrix; the whole batch at once where nothing fails."""
    try:
        return np.linalg.cholesky(a), np.ones(a.shape[:-2], dtype=bool)
    except np.linalg.LinAlgError:
        pass
    factor = np.full(a.shape, np.nan, dtype=a.dtype)
    ok = np.zeros(a.shape[:-2], dtype=bool)
    for index in np.ndindex(*a.shape[:-2]):  # only here, where at least one matrix is not positive definite
        try:
            factor[index] = np.linalg.cholesky(a[index])
            ok[index] = True
        except np.linalg.LinAlgError:
            continue
    return factor, ok


def cholesky(a: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Lower Cholesky factor and, per matrix, whether it exists.

    Parameters
    ----------
    a : array, shape (..., m, m)
        Hermitian; only one triangle is read.

    Returns
    -------
    factor : array, shape (..., m, m)
        NaN where the matrix is not numerically positive definite.
    ok : boolean array, shape (...)
    """
    if compat.is_numpy_array(a):
        return _numpy_cholesky(a)
    if compat.is_torch_array(a):
        torch = sys.modules["torch"]
        factor, status = torch.linalg.cholesky_ex(a)
        ok = status == 0
        return torch.where(ok[..., None, None], factor, torch.full_like(factor, math.nan)), ok
    if compat.is_jax_array(a) or compat.is_cupy_array(a):  # these return NaN instead of raising
        factor = xp.linalg.cholesky(a)
        ok = xp.all(xp.isfinite(factor), axis=(-2, -1))
        return xp.where(ok[..., None, None], factor, xp.full_like(factor, math.nan)), ok
    host, ok_host = _numpy_cholesky(to_numpy(a))
    return from_numpy(host, a, xp=xp), from_numpy(ok_host, a, xp=xp)


def triangular_solve(factor: Array, b: Array, *, xp: Namespace, adjoint: bool = False) -> Array:
    """Solve L Y = B, or L^H Y = B, for a lower triangular L.

    Parameters
    ----------
    factor : array, shape (..., m, m)
    b : array, shape (..., m, k)
    adjoint : bool
        Solve with the conjugate transpose instead.
    """
    if compat.is_torch_array(factor):
        torch = sys.modules["torch"]
        left = factor.mH if adjoint else factor
        return torch.linalg.solve_triangular(left, b, upper=adjoint)
    if compat.is_jax_array(factor):
        jax = sys.modules["jax"]
        batch = np.broadcast_shapes(factor.shape[:-2], b.shape[:-2])
        left = xp.broadcast_to(factor, (*batch, *factor.shape[-2:]))
        right = xp.broadcast_to(b, (*batch, *b.shape[-2:]))
        return jax.lax.linalg.triangular_solve(left, right, left_side=True, lower=True, transpose_a=adjoint, conjugate_a=adjoint)
    if compat.is_cupy_array(factor):
        cupyx_linalg = __import__("cupyx.scipy.linalg", fromlist=["solve_triangular"])
        return cupyx_linalg.solve_triangular(factor, b, lower=True, trans="C" if adjoint else "N")
    if math.prod(b.shape) == 0:  # SciPy takes no empty batches
        return xp.broadcast_to(b, (*np.broadcast_shapes(factor.shape[:-2], b.shape[:-2]), *b.shape[-2:]))
    from scipy.linalg import solve_triangular  # imported late: `import softlinalg` stays quick

    solved = solve_triangular(to_numpy(factor), to_numpy(b), lower=True, trans="C" if adjoint else "N", check_finite=False)
    return solved if compat.is_numpy_array(factor) else from_numpy(solved, factor, xp=xp)


def spd_inverse(a: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """Inverse of Hermitian positive definite matrices by Cholesky; NaN, and False, where there is no factor.

    Parameters
    ----------
    a : array, shape (..., m, m)

    Returns
    -------
    inverse : array, shape (..., m, m)
        Exactly Hermitian.
    ok : boolean array, shape (...)
    """
    if compat.is_numpy_array(a):
        return _lapack_spd_inverse(np.array(a, order="C"))
    if compat.is_torch_array(a) and is_cpu(a) and may_reuse_buffers(a) and not is_traced(a) and a.shape[-1] <= _SMALL:
        # SciPy's LAPACK in the memory of the tensor: about twice as fast as torch.cholesky_inverse on small matrices.
        with one_blas_thread():
            inverse, ok = _lapack_spd_inverse(a.clone(memory_format=sys.modules["torch"].contiguous_format).numpy())
        return xp.asarray(inverse), xp.asarray(ok)
    factor, ok = cholesky(a, xp=xp)
    eye = eye_like(a, xp=xp)
    safe = xp.where(ok[..., None, None], factor, eye)
    if compat.is_torch_array(a):
        inverse = sys.modules["torch"].cholesky_inverse(safe)
    else:
        inverse_factor = triangular_solve(safe, xp.broadcast_to(eye, a.shape), xp=xp)
        inverse = adjoint(inverse_factor, xp=xp) @ inverse_factor
    inverse = (inverse + adjoint(inverse, xp=xp)) / 2
    return xp.where(ok[..., None, None], inverse, xp.full_like(inverse, math.nan)), ok


_SMALL = 512
"""Size up to which one thread inverts a matrix as quickly as several."""


@functools.lru_cache(maxsize=1)
def _blas_threads() -> Any:
    """Sets how many threads the BLAS of NumPy and SciPy use; finding them takes milliseconds, setting them ten microseconds."""
    import scipy.linalg  # noqa: F401  (loads its BLAS)
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController().select(internal_api=["openblas", "blis"])


def one_blas_thread() -> Any:
    """A context in which NumPy and SciPy use one thread: their own would wait for those of PyTorch (stalls of 0.1 to 4 s were measured)."""
    return _blas_threads().limit(limits=1)


def _lapack_spd_inverse(work: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """LAPACK's potrf and potri for each matrix, in the memory of `work` (C order, ours).

    NumPy has no batched form of the second, and a general inverse costs four times as much. The transposed view of a
    matrix is in Fortran order, so its upper triangle there is the lower one here; conj(B)^-1 transposed is B^-1.
    """
    from scipy.linalg import get_lapack_funcs  # imported late: `import softlinalg` stays quick

    potrf, potri = get_lapack_funcs(("potrf", "potri"), (work,))
    upper = ~np.tri(work.shape[-1], dtype=bool)
    ok = np.zeros(work.shape[:-2], dtype=bool)
    for index in np.ndindex(*work.shape[:-2]):
        view = work[index].T
        _, status = potrf(view, lower=0, overwrite_a=1, clean=0)
        if status == 0:
            _, status = potri(view, lower=0, overwrite_c=1)
        ok[index] = status == 0
        if status == 0:
            np.copyto(work[index], view.conj(), where=upper)  # in cache still, and no second array
        else:
            work[index] = np.nan
    return work, ok


def pivot_order(a: Array) -> np.ndarray[Any, Any]:
    """Row numbers of a symmetric positive semi-definite matrix in the order of greedy pivots, each the largest that is left.

    On the host, by LAPACK's pstrf.
    """
    from scipy.linalg import get_lapack_funcs  # imported late: `import softlinalg` stays quick

    host = to_numpy(a)
    (pstrf,) = get_lapack_funcs(("pstrf",), (host,))
    return np.asarray(pstrf(host, lower=1)[1], dtype=np.int64) - 1


def is_exactly_hermitian(a: Array, *, xp: Namespace) -> bool:
    """Whether every matrix equals its conjugate transpose bit for bit."""
    if compat.is_torch_array(a) and not is_complex(a.dtype):
        return bool(sys.modules["torch"].equal(a, a.mT))
    return bool(xp.all(a == adjoint(a, xp=xp)))


def minus_identity(a: Array, *, xp: Namespace) -> Array:
    """`a` - I over the last two axes, in the memory of `a` (made by the caller) where the library allows it."""
    if isinstance(a, np.ndarray):
        index = np.arange(a.shape[-1])
        a[..., index, index] -= 1
        return a
    if compat.is_torch_array(a) and may_reuse_buffers(a):
        sys.modules["torch"].diagonal(a, dim1=-2, dim2=-1).sub_(1)
        return a
    return a - eye_like(a, xp=xp)


def with_diagonal(a: Array, diagonal: Array, *, xp: Namespace) -> Array:
    """A copy of `a` (..., m, m) in the data type of `diagonal` (..., m), which becomes its diagonal."""
    if isinstance(a, np.ndarray):
        copy: Array = a.astype(diagonal.dtype, order="C", copy=True)
        index = np.arange(a.shape[-1])
        copy[..., index, index] = diagonal
        return copy
    if compat.is_torch_array(a) and not is_traced(a):
        copy = a.to(diagonal.dtype, copy=True)
        sys.modules["torch"].diagonal(copy, dim1=-2, dim2=-1).copy_(diagonal)
        return copy
    mask = eye_like(a, xp=xp, dtype=xp.bool)
    return xp.where(mask, diagonal[..., None, :], xp.astype(a, diagonal.dtype))


def adjoint(a: Array, *, xp: Namespace) -> Array:
    """Conjugate transpose over the last two axes."""
    if compat.is_torch_array(a):
        return a.mH if is_complex(a.dtype) else a.mT  # which also works on batches of gradients (is_grads_batched=True)
    transposed = xp.matrix_transpose(a)
    return xp.conj(transposed) if is_complex(a.dtype) else transposed


# ------------------------------------------------------------------------------------- attention over tokens
def exponent_unit(x: Array) -> float:
    """The unit in which the library of `x` takes exponents most quickly: 1, or log2(e) where 2^x is quicker than e^x (PyTorch: twice)."""
    return _LOG2_E if compat.is_torch_array(x) else 1.0


_LOG2_E = 1 / math.log(2)


def clamped_exp_in_place(block: Array, lowest: float, unit: float = 1.0) -> None:
    """exp(min(block, 0)) in the memory of `block`, a buffer of the caller; exactly zero where `block` <= `lowest`; NaN stays.

    `block` is in the `unit` of `exponent_unit`, `lowest` is not. Clamped before, since exp is many times slower where its result is
    subnormal, and zeroed after, by the smallest value kept.
    """
    floor = math.exp(lowest) * (1 + 1e-3)  # a hair above what a clamped entry gives
    if compat.is_torch_array(block):
        block.clamp_(lowest * unit, 0.0)
        block = block.exp2_() if unit != 1.0 else block.exp_()
        sys.modules["torch"].threshold_(block, floor, 0.0)
        return
    xp = compat.array_namespace(block)
    with quiet(block):
        xp.clip(block, lowest, 0.0, out=block)
        xp.exp(block, out=block)
        block *= block > floor


def row_squares(x: Array, out: Array | None = None) -> Array:
    """Sums of squares over the last axis, 2-norms squared, in one pass where the library has one; into `out` if given."""
    if compat.is_torch_array(x):
        return sys.modules["torch"].linalg.vecdot(x, x, out=out)
    squares = compat.array_namespace(x).vecdot(x, x)
    if out is None:
        return squares
    out[...] = squares
    return out


def matmul_into(out: Array, left: Array, right: Array) -> None:
    """left @ right in the memory of `out`, a buffer of the caller of the same type."""
    if compat.is_torch_array(out):
        sys.modules["torch"].matmul(left, right, out=out)  # without array-api-compat's promotion, which costs as much as a small product
        return
    compat.array_namespace(out).matmul(left, right, out=out)


def subtract_into(out: Array, x: Array, y: Array) -> None:
    """x - y in the memory and the type of `out`, a buffer of the caller."""
    if compat.is_torch_array(out):
        sys.modules["torch"].sub(x, y, out=out)
        return
    with quiet(out):
        compat.array_namespace(out).subtract(x, y, out=out, casting="same_kind")


def subtract_product_into(out: Array, x: Array, y: Array, z: Array) -> None:
    """x - y * z in the memory and the type of `out`; `z` may be overwritten."""
    if compat.is_torch_array(out):
        torch = sys.modules["torch"]
        torch.addcmul(x, y, z, value=-1, out=out) if out.dtype == x.dtype else out.copy_(torch.addcmul(x, y, z, value=-1))
        return
    with quiet(out):
        z *= y
        compat.array_namespace(out).subtract(x, z, out=out, casting="same_kind")


def add_matmul_in_place(total: Array, left: Array, right: Array) -> None:
    """total += left @ right for stacks of matrices (B, n, m), a buffer of the caller."""
    if compat.is_torch_array(total):
        total.baddbmm_(left, right)
        return
    total += left @ right


def fill_diagonal_in_place(a: Array, value: float) -> None:
    """Set the diagonals of stacked matrices, a buffer of the caller."""
    if compat.is_torch_array(a):
        sys.modules["torch"].diagonal(a, dim1=-2, dim2=-1).fill_(value)
        return
    flat = a.reshape((*a.shape[:-2], -1))  # of a buffer in order: a view
    flat[..., :: a.shape[-1] + 1] = value


def empty_in_order_of(x: Array, shape: tuple[int, ...], *, xp: Namespace) -> Array:
    """Uninitialised memory of a shape, with the axes in the order in which those of `x` lie in memory, where the library has orders.

    Attention heads are usually a view of (batch, tokens, heads, features): results in that order merge without a copy.
    """
    if compat.is_torch_array(x) and len(shape) == x.ndim:
        strides = tuple(x.stride())
        order = sorted(range(x.ndim), key=lambda axis: (-strides[axis], axis))
        inverse = [order.index(axis) for axis in range(x.ndim)]
        memory: Array = x.new_empty([shape[axis] for axis in order])
        return memory.permute(inverse)
    return empty_like_shape(shape, x, xp=xp)
