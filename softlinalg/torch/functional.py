"""Softmax-free attention as functions of tensors (batch, heads, tokens, head_dim)."""

from __future__ import annotations

import array_api_compat.torch as xp
import torch
from torch import Tensor

from softlinalg import _arrays, _attention
from softlinalg._attention_blocks import Columns
from softlinalg.errors import ParameterError, ShapeError
from softlinalg.torch import autograd
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
    is_causal: bool = False,
) -> Tensor:
    r"""Softmax-free attention C (W + ridge I)^-1 (E^T v): linear in the number of tokens.

    Parameters
    ----------
    q : Tensor, shape (batch, heads, n, head_dim)
        Queries, unscaled: the kernel is exp(-|q - k|^2 / (2 sqrt(head_dim))).
    v : Tensor, shape (batch, groups, keys, e)
        Values. `groups` divides `heads`: each group serves heads / groups neighbouring heads.
    landmarks : Tensor, shape (batch or 1, heads or a divisor of it, m, head_dim)
        Points in the units of `q`; any number of them.
    k : Tensor, shape (batch, groups, keys, head_dim), optional
        Keys. Default: the queries (self-attention), as published.
    ridge : float, optional
        Added to the diagonal of W = k(landmarks, landmarks). Default 0.01; 0 for the published SOFT++ (inverse and normalization
        "published").
    inverse : {"certified", "published", "exact"}
        See `landmark_inverse`.
    normalization : {None, "published", "symmetric"}
        None: SOFT. "published": D^(-1/2) X D^(-1/2) around the inverse, D the row sums of W (SOFT++). "symmetric": the row sums of the
        approximated attention, at least one, to the power -1/2 on both of its sides.
    key_padding_mask : boolean Tensor, shape (batch, keys), optional
        True for keys that count as absent, whatever they hold: the same numbers as without them, up to the order of sums. In
        self-attention their own output is zero. Landmarks are the caller's: make them from the tokens that are there.
    steps, gradient, tol, published_alpha
        See `landmark_inverse`. The published SOFT is inverse="published"; SOFT++ is that with normalization="published" and
        published_alpha="batch", which makes a result depend on the rest of the batch.
    is_causal : bool, default False
        Refused: each output uses sums over all keys.

    Returns
    -------
    Tensor, shape (batch, heads, n, e)
        In the type of the arguments, or of autocast. Half precisions are computed in float32. The axes lie in memory in the order of
        those of `q`, so that heads that came from a view merge without a copy.

    Raises
    ------
    ShapeError, DTypeError, ParameterError

    Notes
    -----
    O(n m (head_dim + e) + m^3) time for each head and one array of n m features; nothing of size n x n. NaN in a head stays in that
    head. Tokens of any kind (class tokens, registers) may stand beside those of a grid: the order of tokens does not matter.

    References
    ----------
    .. [1] Lu et al., SOFT: Softmax-free Transformer with Linear Complexity (2021).
    .. [2] Lu et al., Softmax-free Linear Transformers (2024).

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_attention
    >>> q, v = torch.randn(2, 4, 196, 32), torch.randn(2, 4, 196, 32)
    >>> soft_attention(q, v, landmarks=q[:, :, ::4]).shape
    torch.Size([2, 4, 196, 32])
    """
    func = "soft_attention"
    if is_causal:
        message = (
            f"{func}: is_causal must be False; got True. Each output is a product with sums over all keys, landmarks included, so later "
            "tokens would leak into earlier ones. Use softmax attention for autoregressive models."
        )
        raise ParameterError(message)
    settings = _attention.inverse_settings(
        func, inverse=inverse, ridge=ridge, steps=steps, tol=tol, published_alpha=published_alpha, normalization=normalization
    )
    _check(func, q, k, v, landmarks, key_padding_mask)
    result = _result_type(q, k, v)
    scale = float(q.shape[-1]) ** 0.25
    with torch.autocast(q.device.type, enabled=False):
        common = q.dtype if k is None and v.dtype == q.dtype else _common_type(q, k, v)
        work = _arrays.compute_dtype(common, xp=xp)
        landmarks = landmarks.to(work)
        w = _attention.landmark_kernel(landmarks, scale, settings, xp=xp)
        x = landmark_inverse(
            w,
            ridge=settings.ridge,
            inverse=inverse,
            steps=steps,
            gradient=gradient,
            normalization=normalization,
            tol=tol,
            published_alpha=published_alpha,
        )
        heads = q.shape[1]
        q, k, v = q.to(common), None if k is None else _per_head(k.to(common), heads), _per_head(v.to(common), heads)
        landmarks, x = _per_head(landmarks, heads), _per_head(x, heads)
        hidden = None if key_padding_mask is None else key_padding_mask[:, None, :]
        out = _attend(q, k, v, landmarks, x, hidden, scale, normalization, work)
    return out.to(result)


def _attend(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    landmarks: Tensor,
    x: Tensor,
    hidden: Tensor | None,
    scale: float,
    normalization: str | None,
    work: torch.dtype,
) -> Tensor:
    """The attention in reused memory where the tensors are plain, else composed of differentiable operations."""
    if autograd.is_plain(q, k, v, landmarks, x, hidden):
        b, h = q.shape[:2]
        spread = landmarks.expand(b, h, *landmarks.shape[2:])
        columns = Columns(spread.detach(), 1 / scale, xp=xp)
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


# ------------------------------------------------------------------------------------------------- helpers
def _check(func: str, q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, hidden: Tensor | None) -> None:
    """Raise ShapeError or DTypeError unless the tensors fit together."""
    for name, x in (("q", q), ("k", k), ("v", v), ("landmarks", landmarks)):
        if x is not None and x.ndim != 4:
            message = f"{func}: {name} must have shape (batch, heads, tokens, features); got {tuple(x.shape)}. Add the missing axes."
            raise ShapeError(message)
    _attention.check_shapes(func, q, k, v, landmarks, hidden)
    batch, heads = q.shape[:2]
    for name, x in (("k", k), ("v", v), ("landmarks", landmarks)):
        if x is None:
            continue
        single = name == "landmarks"
        if not (x.shape[0] == batch or (single and x.shape[0] == 1)):
            message = f"{func}: {name} must have the batch size {batch} of q; got {x.shape[0]}. Pass one for each member."
            raise ShapeError(message)
        if x.shape[1] == 0 or heads % x.shape[1]:
            message = f"{func}: the heads of {name} must divide the {heads} heads of q; got {x.shape[1]}. Use a divisor."
            raise ShapeError(message)
    if hidden is not None and tuple(hidden.shape) != (batch, v.shape[2]):
        message = f"{func}: key_padding_mask must have shape {(batch, v.shape[2])}; got {tuple(hidden.shape)}. Pass (batch, keys)."
        raise ShapeError(message)


def _common_type(q: Tensor, k: Tensor | None, v: Tensor) -> torch.dtype:
    common = torch.promote_types(q.dtype, v.dtype)
    return common if k is None else torch.promote_types(common, k.dtype)


def _result_type(q: Tensor, k: Tensor | None, v: Tensor) -> torch.dtype:
    """The common type of the arguments; that of autocast where it is on, which leaves float64 alone."""
    common = _common_type(q, k, v)
    device = q.device.type
    if common != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return common


def _per_head(x: Tensor, heads: int) -> Tensor:
    """(batch, groups, ...) as (batch, heads, ...); one group is left to broadcasting where it costs nothing."""
    groups = x.shape[1]
    return x if groups == heads else x.repeat_interleave(heads // groups, dim=1)
