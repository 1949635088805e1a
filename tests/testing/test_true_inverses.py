"""The pseudo-inverses that count as true, against 60 digits: within the error that they state, and that error is small."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest

import softlinalg
from softlinalg.testing import build_matrix
from softlinalg.testing._cases import Case


def digits(case: Case) -> mpmath.matrix:
    """(A^H A)^-1 A^H of one matrix of full column rank."""
    a = mpmath.matrix(case.host.tolist())
    return (a.H * a) ** -1 * a.H


def distance(x: np.ndarray, true: mpmath.matrix) -> float:
    """|x - true|_F."""
    return float(mpmath.norm(mpmath.matrix(x.tolist()) - true))


CASES = [
    {"shape": (9, 6), "cond": 1e6},
    {"shape": (12, 12), "cond": 1e9, "dtype": "complex128"},
    {"shape": (21, 21), "cond": 3.8e5, "mode": 6, "dtype": "complex128"},  # too large for rational arithmetic
    {"shape": (24, 24), "cond": 2.2e9, "mode": 5, "log2_scale": 7, "dtype": "complex128"},
    {"shape": (30, 20), "cond": 1e10},
    {"shape": (20, 8), "cond": 1e4, "dtype": "float32"},
]


@pytest.mark.parametrize("settings", CASES, ids=lambda settings: f"{settings['shape']}-{settings.get('dtype', 'float64')}")
@pytest.mark.parametrize("seed", [1, 2])
def test_the_truth_is_off_by_no_more_than_it_says(settings: dict, seed: int) -> None:
    case = build_matrix(seed=seed, **settings)
    with mpmath.workdps(60):
        error = distance(case.pinv, digits(case))
    size = np.linalg.norm(case.pinv, 2)
    assert error <= case.pinv_error * np.sqrt(min(case.shape))  # the bound is of the spectral norm
    assert case.pinv_error <= 0.03 * case.u * case.kappa * size * max(case.shape) + 10 * np.finfo(float).eps * size


@pytest.mark.parametrize("settings", CASES[2:4], ids=["uniform", "log-uniform"])
def test_a_bound_that_is_nearly_the_error_is_not_refused_for_the_error_of_the_truth(settings: dict) -> None:
    case = build_matrix(seed=1 if settings["mode"] == 6 else 2126, **settings)
    found = softlinalg.certified_pinv(case.A)
    bound = float(found.error_bound)
    with mpmath.workdps(60):
        true = distance(found.value, digits(case))
    assert true <= np.sqrt(24) * bound
    assert np.linalg.norm(found.value - case.pinv, 2) <= bound + case.pinv_error
