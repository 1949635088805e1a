"""Softmax-free attention as one operator of a compiled graph.

torch.compile would trace the iteration, its certificate and the products into a thousand operations: minutes to compile, no compiled
kernel of ours in them, and no error for what cannot be certified. As an operator the attention stays what it is in eager code, whose
errors it raises. Exported programs must run without this package: they keep the operations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from softlinalg import _arrays
from softlinalg._attention import InverseSettings
from softlinalg.torch import attention_core
from softlinalg.torch.inputs import without_autocast

__all__ = ["attention", "takes"]

_SETTINGS = "str inverse, float ridge, int steps, float? tol, str alpha, str? normalization, str gradient"
_TENSORS = "Tensor q, Tensor? k, Tensor v, Tensor landmarks, Tensor? mask, ScalarType result"

# A certificate is read on the host, which a recorded stream of CUDA cannot do: graphs are split around the operator.
_TAGS = tuple(getattr(torch.Tag, name) for name in ("cudagraph_unsafe",) if hasattr(torch.Tag, name))


def takes() -> bool:
    """Is this a graph of torch.compile, to run in this process, outside of the transforms of torch.func?"""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting() and not _is_transformed()


@_arrays.constant_in_graphs
def _is_transformed() -> bool:
    """Is a transform of torch.func under way? PyTorch compiles anew where that changes."""
    return torch._C._functorch.maybe_current_level() is not None


def attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor,
    landmarks: Tensor,
    mask: Tensor | None,
    result: torch.dtype,
    settings: InverseSettings,
    gradient: str,
) -> Tensor:
    """`attention_core.attention`, as one operator of the graph; in the type `result`."""
    s = settings
    out: Tensor = _forward(q, k, v, landmarks, mask, result, s.inverse, s.ridge, s.steps, s.tol, s.alpha, s.normalization, gradient)
    return out.transpose(1, 2)


def _settings(inverse: str, ridge: float, steps: int, tol: float | None, alpha: str, normalization: str | None) -> InverseSettings:
    return InverseSettings(inverse, ridge, steps, tol, alpha, normalization, is_kernel=True)


@contextlib.contextmanager
def _recording() -> Iterator[None]:
    """A region in which operations are recorded: inside of an operator PyTorch leaves its autograd out, whatever the mode."""
    kept_out = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "ADInplaceOrView"):
        kept_out = kept_out.remove(getattr(torch._C.DispatchKey, name))
    with torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), kept_out), torch.enable_grad():
        yield


def _by_tokens(x: Tensor) -> Tensor:
    """(batch, heads, tokens, features) as (batch, tokens, heads, features): the one order in memory that a graph can rely on."""
    return x.transpose(1, 2).contiguous()


@torch.library.custom_op("softlinalg::soft_attention", mutates_args=(), schema=f"({_TENSORS}, {_SETTINGS}) -> Tensor", tags=_TAGS)
def _forward(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, result: torch.dtype, *settings: Any) -> Tensor:
    *chosen, gradient = settings
    return _by_tokens(attention_core.attention(q, k, v, landmarks, mask, _settings(*chosen), gradient).to(result))


@_forward.register_fake
def _(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, result: torch.dtype, *settings: Any) -> Tensor:
    b, h, n, _ = q.shape
    return q.new_empty((b, n, h, v.shape[-1]), dtype=result)


@torch.library.custom_op(
    "softlinalg::soft_attention_backward",
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, {_SETTINGS}, bool[] needed) -> Tensor[]",
    tags=_TAGS,
)
def _backward(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, result: torch.dtype, *settings: Any
) -> list[Tensor]:
    """The gradients that are needed of q, k, v and landmarks, from forward once more: nothing is kept from it but the arguments."""
    *chosen, gradient, needed = settings
    tensors: list[Any] = [
        None if x is None else x.detach().requires_grad_(wants) for x, wants in zip((q, k, v, landmarks), needed, strict=True)
    ]
    with _recording(), without_autocast(q):
        q, k, v, landmarks = tensors
        out = attention_core.attention(q, k, v, landmarks, mask, _settings(*chosen), gradient).to(result)
    wanted = [x for x, wants in zip(tensors, needed, strict=True) if wants and x is not None]
    found = list(torch.autograd.grad(out, wanted, grad.transpose(1, 2)))
    if needed[3]:
        return [*map(_by_tokens, found[:-1]), found[-1].contiguous()]
    return [_by_tokens(x) for x in found]


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, result: torch.dtype, *settings: Any
) -> list[Tensor]:
    *_, needed = settings
    found = [x.new_empty(x.transpose(1, 2).shape) for x, needs in zip((q, k, v), needed, strict=False) if needs and x is not None]
    return [*found, landmarks.new_empty(landmarks.shape)] if needed[3] else found


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, landmarks, mask, ctx.result, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, landmarks, mask)


def _pull(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = [bool(needs) for needs in ctx.needs_input_grad[:4]]
    found = _backward(grad, *ctx.saved_tensors, ctx.result, *ctx.settings, needed)
    each = iter(found)
    gradients = [next(each) if needs else None for needs in needed]
    return (*(None if x is None else x.transpose(1, 2) for x in gradients[:3]), gradients[3], *(None,) * (2 + len(ctx.settings)))


_forward.register_autograd(_pull, setup_context=_keep)
