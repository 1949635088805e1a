"""timm: what its own tests ask of every model, on our ten. The small ones run; of the large ones only shapes are looked at."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm", reason="timm is not installed (extra timm)")
from safetensors.torch import save_file  # noqa: E402
from timm.optim import create_optimizer_v2  # noqa: E402

import softlinalg.torch.timm as ours  # noqa: E402
from softlinalg.errors import ParameterError  # noqa: E402
from softlinalg.torch import backbones  # noqa: E402

NAMES = [f"{kind}_{size}" for kind in ("soft", "soft_norm") for size in ("tiny", "small", "medium", "large", "huge")]
TINY = ["soft_tiny", "soft_norm_tiny"]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def create(name="soft_tiny", **more):
    """With one block in each stage, to be quick."""
    return timm.create_model(name, depths=(1, 1, 1, 1), **more)


def images(batch=1, side=64):
    return torch.randn(batch, 3, side, side)


def test_timm_lists_the_ten():
    assert sorted(NAMES) == sorted(timm.list_models("soft_*"))
    assert all(timm.is_model(name) for name in NAMES)
    assert set(NAMES) <= set(ours.__all__)


@pytest.mark.parametrize("name", NAMES)
def test_each_is_the_model_of_that_name(name):
    sizes = ours._SIZES[name.rsplit("_", 1)[1]]
    assert sizes is getattr(backbones, name.rsplit("_", 1)[1].upper())
    with torch.device("meta"):  # one block in each stage stands for all
        model = timm.create_model(name, depths=(1, 1, 1, 1))
        normalization = "published" if name.startswith("soft_norm") else None
        expected = backbones.SoftBackbone(**{**sizes, "depths": (1, 1, 1, 1)}, normalization=normalization)
    shapes = {key: value.shape for key, value in expected.state_dict().items()}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes
    assert repr(model.block1[0]["att"].mha.attn) == repr(expected.block1[0]["att"].mha.attn)
    config = model.pretrained_cfg
    assert config["architecture"] == name
    assert config["input_size"] == (3, 224, 224)
    for part in (config["classifier"], config["first_conv"]):
        assert f"{part}.weight" in shapes


@pytest.mark.parametrize("name", TINY)
def test_forward_features_head_and_classifiers(name):
    model = create(name).eval()
    with torch.no_grad():
        x = images()
        tokens = model.forward_features(x)
        assert tokens.shape == (1, 5, model.num_features)
        assert model.forward_head(tokens, pre_logits=True).shape == (1, model.head_hidden_size)
        assert torch.equal(model.forward_head(tokens), model(x))
        assert model(x).shape == (1, 1000)
        assert model.get_classifier() is model.head
        model.reset_classifier(0)
        assert model.num_classes == 0
        assert model(x).shape == (1, model.num_features)
        model.reset_classifier(0, "")
        assert model(x).shape == tokens.shape
        model.reset_classifier(7, "avg")
        assert model(x).shape == (1, 7)


@pytest.mark.parametrize("name", TINY)
def test_every_parameter_has_a_gradient_and_a_step_lowers_the_loss(name):
    model = create(name, num_classes=5, drop_path_rate=0.0).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.75)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] > 0 for p in group["params"]}
    assert id(model.pos_embed1) not in decayed
    assert id(model.block1[0]["att"].mha.W_q.weight) in decayed
    x, labels = images(4), torch.tensor([0, 1, 2, 3])
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0]


def test_features_only_gives_the_maps_of_the_backbone():
    model = create("soft_tiny", features_only=True).eval()
    assert model.feature_info.channels() == [64, 128, 320, 512]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    x = images()
    with torch.no_grad():
        maps = model(x)
        for found, expected in zip(maps, model.model.features(x), strict=True):
            assert torch.equal(found, expected)
    some = create("soft_tiny", features_only=True, out_indices=(1, -1)).eval()
    assert some.feature_info.channels() == [128, 512]
    assert [tuple(found.shape[1:]) for found in some(x)] == [(128, 8, 8), (512, 2, 2)]


def test_intermediates_in_both_formats_and_normalized():
    model = create("soft_tiny").eval()
    x = images()
    with torch.no_grad():
        final, maps = model.forward_intermediates(x, norm=True)
        torch.testing.assert_close(final, model.forward_features(x))
        torch.testing.assert_close(maps[3].flatten(2).mT, final[:, 1:])
        last_two = model.forward_intermediates(x, indices=2, output_fmt="NHWC", intermediates_only=True)
        assert [tuple(found.shape) for found in last_two] == [(1, 4, 4, 320), (1, 2, 2, 512)]
        first = model.forward_intermediates(x, indices=[0], stop_early=True, intermediates_only=True)
        torch.testing.assert_close(first[0], maps[0])
    with pytest.raises(ParameterError, match="output_fmt"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_the_whole_model_runs():
    with torch.no_grad():
        assert timm.create_model("soft_norm_tiny", num_classes=3).eval()(images()).shape == (1, 3)


def test_options_reach_the_network():
    with torch.device("meta"):
        model = timm.create_model("soft_tiny", img_size=96, in_chans=1, drop_rate=0.2, drop_path_rate=0.1, landmarks=16, sampler="pool")
    assert model.pos_embed1.shape[1] == 24 * 24
    assert model.patch_embed1.proj[0].in_channels == 1
    assert model.head_drop.p == 0.2
    assert model.block1[0]["att"].mha.attn.landmarks == 16
    model.set_grad_checkpointing()
    assert model.grad_checkpointing


def test_weights_from_a_file_fit_also_for_another_image_size(tmp_path):
    source = backbones.SoftBackbone(**{**backbones.TINY, "depths": (1, 1, 1, 1)}, img_size=64, num_classes=6)
    save_file({"module." + name: value.contiguous() for name, value in source.state_dict().items()}, tmp_path / "weights.safetensors")
    overlay = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 6}
    model = create("soft_tiny", pretrained=True, img_size=64, num_classes=6, pretrained_cfg_overlay=overlay)
    assert torch.equal(model.pos_embed1, source.pos_embed1)
    x = images()
    with torch.no_grad():
        assert torch.equal(model.eval()(x), source.eval()(x))
    wide = create("soft_tiny", pretrained=True, img_size=96, num_classes=6, pretrained_cfg_overlay=overlay)
    assert wide.pos_embed1.shape[1] == 24 * 24
    assert torch.equal(wide.head.weight, source.head.weight)


def test_weights_lie_where_and_in_the_type_that_was_asked_for():
    model = create("soft_tiny", device="meta", dtype=torch.bfloat16).eval()
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
    assert model(images().to("meta", torch.bfloat16)).shape == (1, 1000)  # shapes alone
    model.reset_classifier(2)
    assert (model.head.weight.device.type, model.head.weight.dtype, model.head.training) == ("meta", torch.bfloat16, False)
