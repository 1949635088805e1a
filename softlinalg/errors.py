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
    """Root of every exception that softlinalg raises.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> try:
    ...     softlinalg.pinv(np.ones(3))
    ... except errors.SoftlinalgError as error:
    ...     print(type(error).__name__, isinstance(error, ValueError))
    ShapeError True
    """


class InputError(SoftlinalgError, ValueError):
    """An argument has a value that cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> issubclass(errors.ShapeError, errors.InputError), issubclass(errors.InputError, ValueError)
    (True, True)
    """


class ShapeError(InputError):
    """An array has the wrong number of axes, or lengths that do not fit together.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> try:
    ...     softlinalg.pinv(np.ones(3))
    ... except errors.ShapeError as error:
    ...     print(error)
    pinv: a must have shape (..., m, n); got (3,). Pass matrices.
    """


class NonFiniteError(InputError):
    """An array holds NaN or infinity where finite numbers are needed.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> try:
    ...     softlinalg.pinv(np.asarray([[1.0, np.nan]]))
    ... except errors.NonFiniteError as error:
    ...     print(error)
    pinv: a must be finite; got 1 non-finite entry (first at [0, 1]). Clean the data, or pass check_finite=False where offered.
    """


class ParameterError(InputError):
    """A setting (a length scale, a rank, a tolerance, a name) is outside its range.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> try:
    ...     softlinalg.gaussian_kernel(np.ones((2, 2)), length_scale=-1.0)
    ... except errors.ParameterError as error:
    ...     print(error)
    Gaussian: length_scale must be a finite number > 0; got -1.0. Choose a value in that range.
    """


class DTypeError(SoftlinalgError, TypeError):
    """An array has a data type, or is of a kind, that the function does not take.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> try:
    ...     softlinalg.gaussian_kernel(np.ones((2, 2), dtype=complex))
    ... except errors.DTypeError as error:
    ...     print(error)
    gaussian_kernel: x must be real; got dtype complex128. Pass its real part, or real and imaginary parts as features.
    """


class BackendMismatchError(SoftlinalgError, TypeError):
    """Arrays come from different array libraries, or live on different devices.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> issubclass(errors.BackendMismatchError, TypeError)
    True
    """


class NumericalError(SoftlinalgError, ArithmeticError):
    """The arithmetic could not deliver what was asked for.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> issubclass(errors.ConvergenceError, errors.NumericalError), issubclass(errors.NumericalError, ArithmeticError)
    (True, True)
    """


class ConvergenceError(NumericalError):
    """A result could not be certified to the tolerance asked for.

    Attributes
    ----------
    info : object
        The certified result as far as it came: a NamedTuple with `value`, `converged`, `steps`, `residual`
        and `error_bound` per matrix, or None where there is none.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> try:
    ...     softlinalg.ridge_inverse(np.zeros((2, 2)), 0.0, on_failure="raise")
    ... except errors.ConvergenceError as error:
    ...     print(bool(error.info.converged))
    False
    """

    def __init__(self, message: str, info: Any = None) -> None:
        super().__init__(message)
        self.info = info


class RangeError(NumericalError):
    """The result does not fit the range of its data type (it would overflow).

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> issubclass(errors.RangeError, ArithmeticError)
    True
    """


class ResourceError(SoftlinalgError, MemoryError):
    """A result would need more memory than is allowed; refused before it is allocated.

    Attributes
    ----------
    required_bytes, budget_bytes : int or None
        What the call would have needed, and what it may use.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> d = softlinalg.nystrom(np.ones((100, 1)), softlinalg.Gaussian(1.0), rank=1)
    >>> try:
    ...     d.to_dense(memory_budget=1000)
    ... except errors.ResourceError as error:
    ...     print(error.required_bytes, error.budget_bytes)
    80000 1000
    """

    def __init__(self, message: str, required_bytes: int | None = None, budget_bytes: int | None = None) -> None:
        super().__init__(message)
        self.required_bytes = required_bytes
        self.budget_bytes = budget_bytes


class CheckpointError(SoftlinalgError, ValueError):
    """A saved file cannot be used: it is damaged, of a later version, or belongs to another model or call.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> issubclass(errors.CheckpointCorruptError, errors.CheckpointError), issubclass(errors.CheckpointError, ValueError)
    (True, True)
    """


class CheckpointCorruptError(CheckpointError):
    """A saved file is damaged: its digest or its structure does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> import pathlib
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "model.npz"
    ...     softlinalg.nystrom(np.ones((5, 1)), softlinalg.Gaussian(1.0), rank=1).save(path)
    ...     _ = path.write_bytes(path.read_bytes()[:-100])
    ...     try:
    ...         softlinalg.NystromDecomposition.load(path)
    ...     except errors.CheckpointCorruptError:
    ...         print("damaged")
    damaged
    """


class CheckpointVersionError(CheckpointError):
    """A saved file was written by a version that this one does not know.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> issubclass(errors.CheckpointVersionError, errors.CheckpointError)
    True
    """


class SoftlinalgWarning(UserWarning):
    """Root of every warning that softlinalg emits.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", errors.SoftlinalgWarning)     # in tests: every doubt is an error
    ...     _ = softlinalg.pinv(np.eye(2))
    """


class ConvergenceWarning(SoftlinalgWarning):
    """A result did not reach the tolerance asked for; it says so in its fields too.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> issubclass(errors.ConvergenceWarning, errors.SoftlinalgWarning)
    True
    """


class RankWarning(SoftlinalgWarning):
    """The rank could not be certified: there is no clear gap in the singular values at the cut-off.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> import warnings
    >>> hilbert = 1 / (1.0 + np.arange(12)[:, None] + np.arange(12))             # singular values fall without a gap
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     _ = softlinalg.pinv(hilbert)
    >>> caught[0].category.__name__
    'RankWarning'
    """


class PrecisionWarning(SoftlinalgWarning):
    """The data type is too coarse for the conditioning of the problem.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> issubclass(errors.PrecisionWarning, errors.SoftlinalgWarning)
    True
    """


class DuplicateLandmarkWarning(SoftlinalgWarning):
    """Some landmarks are equal; the result is right, but its rank is below the number of landmarks.

    Examples
    --------
    >>> import numpy as np
    >>> import softlinalg
    >>> from softlinalg import errors
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     d = softlinalg.nystrom(np.ones((5, 1)), softlinalg.Gaussian(1.0), landmarks=[0, 1])
    >>> caught[0].category.__name__, d.rank
    ('DuplicateLandmarkWarning', 1)
    """
