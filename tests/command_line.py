"""The command in this process and in its own: what the tests of the command share."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from softlinalg import cli

COMMAND = Path(sysconfig.get_path("scripts")) / "softlinalg"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of the command in this process."""
    status = cli.main(argv)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def shell(*argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    return subprocess.run([COMMAND, *argv], capture_output=True, text=True, timeout=120, check=False, **options)
