"""From a host array to an array of any library, data type, device and memory layout, with the same numbers."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import array_api_compat as compat
import numpy as np

from softlinalg import _arrays
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError

__all__ = ["LAYOUTS", "NAMESPACES", "apply_layout", "as_namespace", "namespace_name", "place", "round_to", "supported_layouts"]

NAMESPACES = {
    "numpy": "array_api_compat.numpy",
    "array_api_strict": "array_api_strict",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "cupy": "array_api_compat.cupy",
}
"""Array libraries by name, and the module with their functions."""

LAYOUTS: dict[str, tuple[str, ...]] = {
    "C": ("numpy", "array_api_strict", "torch", "jax", "cupy"),
    "F": ("numpy", "torch", "cupy"),
    "strided": ("numpy", "torch", "cupy"),
    "slice": ("numpy", "torch", "cupy"),
    "broadcast": ("numpy", "torch", "cupy"),
    "negative": ("numpy", "cupy"),
    "readonly": ("numpy",),
    "big-endian": ("numpy",),
    "unaligned": ("numpy",),
    "pending": ("torch",),
}
"""Memory layouts, and the libraries that have them. "strided": every third number; "slice": a block of a larger array; "broadcast":
stride 0 along the first batch axis (all members are the first one; without a batch axis as "slice"); "negative": both matrix axes
run backwards in memory; "unaligned": at an address that is no multiple of the item size; "pending": a view that PyTorch has yet to
conjugate, or to negate where the numbers are real (of float32 and float64; others as "slice")."""


def as_namespace(xp: Any) -> Namespace:
    """The namespace itself, from its name ("numpy", "array_api_strict", "torch", "jax", "cupy") or from a namespace.

    Raises
    ------
    ParameterError
        An unknown name, or a library that is not installed.
    """
    if not isinstance(xp, str):
        return xp
    if xp not in NAMESPACES:
        message = f"testing: xp must be one of {', '.join(NAMESPACES)} or a namespace; got {xp[:40]!r}. Pass one of these."
        raise ParameterError(message)
    try:
        return importlib.import_module(NAMESPACES[xp])
    except ImportError as error:
        message = f"testing: xp must be installed; got {xp!r}. Install it, or leave this namespace out."
        raise ParameterError(message) from error


def namespace_name(xp: Any) -> str:
    """The short name of a namespace ("torch"), whatever module it comes from."""
    if isinstance(xp, str):
        return xp
    parts = str(getattr(xp, "__name__", type(xp).__name__)).split(".")
    return next((name for name in NAMESPACES if name in parts), parts[-1])


def supported_layouts(xp: Any) -> tuple[str, ...]:
    """Names of the layouts that arrays of a library can have, simplest first."""
    name = namespace_name(xp)
    return tuple(layout for layout, libraries in LAYOUTS.items() if name in libraries) or ("C",)


def round_to(host: Any, dtype: str) -> np.ndarray[Any, Any]:
    """Numbers rounded to a data type, in a NumPy type that holds them: bfloat16 in float32, every other in itself.

    Rounds to nearest, ties to even, once (bfloat16 by way of float32). Overflow gives infinity.
    """
    with np.errstate(all="ignore"):
        if dtype != "bfloat16":
            return np.asarray(host).astype(dtype)
        single = np.ascontiguousarray(host, dtype=np.float32)
        bits = single.view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) & np.uint32(0xFFFF0000)
        return np.where(np.isfinite(single), rounded.view(np.float32), single)


def place(host: np.ndarray[Any, Any], *, dtype: str, xp: Any = "numpy", layout: str = "C", device: Any = None) -> Array:
    """A copy of host numbers as an array of a library, in a data type, a layout, and on a device.

    Parameters
    ----------
    host : numpy array, shape (...)
        Numbers that `dtype` holds exactly (see `round_to`).
    dtype : str
        "float16", "bfloat16", "float32", "float64", "complex64", "complex128", "int64", "bool", ...
    xp : str or namespace
    layout : str
        One of `LAYOUTS`.
    device : optional
        As the library names it.

    Raises
    ------
    ParameterError
        A library that lacks the data type or the layout (JAX without 64-bit types has no float64).
    """
    namespace, name = as_namespace(xp), namespace_name(xp)
    if layout not in LAYOUTS or name not in LAYOUTS[layout]:
        known = ", ".join(supported_layouts(xp))
        message = f"testing: layout must be one that {name} arrays can have ({known}); got {str(layout)[:40]!r}. Pass one of these."
        raise ParameterError(message)
    if name == "numpy":
        if dtype == "bfloat16":
            message = "testing: dtype must be one that the library has; got bfloat16 for numpy. Pass xp='torch' or xp='jax'."
            raise ParameterError(message)
        return apply_layout(np.array(host, dtype=dtype, order="C", copy=True), layout)
    target = getattr(namespace, dtype, None)
    if target is None:
        message = f"testing: dtype must be one that the library has; got {dtype} for {name}. Pass another dtype or library."
        raise ParameterError(message)
    native = np.array(host, copy=True, order="C")  # its own memory, native byte order
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # JAX says that it truncates; here that is an error
            array = namespace.asarray(native.astype(native.dtype.newbyteorder("="), copy=False), dtype=target, device=device)
    except (TypeError, ValueError) as error:
        message = f"testing: dtype must be one that the device has; got {dtype} for {name} on {str(device)[:60]}. Pass another."
        raise ParameterError(message) from error
    if _arrays.dtype_name(array.dtype) != dtype:
        message = f"testing: dtype must be one that the library has; got {dtype} for {name}. For JAX, set jax_enable_x64."
        raise ParameterError(message)
    return apply_layout(array, layout)


def apply_layout(array: Array, layout: str) -> Array:
    """The same numbers in another memory layout (see `LAYOUTS`); the result shares no memory with `array`, unless "C" asks for nothing.

    "broadcast" repeats the first member of the first axis of an array with three axes or more.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import strategies
    >>> strategies.apply_layout(np.ones((3, 2)), "F").flags.f_contiguous
    True
    """
    if layout == "C":
        return array
    if layout == "readonly":
        copy = np.array(array, copy=True)
        copy.setflags(write=False)
        return copy
    if layout == "big-endian":
        return array.astype(array.dtype.newbyteorder(">"))
    if layout == "unaligned":
        memory = np.zeros(array.nbytes + 1, dtype=np.uint8)
        view = memory[1:].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view
    xp = compat.array_namespace(array)
    if layout == "pending" and _arrays.is_complex(array.dtype):
        return array.conj().resolve_conj().conj()
    if layout == "pending" and _arrays.dtype_name(array.dtype) in ("float32", "float64"):
        return xp.complex(xp.zeros_like(array), -array).conj().imag
    if layout == "F":
        return _filled(xp.matrix_transpose(_empty(_swapped(array.shape), array, xp=xp)), array) if array.ndim > 1 else array
    if layout == "strided":
        return _filled(_empty((*array.shape[:-1], 3 * array.shape[-1]), array, xp=xp)[..., ::3], array)
    if layout == "negative":
        flipped = _empty(tuple(array.shape), array, xp=xp)
        return _filled(flipped[..., ::-1, ::-1] if array.ndim > 1 else flipped[::-1], array)
    if layout == "broadcast" and array.ndim > 2:
        return xp.broadcast_to(array[:1], array.shape)
    lengths = [length + 2 for length in array.shape]  # "slice", and what has no other form
    return _filled(_empty(tuple(lengths), array, xp=xp)[tuple(slice(1, length - 1) for length in lengths)], array)


def _swapped(shape: Any) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2])


def _empty(shape: tuple[int, ...], like: Array, *, xp: Namespace) -> Array:
    """Memory whose numbers a function must not look at: large and odd ones, so that it shows."""
    return xp.full(shape, 113, dtype=like.dtype, device=compat.device(like))


def _filled(view: Array, array: Array) -> Array:
    view[...] = array
    return view
