"""The compiled kernels of attention: the core's results, their derivatives, and what happens where they cannot be."""

from __future__ import annotations

import logging
import mmap
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from softlinalg.torch import cpu_kernels, soft_attention

COMPILER = next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "clang++", "c++"))), None)
compiled = pytest.mark.skipif(
    COMPILER is None or os.environ.get("SOFTLINALG_COMPILED") == "0", reason="no C++ compiler here, or turned off"
)


def tensors(
    dtype: torch.dtype, *, b: int = 2, h: int = 3, n: int = 201, keys: int | None = None, d: int = 16, e: int = 32, m: int = 11
) -> list[Tensor]:
    """q, v, landmarks (and k) as views of (batch, tokens, heads, width)."""
    generator = torch.Generator().manual_seed(n + m)

    def draw(rows: int, width: int) -> Tensor:
        return torch.randn((b, rows, h, width), generator=generator, dtype=dtype).transpose(1, 2).requires_grad_()

    made = [draw(n, d), draw(n if keys is None else keys, e), draw(m, d)]
    return made if keys is None else [*made, draw(keys, d)]


def outcome(inputs: list[Tensor]) -> list[Tensor]:
    """The output without and with a gradient, and the gradients."""
    q, v, landmarks, *k = inputs
    with torch.no_grad():
        alone = soft_attention(q, v, landmarks, k=k[0] if k else None)
    out = soft_attention(q, v, landmarks, k=k[0] if k else None)
    weights = torch.cos(torch.arange(out.numel(), dtype=out.dtype)).reshape(out.shape)
    return [alone, out.detach(), *torch.autograd.grad(out, inputs, weights)]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Turns the compiled code off for the rest of a test."""
    return lambda: monkeypatch.setattr(cpu_kernels, "load", lambda: None)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the compiled code was called for."""
    cpu_kernels.load()  # whose check of itself calls them too
    calls: list[str] = []
    for name in ("attend", "attend_vjp"):
        real = getattr(cpu_kernels, name)

        def spy(*args: object, name: str = name, real: Callable[..., object] = real, **settings: object) -> object:
            calls.append(name)
            return real(*args, **settings)

        monkeypatch.setattr(cpu_kernels, name, spy)
    return calls


@pytest.fixture
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As many threads as asked for, also for little work."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(cpu_kernels, "_ENTRIES_PER_THREAD", 100)
    yield
    torch.set_num_threads(before)


@compiled
def test_a_compiler_gives_kernels() -> None:
    assert cpu_kernels.load() is not None, "see the log of softlinalg.torch.cpu_kernels"


@compiled
@pytest.mark.parametrize("threads", [1, 2, 5], indirect=True)
@pytest.mark.parametrize("keys", [None, 150])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_results_and_gradients_are_those_of_the_core(
    dtype: torch.dtype, keys: int | None, threads: None, used: list[str], uncompiled: Callable[[], None]
) -> None:
    inputs = tensors(dtype, keys=keys)
    ours = outcome(inputs)
    assert used == ["attend", "attend", "attend_vjp"]
    uncompiled()
    for found, expected in zip(ours, outcome(inputs), strict=True):
        # Sums of 200 products, of tokens and of landmarks, against an inverse whose condition is below 1e3.
        torch.testing.assert_close(found, expected, rtol=0, atol=200 * torch.finfo(dtype).eps * float(expected.abs().max()))


@compiled
@pytest.mark.parametrize("threads", [3], indirect=True)
@pytest.mark.parametrize("keys", [None, 150])
def test_threads_of_its_own_give_the_same_bits_as_those_of_pytorch(
    keys: int | None, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = cpu_kernels.load()
    assert kernels is not None
    if kernels.openmp is None:
        pytest.skip("this PyTorch has no OpenMP library of GNU's: its own threads serve always")
    inputs = tensors(torch.float32, keys=keys)
    expected = outcome(inputs)
    monkeypatch.setattr(cpu_kernels, "load", lambda: kernels._replace(openmp=None))
    started: list[object] = []
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    assert all(map(torch.equal, outcome(inputs), expected))
    assert started


@compiled
@pytest.mark.parametrize(("n", "d", "e", "m"), [(128, 64, 128, 1), (1000, 32, 16, 49), (769, 128, 32, 240), (130, 16, 16, 6)])
def test_every_shape_is_computed_whole(n: int, d: int, e: int, m: int, used: list[str], uncompiled: Callable[[], None]) -> None:
    inputs = tensors(torch.float32, b=1, h=2, n=n, d=d, e=e, m=m)
    ours = outcome(inputs)
    assert used
    uncompiled()
    for found, expected in zip(ours, outcome(inputs), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * float(expected.abs().max()))


@compiled
def test_derivatives_are_right_twice(used: list[str]) -> None:
    q, v, landmarks = tensors(torch.float64, b=1, h=1, n=129, d=16, e=16, m=3)
    move = torch.randn(3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    # Along one direction: 129 tokens have too many coordinates to try each.
    def along(s: Tensor, t: Tensor, u: Tensor) -> Tensor:
        return soft_attention(q + s * move[0] * v, v + t * q, landmarks + u * q[:, :, :3]).sum(2)[..., :3]

    steps = tuple(torch.tensor(0.1 * i, dtype=torch.float64, requires_grad=True) for i in (1, 2, 3))
    assert torch.autograd.gradcheck(along, steps)
    assert "attend_vjp" in used
    assert torch.autograd.gradgradcheck(along, steps)


@compiled
def test_points_far_apart_give_zero_and_nan_stays_in_its_head(used: list[str]) -> None:
    q, v, landmarks = (x.detach().clone() for x in tensors(torch.float32))
    q[0, 0, 5] = 1e4
    v[1, 1, 7, 3] = float("nan")
    out = soft_attention(q, v, landmarks)
    assert used == ["attend"]
    assert (out[0, 0, 5] == 0).all()
    gone = out.isnan().any(-1).any(-1)
    assert gone.tolist() == [[False, False, False], [False, True, False]]
    q[0, 2, 0, 0] = float("nan")
    assert soft_attention(q, v, landmarks).isnan().any(-1).any(-1).tolist() == [[False, False, True], [False, True, False]]


@compiled
def test_what_it_does_not_serve_goes_the_other_way(used: list[str]) -> None:
    q, v, landmarks = (x.detach() for x in tensors(torch.float32))
    soft_attention(q, v, landmarks, key_padding_mask=torch.zeros(2, 201, dtype=torch.bool))
    soft_attention(q.bfloat16(), v.bfloat16(), landmarks.bfloat16())
    soft_attention(q[:, :, :20], v[:, :, :20], landmarks)
    soft_attention(q[..., :15], v, landmarks[..., :15])
    soft_attention(q[..., ::2], v, landmarks[..., ::2])
    torch.func.vmap(soft_attention)(q[None], v[None], landmarks[None])
    assert not used


@compiled
def test_features_are_not_kept_where_no_gradient_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    q, v, landmarks = tensors(torch.float32, h=4, n=400)
    kept = []
    real = cpu_kernels.attend
    monkeypatch.setattr(cpu_kernels, "_held", threading.local())
    monkeypatch.setattr(cpu_kernels, "attend", lambda *args, **settings: kept.append(real(*args, **settings)) or kept[-1])
    with torch.no_grad():
        soft_attention(q, v, landmarks)
    soft_attention(q, v, landmarks)
    assert kept[1].features.shape[0] == 8
    assert kept[0].features.numel() == kept[1].features[0].numel()


@compiled
@pytest.mark.parametrize("crosses", [False, True])
def test_memory_of_features_serves_all_calls_of_a_thread(crosses: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "_held", threading.local())
    q, v, landmarks = (x.detach() for x in tensors(torch.float32, h=4, n=400))
    k = q.flip(2).contiguous() if crosses else None
    expected = soft_attention(q, v, landmarks, k=k)
    held = dict(cpu_kernels._held.__dict__)
    assert len(held) == 1 + crosses
    for memory in held.values():
        memory.fill_(float("nan"))
    half = q[:, :, :200], v[:, :, :200]
    soft_attention(*half, landmarks, k=None if k is None else k[:, :, :200])  # of another shape in between
    assert torch.equal(soft_attention(q, v, landmarks, k=k), expected)
    assert all(cpu_kernels._held.__dict__[key] is memory for key, memory in held.items())
    # Too large, it is given back.
    monkeypatch.setattr(cpu_kernels, "_MOST_HELD", 1000)
    monkeypatch.setattr(cpu_kernels, "_held", threading.local())
    assert torch.equal(soft_attention(q, v, landmarks, k=k), expected)
    assert not cpu_kernels._held.__dict__


@compiled
@pytest.mark.parametrize("answer", [None, 0, -1], ids=["not Linux", "given", "refused"])
def test_large_pages_are_asked_for_within_the_memory_of_large_results(answer: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tensors(torch.float32, h=4, n=400)
    expected = outcome(given)
    asked: list[tuple[int, int, int]] = []

    def advise(*arguments: int) -> int | None:
        asked.append(arguments)
        return answer

    monkeypatch.setattr(cpu_kernels, "_LARGE", 30_000)
    monkeypatch.setattr(cpu_kernels, "_madvise", lambda: None if answer is None else advise)
    assert all(torch.equal(a, b) for a, b in zip(outcome(given), expected, strict=True))
    if answer is None:
        return
    assert len(asked) >= 4  # two outputs, features, gradients of queries and values
    assert all(start % mmap.PAGESIZE == 0 and length > 0 and kind == 14 for start, length, kind in asked)
    memory = torch.empty(100_000, dtype=torch.float32)
    asked.clear()
    assert cpu_kernels.in_large_pages(memory) is memory
    ((start, length, _),) = asked
    assert memory.data_ptr() <= start
    assert start + length == memory.data_ptr() + 400_000


@compiled
@pytest.mark.parametrize(("h", "n"), [(4, 400), (1, 20_000)], ids=["by heads", "by rows"])
def test_memory_is_on_the_cpu_whatever_the_default_device(h: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "_held", threading.local())
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    given = tensors(torch.float32, b=1, h=h, n=n, m=30)
    expected = outcome(given)
    monkeypatch.setattr(cpu_kernels, "_held", threading.local())
    q, v, landmarks = given
    weights = torch.cos(torch.arange(q.shape[2] * h * 32, dtype=torch.float32)).reshape(1, h, n, 32)
    with torch.device("meta"):  # the address of such a tensor is null
        with torch.no_grad():
            alone = soft_attention(q, v, landmarks)
        out = soft_attention(q, v, landmarks)
        found = [alone, out.detach(), *torch.autograd.grad(out, given, weights)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@compiled
def test_features_kept_for_a_gradient_are_not_in_the_memory_of_other_calls() -> None:
    q, v, landmarks = tensors(torch.float32, h=4, n=400)
    loss = soft_attention(q, v, landmarks).square().sum()
    at_once = torch.autograd.grad(loss, (q, v, landmarks), retain_graph=True)
    with torch.no_grad():
        soft_attention(q + 1, v, landmarks)
    later = torch.autograd.grad(loss, (q, v, landmarks))
    assert all(torch.equal(a, b) for a, b in zip(at_once, later, strict=True))


# -------------------------------------------------------------------------------------- where there is no compiler
def test_without_a_compiler_it_says_so_once_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    q, v, landmarks = (x.detach() for x in tensors(torch.float32))
    expected = soft_attention(q, v, landmarks)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "false")  # a program that fails, whatever it is asked
    cpu_kernels.load.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="softlinalg.torch.cpu_kernels"):
            found = [soft_attention(q, v, landmarks) for _ in range(2)]
    finally:
        cpu_kernels.load.cache_clear()
    assert [record.message[:36] for record in caplog.records] == ["compiled attention is not available,"]
    for out in found:
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_the_environment_turns_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTLINALG_COMPILED", "0")
    assert cpu_kernels.load.__wrapped__() is None


@compiled
def test_compiled_code_with_other_results_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = cpu_kernels.load()
    assert kernels is not None
    real = cpu_kernels.attend

    def wrong(*args: object, **settings: object) -> object:
        made = real(*args, **settings)  # type: ignore[arg-type]
        return made._replace(out=made.out * 1.001)

    monkeypatch.setattr(cpu_kernels, "attend", wrong)
    with pytest.raises(RuntimeError, match="other results"):
        cpu_kernels._check(kernels)
