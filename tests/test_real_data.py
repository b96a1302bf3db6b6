"""Known figures on real flow maps: what others measured on the raw pixels, and what the shipped weights promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import fsmer
from fsmer.backbones import Backbone
from fsmer.data import ClipSet, InputSpec


class Pixels(Backbone):
    """The maps themselves as embeddings."""

    name = "pixels"

    def __init__(self) -> None:
        super().__init__(input_spec=InputSpec(), embed_dim=3 * 28 * 28, config={})

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)


@pytest.fixture(scope="module")
def clips(real_data: Path) -> ClipSet:
    torch.manual_seed(0)
    return fsmer.read_clips(real_data)


def test_counts_are_those_of_megc_2019(clips: ClipSet) -> None:
    table = clips.table.groupby(["dataset", "label"], observed=True).size().to_dict()
    assert table == {
        ("casme2", "negative"): 88,
        ("casme2", "positive"): 32,
        ("casme2", "surprise"): 25,
        ("smic", "negative"): 70,
        ("smic", "positive"): 51,
        ("smic", "surprise"): 43,
    }
    assert clips.table.groupby("dataset", observed=True)["subject"].nunique().to_dict() == {"casme2": 24, "smic": 16}


@pytest.mark.parametrize(("dataset", "expected"), [("casme2", 0.642), ("smic", 0.459)])
def test_nearest_class_mean_on_pixels_gives_the_known_figures(clips: ClipSet, dataset: str, expected: float) -> None:
    some = clips.select(dataset=dataset)
    report = fsmer.evaluate(fsmer.load_protocol("kshot", shot=5, episodes=1000), Pixels(), "protonet", clips=some)
    assert report.uf1 == pytest.approx(expected, abs=0.01)


def test_logistic_regression_on_pixels_gives_the_known_loso_figure(clips: ClipSet) -> None:
    # 0.744 was measured with C chosen in inner folds; from 3e-4 to 0.1 a fixed C gives 0.743 to 0.763.
    report = fsmer.evaluate("loso", Pixels(), fsmer.load_method("logistic", C=0.001), clips=clips)
    assert report.uf1 == pytest.approx(0.744, abs=0.02)
    assert report.counts["episodes"] == 40


def test_the_default_model_reaches_what_the_readme_says(clips: ClipSet) -> None:
    model = fsmer.load_model("facs-flow")
    without = fsmer.evaluate(fsmer.load_protocol("kshot", shot=0), model, "zero_shot", clips=clips).per_dataset
    assert without["casme2"]["uf1"] >= 0.85
    assert without["smic"]["uf1"] >= 0.66
    protocol = fsmer.load_protocol("kshot", way=3, shot=5, episodes=1000)
    for dataset, least in (("casme2", 0.86), ("smic", 0.67)):
        few = fsmer.evaluate(protocol, model, "cosine", clips=clips.select(dataset=dataset))
        assert few.uf1 >= least
        assert few.uf1 >= without[dataset]["uf1"]
    assert fsmer.evaluate("loso", model, "logistic", clips=clips).uf1 >= 0.76


def test_no_answer_depends_on_the_order_of_the_index(clips: ClipSet) -> None:
    order = np.random.default_rng(1).permutation(len(clips))
    protocol = fsmer.load_protocol("kshot", shot=5, episodes=20)
    figures = [fsmer.evaluate(protocol, Pixels(), "protonet", clips=some).uf1 for some in (clips, clips[order])]
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)
