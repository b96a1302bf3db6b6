"""`explain`: the right maps, the right numbers beside them, a picture that is whole, and clear refusals."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_backbone  # noqa: F401  (registers a backbone)
import torch
from PIL import Image
from torch import Tensor, nn

import fsmer
from fsmer.backbones import Backbone, create_model
from fsmer.backbones.mmnet import MMNet
from fsmer.backbones.tcae import Tcae
from fsmer.data import Clip, ClipSet, InputSpec, LazyArray
from fsmer.deploy.explain import Explanation, explain
from fsmer.errors import DataError, FsmerError, MediaError, OutputError, SpecMismatchError, UnknownNameError
from fsmer.synthetic.clips import ACTION_UNIT_ORDER, synthetic_clips, synthetic_maps
from fsmer.synthetic.flow_maps import clean_flow
from fsmer.synthetic.recordings import synthetic_videos
from fsmer.synthetic.scene import Camera

RGB = ("red", "green", "blue")


class Linear(Backbone):
    """A single linear layer on all media, so that every attribution is known."""

    name = "linear-for-tests"

    def __init__(self, specs: list[InputSpec], embed_dim: int = 1) -> None:
        super().__init__(input_spec=specs, embed_dim=embed_dim, config={})
        self.layer = nn.Linear(sum(int(np.prod(spec.shape)) for spec in specs), embed_dim)

    def forward(self, inputs: Any) -> Tensor:
        given = inputs if isinstance(inputs, dict) else {self.input_specs[0].kind: inputs}
        return self.layer(torch.cat([given[spec.kind].flatten(1) for spec in self.input_specs], dim=1))


class Looks(Linear):
    """The same with a map of its own."""

    def explain_maps(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"gaze": inputs[:, 0].clamp(0, 1)}


def signed(size: int = 14, channels: tuple[str, ...] = ("u", "v")) -> InputSpec:
    return InputSpec("flow", (size, size), channels, "signed")


def images(size: int = 14) -> list[InputSpec]:
    return [InputSpec(kind, (size, size), RGB, "unit") for kind in ("onset", "apex")]


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def windowed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a square window, edges repeated."""
    reach = window // 2
    padded = np.pad(values, reach, mode="edge")
    out = np.zeros_like(values)
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            out[y, x] = padded[y : y + window, x : x + window].mean()
    return out


@pytest.fixture(scope="module")
def recognizer() -> fsmer.Recognizer:
    return fsmer.adapt(create_model("tiny-for-tests").eval(), synthetic_clips("lab", 30, seed=5), method="logistic")


@pytest.fixture(scope="module")
def clip() -> Clip:
    return synthetic_clips("lab", 3, seed=1)[1]


# -- the maps ----------------------------------------------------------------------------------------------------------


def test_own_maps_are_shown_as_the_backbone_gives_them_and_need_no_captum(monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    flow = random(2, 14, 14)
    found = explain(Looks([signed()]), flow)
    np.testing.assert_array_equal(found.maps["gaze"], flow[0])
    assert "itself" in found.about


def test_gradient_of_a_linear_network_is_weight_times_movement():
    torch.manual_seed(0)
    network = Linear([signed()])
    flow = random(2, 14, 14) - 0.5
    (found,) = explain(network, flow[None])
    # d = (w . x)^2, so that the attribution of pixel i is w_i x_i (w . x); its scale falls out.
    parts = (network.layer.weight.detach().numpy()[0] * flow.ravel()).reshape(flow.shape)
    wanted = np.abs(parts).sum(axis=0)
    np.testing.assert_allclose(found.maps["gradient of the flow"], wanted / wanted.max(), rtol=1e-4, atol=1e-6)


def test_attributions_are_averaged_over_the_pixels_within_a_28th_of_the_width():
    torch.manual_seed(0)
    network = Linear([signed(42)])
    flow = random(2, 42, 42) - 0.5
    parts = (network.layer.weight.detach().numpy()[0] * flow.ravel()).reshape(flow.shape)
    wanted = windowed(np.abs(parts).sum(axis=0), 3)
    found = explain(network, flow).maps["gradient of the flow"]
    np.testing.assert_allclose(found, wanted / wanted.max(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("spec", "still"),
    [
        (InputSpec("flow", (14, 14), ("u", "v", "strain"), "minmax"), "median"),
        (InputSpec("flows", (14, 14), ("u", "v"), "signed", frames=4), "zero"),
        (InputSpec("frames", (14, 14), RGB, "unit", frames=4), "first"),
        (InputSpec("apex", (14, 14), RGB, "unit"), "grey"),
    ],
)
def test_movement_is_what_differs_from_the_same_clip_at_rest(spec, still):
    torch.manual_seed(1)
    network = Linear([spec])
    values = random(*spec.shape, seed=2)
    if spec.normalisation == "minmax":
        low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
        values = (values - low) / (high - low)
    rest = {
        "median": lambda: np.stack([np.full((14, 14), torch.tensor(one).median().item()) for one in values]),
        "zero": lambda: np.zeros_like(values),
        "first": lambda: np.repeat(values[:1], 4, axis=0),
        "grey": lambda: np.full_like(values, 0.5),
    }[still]()
    if "strain" in spec.channels:
        rest[2] = 0  # skin that is not stretched
    parts = (network.layer.weight.detach().numpy()[0] * (values - rest).ravel()).reshape(values.shape)
    wanted = np.abs(parts).sum(axis=tuple(range(values.ndim - 2)))
    found = explain(network, values).maps[f"gradient of the {spec.kind}"]
    np.testing.assert_allclose(found, wanted / wanted.max(), rtol=1e-3, atol=1e-5)


def test_apex_is_compared_with_the_onset_which_has_no_part_in_the_movement():
    torch.manual_seed(0)
    network = Linear(images())
    onset = random(3, 14, 14)
    apex = onset.copy()
    apex[:, 2:5, 9:12] = 1 - apex[:, 2:5, 9:12]
    found = explain(network, {"onset": onset, "apex": apex})
    assert list(found.maps) == ["gradient of the apex"]
    marked = found.maps["gradient of the apex"] > 0
    assert marked[2:5, 9:12].all()
    assert marked.sum() == 9


def test_a_medium_that_the_network_does_not_look_at_gets_no_map():
    torch.manual_seed(0)
    network = Tcae(size=16, width=2, code_dim=4).eval()
    frames = {kind: random(3, 16, 16, seed=seed) for seed, kind in enumerate(("onset", "apex"))}
    assert list(explain(network, frames).maps) == ["au_flow", "pose_flow"]
    assert list(explain(network, frames, method="gradient", steps=2).maps) == ["gradient of the apex"]


def test_gradient_marks_what_moves_by_the_expression_better_than_chance_on_facs_flow():
    from sklearn.metrics import roc_auc_score

    model = fsmer.load_model("facs-flow")
    recognizer = fsmer.adapt(model, synthetic_clips("lab", 30, seed=5))
    clips = synthetic_clips("lab", 6, seed=1)
    units = synthetic_maps(6, domain="lab", seed=1).units
    areas = []
    for row, one in enumerate(explain(recognizer, clips)):
        moved = sum(clean_flow(ACTION_UNIT_ORDER[unit], 28)[:2] for unit in np.flatnonzero(units[row]))
        amount = np.hypot(*moved)
        areas.append(roc_auc_score((amount > 0.3 * amount.max()).ravel(), one.maps["gradient of the flow"].ravel()))
    assert np.mean(areas) > 0.7


def test_gradient_explains_the_class_asked_for(recognizer, clip):
    predicted = explain(recognizer, clip)
    others = [name for name in predicted.classes if name != predicted.prediction]
    same = explain(recognizer, clip, target=predicted.prediction)
    np.testing.assert_array_equal(predicted.maps["gradient of the flow"], same.maps["gradient of the flow"])
    other = explain(recognizer, clip, target=others[0])
    assert not np.allclose(predicted.maps["gradient of the flow"], other.maps["gradient of the flow"])
    assert other.prediction == predicted.prediction
    assert others[0] in other.about


def test_what_all_classes_share_does_not_change_the_map(recognizer, clip):
    found = explain(recognizer, clip)
    head = recognizer._head
    shared = torch.linspace(-3, 3, head.weight.shape[-1])
    moved = type(head)(head.kind, head.weight + shared, head.bias + 1.0, head.centre)
    again = fsmer.Recognizer(
        recognizer._model,
        recognizer.method,
        recognizer.classes_.tolist(),
        moved,
        recognizer._support,
        recognizer._codes,
    )
    np.testing.assert_allclose(
        explain(again, clip).maps["gradient of the flow"], found.maps["gradient of the flow"], atol=1e-3
    )


@pytest.mark.parametrize("method", ["logistic", "protonet", "cosine", "zero_shot"])
def test_prediction_and_probabilities_are_the_recognizers(method, clip):
    model = create_model("tiny-for-tests", knows=["negative", "positive", "surprise"]).eval()
    recognizer = fsmer.adapt(model, synthetic_clips("lab", 30, seed=5), method=method)
    found = explain(recognizer, clip)
    assert found.classes == tuple(recognizer.classes_)
    np.testing.assert_allclose(found.probabilities, recognizer.predict_proba(clip)[0], rtol=1e-4, atol=1e-6)
    assert found.prediction == recognizer.predict(clip)[0]
    assert found.maps["gradient of the flow"].max() == 1
    assert found.label == clip.label


def test_maps_lie_between_0_and_1_for_several_media():
    torch.manual_seed(0)
    specs = [
        InputSpec("frames", (14, 14), RGB, "unit", frames=4),
        InputSpec("flows", (14, 14), ("u", "v"), "signed", frames=4),
    ]
    found = explain(Linear(specs, 3), {"frames": random(4, 3, 14, 14), "flows": random(4, 2, 14, 14) - 0.5})
    assert list(found.maps) == ["gradient of the frames", "gradient of the flows"]
    for one in found.maps.values():
        assert one.dtype == np.float32
        assert one.min() >= 0
    assert max(one.max() for one in found.maps.values()) == 1


def test_mmnet_shows_its_four_attention_maps_and_on_demand_its_gradient():
    torch.manual_seed(0)
    network = MMNet(size=32, stem=[[6, 2]], stages=[[4, 1], [4, 2], [8, 2], [16, 2]])
    onset = random(3, 32, 32)
    pictures = {"onset": onset, "apex": np.clip(onset + 0.05 * random(3, 32, 32, seed=1), 0, 1)}
    assert list(explain(network, pictures).maps) == [f"attention {number}" for number in range(1, 5)]
    assert list(explain(network, pictures, method="gradient", steps=2).maps) == ["gradient of the apex"]


def test_explaining_leaves_the_network_as_it_was(recognizer, clip):
    backbone = recognizer.backbone.train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    with torch.inference_mode():
        inside = explain(recognizer, clip)
    assert backbone.training
    backbone.eval()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(torch.equal(before[key], value) for key, value in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(
        inside.maps["gradient of the flow"], explain(recognizer, clip).maps["gradient of the flow"]
    )


# -- what it takes and gives -------------------------------------------------------------------------------------------


def test_one_clip_gives_one_explanation_and_several_give_a_list(recognizer, clip):
    clips = synthetic_clips("lab", 3, seed=1)
    one = explain(recognizer, clip)
    assert isinstance(one, Explanation)
    for given in (clips, list(clips), clips.media()):
        many = explain(recognizer, given)
        assert isinstance(many, list)
        assert len(many) == 3
        np.testing.assert_array_equal(many[1].maps["gradient of the flow"], one.maps["gradient of the flow"])
    assert [found.clip for found in explain(recognizer, clips)] == clips.ids.tolist()
    assert isinstance(explain(recognizer, clips.media()[0]), Explanation)
    eight_bit = explain(recognizer, (255 * clips.media()[0]).round().astype(np.uint8))
    np.testing.assert_allclose(eight_bit.probabilities, explain(recognizer, clips.media()[0]).probabilities, atol=0.02)


def titles(found: Explanation) -> list[str]:
    return [axes.get_title() for axes in found.figure().axes]


def test_picture_shows_every_medium_of_the_clip_its_answer_and_the_maps():
    torch.manual_seed(0)
    pictures = {spec.kind: LazyArray.of(random(3, 14, 14, seed=number), spec) for number, spec in enumerate(images())}
    flow = LazyArray.of(random(2, 14, 14) - 0.5, signed())
    network = Linear(images(), 4)
    moved = Clip("a", media={**pictures, "flow": flow})
    assert titles(explain(network, moved)) == ["onset", "apex", "flow", "gradient of the apex"]
    # Of pictures as small as these no flow can be estimated.
    assert titles(explain(network, Clip("a", media=pictures))) == [
        "onset",
        "apex",
        "apex − onset",
        "gradient of the apex",
    ]
    recognizer = fsmer.adapt(
        network, ({kind: random(4, 3, 14, 14, seed=5 + len(kind)) for kind in pictures}, list("xyxy"))
    )
    found = explain(recognizer, moved)
    assert titles(found) == ["onset", "apex", "flow", "probabilities", "gradient of the apex"]
    figure = found.figure()
    written = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"x", "y"} <= set(written)
    assert f"{found.prediction} ({found.probabilities.max():.0%})" in figure.get_suptitle()


def test_flow_is_estimated_for_the_picture_of_a_clip_that_has_none(monkeypatch):
    torch.manual_seed(0)
    video = next(synthetic_videos(1, seed=6, size=96, frames=12, camera=Camera.perfect(), amplify=1.5))
    pair = {"onset": video.frames[video.onset], "apex": video.frames[video.apex]}
    drawn: list[np.ndarray] = []
    monkeypatch.setattr("fsmer.deploy.explain.draw_flow", lambda axes, flow, arrows: drawn.append(flow))
    found = explain(Linear(images(96)), {kind: np.moveaxis(frame, 2, 0) for kind, frame in pair.items()}, steps=1)
    assert titles(found) == ["onset", "apex", "flow", "apex − onset", "gradient of the apex"]
    assert [axes.get_xlabel() for axes in found.figure().axes][2] == "estimated (Farnebäck)"
    # What moves to the right and down on the face does so in the picture.
    assert np.corrcoef(drawn[0].ravel(), video.flow.ravel())[0, 1] > 0.8


def test_picture_of_a_video_shows_its_first_frame_and_the_one_that_moved_or_differs_most():
    torch.manual_seed(0)
    spec = InputSpec("frames", (14, 14), RGB, "unit", frames=5)
    frames = np.repeat(random(1, 3, 14, 14), 5, axis=0)
    frames[3] = 1 - frames[3]
    found = explain(Linear([spec]), frames)
    assert titles(found) == ["first frame", "frame 4 of 5", "change", "gradient of the frames"]
    flows = np.zeros((5, 2, 14, 14), np.float32)
    flows[:2, 0], flows[2:, 0] = 1, -1  # there for two steps, and back
    flows[0, 1, 0, 0] = 0.5
    both = [spec, InputSpec("flows", (14, 14), ("u", "v"), "signed", frames=5)]
    found = explain(Linear(both), {"frames": frames, "flows": flows})
    assert titles(found)[:3] == ["first frame", "frame 3 of 5", "flow, frame 1 to 3"]


def test_a_png_is_written_for_one_clip_and_a_folder_of_them_for_several(recognizer, clip, tmp_path: Path):
    explain(recognizer, clip, out=tmp_path / "new" / "one.png")
    with Image.open(tmp_path / "new" / "one.png") as image:
        assert image.format == "PNG"
        assert image.width > 300
    clips = ClipSet.from_arrays(synthetic_clips("lab", 2, seed=1).media(), None, ids=["a/../b", "a b"])
    explain(recognizer, clips, out=tmp_path / "many")
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == ["0_a_.._b.png", "1_a_b.png"]


def test_pictures_are_the_same_bytes_each_time_and_show_in_notebooks(recognizer, clip, tmp_path: Path):
    found = explain(recognizer, clip)
    first, second = found.save(tmp_path / "1.png"), explain(recognizer, clip).save(tmp_path / "2.png")
    assert first.read_bytes() == second.read_bytes() == found._repr_png_()
    with Image.open(io.BytesIO(found._repr_png_())) as image:
        assert image.format == "PNG"
    assert len(repr(found)) < 500


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(recognizer, clip, tmp_path: Path, monkeypatch):
    found = explain(recognizer, clip)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match="a folder of that name"):
        found.save(tmp_path / "taken")
    (tmp_path / "old.png").write_bytes(b"before")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        found.save(tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.png", "taken"]


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_without_captum_the_extra_is_named(recognizer, clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(FsmerError, match=r"needs the package captum.*pip install 'fsmer\[explain\]'") as error:
        explain(recognizer, clip)
    assert "\n" not in str(error.value)


def test_a_clip_in_which_nothing_moves_is_refused_by_name():
    picture = random(3, 14, 14)
    frames = InputSpec("frames", (14, 14), RGB, "unit", frames=3)
    pair = {spec.kind: LazyArray.of(picture, spec) for spec in images()}
    film = {"frames": LazyArray.of(np.repeat(picture[None], 3, axis=0), frames)}
    for specs, media in ((images(), pair), ([frames], film)):
        with pytest.raises(MediaError, match=r"nothing moves in clip 'still' of data set 'home'"):
            explain(Linear(specs), Clip("still", dataset="home", media=media))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"method": "own"}, FsmerError, "'tiny-for-tests' has no maps of its own"),
        ({"method": "saliency"}, UnknownNameError, "unknown method of explaining 'saliency'"),
        ({"target": "postive"}, UnknownNameError, "did you mean 'positive'"),
        ({"steps": 0}, DataError, "steps is 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, error, said, recognizer, clip):
    with pytest.raises(error, match=said):
        explain(recognizer, clip, **arguments)


def test_a_bare_backbone_has_no_class_to_explain(clip):
    with pytest.raises(DataError, match="give a Recognizer"):
        explain(create_model("tiny-for-tests"), clip, target="positive")


def test_something_else_than_a_model_is_refused(clip):
    with pytest.raises(DataError, match=r"int.*Backbone"):
        explain(3, clip)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ([], DataError, "no clip to explain"),
        (
            Clip("a", media={"onset": LazyArray.of(random(3, 14, 14), images()[0])}),
            SpecMismatchError,
            "the clips hold onset",
        ),
        (random(3, 20, 20), SpecMismatchError, r"the arrays are flow \(3, 20, 20\)"),
        ({"onset": random(3, 14, 14)}, SpecMismatchError, r"the arrays are onset \(3, 14, 14\)"),
        (np.full((3, 28, 28), np.nan, np.float32), MediaError, "NaN"),
        ([[1, 2], [3]], SpecMismatchError, "arrays of"),
    ],
)
def test_clips_that_do_not_fit_are_refused_in_one_sentence(given, error, said, recognizer):
    with pytest.raises(error, match=said) as caught:
        explain(recognizer, given)
    assert "\n" not in str(caught.value)
