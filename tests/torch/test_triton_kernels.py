"""The kernels for CUDA devices: their tests in Triton's interpreter, and what happens where there is no Triton."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from softlinalg.torch import autograd


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed: its wheel takes a gigabyte")
def test_kernels_give_the_results_of_the_core_in_the_interpreter() -> None:
    tests = Path(__file__).with_name("interpreted_triton_kernels.py")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(tests)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_ADDOPTS", None)  # counting lines, it would take away what the other processes have counted
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_without_triton_it_says_so_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    autograd._triton_kernels.cache_clear()
    try:
        with caplog.at_level(logging.INFO, logger="softlinalg.torch.autograd"):
            assert autograd._triton_kernels() is None
            assert autograd._triton_kernels() is None
    finally:
        autograd._triton_kernels.cache_clear()
    assert len(caplog.records) == 1


def test_tensors_of_the_host_need_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autograd, "_triton_kernels", lambda: pytest.fail("Triton was looked for"))
    assert autograd._on_device(torch.zeros(1)) is None
