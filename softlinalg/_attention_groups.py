r"""Softmax attention with few keys for each query, seen from where the query stands.

exp(s q.k) = exp(s (q - r).k) exp(s r.k) for any reference r. Queries are sorted into groups of neighbours, and r is the mean of a
group: the last factor becomes a weight of the key, exact at r, and what is left to approximate is s (q - r).k, which is small. Keys
are sorted into cells, each of which then stands for its keys by their weighted mean. Both sortings halve repeatedly along the direction
of the largest spread, so that all sizes are known before a number is seen: nothing is random, and nothing depends on absent tokens.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from softlinalg import _arrays
from softlinalg._typing import Array, Namespace

__all__ = ["Cells", "halved", "tilted_softmax"]

_POWER_STEPS = 4
"""Of the power method for the direction of the largest spread. It need not converge: any direction with much spread serves."""


class Cells(NamedTuple):
    """Rows sorted into cells of nearly equal size; cells of fewer rows end in places that do not count."""

    index: Array
    """Row number at each place, (..., cells, size)."""
    counts: Array
    """Which places count, boolean, (..., cells, size)."""
    cell: Array
    """Cell of each row, (..., rows); that of an absent row is the last one."""
    place: Array
    """Place of each row in its cell, (..., rows)."""


def halved(
    x: Array, hidden: Array | None, levels: int, *, metric: Array | None = None, weights: Array | None = None, xp: Namespace
) -> Cells:
    """Sort rows into 2^levels cells: each level halves every cell across the direction of its largest spread.

    Parameters
    ----------
    x : array, shape (..., rows, d)
    hidden : boolean array, shape (..., rows), or None
        Rows that count as absent: they get no place, and do not change where the others are.
    metric : array, shape (..., d, d), optional
        Symmetric positive semidefinite; the spread in a direction is that of x^T metric x. Default: the identity.
    weights : array, shape (..., rows), optional
        Of the rows in the spread, not negative.

    Notes
    -----
    O(levels rows d) beside the sorting. Sizes of cells differ by one at most.
    """
    x, lead, rows = _arrays.detach(x), tuple(x.shape[:-2]), x.shape[-2]
    device = _arrays.device_of(x)
    # What depends on absent rows alone keeps their axes: with heads that hide the same rows it is done once for all of them.
    absent = xp.zeros((rows,), dtype=xp.bool, device=device) if hidden is None else hidden
    weights = xp.ones_like(x[..., 0]) if weights is None else _arrays.detach(weights)
    # Absent rows come last, the others keep their order.
    order = xp.broadcast_to(xp.argsort(xp.astype(absent, xp.int64), axis=-1, stable=True), (*lead, rows))
    present = xp.sum(xp.astype(~absent, xp.int64), axis=-1, keepdims=True)  # (..., 1)
    inside = xp.arange(rows, device=device) < present
    for level in range(levels):
        index, counts, cell, place = _layout(order, present, 2**level, xp=xp)
        sorted_places = xp.argsort(_projections(x, index, counts, weights, metric, xp=xp), axis=-1, stable=True)
        index = _take(index, sorted_places, xp=xp)
        moved = _take(xp.reshape(index, (*lead, -1)), cell * index.shape[-1] + place, xp=xp)
        order = xp.where(inside, moved, order)
    index, counts, cell, place = _layout(order, present, 2**levels, xp=xp)
    back = xp.argsort(order, axis=-1, stable=True)  # where each row stands
    cell, place = (_take(xp.broadcast_to(values, (*lead, rows)), back, xp=xp) for values in (cell, place))
    return Cells(index, counts, cell, place)


def _layout(order: Array, present: Array, cells: int, *, xp: Namespace) -> tuple[Array, Array, Array, Array]:
    """Rows at the places of each cell, which of these count, and cell and place of each position in the order.

    Cell j holds the positions from floor(j present / cells) on; these bounds are among those of twice as many cells.
    """
    rows, device = order.shape[-1], _arrays.device_of(order)
    size = -(-rows // cells)
    j = xp.arange(cells, device=device)
    start = (j * present) // cells  # (..., cells)
    stop = ((j + 1) * present) // cells
    position = start[..., None] + xp.arange(size, device=device)
    counts = position < stop[..., None]
    flat = xp.where(position < rows, position, xp.full_like(position, rows - 1))
    flat = xp.reshape(flat, (*flat.shape[:-2], cells * size))
    index = xp.reshape(_take(order, flat, xp=xp), (*order.shape[:-1], cells, size))
    i = xp.arange(rows, device=device)
    some = xp.where(present > 0, present, xp.ones_like(present))
    cell = ((i + 1) * cells + some - 1) // some - 1  # the last j whose cell begins at or before i
    cell = xp.where(cell < cells, cell, xp.full_like(cell, cells - 1))
    place = i - _take(start, cell, xp=xp)
    inside = place < size
    return index, counts, cell, xp.where(inside, place, xp.full_like(place, size - 1))


def _projections(x: Array, index: Array, counts: Array, weights: Array, metric: Array | None, *, xp: Namespace) -> Array:
    """Places of the rows of each cell along its direction of the largest spread, infinite where nothing counts; (..., cells, size)."""
    points = take_rows(x, index, xp=xp)  # (..., cells, size, d)
    zero = xp.zeros_like(points[..., 0])
    flat = xp.reshape(index, (*index.shape[:-2], -1))
    w = xp.where(counts, xp.reshape(_take(weights, flat, xp=xp), index.shape), zero)
    total = xp.sum(w, axis=-1, keepdims=True)
    w = (w / xp.where(total > 0, total, xp.ones_like(total)))[..., None]
    points = points - xp.sum(w * points, axis=-2, keepdims=True)
    weighted = w * points
    # The axis of the largest spread is a start that is never orthogonal to all there is.
    spread = xp.sum(weighted * points, axis=-2)  # (..., cells, d)
    axes = xp.arange(x.shape[-1], device=_arrays.device_of(x))
    direction = xp.astype(xp.argmax(spread, axis=-1)[..., None] == axes, x.dtype)  # (..., cells, d)
    covariance = xp.matrix_transpose(points) @ weighted  # once, in place of two products with the points in each step
    for _ in range(_POWER_STEPS):
        direction = (covariance @ direction[..., None])[..., 0]
        if metric is not None:
            direction = direction @ metric  # which is symmetric
        size = xp.max(xp.abs(direction), axis=-1, keepdims=True)
        direction = direction / xp.where(size > 0, size, xp.ones_like(size))
    return xp.where(counts, (points @ direction[..., None])[..., 0], xp.full_like(zero, math.inf))


def take_rows(x: Array, index: Array, *, xp: Namespace) -> Array:
    """Rows (..., cells, size, d) of x (..., rows, d) by their numbers (..., cells, size)."""
    lead, (rows, features) = tuple(x.shape[:-2]), x.shape[-2:]
    flat = _numbers(xp.reshape(index, (*index.shape[:-2], -1)), lead, rows, xp=xp)
    return xp.reshape(xp.take(xp.reshape(x, (math.prod(lead) * rows, features)), flat, axis=0), (*lead, *index.shape[-2:], features))


def _take(x: Array, index: Array, *, xp: Namespace) -> Array:
    """Entries (..., m) of x (..., rows) by their numbers (..., m), whose leading axes may be fewer than those of x."""
    lead, rows = tuple(x.shape[:-1]), x.shape[-1]
    lead = lead if len(lead) >= index.ndim - 1 else tuple(index.shape[:-1])
    x = xp.broadcast_to(x, (*lead, rows))
    flat = _numbers(index, lead, rows, xp=xp)
    return xp.reshape(xp.take(xp.reshape(x, (math.prod(lead) * rows,)), flat, axis=0), (*lead, index.shape[-1]))


def _numbers(index: Array, lead: tuple[int, ...], rows: int, *, xp: Namespace) -> Array:
    """Numbers of rows in each member, (..., m), as numbers in the members laid end to end: whole rows are then copied at once."""
    members = math.prod(lead)
    index = xp.reshape(xp.broadcast_to(index, (*lead, index.shape[-1])), (members, index.shape[-1]))
    first = rows * xp.arange(members, dtype=index.dtype, device=_arrays.device_of(index))
    return xp.reshape(index + first[:, None], (members * index.shape[-1],))


def tilted_softmax(
    q: Array, k: Array, v: Array, hidden: Array | None, absent: Array | None, *, count: int, groups: int, scale: float, xp: Namespace
) -> Array:
    r"""Softmax attention with about `count` weighted means of keys for each of about `groups` groups of queries.

    Parameters
    ----------
    q, k, v : arrays, shapes (..., n, d), (..., keys, d), (..., keys, e)
    hidden, absent : boolean arrays, shapes (..., keys) and (..., n), or None
        Keys and queries that count as absent; the output of absent queries is zero.
    count, groups : int
        At most; the largest powers of two that are not above them are used.

    Notes
    -----
    With r the mean of a group, the output for its queries is sum_c W_c exp(s (q - r).m_c) u_c over the same sum without u_c, where
    the sums run over cells and W_c = sum_j exp(s r.k_j), m_c and u_c the means of keys and values of a cell in these weights. It is
    exact for q = r, and where the keys of each cell are equal. O((n count + keys groups)(d + e) + (n + keys) d log) time.
    """
    lead = tuple(q.shape[:-2])
    if hidden is not None:
        k, v = (xp.where(hidden[..., None], xp.zeros_like(x), x) for x in (k, v))
    if absent is not None:
        q = xp.where(absent[..., None], xp.zeros_like(q), q)
    by_group = halved(q, absent, _levels(groups, q.shape[-2]), xp=xp)
    queries = take_rows(q, by_group.index, xp=xp)  # (..., groups, size, d)
    there = xp.astype(by_group.counts, q.dtype)[..., None]
    number = xp.sum(there, axis=-2, keepdims=True)
    middle = xp.sum(there * queries, axis=-2, keepdims=True) / xp.where(number > 0, number, xp.ones_like(number))
    tilt = _tilts(middle[..., 0, :], k, hidden, scale, xp=xp)  # (..., keys, groups): softmax over the keys at each reference
    seen = xp.astype(xp.matrix_transpose(number[..., 0]) > 0, q.dtype)  # (..., 1, groups)
    mass = xp.sum(tilt * seen, axis=-1) / xp.sum(seen, axis=-1)
    moved = there * (queries - middle)
    flat = _arrays.detach(xp.reshape(moved, (*lead, -1, q.shape[-1])))
    metric = xp.matrix_transpose(flat) @ flat  # what the distances between keys matter for
    by_cell = halved(k, hidden, _levels(count, k.shape[-2]), metric=metric, weights=mass, xp=xp)
    keys, values, total = _cell_means(k, v, tilt, by_cell, xp=xp)
    none = total == 0
    bias = xp.log(xp.where(none, xp.ones_like(total), total))
    bias = xp.where(none, xp.full_like(bias, -math.inf), bias)
    logits = (scale * moved) @ xp.matrix_transpose(keys) + bias[..., None, :]  # (..., groups, size, cells)
    top = _arrays.detach(xp.max(logits, axis=-1, keepdims=True))
    shares = xp.exp(logits - xp.where(top > -math.inf, top, xp.zeros_like(top)))
    sums = xp.sum(shares, axis=-1, keepdims=True)
    out = (shares @ values) / xp.where(sums == 0, xp.ones_like(sums), sums)  # (..., groups, size, e)
    places = by_group.cell * out.shape[-2] + by_group.place
    rows = take_rows(xp.reshape(out, (*lead, -1, v.shape[-1])), places[..., None], xp=xp)[..., 0, :]
    return rows if absent is None else xp.where(absent[..., None], xp.zeros_like(rows), rows)


def _levels(count: int, rows: int) -> int:
    """Halvings for at most `count` cells. Where each row has one to itself more change nothing: padding does not change the result."""
    return min(count.bit_length() - 1, max(0, rows - 1).bit_length())


def _tilts(references: Array, k: Array, hidden: Array | None, scale: float, *, xp: Namespace) -> Array:
    """exp(scale r.k), over its sum over the keys, (..., keys, groups); zeros where there is no key."""
    logits = scale * (k @ xp.matrix_transpose(references))
    if hidden is not None:
        logits = xp.where(hidden[..., None], xp.full_like(logits, -math.inf), logits)
    top = _arrays.detach(xp.max(logits, axis=-2, keepdims=True))
    values = xp.exp(logits - xp.where(top > -math.inf, top, xp.zeros_like(top)))
    total = xp.sum(values, axis=-2, keepdims=True)
    return values / xp.where(total == 0, xp.ones_like(total), total)


def _cell_means(k: Array, v: Array, tilt: Array, by_cell: Cells, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """Weighted means of keys and values of each cell for each group of queries, (..., groups, cells, d or e), and the sums of weights."""
    weights = take_rows(tilt, by_cell.index, xp=xp)  # (..., cells, size, groups)
    weights = xp.where(by_cell.counts[..., None], weights, xp.zeros_like(weights))
    total = xp.sum(weights, axis=-2, keepdims=True)
    share = xp.matrix_transpose(weights / xp.where(total == 0, xp.ones_like(total), total))
    keys, values = (xp.moveaxis(share @ take_rows(x, by_cell.index, xp=xp), -2, -3) for x in (k, v))
    return keys, values, xp.matrix_transpose(total[..., 0, :])
