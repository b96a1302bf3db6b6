"""Ridge regression in closed form, batched and differentiable."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ridge_weights"]


def ridge_weights(values: Tensor, targets: Tensor, penalty: float | Tensor) -> Tensor:
    """Weights W that minimise ``||X W - Y||^2 + penalty * ||W||^2``, one matrix an episode.

    With fewer rows than columns it solves the Woodbury form ``X^T (X X^T + penalty I)^-1 Y`` (Bertinetto et al. 2019,
    eq. 6), otherwise ``(X^T X + penalty I)^-1 X^T Y`` (eq. 4), which is the same matrix. Rows of zeros count for
    nothing. Gradients reach all three arguments, and can be differentiated again.

    Parameters
    ----------
    values : Tensor of shape (..., S, D)
        X, one row a clip; a column of ones stands for a bias.
    targets : Tensor of shape (..., S, C)
        Y, such as one-hot labels; zero in rows that are padding.
    penalty : float or scalar Tensor
        Above 0.

    Returns
    -------
    Tensor of shape (..., D, C)

    Examples
    --------
    >>> import torch
    >>> ridge_weights(torch.tensor([[2.0]]), torch.tensor([[1.0]]), 1.0).item()
    0.4000000059604645
    """
    rows, columns = values.shape[-2:]
    turned = values.transpose(-1, -2)
    woodbury = rows < columns
    system = values @ turned if woodbury else turned @ values
    system = system + penalty * torch.eye(min(rows, columns), dtype=values.dtype, device=values.device)
    factor = torch.linalg.cholesky(system)
    if woodbury:
        return turned @ torch.cholesky_solve(targets, factor)
    return torch.cholesky_solve(turned @ targets, factor)
