"""A decomposition through any sequence of calls, saves and loads, beside a dense model in float64 of what it stands for."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import softlinalg
from softlinalg import Gaussian, Laplacian, Matern, NystromDecomposition
from softlinalg.errors import InputError

KERNELS = (Gaussian(1.5), Laplacian(2.0), Matern(1.5, nu=2.5), Gaussian((1.0, 2.0)))
SEEDS = st.integers(0, 2**32 - 1)


class DecompositionMachine(RuleBasedStateMachine):
    """`self.dense` is F F^T in float64, from the definition; whatever is done to `self.d`, it stays that matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.saves = 0

    def teardown(self) -> None:
        self.folder.cleanup()

    @initialize(
        seed=SEEDS,
        n=st.integers(1, 40),
        m=st.integers(1, 8),
        kernel=st.sampled_from(KERNELS),
        dtype=st.sampled_from(["float32", "float64"]),
        store=st.booleans(),
        chunk=st.sampled_from([None, 1, 7]),
        library=st.sampled_from([np.asarray, torch.tensor]),
    )
    def build(self, seed: int, n: int, m: int, kernel: Any, dtype: str, store: bool, chunk: int | None, library: Any) -> None:
        self.x = np.random.default_rng(seed).normal(size=(n, 2)).astype(dtype)
        self.rows = np.arange(min(m, n))
        self.kernel, self.library, self.name = kernel, library, dtype
        self.d = softlinalg.nystrom(library(self.x), kernel, landmarks=self.rows, store_features=store, chunk_size=chunk, ridge=0.25)
        wide = self.x.astype(np.float64)
        c, w = kernel(wide, wide[self.rows]), kernel(wide[self.rows])
        values, vectors = np.linalg.eigh(w)
        kept = values > (1e-8 if dtype == "float32" else 1e-12) * values[-1]
        self.dense = c @ (vectors[:, kept] / values[kept]) @ vectors[:, kept].T @ c.T
        # Error of k(x, y) in the dtype (Gaussian: a few d + 2 roundings), through an inverse with this smallest eigenvalue.
        self.slack = 300 * n * np.finfo(dtype).eps / np.sqrt(values[kept][0])
        self.has_data = True

    def host(self, a: Any) -> np.ndarray:
        return np.asarray(a).astype(np.float64)

    def close(self, found: Any, expected: np.ndarray, scale: float = 1.0) -> None:
        np.testing.assert_allclose(self.host(found), expected, rtol=0, atol=self.slack * max(scale, 1e-300))

    @property
    def computes(self) -> bool:
        return self.has_data or self.d.stores_features

    @rule(seed=SEEDS, columns=st.sampled_from([None, 0, 1, 3]))
    def multiply(self, seed: int, columns: int | None) -> None:
        v = np.random.default_rng(seed).normal(size=(len(self.x), *([] if columns is None else [columns]))).astype(self.name)
        if not self.computes:
            try:
                self.d @ self.library(v)
            except InputError as error:
                assert "data must be at hand for features that are not stored" in str(error)  # noqa: PT017
                return
            raise AssertionError("a product without data")
        self.close(self.d @ self.library(v), self.dense @ v, scale=float(np.abs(v).sum(axis=0).max(initial=0)))

    @precondition(lambda self: self.computes)
    @rule(seed=SEEDS, ridge=st.sampled_from([None, 0.1, 1.0, 10.0]))
    def solve(self, seed: int, ridge: float | None) -> None:
        b = np.random.default_rng(seed).normal(size=len(self.x)).astype(self.name)
        y = self.host(self.d.solve(self.library(b), ridge))
        shifted = self.dense + (ridge or 0.25) * np.eye(len(b))
        self.close(shifted @ y, b, scale=float(np.abs(y).sum() + np.abs(b).sum()) * max(1.0, ridge or 0.25))

    @precondition(lambda self: self.computes)
    @rule()
    def features_and_diagonal(self) -> None:
        f = self.host(self.d.features())
        self.close(f @ f.T, self.dense)
        self.close(self.d.diagonal(), np.diag(self.dense))
        self.close(self.d.to_dense(), self.dense)

    @precondition(lambda self: self.computes)
    @rule()
    def features_of_the_data_are_those_of_new_points(self) -> None:
        new = self.host(self.d.features(self.library(self.x)))
        self.close(new @ self.host(self.d.features()).T, self.dense)

    @precondition(lambda self: self.computes and self.d.rank > 0)
    @rule(part=st.floats(0.1, 1.0))
    def eigenpairs(self, part: float) -> None:
        k = max(1, int(part * self.d.rank))
        values, vectors = (self.host(a) for a in self.d.eigh(k))
        self.close(vectors.T @ vectors, np.eye(k))
        self.close(values, np.linalg.eigvalsh(self.dense)[::-1][:k], scale=len(self.x))

    @rule(ridge=st.sampled_from([0.1, 1.0, 100.0]))
    def log_determinant(self, ridge: float) -> None:
        expected = np.linalg.slogdet(self.dense + ridge * np.eye(len(self.x)))[1]
        assert abs(self.d.logdet(ridge) - expected) <= self.slack * len(self.x) / ridge + 1e-10

    @rule(
        suffix=st.sampled_from([".npz", ".safetensors"]),
        features=st.booleans(),
        data=st.booleans(),
        library=st.sampled_from([np.asarray, torch.tensor]),
    )
    def save_and_load(self, suffix: str, features: bool, data: bool, library: Any) -> None:
        self.saves += 1
        path = Path(self.folder.name) / f"{self.saves}{suffix}"
        before = repr(self.d)
        stored = self.d.stores_features and features
        self.d.save(path, include_features=features)
        assert [entry.name for entry in Path(self.folder.name).iterdir()] == [path.name]
        x = library(self.x) if data else None
        self.d = NystromDecomposition.load(path, x=x, like=library(self.x[:1]))
        self.has_data, self.library = data, library
        path.unlink()
        assert repr(self.d).split(", features")[0] == before.split(", features")[0]
        assert self.d.stores_features == stored

    @invariant()
    def what_it_says_of_itself_is_true(self) -> None:
        if not hasattr(self, "d"):
            return
        n = len(self.x)
        assert self.d.shape == (n, n)
        assert 0 <= self.d.rank <= len(self.rows)
        assert self.d.ridge == 0.25
        assert abs(self.d.trace - n) <= 1e-9 * n
        assert abs(self.d.trace_error - (n - np.trace(self.dense))) <= self.slack * n


DecompositionMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=12, suppress_health_check=list(HealthCheck), deadline=None
)
TestDecomposition = DecompositionMachine.TestCase
