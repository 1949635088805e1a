"""transformers: our attention in its models, our backbones as its models, conversion of trained ones. All models are tiny and random."""

from __future__ import annotations

import json
import types

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
from softlinalg.errors import ConvergenceError, ParameterError, ShapeError  # noqa: E402
from softlinalg.torch import huggingface as hf  # noqa: E402
from softlinalg.torch import huggingface_attention as interface  # noqa: E402
from softlinalg.torch import huggingface_models, soft_attention  # noqa: E402
from softlinalg.torch.landmarks import PoolLandmarks  # noqa: E402

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def bert(name="soft", **more):
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=64, attn_implementation=name, **SMALL, **more)
    return transformers.BertForSequenceClassification(config)


def vit(name="soft"):
    config = transformers.ViTConfig(image_size=16, patch_size=4, attn_implementation=name, num_labels=3, **SMALL)
    return transformers.ViTForImageClassification(config)


def wav2vec2(name="soft"):
    config = transformers.Wav2Vec2Config(
        conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8), feat_extract_norm="layer", num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, attn_implementation=name, num_labels=3, apply_spec_augment=False, layerdrop=0.0, **SMALL,
    )  # fmt: skip
    return transformers.Wav2Vec2ForSequenceClassification(config)


def words(batch=4, tokens=12):
    return {"input_ids": torch.randint(3, 50, (batch, tokens)), "labels": torch.arange(batch) % 2}


MODELS = {
    "text": (bert, words),
    "image": (vit, lambda: {"pixel_values": torch.randn(4, 3, 16, 16), "labels": torch.arange(4) % 3}),
    "audio": (wav2vec2, lambda: {"input_values": torch.randn(4, 400), "labels": torch.arange(4) % 3}),
}


def tiny_config(**more):
    sizes = {"dims": (16, 16, 32, 32), "heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1), "image_size": 32, "num_labels": 3}
    return hf.SoftConfig(**{**sizes, **more})


# --------------------------------------------------------------------------------------- the attention interface
@pytest.mark.parametrize("name", ["soft", "softmax_clustered"])
@pytest.mark.parametrize("kind", MODELS)
def test_models_learn_in_three_steps_and_infer(kind, name):
    build, inputs = MODELS[kind]
    model, batch = build(name).train(), inputs()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    losses = []
    for _ in range(4):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
    assert losses[3] < losses[0]
    names = [name for name, p in model.named_parameters() if ("query" in name or "q_proj" in name) and name.endswith("weight")]
    assert names
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in names)
    with torch.no_grad():
        logits = model.eval()(**batch).logits
        model.set_attn_implementation("sdpa")
        assert torch.isfinite(logits).all()
        assert (logits - model(**batch).logits).abs().max() > 0 or name == "softmax_clustered", "another attention, other numbers"


@pytest.mark.parametrize("name", ["soft", "softmax_clustered"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_changes_nothing(name, side):
    model = bert(name).eval().bert
    model.config.softlinalg = {"clusters": 4, "query_groups": 2, "landmarks": 5}
    ids = torch.randint(3, 50, (3, 12))
    lengths = (12, 7, 3)
    mask = torch.zeros(3, 12, dtype=torch.long)
    positions = torch.zeros(3, 12, dtype=torch.long)
    for row, length in enumerate(lengths):
        place = slice(0, length) if side == "right" else slice(12 - length, 12)
        mask[row, place], positions[row, place] = 1, torch.arange(length)
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state
        unmasked = model(input_ids=ids, position_ids=positions).last_hidden_state
        for row, length in enumerate(lengths):
            seen = mask[row].bool()
            alone = model(input_ids=ids[row : row + 1, seen]).last_hidden_state
            torch.testing.assert_close(together[row, seen], alone[0], atol=1e-5, rtol=0)
            if length < 12:
                assert (unmasked[row, seen] - alone[0]).abs().max() > 1e-4, "without the mask it would show"


def test_soft_is_softmax_free_attention_with_landmarks_from_the_keys():
    q, k, v = (torch.randn(2, 2, 9, 8, dtype=torch.float64) for _ in range(3))
    out, weights = interface.soft_forward(torch.nn.Identity(), q, k, v, None, scaling=8**-0.5)
    assert weights is None
    expected = soft_attention(q, v, PoolLandmarks(49)(k, (9,)), k=k)
    torch.testing.assert_close(out, expected.transpose(1, 2))
    # A model with another scale, such as none at all, has its own kernel.
    other, _ = interface.soft_forward(torch.nn.Identity(), q * 8**-0.25, k * 8**-0.25, v, None, scaling=1.0)
    torch.testing.assert_close(other, out)


def test_options_of_a_configuration_have_precedence_and_are_saved(tmp_path):
    model = bert().eval()
    ids = words()["input_ids"]
    with torch.no_grad():
        default = model(input_ids=ids).logits
        model.config.softlinalg = {"landmarks": 2, "normalization": "symmetric"}
        own = model(input_ids=ids).logits
        assert (own - default).abs().max() > 1e-6
        model.save_pretrained(tmp_path)
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="soft").eval()
        assert torch.equal(again(input_ids=ids).logits, own)


@pytest.mark.parametrize("options", [{"landmark": 3}, {"landmarks": 0}, {"sampler": "grid"}, {"clusters": 1.5}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ParameterError, match=next(iter(options))):
        hf.register(**options)
    assert interface._registered[0] == interface.Options()


def test_causal_models_are_refused():
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=1, n_head=2, attn_implementation="soft")
    model = transformers.GPT2Model(config)
    with pytest.raises(ParameterError, match="causal"):
        model(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_masks_that_are_no_key_masks_are_refused():
    x = torch.randn(2, 2, 5, 8)
    causal = torch.ones(5, 5).tril().bool()[None, None].expand(2, 1, 5, 5)
    with pytest.raises(ParameterError, match="hide the same keys"):
        interface.soft_forward(torch.nn.Identity(), x, x, x, causal)
    with pytest.raises(ParameterError, match="hide the same keys"):
        interface.clustered_forward(torch.nn.Identity(), x, x, x, -torch.rand(2, 1, 5, 5))
    with pytest.raises(ShapeError, match="attention_mask must be"):
        interface.soft_forward(torch.nn.Identity(), x, x, x, torch.ones(2, 4))
    with pytest.raises(ParameterError, match="position_bias"):
        interface.soft_forward(torch.nn.Identity(), x, x, x, None, position_bias=torch.zeros(1, 2, 5, 5))
    with pytest.raises(ParameterError, match="is_causal must be False; got True in Identity"):
        interface.soft_forward(torch.nn.Identity(), x, x, x, None, is_causal=True)
    odd = torch.nn.Identity()
    odd.config = types.SimpleNamespace(softlinalg=3)
    with pytest.raises(ParameterError, match="options must be a dict; got 3"):
        interface.soft_forward(odd, x, x, x, None)
    # An additive mask in four dimensions that hides keys alone is a key mask.
    hidden = torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]).bool()
    added = torch.zeros(2, 1, 5, 5).masked_fill(hidden[:, None, None], torch.finfo(torch.float32).min)
    for forward in (interface.soft_forward, interface.clustered_forward):
        torch.testing.assert_close(forward(torch.nn.Identity(), x, x, x, added), forward(torch.nn.Identity(), x, x, x, ~hidden))


# ----------------------------------------------------------------------------------------------------- models
@pytest.mark.parametrize("attention", [None, {"sampler": "random", "landmarks": 9}, {"normalization": "published"}])
def test_saved_and_loaded_models_are_equal(tmp_path, attention):
    model = hf.SoftForImageClassification(tiny_config(attention=attention)).train()
    images = torch.randn(2, 3, 32, 32)
    model(images, labels=torch.tensor([0, 2])).loss.backward()  # moves the batch statistics
    model.eval().save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "soft"
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path)
    assert isinstance(again, hf.SoftForImageClassification)
    assert not again.training
    with torch.no_grad():
        assert torch.equal(model(images).logits, again(images).logits)
        tokens = transformers.AutoModel.from_pretrained(tmp_path)(images)
        assert torch.equal(tokens.last_hidden_state, model.soft.forward_features(images))
        maps = hf.SoftBackbone.from_pretrained(tmp_path, out_features=["stage1", "stage3"])(images).feature_maps
        for found, expected in zip(maps, model.soft.features(images, (0, 2)), strict=True):
            assert torch.equal(found, expected)


def test_weights_that_a_file_does_not_hold_begin_as_ours(tmp_path):
    hf.SoftModel(tiny_config()).save_pretrained(tmp_path)
    loaded = hf.SoftForImageClassification.from_pretrained(tmp_path, num_labels=500).soft
    assert 0.015 < loaded.head.weight.std() < 0.02  # a normal of 0.02, cut
    assert not loaded.head.bias.any()
    fresh = hf.SoftForImageClassification(tiny_config()).soft
    for name, parameter in huggingface_models._network(tiny_config(), 3).named_parameters():
        assert fresh.get_parameter(name).std().item() == pytest.approx(parameter.std().item(), rel=0.35), name


def test_auto_classes_know_the_models():
    config = transformers.AutoConfig.for_model(
        "soft", **{k: v for k, v in tiny_config().to_dict().items() if k in ("dims", "heads", "depths")}
    )
    assert isinstance(config, hf.SoftConfig)
    backbone = transformers.AutoBackbone.from_config(tiny_config(out_indices=[1, 3]))
    assert isinstance(backbone, hf.SoftBackbone)
    assert backbone.channels == [16, 32]
    output = backbone(torch.randn(1, 3, 40, 32), output_hidden_states=True)
    assert [tuple(x.shape[1:]) for x in output.feature_maps] == [(16, 5, 4), (32, 2, 1)]
    assert len(output.hidden_states) == 4
    with pytest.raises(ValueError, match="stage_names"):
        tiny_config(out_features=["stage9"])


def test_gradient_checkpointing_changes_no_gradient():
    model, images = hf.SoftForImageClassification(tiny_config()).train(), torch.randn(2, 3, 32, 32)
    grads = []
    for enable in (False, True):
        model._set_gradient_checkpointing(enable)
        assert model.is_gradient_checkpointing == enable
        model.zero_grad()
        model(images, labels=torch.tensor([0, 1])).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_upernet_and_detr_train_on_the_features():
    everything = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    images = torch.randn(2, 3, 32, 32)
    upernet = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(backbone_config=everything, hidden_size=16, num_labels=4, auxiliary_in_channels=32, auxiliary_channels=8)
    )
    output = upernet(images, labels=torch.randint(0, 4, (2, 32, 32)))
    assert output.logits.shape == (2, 4, 32, 32)
    output.loss.backward()
    assert upernet.backbone.soft.block1[0]["att"].mha.W_q.weight.grad.abs().max() > 0
    pytest.importorskip("scipy")
    detr = transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=tiny_config(out_features=["stage4"]), use_timm_backbone=False, backbone=None, d_model=16, encoder_layers=1,
            decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2, decoder_attention_heads=2, num_queries=5,
            num_labels=3,
        )
    )  # fmt: skip
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    found = detr(images, labels=[{"class_labels": torch.tensor([i]), "boxes": boxes} for i in range(2)])
    assert found.logits.shape == (2, 5, 4)
    assert found.pred_boxes.shape == (2, 5, 4)
    found.loss.backward()
    grads = [p.grad for name, p in detr.named_parameters() if "block1" in name and "W_q" in name]
    assert grads
    assert all(g is not None and g.abs().max() > 0 for g in grads)


def test_the_trainer_learns_digits(tmp_path):
    pytest.importorskip("accelerate", reason="accelerate is not installed (the Trainer of transformers needs it)")
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:256, None] / 8 - 1
    rows = [{"pixel_values": image, "labels": int(label)} for image, label in zip(images, digits.target, strict=False)]
    config = tiny_config(num_channels=1, image_size=8, num_labels=10, global_pool="avg", attention={"landmarks": 4})
    arguments = transformers.TrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=32, learning_rate=3e-3, use_cpu=True, report_to=[], save_strategy="no",
        logging_steps=4, disable_tqdm=True, seed=0, weight_decay=0.05, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = transformers.Trainer(model=hf.SoftForImageClassification(config), args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.2
    trainer.save_model(tmp_path / "saved")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(again(images[:4]).logits, trainer.model.eval()(images[:4]).logits)


# ------------------------------------------------------------------------------------------------- conversion
def sharp(model):
    """Attention of a random model is flat; with larger queries it is not, as in trained ones."""
    for name, parameter in model.named_parameters():
        if "query" in name or "key" in name:
            parameter.data *= 12
    return model.eval()


def test_conversion_measures_every_layer_and_keeps_the_weights(tmp_path):
    model, ids = sharp(bert("sdpa")), torch.randint(3, 50, (3, 16))
    mask = torch.ones_like(ids)
    mask[1, 9:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    with torch.no_grad():
        before = model(**batch).logits
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    report = hf.convert(model, [batch, batch], clusters=4, query_groups=2, max_error=2.0)
    assert model.training
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert [name for name, _ in report.layers] == [f"bert.encoder.layer.{i}.attention.self" for i in range(2)]
    assert all(0.01 < error < 1 for _, error in report.layers)
    assert report.error == max(error for _, error in report.layers)
    assert model.config._attn_implementation == "softmax_clustered"
    assert model.config.softlinalg == {"clusters": 4, "query_groups": 2}
    with torch.no_grad():
        after = model.eval()(**batch).logits
    assert report.output_error == pytest.approx(((after - before).norm() / before.norm()).item(), rel=1e-3)
    assert report.cosine == pytest.approx(torch.cosine_similarity(before, after).mean().item(), abs=1e-6)
    assert "bert.encoder.layer.1.attention.self" in str(report)
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="softmax_clustered").eval()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, after)


def test_conversion_with_as_many_clusters_as_tokens_is_exact():
    model, ids = sharp(bert("sdpa")), torch.randint(3, 50, (3, 16))
    report = hf.convert(model, {"input_ids": ids}, clusters=16, max_error=1e-4)
    assert report.output_error < 1e-5
    assert report.lowest_cosine > 1 - 1e-6


def test_conversion_refuses_and_leaves_the_model_as_it_was():
    model, ids = sharp(bert("sdpa")), torch.randint(3, 50, (3, 16))
    with torch.no_grad():
        before = model(input_ids=ids).logits
    with pytest.raises(ConvergenceError, match=r"max_error=0\.001; got .* in bert\.encoder\.layer\.\d") as caught:
        hf.convert(model, {"input_ids": ids}, clusters=2, query_groups=1, max_error=0.001)
    assert isinstance(caught.value.info, hf.ConversionReport)
    assert caught.value.info.error > 0.001
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model.config, "softlinalg")
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)


def test_conversion_of_an_image_model_takes_a_tensor():
    report = hf.convert(vit("eager"), torch.randn(2, 3, 16, 16), clusters=8, max_error=1.0)
    assert len(report.layers) == 2


def test_a_classifier_of_whole_maps_is_refused():
    with pytest.raises(ParameterError, match="global_pool must leave one vector for each image; got 'none'"):
        hf.SoftForImageClassification(tiny_config(global_pool="none"))


def test_conversion_refuses_what_it_cannot_convert():
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=1, n_head=2)
    model = transformers.GPT2Model(config)
    with pytest.raises(ParameterError, match="all see one another"):
        hf.convert(model, {"input_ids": torch.zeros(1, 4, dtype=torch.long)})
    assert model.config._attn_implementation != "softmax_clustered"
    for wrong, message in (
        (torch.nn.Linear(2, 2), "model must be one of transformers"),
        (hf.SoftModel(tiny_config()), "attention interface"),
    ):
        with pytest.raises(ParameterError, match=message):
            hf.convert(wrong, torch.randn(1, 3, 32, 32))
    with pytest.raises(ParameterError, match="sample_inputs must hold"):
        hf.convert(bert("sdpa"), [])
    with pytest.raises(ParameterError, match="sample_inputs must be tensors or mappings of them; got 3"):
        hf.convert(bert("sdpa"), [words(), 3])
    with pytest.raises(ParameterError, match="max_error must be"):
        hf.convert(bert("sdpa"), words(), max_error=-1.0)
