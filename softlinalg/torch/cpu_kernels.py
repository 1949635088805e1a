"""Attention on the CPU by compiled kernels, where there is a C++ compiler: the same results as the core's blocks, to rounding.

`cpu_kernels.cpp` is compiled once for each machine, at first use (about five seconds), and kept in the user's cache directory. Where
there is no compiler, or where the compiled code fails its own check, nothing but speed is lost: that is logged once, by the logger
of this module. The variable SOFTLINALG_COMPILED=0 in the environment turns it off.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import torch
from torch import Tensor

from softlinalg import _attention_blocks, _buffers, _compiled, _native
from softlinalg._attention_blocks import Columns, Forward, Gradients
from softlinalg.torch.inputs import in_type

__all__ = [
    "BACKWARD",
    "FORWARD",
    "Call",
    "Kernels",
    "Tokens",
    "Work",
    "attend",
    "attend_vjp",
    "feature_memory",
    "goes_by_heads",
    "in_large_pages",
    "kernels_for",
    "load",
    "padded",
    "share_of",
    "threads_for",
]

_log = logging.getLogger(__name__)

FEWEST_TOKENS = 128
"""Of one head. For fewer the calls around the kernels take longer than the kernels, and a few PyTorch calls do as well."""
_WIDEST, _MOST_LANDMARKS = 128, 256
"""Limits of the arrays on which `cpu_kernels.cpp` works."""
_ENTRIES_PER_THREAD = 2**18
"""Features that are worth a thread: about a millisecond, against 0.1 to start one."""


class Tokens(ctypes.Structure):
    """An array (batch, heads, rows, width) with a unit stride in its last axis."""

    _fields_ = (("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("head", ctypes.c_int64), ("row", ctypes.c_int64))


class Work(ctypes.Structure):
    """`struct Work` of cpu_kernels.cpp, which says what the fields are."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("heads", "n", "keys", "m", "d", "e", "features_apart", "key_features_apart")),
        *((name, Tokens) for name in ("q", "k", "v", "out", "grad", "dq", "dv")),
        *((name, ctypes.c_void_p) for name in ("center", "columns", "rows", "features", "key_features", "moment", "x", "core")),
        *((name, ctypes.c_void_p) for name in ("dmoment", "w", "total", "dx", "dw", "dlandmarks", "scratch")),
        ("lowest", ctypes.c_double),
        ("precision", ctypes.c_double),
        ("grad_counts", ctypes.c_int32),
        ("v_counts", ctypes.c_int32),
    )


class Call(ctypes.Structure):
    """`struct Call` of cpu_kernels.cpp."""

    _fields_ = (
        ("work", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("kind", "head", "first", "last")),
        ("total", ctypes.c_void_p),
    )


class _OpenMP(ctypes.Structure):
    """`struct OpenMP` of cpu_kernels.cpp."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("parallel", "number", "count"))


_Steps = list[tuple[int, int, int, int, int | None]]
"""Kind, head, first and last row, and the address of what is added to."""


_GATHER, _JOIN, _SCATTER, _GATHER_GRAD, _PULL, _JOIN_GRAD, FORWARD, BACKWARD = range(8)


class Kernels(NamedTuple):
    """The compiled code."""

    runs: dict[torch.dtype, Any]
    """One function for each type."""
    openmp: _OpenMP | None
    """The threads of PyTorch, where they can be had."""
    vector_bytes: int
    scratch_bytes: int
    block: int
    """Tokens that are worked on together; ranges of tokens begin at multiples of it."""

    def lanes(self, dtype: torch.dtype) -> int:
        """Numbers in a vector."""
        return self.vector_bytes // int(dtype.itemsize)


# ------------------------------------------------------------------------------------------------ compilation
@functools.cache
def load() -> Kernels | None:
    """The kernels, compiled if they have not been yet; None, logged, where that cannot be."""
    if _compiled.is_turned_off():
        return None
    try:
        _native.load()  # the inverse of the landmarks' kernel matrix is the other half of the work
        kernels = _bind(_compiled.library(Path(__file__).with_suffix(".cpp"), "-O3"))
        _check(kernels)
    except _compiled.FAILURES as error:
        _log.info("compiled attention is not available, PyTorch's operations serve in its place: %s", error)
        return None
    return kernels


def _bind(library: ctypes.CDLL) -> Kernels:
    """The functions of the compiled file."""
    for size in (library.softlinalg_work_bytes, library.softlinalg_scratch_bytes, library.softlinalg_block):
        size.restype = ctypes.c_int64
    if library.softlinalg_work_bytes() != ctypes.sizeof(Work):
        message = "the compiled code lays its arguments out in another way"
        raise RuntimeError(message)
    runs = {torch.float32: library.softlinalg_run_float, torch.float64: library.softlinalg_run_double}
    for run in runs.values():
        run.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
        run.restype = None
    return Kernels(
        runs, _openmp(), int(library.softlinalg_vector_bytes()), int(library.softlinalg_scratch_bytes()), int(library.softlinalg_block())
    )


def _openmp() -> _OpenMP | None:
    """PyTorch's own OpenMP library, if it is GNU's: its threads spin for a while after each operation, and ours would wait for them."""
    for path in sorted(Path(torch.__file__).parent.glob("lib/libgomp*.so*")):
        try:
            library = ctypes.CDLL(str(path))
            found = (library.GOMP_parallel, library.omp_get_thread_num, library.omp_get_num_threads)
        except (OSError, AttributeError):
            continue
        return _OpenMP(*(ctypes.cast(function, ctypes.c_void_p) for function in found))
    return None


def _check(kernels: Kernels) -> None:
    """Raise RuntimeError unless the compiled code computes what the core does, on one small example of each type."""
    for dtype in kernels.runs:
        # Numbers without a generator, whose state is the user's.
        q, v, grad = (torch.sin(torch.arange(131 * 32, dtype=dtype, device="cpu") * (1 + i)).reshape(1, 1, 131, 32) for i in range(3))
        landmarks = q[:, :, :11] + 0.125
        x = torch.eye(11, dtype=dtype, device="cpu").expand(1, 1, 11, 11)
        with torch.no_grad():
            columns = Columns(landmarks, 0.5, xp=xp)
            expected = _attention_blocks.attend(q, None, v, None, x, columns)
            made = attend(kernels, q, None, v, x, columns, keep=True)
            pulled = attend_vjp(kernels, grad, q, None, v, None, x, columns, made)
            true = _attention_blocks.attend_vjp(grad, q, None, v, None, x, columns, expected)
        ours, theirs = (made.out, pulled.q, pulled.v, pulled.landmarks, pulled.x), (expected.out, true.q, true.v, true.landmarks, true.x)
        for a, b in zip(ours, theirs, strict=True):
            if not torch.allclose(a, b, rtol=0, atol=1e3 * torch.finfo(dtype).eps * float(b.abs().max())):
                message = "the compiled code gives other results"
                raise RuntimeError(message)


# ---------------------------------------------------------------------------------------------------- choice
def kernels_for(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, hidden: Tensor | None) -> Kernels | None:
    """The kernels if they serve these plain tensors (b, h, tokens, features); None otherwise."""
    m, d, e = landmarks.shape[-2], q.shape[-1], v.shape[-1]
    if hidden is not None or q.device.type != "cpu" or min(q.shape[-2], v.shape[-2]) < FEWEST_TOKENS:
        return None
    if q.dtype not in (torch.float32, torch.float64) or max(d, e) > _WIDEST or not 0 < m <= _MOST_LANDMARKS - 16 or 0 in q.shape[:2]:
        return None
    if any(x is not None and (x.dtype != q.dtype or x.stride(-1) != 1) for x in (q, k, v, landmarks)):
        return None
    if d % 4 or e % 4:  # no machine has vectors of another length: do not compile in vain
        return None
    kernels = load()
    return kernels if kernels is not None and d % kernels.lanes(q.dtype) == e % kernels.lanes(q.dtype) == 0 else None


# ------------------------------------------------------------------------------------------------------ work
def padded(tokens: int) -> int:
    """Tokens for which a row of the features has memory: whole vectors of any machine, so that a graph knows the shape."""
    return (tokens + 15) // 16 * 16


def _tokens(x: Tensor | None) -> Tokens:
    return Tokens() if x is None else Tokens(x.data_ptr(), *x.stride()[:3])


def threads_for(members: int, rows: int, m: int) -> int:
    """Worth their start, for rows of so many heads."""
    return max(1, min(torch.get_num_threads(), members * rows * m // _ENTRIES_PER_THREAD))


def goes_by_heads(members: int, count: int) -> bool:
    """Does each thread finish heads of its own, while their features are in the cache?"""
    return members % count == 0 or members >= 4 * count


class _Job:
    """One `Work` and all tensors that it points to."""

    def __init__(self, kernels: Kernels, q: Tensor, k: Tensor | None, v: Tensor, columns: Columns) -> None:
        self.kernels, self.call, self.columns = kernels, kernels.runs[q.dtype], columns
        self.work = Work(heads=columns.h, n=q.shape[-2], keys=v.shape[-2], m=columns.m, d=columns.d, e=v.shape[-1])
        self.work.lowest, self.work.precision = columns.lowest * columns.unit, columns.precision
        self.work.q, self.work.k, self.work.v = _tokens(q), _tokens(k), _tokens(v)
        self.held: list[Tensor | None] = [q, k, v]
        self.members = columns.b * columns.h
        self.point(center=columns.center, columns=columns.columns.mT)

    def point(self, **flat: Tensor) -> None:
        """Set pointers to flat arrays, which are kept alive."""
        for name, x in flat.items():
            x = x.contiguous()
            self.held.append(x)
            setattr(self.work, name, x.data_ptr())

    def give(self, **tokens: Tensor) -> None:
        """Set arrays of tokens, which are kept alive."""
        for name, x in tokens.items():
            self.held.append(x)
            setattr(self.work, name, _tokens(x))

    def threads(self, rows: int) -> int:
        return threads_for(self.members, rows, self.columns.m)

    def run(self, count: int, plan: Callable[[int, Work], _Steps]) -> None:
        """The steps of `plan(i, work)` for i < count, as many of them for each i, each i on a thread and with scratch memory of its own."""
        scratch = torch.empty(count * self.kernels.scratch_bytes, dtype=torch.uint8, device="cpu")
        works = [Work.from_buffer_copy(self.work) for _ in range(count)]
        for i, work in enumerate(works):
            work.scratch = scratch.data_ptr() + i * self.kernels.scratch_bytes
        plans = [plan(i, work) for i, work in enumerate(works)]
        each = len(plans[0])
        calls = (Call * (count * each))(
            *(Call(ctypes.addressof(work), *step) for work, steps in zip(works, plans, strict=True) for step in steps)
        )
        openmp = self.kernels.openmp
        if count == 1 or openmp is not None:
            self.call(calls, each, count, None if openmp is None else ctypes.byref(openmp))
            return
        others = [
            threading.Thread(target=self.call, args=(ctypes.byref(calls, i * each * ctypes.sizeof(Call)), each, 1, None))
            for i in range(1, count)
        ]
        for thread in others:
            thread.start()
        self.call(calls, each, 1, None)
        for thread in others:
            thread.join()

    def share(self, rows: int, i: int, count: int) -> tuple[int, int]:
        """Range i of `count` ranges of whole blocks."""
        block = self.kernels.block
        first, last = share_of(-(-rows // block), i, count)
        return first * block, min(last * block, rows)

    def sums(self, kind: int, rows: int, width: int) -> Tensor:
        """Run a step that sums over rows into (B, m, width) in float64, in row ranges on several threads."""
        count = self.threads(rows)
        parts = torch.zeros((count, self.members, self.columns.m, width), dtype=torch.float64, device="cpu")

        def plan(i: int, _: Work) -> _Steps:
            return [(kind, head, *self.share(rows, i, count), parts[i, head].data_ptr()) for head in range(self.members)]

        self.run(count, plan)
        return parts[0] if count == 1 else parts.sum(0)


_MOST_HELD = 2**25
"""Bytes of features, of the keys and of other queries, that a thread holds from one call to the next."""
_held = threading.local()


def feature_memory(dtype: torch.dtype, whose: str, shape: tuple[int, int], *, keep: bool) -> Tensor:
    """Memory of at least a shape, never written to. Unless the features are to be kept, a thread uses the same for all its calls.

    Given back to the system after each call, as malloc does when it is at the end of the heap, it comes back page by page: at 3,136
    tokens that took as long as the attention did, in one process of two.
    """
    entries = shape[0] * shape[1]
    if keep or entries * dtype.itemsize > _MOST_HELD:
        return in_large_pages(torch.empty(shape, dtype=dtype, device="cpu"))
    name = f"{whose}, {dtype}"
    held: Tensor | None = getattr(_held, name, None)
    if held is None or held.numel() < entries:
        held = torch.empty(entries, dtype=dtype, device="cpu")
        setattr(_held, name, held)
    return held


_LARGE = 2**25
"""Bytes beyond which large pages are asked for, as NumPy does: up to here malloc uses memory again that has its pages."""
_MADV_HUGEPAGE = 14


@functools.cache
def _madvise() -> Any:
    """The function of Linux; None elsewhere."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function


def in_large_pages(x: Tensor) -> Tensor:
    """`x`, memory that was not written to, in pages of 2 MiB if the system has them to give: a hint, whatever comes of it.

    Of 4 KiB, as PyTorch takes it, 262,144 tokens need 30,000 pages, which took half of the time of the attention.
    """
    size = x.numel() * x.element_size()
    advise = _madvise() if size > _LARGE else None
    if advise is not None:
        start = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        advise(start, x.data_ptr() + size - start, _MADV_HUGEPAGE)
    return x


def share_of(total: int, i: int, count: int) -> tuple[int, int]:
    """Range i of `count` equal ones."""
    return total * i // count, total * (i + 1) // count


def attend(kernels: Kernels, q: Tensor, k: Tensor | None, v: Tensor, x: Tensor, columns: Columns, *, keep: bool) -> Forward:
    """`_attention_blocks.attend` without hidden keys. Features are in the order of `cpu_kernels.cpp`, and no features unless `keep`."""
    job = _Job(kernels, q, k, v, columns)
    count, (n, keys, e) = job.threads(q.shape[-2] + v.shape[-2]), (q.shape[-2], v.shape[-2], v.shape[-1])
    by_heads = goes_by_heads(job.members, count)
    out = in_large_pages(_buffers.empty_in_order_of(q, (columns.b, columns.h, n, e), xp=xp))
    stored = job.members if keep or not by_heads else count
    entries, key_entries = (columns.m * padded(rows) for rows in (n, keys))
    key_features = feature_memory(q.dtype, "keys", (stored, key_entries), keep=keep)
    features = key_features if k is None else feature_memory(q.dtype, "queries", (stored, entries), keep=keep)
    moment = torch.zeros((job.members, columns.m, e), dtype=torch.float64, device="cpu")
    job.point(features=features, key_features=key_features, moment=moment, core=q.new_empty((job.members, columns.m, e)))
    job.point(x=_wide_inverse(x, columns))
    job.give(out=out)
    if stored == job.members:
        job.work.features_apart, job.work.key_features_apart = entries, key_entries
    if by_heads:
        at, at_keys, size = features.data_ptr(), key_features.data_ptr(), q.dtype.itemsize

        def heads(i: int, work: Work) -> _Steps:
            if stored != job.members:
                work.features, work.key_features = at + i * size * entries, at_keys + i * size * key_entries
            return [(FORWARD, 0, *share_of(job.members, i, count), None)]

        job.run(count, heads)
        return Forward(out, features, key_features, moment)

    moment = job.sums(_GATHER, keys, e)
    job.point(moment=moment)

    job.run(1, lambda *_: [(_JOIN, head, 0, 0, None) for head in range(job.members)])
    job.run(count, lambda i, _: [(_SCATTER, head, *job.share(n, i, count), None) for head in range(job.members)])
    return Forward(out, features, key_features, moment)


def attend_vjp(
    kernels: Kernels, grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, hidden: None, x: Tensor, columns: Columns, saved: Forward
) -> Gradients:
    """`_attention_blocks.attend_vjp` from what `attend` kept."""
    b, h, m, d = columns.b, columns.h, columns.m, columns.d
    members, n, e = b * h, q.shape[-2], v.shape[-1]
    grad = grad if grad.stride(-1) == 1 else grad.contiguous()
    job = _Job(kernels, q, k, v, columns)
    job.work.features_apart, job.work.grad_counts = m * padded(n), 1
    dq, dv, dk = _like(q), _like(v), None
    job.give(grad=grad, dq=dq, dv=dv)
    rows = columns.rows[..., :d].contiguous()
    job.point(features=saved.features, moment=saved.moment, x=_wide_inverse(x, columns), rows=rows)
    dmoment, dx = q.new_empty((members, m, e)), torch.empty((members, m, m), dtype=torch.float64, device="cpu")
    job.point(core=q.new_empty((members, m, e)), dmoment=dmoment, dx=dx)
    job.work.v_counts = k is None
    count = job.threads(n)
    landmarks = None
    if goes_by_heads(members, count):
        total, dw = (torch.zeros((members, m, width), dtype=torch.float64, device="cpu") for width in (e, d + 1))
        job.point(total=total, dw=dw)
        if k is None:
            landmarks = torch.empty((b, h, m, d), dtype=torch.float64, device="cpu")
            job.point(w=columns.w, dlandmarks=landmarks)
        job.run(count, lambda i, _: [(BACKWARD, 0, *share_of(members, i, count), None)])
    else:
        job.point(total=job.sums(_GATHER_GRAD, n, e))
        job.run(1, lambda *_: [(_JOIN_GRAD, head, 0, 0, None) for head in range(members)])
        dw = job.sums(_PULL, n, d + 1)
    if k is not None:
        keys = _Job(kernels, k, None, v, columns)
        keys.work.features_apart = m * padded(k.shape[-2])
        keys.work.v_counts = 1
        dk = _like(k)
        keys.give(dq=dk, dv=dv)
        keys.point(rows=rows, dmoment=dmoment, features=saved.key_features)
        dw = dw + keys.sums(_PULL, k.shape[-2], d + 1)
    if landmarks is None:
        landmarks = _attention_blocks.landmark_gradient(dw, columns)
    return Gradients(dq, dk, dv, landmarks, dx.reshape(b, h, m, m))


def _wide_inverse(x: Tensor, columns: Columns) -> Tensor:
    """The inverse of each head in float64. A call that would change nothing takes a few microseconds all the same."""
    wide = in_type(x, torch.float64)
    return wide if x.shape[:2] == (columns.b, columns.h) else wide.expand(columns.b, columns.h, columns.m, columns.m)


def _like(x: Tensor) -> Tensor:
    return in_large_pages(_buffers.empty_in_order_of(x, tuple(x.shape), xp=xp))
