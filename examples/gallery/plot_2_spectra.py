"""
Spectra: when a low rank is enough
==================================

The eigenvalues of a Gaussian kernel matrix for four length scales: the longer the scale, the faster they fall, and the fewer landmarks
are needed. Dots are eigenvalues of the approximation from 200 landmarks, lines those of the whole matrix. By theorem the dots never
lie above the lines.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import softlinalg

x = load_digits().data[:1000] / 16.0
median = softlinalg.median_length_scale(x, rng=0)

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
for factor, color in ((0.25, "C3"), (0.5, "C1"), (1.0, "C0"), (2.0, "C2")):
    kernel = softlinalg.Gaussian(factor * median)
    exact = np.linalg.eigvalsh(kernel(x, x))[::-1]
    d = softlinalg.nystrom(x, kernel, rank=200, rng=0)
    label = f"{factor:g} x median: {d.relative_trace_error:.1%} left out"
    ax.semilogy(np.arange(1, 301), exact[:300] / 1000, color=color, label=label)
    ax.semilogy(np.arange(1, d.rank + 1)[::8], d.eigenvalues[::8] / 1000, ".", color=color)
ax.set(xlabel="number of the eigenvalue, by size", ylabel="eigenvalue (share of the trace)")
ax.set_title("1,000 digits: exact (lines), approximated (dots)")
ax.set_ylim(1e-7, 1)
ax.legend()
ax.grid(alpha=0.3)
plt.show()
