"""Named hard matrices, each with what is known about it, and its pseudo-inverse exactly or to 50 digits.

>>> from softlinalg.testing import gallery
>>> m = gallery.get("hilbert", n=3)
>>> m.symmetric, m.psd, m.rank
(True, True, 3)
>>> [[str(entry) for entry in row] for row in m.pinv_exact()][0]
['9', '-36', '30']
>>> m.case(dtype="float32")
softlinalg.testing.gallery.get('hilbert', n=3).case(dtype='float32')

`case` gives what the assertions and ratios take: the matrix rounded to a data type, with the pseudo-inverse of the rounded numbers as
truth. `names` lists all; `cases` goes through them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from softlinalg._settings import is_one_of, shown
from softlinalg.errors import ParameterError
from softlinalg.testing import _exact, _layouts
from softlinalg.testing._cases import Case, case_of, short
from softlinalg.testing._gallery_matrices import REGISTRY, Recipe, mpmath_module

__all__ = ["GalleryMatrix", "cases", "get", "names"]

DIGITS = 50
"""Decimal digits of what is not rational."""


@dataclass(frozen=True, repr=False)
class GalleryMatrix:
    """A named matrix in exact numbers.

    Attributes
    ----------
    name : str
    params : dict
        Its parameters; `get` with them gives the same matrix.

    Examples
    --------
    >>> from softlinalg.testing import gallery
    >>> matrix = gallery.get("hilbert", n=3)
    >>> matrix.name, matrix.case().rank
    ('hilbert', 3)
    """

    name: str
    params: dict[str, Any]
    recipe: Recipe

    def __repr__(self) -> str:
        shown = "".join(f", {key}={_parameter(value)}" for key, value in self.params.items())
        return f"softlinalg.testing.gallery.get({self.name!r}{shown})"

    @property
    def note(self) -> str:
        """What it is, and why it is hard."""
        return self.recipe.note

    @property
    def symmetric(self) -> bool:
        """Equal to its transpose."""
        return self.recipe.symmetric

    @property
    def psd(self) -> bool:
        """Symmetric and positive semi-definite."""
        return self.recipe.psd

    @property
    def rational(self) -> bool:
        """Entries are fractions; otherwise they are mpmath numbers of 50 digits and more."""
        return self.recipe.rational

    @property
    def has_closed_form(self) -> bool:
        """The pseudo-inverse comes from a formula, not from elimination."""
        return self.recipe.inverse is not None

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        m, n = self.exact.shape
        return int(m), int(n)

    @functools.cached_property
    def exact(self) -> np.ndarray[Any, Any]:
        """Entries as fractions, or as mpmath numbers with 80 digits; dtype object. Do not write into it."""
        if self.rational:
            return self.recipe.build(**self.params)
        with mpmath_module().workdps(_GUARD):
            return self.recipe.build(**self.params)

    @functools.cached_property
    def rank(self) -> int:
        """Exact rank."""
        return self.recipe.rank(**self.params) if self.recipe.rank is not None else min(self.shape)

    def pinv_exact(self) -> np.ndarray[Any, Any]:
        """The pseudo-inverse of the exact matrix, shape (n, m), dtype object: fractions, or mpmath numbers right to 50 digits.

        By the closed form where there is one, otherwise by rational elimination, or by mpmath with as many more digits as the condition
        takes. Computed at the call.
        """
        if self.recipe.inverse is not None:
            return self.recipe.inverse(**self.params)
        if self.rational:
            return _exact.rational_pinv(self.exact)
        mp = mpmath_module()
        digits = _GUARD
        while True:
            # The matrix is built anew with more digits, until the residual says that 50 are right.
            with mp.workdps(digits):
                a = mp.matrix(self.recipe.build(**self.params).tolist())
                x = a**-1
                residual = mp.norm(a * x - mp.eye(a.rows), mp.inf)
                if residual * mp.norm(x, mp.inf) * mp.norm(a, mp.inf) < mp.mpf(10) ** -(DIGITS + 5):
                    return np.array(x.tolist(), dtype=object)
            digits *= 2

    def inverse_closed_form(self) -> np.ndarray[Any, Any] | None:
        """The (pseudo-)inverse by its formula, or None."""
        return self.recipe.inverse(**self.params) if self.recipe.inverse is not None else None

    @functools.cached_property
    def cond(self) -> float:
        """Spectral condition |A| |A^+|, over the nonzero singular values; 1 for zero."""
        a, x = self.host(), _to_float64(self.pinv_exact())
        return float(np.linalg.norm(a, 2) * np.linalg.norm(x, 2)) if self.rank else 1.0

    def host(self) -> np.ndarray[Any, Any]:
        """Entries correctly rounded to float64."""
        return _to_float64(self.exact)

    def case(self, *, dtype: str = "float64", layout: str = "C", xp: Any = "numpy", device: Any = None) -> Case:
        """The matrix rounded to a data type, as a case for the assertions and ratios.

        Its rank counts singular values above max(m, n) u s_1 of the rounded numbers; `gap` says whether that is beyond dispute.
        """
        name = _layouts.namespace_name(xp)
        settings = {"dtype": dtype, "layout": layout, "xp": name, "device": device}
        defaults = {"layout": "C", "xp": "numpy", "device": None}
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items() if defaults.get(key, "") != value)
        m, n = self.shape
        return case_of(
            _layouts.round_to(self.host(), dtype),
            dtype=dtype,
            desc=f"{self.name} {m}x{n}" + (f" (exact condition {short(self.cond)})" if self.cond > 1e4 else ""),
            code=f"{self!r}.case({shown})",
            structure="psd" if self.psd else ("symmetric" if self.symmetric else "general"),
            layout=layout,
            xp=xp,
            device=device,
            extra={"gallery": self.name, "params": self.params},
        )


_GUARD = 80


def _parameter(value: Any) -> str:
    """A parameter as Python text: fractions as the pair that Fraction takes."""
    return repr(value) if isinstance(value, int | float | str) else f"{str(value)!r}"


def _to_float64(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Fractions correctly rounded; mpmath numbers to nearest."""
    if a.size and hasattr(a.flat[0], "numerator"):
        return _exact.round_fractions(a)
    return np.array([[float(entry) for entry in row] for row in a], dtype=np.float64).reshape(a.shape)


def names() -> list[str]:
    """Names of all matrices of the gallery.

    Examples
    --------
    >>> from softlinalg.testing import gallery
    >>> "hilbert" in gallery.names()
    True
    """
    return sorted(REGISTRY)


def get(name: str, **params: Any) -> GalleryMatrix:
    """A matrix of the gallery.

    Parameters
    ----------
    name : str
        One of `names`.
    **params
        Its parameters (`n`, ...), all with defaults.

    Raises
    ------
    ParameterError
        An unknown name or parameter.

    Examples
    --------
    >>> from softlinalg.testing import gallery
    >>> gallery.get("hilbert", n=4).case().A.shape
    (4, 4)
    """
    if not is_one_of(name, REGISTRY):
        message = f"gallery.get: name must be one of gallery.names(); got {shown(name)}. The first is {names()[0]!r}."
        raise ParameterError(message)
    recipe = REGISTRY[name]
    unknown = sorted(set(params) - set(recipe.defaults))
    if unknown:
        known = ", ".join(recipe.defaults)
        message = f"gallery.get: parameters of {name} must be among {known}; got {', '.join(unknown)[:80]}. Leave out the others."
        raise ParameterError(message)
    return GalleryMatrix(name, recipe.defaults | params, recipe)


_SIZES: dict[str, list[dict[str, Any]]] = {
    "hilbert": [{"n": 3}, {"n": 6}, {"n": 10}],
    "gaussian_grid": [{"length_scale": scale} for scale in (0.5, 1.0, 2.0, 4.0)],
    "vandermonde": [{"n": 6, "m": 6}, {"n": 9, "m": 4}],
    "magic": [{"n": 4}, {"n": 5}, {"n": 6}, {"n": 8}],
    "lauchli": [{"log2_mu": -6}, {"log2_mu": -20}],
    "equal_landmarks": [{"n": 2}, {"n": 5}],
    "scaled_identity": [{"log2_scale": -100}, {"log2_scale": 100}],
    "spectral_gap": [{"log2_gap": -8}, {"log2_gap": -14}],
}


def cases(*, dtype: str = "float64", only_gap: bool = False, xp: Any = "numpy") -> Iterator[Case]:
    """Every matrix of the gallery, some in several sizes, as cases in a data type.

    Parameters
    ----------
    dtype : str
    only_gap : bool, default False
        Leave out those whose numerical rank is a matter of taste in this type.
    xp : str or namespace

    Examples
    --------
    >>> from softlinalg.testing import gallery
    >>> len(list(gallery.cases(dtype="float32"))) > 10
    True
    """
    for name in names():
        for params in _SIZES.get(name, [{}]):
            case = get(name, **params).case(dtype=dtype, xp=xp)
            if case.gap or not only_gap:
                yield case
