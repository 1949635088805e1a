"""Tensors that come in: what is no tensor of numbers in memory is refused before PyTorch meets it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from softlinalg import _arrays, _inputs
from softlinalg._settings import shown
from softlinalg.errors import BackendMismatchError, DTypeError, ShapeError

__all__ = ["checked_tensors", "in_type", "whole_sides", "without_autocast"]

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_arrays.know_dtypes(
    {kind: str(kind).removeprefix("torch.") for kind in (*_FLOATS, torch.complex64, torch.complex128, torch.int64, torch.bool)}
)


def checked_tensors(func: str, *, mask: Any = None, optional: tuple[str, ...] = (), **given: Any) -> list[Any]:
    """Tensors by the names of their arguments, checked; integers and truth values become the default float.

    Parameters
    ----------
    func : str
        Name of the public function, for messages.
    mask : Tensor or None
        A `key_padding_mask`: only what it is and where it is are looked at.
    optional : tuple of str
        The arguments that may be None, and then stay so.

    Raises
    ------
    DTypeError
        No tensor, one that is sparse or quantized, complex or of another type.
    BackendMismatchError
        Tensors on different devices.
    ResourceError
        A tensor that repeats its entries, and would not fit in memory if it did not.
    """
    found = [None if x is None and name in optional else _checked(func, name, x) for name, x in given.items()]
    if mask is not None and not isinstance(mask, Tensor):
        message = f"{func}: key_padding_mask must be a boolean tensor; got {shown(mask)}. Pass torch.as_tensor(mask)."
        raise DTypeError(message)
    devices = [str(x.device) for x in (*found, mask) if x is not None]
    if devices and devices.count(devices[0]) < len(devices):
        listed = ", ".join(sorted(set(devices)))
        message = f"{func}: all tensors must be on one device; got {listed}. Move them to one."
        raise BackendMismatchError(message)
    return found


def _checked(func: str, name: str, x: Any) -> Any:
    if not isinstance(x, Tensor):
        message = f"{func}: {name} must be a tensor; got {shown(x)}. Pass torch.as_tensor({name})."
        raise DTypeError(message)
    if x.layout != torch.strided or x.is_quantized:
        kind = "quantized" if x.is_quantized else str(x.layout).removeprefix("torch.")
        message = f"{func}: {name} must be a dense tensor; got a {kind} one. Pass {name}.to_dense(), or {name}.dequantize()."
        raise DTypeError(message)
    if x.dtype not in _FLOATS:
        kind = _arrays.dtype_name(x.dtype)
        if kind != "bool" and not kind.startswith(("int", "uint")):
            message = f"{func}: {name} must hold real numbers of 16 bits or more; got dtype {kind}. Convert it: {name}.float()."
            raise DTypeError(message)
        x = x.to(torch.get_default_dtype())
    _inputs.check_fits(x, func=func, name=name)
    return _arrays.settled(x)


def in_type(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x.to(dtype)`, which takes microseconds where it changes nothing."""
    return x if x.dtype == dtype else x.to(dtype)


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A region that computes in the types it has.

    Where autocast is off nothing is entered: an exported program would keep the region. Shapes alone (device "meta") have no autocast.
    """
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)


def whole_sides(value: Any, *, func: str, name: str) -> tuple[int, ...]:
    """Sides of a grid: a few whole numbers."""
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Tensor):
        sides = tuple(value) if hasattr(value, "__len__") and getattr(value, "ndim", 1) != 0 else ()  # arrays without axes are no iterables
        if 1 <= len(sides) <= 2 and all(isinstance(side, int | torch.SymInt) and not isinstance(side, bool) for side in sides):
            return sides
    got = value if isinstance(value, tuple) and len(value) < 4 and all(isinstance(side, int | float) for side in value) else shown(value)
    message = f"{func}: {name} must be one or two whole numbers; got {got}. Pass (rows, columns)."
    raise ShapeError(message)
