"""timm: the ten backbones under `timm.create_model`. Importing this module registers them. Needs the extra ``timm``.

import softlinalg.torch.timm
model = timm.create_model("soft_tiny", num_classes=10)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

try:
    from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
    from timm.models._features import feature_take_indices
except ImportError as _error:  # not installed, too old, or another package of this name
    _message = f'softlinalg.torch.timm: timm, PyTorch Image Models, is needed; got "{_error}". Run pip install "softlinalg[timm]".'
    raise ImportError(_message) from _error

from softlinalg.errors import ParameterError
from softlinalg.torch import backbones, checkpoints
from softlinalg.torch.backbones import SoftBackbone

__all__ = ["TimmSoft"]


class TimmSoft(SoftBackbone):
    """`softlinalg.torch.SoftBackbone` with what timm asks of its models.

    Parameters
    ----------
    num_classes, in_chans, img_size
        As in `SoftBackbone`.
    global_pool : {"token", "avg", "max", ""}
        "" leaves the tokens as they are.
    drop_rate, drop_path_rate : float, default 0
        Before the classifier, and of stochastic depth in the last block.
    device, dtype : optional
        Of the weights, as `timm.create_model` hands them on. Default: those of PyTorch.
    **options
        As in `SoftBackbone`: landmarks=49, inverse="certified", published=False, ...

    Notes
    -----
    No weights are hosted: pretrained=True needs `pretrained_cfg_overlay={"file": path}`; files of the published weights fit.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Any,
    ) -> None:
        options.update(
            num_classes=num_classes, in_chans=in_chans, global_pool=global_pool or "none", drop=drop_rate, drop_path=drop_path_rate
        )
        place: Any = contextlib.nullcontext() if device is None else torch.device(device)
        with place:
            super().__init__(**options)
        if dtype is not None:
            self.to(dtype=dtype)
        self.drop_rate = drop_rate
        self.head_hidden_size: int = self.num_features
        self.feature_info: list[dict[str, int | str]] = [
            {"num_chs": width, "reduction": stride, "module": f"block{stage}"}
            for stage, (width, stride) in enumerate(zip(self.dims, self.feature_strides, strict=True), start=1)
        ]

    def no_weight_decay(self) -> set[str]:
        """Parameters that are no weights of maps."""
        return {"cls_token", *(f"pos_embed{stage}" for stage in range(1, 5))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Names of the parameters of each layer, for rates of learning that depend on the depth."""
        blocks = (
            r"^(?:patch_embed|pos_embed|block)(\d)" if coarse else [(r"^block(\d)\.(\d+)", None), (r"^(?:patch_embed|pos_embed)(\d)", (0,))]
        )
        return {"stem": r"^(?:patch_embed1|pos_embed1|cls_token)", "blocks": blocks}

    def get_classifier(self) -> nn.Module:
        """The classifier."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for so many classes (0: none), and another pooling if given ("": none)."""
        super().reset_classifier(num_classes, "none" if global_pool == "" else global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Maps of the stages, and unless `intermediates_only` what `forward_features` gives; arguments as everywhere in timm."""
        if output_fmt not in ("NCHW", "NHWC"):
            message = f"forward_intermediates: output_fmt must be 'NCHW' or 'NHWC'; got {output_fmt!r}. The default is 'NCHW'."
            raise ParameterError(message)
        wanted, last = feature_take_indices(len(self.dims), indices)
        maps: list[Tensor] = []
        tokens, normalized = x, x
        for index, (tokens, grid) in enumerate(self._stages(x)):
            is_last = index == len(self.dims) - 1
            if is_last:
                normalized = self.norm(tokens)
            if index in wanted:
                shown = (normalized if norm else tokens)[:, 1:] if is_last else tokens
                image = shown.reshape(shown.shape[0], *grid, shown.shape[2])
                maps.append(image if output_fmt == "NHWC" else image.permute(0, 3, 1, 2))
            if stop_early and intermediates_only and index == last:
                break
        return maps if intermediates_only else (normalized, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the features asked for do not need; all stages stay, as names of weights count them."""
        wanted, _ = feature_take_indices(len(self.dims), indices)
        if prune_norm:
            self.norm: nn.Module = nn.Identity()
        if prune_head:
            self.reset_classifier(0, "")
        return list(wanted)


def _fitted(state: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Weights by our names, position embeddings resized; what does not fit is left for timm to report."""
    own = model.state_dict()
    renamed = checkpoints._renamed({name: value for name, value in state.items() if isinstance(value, Tensor)}, own)
    fits, _, _ = checkpoints._matched(renamed, own, model)
    return {**renamed, **fits}


def _config(**more: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": "patch_embed1.proj.0",
        "classifier": "head",
        "license": "mit",
        **more,
    }


_SIZES: dict[str, Any] = {
    "tiny": backbones.TINY,
    "small": backbones.SMALL,
    "medium": backbones.MEDIUM,
    "large": backbones.LARGE,
    "huge": backbones.HUGE,
}

default_cfgs: dict[str, Any] = generate_default_cfgs(
    {f"{kind}_{size}.untrained": _config() for kind in ("soft", "soft_norm") for size in _SIZES}
)


def _entry(name: str, sizes: Mapping[str, Any], settings: Mapping[str, Any]) -> Callable[..., Any]:
    def build(pretrained: bool = False, **options: Any) -> Any:
        arguments = {**sizes, **settings, **options}
        return build_model_with_cfg(
            TimmSoft,
            name,
            pretrained,
            pretrained_filter_fn=_fitted,
            feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
            **arguments,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"`softlinalg.torch.{name}` for timm; options as in `TimmSoft`."
    return build


for _size, _arguments in _SIZES.items():
    for _kind, _settings in (("soft", {}), ("soft_norm", {"normalization": "published"})):
        _name = f"{_kind}_{_size}"
        globals()[_name] = register_model(_entry(_name, _arguments, _settings))
