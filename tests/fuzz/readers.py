"""The readers under test: each has a function that writes a small valid input, and one that reads and checks it."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import openpyxl
import pandas as pd
import torch
from PIL import Image
from sklearn import metrics as _metrics  # noqa: F401  (imported once, before workers are forked)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import fsmer
from fsmer.backbones import create_model
from fsmer.data import ClipSet, InputSpec
from fsmer.datasets import read_corrections, read_dataset
from fsmer.evaluation.episode_results import PartStore, RunSize
from fsmer.evaluation.run_folder import PARTS
from fsmer.preprocess.face_detectors import LandmarkFile
from fsmer.preprocess.prepare import prepare
from fsmer.synthetic.class_descriptions import described_units

__all__ = ["READERS", "Reader", "WrongAnswerError"]


class WrongAnswerError(Exception):
    """A reader answered, but not with what it promises."""


@dataclass(frozen=True)
class Reader:
    """One reader of fsmer.

    Parameters
    ----------
    name : str
    write : callable
        Writes a valid input into a folder.
    read : callable
        Reads that folder, raises `WrongAnswerError` for an answer that is not finite or does not fit together, and
        returns what can be compared, or ``None``.
    only : str
        Regular expression of the paths that are changed.
    words : tuple of str
        Words that mean something to this reader, put in place of others.
    same : bool
        Whether an answer to changed input must be that to the input as it was written: damage is to be noticed.
        Does not hold where the checksums were made to fit again.
    """

    name: str
    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    only: str = ""
    words: tuple[str, ...] = ()
    same: bool = False


READERS: dict[str, Reader] = {}


def _add(
    name: str, write: Callable[[Path], None], read: Callable[[Path], Any], words: Sequence[str] = (), **how: Any
) -> None:
    READERS[name] = Reader(name, write, read, words=tuple(words), **how)


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise WrongAnswerError(what)


def _check_finite(values: Any, what: str) -> None:
    _check(bool(np.isfinite(np.asarray(values, dtype=np.float64)).all()), f"{what} is not finite")


def _check_numbers(values: Any, what: str) -> None:
    """No number that is not finite anywhere in nested plain values."""
    if isinstance(values, dict):
        for key, value in values.items():
            _check_numbers(value, f"{what}.{key}")
    elif isinstance(values, (list, tuple)):
        for value in values:
            _check_numbers(value, what)
    elif isinstance(values, (float, np.floating)):
        _check_finite(values, what)


def _check_clips(clips: ClipSet) -> None:
    ids = clips.ids.tolist()
    _check(len(ids) == len(clips) == len(set(ids)) > 0, "the ids are not one a clip")
    labels = clips.labels.tolist()
    words = [*ids, *clips.subjects, *clips.datasets, *(label for label in labels if label is not None), *clips.classes]
    _check(all(type(word) is str for word in words), "an id, subject, data set or label is no text")
    _check(set(clips.classes) == {label for label in labels if label is not None}, "classes are not the labels")
    _check(len(labels) == len(clips) == len(clips.table), "labels and table are not one a clip")
    for kind, spec in clips.specs.items():
        media = clips.media(kind)
        _check(media.dtype == np.float32 and media.shape == (len(clips), *spec.shape), f"{kind} has another shape")
        _check_finite(media, kind)


def _check_frames(source: Any) -> None:
    # The same frames one after the other and in any order; a recording of a minute is long enough for a test.
    frames = []
    for frame in source:
        frames.append(frame)
        if len(frames) > 2000:
            break
    _check(len(frames) > 0, "no frame came, and nothing was said")
    for frame in frames:
        _check(frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3, "a frame is no 8-bit RGB picture")
        _check(frame.shape[:2] == tuple(source.size), "frames differ in size")
    if len(frames) > 2000:
        return
    _check(source.count in (None, len(frames)), f"{source.count} frames are promised and {len(frames)} come")
    for index in (len(frames) - 1, 0, len(frames) // 2):
        _check(np.array_equal(source[index], frames[index]), f"frame {index} is another one by its index")
    stamps = np.asarray(source.timestamps, np.float64)
    _check(len(stamps) == len(frames), "time stamps are not one a frame")
    _check_finite(stamps, "a time stamp")
    _check(bool((np.diff(stamps) > 0).all()), "time stamps do not rise")
    _check_finite(source.frames_per_second, "the frame rate")


def _pixels(seed: int, shape: tuple[int, ...] = (8, 8, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _write_text(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text, encoding="utf-8")

    return write


def _text_of(path: Path) -> str:
    # Text reaches these functions as Python text, whatever wrote it.
    return path.read_bytes().decode("utf-8", "surrogateescape") if path.is_file() and not path.is_symlink() else ""


# -- maps and tables of clips ---------------------------------------------------------------------------------------

_INDEX = """clip,dataset,subject,label,aus,file,note
006_1,samm,006,negative,4+7,maps/a.png,x
006_2,samm,006,positive,R12,maps/b.bmp,
s1,smic,s1,negative,,maps/c.jpg,y
"""


def _write_index(folder: Path) -> None:
    (folder / "maps").mkdir()
    for seed, name in enumerate(("a.png", "b.bmp", "c.jpg")):
        Image.fromarray(_pixels(seed)).save(folder / "maps" / name)
    (folder / "index.csv").write_text(_INDEX)


def _write_ststnet(folder: Path) -> None:
    root = folder / "norm_u_v_os"
    clips = {"sub01": ("0", "a"), "s01": ("1", "b"), "006": ("2", "c")}
    for person in clips:
        for owner, (label, clip) in clips.items():
            side = root / person / ("u_test" if owner == person else "u_train") / label
            side.mkdir(parents=True)
            Image.fromarray(_pixels(ord(clip))).save(side / f"{clip}.png")


def _clips(n: int = 6, *, size: int = 28, seed: int = 0) -> ClipSet:
    maps = np.random.default_rng(seed).random((n, 3, size, size), dtype=np.float32)
    return ClipSet.from_arrays(
        maps,
        [("negative", "positive", "surprise")[row % 3] for row in range(n)],
        subjects=[f"{row % 4:03d}" for row in range(n)],
        aus=["4+7", "R12", "1+2"] * (n // 3),
    )


def _write_clips(folder: Path) -> None:
    table = _clips(3, size=6).table.assign(onset=[1, 2, 3], speed=[0.5, 200.0, 1.25], good=[True, False, True])
    clips = _clips(3, size=6)
    store = {"flow": clips._base.media["flow"]}
    ClipSet.from_table(table, store).save(folder / "clips")


_add("index", _write_index, lambda folder: _check_clips(fsmer.read_clips(folder)), ("clip", "file", "label", "006"))
_add("maps", _write_index, lambda folder: _check_clips(fsmer.read_clips(folder)), only=r"^maps/")
_add("ststnet", _write_ststnet, lambda folder: _check_clips(fsmer.read_clips(folder)), ("u_test", "u_train", "0", "2"))
_add(
    "clip-set",
    _write_clips,
    lambda folder: _check_clips(ClipSet.load(folder / "clips")),
    ("minmax", "signed", "unit", "text", "integer", "number", "boolean", "flow", "onset", "clips", "frames"),
)


# -- annotation -----------------------------------------------------------------------------------------------------

_FRAMES = ("img1.png", "img2.png", "img3.png")


def _write_frames(folder: Path, names: Sequence[str] = _FRAMES, shape: tuple[int, ...] = (12, 10, 3)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        Image.fromarray(_pixels(seed, shape)).save(folder / name)


def _write_generic(folder: Path) -> None:
    _write_frames(folder / "one")
    _write_frames(folder / "two")
    (folder / "clips.csv").write_text(
        "clip,subject,path,onset,apex,offset,label,aus,fps\n"
        "one,006,one,1,2,3,happiness,6+12,200\ntwo,007,two,1,,3,disgust,4,200\n"
    )


def _write_sheet(ending: str) -> Callable[[Path], None]:
    rows = [
        (
            "Subject",
            "Filename",
            None,
            "OnsetFrame",
            "ApexFrame",
            "OffsetFrame",
            None,
            "Action Units",
            "Estimated Emotion",
        ),
        ("01", "EP02_01f", None, 1, 2, 3, None, "L4+R12", "happiness"),
        ("04", "EP12_01f", None, 1, "/", 3, None, 4, "disgust"),
    ]

    def write(folder: Path) -> None:
        for row in rows[1:]:
            _write_frames(folder / "CASME2_RAW_selected" / f"sub{row[0]}" / str(row[1]))
        path = folder / f"CASME2-coding-20140508.{ending}"
        if ending == "csv":
            pd.DataFrame(rows).to_csv(path, index=False, header=False)
            return
        book = openpyxl.Workbook()
        sheet = book.active
        assert sheet is not None
        for row in rows:
            sheet.append(row)
        raw = io.BytesIO()
        book.save(raw)
        # Without the dates of today, so that a seed gives the same bytes tomorrow.
        with zipfile.ZipFile(raw) as held, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
            for name in sorted(held.namelist()):
                content = re.sub(rb"\d{4}-\d\d-\d\dT[\d:.]+Z", b"2020-01-01T00:00:00Z", held.read(name))
                out.writestr(zipfile.ZipInfo(name), content, compress_type=zipfile.ZIP_DEFLATED)

    return write


def _read_adapter(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        clips = read_dataset(name, folder)
        _check_clips(clips)
        table = clips.table
        onset, apex, offset = (table[f"{one}_index"].astype(float) for one in ("onset", "apex", "offset"))
        _check(bool(((onset <= apex) & (apex <= offset)).all()), "the apex is not within its clip")

    return read


def _read_landmarks(folder: Path) -> None:
    detector = LandmarkFile(str(folder / "landmarks.csv"))
    for number in (0, 1, 7):
        for pose in detector.detect(_pixels(0), number):
            _check_finite(pose.corners, "a face")
            _check(pose.width > 0, "a face has no width")


_LANDMARKS = "frame," + ",".join(f"{axis}_{index}" for axis in "xy" for index in range(5)) + "\n"
_LANDMARKS += "0,30,60,45,33,57,30,30,45,60,60\n1,31,61,46,34,58,30,30,45,60,60\n"
_CORRECTIONS = "dataset,subject,clip,column,value,given,reason,source\ncasme2,04,EP12_01f,apex,2,/,gap,paper\n"

_add("generic", _write_generic, _read_adapter("generic"), ("one", "two", "path", "onset", "1", "3"), only=r"\.csv$")
_add("sheet-csv", _write_sheet("csv"), _read_adapter("casme2"), ("/", "?", "4 or 7", "EP02_01f"), only=r"\.csv$")
_add("sheet-xlsx", _write_sheet("xlsx"), _read_adapter("casme2"), ("/", "?", "1e5", "t", "s", "d"), only=r"\.xlsx$")
_add("landmarks", _write_text("landmarks.csv", _LANDMARKS), _read_landmarks, ("frame", "x_0", "1e9", "0"))
_add(
    "corrections",
    _write_text("corrections.csv", _CORRECTIONS),
    lambda folder: _check(
        all(type(one.value) is str for one in read_corrections(folder / "corrections.csv")), "no text"
    ),
    ("casme2", "onset", "aus", "label", "out of range", "column"),
)


def _read_aus(folder: Path) -> None:
    text = _text_of(folder / "aus.txt")
    parsed = fsmer.parse_aus(text)
    _check(all(type(number) is int and number >= 0 for number in parsed.numbers()), "a unit is no whole number")
    for choice in ("first", "all"):
        parsed.numbers(alternatives=choice)
    _check(
        all(type(unit.number) is int for choice in parsed.choices for option in choice for unit in option), "no number"
    )


def _read_descriptions(folder: Path) -> None:
    from fsmer.transfer.adapt import described
    from fsmer.transfer.source_model import SourceModel

    lines = _text_of(folder / "words.txt").splitlines()
    words = dict(line.partition("=")[::2] for line in lines if line)
    described(SourceModel.wrap(_described_model()), words)
    for name, text in words.items():
        _check(
            all(type(unit) is int for unit in (*described_units(name), *described_units(text))), "a unit is no number"
        )


@cache
def _described_model() -> Any:
    torch.manual_seed(0)
    return create_model("facs-flow", widths=(4, 4, 4, 4), branch_dim=2).eval()


_WORDS = ("AU", "L", "R", "ref", "or", "and", "(", ")", "+", "/", "?", "B", "U", "T", "46", "99", "brow lowerer")
_add("action-units", _write_text("aus.txt", "(R6B or L12) + ref(7)/15? , AU4+T10"), _read_aus, _WORDS)
_add("descriptions", _write_text("words.txt", "frown=AU4+7\nsmile=lip corner puller\n"), _read_descriptions, _WORDS)


def _read_conditions(folder: Path) -> None:
    clips = _condition_clips()
    chosen = clips.select(_text_of(folder / "where.txt"))
    _check(0 < len(chosen) <= len(clips), "a choice holds other clips")
    _check(set(chosen.ids) <= set(clips.ids), "a choice holds other clips")


@cache
def _condition_clips() -> ClipSet:
    table = _clips(6).table.assign(onset=range(6), speed=[0.5, 1, 2, 3, 4, 5.5])
    return ClipSet.from_table(table)


if importlib.util.find_spec("fsmer.data.conditions") is not None:
    # Before that module, the text was run.
    _add(
        "conditions",
        _write_text(
            "where.txt", "dataset == 'mine' and (onset < 4 or label in ['negative']) and subject is not missing"
        ),
        _read_conditions,
        (
            *(
                "and",
                "or",
                "not",
                "in",
                "is",
                "missing",
                "==",
                "!=",
                "<",
                ">=",
                "(",
                ")",
                "[",
                "]",
                "**",
                "%",
                "lambda",
            ),
            *(
                "onset",
                "label",
                "clip",
                "__class__",
                "__import__('os')",
                "@clips",
                "`label`",
                "9**9**9",
                "str.contains",
            ),
            *(".startswith('a')", ".str.len()", "None", "True", "index", "if else", "for x in y", ":=", "f'{clip}'"),
        ),
    )


# -- protocols, recipes ---------------------------------------------------------------------------------------------

_PROTOCOL = """# three classes, a few shots
name: small
kind: kshot
params: {way: 2, shot: 1, query: 2, episodes: 3, seed: 4, class_subset: [negative, positive, surprise]}
data:
  - {dataset: mine}
"""


def _read_protocol(folder: Path) -> None:
    protocol = fsmer.load_protocol(str(folder / "small.yaml"))
    _check(re.fullmatch(r"[0-9a-f]+", protocol.hash) is not None, "a protocol has no hash")
    _check_numbers(protocol.to_dict(), "protocol")
    clips = _clips(18)
    # A protocol may ask for a million episodes; the first ones show whether they can be drawn.
    if int(protocol.params.get("episodes", 0) or 0) > 500:
        protocol = protocol.with_params(episodes=500)
    for number, episode in enumerate(protocol.split(clips)):
        _check(not set(episode.support.tolist()) & set(episode.query.tolist()), "a clip is on both sides")
        _check(all(type(name) is str for name in episode.classes), "a class is no text")
        for side in (episode.support, episode.query):
            _check(bool(((side >= 0) & (side < len(clips))).all()), "an episode names clips that are not there")
        if number >= 3:
            break


def _write_recipe(folder: Path) -> None:
    fsmer.PreprocessRecipe(
        detector="landmarks", detector_parameters={"path": "x.csv"}, flow_parameters={"levels": 2}
    ).save(folder / "recipe.json")


def _read_recipe(folder: Path) -> None:
    recipe = fsmer.PreprocessRecipe.load(folder / "recipe.json")
    _check(re.fullmatch(r"[0-9a-f]{16}", recipe.hash) is not None, "a recipe has no hash")
    _check_numbers(recipe.to_dict(), "recipe")
    recipe.load_detector()
    recipe.load_flow()
    hash(recipe.crop_size)


_KINDS = (
    "loso",
    "kshot",
    "cde",
    "holdout",
    "ratio",
    "source_target",
    "train",
    "test",
    "way",
    "shot",
    "query",
    "natural",
)
_add(
    "protocol",
    _write_text("small.yaml", _PROTOCOL),
    _read_protocol,
    (
        *_KINDS,
        *("params", "data", "dataset", "scheme", "megc2019", "synthetic", "domain", "clips", "repeats", "balance"),
    ),
)
_add(
    "recipe",
    _write_recipe,
    _read_recipe,
    ("cascade", "cropped", "landmarks", "farneback", "tvl1", "given", "middle", "frame", "tim", "linear", "largest"),
)


# -- weights and recognizers ----------------------------------------------------------------------------------------

_MODELS = ("ststnet", "fr", "ensemble", "merau", "mmnet", "mubert_tiny", "tcae", "flow_resnet18")
_ARGUMENTS = ("width", "depth", "members", "of", "size", "widths", "depths", "heads", "shared_width", "text", "weights")


def _small_model() -> Any:
    torch.manual_seed(0)
    return create_model("ststnet").eval()


def _write_weights(folder: Path) -> None:
    _small_model().save_pretrained(folder / "weights")


def _read_weights(folder: Path) -> None:
    model = fsmer.load_model(str(folder / "weights"))
    clips = _clips_for(model)
    found = fsmer.embed(model, clips)
    _check(tuple(found.shape) == (len(clips), model.embed_dim), "embeddings have another shape")
    _check_finite(found.numpy(), "an embedding")
    _check(all(type(name) is str for name in model.classes), "a class is no text")


def _write_recognizer(folder: Path) -> None:
    fsmer.adapt(_small_model(), _clips(6), "cosine").save(folder / "recognizer")


def _write_trained(folder: Path) -> None:
    fsmer.train(_small_model(), _clips(6), epochs=1, seed=0).save(folder / "recognizer")


def _write_described(folder: Path) -> None:
    fsmer.recognizer_of_words(_described_model(), {"frown": "AU4", "smile": "AU12"}).save(folder / "recognizer")


def _write_sklearn(folder: Path) -> None:
    # A number of NumPy's, since it is a file of its own.
    method = make_pipeline(StandardScaler(), SVC(C=np.float64(2)))
    place = fsmer.adapt(_small_model(), _clips(6), method).save(folder / "recognizer") / "estimator.skops"
    with zipfile.ZipFile(place) as held:
        members = {name: held.read(name) for name in held.namelist()}
    (array,) = members.keys() - {"schema.json"}
    # Without addresses of memory and dates, so that a seed gives the same bytes tomorrow.
    schema = re.sub(r'("__id__": )\d+', r"\g<1>1", members["schema.json"].decode()).replace(array, "1.npy")
    with zipfile.ZipFile(place, "w") as out:
        for name, content in (("schema.json", schema), ("1.npy", members[array])):
            out.writestr(zipfile.ZipInfo(name), content)


def _read_recognizer(folder: Path) -> None:
    recognizer = fsmer.Recognizer.load(folder / "recognizer")
    clips = _clips_for(recognizer.backbone)
    found = recognizer.predict_proba(clips)
    classes = recognizer.classes_.tolist()
    _check(found.shape == (len(clips), len(classes)), f"{len(classes)} classes with {found.shape[-1]} columns")
    _check(all(type(name) is str for name in classes) and len(set(classes)) == len(classes), "classes are not names")
    _check_finite(found, "a probability")
    _check(bool((np.abs(found.sum(axis=1) - 1) < 1e-4).all()), "probabilities do not sum to one")
    _check(set(recognizer.predict(clips)) <= set(classes), "a prediction is no class")
    # What it holds of its support is used by `update` alone.
    if {spec.kind for spec in recognizer.backbone.input_specs} == {"flow"}:
        again = recognizer.update(clips).predict_proba(clips)
        _check_finite(again, "a probability after an update")


_HELD: dict[tuple[InputSpec, ...], ClipSet] = {}


def _clips_for(model: Any) -> ClipSet:
    specs = tuple(model.input_specs)
    if specs not in _HELD:
        _HELD[specs] = fsmer.synthetic_clips("lab", 2, seed=1, specs=specs)
    return _HELD[specs]


_add("weights", _write_weights, _read_weights, (*_MODELS, *_ARGUMENTS))


def _write_practised(folder: Path) -> None:
    tasks = fsmer.load_protocol("kshot", way=2, shot=1, query=1)
    options: dict[str, Any] = {"steps": 1, "batch": 1, "learning_rate": 1e-3, "inner_rate": 1e-3}
    fsmer.meta_train(_small_model(), tasks, "meta_sgd", clips=_clips(6), out=folder / "weights", **options)


def _read_practised(folder: Path) -> None:
    model = fsmer.load_model(folder / "weights")
    clips = _clips_for(model)
    support = fsmer.synthetic_clips("lab", 12, seed=3, specs=model.input_specs)
    support = support[np.isin(support.labels, support.classes[:2])]
    _check_finite(fsmer.adapt(model, support).predict_proba(clips), "a probability")


_LEARNED = (
    "adaptation",
    "algorithm",
    "maml",
    "inner_loop",
    "steps",
    "batch_norm",
    "task",
    "adapts",
    "head",
    "rate.head.bias",
)
_add("weights-adapted", _write_practised, _read_practised, (*_MODELS, *_ARGUMENTS, *_LEARNED))
_METHODS = ("cosine", "logistic", "protonet", "finetune", "zero_shot", "train", "linear", "version", "scale")
_add("recognizer", _write_recognizer, _read_recognizer, (*_MODELS, *_ARGUMENTS, *_METHODS))
_add("recognizer-trained", _write_trained, _read_recognizer, (*_MODELS, *_ARGUMENTS, *_METHODS))
_NODES = (
    "ObjectNode",
    "JsonNode",
    "ListNode",
    "TupleNode",
    "DictNode",
    "NdArrayNode",
    "MethodNode",
    "TypeNode",
    "1.npy",
)
_ESTIMATORS = ("SVC", "Pipeline", "PCA", "Voting", "sklearn.svm._classes", "steps", "memory", "C", "n_estimators", "os")
_add("recognizer-sklearn", _write_sklearn, _read_recognizer, (*_METHODS, *_NODES, *_ESTIMATORS))
_add("recognizer-words", _write_described, _read_recognizer, (*_MODELS, *_ARGUMENTS, *_METHODS))


# -- results --------------------------------------------------------------------------------------------------------


def _evaluate(out: Path | None, *, seed: int = 0, **how: Any) -> fsmer.Report:
    protocol = fsmer.load_protocol("kshot", way=2, shot=1, query=2, episodes=3, seed=1)
    options: dict[str, Any] = {"clips": _evaluated(), "cache": False, "out": out, **how}
    return fsmer.evaluate(protocol, _frozen_model(seed), "cosine", **options)


@cache
def _evaluated() -> ClipSet:
    return _clips(12)


@cache
def _frozen_model(seed: int) -> Any:
    torch.manual_seed(seed)
    return create_model("ststnet").eval()


def _write_report(folder: Path, name: str = "run", seed: int = 0) -> None:
    _evaluate(folder / name, seed=seed)
    # Nothing reads them.
    for lost in ("confusion.png", "report.md", "page.html"):
        (folder / name / lost).unlink(missing_ok=True)
    for kept in (folder / name).glob(".*"):
        shutil.rmtree(kept, ignore_errors=True)
    place = folder / name / "run.json"
    values = json.loads(place.read_text())
    values |= {"started": "2020-01-01 00:00:00 UTC", "seconds": 1.0, "machine": "x", "call": "evaluate()"}
    place.write_text(json.dumps(values, indent=2))


def _read_report(folder: Path) -> None:
    report = fsmer.Report.load(folder / "run")
    _check_report(report)


def _check_report(report: fsmer.Report) -> None:
    _check_finite([report.uf1, report.uar, report.acc], "a figure")
    _check(all(0 <= figure <= 1 for figure in (report.uf1, report.uar, report.acc)), "a figure is not in 0..1")
    _check(report.confusion.shape == (len(report.classes),) * 2, "the confusion matrix has another size")
    _check(bool((report.confusion >= 0).all()), "a count is negative")
    _check(all(type(name) is str for name in report.classes), "a class is no text")
    _check_numbers(report.to_dict(), "report")
    report.markdown()
    str(report)


def _write_two(folder: Path) -> None:
    _write_report(folder, "one", seed=0)
    _write_report(folder, "two", seed=1)


def _read_comparison(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        comparison = fsmer.compare(folder / "one", folder / "two", draws=20)
    _check_numbers(comparison.to_dict(), "comparison")
    comparison.markdown()


def _read_audit(folder: Path) -> None:
    found = fsmer.audit(folder / "run")
    _check_numbers(found.to_dict(), "audit")
    str(found)


def _read_audited_table(folder: Path) -> None:
    str(fsmer.audit(folder / "splits.csv"))


_SPLITS = "fold,side,clip,dataset,subject,label\n" + "".join(
    f"{fold},{'test' if fold == row % 3 else 'train'},c{row},mine,s{row % 3},{'ab'[row % 2]}\n"
    for fold in range(3)
    for row in range(6)
)
_FIGURES = ("uf1", "uar", "acc", "classes", "confusion", "per_seed", "predicted", "label", "episode", "clips", "seed")
_add("report", _write_report, _read_report, _FIGURES)
_add("compare", _write_two, _read_comparison, _FIGURES, only=r"^one/")
_add("audit", _write_report, _read_audit, _FIGURES)
_add("audit-splits", _write_text("splits.csv", _SPLITS), _read_audited_table, ("train", "test", "fold", "side", "s0"))


# -- runs that go on ------------------------------------------------------------------------------------------------


def _write_parts(folder: Path) -> None:
    out = folder / "run"
    evaluated = _evaluate(out)
    for path in list(out.iterdir()):
        if path.is_dir() and path.name.startswith(".kept-"):
            path.rename(path.with_name(path.name.replace(".kept-", PARTS)))
        elif path.is_file():
            path.unlink()
    if not list(out.glob(f"{PARTS}*")):
        _stop_half(out, evaluated)


def _stop_half(out: Path, evaluated: Any) -> None:
    """Leave what a run leaves that is stopped before its report."""
    runner: Any = importlib.import_module("fsmer.evaluation.evaluate")

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    held, runner.run_report = runner.run_report, stop
    try:
        with suppress(KeyboardInterrupt):
            _evaluate(out)
    finally:
        runner.run_report = held


def _figures_of(report: fsmer.Report) -> str:
    _check_report(report)
    return report.predictions.to_csv(index=False) + json.dumps([report.uf1, report.uar, report.acc])


def _read_parts(folder: Path) -> str:
    from fsmer.evaluation.report import Report

    runner: Any = importlib.import_module("fsmer.evaluation.evaluate")
    save, Report.save = Report.save, lambda self, where: Path(where)  # type: ignore[method-assign]
    page, runner.write_page = runner.write_page, lambda *_: None
    try:  # the pictures and pages of a report take longer than all else
        return _figures_of(_evaluate(folder / "run"))
    finally:
        Report.save, runner.write_page = save, page  # type: ignore[method-assign]


def _read_part_store(folder: Path) -> None:
    for store in sorted((folder / "run").glob(f"{PARTS}*")):
        held = PartStore.__new__(PartStore)
        held.folder, held.size = store, RunSize(3, 12, len(_evaluated().classes))
        for part in held.read():
            _check(len(part.numbers) == len(part.names) == len(part.among), "a part is not one entry an episode")
            rows = [len(getattr(part.predictions, name)) for name in ("episode", "clip", "predicted", "probabilities")]
            _check(len(set(rows)) == 1, "predictions are not one a clip")
            probabilities = np.asarray(part.predictions.probabilities)
            _check(not np.isinf(probabilities.astype(float)).any(), "a probability is not finite")


def _train(out: Path, epochs: int = 2, progress: Any = None) -> Any:
    model = _small_model()
    return fsmer.train(model, _trained(), out=out, epochs=epochs, seed=0, batch_size=8, progress=progress)


@cache
def _trained() -> ClipSet:
    return _clips(6)


def _write_checkpoint(folder: Path) -> None:
    steps = []

    def stop(done: int, total: int) -> None:
        steps.append(done)
        if (folder / "out.training" / "checkpoint.json").exists():
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        _train(folder / "out", progress=stop)
    assert (folder / "out.training" / "checkpoint.json").is_file(), steps


def _read_checkpoint(folder: Path) -> bytes:
    recognizer = _train(folder / "out")
    found = recognizer.predict_proba(_trained())
    _check_finite(found, "a probability")
    return found.tobytes()


def _write_cache(folder: Path) -> None:
    _evaluate(None, cache=folder / "cache")


def _read_cache(folder: Path) -> str:
    return _figures_of(_evaluate(None, cache=folder / "cache"))


_RECIPE = {"detector": "cropped", "crop_size": (16, 16), "apex": "given"}
_STORE = "out.parts"


@cache
def _recordings() -> Path:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="fuzz-recordings-"))
    for name in ("one", "two"):
        _write_frames(folder / name, shape=(32, 32, 3))
    return folder


def _prepare(out: Path) -> ClipSet:
    table = pd.DataFrame(
        {
            "path": ["one", "two"],
            "clip": ["one", "two"],
            "label": ["a", "b"],
            "onset": [0, 0],
            "apex": [1, 1],
            "offset": [2, 2],
        }
    )
    prepared = prepare(
        table, _recordings(), out, specs=InputSpec(size=(8, 8)), recipe=fsmer.PreprocessRecipe(**_RECIPE), workers=1
    )
    return prepared.clips


def _write_prepared(folder: Path) -> None:
    store = importlib.import_module("fsmer.preprocess.prepare_store")

    finish, store.write_result = store.write_result, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    try:
        with suppress(KeyboardInterrupt):
            _prepare(folder / "out")
    finally:
        store.write_result = finish
    parts = sorted((folder / _STORE).glob("*.clips"))
    assert parts, list(folder.rglob("*"))
    for number, path in enumerate(parts):
        path.rename(path.with_name(f"{number:032x}.clips"))


def _read_prepared(folder: Path) -> bytes:
    clips = _prepare(folder / "out")
    _check_clips(clips)
    return clips.media().tobytes() + clips.table.to_csv(index=False).encode()


_add("run-parts", _write_parts, _read_parts, same=True)
_add("part-store", _write_parts, _read_part_store, only=r"\.npz$")
_add("checkpoint", _write_checkpoint, _read_checkpoint, ("epoch", "losses", "key"), same=True)
_add("embedding-cache", _write_cache, _read_cache, same=True)
_add("prepared-parts", _write_prepared, _read_prepared, only=rf"^{_STORE}/", same=True)


# -- recordings -----------------------------------------------------------------------------------------------------


def _write_video(name: str, codec: str, form: str, **options: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with av.open(str(folder / name), "w", format=form, options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream(codec, rate=25, options={"threads": "1", **options})
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            stream.gop_size = 3
            for index in range(6):
                pixels = cv2.resize(_pixels(index, (4, 4, 3)), (32, 32), interpolation=cv2.INTER_NEAREST)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode(None))

    return write


def _read_video(folder: Path) -> None:
    found = [path for path in folder.iterdir() if path.suffix]
    _check_frames(fsmer.open_frames(found[0] if found else folder / "gone.mp4"))


def _read_folder(folder: Path) -> None:
    _check_frames(fsmer.open_frames(folder / "frames"))


def _write_folder(folder: Path) -> None:
    _write_frames(folder / "frames", ("f_1.png", "f_2.bmp", "f_10.jpg"))


_add("video-mp4", _write_video("a.mp4", "libx264", "mp4"), _read_video)
_add("video-avi", _write_video("a.avi", "mpeg4", "avi"), _read_video)
_add("video-mkv", _write_video("a.mkv", "ffv1", "matroska"), _read_video)
_add("video-webm", _write_video("a.webm", "libvpx", "webm", deadline="realtime"), _read_video)
_add("video-ts", _write_video("a.ts", "mpeg2video", "mpegts"), _read_video)
_add("frames", _write_folder, _read_folder)
