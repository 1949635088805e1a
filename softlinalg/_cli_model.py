"""A fitted model as a folder: numbers and JSON, sealed, and replaced as a whole or not at all.

model.json names two files, whose names hold a digest of their contents: the approximation, as `NystromDecomposition.save` writes it,
and the coefficients with all that turns rows into features. It is written last, so the folder always holds a whole model.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from softlinalg._cli_options import CommandError
from softlinalg._nystrom_decomposition import NystromDecomposition
from softlinalg._nystrom_io import replacing
from softlinalg._streaming_checkpoint import read_arrays, write_arrays
from softlinalg.errors import CheckpointCorruptError, CheckpointVersionError, SoftlinalgError

__all__ = ["RidgeModel", "check_folder", "load_model", "save_model", "scaled"]

Host = np.ndarray[Any, Any]

FORMAT = "softlinalg.RidgeModel"
VERSION = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class RidgeModel:
    """Everything that predictions need."""

    decomposition: NystromDecomposition
    coefficients: Host
    """Shape (r, k)."""
    intercept: Host
    ridge: Host
    features: tuple[str, ...]
    """Names of the columns, constant ones left out."""
    targets: tuple[str, ...]
    mean: Host
    """Subtracted from the features."""
    deviation: Host
    """What they are divided by."""
    rows: int

    def prepared(self, x: Host) -> Host:
        """Features of rows as the approximation takes them."""
        return scaled(x, self.mean, self.deviation, self.decomposition.dtype)

    def predict(self, x: Host) -> Host:
        """Predictions for rows, shape (b, k), float64."""
        return np.asarray(self.decomposition.features(self.prepared(x)).astype(np.float64) @ self.coefficients + self.intercept)


def scaled(x: Host, mean: Host, deviation: Host, dtype: Any) -> Host:
    """Columns less their means, over their deviations; what is too large for `dtype` becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray((x.astype(np.float64) - mean) / deviation, dtype=dtype)


def check_folder(folder: Path) -> None:
    """Find out before the work whether the model can be written after it.

    Raises
    ------
    CommandError
    """
    if folder.exists() and not folder.is_dir():
        message = f"--output: {folder} is a file; name a folder"
        raise CommandError(message)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model.json").exists():
        message = f"--output: {folder} holds other things than a model; name a new folder"
        raise CommandError(message)
    place = folder if folder.exists() else folder.absolute().parent
    if not place.is_dir():
        message = f"--output: there is no folder {place}"
        raise CommandError(message)
    if not os.access(place, os.W_OK):
        message = f"--output: {place} cannot be written: permission denied"
        raise CommandError(message)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_model(model: RidgeModel, folder: Path) -> None:
    """Write the model; one that was there is replaced when the new one is whole.

    Raises
    ------
    OSError
        The model that was there stays as it was.
    """
    folder.mkdir(exist_ok=True)
    before = {path for path in folder.iterdir() if path.suffix in (".npz", ".arrays") or path.name.endswith(".tmp")}
    draft = folder / f".{os.getpid()}.tmp.npz"
    try:
        model.decomposition.save(draft)
        approximation = folder / f"approximation-{_digest(draft)[:16]}.npz"
        draft.replace(approximation)
    finally:
        draft.unlink(missing_ok=True)
    header = {
        "format": FORMAT,
        "features": list(model.features),
        "targets": list(model.targets),
        "rows": model.rows,
        "approximation": approximation.name,
        "digest": _digest(approximation),
    }
    arrays = {name: getattr(model, name) for name in ("coefficients", "intercept", "ridge", "mean", "deviation")}
    content = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values()) + json.dumps(header).encode()).hexdigest()
    weights = folder / f"coefficients-{content[:16]}.arrays"
    write_arrays(weights, header, arrays)
    entries = {
        "format": FORMAT,
        "version": VERSION,
        "coefficients": weights.name,
        "digest": _digest(weights),
        "model": "ridge",
        "kernel": str(model.decomposition.kernel),
        "rank": model.decomposition.rank,
        "rows": model.rows,
        "relative_trace_error": model.decomposition.relative_trace_error,
        "features": list(model.features),
        "targets": list(model.targets),
        "ridge": model.ridge.tolist(),
    }
    with replacing(folder / "model.json") as file:
        file.write((json.dumps(entries, indent=2) + "\n").encode())
    for path in before - {approximation, weights}:
        path.unlink(missing_ok=True)


def load_model(folder: Path) -> RidgeModel:
    """Read a model that `save_model` wrote.

    Raises
    ------
    CommandError
        There is no model.
    CheckpointCorruptError, CheckpointVersionError
        A file is damaged, missing or of a later version.
    """
    if not (folder / "model.json").is_file():
        message = f"--model: {folder} holds no model; name a folder that `softlinalg fit` wrote"
        raise CommandError(message)
    try:
        return _loaded(folder)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, SoftlinalgError):
            raise
        why = f"{type(error).__name__}: {error}"[:120]
        message = f"predict: model must be as it was written; got damage in {folder.name[-60:]!r}: {why}. Fit it again."
        raise CheckpointCorruptError(message) from error


def _loaded(folder: Path) -> RidgeModel:
    entries = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    if entries["format"] != FORMAT:
        raise ValueError("another format")
    if entries["version"] != VERSION:
        message = f"predict: model must be of version {VERSION}; got {str(entries['version'])[:20]}. Update softlinalg."
        raise CheckpointVersionError(message)
    weights = _member(folder, entries["coefficients"], entries["digest"])
    header, arrays = read_arrays(weights, func="predict")
    if header["format"] != FORMAT:
        raise ValueError("another format")
    decomposition = NystromDecomposition.load(_member(folder, header["approximation"], header["digest"]))
    features, targets = tuple(header["features"]), tuple(header["targets"])
    shapes = {
        "coefficients": (decomposition.rank, len(targets)),
        "intercept": (len(targets),),
        "ridge": (len(targets),),
        "mean": (len(features),),
        "deviation": (len(features),),
    }
    if any(arrays[name].shape != shape or arrays[name].dtype != np.float64 for name, shape in shapes.items()):
        raise ValueError("arrays whose shapes do not fit")
    return RidgeModel(decomposition=decomposition, features=features, targets=targets, rows=int(header["rows"]), **arrays)


def _member(folder: Path, name: str, digest: str) -> Path:
    """A file of the folder with this content."""
    if Path(name).name != name:
        raise ValueError("a file elsewhere")
    if _digest(folder / name) != digest:
        raise ValueError(f"{name[-60:]} differs from its digest")
    return folder / name
