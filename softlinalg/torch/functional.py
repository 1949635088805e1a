"""Softmax-free attention as functions of tensors (batch, heads, tokens, head_dim)."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from softlinalg import _arrays, _attention, _attention_full, _attention_groups, _inputs
from softlinalg._attention_full import AttentionError
from softlinalg._settings import flag, is_one_of, shown, whole_number
from softlinalg._typing import RngLike
from softlinalg.errors import BackendMismatchError, DTypeError, ParameterError, ShapeError
from softlinalg.torch import attention_core, autograd, operators, repeated_attention
from softlinalg.torch.attention_core import common_type, per_head
from softlinalg.torch.inputs import checked_tensors, in_type, without_autocast

__all__ = [
    "AttentionError",
    "attention_error",
    "clustered_softmax_attention",
    "gaussian_attention",
    "soft_attention",
    "softmax_as_gaussian",
    "softmax_attention_error",
]

FULL_KERNEL_BELOW = 400
"""Tokens below which the full kernel is quicker than 49 landmarks, on a CPU."""


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
    inverse : {"certified", "published", "exact", "auto"}
        See `landmark_inverse`. "auto": "certified", but for fewer than 400 tokens the full kernel (`gaussian_attention`), which is quicker
        there on a CPU and has no error, but is another operator: a model trained with one is not one for the other.
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
    others = key_padding_mask, inverse, normalization, steps, gradient, published_alpha, is_causal
    is_usual = not torch.compiler.is_compiling() and all(type(x) is type(y) and x == y for x, y in zip(others, _USUAL, strict=True))
    if is_usual:
        quick = repeated_attention.again(q, k, v, landmarks, ridge, tol)
        if quick is not None:
            return quick
    if flag(is_causal, func=func, name="is_causal"):
        message = (
            f"{func}: is_causal must be False; got True. Each output is a product with sums over all keys, landmarks included, so later "
            "tokens would leak into earlier ones. Use softmax attention for autoregressive models."
        )
        raise ParameterError(message)
    q, k, v, landmarks = _checked(func, q, k, v, landmarks, key_padding_mask, optional=("k",))
    if isinstance(inverse, str) and inverse == "auto":
        if max(q.shape[2], v.shape[-2]) < FULL_KERNEL_BELOW and is_one_of(normalization, (None, "symmetric")):
            return gaussian_attention(q, v, k, normalization=normalization, key_padding_mask=key_padding_mask)
        inverse = "certified"
    settings = _attention.inverse_settings(
        func, inverse=inverse, ridge=ridge, steps=steps, tol=tol, published_alpha=published_alpha, normalization=normalization
    )._replace(is_kernel=True)
    autograd.check_gradient(func, gradient, inverse)
    result = _result_type(q, k, v)
    if operators.takes():
        return operators.attention(q, k, v, landmarks, key_padding_mask, result, settings, gradient)
    out = in_type(attention_core.attention(q, k, v, landmarks, key_padding_mask, settings, gradient), result)
    if is_usual:
        repeated_attention.remember(q, k, v, landmarks, ridge, tol, settings)
    return out


_USUAL = (None, "certified", None, 20, "exact", "matrix", False)
"""The settings with which attention is called again and again."""


# ----------------------------------------------------------------------------------- full and softmax attention
def gaussian_attention(
    q: Tensor,
    v: Tensor,
    k: Tensor | None = None,
    *,
    normalization: str | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    r"""Full Gaussian attention K v, K = exp(-|q_i - k_j|^2 / (2 sqrt(head_dim))): what `soft_attention` approximates.

    Parameters
    ----------
    q, v, k : Tensors
        As in `soft_attention`.
    normalization : {None, "row", "symmetric"}
        "row": divided by the row sums. "symmetric": D^(-1/2) K D^(-1/2), D the row sums (column sums on the side of the keys), at
        least one.
    key_padding_mask : boolean Tensor, shape (batch, keys), optional
        True for keys that count as absent; in self-attention their own output is zero.

    Returns
    -------
    Tensor, shape (batch, heads, n, e)

    Raises
    ------
    ShapeError, DTypeError, ParameterError

    Notes
    -----
    O(n keys) time: for few tokens, below about 400 on a CPU, where it is quicker than landmarks and has no error. At most 64 MiB of K
    are held at a time, but all of it where a gradient is recorded.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import gaussian_attention
    >>> _ = torch.manual_seed(0)
    >>> q, v = torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 8)      # batch, heads, tokens, features
    >>> gaussian_attention(q, v).shape
    torch.Size([1, 2, 100, 8])
    """
    func = "gaussian_attention"
    if not is_one_of(normalization, (None, "row", "symmetric")):
        message = f"{func}: normalization must be None, 'row' or 'symmetric'; got {shown(normalization)}. The default is None."
        raise ParameterError(message)
    q, k, v, _ = _checked(func, q, k, v, None, key_padding_mask, optional=("k", "landmarks"))
    result, hidden = _result_type(q, k, v), _for_heads(key_padding_mask)
    with without_autocast(q):
        q, k, v = _in_one_type(q, k, v)
        out: Tensor = _attention_full.full_attention(
            q, k, v, hidden, length_scale=float(q.shape[-1]) ** 0.25, normalization=normalization, xp=xp
        )
        if hidden is not None and k is None:  # absent tokens have no output of their own
            out = out.masked_fill(hidden[..., None], 0)
    return out.to(result)


def softmax_as_gaussian(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, key_padding_mask: Tensor | None = None) -> Tensor:
    r"""Softmax attention, computed as Gaussian attention with weighted keys: equal to it but for rounding.

    Parameters
    ----------
    q, k, v : Tensors
        As in `soft_attention`.
    scale : float, optional
        Of the dot products. Default head_dim^(-1/2).
    key_padding_mask : boolean Tensor, shape (batch, keys), optional
        True for keys that count as absent; without any key the output is zero.

    Returns
    -------
    Tensor, shape (batch, heads, n, e)

    Notes
    -----
    exp(s q.k) = exp(s |q|^2 / 2) exp(-s |q - k|^2 / 2) exp(s |k|^2 / 2): the first factor cancels in the row normalization. It shows
    what Gaussian attention leaves out of softmax attention, the norms of the keys. O(n keys); to replace softmax attention in a
    trained model at linear cost see `clustered_softmax_attention`. The Nystrom approximation of this matrix, row-normalized, is not
    usable: on a sentence model 4 to 50 % of its row sums came out non-positive or far too small.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import softmax_as_gaussian
    >>> _ = torch.manual_seed(0)
    >>> q, v = torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 8)      # batch, heads, tokens, features
    >>> k = torch.randn(1, 2, 100, 16)
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> bool((softmax_as_gaussian(q, k, v) - exact).abs().max() < 1e-5)
    True
    """
    func = "softmax_as_gaussian"
    q, k, v, _ = _checked(func, q, k, v, None, key_padding_mask)
    number = _scale(func, scale, q)
    result, hidden = _result_type(q, k, v), _for_heads(key_padding_mask)
    with without_autocast(q):
        q, keys, v = _in_one_type(q, k, v)
        out: Tensor = _attention_full.softmax_as_gaussian(q, keys, v, hidden, scale=number, xp=xp)
    return out.to(result)


def clustered_softmax_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    count: int,
    *,
    scale: float | None = None,
    steps: int = 5,
    factors: str = "counts",
    query_groups: int = 32,
    key_padding_mask: Tensor | None = None,
    query_padding_mask: Tensor | None = None,
) -> Tensor:
    r"""Softmax attention over groups of keys, for models that were trained with softmax: linear in the number of tokens.

    Parameters
    ----------
    q, k, v : Tensors
        As in `soft_attention`.
    count : int
        Groups of keys of each head, found by k-means.
    scale : float, optional
        Of the dot products. Default head_dim^(-1/2).
    steps : int, default 5
        Of Lloyd's algorithm, from keys at even distances; nothing is random.
    factors : {"counts", "row_stochastic", "tilted"}
        "counts": softmax(scale q c^T + log n) times the means of the values, with c the mean of a group of n keys: exact where the keys
        of each group are equal. "row_stochastic": softmax(scale q c^T + log n) softmax(scale c k^T) v, two factors whose rows sum to
        one, the second over all keys. "tilted": the most accurate. Queries are grouped too; for each group the means and sums of its
        keys are weighted with exp(scale r.k), r the mean query of the group, so that the result is exact at r. Groups of keys, found by
        halving, serve all groups of queries; `count` and `query_groups` are rounded down to powers of two.
    query_groups : int, default 32
        Groups of queries of "tilted"; the others have none.
    key_padding_mask : boolean Tensor, shape (batch, keys), optional
        True for keys that count as absent; without any key the output is zero.
    query_padding_mask : boolean Tensor, shape (batch, n), optional
        True for queries that count as absent, which matters to "tilted" alone: they do not change its groups, and their output is
        zero there. In self-attention pass the same mask twice.

    Returns
    -------
    Tensor, shape (batch, heads, n, e)

    Raises
    ------
    ShapeError, DTypeError, ParameterError

    Notes
    -----
    O((n + steps keys) count head_dim) time and arrays of keys x count; "tilted" O((n count + keys query_groups) head_dim), `steps`
    does not matter to it. Each output is an average of values with positive weights. What
    it costs in accuracy depends on the model: measure it with `softmax_attention_error`. On a sentence model with 512 tokens "counts"
    kept embeddings at a cosine of 0.93 (128 groups) and 0.97 (256); the best matrix of rank 128 gives 0.985. The groups are
    constants to differentiation; means of keys and values are not.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import clustered_softmax_attention
    >>> _ = torch.manual_seed(0)
    >>> q, v = torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 8)      # batch, heads, tokens, features
    >>> k = torch.randn(1, 2, 5, 16).repeat_interleave(20, dim=2)          # five different keys: five groups are exact
    >>> exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    >>> bool((clustered_softmax_attention(q, k, v, 5) - exact).abs().max() < 1e-5)
    True
    """
    func = "clustered_softmax_attention"
    q, k, v, _ = _checked(func, q, k, v, None, key_padding_mask)
    for name, value in (("count", count), ("steps", steps), ("query_groups", query_groups)):
        whole_number(value, func=func, name=name, minimum=1, remedy="Choose, for example, 64 groups and 5 steps.")
    if not is_one_of(factors, ("counts", "row_stochastic", "tilted")):
        message = f"{func}: factors must be 'counts', 'row_stochastic' or 'tilted'; got {shown(factors)}. The default is 'counts'."
        raise ParameterError(message)
    _check_query_mask(func, q, query_padding_mask)
    number = _scale(func, scale, q)
    result, hidden = _result_type(q, k, v), _for_heads(key_padding_mask)
    with without_autocast(q):
        q, keys, v = _in_one_type(q, k, v)
        if factors == "tilted":
            absent = _for_heads(query_padding_mask)
            tilted: Tensor = _attention_groups.tilted_softmax(
                q, keys, v, hidden, absent, count=count, groups=query_groups, scale=number, xp=xp
            )
            return tilted.to(result)
        out: Tensor = _attention_full.clustered_softmax(
            q, keys, v, hidden, count=min(count, max(1, v.shape[2])), steps=steps, scale=number, factors=factors, xp=xp
        )
    return out.to(result)


# ------------------------------------------------------------------------------------------------- errors
@torch.no_grad()
def attention_error(
    q: Tensor,
    v: Tensor,
    landmarks: Tensor,
    *,
    k: Tensor | None = None,
    rows: int | None = 128,
    rng: RngLike = None,
    ridge: float | None = None,
    inverse: str = "certified",
    normalization: str | None = None,
    key_padding_mask: Tensor | None = None,
    steps: int = 20,
    tol: float | None = None,
    published_alpha: str = "matrix",
) -> AttentionError:
    r"""Relative error of `soft_attention` against full Gaussian attention, |approximate - exact|_F / |exact|_F, for each head.

    Parameters
    ----------
    q, v, landmarks, k, ridge, inverse, key_padding_mask, steps, tol, published_alpha
        As in `soft_attention`.
    rows : int or None, default 128
        Queries to compare, drawn without replacement: two digits, as a rule; the standard error tells. None: all of them.
    rng : None, int or numpy Generator
        Draws the queries.
    normalization : {None, "symmetric"}
        The published one approximates no full attention and is refused.

    Returns
    -------
    AttentionError
        `error` and `standard_error`, (batch, heads) in float64, and `rows`.

    Raises
    ------
    ShapeError, DTypeError, ParameterError

    Notes
    -----
    O(rows keys) time beside `soft_attention`; the symmetric normalization needs the sums of all rows, O(n keys). Never an n x keys
    matrix. Queries at unit scale are far from each other in 32 dimensions: there neither landmarks nor anything else of their rank
    approximates full attention (errors near 0.8), and what is computed is an operator of its own.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import attention_error
    >>> _ = torch.manual_seed(0)
    >>> q, v = torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 8)      # batch, heads, tokens, features
    >>> found = attention_error(q, v, q[..., ::10, :], rng=0)                # every tenth token as a landmark
    >>> found.error.shape, bool((found.error > 0.5).all())                 # random tokens: no ten landmarks are enough
    (torch.Size([1, 2]), True)
    """
    func = "attention_error"
    if is_one_of(normalization, ("published",)):
        message = f"{func}: normalization must be None or 'symmetric'; got 'published', which approximates no full attention. Use None."
        raise ParameterError(message)
    approximate = soft_attention(
        q,
        v,
        landmarks,
        k=k,
        ridge=ridge,
        inverse=inverse,
        normalization=normalization,
        key_padding_mask=key_padding_mask,
        steps=steps,
        tol=tol,
        published_alpha=published_alpha,
    )
    chosen = _chosen_rows(func, q, rows, rng)
    with without_autocast(q):
        one_q, one_k, one_v = _in_one_type(q, k, v)
        scale, hidden = float(q.shape[-1]) ** 0.25, _for_heads(key_padding_mask)
        exact = _attention_full.full_attention(
            one_q, one_k, one_v, hidden, length_scale=scale, normalization=normalization, rows=chosen, xp=xp
        )
        if hidden is not None and k is None:  # absent tokens have no output of their own
            gone = hidden[..., None] if chosen is None else hidden[..., chosen, None]
            exact = exact.masked_fill(gone, 0)
    kept = approximate if chosen is None else approximate[..., chosen, :]
    return _attention_full.relative_error(kept, exact, q.shape[2], xp=xp)


@torch.no_grad()
def softmax_attention_error(
    out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    rows: int | None = 128,
    rng: RngLike = None,
    key_padding_mask: Tensor | None = None,
) -> AttentionError:
    """Relative error of an approximation `out` of softmax attention, from sampled queries.

    Parameters
    ----------
    out : Tensor, shape (batch, heads, n, e)
        What `clustered_softmax_attention`, or anything else, gave.
    q, k, v, scale, key_padding_mask
        As there.
    rows, rng
        As in `attention_error`.

    Returns
    -------
    AttentionError

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import clustered_softmax_attention, softmax_attention_error
    >>> _ = torch.manual_seed(0)
    >>> q, v = torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 8)      # batch, heads, tokens, features
    >>> k = torch.randn(1, 2, 100, 16)
    >>> out = clustered_softmax_attention(q, k, v, 20)
    >>> softmax_attention_error(out, q, k, v, rng=0).error.shape
    torch.Size([1, 2])
    """
    func = "softmax_attention_error"
    q, k, v, _ = _checked(func, q, k, v, None, key_padding_mask)
    out, q = checked_tensors(func, out=out, q=q)
    if tuple(out.shape) != (*q.shape[:3], v.shape[3]):
        message = f"{func}: out must have shape {(*q.shape[:3], v.shape[3])}; got {tuple(out.shape)}. Pass the output for q, k and v."
        raise ShapeError(message)
    number, chosen, n = _scale(func, scale, q), _chosen_rows(func, q, rows, rng), q.shape[2]
    if chosen is not None:
        out, q = out[..., chosen, :], q[..., chosen, :]
    with without_autocast(q):
        few, keys, values = _in_one_type(q, k, v)
        exact = _attention_full.softmax_as_gaussian(few, keys, values, _for_heads(key_padding_mask), scale=number, xp=xp)
    return _attention_full.relative_error(out, exact, n, xp=xp)


# ------------------------------------------------------------------------------------------------- helpers
def _check_query_mask(func: str, q: Tensor, mask: Any) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        message = f"{func}: query_padding_mask must be a boolean tensor; got {shown(mask)}. True hides."
        raise DTypeError(message)
    if tuple(mask.shape) != (q.shape[0], q.shape[2]):
        message = f"{func}: query_padding_mask must have shape {(q.shape[0], q.shape[2])}; got {tuple(mask.shape)}. Pass (batch, queries)."
        raise ShapeError(message)
    if mask.device != q.device:
        message = f"{func}: all tensors must be on one device; got {q.device}, {mask.device}. Move them to one."
        raise BackendMismatchError(message)


def _checked(
    func: str, q: Tensor, k: Any, v: Tensor, landmarks: Any, hidden: Tensor | None, *, optional: tuple[str, ...] = ("landmarks",)
) -> list[Any]:
    """The tensors with integers promoted; raises unless they are tensors that fit together."""
    q, k, v, landmarks = checked_tensors(func, q=q, k=k, v=v, landmarks=landmarks, mask=hidden, optional=optional)
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
    return [q, k, v, landmarks]


def _result_type(q: Tensor, k: Tensor | None, v: Tensor) -> torch.dtype:
    """The common type of the arguments; that of autocast where it is on, which leaves float64 alone."""
    common = common_type(q, k, v)
    device = q.device.type
    if common != torch.float64 and device != "meta" and torch.is_autocast_enabled(device):  # shapes alone have no autocast
        return torch.get_autocast_dtype(device)
    return common


def _for_heads(mask: Tensor | None) -> Tensor | None:
    """(batch, keys) as (batch, 1, keys)."""
    return None if mask is None else mask[:, None, :]


def _in_one_type(q: Tensor, k: Tensor | None, v: Tensor) -> tuple[Tensor, Any, Tensor]:
    """Queries, keys and values in the type to compute in, one head of each for each head of the queries."""
    work, heads = _arrays.compute_dtype(common_type(q, k, v), xp=xp), q.shape[1]
    return q.to(work), None if k is None else per_head(k.to(work), heads), per_head(v.to(work), heads)


def _scale(func: str, scale: float | None, q: Tensor) -> float:
    return float(q.shape[-1]) ** -0.5 if scale is None else _inputs.real_scalar(scale, func=func, name="scale")


def _chosen_rows(func: str, q: Tensor, rows: int | None, rng: RngLike) -> Any:
    """Indices of the queries to compare; None for all."""
    if rows is not None:
        rows = whole_number(rows, func=func, name="rows", minimum=2, remedy="The default is 128; None takes all.")
    chosen = _attention_full.sampled_rows(q.shape[2], rows, rng)
    return None if chosen is None else torch.tensor(chosen, device=q.device)
