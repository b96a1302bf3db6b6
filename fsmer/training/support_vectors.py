"""Support vector machines of many episodes in their dual form, which can be differentiated."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["svm_weights"]

# Rounds of projected steps, each followed by the closed form on the classes that are then active.
ROUNDS, STEPS = 8, 100
# Part of the mean diagonal that is added to the products of embeddings: copies of a clip would make them singular.
RIDGE = 1e-6
# Of the upper bound; what is below counts as zero.
ZERO = 1e-6


def svm_weights(embeddings: Tensor, members: Tensor, upper: float) -> Tensor:
    """Weights (E, C, D) of multi-class support vector machines (Crammer and Singer 2001; Lee et al. 2019, eq. 8).

    The machine of an episode is ``w_k = sum_n a_nk x_n``, and its dual, with ``b_nk = upper * [y_n = k] - a_nk``, asks
    for rows of b that are not negative and sum to `upper`. Projected gradient steps find which are zero; the others
    follow from linear equations, which are solved once more so that the result can be differentiated with respect to
    the embeddings. While the same ones are zero, that is the exact derivative.

    Parameters
    ----------
    embeddings : Tensor of shape (E, S, D)
    members : Tensor of shape (E, C, S)
        1 where a clip is of a class; a column of zeros is padding.
    upper : float
        C of the machine: the weight of errors.
    """
    labels = members.transpose(1, 2).to(torch.float64)
    present = labels.sum(dim=2)
    own = embeddings.to(torch.float64) * present[..., None]
    products = torch.bmm(own, own.transpose(1, 2))
    diagonal = products.diagonal(dim1=1, dim2=2).detach()
    ridge = RIDGE * diagonal.mean(dim=1) + 1e-12
    products = products + torch.diag_embed(ridge[:, None].expand_as(diagonal))
    with torch.no_grad():
        active = _active(products, labels, upper)
    slack = _on_active(products, labels, active, upper)
    weights = torch.bmm((upper * labels - slack).transpose(1, 2), own)
    return weights.to(embeddings.dtype)


def _active(products: Tensor, labels: Tensor, upper: float) -> Tensor:
    """Which entries of b, (E, S, C), are above zero at the optimum."""
    slack = labels * 0 + upper / labels.shape[2]
    step = 1 / torch.linalg.matrix_norm(products, ord=2)[:, None, None]
    best = slack > 0
    ahead, momentum = slack, 1.0
    for _ in range(ROUNDS):
        for _ in range(STEPS):
            moved = _on_simplex(ahead - step * _gradient(products, labels, ahead, upper), upper)
            following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
            ahead = moved + (momentum - 1) / following * (moved - slack)
            slack, momentum = moved, following
        best = slack > ZERO * upper
        exact = _on_active(products, labels, best, upper)
        gradient = _gradient(products, labels, exact, upper)
        # At the optimum all that is active has the least gradient of its row.
        level = gradient.masked_fill(~best, -torch.inf).amax(dim=2, keepdim=True)
        settled = (exact >= -ZERO * upper).all() and (gradient >= level - 1e-6).all()
        if settled:
            break
    return best


def _gradient(products: Tensor, labels: Tensor, slack: Tensor, upper: float) -> Tensor:
    """Of the dual with respect to b: 1 - [y_n = k] + score of the wrong class, up to a constant a row."""
    return labels - torch.bmm(products, upper * labels - slack)


def _on_active(products: Tensor, labels: Tensor, active: Tensor, upper: float) -> Tensor:
    """The optimum over entries of b, (E, S, C), that are `active`; the others are zero."""
    episodes, clips, way = labels.shape
    free = active.flatten(1).to(products.dtype)
    # Stationarity: K (b - upper y) + y - level = 0 for active entries; every row of b sums to `upper`.
    eye = torch.eye(way, dtype=products.dtype, device=products.device)
    system = torch.einsum("est,kl->esktl", products, eye).reshape(episodes, clips * way, clips * way)
    system = system * free[:, :, None] * free[:, None, :] + torch.diag_embed(1 - free)
    rows = torch.eye(clips, dtype=products.dtype, device=products.device).repeat_interleave(way, dim=1)
    rows = rows * free[:, None, :]
    corner = torch.zeros(episodes, clips, clips, dtype=products.dtype, device=products.device)
    whole = torch.cat([torch.cat([system, -rows.transpose(1, 2)], dim=2), torch.cat([rows, corner], dim=2)], dim=1)
    right = (upper * torch.bmm(products, labels) - labels).flatten(1) * free
    right = torch.cat(
        [right, torch.full((episodes, clips), upper, dtype=products.dtype, device=products.device)], dim=1
    )
    found = torch.linalg.solve(whole, right)
    return found[:, : clips * way].unflatten(1, (clips, way))


def _on_simplex(values: Tensor, total: float) -> Tensor:
    """The nearest rows that are not negative and sum to `total` (Duchi et al. 2008)."""
    ordered = values.sort(dim=-1, descending=True).values
    excess = ordered.cumsum(dim=-1) - total
    places = torch.arange(1, values.shape[-1] + 1, dtype=values.dtype, device=values.device)
    count = (ordered * places > excess).sum(dim=-1, keepdim=True)
    return (values - excess.gather(-1, count - 1) / count).clamp_min(0)
