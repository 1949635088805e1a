"""What array-api-compat and array-api-extra lack: the only core files that know array libraries by name.

Here data types to compute in, and arrays as they are made, moved and looked at; `_inputs` checks what comes in, `_linalg` holds the
linear algebra that the standard leaves out, `_buffers` what a blocked loop does in place. Nothing in these imports an array library
other than NumPy and SciPy: the others are found through the arrays that people pass.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import array_api_compat as compat
import numpy as np

from softlinalg._typing import Array, Device, DType, Namespace

__all__ = [
    "Home",
    "compiles_each_shape",
    "compute_dtype",
    "constant_in_graphs",
    "contiguous",
    "detach",
    "device_of",
    "dtype_name",
    "empty_like_shape",
    "eps",
    "eye_like",
    "from_numpy",
    "has_float64",
    "host_namespace",
    "host_view",
    "in_numpy",
    "is_complex",
    "is_cpu",
    "is_half",
    "is_numpy",
    "is_small_on_host",
    "is_traced",
    "know_dtypes",
    "may_reuse_buffers",
    "one_blas_thread",
    "one_through_numpy",
    "quiet",
    "real_dtype",
    "running_sums",
    "same_memory",
    "take_rows",
    "through_numpy",
    "tiny",
    "to_float",
    "to_numpy",
    "wide_dtype",
    "zeros_like_shape",
]


F = TypeVar("F", bound=Callable[..., Any])


_NUMPY = (np.ndarray, np.generic)  # a tuple: compilers trace no union of types


_HALF_NAMES = ("float16", "bfloat16")


_REAL_NAMES = ("float32", "float64")


_COMPLEX_NAMES = ("complex64", "complex128")


_KNOWN_NAMES: dict[type, dict[DType, str]] = {}
"""By the type of the data type: array-api-strict warns where one of its own is compared with one of NumPy's."""


def know_dtypes(names: Mapping[DType, str]) -> None:
    """Remember the names of data types of a library: to ask for one takes a microsecond. PyTorch's are added by `softlinalg.torch`."""
    for kind, name in names.items():
        _KNOWN_NAMES.setdefault(type(kind), {})[kind] = name


for _name in ("float16", *_REAL_NAMES, *_COMPLEX_NAMES, "int64", "bool"):
    know_dtypes({np.dtype(_name): _name, np.dtype(_name).type: _name})


def dtype_name(dtype: DType) -> str:
    """Plain name of a data type, the same in every library: "float32", "bfloat16", "int64", ..."""
    known = _KNOWN_NAMES.get(type(dtype))
    if known is not None and dtype in known:
        return known[dtype]
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


def constant_in_graphs(function: F) -> F:
    """Let torch.compile call a function of numbers as it is and keep what it returns, where it would trace a thousand steps of a loop.

    This is what torch.compiler.assume_constant_result does, for a module that does not import PyTorch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def is_traced(*arrays: Array) -> bool:
    """Is any of the arrays an abstract value (jax.jit, vmap, torch.compile, torch.func), whose numbers cannot be read?

    Or is it recorded what is done with it (torch.jit.trace)? What follows from its numbers would then be taken to follow from all.
    """
    jax = sys.modules.get("jax")
    torch = sys.modules.get("torch")
    for x in arrays:
        if isinstance(x, np.ndarray):
            continue
        if torch is not None and isinstance(x, torch.Tensor):
            if torch.compiler.is_compiling() or _torch_records(torch) or x.is_meta:
                return True
            if torch._C._functorch.is_functorch_wrapped_tensor(x) or type(x).__name__ == "FakeTensor":
                return True
        elif jax is not None and (isinstance(x, jax.core.Tracer) or (isinstance(x, jax.Array) and _jax_records_constants(jax))):
            return True
    return False


def _torch_records(torch: Any) -> bool:
    """Does torch.jit.trace or make_fx record what is done with ordinary tensors? Code that reads memory would not be in their programs."""
    if torch._C._is_tracing():
        return True
    # Under any other mode nothing is recorded to be run again. The length tells the usual case.
    return bool(torch._C._len_torch_dispatch_stack()) and torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def _jax_records_constants(jax: Any) -> bool:
    """Does JAX record a program now (jit, scan, ...), in which operations on arrays with numbers become abstract too?"""
    trace: Any = getattr(getattr(sys.modules.get("jax._src.core"), "trace_ctx", None), "trace", None)
    while type(trace).__name__ != "DynamicJaxprTrace" and hasattr(trace, "parent_trace"):
        trace = trace.parent_trace
    if type(trace).__name__ == "EvalTrace":
        return False
    # Private names of JAX said that it may be so, or are others by now. An operation tells, but takes 0.1 ms where there is no program.
    return isinstance(jax.numpy.zeros(()), jax.core.Tracer)  # not so inside of jax.ensure_compile_time_eval


def quiet(x: Array = None) -> contextlib.AbstractContextManager[Any]:
    """No floating-point warnings from NumPy: what over- or underflows inside has the right limit, or is reported by the caller.

    Nothing is entered for a traced array: compilers cannot trace NumPy's setting.
    """
    return contextlib.nullcontext() if is_traced(x) else np.errstate(all="ignore")


def is_numpy(x: Array) -> bool:
    """Is it a NumPy array?"""
    return isinstance(x, np.ndarray)


def is_cpu(x: Array) -> bool:
    """Does `x` live in the memory of the host?"""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        return bool(x.device.type == "cpu")
    return not is_traced(x) and "cpu" in str(compat.device(x)).lower()


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


def settled(x: Array) -> Array:
    """`x` with what PyTorch puts off done: conjugating or negating a view, and giving memory to zeros that have none.

    Code that reads memory would take the view for its base: the wrong sign, and nothing said.
    """
    if not _is_torch(x) or is_traced(x):
        return x
    if x.is_conj():
        x = x.resolve_conj()
    if x.is_neg():
        x = x.resolve_neg()
    return x.clone() if x._is_zerotensor() else x


def to_float(x: Array) -> float:
    """A Python float from an array of one entry."""
    return float(x)


def to_numpy(x: Array) -> np.ndarray[Any, Any]:
    """The numbers of `x` on the host, as a NumPy array (bfloat16 as float32)."""
    if isinstance(x, np.ndarray):
        return x
    if compat.is_torch_array(x):
        x = settled(x.detach().cpu())
        return np.asarray((x.float() if dtype_name(x.dtype) == "bfloat16" else x).numpy())
    if compat.is_cupy_array(x):
        return np.asarray(x.get())
    try:
        return np.asarray(x)
    except (RuntimeError, TypeError, ValueError):
        if not hasattr(x, "to_device"):
            raise
        # On a device that NumPy cannot read.
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


def compiles_each_shape(*arrays: Array) -> bool:
    """Are these arrays of JAX on the host, outside of compiled functions, where every operation is compiled for every new shape?

    NumPy serves better there: for a pseudo-inverse of 5 x 3 JAX compiled 224 programs, which took seconds.
    """
    return all(compat.is_jax_array(x) and is_cpu(x) and len(x.devices()) == 1 and dtype_name(x.dtype) != "bfloat16" for x in arrays)


class Home(NamedTuple):
    """Where a result belongs that NumPy computes."""

    like: Array
    """An array of that library and device."""
    xp: Namespace

    def bring(self, x: Array) -> Array:
        """A result of NumPy."""
        return from_numpy(x, self.like, xp=self.xp)


def in_numpy(*arrays: Array, xp: Namespace) -> tuple[Home | None, tuple[Array, ...], Namespace]:
    """Where results belong, and the arrays and the namespace to compute them with: NumPy's where the library compiles each shape."""
    if not compiles_each_shape(*arrays):
        return None, arrays, xp
    return Home(arrays[0], xp), tuple(map(to_numpy, arrays)), host_namespace()


def is_small_on_host(x: Array, entries: int) -> bool:
    """Is `x` of another library than NumPy, on the host, and `entries` so few that calling costs more than computing?"""
    return 0 < entries <= _FEW and not isinstance(x, np.ndarray) and is_cpu(x) and dtype_name(x.dtype) != "bfloat16"


def through_numpy(
    function: Callable[[Array, Namespace], tuple[Array, ...] | None], x: Array, *, calls_blas: bool = True, xp: Namespace
) -> tuple[Array, ...] | None:
    """`function(array, namespace)` of `x` in NumPy, its results in the library of `x`; without NumPy's warnings and BLAS threads.

    A function that calls compiled code of ours alone, or sees to the threads itself, says that it does not call BLAS: asking takes 20 us.
    """
    is_torch = compat.is_torch_array(x)
    host, hosts = (x.detach().numpy(), host_namespace()) if is_torch else host_view(x, xp=xp)
    with one_blas_thread() if calls_blas else contextlib.nullcontext(), np.errstate(all="ignore"):
        found = function(host, hosts)
    if found is None:
        return None
    if is_torch:
        return tuple(map(sys.modules["torch"].from_numpy, found))
    return tuple(from_numpy(part, x, xp=xp) for part in found)


def one_through_numpy(
    function: Callable[[Array, Namespace], Array | None], x: Array, *, calls_blas: bool = True, xp: Namespace
) -> Array | None:
    """`through_numpy` for a function of one result."""

    def tupled(host: Array, hosts: Namespace) -> tuple[Array] | None:
        found = function(host, hosts)
        return None if found is None else (found,)

    found = through_numpy(tupled, x, calls_blas=calls_blas, xp=xp)
    return None if found is None else found[0]


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


@functools.cache
def host_namespace() -> Namespace:
    """NumPy's namespace, for small arrays that are kept on the host."""
    return compat.array_namespace(np.empty(0))


def from_numpy(x: np.ndarray[Any, Any], like: Array, *, xp: Namespace, dtype: DType | None = None) -> Array:
    """A host array in the library and on the device of `like`."""
    device: Device = device_of(like)
    return xp.asarray(x, dtype=dtype, device=device) if dtype is not None else xp.asarray(x, device=device)


def device_of(x: Array) -> Device:
    """Device of an array, None for abstract values."""
    return x.device if _is_torch(x) else compat.device(x)


def _is_torch(x: Array) -> bool:
    """Is it a tensor of PyTorch? Asked in a way that torch.compile follows without a warning: compat remembers its answers."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def eye_like(a: Array, *, xp: Namespace, dtype: DType | None = None) -> Array:
    """The identity, shape (m, m), with m, device and (unless given) dtype of `a` (..., m, m)."""
    if _is_torch(a) and is_traced(a):  # an export to ONNX takes torch.eye apart into a change in place, which it refuses
        index = xp.arange(a.shape[-1], device=device_of(a))
        return xp.astype(index[:, None] == index, dtype or a.dtype)
    return xp.eye(a.shape[-1], dtype=dtype or a.dtype, device=device_of(a))


def zeros_like_shape(shape: tuple[int, ...], like: Array, *, xp: Namespace, dtype: DType | None = None) -> Array:
    """Zeros of a shape, with device and (unless given) dtype of `like`."""
    return xp.zeros(shape, dtype=dtype or like.dtype, device=device_of(like))


def empty_like_shape(shape: tuple[int, ...], like: Array, *, xp: Namespace, dtype: DType | None = None) -> Array:
    """Uninitialised memory of a shape, with device and (unless given) dtype of `like`."""
    return xp.empty(shape, dtype=dtype or like.dtype, device=device_of(like))


def take_rows(x: Array, indices: Any, *, xp: Namespace) -> Array:
    """Rows of `x` at host indices, in order."""
    host = np.asarray(indices, dtype=np.int64)
    if isinstance(x, np.ndarray):
        return x[host]
    return xp.take(x, from_numpy(host, x, xp=xp), axis=0)


def middle_row(x: Array, *, xp: Namespace) -> Array:
    """Per column the middle of the values in order, the upper one of two, shape (..., 1, d)."""
    middle = x.shape[-2] // 2
    if isinstance(x, np.ndarray):  # half the time of a sort
        return np.partition(x, middle, axis=-2)[..., middle : middle + 1, :]
    if _is_torch(x):  # compat's sort is a stable one, which ONNX has not
        return x.sort(dim=-2).values[..., middle : middle + 1, :]
    return xp.sort(x, axis=-2)[..., middle : middle + 1, :]


def running_sums(x: Array, *, xp: Namespace) -> Array:
    """Sums of the entries up to each one, along the last axis."""
    return x.cumsum(-1) if _is_torch(x) else xp.cumulative_sum(x, axis=-1)  # compat's own for torch is not followed without a warning


def detach(x: Array) -> Array:
    """The same numbers without the record that automatic differentiation keeps: choices have no gradient."""
    if _is_torch(x):
        return x.detach()
    return sys.modules["jax"].lax.stop_gradient(x) if compat.is_jax_array(x) else x


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
    groups = xp.arange(count, dtype=labels.dtype, device=device_of(x))
    return xp.astype(groups[:, None] == labels[None, :], x.dtype) @ x


@functools.lru_cache(maxsize=1)
def _blas_libraries() -> tuple[Any, ...]:
    """What sets how many threads the BLAS of NumPy and that of SciPy use; finding them takes milliseconds."""
    import scipy.linalg  # noqa: F401  (loads its BLAS)
    from threadpoolctl import ThreadpoolController

    return tuple(ThreadpoolController().select(internal_api=["openblas", "blis"]).lib_controllers)


@contextlib.contextmanager
def one_blas_thread() -> Iterator[int]:
    """A context in which NumPy and SciPy use one thread; gives the number that they used before.

    Results then do not depend on how many there are, and they do not wait for those of PyTorch (stalls of 0.1 to 4 s were measured).
    """
    before = [(library, library.get_num_threads() or 1) for library in _blas_libraries()]
    several = [(library, count) for library, count in before if count > 1]
    try:
        for library, _ in several:
            library.set_num_threads(1)
        yield max((count for _, count in before), default=1)
    finally:
        for library, count in several:
            library.set_num_threads(count)
