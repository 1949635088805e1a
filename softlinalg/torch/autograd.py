"""The core's inverses and attention products with their derivatives, wired into PyTorch. No formula stands here.

`landmark_inverse` can be differentiated twice in both modes, mapped and compiled. `attend` and `feature_matrix` are the fast
forms for plain tensors: in reused memory, forward and backward; a second derivative goes through the composite form.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from softlinalg import _arrays, _attention, _attention_blocks, _inputs
from softlinalg._attention import InverseSettings
from softlinalg._attention_blocks import Columns, Factors, Forward
from softlinalg._newton_pinv import newton_pinv_jvp, newton_pinv_vjp
from softlinalg._pinv import ridge_inverse_jvp, ridge_inverse_vjp
from softlinalg._settings import is_one_of, shown
from softlinalg.errors import ParameterError
from softlinalg.torch import cpu_kernels
from softlinalg.torch.inputs import checked_tensors

__all__ = ["landmark_inverse"]

_log = logging.getLogger(__name__)

_PLAIN = (Tensor, torch.nn.Parameter)


class _CompiledRidgeInverse(torch.autograd.Function):
    """(W + ridge I)^-1, certified or exact; implicit derivative, from the value alone. torch.compile takes no forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(w: Tensor, settings: InverseSettings) -> Tensor:
        return _plain_inverse(w, settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output)
        ctx.save_for_forward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return ridge_inverse_vjp(value, grad)[0], None


class _RidgeInverse(_CompiledRidgeInverse):
    """The same with its derivative in forward mode."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (value,) = ctx.saved_tensors
        slope: Tensor = ridge_inverse_jvp(value, tangent)
        return slope


class _CompiledNewton(torch.autograd.Function):
    """A fixed number of Newton-Raphson steps from alpha (W + ridge I); the derivative of those steps."""

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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        w, alpha, value = ctx.saved_tensors
        settings, by_start = ctx.settings, None
        slope = newton_pinv_vjp(w, grad, steps=settings.steps, alpha=alpha, ridge=settings.ridge, gradient=ctx.gradient, value=value)
        if ctx.gradient == "exact":
            by_start = (grad * _attention.newton_start_slope(w, alpha, settings, xp=xp)).sum((-2, -1))
        return slope, by_start, None, None


class _Newton(_CompiledNewton):
    """The same with its derivative in forward mode."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, start_tangent: Tensor | None, *_: None) -> Tensor:
        if ctx.gradient != "exact":
            message = "landmark_inverse: gradient must be 'exact' in forward mode; got 'published', a rule for backward alone."
            raise ParameterError(message)
        w, alpha, _value = ctx.saved_tensors
        slope: Tensor = newton_pinv_jvp(w, tangent, steps=ctx.settings.steps, alpha=alpha, ridge=ctx.settings.ridge)
        if start_tangent is not None:
            slope = slope + start_tangent[..., None, None] * _attention.newton_start_slope(w, alpha, ctx.settings, xp=xp)
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
    r"""Inverse of the kernel matrix of the landmarks, W + ridge I, with its derivatives.

    Parameters
    ----------
    w : Tensor, shape (..., m, m)
        Symmetric, non-negative entries. "certified" refuses asymmetry beyond rounding.
    ridge : float, optional
        Default 0.01; 0 for the published SOFT++ (inverse and normalization "published").
    inverse : {"certified", "published", "exact"}
        "certified": `softlinalg.ridge_inverse`. "exact": Cholesky, without a certificate. "published": Newton-Raphson steps.
    steps : int, default 20
        Of "published".
    gradient : {"exact", "published"}
        "exact": the derivative of the value returned; for inverse="published" that of its fixed number of steps. "published":
        -V^T G V^T, the formula of the paper, for backward and inverse="published" alone. It is not the gradient of what forward
        computed unless the steps have converged (cosines of -0.8 were measured).
    normalization : {None, "published", "symmetric"}
        "published" returns D^(-1/2) X D^(-1/2), D the row sums of `w`; the others change nothing here.
    tol : float, optional
        Relative error to certify, as in `softlinalg.ridge_inverse`.
    published_alpha : {"matrix", "batch"}
        Start of "published" from each matrix alone, or one for all of them, as in the published SOFT++.

    Returns
    -------
    Tensor, shape (..., m, m)
        Type and device of `w`. In compiled and mapped code members without a certificate are NaN.

    Raises
    ------
    ParameterError, ShapeError, InputError, ConvergenceError

    Notes
    -----
    Differentiable twice, in reverse and forward mode; the gradient of the first two is -Y sym(G) Y, exact up to the certified
    error. Nothing of the iteration is kept for backward.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import landmark_inverse
    >>> w = torch.eye(3, dtype=torch.float64, requires_grad=True)
    >>> inverse = landmark_inverse(w, ridge=1.0)
    >>> round(inverse.trace().item(), 6)
    1.5
    >>> inverse.trace().backward()
    >>> round(w.grad[0, 0].item(), 6)                                      # the derivative of 1 / (w + 1) is -1/4
    -0.25
    """
    func = "landmark_inverse"
    settings = _attention.inverse_settings(
        func, inverse=inverse, ridge=ridge, steps=steps, tol=tol, published_alpha=published_alpha, normalization=normalization
    )
    check_gradient(func, gradient, inverse)
    (w,) = checked_tensors(func, w=w)
    _inputs.check_square(w, func=func, name="w")
    return inverse_of(w, settings, gradient)


def inverse_of(w: Tensor, settings: InverseSettings, gradient: str) -> Tensor:
    """`landmark_inverse` with settings that have been checked."""
    compiling = torch.compiler.is_compiling()
    if not records(w) and is_plain(w):
        found = _plain_inverse(w, settings)
        return _attention.normalized(found, w, xp=xp) if settings.normalization == "published" else found
    if settings.inverse == "published":
        alpha = _attention.start_factor(w if gradient == "exact" else w.detach(), settings, xp=xp)
        x: Tensor = (_CompiledNewton if compiling else _Newton).apply(w, alpha, settings, gradient)  # type: ignore[no-untyped-call]
    else:
        x = (_CompiledRidgeInverse if compiling else _RidgeInverse).apply(w, settings)  # type: ignore[no-untyped-call]
    return _attention.normalized(x, w, xp=xp) if settings.normalization == "published" else x


def _plain_inverse(w: Tensor, settings: InverseSettings) -> Tensor:
    """`_attention.plain_inverse`, on the chip where the device has one for it."""
    kernels = _on_device(w)
    if kernels is not None and kernels.serves_inverse(w, settings):
        quick: Tensor | None = kernels.kernel_matrix_inverse(w, settings)
        if quick is not None:
            return quick
    value: Tensor = _attention.plain_inverse(w, settings, xp=xp)
    return value


@functools.cache
def _triton_kernels() -> Any:
    """The module `triton_kernels`; None, logged, where Triton is missing."""
    try:
        return importlib.import_module("softlinalg.torch.triton_kernels")
    except ImportError as error:
        _log.info("Triton is not available, PyTorch's operations serve in place of its kernels: %s", error)
        return None


def _on_device(x: Tensor) -> Any:
    """The kernels for the device of `x` in eager code, or None."""
    return _triton_kernels() if x.is_cuda and not _arrays.is_traced(x) else None


def check_gradient(func: str, gradient: str, inverse: str) -> None:
    """Raise ParameterError unless the rule for the gradient exists for the inverse."""
    if not is_one_of(gradient, ("exact", "published")):
        message = f"{func}: gradient must be 'exact' or 'published'; got {shown(gradient)}. The default is 'exact'."
        raise ParameterError(message)
    if gradient == "published" and inverse != "published":
        message = f"{func}: gradient 'published' must go with inverse='published'; got inverse={inverse!r}. Use gradient='exact'."
        raise ParameterError(message)


class _LandmarkKernel(torch.autograd.Function):
    """W = k(L, L) of plain tensors, in the wide type, and its gradient."""

    @staticmethod
    def forward(ctx: Any, landmarks: Tensor, w: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(landmarks, w)
        ctx.scale = scale
        return w.view_as(w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        landmarks, w = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(grad):

            def again(landmarks: Tensor) -> Tensor:
                w: Tensor = _attention.composite_landmark_kernel(landmarks, ctx.scale, xp=xp)
                return w

            return (*pull_back(again, grad, (landmarks,), ctx.needs_input_grad), None, None)
        moved: Tensor = _attention_blocks.landmark_matrix_vjp(grad, landmarks, w, 1 / ctx.scale, xp=xp)
        return moved.to(landmarks.dtype), None, None


class _KernelInverse(torch.autograd.Function):
    """(k(L, L) + ridge I)^-1 of plain tensors, and its gradient with respect to the landmarks; both matrices are given."""

    @staticmethod
    def forward(ctx: Any, landmarks: Tensor, w: Tensor, x: Tensor, scale: float, settings: InverseSettings) -> Tensor:
        ctx.save_for_backward(landmarks, w, x)
        ctx.scale, ctx.settings = scale, settings
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        landmarks, w, x = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(grad):

            def again(landmarks: Tensor) -> Tensor:
                return inverse_of(_attention.composite_landmark_kernel(landmarks, ctx.scale, xp=xp), ctx.settings, "exact")

            return (*pull_back(again, grad, (landmarks,), ctx.needs_input_grad), None, None, None, None)
        moved: Tensor = _attention.kernel_inverse_vjp(grad, landmarks, w, x, ctx.scale, xp=xp)
        return moved.to(landmarks.dtype), None, None, None, None


def kernel_inverse(landmarks: Tensor, scale: float, settings: InverseSettings, gradient: str) -> tuple[Tensor, Factors | None]:
    """The inverse of `landmark_kernel`: of few plain landmarks at one go, with what that has made for `Columns`; else in two steps."""
    if settings.normalization != "published" and is_plain(landmarks) and _on_device(landmarks) is None:
        found = _attention.kernel_and_inverse(landmarks.detach(), scale, settings, xp=xp)
        if found is not None:
            w, x, factors = found
            return (_KernelInverse.apply(landmarks, w, x, scale, settings) if records(landmarks) else x), factors  # type: ignore[no-untyped-call]
    return inverse_of(landmark_kernel(landmarks, scale, settings), settings, gradient), None


def landmark_kernel(landmarks: Tensor, scale: float, settings: InverseSettings) -> Tensor:
    """W = k(landmarks, landmarks) in the type in which it is inverted."""
    w: Tensor | None = None
    if is_plain(landmarks):
        w = _attention_blocks.landmark_matrix(landmarks.detach(), 1 / scale, xp=xp)
    if w is None:
        w = _attention.composite_landmark_kernel(landmarks, scale, xp=xp)
    elif records(landmarks):
        w = _LandmarkKernel.apply(landmarks, w, scale)  # type: ignore[no-untyped-call]
    return w.to(landmarks.dtype) if settings.inverse == "published" else w


def _forward(
    q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, x: Tensor, hidden: Tensor | None, columns: Columns, *, keep: bool
) -> tuple[Callable[..., Any], Forward]:
    """C X (E^T v) by the quickest code that serves, and its gradient; what that needs is kept only if asked for."""
    device = _on_device(q)
    if device is not None and device.serves(q, k, v, landmarks, hidden):
        quick: Forward | None = device.attend(q, k, v, x, columns)
        if quick is not None:
            return device.attend_vjp, quick
    kernels = cpu_kernels.kernels_for(q, k, v, landmarks, hidden)
    if kernels is not None:
        return functools.partial(cpu_kernels.attend_vjp, kernels), cpu_kernels.attend(kernels, q, k, v, x, columns, keep=keep)
    return _attention_blocks.attend_vjp, _attention_blocks.attend(q, k, v, hidden, x, columns)


class _Attend(torch.autograd.Function):
    """C X (E^T v) in blocks; backward in blocks from the features that forward kept."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor | None,
        v: Tensor,
        landmarks: Tensor,
        x: Tensor,
        hidden: Tensor | None,
        columns: Columns,
        scale: float,
    ) -> Tensor:
        ctx.vjp, made = _forward(q, k, v, landmarks, x, hidden, columns, keep=True)
        columns.release()
        key_features = None if k is None else made.key_features
        ctx.save_for_backward(q, k, v, landmarks, x, hidden, made.features, key_features, made.moment)
        ctx.columns, ctx.scale = columns, scale
        out: Tensor = made.out
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, landmarks, x, hidden, features, key_features, moment = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(grad):  # a second derivative, or many gradients at once: the composite form
            return (*_differentiably(grad, ctx, (q, k, v, landmarks, x), hidden), None, None, None)
        # What forward returned is not needed again: the first field is only filled.
        saved = Forward(grad, features, features if k is None else key_features, moment)
        found = ctx.vjp(grad, q, k, v, hidden, x, ctx.columns, saved)
        ctx.columns.release()
        return found.q, found.k, found.v, found.landmarks.to(landmarks.dtype), found.x.to(x.dtype), None, None, None


def _differentiably(grad: Tensor, ctx: Any, inputs: tuple[Any, ...], hidden: Tensor | None) -> list[Tensor | None]:
    """The gradient as a differentiable function of the inputs and of `grad`."""

    def again(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, x: Tensor) -> Tensor:
        work = landmarks.dtype
        q, k, v = q.to(work), None if k is None else k.to(work), v.to(work)
        out: Tensor = _attention.composite(q, k, v, landmarks, hidden, x, length_scale=ctx.scale, normalization=None, xp=xp)
        return out.to(grad.dtype)

    return pull_back(again, grad, inputs, ctx.needs_input_grad)


def pull_back(function: Callable[..., Tensor], grad: Tensor, inputs: tuple[Any, ...], needed: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of a composite function; differentiable in turn where gradients are recorded."""
    recorded = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: landmarks may come from the queries, and the gradient of these must not have what goes through the landmarks as well.
        inputs = tuple(None if x is None else x.view_as(x) for x in inputs)
        out = function(*inputs)
    wanted = [x for x, wants in zip(inputs, needed, strict=False) if wants]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=recorded))
    return [next(found) if wants else None for wants in needed[: len(inputs)]]


class _FeatureMatrix(torch.autograd.Function):
    """k(points, L) in blocks, and its gradient."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, landmarks: Tensor, columns: Columns, scale: float) -> Tensor:
        features: Tensor = _attention_blocks.feature_matrix(points, columns)
        columns.release()
        ctx.save_for_backward(points, landmarks, features)
        ctx.columns, ctx.scale = columns, scale
        return features

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        points, landmarks, features = ctx.saved_tensors
        if torch.is_grad_enabled() or not is_plain(grad):

            def again(points: Tensor, landmarks: Tensor) -> Tensor:
                return _attention.features(points.to(landmarks.dtype), landmarks, ctx.scale, xp=xp)  # type: ignore[no-any-return]

            return (*pull_back(again, grad, (points, landmarks), ctx.needs_input_grad), None, None)
        moved, landmarks_moved = _attention_blocks.feature_matrix_vjp(grad, points, features, ctx.columns)
        ctx.columns.release()
        return moved, landmarks_moved.to(landmarks.dtype), None, None


def attend(
    q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, x: Tensor, hidden: Tensor | None, columns: Columns, scale: float
) -> Tensor:
    """C X (E^T v) for plain tensors (b, h, ...) of one batch shape, `columns` those of the landmarks."""
    if not records(q, k, v, landmarks, x):
        plain: Tensor = _forward(q, k, v, landmarks, x, hidden, columns, keep=False)[1].out
        return plain
    out: Tensor = _Attend.apply(q, k, v, landmarks, x, hidden, columns, scale)  # type: ignore[no-untyped-call]
    return out


def feature_matrix(points: Tensor, landmarks: Tensor, columns: Columns, scale: float) -> Tensor:
    """k(points, landmarks), (b, h, n, m), for plain tensors."""
    out: Tensor = _FeatureMatrix.apply(points, landmarks, columns, scale)  # type: ignore[no-untyped-call]
    return out


def records(*tensors: Tensor | None) -> bool:
    """Does PyTorch record what is done with these tensors? Otherwise a plain call does, without the cost of recording."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def is_plain(*tensors: Tensor | None) -> bool:
    """Are these ordinary eager tensors, their numbers in memory: nothing traced, mapped, wrapped or differentiated in forward mode?

    Inside of a transform of torch.func nothing is: whatever is done there to an ordinary tensor is wrapped.
    """
    functorch = torch._C._functorch
    if torch.compiler.is_compiling() or functorch.maybe_current_level() is not None:  # once for all of them
        return all(x is None for x in tensors)
    for x in tensors:
        if x is None:
            continue
        if type(x) not in _PLAIN or _arrays.is_traced(x) or functorch.is_legacy_batchedtensor(x):
            return False
        if x.is_neg() or x._is_zerotensor():  # as gradients can be; arguments are settled before
            return False
        if torch.autograd.forward_ad.unpack_dual(x).tangent is not None:  # type: ignore[no-untyped-call]
            return False
    return True
