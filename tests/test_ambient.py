"""Answers do not depend on what the process around a call has set, nor on what other threads do."""

from __future__ import annotations

import contextlib
import locale
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import ARGUMENTS, small_model
from tiny_backbone import TinyBackbone

import fsmer
from fsmer.ambient import library_settings
from fsmer.backbones import model_hash
from fsmer.backbones.registry import fresh_model
from fsmer.kernels.noise import Draws
from fsmer.pretraining import load_pretrainer
from fsmer.synthetic.recordings import synthetic_recording
from fsmer.synthetic.scene import Scene
from fsmer.transfer.source_model import SourceModel

KNOWS = ("negative", "positive", "surprise")
BONES = ARGUMENTS["tcae"]


@contextlib.contextmanager
def changed(change: Callable[[], Any], back: Callable[[], Any]) -> Iterator[None]:
    change()
    try:
        yield
    finally:
        back()


def default_type(dtype: torch.dtype) -> Any:
    return changed(lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32))


def default_device(name: str) -> Any:
    return changed(lambda: torch.set_default_device(name), lambda: torch.set_default_device(None))


@contextlib.contextmanager
def warnings_as_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def decimal_comma() -> Iterator[None]:
    before = locale.setlocale(locale.LC_NUMERIC)
    try:
        locale.setlocale(locale.LC_NUMERIC, "de_DE.UTF-8")
    except locale.Error:
        pytest.skip("this system has no locale with a decimal comma")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)


@contextlib.contextmanager
def time_zone() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Pacific/Kiritimati")
        time.tzset()
        yield
    time.tzset()


@contextlib.contextmanager
def seeds_of_other_threads() -> Iterator[None]:
    over = threading.Event()

    def disturb() -> None:
        while not over.is_set():
            torch.manual_seed(0)
            np.random.seed(0)  # noqa: NPY002
            time.sleep(0)

    threads = [threading.Thread(target=disturb) for _ in range(2)]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        over.set()
        for one in threads:
            one.join()


PRECISIONS = [("", "tf32"), ("cuda.matmul", "tf32"), ("mkldnn.matmul", "bf16"), ("mkldnn", "bf16")]


@contextlib.contextmanager
def precision(name: str, value: str) -> Iterator[None]:
    backend = attrgetter(f"backends.{name}" if name else "backends")(torch)
    before = backend.fp32_precision
    backend.fp32_precision = value
    try:
        yield
        assert backend.fp32_precision == value
    finally:
        backend.fp32_precision = before


STATES: dict[str, Callable[[], Any]] = {
    "float64 by default": lambda: default_type(torch.float64),
    "float16 by default": lambda: default_type(torch.float16),
    "bfloat16 by default": lambda: default_type(torch.bfloat16),
    "device meta by default": lambda: default_device("meta"),
    "device cpu by default": lambda: default_device("cpu"),
    "device meta around": lambda: torch.device("meta"),
    "deterministic": lambda: changed(
        lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)
    ),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "medium products": lambda: changed(
        lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest")
    ),
    **{f"{name} in {value}": partial(precision, name, value) for name, value in PRECISIONS},
    "denormals are zero": lambda: changed(
        lambda: torch.set_flush_denormal(True), lambda: torch.set_flush_denormal(False)
    ),
    "NumPy raises": lambda: np.errstate(all="raise"),
    "warnings are errors": warnings_as_errors,
    "decimal comma": decimal_comma,
    "another time zone": time_zone,
    "another working folder": lambda: contextlib.chdir(os.sep),
    "higher recursion limit": lambda: changed(lambda: sys.setrecursionlimit(5000), lambda: sys.setrecursionlimit(1000)),
    "seeds of other threads": seeds_of_other_threads,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doors")
    clips = fsmer.synthetic_clips("lab", 24, seed=4)
    recognizer = fsmer.adapt(KNOWING, clips)
    recognizer.save(folder / "recognizer")
    KNOWING.save_pretrained(folder / "weights")
    return folder


# Made by the caller, in the state that the process starts with.
KNOWING, TINY, FLOW = TinyBackbone(knows=KNOWS), TinyBackbone(), fsmer.load_model("facs-flow")
CLIPS_OF = {
    name: fsmer.synthetic_clips("lab", 6, seed=1, specs=small_model(name).input_specs)
    for name in ("fr", "ststnet", "mmnet", "r3d10_attribute")
}
CLIPS = fsmer.synthetic_clips("lab", 24, seed=4)
EMBEDDINGS = fsmer.embed(TINY, CLIPS)
SMILE = synthetic_recording(
    2.5,
    domain="lab",
    seed=3,
    size=(240, 320),
    frames_per_second=20.0,
    scene=Scene((160.0, 125.0), 96.0, 3.0),
    units=[[12]],
    rest=(0.8, 0.9),
    amplify=2.5,
)
FRAMES = [SMILE.frame(number) for number in range(50)]
KSHOT = fsmer.load_protocol("kshot", way=3, shot=2, query=2, episodes=4)


def answers_of(recognizer: fsmer.Recognizer) -> np.ndarray:
    return np.concatenate([recognizer.predict_proba(CLIPS), recognizer.update(CLIPS[:6]).decision_function(CLIPS)])


def pretrained(place: Path) -> str:
    out = place / f"pretrained-{time.monotonic_ns()}"
    load_pretrainer("tcae")(out, seed=1, steps=1, arguments=BONES, params={"batch_size": 2})
    return model_hash(fsmer.load_model(out))


def trained(name: str, **arguments: Any) -> str:
    given = {**ARGUMENTS.get(name, {}), **arguments}
    return model_hash(fsmer.train(name, CLIPS_OF[name], arguments=given, epochs=1, seed=1).backbone)


PARAMS: dict[str, dict[str, Any]] = {
    "cosine": {"init": "prototype", "steps": 3},
    "finetune": {"train_backbone": True, "steps": 3},
    "train": {"epochs": 1},
}
METHODS = {one.name: fsmer.load_method(one.name, **PARAMS.get(one.name, {})) for one in fsmer.list_methods()}


def fitted(name: str, _: Path) -> np.ndarray:
    return answers_of(METHODS[name].fit(KNOWING, CLIPS))


def stages() -> list[np.ndarray]:
    start = SourceModel(TINY)
    found = METHODS["finetune"].fit_many(start, [CLIPS], seeds=[1], classes=[CLIPS.classes])
    staged = METHODS["finetune"].fit_checkpoints(start, CLIPS, [1, 3])
    return [one.decision_function(CLIPS) for _, one in [*found, *staged]]


def solved() -> list[torch.Tensor]:
    codes = torch.from_numpy(CLIPS.codes(CLIPS.classes))[None]
    rows = torch.arange(len(CLIPS), device="cpu")[None]
    steps = METHODS["logistic"].solve(EMBEDDINGS, rows, codes, way=len(CLIPS.classes))
    return [logits for _, logits in steps]


def created(_: Path) -> str:
    # `fsmer.create_model` draws from torch's own generator, which other threads may seed at any moment.
    return model_hash(fresh_model("ststnet", 5))


DOORS: dict[str, Callable[[Path], Any]] = {
    "adapt": lambda _: answers_of(fsmer.adapt(KNOWING, CLIPS)),
    "adapt, training the network": lambda _: answers_of(
        fsmer.adapt(TINY, CLIPS, "finetune", train_backbone=True, steps=3)
    ),
    "load a recognizer": lambda place: answers_of(fsmer.Recognizer.load(place / "recognizer")),
    **{f"fit {name}": partial(fitted, name) for name in METHODS},
    "fit on a source": lambda _: answers_of(METHODS["cosine"].fit(TINY, CLIPS, source=CLIPS)),
    "fit_many and fit_checkpoints": lambda _: np.stack(stages()),
    "solve": lambda _: torch.cat(solved()),
    "class_directions": lambda _: vars(FLOW.class_directions(KNOWS)),
    "explain": lambda place: fsmer.Recognizer.load(place / "recognizer").explain(CLIPS[0], steps=2).maps,
    "load_model and embed": lambda place: fsmer.embed(fsmer.load_model(place / "weights"), CLIPS),
    "evaluate": lambda _: fsmer.evaluate(KSHOT, KNOWING, clips=CLIPS, cache=False).predictions,
    "evaluate, training the network": lambda _: (
        fsmer.evaluate(KSHOT, "ststnet", fsmer.load_method("train", epochs=1), clips=CLIPS).predictions
    ),
    "train fr": lambda _: trained("fr"),
    "train ststnet": lambda _: trained("ststnet"),
    "train mmnet": lambda _: trained("mmnet", drop_path=0.3),
    "train with words": lambda _: trained("r3d10_attribute"),
    "pretrain": pretrained,
    "create a model": created,
    "recording": lambda _: fsmer.predict_recording(FRAMES).to_json(),
    "mmd": lambda _: fsmer.mmd(CLIPS, CLIPS[:9], model=TINY, permutations=20).to_dict(),
}


def plain(answer: Any) -> list[Any]:
    """An answer as bytes and words."""
    if hasattr(answer, "to_dict") and hasattr(answer, "columns"):
        return [answer.to_csv()]
    if isinstance(answer, dict):
        return [one for key in sorted(answer) for one in (key, *plain(answer[key]))]
    if isinstance(answer, torch.Tensor | np.ndarray):
        array = np.asarray(answer)
        return [str(array.dtype), array.shape, array.tobytes()]
    return [answer]


# Each asks in all of the states; these take long to answer.
SLOW = {"pretrain", "train mmnet", "train with words", "train fr", "evaluate, training the network", "recording"}


@pytest.mark.parametrize("door", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in DOORS])
def test_answers_are_the_same_whatever_is_set_around_a_call(door: str, place: Path):
    ask = DOORS[door]
    expected = plain(ask(place))
    for name, state in STATES.items():
        if name == "decimal comma" and not has_decimal_comma():
            continue
        with state():
            found = ask(place)
        assert plain(found) == expected, name


def has_decimal_comma() -> bool:
    try:
        with decimal_comma():
            return True
    except pytest.skip.Exception:
        return False


def test_what_was_set_is_set_again_afterwards():
    @library_settings()
    def inside() -> tuple[Any, ...]:
        return (torch.get_default_dtype(), torch.zeros(1).device.type, torch.is_grad_enabled(), np.geterr()["under"])

    with contextlib.ExitStack() as stack:
        for name in ("float64 by default", "device meta by default", "medium products", "deterministic"):
            stack.enter_context(STATES[name]())
        stack.enter_context(np.errstate(all="raise"))
        stack.enter_context(torch.inference_mode())
        assert inside() == (torch.float32, "cpu", True, "ignore")
        with pytest.raises(ZeroDivisionError), library_settings():
            _ = 1 / 0
        assert torch.get_default_dtype() == torch.float64
        assert torch.zeros(1).device.type == "meta"
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_inference_mode_enabled()
        assert set(np.geterr().values()) == {"raise"}


def test_the_last_thread_that_leaves_restores_what_the_process_had():
    inside, leave = threading.Event(), threading.Event()

    @library_settings()
    def wait() -> None:
        inside.set()
        leave.wait(10)

    with STATES["float64 by default"]():
        thread = threading.Thread(target=wait)
        thread.start()
        inside.wait(10)
        with library_settings():
            assert torch.get_default_dtype() == torch.float32
        assert torch.get_default_dtype() == torch.float32, "the other thread is still inside"
        leave.set()
        thread.join()
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("forked_inside", [False, True])
def test_a_forked_process_has_left_what_threads_it_does_not_have_were_in(forked_inside: bool):
    inside, leave = threading.Event(), threading.Event()

    @library_settings()
    def wait() -> None:
        inside.set()
        leave.wait(10)

    def forked() -> int:
        with contextlib.ExitStack() as stack:
            stack.enter_context(library_settings() if forked_inside else contextlib.nullcontext())
            child = os.fork()
            if child:
                return os.waitpid(child, 0)[1]
            if forked_inside and torch.get_default_dtype() != torch.float32:
                os._exit(1)
        with library_settings():
            pass
        os._exit(0 if torch.get_default_dtype() == torch.float64 else 2)

    with STATES["float64 by default"]():
        thread = threading.Thread(target=wait)
        thread.start()
        inside.wait(10)
        try:
            assert os.waitstatus_to_exitcode(forked()) == 0
        finally:
            leave.set()
            thread.join()


def test_own_random_numbers_are_those_of_the_global_generators_and_leave_them_alone():
    def draw() -> list[torch.Tensor]:
        layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        found = [torch.rand(3), torch.randn(2, 2), torch.randperm(5), torch.randint(2, 9, (4,)), layer.linear1.weight]
        values = layer(torch.ones(1, 2, 8))
        values.sum().backward()
        return [*found, values, layer.linear1.weight.grad, torch.rand_like(values)]

    with torch.random.fork_rng():
        torch.manual_seed(11)
        expected = draw()
        before = torch.get_rng_state()
        with Draws(11).used():
            found = draw()
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_training_and_making_a_network_leave_the_global_generators_alone():
    before = torch.get_rng_state()
    trained("mmnet", drop_path=0.3)
    fsmer.adapt(TINY, CLIPS, "finetune", train_backbone=True, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
