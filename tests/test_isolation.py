"""With ``isolate="process"`` nothing that a method remembers of one fold reaches the next, and nothing else changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import fsmer
from fsmer.auditing import audit
from fsmer.backbones import Backbone
from fsmer.cli.app import app
from fsmer.data import ClipSet
from fsmer.errors import FsmerError, OutputError, ProtocolError, SupportError
from fsmer.evaluation import Report, evaluate, isolated, seed_runs
from fsmer.evaluation.isolated import ProcessEnded, Processes
from fsmer.kernels.compiled import compiled
from fsmer.plugins import METHODS
from fsmer.synthetic.clips import synthetic_clips
from fsmer.transfer import Recognizer, load_method
from fsmer.transfer.linear_head import Finetune

from tiny_backbone import TinyBackbone  # isort: skip

MEMO: dict[bytes, int] = {}
CHOICE: dict[str, Any] = {"select": "nested", "grid": {"learning_rate": [1.0]}}


class Remembering(Recognizer):
    """Says of a clip what it was said to be in an earlier fold."""

    def predict_proba(self, clips: Any, **options: Any) -> Any:
        said = [MEMO.get(one.tobytes(), 0) for one in clips.media()]
        return np.eye(len(self.classes_), dtype=np.float32)[said]


@dataclass(frozen=True)
class Memo(Finetune):
    """From outside, and keeps what it is taught in a global variable."""

    name: ClassVar[str] = "memo"

    def solve(self, embeddings: Tensor, support: Any, codes: Any, query: Any = None, **options: Any) -> Iterator[Any]:
        for row, code in zip(np.asarray(support)[0], np.asarray(codes)[0], strict=True):
            MEMO[embeddings[row].numpy().tobytes()] = int(code)
        said = [MEMO.get(embeddings[row].numpy().tobytes(), 0) for row in np.asarray(query)[0]]
        yield slice(0, 1), 9 * torch.eye(options["way"])[said][None]

    def fit(self, backbone: Any, support: ClipSet, **options: Any) -> Recognizer:
        for one, code in zip(support.media(), support.codes(options["classes"]), strict=True):
            MEMO[one.tobytes()] = int(code)
        found = Finetune(train_backbone=True, steps=0).fit(backbone, support, **options)
        found.__class__ = Remembering
        return found


class Refusal(Exception):
    """An error of a method from outside, whose constructor takes something else than it keeps."""

    def __init__(self, clips: int, reason: str) -> None:
        super().__init__(f"{clips} clips, {reason}")


@dataclass(frozen=True)
class Failing(Finetune):
    """From outside; fails in the fold whose support holds so many clips, in one way or another."""

    name: ClassVar[str] = "failing"
    how: str = ""
    flag: str = ""

    def fit(self, backbone: Any, support: ClipSet, **options: Any) -> Recognizer:
        if Path(self.flag).exists() and "003" not in support.subjects:
            if self.how == "support":
                raise SupportError("nothing to learn from here")
            if self.how == "own":
                raise Refusal(len(support), "and no more")
            if self.how == "exit":
                os._exit(3)
            if self.how == "sleep":
                Path(self.flag).write_text(str(os.getpid()))
                time.sleep(600)
            os.kill(os.getpid(), signal.SIGKILL)
        print("a method may print")
        return Finetune(train_backbone=True, steps=1).fit(backbone, support, **options)


@pytest.fixture(scope="module")
def shared() -> Iterator[Processes]:
    held = Processes()
    yield held
    held.end()


@pytest.fixture(autouse=True)
def _one_start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process to fork from for all tests, since its start takes seconds."""
    if "shared" not in request.fixturenames:
        return
    held = request.getfixturevalue("shared")

    class Shared(Processes):
        call = held.call

    monkeypatch.setattr(seed_runs, "Processes", Shared)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return TinyBackbone(8).eval()


@pytest.fixture(scope="module")
def noise() -> ClipSet:
    """Maps that say nothing of their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(["negative", "positive", "surprise"], 30)
    people = [f"{place % 3 + 1:03d}" for place in range(90)]
    return ClipSet.from_arrays(rng.random((90, 3, 28, 28), dtype=np.float32), rng.permutation(labels), subjects=people)


@pytest.fixture(scope="module")
def clips() -> ClipSet:
    made = synthetic_clips("lab", n=24, seed=0)
    return ClipSet.from_arrays(made.media(), made.labels, subjects=[f"{place % 4 + 1:03d}" for place in range(24)])


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trained"])
def test_what_a_method_remembers_of_one_fold_does_not_answer_the_next(
    trains: bool, backbone: Backbone, noise: ClipSet
) -> None:
    MEMO.clear()
    method = Memo(train_backbone=trains, steps=0)
    told = evaluate("loso", backbone, method, clips=noise)
    assert told.acc > 0.65  # all but the first fold, whose clips nobody was taught yet
    # It knows everything by now, here.
    assert evaluate("loso", backbone, method, clips=noise, isolate="none").acc > 0.95
    alone = evaluate("loso", backbone, method, clips=noise, isolate="process")
    assert alone.acc < 0.45
    assert (told.run["isolation"], alone.run["isolation"]) == ("none", "process")
    assert (told.to_dict()["isolation"], alone.to_dict()["isolation"]) == ("none", "process")
    assert "a process of its own" in alone.notes[0]
    assert not told.notes


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("protocol", "method", "options"),
    [
        ("loso", "protonet", {}),
        ("loso", "cosine", {"train_backbone": True, "steps": 2}),
        pytest.param("loso", "finetune", {"train_backbone": True, "steps": 2, "jobs": 2}, marks=pytest.mark.slow),
        pytest.param("loso", "finetune", {"train_backbone": True, "steps": 2} | CHOICE, marks=pytest.mark.slow),
        ("kshot", "protonet_cosine", {}),
    ],
)
def test_methods_of_fsmer_give_the_same_to_the_last_bit(
    protocol: str, method: str, options: dict[str, Any], clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {key: value for key, value in options.items() if key in ("jobs", *CHOICE)}
    options = {key: value for key, value in options.items() if key not in how}
    start = fsmer.create_model("facs-flow", widths=[4, 4, 4, 4], branch_dim=4).eval()
    chosen = fsmer.load_protocol(protocol, **({"shot": 2, "query": 2, "episodes": 5} if protocol == "kshot" else {}))
    held: list[Any] = []
    make = Report.from_predictions.__func__  # type: ignore[attr-defined]
    keep = classmethod(lambda cls, some, said, **rest: held.extend(said.values()) or make(cls, some, said, **rest))
    monkeypatch.setattr(Report, "from_predictions", keep)
    here, apart = (
        evaluate(chosen, start, load_method(method, **options), clips=clips, isolate=isolate, **how)
        for isolate in (None, "process")
    )
    for name in ("episode", "clip", "predicted", "probabilities"):
        assert getattr(held[0], name).tobytes() == getattr(held[-1], name).tobytes()
    assert (here.to_dict() | {"notes": [], "isolation": "process"}) == (apart.to_dict() | {"notes": []})


@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ("support", SupportError, "^nothing to learn from here$"),
        ("own", FsmerError, r"Failing.*Refusal.*18 clips, and no more"),
        ("kill", ProcessEnded, r"'mine/003'.*\(signal 9\).*goes on"),
        ("exit", ProcessEnded, r"'mine/003'.*\(exit status 3\)"),
    ],
)
def test_an_error_comes_back_as_in_one_process_and_the_run_goes_on_from_there(
    how: str, error: type[Exception], words: str, backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    flag = tmp_path / "flag"
    flag.touch()
    method = Failing(train_backbone=True, how=how, flag=str(flag))
    with pytest.raises(error, match=words) as told:
        evaluate("loso", backbone, method, clips=clips, isolate="process", out=tmp_path / "out")
    assert how != "own" or "raise Refusal" in str(told.value.__cause__)
    assert len(list((tmp_path / "out").glob(".parts-*/*.npz"))) == 2
    # What was fitted in processes of its own is not mixed with what was not.
    with pytest.raises(OutputError, match="another isolation"):
        evaluate("loso", backbone, method, clips=clips, out=tmp_path / "out")
    flag.unlink()
    report = evaluate("loso", backbone, method, clips=clips, isolate="process", out=tmp_path / "out")
    assert report.run["resumed"] == 2
    assert json.loads((tmp_path / "out" / "run.json").read_text())["isolation"] == "process"
    assert report.predictions.equals(evaluate("loso", backbone, method, clips=clips).predictions)


@pytest.mark.usefixtures("shared")
def test_a_process_that_is_killed_for_its_memory_leaves_its_fold_to_fewer(
    backbone: Backbone, clips: ClipSet, tmp_path: Path
) -> None:
    (tmp_path / "flag").touch()
    method = Failing(train_backbone=True, how="kill", flag=str(tmp_path / "flag"))
    with pytest.warns(UserWarning, match="memory .* going on with 1"), pytest.raises(ProcessEnded, match="'mine/003'"):
        evaluate("loso", backbone, method, clips=clips, isolate="process", jobs=2)


@pytest.mark.usefixtures("shared")
def test_a_method_that_cannot_be_sent_is_refused_in_a_sentence(backbone: Backbone, clips: ClipSet) -> None:
    method = load_method("finetune", train_backbone=True, steps=1)
    held = TinyBackbone(8).eval()
    held.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(FsmerError, match=r"isolate='process'.*'mine/001'.*lock"):
        isolated.Processes().call(print, method, held, threads=1, about="'mine/001'")


def zeros(count: int) -> Iterator[Any]:
    yield 0, [], np.zeros(count, np.float32)


def test_a_large_answer_takes_no_longer_than_its_bytes(shared: Processes) -> None:
    shared.call(zeros, 1, threads=1, about="'a start'")
    began = time.perf_counter()
    ((_, _, values),) = shared.call(zeros, 16 << 20, threads=1, about="'64 MiB'")
    assert values.nbytes == 64 << 20
    assert time.perf_counter() - began < 5


class Doubt(UserWarning):
    """A warning of a method from outside."""


def doubting(fails: bool) -> Iterator[Any]:
    unknown = type("Unknown", (RuntimeWarning,), {"__module__": "nowhere"})
    for category in (Doubt, unknown, RuntimeWarning):
        warnings.warn(f"{category.__name__} in the fold", category, stacklevel=1)
    if fails:
        raise SupportError("nothing to learn from here")
    yield 0, [], np.zeros(1, np.float32)


@pytest.mark.parametrize("fails", [False, True])
def test_warnings_of_a_fold_are_warnings_of_the_call(fails: bool, shared: Processes) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            shared.call(doubting, fails, threads=1, about="'one'")
        except SupportError:
            assert fails
    assert [(one.category, str(one.message)) for one in told] == [
        (Doubt, "Doubt in the fold"),
        (UserWarning, "Unknown in the fold"),
        (RuntimeWarning, "RuntimeWarning in the fold"),
    ]


def compiling() -> Iterator[Any]:
    yield int(compiled("shallow") is not None), [], np.zeros(1, np.float32)


@pytest.mark.slow
@pytest.mark.skipif(not isolated.FORKS or compiled("shallow") is None, reason="nothing is compiled, or forked, here")
def test_code_that_cannot_be_kept_is_compiled_once_for_all_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho called >> {tmp_path}/calls\nexec cc "$@"\n')
    compiler.chmod(0o755)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    monkeypatch.setenv("FSMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CC", str(compiler))
    processes = Processes()
    try:
        for _ in range(3):
            ((found, _, _),) = processes.call(compiling, threads=1, about="'one'")
            assert found == 1
    finally:
        processes.end()
    sources = list(Path(isolated.__file__).parents[1].glob("kernels/*.c"))
    assert len((tmp_path / "calls").read_text().splitlines()) == len(sources)


def test_another_word_for_isolation_is_refused(backbone: Backbone, clips: ClipSet) -> None:
    with pytest.raises(ProtocolError, match=r"isolate='thread'.*'process' or 'none'"):
        evaluate("loso", backbone, "protonet", clips=clips, isolate="thread")  # type: ignore[arg-type]


@pytest.mark.usefixtures("shared")
def test_the_audit_says_where_code_from_outside_was_not_isolated(
    backbone: Backbone, rough_backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(folder: Path) -> list[Any]:
        return [one for one in audit(folder).findings if one.check == "not-isolated"]

    evaluate("loso", rough_backbone, Memo(), clips=clips, out=tmp_path / "method")
    (told,) = found(tmp_path / "method")
    assert (told.severity, told.examples) == ("note", ("the method 'memo'",))
    assert "--isolate process" in told.message
    evaluate("loso", backbone, "protonet", clips=clips, out=tmp_path / "kept")
    assert found(tmp_path / "kept") == []  # it is told no label
    tuned = load_method("finetune", train_backbone=True, steps=1)
    evaluate("loso", backbone, tuned, clips=clips, out=tmp_path / "network")
    assert found(tmp_path / "network")[0].examples == ("the backbone 'tiny-for-tests'",)
    evaluate("loso", rough_backbone, "protonet", clips=clips, out=tmp_path / "own")
    assert found(tmp_path / "own") == []
    evaluate("loso", rough_backbone, Memo(), clips=clips, isolate="process", out=tmp_path / "isolated")
    assert found(tmp_path / "isolated") == []
    # A report without a run tells by its names.
    (tmp_path / "method" / "run.json").unlink()
    assert found(tmp_path / "method")[0].examples == ("the method 'memo'",)
    # One that was registered is from outside too.
    monkeypatch.setitem(METHODS._held, "memo", Memo)
    monkeypatch.setitem(METHODS._preset, "memo", {})
    assert found(tmp_path / "method")[0].examples == ("the method 'memo'",)
    # What the report itself says of isolation outlives the run's account.
    (tmp_path / "isolated" / "run.json").unlink()
    assert Report.load(tmp_path / "isolated").isolation == "process"
    assert found(tmp_path / "isolated") == []


@pytest.mark.slow
def test_where_the_system_does_not_fork_every_fold_starts_anew(
    backbone: Backbone, noise: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "FORKS", False)
    protocol = fsmer.load_protocol("kshot", shot=10, query=10, episodes=2)
    assert evaluate(protocol, backbone, Memo(), clips=noise, isolate="process").acc < 0.5


SCRIPT = """
import sys
sys.path[:0] = sys.argv[1:3]
from fsmer.evaluation import evaluate
from fsmer.data import ClipSet
from test_isolation import Failing
from tiny_backbone import TinyBackbone
method = Failing(train_backbone=True, how="sleep", flag=sys.argv[4])
clips, jobs = ClipSet.load(sys.argv[3]), int(sys.argv[5])
evaluate("loso", TinyBackbone(8).eval(), method, clips=clips, isolate="process", jobs=jobs)
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_key_press_or_a_kill_ends_all_processes(jobs: int, clips: ClipSet, tmp_path: Path) -> None:
    folder = clips.save(tmp_path / "clips")
    for sent in (signal.SIGINT, signal.SIGKILL):
        flag = tmp_path / f"flag-{sent}"
        flag.touch()
        places = [str(Path(fsmer.__file__).parent.parent), str(Path(__file__).parent)]
        run = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *places, str(folder), str(flag), str(jobs)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(1200):
            if flag.read_text():
                break
            time.sleep(0.1)
        child = int(flag.read_text())
        run.send_signal(sent)
        _, told = run.communicate(timeout=60)
        assert sent == signal.SIGKILL or told.rstrip().endswith("KeyboardInterrupt")
        for _ in range(100):
            try:
                os.kill(child, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            os.kill(child, signal.SIGKILL)
            raise AssertionError("the process of the fold lives on")


@pytest.mark.slow
def test_the_command_line_isolates(clips: ClipSet, tmp_path: Path) -> None:
    folder = clips.save(tmp_path / "clips")
    arguments = ["evaluate", "loso", "--data", str(folder), "--model", "ststnet", "--method", "train"]
    arguments += ["--param", "epochs=1", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--isolate", "process"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out" / "run.json").read_text())["isolation"] == "process"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alpha_tim", "laplacian_shot"])
def test_transductive_methods_answer_in_processes_of_their_own_as_they_do_here(name: str) -> None:
    clips = synthetic_clips("lab", 18, subjects=2, seed=5)
    method = load_method(name, **({"steps": 5} if name == "alpha_tim" else {}))
    plain, apart = (
        evaluate("loso", "facs-flow", method, clips=clips, cache=False, isolate=one) for one in ("none", "process")
    )
    assert apart.isolation == "process"
    shares = [f"p_{one}" for one in clips.classes]
    assert (plain.predictions["predicted"] == apart.predictions["predicted"]).all()
    np.testing.assert_allclose(plain.predictions[shares], apart.predictions[shares], atol=1e-5)
