"""Exceptions and warnings of softlinalg.

Every exception derives from `SoftlinalgError` and from the built-in that people expect, so both
``except softlinalg.errors.SoftlinalgError`` and ``except ValueError`` do what they say. Messages read
``<function>: <argument> <rule>; got <fact>. <one remedy>``, on one line, and never hold array contents.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "BackendMismatchError",
    "CheckpointCorruptError",
    "CheckpointError",
    "CheckpointVersionError",
    "ConvergenceError",
    "ConvergenceWarning",
    "DTypeError",
    "DuplicateLandmarkWarning",
    "InputError",
    "NonFiniteError",
    "NumericalError",
    "ParameterError",
    "PrecisionWarning",
    "RangeError",
    "RankWarning",
    "ResourceError",
    "ShapeError",
    "SoftlinalgError",
    "SoftlinalgWarning",
]


class SoftlinalgError(Exception):
    """Root of every exception that softlinalg raises."""


class InputError(SoftlinalgError, ValueError):
    """An argument has a value that cannot be used."""


class ShapeError(InputError):
    """An array has the wrong number of axes, or lengths that do not fit together."""


class NonFiniteError(InputError):
    """An array holds NaN or infinity where finite numbers are needed."""


class ParameterError(InputError):
    """A setting (a length scale, a rank, a tolerance, a name) is outside its range."""


class DTypeError(SoftlinalgError, TypeError):
    """An array has a data type, or is of a kind, that the function does not take."""


class BackendMismatchError(SoftlinalgError, TypeError):
    """Arrays come from different array libraries, or live on different devices."""


class NumericalError(SoftlinalgError, ArithmeticError):
    """The arithmetic could not deliver what was asked for."""


class ConvergenceError(NumericalError):
    """A result could not be certified to the tolerance asked for.

    Attributes
    ----------
    info : object
        The certified result as far as it came: a NamedTuple with `value`, `converged`, `steps`, `residual`
        and `error_bound` per matrix, or None where there is none.
    """

    def __init__(self, message: str, info: Any = None) -> None:
        super().__init__(message)
        self.info = info


class RangeError(NumericalError):
    """The result does not fit the range of its data type (it would overflow)."""


class ResourceError(SoftlinalgError, MemoryError):
    """A result would need more memory than is allowed; refused before it is allocated.

    Attributes
    ----------
    required_bytes, budget_bytes : int or None
        What the call would have needed, and what it may use.
    """

    def __init__(self, message: str, required_bytes: int | None = None, budget_bytes: int | None = None) -> None:
        super().__init__(message)
        self.required_bytes = required_bytes
        self.budget_bytes = budget_bytes


class CheckpointError(SoftlinalgError, ValueError):
    """A saved file cannot be read."""


class CheckpointCorruptError(CheckpointError):
    """A saved file is damaged: its digest or its structure does not fit."""


class CheckpointVersionError(CheckpointError):
    """A saved file was written by a version that this one does not know."""


class SoftlinalgWarning(UserWarning):
    """Root of every warning that softlinalg emits."""


class ConvergenceWarning(SoftlinalgWarning):
    """A result did not reach the tolerance asked for; it says so in its fields too."""


class RankWarning(SoftlinalgWarning):
    """The rank could not be certified: there is no clear gap in the singular values at the cut-off."""


class PrecisionWarning(SoftlinalgWarning):
    """The data type is too coarse for the conditioning of the problem."""


class DuplicateLandmarkWarning(SoftlinalgWarning):
    """Some landmarks are equal; the result is right, but its rank is below the number of landmarks."""
