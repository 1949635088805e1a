"""Attention without gradients of arguments that are like those of an earlier call: what was checked then need not be checked again.

A call of `soft_attention` is some five hundred calls of functions. Between other operations, whose data have taken the caches, they take
0.8 ms, as long as the attention of 1,300 tokens does. What depends on shapes, types and settings alone is therefore kept, in a plan, and
for arguments with the same ones two compiled functions are all that is called. They are those of the first call: so are the bits of the
result. What depends on the numbers (landmarks far away, an inverse without a certificate) they say themselves; the long way then decides.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from typing import Any

import torch
from torch import Tensor

from softlinalg import _arrays, _attention, _attention_blocks, _buffers, _native
from softlinalg._attention import InverseSettings
from softlinalg.torch import cpu_kernels
from softlinalg.torch.cpu_kernels import Kernels, Tokens, Work

__all__ = ["again", "remember"]

_MOST = 16
"""Plans of a thread. Each holds some hundred KiB."""
_held = threading.local()


class _Plan:
    """All that the compiled functions are told but for the addresses of tokens; used by one thread."""

    def __init__(self, kernels: Kernels, invert: _native.LandmarkCall, q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor) -> None:
        (b, h, n, d), (keys, e), m, item = q.shape, v.shape[-2:], landmarks.shape[-2], q.dtype.itemsize
        members = b * h
        self.kernels, self.invert, self.dtype = kernels, invert, q.dtype
        self.count = cpu_kernels.threads_for(members, n + keys, m)
        square, points, factors = 8 * members * m * m, item * members * m * d, item * members * m * (d + 2)
        sizes = [square, square, 32 * members, item * members * d, points, factors, factors]  # as `_native.landmarks` returns
        sizes += [8 * members * m * e, item * members * m * e, invert.scratch_bytes, self.count * kernels.scratch_bytes]
        starts = list(itertools.accumulate((-(-size // 64) * 64 for size in sizes), initial=0))
        self.memory = torch.empty(starts[-1], dtype=torch.uint8, device="cpu")
        at = [self.memory.data_ptr() + start for start in starts]
        self.made, self.moment, self.moment_bytes, self.inversion, scratch = at[:7], at[7], sizes[7], at[9], at[10]

        order, self.axes = ([0, 1, 2, 3],) * 2 if q.is_contiguous() else _buffers.axes_in_memory(q.stride())
        self.shape = [(b, h, n, e)[axis] for axis in order]
        like = torch.empty(self.shape, device="meta").permute(self.axes)
        self.features, self.key_features = m * cpu_kernels.padded(n), m * cpu_kernels.padded(keys)
        work = Work(heads=h, n=n, keys=keys, m=m, d=d, e=e, moment=self.moment, core=at[8], x=self.made[1])
        work.center, work.columns = self.made[3], self.made[6]
        work.lowest = _attention_blocks.lowest_exponent(q.dtype) * _buffers.exponent_unit(q)
        work.precision = (1 / _scale(q)) ** 2
        for name, x in (("q", q), ("k", k), ("v", v), ("out", like)):
            if x is not None:
                setattr(work, name, Tokens(None, *x.stride()[:3]))
        self.works = [Work.from_buffer_copy(work) for _ in range(self.count)]
        for i, copy in enumerate(self.works):
            copy.scratch = scratch + i * kernels.scratch_bytes
        shares = [cpu_kernels.share_of(members, i, self.count) for i in range(self.count)]
        self.calls = (cpu_kernels.Call * self.count)(
            *(
                cpu_kernels.Call(ctypes.addressof(work), cpu_kernels.FORWARD, 0, first, last, None)
                for work, (first, last) in zip(self.works, shares, strict=True)
            )
        )
        self.run, self.openmp = kernels.runs[q.dtype], None if kernels.openmp is None else ctypes.byref(kernels.openmp)

    def __call__(self, q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor) -> Tensor | None:
        """The attention, or None where the landmarks are far apart or their inverse is not certified."""
        landmarks = landmarks.contiguous()
        if not self.invert(landmarks.data_ptr(), self.made, self.inversion):
            return None
        out = cpu_kernels.in_large_pages(torch.empty(self.shape, dtype=self.dtype, device="cpu")).permute(self.axes)
        key_features = cpu_kernels.feature_memory(self.dtype, "keys", (self.count, self.key_features), keep=False)
        features = key_features
        if k is not None:
            features = cpu_kernels.feature_memory(self.dtype, "queries", (self.count, self.features), keep=False)
        ctypes.memset(self.moment, 0, self.moment_bytes)
        item = self.dtype.itemsize
        for i, work in enumerate(self.works):
            work.q.data, work.v.data, work.out.data = q.data_ptr(), v.data_ptr(), out.data_ptr()
            if k is not None:
                work.k.data = k.data_ptr()
            work.features = features.data_ptr() + i * item * self.features
            work.key_features = key_features.data_ptr() + i * item * self.key_features
        self.run(self.calls, 1, self.count, self.openmp)
        return out


def _scale(q: Tensor) -> float:
    scale: float = float(q.shape[-1]) ** 0.25
    return scale


def _key(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, ridge: float | None, tol: float | None) -> tuple[Any, ...]:
    """Everything that a plan depends on."""
    tokens = (q.shape, q.stride(), q.dtype, v.shape, v.stride(), v.dtype, landmarks.shape, landmarks.dtype)
    return (*tokens, None if k is None else (k.shape, k.stride(), k.dtype), ridge, tol, torch.get_num_threads())


def _is_usual(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor) -> bool:
    """Plain tensors on the host, of which nothing is recorded, as `autograd.is_plain` asks in more words."""
    functorch = torch._C._functorch
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if functorch.maybe_current_level() is not None or torch.is_autocast_enabled("cpu"):
        return False
    if getattr(torch.autograd.forward_ad, "_current_level", 0) >= 0:  # some tensor may have a tangent
        return False
    recorded = torch.is_grad_enabled()
    for x in (q, v, landmarks) if k is None else (q, v, landmarks, k):
        if (type(x) is not Tensor and type(x) is not torch.nn.Parameter) or not x.is_cpu or x.layout is not torch.strided:
            return False
        if (recorded and x.requires_grad) or x.is_neg() or x._is_zerotensor() or functorch.is_legacy_batchedtensor(x):
            return False
    return True


def again(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, ridge: float | None, tol: float | None) -> Tensor | None:
    """`soft_attention` with these arguments and otherwise the defaults, if a plan was made for such ones; else None."""
    plans = getattr(_held, "plans", None)
    if not plans or not _is_usual(q, k, v, landmarks) or type(ridge) not in _NUMBERS or type(tol) not in _NUMBERS:
        return None
    plan = plans.get(_key(q, k, v, landmarks, ridge, tol))
    return None if plan is None or plan.kernels is not cpu_kernels.load() else plan(q, k, v, landmarks)


_NUMBERS = (float, type(None))


def remember(
    q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, ridge: float | None, tol: float | None, settings: InverseSettings
) -> None:
    """Make a plan for arguments like these, which have been checked, if the compiled functions serve all of them at one go."""
    if not _is_usual(q, k, v, landmarks) or type(ridge) not in _NUMBERS or type(tol) not in _NUMBERS:
        return
    heads, m, d = q.shape[:2], *landmarks.shape[-2:]
    members = heads[0] * heads[1]
    if any(x is not None and (x.shape[:2] != heads or x.dtype != q.dtype) for x in (k, v, landmarks)):
        return
    landmarks = landmarks.contiguous()
    kernels = cpu_kernels.kernels_for(q, k, v, landmarks, None)
    if kernels is None or not _arrays.is_small_on_host(landmarks, members * m * m):
        return
    count = cpu_kernels.threads_for(members, q.shape[-2] + v.shape[-2], m)
    if not cpu_kernels.goes_by_heads(members, count) or (count > 1 and kernels.openmp is None):
        return
    told = _attention.native_settings(m, q.dtype, _scale(q), settings, _buffers.exponent_unit(q))
    invert = _native.landmark_call((members, m, d), _arrays.dtype_name(q.dtype), *told)
    if invert is None:
        return
    plans = _held.__dict__.setdefault("plans", {})
    if len(plans) >= _MOST:
        plans.clear()
    plans[_key(q, k, v, landmarks, ridge, tol)] = _Plan(kernels, invert, q, k, v, landmarks)
