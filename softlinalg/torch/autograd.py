"""Derivatives of the core's inverses, wired into PyTorch: reverse and forward mode, twice, and vmap."""

from __future__ import annotations

from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from softlinalg import _attention
from softlinalg._attention import InverseSettings
from softlinalg._newton_pinv import newton_pinv_jvp, newton_pinv_vjp
from softlinalg._pinv import ridge_inverse_jvp, ridge_inverse_vjp
from softlinalg.errors import ParameterError

__all__ = ["landmark_inverse"]


class _RidgeInverse(torch.autograd.Function):
    """(W + ridge I)^-1, certified or exact; implicit derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, settings: InverseSettings) -> Tensor:
        value: Tensor = _attention.plain_inverse(w, settings, xp=xp)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return ridge_inverse_vjp(value, grad)[0], None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (value,) = ctx.saved_tensors
        slope: Tensor = ridge_inverse_jvp(value, tangent)
        return slope


class _Newton(torch.autograd.Function):
    """A fixed number of Newton-Raphson steps from alpha (W + ridge I); derivative of those steps, alpha constant."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, alpha: Tensor, settings: InverseSettings, gradient: str) -> Tensor:
        value: Tensor = _attention.newton_inverse(w, alpha, settings)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        w, alpha, ctx.settings, ctx.gradient = inputs
        ctx.save_for_backward(w, alpha, output)
        ctx.save_for_forward(w, alpha, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        w, alpha, value = ctx.saved_tensors
        settings = ctx.settings
        slope = newton_pinv_vjp(w, grad, steps=settings.steps, alpha=alpha, ridge=settings.ridge, gradient=ctx.gradient, value=value)
        return slope, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        w, alpha, _value = ctx.saved_tensors
        settings = ctx.settings
        slope: Tensor = newton_pinv_jvp(w, tangent, steps=settings.steps, alpha=alpha, ridge=settings.ridge)
        return slope


def landmark_inverse(
    w: Tensor,
    *,
    ridge: float | None = None,
    inverse: str = "certified",
    steps: int = 20,
    gradient: str = "exact",
    normalization: str | None = None,
    tol: float | None = None,
    published_alpha: str = "matrix",
) -> Tensor:
    """Inverse of the kernel matrix of the landmarks, (W + ridge I)^-1, with its derivatives."""
    func = "landmark_inverse"
    settings = _attention.inverse_settings(
        func, inverse=inverse, ridge=ridge, steps=steps, tol=tol, published_alpha=published_alpha, normalization=normalization
    )
    if gradient not in ("exact", "published"):
        message = f"{func}: gradient must be 'exact' or 'published'; got {str(gradient)[:40]!r}. The default is 'exact'."
        raise ParameterError(message)
    if settings.inverse == "published":
        x: Tensor = _Newton.apply(w, _attention.start_factor(w, settings, xp=xp), settings, gradient)  # type: ignore[no-untyped-call]
    else:
        x = _RidgeInverse.apply(w, settings)  # type: ignore[no-untyped-call]
    if normalization == "published":
        x = _attention.normalized(x, w, xp=xp)
    return x
