"""Public functions beside the core and `softlinalg.torch`: estimators, Dask and the testing kit, for the bad calls alone.

`softlinalg.jax` has no place here: it compiles each shape anew, minutes for a hundred calls. It checks its arguments with the functions of
the core, and tests/test_jax.py calls it with bad ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from public_functions import Arguments, Public, points, table

import softlinalg
from softlinalg.testing import (
    AccuracyError,
    assertions,
    build_attention,
    build_graded,
    build_gram,
    build_matrix,
    build_points,
    gallery,
    ratios,
)

# -------------------------------------------------------------------------------------------- scikit-learn
VALIDATION = (ValueError, TypeError, OverflowError)
"""scikit-learn's own validation of X and y speaks first, in its own words."""
ESTIMATOR = {
    "kernel": "kernel", "length_scale": "scale", "landmarks": "landmarks", "tol": "tol", "random_state": "rng",
}  # fmt: skip
RIDGE = {**ESTIMATOR, "rank": "count", "ridge": "ridge", "selection": "choice", "fit_intercept": "flag", "exact": "flag"}
SAYS = ("select_landmarks", "median_length_scale", "nystrom", "Gaussian", "Laplacian", "Matern", "NystromRidge", "solve_kernel_ridge",
        "refine_landmarks")  # fmt: skip


def _estimators() -> list[Public]:
    from softlinalg import sklearn as estimators

    def then(kind: Any, act: str, supervised: bool) -> Callable[..., Any]:
        def call(X: Any, X_new: Any, y: Any = None, **settings: Any) -> Any:
            model = kind(**settings).fit(X, y) if supervised else kind(**settings).fit(X)
            return getattr(model, act)(X_new)

        return call

    def unsupervised(rng: np.random.Generator) -> Arguments:
        return {"X": points(rng), "X_new": points(rng, 5), "random_state": 0}

    def regression(rng: np.random.Generator) -> Arguments:
        return {**unsupervised(rng), "y": rng.normal(size=12), "rank": 4}

    def classes(rng: np.random.Generator) -> Arguments:
        return {**unsupervised(rng), "y": np.arange(12.0) % 2, "rank": 4}

    def entry(name: str, act: str, make: Any, arrays: tuple[str, ...], settings: dict[str, str]) -> Public:
        call = then(getattr(estimators, name), act, "y" in arrays)
        return Public(f"sklearn.{name}", call, make, arrays, settings, says=(name, *SAYS), also=VALIDATION, warns="sklearn", whole=False)

    def clusters(X: Any, **settings: Any) -> Any:
        return estimators.NystromSpectralClustering(**{"n_clusters": 2, "rank": 4, "n_init": 1, **settings}).fit_predict(X)

    return [
        entry("NystromFeatures", "transform", lambda rng: {**unsupervised(rng), "n_components": 4}, ("X", "X_new"),
              {**ESTIMATOR, "n_components": "count", "gamma": "number"}),
        entry("NystromPCA", "transform", lambda rng: {**unsupervised(rng), "n_components": 2, "rank": 4}, ("X", "X_new"),
              {**ESTIMATOR, "n_components": "count", "rank": "count"}),
        entry("NystromRidge", "predict", regression, ("X", "X_new", "y"), RIDGE),
        entry("NystromRidgeClassifier", "predict", classes, ("X", "X_new", "y"), {**RIDGE, "class_weight": "choice"}),
        Public("sklearn.NystromSpectralClustering", clusters, lambda rng: {"X": points(rng), "random_state": 0}, ("X",),
               {**ESTIMATOR, "n_clusters": "count", "rank": "count", "n_init": "steps"}, says=("NystromSpectralClustering", *SAYS),
               also=VALIDATION, warns="sklearn", whole=False),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------------- Dask
def _dask() -> list[Public]:
    def open_npy(path: Any, chunk_size: Any = 5) -> Any:
        import softlinalg.dask

        return softlinalg.dask.open_npy(path, chunk_size=chunk_size).compute(scheduler="synchronous")

    return [
        Public("dask.open_npy", open_npy, lambda rng: {"path": table(".npy"), "chunk_size": 5}, (), {"path": "path", "chunk_size": "count"},
               says=("softlinalg.dask.open_npy",), also=(OSError,)),
    ]  # fmt: skip


# --------------------------------------------------------------------------------------------- testing kit
@functools.cache
def _judged() -> dict[str, Any]:
    return {
        "matrix": build_matrix(shape=(4, 3), cond=10.0, seed=0),
        "psd": build_matrix(shape=(4, 4), cond=10.0, structure="psd", seed=0),
        "points": build_points(shape=(6, 2), seed=0),
        "attention": build_attention(tokens=6, features=3, landmarks=3, dtype="float64", seed=0),
    }


def _testing() -> list[Public]:
    """Builders with bad settings; laws and assertions with whatever a function under test may return."""
    matrix, psd, cloud, tokens = (_judged()[name] for name in ("matrix", "psd", "points", "attention"))
    kernel = softlinalg.gaussian_kernel(cloud.x)
    good_attention = softlinalg.soft_attention(tokens.q, tokens.v, tokens.landmarks)
    low = kernel[:, :2] @ np.linalg.pinv(kernel[:2, :2]) @ kernel[:2]

    def judge(name: str, act: Callable[[Any], Any], output: Any) -> Public:
        return Public(f"testing.{name}", act, lambda rng: {"output": np.array(output)}, ("output",), also=(AccuracyError,),
                      says=(name, "array"), whole=False)  # fmt: skip

    common = {"dtype": "dtype", "layout": "choice", "xp": "choice", "seed": "rng"}
    built: list[tuple[str, Any, Arguments, dict[str, str]]] = [
        ("build_matrix", build_matrix, {"shape": (4, 3), "cond": 5.0, "seed": 0},
         {"shape": "grid", "rank": "count", "cond": "number", "mode": "choice", "log2_scale": "steps", "structure": "choice", **common}),
        ("build_points", build_points, {"shape": (6, 2), "seed": 0}, {"shape": "grid", "kind": "choice", "log2_scale": "steps", **common}),
        ("build_gram", build_gram, {"shape": (6, 2), "seed": 0}, {"shape": "grid", "kind": "choice", "length_scale": "number", **common}),
        ("build_graded", build_graded, {"shape": (4, 3), "seed": 0}, {"shape": "grid", "step": "number", "sides": "choice", **common}),
        ("build_attention", build_attention, {"tokens": 6, "features": 3, "landmarks": 3, "seed": 0},
         {"tokens": "steps", "features": "steps", "landmarks": "count", "keys": "steps", "heads": "grid", "hidden": "count", **common}),
    ]  # fmt: skip
    return [
        *(Public(f"testing.{name}", act, lambda rng, good=good: dict(good), (), kinds, says=(name, "namespace", "layout"))
          for name, act, good, kinds in built),
        Public("testing.gallery.get", lambda name: gallery.get(name).case(), lambda rng: {"name": "hilbert"}, (), {"name": "choice"}, says=("gallery.get",)),
        judge("assert_pinv", lambda output: assertions.assert_pinv(lambda a: output, matrix), np.linalg.pinv(matrix.A)),
        judge("assert_inverse", lambda output: assertions.assert_inverse(lambda a: output, psd), np.linalg.inv(psd.A)),
        judge("assert_ridge_inverse", lambda output: assertions.assert_ridge_inverse(lambda a: output, psd, 0.1),
              np.linalg.inv(psd.A + 0.1 * np.eye(4))),
        judge("assert_kernel_matrix", lambda output: assertions.assert_kernel_matrix(lambda x: output, cloud), kernel),
        judge("assert_nystrom", lambda output: assertions.assert_nystrom(lambda x, landmarks: output, cloud, cloud.x[:2]), low),
        judge("assert_low_rank_error", lambda output: assertions.assert_low_rank_error(lambda a: output, psd, rank=4), psd.A),
        judge("assert_attention_matches", lambda output: assertions.assert_attention_matches(lambda *a, **k: output, tokens, kind="soft"), good_attention),
        judge("assert_psd", lambda output: assertions.assert_psd(output), psd.A),
        judge("ratios.penrose", lambda output: ratios.penrose(matrix.A, output, matrix), np.linalg.pinv(matrix.A)),
        judge("ratios.kernel", lambda output: ratios.kernel(output, cloud.x), kernel),
        judge("ratios.nystrom", lambda output: ratios.nystrom(kernel, output), low),
        judge("ratios.low_rank", lambda output: ratios.low_rank(psd.A, output, rank=4), psd.A),
    ]  # fmt: skip


ADAPTER_FUNCTIONS: tuple[Public, ...] = (*_estimators(), *_dask(), *_testing())
