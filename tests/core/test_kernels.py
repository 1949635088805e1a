"""Kernels: their settings, every backend, each refusal. Values and gradients: test_kernel_values.py, test_kernel_gradients.py."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import KERNELS, cases, kernels, names, points, with_scale

from softlinalg import _arrays, _inputs
from softlinalg._kernel_distances import DifferenceColumns
from softlinalg._kernels import (
    Gaussian,
    Kernel,
    Laplacian,
    Matern,
    gaussian_kernel,
    kernel_from_dict,
    median_length_scale,
    squared_distances,
)
from softlinalg.errors import BackendMismatchError, DTypeError, NonFiniteError, ParameterError, ResourceError, ShapeError, SoftlinalgError


# ------------------------------------------------------------------------------------- median and settings
@given(cases(dtypes=("float64",), most=20), st.integers(-900, 900))
@settings(max_examples=80)
def test_median_length_scale_is_the_median_distance_and_scales_with_the_data(case, exponent):
    x = np.concatenate([case.x, case.y])
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))[np.triu_indices(len(x), 1)]
    if distances.max() == 0:
        with pytest.raises(ParameterError, match="must have two different rows"):
            median_length_scale(x)
        return
    expected = np.median(distances) if np.median(distances) > 0 else np.median(distances[distances > 0])
    found = median_length_scale(x)
    # The root of the rounding of the product form; equal and nearly equal rows are computed from differences.
    reach = np.abs(x - np.median(x, axis=0)).max()
    assert found == pytest.approx(expected, rel=1e-10, abs=1e-7 * reach if case.kind in ("one-far",) else 0)
    assert median_length_scale(x * 2.0**exponent) == pytest.approx(found * 2.0**exponent, rel=1e-12)


def test_median_length_scale_uses_positive_distances_where_most_rows_coincide():
    x = np.array([[0.0]] * 8 + [[3.0], [4.0]])
    assert median_length_scale(x) == 3.0  # of 17 positive distances: once 1, 8 times 3, 8 times 4
    x = np.array([[0.0], [0.0], [1.0], [5.0]])
    assert median_length_scale(x) == 2.5  # of 0, 1, 1, 4, 5, 5


def test_median_length_scale_draws_the_same_sample_for_the_same_seed(backend):
    x = np.random.default_rng(0).standard_normal((500, 3))
    expected = median_length_scale(x, rng=7, sample=50)
    assert median_length_scale(backend.asarray(x), rng=7, sample=50) == pytest.approx(expected, rel=1e-12)
    assert median_length_scale(x, rng=8, sample=50) != expected
    assert expected == pytest.approx(median_length_scale(x, sample=500), rel=0.2)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_median_kernel_resolves_to_a_number_and_others_to_themselves(kernel):
    x = np.random.default_rng(0).standard_normal((30, 3))
    median = with_scale(kernel, "median")
    resolved = median.resolve(x, rng=0)
    assert resolved == with_scale(kernel, median_length_scale(x))
    assert resolved.resolve(x) is resolved
    assert np.array_equal(resolved(x), with_scale(kernel, median_length_scale(x))(x))
    with pytest.raises(ParameterError, match=r"length_scale must be a number here; got \"median\". Call kernel.resolve"):
        median(x)


@given(kernels, st.one_of(st.floats(1e-300, 1e300), st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=9), st.just("median")))
@settings(max_examples=60)
def test_kernels_survive_json(kernel, length_scale):
    kernel = with_scale(kernel, length_scale)
    again = kernel_from_dict(json.loads(json.dumps(kernel.to_dict())))
    assert again == kernel
    assert hash(again) == hash(kernel)
    assert type(again) is type(kernel)


def test_kernels_compare_and_print_by_their_settings():
    assert Gaussian(2) == Gaussian(2.0) == Gaussian(np.float32(2))
    assert Gaussian([1, 2]) == Gaussian(np.array([1.0, 2.0]))
    assert Gaussian(1.0) != Laplacian(1.0)
    assert Matern(1.0, 0.5) != Matern(1.0, 1.5)
    assert repr(Gaussian(1.5)) == "Gaussian(length_scale=1.5)"
    assert repr(Matern([1, 2], 2.5)) == "Matern(length_scale=(1.0, 2.0), nu=2.5)"
    assert repr(Laplacian("median")) == "Laplacian(length_scale='median')"
    assert repr(Gaussian(np.arange(1, 9))) == "Gaussian(length_scale=<8 values from 1 to 8>)"


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_kernels_satisfy_the_protocol(kernel):
    assert isinstance(kernel, Kernel)
    assert kernel.name in ("gaussian", "laplacian", "matern")


# -------------------------------------------------------------------------------------------- array contract
@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_every_backend_agrees_with_numpy(backend, kernel):
    rng = np.random.default_rng(12)
    x, y, g = points("one-far", 50, 3, rng), points("normal", 7, 3, rng), rng.standard_normal((50, 7))  # as test_kernel_products.py
    y[2] = x[4]
    ours = [kernel(x, y), kernel(x), squared_distances(x, y), *kernel.vjp(x, y, g), kernel.diagonal(x)]
    bx, by, bg = map(backend.asarray, (x, y, g))
    theirs = [kernel(bx, by), kernel(bx), squared_distances(bx, by), *kernel.vjp(bx, by, bg), kernel.diagonal(bx)]
    for a, b in zip(ours, theirs, strict=True):
        assert type(b) is type(bx)
        assert str(b.dtype) == str(bx.dtype)
        assert np.allclose(a, backend.to_numpy(b), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kernel", KERNELS, **names)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtype_is_kept_and_half_precision_is_computed_in_float32(kernel, dtype):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    x = torch.tensor(np.random.default_rng(13).standard_normal((600, 3)) * 3).to(kind)
    y = x[:400] + 1
    v = torch.ones((600, 2), dtype=kind)
    for values in (kernel(x, y), kernel(x), *kernel.vjp(x[:50], y[:60], v[:50, :1].expand(50, 60))):
        assert values.dtype == kind
    if dtype in ("float16", "bfloat16"):
        assert torch.equal(kernel(x, y), kernel(x.float(), y.float()).to(kind))
        assert torch.equal(kernel(x), kernel(x.float()).to(kind))


def test_integers_big_endian_strided_and_readonly_points_are_taken_and_not_changed():
    rng = np.random.default_rng(14)
    base = rng.integers(-3, 4, (12, 6))
    expected = Gaussian(2.0)(base[::-2, ::2].astype(np.float64))
    frozen = base[::-2, ::2].astype(np.float64)
    frozen.setflags(write=False)
    for points_ in (base[::-2, ::2], base.astype(">f8")[::-2, ::2], base.astype(np.float64)[::-2, ::2], frozen, base[::-2, ::2].tolist()):
        before = np.array(points_, copy=True)
        for y in (None, points_):
            assert np.array_equal(Gaussian(2.0)(points_, y), expected)
        assert np.array_equal(points_, before)
    assert Gaussian(2.0)(base[::-2, ::2] == 0).dtype == np.float64


def test_mixed_precisions_promote():
    x, y = np.zeros((2, 3), np.float32), np.ones((4, 3))
    assert Gaussian()(x, y).dtype == np.float64
    assert np.allclose(Gaussian()(x, y), math.exp(-1.5), rtol=1e-15)


def test_the_same_object_twice_is_one_set():
    x = np.random.default_rng(0).standard_normal((300, 4)) * 4
    for kernel in KERNELS:
        assert np.array_equal(kernel(x, x), kernel(x))
    assert np.array_equal(squared_distances(x, x), squared_distances(x))


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_empty_sets_give_empty_matrices(backend, kernel):
    x, none = backend.asarray(np.ones((3, 2))), backend.asarray(np.ones((0, 2)))
    assert tuple(kernel(none, x).shape) == (0, 3)
    assert tuple(kernel(x, none).shape) == (3, 0)
    assert tuple(kernel(none).shape) == (0, 0)
    assert tuple(kernel.diagonal(none).shape) == (0,)
    assert tuple(squared_distances(x, none).shape) == (3, 0)
    dx, dy = kernel.vjp(none, x, backend.asarray(np.ones((0, 3))))
    assert tuple(dx.shape) == (0, 2)
    assert np.array_equal(backend.to_numpy(dy), np.zeros((3, 2)))


def test_differences_are_summed_in_blocks_of_bounded_size(monkeypatch):
    from softlinalg import _kernel_distances

    x, y = np.random.default_rng(15).standard_normal((2, 20, 5))
    xp = _inputs.prepare("test", {"x": x}).xp
    whole = DifferenceColumns(y, 1.0, 1, func="test", xp=xp)(x)
    seen = []
    original = DifferenceColumns._differences
    monkeypatch.setattr(_kernel_distances, "_DIFFERENCE_ENTRIES", 300)
    monkeypatch.setattr(DifferenceColumns, "_differences", lambda self, rows: seen.append(original(self, rows)) or seen[-1])
    assert np.array_equal(DifferenceColumns(y, 1.0, 1, func="test", xp=xp)(x), whole)
    assert max(z.size for z in seen) <= 300
    assert len(seen) == 7  # three rows at a time


# -------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, True, "wide", None, [1.0, 0.0], [], [[1.0]], object(), {"a": 1}, b"12", 1j])
@pytest.mark.parametrize("kind", [Gaussian, Laplacian, Matern])
def test_length_scales_out_of_range_are_refused(kind, value):
    with pytest.raises((ParameterError, ShapeError), match=rf"^{kind.__name__}: length_scale must be .*; got .*\. .*\.$"):
        kind(value)


def test_length_scales_to_differentiate_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ParameterError, match=r"length_scale must be constant; got a value to differentiate\. Divide the points"):
        Gaussian(torch.tensor(1.0, requires_grad=True))
    jax = pytest.importorskip("jax")
    with pytest.raises(ParameterError, match="length_scale must be constant"):
        jax.jit(lambda scale: Gaussian(scale)(np.ones((2, 2))))(1.0)


def test_length_scales_that_single_precision_cannot_divide_by_are_refused():
    x = np.ones((2, 2), np.float32)
    for value in (1e-38, 1e38, [1.0, 1e300]):
        with pytest.raises(ParameterError, match=r"length_scale must lie between 4.7e-38 and 2.13e\+37 for float32 arithmetic; got"):
            Gaussian(value)(x)
    assert Gaussian(1e-38)(x.astype(np.float64))[0, 1] == 1


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_as_many_length_scales_as_features_are_needed(kernel):
    with pytest.raises(ShapeError, match="length_scale must be one number or one per feature; got 3 for 2 features"):
        with_scale(kernel, [1, 2, 3])(np.ones((4, 2)))


@pytest.mark.parametrize("nu", [0, 1, 3.5, math.inf, "smooth", None])
def test_other_smoothness_is_refused(nu):
    with pytest.raises(ParameterError, match=r"^Matern: nu must be"):
        Matern(1.0, nu)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: Gaussian()(x[0]), r"Gaussian: x must have shape \(..., n, d\), one row per point; got \(3,\)"),
        (lambda x: Gaussian()(x, x[0]), r"Gaussian: y must have shape"),
        (lambda x: Gaussian()(x[:, :0]), "Gaussian: x must have at least one feature"),
        (lambda x: gaussian_kernel(x, x[:, :2]), "gaussian_kernel: x and y must have the same number of features; got 3 and 2"),
        (lambda x: squared_distances(x, x[:, :2]), "squared_distances: x and y must have the same number of features"),
        (lambda x: Laplacian().diagonal(x[0]), "Laplacian.diagonal: x must have shape"),
        (lambda x: Matern().vjp(x, x, x), r"Matern.vjp: g must have shape \(..., 5, 5\), one weight per pair; got \(5, 3\)"),
        (lambda x: median_length_scale(x[:1]), "median_length_scale: x must have shape .* with n >= 2; got"),
        (lambda x: median_length_scale(x[None]), "median_length_scale: x must have shape"),
        (lambda x: median_length_scale(x[:, :0]), "median_length_scale: x must have at least one feature"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ShapeError, match=message):
        call(np.ones((5, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_points_that_are_not_finite_are_refused_with_their_place(backend, kernel, bad):
    host = np.ones((700, 2))
    host[650, 1] = bad
    x, y = backend.asarray(host), backend.asarray(np.ones((300, 2)))
    what = r"must be finite; got 1 non-finite entry \(first at \[650, 1\]\)"
    for call in (lambda: kernel(x), lambda: kernel(x, y), lambda: squared_distances(x), lambda: median_length_scale(x)):
        with pytest.raises(NonFiniteError, match=f"x {what}"):
            call()
    for call in (lambda: kernel(y, x), lambda: squared_distances(y, x)):
        with pytest.raises(NonFiniteError, match=f"y {what}"):
            call()
    g = backend.asarray(np.ones((300, 700)))
    with pytest.raises(NonFiniteError, match=f"y {what}"):
        kernel.vjp(y, x, g)


def test_points_of_wrong_types_are_refused():
    import scipy.sparse

    x = np.ones((3, 2))
    for bad in (x * 1j, np.ma.masked_array(x), scipy.sparse.csr_array(x), x.astype(object), x.astype(np.longdouble), "text", None):
        with pytest.raises(SoftlinalgError):
            Gaussian()(bad)
    with pytest.raises(DTypeError, match="Gaussian: x must be real; got dtype complex128"):
        Gaussian()(x * 1j)
    dask = pytest.importorskip("dask.array")
    with pytest.raises(DTypeError, match=r"x must be in memory; got a Dask array .* streaming"):
        Gaussian()(dask.ones((3, 2)))
    torch = pytest.importorskip("torch")
    with pytest.raises(BackendMismatchError, match="all arrays must come from one library"):
        Gaussian()(x, torch.ones((3, 2)))


@pytest.mark.parametrize("sample", [0, 1, True, 2.5, "all"])
def test_samples_of_less_than_two_rows_are_refused(sample):
    with pytest.raises(ParameterError, match="sample must be a whole number >= 2"):
        median_length_scale(np.ones((5, 2)), sample=sample)


def test_median_of_equal_rows_or_of_traced_ones_is_refused():
    with pytest.raises(ParameterError, match="x must have two different rows; got 4 equal ones"):
        median_length_scale(np.ones((4, 2)))
    jax = pytest.importorskip("jax")
    with pytest.raises(ParameterError, match="x must hold values; got a traced array"):
        jax.jit(median_length_scale)(jax.numpy.ones((4, 2)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "name must be one of gaussian, laplacian, matern; got None"),
        ("gaussian", "name must be one of"),
        ({"name": "os.system"}, "got 'os.system'"),
        ({"name": ["gaussian"], "length_scale": 1}, "name must be one of"),
        ({"name": "gaussian"}, "settings of gaussian must be length_scale; got none"),
        ({"name": "gaussian", "length_scale": 1, "nu": 1.5}, "settings of gaussian must be length_scale; got length_scale, nu"),
        ({"name": "matern", "length_scale": 1}, "settings of matern must be length_scale, nu; got length_scale"),
        ({"name": "laplacian", "length_scale": -1}, "length_scale must be a finite number > 0"),
        ({"name": "matern", "length_scale": 1, "nu": 2}, "nu must be 0.5, 1.5 or 2.5"),
    ],
)
def test_dictionaries_that_are_no_kernel_are_refused(values, message):
    with pytest.raises(ParameterError, match=message):
        kernel_from_dict(values)


def test_a_matrix_that_does_not_fit_in_memory_is_refused(monkeypatch):
    monkeypatch.setattr(_arrays, "empty_like_shape", lambda *a, **k: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(ResourceError, match=r"Gaussian: the kernel matrix must fit in memory; got 5 x 5 entries. Use nystrom") as caught:
        Gaussian()(np.ones((5, 2)))
    assert caught.value.required_bytes == 200


def test_messages_are_one_short_line():
    for call in (lambda: Gaussian("x" * 900), lambda: kernel_from_dict({"name": "y" * 900}), lambda: Gaussian([1.0] * 99)(np.ones((3, 2)))):
        with pytest.raises(SoftlinalgError) as caught:
            call()
        text = str(caught.value)
        assert len(text) <= 400
        assert "\n" not in text
        assert re.match(r"^\w+: \w+ .*; got .*\. .*\.$", text)
