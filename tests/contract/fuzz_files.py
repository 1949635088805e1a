"""Damaged files by the thousand, in a process of its own that notices if anything in them runs. Prints what happened as JSON.

    python fuzz_files.py FOLDER SEED READER:COUNT ... [--keep FILE] [--page FILE]

Readers whose COUNT is in the JSON of --keep already are not run again; --page makes docs/benchmarks/damaged-files.md of it.

An audit hook sees every process started, code executed, object unpickled by name, and file opened for writing; a limit on the address
space turns every large allocation into an error.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import importlib.metadata
import io
import json
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HEADROOM = 768 * 2**20
"""Bytes that a reader may take beside what the process has: a small multiple of the largest file here would do."""

WATCHED = {
    "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "exec", "pickle.find_class", "socket.connect",
    "ctypes.dlopen", "shutil.rmtree", "os.remove", "os.rename", "os.symlink", "os.chmod",
}  # fmt: skip


def _is_installed_module(code: Any) -> bool:
    """Is it the body of a module of Python or of an installed library, which a reader imports when it first needs it?"""
    return getattr(code, "co_name", "") == "<module>" and getattr(code, "co_filename", "").startswith((sys.prefix, sys.base_prefix))


def _is_importing() -> bool:
    """Is the body of an installed module running, which executes text to make its named tuples and data classes?"""
    frame = sys._getframe(2)
    while frame is not None and not _is_installed_module(frame.f_code):
        frame = frame.f_back
    return frame is not None


def _callers() -> str:
    """Where it happened: the functions on the way there, the last ones first."""
    frame, names = sys._getframe(2), []
    while frame is not None and len(names) < 12:
        names.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(names)


class Watch:
    """What happened while it was on."""

    def __init__(self) -> None:
        self.on, self.seen = False, collections.Counter[str]()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "exec" and (_is_installed_module(arguments[0]) or _is_importing()):
            return
        if event in WATCHED:
            self.seen[f"{event} {str(arguments[0])[:60]} in {_callers()}"] += 1
        elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
            self.seen[f"open {arguments[0]} {arguments[1]}"] += 1


def mutant(raw: bytes, rng: np.random.Generator) -> bytes:
    """The file with one to three kinds of damage."""
    data = bytearray(raw)
    for _ in range(int(rng.integers(1, 4))):
        if not data:
            return bytes(data)
        place, kind = int(rng.integers(len(data))), int(rng.integers(9))
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            data[place] = int(rng.integers(256))
        elif kind == 3:
            width = int(rng.choice([2, 4, 8]))
            value = int(rng.choice([0, 1, 2**15 - 1, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1])) % 2 ** (8 * width)
            data[place : place + width] = value.to_bytes(width, "little")
        elif kind == 4:
            del data[place : place + int(rng.integers(1, 64))]
        elif kind == 5:
            data[place:place] = rng.bytes(int(rng.integers(1, 64)))
        elif kind == 6:
            other = int(rng.integers(len(data)))
            data[place : place + 32] = data[other : other + 32]
        elif kind == 7:  # digits of shapes, lengths and numbers
            digits = [i for i in range(len(data)) if 48 <= data[i] <= 57][:4000]
            if digits:
                at = digits[int(rng.integers(len(digits)))]
                data[at : at + 1] = rng.choice([b"9999999999", b"-1", b"0", b"1e9", b"9"])
        else:
            data = data + data[: int(rng.integers(1, 200))]
    return bytes(data)


# ------------------------------------------------------------------------------------------------- readers
def decomposition_files(suffix: str, *, seal_again: bool) -> tuple[list[bytes], Callable[[Path], Any], tuple[type[Exception], ...], str]:
    from softlinalg import Gaussian, NystromDecomposition, nystrom
    from softlinalg import _nystrom_io as files
    from softlinalg.errors import CheckpointError

    folder = Path(sys.argv[1])
    x = np.random.default_rng(0).normal(size=(12, 2))
    raws = []
    for features in (False, True):
        path = folder / f"good{suffix}"
        nystrom(x, Gaussian(1.0), landmarks=np.arange(3)).save(path, include_features=features)
        raws.append(path.read_bytes())
        path.unlink()

    def read(path: Path) -> Any:
        if seal_again:
            raw = path.read_bytes()
            with path.open("r+b") as file:
                position = files._container(path, func="load")[1].seal(file, len(raw))
                if position >= 0:
                    digest = files._file_digest(file, position)
                    file.seek(position)
                    file.write(digest)
        return NystromDecomposition.load(path)

    return raws, read, (CheckpointError,), suffix


def weight_files(suffix: str) -> tuple[list[bytes], Callable[[Path], Any], tuple[type[Exception], ...], str]:
    import torch
    from safetensors.torch import save

    import softlinalg.torch as st
    from softlinalg.errors import CheckpointError

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    folder, raws = Path(sys.argv[1]), []
    if suffix == ".safetensors":
        st.save_weights(model, folder / "good.safetensors")
        raws = [(folder / "good.safetensors").read_bytes(), save(dict(model.state_dict()))]
        (folder / "good.safetensors").unlink()
    else:
        for archive in (True, False):
            buffer = io.BytesIO()
            torch.save(model.state_dict(), buffer, _use_new_zipfile_serialization=archive)
            raws.append(buffer.getvalue())
    return raws, lambda path: st.load_published_weights(torch.nn.Linear(3, 2), path), (CheckpointError,), suffix


def command_files(suffix: str) -> tuple[list[bytes], Callable[[Path], Any], tuple[type[Exception], ...], str]:
    from softlinalg import cli

    x = np.random.default_rng(0).normal(size=(20, 3))
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, x)
    elif suffix == ".npz":
        np.savez(buffer, x=x)
    else:
        import pandas

        frame = pandas.DataFrame(x, columns=["a", "b", "c"])
        buffer.write(frame.to_csv(index=False).encode()) if suffix == ".csv" else frame.to_parquet(buffer)

    class Refused(Exception):
        """Status 2 and one line."""

    def read(path: Path) -> Any:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
            status = cli.main(["approximate", str(path), "--rank", "2", "--seed", "0", "--quiet"])
        lines = [line for line in errors.getvalue().splitlines() if "warning:" not in line]
        if status == 0:
            return None
        if status == 2 and len(lines) == 1 and lines[0].startswith("softlinalg: error: ") and "error: unexpected " not in lines[0]:
            raise Refused
        message = f"status {status}: {errors.getvalue()[:300]}"
        raise AssertionError(message)

    return [buffer.getvalue()], read, (Refused,), suffix


READERS: dict[str, Callable[[], Any]] = {
    "npz": lambda: decomposition_files(".npz", seal_again=False),
    "npz-sealed": lambda: decomposition_files(".npz", seal_again=True),
    "safetensors": lambda: decomposition_files(".safetensors", seal_again=False),
    "safetensors-sealed": lambda: decomposition_files(".safetensors", seal_again=True),
    "weights": lambda: weight_files(".safetensors"),
    "weights-pth": lambda: weight_files(".pth"),
    "command-npy": lambda: command_files(".npy"),
    "command-npz": lambda: command_files(".npz"),
    "command-csv": lambda: command_files(".csv"),
    "command-parquet": lambda: command_files(".parquet"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Damaged files by the thousand.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("readers", nargs="+", metavar="READER:COUNT", help=f"of {', '.join(READERS)}")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    watch, found = Watch(), {}
    if arguments.keep is not None and arguments.keep.is_file():
        found = json.loads(arguments.keep.read_text(encoding="utf-8"))
    for part in arguments.readers:
        name, _, count = part.partition(":")
        if sum(found.get(name, {"outcomes": {}})["outcomes"].values()) >= int(count):
            continue
        print(f"reading damaged files: {name}", file=sys.stderr, flush=True)  # the last line if the process dies
        found[name] = fuzz(name, int(count), seed=arguments.seed, folder=arguments.folder, watch=watch)
        if arguments.keep is not None:
            arguments.keep.write_text(json.dumps(found, indent=1), encoding="utf-8")
    if arguments.page is not None:
        arguments.page.write_text(page(found), encoding="utf-8")
    print(json.dumps(found))


def page(found: dict[str, dict[str, Any]]) -> str:
    """The page docs/benchmarks/damaged-files.md."""
    total, bad = sum(sum(f["outcomes"].values()) + f["bad"] for f in found.values()), sum(f["bad"] for f in found.values())
    lines = [
        "# Damaged files",
        "",
        "Files that softlinalg wrote, or that it reads, with one to three kinds of damage each: cut short, bits and bytes changed, sizes",
        "replaced by huge ones, pieces left out, put in, or moved, digits of shapes exchanged (`tests/contract/fuzz_files.py`). Promised is an",
        "answer or the documented error, with memory of 768 MiB beside what the process has: no crash, nothing executed, unpickled by name or",
        "opened for writing (an audit hook watches; not for the sealed readers below, whose files are sealed again by the test itself), no",
        "file left. `npz` and `safetensors` are decompositions, every byte of which is under a digest: no damage may be read. The sealed ones",
        "carry a new digest that fits the damage. `weights` are those of `load_published_weights`, where one of two formats has no digest.",
        "`command` is `softlinalg approximate`, and damage that leaves numbers is data. Again:",
        "",
        "```sh",
        f"mkdir damaged && python tests/contract/fuzz_files.py damaged 0 {' '.join(f'{name}:20000' for name in READERS)} \\",
        "    --keep damaged-files.json --page docs/benchmarks/damaged-files.md",
        "```",
        "",
        f"{total:,} files, {bad} of which broke the promise.",
        "",
        *(f"{where}." for where in sorted({f["where"] for f in found.values()})),
        "",
        "| reader | files | refused | read | undamaged by chance | against the promise | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in (name for name in READERS if name in found):
        outcomes = dict(found[name]["outcomes"])
        read, unchanged = outcomes.pop("read", 0), outcomes.pop("unchanged", 0)
        refused, wrong = sum(outcomes.values()), found[name]["bad"] + sum(found[name]["seen"].values()) + len(found[name]["left"])
        lines.append(
            f"| `{name}` | {refused + read + unchanged + found[name]['bad']:,} | {refused:,} | {read:,} | {unchanged:,} | {wrong} | {found[name]['seconds']:.0f} |"
        )
    if missing := [name for name in READERS if name not in found]:
        lines += ["", f"Not run for this page: {', '.join(f'`{name}`' for name in missing)}."]
    return "\n".join(lines) + "\n"


def fuzz(name: str, count: int, *, seed: int, folder: Path, watch: Watch) -> dict[str, Any]:
    """Read `count` damaged files with one reader; what came of them."""
    raws, read, refusals, suffix = READERS[name]()
    path = folder / f"mutant{suffix}"
    outcomes, wrong = collections.Counter[str](), []
    for raw in raws:  # what is imported late is imported now
        for content in (raw, raw[: len(raw) // 2], b"", raw[:-1], mutant(raw, np.random.default_rng(1)), b"\x80\x04." + raw):
            path.write_bytes(content)
            with contextlib.suppress(*refusals, AssertionError):
                read(path)
    watch.seen.clear()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM, before[1]))
    start = time.perf_counter()
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        content = mutant(raws[number % len(raws)], rng)
        path.write_bytes(content)
        watch.on = not name.endswith("-sealed")  # sealing writes
        try:
            read(path)
            outcomes["read" if content not in raws else "unchanged"] += 1
        except refusals as error:
            outcomes[type(error).__name__] += 1
        except BaseException as error:
            wrong.append(f"{number}: {type(error).__name__}: {str(error)[:300]}")
        watch.on = False
    seconds = time.perf_counter() - start
    resource.setrlimit(resource.RLIMIT_AS, before)
    path.unlink()
    left = sorted(entry.name for entry in folder.iterdir())
    return {
        "outcomes": outcomes,
        "wrong": wrong[:20],
        "bad": len(wrong),
        "seen": dict(watch.seen),
        "left": left,
        "seconds": seconds,
        "where": _where(),
    }


def _where() -> str:
    from softlinalg.testing._report import machine

    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("softlinalg", "numpy", "torch"))
    return f"{datetime.date.today()}, {machine()}, python {platform.python_version()}, {versions}"


if __name__ == "__main__":
    main()
