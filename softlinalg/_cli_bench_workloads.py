"""What `softlinalg bench` times: workloads, the contestants of each, and the floor below which none can come.

The one place where these are made; `tests/benchmarks/` takes them from here. A floor counts operations at rates that are measured
in the same run (`Rates`): products at the speed of large matrix products in the type of the data, exponentials at that of PyTorch,
bytes at that of a copy.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import softlinalg
from softlinalg import _kernel_products

__all__ = ["Rates", "Workload", "attention_contestants", "kernel_matrices", "naive_attention", "workloads"]

OURS = "softlinalg"
RIDGE = 0.01
HEADS, WIDTH, LANDMARKS = 2, 32, 49
Contestants = dict[str, Callable[[], Any]]


class Workload(NamedTuple):
    """One thing to do, and who does it."""

    group: str
    name: str
    make: Callable[[], Contestants]
    """Builds the contestants, `OURS` among them, with their data."""
    floor: Callable[[Rates], float] | None = None
    """Seconds that the machine needs at least."""
    smoke: bool = False
    """Small enough for each run of the tests."""


class Rates(NamedTuple):
    """Measured speeds of this machine with the threads of this run."""

    flops: dict[str, float]
    """Of large matrix products, by data type, per second."""
    exponentials: float
    """float32, per second."""
    bytes: float
    """Copied, per second: read and written."""

    @classmethod
    def measure(cls, repeats: int = 5) -> Rates:
        """Best of some repeats, as a floor asks for."""
        flops = {}
        for dtype in (torch.float32, torch.float64):
            a = torch.ones((512, 512), dtype=dtype)
            out = torch.empty_like(a)
            flops[str(dtype).removeprefix("torch.")] = 2 * 512**3 / _best(partial(torch.matmul, a, a, out=out), repeats)
        block, source = torch.zeros(2**17), torch.zeros(2**23)
        target = torch.empty_like(source)
        exponentials = block.numel() / _best(lambda: block.zero_().exp2_(), repeats)
        return cls(flops, exponentials, 2 * 4 * source.numel() / _best(lambda: target.copy_(source), repeats))


def _best(call: Callable[[], Any], repeats: int) -> float:
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def _peer(module: str, name: str) -> Any:
    """Something from a package that may be missing: None then."""
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return None


# ------------------------------------------------------------------------------------------------------ inverses
def kernel_matrices(batch: int, m: int, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Gaussian kernel matrices with unit diagonal, of points in eight dimensions; float64."""
    x = rng.standard_normal((batch, m, 8)) * 0.5
    square = (x * x).sum(-1)
    distance = np.maximum(square[:, :, None] + square[:, None, :] - 2 * x @ x.swapaxes(-1, -2), 0)
    distance[:, np.arange(m), np.arange(m)] = 0
    a: np.ndarray[Any, Any] = np.exp(-distance / 2)
    a += a.swapaxes(-1, -2).copy()
    a /= 2
    return a


def _inverses(batch: int, m: int, dtype: str) -> Contestants:
    a = torch.tensor(kernel_matrices(batch, m, np.random.default_rng(0)).astype(dtype))
    shifted = a + RIDGE * torch.eye(m, dtype=a.dtype)
    host = shifted.numpy()

    def by_eigh() -> Tensor:
        values, vectors = torch.linalg.eigh(shifted)
        inverse: Tensor = (vectors / values[:, None, :]) @ vectors.mT
        return inverse

    found: Contestants = {
        OURS: lambda: softlinalg.ridge_inverse(a, RIDGE),
        "torch.linalg.inv": lambda: torch.linalg.inv(shifted),
        "torch Cholesky": lambda: torch.cholesky_inverse(torch.linalg.cholesky(shifted)),
        "torch eigh": by_eigh,
        "torch pinv(hermitian)": lambda: torch.linalg.pinv(shifted, hermitian=True),
        "numpy.linalg.inv": lambda: np.linalg.inv(host),
    }
    if m <= 64:
        found["published, 20 steps"] = lambda: softlinalg.newton_pinv(a, ridge=RIDGE)
    return found


# ------------------------------------------------------------------------------------------------------ kernels
def _products(n: int, m: int, adjoint: bool) -> Contestants:
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((rows, 32)).astype(np.float32) for rows in (n, m))
    right = rng.standard_normal((n if adjoint else m, 8)).astype(np.float32)
    kernel = softlinalg.Gaussian(8.0)
    ours = _kernel_products.kernel_matmul_adjoint if adjoint else _kernel_products.kernel_matmul
    found: Contestants = {OURS: lambda: ours(kernel, x, y, right)}
    rbf = _peer("sklearn.metrics.pairwise", "rbf_kernel")
    if rbf is not None:

        def by_sklearn() -> Any:
            c = rbf(x, y, gamma=1 / 128)
            return c.T @ right if adjoint else c @ right

        found["scikit-learn rbf_kernel"] = by_sklearn
    lazy = _peer("pykeops.numpy", "LazyTensor")
    if lazy is not None:

        def by_keops() -> Any:
            c = (-((lazy(x[:, None, :]) - lazy(y[None, :, :])) ** 2).sum(-1) / 128).exp()
            return c.T @ right if adjoint else c @ right

        found["pykeops"] = by_keops
    return found


def _landmarks(n: int, m: int) -> Contestants:
    x = np.random.default_rng(0).standard_normal((n, 16)).astype(np.float32)
    found: Contestants = {OURS: lambda: softlinalg.select_landmarks(x, m, method="kmeans", rng=0)}
    kmeans = _peer("sklearn.cluster", "KMeans")
    if kmeans is not None:
        found["scikit-learn KMeans"] = lambda: kmeans(m, n_init=1, random_state=0).fit(x).cluster_centers_
    return found


def _nystrom(n: int, m: int) -> Contestants:
    from softlinalg.sklearn import NystromFeatures

    x = np.random.default_rng(0).standard_normal((n, 16)).astype(np.float32)
    scale = 4.0
    ours = NystromFeatures(n_components=m, kernel=softlinalg.Gaussian(scale), landmarks="uniform", random_state=0)
    found: Contestants = {OURS: lambda: ours.fit_transform(x)}
    theirs = _peer("sklearn.kernel_approximation", "Nystroem")
    if theirs is not None:
        found["scikit-learn Nystroem"] = lambda: theirs(gamma=1 / (2 * scale**2), n_components=m, random_state=0).fit_transform(x)
    return found


# ------------------------------------------------------------------------------------------------------ attention
def naive_attention(q: Tensor, v: Tensor, landmarks: Tensor) -> Tensor:
    """The published computation written down, without care for speed or rounding."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = (x * x).sum(-1)[..., :, None] + (y * y).sum(-1)[..., None, :] - 2 * x @ y.mT
        return torch.exp(-squared / (2 * q.shape[-1] ** 0.5))

    left, w = kernel(q, landmarks), kernel(landmarks, landmarks)
    p = w + RIDGE * torch.eye(w.shape[-1])
    x = (1.8 / w.sum(-1).amax(-1) ** 2).detach()[..., None, None] * p
    for _ in range(20):
        x = 2 * x - x @ p @ x
    return left @ (x @ (left.mT @ v))


def attention_contestants(q: Tensor, v: Tensor, landmarks: Tensor, *, quadratic: bool = True) -> dict[str, Callable[[], Tensor]]:
    """Functions that give an output for the same tokens; modules of other packages include their linear maps, and say so."""
    from softlinalg.torch import soft_attention

    heads, n, width = q.shape[1], q.shape[2], q.shape[3]
    dim, count = heads * width, landmarks.shape[2]
    found: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: soft_attention(q, v, landmarks),
        "naive formula": lambda: naive_attention(q, v, landmarks),
    }
    if quadratic:
        found["torch SDPA"] = lambda: nn.functional.scaled_dot_product_attention(q, q, v)
    tokens = q.detach().transpose(1, 2).flatten(2).requires_grad_(q.requires_grad)
    made = {
        "nystrom-attention (with maps)": (
            _peer("nystrom_attention", "NystromAttention"),
            {"dim": dim, "dim_head": width, "heads": heads, "num_landmarks": count, "residual": False},
        ),
        "performer-pytorch (with maps)": (_peer("performer_pytorch", "SelfAttention"), {"dim": dim, "heads": heads, "dim_head": width}),
        "linformer (with maps)": (
            _peer("linformer.linformer", "LinformerSelfAttention"),
            {"dim": dim, "seq_len": n, "heads": heads, "dim_head": width, "k": count},
        ),
        "linear-attention-transformer (with maps)": (
            _peer("linear_attention_transformer.linear_attention_transformer", "SelfAttention"),
            {"dim": dim, "heads": heads, "dim_head": width},
        ),
    }
    for name, (layer, options) in made.items():
        if layer is not None:
            try:
                built = layer(**options).eval()
            except (TypeError, AssertionError):  # another release, with other arguments
                continue
            found[name] = partial(built, tokens)
    return found


def _attention(n: int, *, backward: bool, quadratic: bool) -> Contestants:
    torch.manual_seed(0)
    q, v = (torch.randn(1, n, HEADS, WIDTH).transpose(1, 2).requires_grad_(backward) for _ in range(2))
    landmarks = torch.randn(1, HEADS, LANDMARKS, WIDTH).requires_grad_(backward)
    calls = attention_contestants(q, v, landmarks, quadratic=quadratic)
    if not backward:
        return {name: _without_gradients(call) for name, call in calls.items()}
    cotangent = torch.randn(1, HEADS, n, WIDTH)
    return {name: _with_backward(call, [q, v, landmarks], cotangent) for name, call in calls.items()}


def _without_gradients(call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with torch.no_grad():
            return call()

    return run


def _with_backward(call: Callable[[], Tensor], inputs: list[Tensor], cotangent: Tensor) -> Callable[[], Any]:
    def run() -> Any:
        out = call()
        for x in inputs:
            x.grad = None
        return out.backward(cotangent.reshape(out.shape))  # type: ignore[no-untyped-call]

    return run


# ------------------------------------------------------------------------------------------------------ backbones
class _SoftmaxAttention(nn.Module):
    """Takes the place of `LandmarkAttention` between the same linear maps: full softmax attention."""

    def forward(self, q: Tensor, v: Tensor, *_: Any) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, q, v)


def _backbones(side: int, *, training: bool) -> Contestants:
    from softlinalg.torch import SoftAttention, soft_tiny

    torch.manual_seed(0)
    models = {OURS: soft_tiny(), "the same with softmax": soft_tiny()}
    for module in models["the same with softmax"].modules():
        if isinstance(module, SoftAttention):
            module.attn = _SoftmaxAttention()  # type: ignore[assignment]
    images = torch.randn(1, 3, side, side)

    def run(model: nn.Module) -> Callable[[], Any]:
        if not training:
            return _without_gradients(lambda: model(images))

        def step() -> None:
            model(images).sum().backward()
            model.zero_grad(set_to_none=True)

        return step

    return {name: run(model.train(training)) for name, model in models.items()}


# ------------------------------------------------------------------------------------------------------ the list
def _inverse_floor(batch: int, m: int, rates: Rates) -> float:
    """Cholesky and the inverse from it: m^3 operations, in float64 whatever comes in."""
    return batch * m**3 / rates.flops["float64"]


def _product_floor(n: int, m: int, rates: Rates) -> float:
    """Exponents of 32 features, exponentials, and 8 columns."""
    return 2 * n * m * (32 + 8) / rates.flops["float32"] + n * m / rates.exponentials


def _attention_floor(n: int, products: int, rates: Rates) -> float:
    """So many products with the features, and the exponentials once."""
    return HEADS * n * LANDMARKS * (2 * WIDTH * products / rates.flops["float32"] + 1 / rates.exponentials)


def workloads() -> Iterator[Workload]:
    """All of them, the quick ones of each group first."""
    for batch, m in ((256, 49), (256, 64), (64, 196), (16, 256), (4, 1024)):
        for dtype in ("float32", "float64"):
            make, floor = partial(_inverses, batch, m, dtype), partial(_inverse_floor, batch, m)
            yield Workload("inverse", f"{batch} x {m} x {m}, {dtype}", make, floor, smoke=(m, dtype) == (49, "float32"))
    for n in (10_000, 100_000, 1_000_000):
        for adjoint in (True, False):
            name = f"{'C^T V' if adjoint else 'C U'}, n = {n}, m = 512, 8 columns"
            yield Workload("product", name, partial(_products, n, 512, adjoint), partial(_product_floor, n, 512), smoke=n == 10_000)
    yield Workload("landmarks", "k-means, n = 20000, 256 landmarks", partial(_landmarks, 20_000, 256))
    for n in (2_000, 20_000):
        yield Workload("nystrom", f"fit and transform, n = {n}, rank 256", partial(_nystrom, n, 256), smoke=n == 2_000)
    for n in (784, 3_136, 12_544, 50_176, 262_144):
        for backward in (False, True):
            name = f"{'forward and backward' if backward else 'forward'}, {n} tokens"
            # Exponents, moment and output; backward six products more.
            make, floor = (
                partial(_attention, n, backward=backward, quadratic=n <= 12_544),
                partial(_attention_floor, n, 9 if backward else 3),
            )
            yield Workload("attention", name, make, floor, smoke=n == 3_136)
    for side in (224, 448):
        for training in (False, True):
            name = f"soft_tiny at {side}, {'training step' if training else 'forward'}"
            yield Workload("backbone", name, partial(_backbones, side, training=training))
