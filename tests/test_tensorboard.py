"""Training curves for TensorBoard: what is written is read back, and a missing package is named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fsmer
from fsmer.backbones import create_model
from fsmer.errors import FsmerError, OutputError
from fsmer.training.loop import tensorboard_log
from fsmer.transfer.full_training import train

EPOCHS = 4


@pytest.fixture(scope="module")
def clips() -> fsmer.ClipSet:
    return fsmer.synthetic_clips("lab", 12, seed=1)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> (step, value) of everything that TensorBoard shows of a folder."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    held = reader.EventAccumulator(str(folder))
    held.Reload()
    return {tag: [(event.step, event.value) for event in held.Scalars(tag)] for tag in held.Tags()["scalars"]}


def settings() -> dict[str, Any]:
    return {"epochs": EPOCHS, "batch_size": 5, "learning_rate": 0.01, "seed": 3}


def test_loss_and_learning_rate_of_every_epoch_are_read_back(clips: fsmer.ClipSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    backbone = create_model("facs-flow")
    method = fsmer.load_method("train", **settings())
    recipe = method.recipe(backbone)
    out, log = tmp_path / "out", tmp_path / "log"
    train(backbone, clips, out=out, log=log, **settings())
    held = scalars(log)
    losses = json.loads((tmp_path / "out.history.json").read_text(encoding="utf-8"))["losses"]
    assert [step for step, _ in held["train/loss"]] == [1, 2, 3, 4]
    assert [value for _, value in held["train/loss"]] == pytest.approx(losses)
    assert len({value for _, value in held["train/loss"]}) == EPOCHS
    # The rate of the last of three steps of each epoch.
    done = np.arange(EPOCHS) + 2 / 3
    wanted = {
        "constant": np.full(EPOCHS, 0.01),
        "cosine": 0.01 * 0.5 * (1 + np.cos(np.pi * done / EPOCHS)),
        "exponential": 0.01 * recipe.gamma ** np.arange(EPOCHS),
        "step": 0.01 * recipe.gamma ** np.array([sum(n >= at for at in recipe.milestones) for n in range(EPOCHS)]),
    }[recipe.schedule]
    if recipe.warmup_epochs:
        wanted = wanted * np.minimum(1, done / recipe.warmup_epochs)
    assert [value for _, value in held["train/learning_rate"]] == pytest.approx(wanted, rel=1e-5)


def test_log_changes_nothing_about_the_training(clips: fsmer.ClipSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    start = create_model("facs-flow")
    plain = train(start, clips, **settings())
    logged = train(start, clips, log=tmp_path, **settings())
    assert np.array_equal(plain.predict_proba(clips), logged.predict_proba(clips))
    assert "train/loss" in scalars(tmp_path)


def test_curve_goes_on_after_a_break(clips: fsmer.ClipSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")

    def stop(done: int, total: int) -> None:
        if done == total // 2 + 1:
            raise KeyboardInterrupt

    start, places = create_model("facs-flow"), {"out": tmp_path / "out", "log": tmp_path / "log"}
    with pytest.raises(KeyboardInterrupt):
        train(start, clips, progress=stop, **places, **settings())
    assert [step for step, _ in scalars(tmp_path / "log")["train/loss"]] == [1, 2]
    train(start, clips, **places, **settings())
    assert [step for step, _ in scalars(tmp_path / "log")["train/loss"]] == [1, 2, 3, 4]


def test_missing_package_is_one_sentence_that_names_the_extra(
    clips: fsmer.ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(FsmerError, match=r"needs the package tensorboard.*pip install 'fsmer\[tensorboard\]'"):
        train(create_model("facs-flow"), clips, log=tmp_path / "log", **settings())
    assert not (tmp_path / "log").exists()


def test_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"), tensorboard_log(tmp_path / "file" / "log"):
        pass


def test_without_a_folder_there_is_no_hook() -> None:
    with tensorboard_log(None) as after_epoch:
        assert after_epoch is None


def test_every_step_on_tasks_is_read_back(clips: fsmer.ClipSet, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    tasks = fsmer.load_protocol("kshot", shot=1, query=1)
    options: dict[str, Any] = {"clips": clips, "steps": 3, "learning_rate": 1e-3, "log": tmp_path / "log"}
    fsmer.meta_train("ststnet", tasks, "anil", **options)
    held = scalars(tmp_path / "log")
    assert {"train/loss", "train/accuracy"} <= held.keys()
    assert [step for step, _ in held["train/loss"]] == [1, 2, 3]
