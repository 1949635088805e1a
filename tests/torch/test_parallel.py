"""A sequence over two processes gives the numbers, and the gradients, of one process."""

from __future__ import annotations

import functools
import os
import re
import socket
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402

from softlinalg.errors import ParameterError, ShapeError  # noqa: E402
from softlinalg.torch import soft_attention  # noqa: E402
from softlinalg.torch.parallel import sequence_parallel_attention  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "parallel.md"
PLACES = (slice(0, 13), slice(13, 20))
"""Tokens of each rank: not as many on both."""


def tokens():
    generator = torch.Generator().manual_seed(0)
    q, v, weight = (torch.randn(2, 2, 20, 4, dtype=torch.float64, generator=generator) for _ in range(3))
    hidden = torch.zeros(2, 20, dtype=torch.bool)
    hidden[1, 9:15] = True
    return q, v, weight, hidden


def chosen(q):
    """Landmarks of a rank: every second of its first six tokens."""
    return q[:, :, 0:6:2]


_kept: list = []
"""What a rank does not free. PyTorch 2.13's group of gloo can wait for ever where it is freed by the interpreter together with
DistributedDataParallel: its thread then waits for the interpreter's lock, and the interpreter for the thread."""


def follow_the_page(rank, folder, port):
    """The script of the page, as torchrun starts it; what it has asserted is written down."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    space: dict = {}
    _kept.append(space)
    try:
        for block in blocks:
            exec(compile(block, PAGE.name, "exec"), space)  # the examples of the page
    finally:
        dist.destroy_process_group()
    Path(folder, f"page{rank}").write_text(str(sum(block.count("assert ") for block in blocks)))


def both_ranks(rank, folder, port):
    torch.set_num_threads(1)
    follow_the_page(rank, folder, port)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        q, v, weight, hidden = tokens()
        place = PLACES[rank]
        for name, checkpointed in (("plain", False), ("checkpointed", True)):
            own_q, own_v = q[:, :, place].clone().requires_grad_(), v[:, :, place].clone().requires_grad_()

            def attend(a, b, mask=hidden[:, place]):
                return sequence_parallel_attention(a, b, chosen(a), key_padding_mask=mask)

            run = functools.partial(torch.utils.checkpoint.checkpoint, attend, use_reentrant=False) if checkpointed else attend
            out = run(own_q, own_v)
            (out * weight[:, :, place]).sum().backward()
            torch.save({"out": out.detach(), "q": own_q.grad, "v": own_v.grad}, f"{folder}/{name}{rank}.pt")
        own_q, own_v = own_q.detach().requires_grad_(), own_v.detach().requires_grad_()
        (slope,) = torch.autograd.grad((attend(own_q, own_v) * weight[:, :, place]).sum(), own_q, create_graph=True)
        slope.square().sum().backward()
        torch.save({"q": own_q.grad, "v": own_v.grad}, f"{folder}/second{rank}.pt")
        # A layer under DistributedDataParallel: the mean of the gradients is that of the whole batch.
        torch.manual_seed(0)
        from softlinalg.torch import SoftAttention

        layer = SoftAttention(8, 2, landmarks=4, grid_dims=1).double()
        wrapped = torch.nn.parallel.DistributedDataParallel(layer)
        _kept.append(wrapped)
        x = torch.randn(4, 10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        wrapped(x[2 * rank : 2 * rank + 2]).square().mean().backward()
        torch.save([p.grad for p in layer.parameters()], f"{folder}/ddp{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
    os._exit(0)  # without freeing anything, see `_kept`


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(both_ranks, (str(folder), port), nprocs=2)
    assert [Path(folder, f"page{rank}").read_text() for rank in range(2)] == ["5", "5"], "the page was followed to its end"
    return lambda name: [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", ["plain", "checkpointed"])
def test_two_ranks_give_the_output_and_gradients_of_one_process(found, name):
    q, v, weight, hidden = tokens()
    q.requires_grad_(), v.requires_grad_()
    landmarks = torch.cat([chosen(q[:, :, place]) for place in PLACES], dim=2)
    # The landmarks are as they are, of hidden tokens too; the ranks hide what they hide after choosing.
    out = soft_attention(q, v, landmarks, key_padding_mask=hidden)
    (out * weight).sum().backward()
    parts = found(name)
    for key, expected in (("out", out.detach()), ("q", q.grad), ("v", v.grad)):
        torch.testing.assert_close(torch.cat([part[key] for part in parts], dim=2), expected, atol=1e-9, rtol=1e-9)


def test_two_ranks_give_the_second_derivatives_of_one_process(found):
    q, v, weight, hidden = tokens()
    q.requires_grad_(), v.requires_grad_()
    landmarks = torch.cat([chosen(q[:, :, place]) for place in PLACES], dim=2)
    (slope,) = torch.autograd.grad((soft_attention(q, v, landmarks, key_padding_mask=hidden) * weight).sum(), q, create_graph=True)
    slope.square().sum().backward()
    for key, expected in (("q", q.grad), ("v", v.grad)):
        torch.testing.assert_close(torch.cat([part[key] for part in found("second")], dim=2), expected, atol=1e-8, rtol=1e-8)


def test_data_parallel_gradients_are_those_of_the_whole_batch(found):
    from softlinalg.torch import SoftAttention

    torch.manual_seed(0)
    layer = SoftAttention(8, 2, landmarks=4, grid_dims=1).double()
    x = torch.randn(4, 10, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    layer(x).square().mean().backward()
    for grads in found("ddp"):
        for grad, parameter in zip(grads, layer.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad, atol=1e-10, rtol=1e-9)


def test_without_a_process_group_it_is_refused():
    q, v, _, _ = tokens()
    with pytest.raises(ParameterError, match="init_process_group"):
        sequence_parallel_attention(q, v, chosen(q))


def test_shapes_are_looked_at_before_anything_is_sent(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    q, v, _, _ = tokens()
    for wrong in ((q, v[:, :, :-1], chosen(q)), (q[0], v[0], chosen(q)[0])):
        with pytest.raises(ShapeError, match=r"q and v must be \(batch, heads, n, width\), landmarks too; got"):
            sequence_parallel_attention(*wrong)
    for landmarks in (chosen(q)[..., :-1], chosen(q)[:, :, :0]):
        with pytest.raises(ShapeError, match=r"landmarks must be \(batch, heads, m >= 1, head_dim\) as q; got"):
            sequence_parallel_attention(q, v, landmarks)
