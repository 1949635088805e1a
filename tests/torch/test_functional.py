"""Softmax-free attention as a function of tensors: published numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

from softlinalg.torch import soft_attention  # noqa: E402

REFERENCE = Path(__file__).resolve().parents[3] / "shared" / "reference"
WIDTH, GRID = 32, 16
SCALE = WIDTH**0.25


class Published:
    """One of the published computations: tensors by name, and the layers around the attention."""

    def __init__(self, name, dtype):
        path = REFERENCE / f"attn_{name}_d64h2r4_mild.npz"
        if not path.is_file():
            pytest.skip(f"reference numbers are not beside this checkout ({path.name} is missing)")
        with np.load(path) as file:
            self.file = {key: file[key] for key in file.files}
        self.dtype = dtype
        self.q, self.v = self["Q"].requires_grad_(), self["V"].requires_grad_()
        names = ("Qlandmark_op.weight", "Qnorm_act.0.weight", "Qnorm_act.0.bias")
        self.parameters = {key: self[f"kernel_sd/{key}"].requires_grad_() for key in names}

    def __getitem__(self, key):
        return torch.tensor(self.file[key], dtype=self.dtype)

    def landmarks(self):
        """Strided convolution of the scaled queries, LayerNorm, GELU; in the units of the queries."""
        weight, gain, shift = self.parameters.values()
        grid = (self.q / SCALE).reshape(4, GRID, GRID, WIDTH).permute(0, 3, 1, 2)
        tokens = F.conv2d(grid, weight, stride=4).flatten(2).mT
        return F.gelu(F.layer_norm(tokens, (WIDTH,), gain, shift)).reshape(2, 2, -1, WIDTH) * SCALE

    def backward(self, out):
        (out * self["cot"]).sum().backward()

    def error(self, found, key):
        wanted = self.file[key]
        return float(np.abs(found.detach().double().numpy() - wanted).max() / np.abs(wanted).max())

    def depthwise(self):
        """The term that the files add to the attention."""
        grid = self["V"].reshape(2, 2, GRID, GRID, WIDTH).permute(0, 4, 1, 2, 3).reshape(-1, 2, GRID, GRID)
        added = F.conv2d(grid, self["kernel_sd/conv.weight"], padding=4, groups=2)
        return added.reshape(2, WIDTH, 2, GRID * GRID).permute(0, 2, 3, 1)


TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}
"""What the published numbers are asked to, relative to the largest entry."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("inverse", "gradient", "out", "dq"),
    [
        ("published", "published", "out", "dQ"),
        ("published", "exact", "out", "dQ_unrolled"),
        ("exact", "exact", "out_exactinv", "dQ_exactinv"),
        ("certified", "exact", "out_exactinv", "dQ_exactinv"),
    ],
)
def test_published_soft_numbers_are_reproduced(dtype, inverse, gradient, out, dq):
    case = Published("base", dtype)
    attended = soft_attention(case.q, case.v, case.landmarks(), inverse=inverse, gradient=gradient)
    case.backward(attended)
    assert case.error(attended + case.depthwise(), out) < TOLERANCE[dtype]
    if inverse == "published":
        assert case.error(attended, "out_attn_only") < TOLERANCE[dtype]
    assert case.error(case.q.grad, dq) < TOLERANCE[dtype]
    if dq == "dQ":
        for name, parameter in case.parameters.items():
            assert case.error(parameter.grad, f"dparam/{name}") < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_published_soft_plus_plus_numbers_are_reproduced(dtype):
    case = Published("norm", dtype)
    settings = {"inverse": "published", "normalization": "published", "published_alpha": "batch"}
    attended = soft_attention(case.q, case.v, case.landmarks(), **settings)
    case.backward(attended)
    assert case.error(attended + case.depthwise(), "out") < TOLERANCE[dtype]
    assert case.error(attended, "out_attn_only") < TOLERANCE[dtype]
    assert case.error(case.q.grad, "dQ") < TOLERANCE[dtype]
    for name, parameter in case.parameters.items():
        assert case.error(parameter.grad, f"dparam/{name}") < TOLERANCE[dtype]
