"""Refusals that no other test reaches: each message says what was wrong, what came instead, and what to do.

With test_raise_sites_system.py and the tests of each module every `raise` of the package is executed by some test but these:

- two that follow a search for the row of a NaN (`_kernel_base._filled`, `_kernel_products.iter_kernel_blocks`): the search raises itself,
  unless somebody mends the array in between;
- two that pass on what a GPU says of its memory (`torch/triton_kernels.py`): no GPU here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import softlinalg
import softlinalg.torch as st
from softlinalg import Gaussian, dask, errors
from softlinalg._streaming_sources import IteratedRows, RowReader
from softlinalg.sklearn import NystromRidge, NystromRidgeClassifier
from softlinalg.testing import _failures, _layouts, assertions, build_attention, build_gram, build_matrix, gallery, suites
from softlinalg.torch import landmarks

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, 3)), RNG.normal(size=12)
HUGE = np.where(np.arange(12) == 3, 1e200, Y)
FOLDER = tempfile.TemporaryDirectory(prefix="softlinalg-raise-sites-")


class Own:
    """A kernel that softlinalg does not know."""

    def __init__(self, values: Callable[[Any, Any], Any]) -> None:
        self.values = values

    def __call__(self, x: Any, y: Any = None) -> Any:
        return self.values(x, x if y is None else y)

    def diagonal(self, x: Any) -> Any:
        return np.diagonal(self(x))


def saved(kernel: Any) -> Path:
    path = Path(FOLDER.name) / f"{type(kernel).__name__}.npz"
    softlinalg.nystrom(X, kernel, landmarks=[0, 5]).save(path)
    return path


def stream(source: Any, **settings: Any) -> Any:
    return softlinalg.nystrom_stream(source, Gaussian(1.0), rank=3, rng=0, threads=1, **settings)


def classifier() -> NystromRidgeClassifier:
    return NystromRidgeClassifier(rank=4, ridge=1.0, random_state=0)


class Unreadable:
    """Rows on a disk that fails, where pieces are read or where single rows are."""

    shape, dtype = (12, 3), np.dtype(float)

    def __init__(self, *, single_rows: bool = False) -> None:
        self.single_rows = single_rows

    def __getitem__(self, index: Any) -> Any:
        rows = index[0] if isinstance(index, tuple) else index
        if isinstance(rows, slice) == self.single_rows or (isinstance(rows, slice) and rows.stop == 0):
            return X[index]
        message = "the disk went away"
        raise OSError(message)


LINEAR = Own(lambda x, y: x @ y.T)
Refusal = tuple[Callable[[], Any], type[Exception], str]

CORE: dict[str, Refusal] = {
    "mask": (
        lambda: softlinalg.soft_attention(X, X, X[:3], key_padding_mask=[True] * 12), errors.DTypeError,
        "soft_attention: key_padding_mask must be a boolean array; got list. Pass an array of the library of q."),
    "value of newton": (
        lambda: softlinalg.newton_pinv_vjp(X, X.T, steps=3, value=np.ones((2, 2))), errors.ShapeError,
        r"newton_pinv_vjp: value must end in shape \(3, 12\); got \(2, 2\). Pass that of newton_pinv."),
    "cotangent of an inverse": (
        lambda: softlinalg.ridge_inverse_vjp(np.eye(3), np.eye(4)), errors.ShapeError,
        r"ridge_inverse_vjp: cotangent must end in shape \(3, 3\) like value; got \(4, 4\). Pass one per matrix."),
    "eigenvectors of nothing": (
        lambda: softlinalg.nystrom(np.zeros((4, 2)), LINEAR, landmarks=[0]).eigh(1), errors.InputError,
        "NystromDecomposition.eigh: the approximation must not be zero; got rank 0. Its eigenvectors are any"),
    "ridge without targets": (
        lambda: stream(X).fit_ridge(0.1), errors.ParameterError,
        "StreamedNystrom.fit_ridge: targets must be given when rows are streamed; got none. Pass targets."),
    "huge targets": (
        lambda: stream(X, targets=HUGE), errors.RangeError,
        r"nystrom_stream: targets must be at most 3.1e\+144 in size, as they are squared; got 1e\+200. Rescale them."),
    "blocks of text": (
        lambda: stream(lambda: iter([np.array([["a"]])])), errors.DTypeError, "nystrom_stream: source must"),
    "blocks of vectors": (
        lambda: stream(lambda: iter([np.ones(3)])), errors.ShapeError,
        r"nystrom_stream: source must give blocks of shape \(b, d\) with d >= 1; got \(3,\). Pass one point per row."),
    "targets of a block": (
        lambda: stream(lambda: iter([(X, Y[:3])])), errors.ShapeError,
        r"nystrom_stream: targets must have one row per point; got \(3,\) for 12 rows. Pass \(b,\) or \(b, k\)."),
    "no rows": (
        lambda: stream(lambda: iter([X[:0]])), errors.ShapeError, "nystrom_stream: source must have rows; got none. Pass at least one."),
    "no function of iterators": (
        lambda: stream(lambda: 3), errors.ParameterError,
        "nystrom_stream: source must be a function that makes iterators; got one that returns int. Yield the blocks"),
    "another kernel for a file": (
        lambda: softlinalg.NystromDecomposition.load(saved(Gaussian(1.0)), kernel=Gaussian(2.0)), errors.ParameterError,
        "load: kernel must be the one that was saved, Gaussian.*; got Gaussian.*. Leave it out."),
    "no kernel for a file": (
        lambda: softlinalg.NystromDecomposition.load(saved(LINEAR)), errors.ParameterError,
        "load: kernel must be given for a kernel that is not part of this package; got None for .*Own.*. Pass the object."),
    "other data for a file": (
        lambda: softlinalg.NystromDecomposition.load(saved(Gaussian(1.0)), x=X[:5]), errors.ShapeError,
        r"load: x must be the data of the file, shape \(12, 3\) and dtype float64; got \(5, 3\), float64. Pass those."),
    "objects in blocks": (
        lambda: stream(lambda: iter([[[1.0], [1.0, 2.0]]])), errors.DTypeError,
        "nystrom_stream: source must be blocks of numbers; got list. Pass arrays, or pairs of arrays."),
    "an iterator read twice": (
        lambda: [list(rows.blocks()) for rows in [IteratedRows(iter([X]), func="test")] * 2], errors.InputError,
        "test: source must be a function that makes iterators, to be read twice; got an iterator. Pass such."),
    "one streamed row": (
        lambda: RowReader(IteratedRows(lambda: iter([X]), func="test"), 12)[3], errors.ParameterError,
        "NystromDecomposition: data that are streamed are read by slices of rows; got another index. Use load with x."),
    "streamed rows that are gone": (
        lambda: RowReader(IteratedRows(lambda: iter([X]), func="test"), 20)[10:15], errors.InputError,
        "NystromDecomposition: data must keep their 20 rows; got the end before row 15. They changed."),
    "rows of a failing disk": (
        lambda: stream(Unreadable()), errors.InputError, "nystrom_stream: source must be readable; got the disk went away at rows 0 to 11. Repair"),
    "single rows of a failing disk": (
        lambda: stream(Unreadable(single_rows=True)), errors.InputError,
        "nystrom_stream: source must be readable; got the disk went away at rows 0 to 11. Repair"),
    "a file of dask": (
        lambda: dask.open_npy("table.csv"), errors.ParameterError,
        r"softlinalg.dask.open_npy: path must end in .npy; got 'table.csv'. Read other files with dask.dataframe or dask.array."),
    "a size of chunks that comes late": (
        lambda: softlinalg.solve_kernel_ridge(X, Y, Gaussian(1.0), 0.1, approximation=softlinalg.nystrom(X, Gaussian(1.0), rank=3), chunk_size="x"),
        errors.ParameterError, "solve_kernel_ridge: chunk_size must be a whole number >= 1; got 'x'. Pass"),
    "ragged targets": (
        lambda: stream(X, targets=[[1.0, 2.0], [3.0]]), errors.DTypeError,
        "nystrom_stream: targets must be blocks of numbers; got list. Pass arrays"),
    "a function of arguments": (
        lambda: stream(len), errors.ParameterError,
        r"nystrom_stream: source must be callable without arguments, if it is a function; got 'len\(\) takes exactly one argument"),
    "an array of targets for a table": (
        lambda: softlinalg.nystrom_stream("table.csv", Gaussian(1.0), rank=3, targets=Y), errors.ParameterError,
        "nystrom_stream: targets must be named for files of tables; got an array. Pass the name of the column."),
    "a kernel without a factor": (
        lambda: softlinalg.refine_landmarks(X, X[:3], kernel=Own(lambda x, y: -np.ones((len(x), len(y))))), errors.SoftlinalgError,
        "refine_landmarks: "),
}  # fmt: skip

ESTIMATORS: dict[str, Refusal] = {
    "huge targets": (
        lambda: NystromRidge(rank=4).fit(X, HUGE), errors.RangeError,
        r"NystromRidge: y must be at most 3.1e\+144 in size, as they are squared; got 1e\+200. Rescale them."),
    "huge targets of a later batch": (
        lambda: NystromRidge(rank=4, ridge=1.0).partial_fit(X, Y).partial_fit(X, HUGE), errors.RangeError, "NystromRidge: y must be at most"),
    "a flag": (
        lambda: NystromRidge(fit_intercept="no").fit(X, Y), errors.ParameterError,
        "NystromRidge: fit_intercept must be True or False; got 'no'. Pass one of them."),
    "a selection": (
        lambda: NystromRidge(rank=4, selection=np.ones(2)).fit(X, Y), errors.ParameterError,
        'NystromRidge: selection must be "gcv" or "loo"; got ndarray. Choose one of these.'),
    "a rank": (
        lambda: NystromRidge(rank=2.5).fit(X, Y), errors.ParameterError,
        "NystromRidge: the number of landmarks must be a whole number >= 1; got 2.5. Pass an int."),
    "deviations of an exact model": (
        lambda: NystromRidge(rank=4, exact=True).fit(X, Y).predict(X, return_std=True), errors.ParameterError,
        "NystromRidge: return_std needs exact=False; got a model with exact=True. Fit one without it."),
    "a tensor that is no matrix": (
        lambda: NystromRidge(rank=4).fit(torch.tensor(Y), torch.tensor(Y)), errors.ShapeError,
        r"NystromRidge: X must have shape \(n, d\) with n >= 2; got \(12,\). Pass one row per sample."),
    "a tensor of other columns": (
        lambda: NystromRidge(rank=4, ridge=1.0).fit(torch.tensor(X), torch.tensor(Y)).predict(torch.tensor(X[:, :2])), errors.ShapeError,
        "NystromRidge: X must have 3 features; got 2. Use the columns seen in fit."),
    "labels of a tensor": (
        lambda: classifier().fit(torch.tensor(X), torch.ones(12, 2)), errors.ParameterError,
        r"NystromRidgeClassifier: y must have shape \(12,\); got \(12, 2\). Pass one label per row."),
    "a class that comes later": (
        lambda: classifier().partial_fit(X, np.arange(12) % 2).partial_fit(X, np.arange(12) % 3), errors.ParameterError,
        "NystromRidgeClassifier: y must hold classes of the first call; got 4 others. Name all in classes."),
    "balanced classes of batches": (
        lambda: classifier().set_params(class_weight="balanced").partial_fit(X, np.arange(12) % 2), errors.ParameterError,
        'NystromRidgeClassifier: class_weight must be a dict or None in partial_fit; got "balanced". Pass sample_weight.'),
}  # fmt: skip

KIT: dict[str, Refusal] = {
    "a case of one axis": (
        lambda: assertions.assert_pinv(Y, Y), errors.ParameterError,
        r"assert_pinv: case must be a Case or an array of shape \(..., m, n\); got shape \(12,\). Pass matrices."),
    "a kind of attention": (
        lambda: assertions.assert_attention_matches(lambda *a: a[0], build_attention(tokens=2, features=2, landmarks=1), kind="hard"),
        errors.ParameterError, "assert_attention_matches: kind must be 'softmax', 'gaussian' or 'soft'; got 'hard'. Pass one of these."),
    "no number of tokens": (
        lambda: build_attention(tokens=None, features=2, landmarks=1), errors.ParameterError,
        "build_attention: tokens must be a whole number >= 1; got None."),
    "a number without end": (
        lambda: build_attention(tokens=2, features=2, landmarks=1, hidden=10**400), errors.ParameterError,
        "build_attention: hidden must be a whole number from 0 to 2147483648; got"),
    "more landmarks than tokens": (
        lambda: build_attention(tokens=2, features=2, landmarks=3), errors.ParameterError,
        r"build_attention: landmarks must be in 1..2 and hidden in 0..1; got 3 and 0. Pass smaller ones."),
    "a library": (
        lambda: build_matrix(shape=(2, 2), xp="pandas"), errors.ParameterError, "build_matrix: xp must be one of numpy, .*; got 'pandas'."),
    "a matrix of the gallery": (
        lambda: gallery.get([]), errors.ParameterError, "gallery.get: name must be one of gallery.names.*; got list. The first is"),
    "a truth": (
        lambda: assertions.assert_no_worse_than(np.negative, np.negative, X), errors.ParameterError,
        "assert_no_worse_than: oracle must be given unless the input is a Case; got None. Pass the truth."),
    "a namespace": (
        lambda: _layouts.as_namespace("pandas"), errors.ParameterError, "testing: xp must be one of numpy, .* or a namespace; got 'pandas'."),
    "a failure in a failure": (
        lambda: _failures.call("pinv", lambda: assertions.assert_pinv(np.zeros((2, 2)), np.eye(2))), _failures.AccuracyError, "assert_pinv|Repeat|ratio"),
    "a property": (
        lambda: suites.pinv(np.linalg.pinv, profile="smoke", cases=1)["penrose-9"], KeyError, "no property is named 'penrose-9'; there are"),
}  # fmt: skip


Q = torch.tensor(RNG.normal(size=(1, 2, 6, 4)))
IMAGE = torch.tensor(RNG.normal(size=(1, 12, 4)))


def attend(q: Any = Q, **settings: Any) -> Any:
    return st.soft_attention(q, Q, Q[..., :3, :], **settings)


TORCH: dict[str, Refusal] = {
    "an array": (lambda: attend(Q.numpy()), errors.DTypeError, r"soft_attention: q must be a tensor; got ndarray. Pass torch.as_tensor\(q\)."),
    "a sparse tensor": (
        lambda: attend(Q.to_sparse()), errors.DTypeError, r"soft_attention: q must be a dense tensor; got a .*sparse.* one. Pass q.to_dense"),
    "eight bits": (
        lambda: attend(Q.to(torch.float8_e4m3fn)), errors.DTypeError,
        "soft_attention: q must hold real numbers of 16 bits or more; got dtype .*float8.*. Convert it: q.float"),
    "a mask in a list": (
        lambda: attend(key_padding_mask=[True] * 6), errors.DTypeError,
        "soft_attention: key_padding_mask must be a boolean tensor; got list. Pass torch.as_tensor"),
    "a gradient without its inverse": (
        lambda: attend(gradient="published", inverse="exact"), errors.ParameterError,
        "soft_attention: gradient 'published' must go with inverse='published'; got inverse='exact'. Use gradient='exact'."),
    "a mask of queries": (
        lambda: st.clustered_softmax_attention(Q, Q, Q, count=2, query_padding_mask=[True]), errors.DTypeError,
        "clustered_softmax_attention: query_padding_mask must be a boolean tensor; got list. True hides."),
    "a mask of other queries": (
        lambda: st.clustered_softmax_attention(Q, Q, Q, count=2, query_padding_mask=torch.ones(1, 5, dtype=torch.bool)), errors.ShapeError,
        r"clustered_softmax_attention: query_padding_mask must have shape \(1, 6\); got \(1, 5\). Pass"),
    "a number of landmarks": (
        lambda: st.SoftAttention(4, num_heads=2, landmarks=0), errors.ParameterError, "SoftAttention: landmarks must be a whole number of at least 1 or 'ratio'; got 0. The default is 49."),
    "a grid": (
        lambda: st.SoftAttention(4, num_heads=2, landmarks=4).double()(IMAGE, (2, 3, 2)), errors.ShapeError,
        r"grid must be one or two whole numbers; got \(2, 3, 2\). Pass \(rows, columns\)."),
    "a grid without axes": (
        lambda: st.SoftAttention(4, num_heads=2, landmarks=4).double()(IMAGE, np.array(3)), errors.ShapeError,
        r"grid must be one or two whole numbers; got ndarray. Pass \(rows, columns\)."),
    "a model": (lambda: st.diagnose(3), errors.SoftlinalgError, "model must be a module of PyTorch; got 3. Pass a SoftBackbone"),
    "an entry": (
        lambda: st.load_published_weights(torch.nn.Linear(3, 2), {"weight": torch.zeros(2, 3)}, entry=3), errors.ParameterError,
        "load_published_weights: entry must be None or a name; got 3. Leave it out."),
    "a mask on another device": (
        lambda: st.clustered_softmax_attention(Q, Q, Q, count=2, query_padding_mask=torch.ones(1, 6, dtype=torch.bool, device="meta")),
        errors.BackendMismatchError, "clustered_softmax_attention: all tensors must be on one device; got cpu, meta. Move them to one."),
    "a hidden layer of nothing": (
        lambda: st.SoftBlock(4, 2, mlp_ratio=0.1), errors.ParameterError, r"SoftBlock: mlp_ratio must be at least 1 / dim; got 0\.1. The default"),
    "landmarks of a pooling": (
        lambda: landmarks.PoolLandmarks(0), errors.ParameterError, "PoolLandmarks: landmarks must be a whole number of at least 1; got 0."),
    "missing weights": (
        lambda: st.load_published_weights(torch.nn.Linear(3, 2), {"weight": torch.zeros(2, 3)}), errors.CheckpointError, "load_published_weights: "),
    "weights without numbers": (
        lambda: st.load_published_weights(torch.nn.Linear(3, 2), {"weight": torch.zeros(2, 3, device="meta"), "bias": torch.zeros(2)}),
        errors.CheckpointError, "load_published_weights: weights must hold numbers; got a tensor on the meta device in 'weight'. Save real ones."),
}  # fmt: skip


def test_suites_report_functions_that_return_no_matrix() -> None:
    """A suite goes on to its end, and says of each law why it fails."""
    for result, words in ((None, "result has the shape (), not (1, 1)"), (np.full((1, 1), "a"), "result has the data type <U1")):
        report = suites.kernel(lambda x, y=None, *, length_scale, result=result: result, cases=1, profile="smoke")
        assert not report.passed
        assert words in str(report)


@pytest.mark.parametrize(("call", "kind", "message"), [*CORE.values(), *ESTIMATORS.values(), *TORCH.values(), *KIT.values()],
                         ids=[*CORE, *(f"estimators: {name}" for name in ESTIMATORS), *(f"torch: {name}" for name in TORCH), *(f"kit: {name}" for name in KIT)])  # fmt: skip
def test_a_refusal_says_what_came_and_what_to_do(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_what_a_source_raises_is_passed_on() -> None:
    def blocks() -> Any:
        return len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        stream(blocks)


def test_a_ridge_near_the_largest_number_is_solved_without_a_warning() -> None:
    found = softlinalg.solve_kernel_ridge(X, Y, Gaussian(1.0), 1e308)
    assert found.converged
    np.testing.assert_allclose(found.value, Y / 1e308, rtol=1e-12)


def test_length_scales_may_be_fractions() -> None:
    made = [build_gram(shape=(2, 2), length_scale=scale) for scale in (Fraction(1, 3), 1 / 3)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(made[0].host, made[1].host)
    assert made[0].code == made[1].code


def test_rows_may_be_a_buffer() -> None:
    """Which iterates, but not over two axes."""
    assert stream(memoryview(X)).decomposition.shape == (12, 12)
