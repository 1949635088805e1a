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
    # For type checkers, which do not see names that are imported when they are first used; a test holds both lists equal.
    from softlinalg import errors as errors
    from softlinalg._attention import soft_attention as soft_attention
    from softlinalg._conjugate_gradients import KernelRidgeSolution as KernelRidgeSolution
    from softlinalg._conjugate_gradients import solve_kernel_ridge as solve_kernel_ridge
    from softlinalg._kernels import Gaussian as Gaussian
    from softlinalg._kernels import Kernel as Kernel
    from softlinalg._kernels import Laplacian as Laplacian
    from softlinalg._kernels import Matern as Matern
    from softlinalg._kernels import gaussian_kernel as gaussian_kernel
    from softlinalg._kernels import median_length_scale as median_length_scale
    from softlinalg._landmarks import refine_landmarks as refine_landmarks
    from softlinalg._landmarks import select_landmark_indices as select_landmark_indices
    from softlinalg._landmarks import select_landmarks as select_landmarks
    from softlinalg._nystrom import NystromDecomposition as NystromDecomposition
    from softlinalg._nystrom import kernel_operator as kernel_operator
    from softlinalg._nystrom import nystrom as nystrom
    from softlinalg._pinv import CertifiedInverse as CertifiedInverse
    from softlinalg._pinv import CertifiedPinv as CertifiedPinv
    from softlinalg._pinv import InverseMethod as InverseMethod
    from softlinalg._pinv import NewtonPinv as NewtonPinv
    from softlinalg._pinv import certified_pinv as certified_pinv
    from softlinalg._pinv import certified_ridge_inverse as certified_ridge_inverse
    from softlinalg._pinv import newton_pinv as newton_pinv
    from softlinalg._pinv import newton_pinv_jvp as newton_pinv_jvp
    from softlinalg._pinv import newton_pinv_vjp as newton_pinv_vjp
    from softlinalg._pinv import pinv as pinv
    from softlinalg._pinv import pinv_jvp as pinv_jvp
    from softlinalg._pinv import pinv_vjp as pinv_vjp
    from softlinalg._pinv import ridge_inverse as ridge_inverse
    from softlinalg._pinv import ridge_inverse_jvp as ridge_inverse_jvp
    from softlinalg._pinv import ridge_inverse_vjp as ridge_inverse_vjp
    from softlinalg._streaming import StreamedNystrom as StreamedNystrom
    from softlinalg._streaming import nystrom_stream as nystrom_stream
    from softlinalg._streaming import open_rows as open_rows
