r"""Softmax-free attention: the Nystrom approximation of a Gaussian kernel matrix over tokens, applied to values.

With C = k(q, L), E = k(keys, L) and W = k(L, L) the output is C (W + ridge I)^-1 (E^T v), computed from right to left: nothing
of size tokens x tokens exists, and the cost is linear in the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from softlinalg import _arrays, _iterations
from softlinalg._kernels import Gaussian
from softlinalg._newton_pinv import newton_pinv
from softlinalg._pinv import ridge_inverse
from softlinalg._typing import Array, Namespace
from softlinalg.errors import ParameterError, ShapeError

__all__ = ["InverseSettings", "soft_attention"]

_INVERSES = ("certified", "published", "exact")
_NORMALIZATIONS = (None, "published", "symmetric")


class InverseSettings(NamedTuple):
    """How the kernel matrix of the landmarks is inverted."""

    inverse: str = "certified"
    """"certified", "published" or "exact"."""
    ridge: float = 0.01
    steps: int = 20
    """Newton-Raphson steps of "published"."""
    tol: float | None = None
    """Relative error that "certified" certifies."""
    alpha: str = "matrix"
    """Start of "published": one factor per matrix, or one for the "batch" as in the published SOFT++."""
    normalization: str | None = None


def inverse_settings(
    func: str,
    *,
    inverse: str,
    ridge: float | None,
    steps: int,
    tol: float | None,
    published_alpha: str,
    normalization: str | None,
) -> InverseSettings:
    """Check the settings; `ridge` None is 0.01, but 0 for the published SOFT++."""
    for name, value, known in (
        ("inverse", inverse, _INVERSES),
        ("normalization", normalization, _NORMALIZATIONS),
        ("published_alpha", published_alpha, ("matrix", "batch")),
    ):
        if value not in known:
            shown = ", ".join(repr(word) for word in known)
            message = f"{func}: {name} must be one of {shown}; got {str(value)[:40]!r}. The default is {known[0]!r}."
            raise ParameterError(message)
    if ridge is None:
        ridge = 0.0 if (inverse, normalization) == ("published", "published") else 0.01
    ridge = _arrays.real_scalar(ridge, func=func, name="ridge", strict=False)
    return InverseSettings(inverse, ridge, steps, tol, published_alpha, normalization)


def start_factor(w: Array, settings: InverseSettings, *, xp: Namespace) -> Array:
    """Factor alpha of the published start alpha (W + ridge I), shape (...); a constant to differentiation."""
    w = _arrays.detach(w)
    if settings.alpha == "matrix":
        return _iterations.published_alpha(w, xp=xp)
    largest = xp.max(xp.sum(w, axis=-1))
    alpha = 2 / (largest * largest)
    square, eye = w @ w, _arrays.eye_like(w, xp=xp)
    for _ in range(10):
        size = xp.max(xp.sum(xp.abs(eye - alpha * square), axis=-2))
        alpha = xp.where(size > 1.01, alpha / 2, alpha)
    return xp.broadcast_to(alpha, tuple(w.shape[:-2]))


def landmark_inverse(w: Array, settings: InverseSettings, *, xp: Namespace) -> Array:
    """The inverse of W + ridge I as `settings` says, with the published normalization if that is asked for."""
    x = plain_inverse(w, settings, xp=xp)
    return normalized(x, w, xp=xp) if settings.normalization == "published" else x


def plain_inverse(w: Array, settings: InverseSettings, *, xp: Namespace) -> Array:
    """The inverse of W + ridge I, before normalization, by the way that `settings` names; the type of `w`."""
    if settings.inverse == "certified":
        return ridge_inverse(w, settings.ridge, tol=settings.tol, check_finite=False)
    if settings.inverse == "exact":
        wide = xp.astype(w, _arrays.wide_dtype(w, xp=xp))
        return xp.astype(_arrays.spd_inverse(wide + settings.ridge * _arrays.eye_like(wide, xp=xp), xp=xp)[0], w.dtype)
    return newton_inverse(w, start_factor(w, settings, xp=xp), settings)


def newton_inverse(w: Array, alpha: Array, settings: InverseSettings) -> Array:
    """The published iteration from alpha (W + ridge I)."""
    return newton_pinv(w, steps=settings.steps, alpha=alpha, ridge=settings.ridge, check_finite=False).value


def normalized(x: Array, w: Array, *, xp: Namespace) -> Array:
    """D^(-1/2) X D^(-1/2), D the row sums of W: the published SOFT++."""
    scale = 1 / xp.sqrt(xp.sum(w, axis=-1))
    return scale[..., :, None] * x * scale[..., None, :]


def assemble(
    q: Array,
    k: Array | None,
    v: Array,
    landmarks: Array,
    hidden: Array | None,
    *,
    length_scale: float,
    normalization: str | None,
    invert: Callable[[Array], Array],
    xp: Namespace,
) -> Array:
    """C X (E^T v) and its normalizations, differentiable; `hidden` (..., keys) marks keys that count as absent."""
    kernel = Gaussian(length_scale)
    if hidden is not None:
        v = xp.where(hidden[..., None], xp.zeros_like(v), v)
    wide = _arrays.wide_dtype(landmarks, xp=xp)
    w = xp.astype(kernel(xp.astype(landmarks, wide)), landmarks.dtype)  # (..., m, m); distances between near landmarks decide its rank
    x = invert(w)  # normalized already, if that is published
    queries = kernel(q, landmarks)  # (..., n, m)
    keys = queries if k is None else kernel(k, landmarks)
    if hidden is not None:
        keys = xp.where(hidden[..., None], xp.zeros_like(keys), keys)
    if normalization != "symmetric":
        return queries @ (x @ (xp.matrix_transpose(keys) @ v))
    row = _inverse_root(queries, x, keys, xp=xp)
    column = row if k is None and hidden is None else _inverse_root(keys, x, queries, xp=xp)
    return row * (queries @ (x @ (xp.matrix_transpose(keys) @ (column * v))))


def _inverse_root(queries: Array, x: Array, keys: Array, *, xp: Namespace) -> Array:
    """D^(-1/2) as a column, D = max(1, C X E^T 1): a kernel matrix has row sums of at least its diagonal, one."""
    sums = queries @ (x @ xp.sum(keys, axis=-2)[..., :, None])  # (..., n, 1)
    return 1 / xp.sqrt(xp.maximum(sums, xp.ones_like(sums)))


def soft_attention(
    q: Array,
    v: Array,
    landmarks: Array,
    *,
    k: Array | None = None,
    ridge: float | None = None,
    inverse: str = "certified",
    normalization: str | None = None,
    key_padding_mask: Array | None = None,
    steps: int = 20,
    tol: float | None = None,
    published_alpha: str = "matrix",
    length_scale: float | None = None,
) -> Array:
    r"""Softmax-free attention C (W + ridge I)^-1 (E^T v) at a cost linear in the number of tokens.

    Parameters
    ----------
    q : array, shape (..., n, d)
        Queries, unscaled.
    v : array, shape (..., n, e)
        Values, one per key.
    landmarks : array, shape (..., m, d)
        In the units of `q`.
    k : array, shape (..., keys, d), optional
        Keys. Default: the queries.
    """
    func = "soft_attention"
    names = {"q": q, "v": v, "landmarks": landmarks, "k": k}
    xp, (q, v, landmarks, k), dtype = _arrays.prepare(func, names)
    settings = inverse_settings(
        func, inverse=inverse, ridge=ridge, steps=steps, tol=tol, published_alpha=published_alpha, normalization=normalization
    )
    check_shapes(func, q, k, v, landmarks)
    scale = q.shape[-1] ** 0.25 if length_scale is None else _arrays.real_scalar(length_scale, func=func, name="length_scale")
    work = _arrays.compute_dtype(dtype, xp=xp)
    q, v, landmarks = (xp.astype(x, work) for x in (q, v, landmarks))
    out = assemble(
        q,
        None if k is None else xp.astype(k, work),
        v,
        landmarks,
        key_padding_mask,
        length_scale=scale,
        normalization=normalization,
        invert=lambda w: landmark_inverse(w, settings, xp=xp),
        xp=xp,
    )
    return xp.astype(out, dtype)


def check_shapes(func: str, q: Any, k: Any, v: Any, landmarks: Any) -> None:
    """Raise ShapeError unless the arrays fit together."""
    for name, x in (("q", q), ("v", v), ("landmarks", landmarks), ("k", k)):
        if x is not None and x.ndim < 2:
            message = f"{func}: {name} must have shape (..., tokens, features); got {tuple(x.shape)}. Pass matrices."
            raise ShapeError(message)
    for name, x in (("landmarks", landmarks), ("k", k)):
        if x is not None and x.shape[-1] != q.shape[-1]:
            message = f"{func}: {name} must have the {q.shape[-1]} features of q; got {x.shape[-1]}. Pass points in the space of q."
            raise ShapeError(message)
    keys = q if k is None else k
    if v.shape[-2] != keys.shape[-2]:
        message = f"{func}: v must have one row per key ({keys.shape[-2]}); got {v.shape[-2]}. Pass one value per key."
        raise ShapeError(message)
    if landmarks.shape[-2] == 0:
        message = f"{func}: landmarks must have at least one row; got shape {tuple(landmarks.shape)}. Pass m >= 1 landmarks."
        raise ShapeError(message)
