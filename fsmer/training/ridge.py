"""Ridge regression of many episodes in closed form, which can be differentiated."""

import torch
from torch import Tensor

__all__ = ["ridge_weights"]


def ridge_weights(embeddings: Tensor, targets: Tensor, regularisation: Tensor | float) -> Tensor:
    """Weights (E, D, C) by which embeddings (E, S, D) come nearest to targets (E, S, C); rows of zeros are padding.

    In the form of Woodbury, X' (X X' + l I)^-1 Y, since a support has fewer clips than an embedding has numbers
    (Bertinetto et al. 2019, eq. 6).
    """
    present = targets.sum(dim=2, keepdim=True)
    own = embeddings * present
    products = torch.bmm(own, own.transpose(1, 2))
    inverse = torch.linalg.solve(products + regularisation * torch.eye(products.shape[1]).to(products), targets)
    return torch.bmm(own.transpose(1, 2), inverse)
