"""One package, looked at in a process of its own: `python -m softlinalg._cli_probe NAME` prints what it found as JSON.

A package that crashes or hangs on import then costs `softlinalg doctor` one line and not its life.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

__all__ = ["MARK", "probe"]

MARK = "softlinalg-probe:"
"""Before the JSON: packages print things of their own when they are imported."""

MODULES = {
    "numpy": "numpy",
    "scipy": "scipy.linalg",
    "array-api-compat": "array_api_compat",
    "torch": "torch",
    "jax": "jax",
    "cupy": "cupy",
    "dask": "dask.array",
    "scikit-learn": "sklearn",
}


def probe(name: str) -> dict[str, Any]:
    """Import a package, ask for its devices and threads, and compute something small with it.

    Parameters
    ----------
    name : str
        A key of `MODULES`.

    Returns
    -------
    dict
        `devices`, `threads`, `blas`, `works` (None for what holds no arrays of its own), and what is particular to the package.
    """
    module = importlib.import_module(MODULES[name])
    found: dict[str, Any] = {"version": str(importlib.import_module(MODULES[name].partition(".")[0]).__version__), "works": None}
    if name in _ARRAYS:
        found |= _ARRAYS[name](module)
        started = time.perf_counter()
        found["works"] = _computes(name, module)
        found["seconds"] = round(time.perf_counter() - started, 3)
    found["pools"] = _pools()
    found["blas"] = _built_with(module) if name in ("numpy", "scipy") else None
    return found


def _pools() -> list[dict[str, Any]]:
    """Thread pools of the libraries that are loaded by now."""
    import threadpoolctl

    keys = ("user_api", "internal_api", "version", "num_threads", "threading_layer")
    return [{key: pool.get(key) for key in keys} for pool in threadpoolctl.threadpool_info()]


def _built_with(module: Any) -> dict[str, Any] | None:
    """Name and version of the BLAS that NumPy or SciPy was built with; None where it does not tell."""
    package = importlib.import_module(module.__name__.partition(".")[0])
    try:
        blas = package.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return {"name": str(blas["name"]), "version": str(blas["version"])}
    except (KeyError, TypeError, AttributeError):
        return None


def _computes(name: str, xp: Any) -> bool:
    """Whether a small certified inverse comes out right; for JAX a kernel matrix, as compiling an inverse takes ten seconds."""
    import numpy as np

    import softlinalg

    if name == "jax":
        xp = importlib.import_module("jax.numpy")
        kernel = softlinalg.gaussian_kernel(xp.asarray([[0.0], [2.0]], dtype=xp.float32))
        return bool(np.allclose(np.asarray(kernel), [[1.0, np.exp(-2.0)], [np.exp(-2.0), 1.0]], rtol=1e-5, atol=0.0))
    a = xp.asarray([[2.0, 1.0], [1.0, 2.0]], dtype=xp.float32)
    if name == "torch" and xp.cuda.is_available():
        a = a.to("cuda")
    result = softlinalg.ridge_inverse(a, 1.0)
    host = result.get() if name == "cupy" else np.asarray(result.cpu() if name == "torch" else result)
    return bool(np.allclose(host, [[0.375, -0.125], [-0.125, 0.375]], rtol=1e-5, atol=0.0))


def _numpy(module: Any) -> dict[str, Any]:
    return {"devices": ["cpu"]}


def _torch(module: Any) -> dict[str, Any]:
    devices = ["cpu"]
    for i in range(module.cuda.device_count()):
        about = module.cuda.get_device_properties(i)
        devices.append(f"cuda:{i} {about.name}, {about.total_memory / 1e9:.0f} GB")
    if module.backends.mps.is_available():
        devices.append("mps")
    return {
        "devices": devices,
        "threads": module.get_num_threads(),
        "cuda_built": module.version.cuda,
        "reduced_float32": bool(module.backends.cuda.matmul.allow_tf32),
    }


def _jax(module: Any) -> dict[str, Any]:
    return {"devices": [str(device) for device in module.devices()], "x64": bool(module.config.jax_enable_x64)}


def _cupy(module: Any) -> dict[str, Any]:
    count = module.cuda.runtime.getDeviceCount()  # raises without a driver: then CuPy is of no use here
    names = [module.cuda.runtime.getDeviceProperties(i)["name"] for i in range(count)]
    return {"devices": [f"cuda:{i} {name.decode() if isinstance(name, bytes) else name}" for i, name in enumerate(names)]}


_ARRAYS = {"numpy": _numpy, "torch": _torch, "jax": _jax, "cupy": _cupy}


def main(name: str) -> None:
    """Print what `probe` finds, or the error that stopped it."""
    try:
        found = probe(name)
    except BaseException as error:  # whatever a package throws on import is what we came to find out
        found = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:400]}
    sys.stdout.write(f"\n{MARK}{json.dumps(found)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
