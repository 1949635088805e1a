"""Words for types that the array API standard leaves without a name."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""An array of any library that follows the array API standard."""

Namespace: TypeAlias = Any
"""The functions of such a library, as array-api-compat returns them."""

DType: TypeAlias = Any
Device: TypeAlias = Any

RngLike: TypeAlias = "int | np.random.Generator | np.random.SeedSequence | np.random.BitGenerator | None"
"""What SPEC 7 lets people pass as `rng`."""
