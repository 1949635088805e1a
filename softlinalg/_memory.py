"""How much memory there is: what a call would need is compared with it before anything is allocated."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

__all__ = ["host_memory"]


@functools.lru_cache(maxsize=1)
def _physical_memory() -> int:
    try:
        return int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return sys.maxsize


def host_memory() -> int:
    """Bytes of memory that this process could have: those of the machine, or what a limit on its address space leaves."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return _physical_memory()
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        return min(_physical_memory(), max(0, limit - pages * int(os.sysconf("SC_PAGE_SIZE"))))
    except (ImportError, OSError, ValueError, IndexError):
        return _physical_memory()
