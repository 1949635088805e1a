"""Users' code is clean under pyright's strict mode (mypy checks it with the package)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TYPING = Path(__file__).parent / "typing"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed; mypy checks the same file in its strict mode")
def test_users_code_is_clean_in_pyrights_strict_mode() -> None:
    for library in ("dask", "jax", "sklearn", "torch"):
        pytest.importorskip(library, reason="users' code has it")
    command = ["pyright", "--project", str(TYPING), "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"})
    problems = json.loads(done.stdout)["generalDiagnostics"]
    assert not problems, "\n".join(f"{problem['range']['start']['line'] + 1}: {problem['message']}" for problem in problems)
    assert done.returncode == 0
