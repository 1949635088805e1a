"""Attention modules: published numbers, landmarks, padding, blocks, diagnostics, pictures."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from softlinalg.errors import ParameterError, ShapeError  # noqa: E402
from softlinalg.torch.attention import DropPath, SoftAttention, SoftBlock  # noqa: E402
from softlinalg.torch.diagnostics import attention_map, diagnose, plot_attention  # noqa: E402
from softlinalg.torch.functional import soft_attention  # noqa: E402
from softlinalg.torch.landmarks import KMeansLandmarks, PoolLandmarks, RandomLandmarks, landmark_grid  # noqa: E402
from tests.conftest import SHARED  # noqa: E402

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
"""What the published numbers are asked to, relative to the largest entry."""

SAMPLERS = ("pool", "conv", "kmeans", "random")


def published_file(name):
    path = SHARED / "reference" / f"attn_{name}_d64h2r4_mild.npz"
    if not path.is_file():
        pytest.skip(f"reference numbers are not beside this checkout ({path.name} is missing)")
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def relative(found, wanted):
    return float(np.abs(found.detach().double().numpy() - wanted).max() / np.abs(wanted).max())


def tokens(batch=2, count=48, dim=16, seed=0, dtype=torch.float64):
    return torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# ------------------------------------------------------------------------------------------- published numbers
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["base", "norm"])
def test_the_module_and_its_gradients_are_the_published_ones(name, dtype):
    file = published_file(name)
    normalization = "published" if name == "norm" else None
    module = SoftAttention(64, 2, ratio=4, depthwise=9, normalization=normalization, published=True).to(dtype)
    module.load_state_dict({key.removeprefix("module_sd/"): torch.tensor(file[key]) for key in file if key.startswith("module_sd/")})
    x = torch.tensor(file["X"], dtype=dtype, requires_grad=True)
    out = module(x, (16, 16))
    (out * torch.tensor(file["cotX"], dtype=dtype)).sum().backward()
    assert relative(out, file["outX"]) < TOLERANCE[dtype]
    assert relative(x.grad, file["dX"]) < TOLERANCE[dtype]
    for key, parameter in module.named_parameters():
        assert relative(parameter.grad, file[f"dparamX/{key}"]) < TOLERANCE[dtype], key


def test_the_inner_attention_is_the_published_one():
    file = published_file("base")
    module = SoftAttention(64, 2, ratio=4, depthwise=9, published=True).double().attn
    module.load_state_dict({key.removeprefix("kernel_sd/"): torch.tensor(file[key]) for key in file if key.startswith("kernel_sd/")})
    q, v = (torch.tensor(file[key], requires_grad=True) for key in "QV")
    out = module(q, v, (16, 16))
    (out * torch.tensor(file["cot"])).sum().backward()
    assert relative(out, file["out"]) < 1e-9
    assert relative(q.grad, file["dQ"]) < 1e-9
    assert relative(v.grad, file["dV"]) < 1e-9
    assert relative(module.find_landmarks(q, (16, 16)) / 32**0.25, file["landmarks"]) < 1e-9


def test_other_inverses_have_their_names():
    file = published_file("base")
    module = SoftAttention(64, 2, ratio=4, depthwise=9, published=True, inverse="exact", gradient="exact").double().attn
    module.load_state_dict({key.removeprefix("kernel_sd/"): torch.tensor(file[key]) for key in file if key.startswith("kernel_sd/")})
    q, v = (torch.tensor(file[key], requires_grad=True) for key in "QV")
    out = module(q, v, (16, 16))
    (out * torch.tensor(file["cot"])).sum().backward()
    assert relative(out, file["out_exactinv"]) < 1e-9
    assert relative(q.grad, file["dQ_exactinv"]) < 1e-9


def test_the_inverse_of_2021_is_that_of_soft_plus_plus_without_its_normalization():
    x = tokens(3, 64, 16)
    older = SoftAttention(16, 2, ratio=2, published="2021", steps=4).double()  # few: where it starts shows
    q, v = older.heads(x, older.W_q), older.heads(x, older.W_v)
    found = older.attn(q, v, (8, 8))
    wanted = soft_attention(q, v, older.attn.find_landmarks(q, (8, 8)), inverse="published", ridge=0.0, published_alpha="batch", steps=4)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    alone = torch.cat([older.attn(q[i : i + 1], v[i : i + 1], (8, 8)) for i in range(3)])
    assert not torch.allclose(found, alone, rtol=1e-9), "its start depends on the whole batch"


# --------------------------------------------------------------------------------------------------- landmarks
@given(count=st.integers(1, 120), height=st.integers(1, 40), width=st.integers(1, 40))
def test_landmark_cells_are_at_most_so_many_and_fit_the_grid(count, height, width):
    rows, columns = landmark_grid(count, (height, width))
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    assert rows * columns <= count
    assert 2 * rows * columns > min(count, height * width, 2 * min(count, max(height, width))) or rows * columns >= count // 2


def test_square_grids_have_square_cells():
    assert [landmark_grid(49, (side, side)) for side in (56, 28, 14, 7, 4, 1)] == [(7, 7)] * 4 + [(4, 4), (1, 1)]
    assert landmark_grid(49, (1, 1000)) == (1, 49)
    assert landmark_grid(49, (28, 56)) == (5, 9)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("grid", [(8, 6), (16, 12), (31, 17)])
def test_the_number_of_landmarks_does_not_grow_with_the_grid(sampler, grid):
    module = SoftAttention(16, 2, 12, sampler=sampler).double()
    x = tokens(1, grid[0] * grid[1])
    assert module(x, grid).shape == x.shape
    assert module.attn._last_landmarks.shape[2] <= 12


@pytest.mark.parametrize("sampler", ["pool", "conv"])
def test_landmarks_by_ratio_are_one_for_each_whole_cell(sampler):
    module = SoftAttention(16, 2, "ratio", sampler=sampler, ratio=4).double()
    for grid, count in (((8, 8), 4), ((12, 10), 6), ((3, 8), 2), ((1, 1), 1)):
        module(tokens(1, grid[0] * grid[1]), grid)
        assert module.attn._last_landmarks.shape[2] == count, grid


def test_fixed_and_ratio_convolutions_agree_at_the_size_they_share():
    fixed, by_ratio = SoftAttention(16, 2, sampler="conv", ratio=2), SoftAttention(16, 2, "ratio", sampler="conv", ratio=2)
    by_ratio.load_state_dict(fixed.state_dict())
    x = tokens(2, 14 * 14, dtype=torch.float32)
    torch.testing.assert_close(fixed(x, (14, 14)), by_ratio(x, (14, 14)), rtol=0, atol=0)


def test_pooled_landmarks_are_the_means_of_their_cells():
    q = torch.randn(2, 3, 8 * 12, 5, dtype=torch.float64)
    found = PoolLandmarks(6)(q, (8, 12))  # two rows of three cells, 4 x 4 each
    wanted = q.reshape(2, 3, 2, 4, 3, 4, 5).mean((3, 5)).reshape(2, 3, 6, 5)
    torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)


def test_kmeans_landmarks_lower_the_distance_to_the_tokens():
    q = torch.randn(2, 2, 200, 4, dtype=torch.float64)

    def distance(landmarks):
        return float(torch.cdist(q, landmarks).amin(-1).square().mean())

    start, after = RandomLandmarks(10)(q, (200,)), KMeansLandmarks(10, steps=3)(q, (200,))
    assert distance(after) < 0.8 * distance(start)
    few = torch.zeros(1, 1, 6, 4, dtype=torch.float64)  # equal tokens: three clusters lose theirs
    assert bool((KMeansLandmarks(4)(few + 2, (6,)) == 2).all())


def test_random_landmarks_are_tokens_from_places_that_only_the_length_decides():
    sampler, q = RandomLandmarks(7, seed=3), torch.randn(3, 2, 50, 4)
    landmarks = sampler(q, (50,))
    assert landmarks.shape == (3, 2, 7, 4)
    places = sampler.places(50, 7)
    assert len(set(places.tolist())) == 7
    assert bool((landmarks == q[:, :, places]).all())
    assert bool((copy.deepcopy(sampler).double().places(50, 7) == places).all())
    assert not torch.equal(RandomLandmarks(7, seed=4).places(5000, 7), sampler.places(5000, 7))


def test_a_module_may_be_the_sampler():
    class First(nn.Module):
        def forward(self, q, grid, hidden):
            return q[:, :, :5]

    module, x = SoftAttention(16, 2, sampler=First(), grid_dims=1).double(), tokens()
    q, v = module.heads(x, module.W_q), module.heads(x, module.W_v)
    wanted = module.ff(soft_attention(q, v, q[:, :, :5]).transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(module(x), wanted, rtol=0, atol=0)
    assert "First" in repr(module)


@pytest.mark.parametrize("normalization", [None, "symmetric"])
def test_few_tokens_may_attend_through_the_full_kernel(normalization):
    settings = {"grid_dims": 1, "normalization": normalization, "ridge": 1e-12}
    full, x = SoftAttention(16, 2, full_kernel_below=49, **settings).double(), tokens()
    q, v = full.heads(x, full.W_q), full.heads(x, full.W_v)
    # The same as every token being a landmark, if the ridge vanishes; their matrix is close to singular.
    wanted = soft_attention(q, v, q, normalization=normalization, ridge=1e-12)
    torch.testing.assert_close(full.attn(q, v, (48,)), wanted, rtol=0, atol=1e-4)
    with pytest.raises(ParameterError, match="module must have been called"):
        full.diagnostics()
    full(tokens(1, 49))
    assert full.diagnostics().landmarks == 49
    assert "full kernel below 49 tokens" in repr(full)
    automatic = SoftAttention(16, 2, inverse="auto", normalization=normalization)
    assert "inverse=certified" in repr(automatic)
    assert "full kernel below 400 tokens" in repr(automatic)
    assert "full kernel" not in repr(SoftAttention(16, 2, inverse="auto", normalization="published"))


# ------------------------------------------------------------------------------------ samples, padding, other tokens
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("normalization", [None, "published", "symmetric"])
def test_a_sample_does_not_feel_its_batch(sampler, normalization):
    module = SoftAttention(16, 2, 9, sampler=sampler, depthwise=3, normalization=normalization).double()
    x = tokens(5)
    # The condition of a landmark matrix is at most 9 / ridge = 900, and rounding is the only difference.
    torch.testing.assert_close(module(x, (8, 6))[3:4], module(x[3:4], (8, 6)), rtol=0, atol=900 * 1e-14)


@pytest.mark.parametrize("sampler", ["pool", "kmeans", "random"])
@pytest.mark.parametrize("normalization", [None, "published", "symmetric"])
def test_padding_is_as_if_it_were_not_there(sampler, normalization):
    module = SoftAttention(16, 2, 7, sampler=sampler, grid_dims=1, depthwise=3, normalization=normalization).double()
    x = tokens(2, 40)
    hidden = torch.zeros(2, 40, dtype=torch.bool)
    hidden[0, 29:] = True
    out = module(x, key_padding_mask=hidden)
    torch.testing.assert_close(out[:1, :29], module(x[:1, :29]), rtol=0, atol=1e-10)
    torch.testing.assert_close(out[1:], module(x[1:]), rtol=0, atol=1e-10)
    noise = torch.where(hidden[..., None], 1e6 * torch.randn_like(x), x)
    torch.testing.assert_close(module(noise, key_padding_mask=hidden)[:1, :29], out[:1, :29], rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_padding_on_a_grid_holds_does_not_matter(sampler):
    module, x = SoftAttention(16, 2, 9, sampler=sampler, depthwise=3).double(), tokens()
    hidden = torch.zeros(8, 6, dtype=torch.bool)
    hidden[:, 4:] = True
    hidden = hidden.reshape(1, 48).expand(2, -1)
    noise = torch.where(hidden[..., None], torch.randn_like(x), x)
    first, second = (module(z, (8, 6), key_padding_mask=hidden) for z in (x, noise))
    torch.testing.assert_close(first[~hidden], second[~hidden], rtol=0, atol=1e-11)
    assert bool(torch.isfinite(first).all())


def test_hidden_cells_of_a_grid_leave_the_other_means_alone():
    q, hidden = torch.randn(1, 1, 64, 3, dtype=torch.float64), torch.zeros(1, 8, 8, dtype=torch.bool)
    hidden[:, 4:] = True
    hidden[:, 0, 0] = True
    found = PoolLandmarks(4)(q, (8, 8), hidden.reshape(1, 64))
    image = q.reshape(8, 8, 3)
    wanted = (image[:4, :4].sum((0, 1)) - image[0, 0]) / 15
    torch.testing.assert_close(found[0, 0, 0], wanted)
    torch.testing.assert_close(found[0, 0, 1], image[:4, 4:].mean((0, 1)))
    assert bool((found[0, 0, 2:] == 0).all())


def test_tokens_beside_the_grid_attend_but_have_no_place_on_it():
    module, x = SoftAttention(16, 2, 9, depthwise=3).double(), tokens(2, 50)
    out = module(x, (8, 6))
    assert out.shape == x.shape
    landmarks = module.attn._last_landmarks
    module(x[:, 2:], (8, 6))
    torch.testing.assert_close(landmarks, module.attn._last_landmarks)
    changed = x.clone()
    changed[:, 0] += 1
    assert not torch.allclose(module(changed, (8, 6))[:, 2:], out[:, 2:]), "the others do not see the first token"


@given(
    height=st.integers(1, 9), width=st.integers(1, 9), ratio=st.integers(1, 5), sampler=st.sampled_from(SAMPLERS), seed=st.integers(0, 99)
)
def test_any_grid_works(height, width, ratio, sampler, seed):
    module = SoftAttention(8, 2, 6, sampler=sampler, ratio=ratio, depthwise=3).double()
    x = tokens(2, height * width, 8, seed).requires_grad_()
    out = module(x, (height, width))
    out.sum().backward()
    assert out.shape == x.shape
    assert bool(torch.isfinite(out).all())
    assert bool(torch.isfinite(x.grad).all())


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_equal_tokens_and_large_ones_stay_finite(sampler):
    module = SoftAttention(16, 2, 9, sampler=sampler, depthwise=3)
    for x in (torch.ones(1, 48, 16), torch.zeros(1, 48, 16), 1e4 * tokens(1, dtype=torch.float32)):
        x = x.clone().requires_grad_()
        out = module(x, (8, 6))
        out.square().mean().backward()
        assert bool(torch.isfinite(out).all())
        assert bool(torch.isfinite(x.grad).all())
        assert float(module.diagnostics().error_bound.max()) < 1e-3


def test_autocast_gives_its_type_and_inverts_in_float32():
    module, x = SoftAttention(16, 2, 9, sampler="conv", ratio=2, depthwise=3), tokens(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x, (8, 6))
    assert out.dtype == torch.bfloat16
    # Three bfloat16 products, 2^-8 each, of numbers of the size of the result.
    assert relative(out.float(), module(x, (8, 6)).detach().numpy()) < 0.1
    assert float(module.diagnostics().error_bound.max()) < 1e-3


# ------------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_gradients_are_right(sampler):
    torch.manual_seed(0)
    module = SoftAttention(4, 2, 4, sampler=sampler, ratio=2, depthwise=3).double()
    x = tokens(1, 16, 4).requires_grad_()
    if sampler == "kmeans":  # which token belongs where jumps, and is a constant to the gradient
        x = (x.detach() + 8 * torch.arange(16, dtype=torch.float64).remainder(4)[None, :, None]).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: module(z, (4, 4)), x)


def test_every_parameter_has_a_gradient():
    for sampler in SAMPLERS:
        module = SoftBlock(16, 2, landmarks=9, sampler=sampler, depthwise=3)
        module(tokens(dtype=torch.float32), (8, 6)).square().sum().backward()
        without = [name for name, parameter in module.named_parameters() if parameter.grad is None or not parameter.grad.any()]
        assert not without, sampler


def test_gradients_of_each_sample_come_from_vmap():
    module, x = SoftAttention(16, 2, 9, depthwise=3).double(), tokens(3)
    parameters = dict(module.named_parameters())

    def loss(parameters, sample):
        return torch.func.functional_call(module, parameters, (sample[None], (8, 6))).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    loss(parameters, x[1]).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(each[name][1], parameter.grad, rtol=1e-8, atol=1e-10, msg=name)


def test_a_block_that_records_gradients_compiles_as_one_graph():
    # Blocks that record none, with every kind of landmarks: test_compiled.py.
    block, x = SoftBlock(16, 2, landmarks=9, depthwise=3).eval(), tokens(2, dtype=torch.float32)
    wanted = block(x, (8, 6))
    torch._dynamo.reset()
    found = torch.compile(block, fullgraph=True, backend="eager")(x, (8, 6))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    found.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in block.parameters())


@pytest.mark.thorough("test_export.py exports a backbone of such blocks, test_autograd.py the certified inverse")
def test_a_block_with_landmarks_from_a_convolution_exports():
    block, x = SoftBlock(16, 2, landmarks=9, sampler="conv", ratio=2, depthwise=3).eval(), tokens(2, dtype=torch.float32)
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(block, (x, (8, 6)), dynamic_shapes=({0: batch}, (None, None))).module()
    torch.testing.assert_close(program(torch.cat([x, x]), (8, 6))[:2], block(x, (8, 6)), rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- blocks
def test_a_block_is_the_published_composition():
    block, x = SoftBlock(16, 2, landmarks=9, depthwise=3).double(), tokens()
    y = block.norm1(x + block.mha(x, (8, 6)))
    hidden = block.ff1(y)
    gelu = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))
    torch.testing.assert_close(block(x, (8, 6)), block.norm2(y + block.ff2(gelu)))


def test_pre_norm_blocks_begin_near_the_identity():
    block, x = SoftBlock(16, 2, landmarks=9, pre_norm=True).double(), tokens()
    y = x + block.mha(block.norm1(x), (8, 6))
    torch.testing.assert_close(block(x, (8, 6)), y + block.ff2(block.act(block.ff1(block.norm2(y)))))
    assert "pre-norm" in repr(block)


def test_stochastic_depth_leaves_out_whole_samples():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 3, 2)
    found = drop(x)
    kept = found[:, 0, 0] != 0
    assert bool((found == torch.where(kept, 4 / 3, 0.0)[:, None, None]).all())
    # Four standard deviations of a share of 4,000 samples.
    assert abs(float(kept.double().mean()) - 0.75) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert drop.eval()(x) is x


def test_published_blocks_drop_elements_others_samples():
    assert isinstance(SoftBlock(16, 2, drop_path=0.1).drop, DropPath)
    assert isinstance(SoftBlock(16, 2, drop_path=0.1, ratio=2, published=True).drop, nn.Dropout)
    assert isinstance(SoftBlock(16, 2, drop_path=0.1, ratio=2, published=True, stochastic_depth="sample").drop, DropPath)


def test_the_depthwise_term_shares_one_filter_among_the_channels_of_a_head():
    attn = SoftAttention(12, 3, depthwise=5).double().attn
    v = torch.randn(2, 3, 42, 4, dtype=torch.float64)
    # Channels of a head as a batch, heads as channels: the published layout.
    image = v.reshape(2, 3, 6, 7, 4).permute(0, 4, 1, 2, 3).reshape(8, 3, 6, 7)
    wanted = attn.conv(image).reshape(2, 4, 3, 42).permute(0, 2, 3, 1)
    torch.testing.assert_close(attn._convolved(v, (6, 7)), wanted)


# ---------------------------------------------------------------------------------------------- state, words, pictures
def test_a_module_survives_copies_and_files():
    module, x = SoftAttention(16, 2, 9, sampler="random", depthwise=3), tokens(dtype=torch.float32)
    out = module(x, (8, 6))
    assert torch.equal(copy.deepcopy(module)(x, (8, 6)), out)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    other = SoftAttention(16, 2, 9, sampler="random", depthwise=3)
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(other(x, (8, 6)), out)


def test_repr_says_what_it_does():
    text = repr(SoftAttention(64, 2, ratio=8, depthwise=9, published=True))
    assert "2 heads of 32, landmarks=ratio (conv of ratio 8), inverse=published, gradient=published" in text
    text = repr(SoftAttention(64, 2, normalization="symmetric", ridge=0.001))
    assert "landmarks=49 (pool), inverse=certified, normalization=symmetric, ridge=0.001" in text


def test_diagnostics_tell_the_error_of_each_head():
    x = tokens(3, 96, dtype=torch.float32)
    good = SoftAttention(16, 2, 24)
    with pytest.raises(ParameterError, match=r"module must have been called, outside torch\.compile"):
        good.diagnostics()
    good(x, (12, 8))
    found = good.diagnostics()
    assert found.error_bound.shape == found.steps.shape == found.condition.shape == found.rank.shape == (3, 2)
    assert float(found.error_bound.max()) < 1e-4
    assert float(found.condition.max()) <= 24 / 0.01 + 1
    assert bool((found.effective_rank <= found.rank + 1).all())
    bad = SoftAttention(16, 2, 24, inverse="published")
    bad.load_state_dict(good.state_dict())
    bad(x, (12, 8))
    found = bad.diagnostics()
    # Pooled queries of a fresh module nearly coincide: twenty steps do not invert their matrix.
    assert float(found.error_bound.min()) > 0.1
    assert bool((found.steps == 20).all())
    assert "published" in str(found)
    assert len(str(found).splitlines()) == 4


def test_the_certified_error_bounds_the_true_one():
    module, x = SoftAttention(16, 2, 12, inverse="published", steps=9).double(), tokens()
    module.W_q.weight.data.mul_(20)
    module(x, (8, 6))
    landmarks, found = module.attn._last_landmarks, module.diagnostics()
    w = torch.exp(-torch.cdist(landmarks, landmarks, compute_mode="donot_use_mm_for_euclid_dist").square() / (2 * 8**0.5))
    p = w + 0.01 * torch.eye(12, dtype=torch.float64)
    value = 1.8 / w.sum(-1).amax(-1)[..., None, None] ** 2 * p
    for _ in range(9):
        value = 2 * value - value @ p @ value
    error = torch.linalg.matrix_norm(value - torch.linalg.inv(p)) / torch.linalg.matrix_norm(torch.linalg.inv(p))
    assert bool((found.error_bound >= error * (1 - 1e-9)).all())
    assert bool((found.error_bound <= 1.01 * error + 1e-9).all())
    torch.testing.assert_close(found.condition, torch.linalg.cond(p), rtol=1e-6, atol=0)


def test_diagnose_lists_every_layer():
    model = nn.Sequential(SoftBlock(16, 2, landmarks=9), SoftBlock(16, 4, landmarks=9))
    model(tokens(dtype=torch.float32))
    found = diagnose(model)
    assert list(found) == ["0.mha", "1.mha"]
    assert len(str(found).splitlines()) == 3


class Tiny(nn.Module):
    """An image through one block."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 2, stride=2)
        self.block = SoftBlock(16, 2, landmarks=9, depthwise=3)

    def forward(self, image):
        x = self.embed(image)
        return self.block(x.flatten(2).mT, tuple(x.shape[2:]))


def test_the_map_of_a_query_is_its_row_of_the_attention_matrix():
    model, image = Tiny().double(), torch.randn(3, 12, 16, dtype=torch.float64)
    model.train()
    found = attention_map(model, image, query=(0.9, 0.3))
    assert model.training
    assert found["query"] == (5, 2)
    assert found["layer"] == "block.mha"
    module = model.block.mha
    x = model.embed(image[None]).flatten(2).mT
    q = module.heads(x, module.W_q)
    matrix = soft_attention(q, torch.eye(48, dtype=torch.float64).expand(1, 2, -1, -1), module.attn.find_landmarks(q, (6, 8)))
    torch.testing.assert_close(found["attention"].reshape(2, 48), matrix[0, :, 5 * 8 + 2])
    assert found["places"].shape == (2, 9, 2)
    torch.testing.assert_close(found["places"][0, 0], torch.tensor([0.5, 5 / 6], dtype=torch.float64))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_picture_has_one_panel_per_head(sampler):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    model, image = Tiny(), torch.randn(3, 12, 16)
    model.block = SoftBlock(16, 2, landmarks=9, sampler=sampler, ratio=2)
    figure = plot_attention(model, image)
    assert [axes.get_title() for axes in figure.axes[:2]] == ["head 0", "head 1"]
    assert len(plot_attention(model, image, head=1).axes) == 2  # the panel and its color bar
    matplotlib.pyplot.close("all")


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim; got 3 for 16"),
        ({"num_heads": 2, "landmarks": 0}, "landmarks must be a whole number of at least 1 or 'ratio'; got 0"),
        ({"num_heads": 2, "landmarks": "many"}, "landmarks must be a whole number"),
        ({"num_heads": 2, "landmarks": "ratio"}, "landmarks='ratio' needs ratio"),
        ({"num_heads": 2, "landmarks": "ratio", "ratio": 2, "sampler": "kmeans"}, "landmarks='ratio' needs ratio and the sampler"),
        ({"num_heads": 2, "sampler": "guess"}, "sampler must be one of 'pool', 'conv'"),
        ({"num_heads": 2, "ratio": 0}, "ratio must be a whole number of at least 1"),
        ({"num_heads": 2, "depthwise": 4}, "depthwise must be an odd kernel size"),
        (
            {"num_heads": 2, "full_kernel_below": 9, "normalization": "published"},
            "full_kernel_below must be 0 with normalization='published'",
        ),
        ({"num_heads": 2, "grid_dims": 3}, "grid_dims must be 1"),
        ({"num_heads": 2, "inverse": "guess"}, "inverse must be one of 'certified'"),
        ({"num_heads": 2, "normalization": "softmax"}, "normalization must be None, 'published' or 'symmetric'"),
        ({"num_heads": 2, "published": "2020"}, "published must be True, False or '2021'"),
        (
            {"num_heads": 2, "inverse": "published-2021", "normalization": "symmetric"},
            "normalization must be None with the inverse of 2021",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ParameterError, match=message):
        SoftAttention(16, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop_path": 1.0}, r"drop_path must lie in \[0, 1\)"),
        ({"stochastic_depth": "layer"}, "stochastic_depth must be 'sample' or 'element'"),
    ],
)
def test_blocks_refuse_what_makes_no_sense(settings, message):
    with pytest.raises(ParameterError, match=message):
        SoftBlock(16, 2, **settings)


@pytest.mark.parametrize(
    ("shape", "grid", "mask", "message"),
    [
        ((2, 48, 8), (8, 6), None, r"x must be \(batch, tokens >= 1, 16\)"),
        ((2, 0, 16), (8, 6), None, "x must be"),
        ((2, 48, 16), None, None, "grid is needed by the convolutions"),
        ((2, 48, 16), (8, 7), None, "grid must hold at most the 48 tokens"),
        ((2, 48, 16), (48,), None, "grid must have 2 sides"),
        ((2, 48, 16), (8, 6), torch.zeros(2, 47, dtype=torch.bool), "key_padding_mask must be bool"),
        ((2, 48, 16), (8, 6), torch.zeros(2, 48), "key_padding_mask must be bool"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(shape, grid, mask, message):
    with pytest.raises(ShapeError, match=message):
        SoftAttention(16, 2, depthwise=3)(torch.zeros(shape), grid, key_padding_mask=mask)


def test_pictures_of_what_is_not_there_are_refused():
    with pytest.raises(ParameterError, match="layer must be a SoftAttention of the model"):
        attention_map(Tiny(), torch.zeros(3, 8, 8), layer="block.mha.attn")
    with pytest.raises(ShapeError, match="image must be"):
        attention_map(Tiny(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ShapeError, match="query in"):
        attention_map(Tiny(), torch.zeros(3, 8, 8), query=(2, 0))
