"""The first stage of MERAU's training: its action unit detector on clips with annotated action units."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fsmer.backbones.merau import Merau, au_loss
from fsmer.errors import DataError, SpecMismatchError
from fsmer.kernels.noise import Draws
from fsmer.synthetic.flow_maps import ACTION_UNIT_ORDER
from fsmer.training.supervised import action_unit_targets

if TYPE_CHECKING:
    from fsmer.data import ClipSet

__all__ = ["fit_au_detector"]

# Apex frames that are encoded at a time.
FRAMES = 32


def fit_au_detector(
    model: Merau,
    clips: ClipSet,
    *,
    epochs: int = 100,
    learning_rate: float = 0.0012,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Train the detector on frozen codes of the apex frames (MERAU, eq. 1-2 and section IV.B.2); it is frozen after.

    It also measures what the logits are with and without each unit, from which `Merau.class_directions` works.

    Parameters
    ----------
    model : Merau
        Trained in place; only the detector changes.
    clips : ClipSet
        With the medium ``apex`` and annotated action units; clips without an annotation are left out.
    epochs, batch_size : int
        The paper leaves both open.
    learning_rate : float
        Of Adam (the paper names no optimiser); the paper's is 0.0012.
    seed : int
        Of the order of clips and the detector's initial weights.
    progress : callable, optional
        Called with (epochs done, epochs in all).

    Returns
    -------
    list of float
        Mean loss of every epoch.

    Raises
    ------
    DataError
        No clip, or only one, has annotated action units.
    SpecMismatchError
        The clips hold no apex frames of the model's size.
    """
    spec = model.input_specs[1]
    if spec.kind not in clips.specs:
        held = ", ".join(held.describe() for held in clips.specs.values()) or "no media"
        raise SpecMismatchError(f"the clips hold {held}, but the detector reads {spec.describe()}; prepare that media.")
    clips.specs[spec.kind].check_feeds(spec, who="the detector")
    targets = action_unit_targets(clips)
    rows = np.zeros(0, np.int64) if targets is None else np.flatnonzero(~targets.isnan().any(dim=1).numpy())
    if targets is None or len(rows) < 2:
        raise DataError(
            f"{len(rows)} of {len(clips)} clips have annotated action units, but the detector learns from two or more; "
            "give clips with an 'aus' column."
        )
    present = targets[rows][:, [ACTION_UNIT_ORDER.index(unit) for unit in model.units]]
    device = next(model.parameters()).device
    codes = _codes(model, clips, rows).to(device)
    present = present.to(device)
    detector, losses = model.au_detector, []
    rng = np.random.default_rng(seed)
    with Draws(seed).used():
        for layer in detector:
            layer.reset_parameters()  # type: ignore[operator]
    detector.requires_grad_(True).train()
    optimizer = torch.optim.Adam(detector.parameters(), lr=learning_rate)
    # Batches of nearly equal size: batch statistics of a single clip do not exist.
    parts = max(1, len(rows) // max(2, batch_size))
    with torch.enable_grad():
        for epoch in range(epochs):
            total = 0.0
            for batch in np.array_split(rng.permutation(len(rows)), parts):
                loss = au_loss(detector(codes[batch]), present[batch])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(batch)
            losses.append(total / len(rows))
            if progress is not None:
                progress(epoch + 1, epochs)
    detector.requires_grad_(False).eval()
    with torch.no_grad():
        model.unit_logits.copy_(_logit_means(detector(codes), present))
    return losses


def _codes(model: Merau, clips: ClipSet, rows: np.ndarray) -> Tensor:
    """Action unit codes of the apex frames, read a few at a time."""
    device = next(model.parameters()).device
    with torch.no_grad():
        return torch.cat(
            [
                model.au_encoder.eval()(torch.from_numpy(clips.read("apex", rows[at : at + FRAMES])).to(device)).cpu()
                for at in range(0, len(rows), FRAMES)
            ]
        )


def _logit_means(logits: Tensor, present: Tensor) -> Tensor:
    """Mean logit of each unit over all clips, those without it and those with it, (3, units); the overall mean where
    one of the two sets is empty."""
    overall = logits.mean(dim=0)
    means = [overall]
    for member in (1 - present, present):
        count = member.sum(dim=0)
        means.append(torch.where(count > 0, (logits * member).sum(dim=0) / count.clamp_min(1), overall))
    return torch.stack(means)
