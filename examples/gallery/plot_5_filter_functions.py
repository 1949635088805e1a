"""
Filter functions: what twenty steps do not invert
=================================================

An iteration that starts at a multiple of A^T acts on each singular value by itself: after k steps the product of a singular value s
with its "inverse" is a function of s alone. One means inverted, zero means ignored. The picture is measured, from diagonal matrices,
not drawn from the formula. Published softmax-free attention takes 20 steps: below about 1e-3 of the largest singular value they
invert nothing, and landmark matrices have many that are smaller.
"""

import matplotlib.pyplot as plt
import numpy as np

import softlinalg

s = np.geomspace(1e-6, 1.0, 300)
fig, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
for steps in (5, 10, 20, 30, 40):
    result = softlinalg.newton_pinv(np.diag(s), steps=steps, alpha=1.8)
    ax.semilogx(s, s * np.diag(result.value), label=f"{steps} steps, edge at {1 / np.sqrt(1.8 * 2.0**steps):.0e}")
certified = softlinalg.certified_ridge_inverse(np.diag(s), 1e-4)
ax.semilogx(s, s * np.diag(certified.value), "k--", label="certified ridge inverse, ridge 1e-4")
ax.set(xlabel="singular value, relative to the largest", ylabel="singular value x its inverse")
ax.set_title("What k Newton-Raphson steps invert")
ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
ax.grid(alpha=0.3)
plt.show()

# %%
# A ridge is a filter as well, but one that was asked for: s / (s + ridge), whatever the number of steps.
