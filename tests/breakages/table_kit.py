"""Further breakages, for `run.py --with-kit`: what the suites of softlinalg.testing alone have to notice; and what they cannot."""

from __future__ import annotations

from table import Breakage

OUT_OF_SCOPE = {
    "odd-order-loses-a-power": "a step of an order that no public function takes",
    "no-common-center": "distances from which the median length scale is guessed, a choice of a parameter; kernels have a center of their own",
    "proposals-never-rejected": "another choice of landmarks, as valid as the right one: only its distribution is wrong",
    "weights-not-square-roots": "weights of a sample that only k-means uses: landmarks are worse, not wrong",
    "floor-without-the-core": "an estimate of rounding that is reported beside the error",
    "floor-of-a-sample-for-all-rows": "the same estimate, from a sample of rows",
    "preconditioner-shifts-by-the-largest": "a preconditioner changes the speed of a solver, not its solution",
    "damage-not-looked-for": "files are not measured by laws of numbers",
    "sums-of-the-killed-run-forgotten": "runs that are killed are not part of the kit",
    "file-written-in-its-place": "the same",
    "full-disk-keeps-half-a-file": "the same",
    "changed-rows-not-looked-for": "the same",
    "torn-file-read-as-far-as-it-goes": "the same",
    "task-held-by-one-worker": "the same",
}
"""Names in table.py, and why no law of the kit speaks of them."""

ANSWERED = {
    "bound-without-its-denominator": "scalar_bounds", "lost-digits-of-the-diagonal": "scalar_bounds",
    "cut-off-not-relative": "given_cut_offs", "one-scale-for-the-whole-batch": "scaled_batches", "upper-triangle-only": "many_points",
    "too-few-steps": "slow_convergence", "corrections-reach-finished-members": "corrected_members",
    "rounding-of-the-residual-dropped": "mapped_bounds",
    "far-pairs-left-to-rounding": "kernels, by the points `two-groups`, which `softlinalg.testing` has had since",
}  # fmt: skip
"""Names of those that survived at first, and the check that was then written because of them."""

SURVIVORS: dict[str, str] = {}
"""Names of those that the kit does not notice, and why."""

KIT_BREAKAGES = [
    Breakage(
        name="kernel-without-center",
        file="_kernel_distances.py",
        old="        z = (x / 2 - self.center / 2) * (2 * self.inverse)\n        z = _saturated",
        new="        z = (x / 2) * (2 * self.inverse)\n        z = _saturated",
        tests=(),
    ),
    Breakage(
        name="cut-off-of-another-precision",
        file="_pinv.py",
        old="    finest = max(size, 1) * (eps**0.5 if method in _ITERATIONS else eps)\n",
        new="    finest = max(size, 1) * (eps**0.5 if method in _ITERATIONS else 2.0**-52)\n",
        tests=(),
    ),
    Breakage(
        name="cut-off-not-relative",
        file="_pinv.py",
        old="        keep = s > cut * s[..., :1]\n",
        new="        keep = s > cut\n",
        tests=(),
    ),
    Breakage(
        name="no-cut-off",
        file="_pinv.py",
        old="        keep = s > cut * s[..., :1]\n",
        new="        keep = s > 0\n",
        tests=(),
    ),
    Breakage(
        name="factors-transposed-not-conjugated",
        file="_linalg.py",
        old="    return xp.conj(transposed) if _arrays.is_complex(a.dtype) else transposed\n",
        new="    return transposed\n",
        tests=(),
    ),
    Breakage(
        name="one-scale-for-the-whole-batch",
        file="_linalg.py",
        old="    exponent = binary_exponent(largest_entry(a, xp=xp), xp=xp)\n    return scale_by",
        new="    exponent = binary_exponent(xp.max(largest_entry(a, xp=xp)) + 0 * largest_entry(a, xp=xp), xp=xp)\n    return scale_by",
        tests=(),
    ),
    Breakage(
        name="bound-of-the-scaled-matrix",
        file="_inversion.py",
        old="    return Rounded(final, _linalg.scale_by_power_of_two(bound[:, None, None], -exponent, xp=xp)[:, 0, 0])\n",
        new="    return Rounded(final, bound)\n",
        tests=(),
    ),
    Breakage(
        name="too-few-steps",
        file="_pinv.py",
        old='        steps = _iterations.newton_raphson_steps(1 / cut, target, start="adjoint")\n',
        new='        steps = _iterations.newton_raphson_steps(1 / cut, target, start="adjoint") // 2\n',
        tests=(),
    ),
    Breakage(
        name="finite-sum-taken-for-finite-entries",
        file="_inputs.py",
        old="    if count == 0:  # the sum overflowed; the entries are fine\n",
        new="    if count <= 1:  # the sum overflowed; the entries are fine\n",
        tests=(),
    ),
    Breakage(
        name="diagonal-from-rounding",
        file="_kernel_base.py",
        old="            block[:, :size] = mirror(block[:, :size], 1.0, xp=xp)\n",
        new="            block[:, :size] = mirror(block[:, :size], 1.0 - 2.0**-20, xp=xp)\n",
        tests=(),
    ),
    Breakage(
        name="upper-triangle-only",
        file="_kernel_base.py",
        old="            out[stop:, start:stop] = xp.matrix_transpose(out[start:stop, stop:])\n",
        new="            out[stop:, start:stop] = 0\n",
        tests=(),
    ),
    Breakage(
        name="exponent-not-halved",
        file="_kernel_distances.py",
        old="        squared *= -0.5\n        left[:, -2] = squared\n",
        new="        squared *= -1.0\n        left[:, -2] = squared\n",
        tests=(),
    ),
    Breakage(
        name="whitened-twice",
        file="_nystrom_core.py",
        old="vectors[:, m - rank :] / xp.sqrt(kept), order",
        new="vectors[:, m - rank :] / kept, order",
        tests=(),
    ),
    Breakage(
        name="one-eigenvalue-lost",
        file="_nystrom_core.py",
        old="    rank = int(xp.sum(xp.astype(values > cut, xp.int64)))\n",
        new="    rank = max(1, int(xp.sum(xp.astype(values > cut, xp.int64))) - 1)\n",
        tests=(),
    ),
    Breakage(
        name="square-root-of-d-as-length-scale",
        file="_attention.py",
        old="    scale = q.shape[-1] ** 0.25 if length_scale is None",
        new="    scale = q.shape[-1] ** 0.5 if length_scale is None",
        tests=(),
    ),
    Breakage(
        name="rounding-of-the-slices-dropped",
        file="_certificates.py",
        old="        error = error + gamma * upper_frobenius(lefts[i], xp=xp) * upper_frobenius(tail, xp=xp)\n",
        new="",
        tests=(),
    ),
    Breakage(
        name="ridge-forgotten-in-attention",
        file="_attention.py",
        old="    x, evidence = _cholesky(wide, settings.ridge, xp=xp)\n",
        new="    x, evidence = _cholesky(wide, settings.ridge / 2, xp=xp)\n",
        tests=(),
    ),
]
