"""What comes of each kind of input, for every function and every array library: one test per row of the contract."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from public_functions import BY_NAME, FUNCTIONS, Public
from scipy import sparse

import softlinalg
import softlinalg.torch as st
from softlinalg import errors
from softlinalg.testing.strategies import apply_layout

CORE = [
    entry
    for entry in FUNCTIONS
    if entry.arrays and not entry.is_torch and not entry.name.startswith(("NystromDecomposition.", "Laplacian", "Matern."))
]
TENSORS = [entry for entry in FUNCTIONS if entry.arrays and entry.is_torch and entry.name.endswith(("attention", "_inverse", "gaussian"))]
WHOLE_DTYPE = [entry for entry in CORE if entry.name not in ("median_length_scale", "Gaussian.resolve", "select_landmark_indices")]
"""Functions whose result has a dtype that follows the input."""
CHECKED = [entry for entry in CORE if entry.name not in (
    "pinv_vjp", "pinv_jvp", "ridge_inverse_vjp", "ridge_inverse_jvp", "newton_pinv_vjp", "newton_pinv_jvp", "Gaussian.diagonal")]  # fmt: skip
"""Functions that look for NaN and infinity. Derivatives do not: a loss that overflowed has such a gradient, as it should."""

EPS = {"float16": 2.0**-10, "float32": 2.0**-23, "float64": 2.0**-52}


def named(entry: Public) -> str:
    return entry.name


def first(result: Any) -> Any:
    """The array that a function returns, or the value of its result."""
    if isinstance(result, softlinalg.NystromDecomposition):
        return result.features()
    return result[0] if isinstance(result, tuple) else result


def arguments(entry: Public, backend: Any, dtype: str | None = None) -> dict[str, Any]:
    made = entry.make(np.random.default_rng(0))
    return {name: backend.asarray(value, dtype) if name in entry.arrays else value for name, value in made.items()}


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", errors.SoftlinalgWarning)
        yield


# ------------------------------------------------------------------------------------- data types and libraries
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("entry", WHOLE_DTYPE, ids=named)
def test_dtype_library_and_device_stay(entry: Public, dtype: str, backend: Any) -> None:
    from array_api_compat import array_namespace, device

    given = arguments(entry, backend, dtype)
    result = first(entry.call(**given))
    assert str(result.dtype).endswith(dtype)
    assert array_namespace(result) is array_namespace(given[entry.arrays[0]])
    assert str(device(result)) == str(device(given[entry.arrays[0]]))


@pytest.mark.parametrize("entry", WHOLE_DTYPE, ids=named)
def test_every_library_gives_the_numbers_of_numpy(entry: Public, backend: Any) -> None:
    """Property 57; both sides compute in float64. Condition numbers of the table are below 1e4."""
    expected = np.asarray(first(entry.call(**entry.make(np.random.default_rng(0)))))
    found = backend.to_numpy(first(entry.call(**arguments(entry, backend))))
    if entry.name == "nystrom":  # features are unique up to a rotation
        expected, found = expected @ expected.T, found @ found.T
    scale = max(1.0, float(np.max(np.abs(expected))))
    slack = 1e-6 if entry.name == "refine_landmarks" else 1e4 * 30 * EPS["float64"]  # L-BFGS amplifies rounding
    np.testing.assert_allclose(found, expected, rtol=0, atol=slack * scale)


@pytest.mark.parametrize("entry", [e for e in WHOLE_DTYPE if e.name != "refine_landmarks"], ids=named)
def test_half_precision_is_computed_in_single(entry: Public) -> None:
    made = entry.make(np.random.default_rng(0))
    half = {name: value.astype(np.float16) if name in entry.arrays else value for name, value in made.items()}
    with quietly():
        found = first(entry.call(**half))
        expected = first(entry.call(**{n: v.astype(np.float32) if n in entry.arrays else v for n, v in half.items()}))
    assert found.dtype == np.float16
    if entry.name == "nystrom":
        found, expected = found.astype(np.float64) @ found.T.astype(np.float64), expected @ expected.T
    np.testing.assert_allclose(
        found.astype(np.float64), expected, rtol=0, atol=4 * EPS["float16"] * max(1.0, float(np.abs(expected).max()))
    )


@pytest.mark.parametrize("backend", ["numpy"], indirect=True)
@pytest.mark.parametrize("kind", ["bool", "uint8"])
@pytest.mark.parametrize("entry", WHOLE_DTYPE, ids=named)
def test_small_integers_become_it_too(entry: Public, kind: str, backend: Any) -> None:
    check_integers(entry, kind, backend)


@pytest.mark.parametrize("entry", WHOLE_DTYPE, ids=named)
def test_integers_become_the_default_float_of_their_library(entry: Public, backend: Any) -> None:
    check_integers(entry, "int64", backend)


def check_integers(entry: Public, kind: str, backend: Any) -> None:
    made = entry.make(np.random.default_rng(0))
    whole = {}
    for name, value in made.items():
        if name not in entry.arrays:
            whole[name] = value
        elif "ridge_inverse" in entry.name:
            whole[name] = np.broadcast_to(np.eye(4), (2, 4, 4)).astype(kind)
        else:
            whole[name] = (np.abs(value) * 3 % 4).astype(kind)
    default = backend.xp.__array_namespace_info__().default_dtypes()["real floating"]
    name = str(default).rsplit(".", 1)[-1].rstrip("'>")
    with quietly():
        found = first(entry.call(**{n: backend.asarray(v) if n in entry.arrays else v for n, v in whole.items()}))
        expected = first(entry.call(**{n: backend.asarray(v, name) if n in entry.arrays else v for n, v in whole.items()}))
    assert found.dtype == expected.dtype == default
    np.testing.assert_array_equal(backend.to_numpy(found), backend.to_numpy(expected))


@pytest.mark.parametrize("entry", CORE, ids=named)
def test_complex_numbers_are_for_matrices_alone(entry: Public, backend: Any) -> None:
    made = arguments(entry, backend)
    made[entry.arrays[0]] = backend.asarray(backend.to_numpy(made[entry.arrays[0]]) + 0j)
    if entry.takes_complex:
        assert "complex" in str(first(entry.call(**made)).dtype)
        return
    with pytest.raises(errors.DTypeError, match=r"must be real; got dtype complex128\. "):
        entry.call(**made)


@pytest.mark.parametrize("kind", ["longdouble", "object", "str", "S4", "datetime64[s]", "V8", "clongdouble"])
@pytest.mark.parametrize("entry", CORE, ids=named)
def test_other_types_are_refused_by_name(entry: Public, kind: str) -> None:
    made = entry.make(np.random.default_rng(0))
    value = made[entry.arrays[0]]
    made[entry.arrays[0]] = np.zeros(value.shape, kind) if kind in ("datetime64[s]", "V8") else value.astype(kind)
    with pytest.raises(errors.DTypeError, match=r"must hold float16, bfloat16, float32, float64 or integers; got dtype "):
        entry.call(**made)


@pytest.mark.parametrize("entry", CORE, ids=named)
def test_masked_sparse_and_lazy_arrays_are_refused_with_the_way_out(entry: Public) -> None:
    import dask.array

    made = entry.make(np.random.default_rng(0))
    value = made[entry.arrays[0]]
    for spoilt, words in (
        (np.ma.masked_array(value, mask=value > 1), r"must not be masked; .*\.filled\(value\)"),
        (sparse.csr_matrix(value.reshape(value.shape[0], -1)), r"must be dense; got a sparse csr_matrix .*\.toarray\(\)"),
        (dask.array.from_array(value), r"must be in memory; got a Dask array .*\.compute\(\)"),
        (None, "must be an array; got NoneType"),
        ([[1.0, 2.0], [3.0]], "must be a rectangular array of numbers"),
    ):
        with pytest.raises(errors.DTypeError, match=words):
            entry.call(**{**made, entry.arrays[0]: spoilt})


@pytest.mark.parametrize("entry", [e for e in CORE if len(e.arrays) > 1], ids=named)
def test_two_libraries_are_refused(entry: Public) -> None:
    made = entry.make(np.random.default_rng(0))
    made[entry.arrays[1]] = torch.tensor(made[entry.arrays[1]])
    with pytest.raises(errors.BackendMismatchError, match=r"all arrays must come from one library; got .*Convert them to one"):
        entry.call(**made)


@pytest.mark.parametrize("entry", [e for e in TENSORS if len(e.arrays) > 1], ids=named)
def test_two_devices_are_refused(entry: Public) -> None:
    made = {n: torch.tensor(v) if n in entry.arrays else v for n, v in entry.make(np.random.default_rng(0)).items()}
    made[entry.arrays[1]] = made[entry.arrays[1]].to("meta")
    with pytest.raises(errors.BackendMismatchError, match="all tensors must be on one device; got cpu, meta"):
        entry.call(**made)


@pytest.mark.parametrize("entry", TENSORS, ids=named)
def test_tensors_are_asked_for_where_they_are_needed(entry: Public) -> None:
    made = {n: torch.tensor(v) if n in entry.arrays else v for n, v in entry.make(np.random.default_rng(0)).items()}
    name = entry.arrays[0]
    plain = made[name].clone()
    for spoilt, words in (
        (plain.numpy(), "must be a tensor; got ndarray"),
        (plain.tolist(), "must be a tensor; got list"),
        (plain.to_sparse(), "must be a dense tensor; got a sparse_coo one"),
        (plain.to(torch.complex128), "must hold real numbers of 16 bits or more; got dtype complex128"),
        (plain.to(torch.float8_e4m3fn), "must hold real numbers of 16 bits or more; got dtype float8_e4m3fn"),
    ):
        with pytest.raises(errors.DTypeError, match=words):
            entry.call(**{**made, name: spoilt})


# ------------------------------------------------------------------------------------------ NaN and infinity
@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("entry", CHECKED, ids=named)
def test_what_is_not_finite_is_counted_and_placed(entry: Public, value: float, backend: Any) -> None:
    for name in entry.arrays:
        made = entry.make(np.random.default_rng(0))
        if name == "g" or (entry.name == "select_landmarks" and name != "x"):
            continue
        spoilt = made[name].copy()
        where = (0,) * (spoilt.ndim - 2) + (2, 1)
        spoilt[where] = value
        made[name] = spoilt
        with pytest.raises(
            errors.NonFiniteError, match=rf"{name} must be finite; got 1 non-finite entry \(first at \[{', '.join(map(str, where))}\]\)"
        ):
            entry.call(**{n: backend.asarray(v) if n in entry.arrays else v for n, v in made.items()})


@pytest.mark.parametrize("name", ["pinv", "certified_pinv", "ridge_inverse", "certified_ridge_inverse"])
def test_a_member_that_is_not_finite_harms_no_other(name: str, backend: Any) -> None:
    """Property 14, bit for bit, and with check_finite=False."""
    made = BY_NAME[name].make(np.random.default_rng(0))
    spoilt = {**made, "a": made["a"].copy()}
    spoilt["a"][1, 0, 0] = np.nan
    call = BY_NAME[name].call
    found = backend.to_numpy(first(call(**{**spoilt, "a": backend.asarray(spoilt["a"])}, check_finite=False)))
    assert np.isnan(found[1]).all()
    alone = {**made, "a": backend.asarray(np.concatenate([made["a"][:1], np.zeros_like(made["a"][:1])]))}
    expected = backend.to_numpy(first(call(**alone, check_finite=False)))
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("name", ["pinv", "ridge_inverse"])
def test_traced_members_that_are_not_finite_become_nan(name: str) -> None:
    import jax

    made = BY_NAME[name].make(np.random.default_rng(0))
    made["a"][1, 0, 0] = np.inf
    with jax.enable_x64(True):
        found = np.asarray(jax.jit(lambda a: BY_NAME[name].call(**{**made, "a": a}))(made["a"]))
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[0]).all()


# ------------------------------------------------------------------------------------------------- layouts
LAYOUTS = {
    "read-only": lambda a: np.lib.stride_tricks.as_strided(a, a.shape, a.strides, writeable=False),
    "Fortran order": np.asfortranarray,
    "every third": lambda a: np.repeat(a, 3, axis=-1)[..., ::3],
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "big-endian": lambda a: a.astype(">f8"),
    "list": lambda a: a.tolist(),
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("entry", WHOLE_DTYPE, ids=named)
def test_the_layout_does_not_matter_and_nothing_is_written(entry: Public, layout: str) -> None:
    """Properties 59 and 60."""
    made = entry.make(np.random.default_rng(0))
    expected = np.asarray(first(entry.call(**made)))
    moved = {n: LAYOUTS[layout](v) if n in entry.arrays else v for n, v in made.items()}
    before = {n: np.array(v, copy=True) for n, v in moved.items() if n in entry.arrays}
    found = np.asarray(first(entry.call(**moved)))
    if entry.name == "nystrom":
        expected, found = expected @ expected.T, found @ found.T
    slack = 1e-6 if entry.name == "refine_landmarks" else 3e5 * EPS["float64"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=slack * max(1.0, float(np.abs(expected).max())))
    for name, value in before.items():
        assert np.array_equal(np.asarray(moved[name]), value)


@pytest.mark.parametrize("entry", WHOLE_DTYPE, ids=named)
def test_views_that_pytorch_has_yet_to_negate_are_read_right(entry: Public) -> None:
    made = entry.make(np.random.default_rng(0))
    now = {n: torch.from_numpy(np.array(v)) if n in entry.arrays else v for n, v in made.items()}
    later = {n: apply_layout(v, "pending") if n in entry.arrays else v for n, v in now.items()}
    assert all(later[n].is_neg() for n in entry.arrays)
    expected, found = (np.asarray(first(entry.call(**arguments))) for arguments in (now, later))
    np.testing.assert_array_equal(found, expected)


# -------------------------------------------------------------------------------------- shapes and extremes
@pytest.mark.parametrize("entry", [e for e in CORE if e.name not in ("newton_pinv_jvp",)], ids=named)
def test_numbers_and_vectors_are_no_matrices(entry: Public, backend: Any) -> None:
    for value in (np.asarray(1.0), np.ones(3)):
        made = arguments(entry, backend)
        made[entry.arrays[0]] = backend.asarray(value)
        with pytest.raises(errors.ShapeError, match=r"shape|end in|axes|fit|features"):
            entry.call(**made)


MATRICES = ("pinv", "certified_pinv", "ridge_inverse", "certified_ridge_inverse")


@pytest.mark.parametrize("name", MATRICES)
def test_empty_batches_are_empty(name: str, backend: Any) -> None:
    made = {"a": backend.asarray(np.empty((0, 4, 4))), **({"ridge": 0.1} if "ridge" in name else {})}
    assert tuple(first(BY_NAME[name].call(**made)).shape) == (0, 4, 4)
    if "pinv" in name:
        for shape in ((0, 3), (3, 0), (2, 0, 3))[: 1 if backend.name == "jax" else 3]:  # which compiles each shape anew
            result = first(BY_NAME[name].call(backend.asarray(np.empty(shape, np.float32))))
            assert tuple(result.shape) == (*shape[:-2], shape[-1], shape[-2])
            assert "float32" in str(result.dtype)
    else:
        with pytest.raises(errors.ShapeError, match="must have at least one row"):
            BY_NAME[name].call(backend.asarray(np.empty((2, 0, 0))), 0.1)


@pytest.mark.parametrize("exponent", [-1000, -996, -500, 0, 500, 1000])
@pytest.mark.parametrize("name", MATRICES)
def test_extreme_scales_come_out_exactly_scaled(name: str, exponent: int, backend: Any) -> None:
    """Property 7: inverses of 2^e A are 2^-e those of A, bit for bit, while neither under- nor overflows."""
    a = BY_NAME[name].make(np.random.default_rng(0))["a"]
    ridge = () if "pinv" in name else (0.125,)
    scaled_ridge = () if "pinv" in name else (float(np.ldexp(0.125, exponent)),)
    if exponent < -900:  # exact powers of two leave no digits below the smallest normal number
        a = np.round(a * 16) / 16 if "pinv" in name else np.broadcast_to(np.eye(4), a.shape) * [[[1.0]], [[0.25]]]
    one = backend.to_numpy(first(BY_NAME[name].call(backend.asarray(a), *ridge)))
    other = backend.to_numpy(first(BY_NAME[name].call(backend.asarray(np.ldexp(a, exponent)), *scaled_ridge)))
    np.testing.assert_array_equal(other, np.ldexp(one, -exponent))


@pytest.mark.parametrize("name", MATRICES)
def test_one_by_one_zero_and_rank_one_are_right(name: str, backend: Any) -> None:
    call, ridge = BY_NAME[name].call, () if "pinv" in name else (0.5,)
    assert float(backend.to_numpy(first(call(backend.asarray(np.array([[4.0]])), *ridge)))[0, 0]) == pytest.approx(1 / (4 + sum(ridge)))
    zero = backend.to_numpy(first(call(backend.asarray(np.zeros((3, 3))), *ridge)))
    if ridge:
        np.testing.assert_allclose(zero, 2 * np.eye(3), rtol=0, atol=4 * EPS["float64"])
    else:
        np.testing.assert_array_equal(zero, np.zeros((3, 3)))
    ones = backend.to_numpy(first(call(backend.asarray(np.ones((3, 3))), *ridge)))
    expected = np.linalg.inv(np.ones((3, 3)) + 0.5 * np.eye(3)) if ridge else np.ones((3, 3)) / 9
    np.testing.assert_allclose(ones, expected, rtol=0, atol=100 * EPS["float64"])


@pytest.mark.parametrize("name", MATRICES)
def test_what_overflows_is_refused_not_infinite(name: str, backend: Any) -> None:
    tiny = np.eye(2, dtype=np.float32) * np.float32(2.0**-126)
    ridge = () if "pinv" in name else (0.0,)
    result = first(BY_NAME[name].call(backend.asarray(tiny * 2), *ridge))
    np.testing.assert_array_equal(backend.to_numpy(result), np.eye(2) * 2.0**125)
    if backend.name in ("torch", "jax"):
        return  # subnormal numbers may be zero there
    with pytest.raises(errors.RangeError, match=r"the result must fit float32; got 1 matrices whose inverse overflows\."):
        BY_NAME[name].call(backend.asarray(tiny / 8), *ridge)


@pytest.mark.parametrize("name", MATRICES)
def test_asymmetry_is_refused_with_its_size(name: str, backend: Any) -> None:
    a = np.eye(3)
    a[0, 1] = 0.25
    more = {"hermitian": True} if "pinv" in name else {"ridge": 0.1}
    with pytest.raises(errors.InputError, match=r"a must be Hermitian; got max \|A - A\^H\| = 0\.25 where max \|A\| = 1"):
        BY_NAME[name].call(backend.asarray(a), **more)


@pytest.mark.parametrize("name", ["pinv_vjp", "pinv_jvp"])
@pytest.mark.parametrize("scale", [1e-200, 1e-100, 1e100])
def test_gradients_at_extreme_scales_are_right_or_not_finite(name: str, scale: float) -> None:
    """-X G X at s I is -G / s^2: right where it is in range, and infinite, never a finite wrong number, where it is not."""
    a, g = scale * np.eye(3), np.ones((3, 3))
    found = BY_NAME[name].call(a, softlinalg.pinv(a), g)
    with np.errstate(over="ignore"):
        expected = -np.ones((3, 3)) / scale / scale
    if np.isfinite(expected).all():
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    else:
        assert not np.isfinite(found).any()


# --------------------------------------------------------------------------------------------- kernels and points
@pytest.mark.parametrize("name", ["gaussian_kernel", "Gaussian", "Laplacian", "Matern"])
def test_kernels_lie_between_zero_and_one_with_ones_on_the_diagonal(name: str, backend: Any) -> None:
    """Properties 21, 22 and 29."""
    x = np.random.default_rng(0).normal(size=(9, 3))
    for scale in (1e-3, 1.0, 1e3):
        k = backend.to_numpy(BY_NAME[name].call(x=backend.asarray(x), y=None, length_scale=scale))
        np.testing.assert_array_equal(k, k.T)
        np.testing.assert_array_equal(np.diag(k), 1)
        assert k.min() >= 0
        assert k.max() <= 1
    far = backend.asarray(x * [[1e200]])
    k = backend.to_numpy(BY_NAME[name].call(x=far, y=None, length_scale=1.0))
    np.testing.assert_array_equal(k, np.eye(9))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), "wide", True, None, 1j])
@pytest.mark.parametrize("name", ["gaussian_kernel", "Gaussian", "Laplacian", "Matern", "soft_attention"])
def test_length_scales_are_positive_numbers(name: str, value: Any) -> None:
    if name == "soft_attention" and value is None:
        return
    with pytest.raises(errors.ParameterError, match="length_scale must be a"):
        BY_NAME[name].call(**{**BY_NAME[name].make(np.random.default_rng(0)), "length_scale": value})


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        *[(name, "tol", value) for name in MATRICES for value in (0.0, -1e-3, float("nan"), 2.0)],
        *[(name, "ridge", value) for name in MATRICES[2:] for value in (-1e-3, float("inf"), float("nan"))],
        *[(name, "method", value) for name in MATRICES for value in ("SVD", "", None, 3)],
        *[(name, "on_failure", value) for name in MATRICES for value in ("ignore", None, np.ones(2))],
        *[(name, "check_finite", value) for name in MATRICES for value in ("no", None, np.ones(2))],
        *[("newton_pinv", "steps", value) for value in (-1, 1.5, "20", True)],
        *[("newton_pinv", "alpha", value) for value in (0.0, -1.0)],
        *[("select_landmarks", "count", value) for value in (0, 13, -1, 2.5, True, "3")],
        *[("select_landmarks", "method", value) for value in ("best", None, 1)],
        *[("nystrom", "rank", value) for value in (0, 13, -1, 2.5, True)],
        *[("nystrom", "ridge", value) for value in (0.0, -1.0, float("nan"))],
        *[("nystrom", "kernel", value) for value in (None, "gaussian", softlinalg.Gaussian, len)],
        *[("nystrom", "rng", value) for value in (-1, "seed", 1.5, np.random.RandomState(0), True)],
        *[("refine_landmarks", "max_steps", value) for value in (0, -1, 2.5)],
        *[("soft_attention", "inverse", value) for value in ("best", None, 1)],
        *[("soft_attention", "ridge", value) for value in (-1.0, float("nan"), "0.1")],
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(name: str, setting: str, value: Any) -> None:
    entry = BY_NAME[name]
    with pytest.raises(errors.ParameterError, match=rf"^{name}: {setting} .*; got ") as caught:
        entry.call(**{**entry.make(np.random.default_rng(0)), setting: value})
    assert len(str(caught.value)) <= 400


def test_bad_array_settings_name_the_shape(backend: Any) -> None:
    a = backend.asarray(BY_NAME["newton_pinv"].make(np.random.default_rng(0))["a"])
    with pytest.raises(errors.ShapeError, match=r"newton_pinv: alpha must be a number, or of batch shape \(2,\); got shape \(3,\)"):
        softlinalg.newton_pinv(a, alpha=backend.asarray(np.ones(3)))
    with pytest.raises(errors.DTypeError, match="newton_pinv: alpha must be real; got dtype complex128"):
        softlinalg.newton_pinv(a, alpha=backend.asarray(np.ones(2) + 0j))
    value = backend.asarray(np.broadcast_to(np.eye(3), (2, 3, 3)))
    with pytest.raises(errors.DTypeError, match="ridge_inverse_jvp: ridge_tangent must be real; got dtype complex128"):
        softlinalg.ridge_inverse_jvp(value, value, backend.asarray(np.ones(2) + 0j))


@pytest.mark.parametrize("entry", [e for e in CORE if e.name.endswith(("vjp", "jvp")) and "Gaussian" not in e.name], ids=named)
def test_batches_that_do_not_broadcast_are_named(entry: Public, backend: Any) -> None:
    made = arguments(entry, backend)
    last = entry.arrays[-1]
    made[last] = backend.asarray(np.concatenate([backend.to_numpy(made[last])] * 2)[:3])
    with pytest.raises(errors.ShapeError, match=rf"{entry.name}: batch axes must broadcast; got .*{last} \(3,\)"):
        entry.call(**made)


@pytest.mark.parametrize("m", [0, 9])
def test_landmarks_and_points_have_sizes(m: int) -> None:
    with pytest.raises(errors.ShapeError, match=r"at least one row|landmarks must be points|features"):
        softlinalg.soft_attention(np.ones((4, 3)), np.ones((4, 2)), np.ones((m, 3) if m == 0 else (m, 4)))
    with pytest.raises(errors.ShapeError):
        softlinalg.nystrom(np.ones((4, 3)), softlinalg.Gaussian(1.0), landmarks=np.ones((m, 3) if m == 0 else (m, 4)))


def test_duplicate_landmarks_warn_and_change_nothing() -> None:
    """Property 33."""
    x = np.random.default_rng(0).normal(size=(30, 2))
    with pytest.warns(errors.DuplicateLandmarkWarning, match="1 of 4 landmarks repeat others"):
        twice = softlinalg.nystrom(x, softlinalg.Gaussian(1.0), landmarks=[0, 1, 2, 0])
    once = softlinalg.nystrom(x, softlinalg.Gaussian(1.0), landmarks=[0, 1, 2])
    np.testing.assert_allclose(twice.to_dense(), once.to_dense(), rtol=0, atol=30 * 4 * EPS["float64"] * 100)
    with pytest.warns(errors.DuplicateLandmarkWarning):
        assert softlinalg.select_landmarks(np.ones((5, 2)), 3, kernel=softlinalg.Gaussian(1.0), rng=0).shape == (3, 2)


def test_all_keys_hidden_give_zeros_everywhere() -> None:
    made = {n: torch.tensor(v) for n, v in BY_NAME["torch.soft_attention"].make(np.random.default_rng(0)).items()}
    hidden = torch.ones(2, 6, dtype=torch.bool)
    assert not st.soft_attention(**made, key_padding_mask=hidden).any()
    plain = {n: v.numpy() for n, v in made.items()}
    assert not softlinalg.soft_attention(**plain, key_padding_mask=np.ones((2, 1, 6), bool)).any()


@pytest.mark.parametrize("build", [st.soft_tiny, st.soft_norm_tiny, st.published_code_small])
def test_named_models_refuse_unknown_settings(build: Any) -> None:
    with pytest.raises(errors.ParameterError, match=r"SoftAttention: inverse must be one of .*; got 'best'\."):
        build(inverse="best", num_classes=0)


# --------------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize(
    "entry", [e for e in FUNCTIONS if e.whole and e.arrays and "Soft" not in e.name and "map" not in e.name], ids=named
)
def test_a_view_that_no_memory_holds_is_refused_at_once(entry: Public) -> None:
    made = entry.make(np.random.default_rng(0))
    name = entry.arrays[0]
    huge = np.broadcast_to(np.float64(0.5), (*made[name].shape[:-2], 2**24, 2**24))
    made = {n: torch.tensor(v) if entry.is_torch and isinstance(v, np.ndarray) else v for n, v in made.items()}
    made[name] = torch.tensor(0.5, dtype=torch.float64).expand(huge.shape) if entry.is_torch else huge
    with pytest.raises(errors.ResourceError, match=rf"{name} must fit in memory; got shape .* GB\.") as caught:
        entry.call(**made)
    assert isinstance(caught.value, MemoryError)
    assert caught.value.required_bytes == 8 * huge.size
    assert caught.value.budget_bytes is not None


def test_a_kernel_matrix_that_no_memory_holds_is_refused_before_it_is_allocated() -> None:
    x = np.zeros((2**21, 1))
    for kernel in (softlinalg.Gaussian(1.0), softlinalg.Laplacian(1.0), softlinalg.Matern(1.0)):
        with pytest.raises(errors.ResourceError, match=r"the kernel matrix \(2097152 x 2097152 entries\) must fit in .*Use nystrom"):
            kernel(x)


@pytest.mark.parametrize("name", ["pinv", "ridge_inverse", "gaussian_kernel", "soft_attention", "newton_pinv"])
def test_shapes_are_known_without_numbers(name: str) -> None:
    """Property 62: shapes and types of traced calls are those of eager ones."""
    import jax

    entry = BY_NAME[name]
    made = entry.make(np.random.default_rng(0))
    settings = {n: v for n, v in made.items() if n not in entry.arrays}
    eager = first(entry.call(**made))
    with jax.enable_x64(True):
        abstract = {n: jax.ShapeDtypeStruct(made[n].shape, made[n].dtype) for n in entry.arrays}
        found = first(jax.eval_shape(lambda arrays: entry.call(**arrays, **settings), abstract))
    assert tuple(found.shape) == eager.shape
    assert found.dtype == eager.dtype
    meta = first(entry.call(**{n: torch.empty(made[n].shape, dtype=torch.float64, device="meta") for n in entry.arrays}, **settings))
    assert tuple(meta.shape) == eager.shape
    assert meta.dtype == torch.float64
