"""Attention as functions of tensors: published numbers, shapes, masks, hard inputs, precision, memory, what it approximates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402

import softlinalg  # noqa: E402
from softlinalg import errors  # noqa: E402
from softlinalg.torch.functional import (  # noqa: E402
    attention_error,
    clustered_softmax_attention,
    gaussian_attention,
    soft_attention,
    softmax_as_gaussian,
    softmax_attention_error,
)

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


# ---------------------------------------------------------------------------------------------------- shapes
def tokens(seed, *, b=2, h=4, n=50, m=9, d=8, e=6, groups=None, keys=None, dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    groups = groups or h
    q = spread * torch.randn(b, h, n, d, generator=generator, dtype=dtype)
    v = torch.randn(b, groups, keys or n, e, generator=generator, dtype=dtype)
    landmarks = spread * torch.randn(b, h, m, d, generator=generator, dtype=dtype)
    k = None if keys is None else spread * torch.randn(b, groups, keys, d, generator=generator, dtype=dtype)
    return q, v, landmarks, k


def gaussian(x, y):
    return torch.exp(-(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / (2 * x.shape[-1] ** 0.5))


MODES = [
    {},
    {"inverse": "exact"},
    {"inverse": "published"},
    {"normalization": "symmetric"},
    {"normalization": "published"},
    {"inverse": "published", "normalization": "published"},
]
"""Every default mode: those that look at one matrix at a time."""
every_mode = pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(mode.values()) or "default")


@every_mode
def test_tensors_and_arrays_give_the_same_numbers(mode):
    q, v, landmarks, k = tokens(0, keys=31)
    found = soft_attention(q, v, landmarks, k=k, **mode)
    wanted = softlinalg.soft_attention(*(x.numpy() for x in (q, v, landmarks)), k=k.numpy(), **mode)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("keys", [None, 31])
@every_mode
def test_groups_of_heads_share_their_keys_and_values(mode, groups, keys):
    q, v, landmarks, k = tokens(1, groups=groups, keys=keys)
    spread = [None if x is None else x.repeat_interleave(4 // groups, dim=1) for x in (v, k)]
    wanted = soft_attention(q, spread[0], landmarks, k=spread[1], **mode)
    torch.testing.assert_close(soft_attention(q, v, landmarks, k=k, **mode), wanted)


def test_landmarks_may_be_shared_by_batch_and_heads():
    q, v, landmarks, _ = tokens(2)
    shared = landmarks[:1, :1]
    torch.testing.assert_close(soft_attention(q, v, shared), soft_attention(q, v, shared.expand(2, 4, -1, -1)))


@every_mode
def test_class_and_register_tokens_stand_beside_the_grid(mode):
    q, v, landmarks, _ = tokens(3, n=49 + 5)
    together = soft_attention(q, v, landmarks, **mode)
    moved = torch.cat([torch.arange(49, 54), torch.arange(49)])
    torch.testing.assert_close(soft_attention(q[:, :, moved], v[:, :, moved], landmarks, **mode), together[:, :, moved])


@every_mode
@pytest.mark.parametrize("keys", [None, 50])
def test_hidden_keys_count_as_removed(mode, keys):
    q, v, landmarks, k = tokens(4, keys=keys)
    hidden = torch.rand(2, 50, generator=torch.Generator().manual_seed(4)) < 0.4
    hidden[1] = False
    hidden[1, 20:] = True
    gone = hidden[:, None, :, None]
    filled = [torch.where(gone, torch.tensor(float("nan"), dtype=x.dtype), x) for x in ((q, v) if k is None else (k, v))]
    arguments = (filled[0], filled[1], landmarks, None) if k is None else (q, filled[1], landmarks, filled[0])
    found = soft_attention(*arguments[:3], k=arguments[3], key_padding_mask=hidden, **mode)
    for i in range(2):
        there = ~hidden[i]
        if k is None:
            wanted = torch.zeros_like(found[i : i + 1])
            wanted[:, :, there] = soft_attention(q[i : i + 1, :, there], v[i : i + 1, :, there], landmarks[i : i + 1], **mode)
        else:
            part = (x[i : i + 1, :, there] for x in (v, k))
            wanted = soft_attention(q[i : i + 1], next(part), landmarks[i : i + 1], k=next(part), **mode)
        torch.testing.assert_close(found[i : i + 1], wanted, rtol=1e-9, atol=1e-10)


def test_hidden_keys_give_no_gradient_and_hold_nothing_back():
    q, v, landmarks, _ = tokens(5)
    hidden = torch.zeros(2, 50, dtype=torch.bool)
    hidden[:, ::3] = True
    gone = hidden[:, None, :, None]
    q = torch.where(gone, torch.tensor(float("inf"), dtype=q.dtype), q).requires_grad_()
    v = torch.where(gone, torch.tensor(float("nan"), dtype=v.dtype), v).requires_grad_()
    for mode in MODES:
        gradients = torch.autograd.grad(soft_attention(q, v, landmarks, key_padding_mask=hidden, **mode).sum(), (q, v))
        for x in gradients:
            assert torch.isfinite(x).all()
            assert (x[:, :, hidden[0]] == 0).all()


def test_all_keys_hidden_give_zeros():
    q, v, landmarks, k = tokens(6, keys=7)
    for mode in MODES:
        found = soft_attention(q, v, landmarks, k=k, key_padding_mask=torch.ones(2, 7, dtype=torch.bool), **mode)
        assert torch.equal(found, torch.zeros_like(found))


def test_heads_of_a_view_come_back_as_a_view():
    merged = torch.randn(3, 40, 4 * 8)
    q = merged.unflatten(-1, (4, 8)).transpose(1, 2)
    out = soft_attention(q, q, q[:, :, ::8])
    assert out.transpose(1, 2).is_contiguous()  # so that .flatten(2) copies nothing


# ------------------------------------------------------------------------------------------------- robustness
@every_mode
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_an_image_alone_and_in_a_batch_of_64_gives_equal_numbers(mode, dtype):
    q, v, landmarks, _ = tokens(7, b=64, dtype=dtype)
    q[5] *= 30  # its mates are of another size
    together, alone = soft_attention(q, v, landmarks, **mode)[17:18], soft_attention(q[17:18], v[17:18], landmarks[17:18], **mode)
    assert float((together - alone).abs().max()) <= 1e-6 * float(alone.abs().max())


HARD = {
    "constant image": lambda q: torch.ones_like(q),
    "constant zero": torch.zeros_like,
    "duplicate tokens": lambda q: q[:, :, :1].expand_as(q).clone(),
    "pairs of tokens": lambda q: q.repeat_interleave(2, dim=2)[:, :, : q.shape[2]],
    "1e4 times as large": lambda q: 1e4 * q,
    "1e-4 times as large": lambda q: 1e-4 * q,
    "far from the origin": lambda q: q + 1e4,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("mode", [{}, {"inverse": "exact"}, {"normalization": "symmetric"}])
def test_hard_inputs_stay_finite_and_right(dtype, name, mode, recwarn):
    q, v, _, _ = tokens(8, n=64, dtype=torch.float64)
    if name == "1e4 times as large" and dtype == torch.float16:
        pytest.skip("65504 is the largest number of float16")
    q, v = HARD[name](q).to(dtype), v.to(dtype)
    landmarks = q[:, :, ::8]
    q, v, landmarks = (x.detach().requires_grad_() for x in (q, v, landmarks))
    out = soft_attention(q, v, landmarks, **mode)
    wanted = soft_attention(q.double(), v.double(), landmarks.double(), **mode)
    # float32 inside, the result rounded once; 100 = norm of the inverse.
    unit = torch.finfo(dtype).eps
    assert float((out.double() - wanted).abs().max()) < (unit + 3e-5) * max(1.0, float(wanted.abs().max()))
    gradients = torch.autograd.grad(out.sum(), (q, v, landmarks))
    assert all(torch.isfinite(x).all() and x.dtype == dtype for x in gradients)
    assert not [w for w in recwarn if issubclass(w.category, errors.SoftlinalgWarning)]  # certified


def test_nan_stays_in_its_head():
    q, v, landmarks, _ = tokens(9)
    wanted = soft_attention(q, v, landmarks)
    for place in (q, v, landmarks):
        broken = [x.clone() for x in (q, v, landmarks)]
        next(b for b, x in zip(broken, (q, v, landmarks), strict=True) if x is place)[0, 1, 3, 2] = float("nan")
        found = soft_attention(*broken)
        assert torch.isnan(found[0, 1]).any()
        found[0, 1] = wanted[0, 1]
        torch.testing.assert_close(found, wanted)


# -------------------------------------------------------------------------------------------------- precision
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_mode
def test_autocast_computes_in_float32_and_answers_in_its_own_type(dtype, mode):
    q, v, landmarks, _ = tokens(10, dtype=torch.float32)
    arguments = [x.clone().requires_grad_() for x in (q, v, landmarks)]
    with torch.autocast("cpu", dtype=dtype):
        out = soft_attention(*arguments, **mode)
        mixed = soft_attention(q.to(dtype), v, landmarks.to(dtype), **mode)
    assert out.dtype == mixed.dtype == dtype
    wanted = soft_attention(q, v, landmarks, **mode)
    torch.testing.assert_close(out, wanted.to(dtype))  # rounded once, at the end
    gradients = torch.autograd.grad(out.float().sum(), arguments)
    assert all(x.dtype == torch.float32 for x in gradients)
    plain = torch.autograd.grad(soft_attention(*arguments, **mode).sum(), arguments)
    for one, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_autocast_leaves_float64_alone():
    q, v, landmarks, _ = tokens(11)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(soft_attention(q, v, landmarks), soft_attention(q, v, landmarks))
        assert soft_attention(q, v, landmarks).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_type_that_comes_in_goes_out(dtype):
    q, v, landmarks, k = (x.to(dtype) for x in tokens(12, keys=20))
    for mode in MODES:
        assert soft_attention(q, v, landmarks, k=k, **mode).dtype == dtype
        assert soft_attention(q, v[:, :, :0], landmarks, k=k[:, :, :0], **mode).dtype == dtype


# ----------------------------------------------------------------------------------------------------- memory
class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """The number of entries of the largest tensor that any operation gives."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.entries = max(self.entries, x.untyped_storage().nbytes() // x.element_size())
        return out


@every_mode
def test_no_tensor_is_larger_than_tokens_times_landmarks(mode):
    q, v, landmarks, _ = (None if x is None else x.requires_grad_() for x in tokens(13, b=1, h=1, n=3000, m=20, dtype=torch.float32))
    with LargestTensor() as largest:
        soft_attention(q, v, landmarks, **mode).sum().backward()
    assert 0 < largest.entries <= 3000 * 20


MEASURE = """
import pathlib, re, torch
from softlinalg.torch import soft_attention
torch.set_num_threads(1)
for n in (4096, 65_536, 262_144):
    q, v = torch.randn(1, 1, n, 32, requires_grad=True), torch.randn(1, 1, n, 32, requires_grad=True)
    soft_attention(q, v, q[:, :, :: n // 49][:, :, :49], **{mode}).sum().backward()
    print(1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1]))
"""
"""Peak of the resident memory; that of getrusage would include the process that started this one."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc, which is not here")
@pytest.mark.slow
@pytest.mark.parametrize("mode", [{}, {"normalization": "symmetric"}])
def test_peak_memory_is_linear_up_to_262144_tokens(mode):
    command = [sys.executable, "-c", MEASURE.format(mode=mode)]
    before, *peaks = map(float, subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.split())
    per_token = [(peak - before) / n for n, peak in zip((65_536, 262_144), peaks, strict=True)]
    # Forward and backward, float32: queries, values, output, their gradients (6 x 32), the features and a few like them: 5 x 49 with
    # the symmetric normalization, and what the allocator has not given back yet (1,540 to 1,770 bytes a token were seen).
    assert max(per_token) < 4 * (6 * 32 + 6 * 49)  # one tokens x tokens matrix would take 1,048,576 bytes a token
    assert per_token[1] < 1.3 * per_token[0]


# -------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"is_causal": True}, errors.ParameterError, "is_causal must be False; got True. Each output is a product with sums over all keys"),
        ({"q": torch.ones(2, 50, 8)}, errors.ShapeError, r"q must have shape \(batch, heads, tokens, features\); got \(2, 50, 8\)"),
        ({"v": torch.ones(3, 4, 50, 6)}, errors.ShapeError, "v must have the batch size 2 of q; got 3"),
        ({"v": torch.ones(2, 3, 50, 6)}, errors.ShapeError, "the heads of v must divide the 4 heads of q; got 3"),
        ({"landmarks": torch.ones(2, 8, 9, 8)}, errors.ShapeError, "the heads of landmarks must divide the 4 heads of q; got 8"),
        ({"landmarks": torch.ones(2, 4, 9, 7)}, errors.ShapeError, "landmarks must have the 8 features of q; got 7"),
        ({"v": torch.ones(2, 4, 49, 6)}, errors.ShapeError, r"v must have one row per key \(50\); got 49"),
        (
            {"key_padding_mask": torch.ones(50, dtype=torch.bool)},
            errors.ShapeError,
            r"key_padding_mask must have shape \(2, 50\); got \(50,\)",
        ),
        (
            {"key_padding_mask": torch.ones(2, 50)},
            errors.DTypeError,
            "key_padding_mask must be boolean, True for absent keys; got dtype float32",
        ),
        ({"inverse": "lu"}, errors.ParameterError, "inverse must be one of 'certified', 'published', 'exact'; got 'lu'"),
        ({"gradient": "none"}, errors.ParameterError, "gradient must be 'exact' or 'published'; got 'none'"),
    ],
)
def test_wrong_arguments_are_refused(change, error, message):
    q, v, landmarks, _ = tokens(14)
    with pytest.raises(error, match=message):
        soft_attention(**{"q": q, "v": v, "landmarks": landmarks, **change})


# ---------------------------------------------------------------------------------- full and softmax attention
@pytest.mark.parametrize("normalization", [None, "row", "symmetric"])
@pytest.mark.parametrize("keys", [None, 31])
def test_full_gaussian_attention_is_its_definition(normalization, keys):
    q, v, _, k = tokens(15, keys=keys)
    kernel = gaussian(q, q if k is None else k)
    if normalization == "row":
        kernel = kernel / kernel.sum(-1, keepdim=True)
    elif normalization == "symmetric":
        kernel = kernel.sum(-1, keepdim=True).clamp(min=1) ** -0.5 * kernel * kernel.sum(-2, keepdim=True).clamp(min=1) ** -0.5
    torch.testing.assert_close(gaussian_attention(q, v, k, normalization=normalization), kernel @ v, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("normalization", [None, "symmetric", "published"])
def test_few_tokens_take_the_full_kernel_where_that_is_asked_for(normalization):
    generator = torch.Generator().manual_seed(0)
    for count in (399, 400):
        q, v = (torch.randn(1, 2, count, 8, generator=generator, dtype=torch.float64) for _ in range(2))
        found = soft_attention(q, v, q[:, :, ::9], inverse="auto", normalization=normalization)
        if count < 400 and normalization != "published":
            wanted = gaussian_attention(q, v, normalization=normalization)
        else:
            wanted = soft_attention(q, v, q[:, :, ::9], normalization=normalization)
        assert torch.equal(found, wanted)


def test_full_attention_is_the_limit_of_many_landmarks():
    q, v, _, _ = tokens(16)
    for normalization in (None, "symmetric"):
        found = soft_attention(q, v, q, ridge=1e-11, normalization=normalization)
        torch.testing.assert_close(found, gaussian_attention(q, v, normalization=normalization), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("groups", [1, 4])
def test_softmax_attention_is_gaussian_attention_with_weighted_keys(masked, groups):
    q, v, _, k = tokens(17, keys=31, groups=groups)
    hidden = torch.rand(2, 31, generator=torch.Generator().manual_seed(17)) < 0.3 if masked else None
    allowed = None if hidden is None else ~hidden[:, None, None, :]
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)
    torch.testing.assert_close(softmax_as_gaussian(q, k, v, key_padding_mask=hidden), wanted, rtol=1e-10, atol=1e-11)
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True, scale=1.7)
    torch.testing.assert_close(softmax_as_gaussian(q, k, v, scale=1.7, key_padding_mask=hidden), wanted, rtol=1e-10, atol=1e-11)


def test_the_equivalence_survives_large_logits_in_float32():
    q, v, _, k = tokens(18, keys=31, dtype=torch.float32, spread=8.0)
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    logits = float((q @ k.mT).abs().max()) * 8**-0.5
    found = softmax_as_gaussian(q, k + 50, v)
    assert float((found - wanted).abs().max()) < 30 * logits * 2.0**-23 * float(v.abs().max()) * 50  # keys were rounded at 50


def test_the_gradient_of_the_equivalence_is_that_of_softmax_attention():
    arguments = [x.requires_grad_() for x in (lambda q, v, _, k: (q, k, v))(*tokens(19, keys=31))]
    found = torch.autograd.grad(softmax_as_gaussian(*arguments).square().sum(), arguments)
    wanted = torch.autograd.grad(F.scaled_dot_product_attention(*arguments).square().sum(), arguments)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("factors", ["counts", "row_stochastic"])
def test_clustered_attention_approaches_softmax_attention_with_more_groups(factors):
    # Keys in 12 tight bunches: 12 groups or more say it all.
    generator = torch.Generator().manual_seed(20)
    q = torch.randn(1, 2, 40, 8, generator=generator)
    centers = 2 * torch.randn(1, 2, 12, 8, generator=generator)
    k = centers[:, :, torch.arange(120) // 10] + 0.02 * torch.randn(1, 2, 120, 8, generator=generator)
    v = torch.randn(1, 2, 120, 6, generator=generator)
    wanted = F.scaled_dot_product_attention(q, k, v)
    errors_found = [
        float((clustered_softmax_attention(q, k, v, count, factors=factors) - wanted).norm() / wanted.norm()) for count in (2, 6, 12, 120)
    ]
    if factors == "counts":
        assert errors_found[2] < 0.05
        assert errors_found[3] < 0.05
        assert errors_found[0] > 0.2
    estimate = softmax_attention_error(clustered_softmax_attention(q, k, v, 6, factors=factors), q, k, v, rows=None)
    total = float((estimate.error**2).mean()) ** 0.5
    assert 0.5 < total / errors_found[1] < 2  # heads weigh alike here, tokens in the line above


def test_as_many_groups_as_keys_are_softmax_attention():
    q, v, _, k = tokens(21, keys=9)
    wanted = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(clustered_softmax_attention(q, k, v, 9), wanted, rtol=1e-10, atol=1e-11)


def test_clustered_attention_can_be_trained_through():
    q, v, _, k = (x.requires_grad_() if x is not None else None for x in tokens(22, keys=31, b=1, h=2))
    assert torch.autograd.gradcheck(lambda q, k, v: clustered_softmax_attention(q, k, v, 5, steps=2), (q, k, v), fast_mode=True)


def test_clustered_attention_never_holds_tokens_times_tokens():
    q, v, _, k = tokens(23, b=1, h=1, n=2000, keys=2000, dtype=torch.float32)
    with LargestTensor() as largest:
        clustered_softmax_attention(q, k, v, 16)
    assert largest.entries <= 2000 * 16


def test_the_sampled_error_agrees_with_the_exact_one():
    q, v, landmarks, _ = tokens(24, n=600, m=20, spread=0.5)
    for mode in ({}, {"normalization": "symmetric"}):
        exact, sampled = (attention_error(q, v, landmarks, rows=rows, rng=0, **mode) for rows in (None, 128))
        full, part = gaussian_attention(q, v, normalization=mode.get("normalization")), soft_attention(q, v, landmarks, **mode)
        wanted = (full - part).norm(dim=(-2, -1)) / full.norm(dim=(-2, -1))
        torch.testing.assert_close(exact.error, wanted, rtol=1e-9, atol=1e-12)
        assert (exact.rows, sampled.rows) == (600, 128)
        assert ((sampled.error - exact.error).abs() < 4 * sampled.standard_error).all()  # four standard errors
        assert (sampled.standard_error < 0.15 * sampled.error).all()


def test_the_error_is_small_where_the_kernel_is_smooth_and_near_one_where_it_is_not():
    q, v, _, _ = tokens(25, n=400, spread=0.1)
    assert float(attention_error(q, v, q[:, :, ::10], ridge=1e-6, rng=0).error.max()) < 0.05
    q, v, _, _ = tokens(25, n=400, d=32, spread=3.0)
    assert float(attention_error(q, v, q[:, :, ::10], rng=0).error.min()) > 0.7


def test_errors_with_hidden_keys_compare_what_is_left():
    q, v, landmarks, _ = tokens(26)
    hidden = torch.arange(50).expand(2, 50) % 3 == 0
    found = attention_error(q, v, landmarks, key_padding_mask=hidden, rows=None)
    there = ~hidden[0]
    wanted = attention_error(q[:, :, there], v[:, :, there], landmarks, rows=None)
    torch.testing.assert_close(found.error, wanted.error, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda q, v, x, k: gaussian_attention(q, v, normalization="published"),
            errors.ParameterError,
            "normalization must be None, 'row' or",
        ),
        (lambda q, v, x, k: clustered_softmax_attention(q, k, v, 0), errors.ParameterError, "count must be a whole number >= 1; got 0"),
        (
            lambda q, v, x, k: clustered_softmax_attention(q, k, v, 3, steps=0),
            errors.ParameterError,
            "steps must be a whole number >= 1; got 0",
        ),
        (lambda q, v, x, k: clustered_softmax_attention(q, k, v, 3, factors="svd"), errors.ParameterError, "factors must be 'counts', "),
        (lambda q, v, x, k: softmax_as_gaussian(q, k, v, scale=-1), errors.ParameterError, "scale must be a finite number > 0; got -1"),
        (lambda q, v, x, k: attention_error(q, v, x, rows=1), errors.ParameterError, "rows must be a whole number >= 2; got 1"),
        (
            lambda q, v, x, k: attention_error(q, v, x, normalization="published"),
            errors.ParameterError,
            "got 'published', which approximates",
        ),
        (lambda q, v, x, k: softmax_attention_error(v[..., :2], q, k, v), errors.ShapeError, r"out must have shape \(2, 4, 50, 6\)"),
        (lambda q, v, x, k: softmax_as_gaussian(q, k[..., :5], v), errors.ShapeError, "k must have the 8 features of q; got 5"),
    ],
)
def test_wrong_arguments_of_the_other_functions_are_refused(call, error, message):
    q, v, landmarks, _ = tokens(27)
    with pytest.raises(error, match=message):
        call(q, v, landmarks, q)


@pytest.mark.parametrize("tokens", [40, 200])  # PyTorch's operations, and compiled kernels
def test_views_that_pytorch_has_yet_to_negate_are_read_right(tokens):
    torch.manual_seed(0)
    q, v, grad = (torch.randn(1, 2, tokens, 32) for _ in range(3))
    later = torch.randn(1, 2, tokens, 32, dtype=torch.complex64).conj().imag
    assert later.is_neg()
    for arguments in ((later, v, later[:, :, ::8]), (q, later, q[:, :, ::8]), (q, v, later[:, :, ::8])):
        now = [x.clone() for x in arguments]
        assert not any(x.is_neg() for x in now)
        torch.testing.assert_close(soft_attention(*arguments), soft_attention(*now), rtol=0, atol=0)
    leaf = q.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(soft_attention(leaf, v, q[:, :, ::8]), leaf, grad_outputs=cotangent)[0]
        for cotangent in (torch._neg_view(-grad), grad, torch._efficientzerotensor(tuple(grad.shape)))
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)
    assert float(gradients[2].abs().max()) == 0
    nothing = torch._efficientzerotensor((1, 2, tokens, 32))
    assert float(soft_attention(q, nothing, q[:, :, ::8]).abs().max()) == 0


@pytest.mark.filterwarnings("ignore")  # deprecated, and numbers that depend on no argument become constants
@pytest.mark.parametrize("record", ["torch.jit.trace", "make_fx"])
def test_what_records_ordinary_tensors_gets_operations_and_no_constants(record):
    from torch.fx.experimental.proxy_tensor import make_fx

    def attention(q, v):
        return soft_attention(q, v, q[:, :, ::8])

    torch.manual_seed(0)
    first, other = ([torch.randn(1, 2, 200, 32) for _ in range(2)] for _ in range(2))
    recorded = torch.jit.trace(attention, first, check_trace=False) if record == "torch.jit.trace" else make_fx(attention)(*first)
    torch.testing.assert_close(recorded(*other), attention(*other), rtol=1e-4, atol=1e-4)
