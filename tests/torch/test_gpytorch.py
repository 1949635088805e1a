"""Gaussian processes of GPyTorch on landmarks, against the dense formulas of the same model."""

from __future__ import annotations

import copy
import doctest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("gpytorch")
import gpytorch
from linear_operator import to_dense

import softlinalg
from softlinalg.errors import ParameterError, ShapeError
from softlinalg.torch.gpytorch import NystromKernel, as_kernel

RNG = np.random.default_rng(0)
X = torch.as_tensor(RNG.uniform(size=(120, 2)))
Y = torch.sin(6 * X[:, 0]) * X[:, 1]
NEW = torch.as_tensor(RNG.uniform(size=(15, 2)))


def base() -> Any:
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2)).double()
    kernel.outputscale, kernel.base_kernel.lengthscale = 2.0, torch.tensor([0.3, 0.5])
    return kernel


class Model(gpytorch.models.ExactGP):
    def __init__(self, kernel: Any) -> None:
        super().__init__(X, Y, gpytorch.likelihoods.GaussianLikelihood().double())
        self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), kernel
        self.likelihood.noise = 0.01

    def forward(self, x: Any) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def dense(kernel: NystromKernel, x: Any) -> Any:
    """The covariance of the model written down: C (W + ridge I)^-1 C^T and the rest of the diagonal."""
    whole = to_dense(kernel.base_kernel(x, x))
    cross = to_dense(kernel.base_kernel(x, kernel.landmarks))
    w = to_dense(kernel.base_kernel(kernel.landmarks, kernel.landmarks))
    low = cross @ torch.linalg.solve(w + kernel.ridge * w.diagonal().max() * torch.eye(len(w), dtype=w.dtype), cross.mT)
    return low + torch.diag((whole - low).diagonal())


def test_predictions_and_likelihood_are_those_of_the_dense_model() -> None:
    model = Model(NystromKernel.select(base(), X, 25, rng=0))
    likelihood = model.likelihood
    n, noise = len(X), 0.01 * torch.eye(len(X), dtype=X.dtype)
    full = dense(model.covar_module, torch.cat([X, NEW])).detach()
    a = full[:n, :n] + noise
    model.train()
    found = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)(model(X), Y)
    expected = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=X.dtype), a).log_prob(Y) / n
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-7)
    model.eval()
    with torch.no_grad():
        prediction = model(NEW)
    torch.testing.assert_close(prediction.mean, full[n:, :n] @ torch.linalg.solve(a, Y), rtol=0, atol=1e-7)
    variances = (full[n:, n:] - full[n:, :n] @ torch.linalg.solve(a, full[:n, n:])).diagonal()
    torch.testing.assert_close(prediction.variance, variances, rtol=0, atol=1e-7)


def test_gradients_of_the_likelihood_are_those_of_the_dense_model() -> None:
    model = Model(NystromKernel(base(), X[::8], learn_landmarks=True, ridge=1e-3))
    parameters = list(model.covar_module.parameters())
    a = dense(model.covar_module, X) + 0.01 * torch.eye(len(X), dtype=X.dtype)
    expected = torch.autograd.grad(torch.distributions.MultivariateNormal(torch.zeros_like(Y), a).log_prob(Y) / len(X), parameters)
    found = torch.autograd.grad(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)(model(X), Y), parameters)
    assert len(found) == 3  # output scale, length scales, landmarks
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_far_from_the_landmarks_the_variance_is_that_of_the_kernel() -> None:
    model = Model(NystromKernel.select(base(), X, 25, rng=0)).eval()
    with torch.no_grad():
        variance = model(torch.full((1, 2), 50.0, dtype=X.dtype)).variance
    torch.testing.assert_close(variance, torch.tensor([2.0], dtype=X.dtype))


def test_the_trace_error_is_that_of_the_decomposition() -> None:
    kernel = NystromKernel.select(base(), X, 25, rng=0)
    d = softlinalg.nystrom(X, as_kernel(kernel.base_kernel), landmarks=kernel.landmarks, ridge=1e-6 * 2)
    assert kernel.relative_trace_error(X) == pytest.approx(d.relative_trace_error, rel=0.2)  # its ridge is another
    assert 1e-6 < kernel.relative_trace_error(X) < 0.05


def test_state_and_copies_keep_the_landmarks() -> None:
    kernel = NystromKernel.select(base(), X, 10, rng=0)
    other = NystromKernel(base(), torch.zeros(10, 2, dtype=X.dtype))
    other.load_state_dict(kernel.state_dict())
    for copied in (other, copy.deepcopy(kernel)):
        torch.testing.assert_close(to_dense(copied(X)), to_dense(kernel(X)), rtol=0, atol=0)
        torch.testing.assert_close(to_dense(copied(X, NEW)), to_dense(kernel(X, NEW)), rtol=0, atol=0)


def test_what_cannot_be_used_is_named() -> None:
    with pytest.raises(ShapeError, match=r"NystromKernel: landmarks must be a tensor of shape \(m, d\); got \(3,\)"):
        NystromKernel(base(), torch.zeros(3))
    with pytest.raises(ParameterError, match="NystromKernel: ridge must be"):
        NystromKernel(base(), X, ridge=-1.0)


def test_examples_of_the_how_to_run() -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "scientific-hosts.md"
    results = doctest.testfile(str(page), module_relative=False)
    assert results.attempted > 20
    assert results.failed == 0


def test_xarray_goes_in() -> None:
    xarray = pytest.importorskip("xarray")
    x = X.numpy()
    found = softlinalg.nystrom(xarray.DataArray(x, dims=("row", "feature")), softlinalg.Gaussian(0.5), rank=10, rng=0)
    np.testing.assert_array_equal(found.landmarks, softlinalg.nystrom(x, softlinalg.Gaussian(0.5), rank=10, rng=0).landmarks)
