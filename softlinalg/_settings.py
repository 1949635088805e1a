"""Settings that come in: flags, names and whole numbers, and how messages show what came instead."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from softlinalg.errors import ParameterError

__all__ = ["file_path", "flag", "is_one_of", "shown", "whole_number"]


def shown(value: Any) -> str:
    """A value for a message: short, on one line, and never the contents of an array."""
    if isinstance(value, str | bytes):
        return repr(value[:40])
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if abs(value) < 10**20 else "a number of more than 20 digits"
    return value.__name__[:60] if isinstance(value, type) else type(value).__name__[:60]


def is_one_of(value: Any, known: Iterable[Any]) -> bool:
    """Is it one of some names (or None, True, False)? Without asking arrays and other objects whether they are equal to a name."""
    if value is None or isinstance(value, bool):
        return any(value is item for item in known)
    return isinstance(value, str) and value in [item for item in known if isinstance(item, str)]


def file_path(value: Any, *, func: str, name: str = "path") -> Path:
    """A path from a setting that is one."""
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str) or "\0" in os.fspath(value):
        message = f"{func}: {name} must be a string or a path, without null characters; got {shown(value)}. Pass the name of a file."
        raise ParameterError(message)
    return Path(value)


def flag(value: Any, *, func: str, name: str) -> bool:
    """True or False from a setting that is one."""
    if value is True or value is False:  # before NumPy's types, which compilers do not trace
        return bool(value)
    if isinstance(value, np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    message = f"{func}: {name} must be True or False; got {shown(value)}. Pass one of them."
    raise ParameterError(message)


def whole_number(value: Any, *, func: str, name: str, minimum: int, maximum: int | None = None, remedy: str = "Pass an int.") -> int:
    """An int within [minimum, maximum] from a setting; numbers with a fraction are refused, not rounded."""
    if type(value) is int and value >= minimum and (maximum is None or value <= maximum):  # the usual case, which compilers trace
        return value
    try:
        number = operator.index(value)
    except (TypeError, ValueError):
        number = None
    if number is None or isinstance(value, bool | np.bool_) or number < minimum or (maximum is not None and number > maximum):
        allowed = f">= {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        got = shown(value if number is None or isinstance(value, bool | np.bool_) else number)
        message = f"{func}: {name} must be a whole number {allowed}; got {got}. {remedy}"
        raise ParameterError(message)
    return number
