"""Kernels: values against extended precision, laws, gradients, every backend, each refusal."""

from __future__ import annotations

import json
import math
import re
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from softlinalg import _arrays, _inputs
from softlinalg._kernel_distances import DifferenceColumns, near_limit
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
from softlinalg.errors import (
    BackendMismatchError,
    DTypeError,
    NonFiniteError,
    ParameterError,
    ResourceError,
    ShapeError,
    SoftlinalgError,
)

KERNELS = [Gaussian(), Laplacian(), Matern(nu=0.5), Matern(nu=1.5), Matern(nu=2.5)]
SMOOTH = [Gaussian(), Matern(nu=1.5), Matern(nu=2.5)]
names = {"ids": lambda kernel: f"{kernel.name}{getattr(kernel, 'nu', '')}"}
T = 30
"""Slack on the units of rounding, as in LAPACK's tests."""

KINDS = ("normal", "clustered", "duplicated", "collinear", "one-far", "offset", "all-equal")


def unit(dtype) -> float:
    return float(np.finfo(dtype).eps) / 2


def with_scale(kernel, length_scale):
    return kernel_from_dict({**kernel.to_dict(), "length_scale": length_scale})


def points(kind: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    """Point clouds that break naive distances, in units of the length scale."""
    x = rng.standard_normal((n, d))
    if kind == "clustered":
        x = x * 0.01 + 40.0 * rng.integers(0, 3, (n, 1))
    elif kind == "duplicated":
        x = x[rng.integers(0, max(1, n // 3), n)]
    elif kind == "collinear":
        x = rng.standard_normal((n, 1)) * rng.standard_normal(d)
    elif kind == "one-far":
        x[rng.integers(n)] += 10.0 ** rng.uniform(1, 12)
    elif kind == "offset":
        x += 10.0 ** rng.uniform(0, 6)
    elif kind == "all-equal":
        x[:] = x[0]
    return x


@dataclass
class Case:
    kind: str
    x: np.ndarray
    y: np.ndarray
    rng: np.random.Generator

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.x.shape[0], self.y.shape[0], self.x.shape[1]


@st.composite
def cases(draw, dtypes=("float32", "float64"), kinds=KINDS, most=12):
    """Two sets of points, of one cloud, some of them shared."""
    kind, dtype = draw(st.sampled_from(kinds)), draw(st.sampled_from(dtypes))
    n, m, d = draw(st.integers(1, most)), draw(st.integers(1, most)), draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    top = float(np.finfo(dtype).max)
    cloud = np.clip(points(kind, n + m, d, rng), -top, top).astype(dtype)
    x, y = cloud[:n].copy(), cloud[n:].copy()
    if draw(st.booleans()):
        y[0] = x[-1]
    event(f"{kind}, {dtype}")
    return Case(kind, x, y, rng)


kernels = st.sampled_from(KERNELS)
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
        gradients = jax.grad(lambda a, b: (kernel(a, b) * jg).sum(), argnums=(0, 1))(jx, jy)
        for ours, theirs in zip(kernel.vjp(x, y, g), gradients, strict=True):
            assert np.allclose(ours, theirs, rtol=1e-10, atol=1e-13)
        for ours, theirs in zip(kernel.vjp(x, y, g), jax.jit(kernel.vjp)(jx, jy, jg), strict=True):
            assert np.allclose(ours, theirs, rtol=1e-10, atol=1e-13)
        mapped = jax.vmap(lambda row: kernel(row[None, :], jy)[0])(jx)
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


# -------------------------------------------------------------------------------------------- array contract
@pytest.mark.parametrize("kernel", KERNELS, **names)
def test_every_backend_agrees_with_numpy(backend, kernel):
    rng = np.random.default_rng(12)
    x, y, g = points("one-far", 11, 3, rng), points("normal", 7, 3, rng), rng.standard_normal((11, 7))
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
