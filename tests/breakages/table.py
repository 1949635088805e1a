"""The deliberate breakages: what is broken, and which tests have to notice.

Each is a mistake that somebody could make in good faith and that most inputs would hide. The snippets occur exactly once
in their files (tests/test_breakages.py checks it).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Breakage:
    """One small mistake."""

    name: str
    file: str
    """In softlinalg/."""
    old: str
    new: str
    tests: tuple[str, ...]
    """At least one of them must fail."""


BREAKAGES = [
    # ------------------------------------------------------------------------------------------ kernels
    Breakage(
        name="missing-clamp-of-distances",
        file="_kernel_distances.py",
        old="    return values - _arrays.detach(xp.where(values > 0, values, xp.zeros_like(values)))\n",
        new="    return values\n",
        tests=("tests/core/test_kernel_values.py::test_squared_distances_agree_with_differences",),
    ),
    Breakage(
        name="missing-clamp-in-place",
        file="_buffers.py",
        old="        if not (smallest > lowest and largest <= 0):\n",
        new="        if not (smallest > lowest and largest <= 1e9):\n",
        tests=("tests/core/test_guards.py::test_no_kernel_value_exceeds_one_between_two_copies_of_the_points",),
    ),
    Breakage(
        name="no-common-center",
        file="_kernel_distances.py",
        old="        z, w = x - center, y - center\n",
        new="        z, w = x, y\n",
        tests=("tests/core/test_kernel_values.py::test_squared_distances_agree_with_differences",),
    ),
    Breakage(
        name="far-pairs-left-to-rounding",
        file="_kernel_distances.py",
        old="        return bool(self.xp.any(far)) and bool(self.xp.any(self.far))\n",
        new="        return False\n",
        tests=("tests/core/test_kernel_values.py::test_close_points_far_from_the_center_keep_their_distance",),
    ),
    # --------------------------------------------------------------------------------------- iterations
    Breakage(
        name="step-count-off-by-one",
        file="_filters.py",
        old="    return max(0, math.ceil(math.log2(target) - rate + _COUNT_SLACK))\n",
        new="    return max(0, math.ceil(math.log2(target) - rate + _COUNT_SLACK) - 1)\n",
        tests=("tests/core/test_filters.py::test_chebyshev_step_counts_are_sufficient_and_sharp",),
    ),
    Breakage(
        name="start-at-the-edge-of-convergence",
        file="_filters.py",
        old="SAFE_SCALE = 1.8\n",
        new="SAFE_SCALE = 2.0\n",
        tests=("tests/core/test_iterations.py::test_the_safe_factor_converges_even_where_the_bound_is_attained",),
    ),
    Breakage(
        name="odd-order-loses-a-power",
        file="_iterations.py",
        old="    return (eye + r) @ inner if order % 2 == 0 else eye + (r + square) @ inner\n",
        new="    return (eye + r) @ inner if order % 2 == 0 else eye + r @ inner\n",
        tests=("tests/core/test_iterations.py::test_a_step_raises_the_residual_to_the_power_of_its_order",),
    ),
    Breakage(
        name="finished-members-run-on",
        file="_iterations.py",
        old="    return new if counts is None else xp.where((counts > step)[..., None, None], new, old)\n",
        new="    return new\n",
        tests=("tests/core/test_iteration_transformations.py::test_finished_members_stay_frozen_and_equal_single_runs_bit_for_bit",),
    ),
    Breakage(
        name="derivative-forgets-the-iterate",
        file="_iterations.py",
        old="            dx = dx @ m - x @ (da @ x + a @ dx)\n",
        new="            dx = dx @ m - x @ (da @ x)\n",
        tests=("tests/core/test_iteration_transformations.py::test_jvp_is_the_derivative_that_torch_finds_through_the_loop",),
    ),
    # ------------------------------------------------------------------------------------- certificates
    Breakage(
        name="rounding-of-the-residual-dropped",
        file="_certificates.py",
        old="        value = base - left @ right\n        error = gamma * upper_frobenius(left, xp=xp) * upper_frobenius(right, xp=xp) + ",
        new="        value = base - left @ right\n        error = ",
        tests=("tests/core/test_certificates.py::test_the_error_of_a_sliced_product_is_bounded_and_small",),
    ),
    Breakage(
        name="bound-without-its-denominator",
        file="_certificates.py",
        old="    bound = bound / (1 - safe) * _slack(b)\n",
        new="    bound = bound * (1 - safe) * _slack(b)\n",
        tests=("tests/core/test_certificates.py::test_ridge_bounds_hold_on_ten_thousand_matrices_and_are_close",),
    ),
    Breakage(
        name="lost-digits-of-the-diagonal",
        file="_certificates.py",
        old="    lost = (diagonal - (total - part)) + (column - part)\n",
        new="    lost = (diagonal - (total - part)) - (column - part)\n",
        tests=("tests/core/test_certificates.py::test_a_shifted_diagonal_loses_nothing",),
    ),
    Breakage(
        name="part-outside-the-range-forgotten",
        file="_certificates.py",
        old="    bound = _hypot(range_part, null_part, xp=xp) * _slack(x)\n",
        new="    bound = range_part * _slack(x)\n",
        tests=("tests/core/test_certificates.py::test_pinv_bounds_and_ranks_hold_on_ten_thousand_exact_matrices_and_are_close",),
    ),
    Breakage(
        name="rank-claimed-without-a-gap",
        file="_certificates.py",
        old="xp.where(usable, rank, xp.full_like(rank, -1))\n",
        new="rank\n",
        tests=("tests/core/test_certificates.py::test_a_rank_without_a_gap_is_not_claimed",),
    ),
    # ----------------------------------------------------------------------------------------- inverses
    Breakage(
        name="first-term-for-the-whole-gradient",
        file="_pinv.py",
        old="    gradient = gradient + (ghx - a @ (x @ ghx)) @ xh + xh @ (xgh - (xgh @ x) @ a)\n",
        new="",
        tests=("tests/core/test_pinv.py::test_derivatives_follow_golub_and_pereyra_at_constant_rank",),
    ),
    Breakage(
        name="null-space-not-removed",
        file="_pinv.py",
        old="    x = x @ work @ x  # zero on the null space",
        new="    x = x  # zero on the null space",
        tests=("tests/core/test_guards.py::test_iterations_empty_the_null_space_without_a_fallback",),
    ),
    Breakage(
        name="gradient-of-one-triangle",
        file="_ridge_inverse.py",
        old="    return -(y @ ((g + _linalg.adjoint(g, xp=xp)) / 2) @ y)\n",
        new="    return -(y @ g @ y)\n",
        tests=("tests/core/test_ridge_inverse.py::test_gradients_agree_with_torch_and_jax",),
    ),
    Breakage(
        name="corrections-reach-finished-members",
        file="_ridge_inverse.py",
        old="        keep = outcome.converged\n",
        new="        keep = outcome.converged & ~outcome.converged\n",
        tests=("tests/core/test_guards.py::test_corrections_leave_members_alone_that_were_certified_at_once",),
    ),
    # ---------------------------------------------------------------------------------------- landmarks
    Breakage(
        name="proposals-never-rejected",
        file="_landmark_sampling.py",
        old=" or thresholds[i] * state.residual[local[i]] >= h:",
        new=":",
        tests=("tests/core/test_landmark_algorithms.py::test_accelerated_rpcholesky_has_the_law_of_the_plain_one",),
    ),
    Breakage(
        name="weights-not-square-roots",
        file="_landmark_sampling.py",
        old="        weights = 1.0 / np.sqrt(np.clip(share, ROUNDING * _arrays.eps(rows.dtype), 1.0))\n",
        new="        weights = 1.0 / np.clip(share, ROUNDING * _arrays.eps(rows.dtype), 1.0)\n",
        tests=("tests/core/test_guards.py::test_a_leverage_sample_stands_for_as_many_rows_as_it_was_drawn_from",),
    ),
    # ------------------------------------------------------------------------------------------ Nystrom
    Breakage(
        name="absolute-cut-off",
        file="_nystrom_core.py",
        old="    cut = max(rtol * largest, math.sqrt(m) * noise * height, 0.0)\n",
        new="    cut = 1e-12\n",
        tests=("tests/core/test_nystrom_core.py::test_the_cut_off_is_relative_to_the_largest_eigenvalue",),
    ),
    Breakage(
        name="wrong-sign-in-woodbury",
        file="_nystrom_solve.py",
        old="            part = (rest[start:stop, :] - f @ coefficients) / ridge\n",
        new="            part = (rest[start:stop, :] + f @ coefficients) / ridge\n",
        tests=("tests/core/test_nystrom_laws.py::test_systems_are_solved_to_rounding_and_their_determinants_known",),
    ),
    Breakage(
        name="floor-without-the-core",
        file="_nystrom_core.py",
        old="    return from_blocks + whitening.noise * sums[:, 1] + stored_unit * sums[:, 2]\n",
        new="    return stored_unit * sums[:, 2]\n",
        tests=("tests/core/test_nystrom_laws.py::test_the_trace_error_is_exact_for_the_matrix_returned",),
    ),
    Breakage(
        name="floor-of-a-sample-for-all-rows",
        file="_nystrom_core.py",
        old="        floor = xp.mean(sampled) * count\n",
        new="        floor = xp.sum(sampled)\n",
        tests=("tests/core/test_nystrom.py::test_a_tolerance_below_the_floor_of_the_data_names_that_floor",),
    ),
    Breakage(
        name="preconditioner-shifts-by-the-largest",
        file="_nystrom_solve.py",
        old='    smallest = xp.min(xp.where(usable, eigenvalues, xp.full_like(eigenvalues, float("inf"))))\n',
        new="    smallest = xp.max(eigenvalues)\n",
        tests=("tests/core/test_nystrom_laws.py::test_the_preconditioner_is_the_formula_of_its_paper",),
    ),
    Breakage(
        name="damage-not-looked-for",
        file="_nystrom_io.py",
        old="        if file.read(len(ZEROS)) != expected:\n",
        new="        if False:\n",
        tests=("tests/core/test_nystrom_files.py::test_every_changed_byte_is_noticed",),
    ),
    # ---------------------------------------------------------------------------------------- streaming
    Breakage(
        name="sums-of-the-killed-run-forgotten",
        file="_streaming_run.py",
        old="[] if resumed is None else resumed.items, list(known)",
        new="[], list(known)",
        tests=("tests/core/test_streaming_checkpoint.py::test_a_run_killed_at_any_point_goes_on_to_the_same_bits",),
    ),
    Breakage(
        name="file-written-in-its-place",
        file="_nystrom_io.py",
        old="""        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
""",
        new="""        with target.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
""",
        tests=("tests/core/test_streaming_checkpoint.py::test_a_run_killed_at_any_point_goes_on_to_the_same_bits",),
    ),
    Breakage(
        name="full-disk-keeps-half-a-file",
        file="_nystrom_io.py",
        old="        temporary.unlink(missing_ok=True)\n        raise\n",
        new="        raise\n",
        tests=("tests/core/test_streaming_checkpoint.py::test_a_small_disk_that_is_full_is_told_and_with_room_the_run_goes_on",),
    ),
    Breakage(
        name="changed-rows-not-looked-for",
        file="_streaming_run.py",
        old="    if chunk_digest(x, y) != digest:\n",
        new="    if False:\n",
        tests=("tests/core/test_streaming_checkpoint.py::test_changed_rows_are_noticed",),
    ),
    Breakage(
        name="torn-file-read-as-far-as-it-goes",
        file="_streaming_files.py",
        old='must be readable to its end; got: {reason}. Restore the file."\n        raise InputError(message) from error\n',
        new='must be readable to its end; got: {reason}. Restore the file."\n',
        tests=("tests/core/test_streaming_sources.py::test_a_truncated_file_is_refused",),
    ),
    Breakage(
        name="task-held-by-one-worker",
        file="dask.py",
        old="        shared = dask.delayed(task, pure=False, traverse=False)\n        chunk",
        new="        shared = self._client.scatter(task, hash=False)\n        chunk",
        tests=("tests/test_dask.py::test_a_worker_killed_in_mid_run_changes_no_bit",),
    ),
    # --------------------------------------------------------------------- inverses and attention in compiled code
    Breakage(
        name="no-spot-check-of-the-inverse",
        file="_certificates_cholesky.py",
        old="    kept = usable & (worst <= math.sqrt(m) * trace_b * norm * relative)\n",
        new="    kept = usable\n",
        tests=("tests/core/test_certificates.py::test_the_rounding_analysis_is_not_believed_where_the_library_is_wrong",),
    ),
    Breakage(
        name="last-step-certified-too-well",
        file="_certificates.py",
        old="    bound = xp.where(usable, (step * safe / (1 - safe) + lost_in_product",
        new="    bound = xp.where(usable, (step * safe**2 / (1 - safe) + lost_in_product",
        tests=("tests/core/test_native.py::test_a_newton_step_and_its_norms_are_right",),
    ),
    Breakage(
        name="largest-eigenvalue-from-below",
        file="_norm_bounds.py",
        old="    quotient = xp.max((size @ v) / v, axis=(-2, -1))",
        new="    quotient = xp.mean((size @ v) / v, axis=(-2, -1))",
        tests=("tests/core/test_iterations.py::test_the_bound_for_hermitian_matrices_is_never_below_the_norm",),
    ),
    Breakage(
        name="second-half-of-the-rows-forgotten",
        file="_blocked_inverse.h",
        old="                    if (j < first) read(x, i, j, tile);\n",
        new="",
        tests=("tests/core/test_native.py::test_a_compiler_gives_kernels",),
    ),
    Breakage(
        name="moment-of-the-call-before",
        file="torch/repeated_attention.py",
        old="        ctypes.memset(at + self.kept[7], 0, self.moment_bytes)\n",
        new="",
        tests=("tests/torch/test_repeated_attention.py::test_the_second_call_has_the_bits_of_the_long_way",),
    ),
    Breakage(
        name="plan-of-another-order-in-memory",
        file="torch/repeated_attention.py",
        old="    tokens = (q.shape, q.stride(), q.dtype, v.shape, v.stride(), v.dtype,",
        new="    tokens = (q.shape, q.dtype, v.shape, v.dtype,",
        tests=("tests/torch/test_repeated_attention.py::test_arguments_in_another_order_in_memory_have_a_plan_of_their_own",),
    ),
    Breakage(
        name="sums-of-the-gradient-before",
        file="torch/repeated_attention.py",
        old="        ctypes.memset(total, 0, starts[4] - starts[2])\n",
        new="",
        tests=("tests/torch/test_repeated_attention.py::test_gradients_of_the_second_call_are_those_of_the_long_way",),
    ),
    Breakage(
        name="one-memory-for-all-graphs",
        file="torch/repeated_attention.py",
        old="        block = cpu_kernels.in_large_pages(_bytes(self.kept_bytes)) if self.recorded else self.block\n",
        new="        block = self.__dict__.setdefault('kept_block', _bytes(self.kept_bytes)) if self.recorded else self.block\n",
        tests=("tests/torch/test_repeated_attention.py::test_graphs_of_one_plan_do_not_disturb_one_another",),
    ),
    Breakage(
        name="negated-views-read-as-they-lie",
        file="_arrays.py",
        old="        x = x.resolve_neg()\n",
        new="        pass\n",
        tests=(
            "tests/torch/test_functional.py::test_views_that_pytorch_has_yet_to_negate_are_read_right",
            "tests/contract/test_inputs.py::test_views_that_pytorch_has_yet_to_negate_are_read_right",
        ),
    ),
]
