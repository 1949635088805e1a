"""
Landmarks on an image
=====================

Every pixel is a point: its place and its color. Landmarks chosen by randomly pivoted Cholesky go where the picture changes; a
regular grid cannot know. Below, the colors are fitted by kernel ridge regression in the approximation of rank 150. As the colors are
also part of the points, this is no prediction: it shows how well each set of landmarks spans the picture.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_image

import softlinalg

image = load_sample_image("flower.jpg")[::6, ::6].astype(np.float64) / 255.0
rows, columns, _ = image.shape
place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).reshape(-1, 2) / columns
color = image.reshape(-1, 3)
x = np.concatenate([place, color], axis=1)  # similar pixels are near in place and in color
kernel = softlinalg.Gaussian(0.15)

grid = np.stack(np.meshgrid(np.linspace(0, rows - 1, 10), np.linspace(0, columns - 1, 15), indexing="ij"), axis=-1).reshape(-1, 2)
regular = (grid[:, 0].round() * columns + grid[:, 1].round()).astype(np.int64)
chosen = softlinalg.select_landmark_indices(x, 150, method="rpcholesky", kernel=kernel, rng=0)

fig, axes = plt.subplots(2, 2, figsize=(8.5, 6.2), layout="constrained")
for ax, below, name, index in ((*axes[:, 0], "regular grid", regular), (*axes[:, 1], "randomly pivoted Cholesky", chosen)):
    d = softlinalg.nystrom(x, kernel, landmarks=index)
    rebuilt = d.cross_matmul(x, d.solve(color - color.mean(axis=0), ridge=1e-2)) + color.mean(axis=0)
    ax.imshow(image)
    ax.scatter(place[index, 1] * columns, place[index, 0] * columns, s=14, c="white", edgecolors="black", linewidths=0.6)
    ax.set_title(f"150 landmarks: {name}\n{d.relative_trace_error:.1%} of the trace left out", fontsize=10)
    below.imshow(rebuilt.reshape(image.shape).clip(0, 1))
    below.set_title(f"fitted: error {np.sqrt(np.mean((rebuilt - color) ** 2)):.3f}", fontsize=10)
for ax in axes.flat:
    ax.set_axis_off()
plt.show()
