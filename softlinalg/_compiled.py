"""C++ files of the package, compiled for this machine at first use and kept in the user's cache directory.

Nothing but speed depends on them: where there is no compiler (g++, clang++ or c++, or the one that CXX names) NumPy's or PyTorch's
operations serve. The variable SOFTLINALG_COMPILED=0 in the environment turns them off.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["FAILURES", "is_turned_off", "library"]

FAILURES = (OSError, subprocess.SubprocessError, RuntimeError)
"""What `library` raises where there is no compiled code to be had."""

_HEADERS = Path(__file__).parent
_FLAGS = ("-std=c++17", "-shared", "-fPIC", "-ffp-contract=fast")


def is_turned_off() -> bool:
    """Does the environment say so?"""
    return os.environ.get("SOFTLINALG_COMPILED", "1") == "0"


def library(source: Path, optimization: str) -> ctypes.CDLL:
    """A C++ file, compiled with "-O2" or "-O3" if it has not been yet. Raises one of FAILURES."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
    if compiler is None:
        message = "there is no C++ compiler (g++, clang++ or c++, or the one that CXX names)"
        raise RuntimeError(message)
    flags = (*_FLAGS, optimization)
    found = Path(shutil.which(compiler) or compiler).resolve()
    status = found.stat()
    # A home directory may be shared by machines of different kinds: the code is for one processor. Asking the compiler for its
    # version would take longer than loading the code.
    identity = (
        *(file.read_text(encoding="utf-8") for file in (source, *sorted(_HEADERS.glob("*.h")))),
        str(found),
        str(status.st_size),
        str(status.st_mtime_ns),
        *flags,
        platform.machine(),
        _processor(),
    )
    digest = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:24]
    target = _cache() / f"{source.stem.strip('_')}-{digest}.so"
    if not target.exists():
        _compile(compiler, flags, source, target)
    return ctypes.CDLL(str(target))


def _compile(compiler: str, flags: tuple[str, ...], source: Path, target: Path) -> None:
    """Make `target`, whole or not at all."""
    descriptor, name = tempfile.mkstemp(suffix=".so", dir=target.parent)
    os.close(descriptor)
    try:
        for tuning in (("-march=native",), ("-mcpu=native",), ()):
            command = [compiler, *flags, *tuning, f"-I{_HEADERS}", str(source), "-o", name]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            if done.returncode == 0:
                Path(name).replace(target)
                return
        message = f"{compiler} failed: {done.stderr.strip()[-500:]}"
        raise RuntimeError(message)
    finally:
        Path(name).unlink(missing_ok=True)


def _processor() -> str:
    """What tells processors apart whose instructions differ."""
    found = Path("/proc/cpuinfo")
    lines = found.read_text(encoding="utf-8", errors="replace").splitlines() if found.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor() + platform.node())


def _cache() -> Path:
    """A directory that nobody else can write to: code is loaded from it."""
    base = os.environ.get("XDG_CACHE_HOME")
    folder = (Path(base) if base else Path.home() / ".cache") / "softlinalg"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.stat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
        message = f"others may write to {folder}"
        raise RuntimeError(message)
    return folder
