"""Saving and loading a Nystrom approximation: bit for bit or not at all, and nothing is ever executed."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import time
import tracemalloc
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nystrom_cases import blob

from softlinalg import Gaussian, Laplacian, Matern, NystromDecomposition, nystrom
from softlinalg import _nystrom_io as files
from softlinalg.errors import CheckpointCorruptError, CheckpointError, CheckpointVersionError, DTypeError, ParameterError, ShapeError

SUFFIXES = (".npz", ".safetensors")
X = np.random.default_rng(0).normal(size=(30, 2))


def small(**settings: Any) -> NystromDecomposition:
    return nystrom(X, Gaussian(1.0), **{"landmarks": np.arange(3), **settings})


def sealed(raw: bytes, suffix: str, path: Path) -> Path:
    """A file with these bytes and a seal that fits them: what someone who knows the format could make."""
    path.write_bytes(raw)
    with path.open("r+b") as file:
        position = files._container(path, func="test")[1].seal(file, len(raw))
        if position < 0:
            return path
        digest = files._file_digest(file, position)
        file.seek(position)
        file.write(digest)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 4),
    m=st.integers(1, 8),
    dtype=st.sampled_from(["float32", "float64"]),
    kernel=st.sampled_from([Gaussian(1.5), Laplacian(2.0), Matern(1.0, nu=2.5), Gaussian((0.5, 1.0, 2.0, 3.0))]),
    features=st.booleans(),
    ridge=st.sampled_from([None, 0.25]),
    seed=st.integers(0, 10**6),
)
def test_a_file_gives_back_the_same_bits(
    suffix: str, tmp_path_factory: Any, n: int, d: int, m: int, dtype: str, kernel: Any, features: bool, ridge: float | None, seed: int
) -> None:
    d = 4 if isinstance(kernel.length_scale, tuple) else d
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)).astype(dtype)
    saved = nystrom(x, kernel, landmarks=np.arange(min(m, n)), ridge=ridge, chunk_size=[None, 7][seed % 2])
    path = tmp_path_factory.mktemp("files") / f"a{suffix}"
    saved.save(path, include_features=features)
    loaded = NystromDecomposition.load(path, x=None if features else x)
    assert repr(loaded).replace("stored", "recomputed") == repr(saved).replace("stored", "recomputed")
    assert loaded.stores_features == features
    v = rng.normal(size=n).astype(dtype)
    for of in (
        lambda a: a @ v,
        lambda a: a.features(x),
        lambda a: a.features(),
        lambda a: a.landmarks,
        lambda a: a.eigenvalues,
        lambda a: a.relative_trace_errors,
        lambda a: a.solve(v, 0.1),
        lambda a: a.eigh()[1],
        lambda a: np.asarray([a.trace, a.trace_error, a.trace_error_floor, a.logdet(0.1), a.ridge or 0.0]),
    ):
        expected, found = of(saved), of(loaded)
        assert found.dtype == expected.dtype
        assert found.tobytes() == expected.tobytes()
    assert loaded.kernel == saved.kernel


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_changed_byte_is_noticed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    nystrom(X[:4, :1], Gaussian(1.0), landmarks=[0]).save(path)
    raw = path.read_bytes()
    broken = tmp_path / f"b{suffix}"
    rng = np.random.default_rng(0)
    for i, change in enumerate(rng.integers(1, 256, size=len(raw))):
        changed = bytearray(raw)
        changed[i] ^= int(change)
        broken.write_bytes(changed)
        with pytest.raises(CheckpointCorruptError, match="load: path must hold a decomposition as it was saved"):
            NystromDecomposition.load(broken)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_extended_and_foreign_files_are_noticed(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    small().save(path)
    raw = path.read_bytes()
    other = tmp_path / f"b{suffix}"
    pieces = [raw[:length] for length in {0, 1, 7, 8, 9, 21, 22, 100, len(raw) // 2, len(raw) - 1}]
    for content in [*pieces, raw + b"\0", b"\0" + raw, raw + raw, os.urandom(5000), b"{" * 5000, b"\xff" * 5000, pickle.dumps([1, 2])]:
        other.write_bytes(content)
        with pytest.raises(CheckpointCorruptError):
            NystromDecomposition.load(other)
    with pytest.raises(FileNotFoundError):
        NystromDecomposition.load(tmp_path / f"none{suffix}")


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(members: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
        archive.comment = files.SEAL + files.ZEROS
    return buffer.getvalue()


def npy(a: Any, **header: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(a), allow_pickle=True)
    return buffer.getvalue()


def declared(shape: str, descr: str = "'<f8'", order: str = "False") -> bytes:
    """The start of an .npy file that declares more than it holds."""
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


class Malicious:
    """Unpickling this writes a file."""

    path = ""

    def __reduce__(self) -> Any:
        return (Path(self.path).write_text, ("executed",))


def hostile_npz(members: dict[str, bytes], victim: Path) -> dict[str, bytes]:
    """Archives whose seal fits but whose contents are an attack, or a mistake."""
    members = {name: content for name, content in members.items() if name != "features.npy"}  # room for one more
    evil = Malicious()
    Malicious.path = str(victim)
    objects = np.empty(1, dtype=object)
    objects[0] = evil
    bomb = zipped({**members, "features.npy": declared("(1000000, 20)") + bytes(160_000_000)}, zipfile.ZIP_DEFLATED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Duplicate name"
        twice = zipped([*members.items(), ("map.npy", members["map.npy"])])
    return {
        "pickled member": zipped({**members, "map.npy": npy(objects)}),
        "pickled header": zipped({**members, "header.npy": pickle.dumps(evil)}),
        "compressed bomb": bomb,
        "member twice": twice,
        "declares 8 TiB": zipped({**members, "map.npy": declared("(1048576, 1048576)")}),
        "declares a negative size": zipped({**members, "map.npy": declared("(-1, 3)")}),
        "declares too little": zipped({**members, "map.npy": declared("(1, 1)") + bytes(800)}),
        "other order": zipped({**members, "map.npy": declared("(3, 3)", order="True") + bytes(72)}),
        "other type": zipped({**members, "map.npy": declared("(3, 3)", descr="'<i8'") + bytes(72)}),
        "python in the header": zipped({**members, "map.npy": declared("(__import__('os').system('true'), 3)")}),
        "other version": zipped({**members, "map.npy": b"\x93NUMPY\x02\x00" + bytes(200)}),
        "path traversal": zipped({**members, "../evil.npy": npy(np.zeros(3))}),
        "member missing": zipped({name: content for name, content in members.items() if name != "map.npy"}),
        "header missing": zipped({name: content for name, content in members.items() if name != "header.npy"}),
        "shapes that do not fit": zipped({**members, "map.npy": npy(np.zeros((2, 2)))}),
        "other values": zipped({**members, "map.npy": npy(np.zeros((3, 3)))}),
        "nothing": zipped({}),
        "no json": zipped({**members, "header.npy": npy(np.frombuffer(b"\x80\x04", dtype=np.uint8))}),
        "deep json": zipped({**members, "header.npy": npy(np.frombuffer(b"[" * 200_000, dtype=np.uint8))}),
        "large header": zipped({**members, "header.npy": npy(np.full(2**20 + 1, 32, dtype=np.uint8))}),
    }


def test_hostile_archives_are_refused_without_executing_or_allocating(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    small().save(good)
    victim = tmp_path / "victim"
    attacks = hostile_npz(members_of(good), victim)
    assert NystromDecomposition.load(sealed(zipped(members_of(good)), ".npz", tmp_path / "again.npz")).rank == 3  # the seal alone does fit
    for name, raw in attacks.items():
        path = sealed(raw, ".npz", tmp_path / "attack.npz")
        tracemalloc.start()
        start = time.perf_counter()
        with pytest.raises(CheckpointCorruptError):
            NystromDecomposition.load(path)
        seconds = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 2 * len(raw) + 2**26, name
        assert seconds < 5, name
        assert not victim.exists(), name
    many = zipped({f"{i}.npy": b"" for i in range(1000)})
    (tmp_path / "many.npz").write_bytes(many)
    with pytest.raises(CheckpointCorruptError, match="no seal"):
        NystromDecomposition.load(tmp_path / "many.npz")
    assert not (tmp_path.parent / "evil.npy").exists()


def safetensors_of(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def assembled(table: Any, data: bytes) -> bytes:
    text = json.dumps(table).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_hostile_safetensors_are_refused_without_allocating(tmp_path: Path) -> None:
    good = tmp_path / "good.safetensors"
    small().save(good)
    table, data = safetensors_of(good)
    seal = {"__metadata__": {"seal": (files.SEAL + files.ZEROS).decode()}}
    tensor = table["map"]
    attacks = {
        "again": assembled({**table, **seal}, data),
        "declares 8 TiB": assembled({**table, **seal, "map": {**tensor, "shape": [2**20, 2**20]}}, data),
        "negative size": assembled({**table, **seal, "map": {**tensor, "shape": [-3, 3]}}, data),
        "fraction": assembled({**table, **seal, "map": {**tensor, "shape": [4.5, 2]}}, data),
        "overlap": assembled({**table, **seal, "map": {**tensor, "data_offsets": [0, 72]}}, data),
        "other type": assembled({**table, **seal, "map": {**tensor, "dtype": "I64"}}, data),
        "other name": assembled({**table, **seal, "more": tensor}, data),
        "more bytes": assembled({**table, **seal}, data + b"\0"),
        "fewer bytes": assembled({**table, **seal}, data[:-1]),
        "no entry": assembled({**table, **seal, "map": 3}, data),
        "a list": assembled([(files.SEAL + files.ZEROS).decode()], data),
        "deep": struct.pack("<Q", 100_082) + b"[" * 100_000 + files.SEAL + files.ZEROS + data,
    }
    assert NystromDecomposition.load(sealed(attacks.pop("again"), ".safetensors", tmp_path / "again.safetensors")).rank == 3
    for name, raw in attacks.items():
        path = sealed(raw, ".safetensors", tmp_path / "attack.safetensors")
        tracemalloc.start()
        with pytest.raises(CheckpointCorruptError):
            NystromDecomposition.load(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 2 * len(raw) + 2**26, name


def rewritten(path: Path, **changes: Any) -> Path:
    """The file with other entries in its header, and both digests made to fit."""
    members = members_of(path)
    arrays = {name.removesuffix(".npy"): np.load(io.BytesIO(content)) for name, content in members.items()}
    header = {**json.loads(arrays.pop("header").tobytes()), **changes}
    header = {key: value for key, value in header.items() if value != "absent"}
    header["content"] = files._content_digest(header, arrays)
    members["header.npy"] = npy(np.frombuffer(json.dumps(header).encode(), dtype=np.uint8))
    return sealed(zipped(members), ".npz", path.with_name("rewritten.npz"))


def test_headers_of_other_versions_and_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    small().save(path)
    assert NystromDecomposition.load(rewritten(path)).rank == 3
    for version in (2, "1", None):
        with pytest.raises(CheckpointVersionError, match=r"load: path must hold version 1; got version"):
            NystromDecomposition.load(rewritten(path, version=version))
    for changes in (
        {"format": "other"},
        {"format": "absent"},
        {"n": "absent"},
        {"n": 31},
        {"n": 30.0},
        {"trace": "1"},
        {"trace": "absent"},
        {"ridge": []},
        {"chunk_size": "x"},
        {"kernel": {"name": "evil"}},
        {"kernel": {"name": "gaussian", "length_scale": -1}},
        {"kernel": {"name": "gaussian"}},
    ):
        with pytest.raises(CheckpointCorruptError):
            NystromDecomposition.load(rewritten(path, **changes))
    assert issubclass(CheckpointVersionError, CheckpointError)


@dataclass
class Own:
    """A user's kernel."""

    power: int = 2

    def __call__(self, x: Any, y: Any) -> Any:
        return (1 + x @ y.T) ** self.power

    def diagonal(self, x: Any) -> Any:
        return (1 + (x * x).sum(-1)) ** self.power


class Pretender(Gaussian):
    """Says that it is a Gaussian kernel, and is not."""

    def __call__(self, x: Any, y: Any = None) -> Any:
        return 2 * super().__call__(x, y)

    def diagonal(self, x: Any) -> Any:
        return 2 * super().diagonal(x)


@pytest.mark.parametrize("kernel", [Own(), Pretender(1.0)], ids=["own", "pretender"])
def test_a_users_kernel_is_passed_again(kernel: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    saved = nystrom(X, kernel, landmarks=np.arange(4))
    saved.save(path)
    name = type(kernel).__name__
    with pytest.raises(
        ParameterError, match=rf"load: kernel must be given for a kernel that is not part of this package; got None for '{name}'"
    ):
        NystromDecomposition.load(path)
    loaded = NystromDecomposition.load(path, kernel=kernel)
    np.testing.assert_array_equal(loaded.features(X), saved.features(X))
    known = tmp_path / "b.npz"
    small().save(known)
    assert NystromDecomposition.load(known, kernel=Gaussian(1.0)).rank == 3
    with pytest.raises(ParameterError, match=r"load: kernel must be the one that was saved, Gaussian\(length_scale=1.0\); got"):
        NystromDecomposition.load(known, kernel=Gaussian(2.0))


def test_without_features_the_data_are_needed_for_products_only(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    saved = small(store_features=False)
    saved.save(path)
    bare = NystromDecomposition.load(path)
    np.testing.assert_array_equal(bare.features(X[:5]), saved.features(X[:5]))
    assert bare.logdet(0.1) == saved.logdet(0.1)
    assert bare.shape == (30, 30)
    with pytest.raises(ValueError, match="data must be at hand for features that are not stored"):
        bare @ np.ones(30)
    np.testing.assert_array_equal(NystromDecomposition.load(path, x=X) @ X, saved @ X)
    for x, error in ((X[:-1], ShapeError), (X[:, :1], ShapeError), (X.astype(np.float32), ShapeError)):
        with pytest.raises(error, match=r"load: x must be the data of the file, shape \(30, 2\) and dtype float64; got"):
            NystromDecomposition.load(path, x=x)


def test_other_file_names_are_refused(tmp_path: Path) -> None:
    for call in (small().save, NystromDecomposition.load):
        for name in ("a.pkl", "a", "a.npz.bak", "a.pt"):
            with pytest.raises(ParameterError, match=r"path must end in .npz or .safetensors; got"):
                call(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_save_leaves_the_old_file_and_nothing_else(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a{suffix}"
    small().save(path)
    before = path.read_bytes()

    def fail(*_: Any) -> bytes:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_file_digest", fail)
        with pytest.raises(OSError, match="no space left"):
            nystrom(X, Gaussian(2.0), landmarks=np.arange(5)).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    nystrom(X, Gaussian(2.0), landmarks=np.arange(5)).save(path)
    assert NystromDecomposition.load(path).rank == 5
    small().save(path)
    assert path.read_bytes() == before  # the same numbers give the same bytes
    with pytest.raises(FileNotFoundError):
        small().save(tmp_path / "missing" / f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_files_are_read_into_any_library(suffix: str, backend: Any, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    if backend.name == "jax":  # what it has compiled for test_nystrom.py
        x, landmarks = backend.asarray(blob()), np.arange(25)
    else:
        x, landmarks = backend.asarray(X.astype(np.float32)), np.arange(4)
    v = x[:, :2]
    saved = nystrom(x, Gaussian(1.5), landmarks=landmarks)
    saved.save(path)
    plain = NystromDecomposition.load(path)
    assert isinstance(plain.features(), np.ndarray)
    np.testing.assert_array_equal(plain.features(), backend.to_numpy(saved.features()))
    loaded = NystromDecomposition.load(path, like=x)
    assert type(loaded.features()) is type(x)
    np.testing.assert_array_equal(backend.to_numpy(loaded @ v), backend.to_numpy(saved @ v))
    np.testing.assert_array_equal(backend.to_numpy(loaded.solve(v, 0.01)), backend.to_numpy(saved.solve(v, 0.01)))
    assert type(NystromDecomposition.load(path, x=x).landmarks) is type(x)


def test_files_cross_libraries_of_less_precision() -> None:
    jax = pytest.importorskip("jax")
    torch = pytest.importorskip("torch")
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        small().save(path)
        with jax.enable_x64(False), pytest.raises(DTypeError, match="load: like must be of a library and device with float64"):
            NystromDecomposition.load(path, like=jax.numpy.zeros(1))
        x = torch.tensor(X, dtype=torch.bfloat16)
        saved = nystrom(x, Gaussian(1.0), landmarks=np.arange(4))
        saved.save(path)
        again = NystromDecomposition.load(path, like=x)
        assert again.dtype == torch.bfloat16
        assert torch.equal(again.features(), saved.features())
        assert torch.equal(again.features(x[:3]), saved.features(x[:3]))
        assert NystromDecomposition.load(path).dtype == np.float32  # NumPy has no bfloat16
        with jax.enable_x64(False):
            single = nystrom(jax.numpy.asarray(X), Gaussian(1.0), landmarks=np.arange(4))
            single.save(path)
            back = NystromDecomposition.load(path, like=jax.numpy.zeros(1))
            np.testing.assert_array_equal(np.asarray(back.features()), np.asarray(single.features()))
        assert NystromDecomposition.load(path).features().dtype == np.float32


def test_other_tools_read_the_files(tmp_path: Path) -> None:
    saved = small()
    saved.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["features"], saved.features())
        assert json.loads(arrays["header"].tobytes())["kernel"] == {"name": "gaussian", "length_scale": 1.0}
    library = pytest.importorskip("safetensors.numpy")
    saved.save(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(library.load_file(tmp_path / "a.safetensors")["features"], saved.features())
