"""Cases, and the failure that is expected: what the tests of the assertions share."""

from __future__ import annotations

import re

import numpy as np
import pytest

from softlinalg.testing import build_matrix, build_points, ratios
from softlinalg.testing.assertions import AccuracyError

HALF = ratios.THRESHOLD / 2
SQUARE = build_matrix(shape=(5, 5), cond=30.0, seed=3)
POINTS = build_points(shape=(20, 3), seed=3)


def numpy_pinv(a):
    return np.linalg.pinv(a, rtol=None)


def fails(law: str, *words: str):
    """The assertion fails on this law, with these words and an explanation in its message."""
    return pytest.raises(AccuracyError, match="(?s)" + ".*".join([re.escape(law), *words]))
