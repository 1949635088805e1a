"""Landmarks for attention: a few points per head that stand for all queries, from the queries themselves.

A sampler is any module called as ``sampler(q, grid, hidden)``: `q` (batch, heads, tokens, head_dim) are unscaled queries
of the tokens on the grid, `grid` is (tokens,) or (rows, columns), `hidden` (batch, tokens) or None marks padding. It returns
landmarks (batch, heads, count, head_dim) in the units of `q`. Samplers here treat each sample by itself, and their count
does not grow with the grid, unless they are asked for a fixed ratio.
"""

from __future__ import annotations

import math

import array_api_compat.torch as xp
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from softlinalg._attention_full import cluster
from softlinalg._settings import shown
from softlinalg.errors import ParameterError
from softlinalg.torch.inputs import without_autocast

__all__ = ["KMeansLandmarks", "PoolLandmarks", "RandomLandmarks", "conv_landmarks", "landmark_grid"]

Grid = tuple[int, ...]


def landmark_grid(count: int, grid: Grid) -> Grid:
    """At most `count` cells over a grid, as near to square as its shape allows.

    Parameters
    ----------
    count : int
        Cells wanted; fewer come back where no good grid has exactly so many (48 for 50 on a 3:4 grid), or where the
        token grid is smaller.
    grid : tuple of int
        (tokens,) or (rows, columns).

    Returns
    -------
    tuple of int
        (count,) for a sequence, else (rows, columns), neither more than the grid has.

    Examples
    --------
    >>> landmark_grid(49, (56, 56)), landmark_grid(49, (56, 28)), landmark_grid(49, (4, 4))
    ((7, 7), (9, 5), (4, 4))
    """
    if len(grid) == 1:
        return (count,)
    height, width = grid
    if is_open(grid):  # in a program for images of any size: the cells of a square
        rows = math.isqrt(count)
        return (rows, count // rows)
    best, chosen = 0.0, (1, 1)
    for rows in range(1, min(height, count) + 1):
        columns = min(width, count // rows)
        stretch = (height * columns) / (width * rows)  # of a cell: 1 for squares
        score = rows * columns * min(stretch, 1 / stretch)
        if score > best:
            best, chosen = score, (rows, columns)
    return chosen


def as_image(x: Tensor, grid: Grid) -> Tensor:
    """(batch, heads, tokens, width) as (batch, heads * width, *grid): no copy where the heads are a view of their tokens."""
    batch, heads, _, width = x.shape
    return x.transpose(1, 2).reshape(batch, *grid, heads * width).movedim(-1, 1)


def as_heads(image: Tensor, heads: int) -> Tensor:
    """The way back: (batch, heads * width, *grid) as (batch, heads, tokens, width)."""
    tokens = image.flatten(2)  # (batch, heads * width, tokens)
    return tokens.reshape(tokens.shape[0], heads, -1, tokens.shape[2]).mT


def is_open(grid: Grid) -> bool:
    """Is a side left open, in a program that is exported for grids of any size?"""
    return any(isinstance(side, torch.SymInt) for side in grid)


def _cell_weights(side: int, cells: int, like: Tensor) -> Tensor:
    """Weights (cells, side) of the means that adaptive pooling takes, from operations that every export knows."""
    cell, place = torch.arange(cells, device=like.device)[:, None], torch.arange(side, device=like.device)
    start, stop = cell * side // cells, ((cell + 1) * side + cells - 1) // cells
    inside = ((place >= start) & (place < stop)).to(like.dtype)
    return inside / inside.sum(-1, keepdim=True)


def pooled(image: Tensor, cells: Grid) -> Tensor:
    """Means over a grid of cells; the image itself where it has that size already."""
    if is_open(tuple(image.shape[2:])):
        for axis, count in enumerate(cells, start=2):
            weights = _cell_weights(image.shape[axis], count, image)
            image = (weights @ image) if axis == image.ndim - 2 else (image @ weights.mT)
        return image
    if tuple(image.shape[2:]) == tuple(cells):
        return image
    return F.adaptive_avg_pool1d(image, cells[0]) if len(cells) == 1 else F.adaptive_avg_pool2d(image, (cells[0], cells[1]))


def _check_count(name: str, count: int) -> int:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        message = f"{name}: landmarks must be a whole number of at least 1; got {shown(count)}. The default is 49."
        raise ParameterError(message)
    return count


class _Counted(nn.Module):
    """A sampler of a given number of landmarks."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count: int = _check_count(type(self).__name__, count)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.count}"


class PoolLandmarks(_Counted):
    """Means of the queries over the cells of a grid: the default of the paper.

    Parameters
    ----------
    count : int
        Landmarks at most; see `landmark_grid`. A sequence has exactly so many cells, which overlap where it is shorter.
    ratio : int, optional
        Use cells of ratio x ratio tokens instead, so that the count grows with the grid.

    Notes
    -----
    Hidden tokens do not count: a padded sequence has the landmarks of the sequence without its padding. A cell of a grid
    in which all tokens are hidden is zero. O(tokens head_dim), for a sequence with padding O(count tokens head_dim).
    """

    def __init__(self, count: int, ratio: int | None = None) -> None:
        super().__init__(count)
        self.ratio = ratio

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.count}" if self.ratio is None else f"ratio={self.ratio}"

    def cells(self, grid: Grid) -> Grid:
        """Rows and columns of the grid of cells."""
        if self.ratio is not None:
            ratio = self.ratio
            return tuple(max(1, side // ratio) for side in grid)
        return landmark_grid(self.count, grid)

    def forward(self, q: Tensor, grid: Grid, hidden: Tensor | None = None) -> Tensor:
        """Landmarks (batch, heads, count, head_dim)."""
        batch, heads = q.shape[:2]
        cells = self.cells(grid)
        if hidden is None:
            return as_heads(pooled(as_image(q, grid), cells), heads)
        if len(grid) == 1:
            return _segment_weights(hidden, cells[0], q.dtype)[:, None] @ q
        seen = (~hidden).to(q.dtype)
        sums = pooled(as_image(q * seen[:, None, :, None], grid), cells)
        shares = pooled(seen.reshape(batch, 1, *grid), cells)
        return as_heads(sums / shares.clamp_min(torch.finfo(q.dtype).tiny), heads)


def _segment_weights(hidden: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Weights (batch, count, tokens) whose rows average the cells that adaptive pooling has without the hidden tokens."""
    place = (~hidden).cumsum(-1) - 1  # among the tokens that are seen
    length = (~hidden).sum(-1, keepdim=True)
    cell = torch.arange(count, device=hidden.device)
    start = cell * length // count  # (batch, count)
    stop = -(-(cell + 1) * length // count)  # rounded up
    inside = (place[:, None] >= start[..., None]) & (place[:, None] < stop[..., None]) & ~hidden[:, None]
    return inside.to(dtype) / (stop - start).clamp_min(1)[..., None].to(dtype)


class RandomLandmarks(_Counted):
    """Queries at places drawn once, one from each of `count` equal stretches of the tokens.

    Parameters
    ----------
    count : int
        Landmarks; at most as many as there are tokens are taken, but of a sequence with hidden tokens always so many.
    seed : int, default 0
        Of the places. They depend on the number of tokens alone, so that a sample does not feel the rest of its batch.
    """

    offsets: Tensor

    def __init__(self, count: int, seed: int = 0) -> None:
        super().__init__(count)
        self.seed = seed
        self.register_buffer("offsets", self.drawn_offsets(), persistent=False)

    def drawn_offsets(self) -> Tensor:
        """Where in its stretch each landmark lies, in [0, 1): the same for equal seeds."""
        offsets = torch.rand(self.count, generator=torch.Generator("cpu").manual_seed(self.seed), dtype=torch.float64, device="cpu")
        return offsets.float()

    def places(self, length: Tensor | int, count: int) -> Tensor:
        """Token numbers, shape (count,) or, with a tensor of lengths (batch, 1), (batch, count)."""
        stretch = torch.arange(count, device=self.offsets.device)
        inside = (self.offsets[:count].float() * 2**20).long()  # whole numbers: the same places on every device and in every type
        places = ((stretch * 2**20 + inside) * length) // (count * 2**20)
        return places.clamp_min(0)

    def forward(self, q: Tensor, grid: Grid, hidden: Tensor | None = None) -> Tensor:
        """Landmarks (batch, heads, count, head_dim)."""
        tokens = q.shape[2]
        if hidden is None:
            return q[:, :, self.places(tokens, min(self.count, tokens))]
        seen_first = hidden.to(torch.int8).sort(dim=-1, stable=True).indices  # (batch, tokens)
        places = seen_first.gather(1, self.places((~hidden).sum(-1, keepdim=True), self.count))
        return q.gather(2, places[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3]))


class KMeansLandmarks(_Counted):
    """Means of clusters of the queries: Lloyd's algorithm from tokens at even distances in the sequence.

    Parameters
    ----------
    count : int
        Clusters.
    steps : int, default 3
        Each costs O(count tokens head_dim).

    Notes
    -----
    Gradients flow through the means of the last step; which token belongs where is a constant to them. In the place of a cluster
    that has lost all its tokens stands the mean of all. Half precisions are computed in float32.
    """

    def __init__(self, count: int, steps: int = 3) -> None:
        super().__init__(count)
        self.steps = steps

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.count}, steps={self.steps}"

    def forward(self, q: Tensor, grid: Grid, hidden: Tensor | None = None) -> Tensor:
        """Landmarks (batch, heads, count, head_dim)."""
        with without_autocast(q):
            points = q.float() if q.dtype in (torch.float16, torch.bfloat16) else q
            groups = cluster(points, None if hidden is None else hidden[:, None, :], self.count, self.steps, xp=xp)
            sizes = groups.sizes[..., None]
            middle = (sizes * groups.centers).sum(-2, keepdim=True) / sizes.sum(-2, keepdim=True).clamp_min(1)
            return torch.where(sizes > 0, groups.centers, middle).to(q.dtype)


def conv_landmarks(
    q: Tensor, grid: Grid, hidden: Tensor | None, convolution: nn.Module, finish: nn.Module, *, ratio: int, count: int | None
) -> Tensor:
    """A strided convolution over the queries, LayerNorm and GELU: the published choice, one filter for all heads.

    Parameters
    ----------
    q, grid, hidden
        As every sampler has them; hidden tokens count as zeros.
    convolution : module
        Kernel and stride `ratio`, head_dim to head_dim channels.
    finish : module
        What follows, on (batch, heads, count, head_dim).
    ratio : int
        Of the convolution.
    count : int or None
        Landmarks at most: the grid is first averaged to `landmark_grid` times `ratio`, which changes nothing at the size
        of the published models (ratio 8, 4, 2 on grids of 56, 28, 14 for 49). None: as many as the grid has whole cells of
        ratio x ratio tokens, as published; a smaller grid is padded by its edge.

    Returns
    -------
    Tensor, shape (batch, heads, count, head_dim)
        In the units of `q`.
    """
    batch, heads, _, width = q.shape
    scale = math.sqrt(math.sqrt(width))  # as published, LayerNorm sees a convolution of scaled queries
    if hidden is not None:
        q = q.masked_fill(hidden[:, None, :, None], 0)
    cells = grid if count is None else tuple(ratio * side for side in landmark_grid(count, grid))
    if not is_open(grid) and cells == tuple(grid):
        image = q.reshape(batch * heads, *grid, width).movedim(-1, 1)  # channels last
    else:
        image = pooled(as_image(q, grid), cells).reshape(batch * heads, width, *cells)
    if count is None and not is_open(grid) and min(grid) < ratio:
        missing = [max(0, ratio - side) for side in reversed(grid)]
        image = F.pad(image, [amount for side in missing for amount in (0, side)], mode="replicate")
    tokens = as_heads(convolution(image), 1).reshape(batch, heads, -1, width)
    landmarks: Tensor = finish(tokens / scale) * scale
    return landmarks
