"""What the layers that fine-tuning leaves alone make of clips: computed once a clip, whatever the number of folds."""

from __future__ import annotations

import hashlib
import threading
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsmer.backbones import Backbone, read_inputs
from fsmer.backbones.embedding import batch_of
from fsmer.data import ClipSet
from fsmer.kernels.noise import set_inside

__all__ = ["ContentDigests", "FrozenLayers"]

# Features of at most so many bytes are kept.
KEPT_BYTES = 1 << 30
# Digests that are kept, of some hundred bytes each.
MOST_DIGESTS = 1 << 18
# Clips that pass the layers together. Always as many, filled up where some are missing, so that what comes out for a
# clip does not hang on which clips came before it, to the last digit.
TOGETHER = 64


class ContentDigests:
    """Digests of clips' media, each computed once while the same object is in use, however many sets hold the clip.

    A clip is known again by where its media come from. Arrays may be changed between two runs, so that an object serves
    one run.
    """

    def __init__(self) -> None:
        self._digests: dict[tuple[Any, ...], bytes] = {}
        # Number of an object tells it from others only as long as it is there.
        self._origins: dict[int, Any] = {}

    def used(self) -> AbstractContextManager[None]:
        """Have `FrozenLayers` take digests from here, in this thread and only inside."""
        return set_inside(_DIGESTS, self)

    def of(self, backbone: Backbone, clips: ClipSet) -> list[bytes]:
        """A digest of the backbone's media of each clip; those that are not known are read."""
        origins = list(zip(*(clips.origins(kind) for kind in sorted(clips.specs)), strict=True))
        keys = [tuple((one if isinstance(one, str) else id(one), row) for one, row in media) for media in origins]
        if len(self._digests) + len(keys) > MOST_DIGESTS:
            self._digests, self._origins = {}, {}
        new = np.array([row for row, key in enumerate(keys) if key not in self._digests], np.int64)
        self._origins |= {id(one): one for row in new for one, _ in origins[row]}
        for rows in _chunks(new, batch_of(backbone)):
            inputs = read_inputs(backbone, clips, rows, torch.device("cpu"))
            media = [inputs] if isinstance(inputs, Tensor) else [inputs[kind] for kind in sorted(inputs)]
            for row, *clip in zip(rows, *(value.contiguous().numpy() for value in media), strict=True):
                self._digests[keys[row]] = hashlib.sha256(b"".join(medium.data for medium in clip)).digest()
        return [self._digests[key] for key in keys]


_DIGESTS: ContextVar[ContentDigests | None] = ContextVar("digests in use", default=None)


class _Seen:
    """Features of the clips that the same layers have seen in this process, by the content of their media."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.layers = b""
        self.clear()

    def clear(self) -> None:
        self.places: dict[bytes, int] = {}
        self.features: dict[str, Tensor] = {}

    def add(self, names: list[bytes], parts: list[dict[str, Tensor]]) -> None:
        self.places |= {name: len(self.places) + number for number, name in enumerate(names)}
        held = [self.features, *parts] if self.features else parts
        self.features = {key: torch.cat([part[key] for part in held]) for key in held[0]}


_seen = _Seen()


class FrozenLayers:
    """Layers of a backbone in evaluation mode that stay as they are, and what they make of clips.

    That is kept for all clips where memory allows, and computed for every batch anew elsewhere. The next fold, which
    learns from nearly the same clips, finds it there.
    """

    def __init__(self, backbone: Backbone, clips: ClipSet) -> None:
        self.backbone = backbone
        self.clips = clips
        held = {id(value) for layer in backbone.lower_layers() for value in layer.parameters()}
        self.names = {name for name, value in backbone.named_parameters() if id(value) in held and value.requires_grad}
        self.device = next(backbone.parameters()).device
        taken = sum(value.numel() * value.element_size() for value in self._compute(np.arange(1)).values())
        self.kept: tuple[dict[str, Tensor], Tensor] | None = None
        if taken * len(clips) <= KEPT_BYTES:
            with _seen.lock:
                self.kept = self._find(KEPT_BYTES // taken)

    def __call__(self, rows: np.ndarray) -> dict[str, Tensor]:
        """What these layers make of some of the clips."""
        if self.kept is None:
            return self._compute(rows)
        features, places = self.kept
        chosen = places[torch.from_numpy(rows)].to(self.device)
        return {key: value.index_select(0, chosen) for key, value in features.items()}

    def freeze(self, backbone: Backbone) -> None:
        """Keep these layers of the backbone, or of a copy, from being trained."""
        for name, value in backbone.named_parameters():
            if name in self.names:
                value.requires_grad_(False)

    def embeddings(self) -> Tensor:
        """Of all the clips, as `fsmer.backbones.embed` gives them."""
        with torch.no_grad():
            chunks = _chunks(np.arange(len(self.clips)), batch_of(self.backbone))
            return torch.cat([self.backbone(self(rows)).float().cpu() for rows in chunks])

    def _find(self, room: int) -> tuple[dict[str, Tensor], Tensor]:
        """Features of at most `room` clips, and where among them each of the clips is."""
        # What tells these layers from others: the backbone and its arguments, its weights, and where they are.
        digest = hashlib.sha256(f"{self.backbone.name} {self.backbone.config} {self.device}".encode())
        for layer in self.backbone.lower_layers():
            for value in layer.state_dict().values():
                digest.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
        if _seen.layers != digest.digest():
            _seen.clear()
            _seen.layers = digest.digest()
        names = (_DIGESTS.get() or ContentDigests()).of(self.backbone, self.clips)
        new = {name: row for row, name in enumerate(names) if name not in _seen.places}
        if len(_seen.places) + len(new) > room:
            _seen.clear()
            new = {name: row for row, name in enumerate(names)}
        if new:
            rows = np.array(list(new.values()))
            whole = np.resize(rows, -(-len(rows) // TOGETHER) * TOGETHER)
            parts = [self._compute(chunk) for chunk in _chunks(whole, TOGETHER)]
            rest = len(rows) - TOGETHER * (len(parts) - 1)
            parts[-1] = {key: value[:rest] for key, value in parts[-1].items()}
            _seen.add(list(new), parts)
        return _seen.features, torch.tensor([_seen.places[name] for name in names])

    def _compute(self, rows: np.ndarray) -> dict[str, Tensor]:
        with torch.no_grad():
            return self.backbone.lower(read_inputs(self.backbone, self.clips, rows, self.device))


def _chunks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
