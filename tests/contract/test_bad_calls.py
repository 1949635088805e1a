"""Whatever one passes: a result, or an error that is documented and says on one line what to do."""

from __future__ import annotations

import hashlib
import os
import re
import time
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from poisons import convert, poison
from public_functions import BY_NAME, FUNCTIONS, NO_FUNCTIONS, NO_TORCH_FUNCTIONS, Public

import softlinalg
import softlinalg.torch
from softlinalg.errors import SoftlinalgError, SoftlinalgWarning

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
SECONDS = 0.2
"""Of bad calls per function, unless HYPOTHESIS_PROFILE=thorough asks for all of `CALLS`."""
LEAST = 20
"""Calls, however long they take."""
CALLS = 10_000
SLOWEST = 20.0
"""Seconds of computing that no bad call may take."""


def test_the_table_names_every_public_function() -> None:
    methods = {name for name in vars(softlinalg.NystromDecomposition) if not name.startswith("_")}
    properties = {name for name in methods if isinstance(vars(softlinalg.NystromDecomposition)[name], property)}
    names = set(BY_NAME)
    assert set(softlinalg.__all__) - NO_FUNCTIONS == {name for name in names if "." not in name}
    assert set(softlinalg.torch.__all__) - NO_TORCH_FUNCTIONS == {n.removeprefix("torch.") for n in names if n.startswith("torch.")}
    own = {name.split(".")[1] for name in names if name.startswith("NystromDecomposition.")}
    assert methods - properties == own - {"matmul", "rmatmul"}
    assert not (NO_FUNCTIONS - set(softlinalg.__all__) | NO_TORCH_FUNCTIONS - set(softlinalg.torch.__all__))


@pytest.mark.parametrize("entry", FUNCTIONS, ids=lambda entry: entry.name)
def test_the_calls_of_the_table_are_valid(entry: Public) -> None:
    entry.call(**convert(entry, entry.make(np.random.default_rng(0))))


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
    if isinstance(error, entry.also):
        return None
    if not isinstance(error, SoftlinalgError):
        return f"not documented: {type(error).__name__}"
    return wording(entry, str(error))


def wording(entry: Public, text: str) -> str | None:
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


def check_call(entry: Public, seed: int) -> str | None:
    """Make one bad call; what went wrong with it, or None. `seed` alone makes the call again."""
    rng = np.random.default_rng(seed)
    arguments, _ = poison(entry, rng)
    before = {name: digest(value) for name, value in arguments.items()}
    start, found = time.process_time(), None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            entry.call(**arguments)
        except Exception as error:
            wrong = complaint(entry, error) or contents(arguments, str(error))
            found = wrong and f"{wrong}: {str(error)[:300]!r}"
    if (took := time.process_time() - start) > SLOWEST:
        return f"took {took:.0f} s"
    foreign = [w for w in caught if not issubclass(w.category, SoftlinalgWarning)]
    if foreign and not found:
        found = f"a warning that is not ours: {foreign[0].category.__name__} {str(foreign[0].message)[:200]!r} {foreign[0].filename}:{foreign[0].lineno}"
    changed = [name for name, value in arguments.items() if digest(value) != before[name]]
    return f"changed {changed}" if changed else found


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
    return f"{entry.name}({', '.join(shown)}) [check_call(BY_NAME[{entry.name!r}], {seed})]"


@pytest.mark.slow
@pytest.mark.timeout(0 if THOROUGH else 600)
@pytest.mark.parametrize("entry", [entry for entry in FUNCTIONS if entry.arrays or entry.settings], ids=lambda entry: entry.name)
def test_bad_calls_end_in_a_result_or_a_documented_error(entry: Public) -> None:
    """10,000 calls with HYPOTHESIS_PROFILE=thorough; in CI as many of them, from the first on, as a fair share of the time allows."""
    start, problems, seed = time.process_time(), [], 0
    while seed < CALLS and (THOROUGH or seed < LEAST or time.process_time() - start < SECONDS):
        wrong = check_call(entry, seed)
        if wrong:
            problems.append(f"{describe(entry, seed)}: {wrong}")
        seed += 1
        if len(problems) >= 40:
            break
    assert not problems, f"{len(problems)} of {seed} calls:\n" + "\n".join(problems)
