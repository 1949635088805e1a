"""Rows, the blocks they arrive in, and equality of bits: what the tests of streaming share."""

from __future__ import annotations

from typing import Any

import numpy as np

from softlinalg import Gaussian

N, D = 3000, 3
X = np.random.default_rng(0).normal(size=(N, D))
Y = np.sin(X[:, 0]) * X[:, 1] + 50.0
KERNEL = Gaussian(1.5)
LANDMARKS = X[:40].copy()


def blocks_of(x: np.ndarray, y: np.ndarray | None, lengths: list[int]) -> Any:
    """A function that begins an iterator over blocks of these lengths, over and over."""

    def begin() -> Any:
        start, i = 0, 0
        while start < len(x):
            stop = start + lengths[i % len(lengths)]
            yield x[start:stop] if y is None else (x[start:stop], y[start:stop])
            start, i = stop, i + 1

    return begin


def same_bits(a: Any, b: Any) -> bool:
    """Whether two results of streaming agree in every bit of sums and decomposition."""
    sums = all(np.array_equal(u, v) for u, v in zip(a.sums, b.sums, strict=True))
    d, e = a.decomposition, b.decomposition
    return sums and all(
        np.array_equal(u, v)
        for u, v in (
            (d.landmarks, e.landmarks),
            (d.eigenvalues, e.eigenvalues),
            (d._map.map, e._map.map),
            (np.array([d.trace, d.trace_error, d.trace_error_floor]), np.array([e.trace, e.trace_error, e.trace_error_floor])),
        )
    )
