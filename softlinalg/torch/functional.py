"""Softmax-free attention as functions of tensors (batch, heads, tokens, head_dim)."""

from __future__ import annotations

import array_api_compat.torch as xp
import torch
from torch import Tensor

from softlinalg import _attention
from softlinalg.torch.autograd import landmark_inverse

__all__ = ["soft_attention"]


def soft_attention(
    q: Tensor,
    v: Tensor,
    landmarks: Tensor,
    *,
    k: Tensor | None = None,
    ridge: float | None = None,
    inverse: str = "certified",
    normalization: str | None = None,
    key_padding_mask: Tensor | None = None,
    steps: int = 20,
    gradient: str = "exact",
    tol: float | None = None,
    published_alpha: str = "matrix",
) -> Tensor:
    """Softmax-free attention C (W + ridge I)^-1 (E^T v)."""
    func = "soft_attention"
    _attention.check_shapes(func, q, k, v, landmarks)
    hidden = None if key_padding_mask is None else key_padding_mask[:, None, :]
    dtype = q.dtype
    if torch.is_autocast_enabled(q.device.type):
        dtype = torch.get_autocast_dtype(q.device.type)
    with torch.autocast(q.device.type, enabled=False):
        work = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype

        def invert(w: Tensor) -> Tensor:
            return landmark_inverse(
                w,
                ridge=ridge,
                inverse=inverse,
                steps=steps,
                gradient=gradient,
                tol=tol,
                published_alpha=published_alpha,
                normalization=normalization,
            )

        out: Tensor = _attention.assemble(
            q.to(work),
            None if k is None else k.to(work),
            v.to(work),
            landmarks.to(work),
            hidden,
            length_scale=q.shape[-1] ** 0.25,
            normalization=normalization,
            invert=invert,
            xp=xp,
        )
    return out.to(dtype)
