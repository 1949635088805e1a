"""Strategies for matrices of known rank, spectrum and condition. See `strategies`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import event, example
from hypothesis import strategies as st

from softlinalg.testing._cases import Case, build_graded, build_matrix, largest_cond, unit
from softlinalg.testing._strategies_pieces import SEEDS, batch_shapes, conds, dtypes, log2_scales, pick, shapes

__all__ = ["batched", "exactly_deficient", "graded", "ladder", "matrices", "psd", "record", "rectangular", "symmetric", "with_spectrum"]

T = TypeVar("T")


def _ranks(full: int) -> st.SearchStrategy[int]:
    """Full rank in half of the draws, zero in one of forty."""
    lower = list(range(1, full))
    deficient = lower * math.ceil(20 / len(lower)) if lower else []
    return st.sampled_from([full] * (len(deficient) or 40) + deficient + [0])


@st.composite
def matrices(
    draw: Callable[[Any], Any],
    *,
    shape: Any = None,
    rank: Any = None,
    mode: Any = None,
    cond: Any = None,
    log2_scale: Any = None,
    dtype: Any = None,
    structure: Any = "general",
    exact: Any = False,
    batch: Any = (),
    layout: Any = "C",
    xp: Any = "numpy",
    device: Any = None,
    max_side: int = 8,
) -> Case:
    """Matrices of known rank, spectrum and condition, as `build_matrix` makes them.

    Parameters
    ----------
    shape, rank, mode, cond, log2_scale, dtype : value, strategy, or None
        Default: `shapes` (square where `structure` asks for it), full rank in half of the draws, every mode, `conds`, `log2_scales`,
        float32 or float64.
    rank : also "full" or "deficient"
    structure, exact, batch, layout, xp, device : value or strategy
        As in `build_matrix`. For all layouts of a library pass ``layout=layouts(xp)``.
    max_side : int, default 8

    Returns
    -------
    strategy of Case

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.matrices(dtype="float64"), lambda case: case.rank >= 2)
    >>> case.dtype, case.rank >= 2
    ('float64', True)
    """
    structure, xp = pick(draw, structure, "general"), pick(draw, xp, "numpy")
    dtype = pick(draw, dtype, dtypes(xp))
    shape = pick(draw, shape, shapes(max_side=max_side, square=structure != "general", min_side=2 if rank == "deficient" else 1))
    full = min(shape)
    if rank == "deficient":
        rank = st.integers(1, max(1, full - 1))
    rank = full if rank == "full" else pick(draw, rank, _ranks(full))
    mode = pick(draw, mode, st.sampled_from([3, 1, 2, 4, 5, 6, "geometric"]))
    exact = pick(draw, exact, False)
    cond = pick(draw, cond, conds(shape, dtype)) if rank > 1 else 1.0
    if exact:
        bits = (round(1 - math.log2(unit(dtype))) - math.ceil(math.log2(max(rank, 1)))) // 2
        cond = min(cond, 4.0**bits / 64, largest_cond(shape, dtype) / 2)
    scale = pick(draw, log2_scale, log2_scales(dtype, cond))
    case = build_matrix(
        shape=tuple(shape), rank=rank, mode=mode, cond=max(1.0, cond), log2_scale=scale, dtype=dtype,
        structure=structure, exact=exact, batch=tuple(pick(draw, batch, ())), layout=pick(draw, layout, "C"), xp=xp,
        device=pick(draw, device, st.none()), seed=draw(SEEDS),
    )  # fmt: skip
    record(case)
    return case


def record(case: Case) -> None:
    kind = "trivial" if case.is_trivial else ("full rank" if case.rank == min(case.shape) else "deficient")
    event(f"matrix: {kind}")
    event(f"condition: 1e{int(math.log10(case.kappa) + 1e-9)}, {case.dtype}")
    if "mode" in case.extra:
        event(f"mode: {case.extra['mode']}")
    event(f"layout: {case.extra.get('layout')}, {case.extra.get('xp')}")


def with_spectrum(s: Any, *, shape: Any = None, **settings: Any) -> st.SearchStrategy[Case]:
    """Matrices with the singular values given: a descending sequence, or a strategy for one. `settings` as in `matrices`.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.with_spectrum([4.0, 1.0], dtype="float64"), lambda case: True)
    >>> np.round(np.linalg.svd(case.A, compute_uv=False)[:2], 6)
    array([4., 1.])
    """

    @st.composite
    def drawn(draw: Callable[[Any], Any]) -> Case:
        values = [float(value) for value in pick(draw, s, None)]
        least = max(1, len(values))
        square = settings.get("structure", "general") != "general"
        chosen = pick(draw, shape, st.tuples(st.integers(least, least + 4), st.integers(least, least + 4)))
        case = build_matrix(
            shape=(chosen[0], chosen[0]) if square and shape is None else tuple(chosen),
            s=tuple(values),
            dtype=pick(draw, settings.get("dtype"), dtypes(settings.get("xp", "numpy"))),
            seed=draw(SEEDS),
            **{key: pick(draw, value, None) for key, value in settings.items() if key != "dtype"},
        )
        record(case)
        return case

    return drawn()


def symmetric(**settings: Any) -> st.SearchStrategy[Case]:
    """Hermitian matrices with eigenvalues of both signs. `settings` as in `matrices`.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.symmetric(dtype="float64"), lambda case: True)
    >>> bool(np.all(case.A == case.A.T))
    True
    """
    return matrices(structure="symmetric", **settings)


def psd(**settings: Any) -> st.SearchStrategy[Case]:
    """Positive semi-definite matrices. `settings` as in `matrices`.

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.psd(dtype="float64"), lambda case: True)
    >>> bool(np.linalg.eigvalsh(case.A).min() > -1e-12 * case.s[0])
    True
    """
    return matrices(structure="psd", **settings)


def rectangular(*, max_side: int = 8, **settings: Any) -> st.SearchStrategy[Case]:
    """Matrices that are not square. `settings` as in `matrices`.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.rectangular(dtype="float64"), lambda case: True)
    >>> case.A.shape[0] != case.A.shape[1]
    True
    """
    return matrices(shape=shapes(max_side=max_side, rectangular=True), **settings)


def batched(**settings: Any) -> st.SearchStrategy[Case]:
    """Batches of matrices of one spectrum. `settings` as in `matrices`.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> find(strategies.batched(dtype="float64"), lambda case: True).A.ndim > 2
    True
    """
    return matrices(batch=batch_shapes(), **settings)


def exactly_deficient(**settings: Any) -> st.SearchStrategy[Case]:
    """Matrices whose rank is below min(m, n) in exact arithmetic: products of integer matrices that the type holds without rounding.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.exactly_deficient(dtype="float64"), lambda case: True)
    >>> case.rank < min(case.A.shape)
    True
    """
    return matrices(rank="deficient", exact=True, **settings)


@st.composite
def graded(
    draw: Callable[[Any], Any], *, shape: Any = None, step: Any = None, sides: Any = None, dtype: Any = None, layout: Any = "C",
    xp: Any = "numpy", device: Any = None, max_side: int = 6,
) -> Case:  # fmt: skip
    """Badly scaled matrices, their rows, columns or both graded by powers of two (see `build_graded`); the rank is beyond dispute.

    Arguments are values, strategies or None.

    Examples
    --------
    >>> from hypothesis import find
    >>> from softlinalg.testing import strategies
    >>> case = find(strategies.graded(dtype="float64"), lambda case: True)
    >>> bool(case.kappa >= 1)
    True
    """
    xp = pick(draw, xp, "numpy")
    dtype = pick(draw, dtype, dtypes(xp))
    shape = pick(draw, shape, shapes(max_side=max_side, min_side=2))
    sides = pick(draw, sides, st.sampled_from(["both", "rows", "columns"]))
    # D_1 G D_2 has a condition of at most cond(D_1) cond(G) cond(D_2): keep it below what the type can tell.
    span = sum(side - 1 for side, name in zip(shape, ("rows", "columns"), strict=True) if sides in ("both", name))
    limit = math.log2(largest_cond(shape, dtype) / 10) / max(1, span)
    step = pick(draw, step, st.integers(1, 4).map(lambda quarter: round(limit * quarter / 4, 1)))
    case = build_graded(
        shape=tuple(shape), step=step, sides=sides, dtype=dtype, layout=pick(draw, layout, "C"), xp=xp, device=device, seed=draw(SEEDS)
    )
    record(case)
    return case


def ladder(
    name: str = "case", *, dtype: str = "float64", shape: tuple[int, int] = (6, 4), seed: int = 0, **settings: Any
) -> Callable[[T], T]:
    """Decorator that adds the whole ladder of conditions, at full and at deficient rank, as explicit examples.

    Below ``@given``, so that these cases run always, whatever is drawn:

    >>> @given(case=matrices(dtype="float32"))            # doctest: +SKIP
    ... @ladder("case", dtype="float32")
    ... def test_my_pinv(case): ...

    Examples
    --------
    >>> import numpy as np
    >>> from hypothesis import given, settings
    >>> from softlinalg.testing import assert_pinv, strategies
    >>> @strategies.ladder(dtype="float64")
    ... @settings(max_examples=1)
    ... @given(case=strategies.matrices(dtype="float64"))
    ... def test(case):
    ...     assert_pinv(np.linalg.pinv, case)
    >>> test()
    """
    top = largest_cond(shape, dtype)
    rungs = sorted({min(rung, top) for rung in (1.0, 2.0, 10.0, 100.0, math.sqrt(0.1 / unit(dtype)), 0.1 / unit(dtype))})

    def add(test: T) -> T:
        for cond in rungs:
            for rank in (min(shape), max(1, min(shape) // 2)):
                case = build_matrix(shape=shape, rank=rank, cond=cond, dtype=dtype, seed=seed, **settings)
                test = example(**{name: case})(test)  # type: ignore[type-var]
        return test

    return add
