"""Every public name has an example in its docstring, and the examples run and give what they show."""

from __future__ import annotations

import doctest
import functools
import importlib
import inspect
import os
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

MODULES = {
    "softlinalg": None,
    "softlinalg.errors": None,
    "softlinalg.sklearn": "sklearn",
    "softlinalg.dask": "dask",
    "softlinalg.jax": "jax",
    "softlinalg.torch": "torch",
    "softlinalg.torch.gpytorch": "gpytorch",
    "softlinalg.testing": "hypothesis",
    "softlinalg.testing.gallery": "hypothesis",
    "softlinalg.testing.ratios": "hypothesis",
    "softlinalg.testing.strategies": "hypothesis",
    "softlinalg.testing.suites": "hypothesis",
}
"""Public modules, and what each of them needs."""

SLOW = {
    "softlinalg.dask.nystrom": "starts a cluster, in which tests/test_dask.py computes the same",
    "softlinalg.dask.DaskNystrom": "starts a cluster, in which tests/test_dask.py computes the same",
    "softlinalg.jax.pinv": "compiles for ten seconds; tests/test_jax.py holds the same derivatives",
    "softlinalg.jax.ridge_inverse": "compiles for ten seconds; tests/test_jax.py holds the same derivatives",
    "softlinalg.jax.soft_attention": "compiles for ten seconds; tests/test_jax.py holds the same derivatives",
}
"""Examples that run with HYPOTHESIS_PROFILE=thorough only, with the reason."""

THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"


def public(module: str) -> Iterator[tuple[str, Any]]:
    """Functions and classes of a module by name; other values have no docstring of their own."""
    space = importlib.import_module(module)
    for name in space.__all__:
        value = getattr(space, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value


def texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Docstrings with examples: of the value, and of the methods of a class that have some."""
    yield name, inspect.getdoc(value) or ""
    if inspect.isclass(value):
        for method, member in vars(value).items():
            text = inspect.getdoc(getattr(value, method, None)) or ""
            if not method.startswith("_") and callable(getattr(value, method)) and ">>>" in text and member is not None:
                yield f"{name}.{method}", text


@pytest.fixture(autouse=True)
def quick_find(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis' find() without its search for the simplest example, which takes a second each and which no example depends on."""
    hypothesis = pytest.importorskip("hypothesis")
    settings = hypothesis.settings(phases=[hypothesis.Phase.generate], database=None, suppress_health_check=list(hypothesis.HealthCheck))
    monkeypatch.setattr(hypothesis, "find", functools.partial(hypothesis.find, settings=settings, random=random.Random(0)))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_an_example_that_runs(module: str) -> None:
    needed = MODULES[module]
    if needed is not None:
        pytest.importorskip(needed)
    without, report = [], []
    for name, value in public(module):
        if ">>>" not in (inspect.getdoc(value) or ""):
            without.append(name)
            continue
        if (f"{module}.{name}" in SLOW and not THOROUGH) or _elsewhere(module, value):
            continue
        for where, text in texts(name, value):
            # Names of the docstring alone: what the module imports does not help a reader.
            examples = doctest.DocTestParser().get_doctest(text, {}, f"{module}.{where}", None, 0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # hypothesis: find() is meant for looking, as here
                doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE).run(examples, out=report.append)
    assert not without, f"no example: {without}"
    assert not report, "".join(report)


def _elsewhere(module: str, value: Any) -> bool:
    """Whether a value is also a name of `softlinalg.testing`, where its example runs."""
    if not module.startswith("softlinalg.testing."):
        return False
    above = importlib.import_module("softlinalg.testing")
    return any(getattr(above, name) is value for name in above.__all__)
