"""Folds side by side: in processes, on a cluster, in fewer when memory runs out, with the same digits."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import joblib
import pytest
import torch

import fsmer
from fsmer.backbones import Backbone
from fsmer.data import ClipSet
from fsmer.evaluation import evaluate, training_folds
from fsmer.transfer import Recognizer
from fsmer.transfer.linear_head import Finetune

from tiny_runs import RandomTiny, tuned, Stop  # isort: skip


def test_a_surrounding_configuration_decides_where_folds_run(
    backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluate("loso", backbone, tuned(), clips=clips, seeds=2)
    used: list[int] = []
    fold = training_folds.fold_in_process
    monkeypatch.setattr(training_folds, "fold_in_process", lambda *task: used.append(task[0]) or fold(*task))
    with joblib.parallel_config(backend="threading", n_jobs=2):
        report = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, out=tmp_path)
        assert sorted(used) == sorted([*range(6)] * 2)
        evaluate("loso", backbone, tuned(), clips=clips, jobs=1)
        assert len(used) == 12
    assert report.to_dict() == alone.to_dict()
    assert report.predictions.equals(alone.predictions)


@pytest.mark.parametrize("how", [MemoryError("no"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_fewer_folds_go_on_at_a_time_when_memory_runs_out(
    how: Exception, backbone: Backbone, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluate("loso", backbone, tuned(), clips=clips)
    at_once = [0]
    fold = training_folds.fold_in_process

    def hungry(number: int, *rest: Any) -> Any:
        at_once.append(at_once[-1] + 1)
        try:
            time.sleep(0.2)  # so that all that may run together do
            if at_once[-1] > 2:
                raise how
            return fold(number, *rest)
        finally:
            at_once.append(at_once[-1] - 1)

    monkeypatch.setattr(training_folds, "fold_in_process", hungry)
    with (
        joblib.parallel_config(backend="threading"),
        pytest.warns(UserWarning, match=r"memory .* 4 folds .* going on with 2") as heard,
    ):
        report = evaluate("loso", backbone, tuned(), clips=clips, jobs=4, out=tmp_path)
    assert len(heard) == 1
    assert report.to_dict() == alone.to_dict()
    assert report.predictions.equals(alone.predictions)
    # Down to one, which is this process.
    monkeypatch.setattr(training_folds, "fold_in_process", lambda *task: (_ for _ in ()).throw(how))
    with joblib.parallel_config(backend="threading"), pytest.warns(UserWarning, match="memory .* going on with 1"):
        assert evaluate("loso", backbone, tuned(), clips=clips, jobs=2).to_dict() == alone.to_dict()


class FromOutside(Finetune):
    """A method of which fsmer knows nothing."""

    name = "from-outside-for-tests"


@dataclass(frozen=True)
class Killed(Finetune):
    """A fine-tuning whose process is ended from outside, once."""

    name: ClassVar[str] = "killed-for-tests"
    flag: str = ""

    def fit(self, backbone: Any, support: Any, **options: Any) -> Recognizer:
        try:
            Path(self.flag).unlink()
        except FileNotFoundError:
            return super().fit(backbone, support, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("the process lives on")


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_its_folds_to_fewer(clips: ClipSet, tmp_path: Path) -> None:
    start = fsmer.create_model("facs-flow", widths=[4, 4, 4, 4], branch_dim=4).eval()
    method = Killed(train_backbone=True, steps=1, flag=str(tmp_path / "flag"))
    alone = evaluate("loso", start, method, clips=clips)
    (tmp_path / "flag").touch()
    with pytest.warns(UserWarning, match=r"memory .* 2 folds .*TerminatedWorkerError"):
        report = evaluate("loso", start, method, clips=clips, jobs=2, out=tmp_path / "out")
    assert report.to_dict() == alone.to_dict()


def test_other_errors_of_a_worker_are_not_taken_for_a_lack_of_memory(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_folds, "fold_in_process", lambda *task: (_ for _ in ()).throw(Stop()))
    with joblib.parallel_config(backend="threading"), pytest.raises(Stop):
        evaluate("loso", backbone, tuned(), clips=clips, jobs=2)


def test_auto_takes_processes_where_there_is_more_to_do_than_they_take_to_start(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, jobs=1)
    asked: list[tuple[list[int], int]] = []

    def here(self: Any, task: Any, numbers: Any, count: int) -> Any:
        asked.append((numbers.tolist(), count))
        return numbers
        yield

    monkeypatch.setattr(training_folds.TrainingFolds, "in_processes", here)
    monkeypatch.setattr(joblib, "cpu_count", lambda: 3)
    assert evaluate("loso", backbone, tuned(), clips=clips, seeds=2, jobs="auto").to_dict() == alone.to_dict()
    assert asked == []  # a moment of work
    monkeypatch.setattr(training_folds, "START_SECONDS", 0.0)
    report = evaluate("loso", backbone, tuned(), clips=clips, seeds=2, jobs="auto")
    # The first fold of the first seed told how long one takes.
    assert asked == [([1, 2, 3, 4, 5], 3), ([0, 1, 2, 3, 4, 5], 3)]
    assert report.to_dict() == alone.to_dict()
    assert report.predictions.equals(alone.predictions)
    asked.clear()
    weights = 4 * sum(value.numel() for value in backbone.parameters())
    monkeypatch.setattr(
        training_folds,
        "free_memory",
        lambda: int(2.5 * (training_folds.WORKER_BYTES + training_folds.COPIES * weights)),
    )
    evaluate("loso", backbone, tuned(), clips=clips, jobs="auto")
    assert [count for _, count in asked] == [2]
    monkeypatch.setattr(training_folds, "free_memory", lambda: 1)
    evaluate("loso", backbone, tuned(), clips=clips, jobs="auto")
    # Methods from outside may hold what cannot be sent to another process.
    monkeypatch.undo()
    monkeypatch.setattr(training_folds.TrainingFolds, "in_processes", here)
    monkeypatch.setattr(training_folds, "START_SECONDS", 0.0)
    evaluate("loso", backbone, FromOutside(train_backbone=True, steps=1), clips=clips, jobs="auto")
    assert len(asked) == 1


def test_folds_are_trained_on_one_thread_so_that_the_machine_changes_no_digit(
    backbone: Backbone, clips: ClipSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[int] = set()
    loss = RandomTiny.training_loss
    monkeypatch.setattr(
        RandomTiny, "training_loss", lambda self, *rest: seen.add(torch.get_num_threads()) or loss(self, *rest)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        evaluate("loso", backbone, tuned(), clips=clips)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_jobs_without_any_training_are_said_to_have_no_effect(backbone: Backbone, clips: ClipSet) -> None:
    with pytest.warns(UserWarning, match=r"jobs=2 has no effect.*'protonet'"):
        evaluate("loso", backbone, "protonet", clips=clips, jobs=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate("loso", backbone, "protonet", clips=clips, jobs="auto")
        evaluate("loso", backbone, tuned(), clips=clips, jobs=1)


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("where", ["processes", "auto", "dask"])
def test_folds_in_processes_and_on_a_cluster_give_the_same_report(
    where: str, clips: ClipSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = fsmer.create_model("facs-flow", widths=[4, 4, 4, 4], branch_dim=4).eval()
    method = tuned(steps=3)
    alone = evaluate("loso", start, method, clips=clips, seeds=2)
    if where == "processes":
        report = evaluate("loso", start, method, clips=clips, seeds=2, jobs=2, out=tmp_path)
    elif where == "auto":
        monkeypatch.setattr(training_folds, "START_SECONDS", 0.0)
        monkeypatch.setattr(joblib, "cpu_count", lambda: 2)
        report = evaluate("loso", start, method, clips=clips, seeds=2, jobs="auto", out=tmp_path)
    else:
        distributed = pytest.importorskip("distributed")
        with (
            distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None, silence_logs=50
            ) as cluster,
            distributed.Client(cluster),
            joblib.parallel_config(backend="dask"),
        ):
            report = evaluate("loso", start, method, clips=clips, seeds=2, out=tmp_path)
    assert report.to_dict() == alone.to_dict()
    assert report.predictions.equals(alone.predictions)
