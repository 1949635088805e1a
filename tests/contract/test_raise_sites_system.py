"""Refusals that take a file with a digest that fits what is wrong, a package that is missing, or a routine that fails."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import io
import json
import os
import shutil
import struct
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import array_api_compat.numpy
import numpy as np
import pytest
import torch

import softlinalg
from softlinalg import (
    Gaussian,
    NystromDecomposition,
    _arrays,
    _cli_model,
    _cli_report,
    _compiled,
    _inversion,
    _landmark_refinement,
    _nystrom_io,
    _nystrom_solve,
    cli,
    errors,
)
from softlinalg import _streaming_checkpoint as checkpoint
from softlinalg._cli_options import CommandError
from softlinalg.testing import _gallery_matrices, _layouts, suites
from softlinalg.torch import checkpoints, cpu_kernels, load_published_weights

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=12)
KERNEL = Gaussian(1.0)


# ---------------------------------------------------------------------------------------------------- sealed files
@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "a.npz"
    softlinalg.nystrom(X, KERNEL, landmarks=[0, 5]).save(path)
    return path


def reads(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    """From here on a decomposition's file holds something else, under digests that fit."""
    real = _nystrom_io._Npz.read

    def read(file: Any, size: int) -> dict[str, np.ndarray]:
        arrays = real(file, size)
        change(arrays)
        header = json.loads(arrays.pop("header").tobytes())
        header["content"] = _nystrom_io._content_digest(header, arrays)
        return {"header": np.frombuffer(_nystrom_io.json_bytes(header), dtype=np.uint8), **arrays}

    monkeypatch.setattr(_nystrom_io._Npz, "read", staticmethod(read))


def test_a_file_of_numbers_that_are_not_finite_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads(monkeypatch, lambda arrays: arrays["eigenvalues"].fill(np.nan))
    with pytest.raises(errors.CheckpointCorruptError, match="numbers that are not finite"):
        NystromDecomposition.load(saved)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [(errno.EINVAL, errors.CheckpointCorruptError, "parts that lie outside the file"), (errno.EIO, OSError, "the disk")],
)
def test_places_outside_a_file_are_damage_and_a_failing_disk_is_not(
    saved: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception], words: str
) -> None:
    def fail(arrays: Any) -> None:
        raise OSError(number, "the disk")

    reads(monkeypatch, fail)
    with pytest.raises(kind, match=words):
        NystromDecomposition.load(saved)


def test_a_file_that_shrinks_while_it_is_read_is_noticed() -> None:
    with pytest.raises(ValueError, match="fewer bytes than numbers"):
        _nystrom_io._filled(io.BytesIO(bytes(9)), (2,), np.dtype("<f8"))


def sealed(path: Path, body: bytes) -> Path:
    path.write_bytes(body + hashlib.sha256(body).digest())
    return path


def listed(*arrays: Any, size: int = 0) -> bytes:
    text = json.dumps({"version": checkpoint.VERSION, "arrays": arrays}).encode()
    return checkpoint.MAGIC + struct.pack("<Q", len(text)) + text + bytes(size)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "another format"),
        (b"SOMEBODY" + bytes(8), "another format"),
        (checkpoint.MAGIC + struct.pack("<Q", 2**60), "a header that is too long"),
        (listed(["a", "<O8", [1]], size=8), "an unknown type of array"),
        (listed(["a", "<f8", [-1]], size=8), "an unknown type of array"),
        (listed(["a", "<f8", [2**40]], size=8), "an array that is longer than the file"),
        (listed(["a", "<f8"]), "not enough values to unpack"),
        (checkpoint.MAGIC + struct.pack("<Q", 5) + b"[[[[[", "Expecting value"),
    ],
)
def test_a_checkpoint_whose_digest_fits_is_still_looked_at(tmp_path: Path, body: bytes, words: str) -> None:
    with pytest.raises(errors.CheckpointCorruptError, match=f"must be as it was written; got a damaged file: {words}"):
        checkpoint.read_arrays(sealed(tmp_path / "a", body), func="nystrom_stream")


def test_a_checkpoint_of_a_kernel_that_there_is_not_is_refused(tmp_path: Path) -> None:
    written = checkpoint.Checkpoint(path=tmp_path / "a", settings={}, seconds=0.0, func="nystrom_stream")
    checkpoint.write_arrays(written.path, {"settings": {}, "kernel": {"name": "Cauchy"}}, {})
    with pytest.raises(errors.CheckpointCorruptError, match="checkpoint must hold sums; got a file without them") as caught:
        written.load(KERNEL)
    assert str(caught.value.__cause__) == "an unknown kernel"


# --------------------------------------------------------------------------------------------------------- models
@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command fit writes."""
    folder = tmp_path_factory.mktemp("model")
    np.save(folder / "t.npy", np.column_stack([X, Y]))
    assert cli.main(["fit", str(folder / "t.npy"), "--target", "-1", "--rank", "3", "--output", str(folder / "model"), "--quiet"]) == 0
    return folder / "model"


def spoil_description(folder: Path, entries: dict[str, Any]) -> None:
    entries["format"] = "another"


def spoil_header(folder: Path, entries: dict[str, Any]) -> None:
    _again(folder, entries, lambda header, arrays: header.update(format="another"))


def spoil_shapes(folder: Path, entries: dict[str, Any]) -> None:
    _again(folder, entries, lambda header, arrays: arrays.update(ridge=np.ones(2)))


def _again(folder: Path, entries: dict[str, Any], change: Callable[[Any, Any], Any]) -> None:
    """The coefficients once more, changed, and the digest of that."""
    path = folder / entries["coefficients"]
    header, arrays = checkpoint.read_arrays(path, func="predict")
    change(header, arrays)
    checkpoint.write_arrays(path, header, arrays)
    entries["digest"] = _cli_model._digest(path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(spoil_description, "another format"), (spoil_header, "another format"), (spoil_shapes, "arrays whose shapes do not fit")],
)
def test_a_model_whose_digests_fit_is_still_looked_at(
    model: Path, tmp_path: Path, spoil: Callable[[Path, dict[str, Any]], None], words: str
) -> None:
    folder = Path(shutil.copytree(model, tmp_path / "copy"))
    assert _cli_model.load_model(folder).rows == 12
    entries = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    spoil(folder, entries)
    (folder / "model.json").write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(errors.CheckpointCorruptError, match=f"model must be as it was written; .*: {words}. Fit it again"):
        _cli_model.load_model(folder)


def test_an_archive_of_weights_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", b"x")
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02")] ^= 1  # the directory of the archive
    path.write_bytes(data)
    with pytest.raises(errors.CheckpointCorruptError, match="not a readable archive"):
        load_published_weights(torch.nn.Linear(3, 2), path)


# ------------------------------------------------------------------------------------------------- what is missing
def test_without_a_compiler_the_reason_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="there is no C\\+\\+ compiler"):
        _compiled.library(tmp_path / "none.cpp", "-O2")


def test_compiled_attention_of_another_layout_is_refused() -> None:
    wrong = types.SimpleNamespace(softlinalg_work_bytes=lambda: 3, softlinalg_scratch_bytes=lambda: 8, softlinalg_block=lambda: 8)
    with pytest.raises(RuntimeError, match="lays its arguments out in another way"):
        cpu_kernels._bind(wrong)  # type: ignore[arg-type]


def test_export_names_the_package_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else real(name, *rest))
    target = tmp_path / "a.onnx"
    assert cli.main(["export", "soft_tiny", "--output", str(target), "--classes", "2", "--image-size", "64"]) == 2
    message = 'export_onnx: onnxruntime is needed; it is not installed. Run pip install "softlinalg[onnx]".'
    assert capsys.readouterr().err == f"softlinalg: error: {message}\n"
    assert not target.exists()


def test_a_library_of_the_kit_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", None)
    with pytest.raises(errors.ParameterError, match=r"testing: xp must be installed; got 'cupy'\. Install it"):
        _layouts.as_namespace("cupy")


def test_data_types_that_a_library_lacks_are_refused() -> None:
    with pytest.raises(errors.ParameterError, match="dtype must be one that the library has; got bfloat16 for array_api_strict"):
        _layouts.place(X, xp="array_api_strict", dtype="bfloat16")


def test_the_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mpmath", "safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="gallery needs mpmath for this matrix"):
        _gallery_matrices.mpmath_module()
    with pytest.raises(errors.CheckpointError, match="need the package safetensors; it is not installed"):
        checkpoints._safetensors()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest))
    with pytest.raises(errors.ParameterError, match="suite: backend must be installed; got 'torch', which is not"):
        suites.pinv(np.linalg.pinv, backend="torch", cases=1, profile="smoke")


@pytest.mark.parametrize(
    ("module", "hidden", "words"),
    [
        ("softlinalg.torch.timm", {"timm": None}, 'timm, PyTorch Image Models, is needed; got "No module named'),
        ("softlinalg.torch.timm", {"timm": types.ModuleType("timm")}, "is needed; got \"No module named 'timm.models'"),
        ("softlinalg.torch.huggingface", {"transformers": None}, "transformers is needed; it is not installed"),
        ("softlinalg.testing.strategies", {"hypothesis": None}, "needs hypothesis, which is not installed"),
    ],
)
def test_modules_whose_library_is_missing_name_it(monkeypatch: pytest.MonkeyPatch, module: str, hidden: dict[str, Any], words: str) -> None:
    for name, value in hidden.items():
        for part in [part for part in sys.modules if part.startswith(f"{name}.")]:  # other tests may have imported them
            monkeypatch.delitem(sys.modules, part)
        monkeypatch.setitem(sys.modules, name, value)
    monkeypatch.delitem(sys.modules, module, raising=False)
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.loader is not None
    with pytest.raises(ImportError, match=words):
        found.loader.exec_module(importlib.util.module_from_spec(found))


# ---------------------------------------------------------------------------------------------- the command line
def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert cli.main(argv) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message.removeprefix("softlinalg: error: ")


def test_data_that_cannot_be_fitted_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.csv").touch()
    np.save(tmp_path / "huge.npy", np.column_stack([X * [1.0, 1e200, 1.0], Y]))
    fit = ["--target", "-1", "--rank", "3", "--output", str(tmp_path / "model"), "--quiet"]
    assert "is a folder; name a file that ends in" in refused(capsys, "fit", str(tmp_path), *fit)
    assert "the file is empty" in refused(capsys, "fit", str(tmp_path / "empty.csv"), *fit)
    assert "has values too large to standardize; leave it out with --drop" in refused(
        capsys, "fit", str(tmp_path / "huge.npy"), *fit, "--standardize"
    )


def test_places_that_nobody_may_write_to_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    np.save(tmp_path / "t.npy", np.column_stack([X, Y]))
    monkeypatch.setattr(os, "access", lambda *_: False)  # an administrator may write anywhere
    fit = ["fit", str(tmp_path / "t.npy"), "--target", "-1", "--rank", "3", "--quiet"]
    assert "cannot be written: permission denied" in refused(capsys, *fit, "--output", str(tmp_path / "model"))
    predict = ["predict", str(tmp_path / "t.npy"), "--model", str(model)]
    assert "cannot be written: permission denied" in refused(capsys, *predict, "--output", str(tmp_path / "p.csv"))


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(CommandError, match=r"a\.html: cannot be written: No space left on device"):
        _cli_report.write_file(tmp_path / "a.html", b"x")
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------- routines that fail
def test_memory_that_is_refused_is_a_resource_error(monkeypatch: pytest.MonkeyPatch) -> None:
    d = softlinalg.nystrom(X, KERNEL, landmarks=[0, 5])

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(_arrays, "empty_like_shape", fail)
    with pytest.raises(errors.ResourceError, match="the result must fit in memory; got a need of"):
        d.solve(Y, ridge=0.5)


def test_a_stream_of_a_kernel_with_another_diagonal_is_refused() -> None:
    def kernel(x: Any, y: Any = None) -> Any:
        return KERNEL(x, y)

    kernel.diagonal = lambda x: np.full(len(x), 0.1)  # type: ignore[attr-defined]
    with pytest.raises(errors.NumericalError, match="nystrom_stream: kernel must bound its approximation; got 11 rows explained beyond it"):
        softlinalg.nystrom_stream(X, kernel, landmarks=X[:3], threads=1)


def test_a_core_with_a_negative_eigenvalue_has_no_factor() -> None:
    core = np.where(np.eye(3, dtype=bool), 1.0, 3.0)
    rows: Any = types.SimpleNamespace(xp=array_api_compat.numpy, dtype=core.dtype)
    with pytest.raises(errors.NumericalError, match="must be positive semi-definite; got a matrix without Cholesky factor"):
        _landmark_refinement._inverse_factor(core, rows, func="refine_landmarks")


def test_a_routine_of_the_library_that_fails_is_a_numerical_error() -> None:
    def fail() -> None:
        raise np.linalg.LinAlgError("no convergence")

    with pytest.raises(errors.NumericalError, match="pinv: svd must converge; got 'LinAlgError' from the array library") as caught:
        _inversion.guard_linalg("pinv", "svd", fail)
    assert isinstance(caught.value.__cause__, np.linalg.LinAlgError)


def test_a_solution_that_refinement_does_not_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    d = softlinalg.nystrom(X, KERNEL, landmarks=[0, 5])
    monkeypatch.setattr(_nystrom_solve, "_backward_error", lambda *_, **__: 1e-3)
    with pytest.raises(errors.NumericalError, match=r"solve: ridge must be large enough to divide by; got 0\.5 beside eigenvalues"):
        d.solve(Y, ridge=0.5)


def judged(kernel: Callable[..., Any]) -> str:
    return str(suites.kernel(kernel, cases=4, profile="smoke", dtype="float64"))


def true_kernel(x: Any, y: Any = None, *, length_scale: float) -> Any:
    return softlinalg.gaussian_kernel(x, y, length_scale=length_scale)


def test_kernels_beyond_one_are_told_by_their_range() -> None:
    assert "kernel values reach from" in judged(lambda *given, **settings: true_kernel(*given, **settings) * 1.5)


def test_kernels_that_see_far_points_are_told() -> None:
    assert "is not at kernel value zero" in judged(lambda *given, **settings: np.maximum(true_kernel(*given, **settings), 1e-30))


def test_kernels_that_want_one_layout_are_told_which_failed() -> None:
    def kernel(x: Any, y: Any = None, *, length_scale: float) -> Any:
        if not x.flags.c_contiguous:
            message = "contiguous memory, please"
            raise TypeError(message)
        return true_kernel(x, y, length_scale=length_scale)

    assert "layout " in judged(kernel)
    assert "contiguous memory, please" in judged(kernel)


class NoNumbers:
    """An array by its shape alone."""

    shape, dtype = (1, 1), np.dtype(float)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no numbers")


def test_results_of_another_kind_are_told() -> None:
    assert "result is no array but NoNumbers" in judged(lambda *_, **__: NoNumbers())
    assert "the result is an array of torch, not of numpy" in judged(
        lambda *given, **settings: torch.tensor(true_kernel(*given, **settings))
    )
