"""Calls beside each other, under limits of memory, and one after the other: the same results, and nothing left behind."""

from __future__ import annotations

import concurrent.futures
import gc
import hashlib
import os
import random
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from poisons import convert
from public_functions import BY_NAME, FUNCTIONS, decomposition

import softlinalg
import softlinalg.torch as st
from softlinalg import Gaussian

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc of Linux")


def one_of_each(seed: int) -> bytes:
    """A digest of what the main functions return for the data of a seed: everything that is computed, bit for bit."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 3))
    a = rng.normal(size=(3, 8, 5))
    w = softlinalg.gaussian_kernel(x[:12], length_scale=2.0)
    q, v = rng.normal(size=(2, 2, 20, 4)), rng.normal(size=(2, 2, 20, 4))
    d = softlinalg.nystrom(x, Gaussian(1.5), rank=8, rng=seed)
    results = [
        softlinalg.pinv(a),
        softlinalg.pinv(a, method="newton", rtol=0.01, tol=0.5, on_failure="fallback"),
        softlinalg.ridge_inverse(w, 0.01),
        softlinalg.certified_ridge_inverse(w, 0.01).error_bound,
        softlinalg.select_landmarks(x, 6, kernel=Gaussian(1.0), rng=seed),
        softlinalg.soft_attention(q, v, q[:, :, ::4]),
        d.features(),
        d.solve(v[0, 0, :1].repeat(15), 0.1),
        st.soft_attention(torch.tensor(q), torch.tensor(v), torch.tensor(q[:, :, ::4])).numpy(),
        st.clustered_softmax_attention(torch.tensor(q), torch.tensor(q), torch.tensor(v), 5).numpy(),
    ]
    return b"".join(hashlib.blake2b(np.ascontiguousarray(r).tobytes(), digest_size=8).digest() for r in results)


@pytest.fixture
def quiet_ranks() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", softlinalg.errors.SoftlinalgWarning)
        yield


@pytest.mark.slow
def test_eight_threads_give_the_serial_results_bit_for_bit(quiet_ranks: Any) -> None:
    """Every thread computes on its own data and on those of the others, starting together."""
    seeds = list(range(16 if THOROUGH else 4))
    serial = {seed: one_of_each(seed) for seed in seeds}
    start = threading.Barrier(8)

    def work(number: int) -> list[bool]:
        start.wait()
        order = np.random.default_rng(number).permutation(seeds * (12 if THOROUGH else 1))
        with np.errstate(all="raise"):  # per thread: what is quiet inside must not depend on it
            return [one_of_each(int(seed)) == serial[int(seed)] for seed in order]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = [same for part in pool.map(work, range(8)) for same in part]
    assert all(found), f"{found.count(False)} of {len(found)} differ"


def test_threads_share_one_decomposition() -> None:
    x = np.random.default_rng(0).normal(size=(300, 3))
    d = softlinalg.nystrom(x, Gaussian(1.0), rank=20, rng=0, store_features=False, chunk_size=17)
    v = np.random.default_rng(1).normal(size=(300, 8))
    expected, solved = d @ v, d.solve(v, 0.1)

    def work(number: int) -> bool:
        return bool(np.array_equal(d @ v, expected) if number % 2 else np.array_equal(d.solve(v, 0.1), solved))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))


SPAWNED = """
import sys
sys.path.insert(0, sys.argv[1])
import warnings; warnings.simplefilter("ignore")
from threadpoolctl import threadpool_limits
import torch; torch.set_num_threads(1)
with threadpool_limits(1):
    from test_isolation import one_of_each
    print(one_of_each(0).hex())
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_results_of_this_one(quiet_ranks: Any) -> None:
    """Property 66; this one has run other tests before."""
    command = [sys.executable, "-c", SPAWNED, str(Path(__file__).parent)]
    fresh = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert fresh.stdout.strip() == one_of_each(0).hex(), fresh.stderr[-1500:]


def state() -> dict[str, Any]:
    """What a library could change behind one's back."""
    return {
        "errstate": np.geterr(),
        "print": np.get_printoptions()["precision"],
        "filters": list(warnings.filters),
        "showwarning": warnings.showwarning,
        "numpy rng": hashlib.blake2b(np.random.get_state()[1].tobytes()).digest(),  # noqa: NPY002
        "random": hash(random.getstate()),
        "torch rng": torch.get_rng_state().numpy().tobytes(),
        "torch dtype": torch.get_default_dtype(),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch grad": torch.is_grad_enabled(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch precision": torch.get_float32_matmul_precision(),
        "recursion": sys.getrecursionlimit(),
        "directory": Path.cwd(),
        "environment": dict(os.environ),
        "files": {path for path in (file.path for file in psutil.Process().open_files()) if "softlinalg" in path},
        "children": psutil.Process().children(),
    }


MODULES = {
    "torch.SoftAttention",
    "torch.SoftBlock",
    "torch.SoftBackbone",
    "torch.attention_map",
    "torch.load_published_weights",
    "torch.save_weights",
}
"""Modules draw their first weights from PyTorch's global generator, as all modules do."""


@pytest.mark.parametrize("entry", [entry for entry in FUNCTIONS if entry.name not in MODULES], ids=lambda entry: entry.name)
def test_no_call_changes_what_belongs_to_all(entry: Any) -> None:
    arguments = convert(entry, entry.make(np.random.default_rng(0)))
    entry.call(**arguments)  # what is imported late may open and set things once
    before = state()
    entry.call(**arguments)
    after = state()
    assert {key: value for key, value in after.items() if value != before[key]} == {}


# --------------------------------------------------------------------------------------------------- memory
LIMITED = """
import resource, sys
import numpy as np
import softlinalg
from softlinalg import Gaussian, errors
from softlinalg._kernels import kernel_matmul

rng = np.random.default_rng(0)
x, landmarks, v = rng.normal(size=(20_000, 64)), rng.normal(size=(100, 64)), rng.normal(size=(100, 4))
kernel = Gaussian(8.0)
softlinalg.nystrom(x[:300], kernel, rank=5, rng=0) @ np.ones(300)  # imports and thread pools
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
product = kernel_matmul(kernel, x, landmarks, v)
d = softlinalg.nystrom(x, kernel, landmarks=landmarks, store_features=False)
y = d @ np.ones(20_000)
assert product.shape == (20_000, 4) and np.isfinite(y).all()
refused = []
for dense in (
    lambda: kernel(x),
    lambda: softlinalg.gaussian_kernel(x, x.copy(), length_scale=8.0),
    lambda: d.to_dense(memory_budget=10**12),
    lambda: softlinalg.nystrom(x, kernel, rank=2_500, rng=0, landmarks=x[:2_500], store_features=True),
    lambda: softlinalg.pinv(np.broadcast_to(1.0, (20_000, 20_000))),
):
    try:
        dense()
    except errors.ResourceError as error:
        refused.append(error.required_bytes > 300 * 2**20 and "\\n" not in str(error))
    else:
        refused.append(False)
assert np.array_equal(d @ np.ones(20_000), y)
assert np.array_equal(kernel_matmul(kernel, x, landmarks, v), product)
print(all(refused), len(refused), refused)
"""


@LINUX
@pytest.mark.slow
def test_blocks_fit_where_the_matrix_does_not() -> None:
    """300 MiB beside the data: products with a 20,000 x 20,000 matrix (3.2 GB) go through, the matrix itself is refused, and all goes on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=500, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.strip().startswith("True 5"), done.stdout


@LINUX
@pytest.mark.slow
def test_many_calls_do_not_let_memory_grow(quiet_ranks: Any) -> None:
    """Less than 5 MB after the first calls, good ones and bad ones: 8 rounds in CI, 2,000 with HYPOTHESIS_PROFILE=thorough."""
    entries = [entry for entry in FUNCTIONS if entry.name not in MODULES]

    def round_of_calls() -> None:
        for entry in entries:
            arguments = convert(entry, entry.make(np.random.default_rng(0)))
            entry.call(**arguments)
            for name in entry.arrays[:1]:
                with pytest.raises(softlinalg.errors.SoftlinalgError):
                    entry.call(**{**arguments, name: object()})

    for _ in range(4):
        round_of_calls()
    gc.collect()
    before = psutil.Process().memory_info().rss
    for _ in range(2000 if THOROUGH else 8):
        round_of_calls()
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 5e6


# ---------------------------------------------------------------------------------------- subnormal numbers
FLUSHED = """
import numpy as np, torch
import softlinalg, softlinalg.torch as st
assert torch.set_flush_denormal(True)
torch.set_num_threads(1)
rng = np.random.default_rng(0)
a = rng.normal(size=(2, 4, 3))
w = softlinalg.gaussian_kernel(rng.normal(size=(4, 3)))
for e in (-900, -300, 300, 900):  # inside the normal range, also what is computed on the way
    for library in (np.asarray, torch.tensor):
        one, other = (np.asarray(softlinalg.pinv(library(b))) for b in (a, np.ldexp(a, e)))
        assert np.array_equal(other, np.ldexp(one, -e)), ("pinv", e)
        one, other = (np.asarray(softlinalg.ridge_inverse(library(np.ldexp(w, k)), float(np.ldexp(0.125, k)))) for k in (0, e))
        assert np.array_equal(other, np.ldexp(one, -e)), ("ridge_inverse", e)
for kernel in (softlinalg.Gaussian(1.0), softlinalg.Laplacian(1.0), softlinalg.Matern(1.0), softlinalg.Matern(1.0, nu=0.5)):
    for dtype, widest in (("float32", 30.0), ("float64", 60.0)):
        x = np.linspace(0, widest, 400, dtype=dtype)[:, None]
        flushed, k = np.asarray(kernel(torch.tensor(x))), kernel(x)
        smallest = np.finfo(dtype).tiny
        assert np.isfinite(flushed).all() and ((flushed == 0) | (flushed >= smallest)).all()
        assert ((k == 0) | (k >= smallest)).all()
        far = np.asarray(kernel(torch.tensor(x * np.asarray(1e30, dtype))))
        assert np.array_equal(far, np.eye(400))
q = torch.tensor(rng.normal(size=(1, 1, 30, 4)) * 6, dtype=torch.float32)
assert torch.isfinite(st.soft_attention(q, q, q[:, :, ::3])).all()
print("held")
"""


def test_flushing_subnormal_numbers_changes_no_result() -> None:
    """Properties 7 and 29 with torch.set_flush_denormal(True)."""
    done = subprocess.run([sys.executable, "-c", FLUSHED], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.strip() == "held"


def test_the_shared_decomposition_of_the_table_is_unchanged() -> None:
    expected = decomposition().features().copy()
    for name in ("NystromDecomposition.matmul", "NystromDecomposition.solve", "NystromDecomposition.eigh"):
        BY_NAME[name].call(**BY_NAME[name].make(np.random.default_rng(1)))
    np.testing.assert_array_equal(decomposition().features(), expected)
