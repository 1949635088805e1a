"""
Error against rank: what landmarks buy
======================================

The kernel matrix of scikit-learn's 1,797 handwritten digits, approximated from landmarks that four methods chose. The error is
the share of the trace that is left out; no approximation of that rank can do better than the dashed line, the tail
of the spectrum of the whole matrix, which is small enough here to form.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import softlinalg

x = load_digits().data / 16.0
kernel = softlinalg.Gaussian("median").resolve(x, rng=0)

eigenvalues = np.linalg.eigvalsh(softlinalg.gaussian_kernel(x, length_scale=kernel.length_scale))[::-1]
best = 1.0 - np.cumsum(eigenvalues) / eigenvalues.sum()

ranks = np.array([10, 20, 40, 80, 160, 320])
fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
for method, marker in (("uniform", "o"), ("rpcholesky", "s"), ("kmeans", "^"), ("rpcholesky+lloyd", "D")):
    errors = [softlinalg.nystrom(x, kernel, rank=int(rank), landmarks=method, rng=0).relative_trace_error for rank in ranks]
    ax.loglog(ranks, errors, marker=marker, label=method)
ax.loglog(ranks, best[ranks - 1], "k--", label="best possible")
ax.set(xlabel="number of landmarks", ylabel="relative trace error", title="1,797 digits, Gaussian kernel at the median distance")
ax.legend()
ax.grid(alpha=0.3, which="both")
plt.show()

# %%
# Means of rows (``kmeans`` and the default, ``rpcholesky+lloyd``) beat rows, whatever chose them: a landmark in the middle of its
# cluster explains more than any one member.
