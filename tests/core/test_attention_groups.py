"""Softmax attention with few keys, as seen from groups of queries: where it is exact, and what may not change it."""

from __future__ import annotations

import numpy as np
import pytest

from softlinalg._attention_groups import halved, tilted_softmax

# JAX compiles each of the many operations for each shape, which takes minutes; its own adapter is for jit.
on_libraries = pytest.mark.parametrize("backend", ["numpy-readonly", "strict", "torch"], indirect=True)


def softmax(q, k, v, scale):
    logits = scale * q @ k.swapaxes(-1, -2)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v


def data(n=40, keys=50, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, n, 4)), rng.normal(size=(2, keys, 4)) + 1.0, rng.normal(size=(2, keys, 3))


def tilted(backend, q, k, v, hidden=None, absent=None, **settings):
    settings = {"count": 8, "groups": 4, "scale": 0.5, **settings}
    given = [backend.asarray(x) if x is not None else None for x in (q, k, v, hidden, absent)]
    return backend.to_numpy(tilted_softmax(*given, xp=backend.xp, **settings))


@on_libraries
def test_every_row_has_one_place_and_cells_differ_by_one_row(backend):
    q, _, _ = data(n=45)
    hidden = np.zeros((2, 45), dtype=bool)
    hidden[1, 3:9] = True
    cells = halved(backend.asarray(q), backend.asarray(hidden), 3, xp=backend.xp)
    index, counts, cell, place = (backend.to_numpy(x) for x in cells)
    for member in range(2):
        rows = index[member][counts[member]]
        assert sorted(rows) == list(np.flatnonzero(~hidden[member]))
        sizes = counts[member].sum(-1)
        assert sizes.max() - sizes.min() <= 1
        for row in rows:
            assert index[member, cell[member, row], place[member, row]] == row


@on_libraries
def test_cells_are_compact(backend):
    rng = np.random.default_rng(1)
    middles = rng.normal(size=(4, 3)) * 10
    x = (middles[:, None] + rng.normal(size=(4, 6, 3)) * 0.1).reshape(24, 3)[rng.permutation(24)]
    cells = halved(backend.asarray(x), None, 2, xp=backend.xp)
    spread = x[backend.to_numpy(cells.index)].std(axis=1)
    assert spread.max() < 0.5


@on_libraries
def test_as_many_cells_as_keys_give_softmax_attention(backend):
    q, k, v = data(keys=32)
    np.testing.assert_allclose(tilted(backend, q, k, v, count=32), softmax(q, k, v, 0.5), atol=1e-12)


@on_libraries
def test_as_many_groups_as_queries_give_softmax_attention(backend):
    q, k, v = data(n=32)
    np.testing.assert_allclose(tilted(backend, q, k, v, count=2, groups=32), softmax(q, k, v, 0.5), atol=1e-12)


@on_libraries
def test_equal_keys_lose_nothing(backend):
    q, k, v = data()
    k = np.repeat(k[:, :10], 5, axis=1)  # ten different keys, each five times, in cells of five
    one = tilted(backend, q, k, v, count=1, groups=32)
    full = tilted(backend, q, k[:, :40], v[:, :40], count=8)
    np.testing.assert_allclose(full, softmax(q, k[:, :40], v[:, :40], 0.5), atol=1e-12)
    assert abs(one - softmax(q, k, v, 0.5)).max() > 1e-3


def test_it_is_nearer_than_counting_keys():
    from softlinalg._attention_full import clustered_softmax

    q, k, v = data(n=256, keys=256)
    xp = __import__("array_api_compat.numpy", fromlist=["numpy"])
    exact = softmax(q, k, v, 1.0)
    plain = clustered_softmax(q, k, v, None, count=16, steps=5, scale=1.0, factors="counts", xp=xp)
    near = tilted_softmax(q, k, v, None, None, count=16, groups=16, scale=1.0, xp=xp)
    assert np.linalg.norm(near - exact) < 0.7 * np.linalg.norm(plain - exact)


@pytest.mark.parametrize("where", ["end", "start", "between"])
@on_libraries
def test_padding_changes_nothing(backend, where):
    q, k, v = data(n=30, keys=30)
    places = {"end": np.arange(30), "start": np.arange(30) + 13, "between": np.sort(np.random.default_rng(2).permutation(43)[:30])}[where]
    padded = [np.full((2, 43, x.shape[-1]), 1e3) for x in (q, k, v)]
    mask = np.ones((2, 43), dtype=bool)
    mask[:, places] = False
    for wide, x in zip(padded, (q, k, v), strict=True):
        wide[:, places] = x
    out = tilted(backend, *padded, mask, mask)
    np.testing.assert_allclose(out[:, places], tilted(backend, q, k, v), atol=1e-12)
    assert not np.delete(out, places, axis=1).any()


@on_libraries
def test_the_order_of_tokens_does_not_matter(backend):
    q, k, v = data()
    a, b = np.random.default_rng(3).permutation(40), np.random.default_rng(4).permutation(50)
    np.testing.assert_allclose(tilted(backend, q[:, a], k[:, b], v[:, b]), tilted(backend, q, k, v)[:, a], atol=1e-12)


@on_libraries
def test_members_of_a_batch_do_not_feel_each_other(backend):
    q, k, v = data()
    np.testing.assert_allclose(tilted(backend, q[1:], k[1:], v[1:]), tilted(backend, q, k, v)[1:], atol=1e-12)


@on_libraries
def test_a_common_shift_of_the_keys_changes_nothing(backend):
    q, k, v = data()
    np.testing.assert_allclose(tilted(backend, q, k + 7.0, v), tilted(backend, q, k, v), atol=1e-10)


@on_libraries
def test_without_keys_and_with_one_the_output_is_zero_and_its_value(backend):
    q, k, v = data()
    hidden = np.ones((2, 50), dtype=bool)
    hidden[1, 4] = False
    out = tilted(backend, q, k, v, hidden)
    assert not out[0].any()
    np.testing.assert_allclose(out[1], np.broadcast_to(v[1, 4], out[1].shape), atol=1e-12)


@on_libraries
def test_large_logits_stay_finite(backend):
    q, k, v = data()
    out = tilted(backend, 1e3 * q, 1e3 * k, v)
    assert np.isfinite(out).all()
    assert abs(out).max() <= abs(v).max() * (1 + 1e-12)
