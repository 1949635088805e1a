"""Strategies give what they promise: spectra, ranks, layouts, libraries, ranges, a sound distribution, and lines that repeat them."""

from __future__ import annotations

import collections
import math
import subprocess
import sys

import array_api_compat
import numpy as np
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from hypothesis.vendor.pretty import pretty

import softlinalg
from softlinalg import errors
from softlinalg.testing import _layouts, gallery, strategies
from softlinalg.testing._cases import exponent_range, largest_cond, random_frame, spectrum, unit

MANY = settings(max_examples=500, suppress_health_check=list(HealthCheck))
SOME = settings(max_examples=60)
FEW = settings(max_examples=25)


def rebuilt(case):
    """What the printed line evaluates to."""
    return eval(repr(case), {"softlinalg": softlinalg})


def collected(strategy, examples: settings = MANY) -> list:
    out = []

    @examples
    @given(strategy)
    def draw(value):
        out.append(value)

    draw()
    return out


# -------------------------------------------------------------------------------------------- ingredients
@pytest.mark.parametrize("mode", strategies.MODES)
def test_spectra_descend_from_one_to_the_inverse_condition(mode):
    s = spectrum(mode, 12, 1e3, np.random.default_rng(0))
    assert s[0] == 1
    assert s[-1] == pytest.approx(1e-3)
    assert (np.diff(s) <= 0).all()
    expected = {1: 1, 2: 11, 3: 6, 4: 11, "geometric": 5}  # how many are above sqrt(1e-3), a shape's signature
    if mode in expected:
        assert np.count_nonzero(s > 1e-3**0.5) == expected[mode]


@pytest.mark.parametrize("complex_", [False, True])
@pytest.mark.parametrize(("size", "count"), [(1, 1), (5, 5), (30, 7), (4, 0)])
def test_frames_are_orthonormal_beyond_float64(size, count, complex_):
    q = random_frame(size, count, np.random.default_rng(1), complex_=complex_)
    defect = np.abs(q.conj().T @ q - np.eye(count))
    assert np.max(defect, initial=0) <= 40 * max(1, size) * np.finfo(np.longdouble).eps


def test_frames_are_uniformly_distributed():
    corners = [float(random_frame(3, 3, np.random.default_rng(seed))[i, j]) for seed in range(400) for i in range(3) for j in range(3)]
    # Entries of a uniform orthogonal matrix have mean 0 and variance 1/3; 1200 of them are independent, or nearly.
    assert abs(np.mean(corners)) < 4 * math.sqrt(1 / 3 / 1200)
    assert abs(np.var(corners) - 1 / 3) < 4 * math.sqrt(0.1 / 1200)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_largest_condition_is_decidable(dtype):
    for shape in [(1, 1), (3, 2), (20, 30)]:
        cond = largest_cond(shape, dtype)
        assert 1 <= cond <= 0.1 / unit(dtype)
        assert cond == 1 or cond * max(shape) * unit(dtype) <= 0.25


# ------------------------------------------------------------------------------------------------ matrices
@SOME
@given(case=strategies.matrices(dtype=strategies.dtypes(kind="floating"), max_side=7))
def test_matrices_have_the_singular_values_that_they_say(case):
    a = case.host.astype(complex if np.iscomplexobj(case.host) else float) * 2.0 ** -case.extra["log2_scale"]
    s = np.linalg.svd(a, compute_uv=False)
    expected = np.ldexp(case.s, -case.extra["log2_scale"])
    top = max(expected[0], 1e-300) if expected.size else 1
    # Rounding of A moves no singular value by more than u / 2 |A|_F (Weyl); 1e-15 for the decomposition.
    assert np.max(np.abs(s - expected), initial=0) <= (case.u / 2 + 1e-15) * math.sqrt(max(1, case.rank)) * top
    assert np.count_nonzero(case.s) == case.rank
    if case.rank:
        assert case.kappa == pytest.approx(case.s[0] / case.s[case.rank - 1], rel=1e-6)


@SOME
@given(case=st.one_of(strategies.matrices(), strategies.exactly_deficient(), strategies.graded(), strategies.symmetric()))
def test_the_default_cut_off_keeps_exactly_the_rank_where_there_is_a_gap(case):
    a = np.ldexp(case.host.astype(float), -(case.extra.get("log2_scale") or 0))
    s = np.linalg.svd(a, compute_uv=False)
    assert case.gap or case.kappa > 1 / (4.01 * max(case.shape) * case.u)
    if case.gap and case.rank:
        assert s[case.rank - 1] > 3 * case.rtol * s[0]
        assert case.rank == s.size or s[case.rank] <= case.rtol * s[0] / 4


@SOME
@given(case=strategies.exactly_deficient())
def test_exact_factors_give_an_exact_rank(case):
    from softlinalg.testing._exact import exact_rank

    assert case.exact
    assert exact_rank(case.host.astype(float)) == case.rank < max(2, min(case.shape))
    assert case.kappa <= largest_cond(case.shape, case.dtype)


@FEW
@given(case=st.one_of(strategies.symmetric(dtype="complex64"), strategies.psd(), strategies.psd(exact=True, rank="deficient")))
def test_structure_is_exact(case):
    np.testing.assert_array_equal(case.host, np.swapaxes(case.host, -1, -2).conj())
    if case.structure == "psd":
        scaled = np.ldexp(case.host.astype(float), -case.extra["log2_scale"])
        assert np.linalg.eigvalsh(scaled)[0] >= -2 * max(case.shape) * case.u


def test_symmetric_matrices_have_eigenvalues_of_both_signs():
    drawn = collected(strategies.symmetric(shape=(6, 6), rank=6, log2_scale=0), FEW)
    mixed = [case for case in drawn if np.linalg.eigvalsh(case.host.astype(float))[[0, -1]].prod() < 0]
    assert len(mixed) > len(drawn) / 2


@FEW
@given(case=strategies.with_spectrum((3.0, 2.0, 2.0, 0.5), dtype="float64"))
def test_given_spectra_are_kept(case):
    np.testing.assert_allclose(np.linalg.svd(case.host, compute_uv=False)[:4], [3, 2, 2, 0.5], rtol=1e-14)


@FEW
@given(case=strategies.with_spectrum(st.just((1.0, 0.25)), structure="psd", shape=(3, 3), dtype="float32"))
def test_given_spectra_with_structure(case):
    np.testing.assert_allclose(np.linalg.eigvalsh(case.host), [0, 0.25, 1], atol=1e-6)


@FEW
@given(case=strategies.rectangular())
def test_rectangular_is_not_square(case):
    assert case.shape[0] != case.shape[1]


@FEW
@given(case=strategies.batched(dtype="float64", log2_scale=0))
def test_batches_share_the_spectrum_and_nothing_else(case):
    assert case.batch
    assert math.prod(case.batch) >= 1
    s = np.linalg.svd(case.host, compute_uv=False)
    np.testing.assert_allclose(s, case.s, atol=1e-14)
    flat = case.host.reshape(-1, *case.shape)
    if len(flat) > 1 and case.rank and not case.is_trivial:
        assert not np.array_equal(flat[0], flat[1])


@FEW
@given(case=strategies.graded())
def test_graded_matrices_are_badly_scaled(case):
    assert case.gap
    rows, columns = (np.abs(case.host).max(axis=axis) for axis in (1, 0))
    assert max(rows.max() / rows.min(), columns.max() / columns.min()) > 1.4


# --------------------------------------------------------------------------------------------- distribution
def test_at_most_a_tenth_of_the_draws_is_trivial_and_the_rest_is_spread():
    drawn = collected(strategies.matrices())
    count = collections.Counter("trivial" if c.is_trivial else "full" if c.rank == min(c.shape) else "deficient" for c in drawn)
    assert count["trivial"] <= len(drawn) / 10
    assert count["full"] >= len(drawn) / 4
    assert count["deficient"] >= len(drawn) / 4
    assert {c.extra["mode"] for c in drawn} == set(strategies.MODES)
    for dtype in ("float32", "float64"):
        decades = collections.Counter(int(math.log10(c.kappa)) for c in drawn if c.dtype == dtype)
        # A fifteenth to a twentieth; what is drawn differs with the constants that Hypothesis finds in the modules that are loaded.
        assert sum(decades[k] for k in decades if k >= 3) >= len(drawn) / 40
        assert len(decades) >= {"float32": 5, "float64": 9}[dtype]
    scaled = [c for c in drawn if c.extra["log2_scale"]]
    assert len(drawn) / 4 < len(scaled) < 3 * len(drawn) / 4
    assert {c.extra["log2_scale"] > 0 for c in scaled} == {True, False}


@pytest.mark.parametrize(
    "strategy",
    [
        strategies.exactly_deficient(),
        strategies.graded(),
        strategies.psd(),
        strategies.batched(),
        strategies.psd_kernels(),
        strategies.point_clouds(),
        strategies.attention_inputs(),
        strategies.matrices(rank="deficient"),
        strategies.matrices(dtype="complex64"),
    ],
)
def test_no_strategy_is_mostly_trivial(strategy):
    drawn = collected(strategy, settings(max_examples=80, suppress_health_check=list(HealthCheck)))
    assert sum(case.is_trivial for case in drawn) <= len(drawn) / 10


def test_every_kind_of_points_is_drawn():
    drawn = collected(strategies.point_clouds(), settings(max_examples=200))
    assert {case.kind for case in drawn} == set(strategies.POINT_KINDS)


def test_conditions_climb_the_ladder():
    drawn = set(collected(strategies.conds((2, 2), "float64"), settings(max_examples=300)))
    assert {1.0, 2.0, 10.0, 100.0} <= drawn
    assert any(0.9 < cond / math.sqrt(0.1 / unit("float64")) < 1.1 for cond in drawn)
    assert any(0.9 < cond / (0.1 / unit("float64")) < 1.1 for cond in drawn)


def test_examples_shrink_to_the_simplest_structure():
    found = find(strategies.matrices(), lambda case: case.kappa > 5 and case.rank >= 2, settings=settings(max_examples=500, database=None))
    assert found.shape == (2, 2)
    assert found.rank == 2
    assert found.extra["log2_scale"] == 0
    assert len(repr(found)) < 110


# --------------------------------------------------------------------------------------- reproduction lines
@FEW
@given(
    case=st.one_of(
        strategies.matrices(dtype=strategies.dtypes(kind="floating"), layout=strategies.layouts("numpy")),
        strategies.matrices(structure="psd", batch=strategies.batch_shapes()),
        strategies.exactly_deficient(),
        strategies.with_spectrum((2.0, 0.125)),
        strategies.graded(layout=strategies.layouts("numpy")),
        strategies.psd_kernels(),
    )
)
def test_printed_matrices_are_rebuilt_bit_for_bit(case):
    again = rebuilt(case)
    assert again.host.tobytes() == case.host.tobytes()
    assert (again.A.strides, again.A.dtype, again.A.flags.writeable) == (case.A.strides, case.A.dtype, case.A.flags.writeable)
    assert (again.s == case.s).all()
    assert (again.rank, again.kappa, again.desc, again.structure, again.gap) == (case.rank, case.kappa, case.desc, case.structure, case.gap)
    assert "\n" not in repr(case)
    assert pretty(case) == repr(case), "hypothesis prints the line too"


@FEW
@given(points=strategies.point_clouds(batch=st.sampled_from([(), (2,)])), inputs=strategies.attention_inputs())
def test_printed_points_and_attention_inputs_are_rebuilt_bit_for_bit(points, inputs):
    assert (rebuilt(points).x == points.x).all()
    again = rebuilt(inputs)
    for name in ("q", "k", "v", "landmarks", "key_padding_mask"):
        mine, other = getattr(inputs, name), getattr(again, name)
        assert (mine is None and other is None) or (mine == other).all()


def test_the_line_is_short_and_leaves_out_defaults():
    case = softlinalg.testing.build_matrix(shape=(6, 4), rank=2, mode=3, cond=4e2, dtype="float32", seed=17)
    assert repr(case) == "softlinalg.testing.build_matrix(shape=(6, 4), rank=2, cond=400, dtype='float32', seed=17)"
    assert case.desc == "6x4 rank 2, geometric spectrum, condition 4e2, float32"


# --------------------------------------------------------------------------------- libraries and layouts
@pytest.mark.parametrize("name", ["numpy", "array_api_strict", "torch", "jax"])
def test_matrices_of_every_library(name):
    @settings(max_examples=15)
    @given(case=strategies.matrices(xp=name, dtype="float32", layout=strategies.layouts(name)))
    def check(case):
        module = array_api_compat.array_namespace(case.A).__name__
        assert {"jax": "jax", "torch": "torch", "array_api_strict": "array_api_strict", "numpy": "numpy"}[name] in module
        assert rebuilt(case).host.tobytes() == case.host.tobytes()
        plain = rebuilt(softlinalg.testing.build_matrix(**{**_settings(case), "layout": "C", "xp": "numpy"}))
        np.testing.assert_array_equal(plain.host, case.host)

    check()


def _settings(case) -> dict:
    return eval(repr(case).replace("softlinalg.testing.build_matrix", "dict"))


@pytest.mark.parametrize("layout", _layouts.supported_layouts("numpy"))
def test_numpy_layouts_are_what_they_say(layout):
    a = softlinalg.testing.build_matrix(shape=(4, 3), batch=(2,), seed=1, layout=layout).A
    plain = softlinalg.testing.build_matrix(shape=(4, 3), batch=(2,), seed=1).A
    if layout == "broadcast":
        assert a.strides[0] == 0
        np.testing.assert_array_equal(a[0], a[1])
        plain = np.broadcast_to(plain[:1], a.shape)
    np.testing.assert_array_equal(a, plain)
    fact = {
        "C": a.flags.c_contiguous and a.flags.aligned,
        "F": a[0].flags.f_contiguous and not a[0].flags.c_contiguous,
        "strided": a.strides[-1] == 24,
        "slice": not a.flags.c_contiguous and a.strides[-1] == 8,
        "broadcast": True,
        "negative": a.strides[-1] == -8 and a.strides[-2] < 0,
        "readonly": not a.flags.writeable,
        "big-endian": a.dtype.byteorder == ">",
        "unaligned": not a.flags.aligned,
    }
    assert fact[layout]


@pytest.mark.parametrize("layout", _layouts.supported_layouts("torch"))
def test_torch_layouts_are_what_they_say(layout):
    torch = pytest.importorskip("torch")
    a = softlinalg.testing.build_matrix(shape=(4, 3), batch=(2,), xp="torch", layout=layout, seed=1).A
    assert isinstance(a, torch.Tensor)
    assert a.is_contiguous() == (layout == "C")
    assert {"F": a.stride(-2) == 1, "strided": a.stride(-1) == 3, "broadcast": a.stride(0) == 0, "pending": a.is_neg()}.get(layout, True)
    plain = softlinalg.testing.build_matrix(shape=(4, 3), batch=(2,), xp="torch", seed=1).A
    assert layout == "broadcast" or torch.equal(a, plain)
    turned = softlinalg.testing.build_matrix(shape=(4, 3), dtype="complex128", xp="torch", layout=layout, seed=1).A
    assert turned.is_conj() == (layout == "pending")


def test_memory_around_a_view_holds_large_numbers():
    a = softlinalg.testing.build_matrix(shape=(3, 3), layout="slice").A
    assert (a.base == 113).sum() == a.base.size - a.size


def test_what_a_library_lacks_is_refused():
    with pytest.raises(errors.ParameterError, match=r"layout must be one that jax arrays can have \(C\)"):
        softlinalg.testing.build_matrix(shape=(2, 2), dtype="float32", xp="jax", layout="strided")
    with pytest.raises(errors.ParameterError, match="bfloat16 for numpy"):
        softlinalg.testing.build_matrix(shape=(2, 2), dtype="bfloat16")
    import array_api_strict

    with pytest.raises(errors.ParameterError, match="dtype must be one that the device has; got float64 for array_api_strict"):
        softlinalg.testing.build_matrix(shape=(2, 2), xp="array_api_strict", device=array_api_strict.Device("no_x64"))
    with pytest.raises(errors.ParameterError, match="xp must be one of"):
        softlinalg.testing.build_matrix(shape=(2, 2), xp="fortran")
    import jax

    with jax.enable_x64(False), pytest.raises(errors.ParameterError, match="set jax_enable_x64"):
        softlinalg.testing.build_matrix(shape=(2, 2), dtype="float64", xp="jax")


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"mode": 9}, "mode must be one of"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"structure": "psd"}, "structure must be"),
        ({"s": (1.0, 2.0)}, "descending order"),
        ({"exact": True, "cond": 1e6, "dtype": "float32"}, "exact must go with a real type and cond"),
    ],
)
def test_contradictions_are_refused(settings_, words):
    with pytest.raises(errors.ParameterError, match=words):
        softlinalg.testing.build_matrix(shape=(3, 2), **settings_)


def test_bfloat16_rounds_to_nearest_even():
    torch = pytest.importorskip("torch")
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1e-40, 3.3895e38, np.inf, -1 - 2**-8 - 2**-20], dtype=np.float32)
    expected = torch.tensor(values).to(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(_layouts.round_to(values, "bfloat16"), expected)
    drawn = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    np.testing.assert_array_equal(_layouts.round_to(drawn, "bfloat16"), torch.tensor(drawn).to(torch.bfloat16).float().numpy())


# ------------------------------------------------------------------------------- points, scales, and damage
@pytest.mark.parametrize(
    ("kind", "claim"),
    [
        ("clustered", lambda x: np.median(np.sort(np.linalg.norm(x[:, None] - x, axis=-1), axis=1)[:, 1]) < 0.1),
        ("duplicated", lambda x: len(np.unique(x, axis=0)) <= math.ceil(len(x) / 3)),
        ("collinear", lambda x: np.linalg.matrix_rank(x - x[0]) == 1),
        ("grid", lambda x: (x == np.round(x)).all() and len(np.unique(x, axis=0)) == len(x)),
        ("one-far", lambda x: np.sum(np.abs(x).max(axis=1) > 900) == 1),
        ("offset", lambda x: np.abs(x).min() > 900 and np.abs(x - x.mean(0)).max() < 10),
        ("all-equal", lambda x: (x == x[0]).all()),
        ("far-apart", lambda x: np.sort(np.linalg.norm(x[:, None] - x, axis=-1), axis=1)[:, 1].min() > 100),
        ("two-groups", lambda x: np.sum(x.min(axis=1) > 2.9e4) == len(x) // 4 and np.abs(np.median(x, axis=0)).max() < 3),
        ("normal", lambda x: 0.3 < x.std() < 2),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_kinds_of_points_are_what_they_say(kind, claim, seed):
    assert claim(softlinalg.testing.build_points(shape=(16, 3), kind=kind, seed=seed).host)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_scales_reach_from_subnormal_to_near_overflow(dtype):
    drawn = collected(strategies.scales(dtype), settings(max_examples=200))
    info = np.finfo(dtype)
    assert min(drawn) == float(info.smallest_subnormal)
    assert max(drawn) == 2.0 ** (exponent_range(dtype)[1] - 1) < float(info.max)
    assert all(0 < float(np.dtype(dtype).type(scale)) == scale for scale in drawn)
    assert min(collected(strategies.scales(dtype, subnormal=False), settings(max_examples=100))) >= float(info.tiny)


@FEW
@given(data=st.data())
def test_scaled_matrices_and_their_inverses_stay_in_the_normal_range(data):
    case = data.draw(strategies.matrices(dtype=st.sampled_from(["float32", "float64"])))
    info = np.finfo(case.dtype)
    if case.rank:
        assert np.isfinite(case.host).all()
        assert float(info.tiny) <= case.s[case.rank - 1] <= case.s[0] < float(info.max) / 4
        assert float(info.tiny) < 1 / case.s[0]
        assert 1 / case.s[case.rank - 1] < float(info.max) / 4


@FEW
@given(data=st.data())
def test_poison_changes_one_number(data, backend):
    case = softlinalg.testing.build_matrix(shape=(3, 2), batch=(2,), dtype="float32")
    array = backend.asarray(case.host)
    poisoned = data.draw(strategies.poison(array, member=data.draw(st.sampled_from([None, 1]))))
    after = backend.to_numpy(poisoned.array)
    assert np.sum(after != case.host) == 1
    assert not np.isfinite(after[poisoned.index])
    assert type(poisoned.array) is type(array)
    np.testing.assert_array_equal(backend.to_numpy(array), case.host)


def test_bad_inputs_of_every_kind_are_drawn_and_ours_refuses_them():
    drawn = collected(strategies.bad_inputs(), settings(max_examples=200))
    assert len({bad.reason for bad in drawn if "at (" not in bad.reason}) > 15
    assert any("nan" in bad.reason for bad in drawn)
    for bad in drawn:
        with pytest.raises(errors.SoftlinalgError):
            softlinalg.pinv(bad.value)


@FEW
@given(points=strategies.point_clouds(), data=st.data())
def test_length_scales_are_around_the_spread(points, data):
    scale = data.draw(strategies.length_scales(points))
    assert math.log2(scale) == round(math.log2(scale))
    assert scale > 0


@FEW
@given(rows=strategies.landmark_sets(9), doubled=strategies.landmark_sets(9, count=4, duplicates=True))
def test_landmarks_are_rows(rows, doubled):
    assert len(set(rows)) == len(rows) >= 1
    assert len(doubled) == 6
    assert len(set(doubled)) == 4


def test_pieces_name_what_is_there():
    assert set(collected(strategies.namespaces(), FEW)) == {"numpy", "array_api_strict", "torch", "jax"}
    assert set(collected(strategies.dtypes("torch", kind="half"), FEW)) == {"float16", "bfloat16"}
    assert set(collected(strategies.dtypes("numpy", kind="half"), FEW)) == {"float16"}
    assert "float32" in set(collected(strategies.dtypes("jax"), FEW))
    assert None in collected(strategies.devices("torch"), FEW)
    assert {(0,), (2, 0)} <= set(collected(strategies.batch_shapes(empty=True), settings(max_examples=100)))


def test_devices_take_matrices():
    for name in ("numpy", "torch", "array_api_strict"):
        for device in set(map(str, collected(strategies.devices(name), FEW))) - {"None"}:
            namespace_device = next(d for d in collected(strategies.devices(name), FEW) if str(d) == device)
            case = softlinalg.testing.build_matrix(shape=(2, 2), dtype="float32", xp=name, device=namespace_device)
            assert str(array_api_compat.device(case.A)) == device


def test_the_ladder_runs_whatever_is_drawn():
    seen = []

    @settings(max_examples=1)
    @given(case=strategies.matrices(dtype="float32"))
    @strategies.ladder("case", dtype="float32")
    def collect(case):
        seen.append((case.rank, case.kappa))

    collect()
    assert {1.0, 2.0, 10.0, 100.0} <= {round(kappa, 6) for rank, kappa in seen if rank == 4}
    assert any(kappa > 0.9 * largest_cond((6, 4), "float32") for _, kappa in seen)
    assert {2, 4} <= {rank for rank, _ in seen}


def test_nothing_trivial_is_needed_for_a_hard_case():
    with pytest.raises(NoSuchExample):
        find(strategies.matrices(rank="deficient"), lambda case: case.rank == 0, settings=settings(max_examples=200, database=None))


# ------------------------------------------------------------------------------------- without hypothesis
WITHOUT = """
import sys
sys.modules["hypothesis"] = None
import softlinalg.testing as t
import numpy as np
case = t.build_matrix(shape=(4, 3), seed=1)
t.assert_pinv(lambda a: np.linalg.pinv(a, rtol=None), case)
t.assert_pinv(lambda a: np.linalg.pinv(a, rtol=None), t.gallery.get("hilbert", n=4).case())
print(max(t.ratios.penrose(case.A, case.pinv, case).values()) < 30)
try:
    t.strategies
except ImportError as error:
    print(error)
"""


def test_without_hypothesis_everything_but_strategies_works():
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    first, second = run.stdout.strip().splitlines()
    assert first == "True"
    assert 'pip install "softlinalg[testing]"' in second


def test_every_public_name_is_there_and_unknown_ones_are_refused():
    import softlinalg.testing as package

    for name in package.__all__:
        assert getattr(package, name) is not None
    assert set(package.__all__) == set(dir(package))
    assert gallery is package.gallery
    with pytest.raises(AttributeError, match="no attribute 'assert_everything'"):
        package.assert_everything  # noqa: B018
    for name in strategies.__all__:
        assert getattr(strategies, name).__doc__
