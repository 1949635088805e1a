"""Assertions about behavior (batches, layouts, inputs, errors) pass on sound functions, and fail on planted mistakes."""

from __future__ import annotations

import numpy as np
import pytest
from assertion_cases import POINTS, SQUARE, fails
from hypothesis import given, settings

import softlinalg
from softlinalg.testing import assertions, build_matrix, strategies
from softlinalg.testing.assertions import AccuracyError

pytest.importorskip("torch")
pytest.importorskip("jax")


# ----------------------------------------------------------------------------------------------- behaviour
BATCH = build_matrix(shape=(4, 3), batch=(3,), cond=10.0, seed=1)


def test_batches():
    assertions.assert_batch_independent(softlinalg.pinv, BATCH)
    assertions.assert_batch_independent(lambda a: softlinalg.pinv(a, check_finite=False), BATCH)
    assertions.assert_batch_independent(lambda a, b: a @ b, [BATCH.A, np.swapaxes(BATCH.A, -1, -2)])
    assertions.assert_batch_independent(softlinalg.pinv, build_matrix(shape=(4, 3), batch=(3,), xp="torch", seed=1))
    assertions.assert_batch_independent(lambda a: a + a, BATCH, bitwise=True)


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda a: a / np.abs(a).max(), "'alone as in the batch'.*Member \\d of 3"),
        (lambda a: a * np.arange(1, 1 + len(a))[:, None, None] / len(a), "'alone as in the batch'"),
        (lambda a: a * np.where(np.arange(len(a)) == 0, 1, 1 + 1e-3 * (len(a) > 1))[:, None, None], "'alone as in the batch'"),
        (lambda a: a + 0 * np.sum(a), "'NaN of a batch mate'.*equal bits"),
        (lambda a: a[0] if len(a) > 1 else a, "shapes"),
    ],
)
def test_dependence_on_batch_mates_is_found(mistake, words):
    with pytest.raises(AccuracyError, match=f"(?s){words}"):
        assertions.assert_batch_independent(mistake, BATCH)


def test_bits_count_only_where_asked():
    def last_bit(a):
        return a * (1 + 2.0**-52 * (len(a) > 1))

    assertions.assert_batch_independent(last_bit, BATCH, poison=False)
    with fails("'alone as in the batch'", "Unit: equal bits"):
        assertions.assert_batch_independent(last_bit, BATCH, bitwise=True)
    with fails("'NaN of a batch mate'", "equal bits"):
        assertions.assert_batch_independent(lambda a: a * (1 + 2.0**-52 * np.isnan(a).any()), BATCH)


def test_parity():
    assertions.assert_backend_parity(softlinalg.pinv, BATCH)
    assertions.assert_backend_parity(lambda x, y: softlinalg.gaussian_kernel(x, y), [POINTS.x, POINTS.x[:4]])
    with fails("parity of", "on torch", "numpy array came back for a torch array"):
        assertions.assert_backend_parity(lambda a: np.asarray(a), BATCH, namespaces=("numpy", "torch"))
    with fails("'libraries agree'", "torch against numpy"):
        assertions.assert_backend_parity(lambda a: a * (1 + (type(a).__module__ == "torch") * 1e-3), BATCH, namespaces=("numpy", "torch"))
    with fails("the result is float32, the input float64"):
        assertions.assert_backend_parity(lambda a: a.astype("float32"), BATCH, namespaces=("numpy",))


def test_layouts():
    assertions.assert_layout_invariant(softlinalg.pinv, BATCH)
    assertions.assert_layout_invariant(softlinalg.pinv, build_matrix(shape=(4, 3), xp="torch"))

    def memory_order(a):
        return np.frombuffer(np.asarray(a).tobytes(order="A"), dtype=a.dtype).reshape(a.shape).astype("float64")

    with fails("'layouts agree'", "Layout F against"):
        assertions.assert_layout_invariant(memory_order, SQUARE)

    def writes(a):
        if a.flags.writeable:
            a[0] = 0
        return a * 1.0

    with fails("input was changed"):
        assertions.assert_layout_invariant(writes, build_matrix(shape=(3, 3), rank=3, s=(1.0, 1.0, 1.0)), layouts=["C"])


def test_inputs_stay_as_they_are(backend):
    a = backend.asarray(SQUARE.host)
    assert type(assertions.assert_input_unchanged(lambda x: x @ x, a)) is type(a)
    if backend.name == "numpy":

        def in_place(a, ridge):
            a += ridge * np.eye(5)
            return np.linalg.inv(a)

        with fails("the input was changed", "Repeat: softlinalg.testing.build_matrix"):
            assertions.assert_input_unchanged(in_place, build_matrix(shape=(5, 5), seed=9), 0.1)


def test_documented_errors():
    drawn = [strategies.BadInput(None, "None"), strategies.BadInput(np.full((2, 2), np.nan), "NaN"), strategies.BadInput("text", "text")]
    assertions.assert_errors_documented(softlinalg.pinv, drawn, max_length=400)
    with fails("3 bad inputs were not refused", "NaN: raised LinAlgError", "callers cannot catch"):
        assertions.assert_errors_documented(lambda a: np.linalg.pinv(a), [*drawn[:2], strategies.BadInput(np.ones(3), "one axis")])
    with fails("accepted, giving a int"):
        assertions.assert_errors_documented(lambda a: 1, "anything")

    def wordy(a):
        raise ValueError("two\nlines")

    with fails("a message of 9 characters in 2 lines"):
        assertions.assert_errors_documented(wordy, [1], allowed=(ValueError,), max_length=400)
    with fails("without a message"):
        assertions.assert_errors_documented(lambda a: (_ for _ in ()).throw(ValueError()), [1], allowed=(ValueError,))


@settings(max_examples=60)
@given(bad=strategies.bad_inputs())
def test_our_pinv_refuses_bad_inputs_with_documented_errors(bad):
    assertions.assert_errors_documented(softlinalg.pinv, bad, max_length=400)


def test_no_worse_than_a_reference():
    assertions.assert_no_worse_than(softlinalg.pinv, np.linalg.pinv, SQUARE)
    assertions.assert_no_worse_than(lambda a: np.exp(a), lambda a: np.exp(a), SQUARE.A.astype(np.float32), np.exp)
    with fails("no worse than the reference", "allowed is 2 times that"):
        assertions.assert_no_worse_than(
            lambda a: np.linalg.inv(a.T @ a) @ a.T, np.linalg.pinv, build_matrix(shape=(5, 5), cond=1e6, seed=1)
        )
    with pytest.raises(ValueError, match="oracle must be given"):
        assertions.assert_no_worse_than(np.exp, np.exp, SQUARE.A)
