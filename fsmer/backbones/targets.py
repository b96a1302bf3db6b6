"""What a training step knows of its clips: labels, class weights and action units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fsmer.data import ClipSet, au_numbers
from fsmer.data.facs import ACTION_UNIT_ORDER

__all__ = ["Targets", "action_unit_targets", "make_targets", "take"]


@dataclass(frozen=True)
class Targets:
    """What a training step knows of its clips.

    Parameters
    ----------
    labels : int64 Tensor of shape (B,)
        Class of each clip, as index into `classes`.
    classes : tuple of str
    action_units : float Tensor of shape (B, len(ACTION_UNIT_ORDER)), optional
        1 for each active action unit, 0 for the others; a row of NaN where the clip has none annotated. ``None`` when
        no clip has.
    class_weights : Tensor of shape (C,), optional
        Weight of each class in a classification loss.
    """

    labels: Tensor
    classes: tuple[str, ...]
    action_units: Tensor | None = None
    class_weights: Tensor | None = None

    def cross_entropy(self, logits: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of `logits`, (B, C), against the labels, with the class weights."""
        return F.cross_entropy(logits, self.labels, weight=self.class_weights, label_smoothing=label_smoothing)


def action_unit_targets(clips: ClipSet) -> Tensor | None:
    """Action units of every clip, float32 of shape (N, len(ACTION_UNIT_ORDER)); NaN rows where none are annotated."""
    texts = clips.table["aus"].astype(str).tolist()
    if not any(texts):
        return None
    found = {"": torch.full((len(ACTION_UNIT_ORDER),), math.nan)}
    for text in set(texts) - {""}:
        present = set(au_numbers(text))
        found[text] = torch.tensor([float(number in present) for number in ACTION_UNIT_ORDER])
    return torch.stack([found[text] for text in texts])


def make_targets(clips: ClipSet, codes: Tensor, classes: tuple[str, ...], *, balanced: bool = False) -> Targets:
    """What a training step knows of all the clips; `take` picks those of a batch."""
    weights = None
    if balanced:
        counts = torch.bincount(codes, minlength=len(classes)).float()
        weights = torch.where(counts > 0, len(codes) / ((counts > 0).sum() * counts.clamp_min(1)), counts)
    return Targets(codes, classes, action_unit_targets(clips), weights)


def take(targets: Targets, rows: NDArray[np.int64], device: torch.device | str = "cpu") -> Targets:
    """The targets of some of the clips, on `device`."""
    index = torch.from_numpy(np.asarray(rows, dtype=np.int64))
    units = None if targets.action_units is None else targets.action_units[index].to(device)
    weights = None if targets.class_weights is None else targets.class_weights.to(device)
    return Targets(targets.labels[index].to(device), targets.classes, units, weights)
