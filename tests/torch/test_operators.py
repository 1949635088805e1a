"""Attention as an operator of compiled graphs: the values, gradients, types and errors of eager code, forward and backward."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from softlinalg.errors import ConvergenceWarning  # noqa: E402
from softlinalg.torch import cpu_kernels, operators, soft_attention  # noqa: E402


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def arguments(dtype=torch.float32, *, n=20, keys=None, groups=2, batch=2, batch_of_landmarks=None, d=8, in_order_of_tokens=True):
    """q, v, landmarks and perhaps k that record gradients: leaves, the larger ones in the order in memory of what a layer gives."""

    def rows(n, heads, seed):
        x = drawn(batch, n, heads, d, seed=seed, dtype=torch.float64).to(dtype)
        return x.transpose(1, 2) if in_order_of_tokens else x.transpose(1, 2).contiguous()

    found = [
        rows(n, 2, 1),
        rows(n if keys is None else keys, groups, 2),
        drawn(batch_of_landmarks or batch, groups, 5, d, seed=3).to(dtype),
    ]
    if keys is not None:
        found.append(rows(keys, groups, 4))
    return [x.detach().requires_grad_() for x in found]


def both(function, given, grad_seed=9):
    """The value of a function of recorded tensors, and their gradients."""
    out = function(*given)
    return out, torch.autograd.grad(out, given, drawn(*out.shape, seed=grad_seed).to(out.dtype))


CASES = {
    "self-attention": ({}, {}),
    "heads before tokens in memory": ({"in_order_of_tokens": False}, {}),
    "keys of their own, one group": ({"keys": 11, "groups": 1, "batch_of_landmarks": 1}, {}),
    "symmetric, hidden keys": ({}, {"normalization": "symmetric", "key_padding_mask": torch.arange(20).expand(2, 20) > 14}),
    "as published": ({"dtype": torch.float64}, {"inverse": "published", "steps": 6, "gradient": "published"}),
    "SOFT++": ({}, {"inverse": "published", "normalization": "published", "published_alpha": "batch"}),
    "half": ({"dtype": torch.bfloat16}, {}),
    "without a certificate": ({}, {"inverse": "exact", "ridge": 0.5}),
}


@pytest.mark.parametrize("name", CASES)
def test_a_compiled_graph_has_the_values_and_gradients_of_eager_code(name):
    shapes, settings = CASES[name]

    def attention(q, v, landmarks, k=None):
        return soft_attention(q, v, landmarks, k=k, **settings)

    given = arguments(**shapes)
    value, gradients = both(attention, given)
    compiled_value, compiled_gradients = both(torch.compile(attention, fullgraph=True, backend="aot_eager"), given)
    torch.testing.assert_close(compiled_value, value, rtol=0, atol=0)  # the same code has run
    for one, other in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


KEPT = {
    "self-attention": {},
    "float64": {"dtype": torch.float64},
    "heads before tokens in memory": {"in_order_of_tokens": False},
    "keys of their own": {"keys": 150},
    "many landmarks in all": {"batch": 400},
    "few tokens, which no kernel serves": {"n": 9},
}


@pytest.mark.parametrize("name", KEPT)
def test_features_that_forward_keeps_give_the_gradients_of_eager_code(name):
    given = arguments(**{"n": 200, "d": 16} | KEPT[name])

    def attention(q, v, landmarks, k=None):
        return soft_attention(q, v, landmarks, k=k)

    value, gradients = both(attention, given)
    compiled_value, compiled_gradients = both(torch.compile(attention, fullgraph=True, backend="aot_eager"), given)
    torch.testing.assert_close(compiled_value, value, rtol=0, atol=0)
    eps = torch.finfo(value.dtype).eps
    for one, other in zip(compiled_gradients, gradients, strict=True):  # those of the landmarks are added in a wider type here
        torch.testing.assert_close(one, other, rtol=0, atol=20 * eps * float(other.abs().max()))


@pytest.mark.skipif(cpu_kernels.load() is None, reason="no C++ compiler here, or turned off")
def test_backward_computes_no_second_forward_where_features_were_kept(monkeypatch):
    calls = []
    for name in ("attend", "attend_vjp"):
        real = getattr(cpu_kernels, name)
        monkeypatch.setattr(cpu_kernels, name, lambda *x, name=name, real=real, **y: calls.append(name) or real(*x, **y))
    given = arguments(n=200, d=16)
    both(torch.compile(soft_attention, fullgraph=True, backend="aot_eager"), given)
    assert calls == ["attend", "attend_vjp"]


def test_one_graph_serves_what_kernels_take_and_what_they_do_not(monkeypatch):
    compiled = torch.compile(soft_attention, fullgraph=True, backend="aot_eager")
    given = arguments(n=200, d=16)
    far = [x.detach().requires_grad_() for x in (given[0], given[1], given[2] * 1e4)]  # exponents too large for float32
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for case in (given, far):
        value, gradients = both(soft_attention, case)
        found, compiled_gradients = both(compiled, case)
        torch.testing.assert_close(found, value, rtol=0, atol=0)
        for one, other in zip(compiled_gradients, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))
    assert graphs["unique_graphs"] == before + 1
    monkeypatch.setattr(cpu_kernels, "load", lambda: None)  # the same graph where there is no compiler
    value, gradients = both(soft_attention, given)
    found, compiled_gradients = both(compiled, given)
    torch.testing.assert_close(found, value, rtol=0, atol=0)
    for one, other in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_graph_holds_one_operator_and_backward_keeps_nothing_but_the_arguments():
    graphs = []

    def see(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return graph.forward

    q, v, landmarks = arguments()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        torch.compile(soft_attention, fullgraph=True, backend=see)(q, v, landmarks)
    assert len(graphs) == 1
    assert [name for name in graphs[0] if "softlinalg" in name] == ["softlinalg.soft_attention.default"]
    assert not [name for name in graphs[0] if "exp" in name or "matmul" in name]
    assert kept == [q.shape, v.shape, landmarks.shape]


@pytest.mark.parametrize("needed", [(0,), (1,), (2,), (0, 2)])
def test_only_gradients_that_are_needed_are_computed(needed):
    given = [x.requires_grad_(i in needed) for i, x in enumerate(arguments())]
    wanted = [given[i] for i in needed]
    expected = torch.autograd.grad(soft_attention(*given).square().sum(), wanted)
    found = torch.autograd.grad(torch.compile(soft_attention, fullgraph=True, backend="aot_eager")(*given).square().sum(), wanted)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("shapes", [{}, {"keys": 11, "groups": 1}])
def test_pytorchs_own_checks_of_operators_find_nothing(shapes):
    q, v, landmarks, *k = arguments(torch.float64, **shapes)
    k = k[0] if k else None
    settings = ("certified", 0.01, 20, None, "matrix", None, "exact")
    torch.library.opcheck(operators._forward, (q, k, v, landmarks, None, torch.float64, *settings))
    plain = [None if x is None else x.detach() for x in (q, k, v, landmarks)]
    needed = [x is not None for x in plain]
    grad = drawn(*q.transpose(1, 2).shape, dtype=torch.float64)
    torch.library.opcheck(operators._backward, (grad, *plain, None, torch.float64, *settings, needed))


def test_pytorchs_own_checks_of_the_operators_that_keep_find_nothing():
    q, v, landmarks = arguments(torch.float64, n=208, d=16)  # a multiple of 16: no memory is left that was never written to
    settings = ("certified", 0.01, 20, None, "matrix", None, "exact")
    torch.library.opcheck(operators._forward_and_kept, (q, None, v, landmarks, None, torch.float64, *settings))
    q, v, landmarks = (x.detach() for x in (q, v, landmarks))
    out, was_kept, *kept = operators._forward_and_kept(q, None, v, landmarks, None, torch.float64, *settings)
    needed = [True, False, True, True]
    torch.library.opcheck(
        operators._backward_from_kept, (torch.ones_like(out), q, None, v, landmarks, None, torch.float64, *settings, needed, was_kept, kept)
    )


@pytest.mark.parametrize("shapes", [{}, {"n": 200, "d": 16}])
def test_autocast_decides_on_the_type_of_the_result_and_not_of_what_is_computed(shapes):
    given = arguments(**shapes)

    def attention(*given):
        with torch.autocast("cpu", torch.bfloat16):
            return soft_attention(*given)

    value, gradients = both(attention, given)
    compiled_value, compiled_gradients = both(torch.compile(attention, fullgraph=True, backend="aot_eager"), given)
    assert compiled_value.dtype == value.dtype == torch.bfloat16
    torch.testing.assert_close(compiled_value, value, rtol=0, atol=0)
    for one, other in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6 * float(other.abs().max()))


def test_what_cannot_be_certified_is_said_in_a_graph_too():
    q, v, landmarks = (x.detach() for x in arguments())
    same = landmarks[:, :, :1].expand_as(landmarks)
    attention = torch.compile(lambda *x: soft_attention(*x, ridge=1e-12), fullgraph=True, backend="aot_eager")
    with pytest.warns(ConvergenceWarning, match="must be certified"):
        soft_attention(q, v, same, ridge=1e-12)
    attention(q, v, landmarks)  # the graph is made of what can be certified
    with pytest.warns(ConvergenceWarning, match="must be certified"):
        attention(q, v, same)


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache.")
def test_mapped_inside_of_a_graph_it_is_traced():
    q, v, landmarks = (x.detach()[None].repeat(2, 1, 1, 1, 1) for x in arguments())

    def attention(*x):
        return torch.func.vmap(lambda *x: soft_attention(*x, inverse="exact"))(*x)

    found = torch.compile(attention, fullgraph=True, backend="eager")(q, v, landmarks)
    torch.testing.assert_close(found, soft_attention(*(x[0] for x in (q, v, landmarks)), inverse="exact").expand_as(found))


@pytest.mark.slow
def test_the_default_compiler_takes_it_and_says_nothing(recwarn):
    def layer(x, landmarks):
        q, v = x.unflatten(-1, (2, 2, 8)).permute(2, 0, 3, 1, 4)  # as a projection gives them
        return soft_attention(q * 2, v, landmarks).transpose(1, 2).flatten(2).tanh()

    given = drawn(2, 20, 32).requires_grad_(), arguments()[2]
    value, gradients = both(layer, given)
    found, compiled_gradients = both(torch.compile(layer, fullgraph=True), given)
    torch.testing.assert_close(found, value)
    for one, other in zip(compiled_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert not [str(w.message) for w in recwarn if "lru_cache" in str(w.message)]
