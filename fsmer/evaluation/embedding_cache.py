"""Embeddings on disk, so that no clip goes through the same network twice, whatever the run, protocol or method.

An entry is found by the network (hash of its weights, of its input and, where it is not of fsmer, of its source) and by
the content of the clip's media, so that neither new weights or code nor maps extracted anew under an old name can meet
an old embedding. Entries lie in ``$FSMER_CACHE``, else in ``$XDG_CACHE_HOME/fsmer``, else in ``~/.cache/fsmer``;
``FSMER_CACHE=off`` keeps none. They hold embeddings and hashes, no media, ids or labels. A file's name is the digest of
its content; one that does not fit its name is removed, and its clips are embedded again. `clear_cache` removes all;
beyond `LIMIT_BYTES` the files that have not been used for longest go first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsmer.array_files import map_array
from fsmer.backbones import Backbone, check_clips, embed, model_hash, read_inputs
from fsmer.backbones.embedding import batch_of
from fsmer.caches import cache_place
from fsmer.data import ClipSet
from fsmer.io import atomic_path, digest, file_digest, remove_unfinished
from fsmer.outside import code_digest
from fsmer.plugins import BACKBONES, outside_origin
from fsmer.training.loop import Progress

__all__ = ["as_folder", "cache_folder", "clear_cache", "content_ids", "embed_cached", "network_code"]

# All files of the cache together; a million embeddings of `facs-flow` take 0.8 GB.
LIMIT_BYTES = 4 << 30
# Bytes of a clip's content id, and seconds between writes while a large set is embedded.
ID_BYTES = 16
FLUSH_SECONDS = 20.0
VERSION = 1

Ids = NDArray[np.uint8]


def cache_folder() -> Path | None:
    """Where embeddings are kept; ``None`` when the environment says ``FSMER_CACHE=off``, or names no place."""
    return None if os.environ.get("FSMER_CACHE", "").lower() == "off" else cache_place("embeddings")


def as_folder(asked: bool | str | os.PathLike[str]) -> Path | None:
    """The folder that a ``cache`` argument means: True the default one, False none."""
    return cache_folder() if asked is True else None if asked is False else Path(asked)


def clear_cache(folder: str | os.PathLike[str] | None = None) -> int:
    """Remove all kept embeddings (default those in `cache_folder`) and return how many bytes that freed."""
    place = cache_folder() if folder is None else Path(folder)
    if place is None or not place.is_dir():
        return 0
    freed = sum(size for _, size, _ in _files(place))
    shutil.rmtree(place, ignore_errors=True)
    return freed


def content_ids(backbone: Backbone, clips: ClipSet, *, progress: Progress | None = None) -> Ids:
    """Hash of what the backbone reads of every clip, uint8 of shape (N, 16); errors as for `fsmer.embed`.

    The media are read once, batch by batch.
    """
    check_clips(backbone, clips)
    ids = np.zeros((len(clips), ID_BYTES), np.uint8)
    for start, stop, arrays in _batches(backbone, clips):
        ids[start:stop] = _hashes(arrays)
        if progress is not None:
            progress(stop, len(clips))
    return ids


def embed_cached(
    backbone: Backbone, clips: ClipSet, *, folder: Path | None = None, progress: Progress | None = None
) -> tuple[Tensor, Ids]:
    """Embeddings (N, embed_dim) as `fsmer.embed` gives them, from the cache where it has them, and `content_ids`.

    Every clip's media are read once, for its id and for the network alike. Several processes may work on one `folder`
    (``None`` keeps nothing): each writes files of its own, and a file is whole or not there. `progress` is called with
    (clips done, clips in all).
    """
    check_clips(backbone, clips)
    kept = None if folder is None else _KeptEmbeddings(folder, backbone)
    total = len(clips)
    ids, embeddings = np.zeros((total, ID_BYTES), np.uint8), torch.zeros(total, backbone.embed_dim)
    try:
        for start, stop, arrays in _batches(backbone, clips):
            ids[start:stop] = _hashes(arrays)
            missing = np.arange(stop - start)
            if kept is not None:
                missing = kept.fill(ids[start:stop], embeddings[start:stop])
            if len(missing):
                media = {kind: array[missing] for kind, array in arrays.items()}
                found = embed(backbone, media, batch_size=batch_of(backbone))
                embeddings[torch.from_numpy(start + missing)] = found
                if kept is not None:
                    kept.add(ids[start + missing], found)
            if progress is not None:
                progress(stop, total)
    finally:
        # An interrupted run keeps what it has embedded.
        if kept is not None:
            kept.flush()
    return embeddings, ids


def network_code(backbone: Backbone) -> str:
    """`code_digest` of the networks in a backbone that are not of fsmer; nothing where there are none."""
    found = (one for one in backbone.modules() if isinstance(one, Backbone) and outside_origin(BACKBONES, type(one)))
    return code_digest(part for one in found for part in one.modules())


class _KeptEmbeddings:
    """Those of one network: files of records (id, embedding), mapped into memory, of which none ever changes."""

    def __init__(self, root: Path, backbone: Backbone) -> None:
        device = next((value.device.type for value in backbone.parameters()), "cpu")
        specs = [spec.to_dict() for spec in backbone.input_specs]
        facts = [VERSION, specs, backbone.config, device, torch.__version__]
        facts += [code] if (code := network_code(backbone)) else []
        recipe = json.dumps(facts, sort_keys=True, default=str)
        key = f"{model_hash(backbone)}-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"
        self.root = root
        self.folder = root / f"{backbone.name or type(backbone).__name__}-{key}"
        self.dtype = np.dtype([("id", np.uint8, (ID_BYTES,)), ("embedding", "<f4", (backbone.embed_dim,))])
        self._arrays: list[NDArray[np.void]] = []
        self._places: dict[bytes, tuple[int, int]] = {}
        self._new: dict[bytes, NDArray[np.float32]] = {}
        self._written = time.monotonic()
        # A cache may fail without harm, whatever lies in its place.
        with contextlib.suppress(OSError):
            for path in sorted(self.folder.glob("*.npy")):
                try:
                    if file_digest(path) != path.stem:
                        raise ValueError("altered")
                    self._open(path)
                except (OSError, ValueError):
                    # Removed by another process in between, or damaged: its clips are embedded again.
                    with contextlib.suppress(OSError):
                        path.unlink()
                    continue
                with contextlib.suppress(OSError):
                    os.utime(path)  # used now: it is not among the first to go

    def _open(self, path: Path) -> None:
        array = map_array(path)
        if array.dtype != self.dtype or array.ndim != 1 or not np.isfinite(array["embedding"]).all():
            raise ValueError("records of another kind")
        number = len(self._arrays)
        self._arrays.append(array)
        for row, key in enumerate(np.ascontiguousarray(array["id"])):
            self._places[key.tobytes()] = (number, row)

    def fill(self, ids: Ids, embeddings: Tensor) -> NDArray[np.int64]:
        """Write what is known into `embeddings` and return the rows that are not."""
        missing = []
        for row, key in enumerate(ids):
            name = key.tobytes()
            if name in self._places:
                number, place = self._places[name]
                embeddings[row] = torch.from_numpy(np.array(self._arrays[number]["embedding"][place]))
            elif name in self._new:
                embeddings[row] = torch.from_numpy(self._new[name])
            else:
                missing.append(row)
        return np.array(missing, dtype=np.int64)

    def add(self, ids: Ids, embeddings: Tensor) -> None:
        """Keep these, in memory until the next write."""
        for key, row in zip(ids, embeddings.numpy(), strict=True):
            self._new[key.tobytes()] = row.copy()
        if time.monotonic() - self._written > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write new entries to a file of their own; a folder that cannot be written keeps none."""
        if not self._new:
            return
        records = np.zeros(len(self._new), self.dtype)
        records["id"] = np.frombuffer(b"".join(self._new), np.uint8).reshape(-1, ID_BYTES)
        records["embedding"] = np.stack(list(self._new.values()))
        content = io.BytesIO()
        np.save(content, records, allow_pickle=False)
        path = self.folder / f"{digest(content.getbuffer())}.npy"
        # A cache may fail without harm: a full or read-only disk must not stop an evaluation.
        with contextlib.suppress(OSError):
            with atomic_path(path) as temporary:
                temporary.write_bytes(content.getbuffer())
            self._open(path)
            self._new.clear()
            _prune(self.root, LIMIT_BYTES)
        self._written = time.monotonic()


def _batches(backbone: Backbone, clips: ClipSet) -> Iterator[tuple[int, int, dict[str, NDArray[np.float32]]]]:
    """First and last row of every batch, and its media by kind."""
    size = batch_of(backbone)
    for start in range(0, len(clips), size):
        stop = min(start + size, len(clips))
        inputs = read_inputs(backbone, clips, np.arange(start, stop))
        by_kind = inputs if isinstance(inputs, dict) else {backbone.input_specs[0].kind: inputs}
        # NumPy knows no bfloat16.
        plain = {kind: value.float() if value.dtype == torch.bfloat16 else value for kind, value in by_kind.items()}
        yield start, stop, {kind: value.numpy() for kind, value in plain.items()}


def _hashes(arrays: dict[str, NDArray[np.float32]]) -> Ids:
    names, media = list(arrays), list(arrays.values())
    ids = np.zeros((len(media[0]), ID_BYTES), np.uint8)
    for row in range(len(ids)):
        digest = hashlib.sha256()
        for name, array in zip(names, media, strict=True):
            digest.update(f"{name}{array.shape[1:]}".encode())
            digest.update(array[row].data)
        ids[row] = np.frombuffer(digest.digest()[:ID_BYTES], np.uint8)
    return ids


def _files(root: Path) -> list[tuple[float, int, Path]]:
    """When each file was used last, its size, and where it is."""
    found = []
    for path in root.glob("*/*.npy"):
        with contextlib.suppress(OSError):
            state = path.stat()
            found.append((state.st_mtime, state.st_size, path))
    return found


def _prune(root: Path, limit: int) -> None:
    for folder in root.iterdir():
        remove_unfinished(folder)
    held = 0
    # The newest are kept.
    for _, size, path in sorted(_files(root), reverse=True):
        held += size
        if held > limit:
            with contextlib.suppress(OSError):
                path.unlink()
