"""Saving and loading a Nystrom approximation: numbers and JSON in .npz or .safetensors, sealed by a digest of every byte.

Neither format notices damaged values, so a file carries two digests: a seal over all its bytes (with the digits of the seal
itself as zeros), and one over the names, types, shapes and values of its arrays, which does not depend on the container.
Sizes are compared with the length of the file before anything is allocated, only uncompressed members are read, and no
pickle is: a hostile file can at worst be refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import struct
import uuid
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from softlinalg import _arrays, _inputs
from softlinalg._kernels import kernel_from_dict
from softlinalg._nystrom_core import FeatureMap, Spectrum, Summary, Wide
from softlinalg._nystrom_fit import Fit
from softlinalg._settings import file_path, flag, shown
from softlinalg.errors import CheckpointCorruptError, CheckpointVersionError, DTypeError, ParameterError, ShapeError

__all__ = ["SEAL", "ZEROS", "json_bytes", "kernel_entries", "load_decomposition", "replacing", "save_decomposition"]

Host = np.ndarray[Any, Any]

FORMAT = "softlinalg.NystromDecomposition"
VERSION = 1

SEAL = b"softlinalg-sha256:"
ZEROS = b"0" * 64

MAX_HEADER = 2**20
"""Bytes of JSON that a file may hold: length scales of a few ten thousand features fit."""

DTYPES: dict[str, np.dtype[Any]] = {"U8": np.dtype("uint8"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8")}
"""All types that files hold, under their names in safetensors."""

ARRAYS = {"header", "landmarks", "points", "map", "eigenvalues", "rotation", "features"}


# ------------------------------------------------------------------------------------------------ saving
def save_decomposition(d: Any, path: str | os.PathLike[str], *, include_features: bool) -> None:
    """What `NystromDecomposition.save` does."""
    target, container = _container(path, func="save")
    summary, feature_map = d._summary, d._map
    arrays = {
        "landmarks": d.landmarks,
        "points": feature_map.landmarks,
        "map": feature_map.map,
        "eigenvalues": d._spectrum.eigenvalues,
        "rotation": d._spectrum.rotation,
    }
    if flag(include_features, func="save", name="include_features") and d.stores_features:
        arrays["features"] = d._features
    host = {name: _canonical(_arrays.to_numpy(a)) for name, a in arrays.items()}
    header = {
        "format": FORMAT,
        "version": VERSION,
        "n": d.shape[0],
        "dtype": _arrays.dtype_name(d.dtype),
        "in_float64": feature_map.in_float64,
        "chunk_size": feature_map.chunk_size,
        "ridge": d.ridge,
        "trace": summary.trace,
        "trace_error": summary.trace_error,
        "floor": summary.floor,
        **kernel_entries(feature_map.kernel),
    }
    header["content"] = _content_digest(header, host)
    host = {"header": np.frombuffer(json_bytes(header), dtype=np.uint8), **host}
    with replacing(target) as file:
        position = container.write(file, host)
        file.flush()
        digest = _file_digest(file, position)
        file.seek(position)
        file.write(digest)


def _container(path: str | os.PathLike[str], *, func: str) -> tuple[Path, Any]:
    """The path, and the format that its extension names."""
    target = file_path(path, func=func)
    kind = target.suffix.lower()
    if kind not in (".npz", ".safetensors"):
        message = f"{func}: path must end in .npz or .safetensors; got {target.name[-60:]!r}. Choose one of these extensions."
        raise ParameterError(message)
    return target, _Npz if kind == ".npz" else _Safetensors


def _canonical(a: Host) -> Host:
    """In C order and little-endian, float32 or float64."""
    wanted = np.dtype("<f8") if a.dtype.itemsize == 8 else np.dtype("<f4")
    return np.asarray(a, dtype=wanted, order="C")


def kernel_entries(kernel: Any) -> dict[str, Any]:
    """The kernel as names and numbers if this package can read it back, and the name of its class."""
    entries = None
    if hasattr(kernel, "to_dict"):
        try:
            candidate = kernel.to_dict()
            if type(kernel_from_dict(candidate)) is type(kernel):
                entries = candidate
        except (ParameterError, TypeError):
            entries = None
    return {"kernel": entries, "kernel_class": type(kernel).__name__[:80]}


def json_bytes(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _content_digest(header: Mapping[str, Any], arrays: Mapping[str, Host]) -> str:
    """SHA-256 over the header (less this digest) and the name, type, shape and bytes of each array."""
    digest = hashlib.sha256(json_bytes({key: value for key, value in header.items() if key != "content"}))
    for name in sorted(arrays):
        a = arrays[name]
        digest.update(json_bytes({"name": name, "dtype": a.dtype.str, "shape": list(a.shape)}))
        digest.update(a.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _file_digest(file: IO[bytes], position: int) -> bytes:
    """SHA-256 of a file as hexadecimal digits, with the 64 bytes at `position` taken as zeros."""
    digest, start = hashlib.sha256(), 0
    file.seek(0)
    while piece := file.read(2**20):
        overlap = slice(max(0, position - start), max(0, position + 64 - start))
        if overlap.start < len(piece) and overlap.stop > 0:
            changed = bytearray(piece)
            changed[overlap] = ZEROS[: len(changed[overlap])]
            piece = bytes(changed)
        digest.update(piece)
        start += len(piece)
    return digest.hexdigest().encode("ascii")


@contextmanager
def replacing(target: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `target` at the end, when it is on the disk; nothing changes if that fails."""
    temporary = target.with_name(f".{target.name[:80]}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk too; Windows has no such call
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# ------------------------------------------------------------------------------------------------ containers
def _corrupt(path: Path, why: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(f"load: path must hold a decomposition as it was saved; got {path.name[-60:]!r}: {why}. Save it again.")


class _Npz:
    """A zip archive of .npy members, stored, whose comment is the seal."""

    TAIL = 22  # the end record, before its comment

    @staticmethod
    def write(file: IO[bytes], arrays: Mapping[str, Host]) -> int:
        """Write all arrays; return where the digits of the seal are."""
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, a in arrays.items():
                member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                with archive.open(member, "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, a, allow_pickle=False)
            archive.comment = SEAL + ZEROS
        return file.seek(0, os.SEEK_END) - len(ZEROS)

    @classmethod
    def seal(cls, file: IO[bytes], size: int) -> int:
        """Where the digits of the seal are, -1 if there is none."""
        tail = cls.TAIL + len(SEAL) + len(ZEROS)
        if size < tail:
            return -1
        file.seek(size - tail)
        record = file.read(tail)
        (count,) = struct.unpack_from("<H", record, 10)
        whole = record.startswith(b"PK\x05\x06") and record[cls.TAIL :].startswith(SEAL) and count <= len(ARRAYS)
        return size - len(ZEROS) if whole else -1

    @staticmethod
    def read(file: IO[bytes], size: int) -> dict[str, Host]:
        """All arrays. ValueError or an error of zipfile where the file is not what `write` makes."""
        arrays = {}
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > size:
                raise ValueError("its members claim more than its length")
            for member in members:
                name = member.filename.removesuffix(".npy")
                if name not in ARRAYS or name in arrays or member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("a member that does not belong here")
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    if version != (1, 0):
                        raise ValueError("an unknown kind of member")
                    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
                    if dtype not in DTYPES.values() or fortran:
                        raise ValueError("an unknown type of array")
                    if stream.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
                        raise ValueError("an array of another size than its member")
                    arrays[name] = _filled(stream, shape, dtype)
                    stream.read(1)  # nothing more, as the size was compared: at the end the sum of the member is checked
        return arrays


class _Safetensors:
    """The safetensors format: length of the header, JSON header, numbers. The seal is in the metadata."""

    @staticmethod
    def write(file: IO[bytes], arrays: Mapping[str, Host]) -> int:
        """Write all arrays; return where the digits of the seal are."""
        names = {dtype: name for name, dtype in DTYPES.items()}
        table: dict[str, Any] = {"__metadata__": {"seal": (SEAL + ZEROS).decode("ascii")}}
        offset = 0
        for name, a in arrays.items():
            table[name] = {"dtype": names[a.dtype], "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
            offset += a.nbytes
        text = json.dumps(table, separators=(",", ":")).encode("ascii")
        text += b" " * (-len(text) % 8)  # numbers begin at a multiple of eight
        file.write(struct.pack("<Q", len(text)) + text)
        for a in arrays.values():
            file.write(a.reshape(-1).view(np.uint8).data)
        return 8 + text.index(SEAL) + len(SEAL)

    @classmethod
    def seal(cls, file: IO[bytes], size: int) -> int:
        """Where the digits of the seal are, -1 if there is none."""
        text = cls._text(file, size)
        place = text.find(SEAL)
        return -1 if place < 0 or len(text) < place + len(SEAL) + len(ZEROS) else 8 + place + len(SEAL)

    @staticmethod
    def _text(file: IO[bytes], size: int) -> bytes:
        """The JSON header; empty where its length cannot be."""
        file.seek(0)
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return file.read(length) if length <= min(MAX_HEADER, size - 8) else b""

    @classmethod
    def read(cls, file: IO[bytes], size: int) -> dict[str, Host]:
        """All arrays. ValueError, KeyError or TypeError where the file is not what `write` makes."""
        text = cls._text(file, size)
        table = json.loads(text)
        table.pop("__metadata__")
        arrays, offset, begin = {}, 0, 8 + len(text)
        for name, entry in table.items():  # in the order of writing
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            if name not in ARRAYS or not all(type(length) is int and length >= 0 for length in shape):
                raise ValueError("a tensor that does not belong here")
            end = offset + math.prod(shape) * dtype.itemsize
            if entry["data_offsets"] != [offset, end] or begin + end > size:
                raise ValueError("a tensor of another size than its place")
            file.seek(begin + offset)
            arrays[name] = _filled(file, shape, dtype)
            offset = end
        if begin + offset != size:
            raise ValueError("more bytes than numbers")
        return arrays


def _filled(stream: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Host:
    """An array from a stream of its bytes; the size was checked before."""
    a = np.empty(shape, dtype=dtype)
    view = a.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        count = stream.readinto(view[done : done + 2**20])
        if not count:
            raise ValueError("fewer bytes than numbers")
        done += count
    return a


# ------------------------------------------------------------------------------------------------ loading
def load_decomposition(cls: Callable[..., Any], path: str | os.PathLike[str], *, x: Any, kernel: Any, like: Any) -> Any:
    """What `NystromDecomposition.load` does."""
    target, container = _container(path, func="load")
    try:
        arrays = _sealed_arrays(target, container)
        header = json.loads(arrays.pop("header").tobytes())
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError("another format")
        _check_version(header, target)
        if header["content"] != _content_digest(header, arrays):
            raise ValueError("its contents differ from their digest")
        _check_shapes(header, arrays)
    except (
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        RecursionError,
        RuntimeError,
        NotImplementedError,
        struct.error,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, CheckpointCorruptError | CheckpointVersionError):
            raise
        raise _corrupt(target, (str(error) or type(error).__name__)[:120]) from error
    return _assembled(cls, header, arrays, target, x=x, kernel=kernel, like=like)


def _sealed_arrays(target: Path, container: Any) -> dict[str, Host]:
    """The arrays of a file every byte of which is as it was written."""
    with target.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        position = container.seal(file, size)
        if position < 0:
            raise ValueError("no seal")
        expected = _file_digest(file, position)
        file.seek(position)
        if file.read(len(ZEROS)) != expected:
            raise ValueError("its bytes differ from their digest")
        try:
            arrays: dict[str, Host] = container.read(file, size)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a real failure of the disk
                raise
            raise ValueError("parts that lie outside the file") from error
    if arrays["header"].dtype != np.uint8 or arrays["header"].size > MAX_HEADER:
        raise ValueError("an unknown header")
    return arrays


def _check_version(header: Mapping[str, Any], target: Path) -> None:
    version = header.get("version")
    if version != VERSION:
        message = f"load: path must hold version {VERSION}; got version {str(version)[:20]} in {target.name[-60:]!r}. Update softlinalg."
        raise CheckpointVersionError(message)


def _check_shapes(header: Mapping[str, Any], arrays: Mapping[str, Host]) -> None:
    """ValueError, KeyError or TypeError unless numbers and shapes belong together."""
    (m, _), n = arrays["landmarks"].shape, header["n"]
    r = arrays["map"].shape[1]
    shapes = {
        "points": arrays["landmarks"].shape,
        "map": (m, r),
        "eigenvalues": (r,),
        "rotation": (r, r),
        **({"features": (n, r)} if "features" in arrays else {}),
    }
    if any(arrays[name].shape != shape for name, shape in shapes.items()):
        raise ValueError("arrays whose shapes do not fit")
    numbers = [header["trace"], header["trace_error"], header["floor"], n, *([] if header["ridge"] is None else [header["ridge"]])]
    if type(n) is not int or n < 1 or not isinstance(header["chunk_size"], int | None):
        raise ValueError("settings of another kind")
    if not all(math.isfinite(number) for number in numbers) or not all(bool(np.all(np.isfinite(a))) for a in arrays.values()):
        raise ValueError("numbers that are not finite")


def _settled_kernel(header: Mapping[str, Any], kernel: Any, target: Path) -> Any:
    """The kernel of the file, or the one given where the file cannot hold it."""
    entries, name = header["kernel"], str(header["kernel_class"])[:60]
    if entries is None:
        if kernel is None:
            message = f"load: kernel must be given for a kernel that is not part of this package; got None for {name!r}. Pass the object."
            raise ParameterError(message)
        return kernel
    try:
        stored = kernel_from_dict(entries)
    except ParameterError as error:
        raise _corrupt(target, "an unknown kernel") from error
    if kernel is not None and kernel_entries(kernel)["kernel"] != entries:
        got = shown(kernel) if kernel_entries(kernel)["kernel"] is None else str(kernel)[:120]
        message = f"load: kernel must be the one that was saved, {str(stored)[:120]}; got {got}. Leave it out."
        raise ParameterError(message)
    return stored


def _assembled(
    cls: Callable[..., Any], header: Mapping[str, Any], arrays: Mapping[str, Host], target: Path, *, x: Any, kernel: Any, like: Any
) -> Any:
    """The decomposition from checked parts, in the library of `like`."""
    func = "load"
    kernel = _settled_kernel(header, kernel, target)
    given = like if like is not None else x
    xp, (given, x), _ = _inputs.prepare(
        func, {"like": arrays["landmarks"] if given is None else given, "x": x}, whole=False, optional=("x",)
    )
    wide = Wide(given, xp=xp)
    single = arrays["landmarks"].dtype.itemsize == 4
    if not single and not wide.has_float64:
        need = "like must be of a library and device with float64, which the file needs"
        message = f"{func}: {need}; got {type(given).__name__} without it. Leave it out."
        raise DTypeError(message)
    compute = xp.float32 if single else xp.float64
    dtype = getattr(xp, header["dtype"], compute)  # NumPy has no bfloat16
    if x is not None and (tuple(x.shape) != (header["n"], arrays["landmarks"].shape[1]) or x.dtype != dtype):
        want = f"({header['n']}, {arrays['landmarks'].shape[1]}) and dtype {header['dtype']}"
        message = f"{func}: x must be the data of the file, shape {want}; got {tuple(x.shape)}, {_arrays.dtype_name(x.dtype)}. Pass those."
        raise ShapeError(message)

    def placed(name: str, kind: Any) -> Any:
        return _arrays.from_numpy(arrays[name], given, xp=xp, dtype=kind)

    def core(name: str) -> Any:
        return placed(name, xp.float64) if wide.on_device else arrays[name]

    feature_map = FeatureMap(
        kernel=kernel,
        landmarks=placed("points", dtype),
        map=core("map"),
        dtype=compute,
        in_float64=bool(header["in_float64"]) and wide.has_float64,
        chunk_size=header["chunk_size"],
        wide=wide,
        xp=xp,
    )
    summary = Summary(header["trace"], header["trace_error"], header["floor"], 0, Spectrum(core("eigenvalues"), core("rotation")))
    features = placed("features", compute) if "features" in arrays else None
    return cls(Fit(feature_map, summary, features, placed("landmarks", dtype)), x, dtype=dtype, ridge=header["ridge"], n=header["n"])
