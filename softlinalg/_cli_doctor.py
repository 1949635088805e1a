"""The subcommand `doctor`: what is installed, what it runs on, and what is known to go wrong with it.

The packages are looked at by `_cli_probe`, each in a process of its own; here their findings become a table and advice.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from softlinalg import __version__
from softlinalg._cli_probe import MARK, MODULES
from softlinalg._memory import host_memory
from softlinalg._native import loaded_or_why_not

__all__ = ["examine", "known_problems", "run", "table"]

EXTRAS = {"torch": "torch", "jax": "jax", "dask": "dask", "scikit-learn": "sklearn"}
"""Optional packages and the extras that bring them; CuPy comes from its own packages, one for each version of CUDA."""

NEEDED = ("numpy", "scipy", "array-api-compat")

TIMEOUT = 120.0
"""Seconds after which a package that does not finish its import counts as broken; PyTorch with a cold disk took 25."""

CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def run(arguments: argparse.Namespace) -> int:
    """The subcommand `doctor`.

    Returns
    -------
    int
        0 unless something is broken, then 1.
    """
    findings = examine()
    text = json.dumps(findings, indent=2) if arguments.json else table(findings)
    sys.stdout.write(text + "\n")
    return 0 if findings["healthy"] else 1


def examine(names: Sequence[str] = tuple(MODULES), *, timeout: float = TIMEOUT) -> dict[str, Any]:
    """Everything that `softlinalg doctor` knows.

    Parameters
    ----------
    names : sequence of str, default all
        Packages to look at, keys of `softlinalg._cli_probe.MODULES`.
    timeout : float, default 120
        Seconds for each of them.

    Returns
    -------
    dict
        Ready for JSON: `softlinalg`, `python`, `system`, `processors`, `memory`, `environment`, `packages`, `compiled`,
        `problems`, `healthy`.
    """
    installed = {name: _installed_version(name) for name in names}
    present = [name for name in names if installed[name] is not None]
    with ThreadPoolExecutor(max_workers=2) as pool:  # imports wait for the disk about as long as for the processor
        probed = dict(zip(present, pool.map(lambda name: _probe(name, timeout), present), strict=True))
    kernels, reason = loaded_or_why_not()
    findings: dict[str, Any] = {
        "softlinalg": {"version": __version__, "metadata": _installed_version("softlinalg")},
        "python": {"version": platform.python_version(), "implementation": platform.python_implementation()},
        "system": platform.platform(),
        "processors": {"machine": os.cpu_count() or 1, "usable": _usable_processors()},
        "memory": {"process": host_memory(), "container": _container_memory()},
        "environment": {key: os.environ[key] for key in sorted(os.environ) if re.fullmatch(r"(OMP|OPENBLAS|MKL|BLIS)_NUM_THREADS", key)},
        "packages": {name: probed.get(name) for name in names},
        "compiled": {"works": kernels is not None, "reason": reason},
    }
    findings["problems"] = list(known_problems(findings, _requirements()))
    findings["healthy"] = all(problem["level"] != "broken" for problem in findings["problems"])
    return findings


# --------------------------------------------------------------------------------------------------- findings
def _installed_version(name: str) -> str | None:
    names = [name] if name != "cupy" else [d.name for d in importlib.metadata.distributions() if re.fullmatch(r"cupy(-\w+)*", d.name or "")]
    for candidate in names:
        try:
            return importlib.metadata.version(candidate)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _probe(name: str, timeout: float) -> dict[str, Any]:
    """What `_cli_probe` finds out about a package, or how it ended."""
    command = [sys.executable, "-m", "softlinalg._cli_probe", name]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout:g} s"}
    answer = ended.stdout.rpartition(MARK)[2] if MARK in ended.stdout else ""
    if not answer:
        return {"error": f"the process that imported it ended with status {ended.returncode}"}
    result: dict[str, Any] = json.loads(answer)
    return result


def _usable_processors() -> int:
    """Processors that this process may use: its affinity, and what a container grants."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text(encoding="ascii").split()
        return max(1, min(count, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such file, or the quota "max"
        return count


def _container_memory() -> int | None:
    for path in CGROUPS:
        try:
            limit = int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such file, or the limit "max"
            continue
        if limit < 1 << 60:  # the older kind of file writes "no limit" as a number near 2^63
            return limit
    return None


def _requirements() -> dict[str, str]:
    """Lowest version of each package that softlinalg's metadata asks for."""
    try:
        lines = importlib.metadata.requires("softlinalg") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)", line.replace(" ", "")) for line in lines)
    return {match[1].lower(): match[2] for match in found if match}


# --------------------------------------------------------------------------------------------- known problems
def known_problems(findings: dict[str, Any], requirements: dict[str, str]) -> Iterator[dict[str, str]]:
    """What is wrong, or could surprise, with a remedy.

    Parameters
    ----------
    findings : dict
        Of `examine`, without its last two keys.
    requirements : dict
        Lowest versions by package.

    Yields
    ------
    dict
        `level` ("broken": something does not work; "warning": works, but slower or other than expected; "note"), `about`, `text`
        and `remedy`.
    """
    packages = findings["packages"]
    for name, found in packages.items():
        yield from _problems_of(name, found, requirements.get(name))
    yield from _thread_problems(findings)
    yield from _library_problems(packages)
    yield from _machine_problems(findings)
    if not findings["compiled"]["works"]:
        text = f"kernel values, small inverses and attention on the CPU take about twice as long: {findings['compiled']['reason']}"
        yield _problem("note", "compiled code", text, "install g++ or clang++ (or name one in CXX)")


def _problem(level: str, about: str, text: str, remedy: str) -> dict[str, str]:
    return {"level": level, "about": about, "text": text, "remedy": remedy}


def _problems_of(name: str, found: dict[str, Any] | None, lowest: str | None) -> Iterator[dict[str, str]]:
    """Of a package by itself: missing, failing, too old, or wrong."""
    again = "pip install --force-reinstall " + name
    if found is None:
        if name in NEEDED:
            yield _problem("broken", name, "not installed, but needed", f"pip install {name}")
        elif name in EXTRAS:
            yield _problem("note", name, "not installed (optional)", f'pip install "softlinalg[{EXTRAS[name]}]"')
        else:
            yield _problem("note", name, "not installed (optional, for GPUs)", "pip install cupy-cuda12x, or the one for your driver")
        return
    if "error" in found:
        level = "warning" if name == "cupy" and "driver" in found["error"].lower() else "broken"
        yield _problem(level, name, f"cannot be used: {found['error']}", again if level == "broken" else "install the driver of the GPU")
        return
    if lowest is not None and _numbers(found["version"]) < _numbers(lowest):
        yield _problem("broken", name, f"version {found['version']} is older than {lowest}", f'pip install "{name}>={lowest}"')
    if found["works"] is False:
        yield _problem("broken", name, "a small inverse or kernel matrix came out wrong", again)


def _numbers(version: str) -> tuple[int, ...]:
    """2.13.0+cpu as (2, 13, 0)."""
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _thread_problems(findings: dict[str, Any]) -> Iterator[dict[str, str]]:
    usable = findings["processors"]["usable"]
    packages = {name: found for name, found in findings["packages"].items() if found and "error" not in found}
    for name, found in packages.items():
        most = max((pool["num_threads"] for pool in found.get("pools", ())), default=0)
        if most > usable:
            text = f"its linear algebra starts {most} threads, but this process may use {usable} of the processors"
            yield _problem("warning", name, text, f"set OMP_NUM_THREADS={usable} and OPENBLAS_NUM_THREADS={usable}")
    torch = packages.get("torch")
    if torch and _numbers(torch["version"])[:2] == (2, 13) and torch["threads"] > 1:
        text = "batched LU inverses in float32 on the CPU were seen to hang in version 2.13 with more than one thread"
        yield _problem("warning", "torch", text, "torch.set_num_threads(1) where a call does not come back, or float64")


def _library_problems(packages: dict[str, Any]) -> Iterator[dict[str, str]]:
    """Two packages that are each sound and differ."""
    blas = {name: (packages.get(name) or {}).get("blas") for name in ("numpy", "scipy")}
    if blas["numpy"] and blas["scipy"]:
        built = {name: (_family(about["name"]), about["version"]) for name, about in blas.items() if about}
        if built["numpy"] != built["scipy"]:
            told = " and ".join(f"{name} with {kind} {version}" for name, (kind, version) in built.items())
            text = f"built with different BLAS libraries ({told}): last digits differ, and each has threads of its own"
            yield _problem("note", "numpy, scipy", text, "limit threads with threadpoolctl or OMP_NUM_THREADS, which reach both")
    jax = packages.get("jax")
    if jax and "error" not in jax and not jax["x64"]:
        text = "float64 is switched off: bounds are computed on the host, and float64 input becomes float32"
        yield _problem("note", "jax", text, "set JAX_ENABLE_X64=1, or jax.config.update('jax_enable_x64', True) at the start")
    torch = packages.get("torch")
    if torch and "error" not in torch and torch["reduced_float32"]:
        text = "float32 products run in TF32, with three digits: the bounds assume float32"
        yield _problem("warning", "torch", text, "torch.backends.cuda.matmul.allow_tf32 = False")


def _family(blas: str) -> str:
    """Name of a BLAS whatever its packaging: scipy-openblas64 and scipy-openblas32 are one."""
    return re.sub(r"^scipy-|(64|32)?_?$", "", blas.lower())


def _machine_problems(findings: dict[str, Any]) -> Iterator[dict[str, str]]:
    own, memory = findings["softlinalg"], findings["memory"]
    if own["metadata"] is not None and own["metadata"] != own["version"]:
        text = f"the code is {own['version']}, the installed metadata {own['metadata']}: an older installation is in the way"
        yield _problem("warning", "softlinalg", text, "install again in a fresh environment")
    if memory["container"] is not None and memory["container"] < memory["process"]:
        text = (
            f"the container ends a process above {_gigabytes(memory['container'])}; "
            f"softlinalg refuses only what exceeds {_gigabytes(memory['process'])}"
        )
        yield _problem("warning", "memory", text, "a smaller rank or chunk_size, or float32, needs less")


# ------------------------------------------------------------------------------------------------------ table
def _gigabytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number < sys.maxsize else "unknown"


def _package_line(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    if "error" in found:
        return f"BROKEN: {found['error']}"
    parts = [found["version"], *found.get("devices", [])]
    if blas := found["blas"]:
        parts.append(f"{blas['name']} {blas['version']}")
    if found.get("threads"):
        parts.append(f"{found['threads']} threads")
    if "x64" in found:
        parts.append("float64 on" if found["x64"] else "float64 off")
    if found["works"] is not None:
        parts.append("computes right" if found["works"] else "WRONG")
    return ", ".join(parts)


def table(findings: dict[str, Any]) -> str:
    """The findings as lines of text.

    Parameters
    ----------
    findings : dict
        Of `examine`.

    Returns
    -------
    str
        Versions, then each problem with its remedy.
    """
    processors, memory = findings["processors"], findings["memory"]
    limit = "" if memory["container"] is None else f" (container: {_gigabytes(memory['container'])})"
    threads = ", ".join(f"{key}={value}" for key, value in findings["environment"].items()) or "no limit set in the environment"
    rows = [
        ("softlinalg", findings["softlinalg"]["version"]),
        ("Python", f"{findings['python']['version']} ({findings['python']['implementation']})"),
        ("system", findings["system"]),
        ("processors", f"{processors['usable']} usable of {processors['machine']}"),
        ("memory", f"{_gigabytes(memory['process'])} for this process{limit}"),
        ("threads", threads),
        ("compiled code", "works" if findings["compiled"]["works"] else "none"),
        *((name, _package_line(found)) for name, found in findings["packages"].items()),
    ]
    width = max(len(label) for label, _ in rows)
    lines = [f"{label.ljust(width)}  {value}" for label, value in rows]
    for problem in findings["problems"]:
        lines += ["", f"{problem['level']}: {problem['about']}: {problem['text']}", f"    {problem['remedy']}"]
    return "\n".join([*lines, "", "something is broken" if not findings["healthy"] else "nothing is broken"])
