"""
Kernel ridge regression with deviations
=======================================

`NystromRidge` chooses the ridge by itself, and says where it does not know: the band is two deviations of the function, which
grow where there are no data.
"""

import matplotlib.pyplot as plt
import numpy as np

from softlinalg.sklearn import NystromRidge

rng = np.random.default_rng(0)
x = np.concatenate([rng.uniform(0, 4, 300), rng.uniform(6, 10, 300)])[:, None]
y = np.sin(2 * x[:, 0]) + 0.3 * x[:, 0] + 0.3 * rng.normal(size=600)

model = NystromRidge(length_scale=0.8, rank=60, selection="loo", random_state=0).fit(x, y)
new = np.linspace(-1.5, 11.5, 400)[:, None]
mean, deviation = model.predict(new, return_std=True)

fig, ax = plt.subplots(figsize=(7.5, 4), layout="constrained")
ax.plot(x[:, 0], y, ".", color="0.6", markersize=4, label="data")
ax.plot(new[:, 0], np.sin(2 * new[:, 0]) + 0.3 * new[:, 0], "k--", linewidth=1, label="truth")
ax.plot(new[:, 0], mean, "C0", label="prediction")
ax.fill_between(new[:, 0], mean - 2 * deviation, mean + 2 * deviation, color="C0", alpha=0.25, label="two deviations")
ax.set(xlabel="x", ylabel="y", title=f"ridge {model.ridge_:.2g} by leave-one-out, {model.error_:.1e} of the trace left out")
ax.legend(loc="upper left")
plt.show()
