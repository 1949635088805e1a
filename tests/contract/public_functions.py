"""Every public function with arguments that it takes: the one table that the tests of the contract go through.

An entry holds a small valid call. Arrays are made as NumPy arrays in float64 and converted by whoever calls; settings are named
with their kind, which `poisons.py` knows how to spoil.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

import softlinalg
import softlinalg.torch as st
from softlinalg import Gaussian, Laplacian, Matern, NystromDecomposition

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Public:
    """A public function, or a method of a public class."""

    name: str
    call: Callable[..., Any]
    make: Callable[[np.random.Generator], Arguments]
    """Valid arguments by name, made anew."""
    arrays: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further arguments and their kinds, whether or not `make` gives them."""
    says: tuple[str, ...] = ()
    """What messages may begin with; the name without its module is always allowed."""
    also: tuple[type[Exception], ...] = ()
    """Errors that are documented beside those of the package."""
    warns: str = ""
    """The package of a framework, whose own warnings may come beside those of softlinalg."""
    takes_complex: bool = False
    is_torch: bool = False
    whole: bool = True
    """Works on all of its arrays at once, so one that cannot be in memory is refused. Others read blocks of rows."""

    def prefixes(self) -> tuple[str, ...]:
        return (self.name.removeprefix("torch."), *self.says)


# ----------------------------------------------------------------------------------------------- arguments
def spd(rng: np.random.Generator, m: int = 4, batch: tuple[int, ...] = (2,)) -> np.ndarray:
    """Positive definite with non-negative entries: a Gaussian kernel matrix."""
    x = rng.normal(size=(*batch, m, 3))
    squared = ((x[..., :, None, :] - x[..., None, :, :]) ** 2).sum(-1)
    return np.exp(-squared / 2)


def points(rng: np.random.Generator, n: int = 12, d: int = 3) -> np.ndarray:
    return rng.normal(size=(n, d))


def heads(rng: np.random.Generator, tokens: int, width: int = 4, count: int = 2) -> np.ndarray:
    return rng.normal(size=(2, count, tokens, width))


def _built(rng: np.random.Generator, *, x: np.ndarray | None = None) -> NystromDecomposition:
    return softlinalg.nystrom(points(rng) if x is None else x, Gaussian(1.5), landmarks=[0, 3, 5, 7], ridge=0.1)


_BUILT: dict[int, NystromDecomposition] = {}


def decomposition() -> NystromDecomposition:
    """One for all calls of methods: nothing may change it."""
    if 0 not in _BUILT:
        _BUILT[0] = _built(np.random.default_rng(0))
    return _BUILT[0]


FOLDER = tempfile.TemporaryDirectory(prefix="softlinalg-contract-")


def saved() -> Path:
    path = Path(FOLDER.name) / "saved.npz"
    if not path.exists():
        decomposition().save(path)
    return path


def _weights() -> dict[str, Any]:
    torch.manual_seed(0)
    return {name: value.clone() for name, value in torch.nn.Linear(3, 2).state_dict().items()}


def _small_backbone(**options: Any) -> st.SoftBackbone:
    return st.SoftBackbone(
        **{"dims": (4, 4, 8, 8), "heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1), "img_size": 32, "num_classes": 2, **options}
    )


_MODELS: dict[str, torch.nn.Module] = {}


def backbone() -> st.SoftBackbone:
    if "backbone" not in _MODELS:
        torch.manual_seed(0)
        _MODELS["backbone"] = _small_backbone().eval()
        _MODELS["backbone"](torch.zeros(1, 3, 32, 32))
    return _MODELS["backbone"]  # type: ignore[return-value]


# --------------------------------------------------------------------------------------------- the entries
INVERSE = {"tol": "tol", "method": "choice", "on_failure": "choice", "check_finite": "flag"}
PINV = {**INVERSE, "rtol": "tol", "hermitian": "flag"}
NEWTON = {"steps": "steps", "alpha": "alpha", "ridge": "number"}
ATTENTION = {
    "ridge": "number", "inverse": "choice", "normalization": "choice", "key_padding_mask": "mask", "steps": "steps", "tol": "tol",
    "published_alpha": "choice",
}  # fmt: skip


def _kernel_entries() -> list[Public]:
    entries = [
        Public(
            "gaussian_kernel",
            softlinalg.gaussian_kernel,
            lambda rng: {"x": points(rng), "y": points(rng, 5), "length_scale": 1.5},
            ("x", "y"),
            {"length_scale": "scale"},
            says=("Gaussian",),
        ),
        Public(
            "median_length_scale",
            softlinalg.median_length_scale,
            lambda rng: {"x": points(rng), "rng": 0},
            ("x",),
            {"rng": "rng", "sample": "count"},
            whole=False,
        ),
    ]
    for kind in (Gaussian, Laplacian, Matern):
        name, more = kind.__name__, {"nu": "number"} if kind is Matern else {}
        entries += [
            Public(
                name,
                lambda x, y, length_scale, kind=kind, **more: kind(length_scale, **more)(x, y),
                lambda rng: {"x": points(rng), "y": points(rng, 5), "length_scale": 1.5},
                ("x", "y"),
                {"length_scale": "scale", **more},
                says=("median_length_scale",),
            ),
            Public(
                f"{name}.vjp",
                lambda x, y, g, kind=kind: kind(1.5).vjp(x, y, g),
                lambda rng: {"x": points(rng), "y": points(rng, 5), "g": rng.normal(size=(12, 5))},
                ("x", "y", "g"),
                whole=False,
            ),
            Public(f"{name}.diagonal", lambda x, kind=kind: kind(1.5).diagonal(x), lambda rng: {"x": points(rng)}, ("x",), whole=False),
            Public(
                f"{name}.resolve",
                lambda x, rng, kind=kind: kind("median").resolve(x, rng),
                lambda rng: {"x": points(rng), "rng": 0},
                ("x",),
                {"rng": "rng"},
                says=("median_length_scale",),
                whole=False,
            ),
        ]
    return entries


def general(rng: np.random.Generator) -> Arguments:
    return {"a": rng.normal(size=(2, 4, 3))}


def shifted(rng: np.random.Generator) -> Arguments:
    return {"a": spd(rng), "ridge": 0.1}


def _inverse_entries() -> list[Public]:
    def triple(other: str, transposed: bool) -> Callable[[np.random.Generator], Arguments]:
        def make(rng: np.random.Generator) -> Arguments:
            a = rng.normal(size=(2, 4, 3))
            return {"a": a, "value": np.linalg.pinv(a), other: rng.normal(size=(2, 3, 4) if transposed else (2, 4, 3))}

        return make

    def pair(other: str) -> Callable[[np.random.Generator], Arguments]:
        return lambda rng: {"value": np.linalg.inv(spd(rng) + 0.1 * np.eye(4)), other: spd(rng)}

    def newton(other: str, transposed: bool) -> Callable[[np.random.Generator], Arguments]:
        return lambda rng: {"a": rng.normal(size=(2, 4, 3)), other: rng.normal(size=(2, 3, 4) if transposed else (2, 4, 3))}

    s = softlinalg
    return [
        Public("pinv", s.pinv, general, ("a",), PINV, takes_complex=True),
        Public("certified_pinv", s.certified_pinv, general, ("a",), PINV, takes_complex=True),
        Public("ridge_inverse", s.ridge_inverse, shifted, ("a",), {"ridge": "ridge", **INVERSE}, takes_complex=True),
        Public("certified_ridge_inverse", s.certified_ridge_inverse, shifted, ("a",), {"ridge": "ridge", **INVERSE}, takes_complex=True),
        Public("newton_pinv", s.newton_pinv, general, ("a",), {**NEWTON, "check_finite": "flag"}, takes_complex=True),
        Public("pinv_vjp", s.pinv_vjp, triple("cotangent", True), ("a", "value", "cotangent"), takes_complex=True),
        Public("pinv_jvp", s.pinv_jvp, triple("tangent", False), ("a", "value", "tangent"), takes_complex=True),
        Public("ridge_inverse_vjp", s.ridge_inverse_vjp, pair("cotangent"), ("value", "cotangent"), takes_complex=True),
        Public(
            "ridge_inverse_jvp", s.ridge_inverse_jvp, pair("tangent"), ("value", "tangent"), {"ridge_tangent": "ridge"}, takes_complex=True
        ),
        Public(
            "newton_pinv_vjp",
            s.newton_pinv_vjp,
            newton("cotangent", True),
            ("a", "cotangent"),
            {**NEWTON, "gradient": "choice", "value": "optional array"},
            says=("newton_pinv_jvp", "newton_pinv"),
            takes_complex=True,
        ),
        Public("newton_pinv_jvp", s.newton_pinv_jvp, newton("tangent", False), ("a", "tangent"), NEWTON, takes_complex=True),
    ]


def _landmark_entries() -> list[Public]:
    choose = {
        "count": "count", "method": "choice", "kernel": "kernel", "tol": "tol", "rng": "rng", "sample": "count", "check_finite": "flag",
    }  # fmt: skip
    says = ("median_length_scale", "Gaussian", "Laplacian", "Matern")

    def make(rng: np.random.Generator) -> Arguments:
        return {"x": points(rng), "count": 3, "rng": 0, "kernel": Gaussian(1.0)}

    return [
        Public("select_landmarks", softlinalg.select_landmarks, make, ("x",), {**choose, "lloyd_steps": "steps"}, says=says, whole=False),
        Public("select_landmark_indices", softlinalg.select_landmark_indices, make, ("x",), choose, says=says, whole=False),
        Public(
            "refine_landmarks",
            softlinalg.refine_landmarks,
            lambda rng: {"x": points(rng), "landmarks": points(rng, 3), "kernel": Gaussian(1.0), "max_steps": 2},
            ("x", "landmarks"),
            {"kernel": "kernel", "max_steps": "steps", "sample": "count", "rng": "rng", "check_finite": "flag"},
            says=says,
            whole=False,
        ),
    ]


def _nystrom_entries() -> list[Public]:
    d = "NystromDecomposition"

    def method(name: str, act: Callable[..., Any], make: Any, arrays: tuple[str, ...], settings: Any = (), **more: Any) -> Public:
        return Public(f"{d}.{name}", act, make, arrays, dict(settings), whole=False, **more)

    def vector(name: str) -> Callable[[np.random.Generator], Arguments]:
        return lambda rng: {name: rng.normal(size=12)}

    return [
        Public(
            "nystrom",
            softlinalg.nystrom,
            lambda rng: {"x": points(rng), "kernel": Gaussian(1.5), "rank": 4, "rng": 0},
            ("x",),
            {
                "kernel": "kernel", "rank": "count", "tol": "tol", "landmarks": "landmarks", "ridge": "number", "rng": "rng",
                "chunk_size": "chunk", "store_features": "choice", "rtol": "tol", "check_finite": "flag",
            },
            says=("select_landmarks", "median_length_scale", "Gaussian", "Laplacian", "Matern"),
            whole=False,
        ),
        method("matmul", lambda v: decomposition() @ v, vector("v"), ("v",)),
        method("rmatmul", lambda v: v @ decomposition() if isinstance(v, np.ndarray) else decomposition().__rmatmul__(v), vector("v"), ("v",),
               says=(f"{d}.matmul",)),
        method("cross_matmul", lambda x_new, v: decomposition().cross_matmul(x_new, v),
               lambda rng: {"x_new": points(rng, 5), "v": rng.normal(size=12)}, ("x_new", "v"), says=("kernel_matmul",)),
        method("features", lambda x_new: decomposition().features(x_new), lambda rng: {"x_new": points(rng, 5)}, ("x_new",),
               says=("kernel_matmul",)),
        method("solve", lambda b, ridge: decomposition().solve(b, ridge), lambda rng: {"b": rng.normal(size=12), "ridge": 0.1}, ("b",),
               {"ridge": "number"}),
        method("logdet", lambda ridge: decomposition().logdet(ridge), lambda rng: {"ridge": 0.1}, (), {"ridge": "number"}),
        method("eigh", lambda k: decomposition().eigh(k), lambda rng: {"k": 2}, (), {"k": "count"}),
        method("diagonal", lambda: decomposition().diagonal(), lambda rng: {}, ()),
        method("to_dense", lambda memory_budget: decomposition().to_dense(memory_budget=memory_budget), lambda rng: {"memory_budget": 2**20},
               (), {"memory_budget": "count"}),
        method("as_linear_operator", lambda v: decomposition().as_linear_operator() @ v, vector("v"), ()),
        method("preconditioner", lambda ridge: decomposition().preconditioner(ridge) @ np.ones(12), lambda rng: {"ridge": 0.1}, (),
               {"ridge": "number"}),
        method("save", lambda path, include_features: decomposition().save(path, include_features=include_features),
               lambda rng: {"path": Path(FOLDER.name) / "again.npz", "include_features": True}, (),
               {"path": "path", "include_features": "flag"}, says=("save",), also=(OSError,)),
        method("load", lambda path, x, kernel, like: NystromDecomposition.load(path, x=x, kernel=kernel, like=like),
               lambda rng: {"path": saved(), "x": points(np.random.default_rng(0)), "kernel": None, "like": None}, ("x",),
               {"path": "path", "kernel": "kernel", "like": "optional array"}, says=("load",), also=(OSError,)),
    ]  # fmt: skip


def table(suffix: str) -> Path:
    """A file of 12 rows and the columns a, b, c, where it ends so; written once."""
    path = Path(FOLDER.name) / f"table{suffix}"
    if not path.exists():
        import pandas

        frame = pandas.DataFrame(points(np.random.default_rng(0)), columns=["a", "b", "c"])
        if suffix == ".npy":
            np.save(path, frame.to_numpy())
        else:
            frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    return path


def _streaming_entries() -> list[Public]:
    def rows(rng: np.random.Generator) -> Arguments:
        return {"path": table((".csv", ".npy", ".parquet")[rng.integers(3)]), "targets": -1}

    def stream(rng: np.random.Generator) -> Arguments:
        return {"source": points(rng), "kernel": Gaussian(1.5), "targets": rng.normal(size=12), "rank": 4, "rng": 0, "threads": 1}

    def solve(rng: np.random.Generator) -> Arguments:
        return {"x": points(rng), "y": points(rng, d=2), "kernel": Gaussian(1.5), "ridge": 0.1, "rng": 0}

    says = ("median_length_scale", "Gaussian", "Laplacian", "Matern")
    return [
        Public(
            "open_rows",
            lambda path, **settings: list(softlinalg.open_rows(path, **settings).blocks()),
            rows,
            (),
            {"path": "path", "columns": "columns", "targets": "columns", "header": "flag", "delimiter": "choice", "dtype": "dtype"},
            also=(OSError,),
        ),
        Public(
            "nystrom_stream",
            softlinalg.nystrom_stream,
            stream,
            (),
            {
                "source": "source", "kernel": "kernel", "rank": "count", "targets": "optional array", "landmarks": "landmarks",
                "sample": "landmarks", "lloyd_passes": "steps", "ridge": "number", "rng": "rng", "chunk_size": "chunk", "threads": "count",
                "checkpoint": "path", "checkpoint_seconds": "number", "progress": "flag", "rtol": "tol",
            },
            says=("open_rows", "select_landmarks", *says),
            also=(OSError,),
            whole=False,
        ),
        Public(
            "StreamedNystrom.fit_ridge",
            lambda ridges: streamed().fit_ridge(ridges),
            lambda rng: {"ridges": [0.1, 1.0]},
            (),
            {"ridges": "ridge"},
        ),
        Public(
            "solve_kernel_ridge",
            softlinalg.solve_kernel_ridge,
            solve,
            ("x", "y"),
            {
                "kernel": "kernel", "ridge": "number", "weights": "optional array", "approximation": "approximation", "rank": "count",
                "tol": "tol", "max_steps": "steps", "rng": "rng", "chunk_size": "chunk", "progress": "flag", "on_failure": "choice",
            },
            says=("nystrom", "select_landmarks", *says),
            whole=False,
        ),
    ]  # fmt: skip


_STREAMED: dict[int, softlinalg.StreamedNystrom] = {}


def streamed() -> softlinalg.StreamedNystrom:
    if 0 not in _STREAMED:
        rng = np.random.default_rng(0)
        _STREAMED[0] = softlinalg.nystrom_stream(points(rng), Gaussian(1.5), targets=rng.normal(size=12), rank=4, rng=0, threads=1)
    return _STREAMED[0]


def _attention_entries() -> list[Public]:
    def make(rng: np.random.Generator) -> Arguments:
        return {"q": heads(rng, 6), "v": heads(rng, 6), "landmarks": heads(rng, 3)}

    def with_keys(rng: np.random.Generator) -> Arguments:
        return {"q": heads(rng, 6), "k": heads(rng, 5), "v": heads(rng, 5)}

    names = ("q", "v", "landmarks")
    return [
        Public(
            "soft_attention",
            softlinalg.soft_attention,
            make,
            names,
            {**ATTENTION, "k": "optional array", "length_scale": "number", "check_finite": "flag"},
            says=("newton_pinv", "ridge_inverse"),
        ),
        Public(
            "torch.soft_attention",
            st.soft_attention,
            make,
            names,
            {**ATTENTION, "k": "optional array", "gradient": "choice", "is_causal": "flag"},
            says=("landmark_inverse", "newton_pinv", "ridge_inverse"),
            is_torch=True,
        ),
        Public(
            "torch.gaussian_attention",
            st.gaussian_attention,
            with_keys,
            ("q", "k", "v"),
            {"normalization": "choice", "key_padding_mask": "mask"},
            is_torch=True,
        ),
        Public(
            "torch.softmax_as_gaussian",
            st.softmax_as_gaussian,
            with_keys,
            ("q", "k", "v"),
            {"scale": "number", "key_padding_mask": "mask"},
            is_torch=True,
        ),
        Public(
            "torch.clustered_softmax_attention",
            st.clustered_softmax_attention,
            lambda rng: {**with_keys(rng), "count": 3},
            ("q", "k", "v"),
            {
                "count": "count",
                "scale": "number",
                "steps": "steps",
                "query_groups": "steps",
                "factors": "choice",
                "key_padding_mask": "mask",
            },
            is_torch=True,
        ),
        Public(
            "torch.attention_error",
            st.attention_error,
            lambda rng: {**make(rng), "rng": 0},
            names,
            {**ATTENTION, "k": "optional array", "rows": "count", "rng": "rng"},
            says=("soft_attention", "landmark_inverse", "newton_pinv", "ridge_inverse"),
            is_torch=True,
        ),
        Public(
            "torch.softmax_attention_error",
            st.softmax_attention_error,
            lambda rng: {"out": heads(rng, 6), **with_keys(rng), "rng": 0},
            ("out", "q", "k", "v"),
            {"scale": "number", "rows": "count", "rng": "rng", "key_padding_mask": "mask"},
            says=("attention_error",),
            is_torch=True,
        ),
        Public(
            "torch.landmark_inverse",
            st.landmark_inverse,
            lambda rng: {"w": spd(rng)},
            ("w",),
            {
                "ridge": "number",
                "inverse": "choice",
                "steps": "steps",
                "gradient": "choice",
                "normalization": "choice",
                "tol": "tol",
                "published_alpha": "choice",
            },
            says=("newton_pinv", "ridge_inverse"),
            is_torch=True,
        ),
    ]


LAYERS = (RuntimeError,)
"""PyTorch's own layers say when parameters and input differ in dtype or device, or when parameters do not fit in memory."""


def _module_entries() -> list[Public]:
    attention = {
        "dim": "steps", "num_heads": "steps", "landmarks": "count", "sampler": "choice", "ratio": "steps", "depthwise": "steps",
        "grid_dims": "count", "inverse": "choice", "normalization": "choice", "ridge": "number", "steps": "steps", "tol": "tol",
        "gradient": "choice", "full_kernel_below": "count", "published": "choice", "grid": "grid", "key_padding_mask": "mask",
    }  # fmt: skip

    def run(kind: Any) -> Callable[..., Any]:
        def call(x: Any, grid: Any, key_padding_mask: Any = None, **options: Any) -> Any:
            torch.manual_seed(0)
            return kind(**options).double()(x, grid, key_padding_mask=key_padding_mask)

        return call

    def tokens(rng: np.random.Generator) -> Arguments:
        return {"x": rng.normal(size=(1, 12, 4)), "grid": (4, 3), "dim": 4, "num_heads": 2, "landmarks": 4}

    def apply_backbone(image: Any) -> Any:
        with torch.no_grad():
            return backbone()(image.float() if isinstance(image, torch.Tensor) and not image.is_complex() else image)

    picture = {"layer": "layer", "query": "grid"}
    says = ("SoftAttention", "landmark_inverse", "soft_attention", "newton_pinv", "ridge_inverse", "SoftmaxAttention")
    return [
        Public("torch.SoftAttention", run(st.SoftAttention), tokens, ("x",), attention, says=says, also=LAYERS, is_torch=True),
        Public("torch.SoftBlock", run(st.SoftBlock), tokens, ("x",), {**attention, "mlp_ratio": "tol", "drop_path": "number"}, says=says, also=LAYERS,
               is_torch=True),
        Public("torch.SoftBackbone", apply_backbone, lambda rng: {"image": rng.normal(size=(1, 3, 32, 32))}, ("image",), says=says, also=LAYERS,
               is_torch=True),
        Public("torch.attention_map", lambda image, layer=0, query=(0.5, 0.5): st.attention_map(
                   backbone(), image.float() if isinstance(image, torch.Tensor) and not image.is_complex() else image, layer=layer, query=query),
               lambda rng: {"image": rng.normal(size=(3, 32, 32))}, ("image",), picture, says=("SoftBackbone", *says), also=LAYERS, is_torch=True),
        Public("torch.diagnose", st.diagnose, lambda rng: {"model": backbone()}, (), {"model": "model"}, says=("diagnostics",)),
        Public("torch.load_published_weights",
               lambda weights, strict, entry: st.load_published_weights(torch.nn.Linear(3, 2), weights, strict=strict, entry=entry),
               lambda rng: {"weights": _weights(), "strict": True, "entry": None}, (),
               {"weights": "weights", "strict": "flag", "entry": "choice"}, also=(OSError,)),
        Public("torch.save_weights",
               lambda path, metadata: st.save_weights(torch.nn.Linear(3, 2), path, metadata=metadata),
               lambda rng: {"path": Path(FOLDER.name) / "w.safetensors", "metadata": {"a": "b"}}, (),
               {"path": "path", "metadata": "weights"}, also=(OSError,)),
    ]  # fmt: skip


FUNCTIONS: tuple[Public, ...] = (
    *_kernel_entries(),
    *_inverse_entries(),
    *_landmark_entries(),
    *_nystrom_entries(),
    *_streaming_entries(),
    *_attention_entries(),
    *_module_entries(),
)
BY_NAME = {entry.name: entry for entry in FUNCTIONS}

NO_FUNCTIONS = {
    "CertifiedInverse", "CertifiedPinv", "NewtonPinv", "InverseMethod",  # results and names of methods
    "Kernel",  # a protocol
    "NystromDecomposition",  # by its methods
    "KernelRidgeSolution", "StreamedNystrom",  # results
    "kernel_operator",  # makes an operator of SciPy; what it refuses is tested in tests/core/test_nystrom.py
    "__version__", "errors",
}  # fmt: skip
NO_TORCH_FUNCTIONS = {
    "AttentionError", "LoadReport",  # results
    "plot_attention",  # a picture of what `attention_map` returns; tests/torch/test_modules.py
    # Constructors that only fix the sizes of `SoftBackbone`; `test_named_models_refuse_unknown_settings` and tests/torch/test_backbones.py.
    "soft_tiny", "soft_small", "soft_medium", "soft_large", "soft_huge", "published_code_small",
    "soft_norm_tiny", "soft_norm_small", "soft_norm_medium", "soft_norm_large", "soft_norm_huge",
}  # fmt: skip
