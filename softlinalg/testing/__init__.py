"""Property-based accuracy testing for pseudo-inverses, kernels, low-rank approximations, attention and gradients: of anybody's code.

* `ratios`: errors in units of eps x dimension x condition. Needs NumPy only.
* `gallery`: named hard matrices with known properties and exact inverses.
* `assertions` (all names also here): `assert_pinv` and others, whose messages say what failed, by how much, where, and how to repeat it.
* `suites`: whole suites for any function, the same as the command ``softlinalg check`` and the pytest mark `conforms`.
* `strategies`: hypothesis strategies for all of it (needs the extra ``softlinalg[testing]``).

Names are imported when they are first used; without hypothesis everything but `strategies` works.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = ("assertions", "gallery", "ratios", "strategies", "suites")

_SOURCES: dict[str, tuple[str, ...]] = {
    "softlinalg.testing._cases": ("Case", "build_graded", "build_matrix"),
    "softlinalg.testing.assertions": (
        "AccuracyError",
        "assert_attention_matches",
        "assert_backend_parity",
        "assert_batch_independent",
        "assert_errors_documented",
        "assert_gradient",
        "assert_input_unchanged",
        "assert_inverse",
        "assert_kernel_matrix",
        "assert_layout_invariant",
        "assert_low_rank_error",
        "assert_no_worse_than",
        "assert_nystrom",
        "assert_pinv",
        "assert_psd",
        "assert_ridge_inverse",
    ),
    "softlinalg.testing._points": ("AttentionCase", "PointCase", "build_attention", "build_gram", "build_points"),
    "softlinalg.testing._report": ("Report",),
    "softlinalg.testing.plugin": ("conforms",),
}
_ORIGIN = {name: module for module, names in _SOURCES.items() for name in names}

__all__ = [*sorted(_ORIGIN), *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _ORIGIN:
        value = getattr(importlib.import_module(_ORIGIN[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"softlinalg.testing.{name}")
    else:
        message = f"module 'softlinalg.testing' has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
