"""Attention functions for the attention interface of Hugging Face transformers, and the mask function that goes with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softlinalg import _arrays
from softlinalg._settings import is_one_of, shown, whole_number
from softlinalg.errors import ParameterError, ShapeError
from softlinalg.torch.functional import clustered_softmax_attention, soft_attention
from softlinalg.torch.landmarks import KMeansLandmarks, PoolLandmarks, RandomLandmarks

__all__ = ["NAMES", "Options", "clustered_forward", "key_mask", "options_of", "register", "soft_forward"]

NAMES = ("soft", "softmax_clustered")

_SAMPLERS: Mapping[str, Callable[[int], nn.Module]] = {"pool": PoolLandmarks, "kmeans": KMeansLandmarks, "random": RandomLandmarks}


class Options(NamedTuple):
    """What the attention functions are called with; a model's `config.softlinalg`, a dict, has precedence."""

    landmarks: int = 49
    """Of "soft", for each head."""
    sampler: str = "pool"
    """Where they come from: "pool", "kmeans" or "random"."""
    inverse: str = "certified"
    normalization: str | None = None
    ridge: float | None = None
    clusters: int = 128
    """Of "softmax_clustered": means of keys for each query."""
    query_groups: int = 32


_registered: list[Options] = [Options()]


def register(**options: Any) -> None:
    """Make "soft" and "softmax_clustered" known to transformers, as values of `attn_implementation`.

    Parameters
    ----------
    landmarks : int, default 49
        Of "soft", for each head: means of the keys over as many stretches of the tokens.
    sampler : {"pool", "kmeans", "random"}
        Where landmarks come from, as in `SoftAttention`.
    inverse, normalization, ridge
        Of "soft", as in `soft_attention`.
    clusters : int, default 128
        Of "softmax_clustered": means of keys for each query.
    query_groups : int, default 32
        Of "softmax_clustered", as in `clustered_softmax_attention`.

    Raises
    ------
    ParameterError
        For an unknown option.

    Notes
    -----
    Any model whose attention goes through the attention interface of transformers can then be built with
    `attn_implementation="soft"` or changed by `model.set_attn_implementation("soft")`. A dict `config.softlinalg` of these options
    has precedence over what is registered, and is saved with the model.

    "soft" is softmax-free attention with the scale of the model: k(q, L) (k(L, L) + ridge I)^-1 k(L, keys) v with
    k(x, y) = exp(-scaling |x - y|^2 / 2): for models that are trained with it. Weights that were trained with softmax need
    "softmax_clustered", see `convert`. Both are for attention in which every token sees all others but padding: causal masks, windows,
    position biases and caches are refused. Dropout of attention weights does not exist in them, and is left out.

    A mask of padded tokens reaches the attention as it is, (batch, tokens): padding changes nothing.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    _registered[0] = _checked("register", options, Options())
    for name, forward in zip(NAMES, (soft_forward, clustered_forward), strict=True):
        AttentionInterface.register(name, forward)
        AttentionMaskInterface.register(name, key_mask)


def _checked(func: str, options: Mapping[str, Any], base: Options) -> Options:
    unknown = sorted(set(options) - set(Options._fields))
    if unknown:
        message = f"{func}: options must be among {', '.join(Options._fields)}; got {unknown[0][:60]!r}. Leave it out."
        raise ParameterError(message)
    found = base._replace(**options)
    for name in ("landmarks", "clusters", "query_groups"):
        whole_number(getattr(found, name), func=func, name=name, minimum=1, remedy="The defaults are 49, 128 and 32.")
    if not is_one_of(found.sampler, tuple(_SAMPLERS)):
        message = f"{func}: sampler must be one of {', '.join(map(repr, _SAMPLERS))}; got {shown(found.sampler)}. The default is 'pool'."
        raise ParameterError(message)
    return found


def options_of(module: nn.Module) -> Options:
    """The options for an attention module: those registered, and above them those of its configuration."""
    own = getattr(getattr(module, "config", None), "softlinalg", None)
    if not own:
        return _registered[0]
    if not isinstance(own, Mapping):
        message = f"config.softlinalg: options must be a dict; got {shown(own)}. Write, for example, {{'landmarks': 64}}."
        raise ParameterError(message)
    return _checked("config.softlinalg", own, _registered[0])


# ------------------------------------------------------------------------------------------------------ masks
def key_mask(*, mask_function: Any = None, attention_mask: Tensor | None = None, kv_length: int = 0, **ignored: Any) -> Tensor | None:
    """The mask that transformers hands to the attention: that of the keys, (batch, keys), True for tokens that are there.

    Registered as mask function for both names. Without it transformers would drop the mask.

    Raises
    ------
    ParameterError
        If some tokens may not see some others (causal attention, windows, packed sequences): every landmark sees all tokens.
    """
    from transformers import masking_utils

    if mask_function is not None and mask_function is not masking_utils.bidirectional_mask_function:
        message = (
            f"attn_implementation: 'soft' and 'softmax_clustered' need tokens that all see one another; got the mask "
            f"{getattr(mask_function, '__name__', 'of another kind')[:60]!r}. Use 'sdpa' for causal and local attention."
        )
        raise ParameterError(message)
    if attention_mask is None:
        return None
    mask = attention_mask[:, -kv_length:] if kv_length else attention_mask
    return mask.to(torch.bool)


def _hidden(func: str, mask: Any, k: Tensor) -> Tensor | None:
    """True for keys that count as absent, (batch, keys), from what transformers hands over; None if all are there."""
    if mask is None:
        return None
    batch, keys = k.shape[0], k.shape[2]
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4) or mask.shape[-1] != keys or mask.shape[0] not in (1, batch):
        got = tuple(mask.shape) if isinstance(mask, Tensor) else shown(mask)
        message = f"{func}: attention_mask must be (batch, {keys}); got {got}. Pass the mask of the tokens."
        raise ShapeError(message)
    if mask.ndim == 2:
        hidden = mask == 0
    else:
        hides = ~mask if mask.dtype == torch.bool else mask < 0
        hidden = hides[:, 0, 0]
        if not _arrays.is_traced(mask):
            finite = mask[torch.isfinite(mask) & (mask < 0)] if mask.is_floating_point() else mask[:0]
            soft = finite.numel() > 0 and bool((finite > torch.finfo(mask.dtype).min / 4).any())
            if soft or not bool((hides == hidden[:, None, None]).all()):
                message = (
                    f"{func}: attention_mask must hide the same keys from all tokens and heads; got one that does not. Every "
                    "landmark sees all tokens: use 'sdpa' for causal or local attention and position biases."
                )
                raise ParameterError(message)
    if not _arrays.is_traced(hidden) and not bool(hidden.any()):
        return None
    return hidden.expand(batch, keys)


def _refuse(func: str, module: nn.Module, is_causal: Any, unknown: Mapping[str, Any]) -> None:
    if is_causal if is_causal is not None else getattr(module, "is_causal", False):
        message = (
            f"{func}: is_causal must be False; got True in {type(module).__name__}. Each output uses sums over all tokens. Use 'sdpa' for "
            "autoregressive models."
        )
        raise ParameterError(message)
    for name in ("position_bias", "sliding_window", "softcap", "s_aux"):
        if unknown.get(name) is not None:
            message = f"{func}: {name} must be None; got a value in {type(module).__name__}. Use 'sdpa' for this model."
            raise ParameterError(message)


# -------------------------------------------------------------------------------------------------- attention
def soft_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax-free attention, as transformers calls it; returns (batch, tokens, heads, width) and no weights."""
    func = "attn_implementation='soft'"
    _refuse(func, module, is_causal, kwargs)
    options, hidden = options_of(module), _hidden(func, attention_mask, key)
    if scaling is not None:  # our kernel has the length scale head_dim^(1/4)
        factor = (float(scaling) * query.shape[-1] ** 0.5) ** 0.5
        if factor != 1:
            query, key = query * factor, key * factor
    # The projection onto landmarks must hold the keys; then it is exact for any query.
    landmarks = _SAMPLERS[options.sampler](options.landmarks).to(key.device)(key, (key.shape[2],), hidden)
    out = soft_attention(
        query,
        value,
        landmarks,
        k=key,
        ridge=options.ridge,
        inverse=options.inverse,
        normalization=options.normalization,
        key_padding_mask=hidden,
    )
    return out.transpose(1, 2).contiguous(), None


def clustered_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention with clustered keys, as transformers calls it; returns (batch, tokens, heads, width) and no weights."""
    func = "attn_implementation='softmax_clustered'"
    _refuse(func, module, is_causal, kwargs)
    options, hidden = options_of(module), _hidden(func, attention_mask, key)
    is_self = query.shape[2] == key.shape[2] and "Cross" not in type(module).__name__
    out = clustered_softmax_attention(
        query,
        key,
        value,
        options.clusters,
        scale=scaling,
        factors="tilted",
        query_groups=options.query_groups,
        key_padding_mask=hidden,
        query_padding_mask=hidden if is_self else None,
    )
    return out.transpose(1, 2).contiguous(), None
