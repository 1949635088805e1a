"""Bad calls by the thousand: whatever one passes ends in a result, or in an error that is documented and says on one line what to do.

    python tests/contract/bad_calls.py --keep FILE [--calls 10000] [--page docs/benchmarks/bad-calls.md] [NAME ...]

Calls are drawn from a seed each (poisons.py), so that a number alone makes one again. What is known of a function is kept in FILE
after each function: the same command goes on where it ended.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import datetime
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from adapter_functions import ADAPTER_FUNCTIONS
from poisons import poison
from public_functions import FUNCTIONS, Public

from softlinalg.errors import SoftlinalgError, SoftlinalgWarning
from softlinalg.testing._report import machine

CALLS = 10_000
SLOWEST = 20.0
"""Seconds of computing that no bad call may take."""
ENTRIES = {entry.name: entry for entry in (*FUNCTIONS, *ADAPTER_FUNCTIONS)}


class Outcome(NamedTuple):
    """What came of a call."""

    kind: str
    """"answer", or the type of the error."""
    wrong: str | None
    """What should not be, in words."""


def digest(value: Any) -> bytes:
    """Of the bytes of an argument, if it is an array that can be read without harm."""
    if isinstance(value, torch.Tensor):
        plain = value.device.type == "cpu" and value.layout == torch.strided and not value.is_quantized and value.numel() < 10**5
        if not plain:
            return b""
        shaped = value.detach().contiguous()
        value = (
            (shaped.view(torch.uint8) if shaped.ndim else shaped.reshape(1).view(torch.uint8)).numpy() if shaped.numel() else np.empty(0)
        )
    if isinstance(value, np.ndarray) and value.size < 10**5 and value.dtype.kind != "O":
        return hashlib.blake2b(np.ascontiguousarray(value).tobytes()).digest()
    return repr(value)[:2000].encode("utf-8", "replace") if isinstance(value, list | dict | tuple | str | int | float) else b""


def complaint(entry: Public, error: BaseException) -> str | None:
    """What is wrong with an error that left a public function; None if nothing is."""
    if isinstance(error, SoftlinalgError):
        return wording(entry, str(error))
    return None if isinstance(error, entry.also) else f"not documented: {type(error).__name__}"


def wording(entry: Public, text: str) -> str | None:
    """What is wrong with a message; None if nothing is."""
    if "\n" in text or not 10 < len(text) <= 400:
        return "a message of more than one line, or of another length"
    if not text.startswith(tuple(f"{prefix}{end}" for prefix in entry.prefixes() for end in (": ", "."))):
        return "a message that does not name the function"
    if re.search(r"(?<![a-z_])(array|tensor)\(|object at 0x", text):
        return "a message with an object in it"
    return None


def contents(arguments: dict[str, Any], text: str) -> str | None:
    """Does a message hold entries of an array?"""
    for value in arguments.values():
        if (
            isinstance(value, torch.Tensor)
            and value.dtype == torch.float64
            and value.device.type == "cpu"
            and value.layout == torch.strided
        ):
            value = value.detach().reshape(-1)[:20].numpy()
        if type(value) is np.ndarray and value.dtype == np.float64:
            entries = {f"{abs(number):.7g}" for number in value.reshape(-1)[:20].tolist() if 1e-3 < abs(number) < 1e3}
            if any(len(entry) >= 8 and entry in text for entry in entries):
                return "a message with array contents"
    return None


def make_call(entry: Public, seed: int) -> Outcome:
    """Make one bad call. `seed` alone makes the call again."""
    rng = np.random.default_rng(seed)
    arguments, _ = poison(entry, rng)
    before = {name: digest(value) for name, value in arguments.items()}
    start, found, kind = time.process_time(), None, "answer"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            entry.call(**arguments)
        except Exception as error:
            kind = type(error).__name__
            wrong = complaint(entry, error) or (contents(arguments, str(error)) if isinstance(error, SoftlinalgError) else None)
            found = wrong and f"{wrong}: {str(error)[:300]!r}"
    if (took := time.process_time() - start) > SLOWEST:
        return Outcome(kind, f"took {took:.0f} s")
    foreign = [w for w in caught if not issubclass(w.category, SoftlinalgWarning) and not _is_own(w, entry)]
    if foreign and not found:
        found = f"a warning that is not ours: {foreign[0].category.__name__} {str(foreign[0].message)[:200]!r} {foreign[0].filename}:{foreign[0].lineno}"
    changed = [name for name, value in arguments.items() if digest(value) != before[name]]
    return Outcome(kind, f"changed {changed}" if changed else found)


def _is_own(warning: warnings.WarningMessage, entry: Public) -> bool:
    """Does it come from the framework that is asked first, or from its caller on its behalf?"""
    return bool(entry.warns) and (f"/{entry.warns}/" in warning.filename or warning.category.__module__.startswith(f"{entry.warns}."))


def describe(entry: Public, seed: int) -> str:
    """The call that a seed makes, for people."""
    arguments, chosen = poison(entry, np.random.default_rng(seed))
    shown = []
    for name in chosen:
        value = arguments[name]
        shown.append(
            f"{name}={type(value).__name__}{tuple(value.shape)} {value.dtype}"
            if not isinstance(value, type) and hasattr(value, "shape") and hasattr(value, "dtype")
            else f"{name}={value!r}"[:120]
        )
    return f"{entry.name}({', '.join(shown)}) [make_call(ENTRIES[{entry.name!r}], {seed})]"


# ------------------------------------------------------------------------------------------------- command
def main(argv: Sequence[str] | None = None) -> int:
    """Make the calls; 0 if nothing went wrong."""
    parser = argparse.ArgumentParser(description="Bad calls to every public function.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="which functions; default: all")
    parser.add_argument("--calls", type=int, default=CALLS, metavar="N", help="to each; default: 10,000")
    parser.add_argument("--keep", type=Path, required=True, metavar="FILE", help="JSON of what is known, to go on from after an end")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write what is known as a page")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.names if name not in ENTRIES]:
        parser.error(f"no function is named {unknown[0]}; there are {', '.join(ENTRIES)}")
    known: dict[str, Any] = json.loads(arguments.keep.read_text(encoding="utf-8")) if arguments.keep.is_file() else {}
    for name in arguments.names or ENTRIES:
        entry = ENTRIES[name]
        if not (entry.arrays or entry.settings) or known.get(name, {}).get("calls", 0) >= arguments.calls:
            continue
        known[name] = _many(entry, arguments.calls)
        arguments.keep.write_text(json.dumps(known, indent=1), encoding="utf-8")
        print(f"{name}: {known[name]['seconds']:.0f} s, {len(known[name]['problems'])} wrong", flush=True)
        for problem in known[name]["problems"][:5]:
            print(f"    {problem}", flush=True)
    if arguments.page is not None:
        arguments.page.write_text(page(known), encoding="utf-8")
    return int(any(found["problems"] for found in known.values()))


def _many(entry: Public, calls: int) -> dict[str, Any]:
    """What came of so many calls; it ends after 40 that went wrong."""
    outcomes, problems, seed, start = collections.Counter[str](), [], 0, time.process_time()
    while seed < calls and len(problems) < 40:
        with contextlib.redirect_stderr(io.StringIO()):  # bars of progress
            outcome = make_call(entry, seed)
        outcomes[outcome.kind] += 1
        if outcome.wrong:
            problems.append(f"{describe(entry, seed)}: {outcome.wrong}")
        seed += 1
    seconds = time.process_time() - start
    return {"calls": seed, "outcomes": outcomes, "problems": problems, "seconds": round(seconds, 1)} | _where()


def _where() -> dict[str, str]:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("softlinalg", "numpy", "scipy", "torch"))
    return {"where": f"{datetime.date.today()}, {machine()}, python {platform.python_version()}, {versions}"}


FOUND = (
    "Earlier runs of these calls found what has been mended since, each with a test; the calls that failed were made again, and pass:",
    "",
    "- `nystrom_stream` let errors of NumPy and Python through for targets or blocks whose rows have different lengths, and for a function",
    "  that wants arguments; buffers (`memoryview`), which are arrays, it could not read.",
    "- `solve_kernel_ridge` named another function where `chunk_size` was wrong and an approximation was given, and a ridge of 1e308 gave a",
    "  warning of NumPy.",
    "- `torch.SoftAttention` and `torch.SoftBlock` let a TypeError through where `grid` is an array without axes.",
    "- `testing.build_attention` let a TypeError through where a size is None, and quoted numbers of hundreds of digits;",
    "  `testing.build_gram` could not write fractions.",
    "- `sklearn.NystromPCA` refused data whose first column is beyond 1e144, and named another function.",
)
"""What the page says of the past."""


def page(known: dict[str, Any]) -> str:
    """The page docs/benchmarks/bad-calls.md."""
    total, wrong = (sum(count) for count in zip(*((f["calls"], len(f["problems"])) for f in known.values()), strict=True))
    lines = [
        "# Bad calls",
        "",
        "Every public function, called with arguments that nobody should pass: one argument of a valid call, or two, replaced by another type,",
        "shape, library, layout, value or object (`tests/contract/poisons.py`). Promised is a result, or an error of `softlinalg.errors` (or,",
        "where the documentation says so, of the system or of the framework) whose message is one line that names the function; no other",
        "warning, no change of an argument, no call of more than 20 seconds. Many such calls are valid: integers are promoted, lists converted.",
        "Again, in half an hour on one core:",
        "",
        "```sh",
        "python tests/contract/bad_calls.py --keep bad-calls.json --page docs/benchmarks/bad-calls.md",
        "```",
        "",
        f"{total:,} calls to {len(known)} functions, {wrong} of which broke the promise.",
        "",
        *(f"{where}." for where in sorted({found["where"] for found in known.values()})),
        "",
        "| function | calls | answers | refused | most frequent errors | against the promise |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in (name for name in ENTRIES if name in known):
        found = known[name]
        errors = {kind: count for kind, count in found["outcomes"].items() if kind != "answer"}
        often = ", ".join(f"{kind} {count:,}" for kind, count in sorted(errors.items(), key=lambda item: (-item[1], item[0]))[:3])
        refused, answers = sum(errors.values()), found["outcomes"].get("answer", 0)
        lines.append(f"| `{name}` | {found['calls']:,} | {answers:,} | {refused:,} | {often} | {len(found['problems'])} |")
    lines += ["", *FOUND]
    if left := [name for name, entry in ENTRIES.items() if name not in known and (entry.arrays or entry.settings)]:
        lines += ["", f"Not called for this page: {', '.join(f'`{name}`' for name in left)}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    sys.exit(main())
