"""Softmax-free attention as modules: `SoftAttention`, and `SoftBlock` with its feed-forward part.

Parameters bear the names of the published weight files (``W_q``, ``attn.Qlandmark_op``, ...), so that these files fit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, Unpack

import torch
from torch import Tensor, nn

from softlinalg import _inputs
from softlinalg._settings import is_one_of, shown, whole_number
from softlinalg.errors import ParameterError, ShapeError
from softlinalg.torch.functional import FULL_KERNEL_BELOW
from softlinalg.torch.inputs import checked_tensors, whole_sides
from softlinalg.torch.landmark_attention import LandmarkAttention, Published, grid_size, inverse_choice
from softlinalg.torch.landmarks import Grid

if TYPE_CHECKING:
    from softlinalg.torch.diagnostics import AttentionDiagnostics

__all__ = ["AttentionOptions", "DropPath", "LandmarkAttention", "SoftAttention", "SoftBlock", "initialize"]


class AttentionOptions(TypedDict, total=False):
    """Keyword arguments of `SoftAttention` that blocks and backbones pass on; see there."""

    landmarks: int | str | None
    sampler: str | nn.Module | None
    inverse: str | None
    normalization: str | None
    ridge: float | None
    steps: int
    tol: float | None
    gradient: str | None
    bias: bool
    full_kernel_below: int
    published: Published


class SoftAttention(nn.Module):
    r"""Softmax-free multi-head attention of a sequence or an image, at a cost linear in the number of tokens.

    Queries and values are linear maps of the tokens; keys are the queries. Every head stands on a few landmarks L taken from
    its queries: out = C (W + ridge I)^-1 C^T V with C = k(Q, L), W = k(L, L), k the Gaussian kernel of length scale
    head_dim^(1/4). If `depthwise` is given, a depthwise convolution of V over the grid is added. A last linear map follows.

    Parameters
    ----------
    dim : int
        Width of the tokens.
    num_heads : int
        Heads; divides `dim`.
    landmarks : int or "ratio", optional
        Landmarks per head, at most, whatever the number of tokens: default 49. "ratio": one for each ratio x ratio tokens,
        as published, at a cost that is not linear.
    sampler : {"pool", "conv", "kmeans", "random"} or module, optional
        Where landmarks come from: averages over a grid of cells (default), a learned strided convolution with LayerNorm and
        GELU (as published), clusters, fixed places drawn once; or a module called with (q, grid, hidden), see
        `softlinalg.torch.landmarks`.
    ratio : int, optional
        Kernel and stride of "conv" (default 4), cells of landmarks="ratio".
    depthwise : int, optional
        Odd kernel size of the depthwise convolution; default none.
    grid_dims : {2, 1}
        2 for images: `forward` then needs the grid wherever "conv" or `depthwise` is used. 1 for sequences.
    inverse : {"certified", "exact", "published", "published-2021", "auto"}, optional
        "certified" (default): certified to `tol`, each matrix by itself. "auto": the same, with full_kernel_below=400. "exact":
        Cholesky. "published": 20 Newton-Raphson steps. "published-2021": the inverse that the weights of 2021 were trained
        with; it has no ridge, and its start depends on the whole batch.
    normalization : {None, "published", "symmetric"}
        None: SOFT. "published": SOFT++, D^(-1/2) W^-1 D^(-1/2) with the row sums D of W. "symmetric": the attention matrix
        itself with its own row sums.
    ridge : float, optional
        Default 0.01, and 0 for the published SOFT++.
    steps : int, default 20
        Of the published iteration.
    tol : float, optional
        Relative error that "certified" certifies.
    gradient : {"exact", "published"}, optional
        "published" is the formula of the paper, which is not the gradient of an iteration that has not converged.
    bias : bool, default True
        Biases of the three linear maps.
    full_kernel_below : int, default 0
        Fewer tokens than these attend through the full Gaussian kernel, which is quicker than landmarks for about 400 tokens on a
        CPU. That is another operator, for which landmarks (and the parameters of "conv") do not matter: train with it.
    published : {False, True, "2021"}
        Take the published computation as the default of everything above that is not given: sampler="conv",
        landmarks="ratio", the published inverse and gradient, and for SOFT++ the start that depends on the whole batch.

    Notes
    -----
    Linear maps begin as truncated normals of deviation 0.02 with zero bias, convolutions as PyTorch makes them. In all but
    the modes "published-2021" and published=True with normalization="published", a sample does not feel the rest of its batch.
    Averaged landmarks shrink; C W^-1 C^T is then another operator than full Gaussian attention, which trains well
    (`attention_error` measures the difference).

    References
    ----------
    .. [1] Lu et al., SOFT: Softmax-free Transformer with Linear Complexity (2021).
    .. [2] Lu et al., Softmax-free Linear Transformers (2024).

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import SoftAttention
    >>> attention = SoftAttention(64, 2, sampler="conv", ratio=8, depthwise=9)
    >>> attention(torch.randn(1, 56 * 56, 64), (56, 56)).shape
    torch.Size([1, 3136, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        landmarks: int | str | None = None,
        *,
        sampler: str | nn.Module | None = None,
        ratio: int | None = None,
        depthwise: int | None = None,
        grid_dims: int = 2,
        inverse: str | None = None,
        normalization: str | None = None,
        ridge: float | None = None,
        steps: int = 20,
        tol: float | None = None,
        gradient: str | None = None,
        bias: bool = True,
        full_kernel_below: int = 0,
        published: Published = False,
    ) -> None:
        super().__init__()
        func = "SoftAttention"
        choice = inverse_choice(
            func,
            inverse=inverse,
            normalization=normalization,
            ridge=ridge,
            steps=steps,
            tol=tol,
            gradient=gradient,
            published=published,
        )
        if inverse == "auto" and not full_kernel_below and normalization != "published":
            full_kernel_below = FULL_KERNEL_BELOW
        landmarks = landmarks if landmarks is not None else ("ratio" if published else 49)
        sampler = sampler if sampler is not None else ("conv" if published else "pool")
        _check_sizes(func, dim, num_heads, depthwise, grid_dims)
        _check_sampling(func, landmarks, sampler, ratio)
        whole_number(full_kernel_below, func=func, name="full_kernel_below", minimum=0, remedy="0 is without.")
        if full_kernel_below and normalization == "published":
            message = f"{func}: full_kernel_below must be 0 with normalization='published', which needs landmarks; got {full_kernel_below}."
            raise ParameterError(f"{message} Use 'symmetric'.")
        self.dim: int = dim
        self.num_heads: int = num_heads
        self.W_q: nn.Linear = nn.Linear(dim, dim, bias=bias)
        self.W_v: nn.Linear = nn.Linear(dim, dim, bias=bias)
        self.attn: LandmarkAttention = LandmarkAttention(
            dim // num_heads,
            num_heads,
            choice,
            landmarks=landmarks,
            sampler=sampler,
            ratio=ratio if ratio is not None or sampler != "conv" else 4,
            depthwise=depthwise,
            grid_dims=grid_dims,
            full_kernel_below=full_kernel_below,
        )
        self.ff: nn.Linear = nn.Linear(dim, dim, bias=bias)
        for module in (self.W_q, self.W_v, self.ff):
            initialize(module)

    def heads(self, x: Tensor, linear: nn.Module) -> Tensor:
        """(batch, tokens, dim) through a linear map to (batch, heads, tokens, head_dim)."""
        batch, tokens, _ = x.shape
        split: Tensor = linear(x).reshape(batch, tokens, self.num_heads, self.dim // self.num_heads)
        return split.transpose(1, 2)

    def forward(self, x: Tensor, grid: Grid | None = None, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Attend.

        Parameters
        ----------
        x : Tensor, shape (batch, tokens, dim)
            Tokens; those that are not on the grid (a class token, registers) come first.
        grid : (rows, columns) or (length,), optional
            Default: a sequence of all tokens.
        key_padding_mask : bool Tensor, shape (batch, tokens), optional
            True marks tokens that count as absent, as keys and for the landmarks. Their own rows of the result mean nothing.

        Returns
        -------
        Tensor, shape (batch, tokens, dim)

        Raises
        ------
        ShapeError
            Shapes that do not fit, or no grid where one is needed.
        """
        grid = self.check(x, grid, key_padding_mask)
        out = self.attn(self.heads(x, self.W_q), self.heads(x, self.W_v), grid, key_padding_mask)
        result: Tensor = self.ff(out.transpose(1, 2).reshape(x.shape))
        return result

    def diagnostics(self) -> AttentionDiagnostics:
        """How the landmark matrices of the last batch were inverted: certified error, steps, condition, rank for each head.

        Returns
        -------
        AttentionDiagnostics
            Fields of shape (batch, heads); print it for a table.

        Raises
        ------
        ParameterError
            If there is no last batch: the module was not called, or only inside torch.compile or torch.func, or through the full kernel.
        """
        from softlinalg.torch.diagnostics import diagnose_landmarks

        landmarks = self.attn._last_landmarks
        if landmarks is None:
            message = "diagnostics: the module must have been called, outside torch.compile; got no landmarks. Call it with a batch first."
            raise ParameterError(message)
        return diagnose_landmarks(landmarks, self.attn)

    def check(self, x: Tensor, grid: Grid | None, hidden: Tensor | None) -> Grid:
        """The grid, after checking that the shapes fit."""
        func = "SoftAttention"
        (x,) = checked_tensors(func, x=x, mask=hidden)
        if x.ndim != 3 or x.shape[2] != self.dim or x.shape[1] == 0:
            message = f"{func}: x must be (batch, tokens >= 1, {self.dim}); got {tuple(x.shape)}. Flatten a grid first."
            raise ShapeError(message)
        if hidden is not None and (tuple(hidden.shape) != tuple(x.shape[:2]) or hidden.dtype != torch.bool):
            message = f"{func}: key_padding_mask must be bool {tuple(x.shape[:2])}; got {hidden.dtype} {tuple(hidden.shape)}. True hides."
            raise ShapeError(message)
        attn = self.attn
        convolves = isinstance(attn, LandmarkAttention) and (attn.sampler is None or attn.depthwise)  # another module may stand there
        if grid is None:
            if convolves and attn.grid_dims == 2:
                message = f"{func}: grid is needed by the convolutions; got None. Pass (rows, columns), or build with grid_dims=1."
                raise ShapeError(message)
            return (x.shape[1],)
        grid = whole_sides(grid, func=func, name="grid")
        if min(grid) < 1 or grid_size(grid) > x.shape[1]:
            message = f"{func}: grid must hold at most the {x.shape[1]} tokens of x; got {tuple(grid)}. Pass (rows, columns)."
            raise ShapeError(message)
        if convolves and len(grid) != attn.grid_dims:
            message = f"{func}: grid must have {attn.grid_dims} sides, as the convolutions of the module; got {tuple(grid)}. See grid_dims."
            raise ShapeError(message)
        return tuple(grid)


def _check_sizes(func: str, dim: int, num_heads: int, depthwise: int | None, grid_dims: int) -> None:
    for name, value in (("dim", dim), ("num_heads", num_heads)):
        whole_number(value, func=func, name=name, minimum=1)
    if dim % num_heads:
        message = f"{func}: num_heads must divide dim; got {num_heads} for {dim}. Published heads are 32 wide."
        raise ParameterError(message)
    if depthwise is not None and (not isinstance(depthwise, int) or depthwise < 0 or (depthwise and depthwise % 2 == 0)):
        message = f"{func}: depthwise must be an odd kernel size or None; got {shown(depthwise)}. Published are 9, 5 and 3."
        raise ParameterError(message)
    if not isinstance(grid_dims, int) or grid_dims not in (1, 2):
        message = f"{func}: grid_dims must be 1 (sequences) or 2 (images); got {shown(grid_dims)}. The default is 2."
        raise ParameterError(message)


def _check_sampling(func: str, landmarks: int | str, sampler: str | nn.Module, ratio: int | None) -> None:
    names = ("pool", "conv", "kmeans", "random")
    if not isinstance(sampler, nn.Module) and not is_one_of(sampler, names):
        message = f"{func}: sampler must be one of {', '.join(map(repr, names))} or a module; got {shown(sampler)}. The default is 'pool'."
        raise ParameterError(message)
    by_ratio = isinstance(landmarks, str) and landmarks == "ratio"
    if isinstance(landmarks, bool) or not (by_ratio or (isinstance(landmarks, int) and landmarks >= 1)):
        message = f"{func}: landmarks must be a whole number of at least 1 or 'ratio'; got {shown(landmarks)}. The default is 49."
        raise ParameterError(message)
    if by_ratio and (ratio is None or not is_one_of(sampler, ("pool", "conv"))):
        message = (
            f"{func}: landmarks='ratio' needs ratio and the sampler 'pool' or 'conv'; got ratio={shown(ratio)}. Published are 8, 4 and 2."
        )
        raise ParameterError(message)
    if ratio is not None and (isinstance(ratio, bool) or not isinstance(ratio, int) or ratio < 1):
        message = f"{func}: ratio must be a whole number of at least 1; got {shown(ratio)}. Published are 8, 4 and 2."
        raise ParameterError(message)


def initialize(module: nn.Module) -> None:
    """Begin as published models do: linear maps as truncated normals of deviation 0.02, biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class DropPath(nn.Module):
    """Stochastic depth: in training, leave out the whole branch of a sample with probability `rate`, and scale the others.

    References
    ----------
    .. [1] Huang et al., Deep networks with stochastic depth (2016).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate: float = float(rate)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return f"{self.rate:.3g}"

    def forward(self, x: Tensor) -> Tensor:
        """The branch, or zeros for some of the samples."""
        if self.rate == 0 or not self.training:
            return x
        keep = torch.empty(x.shape[0], *(1,) * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class SoftBlock(nn.Module):
    """A transformer block on softmax-free attention: y = LN(x + drop(attention(x))), out = LN(y + drop(mlp(y))).

    Parameters
    ----------
    dim, num_heads : int
        As in `SoftAttention`.
    mlp_ratio : float, default 4
        Hidden width of the feed-forward part, GELU in its tanh form, over `dim`.
    drop_path : float, default 0
        Rate of stochastic depth.
    stochastic_depth : {"sample", "element"}, optional
        "sample" (default): whole branches of a sample are left out. "element": the element-wise dropout of the published code.
    pre_norm : bool, default False
        Normalize what enters a branch instead: y = x + drop(attention(LN(x))), out = y + drop(mlp(LN(y))).
    ratio, depthwise, grid_dims, **attention
        As in `SoftAttention`; published=True also makes stochastic_depth="element" the default.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import SoftBlock
    >>> SoftBlock(64, 2, depthwise=5)(torch.randn(2, 14 * 14, 64), (14, 14)).shape
    torch.Size([2, 196, 64])
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        stochastic_depth: str | None = None,
        pre_norm: bool = False,
        ratio: int | None = None,
        depthwise: int | None = None,
        grid_dims: int = 2,
        **attention: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        if stochastic_depth is None:
            stochastic_depth = "sample" if is_one_of(attention.get("published", False), (False,)) else "element"
        if not is_one_of(stochastic_depth, ("sample", "element")):
            message = f"SoftBlock: stochastic_depth must be 'sample' or 'element'; got {shown(stochastic_depth)}. The default is 'sample'."
            raise ParameterError(message)
        drop_path = _inputs.real_scalar(drop_path, func="SoftBlock", name="drop_path", strict=False, maximum=1.0)
        if drop_path == 1:
            message = "SoftBlock: drop_path must lie in [0, 1); got 1.0. The published recipe has 0.1."
            raise ParameterError(message)
        self.pre_norm = pre_norm
        self.mha: SoftAttention = SoftAttention(dim, num_heads, ratio=ratio, depthwise=depthwise, grid_dims=grid_dims, **attention)
        hidden = int(_inputs.real_scalar(mlp_ratio, func="SoftBlock", name="mlp_ratio", maximum=1e6) * dim)
        if hidden < 1:
            message = f"SoftBlock: mlp_ratio must be at least 1 / dim; got {float(mlp_ratio):.3g}. The default is 4."
            raise ParameterError(message)
        self.norm1: nn.LayerNorm = nn.LayerNorm(dim, eps=1e-5)
        self.ff1: nn.Linear = nn.Linear(dim, hidden)
        self.act: nn.GELU = nn.GELU(approximate="tanh")
        self.ff2: nn.Linear = nn.Linear(hidden, dim)
        self.norm2: nn.LayerNorm = nn.LayerNorm(dim, eps=1e-5)
        self.drop: nn.Module = DropPath(drop_path) if stochastic_depth == "sample" else nn.Dropout(drop_path)
        for module in (self.ff1, self.ff2):
            initialize(module)

    def extra_repr(self) -> str:
        """What `repr` shows."""
        return "pre-norm" if self.pre_norm else "post-norm"

    def forward(self, x: Tensor, grid: Grid | None = None, *, key_padding_mask: Tensor | None = None) -> Tensor:
        """Tokens (batch, tokens, dim) to the same; arguments as in `SoftAttention.forward`."""
        if self.pre_norm:
            x = x + self.drop(self.mha(self.norm1(x), grid, key_padding_mask=key_padding_mask))
            out: Tensor = x + self.drop(self._mlp(self.norm2(x)))
            return out
        x = self.norm1(x + self.drop(self.mha(x, grid, key_padding_mask=key_padding_mask)))
        y: Tensor = self.norm2(x + self.drop(self._mlp(x)))
        return y

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.ff2(self.act(self.ff1(x)))
        return out
