"""Which tests of the contract take part on which array library.

JAX compiles each shape anew: without HYPOTHESIS_PROFILE=thorough it takes part where something could differ there alone, and not where
tests/core compares it already. Read-only arrays are the matter of the tests of layouts.
"""

from __future__ import annotations

import os

import pytest

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"

WITH_JAX = {
    "test_every_library_gives_the_numbers_of_numpy",
    "test_kernels_lie_between_zero_and_one_with_ones_on_the_diagonal",
    "test_shapes_are_known_without_numbers",
}
THOROUGH_WITH_JAX = {
    "test_a_member_that_is_not_finite_harms_no_other",
    "test_asymmetry_is_refused_with_its_size",
    "test_bad_array_settings_name_the_shape",
    "test_empty_batches_are_empty",
    "test_one_by_one_zero_and_rank_one_are_right",
}
COMPARED_IN_CORE = {
    "certified_pinv", "certified_ridge_inverse", "Gaussian", "gaussian_kernel", "nystrom", "pinv", "ridge_inverse", "soft_attention",
    "solve_kernel_ridge",
}  # fmt: skip
"""Functions that tests/core runs on every library, JAX among them, against references."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    dropped = [item for item in items if "contract" in item.path.parts and _is_left_out(item)]
    if dropped:
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in set(dropped)]


def _is_left_out(item: pytest.Item) -> bool:
    arguments = getattr(getattr(item, "callspec", None), "params", {})
    test, backend = item.name.split("[")[0], arguments.get("backend")
    if backend == "numpy-readonly":
        return not THOROUGH
    if backend != "jax":
        return False
    if THOROUGH:
        return test not in WITH_JAX | THOROUGH_WITH_JAX
    return test not in WITH_JAX or getattr(arguments.get("entry"), "name", None) in COMPARED_IN_CORE
