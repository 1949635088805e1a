"""Whatever one passes: a result, or an error that is documented and says on one line what to do."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from bad_calls import CALLS, ENTRIES, describe, make_call
from poisons import convert
from public_functions import BY_NAME, NO_FUNCTIONS, NO_TORCH_FUNCTIONS, Public

import softlinalg
import softlinalg.torch

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
SECONDS = 0.2
"""Of bad calls per function, unless HYPOTHESIS_PROFILE=thorough asks for all of `CALLS`."""
LEAST = 20
"""Calls, however long they take."""


def test_the_table_names_every_public_function() -> None:
    methods = {name for name in vars(softlinalg.NystromDecomposition) if not name.startswith("_")}
    properties = {name for name in methods if isinstance(vars(softlinalg.NystromDecomposition)[name], property)}
    names = set(BY_NAME)
    assert set(softlinalg.__all__) - NO_FUNCTIONS == {name for name in names if "." not in name}
    assert set(softlinalg.torch.__all__) - NO_TORCH_FUNCTIONS == {n.removeprefix("torch.") for n in names if n.startswith("torch.")}
    own = {name.split(".")[1] for name in names if name.startswith("NystromDecomposition.")}
    assert methods - properties == own - {"matmul", "rmatmul"}
    assert not (NO_FUNCTIONS - set(softlinalg.__all__) | NO_TORCH_FUNCTIONS - set(softlinalg.torch.__all__))


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=lambda entry: entry.name)
def test_the_calls_of_the_table_are_valid(entry: Public) -> None:
    entry.call(**convert(entry, entry.make(np.random.default_rng(0))))


@pytest.mark.slow
@pytest.mark.timeout(0 if THOROUGH else 600)
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES.values() if entry.arrays or entry.settings], ids=lambda entry: entry.name)
def test_bad_calls_end_in_a_result_or_a_documented_error(entry: Public) -> None:
    """10,000 calls with HYPOTHESIS_PROFILE=thorough; in CI as many of them, from the first on, as a fair share of the time allows."""
    start, problems, seed = time.process_time(), [], 0
    while seed < CALLS and (THOROUGH or seed < LEAST or time.process_time() - start < SECONDS):
        wrong = make_call(entry, seed).wrong
        if wrong:
            problems.append(f"{describe(entry, seed)}: {wrong}")
        seed += 1
        if len(problems) >= 40:
            break
    assert not problems, f"{len(problems)} of {seed} calls:\n" + "\n".join(problems)
