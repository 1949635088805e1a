"""The kernels for CUDA devices, run by Triton's interpreter on the CPU: the core's results and gradients.

Run by test_triton_kernels.py, in a process of its own: Triton is for its interpreter from its import on, or not at all. Alone:

    TRITON_INTERPRET=1 python -m pytest tests/torch/interpreted_triton_kernels.py
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from softlinalg import errors
from softlinalg.torch import autograd, landmark_inverse, soft_attention
from softlinalg.torch import triton_kernels as kernels


@pytest.fixture
def dispatched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tensors of the CPU take the way of those on a device; what was called there."""
    calls: list[str] = []
    for name in ("attend", "attend_vjp", "kernel_matrix_inverse"):
        real = getattr(kernels, name)

        def spy(*args: object, name: str = name, real: Callable[..., object] = real) -> object:
            found = real(*args)
            calls.append(name if found is not None else f"{name} gave up")
            return found

        monkeypatch.setattr(kernels, name, spy)
    monkeypatch.setattr(autograd, "_on_device", lambda x: kernels)
    return calls


def tensors(
    n: int, *, keys: int | None = None, h: int = 2, d: int = 8, e: int = 4, m: int = 5, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """q, v, landmarks (and k) as views of (batch, tokens, heads, width)."""
    generator = torch.Generator().manual_seed(n)

    def draw(rows: int, width: int) -> Tensor:
        return torch.randn((1, rows, h, width), generator=generator).to(dtype).transpose(1, 2).requires_grad_()

    made = [draw(n, d), draw(n if keys is None else keys, e), draw(m, d)]
    return made if keys is None else [*made, draw(keys, d)]


def outcome(inputs: list[Tensor], **settings: Any) -> list[Tensor]:
    """The output and the gradients."""
    q, v, landmarks, *k = inputs
    out = soft_attention(q, v, landmarks, k=k[0] if k else None, **settings)
    weights = torch.cos(torch.arange(out.numel(), dtype=torch.float32)).reshape(out.shape).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, weights)]


def close(ours: list[Tensor], theirs: list[Tensor], units: float) -> None:
    for found, expected in zip(ours, theirs, strict=True):
        assert found.dtype == expected.dtype
        atol = units * torch.finfo(expected.dtype).eps * float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("n", "keys", "sizes"), [(150, None, {}), (70, 130, {}), (33, None, {"d": 20, "e": 17, "m": 33, "h": 1})])
def test_attention_and_its_gradients_are_those_of_the_core(
    n: int, keys: int | None, sizes: dict[str, int], dispatched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tensors(n, keys=keys, **sizes)
    ours = outcome(inputs)
    assert dispatched == ["kernel_matrix_inverse", "attend", "attend_vjp"]
    monkeypatch.setattr(autograd, "_on_device", lambda x: None)
    # Sums of a hundred products each, and an inverse of condition below 1e3, whose last step both do in float64.
    close(ours, outcome(inputs), 300)


def test_many_programs_share_the_rows(dispatched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_PROGRAMS", 4)
    inputs = tensors(300)
    ours = outcome(inputs)
    monkeypatch.setattr(kernels, "_PROGRAMS", 2)
    close(ours, outcome(inputs), 100)


def test_half_precision_comes_in_and_goes_out(dispatched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tensors(70, dtype=torch.bfloat16)
    ours = outcome(inputs)
    assert "attend_vjp" in dispatched
    monkeypatch.setattr(autograd, "_on_device", lambda x: None)
    close(ours, outcome(inputs), 2)


def test_a_second_derivative_takes_the_composite_form(dispatched: list[str]) -> None:
    q, v, landmarks = tensors(20)
    (first,) = torch.autograd.grad(soft_attention(q, v, landmarks).square().sum(), q, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), q)
    assert second.isfinite().all()
    assert second.abs().max() > 0


@pytest.mark.parametrize("m", [1, 5, 16, 33, 64])
def test_the_inverse_is_certified_and_right(m: int, dispatched: list[str]) -> None:
    x = torch.randn(3, m, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(m))
    w = torch.exp(-torch.cdist(x, x).square() / 8)
    w = (w + w.mT) / 2
    settings = autograd._attention.InverseSettings(is_kernel=True)
    found = autograd._plain_inverse(w, settings)
    assert dispatched == ["kernel_matrix_inverse"]
    exact = torch.linalg.inv(w + 0.01 * torch.eye(m, dtype=torch.float64))
    error = torch.linalg.matrix_norm(found - exact, 2) / torch.linalg.matrix_norm(exact, 2)
    assert error.max() < 1e-6
    assert torch.equal(found, found.mT)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered in matmul")  # by which the interpreter says so
def test_matrices_beyond_its_reach_are_inverted_another_way(dispatched: list[str]) -> None:
    w = torch.ones(2, 40, 40, dtype=torch.float64)  # float32 overflows at a condition of 4e9
    settings = autograd._attention.InverseSettings(is_kernel=True, ridge=1e-8)
    found = autograd._plain_inverse(w, settings)
    assert dispatched == ["kernel_matrix_inverse gave up"]
    exact = (torch.eye(40, dtype=torch.float64) - w / (40 + 1e-8)) / 1e-8
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5 * 1e8)


def test_matrices_that_are_not_of_landmarks_are_checked_first(dispatched: list[str]) -> None:
    with pytest.raises(errors.InputError):
        landmark_inverse(torch.tensor([[1.0, 0.5], [0.0, 1.0]]))
    assert not dispatched


def test_a_kernel_that_does_not_run_is_given_up_once(
    dispatched: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object, **settings: object) -> None:
        message = "no such device"
        raise RuntimeError(message)

    monkeypatch.setattr(kernels, "_failed", set())
    for name in ("_gather", "_newton"):
        monkeypatch.setattr(kernels, name, _Grid(broken))
    inputs = tensors(40)
    with caplog.at_level(logging.WARNING, logger="softlinalg.torch.triton_kernels"):
        ours = [outcome(inputs) for _ in range(2)][1]
    assert sorted(record.args[0] for record in caplog.records) == ["attention", "the inverse"]
    assert dispatched == ["kernel_matrix_inverse gave up", "attend gave up"]
    monkeypatch.setattr(autograd, "_on_device", lambda x: None)
    close(ours, outcome(inputs), 1)


class _Grid:
    """Stands for a kernel: `kernel[grid](...)`."""

    def __init__(self, call: Callable[..., None]) -> None:
        self.call = call

    def __getitem__(self, grid: object) -> Callable[..., None]:
        return self.call
