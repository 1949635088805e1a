"""Would the comparison between array libraries notice a wrong one? Namespaces with one operation spoiled: each is caught."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as numpy_namespace
import numpy as np
import pytest

from softlinalg import _attention, _certificates, _iterations, _kernel_distances, _kernels, _linalg, _nystrom_core
from softlinalg._kernel_distances import GaussianColumns

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 6, 3)), RNG.normal(size=(2, 5, 3))
A = RNG.normal(size=(2, 4, 4))
SPD = A @ np.swapaxes(A, -1, -2) + np.eye(4)


class Linalg:
    """The functions of xp.linalg, one of them spoiled."""

    def __init__(self, name: str, spoil: Callable[[Any], Any]) -> None:
        self.name, self.spoil = name, spoil

    def __getattr__(self, name: str) -> Any:
        true = getattr(numpy_namespace.linalg, name)
        return (lambda *a, **k: self.spoil(true(*a, **k))) if name == self.name else true


class Planted:
    """NumPy's namespace, with one function spoiled."""

    def __init__(self, name: str, spoil: Callable[[Any], Any]) -> None:
        self.name, self.spoil, self.calls = name, spoil, 0
        self.linalg = Linalg(name, spoil)

    def __getattr__(self, name: str) -> Any:
        true = getattr(numpy_namespace, name)
        if name != self.name:
            return true

        def spoiled(*arguments: Any, **settings: Any) -> Any:
            self.calls += 1
            return self.spoil(true(*arguments, **settings))

        return spoiled


def perturbed(a: Any) -> Any:
    """Every entry 100 roundings too large."""
    return a * (1 + 100 * 2.0**-52)


def flipped(a: Any) -> Any:
    """The first entry with the other sign."""
    b = np.array(a, copy=True, order="C")
    b.reshape(-1)[:1] *= -1
    return b


def dropped(a: Any) -> Any:
    """The first member of the batch in place of all."""
    b = np.array(a, copy=True, order="C")
    return np.broadcast_to(b[:1], b.shape) if b.ndim else b


def transposed(a: Any) -> Any:
    return np.swapaxes(a, -1, -2) if np.ndim(a) > 1 else a


CALCULATIONS: dict[str, Callable[[Any], Any]] = {
    "distances": lambda xp: GaussianColumns(Y, 0.7, func="test", xp=xp)(X),
    "kernel": lambda xp: _kernels.Gaussian(1.3)._values(GaussianColumns(Y, 1 / 1.3, func="test", xp=xp)(X), xp=xp),
    "Matern": lambda xp: _kernels.Matern(1.3)._values(GaussianColumns(Y, 1 / 1.3, func="test", xp=xp)(X), xp=xp),
    "mirror": lambda xp: _kernel_distances.mirror(A, 1.0, xp=xp),
    "newton": lambda xp: _iterations.newton_raphson(
        A, _iterations.adjoint_start(A, _iterations.safe_alpha(A, xp=xp), xp=xp), steps=2, xp=xp
    ),
    "certificate": lambda xp: np.stack(_certificates.certify_pinv(A, np.linalg.inv(A), slices=1, xp=xp)[:2]),
    "whitening": lambda xp: (lambda m: m @ np.swapaxes(m, -1, -2))(
        _nystrom_core.whiten(SPD[0], rtol=1e-12, noise=1e-16, func="test", xp=xp).map
    ),
    "features": lambda xp: _attention.features(X, Y, 1.4, xp=xp),
    "symmetric attention": lambda xp: _attention.combine(
        np.abs(X), np.abs(X), X, None, SPD[:, :3, :3], is_self=True, normalization="symmetric", xp=xp
    ),
    "power of two": lambda xp: np.stack([_linalg.scale_by_power_of_two(SPD, np.asarray([3.0, -5.0]), xp=xp)]),
}

PLANTED = [
    ("kernel", "exp", perturbed), ("kernel", "exp", flipped), ("kernel", "exp", dropped), ("kernel", "where", flipped), ("kernel", "where", dropped),
    ("distances", "concat", flipped), ("distances", "concat", dropped), ("distances", "sum", perturbed), ("distances", "sum", dropped),
    ("distances", "matrix_transpose", dropped), ("Matern", "sqrt", perturbed), ("Matern", "sqrt", dropped), ("Matern", "exp", perturbed),
    ("mirror", "matrix_transpose", dropped), ("mirror", "matrix_transpose", transposed), ("mirror", "where", perturbed),
    ("newton", "matrix_transpose", transposed), ("newton", "matrix_transpose", dropped), ("newton", "matrix_transpose", flipped),
    ("certificate", "sqrt", dropped),
    ("whitening", "eigh", lambda result: (perturbed(result[0]), result[1])), ("whitening", "eigh", lambda result: (result[0], flipped(result[1]))),
    ("features", "exp", perturbed), ("features", "exp", dropped), ("features", "concat", dropped),
    ("symmetric attention", "sqrt", perturbed), ("symmetric attention", "maximum", dropped), ("symmetric attention", "matrix_transpose", dropped),
]  # fmt: skip


def parity_gap(calculation: str, xp: Any) -> float:
    """Largest difference from NumPy's own namespace, in roundings of the largest entry; infinite for other shapes."""
    expected = np.asarray(CALCULATIONS[calculation](numpy_namespace))
    found = np.asarray(CALCULATIONS[calculation](xp))
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.max(np.abs(found - expected)) / (2.0**-52 * np.max(np.abs(expected))))


ALLOWED = 30.0
"""Roundings by which libraries may differ here: sums of up to six terms in another order."""


@pytest.mark.parametrize("calculation", sorted(CALCULATIONS))
def test_namespaces_that_compute_the_same_are_within_the_bound(calculation: str) -> None:
    """A wrapper that changes nothing, and an honest other library: the strict namespace, through its own arrays elsewhere."""
    assert parity_gap(calculation, Planted("nothing", lambda a: a)) == 0


@pytest.mark.parametrize(("calculation", "operation", "spoil"), PLANTED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_a_spoiled_operation_is_noticed(calculation: str, operation: str, spoil: Callable[[Any], Any]) -> None:
    try:
        gap = parity_gap(calculation, Planted(operation, spoil))
    except (ValueError, ArithmeticError):  # shapes that no longer fit, or a guard of the core: noticed too
        return
    assert gap > ALLOWED
