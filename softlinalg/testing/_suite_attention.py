"""The laws of softmax-free attention, and the inputs that they are measured on."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from softlinalg.testing import ratios
from softlinalg.testing._laws import Host, Law, Subject, Trial, first_cases, kind_kept, mixed, not_answered, same_bits
from softlinalg.testing._points import AttentionCase, build_attention, gaussian_values

__all__ = ["RIDGE", "AttentionTrial", "TokensCase", "attention_cases", "laws"]

RIDGE = 0.01
"""Added to the diagonal of W, as in the published method."""

SIZES = ((8, 4, 2), (16, 4, 4), (5, 3, 5), (32, 8, 8), (3, 2, 1), (20, 16, 6), (1, 4, 1))
LARGE_SIZES = ((128, 32, 16), (64, 8, 49))
KINDS = ("normal", "clustered", "duplicated", "one-far", "all-equal", "grid", "collinear")
MAGNITUDES = (1.0, 0.1, 8.0, 1000.0)


@dataclass(frozen=True)
class TokensCase:
    """Tokens by the parameters they are drawn from."""

    tokens: int
    features: int
    landmarks: int
    kind: str
    magnitude: float
    seed: int
    dtype: str

    @functools.cached_property
    def case(self) -> AttentionCase:
        """Queries, values and landmarks."""
        return build_attention(
            tokens=self.tokens,
            features=self.features,
            landmarks=self.landmarks,
            kind=self.kind,
            magnitude=self.magnitude,
            dtype=self.dtype,
            seed=self.seed,
        )

    @property
    def description(self) -> str:
        """In words."""
        size = "" if self.magnitude == 1 else f", times {self.magnitude:g}"
        return f"{self.case.desc}{size}, seed {self.seed}"

    @property
    def reproduction(self) -> str:
        """One line."""
        return f"case = {self.case.code}; q, v, landmarks = case.q, case.v, case.landmarks"

    @property
    def group(self) -> str:
        """What the failures are counted by."""
        return self.kind

    def simpler(self) -> Iterator[TokensCase]:
        """Fewer tokens, landmarks and features, size one, a plainer kind, another seed."""
        for tokens in sorted({1, 2, self.tokens // 2, self.tokens - 1}):
            if 0 < tokens < self.tokens:
                yield replace(self, tokens=tokens, landmarks=min(self.landmarks, tokens))
        for landmarks in sorted({1, 2, self.landmarks - 1}):
            if 0 < landmarks < self.landmarks:
                yield replace(self, landmarks=landmarks)
        for features in sorted({1, 2, self.features // 2}):
            if 0 < features < self.features:
                yield replace(self, features=features)
        if self.magnitude != 1:
            yield replace(self, magnitude=1.0)
        if self.kind != "normal":
            yield replace(self, kind="normal")
        for seed in (0, 1, 2):
            if seed < self.seed:
                yield replace(self, seed=seed)


@functools.lru_cache(maxsize=8)
def _combinations(dtype: str, large: bool) -> tuple[TokensCase, ...]:
    sizes = SIZES + (LARGE_SIZES if large else ())
    found = [TokensCase(n, d, m, kind, magnitude, 0, dtype) for (n, d, m), kind, magnitude in itertools.product(sizes, KINDS, MAGNITUDES)]
    return mixed(found)


def attention_cases(count: int, *, dtype: str, large: bool) -> list[TokensCase]:
    """The first `count` inputs of the grid; after all combinations once, again with other seeds."""
    return first_cases(_combinations(dtype, large), count)


def exact_attention(q: Host, v: Host, landmarks: Host, *, ridge: float = RIDGE) -> Host:
    """C (W + ridge I)^-1 (C^T v) in double precision, C = k(q, landmarks), with the length scale d^(1/4)."""
    length_scale = q.shape[-1] ** 0.25
    c, w = (np.asarray(gaussian_values(z, landmarks, length_scale), dtype=np.float64) for z in (q, landmarks))
    inner = np.linalg.solve(w + ridge * np.eye(w.shape[-1]), np.swapaxes(c, -1, -2) @ v.astype(np.float64))
    return np.asarray(c @ inner)


class AttentionTrial(Trial[TokensCase]):
    """Tokens put to an attention function."""

    def __init__(self, subject: Subject, case: TokensCase) -> None:
        super().__init__(subject, case)
        self.q, self.v, self.landmarks = (np.asarray(z) for z in (case.case.q, case.case.v, case.case.landmarks))

    def of(self, q: Host, v: Host, landmarks: Host, *, finite: bool = True) -> Host:
        """The attention of other arrays, on the host."""
        result = self.subject.call(*(self.subject.array(z) for z in (q, v, landmarks)))
        shape = (*np.broadcast_shapes(q.shape[:-2], v.shape[:-2]), q.shape[-2], v.shape[-1])
        return self.subject.host(result, shape, finite=finite)

    @property
    def out(self) -> Host:
        """The output."""
        return self.once("out", lambda: self.of(self.q, self.v, self.landmarks))  # type: ignore[no-any-return]

    @property
    def truth(self) -> Host:
        """In double precision."""
        return self.once("truth", lambda: exact_attention(self.q, self.v, self.landmarks))  # type: ignore[no-any-return]

    @property
    def unit(self) -> float:
        """Error of one ulp in C and W, carried through: u n kappa(W + ridge I) times the largest value and exponent."""
        norm = float(np.linalg.norm(gaussian_values(self.landmarks, self.landmarks, self.q.shape[-1] ** 0.25).astype(np.float64), 2))
        exponents = min(self.case.magnitude, 30.0) ** 2 + self.q.shape[-1] + 2
        spread = self.v.shape[-2] * (norm + RIDGE) / RIDGE * float(np.abs(self.v).max(initial=0.0))
        unit: float = max(self.subject.eps * exponents * spread, float(np.finfo(self.subject.dtype).tiny))
        return unit

    def compare(self, out: Host, expected: Host) -> float:
        """Largest difference over the unit."""
        return float(np.max(np.abs(out.astype(np.float64) - expected.astype(np.float64)), initial=0.0)) / self.unit


def _tokens(trial: AttentionTrial) -> float:
    order = np.random.default_rng(trial.case.seed).permutation(trial.q.shape[-2])
    return trial.compare(trial.of(trial.q[order], trial.v[order], trial.landmarks), trial.out[order])


def _landmarks(trial: AttentionTrial) -> float:
    return trial.compare(trial.of(trial.q, trial.v, trial.landmarks[::-1].copy()), trial.out)


def _linear(trial: AttentionTrial) -> float:
    other = trial.v[::-1].copy()
    mixed = trial.of(trial.q, (trial.v / 2 + other / 4).astype(trial.v.dtype), trial.landmarks)
    parts = trial.out.astype(np.float64) / 2 + trial.of(trial.q, other, trial.landmarks).astype(np.float64) / 4
    return trial.compare(mixed, parts)


def _zero(trial: AttentionTrial) -> float:
    return same_bits(
        trial.of(trial.q, np.zeros_like(trial.v), trial.landmarks), np.zeros_like(trial.v), "values of zero give an output that is not zero"
    )


def _columns(trial: AttentionTrial) -> float:
    return trial.compare(trial.of(trial.q, trial.v[:, ::-1].copy(), trial.landmarks), trial.out[:, ::-1])


def _batch(trial: AttentionTrial) -> float:
    """Two images of two heads; the second image is larger, so that nothing may be normalized over the batch."""
    q, v, landmarks = (np.stack([np.stack([z, z]), np.stack([z * z.dtype.type(2), z[::-1]])]) for z in (trial.q, trial.v, trial.landmarks))
    out = trial.of(q, v, landmarks)
    return max(trial.compare(out[0, 0], trial.out), trial.compare(out[0, 1], trial.out))


def _batch_bits(trial: AttentionTrial) -> float:
    """Whatever stands beside it, the same bits."""
    stacked = ([np.stack([z, z * z.dtype.type(factor)]) for z in (trial.q, trial.v, trial.landmarks)] for factor in (2, 16))
    first, second = (trial.of(*arrays) for arrays in stacked)
    return same_bits(first[0], second[0], "other bits for another neighbour in the batch")


def _kind(trial: AttentionTrial) -> float:
    arrays = [trial.subject.array(z) for z in (trial.q, trial.v, trial.landmarks)]
    return kind_kept(trial.subject, trial.subject.call(*arrays), arrays[0])


def _unchanged(trial: AttentionTrial) -> float:
    hosts = (trial.q, trial.v, trial.landmarks)
    arrays = [trial.subject.array(z) for z in hosts]
    trial.subject.call(*arrays)
    for array, host in zip(arrays, hosts, strict=True):
        same_bits(trial.subject.host(array, host.shape), host, "the input was changed")
    return 0.0


def _again(trial: AttentionTrial) -> float:
    return same_bits(trial.of(trial.q, trial.v, trial.landmarks), trial.out, "a second call gave other numbers")


def _nan(trial: AttentionTrial) -> float:
    tainted = trial.q.copy()
    tainted[0, 0] = np.nan
    return not_answered(lambda: trial.of(tainted, trial.v, trial.landmarks, finite=False), math.nan)


def laws(*, bitwise: bool = False, batched: bool = True) -> list[Law[Any]]:
    """The properties of attention C (W + 0.01 I)^-1 (C^T v) with Gaussian kernels of the length scale d^(1/4).

    Parameters
    ----------
    bitwise : bool
        The neighbours in a batch must not change a bit.
    batched : bool
        Whether the function takes leading axes.
    """
    t, twice = ratios.THRESHOLD, 2 * ratios.THRESHOLD
    unit = "u n k(W + r I) max |v| (d + 2 + min(|q|, 30)^2)"
    found: list[Law[Any]] = [
        Law(
            name="values",
            words="the output is right",
            formula=f"|out - C (W + r I)^-1 C^T v| <= 30 {unit}",
            threshold=t,
            measure=lambda z: z.compare(z.out, z.truth),
        ),
        Law(
            name="tokens",
            words="the order of tokens does not matter",
            formula=f"out(P q, P v) = P out(q, v) to 60 {unit}",
            threshold=twice,
            measure=_tokens,
            share=2,
        ),
        Law(
            name="landmarks",
            words="the order of landmarks does not matter",
            formula=f"to 60 {unit}",
            threshold=twice,
            measure=_landmarks,
            share=2,
        ),
        Law(
            name="linear",
            words="it is linear in the values",
            formula=f"out(v / 2 + w / 4) = out(v) / 2 + out(w) / 4 to 60 {unit}",
            threshold=twice,
            measure=_linear,
            share=2,
        ),
        Law(name="zero", words="no values, no output", formula="out(0) = 0, exactly", threshold=0, measure=_zero, share=2),
        Law(
            name="columns",
            words="each feature of the values for itself",
            formula=f"to 60 {unit}",
            threshold=twice,
            measure=_columns,
            share=2,
        ),
        Law(
            name="kind", words="library and data type are kept", formula="same library, same data type", threshold=0, measure=_kind, share=4
        ),
        Law(name="input", words="the input is not changed", formula="bit for bit", threshold=0, measure=_unchanged, share=4),
        Law(name="repeat", words="the same input gives the same numbers", formula="bit for bit", threshold=0, measure=_again, share=4),
        Law(
            name="nan",
            words="NaN is not answered with numbers",
            formula="an error, or NaN in the result",
            threshold=0,
            measure=_nan,
            share=4,
        ),
    ]
    if batched:
        found.append(
            Law(name="batch", words="heads and images for themselves", formula=f"to 60 {unit}", threshold=twice, measure=_batch, share=2)
        )
        if bitwise:
            found.append(
                Law(
                    name="batch-bits",
                    words="neighbours in a batch do not matter",
                    formula="the same bits",
                    threshold=0,
                    measure=_batch_bits,
                    share=2,
                )
            )
    return found
