"""Gaussian processes of GPyTorch on landmarks, and kernels of GPyTorch in the functions of softlinalg (extra `gpytorch`)."""

from __future__ import annotations

from typing import Any, Self

import gpytorch
import torch
from linear_operator import to_dense
from linear_operator.operators import DiagLinearOperator, LowRankRootLinearOperator, MatmulLinearOperator
from torch import Tensor

from softlinalg import _inputs
from softlinalg._landmarks import select_landmarks
from softlinalg._typing import RngLike
from softlinalg.errors import ShapeError
from softlinalg.torch.autograd import landmark_inverse

__all__ = ["NystromKernel", "as_kernel"]


class _Kernel:
    """A kernel of GPyTorch with the two methods that the package asks of one."""

    def __init__(self, kernel: gpytorch.kernels.Kernel) -> None:
        self.kernel = kernel

    def __call__(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            dense: Tensor = to_dense(self.kernel(x, x if y is None else y))
            return (dense + dense.mT) / 2 if y is None else dense

    def diagonal(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            diagonal: Tensor = to_dense(self.kernel(x, x, diag=True))
            return diagonal

    def __repr__(self) -> str:
        return f"as_kernel({type(self.kernel).__name__})"


def as_kernel(kernel: gpytorch.kernels.Kernel) -> _Kernel:
    """A kernel of GPyTorch for `softlinalg.nystrom`, `select_landmarks`, `solve_kernel_ridge` and everything else that takes a kernel.

    Parameters
    ----------
    kernel : gpytorch.kernels.Kernel
        Its parameters as they are now; nothing is recorded for gradients. Type and device should be those of the points.

    Returns
    -------
    Kernel

    Examples
    --------
    >>> import gpytorch, softlinalg, torch
    >>> from softlinalg.torch.gpytorch import as_kernel
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(500, 2, dtype=torch.float64)
    >>> kernel = gpytorch.kernels.MaternKernel(nu=2.5).double()
    >>> bool(softlinalg.nystrom(x, as_kernel(kernel), rank=60, rng=0).relative_trace_error < 0.05)
    True
    """
    return _Kernel(kernel)


class NystromKernel(gpytorch.kernels.Kernel):  # type: ignore[misc]
    r"""Nyström approximation of a kernel of GPyTorch, for Gaussian processes in linear time.

    Parameters
    ----------
    base_kernel : gpytorch.kernels.Kernel
        The kernel k; its parameters are learned as ever.
    landmarks : Tensor, shape (m, d)
        Points on which the approximation stands. See `select`.
    ridge : float, default 1e-6
        Added to the diagonal of W = k(L, L) before inversion, in units of its largest diagonal entry.
    learn_landmarks : bool, default False
        Landmarks are a parameter, moved by the optimizer.

    Raises
    ------
    ShapeError
        Landmarks that are not a matrix.
    ConvergenceError
        In a forward pass: W cannot be inverted to a certified error.

    Notes
    -----
    With C = k(x, L), F = C chol((W + ridge I)^-1): the covariance is F F^T + diag(k(x_i, x_i) - F_i F_i^T), the second term where both
    sides are the same points: the fully independent training conditional [1]_, whose variances are those of k far from all landmarks,
    where the first term alone would be certain of zero. The inverse is the certified one, in float64, with its analytic gradient.
    GPyTorch solves with it by Woodbury's identity: O(n m^2 + m^3) time, O(n m) memory.

    References
    ----------
    .. [1] Quinonero-Candela & Rasmussen, A unifying view of sparse approximate Gaussian process regression (2005), section 6.

    Examples
    --------
    >>> import gpytorch, torch
    >>> from softlinalg.torch.gpytorch import NystromKernel
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(400, 2)
    >>> kernel = NystromKernel.select(gpytorch.kernels.RBFKernel(), x, 40, rng=0)
    >>> bool(kernel.relative_trace_error(x) < 1e-3)
    True
    """

    has_lengthscale = False

    def __init__(
        self, base_kernel: gpytorch.kernels.Kernel, landmarks: Tensor, *, ridge: float = 1e-6, learn_landmarks: bool = False
    ) -> None:
        super().__init__()
        if not isinstance(landmarks, Tensor) or landmarks.ndim != 2 or landmarks.shape[0] == 0:
            got = tuple(landmarks.shape) if isinstance(landmarks, Tensor) else type(landmarks).__name__
            message = (
                f"NystromKernel: landmarks must be a tensor of shape (m, d); got {got}. Pass m >= 1 points, or use NystromKernel.select."
            )
            raise ShapeError(message)
        self.base_kernel = base_kernel
        self.ridge: float = _inputs.real_scalar(ridge, func="NystromKernel", name="ridge", strict=False)
        if learn_landmarks:
            self.register_parameter("landmarks", torch.nn.Parameter(landmarks.detach().clone()))
        else:
            self.register_buffer("landmarks", landmarks.detach().clone())

    @classmethod
    def select(
        cls,
        base_kernel: gpytorch.kernels.Kernel,
        x: Tensor,
        count: int,
        *,
        method: str = "rpcholesky+lloyd",
        rng: RngLike = None,
        ridge: float = 1e-6,
        learn_landmarks: bool = False,
    ) -> Self:
        """The approximation on landmarks that `softlinalg.select_landmarks` chooses among the rows of `x` for this kernel.

        Parameters
        ----------
        base_kernel, ridge, learn_landmarks
            As for the class.
        x : Tensor, shape (n, d)
        count : int
            Landmarks.
        method, rng
            As in `softlinalg.select_landmarks`.
        """
        chosen = select_landmarks(x.detach(), count, method=method, kernel=as_kernel(base_kernel), rng=rng)
        return cls(base_kernel, chosen, ridge=ridge, learn_landmarks=learn_landmarks)

    def _root(self, x: Tensor) -> Tensor:
        """F, (..., n, m)."""
        w = to_dense(self.base_kernel(self.landmarks, self.landmarks)).double()
        scale = w.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
        inverse = landmark_inverse((w + w.mT) / (2 * scale), ridge=self.ridge)
        factor = torch.linalg.cholesky(inverse) / scale.sqrt()
        cross: Tensor = to_dense(self.base_kernel(x, self.landmarks))
        root: Tensor = (cross.double() @ factor).to(cross.dtype)
        return root

    def _left_out(self, x: Tensor, root: Tensor) -> Tensor:
        """What the approximation leaves out of the diagonal, (..., n); at least zero but for rounding."""
        whole: Tensor = to_dense(self.base_kernel(x, x, diag=True))
        return (whole - (root * root).sum(-1)).clamp_min(0)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Any:  # what GPyTorch calls
        """The covariance, as a linear operator; its diagonal where `diag`."""
        if diag and torch.equal(x1, x2):
            return to_dense(self.base_kernel(x1, x2, diag=True))
        left = self._root(x1)
        if torch.equal(x1, x2):
            return LowRankRootLinearOperator(left) + DiagLinearOperator(self._left_out(x1, left))
        right = self._root(x2)
        return (left * right).sum(-1) if diag else MatmulLinearOperator(left, right.mT)

    def relative_trace_error(self, x: Tensor) -> float:
        """Share of the trace of k(x, x) that the low-rank term leaves out, exact but for rounding."""
        with torch.no_grad():
            whole = to_dense(self.base_kernel(x, x, diag=True)).double()
            return float(self._left_out(x, self._root(x)).double().sum() / whole.sum())

    def num_outputs_per_input(self, x1: Tensor, x2: Tensor) -> int:  # what GPyTorch calls
        """As the base kernel."""
        count: int = self.base_kernel.num_outputs_per_input(x1, x2)
        return count
