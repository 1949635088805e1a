"""Gradients of kernels: against differences, PyTorch and JAX."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from kernel_cases import KERNELS, KINDS, T, cases, kernels, names, points, unit, with_scale

from softlinalg._kernels import Gaussian


# ------------------------------------------------------------------------------------------------- gradients
def slope_along(f, x, t):
    """Derivative of f at x along t by Richardson's rule from central differences: error of the order of h^4 and u / h."""
    h = 1e-3
    coarse, fine = ((f(x + s * t) - f(x - s * t)) / (2 * s) for s in (h, h / 2))
    return (4 * fine - coarse) / 3


@given(cases(dtypes=("float64",), kinds=("normal", "duplicated", "collinear")), kernels, st.booleans())
@settings(max_examples=100)
def test_vjp_is_the_derivative_of_the_weighted_sum(case, kernel, per_feature):
    n, m, d = case.shape
    x, y = case.x, case.y + 0.37
    if kernel.name == "laplacian":  # keep every pair away from the kink of each feature
        x, y = np.round(x * 4), np.round(y * 4) + 0.5
    scale = list(case.rng.uniform(1, 3, d)) if per_feature else 2.0
    kernel = with_scale(kernel, scale)
    g, tx, ty = case.rng.standard_normal((n, m)), case.rng.standard_normal((n, d)), case.rng.standard_normal((m, d))
    distance = np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1)).min()
    if distance < 0.05:  # central differences would step over the kink, or bend, at zero
        event("too close for differences")
        return
    dx, dy = kernel.vjp(x, y, g)
    size = 1e-6 * (np.abs(g).sum() * (1 + np.abs(tx).max() + np.abs(ty).max()) ** 5) * max(1, (1e-2 / distance) ** 3)
    assert np.sum(dx * tx) == pytest.approx(slope_along(lambda a: np.sum(g * kernel(a, y)), x, tx), abs=size)
    assert np.sum(dy * ty) == pytest.approx(slope_along(lambda b: np.sum(g * kernel(x, b)), y, ty), abs=size)


@pytest.mark.parametrize("kernel", KERNELS, **names)
@pytest.mark.parametrize("kind", KINDS)
def test_vjp_agrees_with_torch_autograd(kernel, kind):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    cloud, g = points(kind, 20, 3, rng), rng.standard_normal((12, 8))
    x, y = torch.tensor(cloud[:12], requires_grad=True), torch.tensor(cloud[12:], requires_grad=True)
    (kernel(x, y) * torch.tensor(g)).sum().backward()
    dx, dy = kernel.vjp(cloud[:12], cloud[12:], g)
    # Rounding in the distances and in the difference of coordinates, relative to the weights.
    size = 1e-13 * np.abs(g).sum() * (1 + min(np.abs(cloud - np.median(cloud, 0)).max(), 300) ** 2) + 1e-10 * (kind == "offset")
    assert np.allclose(dx, x.grad.numpy(), rtol=1e-9, atol=size)
    assert np.allclose(dy, y.grad.numpy(), rtol=1e-9, atol=size)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_gradient_of_a_set_with_itself_is_that_of_both_arguments(backend, kernel):
    rng = np.random.default_rng(7)
    x, g = rng.standard_normal((9, 3)), rng.standard_normal((9, 9))
    dx, nothing = kernel.vjp(backend.asarray(x), None, backend.asarray(g))
    first, second = kernel.vjp(x, x, g)
    assert nothing is None
    assert np.allclose(backend.to_numpy(dx), first + second, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_gradients_are_finite_and_zero_at_coincident_points(backend, kernel):
    x, g = backend.asarray(np.full((5, 3), 1.7)), backend.asarray(np.random.default_rng(0).standard_normal((5, 5)))
    for gradient in (*kernel.vjp(x, x, g), kernel.vjp(x, None, g)[0]):
        assert np.all(np.abs(backend.to_numpy(gradient)) <= 1e-14)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_weights_on_the_diagonal_of_one_set_change_no_bit_of_the_gradient(kernel):
    rng = np.random.default_rng(0)
    x, g = rng.standard_normal((30, 5)), rng.standard_normal((30, 30))
    alone, loaded = kernel.vjp(x, None, g)[0], kernel.vjp(x, None, np.where(np.eye(30) > 0, 1e12, g))[0]
    assert np.array_equal(loaded, alone)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_autograd_of_torch_is_finite_at_coincident_and_at_far_points(kernel):
    torch = pytest.importorskip("torch")
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1e300, 0.0], [1e300, 0.0], [-1e300, 1.0]], dtype=torch.float64, requires_grad=True)
    for values in (kernel(x), kernel(x, x.detach().clone())):
        (gradient,) = torch.autograd.grad(values.sum(), x)
        assert torch.all(gradient == 0)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_torch_gradcheck_passes_in_both_modes_and_for_the_second_derivative(kernel):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    x = torch.tensor(rng.standard_normal((4, 2)), requires_grad=True)
    y = torch.tensor(rng.standard_normal((3, 2)), requires_grad=True)
    assert torch.autograd.gradcheck(kernel, (x, y), check_forward_ad=True)
    assert torch.autograd.gradcheck(kernel, (x,))
    assert torch.autograd.gradgradcheck(kernel, (x, y))


def test_near_pairs_keep_their_gradient_where_the_clamp_acts():
    """Squared distances of 1e-8 drown in the rounding of |x|^2 = 80, so about half of the exponents come out positive."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = torch.tensor(3 * rng.standard_normal((200, 9)), dtype=torch.float32)
    y = (x + 3e-5 * torch.tensor(rng.standard_normal((200, 9)), dtype=torch.float32)).requires_grad_()
    values = torch.diagonal(Gaussian()(x, y))
    assert 20 < int((values == 1).sum()) < 200
    (gradient,) = torch.autograd.grad(values.sum(), y)
    # Coordinates of up to 12 are subtracted after a product with a value near 1: a few units of rounding of each.
    assert torch.allclose(gradient, (x - y).detach(), rtol=0, atol=12 * 8 * unit("float32"))


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_jax_compiles_differentiates_and_maps_the_kernel(kernel):
    jax = pytest.importorskip("jax")
    rng = np.random.default_rng(9)
    x, y, g = rng.standard_normal((6, 3)), rng.standard_normal((4, 3)), rng.standard_normal((6, 4))
    with jax.enable_x64(True):
        jx, jy, jg = map(jax.numpy.asarray, (x, y, g))
        compiled = jax.jit(lambda a, b: kernel(a, b))(jx, jy)
        assert np.allclose(compiled, kernel(x, y), rtol=1e-12)
        assert np.allclose(jax.jit(kernel)(jx), kernel(x), rtol=1e-12)
        gradients = jax.jit(jax.grad(lambda a, b: (kernel(a, b) * jg).sum(), argnums=(0, 1)))(jx, jy)
        for ours, theirs in zip(kernel.vjp(x, y, g), gradients, strict=True):
            assert np.allclose(ours, theirs, rtol=1e-10, atol=1e-13)
        for ours, theirs in zip(kernel.vjp(x, y, g), jax.jit(kernel.vjp)(jx, jy, jg), strict=True):
            assert np.allclose(ours, theirs, rtol=1e-10, atol=1e-13)
        mapped = jax.jit(jax.vmap(lambda row, b: kernel(row[None, :], b)[0], in_axes=(0, None)))(jx, jy)
        assert np.allclose(mapped, kernel(x, y), rtol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_torch_compile_takes_the_kernel_as_one_graph(kernel):
    torch = pytest.importorskip("torch")
    x, y = (torch.tensor(a) for a in np.random.default_rng(9).standard_normal((2, 6, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Dynamo, on cached functions of array-api-compat
        compiled = torch.compile(lambda a, b: kernel(a, b), backend="eager", fullgraph=True)
        assert torch.allclose(compiled(x, y), kernel(x, y), rtol=1e-12, atol=1e-15)


def test_traced_values_that_are_not_finite_become_nan():
    jax = pytest.importorskip("jax")
    x = jax.numpy.asarray([[0.0], [np.nan], [np.inf]])
    values = np.asarray(jax.jit(lambda a: Gaussian()(a, jax.numpy.asarray([[0.0], [1.0]])))(x))
    assert np.isnan(values[1:]).all()
    assert np.isfinite(values[0]).all()


def test_torch_func_transforms_and_dual_numbers_work():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    x, y, t = (torch.tensor(rng.standard_normal(s)) for s in ((5, 3), (4, 3), (5, 3)))
    plain = Gaussian()(x, y)
    mapped = torch.func.vmap(lambda row: Gaussian()(row[None, :], y)[0])(x)
    assert torch.allclose(mapped, plain)
    value, tangent = torch.func.jvp(lambda a: Gaussian()(a, y), (x,), (t,))
    with torch.autograd.forward_ad.dual_level():
        dual = Gaussian()(torch.autograd.forward_ad.make_dual(x, t), y)
        primal, other = torch.autograd.forward_ad.unpack_dual(dual)
    assert torch.allclose(value, plain)
    assert torch.allclose(primal, plain)
    assert torch.allclose(tangent, other)
    difference = -((x[:, None] - y[None]) * t[:, None]).sum(-1) * plain
    assert torch.allclose(tangent, difference)


@given(cases(dtypes=("float32",), kinds=("normal", "duplicated", "offset")), kernels)
@settings(max_examples=50)
def test_float32_gradients_agree_with_float64(case, kernel):
    g = case.rng.standard_normal(case.shape[:2])
    x, y = case.x.astype(np.float64), case.y.astype(np.float64)
    near = np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    if kernel.name == "matern" and kernel.nu == 0.5 and np.any((near > 0) & (near < 1e-2)):
        return  # the direction of a pair turns with its last digit
    u = unit("float32")
    reach = np.abs(x - np.median(y, axis=0)).max() + np.abs(y - np.median(y, axis=0)).max()
    for single, double in zip(kernel.vjp(case.x, case.y, g.astype(np.float32)), kernel.vjp(x, y, g), strict=True):
        assert single.dtype == np.float32
        assert np.all(np.abs(single - double) <= T * u * case.shape[2] * (1 + reach**3) * np.abs(g).sum())


def test_vjp_sums_over_broadcast_batches_and_blocks(backend, monkeypatch):
    from softlinalg import _kernel_base

    rng = np.random.default_rng(11)
    x, y, g = rng.standard_normal((2, 9, 3)), rng.standard_normal((4, 3)), rng.standard_normal((2, 9, 4))
    whole = [Gaussian().vjp(x[b], y, g[b]) for b in range(2)]
    monkeypatch.setattr(_kernel_base, "_GRADIENT_ENTRIES", 24)
    dx, dy = (backend.to_numpy(a) for a in Gaussian().vjp(backend.asarray(x), backend.asarray(y), backend.asarray(g)))
    assert np.allclose(dx, np.stack([pair[0] for pair in whole]), rtol=1e-12, atol=1e-14)
    assert dy.shape == (4, 3)
    assert np.allclose(dy, whole[0][1] + whole[1][1], rtol=1e-12, atol=1e-13)
    square = rng.standard_normal((9, 9))
    assert np.allclose(Gaussian().vjp(x[0], None, square)[0], sum(Gaussian().vjp(x[0], x[0], square)), rtol=1e-12, atol=1e-13)
