"""Files: damaged by the thousand and written in bad circumstances. Nothing in them runs, and nothing half-written is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softlinalg import Gaussian, NystromDecomposition, cli, nystrom
from softlinalg.errors import CheckpointError
from softlinalg.torch import load_published_weights, save_weights

HERE = Path(__file__).parent
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
MUTANTS = 20_000
IN_CI = {
    "decompositions": {"npz": 800, "npz-sealed": 500, "safetensors": 800, "safetensors-sealed": 500},
    "weights": {"weights": 500, "weights-pth": 300},
    "tables": {"command-npy": 100, "command-npz": 100, "command-csv": 60, "command-parquet": 80},
}
"""Damaged files per reader without HYPOTHESIS_PROFILE=thorough: about a second each. Sealed ones carry a digest that fits the damage."""

UNIX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc of Linux")


def run_script(*arguments: str, timeout: float = 600) -> str:
    """The last line that a script of this folder prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    return done.stdout.strip().splitlines()[-1]


@UNIX
@pytest.mark.slow
@pytest.mark.timeout(0 if THOROUGH else 600)
@pytest.mark.parametrize("group", sorted(IN_CI))
def test_damaged_files_are_refused_and_nothing_in_them_runs(group: str, tmp_path: Path) -> None:
    """One process per group: what a reader imports costs more than a thousand damaged files."""
    counts = {reader: MUTANTS if THOROUGH else count for reader, count in IN_CI[group].items()}
    run = run_script(str(HERE / "fuzz_files.py"), str(tmp_path), "0", *(f"{r}:{n}" for r, n in counts.items()), timeout=7200)
    for reader, found in json.loads(run).items():
        count = counts[reader]
        assert found["wrong"] == [], f"{reader}: {found['bad']} of {count}"
        assert found["seen"] == {}, reader
        assert found["left"] == [], reader
        outcomes = found["outcomes"]
        assert sum(outcomes.values()) == count
        refused = count - outcomes.get("read", 0) - outcomes.get("unchanged", 0)
        assert refused >= count / 4, (reader, outcomes)
        if reader in ("npz", "safetensors"):  # every byte is under the digest
            assert outcomes.get("read", 0) == 0
        if reader.startswith("command") and reader != "command-parquet":  # damage that leaves numbers is data
            assert outcomes.get("read", 0) > 0


# ------------------------------------------------------------------------------------- what is not a plain file
def test_links_and_folders_are_files_or_errors(tmp_path: Path) -> None:
    real = tmp_path / "real.npz"
    nystrom(np.eye(4), Gaussian(1.0), landmarks=[0, 1]).save(real)
    link, loop, broken = tmp_path / "link.npz", tmp_path / "loop.npz", tmp_path / "broken.npz"
    link.symlink_to(real)
    loop.symlink_to(loop)
    broken.symlink_to(tmp_path / "nothing.npz")
    assert NystromDecomposition.load(link).rank == 2
    for path in (loop, broken, tmp_path):
        with pytest.raises((OSError, CheckpointError, ValueError)):
            NystromDecomposition.load(path)
    folder = tmp_path / "folder.npz"
    folder.mkdir()
    with pytest.raises(OSError):  # noqa: PT011  (IsADirectoryError here, PermissionError elsewhere)
        NystromDecomposition.load(folder)


def test_saving_over_a_link_replaces_the_link_and_not_what_it_points_at(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "a.npz"
    victim.write_text("precious")
    link.symlink_to(victim)
    nystrom(np.eye(4), Gaussian(1.0), landmarks=[0, 1]).save(link)
    assert victim.read_text() == "precious"
    assert not link.is_symlink()


def test_members_with_paths_do_not_leave_the_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../outside.npy", "/tmp/softlinalg-outside.npy", "x.npy"):
            with archive.open(name, "w") as member:
                np.lib.format.write_array(member, np.zeros((5, 2)))
    assert cli.main(["approximate", str(path), "--rank", "1", "--array", "../outside", "--quiet"]) in (0, 2)
    assert "Traceback" not in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]
    assert not Path("/tmp/softlinalg-outside.npy").exists()
    with pytest.raises(CheckpointError):
        NystromDecomposition.load(path)


class Evil:
    """Unpickling this writes a file."""

    victim = ""

    def __reduce__(self) -> Any:
        return (Path(self.victim).write_text, ("executed",))


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_pickled_objects_are_one_line_and_never_run(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Evil.victim = str(tmp_path / "victim")
    objects = np.empty((2, 2), dtype=object)
    objects[...] = Evil()
    path = tmp_path / f"a{suffix}"
    np.save(path, objects, allow_pickle=True) if suffix == ".npy" else np.savez(path, x=objects)
    assert cli.main(["approximate", str(path), "--rank", "1"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "cannot be read" in message
    assert not Path(Evil.victim).exists()


def test_an_archive_that_unpacks_to_more_than_memory_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, header = tmp_path / "bomb.npz", b"{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776, 16), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(10_000_000))
    start = time.process_time()
    assert cli.main(["approximate", str(path), "--rank", "1"]) == 2
    assert time.process_time() - start < 10
    assert capsys.readouterr().err.count("\n") == 1


# --------------------------------------------------------------------------------------------------- saving
SAVE_FOREVER = """
import sys
import numpy as np
from softlinalg import Gaussian, nystrom

kind, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
if kind == "weights":
    import torch
    from softlinalg.torch import save_weights
    model = torch.nn.Linear(600, 600)
    write = lambda: save_weights(model, path)
else:
    x = np.random.default_rng(0).normal(size=(size, 2))
    d = nystrom(x, Gaussian(1.0), landmarks=np.arange(60), store_features=True)
    write = lambda: d.save(path)
write()
print("ready", flush=True)
while True:
    write()
"""


def readable(kind: str, path: Path) -> None:
    if kind == "weights":
        load_published_weights(torch.nn.Linear(600, 600), path)
    else:
        assert NystromDecomposition.load(path).rank > 0


@UNIX
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [("npz", "a.npz"), ("safetensors", "a.safetensors"), ("weights", "w.safetensors")])
def test_a_process_killed_while_it_writes_leaves_a_whole_file(kind: str, name: str, tmp_path: Path) -> None:
    """SIGKILL in a loop that does nothing but save, until one fell into a write: the file under its name is always whole."""
    path, rng, during = tmp_path / name, np.random.default_rng(0), 0
    script = tmp_path / "save.py"
    script.write_text(SAVE_FOREVER)
    for _ in range(20 if THOROUGH else 4):
        process = subprocess.Popen([sys.executable, str(script), kind, str(path), "3000"], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:  # wait until a write is under way, then a little more
            if list(tmp_path.glob(".*.tmp")):
                time.sleep(float(rng.uniform(0, 2e-3)))
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        left = list(tmp_path.glob(".*.tmp"))
        during += bool(left)
        readable(kind, path)
        for part in left:
            part.unlink()
        if during and not THOROUGH:
            break
    assert during >= 1, "no kill fell into a write"


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from softlinalg import Gaussian, nystrom
import torch
from softlinalg.torch import save_weights

folder = Path(sys.argv[1])
d = nystrom(np.random.default_rng(0).normal(size=(2000, 2)), Gaussian(1.0), landmarks=np.arange(40), store_features=True)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then fails like on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for name in ("a.npz", "a.safetensors", "w.safetensors"):
    try:
        save_weights(torch.nn.Linear(600, 600), folder / name) if name[0] == "w" else d.save(folder / name)
    except OSError as error:
        print("refused", type(error).__name__, end=" ")
    else:
        print("written", end=" ")
print()
"""


@UNIX
def test_a_full_disk_leaves_the_old_files_and_nothing_else(tmp_path: Path) -> None:
    script, folder = tmp_path / "full.py", tmp_path / "folder"
    script.write_text(FULL_DISK)
    folder.mkdir()
    small = nystrom(np.eye(5), Gaussian(1.0), landmarks=[0, 1])
    small.save(folder / "a.npz")
    small.save(folder / "a.safetensors")
    save_weights(torch.nn.Linear(600, 600), folder / "w.safetensors")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run_script(str(script), str(folder)).split()[::2] == ["refused"] * 3
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
