r"""Products with Gaussian features of tokens, block by block in reused memory: attention, and its gradient.

For C = k(q, L), E = k(keys, L) and a core X (m x m) these are out = C X (E^T v) and the gradients of sum(g * out), for batches of
heads (b, h, tokens, features). A block of features is computed, exponentiated and multiplied while it is in the cache of a core.

The exponents come from one product, [z, |z|^2, 1] . [w / l^2, -1 / (2 l^2), -|w|^2 / (2 l^2)], with z and w the tokens and landmarks
less a central landmark and l the length scale (see `_kernel_distances.py`): one pass over the tokens makes its left side. It is
accurate as long as no landmark is far from that center: `near_landmarks` tells, and callers take another way otherwise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from softlinalg import _arrays, _buffers, _native
from softlinalg._kernel_distances import near_limit
from softlinalg._kernel_products import rows_per_block
from softlinalg._typing import Array, DType, Namespace

__all__ = [
    "Columns",
    "Forward",
    "Gradients",
    "attend",
    "attend_vjp",
    "feature_matrix",
    "feature_matrix_vjp",
    "landmark_gradient",
    "landmark_matrix",
    "landmark_matrix_vjp",
    "lowest_exponent",
]


def lowest_exponent(dtype: DType) -> float:
    """The exponent below which a feature counts as zero: half of where numbers become subnormal, so that no product of two is."""
    return math.log(_arrays.tiny(dtype)) / 2


_BLOCKS = 8
"""Blocks are so many times as large as those of kernel products: the smaller ones of these call each operation too often."""


def mean_point(points: Array, *, xp: Namespace) -> Array:
    """The mean of each set, (..., 1, d), constant to differentiation: a center that takes no sorting.

    An outlier may move it far away; then points are far from it, which is seen, and accuracy is kept by other means.
    """
    return xp.mean(_arrays.detach(points), axis=-2, keepdims=True)


class Span(NamedTuple):
    """A block of tokens: some rows of one head, or all tokens of several heads."""

    batch: slice
    heads: slice
    rows: slice
    flat: slice
    """The heads, counted through the batch."""
    shape: tuple[int, int, int]
    """Members of the batch, heads, rows."""

    @property
    def members(self) -> int:
        """Heads in all."""
        return self.shape[0] * self.shape[1]


def spans(b: int, h: int, n: int, step: int) -> Iterator[Span]:
    """All tokens in blocks of about `step`."""
    if min(b, h, n) == 0:
        return
    if n >= step:
        size = -(-n // -(-n // step))  # equal blocks
        for i in range(b):
            for j in range(h):
                for start in range(0, n, size):
                    stop = min(n, start + size)
                    rows, flat = slice(start, stop), slice(i * h + j, i * h + j + 1)
                    yield Span(slice(i, i + 1), slice(j, j + 1), rows, flat, (1, 1, stop - start))
        return
    heads = min(h, max(1, step // n))
    members = max(1, step // (n * h)) if heads == h else 1
    for i in range(0, b, members):
        last = min(b, i + members)
        for j in range(0, h, heads):
            end = min(h, j + heads)
            flat = slice(i * h + j, (last - 1) * h + end)
            yield Span(slice(i, last), slice(j, end), slice(0, n), flat, (last - i, end - j, n))


class Factors(NamedTuple):
    """What exponents need of landmarks (B, m, d)."""

    center: Array
    """(B, 1, d)"""
    w: Array
    """The landmarks less that."""
    rows: Array
    """[w / l^2, 1 / l^2, -|w|^2 / (2 l^2)], (B, m, d + 2): products of weights with it are all that the gradient needs."""
    columns: Array
    """[w / l^2, -1 / (2 l^2), -|w|^2 / (2 l^2)] in the unit of exponents, (B, d + 2, m)."""
    far: Array | None = None
    """Whether they are far from the center, (B, m, 1); None: they are not."""


def _factors(flat: Array, inverse_scale: float, unit: float, *, xp: Namespace) -> Factors:
    """Of landmarks (B, m, d), exponents in this unit."""
    made = _native.landmark_factors(flat, inverse_scale, unit) if _arrays.is_numpy(flat) else None
    if made is not None:
        center, w, squared, rows, columns = made
        return Factors(center, w, rows, xp.matrix_transpose(columns), squared > near_limit(flat.dtype))
    d, precision = flat.shape[-1], inverse_scale**2
    center = mean_point(flat, xp=xp)  # (B, 1, d)
    w = flat - center
    scaled = w * inverse_scale
    squared = _buffers.row_squares(scaled)[..., None]
    far = squared > near_limit(flat.dtype)
    rows = xp.concat([scaled * inverse_scale, xp.full_like(squared, precision), -squared / 2], axis=-1)
    halves = xp.full_like(squared, -precision / 2)
    columns = xp.matrix_transpose(xp.concat([rows[..., :d], halves, rows[..., -1:]], axis=-1) * unit)
    return Factors(center, w, rows, columns, far)


class Columns:
    """What the exponents need of the landmarks (b, h, m, d), and the memory of the blocks."""

    b: int
    h: int
    m: int
    d: int

    def __init__(self, landmarks: Array, inverse_scale: float, *, xp: Namespace, factors: Factors | None = None) -> None:
        self.xp: Namespace = xp
        self.dtype: DType = landmarks.dtype
        self.unit: float = _buffers.exponent_unit(landmarks)
        self.b, self.h, self.m, self.d = landmarks.shape
        self.precision: float = inverse_scale**2
        if factors is None:
            flat, unit = xp.reshape(landmarks, (self.b * self.h, self.m, self.d)), self.unit
            made = None
            if _arrays.is_small_on_host(flat, math.prod(flat.shape)):
                made = _arrays.through_numpy(lambda host, hosts: _factors(host, inverse_scale, unit, xp=hosts), flat, xp=xp)
            factors = _factors(flat, inverse_scale, unit, xp=xp) if made is None else Factors(*made)
        self.center: Array = factors.center
        self.w: Array = factors.w
        self.rows: Array = factors.rows
        self.columns: Array = factors.columns
        self._far = factors.far
        self._like = landmarks
        self.lowest: float = lowest_exponent(self.dtype)
        self._memory: dict[str, Array] = {}

    def near_landmarks(self) -> bool:
        """Are the exponents accurate to 1e-5 (float32) or 1e-11 (float64)? NaN counts as near: it comes out as NaN anyway."""
        return self._far is None or not bool(self._far.any())

    @functools.cached_property
    def step(self) -> int:
        """Tokens of a block."""
        return _BLOCKS * rows_per_block(None, self._like, self.m, func="soft_attention")

    def buffer(self, name: str, span: Span, width: int) -> Array:
        """Memory for a block, (heads, rows, width); (rows, width) for one head. Overwritten by the next block."""
        entries = span.members * span.shape[2]
        if name not in self._memory or self._memory[name].shape[0] < entries:
            self._memory[name] = _arrays.empty_like_shape((entries, width), self.rows, xp=self.xp)
            if name == "left":
                self._memory[name][:, self.d + 1] = 1
        memory = self._memory[name][:entries, :]
        return memory if span.members == 1 else self.xp.reshape(memory, (span.members, span.shape[2], width))

    def release(self) -> None:
        """Give the memory of the blocks back."""
        self._memory.clear()

    def fill(self, points: Array, hidden: Array | None, span: Span) -> Array:
        """[z, |z|^2, 1] of a block of `points` (b, h, n, d); hidden tokens are at zero, whatever they hold."""
        xp = self.xp
        left = self.buffer("left", span, self.d + 2)
        z = left[..., : self.d]
        shaped = xp.reshape(left, (*span.shape, self.d + 2))  # of a buffer in order: a view
        center = xp.reshape(self.center[span.flat, ...], (*span.shape[:2], 1, self.d))
        _buffers.subtract_into(shaped[..., : self.d], take(points, hidden, span, xp=xp), center)
        _buffers.row_squares(z, left[..., self.d])
        return left

    def write(self, points: Array, hidden: Array | None, span: Span, out: Array) -> None:
        """Features of a block of `points` into `out`, (heads, rows, m) or (rows, m)."""
        left = self.fill(points, hidden, span)
        _buffers.matmul_into(out, left, per_head(self.columns, span))
        _buffers.clamped_exp_in_place(out, self.lowest, self.unit)


def per_head(x: Array, span: Span) -> Array:
    """The heads of a block from (B, ...): a matrix where the block is of one head, a stack otherwise."""
    return x[span.flat.start] if span.members == 1 else x[span.flat, ...]


def take(x: Array, hidden: Array | None, span: Span, *, xp: Namespace) -> Array:
    """A block of tokens (b, h, n, features), zero where hidden (b, h, n)."""
    block = x[span.batch, span.heads, span.rows, :]
    if hidden is None:
        return block
    return xp.where(hidden[span.batch, span.heads, span.rows][..., None], xp.zeros_like(block), block)


def put(target: Array, block: Array, span: Span) -> None:
    """Copy (batch, heads, rows, features) into a buffer (heads, rows, features) or (rows, features), with its type."""
    if span.members == 1:
        target[...] = block[0, 0, ...]
    elif span.shape[0] == 1:
        target[...] = block[0, ...]
    else:
        # The buffer is contiguous but for its last axis: head after head through the batch.
        for i in range(span.shape[0]):
            target[i * span.shape[1] : (i + 1) * span.shape[1], ...] = block[i, ...]


def give(out: Array, block: Array, hidden: Array | None, span: Span, *, xp: Namespace) -> None:
    """Copy a block back into its place in (b, h, n, features); zero where hidden."""
    shaped = xp.reshape(block, (*span.shape, block.shape[-1]))
    if hidden is not None:
        gone = hidden[span.batch, span.heads, span.rows][..., None]
        shaped = xp.where(gone, xp.zeros_like(shaped), shaped)
    out[span.batch, span.heads, span.rows, :] = shaped


def rows_of(x: Array, span: Span) -> Array:
    """The block of a flat array (B, n, width)."""
    return x[span.flat.start, span.rows, :] if span.members == 1 else x[span.flat, span.rows, :]


def values_of(v: Array, hidden: Array | None, span: Span, dtype: DType, *, xp: Namespace) -> Array:
    """A block of values (heads, rows, e) or (rows, e), in the type of the features."""
    block = xp.astype(take(v, hidden, span, xp=xp), dtype, copy=False)
    if span.members == 1:
        return block[0, 0, ...]
    return block[0, ...] if span.shape[0] == 1 else xp.reshape(block, (span.members, *block.shape[2:]))


class Forward(NamedTuple):
    """What the gradient needs of the forward pass."""

    out: Array
    """(b, h, n, e)."""
    features: Array
    """C, (B, n, m)."""
    key_features: Array
    """E, (B, keys, m); the same array as C for self-attention."""
    moment: Array
    """E^T v, (B, m, e), in the wide type."""


def attend(
    q: Array,
    k: Array | None,
    v: Array,
    hidden: Array | None,
    x: Array,
    columns: Columns,
    *,
    summed: Callable[[Array], Array] | None = None,
) -> Forward:
    """C X (E^T v), for q (b, h, n, d), k (b, h, keys, d), v (b, h, keys, e), hidden (b, h, keys), x (b, h, m, m).

    Hidden keys are left out; in self-attention their own output is zero. Where other processes hold other tokens, `summed` adds
    their E^T v to that of these.
    """
    xp = columns.xp
    wide = _arrays.wide_dtype(q, xp=xp)
    b, h, m = columns.b, columns.h, columns.m
    keys = q if k is None else k
    count, e = v.shape[-2:]
    key_features = _arrays.empty_like_shape((b * h, count, m), columns.rows, xp=xp)
    moment = _arrays.zeros_like_shape((b * h, m, e), columns.rows, xp=xp, dtype=wide)
    for span in spans(b, h, count, columns.step):
        block = rows_of(key_features, span)
        columns.write(keys, hidden, span, block)
        add_product(moment, block, values_of(v, hidden, span, columns.dtype, xp=xp), span, xp=xp)
    if summed is not None:
        moment = summed(moment)
    core = core_product(x, moment, columns, xp=xp)
    features = key_features
    if k is not None:
        features = _arrays.empty_like_shape((b * h, q.shape[-2], m), columns.rows, xp=xp)
    out = _buffers.empty_in_order_of(q, (b, h, q.shape[-2], e), xp=xp)
    gone = hidden if k is None else None
    for span in spans(b, h, q.shape[-2], columns.step):
        block = rows_of(features, span)
        if k is not None:
            columns.write(q, None, span, block)
        product_into(out, block, per_head(core, span), gone, span, xp=xp)
    return Forward(out, features, key_features, moment)


def core_product(x: Array, moment: Array, columns: Columns, *, xp: Namespace) -> Array:
    """X times (B, m, e) in the wide type, in the type of the features."""
    wide = xp.reshape(xp.astype(x, moment.dtype, copy=False), (columns.b * columns.h, columns.m, columns.m))
    return xp.astype(wide @ moment, columns.dtype, copy=False)


def add_product(total: Array, left: Array, right: Array, span: Span, *, xp: Namespace) -> None:
    """total[heads] += left^T right, summed in the type of `total`."""
    product = xp.matrix_transpose(left) @ right
    target = per_head(total, span)
    target += xp.astype(product, total.dtype, copy=False)


def product_into(out: Array, block: Array, right: Array, hidden: Array | None, span: Span, *, xp: Namespace) -> None:
    """A block of (b, h, n, e) as the product of features and a factor."""
    if hidden is None and span.members == 1 and out.dtype == block.dtype:
        _buffers.matmul_into(out[span.batch.start, span.heads.start, span.rows, :], block, right)
    else:
        give(out, block @ right, hidden, span, xp=xp)


class Gradients(NamedTuple):
    """Gradients in the shapes of the arguments; in the type of the features, those of landmarks and core in the wide type."""

    q: Array
    k: Array | None
    v: Array
    landmarks: Array
    x: Array


def attend_vjp(
    grad: Array,
    q: Array,
    k: Array | None,
    v: Array,
    hidden: Array | None,
    x: Array,
    columns: Columns,
    saved: Forward,
    *,
    summed: Callable[[Array], Array] | None = None,
) -> Gradients:
    """Gradient of sum(grad * out) through `attend`; those of landmarks and core are the part of this process, see `summed` there.

    With G = X (E^T v): dG = C^T g, dX = dG (E^T v)^T, dM = X^T dG, dv = E dM, dC = g G^T, dE = v dM^T; then through the features.
    """
    xp = columns.xp
    b, h, m = columns.b, columns.h, columns.m
    gone = hidden if k is None else None
    total = _arrays.zeros_like_shape(tuple(saved.moment.shape), saved.moment, xp=xp)
    for span in spans(b, h, q.shape[-2], columns.step):
        add_product(total, rows_of(saved.features, span), values_of(grad, gone, span, columns.dtype, xp=xp), span, xp=xp)
    wide_x = xp.reshape(xp.astype(x, total.dtype, copy=False), (b * h, m, m))
    dx = total @ xp.matrix_transpose(saved.moment)
    core = xp.astype(wide_x @ saved.moment, columns.dtype, copy=False)
    if summed is not None:  # every process used E^T v
        total = summed(total)
    dmoment = xp.astype(xp.matrix_transpose(wide_x) @ total, columns.dtype, copy=False)
    dw = _arrays.zeros_like_shape((b * h, m, columns.d + 2), saved.moment, xp=xp)
    dv = _buffers.empty_in_order_of(v, tuple(v.shape), xp=xp)
    if k is None:
        factor = xp.matrix_transpose(xp.concat([core, dmoment], axis=-1))  # (B, 2e, m)
        dq = _pull(q, [(grad, gone), (v, hidden)], factor, saved.features, hidden, columns, dw, (dv, dmoment))
        dk = None
    else:
        dq = _pull(q, [(grad, None)], xp.matrix_transpose(core), saved.features, None, columns, dw, None)
        dk = _pull(k, [(v, hidden)], xp.matrix_transpose(dmoment), saved.key_features, hidden, columns, dw, (dv, dmoment))
    return Gradients(dq, dk, dv, landmark_gradient(dw, columns), xp.reshape(dx, (b, h, m, m)))


def _pull(
    points: Array,
    parts: list[tuple[Array, Array | None]],
    factor: Array,
    features: Array,
    hidden: Array | None,
    columns: Columns,
    dw: Array,
    values: tuple[Array, Array] | None,
) -> Array:
    """Gradient of the points from that of their features, [parts] @ factor; adds to `dw`, and fills the gradient of the values."""
    xp, d = columns.xp, columns.d
    gradient = _buffers.empty_in_order_of(points, tuple(points.shape), xp=xp)
    for span in spans(columns.b, columns.h, points.shape[-2], columns.step):
        block = rows_of(features, span)
        if values is not None:
            product_into(values[0], block, per_head(values[1], span), hidden, span, xp=xp)
        weights = columns.buffer("weights", span, columns.m)
        _buffers.matmul_into(weights, _side_by_side(parts, columns, span), per_head(factor, span))
        weights *= block
        left = columns.fill(points, hidden, span)
        add_product(dw, weights, left, span, xp=xp)
        _give_point_gradient(gradient, weights, left, hidden, columns, span, d)
    return gradient


def _side_by_side(parts: list[tuple[Array, Array | None]], columns: Columns, span: Span) -> Array:
    """Blocks of several arrays next to one another, so that one product serves them all."""
    xp = columns.xp
    if len(parts) == 1:
        return values_of(parts[0][0], parts[0][1], span, columns.dtype, xp=xp)
    width = sum(part.shape[-1] for part, _ in parts)
    memory, start = columns.buffer("parts", span, width), 0
    for part, hidden in parts:
        stop = start + part.shape[-1]
        put(memory[..., start:stop], take(part, hidden, span, xp=xp), span)
        start = stop
    return memory


def _give_point_gradient(gradient: Array, weights: Array, left: Array, hidden: Array | None, columns: Columns, span: Span, d: int) -> None:
    """(H w - rowsum(H) z) / l^2 for a block; H w and the row sums from one product."""
    pulled = columns.buffer("pulled", span, d + 2)
    _buffers.matmul_into(pulled, weights, per_head(columns.rows, span))
    moved, sums, z = pulled[..., :d], pulled[..., d : d + 1], left[..., :d]
    if hidden is None and span.members == 1:
        _buffers.subtract_product_into(gradient[span.batch.start, span.heads.start, span.rows, :], moved, sums, z)
        return
    _buffers.subtract_product_into(moved, moved, sums, z)
    give(gradient, moved, hidden, span, xp=columns.xp)


def landmark_gradient(dw: Array, columns: Columns) -> Array:
    """(H^T z - colsum(H) w) / l^2, (b, h, m, d), from the sums H^T [z, ..., 1]."""
    xp, d = columns.xp, columns.d
    moved = dw[..., :d] - dw[..., -1:] * xp.astype(columns.w, dw.dtype, copy=False)
    return xp.reshape(moved * columns.precision, (columns.b, columns.h, columns.m, d))


# ------------------------------------------------------------------------------------------ landmarks alone
def landmark_matrix(landmarks: Array, inverse_scale: float, *, xp: Namespace) -> Array | None:
    """k(L, L), (..., m, m), in the wide type: symmetric, with a unit diagonal. None where some landmarks are far from the rest."""
    if _arrays.is_small_on_host(landmarks, math.prod(landmarks.shape[:-1]) * landmarks.shape[-2]):
        return _arrays.one_through_numpy(lambda host, hosts: landmark_matrix(host, inverse_scale, xp=hosts), landmarks, xp=xp)
    wide = _arrays.wide_dtype(landmarks, xp=xp)
    shape = (*landmarks.shape[:-1], landmarks.shape[-2])
    points = xp.reshape(landmarks, (math.prod(landmarks.shape[:-2]), *landmarks.shape[-2:]))
    if _arrays.is_numpy(points):
        made = _native.kernel_matrix(points, inverse_scale, near_limit(wide), lowest_exponent(wide))
        if made is not None:
            return None if made[0] is None else xp.reshape(made[0], shape)
    points = xp.astype(points, wide, copy=False)
    points = points - mean_point(points, xp=xp)
    points *= inverse_scale
    squared = _buffers.row_squares(points)
    if bool(xp.any(squared > near_limit(wide))):
        return None
    squared *= -0.5
    exponents = squared[..., :, None] + squared[..., None, :]
    _buffers.add_matmul_in_place(exponents, points, xp.matrix_transpose(points))
    _buffers.clamped_exp_in_place(exponents, lowest_exponent(wide))
    w = exponents + xp.matrix_transpose(exponents)  # sums in both orders are equal: exactly symmetric, whatever the product was
    w *= 0.5
    _buffers.fill_diagonal_in_place(w, 1.0)
    return xp.reshape(w, shape)


def landmark_matrix_vjp(grad: Array, landmarks: Array, w: Array, inverse_scale: float, *, xp: Namespace) -> Array:
    """Gradient of sum(grad * k(L, L)): (H L - rowsum(H) L) / l^2 with H = (grad + grad^T) * W; in the wide type."""
    points = xp.astype(landmarks, w.dtype, copy=False)
    points = points - mean_point(points, xp=xp)
    weights = xp.astype(grad, w.dtype, copy=False)
    weights = (weights + xp.matrix_transpose(weights)) * w
    return (weights @ points - xp.sum(weights, axis=-1)[..., None] * points) * inverse_scale**2


def feature_matrix(points: Array, columns: Columns) -> Array:
    """k(points, L), (b, h, n, m)."""
    xp = columns.xp
    features = _arrays.empty_like_shape((columns.b * columns.h, points.shape[-2], columns.m), columns.rows, xp=xp)
    for span in spans(columns.b, columns.h, points.shape[-2], columns.step):
        columns.write(points, None, span, rows_of(features, span))
    return xp.reshape(features, (columns.b, columns.h, points.shape[-2], columns.m))


def feature_matrix_vjp(grad: Array, points: Array, features: Array, columns: Columns) -> tuple[Array, Array]:
    """Gradients of sum(grad * k(points, L)) with respect to the points and the landmarks (wide type)."""
    xp, d = columns.xp, columns.d
    flat = xp.reshape(features, (columns.b * columns.h, points.shape[-2], columns.m))
    dw = _arrays.zeros_like_shape((columns.b * columns.h, columns.m, d + 2), columns.rows, xp=xp, dtype=_arrays.wide_dtype(points, xp=xp))
    gradient = _buffers.empty_in_order_of(points, tuple(points.shape), xp=xp)
    for span in spans(columns.b, columns.h, points.shape[-2], columns.step):
        weights = columns.buffer("weights", span, columns.m)
        put(weights, take(grad, None, span, xp=xp), span)
        weights *= rows_of(flat, span)
        left = columns.fill(points, None, span)
        add_product(dw, weights, left, span, xp=xp)
        _give_point_gradient(gradient, weights, left, None, columns, span, d)
    return gradient, landmark_gradient(dw, columns)
