"""The short way of a call whose like was made before: the same bits, and only where it may be taken."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from softlinalg import errors  # noqa: E402
from softlinalg.torch import attention_core, cpu_kernels, repeated_attention, soft_attention  # noqa: E402

compiled = pytest.mark.skipif(cpu_kernels.load() is None, reason="no C++ compiler, or SOFTLINALG_COMPILED=0")


@pytest.fixture
def calls(monkeypatch):
    """Number of calls that went the long way."""
    made = []
    real = attention_core.attention
    monkeypatch.setattr(attention_core, "attention", lambda *given: (made.append(1), real(*given))[1])
    return made


def tokens(*shape, seed=0, dtype=torch.float32, turned=False):
    rng = np.random.default_rng(seed)
    if turned:  # heads as a view of (batch, tokens, heads, features)
        b, h, n, d = shape
        return torch.from_numpy(rng.standard_normal((b, n, h, d))).to(dtype).transpose(1, 2)
    return torch.from_numpy(rng.standard_normal(shape)).to(dtype)


def arguments(seed=0, *, batch=1, heads=2, n=200, m=16, d=32, e=32, dtype=torch.float32, turned=False):
    q, v = (tokens(batch, heads, n, width, seed=seed + i, dtype=dtype, turned=turned) for i, width in enumerate((d, e)))
    return q, v, tokens(batch, heads, m, d, seed=seed + 2, dtype=dtype)


@compiled
@given(
    batch=st.integers(1, 3),
    heads=st.integers(1, 3),
    n=st.integers(128, 300),
    m=st.integers(1, 40),
    e=st.sampled_from([16, 32]),
    double=st.booleans(),
    turned=st.booleans(),
    keys=st.none() | st.integers(128, 200),
    ridge=st.none() | st.sampled_from([0.1, 0.003]),
    threads=st.sampled_from([1, 2]),
)
def test_the_second_call_has_the_bits_of_the_long_way(batch, heads, n, m, e, double, turned, keys, ridge, threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _compare(batch, heads, n, m, e, torch.float64 if double else torch.float32, turned, keys, ridge)
    finally:
        torch.set_num_threads(before)


def _compare(batch, heads, n, m, e, dtype, turned, keys, ridge):
    repeated_attention._held.__dict__.clear()
    for seed in (0, 10, 20):  # other numbers each time
        q, v, landmarks = arguments(seed, batch=batch, heads=heads, n=n, m=m, e=e, dtype=dtype, turned=turned)
        k = None
        if keys is not None:
            k = tokens(batch, heads, keys, 32, seed=seed + 5, dtype=dtype)
            v = tokens(batch, heads, keys, e, seed=seed + 6, dtype=dtype, turned=turned)
        quick = repeated_attention.again(q, k, v, landmarks, ridge, None)
        assert (quick is not None) == (seed > 0)
        with torch.enable_grad():
            long = soft_attention(q, v, landmarks.clone().requires_grad_(), k=k, ridge=ridge).detach()
        found = soft_attention(q, v, landmarks, k=k, ridge=ridge)
        assert torch.equal(found, long)
        assert found.stride() == long.stride()
        assert quick is None or torch.equal(quick, long)


@compiled
def test_work_for_several_threads_has_the_bits_of_one():
    q, v, landmarks = arguments(heads=4, n=6000, m=49)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found += [soft_attention(q, v, landmarks) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert len(repeated_attention._held.plans) == 2
    assert all(torch.equal(found[0], other) for other in found[1:])


@compiled
def test_arguments_in_another_order_in_memory_have_a_plan_of_their_own(calls):
    q, v, landmarks = arguments()
    other_q, other_v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, v))
    expected = soft_attention(q, v, landmarks)
    for tokens_given in ((q, v), (other_q, v), (q, other_v), (other_q, other_v)):
        for _ in range(2):
            assert torch.equal(soft_attention(*tokens_given, landmarks), expected)
    assert len(calls) == 4
    assert torch.equal(soft_attention(q, v, landmarks.mT.contiguous().mT), expected)  # copied, in a plan that there is
    assert len(calls) == 4


@compiled
def test_the_long_way_is_gone_once(calls):
    given = arguments()
    with torch.no_grad():
        for _ in range(4):
            soft_attention(*given)
        assert len(calls) == 1
        soft_attention(*given, ridge=0.02)
        assert len(calls) == 2
        soft_attention(*given, tol=1e-5)
        assert len(calls) == 3
        for ridge, tol in ((0.02, None), (None, 1e-5)):
            soft_attention(*given, ridge=ridge, tol=tol)
        assert len(calls) == 3
        soft_attention(given[0], given[1], given[2].double())  # another type: promoted, by the long way
        assert len(calls) == 4


@compiled
@pytest.mark.parametrize("case", ["far", "nan", "same"])
def test_numbers_that_need_the_long_way_take_it(case, calls):
    q, v, landmarks = arguments(m=8)
    for other in (landmarks, landmarks):
        soft_attention(q, v, other, ridge=1e-13 if case == "same" else None)
    assert len(calls) == 1
    if case == "far":
        landmarks = landmarks + torch.tensor([0.0, 1e6]).repeat(4)[:, None]
    elif case == "nan":
        landmarks = landmarks.clone()
        landmarks[0, 1, 2, 3] = float("nan")
    else:
        landmarks = landmarks[:, :, :1].expand(-1, -1, 8, -1) + 0.0
    results = []
    for _ in range(2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", errors.ConvergenceWarning)
            try:
                results.append(soft_attention(q, v, landmarks, ridge=1e-13 if case == "same" else None))
            except errors.ConvergenceError as error:
                results.append(torch.tensor([len(str(error))]))
    assert len(calls) == 3
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
    if case == "nan":
        assert bool(results[0][0, 1].isnan().all())
        assert bool(results[0][0, 0].isfinite().all())


@compiled
def test_what_is_recorded_mapped_or_converted_goes_the_long_way(calls):
    q, v, landmarks = arguments()
    plain = [soft_attention(q, v, landmarks) for _ in range(2)][1]
    assert len(calls) == 1
    leaf = v.clone().requires_grad_()
    assert soft_attention(q, leaf, landmarks).requires_grad
    assert len(calls) == 2
    with torch.no_grad():
        assert torch.equal(soft_attention(q, leaf, landmarks), plain)
    assert len(calls) == 2  # nothing is recorded here
    with torch.autocast("cpu"):
        assert soft_attention(q, v, landmarks).dtype == torch.bfloat16
    mapped = torch.func.vmap(lambda x: soft_attention(q, x, landmarks))(v[None])
    torch.testing.assert_close(mapped[0], plain, rtol=1e-4, atol=1e-4)
    _, slope = torch.func.jvp(lambda x: soft_attention(q, x, landmarks), (v,), (v,))
    torch.testing.assert_close(slope, plain, rtol=1e-4, atol=1e-4)  # linear in v
    with torch.autograd.forward_ad.dual_level():
        dual = soft_attention(q, torch.autograd.forward_ad.make_dual(v, 2 * v), landmarks)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, 2 * plain, rtol=1e-4, atol=1e-4)
    later = torch.complex(torch.zeros_like(v), -v).conj().imag
    assert later.is_neg()
    assert torch.equal(soft_attention(q, later, landmarks), plain)
    assert len(calls) == 7


@compiled
@pytest.mark.parametrize(
    "wrong",
    [
        {"ridge": True},
        {"ridge": -1.0},
        {"tol": "1"},
        {"tol": 2.0},
        {"is_causal": 1},
        {"is_causal": True},
        {"steps": 20.0},
        {"inverse": "certain"},
        {"normalization": 0},
        {"gradient": None},
        {"published_alpha": 1},
        {"k": 0},
        {"key_padding_mask": 0},
    ],
    ids=str,
)
def test_bad_arguments_are_refused_as_before(wrong):
    given = arguments()
    for _ in range(2):
        soft_attention(*given)
        soft_attention(*given, ridge=1.0)
    with pytest.raises(errors.SoftlinalgError):
        soft_attention(*given, **wrong)


@compiled
def test_a_thread_keeps_few_plans_and_threads_do_not_share_them():
    given = arguments()
    expected = soft_attention(*given)
    for n in range(128, 128 + 2 * repeated_attention._MOST):
        soft_attention(*arguments(n=n))
        assert len(repeated_attention._held.plans) <= repeated_attention._MOST
    found = []

    def work():
        assert not hasattr(repeated_attention._held, "plans")
        found.extend(soft_attention(*given) for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 80
    assert all(torch.equal(out, expected) for out in found)


@compiled
def test_plans_are_of_no_use_without_their_code(calls, monkeypatch):
    given = arguments()
    with_code = [soft_attention(*given) for _ in range(2)][1]
    monkeypatch.setattr(cpu_kernels, "load", lambda: None)
    torch.testing.assert_close(soft_attention(*given), with_code, rtol=1e-4, atol=1e-4)
    assert len(calls) == 2
