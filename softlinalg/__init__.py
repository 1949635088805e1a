"""Low-rank kernels and certified inverses, written once on the array API standard.

Names are imported when they are first used (SPEC 1), so ``import softlinalg`` is quick and loads no array
library but NumPy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

_SOURCES: dict[str, tuple[str, ...]] = {
    "softlinalg._kernels": ("Gaussian", "Kernel", "Laplacian", "Matern", "gaussian_kernel", "median_length_scale"),
    "softlinalg._iterations": (),
    "softlinalg._pinv": (
        "CertifiedInverse",
        "CertifiedPinv",
        "InverseMethod",
        "NewtonPinv",
        "certified_pinv",
        "certified_ridge_inverse",
        "newton_pinv",
        "newton_pinv_jvp",
        "newton_pinv_vjp",
        "pinv",
        "pinv_jvp",
        "pinv_vjp",
        "ridge_inverse",
        "ridge_inverse_jvp",
        "ridge_inverse_vjp",
    ),
    "softlinalg._landmarks": ("refine_landmarks", "select_landmark_indices", "select_landmarks"),
    "softlinalg._attention": ("soft_attention",),
    "softlinalg._conjugate_gradients": ("KernelRidgeSolution", "solve_kernel_ridge"),
    "softlinalg._nystrom": ("NystromDecomposition", "kernel_operator", "nystrom"),
    "softlinalg._streaming": ("StreamedNystrom", "nystrom_stream", "open_rows"),
}
_ORIGIN = {name: module for module, names in _SOURCES.items() for name in names}

_SUBMODULES = ("errors", "sklearn")
"""Imported when they are first named; those of a framework are not listed in `__all__`, since it may be missing."""

__all__ = [*sorted(_ORIGIN), "__version__", "errors"]


def __getattr__(name: str) -> Any:
    if name in _ORIGIN:
        value = getattr(importlib.import_module(_ORIGIN[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"softlinalg.{name}")
    else:
        message = f"module 'softlinalg' has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


if TYPE_CHECKING:
    from softlinalg import errors as errors
