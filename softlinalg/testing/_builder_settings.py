"""Settings of the functions that build test cases, checked before anything is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from softlinalg import _inputs
from softlinalg._settings import is_one_of, shown, whole_number
from softlinalg.errors import ParameterError, ShapeError
from softlinalg.testing._layouts import LAYOUTS, NAMESPACES

__all__ = ["KNOWN_TYPES", "LARGEST", "REAL_TYPES", "check_settings", "choice"]

REAL_TYPES = ("float16", "bfloat16", "float32", "float64")
KNOWN_TYPES = (*REAL_TYPES, "complex64", "complex128")

LARGEST = 2**31
"""Of sizes and seeds: larger ones are mistakes."""


def check_settings(
    func: str, *, shape: Any = (0, 0), axes: Mapping[str, Any] | None = None, dtype: Any, types: tuple[str, ...] = KNOWN_TYPES, layout: Any,
    xp: Any, seed: Any, counts: Mapping[str, Any] | None = None, numbers: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Raise unless all settings are what a builder can use.

    Parameters
    ----------
    func : str
        The builder, for messages.
    shape : object
        Two whole numbers >= 0.
    axes : mapping of names to objects, optional
        Batch axes: whole numbers >= 0, any number of them.
    dtype, layout, xp, seed : object
    types : tuple of str
        Data types allowed.
    counts : mapping of names to objects, optional
        Whole numbers >= 1, or None.
    numbers : mapping of names to objects, optional
        Finite numbers > 0.

    Raises
    ------
    ParameterError, ShapeError
    """
    _check_axes(func, "shape", shape, 2)
    for name, value in (axes or {}).items():
        _check_axes(func, name, value, None)
    choice(func, "dtype", dtype, types)
    choice(func, "layout", layout, LAYOUTS)
    if isinstance(xp, str) or not hasattr(xp, "asarray"):
        choice(func, "xp", xp, NAMESPACES, more=" or a namespace")
    whole_number(seed, func=func, name="seed", minimum=0, maximum=LARGEST**2)
    for name, value in (counts or {}).items():
        if value is not None:
            whole_number(value, func=func, name=name, minimum=1, maximum=LARGEST)
    for name, value in (numbers or {}).items():
        _inputs.real_scalar(value, func=func, name=name)


def choice(func: str, name: str, value: Any, known: Any, *, more: str = "") -> None:
    """Raise ParameterError unless the value is one of the names."""
    if not is_one_of(value, known):
        message = f"{func}: {name} must be one of {', '.join(known)}{more}; got {shown(value)}. Pass one of these."
        raise ParameterError(message)


def _check_axes(func: str, name: str, value: Any, length: int | None) -> None:
    if not isinstance(value, tuple | list) or (length is not None and len(value) != length):
        rule = f"{length} whole numbers" if length is not None else "a tuple of whole numbers"
        got = f"{len(value)} of them" if isinstance(value, tuple | list) else shown(value)
        message = f"{func}: {name} must be {rule}; got {got}. Pass a tuple of ints."
        raise ShapeError(message)
    for axis in value:
        whole_number(axis, func=func, name=f"each entry of {name}", minimum=0, maximum=LARGEST)
