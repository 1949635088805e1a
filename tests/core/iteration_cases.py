"""Matrices of a known spectrum, and norms: what the tests of the iterations share."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

EPS = 2.0**-52
seeds = st.integers(0, 2**32 - 1)


def unitary(rng, m, complex_entries=False):
    z = rng.standard_normal((m, m)) + (1j * rng.standard_normal((m, m)) if complex_entries else 0)
    return np.linalg.qr(z)[0]


def hermitian(rng, eigenvalues, complex_entries=False):
    """(A, Q): A = Q diag(eigenvalues) Q^H, exactly Hermitian."""
    q = unitary(rng, len(eigenvalues), complex_entries)
    a = (q * eigenvalues) @ q.conj().T
    return (a + a.conj().T) / 2, q


def spectrum(rng, m, kappa):
    """Eigenvalues in [1/kappa, 1] that hold both ends."""
    inner = kappa ** -rng.uniform(size=max(m - 2, 0))
    return np.concatenate([[1.0], inner, [1 / kappa]])[:m] if m > 1 else np.ones(1)


def norm2(a):
    return np.linalg.norm(a, 2)


sizes = st.integers(1, 9)
