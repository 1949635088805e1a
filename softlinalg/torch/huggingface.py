"""Hugging Face transformers: softmax-free attention in its models, our backbones as its models, and the conversion of trained models.

Importing this module registers both names of `attn_implementation` and the models of type "soft". Needs the extra ``hf``.
"""

from __future__ import annotations

try:
    import transformers  # noqa: F401
except ImportError as _error:
    _message = 'softlinalg.torch.huggingface: transformers is needed; it is not installed. Run pip install "softlinalg[hf]".'
    raise ImportError(_message) from _error

from softlinalg.torch.huggingface_attention import register
from softlinalg.torch.huggingface_convert import ConversionReport, convert
from softlinalg.torch.huggingface_models import SoftBackbone, SoftConfig, SoftForImageClassification, SoftModel, register_models

__all__ = ["ConversionReport", "SoftBackbone", "SoftConfig", "SoftForImageClassification", "SoftModel", "convert", "register"]

register()
register_models()
