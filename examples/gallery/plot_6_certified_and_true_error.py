"""
The certified error against the true one
========================================

Inverses of 100 Gaussian kernel matrices in float32, from harmless to nearly singular. The true error is found with mpmath in
50 digits; the bound comes with the result. No dot lies below the diagonal: a bound that holds is never smaller than what it bounds.
Crosses show, at the same height, the true error of LAPACK's inverse in float32 of the same matrix, which comes without a bound.
"""

import matplotlib.pyplot as plt
import mpmath
import numpy as np

import softlinalg

rng = np.random.default_rng(0)
ridges = np.geomspace(1e-4, 1.0, 5)
points = []
for ridge in ridges:
    x = rng.normal(size=(20, 10, 2)).astype(np.float32)
    w = np.asarray(softlinalg.gaussian_kernel(x, length_scale=1.0))
    result = softlinalg.certified_ridge_inverse(w, float(ridge))
    plain = np.linalg.inv(w + np.float32(ridge) * np.eye(10, dtype=np.float32))
    with mpmath.workdps(50):
        for matrix, value, other, bound in zip(w, result.value, plain, result.error_bound, strict=True):
            # The matrix that was given: float32 entries, and the ridge as the double that was passed.
            exact = (mpmath.matrix(matrix.astype(np.float64).tolist()) + mpmath.mpf(float(ridge)) * mpmath.eye(10)) ** -1
            errors = [exact - mpmath.matrix(a.astype(np.float64).tolist()) for a in (value, other)]
            truth = [np.linalg.norm(np.array(error.tolist(), dtype=float), 2) for error in errors]
            points.append((*truth, float(bound), np.log10(ridge)))
true, lapack, bounds, color = np.array(points).T

fig, ax = plt.subplots(figsize=(6.4, 5.2), layout="constrained")
ax.loglog(lapack, bounds, "x", color="0.6", label="true error of numpy.linalg.inv, same matrix")
shown = ax.scatter(true, bounds, c=color, s=18, zorder=3, label="true error of certified_ridge_inverse")
ends = np.array([true.min() / 2, lapack.max() * 2])
ax.plot(ends, ends, "k--", linewidth=1, label="bound = true error")
ax.set(xlabel="true error (2-norm)", ylabel="certified bound (2-norm)")
ax.set_title(f"float32, 100 matrices; bound / error: median {np.median(bounds / true):.1f}")
ax.legend(fontsize=9)
fig.colorbar(shown, label="log10 of the ridge")
plt.show()

# %%
# Every bound holds.
print(f"smallest bound / true error: {(bounds / true).min():.2f}")
