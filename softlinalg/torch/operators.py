"""Softmax-free attention as one operator of a compiled graph.

torch.compile would trace the iteration, its certificate and the products into a thousand operations: minutes to compile, no compiled
kernel of ours in them, and no error for what cannot be certified. As an operator the attention stays what it is in eager code, whose
errors it raises. Exported programs must run without this package: they keep the operations.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

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
_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()


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
    common = (result, s.inverse, s.ridge, s.steps, s.tol, s.alpha, s.normalization, gradient)
    if _keeps(q, k, v, landmarks, mask, settings):
        return cast("Tensor", _forward_and_kept(q, k, v, landmarks, mask, *common)[0]).transpose(1, 2)
    return cast("Tensor", _forward(q, k, v, landmarks, mask, *common)).transpose(1, 2)


def _keeps(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, settings: InverseSettings) -> bool:
    """Will there be a backward pass, for which compiled kernels can keep features? Decided from shapes and types, as the graph is made."""
    given = [x for x in (q, k, v, landmarks) if x is not None]
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in given)) or mask is not None or q.device.type != "cpu":
        return False
    if settings.inverse != "certified" or settings.normalization is not None or q.dtype not in (torch.float32, torch.float64):
        return False
    in_whole_vectors = q.shape[-1] % 16 == 0 and v.shape[-1] % 16 == 0
    return in_whole_vectors and all(x.dtype == q.dtype and x.shape[:2] == q.shape[:2] for x in given)


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
    return _as_promised(torch.autograd.grad(out, wanted, grad.transpose(1, 2)), needed)


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, result: torch.dtype, *settings: Any
) -> list[Tensor]:
    return _shapes_of_gradients(q, k, v, landmarks, settings[-1])


def _as_promised(found: Sequence[Tensor], needed: list[bool]) -> list[Tensor]:
    """Gradients that are needed, in the memory of `_shapes_of_gradients`."""
    of_tokens = len(found) - needed[3]
    return [*map(_by_tokens, found[:of_tokens]), *(x.contiguous() for x in found[of_tokens:])]


def _shapes_of_gradients(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, needed: list[bool]) -> list[Tensor]:
    """Memory as `_backward` returns it."""
    found = [x.new_empty(x.transpose(1, 2).shape) for x, needs in zip((q, k, v), needed, strict=False) if needs and x is not None]
    return [*found, landmarks.new_empty(landmarks.shape)] if needed[3] else found


@torch.library.custom_op(
    "softlinalg::soft_attention_and_kept", mutates_args=(), schema=f"({_TENSORS}, {_SETTINGS}) -> Tensor[]", tags=_TAGS
)
def _forward_and_kept(
    q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, result: torch.dtype, *settings: Any
) -> list[Tensor]:
    """The attention, whether anything was kept of it, and what: where nothing was, memory that was never written to."""
    found = attention_core.kept_attention(q, k, v, landmarks, _settings(*settings[:-1]))
    if found is None:
        kept = attention_core.kept_memory(q, k, v, landmarks)
        return [_forward(q, k, v, landmarks, mask, result, *settings), q.new_zeros((), dtype=torch.bool), *kept]
    return [_by_tokens(found[0].to(result)), q.new_ones((), dtype=torch.bool), *found[1]]


@_forward_and_kept.register_fake
def _(q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, result: torch.dtype, *settings: Any) -> list[Tensor]:
    b, h, n, _ = q.shape
    kept = attention_core.kept_memory(q, k, v, landmarks)
    return [q.new_empty((b, n, h, v.shape[-1]), dtype=result), q.new_empty((), dtype=torch.bool), *kept]


@torch.library.custom_op(
    "softlinalg::soft_attention_backward_from_kept",
    mutates_args=(),
    schema=f"(Tensor grad, {_TENSORS}, {_SETTINGS}, bool[] needed, Tensor was_kept, Tensor[] kept) -> Tensor[]",
    tags=_TAGS,
)
def _backward_from_kept(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, result: torch.dtype, *settings: Any
) -> list[Tensor]:
    """`_backward` without another forward, where one kept what it takes."""
    *others, needed, was_kept, kept = settings
    if not bool(was_kept):
        return cast("list[Tensor]", _backward(grad, q, k, v, landmarks, mask, result, *others, needed))
    found = attention_core.attention_vjp(grad.transpose(1, 2).to(q.dtype), q, k, v, landmarks, tuple(kept))
    return _as_promised([x for x, needs in zip(found, needed, strict=True) if needs and x is not None], needed)


@_backward_from_kept.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor | None, v: Tensor, landmarks: Tensor, mask: Tensor | None, result: torch.dtype, *settings: Any
) -> list[Tensor]:
    return _shapes_of_gradients(q, k, v, landmarks, settings[-3])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, landmarks, mask, ctx.result, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, landmarks, mask)


def _pull(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    needed = [bool(needs) for needs in ctx.needs_input_grad[:4]]
    return _in_places(_backward(grad, *ctx.saved_tensors, ctx.result, *ctx.settings, needed), needed, len(ctx.settings))


def _in_places(found: list[Tensor], needed: list[bool], settings: int) -> tuple[Tensor | None, ...]:
    """For each argument of the operators its gradient, the axes of heads and tokens back in place; None where none is needed."""
    each = iter(found)
    gradients = [next(each) if needs else None for needs in needed]
    return (*(None if x is None else x.transpose(1, 2) for x in gradients[:3]), gradients[3], *(None,) * (2 + settings))


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    q, k, v, landmarks, mask, ctx.result, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, landmarks, mask, *output[1:])


def _pull_from_kept(ctx: Any, grads: list[Tensor]) -> tuple[Tensor | None, ...]:
    needed = [bool(needs) for needs in ctx.needs_input_grad[:4]]
    *given, was_kept = ctx.saved_tensors[:6]
    found = _backward_from_kept(grads[0], *given, ctx.result, *ctx.settings, needed, was_kept, list(ctx.saved_tensors[6:]))
    return _in_places(found, needed, len(ctx.settings))


_forward.register_autograd(_pull, setup_context=_keep)
_forward_and_kept.register_autograd(_pull_from_kept, setup_context=_keep_all)
