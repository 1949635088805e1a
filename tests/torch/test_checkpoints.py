"""Weight files: the published forms, what does not fit, damage, malice, saving."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402

from softlinalg.errors import CheckpointCorruptError, CheckpointError, ParameterError  # noqa: E402
from softlinalg.torch import checkpoints  # noqa: E402
from softlinalg.torch.backbones import SoftBackbone, resized_positions  # noqa: E402
from softlinalg.torch.checkpoints import load_published_weights, save_weights  # noqa: E402


def small(**options):
    settings = {"num_classes": 5, "img_size": 64} | options
    return SoftBackbone((8, 8, 8, 8), (1, 1, 1, 1), (1, 1, 1, 1), **settings)


def state_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def source():
    """Weights of a model that was trained a little: its running statistics are not those of a fresh one."""
    torch.manual_seed(7)
    model = small()
    model(torch.randn(4, 3, 32, 32))
    return state_of(model)


# ----------------------------------------------------------------------------------------------- published forms
FORMS = [(suffix, entry) for suffix in (".pth", "mapping") for entry in ("", "state_dict", "state_dict_ema", "model")]


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.module.", "backbone."])
@pytest.mark.parametrize(("suffix", "entry"), [*FORMS, (".safetensors", "")])  # safetensors hold tensors alone
def test_every_form_of_published_weights_loads(source, prefix, entry, suffix, tmp_path):
    named = {prefix + name: value for name, value in source.items()}
    held = {entry: named, "epoch": 300, "args": argparse.Namespace(lr=1e-3)} if entry else named
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors_torch.save_file(named, path)
    elif suffix == ".pth":
        torch.save(held, path)
    model = small()
    report = load_published_weights(model, held if suffix == "mapping" else path)
    assert report.complete
    assert report.source == entry
    assert set(report.loaded) == set(source)
    assert equal(state_of(model), source)


def test_old_files_without_an_archive_load_too(source, tmp_path):
    torch.save(source, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = small()
    assert load_published_weights(model, tmp_path / "old.pth").complete
    assert equal(state_of(model), source)


def test_averaged_weights_go_first_and_entries_can_be_named(source):
    other = {name: value + 1 for name, value in source.items()}
    held = {"state_dict": source, "state_dict_ema": other}
    model = small()
    assert load_published_weights(model, held).source == "state_dict_ema"
    assert equal(state_of(model), other)
    assert load_published_weights(model, held, entry="state_dict").source == "state_dict"
    assert equal(state_of(model), source)


def test_numbers_take_the_type_of_the_model(source):
    model = small().double()
    load_published_weights(model, {name: value.half() if value.is_floating_point() else value for name, value in source.items()})
    assert model.norm.weight.dtype == torch.float64
    torch.testing.assert_close(model.head.weight.float(), source["head.weight"], rtol=1e-3, atol=1e-6)


def test_position_embeddings_are_interpolated(source):
    model = small(img_size=(96, 160))
    report = load_published_weights(model, source)
    assert report.complete
    assert report.resized == ("pos_embed1", "pos_embed2", "pos_embed3", "pos_embed4")
    assert torch.equal(model.pos_embed1, resized_positions(source["pos_embed1"], (16, 16), (24, 40)))
    assert torch.equal(model.pos_embed4[:, 0], source["pos_embed4"][:, 0])
    assert "resized (4)" in str(report)
    # The model for which they were resized computes what the first one does on such images.
    first = small()
    load_published_weights(first, source)
    x = torch.randn(1, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(first.eval()(x), model.eval()(x))


def test_position_embeddings_of_no_square_grid_do_not_fit(source):
    changed = source | {"pos_embed1": torch.zeros(1, 30, 8)}
    report = load_published_weights(small(), changed, strict=False)
    assert report.mismatched == ("pos_embed1: (1, 30, 8) for (1, 256, 8)",)


# ------------------------------------------------------------------------------------------------- what does not fit
def test_what_does_not_fit_is_reported_and_nothing_is_changed(source):
    weights = {name: value for name, value in source.items() if name != "norm.bias"}
    weights |= {"head.weight": torch.zeros(7, 8), "head.bias": torch.zeros(7), "extra.weight": torch.zeros(2)}
    model = small()
    before = state_of(model)
    message = r"1 missing \(norm.bias\); 1 unexpected \(extra.weight\); 2 mismatched \(head.weight: \(7, 8\) for \(5, 8\), ...\)"
    with pytest.raises(CheckpointError, match=message):
        load_published_weights(model, weights)
    assert equal(state_of(model), before)
    report = load_published_weights(model, weights, strict=False)
    assert not report.complete
    assert (report.missing, report.unexpected) == (("norm.bias",), ("extra.weight",))
    assert torch.equal(model.norm.weight, source["norm.weight"])
    assert torch.equal(model.head.weight, before["head.weight"])
    assert "mismatched (2): head.weight" in str(report)


def test_another_depth_is_named_as_the_reason(source):
    deeper = SoftBackbone((8, 8, 8, 8), (1, 1, 1, 1), (1, 1, 3, 1), num_classes=5, img_size=64)
    with pytest.raises(CheckpointError, match="The depths differ: is it another size"):
        load_published_weights(deeper, source)


def test_numbers_that_are_none_are_refused(source):
    weights = source | {"norm.weight": source["norm.weight"] * float("nan")}
    model = small()
    before = state_of(model)
    with pytest.raises(CheckpointCorruptError, match=r"must be finite; got NaN or infinity in 'norm\.weight'"):
        load_published_weights(model, weights, strict=False)
    assert equal(state_of(model), before)


def test_files_of_other_things_are_refused(source, tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="must be a mapping of names to tensors; got list"):
        load_published_weights(small(), tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="must hold tensors; got the entries 'epoch'"):
        load_published_weights(small(), {"epoch": 3})
    with pytest.raises(CheckpointError, match="must hold tensors; got nothing"):
        load_published_weights(small(), {})
    with pytest.raises(CheckpointError, match="got none of its names"):
        load_published_weights(small(), {"a": torch.zeros(1)}, strict=False)
    with pytest.raises(CheckpointError, match="entry must name a part of the file"):
        load_published_weights(small(), source, entry="weights")
    with pytest.raises(CheckpointError, match=r"each name once; got 'head\.bias'"):
        load_published_weights(small(), source | {"module.head.bias": source["head.bias"]})
    with pytest.raises(FileNotFoundError):
        load_published_weights(small(), tmp_path / "none.pth")


def test_tensors_of_other_kinds_do_not_fit(source):
    for value in (source["norm.bias"].to_sparse(), source["norm.bias"].to(torch.complex64), source["norm.bias"].long()):
        report = load_published_weights(small(), source | {"norm.bias": value}, strict=False)
        assert len(report.mismatched) == 1


# ------------------------------------------------------------------------------------------------ damage and malice
class Malice:
    """Creates a file when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("call", ["system", "open", "exec", "run"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(call, zipped, source, tmp_path):
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w')"
    malice = {
        "system": Malice(os.system, f'{sys.executable} -c "{code}"'),
        "open": Malice(open, str(mark), "w"),
        "exec": Malice(exec, code),
        "run": Malice(subprocess.call, [sys.executable, "-c", code]),
    }[call]
    path = tmp_path / "weights.pth"
    torch.save(dict(source) | {"x": malice}, path, _use_new_zipfile_serialization=zipped)
    model = small()
    before = state_of(model)
    with pytest.raises(CheckpointError, match=r"with other objects, which could run code|not a file of torch\.save"):
        load_published_weights(model, path, strict=False)
    assert not mark.exists()
    assert equal(state_of(model), before)
    # The trap is a real one.
    pickle.loads(pickle.dumps(malice))
    assert mark.exists()


def test_a_bare_pickle_is_refused(source, tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "weights.pkl").write_bytes(pickle.dumps({"x": Malice(open, str(mark), "w")}, protocol=2))
    with pytest.raises(CheckpointError):
        load_published_weights(small(), tmp_path / "weights.pkl")
    assert not mark.exists()


def test_archives_that_claim_more_than_their_length_are_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 50_000_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(CheckpointCorruptError, match="its members claim more than its length"):
        load_published_weights(small(), path)


@pytest.mark.parametrize("data", [b"", b"not a file", b"PK\x03\x04", b"\x80\x02}."])
def test_files_that_are_none_are_refused(data, tmp_path):
    for suffix in (".pth", ".safetensors"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(data)
        with pytest.raises(CheckpointError):
            load_published_weights(small(), path)


def test_truncated_files_are_refused(source, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(source, path)
    data = path.read_bytes()
    for length in (10, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load_published_weights(small(), path)


def test_headers_that_claim_too_much_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes((2**43).to_bytes(8, "little") + b"{}" * 20)
    with pytest.raises(CheckpointCorruptError, match="the header does not fit"):
        load_published_weights(small(), path)
    entries = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(checkpoints.MAX_TENSORS + 1)}
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(CheckpointCorruptError, match="more than 20000 tensors"):
        load_published_weights(small(), path)


def test_readers_that_are_not_safe_are_not_used(source, tmp_path, monkeypatch):
    torch.save(source, tmp_path / "weights.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(CheckpointError, match=r"need torch >= 2.10 to be read safely; got 2.9.1"):
        load_published_weights(small(), tmp_path / "weights.pth")


# --------------------------------------------------------------------------------------------------------- saving
def test_what_was_saved_comes_back(source, tmp_path):
    model, path = small(), tmp_path / "weights.safetensors"
    model.load_state_dict(source)
    save_weights(model, path, metadata={"epoch": "3"})
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]
    other = small()
    assert load_published_weights(other, path).complete
    assert equal(state_of(other), source)
    # Others read it as well.
    assert equal(safetensors_torch.load_file(path), source)
    with safetensors_torch.safe_open(path, "pt") as file:
        assert file.metadata()["epoch"] == "3"


def test_any_module_can_be_saved(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).bfloat16()
    save_weights(model, tmp_path / "weights.safetensors")
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).bfloat16()
    load_published_weights(other, tmp_path / "weights.safetensors")
    assert equal(state_of(model), state_of(other))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    save_weights(model, folder / "whole.safetensors")
    return folder, (folder / "whole.safetensors").read_bytes(), state_of(model)


@settings(max_examples=300)
@given(place=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_no_changed_byte_goes_unnoticed(saved, place, flip):
    folder, data, state = saved
    changed = bytearray(data)
    changed[place % len(data)] ^= flip
    (folder / "changed.safetensors").write_bytes(bytes(changed))
    model = nn.Linear(3, 2)
    with pytest.raises(CheckpointError):
        load_published_weights(model, folder / "changed.safetensors")
    (folder / "changed.safetensors").write_bytes(data)
    load_published_weights(model, folder / "changed.safetensors")
    assert equal(state_of(model), state)


def test_every_byte_counts(saved):
    folder, data, _ = saved
    path, model = folder / "changed.safetensors", nn.Linear(3, 2)
    for place in range(len(data)):
        changed = bytearray(data)
        changed[place] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises(CheckpointError):
            load_published_weights(model, path)


def test_a_failed_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_weights(nn.Linear(3, 2), path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(nn.Linear(3, 2), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["weights.safetensors"]


def test_bad_names_and_notes_are_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"path must end in \.safetensors; got 'weights\.pth'"):
        save_weights(nn.Linear(3, 2), tmp_path / "weights.pth")
    for metadata in ({"epoch": 3}, {"note": "softlinalg-sha256:"}, {"note": "x" * 2**21}):
        with pytest.raises(ParameterError, match="metadata must map strings to short strings"):
            save_weights(nn.Linear(3, 2), tmp_path / "weights.safetensors", metadata=metadata)


def test_reports_are_short():
    report = checkpoints.LoadReport(("a",), (), tuple(f"n{i}" for i in range(12)), (), (), "model")
    assert str(report).splitlines() == ["1 tensors loaded from 'model'", "missing (12): n0, n1, n2, n3, n4, n5, n6, n7 and 4 more"]
    assert len(io.StringIO(str(report)).getvalue()) < 200
