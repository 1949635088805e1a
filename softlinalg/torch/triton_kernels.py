"""Attention and the inverse of its landmark matrix on CUDA devices, in Triton: features and iterates stay on the chip.

The core's formulas (`_attention_blocks.py`, `_iterations.py`), one program for some blocks of tokens, or for one matrix. Neither the
features C = exp(-|q - L|^2 / (2 l^2)) nor their gradient reach the device's memory: backward makes them again. Sums over tokens are in
float32 within a program, and in float64 over the programs. Products of float32 are IEEE products; those of half
precisions may use TF32, which has more digits than the tokens.

Where Triton is missing, or a kernel cannot be built for the device, PyTorch's operations serve: that is logged once.
Imported where it is needed only: by `autograd.py`, for tensors on CUDA devices.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import array_api_compat.torch as xp
import torch
import triton
import triton.language as tl
from torch import Tensor

from softlinalg import _attention_blocks, _buffers, _certificates, _iterations
from softlinalg._attention import InverseSettings
from softlinalg._attention_blocks import Columns, Forward, Gradients

__all__ = ["attend", "attend_vjp", "kernel_matrix_inverse", "serves", "serves_inverse"]

_log = logging.getLogger(__name__)

MOST_LANDMARKS = 128
WIDEST = 128
"""Padded to powers of two, all factors of a head have to fit on the chip."""
LARGEST_INVERSE = 64
_ROWS = 64
"""Tokens in a block."""
_PROGRAMS = 512
"""As many as fill the largest devices; more of them would only add partial sums."""


# ------------------------------------------------------------------------------------------------------ kernels
@triton.jit
def _block(base, rows, columns, stride, count, width):
    """A block (rows, columns) of an array with unit stride in its last axis, in float32, zero outside."""
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    return tl.load(base + rows[:, None].to(tl.int64) * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(base, value, rows, columns, stride, count, width):
    """Write a block back in the type of the array."""
    inside = (rows[:, None] < count) & (columns[None, :] < width)
    tl.store(base + rows[:, None].to(tl.int64) * stride + columns[None, :], value.to(base.dtype.element_ty), mask=inside)


@triton.jit
def _features(z, of_points, of_squares, alone, present, lowest, PRECISION: tl.constexpr):
    """2^exponents of a block of centered points; zero for landmarks that pad, and where it is below the smallest kept."""
    exponents = tl.dot(z, of_points, input_precision=PRECISION)
    exponents += tl.sum(z * z, 1)[:, None] * of_squares[None, :] + alone[None, :]
    exponents = tl.where(exponents > 0, 0.0, exponents)  # NaN stays
    return tl.where((exponents <= lowest) | ~present, 0.0, tl.exp2(exponents))


@triton.jit
def _gather(
    points, p_batch, p_head, p_row, values, v_batch, v_head, v_row, center, columns, total,
    lowest, heads, members, n, m, d, e, step,
    M: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """total[part, head] = C^T v over the rows of one part."""
    head, part = tl.program_id(0), tl.program_id(1)
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    points += b * p_batch + h * p_head
    values += b * v_batch + h * v_head
    lanes, width, values_width = tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    middle = tl.load(center + head * d + width, mask=width < d, other=0.0)
    columns += head * (d + 2) * m
    of_points = _block(columns, width, lanes, m, d, m)
    of_squares = tl.load(columns + d * m + lanes, mask=lanes < m, other=0.0)
    alone = tl.load(columns + (d + 1) * m + lanes, mask=lanes < m, other=0.0)
    sums = tl.zeros((M, E), tl.float32)
    for start in range(part * step, min(part * step + step, n), ROWS):
        rows = start + tl.arange(0, ROWS)
        z = tl.where((rows[:, None] < n) & (width[None, :] < d), _block(points, rows, width, p_row, n, d) - middle[None, :], 0.0)
        present = (rows[:, None] < n) & (lanes[None, :] < m)
        c = _features(z, of_points, of_squares, alone, present, lowest, PRECISION)
        sums += tl.dot(tl.trans(c), _block(values, rows, values_width, v_row, n, e), input_precision=PRECISION)
    _store(total + (part * members + head).to(tl.int64) * m * e, sums, lanes, values_width, e, m, e)


@triton.jit
def _scatter(
    points, p_batch, p_head, p_row, out, o_batch, o_head, o_row, center, columns, core,
    lowest, heads, n, m, d, e, step, M: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out = C core."""
    head, part = tl.program_id(0), tl.program_id(1)
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    points += b * p_batch + h * p_head
    out += b * o_batch + h * o_head
    lanes, width, values_width = tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    middle = tl.load(center + head * d + width, mask=width < d, other=0.0)
    columns += head * (d + 2) * m
    of_points = _block(columns, width, lanes, m, d, m)
    of_squares = tl.load(columns + d * m + lanes, mask=lanes < m, other=0.0)
    alone = tl.load(columns + (d + 1) * m + lanes, mask=lanes < m, other=0.0)
    right = _block(core + head * m * e, lanes, values_width, e, m, e)
    for start in range(part * step, min(part * step + step, n), ROWS):
        rows = start + tl.arange(0, ROWS)
        z = tl.where((rows[:, None] < n) & (width[None, :] < d), _block(points, rows, width, p_row, n, d) - middle[None, :], 0.0)
        c = _features(z, of_points, of_squares, alone, lanes[None, :] < m, lowest, PRECISION)
        _store(out, tl.dot(c, right, input_precision=PRECISION), rows, values_width, o_row, n, e)


@triton.jit
def _pull(
    points, p_batch, p_head, p_row, grad, g_batch, g_head, g_row, values, v_batch, v_head, v_row,
    dpoints, dp_batch, dp_head, dp_row, dvalues, dv_batch, dv_head, dv_row,
    center, columns, rows_of_w, core, dmoment, dw, sums_of_h,
    lowest, precision, heads, members, n, m, d, e, step,
    M: tl.constexpr, D: tl.constexpr, E: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
    OF_GRAD: tl.constexpr, OF_VALUES: tl.constexpr,
):  # fmt: skip
    """H = C * (grad core^T + v dmoment^T); the gradients of points and values; dw = H^T z and the column sums of H, by part."""
    head, part = tl.program_id(0), tl.program_id(1)
    b, h = (head // heads).to(tl.int64), (head % heads).to(tl.int64)
    points += b * p_batch + h * p_head
    dpoints += b * dp_batch + h * dp_head
    lanes, width, values_width = tl.arange(0, M), tl.arange(0, D), tl.arange(0, E)
    middle = tl.load(center + head * d + width, mask=width < d, other=0.0)
    columns += head * (d + 2) * m
    of_points = _block(columns, width, lanes, m, d, m)
    of_squares = tl.load(columns + d * m + lanes, mask=lanes < m, other=0.0)
    alone = tl.load(columns + (d + 1) * m + lanes, mask=lanes < m, other=0.0)
    w = _block(rows_of_w + head * m * d, lanes, width, d, m, d)
    if OF_GRAD:
        grad += b * g_batch + h * g_head
        by_grad = _block(core + head * m * e, lanes, values_width, e, m, e)
    if OF_VALUES:
        values += b * v_batch + h * v_head
        dvalues += b * dv_batch + h * dv_head
        by_values = _block(dmoment + head * m * e, lanes, values_width, e, m, e)
    moved = tl.zeros((M, D), tl.float32)
    column = tl.zeros((M,), tl.float32)
    for start in range(part * step, min(part * step + step, n), ROWS):
        rows = start + tl.arange(0, ROWS)
        z = tl.where((rows[:, None] < n) & (width[None, :] < d), _block(points, rows, width, p_row, n, d) - middle[None, :], 0.0)
        present = (rows[:, None] < n) & (lanes[None, :] < m)
        c = _features(z, of_points, of_squares, alone, present, lowest, PRECISION)
        weights = tl.zeros((ROWS, M), tl.float32)
        if OF_GRAD:
            weights += tl.dot(_block(grad, rows, values_width, g_row, n, e), tl.trans(by_grad), input_precision=PRECISION)
        if OF_VALUES:
            weights += tl.dot(_block(values, rows, values_width, v_row, n, e), tl.trans(by_values), input_precision=PRECISION)
            _store(dvalues, tl.dot(c, by_values, input_precision=PRECISION), rows, values_width, dv_row, n, e)
        weights *= c
        moved += tl.dot(tl.trans(weights), z, input_precision=PRECISION)
        column += tl.sum(weights, 0)
        pulled = tl.dot(weights, w, input_precision=PRECISION) - precision * tl.sum(weights, 1)[:, None] * z
        _store(dpoints, pulled, rows, width, dp_row, n, d)
    place = (part * members + head).to(tl.int64)
    _store(dw + place * m * d, moved, lanes, width, d, m, d)
    tl.store(sums_of_h + place * m + lanes, column, mask=lanes < m)


@triton.jit
def _newton(b, x, factors, scale, m, steps, M: tl.constexpr):
    """`_iterations.chebyshev_newton` of one matrix; zeros pad it, so that what grows there touches nothing."""
    matrix, rows = tl.program_id(0).to(tl.int64), tl.arange(0, M)
    diagonal = rows[:, None] == rows[None, :]
    left = _block(b + matrix * m * m, rows, rows, m, m, m)
    value = tl.where(diagonal, scale, 0.0)
    for step in range(steps):
        product = tl.dot(left, value, input_precision="ieee")
        value = tl.load(factors + step) * (2 * value - tl.dot(value, product, input_precision="ieee"))
    _store(x + matrix * m * m, value, rows, rows, m, m, m)


# ------------------------------------------------------------------------------------------------------ choice
_failed: set[str] = set()


def _gives_up(what: str, error: Exception) -> None:
    """Remember that a kernel cannot be built or run here; say so the first time."""
    if what not in _failed:
        _failed.add(what)
        _log.warning("the Triton kernels of %s do not run on this device, PyTorch's operations serve in their place: %s", what, error)


def serves(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, hidden: Tensor | None) -> bool:
    """Do the kernels serve these plain tensors (b, h, tokens, features)?"""
    m, d, e = landmarks.shape[-2], q.shape[-1], v.shape[-1]
    narrow = (torch.float32, torch.bfloat16, torch.float16)
    return (
        hidden is None
        and "attention" not in _failed
        and 0 < m <= MOST_LANDMARKS
        and max(d, e) <= WIDEST
        and 0 not in q.shape
        and 0 not in v.shape
        and landmarks.dtype == torch.float32
        and all(x is None or (x.dtype in narrow and x.stride(-1) == 1) for x in (q, k, v))
    )


def serves_inverse(w: Tensor, settings: InverseSettings) -> bool:
    """Is this the certified inverse of landmark matrices that fit on the chip?"""
    is_right = settings.inverse == "certified" and settings.is_kernel and settings.ridge > 0
    return is_right and "the inverse" not in _failed and 0 < w.shape[-1] <= LARGEST_INVERSE and 0 not in w.shape


# ------------------------------------------------------------------------------------------------------ calls
def _padded(count: int) -> int:
    """A power of two, at least 16: the sides of the chip's products."""
    return max(16, 1 << (count - 1).bit_length())


def _strides(x: Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


class _Launch:
    """What all kernels of one call share."""

    def __init__(self, q: Tensor, v: Tensor, columns: Columns) -> None:
        self.c, self.members = columns, columns.b * columns.h
        self.center, self.columns = columns.center.contiguous(), columns.columns.contiguous()
        self.e = v.shape[-1]
        self.lowest = columns.lowest * columns.unit
        sizes = {"M": _padded(columns.m), "D": _padded(columns.d), "E": _padded(self.e), "ROWS": _ROWS}
        self.settings: dict[str, Any] = {**sizes, "PRECISION": "ieee" if q.dtype == v.dtype == torch.float32 else "tf32"}

    def parts(self, n: int) -> tuple[int, int]:
        """In how many parts to cut the rows of a head, and rows in each."""
        count = max(1, min(-(-n // _ROWS), _PROGRAMS // self.members))
        step = -(-n // (count * _ROWS)) * _ROWS
        return -(-n // step), step

    def gather(self, points: Tensor, values: Tensor) -> Tensor:
        """C^T values, (B, m, e), float64."""
        n, m = points.shape[-2], self.c.m
        count, step = self.parts(n)
        total = torch.empty((count, self.members, m, self.e), dtype=torch.float32, device=points.device)
        sizes = (self.lowest, self.c.h, self.members, n, m, self.c.d, self.e, step)
        arrays = (points, *_strides(points), values, *_strides(values), self.center, self.columns, total)
        _gather[(self.members, count)](*arrays, *sizes, **self.settings)
        return total.sum(0, dtype=torch.float64)

    def scatter(self, points: Tensor, core: Tensor, out: Tensor) -> None:
        """out = C core."""
        n = points.shape[-2]
        count, step = self.parts(n)
        sizes = (self.lowest, self.c.h, n, self.c.m, self.c.d, self.e, step)
        arrays = (points, *_strides(points), out, *_strides(out), self.center, self.columns, core)
        _scatter[(self.members, count)](*arrays, *sizes, **self.settings)

    def pull(
        self, points: Tensor, grad: Tensor | None, values: Tensor | None, core: Tensor, dmoment: Tensor, dvalues: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the points, and [H^T z, colsum(H)] (B, m, d + 1), float64; fills that of the values."""
        n, m, d = points.shape[-2], self.c.m, self.c.d
        count, step = self.parts(n)
        dpoints: Tensor = _buffers.empty_in_order_of(points, tuple(points.shape), xp=xp)
        dw = torch.empty((count, self.members, m, d), dtype=torch.float32, device=points.device)
        sums = torch.empty((count, self.members, m), dtype=torch.float32, device=points.device)
        rows = self.c.rows[..., :d].contiguous()
        absent = dpoints  # never read
        tokens = (points, absent if grad is None else grad, absent if values is None else values, dpoints)
        arrays = [entry for x in (*tokens, absent if dvalues is None else dvalues) for entry in (x, *_strides(x))]
        sizes = (self.lowest, self.c.precision, self.c.h, self.members, n, m, d, self.e, step)
        choice = {"OF_GRAD": grad is not None, "OF_VALUES": values is not None}
        flat = (self.center, self.columns, rows, core, dmoment, dw, sums)
        _pull[(self.members, count)](*arrays, *flat, *sizes, **self.settings, **choice)
        both = torch.cat([dw.sum(0, dtype=torch.float64), sums.sum(0, dtype=torch.float64)[..., None]], dim=-1)
        return dpoints, both


def attend(q: Tensor, k: Tensor | None, v: Tensor, x: Tensor, columns: Columns) -> Forward | None:
    """`_attention_blocks.attend` without hidden keys and without features; None, logged once, where the kernels do not run."""
    try:
        launch = _Launch(q, v, columns)
        moment = launch.gather(q if k is None else k, v)
        wide = x.to(torch.float64).expand(columns.b, columns.h, columns.m, columns.m).reshape(-1, columns.m, columns.m)
        core = (wide @ moment).to(torch.float32).contiguous()
        out: Tensor = _buffers.empty_in_order_of(q, (columns.b, columns.h, q.shape[-2], launch.e), xp=xp)
        launch.scatter(q, core, out)
    except Exception as error:  # whatever a compiler of another's device may raise
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _gives_up("attention", error)
        return None
    return Forward(out, None, None, moment)


def attend_vjp(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, hidden: None, x: Tensor, columns: Columns, saved: Forward
) -> Gradients:
    """`_attention_blocks.attend_vjp`, the features made again."""
    b, h, m = columns.b, columns.h, columns.m
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    launch = _Launch(q, v, columns)
    total = launch.gather(q, grad)
    wide = x.to(torch.float64).expand(b, h, m, m).reshape(-1, m, m)
    core = (wide @ saved.moment).to(torch.float32).contiguous()
    dmoment = (wide.mT @ total).to(torch.float32).contiguous()
    dv: Tensor = _buffers.empty_in_order_of(v, tuple(v.shape), xp=xp)
    if k is None:
        dq, dw = launch.pull(q, grad, v, core, dmoment, dv)
        dk = None
    else:
        dq, dw = launch.pull(q, grad, None, core, dmoment, None)
        dk, more = launch.pull(k, None, v, core, dmoment, dv)
        dw = dw + more
    landmarks = _attention_blocks.landmark_gradient(dw, columns)
    return Gradients(dq, dk, dv, landmarks, (total @ saved.moment.mT).reshape(b, h, m, m))


@functools.lru_cache(maxsize=64)
def _schedule(m: int, ridge: float, tol: float) -> tuple[float, tuple[float, ...]]:
    """Start and factors for kernel matrices of m landmarks: their eigenvalues lie in [0, m], so nothing has to be read back."""
    lo, hi = ridge * (1 - 2.0**-20), m + ridge
    # Two steps in float64 come after these: float32 iterates need no digits beyond its unit.
    steps = _iterations.chebyshev_newton_steps(hi / lo, max(tol / m, 1e-12), polish=1)
    return _iterations.chebyshev_schedule(lo, hi, steps)


def kernel_matrix_inverse(w: Tensor, settings: InverseSettings) -> Tensor | None:
    """(W + ridge I)^-1 by scaled Newton steps on the chip and two more in float64, the last of which certifies it.

    None where one matrix is not certified to the tolerance, or the kernel does not run: another way then decides for all.
    """
    m = w.shape[-1]
    tol = settings.tol or 1e-6
    scale, factors = _schedule(m, settings.ridge, tol)
    flat = w.reshape(-1, m, m)
    ridge = flat.new_full((flat.shape[0],), settings.ridge, dtype=torch.float64)
    b, lost = _certificates.diagonal_shift(flat, ridge, dtype=torch.float64, xp=xp)
    try:
        narrow = b.to(torch.float32).contiguous()
        x = torch.empty_like(narrow)
        listed = torch.tensor(factors, dtype=torch.float32, device=w.device)
        _newton[(flat.shape[0],)](narrow, x, listed, scale, m, len(factors), M=_padded(m), num_warps=4)
    except Exception as error:  # whatever a compiler of another's device may raise
        if isinstance(error, torch.OutOfMemoryError):
            raise
        _gives_up("the inverse", error)
        return None
    wide = x.to(torch.float64)
    wide = 2 * wide - wide @ (b @ wide)  # squares the residual that float32 leaves; the next step squares it again, and certifies
    corrected, certificate = _certificates.correct_inverse(b, wide, lost=lost, xp=xp)
    # |B^-1|_2 >= |X|_2 - bound, and |X|_2 >= |X|_F / sqrt(m); `norm` is |X|_F, rounded up.
    least = certificate.norm * ((1 - 1e-6) / m**0.5) - certificate.error_bound
    certain = bool((certificate.error_bound <= tol * least).all())
    return corrected.to(w.dtype).reshape(w.shape) if certain else None
