"""Random numbers: one rule for the keyword `rng`.

Random choices are drawn on the host with NumPy whatever the array library is, so the same seed picks the same
landmarks on every backend.
"""

from __future__ import annotations

import numpy as np

from softlinalg._typing import RngLike
from softlinalg.errors import ParameterError

__all__ = ["as_generator"]


def as_generator(rng: RngLike, *, func: str) -> np.random.Generator:
    """Turn the keyword `rng` into a NumPy generator, as SPEC 7 describes.

    Parameters
    ----------
    rng : None, int, SeedSequence, BitGenerator or Generator
        None draws fresh entropy; a generator is used as it is, and advanced.
    func : str
        Name of the public function, for the message.

    Raises
    ------
    ParameterError
        For anything else, such as a negative integer or a legacy `RandomState`.
    """
    if isinstance(rng, bool | np.random.RandomState):
        message = f"{func}: rng must be None, an int or a numpy Generator; got {type(rng).__name__}. Pass numpy.random.default_rng(seed)."
        raise ParameterError(message)
    try:
        return np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        shown = repr(rng) if isinstance(rng, int | float | str) else type(rng).__name__
        message = (
            f"{func}: rng must be None, a non-negative int or a numpy Generator; got {shown[:60]}. Pass numpy.random.default_rng(seed)."
        )
        raise ParameterError(message) from error
