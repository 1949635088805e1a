"""
Errors in units of rounding: pseudo-inverses under test
=======================================================

What `softlinalg.testing` measures: the distance to the true pseudo-inverse, divided by rounding x dimension x condition. Sound
implementations stay below 30 (the line) at any condition; those that square the condition, or cut off in the wrong place, do not.
Every dot is one float32 matrix of 12 x 8 whose pseudo-inverse is known; the right half has rank 5.
"""

import matplotlib.pyplot as plt
import numpy as np

import softlinalg
from softlinalg.testing import build_matrix, ratios

functions = {
    "softlinalg.pinv": softlinalg.pinv,
    "numpy.linalg.pinv, default cut-off": np.linalg.pinv,
    "numpy.linalg.pinv(rtol=None)": lambda a: np.linalg.pinv(a, rtol=None),
    "normal equations": lambda a: np.linalg.inv(a.T @ a) @ a.T,
}
conditions = np.geomspace(1, 1e4, 12)
fig, axes = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
for ax, rank in zip(axes, (8, 5), strict=True):
    for (name, function), marker in zip(functions.items(), "Dso^", strict=True):
        if rank == 5 and name == "normal equations":
            continue  # A^T A is singular: they are not meant for it
        worst = []
        for condition in conditions:
            cases = [build_matrix(shape=(12, 8), rank=rank, cond=float(condition), dtype="float32", seed=seed) for seed in range(5)]
            worst.append(max(max(ratios.forward(case.A, function(case.A), case).values()) for case in cases))
        ax.loglog(conditions, worst, marker=marker, label=name)
    ax.axhline(ratios.THRESHOLD, color="k", linestyle="--", linewidth=1)
    ax.set(xlabel="condition of the part that is not zero", title="full rank" if rank == 8 else "rank 5 of 8")
    ax.grid(alpha=0.3)
axes[0].set_ylabel("worst of 5: error / (rounding x dimension x condition)")
axes[0].legend(fontsize=8)
plt.show()
