"""Kernels and the point sets they are tested on: what the tests of kernels share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import event
from hypothesis import strategies as st

from softlinalg._kernels import Gaussian, Laplacian, Matern, kernel_from_dict

KERNELS = [Gaussian(), Laplacian(), Matern(nu=0.5), Matern(nu=1.5), Matern(nu=2.5)]
names = {"ids": lambda kernel: f"{kernel.name}{getattr(kernel, 'nu', '')}"}
T = 30
"""Slack on the units of rounding, as in LAPACK's tests."""

KINDS = ("normal", "clustered", "duplicated", "collinear", "one-far", "offset", "all-equal")


def unit(dtype) -> float:
    return float(np.finfo(dtype).eps) / 2


def with_scale(kernel, length_scale):
    return kernel_from_dict({**kernel.to_dict(), "length_scale": length_scale})


def points(kind: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Point clouds that break naive distances, in units of the length scale."""
    x = rng.standard_normal((n, d))
    if kind == "clustered":
        x = x * 0.01 + 40.0 * rng.integers(0, 3, (n, 1))
    elif kind == "duplicated":
        x = x[rng.integers(0, max(1, n // 3), n)]
    elif kind == "collinear":
        x = rng.standard_normal((n, 1)) * rng.standard_normal(d)
    elif kind == "one-far":
        x[rng.integers(n)] += 10.0 ** rng.uniform(1, 12)
    elif kind == "offset":
        x += 10.0 ** rng.uniform(0, 6)
    elif kind == "all-equal":
        x[:] = x[0]
    return x


@dataclass
class Case:
    kind: str
    x: np.ndarray
    y: np.ndarray
    rng: np.random.Generator

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.x.shape[0], self.y.shape[0], self.x.shape[1]


@st.composite
def cases(draw, dtypes=("float32", "float64"), kinds=KINDS, most=12):
    """Two sets of points, of one cloud, some of them shared."""
    kind, dtype = draw(st.sampled_from(kinds)), draw(st.sampled_from(dtypes))
    n, m, d = draw(st.integers(1, most)), draw(st.integers(1, most)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top = float(np.finfo(dtype).max)
    cloud = np.clip(points(kind, n + m, d, rng), -top, top).astype(dtype)
    x, y = cloud[:n].copy(), cloud[n:].copy()
    if draw(st.booleans()):
        y[0] = x[-1]
    event(f"{kind}, {dtype}")
    return Case(kind, x, y, rng)


kernels = st.sampled_from(KERNELS)
