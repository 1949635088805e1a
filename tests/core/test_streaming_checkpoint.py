"""Checkpoints: a run that is killed anywhere goes on to the same bits, and a file that is not what was written is never believed."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from softlinalg import Gaussian, nystrom_stream
from softlinalg._streaming_checkpoint import MAGIC, read_arrays, write_arrays
from softlinalg.errors import CheckpointCorruptError, CheckpointError, CheckpointVersionError

N, CHUNK = 2000, 100
X = np.random.default_rng(0).normal(size=(N, 3)).astype(np.float32)
Y = np.sin(X[:, 0].astype(np.float64))


class Kernel:
    """A kernel that files cannot hold."""

    def __call__(self, x: Any, y: Any = None) -> Any:
        return Gaussian(1.5)(x, y)

    def diagonal(self, x: Any) -> Any:
        return np.ones(len(x), x.dtype)


def rows(stop: int = N) -> Any:
    """A function that begins an iterator; it breaks off after `stop` rows."""

    def begin() -> Any:
        for start in range(0, stop, 70):
            yield X[start : min(stop, start + 70)], Y[start : min(stop, start + 70)]
        if stop < N:
            raise RuntimeError("the cable was pulled")

    return begin


def run(checkpoint: Path | None, source: Any = None, **settings: Any) -> Any:
    arguments = {"rank": 20, "rng": 1, "chunk_size": CHUNK, "checkpoint_seconds": 0.0, "sample": X[:400], **settings}
    return nystrom_stream(rows() if source is None else source, arguments.pop("kernel", Gaussian(1.5)), checkpoint=checkpoint, **arguments)


def bits(result: Any) -> list[bytes]:
    d = result.decomposition
    arrays = [*result.sums, d.landmarks, d.eigenvalues, d._map.map, [d.trace, d.trace_error, d.trace_error_floor]]
    return [np.asarray(a).tobytes() for a in arrays]


@pytest.fixture(scope="module")
def unbroken() -> list[bytes]:
    return bits(run(None))


def interrupted(path: Path, stop: int = 1000, **settings: Any) -> None:
    """A run that broke off; the rows that went into whole chunks are in the file."""
    with pytest.raises(RuntimeError, match="the cable was pulled"):
        run(path, rows(stop), **settings)
    assert path.exists()


# ------------------------------------------------------------------------------------------------ going on
@pytest.mark.parametrize("stop", [150, 700, 1999])
def test_an_error_in_the_source_loses_nothing(tmp_path: Path, unbroken: list[bytes], stop: int) -> None:
    path = tmp_path / "sums"
    interrupted(path, stop)
    assert 0 < len(read_arrays(path, func="f")[1]["digests"]) // 16 <= stop // CHUNK
    assert bits(run(path, rows(), threads=2)) == unbroken
    assert bits(run(path, rows(), sample=X[:400])) == unbroken, "what is done is not done again"


def test_landmarks_and_kernels_need_not_be_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sums"
    interrupted(path, 1500, kernel=Gaussian("median"))
    expected = bits(run(None, kernel=Gaussian("median")))

    def forbidden(*_: Any, **__: Any) -> Any:
        pytest.fail("landmarks are in the checkpoint")

    monkeypatch.setattr("softlinalg._streaming_plan.select_landmarks", forbidden)
    assert bits(run(path, kernel=Gaussian("median"))) == expected


def test_kernels_of_others_are_taken_from_the_call(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    interrupted(path, kernel=Kernel())
    assert bits(run(path, kernel=Kernel())) == bits(run(None, kernel=Kernel()))


def test_without_a_seed_the_choice_of_the_killed_run_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    interrupted(path, rng=None)
    first, second = run(path, rng=None), run(path, rng=None)
    assert bits(first) == bits(second)


KILLED = textwrap.dedent("""
    import os, signal, sys
    import numpy as np
    sys.path.insert(0, sys.argv[1])
    import test_streaming_checkpoint as here
    from pathlib import Path
    path, kind, count = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    calls = [0]
    def die():
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
    if kind == "row":
        def begin():
            for block in here.rows()():
                die()
                yield block
        here.run(path, begin)
    else:
        from softlinalg import _streaming_checkpoint, _nystrom_io
        if kind == "write":  # in the middle of the numbers
            digest = _streaming_checkpoint.hashlib.sha256
            real = _streaming_checkpoint.replacing
            import contextlib
            @contextlib.contextmanager
            def cut(target):
                with real(target) as file:
                    class Cut:
                        def write(self, data):
                            if len(data) > 1000:
                                file.write(bytes(data)[: len(data) // 2]); file.flush(); die()
                                file.write(bytes(data)[len(data) // 2 :])
                            else:
                                file.write(data)
                    yield Cut()
            _streaming_checkpoint.replacing = cut
        else:  # before or after the new file takes the place of the old one
            sync = os.fsync
            def fsync(handle):
                sync(handle); die()
            _nystrom_io.os.fsync = fsync
        here.run(path)
    print("not killed")
""")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize(("kind", "count"), [("row", 9), ("row", 28), ("write", 1), ("write", 11), ("sync", 1), ("sync", 6), ("sync", 9)])
def test_a_run_killed_at_any_point_goes_on_to_the_same_bits(tmp_path: Path, unbroken: list[bytes], kind: str, count: int) -> None:
    path = tmp_path / "sums"
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path), kind, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    if path.exists():
        read_arrays(path, func="f")  # whole
    assert bits(run(path)) == unbroken
    assert [entry.name for entry in tmp_path.iterdir()] == ["sums"], "what was half written is cleared away"


def test_an_interrupt_is_answered_with_a_file(tmp_path: Path, unbroken: list[bytes]) -> None:
    path = tmp_path / "sums"

    def begin() -> Any:
        for i, block in enumerate(rows()()):
            if i == 20:
                raise KeyboardInterrupt
            yield block

    with pytest.raises(KeyboardInterrupt):
        run(path, begin, checkpoint_seconds=3600.0)
    assert len(read_arrays(path, func="f")[1]["digests"]) >= 16
    assert bits(run(path)) == unbroken


# ------------------------------------------------------------------------------------------------ refusing
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_every_changed_byte_is_noticed(tmp_path_factory: Any, place: float, change: int) -> None:
    path = tmp_path_factory.mktemp("damage") / "sums"
    write_arrays(path, {"settings": {"a": 1}}, {"x": np.arange(20.0), "y": np.zeros((0, 3)), "z": np.arange(3)})
    header, arrays = read_arrays(path, func="f")
    assert header == {"settings": {"a": 1}}
    assert (arrays["x"].tolist(), arrays["y"].shape, arrays["z"].dtype.kind) == (list(range(20)), (0, 3), "i")
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= change
    path.write_bytes(bytes(raw))
    with pytest.raises(CheckpointCorruptError, match="must be as it was written"):
        read_arrays(path, func="f")


@pytest.mark.parametrize("damage", ["bit", "short", "long", "empty", "pickle", "text"])
def test_a_damaged_checkpoint_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "sums"
    interrupted(path)
    raw = path.read_bytes()
    changed = {
        "bit": raw[:5000] + bytes([raw[5000] ^ 1]) + raw[5001:],
        "short": raw[:-40],
        "long": raw + b"\0",
        "empty": b"",
        "pickle": pickle.dumps({"sums": 1}),
        "text": b"hello",
    }[damage]
    path.write_bytes(changed)
    with pytest.raises(CheckpointCorruptError, match="Delete it to begin anew") as caught:
        run(path)
    assert len(str(caught.value)) <= 400
    assert path.read_bytes() == changed


def test_a_well_sealed_file_with_other_contents_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    interrupted(path)
    header, arrays = read_arrays(path, func="f")
    write_arrays(path, header, {name: a for name, a in arrays.items() if name != "map"})
    with pytest.raises(CheckpointCorruptError, match="must hold sums"):
        run(path)
    raw = bytearray(path.read_bytes())
    at = raw.index(b'"version":1')
    raw[at + len(b'"version":')] = ord("2")
    import hashlib

    path.write_bytes(bytes(raw[:-32]) + hashlib.sha256(bytes(raw[:-32])).digest())
    assert path.read_bytes().startswith(MAGIC)
    with pytest.raises(CheckpointVersionError, match="Update softlinalg"):
        run(path)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"rank": 21}, "rank"),
        ({"rng": 2}, "rng"),
        ({"kernel": Gaussian(1.6)}, "kernel"),
        ({"chunk_size": 50}, "chunk_size"),
        ({"landmarks": "uniform"}, "landmarks"),
        ({"sample": X[:399]}, "sample"),
        ({"lloyd_passes": 1}, "lloyd_passes"),
        ({"rtol": 1e-6}, "rtol"),
    ],
)
def test_a_checkpoint_of_another_call_is_refused(tmp_path: Path, settings: dict[str, Any], word: str) -> None:
    path = tmp_path / "sums"
    interrupted(path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=f"must be of the same call; got another .*{word}"):
        run(path, **settings)
    assert path.read_bytes() == before


@pytest.mark.parametrize("row", [0, 450, 899])
@pytest.mark.parametrize("what", ["features", "targets"])
def test_changed_rows_are_noticed(tmp_path: Path, row: int, what: str) -> None:
    path = tmp_path / "sums"
    interrupted(path)
    before = path.read_bytes()
    x, y = X.copy(), Y.copy()
    if what == "features":
        x[row, 1] = np.nextafter(x[row, 1], np.float32(9))
    else:
        y[row] += 1e-9

    def begin() -> Any:
        yield x, y

    first = row // CHUNK * CHUNK
    with pytest.raises(CheckpointError, match=f"got others in rows {first} to {first + CHUNK - 1}. Restore them"):
        run(path, begin)
    assert path.read_bytes() == before


def test_fewer_rows_than_before_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "sums"
    interrupted(path)

    def begin() -> Any:
        yield X[:500], Y[:500]

    with pytest.raises(CheckpointError, match="must have all rows that it had"):
        run(path, begin)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the process")
def test_a_full_disk_is_told_and_the_last_file_stays(tmp_path: Path, unbroken: list[bytes]) -> None:
    path = tmp_path / "sums"
    interrupted(path, 300)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))  # files beyond this cannot be written, as on a full disk
    try:
        with pytest.raises(OSError, match="checkpoint must be writable; got File too large"):
            run(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["sums"]  # noqa: PTH208
    assert bits(run(path)) == unbroken


FULL = textwrap.dedent("""
    import subprocess, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import test_streaming_checkpoint as here
    disk, before = Path(sys.argv[2]), Path(sys.argv[3]).read_bytes()
    def mount(*options):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", *options, "none", str(disk)], capture_output=True).returncode:
            sys.exit(77)
    mount(f"size={4096 * (3 * len(before) // 8192 + 1)}")  # room for one file and a half
    path = disk / "sums"
    path.write_bytes(before)
    try:
        here.run(path)
    except OSError as error:
        print(error)
    assert path.read_bytes() == before
    assert [entry.name for entry in disk.iterdir()] == ["sums"]
    mount("remount,size=1m")
    assert here.bits(here.run(path)) == here.bits(here.run(None))
    print("the same bits")
""")


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare, for a small disk of its own")
def test_a_small_disk_that_is_full_is_told_and_with_room_the_run_goes_on(tmp_path: Path) -> None:
    path, disk = tmp_path / "sums", tmp_path / "disk"
    interrupted(path, 300)
    disk.mkdir()
    command = [
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
        sys.executable,
        "-c",
        FULL,
        str(Path(__file__).parent),
        str(disk),
        str(path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode == 77 or done.stderr.startswith("unshare:"):
        pytest.skip("this system lets no process mount a disk of its own")
    assert done.returncode == 0, done.stderr
    told, bits_line = done.stdout.splitlines()
    assert "nystrom_stream: checkpoint must be writable; got No space left on device" in told
    assert bits_line == "the same bits"


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="checkpoint must be writable; got No such file"):
        run(tmp_path / "none" / "sums")
