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
from typing import TYPE_CHECKING, Any

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


if TYPE_CHECKING:
    # For type checkers; a test holds this equal to the names above.
    from softlinalg.testing import assertions as assertions
    from softlinalg.testing import gallery as gallery
    from softlinalg.testing import ratios as ratios
    from softlinalg.testing import strategies as strategies
    from softlinalg.testing import suites as suites
    from softlinalg.testing._cases import Case as Case
    from softlinalg.testing._cases import build_graded as build_graded
    from softlinalg.testing._cases import build_matrix as build_matrix
    from softlinalg.testing._points import AttentionCase as AttentionCase
    from softlinalg.testing._points import PointCase as PointCase
    from softlinalg.testing._points import build_attention as build_attention
    from softlinalg.testing._points import build_gram as build_gram
    from softlinalg.testing._points import build_points as build_points
    from softlinalg.testing._report import Report as Report
    from softlinalg.testing.assertions import AccuracyError as AccuracyError
    from softlinalg.testing.assertions import assert_attention_matches as assert_attention_matches
    from softlinalg.testing.assertions import assert_backend_parity as assert_backend_parity
    from softlinalg.testing.assertions import assert_batch_independent as assert_batch_independent
    from softlinalg.testing.assertions import assert_errors_documented as assert_errors_documented
    from softlinalg.testing.assertions import assert_gradient as assert_gradient
    from softlinalg.testing.assertions import assert_input_unchanged as assert_input_unchanged
    from softlinalg.testing.assertions import assert_inverse as assert_inverse
    from softlinalg.testing.assertions import assert_kernel_matrix as assert_kernel_matrix
    from softlinalg.testing.assertions import assert_layout_invariant as assert_layout_invariant
    from softlinalg.testing.assertions import assert_low_rank_error as assert_low_rank_error
    from softlinalg.testing.assertions import assert_no_worse_than as assert_no_worse_than
    from softlinalg.testing.assertions import assert_nystrom as assert_nystrom
    from softlinalg.testing.assertions import assert_pinv as assert_pinv
    from softlinalg.testing.assertions import assert_psd as assert_psd
    from softlinalg.testing.assertions import assert_ridge_inverse as assert_ridge_inverse
    from softlinalg.testing.plugin import conforms as conforms
