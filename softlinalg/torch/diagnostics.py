"""How well the landmark matrices of a model were inverted, and pictures of what its attention sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from softlinalg import Gaussian, certified_ridge_inverse
from softlinalg._settings import shown
from softlinalg.errors import ParameterError, ShapeError
from softlinalg.torch.autograd import landmark_inverse
from softlinalg.torch.functional import soft_attention
from softlinalg.torch.inputs import checked_tensors
from softlinalg.torch.landmarks import Grid, PoolLandmarks, landmark_grid

if TYPE_CHECKING:
    from softlinalg.torch.attention import SoftAttention
    from softlinalg.torch.landmark_attention import LandmarkAttention

__all__ = ["AttentionDiagnostics", "attention_map", "diagnose", "plot_attention"]


@dataclass(frozen=True, kw_only=True)
class AttentionDiagnostics:
    """How the landmark matrices W of a batch were inverted; every field has shape (batch, heads).

    `str` gives a table, one row per head, with the worst sample of the batch.
    """

    error_bound: Tensor
    """Certified: |X - (W + ridge I)^-1|_F is at most this times |(W + ridge I)^-1|_F. Infinite where nothing is certain."""
    steps: Tensor
    """Steps of the iteration; 0 for direct methods."""
    condition: Tensor
    """Of W + ridge I: largest over smallest eigenvalue."""
    rank: Tensor
    """Eigenvalues of W above rounding in the data type of the landmarks, count * eps * largest."""
    effective_rank: Tensor
    """Sum of s / (s + ridge) over the eigenvalues s of W: directions that the ridge leaves."""
    landmarks: int
    """Size of W."""
    inverse: str
    """Name of the inverse."""

    def __str__(self) -> str:
        lines = [f"inverse={self.inverse}, {self.landmarks} landmarks, worst of a batch of {self.steps.shape[0]}"]
        lines.append(f"{'head':>4} {'error <=':>9} {'steps':>5} {'condition':>9} {'rank':>5} {'effective':>9}")
        for head in range(self.steps.shape[1]):
            bound, condition = float(self.error_bound[:, head].max()), float(self.condition[:, head].max())
            rank, effective = int(self.rank[:, head].min()), float(self.effective_rank[:, head].min())
            lines.append(f"{head:>4} {bound:>9.1e} {int(self.steps[:, head].max()):>5} {condition:>9.1e} {rank:>5} {effective:>9.1f}")
        return "\n".join(lines)


class ModelDiagnostics(dict[str, AttentionDiagnostics]):
    """`AttentionDiagnostics` by the name of the module; `str` gives a table with the worst head of each."""

    def __str__(self) -> str:
        width = max((len(name) for name in self), default=6)
        lines = [f"{'module':<{width}} {'landmarks':>9} {'error <=':>9} {'steps':>5} {'condition':>9} {'rank':>5} {'effective':>9}"]
        for name, found in self.items():
            numbers = f"{found.landmarks:>9} {float(found.error_bound.max()):>9.1e} {int(found.steps.max()):>5}"
            ranks = f"{float(found.condition.max()):>9.1e} {int(found.rank.min()):>5} {float(found.effective_rank.min()):>9.1f}"
            lines.append(f"{name:<{width}} {numbers} {ranks}")
        return "\n".join(lines)


def diagnose(model: nn.Module) -> ModelDiagnostics:
    """Diagnostics of all softmax-free attention in a model, from its last forward pass.

    Parameters
    ----------
    model : Module
        That has been called outside torch.compile and torch.func.

    Returns
    -------
    dict of str to AttentionDiagnostics
        In the order of the modules, without those that used the full kernel; print it.

    Raises
    ------
    ParameterError
        If no module has landmarks from a last pass.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import SoftAttention, diagnose
    >>> layer = SoftAttention(16, 2, landmarks=9)
    >>> _ = layer(torch.randn(1, 64, 16), (8, 8))
    >>> found = diagnose(layer)
    >>> [bool(entry.error_bound.max() < 1e-9) for entry in found.values()]
    [True]
    """
    modules = _modules(model, "diagnose")
    used = {name: module for name, module in modules.items() if module.attn._last_landmarks is not None}
    return ModelDiagnostics({name: module.diagnostics() for name, module in (used or modules).items()})


@torch.no_grad()
def diagnose_landmarks(landmarks: Tensor, attn: LandmarkAttention) -> AttentionDiagnostics:
    """Invert the kernel matrix of landmarks (batch, heads, count, head_dim) as the module does, and measure the result."""
    choice = attn.choice
    wide = landmarks.double() if landmarks.device.type != "mps" else landmarks.float()
    w = Gaussian(landmarks.shape[-1] ** 0.25)(wide)
    ridge = choice.resolved_ridge
    value = landmark_inverse(w, **{**choice.arguments(), "normalization": None, "ridge": ridge})
    reference = certified_ridge_inverse(w, ridge, check_finite=False)
    count = w.shape[-1]
    slack = count**0.5 * reference.error_bound
    norm = torch.linalg.matrix_norm(reference.value) - slack
    bound = torch.where(norm > 0, (torch.linalg.matrix_norm(value - reference.value) + slack) / norm, torch.inf)
    eigenvalues = torch.linalg.eigvalsh(w).clamp_min(0)
    largest = eigenvalues[..., -1:]
    steps = torch.zeros_like(reference.steps)
    if choice.inverse == "published":
        steps = torch.full_like(steps, choice.steps)
    elif choice.inverse == "certified":
        steps = reference.steps
    damped = eigenvalues + ridge
    return AttentionDiagnostics(
        error_bound=bound.nan_to_num(nan=torch.inf, posinf=torch.inf),
        steps=steps,
        condition=damped[..., -1] / damped[..., 0],
        rank=(eigenvalues > count * torch.finfo(landmarks.dtype).eps * largest).sum(-1),
        effective_rank=(eigenvalues / damped).nan_to_num(nan=0.0).sum(-1),
        landmarks=count,
        inverse=choice.name,
    )


# --------------------------------------------------------------------------------------------------- pictures
def _modules(model: nn.Module, func: str) -> dict[str, SoftAttention]:
    from softlinalg.torch.attention import SoftAttention

    if not isinstance(model, nn.Module):
        message = f"{func}: model must be a module of PyTorch; got {shown(model)}. Pass a SoftBackbone, or a model that holds one."
        raise ParameterError(message)

    return {name: module for name, module in model.named_modules() if isinstance(module, SoftAttention)}


@torch.no_grad()
def attention_map(model: nn.Module, image: Tensor, *, layer: str | int = 0, query: tuple[float, float] = (0.5, 0.5)) -> dict[str, Any]:
    """What one query of an image attends to, in one layer of a backbone.

    Parameters
    ----------
    model : Module
        A backbone that takes `image`; it is run once.
    image : Tensor, shape (channels, rows, columns)
        As the model takes it.
    layer : str or int, default 0
        Name of a `SoftAttention` in the model, or its number in the order of `named_modules`.
    query : (float, float), default the middle
        Place of the query in the image, from (0, 0), top left, to (1, 1).

    Returns
    -------
    dict
        "attention" (heads, rows, columns): the row of the attention matrix that belongs to the query. Entries may be negative:
        the matrix is an approximation. "similarity" (heads, landmarks): kernel of the query with each landmark. "places"
        (heads, landmarks, 2): row and column in the grid of each landmark, the middle of its cell, or the token most like it
        where landmarks have no cells. "query": row and column of the query; "grid"; "layer", its name.

    Examples
    --------
    >>> import torch
    >>> from softlinalg.torch import SoftBackbone, attention_map
    >>> _ = torch.manual_seed(0)
    >>> model = SoftBackbone((16, 16, 16, 16), (1, 1, 1, 1), (1, 1, 1, 1), landmarks=9, sampler="pool").eval()
    >>> image = torch.randn(3, 64, 64)
    >>> found = attention_map(model, image)
    >>> sorted(found)
    ['attention', 'grid', 'layer', 'places', 'query', 'similarity']
    """
    modules = _modules(model, "attention_map")
    names = list(modules)
    numbered = isinstance(layer, int) and -len(names) <= layer < len(names)
    if not (numbered or (isinstance(layer, str) and layer in modules)):
        message = f"attention_map: layer must be a SoftAttention of the model ({len(names)} there); got {shown(layer)}. See named_modules."
        raise ParameterError(message)
    (image,) = checked_tensors("attention_map", image=image)
    if image.ndim != 3 or not bool(torch.isfinite(image).all()):
        message = f"attention_map: image must be (channels, rows, columns), finite; got {tuple(image.shape)}. Pass one image."
        raise ShapeError(message)
    places = query if isinstance(query, tuple | list) and len(query) == 2 else (None, None)
    if not all(isinstance(place, int | float) and 0 <= place <= 1 for place in places):
        message = f"attention_map: query must be a place, query in [0, 1]^2; got {shown(query)}. The middle is (0.5, 0.5)."
        raise ShapeError(message)
    name = layer if isinstance(layer, str) else names[layer]
    module = modules[name]
    x, grid = _inputs(model, module, image)
    row, column = (min(side - 1, int(place * side)) for place, side in zip(query, grid, strict=True))
    beside = x.shape[1] - grid[0] * grid[1]
    q, token = module.heads(x, module.W_q), beside + row * grid[1] + column
    landmarks = module.attn.find_landmarks(q[:, :, beside:], grid)
    # The attention matrix is symmetric: its row is what it makes of the unit vector of the query.
    unit = torch.zeros_like(q[..., :1])
    unit[:, :, token] = 1
    out = soft_attention(q, unit, landmarks, **module.attn.choice.arguments())[0, :, beside:, 0]
    kernel = Gaussian(q.shape[-1] ** 0.25)
    return {
        "attention": out.reshape(-1, *grid),
        "similarity": kernel(q[0, :, token : token + 1], landmarks[0])[:, 0],
        "places": _places(module.attn, kernel(landmarks[0], q[0, :, beside:]), grid),
        "query": (row, column),
        "grid": grid,
        "layer": name,
    }


def _inputs(model: nn.Module, module: nn.Module, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Tokens and grid that a layer of the model sees."""
    seen: list[Any] = []
    handle = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    was_training = model.training
    try:
        model.eval()(image[None])
    finally:
        handle.remove()
        model.train(was_training)
    x, grid = seen[0]
    return x, grid


def _places(attn: LandmarkAttention, likeness: Tensor, grid: Grid) -> Tensor:
    """Rows and columns (heads, landmarks, 2) on the grid."""
    heads, count, _ = likeness.shape
    cells = _cells(attn, grid)
    if cells is None or cells[0] * cells[1] != count:
        token = likeness.argmax(-1)
        return torch.stack([token // grid[1], token % grid[1]], -1).double()
    device = likeness.device
    rows, columns = (
        (torch.arange(number, dtype=torch.float64, device=device) + 0.5) * side / number - 0.5
        for number, side in zip(cells, grid, strict=True)
    )
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).reshape(1, count, 2).expand(heads, -1, -1)


def _cells(attn: LandmarkAttention, grid: Grid) -> Grid | None:
    """The grid of cells over which landmarks are averages, if they are."""
    if isinstance(attn.sampler, PoolLandmarks):
        return attn.sampler.cells(grid)
    if attn.sampler is not None:
        return None
    if not isinstance(attn.landmarks, str):
        return landmark_grid(attn.landmarks, grid)
    ratio = attn.ratio or 1
    return tuple(max(1, side // ratio) for side in grid)


def plot_attention(
    model: nn.Module,
    image: Tensor,
    *,
    layer: str | int = 0,
    query: tuple[float, float] = (0.5, 0.5),
    head: int | None = None,
    background: Any = None,
    axes: Any = None,
) -> Any:
    """Draw the landmarks of a layer on an image, and what one query attends to.

    Parameters
    ----------
    model, image, layer, query
        As in `attention_map`.
    head : int, optional
        One head; default all, one column of panels each.
    background : array, shape (rows, columns) or (rows, columns, 3), optional
        Picture to draw on; default `image`, scaled to [0, 1].
    axes : array of matplotlib axes, optional
        One per head; default a new figure.

    Returns
    -------
    matplotlib.figure.Figure

    Notes
    -----
    Over the image lies the attention of the query (cross): from its smallest to its largest entry or, where entries are negative,
    blue for these and red for positive ones, with the image shining through the small ones. A circle is a landmark, the larger
    the more like the query. Every head has its own scale. Needs matplotlib.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> import torch
    >>> from softlinalg.torch import SoftBackbone, plot_attention
    >>> _ = torch.manual_seed(0)
    >>> model = SoftBackbone((16, 16, 16, 16), (1, 1, 1, 1), (1, 1, 1, 1), landmarks=9, sampler="pool").eval()
    >>> image = torch.randn(3, 64, 64)
    >>> axes = plot_attention(model, image)
    """
    import matplotlib.pyplot as plt

    found = attention_map(model, image, layer=layer, query=query)
    heads = range(found["attention"].shape[0]) if head is None else [head]
    if axes is None:
        figure, grid_of_axes = plt.subplots(1, len(heads), figsize=(3.2 * len(heads), 4.0), squeeze=False, layout="constrained")
        axes = grid_of_axes[0]
    panels = [axes] if hasattr(axes, "imshow") else list(axes)
    figure = panels[0].figure
    if background is None:
        picture = image.detach().double().cpu()
        picture = (picture - picture.min()) / (picture.max() - picture.min()).clamp_min(1e-12)
        background = picture.permute(1, 2, 0)[..., :3].numpy() if picture.shape[0] >= 3 else picture[0].numpy()
    for panel, number in zip(panels, heads, strict=True):
        drawn = _draw(panel, found, number, background)
        panel.set_title(f"head {number}", fontsize=10)
        figure.colorbar(drawn, ax=panel, location="bottom", shrink=0.9, pad=0.03).ax.tick_params(labelsize=7)
    figure.suptitle(found["layer"], fontsize=10)
    return figure


def _draw(panel: Any, found: Mapping[str, Any], head: int, background: Any) -> Any:
    rows, columns = found["grid"]
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    values = found["attention"][head].double().cpu()
    lowest, highest = float(values.min()), float(values.max())
    most = max(-lowest, highest) or 1.0
    panel.imshow(background, extent=extent, cmap="gray", interpolation="nearest", aspect="equal")
    if lowest < -1e-3 * most:
        strength = (values.abs() / most).clamp(0, 1).numpy() * 0.85
        style: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -most, "vmax": most, "alpha": strength}
    else:
        style = {"cmap": "viridis", "vmin": lowest, "vmax": highest, "alpha": 0.65}
    drawn = panel.imshow(values.numpy(), extent=extent, interpolation="nearest", **style)
    places, similarity = found["places"][head].cpu(), found["similarity"][head].double().cpu()
    sizes = (4 + 60 * similarity / similarity.max().clamp_min(1e-300)).numpy()
    panel.scatter(places[:, 1], places[:, 0], s=sizes, facecolors="none", edgecolors="white", linewidths=1.0)
    row, column = found["query"]
    panel.plot(column, row, marker="x", color="red", markersize=9, markeredgewidth=2.2)
    panel.set_xticks([])
    panel.set_yticks([])
    return drawn
