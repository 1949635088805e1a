"""Softmax-free attention for PyTorch: functions, modules and backbones on the core of softlinalg."""

from __future__ import annotations

from softlinalg.torch.autograd import landmark_inverse
from softlinalg.torch.functional import soft_attention

__all__ = ["landmark_inverse", "soft_attention"]
