"""Pivoted Cholesky, clusters and leverage scores: of the right law, and what their definitions say."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import event, example, given, settings
from hypothesis import strategies as st
from landmark_cases import EPS, Table, chosen, cloud, distinct, relative_trace_error, seeds, shapes
from scipy.stats import chisquare

from softlinalg import _landmark_clusters, _landmark_sampling
from softlinalg._kernels import Gaussian, Laplacian
from softlinalg._landmark_clusters import lloyd, plus_plus_seeds
from softlinalg._landmark_sampling import PivotedCholesky, Rows, draw_proportional, leverage_rows, random_pivots
from softlinalg._landmarks import INDEX_METHODS, METHODS, select_landmark_indices, select_landmarks


@dataclass(frozen=True)
class Quadratic:
    """(x.y + 1)^2: a kernel whose diagonal differs from row to row."""

    def __call__(self, x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
        return (x @ (x if y is None else y).T + 1) ** 2

    def diagonal(self, x: np.ndarray) -> np.ndarray:
        return (np.sum(x * x, axis=1) + 1) ** 2


# -------------------------------------------------------------------------------------- pivoted Cholesky
@given(shapes, st.sampled_from(["rpcholesky", "greedy"]), st.floats(0.3, 3), seeds)
@settings(max_examples=60)
def test_the_residual_trace_is_the_trace_error_of_the_pivots(shape, method, length_scale, seed):
    x = cloud(*shape)
    if shape[0] in ("one-far", "offset"):
        x = x - x[-1]
    kernel = Gaussian(length_scale)
    state = PivotedCholesky(kernel, Rows(x, xp=np), func="test")
    rng = np.random.default_rng(seed)
    limit = max(1, len(x) // 2)
    if method == "greedy":
        _landmark_sampling.greedy_pivots(state, limit, tol=None, advance=len_of_nothing)
    else:
        random_pivots(state, limit, tol=None, rng=rng, advance=len_of_nothing)
    assert len(state.pivots) == len(state.traces) <= limit
    assert np.all(np.diff([state.trace, *state.traces]) <= 4 * EPS * state.trace)
    for k, trace in enumerate(state.traces, start=1):
        # Rounding: the cut-off 1e-13 of the reference leaves up to sqrt(1e-13) of what lies in cut directions.
        assert trace / state.trace == pytest.approx(relative_trace_error(kernel, x, x[state.pivots[:k]]), abs=3e-7)


def len_of_nothing(_: int) -> None:
    """A progress bar that nobody looks at."""


@given(shapes, seeds, st.integers(1, 40), st.sampled_from(["rpcholesky", "greedy"]))
def test_fewer_pivots_are_a_prefix_of_more(shape, seed, count, method):
    x = cloud(*shape)
    kernel = Laplacian(2.0)  # of full rank on different rows
    more = distinct(x)
    fewer = min(count, more)
    first = chosen(x, fewer, method, kernel=kernel, rng=seed)
    np.testing.assert_array_equal(first, chosen(x, more, method, kernel=kernel, rng=seed)[:fewer])


@given(shapes, st.sampled_from(["rpcholesky", "greedy"]), st.floats(1e-6, 1.0), seeds)
@example(("normal", 40, 3, 0), "rpcholesky", 1.0, 0)
def test_the_tolerance_is_met_with_as_few_pivots_as_it_takes(shape, method, tol, seed):
    x = cloud(*shape)
    kernel = Laplacian(1 + np.ptp(x))
    indices = chosen(x, None, method, tol=tol, kernel=kernel, rng=seed)
    assert relative_trace_error(kernel, x, x[indices]) <= tol + 1e-9
    event(f"{len(indices)} of {len(x)}" if len(indices) in (1, len(x)) else "between")
    if len(indices) > 1:
        assert relative_trace_error(kernel, x, x[indices[:-1]]) > tol - 1e-9
    np.testing.assert_array_equal(chosen(x, len(indices), method, kernel=kernel, rng=seed), indices)


def test_the_default_meets_a_tolerance_by_growing_its_sample():
    x = cloud("normal", 6000, 2, 0)
    kernel = Gaussian(0.15)
    landmarks = select_landmarks(x, tol=0.02, kernel=kernel, rng=0)
    assert len(landmarks) > 100  # more than a first sample of 2,000 rows can vouch for
    # The sample holds 20 rows per landmark, and Lloyd's steps help: the error over all rows is close to that of the sample.
    assert relative_trace_error(kernel, x, landmarks) < 1.25 * 0.02
    assert len(select_landmarks(x, tol=0.9, kernel=kernel, rng=0)) < 100


@given(st.integers(3, 30), st.integers(1, 4), seeds, seeds)
def test_greedy_pivots_move_with_the_rows(n, d, seed, order_seed):
    # Where no two rows tie, the greedy choice knows nothing of their order. (Rank of this kernel: (d + 1)(d + 2) / 2.)
    x = cloud("normal", n, d, seed)
    count = min(n, (d + 1) * (d + 2) // 2)
    order = np.random.default_rng(order_seed).permutation(n)
    direct = select_landmark_indices(x, count, method="greedy", kernel=Quadratic())
    permuted = select_landmark_indices(x[order], count, method="greedy", kernel=Quadratic())
    np.testing.assert_array_equal(order[permuted], direct)


def test_greedy_breaks_ties_by_the_first_row():
    x = np.asarray([[0.0], [1.0], [2.0], [3.0], [4.0]])
    # All tie at first; then the far end; then the middle.
    assert select_landmark_indices(x, 3, method="greedy", kernel=Gaussian(1.0)).tolist() == [0, 4, 2]
    # Also where rounding has split the tie.
    assert select_landmark_indices(x, 2, method="greedy", kernel=Table(np.diag([1.0, 1 + 1e-12, 0.5, 1.0, 1.0]))).tolist() == [0, 1]


def exact_law(matrix: np.ndarray, count: int) -> dict[tuple[int, ...], float]:
    """Probability of each sequence of pivots under the plain algorithm, one pivot after the other."""
    law: dict[tuple[int, ...], float] = {}

    def descend(residual: np.ndarray, sequence: tuple[int, ...], probability: float) -> None:
        if len(sequence) == count:
            law[sequence] = probability
            return
        diagonal = np.clip(np.diagonal(residual), 0, None)
        for i in range(len(matrix)):
            if diagonal[i] > 1e-12:
                column = residual[:, i]
                descend(residual - np.outer(column, column) / diagonal[i], (*sequence, i), probability * diagonal[i] / diagonal.sum())

    descend(matrix, (), 1.0)
    return law


DRAWS = 8000 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 2500
"""Draws without rejection have p-values below 1e-40 then."""


def check_law(law: dict[tuple[int, ...], float], draw: Callable[[int], tuple[int, ...]], draws: int) -> None:
    """Chi-square test; the seeds are fixed, so it passes or fails once and for all."""
    assert sum(law.values()) == pytest.approx(1)
    counts = Counter(draw(seed) for seed in range(draws))
    assert set(counts) <= set(law)
    # The test needs five expected of a kind: the rarest sequences count together.
    kinds: list[list[tuple[int, ...]]] = [[]]
    for key in sorted(law, key=law.__getitem__):
        if sum(law[rare] for rare in kinds[-1]) * draws > 5:
            kinds.append([])
        kinds[-1].append(key)
    expected = [draws * sum(law[key] for key in kind) for kind in kinds]
    assert len(kinds) > len(law) // 2
    assert min(expected) > 5
    assert chisquare([sum(counts[key] for key in kind) for kind in kinds], expected).pvalue > 1e-3


@pytest.mark.parametrize("proposals", [2, 64])
def test_accelerated_rpcholesky_has_the_law_of_the_plain_one(proposals, monkeypatch):
    # Strong coupling between rows 0, 1 and 2: one of them leaves little of the others, so rejection matters.
    points = np.asarray([0.0, 0.35, 0.6, 1.6])
    matrix = np.exp(-((points[:, None] - points[None, :]) ** 2) / 2) * np.outer([1, 1.5, 1, 0.8], [1, 1.5, 1, 0.8])
    monkeypatch.setattr(_landmark_sampling, "PROPOSALS", proposals)
    rows = Rows(np.arange(4.0)[:, None], xp=np)

    def draw(seed: int) -> tuple[int, ...]:
        state = PivotedCholesky(Table(matrix), rows, func="test")
        random_pivots(state, 3, tol=None, rng=np.random.default_rng(seed), advance=len_of_nothing)
        return tuple(state.pivots)

    law = exact_law(matrix, 3)
    check_law(law, draw, DRAWS)


@pytest.mark.parametrize("proposals", [2, 64])
def test_plus_plus_seeds_have_the_law_of_the_plain_algorithm(proposals, monkeypatch):
    x = np.asarray([[0.0], [1.0], [2.2], [3.8]])
    squares = (x - x.T) ** 2
    law = {}
    for first, second, third in itertools.permutations(range(4), 3):
        after = np.minimum(squares[first], squares[second])
        law[(first, second, third)] = 0.25 * squares[first, second] / squares[first].sum() * after[third] / after.sum()
    monkeypatch.setattr(_landmark_clusters, "PROPOSALS", proposals)
    rows = Rows(x, xp=np)
    check_law(law, lambda seed: tuple(plus_plus_seeds(rows, 3, rng=np.random.default_rng(seed)).tolist()), DRAWS)


def test_weights_of_zero_are_never_drawn():
    weights = np.asarray([0.0, 1.0, 0.0, 3.0, 0.0])

    class Edge:
        """The extreme draws."""

        def random(self, size: int) -> np.ndarray:
            return np.resize([0.0, 0.25, np.nextafter(1.0, 0.0)], size)

    assert draw_proportional(weights, 3, Edge()).tolist() == [1, 3, 3]
    frequencies = np.bincount(draw_proportional(weights, 4000, np.random.default_rng(0)), minlength=5)
    assert frequencies[[0, 2, 4]].tolist() == [0, 0, 0]
    assert frequencies[3] == pytest.approx(3000, abs=5 * np.sqrt(4000 * 0.75 * 0.25))


def test_many_blocks_of_rows_give_the_same_pivots(monkeypatch):
    x = cloud("clustered", 2000, 3, 0)
    expected = {m: chosen(x, 40, m, kernel=Gaussian(0.2), rng=0) for m in METHODS}
    monkeypatch.setattr(_landmark_sampling, "BLOCK_ENTRIES", 1)  # the smallest blocks there are: 256 rows
    for method in METHODS:
        result = chosen(x, 40, method, kernel=Gaussian(0.2), rng=0)
        np.testing.assert_allclose(result, expected[method], rtol=0, atol=0 if method in INDEX_METHODS else 1e-12)


# ----------------------------------------------------------------------------------------------- clusters
@given(shapes, st.integers(1, 8), seeds)
def test_lloyd_never_raises_its_objective_and_ends_in_means(shape, count, seed):
    x = cloud(*shape)
    if shape[0] in ("one-far", "offset"):
        x = x - x[-1]
    start = x[np.random.default_rng(seed).integers(0, len(x), size=min(count, len(x)))]
    landmarks, objective = lloyd(Rows(x, xp=np), start, 6)
    scale = np.sum(x**2) + len(x) * np.max(x**2)
    assert np.all(np.diff(objective) <= 64 * EPS * scale)
    assert objective[0] == pytest.approx(np.sum(np.min(np.sum((x[:, None] - start[None]) ** 2, axis=2), axis=1)), abs=64 * EPS * scale)
    once, _ = lloyd(Rows(x, xp=np), start, 1)
    halves = np.sum((x[:, None] - start[None]) ** 2, axis=2) / 2
    slack = _landmark_clusters.SLACK * EPS * (np.sum(x**2, axis=1)[:, None] + np.sum(start**2, axis=1)[None]) / 2
    labels = np.argmax(halves - slack <= halves.min(axis=1, keepdims=True), axis=1)
    for j in range(len(start)):
        expected = x[labels == j].mean(axis=0) if np.any(labels == j) else start[j]
        np.testing.assert_allclose(once[j], expected, rtol=0, atol=32 * EPS * len(x) * np.max(np.abs(x)))
    assert landmarks.shape == start.shape
    if len(objective) < 6:  # stopped early: nothing moves any more
        np.testing.assert_array_equal(lloyd(Rows(x, xp=np), landmarks, 1)[0], landmarks)


@given(st.integers(10, 40), st.integers(2, 7), seeds)
def test_ties_between_landmarks_are_broken_in_the_same_way_whatever_the_order_of_sums(n, d, seed):
    # On a lattice of tenths most distances tie, and rounding splits the ties according to the order of the features.
    rng = np.random.default_rng(seed)
    x = 0.1 * rng.integers(0, 3, size=(n, d))
    start = np.unique(x, axis=0)[:6]
    straight, _ = lloyd(Rows(x, xp=np), start, 1)
    backwards, _ = lloyd(Rows(x[:, ::-1].copy(), xp=np), start[:, ::-1].copy(), 1)
    np.testing.assert_allclose(backwards[:, ::-1], straight, rtol=0, atol=64 * EPS)


def test_a_landmark_without_rows_stays():
    x = np.asarray([[0.0], [0.2], [10.0]])
    start = np.asarray([[0.0], [100.0], [10.0], [10.0]])
    landmarks, _ = lloyd(Rows(x, xp=np), start, 3)
    np.testing.assert_allclose(landmarks, [[0.1], [100.0], [10.0], [10.0]])


def test_kmeans_finds_separated_clusters():
    rng = np.random.default_rng(0)
    centers = np.asarray([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [50.0, 50.0]])
    x = np.concatenate([center + 0.1 * rng.normal(size=(50, 2)) for center in centers])
    landmarks = select_landmarks(x, 4, method="kmeans", rng=0)
    np.testing.assert_allclose(
        landmarks[np.argsort(landmarks @ [1.0, 2.0])], [x[i : i + 50].mean(axis=0) for i in (0, 50, 100, 150)], atol=1e-12
    )
    few = select_landmarks(x, 4, method="kmeans", rng=0, lloyd_steps=0)
    assert all(np.any(np.all(row == x, axis=1)) for row in few)


def test_lloyd_lowers_the_trace_error():
    x = cloud("normal", 800, 3, 0)
    kernel = Gaussian(1.2)
    before, after = (
        np.mean([relative_trace_error(kernel, x, select_landmarks(x, 30, method=m, kernel=kernel, rng=seed)) for seed in range(5)])
        for m in ("rpcholesky", "rpcholesky+lloyd")
    )
    assert after < 0.9 * before


# ----------------------------------------------------------------------------------------------- leverage
def test_leverage_scores_match_their_definition():
    # With the whole set as sample and weights of one, the estimate is the score itself at the estimated ridge.
    x = cloud("normal", 30, 2, 0)
    kernel = Gaussian(1.0)
    matrix = kernel(x, x)
    everything = np.arange(30)
    scores = _landmark_sampling._leverage_scores(kernel, Rows(x, xp=np), everything, everything, np.ones(30), func="test")
    spectrum = np.sort(np.linalg.eigvalsh(matrix))[::-1]
    head = int(np.ceil(30 / (4 * np.log(30))))
    ridge = spectrum[head:].sum() / head
    exact = np.diagonal(matrix @ np.linalg.inv(matrix + ridge * np.eye(30)))
    np.testing.assert_allclose(scores, exact, rtol=1e-10)


def test_leverage_draws_in_proportion_to_the_scores():
    # Two far clusters of 30 equal rows and 1 single row: 12 landmarks mean a ridge of (0 + 1) / 2, a score of 1 / 1.5 for the
    # single row and 1 / 30.5 for each copy, so a share of 0.25 in the first draw and 0.97 in twelve. Uniformly: 12 / 61.
    x = np.concatenate([np.zeros((30, 1)), [[50.0]], np.full((30, 1), 100.0)])
    rows = Rows(x, xp=np)
    hits = [30 in leverage_rows(Gaussian(1.0), rows, 12, rng=np.random.default_rng(seed), func="test") for seed in range(200)]
    assert np.mean(hits) > 0.85
