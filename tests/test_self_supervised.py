"""Training without labels: which pairs are drawn from which frames, one seed one result, stop and go on, refusals."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from fsmer.backbones import Backbone, load_model, model_hash, register_backbone
from fsmer.backbones.recipe import PretrainRecipe
from fsmer.cli.app import app
from fsmer.data.spec import InputSpec
from fsmer.errors import DataError, FsmerError, MediaError, UnknownNameError, WeightsError
from fsmer.plugins import BACKBONES
from fsmer.pretraining import PRETRAINERS, load_pretrainer
from fsmer.pretraining.frame_pairs import FolderPairs, SyntheticPairs, find_recordings
from fsmer.pretraining.self_supervised import pretrain_self_supervised, rate_factor

TINY = {"size": 32, "width": 2, "code_dim": 8}
QUICK = PretrainRecipe(optimizer="sgd", learning_rate=1e-2, steps=6, batch_size=4, distance=(2, 4), schedule="constant")


class Interrupted(Exception):
    pass


def write_frames(folder: Path, recording: int, numbers: range, size: int = 16, pattern: str = "img{}.png") -> None:
    """Flat frames that say what they are: red is the recording, green the number (both times ten)."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", (size, size), (10 * recording, 10 * number, 0)).save(folder / pattern.format(number))


def write_video(path: Path, recording: int, count: int) -> None:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width = stream.height = 32
        stream.pix_fmt = "bgr0"
        for number in range(count):
            pixels = np.full((32, 32, 3), (10 * recording, 10 * number, 0), np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def named(batch: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int, int, int]]:
    """(recording, number) of first and second frame of every pair of `write_frames`."""
    first, second = (np.rint(part.mean(axis=(2, 3)) * 25.5).astype(int) for part in batch)
    return [(*a[:2].tolist(), *b[:2].tolist()) for a, b in zip(first, second, strict=True)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three recordings of 12, 9 and 7 frames (one of them with numbers that sort wrongly as text), one of 2."""
    root = tmp_path / "tree"
    write_frames(root / "a" / "deep", 1, range(12))
    write_frames(root / "b", 2, range(5, 14), pattern="reg_img{}.jpg.png")
    write_frames(root / "c", 3, range(7), pattern="{:04d}.bmp")
    write_frames(root / "short", 4, range(2))
    return root


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames with something to see: smooth random patterns that drift."""
    root = tmp_path_factory.mktemp("faces")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        (root / name).mkdir()
        coarse = rng.integers(0, 255, (6, 6, 3)).astype(np.uint8)
        wide = np.asarray(Image.fromarray(coarse).resize((60, 60), Image.Resampling.BICUBIC))
        for number in range(10):
            Image.fromarray(np.ascontiguousarray(wide[number : number + 40, 2 * number : 2 * number + 40])).save(
                root / name / f"{number}.png"
            )
    return root


# -- recordings and pairs ---------------------------------------------------------------------------------------------


def test_every_folder_of_images_is_a_recording_in_order_of_its_last_numbers(tree: Path):
    (tree / "a" / ".hidden.png").write_bytes(b"")
    (tree / ".cache").mkdir()
    write_frames(tree / ".cache", 9, range(5))
    (tree / "b" / "notes.txt").write_text("no frame")
    found = find_recordings(tree)
    assert [recording.path.relative_to(tree).as_posix() for recording in found] == ["a/deep", "b", "c", "short"]
    assert [len(recording) for recording in found] == [12, 9, 7, 2]
    frames = found[1].read(range(9), (16, 16))
    assert frames.shape == (9, 16, 16, 3)
    assert (frames[:, 0, 0, 1] == 10 * np.arange(5, 14)).all()
    assert (found[0].read([11, 2, 10], (16, 16))[:, 0, 0, 1] == [110, 20, 100]).all()


def test_pairs_are_two_frames_of_one_recording_at_a_distance_in_the_asked_range(tree: Path):
    pairs = FolderPairs(tree, size=(16, 16), distance=(3, 5), seed=1)
    assert pairs.skipped == 1
    assert pairs.describe() == {"recordings": 3, "frames": 28, "too_short": 1}
    drawn = [pair for step in range(30) for pair in named(pairs.batch(step, 10))]
    assert {pair[0] for pair in drawn} == {1, 2, 3}
    assert all(pair[0] == pair[2] for pair in drawn)
    steps = [pair[3] - pair[1] for pair in drawn]
    assert {abs(step) for step in steps} == {3, 4, 5}
    assert 0.35 < np.mean([step > 0 for step in steps]) < 0.65
    assert 0.2 < np.mean([abs(step) == 4 for step in steps]) < 0.5
    assert {pair[1] for pair in drawn if pair[0] == 1} == set(range(12))


def test_a_recording_shorter_than_the_largest_distance_gives_the_pairs_that_fit(tree: Path):
    drawn = named(FolderPairs(tree / "c", size=(16, 16), distance=(5, 30), seed=0).batch(0, 40))
    assert {abs(pair[3] - pair[1]) for pair in drawn} == {5, 6}


def test_a_batch_depends_on_seed_and_step_alone(tree: Path):
    one = FolderPairs(tree, size=(16, 16), distance=(1, 6), seed=5)
    two = FolderPairs(tree, size=(16, 16), distance=(1, 6), seed=5)
    two.batch(0, 8)
    np.testing.assert_array_equal(one.batch(7, 8), two.batch(7, 8))
    assert named(one.batch(7, 8)) != named(one.batch(8, 8))
    assert named(one.batch(7, 8)) != named(FolderPairs(tree, size=(16, 16), distance=(1, 6), seed=6).batch(7, 8))


def test_frames_are_resized_and_lie_in_0_to_1(faces: Path):
    first, second = FolderPairs(faces, size=(32, 24), distance=(1, 2), seed=0).batch(0, 3)
    assert first.shape == second.shape == (3, 3, 32, 24)
    assert first.dtype == np.float32
    assert 0 <= first.min() < 0.3 < 0.7 < first.max() <= 1


def test_videos_give_the_frames_that_were_asked_for(tmp_path: Path):
    write_video(tmp_path / "one.mkv", 1, 25)
    write_frames(tmp_path / "two", 2, range(8))
    found = find_recordings(tmp_path)
    assert [len(recording) for recording in found] == [25, 8]
    shown = found[0].read([20, 3, 21, 0], (16, 16))[:, 0, 0]
    np.testing.assert_allclose(shown[:, 1], [200, 30, 210, 0], atol=3)
    drawn = named(FolderPairs(tmp_path, size=(16, 16), distance=(2, 3), seed=0).batch(0, 20))
    assert {pair[0] for pair in drawn} == {1, 2}
    assert all(2 <= abs(pair[3] - pair[1]) <= 3 for pair in drawn)


def test_trees_without_a_pair_are_refused(tmp_path: Path, tree: Path):
    (tmp_path / "empty" / "below").mkdir(parents=True)
    for folder, message in (
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "empty", "neither an image nor a video"),
    ):
        with pytest.raises(DataError, match=message):
            find_recordings(folder)
    with pytest.raises(DataError, match=r"none of the 4 recordings .* 12 apart \(the longest has 12\)"):
        FolderPairs(tree, size=(16, 16), distance=(12, 20))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path):
    write_frames(tmp_path / "images", 1, range(2))
    (tmp_path / "images" / "img1.png").write_bytes(b"no image at all")
    with pytest.raises(MediaError, match=r"img1\.png"):
        FolderPairs(tmp_path / "images", size=(16, 16), distance=(1, 1)).batch(0, 1)
    pytest.importorskip("av")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(MediaError, match=r"broken\.mp4"):
        FolderPairs(tmp_path / "films", size=(16, 16), distance=(1, 1))


def test_synthetic_pairs_move_and_depend_on_seed_and_step_alone():
    one, two = (SyntheticPairs(size=(32, 32), distance=(4, 8), seed=2, pool=2) for _ in range(2))
    expected = [one.batch(step, 4) for step in range(3)]
    np.testing.assert_array_equal(two.batch(2, 4), expected[2])
    np.testing.assert_array_equal(two.batch(0, 4), expected[0])
    first, second = expected[1]
    assert first.shape == (4, 3, 32, 32)
    assert 0 <= first.min() < first.max() <= 1
    assert (np.abs(first - second).mean(axis=(1, 2, 3)) > 0).all()
    assert not np.array_equal(first, SyntheticPairs(size=(32, 32), distance=(4, 8), seed=3, pool=2).batch(1, 4)[0])


# -- schedule ---------------------------------------------------------------------------------------------------------


def test_the_learning_rate_rises_and_falls_as_the_recipe_says():
    cosine = PretrainRecipe(steps=10, warmup_steps=4, schedule="cosine")
    found = [rate_factor(cosine, step) for step in range(10)]
    np.testing.assert_allclose(found[:4], [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(found[4:], [0.5 * (1 + np.cos(np.pi * step / 6)) for step in range(6)])
    constant = PretrainRecipe(steps=10, schedule="constant")
    assert [rate_factor(constant, step) for step in range(10)] == [1.0] * 10


@pytest.mark.parametrize(
    "values", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0}, {"distance": (0, 3)}, {"distance": (5, 4)}]
)
def test_a_recipe_out_of_range_is_refused(values):
    with pytest.raises(FsmerError, match="the recipe's"):
        PretrainRecipe(**values)


def test_fields_of_a_recipe_are_changed_by_name_with_text_read_as_their_type():
    changed = QUICK.with_params({"batch_size": "16", "learning_rate": 1, "distance": [3, 6], "clip_gradient": "0.5"})
    assert changed == PretrainRecipe(
        optimizer="sgd",
        learning_rate=1.0,
        steps=6,
        batch_size=16,
        distance=(3, 6),
        schedule="constant",
        clip_gradient=0.5,
    )
    assert changed.with_params({"clip_gradient": "none"}).clip_gradient is None
    assert QUICK.with_params({}) == QUICK


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (
            {"bath_size": 4},
            "unknown parameter 'bath_size' of the recipe of training without labels: did you mean 'batch",
        ),
        ({"batch_size": "many"}, "the recipe's batch_size is 'many', but it must be a whole number."),
        ({"batch_size": 2.5}, "the recipe's batch_size is 2.5, but it must be a whole number."),
        ({"batch_size": True}, "the recipe's batch_size is True, but it must be a whole number."),
        ({"batch_size": -4}, "the recipe's batch_size is -4, but it must be positive."),
        ({"learning_rate": float("nan")}, "the recipe's learning_rate is nan, but it must be a finite number."),
        ({"learning_rate": None}, "the recipe's learning_rate is None, but it must be a finite number."),
        ({"clip_gradient": 0}, "the recipe's clip_gradient is 0.0, but it must be positive."),
        ({"weight_decay": -1}, "the recipe's weight_decay is -1.0, but it must be 0 or more."),
        ({"momentum": -0.1}, "the recipe's momentum is -0.1, but it must be 0 or more."),
        ({"warmup_steps": -1}, "the recipe's warmup_steps is -1, but it must be 0 or more."),
        ({"distance": "3,6"}, "the recipe's distance is '3,6', but it must be two whole numbers such as [5, 11]."),
        ({"distance": [3, "far"]}, "the recipe's distance is [3, 'far'], but it must be two whole numbers"),
        ({"distance": [3, 6, 9]}, "the recipe's distance is [3, 6, 9], but it must be two whole numbers"),
        ({"distance": [6, 3]}, "the recipe's distance is 6 to 3 frames"),
        ({"optimizer": "lion"}, "the recipe's optimizer is 'lion', but it must be one of adam, adamw, sgd."),
    ],
)
def test_a_field_that_is_none_or_cannot_have_that_value_is_one_sentence(params, says):
    with pytest.raises(FsmerError) as refused:
        QUICK.with_params(params)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, faces: Path) -> Path:
    out = tmp_path_factory.mktemp("whole") / "weights"
    return pretrain_self_supervised("tcae", out, frames=faces, seed=3, recipe=QUICK, arguments=TINY)


def stop_after(steps: int):
    def progress(step: int, total: int, losses: dict[str, float]) -> None:
        assert total == QUICK.steps
        assert losses["loss"] > 0
        if step == steps:
            raise Interrupted

    return progress


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(str(folder / "model.safetensors"))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_stopped_and_resumed_is_the_same_as_never_stopped(optimizer: str, tmp_path: Path, faces: Path):
    recipe = PretrainRecipe(optimizer=optimizer, steps=6, batch_size=4, distance=(2, 4), warmup_steps=2)
    wanted = {"frames": faces, "seed": 3, "recipe": recipe, "arguments": TINY, "checkpoint_every": 2}
    whole = pretrain_self_supervised("tcae", tmp_path / "whole", **wanted)
    folder = tmp_path / "stopped"
    with pytest.raises(Interrupted):
        pretrain_self_supervised("tcae", folder, **wanted, progress=stop_after(5))
    assert [path.name[:11] for path in sorted(folder.iterdir())] == ["checkpoint-", "checkpoint."]
    seen: list[int] = []
    pretrain_self_supervised("tcae", folder, **wanted, progress=lambda step, *_: seen.append(step))
    assert seen == [5, 6]
    expected, found = weights(whole), weights(folder)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    histories = [json.loads((place / "history.json").read_text())["losses"] for place in (whole, folder)]
    assert histories[0] == histories[1]
    assert [entry["step"] for entry in histories[0]] == [1, 2, 3, 4, 5, 6]


def test_one_seed_one_result_and_global_random_state_is_left_alone(finished: Path, tmp_path: Path, faces: Path):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = pretrain_self_supervised("tcae", tmp_path / "a", frames=faces, seed=3, recipe=QUICK, arguments=TINY)
    assert torch.equal(torch.rand(1), expected)
    assert model_hash(load_model(again)) == model_hash(load_model(finished))
    other = pretrain_self_supervised("tcae", tmp_path / "b", frames=faces, seed=4, recipe=QUICK, arguments=TINY)
    assert model_hash(load_model(other)) != model_hash(load_model(finished))


def test_the_folder_holds_loadable_weights_a_card_and_the_losses(finished: Path):
    assert sorted(path.name for path in finished.iterdir()) == [
        "README.md",
        "config.json",
        "history.json",
        "model.safetensors",
    ]
    model = load_model(finished)
    assert (model.name, model.config["size"]) == ("tcae", 32)
    history = json.loads((finished / "history.json").read_text())
    assert history["frames"] == {"recordings": 2, "frames": 20, "too_short": 0}
    assert history["losses"][-1].keys() >= {"step", "loss", "pixel", "cycle_au"}
    card = (finished / "README.md").read_text()
    for words in (
        "license: other",
        "| seed | 3 |",
        "| steps | 6 |",
        "| frames: recordings | 2 |",
        "Absent:",
        "--frames",
    ):
        assert words in card, words
    assert "No recording" not in card.replace("\n", " ")


def test_without_frames_faces_are_drawn_and_the_card_says_so(tmp_path: Path):
    recipe = PretrainRecipe(steps=2, batch_size=4, distance=(4, 8))
    out = pretrain_self_supervised("tcae", tmp_path, recipe=recipe, arguments=TINY)
    card = (out / "README.md").read_text()
    assert "**No recording of a person was used" in card.replace("\n", " ")
    assert "license: apache-2.0" in card
    assert "| frames: synthetic | broad |" in card


def test_the_card_names_a_command_that_makes_the_same_weights(tmp_path: Path, faces: Path):
    arguments = {**TINY, "jitter": "pair", "frozen": True}
    params = {"batch_size": 3, "distance": (2, 4), "clip_gradient": 0.5, "optimizer": "adam"}
    out = pretrain_self_supervised(
        "tcae", tmp_path / "one", frames=faces, seed=3, steps=1, params=params, arguments=arguments
    )
    (command,) = re.findall("`(fsmer pretrain .*?)`", (out / "README.md").read_text())
    words = [str(faces) if word == "DIR" else word for word in shlex.split(command)[1:]]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "two")])
    assert done.exit_code == 0, done.output
    again = load_model(tmp_path / "two")
    assert again.config == load_model(out).config
    assert model_hash(again) == model_hash(load_model(out))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, faces: Path, tree: Path):
    wanted = {"frames": faces, "seed": 3, "recipe": QUICK, "arguments": TINY, "checkpoint_every": 2}
    with pytest.raises(Interrupted):
        pretrain_self_supervised("tcae", tmp_path, **wanted, progress=stop_after(3))
    for change in (
        {"seed": 4},
        {"steps": 7},
        {"params": {"batch_size": 5}},
        {"frames": tree},
        {"arguments": {**TINY, "width": 3}},
    ):
        with pytest.raises(WeightsError, match="another recipe or seed"):
            pretrain_self_supervised("tcae", tmp_path, **{**wanted, **change})
    assert pretrain_self_supervised("tcae", tmp_path, **{**wanted, "seed": 4}, resume=False) == tmp_path


def test_params_change_the_recipe_in_python_and_on_the_command_line_alike(tmp_path: Path, faces: Path):
    params = {"batch_size": 3, "learning_rate": 0.02, "distance": (1, 3), "optimizer": "adam"}
    out = pretrain_self_supervised("tcae", tmp_path / "a", frames=faces, steps=2, params=params, arguments=TINY)
    recipe = json.loads((out / "history.json").read_text())["recipe"]
    assert {key: recipe[key] for key in (*params, "steps")} == {**params, "distance": [1, 3], "steps": 2}
    assert recipe["momentum"] == load_model(out).pretraining_recipe.momentum
    whole = pretrain_self_supervised(
        "tcae",
        tmp_path / "b",
        frames=faces,
        recipe=load_model(out).pretraining_recipe.with_params({**params, "steps": 2}),
        arguments=TINY,
    )
    words = [f"--argument={key}={value}" for key, value in TINY.items()]
    words += ["-p", "batch_size=3", "--param", "learning_rate=2e-2", "-p", "distance=[1, 3]", "-p", "optimizer=adam"]
    words += ["-p", "steps=2", "--frames", str(faces), "--out", str(tmp_path / "c")]
    done = CliRunner().invoke(app, ["pretrain", "tcae", *words])
    assert done.exit_code == 0, done.output
    assert len({model_hash(load_model(folder)) for folder in (out, whole, tmp_path / "c")}) == 1
    other = pretrain_self_supervised(
        "tcae", tmp_path / "d", frames=faces, steps=2, params={**params, "batch_size": 2}, arguments=TINY
    )
    assert model_hash(load_model(other)) != model_hash(load_model(out))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("-p", "bath_size=4"), "did you mean 'batch_size'"),
        (("-p", "batch_size=0"), "the recipe's batch_size is 0, but it must be positive."),
        (("-p", "distance=5"), "the recipe's distance is 5, but it must be two whole numbers such as [5, 11]."),
        (("-p", "steps=3", "--steps", "2"), "steps are given twice, as 2 and as 3; give them once."),
    ],
)
def test_the_command_refuses_params_in_one_sentence_before_it_writes(tmp_path: Path, words: tuple[str, ...], says: str):
    done = CliRunner().invoke(app, ["pretrain", "tcae", "--out", str(tmp_path / "out"), *words])
    assert done.exit_code == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_does_not_go_on_from_a_checkpoint_of_another_recipe(tmp_path: Path, faces: Path):
    with pytest.raises(Interrupted):
        pretrain_self_supervised(
            "tcae",
            tmp_path,
            frames=faces,
            params={**QUICK.to_dict(), "source": "elsewhere"},
            arguments=TINY,
            checkpoint_every=2,
            progress=stop_after(3),
        )
    words = ["pretrain", "tcae", "--out", str(tmp_path), "--frames", str(faces), "--steps", "1", "-p", "batch_size=2"]
    words += [f"--argument={key}={value}" for key, value in TINY.items()]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 1
    assert "another recipe or seed" in done.stderr
    assert CliRunner().invoke(app, [*words, "--no-resume"]).exit_code == 0
    assert json.loads((tmp_path / "history.json").read_text())["recipe"]["batch_size"] == 2


def test_names_without_this_training_are_refused(tmp_path: Path):
    with pytest.raises(FsmerError, match="'facs-flow' has no training without labels"):
        pretrain_self_supervised("facs-flow", tmp_path)
    with pytest.raises(UnknownNameError, match="'tcae'"):
        pretrain_self_supervised("tcea", tmp_path)


def test_the_pretrainers_by_name_train_that_backbone(tmp_path: Path, faces: Path):
    assert {"tcae", "mubert_tiny", "mubert_small"} <= PRETRAINERS.keys()
    out = load_pretrainer("tcae")(tmp_path, frames=faces, recipe=QUICK, steps=1, arguments=TINY)
    assert load_model(out).name == "tcae"


# -- what a backbone may rely on --------------------------------------------------------------------------------------


@pytest.fixture
def noisy() -> Iterator[type[Backbone]]:
    """A backbone that uses every promise of the trainer: both sources of random numbers, the hooks, the progress."""

    class Noisy(Backbone):
        """Follows the mean of the first frames through noise."""

        pretraining_recipe: ClassVar[PretrainRecipe] = PretrainRecipe(
            optimizer="adam",
            learning_rate=0.1,
            weight_decay=0,
            steps=4,
            batch_size=2,
            distance=(1, 2),
            clip_gradient=1.0,
        )
        seen: ClassVar[list[tuple[str, float]]] = []

        def __init__(self, blow_up: bool = False) -> None:
            spec = InputSpec("onset", (16, 16), ("red", "green", "blue"), "unit")
            super().__init__(input_spec=spec, embed_dim=3, config={"blow_up": blow_up})
            self.weight = nn.Parameter(torch.full((3,), 2.0), requires_grad=False)
            self.register_buffer("steps", torch.zeros(()))
            self.blow_up = blow_up

        def forward(self, inputs):
            return inputs.mean(dim=(2, 3)) + self.weight

        def begin_pretraining(self) -> None:
            self.weight.requires_grad_(True)

        def pretraining_loss(self, first, second, *, done, generator):
            self.seen.append(("loss", done))
            noise = torch.rand(3, generator=generator) + torch.rand(3)
            loss = ((self.weight + 0.1 * noise - first.mean(dim=(2, 3))) ** 2).mean()
            return {"loss": loss / (0.0 if self.blow_up else 1.0), "noise": noise.mean()}

        def after_step(self) -> None:
            self.seen.append(("after", float(self.weight.detach()[0])))
            self.steps += 1

    register_backbone("noisy-for-tests")(Noisy)
    yield Noisy
    del BACKBONES._held["noisy-for-tests"]


def test_hooks_progress_and_both_sources_of_random_numbers_are_the_same_after_a_stop(noisy, tmp_path: Path, tree: Path):
    wanted = {"frames": tree, "seed": 1, "checkpoint_every": 1}
    whole = pretrain_self_supervised("noisy-for-tests", tmp_path / "whole", **wanted)
    calls = list(noisy.seen)
    assert [name for name, _ in calls] == ["loss", "after"] * 4
    assert [done for name, done in calls if name == "loss"] == [0, 0.25, 0.5, 0.75]
    assert calls[1][1] != 2

    def stop(step: int, *_) -> None:
        if step == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        pretrain_self_supervised("noisy-for-tests", tmp_path / "stopped", **wanted, progress=stop)
    pretrain_self_supervised("noisy-for-tests", tmp_path / "stopped", **wanted)
    expected, found = weights(whole), weights(tmp_path / "stopped")
    assert torch.equal(expected["weight"], found["weight"])
    assert float(found["steps"]) == 4


def test_losses_fall(noisy, tmp_path: Path, tree: Path):
    losses: list[float] = []
    pretrain_self_supervised(
        "noisy-for-tests",
        tmp_path,
        frames=tree,
        steps=30,
        progress=lambda _step, _steps, now: losses.append(now["loss"]),
    )
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_loss_that_is_no_number_stops_the_training(noisy, tmp_path: Path, tree: Path):
    with pytest.raises(FsmerError, match=r"is (inf|nan) at step 1; give a lower learning rate"):
        pretrain_self_supervised("noisy-for-tests", tmp_path, frames=tree, arguments={"blow_up": True})
