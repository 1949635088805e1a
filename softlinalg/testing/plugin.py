"""The pytest plugin: a mark that holds a function to the laws of its kind, and a fixture that does.

Installed with softlinalg, nothing to switch on::

    from softlinalg.testing import conforms


    @conforms("pinv", grade="S")
    def test_my_pinv():
        return my_pinv


    def test_my_kernel(softlinalg_check):
        softlinalg_check(my_kernel, "kernel", dtype="float32")

A test that is marked returns the function to hold to the laws; it runs once for each data type. Loading the plugin costs nothing: the
suites, and NumPy, are imported by the first test that asks for them. ``--softlinalg-profile=deep`` makes all of them thorough.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from softlinalg.testing._report import Report

__all__ = ["conforms", "pytest_addoption", "softlinalg_check"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --softlinalg-profile."""
    group = parser.getgroup("softlinalg", "laws of numerical functions")
    group.addoption(
        "--softlinalg-profile",
        choices=("smoke", "ci", "deep"),
        default=None,
        help="how thorough `softlinalg_check` and `conforms` are: about 5 s, a minute or 10 minutes for each function "
        "(default: what the test says, else smoke)",
    )


@pytest.fixture
def softlinalg_check(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """A function ``softlinalg_check(function, kind, **settings)`` that fails the test unless every law of the kind holds.

    The settings are those of `softlinalg.testing.suites`; it returns the report. An option ``--softlinalg-profile`` on the command
    line goes before the `profile` of the settings, which is "smoke" by default.
    """

    def check(function: Callable[..., Any], kind: str, **settings: Any) -> Report:
        __tracebackhide__ = True
        from softlinalg.testing import suites

        profile = request.config.getoption("--softlinalg-profile") or settings.pop("profile", "smoke")
        report = suites.check(function, kind, **{**settings, "profile": profile})
        text = None
        try:
            report.raise_for_failures()
        except AssertionError as error:
            text = str(error)
        if text is not None:  # outside of the handler: pytest would show both errors, with the same words
            pytest.fail(text, pytrace=False)
        return report

    return check


def conforms(
    kind: str, *, dtypes: Sequence[str] = ("float32", "float64"), **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a test of a function that returns the function under test.

    Parameters
    ----------
    kind : {"pinv", "kernel", "nystrom", "attention"}
    dtypes : sequence of str, default ("float32", "float64")
        One test for each.
    **settings
        Those of the suite in `softlinalg.testing.suites`: `grade`, `backend`, `profile` ("smoke" by default), `skip` (names of laws
        to leave out), ...

    Returns
    -------
    callable
        The decorator. The test may ask for fixtures; its name, marks and place stay.

    Examples
    --------
    >>> import numpy as np
    >>> from softlinalg.testing import conforms
    >>> @conforms("pinv", dtypes=("float64",))
    ... def test_scipy():                                                  # pytest finds it, and runs the suite on what it returns
    ...     import scipy.linalg
    ...     return scipy.linalg.pinv
    """

    def decorate(test: Callable[..., Any]) -> Callable[..., None]:
        @functools.wraps(test)
        def held(*, softlinalg_check: Callable[..., Report], dtype: str, **fixtures: Any) -> None:
            __tracebackhide__ = True
            function = test(**fixtures)
            if not callable(function):
                pytest.fail(
                    f"{test.__name__} must return the function to hold to the laws; it returned {type(function).__name__}", pytrace=False
                )
            softlinalg_check(function, kind, dtype=dtype, **settings)

        own = inspect.signature(test).parameters.values()
        added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in ("softlinalg_check", "dtype")]
        held.__signature__ = inspect.Signature([*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *added])  # type: ignore[attr-defined]
        del held.__wrapped__
        marked: Callable[..., None] = pytest.mark.parametrize("dtype", list(dtypes))(held)
        return marked

    return decorate
