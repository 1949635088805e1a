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
        long = soft_attention(q, v, landmarks, k=k, ridge=ridge, tol=1e-3 + seed * 1e-9 if dtype == torch.float32 else 1e-6 + seed * 1e-9)
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
@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
    n=st.integers(128, 300),
    m=st.integers(1, 30),
    e=st.sampled_from([16, 32]),
    double=st.booleans(),
    turned=st.booleans(),
    threads=st.sampled_from([1, 2]),
    needed=st.sampled_from([(True, True, True), (True, False, False), (False, True, False), (False, False, True)]),
)
def test_gradients_of_the_second_call_are_those_of_the_long_way(batch, heads, n, m, e, double, turned, threads, needed):
    repeated_attention._held.__dict__.clear()
    before, dtype = torch.get_num_threads(), torch.float64 if double else torch.float32
    torch.set_num_threads(threads)
    try:
        for seed in (0, 10):
            given = arguments(seed, batch=batch, heads=heads, n=n, m=m, e=e, dtype=dtype, turned=turned)
            given = [x.requires_grad_(wants) for x, wants in zip(given, needed, strict=True)]
            wanted = [x for x in given if x.requires_grad]
            grad = tokens(batch, heads, n, e, seed=seed + 4, dtype=dtype, turned=not turned)
            long = soft_attention(*given, gradient="exact", tol=0.5 - seed * 1e-9)
            quick = soft_attention(*given)
            assert torch.equal(long, quick)
            expected, found = (torch.autograd.grad(out, wanted, grad) for out in (long, quick))
            for ours, theirs, x in zip(found, expected, wanted, strict=True):
                assert ours.dtype == x.dtype
                assert torch.equal(ours, theirs)
        assert any(plan.recorded for plan in repeated_attention._held.plans.values())
    finally:
        torch.set_num_threads(before)


@compiled
def test_gradients_of_the_short_way_are_those_of_the_formula(calls):
    given = [x.requires_grad_() for x in arguments(heads=1, n=130, m=5, d=4, e=4, dtype=torch.float64)]
    soft_attention(*given)
    assert len(calls) == 1
    assert torch.autograd.gradcheck(soft_attention, given, fast_mode=True)
    assert len(calls) == 1
    assert torch.autograd.gradgradcheck(soft_attention, given, fast_mode=True)
    assert len(calls) > 1  # the second derivative is that of the long way
    out = soft_attention(*given)
    one = torch.autograd.grad(out.sum(), given, retain_graph=True)  # a gradient that repeats one number
    again = torch.autograd.grad(out, given, torch.ones_like(out), retain_graph=True)
    both = torch.autograd.grad(out, given, torch.stack([torch.ones_like(out), 2 * torch.ones_like(out)]), is_grads_batched=True)
    for first, second, batched in zip(one, again, both, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(batched, torch.stack([first, 2 * first]), rtol=1e-9, atol=1e-9)


@compiled
def test_what_hooks_of_autograd_bring_back_in_another_order_is_read_right():
    given = [x.requires_grad_() for x in arguments()]
    for _ in range(2):
        expected = torch.autograd.grad(soft_attention(*given).square().sum(), given)

    def turned(x):
        return x if x.ndim < 3 else x.mT.contiguous().mT

    with torch.autograd.graph.saved_tensors_hooks(lambda x: x.clone(), turned):
        out = soft_attention(*given)
    found = torch.autograd.grad(out.square().sum(), given)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@compiled
def test_graphs_of_one_plan_do_not_disturb_one_another():
    sets = [[x.requires_grad_() for x in arguments(seed, n=300)] for seed in (0, 10, 20)]
    alone = []
    for leaves in sets:
        repeated_attention._held.__dict__.clear()
        alone.append(torch.autograd.grad(soft_attention(*leaves).square().sum(), leaves))
    soft_attention(*sets[0])
    losses = [soft_attention(*leaves).square().sum() for leaves in sets]
    found: dict[int, object] = {}

    def pull(i):
        found[i] = torch.autograd.grad(losses[i], sets[i])

    workers = [threading.Thread(target=pull, args=(i,)) for i in (2, 0, 1)]
    for worker in workers:
        worker.start()
    for _ in range(10):  # beside them, in the memory of the plan
        soft_attention(*sets[0])
    for worker in workers:
        worker.join()
    for i, expected in enumerate(alone):
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(found[i], expected, strict=True))


@compiled
def test_training_goes_the_short_way_but_with_keys_of_their_own(calls):
    q, v, landmarks = (x.requires_grad_() for x in arguments())
    for _ in range(3):
        soft_attention(q, v, landmarks).sum().backward()
    assert len(calls) == 1
    assert float(landmarks.grad.abs().max()) > 0
    with torch.no_grad():
        for _ in range(2):
            soft_attention(q, v, landmarks)
    assert len(calls) == 2  # a plan of its own
    for _ in range(2):
        soft_attention(q, v, landmarks, k=q).sum().backward()
    assert len(calls) == 4


@compiled
def test_what_is_mapped_or_converted_goes_the_long_way(calls):
    q, v, landmarks = arguments()
    plain = [soft_attention(q, v, landmarks) for _ in range(2)][1]
    assert len(calls) == 1
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
    assert len(calls) == 6


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
    for n in range(128, 128 + 8 * repeated_attention._MOST):
        soft_attention(*arguments(n=n))
        assert not repeated_attention._held.plans  # what never comes again gets none
        assert len(repeated_attention._held.seen) <= 4 * repeated_attention._MOST
    for n in range(128, 128 + 2 * repeated_attention._MOST):
        for _ in range(2):
            soft_attention(*arguments(n=n))
        assert 0 < len(repeated_attention._held.plans) <= repeated_attention._MOST
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
