"""Softmax-free attention for PyTorch: functions, modules and backbones on the core of softlinalg."""

from __future__ import annotations

from softlinalg.torch.attention import SoftAttention, SoftBlock
from softlinalg.torch.autograd import landmark_inverse
from softlinalg.torch.backbones import (
    SoftBackbone,
    published_code_small,
    soft_huge,
    soft_large,
    soft_medium,
    soft_norm_huge,
    soft_norm_large,
    soft_norm_medium,
    soft_norm_small,
    soft_norm_tiny,
    soft_small,
    soft_tiny,
)
from softlinalg.torch.checkpoints import LoadReport, load_published_weights, save_weights
from softlinalg.torch.diagnostics import attention_map, diagnose, plot_attention
from softlinalg.torch.functional import (
    AttentionError,
    attention_error,
    clustered_softmax_attention,
    gaussian_attention,
    soft_attention,
    softmax_as_gaussian,
    softmax_attention_error,
)

__all__ = [
    "AttentionError",
    "LoadReport",
    "SoftAttention",
    "SoftBackbone",
    "SoftBlock",
    "attention_error",
    "attention_map",
    "clustered_softmax_attention",
    "diagnose",
    "gaussian_attention",
    "landmark_inverse",
    "load_published_weights",
    "plot_attention",
    "published_code_small",
    "save_weights",
    "soft_attention",
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
    "softmax_as_gaussian",
    "softmax_attention_error",
]
