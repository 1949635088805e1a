"""Weight files: reading the published ones, and saving as safetensors with a seal over every byte.

No file can run code: safetensors hold numbers alone, and other files are read by PyTorch's reader for weights, which refuses
everything else. What was saved here carries a digest, because neither format notices damaged values.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from softlinalg._nystrom_io import SEAL, ZEROS, replacing
from softlinalg._settings import file_path, flag, shown
from softlinalg.errors import CheckpointCorruptError, CheckpointError, ParameterError
from softlinalg.torch.backbones import resized_positions

__all__ = ["LoadReport", "load_published_weights", "save_weights"]

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Entries of training checkpoints that hold weights, the averaged ones first: published results are theirs."""

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")
"""What wrappers put before names: DistributedDataParallel, torch.compile, averaging, detectors."""

FORMAT = "softlinalg.weights"
MAX_HEADER = 2**22
MAX_TENSORS = 20_000
"""A file that claims more is refused before it is read."""


class LoadReport(NamedTuple):
    """What became of each name, in the model and in the file.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import load_published_weights
    >>> report = load_published_weights(torch.nn.Linear(2, 2), torch.nn.Linear(3, 2).state_dict(), strict=False)
    >>> report.mismatched
    ('weight: (2, 3) for (2, 2)',)
    """

    loaded: tuple[str, ...]
    """Copied into the model, resized ones included."""
    resized: tuple[str, ...]
    """Position embeddings that were interpolated."""
    missing: tuple[str, ...]
    """In the model, not in the file: left as they were."""
    unexpected: tuple[str, ...]
    """In the file, not in the model."""
    mismatched: tuple[str, ...]
    """In both with different shapes, as "name: (file) for (model)": left as they were."""
    source: str
    """Where the weights were: the entry of the file that held them, or "" if it held nothing else."""

    @property
    def complete(self) -> bool:
        """Did everything fit?"""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded" + (f" from {self.source!r}" if self.source else "")]
        for word in ("resized", "missing", "unexpected", "mismatched"):
            names = getattr(self, word)
            if names:
                shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
                lines.append(f"{word} ({len(names)}): {shown}")
        return "\n".join(lines)


def load_published_weights(
    model: nn.Module,
    weights: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
    entry: str | None = None,
) -> LoadReport:
    """Load published weights, or weights saved by `save_weights`, into a model.

    Parameters
    ----------
    model : Module
        Usually a `SoftBackbone`; its parameters bear the published names. Build it with published=True for the computation that
        weights were trained with, or published="2021" for weights of the first release.
    weights : path or mapping
        A .safetensors file, or one of torch.save (.pth, .pt, ...), or what such a file holds. The weights may lie in an entry
        "state_dict_ema", "model_ema", "state_dict" or "model" (the first one there is taken), and names may have the prefixes of
        wrappers ("module.", "_orig_mod.", "model.", "backbone.").
    strict : bool, default True
        Refuse a file in which anything is missing, too much, or of another shape. Otherwise take what fits; the report says
        what did not. For fine-tuning with other classes: strict=False, or `reset_classifier` afterwards.
    entry : str, optional
        Take the weights from this entry.

    Returns
    -------
    LoadReport
        What was loaded, resized, missing, unexpected and mismatched; print it.

    Raises
    ------
    CheckpointError
        A file that is no weight file, that would run code, that does not fit (strict), or a missing entry.
    CheckpointCorruptError
        A damaged file: not readable, a digest that is wrong, or NaN among the weights.
    FileNotFoundError, PermissionError
        As usual.

    Notes
    -----
    Position embeddings of another grid are interpolated bilinearly, as the model does it for images of another size; the row of
    the class token stays. Numbers are converted to the data type of the model. On any error the model is as it was.

    Files of torch.save are read with weights_only=True, in which only tensors, plain containers and `argparse.Namespace` are
    accepted; a file with anything else is refused, and nothing in it has run.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import load_published_weights
    >>> source = torch.nn.Linear(2, 2)
    >>> load_published_weights(torch.nn.Linear(2, 2), {"state_dict": source.state_dict()}).loaded
    ('weight', 'bias')
    """
    func = "load_published_weights"
    strict = flag(strict, func=func, name="strict")
    if entry is not None and not isinstance(entry, str):
        message = f"load_published_weights: entry must be None or a name; got {shown(entry)}. Leave it out."
        raise ParameterError(message)
    found: Mapping[str, Any] = weights if isinstance(weights, Mapping) else _read(file_path(weights, func=func, name="weights"))
    tensors, source = _unwrapped(found, entry)
    own = model.state_dict()
    tensors = _renamed(tensors, own)
    fits, resized, mismatched = _matched(tensors, own, model)
    report = LoadReport(
        loaded=tuple(fits),
        resized=tuple(resized),
        missing=tuple(name for name in own if name not in tensors),
        unexpected=tuple(name for name in tensors if name not in own),
        mismatched=tuple(mismatched),
        source=source,
    )
    for name, value in fits.items():
        if value.is_meta:
            message = (
                f"load_published_weights: weights must hold numbers; got a tensor on the meta device in {name[:80]!r}. Save real ones."
            )
            raise CheckpointError(message)
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            message = f"load_published_weights: weights must be finite; got NaN or infinity in {name[:80]!r}. Save the file again."
            raise CheckpointCorruptError(message)
    if strict and not report.complete:
        raise CheckpointError(_complaint(report))
    if not fits:
        message = "load_published_weights: weights must hold tensors of the model; got none of its names. Check the model and `entry`."
        raise CheckpointError(message)
    with torch.no_grad():
        for name, value in fits.items():
            own[name].copy_(value)
    return report


def _complaint(report: LoadReport) -> str:
    facts = []
    for word in ("missing", "unexpected", "mismatched"):
        names = getattr(report, word)
        if names:
            facts.append(f"{len(names)} {word} ({' '.join(names[0].split())[:60]}{', ...' if len(names) > 1 else ''})")
    hint = "Pass strict=False to take what fits."
    if any(name.startswith("block") for name in (*report.unexpected, *report.missing)):
        hint = "The depths differ: is it another size (published_code_small)? Or pass strict=False."
    return f"load_published_weights: weights must fit the model; got {'; '.join(facts)}. {hint}"


# ---------------------------------------------------------------------------------------------- from files to names
def _unwrapped(found: Mapping[str, Any], entry: str | None) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint by name, and the entry that held them."""
    source = ""
    if entry is not None:
        if not isinstance(found.get(entry), Mapping):
            message = (
                f"load_published_weights: entry must name a part of the file that holds weights; got {entry[:60]!r}. It has {_keys(found)}."
            )
            raise CheckpointError(message)
        found, source = found[entry], entry
    else:
        for name in CONTAINERS:
            if isinstance(found.get(name), Mapping) and found[name]:
                found, source = found[name], name
                break
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        message = f"load_published_weights: weights must hold tensors; got {_keys(found)}. Name the `entry` that holds them."
        raise CheckpointError(message)
    return tensors, source


def _keys(found: Mapping[str, Any]) -> str:
    names = [repr(str(name)[:30]) for name in list(found)[:5]]
    return f"the entries {', '.join(names)}{', ...' if len(found) > 5 else ''}" if names else "nothing"


def _plain_name(name: str, own: Mapping[str, Any]) -> str:
    """The name without what wrappers put before it."""
    plain, shorter = name, True
    while plain not in own and shorter:
        shorter = False
        for prefix in PREFIXES:
            if plain.startswith(prefix):
                plain, shorter = plain.removeprefix(prefix), True
    return plain


def _renamed(tensors: Mapping[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by the names that the model has for them."""
    renamed: dict[str, Tensor] = {}
    for name, value in tensors.items():
        plain = _plain_name(name, own)
        if plain in renamed:
            message = (
                f"load_published_weights: weights must hold each name once; got {plain[:80]!r} with and without a prefix. Take one `entry`."
            )
            raise CheckpointError(message)
        renamed[plain] = value
    return renamed


def _matched(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Tensors that fit, names of those that were resized, and what has another shape."""
    fits: dict[str, Tensor] = {}
    resized, mismatched = [], []
    for name, target in own.items():
        value = tensors.get(name)
        if value is None:
            continue
        value = value.detach()
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_complex()
        if plain and value.shape != target.shape:
            other = _resized(name, value, target, model)
            if other is not None:
                value = other
                resized.append(name)
        if plain and value.shape == target.shape and (value.is_floating_point() or not target.is_floating_point()):
            fits[name] = value
        else:
            mismatched.append(f"{name}: {tuple(value.shape)} for {tuple(target.shape)}")
    return fits, resized, mismatched


def _resized(name: str, value: Tensor, target: Tensor, model: nn.Module) -> Tensor | None:
    """Position embeddings of a square grid interpolated to that of the model; None where that is not what they are."""
    grids: Any = getattr(model, "base_grids", None)
    if grids is None or name not in [f"pos_embed{stage}" for stage in range(1, 5)]:
        return None
    if value.ndim != 3 or value.shape[0] != 1 or value.shape[2] != target.shape[2] or not value.is_floating_point():
        return None
    grid = grids[int(name[-1]) - 1]
    beside = target.shape[1] - grid[0] * grid[1]
    side = math.isqrt(max(0, value.shape[1] - beside))
    if side == 0 or side * side != value.shape[1] - beside:
        return None
    work = value if value.dtype in (torch.float32, torch.float64) else value.float()
    return resized_positions(work, (side, side), grid)


# ------------------------------------------------------------------------------------------------------ reading
def _corrupt(path: Path, why: str) -> CheckpointCorruptError:
    return CheckpointCorruptError(f"load_published_weights: weights must be whole; got {path.name[-60:]!r}: {why}. Copy or save it again.")


def _read(path: Path) -> Mapping[str, Any]:
    """What a file holds, by one of the two readers that run no code."""
    found = _read_safetensors(path) if path.suffix.lower() == ".safetensors" else _read_torch(path)
    if not isinstance(found, Mapping):
        message = (
            f"load_published_weights: weights must be a mapping of names to tensors; got {type(found).__name__} in {path.name[-60:]!r}."
        )
        raise CheckpointError(f"{message} Save model.state_dict().")
    return found


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    safetensors = _safetensors()
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    if len(data) < 10 or length > min(MAX_HEADER, len(data) - 8):
        raise _corrupt(path, "the header does not fit")
    header = data[8 : 8 + length]
    place = header.find(SEAL)
    if place >= 0:
        start = 8 + place + len(SEAL)
        digest = hashlib.sha256(data[:start] + ZEROS + data[start + len(ZEROS) :]).hexdigest().encode("ascii")
        if digest != data[start : start + len(ZEROS)]:
            raise _corrupt(path, "the digest is wrong")
    elif FORMAT.encode("ascii") in header:
        raise _corrupt(path, "the seal is missing")
    if header.count(b"data_offsets") > MAX_TENSORS:
        raise _corrupt(path, f"more than {MAX_TENSORS} tensors")
    try:
        found: Mapping[str, Any] = safetensors.load(data)
    except Exception as error:
        raise _corrupt(path, "not a safetensors file") from error
    return found


def _read_torch(path: Path) -> Any:
    """What torch.save wrote. The reader knows tensors and plain containers; anything else is refused before it is called."""
    _check_reader()
    with path.open("rb") as file:  # errors of the system, such as a missing file, are themselves
        size = os.fstat(file.fileno()).st_size
    members: list[zipfile.ZipInfo] = []
    try:
        if zipfile.is_zipfile(path):  # raises for some damaged ones
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise _corrupt(path, "not a readable archive") from error
    # Tensors are stored, not compressed: what claims to be longer than the file is a trap.
    if len(members) > MAX_TENSORS or sum(member.file_size for member in members) > size + 2**20:
        raise _corrupt(path, "its members claim more than its length")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "Unsupported global" in str(error) or "allowed" in str(error):
            message = (
                f"load_published_weights: weights must hold tensors and plain containers alone; got {path.name[-60:]!r} "
                "with other objects, which could run code. Save model.state_dict(), or as safetensors."
            )
            raise CheckpointError(message) from error
        raise _corrupt(path, "not a file of torch.save") from error


def _check_reader() -> None:
    """Before 2.10, PyTorch's reader for weights could be made to write outside its memory."""
    numbers = torch.__version__.split("+")[0].split(".")[:2]
    version = tuple(int(number) for number in numbers)
    if version < (2, 10):
        message = f"load_published_weights: weights in files of torch.save need torch >= 2.10 to be read safely; got {torch.__version__}."
        raise CheckpointError(f"{message} Convert them to safetensors, or update.")


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        message = "softlinalg.torch: safetensors files need the package safetensors; it is not installed. Run pip install safetensors."
        raise CheckpointError(message) from error
    return safetensors.torch


# ------------------------------------------------------------------------------------------------------- saving
def save_weights(model: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str] | None = None) -> None:
    """Save the weights of a model as safetensors, with a digest of every byte.

    Parameters
    ----------
    model : Module
        Its `state_dict` is saved, under the names it has (those of the published files for the models here).
    path : path
        Ends in .safetensors. An existing file is replaced when the new one is on the disk, not before.
    metadata : mapping of str to str, optional
        Kept in the header of the file, for people.

    Raises
    ------
    ParameterError
        Another extension, or metadata that are not strings.

    Notes
    -----
    `load_published_weights` reads the file and checks the digest; any other reader of safetensors does too, without the check.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import load_published_weights, save_weights
    >>> import pathlib
    >>> import tempfile
    >>> model = torch.nn.Linear(2, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.safetensors"
    ...     save_weights(model, path)
    ...     print(load_published_weights(torch.nn.Linear(2, 2), path).loaded)
    ('weight', 'bias')
    """
    target = file_path(path, func="save_weights")
    if target.suffix.lower() != ".safetensors":
        message = f"save_weights: path must end in .safetensors; got {target.name[-60:]!r}. Change the extension."
        raise ParameterError(message)
    notes = dict(metadata) if isinstance(metadata, Mapping) else {} if metadata is None else {"": None}
    plain = all(isinstance(key, str) and isinstance(value, str) for key, value in notes.items())
    if not plain or len(json.dumps(notes)) > MAX_HEADER // 4 or "softlinalg" in json.dumps(notes):
        message = "save_weights: metadata must map strings to short strings without 'softlinalg'; got others. Convert values with str()."
        raise ParameterError(message)
    notes |= {"format": "pt", "writer": FORMAT, "seal": (SEAL + ZEROS).decode("ascii")}
    tensors = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()}
    data = _safetensors().save(tensors, metadata=notes)
    start = data.index(SEAL) + len(SEAL)
    digest = hashlib.sha256(data).hexdigest().encode("ascii")
    with replacing(target) as file:
        file.write(data[:start] + digest + data[start + len(ZEROS) :])
