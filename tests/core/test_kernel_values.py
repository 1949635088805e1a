"""Values of kernels and distances: against extended precision, and laws."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import KERNELS, T, cases, kernels, names, points, unit, with_scale

from softlinalg import _inputs
from softlinalg._kernel_distances import near_limit
from softlinalg._kernels import Gaussian, Laplacian, Matern, gaussian_kernel, squared_distances

SMOOTH = [Gaussian(), Matern(nu=1.5), Matern(nu=2.5)]
scales = st.sampled_from([0.1, 1.0, 3.7, 50.0])


def exact(kernel, x, y):
    """Values and slopes by the exponent, from differences in extended precision; and the exponents."""
    scale = np.asarray(kernel.length_scale, dtype=np.longdouble)
    z = (x[:, None].astype(np.longdouble) - y[None].astype(np.longdouble)) / scale
    if kernel.name == "laplacian":
        e = np.abs(z).sum(-1)
        return np.exp(-e), np.exp(-e), e
    e = (z * z).sum(-1) / 2
    if kernel.name == "gaussian":
        return np.exp(-e), np.exp(-e), e
    a = np.sqrt(4 * np.longdouble(kernel.nu) * e)
    decay = np.exp(-a)
    if kernel.nu == 0.5:
        return decay, decay / np.where(a == 0, 1, a), e
    if kernel.nu == 1.5:
        return (1 + a) * decay, 3 * decay, e
    return (1 + a + a * a / 3) * decay, (1 + a) * decay * np.longdouble(5) / 3, e


def allowed(kernel, x, y, dtype=None):
    """The documented bound: T u (d + 2) (1 + e + min(R^2, limit)) in the exponent e, R the extent of the nearer set."""
    dtype = dtype or x.dtype
    value, slope, e = exact(kernel, x, y)
    scale = np.asarray(kernel.length_scale)
    center = np.sort(y, axis=0)[len(y) // 2].astype(float)
    norms = [(((s - center) / scale) ** 2).sum(-1).max() for s in (x, y)]
    reach = 0.0 if kernel.name == "laplacian" or getattr(kernel, "nu", 1) == 0.5 else min(*norms, near_limit(dtype))
    u, d = unit(dtype), x.shape[1]
    # Values are zero from where the exponential is subnormal; the polynomial before it is at most 1 + a + a^2 / 3 there.
    tiny = float(np.finfo(dtype).tiny) * (2 + math.log(np.finfo(dtype).tiny) ** 2)
    return np.asarray(T * u * (d + 2) * (slope * (e + reach) + value), dtype=float) + tiny, np.asarray(value, dtype=float)


# ---------------------------------------------------------------------------------------------------- values
@given(cases(), kernels, scales)
@settings(max_examples=300)
def test_values_agree_with_extended_precision_within_the_documented_bound(case, kernel, scale):
    kernel = with_scale(kernel, scale)
    bound, truth = allowed(kernel, case.x, case.y)
    assert np.all(np.abs(kernel(case.x, case.y) - truth) <= bound)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gaussian_agrees_with_fifty_digits(dtype):
    import mpmath

    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((6, 4)).astype(dtype) * 2 + 100, rng.standard_normal((5, 4)).astype(dtype) * 2 + 100
    kernel = Gaussian(1.7)
    bound, _ = allowed(kernel, x, y)
    with mpmath.workdps(50):
        for i in range(6):
            for j in range(5):
                squared = sum((mpmath.mpf(float(a)) - mpmath.mpf(float(b))) ** 2 for a, b in zip(x[i], y[j], strict=True))
                truth = mpmath.exp(-squared / (2 * mpmath.mpf(1.7) ** 2))
                assert abs(float(kernel(x, y)[i, j]) - float(truth)) <= bound[i, j]


@given(cases(), kernels, scales)
@settings(max_examples=150)
def test_values_lie_between_zero_and_one_and_are_never_subnormal(case, kernel, scale):
    kernel = with_scale(kernel, scale)
    for values in (kernel(case.x, case.y), kernel(case.x), kernel(case.x[None], case.y[None])):  # in place twice, then not
        assert np.all((values >= 0) & (values <= 1))
        assert np.all((values == 0) | (values >= np.finfo(values.dtype).tiny))


@given(cases(dtypes=("float16", "float32", "float64")), kernels, scales)
@settings(max_examples=150)
def test_kernel_matrix_of_one_set_is_symmetric_bit_for_bit_with_unit_diagonal(case, kernel, scale):
    values = with_scale(kernel, scale)(case.x)
    assert np.array_equal(values, values.T)
    assert np.all(np.diagonal(values) == 1)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_symmetry_holds_across_blocks_on_every_backend(backend, kernel):
    x = backend.asarray(points("clustered", 700, 3, np.random.default_rng(0)))  # more than one block of rows
    values = backend.to_numpy(kernel(x))
    assert np.array_equal(values, values.T)
    assert np.all(np.diagonal(values) == 1)
    host = backend.to_numpy(x)
    bound, _ = allowed(kernel, host, host)
    assert np.all(np.abs(values - kernel(host, host.copy())) <= 2 * bound)


@given(cases(kinds=("normal", "clustered", "duplicated", "collinear", "all-equal")), kernels)
@settings(max_examples=80)
def test_kernel_matrix_is_positive_semidefinite_to_rounding(case, kernel):
    x = np.concatenate([case.x, case.y])
    lowest = np.linalg.eigvalsh(kernel(x).astype(np.float64))[0]
    bound, _ = allowed(kernel, x, x)
    assert lowest >= -np.linalg.norm(bound)


def test_kernel_without_clamp_would_exceed_one():
    """The clamp acts here: the plain product form has positive exponents for these points."""
    x = points("normal", 200, 9, np.random.default_rng(1)) * 3
    from softlinalg._kernel_distances import GaussianColumns

    columns = GaussianColumns(x, 1.0, func="test", xp=_inputs.prepare("test", {"x": x}).xp)
    z = x - columns.center
    raw = np.concatenate([z, -(z * z).sum(1, keepdims=True) / 2, np.ones((200, 1))], axis=1) @ columns.augmented
    assert raw.max() > 0
    assert Gaussian()(x, x.copy()).max() == 1
    assert Matern(nu=2.5)(x, x.copy()).max() == 1


@given(cases(dtypes=("float64",), kinds=("normal", "clustered", "duplicated", "all-equal")), kernels, st.integers(-20, 20))
@settings(max_examples=60)
def test_exact_translations_change_no_bit(case, kernel, shift):
    x, y = np.round(case.x * 2**10) / 2**10, np.round(case.y * 2**10) / 2**10
    t = shift * 2.0**25
    assert np.array_equal((x + t) - t, x)
    assert np.array_equal(kernel(x + t, y + t), kernel(x, y))


@given(cases(), kernels, st.integers(-40, 40))
@settings(max_examples=60)
def test_scaling_points_and_length_scale_by_a_power_of_two_changes_no_bit(case, kernel, exponent):
    a = case.x.dtype.type(2.0**exponent)
    assert np.array_equal(with_scale(kernel, 1.3 * float(a))(case.x * a, case.y * a), with_scale(kernel, 1.3)(case.x, case.y))


@given(cases(dtypes=("float64",)), st.sampled_from([*SMOOTH, Matern(nu=0.5)]))
@settings(max_examples=60)
def test_rotations_change_values_by_rounding_only(case, kernel):
    rotation = np.linalg.qr(case.rng.standard_normal((case.shape[2],) * 2))[0]
    x, y = case.x @ rotation, case.y @ rotation
    d = case.shape[2]
    size = max(np.abs(case.x).max(), np.abs(case.y).max())
    # The rotated points themselves are rounded to d u |x|: no kernel changes faster than by 1 per length scale.
    assert np.all(np.abs(kernel(x, y) - kernel(case.x, case.y)) <= 4 * allowed(kernel, x, y)[0] + T * d**1.5 * unit("float64") * size)


@given(cases(), kernels)
@settings(max_examples=60)
def test_one_length_scale_per_feature_is_dividing_each_feature(case, kernel):
    scale = 2.0 ** case.rng.integers(-3, 4, case.shape[2])  # exact, so that both sides see the same points
    scaled_x, scaled_y = (case.x / scale).astype(case.x.dtype), (case.y / scale).astype(case.y.dtype)
    assert np.array_equal(with_scale(kernel, scale)(case.x, case.y), kernel(scaled_x, scaled_y))


@given(cases(), kernels)
@settings(max_examples=60)
def test_order_of_points_and_features_matters_to_rounding_only(case, kernel):
    n, m, d = case.shape
    rows, columns, features = (case.rng.permutation(k) for k in (n, m, d))
    moved = kernel(case.x[rows][:, features], case.y[columns][:, features])
    bound = allowed(kernel, case.x, case.y)[0]
    assert np.all(np.abs(moved - kernel(case.x, case.y)[rows][:, columns]) <= 2 * bound[rows][:, columns])


@given(cases(), kernels)
@settings(max_examples=60)
def test_a_row_does_not_depend_on_the_other_rows(case, kernel):
    together = kernel(case.x, case.y)
    alone = np.concatenate([kernel(case.x[i : i + 1], case.y) for i in range(case.shape[0])])
    assert np.all(np.abs(together - alone) <= 2 * allowed(kernel, case.x, case.y)[0])


@given(cases(dtypes=("float64",)), kernels)
@settings(max_examples=40)
def test_batch_equals_loop(case, kernel):
    x, y = np.stack([case.x, case.x * 1.5, case.x - 2]), np.stack([case.y, case.y, case.y * 0.5])
    batched, own = kernel(x, y), kernel(x)
    for b in range(3):
        assert np.all(np.abs(batched[b] - kernel(x[b], y[b])) <= 2 * allowed(kernel, x[b], y[b])[0])
        assert np.all(np.abs(own[b] - kernel(x[b])) <= 2 * allowed(kernel, x[b], x[b])[0])
    shared = kernel(x, y[0])
    assert shared.shape == (3, *case.shape[:2])
    assert np.all(np.abs(shared[2] - kernel(x[2], y[0])) <= 2 * allowed(kernel, x[2], y[0])[0])


@given(kernels, st.sampled_from(["float32", "float64"]), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_far_points_give_exact_zero_without_warning(kernel, dtype, seed):
    rng = np.random.default_rng(seed)
    top = np.finfo(dtype).maxexp - 1
    x = rng.standard_normal((6, 3)).astype(dtype)
    far = (np.sign(rng.standard_normal((5, 3))) * 2.0 ** rng.uniform(15, top, (5, 1))).astype(dtype)
    far[0] = np.finfo(dtype).max * np.sign(far[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.all(kernel(x, far) == 0)
        assert np.all(kernel(far, x) == 0)
        own = kernel(far)
        assert np.array_equal(own, kernel(far).T)
        assert np.all(np.diagonal(own) == 1)
        assert np.all(np.isfinite(own))


@pytest.mark.parametrize("kernel", KERNELS, **names)
@pytest.mark.parametrize("size", [1e-300, 1e-150, 1e150, 1e300])
def test_points_of_any_magnitude_are_right_in_their_own_length_scale(backend, kernel, size):
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((7, 3)), rng.standard_normal((4, 3))
    values = with_scale(kernel, size)(backend.asarray(x * size), backend.asarray(y * size))
    bound, truth = allowed(kernel, x, y)
    assert np.all(np.abs(backend.to_numpy(values) - truth) <= 2 * bound)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_points_at_both_ends_of_the_range_are_told_apart(kernel):
    top = np.finfo(np.float64).max
    x = np.array([[top], [-top], [0.0], [np.nextafter(top, 0)]])
    assert np.array_equal(kernel(x), np.eye(4))
    wide, small = with_scale(kernel, 2.0**1020), x * 2.0**-1020
    for y in (None, x[::-1].copy(), x[None]):  # differences of 2 top do not exist, their quotients by the length scale do
        expected = kernel(small, None if y is None else y * 2.0**-1020)
        assert expected.min() > 0
        assert np.allclose(wide(x if y is None else x.reshape(y.shape), y), expected, rtol=1e-11, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("share", [1, 20])
def test_close_points_far_from_the_center_keep_their_distance(dtype, share):
    """Both clusters matter; the center lies in one. `share` of 40 rows far: few pairs, or a block recomputed as a whole."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 4))
    x[:share] += 3e5
    y = np.concatenate([x[:share] + 0.5 * rng.standard_normal((share, 4)), x[share:]])
    x, y = x.astype(dtype), y.astype(dtype)
    for kernel in SMOOTH:
        bound, truth = allowed(kernel, x, y)
        values = kernel(x, y)
        assert np.all(np.abs(values - truth) <= bound)
        assert values[:share, :share].max() > 0.1  # pairs that a plain expansion of the square loses


@pytest.mark.parametrize(("dtype", "cost"), [("float32", 1e-5), ("float64", 1e-11)])
@pytest.mark.parametrize("distance", [10.0, 100.0, 1e3, 1e4, 1e6])
def test_distance_from_the_center_costs_no_more_than_documented(dtype, cost, distance):
    """Two clusters, one around the center: whatever lies between them, exponents within the other are this exact."""
    x = np.random.default_rng(3).standard_normal((60, 2)) * 0.5
    x[40:, 0] += distance
    x = x.astype(dtype)
    truth = exact(Gaussian(), x, x)[0]
    for values in (Gaussian()(x, x.copy()), Gaussian()(x[None], x[None].copy())[0], Gaussian()(x[38:], x)):
        assert np.all(np.abs(values - truth[-len(values) :]) <= 2 * (cost + T * unit(dtype)))


def test_float32_far_pairs_use_float64_and_very_far_ones_differences():
    x = np.array([[0.0, 0.0], [2.0**12, 0.0], [2.0**12 + 1, 0.0], [2.0**20, 1.0], [2.0**20, 0.0]], dtype=np.float32)
    expected = np.eye(5)
    expected[1, 2] = expected[2, 1] = expected[3, 4] = expected[4, 3] = np.exp(-0.5)
    assert np.allclose(Gaussian()(x), expected, rtol=0, atol=1e-7)
    assert np.allclose(Gaussian()(x, x.copy()), expected, rtol=0, atol=1e-7)


def test_far_pairs_are_right_where_the_library_has_no_float64():
    jax = pytest.importorskip("jax")
    x = np.array([[0.0, 0.0], [2.0**12, 0.0], [2.0**12 + 1, 0.0], [2.0**20, 1.0], [2.0**20, 0.0]], dtype=np.float32)
    with jax.enable_x64(False):
        values = np.asarray(Gaussian()(jax.numpy.asarray(x)))
    assert values.dtype == np.float32
    assert np.allclose(values, Gaussian()(x), rtol=0, atol=1e-6)


def test_weights_that_are_not_finite_stay_so_in_the_gradient():
    g = np.ones((3, 3))
    g[0, 1] = np.nan
    dx, dy = Gaussian().vjp(np.eye(3), np.eye(3) + 0.5, g)
    assert np.isnan(dx[0]).all()
    assert np.isfinite(dx[1:]).all()
    assert np.isnan(dy[1]).all()


def test_matern_half_keeps_its_digits_where_points_nearly_coincide():
    x = np.array([[3.0, 4.0]])
    y = x + np.array([[1e-9, 0.0]])
    step = float(y[0, 0] - 3.0)
    assert Matern(1.0, 0.5)(x, y)[0, 0] == pytest.approx(math.exp(-step), abs=1e-16)


@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_values_of_the_documented_formulas(kernel):
    x, y = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    expected = {
        "gaussian": math.exp(-25 / 8),
        "laplacian": math.exp(-7 / 2),
        "matern0.5": math.exp(-2.5),
        "matern1.5": (1 + math.sqrt(3) * 2.5) * math.exp(-math.sqrt(3) * 2.5),
        "matern2.5": (1 + math.sqrt(5) * 2.5 + 5 * 2.5**2 / 3) * math.exp(-math.sqrt(5) * 2.5),
    }[names["ids"](kernel)]
    assert with_scale(kernel, 2.0)(x, y)[0, 0] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("name", ["rbf", "laplacian", "matern"])
def test_values_agree_with_scikit_learn(name):
    from sklearn.gaussian_process.kernels import Matern as OtherMatern
    from sklearn.metrics.pairwise import laplacian_kernel, rbf_kernel

    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((20, 5)), rng.standard_normal((9, 5))
    if name == "matern":
        for nu in (0.5, 1.5, 2.5):
            assert np.allclose(Matern(1.7, nu)(x, y), OtherMatern(1.7, nu=nu)(x, y), rtol=1e-12)
    elif name == "rbf":
        assert np.allclose(gaussian_kernel(x, y, length_scale=1.7), rbf_kernel(x, y, gamma=1 / (2 * 1.7**2)), rtol=1e-12)
    else:
        assert np.allclose(Laplacian(1.7)(x, y), laplacian_kernel(x, y, gamma=1 / 1.7), rtol=1e-12)


# ------------------------------------------------------------------------------------------------- distances
@given(cases())
@settings(max_examples=100)
def test_squared_distances_agree_with_differences(case):
    u, d = unit(case.x.dtype), case.shape[2]
    center = np.sort(case.y, axis=0)[len(case.y) // 2].astype(np.float64)
    far = ((case.x - center) ** 2).sum(-1)[:, None] + ((case.y - center) ** 2).sum(-1)[None]
    truth = ((case.x[:, None].astype(np.longdouble) - case.y[None].astype(np.longdouble)) ** 2).sum(-1)
    found = squared_distances(case.x, case.y)
    assert np.all(found >= 0)
    assert np.all(np.abs(found - truth) <= 4 * u * (d + 2) * far)
    own = squared_distances(case.x)
    assert np.array_equal(own, own.T)
    assert np.all(np.diagonal(own) == 0)


@pytest.mark.parametrize("size", [1e-150, 1.0, 1e150, 1e300])
def test_squared_distances_are_right_or_infinite_at_any_magnitude(backend, size):
    x = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    with np.errstate(over="ignore"):
        expected = np.array([[0.0, 25.0, 1.0], [25.0, 0.0, 18.0], [1.0, 18.0, 0.0]]) * size * size
        expected[np.isnan(expected)] = 0
    found = backend.to_numpy(squared_distances(backend.asarray(x * size)))
    assert np.allclose(found, expected, rtol=1e-13, atol=0)


def test_squared_distances_of_points_at_infinity_of_the_type_are_no_nan():
    x = np.full((2, 2), np.finfo(np.float32).max, dtype=np.float32)
    x[1] = -x[1]
    assert np.array_equal(squared_distances(x, x.copy()), [[0, np.inf], [np.inf, 0]])
