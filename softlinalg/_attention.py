r"""Softmax-free attention: the Nystrom approximation of a Gaussian kernel matrix over tokens, applied to values.

With C = k(q, L), E = k(keys, L) and W = k(L, L) the output is C X (E^T v), X an inverse of W, computed from right to left: nothing
of size tokens x tokens exists, and the cost is linear in the number of tokens. `_attention_blocks.py` does it in reused memory;
the form here is made of new arrays only, so that it can be differentiated, mapped and compiled.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from softlinalg import _arrays, _attention_blocks, _buffers, _certificates_cholesky, _inputs, _iterations, _linalg, _native
from softlinalg._attention_blocks import Columns, lowest_exponent, mean_point
from softlinalg._kernel_distances import GaussianColumns, mirror, near_limit
from softlinalg._newton_pinv import newton_pinv
from softlinalg._pinv import ridge_inverse
from softlinalg._ridge_inverse import inverse_and_evidence, inverse_slope
from softlinalg._settings import flag, is_one_of, shown, whole_number
from softlinalg._typing import Array, DType, Namespace
from softlinalg.errors import DTypeError, ParameterError, ShapeError

__all__ = ["InverseSettings", "default_ridge", "exponentials", "soft_attention"]

_INVERSES = ("certified", "published", "exact")
_NORMALIZATIONS = (None, "published", "symmetric")
RIDGE = 0.01
"""As in the published SOFT; kernel matrices have ones on their diagonal."""


# ------------------------------------------------------------------------------------------- the inverse
class InverseSettings(NamedTuple):
    """How the kernel matrix of the landmarks is inverted: checked settings."""

    inverse: str = "certified"
    """"certified", "published" or "exact"."""
    ridge: float = RIDGE
    steps: int = 20
    """Newton-Raphson steps of "published"."""
    tol: float | None = None
    """Relative error that "certified" certifies."""
    alpha: str = "matrix"
    """Start of "published": a factor for each "matrix", or one for the "batch" as in the published SOFT++."""
    normalization: str | None = None
    is_kernel: bool = False
    """The matrix was made by `landmark_kernel`: symmetric, with a unit diagonal, and need not be checked for that."""


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
    """Check the settings. `ridge` None is 0.01, but 0 for the published SOFT++ (inverse and normalization "published")."""
    for name, value, known in (
        ("inverse", inverse, _INVERSES),
        ("normalization", normalization, _NORMALIZATIONS),
        ("published_alpha", published_alpha, ("matrix", "batch")),
    ):
        if not is_one_of(value, known):
            listed = ", ".join(repr(word) for word in known)
            message = f"{func}: {name} must be one of {listed}; got {shown(value)}. The default is {known[0]!r}."
            raise ParameterError(message)
    steps = whole_number(steps, func=func, name="steps", minimum=0, remedy="The published number is 20.")
    if tol is not None:
        tol = _inputs.real_scalar(tol, func=func, name="tol", maximum=0.5)
    if ridge is None:
        ridge = default_ridge(inverse, normalization)
    ridge = _inputs.real_scalar(ridge, func=func, name="ridge", strict=False)
    return InverseSettings(inverse, ridge, steps, tol, published_alpha, normalization)


def default_ridge(inverse: str, normalization: str | None) -> float:
    """What is added where no ridge is given: 0 for the published SOFT++, else RIDGE."""
    return 0.0 if (inverse, normalization) == ("published", "published") else RIDGE


def start_factor(w: Array, settings: InverseSettings, *, xp: Namespace) -> Array:
    """Factor alpha of the published start alpha (W + ridge I), shape (...).

    For a "batch" 2 / max^2 over all matrices, halved while the largest column sum of |I - alpha W W| is above 1.01, ten times at most.
    Published for a ridge of zero. With one W includes it and the 2 is 1.9: at 2 far landmarks, W = I, are as far from the inverse as they
    may be, and stay there.
    """
    if settings.alpha == "matrix":
        return _iterations.published_alpha(w, ridge=settings.ridge, xp=xp)
    eye = _arrays.eye_like(w, xp=xp)
    b = w + settings.ridge * eye
    largest = xp.max(xp.sum(b, axis=-1))
    alpha = (1.9 if settings.ridge else 2) / (largest * largest)
    square = b @ b
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
        quick = _quickly_certified(w, settings, xp=xp) if settings.is_kernel and not _arrays.is_traced(w) else None
        if quick is not None:
            return quick
        return ridge_inverse(w, settings.ridge, tol=settings.tol, check_finite=False)
    if settings.inverse == "exact":
        wide = xp.astype(w, _arrays.wide_dtype(w, xp=xp), copy=False)
        return xp.astype(_linalg.spd_inverse(wide + settings.ridge * _arrays.eye_like(wide, xp=xp), xp=xp)[0], w.dtype, copy=False)
    return newton_inverse(w, start_factor(w, settings, xp=xp), settings)


def _quickly_certified(w: Array, settings: InverseSettings, *, xp: Namespace) -> Array | None:
    """The inverse by Cholesky where the cheapest certificate of `ridge_inverse` holds for the whole batch."""
    if _arrays.is_small_on_host(w, math.prod(w.shape)):
        return _arrays.one_through_numpy(lambda host, hosts: _quickly_certified(host, settings, xp=hosts), w, xp=xp)
    wide = xp.astype(w, _arrays.wide_dtype(w, xp=xp), copy=False)
    x, evidence = _cholesky(wide, settings.ridge, xp=xp)
    certificate = _certificates_cholesky.judge_cholesky(evidence, w.shape[-1], xp=xp)
    # Rounding of 1 + ridge may have moved B, and so I - B X.
    residual = certificate.residual + _arrays.eps(wide.dtype) * (1 + settings.ridge) * certificate.norm
    return xp.astype(x, w.dtype, copy=False) if bool(xp.all(residual <= _tolerance(settings, w.dtype))) else None


def _cholesky(wide: Array, ridge: float, *, xp: Namespace) -> tuple[Array, _certificates_cholesky.CholeskyEvidence]:
    """(W + ridge I)^-1 and the evidence for its certificate."""
    if not _arrays.is_numpy(wide):
        b = wide + ridge * _arrays.eye_like(wide, xp=xp)
        x, _ = _linalg.spd_inverse(b, xp=xp)
        return x, _certificates_cholesky.cholesky_evidence(b, x, xp=xp)
    batch, count = wide.shape[:-2], math.prod(wide.shape[:-2])
    x, evidence = inverse_and_evidence(xp.reshape(wide, (count, *wide.shape[-2:])), xp.full(count, ridge, dtype=xp.float64), xp=xp)
    return xp.reshape(x, wide.shape), _certificates_cholesky.CholeskyEvidence(*(xp.reshape(part, batch) for part in evidence))


def kernel_and_inverse(
    landmarks: Array, length_scale: float, settings: InverseSettings, *, xp: Namespace
) -> tuple[Array, Array, _attention_blocks.Factors | None] | None:
    """`landmark_kernel`, its certified inverse, and what compiled code has made for `Columns`, in one visit to NumPy.

    For few landmarks of another library on the host; otherwise, or where the certificate does not hold, None.
    """
    if settings.inverse != "certified" or not _arrays.is_small_on_host(landmarks, math.prod(landmarks.shape[:-1]) * landmarks.shape[-2]):
        return None
    unit = _buffers.exponent_unit(landmarks)

    def both(host: Array, hosts: Namespace) -> tuple[Array, ...] | None:
        m, d = host.shape[-2:]
        made = _native.landmarks(host.reshape((-1, m, d)), *native_settings(m, host.dtype, length_scale, settings, unit))
        if made is not None:
            kernel, inverse, _, center, moved, rows, columns = made
            shape = (*host.shape[:-1], m)
            return kernel.reshape(shape), inverse.reshape(shape), center, moved, rows, columns.swapaxes(-1, -2)
        with _arrays.one_blas_thread():
            w = _attention_blocks.landmark_matrix(host, 1 / length_scale, xp=hosts)
            x = None if w is None else _quickly_certified(w, settings, xp=hosts)
            return None if x is None else (w, x)

    found = _arrays.through_numpy(both, landmarks, calls_blas=False, xp=xp)
    return None if found is None else (found[0], found[1], _attention_blocks.Factors(*found[2:]) if len(found) > 2 else None)


def native_settings(m: int, dtype: DType, length_scale: float, settings: InverseSettings, unit: float) -> tuple[Any, ...]:
    """What `_native.landmarks` is told about m landmarks of a type."""
    certainty = _certificates_cholesky.certainty(m, _arrays.eps("float64") * (1 + settings.ridge), _tolerance(settings, "float64"))
    limits = near_limit("float64"), near_limit(dtype)
    return 1 / length_scale, settings.ridge, unit, limits, lowest_exponent("float64"), certainty


def _tolerance(settings: InverseSettings, dtype: DType) -> float:
    """Of the certificate: what was asked for, or what `ridge_inverse` has for the type."""
    return settings.tol or (1e-6 if _arrays.eps(dtype) < 1e-10 else 1e-3)


def kernel_inverse_vjp(grad: Array, landmarks: Array, w: Array, x: Array, length_scale: float, *, xp: Namespace) -> Array:
    """Gradient of sum(grad * X) with respect to the landmarks (..., m, d), X = (k(L, L) + ridge I)^-1; in the wide type."""
    if _arrays.is_small_on_host(landmarks, math.prod(w.shape)):
        m, d = landmarks.shape[-2:]

        def quickly(host: Array, hosts: Namespace) -> Array | None:
            inverse, slope, kernel = (hosts.reshape(_arrays.to_numpy(a), (-1, m, m)) for a in (x, grad, w))
            found = _native.inverse_vjp(inverse, slope, kernel, hosts.reshape(host, (-1, m, d)), 1 / length_scale)
            return None if found is None else hosts.reshape(found, tuple(landmarks.shape))

        quick = _arrays.one_through_numpy(quickly, landmarks, calls_blas=False, xp=xp)
        if quick is not None:
            return quick
    return _attention_blocks.landmark_matrix_vjp(inverse_slope(x, grad, xp=xp), landmarks, w, 1 / length_scale, xp=xp)


def newton_inverse(w: Array, alpha: Array, settings: InverseSettings) -> Array:
    """The published iteration from alpha (W + ridge I)."""
    return newton_pinv(w, steps=settings.steps, alpha=alpha, ridge=settings.ridge, check_finite=False).value


def newton_start_slope(w: Array, alpha: Array, settings: InverseSettings, *, xp: Namespace) -> Array:
    r"""Derivative of `newton_inverse` by alpha, (..., m, m), with P = W + ridge I fixed.

    V = (I - (I - alpha P^2)^(2^k)) P^-1, so dV / dalpha = 2^k (I - alpha P^2)^(2^k - 1) P; the power is the product of the squares
    (I - alpha P^2)^(2^j), j < k. 2 k products.
    """
    eye = _arrays.eye_like(w, xp=xp)
    p = w + settings.ridge * eye
    square = eye - alpha[..., None, None] * (p @ p)
    power = eye
    for step in range(settings.steps):
        power = _without_tiny(power @ square, xp=xp)
        square = _without_tiny(square @ square, xp=xp) if step + 1 < settings.steps else square
    return 2.0**settings.steps * (power @ p)


def _without_tiny(a: Array, *, xp: Namespace) -> Array:
    """Zero for entries whose square would be subnormal: what converges to zero by squaring would pass through such numbers."""
    return xp.where(xp.abs(a) < math.sqrt(_arrays.tiny(a.dtype)), xp.zeros_like(a), a)


def normalized(x: Array, w: Array, *, xp: Namespace) -> Array:
    """D^(-1/2) X D^(-1/2), D the row sums of W: the published SOFT++."""
    scale = 1 / xp.sqrt(xp.sum(w, axis=-1))
    return scale[..., :, None] * x * scale[..., None, :]


# ------------------------------------------------------------------------------------------ kernel matrices
def features(points: Array, landmarks: Array, length_scale: float, *, xp: Namespace) -> Array:
    """k(points, landmarks), new arrays only; zero where it is below the square root of the smallest normal number."""
    columns = GaussianColumns(landmarks, 1 / length_scale, func="soft_attention", xp=xp, center=mean_point(landmarks, xp=xp))
    return exponentials(columns(points), xp=xp)


def exponentials(exponents: Array, *, xp: Namespace) -> Array:
    """exp, exactly zero where products with it could be subnormal."""
    lowest = lowest_exponent(exponents.dtype)
    vanishing = exponents < lowest
    values = xp.exp(xp.where(vanishing, xp.zeros_like(exponents), exponents))
    return xp.where(vanishing, xp.zeros_like(values), values)


def landmark_kernel(landmarks: Array, length_scale: float, settings: InverseSettings, *, xp: Namespace) -> Array:
    """W = k(L, L), symmetric with a unit diagonal, in the type in which it is inverted.

    Distances are computed in float64 where the device has it: the smallest ones decide about the condition of W. It is inverted in
    float64 too, but by the published iteration in the type of the tokens, as published.
    """
    w = _attention_blocks.landmark_matrix(landmarks, 1 / length_scale, xp=xp) if _arrays.may_reuse_buffers(landmarks) else None
    if w is None:
        w = composite_landmark_kernel(landmarks, length_scale, xp=xp)
    return xp.astype(w, landmarks.dtype, copy=False) if settings.inverse == "published" else w


def composite_landmark_kernel(landmarks: Array, length_scale: float, *, xp: Namespace) -> Array:
    """k(L, L) in the wide type, new arrays only."""
    wide = xp.astype(landmarks, _arrays.wide_dtype(landmarks, xp=xp), copy=False)
    return mirror(features(wide, wide, length_scale, xp=xp), 1.0, xp=xp)


# --------------------------------------------------------------------------------------------- attention
def composite(
    q: Array,
    k: Array | None,
    v: Array,
    landmarks: Array,
    hidden: Array | None,
    x: Array,
    *,
    length_scale: float,
    normalization: str | None,
    xp: Namespace,
) -> Array:
    """C X (E^T v), or normalized by the row sums of C X E^T, from new arrays only; `hidden` (..., keys) marks absent keys."""
    gone = None if hidden is None else hidden[..., None]
    if gone is not None:
        v = xp.where(gone, xp.zeros_like(v), v)
        if k is None:
            q = xp.where(gone, xp.zeros_like(q), q)
        else:
            k = xp.where(gone, xp.zeros_like(k), k)
    queries = features(q, landmarks, length_scale, xp=xp)  # (..., n, m)
    keys = queries if k is None else features(k, landmarks, length_scale, xp=xp)
    out = combine(queries, keys, v, gone, x, is_self=k is None, normalization=normalization, xp=xp)
    return xp.where(gone, xp.zeros_like(out), out) if gone is not None and k is None else out


def combine(
    queries: Array, keys: Array, v: Array, gone: Array | None, x: Array, *, is_self: bool, normalization: str | None, xp: Namespace
) -> Array:
    """C X (E^T v) from the features; the small products in the type of X. Hidden keys have v = 0 already."""

    def apply(moment: Array) -> Array:
        return queries @ xp.astype(x @ xp.astype(moment, x.dtype, copy=False), queries.dtype, copy=False)

    if normalization != "symmetric":
        return apply(xp.matrix_transpose(keys) @ v)
    # Columns of weights: one for each key that is there.
    present = xp.ones_like(keys[..., :1]) if gone is None else xp.astype(~gone, keys.dtype)
    row = inverse_root_of_sums(apply(xp.matrix_transpose(keys) @ present), xp=xp)
    if is_self:
        column = row
    else:
        sums = xp.matrix_transpose(x) @ xp.astype(xp.sum(queries, axis=-2)[..., None], x.dtype, copy=False)
        column = inverse_root_of_sums(keys @ xp.astype(sums, keys.dtype, copy=False), xp=xp)
    return row * apply(xp.matrix_transpose(keys) @ (column * v))


def inverse_root_of_sums(sums: Array, *, xp: Namespace) -> Array:
    """D^(-1/2), D = max(1, approximated row sums): those of a kernel matrix are at least its diagonal, one."""
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
    check_finite: bool = True,
) -> Array:
    r"""Softmax-free attention C (W + ridge I)^-1 (E^T v): linear in the number of tokens.

    Parameters
    ----------
    q : array, shape (..., n, d)
        Queries, unscaled. Leading axes (batch, heads) broadcast.
    v : array, shape (..., keys, e)
        Values, one per key.
    landmarks : array, shape (..., m, d)
        Points in the units of `q` on which the approximation stands; any number.
    k : array, shape (..., keys, d), optional
        Keys. Default: the queries (self-attention), as published.
    ridge : float, optional
        Added to the diagonal of W. Default 0.01, as published; 0 for the published SOFT++ (both "published").
    inverse : {"certified", "published", "exact"}
        "certified": `ridge_inverse` to a certified error. "exact": the same by Cholesky, without a certificate. "published":
        `steps` Newton-Raphson steps from 1.8 / |W|_1^2 (W + ridge I), which need not have converged; from
        1.9 / (|W|_1 + ridge)^2 (W + ridge I) where that is less, for ridges above 0.027 |W|_1.
    normalization : {None, "published", "symmetric"}
        None: SOFT. "published": D^(-1/2) X D^(-1/2) with D the row sums of W (SOFT++). "symmetric": D^(-1/2) C X E^T D^(-1/2)
        with D the row sums of the approximated attention C X E^T (and its column sums on the side of the keys), at least one,
        as those of a kernel matrix are; the same linear cost.
    key_padding_mask : boolean array, shape (..., keys), optional
        True for keys that count as absent. In self-attention their own output is zero.
    steps : int, default 20
        Of the published inverse.
    tol : float, optional
        Relative error to certify. Default as in `ridge_inverse`.
    published_alpha : {"matrix", "batch"}
        Start of the published inverse: for each matrix on its own, or 2 / max^2 over all of them, halved, as in the published SOFT++.
    length_scale : float, optional
        Default d^(1/4): exponents -|q - k|^2 / (2 sqrt(d)), as published.
    check_finite : bool, default True
        Refuse NaN and infinity.

    Returns
    -------
    array, shape (..., n, e)
        dtype, library and device of the input; half precisions are computed in float32.

    Raises
    ------
    ShapeError, DTypeError, NonFiniteError, ParameterError, BackendMismatchError

    Notes
    -----
    O(n m (d + e) + m^3) time and O(n m) memory for each head. W and its inverse are in float64 where the device has it. What is
    approximated is full Gaussian attention (`Gaussian(d**0.25)(q, k) @ v`): well for smooth kernels, hardly at all for queries that
    are far from every landmark, where the output tends to zero. There is no causal form: each output uses sums over all keys.

    References
    ----------
    .. [1] Lu et al., SOFT: Softmax-free Transformer with Linear Complexity (2021).
    .. [2] Lu et al., Softmax-free Linear Transformers (2024).

    Examples
    --------
    >>> import numpy as np, softlinalg
    >>> q = np.random.default_rng(0).normal(size=(6, 4))
    >>> v = np.eye(6)
    >>> approximate = softlinalg.soft_attention(q, v, q, ridge=1e-9)  # every query a landmark: no approximation
    >>> bool(np.allclose(approximate, softlinalg.gaussian_kernel(q, length_scale=4**0.25)))
    True
    """
    func = "soft_attention"
    xp, (q, v, landmarks, k), dtype = _inputs.prepare(func, {"q": q, "v": v, "landmarks": landmarks, "k": k}, optional=("k",))
    settings = inverse_settings(
        func, inverse=inverse, ridge=ridge, steps=steps, tol=tol, published_alpha=published_alpha, normalization=normalization
    )._replace(is_kernel=True)
    scale = checked_scale(func, q, k, v, landmarks, key_padding_mask, length_scale, check_finite, xp=xp)
    arguments = (q, v, landmarks, k, key_padding_mask)
    home, given, xp = _arrays.in_numpy(*(array for array in arguments if array is not None), xp=xp)
    rest = iter(given)
    q, v, landmarks, k, key_padding_mask = (None if array is None else next(rest) for array in arguments)
    out = _computed(q, v, landmarks, k, key_padding_mask, scale, settings, dtype, xp=xp)
    return out if home is None else home.bring(out)


def _computed(
    q: Array,
    v: Array,
    landmarks: Array,
    k: Array | None,
    key_padding_mask: Array | None,
    scale: float,
    settings: InverseSettings,
    dtype: DType,
    *,
    xp: Namespace,
) -> Array:
    """`soft_attention` of arguments that were checked, as `dtype`."""
    normalization, work = settings.normalization, _arrays.compute_dtype(dtype, xp=xp)
    landmarks = xp.astype(landmarks, work, copy=False)
    with _arrays.quiet(landmarks):
        x = landmark_inverse(landmark_kernel(landmarks, scale, settings, xp=xp), settings, xp=xp)
        q, v, k = (None if array is None else xp.astype(array, work, copy=False) for array in (q, v, k))
        out = _blocked(q, k, v, landmarks, key_padding_mask, x, scale, xp=xp) if normalization != "symmetric" else None
        if out is None:
            out = composite(q, k, v, landmarks, key_padding_mask, x, length_scale=scale, normalization=normalization, xp=xp)
    return xp.astype(out, dtype, copy=False)


def _blocked(
    q: Array, k: Array | None, v: Array, landmarks: Array, hidden: Array | None, x: Array, length_scale: float, *, xp: Namespace
) -> Array | None:
    """C X (E^T v) in reused memory, where the library allows it and no landmark is far from the others."""
    if not _arrays.may_reuse_buffers(*(array for array in (q, k, v, landmarks, x) if array is not None)):
        return None
    points = [q, v, landmarks, *([] if k is None else [k])]
    batch = _broadcast(*(tuple(array.shape[:-2]) for array in points), *([] if hidden is None else [tuple(hidden.shape[:-1])]))
    columns = Columns(_as_heads(landmarks, batch, xp=xp), 1 / length_scale, xp=xp)
    if not columns.near_landmarks():
        return None
    q, v, x = (_as_heads(array, batch, xp=xp) for array in (q, v, x))
    k = None if k is None else _as_heads(k, batch, xp=xp)
    absent = None if hidden is None else _as_heads(hidden[..., None], batch, xp=xp)[..., 0]
    out = _attention_blocks.attend(q, k, v, absent, x, columns).out
    return xp.reshape(out, (*batch, *out.shape[-2:]))


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape of batches."""
    size = max(len(shape) for shape in shapes)
    padded = [(1,) * (size - len(shape)) + shape for shape in shapes]
    return tuple(max(lengths) if min(lengths) else 0 for lengths in zip(*padded, strict=True))


def _as_heads(x: Array, batch: tuple[int, ...], *, xp: Namespace) -> Array:
    """(..., n, d) as (b, h, n, d), h the last of the batch axes."""
    spread = xp.broadcast_to(x, (*batch, *x.shape[-2:]))
    heads = batch[-1] if batch else 1
    return xp.reshape(spread, (math.prod(batch[:-1]), heads, *x.shape[-2:]))


def checked_scale(
    func: str, q: Array, k: Array | None, v: Array, landmarks: Array, hidden: Any, length_scale: Any, check_finite: Any, *, xp: Namespace
) -> float:
    """The length scale, once arrays and settings have been checked as `soft_attention` says."""
    check_shapes(func, q, k, v, landmarks, hidden)
    _inputs.check_batches(func, q=q, k=k, v=v, landmarks=landmarks)
    scale: float
    scale = q.shape[-1] ** 0.25 if length_scale is None else _inputs.real_scalar(length_scale, func=func, name="length_scale")
    if flag(check_finite, func=func, name="check_finite"):
        for name, array in (("q", q), ("v", v), ("landmarks", landmarks), ("k", k)):
            if array is not None:
                _inputs.check_finite(array, func=func, name=name, xp=xp)
    return scale


def check_shapes(func: str, q: Any, k: Any, v: Any, landmarks: Any, hidden: Any) -> None:
    """Raise ShapeError unless the arrays fit together."""
    for name, x in (("q", q), ("v", v), ("landmarks", landmarks), ("k", k)):
        if x is not None and (x.ndim < 2 or x.shape[-1] == 0):
            message = f"{func}: {name} must have shape (..., tokens, features); got {tuple(x.shape)}. Pass matrices."
            raise ShapeError(message)
    for name, x in (("landmarks", landmarks), ("k", k)):
        if x is not None and x.shape[-1] != q.shape[-1]:
            message = f"{func}: {name} must have the {q.shape[-1]} features of q; got {x.shape[-1]}. Pass points in the space of q."
            raise ShapeError(message)
    keys = (q if k is None else k).shape[-2]
    if v.shape[-2] != keys:
        message = f"{func}: v must have one row per key ({keys}); got {v.shape[-2]}. Pass one value per key."
        raise ShapeError(message)
    if landmarks is not None and landmarks.shape[-2] == 0:
        message = f"{func}: landmarks must have at least one row; got shape {tuple(landmarks.shape)}. Pass m >= 1 landmarks."
        raise ShapeError(message)
    if hidden is None:
        return
    if not hasattr(hidden, "dtype") or not hasattr(hidden, "ndim"):
        message = f"{func}: key_padding_mask must be a boolean array; got {shown(hidden)}. Pass an array of the library of q."
        raise DTypeError(message)
    if _arrays.dtype_name(hidden.dtype) != "bool":
        found = _arrays.dtype_name(hidden.dtype)
        message = f"{func}: key_padding_mask must be boolean, True for absent keys; got dtype {found}. Pass mask == 0 or mask.bool()."
        raise DTypeError(message)
    if hidden.ndim < 1 or hidden.shape[-1] != keys:
        got = tuple(hidden.shape)
        message = f"{func}: key_padding_mask must have one entry per key ({keys}) in its last axis; got shape {got}. Pass (batch, keys)."
        raise ShapeError(message)
