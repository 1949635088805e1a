"""Models as ONNX files, for images or sequences of any size and any batch. Needs the extra ``onnx``.

ONNX knows neither inverses nor Cholesky factors: in what is exported the landmark matrices are inverted by Newton-Raphson steps.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from softlinalg import _inputs
from softlinalg._filters import newton_raphson_steps
from softlinalg._settings import shown, whole_number
from softlinalg.errors import ConvergenceError, ParameterError
from softlinalg.torch.landmark_attention import LandmarkAttention

__all__ = ["ExportReport", "export_onnx", "exportable"]

M = TypeVar("M", bound=nn.Module)

SIDE = 32
"""Sides of images are multiples of the stride of the last stage, and at least `SMALLEST`."""
MOST_LANDMARKS = 784
"""Supposed where their number follows from the input: 49 at 224 pixels are 784 at 896."""
SMALLEST, LARGEST = 128, 4096


class ExportReport(NamedTuple):
    """What `export_onnx` found when it ran the file."""

    path: str
    sizes: tuple[tuple[int, ...], ...]
    """Shapes of the inputs it was run on."""
    errors: tuple[float, ...]
    """Largest difference to the model, relative to its largest output, for each."""

    def __str__(self) -> str:
        lines = [f"{'x'.join(map(str, size))}: {error:.1e}" for size, error in zip(self.sizes, self.errors, strict=True)]
        return "\n".join([self.path, "input, difference to the model", *lines])


def exportable(model: M, *, steps: int | None = None) -> M:
    """A copy of a model in evaluation mode, whose landmark matrices are inverted by products alone.

    Parameters
    ----------
    model : Module
        With `SoftAttention` in it, at any depth.
    steps : int, optional
        Of the Newton-Raphson iteration, for inverses that were "certified" or "exact". Default: as many as converge whatever the input,
        which the number m of landmarks and the ridge tell, as the condition is at most (m + ridge) / ridge: 28 for 49 landmarks and the
        ridge of 0.01, 32 for 196. Where m follows from the input ("conv", landmarks="ratio") 784 are supposed: 36. Published inverses
        keep their steps.

    Returns
    -------
    Module
        Same weights, copied.
    """
    if steps is not None:
        whole_number(steps, func="exportable", name="steps", minimum=1, remedy="None takes as many as converge.")
    if not isinstance(model, nn.Module):
        message = f"exportable: model must be a module; got {shown(model)}. Build one, such as soft_tiny()."
        raise ParameterError(message)
    copied = copy.deepcopy(model).eval()
    for module in copied.modules():
        if isinstance(module, LandmarkAttention) and module.choice.inverse != "published":
            choice = module.choice
            enough = steps or _steps_that_converge(module)
            module.choice = choice._replace(inverse="published", steps=enough, ridge=choice.resolved_ridge)
    return copied


def _steps_that_converge(module: LandmarkAttention) -> int:
    """Steps after which float32 has no better inverse of W + ridge I, W a kernel matrix with a unit diagonal: its norm is at most m."""
    count = module.landmarks if isinstance(module.landmarks, int) and module.sampler_name != "conv" else MOST_LANDMARKS
    ridge = module.choice.resolved_ridge
    condition = (count + ridge) / ridge if ridge > 0 else math.inf
    return newton_raphson_steps(min(condition, 1e7), 1e-7, scale=1.8)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Tensor | None = None,
    *,
    dynamic: Sequence[int] | None = None,
    steps: int | None = None,
    tol: float = 1e-4,
) -> ExportReport:
    """Write a model as an ONNX file and run it with onnxruntime beside the model, at three sizes.

    Parameters
    ----------
    model : Module
        A backbone, or any module of one tensor with `SoftAttention` in it.
    path : path
        Of the file.
    example : Tensor, optional
        An input. Default: images (2, in_chans, 256, 224).
    dynamic : sequence of int, optional
        Axes of the input that are left open. Default: all but the second for images (4 axes), the first two for sequences (3 axes).
    steps : int, optional
        See `exportable`.
    tol : float, default 1e-4
        Difference to the model that is allowed, relative to its largest output.

    Returns
    -------
    ExportReport

    Raises
    ------
    ConvergenceError
        If the file differs by more; its `info` is the report.
    ParameterError

    Notes
    -----
    Open sides of images are multiples of 32 from 128 to 4096. The file has the landmarks of a square grid (7 x 7 for 49); the model has
    the same for images that are nearly square, and chooses other cells for the others. TorchScript is not offered.
    """
    func = "export_onnx"
    for package in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            message = f'{func}: {package} is needed; it is not installed. Run pip install "softlinalg[onnx]".'
            raise ImportError(message)
    limit = _inputs.real_scalar(tol, func=func, name="tol")
    target = Path(path)
    if target.suffix != ".onnx":
        message = f"{func}: path must end in .onnx; got {target.name[-60:]!r}. Change the extension."
        raise ParameterError(message)
    copied = exportable(model, steps=steps)
    if example is None:
        parameter = next(copied.parameters())
        example = torch.randn(2, getattr(copied, "in_chans", 3), 256, 224, dtype=parameter.dtype, device=parameter.device)
    axes = _axes(func, example, dynamic)
    shapes = (_shapes(example, axes),)
    # Given a module, torch.onnx would try other ways to trace it where this one fails: minutes, and the message of the last of them.
    traced = torch.export.export(copied, (example,), dynamic_shapes=shapes, strict=False)
    program = torch.onnx.export(traced, (example,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    assert program is not None
    program.save(target)
    report = _compared(copy.deepcopy(model).eval(), target, example, axes)
    if not max(report.errors) <= limit:
        worst = max(report.errors)
        message = f"{func}: the file must give the model's numbers to tol={limit:.0e}; got a difference of {worst:.1e}. Take more steps."
        raise ConvergenceError(message, report)
    return report


def _axes(func: str, example: Tensor, dynamic: Sequence[int] | None) -> tuple[int, ...]:
    if dynamic is None:
        return (0, 2, 3) if example.ndim == 4 else (0, 1)[: example.ndim]
    axes = tuple(dynamic)
    if not all(isinstance(axis, int) and 0 <= axis < example.ndim for axis in axes):
        message = f"{func}: dynamic must hold axes of the input, from 0 to {example.ndim - 1}; got {axes}. The default is (0, 2, 3)."
        raise ParameterError(message)
    return axes


def _is_side(example: Tensor, axis: int) -> bool:
    return example.ndim == 4 and axis >= 2


def _shapes(example: Tensor, axes: Sequence[int]) -> dict[int, Any]:
    """What torch.export is told of the open axes."""
    names = {0: "batch", 1: "tokens"} if example.ndim == 3 else {0: "batch", 2: "rows", 3: "columns"}
    shapes: dict[int, Any] = {}
    for axis in axes:
        name = names.get(axis, f"axis{axis}")
        if _is_side(example, axis):
            shapes[axis] = SIDE * torch.export.Dim(f"{name}_by_{SIDE}", min=SMALLEST // SIDE, max=LARGEST // SIDE)
        else:
            # torch.export takes one for a constant; the file knows no such bounds.
            shapes[axis] = torch.export.Dim(name, min=2, max=2**12 if axis == 0 else 2**20)
    return shapes


def _compared(model: nn.Module, path: Path, example: Tensor, axes: Sequence[int]) -> ExportReport:
    """Differences at the size of the example, a smaller and a larger one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    sizes: list[tuple[int, ...]] = []
    errors: list[float] = []
    for change in (0, -1, 1):
        shape = list(example.shape)
        for axis in axes:
            step = SIDE if _is_side(example, axis) else max(1, shape[axis] // 3)
            shape[axis] = max(SMALLEST if _is_side(example, axis) else 1, shape[axis] + change * step)
        generator = torch.Generator().manual_seed(len(sizes))
        x = torch.randn(shape, generator=generator).to(example)
        with torch.no_grad():
            expected = model(x).cpu().numpy()
        found = session.run(None, {name: x.cpu().numpy()})[0]
        sizes.append(tuple(shape))
        errors.append(float(np.abs(found - expected).max() / np.abs(expected).max()))
    return ExportReport(str(path), tuple(sizes), tuple(errors))
