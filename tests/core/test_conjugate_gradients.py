"""Exact kernel ridge regression by conjugate gradients: against dense solves, and honest where it does not get there."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge

import softlinalg
from softlinalg import Gaussian, errors, nystrom, solve_kernel_ridge
from softlinalg._conjugate_gradients import exact_ridge

EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


def problem(n: int = 200, k: int = 2, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2))
    return x, np.stack([np.sin((j + 1) * x[:, 0]) + 0.1 * rng.normal(size=n) for j in range(k)], axis=-1)


@pytest.mark.parametrize("ridge", [1e-1, 1e-4, 1e-7])
def test_the_solution_is_that_of_a_dense_solve_within_its_bound(backend, ridge):
    x, y = problem()
    rows = backend.asarray(x)
    d = nystrom(rows, Gaussian(1.0), landmarks=backend.asarray(x[:100]))  # without the choice of them, for which JAX compiles long
    found = solve_kernel_ridge(rows, backend.asarray(y), Gaussian(1.0), ridge, approximation=d)
    truth = np.linalg.solve(Gaussian(1.0)(x) + ridge * np.eye(200), y)
    assert np.all(backend.to_numpy(found.converged))
    error = np.linalg.norm(backend.to_numpy(found.value) - truth, axis=0)
    # The dense solution has an error too: eps times the condition number, at most.
    slack = 200 * EPS["float64"] / ridge * np.linalg.norm(truth, axis=0)
    assert np.all(error <= backend.to_numpy(found.error_bound) + slack)
    residual = y - Gaussian(1.0)(x) @ backend.to_numpy(found.value) - ridge * backend.to_numpy(found.value)
    np.testing.assert_allclose(
        backend.to_numpy(found.residual), np.linalg.norm(residual, axis=0) / np.linalg.norm(y, axis=0), rtol=0.5, atol=1e-11
    )


def test_predictions_are_those_of_scikit_learn():
    x, y = problem()
    found = solve_kernel_ridge(x, y, Gaussian(0.5), 0.1, tol=1e-12, rng=0)
    reference = KernelRidge(alpha=0.1, kernel="rbf", gamma=2.0).fit(x, y)
    x_new = x[:20] + 0.1
    np.testing.assert_allclose(Gaussian(0.5)(x_new, x) @ found.value, reference.predict(x_new), atol=1e-9)


def test_weights_are_those_of_the_weighted_problem():
    x, y = problem()
    weights = np.random.default_rng(1).integers(0, 4, size=200).astype(float)
    found = solve_kernel_ridge(x, y, Gaussian(1.0), 0.1, weights=weights, rng=0)
    kept = weights > 0
    a = Gaussian(1.0)(x[kept]) + 0.1 * np.diag(1 / weights[kept])
    np.testing.assert_allclose(found.value[kept], np.linalg.solve(a, y[kept]), atol=1e-6)
    assert np.all(found.value[~kept] == 0)


def test_the_constant_is_that_of_the_augmented_system():
    x, y = problem(k=2)
    weights = np.random.default_rng(1).uniform(0.5, 2.0, size=200)
    d = nystrom(x, Gaussian(1.0), rank=50, rng=0)
    dual, constant, solutions = exact_ridge(x, y + 10, d, [0.1, 0.5], weights=weights, tol=1e-12)
    assert len(solutions) == 2
    for j, ridge in enumerate([0.1, 0.5]):
        system = np.zeros((201, 201))
        system[:200, :200] = Gaussian(1.0)(x) + ridge * np.diag(1 / weights)
        system[200, :200] = system[:200, 200] = 1
        expected = np.linalg.solve(system, np.append(y[:, j] + 10, 0))
        np.testing.assert_allclose(dual[:, j], expected[:200], atol=1e-8)
        np.testing.assert_allclose(constant[j], expected[200], rtol=1e-9)


def test_a_vector_gives_a_vector_and_scalars():
    x, y = problem()
    found = solve_kernel_ridge(x, y[:, 0], Gaussian(1.0), 0.1, rng=0)
    both = solve_kernel_ridge(x, y, Gaussian(1.0), 0.1, rng=0)
    assert found.value.shape == (200,)
    assert found.converged.shape == found.residual.shape == found.error_bound.shape == ()
    np.testing.assert_allclose(found.value, both.value[:, 0], atol=1e-6)


def test_dependent_and_zero_targets_do_no_harm():
    x, y = problem()
    y = np.stack([y[:, 0], y[:, 0], 2 * y[:, 0] - y[:, 1], y[:, 1], np.zeros(200)], axis=-1)
    found = solve_kernel_ridge(x, y, Gaussian(1.0), 1e-3, rng=0)
    assert np.all(found.converged)
    np.testing.assert_allclose(found.value[:, 0], found.value[:, 1], atol=1e-5)
    np.testing.assert_allclose(found.value[:, 2], 2 * found.value[:, 0] - found.value[:, 3], atol=1e-4)
    assert np.all(found.value[:, 4] == 0)


def test_the_preconditioner_saves_most_steps():
    x, y = problem(n=400)
    weak = nystrom(x, Gaussian(0.5), rank=1, rng=0)
    plain = solve_kernel_ridge(x, y[:, 0], Gaussian(0.5), 1e-2, approximation=weak)
    ours = solve_kernel_ridge(x, y[:, 0], Gaussian(0.5), 1e-2, rank=200, rng=0)
    assert plain.converged
    assert ours.converged
    assert ours.steps <= 5 < 100 < plain.steps


def test_targets_together_take_fewer_steps_than_the_slowest_alone():
    x, y = problem(n=400, k=4)
    d = nystrom(x, Gaussian(0.5), rank=30, rng=0)
    together = solve_kernel_ridge(x, y, Gaussian(0.5), 0.1, approximation=d)
    alone = [solve_kernel_ridge(x, y[:, j], Gaussian(0.5), 0.1, approximation=d).steps for j in range(4)]
    assert together.steps < max(alone)


def test_float32_data_give_float32_weights_whose_residual_is_true():
    x, y = problem()
    x, y = x.astype("f4"), y.astype("f4")
    found = solve_kernel_ridge(x, y, Gaussian(1.0), 0.1, rng=0)
    assert found.value.dtype == found.residual.dtype == np.float32
    k = Gaussian(1.0)(x.astype("f8"))
    residual = y - k @ found.value.astype("f8") - 0.1 * found.value
    np.testing.assert_allclose(found.residual, np.linalg.norm(residual, axis=0) / np.linalg.norm(y, axis=0), rtol=1e-2)
    assert np.all(found.converged)


def test_float64_targets_give_float64_weights_for_float32_data():
    x, y = problem()
    found = solve_kernel_ridge(x.astype("f4"), y, Gaussian(1.0), 1e-2, weights=np.ones(200, "f4"), rng=0)
    assert found.value.dtype == np.float64
    assert np.all(found.residual < 1e-8)
    assert found.starts > 1  # products in float32 alone do not get there


def test_too_few_steps_are_reported_and_not_passed_off():
    x, y = problem()
    weak = nystrom(x, Gaussian(0.3), rank=2, rng=0)
    arguments = {"approximation": weak, "max_steps": 3}
    words = r"^solve_kernel_ridge: the residual must fall to tol=1e-08; got .* after 3 steps and 1 starts"
    with pytest.warns(errors.ConvergenceWarning, match=words):
        found = solve_kernel_ridge(x, y, Gaussian(0.3), 1e-4, **arguments)
    assert not np.any(found.converged)
    assert np.all(found.residual > 1e-8)
    with pytest.raises(errors.ConvergenceError, match=words) as caught:
        solve_kernel_ridge(x, y, Gaussian(0.3), 1e-4, on_failure="raise", **arguments)
    assert np.array_equal(caught.value.info.value, found.value)
    silent = solve_kernel_ridge(x, y, Gaussian(0.3), 1e-4, on_failure="ignore", **arguments)
    assert np.array_equal(silent.value, found.value)


def test_a_ridge_below_rounding_is_not_claimed_to_be_solved_to_any_tolerance():
    x, y = problem()
    found = solve_kernel_ridge(x, y, Gaussian(1.0), 1e-13, tol=1e-13, on_failure="ignore", rng=0)
    truth = y - Gaussian(1.0)(x) @ found.value - 1e-13 * found.value
    true_residual = np.linalg.norm(truth, axis=0) / np.linalg.norm(y, axis=0)
    assert np.all((true_residual <= 1e-11) | ~found.converged)


def test_weights_of_duplicates_add_up():
    x, y = problem(n=60)
    twice = np.vstack([x, x[:5]])
    a = solve_kernel_ridge(twice, np.vstack([y, y[:5]]), Gaussian(1.0), 0.1, tol=1e-12, rank=30, rng=0).value
    weights = np.where(np.arange(60) < 5, 2.0, 1.0)
    b = solve_kernel_ridge(x, y, Gaussian(1.0), 0.1, weights=weights, tol=1e-12, rank=30, rng=0).value
    a[:5] += a[60:]
    np.testing.assert_allclose(a[:60], b, atol=1e-8)


def test_progress_shows_steps_and_residual(capsys):
    x, y = problem(n=60)
    solve_kernel_ridge(x, y, Gaussian(1.0), 0.1, rng=0, progress=True)
    shown = capsys.readouterr().err
    assert "conjugate gradients" in shown
    assert "residual" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"ridge": 0.0}, "ridge must be a finite number > 0; got 0.0"),
        ({"tol": 2.0}, "tol must be a finite number > 0 and <= 1; got 2.0"),
        ({"max_steps": 0}, "max_steps must be a whole number >= 1; got 0"),
        ({"rank": 61}, "rank must be a whole number from 1 to 60; got 61"),
        ({"on_failure": "shrug"}, 'on_failure must be "warn", "raise" or "ignore"; got \'shrug\''),
        ({"weights": np.ones(3)}, r"weights must have shape \(60,\); got \(3,\)"),
        ({"weights": -np.ones(60)}, "weights must not be negative; got a smallest weight of -1"),
        ({"y": np.ones(59)}, r"y must have shape \(60,\) or \(60, k\); got \(59,\)"),
        ({"y": np.full(60, np.inf)}, "y must be finite; got 60 non-finite entries"),
        ({"x": np.full((60, 2), np.nan)}, "x must be finite; got 120 non-finite entries"),
        (
            {"approximation": nystrom(np.eye(5), Gaussian(1.0), rank=2, rng=0)},
            r"approximation must be of k\(x, x\), with x of shape \(60, \d\); got one of 5 rows",
        ),
        ({"approximation": np.eye(60)}, "approximation must be a NystromDecomposition; got ndarray"),
        ({"progress": "yes"}, "progress must be True or False; got 'yes'"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused(arguments, words):
    x, y = problem(n=60)
    given = {"x": x, "y": y, "kernel": Gaussian(1.0), "ridge": 0.1, **arguments}
    with pytest.raises(errors.InputError, match=f"^solve_kernel_ridge: {words}"):
        solve_kernel_ridge(given.pop("x"), given.pop("y"), given.pop("kernel"), given.pop("ridge"), **given)


def test_an_approximation_of_another_kernel_is_refused():
    """Its kernel is the one that is solved with: another one would be ignored without a word."""
    x, y = problem(n=60)
    d = nystrom(x, Gaussian(1.0), rank=8, rng=0)
    with pytest.raises(errors.ParameterError, match=r"approximation must be of the kernel given; got one of Gaussian\(length_scale=1\.0\)"):
        solve_kernel_ridge(x, y, Gaussian(2.0), 0.1, approximation=d)
    settled = solve_kernel_ridge(x, y, Gaussian("median"), 0.1, approximation=d)
    np.testing.assert_array_equal(settled.value, solve_kernel_ridge(x, y, Gaussian(1.0), 0.1, approximation=d).value)


@pytest.mark.filterwarnings("error")
def test_a_result_that_overflows_is_refused():
    x, _ = problem(n=60)
    for size in (1e307, 1e308):
        with pytest.raises(errors.RangeError, match="the result must fit float64; got one that overflows"):
            solve_kernel_ridge(x, np.full(60, size) * (-1.0) ** np.arange(60), Gaussian(1.0), 1e-3, rng=0)


def test_the_names_are_public():
    assert softlinalg.solve_kernel_ridge is solve_kernel_ridge
    assert softlinalg.KernelRidgeSolution._fields == ("value", "converged", "residual", "error_bound", "steps", "starts")
