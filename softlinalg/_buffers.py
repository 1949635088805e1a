"""What a blocked loop does in the buffers that it allocated itself, in place where the library can."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import array_api_compat as compat

from softlinalg import _arrays, _native
from softlinalg._typing import Array, Namespace

__all__ = [
    "add_matmul_in_place",
    "axes_in_memory",
    "clamped_exp_in_place",
    "empty_in_order_of",
    "exponent_unit",
    "fill_diagonal_in_place",
    "matmul_into",
    "row_squares",
    "subtract_into",
    "subtract_product_into",
]

_LOG2_E = 1 / math.log(2)


def exponent_unit(x: Array) -> float:
    """The unit in which the library of `x` takes exponents most quickly: 1, or log2(e) where 2^x is quicker than e^x (PyTorch: twice)."""
    return _LOG2_E if compat.is_torch_array(x) else 1.0


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
    if _arrays.is_numpy(block) and _native.clamped_exp_in_place(block, lowest):
        return
    if math.prod(block.shape) == 0:
        return
    xp = compat.array_namespace(block)
    with _arrays.quiet(block):
        # Two reductions tell whether anything must be clamped: they cost a tenth of the exponentials.
        smallest, largest = _arrays.to_float(xp.min(block)), _arrays.to_float(xp.max(block))
        if not (smallest > lowest and largest <= 0):
            xp.clip(block, lowest, 0.0, out=block)
        xp.exp(block, out=block)
        if not smallest > lowest:
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
    with _arrays.quiet(out):
        compat.array_namespace(out).subtract(x, y, out=out, casting="same_kind")


def subtract_product_into(out: Array, x: Array, y: Array, z: Array) -> None:
    """x - y * z in the memory and the type of `out`; `z` may be overwritten."""
    if compat.is_torch_array(out):
        torch = sys.modules["torch"]
        torch.addcmul(x, y, z, value=-1, out=out) if out.dtype == x.dtype else out.copy_(torch.addcmul(x, y, z, value=-1))
        return
    with _arrays.quiet(out):
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


def axes_in_memory(strides: Sequence[int]) -> tuple[list[int], list[int]]:
    """The axes from the one with the largest stride to the one with the smallest, and where each of them stands in that order."""
    order = sorted(range(len(strides)), key=lambda axis: (-strides[axis], axis))
    return order, [order.index(axis) for axis in range(len(strides))]


def empty_in_order_of(x: Array, shape: tuple[int, ...], *, xp: Namespace) -> Array:
    """Uninitialised memory of a shape, with the axes in the order in which those of `x` lie in memory, where the library has orders.

    Attention heads are usually a view of (batch, tokens, heads, features): results in that order merge without a copy.
    """
    if compat.is_torch_array(x) and len(shape) == x.ndim:
        if x.is_contiguous():
            plain: Array = x.new_empty(shape)
            return plain
        order, inverse = axes_in_memory(x.stride())
        memory: Array = x.new_empty([shape[axis] for axis in order])
        return memory.permute(inverse)
    return _arrays.empty_like_shape(shape, x, xp=xp)
