"""Softmax-free attention from arguments that have been checked: the inverse of the landmarks, and the products with their features.

`attention` is differentiated by autograd; `kept_attention` and `attention_vjp` are its forward and backward for a graph that holds them
as operators, where compiled kernels serve.
"""

from __future__ import annotations

import array_api_compat.torch as xp
import torch
from torch import Tensor

from softlinalg import _arrays, _attention
from softlinalg._attention import InverseSettings
from softlinalg._attention_blocks import Columns, Factors, Forward
from softlinalg.torch import autograd, cpu_kernels
from softlinalg.torch.inputs import in_type, without_autocast

__all__ = ["attention", "attention_vjp", "common_type", "kept_attention", "kept_memory", "per_head"]


def attention(
    q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, settings: InverseSettings, gradient: str
) -> Tensor:
    """`functional.soft_attention` of arguments that fit together.

    The result has the type of the tokens, or that of the computation: callers convert it to the one that they promise.
    """
    scale = float(q.shape[-1]) ** 0.25
    with without_autocast(q):
        common = q.dtype if k is None and v.dtype == q.dtype else common_type(q, k, v)
        work = _arrays.compute_dtype(common, xp=xp)
        landmarks = in_type(landmarks, work)
        x, factors = autograd.kernel_inverse(landmarks, scale, settings, gradient)
        heads = q.shape[1]
        q, k, v = in_type(q, common), None if k is None else per_head(in_type(k, common), heads), per_head(in_type(v, common), heads)
        if landmarks.shape[:2] != q.shape[:2]:  # the factors are of each head
            factors = None
        landmarks, x = per_head(landmarks, heads), per_head(x, heads)
        hidden = None if mask is None else mask[:, None, :]
        return _products(q, k, v, landmarks, x, hidden, scale, settings.normalization, work, factors)


def _products(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    landmarks: Tensor,
    x: Tensor,
    hidden: Tensor | None,
    scale: float,
    normalization: str | None,
    work: torch.dtype,
    factors: Factors | None,
) -> Tensor:
    """The attention in reused memory where the tensors are plain, else composed of differentiable operations."""
    if autograd.is_plain(q, k, v, landmarks, x, hidden):
        b, h = q.shape[:2]
        spread = landmarks.expand(b, h, *landmarks.shape[2:])
        columns = Columns(spread.detach(), 1 / scale, xp=xp, factors=factors)
        if columns.near_landmarks():
            absent = None if hidden is None else hidden.expand(b, h, -1)
            if normalization != "symmetric":
                return autograd.attend(q, k, v, spread, x.expand(b, h, *x.shape[2:]), absent, columns, scale)
            return _symmetric(q, k, v, spread, x, hidden, columns, scale)
    q, k, v = q.to(work), None if k is None else k.to(work), v.to(work)
    out: Tensor = _attention.composite(q, k, v, landmarks, hidden, x, length_scale=scale, normalization=normalization, xp=xp)
    return out


def _symmetric(
    q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, x: Tensor, hidden: Tensor | None, columns: Columns, scale: float
) -> Tensor:
    """The symmetric normalization, from features made in reused memory."""
    gone = None if hidden is None else hidden[..., None]
    work = landmarks.dtype
    v, points = v.to(work), q if k is None else k
    if gone is not None:
        v, points = v.masked_fill(gone, 0), points.masked_fill(gone, 0)
    keys = autograd.feature_matrix(points, landmarks, columns, scale)
    queries = keys if k is None else autograd.feature_matrix(q, landmarks, columns, scale)
    out: Tensor = _attention.combine(queries, keys, v, gone, x, is_self=k is None, normalization="symmetric", xp=xp)
    return out if gone is None or k is not None else out.masked_fill(gone, 0)


Kept = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""What backward needs beside the arguments: features, those of the keys, E^T v, W and its inverse."""


def kept_memory(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor) -> Kept:
    """Memory for `Kept` that was never written to, for landmarks of each head."""
    (b, h, m, _), e = landmarks.shape, v.shape[-1]
    features = q.new_empty((b * h, m * cpu_kernels.padded(q.shape[-2])))
    key_features = q.new_empty(0 if k is None else (b * h, m * cpu_kernels.padded(v.shape[-2])))
    moment, w, x = (q.new_empty(shape, dtype=torch.float64) for shape in ((b * h, m, e), (b, h, m, m), (b, h, m, m)))
    return features, key_features, moment, w, x


def kept_attention(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, settings: InverseSettings) -> tuple[Tensor, Kept] | None:
    """The attention by compiled kernels, and what backward needs of it; None where they do not serve.

    The tensors are plain (`autograd.is_plain`) and of one type, the landmarks those of each head; no key is hidden.
    """
    kernels = cpu_kernels.kernels_for(q, k, v, landmarks, None)
    if kernels is None:
        return None
    scale = float(q.shape[-1]) ** 0.25
    found = _attention.kernel_and_inverse(landmarks, scale, settings, xp=xp)
    if found is None:
        w = autograd.landmark_kernel(landmarks, scale, settings)
        found = w, autograd.inverse_of(w, settings, "exact"), None
    w, x, factors = found
    columns = Columns(landmarks, 1 / scale, xp=xp, factors=factors)
    if not columns.near_landmarks():
        return None
    made = cpu_kernels.attend(kernels, q, k, v, x, columns, keep=True)
    key_features = q.new_empty(0) if k is None else made.key_features
    return made.out, (made.features, key_features, made.moment, w, x)


def attention_vjp(grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, kept: Kept) -> list[Tensor | None]:
    """Gradients with respect to q, k, v and the landmarks, from what `kept_attention` kept."""
    kernels = cpu_kernels.kernels_for(q, k, v, landmarks, None)
    assert kernels is not None, "they served in forward"
    features, key_features, moment, w, x = kept
    scale = float(q.shape[-1]) ** 0.25
    columns = Columns(landmarks, 1 / scale, xp=xp)
    # What forward returned is not needed again: the first field is only filled.
    saved = Forward(grad, features, features if k is None else key_features, moment)
    found = cpu_kernels.attend_vjp(kernels, grad, q, k, v, None, x, columns, saved)
    by_inverse = _attention.kernel_inverse_vjp(found.x, landmarks, w, x, scale, xp=xp)
    return [found.q, found.k, found.v, (found.landmarks + by_inverse).to(landmarks.dtype)]


def common_type(q: Tensor, k: Tensor | None, v: Tensor) -> torch.dtype:
    """The type to which all are promoted."""
    common = torch.promote_types(q.dtype, v.dtype)
    return common if k is None else torch.promote_types(common, k.dtype)


def per_head(x: Tensor, heads: int) -> Tensor:
    """(batch, groups, ...) as (batch, heads, ...); one group is left to broadcasting where it costs nothing."""
    groups = x.shape[1]
    return x if groups == heads else x.repeat_interleave(heads // groups, dim=1)
