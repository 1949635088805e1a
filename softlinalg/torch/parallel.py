"""Softmax-free attention over a sequence that is spread over the ranks of a process group."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
import torch.distributed as dist
from torch import Tensor

from softlinalg import _arrays, _attention
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
    With m landmarks in all, a layer sends batch heads m (head_dim + e) numbers forward (the landmarks are gathered, C^T v is summed) and as
    many backward, however long the sequence; no rank ever sees another's tokens. The inverse is computed on every rank. Gradients reach
    the landmarks through all ranks. Each rank's loss is its part of a sum: add them up over the ranks, or average the gradients of
    shared weights with DistributedDataParallel. Under activation checkpointing the collectives run again, on all ranks alike.
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
        x = autograd.kernel_inverse(points, scale, settings, "exact").to(work)
        if key_padding_mask is not None:
            gone = key_padding_mask[:, None, :, None]
            q, v = q.masked_fill(gone, 0), v.masked_fill(gone, 0)
        c: Tensor = _attention.features(q, points, scale, xp=xp)  # (batch, heads, n, m)
        moment: Tensor = _Sum.apply(c.mT @ v, group)  # type: ignore[no-untyped-call]
        out = c @ (x @ moment)
        if key_padding_mask is not None:
            out = out.masked_fill(key_padding_mask[:, None, :, None], 0)
    return out.to(result)
