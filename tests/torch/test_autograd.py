"""Derivatives of the inverses and of the attention: both modes, twice, mapped, compiled and exported."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
from torch._dynamo.testing import CompileCounter  # noqa: E402
from torch.autograd import gradcheck, gradgradcheck  # noqa: E402
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap  # noqa: E402

from softlinalg import errors  # noqa: E402
from softlinalg.torch import landmark_inverse, soft_attention  # noqa: E402

SETTINGS = {
    "certified": {},
    "exact": {"inverse": "exact"},
    "published": {"inverse": "published", "steps": 20},
    "published, not converged": {"inverse": "published", "steps": 6},
    "soft++": {"inverse": "published", "steps": 6, "normalization": "published"},
    "soft++, one start": {"inverse": "published", "steps": 6, "normalization": "published", "published_alpha": "batch"},
    "certified, normalized": {"normalization": "published"},
    "symmetric": {"normalization": "symmetric"},
}
BY_ENTRY = ("certified", "soft++", "symmetric")
"""Settings that are differentiated entry by entry, with one head; those of the others along random directions, which see every entry."""


def along(settings):
    """Whether derivatives are looked at along random directions only."""
    return not any(settings is SETTINGS[name] for name in BY_ENTRY)


every_setting = pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())


def tokens(seed, *, b=1, h=2, n=7, m=4, d=3, e=2, keys=None, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(b, h, n, d), (b, h, keys or n, e), (b, h, m, d)] + ([(b, h, keys, d)] if keys else [])
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def kernel_matrix(seed, m=5, batch=(2,), spread=1.0):
    x = spread * torch.randn(*batch, m, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.exp(-(torch.cdist(x, x) ** 2) / 2)


def symmetric_inverse(settings):
    """The inverse as a function of any matrix: of its symmetric part, made exactly symmetric."""
    return lambda w: landmark_inverse(w.tril() + w.tril(-1).mT, **settings)


# ---------------------------------------------------------------------------------------- numerical derivatives
@every_setting
def test_the_inverse_is_differentiable_twice_in_both_modes(settings):
    w = kernel_matrix(0, m=3).requires_grad_()
    f = symmetric_inverse(settings)
    assert gradcheck(f, w, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, w, check_fwd_over_rev=True, fast_mode=along(settings))


@every_setting
@pytest.mark.parametrize("keys", [None, 4])
def test_attention_is_differentiable_twice_in_both_modes(settings, keys):
    arguments = tokens(1, h=2 if along(settings) else 1, n=5, m=3, d=2, keys=keys)  # each entry moves alone, at the cost of two calls

    def f(q, v, landmarks, k=None):
        return soft_attention(q, v, landmarks, k=k, **settings)

    assert gradcheck(f, arguments, check_forward_ad=True, check_batched_grad=True, fast_mode=along(settings))
    assert gradgradcheck(f, arguments, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("settings", [{}, {"normalization": "symmetric"}], ids=["plain", "symmetric"])
def test_a_gradient_that_is_recorded_is_the_one_that_is_not(settings):
    # Landmarks come from the queries here: their part must not be counted twice.
    q, v, _ = tokens(3)
    found, expected = (
        torch.autograd.grad(soft_attention(q, v, q[:, :, ::2], **settings).sin().sum(), (q, v), create_graph=recorded)
        for recorded in (True, False)
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keys", [None, 5])
def test_attention_with_hidden_keys_is_differentiable(keys):
    arguments = tokens(2, h=1, n=6, m=3, d=2, keys=keys)
    hidden = torch.arange(keys or 6)[None] % 3 == 1

    def f(q, v, landmarks, k=None):
        return soft_attention(q, v, landmarks, k=k, key_padding_mask=hidden)

    assert gradcheck(f, arguments, check_forward_ad=True)
    assert gradgradcheck(f, arguments, fast_mode=True)
    out = f(*arguments)
    gradients = torch.autograd.grad(out.sum(), arguments)
    masked = [1] if keys is None else [1, 3]
    for i in masked:
        assert (gradients[i][:, :, hidden[0]] == 0).all()


def test_gradients_exist_where_landmarks_coincide():
    q, v, landmarks = tokens(3)
    twice = landmarks[:, :, [0, 1, 1, 0]].detach().requires_grad_()
    assert gradcheck(lambda x: soft_attention(q, v, x), twice, check_forward_ad=True)


def test_landmarks_shared_by_heads_and_batch_get_the_sum_of_their_gradients():
    q, v, landmarks = tokens(4, b=2, h=4)
    shared = landmarks[:1, :2].detach().requires_grad_()
    assert gradcheck(lambda x: soft_attention(q, v[:, :2], x), shared, check_forward_ad=True)


def test_only_what_is_asked_for_is_differentiated():
    q, v, landmarks = (x.detach() for x in tokens(5))
    for chosen in range(3):
        arguments = [q, v, landmarks]
        arguments[chosen] = arguments[chosen].clone().requires_grad_()
        out = soft_attention(*arguments)
        (first,) = torch.autograd.grad(out.square().sum(), arguments[chosen], create_graph=True)
        (plain,) = torch.autograd.grad(soft_attention(*arguments).square().sum(), arguments[chosen])
        torch.testing.assert_close(first, plain, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"normalization": "symmetric"}])
def test_many_gradients_at_once_are_those_one_by_one(settings):
    arguments = tokens(17)
    out = soft_attention(*arguments, **settings)
    cotangents = torch.randn(3, *out.shape, generator=torch.Generator().manual_seed(17), dtype=torch.float64)
    one_by_one = [torch.autograd.grad(out, arguments, c, retain_graph=True) for c in cotangents]
    batched = torch.autograd.grad(out, arguments, cotangents, is_grads_batched=True, retain_graph=True)
    mapped = vmap(lambda c: torch.autograd.grad(out, arguments, c, retain_graph=True))(cotangents)
    for i in range(3):
        wanted = torch.stack([gradients[i] for gradients in one_by_one])
        torch.testing.assert_close(batched[i], wanted, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(mapped[i], wanted, rtol=1e-10, atol=1e-11)


# ------------------------------------------------------------------------------------------ the paper's formula
def test_the_published_formula_is_minus_v_g_v():
    w = kernel_matrix(6).requires_grad_()
    x = landmark_inverse(w, inverse="published", steps=6, gradient="published")
    cotangent = torch.randn(x.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    (found,) = torch.autograd.grad(x, w, cotangent)
    torch.testing.assert_close(found, -(x.mT @ cotangent @ x.mT).detach())


def test_the_published_formula_is_the_gradient_only_once_converged():
    cotangent = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    cotangent = cotangent + cotangent.mT

    def both(steps, spread):
        w = kernel_matrix(7, spread=spread).requires_grad_()
        found = [
            torch.autograd.grad(landmark_inverse(w, inverse="published", steps=steps, gradient=name), w, cotangent)[0]
            for name in ("exact", "published")
        ]
        return float((found[0] - found[1]).norm() / found[0].norm())

    assert both(40, 1.0) < 1e-9
    assert both(6, 0.3) > 0.3


def test_the_published_formula_has_no_forward_mode_and_no_other_inverse():
    w = kernel_matrix(8)
    with pytest.raises(errors.ParameterError, match="gradient must be 'exact' in forward mode; got 'published'"):
        jvp(lambda w: landmark_inverse(w, inverse="published", gradient="published"), (w,), (w,))
    with pytest.raises(errors.ParameterError, match="gradient 'published' must go with inverse='published'; got inverse='certified'"):
        landmark_inverse(w, gradient="published")
    with pytest.raises(errors.ParameterError, match="gradient must be 'exact' or 'published'; got 'none'"):
        landmark_inverse(w, gradient="none")


# ------------------------------------------------------------------------------------------------- torch.func
def plain(settings, arguments):
    """Value and gradients without any transform."""
    arguments = [x.detach().clone().requires_grad_() for x in arguments]
    out = soft_attention(*arguments, **settings)
    return out.detach(), torch.autograd.grad(out.square().sum(), arguments)


@every_setting
def test_function_transforms_agree_with_autograd(settings):
    arguments = [x.detach() for x in tokens(9)]
    q, v, landmarks = arguments

    def loss(q, v, landmarks):
        return soft_attention(q, v, landmarks, **settings).square().sum()

    _, wanted = plain(settings, arguments)
    found = grad(loss, argnums=(0, 1, 2))(*arguments)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    direction = torch.ones_like(landmarks)
    _, slope = jvp(lambda x: loss(q, v, x), (landmarks,), (direction,))
    torch.testing.assert_close(slope, (wanted[2] * direction).sum(), rtol=1e-9, atol=1e-10)

    def rows(x):
        return soft_attention(q, v, x, **settings).sum((0, 1, 3))

    torch.testing.assert_close(jacrev(rows)(landmarks), jacfwd(rows)(landmarks), rtol=1e-9, atol=1e-10)
    second = hessian(lambda x: loss(q, v, x))(landmarks).reshape(landmarks.numel(), -1)
    torch.testing.assert_close(second, second.mT, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("settings", [s for s in SETTINGS.values() if "published_alpha" not in s])
def test_mapping_over_samples_is_a_loop_over_them(settings):
    samples = [torch.stack([x.detach(), 0.7 * x.detach(), 1.4 * x.detach()]) for x in tokens(10)]
    found = vmap(lambda q, v, x: soft_attention(q, v, x, **settings))(*samples)
    per_sample = vmap(grad(lambda x, q, v: soft_attention(q, v, x, **settings).square().sum()))(samples[2], samples[0], samples[1])
    for i in range(3):
        value, gradients = plain(settings, [x[i] for x in samples])
        torch.testing.assert_close(found[i], value, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(per_sample[i], gradients[2], rtol=1e-9, atol=1e-9)


def test_mapping_reaches_all_samples_where_one_start_serves_a_batch():
    # Under vmap a batch is one sample: the batch start cannot see the others, and that is what mapping means.
    w = kernel_matrix(11, batch=(3, 2))
    found = vmap(lambda w: landmark_inverse(w, inverse="published", published_alpha="batch", steps=4, ridge=0.0))(w)
    one_by_one = [landmark_inverse(x, inverse="published", published_alpha="batch", steps=4, ridge=0.0) for x in w]
    torch.testing.assert_close(found, torch.stack(one_by_one), rtol=1e-12, atol=1e-12)


def test_ensembles_of_modules_can_be_mapped():
    layer = torch.nn.Linear(3, 3, dtype=torch.float64)
    q, v, landmarks = (x.detach() for x in tokens(12))
    stacked = {name: torch.stack([p, 2 * p]) for name, p in layer.named_parameters()}

    def loss(parameters):
        return soft_attention(functional_call(layer, parameters, (q,)), v, landmarks).square().sum()

    found = vmap(grad(loss))(stacked)
    for i in range(2):
        alone = grad(loss)({name: p[i].detach() for name, p in stacked.items()})
        torch.testing.assert_close(found["weight"][i], alone["weight"], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalization", [None, "symmetric"])
def test_tensors_that_a_transform_does_not_map_are_attended_to_inside_of_it(normalization):
    q, v, landmarks = (x.detach() for x in tokens(140))
    factors = torch.tensor([1.0, -2.0], dtype=q.dtype)
    alone = soft_attention(q, v, landmarks, normalization=normalization)
    mapped = vmap(lambda factor: factor * soft_attention(q, v, landmarks, normalization=normalization))(factors)
    torch.testing.assert_close(mapped, torch.stack([alone, -2 * alone]), rtol=1e-9, atol=1e-9)
    slope = grad(lambda factor: (factor * soft_attention(q, v, landmarks, normalization=normalization)).sum())(factors[0])
    torch.testing.assert_close(slope, alone.sum(), rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------------------------------- compile and export
@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(("inverse", "settings"), [("exact", {}), ("published", {"steps": 3})])
@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a .functools.lru_cache.")
def test_the_inverse_compiles_forward_and_backward(fresh_compiler, inverse, settings):
    """Attention is one operator of a graph (test_operators.py); its inverse alone is traced."""

    def invert(w):
        return landmark_inverse(w, inverse=inverse, **settings)

    w = kernel_matrix(13).requires_grad_()
    found = torch.compile(invert, fullgraph=True, backend="aot_eager")(w)
    value = invert(w)
    torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9)
    (one,), (other,) = (torch.autograd.grad(x.square().sum(), w) for x in (found, value))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.abs().max()))


def test_one_compiled_graph_serves_every_number_of_tokens(fresh_compiler):
    counter = CompileCounter()
    compiled = torch.compile(soft_attention, fullgraph=True, dynamic=True, backend=counter)
    for b, n in ((6, 20), (7, 31), (5, 64)):  # no size equal to another, which the compiler would take for a rule
        q, v, landmarks = (x.detach() for x in tokens(14, b=b, n=n, dtype=torch.float32))
        torch.testing.assert_close(compiled(q, v, landmarks), soft_attention(q, v, landmarks), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


class Attention(torch.nn.Module):
    """Attention as a module, for export."""

    def __init__(self, settings):
        super().__init__()
        self.settings = settings

    def forward(self, q, v, landmarks, hidden):
        return soft_attention(q, v, landmarks, key_padding_mask=hidden, **self.settings)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("certified", marks=pytest.mark.thorough("symmetric is that and a normalization")),
        pytest.param("published", marks=pytest.mark.thorough("soft++ is that and a normalization")),
        "soft++",
        "symmetric",
    ],
)
def test_an_exported_program_takes_any_batch_and_any_number_of_tokens(name):
    module = Attention(SETTINGS[name])

    def arguments(b, n):
        found = [x.detach() for x in tokens(15, b=b, n=n, dtype=torch.float32)]
        return (*found, torch.arange(n).expand(b, n) % 5 == 0)

    batch, count = torch.export.Dim("batch", min=2, max=64), torch.export.Dim("tokens", min=4, max=4096)
    token = {0: batch, 2: count}
    program = torch.export.export(module, arguments(2, 9), dynamic_shapes=(token, token, {0: batch}, {0: batch, 1: count})).module()
    for b, n in ((2, 9), (3, 57), (7, 300)):
        torch.testing.assert_close(program(*arguments(b, n)), module(*arguments(b, n)), rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------- subnormals
def subnormals(x):
    return int(((x != 0) & (x.abs() < torch.finfo(x.dtype).tiny)).sum()) if x.is_floating_point() else 0


class CountSubnormals(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the subnormal numbers in the results of all operations."""

    def __init__(self):
        super().__init__()
        self.found, self.operations = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        views = any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)
        if not views and "empty" not in str(func):  # memory that has not been written to yet holds anything
            for x in out if isinstance(out, tuple | list) else [out]:
                if isinstance(x, torch.Tensor):
                    self.operations += 1
                    self.found += subnormals(x)
        return out


@pytest.mark.parametrize("settings", [{}, {"inverse": "published"}, {"normalization": "symmetric"}])
def test_no_subnormal_number_is_made(settings):
    # Tokens at all distances from the landmarks, up to where the kernel vanishes.
    generator = torch.Generator().manual_seed(16)
    distances = torch.linspace(0, 40, 2000)[:, None]
    directions = torch.nn.functional.normalize(torch.randn(2000, 8, generator=generator), dim=-1)
    q = (distances * directions)[None, None].requires_grad_()
    landmarks = torch.randn(1, 1, 9, 8, generator=generator).requires_grad_()
    v = torch.randn(1, 1, 2000, 4, generator=generator).requires_grad_()
    naive = torch.exp(-(torch.cdist(q, landmarks) ** 2) / (2 * 8**0.5))
    assert subnormals(naive) > 10  # the case would show them
    with CountSubnormals() as counted:
        out = soft_attention(q, v, landmarks, **settings)
        out.backward(torch.ones_like(out) / out.numel())
    assert counted.operations > 50
    assert counted.found == 0
    assert all(subnormals(x.grad) == 0 for x in (q, v, landmarks))
