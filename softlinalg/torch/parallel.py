"""Softmax-free attention over a sequence that is spread over the ranks of a process group."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import torch
import torch.distributed as dist
from torch import Tensor

from softlinalg import _arrays, _attention, _attention_blocks
from softlinalg._attention_blocks import Columns, Forward
from softlinalg.errors import ParameterError, ShapeError
from softlinalg.torch import autograd
from softlinalg.torch.inputs import checked_tensors, without_autocast

__all__ = ["sequence_parallel_attention"]


class _Sum(torch.autograd.Function):
    """The sum over the ranks, on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(grad, ctx.group), None  # type: ignore[no-untyped-call]  # every rank used the sum


class _Gather(torch.autograd.Function):
    """The points of all ranks, one after the other along the last axis but one, on every rank."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group, ctx.count = group, x.shape[-2]
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=-2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total: Tensor = _Sum.apply(grad, ctx.group)  # type: ignore[no-untyped-call]
        start = dist.get_rank(ctx.group) * ctx.count
        return total[..., start : start + ctx.count, :], None


def _total(group: Any) -> Callable[[Tensor], Tensor]:
    """The sum over the ranks as a function of one tensor, which it may overwrite."""

    def summed(x: Tensor) -> Tensor:
        dist.all_reduce(x, group=group)
        return x

    return summed


class _Attend(torch.autograd.Function):
    """C X (C^T v) of the tokens of this rank, with C^T v summed over the ranks: in blocks, from features that are kept once."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, v: Tensor, points: Tensor, x: Tensor, hidden: Tensor | None, columns: Columns, scale: float, group: Any
    ) -> Tensor:
        made = _attention_blocks.attend(q, None, v, hidden, x, columns, summed=_total(group))
        columns.release()
        ctx.save_for_backward(q, v, points, x, hidden, made.features, made.moment)
        ctx.columns, ctx.scale, ctx.group = columns, scale, group
        out: Tensor = made.out
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, v, points, x, hidden, features, moment = ctx.saved_tensors
        if torch.is_grad_enabled() or not autograd.is_plain(grad):  # a second derivative

            def again(q: Tensor, v: Tensor, points: Tensor, x: Tensor) -> Tensor:
                return _composite(q, v, points, x, hidden, ctx.scale, ctx.group)

            return (*autograd.pull_back(again, grad, (q, v, points, x), ctx.needs_input_grad), None, None, None, None)
        saved = Forward(grad, features, features, moment)
        found = _attention_blocks.attend_vjp(grad, q, None, v, hidden, x, ctx.columns, saved, summed=_total(ctx.group))
        ctx.columns.release()
        return found.q, found.v, found.landmarks.to(points.dtype), found.x.to(x.dtype), None, None, None, None


def _composite(q: Tensor, v: Tensor, points: Tensor, x: Tensor, hidden: Tensor | None, scale: float, group: Any) -> Tensor:
    """The same from differentiable operations."""
    gone = None if hidden is None else hidden[..., None]
    if gone is not None:
        q, v = q.masked_fill(gone, 0), v.masked_fill(gone, 0)
    c: Tensor = _attention.features(q, points, scale, xp=xp)  # (batch, heads, n, m)
    moment: Tensor = _Sum.apply(c.mT @ v, group)  # type: ignore[no-untyped-call]
    out = c @ (x @ moment)
    return out if gone is None else out.masked_fill(gone, 0)


def sequence_parallel_attention(
    q: Tensor,
    v: Tensor,
    landmarks: Tensor,
    *,
    group: Any = None,
    ridge: float | None = None,
    inverse: str = "certified",
    steps: int = 20,
    tol: float | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    r"""Softmax-free self-attention C (W + ridge I)^-1 (C^T v) where each rank holds some of the tokens.

    Parameters
    ----------
    q : Tensor, shape (batch, heads, n, head_dim)
        Queries of the tokens of this rank; `n` may differ between the ranks.
    v : Tensor, shape (batch, heads, n, e)
        Their values.
    landmarks : Tensor, shape (batch, heads, m, head_dim)
        Landmarks of this rank, from its own tokens; as many on each. All ranks' together, in the order of the ranks, are used.
    group : ProcessGroup, optional
        Default: all ranks.
    ridge, inverse, steps, tol
        As in `soft_attention`; `inverse` is "certified", "exact" or "published".
    key_padding_mask : boolean Tensor, shape (batch, n), optional
        True for tokens of this rank that count as absent; their own output is zero.

    Returns
    -------
    Tensor, shape (batch, heads, n, e)
        Of the tokens of this rank: what `soft_attention` gives for the whole sequence with all landmarks, up to the order of sums.

    Raises
    ------
    ParameterError
        If there is no process group.
    ShapeError, DTypeError

    Notes
    -----
    With m landmarks in all, a layer sends batch heads m (head_dim + e) numbers forward (the landmarks are gathered, C^T v is summed, in
    float64 in eager code) and as many backward, however long the sequence; no rank ever sees another's tokens. The inverse is computed
    on every rank. What is kept for backward beside the arguments are batch heads n m features. Gradients reach the landmarks through
    all ranks. Each rank's loss is its part of a sum: add them up over the ranks, or average the gradients of shared weights with
    DistributedDataParallel. Under activation checkpointing the collectives run again, on all ranks alike.

    Examples
    --------
    On one process, which is a group as well:

    >>> import tempfile, torch
    >>> from softlinalg.torch.parallel import sequence_parallel_attention
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    ...     q, v = torch.randn(1, 2, 100, 8), torch.randn(1, 2, 100, 8)
    ...     out = sequence_parallel_attention(q, v, q[:, :, ::10])
    ...     torch.distributed.destroy_process_group()
    >>> out.shape
    torch.Size([1, 2, 100, 8])
    """
    func = "sequence_parallel_attention"
    if not dist.is_available() or not dist.is_initialized():
        message = f"{func}: group must be there; got no process group. Call torch.distributed.init_process_group first."
        raise ParameterError(message)
    q, v, landmarks = checked_tensors(func, q=q, v=v, landmarks=landmarks, mask=key_padding_mask)
    if not (q.ndim == v.ndim == landmarks.ndim == 4 and q.shape[:3] == v.shape[:3]):
        message = f"{func}: q and v must be (batch, heads, n, width), landmarks too; got {tuple(q.shape)}, {tuple(v.shape)}. Add axes."
        raise ShapeError(message)
    if landmarks.shape[:2] != q.shape[:2] or landmarks.shape[3] != q.shape[3] or landmarks.shape[2] == 0:
        message = f"{func}: landmarks must be (batch, heads, m >= 1, head_dim) as q; got {tuple(landmarks.shape)}. Pass some of q."
        raise ShapeError(message)
    settings = _attention.inverse_settings(
        func, inverse=inverse, ridge=ridge, steps=steps, tol=tol, published_alpha="matrix", normalization=None
    )._replace(is_kernel=True)
    result, scale = torch.promote_types(q.dtype, v.dtype), float(q.shape[-1]) ** 0.25
    with without_autocast(q):
        work = _arrays.compute_dtype(result, xp=xp)
        q, v = q.to(work), v.to(work)
        points: Tensor = _Gather.apply(landmarks.to(work), group)  # type: ignore[no-untyped-call]
        x = autograd.kernel_inverse(points, scale, settings, "exact")[0].to(work)
        hidden = None if key_padding_mask is None else key_padding_mask[:, None, :].expand(q.shape[:3])
        columns = Columns(points.detach(), 1 / scale, xp=xp) if autograd.is_plain(q, v, points, x, hidden) else None
        if columns is not None and columns.near_landmarks():  # alike on all ranks, whose landmarks are the same
            out: Tensor = _Attend.apply(q, v, points, x, hidden, columns, scale, group)  # type: ignore[no-untyped-call]
        else:
            out = _composite(q, v, points, x, hidden, scale, group)
    return out.to(result)
