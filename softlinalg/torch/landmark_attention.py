"""The part of softmax-free attention between its linear maps, and how a module asks for an inverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from softlinalg import _arrays
from softlinalg._attention import default_ridge
from softlinalg._settings import is_one_of, shown
from softlinalg.errors import ParameterError
from softlinalg.torch.functional import gaussian_attention, soft_attention
from softlinalg.torch.landmarks import Grid, KMeansLandmarks, PoolLandmarks, RandomLandmarks, as_heads, as_image, conv_landmarks

__all__ = ["InverseChoice", "LandmarkAttention", "Published", "grid_size", "inverse_choice"]

Published = Literal[False, True, "2021"]


class InverseChoice(NamedTuple):
    """How a module asks for the inverse of its landmark matrix: the arguments of `soft_attention`."""

    name: str
    inverse: str
    normalization: str | None
    ridge: float | None
    steps: int
    tol: float | None
    gradient: str
    published_alpha: str

    @property
    def resolved_ridge(self) -> float:
        """The ridge that is added: what was given, or the default of `soft_attention`."""
        return default_ridge(self.inverse, self.normalization) if self.ridge is None else self.ridge

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `soft_attention` and `landmark_inverse`."""
        arguments = self._asdict()
        del arguments["name"]
        return arguments


INVERSES = ("certified", "exact", "published", "published-2021", "auto")


def inverse_choice(
    func: str,
    *,
    inverse: str | None,
    normalization: str | None,
    ridge: float | None,
    steps: int,
    tol: float | None,
    gradient: str | None,
    published: Published,
) -> InverseChoice:
    """Fill in what was left open and refuse what does not go together."""
    if not is_one_of(published, (False, True, "2021")):
        message = f"{func}: published must be True, False or '2021'; got {shown(published)}. The default is False."
        raise ParameterError(message)
    if inverse is None:
        inverse = {False: "certified", True: "published", "2021": "published-2021"}[published]
    if not is_one_of(inverse, INVERSES):
        listed = ", ".join(map(repr, INVERSES))
        message = f"{func}: inverse must be one of {listed}; got {shown(inverse)}. The default is 'certified'."
        raise ParameterError(message)
    if not is_one_of(normalization, (None, "published", "symmetric")):
        message = f"{func}: normalization must be None, 'published' or 'symmetric'; got {shown(normalization)}. The default is None."
        raise ParameterError(message)
    if inverse == "auto":  # where the full kernel serves is decided by the module
        inverse = "certified"
    older = inverse == "published-2021"
    if older and normalization is not None:
        message = f"{func}: normalization must be None with the inverse of 2021; got {normalization!r}. Use inverse='published' with it."
        raise ParameterError(message)
    whole_batch = older or (bool(published) and normalization == "published")
    if gradient is None:
        # The published SOFT has a formula of its own for the gradient; the others differentiate their iteration.
        gradient = "published" if published and not whole_batch else "exact"
    return InverseChoice(
        name=inverse,
        inverse="published" if older else inverse,
        normalization=normalization,
        ridge=0.0 if older and ridge is None else ridge,
        steps=steps,
        tol=tol,
        gradient=gradient,
        published_alpha="batch" if whole_batch else "matrix",
    )


class LandmarkAttention(nn.Module):
    """What `SoftAttention` does between its linear maps: landmarks, attention, and the depthwise convolution of the values.

    Parameters
    ----------
    head_dim, num_heads : int
        Width and number of heads.
    choice : InverseChoice
        How to invert.
    landmarks : int or "ratio"
        Count at most, or one for each ratio x ratio tokens.
    sampler : str or module
        "conv", "pool", "kmeans", "random", or a module (softlinalg.torch.landmarks says how it is called).
    ratio : int or None
        Kernel and stride of "conv", cells of "pool" with landmarks="ratio".
    depthwise : int or None
        Kernel of the depthwise convolution, odd; None or 0 for none.
    grid_dims : {2, 1}
        Images or sequences.
    full_kernel_below : int
        Fewer tokens than these attend through the full kernel, without landmarks.
    """

    def __init__(
        self,
        head_dim: int,
        num_heads: int,
        choice: InverseChoice,
        *,
        landmarks: int | str,
        sampler: str | nn.Module,
        ratio: int | None,
        depthwise: int | None,
        grid_dims: int,
        full_kernel_below: int = 0,
    ) -> None:
        super().__init__()
        self.head_dim: int = head_dim
        self.num_heads: int = num_heads
        self.grid_dims: int = grid_dims
        self.choice: InverseChoice = choice
        self.landmarks: int | str = landmarks
        self.ratio: int | None = ratio
        self.full_kernel_below = full_kernel_below
        self.sampler: nn.Module | None = None
        self.sampler_name: str = sampler if isinstance(sampler, str) else type(sampler).__name__
        convolution = nn.Conv2d if grid_dims == 2 else nn.Conv1d
        count = None if isinstance(landmarks, str) else landmarks
        if sampler == "conv":
            assert ratio is not None
            self.Qlandmark_op: nn.Module = convolution(head_dim, head_dim, ratio, stride=ratio, bias=False)
            self.Qnorm_act: nn.Sequential = nn.Sequential(nn.LayerNorm(head_dim, eps=1e-5), nn.GELU())
        elif sampler == "pool":
            self.sampler = PoolLandmarks(count or 1, ratio if count is None else None)
        elif sampler == "kmeans":
            self.sampler = KMeansLandmarks(count or 1)
        elif sampler == "random":
            self.sampler = RandomLandmarks(count or 1)
        else:
            assert isinstance(sampler, nn.Module)
            self.sampler = sampler
        self.depthwise: int | None = depthwise or None
        if self.depthwise:
            self.conv: nn.Module = convolution(
                num_heads, num_heads, self.depthwise, padding=self.depthwise // 2, groups=num_heads, bias=False
            )
        self._last_landmarks: Tensor | None = None

    def extra_repr(self) -> str:
        """What `repr` shows."""
        sampler = self.sampler_name + (
            f" of ratio {self.ratio}" if self.ratio is not None and self.sampler_name in ("conv", "pool") else ""
        )
        choice = self.choice
        words = [f"{self.num_heads} heads of {self.head_dim}", f"landmarks={self.landmarks} ({sampler})", f"inverse={choice.name}"]
        if choice.normalization is not None:
            words.append(f"normalization={choice.normalization}")
        if choice.ridge is not None:
            words.append(f"ridge={choice.ridge:g}")
        if choice.gradient != "exact":
            words.append(f"gradient={choice.gradient}")
        if self.full_kernel_below:
            words.append(f"full kernel below {self.full_kernel_below} tokens")
        return ", ".join(words)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last_landmarks": None}  # what the last batch left is no part of the module

    def find_landmarks(self, q: Tensor, grid: Grid, hidden: Tensor | None = None) -> Tensor:
        """Landmarks (batch, heads, count, head_dim) of the queries of tokens on the grid."""
        if self.sampler is None:
            count = None if isinstance(self.landmarks, str) else self.landmarks
            assert self.ratio is not None
            return conv_landmarks(q, grid, hidden, self.Qlandmark_op, self.Qnorm_act, ratio=self.ratio, count=count)
        landmarks: Tensor = self.sampler(q, grid, hidden)
        return landmarks

    def forward(self, q: Tensor, v: Tensor, grid: Grid, hidden: Tensor | None = None) -> Tensor:
        """Attention of (batch, heads, tokens, head_dim); tokens beside the grid come first."""
        beside = q.shape[2] - grid_size(grid)
        if q.shape[2] < self.full_kernel_below:
            self._last_landmarks = None
            out = gaussian_attention(q, v, normalization=self.choice.normalization, key_padding_mask=hidden)
        else:
            on_grid, shown = (q, hidden) if beside == 0 else (q[:, :, beside:], None if hidden is None else hidden[:, beside:])
            landmarks = self.find_landmarks(on_grid, grid, shown)
            self._last_landmarks = None if _arrays.is_traced(landmarks) else landmarks.detach()
            out = soft_attention(q, v, landmarks, key_padding_mask=hidden, **self.choice.arguments())
        if not self.depthwise:
            return out
        if hidden is not None:
            v = v.masked_fill(hidden[:, None, :, None], 0)
        added = self._convolved(v if beside == 0 else v[:, :, beside:], grid)
        return out + (added if beside == 0 else F.pad(added, (0, 0, beside, 0)))

    def _convolved(self, v: Tensor, grid: Grid) -> Tensor:
        """The depthwise term. One filter serves all channels of a head: as groups of one channels-last convolution."""
        heads, width = v.shape[1], v.shape[3]
        image = as_image(v, grid)
        weight = cast("Tensor", self.conv.weight).repeat_interleave(width, dim=0)
        convolve: Callable[..., Tensor] = F.conv2d if self.grid_dims == 2 else F.conv1d
        out = convolve(image, weight, padding=weight.shape[-1] // 2, groups=heads * width)
        return as_heads(out, heads)


def grid_size(grid: Grid) -> int:
    """Number of tokens on a grid."""
    return math.prod(grid)
