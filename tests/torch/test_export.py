"""Exported programs: the file gives the numbers of the model at sizes that it was not made with."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
import array_api_compat.torch  # noqa: E402

from softlinalg import _arrays  # noqa: E402
from softlinalg.errors import ConvergenceError, ParameterError  # noqa: E402
from softlinalg.torch import SoftAttention, SoftBackbone  # noqa: E402
from softlinalg.torch.export import export_onnx, exportable  # noqa: E402
from softlinalg.torch.landmarks import KMeansLandmarks, landmark_grid, pooled  # noqa: E402


def backbone():
    torch.manual_seed(0)
    return SoftBackbone((16, 16, 32, 32), (1, 1, 2, 2), (1, 1, 1, 1), num_classes=3, img_size=64).eval()


def needs_onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra onnx)")


def test_a_copy_that_inverts_by_products_gives_the_same_numbers():
    model = backbone()
    names = [name for name, module in model.named_modules() if hasattr(module, "choice")]
    copied = exportable(model)
    assert names
    assert all(copied.get_submodule(name).choice.inverse == "published" for name in names)
    assert all(model.get_submodule(name).choice.inverse == "certified" for name in names), "the model itself is as it was"
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(copied(x), model(x), atol=1e-5, rtol=0)
        few = exportable(model, steps=8)
        assert (few(x) - model(x)).abs().max() > 1e-5, "eight steps do not converge"


@pytest.mark.parametrize("ridge", [0.01, 1.0])
def test_products_invert_nearly_equal_landmarks(ridge):
    # The largest eigenvalue of W + ridge I is then that of W, its row sum, and the ridge: a start for W alone diverges.
    torch.manual_seed(0)
    model = SoftAttention(16, 2, landmarks=4, grid_dims=1, ridge=ridge).eval()
    x = torch.randn(1, 1, 16) + 1e-3 * torch.randn(2, 20, 16)
    with torch.no_grad():
        torch.testing.assert_close(exportable(model)(x), model(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("landmarks", "ridge", "sampler", "steps"), [(49, 0.01, "pool", 28), (196, 0.01, "pool", 32), (16, 1.0, "conv", 23)]
)
@pytest.mark.parametrize("spread", [1e-3, 1.0, 30.0])
def test_the_steps_converge_whatever_the_input(landmarks, ridge, sampler, steps, spread):
    torch.manual_seed(0)
    ratio = 4 if sampler == "conv" else None
    model = SoftAttention(16, 2, landmarks=landmarks, sampler=sampler, ratio=ratio, grid_dims=1, ridge=ridge, inverse="exact").eval()
    copied = exportable(model)
    assert {module.choice.steps for module in copied.modules() if hasattr(module, "choice")} == {steps}
    x = spread * torch.randn(1, 400, 16)
    allowed = torch.finfo(torch.float32).eps * (landmarks + ridge) / ridge  # of an inverse at the largest condition, in float32
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(copied(x), expected, rtol=0, atol=allowed * float(expected.abs().max()))
        if spread == 1 and ridge < 1:
            assert (exportable(model, steps=steps // 2)(x) - expected).abs().max() > allowed * expected.abs().max()


def test_an_exported_attention_takes_any_number_of_tokens():
    # test_autograd.py exports every inverse, with open numbers of tokens; here the simplest serves.
    torch.manual_seed(0)
    model = SoftAttention(16, 2, landmarks=4, grid_dims=1, inverse="exact").eval()
    # Their product times the bytes of a token is above what a check of the memory would let pass without a question.
    dims = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("tokens", min=4, max=2**20)}
    program = torch.export.export(model, (torch.randn(3, 20, 16),), dynamic_shapes=(dims,)).module()
    for shape in ((2, 7), (3, 20), (5, 33)):
        x = torch.randn(*shape, 16)
        torch.testing.assert_close(program(x), model(x), atol=1e-5, rtol=0)


def test_the_middle_of_rows_takes_an_operation_that_onnx_has():
    class Middle(torch.nn.Module):
        def forward(self, x):
            return _arrays.middle_row(x, xp=array_api_compat.torch)

    x = torch.randn(2, 5, 3)
    program = torch.export.export(Middle(), (x,))
    operations = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert "aten.sort.default" in operations  # aten.sort.stable is not among those of ONNX
    torch.testing.assert_close(program.module()(x), x.median(-2, keepdim=True).values, rtol=0, atol=0)


@pytest.mark.slow
def test_attention_as_onnx_with_open_batch_and_tokens(tmp_path):
    needs_onnx()
    torch.manual_seed(0)
    # "kmeans" has more operations than the others. Each takes a twentieth of a second: one step of Lloyd's algorithm is enough of them,
    # and so are the eight of Newton and Raphson that this ridge needs; those of others are tested above.
    model = SoftAttention(16, 2, landmarks=4, grid_dims=1, sampler="kmeans", ridge=1.0)
    (lloyd,) = (module for module in model.modules() if isinstance(module, KMeansLandmarks))
    lloyd.steps = 1
    path = tmp_path / "attention.onnx"
    with pytest.raises(ConvergenceError, match="tol=1e-12") as caught:  # refuses what is not as near as was asked for
        export_onnx(model, path, torch.randn(3, 21, 16), tol=1e-12)
    report = caught.value.info
    assert report.path == str(path)
    assert {size[1] for size in report.sizes} == {14, 21, 28}
    assert 0 < max(report.errors) < 1e-4
    assert "3x21x16" in str(report)


@pytest.mark.slow
def test_a_backbone_as_onnx(tmp_path):
    # Images of one size, with its own grid of landmarks: open sides make tracing far slower. docs/how-to/export.md has them for soft_tiny.
    needs_onnx()
    torch.manual_seed(0)
    # The mean of the tokens: without blocks in its stage the class token sees none of them.
    model = SoftBackbone((8, 8, 16, 16), (1, 1, 2, 2), (1, 0, 0, 0), num_classes=3, img_size=32, landmarks=4, ridge=1.0, global_pool="avg")
    report = export_onnx(model, tmp_path / "backbone.onnx", torch.randn(2, 3, 128, 64), dynamic=(0,), steps=8)
    assert {size[0] for size in report.sizes} == {1, 2, 3}
    assert 0 < max(report.errors) < 1e-5


def test_pooling_by_weights_is_adaptive_pooling(monkeypatch):
    from softlinalg.torch import landmarks

    image = torch.randn(2, 3, 17, 23, dtype=torch.float64)
    expected = pooled(image, (7, 5))
    monkeypatch.setattr(landmarks, "is_open", lambda grid: True)
    torch.testing.assert_close(pooled(image, (7, 5)), expected)
    torch.testing.assert_close(pooled(image.flatten(1, 2), (5,)), torch.nn.functional.adaptive_avg_pool1d(image.flatten(1, 2), 5))
    assert landmark_grid(49, (56, 28)) == (7, 7)


def test_what_cannot_be_exported_is_refused(tmp_path):
    with pytest.raises(ParameterError, match="must be a module"):
        exportable(3)
    needs_onnx()
    with pytest.raises(ParameterError, match="end in"):
        export_onnx(backbone(), tmp_path / "model.pt")
    with pytest.raises(ParameterError, match="axes of the input"):
        export_onnx(backbone(), tmp_path / "model.onnx", dynamic=(7,))


def test_the_command_exports_and_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    from softlinalg.cli import main
    from softlinalg.torch import export, save_weights, soft_norm_tiny

    made = []
    report = export.ExportReport("model.onnx", ((2, 3, 256, 224),), (2e-6,))
    monkeypatch.setattr(export, "export_onnx", lambda model, path: made.append((model, path)) or report)  # minutes for a whole backbone
    source = soft_norm_tiny(num_classes=4, img_size=64)
    save_weights(source, tmp_path / "weights.safetensors")
    command = ["export", "soft_norm_tiny", "--classes", "4", "--image-size", "64", "--weights", str(tmp_path / "weights.safetensors")]
    assert main([*command, "--output", str(tmp_path / "model.onnx")]) == 0
    (model, path) = made[0]
    assert path.name == "model.onnx"
    assert torch.equal(model.head.weight, source.head.weight)
    assert "2x3x256x224: 2.0e-06" in capsys.readouterr().out
    assert main(["export", "soft_gigantic", "--output", "model.onnx"]) == 2
    assert "soft_gigantic" in capsys.readouterr().err
    assert main([*command[:2], "--weights", str(tmp_path / "none.safetensors"), "--output", "model.onnx"]) == 2
