"""The different rows of a data set: what landmarks and length scales are to be chosen from where rows repeat or have weights."""

from __future__ import annotations

import numpy as np

from softlinalg import _arrays
from softlinalg._typing import Array, Namespace

__all__ = ["DISTINCT_ROWS", "distinct_rows"]

DISTINCT_ROWS = 10_000
"""Rows up to which `distinct_rows` looks for equal ones: that takes milliseconds."""


def distinct_rows(x: Array, weights: Array | None = None, *, xp: Namespace) -> Array:
    """The different rows of positive weight, in an order of their own; of more than `DISTINCT_ROWS` all of positive weight, as they are.

    A choice made from these does not depend on the order of the rows, nor on whether a row is repeated or has weight 2.

    Parameters
    ----------
    x : array, shape (n, d)
    weights : array, shape (n,), optional
        Not negative, not all zero.
    """
    n = int(x.shape[0])
    rows = np.arange(n) if weights is None else np.flatnonzero(_arrays.to_numpy(weights) > 0)
    if len(rows) > DISTINCT_ROWS:
        return x if len(rows) == n else _arrays.take_rows(x, rows, xp=xp)
    host = np.ascontiguousarray(_arrays.to_numpy(x)[rows]) + 0  # a copy in which -0 is 0
    if host.shape[1] == 0:
        return _arrays.take_rows(x, rows[:1], xp=xp)
    as_bytes = host.view(np.dtype((np.void, host.dtype.itemsize * host.shape[1])))[:, 0]
    _, first = np.unique(as_bytes, return_index=True)
    return _arrays.take_rows(x, rows[first], xp=xp)
