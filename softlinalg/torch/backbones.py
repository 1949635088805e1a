"""Image backbones on softmax-free attention: the ten published sizes, for images of any size.

Parameters bear the names of the published weight files, so that `load_state_dict` takes these as they are;
`load_published_weights` also resizes position embeddings and reports what does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict, Unpack, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from softlinalg._settings import is_one_of, shown
from softlinalg.errors import ParameterError, ShapeError
from softlinalg.torch.attention import AttentionOptions, DropPath, SoftBlock, initialize
from softlinalg.torch.diagnostics import ModelDiagnostics, diagnose
from softlinalg.torch.inputs import checked_tensors
from softlinalg.torch.landmarks import is_open

__all__ = [
    "BackboneOptions",
    "SoftBackbone",
    "published_code_small",
    "soft_huge",
    "soft_large",
    "soft_medium",
    "soft_norm_huge",
    "soft_norm_large",
    "soft_norm_medium",
    "soft_norm_small",
    "soft_norm_tiny",
    "soft_small",
    "soft_tiny",
]

POOLS = ("token", "avg", "max", "none")


class BackboneOptions(AttentionOptions, total=False):
    """Keyword arguments of `SoftBackbone` that the named models pass on; see there."""

    num_classes: int
    in_chans: int
    img_size: int | tuple[int, int]
    drop_path: float
    drop: float
    global_pool: str
    grad_checkpointing: bool


class _Sizes(TypedDict):
    """Of the stages of a named model."""

    dims: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


class PatchEmbedding(nn.Module):
    """3 x 3 convolutions, each with batch normalization and ReLU; `strides` halve the image, rounding up."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, stride in zip(channels[:-1], channels[1:], strides, strict=True):
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        self.proj: nn.Sequential = nn.Sequential(*layers)
        for module in self.proj:
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast("Tensor", module.bias))

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Tokens (batch, rows * columns, width) of an image, and their grid."""
        if self.training and image.device.type == "cpu":
            image = image.contiguous()  # gradients of large channels-last maps take oneDNN twice as long as those of other maps
        image = self.proj(image)
        return image.flatten(2).mT.contiguous(), (image.shape[2], image.shape[3])


class SoftmaxAttention(nn.Module):
    """Ordinary attention, with a joint linear map for keys and values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q: nn.Linear = nn.Linear(dim, dim)
        self.kv: nn.Linear = nn.Linear(dim, 2 * dim)
        self.proj: nn.Linear = nn.Linear(dim, dim)
        for module in (self.q, self.kv, self.proj):
            initialize(module)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (batch, tokens, dim) to the same."""
        batch, tokens, dim = x.shape
        q = self.q(x).reshape(batch, tokens, self.num_heads, -1).transpose(1, 2)
        k, v = self.kv(x).reshape(batch, tokens, 2, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.proj(out.transpose(1, 2).reshape(batch, tokens, dim))
        return result


class SoftmaxBlock(nn.Module):
    """A pre-norm transformer block with softmax attention: the last stage, where tokens are few."""

    def __init__(self, dim: int, num_heads: int, *, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        self.norm1: nn.LayerNorm = nn.LayerNorm(dim, eps=1e-6)
        self.attn: SoftmaxAttention = SoftmaxAttention(dim, num_heads)
        self.norm2: nn.LayerNorm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp: nn.ModuleDict = nn.ModuleDict({"fc1": nn.Linear(dim, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, dim)})
        self.drop: DropPath = DropPath(drop_path)
        for module in self.mlp.values():
            initialize(module)

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Tokens (batch, tokens, dim) to the same; the grid does not matter."""
        x = x + self.drop(self.attn(self.norm1(x)))
        y = self.mlp["fc2"](self.mlp["act"](self.mlp["fc1"](self.norm2(x))))
        out: Tensor = x + self.drop(y)
        return out


class SoftBackbone(nn.Module):
    """Four stages of transformer blocks: three on softmax-free attention, the last on softmax attention with a class token.

    Parameters
    ----------
    dims, heads, depths : four ints each
        Width, heads and number of blocks of each stage. The image is 4, 8, 16 and 32 times smaller there.
    ratios, depthwise : three ints each
        Of the landmark convolution and of the depthwise convolution in the first three stages.
    mlp_ratio : float, default 4
        Hidden width of the feed-forward parts over the width of the tokens.
    num_classes : int, default 1000
        Of the classifier; 0 for none, the features then come out.
    in_chans : int, default 3
        Channels of an image.
    img_size : int or (rows, columns), default 224
        Image for which position embeddings are stored. Others work as well: they are interpolated.
    drop_path : float, default 0
        Rate of stochastic depth in the last block; it grows linearly from zero. The published recipe has 0.1.
    drop : float, default 0
        Dropout before the classifier.
    global_pool : {"token", "avg", "max", "none"}
        What the classifier sees: the class token (as published), the mean or largest of the other tokens, or every token.
    grad_checkpointing : bool, default False
        Keep only the inputs of the blocks for the backward pass, and compute the rest again.
    **attention
        As in `SoftAttention`. Defaults here: sampler="conv" and landmarks=49, so that published weights fit and cost is linear
        at every size. published=True takes the published computation: landmarks="ratio", the published inverse and
        gradient, element-wise dropout instead of stochastic depth in the first three stages.

    Notes
    -----
    The first stages cost O(tokens), whatever the image; the last has tokens^2 with 1/1024 of the pixels. Images of any size and
    shape work, also smaller than 32 pixels: each stage rounds up. In evaluation, and in training but for batch normalization
    and what is random, an image does not feel its batch, except with published=True in the models with
    normalization="published" and published="2021".

    Linear maps, position embeddings and the class token begin as truncated normals of deviation 0.02, convolutions of the
    patch embeddings as He et al. (2015).

    References
    ----------
    .. [1] Lu et al., SOFT: Softmax-free Transformer with Linear Complexity (2021).
    .. [2] Lu et al., Softmax-free Linear Transformers (2024).

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_tiny
    >>> model = soft_tiny(num_classes=10).eval()
    >>> with torch.no_grad():
    ...     logits, maps = model(torch.zeros(1, 3, 64, 48)), model.features(torch.zeros(1, 3, 64, 48))
    >>> logits.shape, [tuple(map.shape[1:]) for map in maps]
    (torch.Size([1, 10]), [(64, 16, 12), (128, 8, 6), (320, 4, 3), (512, 2, 2)])
    """

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 320, 512),
        heads: Sequence[int] = (2, 4, 10, 16),
        depths: Sequence[int] = (1, 2, 3, 2),
        *,
        ratios: Sequence[int] = (8, 4, 2),
        depthwise: Sequence[int | None] = (9, 5, 3),
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        drop_path: float = 0.0,
        drop: float = 0.0,
        global_pool: str = "token",
        grad_checkpointing: bool = False,
        **attention: Unpack[AttentionOptions],
    ) -> None:
        super().__init__()
        for name, values, length in (
            ("dims", dims, 4),
            ("heads", heads, 4),
            ("depths", depths, 4),
            ("ratios", ratios, 3),
            ("depthwise", depthwise, 3),
        ):
            if len(values) != length:
                message = (
                    f"SoftBackbone: {name} must have {length} entries, one per stage; got {len(values)}. See soft_tiny for an example."
                )
                raise ParameterError(message)
        size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if in_chans < 1 or len(size) != 2 or min(size) < 1:
            message = f"SoftBackbone: in_chans and img_size must be positive; got {in_chans} and {size}. The defaults are 3 and 224."
            raise ParameterError(message)
        self.dims: tuple[int, ...] = tuple(dims)
        self.depths: tuple[int, ...] = tuple(depths)
        self.in_chans: int = in_chans
        self.grad_checkpointing: bool = grad_checkpointing
        self.published = attention.get("published", False)
        self.base_grids: list[tuple[int, int]] = []
        for stage, width in enumerate(dims, start=1):
            stride = 2 ** (stage + 1)
            grid = (-(-size[0] // stride), -(-size[1] // stride))  # rounded up, as the strided convolutions do
            self.base_grids.append(grid)
            self.register_parameter(f"pos_embed{stage}", nn.Parameter(torch.zeros(1, grid[0] * grid[1] + (stage == 4), width)))
        self.cls_token: nn.Parameter = nn.Parameter(torch.zeros(1, 1, dims[3]))
        for stage in range(1, 5):
            first = [in_chans, 32, 32, dims[0]]
            embedding = PatchEmbedding(first, (2, 1, 2)) if stage == 1 else PatchEmbedding(dims[stage - 2 : stage], (2,))
            self.add_module(f"patch_embed{stage}", embedding)
        attention.setdefault("sampler", "conv")
        rates = torch.linspace(0, drop_path, sum(depths), device="cpu").tolist()
        for stage, depth in enumerate(depths, start=1):
            blocks = nn.ModuleList()
            for rate in [rates.pop(0) for _ in range(depth)]:
                width, count = dims[stage - 1], heads[stage - 1]
                if stage == 4:
                    blocks.append(SoftmaxBlock(width, count, mlp_ratio=mlp_ratio, drop_path=rate))
                    continue
                options: dict[str, Any] = {"ratio": ratios[stage - 1], "depthwise": depthwise[stage - 1], **attention}
                block = SoftBlock(width, count, mlp_ratio=mlp_ratio, drop_path=rate, **options)
                blocks.append(nn.ModuleDict({"att": block}))
            self.add_module(f"block{stage}", blocks)
        self.norm: nn.Module = nn.LayerNorm(dims[3], eps=1e-6)
        self.head_drop: nn.Dropout = nn.Dropout(drop)
        self.reset_classifier(num_classes, global_pool)
        for name, parameter in self.named_parameters(recurse=False):
            if name.startswith("pos_embed") or name == "cls_token":
                nn.init.trunc_normal_(parameter, std=0.02)

    @property
    def num_features(self) -> int:
        """Width of the features that the classifier sees."""
        return self.dims[3]

    feature_strides: tuple[int, ...] = (4, 8, 16, 32)
    """How many times smaller than the image the maps of `features` are."""

    def extra_repr(self) -> str:
        """What `repr` shows."""
        words = f"dims={self.dims}, depths={self.depths}, num_classes={self.num_classes}, global_pool={self.global_pool}"
        return words + (f", published={self.published}" if self.published else "")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for so many classes (0: none), and another pooling if given."""
        if global_pool is not None:
            if not is_one_of(global_pool, POOLS):
                listed = ", ".join(map(repr, POOLS))
                message = f"SoftBackbone: global_pool must be one of {listed}; got {shown(global_pool)}. The default is 'token'."
                raise ParameterError(message)
            self.global_pool = global_pool
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            message = f"SoftBackbone: num_classes must be a whole number >= 0; got {shown(num_classes)}. 0 is without a classifier."
            raise ParameterError(message)
        self.num_classes = num_classes
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        initialize(head)
        self.head: nn.Module = head.to(self.cls_token).train(self.training)

    def diagnostics(self) -> ModelDiagnostics:
        """`SoftAttention.diagnostics` of every layer by its name, from the last forward pass; print it for a table."""
        return diagnose(self)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the insides of blocks again in the backward pass, rather than keep them."""
        self.grad_checkpointing = enable

    def _positions(self, stage: int, grid: tuple[int, int]) -> Tensor:
        """Position embeddings (1, tokens, width) interpolated to a grid; that of the class token comes first and stays."""
        stored: Tensor = getattr(self, f"pos_embed{stage}")
        return resized_positions(stored, self.base_grids[stage - 1], grid)

    def _stages(self, x: Tensor) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Tokens and grid after each stage; the last begins with the class token."""
        (x,) = checked_tensors("SoftBackbone", x=x)
        if x.ndim != 4 or x.shape[1] != self.in_chans or min(x.shape[2:]) < 1:
            message = f"SoftBackbone: x must be (batch, {self.in_chans}, rows, columns); got {tuple(x.shape)}. in_chans sets the channels."
            raise ShapeError(message)
        image = x.contiguous(memory_format=torch.channels_last)
        for stage in range(1, 5):
            tokens, grid = getattr(self, f"patch_embed{stage}")(image)
            if stage == 4:
                tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            tokens = tokens + self._positions(stage, grid)
            for block in getattr(self, f"block{stage}"):
                layer = block if stage == 4 else block["att"]
                if self.grad_checkpointing and self.training and torch.is_grad_enabled():
                    tokens = cast("Tensor", checkpoint(layer, tokens, grid, use_reentrant=False))
                else:
                    tokens = layer(tokens, grid)
            yield tokens, grid
            if stage < 4:
                image = _as_map(tokens, grid)

    def features(self, x: Tensor, indices: Sequence[int] = (0, 1, 2, 3)) -> list[Tensor]:
        """Maps of the stages, for detection and segmentation.

        Parameters
        ----------
        x : Tensor, shape (batch, in_chans, rows, columns)
            Images.
        indices : ints, default all four
            Stages, from 0.

        Returns
        -------
        list of Tensor, shape (batch, dims[i], ceil(rows / stride), ceil(columns / stride))
            Strides 4, 8, 16, 32, in channels-last memory. The last is without the class token and not normalized.
        """
        wanted = [index % 4 if -4 <= index < 4 else index for index in indices]
        if not wanted or not set(wanted) <= {0, 1, 2, 3}:
            message = f"SoftBackbone: indices must name stages from 0 to 3; got {tuple(indices)}. The default is all four."
            raise ParameterError(message)
        found: dict[int, Tensor] = {}
        for index, (tokens, grid) in enumerate(self._stages(x)):
            if index in wanted:
                found[index] = _as_map(tokens[:, 1:] if index == 3 else tokens, grid)
            if index == max(wanted):
                break
        return [found[index] for index in wanted]

    def forward_features(self, x: Tensor) -> Tensor:
        """Normalized tokens (batch, 1 + tokens, dims[3]) of the last stage, the class token first."""
        tokens = x
        for tokens, _ in self._stages(x):  # noqa: B007
            pass
        out: Tensor = self.norm(tokens)
        return out

    def forward_head(self, tokens: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Pool the tokens of `forward_features` and classify; `pre_logits` stops before the classifier."""
        if self.global_pool == "token":
            tokens = tokens[:, 0]
        elif self.global_pool == "avg":
            tokens = tokens[:, 1:].mean(1)
        elif self.global_pool == "max":
            tokens = tokens[:, 1:].amax(1)
        if pre_logits:
            return tokens
        out: Tensor = self.head(self.head_drop(tokens))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images.

        Parameters
        ----------
        x : Tensor, shape (batch, in_chans, rows, columns)
            Any number of rows and columns.

        Returns
        -------
        Tensor, shape (batch, num_classes)
            Features (batch, dims[3]) if there are no classes; (batch, 1 + tokens, ...) with global_pool="none".
        """
        return self.forward_head(self.forward_features(x))


def resized_positions(stored: Tensor, grid: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Position embeddings (1, tokens, width) of one grid interpolated bilinearly to another; rows before the grid stay."""
    if not is_open(wanted) and grid == wanted:
        return stored
    beside = stored.shape[1] - grid[0] * grid[1]
    image = stored[:, beside:].reshape(1, *grid, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=wanted, mode="bilinear", align_corners=False)
    return torch.cat([stored[:, :beside], image.flatten(2).mT], dim=1)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens (batch, rows * columns, width) as (batch, width, rows, columns), channels last in memory."""
    return tokens.reshape(tokens.shape[0], *grid, tokens.shape[2]).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------- the published sizes
def _sizes(third: int, depths: tuple[int, int, int, int]) -> _Sizes:
    return {"dims": (64, 128, third, 512), "heads": (2, 4, third // 32, 16), "depths": depths}


TINY = _sizes(320, (1, 2, 3, 2))
SMALL = _sizes(320, (1, 3, 7, 4))
CODE_SMALL = _sizes(320, (1, 3, 20, 4))
MEDIUM = _sizes(288, (1, 3, 29, 5))
LARGE = _sizes(320, (1, 3, 40, 5))
HUGE = _sizes(352, (1, 5, 49, 5))


def soft_tiny(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT tiny: 13,069,056 parameters, 1.8 GMAC at 224. Options as in `SoftBackbone`.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_tiny
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_tiny()
    >>> sum(parameter.numel() for parameter in model.parameters())
    13069056
    """
    return SoftBackbone(**TINY, **options)


def soft_small(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT small of the paper: 24,110,092 parameters, 3.2 GMAC at 224. Options as in `SoftBackbone`.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_small
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_small()
    >>> sum(parameter.numel() for parameter in model.parameters())
    24110092
    """
    return SoftBackbone(**SMALL, **options)


def published_code_small(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """The small model as the published code has it: 38,858,462 parameters, 6.1 GMAC. Options as in `SoftBackbone`.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import published_code_small
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = published_code_small()
    >>> sum(parameter.numel() for parameter in model.parameters())
    38858462
    """
    return SoftBackbone(**CODE_SMALL, **options)


def soft_medium(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT medium: 45,812,707 parameters, 7.0 GMAC at 224. Options as in `SoftBackbone`.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_medium
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_medium()
    >>> sum(parameter.numel() for parameter in model.parameters())
    45812707
    """
    return SoftBackbone(**MEDIUM, **options)


def soft_large(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT large: 64,700,646 parameters, 10.7 GMAC at 224. Options as in `SoftBackbone`.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_large
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_large()
    >>> sum(parameter.numel() for parameter in model.parameters())
    64700646
    """
    return SoftBackbone(**LARGE, **options)


def soft_huge(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT huge: 87,108,273 parameters, 15.3 GMAC at 224. Options as in `SoftBackbone`.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_huge
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_huge()
    >>> sum(parameter.numel() for parameter in model.parameters())
    87108273
    """
    return SoftBackbone(**HUGE, **options)


def _normalized(sizes: _Sizes, options: BackboneOptions) -> SoftBackbone:
    options.setdefault("normalization", "published")
    return SoftBackbone(**sizes, **options)


def soft_norm_tiny(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT++ tiny: `soft_tiny` with normalization="published".

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_norm_tiny
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_norm_tiny()
    >>> sum(parameter.numel() for parameter in model.parameters())
    13069056
    """
    return _normalized(TINY, options)


def soft_norm_small(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT++ small: `soft_small` with normalization="published".

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_norm_small
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_norm_small()
    >>> sum(parameter.numel() for parameter in model.parameters())
    24110092
    """
    return _normalized(SMALL, options)


def soft_norm_medium(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT++ medium: `soft_medium` with normalization="published".

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_norm_medium
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_norm_medium()
    >>> sum(parameter.numel() for parameter in model.parameters())
    45812707
    """
    return _normalized(MEDIUM, options)


def soft_norm_large(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT++ large: `soft_large` with normalization="published".

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_norm_large
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_norm_large()
    >>> sum(parameter.numel() for parameter in model.parameters())
    64700646
    """
    return _normalized(LARGE, options)


def soft_norm_huge(**options: Unpack[BackboneOptions]) -> SoftBackbone:
    """SOFT++ huge: `soft_huge` with normalization="published".

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import soft_norm_huge
    >>> with torch.device("meta"):                 # shapes without memory; leave it out for a model to use
    ...     model = soft_norm_huge()
    >>> sum(parameter.numel() for parameter in model.parameters())
    87108273
    """
    return _normalized(HUGE, options)
