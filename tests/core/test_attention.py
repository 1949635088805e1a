"""Softmax-free attention on every array library: its formula, its laws, its blocks and their gradient, its refusals."""

from __future__ import annotations

import math
import tracemalloc

import array_api_compat.numpy as np_namespace
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import softlinalg
from softlinalg import _attention, _attention_blocks, _attention_full, errors
from softlinalg._attention import soft_attention
from softlinalg._attention_blocks import Columns, attend, attend_vjp, spans

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def gaussian(x, y, scale=None):
    """The kernel from differences, in float64."""
    scale = x.shape[-1] ** 0.25 if scale is None else scale
    return np.exp(-((x[..., :, None, :] - y[..., None, :, :]) ** 2).sum(-1) / (2 * scale**2))


def formula(q, v, landmarks, k=None, hidden=None, *, ridge=0.01, normalization=None, scale=None):
    """The definition, written down as it stands, in float64."""
    q, v, landmarks = (np.asarray(x, dtype=float) for x in (q, v, landmarks))
    keys = q if k is None else np.asarray(k, dtype=float)
    present = np.ones(keys.shape[:-1]) if hidden is None else 1.0 - np.broadcast_to(hidden, keys.shape[:-1])
    w = gaussian(landmarks, landmarks, scale)
    x = np.linalg.inv(w + ridge * np.eye(w.shape[-1]))
    if normalization == "published":
        d = w.sum(-1) ** -0.5
        x = d[..., :, None] * x * d[..., None, :]
    left = gaussian(q, landmarks, scale)
    s = left @ x @ np.swapaxes(gaussian(keys, landmarks, scale), -1, -2) * present[..., None, :]
    if normalization == "symmetric":
        columns = s.sum(-1) if k is None else s.sum(-2)
        s = np.maximum(s.sum(-1), 1)[..., None] ** -0.5 * s * np.maximum(columns, 1)[..., None, :] ** -0.5
    out = s @ v
    return out * present[..., None] if k is None else out


def tokens(seed, *, batch=(2, 3), n=40, keys=None, m=6, d=5, e=4, spread=1.0):
    """Queries, values, landmarks and (if `keys` is given) keys."""
    rng = np.random.default_rng(seed)
    q = spread * rng.standard_normal((*batch, n, d))
    landmarks = spread * rng.standard_normal((*batch, m, d))
    k = None if keys is None else spread * rng.standard_normal((*batch, keys, d))
    v = rng.standard_normal((*batch, n if keys is None else keys, e))
    return q, v, landmarks, k


def allowed(dtype, out, condition=100.0):
    """Rounding: a few hundred units, times the norm of the inverse, 1 / ridge at most, in the features."""
    return 300 * EPS[dtype] * condition * max(1.0, np.abs(out).max())


# -------------------------------------------------------------------------------------------------- formula
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("normalization", [None, "published", "symmetric"])
@pytest.mark.parametrize("keys", [None, 17])
def test_the_formula_is_computed(backend, dtype, normalization, keys):
    q, v, landmarks, k = (None if x is None else x.astype(dtype) for x in tokens(1, keys=keys))
    wanted = formula(q, v, landmarks, k, normalization=normalization)
    for inverse in ("certified", "exact"):
        found = soft_attention(
            *(backend.asarray(x) for x in (q, v, landmarks)),
            k=None if k is None else backend.asarray(k),
            inverse=inverse,
            normalization=normalization,
        )
        assert str(found.dtype).endswith(dtype)
        assert np.abs(backend.to_numpy(found) - wanted).max() < allowed(dtype, wanted)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_enough_published_steps_give_the_exact_inverse(backend, dtype):
    q, v, landmarks, _ = (None if x is None else x.astype(dtype) for x in tokens(2))
    arrays = [backend.asarray(x) for x in (q, v, landmarks)]
    wanted = formula(q, v, landmarks)
    assert np.abs(backend.to_numpy(soft_attention(*arrays, inverse="published", steps=30)) - wanted).max() < allowed(dtype, wanted)
    unconverged = backend.to_numpy(soft_attention(*arrays, inverse="published", steps=3))
    assert np.abs(unconverged - wanted).max() > 1e-3  # three steps are far from converged: the number of steps is obeyed


def test_the_published_steps_are_those_of_the_paper():
    q, v, landmarks, _ = tokens(3, batch=(), m=4)
    w = gaussian(landmarks, landmarks)
    p = w + 0.01 * np.eye(4)
    x = 1.8 / w.sum(-1).max() ** 2 * p
    for _ in range(5):
        x = 2 * x - x @ p @ x
    features = gaussian(q, landmarks)
    found = soft_attention(q, v, landmarks, inverse="published", steps=5)
    np.testing.assert_allclose(found, features @ x @ features.T @ v, rtol=1e-11, atol=1e-11)


def test_the_batch_start_of_soft_plus_plus_is_halved_over_the_whole_batch():
    w = gaussian(*(tokens(4, batch=(3,), m=5)[2],) * 2)
    settings = _attention.InverseSettings("published", 0.0, alpha="batch", normalization="published")
    alpha = 2 / w.sum(-1).max() ** 2
    for _ in range(10):
        if np.abs(np.eye(5) - alpha * w @ w).sum(-2).max() > 1.01:
            alpha /= 2
    found = _attention.start_factor(w, settings, xp=np_namespace)
    np.testing.assert_allclose(found, np.full(3, alpha), rtol=1e-15)


@pytest.mark.parametrize("ridge", [0.01, 1.0, 5.0])
@pytest.mark.parametrize("w", [np.eye(5), np.ones((5, 5)), 0.5 * (np.eye(5) + np.ones((5, 5)))], ids=["far", "equal", "between"])
def test_the_batch_start_counts_a_ridge(w, ridge):
    settings = _attention.InverseSettings("published", ridge, steps=60, alpha="batch")
    found = _attention.plain_inverse(np.stack([w, np.eye(5)]), settings, xp=np_namespace)
    true = np.linalg.inv(np.stack([w, np.eye(5)]) + ridge * np.eye(5))
    np.testing.assert_allclose(found, true, rtol=0, atol=1e-11 * np.abs(true).max())


def test_all_queries_as_landmarks_give_full_attention(backend):
    q, v, _, _ = tokens(5, n=15)
    found = soft_attention(backend.asarray(q), backend.asarray(v), backend.asarray(q), ridge=1e-12)
    np.testing.assert_allclose(backend.to_numpy(found), gaussian(q, q) @ v, atol=1e-7)  # ridge times the norm of the inverse


def test_half_precision_is_computed_in_float32(backend):
    if backend.name == "strict":
        pytest.skip("array-api-strict has no float16")
    arrays = [backend.asarray(x.astype("float16")) for x in tokens(6)[:3]]
    found = soft_attention(*arrays)
    assert "float16" in str(found.dtype)
    wanted = formula(*(x.astype("float16") for x in tokens(6)[:3]))
    assert np.abs(backend.to_numpy(found).astype(float) - wanted).max() < 2.0**-10 * np.abs(wanted).max()


def test_the_inputs_stay_as_they_are():
    arrays = tokens(7, keys=9)
    copies = [x.copy() for x in arrays]
    soft_attention(*arrays[:3], k=arrays[3], key_padding_mask=np.arange(9) > 5)
    assert all(np.array_equal(x, y) for x, y in zip(arrays, copies, strict=True))


@pytest.mark.parametrize("n", [0, 1])
def test_no_token_and_one_token_work(n):
    q, v, landmarks, _ = tokens(8, n=n)
    assert soft_attention(q, v, landmarks).shape == (2, 3, n, 4)
    np.testing.assert_allclose(soft_attention(q, v, landmarks), formula(q, v, landmarks), atol=1e-12)
    empty = soft_attention(landmarks, v[..., :0, :], landmarks, k=q[..., :0, :])
    assert np.array_equal(empty, np.zeros_like(empty))


# ----------------------------------------------------------------------------------------------------- laws
@given(
    seed=st.integers(0, 2**32 - 1),
    batch=st.lists(st.integers(1, 3), max_size=3).map(tuple),
    n=st.integers(1, 30),
    m=st.integers(1, 8),
    normalization=st.sampled_from([None, "published", "symmetric"]),
    keys=st.one_of(st.none(), st.integers(1, 20)),
)
def test_every_shape_follows_the_formula(seed, batch, n, m, normalization, keys):
    q, v, landmarks, k = tokens(seed, batch=batch, n=n, m=m, keys=keys)
    hidden = np.random.default_rng(seed).random((*batch[:1], *(1,) * (len(batch) - 1), v.shape[-2])) < 0.3
    wanted = formula(q, v, landmarks, k, hidden, normalization=normalization)
    found = soft_attention(q, v, landmarks, k=k, normalization=normalization, key_padding_mask=hidden)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < allowed("float64", wanted)


@given(seed=st.integers(0, 2**32 - 1), normalization=st.sampled_from([None, "published", "symmetric"]), cross=st.booleans())
def test_hidden_tokens_count_as_removed(seed, normalization, cross):
    q, v, landmarks, k = tokens(seed, batch=(2,), keys=25 if cross else None, n=25)
    hidden = np.random.default_rng(seed).random(25) < 0.4
    # Whatever they hold.
    v = np.where(hidden[:, None], np.nan, v)
    if cross:
        k = np.where(hidden[:, None], np.inf, k)
    else:
        q = np.where(hidden[:, None], np.nan, q)
    settings = {"normalization": normalization, "check_finite": False}
    found = soft_attention(q, v, landmarks, k=k, key_padding_mask=hidden, **settings)
    there = ~hidden
    if cross:
        wanted = soft_attention(q, v[:, there], landmarks, k=k[:, there], **settings)
    else:
        wanted = np.zeros_like(found)
        wanted[:, there] = soft_attention(q[:, there], v[:, there], landmarks, **settings)
    assert np.abs(found - wanted).max() < allowed("float64", wanted)


def test_all_keys_hidden_give_zeros():
    q, v, landmarks, k = tokens(9, keys=5)
    for normalization in (None, "published", "symmetric"):
        found = soft_attention(q, v, landmarks, k=k, key_padding_mask=np.ones(5, dtype=bool), normalization=normalization)
        assert np.array_equal(found, np.zeros_like(found))


@given(seed=st.integers(0, 2**32 - 1))
def test_the_order_of_tokens_does_not_matter(seed):
    q, v, landmarks, _ = tokens(seed)
    order = np.random.default_rng(seed).permutation(q.shape[-2])
    wanted = soft_attention(q, v, landmarks)[..., order, :]
    found = soft_attention(q[..., order, :], v[..., order, :], landmarks)
    assert np.abs(found - wanted).max() < allowed("float64", wanted)


def test_members_of_a_batch_do_not_see_one_another():
    q, v, landmarks, _ = tokens(10, batch=(8, 2), n=60)
    for settings in ({}, {"inverse": "exact"}, {"inverse": "published"}, {"normalization": "symmetric"}):
        together, alone = soft_attention(q, v, landmarks, **settings), soft_attention(q[3:4], v[3:4], landmarks[3:4], **settings)
        assert np.abs(together[3:4] - alone).max() < allowed("float64", alone)


def test_nan_stays_in_its_head():
    q, v, landmarks, _ = tokens(11)
    q[0, 1, 3, 2] = np.nan
    clean = soft_attention(tokens(11)[0], v, landmarks)
    found = soft_attention(q, v, landmarks, check_finite=False)
    assert np.isnan(found[0, 1]).all()
    keep = np.ones((2, 3), dtype=bool)
    keep[0, 1] = False
    np.testing.assert_allclose(found[keep], clean[keep], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tokens_far_from_the_origin_and_from_each_other_keep_their_kernel(backend, dtype):
    q, v, landmarks, _ = tokens(12, spread=1.0)
    rng = np.random.default_rng(12)
    places = 1e4 * rng.standard_normal((2, 3, 6, 5))  # landmarks 1e4 apart, tokens near them
    q = (places[..., rng.integers(0, 6, 40), :] + 0.5 * q).astype(dtype)
    landmarks, v = (places + 0.5 * landmarks).astype(dtype), v.astype(dtype)
    wanted = formula(q, v, landmarks)
    found = backend.to_numpy(soft_attention(*(backend.asarray(x) for x in (q, v, landmarks))))
    assert np.abs(found - wanted).max() < allowed(dtype, wanted)


def test_equal_tokens_and_landmarks_are_certified():
    q = np.ones((2, 30, 4), dtype="float32")
    v = np.random.default_rng(13).standard_normal((2, 30, 3)).astype("float32")
    found = soft_attention(q, v, q[:, :9])
    # W is all ones: C X C^T = 9 / (9 + ridge) for every pair.
    np.testing.assert_allclose(found, np.broadcast_to(v.sum(1, keepdims=True) * 9 / 9.01, found.shape), rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------- blocks
@given(b=st.integers(0, 4), h=st.integers(1, 4), n=st.integers(0, 30), step=st.integers(1, 80))
def test_blocks_cover_every_token_once(b, h, n, step):
    seen = np.zeros((b, h, n), dtype=int)
    for span in spans(b, h, n, step):
        seen[span.batch, span.heads, span.rows] += 1
        heads = np.arange(b * h).reshape(b, h)[span.batch, span.heads].ravel()
        assert np.array_equal(heads, np.arange(b * h)[span.flat])
        assert seen[span.batch, span.heads, span.rows].shape == span.shape
        assert math.prod(span.shape) <= max(step, 1)
    assert (seen == 1).all()


def _columns(landmarks, step=None):
    columns = Columns(landmarks, landmarks.shape[-1] ** -0.25, xp=np_namespace)
    columns.step = columns.step if step is None else step
    return columns


@pytest.mark.parametrize("step", [1, 7, 25, 60, 10_000])
@pytest.mark.parametrize("cross", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_blocks_of_any_size_give_the_composite_form_and_its_gradient(step, cross, masked):
    q, v, landmarks, k = tokens(14, keys=19 if cross else None, n=20)
    hidden = np.broadcast_to(np.arange(v.shape[-2]) % 4 == 1, v.shape[:-1]) if masked else None
    x = np.linalg.inv(gaussian(landmarks, landmarks) + 0.1 * np.eye(6))

    def value(q, k, v, landmarks, x):
        return _attention.composite(q, k, v, landmarks, hidden, x, length_scale=5**0.25, normalization=None, xp=np_namespace)

    columns = _columns(landmarks, step)
    made = attend(q, k, v, hidden, x, columns)
    wanted = value(q, k, v, landmarks, x)
    np.testing.assert_allclose(made.out, wanted, rtol=1e-11, atol=1e-11)
    rng = np.random.default_rng(14)
    grad = rng.standard_normal(wanted.shape)
    found = attend_vjp(grad, q, k, v, hidden, x, columns, made)
    arguments = {"q": q, "k": k, "v": v, "landmarks": landmarks, "x": x}
    for name, gradient in found._asdict().items():
        if arguments[name] is None:
            assert gradient is None
            continue
        direction = rng.standard_normal(gradient.shape)
        ends = [value(**{**arguments, name: arguments[name] + sign * 1e-5 * direction}) for sign in (1, -1)]
        slope = (grad * (ends[0] - ends[1])).sum() / 2e-5
        # Central differences: truncation 1e-10, rounding 1e-16 / 1e-5, relative to sums of a thousand terms.
        assert math.isclose((gradient * direction).sum(), slope, rel_tol=1e-6, abs_tol=1e-6), name


def test_the_gradient_of_features_is_that_of_the_kernel():
    q, _, landmarks, _ = tokens(15, n=23)
    columns = _columns(landmarks, 7)
    features = _attention_blocks.feature_matrix(q, columns)
    np.testing.assert_allclose(features, gaussian(q, landmarks), rtol=1e-12, atol=1e-14)
    grad = np.random.default_rng(15).standard_normal(features.shape)
    dq, dl = _attention_blocks.feature_matrix_vjp(grad, q, features, columns)
    wanted = softlinalg.Gaussian(5**0.25).vjp(q, landmarks, grad)
    np.testing.assert_allclose(dq, wanted[0], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(dl, wanted[1], rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_no_feature_is_subnormal_nor_is_any_product_of_two(backend, dtype):
    tiny = {"float32": 2.0**-126, "float64": 2.0**-1022}[dtype]
    distances = np.linspace(0, 3 * math.sqrt(-math.log(tiny)), 4000)[:, None]
    landmark = backend.asarray(np.zeros((1, 1)), dtype)
    composite = backend.to_numpy(_attention.features(backend.asarray(distances, dtype), landmark, 1.0, xp=backend.xp))
    block = backend.asarray(-(distances**2) / 2, dtype)
    for values in [composite, *([_exp_in_place(block, dtype, backend)] if backend.name in ("numpy", "torch") else [])]:
        positive = values[values > 0]
        assert positive.min() >= 0.99 * math.sqrt(tiny)
        assert (values == 0).any()
        np.testing.assert_allclose(positive, np.exp(-(distances.astype(dtype)[values > 0] ** 2) / 2), rtol=2e3 * EPS[dtype])


def _exp_in_place(block, dtype, backend):
    from softlinalg import _buffers

    _buffers.clamped_exp_in_place(block, _attention_blocks.lowest_exponent(block.dtype))
    return backend.to_numpy(block)


def test_memory_is_linear_in_the_number_of_tokens():
    peaks = []
    for n in (20_000, 80_000):
        q, v, landmarks, _ = (x if x is None else x.astype("float32") for x in tokens(16, batch=(), n=n, m=16, d=8, e=8))
        tracemalloc.start()
        soft_attention(q, v, landmarks, inverse="exact")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    per_token = (peaks[1] - peaks[0]) / 60_000
    assert per_token < 4 * (16 + 8) * 1.3  # features and output; a tokens x tokens matrix would take 320,000 bytes a token


# ------------------------------------------------------------------------------------------ full and clustered
@pytest.mark.parametrize("normalization", [None, "row", "symmetric"])
@pytest.mark.parametrize("cross", [False, True])
def test_full_attention_in_blocks_is_the_definition(backend, monkeypatch, normalization, cross):
    monkeypatch.setattr(_attention_full, "_BLOCK_ENTRIES", 6 * 20 * 7)
    q, v, _, k = tokens(17, n=20, keys=20 if cross else None)
    hidden = np.arange(20) % 5 == 2
    kernel = gaussian(q, q if k is None else k) * ~hidden
    if normalization == "row":
        kernel = kernel / kernel.sum(-1, keepdims=True)
    elif normalization == "symmetric":
        columns = kernel.sum(-2) if cross else kernel.sum(-1)
        kernel = np.maximum(kernel.sum(-1), 1)[..., None] ** -0.5 * kernel * np.maximum(columns, 1)[..., None, :] ** -0.5
    found = _attention_full.full_attention(
        backend.asarray(q),
        None if k is None else backend.asarray(k),
        backend.asarray(v),
        backend.asarray(np.broadcast_to(hidden, (2, 3, 20))),
        length_scale=5**0.25,
        normalization=normalization,
        xp=backend.xp,
    )
    rows = slice(None) if cross else ~hidden
    np.testing.assert_allclose(backend.to_numpy(found)[:, :, rows], (kernel @ v)[:, :, rows], rtol=1e-11, atol=1e-12)


def softmax(q, k, v, scale, hidden=None):
    logits = scale * (q @ np.swapaxes(k, -1, -2))
    if hidden is not None:
        logits = np.where(hidden, -np.inf, logits)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.1, 1.0, 30.0]))
def test_softmax_attention_is_gaussian_attention_with_weighted_keys(seed, spread):
    q, v, _, k = tokens(seed, keys=15, spread=spread)
    k += 100  # a common shift of the keys changes nothing
    wanted = softmax(q, k - 100, v, 0.4)
    found = _attention_full.softmax_as_gaussian(q, k, v, None, scale=0.4, xp=np_namespace)
    assert np.abs(found - wanted).max() < 1e-9 * max(1.0, spread**2)  # rounding of logits of that size


def test_groups_of_equal_keys_give_softmax_attention_exactly(backend):
    rng = np.random.default_rng(18)
    places = rng.standard_normal((2, 6, 5))
    which = rng.permutation(np.arange(48) % 6)
    # Every place is among the first keys at even distances, since the order is by place.
    order = np.argsort(which, kind="stable")
    k, q, v = places[:, which[order]], rng.standard_normal((2, 9, 5)), rng.standard_normal((2, 48, 4))
    arrays = [backend.asarray(x) for x in (q, k, v)]
    found = _attention_full.clustered_softmax(*arrays, None, count=6, steps=4, scale=0.5, factors="counts", xp=backend.xp)
    np.testing.assert_allclose(backend.to_numpy(found), softmax(q, k, v, 0.5), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("factors", ["counts", "row_stochastic"])
def test_clustered_attention_averages_the_values_of_present_keys(factors):
    q, v, _, k = tokens(19, keys=40)
    hidden = np.arange(40) % 3 == 0
    arrays = (q, k, np.where(hidden[:, None], 1e6, 0 * v + 2.5), np.broadcast_to(hidden, (2, 3, 40)))
    found = _attention_full.clustered_softmax(*arrays, count=7, steps=3, scale=0.4, factors=factors, xp=np_namespace)
    np.testing.assert_allclose(found, np.full_like(found, 2.5), rtol=1e-12)  # rows sum to one, over those keys alone


def test_more_groups_than_keys_leave_some_empty():
    q, v, _, k = tokens(20, keys=4)
    found = _attention_full.clustered_softmax(q, k, v, None, count=9, steps=2, scale=0.4, factors="counts", xp=np_namespace)
    assert np.isfinite(found).all()


def test_the_error_of_a_known_perturbation_is_measured():
    rng = np.random.default_rng(21)
    exact = rng.standard_normal((2, 3, 500, 4))
    approximate = exact * (1 + 0.1 * rng.choice([-1, 1], size=exact.shape))
    everything = _attention_full.relative_error(approximate, exact, 500, xp=np_namespace)
    np.testing.assert_allclose(everything.error, 0.1, rtol=1e-12)
    assert np.array_equal(everything.standard_error, np.zeros((2, 3)))
    noisy = exact + 0.1 * np.exp(0.3 * rng.standard_normal((2, 3, 500, 1))) * rng.standard_normal(exact.shape)
    truth = _attention_full.relative_error(noisy, exact, 500, xp=np_namespace).error
    rows = _attention_full.sampled_rows(500, 60, 0)
    sample = _attention_full.relative_error(noisy[:, :, rows], exact[:, :, rows], 500, xp=np_namespace)
    assert (np.abs(sample.error - truth) < 4 * sample.standard_error).all()  # four standard errors
    assert (sample.standard_error < 0.3 * truth).all()


# -------------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"inverse": "qr"}, errors.ParameterError, "inverse must be one of 'certified', 'published', 'exact'; got 'qr'"),
        ({"normalization": "row"}, errors.ParameterError, "normalization must be one of None, 'published', 'symmetric'; got 'row'"),
        ({"published_alpha": 1}, errors.ParameterError, "published_alpha must be one of 'matrix', 'batch'; got 1"),
        ({"steps": -1}, errors.ParameterError, "steps must be a whole number >= 0; got -1"),
        ({"ridge": -0.1}, errors.ParameterError, "ridge must be a finite number >= 0; got -0.1"),
        ({"tol": 0}, errors.ParameterError, "tol must be a finite number > 0"),
        ({"length_scale": 0}, errors.ParameterError, "length_scale must be a finite number > 0; got 0.0"),
        ({"q": np.ones(3)}, errors.ShapeError, r"q must have shape \(..., tokens, features\); got \(3,\)"),
        ({"landmarks": np.ones((2, 4))}, errors.ShapeError, "landmarks must have the 5 features of q; got 4"),
        ({"k": np.ones((40, 4))}, errors.ShapeError, "k must have the 5 features of q; got 4"),
        ({"v": np.ones((39, 4))}, errors.ShapeError, r"v must have one row per key \(40\); got 39"),
        ({"landmarks": np.ones((0, 5))}, errors.ShapeError, "landmarks must have at least one row"),
        ({"key_padding_mask": np.ones(40)}, errors.DTypeError, "key_padding_mask must be boolean, True for absent keys; got dtype float64"),
        ({"key_padding_mask": np.ones(3, dtype=bool)}, errors.ShapeError, r"key_padding_mask must have one entry per key \(40\)"),
        ({"v": np.full((40, 4), np.nan)}, errors.NonFiniteError, "soft_attention: v must be finite; got 160 non-finite entries"),
        ({"q": np.ones((40, 5), dtype=complex)}, errors.DTypeError, "q must be real"),
    ],
)
def test_wrong_arguments_are_refused(change, error, message):
    q, v, landmarks, _ = tokens(22, batch=())
    with pytest.raises(error, match=message):
        soft_attention(**{"q": q, "v": v, "landmarks": landmarks, **change})
