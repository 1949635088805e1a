"""What is public compiles as one graph, without a break, and gives the numbers of eager code.

Forward and backward of attention in a graph: test_operators.py; of its inverse alone: test_autograd.py.
"""

from __future__ import annotations

import functools
import importlib.util

import pytest

torch = pytest.importorskip("torch")
from softlinalg.torch import (  # noqa: E402
    SoftAttention,
    SoftBackbone,
    SoftBlock,
    clustered_softmax_attention,
    gaussian_attention,
    soft_attention,
    softmax_as_gaussian,
)


@pytest.fixture(autouse=True)
def one_graph_each():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def agrees(function, *arguments, **settings):
    """Compiled as one graph, which PyTorch refuses where there is a break, as in eager code."""
    with torch.no_grad():
        expected = function(*arguments, **settings)
        found = torch.compile(function, fullgraph=True, backend="eager")(*arguments, **settings)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def tokens(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sampler", ["pool", "conv", "kmeans", "random"])
def test_attention_with_every_sampler(sampler):
    torch.manual_seed(0)
    ratio = 2 if sampler == "conv" else None
    module = SoftAttention(8, 2, landmarks=4, sampler=sampler, ratio=ratio, grid_dims=1).eval()
    agrees(module, tokens(2, 12, 8), (12,), key_padding_mask=torch.arange(12) > torch.tensor([[8], [10]]))


def test_blocks():
    torch.manual_seed(0)
    agrees(SoftBlock(8, 2, landmarks=4, depthwise=3, pre_norm=True).eval(), tokens(2, 12, 8), (4, 3))


def test_a_backbone():
    torch.manual_seed(0)
    settings = {"num_classes": 3, "img_size": 32, "landmarks": 4}
    # Blocks with landmarks from a convolution, and without (the last stage); those in between are as the first.
    agrees(SoftBackbone((8, 8, 16, 16), (1, 1, 2, 2), (1, 0, 0, 1), **settings).eval(), tokens(1, 3, 32, 32))


HEADS = (1, 2, 12, 4)
FUNCTIONS = {
    "soft_attention": lambda q, k, v: soft_attention(q, v, q[:, :, ::3], k=k),
    "gaussian_attention": lambda q, k, v: gaussian_attention(q, v, k, normalization="row"),
    "softmax_as_gaussian": lambda q, k, v: softmax_as_gaussian(q, k, v),
    "counts": functools.partial(clustered_softmax_attention, count=4, factors="counts"),
    "row_stochastic": functools.partial(clustered_softmax_attention, count=4, factors="row_stochastic"),
    "tilted": functools.partial(clustered_softmax_attention, count=4, factors="tilted", query_groups=2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name):
    agrees(FUNCTIONS[name], *(tokens(3, *HEADS)))


@pytest.mark.parametrize("attention", ["soft", "softmax_clustered"])
def test_a_model_of_transformers_on_our_attention(attention):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed (extra hf)")
    import transformers

    from softlinalg.torch import huggingface

    huggingface.register()
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
    model = transformers.BertModel(transformers.BertConfig(**sizes)).eval()
    model.config.softlinalg = {"landmarks": 4, "clusters": 4, "query_groups": 2}
    model.set_attn_implementation(attention)
    agrees(lambda ids: model(input_ids=ids).last_hidden_state, torch.arange(12)[None] % 20)


def test_a_model_of_ours_for_transformers():
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("transformers is not installed (extra hf)")
    from softlinalg.torch import huggingface

    torch.manual_seed(0)
    config = huggingface.SoftConfig(
        dims=[8, 8, 16, 16],
        heads=[1, 1, 2, 2],
        depths=[1, 0, 0, 0],  # the backbone itself is compiled above
        image_size=32,
        num_labels=3,
        global_pool="avg",  # without blocks in its stage the class token sees no other
        attention={"landmarks": 4},
    )
    model = huggingface.SoftForImageClassification(config).eval()
    agrees(lambda pixels: model(pixel_values=pixels).logits, tokens(1, 3, 32, 32))
