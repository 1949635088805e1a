"""The backbones as models of Hugging Face transformers: configuration, backbone, classifier, and their places in the Auto classes."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput

from softlinalg.errors import ParameterError
from softlinalg.torch import backbones
from softlinalg.torch.landmarks import RandomLandmarks

__all__ = ["SoftBackbone", "SoftConfig", "SoftForImageClassification", "SoftModel", "register_models"]


class SoftConfig(BackboneConfigMixin, PreTrainedConfig):
    """Sizes and settings of a softmax-free backbone, as transformers saves them.

    Parameters
    ----------
    dims, heads, depths : four ints each
        Of the stages; default those of `soft_tiny`.
    ratios, depthwise : three ints each
        As in `softlinalg.torch.SoftBackbone`.
    mlp_ratio, drop_path_rate, hidden_dropout_prob : float
        Defaults 4, 0 and 0.
    image_size, num_channels : int
        Defaults 224 and 3; other sizes work too.
    global_pool : {"token", "avg", "max"}
        What the classifier sees.
    attention : dict, optional
        Keyword arguments of `SoftAttention`: {"landmarks": 49, "sampler": "conv", "normalization": "published", ...}.
    out_features, out_indices
        Stages whose maps a backbone returns, of "stage1" to "stage4"; default the last.
    num_labels, id2label, ...
        As in every configuration of transformers.
    """

    model_type = "soft"

    dims: list[int] | tuple[int, ...] = (64, 128, 320, 512)
    heads: list[int] | tuple[int, ...] = (2, 4, 10, 16)
    depths: list[int] | tuple[int, ...] = (1, 2, 3, 2)
    ratios: list[int] | tuple[int, ...] = (8, 4, 2)
    depthwise: list[int | None] | tuple[int | None, ...] = (9, 5, 3)
    mlp_ratio: float | int = 4.0
    image_size: int | list[int] | tuple[int, int] = 224
    num_channels: int = 3
    drop_path_rate: float | int = 0.0
    hidden_dropout_prob: float | int = 0.0
    global_pool: str = "token"
    attention: dict[str, Any] | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.hidden_size: int = self.dims[-1]
        self.hidden_sizes: list[int] = list(self.dims)  # where heads of transformers look for the widths
        self.stage_names: list[str] = [f"stage{stage}" for stage in range(1, len(self.dims) + 1)]
        self.set_output_features_output_indices(out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None))
        super().__post_init__(**kwargs)


def _network(config: SoftConfig, num_classes: int) -> backbones.SoftBackbone:
    size = config.image_size
    return backbones.SoftBackbone(
        config.dims,
        config.heads,
        config.depths,
        ratios=config.ratios,
        depthwise=config.depthwise,
        mlp_ratio=config.mlp_ratio,
        num_classes=num_classes,
        in_chans=config.num_channels,
        img_size=size if isinstance(size, int) else (size[0], size[1]),
        drop_path=config.drop_path_rate,
        drop=config.hidden_dropout_prob,
        global_pool=config.global_pool,
        **(config.attention or {}),
    )


class SoftPreTrainedModel(PreTrainedModel):
    """What the models share: the network is `self.soft`, with the names of the published weights."""

    config_class: ClassVar[type[SoftConfig]] = SoftConfig
    base_model_prefix = "soft"
    main_input_name = "pixel_values"
    input_modalities: ClassVar[str | list[str]] = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["SoftBlock", "SoftmaxBlock"]
    _can_compile_fullgraph = True

    soft: backbones.SoftBackbone

    def _init_weights(self, module: nn.Module) -> None:
        """Weights that a file did not hold, as `softlinalg.torch.SoftBackbone` begins; those that it held stay."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d | nn.Conv1d):
            if module.bias is None:  # of attention
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            else:  # of a patch embedding
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm2d):
                init.zeros_(module.running_mean)
                init.ones_(module.running_var)
                init.zeros_(module.num_batches_tracked)
        elif isinstance(module, backbones.SoftBackbone):
            for name, parameter in module.named_parameters(recurse=False):
                if name.startswith("pos_embed") or name == "cls_token":
                    init.trunc_normal_(parameter, std=0.02)
        elif isinstance(module, RandomLandmarks):
            init.copy_(module.offsets, module.drawn_offsets())

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        self.soft.set_grad_checkpointing(enable)

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass."""
        return self.soft.grad_checkpointing


class SoftModel(SoftPreTrainedModel):
    """The backbone without a head: tokens of the last stage, and what the classifier would see of them."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"soft\.head\."]

    def __init__(self, config: SoftConfig) -> None:
        super().__init__(config)
        self.soft: backbones.SoftBackbone = _network(config, 0)
        self.post_init()

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """Normalized tokens (batch, 1 + tokens, dims[3]) of images (batch, channels, rows, columns), the class token first."""
        tokens = self.soft.forward_features(pixel_values)
        pooled = self.soft.forward_head(tokens, pre_logits=True)
        output = BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=pooled)
        return output if return_dict is not False else output.to_tuple()


class SoftBackbone(BackboneMixin, SoftPreTrainedModel):
    """Maps of the stages for detection and segmentation heads of transformers, as `config.out_features` says."""

    has_attentions = False
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"soft\.head\.", r"soft\.norm\."]

    def __init__(self, config: SoftConfig) -> None:
        super().__init__(config)
        self.num_features: list[int] = list(config.dims)
        self.soft: backbones.SoftBackbone = _network(config, 0)
        self.soft.norm = nn.Identity()  # maps are not normalized
        self.post_init()

    def forward(
        self, pixel_values: Tensor, output_hidden_states: bool | None = None, return_dict: bool | None = None, **kwargs: Any
    ) -> Any:
        """Feature maps (batch, dims[i], rows / stride, columns / stride) of images, strides 4, 8, 16, 32."""
        wanted = range(4) if output_hidden_states else self.out_indices
        maps = dict(zip(wanted, self.soft.features(pixel_values, tuple(wanted)), strict=True))
        output = BackboneOutput(
            feature_maps=tuple(maps[index] if index in maps else maps[index % 4] for index in self.out_indices),
            hidden_states=tuple(maps.values()) if output_hidden_states else None,
        )
        return output if return_dict is not False else output.to_tuple()


class SoftForImageClassification(SoftPreTrainedModel):
    """The backbone with its classifier, for `Trainer` and pipelines."""

    def __init__(self, config: SoftConfig) -> None:
        super().__init__(config)
        if config.global_pool == "none":
            message = "SoftForImageClassification: global_pool must leave one vector for each image; got 'none'. Use 'token' or 'avg'."
            raise ParameterError(message)
        self.num_labels: int = config.num_labels
        self.soft: backbones.SoftBackbone = _network(config, config.num_labels)
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, return_dict: bool | None = None, **kwargs: Any) -> Any:
        """Logits (batch, num_labels) of images, and the mean cross entropy if `labels` (batch,) are given."""
        logits = self.soft(pixel_values)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        output = ImageClassifierOutput(loss=loss, logits=logits)
        return output if return_dict is not False else output.to_tuple()


def register_models() -> None:
    """Make the models known to AutoConfig, AutoModel, AutoBackbone and AutoModelForImageClassification as "soft"."""
    AutoConfig.register("soft", SoftConfig, exist_ok=True)
    AutoModel.register(SoftConfig, SoftModel, exist_ok=True)
    AutoBackbone.register(SoftConfig, SoftBackbone, exist_ok=True)
    AutoModelForImageClassification.register(SoftConfig, SoftForImageClassification, exist_ok=True)
