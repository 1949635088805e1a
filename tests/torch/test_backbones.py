"""The backbones: published numbers, sizes, images of every shape, batches, heads, features, training."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from softlinalg.errors import ParameterError, ShapeError  # noqa: E402
from softlinalg.torch import SoftBlock, backbones, diagnose  # noqa: E402
from softlinalg.torch.attention import DropPath  # noqa: E402
from softlinalg.torch.backbones import PatchEmbedding, SoftBackbone, resized_positions, soft_norm_tiny, soft_tiny  # noqa: E402
from tests.conftest import SHARED, THOROUGH  # noqa: E402

PARAMETERS = {
    "tiny": 13_069_056,
    "small": 24_110_092,
    "medium": 45_812_707,
    "large": 64_700_646,
    "huge": 87_108_273,
}
GIGA_MACS = {"tiny": 1.83, "small": 3.19, "medium": 7.04, "large": 10.74, "huge": 15.36}
"""Published: convolutions and linear maps at 224."""


def reference(name):
    path = SHARED / "reference" / name
    if not path.is_file():
        pytest.skip(f"reference numbers are not beside this checkout ({name} is missing)")
    return path


def relative(found, wanted):
    return float(np.abs(found.detach().double().numpy() - wanted).max() / np.abs(wanted).max())


def small(**options):
    """A backbone of few parameters with the structure of the others."""
    settings = {"num_classes": 5, "img_size": 64} | options
    return SoftBackbone((16, 32, 48, 64), (1, 2, 3, 4), (1, 1, 1, 1), **settings)


def images(batch=2, size=(64, 64), channels=3, seed=0, dtype=torch.float32):
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --------------------------------------------------------------------------------------------- published numbers
def weights_by_rule(state):
    """The weights that the reference numbers were computed with: from the name and shape of each."""
    found = {}
    for name, value in state.items():
        shape, last = tuple(value.shape), name.split(".")[-1]
        z = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape)
        if not value.is_floating_point():
            z = np.zeros(shape)
        elif last == "running_mean":
            z = 0.1 * z
        elif last == "running_var":
            z = np.exp(0.1 * z)
        elif "Qnorm_act.0" in name:
            z = 0.5 * (1 + 0.1 * z) if last == "weight" else 0.05 * z
        elif len(shape) == 1:
            z = 1 + 0.1 * z if last == "weight" else 0.05 * z
        elif last.startswith("pos_embed") or last == "cls_token":
            z = 0.2 * z
        else:
            z = z / np.sqrt(np.prod(shape[1:])) * (0.5 if "W_q.weight" in name else 1)
        found[name] = torch.tensor(z, dtype=torch.float64 if value.is_floating_point() else value.dtype)
    return found


def _sides_of_rectifiers(model, x):
    """Which side of zero every ReLU of the model is on, and what enters it."""
    entered = {}
    rectifiers = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.ReLU)}
    hooks = [
        m.register_forward_pre_hook(lambda _, given, name=name: entered.__setitem__(name, given[0].clone()))
        for name, m in rectifiers.items()
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return entered


def _take_sides(model, x, entered):
    """Let the rectifiers that rounding moved across zero stand where float64 has them; one of them moves a gradient by 6e-3."""
    rounded = _sides_of_rectifiers(model, x)
    for name, value in rounded.items():
        moved = (value > 0) != (entered[name] > 0)
        assert moved.sum() <= 3
        assert not moved.any() or entered[name][moved].abs().max() <= 1e-4 * entered[name].abs().max()
        model.set_submodule(name, _Side(entered[name] > 0))


class _Side(torch.nn.Module):
    """A rectifier with given sides."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask

    def forward(self, x):
        return x * self.mask


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)], ids=str)
def test_the_tiny_model_is_the_published_one(dtype, tolerance):
    with np.load(reference("full_soft_tiny_224x224.npz")) as file:
        wanted = {key: file[key] for key in file.files}
    model = soft_tiny(published=True).double().eval()
    model.load_state_dict(weights_by_rule(model.state_dict()))
    random = np.random.RandomState(99)
    x = torch.tensor(random.standard_normal((2, 3, 224, 224)))
    cotangent = torch.tensor(random.standard_normal((2, 1000))).to(dtype)
    if dtype != torch.float64:
        entered = _sides_of_rectifiers(model, x)
        model, x = model.to(dtype), x.to(dtype)
        _take_sides(model, x, entered)
    x.requires_grad_()
    tokens = model.forward_features(x)
    logits = model.forward_head(tokens)
    (logits * cotangent).sum().backward()
    assert relative(logits, wanted["logits"]) < tolerance
    assert relative(model.forward_head(tokens, pre_logits=True), wanted["features"]) < tolerance
    assert relative(x.grad, wanted["dX"]) < tolerance
    with torch.no_grad():
        for stage, (found, _) in enumerate(model._stages(x), start=1):
            assert relative(found.mean(1), wanted[f"stage{stage}_tokmean"]) < tolerance, stage


def test_names_shapes_and_types_are_the_published_ones():
    lines = reference("state_dict_keys_soft_tiny.txt").read_text().splitlines()
    for make in (soft_tiny, soft_norm_tiny):
        with torch.device("meta"):
            state = make().state_dict()
        assert [f"{name}\t{tuple(value.shape)}\t{value.dtype}" for name, value in state.items()] == lines


@pytest.mark.parametrize("prefix", ["soft", "soft_norm"])
@pytest.mark.parametrize("size", PARAMETERS)
def test_every_model_has_the_published_number_of_parameters(prefix, size):
    for published in (False, True):
        with torch.device("meta"):
            model = getattr(backbones, f"{prefix}_{size}")(published=published)
        assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    normalization = model.block1[0]["att"].mha.attn.choice.normalization
    assert normalization == ("published" if prefix == "soft_norm" else None)


def test_the_small_model_of_the_published_code_is_there_too():
    with torch.device("meta"):
        model = backbones.published_code_small()
    assert sum(parameter.numel() for parameter in model.parameters()) == 38_858_462


@pytest.mark.parametrize("size", GIGA_MACS)
def test_operations_at_224_are_the_published_ones(size):
    with torch.device("meta"):  # weights are not drawn: what they are does not matter
        model = getattr(backbones, f"soft_{size}")().eval()
    model.to_empty(device="cpu")
    for value in model.state_dict().values():
        value.zero_()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224))
    counts = {str(name): number for name, number in counter.get_flop_counts()["Global"].items()}
    macs = (counts["aten.convolution"] + counts["aten.addmm"]) / 2e9
    assert abs(macs / GIGA_MACS[size] - 1) < 0.01


# ------------------------------------------------------------------------------------------------- any image
@pytest.mark.parametrize("options", [{}, {"published": True}, {"landmarks": "ratio"}, {"sampler": "pool"}, {"normalization": "symmetric"}])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (33, 31), (65, 40)])
def test_images_of_any_size_work(options, size):
    model, x = small(**options).eval(), images(2, size).requires_grad_()
    logits = model(x)
    logits.square().sum().backward()
    assert logits.shape == (2, 5)
    assert bool(torch.isfinite(logits).all())
    assert bool(torch.isfinite(x.grad).all())


@settings(max_examples=20)
@given(height=st.integers(1, 80), width=st.integers(1, 80), seed=st.integers(0, 9))
def test_maps_round_up_from_any_size(height, width, seed):
    maps = small().eval().features(images(1, (height, width), seed=seed))
    assert [tuple(found.shape) for found in maps] == [
        (1, dim, -(-height // stride), -(-width // stride)) for dim, stride in zip((16, 32, 48, 64), (4, 8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("options", [{}, {"normalization": "published"}, {"normalization": "symmetric"}, {"sampler": "pool"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strange_images_stay_finite_and_certified(options, dtype):
    torch.manual_seed(0)
    model = small(**options).to(dtype).eval()
    half = torch.zeros(1, 3, 64, 64)
    half[..., 32:] = 1
    for x in (torch.zeros(1, 3, 64, 64), torch.full((1, 3, 64, 64), 255.0), half, 1e4 * images(1), images(1, (64, 32)).repeat(1, 1, 1, 2)):
        x = x.to(dtype).requires_grad_()
        logits = model(x)
        logits.float().square().sum().backward()
        assert bool(torch.isfinite(logits).all())
        assert bool(torch.isfinite(x.grad).all())
        # Inverted in float64; the types of the tokens do not matter.
        assert max(float(found.error_bound.max()) for found in model.diagnostics().values()) < 1e-9


def test_other_image_sizes_and_channels_can_be_built_in():
    model = small(img_size=(40, 72), in_chans=1)
    assert [model.pos_embed1.shape[1], model.pos_embed4.shape[1]] == [10 * 18, 2 * 3 + 1]
    assert model(images(2, (40, 72), 1)).shape == (2, 5)


def test_positions_of_the_same_grid_are_those_stored_and_others_are_interpolated():
    stored = torch.randn(1, 1 + 6, 4, dtype=torch.float64)
    assert resized_positions(stored, (2, 3), (2, 3)) is stored
    larger = resized_positions(stored, (2, 3), (4, 6))
    assert larger.shape == (1, 25, 4)
    assert torch.equal(larger[:, 0], stored[:, 0])
    # Halved pixels: the corner stays, the next one lies a quarter of the way to its neighbor.
    torch.testing.assert_close(larger[0, 1], stored[0, 1])
    torch.testing.assert_close(larger[0, 2], 0.75 * stored[0, 1] + 0.25 * stored[0, 2])


# ---------------------------------------------------------------------------------------------------- batches
@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [soft_tiny, soft_norm_tiny, lambda: soft_tiny(normalization="symmetric")], ids=["soft", "norm", "symmetric"]
)
def test_an_image_has_the_same_logits_alone_and_among_others(make):
    torch.manual_seed(0)
    model, x = make(), images(16, (128, 128))
    for training in (False, True):
        model.train(training)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # what it does in training is its purpose
        with torch.no_grad():
            among, alone = model(x)[[0, 7]], torch.cat([model(x[:1]), model(x[7:8])])
        # float32: a product of another shape rounds differently, 2^-24 of numbers up to the largest logit, for some thirty layers.
        assert float((among - alone).abs().max()) < 1e-6 * max(1.0, 2 * float(among.abs().max()))


@pytest.mark.parametrize("options", [{}, {"sampler": "pool"}, {"sampler": "random"}, {"normalization": "published"}, {"published": True}])
def test_images_do_not_feel_each_other_in_float64(options):
    torch.manual_seed(0)
    model, x = small(**options).double().eval(), images(6, (64, 48), dtype=torch.float64)
    x[3] *= 1e3  # a strange neighbor
    with torch.no_grad():
        # Up to the condition of a landmark matrix, 49 / 0.01.
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=0, atol=4900 * 1e-14)


def test_published_soft_plus_plus_depends_on_its_batch():
    torch.manual_seed(0)
    model, x = small(normalization="published", published=True, steps=4).double().eval(), images(6, dtype=torch.float64)
    x[3] = 0.1  # equal tokens: largest row sums
    with torch.no_grad():
        assert float((model(x)[:1] - model(x[:1])).abs().max()) > 1e-6


# ------------------------------------------------------------------------------------------- heads and features
@pytest.mark.parametrize(("pool", "shape"), [("token", (2, 5)), ("avg", (2, 5)), ("max", (2, 5)), ("none", (2, 5, 5))])
def test_pooling_says_what_the_classifier_sees(pool, shape):
    model, x = small(global_pool=pool).eval(), images()
    tokens = model.forward_features(x)  # a class token and four others
    wanted = {"token": tokens[:, 0], "avg": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1), "none": tokens}[pool]
    assert model(x).shape == shape
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), wanted)
    torch.testing.assert_close(model(x), model.head(wanted))


def test_the_classifier_can_be_replaced():
    model, x = small().double().eval(), images(dtype=torch.float64)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(3, "avg")
    assert model(x).shape == (2, 3)
    assert model(x).dtype == torch.float64
    assert model.global_pool == "avg"
    model.reset_classifier(0, "token")
    assert torch.equal(model(x), features)
    assert small(num_classes=0)(images()).shape == (2, 64)


def test_features_are_those_of_the_stages_in_the_order_asked():
    model, x = small().eval(), images(1, (64, 96))
    maps = model.features(x)
    for wanted, found in zip((maps[2], maps[0], maps[3]), model.features(x, (2, 0, -1)), strict=True):
        torch.testing.assert_close(found, wanted)
    tokens = model.norm(maps[3].flatten(2).mT)
    torch.testing.assert_close(model.forward_features(x)[:, 1:], tokens)
    assert all(found.is_contiguous(memory_format=torch.channels_last) for found in maps[:3])


# ------------------------------------------------------------------------------------------------------- training
def test_gradients_do_not_change_when_the_insides_are_computed_again():
    torch.manual_seed(0)
    model, x = small(drop_path=0.3), images()
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(1)
        model(x).square().sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-6 * float(gradient.abs().max()) + 1e-9, msg=name)


def test_stochastic_depth_grows_with_depth():
    model = SoftBackbone((16, 32, 48, 64), (1, 2, 3, 4), (1, 2, 2, 2), drop_path=0.3)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    np.testing.assert_allclose(rates, np.linspace(0, 0.3, 7), atol=1e-7)
    published = SoftBackbone((16, 32, 48, 64), (1, 2, 3, 4), (1, 2, 2, 2), drop_path=0.3, published=True)
    assert [type(block["att"].drop) for block in published.block2] == [nn.Dropout] * 2
    assert [type(block.drop) for block in published.block4] == [DropPath] * 2


def test_a_small_backbone_learns():
    torch.manual_seed(0)
    model = small(num_classes=2, img_size=32)
    x = images(16, (32, 32))
    labels = torch.arange(16) % 2
    x[labels == 1, :, :16] += 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]
    assert max(float(found.error_bound.max()) for found in model.diagnostics().values()) < 1e-9


class OneStage(nn.Module):
    """The parts of one stage of a backbone, as small as they come: hundreds of steps of it take seconds."""

    def __init__(self, normalization):
        super().__init__()
        self.embedding = PatchEmbedding([3, 16], (2,))
        self.block = SoftBlock(16, 2, landmarks=9, sampler="conv", ratio=2, depthwise=3, normalization=normalization)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.block(*self.embedding(x)).mean(1))


STEPS = 1000 if THOROUGH else 250


@pytest.mark.parametrize("normalization", [None, "published"])
def test_hundreds_of_steps_leave_every_mode_finite_and_certified(normalization):
    torch.manual_seed(0)
    model = OneStage(normalization)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, fused=True)
    labels = torch.arange(4)
    for step in range(STEPS):
        x = images(4, (16, 16), seed=step)
        x[labels % 2 == 1, 0] += 2
        x[labels > 1, :, :8] += 2
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert float(loss.detach()) < 0.2
    model.eval()
    hard = {"constant": torch.ones(2, 3, 16, 16), "zero": torch.zeros(2, 3, 16, 16), "large": 1e4 * images(2, (16, 16))}
    with torch.no_grad():
        for name, x in hard.items():
            assert bool(model(x).isfinite().all()), name
            assert max(float(found.error_bound.max()) for found in diagnose(model).values()) < 1e-6, name
            with torch.autocast("cpu", torch.bfloat16):
                assert bool(model(x).isfinite().all()), name


def test_diagnostics_and_repr_read_well():
    model = small().eval()
    with torch.no_grad():
        model(images())
    lines = str(model.diagnostics()).splitlines()
    assert lines[0].split() == ["module", "landmarks", "error", "<=", "steps", "condition", "rank", "effective"]
    assert [line.split()[0] for line in lines[1:]] == [f"block{stage}.0.att.mha" for stage in (1, 2, 3)]
    assert "dims=(16, 32, 48, 64), depths=(1, 1, 1, 1), num_classes=5, global_pool=token" in repr(model)
    assert "published=2021" in repr(small(published="2021"))


# ------------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": -1}, "num_classes must be a whole number >= 0; got -1"),
        ({"in_chans": 0}, "in_chans and img_size must be positive"),
        ({"img_size": (224, 0)}, "in_chans and img_size must be positive"),
        ({"global_pool": "mean"}, "global_pool must be one of 'token', 'avg', 'max', 'none'; got 'mean'"),
        ({"ratios": (8, 4)}, "ratios must have 3 entries"),
        ({"drop_path": 1.5}, r"drop_path must lie in \[0, 1\)"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ParameterError, match=message):
        small(**options)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 3, 0, 32)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ShapeError, match=r"x must be \(batch, 3, rows, columns\)"):
        small()(torch.zeros(shape))


def test_stages_that_are_not_there_are_refused():
    with pytest.raises(ParameterError, match="indices must name stages from 0 to 3"):
        small().features(images(), (0, 4))
