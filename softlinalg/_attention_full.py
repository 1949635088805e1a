r"""What softmax-free attention approximates or replaces: full Gaussian attention, softmax attention as one, and clustered keys.

Full attention is computed a block of queries at a time, so that no more than a block of the tokens x tokens matrix exists; its cost
is quadratic all the same. Everything is made of new arrays: it can be differentiated, mapped and compiled.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from softlinalg import _arrays
from softlinalg._attention import exponentials, inverse_root_of_sums
from softlinalg._kernel_distances import GaussianColumns, center_of
from softlinalg._rng import as_generator
from softlinalg._typing import Array, Namespace, RngLike

__all__ = [
    "AttentionError",
    "Clusters",
    "cluster",
    "clustered_softmax",
    "full_attention",
    "relative_error",
    "sampled_rows",
    "softmax_as_gaussian",
]

_BLOCK_ENTRIES = 2**24
"""Entries of the block of the full matrix that is held at a time: 64 MiB in float32."""


def full_attention(
    q: Array,
    k: Array | None,
    v: Array,
    hidden: Array | None,
    *,
    length_scale: float,
    normalization: str | None,
    xp: Namespace,
    log_weights: Array | None = None,
    rows: Any = None,
) -> Array:
    """K v with K = k(q, keys) exp(log_weights) for each key, or normalized by its row sums.

    Parameters
    ----------
    q, k, v : arrays, shapes (..., n, d), (..., keys, d) or None, (..., keys, e)
    hidden : boolean array, shape (..., keys), or None
        Absent keys.
    normalization : {None, "row", "symmetric"}
        "row" divides by the row sums; without any key the output is zero.
    log_weights : array, shape (..., keys), optional
    rows : slice or integer array, optional
        The queries that are wanted.
    """
    keys = q if k is None else k
    if hidden is not None:  # whatever they hold
        keys, v = (xp.where(hidden[..., None], xp.zeros_like(x), x) for x in (keys, v))
        q = keys if k is None else q
    columns = GaussianColumns(keys, 1 / length_scale, func="gaussian_attention", xp=xp)
    weights = _weights(log_weights, hidden, keys, xp=xp)
    if normalization == "symmetric":
        v = v * _column_scale(q, k, columns, weights, xp=xp)
    wanted = q if rows is None else q[..., rows, :]
    parts = []
    for block in _steps(wanted, keys):
        exponents = columns(wanted[..., block, :])
        exponents = exponents if weights is None else exponents + weights
        parts.append(_weighted_sum(exponents, v, normalization, xp=xp))
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=-2)


def _weights(log_weights: Array | None, hidden: Array | None, keys: Array, *, xp: Namespace) -> Array | None:
    """What is added to the exponents of each key, (..., 1, keys)."""
    if hidden is None:
        return None if log_weights is None else log_weights[..., None, :]
    base = xp.zeros_like(keys[..., 0]) if log_weights is None else log_weights
    return xp.where(hidden, xp.full_like(base, -math.inf), base)[..., None, :]


def _steps(q: Array, keys: Array) -> Iterator[slice]:
    """Blocks of queries; one where a program is traced, which is not unrolled."""
    n = q.shape[-2]
    if _arrays.is_traced(q, keys):
        yield slice(0, n)
        return
    batch = max(1, math.prod(q.shape[:-2]), math.prod(keys.shape[:-2]))
    step = max(1, _BLOCK_ENTRIES // max(1, batch * keys.shape[-2]))
    yield from (slice(start, min(n, start + step)) for start in range(0, max(n, 1), step))


def _weighted_sum(exponents: Array, v: Array, normalization: str | None, *, xp: Namespace) -> Array:
    """The output for a block of queries."""
    if normalization != "row":
        values = exponentials(exponents, xp=xp)
        out = values @ v
        if normalization == "symmetric":
            out = inverse_root_of_sums(xp.sum(values, axis=-1, keepdims=True), xp=xp) * out
        return out
    top = _arrays.detach(xp.max(exponents, axis=-1, keepdims=True))
    values = exponentials(exponents - xp.where(top > -math.inf, top, xp.zeros_like(top)), xp=xp)
    total = xp.sum(values, axis=-1, keepdims=True)
    return (values @ v) / xp.where(total == 0, xp.ones_like(total), total)


def _column_scale(q: Array, k: Array | None, columns: GaussianColumns, weights: Array | None, *, xp: Namespace) -> Array:
    """D^(-1/2) of the keys, (..., keys, 1), from the column sums over all queries."""
    keys = columns.y
    if k is None:
        total = []
        for block in _steps(q, keys):
            exponents = columns(q[..., block, :])
            total.append(xp.sum(exponentials(exponents if weights is None else exponents + weights, xp=xp), axis=-1, keepdims=True))
        sums = xp.concat(total, axis=-2)
    else:
        sums = xp.zeros_like(keys[..., :1])
        for block in _steps(q, keys):
            sums = sums + xp.sum(exponentials(columns(q[..., block, :]), xp=xp), axis=-2)[..., None]
    return inverse_root_of_sums(sums, xp=xp)


def softmax_as_gaussian(q: Array, k: Array, v: Array, hidden: Array | None, *, scale: float, xp: Namespace) -> Array:
    """softmax(scale q k^T) v as row-normalized Gaussian attention with keys of weight exp(scale |k|^2 / 2).

    scale q.k = -scale |q - k|^2 / 2 + scale |k|^2 / 2 + scale |q|^2 / 2, and the last term is the same for all keys. So is what
    changes when a common point is taken off all keys; without it the first two would be large and of opposite sign.
    """
    moved = k - center_of(k, xp=xp)
    weights = xp.sum(moved * moved, axis=-1) * (scale / 2)
    return full_attention(q, moved, v, hidden, length_scale=scale**-0.5, normalization="row", log_weights=weights, xp=xp)


# --------------------------------------------------------------------------------------------- clustered keys
class Clusters(NamedTuple):
    """Groups of keys found by k-means."""

    centers: Array
    """Mean of each group, (..., count, d); differentiable."""
    sizes: Array
    """Number of keys of each, (..., count)."""
    member: Array
    """Indicator, (..., keys, count)."""


def cluster(k: Array, hidden: Array | None, count: int, steps: int, *, xp: Namespace) -> Clusters:
    """Lloyd's algorithm for each matrix of keys (..., keys, d), from `count` keys at even distances; hidden keys are left out.

    O(keys count d) a step, one array of keys x count. The groups are constants to differentiation, their means are not.
    """
    points = _arrays.detach(k)
    points = points - center_of(points, xp=xp)
    present = xp.ones_like(points[..., 0]) if hidden is None else xp.astype(~hidden, points.dtype)
    present = xp.broadcast_to(present, tuple(points.shape[:-1]))
    centers = _spread_keys(points, present, count, xp=xp)
    member = xp.zeros_like(points[..., :1])
    for _ in range(steps):
        scores = points @ xp.matrix_transpose(centers) - xp.sum(centers * centers, axis=-1)[..., None, :] / 2
        nearest = xp.argmax(scores, axis=-1)
        labels = xp.arange(count, dtype=nearest.dtype, device=_arrays.device_of(k))
        member = xp.astype(nearest[..., None] == labels, points.dtype) * present[..., None]  # (..., keys, count)
        sizes = xp.sum(member, axis=-2)
        sums = xp.matrix_transpose(member) @ points
        centers = xp.where(sizes[..., None] > 0, sums / xp.where(sizes > 0, sizes, xp.ones_like(sizes))[..., None], centers)
    return Clusters(_means(member, k, xp=xp), xp.sum(member, axis=-2), member)


def _spread_keys(points: Array, present: Array, count: int, *, xp: Namespace) -> Array:
    """`count` of the keys that are there, at even distances in their order; (..., count, d)."""
    place = _arrays.running_sums(present, xp=xp) - 1  # of each present key among them
    number = xp.sum(present, axis=-1, keepdims=True)
    steps = xp.arange(count, dtype=points.dtype, device=_arrays.device_of(points))
    wanted = xp.floor((steps + 0.5) * number / count)  # (..., count)
    chosen = (place[..., None, :] == wanted[..., :, None]) & (present[..., None, :] > 0)
    return xp.astype(chosen, points.dtype) @ points


def _means(member: Array, x: Array, *, xp: Namespace) -> Array:
    """Mean of the rows of each group, zero for an empty one."""
    sizes = xp.sum(member, axis=-2)[..., None]
    return (xp.matrix_transpose(member) @ x) / xp.where(sizes > 0, sizes, xp.ones_like(sizes))


def clustered_softmax(
    q: Array, k: Array, v: Array, hidden: Array | None, *, count: int, steps: int, scale: float, factors: str, xp: Namespace
) -> Array:
    """Softmax attention with `count` keys in place of all.

    "counts": softmax(scale q c^T + log n) (means of the values), c the means of groups of n keys. "row_stochastic":
    softmax(scale q c^T + log n) softmax(scale c k^T) v.
    """
    if hidden is not None:
        k, v = (xp.where(hidden[..., None], xp.zeros_like(x), x) for x in (k, v))
    groups = cluster(k, hidden, count, steps, xp=xp)
    empty = groups.sizes == 0
    bias = xp.log(xp.where(empty, xp.ones_like(groups.sizes), groups.sizes))
    bias = xp.where(empty, xp.full_like(bias, -math.inf), bias)
    if factors == "counts":
        values = _means(groups.member, v, xp=xp)
    else:
        logits = scale * (groups.centers @ xp.matrix_transpose(k))
        if hidden is not None:
            logits = xp.where(hidden[..., None, :], xp.full_like(logits, -math.inf), logits)
        values = _weighted_sum(logits, v, "row", xp=xp)
    logits = scale * (q @ xp.matrix_transpose(groups.centers)) + bias[..., None, :]
    return _weighted_sum(logits, values, "row", xp=xp)


# ----------------------------------------------------------------------------------------------------- errors
class AttentionError(NamedTuple):
    """Relative error of an approximated attention, |approximate - exact|_F / |exact|_F, for each head.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import attention_error
    >>> _ = torch.manual_seed(0)
    >>> q, v = torch.randn(1, 2, 100, 16), torch.randn(1, 2, 100, 8)       # batch, heads, tokens, features
    >>> found = attention_error(q, v, q, rows=None)                         # every token a landmark, every row compared
    >>> found.rows, bool((found.error < 0.2).all())                         # what is left is the ridge of 0.01
    (100, True)
    """

    error: Array
    """(batch, heads)."""
    standard_error: Array
    """Of that estimate, from the spread over the sampled rows; zero where all rows were used."""
    rows: int
    """Queries that were compared."""


def sampled_rows(n: int, rows: int | None, rng: RngLike) -> list[int] | None:
    """Numbers of the queries to compare; None stands for all."""
    if rows is None or rows >= n:
        return None
    return [int(i) for i in sorted(as_generator(rng, func="attention_error").choice(n, size=rows, replace=False))]


def relative_error(approximate: Array, exact: Array, n: int, *, xp: Namespace) -> AttentionError:
    """The error over rows sampled from `n`, both (..., rows, e), with its standard error as a ratio of two means."""
    wide = _arrays.wide_dtype(exact, xp=xp)
    a, b = xp.astype(approximate, wide), xp.astype(exact, wide)
    lost, size = xp.sum((a - b) ** 2, axis=-1), xp.sum(b * b, axis=-1)  # (..., rows)
    rows = lost.shape[-1]
    total = xp.sum(size, axis=-1)
    ratio = xp.sum(lost, axis=-1) / total
    error = xp.sqrt(ratio)
    spread = xp.sum((lost - ratio[..., None] * size) ** 2, axis=-1) / max(1, rows - 1)
    left = max(0.0, 1 - rows / n)
    of_ratio = xp.sqrt(spread * rows * left) / total
    standard = of_ratio / (2 * xp.where(error > 0, error, xp.ones_like(error)))
    return AttentionError(error, standard, rows)
