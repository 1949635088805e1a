"""Bad arguments, made from good ones: what people pass by mistake, and what nobody should.

`poison(entry, rng)` is a valid call with one or two arguments spoiled. Many results are still valid (integers are promoted, lists
converted): the promise is a result or a documented error, whatever comes.
"""

from __future__ import annotations

import decimal
import fractions
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from public_functions import FOLDER, Arguments, Public, decomposition, table
from scipy import sparse

import softlinalg
from softlinalg import Gaussian, Laplacian, Matern

LONG = "a name\nof two lines, " + "x" * 2000
"""Messages quote arguments: they stay short and on one line whatever the argument is."""


class Hostile:
    """An object that fails wherever it is touched."""

    def __bool__(self) -> bool:
        raise ZeroDivisionError("no truth")

    def __len__(self) -> int:
        raise ZeroDivisionError("no length")


class NoKernel:
    """Callable, with a diagonal, and wrong: values of another shape or kind."""

    def __init__(self, values: Callable[[Any, Any], Any]) -> None:
        self.values = values

    def __call__(self, x: Any, y: Any = None) -> Any:
        return self.values(x, x if y is None else y)

    def diagonal(self, x: Any) -> Any:
        return np.ones(x.shape[0])


JUNK: tuple[Any, ...] = (
    None, "", "x", LONG, b"x", object(), Hostile(), [], [[]], {}, {"a": 1}, (), set(), len, int, Ellipsis, NotImplemented, slice(3),
    float("nan"), float("inf"), -float("inf"), -1, 0, -0.0, 1, 2.5, -1e-300, 1e308, 5e-324, 2**70, -(2**70), 10**400, True, False, 1j,
    np.float64("nan"), np.float32(2), np.int8(-3), np.bool_(True), np.longdouble(1), np.complex64(1j), np.str_("x"), np.datetime64("2020"),
    np.array(1.0), np.array([1.0, 2.0]), np.array([]), np.array(["a", "b"]), np.array([1, None], dtype=object), np.ma.masked,
    decimal.Decimal("0.5"), decimal.Decimal("NaN"), fractions.Fraction(1, 3), torch.tensor(0.5), torch.tensor([1.0, 2.0]), torch.float32,
    iter([1]), (i for i in range(2)), io.BytesIO(b""), Path("x"), range(3), "nan", "0.5",
)  # fmt: skip

SLOW = 1e4
"""Numbers of steps beyond this are left out: they are allowed, and take the time they say."""


def _moderate(value: Any) -> bool:
    return not isinstance(value, int | float) or not abs(value) > SLOW


# ------------------------------------------------------------------------------------------------ settings
KERNELS: tuple[Any, ...] = (
    Gaussian("median"), Gaussian((1.0, 2.0)), Gaussian(1e-300), Gaussian(1e300), Gaussian, Laplacian(1e-3), Matern(2.0, nu=2.5),
    NoKernel(lambda x, y: np.ones(3)), NoKernel(lambda x, y: np.full((x.shape[0], y.shape[0]), np.nan)), NoKernel(lambda x, y: None),
    NoKernel(lambda x, y: "x"), NoKernel(lambda x, y: -np.ones((x.shape[0], y.shape[0]))), NoKernel(lambda x, y: np.ones((x.shape[0], y.shape[0]), int)),
    NoKernel(lambda x, y: np.ones((x.shape[0], y.shape[0]), complex)), NoKernel(lambda x, y: torch.ones(x.shape[0], y.shape[0])),
)  # fmt: skip

BY_KIND: dict[str, tuple[Any, ...]] = {
    "tol": (0.5, 1.0, 1e-17, 0.9),
    "number": (1e-3, 1e3, 1e300),
    "alpha": (1e-3, 1e3, np.ones(2), np.ones(3), -np.ones(2), np.full(2, np.nan)),
    "ridge": (np.ones(2), np.ones(3), -np.ones(2), np.full(2, np.nan), np.ones((2, 1)), np.ones(2, complex), [0.1, 0.2], 1e300),
    "count": (3, 12, 13, 10**9, 10**18),
    "steps": (3, 12, 50),
    "chunk": (3, 10**9, 10**18),
    "choice": ("auto", "svd", "eigh", "newton", "chebyshev", "cholesky", "fallback", "raise", "warn", "published", "exact", "symmetric",
               "certified", "matrix", "batch", "uniform", "greedy", "leverage", "kmeans", "rpcholesky", "row", "counts", "row_stochastic", "tilted",
               "conv", "pool", "random", "ratio", "2021", "PINV", "certified ", "model", "weight"),
    "scale": ("median", (1.0, 2.0, 3.0), [1.0, 2.0], (1.0, -1.0, 2.0), (np.nan,) * 3, np.ones(3), np.ones((3, 1)), 1e-300, 1e300, (1e-200,) * 3),
    "rng": (np.random.default_rng(0), np.random.RandomState(0), np.random.SeedSequence(1), np.random.PCG64(2), 7),
    "landmarks": ([0, 1], [0, 0], [0, 99], [-1], np.zeros((2, 3)), np.zeros((2, 4)), np.full((2, 3), np.nan), [0.5], [[0.0, 0, 0]], "kmeans",
                  range(20), np.arange(12)),
    "grid": ((4, 3), (3, 3), (12,), (0, 12), (-4, 3), (100, 100), (2, 2, 3), (4.0, 3.0), ("a", "b"), (0.5, 0.5), (float("nan"), 0.5)),
    "columns": ("a", "c", 0, -1, 3, -4, ["a"], ["a", "a"], [0, 1], [], ["d"], [None], [1.5], ["a", "b", "c"], ("a", -1), {"a", "b"}, np.arange(2)),
    "dtype": ("float32", np.float32, np.dtype("f8"), "float16", ">f8", "int", complex, "no such type", object, np.void, [("a", "f8")]),
    "layer": (0, 1, -1, 99, "block1.0.att.attn", "no such layer"),
    "approximation": (),
    "flag": (),
    "model": (),
}  # fmt: skip


def _mask(rng: np.random.Generator) -> Any:
    shape = [(2, 6), (2, 5), (6,), (5,), (2, 2, 6), (), (2, 0), (1, 12), (2, 7)][rng.integers(9)]
    kind = [bool, bool, bool, int, float][rng.integers(5)]
    return (rng.random(shape) < 0.5).astype(kind)


def _path(rng: np.random.Generator) -> Any:
    folder = Path(FOLDER.name)
    names = [
        "a.npz",
        "b.safetensors",
        "c.pkl",
        "d",
        "none/e.npz",
        "../../../nonexistent-folder/f.npz",
        "\0.npz",
        "x" * 300 + ".npz",
        ".npz",
        "é.npz",
    ]
    tables = (table(".csv"), str(table(".npy")), table(".parquet"))
    paths = [folder / "saved.npz", folder, *(folder / name for name in names if "\0" not in name), str(folder / "g.npz"), "\0.npz", *tables]
    return paths[rng.integers(len(paths))]


def _source(rng: np.random.Generator) -> Any:
    """Rows from what is no array: functions, iterators and lists of blocks, good and bad."""
    x, y = np.ones((6, 3)) * np.arange(6)[:, None], np.arange(6.0)
    nan, inf = np.full((6, 3), np.nan), np.full(6, np.inf)
    blocks: tuple[list[Any], ...] = (
        [x, x], [(x, y)], [(x, y), x], [x, x[:, :2]], [x, None], [], [None], [(x, y[:3])], [(x, y, y)], [x[0]], ["x"], [x + 1j], [x.astype(str)],
        [nan], [x[:0]], [x[:0], x], [(x, "y")], [(x, inf)], [torch.ones(3, 3)], [sparse.csr_matrix(x)], [[1.0, 2.0]], [Hostile()],
    )  # fmt: skip
    chosen = blocks[rng.integers(len(blocks))]
    ways: tuple[Any, ...] = (lambda: iter(chosen), iter(chosen), chosen, (block for block in chosen), lambda: None, lambda: 3, _broken)
    return ways[rng.integers(len(ways))] if rng.random() < 0.8 else _path(rng)


def _broken() -> Any:
    """An iterator that fails on its way."""
    yield np.ones((6, 3))
    message = "the disk went away"
    raise OSError(message)


def _approximation(rng: np.random.Generator) -> Any:
    """Decompositions that fit the points of the table, or do not."""
    other = softlinalg.nystrom(np.ones((5, 3)), Gaussian(1.0), landmarks=[0])
    tensors = softlinalg.nystrom(torch.ones(12, 3), Gaussian(1.0), landmarks=[0])
    wide = softlinalg.nystrom(np.ones((12, 2)), Gaussian((1.0, 2.0)), landmarks=[0])
    return [decomposition(), other, tensors, wide, np.eye(12), softlinalg.NystromDecomposition][rng.integers(6)]


def _weights(rng: np.random.Generator) -> Any:
    good = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    spoilt = {
        "weight": [torch.zeros(3, 2), torch.full((2, 3), torch.nan), torch.zeros(2, 3, dtype=torch.complex64), torch.zeros(2, 3).to_sparse(),
                   np.zeros((2, 3)), None, torch.zeros(2, 3, device="meta"), torch.zeros(2, 3, dtype=torch.int8), torch.zeros(())][rng.integers(9)]
    }  # fmt: skip
    return [good, {**good, **spoilt}, {"model": good}, {"state_dict": {**good, **spoilt}}, {LONG: torch.zeros(1)}, {1: torch.zeros(1)},
            {"weight": good["weight"]}, {**good, "module.weight": good["weight"]}, {**good, "more": torch.zeros(1)}][rng.integers(9)]  # fmt: skip


def setting(kind: str, rng: np.random.Generator) -> Any:
    """A bad, or at least unusual, value for a setting of this kind."""
    made = {"mask": _mask, "path": _path, "weights": _weights, "source": _source, "approximation": _approximation}
    if kind in made and rng.random() < 0.7:
        return made[kind](rng)
    choices = BY_KIND.get(kind, ())
    if kind == "kernel" and rng.random() < 0.6:
        return KERNELS[rng.integers(len(KERNELS))]
    if choices and rng.random() < 0.5:
        return choices[rng.integers(len(choices))]
    usable = [value for value in JUNK if _moderate(value)] if kind == "steps" else JUNK
    return usable[rng.integers(len(usable))]


# -------------------------------------------------------------------------------------------------- arrays
def _with(a: np.ndarray, value: float, rng: np.random.Generator, *, all_of_it: bool = False) -> np.ndarray:
    spoilt = a.copy()
    if all_of_it:
        spoilt[...] = value
    elif a.size:
        spoilt.reshape(-1)[rng.integers(a.size)] = value
    return spoilt


def _other_library(a: np.ndarray, rng: np.random.Generator) -> Any:
    import array_api_strict
    import dask.array

    return [array_api_strict.asarray, torch.tensor, dask.array.from_array][rng.integers(3)](a)


SHAPES: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda a: a[None], lambda a: a.reshape(-1), lambda a: np.asarray(a.sum()), lambda a: a[..., 0], lambda a: a[:0], lambda a: a[..., :0],
    lambda a: a[..., :1], lambda a: a[:1], lambda a: np.concatenate([a, a[..., :1]], -1), lambda a: np.concatenate([a, a[:1]], 0),
    lambda a: np.swapaxes(a, 0, -1), lambda a: a[..., :0, :] if a.ndim > 1 else a, lambda a: a[None, None, None], lambda a: a[:, None],
    lambda a: np.broadcast_to(a[:1], a.shape), lambda a: np.broadcast_to(a, (3, *a.shape)),
)  # fmt: skip

VALUES: tuple[float, ...] = (np.nan, np.inf, -np.inf, 0.0, 1e308, -1e308, 1e300, 1e-310, 5e-324, 1e160, -1.0, 1e20)

TYPES: tuple[Any, ...] = (
    bool, np.int8, np.int16, np.int64, np.uint8, np.uint64, np.float16, np.float32, np.longdouble, np.complex64, np.complex128,
    np.clongdouble, object, str, "S8", "M8[s]", "m8[s]", ">f8", ">f4", ">c16", ">i4", [("a", "f8")], "V8",
)  # fmt: skip


def _kinds(a: np.ndarray, rng: np.random.Generator) -> Any:
    """The same numbers in something that is not a plain array, or is no array at all."""
    made: tuple[Callable[[], Any], ...] = (
        lambda: a.tolist(), lambda: [[1.0, 2.0], [3.0]], lambda: [[1.0, [2.0]]], lambda: [None, 1.0], lambda: [object()], lambda: [a, a, a],
        lambda: np.ma.masked_array(a, mask=a > 0), lambda: sparse.csr_matrix(a.reshape(a.shape[0], -1) if a.ndim > 1 else a[None]),
        lambda: sparse.coo_array(a.reshape(a.shape[0], -1) if a.ndim > 1 else a[None]), lambda: np.matrix(a.reshape(a.shape[0], -1)),
        lambda: memoryview(np.ascontiguousarray(a)), lambda: np.ascontiguousarray(a).tobytes(), lambda: a[..., ::-1],
        lambda: np.asfortranarray(a), lambda: [torch.ones(2), torch.ones(3)], lambda: float(a.reshape(-1)[0]) if a.size else 1.0,
        lambda: _read_only(a), lambda: {"x": a}, lambda: np.recarray((2,), dtype=[("a", "f8")]), lambda: np.array([["1.0", "2"]]),
    )  # fmt: skip
    return made[rng.integers(len(made))]()


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.setflags(write=False)
    return a


def array(a: np.ndarray, rng: np.random.Generator, *, huge: bool) -> Any:
    """A bad, or at least unusual, array in place of `a`."""
    way = rng.integers(8)
    if way == 0:
        return JUNK[rng.integers(len(JUNK))]
    if way == 1:
        return _kinds(a, rng)
    if way == 2:
        return _other_library(a, rng)
    if way == 3:
        kind = TYPES[rng.integers(len(TYPES))]
        with np.errstate(all="ignore"):
            return np.nan_to_num(a).astype(kind) if kind not in ("M8[s]", "m8[s]") else a.astype(np.int64).astype(kind)
    if way in (4, 5):
        return SHAPES[rng.integers(len(SHAPES))](a)
    if way == 6 and huge and a.ndim >= 2:
        side = 2 ** int(rng.integers(20, 28))
        return np.broadcast_to(a.reshape(-1)[0], (*a.shape[:-2], side, side))
    return _with(a, VALUES[rng.integers(len(VALUES))], rng, all_of_it=bool(rng.random() < 0.3))


def tensor(a: np.ndarray, rng: np.random.Generator, *, huge: bool) -> Any:
    """The same for functions of tensors."""
    way = rng.integers(8)
    t = torch.tensor(a)
    if way == 0:
        made: tuple[Callable[[], Any], ...] = (
            lambda: a, lambda: t.to_sparse(), lambda: t.to("meta"), lambda: t.half(), lambda: t.bfloat16(), lambda: t.float(), lambda: t.int(),
            lambda: t.bool(), lambda: t.to(torch.complex64), lambda: t.to(torch.uint8), lambda: t.requires_grad_(), lambda: t.tolist(),
            lambda: t.to(torch.float8_e4m3fn), lambda: torch.nn.Parameter(t), lambda: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
            lambda: t.transpose(-1, -2), lambda: t.expand(*[3] * 1, *t.shape), lambda: t.to_mkldnn() if t.dtype == torch.float32 else t.numpy(),
            lambda: JUNK[rng.integers(len(JUNK))], lambda: _other_library(a, rng),
        )  # fmt: skip
        return made[rng.integers(len(made))]()
    if way == 1 and huge and a.ndim >= 2:
        side = 2 ** int(rng.integers(20, 28))
        return t.reshape(-1)[0].expand(*a.shape[:-2], side, side)
    bad = array(a, rng, huge=False)
    try:
        return torch.tensor(bad) if isinstance(bad, np.ndarray) else bad
    except (TypeError, ValueError, RuntimeError):
        return bad


def convert(entry: Public, arguments: Arguments) -> Arguments:
    """Arrays of a valid call in the library of the function."""
    if not entry.is_torch:
        return arguments
    return {name: torch.tensor(value) if isinstance(value, np.ndarray) else value for name, value in arguments.items()}


def poison(entry: Public, rng: np.random.Generator) -> tuple[Arguments, tuple[str, ...]]:
    """A call with one argument spoiled, or two; and which."""
    arguments = entry.make(rng)
    valid = dict(arguments)
    names = [*entry.arrays, *entry.settings]
    if not names:
        return arguments, ()
    chosen = tuple(str(name) for name in rng.choice(names, size=min(len(names), 1 + int(rng.random() < 0.25)), replace=False))
    for name in chosen:
        kind = entry.settings.get(name)
        is_array = name in entry.arrays or kind == "optional array" or (kind == "source" and rng.random() < 0.5)
        if not is_array:
            value = setting(entry.settings[name], rng)
            is_mask = entry.settings[name] == "mask" and isinstance(value, np.ndarray) and value.dtype.kind in "biuf"
            arguments[name] = torch.tensor(value) if entry.is_torch and is_mask else value
            continue
        given, numbers = valid.get(name), [value for value in valid.values() if isinstance(value, np.ndarray)]
        base = given if isinstance(given, np.ndarray) else numbers[0] if numbers else np.ones((2, 3))
        arguments[name] = (tensor if entry.is_torch else array)(base, rng, huge=entry.whole)
    untouched = convert(entry, {name: value for name, value in arguments.items() if name not in chosen})
    return {**arguments, **untouched}, chosen
