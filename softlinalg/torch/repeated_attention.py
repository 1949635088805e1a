"""Attention of arguments that are like those of an earlier call: what was checked then need not be checked again.

A call of `soft_attention` is some five hundred calls of functions, and as many for its gradient. Between other operations, whose data
have taken the caches, they take 0.8 ms, as long as the attention of 1,300 tokens does. What depends on shapes, types and settings alone
is therefore kept, in a plan, and for arguments with the same ones two compiled functions are all that is called, and three for the
gradient. They are those of the first call: so are the bits of the result. What depends on the numbers (landmarks far away, an inverse
without a certificate) they say themselves; the long way then decides.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import threading
from collections.abc import Sequence
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from softlinalg import _arrays, _attention, _attention_blocks, _buffers, _native
from softlinalg._attention import InverseSettings
from softlinalg.torch import attention_core, autograd, cpu_kernels
from softlinalg.torch.cpu_kernels import Kernels, Tokens, Work

__all__ = ["again", "remember"]

_MOST = 16
"""Plans of a thread. Each holds some hundred KiB."""
_held = threading.local()


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where pieces of these sizes begin in one piece of memory, each in cache lines of its own; and its end."""
    return list(itertools.accumulate((-(-size // 64) * 64 for size in sizes), initial=0))


def _bytes(count: int) -> Tensor:
    return torch.empty(count, dtype=torch.uint8, device="cpu")


def _view(memory: Tensor, start: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What a piece of memory holds."""
    return memory[start:].view(dtype)[: math.prod(shape)].view(shape)


class _Like:
    """New memory in the order of the axes of a tensor, where a result is to merge its heads without a copy."""

    def __init__(self, x: Tensor, shape: tuple[int, ...]) -> None:
        order, self.axes = ([0, 1, 2, 3],) * 2 if x.is_contiguous() else _buffers.axes_in_memory(x.stride())
        self.shape, self.dtype = [shape[axis] for axis in order], x.dtype
        self.strides = torch.empty(self.shape, device="meta").permute(self.axes).stride()

    def empty(self) -> Tensor:
        return cpu_kernels.in_large_pages(torch.empty(self.shape, dtype=self.dtype, device="cpu")).permute(self.axes)


class _Plan:
    """All that the compiled functions are told but for the addresses of tokens; used by one thread."""

    def __init__(
        self,
        kernels: Kernels,
        invert: _native.LandmarkCall,
        q: Tensor,
        k: Tensor | None,
        v: Tensor,
        landmarks: Tensor,
        settings: InverseSettings,
        *,
        recorded: bool,
    ) -> None:
        (b, h, n, d), (keys, e), m, item = q.shape, v.shape[-2:], landmarks.shape[-2], q.dtype.itemsize
        members = b * h
        self.kernels, self.invert, self.dtype, self.settings = kernels, invert, q.dtype, settings
        self.recorded, self.scale, self.shape = recorded, _scale(q), (b, h, m, d, n)
        self.count = cpu_kernels.threads_for(members, n + keys, m)
        self.features, self.key_features = m * cpu_kernels.padded(n), m * cpu_kernels.padded(keys)
        square, points, factors = 8 * members * m * m, item * members * m * d, item * members * m * (d + 2)
        # What `_native.landmarks` returns, and the moment; and the features, if a gradient will need them.
        self.moment_bytes = 8 * members * m * e
        kept = [square, square, 32 * members, item * members * d, points, factors, factors, self.moment_bytes]
        *self.kept, self.kept_bytes = _starts([*kept, item * members * self.features if recorded else 0])
        own = [item * members * m * e, invert.scratch_bytes, self.count * kernels.scratch_bytes, 0 if recorded else self.kept_bytes]
        *starts, size = _starts(own)
        self.memory = _bytes(size)
        core, self.inversion, scratch, _ = (self.memory.data_ptr() + start for start in starts)
        self.block = self.memory[starts[-1] :]

        self.out = _Like(q, (b, h, n, e))
        work = Work(heads=h, n=n, keys=keys, m=m, d=d, e=e, core=core)
        work.lowest = _attention_blocks.lowest_exponent(q.dtype) * _buffers.exponent_unit(q)
        work.precision = (1 / self.scale) ** 2
        work.q, work.v, work.out = (Tokens(None, *x[:3]) for x in (q.stride(), v.stride(), self.out.strides))
        if k is not None:
            work.k = Tokens(None, *k.stride()[:3])
        if recorded:
            work.features_apart = work.key_features_apart = self.features
        self.works = [Work.from_buffer_copy(work) for _ in range(self.count)]
        for i, copy in enumerate(self.works):
            copy.scratch = scratch + i * kernels.scratch_bytes
        self.calls = self._shared(self.works, cpu_kernels.FORWARD)
        self.run, self.openmp = kernels.runs[q.dtype], None if kernels.openmp is None else ctypes.byref(kernels.openmp)
        if recorded:
            self.dq, self.dv = _Like(q, tuple(q.shape)), _Like(v, tuple(v.shape))
            self.pulled = Work.from_buffer_copy(work)
            self.pulled.grad_counts = self.pulled.v_counts = 1
            # Core and what stands before v; C^T grad and sums over tokens; the gradients of X and of the landmarks
            narrow, sums, gradients = item * members * m * e, 8 * members * m * (d + 1), 8 * members * m * d
            self.pulled_sizes = [narrow, narrow, self.moment_bytes, sums, square, gradients]

    def _shared(self, works: Sequence[Work], kind: int) -> Any:
        """Calls of a step, each thread with heads of its own."""
        b, h, count = *self.shape[:2], len(works)
        shares = [cpu_kernels.share_of(b * h, i, count) for i in range(count)]
        calls = [cpu_kernels.Call(ctypes.addressof(work), kind, 0, *share, None) for work, share in zip(works, shares, strict=True)]
        return (cpu_kernels.Call * count)(*calls)

    def inverted(self, landmarks: Tensor) -> Tensor | None:
        """The block that begins with all of the landmarks, or None where they are far apart or their inverse is not certified."""
        block = cpu_kernels.in_large_pages(_bytes(self.kept_bytes)) if self.recorded else self.block
        at, points = block.data_ptr(), landmarks.contiguous()
        made = [at + start for start in self.kept[:7]]
        return block if self.invert(points.data_ptr(), made, self.inversion) else None

    def forward(self, q: Tensor, k: Tensor | None, v: Tensor, block: Tensor) -> Tensor:
        """The attention, from a block that is written on."""
        out, at, item = self.out.empty(), block.data_ptr(), self.dtype.itemsize
        key_features = features = None
        if not self.recorded:
            key_features = features = cpu_kernels.feature_memory(self.dtype, "keys", (self.count, self.key_features), keep=False)
        if k is not None:
            features = cpu_kernels.feature_memory(self.dtype, "queries", (self.count, self.features), keep=False)
        ctypes.memset(at + self.kept[7], 0, self.moment_bytes)
        for i, work in enumerate(self.works):
            work.q.data, work.v.data, work.out.data = q.data_ptr(), v.data_ptr(), out.data_ptr()
            work.x, work.center, work.columns, work.moment = (at + self.kept[piece] for piece in (1, 3, 6, 7))
            if k is not None:
                work.k.data = k.data_ptr()
            if features is None or key_features is None:
                work.features = work.key_features = at + self.kept[8]
            else:
                work.features = features.data_ptr() + i * item * self.features
                work.key_features = key_features.data_ptr() + i * item * self.key_features
        self.run(self.calls, 1, self.count, self.openmp)
        return out

    def backward(self, grad: Tensor, q: Tensor, v: Tensor, landmarks: Tensor, block: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients with respect to q, v and the landmarks. Not of the plan's memory: it may run beside the next forward."""
        b, h, m, d, n = self.shape
        # Gradients may have any strides, and hooks of autograd may have brought what was kept back with others.
        grad, q, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (grad, q, v))
        count = cpu_kernels.threads_for(b * h, n, m)
        *starts, size = _starts([*self.pulled_sizes, count * self.kernels.scratch_bytes])
        memory, dq, dv = _bytes(size), self.dq.empty(), self.dv.empty()
        at, kept = memory.data_ptr(), block.data_ptr()
        core, dmoment, total, dw, dx, more, scratch = (at + start for start in starts)
        ctypes.memset(total, 0, starts[4] - starts[2])
        rows = _view(block, self.kept[5], (b * h, m, d + 2), self.dtype)[..., :d].contiguous()
        work = Work.from_buffer_copy(self.pulled)
        work.q, work.v, work.grad, work.dq, work.dv = (Tokens(x.data_ptr(), *x.stride()[:3]) for x in (q, v, grad, dq, dv))
        work.x, work.center, work.w, work.columns, work.moment, work.features = (kept + self.kept[piece] for piece in (1, 3, 4, 6, 7, 8))
        work.core, work.dmoment, work.total, work.dw, work.dx, work.dlandmarks = core, dmoment, total, dw, dx, more
        work.rows = rows.data_ptr()
        works = [Work.from_buffer_copy(work) for _ in range(count)]
        for i, copy in enumerate(works):
            copy.scratch = scratch + i * self.kernels.scratch_bytes
        self.run(self._shared(works, cpu_kernels.BACKWARD), 1, count, self.openmp)
        w, x = (_view(block, self.kept[piece], (b, h, m, m), torch.float64) for piece in (0, 1))
        slope = _view(memory, starts[4], (b, h, m, m), torch.float64)
        by_inverse = _attention.kernel_inverse_vjp(slope, landmarks.detach(), w, x, self.scale, xp=xp)
        direct = _view(memory, starts[5], (b, h, m, d), torch.float64)
        return dq, dv, direct.to(self.dtype) + by_inverse.to(self.dtype)

    def fits_backward(self) -> bool:
        """Does each thread finish heads of its own there, too?"""
        b, h, m, _, n = self.shape
        count = cpu_kernels.threads_for(b * h, n, m)
        return cpu_kernels.goes_by_heads(b * h, count) and (count == 1 or self.openmp is not None)


class _Recorded(torch.autograd.Function):
    """Self-attention by a plan, and its gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, v: Tensor, landmarks: Tensor, block: Tensor, plan: _Plan) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(q, v, landmarks, block)
        return plan.forward(q, None, v, block)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, v, landmarks, block = ctx.saved_tensors
        if torch.is_grad_enabled() or not autograd.is_plain(grad):  # a second derivative, or many gradients at once: the long way

            def again(q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
                return attention_core.attention(q, None, v, landmarks, None, ctx.plan.settings, "exact")

            return (*autograd.pull_back(again, grad, (q, v, landmarks), ctx.needs_input_grad), None, None)
        return (*ctx.plan.backward(grad, q, v, landmarks, block), None, None)


def _scale(q: Tensor) -> float:
    scale: float = float(q.shape[-1]) ** 0.25
    return scale


def _key(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, ridge: float | None, tol: float | None) -> tuple[Any, ...]:
    """Everything that a plan depends on."""
    tokens = (q.shape, q.stride(), q.dtype, v.shape, v.stride(), v.dtype, landmarks.shape, landmarks.dtype)
    keys = None if k is None else (k.shape, k.stride(), k.dtype)
    return (*tokens, keys, ridge, tol, torch.get_num_threads(), autograd.records(q, k, v, landmarks))


def _is_usual(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor) -> bool:
    """Plain tensors on the host, as `autograd.is_plain` asks in more words."""
    functorch = torch._C._functorch
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if functorch.maybe_current_level() is not None or torch.is_autocast_enabled("cpu"):
        return False
    if getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0:  # some tensor may have a tangent
        return False
    for x in (q, v, landmarks) if k is None else (q, v, landmarks, k):
        if (type(x) is not Tensor and type(x) is not torch.nn.Parameter) or not x.is_cpu or x.layout is not torch.strided:
            return False
        if x.is_neg() or x._is_zerotensor() or functorch.is_legacy_batchedtensor(x):
            return False
    return True


def again(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, ridge: float | None, tol: float | None) -> Tensor | None:
    """`soft_attention` with these arguments and otherwise the defaults, if such ones were remembered and have a plan; else None."""
    if not _held.__dict__ or not _is_usual(q, k, v, landmarks) or type(ridge) not in _NUMBERS or type(tol) not in _NUMBERS:
        return None
    key = _key(q, k, v, landmarks, ridge, tol)
    plan: _Plan | None = _held.plans.get(key)
    settings: InverseSettings | None = None if plan is not None else _held.seen.pop(key, None)
    if settings is not None:  # the second time: arguments that never come again are not worth a plan
        plan = _plan_for(q, k, v, landmarks, settings)
        if plan is not None:
            _keep(_held.plans, _MOST, key, plan)
    if plan is None or plan.kernels is not cpu_kernels.load():
        return None
    block = plan.inverted(landmarks.detach() if plan.recorded else landmarks)
    if block is None:
        return None
    out: Tensor = _Recorded.apply(q, v, landmarks, block, plan) if plan.recorded else plan.forward(q, k, v, block)  # type: ignore[no-untyped-call]
    return out


_NUMBERS = (float, type(None))


def remember(
    q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, ridge: float | None, tol: float | None, settings: InverseSettings
) -> None:
    """Remember arguments that have been checked, and what their settings are."""
    if not _is_usual(q, k, v, landmarks) or type(ridge) not in _NUMBERS or type(tol) not in _NUMBERS:
        return
    if not _held.__dict__:
        _held.plans, _held.seen = {}, {}
    key = _key(q, k, v, landmarks, ridge, tol)
    if key not in _held.plans:
        _keep(_held.seen, 4 * _MOST, key, settings)


def _keep(kept: dict[Any, Any], most: int, key: Any, value: Any) -> None:
    if len(kept) >= most:
        kept.clear()
    kept[key] = value


def _plan_for(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, settings: InverseSettings) -> _Plan | None:
    """A plan, if the compiled functions serve all of these arguments at one go."""
    recorded = autograd.records(q, k, v, landmarks)
    if recorded and k is not None:  # the gradient of keys takes steps of its own
        return None
    heads, m, d = q.shape[:2], *landmarks.shape[-2:]
    members = heads[0] * heads[1]
    if any(x is not None and (x.shape[:2] != heads or x.dtype != q.dtype) for x in (k, v, landmarks)):
        return None
    landmarks = landmarks.detach().contiguous()
    kernels = cpu_kernels.kernels_for(q, k, v, landmarks, None)
    if kernels is None or not _arrays.is_small_on_host(landmarks, members * m * m):
        return None
    count = cpu_kernels.threads_for(members, q.shape[-2] + v.shape[-2], m)
    if not cpu_kernels.goes_by_heads(members, count) or (count > 1 and kernels.openmp is None):
        return None
    told = _attention.native_settings(m, q.dtype, _scale(q), settings, _buffers.exponent_unit(q))
    invert = _native.landmark_call((members, m, d), _arrays.dtype_name(q.dtype), *told)
    if invert is None:
        return None
    plan = _Plan(kernels, invert, q, k, v, landmarks, settings, recorded=recorded)
    return None if recorded and not plan.fits_backward() else plan
