"""
Attention maps, exact and through landmarks
===========================================

What one query (the cross) of an image attends to. A token is a patch: its place and its mean color. Full Gaussian attention forms
the 2,688 x 2,688 kernel matrix; softmax-free attention goes through landmarks, here means over a grid of cells. The error in the
titles is that of the output for all queries, with the colors as values, as `attention_error` measures it; single maps differ by more than
their sums.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_sample_image

from softlinalg.torch import attention_error, gaussian_attention, soft_attention

image = load_sample_image("china.jpg")[:420, :640].astype(np.float32) / 255.0
rows, columns = 42, 64
patches = image.reshape(rows, 10, columns, 10, 3).mean(axis=(1, 3))
place = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1).astype(np.float32) / columns
tokens = torch.from_numpy(np.concatenate([2.0 * place, 4.0 * patches], axis=-1))  # (rows, columns, 5)
q = tokens.reshape(1, 1, rows * columns, 5)

query = 30 * columns + 12
v = torch.eye(rows * columns)[None, None]  # the values of an identity: attention itself comes out
maps = {"exact": gaussian_attention(q, v)[0, 0, query]}
for side in (4, 8, 14):
    cells = torch.nn.functional.adaptive_avg_pool2d(tokens.permute(2, 0, 1)[None], (side, side))
    landmarks = cells.reshape(1, 1, 5, side * side).transpose(-1, -2)
    error = attention_error(q, tokens[..., 2:].reshape(1, 1, -1, 3), landmarks, rows=None).error.item()
    maps[f"{side * side} landmarks: error {error:.2%}"] = soft_attention(q, v, landmarks)[0, 0, query]

fig, axes = plt.subplots(1, 5, figsize=(13, 2.4), layout="constrained")
axes[0].imshow(image)
axes[0].set_title("image and query", fontsize=9)
for ax, (name, values) in zip(axes[1:], maps.items(), strict=True):
    shown = ax.imshow(values.reshape(rows, columns), vmin=0, vmax=1, extent=(0, 640, 420, 0))
    ax.set_title(name, fontsize=9)
for ax in axes:
    ax.plot(query % columns * 10 + 5, query // columns * 10 + 5, "rx")
    ax.set_axis_off()
fig.colorbar(shown, ax=axes, shrink=0.8)
plt.show()
