"""What stands between the core and the array libraries: conversion, refusal, exact scaling, Cholesky per matrix."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softlinalg import _arrays, _inputs, _linalg, errors
from softlinalg._rng import as_generator


def spd(batch: int, m: int, seed: int, *, complex_: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    g = rng.standard_normal((batch, m, m)) + (1j * rng.standard_normal((batch, m, m)) if complex_ else 0)
    return g @ g.conj().swapaxes(-1, -2) + np.eye(m)


@pytest.mark.parametrize("complex_", [False, True])
def test_cholesky_fails_per_matrix_and_not_for_the_batch(backend, complex_):
    a = spd(3, 5, 1, complex_=complex_)
    a[1] = -a[1]
    factor, ok = _linalg.cholesky(backend.asarray(a), xp=backend.xp)
    assert backend.to_numpy(ok).tolist() == [True, False, True]
    host = backend.to_numpy(factor)
    np.testing.assert_allclose(host[[0, 2]] @ host[[0, 2]].conj().swapaxes(-1, -2), a[[0, 2]], rtol=1e-12, atol=1e-12)
    assert np.isnan(host[1]).any()
    inverse, ok = _linalg.spd_inverse(backend.asarray(a), xp=backend.xp)
    assert backend.to_numpy(ok).tolist() == [True, False, True]
    host = backend.to_numpy(inverse)
    np.testing.assert_allclose(host[[0, 2]] @ a[[0, 2]], np.broadcast_to(np.eye(5), (2, 5, 5)), atol=1e-12)
    np.testing.assert_array_equal(host[0], host[0].conj().T)
    assert np.isnan(host[1]).all()


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("complex_", [False, True])
def test_triangular_systems_are_solved(backend, adjoint, complex_):
    factor = np.linalg.cholesky(spd(2, 4, 2, complex_=complex_))
    b = np.random.default_rng(3).standard_normal((2, 4, 3)).astype(factor.dtype)
    solved = _linalg.triangular_solve(backend.asarray(factor), backend.asarray(b), xp=backend.xp, adjoint=adjoint)
    left = factor.conj().swapaxes(-1, -2) if adjoint else factor
    np.testing.assert_allclose(left @ backend.to_numpy(solved), b, atol=1e-12)


@settings(max_examples=60)
@given(mantissa=st.floats(0.5, 0.999), exponent=st.integers(-1073, 1023), sign=st.sampled_from([-1.0, 1.0]))
def test_scaling_by_a_power_of_two_is_exact_and_lands_between_one_and_two(mantissa, exponent, sign):
    a = np.array([[sign * np.ldexp(mantissa, exponent), 0.0]])
    xp = _inputs.prepare("f", {"a": a}).xp
    scaled, power = _linalg.power_of_two_scale(a, xp=xp)
    if a[0, 0] == 0:
        assert power == 0
        return
    assert 1 <= abs(scaled[0, 0]) < 2
    np.testing.assert_array_equal(_linalg.scale_by_power_of_two(scaled, power, xp=xp), a)


def test_scaling_is_exact_on_every_backend(backend):
    a = np.stack([np.full((2, 2), v) for v in (0.0, 3e-300, 1.0, 0.7e300)])
    scaled, power = _linalg.power_of_two_scale(backend.asarray(a), xp=backend.xp)
    host = backend.to_numpy(scaled)
    assert ((np.abs(host[1:]) >= 0.5) & (np.abs(host[1:]) < 4)).all()  # one off at most next to a power of two
    np.testing.assert_array_equal(np.ldexp(host, backend.to_numpy(power).astype(int)[:, None, None]), a)


def test_powers_of_two_are_exact_where_pow_is_not(backend):
    n = np.arange(-1000.0, 1001.0, 7.0)
    np.testing.assert_array_equal(
        backend.to_numpy(_linalg._exact_power_of_two(backend.asarray(n), xp=backend.xp)), np.ldexp(1.0, n.astype(int))
    )


def test_preparation_converts_lists_integers_byte_order_and_matrices():
    xp, (a, none, b), dtype = _inputs.prepare("f", {"a": [[1, 2]], "none": None, "b": np.ones(2, dtype=">f4")}, optional=("none",))
    assert none is None
    assert (a.dtype, b.dtype, dtype) == (np.float64, np.dtype("=f4"), np.float64)
    assert xp.__name__ == "array_api_compat.numpy"
    assert type(_inputs.prepare("f", {"a": np.matrix([[1.0]])}).arrays[0]) is np.ndarray
    pandas = pytest.importorskip("pandas")
    assert _inputs.prepare("f", {"a": pandas.DataFrame({"x": [1, 2]})}).arrays[0].shape == (2, 1)


def test_integers_get_the_default_float_of_their_library(backend):
    integers = backend.asarray(np.eye(2, dtype="int32"))
    expected = backend.xp.__array_namespace_info__().default_dtypes()["real floating"]
    assert _inputs.prepare("f", {"a": integers}).arrays[0].dtype == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ma.masked_array([1.0]), r"f: a must not be masked; got a numpy masked array\. Fill it first"),
        (np.array(["x"]), "must hold float16, bfloat16, float32, float64 or integers; got dtype"),
        (np.array([None]), "got dtype object"),
        ([[1], [1, 2]], "rectangular array of numbers; got a list"),
        ("text", "must be an array; got str"),
        (np.ones(2) * 1j, "f: a must be real; got dtype complex128"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "got dtype datetime64"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(value, message):
    with pytest.raises(errors.DTypeError, match=message):
        _inputs.prepare("f", {"a": value})


def test_arrays_of_two_libraries_or_devices_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(errors.BackendMismatchError, match=r"one library; got a: numpy.ndarray, b: torch.Tensor"):
        _inputs.prepare("f", {"a": np.ones(2), "b": torch.ones(2)})
    strict = pytest.importorskip("array_api_strict")
    with pytest.raises(errors.BackendMismatchError, match=r"one device; got a on .*CPU_DEVICE.*, b on .*device1"):
        _inputs.prepare("f", {"a": strict.ones(2), "b": strict.ones(2, device=strict.Device("device1"))})


def test_non_finite_entries_are_counted_and_placed(backend):
    a = np.zeros((3, 4))
    _inputs.check_finite(backend.asarray(a), func="f", name="a", xp=backend.xp)
    a[1, 2], a[2, 0] = np.nan, -np.inf
    with pytest.raises(errors.NonFiniteError, match=r"f: a must be finite; got 2 non-finite entries \(first at \[1, 2\]\)"):
        _inputs.check_finite(backend.asarray(a), func="f", name="a", xp=backend.xp)


def test_finite_entries_whose_sum_overflows_are_fine():
    _inputs.check_finite(np.full(4, 1.7e308), func="f", name="a", xp=_inputs.prepare("f", {"a": np.ones(1)}).xp)
    _inputs.check_finite(np.full(4, 6e4, dtype="float16"), func="f", name="a", xp=_inputs.prepare("f", {"a": np.ones(1)}).xp)


@pytest.mark.parametrize(
    ("value", "arguments", "message"),
    [
        ("x", {}, "must be a number > 0; got 'x'"),
        (0.0, {}, r"must be a finite number > 0; got 0\.0"),
        (float("inf"), {}, "got inf"),
        (True, {}, "got 1.0"),
        (-1.0, {"strict": False}, r"must be a finite number >= 0; got -1\.0"),
        (2.0, {"maximum": 1.0}, r"> 0 and <= 1; got 2\.0"),
    ],
)
def test_settings_out_of_range_are_refused(value, arguments, message):
    with pytest.raises(errors.ParameterError, match=message):
        _inputs.real_scalar(value, func="f", name="tol", **arguments)


def test_too_much_memory_is_refused_before_it_is_taken():
    with pytest.raises(errors.ResourceError, match=r"f: the kernel must fit in 1 GB; got a need of 907 GB\. Use chunks\.") as caught:
        _inputs.check_memory(907 * 10**9, 10**9, func="f", what="the kernel", remedy="Use chunks.")
    assert (caught.value.required_bytes, caught.value.budget_bytes) == (907 * 10**9, 10**9)
    assert isinstance(caught.value, MemoryError)


@pytest.mark.parametrize("rng", [-1, "seed", 1.5, True, np.random.RandomState(0)])
def test_random_states_of_another_kind_are_refused(rng):
    with pytest.raises(errors.ParameterError, match="f: rng must be None"):
        as_generator(rng, func="f")


def test_random_generators_are_seeded_or_passed_through():
    assert as_generator(3, func="f").integers(1000) == as_generator(3, func="f").integers(1000)
    generator = np.random.default_rng(1)
    assert as_generator(generator, func="f") is generator
    assert as_generator(None, func="f").integers(2**60) != as_generator(None, func="f").integers(2**60)


def test_data_types_have_one_name_everywhere(backend):
    for name in ("float32", "float64", "complex64"):
        assert _arrays.dtype_name(backend.asarray(np.zeros(1, dtype=name)).dtype) == name
    assert _arrays.eps(backend.asarray(np.zeros(1, dtype="float32")).dtype) == 2.0**-23
    assert _arrays.tiny(backend.asarray(np.zeros(1)).dtype) == 2.0**-1022


def test_jax_without_64_bit_types_computes_in_float32():
    jnp = pytest.importorskip("jax.numpy")
    x = jnp.ones((2, 2))
    xp = _inputs.prepare("f", {"x": x}).xp
    assert not _arrays.has_float64(x, xp=xp)
    assert _arrays.wide_dtype(x, xp=xp) == jnp.float32
