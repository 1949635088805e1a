"""Checkpoints of running sums: a file that is whole or not there, sealed by a digest, from which a killed run goes on bit for bit.

Layout: eight bytes that name the format, the length of a JSON header (eight bytes, little-endian), the header, the arrays that it
lists one after the other, and the SHA-256 of everything before. Numbers and JSON only; nothing in a file is executed.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from softlinalg._kernels import kernel_from_dict
from softlinalg._nystrom_io import json_bytes, kernel_entries, replacing
from softlinalg._streaming_plan import Plan
from softlinalg._streaming_sources import Host
from softlinalg._streaming_tasks import State
from softlinalg.errors import CheckpointCorruptError, CheckpointError, CheckpointVersionError, ParameterError

__all__ = ["Checkpoint", "Progress", "chunk_digest", "read_arrays", "write_arrays"]

MAGIC = b"SLARRAYS"
VERSION = 1
MAX_HEADER = 2**24
DTYPES = {"<f4", "<f8", "<i8", "|u1"}
PLAN_ARRAYS = ("landmarks", "order", "map", "eigenvalues", "turn")
PLAN_NUMBERS = ("func", "dtype", "in_float64", "stage", "unit", "row_floor", "noise", "spread")


# ------------------------------------------------------------------------------------------------ the container
def write_arrays(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Host]) -> None:
    """Write numbers and JSON to a file that takes the place of `path` when it is whole and on the disk.

    Raises
    ------
    OSError
        It cannot be written; a file of that name stays as it was.
    """
    host = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
    listed = [[name, a.dtype.str, list(a.shape)] for name, a in host.items()]
    text = json_bytes({**header, "version": VERSION, "arrays": listed})
    digest = hashlib.sha256()
    with replacing(path) as file:
        parts: list[Any] = [MAGIC, struct.pack("<Q", len(text)), text, *(a.reshape(-1).view(np.uint8).data for a in host.values())]
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())


def read_arrays(path: Path, *, func: str) -> tuple[dict[str, Any], dict[str, Host]]:
    """Read what `write_arrays` wrote.

    Raises
    ------
    CheckpointCorruptError
        Any byte is not as it was written.
    CheckpointVersionError
        A later version wrote it.
    FileNotFoundError
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest, left = hashlib.sha256(), size - 32
            while left > 0 and (piece := file.read(min(left, 2**20))):
                digest.update(piece)
                left -= len(piece)
            if left != 0 or file.read() != digest.digest():
                raise ValueError("its bytes differ from their digest")
            file.seek(0)
            start = file.read(16)
            if len(start) != 16 or start[:8] != MAGIC:
                raise ValueError("another format")
            (length,) = struct.unpack("<Q", start[8:])
            if length > min(MAX_HEADER, size):
                raise ValueError("a header that is too long")
            header = json.loads(file.read(length))
            if header.pop("version") != VERSION:
                message = f"{func}: {path.name[-60:]!r} must be of version {VERSION}; got a later one. Update softlinalg."
                raise CheckpointVersionError(message)
            arrays = {}
            for name, kind, shape in header.pop("arrays"):
                if kind not in DTYPES or not all(type(n) is int and n >= 0 for n in shape):
                    raise ValueError("an unknown type of array")
                count = math.prod(shape) * np.dtype(kind).itemsize
                if count > size - 32 - file.tell():
                    raise ValueError("an array that is longer than the file")
                arrays[str(name)] = np.frombuffer(bytearray(file.read(count)), dtype=kind).reshape(shape)
            return header, arrays
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        if isinstance(error, CheckpointError):
            raise
        why = (str(error) or type(error).__name__)[:100]
        message = f"{func}: {path.name[-60:]!r} must be as it was written; got a damaged file: {why}. Delete it to begin anew."
        raise CheckpointCorruptError(message) from error


# ------------------------------------------------------------------------------------------------ checkpoints
def chunk_digest(x: Host, y: Host | None) -> bytes:
    """Sixteen bytes that tell whether a chunk has changed."""
    digest = hashlib.blake2b(x.reshape(-1).view(np.uint8).data, digest_size=16)
    if y is not None:
        digest.update(y.reshape(-1).view(np.uint8).data)
    return digest.digest()


class Progress(NamedTuple):
    """How far a pass has come."""

    plan: Plan
    shift: Host
    items: list[tuple[int, State]]
    """Of the tree."""
    digests: list[bytes]
    """Of the chunks summed so far."""


@dataclass
class Checkpoint:
    """A file that is written now and then.

    Parameters
    ----------
    path : Path
    settings : mapping
        What the sums depend on; a file that was written under others is refused.
    seconds : float
        Time between two files.
    """

    path: Path
    settings: Mapping[str, Any]
    seconds: float
    func: str
    _last: float = field(default_factory=time.monotonic)

    def is_due(self) -> bool:
        """Whether it is time for a file."""
        return time.monotonic() - self._last >= self.seconds

    def save(self, progress: Progress) -> None:
        """Write the file.

        Raises
        ------
        OSError
            It cannot be written; the last one stays as it was.
        """
        plan = progress.plan
        arrays = {name: getattr(plan, name) for name in PLAN_ARRAYS}
        arrays["shift"] = progress.shift
        arrays["digests"] = np.frombuffer(b"".join(progress.digests), dtype=np.uint8)
        for i, (_, state) in enumerate(progress.items):
            arrays.update({f"sum {i} {j}": part for j, part in enumerate(state)})
        header = {
            "settings": dict(self.settings),
            "plan": {name: getattr(plan, name) for name in PLAN_NUMBERS},
            **kernel_entries(plan.kernel),
            "levels": [level for level, _ in progress.items],
            "width": len(progress.items[0][1]) if progress.items else 0,
        }
        try:
            write_arrays(self.path, header, arrays)
        except OSError as error:
            message = (
                f"{self.func}: checkpoint must be writable; got {error.strerror or error} for {str(self.path)[-80:]!r}. Make room for it."
            )
            raise OSError(error.errno, message) from error
        self._last = time.monotonic()

    def load(self, kernel: Any) -> Progress | None:
        """What the file holds, or None where there is none; leftovers of writing that was killed are removed.

        Raises
        ------
        CheckpointCorruptError, CheckpointVersionError
        CheckpointError
            Other settings wrote it.
        """
        for leftover in self.path.parent.glob(f".{glob.escape(self.path.name[:80])}.{'[0-9a-f]' * 32}.tmp"):
            leftover.unlink(missing_ok=True)
        if not self.path.exists():
            return None
        header, arrays = read_arrays(self.path, func=self.func)
        stored = header.get("settings")
        if stored != json.loads(json_bytes(self.settings)):
            stored = stored if isinstance(stored, dict) else {}
            changed = sorted(key for key in {*stored, *self.settings} if stored.get(key) != self.settings.get(key))
            message = f"{self.func}: checkpoint must be of the same call; got another {', '.join(changed)[:120]}. Delete it to begin anew."
            raise CheckpointError(message)
        try:
            return self._progress(header, arrays, kernel)
        except (KeyError, TypeError, ValueError) as error:
            message = f"{self.func}: checkpoint must hold sums; got a file without them. Delete it to begin anew."
            raise CheckpointCorruptError(message) from error

    def _progress(self, header: Mapping[str, Any], arrays: Mapping[str, Host], kernel: Any) -> Progress:
        if header["kernel"] is not None:
            try:
                kernel = kernel_from_dict(header["kernel"])
            except ParameterError as error:
                raise ValueError("an unknown kernel") from error
        parts: dict[str, Any] = {**{name: header["plan"][name] for name in PLAN_NUMBERS}, **{name: arrays[name] for name in PLAN_ARRAYS}}
        plan = Plan(kernel=kernel, **parts)
        digests = arrays["digests"].tobytes()
        items = [(level, tuple(arrays[f"sum {i} {j}"] for j in range(header["width"]))) for i, level in enumerate(header["levels"])]
        return Progress(plan, arrays["shift"], items, [digests[i : i + 16] for i in range(0, len(digests), 16)])
