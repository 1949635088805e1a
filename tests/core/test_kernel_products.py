"""Products with kernel matrices in blocks: equal to the whole, bounded in memory, on every backend."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlinalg import _inputs, _kernel_products
from softlinalg._kernels import (
    Gaussian,
    Laplacian,
    Matern,
    default_chunk_size,
    iter_kernel_blocks,
    kernel_matmul,
    kernel_matmul_adjoint,
)
from softlinalg.errors import BackendMismatchError, DTypeError, NonFiniteError, ParameterError, ShapeError

KERNELS = [Gaussian(1.5), Laplacian(3.0), Matern(1.5, 0.5), Matern(1.5, 1.5), Matern(1.5, 2.5)]


class Foreign:
    """A kernel that offers nothing but what the protocol asks: k(x, y) = (1 + x.y)^2."""

    def __call__(self, x, y=None):
        y = x if y is None else y
        return (1 + x @ (y.mT if hasattr(y, "mT") else y.T)) ** 2

    def diagonal(self, x):
        return (1 + (x * x).sum(-1)) ** 2


ALL = [*KERNELS, Foreign()]
names = {"ids": lambda kernel: getattr(kernel, "name", "foreign") + str(getattr(kernel, "nu", ""))}


def namespace(x):
    return _inputs.prepare("test", {"x": x}).xp


def problem(seed, n=50, m=7, d=3, k=4, dtype="float64"):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in ((n, d), (m, d), (m, k), (n, k))]


sizes = st.tuples(st.integers(0, 40), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4))


@given(st.sampled_from(ALL), sizes, st.integers(1, 50), st.sampled_from(["float32", "float64"]), st.integers(0, 2**32 - 1))
@settings(max_examples=150)
def test_products_are_those_of_the_whole_matrix_whatever_the_chunk_size(kernel, shape, chunk_size, dtype, seed):
    x, y, v, u = problem(seed, *shape, dtype)
    whole = kernel(x, y).astype(np.float64)
    # Values differ between blocks by the rounding of a product of inner dimension d + 2, sums by that of m or n terms.
    error = 30 * np.finfo(dtype).eps * (shape[2] + 2) * (1 + (x * x).sum(-1).max(initial=0) + (y * y).sum(-1).max()) * (1 + np.abs(whole))
    forward = kernel_matmul(kernel, x, y, v, chunk_size=chunk_size)
    assert forward.dtype == dtype
    assert np.all(np.abs(forward - whole @ v) <= shape[1] * error @ np.abs(v))
    backward = kernel_matmul_adjoint(kernel, x, y, u, chunk_size=chunk_size)
    assert backward.dtype == dtype
    assert np.all(np.abs(backward - whole.T @ u) <= (1 + shape[0]) * error.T @ np.abs(u) + 1e-300)


@given(st.sampled_from(ALL), sizes, st.integers(1, 50), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_product_and_adjoint_are_adjoint(kernel, shape, chunk_size, seed):
    x, y, v, u = problem(seed, *shape)
    left = np.sum(u * kernel_matmul(kernel, x, y, v, chunk_size=chunk_size))
    right = np.sum(v * kernel_matmul_adjoint(kernel, x, y, u, chunk_size=chunk_size))
    size = np.abs(u).sum() * np.abs(v).sum() * np.abs(kernel(x, y)).max(initial=0)
    assert left == pytest.approx(right, abs=1e-12 * size, rel=0)


@given(st.sampled_from(KERNELS), sizes, st.integers(1, 50), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_blocks_tile_the_matrix_in_order(kernel, shape, chunk_size, seed):
    x, y, _, _ = problem(seed, *shape)
    end, parts = 0, []
    for start, stop, block in iter_kernel_blocks(kernel, x, y, chunk_size=chunk_size, xp=namespace(x)):
        assert start == end
        assert 0 < stop - start <= chunk_size
        assert block.shape == (stop - start, len(y))
        end = stop
        parts.append(block.copy())
    assert end == len(x)
    assert np.allclose(np.concatenate([np.zeros((0, len(y))), *parts]), kernel(x, y), rtol=1e-11, atol=1e-14)


@given(st.integers(0, 4), st.integers(130, 300), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_zeros_of_a_factor_are_skipped_without_changing_the_product(pattern, m, seed):
    x, y, v, _ = problem(seed, 60, m, 3, m)
    factor = [np.triu(v), np.tril(v), v * (np.arange(m) < 70), np.zeros_like(v), v][pattern]
    spans = _kernel_products._column_spans(factor, xp=namespace(v))
    assert (len(spans) > 1) == (pattern < 4)
    covered = np.zeros((m, m), dtype=bool)
    for columns, rows in spans:
        covered[rows, columns] = True
    assert np.all(covered | (factor == 0))
    kernel = Gaussian(1.5)
    assert np.allclose(kernel_matmul(kernel, x, y, factor), kernel(x, y) @ factor, rtol=0, atol=1e-12 * np.sqrt(m))


@pytest.mark.parametrize("kernel", ALL, **names)
def test_products_agree_on_every_backend(backend, kernel):
    x, y, v, u = problem(0)
    bx, by, bv, bu = map(backend.asarray, (x, y, v, u))
    for chunk_size in (None, 9):
        forward = kernel_matmul(kernel, bx, by, bv, chunk_size=chunk_size)
        backward = kernel_matmul_adjoint(kernel, bx, by, bu, chunk_size=chunk_size)
        assert type(forward) is type(bx)
        assert type(backward) is type(bx)
        assert np.allclose(backend.to_numpy(forward), kernel(x, y) @ v, rtol=1e-11, atol=1e-12)
        assert np.allclose(backend.to_numpy(backward), kernel(x, y).T @ u, rtol=1e-11, atol=1e-12)
    one = kernel_matmul(kernel, bx, by, bv[:, 0])
    assert tuple(one.shape) == (50,)
    assert np.allclose(backend.to_numpy(one), kernel(x, y) @ v[:, 0], rtol=1e-11, atol=1e-12)
    other = kernel_matmul_adjoint(kernel, bx, by, bu[:, 0])
    assert tuple(other.shape) == (7,)
    assert np.allclose(backend.to_numpy(other), kernel(x, y).T @ u[:, 0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_half_precision_products_are_computed_in_float32(dtype):
    torch = pytest.importorskip("torch")
    x, y, v, u = (torch.tensor(a).to(getattr(torch, dtype)) for a in problem(1))
    forward, backward = kernel_matmul(Gaussian(), x, y, v, chunk_size=9), kernel_matmul_adjoint(Gaussian(), x, y, u, chunk_size=9)
    assert forward.dtype == backward.dtype == x.dtype
    wide = [a.double() for a in (x, y, v, u)]
    eps = torch.finfo(x.dtype).eps
    assert torch.allclose(forward.double(), kernel_matmul(Gaussian(), *wide[:3]), rtol=eps, atol=1e-5)
    assert torch.allclose(backward.double(), kernel_matmul_adjoint(Gaussian(), *wide[:2], wide[3]), rtol=eps, atol=1e-5)


def test_adjoint_sums_in_float64():
    """A float32 sum of the blocks loses most of what each number has above one: it ends at 4096.0005."""
    n, number = 2**12, 1 + 2.0**-20
    x, y, u = np.zeros((n, 1), np.float32), np.zeros((1, 1), np.float32), np.full((n, 1), number, np.float32)
    assert kernel_matmul_adjoint(Gaussian(), x, y, u, chunk_size=1)[0, 0] == n * number


def test_products_differentiate_in_torch_and_jax():
    torch, jax = pytest.importorskip("torch"), pytest.importorskip("jax")
    x, y, v, u = problem(2)
    kernel = Gaussian(1.5)
    dx, dy = kernel.vjp(x, y, u @ v.T)
    tx, ty = torch.tensor(x, requires_grad=True), torch.tensor(y, requires_grad=True)
    (kernel_matmul(kernel, tx, ty, torch.tensor(v), chunk_size=9) * torch.tensor(u)).sum().backward()
    assert np.allclose(tx.grad, dx, rtol=1e-10, atol=1e-13)
    assert np.allclose(ty.grad, dy, rtol=1e-10, atol=1e-13)
    with jax.enable_x64(True):
        loss = jax.jit(jax.grad(lambda a, b: (kernel_matmul_adjoint(kernel, a, b, jax.numpy.asarray(u), chunk_size=9) * v).sum(), (0, 1)))
        for ours, theirs in zip((dx, dy), loss(jax.numpy.asarray(x), jax.numpy.asarray(y)), strict=True):
            assert np.allclose(ours, theirs, rtol=1e-10, atol=1e-13)


def test_batches_are_multiplied_member_by_member(backend):
    x, y, v, u = (np.stack([a, 2 * a]) for a in problem(3))
    forward = kernel_matmul(Gaussian(), *map(backend.asarray, (x, y, v)), chunk_size=9)
    backward = kernel_matmul_adjoint(Gaussian(), *map(backend.asarray, (x, y, u)), chunk_size=9)
    for b in range(2):
        assert np.allclose(backend.to_numpy(forward)[b], Gaussian()(x[b], y[b]) @ v[b], rtol=1e-11, atol=1e-13)
        assert np.allclose(backend.to_numpy(backward)[b], Gaussian()(x[b], y[b]).T @ u[b], rtol=1e-11, atol=1e-13)


# ---------------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_feature_map_needs_a_tenth_more_memory_than_its_output(dtype):
    x, y, v, _ = problem(4, 20_000, 256, 32, 256, dtype)
    kernel_matmul(Gaussian(6.0), x[:600], y, v)  # what the first call imports is not counted
    tracemalloc.start()
    result = kernel_matmul(Gaussian(6.0), x, y, v)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 1.1 * result.nbytes


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_products_hold_a_few_blocks_at_most(kernel):
    x, y, v, u = problem(5, 20_000, 64, 3, 2)
    for call in (lambda: kernel_matmul(kernel, x, y, v, chunk_size=100), lambda: kernel_matmul_adjoint(kernel, x, y, u, chunk_size=100)):
        call()
        tracemalloc.start()
        call()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 20_000 * 2 * 8 + 12 * 100 * 64 * 8  # the whole matrix would be 10 MB


@pytest.mark.parametrize("dtype", ["float32", ">f8", "int16"])
def test_memory_maps_are_read_block_by_block(tmp_path, dtype):
    rng = np.random.default_rng(6)
    values = rng.integers(-3, 4, (30_000, 20)).astype(dtype)
    path = tmp_path / "points.npy"
    np.save(path, values)
    mapped = np.load(path, mmap_mode="r")
    y, v, u = values[:5].astype(np.float64), rng.standard_normal((5, 1)), rng.standard_normal((30_000, 1))
    kernel = Gaussian(9.0)
    kernel_matmul(kernel, mapped[:600], y, v)
    tracemalloc.start()
    forward, backward = kernel_matmul(kernel, mapped, y, v), kernel_matmul_adjoint(kernel, mapped, y, u, chunk_size=512)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.8 * 30_000 * 20 * 8  # one conversion of all points to float64
    whole = kernel(values.astype(np.float64), y)
    assert np.allclose(forward, whole @ v, rtol=1e-11, atol=1e-13)
    assert np.allclose(backward, whole.T @ u, rtol=1e-11, atol=1e-11)


def test_default_blocks_fit_a_cache_and_are_never_tiny():
    assert default_chunk_size(256, 8) * 256 * 8 == 2**19
    assert default_chunk_size(256, 4) == 512
    assert default_chunk_size(10**9, 8) == 32
    assert default_chunk_size(0, 8) > 0


def test_out_is_filled_and_returned():
    x, y, v, _ = problem(7)
    for factor in (v, v[:, 0]):
        expected = kernel_matmul(Gaussian(), x, y, factor)
        out = np.full_like(expected, np.nan)
        result = kernel_matmul(Gaussian(), x, y, factor, out=out)
        assert np.shares_memory(result, out)
        assert np.array_equal(out, expected)
    strided = np.full((50, 8), np.nan)
    kernel_matmul(Gaussian(), x, y, v, out=strided[:, ::2])
    assert np.array_equal(strided[:, ::2], kernel_matmul(Gaussian(), x, y, v))


def test_points_and_factors_are_not_changed():
    arrays = problem(8)
    before = [a.copy() for a in arrays]
    for a in arrays:
        a.setflags(write=False)
    x, y, v, u = arrays
    kernel_matmul(Gaussian(), x, y, v)
    kernel_matmul_adjoint(Gaussian(), x, y, u)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))


def test_lists_and_integers_are_taken():
    x, y, v = [[0, 0], [1, 2], [3, 4]], [[0, 0], [1, 1]], [[1], [2]]
    expected = Gaussian(2.0)(np.array(x), np.array(y)) @ np.array(v, dtype=float)
    assert np.allclose(kernel_matmul(Gaussian(2.0), x, y, v), expected)
    assert np.allclose(kernel_matmul(Gaussian(2.0), np.array(x), y, v, chunk_size=1), expected)
    assert np.allclose(kernel_matmul_adjoint(Gaussian(2.0), x, y, [1, 2, 3]), Gaussian(2.0)(np.array(x), np.array(y)).T @ [1.0, 2.0, 3.0])


# -------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("chunk_size", [0, -5, 2.5, True, "many"])
def test_chunk_sizes_below_one_row_are_refused(chunk_size):
    x, y, v, u = problem(9)
    with pytest.raises(ParameterError, match="kernel_matmul: chunk_size must be a whole number >= 1; got"):
        kernel_matmul(Gaussian(), x, y, v, chunk_size=chunk_size)
    with pytest.raises(ParameterError, match="kernel_matmul_adjoint: chunk_size must be"):
        kernel_matmul_adjoint(Gaussian(), x, y, u, chunk_size=chunk_size)


def test_shapes_that_do_not_fit_are_refused():
    x, y, v, u = problem(10)
    with pytest.raises(ShapeError, match=r"kernel_matmul: v must have one row per row of y \(7\); got shape \(50, 4\)"):
        kernel_matmul(Gaussian(), x, y, u)
    with pytest.raises(ShapeError, match=r"kernel_matmul: v must have one row per row of y \(7\); got shape \(\)"):
        kernel_matmul(Gaussian(), x, y, np.float64(1))
    with pytest.raises(ShapeError, match=r"kernel_matmul_adjoint: u must have one row per row of x \(50\); got shape \(7, 4\)"):
        kernel_matmul_adjoint(Gaussian(), x, y, v)
    with pytest.raises(ShapeError, match=r"kernel_matmul: x must have shape \(..., n, d\), one row per point; got \(3,\)"):
        kernel_matmul(Gaussian(), x[0], y, v)
    with pytest.raises(ShapeError, match="kernel_matmul: y must have shape"):
        kernel_matmul(Gaussian(), x, y[0], v[0])
    with pytest.raises(ShapeError, match="kernel_matmul: x and y must have the same number of features; got 2 and 3"):
        kernel_matmul(Gaussian(), x[:, :2], y, v)
    with pytest.raises(ShapeError, match=r"kernel_matmul: out must have shape \(50, 4\); got \(50, 3\)"):
        kernel_matmul(Gaussian(), x, y, v, out=np.empty((50, 3)))


def test_memory_that_cannot_take_the_result_is_refused():
    x, y, v, _ = problem(11)
    with pytest.raises(DTypeError, match=r"out must be writable memory of the library and dtype of the result \(float64\)"):
        kernel_matmul(Gaussian(), x, y, v, out=np.empty((50, 4), np.float32))
    with pytest.raises(DTypeError, match="out must be writable memory"):
        kernel_matmul(Gaussian(), x, y, v, out=[0.0])
    frozen = np.empty((50, 4))
    frozen.setflags(write=False)
    with pytest.raises(DTypeError, match="out must be writable memory"):
        kernel_matmul(Gaussian(), x, y, v, out=frozen)
    none = r"out must be None for batches and for arrays that are traced, differentiated or immutable; got one\. Leave it out"
    with pytest.raises(ParameterError, match=none):
        kernel_matmul(Gaussian(), x[None], y, v, out=np.empty((1, 50, 4)))
    jnp, torch = pytest.importorskip("jax.numpy"), pytest.importorskip("torch")
    with pytest.raises(ParameterError, match=none):
        kernel_matmul(Gaussian(), *map(jnp.asarray, (x, y, v)), out=jnp.zeros((50, 4)))
    with pytest.raises(ParameterError, match=none):
        kernel_matmul(Gaussian(), torch.tensor(x, requires_grad=True), torch.tensor(y), torch.tensor(v), out=torch.empty(50, 4).double())


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_points_that_are_not_finite_are_refused_with_their_place(backend, kernel):
    x, y, v, u = problem(12)
    x[43, 1] = np.nan
    bx, by, bv, bu = map(backend.asarray, (x, y, v, u))
    with pytest.raises(NonFiniteError, match=r"kernel_matmul: x must be finite; got 1 non-finite entry \(first at \[43, 1\]\)"):
        kernel_matmul(kernel, bx, by, bv, chunk_size=9)
    with pytest.raises(NonFiniteError, match=r"kernel_matmul_adjoint: x must be finite; .* \[43, 1\]"):
        kernel_matmul_adjoint(kernel, bx, by, bu, chunk_size=9)
    with pytest.raises(NonFiniteError, match="kernel_matmul: y must be finite"):
        kernel_matmul(kernel, by, bx, bu)
    v[3, 2] = np.inf
    with pytest.raises(NonFiniteError, match=r"kernel_matmul: v must be finite; .* \[3, 2\]"):
        kernel_matmul(kernel, by, by, backend.asarray(v))
    with pytest.raises(NonFiniteError, match="kernel_matmul_adjoint: u must be finite"):
        kernel_matmul_adjoint(kernel, by, by, backend.asarray(v))


def test_arrays_of_two_libraries_and_wrong_kinds_are_refused():
    torch = pytest.importorskip("torch")
    import scipy.sparse

    x, y, v, _ = problem(13)
    with pytest.raises(BackendMismatchError, match="kernel_matmul: all arrays must come from one library"):
        kernel_matmul(Gaussian(), x, torch.tensor(y), v)
    for bad in (np.ma.masked_array(x), scipy.sparse.csr_array(x), x * 1j):
        with pytest.raises(DTypeError, match="kernel_matmul: x must"):
            kernel_matmul(Gaussian(), bad, y, v)
