"""Fixtures that every test file shares: one array backend at a time, and reproducible property tests."""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("thorough", parent=settings.get_profile("ci"), max_examples=2000, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def _keep_compiled_code() -> None:
    """Most of JAX's time in these tests is compilation: its workers and later runs share what was compiled for this processor."""
    processor = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
    words = sorted({line for line in processor.splitlines() if line.startswith(("model name", "flags"))}) or [processor]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "softlinalg-tests" / f"jax-{hashlib.sha256(' '.join(words).encode()).hexdigest()[:12]}"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if not THOROUGH:
        # Compiled in half the time, for code that runs once. The thorough profile runs what users run.
        os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")


_keep_compiled_code()


def _share_one_compiler_context() -> None:
    """For every program JAX makes a context of its compiler with all operations there are: from 6 to 50 ms and 1.5 MB, which it keeps.

    Programs are kept apart by their modules, so one context serves all but those that are compiled while another one is written. The
    thorough profile runs what users run.
    """
    with contextlib.suppress(ImportError, AttributeError):  # private to JAX: without it the tests only take longer
        from jax._src.interpreters import mlir
        from jax._src.lib.mlir import ir

        own = mlir.make_ir_context
        shared = functools.lru_cache(maxsize=1)(own)

        def make_ir_context() -> object:
            try:
                ir.InsertionPoint.current  # noqa: B018
            except ValueError:  # there is none
                return shared()
            return own()

        mlir.make_ir_context = make_ir_context


def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the first test: what was imported and collected stays, so the garbage collector need not walk over it again and again."""
    if not THOROUGH and ("jax" in sys.modules or any("jax" in item.name for item in session.items)):
        _share_one_compiler_context()
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Let what was set aside be freed: Triton's modules count what is left at the end, and list it."""
    gc.unfreeze()


def _let_torchvision_import() -> None:
    """Define the names of two operators of torchvision, whose library does not load beside the CPU build of PyTorch.

    transformers and timm import torchvision where it is installed, and its import fails without them. Nothing here calls them.
    """
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
        return
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


_kept: list[object] = []
_let_torchvision_import()
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test reaches for a hub

SHARED = Path(__file__).resolve().parents[2] / "shared"
"""Real data sets and reference numbers lie beside a checkout; tests that need them skip, and say so, without."""


COUNTED = ("core", "sklearn")
"""Folders of the tests whose lines count as covered: those of the core and of what it gives scikit-learn."""
UNCOUNTED = ("jax", "torch", "strict", "cupy", "readonly", "compile", "traced", "tracing")
"""Words in the names of tests there that do not count."""


COMPILED_ELSEWHERE = {
    "test_pinv.py::test_every_backend_gives_the_same_certified_result[jax-chebyshev]": "JAX compiles the newton and auto methods here",
    "test_nystrom.py::test_every_library_gives_the_same_approximation_and_keeps_its_input[jax-float32]": "JAX runs it in float64",
    "test_nystrom_files.py::test_files_are_read_into_any_library[jax-.npz]": "JAX reads the other kind of file",
}
"""Tests of a library that compiles every shape for ten seconds and more, and what shows the same."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count the covered lines of the core where NumPy runs it, in its own tests; leave out what is for thorough runs alone.

    Counting slows Python by a third to a half, most of all the tracing of JAX and PyTorch and the hundreds of examples of properties,
    whose tests show nothing of the core that the others do not: 96 % is covered with or without them.
    """
    for item in items:
        drawn = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if drawn or item.path.parent.name not in COUNTED or any(word in item.name for word in UNCOUNTED):
            item.add_marker("no_cover")
        same = f"{item.path.name}::{item.name}"
        if same in COMPILED_ELSEWHERE:
            item.add_marker(pytest.mark.thorough(COMPILED_ELSEWHERE[same]))
        thorough = item.get_closest_marker("thorough")
        if thorough is not None and not THOROUGH:
            item.add_marker(pytest.mark.skip(reason=f"runs with HYPOTHESIS_PROFILE=thorough: {thorough.args[0]}"))


@dataclass(frozen=True)
class Backend:
    """An array library under test."""

    name: str
    xp: Any
    """Namespace with the functions of the standard (what array_api_compat.array_namespace returns)."""
    convert: Callable[..., Any]

    def asarray(self, values: Any, dtype: str | None = None) -> Any:
        """An array of this library from NumPy values; `dtype` by name ("float32")."""
        host = np.asarray(values, dtype=dtype)
        return self.convert(host)

    def to_numpy(self, x: Any) -> np.ndarray:
        """Back to NumPy, for comparison."""
        from softlinalg import _arrays

        return np.asarray(_arrays.to_numpy(x))


def _read_only(host: np.ndarray) -> np.ndarray:
    copy = np.array(host, copy=True)
    copy.setflags(write=False)
    return copy


def _backend(name: str) -> Backend:
    if name in ("numpy", "numpy-readonly"):
        import array_api_compat.numpy as xp

        return Backend(name, xp, _read_only if name == "numpy-readonly" else lambda host: np.array(host, copy=True))
    if name == "strict":
        import array_api_strict

        return Backend(name, array_api_strict, array_api_strict.asarray)
    if name == "torch":
        import array_api_compat.torch as xp
        import torch

        return Backend(name, xp, lambda host: torch.tensor(np.ascontiguousarray(host)))
    if name == "jax":
        import jax.numpy as jnp

        return Backend(name, jnp, jnp.asarray)
    import array_api_compat.cupy as xp
    import cupy

    return Backend(name, xp, cupy.asarray)


_MODULES = {"numpy": "numpy", "numpy-readonly": "numpy", "strict": "array_api_strict", "torch": "torch", "jax": "jax", "cupy": "cupy"}


def _gpu_missing() -> str | None:
    """Why CuPy cannot run here, or None."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed"
    import cupy

    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"no CUDA GPU: {error}"
    return None


@pytest.fixture(params=["numpy", "numpy-readonly", "strict", "torch", "jax", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each array library in turn (JAX with 64-bit types enabled); missing ones are skipped with the reason."""
    name = request.param
    if importlib.util.find_spec(_MODULES[name]) is None:
        pytest.skip(f"{_MODULES[name]} is not installed")
    if name == "cupy" and (reason := _gpu_missing()):
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        if name == "jax":
            import jax

            stack.enter_context(jax.enable_x64(True))
        yield _backend(name)


@pytest.fixture
def xp(backend: Backend) -> Any:
    """The namespace of the backend under test."""
    return backend.xp


@pytest.fixture(autouse=True)
def _no_plans() -> None:
    """Plans of attention (`softlinalg.torch.repeated_attention`) of one test would take what the next one watches past it."""
    module = sys.modules.get("softlinalg.torch.repeated_attention")
    if module is not None:
        module._held.__dict__.clear()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """One BLAS thread per test process: small products gain nothing from two, and workers would fight."""
    with threadpool_limits(1):
        if importlib.util.find_spec("torch") is not None:
            import torch

            torch.set_num_threads(1)
        yield


@pytest.fixture
def shared_data() -> Path:
    """Folder of the real data sets; the test is skipped, with the reason, where it is missing."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real data sets are not beside this checkout ({folder.name} is missing)")
    return folder
