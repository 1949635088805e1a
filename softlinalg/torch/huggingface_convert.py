"""Replace the softmax attention of a trained model of transformers by attention with clustered keys, after measuring what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from softlinalg import _inputs
from softlinalg._settings import shown
from softlinalg.errors import ConvergenceError, ParameterError
from softlinalg.torch import huggingface_attention
from softlinalg.torch.huggingface_attention import clustered_forward, key_mask, register

__all__ = ["ConversionReport", "convert"]

_PROBE = "softlinalg_probe"


class ConversionReport(NamedTuple):
    """What `convert` measured on the sample inputs; print it for a table."""

    layers: tuple[tuple[str, float], ...]
    """Name of each attention module, and the relative error |clustered - softmax|_F / |softmax|_F of its output for the inputs it has in
    the model as it was. In the order in which they are called."""
    error: float
    """The largest of them."""
    output_error: float
    """Relative error of the first output of the whole model, all layers replaced."""
    cosine: float
    """Mean cosine of that output with that of the model as it was; of tokens, first the mean is taken."""
    lowest_cosine: float
    clusters: int
    query_groups: int

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.layers)
        lines = [f"{name:{width}}  {error:.3f}" for name, error in self.layers]
        last = f"cosine {self.cosine:.4f} (lowest {self.lowest_cosine:.4f}), relative error {self.output_error:.3f}"
        return "\n".join([f"{'attention':{width}}  relative error", *lines, f"{'output':{width}}  {last}"])


def convert(
    model: Any,
    sample_inputs: Tensor | Mapping[str, Any] | Sequence[Tensor | Mapping[str, Any]],
    *,
    max_error: float = 0.5,
    clusters: int = 128,
    query_groups: int = 32,
) -> ConversionReport:
    """Give a model that was trained with softmax attention attention with clustered keys, linear in the number of tokens.

    Parameters
    ----------
    model : PreTrainedModel
        Of transformers, with bidirectional attention through the attention interface. It is changed in place.
    sample_inputs : Tensor, mapping, or a sequence of them
        Batches as the model takes them: tensors, or keyword arguments such as a tokenizer returns. Errors are those on these inputs:
        take some of your own, of the length that you will use.
    max_error : float, default 0.5
        Relative error that the attention of each layer may have. Errors of heads average out behind the layer: on the sentence model
        that was measured (docs/how-to/huggingface.md), layers at 0.2 to 0.5 left embeddings at a cosine of 0.97.
    clusters, query_groups : int, defaults 128 and 32
        As in `clustered_softmax_attention` with factors="tilted".

    Returns
    -------
    ConversionReport

    Raises
    ------
    ConvergenceError
        If a layer has a larger error; its `info` is the report, and the model is as it was.
    ParameterError
        If the model does not use the attention interface, or has causal or local attention.

    Notes
    -----
    The weights stay. The model then has `attn_implementation="softmax_clustered"`, and its numbers of clusters in `config.softlinalg`,
    which is saved with it; pass `attn_implementation="softmax_clustered"` to `from_pretrained` after `register()`. The naive low-rank
    form of softmax attention as Gaussian attention is not offered: its row sums lose their sign.
    """
    func = "convert"
    limit = _inputs.real_scalar(max_error, func=func, name="max_error")
    if not hasattr(model, "set_attn_implementation"):
        message = f"{func}: model must be one of transformers; got {shown(model)}. Use clustered_softmax_attention in your own."
        raise ParameterError(message)
    register(**huggingface_attention._registered[0]._asdict())  # the names, with the options they have
    batches = _batches(func, sample_inputs)
    chosen = huggingface_attention._checked(func, {"clusters": clusters, "query_groups": query_groups}, huggingface_attention.Options())
    settings = {"clusters": chosen.clusters, "query_groups": chosen.query_groups}
    before = model.config._attn_implementation
    with _changed_configs(model, settings) as configs, _evaluating(model):
        try:
            layers, exact = _measured_layers(func, model, batches)
            model.set_attn_implementation("softmax_clustered")
            report = _report(layers, exact, [_first_output(model(**batch)) for batch in batches], batches, chosen)
            if not report.error <= limit:
                worst = max(report.layers, key=lambda layer: layer[1])
                message = (
                    f"{func}: the error of each layer must be at most max_error={limit:g}; got {worst[1]:.3g} in {worst[0]} "
                    f"with {clusters} clusters. Take more clusters, or a larger max_error if the report (info) suits you."
                )
                raise ConvergenceError(message, report)
        except BaseException:
            model.set_attn_implementation(before)
            raise
        configs.clear()  # keep what was changed
    return report


def _batches(func: str, inputs: Any) -> list[dict[str, Any]]:
    """Keyword arguments of each batch; a tensor alone is the main input."""
    several = inputs if isinstance(inputs, Sequence) and not isinstance(inputs, Mapping) else [inputs]
    batches = []
    for one in several:
        if isinstance(one, Mapping):
            batches.append(dict(one))
        elif isinstance(one, Tensor):
            batches.append({"": one})
        else:
            message = f"{func}: sample_inputs must be tensors or mappings of them; got {shown(one)}. Pass what the model takes."
            raise ParameterError(message)
    if not batches:
        message = f"{func}: sample_inputs must hold a batch; got none. Errors are measured on your inputs."
        raise ParameterError(message)
    return batches


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _changed_configs(model: Any, settings: Mapping[str, int]) -> Iterator[list[tuple[Any, Any]]]:
    """Write the settings into every configuration in the model; what is left in the list is restored."""
    missing = object()
    found = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(config, getattr(config, "softlinalg", missing)) for config in found.values()]
    for config, old in before:
        config.softlinalg = {**(old if isinstance(old, Mapping) else {}), **settings}
    restored = list(before)
    try:
        yield restored
    finally:
        for config, old in restored:
            if old is missing:
                del config.softlinalg
            else:
                config.softlinalg = old


def _measured_layers(func: str, model: Any, batches: list[dict[str, Any]]) -> tuple[list[tuple[str, float]], list[Tensor]]:
    """Relative error of each attention module on the inputs that it has in the exact model, and the outputs of that."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for batch in batches:
        if "" in batch:
            batch[model.main_input_name] = batch.pop("")
    names = {id(module): name for name, module in model.named_modules()}
    sums: dict[str, tuple[float, float]] = {}

    def probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, None]:
        clustered, _ = clustered_forward(module, query, key, value, mask, **kwargs)
        hidden = huggingface_attention._hidden(func, mask, key)
        seen = None if hidden is None else ~hidden[:, None, None]
        scale = kwargs.get("scaling")
        exact = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale, enable_gqa=key.shape[1] != query.shape[1])
        exact = exact.transpose(1, 2).contiguous()
        lost, size = (clustered - exact).double(), exact.double()
        if hidden is not None and query.shape[2] == key.shape[2]:
            lost, size = (x.masked_fill(hidden[..., None, None], 0) for x in (lost, size))
        name = names.get(id(module), type(module).__name__)
        old = sums.get(name, (0.0, 0.0))
        sums[name] = (old[0] + float((lost**2).sum()), old[1] + float((size**2).sum()))
        return exact, None

    AttentionInterface.register(_PROBE, probe)
    AttentionMaskInterface.register(_PROBE, key_mask)
    try:
        model.set_attn_implementation(_PROBE)
        exact = [_first_output(model(**batch)) for batch in batches]
    finally:
        for interface in (AttentionInterface, AttentionMaskInterface):
            interface._global_mapping.pop(_PROBE, None)
    if not sums:
        message = (
            f"{func}: model must use the attention interface of transformers; got {type(model).__name__}, which does not. Use another."
        )
        raise ParameterError(message)
    return [(name, (lost / size) ** 0.5 if size else 0.0) for name, (lost, size) in sums.items()], exact


def _first_output(output: Any) -> Tensor:
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first


def _report(
    layers: list[tuple[str, float]], exact: list[Tensor], found: list[Tensor], batches: list[dict[str, Any]], chosen: Any
) -> ConversionReport:
    lost = size = 0.0
    cosines = []
    for a, b, batch in zip(exact, found, batches, strict=True):
        mask = batch.get("attention_mask")
        seen = torch.ones(a.shape[:-1], dtype=torch.bool, device=a.device)
        if isinstance(mask, Tensor) and tuple(mask.shape) == tuple(seen.shape):
            seen = mask.to(seen)
        a, b = (x.double().masked_fill(~seen[..., None], 0) for x in (a, b))
        lost, size = lost + float(((a - b) ** 2).sum()), size + float((a**2).sum())
        means = [x.flatten(1, -2).sum(1) if x.ndim > 2 else x for x in (a, b)]  # a cosine does not feel the length
        cosines.append(F.cosine_similarity(means[0], means[1], dim=-1).flatten())
    all_cosines = torch.cat(cosines)
    return ConversionReport(
        layers=tuple(layers),
        error=max(error for _, error in layers),
        output_error=(lost / size) ** 0.5 if size else 0.0,
        cosine=float(all_cosines.mean()),
        lowest_cosine=float(all_cosines.min()),
        clusters=chosen.clusters,
        query_groups=chosen.query_groups,
    )
